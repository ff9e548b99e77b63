"""Re-encode frames into a chunk, lossless or with the user's encoder settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, cast

import av
import av.error
from av.codec.context import Flags
from av.video.format import VideoFormat
from av.video.reformatter import VideoReformatter

from streamloader.errors import ConfigError
from streamloader.media.chunks.frame_hash import choose_canonical_format, find_little_endian
from streamloader.media.chunks.remux import (
    MP4_CODECS,
    AudioPackets,
    ChunkRejected,
    create_chunk_file,
    mux_packets,
    write_orientation,
)
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.reformat import reformat_frame

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.values import Array

__all__ = [
    "EncoderSettings",
    "choose_encoder",
    "choose_suffixes",
    "encode_chunk",
    "encoder_error",
    "lossless_encoders",
]

_BITS_PER_BYTE: Final = 8
_COLORS: Final = ("color_range", "colorspace", "color_primaries", "color_trc")
# Encoders that need an option of their own to close each group of pictures.
_CLOSED_GOP_OPTIONS: Final = {
    "libx264": ("x264-params", "open-gop=0"),
    "libx264rgb": ("x264-params", "open-gop=0"),
    "libx265": ("x265-params", "log-level=1:open-gop=0"),
}
_RGB_MATRIX: Final = 0  # in ITU-T H.273
_FULL_RANGE: Final = 2  # FFmpeg's AVCOL_RANGE_JPEG
_FFV1_OPTIONS: Final = {"level": "3", "slicecrc": "1"}
# Lossless encoders of RGB, and the formats that they take, by the result of `choose_canonical_format`.
_LOSSLESS_RGB: Final[dict[str, tuple[tuple[str, dict[str, str], tuple[str, ...]], ...]]] = {
    "rgb24": (
        ("libx264rgb", {"qp": "0", "preset": "veryfast"}, ("rgb24", "bgr24")),
        ("ffv1", _FFV1_OPTIONS, ("gbrp", "bgr0")),
        ("png", {}, ("rgb24",)),
    ),
    "rgba": (("ffv1", _FFV1_OPTIONS, ("bgra", "gbrap")), ("png", {}, ("rgba",))),
    "rgb48le": (("ffv1", _FFV1_OPTIONS, ("rgb48le", "gbrp16le")), ("png", {}, ("rgb48be",))),
    "rgba64le": (("ffv1", _FFV1_OPTIONS, ("rgba64le", "gbrap16le")), ("png", {}, ("rgba64be",))),
}
_MAX_REWRITTEN_TIMES: Final = 64  # chunks of fewer frames get new dts, because encoders invent dts for them
_MPEG_ENCODERS: Final = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of the encoder of a chunk.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pix_fmt: Pixel format that the encoder receives. Frames in other formats are converted.
        gop: Maximum number of frames from one key frame to the next.
        options: Options of the encoder. Defaults to none.
        height: Height of the stored frames in pixels. Defaults to the source's height.
        width: Width of the stored frames in pixels. Defaults to the source's width.
    """

    codec: str
    pix_fmt: str
    gop: int
    options: Mapping[str, str] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None


def lossless_encoders(pix_fmt: str, gop: int) -> Iterator[EncoderSettings]:
    """Yield lossless encoders for frames of this pixel format, the one with the smallest result first.

    Frames of RGB may get another order of channels, or one byte for a channel of five bits, and big-endian samples
    become little-endian: all visible samples fit.
    """
    canonical = choose_canonical_format(pix_fmt)
    if canonical is not None:
        for codec, options, choices in _LOSSLESS_RGB[canonical]:
            supported = _supported_pix_fmts(codec) or []
            for format_ in choices:
                if format_ in supported:
                    yield EncoderSettings(codec, format_, gop, options)
                    break
        return
    pix_fmt = find_little_endian(pix_fmt) or pix_fmt
    for codec, options in (
        ("libx264", {"qp": "0", "preset": "veryfast"}),
        ("ffv1", {"level": "3", "slicecrc": "1"}),
        ("jpeg2000", {"pred": "1"}),
        ("png", {}),
        ("rawvideo", {}),
    ):
        formats = _supported_pix_fmts(codec)
        if formats is None or pix_fmt in formats:
            yield EncoderSettings(codec, pix_fmt, gop, options)


def choose_encoder(
    settings: CutSettings, pix_fmt: str, stored_size: tuple[int, int], orientation: Orientation
) -> EncoderSettings:
    """Return the encoder that the user chose, for frames of a pixel format and a stored (height, width)."""
    assert settings.codec is not None
    assert settings.gop is not None
    size = None if settings.size is None else orientation.apply_to_size(*settings.size)
    formats = _supported_pix_fmts(settings.codec)
    if formats is not None and pix_fmt not in formats:
        is_deep = max(part.bits for part in VideoFormat(pix_fmt, 16, 16).components) > _BITS_PER_BYTE
        preferred = ["yuv420p10le", "yuv420p"] if is_deep else ["yuv420p"]
        pix_fmt = next((name for name in preferred if name in formats), formats[0])
    if pix_fmt == "yuv420p" and any(n % 2 for n in size or stored_size) and "yuv444p" in (formats or ()):
        pix_fmt = "yuv444p"  # encoders reject odd sizes with subsampled chroma
    return EncoderSettings(settings.codec, pix_fmt, settings.gop, settings.options, *(size or (None, None)))


