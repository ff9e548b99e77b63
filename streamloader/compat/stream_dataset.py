"""Base class of group envs: the streams of one worker, played side by side and replaced when they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["StreamDataset"]


class StreamDataset:
    """The streams of one worker in one epoch, for :meth:`MultiStreamer.from_env`.

    A subclass builds ``self.streams`` in :meth:`reset_streams`, gives one of them its next file in
    :meth:`reload_stream`, and fills a batch when it is called. Attributes that these methods need have to be set before
    ``super().__init__`` is called, because that calls :meth:`reset_streams`.

    It has the name of :class:`streamloader.StreamDataset`, another class, because programs import it by this name.

    Args:
        stream_files: Files, texts or other items of all workers, from which streams are made.
        worker_id: Number of this worker. Defaults to 0.
        num_workers: Number of workers. Defaults to 1.
        num_streams: Number of streams of this worker: rows of a batch that it fills. Defaults to 3.
        num_batches: Number of batches of an epoch. Defaults to 100.
        num_tbins: Number of steps in a row of a batch. Defaults to 1.

    Attributes:
        stream_files: Items of this worker.
        streams: Streams of this worker, one for each row that it fills.
        stream_iter: Number of the next item to be played. Starts at 0, and is counted on by the subclass.
        iter: Number of batches that were filled. Starts at 0, and is counted on by the subclass.
        epoch: Number of the epoch. Set by the subclass. Defaults to 0.

    Raises:
        ConfigError: If there are items, but fewer than workers.
    """

    epoch: int = 0

    def __init__(
        self,
        stream_files: Sequence[Any],
        worker_id: int = 0,
        num_workers: int = 1,
        num_streams: int = 3,
        num_batches: int = 100,
        num_tbins: int = 1,
    ) -> None:
        self.worker_id, self.num_workers, self.num_streams = worker_id, num_workers, num_streams
        self.num_batches, self.num_tbins = num_batches, num_tbins
        self.streams: list[Any] = []
        self.stream_files = list(stream_files)
        self.stream_iter = self.iter = 0
        self.select_partition(stream_files)
        self.reset_streams()

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.num_batches

    def select_partition(self, stream_files: Sequence[Any]) -> None:
        """Set ``self.stream_files`` to the items of this worker. Override it to divide them in another way.

        Items are dealt to the rows of the batch in turn, and each worker gets those of its rows, in order. So for any
        number of workers, the rows start with the first items, and each item is played by one worker. Items that do
        not suffice for all rows are divided evenly among the workers.

        Args:
            stream_files: Items of all workers.

        Raises:
            ConfigError: If this worker gets none of them.
        """
        workers, streams = max(1, self.num_workers), self.num_streams
        if not streams:  # a group without streams, for its number of batches
            return
        count, rows = len(stream_files), workers * streams
        if count >= rows:
            numbers = [number for number in range(count) if number % rows // streams == self.worker_id]
        else:
            numbers = list(range(count * self.worker_id // workers, count * (self.worker_id + 1) // workers))
        if count and not numbers:
            raise ConfigError(
                f"worker {self.worker_id} of {workers} has nothing to play, because there are {count} items: use fewer "
                "workers, or override select_partition"
            )
        self.stream_files = [stream_files[number] for number in numbers]

    def reset_streams(self) -> None:
        """Build ``self.streams``, with one stream for each of ``self.num_streams`` rows. Called once."""
        raise NotImplementedError(f"{type(self).__name__} has no method reset_streams")

    def reload_stream(self, idx: int) -> None:
        """Have a stream that has ended play the next item.

        Args:
            idx: Row of the stream, its index in ``self.streams``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method reload_stream")

    def __call__(self, arrays_dic: Mapping[str, Array]) -> dict[str, list[Any]] | None:
        """Fill the rows of this worker in one batch.

        Args:
            arrays_dic: Array (num_streams, *dims) of zeros for each name of ``array_dims``, to be filled in place.

        Returns:
            Lists by name, such as ``{"resets": [mask]}``. Those of all workers are joined in the order of the rows.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method __call__")
