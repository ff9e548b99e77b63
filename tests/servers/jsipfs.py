"""A real IPFS node on loopback: js-ipfs, with its RPC API and its gateway, offline, in a folder of its own.

Its gateway returns plain files for every requested format, so it tests whether clients verify responses.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.cache import cache_folder, open_cache_folder

LOCKED = Path(__file__).parent / "npm"  # package.json, and package-lock.json with the hash of each package
SECONDS = 90.0  # to be ready: usually 6; two cores may be busy with other tests
INSTALL_TIMEOUT_S = 900.0
_MULTIADDR = re.compile(r"/ip4/127\.0\.0\.1/tcp/(\d+)")
# Some of its packages call what only newer Nodes have.
_POLYFILL = """\
if (!Promise.withResolvers) {
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new this((yes, no) => { resolve = yes; reject = no })
    return { promise, resolve, reject }
  }
}
"""


class Missing(Exception):
    """There is no js-ipfs here, or it does not start; the message says why."""


@dataclass(frozen=True)
class Node:
    """A node that runs.

    Attributes:
        rpc: url of its RPC API.
        gateway: url of its gateway.
        rpc_port: of the same.
        pid: of its process.
        id: its name for ipns://.
    """

    rpc: str
    gateway: str
    rpc_port: int
    pid: int
    id: str

    def call(self, name: str, body: bytes = b"", kind: str = "application/octet-stream", **arguments: object) -> bytes:
        """Call a method of the RPC API and return its answer."""
        query = urllib.parse.urlencode({key.replace("_", "-"): str(value) for key, value in arguments.items()})
        request = urllib.request.Request(
            f"{self.rpc}/api/v0/{name}?{query}", data=body, headers={"Content-Type": kind}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{name}: {error.code} {error.read()[:300]!r}") from None

    def add(self, files: Mapping[str, bytes], **options: object) -> dict[str, str]:
        """Add files (by path, with directories) and return path -> CID, of their directories as well."""
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="file-{number}"; '
            f'filename="{urllib.parse.quote(path, safe="")}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for number, (path, data) in enumerate(files.items())
        ]
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        arguments = {"pin": "false", **{key: str(value).lower() for key, value in options.items()}}
        answer = self.call("add", body, f"multipart/form-data; boundary={boundary}", **arguments)
        entries = [json.loads(line) for line in answer.splitlines() if line.strip()]
        return {entry["Name"]: entry["Hash"] for entry in entries if entry.get("Hash")}

    def add_one(self, data: bytes, **options: object) -> str:
        """Add one file and return its CID."""
        return self.add({"file": data}, **options)["file"]

    def put(self, block: bytes, codec: str, **options: object) -> str:
        """Store one block and return its CID."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="data"\r\n'
        body = head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + block
        body += f"\r\n--{boundary}--\r\n".encode()
        answer = self.call("block/put", body, f"multipart/form-data; boundary={boundary}", format=codec, **options)
        return json.loads(answer)["Key"]


def folder_of_package() -> Path:
    """Return where js-ipfs is installed, or is to be."""
    return cache_folder() / "jsipfs"


