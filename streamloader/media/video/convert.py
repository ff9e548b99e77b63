"""Convert decoded frames into the pixels of a batch: with the right colours, size and orientation, in place.

PyAV's reformatter (bilinear, with the frame's own matrix, range and chroma siting) defines the result. If PyAV's own
libswscale can write exactly the same pixels straight into the batch, it is used: each kind of conversion is tried once
per process on noise, and each stream again on its own frames. Both compare every byte, and guard bytes around the
output. Otherwise the frame is reformatted by PyAV and copied. The pixels are the same either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import av.error
import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from streamloader.errors import UnreadableStream
from streamloader.media.video.colour_matrix import describe_matrix, ignore_unknown_matrix
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.reformat import reformat_frame, view_plane
from streamloader.media.video.swscale import Scaler, ScalerConfig, is_scaler_available

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["Converter", "OutputArray", "plane_shapes"]

Siting: TypeAlias = "tuple[int, int] | None"

_ALIGNMENT_BYTES: Final = 16  # rows at other addresses are written by copying
_CACHE_LINE_BYTES: Final = 64
_BITS_PER_BYTE: Final = 8
_GUARD_BYTES: Final = 4096
_GUARD_VALUE: Final = 0xA5
_UNCONVERTED_FORMATS: Final = frozenset({"yuv420p", "yuvj420p"})  # their planes are copied for "yuv420p"
_PLANAR_RGB: Final = "gbrp"  # FFmpeg's name
_WITHOUT_MATRIX: Final = frozenset({"gray", "yuv420p"})  # made of luma and chroma, whatever the matrix is
_FULL_RANGE: Final = 2  # FFmpeg's AVCOL_RANGE_JPEG
_KNOWN_MATRICES: Final = frozenset({1, 4, 5, 6, 7, 8, 9, 10})  # in ITU-T H.273, those that yuv_to_rgb converts
_YCGCO: Final = 8  # which libswscale does not know
_DEFAULT_MATRIX: Final = 6  # BT.601, which stands for all others


def plane_shapes(pix_fmt: str, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Return the shape (H, W, C) of each output array of a frame in this pixel format."""
    if pix_fmt == "rgb24":
        return ((height, width, 3),)
    if pix_fmt == "gray":
        return ((height, width, 1),)
    if pix_fmt == _PLANAR_RGB:
        return ((height, width, 1),) * 3
    chroma = ((height + 1) // 2, (width + 1) // 2, 1)
    return ((height, width, 1), chroma, chroma)


class OutputArray(NamedTuple):
    """An array to which frames are written, with its memory layout.

    Attributes:
        array: The array, uint8 (n, H, W, C).
        address: Address of its first byte.
        row_stride: Distance from one frame to the next in bytes.
        direct: Whether libswscale can write into it: each frame is contiguous and aligned.
    """

    array: Array
    address: int
    row_stride: int
    direct: bool

    @classmethod
    def wrap(cls, array: Array) -> OutputArray:
        """Determine the memory layout of `array`."""
        _, width, channels = array.shape[1:]
        address, stride = array.ctypes.data, array.strides[0]
        packed = array.strides[1:3] == (width * channels, channels) and (channels == 1 or array.strides[3] == 1)
        writable = array.flags.writeable and array.size > 0
        aligned = packed and writable and address % _ALIGNMENT_BYTES == 0 and stride % _ALIGNMENT_BYTES == 0
        return cls(array, address, stride, bool(aligned))


class Converter:
    """Converts the frames of one stream, in one thread at a time.

    Args:
        pix_fmt: Pixel format of the output: ``"rgb24"``, ``"rgbp"`` (planes in the order R, G, B), ``"gray"`` or
            ``"yuv420p"``.
        height: Height of the output in pixels, after `orientation` is applied.
        width: Width of the output in pixels, after `orientation` is applied.
        orientation: Rotation and mirroring to apply. Defaults to none.
        allow_direct: Whether libswscale may write into the output. If False, PyAV converts every frame.
        name: Name of the video for error messages. Defaults to "a video".

    Attributes:
        name: Name of the video for error messages.
    """

    def __init__(
        self,
        pix_fmt: str,
        height: int,
        width: int,
        orientation: Orientation = UPRIGHT,
        *,
        allow_direct: bool = True,
        name: str = "a video",
    ) -> None:
        self.name = name
        self._pix_fmt = _PLANAR_RGB if pix_fmt == "rgbp" else pix_fmt  # FFmpeg's name
        self._orientation = orientation
        self._height, self._width = orientation.apply_to_size(height, width)  # of the stored frame, once scaled
        self._reformatter = VideoReformatter()
        self._allow_direct = allow_direct and is_scaler_available()
        self._config: ScalerConfig | None = None
        self._direct: _DirectConversion | None = None
        self._matrix = _DEFAULT_MATRIX  # of the last frame, as its file declares it
        self._full_range = 0
        self._scratch: list[OutputArray] | None = None  # holds a frame before `orientation` is applied
        if orientation != UPRIGHT:
            shapes = plane_shapes(self._pix_fmt, self._height, self._width)
            self._scratch = [OutputArray.wrap(_allocate_aligned(shape)) for shape in shapes]

    @property
    def is_direct(self) -> bool:
        """Whether libswscale writes frames like the last one straight into the output."""
        return self._direct is not None and self._direct.scaler is not None

    @property
    def coding(self) -> tuple[int, int]:
        """MatrixCoefficients and VideoFullRangeFlag (ITU-T H.273) of the last frame, as YUV output has them."""
        return self._matrix if self._matrix in _KNOWN_MATRICES else _DEFAULT_MATRIX, self._full_range

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of a frame of ``"rgb24"`` or ``"gray"``."""
        return (*self._orientation.apply_to_size(self._height, self._width), 3 if self._pix_fmt == "rgb24" else 1)

    def split_planes(self, arrays: list[Array]) -> list[Array]:
        """Return an array (n, H, W, C) for each plane, in FFmpeg's order, given the arrays of a stream's fields."""
        if self._pix_fmt != _PLANAR_RGB:
            return arrays
        red, green, blue = np.moveaxis(arrays[0][..., None], 1, 0)
        return [green, blue, red]

    def wrap_outputs(self, arrays: Sequence[Array]) -> list[OutputArray]:
        """Prepare output arrays (n, H, W, C), one for each plane of the pixel format.

        Raises:
            ValueError: If the shape of an array is not that of its plane. libswscale would write outside of it.
        """
        shapes = plane_shapes(self._pix_fmt, *self._orientation.apply_to_size(self._height, self._width))
        if tuple(array.shape[1:] for array in arrays) != shapes:
            raise ValueError(f"frames have planes {shapes}, the output {[array.shape for array in arrays]}")
        return [OutputArray.wrap(array) for array in arrays]

    def convert_into(self, frame: VideoFrame, outputs: Sequence[OutputArray], row: int) -> None:
        """Write `frame` into row `row` of `outputs`, one for each plane of the pixel format.

        Raises:
            UnreadableStream: If libswscale cannot convert frames like this one.
        """
        self._matrix = int(frame.colorspace)
        try:
            self._convert_known(frame, outputs if self._scratch is None else self._scratch, row)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._refusal(frame, error) from error
        if self._scratch is None:
            return
        for output, image in zip(outputs, self._scratch, strict=True):
            np.copyto(output.array[row], self._orientation.apply_to_image(image.array[0]))

    def convert_by_pyav(self, frame: VideoFrame) -> list[Array]:
        """Return the planes (H, W, C) of `frame` as PyAV converts it. These views keep the converted frame alive."""
        shapes = plane_shapes(self._pix_fmt, self._height, self._width)
        converted = frame
        if not (
            self._pix_fmt == "yuv420p"
            and frame.format.name in _UNCONVERTED_FORMATS
            and (frame.width, frame.height) == (self._width, self._height)
        ):
            converted = reformat_frame(self._reformatter, frame, self._width, self._height, self._pix_fmt)
        return [view_plane(plane, *shape) for plane, shape in zip(converted.planes, shapes, strict=True)]

    def close(self) -> None:
        """Free the memory held by libswscale."""
        if self._direct is not None:
            self._direct.close()
        self._direct = None
        self._config = None

    def _convert_known(self, frame: VideoFrame, outputs: Sequence[OutputArray], row: int) -> None:
        """Convert a frame, without its colour matrix if libswscale does not know that and needs none."""
        row = row if self._scratch is None else 0
        if self._pix_fmt not in _WITHOUT_MATRIX:
            self._convert(frame, outputs, row)
            return
        with ignore_unknown_matrix(frame):
            self._convert(frame, outputs, row)

    def _refusal(self, frame: VideoFrame, error: Exception) -> UnreadableStream:
        target = "RGB" if self._pix_fmt in ("rgb24", _PLANAR_RGB) else self._pix_fmt
        if isinstance(error, UnreadableStream):
            if describe_matrix(frame) is None or target != "RGB":
                return UnreadableStream(f"{self.name}: {error.message}", stream=self.name, address=self.name)
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        problem = f"its frames ({frame.format.name}) cannot be converted to {target} by FFmpeg"
        advice = "Convert the file to another pixel format with another program first"
        if (matrix := describe_matrix(frame)) is not None and target == "RGB":
            problem = f"it declares the colour matrix {int(frame.colorspace)} ({matrix}), which FFmpeg cannot convert"
            converted = " (of which batch.rgb() makes RGB)" if int(frame.colorspace) == _YCGCO else ""
            advice = (
                f'Play it with pix_fmt="yuv420p" or "gray"{converted}, or, if it declares a wrong matrix, correct '
                "that, for example with FFmpeg's bitstream filter h264_metadata=matrix_coefficients=1"
            )
        return UnreadableStream(
            f"{self.name}: {problem} ({getattr(error, 'strerror', None) or error}). {advice}",
            stream=self.name,
            address=self.name,
        )

    def _convert(self, frame: VideoFrame, outputs: Sequence[OutputArray], row: int) -> None:
        config = ScalerConfig(
            frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range,
            self._pix_fmt, self._width, self._height,
        )  # fmt: skip
        if config != self._config:
            self._configure(config)
        direct = self._direct
        if direct is not None and all(output.direct for output in outputs) and not frame.interlaced_frame:
            destinations = [
                (output.address + row * output.row_stride, output.array.shape[2] * output.array.shape[3])
                for output in outputs
            ]
            if direct.scaler is None:
                direct.compare(frame, destinations, self.convert_by_pyav)
            if direct.scaler is not None and direct.scaler.run(frame.planes, destinations):
                return
        for output, plane in zip(outputs, self.convert_by_pyav(frame), strict=True):
            np.copyto(output.array[row], plane)

    def _configure(self, config: ScalerConfig) -> None:
        self.close()
        self._config = config
        unconverted = config.target == "yuv420p" and config.source in _UNCONVERTED_FORMATS
        same_size = (config.width, config.height) == (config.out_width, config.out_height)
        copied = unconverted and same_size
        if self._allow_direct and not copied:
            self._direct = _DirectConversion(config)
        # libswscale keeps the range that the frame states, and converts a full range that only its format implies.
        self._full_range = int(config.color_range == _FULL_RANGE or (copied and config.source == "yuvj420p"))


_TRIAL_LOCK: Final = Lock()


class _DirectConversion:
    """Decides whether, and with which chroma siting, libswscale writes the frames of one stream into the output.

    Attributes:
        scaler: Scaler to use. None while undecided, and if no scaler matches PyAV.
        siting: Chroma siting of `scaler`.
    """

    def __init__(self, config: ScalerConfig) -> None:
        self.scaler: Scaler | None = None
        self.siting: Siting = None
        self._config = config
        self._candidates: dict[Siting, Scaler] | None = None
        self._frames_seen = 0

    def compare(self, frame: VideoFrame, destinations: Sequence[tuple[int, int]], convert_by_pyav: Any) -> None:
        """Drop the candidates whose result for `frame` differs from PyAV's. Choose the last one that remains."""
        self._frames_seen += 1
        if self._frames_seen & (self._frames_seen - 1):
            return  # flat frames do not distinguish candidates: compare frames 1, 2, 4, 8, ...
        offsets = tuple(address % _CACHE_LINE_BYTES for address, _ in destinations)
        if self._candidates is None:
            with _TRIAL_LOCK:  # other lanes that start with the same conversion wait for its result
                sitings = _candidate_sitings(self._config, offsets)
            self._candidates = {siting: Scaler(self._config, siting) for siting in sitings}
        expected = convert_by_pyav(frame) if self._candidates else []
        for siting, scaler in list(self._candidates.items()):
            if not _matches(scaler, frame, expected, offsets):
                self._candidates.pop(siting).close()
        if len(self._candidates) == 1:
            self.siting, self.scaler = self._candidates.popitem()

    def close(self) -> None:
        """Free all scalers."""
        for scaler in [*(self._candidates or {}).values(), *([self.scaler] if self.scaler else [])]:
            scaler.close()


@lru_cache(maxsize=256)
def _candidate_sitings(config: ScalerConfig, offsets: tuple[int, ...]) -> tuple[Siting, ...]:
    """Return the chroma sitings that a stream may have; empty if libswscale cannot be used for this conversion.

    Whether libswscale's result equals PyAV's is tried on noise with unspecified siting.
    """
    format_ = VideoFormat(config.source, config.width, config.height)
    if not format_.is_planar or format_.has_palette or format_.is_rgb or config.source.endswith("be"):
        return ()
    try:
        noise = _make_noise_frame(config, format_)
        converter = Converter(config.target, config.out_height, config.out_width, allow_direct=False)
        expected = converter.convert_by_pyav(noise)
        scalers = {siting: Scaler(config, siting) for siting in _possible_sitings(format_)}
    except (UnreadableStream, av.error.FFmpegError, OSError, ValueError):  # a refusal by PyAV, or by libswscale
        return ()
    matches = {siting: _matches(scaler, noise, expected, offsets) for siting, scaler in scalers.items()}
    for scaler in scalers.values():
        scaler.close()
    if not matches[None]:
        return ()
    return (None,) if all(matches.values()) else tuple(matches)


def _possible_sitings(format_: VideoFormat) -> list[Siting]:
    # The positions of ITU-T H.273 chroma_sample_loc_type, in units of the subsampling grid.
    across = 1024 // max(1, format_.chroma_width(1024)) - 1
    down = 1024 // max(1, format_.chroma_height(1024)) - 1
    grid = [(0, 128), (128, 128), (0, 0), (128, 0), (0, 256), (128, 256)]
    sitings: list[Siting] = [None]
    # FFmpeg's default is the centre, so an explicit centre would be the same candidate twice.
    sitings += dict.fromkeys(
        (x * across, y * down) for x, y in grid if (x * across, y * down) != (128 * across, 128 * down)
    )
    return sitings


def _make_noise_frame(config: ScalerConfig, format_: VideoFormat) -> VideoFrame:
    frame = VideoFrame(config.width, config.height, config.source)
    frame.colorspace, frame.color_range = config.matrix, config.color_range
    random = np.random.default_rng(1234)
    bits = max(component.bits for component in format_.components)
    for plane in frame.planes:
        values = random.integers(0, 256, plane.buffer_size, np.uint8)
        if bits > _BITS_PER_BYTE:
            values = (values.view("<u2") & ((1 << bits) - 1)).view(np.uint8)
        plane.update(values.tobytes())
    return frame


def _matches(scaler: Scaler, frame: VideoFrame, expected: Sequence[Array], offsets: Sequence[int]) -> bool:
    """Return whether `scaler` writes exactly the `expected` planes, and nothing outside of them.

    Args:
        scaler: Scaler to run, into guarded memory.
        frame: Frame to convert.
        expected: Planes (H, W, C) that PyAV returns.
        offsets: Address modulo the cache line of each output plane, reproduced here.
    """
    guarded, destinations = [], []
    for plane, offset in zip(expected, offsets, strict=True):
        memory = np.full(plane.size + 2 * _GUARD_BYTES + _CACHE_LINE_BYTES, _GUARD_VALUE, np.uint8)
        start = _GUARD_BYTES + (offset - memory.ctypes.data - _GUARD_BYTES) % _CACHE_LINE_BYTES
        guarded.append((memory, start))
        destinations.append((memory.ctypes.data + start, plane.shape[1] * plane.shape[2]))
    if not scaler.run(frame.planes, destinations):
        return False
    for plane, (memory, start) in zip(expected, guarded, strict=True):
        end = start + plane.size
        if (memory[:start] != _GUARD_VALUE).any() or (memory[end:] != _GUARD_VALUE).any():
            return False
        if not np.array_equal(memory[start:end].reshape(plane.shape), plane):
            return False
    return True


def _allocate_aligned(shape: tuple[int, ...]) -> Array:
    """Return zeros of shape (1, *shape) that start at a cache line."""
    size = int(np.prod(shape))
    memory = np.zeros(size + _CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return memory[start : start + size].reshape(1, *shape)
