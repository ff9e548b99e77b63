"""The supervisor: grants slots to workers, tracks complete batches, ends epochs, and replaces workers that die.

It runs in the thread that iterates, so batches pass through no other thread of this process. Only the death of a worker
is handled in another thread, at once, whatever the consumer is doing.
"""

from __future__ import annotations

import functools
import logging
import selectors
import threading
import time
import weakref
from typing import Any, Final, Literal, NamedTuple

from streamloader.common.worker_messages import InvalidMessage, WorkerLog
from streamloader.engine.consumer_wait import ConsumerWait, is_stalled
from streamloader.engine.failures import FailureTracker, lane_timeout_error, worker_died_error
from streamloader.engine.grants import Grants, cursor_array, encode_grant
from streamloader.engine.job import WorkerJob
from streamloader.engine.messages import Message, MessageKind, encode_message
from streamloader.engine.quarantine import FailurePoint, Quarantine
from streamloader.engine.ring import Ring, Status
from streamloader.engine.stalls import StallJudge
from streamloader.engine.worker_inbox import WorkerInbox
from streamloader.engine.worker_pool import WorkerPool
from streamloader.engine.worker_process import WorkerHandle
from streamloader.engine.workload import ConsumedBatch, EpochPosition, Grant, LaneDirectives
from streamloader.errors import ClosedError, LoaderTimeout, StreamloaderError, WorkerDied, from_wire, to_wire
from streamloader.values import Array

__all__ = ["OnDeath", "Supervisor"]

OnDeath = Literal["restart", "raise"]

_LOGGER = logging.getLogger("streamloader")
_MAX_DEATHS_WITHOUT_PROGRESS: Final = 5  # of one worker in a row
_MAX_LAST_BYTES: Final = 64 << 20  # sent by a worker before its exit; a child of it may still be sending


class _BatchFailure(NamedTuple):
    """Error of a lane or env that could not fill its row of a batch.

    Attributes:
        worker: Number of the worker.
        seq: Number of the grant.
        error: The error (:func:`~streamloader.errors.to_wire`).
    """

    worker: int
    seq: int
    error: dict[str, Any]


