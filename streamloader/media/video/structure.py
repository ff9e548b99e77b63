"""Scan the outermost structure of a media file: its declared size, and where its tables are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Final, NamedTuple

from streamloader.errors import LimitExceeded
from streamloader.media.declared_sizes import ReadAt, read_declared_size
from streamloader.media.video.files import open_media_file
from streamloader.media.video.remote import VideoFile

__all__ = [
    "EbmlElement", "check_header_size", "declared_size", "find_box", "find_movie", "find_segment_end",
    "iterate_elements", "may_turn_matroska", "read_element", "read_number",
]  # fmt: skip

_EBML_ID: Final = 0x1A45DFA3  # the header element of Matroska and WebM
_SEGMENT_ID: Final = 0x18538067  # the Matroska element that contains all others
_TRACKS_ID: Final = b"\x16\x54\xae\x6b"
# The element in Tracks, its size, and the beginning of one of its parts, of padding or of a checksum
_PROJECTION: Final = re.compile(rb"\x76\x70[^\x00].{0,7}(?:\x76[\x71-\x75]|\xec|\xbf)", re.DOTALL)
_CLUSTER_ID: Final = b"\x1f\x43\xb6\x75"  # of frames
_MAX_TRACKS_BYTES: Final = 64 << 10  # the tracks are described near the beginning
_BOX_TYPES: Final = frozenset(
    b"ftyp moov mdat free skip wide pnot udta moof mfra sidx ssix styp uuid meta emsg prft pdin".split()
)
_UNUSUAL_BOXES: Final = frozenset({b"moof", b"uuid", b"meta", b"udta", b"sidx"})  # not beside moov in usual files
_MAX_REMOTE_BOXES: Final = 256  # in a store, each box may cost a request
_MAX_LOCAL_BOXES: Final = 1 << 20  # fragments of a week
_MAX_EBML_ELEMENTS: Final = 16  # the header and some padding come before the segment
_UNKNOWN_END: Final = 1 << 62
_MAX_EBML_CHILDREN: Final = 1 << 16  # of one element; each costs a read


class _Box(NamedTuple):
    kind: bytes
    start: int
    content_start: int
    end: int  # may lie past the end of the file


def declared_size(file: str | VideoFile) -> int | None:
    """Return the file size in bytes that the outermost structure declares, or None if it declares none.

    Supported are ISO base media and QuickTime (ISO/IEC 14496-12, 4.2), Matroska and WebM (RFC 8794, RFC 9559), and the
    formats of :mod:`streamloader.media.declared_sizes`. None is returned for a fragmented file with more than a million
    boxes, or more than 256 in a store.

    Args:
        file: Path of a local file, or an open file in a store.
    """
    if isinstance(file, VideoFile):
        return _declared_size(file.remote.read_at, file.remote.size, _MAX_REMOTE_BOXES)
    with open(open_media_file(file), "rb") as local:
        return _declared_size(_make_reader(local), local.seek(0, 2), _MAX_LOCAL_BOXES)


def check_header_size(file: VideoFile) -> None:
    """Check the size of ``moov`` in a store, which FFmpeg reads as a whole.

    Raises:
        LimitExceeded: If ``moov`` declares more than ``limits.header_bytes``.
    """
    limit = file.remote.limits.header_bytes
    for count, box in enumerate(_iterate_boxes(file.remote.read_at, file.remote.size)):
        if box is None or count >= _MAX_REMOTE_BOXES or box.kind == b"moof":
            return
        header_bytes = min(box.end, file.remote.size) - box.start if box.kind == b"moov" else 0
        if header_bytes > limit:
            raise LimitExceeded(
                f"{file.remote.address}: its header has {header_bytes} bytes, more than {limit}: if that is correct, "
                "raise Limits(header_bytes=...)",
                address=file.remote.address,
                offset=box.start,
            )


def may_turn_matroska(file: str | VideoFile) -> bool:
    """Return whether a Matroska or WebM file may have an element that turns its frames (Projection, RFC 9559, 5.1.4).

    It is searched as a sequence of bytes, in front of the first cluster.
    """
    if isinstance(file, VideoFile):
        data = file.remote.read_at(0, _MAX_TRACKS_BYTES)
    else:
        with open(open_media_file(file), "rb") as local:
            data = local.read(_MAX_TRACKS_BYTES)
    header, cluster, _ = data.partition(_CLUSTER_ID)
    return not cluster or _TRACKS_ID not in header or _PROJECTION.search(header) is not None


def find_movie(read: ReadAt, size: int) -> tuple[int, int] | None:
    """Return the byte range of ``moov`` in an ISO base media file that is not fragmented, otherwise None.

    Args:
        read: Function that returns up to `count` bytes from an offset.
        size: Size of the file in bytes.
    """
    found = None
    for count, box in enumerate(_iterate_boxes(read, size)):
        if box is None or count >= _MAX_REMOTE_BOXES or box.kind in _UNUSUAL_BOXES or (box.kind == b"moov" and found):
            return None
        if box.kind == b"moov":
            if box.content_start - box.start != 8:
                return None
            found = box.start, box.end
    return found


def find_box(read: ReadAt, size: int, kind: bytes, max_bytes: int) -> tuple[int, int] | None:
    """Return the byte range of the contents of the first outermost box of a type, also in a fragmented file.

    None if there is none, or if it is larger than `max_bytes` or than the file.
    """
    for count, box in enumerate(_iterate_boxes(read, size)):
        if box is None or count >= _MAX_REMOTE_BOXES:
            return None
        if box.kind == kind:
            fits = box.end <= size and box.end - box.content_start <= max_bytes
            return (box.content_start, box.end) if fits else None
    return None


class EbmlElement(NamedTuple):
    """An element of Matroska or WebM (RFC 8794).

    Attributes:
        identifier: Identifier of the element, with the marker of its length.
        start: Offset of its contents in bytes.
        end: Offset of the end of its contents, or None if its size is unknown.
    """

    identifier: int
    start: int
    end: int | None


def read_element(read: ReadAt, offset: int) -> EbmlElement | None:
    """Return the EBML element at an offset in bytes, or None if there is none."""
    head = read(offset, 16)
    identifier, id_bytes = read_number(head, keep_marker=True)
    length, length_bytes = read_number(head[id_bytes:])
    if not id_bytes or not length_bytes:
        return None
    start = offset + id_bytes + length_bytes
    return EbmlElement(identifier, start, None if length == (1 << 7 * length_bytes) - 1 else start + length)


def iterate_elements(read: ReadAt, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield identifier, and start and end of the contents, of the EBML elements in a byte range (RFC 8794).

    The contents of an element of unknown size extend to `end`. The last element may extend past it.
    """
    offset = start
    for _ in range(_MAX_EBML_CHILDREN):
        element = read_element(read, offset) if offset < end else None
        if element is None:
            return
        offset = end if element.end is None else element.end
        yield element.identifier, element.start, offset


