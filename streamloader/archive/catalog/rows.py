"""Build rows from the values that a catalog stores. This is the one place where stored values are checked.

A catalog may have been written by anyone. Every value that is read from it passes through this module, whatever the
kind of catalog, before any other code uses it. A value of the wrong type, size or range, or one that contradicts
another value of its row, becomes a CatalogError that names the row and the field.

Names of fields are those under which the catalogs store them (docs/archive.md), so that users find them there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NoReturn

from streamloader.archive.catalog.base import CatalogHeader, ChunkRow, IngestJob, LocatedChunks, Place, VideoRow
from streamloader.archive.catalog.chunk_paths import is_path_of_chunk
from streamloader.archive.catalog.fields import (
    MAX_SHOWN_CHARS,
    Check,
    RefusedValue,
    describe_value,
    parse_json_object,
    real_number,
    text,
    whole_number,
)
from streamloader.archive.catalog.validation import MODES, check_metadata
from streamloader.errors import CatalogError, ConfigError

__all__ = [
    "MAX_CHUNKS_PER_VIDEO", "MAX_FRAMES", "MAX_ROW_KEY", "MAX_UNCOUNTED_VIDEOS", "build_chunk", "build_header",
    "build_job", "build_place", "build_video", "check_chunk_path", "check_consecutive", "check_field", "check_index",
    "check_located", "check_video_count", "name_catalog", "parse_coding", "raise_malformed",
]  # fmt: skip

MAX_FRAMES: Final = 1 << 62
MAX_CHUNKS_PER_VIDEO: Final = 1 << 24
MAX_ROW_KEY: Final = 1 << 38  # times MAX_CHUNKS_PER_VIDEO, it still fits into 63 bits
_MAX_INT64: Final = (1 << 63) - 1
_MAX_INT32: Final = (1 << 31) - 1
MAX_UNCOUNTED_VIDEOS: Final = 1 << 16  # from this number of a video on, catalogs count the videos before it
_MAX_CHUNK_FRAMES: Final = (1 << 32) - 1  # what the header of a frame index can count
_MAX_SIDE_PIXELS: Final = (1 << 16) - 1
_MAX_FRAME_PIXELS: Final = 1 << 28  # of one frame, as in FFmpeg
_MAX_PLACES: Final = 1 << 16
_MAX_TIME_S: Final = 250_000_000_000.0  # since 1970: the last years that a date can show
_MAX_INDEX_BYTES: Final = 64 << 20
_HASHES: Final = re.compile("[0-9a-f]{64}")


# --- fields ----------------------------------------------------------------------------------------------------------


def _check_mode(value: Any) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise RefusedValue(f"is {describe_value(value)} instead of one of {', '.join(sorted(MODES))}")
    return value


def _check_orientation(value: Any) -> tuple[bool, bool, bool]:
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(isinstance(flag, bool) for flag in value):  # noqa: PLR2004
        raise RefusedValue(f"is {describe_value(value)} instead of three truth values")
    return value[0], value[1], value[2]


def _check_time_base(value: Any) -> Fraction:
    if not isinstance(value, (list, tuple)) or len(value) != 2:  # noqa: PLR2004
        raise RefusedValue(f"is {describe_value(value)} instead of a pair of whole numbers")
    numerator, denominator = (_positive_int32(part) for part in value)
    return Fraction(numerator, denominator)


def _check_metadata(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RefusedValue(f"is {describe_value(value)} instead of an object")
    try:
        check_metadata(value)
    except ConfigError as error:
        raise RefusedValue(f"is not valid: {error.message}") from error
    return value


def _check_origin(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RefusedValue(f"is {describe_value(value)} instead of an object")
    for name, kinds in _ORIGIN_TYPES.items():
        if not isinstance(value.get(name), kinds):
            raise RefusedValue(f"has {describe_value(value[name])} as its {name!r}")
    return value


def _parse_origin(value: Any) -> Mapping[str, Any]:
    return _check_origin(parse_json_object(value))


_positive_int32: Final = whole_number(1, _MAX_INT32)
_count: Final = whole_number(0, MAX_FRAMES)
_positive: Final = whole_number(1, MAX_FRAMES)
_int64: Final = whole_number(-_MAX_INT64, _MAX_INT64)
_side: Final = whole_number(1, _MAX_SIDE_PIXELS)
_time: Final = real_number(0.0, _MAX_TIME_S)
_name: Final = text()
_content: Final = text(64, pattern="[0-9a-f]{64}")
_ORIGIN_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "digest": (str, type(None)),
    "version": (str, type(None)),
    "settings": (dict, type(None)),
}

_CHUNK_CHECKS: Final[Mapping[str, Check]] = {
    "content": _content,
    "number": whole_number(0, MAX_CHUNKS_PER_VIDEO - 1),
    "first": _count,
    "frames": whole_number(1, _MAX_CHUNK_FRAMES),
    "first_pts": _int64,
    "place": whole_number(0, _MAX_PLACES),
    "bytes": _positive,
    "digest": text(71, pattern="sha256:[0-9a-f]{64}"),
    "coding": text(printable=True),
    "note": text(min_chars=0),
}
_VIDEO_CHECKS: Final[Mapping[str, Check]] = {
    "content": _content,
    "name": _name,
    "frames": _positive,
    "chunks": whole_number(1, MAX_CHUNKS_PER_VIDEO),
    "height": _side,
    "width": _side,
    "turn": _check_orientation,
    "time_base": _check_time_base,
    "first_pts": _int64,
    "end": _int64,
    "mode": _check_mode,
    "chunk_frames": _positive,
    "source": text(min_chars=0),
    "bytes_in": _count,
    "bytes_out": _count,
    "metadata": _check_metadata,
    "origin": _parse_origin,
    "added": _time,
    "number": _count,
    "start": _count,
    "nanoseconds": whole_number(0, _MAX_INT64),
}
_PARSED_VIDEO_CHECKS: Final[Mapping[str, Check]] = {**_VIDEO_CHECKS, "metadata": parse_json_object}
_JOB_CHECKS: Final[Sequence[Check]] = (_content, _name, text(min_chars=0), _time, _time)
_PLACE_CHECKS: Final[Mapping[str, Check]] = {
    "number": whole_number(0, _MAX_PLACES),
    "url": text(printable=True),
    "weight": real_number(0.0, 1e300),
}
_HEADER_CHECKS: Final[Mapping[str, Check]] = {
    "archive": text(32, pattern="[0-9a-f]{32}"),
    "schema": whole_number(0, _MAX_INT32),
    "created": _time,
}


# --- errors ----------------------------------------------------------------------------------------------------------


def raise_malformed(row: str, field: str, reason: str, offset: int | None = None) -> NoReturn:
    """Raise the error for a row that cannot be used.

    Args:
        row: Description of the row, such as "chunk 3 of video 12ab...".
        field: Name of the field that is wrong.
        reason: Description of its value, as a predicate of the field.
        offset: Frame of the video that is affected. Defaults to none.

    Raises:
        CatalogError: If it is called. :func:`name_catalog` adds the address of the catalog.
    """
    raise CatalogError(
        f"{row}: {field} {reason}. The row is damaged, or was not written by this package: restore the catalog from a "
        "copy",
        offset=offset,
        field=field,
    )


def name_catalog(error: CatalogError, address: str) -> None:
    """Add the address of the catalog to an error of this module, which does not know it."""
    if error.address is None:
        error.address = address
        if address not in error.message:
            error.args = (f"the catalog {address}: {error.message}",)


def check_field(row: str, field: str, value: Any, check: Check) -> Any:
    """Return a single stored value after a check.

    Raises:
        CatalogError: If the check refuses the value.
    """
    try:
        return check(value)
    except RefusedValue as error:
        raise_malformed(row, field, str(error))


def _check_fields(
    kind: str, key: str, values: Mapping[str, Any], checks: Mapping[str, Check], parent: str = "", joint: str = " "
) -> dict[str, Any]:
    """Return the checked values of a row.

    Args:
        kind: Kind of the row, for messages.
        key: Name of the field that identifies the row in messages.
        values: Stored values.
        checks: Checks by the names of the fields.
        parent: Name of a second such field. Defaults to none.
        joint: Text between the two.
    """
    checked = {}
    for field, check in checks.items():
        try:
            checked[field] = check(values.get(field))
        except RefusedValue as error:
            of = f"{joint}{describe_value(values.get(parent))}" if parent else ""
            raise_malformed(f"{kind} {describe_value(values.get(key))}{of}", field, str(error))
    return checked


# --- rows ------------------------------------------------------------------------------------------------------------


def build_chunk(
    content: Any, number: Any, first: Any, frames: Any, first_pts: Any, place: Any, path: Any, size: Any, digest: Any,
    coding: Any, note: Any,
) -> ChunkRow:  # fmt: skip
    """Return the row of a chunk from its stored values, in the order of the attributes of :class:`ChunkRow`.

    Raises:
        CatalogError: If a value is malformed, or the path is not the one that the format gives to this chunk.
    """
    if not (
        # The usual values, checked in one expression, because a lookup reads many chunks.
        type(number) is type(first) is type(frames) is type(first_pts) is type(place) is type(size) is int
        and 0 <= number < MAX_CHUNKS_PER_VIDEO
        and 0 <= first <= MAX_FRAMES
        and 1 <= frames <= _MAX_CHUNK_FRAMES
        and -_MAX_INT64 <= first_pts <= _MAX_INT64
        and 0 <= place <= _MAX_PLACES
        and 1 <= size <= MAX_FRAMES
        and type(coding) is type(note) is str
        and 1 <= len(coding) <= MAX_SHOWN_CHARS
        and coding.isalnum()
        and len(note) <= MAX_SHOWN_CHARS
        and note.isascii()
        and _are_hashes(content, digest)
        and is_path_of_chunk(path, content, number, digest)
    ):
        values = {
            "content": content, "number": number, "first": first, "frames": frames, "first_pts": first_pts,
            "place": place, "bytes": size, "digest": digest, "coding": coding, "note": note,
        }  # fmt: skip
        checked = _check_fields("chunk", "number", values, _CHUNK_CHECKS, "content", " of video ")
        path = check_chunk_path(checked["content"], checked["number"], checked["digest"], path)
        return ChunkRow(
            checked["content"], checked["number"], checked["first"], checked["frames"], checked["first_pts"],
            checked["place"], path, checked["bytes"], checked["digest"], checked["coding"], checked["note"],
        )  # fmt: skip
    return ChunkRow(content, number, first, frames, first_pts, place, path, size, digest, coding, note)


def _are_hashes(content: Any, digest: Any) -> bool:
    """Return whether a content identifier and a digest have the form that rows have."""
    return (
        type(content) is type(digest) is str
        and _HASHES.fullmatch(content) is not None
        and digest[:7] == "sha256:"
        and _HASHES.fullmatch(digest, 7) is not None
    )


def check_chunk_path(content: Any, number: Any, digest: Any, path: Any) -> str:
    """Return the stored path of a chunk.

    Raises:
        CatalogError: If it is not the path that the format gives to this chunk.
    """
    row = f"chunk {describe_value(number)} of video {describe_value(content)}"
    for field, value in (("content", content), ("number", number), ("digest", digest)):
        check_field(row, field, value, _CHUNK_CHECKS[field])
    if not is_path_of_chunk(path, content, number, digest):
        raise_malformed(row, "path", f"is {describe_value(path)}, which is not the path of this chunk in a place")
    assert isinstance(path, str)
    return path


def build_video(values: Mapping[str, Any], *, parsed: bool = False) -> VideoRow:
    """Return the row of a video from its stored values.

    Args:
        values: Stored values. ``origin`` is a text.
        parsed: Whether ``metadata`` is a text, too.

    Raises:
        CatalogError: If a value is malformed, or contradicts another one.
    """
    checks = _PARSED_VIDEO_CHECKS if parsed else _VIDEO_CHECKS
    checked = _check_fields("video", "number", values, checks, "content")
    video = VideoRow(
        content=checked["content"], name=checked["name"], frames=checked["frames"], chunks=checked["chunks"],
        height=checked["height"], width=checked["width"], orientation=checked["turn"], time_base=checked["time_base"],
        first_pts=checked["first_pts"], end=checked["end"], mode=checked["mode"], chunk_frames=checked["chunk_frames"],
        source=checked["source"], bytes_in=checked["bytes_in"], bytes_out=checked["bytes_out"],
        metadata=checked["metadata"], origin=checked["origin"], added=checked["added"], number=checked["number"],
        start=checked["start"], start_ns=checked["nanoseconds"],
    )  # fmt: skip
    problem = _find_contradiction(video)
    if problem is not None:
        raise_malformed(f"video {video.number} {video.content!r}", *problem)
    return video


def _find_contradiction(video: VideoRow) -> tuple[str, str] | None:
    """Return the first field that contradicts other fields of its row, and the reason."""
    if video.end <= video.first_pts:
        return "end", f"is {video.end}, which is not after first_pts, {video.first_pts}"
    if video.start + video.frames > MAX_FRAMES:
        return "start", f"is {video.start}, too large for a video of {video.frames} frames"
    if video.start_ns + video.duration_ns > _MAX_INT64:
        return "nanoseconds", f"is {video.start_ns}, too large for a video of {video.duration_ns} ns"
    if video.chunks > video.frames:
        return "chunks", f"is {video.chunks}, more than the {video.frames} frames"
    if video.height * video.width > _MAX_FRAME_PIXELS:
        return "height", f"is {video.height}, too large for a width of {video.width} pixels"
    return None


def build_job(values: Mapping[str, Any]) -> IngestJob:
    """Return an unfinished job from its stored values.

    Args:
        values: Stored values of content, name, source, start time and heartbeat, in this order.

    Raises:
        CatalogError: If a value is malformed.
    """
    key = next(iter(values))
    checked = _check_fields("job", key, values, dict(zip(values, _JOB_CHECKS, strict=True)))
    return IngestJob(*checked.values())


def build_place(values: Mapping[str, Any]) -> Place:
    """Return a place from its stored values.

    Raises:
        CatalogError: If a value is malformed.
    """
    checked = _check_fields("place", "number", values, _PLACE_CHECKS)
    return Place(checked["number"], checked["url"], checked["weight"])


def build_header(values: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> CatalogHeader:
    """Return the header of a catalog from its stored values.

    Args:
        values: Stored values ``archive``, ``schema`` and ``created``.
        places: Stored values of each place, by number.

    Raises:
        CatalogError: If a value is malformed, or the places are not numbered from 0 without gaps.
    """
    checked = _check_fields("header", "archive", values, _HEADER_CHECKS)
    built = tuple(build_place(place) for place in places)
    for position, place in enumerate(built):
        if place.number != position:
            raise_malformed(f"place {place.number}", "number", f"is {place.number}, but should be {position}")
    return CatalogHeader(checked["archive"], checked["schema"], checked["created"], built)


def check_index(content: str, number: int, value: Any) -> bytes:
    """Return the encoded frame index of a chunk.

    Raises:
        CatalogError: If the value is not a string of bytes, or is too large.
    """
    if not isinstance(value, bytes):
        raise_malformed(
            f"frame index {number} of video {content}", "data", f"is {describe_value(value)} instead of bytes"
        )
    if len(value) > _MAX_INDEX_BYTES:
        raise_malformed(f"frame index {number} of video {content}", "data", f"has {len(value)} bytes")
    return value


def parse_coding(key: Any, field: str, value: Any) -> Mapping[str, Any]:
    """Return the codec parameters in the field `field` of the row `key`.

    Raises:
        CatalogError: If the value is not the text of a JSON object.
    """
    document: Mapping[str, Any] = check_field(f"coding {describe_value(key)}", field, value, parse_json_object)
    return document


def check_located(video: VideoRow, chunks: Sequence[ChunkRow], start: int, stop: int) -> LocatedChunks:
    """Return chunks of a video that were looked up by frames, after a check that they hold these frames.

    Args:
        video: Video of the chunks.
        chunks: Chunks, by number of their first frame.
        start: Number of the first requested frame in the archive.
        stop: Number after the last requested frame in the archive.

    Raises:
        CatalogError: If requested frames are missing, or chunks overlap, have gaps between them or leave the video.
    """
    low, high = max(start - video.start, 0), min(stop - video.start, video.frames)
    covered = chunks[0].first_frame if chunks else 0
    number = chunks[0].number if chunks else 0
    for chunk in chunks:
        if chunk.first_frame > covered and chunk.number > number:
            break  # the chunks between them are missing
        if chunk.first_frame != covered or chunk.number != number:
            raise_malformed(
                f"chunk {chunk.number} of video {video.content}",
                "first",
                f"is {chunk.first_frame}, but chunk {number} of {video.name!r} starts at frame {covered}",
                offset=covered,
            )
        covered += chunk.frames
        number += 1
    if chunks and (chunks[0].first_frame > low or covered > video.frames or number > video.chunks):
        raise_malformed(
            f"chunk {chunks[-1].number} of video {video.content}",
            "frames",
            f"is {chunks[-1].frames}: the chunks hold the frames {chunks[0].first_frame} to {covered}, but "
            f"{video.name!r} has {video.frames} frames in {video.chunks} chunks",
            offset=low,
        )
    if covered < high or not chunks:
        raise CatalogError(
            f"there is no chunk for frame {max(covered, low)} of the video {video.name!r}",
            stream=video.name,
            offset=max(covered, low),
        )
    return LocatedChunks(video, tuple(chunks))


def check_video_count(last: VideoRow, count: int) -> None:
    """Check that the videos up to the last one are numbered without gaps.

    Raises:
        CatalogError: If they are not.
    """
    if count != last.number + 1:
        raise_malformed(
            f"video {last.number} {last.content!r}", "number", f"is {last.number}, but it is one of {count} videos"
        )


def check_consecutive(located: Sequence[LocatedChunks], start: int, stop: int) -> None:
    """Check that videos that were looked up by frames hold the frames [start, stop) without gaps or overlaps.

    Raises:
        CatalogError: If they do not.
    """
    covered = located[0].video.start if located else start
    for position, each in enumerate(located):
        video = each.video
        if video.start != covered or video.number != located[0].video.number + position:
            raise_malformed(
                f"video {video.number} ({video.content!r})",
                "start",
                f"is {video.start}, but the videos before it end at frame {covered}",
                offset=covered,
            )
        covered += video.frames
    if not located or located[0].video.start > start or covered < stop:
        raise CatalogError(f"the archive does not have the frames {start} to {stop}", offset=max(start, covered))
