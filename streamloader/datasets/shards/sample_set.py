"""What the engine of samples needs of a data set, whatever its samples lie in: shards, or the files of a directory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array

__all__ = ["LaneBlocks", "OpenSamples", "SampleBlock", "SampleKind", "SampleSet"]


class SampleBlock(NamedTuple):
    """Successive samples of one lane.

    Attributes:
        samples: Sample, or the error that occurred instead of it, for each position.
        shards: Number of the shard of each sample.
        numbers: Number of each sample within its shard, integers (samples,).
        is_whole: Whether there is no error among the samples.
    """

    samples: list[Any]
    shards: list[int]
    numbers: Array
    is_whole: bool


class SampleSet(Protocol):
    """A data set whose samples are numbered in parts. Picklable, because it opens nothing until it is used.

    Attributes:
        address: Address of the data set, without secrets.
        counts: Number of samples of each part, int64 (parts,).
        total_bytes: Size of all samples together in bytes, approximately.
        digest: Text that identifies the samples and their order, for saved states.
        skipped: Files that were left out when the data set was opened.
    """

    address: str
    counts: Array
    total_bytes: int
    digest: str
    skipped: Sequence[SkippedVideo]

    def close(self) -> None:
        """Release what is open. The next use opens it again."""


class OpenSamples(Protocol):
    """The samples of a data set, opened in one process for one epoch."""

    @property
    def address(self) -> str:
        """Address of the data set, without secrets."""

    def prefetch_tables(self, shards: Iterable[int]) -> None:
        """Start to read what is needed to find the samples of some parts."""

    def describe(self, shard: int, sample: int, field: str | None = None) -> dict[str, Any]:
        """Return the keywords for an error about a sample: address, offset, dataset, shard and member."""

    def close(self) -> None:
        """Release what is open."""


class LaneBlocks(Protocol):
    """The samples of one lane, block by block."""

    def plan(self) -> Collection[int]:
        """Return the parts that the next window needs."""

    def prefetch(self) -> None:
        """Start to fetch the next window."""

    def read_block(self) -> SampleBlock | None:
        """Return the next samples. None at the end of the lane."""

    def close(self) -> None:
        """Cancel all transfers."""


class SampleKind(NamedTuple):
    """How the samples of one kind of data set are opened and read.

    Attributes:
        open: Function of a data set that opens its samples, with the keywords `verify`, `prefetch_bytes` and `fields`.
        read_lane: Function of opened samples and the windows of a lane that reads the lane.
    """

    open: Callable[..., OpenSamples]
    read_lane: Callable[[Any, Iterator[ShuffleWindow]], LaneBlocks]
