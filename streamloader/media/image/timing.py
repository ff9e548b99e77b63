"""Find the frames of an animation (GIF, APNG, WebP) and their times, without decoding them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.media.image.headers import PNG_SIGNATURE, IncompleteImage, InvalidImage, iterate_chunks

if TYPE_CHECKING:
    from streamloader.media.image.headers import ImageHeader
    from streamloader.values import Array

__all__ = ["NANOSECOND", "ImageTimes", "cut_to_whole_frames", "read_times"]

NANOSECOND: Final = Fraction(1, 1_000_000_000)
_MIN_GIF_DELAY: Final = Fraction(2, 100)  # browsers and FFmpeg show a shorter one as the default
_DEFAULT_GIF_DELAY: Final = Fraction(10, 100)


@dataclass(frozen=True, eq=False, slots=True)
class ImageTimes:
    """Times of the images of one stream.

    Attributes:
        pts: Start of each image in units of `time_base`, int64 (n,), not decreasing.
        time_base: Unit of the times in seconds.
        end: End of the last image, in units of `time_base`.
    """

    pts: Array
    time_base: Fraction
    end: int

    def __len__(self) -> int:
        return len(self.pts)

    @classmethod
    def from_delays(cls, delays: list[Fraction]) -> ImageTimes:
        """Return the times of frames that are shown for so many seconds each."""
        starts, start = [], Fraction(0)
        for delay in delays:
            starts.append(int(start / NANOSECOND))  # rounded down, as the times of steps are
            start += delay
        return cls(np.array(starts, np.int64), NANOSECOND, int(start / NANOSECOND))

    @classmethod
    def at_rate(cls, count: int, fps: Fraction) -> ImageTimes:
        """Return the times of `count` images at a constant rate."""
        return cls(np.arange(count, dtype=np.int64), 1 / fps, count)


def read_times(data: bytes, header: ImageHeader, *, tolerant: bool = False) -> ImageTimes:
    """Return the times of the frames of an animation. A still image is shown for a second.

    Args:
        data: Whole file.
        header: Header of the file.
        tolerant: Whether a truncated file has the frames that are complete.

    Raises:
        IncompleteImage: If the file is truncated.
        InvalidImage: If it is malformed, or has no frame.
    """
    if not header.is_animation:
        return ImageTimes.from_delays([Fraction(1)])
    frames, error = _read_frames(data, header)
    if error is not None and not (tolerant and frames):
        raise error
    if not frames:
        raise InvalidImage("it has no frame")
    return ImageTimes.from_delays([delay for delay, _ in frames])


def cut_to_whole_frames(data: bytes, header: ImageHeader) -> bytes:
    """Return an animation without what follows its last whole frame, if it is truncated. Otherwise return `data`.

    Args:
        data: File with at least one whole frame.
        header: Header of the file.
    """
    frames, error = _read_frames(data, header)
    if error is None or not frames:
        return data
    _, end = frames[-1]
    if header.format == "gif":
        return data[:end] + b"\x3b"
    if header.format == "webp":
        return data[:4] + struct.pack("<I", end - 8) + data[8:end]
    start = next(
        start for kind, start, _ in iterate_chunks(data, len(PNG_SIGNATURE), little_endian=False) if kind == b"acTL"
    )
    control = b"acTL" + struct.pack(">I", len(frames)) + data[start + 4 : start + 8]
    counted = data[: start - 4] + control + struct.pack(">I", zlib.crc32(control)) + data[start + 12 : end]
    return counted + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def _read_frames(data: bytes, header: ImageHeader) -> tuple[list[tuple[Fraction, int]], InvalidImage | None]:
    """Return delay in seconds and end in the file of each whole frame, and the error that ends them."""
    read = {"gif": _read_gif, "png": _read_png, "webp": _read_webp}[header.format]
    frames: list[tuple[Fraction, int]] = []
    try:
        for frame in read(data):
            frames.append(frame)  # noqa: PERF402 - an error ends it, and keeps those so far
    except InvalidImage as error:
        return frames, error
    except (struct.error, IndexError):
        return frames, IncompleteImage(f"it is truncated: it ends at byte {len(data)}, within a frame")
    return frames, None


def _read_gif(data: bytes) -> Iterator[tuple[Fraction, int]]:
    position = 13 + _color_table_bytes(data[10])
    delay = Fraction(0)
    while data[position] != 0x3B:  # the trailer
        block = data[position]
        if block == 0x21:  # an extension
            if data[position + 1] == 0xF9:
                delay = Fraction(struct.unpack_from("<H", data, position + 4)[0], 100)
            position = _skip_blocks(data, position + 2)
        elif block == 0x2C:  # an image
            position = _skip_blocks(data, position + 11 + _color_table_bytes(data[position + 9]))
            yield delay if delay >= _MIN_GIF_DELAY else _DEFAULT_GIF_DELAY, position
            delay = Fraction(0)
        elif block == 0:  # padding that some encoders write
            position += 1
        else:
            raise InvalidImage(f"it has no block at byte {position}")


def _color_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(data: bytes, position: int) -> int:
    while size := data[position]:
        position += 1 + size
    return position + 1


def _read_png(data: bytes) -> Iterator[tuple[Fraction, int]]:
    delay, kind = None, b""
    for kind, start, _ in iterate_chunks(data, len(PNG_SIGNATURE), little_endian=False):
        if kind in (b"fcTL", b"IEND") and delay is not None:
            yield delay, start - 8
        if kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", data, start + 20)
            delay = Fraction(numerator, denominator or 100)
        elif kind == b"IEND":
            return
    raise IncompleteImage(f"it is truncated: it ends at byte {len(data)}, without a last chunk")


def _read_webp(data: bytes) -> Iterator[tuple[Fraction, int]]:
    (size,) = struct.unpack_from("<I", data, 4)
    for kind, start, end in iterate_chunks(data[: 8 + size], 12, little_endian=True):
        if kind == b"ANMF" and end <= len(data):
            low, high = struct.unpack_from("<HB", data, start + 12)
            yield Fraction(low | high << 16, 1000), end + (end - start) % 2
    if len(data) < 8 + size:
        raise IncompleteImage(f"it is truncated: it declares {8 + size} bytes, but ends at byte {len(data)}")
