"""Indexes of small shards that exist only as numbers."""

from __future__ import annotations

import numpy as np

from streamloader.datasets.shards.index import IndexBuilder, ShardIndex
from streamloader.stream_table import StringColumn

BLOCK = 512  # of tar


def build_small(samples, *, compression=None, has_checksums=True, size=700):
    """Return the index of samples with the fields "jpg" and "cls"."""
    builder = IndexBuilder("00000.tar")
    position = 0
    for number in range(samples):
        for field, bytes_ in (("jpg", size), ("cls", number % 3)):
            start = position + BLOCK
            builder.add(f"dir/{number:06}", field, start, bytes_, number if has_checksums else None)
            position = start + -(-bytes_ // BLOCK) * BLOCK
    data_size = position + 2 * BLOCK
    frames = None if compression is None else [(0, 0), (data_size // 4, BLOCK)]
    file_size = data_size if compression is None else data_size // 2
    return builder.build(
        "00000.tar", file_size, data_size=data_size, compression=compression, frames=frames, settings={"seed": 7}
    )


def make_index(*, keys, starts, sizes, members, fields):
    """Return an index without checking that it is possible."""
    return ShardIndex(
        shard="00000.tar",
        size=40 * BLOCK,
        data_size=40 * BLOCK,
        first_members=np.cumsum([0, *members]),
        member_fields=np.array(fields, np.uint16),
        starts=np.array(starts, np.int64),
        sizes=np.array(sizes, np.int64),
        checksums=None,
        fields=("jpg", "cls"),
        keys=StringColumn.from_strings(keys),
        compression=None,
        frames=np.zeros((0, 2), np.int64),
        settings={},
    )


def list_members(index):
    """Return (key, field, start, size) of each member."""
    return [
        (index.keys[sample], index.fields[index.member_fields[member]], int(index.starts[member]),
         int(index.sizes[member]))
        for sample in range(len(index))
        for member in range(int(index.first_members[sample]), int(index.first_members[sample + 1]))
    ]  # fmt: skip
