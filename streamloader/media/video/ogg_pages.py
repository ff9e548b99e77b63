"""Verify the pages of an Ogg file (RFC 3533), of which FFmpeg leaves out damaged ones without an error."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from streamloader.media.video.files import open_media_file

if TYPE_CHECKING:
    from streamloader.media.video.remote import Video, VideoFile

__all__ = ["find_damaged_page"]

_PATTERN: Final = b"OggS"
_HEADER: Final = struct.Struct("<4sBBqIIIB")  # pattern, version, flags, position, serial, sequence, checksum, segments
_CHECKSUM_OFFSET: Final = 22
_IS_FIRST: Final = 2  # flag of the first page of a stream
_MAX_PAGE_BYTES: Final = _HEADER.size + 255 + 255 * 255
_TAGS: Final = (b"TAG", b"APETAGEX", b"ID3")  # that programs append to files of any format
_REVERSED_BYTES: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _OggPage(NamedTuple):
    is_first: bool
    position: int
    serial: int
    sequence: int


def find_damaged_page(video: Video, file: VideoFile | None) -> int | None:
    """Return the byte offset of the first page that is damaged or follows a missing one, or None if all are intact.

    Of a file in a store, only the last pages are verified: its size in memory is limited.

    Args:
        video: Path of a local file, or a file in a store.
        file: Open bytes of a file in a store.

    Raises:
        StoreError: If the store fails to deliver bytes.
    """
    if file is None:
        with open(open_media_file(str(video)), "rb") as local:
            return _verify_pages(local)
    start = max(0, file.remote.size - 2 * _MAX_PAGE_BYTES)
    data = file.remote.read_at(start, file.remote.size - start)
    first = max(0, data.find(_PATTERN))
    damaged = _verify_pages(io.BytesIO(data[first:]))
    return None if damaged is None else start + first + damaged


def _verify_pages(file: BinaryIO) -> int | None:
    last: dict[int, _OggPage] = {}
    while True:
        offset = file.tell()
        head = file.read(_HEADER.size)
        if not head:
            return None
        page = _read_page(head, file)
        if page is None:
            file.seek(offset)
            return None if _is_tag(file) else offset
        before = last.get(page.serial)
        is_leap = before is not None and not page.is_first and page.sequence != (before.sequence + 1) & 0xFFFFFFFF
        if before is not None and is_leap and before.position > 0:  # a recorded broadcast leaps after its headers
            return offset
        last[page.serial] = page


def _read_page(head: bytes, file: BinaryIO) -> _OggPage | None:
    """Return the page that begins with `head`, or None if it is damaged."""
    if len(head) < _HEADER.size:
        return None
    pattern, _, flags, position, serial, sequence, checksum, segments = _HEADER.unpack(head)
    if pattern != _PATTERN:
        return None
    lacing = file.read(segments)
    body = file.read(sum(lacing))
    if len(lacing) < segments or len(body) < sum(lacing):
        return None
    page = head[:_CHECKSUM_OFFSET] + bytes(4) + head[_CHECKSUM_OFFSET + 4 :] + lacing + body
    return (
        _OggPage(bool(flags & _IS_FIRST), position, serial, sequence) if _compute_checksum(page) == checksum else None
    )


def _compute_checksum(data: bytes) -> int:
    """Return the CRC-32 of Ogg: zlib's with the bits of each byte and of the result reversed, and no inversion."""
    value = ~zlib.crc32(data.translate(_REVERSED_BYTES), 0xFFFFFFFF) & 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def _is_tag(file: BinaryIO) -> bool:
    """Return whether the rest of a file is padding, or a tag that some programs append."""
    rest = file.read(_MAX_PAGE_BYTES)
    return rest.startswith(_TAGS) or not rest.strip(b"\0")
