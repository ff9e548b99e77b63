"""The index of a video: its frames in the order of presentation, their times, and its key frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from streamloader.errors import ConfigError
from streamloader.media.video.clock_jumps import ClockJumps
from streamloader.media.video.frame_times import NO_TIME, is_packet
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.orientation import UPRIGHT, Orientation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamloader.media.video.remote import ByteSpans
    from streamloader.values import Array

__all__ = [
    "NOT_CROPPED",
    "VERIFY_LEVELS",
    "Cropping",
    "IndexSettings",
    "Retiming",
    "VerifyLevel",
    "VideoIndex",
    "validate_stream",
]

VerifyLevel: TypeAlias = Literal["tables", "ends", "frames"]
VERIFY_LEVELS: Final[tuple[VerifyLevel, ...]] = ("tables", "ends", "frames")  # each proves more than those before it


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Settings with which videos are indexed.

    Attributes:
        damaged: ``"raise"`` to refuse a truncated or damaged file, ``"keep"`` to index its decodable frames.
        verify: Level of proof of an index, one of :data:`VERIFY_LEVELS`. With ``damaged="keep"``, it becomes
            ``"frames"``: only decoding shows which frames a damaged file has, and no table says that it is damaged.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        stream: Number of the video stream among those of the file, from 0. Defaults to None, for the one that
            :func:`streamloader.media.video.source.choose_stream` chooses.
    """

    damaged: str = "raise"
    verify: VerifyLevel = "tables"
    max_pixels: int = DEFAULT_MAX_PIXELS
    stream: int | None = None

    def __post_init__(self) -> None:
        """Raise the level of proof to what `damaged` needs."""
        if self.damaged == "keep" and self.verify in VERIFY_LEVELS:
            object.__setattr__(self, "verify", "frames")

    @property
    def kind(self) -> str:
        """Text that distinguishes indexes of the same file that are made with other settings."""
        return self.damaged if self.stream is None else f"{self.damaged} {self.stream}"


def validate_stream(stream: object) -> int | None:
    """Return the number of a video stream as a plain int, or None.

    Raises:
        ConfigError: If it is neither None nor a number from 0 on.
    """
    if stream is None:
        return None
    if isinstance(stream, bool) or not isinstance(stream, (int, np.integer)) or stream < 0:
        raise ConfigError(f"stream must be the number of a video stream, from 0 on, got {stream!r}")
    return int(stream)


class Cropping(NamedTuple):
    """Rows and columns of the decoded picture that the container declares not to be shown, in pixels."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


NOT_CROPPED: Final = Cropping()


@dataclass(frozen=True, eq=False)
class Retiming:
    """Timestamps that packets are given before they are decoded, where those of the file cannot be used.

    Packets are numbered from 0 in storage order.

    Attributes:
        packet_pts: New timestamp of each packet, int64 (packets,). NO_TIME for a packet that shows no frame.
        key_packet: Number of the packet of each key frame, int64 (keys,), ascending.
        key_position: Offset in the file of the packet of each key frame in bytes, int64 (keys,). -1 where unknown.
        by_bytes: Whether key frames are sought by their offset in the file instead of their timestamp.
    """

    packet_pts: Array
    key_packet: Array
    key_position: Array
    by_bytes: bool

    def __eq__(self, other: object) -> bool:
        """Whether `other` gives packets the same timestamps."""
        if not isinstance(other, Retiming):
            return NotImplemented
        names = ("packet_pts", "key_packet", "key_position")
        is_same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
        return is_same and self.by_bytes == other.by_bytes

    __hash__ = None  # type: ignore[assignment]

    def apply(self, packets: Iterable[Any], number: int = 0) -> Iterator[Any]:
        """Yield packets with their new timestamps.

        Args:
            packets: Packets as the demuxer returns them.
            number: Number of the first one. Defaults to 0.
        """
        count = len(self.packet_pts)
        for packet in packets:
            if is_packet(packet):
                pts = int(self.packet_pts[number]) if number < count else NO_TIME
                packet.pts = packet.dts = None if pts == NO_TIME else pts
                number += 1
            yield packet


@dataclass(frozen=True)
class VideoIndex:
    """Frames and key frames of one version of a video file.

    Attributes:
        pts: Timestamp of each frame in units of `time_base`, int64 (frames,), strictly increasing. Frame numbers if
            `has_pts` is False and the file has no times.
        time_base: Duration of one unit of `pts`, in seconds.
        end: Timestamp at which the last frame ends.
        key_pts: Timestamps of the key frames, int64 (keys,), ascending. A key frame may be a recovery point, from which
            only the frames from the next key frame on are reliable: its packet shows that.
        key_seek: Timestamp to pass to the demuxer to reach each key frame, int64 (keys,).
        height: Height of a stored frame in pixels, before `orientation` is applied.
        width: Width of a stored frame in pixels, before `orientation` is applied.
        orientation: Rotation and mirroring that turn the frames upright.
        has_pts: Whether the decoder gives each frame its timestamp, with `retiming` if there is one.
        seekable: Whether frames can be located by timestamp. Otherwise they are counted from the start of the file.
        damaged: Whether the file is truncated or damaged, so that only its decodable frames are indexed.
        note: Description of the damage. Empty for an intact file.
        initial_spans: Byte ranges that are read until the first frame is decoded. Empty for a local file.
        retiming: Timestamps that packets are given before they are decoded. None to use those of the file.
        stream: Number of the video stream among those of the file, from 0.
        video_streams: Number of video streams of the file, without cover pictures and thumbnails.
        cropping: Rows and columns that are removed from each decoded frame. `height` and `width` are what remains.
        pixel_aspect: Width of a stored pixel divided by its height. 1 if the file does not say it.
        clock: Places at which the clock of the file jumps.
    """

    pts: Array
    time_base: Fraction
    end: int
    key_pts: Array
    key_seek: Array
    height: int
    width: int
    orientation: Orientation = UPRIGHT
    has_pts: bool = True
    seekable: bool = True
    damaged: bool = False
    note: str = ""
    initial_spans: ByteSpans = ()
    retiming: Retiming | None = None
    stream: int = 0
    video_streams: int = 1
    cropping: Cropping = NOT_CROPPED
    pixel_aspect: Fraction = Fraction(1)
    clock: ClockJumps = field(default_factory=ClockJumps)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.pts)

    @property
    def clock_jumps(self) -> int:
        """Number of places at which the clock of the file jumps."""
        return len(self.clock)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the frames in pixels, after `orientation` is applied."""
        return self.orientation.apply_to_size(self.height, self.width)

    @property
    def upright_pixel_aspect(self) -> Fraction:
        """Width of a pixel divided by its height, after `orientation` is applied."""
        return 1 / self.pixel_aspect if self.orientation.transpose else self.pixel_aspect
