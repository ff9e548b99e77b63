"""The unit of work: it turns the source of one video into chunks in their places. It runs in a worker of any executor.

A unit sends messages of plain JSON values to its driver, and makes one request. The messages have these kinds, in this
order:

====================  ==================================================================================================
``found`` (request)   ``digest``, ``size`` and ``version`` of the source. The answer has ``go``. If that is true, the
                      answer also has ``content`` and ``staged``: the chunks of an earlier attempt, each as ``number,
                      first_frame, frames, place, path, bytes``.
``planned``           ``facts`` of the video for its row, and the number of ``chunks``.
``kept``              ``numbers`` of the staged chunks whose files exist.
``chunk``             A chunk that was written to its place, see :func:`chunk_to_json`.
``tick``              The current step (``stage``) and its progress (``done``), about once a second.
``done``              All chunks are in their places, and the source is unchanged.
``left``              The unit stopped because the driver does not need its result.
``failed``            An ``error`` from :func:`streamloader.errors.to_wire`, and whether the staged chunks are
                      ``worthless``.
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
from streamloader.archive.catalog.chunk_paths import build_chunk_path
from streamloader.archive.ingest.placement import PlacementTarget, choose_target
from streamloader.archive.ingest.sources import LocalSource, open_source
from streamloader.errors import NotFound, ObjectChanged, StoreError, StreamloaderError, to_wire
from streamloader.media.chunks.build import Cut, CutPlan, build_chunk, plan_cuts
from streamloader.media.chunks.settings import CutSettings
from streamloader.stores.io_thread import SharedStore, open_shared_store
from streamloader.values import ObjectInfo

__all__ = ["Channel", "UnitCancelled", "WorkUnit", "chunk_from_json", "chunk_to_json", "run_unit"]

_TICK_INTERVAL_S: Final = 1.0
_MAX_BUFFERED_CHUNK_BYTES: Final = 64 << 20  # larger chunks are streamed from their file
_READ_BYTES: Final = 1 << 20


class UnitCancelled(Exception):
    """The result of the unit is no longer needed."""


class Channel(Protocol):
    """A unit's connection to its driver. Several threads may call its methods."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message."""

    def request(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a message, wait for the answer and return it."""

    def is_cancelled(self) -> bool:
        """Return whether the unit should stop soon, by raising UnitCancelled."""


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """One video to cut into chunks.

    Attributes:
        number: Number of the unit, unique for its driver.
        address: Address of the source. It may contain secrets.
        info: Information from the source's store. None for local files.
        options: Options of the source's store.
        settings: Settings of the cut.
        targets: Places that chunks can be written to.
        threads: Number of chunks that are made concurrently.
    """

    number: int
    address: str = field(repr=False)
    info: ObjectInfo | None
    options: Mapping[str, Any] = field(repr=False)
    settings: CutSettings
    targets: Sequence[PlacementTarget]
    threads: int


def run_unit(unit: WorkUnit, channel: Channel, folder: str) -> dict[str, Any]:
    """Run a unit, and return its last message, which the executor sends. Errors are part of the message.

    Args:
        unit: Unit to run.
        channel: Connection to the driver.
        folder: Empty folder for temporary files.
    """
    try:
        kind = "done" if _UnitRun(unit, channel, folder).run() else "left"
    except UnitCancelled:
        kind = "left"
    except Exception as error:  # noqa: BLE001 - the driver reports it, and continues with other videos
        if channel.is_cancelled():
            return {"kind": "left"}
        worthless = isinstance(error, ObjectChanged) or not isinstance(error, StoreError)
        return {"kind": "failed", "error": to_wire(error), "worthless": worthless}
    return {"kind": kind}


def chunk_to_json(chunk: StagedChunk) -> dict[str, Any]:
    """Return a chunk as plain JSON values."""
    return {"row": asdict(chunk.row), "index": base64.b64encode(chunk.index).decode(), "coding": dict(chunk.coding)}


def chunk_from_json(message: Mapping[str, Any]) -> StagedChunk:
    """Return the chunk in a message, the inverse of :func:`chunk_to_json`."""
    return StagedChunk(ChunkRow(**message["row"]), base64.b64decode(message["index"]), message["coding"])


class _UnitRun:
    """The execution of one unit."""

    def __init__(self, unit: WorkUnit, channel: Channel, folder: str) -> None:
        self._unit = unit
        self._channel = channel
        self._folder = folder
        self._step = "scanning"
        self._last_tick_at = 0.0
        self._tick_lock = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> bool:
        """Return whether the driver needed the result."""
        unit = self._unit
        with open_source(unit.address, unit.info, unit.options, self._folder, self._report_progress) as source:
            answer = self._channel.request(
                {"kind": "found", "digest": source.digest, "size": source.size, "version": source.version}
            )
            if not answer["go"]:
                return False
            with _name_source_in_errors(source):
                plan = plan_cuts(source.path, unit.settings, self._is_cancelled)
                self._step = "cutting"
                self._channel.send({"kind": "planned", "facts": _describe_video(plan), "chunks": len(plan.cuts)})
                with contextlib.ExitStack() as stack:
                    self._make_chunks(source, plan, answer, _TargetStores(stack, unit.targets))
            source.check_unchanged()
            return True

    def _make_chunks(
        self, source: LocalSource, plan: CutPlan, answer: Mapping[str, Any], stores: _TargetStores
    ) -> None:
        with ThreadPoolExecutor(self._unit.threads, "streamloader-cutting") as pool:
            try:
                lookups = {staged["number"]: pool.submit(stores.has_chunk, staged) for staged in answer["staged"]}
                kept = {number for number, lookup in lookups.items() if lookup.result()}
                if not all(_matches_plan(staged, plan) for staged in answer["staged"]):
                    kept = set()  # the staged chunks were cut differently
                self._channel.send({"kind": "kept", "numbers": sorted(kept)})
                futures = [
                    pool.submit(self._make_chunk, source, plan, cut, str(answer["content"]), stores)
                    for cut in plan.cuts
                    if cut.number not in kept
                ]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                _raise_first_error(done)
            finally:
                self._stop.set()

    def _make_chunk(self, source: LocalSource, plan: CutPlan, cut: Cut, content: str, stores: _TargetStores) -> None:
        unit = self._unit
        built = build_chunk(source.path, plan, unit.settings, cut.number, self._folder, self._is_cancelled)
        try:
            source.check_unchanged()
            target = choose_target(content, cut.number, unit.targets)
            row = ChunkRow(
                content,
                cut.number,
                cut.start,
                len(built.index),
                int(built.index.pts[0]),
                target.number,
                build_chunk_path(content, cut.number, built.digest, built.suffix),
                built.bytes,
                built.digest,
                built.coding.key,
                built.note,
            )
            if row.frames != cut.end - cut.start:
                raise StreamloaderError(
                    f"chunk {cut.number} has {row.frames} frames instead of {cut.end - cut.start}",
                    stream=source.address,
                )
            stores.write(target, row.path, built.file, built.bytes)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(built.file)
        staged = StagedChunk(row, built.index.encode(), built.coding.to_json())
        self._channel.send({"kind": "chunk", **chunk_to_json(staged)})

    def _is_cancelled(self) -> bool:
        if self._stop.is_set() or self._channel.is_cancelled():
            return True
        self._report_progress(self._step, 0)
        return False

    def _report_progress(self, step: str, done: int) -> None:
        """Send a tick, unless one was sent less than a second ago.

        Raises:
            UnitCancelled: If the unit was cancelled.
        """
        if self._channel.is_cancelled():
            raise UnitCancelled
        now = time.monotonic()
        with self._tick_lock:
            if now < self._last_tick_at + _TICK_INTERVAL_S:
                return
            self._last_tick_at = now
        self._channel.send({"kind": "tick", "stage": step, "done": done})


class _TargetStores:
    """The stores that a unit writes to, opened on first use."""

    def __init__(self, stack: contextlib.ExitStack, targets: Sequence[PlacementTarget]) -> None:
        self._stack = stack
        self._targets = {target.number: target for target in targets}
        self._opened: dict[int, tuple[SharedStore, str]] = {}
        self._lock = threading.Lock()

    def has_chunk(self, staged: Mapping[str, Any]) -> bool:
        """Return whether the file of a staged chunk exists with its size."""
        if staged["place"] not in self._targets:
            return False
        store, path = self._resolve_path(self._targets[staged["place"]], staged["path"])
        try:
            return bool(store.head(path).size == staged["bytes"])
        except NotFound:
            return False

    def write(self, target: PlacementTarget, path: str, file: str, size: int) -> None:
        """Copy a local file of `size` bytes to a place."""
        store, store_path = self._resolve_path(target, path)
        if size > _MAX_BUFFERED_CHUNK_BYTES:
            store.write(store_path, _FilePieces(file))
            return
        with open(file, "rb") as opened_file:
            store.write(store_path, opened_file.read())

    def _resolve_path(self, target: PlacementTarget, path: str) -> tuple[SharedStore, str]:
        with self._lock:
            if target.number not in self._opened:
                store, root = open_shared_store(target.url, target.options)
                self._opened[target.number] = self._stack.enter_context(store), root.rstrip("/")
            store, root = self._opened[target.number]
        return store, f"{root}/{path}" if root else path


class _FilePieces:
    """Iterates over the bytes of a file. It can be iterated again when a write is retried."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with open(self._path, "rb") as file:  # noqa: ASYNC230 - a local file that was written just before
            while piece := file.read(_READ_BYTES):
                yield piece


def _describe_video(plan: CutPlan) -> dict[str, Any]:
    """Return the properties of the whole video as plain JSON values."""
    return {
        "frames": plan.frames,
        "height": plan.height,
        "width": plan.width,
        "turn": list(plan.orientation),
        "time_base": [plan.time_base.numerator, plan.time_base.denominator],
        "first_pts": plan.first_pts,
        "end": plan.end,
        "source": _describe_source(plan),
    }


def _describe_source(plan: CutPlan) -> dict[str, Any]:
    """Return what may be unusual about the source of a video as plain JSON values, see :func:`build_origin`."""
    return {
        "pixel_aspect": [plan.pixel_aspect.numerator, plan.pixel_aspect.denominator],
        "stream": plan.scan.stream,
        "video_streams": plan.video_streams,
        "cropping": list(plan.cropping),
        "clock_jumps": len(plan.clock),
    }


def _matches_plan(staged: Mapping[str, Any], plan: CutPlan) -> bool:
    number = staged["number"]
    if not 0 <= number < len(plan.cuts):
        return False
    cut = plan.cuts[number]
    return bool(cut.start == staged["first_frame"] and cut.end - cut.start == staged["frames"])


def _raise_first_error(futures: Iterable[Future[None]]) -> None:
    """Raise the error that stopped the other futures."""
    for error in filter(None, [future.exception() for future in futures]):
        raise error


@contextlib.contextmanager
def _name_source_in_errors(source: LocalSource) -> Iterator[None]:
    """Replace the path of a temporary copy by the address of the source in errors."""
    try:
        yield
    except StreamloaderError as error:
        if not source.in_place:
            error.args = (error.message.replace(source.path, source.address), *error.args[1:])
            if error.address == source.path:
                error.address = source.address
        error.stream = source.address if error.stream in (None, source.path) else error.stream
        raise
