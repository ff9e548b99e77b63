"""Decoders of folders of images that fill rows in place, each in its fastest form, in one thread.

All read a file at once and scale bilinearly. "reduced" decodes JPEG at half its size first, as libjpeg-turbo can.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class ImageFolder:
    """The images of a folder, sorted by name. Subclasses decode one."""

    def __init__(self, path: str, height: int, width: int) -> None:
        self._paths = [os.path.join(path, name) for name in sorted(os.listdir(path))]
        self._size = (width, height)
        self._next = 0

    def read_into(self, out: Array) -> int:
        """Fill the leading rows of `out`, and return their number. 0 means the end."""
        count = min(len(out), len(self._paths) - self._next)
        for image, path in zip(out, self._paths[self._next : self._next + count], strict=False):
            with open(path, "rb", buffering=0) as file:
                self.decode_into(file.read(), image)
        self._next += count
        return count

    def decode_into(self, data: bytes, image: Array) -> None:
        """Decode one image."""
        raise NotImplementedError


class PillowFolder(ImageFolder):
    """Pillow, with draft(), which decodes at half the size."""

    def decode_into(self, data: bytes, image: Array) -> None:
        """Decode one image."""
        from PIL import Image

        opened = Image.open(io.BytesIO(data))
        opened.draft("RGB", self._size)
        image[:] = opened.resize(self._size, Image.Resampling.BILINEAR)


class OpenCVFolder(ImageFolder):
    """OpenCV, from the full size. Its bilinear filter does not average, so that edges flicker."""

    flags = "IMREAD_COLOR_RGB"

    def __init__(self, path: str, height: int, width: int) -> None:
        import cv2

        super().__init__(path, height, width)
        cv2.setNumThreads(1)
        self._cv2 = cv2
        self._flags = getattr(cv2, self.flags)

    def decode_into(self, data: bytes, image: Array) -> None:
        """Decode one image."""
        decoded = self._cv2.imdecode(np.frombuffer(data, np.uint8), self._flags)
        self._cv2.resize(decoded, self._size, dst=image, interpolation=self._cv2.INTER_LINEAR)


class OpenCVReducedFolder(OpenCVFolder):
    """OpenCV, decoded at half the size. OpenCV offers this in BGR only."""

    flags = "IMREAD_REDUCED_COLOR_2"

    def decode_into(self, data: bytes, image: Array) -> None:
        """Decode one image."""
        cv2 = self._cv2
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), self._flags)
        cv2.resize(decoded, self._size, dst=image, interpolation=cv2.INTER_LINEAR)
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


class TurboFolder(OpenCVFolder):
    """simplejpeg (libjpeg-turbo) decodes at half the size into its own memory, and OpenCV scales."""

    def decode_into(self, data: bytes, image: Array) -> None:
        """Decode one image."""
        import simplejpeg

        decoded = simplejpeg.decode_jpeg(data, "RGB", min_height=240, min_width=320)
        self._cv2.resize(decoded, self._size, dst=image, interpolation=self._cv2.INTER_LINEAR)


IMAGE_DECODERS: dict[str, Any] = {
    "pillow-draft": PillowFolder,
    "opencv-image": OpenCVFolder,
    "opencv-reduced": OpenCVReducedFolder,
    "turbo": TurboFolder,
}
