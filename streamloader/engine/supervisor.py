"""The supervisor: grants slots to the workers, knows which batches are whole, ends epochs, and replaces dead workers.

It runs in the thread of whoever iterates: nothing stands between the workers and the consumer. Only the death of a
worker is dealt with in a thread of its own, at once, whatever the consumer is doing.
"""

from __future__ import annotations

import functools
import logging
import selectors
import threading
import time
import weakref
from typing import Any, Literal, NamedTuple

from streamloader.engine.consumer_wait import ConsumerWait, is_stalled, slowest_lane
from streamloader.engine.failures import Casualties, lane_timed_out, worker_died
from streamloader.engine.grants import Grants, cursor_array, encoded
from streamloader.engine.job import Job
from streamloader.engine.messages import Kind, Splitter, pack
from streamloader.engine.quarantine import Quarantine
from streamloader.engine.ring import Ring, Status
from streamloader.engine.slot_release import drained
from streamloader.engine.worker_pool import Crew
from streamloader.engine.worker_process import Worker
from streamloader.engine.workload import Grant, Orders, Place, Taken
from streamloader.errors import ClosedError, LoaderTimeout, StreamloaderError, WorkerDied, from_wire, to_wire
from streamloader.values import Array

__all__ = ["OnDeath", "Supervisor"]

OnDeath = Literal["restart", "raise"]

_LOGGER = logging.getLogger("streamloader")
_MOST_DEATHS = 5  # of one worker in a row, without a batch filled or a stream quarantined in between


class _Failure(NamedTuple):
    worker: int
    seq: int  # the grant it struck
    wire: dict[str, Any]


