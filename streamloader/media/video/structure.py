"""What the outermost structure of a file says: how long it is, and where only the coded pictures and sounds lie."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple, TypeAlias

from streamloader.media.video.remote import Spans, VideoFile

__all__ = ["declared_size", "payload"]

ReadAt: TypeAlias = "Callable[[int, int], bytes]"

_SEGMENT: Final = 0x18538067  # Matroska's element that holds everything else
_EBML: Final = 0x1A45DFA3
_NOT_FILLED_IN: Final = 0xFFFFFFF0  # sizes from here on are placeholders of live recordings
_BOX_TYPES: Final = frozenset(
    b"ftyp moov mdat free skip wide pnot udta moof mfra sidx ssix styp uuid meta emsg prft pdin".split()
)


_MOST_BOXES: Final = 256  # that are looked at in a store, where each may cost a request


class _Box(NamedTuple):
    kind: bytes
    start: int
    content: int  # where its content begins
    end: int  # behind it; perhaps behind the end of the file


def declared_size(file: str | VideoFile) -> int | None:
    """Return the size in bytes that the outermost structures of the file add up to; None where they do not say.

    Known: ISO base media and QuickTime (ISO/IEC 14496-12, 4.2), Matroska and WebM (RFC 8794, RFC 9559), RIFF. Files in
    a store that have more than 256 such structures (they are fragmented) do not say.

    Args:
        file: the path of a local one, or an open one in a store.
    """
    if isinstance(file, VideoFile):
        return _declared_size(file.remote.read_at, file.remote.size, _MOST_BOXES)
    with open(file, "rb") as local:
        return _declared_size(_reading(local), local.seek(0, 2), None)


def payload(file: VideoFile) -> Spans:
    """Return the spans of an ISO base media file that hold nothing but coded samples, as ``moov`` alone tells of them.

    None where that is not so: in fragmented files, in other formats, or where the structure is not understood.
    """
    spans: list[tuple[int, int]] = []
    kinds = set()
    for count, box in enumerate(_boxes(file.remote.read_at, file.remote.size)):
        if box is None or count >= _MOST_BOXES or box.kind == b"moof" or box.end > file.remote.size:
            return ()
        kinds.add(box.kind)
        if box.kind == b"mdat":
            spans.append((box.content, box.end))
    return tuple(spans) if b"moov" in kinds else ()


def _reading(file: BinaryIO) -> ReadAt:
    def read(at: int, count: int) -> bytes:
        file.seek(at)
        return file.read(count)

    return read


def _declared_size(read: ReadAt, size: int, most: int | None) -> int | None:
    start = read(0, 12)
    if start[4:8] in _BOX_TYPES:
        at = 0
        for count, box in enumerate(_boxes(read, size)):
            if box is None or count == most:
                return None
            at = box.end
        return at  # what follows is no box
    if start[:4] == _EBML.to_bytes(4, "big"):
        return _segment(read)
    if start[:4] == b"RIFF" and len(start) == 12:
        length = int(struct.unpack("<I", start[4:8])[0])
        return length + 8 if 0 < length < _NOT_FILLED_IN else None
    return None


def _boxes(read: ReadAt, size: int) -> Iterator[_Box | None]:
    """Yield the outermost boxes up to the first thing that is none; None for one that makes no sense."""
    at = 0
    while at < size:
        head = read(at, 16)
        if len(head) < 8 or head[4:8] not in _BOX_TYPES:
            return
        length, header = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        if length == 0:
            length = size - at  # the last box goes on to the end
        if length < 8:
            yield None
            return
        yield _Box(head[4:8], at, at + header, at + length)
        at += length


def _segment(read: ReadAt) -> int | None:
    at = 0
    for _ in range(16):  # the header, perhaps padding, then the segment
        head = read(at, 16)
        identifier, used = _vint(head, keep_marker=True)
        length, used_by_length = _vint(head[used:], keep_marker=False)
        if not used or not used_by_length:
            return None
        unknown = length == (1 << 7 * used_by_length) - 1
        at += used + used_by_length
        if identifier == _SEGMENT:
            return None if unknown else at + length
        if unknown:
            return None
        at += length
    return None


def _vint(data: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """Read one EBML number: its value, and the bytes it takes (0 if it is none)."""
    if not data or not data[0]:
        return 0, 0
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length
