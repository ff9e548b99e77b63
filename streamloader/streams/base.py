"""What a kind of stream has to provide: a :class:`StreamDataset` that describes, a :class:`Stream` that plays.

Who calls what, where and how often: ``index`` and ``fields`` are called in the user's process when a loader is
built; the data set is then sent to the workers (cloudpickle), where ``open`` is called once for each stream that
is played, and ``read_into`` about once for each window of each lane. One task drives one stream, so a stream
needs no locks of its own. Coroutines run on the worker's event loop and must not block it: blocking work goes
through :func:`streamloader.streams.lane_thread.in_lane_thread`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from streamloader.values import Array, Field, StreamInfo

__all__ = ["Expected", "Stream", "StreamDataset", "stream_rng"]


def stream_rng(seed: int, epoch: int, ordinal: int) -> np.random.Generator:
    """Return the generator of one stream in one epoch: the same on every topology, and at every restart.

    Philox is counter based (Salmon et al., 2011): its key is (seed, epoch and ordinal), so no state is shared.
    """
    mask = (1 << 64) - 1
    return np.random.Generator(
        np.random.Philox(key=np.array([seed & mask, ((epoch << 40) ^ ordinal) & mask], np.uint64))
    )


class StreamDataset(abc.ABC):
    """A set of streams of one kind: cheap, picklable, and it opens nothing until it is asked to."""

    @property
    @abc.abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """Name -> shape, dtype and padding value of one step. Asked for after :meth:`index`."""

    @abc.abstractmethod
    async def index(self) -> Sequence[StreamInfo]:
        """Describe all streams, in an order that is the same on every call and machine.

        A list will do; for millions of streams a
        :class:`~streamloader.stream_table.StreamTable` takes much less memory.

        Raises:
            StreamNotFound: an address does not exist or a pattern matches nothing.
            UnreadableStream: an address holds no stream of this kind.
        """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides steps besides fields, keys and lengths: plain JSON values. Asked for after :meth:`index`.

        A loader goes on from a saved state only if that was saved with the same ones. Put in what a user may change
        by mistake, such as a sampling rate; leave out what differs between machines, such as a path.
        """
        return {}

    @abc.abstractmethod
    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one stream at its first step. `rng` decides all of its augmentation (see :func:`stream_rng`)."""

    async def expect(self, info: StreamInfo) -> Expected | None:
        """Get ready to open a stream soon, while the lane plays another: begin to fetch what opening it takes.

        Override it where opening waits for a network. Raise nothing: what stands in the way is told by ``open``.

        Returns:
            What opens it then; None (the default) for :meth:`open`.
        """
        return None


class Expected(abc.ABC):
    """A stream that is about to be opened. Either of its methods is called, once.

    Attributes:
        ready: whether what opening takes has come. If not when it is due, more streams are prepared from then on.
    """

    ready: bool = True

    @abc.abstractmethod
    async def open(self, rng: np.random.Generator) -> Stream:
        """Open it, as ``StreamDataset.open`` does."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give up what was prepared: the stream is not opened after all. Must not block."""


class Stream(abc.ABC):
    """One sequence in time order, read forwards.

    Attributes:
        replays: whether :meth:`seek` has to play again all that lies before the step, so that resuming takes time.
    """

    replays: bool = False

    @abc.abstractmethod
    async def read_into(self, out: Mapping[str, Array]) -> int:
        """Fill leading steps of `out` in place, and return how many; 0 means the end.

        Args:
            out: for each field an array (n, *shape) with n >= 1, the same n for all. Only the steps that are
                returned may have been written. Fewer than n are allowed at any time, 0 only at the end.
        """

    async def seek(self, step: int) -> None:
        """Make `step` the next one to be read. Override it where that is cheaper than reading up to it.

        Raises:
            NotImplementedError: the stream cannot seek; the caller replays it from the start instead.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot seek")

    def times(self, start: int, out: Array) -> None:
        """Write the time in seconds of the steps from `start` on into `out` (float64). Default: one second a step."""
        out[:] = np.arange(start, start + len(out), dtype=np.float64)

    async def aclose(self) -> None:  # noqa: B027 - most streams hold nothing that needs closing
        """Give back what the stream holds. Called once, also after an error or a cancellation."""
