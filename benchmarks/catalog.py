"""A catalog of millions of chunks: its size, the speed of opening and lookups, and the memory of a reader.

``python -m benchmarks.catalog [--videos 20000] [--chunks 500] [--frames 100] [--folder DIR] [--keep]`` creates an
SQLite catalog with this number of videos, of chunks per video and of frames per chunk, and measures it with fresh
processes. Rows are synthetic; frame indexes are valid indexes of synthetic packets. They are inserted with SQL, many
videos per transaction. The speed of the catalog's own methods is measured before, on the first videos. docs/scale.md
has the figures.
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
METHOD_VIDEOS = 100  # videos that are added with the catalog's own methods
LOOKUPS = 5_000
WINDOW = 32  # frames per lookup
TICKS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--chunks", type=int, default=500, help="chunks per video")
    parser.add_argument("--frames", type=int, default=100, help="frames per chunk")
    parser.add_argument("--folder", help="folder for the temporary catalog")
    parser.add_argument("--keep", action="store_true", help="keep the catalog")
    parser.add_argument("--read", metavar="CATALOG", help="only measure a reader of this catalog, in this process")
    parser.add_argument("--torch", action="store_true", help="import torch in that reader")
    parser.add_argument("--evict", action="store_true", help="drop the file from the page cache before")
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
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for what, value in json.loads(output).items():
                print(f"{name + ': ' + what:34} {value}", flush=True)
        print(f"{'problems(), seconds':34} {asyncio.run(check(path)):.0f}")
    finally:
        if not options.keep:
            shutil.rmtree(folder)


def make_index(frames: int, seed: int) -> bytes:
    """Return the encoded index of a synthetic chunk: GOPs of 250, B frames, and realistic packet sizes."""
    import numpy as np

    from streamloader.media.chunks.format import ChunkIndex

    generator = np.random.default_rng(seed)
    number = np.arange(frames)
    gop = number // 250
    size = np.where(number % 250 == 0, 40_000, np.where(number % 3 == 0, 9_000, 1_500))
    size = np.maximum(size * generator.lognormal(0, 0.5, frames), 40).astype(np.int64)
    shown = number.copy()
    for first in range(1, frames - 2, 3):  # decoded as 3 1 2
        if gop[first] == gop[first + 2]:
            shown[first : first + 3] = first + 1, first + 2, first
    keys = np.flatnonzero(number % 250 == 0)
    offset = 48 + np.cumsum(size) - size + number // 24 * 700  # with audio packets in between
    pts = number * TICKS
    crc = generator.integers(0, 1 << 32, frames)
    return ChunkIndex(offset, size, number % 3 == 1, keys, keys, shown, pts, frames * TICKS, crc).encode()


def make_video(video: int, chunks: int, frames: int, blobs: list[bytes]):
    """Return a synthetic video and its chunks."""
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
    from streamloader.archive.catalog.base import IngestJob, Place
    from streamloader.archive.catalog.registry import open_catalog

    blobs = [make_index(frames, seed) for seed in range(64)]
    results = {"videos": f"{videos:,}", "chunks": f"{videos * chunks:,}"}
    results["frame index, bytes"] = f"{sum(map(len, blobs)) / len(blobs):.0f}"

    async def ingest() -> float:
        catalog = open_catalog(path)
        await catalog.create([Place(number, f"ssh://vault-{number}/archive") for number in range(12)])
        start = time.perf_counter()
        for number in range(min(METHOD_VIDEOS, videos)):
            video, staged = make_video(number, chunks, frames, blobs)
            await catalog.begin_job(IngestJob(video.content, video.name, video.source, 0.0, 0.0))
            for first in range(0, chunks, 10):
                await catalog.stage_chunks(staged[first : first + 10])
            await catalog.commit_video(video)
        seconds = time.perf_counter() - start
        await catalog.aclose()
        return min(METHOD_VIDEOS, videos) * chunks / seconds

    results["staged ten at a time, chunks/s"] = f"{asyncio.run(ingest()):,.0f}"
    start = time.perf_counter()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        codings = dict(db.execute("SELECT key, number FROM codings"))
        for first in range(METHOD_VIDEOS, videos, 50):
            db.execute("BEGIN")
            for number in range(first, min(first + 50, videos)):
                insert(db, number, make_video(number, chunks, frames, blobs), codings)
            db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if videos > METHOD_VIDEOS:
        results["by SQL, chunks/s"] = f"{(videos - METHOD_VIDEOS) * chunks / (time.perf_counter() - start):,.0f}"
    results["file, GB"] = f"{os.path.getsize(path) / 1e9:.2f}"
    with closing(sqlite3.connect(path)) as db:
        try:
            for name, size in db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 6"):
                results[f"{name}, bytes/chunk"] = f"{size / (videos * chunks):.1f}"
        except sqlite3.OperationalError:  # SQLite was built without this table
            results["file, bytes/chunk"] = f"{os.path.getsize(path) / (videos * chunks):.1f}"
    return results


def insert(db: sqlite3.Connection, number: int, video, codings: dict[str, int]) -> None:
    """Insert the rows of a committed video."""
    row, staged = video
    key = db.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'jobs' RETURNING seq").fetchone()[0]
    content = bytes.fromhex(row.content)
    start = number * row.frames
    values = (
        number, key, content, row.name, start, number * row.duration_ns, number * row.chunks, row.frames, row.chunks,
        row.height, row.width, 0, 1, TICKS * 25, 0, row.end, row.mode, row.chunk_frames, row.source, row.bytes_in,
        row.bytes_out, json.dumps(row.metadata), 0.0, "{}",
    )  # fmt: skip
    db.execute(f"INSERT INTO videos VALUES ({','.join('?' * len(values))})", values)
    db.executemany(
        "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                key, one.row.first_frame, one.row.number, one.row.frames, one.row.first_pts, one.row.place,
                one.row.path.removeprefix(f"chunks/{row.content[:2]}/{row.content}"), one.row.bytes,
                bytes.fromhex(one.row.digest[7:]), codings[one.row.coding], "",
            )
            for one in staged
        ),
    )  # fmt: skip
    db.executemany("INSERT INTO indexes VALUES (?, ?)", ((key << 24 | one.row.number, one.index) for one in staged))


def read(path: str, *, torch: bool, evict: bool) -> dict[str, str]:
    """Measure a reader in this process."""
    if torch:
        import torch

    start = time.perf_counter()
    from streamloader.archive.catalog.registry import get_shared_catalog, open_catalog
    from streamloader.stores.io_thread import close_shared_stores

    open_catalog(path)  # imports the SQLite catalog
    imported = time.perf_counter() - start

    if evict:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    generator = random.Random(1)
    results = {"import, ms": f"{imported * 1e3:.0f}", "RSS before, MB": f"{_memory():.0f}"}

    async def measure() -> None:
        start = time.perf_counter()
        catalog = open_catalog(path)
        await catalog.get_header()
        snapshot = await catalog.get_snapshot()
        results["open, ms"] = f"{(time.perf_counter() - start) * 1e3:.1f}"
        try:
            starts = [generator.randrange(snapshot.frames - WINDOW) for _ in range(LOOKUPS)]
            located: list = []
            busy = time.process_time()
            results["locate 32 frames, ms"] = await _times(
                starts, lambda start: catalog.locate_frames(start, start + WINDOW), located
            )
            results["CPU, ms per lookup"] = f"{(time.process_time() - busy) / LOOKUPS * 1e3:.3f}"
            results["index of a chunk, ms"] = await _times(
                located, lambda held: catalog.get_indexes(held[0].video.content, [held[0].chunks[0].number]), []
            )
            names = [(await catalog.get_video(generator.randrange(snapshot.videos))).name for _ in range(1_000)]
            results["video by name, ms"] = await _times(names, catalog.get_video_by_name, [])
            if not evict:
                start = time.perf_counter()
                matching = await catalog.count_videos({"weather.rain": {"$gt": 0.5}, "tags": "night"})
                results["count by metadata, ms"] = (
                    f"{(time.perf_counter() - start) * 1e3:.0f} ({matching.videos} videos)"
                )
        finally:
            await catalog.aclose()

    asyncio.run(measure())
    with get_shared_catalog(path) as catalog:
        frames = catalog.call(catalog.resource.get_snapshot()).frames
        times = []
        for _ in range(LOOKUPS):
            start = generator.randrange(frames - WINDOW)
            start = time.perf_counter()
            catalog.call(catalog.resource.locate_frames(start, start + WINDOW))
            times.append(time.perf_counter() - start)
        results["locate from a thread, ms"] = _percentiles(times)
    close_shared_stores()
    results["maximum RSS, MB"] = f"{_memory():.0f}"
    return results


async def _times(values, function, results: list) -> str:
    times = []
    for value in values:
        start = time.perf_counter()
        results.append(await function(value))
        times.append(time.perf_counter() - start)
    return _percentiles(times)


def _percentiles(times: list[float]) -> str:
    times = sorted(times)
    parts = (f"p{part} {times[int(len(times) * part / 100)] * 1e3:.3f}" for part in (50, 95, 99))
    return ", ".join([*parts, f"max {times[-1] * 1e3:.1f}"])


def _memory() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))


async def check(path: str) -> float:
    """Search the catalog for problems, and return the duration in seconds."""
    from streamloader.archive.catalog.registry import open_catalog

    catalog = open_catalog(path)
    start = time.perf_counter()
    try:
        problems = await catalog.find_problems()
    finally:
        await catalog.aclose()
    if problems:
        raise SystemExit("\n".join(problems[:20]))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