def encode_chunk(
    file: str, frames: Iterable[VideoFrame], encoder: EncoderSettings, pts: Array, tick: Fraction,
    orientation: Orientation, audio: AudioPackets | None,
) -> None:  # fmt: skip
    """Encode frames into a new chunk.

    Args:
        file: Path of the new file.
        frames: Frames of the chunk.
        encoder: Settings of the encoder.
        pts: Timestamp of each frame, and the end of the last one, in units of `tick`, int64 (frames + 1,).
        tick: Unit of `pts` in seconds.
        orientation: Orientation of the frames, for video players.
        audio: Audio packets, for video players, or None.

    Raises:
        ChunkRejected: If the encoder or the container rejects the frames.
    """
    with create_chunk_file(file, tick) as output:
        remaining = iter(frames)
        first = next(remaining)
        options = dict(encoder.options)
        if encoder.codec in _MPEG_ENCODERS:  # they close groups of pictures only without scene change detection
            options.setdefault("sc_threshold", "1000000000")
        if encoder.codec in _CLOSED_GOP_OPTIONS:
            name, closed_gop = _CLOSED_GOP_OPTIONS[encoder.codec]
            options[name] = ":".join(filter(None, (closed_gop, options.get(name))))
        rate = _average_rate(pts, tick)
        stream = cast("VideoStream", output.add_stream(encoder.codec, rate=rate, options=options))
        context = stream.codec_context
        context.width, context.height = encoder.width or first.width, encoder.height or first.height
        context.pix_fmt, context.gop_size, context.thread_count = encoder.pix_fmt, encoder.gop, 1
        context.time_base = stream.time_base = tick
        context.flags |= Flags.bitexact
        if encoder.codec in _MPEG_ENCODERS:
            context.flags |= Flags.closed_gop
        for color in _COLORS:
            setattr(context, color, int(getattr(first, color)))
        if VideoFormat(encoder.pix_fmt, 16, 16).is_rgb:  # H.264 is taken for YUV otherwise
            context.colorspace, context.color_range = _RGB_MATRIX, _FULL_RANGE
        write_orientation(stream, orientation)
        packets: Iterable[Any] = _encode_frames(stream, _prepend(first, remaining), encoder, pts, tick)
        if len(pts) <= _MAX_REWRITTEN_TIMES:
            packets = _rewrite_dts(list(packets))
        mux_packets(output, stream, packets, audio)


def choose_suffixes(codec: str, audio: AudioPackets | None) -> list[str]:
    """Return the file suffixes of the containers that can hold FFmpeg's codec or encoder, the preferred one first."""
    with contextlib.suppress(av.error.FFmpegError, ValueError):  # a codec without encoder keeps its own name
        codec = str(av.Codec(codec, "w").canonical_name)
    return ["mp4", "mkv"] if codec in MP4_CODECS and (audio is None or audio.fits_mp4()) else ["mkv"]


def encoder_error(settings: CutSettings, reason: ChunkRejected, path: str) -> ConfigError:
    """Build the error to raise if the encoder that the user chose cannot encode this video."""
    return ConfigError(
        f"{settings.codec} cannot encode {path} with options {dict(settings.options)}: {reason}",
        stream=path,
        address=path,
    )


def _encode_frames(
    stream: VideoStream, frames: Iterable[VideoFrame], encoder: EncoderSettings, pts: Array, tick: Fraction
) -> Iterator[Any]:
    reformatter = VideoReformatter()
    size = stream.codec_context.width, stream.codec_context.height
    for number, frame in enumerate(frames):
        converted = frame
        if frame.format.name != encoder.pix_fmt or (frame.width, frame.height) != size:
            converted = reformat_frame(reformatter, frame, *size, encoder.pix_fmt)
        converted.pts, converted.time_base, converted.pict_type = int(pts[number] - pts[0]), tick, 0
        converted.duration = int(pts[number + 1] - pts[number])
        yield from stream.encode(converted)
    yield from stream.encode(None)


def _rewrite_dts(packets: list[Any]) -> list[Any]:
    """Set new dts of packets: encoders that need more frames than they receive invent wrong ones."""
    ordered = sorted(packet.pts for packet in packets)
    delay = max(pts - packet.pts for pts, packet in zip(ordered, packets, strict=True))
    for pts, packet in zip(ordered, packets, strict=True):
        packet.dts = pts - delay
    return packets


def _prepend(first: VideoFrame, rest: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest


def _average_rate(pts: Array, tick: Fraction) -> Fraction:
    """Return the average number of frames per second, a hint for encoders."""
    return ((len(pts) - 1) / (int(pts[-1] - pts[0]) * tick)).limit_denominator(1001)


def _supported_pix_fmts(codec: str) -> list[str] | None:
    """Return the pixel formats of an encoder: empty if it does not exist, None if it takes all formats."""
    try:
        formats = av.Codec(codec, "w").video_formats
    except (av.error.FFmpegError, ValueError):
        return []
    return None if formats is None else [str(each.name) for each in formats]
