"""The unit of work: one video, from its source to chunks in their places. What runs in a worker, of whatever kind.

A unit tells its driver what happens, in plain JSON values, and asks it one question. In this order:

====================  ==================================================================================================
``found`` (asked)     ``digest``, ``size`` and ``version`` of the source. The answer: ``go``, and if so ``content`` and
                      ``staged``: the chunks that an earlier attempt has left, each as ``number, first, frames, place,
                      path, bytes``.
``planned``           ``facts`` of the video for its row, and the number of ``chunks``.
``kept``              ``numbers`` of staged chunks whose files are there.
``chunk``             a chunk that was written to its place: see :func:`to_json`.
``tick``              what is going on (``stage``), and how far that is (``done``), about once a second.
``done``              all chunks are in their places, and the source is still the same.
``left``              nobody wanted the rest of it.
``failed``            an ``error`` as :func:`streamloader.errors.to_wire` has it; ``worthless`` if what was staged is.
====================  ==================================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from streamloader.archive.catalog.base import ChunkRow, StagedChunk
from streamloader.archive.ingest.naming import chunk_path
from streamloader.archive.ingest.placement import Target, choose
from streamloader.archive.ingest.sources import Source, opened
from streamloader.errors import NotFound, ObjectChanged, StoreError, StreamloaderError, to_wire
from streamloader.media.chunks.build import Cut, CutPlan, make_chunk, plan_cuts
from streamloader.media.chunks.settings import CutSettings
from streamloader.stores.io_thread import SharedStore, shared_store
from streamloader.values import ObjectInfo

__all__ = ["Cancelled", "Port", "Unit", "from_json", "perform", "to_json"]

_TICK: Final = 1.0  # seconds between two ticks
_IN_MEMORY: Final = 64 << 20  # bytes of a chunk that is written in one go
_PIECE: Final = 1 << 20


class Cancelled(Exception):
    """Nobody wants the rest of a unit any more."""


class Port(Protocol):
    """A unit's way to its driver. Methods may be called by several threads."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message."""

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a message and wait for the answer."""

    def cancelled(self) -> bool:
        """Whether the unit should end soon, with Cancelled."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One video to be made into chunks.

    Attributes:
        number: of the unit among those of its driver.
        address: of the source; it may hold secrets.
        info: what its store said of it; None for local files.
        options: of its store.
        settings: how it is cut.
        targets: where chunks can go.
        threads: that make chunks side by side.
    """

    number: int
    address: str = field(repr=False)
    info: ObjectInfo | None
    options: Mapping[str, Any] = field(repr=False)
    settings: CutSettings
    targets: Sequence[Target]
    threads: int


def perform(unit: Unit, port: Port, folder: str) -> dict[str, Any]:
    """Do a unit's work, and return its last message, for the engine to send. Errors are told, not raised.

    Args:
        unit: the work.
        port: the way to its driver.
        folder: an empty one for temporary files.
    """
    try:
        kind = "done" if _Work(unit, port, folder).run() else "left"
    except Cancelled:
        kind = "left"
    except Exception as error:  # noqa: BLE001 - the driver reports it, and goes on with other videos
        if port.cancelled():
            return {"kind": "left"}
        worthless = isinstance(error, ObjectChanged) or not isinstance(error, StoreError)
        return {"kind": "failed", "error": to_wire(error), "worthless": worthless}
    return {"kind": kind}


def to_json(chunk: StagedChunk) -> dict[str, Any]:
    """Return a chunk as plain JSON values."""
    return {"row": asdict(chunk.row), "index": base64.b64encode(chunk.index).decode(), "coding": dict(chunk.coding)}


def from_json(told: Mapping[str, Any]) -> StagedChunk:
    """Rebuild it."""
    return StagedChunk(ChunkRow(**told["row"]), base64.b64decode(told["index"]), told["coding"])


class _Work:
    """One unit while it is done."""

    def __init__(self, unit: Unit, port: Port, folder: str) -> None:
        self._unit = unit
        self._port = port
        self._folder = folder
        self._doing = "looking"
        self._told = 0.0
        self._ticking = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> bool:
        """Return whether the work was wanted."""
        unit = self._unit
        with opened(unit.address, unit.info, unit.options, self._folder, self._tick) as source:
            found = {"kind": "found", "digest": source.digest, "size": source.size, "version": source.version}
            answer = self._port.ask(found)
            if not answer["go"]:
                return False
            with _named(source):
                plan = plan_cuts(source.path, unit.settings, self._cancelled)
                self._doing = "cutting"
                self._port.tell({"kind": "planned", "facts": facts(plan), "chunks": len(plan.cuts)})
                with contextlib.ExitStack() as stack:
                    stores = _Stores(stack, unit.targets)
                    self._make_all(source, plan, answer, stores)
            source.check()
            return True

    def _make_all(self, source: Source, plan: CutPlan, answer: Mapping[str, Any], stores: _Stores) -> None:
        with ThreadPoolExecutor(self._unit.threads, "streamloader-cutting") as pool:
            try:
                looks = {staged["number"]: pool.submit(stores.has, staged) for staged in answer["staged"]}
                kept = {number for number, there in looks.items() if there.result()}
                if not all(_still_planned(staged, plan) for staged in answer["staged"]):
                    kept = set()  # what is staged was cut in another way
                self._port.tell({"kind": "kept", "numbers": sorted(kept)})
                making = [
                    pool.submit(self._make, source, plan, cut, str(answer["content"]), stores)
                    for cut in plan.cuts
                    if cut.number not in kept
                ]
                done, _ = wait(making, return_when=FIRST_EXCEPTION)
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                _raise_first(done)
            finally:
                self._stop.set()

    def _make(self, source: Source, plan: CutPlan, cut: Cut, content: str, stores: _Stores) -> None:
        unit = self._unit
        made = make_chunk(source.path, plan, unit.settings, cut.number, self._folder, self._cancelled)
        try:
            source.check()
            target = choose(content, cut.number, unit.targets)
            row = ChunkRow(
                content,
                cut.number,
                cut.first,
                len(made.index),
                int(made.index.pts[0]),
                target.number,
                chunk_path(content, cut.number, made.digest, made.suffix),
                made.bytes,
                made.digest,
                made.coding.key,
                made.note,
            )
            if row.frames != cut.stop - cut.first:
                raise StreamloaderError(
                    f"chunk {cut.number} came out with {row.frames} frames instead of {cut.stop - cut.first}",
                    stream=source.address,
                )
            stores.write(target, row.path, made.file, made.bytes)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made.file)
        staged = StagedChunk(row, made.index.encode(), made.coding.to_json())
        self._port.tell({"kind": "chunk", **to_json(staged)})

    def _cancelled(self) -> bool:
        if self._stop.is_set() or self._port.cancelled():
            return True
        self._tick(self._doing, 0)
        return False

    def _tick(self, stage: str, done: int) -> None:
        if self._port.cancelled():
            raise Cancelled
        now = time.monotonic()
        with self._ticking:
            if now < self._told + _TICK:
                return
            self._told = now
        self._port.tell({"kind": "tick", "stage": stage, "done": done})


class _Stores:
    """The places that a unit writes to, opened when they are first used."""

    def __init__(self, stack: contextlib.ExitStack, targets: Sequence[Target]) -> None:
        self._stack = stack
        self._targets = {target.number: target for target in targets}
        self._opened: dict[int, tuple[SharedStore, str]] = {}
        self._lock = threading.Lock()

    def has(self, staged: Mapping[str, Any]) -> bool:
        """Whether the file of a staged chunk is there, with its size."""
        if staged["place"] not in self._targets:
            return False
        store, path = self._place(self._targets[staged["place"]], staged["path"])
        try:
            return bool(store.head(path).size == staged["bytes"])
        except NotFound:
            return False

    def write(self, target: Target, path: str, file: str, size: int) -> None:
        """Copy a local file into a place."""
        store, there = self._place(target, path)
        if size > _IN_MEMORY:
            store.write(there, _Pieces(file))
            return
        with open(file, "rb") as opened_file:
            store.write(there, opened_file.read())

    def _place(self, target: Target, path: str) -> tuple[SharedStore, str]:
        with self._lock:
            if target.number not in self._opened:
                store, root = shared_store(target.url, target.options)
                self._opened[target.number] = self._stack.enter_context(store), root.rstrip("/")
            store, root = self._opened[target.number]
        return store, f"{root}/{path}" if root else path


class _Pieces:
    """The bytes of a file, as often as they are asked for: a write that failed in passing is made again."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with open(self._path, "rb") as file:  # noqa: ASYNC230 - it was written a moment ago
            while piece := file.read(_PIECE):
                yield piece