def start_install() -> Path | None:
    """Start npm in a process of its own, unless js-ipfs is installed or another process installs it (289 MB, minutes).

    Returns:
        npm's log, or None if js-ipfs is installed. :func:`wait_for_install` waits for the end.

    Raises:
        Missing: If there is no Node.
    """
    folder = folder_of_package()
    if _installed(folder) is not None:
        return None
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise Missing("js-ipfs needs Node: there is no npm on the PATH")
    log = folder.parent / "jsipfs.log"
    with open_cache_folder() as cache, os.fdopen(cache.open_file("jsipfs.lock", os.O_RDWR | os.O_CREAT), "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return log
        # The process inherits the lock, which is free again when it ends, however it ends.
        with log.open("wb") as output:
            subprocess.Popen(
                [sys.executable, "-m", "servers.jsipfs"],
                cwd=Path(__file__).parents[1],
                pass_fds=[lock.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    return log


def is_being_installed() -> bool:
    """Return whether a process of :func:`start_install` is at work."""
    path = _lock_path(folder_of_package())
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_for_install() -> Path:
    """Wait until js-ipfs is installed, and return its program.

    Raises:
        Missing: If it is not installed and nobody installs it, or if npm fails.
    """
    folder = folder_of_package()
    deadline = time.monotonic() + INSTALL_TIMEOUT_S
    while is_being_installed():
        if time.monotonic() > deadline:
            raise Missing(f"js-ipfs: npm install took longer than {INSTALL_TIMEOUT_S:.0f} s")
        time.sleep(0.2)  # between two checks of the lock
    if (program := _installed(folder)) is not None:
        return program
    with contextlib.suppress(OSError):
        if log := (folder.parent / "jsipfs.log").read_text(errors="replace").strip():
            raise Missing(f"js-ipfs: npm install failed: {log[-500:]}")
    raise Missing("js-ipfs is not installed: python tests/servers/install.py")


def _lock_path(folder: Path) -> Path:
    return folder.parent / "jsipfs.lock"


def _run_npm(folder: Path) -> int:
    """Install into a folder whose lock is held; return npm's exit status."""
    folder.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(LOCKED / name, folder / name)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    return subprocess.run(command, cwd=folder, timeout=INSTALL_TIMEOUT_S, check=False).returncode


@contextlib.contextmanager
def jsipfs(program: Path | None = None) -> Iterator[Node]:
    """Start a node in a temporary folder, wait until it answers, and stop it by its process group in the end.

    Raises:
        Missing: If it is not installed (see :func:`start_install`), or does not start.
    """
    program = program or wait_for_install()
    node = shutil.which("node")
    if node is None:
        raise Missing("js-ipfs needs Node: there is no node on the PATH")
    with tempfile.TemporaryDirectory(prefix="jsipfs-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "polyfill.cjs").write_text(_POLYFILL)
        environment = {
            **os.environ,
            "NODE_OPTIONS": f"--require {folder / 'polyfill.cjs'}",
            "IPFS_PATH": str(folder / "repo"),
            "HOME": name,
        }
        command = [node, str(program)]
        made = subprocess.run(
            [*command, "init", "--profile", "test"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if made.returncode:
            raise Missing(f"js-ipfs cannot make a repository: {made.stderr.strip()[-500:]}")
        _configure(folder / "repo" / "config")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "daemon", "--offline", "--enable-sharding-experiment"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield _wait_until_ready(process, folder / "log")
        finally:
            _stop(process)


def _installed(folder: Path) -> Path | None:
    """Return the program if what is installed are the locked packages, with their hashes."""
    try:
        with open_cache_folder():
            installed = json.loads((folder / "node_modules" / ".package-lock.json").read_text())  # written last
    except (OSError, ValueError):
        return None
    locked = json.loads((LOCKED / "package-lock.json").read_text())
    return folder / "node_modules" / "ipfs" / "src" / "cli.js" if is_install_of(installed, locked) else None


def is_install_of(installed: dict[str, Any], locked: dict[str, Any]) -> bool:
    """Compare npm's record of what it installed with a lock. Optional packages may be missing on some systems."""
    wanted = {path: package for path, package in locked["packages"].items() if path}
    hashes = {path: package.get("integrity") for path, package in installed["packages"].items() if path}
    required = {path for path, package in wanted.items() if not package.get("optional")}
    return required <= hashes.keys() <= wanted.keys() and all(
        wanted[path]["integrity"] == digest for path, digest in hashes.items()
    )


def _configure(path: Path) -> None:
    config = json.loads(path.read_text())
    config["Addresses"] = {
        "Swarm": [],
        "Announce": [],
        "NoAnnounce": [],
        "API": "/ip4/127.0.0.1/tcp/0",
        "Gateway": "/ip4/127.0.0.1/tcp/0",
        "RPC": "/ip4/127.0.0.1/tcp/0",
        "Delegates": [],
    }
    config["Bootstrap"] = []
    path.write_text(json.dumps(config))


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> Node:
    deadline = time.monotonic() + SECONDS
    while "Daemon is ready" not in (output := log.read_text(errors="replace")):
        if process.poll() is not None:
            raise Missing(f"js-ipfs ended with {process.returncode}: {output[-500:]}")
        if time.monotonic() > deadline:
            raise Missing(f"js-ipfs was not ready within {SECONDS:.0f} s: {output[-500:]}")
        time.sleep(0.05)  # between two looks at a condition
    ports = {}
    for line in output.splitlines():
        found = _MULTIADDR.search(line)
        if found is not None:
            ports["gateway" if line.startswith("Gateway") else "rpc" if "HTTP API" in line else "other"] = int(found[1])
    rpc, gateway = f"http://127.0.0.1:{ports['rpc']}", f"http://127.0.0.1:{ports['gateway']}"
    known = json.loads(Node(rpc, gateway, ports["rpc"], process.pid, "").call("id"))
    return Node(rpc, gateway, ports["rpc"], process.pid, known["ID"])


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its folder goes as well, and saying goodbye takes it seconds
    process.wait(60.0)


if __name__ == "__main__":  # see start_install
    sys.exit(_run_npm(folder_of_package()))
