"""Real OpenSSH servers on loopback, each with a temporary folder, its own host key, and an authorized key.

The user is the one who runs the tests. SFTP sessions start in a temporary folder, so that paths relative to the home
directory do not touch the real one.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from canaries import canary
from servers.starting import find_free_ports

SECONDS = 60.0  # limit for starting, which usually takes 0.1 s
_PROGRAMS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"


class Missing(Exception):
    """OpenSSH is not installed, or does not start. The message gives the reason."""


class Sshd:
    """A server, which may be running or stopped.

    Attributes:
        port: Port on 127.0.0.1. Stays the same after a restart.
        user: Name of the user who may log in.
        data: Folder for objects.
        home: Folder in which sessions start.
        key: Path of the authorized private key.
        locked_key: Path of the same key, encrypted with the canary "ssh-passphrase".
        certificate_key: Path of a private key that is authorized only by its certificate (-cert.pub).
        stranger_key: Path of a private key that is not authorized.
        known_hosts: Path of a file with the server's host key.
        config: Path of an SSH configuration with the aliases "box" and "jumped" (through "box").
        pid: Id of the listening process, or None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_sessions: int = 100,
        sftp: bool = True,
        obeys_permissions: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.data, self.home = folder / "data", folder / "home"
        self.data.mkdir()
        self.home.mkdir()
        self.key, self.locked_key = folder / "key", folder / "locked_key"
        self.certificate_key, self.stranger_key = folder / "certified_key", folder / "stranger_key"
        self.known_hosts, self.config = folder / "known_hosts", folder / "config"
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._max_sessions, self._sftp, self._obeys_permissions = max_sessions, sftp, obeys_permissions
        self._settings = dict(settings or {})
        self._make_keys()
        self.port = 0

    @property
    def url(self) -> str:
        """URL of the store, with the user name."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def address(self, path: str | Path) -> str:
        """Return the address of a local path, absolute or relative to `data`."""
        return f"{self.url}{self.data / path}"

    def path(self, name: str) -> str:
        """Return the path in the store of a file in `data`."""
        return str(self.data / name).lstrip("/")

    def options(self) -> dict[str, Any]:
        """Return the options for `open_store(url, **options)`. The user's own configuration is not used."""
        return {"client_keys": [str(self.key)], "known_hosts": str(self.known_hosts), "config": []}

    def start(self) -> None:
        """Start the server, on its previous port if it had one.

        Raises:
            Missing: If it does not start.
        """
        program = _find("sshd")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd requires this folder
        for _ in range(3):  # another process may take the free port first
            port = self.port or find_free_ports(1)[0]
            self._write_config(port)
            command = [program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            if setpriv := shutil.which("setpriv", path=_PROGRAMS):
                command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # ends with the test process
            with (self.folder / "log").open("ab") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._process, self.pid = process, process.pid
            if _answers(port, process):
                self.port = port
                return
            self.stop()
        log_end = (self.folder / "log").read_text(errors="replace")[-2000:]
        raise Missing(f"sshd exited three times before it was ready; the end of its log:\n{log_end}")

    def drop_connections(self) -> None:
        """Kill the processes of all open connections. The server continues."""
        if self._process is not None:
            _kill(psutil.Process(self._process.pid).children(recursive=True))

    def stop(self) -> None:
        """Kill the server and its child processes."""
        process, self._process, self.pid = self._process, None, None
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)  # so that it starts no further one, which would live on
                children = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGKILL)
                _kill(children)
            process.wait(60)

    def new_host_key(self) -> None:
        """Replace the host key from the next start on. `known_hosts` keeps the old one."""
        (self.folder / "host_key").unlink()
        _keygen(self.folder / "host_key")

    def _make_keys(self) -> None:
        for path in (self.folder / "host_key", self.key, self.certificate_key, self.stranger_key, self.folder / "ca"):
            _keygen(path)
        shutil.copy(self.key, self.locked_key)
        _run("ssh-keygen", "-q", "-p", "-P", "", "-N", canary("ssh-passphrase"), "-f", str(self.locked_key))
        names = ["-s", str(self.folder / "ca"), "-I", "tests", "-n", self.user, "-V", "-1d:+1d"]
        _run("ssh-keygen", "-q", *names, f"{self.certificate_key}.pub")
        shutil.copy(f"{self.key}.pub", self.folder / "authorized_keys")

    def _write_config(self, port: int) -> None:
        lines = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host_key",
            "PidFile": "none",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "TrustedUserCAKeys": self.folder / "ca.pub",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "Subsystem": f"sftp internal-sftp -d {self.home}",
            "MaxStartups": 200,
            "MaxSessions": self._max_sessions,
            "MaxAuthTries": 20,
            "LogLevel": "ERROR",
        }
        if self._obeys_permissions:  # the internal server of root reads everything
            command = [*permission_wrapper(), "/usr/lib/openssh/sftp-server", "-d", str(self.home)]
            lines["Subsystem"] = f"sftp {' '.join(command)}"
        lines.update(self._settings)
        if not self._sftp:
            del lines["Subsystem"]
        (self.folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        if not self.known_hosts.exists():
            self.known_hosts.write_text(self._line(port))
        self.config.write_text(
            f"Host box jumped\n  HostName 127.0.0.1\n  Port {port}\n  User {self.user}\n  IdentityFile {self.key}\n"
            f"  UserKnownHostsFile {self.known_hosts}\n\nHost jumped\n  ProxyJump box\n"
        )

    def _line(self, port: int) -> str:
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{port} {kind} {key}\n"


@contextlib.contextmanager
def sshd(**options: Any) -> Iterator[Sshd]:
    """Start OpenSSH, yield it, then stop it and remove its folder.

    Raises:
        Missing: If it is not installed, or does not start.
    """
    for program in ("sshd", "ssh-keygen"):
        _find(program)
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    try:
        server = Sshd(folder, **options)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def agent(*keys: Path) -> Iterator[str]:
    """Start a real ssh-agent with these keys, yield the path of its socket, then stop it.

    Raises:
        Missing: If it is not installed, or does not start.
    """
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        socket_path = f"{folder}/agent"
        process = subprocess.Popen(
            [_find("ssh-agent"), "-D", "-a", socket_path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            _wait_for(lambda: Path(socket_path).exists(), process, "ssh-agent")
            for key in keys:
                _run("ssh-add", "-q", str(key), env={**os.environ, "SSH_AUTH_SOCK": socket_path})
            yield socket_path
        finally:
            process.kill()
            process.wait(60)


def permission_wrapper() -> list[str]:
    """Return the beginning of a command that runs without root's right to read everything. [] if the user is not root.

    Raises:
        Missing: If setpriv is not installed.
    """
    if os.geteuid() != 0:
        return []
    rights = "-dac_override,-dac_read_search"
    return [_find("setpriv"), f"--bounding-set={rights}", f"--inh-caps={rights}", "--"]


def _find(program: str) -> str:
    path = shutil.which(program, path=_PROGRAMS)
    if path is None:
        raise Missing(f"{program} is not installed: apt-get install openssh-server openssh-client")
    return path


def _run(program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([_find(program), *arguments], env=env, capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise Missing(f"{program} failed: {done.stderr.decode(errors='replace')}")


def _keygen(path: Path) -> None:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(path))


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server sends its version. Return False if the process exits."""

    def sends_version() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    return _wait_for(sends_version, process, "sshd")


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> bool:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            raise Missing(f"{what} was not ready within {SECONDS} s")
        time.sleep(0.01)
    return False
