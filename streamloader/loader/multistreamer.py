"""The iterator of temporally coherent batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import anyio.from_thread

from streamloader.engine.lane import StreamScript
from streamloader.engine.plan import Switch, Tail, make_plan
from streamloader.engine.quarantine import Quarantined
from streamloader.engine.ring import SlotLayout
from streamloader.engine.supervisor import OnDeath
from streamloader.engine.workload import Place, Taken
from streamloader.errors import ConfigError, LengthUnknown
from streamloader.loader.base import SPARE, Loader, check_arguments, share
from streamloader.loader.batch import Batch, BatchSpec
from streamloader.loader.distributed import rank_and_world
from streamloader.loader.envstreamer import Dims, EnvStreamer
from streamloader.loader.state import Origin, make_state, read_state
from streamloader.stream_table import StreamTable
from streamloader.values import StreamInfo, as_fields

if TYPE_CHECKING:
    import torch

    from streamloader.engine.supervisor import Supervisor
    from streamloader.engine.workload import Grant
    from streamloader.streams.base import StreamDataset

__all__ = ["MultiStreamer"]

_SMALL_RING = 1 << 20  # bytes that a ring may take to hand over tiny batches many at a time
_AHEAD, _MOST_AHEAD = 2, 128


class MultiStreamer(Loader):
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
            A worker process that stands still until then is killed, and ``on_worker_death`` says what follows.
        rank, world_size: host the lanes ``[rank * B, (rank + 1) * B)`` of ``world_size * B``. Default: those of
            torch.distributed if it is initialised, else of the variables RANK and WORLD_SIZE, else 0 of 1.
        on_error: what becomes of a stream that fails. ``"raise"``: the batch that it spoils is an error. ``"skip"``:
            its lane goes on with its next stream, and :attr:`quarantined` names it.
        on_worker_death: ``"restart"``: another process goes on where it stopped, and batches are those that would have
            come. A stream at which its worker dies twice is quarantined (``on_error="skip"``), or a
            :class:`CorruptStream`. ``"raise"``: :class:`WorkerDied`.

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
        on_error: Literal["raise", "skip"] = "raise",
        on_worker_death: OnDeath = "restart",
    ) -> None:
        rank, world_size = rank_and_world(rank, world_size)
        check_arguments(num_workers=num_workers, timeout=timeout)
        if on_error not in ("raise", "skip"):
            raise ConfigError(f'on_error is "raise" or "skip", got {on_error!r}')
        if on_worker_death not in get_args(OnDeath):
            raise ConfigError(f"on_worker_death is one of {get_args(OnDeath)}, got {on_worker_death!r}")
        if prefetch_factor is not None and prefetch_factor < 1:
            raise ConfigError(f"prefetch_factor is 1 or more, got {prefetch_factor}")
        self.dataset, self.batch_size, self.window = dataset, batch_size, window
        table = _index(dataset)
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
        hosted = range(rank * batch_size, (rank + 1) * batch_size)
        self._origin = Origin.of(dataset, table, self._plan, hosted, on_error)
        self._collate = collate_fn
        self._next = Place(0, 0)  # where the next iteration begins
        self._ahead: Place | None = None  # where the last iteration was to begin
        self._begun: Place | None = None  # where the iteration began that is under way
        self._last: Taken | None = None  # what it yielded last
        slots = SlotLayout(as_fields(dataset.fields), batch_size, window)
        ahead = _ahead(slots.nbytes, prefetch_factor)
        super().__init__(
            StreamScript(dataset, table, self._plan, on_error, fixed=world_size > 1),
            slots,
            BatchSpec(slots, layout),
            hosted=share(batch_size, max(1, num_workers)),
            num_workers=num_workers,
            ahead=ahead,
            spare=max(SPARE, ahead // 2),
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
        batchsize: int,
        max_q_size: int = 2,
        num_workers: int = 0,
        collate_fn: Callable[[dict[str, torch.Tensor], list[Any]], Any] | None = None,
        *,
        seed: int = 0,
        pin_memory: bool = False,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> EnvStreamer:
        """Stream what a vectorised producer makes: each worker has one, and it fills the rows of all its lanes itself.

        See :class:`EnvStreamer`, which this returns, for the arguments.
        """
        return EnvStreamer(
            make_env,
            array_dims,
            batchsize,
            max_q_size,
            num_workers,
            collate_fn,
            seed=seed,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
            rank=rank,
            world_size=world_size,
        )

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
        """Choose the epoch of the next iteration, or of one that was not asked for a batch yet.

        Without it each iteration plays the next epoch. After :meth:`load_state_dict` the epoch of the state keeps its
        place; any other begins at its beginning.
        """
        if epoch < 0:
            raise ConfigError(f"an epoch is 0 or more, got {epoch}")
        if epoch != self._next.epoch:
            self._next = Place(epoch, 0)

    @property
    def batch_sampler(self) -> _BatchSampler:
        """Where trainers look for whom to tell the epoch: ``loader.batch_sampler.sampler`` is the loader.

        There is no ``loader.sampler``: Lightning's ``overfit_batches`` rebuilds whatever has one.
        """
        return _BatchSampler(self)

    # --- resume ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Describe where the loader stands: behind the last batch that was yielded, not the last one that was made.

        Behind the last batch of an epoch that is the end of this epoch; once the iteration is over it is the beginning
        of the next one. The state is a dict of plain JSON values, of a size in the order of the lanes of this rank,
        whose lanes it holds under their global numbers.
        """
        if self._last is not None:
            grant, cursors = self._last
            place = Place(grant.epoch, grant.batch + 1, cursors)
        else:
            place = self._next if self._begun is None else self._begun
        return make_state(self._origin, place, self._quarantine.entries)

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Have the next iteration go on behind the batch after which `state` was saved, and later ones play on.

        The batches are those that would have come, bit for bit, with any number of workers and of ranks that divides
        the global lanes. An iteration that is under way ends. Nothing is read before the next one begins, and then
        nothing that was consumed, but for streams that cannot seek.

        Args:
            state: what :meth:`state_dict` returned, on this rank or merged (:func:`streamloader.merge_states`), or a
                list of what it returned on all ranks. Lanes that it does not hold are placed by the declared lengths.

        Raises:
            StateError: it belongs to other data, another seed or another shape, or is no state; nothing is changed.
        """
        place, quarantined = read_state(state, self._origin)
        self._iteration += 1  # the one that is under way finds that it is over
        self._quarantine.replace(quarantined)
        self._next, self._begun, self._last = place, None, None

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """Streams that were left in this epoch and the one before, because they failed or killed their worker."""
        return self._quarantine.entries

    def _begin_play(self, supervisor: Supervisor) -> None:
        if self._feed is not None:
            self._feed.restart()
        if self._ahead is not self._next:  # else its first batch is being made
            supervisor.begin(self._next)
            self._ahead = self._next

    def _asked(self, supervisor: Supervisor) -> None:
        place = self._next
        if self._ahead is not place:  # set_epoch came in between
            supervisor.begin(place)
            self._ahead = place
        self._begun, self._last, self._next = place, None, Place(place.epoch + 1, 0)

    def _delivered(self, taken: Taken | None) -> None:
        self._last = taken
        if taken is None:
            self._begun = None

    def _wrap(self, grant: Grant, memory: Any) -> Batch:
        return Batch(self._spec, memory, grant.epoch, grant.batch)

    def _collated(self, batch: Any) -> Any:
        return batch if self._collate is None else self._collate(batch)

    def __repr__(self) -> str:
        """Name what is streamed, and how."""
        return (
            f"MultiStreamer({type(self.dataset).__name__} of {len(self.streams)} streams, "
            f"batch_size={self.batch_size}, window={self.window}, num_workers={self.num_workers})"
        )


class _BatchSampler(NamedTuple):
    """What DataLoader's attribute of that name is asked for by those who want to set the epoch: its ``sampler``."""

    sampler: MultiStreamer


def _index(dataset: StreamDataset) -> StreamTable:
    """Index the data set, also where an event loop is running in this thread (a notebook)."""
    with anyio.from_thread.start_blocking_portal() as portal:
        return StreamTable.of(portal.call(dataset.index))


def _ahead(slot_bytes: int, wanted: int | None) -> int:
    """Batches to be made ahead."""
    if wanted is not None:
        return wanted
    return max(_AHEAD, min(_MOST_AHEAD, _SMALL_RING // slot_bytes))