class Supervisor:
    """The workers of one loader, seen from the consumer.

    Args:
        quarantine: of the loader; it outlives this.
        most: batches that may be ahead of the consumer; by default, as many as have a slot.
        on_death: whether a worker that dies is replaced, or an error.

    Attributes:
        lock: held by whoever uses it, and never while waiting: batches may be let go of in any thread, at any moment.
        last: the grant that was taken last, with the cursors behind it.
        wait_seconds: time the consumer waited; waited_for: the same by lane.
        casualties: deaths of workers, and what they were due to.
    """

    def __init__(
        self,
        job: Job,
        ring: Ring,
        workers: int,
        quarantine: Quarantine,
        *,
        most: int | None = None,
        on_death: OnDeath = "restart",
    ) -> None:
        self._job, self._ring, self._quarantine = job, ring, quarantine
        script = job.script
        self._replaces = on_death == "restart" and script.resumes and workers > 0
        self._grants = Grants(
            script.plan,
            job.layout.lanes,
            ring.slots,
            ring.slots if most is None else most,
            plays_again=script.plays_again,
            fixed=script.fixed,
        )
        self._done = [0] * len(job.lanes)
        self._splitters = [Splitter() for _ in job.lanes]
        self._infos: dict[int, dict[int, Any]] = {}  # grant -> worker -> what its env said
        self._flush_at = max(1, ring.slots // 4) * len(pack(Kind.GRANT))
        self._failures: list[_Failure] = []
        self._fatal: StreamloaderError | None = None
        self.casualties = Casualties(job, quarantine)
        self._said_once: set[str] = set()
        self.last: Taken | None = None
        self.wait_seconds = 0.0
        self.waited_for: dict[int, float] = {}
        self.lock = threading.Lock()
        myself = weakref.ref(self)
        self._crew = Crew(
            job,
            ring,
            processes=workers > 0,
            ended=functools.partial(_ended, myself),
            returned=functools.partial(_returned, myself),
        )
        self._finalizer = weakref.finalize(self, _shut_down, self._crew, ring)

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers."""
        try:
            self._crew.start()
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
        return [worker.pid for worker in self._crew.workers if worker.pid is not None]

    @property
    def deaths(self) -> list[tuple[int, float, float]]:
        """The latest deaths: (process id, when noticed, when another had been started), in monotonic seconds."""
        return list(self.casualties.deaths)

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`poll` has something to do (epoll and kqueue nest)."""
        fd: int = self._crew.selector.fileno()
        return fd

    def close(self) -> None:
        """End the workers and wait until they are gone. Safe to call again."""
        self._finalizer()

    # --- epochs ---------------------------------------------------------------------------------------------

    def begin(self, place: Place) -> None:
        """Make the batch at `place` the next one."""
        self._quarantine.forget_before(place.epoch - 1)
        void = self._grants.begin(place)
        if void is not None:
            self._void(void)
            play = self._grants.current
            if play is not None and self._job.script.resumes:
                places = [] if place.cursors is None else [(play.number, place.batch, place.cursors)]
                self._grants.unsent += self._orders(places, [])
        self._grants.grant()
        self.flush()

    def _void(self, seq: int) -> None:
        """Heed that the grants from number `seq` on are void."""
        self._done = [min(done, seq) for done in self._done]
        self._failures = [failure for failure in self._failures if failure.seq < seq]
        self.casualties.forget_from(seq)

    def _orders(self, places: list[tuple[int, int, bytes]], suspects: list[tuple[int, int]]) -> bytes:
        listed = [(play, batch, cursor_array(cursors).tolist()) for play, batch, cursors in places]
        return pack(Kind.PLACE, payload=Orders(listed, self._quarantine.limits(), suspects)._asdict())

    # --- the next batch -------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the next batch, or the end of the epoch, can be had without waiting."""
        self.reclaim()
        return min(self._done) > self._grants.taken or self._grants.at_end

    def wait(self, timeout: float | None) -> None:
        """Wait until :attr:`ready`. Called without the lock.

        Raises:
            StreamloaderError: what a stream or worker failed with, at the batch that it spoiled.
            LoaderTimeout: nothing came within `timeout` seconds.
        """
        wait = self.start_wait(timeout)
        events: list[tuple[selectors.SelectorKey, int]] = []
        try:
            while True:
                with self.lock:
                    self._raise_failure()
                    self._heed(events)
                    if self.ready:
                        return
                    wait.check()
                try:
                    events = self._crew.selector.select(wait.remaining())
                except (OSError, ValueError):  # closed meanwhile: the next look says so
                    events = []
        finally:
            self.record_wait(wait)

    def pop(self) -> Grant | None:
        """Return the next batch, which must be ready; None at the end of the epoch."""
        grants = self._grants
        if grants.at_end:
            return None
        grant = grants.pop()
        self.last = grant, self._ring.cursors(grant.slot)
        if grants.free:  # it was the number of batches ahead that was at its limit
            grants.grant()
            if len(grants.unsent) >= self._flush_at:
                self.flush()
        return grant

    def take_infos(self, grant: Grant) -> list[Any]:
        """Return, once, what the envs of the workers said of a batch; None for those that said nothing."""
        said = self._infos.pop(grant.seq, {})
        return [said.get(number) for number in range(len(self._done))]

    def poll(self) -> bool:
        """Act on what workers say, without waiting; return whether they said anything.

        Raises:
            StreamloaderError: what spoiled the next batch, or everything.
        """
        self._raise_failure()
        self.flush()
        events = self._crew.selector.select(0)
        self._heed(events)
        return bool(events)

    def _heed(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in events:
            if key.data is None:
                self._crew.woken()
            elif key.data is self._crew.workers[key.data.number]:
                self._listen(key.data)
        if events and not self.ready:
            self._raise_failure()
        self.flush()

    @property
    def leased(self) -> int:
        """Slots in the user's hands."""
        return self._ring.slots - len(self._grants.free) - len(self._grants.granted)

    @property
    def rows_ahead(self) -> list[int]:
        """Batches that each lane has filled and the consumer has not taken."""
        return [max(0, int(done) - self._grants.taken) for done in self._ring.status[:, Status.SEQ]]

    # --- grants ---------------------------------------------------------------------------------------------

    def reclaim(self) -> None:
        """Grant the slots that the user has let go of."""
        if self._ring.returns.empty():
            return
        self._grants.free += drained(self._ring.returns)
        self._grants.grant()
        if len(self._grants.unsent) >= self._flush_at:
            self.flush()

    def take_back(self, slot: int) -> None:
        """Grant a slot that the user has just let go of, unless the loader was closed. Called with the lock."""
        if not self.closed:
            self._grants.free.append(slot)
            self._grants.grant()
            self.flush()

    def flush(self) -> None:
        """Send what is to be told to the workers."""
        unsent = self._grants.unsent
        if not unsent:
            return
        data = bytes(unsent)
        unsent.clear()
        for worker in self._crew.workers:
            self._tell(worker, data)

    def _tell(self, worker: Worker, data: bytes) -> None:
        try:
            worker.tell(data)
        except TimeoutError:
            worker.kill("it has stopped reading")
        except OSError:
            pass  # it is gone, which is noticed elsewhere

    # --- what workers say -----------------------------------------------------------------------------------

    def _listen(self, worker: Worker) -> None:
        """Act on what a worker says now."""
        data = self._crew.hear(worker)
        if data:
            self._understand(worker, data)
        elif data is not None:
            self._crew.forget(worker)
            if worker.pid is None and self._fatal is None:
                self._fatal = self._died(worker)
            worker.kill()  # if it is not gone yet; the rest follows when it is

    def _understand(self, worker: Worker, data: bytes) -> None:
        number = worker.number
        for record in self._splitters[number].feed(data):
            kind, payload = record.kind, record.payload or {}
            if kind == Kind.DONE:
                if record.version == self._grants.version:
                    self._done[number] = record.a
            elif kind in (Kind.ENDED, Kind.OVERRUN):
                void = self._grants.end(record)
                if void is not None:
                    self._void(void)
                self._grants.grant()
            elif kind == Kind.ERROR:
                if record.a < 0:
                    self._fatal = self._fatal or from_wire(payload)
                elif record.version == self._grants.version:
                    self._failures.append(_Failure(number, record.a, payload))
            elif kind == Kind.INFO:
                # Of any version: envs play one play only, so the number of a void grant is not given again.
                self._infos.setdefault(record.a, {})[number] = payload["infos"]
            elif kind == Kind.SKIPPED:
                self.casualties.skipped(record.lane, payload)
            else:
                self._log(number, payload)

    def _log(self, worker: int, said: dict[str, Any]) -> None:
        once = said.get("once")
        if once in self._said_once:
            return
        if once is not None:
            self._said_once.add(once)
        logger = logging.getLogger(said["name"])
        if logger.isEnabledFor(said["level"]):
            logger.log(said["level"], "worker %d: %s", worker, said["message"])

    def _raise_failure(self) -> None:
        """Raise what spoiled the next batch, or everything."""
        if self.closed:
            raise ClosedError("the loader was closed while a batch was awaited")
        if self._fatal is not None:
            raise self._fatal
        for failure in self._failures:
            if failure.seq == self._grants.taken:
                raise from_wire(failure.wire)

    # --- workers that die -----------------------------------------------------------------------------------

    def bury(self, pid: int) -> None:
        """Put another worker in the place of one whose process has ended. Called with the lock."""
        worker = self._crew.of_process(pid)
        if self.closed or worker is None:
            return
        noticed = time.monotonic()
        while data := self._crew.hear(worker):
            self._understand(worker, data)
        if self._fatal is None:
            error = self._died(worker)
            if not self._replaces:
                self._fatal = error
            elif self.casualties.book(worker, self._done[worker.number], self._ring.status, error) > _MOST_DEATHS:
                self._fatal = self._died(worker, f"It has died {_MOST_DEATHS} times before, with nothing filled since")
            else:
                _LOGGER.warning("%s. Another one goes on where it stopped", error.message)
                self._replace(worker)
        if self._fatal is not None:
            self._crew.forget(worker)
        self.casualties.deaths.append((pid, noticed, time.monotonic()))
        self.reclaim()
        self.flush()
        self._crew.wake()

    def fail(self, error: BaseException) -> None:
        """Have this raised to the consumer."""
        self._fatal = self._fatal or from_wire(to_wire(error))
        self._crew.wake()

    def _died(self, worker: Worker, more: str = "") -> WorkerDied:
        return worker_died(worker, self._job.first_lane, more)

    def _replace(self, worker: Worker) -> None:
        """Start a worker that goes on from what this one has published."""
        number, filled = worker.number, self._done[worker.number]
        status = self._ring.status
        for row in worker.lanes:
            status[row] = 0
            status[row, Status.SEQ] = filled
        self._failures = [failure for failure in self._failures if failure.worker != number]
        self._splitters[number] = Splitter()
        self.flush()  # what the others get; the new one gets all that is still to be filled
        try:
            new = self._crew.replace(worker)
        except OSError as error:
            self._fatal = self._died(worker, f"and another one cannot be started ({error})")
            return
        if new is None:
            return
        self.casualties.restarts += 1
        data = pack(Kind.START, self._grants.version, filled)
        places = self._grants.places(filled, self.last, self._ring.cursors)
        data += self._orders(places, self.casualties.suspects(worker, filled))
        data += b"".join(encoded(grant) for grant in self._grants.granted if grant.seq >= filled)
        self._tell(new, data)

    # --- waiting --------------------------------------------------------------------------------------------

    def start_wait(self, timeout: float | None) -> ConsumerWait:
        """Start a wait of the consumer, which ends with :meth:`record_wait`.

        Args:
            timeout: Time limit in seconds, or None for no limit.
        """
        return ConsumerWait(timeout, self._ring.status, self._kill_stalled_worker, self._timed_out)

    def record_wait(self, wait: ConsumerWait) -> None:
        """Add a wait that has ended to the statistics."""
        waited = wait.finish()
        if waited is not None:
            row, seconds = waited
            self.wait_seconds += seconds
            self.waited_for[row] = self.waited_for.get(row, 0.0) + seconds

    def _kill_stalled_worker(self, before: Array) -> bool:
        """Kill the worker of the slowest lane if its rows have made no progress since `before`."""
        row = slowest_lane(self._ring.status)
        worker = next(worker for worker in self._crew.workers if row in worker.lanes)
        if not self._replaces or not is_stalled(worker.lanes, before, self._ring.status):
            return False
        worker.kill("it made no progress before the deadline, and was killed")
        return True

    def _timed_out(self, waited: float) -> LoaderTimeout:
        """Return the error for a wait that passed its deadline. It names the slowest lane."""
        return lane_timed_out(self._job, self._ring, slowest_lane(self._ring.status), waited)


def _returned(supervisor: weakref.ref[Supervisor], slot: int) -> None:
    alive = supervisor()
    if alive is not None:
        with alive.lock:
            alive.take_back(slot)


def _ended(supervisor: weakref.ref[Supervisor], pid: int) -> None:
    alive = supervisor()
    if alive is None:
        return
    with alive.lock:
        try:
            alive.bury(pid)
        except Exception as error:  # noqa: BLE001 - raised in the consumer's thread
            alive.fail(error)


def _shut_down(crew: Crew, ring: Ring) -> None:
    """End the workers and give the ring back; in a fork of the owner, only drop the copies of its descriptors."""
    crew.close()
    ring.close()
