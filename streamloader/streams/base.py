"""Interface of a kind of stream: a :class:`StreamDataset` describes streams, a :class:`Stream` reads one of them.

``index`` and ``fields`` are called in the user's process when a loader is built. The dataset is then sent to the
workers (by cloudpickle), where ``open`` is called once for each stream that is read, and ``read_into`` about once per
window of each lane. One task drives one stream, so a stream needs no locks. Coroutines run on the worker's event loop
and must not block it: pass blocking calls to :func:`streamloader.streams.lane_thread.in_lane_thread`.
"""

from __future__ import annotations

import abc
import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from streamloader.stream_table import StreamTable
    from streamloader.values import Array, Field, StreamInfo

__all__ = [
    "PreparedStream", "SourceSizes", "Stream", "StreamDataset", "decoder_threads", "parse_in_processes",
    "parses_in_processes", "skip_unreadable", "skips_unreadable", "stream_rng",
]  # fmt: skip

_parses_in_processes: ContextVar[bool] = ContextVar("parses_in_processes", default=False)
_skips_unreadable: ContextVar[bool] = ContextVar("skips_unreadable", default=False)
# Number of threads that one lane may use to decode, so that all lanes together do not use more than there are cores.
decoder_threads: ContextVar[int] = ContextVar("decoder_threads", default=1)


@contextlib.contextmanager
def parse_in_processes() -> Iterator[None]:
    """Have datasets that are indexed inside parse untrusted files in child processes, never in this process.

    Loaders with worker processes do this.
    """
    token = _parses_in_processes.set(True)
    try:
        yield
    finally:
        _parses_in_processes.reset(token)


def parses_in_processes() -> bool:
    """Return whether this process must not parse untrusted files, because child processes do."""
    return _parses_in_processes.get()


@contextlib.contextmanager
def skip_unreadable() -> Iterator[None]:
    """Have datasets that are indexed inside leave out files that cannot be used.

    Loaders with ``on_error="skip"`` do this.
    """
    token = _skips_unreadable.set(True)
    try:
        yield
    finally:
        _skips_unreadable.reset(token)


def skips_unreadable() -> bool:
    """Return whether files that cannot be used are left out of a dataset."""
    return _skips_unreadable.get()


def stream_rng(seed: int, epoch: int, ordinal: int) -> np.random.Generator:
    """Return the random generator of one stream in one epoch: the same on every topology, and after every restart.

    Philox is counter based (Salmon et al., 2011). Its key consists of the seed, the epoch and the stream's ordinal in
    the plan, so streams share no state.
    """
    mask = (1 << 64) - 1
    seed, epoch, ordinal = operator.index(seed), operator.index(epoch), operator.index(ordinal)
    return np.random.Generator(
        np.random.Philox(key=np.array([seed & mask, ((epoch << 40) ^ ordinal) & mask], np.uint64))
    )


@dataclass(frozen=True, slots=True)
class SourceSizes:
    """Number of bytes that reading each stream of a dataset takes, and where they come from.

    Attributes:
        sizes: Size in bytes of each stream's source, int64 (n,), -1 where unknown.
        remote: Whether the source of each stream is in a store, not in a local file or in memory, bool (n,).
        by_step: Whether a stream that is read in part takes only its share of the bytes. Otherwise `sizes` are the
            whole sources, and upper bounds for streams that are read in part. Defaults to False.
    """

    sizes: Array
    remote: Array
    by_step: bool = False


class StreamDataset(abc.ABC):
    """A set of streams of one kind. It is cheap and picklable, and opens nothing before :meth:`index`."""

    @property
    @abc.abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """Name -> shape, dtype and padding value of one step. Read after :meth:`index`."""

    @abc.abstractmethod
    async def index(self) -> Sequence[StreamInfo]:
        """Describe all streams, in an order that is the same for every call and on every machine.

        For millions of streams, return a :class:`~streamloader.stream_table.StreamTable`, which takes much less memory
        than a list. Where :func:`parses_in_processes` is true, parse untrusted files in child processes. Where
        :func:`skips_unreadable` is true, leave out files that cannot be used, and report them.

        Raises:
            StreamNotFound: If an address does not exist, or a pattern matches nothing.
            UnreadableStream: If an address contains no stream of this kind.
        """

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that determine the steps, besides fields, keys and lengths: plain JSON values.

        Read after :meth:`index`. A loader resumes only from a state that was saved with equal settings. Include
        settings that a user may change by mistake, such as a sampling rate. Leave out those that differ between
        machines, such as a path.
        """
        return {}

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of the sources of `streams`, for :meth:`MultiStreamer.plan_report`. Reads nothing.

        Override it if :meth:`index` learns the sizes. By default, they are unknown.

        Args:
            streams: All streams of the dataset, as :meth:`index` returned them.
        """
        count = len(streams)
        return SourceSizes(np.full(count, -1, np.int64), np.zeros(count, bool))

    @abc.abstractmethod
    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one stream at its first step.

        Args:
            info: Description of the stream, from :meth:`index`.
            rng: Random generator for all of its augmentation. See :func:`stream_rng`.
        """

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the data needed to open a stream, while its lane still reads another one.

        Override it if opening waits for a network. Do not raise errors here: ``open`` raises them.

        Returns:
            The prepared stream, or None (the default) to open the stream by :meth:`open`.
        """
        return None


class PreparedStream(abc.ABC):
    """A stream that will be opened soon. Exactly one of its methods is called, once.

    Attributes:
        ready: Whether the data for opening has arrived. If not when the stream is due, the engine prepares more
            streams in advance from then on.
        max_bytes: Maximum memory that is held for it, in bytes. None (the default) if it is unknown. The smaller the
            prepared streams are, the more of them the engine prepares.
    """

    ready: bool = True
    max_bytes: int | None = None

    @abc.abstractmethod
    async def open(self, rng: np.random.Generator) -> Stream:
        """Open the stream, as ``StreamDataset.open`` does."""

    @abc.abstractmethod
    def release(self) -> None:
        """Release what was prepared, because the stream will not be opened. Must not block."""


class Stream(abc.ABC):
    """One sequence in time order, read forwards.

    Attributes:
        replays: Whether :meth:`seek` reads all earlier steps again, so that resuming takes time.
    """

    replays: bool = False

    @abc.abstractmethod
    async def read_into(self, out: Mapping[str, Array]) -> int:
        """Fill the first steps of `out` in place, and return their number; 0 means the end of the stream.

        Args:
            out: Array (n, *shape) of each field, with the same n >= 1 for all. Only steps that are returned may be
                written. Fewer than n steps are allowed at any time, 0 only at the end.
        """

    async def seek(self, step: int) -> None:
        """Make `step` the next step to be read. Override it if that is cheaper than reading all steps before it.

        Raises:
            NotImplementedError: If the stream cannot seek. The caller then reads it again from the start.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot seek")

    def times(self, start: int, out: Array) -> None:
        """Write the times in seconds of the steps from `start` on into `out` (float64). By default, step k is at k."""
        out[:] = np.arange(start, start + len(out), dtype=np.float64)

    async def aclose(self) -> None:  # noqa: B027 - most streams hold nothing to close
        """Release the resources of the stream. Called once, also after an error or a cancellation."""