def facts(plan: CutPlan) -> dict[str, Any]:
    """Return what a plan says of the video as a whole, as plain JSON values."""
    return {
        "frames": plan.frames,
        "height": plan.height,
        "width": plan.width,
        "turn": list(plan.turn),
        "time_base": [plan.time_base.numerator, plan.time_base.denominator],
        "first_pts": plan.first_pts,
        "end": plan.end,
    }


def _still_planned(staged: Mapping[str, Any], plan: CutPlan) -> bool:
    number = staged["number"]
    if not 0 <= number < len(plan.cuts):
        return False
    cut = plan.cuts[number]
    return bool(cut.first == staged["first"] and cut.stop - cut.first == staged["frames"])


def _raise_first(done: Iterable[Future[None]]) -> None:
    """Raise the error that the others were stopped for."""
    for error in filter(None, [future.exception() for future in done]):
        raise error


@contextlib.contextmanager
def _named(source: Source) -> Iterator[None]:
    """Name the address of the source, not the temporary copy of it, in errors."""
    try:
        yield
    except StreamloaderError as error:
        if not source.in_place:
            error.args = (error.message.replace(source.path, source.address), *error.args[1:])
            if error.address == source.path:
                error.address = source.address
        error.stream = source.address if error.stream in (None, source.path) else error.stream
        raise
