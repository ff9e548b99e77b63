"""Base of the loaders: iteration, waiting, statistics and shutdown, independent of the workload that fills batches."""

from __future__ import annotations

import abc
import functools
import itertools
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
from typing_extensions import override

from streamloader.arguments import check_seconds
from streamloader.common.cores import cores_per_worker
from streamloader.engine.job import WorkerJob
from streamloader.engine.quarantine import Quarantine
from streamloader.engine.ring import LaneActivity, Ring, SlotLayout
from streamloader.engine.supervisor import OnDeath, Supervisor
from streamloader.engine.worker import import_event_loop
from streamloader.engine.workload import ConsumedBatch, EpochPosition, Grant, Workload
from streamloader.errors import CannotCopy, ClosedError, LoaderTimeout, NoSampler, StreamloaderError, WrongProcess
from streamloader.loader.accelerate_state import GradientAccumulation
from streamloader.loader.batch import BatchSpec, SlotBatch, copy_memory
from streamloader.loader.cuda import Pinning, make_feed
from streamloader.loader.iteration import END, Iteration
from streamloader.loader.stats import LaneStats, LoaderStats
from streamloader.loader.system_limits import name_system_limits

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["SPARE_SLOTS", "EndlessLoader", "Loader", "split_lanes"]

_LOGGER = logging.getLogger("streamloader")
SPARE_SLOTS = 2  # batches that the user may hold without slowing down the workers
_DATALOADER_ATTRIBUTES: Final = ("sampler", "dataset")
_NOT_READY: Final = object()


