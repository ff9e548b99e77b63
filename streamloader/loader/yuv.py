"""Convert YUV 4:2:0 planes to RGB in torch, on any device.

At full size, the result is that of FFmpeg's libswscale on x86-64, which defines the pixels of ``pix_fmt="rgb24"``. It
converts in three ways, which round differently, by up to 3 levels: for even heights, it repeats the chroma samples; for
odd heights, it interpolates their rows, and adds a colour as a number of luma levels; for odd heights and widths, it
interpolates both ways. Scaled frames are converted here as it converts them after scaling.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from streamloader.errors import ConfigError
from streamloader.streams.frames import validate_size

__all__ = ["yuv_to_rgb"]

# Red from V, green from V, blue from U and green from U, in 1/65536, for limited range, by MatrixCoefficients of ITU-T
# H.273 (libswscale's ff_yuv2rgb_coeffs). All other numbers but 8, unspecified (2) too, are BT.601.
_BT601: Final = (104597, -53279, 132201, -25675)
_BT2020: Final = (110013, -42626, 140363, -12277)
_CHROMA: Final = {
    1: (117489, -34925, 138438, -13975),  # BT.709
    4: (104448, -53109, 132798, -24759),  # FCC
    7: (117579, -35559, 136230, -16907),  # SMPTE 240M
    9: _BT2020,
    10: _BT2020,
}
# YCgCo, which libswscale does not know: red and blue have parts of both planes (H.273, equations 49 to 51). They are
# mixed to V - U and -U - V first, of which red, green and blue have a part like that of other matrices.
_YCGCO: Final = 8
_YCGCO_CHROMA: Final = (74606, -37303, 74606, -37303)  # 255/224
_YCGCO_CENTERS: Final = (0, -256)  # of mixed chroma without colour
_LAST_MATRIX: Final = 11  # which is BT.601, like all larger numbers
_UNSPECIFIED: Final = 2
_BLACK: Final = 16  # luma of black in limited range
_NEUTRAL: Final = 128  # chroma without colour
_POSITIVE: Final = 512  # added to what may be negative, down to -400; a multiple of 256
_REPEATED: Final = 0x10001  # a factor that repeats 16 bits; much faster than repeat_interleave
_GREY: Final = (_POSITIVE, _POSITIVE, _POSITIVE, 0)  # what grey adds to red, green, blue, and to green by U
_FRACTION_BITS: Final = 13  # of the coefficients for even heights
_TABLE_BITS: Final = 16  # of those for odd heights
_BLOCK_PX: Final = 1 << 18  # converted at a time on a CPU, so that intermediate results stay in its cache


def yuv_to_rgb(
    y: Tensor,
    u: Tensor,
    v: Tensor,
    matrix: int | Tensor = _UNSPECIFIED,
    range: int | Tensor = 0,  # noqa: A002
    size: tuple[int, int] | None = None,
    *,
    channel_axis: int = -3,
) -> Tensor:
    """Convert the planes of YUV 4:2:0 frames to RGB, on the device on which they are.

    At full size, the pixels are those of ``VideoStreams(pix_fmt="rgb24")`` for the same 8-bit 4:2:0 file, as FFmpeg
    makes them on x86-64: equal, or within one level if height and width are both odd. Interlaced frames differ at edges
    of colour, because they are converted like progressive ones. With `size`, pixels are close to those of FFmpeg's
    bilinear scaler: 48 dB PSNR or more for frames of 640x360 and larger ones.

    Args:
        y: Luma, uint8 (..., 1, H, W), with any leading axes.
        u: First chroma plane (Cb), uint8 (..., 1, ceil(H/2), ceil(W/2)).
        v: Second chroma plane (Cr), with the shape of `u`.
        matrix: MatrixCoefficients of ITU-T H.273: 1 is BT.709, 5 and 6 are BT.601, 9 is BT.2020, and 8 is YCgCo, which
            FFmpeg does not convert. One number, or integers that broadcast to the leading axes. Defaults to 2,
            unspecified, for which FFmpeg uses BT.601.
        range: VideoFullRangeFlag of ITU-T H.273: 0 is limited range (luma 16..235), 1 is full range. One number, or
            integers or bools that broadcast to the leading axes. Defaults to 0.
        size: (height, width) to which frames are scaled. Defaults to their own size.
        channel_axis: Axis that has length 1 in `y`, `u` and `v`, and length 3 in the result: -3 for (..., C, H, W), -1
            for (..., H, W, C). Defaults to -3.

    Returns:
        RGB, uint8 (..., 3, H, W), contiguous. For another `channel_axis`, a view of such a tensor.

    Raises:
        ConfigError: If the shapes or dtypes do not fit together.
    """
    planes, lead = _flatten_planes((y, u, v), channel_axis)
    luma, *chroma = planes
    height, width = own_size = tuple(luma.shape[1:])
    if size is not None:
        height, width = validate_size(size)
    rows = _select_rows(matrix, range, lead, luma.device)
    coefficients = _Coefficients.from_rows(rows, mixes=_may_be_ycgco(matrix))
    rgb = torch.empty((len(luma), 3, height, width), dtype=torch.uint8, device=luma.device)
    frame_px = max(luma.shape[1] * luma.shape[2], height * width)
    if (height, width) == own_size and height % 2 == 0:
        converter = _PairConverter()
        for frames, pairs in _split_frames(luma, height // 2, frame_px):
            lines = slice(2 * pairs.start, 2 * pairs.stop)
            u_block, v_block = (plane[frames, pairs] for plane in chroma)
            converter.convert(luma[frames, lines], u_block, v_block, coefficients.of(frames), rgb[frames, :, lines])
    else:
        convert = _convert_interpolated if width % 2 else _convert_offsets
        for frames, _ in _split_frames(luma, 1, frame_px):
            y, u, v = _resample_planes([plane[frames] for plane in planes], height, width)
            convert(y, u, v, coefficients.of(frames), rgb[frames])
    return rgb.view(*lead, 3, height, width).movedim(-3, channel_axis)


class _Coefficients(NamedTuple):
    """Coefficients of the conversion of n frames, or with n = 1 of all frames. All numbers are whole.

    Attributes:
        luma: Factor of luma in 1/8192, and the sum added to it so that black is 0: float32 (n, 2, 1, 1), over 8192.
        chroma: Factors of V in red and green, and of U in blue and green, in 1/8192: int32 (n, 2, 2, 1, 1).
        neutral: Sums added to these products, so that grey is `_POSITIVE`, or 0 for U in green: int32 (n, 2, 2, 1, 1).
        step: Factor of luma in 1/65536, and the sum added to it, with 0.5 for rounding: int32 (n, 2, 1, 1).
        offsets: Luma levels added for each level of V in red and green, and of U in blue and green, in 1/65536: int32
            (n, 2, 2, 1, 1).
        centers: V and U without colour, after mixing: int32 (n, 2, 1, 1).
        mix: 1 for a frame whose V and U are mixed, otherwise 0: int32 (n, 1, 1). None if none is.
    """

    luma: Tensor
    chroma: Tensor
    neutral: Tensor
    step: Tensor
    offsets: Tensor
    centers: Tensor
    mix: Tensor | None

    @classmethod
    def from_rows(cls, rows: Tensor, *, mixes: bool) -> _Coefficients:
        """Split the rows of the table, int32 (n, 19). `mixes` is whether a frame may have mixed chroma."""
        luma, step, *others, centers, mix = rows[..., None, None].split([2, 2, 4, 4, 4, 2, 1], dim=1)
        chroma, neutral, offsets = (part.unflatten(1, (2, 2)) for part in others)
        luma = luma.float() / (1 << _FRACTION_BITS)
        return cls(luma, chroma, neutral, step, offsets, centers, mix[:, 0] if mixes else None)

    def of(self, frames: slice) -> _Coefficients:
        """Return the coefficients of some frames."""
        if len(self.luma) == 1:
            return self
        mix = self.mix if self.mix is None else self.mix[frames]
        luma, chroma, neutral, step, offsets, centers = (part[frames] for part in self[:-1])
        return _Coefficients(luma, chroma, neutral, step, offsets, centers, mix)

    def mix_chroma(self, v: Tensor, u: Tensor) -> None:
        """Mix the chroma planes (n, h, w) of frames that need it, in place."""
        if self.mix is not None:
            mixed = u * self.mix
            v.sub_(mixed)  # V - U
            u.sub_(mixed).sub_(mixed).sub_(v * self.mix).sub_(mixed)  # -U - V


def _compute_coefficients(matrix: int, full_range: int) -> list[int]:
    """Return a row of the table, as ``sws_setColorspaceDetails`` and ``ff_yuv2rgb_c_init_tables`` compute it."""
    step, first, is_mixed = 1 << 16, 0, matrix == _YCGCO
    chroma = list(_YCGCO_CHROMA if is_mixed else _CHROMA.get(matrix, _BT601))
    centers = _YCGCO_CENTERS if is_mixed else (_NEUTRAL, _NEUTRAL)
    if full_range:
        chroma = [_divide(factor * 224, 255) for factor in chroma]
    else:
        step = (255 << 16) // 219
        first = 326 * step - (384 << 16) - (_BLACK << 16)
    luma = (step + 4) >> 3
    black = 0 if full_range else -_BLACK * luma
    factors = [(factor + 4) >> 3 for factor in chroma]
    grey = [
        (positive << _FRACTION_BITS) - centers[number // 2] * factor
        for number, (positive, factor) in enumerate(zip(_GREY, factors, strict=True))
    ]
    offsets = [_divide((factor << 16) + 0x8000, step) for factor in chroma]
    return [luma, black, step, first + 0x8000, *factors, *grey, *offsets, *centers, int(is_mixed)]


def _divide(dividend: int, divisor: int) -> int:
    """Divide as C does: the quotient is rounded towards zero."""
    quotient = abs(dividend) // divisor
    return quotient if dividend >= 0 else -quotient


@lru_cache(maxsize=64)
def _coefficient_table(device: torch.device) -> Tensor:
    """Return the coefficients of all matrices, each in limited and full range, int32 (2 * matrices, 19)."""
    rows = [_compute_coefficients(matrix, full) for matrix in range(_LAST_MATRIX + 1) for full in (0, 1)]
    return torch.tensor(rows, dtype=torch.int32).to(device)


def _select_rows(matrix: int | Tensor, full_range: int | Tensor, lead: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the row of the table for each frame, or one row for all frames, without waiting for the device."""
    table = _coefficient_table(device)
    if not isinstance(matrix, Tensor):
        matrix = min(max(int(matrix), 0), _LAST_MATRIX)
    elif matrix.is_floating_point():
        raise ConfigError(f"matrix must be integers, got {matrix.dtype}")
    else:
        matrix = matrix.to(device, torch.int64, non_blocking=True).clamp(0, _LAST_MATRIX)
    if not isinstance(full_range, Tensor):
        full_range = int(bool(full_range))
    else:
        full_range = full_range.to(device, torch.bool, non_blocking=True)
    row = matrix * 2 + full_range
    if not isinstance(row, Tensor):
        return table[row : row + 1]
    try:
        rows = row.broadcast_to(lead).reshape(-1)
    except RuntimeError as error:
        raise ConfigError(
            f"matrix and range must broadcast to the leading axes {lead}, got {tuple(row.shape)}"
        ) from error
    return table[rows]


