"""What does a short range over HTTP cost? The store compared to aiohttp itself, on ranges of 64 KiB of one file.

``python -m benchmarks.ranges [--quick] [--rounds N] [--json FILE]``

The server is a real nginx on loopback. Client and server share the processor, and there is no network latency, so this
measures the cost of the client. It needs an installed ``nginx``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks.harness import ROOT, Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_FILE_BYTES = 64 << 20
_RANGE_BYTES = 64 << 10
_BLOCKS = 5  # of each reader in a round, in turn

Read = Callable[[int, int], Awaitable[bytes]]  # (start, end) -> bytes


@contextlib.asynccontextmanager
async def _open_aiohttp(url: str) -> AsyncIterator[Read]:
    import aiohttp

    async with aiohttp.ClientSession() as session:

        async def read(start: int, end: int) -> bytes:
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            async with session.get(url, headers=headers) as response:
                return await response.read()

        yield read


@contextlib.asynccontextmanager
async def _open_streamloader(url: str) -> AsyncIterator[Read]:
    from streamloader.stores.registry import open_store
    from streamloader.values import ByteRange

    root, _, name = url.rpartition("/")
    async with open_store(root) as store:
        version = (await store.head(name)).version

        async def read(start: int, end: int) -> bytes:
            return await store.read(name, ByteRange(start, end), version=version)

        yield read


_READERS = {"aiohttp": _open_aiohttp, "streamloader": _open_streamloader}


async def _read_block(read: Read, starts: list[int], in_flight: int, data: bytes) -> tuple[float, float]:
    """Read a range at each of `starts`. Return the time and the CPU time of one range, in microseconds."""
    remaining = iter(starts)

    async def work() -> None:
        for start in remaining:
            if len(await read(start, start + _RANGE_BYTES)) != _RANGE_BYTES:
                raise AssertionError("a range has another length than the requested one")

    assert await read(5, 99) == data[5:99]
    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return seconds / len(starts) * 1e6, cpu_seconds / len(starts) * 1e6


async def _compare(url: str, data: bytes, in_flight: int, requests: int) -> dict[str, Any]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in _READERS}
    numbers = random.Random(in_flight)
    async with contextlib.AsyncExitStack() as stack:
        readers = {name: await stack.enter_async_context(open_reader(url)) for name, open_reader in _READERS.items()}
        for block in range(_BLOCKS + 1):
            starts = [numbers.randrange(_FILE_BYTES // _RANGE_BYTES) * _RANGE_BYTES for _ in range(requests)]
            for name in sorted(readers, reverse=bool(block % 2)):
                figures = await _read_block(readers[name], starts, in_flight, data)
                if block:  # the first one opens the connections
                    times[name].append(figures)
    results = {}
    for name, figures in times.items():
        results[name], results[f"{name}_cpu"] = map(statistics.median, zip(*figures, strict=True))
    pairs = list(zip(times["streamloader"], times["aiohttp"], strict=True))
    results["ratio"] = statistics.median(ours[0] / plain[0] for ours, plain in pairs)
    results["cpu_ratio"] = statistics.median(ours[1] / plain[1] for ours, plain in pairs)
    return results


def measure(in_flight: int, requests: int) -> dict[str, Any]:
    """Read blocks of ranges with both readers in turn, on the event loop of the package."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.nginx import nginx

    from streamloader.stores.io_thread import _make_loop

    data = os.urandom(_FILE_BYTES)
    with nginx(user="user", password="password") as server:
        server.put({"data.bin": data})
        with asyncio.Runner(loop_factory=_make_loop) as runner:
            return runner.run(_compare(f"{server.url}/data.bin", data, in_flight, requests))


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    requests = 100 if quick else 800
    table = OwnTable(
        "ranges",
        "Ranges of 64 KiB of one file from nginx on loopback, microseconds per range",
        '`aiohttp`: `session.get(url, headers={"Range": ...})` and `read()`. `streamloader`: `store.read(path, '
        "ByteRange(...), version=...)` with retries, deadlines and all checks of the response. Both run on the event "
        f"loop of the package (uvloop if it is installed). A round reads {_BLOCKS} blocks of {requests} ranges with "
        "each of them in turn. The bar: 1.3 x aiohttp.",
        [
            Row("one after the other", {"in_flight": 1, "requests": requests}),
            Row("16 in flight", {"in_flight": 16, "requests": requests}),
        ],
        (
            Column("aiohttp", "aiohttp"),
            Column("streamloader", "streamloader"),
            Column("ratio", "streamloader / aiohttp (bar 1.3)", 2),
            Column("aiohttp_cpu", "CPU, aiohttp"),
            Column("streamloader_cpu", "CPU, streamloader"),
            Column("cpu_ratio", "CPU, streamloader / aiohttp", 2),
        ),
    )
    return OwnQuestion("ranges", "Short HTTP ranges", "benchmarks.ranges", (table,))


if __name__ == "__main__":
    main(question)
