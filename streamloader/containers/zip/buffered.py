"""Keep a part of a container in memory while it is parsed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from typing_extensions import override

from streamloader.containers.base import ContainerSource

__all__ = ["BufferedSource"]

_PIECE_BYTES: Final = 1 << 20


class BufferedSource(ContainerSource):
    """A source with one span of its bytes in memory. All others are read from the source.

    Args:
        source: Source of all bytes.
        start: Offset of the first byte in memory.
        data: Bytes in memory.
    """

    def __init__(self, source: ContainerSource, start: int, data: bytes) -> None:
        super().__init__(source._store, source.info)  # noqa: SLF001 - the same source
        self._start = start
        self._end = start + len(data)
        self._data = data

    @classmethod
    async def read_span(cls, source: ContainerSource, start: int, end: int) -> BufferedSource:
        """Read the bytes [start, end), in one request. What lies after the end of the object is left out."""
        return cls(source, start, await source.read(start, max(start, min(end, source.size))))

    def peek(self, start: int, end: int) -> bytes:
        """Return those of the bytes [start, end) that are in memory, up to the first one that is not."""
        return self._data[start - self._start : end - self._start] if start >= self._start else b""

    @override
    async def read(self, start: int, end: int) -> bytes:
        data = self.peek(start, end)
        if len(data) == end - start:
            return data
        if data:
            return data + await super().read(self._end, end)
        if start < self._start < end <= self._end:
            return await super().read(start, self._start) + self._data[: end - self._start]
        return await super().read(start, end)

    @override
    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        if self._start <= start < self._end:
            last = min(end, self._end)
            for offset in range(start, last, _PIECE_BYTES):
                yield self._data[offset - self._start : min(offset + _PIECE_BYTES, last) - self._start]
            start = last
        async with contextlib.aclosing(super().stream(start, end)) as pieces:
            async for piece in pieces:
                yield piece
