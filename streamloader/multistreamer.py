"""The iterator of temporally coherent batches."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.from_thread

from streamloader.batch import Batch, BatchSpec, copy_memory
from streamloader.device import Pinning, make_feed
from streamloader.engine.lane import Grant, Script
from streamloader.engine.plan import Switch, Tail, make_plan
from streamloader.engine.ring import Ring, SlotLayout, Status
from streamloader.engine.supervisor import Supervisor
from streamloader.engine.worker import Job
from streamloader.errors import ClosedError, ConfigError, LengthUnknown
from streamloader.stats import LaneStats, LoaderStats
from streamloader.values import StreamInfo, as_fields

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from streamloader.streams.base import StreamDataset

__all__ = ["MultiStreamer"]

_LOGGER = logging.getLogger("streamloader")
_SPARE = 2  # slots that the user may hold without slowing anything down
_SMALL_RING = 1 << 20  # bytes that a ring may take to hand over tiny batches many at a time
_AHEAD, _MOST_AHEAD = 2, 128
_END: Final = object()


class MultiStreamer:
    """Streams a data set in temporally coherent batches.

    Row i of batch k + 1 carries on where row i of batch k stopped; ``batch.reset`` is True where a new stream begins.
    Equal arguments give equal batches, bit for bit, for any number of workers.

    Args:
        dataset: the streams.
        batch_size: lanes B, the rows of a batch.
        window: steps T of a batch.
        num_workers: processes that fill the batches; 0 does it in a thread of this process.
        prefetch_factor: batches that the workers are ahead of the consumer. The default is 2, and more for batches so
            small that handing them over one by one would cost more than making them.
        seed: of the order and of all augmentation.
        shuffle: whether each epoch has an order of its own; False keeps the order of the data set.
        switch: ``"pack"``: where a stream ends in a window the next one starts at once. ``"align"``: streams start on
            window borders, the rest of a window is padding.
        tail: ``"pad"``: every step once, finished lanes are padded until the last one ends. ``"drop"``: stop with the
            first lane that ends. ``"cycle"``: finished lanes start over until the last one ends, marked in
            ``batch.repeat``.
        layout: axis letters into which image-like fields are turned, as views; beginning with ``"TB"`` it makes every
            array time-first; None leaves (B, T, ...) as stored.
        collate_fn: called in this process with each finished :class:`Batch`; the iteration yields what it returns.
        pin_memory: page-lock the ring, so that copies to a GPU start from it. Without a GPU it warns and does nothing,
            as with DataLoader.
        device: yield batches on this device; copies to a CUDA device run on a stream of their own ahead of the step.
        timeout: seconds to wait for one batch before :class:`LoaderTimeout`; 0 (as with DataLoader) or None: no limit.
        rank, world_size: host the lanes ``[rank * B, (rank + 1) * B)`` of ``world_size * B``; default 0 of 1.

    Raises:
        ConfigError: arguments that cannot work.
        RingTooLarge: the ring does not fit into free memory.
        StreamloaderError: the data set could not be indexed.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        batch_size: int,
        window: int,
        *,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        switch: Switch = "pack",
        tail: Tail = "pad",
        layout: str | None = "BTCHW",
        collate_fn: Callable[[Batch], Any] | None = None,
        pin_memory: bool = False,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank, world_size = rank or 0, 1 if world_size is None else world_size
        _check(num_workers, prefetch_factor, rank, world_size, timeout)
        self.dataset, self.batch_size, self.window = dataset, batch_size, window
        self.num_workers = num_workers
        self.streams: Sequence[StreamInfo] = _index(dataset)
        self._plan = make_plan(
            [info.length for info in self.streams],
            lanes=batch_size * world_size,
            window=window,
            seed=seed,
            shuffle=shuffle,
            switch=switch,
            tail=tail,
        )
        self._slot_layout = SlotLayout(as_fields(dataset.fields), batch_size, window)
        self._spec = BatchSpec(self._slot_layout, layout)
        self._feed = make_feed(device, self._batch)
        self._pin = Pinning(wanted=pin_memory or self._feed is not None)
        ahead = _ahead(self._slot_layout.nbytes, prefetch_factor)
        self._spare = max(_SPARE, ahead // 2) + (self._feed is not None)
        self._slots = ahead + self._spare
        Ring.check(self._slot_layout, self._slots)
        self._first_lane = rank * batch_size
        self._collate = collate_fn
        self._timeout = timeout or None
        self._ring: Ring | None = None
        self._supervisor: Supervisor | None = None
        self._closed = False
        self._epoch = 0  # of the next iteration
        self._iteration = 0
        self._started = 0.0
        self._batches = self._copied = 0

    # --- iteration ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of an epoch: the same for every seed, rank and number of workers.

        Raises:
            LengthUnknown: a stream does not know its length before it is played.
        """
        if self._plan.batches is None:
            raise LengthUnknown("some streams do not know their length: only playing an epoch tells its batches")
        return self._plan.batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. Without it each iteration plays the next epoch."""
        if epoch < 0:
            raise ConfigError(f"an epoch is 0 or more, got {epoch}")
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch; an iteration that is still under way ends."""
        return self._begin()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Begin an epoch for ``async for``, which never blocks the event loop."""
        return self._begin()

    def _begin(self) -> _Iteration:
        supervisor = self._start()
        self._iteration += 1
        if self._feed is not None:
            self._feed.restart()
        with supervisor.lock:
            supervisor.begin(self._epoch)
        self._epoch += 1
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
                Script(self.dataset, self.streams, self._plan),
                self._slot_layout,
                self._slots,
                self._first_lane,
                _share(self.batch_size, max(1, self.num_workers)),
                _LOGGER.getEffectiveLevel(),
            )
            supervisor = Supervisor(job, self._ring, self.num_workers)
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
        return self._supervisor

    def _take(self, iteration: int) -> Any:
        """Return the next item of an iteration, waiting for it, or _END."""
        supervisor = self._current(iteration)
        with supervisor.lock:
            if self._feed is not None:
                batch = self._feed.next(supervisor, self._timeout)
            else:
                grant = supervisor.take(self._timeout)
                batch = None if grant is None else self._batch(grant)
        if batch is None:
            return _END
        return batch if self._collate is None else self._collate(batch)

    async def _wait(self, iteration: int) -> None:
        """Wait, without blocking the event loop, until the next item can be had at once."""
        supervisor = self._current(iteration)
        started, late = time.perf_counter(), None
        try:
            while True:
                with supervisor.lock:
                    if supervisor.ready or (supervisor.poll() and supervisor.ready):
                        return
                late = supervisor.latest_lane() if late is None else late
                left = None if self._timeout is None else started + self._timeout - time.perf_counter()
                if left is not None and left <= 0:
                    raise supervisor.timed_out(time.perf_counter() - started)
                with anyio.move_on_after(left):
                    await anyio.wait_readable(supervisor.fileno())
                self._current(iteration)
        finally:
            if late is not None:
                supervisor.note_wait(late, time.perf_counter() - started)

    def _batch(self, grant: Grant) -> Batch:
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
        return Batch(self._spec, memory, grant.epoch, grant.batch)

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

    def __repr__(self) -> str:
        """Name what is streamed, and how."""
        return (
            f"MultiStreamer({type(self.dataset).__name__} of {len(self.streams)} streams, "
            f"batch_size={self.batch_size}, window={self.window}, num_workers={self.num_workers})"
        )

    def stats(self) -> LoaderStats:
        """Say what was delivered, how long the consumer waited and for which lane, and where each lane stands."""
        supervisor, ring = self._supervisor, self._ring
        seconds = time.perf_counter() - self._started if self._started else 0.0
        steps = self._batches * self.batch_size * self.window
        waited = supervisor.wait_seconds if supervisor else 0.0
        lanes: tuple[LaneStats, ...] = ()
        if supervisor is not None and ring is not None:
            ahead = supervisor.rows_ahead
            lanes = tuple(
                LaneStats(
                    self._first_lane + lane,
                    self.streams[row[Status.STREAM]].key if row[Status.STAGE] != Status.IDLE else None,
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


def _index(dataset: StreamDataset) -> Sequence[StreamInfo]:
    """Index the data set, also where an event loop is running in this thread (a notebook)."""
    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(dataset.index)


def _check(num_workers: int, prefetch_factor: int | None, rank: int, world_size: int, timeout: float | None) -> None:
    if num_workers < 0:
        raise ConfigError(f"num_workers is 0 or more, got {num_workers}")
    if prefetch_factor is not None and prefetch_factor < 1:
        raise ConfigError(f"prefetch_factor is 1 or more, got {prefetch_factor}")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"rank must be in 0 .. world_size - 1, got rank {rank} of {world_size}")
    if timeout is not None and timeout < 0:
        raise ConfigError(f"timeout is in seconds, 0 or None for no limit, got {timeout}")


def _ahead(slot_bytes: int, wanted: int | None) -> int:
    """Batches to be made ahead."""
    if wanted is not None:
        return wanted
    return max(_AHEAD, min(_MOST_AHEAD, _SMALL_RING // slot_bytes))


def _share(lanes: int, workers: int) -> list[range]:
    """Deal rows to workers as evenly as can be, in order; workers beyond the lanes are not started."""
    workers = min(workers, lanes)
    bounds = [lanes * number // workers for number in range(workers + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]
