"""Notice colour tags in packets, which FFmpeg's decoders keep for later frames whose packets have none.

After a seek back to such frames, they would be shown in other colours than before. A new decoder is needed then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["ColorTags", "keeps_colors"]

ColorTags = tuple[int, int]
"""Colour range and matrix, as in ITU-T H.273, in FFmpeg's numbers."""

_KEEPING_CODECS: Final = frozenset({"h264", "hevc", "mpeg2video"})  # tags are optional in their packets


def keeps_colors(codec: str, declared: ColorTags, frame: VideoFrame) -> bool:
    """Return whether a decoder may give the colour tags of a frame to others.

    Args:
        codec: Name of the codec.
        declared: Tags with which the decoder was opened.
        frame: Frame that it has decoded.
    """
    return codec in _KEEPING_CODECS and (frame.color_range, frame.colorspace) != declared
