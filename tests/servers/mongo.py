"""Real servers with MongoDB's protocol on loopback: nx-27017 (on SQLite) and SecantusDB (on WiredTiger).

Each is installed by pip into a separate environment, because their pinned dependencies conflict with those of this
package, and keeps its data in a temporary folder. If `MONGODB_URI` is set, that server is used instead of both.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pymongo
import pymongo.errors
from servers.cache import cache_folder, open_cache_folder
from servers.starting import find_free_ports

from streamloader.common.guarded_files import lock_file

SECONDS = 60.0  # limit for starting, which usually takes 1 s; the cores may be busy with other tests
INSTALL_SECONDS = 600.0


class Missing(Exception):
    """The server is not installed, or does not start. The message gives the reason."""


@dataclass(frozen=True)
class Kind:
    """Kind of server.

    Attributes:
        name: Name for test ids.
        package: Name of the package for pip.
        program: Name of the program in the environment.
    """

    name: str
    package: str
    program: str

    @property
    def lock(self) -> Path:
        """The file with the version and the hashes of the package and its dependencies."""
        return Path(__file__).parents[2] / "requirements" / f"{self.name}.txt"

    def command(self, program: Path, folder: Path, port: int) -> list[str]:
        """Return the command that starts the server."""
        if self.name == "nx":
            return [
                *(str(program), "--host", "127.0.0.1", "-p", str(port), "--data-dir", str(folder / "data")),
                *("--pid-file", str(folder / "pid"), "--log-file", str(folder / "log")),
            ]
        return [str(program), "--host", "127.0.0.1", "--port", str(port), "--storage-path", str(folder / "data")]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("nx", "nx-27017", "nx-27017"),
        Kind("secantus", "secantusdb", "secantusd-py"),
    )
}


class Server:
    """A running server, which can be killed and started again with the same data.

    Attributes:
        name: Name of its kind, or ``"uri"``.
        uri: URI of the server. It may contain a user name and a password.
    """

    def __init__(self, name: str, uri: str) -> None:
        self.name = name
        self.uri = uri
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._port = 0

    @property
    def can_be_killed(self) -> bool:
        """Whether these tests started the server and may kill it."""
        return self._folder is not None

    def database(self) -> str:
        """Return a new database name."""
        return f"t{uuid.uuid4().hex[:12]}"

    def url(self, database: str, **options: object) -> str:
        """Return the address of a catalog in `database`."""
        head, _, query = self.uri.partition("?")
        scheme, _, rest = head.partition("://")
        parameters = [query, *(f"{name}={value}" for name, value in options.items())]
        return f"{scheme}://{rest.partition('/')[0]}/{database}?" + "&".join(filter(None, parameters))

    @functools.cached_property
    def direct(self) -> pymongo.MongoClient:
        """Client of the plain driver, for inspecting a database. Its threads live as long as the server."""
        client: pymongo.MongoClient = pymongo.MongoClient(
            self.uri,
            serverSelectionTimeoutMS=60_000,
            serverMonitoringMode="poll",  # connects now, not later within a test that checks for leaks
            heartbeatFrequencyMS=3_600_000,
            maxPoolSize=1,
        )
        client.admin.command("ping")
        return client

    def close(self) -> None:
        """Close :attr:`direct`."""
        if "direct" in vars(self):
            self.direct.close()

    def kill(self) -> None:
        """Kill the server."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)

    def start(self) -> None:
        """Start the server on the same port with the same data, and wait until it answers.

        Raises:
            Missing: If it does not answer in time.
        """
        self.spawn()
        self._wait_until_ready()

    def spawn(self) -> None:
        """Start the server without waiting. Call it from a long-lived thread: the server ends with that thread."""
        assert self._folder is not None
        kind = KINDS[self.name]
        (self._folder / "pid").unlink(missing_ok=True)  # left by a killed server
        command = kind.command(_program(kind), self._folder, self._port)
        if setpriv := shutil.which("setpriv"):
            command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # ends with the test process
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                env={**os.environ, "HOME": str(self._folder)},
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        kind = KINDS[self.name]
        deadline = time.monotonic() + SECONDS
        while self._process.poll() is None:
            try:
                with pymongo.MongoClient(self.uri, serverSelectionTimeoutMS=200, connectTimeoutMS=1000) as client:
                    client.admin.command("ping")
                return
            except pymongo.errors.PyMongoError as error:
                if time.monotonic() > deadline:
                    raise Missing(f"{kind.package} was not ready within {SECONDS:.0f} s: {error}") from error
        output = (self._folder / "output").read_text(errors="replace")[-2000:]
        raise Missing(f"{kind.package} exited with {self._process.returncode}: {output}")


