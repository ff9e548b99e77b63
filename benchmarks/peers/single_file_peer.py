"""Files in a zip file, or in a database of SQLite.

Option ``container``: "zip" or "sqlite".
"""

from __future__ import annotations

import sqlite3
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.job import Job
from benchmarks.peers.small_file_reader import SmallFileReader
from benchmarks.peers.small_images import count_files, find_sqlite, find_zip

_MAP_BYTES = 1 << 32


class ZipMembers(SmallFileReader):
    """Members of a zip file, read by `zipfile`."""

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path)
        self.read = self._file.read

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names."""
        read, total = self._file.read, 0
        for name in names:
            total += len(read(name))
        return total

    def scan(self) -> int:
        """Read all files in the order of the directory of the file."""
        read, total = self._file.read, 0
        for info in self._file.infolist():
            total += len(read(info))
        return total

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SqliteRows(SmallFileReader):
    """Rows of a database, which is mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        self._database.execute(f"PRAGMA mmap_size = {_MAP_BYTES}")

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        data: bytes = self._database.execute("SELECT data FROM files WHERE name = ?", (name,)).fetchone()[0]
        return data

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names."""
        execute, total = self._database.cursor().execute, 0
        for name in names:
            total += len(execute("SELECT data FROM files WHERE name = ?", (name,)).fetchone()[0])
        return total

    def scan(self) -> int:
        """Read all files in the order of the table."""
        total = 0
        for (data,) in self._database.execute("SELECT data FROM files"):
            total += len(data)
        return total

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def open_peer(job: Job) -> SmallFileReader:
    """Open this contender."""
    if job.options["container"] == "zip":
        return ZipMembers(find_zip(count_files(job)))
    return SqliteRows(find_sqlite(count_files(job)))
