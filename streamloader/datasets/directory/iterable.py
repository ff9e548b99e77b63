"""Provide the files of a directory as an iterable data set, with the chain and the exact states of `RemoteDataset`."""

from __future__ import annotations

from typing import Any

from streamloader.datasets.directory.samples import DIRECTORY_SAMPLES, DirectorySamples
from streamloader.datasets.directory.virtual_directory import VirtualDirectory
from streamloader.datasets.shards.chain import OnError
from streamloader.datasets.shards.decode import FieldProblem
from streamloader.datasets.shards.order import SampleTail
from streamloader.datasets.shards.remote_dataset import RemoteDataset
from streamloader.datasets.shards.stages import MapStage
from streamloader.datasets.shards.window import KEY, URL
from streamloader.errors import CorruptSample

__all__ = ["OBJECT", "DirectoryIterableDataset"]

OBJECT = "object"


class DirectoryIterableDataset(RemoteDataset):
    """The files of a :class:`VirtualDirectory` in random order, for the workers of a DataLoader and for ranks.

    Each file is a sample: a dictionary with its name (``"__key__"``), its path (``"__url__"``) and the object that the
    data manager loads (``"object"``); or its bytes under its ending, such as ``"png"``, with ``load=False``.

    The methods of the chain and the states are those of :class:`RemoteDataset`: several subdirectories are read in
    turn, a rank or worker reads files that no other reads, and :class:`ShardLoader` resumes exactly.

    Which files there are is decided when the data set is made. A state belongs to these names in these subdirectories.

    Args:
        directory: Directory.
        load: Whether samples contain objects. Otherwise they contain bytes. Defaults to True.
        shuffle: Whether to shuffle. Defaults to True.
        seed: Seed of the order. Defaults to 0.
        buffer_size: Number of samples of a rank that are mixed with each other, as for :class:`RemoteDataset`.
        buffer_bytes: Approximate size in bytes of these samples together.
        open_subdirectories: Number of subdirectories that are read in turn. Defaults to 16.
        lanes: Number of parts into which the samples of a rank are divided, and maximum number of workers of use.
        tail: Rule for what does not divide evenly among ranks, as for :class:`RemoteDataset`.
        rank: Number of this rank. Detected by default.
        world_size: Number of ranks. Detected by default.
        on_error: Whether files that are gone or cannot be decoded are left out ("skip"). Defaults to "raise".

    Raises:
        ConfigError: If an argument is invalid.
    """

    def __init__(
        self,
        directory: VirtualDirectory,
        *,
        load: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        buffer_size: int = 49152,
        buffer_bytes: int = 1 << 26,
        open_subdirectories: int = 16,
        lanes: int = 12,
        tail: SampleTail = "once",
        rank: int | None = None,
        world_size: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self._start_source(
            lambda: DirectorySamples(directory),
            DIRECTORY_SAMPLES,
            stages=(MapStage(_LoadObject(directory)),) if load else (),
            shuffle=shuffle,
            seed=seed,
            buffer_size=buffer_size,
            buffer_bytes=buffer_bytes,
            open_shards=open_subdirectories,
            lanes=lanes,
            tail=tail,
            rank=rank,
            world_size=world_size,
            on_error=on_error,
        )


class _LoadObject:
    """Replaces the bytes of a sample by the object that a data manager makes of them."""

    def __init__(self, directory: VirtualDirectory) -> None:
        self._directory = directory

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        (field,) = sample.keys() - {KEY, URL}
        try:
            value = self._directory.decode(sample[field])
        except CorruptSample as error:
            raise FieldProblem(field, error.message) from error
        return {KEY: sample[KEY], URL: sample[URL], OBJECT: value}
