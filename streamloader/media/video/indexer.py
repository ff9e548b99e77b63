"""Index a video: find which frames its decoder shows, in which order, and with which timestamps.

The tables of an MP4 or MOV, or one pass over the packets, yield timestamps, key frames and time base. This is the index
if they are known to determine the frames that the decoder shows. If the container gives each frame its own packet, but
the codec does not determine that each is shown, decoding the first frames and the last group of pictures may confirm
it. All other videos (edit lists, packets without timestamps, field pictures, ...) are decoded as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import av.error
import numpy as np

from streamloader.common.error_translation import error_translator
from streamloader.errors import ConfigError, CorruptStream, MediaLimitExceeded, UnreadableStream
from streamloader.media.progress import PROGRESS
from streamloader.media.video.colour_matrix import ignore_unknown_matrix
from streamloader.media.video.container import needs_probe
from streamloader.media.video.cropping import FrameCropper, read_cropping
from streamloader.media.video.files import file_version
from streamloader.media.video.frame_probe import FrameProbe
from streamloader.media.video.frame_times import TimestampLog
from streamloader.media.video.index import (
    NOT_CROPPED,
    VERIFY_LEVELS,
    Cropping,
    IndexSettings,
    VerifyLevel,
    VideoIndex,
)
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.missing_packets import find_missing_packets
from streamloader.media.video.movie import read_movie
from streamloader.media.video.packets import PacketTable, count_max_packets, read_packets
from streamloader.media.video.picture_order import confirm_order
from streamloader.media.video.reader import FrameReader, decode_frames, demux_packets
from streamloader.media.video.remote import ByteSpans, Video, VideoFile, open_video_file
from streamloader.media.video.retimed import TimedPackets, repair_packets, retime_index, time_packets
from streamloader.media.video.source import (
    check_video,
    concealed_error,
    decode_error,
    list_streams,
    missing_error,
    open_packets,
    open_video,
    translate_errors,
)
from streamloader.media.video.source_errors import fence_foreign_errors
from streamloader.media.video.structure import check_header_size, declared_size
from streamloader.media.video.trusted import (
    find_initial_spans,
    has_plausible_times,
    last_frame_end,
    read_orientation,
    read_pixel_aspect,
    trust_movie,
    trust_packets,
    trust_repaired,
)
from streamloader.stores.readahead import UNIT_BYTES

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.media.video.movie import Movie
    from streamloader.values import Array

__all__ = ["index_video"]


_CHECKED_HEAD_FRAMES: Final = 16  # decoded to confirm that the decoder shows one frame per packet
_MAX_CHECKED_KEYS: Final = 32  # key frames of a decoded file to which seeking is tried
_log = logging.getLogger("streamloader")


def index_video(
    video: Video,
    *,
    damaged: str = "raise",
    verify: VerifyLevel = "tables",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    stream: int | None = None,
) -> VideoIndex:
    """Index a video. How much of it is read and decoded depends on `verify`.

    Whatever the level, a file is decoded as a whole if its tables do not determine its frames (see
    :mod:`streamloader.media.video.frame_order`), and the reader compares each frame with the index while it plays.

    Args:
        video: Path of a local file, or a video in a store.
        damaged: ``"raise"``, or ``"keep"`` to index the frames that FFmpeg shows of a truncated or damaged file, also
            those of which it has concealed parts. For that, all frames are decoded, as with `verify` = ``"frames"``.
            Defaults to ``"raise"``.
        verify: ``"tables"`` (default) trusts what the file says: ``moov`` and the first frame of an MP4 or MOV, the
            packets of Matroska, WebM and MPEG-TS. It proves that all frames of the tables lie in the file.
            ``"ends"`` also decodes the first frames and the last group of pictures. ``"frames"`` decodes all frames.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        stream: Number of the video stream among those of the file. Defaults to the one that
            :func:`streamloader.media.video.source.choose_stream` chooses.

    Raises:
        ConfigError: If `verify` is unknown.
        StreamNotFound: If the file does not exist.
        UnreadableStream: If the file cannot be opened or does not contain the stream, or if none of its frames can be
            decoded.
        MediaLimitExceeded: If the file exceeds `max_pixels` or another limit.
        CorruptStream: If the file is truncated, or some packets cannot be read or decoded.
        StoreError: If the store fails to deliver bytes.
    """
    if verify not in VERIFY_LEVELS:
        raise ConfigError(f"verify must be one of {', '.join(map(repr, VERIFY_LEVELS))}, got {verify!r}")
    file = None if isinstance(video, str) else open_video_file(video, _header_spans(video.info.size or 0))
    source = _Source(video, file, max_pixels, stream)
    verify = IndexSettings(damaged, verify).verify
    try:
        with fence_foreign_errors(video):
            if file is None:
                file_version(str(video))
            else:
                check_header_size(file)  # before it is read
            return _index_checked(source, damaged, verify)
    finally:
        if file is not None:
            file.close()


class _Source(NamedTuple):
    """A video that is being indexed.

    Attributes:
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store. None for a local file.
        max_pixels: Maximum number of pixels of a frame.
        stream: Number of the video stream among those of the file, or None.
    """

    video: Video
    file: VideoFile | None
    max_pixels: int
    stream: int | None

    @property
    def limit(self) -> PixelLimit:
        return PixelLimit(self.max_pixels, str(self.video))

    def open(self) -> tuple[InputContainer, VideoStream]:
        return open_video(self.video, self.file, max_pixels=self.max_pixels, number=self.stream)

    def open_packets(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        return open_packets(self.video, self.file, max_pixels=self.max_pixels, number=self.stream)

    def describe(self, index: VideoIndex, container: InputContainer, stream: VideoStream) -> VideoIndex:
        """Return an index with the facts about an open video stream that do not depend on its frames."""
        streams = list_streams(container)
        number = next(position for position, each in enumerate(streams) if each.index == stream.index)
        index = replace(index, stream=number, video_streams=len(streams))
        cropping = read_cropping(self.file or str(self.video), stream, number)
        return index if cropping == NOT_CROPPED else self._crop(index, cropping)

    def _crop(self, index: VideoIndex, cropping: Cropping) -> VideoIndex:
        """Return an index of cropped frames. What is left of them depends on their pixel format."""
        container, stream = self.open()
        with contextlib.closing(container), translate_errors(self.video):
            first = next(self.decode(container, stream, tolerant=True), None)
        if first is None:
            return index
        try:
            shown = FrameCropper(cropping).crop(first)
        except CorruptStream as error:
            _log.warning("%s: %s. It is not cropped", self.video, error.message)
            return index
        across, down = (16 // max(1, count(16)) for count in (first.format.chroma_width, first.format.chroma_height))
        top, left = cropping.top // down * down, cropping.left // across * across
        exact = Cropping(top, first.height - top - shown.height, left, first.width - left - shown.width)
        return replace(index, cropping=exact, height=shown.height, width=shown.width)

    def decode(
        self,
        container: InputContainer,
        stream: VideoStream,
        packets: Iterator[Packet[Any]] | None = None,
        *,
        tolerant: bool = False,
    ) -> Iterator[VideoFrame]:
        return decode_frames(container, stream, packets=packets, tolerant=tolerant, file=self.file, limit=self.limit)


def _header_spans(size: int) -> ByteSpans:
    """Return the byte ranges at both ends of a file in which most containers store their header."""
    return (0, 2 * UNIT_BYTES), (max(0, size - UNIT_BYTES) // UNIT_BYTES * UNIT_BYTES, size)


def _index_checked(source: _Source, damaged: str, verify: str) -> VideoIndex:
    try:
        with _refuse_impossible_times(source.video):
            return _index_intact(source, verify)
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


@error_translator
def _refuse_impossible_times(video: Video) -> Iterator[None]:
    try:
        yield
    except ArithmeticError as error:  # sums of timestamps and durations that exceed 64 bits, a time base of 0, ...
        raise CorruptStream(
            f"{video} is damaged: its timestamps are impossible ({error})", stream=str(video), address=str(video)
        ) from error


def _index_intact(source: _Source, verify: str) -> VideoIndex:
    # The tables of a file are those of its only video stream.
    found = (
        None
        if verify == "frames" or source.stream
        else read_movie(source.file or str(source.video), count_max_packets(source.video))
    )
    if found is not None and not has_plausible_times(found[0]):
        found, verify = None, "frames"
    if found is not None and found[0].height * found[0].width <= source.max_pixels:  # otherwise FFmpeg words the error
        index = _index_movie(source, *found, verify)
        if index is not None:
            return index
    table = PacketTable()
    index = _read_packets(source, table, verify)
    if index is None and found is None and verify != "frames" and table.exact and not table.parsed:
        index = _index_from_packets(source, table)
    return index or _index_by_decoding(source, table, tolerant=False)


def _index_movie(source: _Source, movie: Movie, head: bytes, verify: str) -> VideoIndex | None:
    """Build the index from ``moov``, or return None if it does not determine the frames."""
    PROGRESS.packets += len(movie.pts)
    index = trust_movie(movie, head, source.limit) if verify == "tables" else None
    if index is not None:
        return index if source.file is None else replace(index, initial_spans=find_initial_spans(movie, source.file))
    check_video(source.video, source.file, max_pixels=source.max_pixels)
    keys = movie.pts[movie.keys]
    return _index_from_packets(source, PacketTable(movie.pts, movie.pts + movie.durations, keys, keys, len(movie.pts)))


def _read_packets(source: _Source, table: PacketTable, verify: str) -> VideoIndex | None:
    """Read all packets into `table`. Return the index if they determine it, and are trusted."""
    video, file = source.video, source.file
    with source.open_packets() as (container, stream):
        probe = FrameProbe(container, source.limit) if needs_probe(container) else None
        _read_complete(source, container, stream, table, probe)
        if verify != "tables" or table.repairable:
            index = None
        else:
            if table.exact:
                with translate_errors(video):
                    confirm_order(table, stream, source.open_packets)
            first = None if probe is None else probe.first_frames.get(stream.index)
            index = trust_packets(table, stream, file or str(video), source.limit, first)
        if index is not None:
            index = source.describe(index, container, stream)
            return index if file is None else _record_initial_spans(source, index)
    if verify == "tables" and table.repairable:
        return _repair_packets(source, table)
    return None


def _repair_packets(source: _Source, table: PacketTable) -> VideoIndex | None:
    """Build the index of a video whose timestamps are repeated, or whose clock jumps, or return None."""
    video, file = source.video, source.file
    with source.open_packets() as (container, stream):
        with translate_errors(video):
            packets = repair_packets(container, stream, table)
        if packets is None:
            return None
        index = trust_repaired(table, packets, stream, file or str(video), source.limit)
        if index is None:
            return None
        index = source.describe(retime_index(index, packets, container), container, stream)
    index = replace(index, clock=packets.jumps)
    return index if file is None else _record_initial_spans(source, index)


def _read_complete(
    source: _Source,
    container: InputContainer,
    stream: VideoStream,
    table: PacketTable,
    probe: FrameProbe | None = None,
) -> None:
    """Read all packets into `table`, and refuse a file that is truncated, or of which packets are missing."""
    video, file = source.video, source.file
    declared = stream.frames
    try:
        read_packets(container, stream, video, table, file=file, probe=probe)
    except CorruptStream as error:
        raise _truncated_error(video, declared, table, str(error.__cause__)) from error
    _check_complete(video, declared, table, file)
    missing = find_missing_packets(container, video, file, table.spans, Fraction(stream.time_base or 1))
    if missing is not None:
        raise missing_error(video, *missing)


def _record_initial_spans(source: _Source, index: VideoIndex) -> VideoIndex:
    """Open a video in a store once more, to learn which bytes are read until its first frame is decoded."""
    stop_recording = _start_recording(source.file)
    container, stream = source.open()
    with contextlib.closing(container), translate_errors(source.video):
        next(source.decode(container, stream), None)
    return replace(index, initial_spans=stop_recording())


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
            index = _build_index(first, stream, pts, last_frame_end(pts, int(ends[-1] - pts[-1])), table)
            uncropped = replace(index, initial_spans=stop_recording())
            index = source.describe(uncropped, container, stream)
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
    checked_packets = _spread_evenly(sorted(table.key_packet))
    checksums: dict[int, int] = {}
    max_frames = count_max_packets(video)
    stop_recording = _start_recording(source.file)
    container, stream = source.open()
    log = TimestampLog()
    numbers: list[int] = []  # of the packet of each frame
    output_after: list[int] = []  # number of the packet that was decoded when each frame was shown
    initial_spans: ByteSpans = ()
    first, seen = None, set[int]()
    with contextlib.closing(container):
        packets = log.number_packets(demux_packets(container, stream, source.file))
        try:
            for frame in source.decode(container, stream, packets, tolerant=tolerant):
                if len(numbers) >= max_frames:
                    raise UnreadableStream(
                        f"{video} has more than {max_frames:,} frames", stream=str(video), address=str(video)
                    )
                if frame.is_corrupt and not tolerant:
                    raise concealed_error(video, len(numbers))
                if first is None:
                    first, initial_spans = frame, stop_recording()
                if frame.pts in checked_packets or (numbers and numbers[-1] in checked_packets):
                    checksums[len(numbers)] = _luma_checksum(frame)
                packet = -1 if frame.pts is None or frame.pts in seen or not 0 <= frame.pts < len(log) else frame.pts
                seen.add(packet)
                numbers.append(packet)
                output_after.append(-1 if frame.dts is None else frame.dts)
        except (av.error.FFmpegError, EOFError) as error:
            raise decode_error(video, len(numbers), error) from error
        if first is None:
            raise UnreadableStream(
                f"{video}: no frame of its video can be decoded", stream=str(video), address=str(video)
            )
        timed = time_packets(container, stream, log, np.array(numbers, np.int64), np.array(output_after, np.int64))
        index = _index_decoded(first, container, stream, timed, table)
        index = source.describe(index, container, stream)
        is_seekable = index.has_pts and _is_seekable(video, index, checksums, source.file, source.max_pixels)
    seekable = index.seekable and is_seekable
    return replace(index, initial_spans=initial_spans, seekable=seekable, clock=timed.jumps)


def _index_decoded(
    first: VideoFrame, container: InputContainer, stream: VideoStream, timed: TimedPackets, table: PacketTable
) -> VideoIndex:
    """Build the index of frames that were all decoded."""
    times = timed.found.times
    if timed.is_regular and table.exact:  # as without decoding
        end = last_frame_end(times, timed.log.durations[int(timed.frame_packet[-1])])
        return _build_index(first, stream, times, end, table)
    end = last_frame_end(times, timed.last_duration)
    if timed.is_regular:
        return _build_index(first, stream, times, end, table)
    index = _build_index(first, stream, times, end, PacketTable())
    index = replace(index, time_base=index.time_base / timed.found.scale)
    if (timed.frame_packet < 0).any():
        return replace(index, has_pts=False, seekable=False)
    return retime_index(index, timed, container)


def _is_seekable(
    video: Video,
    index: VideoIndex,
    checksums: dict[int, int],
    file: VideoFile | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> bool:
    """Return whether seeking finds frames, and each found frame has the checksum that it had before."""
    works = False
    whole = replace(index, cropping=NOT_CROPPED)
    with contextlib.closing(FrameReader(video, whole, file=file, max_pixels=max_pixels)) as reader:
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
    with ignore_unknown_matrix(frame):
        plane = frame.reformat(format="gray", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
    return zlib.crc32(rows[:, : plane.width].tobytes())


def _build_index(first: VideoFrame, stream: VideoStream, pts: Array, end: int, table: PacketTable) -> VideoIndex:
    keys = table.sorted_keys()
    time_base = Fraction(stream.time_base or Fraction(1, 25))
    index = VideoIndex(pts, time_base, end, *keys, first.height, first.width, read_orientation(first))
    return replace(index, pixel_aspect=read_pixel_aspect(stream))