class Supervisor:
    """The workers of one loader, as the consumer uses them.

    Args:
        job: Job of the workers.
        ring: Ring that the workers fill. The supervisor closes it.
        workers: Number of worker processes, or 0 for one worker in a thread.
        quarantine: Quarantine of the loader, which outlives the supervisor.
        max_ahead: Maximum number of batches granted ahead of the consumer. Defaults to the number of slots. With
            fewer, the consumer holds no more slots than the others, so that each of these batches has one at once.
        on_death: Whether a worker that dies is replaced (the default), or its death is an error.

    Attributes:
        lock: Lock to be held while using the supervisor, but never while waiting: slots are released in any thread, at
            any time.
        last_consumed: Grant that was consumed last, with the cursors after it.
        wait_seconds: Total time in seconds that the consumer has waited.
        wait_seconds_by_row: Time in seconds that the consumer has waited for each row.
        failures: Record of worker deaths and failed streams.
    """

    def __init__(
        self,
        job: WorkerJob,
        ring: Ring,
        workers: int,
        quarantine: Quarantine,
        *,
        max_ahead: int | None = None,
        on_death: OnDeath = "restart",
    ) -> None:
        self._job, self._ring, self._quarantine = job, ring, quarantine
        workload = job.workload
        self._replaces_workers = on_death == "restart" and workload.can_resume and workers > 0
        self._grants = Grants(
            workload.plan,
            job.layout.lanes,
            ring.slots,
            ring.slots if max_ahead is None else max_ahead,
            has_next_epoch=workload.has_next_epoch,
            fixed_length=workload.fixed_length,
        )
        self._filled = [0] * len(job.lanes)  # by worker: number of grants that all its lanes have filled
        self._inboxes = [
            WorkerInbox(number, job, ring, self._grants, self._filled, has_process=workers > 0)
            for number in range(len(job.lanes))
        ]
        self._logs = [WorkerLog(f"worker {number}") for number in range(len(job.lanes))]
        self._infos: dict[int, dict[int, Any]] = {}  # grant -> worker -> infos of its env
        self._flush_bytes = max(1, ring.slots // 4) * len(encode_message(MessageKind.GRANT))
        self._batch_failures: list[_BatchFailure] = []
        self._fatal_error: StreamloaderError | None = None
        self.failures = FailureTracker(job, quarantine)
        self._logged_once: set[str] = set()
        self.last_consumed: ConsumedBatch | None = None
        self.wait_seconds = 0.0
        self.wait_seconds_by_row: dict[int, float] = {}
        self.lock = threading.Lock()
        self_ref = weakref.ref(self)
        awaits_slots = max_ahead is None or max_ahead >= ring.slots
        self._pool = WorkerPool(
            job,
            ring,
            processes=workers > 0,
            on_exit=functools.partial(_handle_worker_exit, self_ref),
            on_slot_release=functools.partial(_reclaim_slots, self_ref) if awaits_slots else None,
        )
        self._finalizer = weakref.finalize(self, _shut_down, self._pool, ring)

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers, and allocate the ring while they import their modules.

        Raises:
            ConfigError: If the job cannot be sent to worker processes.
            RingTooLarge: If the ring does not fit into free memory.
        """
        try:
            self._pool.start()
            self._ring.allocate()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._finalizer.alive

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._pool.workers if worker.pid is not None]

    @property
    def deaths(self) -> list[tuple[int, float, float]]:
        """The latest deaths: (process id, time of detection, time of replacement). Times are monotonic, in seconds."""
        return list(self.failures.deaths)

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`poll` has work to do (epoll and kqueue can be nested)."""
        fd: int = self._pool.selector.fileno()
        return fd

    def close(self) -> None:
        """End the workers and wait until they are gone. Safe to call again."""
        self._finalizer()

    # --- epochs ---------------------------------------------------------------------------------------------

    def start_at(self, position: EpochPosition) -> None:
        """Make the batch at `position` the next one."""
        self._quarantine.forget_before(position.epoch - 1)
        first_void = self._grants.start_at(position)
        if first_void is not None:
            self._forget_void_grants(first_void)
            run = self._grants.current_run
            if run is not None and self._job.workload.can_resume:
                cursors = position.cursors
                entry_points = [] if cursors is None else [(run.number, position.batch, cursors)]
                self._grants.unsent += self._encode_directives(entry_points, [])
        self._grants.grant_free_slots()
        self.flush()

    def _forget_void_grants(self, first_void: int) -> None:
        """Forget what was recorded about the grants from this number on."""
        self._filled[:] = [min(filled, first_void) for filled in self._filled]
        self._batch_failures = [failure for failure in self._batch_failures if failure.seq < first_void]
        self._infos = {seq: infos for seq, infos in self._infos.items() if seq < first_void}
        self.failures.forget_from(first_void)

    def _encode_directives(self, entry_points: list[tuple[int, int, bytes]], suspects: list[tuple[int, int]]) -> bytes:
        entries = [(run, batch, cursor_array(cursors).tolist()) for run, batch, cursors in entry_points]
        directives = LaneDirectives(entries, self._quarantine.cutoffs(), suspects)
        return encode_message(MessageKind.DIRECTIVES, payload=directives._asdict())

    # --- the next batch -------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the next batch, or the end of the epoch, is available without waiting."""
        if self._ring.released:
            self.reclaim_slots()
        return min(self._filled) > self._grants.consumed or self._grants.at_end

    @property
    def at_end(self) -> bool:
        """Whether no batch of this epoch follows the last one that was consumed. Read while :attr:`ready`."""
        return self._grants.at_end

    def wait(self, timeout: float | None) -> None:
        """Wait until :attr:`ready`. The caller does not hold the lock.

        Args:
            timeout: Time limit in seconds, or None for no limit.

        Raises:
            StreamloaderError: If a stream or worker failed and the next batch cannot be filled.
            LoaderTimeout: If the time is over.
        """
        wait = self.start_wait(timeout)
        events: list[tuple[selectors.SelectorKey, int]] = []
        try:
            while True:
                with self.lock:
                    self._raise_failure()
                    self._process_events(events)
                    if self.ready:
                        return
                    wait.check()
                try:
                    events = self._pool.selector.select(wait.remaining())
                except (OSError, ValueError):  # closed in another thread; _raise_failure raises
                    events = []
        finally:
            self.record_wait(wait)

    def pop(self) -> Grant | None:
        """Consume the next batch, which must be ready. Return its grant, or None at the end of the epoch."""
        grants = self._grants
        if grants.at_end:
            return None
        grant = grants.pop()
        self.last_consumed = grant, self._ring.cursors(grant.slot)
        if grants.free:  # slots were free, but the number of batches ahead was at its limit
            grants.grant_free_slots()
            if len(grants.unsent) >= self._flush_bytes:
                self.flush()
        return grant

    def take_infos(self, grant: Grant) -> list[Any]:
        """Return, once, the infos of each worker's env for a batch; None for envs that returned none."""
        infos = self._infos.pop(grant.seq, {})
        return [infos.get(number) for number in range(len(self._filled))]

    def receive(self) -> None:
        """Process the messages of the workers that have not filled the next batch as far as is known, without waiting.

        Raises:
            StreamloaderError: If the next batch cannot be filled.
        """
        self._raise_failure()
        consumed = self._grants.consumed
        for worker in list(self._pool.workers):
            if self._filled[worker.number] <= consumed:
                self._read_from(worker)
        self.flush()

    def poll(self) -> bool:
        """Process messages of the workers without waiting; return whether there were any events.

        Raises:
            StreamloaderError: If the next batch cannot be filled.
        """
        self._raise_failure()
        self.flush()
        events = self._pool.selector.select(0)
        self._process_events(events)
        return bool(events)

    def _process_events(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in events:
            if key.data is None:
                self._pool.clear_wake()
            elif key.data is self._pool.workers[key.data.number]:
                self._read_from(key.data)
        if events and not self.ready:
            self._raise_failure()
        self.flush()

    @property
    def leased_slots(self) -> int:
        """Number of slots that the user holds."""
        return self._ring.slots - len(self._grants.free) - len(self._grants.granted)

    @property
    def batches_ahead(self) -> list[int]:
        """Number of batches, by row, that the lane has filled and the consumer has not consumed."""
        return [max(0, int(filled) - self._grants.consumed) for filled in self._ring.status[:, Status.SEQ]]

    # --- grants ---------------------------------------------------------------------------------------------

    def reclaim_slots(self) -> None:
        """Grant the slots that the user has released."""
        self._grants.free += self._ring.released.drain()
        self._grants.grant_free_slots()
        if len(self._grants.unsent) >= self._flush_bytes:
            self.flush()

    def send_free_slots(self) -> None:
        """Grant the slots that the user has released, and send them, unless the loader was closed."""
        if not self.closed:
            self.reclaim_slots()
            self.flush()

    def flush(self) -> None:
        """Send all unsent messages to the workers."""
        unsent = self._grants.unsent
        if not unsent:
            return
        data = bytes(unsent)
        unsent.clear()
        for worker in self._pool.workers:
            self._send(worker, data)

    def _send(self, worker: WorkerHandle, data: bytes) -> None:
        try:
            worker.send(data)
        except TimeoutError:
            worker.kill("it has stopped reading")
        except OSError:
            pass  # it is gone, which the process watcher and the selector report

    # --- messages of workers --------------------------------------------------------------------------------

    def _read_from(self, worker: WorkerHandle) -> None:
        """Receive from a worker whose socket is readable, and handle its messages."""
        if worker.rejected:
            return
        data = self._pool.receive(worker)
        if data:
            self._handle_messages(worker, data)
        elif data is not None:
            self._pool.unregister(worker)
            if worker.pid is None and self._fatal_error is None:
                self._fatal_error = self._died_error(worker)
            worker.kill()  # in case it still runs; its exit is handled like any other

    def _handle_messages(self, worker: WorkerHandle, data: bytes) -> None:
        """Handle messages of a worker. At an invalid one, kill the worker, and ignore the rest."""
        try:
            for message in self._inboxes[worker.number].decode(data):
                self._handle_message(worker.number, message)
        except InvalidMessage as error:
            self._pool.unregister(worker)
            worker.reject(str(error))  # its exit is handled like any other
            if worker.pid is None and self._fatal_error is None:
                self._fatal_error = self._died_error(worker)

    def _handle_message(self, number: int, message: Message) -> None:
        """Handle a message that was checked."""
        kind, payload = message.kind, message.payload or {}
        if kind == MessageKind.DONE:
            if message.version == self._grants.version:
                self._filled[number] = message.a
        elif kind in (MessageKind.ENDED, MessageKind.OVERRUN):
            first_void = self._grants.handle_lane_end(message)
            if first_void is not None:
                self._forget_void_grants(first_void)
            self._grants.grant_free_slots()
        elif kind == MessageKind.ERROR:
            if message.a < 0:
                self._fatal_error = self._fatal_error or from_wire(payload)
            elif message.version == self._grants.version:
                self._batch_failures.append(_BatchFailure(number, message.a, payload))
        elif kind == MessageKind.INFO:
            if message.b in self._grants.runs:  # another run uses the numbers of void grants again
                self._infos.setdefault(message.a, {})[number] = message.payload
        elif kind == MessageKind.SKIPPED:
            self.failures.record_skip(message.lane, payload)
        else:
            self._log(number, payload)

    def _log(self, worker: int, record: dict[str, Any]) -> None:
        once = record.get("once")
        if once in self._logged_once:
            return
        if once is not None:
            self._logged_once.add(once)
        self._logs[worker].write(record)

    def _raise_failure(self) -> None:
        """Raise the error because of which the next batch, or any batch, cannot be filled."""
        if self.closed:
            raise ClosedError("the loader was closed while waiting for a batch")
        if self._fatal_error is not None:
            raise self._fatal_error
        for failure in self._batch_failures:
            if failure.seq == self._grants.consumed:
                raise from_wire(failure.error)

    # --- workers that die -----------------------------------------------------------------------------------

    def handle_worker_exit(self, pid: int) -> None:
        """Replace a worker whose process has exited. The caller holds the lock."""
        worker = self._pool.find_worker(pid)
        if self.closed or worker is None:
            return
        detected = time.monotonic()
        received = 0
        while received < _MAX_LAST_BYTES and not worker.rejected and (data := self._pool.receive(worker)):
            self._handle_messages(worker, data)
            received += len(data)
        if self._fatal_error is None:
            error = self._died_error(worker)
            if not self._replaces_workers:
                self._fatal_error = error
            elif self._record_death(worker, error) > _MAX_DEATHS_WITHOUT_PROGRESS:
                detail = f"It has died {_MAX_DEATHS_WITHOUT_PROGRESS} times before, with nothing filled since"
                self._fatal_error = self._died_error(worker, detail)
            else:
                _LOGGER.warning("%s. A new worker continues where it stopped", error.message)
                self._replace_worker(worker)
        if self._fatal_error is not None:
            self._pool.unregister(worker)
        self.failures.deaths.append((pid, detected, time.monotonic()))
        self.reclaim_slots()
        self.flush()
        self._pool.wake()

    def fail(self, error: BaseException) -> None:
        """Raise this error in the consumer."""
        self._fatal_error = self._fatal_error or from_wire(to_wire(error))
        self._pool.wake()

    def _record_death(self, worker: WorkerHandle, error: WorkerDied) -> int:
        filled = self._filled[worker.number]
        return self.failures.record_death(worker, filled, self._ring.status, self._grants.last_epoch, error)

    def _died_error(self, worker: WorkerHandle, detail: str = "") -> WorkerDied:
        return worker_died_error(worker, self._job.first_lane, detail)

    def _replace_worker(self, worker: WorkerHandle) -> None:
        """Start a worker that continues after the last batch that this one has completed."""
        number, filled = worker.number, self._filled[worker.number]
        status = self._ring.status
        for row in worker.lanes:
            status[row] = 0
            status[row, Status.SEQ] = filled
        self._batch_failures = [failure for failure in self._batch_failures if failure.worker != number]
        predecessor = self._inboxes[number]
        self._inboxes[number] = WorkerInbox(
            number, self._job, self._ring, self._grants, self._filled, has_process=True, predecessor=predecessor
        )
        entry_points = self._grants.entry_points(filled, self.last_consumed, self._ring.cursors)
        try:
            entry_points = predecessor.confirm_entry_points(entry_points)
        except InvalidMessage as error:
            self._fatal_error = self._died_error(worker, f"No worker can continue for it: {error}")
            return
        self.flush()  # for the other workers; the new one gets all grants that it has to fill
        try:
            replacement = self._pool.replace(worker)
        except OSError as error:
            self._fatal_error = self._died_error(worker, f"A new worker cannot be started ({error})")
            return
        if replacement is None:
            return
        self.failures.restarts += 1
        data = encode_message(MessageKind.RESUME, self._grants.version, filled)
        data += self._encode_directives(entry_points, self.failures.suspects(worker, filled))
        data += b"".join(encode_grant(grant) for grant in self._grants.granted if grant.seq >= filled)
        self._send(replacement, data)

    # --- waiting --------------------------------------------------------------------------------------------

    def start_wait(self, timeout: float | None) -> ConsumerWait:
        """Start a wait of the consumer, which ends with :meth:`record_wait`.

        Args:
            timeout: Time limit in seconds, or None for no limit.
        """
        workload = self._job.workload
        judge = StallJudge(
            timeout, replaces_workers=self._replaces_workers, leaves_out_streams=workload.on_error == "skip"
        )
        return ConsumerWait(
            timeout,
            self._ring.status,
            self._find_slowest_lane,
            functools.partial(self._observe, judge),
            functools.partial(self._handle_deadline, judge),
            self._timeout_error,
        )

    def record_wait(self, wait: ConsumerWait) -> None:
        """Add a wait that has ended to the statistics."""
        waited = wait.finish()
        if waited is not None:
            row, seconds = waited
            self.wait_seconds += seconds
            self.wait_seconds_by_row[row] = self.wait_seconds_by_row.get(row, 0.0) + seconds

    def _find_slowest_lane(self) -> int:
        """Return the row that has filled the fewest batches, of the workers that have published the fewest."""
        filled, column = self._filled, self._ring.status[:, Status.SEQ]
        fewest = min(filled)
        if filled.count(fewest) == len(filled):
            return int(column.argmin())
        workers = [lanes for lanes, count in zip(self._job.lanes, filled, strict=True) if count == fewest]
        rows = [lanes[0] + int(column[lanes[0] : lanes[-1] + 1].argmin()) for lanes in workers]
        return min(rows, key=column.__getitem__)

    def _observe(self, judge: StallJudge) -> None:
        judge.meter.observe(self._find_slowest_worker().pid)

    def _handle_deadline(self, judge: StallJudge, before: Array) -> bool:
        """Do what is possible about the worker of the slowest lane; return whether the wait goes on.

        Args:
            judge: Judge of this wait.
            before: Snapshot of the status table.
        """
        worker = self._find_slowest_worker()
        points = self._find_busy_rows(worker)
        remedy = judge.decide(
            worker,
            is_stalled=is_stalled(worker.lanes, before, self._ring.status),
            kills_here=self.failures.count_stalls(points),
        )
        if remedy.kill_reason:
            worker.is_blameless = True
            if remedy.is_stall:
                self.failures.record_stall(worker, points, leaves_out=remedy.leaves_out)
            worker.kill(remedy.kill_reason)
        return remedy.waits

    def _find_slowest_worker(self) -> WorkerHandle:
        row = self._find_slowest_lane()
        return next(worker for worker in self._pool.workers if row in worker.lanes)

    def _timeout_error(self, waited: float) -> LoaderTimeout:
        """Build the error for a wait of `waited` seconds. It names the slowest lane, or the lane that it waits for."""
        row = self._find_slowest_lane()
        works_on = int(self._ring.status[row, Status.WORKS_ON]) - 1
        worker = self._find_slowest_worker()
        row = works_on if works_on in worker.lanes else row  # a worker may write any number
        kills = self.failures.count_stalls(self._find_busy_rows(worker))
        return lane_timeout_error(self._job, self._ring, row, waited, kills)

    def _find_busy_rows(self, worker: WorkerHandle) -> list[FailurePoint]:
        filled = self._filled[worker.number]
        return self.failures.find_busy_rows(worker, filled, self._ring.status, self._grants.last_epoch)


def _reclaim_slots(supervisor_ref: weakref.ref[Supervisor]) -> None:
    supervisor = supervisor_ref()
    if supervisor is not None:
        with supervisor.lock:
            supervisor.send_free_slots()


def _handle_worker_exit(supervisor_ref: weakref.ref[Supervisor], pid: int) -> None:
    supervisor = supervisor_ref()
    if supervisor is None:
        return
    with supervisor.lock:
        try:
            supervisor.handle_worker_exit(pid)
        except Exception as error:  # noqa: BLE001 - raised in the consumer's thread
            supervisor.fail(error)


def _shut_down(pool: WorkerPool, ring: Ring) -> None:
    """End the workers and close the ring. In a fork of the owner, only close the copies of descriptors."""
    pool.close()
    ring.close()
