"""Decode the frames of an animation (GIF, APNG, WebP) with Pillow, which draws each over those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from av.video.frame import VideoFrame

from streamloader.errors import CorruptStream
from streamloader.media.image.pillow import open_with_pillow, translate_pillow_errors
from streamloader.media.video.limits import PixelLimit

if TYPE_CHECKING:
    from streamloader.media.image.headers import ImageHeader

__all__ = ["AnimationReader"]


class AnimationReader:
    """Reads the frames of one animation by number. Reading forwards is cheap; backwards starts again at frame 0.

    Args:
        data: Whole file.
        header: Header of the file.
        frames: Number of its frames.
        name: Path or address without secrets, for error messages.
        stream: Key of the stream, for error messages.
        max_pixels: Maximum number of pixels of a frame.
        remedy: Advice for the user if the file is damaged.
    """

    def __init__(
        self,
        data: bytes,
        header: ImageHeader,
        frames: int,
        *,
        name: str,
        stream: str,
        max_pixels: int,
        remedy: str = 'Repair or remove the file, or pass damaged="keep" to use the frames that can be decoded',
    ) -> None:
        PixelLimit(max_pixels, name).check(header.width, header.height)
        self._data = data
        self._header = header
        self._frames = frames
        self._name = name
        self._stream = stream
        self._remedy = remedy
        self._image: Any = None
        self._next = 0  # number of the frame that the decoder draws next
        self._current: tuple[int, VideoFrame] | None = None

    def read_frame(self, number: int) -> VideoFrame:
        """Return frame `number`, in ``rgb24``.

        Raises:
            CorruptStream: If it cannot be decoded, or one before it. ``offset`` is the number of the first such frame.
        """
        if self._current is None or self._current[0] != number:
            with translate_pillow_errors(self._name, lambda problem: self._make_error(number, problem)):
                self._current = number, VideoFrame.from_ndarray(self._decode(number), format="rgb24")
        return self._current[1]

    def close(self) -> None:
        """Free the decoder. The next read opens it again."""
        image, self._image, self._current = self._image, None, None
        self._next = 0
        if image is not None:
            image.close()

    def _decode(self, number: int) -> Any:
        if self._image is None or number < self._next:
            self.close()
            self._image = open_with_pillow(self._data, self._header.format)
        image = self._image
        first = 1 if getattr(image, "default_image", False) else 0  # an APNG may have a still image for other programs
        if getattr(image, "n_frames", 1) - first != self._frames:
            raise ValueError(f"it has {getattr(image, 'n_frames', 1) - first} frames instead of {self._frames}")
        for position in range(self._next, number + 1):  # Pillow draws a frame over the one that it has loaded
            image.seek(first + position)
            image.load()
            self._next = position + 1
        pixels = np.asarray(image.convert("RGB"))
        if pixels.shape[:2] != (self._header.height, self._header.width):
            raise ValueError(f"a frame has {pixels.shape[1]}x{pixels.shape[0]} pixels")
        return pixels

    def _make_error(self, number: int, problem: str) -> CorruptStream:
        """Return the error of the next frame that has to be drawn for frame `number`, and free the decoder."""
        number = min(self._next, number)
        self.close()
        return CorruptStream(
            f"{self._name} is truncated or damaged at frame {number}: {problem}. {self._remedy}",
            stream=self._stream,
            address=self._name,
            offset=number,
        )
