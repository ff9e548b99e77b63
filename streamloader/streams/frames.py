"""What all streams of video frames have in common: their options, their fields, and how frames become steps."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.errors import ConfigError, FrameSizeError, StreamloaderError
from streamloader.media.video.selection import Selection, whole
from streamloader.streams.augment import Augment, Transform, transform_rng, transformed
from streamloader.streams.base import Stream
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_writer import qualified_name
from streamloader.values import Array, Field

if TYPE_CHECKING:
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.reader import VideoFrame

__all__ = ["FrameStream", "checked_pix_fmt", "checked_size", "chosen_settings", "common_size", "frame_fields"]

_PIX_FMTS: Final = ("rgb24", "gray", "yuv420p")


def checked_pix_fmt(pix_fmt: str, transform: object = None) -> str:
    """Return the pixel format.

    Raises:
        ConfigError: there is no such one, or it does not go with a transform.
    """
    if pix_fmt not in _PIX_FMTS:
        raise ConfigError(f"pix_fmt must be one of {', '.join(_PIX_FMTS)}, got {pix_fmt!r}")
    if transform is not None and pix_fmt == "yuv420p":
        raise ConfigError("transform= takes frames of one field: use pix_fmt='rgb24' or 'gray' with it")
    return pix_fmt


def checked_size(size: Any) -> tuple[int, int]:
    """Return (height, width) as plain numbers.

    Raises:
        ConfigError: that is no size.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2 or any(whole(n) < 1 for n in size):  # noqa: PLR2004
        raise ConfigError(f"size must be (height, width), two whole numbers of at least 1, got {size!r}")
    return int(size[0]), int(size[1])


def common_size(sizes: Iterable[tuple[str, tuple[int, int]]]) -> tuple[int, int]:
    """Return the one (height, width) that all videos have; each comes with its name.

    Raises:
        FrameSizeError: they differ.
    """
    each = iter(sizes)
    first_path, first = next(each)
    for path, size in each:
        if size != first:
            raise FrameSizeError(
                f"videos differ in frame size: {first_path} is {first[0]}x{first[1]} (height x width), "
                f"{path} is {size[0]}x{size[1]}. Give size=(height, width) to scale all to one",
                stream=path,
                sizes=[list(first), list(size)],
            )
    return first


def frame_fields(pix_fmt: str, height: int, width: int, transform: Transform | None = None) -> dict[str, Field]:
    """Return the fields of steps that are frames; what a transform makes of them is learned by a call on zeros.

    Raises:
        ConfigError: `transform` does not fit.
    """
    names = ("y", "u", "v") if pix_fmt == "yuv420p" else ("data",)
    chroma = ((height + 1) // 2, (width + 1) // 2, 1)
    shapes = {
        "data": (height, width, 3 if pix_fmt == "rgb24" else 1),
        "y": (height, width, 1),
        "u": chroma,
        "v": chroma,
    }
    if transform is None:
        return {name: Field(shapes[name], np.uint8, axes="HWC") for name in names}
    frames = np.zeros((2, *shapes["data"]), np.uint8)
    out = transformed(transform, frames, transform_rng(np.zeros(2, np.uint64)))
    shape = out.shape[1:]
    return {"data": Field(shape, out.dtype, axes="HWC" if len(shape) == 3 else None)}  # noqa: PLR2004


def chosen_settings(
    pix_fmt: str, size: tuple[int, int] | None, chosen: Selection, transform: Transform | None
) -> dict[str, Any]:
    """Return what was chosen of frames and pixels as plain values; of `transform` its qualified name."""
    return {
        "pix_fmt": pix_fmt,
        "size": None if size is None else list(size),
        "max_frames": None if chosen.max_frames is None else int(chosen.max_frames),
        "random_start": chosen.random_start,
        "stride": chosen.stride,
        "fps": None if chosen.fps is None else str(chosen.fps),
        "transform": None if transform is None else qualified_name(transform),
    }


class FrameStream(Stream):
    """A stream whose steps are frames of one video: a kind of it says where they come from.

    Args:
        length: how many steps it has.
        converter: of its frames.
        names: of the fields.
        augment: the user's transform, if there is one.
    """

    def __init__(self, length: int, converter: Converter, names: Sequence[str], augment: Augment | None) -> None:
        self._length = length
        self._converter = converter
        self._names = list(names)
        self._augment = augment
        self._step = 0
        self._error: StreamloaderError | None = None

    @abc.abstractmethod
    def _frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        """Yield the frames of the steps [start, stop), in the lane's thread."""

    def _finish(self) -> None:
        """Check that nothing comes after the last step, in the lane's thread."""

    def _close(self) -> None:
        """Give back what the stream holds, in the lane's thread."""
        self._converter.close()

    async def read_into(self, out: Mapping[str, Array]) -> int:
        """Fill the leading steps of `out`: all of them, but at the end and before an error."""
        count = min(len(next(iter(out.values()))), self._length - self._step)
        if self._error is not None:
            raise self._error
        return await in_lane_thread(self._read, out, count) if count > 0 else 0

    async def seek(self, step: int) -> None:
        """Make `step` the next one; the decoder goes there with the next read."""
        self._step = min(step, self._length)
        self._error = None

    async def aclose(self) -> None:
        """Close the video and free decoder and scaler."""
        await in_lane_thread(self._close)

    def _read(self, out: Mapping[str, Array], count: int) -> int:
        if self._augment is None:
            count = self._fill([out[name] for name in self._names], count)
        else:
            frames = self._augment.room(count, self._converter.shape)
            count = self._fill([frames], count)
            self._augment.apply(frames[:count], out["data"], self._step)
        self._step += count
        if self._step == self._length:
            self._finish()
        return count

    def _fill(self, arrays: Sequence[Array], count: int) -> int:
        """Write the next `count` frames, or those before the first that fails: its error is raised when it is due."""
        targets = self._converter.targets(arrays)
        convert = self._converter.into
        row = 0
        try:
            for frame in self._frames(self._step, self._step + count):
                convert(frame, targets, row)
                row += 1
        except StreamloaderError as error:
            if row == 0:
                raise
            self._error = error
        return row
