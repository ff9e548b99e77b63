"""Convert decoded frames of an archive to rows of an array: frame size, pixel format, and a pool of converters."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from streamloader.errors import ConfigError, FrameSizeError
from streamloader.media.video.convert import Converter, OutputArray
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.orientation import Orientation

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import VideoRow
    from streamloader.media.video.reader import VideoFrame
    from streamloader.values import Array

__all__ = ["PIX_FMTS", "ConverterPool", "validate_size"]

PIX_FMTS: Final = ("rgb24", "gray")
_MAX_CONVERSIONS: Final = 16  # different conversions whose idle converters are kept
_Conversion: TypeAlias = "tuple[Any, ...]"


class ConverterPool:
    """Converts the frames of all videos of an archive to one size and pixel format. All methods are thread-safe.

    Args:
        pix_fmt: Pixel format, ``"rgb24"`` or ``"gray"``.
        size: Size (height, width) of the converted frames. None keeps the size of the videos.
        max_pixels: Maximum number of pixels of a frame whose size is kept. Defaults to 2^26.
    """

    def __init__(self, pix_fmt: str, size: tuple[int, int] | None, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.pix_fmt = pix_fmt
        self.size = size
        self._max_pixels = max_pixels
        self.channels = 3 if pix_fmt == "rgb24" else 1
        self._lock = threading.Lock()
        self._idle: OrderedDict[_Conversion, list[Converter]] = OrderedDict()

    def frame_shape(self, videos: Sequence[VideoRow]) -> tuple[int, int, int]:
        """Return the common shape (H, W, C) of the converted frames of these videos.

        Raises:
            FrameSizeError: If the videos differ in size, and the pool has no `size`.
            MediaLimitExceeded: If the catalog declares frames that exceed `max_pixels`, and the pool has no `size`.
        """
        if self.size is not None:
            return (*self.size, self.channels)
        first = videos[0]
        PixelLimit(self._max_pixels, first.name).check(first.width, first.height)
        for video in videos[1:]:
            if (video.height, video.width) != (first.height, first.width):
                raise FrameSizeError(
                    f"videos differ in frame size: {first.name!r} is {first.height}x{first.width} (height x width), "
                    f"{video.name!r} is {video.height}x{video.width}. Open the archive with size=(height, width) to "
                    "scale all to one",
                    stream=video.name,
                    sizes=[[first.height, first.width], [video.height, video.width]],
                )
        return first.height, first.width, self.channels

    def write_frame(self, video: VideoRow, frame: VideoFrame, output: OutputArray, row: int) -> None:
        """Convert a frame of `video` into one row of an output array (N, H, W, C)."""
        height, width, _ = output.array.shape[1:]
        orientation = Orientation(*video.orientation)
        conversion = (
            orientation, height, width,
            frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range,
        )  # fmt: skip
        with self._lock:
            idle = self._idle.get(conversion)
            converter = idle.pop() if idle else None
        if converter is None:
            converter = Converter(self.pix_fmt, height, width, orientation)
        converter.name = video.name
        try:
            converter.convert_into(frame, [output], row)
        except BaseException:
            converter.close()
            raise
        dropped: list[Converter] = []
        with self._lock:
            self._idle.setdefault(conversion, []).append(converter)
            self._idle.move_to_end(conversion)
            if len(self._idle) > _MAX_CONVERSIONS:
                dropped = self._idle.popitem(last=False)[1]
        for old in dropped:
            old.close()

    def close(self) -> None:
        """Free all converters."""
        with self._lock:
            dropped = [converter for idle in self._idle.values() for converter in idle]
            self._idle.clear()
        for converter in dropped:
            converter.close()

    def wrap_output(self, array: Array) -> OutputArray:
        """Prepare an array for :meth:`write_frame`. Its shape is (N, H, W, C)."""
        return OutputArray.wrap(array)

    def __getstate__(self) -> dict[str, Any]:
        """Omit the converters."""
        return {"pix_fmt": self.pix_fmt, "size": self.size, "max_pixels": self._max_pixels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def validate_size(size: Any) -> tuple[int, int] | None:
    """Return `size` as (height, width), or None.

    Raises:
        ConfigError: If it is neither None nor two whole numbers of at least 1.
    """
    if size is None:
        return None
    is_pair = isinstance(size, (tuple, list)) and len(size) == 2  # noqa: PLR2004
    if not is_pair or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise ConfigError(f"size must be (height, width), two whole numbers of at least 1, got {size!r}")
    return int(size[0]), int(size[1])
