"""Memory of results, used again once nobody refers to them: fresh pages cost almost as much as decoding into them."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["ResultMemory"]

_LEAST: Final = 1 << 20  # bytes; the allocator keeps what is smaller
_ROUND: Final = 1 << 16
_LOOSE: Final = 1.25  # a piece may have this many times the bytes that are needed


class ResultMemory:
    """Gives out arrays, and takes their memory back when the last reference to one is gone.

    Args:
        most: bytes that are kept for later arrays at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._free: deque[mmap.mmap] = deque()  # its methods are atomic: a finaliser runs at any point of any thread
        self._pid = os.getpid()

    def array(self, shape: tuple[int, ...]) -> Array:
        """Return an array of uint8 with any content."""
        size = int(np.prod(shape))
        if size < _LEAST or not self._most:
            return np.empty(shape, np.uint8)
        memory = self._fitting(size) or _fresh(-(-size // _ROUND) * _ROUND)
        flat = np.frombuffer(memory, np.uint8, size)
        # Views refer to `flat`, not to the memory itself, so it is the last to go.
        weakref.finalize(flat, self._take_back, memory).atexit = False
        return flat.reshape(shape)

    def __reduce__(self) -> tuple[type[ResultMemory], tuple[int]]:
        """Leave the memory behind."""
        return ResultMemory, (self._most,)

    def clear(self) -> None:
        """Keep nothing, from now on."""
        self._most = 0
        self._free.clear()

    def _fitting(self, size: int) -> mmap.mmap | None:
        if self._pid != os.getpid():  # after a fork the pages would have to be copied
            self._free.clear()
            self._pid = os.getpid()
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop()
            except IndexError:  # another thread was faster
                return None
            if size <= len(memory) <= size * _LOOSE + _ROUND:
                return memory
            self._free.appendleft(memory)
        return None

    def _take_back(self, memory: mmap.mmap) -> None:
        self._free.append(memory)
        while self._free and sum(map(len, tuple(self._free))) > self._most:
            try:
                self._free.popleft()
            except IndexError:
                return


def _fresh(size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
