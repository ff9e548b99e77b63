"""The limit on the size of frames, which is checked before and after a decoder allocates memory for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from streamloader.errors import ConfigError, MediaLimitExceeded

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["DEFAULT_MAX_PIXELS", "PixelLimit", "validate_max_pixels"]

DEFAULT_MAX_PIXELS: Final = 1 << 26  # 8192 x 8192
_MAX_DECODER_PIXELS: Final = (1 << 31) - 1  # the largest value of FFmpeg's option
_MIN_PADDING_PIXELS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PixelLimit:
    """Maximum number of pixels of a frame of one video.

    Attributes:
        max_pixels: The limit. Defaults to 2^26, which is 8192 x 8192.
        name: Name of the video for error messages.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    name: str = "a video"

    @property
    def decoder_option(self) -> dict[str, str]:
        """FFmpeg's own limit, which makes a decoder refuse a frame before it allocates memory for it.

        FFmpeg counts the padding of frames to whole blocks too. Its limit is therefore higher, and the frames that pass
        are checked by :meth:`check_frames`.
        """
        pixels = self.max_pixels + self.max_pixels // 4 + _MIN_PADDING_PIXELS
        return {"max_pixels": str(min(_MAX_DECODER_PIXELS, pixels))}

    def check(self, width: int, height: int, verb: str = "declares") -> None:
        """Check the size of frames.

        Args:
            width: Width in pixels.
            height: Height in pixels.
            verb: Verb of the error message: the file "declares" or "has" frames of this size.

        Raises:
            MediaLimitExceeded: If it exceeds the limit.
        """
        pixels = width * height
        if pixels > self.max_pixels:
            raise self._error(
                f"{verb} frames of {width}x{height} (width x height), which are {pixels} pixels",
                pixels,
                f"max_pixels={pixels}",
            )

    def check_frames(self, frames: Iterable[VideoFrame]) -> None:
        """Check the size of decoded frames.

        Raises:
            MediaLimitExceeded: If it exceeds the limit.
        """
        for frame in frames:
            if frame.width * frame.height > self.max_pixels:
                self.check(frame.width, frame.height, "has")

    def check_refusal(self, width: int, height: int, *, tolerant: bool = False) -> None:
        """Check why a decoder has failed, by the width and height that it has at that point.

        Args:
            width: Width in pixels. 0 if the decoder has refused the size of a frame.
            height: Height in pixels, in the same way.
            tolerant: Whether a size that was refused counts as damage, since it may only be invalid.

        Raises:
            MediaLimitExceeded: If the size exceeds the limit, or was refused.
        """
        self.check(width, height, "has")
        if not width * height and not tolerant:
            minimum = self.decoder_option["max_pixels"]
            raise self._error(
                f"changes the size of its frames to one that is invalid or has more than {minimum} pixels",
                None,
                "a higher max_pixels=",
            )

    def _error(self, problem: str, pixels: int | None, remedy: str) -> MediaLimitExceeded:
        return MediaLimitExceeded(
            f"{self.name} {problem}, but at most max_pixels={self.max_pixels} are allowed. If you trust the file, pass "
            f"{remedy} (on the command line: --max-pixels)",
            stream=self.name,
            address=self.name,
            limit="max_pixels",
            found=pixels,
            allowed=self.max_pixels,
        )


def validate_max_pixels(value: Any) -> int:
    """Return `value` as a limit for the number of pixels of a frame.

    Raises:
        ConfigError: If it is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"max_pixels must be a whole number of at least 1, got {value!r}")
    return value