def _may_be_ycgco(matrix: int | Tensor) -> bool:
    """Return whether a frame may be in YCgCo. True where only waiting for the device would tell."""
    if not isinstance(matrix, Tensor):
        return int(matrix) == _YCGCO
    return matrix.device.type != "cpu" or bool((matrix == _YCGCO).any())


def _flatten_planes(planes: tuple[Tensor, Tensor, Tensor], channel_axis: int) -> tuple[list[Tensor], tuple[int, ...]]:
    """Return the planes as (n, H, W), and the shape of the leading axes.

    Raises:
        ConfigError: If they are not the planes of YUV 4:2:0 frames.
    """
    shapes = [tuple(plane.shape) for plane in planes]
    try:
        moved = [plane.movedim(channel_axis, -3) for plane in planes]
        *lead, channels, height, width = moved[0].shape
    except (IndexError, ValueError):
        channels = height = width = 0
        lead, moved = [], []
    chroma = (*lead, 1, (height + 1) // 2, (width + 1) // 2)
    fits = channels == 1 and height and width and all(tuple(plane.shape) == chroma for plane in moved[1:])
    if not fits or any(plane.dtype != torch.uint8 for plane in planes):
        raise ConfigError(
            f"expected planes of YUV 4:2:0 frames, uint8 (..., 1, H, W) and twice (..., 1, ceil(H/2), ceil(W/2)), with "
            f"the axis of length 1 at channel_axis={channel_axis}, got {', '.join(map(str, shapes))} of "
            f"{', '.join(str(plane.dtype) for plane in planes)}"
        )
    return [plane.reshape(-1, *plane.shape[-2:]) for plane in moved], tuple(lead)


def _split_frames(luma: Tensor, rows: int, frame_px: int) -> Iterator[tuple[slice, slice]]:
    """Yield ranges of frames, and of the `rows` of each, that are converted at a time: all of them, except on a CPU."""
    frames = len(luma)
    many_frames, many_rows = max(frames, 1), rows
    if luma.device.type == "cpu":
        many_frames = max(1, _BLOCK_PX // frame_px)
        if frame_px > _BLOCK_PX:
            many_rows = max(1, rows * _BLOCK_PX // frame_px)
    for first, row in itertools.product(range(0, frames, many_frames), range(0, rows, many_rows)):
        yield slice(first, min(first + many_frames, frames)), slice(row, min(row + many_rows, rows))


class _PairConverter:
    """Converts frames at full size, with an even number of rows. Each chroma sample serves 2 x 2 pixels.

    Sums are kept positive by multiples of 256, which vanish when the lowest 8 bits are stored. So casts, which round
    towards zero, round down, and a multiplication repeats the lower half of 32 bits in the upper half.

    Its buffers are used for one block after the other, because allocating them costs more than the arithmetic.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()

    def convert(self, y: Tensor, u: Tensor, v: Tensor, by: _Coefficients, rgb: Tensor) -> None:
        """Convert one block, u and v of half the size of y, into `rgb`."""
        if self._shape != y.shape:
            self._allocate(y)
        scale, black = by.luma.unbind(1)
        self._luma.copy_(self._scaled.copy_(y).mul_(scale).add_(black + _POSITIVE))
        self._chroma[:, 0, 0].copy_(v)
        self._chroma[:, 1, 0].copy_(u)
        by.mix_chroma(*self._chroma[:, :, 0].unbind(1))
        torch.mul(self._chroma, by.chroma, out=self._terms).add_(by.neutral).bitwise_right_shift_(_FRACTION_BITS)
        red_green_blue, green_u = self._terms.flatten(1, 2).split([3, 1], dim=1)
        red_green_blue[:, 1:2].add_(green_u)
        torch.mul(red_green_blue, _REPEATED, out=self._pairs)
        colour = self._pairs.view(torch.int16)[..., None, : y.shape[2]]
        torch.add(self._luma.view(len(y), 1, -1, 2, y.shape[2]), colour, out=self._pixels)
        pixels = self._pixels.flatten(2, 3).clamp_(2 * _POSITIVE, 2 * _POSITIVE + 255)
        rgb.copy_(pixels)

    def _allocate(self, y: Tensor) -> None:
        (frames, height, width), device = y.shape, y.device
        half = (frames, height // 2, (width + 1) // 2)
        self._shape = (frames, height, width)
        self._scaled = torch.empty(self._shape, dtype=torch.float32, device=device)
        self._luma = torch.empty(self._shape, dtype=torch.int16, device=device)
        self._chroma = torch.empty((frames, 2, 1, *half[1:]), dtype=torch.int32, device=device)
        self._terms = torch.empty((frames, 2, 2, *half[1:]), dtype=torch.int32, device=device)
        self._pairs = torch.empty((frames, 3, *half[1:]), dtype=torch.int32, device=device)
        self._pixels = torch.empty((frames, 3, height // 2, 2, width), dtype=torch.int16, device=device)


def _repeat_across(colour: Tensor, width: int) -> Tensor:
    """Return each positive 15-bit integer of an int32 (..., n) twice, as int16 (..., width)."""
    return (colour * _REPEATED).view(torch.int16)[..., :width]


def _resample_planes(planes: list[Tensor], height: int, width: int) -> list[Tensor]:
    """Return luma (n, height, width), and chroma as libswscale interpolates it before it converts.

    If the width is even, chroma has half of it, and all values are integers, rounded as libswscale rounds them there.
    """
    luma, *chroma = planes
    odd = width % 2 == 1
    half = width if odd else width // 2
    if luma.shape[1:] != (height, width):
        scaled = [_scale_plane(luma, height, width), *(_scale_plane(plane, height, half) for plane in chroma)]
        return scaled if odd else [plane.floor_() if plane.is_floating_point() else plane for plane in scaled]
    chroma = [_stretch_plane(plane.float(), height, 1) for plane in chroma]
    if odd:
        return [luma, *(_stretch_plane(plane, width, 2) for plane in chroma)]
    return [luma, *(plane.add_(0.5).floor_() for plane in chroma)]


def _scale_plane(plane: Tensor, height: int, width: int) -> Tensor:
    """Scale uint8 (n, H, W) bilinearly, with a triangle as wide as the scale where it shrinks."""
    if height >= plane.shape[1] and width >= plane.shape[2]:
        return _stretch_plane(_stretch_plane(plane.float(), height, 1), width, 2)
    if plane.device.type == "cpu":  # only there, integers can be scaled
        return interpolate(plane[:, None], (height, width), mode="bilinear", antialias=True)[:, 0]
    return interpolate(plane[:, None].float(), (height, width), mode="bilinear", antialias=True)[:, 0].round_()


def _stretch_plane(plane: Tensor, length: int, axis: int) -> Tensor:
    """Interpolate a float32 plane linearly to `length` samples, at the positions and weights of libswscale."""
    samples = plane.shape[axis]
    increment = ((samples << 16) + (length >> 1)) // length
    position = torch.arange(length, device=plane.device) * increment + (increment >> 1) - 0x8000
    index = position >> 16
    weight = ((position & 0xFFFF) + 8 >> 4) / 4096
    weight = weight[:, None] if axis == 1 else weight
    before, after = (plane.index_select(axis, step.clamp(0, samples - 1)) for step in (index, index + 1))
    return before.mul_(1 - weight).add_(after.mul_(weight))


def _convert_offsets(y: Tensor, u: Tensor, v: Tensor, by: _Coefficients, rgb: Tensor) -> None:
    """Convert frames with an even width whose chroma has half their width and all their rows."""
    chroma = torch.stack([v, u], dim=1).to(torch.int32)
    by.mix_chroma(*chroma.unbind(1))
    neutral = (by.centers[:, :, None] * by.offsets).bitwise_right_shift_(_TABLE_BITS)
    levels = (chroma[:, :, None] * by.offsets).bitwise_right_shift_(_TABLE_BITS).sub_(neutral).flatten(1, 2)
    levels[:, 1] += levels[:, 3]
    colour = _repeat_across(levels[:, :3] + _POSITIVE, y.shape[-1])
    step, first = by.step.unbind(1)
    pixels = (y.to(torch.int16)[:, None] + colour).to(torch.int32)
    pixels.mul_(step[:, None]).add_((first - _POSITIVE * step)[:, None]).bitwise_right_shift_(_TABLE_BITS)
    rgb.copy_(pixels.clamp_(0, 255))


def _convert_interpolated(y: Tensor, u: Tensor, v: Tensor, by: _Coefficients, rgb: Tensor) -> None:
    """Convert frames whose chroma has their size."""
    scale, black = by.luma.unbind(1)
    luma = y.float().mul_(scale).add_(black)
    v, u = v.float(), u.float()
    by.mix_chroma(v, u)
    v, u = ((plane - by.centers[:, number]) / (1 << _FRACTION_BITS) for number, plane in enumerate((v, u)))
    red_v, green_v, blue_u, green_u = by.chroma.flatten(1, 2).unbind(1)
    pixels = torch.stack([luma + v * red_v, luma + u * green_u + v * green_v, luma + u * blue_u], dim=1)
    rgb.copy_(pixels.round_().clamp_(0, 255))
