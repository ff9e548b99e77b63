"""Play the lanes of a data set: raw samples through the stages of a chain, and into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamloader.datasets.random_order import draw_words
from streamloader.datasets.shards.decode import FieldProblem
from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import OpenSamples, SampleBlock, SampleKind
from streamloader.datasets.shards.stages import DROPPED, LacksField, Stage
from streamloader.datasets.shards.window import KEY
from streamloader.errors import CorruptSample, DatasetError, MissingField, StreamloaderError

__all__ = ["END", "LanePlayer", "LaneSettings", "LaneStream", "SkippedSample"]

END: Final = object()
_CHOICE: Final = 3  # purpose of random words, beside those of the order
_CHOICES_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A bad sample that was left out.

    Attributes:
        shard: Name of its shard.
        member: Name of the bad member, or of the sample's first one. None if the whole shard is bad.
        offset: Offset in the shard in bytes.
        problem: Message of the error.
    """

    shard: str | None
    member: str | None
    offset: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """What all lanes of a chain do with the values of their sources.

    Attributes:
        batch_size: Number of values of a batch. None if values are not batched.
        collate: Function that makes a batch of a list of values.
        partial: Whether a batch with fewer values is played at the end of a lane.
        batch_stages: Functions that each batch passes.
    """

    batch_size: int | None
    collate: Callable[[list[Any]], Any]
    partial: bool
    batch_stages: Sequence[Callable[[Any], Any]]


class LaneStream:
    """The values of one lane of one data set, in one epoch.

    Args:
        source: Samples of the data set.
        kind: Kind of the data set.
        windows: Windows of the lane.
        position: Number of samples of the lane that were played before.
        size: Number of samples of the lane.
        stages: Functions that each sample passes.
        skip: Whether bad samples are left out.
        skipped: List to which those are added.

    Attributes:
        position: Number of samples of the lane that were played, with those that were left out.
        size: Number of samples of the lane.
    """

    def __init__(
        self,
        source: OpenSamples,
        kind: SampleKind,
        windows: Iterator[ShuffleWindow],
        position: int,
        size: int,
        *,
        stages: Sequence[Stage],
        skip: bool,
        skipped: list[SkippedSample],
    ) -> None:
        self._source = source
        self._stages = tuple(stages)
        self._skip = skip
        self._skipped = skipped
        self._reader = kind.read_lane(source, windows)
        self._block: SampleBlock | None = None
        self._offset = 0  # in the block
        self.position = position
        self.size = size

    def prefetch_tables(self) -> None:
        """Start to read where the first samples lie."""
        self._source.prefetch_tables(self._reader.plan())

    def prefetch(self) -> None:
        """Start to fetch the first samples."""
        self._reader.prefetch()

    def take(self, values: list[Any], count: int) -> None:
        """Append the values of the next samples, `count` or fewer.

        There may be none before the end of the lane, if all of them were left out: see :attr:`position`.
        """
        if self._block is None or self._offset == len(self._block.samples):
            self._block, self._offset = self._reader.read_block(), 0
            if self._block is None:
                return
        start = self._offset
        samples = self._block.samples[start : start + count]
        if not self._stages and self._block.is_whole:
            self._offset += len(samples)
            self.position += len(samples)
            values += samples
            return
        for sample in samples:
            self._offset += 1
            self.position += 1
            value = self._play(sample)
            if value is not DROPPED:
                values.append(value)

    def close(self) -> None:
        """Cancel all transfers."""
        self._reader.close()

    def _play(self, sample: Any) -> Any:
        """Return the value of a sample, or DROPPED."""
        value = sample
        try:
            if isinstance(sample, StreamloaderError):
                raise sample.with_traceback(None)
            for stage in self._stages:
                value = stage(value)
                if value is DROPPED:
                    break
        except DatasetError as error:
            return self._handle(error)
        except (FieldProblem, LacksField) as problem:
            described = self._describe(problem)
            if not self._skip:
                raise described from problem
            return self._handle(described)
        except Exception as error:
            if isinstance(sample, dict):
                error.add_note(f"while processing the sample {sample.get(KEY)!r} of {self._source.address}")
            raise
        return value

    def _handle(self, error: DatasetError) -> Any:
        if not self._skip:
            raise error
        details = error.details
        self._skipped.append(SkippedSample(details.get("shard"), details.get("member"), error.offset, error.message))
        return DROPPED

    def _describe(self, problem: FieldProblem | LacksField) -> DatasetError:
        """Return the error for a sample that a stage of this package cannot use."""
        assert self._block is not None
        shard, number = self._block.shards[self._offset - 1], int(self._block.numbers[self._offset - 1])
        if isinstance(problem, LacksField):
            place = self._source.describe(shard, number)
            wanted = " or ".join(map(repr, problem.names))
            return MissingField(
                f"{place['address']}, byte {place['offset']}: the sample of the member {place['member']} has no field "
                f"{wanted} (data set {place['dataset']}). Name another one, or leave such samples out with "
                "on_error='skip'",
                **place,
            )
        place = self._source.describe(shard, number, problem.field)
        return CorruptSample(
            f"{place['address']}, byte {place['offset']}: the member {place['member']} cannot be decoded: {problem} "
            f"(data set {place['dataset']}). Replace it, or leave it out with on_error='skip'",
            **place,
        )


