"""Coding frames anew into a chunk: with a loss that was chosen, or with none at all."""

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
from streamloader.media.chunks.remux import MP4_CODECS, Sound, Unfit, keep_turn, open_chunk, write_packets
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.orientation import Turn

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.values import Array

__all__ = ["Coder", "chosen_coder", "encode_chunk", "lossless_coders", "refusal", "suffixes"]

_BYTE: Final = 8
_COLORS: Final = ("color_range", "colorspace", "color_primaries", "color_trc")
# Group options that encoders know only by their own names.
_CLOSED: Final = {"libx264": ("x264-params", "open-gop=0"), "libx265": ("x265-params", "log-level=1:open-gop=0")}


_FEW: Final = 64  # frames
_MPEG: Final = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})


@dataclass(frozen=True)
class Coder:
    """How frames are coded.

    Attributes:
        codec: FFmpeg's encoder.
        pix_fmt: of the frames that it is given; what is otherwise is converted.
        gop: frames from one key frame to the next, at most.
        options: of the encoder.
        height: of the frames as they are stored; None leaves it.
        width: the same.
    """

    codec: str
    pix_fmt: str
    gop: int
    options: Mapping[str, str] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None


def lossless_coders(pix_fmt: str, gop: int) -> Iterator[Coder]:
    """Yield ways to code frames of this format without any loss, the smallest result first."""
    for codec, options in (
        ("libx264", {"qp": "0", "preset": "veryfast"}),
        ("ffv1", {"level": "3", "slicecrc": "1"}),
        ("png", {}),
        ("rawvideo", {}),
    ):
        formats = _formats(codec)
        if formats is None or pix_fmt in formats:
            yield Coder(codec, pix_fmt, gop, options)


def chosen_coder(settings: CutSettings, pix_fmt: str, stored: tuple[int, int], turn: Turn) -> Coder:
    """Return what the user chose, for frames that are stored as (height, width) in this pixel format."""
    assert settings.codec is not None
    assert settings.gop is not None
    size = None if settings.size is None else turn.size(*settings.size)
    formats = _formats(settings.codec)
    if formats is not None and pix_fmt not in formats:
        deep = max(part.bits for part in VideoFormat(pix_fmt, 16, 16).components) > _BYTE
        likely = ["yuv420p10le", "yuv420p"] if deep else ["yuv420p"]
        pix_fmt = next((name for name in likely if name in formats), formats[0])
    if pix_fmt == "yuv420p" and any(n % 2 for n in size or stored) and "yuv444p" in (formats or ()):
        pix_fmt = "yuv444p"  # encoders take no odd sizes where chroma has half of them
    return Coder(settings.codec, pix_fmt, settings.gop, settings.options, *(size or (None, None)))


def encode_chunk(
    file: str, frames: Iterable[VideoFrame], coder: Coder, pts: Array, tick: Fraction, turn: Turn, sound: Sound | None
) -> None:
    """Write frames into a new chunk.

    Args:
        file: to be made.
        frames: those of the chunk.
        coder: how they are coded.
        pts: int64 (frames + 1,): when each is shown, and when the last one ends.
        tick: seconds of one tick of `pts`.
        turn: for players.
        sound: for players.

    Raises:
        Unfit: encoder or container refuse them.
    """
    with open_chunk(file, tick) as output:
        waiting = iter(frames)
        first = next(waiting)
        options = dict(coder.options)
        if coder.codec in _MPEG:  # they close groups only where they do not look for cuts
            options.setdefault("sc_threshold", "1000000000")
        if coder.codec in _CLOSED:
            name, closed = _CLOSED[coder.codec]
            options[name] = ":".join(filter(None, (closed, options.get(name))))
        stream = cast("VideoStream", output.add_stream(coder.codec, rate=_rate(pts, tick), options=options))
        context = stream.codec_context
        context.width, context.height = coder.width or first.width, coder.height or first.height
        context.pix_fmt, context.gop_size, context.thread_count = coder.pix_fmt, coder.gop, 1
        context.time_base = stream.time_base = tick
        context.flags |= Flags.bitexact
        if coder.codec in _MPEG:
            context.flags |= Flags.closed_gop
        for color in _COLORS:
            setattr(context, color, int(getattr(first, color)))
        keep_turn(stream, turn)
        packets: Iterable[Any] = _coded(stream, _chained(first, waiting), coder, pts, tick)
        if len(pts) <= _FEW:
            packets = _redated(list(packets))
        write_packets(output, stream, packets, sound)


def suffixes(codec: str, sound: Sound | None) -> list[str]:
    """Return the kinds of file that packets of FFmpeg's codec or encoder go into, the best first."""
    with contextlib.suppress(av.error.FFmpegError, ValueError):  # one that can only be decoded: by its own name
        codec = str(av.Codec(codec, "w").canonical_name)
    return ["mp4", "mkv"] if codec in MP4_CODECS and (sound is None or sound.fits_mp4()) else ["mkv"]


def refusal(settings: CutSettings, reason: Unfit, path: str) -> ConfigError:
    """Describe that the encoder that was chosen does not take this video."""
    return ConfigError(
        f"{settings.codec} cannot encode {path} with options {dict(settings.options)}: {reason}",
        stream=path,
        address=path,
    )


def _coded(
    stream: VideoStream, frames: Iterable[VideoFrame], coder: Coder, pts: Array, tick: Fraction
) -> Iterator[Any]:
    reformatter = VideoReformatter()
    size = stream.codec_context.width, stream.codec_context.height
    for number, frame in enumerate(frames):
        made = frame
        if frame.format.name != coder.pix_fmt or (frame.width, frame.height) != size:
            made = reformatter.reformat(frame, *size, coder.pix_fmt, threads=1)
        made.pts, made.time_base, made.pict_type = int(pts[number] - pts[0]), tick, 0
        made.duration = int(pts[number + 1] - pts[number])
        yield from stream.encode(made)
    yield from stream.encode(None)


def _redated(packets: list[Any]) -> list[Any]:
    """Set the dts of a few packets anew: encoders that wait for more frames than there are make them up."""
    ordered = sorted(packet.pts for packet in packets)
    late = max(at - packet.pts for at, packet in zip(ordered, packets, strict=True))
    for at, packet in zip(ordered, packets, strict=True):
        packet.dts = at - late
    return packets


def _chained(first: VideoFrame, rest: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest


def _rate(pts: Array, tick: Fraction) -> Fraction:
    """Return the average number of frames a second, for what encoders make of it."""
    return ((len(pts) - 1) / (int(pts[-1] - pts[0]) * tick)).limit_denominator(1001)


def _formats(codec: str) -> list[str] | None:
    """Return the pixel formats that an encoder takes; nothing if there is no such encoder, None if it takes all."""
    try:
        formats = av.Codec(codec, "w").video_formats
    except (av.error.FFmpegError, ValueError):
        return []
    return None if formats is None else [str(each.name) for each in formats]
