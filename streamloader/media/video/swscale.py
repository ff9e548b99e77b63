"""Call the libswscale that PyAV has loaded, so that it writes directly into given memory.

PyAV converts only into its own frames, which costs an allocation and a copy per frame. This module calls the same
library through ctypes, which releases the GIL. It never loads another one: the library is looked up among the files
mapped into this process. :mod:`streamloader.media.video.convert` compares its results with PyAV's before it is used.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Scaler", "ScalerConfig", "is_scaler_available"]

_SWS_BILINEAR: Final = 2  # the algorithm of PyAV's reformatter
_FIXED_POINT_ONE: Final = 1 << 16  # contrast and saturation are 16.16 fixed point
_AVCOL_RANGE_JPEG: Final = 2
_MIN_SWSCALE_VERSION: Final = 5  # the functions and options used here were checked from this major version on
_Pointers = c_void_p * 4
_Strides = c_int * 4


class ScalerConfig(NamedTuple):
    """Parameters of a conversion. Frames with equal parameters are converted with equal arithmetic.

    Attributes:
        source: FFmpeg's name of the pixel format of the input.
        width: Width of the input in pixels.
        height: Height of the input in pixels.
        matrix: Colour matrix of the input, as FFmpeg's AVColorSpace.
        color_range: Colour range of the input, as FFmpeg's AVColorRange.
        target: FFmpeg's name of the pixel format of the output.
        out_width: Width of the output in pixels.
        out_height: Height of the output in pixels.
    """

    source: str
    width: int
    height: int
    matrix: int
    color_range: int
    target: str
    out_width: int
    out_height: int


@lru_cache(maxsize=1)
def _load_libraries() -> tuple[Any, Any] | None:
    """Return the libswscale and libavutil of PyAV, or None if they cannot be identified or are too old."""
    paths: dict[str, set[str]] = {"swscale": set(), "avutil": set()}
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return None
    for match in re.finditer(r"(/[^\n]*?/lib(swscale|avutil)[^/\n]*\.so[^/\n]*)$", maps, re.MULTILINE):
        paths[match[2]].add(match[1])
    if any(len(candidates) != 1 for candidates in paths.values()):
        return None  # not loaded, or two copies of FFmpeg in this process: it is unknown which one PyAV calls
    try:
        sws, util = (ctypes.CDLL(paths[name].pop()) for name in ("swscale", "avutil"))
        _declare_functions(sws, util)
    except (OSError, AttributeError):
        return None
    return (sws, util) if sws.swscale_version() >> 16 >= _MIN_SWSCALE_VERSION else None


def _declare_functions(sws: Any, util: Any) -> None:
    sws.swscale_version.restype = ctypes.c_uint
    sws.sws_alloc_context.restype = c_void_p
    sws.sws_init_context.argtypes = [c_void_p, c_void_p, c_void_p]
    sws.sws_freeContext.argtypes = [c_void_p]
    sws.sws_freeContext.restype = None
    sws.sws_getCoefficients.argtypes = [c_int]
    sws.sws_getCoefficients.restype = c_void_p
    sws.sws_setColorspaceDetails.argtypes = [c_void_p, c_void_p, c_int, c_void_p, c_int, c_int, c_int, c_int]
    sws.sws_scale.argtypes = [
        c_void_p,
        POINTER(c_void_p),
        POINTER(c_int),
        c_int,
        c_int,
        POINTER(c_void_p),
        POINTER(c_int),
    ]
    util.av_get_pix_fmt.argtypes = [c_char_p]
    util.av_opt_set_int.argtypes = [c_void_p, c_char_p, c_int64, c_int]


def is_scaler_available() -> bool:
    """Return whether PyAV's libswscale can be called directly in this process."""
    return sys.platform == "linux" and _load_libraries() is not None


class Scaler:
    """One conversion, configured once and then run for every frame, in one thread at a time.

    Args:
        config: Formats, sizes, matrix and range of the conversion.
        siting: (horizontal, vertical) position of the chroma samples in 1/256 of a luma sample. Defaults to FFmpeg's
            default.

    Raises:
        ValueError: If the library is not available or does not support this conversion.
    """

    def __init__(self, config: ScalerConfig, siting: tuple[int, int] | None = None) -> None:
        self._context: int | None = None
        libraries = _load_libraries()
        if libraries is None:
            raise ValueError("PyAV's libswscale is not reachable")
        self._sws, util = libraries
        self._height = config.height
        self._run = self._sws.sws_scale
        self._context = self._sws.sws_alloc_context()
        options = {
            "srcw": config.width,
            "srch": config.height,
            "src_format": util.av_get_pix_fmt(config.source.encode()),
            "dstw": config.out_width,
            "dsth": config.out_height,
            "dst_format": util.av_get_pix_fmt(config.target.encode()),
            "sws_flags": _SWS_BILINEAR,
        }
        if siting is not None:
            options["src_h_chr_pos"], options["src_v_chr_pos"] = siting
        for name, value in options.items():
            if not self._context or util.av_opt_set_int(self._context, name.encode(), value, 0) < 0:
                raise ValueError(f"libswscale rejects {name}={value}")
        if self._sws.sws_init_context(self._context, None, None) < 0:
            raise ValueError(f"libswscale cannot convert {config}")
        full_range = int(config.color_range == _AVCOL_RANGE_JPEG or config.source.startswith(("yuvj", "gray")))
        # YUV output keeps the range of the input; RGB and gray are always full range.
        full_range_out = full_range if config.target.startswith("yuv") else 1
        table = self._sws.sws_getCoefficients(config.matrix)
        self._sws.sws_setColorspaceDetails(
            self._context, table, full_range, table, full_range_out, 0, _FIXED_POINT_ONE, _FIXED_POINT_ONE
        )

    def run(self, planes: Sequence[Any], destinations: Sequence[tuple[int, int]]) -> bool:
        """Convert a frame. Return False if libswscale fails.

        Args:
            planes: Planes of the frame.
            destinations: (address, bytes per row) of each plane of the output.
        """
        source = _Pointers(*[plane.buffer_ptr for plane in planes])
        strides = _Strides(*[plane.line_size for plane in planes])
        out = _Pointers(*[address for address, _ in destinations])
        out_strides = _Strides(*[stride for _, stride in destinations])
        return bool(self._run(self._context, source, strides, 0, self._height, out, out_strides) > 0)

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        context, self._context = self._context, None
        if context:
            self._sws.sws_freeContext(context)

    def __del__(self) -> None:
        """Free the context of a scaler that was not closed."""
        self.close()
