"""LMDB: one environment, read in one transaction, with buffers instead of copies.

Option ``keys``: whether a scan yields the keys too. Defaults to True.
"""

from __future__ import annotations

from collections.abc import Sequence

import lmdb

from benchmarks.job import Job
from benchmarks.peers.small_file_reader import SmallFileReader
from benchmarks.peers.small_images import count_files, find_lmdb


class LmdbValues(SmallFileReader):
    """Values of an environment of LMDB."""

    def __init__(self, job: Job) -> None:
        self._has_keys = job.options.get("keys", True)
        self._environment = lmdb.open(str(find_lmdb(count_files(job))), readonly=True, lock=False)
        self._transaction = self._environment.begin(buffers=True)

    def read(self, name: str) -> memoryview:
        """Return a view of a file."""
        view: memoryview = self._transaction.get(name.encode())
        return view

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names."""
        get, total = self._transaction.get, 0
        for name in names:
            total += len(get(name.encode()))
        return total

    def scan(self) -> int:
        """Read all files in the order of the keys."""
        total = 0
        with self._transaction.cursor() as cursor:
            if self._has_keys:
                for _, value in cursor:
                    total += len(value)
            else:
                for value in cursor.iternext(keys=False, values=True):
                    total += len(value)
        return total

    def close(self) -> None:
        """Close the environment."""
        self._transaction.abort()
        self._environment.close()


def open_peer(job: Job) -> LmdbValues:
    """Open this contender."""
    return LmdbValues(job)
