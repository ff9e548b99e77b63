"""Decode a whole short video that is in memory."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from streamloader.errors import StreamloaderError, UnreadableStream
from streamloader.media.video.container import VideoBytes, check_declarations, open_container
from streamloader.media.video.cropping import FrameCropper, read_cropping
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.reader import decode_frames
from streamloader.media.video.reformat import reformat_frame
from streamloader.media.video.side_data import find_side_data
from streamloader.media.video.source import list_streams, prefer_stream
from streamloader.values import Array

__all__ = ["decode_video_bytes"]


def decode_video_bytes(data: bytes, *, name: str = "a video", max_bytes: int = 1 << 32) -> Array:
    """Return all frames of a video, RGB, uint8 (T, H, W, 3), cropped and upright as the file specifies it.

    Args:
        data: Content of a video file.
        name: Name for messages.
        max_bytes: Maximum size of all frames together in bytes. Defaults to 4 GiB.

    Raises:
        UnreadableStream: If the bytes are no video, are damaged, or have more frames than the limit allows.
        MediaLimitExceeded: If its frames are too large.
    """
    limit = PixelLimit(DEFAULT_MAX_PIXELS, name)
    frames: list[Array] = []
    total = 0
    try:
        check_declarations(VideoBytes(data), limit)
        with open_container(VideoBytes(data), limit) as container:
            streams = list_streams(container)
            if not streams:
                raise UnreadableStream(f"{name} has no video")
            stream = prefer_stream(streams)
            cropper = FrameCropper(read_cropping(VideoBytes(data), stream, streams.index(stream)))
            reformatter = VideoReformatter()
            for frame in decode_frames(container, stream, limit=limit):
                if frame.is_corrupt:
                    raise UnreadableStream(f"{name} is damaged: parts of frame {len(frames)} cannot be decoded")
                shown = cropper.crop(frame)
                rgb = reformat_frame(reformatter, shown, shown.width, shown.height, "rgb24")
                image: Array = _find_orientation(frame).apply_to_image(rgb.to_ndarray())
                total += image.nbytes
                if total > max_bytes:
                    raise UnreadableStream(f"{name} has frames of more than {max_bytes} bytes")
                frames.append(image)
    except (av.error.FFmpegError, EOFError, OSError, ValueError) as error:
        if isinstance(error, StreamloaderError):
            raise
        raise UnreadableStream(f"{name} cannot be decoded: {error}") from error
    if not frames:
        raise UnreadableStream(f"{name} has no frames")
    if len({image.shape for image in frames}) > 1:
        raise UnreadableStream(f"{name} has frames of different sizes")
    return np.stack(frames)


def _find_orientation(frame: Any) -> Orientation:
    matrix = next(find_side_data(frame, "DISPLAYMATRIX"), b"")
    return Orientation.from_display_matrix(matrix) or UPRIGHT
