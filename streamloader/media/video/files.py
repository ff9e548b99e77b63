"""Local video files: their versions, and descriptors that never wait. Nothing here parses their contents."""

from __future__ import annotations

import errno
import os
import stat

from streamloader.common.guarded_files import open_regular_file
from streamloader.errors import CorruptStream, StreamNotFound, UnreadableStream

__all__ = ["file_version", "make_changed_error", "open_media_file"]


def file_version(path: str) -> tuple[int, int]:
    """Return (size in bytes, modification time in ns) of a local file.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If the path is not a file, or the file is empty or cannot be read.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise StreamNotFound(f"no such video file: {path}", stream=path, address=path) from error
    except OSError as error:
        raise UnreadableStream(f"{path} cannot be read: {error.strerror}", stream=path, address=path) from error
    if not stat.S_ISREG(status.st_mode):
        raise _not_a_file(path)
    if status.st_size == 0:
        raise UnreadableStream(f"{path} is empty (0 bytes)", stream=path, address=path)
    return status.st_size, status.st_mtime_ns


def make_changed_error(
    name: str, size: int | None, indexed_size: int | None, advice: str = "build the loader again"
) -> CorruptStream:
    """Build the error for a video that is not the one that was indexed."""
    return CorruptStream(
        f"{name} was changed since the loader was built (it has {size} bytes now, and had {indexed_size} then): "
        f"{advice}",
        address=name,
    )


def open_media_file(path: str) -> int:
    """Return a descriptor for reading a file. A FIFO or a device is neither waited for nor read.

    Raises:
        UnreadableStream: If the path is not a file.
        OSError: If it cannot be opened.
    """
    try:
        return open_regular_file(path)
    except IsADirectoryError as error:
        raise _not_a_file(path) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _not_a_file(path) from error


def _not_a_file(path: str) -> UnreadableStream:
    return UnreadableStream(f"{path} is not a file", stream=path, address=path)
