"""webdataset: one tar file of small images, in order. It has no random access."""

from __future__ import annotations

from typing import Any

import webdataset

from benchmarks.job import Job
from benchmarks.peers.small_file_reader import SmallFileReader
from benchmarks.peers.small_images import count_files, find_tar


class WebDatasetMembers(SmallFileReader):
    """Samples of one field."""

    def __init__(self, job: Job) -> None:
        self._path = str(find_tar(count_files(job)))

    def _open(self) -> Any:
        return webdataset.WebDataset(self._path, shardshuffle=False)

    def read(self, name: str) -> bytes:
        """Return the bytes of the first file, whatever its name."""
        del name
        data: bytes = next(iter(self._open()))["png"]
        return data

    def scan(self) -> int:
        """Read all files in the order of the tar file."""
        total = 0
        for sample in self._open():
            total += len(sample["png"])
        return total


def open_peer(job: Job) -> WebDatasetMembers:
    """Open this contender."""
    return WebDatasetMembers(job)
