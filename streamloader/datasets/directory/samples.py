"""Read the files of a directory in the order of an epoch: what the engine of samples needs of a directory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.datasets.directory.virtual_directory import VirtualDirectory
from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import SampleBlock, SampleKind
from streamloader.datasets.shards.window import KEY, URL
from streamloader.errors import CorruptSample, DatasetError, StreamloaderError
from streamloader.stream_table import StringColumn
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array

__all__ = ["DIRECTORY_SAMPLES", "DirectorySamples"]

_MAX_BLOCK_SAMPLES: Final = 256
_UNKNOWN_FILE_BYTES: Final = 4096  # assumed for files that are in no pack


class DirectorySamples:
    """The files of a directory, numbered by subdirectory and name, as they are when this object is made.

    Args:
        directory: Directory.

    Attributes:
        directory: Directory.
        address: Address of the directory.
        counts: Number of files of each subdirectory, int64 (subdirectories,).
        total_bytes: Size of all files in bytes, approximately.
        digest: Text that identifies the names and their subdirectories.
        skipped: Always empty: files are opened when they are read.
    """

    skipped: Sequence[SkippedVideo] = ()

    def __init__(self, directory: VirtualDirectory) -> None:
        self.directory = directory
        self.address = directory.root
        digest = hashlib.sha256(b"directory-1\0")
        self._subdirectories: list[str] = []
        self._names: list[StringColumn] = []
        for subdirectory, names in directory.list_by_subdirectory():
            column = StringColumn.from_strings(names)
            self._subdirectories.append(subdirectory)
            self._names.append(column)
            for text in (subdirectory, f"{len(names)}", "\0".join(names)):
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        self.counts: Array = np.array([len(column) for column in self._names], np.int64)
        packed_files, packed_bytes = directory.measure_packs()
        self.total_bytes = packed_bytes + max(0, int(self.counts.sum()) - packed_files) * _UNKNOWN_FILE_BYTES
        self.digest = digest.hexdigest()

    def get_name(self, subdirectory: int, file: int) -> str:
        """Return the name of a file."""
        return self._names[subdirectory][file]

    def describe_subdirectory(self, subdirectory: int) -> str:
        """Return the name of a subdirectory."""
        return self._subdirectories[subdirectory]

    def close(self) -> None:
        """Do nothing: the directory belongs to the caller."""

    def __repr__(self) -> str:
        return f"<DirectorySamples {self.address}: {int(self.counts.sum())} files>"


class _OpenFiles:
    """The files of a directory, opened for one epoch."""

    def __init__(self, samples: DirectorySamples, *, verify: bool, prefetch_bytes: int, fields: Any) -> None:
        del verify, prefetch_bytes, fields  # the directory has its own rules, and a sample has one field
        self.samples = samples

    @property
    def address(self) -> str:
        return self.samples.address

    def prefetch_tables(self, shards: Iterable[int]) -> None:
        """Do nothing: the directory knows where its files lie."""

    def describe(self, shard: int, sample: int, field: str | None = None) -> dict[str, Any]:
        """Return the keywords for an error about a file."""
        del field
        name = self.samples.get_name(shard, sample)
        return {
            "address": self.samples.directory.get_path(name) or f"{self.address}/{name}",
            "offset": 0,
            "dataset": self.address,
            "shard": self.samples.describe_subdirectory(shard),
            "member": name,
        }

    def close(self) -> None:
        """Do nothing: the directory belongs to the caller."""


class _LaneFiles:
    """The files of one lane in one epoch, as samples of WebDataset's form."""

    def __init__(self, opened: _OpenFiles, windows: Iterator[ShuffleWindow]) -> None:
        self._opened = opened
        self._directory = opened.samples.directory
        self._windows = windows
        self._window: ShuffleWindow | None = None
        self._position = 0

    def plan(self) -> Collection[int]:
        """Return nothing: no tables are needed."""
        return ()

    def prefetch(self) -> None:
        """Do nothing: files are read when they are played."""

    def read_block(self) -> SampleBlock | None:
        """Return the next samples. None at the end of the lane."""
        if self._window is None or self._position == len(self._window.shards):
            self._window, self._position = next(self._windows, None), 0
            if self._window is None:
                return None
        rows = slice(self._position, self._position + _MAX_BLOCK_SAMPLES)
        shards, numbers = self._window.shards[rows].tolist(), self._window.samples[rows]
        places = [*zip(shards, numbers.tolist(), strict=True)]
        samples = self._read_all(places)
        self._position += len(samples)  # only now: a wait that is interrupted loses nothing
        return SampleBlock(samples, shards, numbers, all(isinstance(sample, dict) for sample in samples))

    def _read_all(self, places: list[tuple[int, int]]) -> list[Any]:
        """Return the samples of some files, together if none of them is bad."""
        names = [self._opened.samples.get_name(*place) for place in places]
        try:
            contents = self._directory.read_many(names)
        except StreamloaderError:
            return [self._read(name, *place) for name, place in zip(names, places, strict=True)]
        return [
            self._make_missing_error(*place) if content is None else self._make_sample(name, content)
            for name, place, content in zip(names, places, contents, strict=True)
        ]

    def _read(self, name: str, shard: int, number: int) -> dict[str, Any] | StreamloaderError:
        try:
            content = self._directory.read(name)
        except StreamloaderError as error:
            return self._translate(error, shard, number)
        return self._make_missing_error(shard, number) if content is None else self._make_sample(name, content)

    def _make_sample(self, name: str, content: memoryview) -> dict[str, Any]:
        return {KEY: name, URL: self._directory.get_path(name), _find_field(name): bytes(content)}

    def _make_missing_error(self, shard: int, number: int) -> CorruptSample:
        place = self._opened.describe(shard, number)
        return CorruptSample(
            f"{place['address']}: the file {make_printable(place['member'])} was removed since the data set was made "
            f"(data set {place['dataset']}). Make the data set again, or leave the file out with on_error='skip'",
            **place,
        )

    def _translate(self, error: StreamloaderError, shard: int, number: int) -> StreamloaderError:
        """Return damage as an error of this sample, so that it can be left out; other errors stay."""
        if isinstance(error, DatasetError) or not isinstance(error, ValueError):
            return error
        place = self._opened.describe(shard, number)
        return CorruptSample(f"{error.message} (data set {place['dataset']})", **place)

    def close(self) -> None:
        """End the lane."""
        self._windows, self._window = iter(()), None


def _find_field(name: str) -> str:
    """Return the name of the field that a file is: its ending in lower case, or "bin" if it has none."""
    _, dot, ending = name.rpartition(".")
    return ending.lower() if dot and ending else "bin"


DIRECTORY_SAMPLES: Final = SampleKind(_OpenFiles, _LaneFiles)
