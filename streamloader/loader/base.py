"""The half of an iterator over batches that does not depend on what fills them."""

from __future__ import annotations

import abc
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from streamloader.engine.job import Job
from streamloader.engine.quarantine import Quarantine
from streamloader.engine.ring import Ring, SlotLayout, Status
from streamloader.engine.supervisor import OnDeath, Supervisor
from streamloader.engine.workload import Grant, Script, Taken
from streamloader.errors import ClosedError, ConfigError
from streamloader.loader.batch import BatchSpec, SlotBatch, copy_memory
from streamloader.loader.cuda import Pinning, make_feed
from streamloader.loader.stats import LaneStats, LoaderStats

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["SPARE", "Loader", "check_arguments", "share"]

_LOGGER = logging.getLogger("streamloader")
SPARE = 2  # slots that the user may hold without slowing anything down
_END: Final = object()
_NOT_READY: Final = object()


class Loader(abc.ABC):
    """Has workers fill a ring of batches, and hands them out one by one.

    Args:
        script: what the workers play.
        layout: of a slot; `spec`: of the batches over it.
        hosted: rows of each worker.
        ahead: batches that are made ahead.
        spare: batches that the user may hold besides; further ones are copied out.
        exact: whether no more than `ahead` are made ahead, also while the user holds none.
        first_lane: global number of row 0.

    The other arguments are those of :class:`MultiStreamer`.

    Raises:
        ConfigError: the device is of no use here.
        RingTooLarge: the ring does not fit into free memory.
    """

    def __init__(
        self,
        script: Script,
        layout: SlotLayout,
        spec: BatchSpec,
        *,
        hosted: Sequence[Sequence[int]],
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
        self._script, self._slot_layout, self._spec = script, layout, spec
        self._hosted, self._first_lane = hosted, first_lane
        self._feed = make_feed(device, self._batch)
        self._pin = Pinning(wanted=pin_memory or self._feed is not None)
        self._spare = spare + (self._feed is not None)
        self._slots = ahead + self._spare
        self._most = ahead if exact else self._slots
        Ring.check(layout, self._slots)
        self._timeout = timeout or None
        self._on_worker_death: OnDeath = on_worker_death
        self._quarantine = Quarantine(first_lane)
        self._behind: deque[Taken | None] = deque()  # of each batch that was wrapped and not yielded yet
        self._ring: Ring | None = None
        self._supervisor: Supervisor | None = None
        self._closed = False
        self._iteration = 0
        self._counts = False  # whether this iteration was asked for a batch
        self._started = 0.0
        self._batches = self._copied = 0

    # --- what a kind of loader says ---------------------------------------------------------------------------

    @abc.abstractmethod
    def _begin_play(self, supervisor: Supervisor) -> None:
        """Have the workers make the first batch of the next iteration; the supervisor is locked."""

    @abc.abstractmethod
    def _asked(self, supervisor: Supervisor) -> None:
        """Heed that an iteration is asked for its first batch: only now it counts. The supervisor is locked."""

    @abc.abstractmethod
    def _wrap(self, grant: Grant, memory: Any) -> SlotBatch:
        """Make a batch of the memory of a whole slot; the supervisor is locked."""

    @abc.abstractmethod
    def _collated(self, batch: Any) -> Any:
        """Make of a batch what the iteration yields."""

    @abc.abstractmethod
    def _delivered(self, taken: Taken | None) -> None:
        """Note which batch is yielded now, and where lanes stand behind it; None at the end of the epoch."""

    # --- iteration ------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Begin an iteration; one that is still under way ends."""
        return self._begin()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Begin an iteration for ``async for``, which never blocks the event loop."""
        return self._begin()

    def _begin(self) -> _Iteration:
        supervisor = self._start()
        self._iteration += 1
        with supervisor.lock:
            self._behind.clear()
            self._begin_play(supervisor)
            self._counts = False
        number = self._iteration
        return _Iteration(functools.partial(self._take, number), functools.partial(self._wait, number))

    def _start(self) -> Supervisor:
        if self._closed:
            raise ClosedError("this loader is closed; make a new one")
        if self._supervisor is None:
            self._started = time.perf_counter()
            self._ring = Ring.create(self._slot_layout, self._slots)
            self._pin.pin(self._ring)
            job = Job(
                self._script,
                self._slot_layout,
                self._slots,
                self._first_lane,
                self._hosted,
                _LOGGER.getEffectiveLevel(),
            )
            supervisor = Supervisor(
                job,
                self._ring,
                self.num_workers,
                self._quarantine,
                most=self._most,
                on_death=self._on_worker_death,
            )
            try:
                supervisor.start()
            except BaseException:
                self._pin.unpin()
                raise
            self._supervisor = supervisor
        return self._supervisor

    def _current(self, iteration: int) -> Supervisor:
        if self._closed or self._supervisor is None:
            raise ClosedError("the loader was closed during this iteration")
        if iteration != self._iteration:
            raise ClosedError("another iteration of this loader was begun; only one can be under way")
        if not self._counts:
            with self._supervisor.lock:
                self._asked(self._supervisor)
            self._counts = True
        return self._supervisor

    def _take(self, iteration: int) -> Any:
        """Return the next item of an iteration, waiting for it, or _END."""
        supervisor = self._current(iteration)
        while (batch := self._pop(supervisor)) is _NOT_READY:
            supervisor.wait(self._timeout)
            self._current(iteration)
        if batch is None:
            self._delivered(None)
            return _END
        taken = self._behind.popleft()
        item = self._collated(batch)
        self._delivered(taken)
        return item

    def _pop(self, supervisor: Supervisor) -> Any:
        """Return the next batch, None at the end of the epoch, or _NOT_READY."""
        with supervisor.lock:
            if self._feed is not None:
                return self._feed.next(supervisor) if self._feed.has_next or supervisor.ready else _NOT_READY
            if not supervisor.ready:
                return _NOT_READY
            grant = supervisor.pop()
            return None if grant is None else self._batch(grant)

    async def _wait(self, iteration: int) -> None:
        """Wait, without blocking the event loop, until the next item can be had at once."""
        supervisor = self._current(iteration)
        wait = supervisor.start_wait(self._timeout)
        try:
            while True:
                with supervisor.lock:
                    if supervisor.ready or (supervisor.poll() and supervisor.ready):
                        return
                    wait.check()
                with anyio.move_on_after(wait.remaining()):
                    await anyio.wait_readable(supervisor.fileno())
                self._current(iteration)
        finally:
            supervisor.record_wait(wait)

    def _batch(self, grant: Grant) -> SlotBatch:
        """Wrap a whole slot: as a view, or as a copy if the user holds so many that the workers would starve."""
        supervisor, ring = self._supervisor, self._ring
        assert supervisor is not None
        assert ring is not None
        memory: Any = ring.lease(grant.slot)
        if supervisor.leased > self._spare:
            memory = copy_memory(memory)
            supervisor.reclaim()
            self._copied += 1
        self._batches += 1
        self._behind.append(supervisor.last)
        return self._wrap(grant, memory)

    # --- life -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers. Batches that are still held stay valid. Safe to call again."""
        self._closed = True
        if self._feed is not None:
            self._feed.close()
        self._pin.unpin()
        if self._supervisor is not None:
            self._supervisor.close()

    def __enter__(self) -> Self:
        """Use as a context manager: closed at its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def stats(self) -> LoaderStats:
        """Say what was delivered, how long the consumer waited and for which lane, and where each lane stands."""
        supervisor, ring = self._supervisor, self._ring
        seconds = time.perf_counter() - self._started if self._started else 0.0
        steps = self._batches * self._slot_layout.lanes * (self._slot_layout.window or 1)
        waited = supervisor.wait_seconds if supervisor else 0.0
        lanes: tuple[LaneStats, ...] = ()
        if supervisor is not None and ring is not None:
            ahead = supervisor.rows_ahead
            lanes = tuple(
                LaneStats(
                    self._first_lane + lane,
                    self._script.streams[row[Status.STREAM]].key if row[Status.STAGE] != Status.IDLE else None,
                    row[Status.STEP],
                    Status.STAGES[row[Status.STAGE]],
                    ahead[lane],
                    supervisor.waited_for.get(lane, 0.0),
                )
                for lane, row in enumerate(ring.status.tolist())
            )
        return LoaderStats(
            batches=self._batches,
            steps=steps,
            bytes=self._batches * self._slot_layout.data_bytes,
            seconds=seconds,
            steps_per_second=steps / seconds if seconds else 0.0,
            wait_seconds=waited,
            wait_share=waited / seconds if seconds else 0.0,
            ring_bytes=Ring.size(self._slot_layout, self._slots),
            slots=self._slots,
            leased=supervisor.leased if supervisor else 0,
            copied=self._copied,
            restarts=supervisor.casualties.restarts if supervisor else 0,
            lanes=lanes,
        )


class _Iteration:
    """One pass through an epoch: `take` returns its next item or _END, `wait` awaits until that needs no waiting."""

    def __init__(self, take: Callable[[], Any], wait: Callable[[], Awaitable[None]]) -> None:
        self._take, self._wait = take, wait
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        self._over = True  # unless a batch comes
        item = self._take()
        if item is _END:
            raise StopIteration
        self._over = False
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self._over:
            await self._wait()
        try:
            return self.__next__()
        except StopIteration:
            raise StopAsyncIteration from None


def check_arguments(*, num_workers: int, timeout: float | None) -> None:
    """Refuse what no loader can work with.

    Raises:
        ConfigError: it says which argument, and what it may be.
    """
    if num_workers < 0:
        raise ConfigError(f"num_workers is 0 or more, got {num_workers}")
    if timeout is not None and timeout < 0:
        raise ConfigError(f"timeout is in seconds, 0 or None for no limit, got {timeout}")


def share(lanes: int, workers: int) -> list[range]:
    """Deal rows to workers as evenly as can be, in order; workers beyond the lanes are not started."""
    workers = min(workers, lanes)
    bounds = [lanes * number // workers for number in range(workers + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]