def find_segment_end(read: ReadAt) -> int | None:
    """Return the offset at which the Matroska segment ends, or None if its size is unknown."""
    for identifier, _, end in islice(iterate_elements(read, 0, _UNKNOWN_END), _MAX_EBML_ELEMENTS):
        if end == _UNKNOWN_END:
            return None
        if identifier == _SEGMENT_ID:
            return end
    return None


def _make_reader(file: BinaryIO) -> ReadAt:
    def read(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    return read


def _declared_size(read: ReadAt, size: int, max_boxes: int) -> int | None:
    start = read(0, 12)
    if start[4:8] in _BOX_TYPES:
        end = 0
        for count, box in enumerate(_iterate_boxes(read, size)):
            if box is None or count == max_boxes:
                return None
            end = box.end
        return end  # any bytes after this are not boxes
    if start[:4] == _EBML_ID.to_bytes(4, "big"):
        return find_segment_end(read)
    return read_declared_size(start, read, size)


def _iterate_boxes(read: ReadAt, size: int) -> Iterator[_Box | None]:
    """Yield the outermost boxes up to the first unknown type, or None and stop at a box with an invalid length."""
    offset = 0
    while offset < size:
        head = read(offset, 16)
        if len(head) < 8 or head[4:8] not in _BOX_TYPES:
            return
        length, header = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        if length == 0:
            length = size - offset  # the last box extends to the end of the file
        if length < 8:
            yield None
            return
        yield _Box(head[4:8], offset, offset + header, offset + length)
        offset += length


def read_number(data: bytes, *, keep_marker: bool = False) -> tuple[int, int]:
    """Read one EBML variable-size integer: return its value and its size in bytes, or (0, 0) if it is invalid.

    Args:
        data: Bytes that begin with the integer.
        keep_marker: Whether the marker of its size is a part of the value, as in identifiers. Defaults to False.
    """
    if not data or not data[0]:
        return 0, 0
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length
