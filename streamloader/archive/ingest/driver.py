"""Leads units of work to their end: the only one who writes to the catalog.

Videos are worked on side by side, and become part of the archive in the order in which they were named, so that the
numbers of frames do not depend on who was faster. Each chunk is kept in the catalog as soon as it is in its place;
whatever dies in between, another run goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog, Job, StagedChunk, VideoRow
from streamloader.archive.ingest.executors.base import LAST, Engine, Event
from streamloader.archive.ingest.naming import content_of, origin
from streamloader.archive.ingest.placement import Target
from streamloader.archive.ingest.progress import Standing
from streamloader.archive.ingest.report import Failed, IngestReport, Note, Recognised
from streamloader.archive.ingest.task import Task, Work, active_of, bytes_done, size_of, turn_of
from streamloader.archive.ingest.unit import Unit, from_json
from streamloader.errors import CatalogError, NameTaken, StreamloaderError, WorkerDied, from_wire
from streamloader.stores.io_thread import Shared, shared_store

__all__ = ["BEAT", "Driver"]

BEAT: Final = 20.0  # seconds between two signs of life of a job
_LOOK: Final = 0.25  # seconds between two looks at what is not told by events
_STALLED: Final = 600.0  # seconds without a word from a unit
_SLOWEST: Final = 5e6  # bytes a second that the slowest disk is read with: looking at a whole source is one long step
_DEATHS: Final = 2  # of workers without a new chunk in between, after which a video is given up
_log: Final = logging.getLogger("streamloader")


class Driver:
    """Adds videos to a catalog.

    Args:
        catalog: of the archive.
        engine: does the units; it is not closed here.
        work: tasks with their units, in order; the number of each unit is its place in there.
        targets: called before each unit is begun, says where chunks can go.
        show: is told from time to time how far all is.
    """

    def __init__(
        self,
        catalog: Shared[Catalog],
        engine: Engine,
        work: Sequence[tuple[Task, Unit]],
        targets: Callable[[], Sequence[Target]],
        show: Callable[[Standing], None],
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._works = [Work(task, unit, order) for order, (task, unit) in enumerate(work)]
        self._targets = targets
        self._show = show
        self._by_order = list(self._works)
        self._committed = 0  # works in that order that are settled
        self._left = len(self._works)  # works that are not settled
        self._queue = deque(self._works)
        self._leaders: dict[str, Work] = {}  # by content
        self._parked: dict[str, list[Work]] = {}  # by content
        self._arrived: dict[str, list[StagedChunk]] = {}  # by content: to be staged
        self._began = self._beaten = self._looked = time.monotonic()
        self._shown = 0.0

    def recognise(self, order: int, video: VideoRow) -> None:
        """Say that a video is known to be in the archive, so that nobody needs to look at it."""
        work = self._works[order]
        self._settle(work, Recognised(work.task.source, video))

    def run(self) -> None:
        """Do all the work.

        Raises:
            CatalogError: the catalog cannot be used any more. What was staged is kept.
        """
        while self._left:
            while self._queue and self._engine.room() > 0:
                work = self._queue.popleft()
                if work.stage == "waiting":
                    self._start(work)
            for event in self._engine.events(_LOOK):
                self._take(event)
            self._stage_arrived()
            self._commit_in_order()
            self._beat()
            self._look_for_stalls()
            self._show_standing()
        self._show(self.standing())

    def _show_standing(self) -> None:
        now = time.monotonic()
        if now >= self._shown:
            self._show(self.standing())
            took = time.monotonic() - now
            self._shown = now + max(_LOOK, 20 * took)  # of very many videos it takes a while

    # --- what is told ------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Return how far all is."""
        settled = [work for work in self._works if work.stage == "settled"]
        sized = [work for work in self._works if not isinstance(work.outcome, Recognised)]
        unknown = any(size_of(work) is None for work in sized)
        return Standing(
            videos=len(self._works),
            settled=len(settled),
            failed=sum(isinstance(work.outcome, Failed) for work in settled),
            recognised=sum(isinstance(work.outcome, Recognised) for work in settled),
            bytes_total=None if unknown else sum(size_of(work) or 0 for work in sized),
            bytes_done=sum(bytes_done(work) for work in sized),
            frames=sum(work.made for work in self._works),
            bytes_out=sum(row.bytes for work in self._works for row in work.staged.values()),
            seconds=time.monotonic() - self._began,
            active=tuple(active_of(work) for work in self._works if work.stage in ("working", "made")),
        )

    def report(self, seconds: float) -> IngestReport:
        """Return what it came to; in the middle, as far as it is. `seconds` it took."""
        outcomes = [work.outcome for work in self._by_order]
        added = tuple(outcome for outcome in outcomes if isinstance(outcome, VideoRow))
        return IngestReport(
            added=added,
            recognised=tuple(outcome for outcome in outcomes if isinstance(outcome, Recognised)),
            failed=tuple(outcome for outcome in outcomes if isinstance(outcome, Failed)),
            notes=tuple(
                Note(work.outcome.name, row.number, row.first, row.frames, row.note)
                for work in self._by_order
                if isinstance(work.outcome, VideoRow)
                for row in sorted(work.staged.values(), key=lambda row: row.number)
                if row.note
            ),
            bytes_in=sum(video.bytes_in for video in added),
            bytes_out=sum(video.bytes_out for video in added),
            frames=sum(video.frames for video in added),
            made=sum(work.made for work in self._works),
            seconds=seconds,
        )

    # --- events ------------------------------------------------------------------------------------------------------

    def _start(self, work: Work) -> None:
        work.stage, work.doing, work.heard = "working", "starting", time.monotonic()
        try:
            self._engine.start(replace(work.unit, targets=tuple(self._targets())))
        except StreamloaderError as error:
            self._fail(work, error, keep=True)

    def _take(self, event: Event) -> None:
        work = self._works[event.unit]
        message = event.message
        work.heard = time.monotonic()
        if work.stage != "working":
            return  # its work was given up in the meantime
        if event.kind == "found":
            self._engine.answer(event.unit, self._found(work, message))
        elif event.kind == "tick":
            work.doing = message["stage"]
            work.done = max(work.done, message["done"])
        elif event.kind == "planned":
            work.facts, work.chunks, work.doing = message["facts"], message["chunks"], "cutting"
        elif event.kind == "kept":
            self._keep(work, set(message["numbers"]))
        elif event.kind == "chunk":
            self._arrive(work, from_json(message))
        if event.kind in LAST:
            self._last(work, event)

    def _last(self, work: Work, event: Event) -> None:
        if event.kind == "failed":
            error = from_wire(dict(event.message["error"]))
            self._fail(work, error, keep=not event.message["worthless"])
        elif event.kind == "died":
            self._died(work, event.message)
        elif event.kind == "done":
            work.stage, work.doing = "made", "done"
        elif work.stage == "working":
            self._fail(work, StreamloaderError("the work on it was broken off", stream=work.task.source), keep=True)

    def _found(self, work: Work, found: Mapping[str, Any]) -> dict[str, Any]:
        """Say what is to be done with a source whose digest is known now."""
        settings = work.unit.settings.to_json()
        work.found, work.content = found, content_of(found["digest"], settings)
        leader = self._leaders.get(work.content)
        if leader is not None and leader is not work:
            if work.order < leader.order:  # who was named first gives the name
                work.task, leader.task = leader.task, work.task
                work.order, leader.order = leader.order, work.order
                self._by_order[work.order], self._by_order[leader.order] = work, leader
            work.stage = "parked"
            self._parked.setdefault(work.content, []).append(work)
            return {"go": False}
        now = time.time()
        try:
            there = self._catalog.call(
                self._catalog.it.begin(Job(work.content, work.task.name, work.task.source, now, now))
            )
            staged = [] if there else self._catalog.call(self._catalog.it.staged(work.content))
        except NameTaken as error:
            self._fail(work, error, keep=True)
            return {"go": False}
        if there is not None:
            self._settle(work, Recognised(work.task.source, there))
            return {"go": False}
        self._leaders[work.content] = work
        work.staged = {row.number: row for row in staged}
        names = ("number", "first", "frames", "place", "path", "bytes")
        return {
            "go": True,
            "content": work.content,
            "staged": [{name: getattr(row, name) for name in names} for row in staged],
        }

    def _keep(self, work: Work, numbers: set[int]) -> None:
        """Go on with these of the staged chunks; with none if the plan was another one then."""
        if work.staged and not numbers:
            now = time.time()
            job = Job(work.content, work.task.name, work.task.source, now, now)
            self._catalog.call(self._catalog.it.abandon(work.content))
            self._catalog.call(self._catalog.it.begin(job))
        work.staged = {number: row for number, row in work.staged.items() if number in numbers}
        work.frames = sum(row.frames for row in work.staged.values())

    def _arrive(self, work: Work, chunk: StagedChunk) -> None:
        self._arrived.setdefault(work.content, []).append(chunk)
        work.staged[chunk.row.number] = chunk.row
        work.frames += chunk.row.frames
        work.made += chunk.row.frames
        work.deaths = 0

    def _died(self, work: Work, message: Mapping[str, Any]) -> None:
        work.deaths += 1
        if work.deaths < _DEATHS:
            _log.warning("the worker of %s died (%s): its work is taken up again", work.task.source, message["why"])
            self._stage_arrived()
            self._again(work)
            return
        error = WorkerDied(
            f"{work.task.source} was given up: two workers died of it one after the other (the last one: "
            f"{message['why']}). Is it too large for this machine's memory (use fewer jobs), or is it damaged?",
            stream=work.task.source,
            **message["details"],
        )
        self._fail(work, error, keep=True)

    def _again(self, work: Work) -> None:
        """Put a task back to those that wait, before all others."""
        if self._leaders.get(work.content) is work:
            del self._leaders[work.content]
        work.stage, work.doing, work.done, work.frames, work.staged = "waiting", "", 0, 0, {}
        self._queue.appendleft(work)

    # --- the catalog -------------------------------------------------------------------------------------------------

    def _stage_arrived(self) -> None:
        arrived, self._arrived = self._arrived, {}
        for content, chunks in arrived.items():
            try:
                self._catalog.call(self._catalog.it.stage(chunks))
            except CatalogError as error:
                jobs = self._catalog.call(self._catalog.it.jobs())  # raises if the catalog is out of reach
                self._lost(self._leaders[content], error, known=any(job.content == content for job in jobs))

    def _lost(self, work: Work, error: CatalogError, *, known: bool) -> None:
        """Go on after a job could not be worked on: perhaps because somebody else has done it."""
        there = self._catalog.call(self._catalog.it.containing(work.content))
        if there is not None:
            self._settle(work, Recognised(work.task.source, there))
        else:
            self._fail(work, error, keep=known)

    def _commit_in_order(self) -> None:
        by_order = self._by_order
        while self._committed < len(by_order) and by_order[self._committed].stage == "settled":
            self._committed += 1
        at = self._committed
        while at < len(by_order) and by_order[at].stage in ("made", "settled", "parked"):
            if by_order[at].stage == "made":
                self._commit(by_order[at])
            at += 1

    def _commit(self, work: Work) -> None:
        assert work.facts is not None
        missing = sorted(set(range(work.chunks)) - set(work.staged))
        if missing:
            self._fail(
                work,
                StreamloaderError(f"chunks {missing[:5]} of {work.task.source} were not made", stream=work.task.source),
                keep=True,
            )
            return
        facts, settings, found = work.facts, work.unit.settings, work.found
        row = VideoRow(
            content=work.content,
            name=work.task.name,
            frames=facts["frames"],
            chunks=work.chunks,
            height=facts["height"],
            width=facts["width"],
            turn=turn_of(facts["turn"]),
            time_base=Fraction(*facts["time_base"]),
            first_pts=facts["first_pts"],
            end=facts["end"],
            mode=settings.mode,
            chunk_frames=settings.chunk_frames,
            source=work.task.source,
            bytes_in=found["size"],
            bytes_out=sum(chunk.bytes for chunk in work.staged.values()),
            metadata=work.task.metadata,
            origin=origin(found["digest"], found["version"], found["size"], settings.to_json()),
            added=time.time(),
        )
        try:
            committed = self._catalog.call(self._catalog.it.commit(row))
        except NameTaken as error:
            self._fail(work, error, keep=True)
        except CatalogError as error:
            jobs = self._catalog.call(self._catalog.it.jobs())
            self._lost(work, error, known=any(job.content == work.content for job in jobs))
        else:
            ours = (committed.name, committed.source, committed.added) == (row.name, row.source, row.added)
            self._settle(work, committed if ours else Recognised(work.task.source, committed))

    def _beat(self) -> None:
        if time.monotonic() < self._beaten + BEAT:
            return
        self._beaten = time.monotonic()
        for content in self._leaders:
            self._catalog.call(self._catalog.it.beat(content, time.time()))

    def _look_for_stalls(self) -> None:
        now = time.monotonic()
        if now < self._looked + 10 * _LOOK:
            return
        self._looked = now
        for work in self._works:
            patience = _STALLED + (size_of(work) or 0) / _SLOWEST
            if work.stage == "working" and now > work.heard + patience:
                work.heard = now
                self._engine.kill(work.unit.number, f"nothing was heard of it for {patience:.0f} s")

    # --- the end of a task -------------------------------------------------------------------------------------------

    def _fail(self, work: Work, error: StreamloaderError, *, keep: bool) -> None:
        began = self._leaders.get(work.content) is work
        if began and not keep:
            self._abandon(work.content)
        error.stream = error.stream or work.task.source
        self._settle(work, Failed(work.task.source, error, resumable=began and keep and bool(work.staged)))

    def _settle(self, work: Work, outcome: VideoRow | Recognised | Failed) -> None:
        work.stage, work.outcome = "settled", outcome
        self._left -= 1
        if self._leaders.get(work.content) is not work:
            return
        del self._leaders[work.content]
        self._arrived.pop(work.content, None)
        for twin in self._parked.pop(work.content, []):
            if isinstance(outcome, Failed):
                self._again(twin)  # its source may be had where the other's was not
            else:
                video = outcome.video if isinstance(outcome, Recognised) else outcome
                self._settle(twin, Recognised(twin.task.source, video))

    def _abandon(self, content: str) -> None:
        """Forget a job, and remove the files of its chunks."""
        self._stage_arrived()
        rows = self._catalog.call(self._catalog.it.staged(content))
        self._catalog.call(self._catalog.it.abandon(content))
        targets = {target.number: target for target in self._targets()}
        for row in rows:
            if row.place in targets:
                target = targets[row.place]
                try:
                    store, root = shared_store(target.url, target.options)
                    with store:
                        store.delete(f"{root.rstrip('/')}/{row.path}" if root else row.path)
                except StreamloaderError as error:
                    _log.warning("%s is left in %s: %s", row.path, target.url, error)
