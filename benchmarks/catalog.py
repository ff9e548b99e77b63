"""A catalog of millions of chunks: how large it is, how fast it opens and answers, and what a reader weighs.

``python -m benchmarks.catalog [--videos 20000] [--chunks 500] [--frames 100] [--folder DIR] [--keep]`` makes an SQLite
catalog of that many videos with that many chunks each, all of so many frames, and measures with fresh processes. Rows
are made up, frame indexes are real ones of made-up packets; they go in by SQL, many videos to a transaction. How fast
the catalog's own methods are is measured before that, on its first videos. docs/scale.md has the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path

CODING = {"codec": "h264", "extradata": "AWQAH//hABpnZAAfrNlAUAW7ARAAAAMAEAAAAwPA8YMZYAEABmjr48siwA==", "width": 1280}
FIRST = 100  # videos that go in as ingest puts them
LOOKUPS = 5_000
WINDOW = 32  # frames of one lookup
TICKS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--chunks", type=int, default=500, help="of each video")
    parser.add_argument("--frames", type=int, default=100, help="of each chunk")
    parser.add_argument("--folder", help="where the catalog goes for the while")
    parser.add_argument("--keep", action="store_true", help="the catalog")
    parser.add_argument("--read", metavar="CATALOG", help="only measure a reader of this catalog, in this process")
    parser.add_argument("--torch", action="store_true", help="that reader imports torch")
    parser.add_argument("--evict", action="store_true", help="that reader begins with nothing of the file in memory")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read, torch=options.torch, evict=options.evict)))
        return
    folder = Path(tempfile.mkdtemp(prefix="catalog-", dir=options.folder))
    try:
        path = str(folder / "catalog.sqlite")
        for name, value in build(path, options.videos, options.chunks, options.frames).items():
            print(f"{name:34} {value}", flush=True)
        for name, arguments in (("cold", ["--evict"]), ("warm", []), ("warm, with torch", ["--torch"])):
            command = [sys.executable, "-m", "benchmarks.catalog", "--read", path, *arguments]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for what, value in json.loads(told).items():
                print(f"{name + ': ' + what:34} {value}", flush=True)
        print(f"{'problems(), seconds':34} {asyncio.run(check(path)):.0f}")
    finally:
        if not options.keep:
            shutil.rmtree(folder)


def index_of(frames: int, seed: int) -> bytes:
    """Return the encoded index of a made-up chunk: GOPs of 250, with B frames, sizes as an encoder has them."""
    import numpy as np

    from streamloader.media.chunks.format import ChunkIndex

    chance = np.random.default_rng(seed)
    number = np.arange(frames)
    gop = number // 250
    size = np.where(number % 250 == 0, 40_000, np.where(number % 3 == 0, 9_000, 1_500))
    size = np.maximum(size * chance.lognormal(0, 0.5, frames), 40).astype(np.int64)
    shown = number.copy()
    for at in range(1, frames - 2, 3):  # decoded as 3 1 2
        if gop[at] == gop[at + 2]:
            shown[at : at + 3] = at + 1, at + 2, at
    keys = np.flatnonzero(number % 250 == 0)
    offset = 48 + np.cumsum(size) - size + number // 24 * 700  # sound lies between
    pts = number * TICKS
    crc = chance.integers(0, 1 << 32, frames)
    return ChunkIndex(offset, size, number % 3 == 1, keys, keys, shown, pts, frames * TICKS, crc).encode()


def made(video: int, chunks: int, frames: int, blobs: list[bytes]):
    """Return a made-up video and its chunks."""
    from streamloader.archive.catalog.base import ChunkRow, StagedChunk, VideoRow

    content = hashlib.sha256(b"%d" % video).hexdigest()
    key = hashlib.sha256(json.dumps([CODING, video % 8]).encode()).hexdigest()[:32]
    rows = []
    for number in range(chunks):
        digest = hashlib.sha256(b"%d %d" % (video, number)).hexdigest()
        path = f"chunks/{content[:2]}/{content}/{number:06d}-{digest[:16]}.mp4"
        row = ChunkRow(
            content, number, number * frames, frames, number * frames * TICKS, (video + number) % 12, path,
            900_000 + number, f"sha256:{digest}", key,
        )  # fmt: skip
        rows.append(StagedChunk(row, blobs[(video + number) % len(blobs)], {**CODING, "bits": video % 8}))
    row = VideoRow(
        content, f"camera-{video % 40:02d}/2026-{video:06d}.mp4", chunks * frames, chunks, 720, 1280, (False,) * 3,
        Fraction(1, TICKS * 25), 0, chunks * frames * TICKS, "copy", frames, f"ssh://vault/{video}.mp4", 10**8, 10**8,
        {"camera": video % 40, "weather": {"rain": video % 7 / 7}, "tags": ["night"] if video % 3 else ["day", "dry"]},
    )  # fmt: skip
    return row, rows


def build(path: str, videos: int, chunks: int, frames: int) -> dict[str, str]:
    from streamloader.archive.catalog.base import Job, Place
    from streamloader.archive.catalog.registry import open_catalog

    blobs = [index_of(frames, seed) for seed in range(64)]
    found = {"videos": f"{videos:,}", "chunks": f"{videos * chunks:,}"}
    found["frame index, bytes"] = f"{sum(map(len, blobs)) / len(blobs):.0f}"

    async def ingest() -> float:
        catalog = open_catalog(path)
        await catalog.create([Place(number, f"ssh://vault-{number}/archive") for number in range(12)])
        began = time.perf_counter()
        for number in range(min(FIRST, videos)):
            video, staged = made(number, chunks, frames, blobs)
            await catalog.begin(Job(video.content, video.name, video.source, 0.0, 0.0))
            for at in range(0, chunks, 10):
                await catalog.stage(staged[at : at + 10])
            await catalog.commit(video)
        took = time.perf_counter() - began
        await catalog.aclose()
        return min(FIRST, videos) * chunks / took

    found["staged ten at a time, chunks/s"] = f"{asyncio.run(ingest()):,.0f}"
    began = time.perf_counter()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        codings = dict(db.execute("SELECT key, number FROM codings"))
        for at in range(FIRST, videos, 50):
            db.execute("BEGIN")
            for number in range(at, min(at + 50, videos)):
                insert(db, number, made(number, chunks, frames, blobs), codings)
            db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if videos > FIRST:
        found["by SQL, chunks/s"] = f"{(videos - FIRST) * chunks / (time.perf_counter() - began):,.0f}"
    found["file, GB"] = f"{os.path.getsize(path) / 1e9:.2f}"
    with closing(sqlite3.connect(path)) as db:
        try:
            for name, size in db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 6"):
                found[f"of it {name}, bytes/chunk"] = f"{size / (videos * chunks):.1f}"
        except sqlite3.OperationalError:  # SQLite was built without that table
            found["file, bytes/chunk"] = f"{os.path.getsize(path) / (videos * chunks):.1f}"
    return found


def insert(db: sqlite3.Connection, number: int, video, codings: dict[str, int]) -> None:
    """Put a video in as commit leaves it."""
    row, staged = video
    key = db.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'jobs' RETURNING seq").fetchone()[0]
    content = bytes.fromhex(row.content)
    start = number * row.frames
    values = (
        number, key, content, row.name, start, number * row.duration, number * row.chunks, row.frames, row.chunks,
        row.height, row.width, 0, 1, TICKS * 25, 0, row.end, row.mode, row.chunk_frames, row.source, row.bytes_in,
        row.bytes_out, json.dumps(row.metadata), 0.0, "{}",
    )  # fmt: skip
    db.execute(f"INSERT INTO videos VALUES ({','.join('?' * len(values))})", values)
    db.executemany(
        "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                key, one.row.first, one.row.number, one.row.frames, one.row.first_pts, one.row.place,
                one.row.path.removeprefix(f"chunks/{row.content[:2]}/{row.content}"), one.row.bytes,
                bytes.fromhex(one.row.digest[7:]), codings[one.row.coding], "",
            )
            for one in staged
        ),
    )  # fmt: skip
    db.executemany("INSERT INTO indexes VALUES (?, ?)", ((key << 24 | one.row.number, one.index) for one in staged))


def read(path: str, *, torch: bool, evict: bool) -> dict[str, str]:
    """Measure a reader, which is this process."""
    if torch:
        import torch

    began = time.perf_counter()
    from streamloader.archive.catalog.registry import open_catalog, shared_catalog
    from streamloader.stores.io_thread import close_shared_stores

    open_catalog(path)  # imports its kind
    imported = time.perf_counter() - began

    if evict:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    chance = random.Random(1)
    found = {"import, ms": f"{imported * 1e3:.0f}", "RSS before, MB": f"{_memory():.0f}"}

    async def measure() -> None:
        began = time.perf_counter()
        catalog = open_catalog(path)
        await catalog.header()
        snapshot = await catalog.snapshot()
        found["open, ms"] = f"{(time.perf_counter() - began) * 1e3:.1f}"
        try:
            starts = [chance.randrange(snapshot.frames - WINDOW) for _ in range(LOOKUPS)]
            located: list = []
            busy = time.process_time()
            found["locate 32 frames, ms"] = await _times(
                starts, lambda start: catalog.locate(start, start + WINDOW), located
            )
            found["of it CPU, ms a lookup"] = f"{(time.process_time() - busy) / LOOKUPS * 1e3:.3f}"
            found["index of a chunk, ms"] = await _times(
                located, lambda held: catalog.indexes(held[0].video.content, [held[0].chunks[0].number]), []
            )
            names = [(await catalog.video(chance.randrange(snapshot.videos))).name for _ in range(1_000)]
            found["video by name, ms"] = await _times(names, catalog.named, [])
            if not evict:
                began = time.perf_counter()
                told = await catalog.count({"weather.rain": {"$gt": 0.5}, "tags": "night"})
                found["count by metadata, ms"] = f"{(time.perf_counter() - began) * 1e3:.0f} ({told.videos} videos)"
        finally:
            await catalog.aclose()

    asyncio.run(measure())
    with shared_catalog(path) as catalog:
        frames = catalog.call(catalog.it.snapshot()).frames
        times = []
        for _ in range(LOOKUPS):
            start = chance.randrange(frames - WINDOW)
            began = time.perf_counter()
            catalog.call(catalog.it.locate(start, start + WINDOW))
            times.append(time.perf_counter() - began)
        found["locate from a thread, ms"] = _percentiles(times)
    close_shared_stores()
    found["RSS at most, MB"] = f"{_memory():.0f}"
    return found


async def _times(values, function, results: list) -> str:
    times = []
    for value in values:
        began = time.perf_counter()
        results.append(await function(value))
        times.append(time.perf_counter() - began)
    return _percentiles(times)


def _percentiles(times: list[float]) -> str:
    times = sorted(times)
    told = (f"p{part} {times[int(len(times) * part / 100)] * 1e3:.3f}" for part in (50, 95, 99))
    return ", ".join([*told, f"max {times[-1] * 1e3:.1f}"])


def _memory() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))


async def check(path: str) -> float:
    from streamloader.archive.catalog.registry import open_catalog

    catalog = open_catalog(path)
    began = time.perf_counter()
    try:
        problems = await catalog.problems()
    finally:
        await catalog.aclose()
    if problems:
        raise SystemExit("\n".join(problems[:20]))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
