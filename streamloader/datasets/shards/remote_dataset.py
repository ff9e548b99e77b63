"""Provide the samples of a data set of shards, as an iterable data set for DataLoader."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import cloudpickle
from typing_extensions import override

from streamloader.arguments import check_integer, check_options
from streamloader.datasets.shards.chain import ChainSource, OnError, SampleChain
from streamloader.datasets.shards.client import S3Client
from streamloader.datasets.shards.epoch import EpochPlayer
from streamloader.datasets.shards.iterations import IterationCounter
from streamloader.datasets.shards.lanes import SkippedSample
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.order import OrderSettings, SampleTail
from streamloader.datasets.shards.quality import ShuffleQuality, measure_epoch
from streamloader.datasets.shards.reader import SHARD_SAMPLES
from streamloader.datasets.shards.sample_set import SampleKind, SampleSet
from streamloader.datasets.shards.stages import (
    DecodeStage,
    MapStage,
    MapTupleStage,
    SelectStage,
    Stage,
    ToTupleStage,
    collate,
)
from streamloader.datasets.shards.state import NO_LANE, PlayedPart, PlayedStep, make_state, read_state
from streamloader.datasets.workers import get_dataloader_worker
from streamloader.errors import ConfigError, LengthUnknown, StateError
from streamloader.stores.search import Unreadable
from streamloader.torch_datasets import IterableDataset
from streamloader.values import Array

__all__ = ["RemoteDataset"]


class RemoteDataset(IterableDataset[Any]):
    """The samples of tar files in any store, shuffled, as WebDataset names them.

    A sample is a dict: ``{"__key__": "0001", "__url__": ADDRESS, "jpg": bytes, "cls": bytes}``. Each method of the
    chain returns a new data set::

        dataset = (
            sl.RemoteDataset("s3://bucket/folder")
            .decode("pil").to_tuple("jpg;png", "cls").map_tuple(preprocess, int).batched(64)
        )
        loader = DataLoader(dataset, num_workers=3, batch_size=None)

    Every sample is played exactly once an epoch, over all ranks and workers. The batches are the same for any number of
    workers; their order is the same for all that divide `lanes`. Each iteration plays another epoch, in another order.
    No process reads what another one plays, but for gaps of up to 64 KiB that save a request.

    The order is a pure function of the data set, the batch size, `seed` and the epoch. Where samples lie is known from
    the indexes beside the shards (``ShardWriter`` and ``index_shards`` write them), so the order needs no reading, and
    a saved state continues at any sample, with any number of workers.

    Args:
        client: Address of a folder, a pattern or a list of tar files, see
            :func:`streamloader.datasets.shards.make_index.open_shard_set`. Or a client from :func:`make_client`, with
            `bucket` and `folder`.
        bucket: Bucket, with a client.
        folder: Folder in the bucket, with a client.
        shuffle: Whether to shuffle. Defaults to True.
        seed: Seed of the order. Defaults to 0.
        buffer_size: Number of samples of a rank that are mixed with each other.
        buffer_bytes: Approximate size of these samples in bytes, which limits `buffer_size`. A 128th of it is read by
            one request, and shared by all lanes of the process.
        open_shards: Number of shards that are read in turn.
        lanes: Number of parts into which the samples of a rank are divided, and maximum number of workers of use.
            With 12, the order is the same for 0, 1, 2, 3, 4, 6 and 12 workers; take 24 for 8, and 48 for 16.
        tail: Rule for what does not divide evenly, see :class:`streamloader.datasets.shards.order.OrderSettings`.
            ``"once"`` plays every sample once. ``"drop"`` and ``"repeat"`` give all ranks equally many full batches, as
            DistributedDataParallel needs.
        rank: Number of this rank. Defaults to that of torch.distributed or of the environment, else 0.
        world_size: Number of ranks. Give it together with `rank`.
        on_error: ``"skip"`` leaves bad samples and shards out, and lists them in :attr:`skipped`. Defaults to
            ``"raise"``. Errors of a store that cannot be reached are always raised.
        unreadable: ``"raise"`` raises one error that lists all tar files that cannot be indexed, where there is no
            manifest; ``"skip"`` leaves them out, with one warning, and lists them in :attr:`skipped`. Defaults to
            ``"skip"`` with ``on_error="skip"``; otherwise to None, which raises for them too, but leaves out
            directories that may not be read.
        verify: Whether to compare contents with the checksums of the index. Defaults to True.
        prefetch_bytes: Maximum number of bytes that a process fetches in advance.
        storage_options: Options of the stores, see :func:`streamloader.stores.open_store`.

    Raises:
        DatasetNotFound: If there are no shards at the address.
        DatasetIncomplete: If the writer of the data set has not finished.
        ConfigError: If an argument is invalid.
        StoreError: If the store fails otherwise.
    """

    _chain: SampleChain
    _counter: IterationCounter
    _resume: tuple[int, PlayedPart] | None  # with the number of the call that loaded it
    _part: PlayedPart

    def __init__(
        self,
        client: S3Client | str | Sequence[str],
        bucket: str | None = None,
        folder: str | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        buffer_size: int = 49152,
        buffer_bytes: int = 1 << 26,
        open_shards: int = 16,
        lanes: int = 12,
        tail: SampleTail = "once",
        rank: int | None = None,
        world_size: int | None = None,
        on_error: OnError = "raise",
        unreadable: Unreadable = None,
        verify: bool = True,
        prefetch_bytes: int = 32 << 20,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        address, options = _find_address(client, bucket, folder, storage_options)
        if unreadable is None and on_error == "skip":
            unreadable = "skip"
        self._start_source(
            lambda: open_shard_set(address, options, unreadable=unreadable),
            SHARD_SAMPLES,
            shuffle=shuffle,
            seed=seed,
            buffer_size=buffer_size,
            buffer_bytes=buffer_bytes,
            open_shards=open_shards,
            lanes=lanes,
            tail=tail,
            rank=rank,
            world_size=world_size,
            on_error=on_error,
            verify=verify,
            prefetch_bytes=prefetch_bytes,
        )

    # --- the chain ---------------------------------------------------------------------------------------------------

    def decode(self, *decoders: Any) -> RemoteDataset:
        """Decode the fields of each sample by their names.

        Args:
            *decoders: Decoder of images: ``"pil"`` (RGB images of Pillow), ``"rgb8"`` (uint8 arrays (H, W, 3)) or
                ``"torch"`` (float32 tensors (3, H, W) between 0 and 1). ``"video"``: uint8 tensors (T, H, W, 3).
                ``"bytes"``: nothing is decoded. Otherwise ``cls`` and such become integers, ``txt`` strings, ``json``
                its values, and ``npy`` arrays. A function of field and bytes, or a mapping from fields to functions of
                bytes, comes first where it is named first. All other fields stay bytes.
        """
        return self._with_stage(DecodeStage(decoders))

    def to_tuple(self, *fields: str) -> RemoteDataset:
        """Replace each sample by a tuple of its fields. Only these fields are read from the shards.

        Args:
            *fields: Name of each field, with alternatives separated by ";": ``"jpg;png"``.
        """
        if len(fields) == 1 and isinstance(fields[0], str):
            fields = tuple(fields[0].split())
        return self._with_stage(ToTupleStage(fields))

    def map_tuple(self, *functions: Callable[[Any], Any]) -> RemoteDataset:
        """Apply one function to each element of the tuples."""
        return self._with_stage(MapTupleStage(functions))

    def map(self, function: Callable[[Any], Any]) -> RemoteDataset:
        """Apply a function to each sample, or to each batch after :meth:`batched`."""
        return self._with_stage(MapStage(function))

    def select(self, function: Callable[[Any], Any]) -> RemoteDataset:
        """Keep the samples, or batches, for which a function returns true. Batches of what is kept are full."""
        return self._with_stage(SelectStage(function))

    def shuffle(self, size: int, **settings: Any) -> RemoteDataset:
        """Shuffle over a buffer of `size` samples. 0 turns shuffling off.

        Args:
            size: Number of samples of a rank that are mixed with each other.
            **settings: Further settings of the order: `seed`, `open_shards`, `buffer_bytes`.
        """
        unknown = set(settings) - {"seed", "open_shards", "buffer_bytes"}
        if unknown:
            raise ConfigError(f"shuffle() has no argument {min(unknown)!r}")
        if size:
            settings["buffer_size"] = size
        sources = tuple(
            dataclasses.replace(source, settings=dataclasses.replace(source.settings, shuffle=bool(size), **settings))
            for source in self._chain.sources
        )
        return self._replace(sources=sources)

    def batched(
        self, batch_size: int, collate_fn: Callable[[list[Any]], Any] | None = None, *, partial: bool = True
    ) -> RemoteDataset:
        """Join `batch_size` samples to a batch.

        Args:
            batch_size: Number of samples.
            collate_fn: Function of a list of samples. Defaults to :func:`streamloader.datasets.shards.stages.collate`,
                which stacks tensors, arrays and numbers.
            partial: Whether the last batch may have fewer samples. Otherwise it is left out.

        Raises:
            ConfigError: If samples are batched already, or the size is not a number of 1 or more.
        """
        if self._chain.batch_size is not None:
            raise ConfigError("the samples are batched already")
        batch_size = OrderSettings(batch_size=batch_size).batch_size
        return self._replace(batch_size=batch_size, collate=collate_fn or collate, partial=partial)

    def repeat(self, epochs: int | None = None) -> RemoteDataset:
        """Play several epochs in one iteration, each in another order. None for an endless iteration."""
        epochs = None if epochs is None else check_integer("repeat()", epochs)
        if epochs is not None and epochs < 1:
            raise ConfigError(f"repeat({epochs!r}): must be 1 or more, or None")
        return self._replace(epochs=epochs)

    @classmethod
    def mix(cls, datasets: Sequence[RemoteDataset], weights: Sequence[float] | None = None) -> RemoteDataset:
        """Mix the samples of several data sets, each of which is played exactly once.

        The data set of each sample is chosen at random, by weight. When one ends, the others go on.

        Args:
            datasets: Data sets that are not batched. Lanes, ranks and `on_error` are those of the first one.
            weights: Weight of each data set. Defaults to their numbers of samples.

        Raises:
            ConfigError: If a data set is batched, repeated or mixed already, or a weight is not a number above 0.
        """
        chains = [dataset._chain for dataset in datasets]  # noqa: SLF001
        if not chains or any(chain.batch_size or chain.epochs != 1 or len(chain.sources) > 1 for chain in chains):
            raise ConfigError("mix() takes data sets that are not batched, repeated or mixed: do that with its result")
        if weights is None:
            weights = [float(max(1, chain.sources[0].shards.counts.sum())) for chain in chains]
        if len(weights) != len(chains) or not all(0 < weight < float("inf") for weight in weights):
            raise ConfigError("mix() needs a weight above 0 for each data set")
        lanes = chains[0].sources[0].settings.lanes
        sources = []
        for chain in chains:
            source = chain.sources[0]
            settings = dataclasses.replace(source.settings, lanes=lanes)
            sources.append(dataclasses.replace(source, stages=chain.stages, settings=settings))
        mixed = cls.__new__(cls)
        mixed._start(  # noqa: SLF001
            dataclasses.replace(chains[0], sources=tuple(sources), weights=tuple(weights), stages=())
        )
        return mixed

    # --- iterating ---------------------------------------------------------------------------------------------------

    @override
    def __iter__(self) -> Iterator[Any]:
        values = self._play_values()
        iterator = cast("_Values", _Values.from_iterable(values))
        iterator.close = values.close
        return iterator

    def _play_values(self) -> Generator[Iterable[Any], None, None]:
        """Yield iterators over values that are ready. Each value is counted when it is taken."""
        played = None
        try:
            with contextlib.closing(self._play_epochs()) as epochs:
                for running, played in epochs:
                    if running.is_counted:
                        yield from map(played.count_as_taken, running.play_counted())
                        continue
                    for value, step in running.play_exactly():
                        played.add(step)
                        if step.lane != NO_LANE:
                            yield (value,)
        finally:
            if played is not None:
                played.settle()

    def __len__(self) -> int:
        """Return the number of batches (or samples, if they are not batched) of this rank in one iteration.

        Raises:
            LengthUnknown: If ``select`` or ``repeat()`` without a number decide that while iterating.
        """
        chain = self._chain
        if chain.epochs is None or chain.has_select:
            raise LengthUnknown("the number of batches depends on select() or repeat(): count them while iterating")
        return chain.count_batches(self._chain.make_orders(0, None)) * chain.epochs

    def play(self) -> Iterator[tuple[Any, PlayedStep]]:
        """Yield each batch of this worker with what a state needs of it. :class:`ShardLoader` uses this.

        A step of lane -1 has no batch.
        """
        with contextlib.closing(self._play_epochs()) as epochs:
            for running, _ in epochs:
                if running.is_counted:
                    step = running.make_step(0, [])  # the number of batches says it all
                    for value in itertools.chain.from_iterable(running.play_counted()):
                        yield value, step
                else:
                    yield from running.play_exactly()

    def _play_epochs(self) -> Generator[tuple[EpochPlayer, PlayedPart], None, None]:
        """Yield each epoch of an iteration, and the part that counts what was played of it."""
        worker = get_dataloader_worker()
        chain = self._chain
        first_epoch, is_first = self._counter.start(worker, chain.epochs or 1)
        part = self._find_start(first_epoch) if is_first else PlayedPart(first_epoch)
        self._part = played = part.copy()
        offset = 0  # position in DataLoader's sequence of batches at which the epoch starts
        while chain.epochs is None or part.epoch - first_epoch < chain.epochs:
            with contextlib.closing(EpochPlayer(chain, part, first_epoch, worker, offset)) as running:
                if offset == 0:
                    self._counter.set_start(part.epoch, part.batches, is_counted=running.is_counted)
                offset += running.remaining_batches
                yield running, played
            part = PlayedPart(part.epoch + 1, first_epoch=first_epoch)
            if chain.epochs is None or part.epoch - first_epoch < chain.epochs:
                played.start_epoch(part.epoch, first_epoch)
        if self._part is played:  # and not that of a later iteration
            self._part = played.finish()

    # --- states ------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration play this epoch. Without it, each iteration plays the one after the last.

        Right after :meth:`load_state_dict`, the epoch in which the state was saved continues there.

        Workers of a DataLoader that are running already (``persistent_workers``) notice that, too.
        """
        if self._resume is not None and self._resume[1].epoch == epoch and self._counter.is_unused:
            return  # the epoch in which the state was saved
        self._counter.set_epoch(epoch)
        self._resume = None
        self._part = PlayedPart(int(epoch))

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Return how far the data set was played, as plain JSON.

        Iterating directly, or in a DataLoader without workers, the state after any batch (or sample) is exact. With
        workers, use :class:`streamloader.datasets.shards.loader.ShardLoader`, whose states are exact as well; or pass
        the number of batches.

        Args:
            batches: Number of batches that were taken from the latest iteration of a DataLoader with workers.

        Raises:
            StateError: If workers have played the data set and `batches` is not given; or if it is given although
                samples are left out, so that it does not say how far the data set was played.
        """
        if batches is None:
            if self._counter.is_used_by_workers:
                raise StateError(
                    "this data set was played by the workers of a DataLoader, so this process does not know how far: "
                    "use sl.ShardLoader instead of DataLoader, or pass the number of batches: state_dict(batches=n)"
                )
            return self.make_state(self._part)
        if self._chain.leaves_out or not self._counter.is_counted:
            raise StateError(
                "with select(), mix() or on_error='skip', or a number of workers that does not divide the lanes, "
                "the number of batches does not say how far the data set was played: use sl.ShardLoader instead"
            )
        first_epoch, epoch, start = self._counter.latest
        return self.make_state(self._find_part(first_epoch, epoch, start + batches))

    def load_state_dict(self, state: Mapping[str, Any]) -> PlayedPart:
        """Have the next iteration continue where a state was saved, with any number of workers.

        Returns:
            The part that was played.

        Raises:
            StateError: If the state is damaged, or belongs to other data or settings.
        """
        rank, _ = self._chain.resolve_rank()
        part = read_state(state, self._chain.identify(), rank=rank, sources=len(self._chain.sources))
        self._resume = self._counter.set_epoch(part.first_epoch, resumes=True), part
        self._part = part.copy()
        return part.copy()

    def make_state(self, part: PlayedPart) -> dict[str, Any]:
        """Return the state for a part that was played."""
        part = part.copy()
        rank, _ = self._chain.resolve_rank()
        if part.positions:
            part = self._complete(part)
        return make_state(part, self._chain.identify(), rank=rank)

    def check_states(self, workers: int) -> None:
        """Check that a state can be saved of what several workers play.

        Raises:
            StateError: If their epochs may overlap, so that no state describes what was played.
        """
        chain = self._chain
        source = chain.sources[0]
        is_counted = not chain.leaves_out and not (source.settings.shuffle and source.settings.lanes % max(1, workers))
        if workers > 1 and chain.epochs != 1 and not is_counted:
            raise StateError(
                "with repeat(), several workers may play different epochs at the same time, where select(), mix(), "
                "on_error='skip' or a number of workers that does not divide the lanes let them end at different "
                "times: iterate several times instead of repeat()"
            )

    def shuffle_quality(self, labels: Array | None = None) -> ShuffleQuality:
        """Measure how well the order of the next epoch is shuffled, compared with a full permutation. Nothing is read.

        ``print`` shows a table: displacement of the samples, entropy of the labels in a batch, and samples of a batch
        that are stored next to each other.

        Args:
            labels: Label of each sample, in the order in which they are stored, integers (samples,). Defaults to 100
                labels, as if the samples were stored sorted by them, which is the hardest case.

        Raises:
            ConfigError: If several data sets are mixed, there is less than one full batch, or `labels` has another
                length than the data set.
        """
        if len(self._chain.sources) > 1:
            raise ConfigError("measure each data set before mix()")
        order = self._chain.make_orders(self.next_epoch, None)[0]
        return measure_epoch(order, self._chain.sources[0].shards.counts, labels=labels)

    @property
    def next_epoch(self) -> int:
        """Epoch that was set with :meth:`set_epoch` or by a state."""
        return self._counter.next_epoch

    @property
    def skipped(self) -> list[SkippedSample]:
        """Tar files that were left out when the data set was opened, and bad samples that were left out so far.

        At most 1000 samples are listed.
        """
        return [*self.skipped_shards, *self._part.skipped]

    @property
    def skipped_shards(self) -> list[SkippedSample]:
        """Tar files that were left out when the data set was opened, because they cannot be indexed."""
        files = [file for source in self._chain.sources for file in source.shards.skipped]
        return [SkippedSample(file.address.rpartition("/")[2], None, None, file.message) for file in files]

    def close(self) -> None:
        """Release the stores. The next iteration opens them again."""
        for source in self._chain.sources:
            source.shards.close()

    def __repr__(self) -> str:
        sources = ", ".join(repr(source.shards) for source in self._chain.sources)
        return f"<RemoteDataset of {sources}>"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the chain with cloudpickle, so that lambdas reach the workers."""
        state = self.__dict__.copy()
        state["_chain"] = cloudpickle.dumps(self._chain)
        state["_part"] = self._part.copy()  # without values that wait to be taken
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the data set in another process of this program."""
        self.__dict__.update(state)
        # What cloudpickle wrote comes from the parent, as the pickle does that contains it.
        self._chain = cloudpickle.loads(state["_chain"])

    # --- inside ------------------------------------------------------------------------------------------------------

    def _start_source(
        self,
        open_samples: Callable[[], SampleSet],
        kind: SampleKind,
        *,
        stages: tuple[Stage, ...] = (),
        rank: int | None,
        world_size: int | None,
        on_error: OnError,
        verify: bool = True,
        prefetch_bytes: int = 0,
        **settings: Any,
    ) -> None:
        """Start with one data set. It is opened once the arguments are checked; `settings` are those of its order."""
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error={on_error!r:.80}: must be 'raise' or 'skip'")
        if (rank is None) != (world_size is None):
            raise ConfigError("give both rank= and world_size=, or neither")
        order = OrderSettings(**settings | {"shuffle": bool(settings["shuffle"])})
        source = ChainSource(open_samples(), stages, order, verify, prefetch_bytes, kind)
        self._start(SampleChain((source,), rank=rank, world_size=world_size, on_error=on_error))

    def _start(self, chain: SampleChain) -> None:
        self._chain = chain
        self._counter = IterationCounter()
        self._resume = None
        self._part = PlayedPart()

    def _replace(self, **changes: Any) -> Self:
        dataset = type(self).__new__(type(self))
        dataset.__dict__.update(self.__dict__)
        dataset._start(dataclasses.replace(self._chain, **changes))  # noqa: SLF001
        return dataset

    def _with_stage(self, stage: Stage) -> RemoteDataset:
        if self._chain.batch_size is None:
            return self._replace(stages=(*self._chain.stages, stage))
        if not isinstance(stage, (MapStage, SelectStage)):
            raise ConfigError("after batched(), only map() and select() are possible: put the others before it")
        return self._replace(batch_stages=(*self._chain.batch_stages, stage))

    def _find_start(self, first_epoch: int) -> PlayedPart:
        """Return where the first iteration since the epoch was set starts."""
        generation = self._counter.resumed
        if not generation:
            return PlayedPart(first_epoch)
        if self._resume is None or self._resume[0] != generation:
            raise StateError(
                "a state was loaded after the workers of this DataLoader had started: use sl.ShardLoader, or make "
                "another DataLoader"
            )
        return self._resume[1]

    def _complete(self, part: PlayedPart) -> PlayedPart:
        """Return a part with the positions of all lanes, or with none if they follow from the number of batches."""
        orders = self._chain.make_orders(part.epoch, part.lanes)
        before = [order.count_consumed(part.counted) for order in orders]
        counted = [order.count_consumed(part.batches) for order in orders]
        lanes = range(part.lanes)
        positions = {lane: part.positions.get(lane) or [counts[lane] for counts in before] for lane in lanes}
        is_counted = not self._chain.leaves_out and part.next_lane == part.batches % part.lanes
        if is_counted and all(positions[lane] == [counts[lane] for counts in counted] for lane in lanes):
            return dataclasses.replace(part, positions={})
        return dataclasses.replace(part, positions=positions)

    def _find_part(self, first_epoch: int, epoch: int, batches: int) -> PlayedPart:
        """Return the part that was played after some batches from the start of an epoch on."""
        size = self._chain.count_batches(self._chain.make_orders(epoch, None))
        passed, batches = divmod(batches, size) if size else (0, 0)
        if self._chain.epochs is not None and epoch + passed - first_epoch >= self._chain.epochs:
            return PlayedPart(epoch + passed)
        return PlayedPart(epoch + passed, batches, first_epoch)


class _Values(itertools.chain[Any]):
    """The values of an iteration. They come from C; what was prepared may still be taken after :meth:`close`.

    Attributes:
        close: Function that ends the iteration and its transfers.
    """

    close: Callable[[], None]


def _find_address(
    client: Any, bucket: str | None, folder: str | None, storage_options: Mapping[str, Any] | None
) -> tuple[Any, Mapping[str, Any]]:
    """Return the address of a data set and the options of its stores."""
    options = check_options("storage_options", storage_options) or {}
    if isinstance(client, S3Client):
        if bucket is None:
            raise ConfigError("RemoteDataset(client, bucket, folder): the bucket is missing")
        return client.address(bucket, folder or ""), {**client.storage_options, **options}
    if bucket is not None or folder is not None:
        raise ConfigError(
            "bucket and folder need a client from sl.make_client(); an address contains them: s3://bucket/folder"
        )
    return client, options
