"""Hold where the fields of a shard's samples lie, so that those of a whole window are looked up at once."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

import numpy as np

from streamloader.datasets.shards.index import ShardIndex
from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["MAX_FIELDS", "ShardTable", "make_table"]

MAX_FIELDS: Final = 256

_ENTRY_BYTES: Final = 1024


class ShardTable(NamedTuple):
    """Where each field of each sample of a shard lies, in one array, so that a window takes all of it at once.

    A sample of two fields takes about 32 bytes besides its key.

    Attributes:
        fields: Names of the fields, sorted.
        rows: Row for each sample, uint32 or int64 (samples, 3 * fields + 2): offsets of the fields in the shard's
            content, 0 for those that the sample does not have; their sizes in bytes; their CRC-32; start and end of the
            sample's key in `keys`.
        has_checksums: Whether the checksums are known. They are 0 otherwise.
        keys: Keys: an array of bytes if all of them are ASCII and of one length; otherwise joined, as a string if they
            are ASCII, and as bytes in UTF-8 if not.
        compressed: Index of a compressed shard. None for a plain one.
    """

    fields: tuple[str, ...]
    rows: Array
    has_checksums: bool
    keys: Array | str | bytes
    compressed: ShardIndex | None

    @property
    def memory_bytes(self) -> int:
        """Approximate size in memory, in bytes."""
        compressed = 0 if self.compressed is None else self.compressed.memory_bytes
        return _ENTRY_BYTES + self.rows.nbytes + len(self.keys) + compressed


def make_table(index: ShardIndex, wanted: AbstractSet[str] | None) -> ShardTable:
    """Return the table of a shard.

    Args:
        index: Index of the shard.
        wanted: Names of the fields that are needed. None stands for all.

    Raises:
        ConfigError: If there are more than 256 of them.
    """
    names = sorted(field for field in index.fields if wanted is None or field in wanted)
    if len(names) > MAX_FIELDS:
        raise ConfigError(
            f"the shard {index.shard} has {len(names)} different fields, and at most {MAX_FIELDS} can be read: name "
            "those that you need in to_tuple()"
        )
    columns = {name: number for number, name in enumerate(names)}
    column_of_member = np.array([columns.get(field, -1) for field in index.fields], np.int64)[index.member_fields]
    sample_of_member = np.repeat(np.arange(len(index)), np.diff(index.first_members))
    is_wanted = column_of_member >= 0
    samples, column_of_member = sample_of_member[is_wanted], column_of_member[is_wanted]
    key_sizes, keys = index.keys.encode(0, len(index))
    key_ends = np.cumsum(key_sizes)
    is_small = max(index.data_size, len(keys)) < 1 << 32
    rows: Array = np.zeros((len(index), 3 * len(names) + 2), np.uint32 if is_small else np.int64)
    for number, values in enumerate((index.starts, index.sizes, index.checksums)):
        if values is not None:
            rows[samples, number * len(names) + column_of_member] = values[is_wanted]
    rows[:, -2] = key_ends - key_sizes
    rows[:, -1] = key_ends
    joined = keys.tobytes()
    return ShardTable(
        fields=tuple(names),
        rows=rows,
        has_checksums=index.checksums is not None,
        keys=_hold_keys(joined, key_sizes),
        compressed=None if index.compression is None else index,
    )


def _hold_keys(joined: bytes, sizes: Array) -> Array | str | bytes:
    if not joined.isascii():
        return joined
    size = int(sizes[0]) if len(sizes) else 0
    if size and (sizes == size).all():
        return np.frombuffer(joined, f"S{size}")  # keys contain no NUL, which NumPy would cut off
    return joined.decode()
