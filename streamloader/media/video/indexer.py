"""Index a video: find which frames its decoder shows, in which order, and with which timestamps.

One pass over the packets yields timestamps, key frames and time base. This is the index if container and codec are
known to show one frame per packet, and decoding the first frames and the last group of pictures confirms it. All other
videos (hidden frames, edit lists, packets without timestamps, field pictures, ...) are decoded as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import av.error
import numpy as np

from streamloader.errors import CorruptStream, MediaLimitExceeded, UnreadableStream
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.packets import PacketTable, count_max_packets, read_packets
from streamloader.media.video.reader import FrameReader, decode_frames
from streamloader.media.video.remote import ByteSpans, ReadInterrupted, Video, VideoFile, open_video_file
from streamloader.media.video.source import check_video, decode_error, open_video, translate_errors
from streamloader.media.video.sparse import read_sparse
from streamloader.media.video.structure import declared_size, payload_spans
from streamloader.stores.readahead import UNIT_BYTES

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.values import Array

__all__ = ["index_video"]

_CHECKED_HEAD_FRAMES: Final = 16  # decoded to confirm that the decoder shows one frame per packet
_MAX_CHECKED_KEYS: Final = 32  # key frames of a decoded file to which seeking is tried
_log = logging.getLogger("streamloader")


def index_video(video: Video, *, damaged: str = "raise", max_pixels: int = DEFAULT_MAX_PIXELS) -> VideoIndex:
    """Index a video. This takes one pass over the file, and for some files a full decode.

    For an MP4 or MOV in a store, ``moov``, the first frames and the last group of
    pictures are fetched, if they yield the same index. All other files in a store are fetched completely.

    Args:
        video: Path of a local file, or a video in a store.
        damaged: ``"raise"``, or ``"keep"`` to index the decodable frames of a truncated or damaged file. Defaults to
            ``"raise"``.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If the file cannot be opened, contains no video, or none of its frames can be decoded.
        MediaLimitExceeded: If the file exceeds `max_pixels` or another limit.
        CorruptStream: If the file is truncated, or some packets cannot be read or decoded.
        StoreError: If the store fails to deliver bytes.
    """
    file = None if isinstance(video, str) else open_video_file(video, _header_spans(video.info.size or 0))
    source = _Source(video, file, max_pixels)
    try:
        if file is not None:
            payload_spans(file)  # refuses a header of too many bytes by what it declares, before FFmpeg reads it
        check_video(video, file, max_pixels=max_pixels)
        return _index_checked(source, damaged)
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None
    finally:
        if file is not None:
            file.close()


class _Source(NamedTuple):
    """A video that is being indexed.

    Attributes:
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store. None for a local file.
        max_pixels: Maximum number of pixels of a frame.
    """

    video: Video
    file: VideoFile | None
    max_pixels: int

    def open(self) -> tuple[InputContainer, VideoStream]:
        return open_video(self.video, self.file, max_pixels=self.max_pixels)

    def decode(self, container: InputContainer, stream: VideoStream, *, tolerant: bool = False) -> Iterator[VideoFrame]:
        limit = PixelLimit(self.max_pixels, str(self.video))
        return decode_frames(container, stream, tolerant=tolerant, file=self.file, limit=limit)


def _header_spans(size: int) -> ByteSpans:
    """Return the byte ranges at both ends of a file in which most containers store their header."""
    return (0, 2 * UNIT_BYTES), (max(0, size - UNIT_BYTES) // UNIT_BYTES * UNIT_BYTES, size)


def _index_checked(source: _Source, damaged: str) -> VideoIndex:
    try:
        with _refuse_impossible_times(source.video):
            return _index_intact(source)
    except (CorruptStream, MediaLimitExceeded) as error:
        is_too_large = isinstance(error, MediaLimitExceeded) and error.details.get("found") is not None
        if damaged != "keep" or is_too_large:
            raise
        with _refuse_impossible_times(source.video):
            index = _index_by_decoding(source, None, tolerant=True)
        _log.warning(
            "%s is damaged; using the %d frames that can be decoded: %s", source.video, len(index), error.message
        )
        return replace(index, damaged=True, seekable=False, note=error.message)


@contextlib.contextmanager
def _refuse_impossible_times(video: Video) -> Iterator[None]:
    try:
        yield
    except ArithmeticError as error:  # sums of timestamps and durations that exceed 64 bits, a time base of 0, ...
        raise CorruptStream(
            f"{video} is damaged: its timestamps are impossible ({error})", stream=str(video), address=str(video)
        ) from error


def _index_intact(source: _Source) -> VideoIndex:
    video, file, _ = source
    if file is not None:
        sparse = read_sparse(video, file, source.max_pixels)
        index = None if sparse is None else _index_from_packets(source, sparse)
        if index is not None:
            return index
    container, stream = source.open()
    with contextlib.closing(container):
        declared = stream.frames
        table = PacketTable()
        try:
            read_packets(container, stream, video, table, file=file)
        except CorruptStream as error:
            raise _truncated_error(video, declared, table, str(error.__cause__)) from error
    _check_complete(video, declared, table, file)
    if table.exact:
        index = _index_from_packets(source, table)
        if index is not None:
            return index
    return _index_by_decoding(source, table, tolerant=False)


def _check_complete(video: Video, declared_frames: int, table: PacketTable, file: VideoFile | None) -> None:
    declared = declared_size(video if isinstance(video, str) else _require_file(file))
    if declared is None or declared <= _file_size(video) or (declared_frames and table.count >= declared_frames):
        return
    raise _truncated_error(video, declared_frames, table, f"its structure declares {declared} bytes")


def _require_file(file: VideoFile | None) -> VideoFile:
    assert file is not None, "a video in a store is read through a VideoFile"
    return file


def _file_size(video: Video) -> int:
    return os.path.getsize(video) if isinstance(video, str) else video.info.size or 0


def _truncated_error(video: Video, declared_frames: int, table: PacketTable, cause: str) -> CorruptStream:
    size, name = _file_size(video), str(video)
    expected = f" of the {declared_frames} that it declares" if declared_frames else ""
    return CorruptStream(
        f"{name} is truncated: {table.count} frames{expected} can be read, up to byte {table.end_offset} of {size} "
        f'({cause}). Repair or remove it, or pass damaged="keep" to use the frames that can be decoded',
        stream=name,
        address=name,
        offset=table.count,
        declared_frames=declared_frames,
        found_frames=table.count,
        byte=table.end_offset,
        size=size,
    )


def _index_from_packets(source: _Source, table: PacketTable) -> VideoIndex | None:
    """Build the index from packets, or return None if decoding both ends of the video does not confirm it."""
    order = np.argsort(np.array(table.pts, np.int64), kind="stable")
    pts = np.array(table.pts, np.int64)[order]
    try:
        stop_recording = _start_recording(source.file)
        container, stream = source.open()
        with contextlib.closing(container), translate_errors(source.video):
            first = next(source.decode(container, stream), None)
            if first is None:
                return None
            ends = np.array(table.ends, np.int64)[order]
            index = _build_index(first, stream, pts, _last_frame_end(pts, int(ends[-1] - pts[-1])), table)
        index = replace(index, initial_spans=stop_recording())
        last_group = int(np.searchsorted(pts, index.key_pts[-1]))
        reader = FrameReader(source.video, index, file=source.file, max_pixels=source.max_pixels)
        with contextlib.closing(reader):
            for number in (*range(min(_CHECKED_HEAD_FRAMES, len(pts))), *range(last_group, len(pts))):
                reader.read_frame(number)
            reader.check_end()
    except CorruptStream:
        return None  # a full decode finds the actual frames
    return index


def _start_recording(file: VideoFile | None) -> Callable[[], ByteSpans]:
    """Start to record which bytes of a file are read; the returned function ends this and returns the byte ranges."""
    if file is None:
        return tuple
    file.start_recording()
    return file.stop_recording


def _index_by_decoding(source: _Source, table: PacketTable | None, *, tolerant: bool) -> VideoIndex:
    """Build the index by decoding the whole file."""
    video = source.video
    table = table or PacketTable()
    checked_pts = _spread_evenly(sorted(set(table.key_pts)))
    checksums: dict[int, int] = {}
    max_frames = count_max_packets(video)
    stop_recording = _start_recording(source.file)
    container, stream = source.open()
    pts: list[int | None] = []
    initial_spans: ByteSpans = ()
    first, duration = None, 0
    with contextlib.closing(container):
        try:
            for frame in source.decode(container, stream, tolerant=tolerant):
                if len(pts) >= max_frames:
                    raise UnreadableStream(
                        f"{video} has more than {max_frames:,} frames", stream=str(video), address=str(video)
                    )
                if first is None:
                    first, initial_spans = frame, stop_recording()
                if frame.pts in checked_pts or (pts and pts[-1] in checked_pts):
                    checksums[len(pts)] = _luma_checksum(frame)
                pts.append(frame.pts)
                duration = frame.duration or 0
        except (av.error.FFmpegError, EOFError) as error:
            raise decode_error(video, len(pts), error) from error
        if first is None:
            raise UnreadableStream(
                f"{video}: no frame of its video can be decoded", stream=str(video), address=str(video)
            )
        times = np.array([-1 if value is None else value for value in pts], np.int64)
        if None in pts or not (np.diff(times) > 0).all():
            return replace(_index_without_pts(first, stream, len(pts)), initial_spans=initial_spans)
        index = _build_index(first, stream, times, _last_frame_end(times, duration), table)
    index = replace(index, initial_spans=initial_spans)
    is_seekable = _is_seekable(video, index, checksums, source.file, source.max_pixels)
    return index if is_seekable else replace(index, seekable=False)


def _is_seekable(
    video: Video,
    index: VideoIndex,
    checksums: dict[int, int],
    file: VideoFile | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> bool:
    """Return whether seeking finds frames, and each found frame has the checksum that it had before."""
    works = False
    with contextlib.closing(FrameReader(video, index, file=file, max_pixels=max_pixels)) as reader:
        for number, checksum in reversed(checksums.items()):
            found = reader.seek(number)
            if found and _luma_checksum(reader.read_frame(number)) != checksum:
                return False
            works = works or found
    return works


def _spread_evenly(values: list[int]) -> set[int]:
    """Return at most _MAX_CHECKED_KEYS of `values`, evenly spread, including the first and the last."""
    if len(values) <= _MAX_CHECKED_KEYS:
        return set(values)
    return {values[number * (len(values) - 1) // (_MAX_CHECKED_KEYS - 1)] for number in range(_MAX_CHECKED_KEYS)}


def _luma_checksum(frame: VideoFrame) -> int:
    plane = frame.reformat(format="gray", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
    return zlib.crc32(rows[:, : plane.width].tobytes())


def _index_without_pts(first: VideoFrame, stream: VideoStream, count: int) -> VideoIndex:
    """Build the index of frames whose timestamps are missing or not increasing: numbered, at the average rate."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    index = _build_index(first, stream, np.arange(count, dtype=np.int64), count, PacketTable())
    return replace(index, time_base=1 / Fraction(rate), has_pts=False, seekable=False)


def _build_index(first: VideoFrame, stream: VideoStream, pts: Array, end: int, table: PacketTable) -> VideoIndex:
    keys = table.sorted_keys()
    time_base = Fraction(stream.time_base or Fraction(1, 25))
    return VideoIndex(pts, time_base, end, *keys, first.height, first.width, _read_orientation(first))


def _read_orientation(frame: VideoFrame) -> Orientation:
    side_data: Any = frame.side_data
    if "DISPLAYMATRIX" not in side_data:
        return UPRIGHT
    matrix = bytes(side_data["DISPLAYMATRIX"])
    orientation = Orientation.from_display_matrix(matrix)
    if orientation is None:
        _log.info("ignoring a display matrix that is not a multiple of 90 degrees: %s", matrix.hex())
    return orientation or UPRIGHT


def _last_frame_end(pts: Array, duration: int) -> int:
    """Return when the last frame ends: by its own duration, else that of the frame before it, else one tick."""
    if duration <= 0:
        duration = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
    return int(pts[-1]) + max(1, duration)
