"""Read the tables of an MP4 or MOV (``moov``): timestamps, key frames and positions of its frames, without its payload.

The structure is that of ISO/IEC 14496-12 (and of the QuickTime File Format); timestamps are computed as FFmpeg's
demuxer computes them. Whatever is unusual, or could be read in two ways, yields None: FFmpeg then reads the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from streamloader.media.video.files import open_media_file
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.packets import MAX_HEAD_BYTES
from streamloader.media.video.structure import find_movie

if TYPE_CHECKING:
    from streamloader.media.video.remote import ByteSpans, VideoFile
    from streamloader.values import Array

__all__ = ["Movie", "read_movie"]

_ReadAt: TypeAlias = "Callable[[int, int], bytes]"

_MAX_LOCAL_MOVIE_BYTES: Final = 256 << 20  # hours of video have a few megabytes of tables
_MAX_METADATA_BYTES: Final = 4 << 20  # FFmpeg keeps metadata and cover art in memory; it checks larger ones itself
_MAX_CONFIGURATION_BYTES: Final = 1 << 20
_MAX_TRACKS: Final = 64
_MAX_BOXES: Final = 256  # in one box
_MIN_FRAME_BYTES: Final = 8  # on average; the tables of a tiny file may declare many frames in a few bytes
_MAX_TIME: Final = 1 << 55  # sums of timestamps stay far below 2^63
_MAX_STTS_DELTA: Final = (1 << 32) - 1 - 48_000 * 10  # FFmpeg takes larger durations for negative ones
_MAX_CTTS_OFFSET: Final = 1 << 28  # FFmpeg ignores the box if an offset is larger
_CODECS: Final = {
    b"avc1": "h264", b"avc3": "h264", b"hvc1": "hevc", b"hev1": "hevc", b"av01": "av1", b"jpeg": "mjpeg",
    b"apch": "prores", b"apcn": "prores", b"apcs": "prores", b"apco": "prores", b"ap4h": "prores", b"ap4x": "prores",
}  # fmt: skip
_CONFIGURATION_BOXES: Final = {"h264": b"avcC", "hevc": b"hvcC", "av1": b"av1C"}
# Entries of tracks that are not sound: FFmpeg makes a video stream of any track whose entry is that of a video codec.
_OTHER_ENTRIES: Final = frozenset(
    b"tmcd text tx3g mp4s wvtt stpp c608 c708 mett metx gpmd camm mebx fdsc djmd dbgi".split()
)
_IDENTITY: Final = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
_SAMPLE_ENTRY_BYTES: Final = 78  # of a visual sample entry, before its boxes and after its own header
_CROPPED_OR_ENCRYPTED: Final = frozenset({b"clap", b"sinf"})


class Movie(NamedTuple):
    """The only video track of a file. Arrays have one entry for each frame, in the order of decoding.

    Attributes:
        codec: FFmpeg's name of the codec.
        configuration: Contents of ``avcC``, ``hvcC`` or ``av1C``; empty for other codecs.
        height: Height of a frame in pixels, as declared by the container.
        width: Width of a frame in pixels, as declared by the container.
        orientation: Rotation and mirroring that turn the frames upright.
        time_base: Duration of one unit of `pts`, in seconds.
        pts: Timestamps as FFmpeg reports them, int64. All differ.
        order: Positions of the frames in the order of their timestamps, int64.
        durations: Durations in units of `time_base`, int64.
        keys: Positions of the key frames, int64, ascending.
        first_sample: Byte range of the first frame.
        spans: Byte ranges of the tables.
        pixel_aspect: Width of a pixel divided by its height. None if the container does not say it.
    """

    codec: str
    configuration: bytes
    height: int
    width: int
    orientation: Orientation
    time_base: Fraction
    pts: Array
    order: Array
    durations: Array
    keys: Array
    first_sample: tuple[int, int]
    spans: ByteSpans
    pixel_aspect: Fraction | None


class _UnusualError(Exception):
    """The tables have something that is left to FFmpeg."""


def read_movie(source: str | VideoFile, max_frames: int) -> tuple[Movie, bytes] | None:
    """Return the video track of a file and the bytes of its first frame, or None if FFmpeg has to read the file.

    Of H.264, the beginning of the frame is returned, which has all that matters.

    Args:
        source: Path of a local file, or the open bytes of a video in a store.
        max_frames: Maximum number of frames.

    Raises:
        UnreadableStream: If the path is not a file.
        StoreError: If the store fails to deliver bytes.
    """
    if not isinstance(source, str):
        remote = source.remote
        return _read_movie(remote.read_at, remote.size, remote.limits.header_bytes, max_frames)
    try:
        fd = open_media_file(source)
    except OSError:
        return None
    try:
        return _read_movie(
            lambda offset, count: os.pread(fd, count, offset), os.fstat(fd).st_size, _MAX_LOCAL_MOVIE_BYTES, max_frames
        )
    finally:
        os.close(fd)


def _read_movie(read: _ReadAt, size: int, max_bytes: int, max_frames: int) -> tuple[Movie, bytes] | None:
    span = find_movie(read, size)
    if span is None or span[1] > size or span[1] - span[0] > max_bytes:
        return None
    data = read(span[0], span[1] - span[0])
    if len(data) != span[1] - span[0]:
        return None
    try:
        movie = _parse_movie(memoryview(data), span, size, min(max_frames, size // _MIN_FRAME_BYTES))
    except (_UnusualError, struct.error, IndexError):
        return None
    start, end = movie.first_sample
    return movie, read(start, min(end - start, MAX_HEAD_BYTES if movie.codec == "h264" else max_bytes))


def _require(condition: bool) -> None:
    if not condition:
        raise _UnusualError


def _iterate_boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield type and contents of each box in `data`."""
    offset = 0
    for _ in range(_MAX_BOXES):
        if len(data) - offset < 8:
            return  # QuickTime ends lists of boxes with four zero bytes
        length, kind = struct.unpack_from(">I4s", data, offset)
        _require(8 <= length <= len(data) - offset)
        yield kind, data[offset + 8 : offset + length]
        offset += length
    raise _UnusualError


