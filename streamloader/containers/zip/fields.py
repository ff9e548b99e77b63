"""Decode what the local headers and the central directory of a zip file have in common: names, times, extra fields.

Sources: APPNOTE.TXT 6.3.10, sections 4.4 (fields), 4.5 (extra fields) and appendix D (names), and Info-ZIP's
extrafld.txt (times, 0x5455; Unicode names, 0x7075).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import struct
import zlib
from typing import Final

__all__ = [
    "DEFLATED",
    "DESCRIPTOR_FLAG",
    "ENCRYPTION_FLAGS",
    "NO_FIELDS",
    "STORED",
    "UTF8_FLAG",
    "ZIP64_FIELD",
    "decode_name",
    "decode_time",
    "resolve_volume",
    "resolve_zip64",
    "split_extra",
]

STORED: Final = 0
DEFLATED: Final = 8

DESCRIPTOR_FLAG: Final = 1 << 3  # sizes and checksum follow the content
UTF8_FLAG: Final = 1 << 11
ENCRYPTION_FLAGS: Final = 1 << 0 | 1 << 6 | 1 << 13  # traditional, strong, masked headers

ZIP64_FIELD: Final = 0x0001
_TIME_FIELD: Final = 0x5455
_UNICODE_PATH_FIELD: Final = 0x7075
NO_FIELDS: Final[dict[int, bytes]] = {}

_FIELD_HEADER: Final = struct.Struct("<HH")
_UNICODE_PATH_HEADER: Final = struct.Struct("<BL")
_TIME: Final = struct.Struct("<Bl")
_SIZE_64: Final = struct.Struct("<Q")
_VOLUME: Final = struct.Struct("<L")
_SENTINEL_16: Final = 0xFFFF
_SENTINEL_32: Final = 0xFFFFFFFF  # the value is in the zip64 field
_MODIFIED_FLAG: Final = 1  # of the extended timestamp


def split_extra(extra: bytes) -> dict[int, bytes]:
    """Return the extra fields of a header by their ids. Of several with the same id, the first one counts.

    Raises:
        ValueError: If a field is longer than the rest.
    """
    fields: dict[int, bytes] = {}
    position = 0
    while position + _FIELD_HEADER.size <= len(extra):
        field_id, length = _FIELD_HEADER.unpack_from(extra, position)
        position += _FIELD_HEADER.size
        if position + length > len(extra):
            raise ValueError(f"its extra field {field_id:#06x} is longer than the space for all of them")
        fields.setdefault(field_id, extra[position : position + length])
        position += length
    return fields


def decode_name(raw: bytes, flags: int, fields: dict[int, bytes], *, is_unix: bool = False) -> str:
    """Return the name of a member: UTF-8 if the flag is set or an extra field contains it, otherwise CP437.

    Writers of macOS and Debian store UTF-8 without any sign of it. The name is therefore also UTF-8 if the member was
    made on Unix and its name is valid UTF-8, which names in CP437 practically never are. A leading "./" is removed.
    Other systems' separators (a backslash) are part of the name.

    Args:
        raw: Name in the header.
        flags: General purpose flags.
        fields: Extra fields.
        is_unix: Whether the member was made on Unix, which only the directory states.

    Raises:
        UnicodeDecodeError: If the name should be UTF-8 and is not.
    """
    if raw.isascii() and _UNICODE_PATH_FIELD not in fields:
        name = raw.decode("ascii")
    else:
        name = _decode_unicode_path(raw, fields) or _decode_plain_name(raw, flags, is_unix=is_unix)
    return name.removeprefix("./") or name


def _decode_plain_name(raw: bytes, flags: int, *, is_unix: bool) -> str:
    if flags & UTF8_FLAG:
        return raw.decode("utf-8")
    if is_unix:
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
    return raw.decode("cp437")


def _decode_unicode_path(raw: bytes, fields: dict[int, bytes]) -> str:
    """Return the name from its extra field. "" if there is none, or one that belongs to an earlier name."""
    field = fields.get(_UNICODE_PATH_FIELD, b"")
    if len(field) < _UNICODE_PATH_HEADER.size:
        return ""
    version, checksum = _UNICODE_PATH_HEADER.unpack_from(field)
    if version != 1 or checksum != zlib.crc32(raw):
        return ""
    return field[_UNICODE_PATH_HEADER.size :].decode("utf-8")


def decode_time(date: int, time: int, fields: dict[int, bytes]) -> float | None:
    """Return the time of modification in seconds since 1970, or None if it is invalid.

    The format's own times have no time zone and are taken as UTC. The extended timestamp has priority.

    Args:
        date: Date in the format of MS-DOS.
        time: Time in the format of MS-DOS.
        fields: Extra fields.
    """
    field = fields.get(_TIME_FIELD, b"")
    if len(field) >= _TIME.size and field[0] & _MODIFIED_FLAG:
        return float(_TIME.unpack_from(field)[1])
    hours, minutes, seconds = time >> 11, time >> 5 & 0x3F, (time & 0x1F) * 2
    midnight = _decode_date(date)
    if midnight is None or hours > 23 or minutes > 59 or seconds > 59:  # noqa: PLR2004 - of a clock
        return None
    return midnight + hours * 3600 + minutes * 60 + seconds


@functools.lru_cache(maxsize=1024)
def _decode_date(date: int) -> float | None:
    try:
        day = dt.datetime(1980 + (date >> 9), date >> 5 & 0xF, date & 0x1F, tzinfo=dt.UTC)
    except ValueError:
        return None
    return day.timestamp()


def resolve_zip64(values: tuple[int, ...], fields: dict[int, bytes]) -> tuple[int, ...]:
    """Return sizes and offsets with those from the zip64 extra field that have no space in the header.

    Args:
        values: Values of the header, in the order in which the field has them.
        fields: Extra fields.

    Raises:
        ValueError: If the field is too short.
    """
    field = fields.get(ZIP64_FIELD)
    if field is None or _SENTINEL_32 not in values:
        return values
    resolved, position = [], 0
    for value in values:
        if value != _SENTINEL_32:
            resolved.append(value)
            continue
        if position + _SIZE_64.size > len(field):
            raise ValueError("its zip64 extra field is too short")
        resolved.append(_SIZE_64.unpack_from(field, position)[0])
        position += _SIZE_64.size
    return tuple(resolved)


def resolve_volume(volume: int, values: tuple[int, ...], fields: dict[int, bytes]) -> int:
    """Return the number of a volume, from the zip64 extra field if it has no space in the header.

    Args:
        volume: Number in the header.
        values: Values of the header that precede it in the field.
        fields: Extra fields.
    """
    field = fields.get(ZIP64_FIELD, b"")
    position = _SIZE_64.size * values.count(_SENTINEL_32)
    if volume != _SENTINEL_16 or position + _VOLUME.size > len(field):
        return volume
    return int(_VOLUME.unpack_from(field, position)[0])
