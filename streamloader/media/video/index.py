"""The index of a video: its frames in the order of presentation, their times, and its key frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamloader.media.video.orientation import UPRIGHT, Turn

if TYPE_CHECKING:
    from fractions import Fraction

    from streamloader.media.video.remote import Spans
    from streamloader.values import Array

__all__ = ["VideoIndex"]


@dataclass(frozen=True)
class VideoIndex:
    """What is known of one version of one video file.

    Attributes:
        pts: int64 (frames,), strictly increasing: the pts of each shown frame, or made up where `has_pts` is False.
        time_base: seconds of one tick of `pts`.
        end: pts at which the last frame ends.
        key_pts: int64, sorted: where decoding can begin.
        key_seek: int64, for each of these: the time to ask the demuxer for.
        key_hard: bool, for each of these: False if only frames some way behind it are sure to be right.
        height: of a shown frame, as it is stored.
        width: of a shown frame, as it is stored.
        turn: how it has to be turned to be upright.
        has_pts: the decoder gives each frame its pts.
        seekable: frames can be found by their pts; otherwise they are counted from the start.
        damaged: the file breaks off or is damaged, and this lists what can be decoded of it.
        note: what is wrong with it, if it is damaged.
        opening: of a video in a store: the spans of bytes that are read until the first frame is there.
    """

    pts: Array
    time_base: Fraction
    end: int
    key_pts: Array
    key_seek: Array
    key_hard: Array
    height: int
    width: int
    turn: Turn = UPRIGHT
    has_pts: bool = True
    seekable: bool = True
    damaged: bool = False
    note: str = ""
    opening: Spans = ()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.pts)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) after the turn."""
        return self.turn.size(self.height, self.width)
