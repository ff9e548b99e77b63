"""How fast are files read over SSH? The store compared to asyncssh's own reads, `cat`, and paramiko.

``python -m benchmarks.ssh [--quick] [--rounds N] [--json FILE]``

The server is a real OpenSSH server on loopback. Client and server share the processor, and there is no network latency,
so this measures the cost of the client. It needs the packages of the extra ``bench`` and an installed ``sshd``.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.clips import cache_folder
from benchmarks.harness import ROOT, Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_MB = 1_000_000
_BLOCK_BYTES, _MAX_REQUESTS = 256 << 10, 64  # of the manually pipelined reads
_READ_BYTES = 1 << 20  # of plain reads

Read = Callable[[Any, str, int, int], Awaitable[int]]  # (server, path, size, streams) -> bytes


async def _streamloader(server: Any, path: str, size: int, streams: int) -> int:
    from streamloader.stores.registry import open_store
    from streamloader.values import ByteRange

    async with open_store(server.url, **server.options()) as store:

        async def one(start: int, end: int) -> int:
            return sum([len(chunk) async for chunk in store.stream(path.lstrip("/"), ByteRange(start, end))])

        return sum(await asyncio.gather(*(one(*span) for span in _split_range(size, streams))))


def _login_options(server: Any) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": server.port,
        "username": server.user,
        "client_keys": [str(server.key)],
        "known_hosts": str(server.known_hosts),
        "config": None,
    }


async def _asyncssh_default(server: Any, path: str, size: int, streams: int) -> int:
    import asyncssh

    async with asyncssh.connect(**_login_options(server)) as connection, connection.start_sftp_client() as sftp:

        async def one(start: int, end: int) -> int:
            async with sftp.open(path, "rb") as file:
                return len(await file.read(end - start, start))

        return sum(await asyncio.gather(*(one(*span) for span in _split_range(size, streams))))


async def _asyncssh_by_hand(server: Any, path: str, size: int, streams: int) -> int:
    """Read with 64 requests of 256 KiB in flight and the fastest cipher, like an optimized program."""
    import asyncssh

    ciphers = "^aes128-gcm@openssh.com"
    async with (
        asyncssh.connect(**_login_options(server), encryption_algs=ciphers) as connection,
        connection.start_sftp_client() as sftp,
    ):

        async def one(start: int, end: int) -> int:
            received, pending = 0, deque[asyncio.Task[bytes]]()
            async with sftp.open(path, "rb", block_size=0) as file:  # one request per read
                offset = start
                while received < end - start:
                    while len(pending) < _MAX_REQUESTS // streams and offset < end:
                        count = min(_BLOCK_BYTES - 1024, end - offset)
                        pending.append(asyncio.create_task(file.read(count, offset)))
                        offset += count
                    received += len(await pending.popleft())
            return received

        return sum(await asyncio.gather(*(one(*span) for span in _split_range(size, streams))))


async def _cat(server: Any, path: str, size: int, streams: int) -> int:
    import asyncssh

    ciphers = "^aes128-gcm@openssh.com"
    async with asyncssh.connect(**_login_options(server), encryption_algs=ciphers) as connection:

        async def one(start: int, end: int) -> int:
            command = f"cat {path}" if streams == 1 else f"tail -c +{start + 1} {path} | head -c {end - start}"
            received = 0
            async with connection.create_process(command, encoding=None) as process:
                while piece := await process.stdout.read(_READ_BYTES):
                    received += len(piece)
            return received

        return sum(await asyncio.gather(*(one(*span) for span in _split_range(size, streams))))


async def _paramiko(server: Any, path: str, size: int, *, ahead: bool) -> int:
    import paramiko

    def read() -> int:
        client = paramiko.SSHClient()
        client.load_host_keys(str(server.known_hosts))
        client.connect(
            "127.0.0.1", server.port, server.user, key_filename=str(server.key), allow_agent=False, look_for_keys=False
        )
        received = 0
        with client, client.open_sftp() as sftp, sftp.open(path, "rb") as file:
            if ahead:
                file.prefetch(size)
            while received < size and (piece := file.read(min(_READ_BYTES, size - received))):
                received += len(piece)
        return received

    return await asyncio.to_thread(read)


async def _paramiko_ahead(server: Any, path: str, size: int, _streams: int) -> int:
    return await _paramiko(server, path, size, ahead=True)


async def _paramiko_plain(server: Any, path: str, size: int, _streams: int) -> int:
    return await _paramiko(server, path, size, ahead=False)


_READERS: dict[str, Read] = {
    "streamloader": _streamloader,
    "asyncssh_default": _asyncssh_default,
    "asyncssh_by_hand": _asyncssh_by_hand,
    "cat": _cat,
    "paramiko_ahead": _paramiko_ahead,
    "paramiko_plain": _paramiko_plain,
}
_PARTS = {"paramiko_plain": 10}  # readers so slow that they read only this fraction of the file
_ONE_STREAM_ONLY = ("paramiko_ahead", "paramiko_plain")


def _split_range(size: int, streams: int) -> list[tuple[int, int]]:
    share = -(-size // streams)
    return [(start, min(start + share, size)) for start in range(0, size, share)]


def _random_file(size: int) -> Path:
    """Return a file of random bytes, which is created once."""
    path = cache_folder() / f"ssh-{size // _MB}.bin"
    if not path.exists() or path.stat().st_size != size:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        with unfinished.open("wb") as file:
            for offset in range(0, size, _MB):
                file.write(os.urandom(min(_MB, size - offset)))
        unfinished.rename(path)
    return path


def measure(megabytes: int, streams: int) -> dict[str, Any]:
    """Read the file once with each reader, in random order. The time includes logging in."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.sshd import sshd

    from streamloader.stores.io_thread import _make_loop

    size = megabytes * _MB
    path = _random_file(size)
    path.read_bytes()  # so that no measured read waits for the disk
    names = [name for name in _READERS if streams == 1 or name not in _ONE_STREAM_ONLY]
    random.shuffle(names)
    results: dict[str, Any] = {}
    with sshd() as server:
        for name in names:
            with asyncio.Runner(loop_factory=_make_loop) as runner:
                share = size // _PARTS.get(name, 1)
                cpu, start = time.process_time(), time.perf_counter()
                received = runner.run(_READERS[name](server, str(path), share, streams))
                results[name] = share / _MB / (time.perf_counter() - start)
                results[f"{name}_cpu"] = (time.process_time() - cpu) * 1000 * _MB / share
            if received != share:
                raise AssertionError(f"{name} read {received} bytes of {share}")
    rate = results["streamloader"]
    results["to_default"] = rate / results["asyncssh_default"]
    results["to_best"] = rate / max(results["asyncssh_by_hand"], results["cat"])
    if "paramiko_ahead" in results:
        results["to_paramiko"] = rate / max(results[name] for name in _ONE_STREAM_ONLY)
    return results


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    megabytes = 50 if quick else 500
    table = OwnTable(
        "ssh",
        f"A file of {megabytes} MB from OpenSSH on loopback, MB/s",
        "From before the connection to the last byte. Each round runs in one process, in random order, on the event "
        "loop of the package (uvloop if it is installed). `default`: asyncssh's `SFTPClientFile.read()`. `by hand`: "
        f"its reads with {_MAX_REQUESTS} requests of {_BLOCK_BYTES >> 10} KiB in flight and AES-GCM. `cat` with "
        "AES-GCM over an exec channel (`tail | head` for parts). paramiko with `prefetch`, and its plain reads (of a "
        "tenth of the file). The targets: 1.5 x asyncssh's default, and 0.9 x the better of `by hand` and `cat` in the "
        "same round. CPU: seconds of the client's processor per gigabyte.",
        [
            Row("one stream", {"megabytes": megabytes, "streams": 1}),
            Row("8 streams, an eighth each", {"megabytes": megabytes, "streams": 8}),
        ],
        (
            Column("streamloader", "streamloader"),
            Column("asyncssh_default", "asyncssh default"),
            Column("asyncssh_by_hand", "asyncssh by hand"),
            Column("cat", "cat"),
            Column("paramiko_ahead", "paramiko prefetch"),
            Column("paramiko_plain", "paramiko plain"),
            Column("to_default", "streamloader / default (target 1.5)", 2),
            Column("to_best", "streamloader / best of by hand, cat (target 0.9)", 2),
            Column("to_paramiko", "streamloader / best paramiko", 2),
            Column("streamloader_cpu", "CPU s/GB, streamloader", 2),
            Column("asyncssh_default_cpu", "default", 2),
            Column("asyncssh_by_hand_cpu", "by hand", 2),
            Column("cat_cpu", "cat", 2),
        ),
    )
    return OwnQuestion("ssh", "SSH", "benchmarks.ssh", (table,))


if __name__ == "__main__":
    main(question)
