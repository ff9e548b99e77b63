"""The index of a video: its frames in the order of presentation, their times, and its key frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.orientation import UPRIGHT, Orientation

if TYPE_CHECKING:
    from fractions import Fraction

    from streamloader.media.video.remote import ByteSpans
    from streamloader.values import Array

__all__ = ["VERIFY_LEVELS", "IndexSettings", "VerifyLevel", "VideoIndex"]

VerifyLevel: TypeAlias = Literal["tables", "ends", "frames"]
VERIFY_LEVELS: Final[tuple[VerifyLevel, ...]] = ("tables", "ends", "frames")  # each proves more than those before it


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Settings with which videos are indexed.

    Attributes:
        damaged: ``"raise"`` to refuse a truncated or damaged file, ``"keep"`` to index its decodable frames.
        verify: Level of proof of an index, one of :data:`VERIFY_LEVELS`.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
    """

    damaged: str = "raise"
    verify: VerifyLevel = "tables"
    max_pixels: int = DEFAULT_MAX_PIXELS


@dataclass(frozen=True)
class VideoIndex:
    """Frames and key frames of one version of a video file.

    Attributes:
        pts: Timestamp of each frame in units of `time_base`, int64 (frames,), strictly increasing. Frame numbers if
            `has_pts` is False.
        time_base: Duration of one unit of `pts`, in seconds.
        end: Timestamp at which the last frame ends.
        key_pts: Timestamps of the key frames, int64 (keys,), ascending. A key frame may be a recovery point, from which
            only the frames from the next key frame on are reliable: its packet shows that.
        key_seek: Timestamp to pass to the demuxer to reach each key frame, int64 (keys,).
        height: Height of a stored frame in pixels, before `orientation` is applied.
        width: Width of a stored frame in pixels, before `orientation` is applied.
        orientation: Rotation and mirroring that turn the frames upright.
        has_pts: Whether the decoder gives each frame its timestamp.
        seekable: Whether frames can be located by timestamp. Otherwise they are counted from the start of the file.
        damaged: Whether the file is truncated or damaged, so that only its decodable frames are indexed.
        note: Description of the damage. Empty for an intact file.
        initial_spans: Byte ranges that are read until the first frame is decoded. Empty for a local file.
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

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.pts)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the frames in pixels, after `orientation` is applied."""
        return self.orientation.apply_to_size(self.height, self.width)