def _read_boxes(data: memoryview, wanted: bytes, refused: bytes = b"") -> dict[bytes, memoryview]:
    """Return the contents of the `wanted` boxes, each of which may occur once. None of the `refused` ones may occur."""
    kinds, refused_kinds = wanted.split(), refused.split()
    found: dict[bytes, memoryview] = {}
    for kind, content in _iterate_boxes(data):
        _require(kind not in refused_kinds and kind not in found)
        if kind in kinds:
            found[kind] = content
    return found


def _parse_movie(data: memoryview, span: tuple[int, int], size: int, max_frames: int) -> Movie:
    header, tracks, metadata_bytes = None, [], 0
    for kind, content in _iterate_boxes(data[8:]):
        _require(kind not in (b"mvex", b"cmov", b"pssh", b"rmra"))
        if kind == b"mvhd":
            _require(header is None)
            header = content
        elif kind == b"trak":
            tracks.append(_read_boxes(content, b"tkhd mdia edts udta meta"))
            metadata_bytes += sum(len(tracks[-1].get(kind, b"")) for kind in (b"udta", b"meta"))
        else:
            metadata_bytes += len(content)
    _require(header is not None and len(tracks) <= _MAX_TRACKS and metadata_bytes <= _MAX_METADATA_BYTES)
    assert header is not None
    videos = [track for track in tracks if _is_video(track)]
    _require(len(videos) == 1)
    movie_scale = struct.unpack_from(">I", header, _version_offset(header, 12, 20))[0]
    matrix_at = _version_offset(header, 36, 48)
    _require(bytes(header[matrix_at : matrix_at + 36]) == _IDENTITY)
    return _parse_track(videos[0], movie_scale, span, size, max_frames)


def _is_video(track: dict[bytes, memoryview]) -> bool:
    """Return whether a track is a video. It is refused if FFmpeg may take it for one nevertheless."""
    _require(b"tkhd" in track and b"mdia" in track)
    media = _read_boxes(track[b"mdia"], b"mdhd hdlr minf")
    _require(len(media) == 3)
    handler = bytes(media[b"hdlr"][8:12])
    tables = _read_boxes(_get(_read_boxes(media[b"minf"], b"stbl"), b"stbl"), b"stsd stts")
    # FFmpeg takes an empty table for a fragmented file, and then reads the edit lists of later tracks differently.
    _require(_count_entries(_get(tables, b"stts")) > 0)
    if handler in (b"vide", b"soun"):
        return handler == b"vide"
    _require(all(kind in _OTHER_ENTRIES for kind, _ in _iterate_boxes(_get(tables, b"stsd")[8:])))
    return False


def _get(boxes: dict[bytes, memoryview], kind: bytes) -> memoryview:
    _require(kind in boxes)
    return boxes[kind]


def _count_entries(content: memoryview) -> int:
    return int(struct.unpack_from(">I", content, 4)[0])


