"""Files without a library: one by one, and by the reference's algorithm, re-created from its description.

Option ``algorithm``: "scan" lists the subdirectories, and opens each file when it is needed. "reference" loads a
compressed pickle for each subdirectory, compares it with a listing, and keeps all files in one dictionary. "reference
files" keeps the paths alone, and opens each file when it is needed.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.job import Job
from benchmarks.peers.small_file_reader import SmallFileReader
from benchmarks.peers.small_images import count_files, find_files, find_reference, list_folders


class PlainFiles(SmallFileReader):
    """Files that are opened one by one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = {entry.name: entry.path for folder in list_folders(root) for entry in os.scandir(folder)}

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        with open(self._paths[name], "rb", 0) as file:
            return file.read()

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names."""
        paths, total = self._paths, 0
        for name in names:
            with open(paths[name], "rb", 0) as file:
                total += len(file.read())
        return total

    def scan(self) -> int:
        """Read all files in the order of the listing."""
        total = 0
        for folder in list_folders(self._root):
            for entry in os.scandir(folder):
                with open(entry.path, "rb", 0) as file:
                    total += len(file.read())
        return total


class ReferenceDirectory(SmallFileReader):
    """The reference's algorithm, re-created from its description."""

    def __init__(self, root: Path) -> None:
        self._files: dict[str, tuple[str, bytes]] = {}
        for folder in list_folders(root):
            self._add_folder(folder, Path(f"{folder}.vdd"))

    def _add_folder(self, folder: str, pack: Path) -> None:
        members = pickle.loads(zlib.decompress(pack.read_bytes())) if pack.exists() else {}
        names = set(os.listdir(folder))
        for name in members.keys() - names:
            del members[name]
        for name in names - members.keys():
            members[name] = Path(folder, name).read_bytes()
        self._files.update((name, (os.path.join(folder, name), data)) for name, data in members.items())

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return self._files[name][1]

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names."""
        files, total = self._files, 0
        for name in names:
            total += len(files[name][1])
        return total

    def scan(self) -> int:
        """Read all files in the order of the dictionary."""
        total = 0
        for _, data in self._files.values():
            total += len(data)
        return total


def open_peer(job: Job) -> SmallFileReader:
    """Open this contender."""
    algorithm = job.options["algorithm"]
    if algorithm == "reference":
        return ReferenceDirectory(find_reference(count_files(job)))
    return PlainFiles((find_files if algorithm == "scan" else find_reference)(count_files(job)))