@contextlib.contextmanager
def mongo(name: str) -> Iterator[Server]:
    """Start a server, yield it when it answers, then stop it and remove its folder.

    If `MONGODB_URI` is set, the name is ``"uri"``, and that server is yielded.

    Raises:
        Missing: If it is not installed (see :func:`install`), or does not start.
    """
    if name == "uri":
        server = Server(name, os.environ["MONGODB_URI"])
        try:
            yield server
        finally:
            server.close()
        return
    _program(KINDS[name])
    with tempfile.TemporaryDirectory(prefix=f"mongo-{name}-", ignore_cleanup_errors=True) as folder:
        for attempt in range(3):  # another process may take the free port first
            (port,) = find_free_ports(1)
            server = Server(name, f"mongodb://127.0.0.1:{port}/")
            server._folder, server._port = Path(folder) / str(attempt), port
            (server._folder / "data").mkdir(parents=True)
            try:
                server.start()
                break
            except Missing:
                server.kill()
                if attempt == 2:
                    raise
        try:
            yield server
        finally:
            server.close()
            server.kill()


def names() -> list[str]:
    """Return the names of the servers that the tests use."""
    return ["uri"] if os.environ.get("MONGODB_URI") else list(KINDS)


def is_installed(name: str) -> bool:
    """Return whether :func:`install` has nothing to do."""
    return _installed(KINDS[name]) is not None


def install(name: str) -> Path:
    """Install a server with pip unless it is installed (41 MB and 145 MB), and return the path of its program.

    Raises:
        Missing: If pip fails.
    """
    kind = KINDS[name]
    if (program := _installed(kind)) is not None:
        return program
    folder = _folder(kind)
    # Other test processes may install it at the same time.
    with open_cache_folder() as cache, lock_file(cache, f"{name}.lock", INSTALL_SECONDS):
        if (program := _installed(kind)) is not None:
            return program
        shutil.rmtree(folder, ignore_errors=True)  # another version, or an incomplete one
        pip = ["-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check", "--no-input"]
        pinned = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--requirement", str(kind.lock)]
        for command in (
            [sys.executable, "-m", "venv", "--without-pip", str(folder)],
            [sys.executable, *pip, "install", "--quiet", *pinned],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
            except subprocess.TimeoutExpired as error:
                raise Missing(f"{kind.package}: pip took longer than {INSTALL_SECONDS:.0f} s") from error
            if done.returncode:
                raise Missing(f"{kind.package} cannot be installed: {done.stderr.strip()[-500:]}")
        (folder / "complete").write_bytes(kind.lock.read_bytes())  # written last, as a marker
        program = _installed(kind)
        if program is None:
            raise Missing(f"{kind.package} has no program {kind.program!r}")
        return program


def _program(kind: Kind) -> Path:
    program = _installed(kind)
    if program is None:
        raise Missing(f"{kind.package} is not installed: python tests/servers/install.py")
    return program


def _folder(kind: Kind) -> Path:
    return cache_folder() / f"{kind.name}-{sys.version_info.major}.{sys.version_info.minor}"


def _installed(kind: Kind) -> Path | None:
    folder = _folder(kind)
    try:
        with open_cache_folder():
            complete = (folder / "complete").read_bytes() == kind.lock.read_bytes()
    except OSError:
        return None
    program = folder / "bin" / kind.program
    return program if complete and program.exists() else None
