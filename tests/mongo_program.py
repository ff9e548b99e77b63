"""Adds videos to a catalog in MongoDB until it is killed. Tests use its rows as well.

`python mongo_program.py add URL NUMBER...` prints each acknowledged video on standard output, one line each.
`python mongo_program.py die URL KILLS SEED` kills its children while they add, and checks the catalog each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sys
import threading
import traceback
from fractions import Fraction

import pymongo.monitoring

from streamloader.archive.catalog.base import ChunkRow, IngestJob, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.chunk_paths import build_chunk_path
from streamloader.archive.catalog.mongo.catalog import MongoCatalog
from streamloader.errors import CatalogError

PLACES = (Place(0, "memory://a"), Place(1, "memory://b", 2.0))
CODING = {"codec": "h264", "extradata": ""}


def content_of(number: int) -> str:
    return hashlib.sha256(f"video {number}".encode()).hexdigest()


def job_of(number: int, **values) -> IngestJob:
    return IngestJob(**{
        "content": content_of(number), "name": f"video-{number}", "source": f"/videos/{number}.mp4",
        "started": 1000.0, "heartbeat": 1000.0, **values,
    })  # fmt: skip


def chunks_of(number: int, lengths=(10, 7, 12), place: int = 0, tag: str = "a") -> list[StagedChunk]:
    first, chunks = 0, []
    for chunk, frames in enumerate(lengths):
        digest = "sha256:" + hashlib.sha256(f"{number} {chunk} {tag}".encode()).hexdigest()
        row = ChunkRow(
            content=content_of(number),
            number=chunk,
            first_frame=first,
            frames=frames,
            first_pts=first * 512 + 100,
            place=place,
            path=build_chunk_path(content_of(number), chunk, digest, "mp4"),
            bytes=1000 + chunk,
            digest=digest,
            coding="c" * 32,
            note="",
        )
        index = random.Random(f"{number} {chunk} {tag}").randbytes(700)
        chunks.append(StagedChunk(row, index, CODING))
        first += frames
    return chunks


def video_of(number: int, lengths=(10, 7, 12), **values) -> VideoRow:
    frames = sum(lengths)
    return VideoRow(**{
        "content": content_of(number), "name": f"video-{number}", "frames": frames, "chunks": len(lengths),
        "height": 240, "width": 320, "orientation": (False, True, False), "time_base": Fraction(1, 15360),
        "first_pts": 100, "end": 100 + 512 * frames, "mode": "copy", "chunk_frames": 10,
        "source": f"/videos/{number}.mp4", "bytes_in": 5000, "bytes_out": 4000,
        "metadata": {"camera": "north", "n": number}, "origin": {"a.b": [1, None]}, "added": 1234.5, **values,
    })  # fmt: skip


def report(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def add(catalog: MongoCatalog, number: int, lengths=(10, 7, 12), **values) -> VideoRow:
    """Add a video as ingest does: what was staged already stays."""
    present = await catalog.begin_job(job_of(number))
    if present is not None:
        return present
    there = {row.number for row in await catalog.get_staged_chunks(content_of(number))}
    for chunk in chunks_of(number, lengths):
        if chunk.row.number not in there:
            try:
                await catalog.stage_chunks([chunk])
            except CatalogError:  # another process was faster, and has committed the same
                if (present := await catalog.get_video_by_content(content_of(number))) is not None:
                    return present
                raise
    return await catalog.commit_video(video_of(number, lengths, **values))


async def add_many(url: str, numbers: list[int]) -> None:
    catalog = MongoCatalog(url)
    try:
        for number in numbers:
            video = await add(catalog, number)
            report(number, video.number, video.start)
    finally:
        await catalog.aclose()


WRITES = 11  # commands by which a video of three chunks is added, one chunk at a time


class Killer(pymongo.monitoring.CommandListener):
    """Kills this process just before it sends its n-th writing command: all before were done, this one was not."""

    left = 0

    def started(self, event) -> None:
        if event.command_name in {"insert", "update", "delete"} and self.left:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)

    def succeeded(self, event) -> None: ...

    def failed(self, event) -> None: ...


def in_child(work) -> int:
    """Do something in a fork of this process, which has neither threads nor connections; return how that ended."""
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(work)
        except BaseException:  # noqa: BLE001 - it must not go on as if it were its parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    work.close()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def add_and_die(url: str, number: int, at: int, after: float) -> None:
    """Finish the video before this one, then start this one, and get killed at a write, or after some seconds."""
    killer = Killer()
    catalog = MongoCatalog(url, driver=("motor", "pymongo")[number % 2], event_listeners=[killer])
    if number:
        await add(catalog, number - 1)
    report("started", number)
    if after:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        killer.left = at
    await add(catalog, number)
    await asyncio.sleep(60)  # the timer is on its way


async def check(url: str, known: list[int], started: int) -> None:
    """Check that acknowledged videos are complete, and that the started one is complete or missing."""
    catalog = MongoCatalog(url, driver="pymongo")
    assert (problems := await catalog.find_problems()) == [], problems
    snapshot = await catalog.get_snapshot()
    videos = [video.name async for video in catalog.find_videos()]
    names = [f"video-{number}" for number in known]
    assert videos[: len(names)] == names, (videos, names)
    assert videos[len(names) :] in ([], [f"video-{started}"]), (videos, started)
    if snapshot.frames:
        located = await catalog.locate_frames(0, snapshot.frames)
        assert [len(one.chunks) for one in located] == [3] * len(videos)
    for row in await catalog.get_staged_chunks(content_of(started)):
        assert row == chunks_of(started)[row.number].row
    await catalog.aclose()


def add_and_be_killed(url: str, kills: int, seed: int) -> None:
    """Add videos by processes that are killed at one of their writes after the other, or, with a seed, at any moment.

    Four kills cover the start, the middle of staging, its end, and the commit; eleven cover all writes.
    """
    moments = random.Random(seed)
    for archive, first in enumerate(range(0, kills, 2 * WRITES)):  # the fuller one is, the longer a check takes
        kept = f"{url}&archive=a{archive}"
        videos = min(kills - first, 2 * WRITES)
        assert in_child(create(kept)) == 0
        for number in range(videos):
            after = moments.uniform(0.0, 0.06) if seed else 0.0
            ended = in_child(add_and_die(kept, number, 3 * number % WRITES + 1, after))
            assert ended == -signal.SIGKILL, ended
            assert in_child(check(kept, list(range(number)), number)) == 0
        assert in_child(add_many(kept, [videos - 1])) == 0
        assert in_child(check(kept, list(range(videos)), videos)) == 0
    report("killed", kills)


async def create(url: str) -> None:
    catalog = MongoCatalog(url, driver="pymongo")
    await catalog.create(PLACES)
    await catalog.aclose()


if __name__ == "__main__":
    if sys.argv[1] == "add":
        asyncio.run(add_many(sys.argv[2], [int(number) for number in sys.argv[3:]]))
    else:
        add_and_be_killed(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
