"""Datasets of these tests: streams of several kinds, and a wrapper in which a worker can die.

Imports no torch: workers import this module.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np

import streamloader as sl
from streamloader.streams.base import Stream, StreamDataset
from streamloader.streams.lane_thread import in_lane_thread

KINDS = ("text", "steps", "video")

# --- kinds of streams ------------------------------------------------------------------------------------------------


def make_steps(item: tuple[str, int], rng: np.random.Generator) -> Any:
    """Return the steps of an item in the form that its first word says; all hold numbers drawn from `rng`."""
    form, count = item
    if form == "arrays":
        return {"place": rng.integers(-9, 9, (count, 3)).astype(np.int32), "noise": rng.random((count, 2), np.float32)}
    if form == "list":
        return list(_drawn(count, rng))
    return _awaited(count, rng) if form == "async generator" else _drawn(count, rng)


def _drawn(count, rng):
    place = np.zeros(3, np.int32)
    for _ in range(count):
        place += rng.integers(-2, 3, 3, np.int32)
        yield {"place": place, "noise": rng.random(2, np.float32)}


async def _awaited(count, rng):
    for step in _drawn(count, rng):
        await anyio.lowlevel.checkpoint()
        yield step


FORMS = ("arrays", "list", "generator", "async generator")
STEP_FIELDS = {"place": sl.Field((3,), "int32", fill=-7), "noise": sl.Field((2,), "float32", fill=0.5)}
VIDEOS = (("b_frames.mp4", "libx264", 24), ("mpeg4.avi", "mpeg4", 31), ("vp8.webm", "libvpx", 17))


def make_videos(folder: Path) -> None:
    """Create small clips, unless they exist."""
    from made_clips import make_clip

    for name, codec, frames in VIDEOS:
        if not (folder / name).exists():
            whole = make_clip(folder / f"making-{name}", codec, frames=frames, gop=8)
            whole.rename(folder / name)


def make_dataset(kind: str, rng: np.random.Generator, folder: Path) -> StreamDataset:
    """Return a dataset of one of the :data:`KINDS` whose content `rng` decides.

    Args:
        folder: Folder for files. Equal `rng` gives equal names and content.
    """
    if kind == "video":
        make_videos(folder)
        paths = [str(folder / VIDEOS[number][0]) for number in rng.integers(len(VIDEOS), size=16)]
        cut = {"random_start": True, "max_frames": 13} if rng.integers(2) else {}
        return sl.VideoStreams(paths, size=(12, 16), **cut)
    lengths = [0 if not rng.integers(8) else int(rng.integers(1, 80)) for _ in range(int(rng.integers(12, 24)))]
    if kind == "text":
        paths = []
        for length in lengths:
            text = rng.bytes(length)
            path = folder / f"{text.hex() or 'empty'}.txt"
            path.write_bytes(text)
            paths.append(str(path))
        return sl.TextStreams(paths)
    items = [(str(rng.choice(FORMS)), length) for length in lengths]
    known = bool(rng.integers(2))
    return sl.IterStreams(items, make_steps, fields=STEP_FIELDS, lengths=(lambda item: item[1]) if known else None)


# --- ways to die -----------------------------------------------------------------------------------------------------

CAUSES: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": os.abort,
    "exit 0": lambda: os._exit(0),
    "exit 3": lambda: os._exit(3),
}


def fail() -> None:
    """Fail as any stream may."""
    raise ValueError("fails")


def spin() -> None:
    """Never return, and keep the CPU busy."""
    while True:
        pass


def stop() -> None:
    """Stop the whole process, as on a machine that thrashes."""
    os.kill(os.getpid(), signal.SIGSTOP)


# Not deaths by themselves.
ILLS = {"fails": fail, "spins": spin, "blocks": lambda: threading.Event().wait(), "stops": stop}

# Where a stream can end its worker.
OPENING, DECODING, HALFWAY, WRITTEN, MARKING, UNPUBLISHED, CLOSING, SEEKING = MOMENTS = (
    "opening",  # before the stream is there
    "decoding",  # in the lane's thread, with nothing written
    "half way through a row",  # some steps of the row are written, the others not
    "row written, not marked",  # all data of the row is written, not what its steps are
    "row half marked",
    "row whole, not published",  # all of the row is written, and its cursor; the supervisor was not informed
    "closing",
    "seeking",  # a worker that goes on for one that died
)


@dataclass(frozen=True)
class Fuse:
    """One death or other fault, at `step` of the stream `key` in `epoch`.

    Attributes:
        file: File that is created just before the death, with its time (monotonic seconds) and process. While it
            exists, the death does not happen again. If empty, it happens every time.
        log: a line with the process id is added to it each time, unless it is empty.
    """

    epoch: int
    key: str
    step: int
    moment: str
    cause: str
    file: str = ""
    log: str = ""

    def burn(self) -> None:
        """Die, unless that happened before."""
        if self.file:
            try:
                fd = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return
            os.write(fd, f"{time.monotonic()!r} {os.getpid()}".encode())
        if self.log:
            with Path(self.log).open("a") as log:
                log.write(f"{os.getpid()}\n")
        if self.cause == "blocks twice":
            if len(Path(self.log).read_text().split()) <= 2:
                ILLS["blocks"]()
            return
        (CAUSES | ILLS)[self.cause]()
        time.sleep(60)  # a signal to oneself may need a moment to arrive

    @property
    def burnt(self) -> tuple[float, int] | None:
        """Time and process id of the death, or None."""
        try:
            at, pid = Path(self.file).read_text().split() if self.file else ("", "")
        except (FileNotFoundError, ValueError):  # or it is being written
            return None
        return (float(at), int(pid)) if at else None


class Deadly(StreamDataset):
    """The unchanged streams of another dataset. Some of them end their worker.

    Args:
        fuses: Deaths, at most one for each stream and epoch.
        chunk: Maximum number of steps that one read returns.
        pause: Delay in seconds of each opening and reading, so that a kill from outside meets them.
    """

    def __init__(self, inner: StreamDataset, fuses: list[Fuse], *, chunk: int = 1 << 30, pause: float = 0.0) -> None:
        self.inner, self.chunk, self.pause = inner, chunk, pause
        self.fuses = {(fuse.epoch, fuse.key): fuse for fuse in fuses}

    @property
    def fields(self):
        return self.inner.fields

    @property
    def settings(self):
        return self.inner.settings

    async def index(self):
        return await self.inner.index()

    async def open(self, info, rng):
        epoch = int(rng.bit_generator.state["state"]["key"][1]) >> 40  # see stream_rng
        fuse = self.fuses.get((epoch, info.key))
        if fuse is not None and fuse.moment == OPENING:
            fuse.burn()
        if self.pause:
            await anyio.sleep(self.pause)
        return DeadlyStream(await self.inner.open(info, rng), fuse, self.chunk, self.pause)


class DeadlyStream(Stream):
    def __init__(self, inner: Stream, fuse: Fuse | None, chunk: int, pause: float) -> None:
        self.inner, self.fuse, self.chunk, self.pause = inner, fuse, chunk, pause
        self.moment = "" if fuse is None else fuse.moment
        self.step = 0
        self.lit = False  # the step of the fuse was read just now

    @property
    def replays(self):
        return self.inner.replays

    async def read_into(self, out: Mapping[str, np.ndarray]) -> int:
        room = min(len(next(iter(out.values()))), self.chunk)
        out = {name: array[:room] for name, array in out.items()}
        if self.pause:
            await in_lane_thread(time.sleep, self.pause)
        fuse = self.fuse
        near = fuse is not None and self.step <= fuse.step < self.step + room
        if near and self.moment == DECODING:
            await in_lane_thread(fuse.burn)
        if near and self.moment == HALFWAY and fuse.burnt is None:
            before = fuse.step - self.step
            if before:
                await self.inner.read_into({name: array[:before] for name, array in out.items()})
            fuse.burn()
        count = await self.inner.read_into(out)
        if near and fuse.step < self.step + count:
            if self.moment == WRITTEN:
                fuse.burn()
            elif self.moment == UNPUBLISHED:  # after the lane's current turn, before its report is sent
                asyncio.get_running_loop().call_soon(fuse.burn)
            self.lit = True
        self.step += count
        return count

    async def seek(self, step: int) -> None:
        if self.fuse is not None and self.moment == SEEKING:
            self.fuse.burn()
        await self.inner.seek(step)
        self.step = step

    def times(self, start: int, out: np.ndarray) -> None:
        self.inner.times(start, out)
        if self.lit and self.moment == MARKING:
            self.fuse.burn()

    async def aclose(self) -> None:
        if self.moment == CLOSING:
            self.fuse.burn()
        await self.inner.aclose()
