"""A pool of memory for results. Faulting in fresh pages costs almost as much as decoding into them."""

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

__all__ = ["BufferPool"]

_MIN_POOLED_BYTES: Final = 1 << 20  # the allocator itself reuses smaller blocks
_SIZE_STEP_BYTES: Final = 1 << 16
_MAX_SIZE_RATIO: Final = 1.25  # of a reused buffer to the requested size


class BufferPool:
    """Allocates arrays, and reuses the memory of an array when the last reference to it is gone.

    Args:
        max_bytes: Maximum number of free bytes that are kept for later arrays.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._free: deque[mmap.mmap] = deque()  # its methods are atomic: a finalizer runs at any point of any thread
        self._pid = os.getpid()

    def allocate(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialized uint8 array."""
        size = int(np.prod(shape))
        if size < _MIN_POOLED_BYTES or not self._max_bytes:
            return np.empty(shape, np.uint8)
        memory = self._take_free(size) or _map_memory(-(-size // _SIZE_STEP_BYTES) * _SIZE_STEP_BYTES)
        flat = np.frombuffer(memory, np.uint8, size)
        # Views refer to `flat`, not to the memory itself. So `flat` is the last object to be freed.
        weakref.finalize(flat, self._add_free, memory).atexit = False
        return flat.reshape(shape)

    def __reduce__(self) -> tuple[type[BufferPool], tuple[int]]:
        """Pickle the limit only."""
        return BufferPool, (self._max_bytes,)

    def clear(self) -> None:
        """Free the memory of the pool, and keep none from now on."""
        self._max_bytes = 0
        self._free.clear()

    def _take_free(self, size: int) -> mmap.mmap | None:
        if self._pid != os.getpid():  # after a fork the pages would have to be copied
            self._free.clear()
            self._pid = os.getpid()
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop()
            except IndexError:  # another thread took the last buffer
                return None
            if size <= len(memory) <= size * _MAX_SIZE_RATIO + _SIZE_STEP_BYTES:
                return memory
            self._free.appendleft(memory)
        return None

    def _add_free(self, memory: mmap.mmap) -> None:
        self._free.append(memory)
        while self._free and sum(map(len, tuple(self._free))) > self._max_bytes:
            try:
                self._free.popleft()
            except IndexError:
                return


def _map_memory(size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # the kernel may not support huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
