"""Map files into memory without a descriptor that stays open."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
from typing import Final

import numpy as np

from streamloader.common.guarded_files import open_regular_file

__all__ = ["map_file"]

_MAP_FIXED: Final = 0x10  # of Linux and macOS
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


def map_file(path: str) -> mmap.mmap | bytes:
    """Return the contents of a file as a mapping that can only be read. An empty file cannot be mapped: it is b"".

    Raises:
        OSError: If the file cannot be opened or mapped, or is no regular file.
    """
    descriptor = open_regular_file(path)
    try:
        size = os.fstat(descriptor).st_size
        return _map_descriptor(descriptor, size) if size else b""
    finally:
        os.close(descriptor)


def _map_descriptor(descriptor: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ, trackfd=False)
    # Before Python 3.13, a mapping keeps a copy of the descriptor, and a process may have about 1,000. A mapping of no
    # file has none, and the kernel can replace its pages by those of the file. Its owner unmaps them. For a private one
    # that cannot be written to, no memory is reserved.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        mapping = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    address = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    if _load_libc().mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0) == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return mapping


@functools.cache
def _load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong)
    return libc
