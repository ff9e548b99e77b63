"""Build folders of shards for tests, with Python's tarfile alone."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
import zlib

from streamloader.datasets.shards.index import INDEX_SUFFIX, IndexBuilder, digest_index
from streamloader.datasets.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = {None: ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}


def build_tar(samples):
    """A tar of samples, dicts of bytes with "__key__"."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for field, content in sample.items():
                if field != "__key__":
                    info = tarfile.TarInfo(f"{sample['__key__']}.{field}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def compress(data, compression, frame_bytes=None):
    """The compressed data, and the offsets at which decompression can start."""
    pieces, frames, position = [], [], 0
    for start in range(0, max(1, len(data)), frame_bytes or max(1, len(data))):
        piece = data[start : start + (frame_bytes or len(data))]
        pieces.append(gzip.compress(piece, 1, mtime=0) if compression == "gzip" else zstd.compress(piece))
        frames.append((position, start))
        position += len(pieces[-1])
    return b"".join(pieces), frames


def build_index(name, samples, tar, size, compression, frames):
    builder = IndexBuilder(name)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        members = {member.name: member for member in opened}
    for sample in samples:
        for field, content in sample.items():
            if field != "__key__":
                member = members[f"{sample['__key__']}.{field}"]
                builder.add(sample["__key__"], field, member.offset_data, member.size, zlib.crc32(content))
    return builder.build(name, size, data_size=len(tar), compression=compression, frames=frames)


def write_shards(folder, samples, *, samples_per_shard, compression=None, index=True, manifest=True, frame_bytes=4096):
    """Write shards of `samples` into a folder, and return their names."""
    os.makedirs(folder, exist_ok=True)
    infos = []
    for number, first in enumerate(range(0, len(samples), samples_per_shard)):
        part = samples[first : first + samples_per_shard]
        name = f"{number:05}{SUFFIXES[compression]}"
        tar = build_tar(part)
        data, frames = (tar, None) if compression is None else compress(tar, compression, frame_bytes)
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)
        described = build_index(name, part, tar, len(data), compression, frames)
        packed = described.pack()
        infos.append(ShardInfo(name, len(part), len(data), len(tar), digest_index(packed)))
        if index:
            with open(f"{folder}/{name}{INDEX_SUFFIX}", "wb") as file:
                file.write(packed)
    if manifest:
        with open(f"{folder}/{MANIFEST_NAME}", "wb") as file:
            file.write(Manifest(infos, {}).pack())
    return [info.name for info in infos]


def make_samples(count, sizes=(3, 700, 0, 5000)):
    """Samples whose contents differ."""
    return [
        {
            "__key__": f"dir/{number:06}",
            "jpg": f"{number};".encode() * sizes[number % len(sizes)],
            "cls": b"%d" % number,
        }
        for number in range(count)
    ]
