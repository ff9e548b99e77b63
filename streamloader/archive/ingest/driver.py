"""The driver of an ingest: it runs the work units on an executor, and is the only writer of the catalog.

Videos are processed concurrently, but committed in the requested order, so frame numbers do not depend on which video
is finished first. Each chunk is staged in the catalog as soon as it is in its place. If the ingest is killed, the next
run resumes from there.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog, IngestJob, StagedChunk, VideoRow
from streamloader.archive.ingest.executors.base import FINAL_KINDS, Executor, UnitEvent
from streamloader.archive.ingest.naming import build_origin, compute_content
from streamloader.archive.ingest.places import IngestPlaces
from streamloader.archive.ingest.progress import ProgressSnapshot
from streamloader.archive.ingest.report import ExistingVideo, FailedVideo, IngestReport, Note
from streamloader.archive.ingest.task import (
    IngestTask,
    TaskState,
    describe_activity,
    estimate_bytes_done,
    get_source_size,
    parse_orientation,
)
from streamloader.archive.ingest.unit import WorkUnit, chunk_from_json
from streamloader.errors import CatalogError, NameConflict, StreamloaderError, WorkerDied, from_wire
from streamloader.stores.io_thread import SharedResource

__all__ = ["HEARTBEAT_INTERVAL_S", "IngestDriver"]

HEARTBEAT_INTERVAL_S: Final = 20.0
_POLL_INTERVAL_S: Final = 0.25
_STALL_TIMEOUT_S: Final = 600.0  # without a message from a unit
_MIN_READ_BYTES_PER_S: Final = 5e6  # extends the stall timeout: scanning a whole source is a single long step
_MAX_CRASHES: Final = 2  # of a unit's workers, without a new chunk in between
_MAX_DISPLAY_LOAD: Final = 1 / 20  # fraction of the time that the progress display may take
_MAX_LISTED_CHUNKS: Final = 5
_log: Final = logging.getLogger("streamloader")


class IngestDriver:
    """Adds videos to a catalog.

    Args:
        catalog: Catalog of the archive.
        executor: Executor of the units. The caller closes it.
        work: Tasks with their units, in order. The number of a unit is its position.
        places: Places of the archive.
        show: Function that receives the progress.
    """

    def __init__(
        self,
        catalog: SharedResource[Catalog],
        executor: Executor,
        work: Sequence[tuple[IngestTask, WorkUnit]],
        places: IngestPlaces,
        show: Callable[[ProgressSnapshot], None],
    ) -> None:
        self._catalog = catalog
        self._executor = executor
        self._states = [TaskState(task, unit, order) for order, (task, unit) in enumerate(work)]
        self._places = places
        self._show = show
        self._by_order = list(self._states)
        self._finished_prefix = 0  # number of tasks at the start of _by_order that are all finished
        self._unfinished = len(self._states)
        self._queue = deque(self._states)
        self._leaders: dict[str, TaskState] = {}  # the task that processes a content
        self._parked: dict[str, list[TaskState]] = {}  # other tasks with the same content
        self._unstaged: dict[str, list[StagedChunk]] = {}  # finished chunks by content
        self._started_at = self._last_heartbeat_at = self._last_stall_check_at = time.monotonic()
        self._next_display_at = 0.0

    def mark_existing(self, order: int, video: VideoRow) -> None:
        """Finish the task at position `order` before the run, because the archive has its video already."""
        state = self._states[order]
        self._finish(state, ExistingVideo(state.task.source, video))

    def run(self) -> None:
        """Process all tasks.

        Raises:
            CatalogError: If the catalog can no longer be used. Staged chunks are kept.
        """
        while self._unfinished:
            while self._executor.count_free_slots() > 0 and (state := self._take_next()) is not None:
                self._start(state)
            for event in self._executor.wait_for_events(_POLL_INTERVAL_S):
                self._handle_event(event)
            self._stage_chunks()
            self._commit_in_order()
            self._send_heartbeats()
            self._kill_stalled_units()
            self._update_display()
        self._show(self.take_snapshot())

    def _take_next(self) -> TaskState | None:
        """Return the next task to start. A task whose unit has not stopped yet waits for that."""
        for position, state in enumerate(self._queue):
            if not state.is_leaving:
                del self._queue[position]
                return state if state.stage == "waiting" else self._take_next()
        return None

    def _update_display(self) -> None:
        now = time.monotonic()
        if now >= self._next_display_at:
            self._show(self.take_snapshot())
            display_seconds = time.monotonic() - now
            self._next_display_at = now + max(_POLL_INTERVAL_S, display_seconds / _MAX_DISPLAY_LOAD)

    # --- reports -----------------------------------------------------------------------------------------------------

    def take_snapshot(self) -> ProgressSnapshot:
        """Return the current progress."""
        finished = [state for state in self._states if state.stage == "finished"]
        to_process = [state for state in self._states if not isinstance(state.outcome, ExistingVideo)]
        unknown = any(get_source_size(state) is None for state in to_process)
        return ProgressSnapshot(
            videos=len(self._states),
            finished=len(finished),
            failed=sum(isinstance(state.outcome, FailedVideo) for state in finished),
            existing=sum(isinstance(state.outcome, ExistingVideo) for state in finished),
            bytes_total=None if unknown else sum(get_source_size(state) or 0 for state in to_process),
            bytes_done=sum(estimate_bytes_done(state) for state in to_process),
            frames=sum(state.frames_made for state in self._states),
            bytes_out=sum(row.bytes for state in self._states for row in state.staged.values()),
            seconds=time.monotonic() - self._started_at,
            active=tuple(describe_activity(state) for state in self._states if state.stage in ("running", "ready")),
        )

    def build_report(self, seconds: float) -> IngestReport:
        """Return the report of a run that took `seconds`. During a run, it contains the finished videos."""
        outcomes = [state.outcome for state in self._by_order]
        added = tuple(outcome for outcome in outcomes if isinstance(outcome, VideoRow))
        return IngestReport(
            added=added,
            existing=tuple(outcome for outcome in outcomes if isinstance(outcome, ExistingVideo)),
            failed=tuple(outcome for outcome in outcomes if isinstance(outcome, FailedVideo)),
            notes=tuple(
                Note(state.outcome.name, row.number, row.first_frame, row.frames, row.note)
                for state in self._by_order
                if isinstance(state.outcome, VideoRow)
                for row in sorted(state.staged.values(), key=lambda row: row.number)
                if row.note
            ),
            bytes_in=sum(video.bytes_in for video in added),
            bytes_out=sum(video.bytes_out for video in added),
            frames=sum(video.frames for video in added),
            frames_made=sum(state.frames_made for state in self._states),
            seconds=seconds,
        )

    # --- events ------------------------------------------------------------------------------------------------------

    def _start(self, state: TaskState) -> None:
        state.stage, state.activity, state.last_message_at = "running", "starting", time.monotonic()
        try:
            self._executor.start_unit(replace(state.unit, targets=tuple(self._places.get_targets())))
        except StreamloaderError as error:
            self._fail(state, error, keep_chunks=True)

    def _handle_event(self, event: UnitEvent) -> None:
        state = self._states[event.unit_number]
        message = event.message
        state.last_message_at = time.monotonic()
        if state.is_leaving and event.kind in FINAL_KINDS:
            state.is_leaving = False
            return
        if state.stage != "running":
            return  # the task was finished by another event
        if event.kind == "found":
            self._executor.send_answer(event.unit_number, self._handle_source(state, message))
        elif event.kind == "tick":
            state.activity = message["stage"]
            state.source_bytes_done = max(state.source_bytes_done, message["done"])
        elif event.kind == "planned":
            state.video_facts, state.chunks, state.activity = message["facts"], message["chunks"], "cutting"
            _log_unusual(state)
        elif event.kind == "kept":
            self._keep_chunks(state, set(message["numbers"]))
        elif event.kind == "chunk":
            self._add_chunk(state, chunk_from_json(message))
        if event.kind in FINAL_KINDS:
            self._handle_final_event(state, event)

    def _handle_final_event(self, state: TaskState, event: UnitEvent) -> None:
        if event.kind == "failed":
            error = from_wire(dict(event.message["error"]))
            self._fail(state, error, keep_chunks=not event.message["worthless"])
        elif event.kind == "died":
            self._handle_crash(state, event.message)
        elif event.kind == "done":
            state.stage, state.activity = "ready", "done"
        elif state.stage == "running":
            error = StreamloaderError("the work on this video was cancelled", stream=state.task.source)
            self._fail(state, error, keep_chunks=True)

    def _handle_source(self, state: TaskState, source_info: Mapping[str, Any]) -> dict[str, Any]:
        """Called when the digest of a source is known. Returns the answer for the unit."""
        settings = state.unit.settings.to_json()
        state.source_info, state.content = source_info, compute_content(source_info["digest"], settings)
        leader = self._leaders.get(state.content)
        if leader is not None and leader is not state:
            if state.order < leader.order:  # the first task in the request determines name and position
                state.task, leader.task = leader.task, state.task
                state.order, leader.order = leader.order, state.order
                self._by_order[state.order], self._by_order[leader.order] = state, leader
            state.stage, state.is_leaving = "parked", True
            self._parked.setdefault(state.content, []).append(state)
            return {"go": False}
        catalog = self._catalog.resource
        try:
            existing = self._catalog.call(catalog.begin_job(self._create_job(state)))
            staged = [] if existing else self._catalog.call(catalog.get_staged_chunks(state.content))
        except NameConflict as error:
            self._fail(state, error, keep_chunks=True)
            return {"go": False}
        except StreamloaderError:
            raise
        except Exception as error:  # noqa: BLE001 - a row that the driver of the catalog refuses is the fault of its video
            self._fail(state, _refused_row(state, error), keep_chunks=True)
            return {"go": False}
        if existing is not None:
            self._finish(state, ExistingVideo(state.task.source, existing))
            return {"go": False}
        self._leaders[state.content] = state
        state.staged = {row.number: row for row in staged}
        names = ("number", "first_frame", "frames", "place", "path", "bytes")
        return {
            "go": True,
            "content": state.content,
            "staged": [{name: getattr(row, name) for name in names} for row in staged],
        }

    @staticmethod
    def _create_job(state: TaskState) -> IngestJob:
        now = time.time()
        return IngestJob(state.content, state.task.name, state.task.source, now, now)

    def _keep_chunks(self, state: TaskState, numbers: set[int]) -> None:
        """Continue with these of the staged chunks. If there are none, the plan has changed, and the job restarts."""
        if state.staged and not numbers:
            job = self._create_job(state)
            self._catalog.call(self._catalog.resource.abandon_job(state.content))
            self._catalog.call(self._catalog.resource.begin_job(job))
        state.staged = {number: row for number, row in state.staged.items() if number in numbers}
        state.frames = sum(row.frames for row in state.staged.values())

    def _add_chunk(self, state: TaskState, chunk: StagedChunk) -> None:
        self._unstaged.setdefault(state.content, []).append(chunk)
        state.staged[chunk.row.number] = chunk.row
        state.frames += chunk.row.frames
        state.frames_made += chunk.row.frames
        state.crashes = 0

    def _handle_crash(self, state: TaskState, message: Mapping[str, Any]) -> None:
        state.crashes += 1
        if state.crashes < _MAX_CRASHES:
            _log.warning("the worker of %s died (%s): another worker resumes", state.task.source, message["why"])
            self._stage_chunks()
            self._requeue(state)
            return
        error = WorkerDied(
            f"{state.task.source} failed: two of its workers died one after the other (the last one: "
            f"{message['why']}). If it is too large for this machine's memory, use fewer jobs; otherwise it may be "
            "damaged",
            stream=state.task.source,
            **message["details"],
        )
        self._fail(state, error, keep_chunks=True)

    def _requeue(self, state: TaskState) -> None:
        """Put a task back at the front of the queue."""
        if self._leaders.get(state.content) is state:
            del self._leaders[state.content]
        state.stage, state.activity, state.source_bytes_done = "waiting", "", 0
        state.frames, state.staged = 0, {}
        self._queue.appendleft(state)

    # --- the catalog -------------------------------------------------------------------------------------------------

    def _stage_chunks(self) -> None:
        unstaged, self._unstaged = self._unstaged, {}
        for content, chunks in unstaged.items():
            try:
                self._catalog.call(self._catalog.resource.stage_chunks(chunks))
            except CatalogError as error:
                self._handle_lost_job(self._leaders[content], error)

    def _handle_lost_job(self, state: TaskState, error: CatalogError) -> None:
        """Called when the catalog refuses a write for a job. Another process may have committed the same content.

        Raises:
            CatalogError: If the catalog cannot be reached.
        """
        catalog = self._catalog.resource
        job_exists = any(job.content == state.content for job in self._catalog.call(catalog.list_jobs()))
        existing = self._catalog.call(catalog.get_video_by_content(state.content))
        if existing is not None:
            self._finish(state, ExistingVideo(state.task.source, existing))
        else:
            self._fail(state, error, keep_chunks=job_exists)

    def _commit_in_order(self) -> None:
        by_order = self._by_order
        while self._finished_prefix < len(by_order) and by_order[self._finished_prefix].stage == "finished":
            self._finished_prefix += 1
        position = self._finished_prefix
        while position < len(by_order) and by_order[position].stage in ("ready", "finished", "parked"):
            if by_order[position].stage == "ready":
                self._commit(by_order[position])
            position += 1

    def _commit(self, state: TaskState) -> None:
        assert state.video_facts is not None
        missing = sorted(set(range(state.chunks)) - set(state.staged))
        if missing:
            error = StreamloaderError(
                f"chunks {missing[:_MAX_LISTED_CHUNKS]} of {state.task.source} were not made", stream=state.task.source
            )
            self._fail(state, error, keep_chunks=True)
            return
        facts, settings, source_info = state.video_facts, state.unit.settings, state.source_info
        row = VideoRow(
            content=state.content,
            name=state.task.name,
            frames=facts["frames"],
            chunks=state.chunks,
            height=facts["height"],
            width=facts["width"],
            orientation=parse_orientation(facts["turn"]),
            time_base=Fraction(*facts["time_base"]),
            first_pts=facts["first_pts"],
            end=facts["end"],
            mode=settings.mode,
            chunk_frames=settings.chunk_frames,
            source=state.task.source,
            bytes_in=source_info["size"],
            bytes_out=sum(chunk.bytes for chunk in state.staged.values()),
            metadata=state.task.metadata,
            origin=build_origin(
                source_info["digest"],
                source_info["version"],
                source_info["size"],
                settings.to_json(),
                state.task.address_tag,
                facts["source"],
            ),
            added=time.time(),
        )
        try:
            committed = self._catalog.call(self._catalog.resource.commit_video(row))
        except NameConflict as error:
            self._fail(state, error, keep_chunks=True)
        except CatalogError as error:
            self._handle_lost_job(state, error)
        except StreamloaderError:
            raise
        except Exception as error:  # noqa: BLE001 - as in _handle_source
            self._fail(state, _refused_row(state, error), keep_chunks=True)
        else:
            is_new = (committed.name, committed.source, committed.added) == (row.name, row.source, row.added)
            self._finish(state, committed if is_new else ExistingVideo(state.task.source, committed))

    def _send_heartbeats(self) -> None:
        if time.monotonic() < self._last_heartbeat_at + HEARTBEAT_INTERVAL_S:
            return
        self._last_heartbeat_at = time.monotonic()
        for content in self._leaders:
            self._catalog.call(self._catalog.resource.record_heartbeat(content, time.time()))

    def _kill_stalled_units(self) -> None:
        now = time.monotonic()
        if now < self._last_stall_check_at + 10 * _POLL_INTERVAL_S:
            return
        self._last_stall_check_at = now
        for state in self._states:
            time_limit_s = _STALL_TIMEOUT_S + (get_source_size(state) or 0) / _MIN_READ_BYTES_PER_S
            if state.stage == "running" and now > state.last_message_at + time_limit_s:
                state.last_message_at = now
                self._executor.kill_unit(state.unit.number, f"it sent no message for {time_limit_s:.0f} s")

    # --- the end of a task -------------------------------------------------------------------------------------------

    def _fail(self, state: TaskState, error: StreamloaderError, *, keep_chunks: bool) -> None:
        has_job = self._leaders.get(state.content) is state
        if has_job and not keep_chunks:
            self._abandon(state.content)
        error.stream = error.stream or state.task.source
        resumable = has_job and keep_chunks and bool(state.staged)
        self._finish(state, FailedVideo(state.task.source, error, resumable=resumable))

    def _finish(self, state: TaskState, outcome: VideoRow | ExistingVideo | FailedVideo) -> None:
        state.stage, state.outcome = "finished", outcome
        self._unfinished -= 1
        if self._leaders.get(state.content) is not state:
            return
        del self._leaders[state.content]
        self._unstaged.pop(state.content, None)
        for parked in self._parked.pop(state.content, []):
            if isinstance(outcome, FailedVideo):
                self._requeue(parked)  # its own source may be readable
            else:
                video = outcome.video if isinstance(outcome, ExistingVideo) else outcome
                self._finish(parked, ExistingVideo(parked.task.source, video))

    def _abandon(self, content: str) -> None:
        """Delete a job and the files of its chunks, unless another archive may have the same chunks."""
        self._stage_chunks()
        rows = self._catalog.call(self._catalog.resource.get_staged_chunks(content))
        self._catalog.call(self._catalog.resource.abandon_job(content))
        self._places.delete_chunks(rows)


def _log_unusual(state: TaskState) -> None:
    """Write to the log what users should know about the source of a video."""
    assert state.video_facts is not None
    facts = state.video_facts["source"]
    if facts["video_streams"] > 1 and state.unit.settings.stream is None:
        _log.warning(
            "%s has %s video streams: number %s is stored. stream= chooses another",
            state.task.source, facts["video_streams"], facts["stream"],
        )  # fmt: skip
    if facts["clock_jumps"]:
        _log.warning(
            "%s: the clock of the file jumps, as where recordings were joined. Times go on without a gap there",
            state.task.source,
        )


def _refused_row(state: TaskState, error: Exception) -> CatalogError:
    """Build the error of a video that the catalog cannot store, for a reason that its driver does not translate."""
    return CatalogError(
        f"the catalog refuses the row of {state.task.source}: {type(error).__name__}: {error}", stream=state.task.source
    )
