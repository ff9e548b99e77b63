"""Standard output of a worker, which neither blocks nor fails, whatever happens to whom it is shown to."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final

from typing_extensions import override

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["protect_output"]

_MAX_WAIT_MS: Final = 100.0  # for a reader that is slow
_PIECE_BYTES: Final = 4096  # a pipe that is ready takes so many without blocking (PIPE_BUF of Linux)


def protect_output() -> None:
    """Let prints of this process wait for a slow reader for a moment only, and discard what cannot be shown.

    A full pipe would stop the streams, and one whose reader has gone would raise an error in the code that prints.
    """
    for name, fd in (("stdout", 1), ("stderr", 2)):
        output = io.BufferedWriter(_DiscardingOutput(fd))
        stream = io.TextIOWrapper(output, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)


class _DiscardingOutput(io.RawIOBase):
    """Writes to a descriptor what it takes, and discards the rest.

    Args:
        fd: Descriptor. It is not closed.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_blocked = False
        self._discarded_bytes = 0

    @override
    def writable(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        return self._fd

    @override
    def isatty(self) -> bool:
        return os.isatty(self._fd)

    @override
    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        if self._discarded_bytes and self._is_ready():
            note = f"[{self._discarded_bytes} bytes of output were discarded, because nobody read them]\n".encode()
            self._discarded_bytes = 0
            self._write_piece(note)
        for offset in range(0, len(view), _PIECE_BYTES):
            piece = view[offset : offset + _PIECE_BYTES]
            if not self._is_ready() or not self._write_piece(piece):
                self._discarded_bytes += len(view) - offset
                break
        return len(view)

    def _is_ready(self) -> bool:
        """Return whether a piece can be written. Once it was waited for in vain, it is not waited for again."""
        poll = select.poll()
        try:
            poll.register(self._fd, select.POLLOUT)
            self._is_blocked = not poll.poll(0 if self._is_blocked else _MAX_WAIT_MS)
        except (OSError, ValueError):
            return False
        return not self._is_blocked

    def _write_piece(self, piece: bytes | memoryview) -> bool:
        try:
            while piece:
                piece = piece[os.write(self._fd, piece) :]
        except OSError:  # nobody reads any more, the disk is full, a limit of file sizes
            return False
        return True
