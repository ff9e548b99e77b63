"""Common parts of all streams of video frames: options, fields, and writing frames into steps."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from streamloader.arguments import check_callable
from streamloader.errors import ConfigError, FrameSizeError, StreamloaderError
from streamloader.media.video.selection import Selection, as_int
from streamloader.streams.augment import StreamTransform, Transform, call_transform, make_transform_rng
from streamloader.streams.base import Stream
from streamloader.streams.lane_thread import decode_in_lane_thread, in_lane_thread
from streamloader.streams.step_writer import qualified_name
from streamloader.values import Array, Field

if TYPE_CHECKING:
    from streamloader.media.video.convert import OutputArray

__all__ = [
    "FrameConverter",
    "FrameStream",
    "describe_settings",
    "frame_fields",
    "make_pixels_square",
    "require_common_size",
    "transform_field",
    "validate_pix_fmt",
    "validate_size",
]

_PIX_FMTS: Final = ("rgb24", "rgbp", "gray", "yuv420p")
_WITHOUT_TRANSFORM: Final = ("rgbp", "yuv420p")
_CODING_FIELDS: Final = ("matrix", "range")  # of yuv420p
_NO_MATRIX: Final = 2  # "unspecified" in ITU-T H.273
_NO_COLOUR: Final = 128  # in chroma planes


def validate_pix_fmt(pix_fmt: str, transform: object = None) -> str:
    """Return the pixel format if it is valid.

    Raises:
        ConfigError: If the format is unknown, or cannot be combined with a transform.
    """
    check_callable("transform", transform)
    if pix_fmt not in _PIX_FMTS:
        raise ConfigError(f"pix_fmt must be one of {', '.join(_PIX_FMTS)}, got {pix_fmt!r}")
    if transform is not None and pix_fmt in _WITHOUT_TRANSFORM:
        raise ConfigError("transform= takes frames (n, H, W, C) of one field: use pix_fmt='rgb24' or 'gray' with it")
    return pix_fmt


def validate_size(size: Any) -> tuple[int, int]:
    """Return (height, width) as plain ints.

    Raises:
        ConfigError: If `size` is not a pair of positive whole numbers.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2 or any(as_int(n) < 1 for n in size):  # noqa: PLR2004
        raise ConfigError(f"size must be (height, width), two whole numbers of at least 1, got {size!r}")
    return int(size[0]), int(size[1])


def require_common_size(sizes: Iterable[tuple[str, tuple[int, int]]]) -> tuple[int, int]:
    """Return the (height, width) that all videos have.

    Args:
        sizes: (name, (height, width)) of each video, at least one.

    Raises:
        FrameSizeError: If the sizes differ.
    """
    each = iter(sizes)
    first_path, first = next(each)
    for path, size in each:
        if size != first:
            raise FrameSizeError(
                f"videos differ in frame size: {first_path} is {first[0]}x{first[1]} (height x width), "
                f"{path} is {size[0]}x{size[1]}. Pass size=(height, width) to scale all to one size",
                stream=path,
                sizes=[list(first), list(size)],
            )
    return first


