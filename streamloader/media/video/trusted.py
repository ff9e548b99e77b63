"""Build the index of a video from its tables or packets alone, where they determine which frames a decoder shows."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import av
import av.error
import numpy as np

from streamloader.media.video.coded_size import find_coded_size, find_parameters
from streamloader.media.video.frame_order import are_plausible_times, ends_with_slice, is_predictable
from streamloader.media.video.frame_probe import decode_first
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.packets import REORDERING_CODECS, codec_name
from streamloader.media.video.remote import join_units
from streamloader.media.video.side_data import find_side_data
from streamloader.media.video.structure import may_turn_matroska
from streamloader.stores.readahead import MAX_FILE_BYTES, UNIT_BYTES

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.media.video.limits import PixelLimit
    from streamloader.media.video.movie import Movie
    from streamloader.media.video.packets import PacketTable
    from streamloader.media.video.remote import ByteSpans, VideoFile
    from streamloader.media.video.retimed import TimedPackets
    from streamloader.values import Array

__all__ = [
    "find_initial_spans", "has_plausible_times", "last_frame_end", "read_orientation", "read_pixel_aspect",
    "trust_movie", "trust_packets", "trust_repaired",
]  # fmt: skip

_DECODERS: Final = {"av1": ("libdav1d", "libaom-av1", "av1")}
# Their frames may be smaller than their headers say: FFmpeg crops H.264 to what the container declares, and frames of
# AV1 may override the size of the sequence.
_CONFIRMED_CODECS: Final = frozenset({"h264", "av1"})
_log = logging.getLogger("streamloader")


def trust_movie(movie: Movie, head: bytes, limit: PixelLimit) -> VideoIndex | None:
    """Return the index of an MP4 or MOV, or None if its tables do not determine its frames.

    Args:
        movie: Tables of the file.
        head: Bytes of the first frame, or their beginning for H.264.
        limit: Limit on the size of the frame.

    Raises:
        MediaLimitExceeded: If the first frame is too large.
    """
    if not is_predictable(movie.codec, movie.configuration, head, movie.order):
        return None
    size = _find_size(movie, head, limit)
    if size is None:
        return None
    keys = np.sort(movie.pts[movie.keys])
    pts = movie.pts[movie.order]
    end = last_frame_end(pts, int(movie.durations[movie.order[-1]]))
    aspect = movie.pixel_aspect or _find_coded_aspect(movie.codec, movie.configuration, head) or Fraction(1)
    return VideoIndex(pts, movie.time_base, end, keys, keys, *size, movie.orientation, pixel_aspect=aspect)


def has_plausible_times(movie: Movie) -> bool:
    """Return whether the timestamps of a movie may be those of its frames, as far as its tables show."""
    if movie.codec not in REORDERING_CODECS or (np.diff(movie.order) > 0).all():
        return True
    return are_plausible_times(movie.pts, movie.order, movie.keys, np.cumsum(movie.durations) - movie.durations)


def _find_size(movie: Movie, head: bytes, limit: PixelLimit) -> tuple[int, int] | None:
    """Return (height, width) of the frames. None if the coded video turns them, or contradicts the container."""
    size = find_coded_size(movie.codec, movie.configuration, head)
    if movie.codec in _CONFIRMED_CODECS and size != (movie.height, movie.width):
        size = None
    if size is None:
        if movie.codec == "h264":
            return None
        context = _create_decoder(movie)
        frame = None if context is None else decode_first(context, av.Packet(head), limit)
        if frame is None or read_orientation(frame) != UPRIGHT:
            return None
        return frame.height, frame.width
    limit.check(size[1], size[0], "has")
    return size


def _create_decoder(movie: Movie) -> VideoCodecContext | None:
    for name in _DECODERS.get(movie.codec, (movie.codec,)):
        try:
            context: Any = av.CodecContext.create(name, "r")
        except (ValueError, av.error.FFmpegError):
            continue
        if movie.configuration:
            context.extradata = movie.configuration
        context.width, context.height = movie.width, movie.height
        return context  # type: ignore[no-any-return]
    return None


def trust_packets(
    table: PacketTable, stream: VideoStream, source: str | VideoFile, limit: PixelLimit, first: VideoFrame | None
) -> VideoIndex | None:
    """Return the index of a video, or None if its packets do not determine its frames.

    Args:
        table: All packets of the video.
        stream: Stream whose decoder is disabled.
        source: Path of a local file, or the open bytes of a video in a store.
        limit: Limit on the size of the frame.
        first: First frame, if the decoder of `stream` is in use already.

    Raises:
        MediaLimitExceeded: If the first frame is too large.
    """
    if not table.exact or table.first is None or table.last is None:
        return None
    codec, configuration = codec_name(stream), bytes(stream.codec_context.extradata or b"")
    decoded_pts = np.array(table.pts, np.int64)
    order = np.argsort(decoded_pts, kind="stable")
    if not is_predictable(codec, configuration, table.head, order, is_order_confirmed=table.is_order_confirmed):
        return None
    if table.parsed and not ends_with_slice(codec, memoryview(table.last)):
        return None
    pts = decoded_pts[order]
    if codec in REORDERING_CODECS:
        keys, dts = np.array(table.key_packet, np.int64), np.array(table.dts, np.int64) if table.dts else None
        if not are_plausible_times(decoded_pts, order, keys, dts):
            return None
    end = last_frame_end(pts, int(table.ends[order[-1]] - pts[-1]))
    time_base = Fraction(stream.time_base or Fraction(1, 25))
    return _describe_frames(
        VideoIndex(pts, time_base, end, *table.sorted_keys(), 0, 0), table, stream, source, limit, first
    )


def trust_repaired(
    table: PacketTable, packets: TimedPackets, stream: VideoStream, source: str | VideoFile, limit: PixelLimit
) -> VideoIndex | None:
    """Return the index of a video whose times were repaired, without its key frames.

    Args:
        table: All packets of the video.
        packets: Packets with repaired times.
        stream: Stream whose decoder is disabled.
        source: Path of a local file, or the open bytes of a video in a store.
        limit: Limit on the size of the frame.

    Raises:
        MediaLimitExceeded: If the first frame is too large.
    """
    times, scale = packets.found.times, packets.found.scale
    time_base = Fraction(stream.time_base or Fraction(1, 25)) / scale
    no_keys = np.zeros(0, np.int64)
    index = VideoIndex(times, time_base, last_frame_end(times, packets.last_duration), no_keys, no_keys, 0, 0)
    return _describe_frames(index, table, stream, source, limit, None)


def _describe_frames(
    index: VideoIndex,
    table: PacketTable,
    stream: VideoStream,
    source: str | VideoFile,
    limit: PixelLimit,
    first: VideoFrame | None,
) -> VideoIndex | None:
    """Return an index with the size, orientation and shape of pixels of the frames, or None if this is unknown."""
    codec, configuration = codec_name(stream), bytes(stream.codec_context.extradata or b"")
    shape = _find_upright_size(codec, configuration, table, stream, source)
    aspect = stream.sample_aspect_ratio or _find_coded_aspect(codec, configuration, table.head)
    if shape is None or (aspect is None and codec == "hevc"):
        if first is None and not stream.codec_context.is_open:
            assert table.first is not None
            first = decode_first(stream.codec_context, table.first, limit)
        if first is None:
            return None
        size, orientation = (first.height, first.width), read_orientation(first)
        aspect = read_pixel_aspect(stream) if aspect is None else aspect
    else:
        limit.check(shape[1], shape[0], "has")
        size, orientation = shape, UPRIGHT
    return replace(index, height=size[0], width=size[1], orientation=orientation, pixel_aspect=Fraction(aspect or 1))


def read_pixel_aspect(stream: VideoStream) -> Fraction:
    """Return the width of a pixel divided by its height, of a stream of which a frame was decoded. 1 if unknown."""
    return Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)


def _find_coded_aspect(codec: str, configuration: bytes, head: bytes) -> Fraction | None:
    """Return the shape of pixels that the parameters of H.264 declare, or None."""
    parameters = find_parameters(codec, configuration, head) if codec == "h264" else None
    return None if parameters is None else parameters.pixel_aspect


def _find_upright_size(
    codec: str, configuration: bytes, table: PacketTable, stream: VideoStream, source: str | VideoFile
) -> tuple[int, int] | None:
    """Return (height, width) of frames that nothing turns, or None if this is only known after decoding one."""
    size = find_coded_size(codec, configuration, table.head)
    if size is None or table.parsed:
        return size  # MPEG-TS declares neither size nor orientation
    is_declared = codec not in _CONFIRMED_CODECS or size == (stream.codec_context.height, stream.codec_context.width)
    is_matroska = "matroska" in stream.container.format.name.split(",")
    return size if is_declared and is_matroska and not may_turn_matroska(source) else None


def read_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation of a decoded frame."""
    matrix = next(find_side_data(frame, "DISPLAYMATRIX"), None)
    if matrix is None:
        return UPRIGHT
    orientation = Orientation.from_display_matrix(matrix)
    if orientation is None:
        _log.info("ignoring a display matrix that is not a multiple of 90 degrees: %s", matrix.hex())
    return orientation or UPRIGHT


def last_frame_end(pts: Array, duration: int) -> int:
    """Return when the last frame ends: by its own duration, else that of the frame before it, else one tick."""
    if duration <= 0:
        duration = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
    return int(pts[-1]) + max(1, duration)


def find_initial_spans(movie: Movie, file: VideoFile) -> ByteSpans:
    """Return the byte ranges, in whole units, that FFmpeg reads to open an MP4 or MOV in a store."""
    units: set[int] = {0}
    for start, end in (*movie.spans, movie.first_sample):
        units.update(range(start // UNIT_BYTES, (end - 1) // UNIT_BYTES + 1))
    if len(units) * UNIT_BYTES > MAX_FILE_BYTES // 2:
        return ()
    return join_units(units, file.remote.size)
