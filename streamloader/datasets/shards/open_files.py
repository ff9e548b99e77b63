"""Keep files of shards open, 128 of all data sets of a process together."""

from __future__ import annotations

import itertools
import os
from typing import Any, Final

from streamloader.common.lru import LruCache

__all__ = ["MAX_OPEN_FILES", "drop_open_files", "get_open_files", "number_data_set"]

MAX_OPEN_FILES: Final = 128

_numbers: Final = itertools.count()


class _ProcessFiles:
    """The open files of one process. A forked child starts with none: a thread of its parent may have held the lock."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.files: LruCache[tuple[int, int], Any] = LruCache(MAX_OPEN_FILES, MAX_OPEN_FILES)


_process = _ProcessFiles()


def number_data_set() -> int:
    """Return a number that no other data set of this process has."""
    return next(_numbers)


def get_open_files() -> LruCache[tuple[int, int], Any]:
    """Return the open files by number of the data set and of the shard."""
    global _process  # noqa: PLW0603 - it is replaced after a fork only
    if _process.pid != os.getpid():
        _process = _ProcessFiles()
    return _process.files


def drop_open_files(data_set: int, shards: int) -> None:
    """Close the files of a data set, as soon as nothing reads them any more.

    Args:
        data_set: Number of the data set.
        shards: Number of its shards.
    """
    files = get_open_files()
    if len(files):
        files.drop([(data_set, shard) for shard in range(shards)])