def make_pixels_square(height: Any, width: Any, aspect_width: Any, aspect_height: Any) -> tuple[Any, Any]:
    """Return (height, width) of frames whose width is scaled so that their pixels become square, at least 1.

    Args:
        height: Height of the frames in pixels: a whole number, or int64 (n,).
        width: Width of the frames in pixels, likewise.
        aspect_width: Width of a pixel, likewise.
        aspect_height: Height of a pixel in the same unit, likewise.
    """
    return height, np.maximum(1, (2 * width * aspect_width + aspect_height) // (2 * aspect_height))


def frame_fields(pix_fmt: str, height: int, width: int, transform: Transform | None = None) -> dict[str, Field]:
    """Return the fields of steps that are frames. A transform is called on zeros to learn the shape of its results.

    Raises:
        ConfigError: If `transform` returns the wrong number of results.
        StreamFailed: If `transform` raises an error.
    """
    if pix_fmt == "yuv420p":
        chroma = Field(((height + 1) // 2, (width + 1) // 2, 1), np.uint8, fill=_NO_COLOUR, axes="HWC")
        return {
            "y": Field((height, width, 1), np.uint8, axes="HWC"),
            "u": chroma,
            "v": chroma,
            "matrix": Field((), np.uint8, fill=_NO_MATRIX),
            "range": Field((), np.uint8),
        }
    if pix_fmt == "rgbp":
        return {"data": Field((3, height, width), np.uint8, axes="CHW")}
    frame_shape = (height, width, 3 if pix_fmt == "rgb24" else 1)
    return {"data": transform_field(Field(frame_shape, np.uint8, axes="HWC"), transform)}


def transform_field(frame: Field, transform: Transform | None) -> Field:
    """Return the field of frames (H, W, C) after a transform. It is called on zeros to learn the shape of its results.

    Raises:
        ConfigError: If `transform` returns the wrong number of results.
        StreamFailed: If `transform` raises an error.
    """
    if transform is None:
        return frame
    frames = np.zeros((2, *frame.shape), frame.dtype)
    results = call_transform(transform, frames, make_transform_rng(np.zeros(2, np.uint64)))
    shape = results.shape[1:]
    return Field(shape, results.dtype, axes="HWC" if len(shape) == 3 else None)  # noqa: PLR2004


def describe_settings(
    pix_fmt: str, size: tuple[int, int] | None, selection: Selection, transform: Transform | None
) -> dict[str, Any]:
    """Return the options of a stream of frames as plain values. A transform is given by its qualified name."""
    return {
        "pix_fmt": pix_fmt,
        "size": None if size is None else list(size),
        "max_frames": None if selection.max_frames is None else int(selection.max_frames),
        "random_start": selection.random_start,
        "stride": selection.stride,
        "fps": None if selection.fps is None else str(selection.fps),
        "transform": None if transform is None else qualified_name(transform),
    }


class FrameConverter(Protocol):
    """Writes frames into the steps of a batch, see :class:`streamloader.media.video.convert.Converter`."""

    @property
    def coding(self) -> tuple[int, int]:
        """MatrixCoefficients and VideoFullRangeFlag of the last frame, as YUV output has them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of a frame of one plane."""

    def split_planes(self, arrays: list[Array]) -> list[Array]:
        """Return an array (n, H, W, C) for each plane, given the arrays of a stream's fields."""

    def wrap_outputs(self, arrays: Sequence[Array]) -> list[OutputArray]:
        """Prepare output arrays (n, H, W, C), one for each plane."""

    def convert_into(self, frame: Any, outputs: Sequence[OutputArray], row: int) -> None:
        """Write `frame` into row `row` of `outputs`."""

    def close(self) -> None:
        """Free the memory of the converter."""


class FrameStream(Stream):
    """A stream whose steps are frames of one video. Subclasses provide the frames.

    Args:
        length: Number of steps.
        converter: Converter of the frames, which the stream closes.
        names: Names of the fields.
        transform: The user's transform, or None.
        waits_for_bytes: Whether reading frames waits for a server. Otherwise the lanes of a worker take turns.
    """

    def __init__(
        self,
        length: int,
        converter: FrameConverter,
        names: Sequence[str],
        transform: StreamTransform | None,
        *,
        waits_for_bytes: bool,
    ) -> None:
        self._waits_for_bytes = waits_for_bytes
        self._length = length
        self._converter = converter
        self._names = [name for name in names if name not in _CODING_FIELDS]
        self._coding_names = [name for name in names if name in _CODING_FIELDS]
        self._transform = transform
        self._step = 0
        self._error: StreamloaderError | None = None

    @abc.abstractmethod
    def _read_frames(self, start: int, end: int) -> Iterator[Any]:
        """Yield the frames of the steps [start, end), as the converter takes them. Called in the lane's thread."""

    def _write_frame(self, frame: Any, outputs: Sequence[OutputArray], row: int) -> None:
        """Write one frame into row `row` of `outputs`. Called in the lane's thread."""
        self._converter.convert_into(frame, outputs, row)

    def _check_end(self) -> None:
        """Check that nothing follows the last step. Called in the lane's thread."""

    def _close(self) -> None:
        """Release the resources of the stream. Called in the lane's thread."""
        self._converter.close()

    async def read_into(self, out: Mapping[str, Array]) -> int:
        """Fill the first steps of `out`: all of them, except at the end and before an error."""
        count = min(len(next(iter(out.values()))), self._length - self._step)
        if self._error is not None:
            raise self._error
        if count <= 0:
            return 0
        run = in_lane_thread if self._waits_for_bytes else decode_in_lane_thread
        return await run(self._read, out, count)

    async def seek(self, step: int) -> None:
        """Make `step` the next step. The decoder seeks at the next read."""
        self._step = min(step, self._length)
        self._error = None

    async def aclose(self) -> None:
        """Close the video, and free decoder and scaler."""
        await in_lane_thread(self._close)

    def _read(self, out: Mapping[str, Array], count: int) -> int:
        if self._transform is None:
            planes = self._converter.split_planes([out[name] for name in self._names])
            count = self._fill(planes, count, [out[name] for name in self._coding_names])
        else:
            frames = self._transform.input_buffer(count, self._converter.shape)
            count = self._fill([frames], count)
            if count:
                self._transform.apply(frames[:count], out["data"], self._step)
        self._step += count
        if self._step == self._length:
            self._check_end()
        return count

    def _fill(self, arrays: Sequence[Array], count: int, coding: Sequence[Array] = ()) -> int:
        """Write up to `count` frames and return their number. The error of a later frame is raised by the next read.

        Args:
            arrays: Arrays of the planes.
            count: Number of frames.
            coding: Arrays of matrix and range for YUV, or none.
        """
        converter = self._converter
        outputs, write_frame = converter.wrap_outputs(arrays), self._write_frame
        row = 0
        try:
            for frame in self._read_frames(self._step, self._step + count):
                write_frame(frame, outputs, row)
                if coding:
                    coding[0][row], coding[1][row] = converter.coding
                row += 1
        except StreamloaderError as error:
            if row == 0:
                raise
            self._error = error
        return row
