"""What do the members of tar and zip files cost? The package compared to Python's tarfile and zipfile, on local disk.

``python -m benchmarks.containers [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import statistics
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.clips import cache_folder
from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_BLOCKS = 3  # of each reader in a round, in turn
_RANDOM_MEMBERS = {".tar": 2_000, ".zip": 2_000, ".tar.gz": 20}


def _make_container(ending: str, members: int, member_bytes: int) -> Path:
    """Return a container of members of half random bytes, which is created once."""
    path = cache_folder() / f"members-{members}-{member_bytes}{ending}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    numbers = random.Random(members)
    contents = (
        (f"{number // 1000:04}/{number:08}.bin", numbers.randbytes(member_bytes // 2) + bytes(member_bytes // 2))
        for number in range(members)
    )
    if ending == ".zip":
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents:
                archive.writestr(name, data)
    else:
        with tarfile.open(unfinished, "w:gz" if ending == ".tar.gz" else "w") as tar:
            for name, data in contents:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    unfinished.rename(path)
    return path


def _open_standard(path: Path) -> Any:
    return zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path)


def _read_standard(container: Any, member: Any) -> bytes:
    if isinstance(container, zipfile.ZipFile):
        return container.read(member)
    file = container.extractfile(member)
    assert file is not None
    return bytes(file.read())


def _list_standard(container: Any) -> list[Any]:
    return container.infolist() if isinstance(container, zipfile.ZipFile) else container.getmembers()


def _standard(path: Path, work: str, numbers: list[int]) -> tuple[float, int]:
    """Return the seconds that the standard library takes, and the number of bytes or members."""
    if work == "random":
        with _open_standard(path) as container:
            members = _list_standard(container)
            start = time.perf_counter()
            total = sum(len(_read_standard(container, members[number])) for number in numbers)
            return time.perf_counter() - start, total
    start = time.perf_counter()
    with _open_standard(path) as container:
        if work == "list":
            count = len(_list_standard(container))
            return time.perf_counter() - start, count
        members = container.infolist() if isinstance(container, zipfile.ZipFile) else container
        total = sum(len(_read_standard(container, member)) for member in members)
    return time.perf_counter() - start, total


async def _ours(path: Path, work: str, numbers: list[int]) -> tuple[float, int]:
    from streamloader.containers.store import open_container

    async with open_container(str(path)) as container:
        if work == "random":
            names = [info.path async for info in container.list()]
            start = time.perf_counter()
            total = sum([len(await container.read(names[number])) for number in numbers])
            return time.perf_counter() - start, total
        start = time.perf_counter()
        if work == "list":
            count = sum([1 async for _ in container.list()])
            return time.perf_counter() - start, count
        total = 0
        async with contextlib.aclosing(container.iterate()) as members:
            async for _, pieces in members:
                async for piece in pieces:
                    total += len(piece)
    return time.perf_counter() - start, total


def measure(ending: str, work: str, members: int, member_bytes: int) -> dict[str, Any]:
    """Do the same work with both in turn, on the event loop of the package. Return microseconds a member."""
    from streamloader.stores.io_thread import _make_loop

    path = _make_container(ending, members, member_bytes)
    count = min(members, _RANDOM_MEMBERS[ending]) if work == "random" else members
    numbers = random.Random(1).sample(range(members), count)
    readers: dict[str, Callable[[], tuple[float, int]]] = {}
    times: dict[str, list[float]] = {"standard": [], "streamloader": []}
    with asyncio.Runner(loop_factory=_make_loop) as runner:
        readers["standard"] = lambda: _standard(path, work, numbers)
        readers["streamloader"] = lambda: runner.run(_ours(path, work, numbers))
        for block in range(_BLOCKS + 1):
            amounts = set()
            for name in sorted(readers, reverse=bool(block % 2)):
                seconds, amount = readers[name]()
                amounts.add(amount)
                if block:  # the first one brings the file into the page cache
                    times[name].append(seconds / count * 1e6)
            assert len(amounts) == 1, f"the readers read different amounts: {amounts}"
    results: dict[str, Any] = {name: statistics.median(each) for name, each in times.items()}
    pairs = zip(times["streamloader"], times["standard"], strict=True)
    results["ratio"] = statistics.median(ours / standard for ours, standard in pairs)
    return results


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    members = 500 if quick else 10_000
    works = {"list": "list", "pass": "read all in one pass", "random": "read single ones at random"}
    table = OwnTable(
        "containers",
        f"{members:,} members of 10 KiB in a local file, microseconds a member",
        "`streamloader`: `open_container(...)` with `list()`, `iterate()` and `read(name)`, one after the other. "
        "Standard library: `tarfile` and `zipfile` with `getmembers()` or `infolist()`, and `read()` of each member, "
        "from a file that stays open. Both open the container anew for each block; at random, the lists are known. "
        f"A round does {_BLOCKS} blocks with each of them in turn. Contents: half random bytes, half zeros.",
        [
            Row(f"{ending}: {title}", {"ending": ending, "work": work, "members": members, "member_bytes": 10 << 10})
            for ending in (".tar", ".zip", ".tar.gz")
            for work, title in works.items()
        ],
        (
            Column("standard", "standard library", 1),
            Column("streamloader", "streamloader", 1),
            Column("ratio", "streamloader / standard library", 2),
        ),
    )
    return OwnQuestion("containers", "Members of containers", "benchmarks.containers", (table,))


if __name__ == "__main__":
    main(question)
