"""Compressors for packs. A pack that was made with one of them names its method, and needs no object to be opened."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from streamloader.config import Limits
from streamloader.datasets.directory.managers import Buffer
from streamloader.errors import ConfigError, CorruptContainer, LimitExceeded, MissingDependency

__all__ = ["Compressor", "ZlibCompressor", "ZstdCompressor"]

_MAX_ZLIB_LEVEL: Final = 9
_MIN_ZSTD_LEVEL: Final = -131072
_MAX_ZSTD_LEVEL: Final = 22


class Compressor(Protocol):
    """Compresses bytes: the interface of a user's own compressor."""

    def compress(self, data: bytes) -> bytes:
        """Return the compressed bytes."""

    def decompress(self, data: bytes) -> bytes:
        """Return the bytes that :meth:`compress` has compressed."""


@dataclass(frozen=True)
class ZlibCompressor:
    """Compresses members of packs with zlib (RFC 1950).

    Args:
        level: Level from 0 (none) to 9 (smallest). Defaults to 6.

    Attributes:
        method: Number of the method in packs.
    """

    level: int = 6
    method: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the level."""
        _check_level(self, 0, _MAX_ZLIB_LEVEL)

    def compress(self, data: Buffer) -> bytes:
        """Return the compressed bytes."""
        return zlib.compress(data, self.level)

    def decompress(self, data: Buffer, max_bytes: int | None = None) -> bytes:
        """Return the decompressed bytes.

        Args:
            data: One whole zlib stream.
            max_bytes: Maximum number of decompressed bytes. Defaults to what the ``expansion_bytes`` and
                ``expansion_ratio`` of :class:`streamloader.config.Limits` allow.

        Raises:
            CorruptContainer: If the data are damaged or cut, or if other data follow them.
            LimitExceeded: If they expand to more bytes.
        """
        decompressor = zlib.decompressobj()
        return _decompress(decompressor, data, max_bytes, zlib.error)


@dataclass(frozen=True)
class ZstdCompressor:
    """Compresses members of packs with Zstandard (RFC 8878). Needs the extra ``zstd`` before Python 3.14.

    Args:
        level: Level from -131072 (fastest) to 22 (smallest). Defaults to 3.

    Attributes:
        method: Number of the method in packs.

    Raises:
        MissingDependency: If the package for zstd is not installed.
    """

    level: int = 3
    method: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check the level, and that the package is installed."""
        _check_level(self, _MIN_ZSTD_LEVEL, _MAX_ZSTD_LEVEL)
        _import_zstd()

    def compress(self, data: Buffer) -> bytes:
        """Return the compressed bytes: one frame, which declares the size of its content."""
        compressed: bytes = _import_zstd().compress(data, self.level)
        return compressed

    def decompress(self, data: Buffer, max_bytes: int | None = None) -> bytes:
        """Return the decompressed bytes.

        Args:
            data: One whole frame of zstd.
            max_bytes: Maximum number of decompressed bytes. Defaults to what the ``expansion_bytes`` and
                ``expansion_ratio`` of :class:`streamloader.config.Limits` allow.

        Raises:
            CorruptContainer: If the data are damaged or cut, or if other data follow them.
            LimitExceeded: If they expand to more bytes.
        """
        zstd = _import_zstd()
        decompressor = zstd.ZstdDecompressor()
        return _decompress(decompressor, data, max_bytes, zstd.ZstdError)


def _decompress(decompressor: Any, data: Buffer, max_bytes: int | None, library_error: type[Exception]) -> bytes:
    """Return the content of one stream. No more than the limit and one byte are ever allocated."""
    limit = _resolve_limit(data, max_bytes)
    try:
        result: bytes = decompressor.decompress(data, limit + 1)
    except library_error as error:
        raise CorruptContainer(f"the compressed data cannot be decompressed: {error}") from error
    if len(result) > limit:
        raise LimitExceeded(f"{len(data)} compressed bytes expand to more than {limit}")
    if not decompressor.eof or decompressor.unused_data:
        raise CorruptContainer("the compressed data are incomplete, or other data follow them")
    return result


def _check_level(compressor: ZlibCompressor | ZstdCompressor, lowest: int, highest: int) -> None:
    level, name = compressor.level, type(compressor).__name__
    if isinstance(level, bool) or not isinstance(level, int) or not lowest <= level <= highest:
        raise ConfigError(f"{name}(level={level!r:.80}): must be a whole number from {lowest} to {highest}")


def _resolve_limit(data: Buffer, max_bytes: int | None) -> int:
    if max_bytes is not None:
        return max_bytes
    limits = Limits()
    return max(limits.expansion_bytes, int(limits.expansion_ratio * len(data)))


def _import_zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingDependency("zstd needs backports.zstd: pip install streamloader[zstd]") from error
    return zstd