class Loader(abc.ABC):
    """Has workers fill a ring of batches, and yields the batches one by one.

    Args:
        workload: Workload that the workers run.
        layout: Layout of a slot.
        spec: Arrays of a batch over the memory of a slot.
        worker_rows: Rows of each worker.
        ahead: Number of batches that workers prepare ahead of the consumer.
        spare: Number of additional batches that the user may hold. Batches beyond that are copied out of the ring.
        exact: Whether workers never prepare more than `ahead` batches, even while the user holds none.
        first_lane: Global number of row 0.

    The other arguments are those of :class:`MultiStreamer`.

    Attributes:
        num_workers: Number of worker processes.
        end_of_dataloader: Whether the batch that was yielded last is the last one. For Accelerate: it is only found out
            where gradients are accumulated.
        remainder: Always -1: Accelerate knows from it that no sample was added to fill the last batch.

    Raises:
        ConfigError: If the device is not supported or not available.
        MissingDependency: If the device or `pin_memory` needs torch, which is not installed.
        RingTooLarge: If the ring does not fit into free memory.
    """

    def __init__(
        self,
        workload: Workload,
        layout: SlotLayout,
        spec: BatchSpec,
        *,
        worker_rows: Sequence[Sequence[int]],
        num_workers: int,
        ahead: int,
        spare: int,
        exact: bool,
        first_lane: int,
        pin_memory: bool,
        device: Any,
        timeout: float | None,
        on_worker_death: OnDeath = "restart",
    ) -> None:
        self.num_workers = num_workers
        if not num_workers:
            import_event_loop()  # for a worker that starts in a thread, when the main thread may have ended
        self._workload, self._slot_layout, self._spec = workload, layout, spec
        self._worker_rows, self._first_lane = worker_rows, first_lane
        self._feed = make_feed(device, self._take_batch)
        self._pinning = Pinning(enabled=pin_memory or self._feed is not None)
        self._spare = spare + (self._feed is not None)
        self._slot_count = ahead + self._spare
        self._max_ahead = ahead if exact else self._slot_count
        Ring.check_free_memory(layout, self._slot_count)
        self._timeout = check_seconds("timeout", timeout)
        self._on_worker_death: OnDeath = on_worker_death
        self._quarantine = Quarantine(first_lane)
        self._undelivered: deque[ConsumedBatch | None] = deque()  # one for each batch that was taken but not yielded
        self._pending: tuple[SlotBatch, ConsumedBatch | None] | None = None  # was taken, and will be yielded next
        self._taking = False  # a batch is being taken; if it stays True, it was lost to an interrupt
        self._ring: Ring | None = None
        self._supervisor: Supervisor | None = None
        self._owner_pid = -1  # process that has started the workers
        self._closed = False
        self._iteration = 0
        self._requested = False  # whether a batch of the current iteration was requested
        self.end_of_dataloader = False
        self.remainder = -1
        self._accumulation: GradientAccumulation | None = None
        self._start_time = 0.0
        self._batch_count = self._copied_count = 0

    # --- implemented by subclasses ---------------------------------------------------------------------------

    @abc.abstractmethod
    def _prepare_iteration(self, supervisor: Supervisor) -> None:
        """Let the workers prepare the first batch of the next iteration. The caller holds the supervisor's lock."""

    @abc.abstractmethod
    def _on_first_request(self, supervisor: Supervisor) -> None:
        """Called when the first batch of an iteration is requested; the caller holds the supervisor's lock.

        The iteration counts as started only then.
        """

    @abc.abstractmethod
    def _make_batch(self, grant: Grant, memory: Any) -> SlotBatch:
        """Return a batch over the memory of a complete slot. The caller holds the supervisor's lock."""

    @abc.abstractmethod
    def _collate_batch(self, batch: Any) -> Any:
        """Return the item that the iteration yields for `batch`."""

    @abc.abstractmethod
    def _on_delivery(self, consumed: ConsumedBatch | None) -> None:
        """Called with the grant and the final cursors of each yielded batch, or with None at the end of an epoch."""

    # --- iteration ------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Start an iteration. An iteration that is in progress ends."""
        return self._start_iteration()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Start an iteration for ``async for``, which never blocks the event loop."""
        return self._start_iteration()

    def _start_iteration(self) -> Iteration:
        supervisor = self._start_workers()
        self._iteration += 1
        with supervisor.lock:
            self._taking = False
            self._prepare_iteration(supervisor)
            self._requested = False
        self._end_accumulation()
        number = self._iteration
        iteration = Iteration(
            functools.partial(self._next_item, number), functools.partial(self._wait_until_ready, number)
        )
        self._accumulation = GradientAccumulation.start(self)
        if self._accumulation is not None:
            weakref.finalize(iteration, self._accumulation.end).atexit = False
        return iteration

    def _discard_taken_batches(self) -> None:
        """Discard batches that were taken but not yielded: the next iteration does not continue this one."""
        self._undelivered.clear()
        self._pending = None
        if self._feed is not None:
            self._feed.discard_next()

    def _end_accumulation(self) -> None:
        accumulation, self._accumulation = self._accumulation, None
        if accumulation is not None:
            accumulation.end()

    def _start_workers(self) -> Supervisor:
        if self._closed:
            raise ClosedError("this loader is closed; create a new one")
        self._check_process()
        if self._supervisor is None:
            with name_system_limits("the loader cannot start"):
                self._supervisor = self._create_supervisor()
        return self._supervisor

    def _create_supervisor(self) -> Supervisor:
        self._owner_pid = os.getpid()
        self._start_time = time.perf_counter()
        self._ring = Ring.create(self._slot_layout, self._slot_count)
        job = WorkerJob(
            self._workload,
            self._slot_layout,
            self._slot_count,
            self._first_lane,
            self._worker_rows,
            _LOGGER.getEffectiveLevel(),
            cores_per_worker(max(1, self.num_workers)),
        )
        try:
            supervisor = Supervisor(
                job,
                self._ring,
                self.num_workers,
                self._quarantine,
                max_ahead=self._max_ahead,
                on_death=self._on_worker_death,
            )
        except BaseException:
            self._ring.close()
            raise
        supervisor.start()
        try:
            self._pinning.pin(self._ring)
        except BaseException:
            supervisor.close()
            raise
        return supervisor

    def _check_process(self) -> None:
        """Check that the workers belong to this process.

        Raises:
            WrongProcess: If this is a fork of the process that has started them. Its batches are not ours to take.
        """
        if self._supervisor is not None and self._owner_pid != os.getpid():
            raise WrongProcess(
                f"the workers of this loader belong to process {self._owner_pid}, from which this one was forked. "
                "Create a loader in this process, or iterate over it only after the fork",
                owner_pid=self._owner_pid,
            )

    def _check_current(self, iteration: int) -> Supervisor:
        self._check_process()
        if self._closed or self._supervisor is None:
            raise ClosedError("the loader was closed during this iteration")
        if iteration != self._iteration:
            raise ClosedError("another iteration of this loader was started; only one can be in progress")
        if not self._requested:
            with self._supervisor.lock:
                self._on_first_request(self._supervisor)
            self._requested = True
        return self._supervisor

    def _next_item(self, iteration: int) -> Any:
        """Wait for the next item of an iteration and return it, or END."""
        supervisor = self._supervisor
        if (
            supervisor is None
            or self._closed
            or iteration != self._iteration
            or not self._requested
            or self._owner_pid != os.getpid()
        ):
            supervisor = self._check_current(iteration)
        if self._pending is None:
            if self._taking:
                raise ClosedError(
                    "this iteration was interrupted while it took a batch, and has ended. To continue exactly after "
                    "the last batch, call load_state_dict(state_dict()), and iterate again"
                )
            while (batch := self._pop_batch(supervisor)) is _NOT_READY:
                supervisor.wait(self._timeout)
                self._check_current(iteration)
            if batch is None:
                self._on_delivery(None)
                self._taking = False
                self._end_accumulation()
                return END
            self._pending = batch, self._undelivered.popleft()
            self._taking = False
        if self._accumulation is not None and self._accumulation.needs_last_batch:
            self.end_of_dataloader = self._wait_for_end(supervisor)
        batch, consumed = self._pending  # kept until it was delivered: collate_fn may fail, or be interrupted
        item = self._collate_batch(batch)
        self._on_delivery(consumed)
        self._pending = None
        return item

    def _wait_for_end(self, supervisor: Supervisor) -> bool:
        """Wait until it is known whether another batch follows, and return whether none does."""
        while True:
            with supervisor.lock:
                if self._feed is not None and self._feed.has_next:
                    return False
                if supervisor.ready:
                    return supervisor.at_end
            try:
                supervisor.wait(self._timeout)
            except LoaderTimeout:
                raise
            except StreamloaderError:  # raised again when the next batch is requested
                return False

    def _pop_batch(self, supervisor: Supervisor) -> Any:
        """Return the next batch, None at the end of the epoch, or _NOT_READY."""
        with supervisor.lock:
            if self._feed is not None:
                if not (self._feed.has_next or supervisor.ready):
                    return _NOT_READY
                self._taking = True
                return self._feed.next(supervisor)
            if not supervisor.ready:
                supervisor.receive()  # often, the message has arrived; a wait takes longer
                if not supervisor.ready:
                    return _NOT_READY
            self._taking = True
            grant = supervisor.pop()
            return None if grant is None else self._take_batch(grant)

    async def _wait_until_ready(self, iteration: int) -> None:
        """Wait, without blocking the event loop, until the next item is available without waiting."""
        supervisor = self._check_current(iteration)
        if self._pending is not None:
            return
        wait = supervisor.start_wait(self._timeout)
        try:
            while True:
                with supervisor.lock:
                    if supervisor.ready or (supervisor.poll() and supervisor.ready):
                        return
                    wait.check()
                with anyio.move_on_after(wait.remaining()):
                    await anyio.wait_readable(supervisor.fileno())
                self._check_current(iteration)
        finally:
            supervisor.record_wait(wait)

    def _take_batch(self, grant: Grant) -> SlotBatch:
        """Return a batch over a complete slot, or over a copy of it if the user holds too many batches."""
        supervisor, ring = self._supervisor, self._ring
        assert supervisor is not None
        assert ring is not None
        memory: Any = ring.lease(grant.slot)
        if supervisor.leased_slots > self._spare:
            memory = copy_memory(memory)
            supervisor.reclaim_slots()
            self._copied_count += 1
        self._batch_count += 1
        self._undelivered.append(supervisor.last_consumed)
        return self._make_batch(grant, memory)

    # --- lifecycle -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the workers. Batches that are still held stay valid. May be called repeatedly."""
        self._closed = True
        self._pending = None
        self._end_accumulation()
        if self._owner_pid in (-1, os.getpid()):  # in a fork, CUDA and the page-lock belong to the parent
            if self._feed is not None:
                self._feed.close()
            self._pinning.unpin()
        if self._supervisor is not None:
            self._supervisor.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a loader that has not started yet, for a copy that starts workers of its own.

        Raises:
            CannotCopy: If its workers have started. They, and the memory of the batches, belong to this loader.
        """
        if self._supervisor is not None:
            raise CannotCopy(
                f"a {type(self).__name__} that has started cannot be copied or pickled, because its workers belong to "
                "it. Create a loader there, and pass it the position: load_state_dict(state_dict())"
            )
        return self.__dict__.copy()

    def __getattr__(self, name: str) -> Any:
        """Raise an error that helps for what a DataLoader has and a loader of streams cannot have."""
        if name in _DATALOADER_ATTRIBUTES:
            raise NoSampler(
                f"a {type(self).__name__} has no {name}, because its plan decides what each batch contains. To leave "
                "out batches that were played (skip_first_batches), save state_dict(), and call load_state_dict(state)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __enter__(self) -> Self:
        """Return the loader itself, which the context manager closes at its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the loader."""
        self.close()

    def stats(self) -> LoaderStats:
        """Return statistics: delivered batches, waiting times, and the state of each lane."""
        supervisor, ring = self._supervisor, self._ring
        seconds = time.perf_counter() - self._start_time if self._start_time else 0.0
        steps = self._batch_count * self._slot_layout.lanes * (self._slot_layout.window or 1)
        waited = supervisor.wait_seconds if supervisor else 0.0
        lanes: tuple[LaneStats, ...] = ()
        if supervisor is not None and ring is not None:
            ahead = supervisor.batches_ahead
            streams = self._workload.streams
            activities = [LaneActivity.read(line, len(streams)) for line in ring.status.tolist()]
            lanes = tuple(
                LaneStats(
                    self._first_lane + lane,
                    None if activity.stream is None or activity.stage == "idle" else streams[activity.stream].key,
                    activity.step,
                    activity.stage,
                    ahead[lane],
                    supervisor.wait_seconds_by_row.get(lane, 0.0),
                )
                for lane, activity in enumerate(activities)
            )
        return LoaderStats(
            batches=self._batch_count,
            steps=steps,
            bytes=self._batch_count * self._slot_layout.data_bytes,
            seconds=seconds,
            steps_per_second=steps / seconds if seconds else 0.0,
            wait_seconds=waited,
            wait_share=waited / seconds if seconds else 0.0,
            ring_bytes=Ring.size(self._slot_layout, self._slot_count),
            slots=self._slot_count,
            leased=supervisor.leased_slots if supervisor else 0,
            copied=self._copied_count,
            restarts=supervisor.failures.restarts if supervisor else 0,
            timed_out=sum(entry.timed_out for entry in self._quarantine.entries),
            lanes=lanes,
        )


class EndlessLoader(Loader):
    """Loader of producers that have no epochs, and no state that could be saved.

    There is only one epoch. Each iteration continues it.
    """

    _prepared = False

    @override
    def _prepare_iteration(self, supervisor: Supervisor) -> None:
        if not self._prepared:
            supervisor.start_at(EpochPosition(0, 0))
            self._prepared = True

    @override
    def _on_first_request(self, supervisor: Supervisor) -> None:
        pass  # there is only one epoch, which continues

    @override
    def _on_delivery(self, consumed: ConsumedBatch | None) -> None:
        pass  # it cannot be resumed


def split_lanes(lanes: int, workers: int) -> list[range]:
    """Split the rows evenly and in order over the workers. There are never more workers than lanes."""
    workers = min(workers, lanes)
    bounds = [lanes * number // workers for number in range(workers + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]
