"""From a decoded frame to the pixels of a batch: right colours, right size, the right way up, in place.

What a frame looks like is defined by PyAV's reformatter (bilinear, the matrix, range and chroma siting of the frame).
Where PyAV's own libswscale can be made to write straight into the batch with exactly the same result, it does:
each kind of conversion is tried on noise once in a process, and each stream again on its own frames, byte for byte
and with guard bytes around the target. Otherwise the reformatter's frame is copied. The pixels are the same either way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from streamloader.media.video.orientation import UPRIGHT, Turn
from streamloader.media.video.swscale import Geometry, Scaler, scaler_available

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["Converter", "Target", "plane_shapes"]

Siting: TypeAlias = "tuple[int, int] | None"

_ALIGNMENT: Final = 16  # rows of a batch that begin elsewhere are filled by copying
_CACHE_LINE: Final = 64
_BYTE: Final = 8
_GUARD: Final = 4096
_GUARD_BYTE: Final = 0xA5
_PLANES_AS_STORED: Final = frozenset({"yuv420p", "yuvj420p"})


def plane_shapes(pix_fmt: str, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Return the (H, W, C) of each array that a frame of this pixel format is delivered in."""
    if pix_fmt == "rgb24":
        return ((height, width, 3),)
    if pix_fmt == "gray":
        return ((height, width, 1),)
    chroma = ((height + 1) // 2, (width + 1) // 2, 1)
    return ((height, width, 1), chroma, chroma)


class Target(NamedTuple):
    """One array (n, H, W, C) of uint8 that frames are written to, and where its first byte is."""

    array: Array
    address: int
    step: int
    direct: bool

    @classmethod
    def of(cls, array: Array) -> Target:
        """Look up what is needed to write into rows of `array` by address."""
        _, width, channels = array.shape[1:]
        address, step = array.ctypes.data, array.strides[0]
        packed = array.strides[1:] == (width * channels, channels, 1) and array.flags.writeable and array.size > 0
        return cls(array, address, step, bool(packed and address % _ALIGNMENT == 0 and step % _ALIGNMENT == 0))


class Converter:
    """Converts the frames of one stream, in one thread at a time.

    Args:
        pix_fmt: ``"rgb24"``, ``"gray"`` or ``"yuv420p"``.
        height: of what is delivered, after the turn.
        width: of what is delivered, after the turn.
        turn: how frames are turned before they are delivered.
        allow_direct: False takes PyAV's way for every frame.
    """

    def __init__(
        self, pix_fmt: str, height: int, width: int, turn: Turn = UPRIGHT, *, allow_direct: bool = True
    ) -> None:
        self._pix_fmt = pix_fmt
        self._turn = turn
        self._height, self._width = turn.size(height, width)
        self._reformatter = VideoReformatter()
        self._allow_direct = allow_direct and scaler_available()
        self._geometry: Geometry | None = None
        self._direct: _DirectWay | None = None
        self._upside: list[Target] | None = None
        if turn != UPRIGHT:
            shapes = plane_shapes(pix_fmt, self._height, self._width)
            self._upside = [Target.of(_aligned(shape)) for shape in shapes]

    @property
    def is_direct(self) -> bool:
        """Whether frames like the last one are written straight to their place."""
        return self._direct is not None and self._direct.scaler is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what is delivered as the first array."""
        return (*self._turn.size(self._height, self._width), 3 if self._pix_fmt == "rgb24" else 1)

    def targets(self, arrays: Sequence[Array]) -> list[Target]:
        """Prepare arrays (n, H, W, C), one for each plane of the pixel format, to be written into."""
        return [Target.of(array) for array in arrays]

    def into(self, frame: VideoFrame, targets: Sequence[Target], row: int) -> None:
        """Write `frame` into row `row` of `targets`, one for each plane of the pixel format."""
        if self._upside is None:
            self._convert(frame, targets, row)
            return
        self._convert(frame, self._upside, 0)
        for target, image in zip(targets, self._upside, strict=True):
            np.copyto(target.array[row], self._turn.view(image.array[0]))

    def close(self) -> None:
        """Free what libswscale holds."""
        if self._direct is not None:
            self._direct.close()
        self._direct = None
        self._geometry = None

    def _convert(self, frame: VideoFrame, targets: Sequence[Target], row: int) -> None:
        geometry = Geometry(
            frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range,
            self._pix_fmt, self._width, self._height,
        )  # fmt: skip
        if geometry != self._geometry:
            self._meet(geometry)
        direct = self._direct
        if direct is not None and all(target.direct for target in targets) and not frame.interlaced_frame:
            places = [
                (target.address + row * target.step, target.array.shape[2] * target.array.shape[3])
                for target in targets
            ]
            if direct.scaler is None:
                direct.consider(frame, places, self.reference)
            if direct.scaler is not None and direct.scaler.run(frame.planes, places):
                return
        for target, plane in zip(targets, self.reference(frame), strict=True):
            np.copyto(target.array[row], plane)

    def _meet(self, geometry: Geometry) -> None:
        self.close()
        self._geometry = geometry
        as_stored = geometry.target == "yuv420p" and geometry.source in _PLANES_AS_STORED
        same_size = (geometry.width, geometry.height) == (geometry.out_width, geometry.out_height)
        if self._allow_direct and not (as_stored and same_size):
            self._direct = _DirectWay(geometry)

    def reference(self, frame: VideoFrame) -> list[Array]:
        """Return the planes (H, W, C) of `frame` as PyAV converts it: views that live as long as they are held."""
        shapes = plane_shapes(self._pix_fmt, self._height, self._width)
        done = frame
        if not (
            self._pix_fmt == "yuv420p"
            and frame.format.name in _PLANES_AS_STORED
            and (frame.width, frame.height) == (self._width, self._height)
        ):
            done = self._reformatter.reformat(frame, self._width, self._height, self._pix_fmt, threads=1)
        return [_plane_view(plane, *shape) for plane, shape in zip(done.planes, shapes, strict=True)]


class _DirectWay:
    """Whether, and with which chroma siting, libswscale may write the frames of one stream to their place itself."""

    def __init__(self, geometry: Geometry) -> None:
        self.scaler: Scaler | None = None
        self.siting: Siting = None
        self._geometry = geometry
        self._left: dict[Siting, Scaler] | None = None
        self._seen = 0

    def consider(self, frame: VideoFrame, places: Sequence[tuple[int, int]], reference: Any) -> None:
        """Compare what remains possible on `frame`; decide as soon as only one way is left that agrees."""
        self._seen += 1
        if self._seen & (self._seen - 1):
            return  # flat frames tell nothing: look again at frames 1, 2, 4, 8, ...
        offsets = tuple(address % _CACHE_LINE for address, _ in places)
        if self._left is None:
            self._left = {siting: Scaler(self._geometry, siting) for siting in _sitings(self._geometry, offsets)}
        wanted = reference(frame) if self._left else []
        for siting, scaler in list(self._left.items()):
            if not _agrees(scaler, frame, wanted, offsets):
                self._left.pop(siting).close()
        if len(self._left) == 1:
            self.siting, self.scaler = self._left.popitem()

    def close(self) -> None:
        """Free all contexts."""
        for scaler in [*(self._left or {}).values(), *([self.scaler] if self.scaler else [])]:
            scaler.close()


@lru_cache(maxsize=256)
def _sitings(geometry: Geometry, offsets: tuple[int, ...]) -> tuple[Siting, ...]:
    """Return the chroma sitings that a stream has to choose from; none if this conversion cannot be done directly.

    Whether swscale can be trusted with the conversion at all is tried on noise, whose siting is unspecified.
    """
    format_ = VideoFormat(geometry.source, geometry.width, geometry.height)
    if not format_.is_planar or format_.has_palette or format_.is_rgb or geometry.source.endswith("be"):
        return ()
    try:
        noise = _noise(geometry, format_)
        plain = Converter(geometry.target, geometry.out_height, geometry.out_width, allow_direct=False)
        wanted = plain.reference(noise)
        scalers = {siting: Scaler(geometry, siting) for siting in _possible_sitings(format_)}
    except ValueError:  # av's errors for a bad value, and a refusal by libswscale, are ValueErrors
        return ()
    agree = {siting: _agrees(scaler, noise, wanted, offsets) for siting, scaler in scalers.items()}
    for scaler in scalers.values():
        scaler.close()
    if not agree[None]:
        return ()
    return (None,) if all(agree.values()) else tuple(agree)


def _possible_sitings(format_: VideoFormat) -> list[Siting]:
    # The positions of ITU-T H.273 chroma_sample_loc_type, in the units of the subsampling grid.
    across = 1024 // max(1, format_.chroma_width(1024)) - 1
    down = 1024 // max(1, format_.chroma_height(1024)) - 1
    grid = [(0, 128), (128, 128), (0, 0), (128, 0), (0, 256), (128, 256)]
    sitings: list[Siting] = [None]
    # FFmpeg's default is the middle, so an explicit middle would be the same choice twice.
    sitings += dict.fromkeys(
        (x * across, y * down) for x, y in grid if (x * across, y * down) != (128 * across, 128 * down)
    )
    return sitings


def _noise(geometry: Geometry, format_: VideoFormat) -> VideoFrame:
    frame = VideoFrame(geometry.width, geometry.height, geometry.source)
    frame.colorspace, frame.color_range = geometry.matrix, geometry.color_range
    random = np.random.default_rng(1234)
    bits = max(component.bits for component in format_.components)
    for plane in frame.planes:
        values = random.integers(0, 256, plane.buffer_size, np.uint8)
        if bits > _BYTE:
            values = (values.view("<u2") & ((1 << bits) - 1)).view(np.uint8)
        plane.update(values.tobytes())
    return frame


def _agrees(scaler: Scaler, frame: VideoFrame, wanted: Sequence[Array], offsets: Sequence[int]) -> bool:
    """Run `scaler` into guarded memory that is aligned as the batch is; compare the result and the guards."""
    guarded, places = [], []
    for plane, offset in zip(wanted, offsets, strict=True):
        memory = np.full(plane.size + 2 * _GUARD + _CACHE_LINE, _GUARD_BYTE, np.uint8)
        start = _GUARD + (offset - memory.ctypes.data - _GUARD) % _CACHE_LINE
        guarded.append((memory, start))
        places.append((memory.ctypes.data + start, plane.shape[1] * plane.shape[2]))
    if not scaler.run(frame.planes, places):
        return False
    for plane, (memory, start) in zip(wanted, guarded, strict=True):
        end = start + plane.size
        if (memory[:start] != _GUARD_BYTE).any() or (memory[end:] != _GUARD_BYTE).any():
            return False
        if not np.array_equal(memory[start:end].reshape(plane.shape), plane):
            return False
    return True


def _plane_view(plane: Any, height: int, width: int, channels: int) -> Array:
    """Return a plane's pixels as (H, W, C) without copying; the view keeps the frame alive."""
    line = plane.line_size
    if line < 0:  # stored bottom-up: its address is that of the last row in memory
        memory = (ctypes.c_uint8 * (-line * height)).from_address(plane.buffer_ptr + line * (height - 1))
        rows = np.frombuffer(memory, np.uint8).reshape(height, -line)[::-1].copy()
    else:
        rows = np.frombuffer(plane, np.uint8, line * height).reshape(height, line)
    return rows[:, : width * channels].reshape(height, width, channels)


def _aligned(shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape))
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size].reshape(1, *shape)
