"""Packs that no writer makes, although all their checksums are right."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import numpy as np

from streamloader.containers.pack.format import HEADER, pack_footer, pack_index, round_up

OLD = 1_600_000_000 * 10**9


def forge_pack(members, *, metadata=None, hashes=None):
    """Return the bytes of a pack with these members (pairs of name and content, both bytes), in this order."""
    names, contents = [name for name, _ in members], [content for _, content in members]
    body = HEADER + b"".join(contents)
    columns = {
        "starts": np.cumsum([len(HEADER), *map(len, contents)]).astype(np.uint64),
        "modified": np.zeros(len(members), np.int64),
        "hashes": np.array(hashes or list(map(crc32, names)), np.uint32),
        "checksums": np.array(list(map(crc32, contents)), np.uint32),
        "name_ends": np.cumsum([0, *map(len, names)]).astype(np.uint32),
    }
    parts, footer = pack_index(columns, b"".join(names), metadata or {}, 4)
    body += bytes(round_up(len(body)) - len(body))
    return body + b"".join(map(bytes, parts)) + pack_footer(replace(footer, index_offset=len(body)))


def collide(count, value=0x12345678):
    """Return names whose CRC-32 is `value`: the last four bytes of each are computed backwards."""
    table = [_step(number) for number in range(256)]
    numbers = {entry >> 24: number for number, entry in enumerate(table)}
    names, number = [], 0
    while len(names) < count:
        prefix, number = b"n%d_" % number, number + 1
        state, wanted, indexes = crc32(prefix) ^ 0xFFFFFFFF, value ^ 0xFFFFFFFF, []
        for _ in range(4):
            indexes.append(numbers[wanted >> 24])
            wanted = ((wanted ^ table[indexes[-1]]) << 8) & 0xFFFFFFFF
        suffix = bytearray()
        for index in reversed(indexes):
            suffix.append((state ^ index) & 0xFF)
            state = (state >> 8) ^ table[index]
        if all(byte > 32 and byte != ord("/") for byte in suffix):
            names.append(prefix + suffix)
    assert set(map(crc32, names)) == {value}
    return sorted(names)


def _step(state):
    for _ in range(8):
        state = (state >> 1) ^ (0xEDB88320 if state & 1 else 0)
    return state
