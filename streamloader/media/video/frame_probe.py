"""Check the size of the first frames of a file before FFmpeg opens decoders without a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import av.error

from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.parameter_sets import find_parameter_sets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

__all__ = ["FrameProbe", "decode_first"]

_MAX_PROBED_BYTES: Final = 5_000_000  # FFmpeg's "probesize", the packets that it reads to open a file
_PROBED_FRAMES: Final = 24  # FFmpeg decodes up to 20
_PROBED_PACKETS: Final = 64  # where they are not decoded: decoders show a frame at most 16 packets later


class FrameProbe:
    """Checks the size of as many frames of each video stream as FFmpeg decodes to open a file.

    The frames are decoded with limited decoders. For H.264 and HEVC in MPEG-TS, reading the parameter sets suffices.

    Args:
        container: Open file whose own decoders are disabled.
        limit: Limit on the size of frames.

    Attributes:
        streams: Video streams of the file.
        is_done: Whether enough frames or bytes were checked.
        first_frames: First frame of each decoded stream, by the index of the stream.
    """

    def __init__(self, container: InputContainer, limit: PixelLimit) -> None:
        self.streams = list(container.streams.video)
        self.first_frames: dict[int, VideoFrame] = {}
        self._limit = limit
        self._missing: dict[int, int] = {}
        self._undecoded: dict[int, list[Packet[Any]]] = {}  # packets whose parameter sets are all allowed
        self._probed_bytes = 0
        for stream in self.streams:
            context = stream.codec_context
            if context is not None:
                self._missing[stream.index] = _PROBED_FRAMES
                is_annexb = container.format.name == "mpegts" and context.name in ("h264", "hevc")
                if is_annexb and self._check_sets(context.name, context.extradata or b""):
                    self._undecoded[stream.index] = []
                    self._missing[stream.index] = _PROBED_PACKETS
                else:
                    _limit_decoder(context, limit)
        self.is_done = not self._missing

    def add(self, packet: Packet[Any]) -> None:
        """Check a packet.

        Raises:
            MediaLimitExceeded: If one of its frames is too large.
        """
        if packet.stream.codec_context is None or _is_empty(packet):
            return
        self._probed_bytes += packet.size
        index = packet.stream.index  # not packet.stream_index, which is 0 of every packet that flushes a decoder
        if index in self._undecoded:
            self._undecoded[index].append(packet)
            self._missing[index] -= 1
            if not self._check_sets(packet.stream.codec_context.name, bytes(packet)):
                _limit_decoder(packet.stream.codec_context, self._limit)
                self._missing[index] = _PROBED_FRAMES
                for earlier in self._undecoded.pop(index):
                    self._decode(earlier)
        elif index in self._missing:
            self._decode(packet)
        self.is_done = self._probed_bytes > _MAX_PROBED_BYTES or max(self._missing.values()) <= 0
        if self.is_done:
            self._undecoded.clear()

    def _check_sets(self, codec: str, data: bytes) -> bool:
        """Check the parameter sets in bytes with start codes. Return False if one is not understood."""
        sets = None if data.startswith(b"\1") else find_parameter_sets(codec, data)
        if sets is None:
            return False
        for parameters in sets:
            self._limit.check(parameters.width, parameters.height, "has")
        return True

    def _decode(self, packet: Packet[Any]) -> None:
        context: Any = packet.stream.codec_context
        try:
            frames = packet.decode()
            self._limit.check_frames(frames)
            if frames:
                self.first_frames.setdefault(packet.stream_index, frames[0])
            self._missing[packet.stream_index] -= len(frames)
        except (av.error.FFmpegError, EOFError):
            self._limit.check_refusal(context.width, context.height)

    def read(self, container: InputContainer) -> None:
        """Decode packets of a container until enough frames are known.

        Raises:
            MediaLimitExceeded: If a frame is too large.
            FFmpegError: If the demuxer fails.
        """
        if not self.is_done:
            for packet in container.demux(*self.streams):
                self.add(packet)
                if self.is_done:
                    return


def decode_first(context: VideoCodecContext, packet: Packet[Any], limit: PixelLimit) -> VideoFrame | None:
    """Return the frame of a packet, or None if it shows none. The decoder must be new, and cannot be used afterwards.

    Raises:
        MediaLimitExceeded: If the frame is too large.
    """
    _limit_decoder(context, limit)
    try:
        frames = context.decode(packet) or context.decode(None)
    except (av.error.FFmpegError, EOFError):
        return None
    limit.check_frames(frames)
    return frames[0] if frames else None


def _limit_decoder(context: VideoCodecContext, limit: PixelLimit) -> None:
    context.thread_count = 1
    context.options = limit.decoder_option


def _is_empty(packet: Packet[Any]) -> bool:
    """Return whether a packet of the file has no bytes. The one that flushes the decoder has no timestamps either."""
    return not packet.size and (packet.pts is not None or packet.dts is not None)
