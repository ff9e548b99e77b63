"""Describe the file of a video, or of a sound, for people: its container, its streams, and its first frame."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.reader import decode_frames
from streamloader.media.video.remote import Video, open_video_file
from streamloader.media.video.source import check_video, open_video, translate_errors

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame

    from streamloader.media.video.index import VideoIndex

__all__ = ["describe_streams", "describe_video"]

# Names of FFmpeg for the numbers of ITU-T H.273, and for its own ranges. None stands for "unspecified".
_UNSPECIFIED: Final = 2
_SPACES: Final = {
    0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c",
}  # fmt: skip
_PRIMARIES: Final = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428",
    11: "smpte431", 12: "smpte432",
}  # fmt: skip
_TRANSFERS: Final = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 13: "iec61966-2-1",
    14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "arib-std-b67",
}  # fmt: skip
_RANGES: Final = {1: "tv", 2: "pc"}
_ROTATIONS: Final = {  # degrees clockwise, and whether the image is mirrored from left to right before that
    Orientation(False, False, False): (0, False),
    Orientation(True, False, True): (90, False),
    Orientation(False, True, True): (180, False),
    Orientation(True, True, False): (270, False),
    Orientation(False, False, True): (0, True),
    Orientation(False, True, False): (180, True),
    Orientation(True, False, False): (270, True),
    Orientation(True, True, True): (90, True),
}


def describe_video(video: Video, index: VideoIndex, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> dict[str, Any]:
    """Return what is known about a video, as plain JSON values. Its first frame is decoded for the pixel format.

    Args:
        video: Path of a local file, or a video in a store.
        index: Index of the video.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Returns:
        See docs/streams.md. Sizes are (height, width) in pixels, times are in seconds.

    Raises:
        UnreadableStream: If the file cannot be opened.
        CorruptStream: If the first frame cannot be decoded.
        StoreError: If the store fails to deliver bytes.
    """
    file = open_video_file(video, index.initial_spans)
    with contextlib.ExitStack() as stack:
        if file is not None:
            stack.callback(file.close)
        check_video(video, file, max_pixels=max_pixels)
        container, stream = open_video(video, file, max_pixels=max_pixels, number=index.stream)
        stack.enter_context(contextlib.closing(container))
        described = describe_streams(container)
        rate, codec = stream.average_rate, stream.codec_context
        names: dict[str, Any] = {"stream": stream.index, "codec": codec.codec.canonical_name, "profile": codec.profile}
        with translate_errors(video):
            limit = PixelLimit(max_pixels, str(video))
            frame = next(decode_frames(container, stream, file=file, limit=limit), None)
        colors = {} if frame is None else _describe_colors(frame)
    degrees, mirrored = _ROTATIONS[index.orientation]
    aspect = index.upright_pixel_aspect
    seconds = float((index.end - int(index.pts[0])) * index.time_base)
    return {
        **names,
        "frames": len(index),
        "key_frames": len(index.key_pts),
        "longest_gap": _find_longest_gap(index),
        "seconds": seconds,
        "start": float(int(index.pts[0]) * index.time_base),
        "fps": len(index) / seconds if seconds > 0 else None,
        "declared_fps": None if rate is None else str(rate),
        "constant_rate": bool(np.ptp(np.diff(index.pts)) <= 1) if len(index) > 2 else True,
        "stored_size": [index.height, index.width],
        "frame_size": list(index.upright_size),
        "pixel_aspect": f"{aspect.numerator}:{aspect.denominator}",
        "cropping": list(index.cropping),
        "rotation": degrees,
        "mirrored": mirrored,
        **colors,
        "video_stream": index.stream,
        "video_streams": index.video_streams,
        "clock_jumps": index.clock_jumps,
        "retimed": index.retiming is not None,
        "seekable": index.seekable,
        "damaged": index.damaged,
        "note": index.note,
        **described,
    }


def describe_streams(container: InputContainer) -> dict[str, Any]:
    """Return the format of an open file, and its streams by kind, as plain JSON values."""
    others: dict[str, int] = {}
    for stream in container.streams:
        if stream.type not in ("video", "audio"):
            others[stream.type] = others.get(stream.type, 0) + 1
    return {
        "format": container.format.name,
        "format_name": container.format.long_name,
        "videos": [_describe_picture_stream(stream) for stream in container.streams.video],
        "sounds": [_describe_sound_stream(stream) for stream in container.streams.audio],
        "others": others,
    }


def _describe_picture_stream(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    return {
        "index": stream.index,
        "codec": None if context is None else context.codec.canonical_name,
        "size": None if context is None else [context.height, context.width],
        "disposition": _list_dispositions(stream),
        "language": stream.language,
    }


def _describe_sound_stream(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    has_time = stream.duration is not None and stream.time_base is not None
    return {
        "index": stream.index,
        "codec": None if context is None else context.codec.canonical_name,
        "rate": None if context is None else context.sample_rate,
        "channels": None if context is None else context.layout.nb_channels,
        "layout": None if context is None else context.layout.name,
        "seconds": float(stream.duration * stream.time_base) if has_time else None,
        "disposition": _list_dispositions(stream),
        "language": stream.language,
    }


def _list_dispositions(stream: Stream) -> list[str]:
    return [flag.name for flag in type(stream.disposition) if flag.value and flag in stream.disposition and flag.name]


def _describe_colors(frame: VideoFrame) -> dict[str, Any]:
    return {
        "pixel_format": frame.format.name,
        "bits": max(component.bits for component in frame.format.components),
        "color_range": _RANGES.get(int(frame.color_range)),
        "color_space": _name_color(int(frame.colorspace), _SPACES),
        "color_primaries": _name_color(int(frame.color_primaries), _PRIMARIES),
        "color_transfer": _name_color(int(frame.color_trc), _TRANSFERS),
        "interlaced": bool(frame.interlaced_frame),
    }


def _name_color(number: int, names: Mapping[int, str]) -> str | None:
    return None if number == _UNSPECIFIED else names.get(number, str(number))


def _find_longest_gap(index: VideoIndex) -> int:
    """Return the largest number of frames from one key frame to the next, or to the end."""
    if not len(index.key_pts):
        return len(index)
    positions = np.searchsorted(index.pts, index.key_pts)
    return int(np.diff([*positions.tolist(), len(index)]).max())
