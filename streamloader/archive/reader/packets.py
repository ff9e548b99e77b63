"""Read the packets of one decode span: how they are grouped into requests, read ahead, and verified."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.archive.reader.plan import byte_spans

if TYPE_CHECKING:
    from streamloader.archive.reader.chunk_bytes import ByteBlock, ChunkReader
    from streamloader.archive.reader.lookup import Chunk

__all__ = ["READ_AHEAD_BYTES", "PacketReader"]

READ_AHEAD_BYTES: Final = 16 << 20
_MAX_GAP_BYTES: Final = 64 << 10  # reading this many unneeded bytes costs less than another request
_MAX_LOCAL_GAP_BYTES: Final = 16 << 10
_MAX_REQUEST_BYTES: Final = 2 << 20  # several requests run at once, and the first is decoded while the others arrive
_MAX_DIGEST_CHUNK_BYTES: Final = 64 << 20


class PacketReader:
    """Reads the packets of one decode span. For use by one thread.

    Packets are verified by the checksums of the chunk's index. If the index has no checksums and all packets are read,
    the chunk is read as a whole and its digest is verified, unless it is very large.

    Args:
        chunks: Reader of the bytes of chunks.
        chunk: Chunk that contains the packets.
        packets: Numbers of the packets that will be read, ascending.
        prefetch: Whether the bytes are counted as prefetched. Defaults to False.

    Attributes:
        size: Number of bytes that have to be fetched.
    """

    def __init__(self, chunks: ChunkReader, chunk: Chunk, packets: Sequence[int], *, prefetch: bool = False) -> None:
        self._chunks = chunks
        self._prefetch = prefetch
        self._chunk = chunk
        self._local = chunks.is_local(chunk.row.place)
        self._cached_blocks = [] if self._local else chunks.list_blocks(chunk)
        index = chunk.index
        whole = index.crc is None and len(packets) == len(index.offset) and chunk.row.bytes <= _MAX_DIGEST_CHUNK_BYTES
        if whole:
            spans = [(0, chunk.row.bytes)]
        else:
            max_gap = _MAX_LOCAL_GAP_BYTES if self._local else _MAX_GAP_BYTES
            spans = byte_spans(index, self._missing_packets(packets), max_gap, _MAX_REQUEST_BYTES)
        self._verify_digest = whole
        self._spans = spans
        self.size = sum(end - start for start, end in spans)
        self._blocks: dict[int, ByteBlock] = {}  # requested and not yet in use, by number of the span
        self._requested = 0  # number of spans requested so far
        self._current: int = 0  # number of the span that the last packet came from
        self._view: memoryview | None = None
        self._view_start = self._view_end = 0

    def request(self, max_bytes: int = READ_AHEAD_BYTES) -> int:
        """Request up to `max_bytes` bytes after those in use. Return the unused part of that budget."""
        if self._local:
            return max_bytes
        remaining = max_bytes - sum(end - start for start, end in self._spans[self._current : self._requested])
        while self._requested < len(self._spans) and remaining > 0:
            start, end = self._spans[self._requested]
            self._blocks[self._requested] = self._chunks.request(self._chunk, start, end, prefetch=self._prefetch)
            self._requested += 1
            remaining -= end - start
        return remaining

    def read_packet(self, number: int) -> memoryview:
        """Return the bytes of a packet, verified by its checksum in the index.

        Raises:
            CorruptStream: If the checksum differs.
            StoreError: If the bytes cannot be read.
        """
        index = self._chunk.index
        start = int(index.offset[number])
        end = start + int(index.size[number])
        if self._view is None or not self._view_start <= start <= end <= self._view_end:
            self._load_bytes(start, end)
        assert self._view is not None
        data = self._view[start - self._view_start : end - self._view_start]
        if index.crc is not None and zlib.crc32(data) != int(index.crc[number]):
            raise self._chunks.corrupt_error(self._chunk, f"has a wrong checksum in packet {number}")
        return data

    def _missing_packets(self, packets: Sequence[int]) -> Sequence[int]:
        """Return the packets that are in no cached block, and count the bytes of the others as hits."""
        if not self._cached_blocks or not len(packets):
            return packets
        starts = self._chunk.index.offset[packets]
        ends = starts + self._chunk.index.size[packets]
        cached = np.zeros(len(packets), bool)
        for block in self._cached_blocks:
            cached |= (starts >= block.start) & (ends <= block.end)
        self._chunks.count_hit(int((ends - starts)[cached].sum()))
        missing: list[int] = np.asarray(packets)[~cached].tolist()
        return missing

    def _load_bytes(self, start: int, end: int) -> None:
        """Make the block that contains the bytes [start, end) the current one."""
        if self._local:
            block_start, block_end = self._spans[self._find_span(start, end)]
            data = self._chunks.read_local(self._chunk, [(block_start, block_end)])[0]
        else:
            block = next((block for block in self._cached_blocks if block.start <= start and end <= block.end), None)
            if block is None:
                number = self._current = self._find_span(start, end)
                block = self._blocks.pop(number, None) or self._chunks.request(self._chunk, *self._spans[number])
                self._requested = max(self._requested, number + 1)
                self.request()
            data = self._chunks.wait_for(self._chunk, block)
            block_start, block_end = block.start, block.end
        if self._verify_digest:
            self._compare_digest(data)
        self._view, self._view_start, self._view_end = memoryview(data), block_start, block_end

    def _find_span(self, start: int, end: int) -> int:
        """Return the number of the span that contains the bytes [start, end). It is added if there is none."""
        for number in itertools.chain(range(self._current, len(self._spans)), range(self._current)):
            if self._spans[number][0] <= start and end <= self._spans[number][1]:
                return number
        self._spans.append((start, end))
        return len(self._spans) - 1

    def _compare_digest(self, data: bytes) -> None:
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != self._chunk.row.digest:
            raise self._chunks.corrupt_error(self._chunk, "has a wrong digest")
        self._verify_digest = False
