"""streamloader: `VirtualDirectory`, and a bare `MappedPack` with all files.

Options: ``packs``: "none", "each" for a pack for each subdirectory, or "bare" for one pack without a directory.
Defaults to "each". ``directory``: arguments of the `VirtualDirectory`. Defaults to none. ``scan``: "iter" for iterating
over the directory, or "items" for its method of this name. Defaults to "items".
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.job import Job
from benchmarks.peers.small_file_reader import SmallFileReader
from benchmarks.peers.small_images import count_files, find_files, find_pack, find_packs
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.image_managers import PillowDataManager
from streamloader.datasets.directory.virtual_directory import VirtualDirectory


class DirectoryFiles(SmallFileReader):
    """Files of a VirtualDirectory."""

    def __init__(self, job: Job) -> None:
        find = find_files if job.options.get("packs") == "none" else find_packs
        options = job.options.get("directory", {})
        self._is_iterated = job.options.get("scan") == "iter"
        self.directory = VirtualDirectory(find(count_files(job)), PillowDataManager(), **options)
        self.read = self.directory.read
        if find is find_packs and self.directory._contents.is_outdated:  # noqa: SLF001 - nothing else shows it
            raise RuntimeError(f"{self.directory.root} is out of date: delete it")

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names."""
        read, total = self.directory.read, 0
        for name in names:
            total += len(read(name))
        return total

    def scan(self) -> int:
        """Read all files in the order of the directory."""
        total = 0
        if self._is_iterated:
            for _, _, data in self.directory:
                total += len(data)
        else:
            for _, data in self.directory.items():  # noqa: PERF102 - it is no dictionary
                total += len(data)
        return total

    def decode_all(self, names: Sequence[str]) -> None:
        """Load the images with these names."""
        load = self.directory.load
        for name in names:
            load(name)

    def close(self) -> None:
        """Close the directory."""
        self.directory.close()


class PackMembers(SmallFileReader):
    """Members of one pack."""

    def __init__(self, job: Job) -> None:
        self._pack = MappedPack.open(find_pack(count_files(job)))

    def read(self, name: str) -> memoryview:
        """Return a view of a member."""
        return self._pack.view(self._pack.find(name))

    def read_all(self, names: Sequence[str]) -> int:
        """Read the members with these names."""
        find, view, total = self._pack.find, self._pack.view, 0
        for name in names:
            total += len(view(find(name)))
        return total

    def scan(self) -> int:
        """Read all members in the order of their names."""
        total = 0
        for data in self._pack.views():
            total += len(data)
        return total

    def close(self) -> None:
        """Close the pack."""
        self._pack.close()


def open_peer(job: Job) -> SmallFileReader:
    """Open this contender."""
    return PackMembers(job) if job.options.get("packs") == "bare" else DirectoryFiles(job)
