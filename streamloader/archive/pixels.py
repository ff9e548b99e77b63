"""Decoded frames of an archive as rows of an array: which size, which colours, and who converts them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from streamloader.errors import ConfigError, FrameSizeError
from streamloader.media.video.convert import Converter, Target
from streamloader.media.video.orientation import Turn

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import VideoRow
    from streamloader.media.video.reader import VideoFrame
    from streamloader.values import Array

__all__ = ["PIX_FMTS", "Pixels", "checked_size"]

PIX_FMTS: Final = ("rgb24", "gray")
_KINDS: Final = 16  # of conversions whose converters are kept
_Kind: TypeAlias = "tuple[Any, ...]"


class Pixels:
    """Converts frames of all videos of an archive to one size and pixel format, in several threads at once.

    Args:
        pix_fmt: ``"rgb24"`` or ``"gray"``.
        size: (height, width) of all frames; None: that of the videos.
    """

    def __init__(self, pix_fmt: str, size: tuple[int, int] | None) -> None:
        self.pix_fmt = pix_fmt
        self.size = size
        self.channels = 3 if pix_fmt == "rgb24" else 1
        self._lock = threading.Lock()
        self._idle: OrderedDict[_Kind, list[Converter]] = OrderedDict()

    def shape(self, videos: Sequence[VideoRow]) -> tuple[int, int, int]:
        """Return the (H, W, C) of frames of all these videos.

        Raises:
            FrameSizeError: they differ in size, and none was chosen.
        """
        if self.size is not None:
            return (*self.size, self.channels)
        first = videos[0]
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

    def write(self, video: VideoRow, frame: VideoFrame, target: Target, row: int) -> None:
        """Write a frame of `video` into one row of an array (n, H, W, C)."""
        height, width, _ = target.array.shape[1:]
        turn = Turn(*video.turn)
        kind = (
            turn, height, width, frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range,
        )  # fmt: skip
        with self._lock:
            idle = self._idle.get(kind)
            converter = idle.pop() if idle else None
        if converter is None:
            converter = Converter(self.pix_fmt, height, width, turn)
        try:
            converter.into(frame, [target], row)
        except BaseException:
            converter.close()
            raise
        dropped: list[Converter] = []
        with self._lock:
            self._idle.setdefault(kind, []).append(converter)
            self._idle.move_to_end(kind)
            if len(self._idle) > _KINDS:
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

    def target(self, array: Array) -> Target:
        """Prepare an array (n, H, W, C) to be written into."""
        return Target.of(array)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the converters behind."""
        return {"pix_fmt": self.pix_fmt, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["pix_fmt"], state["size"])  # type: ignore[misc]


def checked_size(size: Any) -> tuple[int, int] | None:
    """Return (height, width), or None.

    Raises:
        ConfigError: it is neither.
    """
    if size is None:
        return None
    good = isinstance(size, (tuple, list)) and len(size) == 2  # noqa: PLR2004
    if not good or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise ConfigError(f"size must be (height, width), two whole numbers of at least 1, got {size!r}")
    return int(size[0]), int(size[1])
