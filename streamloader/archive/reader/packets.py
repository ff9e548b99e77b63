"""The bytes of the packets of one run: which are read in one go, how far ahead, and whether they are the right ones."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.archive.reader.plan import spans_of

if TYPE_CHECKING:
    from streamloader.archive.reader.chunk_bytes import Block, ChunkStores
    from streamloader.archive.reader.lookup import Chunk

__all__ = ["AHEAD", "RunBytes"]

AHEAD: Final = 16 << 20  # bytes of a run that are asked for before they are needed
_NEAR: Final = 64 << 10  # bytes that are rather read than left out: a request costs more
_LARGEST: Final = 2 << 20  # bytes of one request, so that several are under way and the first are decoded meanwhile
_LOCAL_NEAR: Final = 16 << 10
_WHOLE: Final = 64 << 20  # bytes of a chunk that is read whole to compare its digest, where its index has no checksums


class RunBytes:
    """The bytes of the packets of one run; for one thread.

    Args:
        stores: where they come from.
        chunk: that they are of.
        packets: that are going to be asked for, ascending.
        ahead: nobody needs them yet.

    Attributes:
        size: bytes that have to be fetched for it.
    """

    def __init__(self, stores: ChunkStores, chunk: Chunk, packets: Sequence[int], *, ahead: bool = False) -> None:
        self._stores = stores
        self._ahead = ahead
        self._chunk = chunk
        self._local = stores.is_local(chunk.row.place)
        self._known = [] if self._local else stores.blocks(chunk)
        index = chunk.index
        whole = index.crc is None and len(packets) == len(index.offset) and chunk.row.bytes <= _WHOLE
        if whole:
            spans = [(0, chunk.row.bytes)]
        else:
            spans = spans_of(index, self._missing(packets), _LOCAL_NEAR if self._local else _NEAR, _LARGEST)
        self._digest = whole  # is still to be compared
        self._spans = spans
        self.size = sum(end - start for start, end in spans)
        self._blocks: dict[int, Block] = {}  # by number of the span
        self._asked = 0  # spans that were asked for
        self._at: int = 0  # number of the span that the last packet came from
        self._view: memoryview | None = None
        self._begin = self._end = 0  # of what `view` shows

    def ask(self, most: int = AHEAD) -> int:
        """Begin to fetch up to `most` bytes beyond what is in use; return how many are left of them."""
        if self._local:
            return most
        most -= sum(end - start for start, end in self._spans[self._at : self._asked])
        while self._asked < len(self._spans) and most > 0:
            start, end = self._spans[self._asked]
            self._blocks[self._asked] = self._stores.ask(self._chunk, start, end, ahead=self._ahead)
            self._asked += 1
            most -= end - start
        return most

    def packet(self, number: int) -> memoryview:
        """Return the bytes of a packet, which have the checksum that the index says.

        Raises:
            CorruptStream: they do not.
            StoreError: they could not be had.
        """
        index = self._chunk.index
        start = int(index.offset[number])
        end = start + int(index.size[number])
        if self._view is None or not self._begin <= start <= end <= self._end:
            self._turn_to(start, end)
        assert self._view is not None
        data = self._view[start - self._begin : end - self._begin]
        if index.crc is not None and zlib.crc32(data) != int(index.crc[number]):
            raise self._stores.corrupt(self._chunk, f"has other bytes than it was made with in packet {number}")
        return data

    def _missing(self, packets: Sequence[int]) -> Sequence[int]:
        """Return those packets that are not in what is known."""
        if not self._known or not len(packets):
            return packets
        starts = self._chunk.index.offset[packets]
        ends = starts + self._chunk.index.size[packets]
        there = np.zeros(len(packets), bool)
        for block in self._known:
            there |= (starts >= block.start) & (ends <= block.end)
        self._stores.hit(int((ends - starts)[there].sum()))
        missing: list[int] = np.asarray(packets)[~there].tolist()
        return missing

    def _turn_to(self, start: int, end: int) -> None:
        if self._local:
            begin, stop = self._spans[self._number(start, end)]
            data = self._stores.read_local(self._chunk, [(begin, stop)])[0]
        else:
            block = next((block for block in self._known if block.start <= start and end <= block.end), None)
            if block is None:
                number = self._at = self._number(start, end)
                block = self._blocks.pop(number, None) or self._stores.ask(self._chunk, *self._spans[number])
                self._asked = max(self._asked, number + 1)
                self.ask()
            data = self._stores.wait(self._chunk, block)
            begin, stop = block.start, block.end
        if self._digest:
            self._compare(data)
        self._view, self._begin, self._end = memoryview(data), begin, stop

    def _number(self, start: int, end: int) -> int:
        """Return the number of the span that holds these bytes."""
        for number in itertools.chain(range(self._at, len(self._spans)), range(self._at)):
            if self._spans[number][0] <= start and end <= self._spans[number][1]:
                return number
        self._spans.append((start, end))  # more is wanted than was foreseen
        return len(self._spans) - 1

    def _compare(self, data: bytes) -> None:
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != self._chunk.row.digest:
            raise self._stores.corrupt(self._chunk, "has other bytes than it was made with")
        self._digest = False
