"""The supervisor: grants slots to the workers, knows which batches are whole, and ends epochs.

It runs in the thread of whoever iterates: there is no thread and no queue between the workers and the consumer.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from streamloader.engine.player import Grant
from streamloader.engine.process import Worker, job_memory
from streamloader.engine.records import Kind, Record, Splitter, pack
from streamloader.engine.ring import Ring, Status
from streamloader.engine.trouble import lane_timed_out, worker_died
from streamloader.engine.worker import Job
from streamloader.errors import ClosedError, LoaderTimeout, StreamloaderError, from_wire

__all__ = ["Supervisor"]

_LOGGER = logging.getLogger("streamloader")
_CLOSE_WITHIN = 3.0  # seconds for all workers together, then they are killed
_RECEIVE = 1 << 18


class _Failure(NamedTuple):
    seq: int  # the grant it struck; -1: at once
    wire: dict[str, Any]


class _Play:
    """One run through an epoch, as far as it is known."""

    __slots__ = ("end", "ended", "epoch", "granted", "number", "open_end")

    def __init__(self, number: int, epoch: int, end: int | None) -> None:
        self.number, self.epoch = number, epoch
        self.end = end  # batches, where known
        self.open_end = end is None  # to be found by playing
        self.granted = 0  # batches granted, those taken back not counted
        self.ended: dict[int, int] = {}  # lane -> batches that hold steps of it


class Supervisor:
    """The workers of one loader, seen from the consumer.

    Args:
        most: batches that may be ahead of the consumer; by default, as many as have a slot.

    Attributes:
        lock: held by whoever uses it: batches may be let go of in any thread, at any moment.
        wait_seconds: time the consumer waited; waited_for: the same by lane.
    """

    def __init__(self, job: Job, ring: Ring, workers: int, most: int | None = None) -> None:
        self._job, self._ring = job, ring
        self._plan = job.script.plan
        self._count = len(job.lanes)
        self._processes = workers > 0
        self._workers: list[Worker] = []
        self._done = [0] * self._count
        self._splitters = [Splitter() for _ in range(self._count)]
        self._selector = selectors.DefaultSelector()
        self._version = 0
        self._taken = 0  # grants consumed; the next batch is the first of _granted
        self._granted: deque[Grant] = deque()
        self._free = list(range(ring.slots - 1, -1, -1))
        self._most = ring.slots if most is None else most
        self._infos: dict[int, dict[int, Any]] = {}  # grant -> worker -> what its env said
        self._unsent = bytearray()
        self._flush_at = max(1, ring.slots // 4) * len(pack(Kind.GRANT))
        self._plays: dict[int, _Play] = {}  # the current one and those after it
        self._plays_made = 0
        self._current: _Play | None = None
        self._granting: _Play | None = None  # the play whose batches are granted next
        self._failures: list[_Failure] = []
        self.wait_seconds = 0.0
        self.waited_for: dict[int, float] = {}
        self.lock = threading.Lock()
        ring.returns.notify = functools.partial(_notify, weakref.ref(self), os.getpid())
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, ring, self._selector, os.getpid())

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers."""
        try:
            job_fd = job_memory(self._job) if self._processes else -1
            try:
                for number, lanes in enumerate(self._job.lanes):
                    worker = Worker(number, lanes)
                    self._workers.append(worker)
                    if self._processes:
                        worker.start_process(self._ring, job_fd)
                    else:
                        worker.start_thread(self._ring, self._job)
                    self._selector.register(worker.sock, selectors.EVENT_READ, worker)
            finally:
                if job_fd >= 0:
                    os.close(job_fd)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the workers have been sent away."""
        return not self._finalizer.alive

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`poll` has something to do (epoll and kqueue nest)."""
        fd: int = self._selector.fileno()
        return fd

    def close(self) -> None:
        """End the workers and wait until they are gone. Safe to call again."""
        self._finalizer()

    # --- epochs ---------------------------------------------------------------------------------------------

    def begin(self, epoch: int) -> None:
        """Make the first batch of `epoch` the next one; without a break if it is the one that was made ahead."""
        ahead, current = self._granting, self._current
        if ahead is not None and ahead is not current and ahead.epoch == epoch and self._at_end():
            self._current = ahead
            self._forget(lambda play: play.number < ahead.number)
        else:
            self._truncate(self._taken)
            self._forget(lambda _: True)
            self._current = self._granting = self._new_play(epoch)
        self._grant()
        self.flush()

    def _new_play(self, epoch: int) -> _Play:
        play = _Play(self._plays_made, epoch, self._plan.batches)
        self._plays_made += 1
        self._plays[play.number] = play
        return play

    def _forget(self, is_over: Callable[[_Play], bool]) -> None:
        """Pay no more attention to what lanes say of these plays."""
        self._plays = {number: play for number, play in self._plays.items() if not is_over(play)}

    # --- the next batch -------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the next batch, or the end of the epoch, can be had without waiting."""
        self.reclaim()
        return min(self._done) > self._taken or self._at_end()

    def take(self, timeout: float | None) -> Grant | None:
        """Return the next whole batch, waiting for it; None at the end of the epoch.

        Raises:
            StreamloaderError: what a stream or worker failed with, at the batch that it spoiled.
            LoaderTimeout: nothing came within `timeout` seconds.
        """
        if not self.ready:
            started, late = time.perf_counter(), self.latest_lane()
            deadline = None if timeout is None else started + timeout
            try:
                while not self.ready:
                    left = None if deadline is None else max(0.0, deadline - time.perf_counter())
                    if not self.poll(left) and left == 0.0:
                        raise self.timed_out(time.perf_counter() - started)
            finally:
                self.note_wait(late, time.perf_counter() - started)
        return self.pop()

    def pop(self) -> Grant | None:
        """Return the next batch, which must be ready; None at the end of the epoch."""
        if self._at_end():
            return None
        self._taken += 1
        grant = self._granted.popleft()
        if self._free:  # it was the number of batches ahead that was at its limit
            self._grant()
            if len(self._unsent) >= self._flush_at:
                self.flush()
        return grant

    def take_infos(self, grant: Grant) -> list[Any]:
        """Return, once, what the envs of the workers said of a batch; None for those that said nothing."""
        said = self._infos.pop(grant.seq, {})
        return [said.get(number) for number in range(self._count)]

    def _at_end(self) -> bool:
        play = self._current
        if play is None:
            return True
        if self._granted and self._granted[0].play == play.number:  # what is granted lies before the end
            return False
        return play.end is not None and play.granted >= play.end

    def poll(self, wait: float | None = 0.0) -> bool:
        """Act on what workers say, waiting up to `wait` seconds for it; return whether they said anything."""
        self._raise_failure()
        self.flush()
        events = self._selector.select(wait)
        for key, _ in events:
            self._listen(key.data)
        if events and not self.ready:
            self._raise_failure()
        return bool(events)

    def latest_lane(self) -> int:
        """Return the row that has filled the fewest batches."""
        return int(self._ring.status[:, Status.SEQ].argmin())

    def note_wait(self, lane: int, seconds: float) -> None:
        """Book a wait of the consumer on the lane it waited for."""
        self.wait_seconds += seconds
        self.waited_for[lane] = self.waited_for.get(lane, 0.0) + seconds

    @property
    def leased(self) -> int:
        """Slots in the user's hands."""
        return self._ring.slots - len(self._free) - len(self._granted)

    @property
    def rows_ahead(self) -> list[int]:
        """Batches that each lane has filled and the consumer has not taken."""
        return [max(0, int(done) - self._taken) for done in self._ring.status[:, Status.SEQ]]

    # --- grants ---------------------------------------------------------------------------------------------

    def reclaim(self) -> None:
        """Grant the slots that the user has let go of."""
        returned = self._ring.returns.slots
        if not returned:
            return
        while returned:
            self._free.append(returned.popleft())
        self._grant()
        if len(self._unsent) >= self._flush_at:
            self.flush()

    def _on_return(self) -> None:
        """Grant a slot that the user lets go of at once, unless this supervisor is being used: then its user does."""
        if self.lock.acquire(blocking=False):
            try:
                if not self.closed:
                    self.reclaim()
            except StreamloaderError:
                pass  # a worker is in trouble: the next call that takes a batch meets it too, and raises
            finally:
                self.lock.release()

    def _grant(self) -> None:
        """Grant every free slot, in order, through this play and, once its end is known, into the next one."""
        while self._free and len(self._granted) < self._most and (play := self._granting) is not None:
            if play.end is not None and play.granted >= play.end:
                if play is not self._current or not self._job.script.plays_again:
                    return  # one play ahead is enough
                play = self._granting = self._new_play(play.epoch + 1)
            seq = self._taken + len(self._granted)
            grant = Grant(seq, play.number, play.epoch, play.granted, self._free.pop())
            self._granted.append(grant)
            self._unsent += pack(Kind.GRANT, 0, play.number, play.epoch, play.granted, grant.slot)
            play.granted += 1

    def _truncate(self, seq: int) -> None:
        """Make the grants from number `seq` on void."""
        while self._taken + len(self._granted) > seq:
            grant = self._granted.pop()
            self._free.append(grant.slot)
            self._plays[grant.play].granted = grant.batch
        self._version += 1
        self._done = [min(done, seq) for done in self._done]
        self._failures = [failure for failure in self._failures if failure.seq < seq]
        self._unsent += pack(Kind.TRUNCATE, self._version, seq)

    def flush(self) -> None:
        """Send what is to be told to the workers."""
        if not self._unsent:
            return
        data = bytes(self._unsent)
        self._unsent.clear()
        for worker in self._workers:
            try:
                worker.tell(data)
            except TimeoutError:
                raise self._died(worker, "it has stopped reading") from None
            except OSError:
                continue  # it is gone: its end of file says so

    # --- what workers say -----------------------------------------------------------------------------------

    def _listen(self, worker: Worker) -> None:
        try:
            data = worker.sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise self._died(worker, "")
        for record in self._splitters[worker.number].feed(data):
            if record.kind == Kind.DONE:
                if record.version == self._version:
                    self._done[worker.number] = record.a
            elif record.kind in (Kind.ENDED, Kind.OVERRUN):
                self._end(record)
            elif record.kind == Kind.ERROR:
                if record.a < 0 or record.version == self._version:
                    self._failures.append(_Failure(record.a, record.payload or {}))
            elif record.payload is not None:
                self._note(worker.number, record.kind, record.a, record.payload)

    def _note(self, worker: int, kind: int, seq: int, said: dict[str, Any]) -> None:
        """Keep what an env said of a batch, or log."""
        if kind == Kind.INFO:
            # Of any version: envs play one play only, so the number of a void grant is not given again.
            self._infos.setdefault(seq, {})[worker] = said["infos"]
            return
        logger = logging.getLogger(said["name"])
        if logger.isEnabledFor(said["level"]):
            logger.log(said["level"], "worker %d: %s", worker, said["message"])

    def _end(self, record: Record) -> None:
        """A lane has come to the end of a play, or beyond its planned one."""
        play = self._plays.get(record.a)
        if play is None:  # it is over, or was given up
            return
        before = play.end
        if record.kind == Kind.OVERRUN:
            if not play.open_end:
                play.open_end, play.end = True, None
        elif self._plan.tail == "drop":
            play.end = record.c if play.end is None else min(play.end, record.c)
        else:
            play.ended[record.lane] = record.b
            if play.open_end and len(play.ended) == self._job.layout.lanes:
                play.end = max(*play.ended.values(), self._plan.batches or 0)
        if play.end != before:
            self._mend(play)

    def _mend(self, play: _Play) -> None:
        """The end of a play has moved: take back the grants beyond it, and those that came after it too early."""
        keep = 0
        for grant in self._granted:
            if grant.play > play.number or (
                play.end is not None and grant.play == play.number and grant.batch >= play.end
            ):
                break
            keep += 1
        if keep < len(self._granted):
            self._truncate(self._taken + keep)
        self._forget(lambda other: other.number > play.number)
        self._granting = play
        self._grant()
        self.flush()

    # --- what goes wrong ------------------------------------------------------------------------------------

    def _raise_failure(self) -> None:
        """Raise what spoiled the next batch, or everything."""
        for failure in self._failures:
            if failure.seq < 0 or failure.seq == self._taken:
                raise from_wire(failure.wire)

    def _died(self, worker: Worker, why: str) -> StreamloaderError:
        if self.closed:
            return ClosedError("the loader was closed while a batch was awaited")
        return worker_died(worker, self._job.first_lane, why)

    def timed_out(self, waited: float) -> LoaderTimeout:
        """Return the error for a wait that passed its deadline: it names the lane that is furthest behind."""
        return lane_timed_out(self._job, self._ring, self.latest_lane(), waited)


def _notify(supervisor: weakref.ref[Supervisor], owner: int) -> None:
    alive = supervisor()
    if alive is not None and os.getpid() == owner:  # what a fork of the owner lets go of is still the owner's
        alive._on_return()  # noqa: SLF001 - a method would keep the supervisor alive


def _shut_down(workers: list[Worker], ring: Ring, selector: selectors.BaseSelector, owner: int) -> None:
    """End the workers and give the ring back; in a fork of the owner, only drop the copies of its descriptors."""
    selector.close()
    for worker in workers:
        worker.hang_up()
    if os.getpid() == owner:
        deadline = time.monotonic() + _CLOSE_WITHIN
        for worker in workers:
            if not worker.join(deadline):
                _LOGGER.warning(
                    "a stream does not come back from a blocking call; its thread is left to itself "
                    "(num_workers > 0 can be ended in any case)"
                )
    ring.close()
