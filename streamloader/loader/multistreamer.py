"""Loader of temporally coherent batches."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import anyio.from_thread
from typing_extensions import override

from streamloader.arguments import check_callable, check_choice, check_flag, check_integer, check_seconds
from streamloader.common.cores import threads_per_lane
from streamloader.distributed import resolve_rank
from streamloader.engine.group_env import find_group_arguments
from streamloader.engine.lane import StreamWorkload
from streamloader.engine.plan import Switch, Tail, make_plan
from streamloader.engine.quarantine import Quarantined
from streamloader.engine.ring import Ring, SlotLayout
from streamloader.engine.supervisor import OnDeath
from streamloader.engine.workload import ConsumedBatch, EpochPosition
from streamloader.errors import ConfigError, LengthUnknown, RingTooLarge
from streamloader.loader.base import SPARE_SLOTS, Loader, split_lanes
from streamloader.loader.batch import Batch, BatchSpec
from streamloader.loader.envstreamer import Dims, EnvStreamer
from streamloader.loader.groupstreamer import GroupStreamer
from streamloader.loader.gym.streamer import GymStreamer
from streamloader.loader.state import LoaderIdentity, make_state, read_state
from streamloader.loader.system_limits import name_system_limits
from streamloader.stream_table import StreamTable
from streamloader.streams.base import parse_in_processes, skip_unreadable
from streamloader.values import StreamInfo, as_fields

if TYPE_CHECKING:
    from streamloader.engine.supervisor import Supervisor
    from streamloader.engine.workload import Grant
    from streamloader.loader.plan_report import PlanReport
    from streamloader.streams.base import StreamDataset

__all__ = ["MultiStreamer", "plan_dataset"]

_MIN_AHEAD, _MAX_AHEAD = 2, 128
_SMALL_RING_BYTES = 1 << 20  # for batches so small that several are delivered at a time


class MultiStreamer(Loader):
    """Streams a dataset in temporally coherent batches.

    Row i of batch k + 1 continues where row i of batch k stopped. ``batch.reset`` is True where a new stream starts.
    Equal arguments give equal batches, bit for bit, for any number of workers.

    Args:
        dataset: Streams to load.
        batch_size: Number of lanes B, the rows of a batch.
        window: Number of steps T in a batch.
        num_workers: Number of worker processes that fill the batches. 0 fills them in a thread of this process.
        prefetch_factor: Number of batches that workers prepare ahead of the consumer. Defaults to 2, and to more for
            batches that are cheaper to fill than to deliver one by one.
        seed: Seed of the stream order and of all augmentation.
        shuffle: Whether each epoch has its own order. False keeps the order of the dataset.
        switch: Start of a lane's next stream. ``"pack"``: immediately, within the same window. ``"align"``: on the next
            window boundary, with padding before it.
        tail: End of an epoch. ``"pad"``: every step is delivered once, and finished lanes are padded until the last
            lane ends. ``"drop"``: the epoch stops with the first lane that ends. ``"cycle"``: finished lanes start over
            until the last lane ends, and these steps are marked in ``batch.repeat``.
        layout: Axis letters, such as ``"BTHWC"``. Image-like fields are permuted to this layout, as views. A layout
            that starts with ``"TB"`` makes every array time-first. None keeps (B, T, ...) as stored.
        collate_fn: Function called in this process with each complete :class:`Batch`. The iteration yields its return
            value. Defaults to the batch itself.
        pin_memory: Whether to page-lock the ring, so that copies to a GPU start from it. Without a GPU this only warns,
            as in DataLoader.
        device: Device of the yielded batches. Copies to a CUDA device run on a side stream, ahead of the training step.
        timeout: Maximum seconds to wait for a batch before :class:`LoaderTimeout`. 0 (as in DataLoader) or None
            disables the limit. A worker process that makes no progress until the timeout is killed and replaced, twice
            at the same place, and the timeout starts again each time. Then the error is raised, or, with
            ``on_error="skip"``, the stream is left out and listed in :attr:`timed_out`.
        rank: Rank of this process, which hosts the lanes ``[rank * B, (rank + 1) * B)`` of ``world_size * B``. Defaults
            to the rank in torch.distributed if that is initialized, then to the variable RANK, then to 0.
        world_size: Number of ranks. Defaults to that of torch.distributed, then to the variable WORLD_SIZE, then to 1.
        on_error: Handling of a stream that fails. ``"raise"``: its error takes the place of the batch that it affects.
            ``"skip"``: its lane continues with the next stream, and :attr:`quarantined` lists the failed one. A dataset
            of videos also leaves out files that cannot be indexed, and lists them in ``dataset.skipped``.
        on_worker_death: Handling of a worker process that dies. ``"restart"``: another process continues where it
            stopped, and the batches do not change. A stream that kills its worker twice is quarantined
            (``on_error="skip"``), or raises :class:`CorruptStream`. ``"raise"``: :class:`WorkerDied` is raised.

    Raises:
        ConfigError: If an argument is invalid.
        RingTooLarge: If the ring does not fit into free memory.
        StreamloaderError: If the dataset could not be indexed.
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
        on_error: Literal["raise", "skip"] = "raise",
        on_worker_death: OnDeath = "restart",
    ) -> None:
        rank, world_size = resolve_rank(rank, world_size)
        batch_size, window = check_integer("batch_size", batch_size), check_integer("window", window)
        seed, num_workers = check_integer("seed", seed), check_integer("num_workers", num_workers, 0)
        check_seconds("timeout", timeout)  # before the dataset is indexed
        if prefetch_factor is not None:
            prefetch_factor = check_integer("prefetch_factor", prefetch_factor, 1)
        shuffle, pin_memory = check_flag("shuffle", shuffle), check_flag("pin_memory", pin_memory)
        check_callable("collate_fn", collate_fn)
        check_choice("on_error", on_error, ("raise", "skip"))
        check_choice("on_worker_death", on_worker_death, get_args(OnDeath))
        self.dataset, self.batch_size, self.window = dataset, batch_size, window
        table = _index_dataset(dataset, in_processes=num_workers > 0, skip=on_error == "skip")
        self.streams: Sequence[StreamInfo] = table
        self._plan = make_plan(
            table.lengths,
            lanes=batch_size * world_size,
            window=window,
            seed=seed,
            shuffle=shuffle,
            switch=switch,
            tail=tail,
        )
        hosted_lanes = range(rank * batch_size, (rank + 1) * batch_size)
        self._identity = LoaderIdentity.of_loader(dataset, table, self._plan, hosted_lanes, on_error)
        self._collate_fn = collate_fn
        self._next_position = EpochPosition(0, 0)
        self._prepared_position: EpochPosition | None = None  # start of the batches that workers prepare
        self._current_position: EpochPosition | None = None  # start of the current iteration
        self._last_consumed: ConsumedBatch | None = None  # last batch of the current iteration
        slots = SlotLayout(as_fields(dataset.fields), batch_size, window)
        ahead = _batches_ahead(slots.nbytes, prefetch_factor)
        super().__init__(
            StreamWorkload(
                dataset,
                table,
                self._plan,
                on_error,
                fixed_length=world_size > 1,
                decoder_threads=threads_per_lane(batch_size),
            ),
            slots,
            BatchSpec(slots, layout),
            worker_rows=split_lanes(batch_size, max(1, num_workers)),
            num_workers=num_workers,
            ahead=ahead,
            spare=_spare_slots(ahead),
            exact=False,
            first_lane=rank * batch_size,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
            on_worker_death=on_worker_death,
        )

    @staticmethod
    def from_env(
        make_env: Callable[..., Any],
        array_dims: Mapping[str, Dims] | Dims,
        batchsize: int = 8,
        max_q_size: int = 4,
        num_workers: int = 1,
        collate_fn: Callable[..., Any] | None = None,
        epoch: int = 0,
        dtype: Any = None,
        main_thread: bool = False,
        pin_memory: bool = False,
        *,
        seed: int = 0,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> EnvStreamer:
        """Stream the output of vectorized producers. Each worker runs one, which fills the rows of all its lanes.

        The parameters of `make_env` tell two kinds of producers apart. With a parameter `worker_id`, `num_workers` or
        `num_streams`, it creates group envs, which have epochs: see :class:`GroupStreamer`. Otherwise, it is called as
        ``make_env(lanes, rng)``, and its envs are endless: see :class:`EnvStreamer`. These classes document the
        arguments. `epoch` is for group envs only. `main_thread` is accepted, and has no effect, for programs that pass
        it to another loader.
        """
        del main_thread
        streamer: Callable[..., EnvStreamer] = EnvStreamer
        if find_group_arguments(make_env):
            streamer = functools.partial(GroupStreamer, epoch=epoch)
        elif epoch:
            raise ConfigError(
                f"epoch={epoch} needs a make_env with the parameters worker_id, num_workers and num_streams"
            )
        return streamer(
            make_env,
            array_dims,
            batchsize,
            max_q_size,
            num_workers,
            collate_fn,
            dtype=dtype,
            seed=seed,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
            rank=rank,
            world_size=world_size,
        )

    @staticmethod
    def from_gym(
        make_env: str | Callable[..., Any],
        batchsize: int,
        window: int,
        num_workers: int = 0,
        policy: Any = None,
        *,
        max_q_size: int = 2,
        autoreset_mode: Any = None,
        final_observation: bool | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        reward_dtype: str = "float32",
        seed: int = 0,
        layout: str | None = None,
        collate_fn: Callable[[Batch], Any] | None = None,
        pin_memory: bool = False,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> GymStreamer:
        """Stream windows of steps of Gymnasium environments: observations, actions, rewards and ends of episodes.

        :class:`GymStreamer` documents the arguments, and what each row of a batch holds.
        """
        return GymStreamer(
            make_env,
            batchsize,
            window,
            num_workers,
            policy,
            max_q_size=max_q_size,
            autoreset_mode=autoreset_mode,
            final_observation=final_observation,
            env_kwargs=env_kwargs,
            reward_dtype=reward_dtype,
            seed=seed,
            layout=layout,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
            rank=rank,
            world_size=world_size,
        )

    # --- iteration ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of batches in an epoch. It is the same for every seed, rank and number of workers.

        Raises:
            LengthUnknown: If a stream does not declare its length.
        """
        if self._plan.batches is None:
            raise LengthUnknown("the number of batches is unknown, because some streams do not declare their length")
        return self._plan.batches

    def plan_report(self, epoch: int = 0) -> PlanReport:
        """Return what an epoch will be like: batches, padding, loads of the lanes, memory, bytes to be read.

        The report is computed from the plan and the lengths of the streams. It starts no worker, and opens no stream.

        Args:
            epoch: Number of the epoch, 0 or more. Most figures are the same in each epoch, see :class:`PlanReport`.
        """
        from streamloader.loader.epoch_planning import report_plan

        epoch = check_integer("epoch", epoch, 0)
        table, ahead = self._identity.table, self._slot_count - self._spare
        sources = self.dataset.source_sizes(table)
        return report_plan(
            self._plan, table, sources, self._slot_layout, ahead=ahead, slots=self._slot_count, epoch=epoch
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, or of the current one if none of its batches was requested yet.

        Without this call, each iteration runs the next epoch. After :meth:`load_state_dict`, setting the epoch of the
        loaded state keeps the position in it. Any other epoch starts at its first batch.

        Args:
            epoch: Number of the epoch, 0 or more.
        """
        epoch = check_integer("epoch", epoch, 0)
        if epoch != self._next_position.epoch:
            self._next_position = EpochPosition(epoch, 0)
        self._current_position = self._last_consumed = None  # a state that is saved now is that of this epoch

    @property
    def batch_sampler(self) -> _BatchSampler:
        """Object whose ``sampler`` is this loader, for trainers that call ``loader.batch_sampler.sampler.set_epoch``.

        There is no attribute ``sampler``, because Lightning's ``overfit_batches`` rebuilds loaders that have one.
        """
        return _BatchSampler(self)

    # --- resume ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded, independent of batches that workers have prepared.

        After the last batch of an epoch, the position is the end of that epoch. Once the iteration has ended, it is the
        start of the next epoch, and after :meth:`set_epoch` that of the epoch that was set, until another batch is
        yielded. The state is a dict of plain JSON values. Its size is proportional to the number of
        lanes of this rank, which it contains under their global numbers.
        """
        if self._last_consumed is not None:
            grant, cursors = self._last_consumed
            position = EpochPosition(grant.epoch, grant.batch + 1, cursors)
        else:
            position = self._next_position if self._current_position is None else self._current_position
        return make_state(self._identity, position, self._quarantine.entries)

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Continue after the batch at which `state` was saved, from the next iteration on.

        The following batches are the same, bit for bit, with any number of workers, and with any number of ranks that
        divides the global lanes. An iteration that is in progress ends. Nothing is read before the next iteration
        starts. Data that was already consumed is not read again, except for streams that cannot seek.

        Args:
            state: State from :meth:`state_dict` of this rank, merged state of several ranks
                (:func:`streamloader.merge_states`), or list of the states of all ranks. The positions of lanes that
                it does not contain are computed from the declared lengths.

        Raises:
            StateError: If the state is damaged, or belongs to other data, another seed or another shape. The loader is
                then unchanged.
        """
        position, quarantined = read_state(state, self._identity)
        self._iteration += 1  # ends the current iteration
        self._pending = None
        self._quarantine.replace(quarantined)
        self._next_position, self._current_position, self._last_consumed = position, None, None

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """Streams that were skipped in this epoch and the previous one, because they failed or killed their worker."""
        return tuple(entry for entry in self._quarantine.entries if not entry.timed_out)

    @property
    def timed_out(self) -> tuple[Quarantined, ...]:
        """Streams that were left out in this epoch and the previous one, because they made no progress.

        That needs ``on_error="skip"``, three workers in a row that did not get beyond the same batch within `timeout`,
        and a last one that had the processor and did not use it. That is no sign of damage.
        """
        return tuple(entry for entry in self._quarantine.entries if entry.timed_out)

    @override
    def _prepare_iteration(self, supervisor: Supervisor) -> None:
        self._discard_taken_batches()
        if self._prepared_position is not self._next_position:  # otherwise its first batch is in preparation
            supervisor.start_at(self._next_position)
            self._prepared_position = self._next_position

    @override
    def _on_first_request(self, supervisor: Supervisor) -> None:
        position = self._next_position
        if self._prepared_position is not position:  # set_epoch was called in the meantime
            supervisor.start_at(position)
            self._prepared_position = position
        self._current_position, self._last_consumed, self._next_position = (
            position,
            None,
            EpochPosition(position.epoch + 1, 0),
        )

    @override
    def _on_delivery(self, consumed: ConsumedBatch | None) -> None:
        self._last_consumed = consumed
        if consumed is None:
            self._current_position = None

    @override
    def _make_batch(self, grant: Grant, memory: Any) -> Batch:
        return Batch(self._spec, memory, grant.epoch, grant.batch)

    @override
    def _collate_batch(self, batch: Any) -> Any:
        return batch if self._collate_fn is None else self._collate_fn(batch)

    def __repr__(self) -> str:
        """Return the dataset and the settings."""
        return (
            f"MultiStreamer({type(self.dataset).__name__} of {len(self.streams)} streams, "
            f"batch_size={self.batch_size}, window={self.window}, num_workers={self.num_workers})"
        )


class _BatchSampler(NamedTuple):
    """Substitute for DataLoader's ``batch_sampler``, which trainers use to reach the sampler and its ``set_epoch``."""

    sampler: MultiStreamer


def _index_dataset(dataset: StreamDataset, *, in_processes: bool, skip: bool) -> StreamTable:
    """Index the dataset. Also works in a thread that runs an event loop, such as in a notebook."""
    with (
        name_system_limits("the dataset cannot be indexed"),
        anyio.from_thread.start_blocking_portal() as portal,
        parse_in_processes() if in_processes else contextlib.nullcontext(),
        skip_unreadable() if skip else contextlib.nullcontext(),
    ):
        return StreamTable.from_infos(portal.call(dataset.index))


def _batches_ahead(slot_bytes: int, prefetch_factor: int | None) -> int:
    """Return the number of batches that workers prepare ahead of the consumer."""
    if prefetch_factor is not None:
        return prefetch_factor
    return max(_MIN_AHEAD, min(_MAX_AHEAD, _SMALL_RING_BYTES // slot_bytes))


def _spare_slots(ahead: int) -> int:
    """Return the number of slots for batches that the user holds."""
    return max(SPARE_SLOTS, ahead // 2)


def plan_dataset(
    dataset: StreamDataset,
    batch_size: int,
    window: int,
    *,
    prefetch_factor: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    switch: Switch = "pack",
    tail: Tail = "pad",
    world_size: int = 1,
) -> PlanReport:
    """Index a dataset, and return :meth:`MultiStreamer.plan_report` of a loader with these arguments.

    No loader is created. So a ring that does not fit into the memory of this machine is a hint instead of an error.
    """
    from streamloader.loader.epoch_planning import report_plan

    batch_size, window, seed, world_size = (
        check_integer(name, value)
        for name, value in (
            ("batch_size", batch_size),
            ("window", window),
            ("seed", seed),
            ("world_size", world_size),
        )
    )
    if prefetch_factor is not None:
        prefetch_factor = check_integer("prefetch_factor", prefetch_factor, 1)
    table = _index_dataset(dataset, in_processes=True, skip=False)
    plan = make_plan(
        table.lengths,
        lanes=batch_size * world_size,
        window=window,
        seed=seed,
        shuffle=shuffle,
        switch=switch,
        tail=tail,
    )
    layout = SlotLayout(as_fields(dataset.fields), batch_size, window)
    ahead = _batches_ahead(layout.nbytes, prefetch_factor)
    slots = ahead + _spare_slots(ahead)
    hints = []
    try:
        Ring.check_free_memory(layout, slots)
    except RingTooLarge as error:
        hints.append(f"on this machine, {error.message}")
    return report_plan(plan, table, dataset.source_sizes(table), layout, ahead=ahead, slots=slots, hints=hints)
