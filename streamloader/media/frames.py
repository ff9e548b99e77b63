"""What is asked of decoded frames by those who do not import av."""

from __future__ import annotations

from av.video.frame import VideoFrame

__all__ = ["VideoFrame", "frame_bytes"]


def frame_bytes(frame: VideoFrame) -> int:
    """Return how many bytes of memory the pixels of a frame take."""
    return sum(plane.buffer_size for plane in frame.planes)
