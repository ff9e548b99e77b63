"""The table of texts in files: their sizes, and the errors of those that cannot be used."""

from __future__ import annotations

import math
import os
import stat
from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from streamloader.errors import NotSupported, StreamloaderError, StreamNotFound, UnreadableStream
from streamloader.stores.addresses import FileKeys, SourceFile
from streamloader.stream_table import StreamTable
from streamloader.streams.unreadable import ends_indexing
from streamloader.values import ObjectInfo

__all__ = ["TextTableBuilder", "modified_ns"]

_MAX_TIME_NS: Final = (1 << 63) - 1


class TextTableBuilder:
    """Builds the table of texts, and collects the errors of those that cannot be used.

    Args:
        files: Files and objects.

    Attributes:
        keys: Keys of all files.
        errors: Errors by number of the file.

    Raises:
        StreamloaderError: If an error does not come from one file.
    """

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self.keys = FileKeys.of_files(files)
        self.errors: dict[int, StreamloaderError] = {}
        self._paths, self._versions = list(self.keys.names), [""] * len(files)
        self._sizes, self._modified = array("q"), array("q")
        self._numbers: Sequence[int] = range(len(files))  # of the files in the table
        for number, (file, key) in enumerate(zip(files, self.keys.keys, strict=True)):
            try:
                size, time_ns = self._measure(number, file, key)
            except StreamloaderError as error:
                if ends_indexing(error):
                    raise
                self.errors[number] = error
                size = time_ns = 0
            self._sizes.append(size)
            self._modified.append(time_ns)

    def _measure(self, number: int, file: SourceFile, key: str) -> tuple[int, int]:
        """Return size and time of a file in ns."""
        if file.info is not None:
            self._versions[number] = file.info.version or ""
            return _object_size(file, key), modified_ns(file.info)
        self._paths[number] = os.path.abspath(file.address)  # a worker may have another current directory
        status = _stat_file(file.address, self._paths[number], key)
        return status.st_size, status.st_mtime_ns

    def build_table(self) -> StreamTable:
        """Return the table of the texts without an error, with their lengths in bytes."""
        sizes, modified = np.array(self._sizes, np.int64), np.array(self._modified, np.int64)
        keys, paths, versions = self.keys, self._paths, self._versions
        if self.errors:
            numbers = self._numbers = [number for number in range(len(paths)) if number not in self.errors]
            keys, sizes, modified = keys.select(numbers), sizes[numbers], modified[numbers]
            paths, versions = [paths[number] for number in numbers], [versions[number] for number in numbers]
        columns: dict[str, Any] = {"path": paths, "version": versions, "size": sizes, "mtime_ns": modified}
        return StreamTable(keys.keys, sizes, columns, keys.identities)

    def add_lengths(self, lengths: Sequence[int | StreamloaderError]) -> StreamTable:
        """Return the table with other lengths, and without the texts that have an error instead.

        Args:
            lengths: Length, or error, of each text of the table.
        """
        found = dict(zip(self._numbers, lengths, strict=True))
        self.errors |= {number: item for number, item in found.items() if isinstance(item, StreamloaderError)}
        counts = [item for item in lengths if not isinstance(item, StreamloaderError)]
        return self.build_table().with_lengths(np.array(counts, np.int64))


def _stat_file(path: str, absolute: str, key: str) -> os.stat_result:
    try:
        status = os.stat(absolute)
    except FileNotFoundError as error:
        raise StreamNotFound(f"{path} was deleted during indexing", stream=key, address=absolute) from error
    except OSError as error:
        raise UnreadableStream(f"cannot inspect {path}: {error.strerror}", stream=key, address=absolute) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableStream(
            f"{path} is a pipe, socket or device: a stream needs a file", stream=key, address=absolute
        )
    if not os.access(absolute, os.R_OK):
        raise UnreadableStream(f"{path} cannot be read (permission denied)", stream=key, address=absolute)
    return status


def _object_size(file: SourceFile, key: str) -> int:
    if file.info is None or file.info.size is None:
        raise NotSupported(
            f"the server of {key} does not report its size, so its number of steps is unknown: keep a copy of it on a "
            "server that reports sizes",
            stream=key,
            address=file.address,
        )
    return file.info.size


def modified_ns(info: ObjectInfo) -> int:
    """Return the modification time in nanoseconds, within 64 bits: a server may state any date."""
    if info.modified is None or not math.isfinite(info.modified):
        return 0
    return min(max(round(info.modified * 1e9), -_MAX_TIME_NS), _MAX_TIME_NS)
