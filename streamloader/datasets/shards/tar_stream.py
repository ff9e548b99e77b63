"""Build the bytes of one shard piece by piece, with its index. The same members give the same bytes."""

from __future__ import annotations

import sys
import tarfile
import zlib
from typing import Any, Final

from streamloader.datasets.shards.index import IndexBuilder, ShardIndex
from streamloader.datasets.shards.naming import join_member_name
from streamloader.errors import ConfigError, MissingDependency

__all__ = ["COMPRESSION_SUFFIXES", "TarSample", "TarStream"]

COMPRESSION_SUFFIXES: Final = {None: ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}

_BLOCK_BYTES: Final = 512
_END_BYTES: Final = 2 * _BLOCK_BYTES
_RECORD_BYTES: Final = 10_240  # a tar file ends at a multiple of that, as tar writes it
_PIECE_BYTES: Final = 1 << 20
_FILE_MODE: Final = 0o644
_GZIP_LEVEL: Final = 6
_GZIP_WINDOW_BITS: Final = 31


class TarSample:
    """A sample as members of a tar file.

    Args:
        key: Key of the sample.
        members: Field and content of each member.

    Attributes:
        key: Key of the sample.
        members: Field, headers and content of each member.
        size: Size in the tar file in bytes, with headers and padding.
    """

    def __init__(self, key: str, members: list[tuple[str, bytes]]) -> None:
        self.key = key
        self.members = [(field, _make_header(key, field, len(content)), content) for field, content in members]
        self.size = sum(
            len(header) + len(content) + -len(content) % _BLOCK_BYTES for _, header, content in self.members
        )


def _make_header(key: str, field: str, size: int) -> bytes:
    info = tarfile.TarInfo(join_member_name(key, field))
    info.size = size
    info.mode = _FILE_MODE
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class TarStream:
    """A tar file that is being written (POSIX pax; ustar headers where they suffice).

    A compressed one consists of a gzip member or a Zstandard frame for each MiB of its content, so that single samples
    can be read.

    Args:
        name: Name of the file.
        compression: "gzip", "zstd" or None.

    Attributes:
        name: Name of the file.
        data_size: Number of bytes of the tar file so far, before compression.
        samples: Number of samples so far.
    """

    def __init__(self, name: str, compression: str | None = None) -> None:
        self.name = name
        self.data_size = 0
        self._compression = compression
        self._compress = _find_compressor(compression)
        self._builder = IndexBuilder(name)
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._frames: list[tuple[int, int]] = []
        self._size = 0

    @property
    def samples(self) -> int:
        """Number of samples so far."""
        return len(self._builder)

    def compute_size(self, sample: TarSample) -> int:
        """Return the size that the tar file would have with one more sample as its last one."""
        size = self.data_size + sample.size + _END_BYTES
        return size + -size % _RECORD_BYTES

    def add(self, sample: TarSample) -> list[bytes]:
        """Add a sample. Return the pieces of the file that are complete."""
        for field, header, content in sample.members:
            self._append(header)
            self._builder.add(sample.key, field, self.data_size, len(content), zlib.crc32(content))
            self._append(content)
            self._append(bytes(-len(content) % _BLOCK_BYTES))
        return self._take_pieces(_PIECE_BYTES)

    def finish(self, settings: dict[str, Any]) -> tuple[list[bytes], ShardIndex]:
        """Return the last pieces of the file, and its index.

        Args:
            settings: Settings of the writer, for the index.
        """
        self._append(bytes(_END_BYTES))
        self._append(bytes(-self.data_size % _RECORD_BYTES))
        pieces = self._take_pieces(1)
        index = self._builder.build(
            self.name,
            self._size,
            data_size=self.data_size,
            compression=self._compression,
            frames=self._frames or None,
            settings=settings,
        )
        return pieces, index

    def _append(self, data: bytes) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        self.data_size += len(data)

    def _take_pieces(self, min_bytes: int) -> list[bytes]:
        if self._buffered < min_bytes:
            return []
        data = b"".join(self._buffer)
        if self._compress is not None:
            self._frames.append((self._size, self.data_size - len(data)))
            data = self._compress(data)
        self._buffer, self._buffered = [], 0
        self._size += len(data)
        return [data]


def _find_compressor(compression: str | None) -> Any:
    if compression is None:
        return None
    if compression == "gzip":
        return _compress_gzip
    if compression == "zstd":
        try:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
        except ImportError as error:
            raise MissingDependency("shards in .tar.zst need: pip install streamloader[zstd]") from error
        return zstd.compress
    raise ConfigError(f"compression={compression!r:.80}: must be 'gzip', 'zstd' or None")


def _compress_gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)  # no name, no time
    return compressor.compress(data) + compressor.flush()