def _parse_track(
    track: dict[bytes, memoryview], movie_scale: int, span: tuple[int, int], size: int, max_frames: int
) -> Movie:
    media = _read_boxes(track[b"mdia"], b"mdhd minf")
    header = media[b"mdhd"]
    scale = struct.unpack_from(">I", header, _version_offset(header, 12, 20))[0]
    _require(0 < scale < 1 << 31)
    information = _read_boxes(media[b"minf"], b"dinf stbl")
    tables = _read_boxes(
        _get(information, b"stbl"), b"stsd stts ctts stss stsz stsc stco co64", b"stps stz2 saiz saio senc padb"
    )
    _refuse_groups(information[b"stbl"])
    codec, configuration, height, width, aspect = _parse_entry(_get(tables, b"stsd"), _get(information, b"dinf"))

    sizes = _read_sizes(_get(tables, b"stsz"), max_frames)
    durations = _expand(_get(tables, b"stts"), len(sizes), ">u4")
    _require(int(durations.max()) <= _MAX_STTS_DELTA)
    pts = np.cumsum(durations) - durations
    _require(int(pts[-1]) < _MAX_TIME)
    if b"ctts" in tables:
        offsets = _expand(tables[b"ctts"], len(sizes), ">i4")
        _require(bool((np.abs(offsets) <= _MAX_CTTS_OFFSET).all()))
        pts += offsets
    keys = _read_keys(tables.get(b"stss"), len(sizes))
    edits = _read_boxes(track[b"edts"], b"elst").get(b"elst") if b"edts" in track else None
    if edits is not None and _count_entries(edits):
        earlier = keys[keys < len(pts) - 1]
        pts += _read_edits(edits, scale, movie_scale, pts, pts[earlier] + durations[earlier])
    order = np.argsort(pts, kind="stable")
    _require(bool((np.diff(pts[order]) > 0).all()))
    return Movie(
        codec, configuration, height, width, _read_matrix(track[b"tkhd"]), Fraction(1, scale), pts, order, durations,
        keys, _locate_samples(tables, sizes, size), (span,),
        aspect or _compare_sizes(track[b"tkhd"], height, width),
    )  # fmt: skip


def _version_offset(header: memoryview, narrow: int, wide: int) -> int:
    """Return the offset of a field in a header of version 0, or of version 1, which has wider times."""
    _require(header[0] <= 1)
    return wide if header[0] else narrow


def _refuse_groups(tables: memoryview) -> None:
    """Refuse groups of random access points, which are further key frames."""
    for kind, content in _iterate_boxes(tables):
        _require(kind != b"sbgp" or bytes(content[4:8]) != b"rap ")


def _parse_entry(
    descriptions: memoryview, data_information: memoryview
) -> tuple[str, bytes, int, int, Fraction | None]:
    """Return codec, configuration, height, width and shape of pixels of the only sample entry."""
    _require(_count_entries(descriptions) == 1)
    entries = list(_iterate_boxes(descriptions[8:]))
    _require(len(entries) == 1)
    kind, entry = entries[0]
    _require(kind in _CODECS and len(entry) >= _SAMPLE_ENTRY_BYTES)
    codec = _CODECS[kind]
    reference = struct.unpack_from(">H", entry, 6)[0]
    width, height = struct.unpack_from(">HH", entry, 24)
    boxes = list(_iterate_boxes(entry[_SAMPLE_ENTRY_BYTES:]))
    _require(not any(box in _CROPPED_OR_ENCRYPTED for box, _ in boxes))
    wanted = _CONFIGURATION_BOXES.get(codec)
    configurations = [bytes(content) for box, content in boxes if box == wanted]
    _require(len(configurations) == (wanted is not None) and sum(map(len, configurations)) <= _MAX_CONFIGURATION_BYTES)
    references = [content for _, content in _iterate_boxes(_get(_read_boxes(data_information, b"dref"), b"dref")[8:])]
    _require(0 < reference <= len(references) and references[reference - 1][3] & 1 == 1)  # the samples are in this file
    aspects = [struct.unpack_from(">II", content) for box, content in boxes if box == b"pasp"]
    aspect = Fraction(*aspects[-1]) if aspects and all(aspects[-1]) else None
    return codec, configurations[0] if configurations else b"", height, width, aspect


def _compare_sizes(header: memoryview, height: int, width: int) -> Fraction | None:
    """Return the shape of pixels that scales frames to the size in the header of their track, as FFmpeg does.

    None if that is their size.
    """
    shown_width, shown_height = struct.unpack_from(">II", header, _version_offset(header, 76, 88))
    shown_width, shown_height = shown_width >> 16, shown_height >> 16
    if not (shown_width and shown_height and height and width) or (shown_height, shown_width) == (height, width):
        return None
    return Fraction(height * shown_width, width * shown_height)


def _read_sizes(content: memoryview, max_frames: int) -> Array:
    """Return the size of each sample in bytes, int64."""
    constant, count = struct.unpack_from(">II", content, 4)
    _require(0 < count <= max_frames)
    if constant:
        sizes = np.full(count, constant, np.int64)
    else:
        _require(len(content) >= 12 + 4 * count)
        sizes = np.frombuffer(content, ">u4", count, 12).astype(np.int64)
    _require(bool((sizes > 0).all()) and bool((sizes < 1 << 30).all()))
    return sizes


