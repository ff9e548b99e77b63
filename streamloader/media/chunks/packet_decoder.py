"""Decode packets without a demuxer: numbered packets in, frames with the numbers of their packets out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import av
import av.error
from av.codec.context import ThreadType
from av.packet import Packet

from streamloader.errors import ClosedError, CorruptStream, MediaLimitExceeded, UnreadableStream
from streamloader.media.chunks.format import Coding
from streamloader.media.video.color_tags import keeps_colors
from streamloader.media.video.cropping import FrameCropper
from streamloader.media.video.index import Cropping
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

__all__ = ["PacketDecoder", "read_coding"]

# Decoders for codecs for which FFmpeg does not choose the decoder named like the codec, in order of preference.
_DECODERS: Final = {"av1": ("libdav1d", "libaom-av1", "av1")}
_COLORS: Final = ("color_range", "colorspace", "color_primaries", "color_trc")


def read_coding(context: VideoCodecContext, *, options: tuple[tuple[str, str], ...] = ()) -> Coding:
    """Return the coding of the packets for which a demuxer has opened `context`."""
    colors: dict[str, Any] = {name: int(getattr(context, name)) for name in _COLORS}
    return Coding(
        codec=str(context.codec.canonical_name),
        extradata=bytes(context.extradata or b""),
        width=context.width,
        height=context.height,
        pix_fmt=context.pix_fmt,
        tag=context.codec_tag.strip("\0") and context.codec_tag,
        bits=context.bits_per_coded_sample,
        options=options,
        **colors,
    )


class PacketDecoder:
    """Decodes packets of one coding, in one thread at a time.

    Each packet is given a number, and each frame is returned with the number of its packet. Frames are returned in the
    order of presentation, some packets late, and later still with several threads. All frames that FFmpeg shows are
    returned, including those that are broken because a packet was left out: the caller must discard them.

    Args:
        coding: Coding of the packets.
        threads: Number of FFmpeg's decoder threads. Defaults to 1.
        name: Name of the source of the packets, for error messages. Defaults to "a chunk".
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        MediaLimitExceeded: If `coding` declares larger frames.
        UnreadableStream: If this build of FFmpeg has no decoder for the codec.
        CorruptStream: If the decoder rejects `coding`.
    """

    def __init__(
        self, coding: Coding, *, threads: int = 1, name: str = "", max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> None:
        self._name = name or "a chunk"
        self._limit = PixelLimit(max_pixels, self._name)
        self._limit.check(coding.width, coding.height)
        self._coding = coding
        self._cropper = FrameCropper(Cropping(*coding.cropping))
        self._threads = threads
        self._keeps_colors = False
        self._context: VideoCodecContext | None = None
        self._context = self._open_context()

    def _open_context(self) -> VideoCodecContext:
        coding, threads = self._coding, self._threads
        context = self._create_context()
        try:
            if coding.extradata:
                context.extradata = coding.extradata
            context.width, context.height = coding.width, coding.height
            if coding.pix_fmt:
                context.pix_fmt = coding.pix_fmt
            if coding.tag:
                context.codec_tag = coding.tag
            context.bits_per_coded_sample = coding.bits
            for color in _COLORS:
                setattr(context, color, getattr(coding, color))
            context.thread_count = threads
            if threads != 1:
                context.thread_type = ThreadType.AUTO
            context.options = dict(coding.options) | self._limit.decoder_option
            context.open(strict=False)
        except (av.error.FFmpegError, ValueError, TypeError, OverflowError) as error:
            raise self._corrupt_error(f"its decoder cannot be configured: {error}") from error
        return context

    def send(self, number: int, data: Any) -> list[tuple[int, VideoFrame]]:
        """Decode one packet, and return the frames that are ready, with the numbers of their packets.

        Args:
            number: Number of the packet.
            data: Bytes of the packet: any buffer, which may be reused afterwards.

        Raises:
            CorruptStream: If the packet cannot be decoded. ``offset`` is its number.
            MediaLimitExceeded: If a frame is too large. ``offset`` is the number of the packet.
            ClosedError: If the decoder is closed.
        """
        # FFmpeg allocates the packet, with zeros after it: decoders read past the end, and some depend on the zeros.
        packet: Packet[Any] = Packet(memoryview(data).nbytes)
        packet.update(data)
        packet.pts = packet.dts = number
        return self._decode(packet, number)

    def drain(self) -> list[tuple[int, VideoFrame]]:
        """Return the frames that the decoder still holds, and reset it.

        Raises:
            CorruptStream: If the frames cannot be decoded.
            ClosedError: If the decoder is closed.
        """
        try:
            return self._decode(None, None)
        finally:
            self.reset()

    def reset(self) -> None:
        """Discard all packets sent so far. The next packet must be a key frame."""
        if self._context is None:
            return
        if self._keeps_colors:
            self._keeps_colors = False
            self._context = self._open_context()
        else:
            self._context.flush_buffers()

    def close(self) -> None:
        """Free the decoder. Safe to call twice."""
        self._context = None

    def _create_context(self) -> VideoCodecContext:
        codec = self._coding.codec
        for decoder in _DECODERS.get(codec, (codec,)):
            try:
                context = av.CodecContext.create(decoder, "r")
            except (av.error.FFmpegError, ValueError):
                continue
            if context.type == "video" and context.codec.canonical_name == codec:
                return cast("VideoCodecContext", context)
        raise UnreadableStream(f"{self._name} cannot be decoded: this build of FFmpeg has no decoder for {codec!r}")

    def _decode(self, packet: Packet[Any] | None, number: int | None) -> list[tuple[int, VideoFrame]]:
        if self._context is None:
            raise ClosedError(f"the decoder of {self._name} is closed")
        try:
            frames = self._context.decode(packet)
            self._limit.check_frames(frames)
        except MediaLimitExceeded as error:
            error.offset = number
            raise
        except (av.error.FFmpegError, EOFError) as error:
            self._limit.check(self._context.width, self._context.height, "has")
            raise self._corrupt_error(getattr(error, "strerror", None) or str(error), number) from error
        numbered = []
        coding = self._coding
        for frame in frames:
            self._keeps_colors |= keeps_colors(coding.codec, (coding.color_range, coding.colorspace), frame)
            if frame.pts is None:
                raise self._corrupt_error("a frame belongs to no packet", number)
            numbered.append((int(frame.pts), self._cropper.crop(frame)))
        return numbered

    def _corrupt_error(self, problem: str, number: int | None = None) -> CorruptStream:
        where = "" if number is None else f" at packet {number}"
        return CorruptStream(f"{self._name} is damaged{where}: {problem}", stream=self._name, offset=number)
