"""Decompress ranges of a container, from any offset, in bounded pieces.

Formats: gzip (RFC 1952) with any number of members, Zstandard (RFC 8878) with any number of frames, skippable ones
included, raw deflate (RFC 1951), which zip files contain, and zlib (RFC 1950), which packs contain. zlib and libzstd
parse them and verify their checksums.

The work runs on the event loop, in calls that return at most 256 KiB and take less than a millisecond. After each
512 KiB the loop runs other tasks. Threads would not make it faster: the way to a thread and back takes a tenth of the
time of such a call, and the cores are busy with other worker processes.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import math
import sys
import zlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final, Literal, Protocol, TypeAlias

from streamloader.containers.base import ContainerSource
from streamloader.errors import LimitExceeded, MissingDependency

__all__ = ["CompressedRange", "CompressionMethod", "load_zstd"]

CompressionMethod: TypeAlias = Literal["gzip", "zstd", "deflate", "zlib"]

_PIECE_BYTES: Final = 256 << 10  # decompressed bytes of one call
_FIRST_SLICE_BYTES: Final = 96 << 10  # compressed bytes of the first call of a member. A call copies what it leaves
_MIN_SLICE_BYTES: Final = 4 << 10
_MAX_SLICE_BYTES: Final = 256 << 10
_READ_BYTES: Final = 64 << 10  # minimum length of a request to the store
_SHORT_SPAN_BYTES: Final = 256 << 10  # up to which a request is one piece
_PAUSE_BYTES: Final = 512 << 10  # work between two pauses, in which the event loop runs other tasks
_CALL_BYTES: Final = 4 << 10  # work that a call counts as, in addition to its bytes
_POINT_INTERVAL_BYTES: Final = 1 << 20  # decompressed bytes between two restart points at first
_MAX_POINTS: Final = 256  # of about 40 KiB each: the window of deflate, and the tables of zlib
_MAX_IDLE_DECODERS: Final = 4

_GZIP_WINDOW_BITS: Final = 31  # the largest window (15), with the header and trailer of gzip (16): see zlib.h
_DEFLATE_WINDOW_BITS: Final = -15  # the largest window, raw
_ZLIB_WINDOW_BITS: Final = 15  # the largest window, with the header and trailer of zlib


class CompressedRange:
    """The decompressed bytes of a range of a container. Many tasks of one event loop can read it at once.

    Every pass notes restart points on its way: copies of the decompressor, at most 256 (10 MiB), at intervals that grow
    with the data. A later read begins at the last one before its offset. For zstd only the beginnings of frames can be
    restart points, so a file of a single frame is decompressed from its beginning. Where one read stopped, the next one
    continues without a restart point, so successive reads cost one pass in any case. Up to four decompressors are kept
    for that. One of zstd has the window of its frame: 2 MiB by default, at most 128 MiB.

    Args:
        source: Bytes of the container.
        method: Compression method. ``"zstd"`` needs the extra ``zstd`` before Python 3.14.
        start: Offset of the first compressed byte in the container.
        end: Offset after the last compressed byte.

    Raises:
        MissingDependency: If the package for the method is not installed.
    """

    def __init__(self, source: ContainerSource, method: CompressionMethod, start: int, end: int) -> None:
        self._source = source
        self._format = _FORMATS[method]()
        self._start = start
        self._end = end
        self._points = _RestartPoints(_Decoder(self._format, start))
        self._idle: list[_Decoder] = []
        self._work_bytes = 0

    async def stream(self, start: int, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the decompressed bytes [start, end), in pieces of at most 256 KiB.

        Only a read without an `end` always verifies the end of the compressed data: the last checksum, and that nothing
        follows. The checksums before it are verified by each pass, wherever it begins in their part of the data.

        Args:
            start: Offset of the first byte, in decompressed bytes.
            end: Offset after the last byte. Defaults to the end of the data.

        Raises:
            CorruptContainer: If the compressed data is damaged, cut or followed by something else, or if the
                decompressed data ends before `start` or `end`. ``offset`` counts bytes of the container.
            LimitExceeded: If it expands too much, see :class:`streamloader.config.Limits`.
            StoreError: If the store fails to deliver the compressed bytes.
        """
        if end is not None and start >= end:
            return
        decoder = self._take_decoder(start)
        try:
            async with contextlib.aclosing(self._decode(decoder, start, end)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if decoder.reusable:
                self._idle.append(decoder)
                del self._idle[:-_MAX_IDLE_DECODERS]

    def _take_decoder(self, start: int) -> _Decoder:
        """Return the decoder that is next before `start`. The caller owns it."""
        point = self._points.find(start)
        idle = max((each for each in self._idle if each.produced <= start), key=_get_produced, default=point)
        if idle.produced <= point.produced:
            return point.copy()
        self._idle.remove(idle)
        return idle

    async def _decode(self, decoder: _Decoder, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        """Yield the decompressed bytes from `start` on, until `end`."""
        piece, piece_offset, slice_bytes = memoryview(b""), decoder.offset, _FIRST_SLICE_BYTES
        async with contextlib.aclosing(self._read_input(decoder, end)) as pieces:
            while end is None or decoder.produced < end:
                unused = piece[decoder.offset - piece_offset :]
                if decoder.needs_input and not unused:
                    if (next_piece := await anext(pieces, None)) is None:
                        self._check_end(decoder, start, end)
                        return
                    piece, piece_offset = memoryview(next_piece), decoder.offset
                    continue
                position, uses_slice = decoder.produced, decoder.needs_input
                output = self._decompress(decoder, unused[:slice_bytes], start if position < start else end)
                slice_bytes = _adapt_slice(slice_bytes, decoder, len(output)) if uses_slice else slice_bytes
                self._points.add(decoder)
                if output and position >= start:
                    yield output
                await self._pause(len(output))

    async def _pause(self, output_bytes: int) -> None:
        """Let the event loop run other tasks after a bounded amount of work, of all readers together."""
        self._work_bytes += output_bytes + _CALL_BYTES
        if self._work_bytes >= _PAUSE_BYTES:
            self._work_bytes = 0
            await asyncio.sleep(0)

    async def _read_input(self, decoder: _Decoder, end: int | None) -> AsyncGenerator[bytes, None]:
        """Yield compressed bytes from the decoder's offset on. All of a piece is decoded before the next one."""
        while decoder.offset < self._end:
            span_end = self._estimate_input(decoder, end)
            if span_end - decoder.offset <= _SHORT_SPAN_BYTES:
                yield await self._source.read(decoder.offset, span_end)  # takes less time
                continue
            async with contextlib.aclosing(self._source.stream(decoder.offset, span_end)) as pieces:
                async for piece in pieces:
                    yield piece

    def _estimate_input(self, decoder: _Decoder, end: int | None) -> int:
        """Return the end of the compressed bytes that are probably needed for the decompressed bytes until `end`."""
        if end is None:
            return self._end
        sample = decoder if decoder.produced else self._points.last
        ratio = min(1.0, (sample.offset - self._start) / sample.produced) if sample.produced else 1.0
        return min(self._end, decoder.offset + _READ_BYTES + math.ceil(ratio * (end - decoder.produced)))

    def _decompress(self, decoder: _Decoder, data: memoryview, stop: int | None) -> bytes:
        offset = decoder.offset
        max_bytes = _PIECE_BYTES if stop is None else min(_PIECE_BYTES, stop - decoder.produced)
        try:
            output = decoder.decompress(data if decoder.needs_input else data[:0], max_bytes)
        except _MalformedData as error:
            raise self._source.make_error(str(error), offset) from error.__cause__
        self._check_expansion(decoder)
        return output

    def _check_expansion(self, decoder: _Decoder) -> None:
        limits, consumed = self._source.limits, decoder.offset - self._start
        if decoder.produced > limits.expansion_bytes and decoder.produced > limits.expansion_ratio * consumed:
            decoder.reusable = False
            raise LimitExceeded(
                f"{self._source.address}, byte {decoder.offset}: {consumed} compressed bytes expand to more than "
                f"{decoder.produced}, as only files do that are made to exhaust their readers. If you trust this one, "
                "raise Limits(expansion_ratio=...)",
                address=self._source.address,
                offset=decoder.offset,
            )

    def _check_end(self, decoder: _Decoder, start: int, end: int | None) -> None:
        """Check that the data may end here, where the compressed bytes end."""
        decoder.reusable = False
        if not decoder.is_complete:
            raise self._source.make_error("it is cut: the compressed data goes on", self._end)
        needed = start if end is None else end
        if decoder.produced < needed:
            raise self._source.make_error(
                f"the compressed data has only {decoder.produced} bytes, and {needed} are needed", self._end
            )


def _adapt_slice(slice_bytes: int, decoder: _Decoder, output_bytes: int) -> int:
    """Return how many compressed bytes to pass to the next call, so that it returns most of a piece.

    Small slices are slow. Of large ones, and of what follows a member, every call copies the part that it leaves.
    """
    if decoder.is_complete:
        return _FIRST_SLICE_BYTES
    if not decoder.needs_input:
        return max(_MIN_SLICE_BYTES, slice_bytes * 3 // 4)
    full_slice = slice_bytes * _PIECE_BYTES * 7 // 8 // max(1, output_bytes)
    return min(_MAX_SLICE_BYTES, 2 * slice_bytes, max(slice_bytes, full_slice))


def _get_produced(decoder: _Decoder) -> int:
    return decoder.produced


class _RestartPoints:
    """Copies of decoders, in the order of their positions.

    Args:
        first: Decoder at the beginning of the range.
    """

    def __init__(self, first: _Decoder) -> None:
        self._points = [first]
        self._interval = _POINT_INTERVAL_BYTES

    @property
    def last(self) -> _Decoder:
        """The point that is furthest from the beginning."""
        return self._points[-1]

    def find(self, position: int) -> _Decoder:
        """Return the last one that is not behind `position`, to be copied."""
        return self._points[bisect.bisect_right(self._points, position, key=_get_produced) - 1]

    def add(self, decoder: _Decoder) -> None:
        """Note the decoder's position, if it can be copied there and is far enough behind all others."""
        if decoder.produced < self.last.produced + self._interval or not decoder.can_be_copied:
            return
        self._points.append(decoder.copy())
        if len(self._points) > _MAX_POINTS:
            del self._points[1::2]
            self._interval *= 2


# --- decoders --------------------------------------------------------------------------------------------------------


class _MalformedData(Exception):
    """Compressed data is damaged, or is no compressed data."""


class _Decompressor(Protocol):
    """Decompressor of one gzip member, zstd frame or deflate stream, as :class:`compression.zstd.ZstdDecompressor`."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: memoryview, max_length: int) -> bytes: ...


class _Inflater:
    """zlib's decompressor of one member, with the interface of the other one.

    Args:
        window_bits: Format and size of the window, as for :func:`zlib.decompressobj`.
    """

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inflate = zlib.decompressobj(window_bits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: memoryview, max_length: int) -> bytes:
        output = self._inflate.decompress(data if self.needs_input else self._inflate.unconsumed_tail, max_length)
        self.needs_input = not self._inflate.unconsumed_tail and len(output) < max_length
        return output

    def copy(self) -> _Inflater:
        """Return an independent decompressor in the same state, checksum included. It must need input."""
        twin = _Inflater(self._window_bits)
        twin._inflate = self._inflate.copy()
        return twin


@dataclass(frozen=True, slots=True)
class _Format:
    """How one method joins members, and what decompresses them.

    Attributes:
        name: Name, for messages.
        open_member: Function that makes the decompressor of one member.
        error: Exception of the library.
        first_bytes: Possible values of the first byte of a member.
        may_repeat: Whether further members may follow the first one.
        may_be_padded: Whether zeros may follow the last one.
    """

    name: CompressionMethod
    open_member: Callable[[], _Decompressor]
    error: type[Exception]
    first_bytes: bytes
    may_repeat: bool = True
    may_be_padded: bool = False


def _make_gzip() -> _Format:
    # Tapes and block devices pad files with zeros, and gzip(1) ignores them.
    return _Format("gzip", lambda: _Inflater(_GZIP_WINDOW_BITS), zlib.error, b"\x1f", may_be_padded=True)


def _make_deflate() -> _Format:
    return _Format("deflate", lambda: _Inflater(_DEFLATE_WINDOW_BITS), zlib.error, bytes(range(256)), may_repeat=False)


def _make_zlib() -> _Format:
    # Section 2.2 of RFC 1950: the low bits of the first byte are 8, and the high ones are at most 7.
    first_bytes = bytes(range(0x08, 0x80, 0x10))
    return _Format("zlib", lambda: _Inflater(_ZLIB_WINDOW_BITS), zlib.error, first_bytes, may_repeat=False)


def _make_zstd() -> _Format:
    zstd = load_zstd()
    # Sections 3.1.1 and 3.1.2 of RFC 8878: frames begin with 28 B5 2F FD, and skippable ones with 50 to 5F.
    return _Format("zstd", zstd.ZstdDecompressor, zstd.ZstdError, b"\x28" + bytes(range(0x50, 0x60)))


_FORMATS: Final[dict[CompressionMethod, Callable[[], _Format]]] = {
    "gzip": _make_gzip,
    "zstd": _make_zstd,
    "deflate": _make_deflate,
    "zlib": _make_zlib,
}


def load_zstd() -> ModuleType:
    """Return the module for Zstandard: that of Python 3.14, or its backport.

    Raises:
        MissingDependency: If the backport is not installed.
    """
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingDependency("zstd needs backports.zstd: pip install streamloader[zstd]") from error
    return zstd


class _Decoder:
    """Decompresses a range from one position on. One reader owns it.

    Args:
        format_: Format of the data.
        offset: Offset of the first compressed byte.

    Attributes:
        offset: Offset of the next compressed byte that is needed. It moves back at the end of a member, by the bytes
            that the decompressor took but that do not belong to it.
        produced: Number of decompressed bytes before this position.
        reusable: Whether another reader may continue here.
    """

    def __init__(self, format_: _Format, offset: int) -> None:
        self._format = format_
        self._member: _Decompressor | None = None
        self._has_members = False
        self._in_padding = False
        self.offset = offset
        self.produced = 0
        self.reusable = True

    @property
    def needs_input(self) -> bool:
        """Whether the next bytes need further compressed bytes. Otherwise they are decompressed without any."""
        return self._member is None or self._member.needs_input

    @property
    def is_complete(self) -> bool:
        """Whether the data may end here."""
        return self._member is None and self._has_members

    @property
    def can_be_copied(self) -> bool:
        """Whether :meth:`copy` works here: between members, and for zlib wherever it has used all of its input."""
        return self._member is None or (isinstance(self._member, _Inflater) and self._member.needs_input)

    def copy(self) -> _Decoder:
        """Return an independent decoder at the same position. It must be one where this is possible."""
        twin = _Decoder(self._format, self.offset)
        twin._has_members, twin._in_padding, twin.produced = self._has_members, self._in_padding, self.produced
        if isinstance(self._member, _Inflater):
            twin._member = self._member.copy()
        return twin

    def decompress(self, data: memoryview, max_bytes: int) -> bytes:
        """Return up to `max_bytes` bytes, possibly none, and move on.

        Args:
            data: Compressed bytes from `offset` on, at least one of them. Empty if no input is needed.
            max_bytes: Maximum number of bytes, 1 or more.

        Raises:
            _MalformedData: If the compressed data is damaged or followed by something else.
        """
        if self._member is None:
            if self._skip_padding(data):
                return b""
            self._member = self._open_member(data[0])
        try:
            output = self._member.decompress(data, max_bytes)
        except self._format.error as error:
            self.reusable = False
            raise _MalformedData(f"its {self._format.name} data cannot be decompressed: {error}") from error
        self.offset += len(data)
        self.produced += len(output)
        if self._member.eof:
            self.offset -= len(self._member.unused_data)
            self._member = None
            self._has_members = True
        return output

    def _skip_padding(self, data: memoryview) -> bool:
        """Move on by `data`, if it is padding behind the last member. Return whether it is."""
        if not (self._has_members and self._format.may_be_padded and data[0] == 0):
            return False
        zeros = len(data) - len(data.tobytes().lstrip(b"\0"))
        self._in_padding = True
        self.offset += zeros
        return True

    def _open_member(self, first_byte: int) -> _Decompressor:
        is_allowed = self._format.may_repeat or not self._has_members
        if self._in_padding or not is_allowed or first_byte not in self._format.first_bytes:
            self.reusable = False
            name = self._format.name
            raise _MalformedData(
                f"something else follows its {name} data" if self._has_members else f"it is no {name} data"
            )
        return self._format.open_member()