def _expand(content: memoryview, count: int, value_type: str) -> Array:
    """Return one value (int64) for each of `count` samples, of a table of runs (number of samples, value)."""
    entries = _count_entries(content)
    _require(0 < entries <= (len(content) - 8) // 8)
    runs = np.frombuffer(content, [("count", ">u4"), ("value", value_type)], entries, 8)
    counts = runs["count"].astype(np.int64)
    _require(bool((counts > 0).all()) and int(counts.sum()) == count)
    return np.repeat(runs["value"].astype(np.int64), counts)


def _read_keys(content: memoryview | None, count: int) -> Array:
    """Return the numbers of the key frames (from 0). Without a table, all frames are key frames."""
    if content is None:
        return np.arange(count)
    entries = _count_entries(content)
    _require(0 < entries <= (len(content) - 8) // 4)
    keys = np.frombuffer(content, ">u4", entries, 8).astype(np.int64) - 1
    _require(int(keys[0]) == 0 and int(keys[-1]) < count and bool((np.diff(keys) > 0).all()))
    return keys


def _read_edits(content: memoryview, scale: int, movie_scale: int, times: Array, key_ends: Array) -> int:
    """Return what is added to `times` to give timestamps, in units of the track.

    An optional empty edit, which delays the track, and one edit that shows all frames are usual. All else is refused.
    `key_ends` are the times at which the key frames end, without the last frame of the file.
    """
    count = _count_entries(content)
    _require(content[0] <= 1 and count <= 2 and movie_scale > 0)
    layout = ">QqI" if content[0] else ">IiI"
    edits = [struct.unpack_from(layout, content, 8 + struct.calcsize(layout) * number) for number in range(count)]
    delay = 0
    if edits[0][1] == -1 and count == 2:
        delay = _rescale(edits.pop(0)[0], scale, movie_scale)
    _require(len(edits) == 1)
    duration, start, rate = edits[0]
    end = start + _rescale(duration, scale, movie_scale)
    _require(0 <= start < end < _MAX_TIME and delay < _MAX_TIME and rate == 1 << 16)
    first = int(times.min())
    _require(start <= first == int(times[0]) and int(times.max()) < end)  # otherwise, frames are not shown
    # FFmpeg stops after the second key frame that reaches the end of the edit, though other frames may follow it.
    _require(int(np.count_nonzero(key_ends >= end)) <= 1)
    return delay - first


def _rescale(value: int, scale: int, movie_scale: int) -> int:
    """Convert a duration from the time scale of the movie, rounded to the nearest integer, half up."""
    return int((2 * value * scale + movie_scale) // (2 * movie_scale))


def _locate_samples(tables: dict[bytes, memoryview], sizes: Array, file_bytes: int) -> tuple[int, int]:
    """Return the byte range of the first sample. All samples must lie in the file."""
    wide = b"co64" in tables
    _require(wide != (b"stco" in tables))
    content = tables[b"co64" if wide else b"stco"]
    chunks, runs = _count_entries(content), _count_entries(_get(tables, b"stsc"))
    _require(0 < chunks <= (len(content) - 8) // (8 if wide else 4) and 0 < runs <= (len(tables[b"stsc"]) - 8) // 12)
    starts = np.frombuffer(content, ">u8" if wide else ">u4", chunks, 8)
    _require(int(starts.max()) < file_bytes)
    table = np.frombuffer(tables[b"stsc"], ">u4", 3 * runs, 8).reshape(runs, 3).astype(np.int64)
    first = table[:, 0] - 1
    _require(int(first[0]) == 0 and bool((np.diff(first) > 0).all()) and int(first[-1]) < chunks)
    _require(bool((table[:, 1] > 0).all()) and bool((table[:, 2] == 1).all()))
    _require(int(table[:, 1].max()) <= len(sizes))
    counts = np.repeat(table[:, 1], np.diff(first, append=chunks))
    _require(int(counts.sum()) == len(sizes))
    ends = np.cumsum(counts)
    total = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=total[1:])
    chunk_bytes = total[ends] - total[ends - counts]
    _require(int((starts.astype(np.int64) + chunk_bytes).max()) <= file_bytes)
    return int(starts[0]), int(starts[0]) + int(sizes[0])


def _read_matrix(header: memoryview) -> Orientation:
    offset = _version_offset(header, 40, 52)
    matrix = bytes(header[offset : offset + 36])
    _require(len(matrix) == 36 and header[3] & 1 == 1)  # FFmpeg may prefer a cover picture to a disabled track
    if matrix == _IDENTITY:
        return UPRIGHT
    return Orientation.from_display_matrix(struct.pack("=9i", *struct.unpack(">9i", matrix))) or UPRIGHT
