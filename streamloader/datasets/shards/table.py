"""Hold where the fields of all samples lie, so that those of a whole window are looked up at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from streamloader.datasets.shards.all_shards import ShardSet
from streamloader.datasets.shards.index import ShardIndex
from streamloader.errors import ConfigError, DatasetError, StreamloaderError
from streamloader.values import Array

__all__ = ["MISSING", "SampleTable"]

MISSING: Final = -1  # size of a field that a sample does not have, and checksum that is unknown
_MAX_FIELDS: Final = 256


class SampleTable:
    """Where each field of each sample lies: arrays with a row for each sample of the data set.

    The rows of a shard are filled when one of its samples is first needed. Pages of the arrays that were never filled
    take no memory, so a process pays about 60 bytes for each sample of two fields in the shards that it reads.

    Args:
        shards: Data set.
        fields: Names of the fields that are needed. Defaults to all.

    Attributes:
        names: Names of the fields, one for each column.
        starts: Offset of each field in its shard, int64 (samples, fields).
        sizes: Size of each field in bytes, int64 (samples, fields). `MISSING` if the sample does not have it.
        checksums: CRC-32 of each field, int64 (samples, fields). `MISSING` if unknown.
        key_spans: Start and end of each key in its shard's keys, int64 (samples, 2).
        keys: Keys of each shard, joined: a string if it is ASCII, otherwise bytes in UTF-8.
    """

    def __init__(self, shards: ShardSet, fields: Sequence[str] | None = None) -> None:
        self._shards = shards
        self._wanted = None if fields is None else frozenset(fields)
        self.names: list[str] = []
        ends = np.cumsum(shards.counts)
        self._firsts = ends - shards.counts
        self._samples = int(ends[-1]) if len(ends) else 0
        self._is_loaded = bytearray(len(shards))
        self._failures: dict[int, StreamloaderError] = {}
        self.starts = self.sizes = self.checksums = np.empty((self._samples, 0), np.int64)
        self.key_spans: Array = np.empty((self._samples, 2), np.int64)
        self.keys: dict[int, Any] = {}

    def find_rows(self, shards: Array, samples: Array) -> Array:
        """Return the rows of samples, int64 (n,), and fill those that are not known yet.

        Args:
            shards: Number of the shard of each sample, int64 (n,).
            samples: Number of each sample within its shard, int64 (n,).
        """
        for shard in np.unique(shards).tolist():
            if not self._is_loaded[shard]:
                self._load(shard)
        rows: Array = self._firsts[shards] + samples
        return rows

    def get_failure(self, shard: int) -> StreamloaderError | None:
        """Return why the index of a shard cannot be used. None if it can.

        An error of a store is valid for the last call of :meth:`find_rows` only: the next one tries again.
        """
        return self._failures.get(shard)

    def _load(self, shard: int) -> None:
        self._failures.pop(shard, None)
        try:
            index = self._shards.index(shard)
        except StreamloaderError as error:
            self._failures[shard] = error
            self._is_loaded[shard] = isinstance(error, DatasetError)
            return
        self._is_loaded[shard] = True
        columns = self._find_columns(index)
        first = int(self._firsts[shard])
        rows = slice(first, first + len(index))
        self.sizes[rows] = MISSING
        members = np.arange(len(index.starts))
        sample_of_member = first + np.repeat(np.arange(len(index)), np.diff(index.first_members))
        column_of_member = columns[index.member_fields]
        members = members[column_of_member >= 0]
        where = sample_of_member[members], column_of_member[members]
        self.starts[where] = index.starts[members]
        self.sizes[where] = index.sizes[members]
        self.checksums[where] = MISSING if index.checksums is None else index.checksums[members]
        sizes, keys = index.keys.encode(0, len(index))
        ends = np.cumsum(sizes)
        self.key_spans[rows, 0] = ends - sizes
        self.key_spans[rows, 1] = ends
        joined = keys.tobytes()
        self.keys[shard] = joined.decode() if joined.isascii() else joined

    def _find_columns(self, index: ShardIndex) -> Array:
        """Return the column of each field of a shard, int64 (fields,); -1 for those that are not needed."""
        wanted = [field for field in index.fields if self._wanted is None or field in self._wanted]
        new = [field for field in wanted if field not in self.names]
        if len(self.names) + len(new) > _MAX_FIELDS:
            raise ConfigError(
                f"the data set {self._shards.address} has more than {_MAX_FIELDS} different fields: name those that "
                "you need in to_tuple()"
            )
        if new:
            self._add_columns(new)
        numbers = {name: number for number, name in enumerate(self.names)}
        return np.array([numbers.get(field, -1) for field in index.fields], np.int64)

    def _add_columns(self, names: list[str]) -> None:
        old = len(self.names)
        self.names += names
        for attribute in ("starts", "sizes", "checksums"):
            values: Array = np.empty((self._samples, len(self.names)), np.int64)
            if old:
                values[:, :old] = getattr(self, attribute)
                if attribute == "sizes":
                    values[:, old:] = MISSING
            setattr(self, attribute, values)