class LanePlayer:
    """The batches of one lane: values of one or several data sets through the stages of a chain.

    With several data sets, the next one is chosen by the words of a counter-based generator, one for each sample. When
    one ends, the others go on.

    Args:
        streams: Values of the lane in each data set.
        weights: Weight of each data set.
        settings: Settings of the chain.
        seed: Seed of the choice.
        epoch: Number of the epoch.
        number: Number of the lane among those of all ranks.
    """

    def __init__(
        self,
        streams: Sequence[LaneStream],
        weights: Sequence[float],
        settings: LaneSettings,
        *,
        seed: int,
        epoch: int,
        number: int,
    ) -> None:
        self.streams = streams
        self._weights = weights
        self._settings = settings
        self._seed = seed
        self._epoch = epoch
        self._number = number
        self._words: tuple[int, list[int]] = (-1, [])
        self._failure: Exception | None = None

    def play_many(self, count: int) -> list[Any]:
        """Return the next `count` batches or values; fewer at the end of the lane, and before one that is an error.

        The next call raises that error.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        values: list[Any] = []
        try:
            if self._settings.batch_size is None and not self._settings.batch_stages:
                self._collect(values, count)
                return values
            while len(values) < count and (value := self.play()) is not END:
                values.append(value)
        except Exception as error:
            if not values:
                raise
            self._failure = error
        return values

    def play(self) -> Any:
        """Return the next batch, or the next value if values are not batched. END at the end of the lane."""
        settings = self._settings
        while True:
            size = settings.batch_size or 1
            values: list[Any] = []
            self._collect(values, size)
            if not values or (len(values) < size and not settings.partial):
                return END
            value = values[0] if settings.batch_size is None else settings.collate(values)
            for stage in settings.batch_stages:
                value = stage(value)
                if value is DROPPED:
                    break
            else:
                return value

    @property
    def positions(self) -> list[int]:
        """Number of samples of each data set that were played."""
        return [stream.position for stream in self.streams]

    def close(self) -> None:
        """Cancel all transfers."""
        for stream in self.streams:
            stream.close()

    def _collect(self, values: list[Any], count: int) -> None:
        """Append values until there are `count`, fewer only at the end of the lane."""
        single = self.streams[0] if len(self.streams) == 1 else None
        while len(values) < count:
            stream = single or self._choose()
            if stream is None or stream.position >= stream.size:
                break
            stream.take(values, count - len(values) if single else 1)

    def _choose(self) -> LaneStream | None:
        """Return the stream that the next sample comes from. None if all have ended."""
        live = [number for number, stream in enumerate(self.streams) if stream.position < stream.size]
        if not live:
            return None
        word = self._draw(sum(self.positions)) / (1 << 64)
        point = word * sum(self._weights[number] for number in live)
        for number in live:
            point -= self._weights[number]
            if point < 0:
                return self.streams[number]
        return self.streams[live[-1]]

    def _draw(self, number: int) -> int:
        block, offset = divmod(number, _CHOICES_AT_ONCE)
        if self._words[0] != block:
            words = draw_words(
                _CHOICES_AT_ONCE,
                seed=self._seed,
                epoch=self._epoch,
                purpose=_CHOICE,
                number=(self._number << 32) | block,
            )
            self._words = block, words.tolist()
        return self._words[1][offset]
