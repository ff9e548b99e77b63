"""Have the system read many packs at the same time, before they are opened one after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from streamloader.containers.pack.format import FOOTER_BYTES, HEADER, MalformedPack, parse_footer

__all__ = ["prefetch_packs"]

_THREADS: Final = 16
_MIN_PACKS: Final = 4  # fewer are opened at once
_TAIL_BYTES: Final = 64 << 10  # footer, and the index of about 1,500 members
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def prefetch_packs(folders: Sequence[str], packs: Sequence[str]) -> None:
    """Have the status of folders, and the header and index of packs, read into the page cache, many at the same time.

    Nothing is read if the system has the ends of the first, the middle and the last pack in memory, as after a recent
    start, or if it cannot tell. Errors are ignored: who opens a pack reports them.

    Args:
        folders: Paths of folders.
        packs: Paths of packs.
    """
    if len(packs) < _MIN_PACKS or not hasattr(os, "RWF_NOWAIT"):  # of Linux
        return
    if all(map(_is_cached, (packs[0], packs[len(packs) // 2], packs[-1]))):
        return
    requests: list[tuple[Callable[[str], object], str]] = [(os.stat, path) for path in folders]
    requests += [(_request_pack, path) for path in packs]
    with ThreadPoolExecutor(_THREADS, "prefetch packs") as pool:
        pool.map(_run_request, *zip(*requests, strict=True))


def _run_request(function: Callable[[str], object], path: str) -> None:
    with contextlib.suppress(OSError, MalformedPack):
        function(path)


def _is_cached(path: str) -> bool:
    """Return whether the end of a file is in memory. True if nobody knows: then nothing has to be done."""
    try:
        with _open_file(path) as fd:
            os.preadv(fd, [bytearray(1)], max(0, os.fstat(fd).st_size - 1), os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # it is gone, or its file system has no such reads
        pass
    return True


def _request_pack(path: str) -> None:
    with _open_file(path) as fd:
        size = os.fstat(fd).st_size
        tail = max(0, size - _TAIL_BYTES)
        os.posix_fadvise(fd, 0, len(HEADER), os.POSIX_FADV_WILLNEED)
        os.posix_fadvise(fd, tail, size - tail, os.POSIX_FADV_WILLNEED)
        start = parse_footer(os.pread(fd, FOOTER_BYTES, max(0, size - FOOTER_BYTES)), size).index_offset
        if start < tail:
            os.posix_fadvise(fd, start, tail - start, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def _open_file(path: str) -> Iterator[int]:
    fd = os.open(path, _OPEN_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)
