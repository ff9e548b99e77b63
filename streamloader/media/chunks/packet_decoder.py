"""Decoding packets that no demuxer hands over: bytes and a number in, frames with these numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import av
import av.error
from av.codec.context import ThreadType
from av.packet import Packet

from streamloader.errors import ClosedError, CorruptStream, UnreadableStream
from streamloader.media.chunks.format import Coding

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

__all__ = ["PacketDecoder", "coding_of"]

# Where a codec's own name is not that of the decoder that FFmpeg takes for it.
_DECODERS: Final = {"av1": ("libdav1d", "libaom-av1", "av1")}
_COLORS: Final = ("color_range", "colorspace", "color_primaries", "color_trc")


def coding_of(context: VideoCodecContext, *, options: tuple[tuple[str, str], ...] = ()) -> Coding:
    """Return how the packets are coded that a demuxer has opened this context for."""
    colors = {name: int(getattr(context, name)) for name in _COLORS}
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

    Each packet is given a number, and each frame comes back with that of the packet it was in. Frames come in the order
    in which they are shown, some packets late; the decoder's threads make them later still. Nothing is left out that
    FFmpeg shows, also not what is broken because a packet was not handed over: who leaves packets out has to know.

    Args:
        coding: what the packets are.
        threads: of FFmpeg, for this decoder.
        name: what errors call the source of the packets.

    Raises:
        UnreadableStream: this build of FFmpeg has no decoder for the codec.
        CorruptStream: the decoder does not take what `coding` says.
    """

    def __init__(self, coding: Coding, *, threads: int = 1, name: str = "") -> None:
        self._name = name or "a chunk"
        self._coding = coding
        self._context: VideoCodecContext | None = None
        context = self._create()
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
            if coding.options:
                context.options = dict(coding.options)
            context.open(strict=False)
        except (av.error.FFmpegError, ValueError, TypeError, OverflowError) as error:
            raise self._broken(f"its decoder cannot be set up: {error}") from error
        self._context = context

    def send(self, number: int, data: Any) -> list[tuple[int, VideoFrame]]:
        """Hand over one packet, and return the frames that are ready, with the numbers of their packets.

        Args:
            number: by which its frame is called.
            data: its bytes: anything that has a buffer, which may be used again afterwards.

        Raises:
            CorruptStream: it cannot be decoded; ``offset`` is its number.
            ClosedError: the decoder was closed.
        """
        # Made by FFmpeg, which pads it with zeros: decoders read beyond the end, and of some codecs that decides.
        packet: Packet[Any] = Packet(memoryview(data).nbytes)
        packet.update(data)
        packet.pts = packet.dts = number
        return self._decode(packet, number)

    def drain(self) -> list[tuple[int, VideoFrame]]:
        """Return the frames that the decoder still holds; after that it is as if it were new.

        Raises:
            CorruptStream: they cannot be decoded.
            ClosedError: the decoder was closed.
        """
        try:
            return self._decode(None, None)
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget all packets that were handed over: the next one has to be a key frame's."""
        if self._context is not None:
            self._context.flush_buffers()

    def close(self) -> None:
        """Free the decoder. Safe to call twice."""
        self._context = None

    def _create(self) -> VideoCodecContext:
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
            raise ClosedError(f"the decoder of {self._name} was closed")
        try:
            frames = self._context.decode(packet)
        except (av.error.FFmpegError, EOFError) as error:
            raise self._broken(getattr(error, "strerror", None) or str(error), number) from error
        found = []
        for frame in frames:
            if frame.pts is None:
                raise self._broken("a frame comes from no packet", number)
            found.append((int(frame.pts), frame))
        return found

    def _broken(self, what: str, number: int | None = None) -> CorruptStream:
        where = "" if number is None else f" at packet {number}"
        return CorruptStream(f"{self._name} is damaged{where}: {what}", stream=self._name, offset=number)
