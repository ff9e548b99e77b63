"""The libswscale that PyAV itself has loaded, called so that it writes into memory that we choose.

PyAV converts only into frames of its own, which costs an allocation and a copy per frame. Here the same library
(never another one: it is looked up among the files mapped into this process) is called through ctypes, which
releases the GIL. Whether it is used is decided in :mod:`streamloader.media.video.convert`, by comparison with PyAV.
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

__all__ = ["Geometry", "Scaler", "scaler_available"]

_BILINEAR: Final = 2  # SWS_BILINEAR: what PyAV's reformatter uses
_ONE: Final = 1 << 16  # contrast and saturation are 16.16 fixed point
_JPEG: Final = 2  # AVCOL_RANGE_JPEG
_FIRST_VERSION: Final = 5  # libswscale major versions whose calls and option names were read for this file
_Pointers = c_void_p * 4
_Strides = c_int * 4


class Geometry(NamedTuple):
    """What a conversion is made for. Two frames with equal geometry are converted by equal arithmetic."""

    source: str
    width: int
    height: int
    matrix: int
    color_range: int
    target: str
    out_width: int
    out_height: int


@lru_cache(maxsize=1)
def _libraries() -> tuple[Any, Any] | None:
    found: dict[str, set[str]] = {"swscale": set(), "avutil": set()}
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux: PyAV's own way is used
        return None
    for match in re.finditer(r"(/[^\n]*?/lib(swscale|avutil)[^/\n]*\.so[^/\n]*)$", maps, re.MULTILINE):
        found[match[2]].add(match[1])
    if any(len(paths) != 1 for paths in found.values()):
        return None  # none, or two FFmpegs in one process: which one PyAV calls cannot be told
    try:
        sws, util = (ctypes.CDLL(found[name].pop()) for name in ("swscale", "avutil"))
        _declare(sws, util)
    except (OSError, AttributeError):
        return None
    return (sws, util) if sws.swscale_version() >> 16 >= _FIRST_VERSION else None


def _declare(sws: Any, util: Any) -> None:
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


def scaler_available() -> bool:
    """Say whether PyAV's libswscale can be called directly in this process."""
    return sys.platform == "linux" and _libraries() is not None


class Scaler:
    """One conversion, set up once and then run for every frame, on one thread at a time.

    Args:
        geometry: formats, sizes, matrix and range.
        siting: (horizontal, vertical) position of the chroma samples in 1/256 of a luma sample; None: FFmpeg's default.

    Raises:
        ValueError: the library is not at hand or refuses this conversion.
    """

    def __init__(self, geometry: Geometry, siting: tuple[int, int] | None = None) -> None:
        self._context: int | None = None
        libraries = _libraries()
        if libraries is None:
            raise ValueError("PyAV's libswscale is not reachable")
        self._sws, util = libraries
        self._height = geometry.height
        self._run = self._sws.sws_scale
        self._context = self._sws.sws_alloc_context()
        options = {
            "srcw": geometry.width,
            "srch": geometry.height,
            "src_format": util.av_get_pix_fmt(geometry.source.encode()),
            "dstw": geometry.out_width,
            "dsth": geometry.out_height,
            "dst_format": util.av_get_pix_fmt(geometry.target.encode()),
            "sws_flags": _BILINEAR,
        }
        if siting is not None:
            options["src_h_chr_pos"], options["src_v_chr_pos"] = siting
        for name, value in options.items():
            if not self._context or util.av_opt_set_int(self._context, name.encode(), value, 0) < 0:
                raise ValueError(f"libswscale does not take {name}={value}")
        if self._sws.sws_init_context(self._context, None, None) < 0:
            raise ValueError(f"libswscale cannot convert {geometry}")
        full = int(geometry.color_range == _JPEG or geometry.source.startswith(("yuvj", "gray")))
        # Planes that stay planes keep their range; RGB and gray are always full range.
        full_out = full if geometry.target.startswith("yuv") else 1
        table = self._sws.sws_getCoefficients(geometry.matrix)
        self._sws.sws_setColorspaceDetails(self._context, table, full, table, full_out, 0, _ONE, _ONE)

    def run(self, planes: Sequence[Any], targets: Sequence[tuple[int, int]]) -> bool:
        """Convert `planes` of a frame into `targets`, (address, bytes per row) of each plane; False if refused."""
        source = _Pointers(*[plane.buffer_ptr for plane in planes])
        strides = _Strides(*[plane.line_size for plane in planes])
        out = _Pointers(*[address for address, _ in targets])
        out_strides = _Strides(*[stride for _, stride in targets])
        return bool(self._run(self._context, source, strides, 0, self._height, out, out_strides) > 0)

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        context, self._context = self._context, None
        if context:
            self._sws.sws_freeContext(context)

    def __del__(self) -> None:
        """Free the context of a scaler that was dropped without :meth:`close`."""
        self.close()
