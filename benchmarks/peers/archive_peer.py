"""streamloader's archive, of one video, from the local disk or from an OpenSSH on loopback.

The archive is made once, from the clip, with the settings that it has by default, and kept beside the clips.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clips import cache
from benchmarks.harness import ROOT
from benchmarks.job import Job

Array = np.ndarray[Any, Any]
NO_CACHE = {"cache_limit": 0}  # no decoded frame and no byte is kept for later; memory of results is used again


def archive_of(clip: str) -> Path:
    """Return the folder of the archive that holds `clip`, making it if it is missing."""
    import streamloader as sl
    from streamloader.archive.archive import Archive
    from streamloader.archive.catalog.base import SCHEMA
    from streamloader.archive.ingest.naming import FORMAT

    folder = cache() / f"archive-{sl.__version__}-{SCHEMA}-{FORMAT}" / Path(clip).parent.name / Path(clip).stem
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with Archive.create(str(folder)) as archive:
            archive.add(clip)
        done.touch()
    return folder


class ArchiveReader:
    """An archive at work."""

    def __init__(self, job: Job) -> None:
        from streamloader.archive.archive import open_archive

        options = dict(job.options)
        folder = archive_of(job.paths[0])
        self._stack = contextlib.ExitStack()
        if options.pop("ssh", False):
            sys.path.insert(0, str(ROOT / "tests"))
            from servers.sshd import sshd

            server = self._stack.enter_context(sshd())
            options |= {"places": {0: f"{server.url}{folder}"}, "storage_options": server.options()}
        begin = time.perf_counter()
        self._archive = self._stack.enter_context(open_archive(folder, **options))
        self.opened = time.perf_counter() - begin

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self._archive)

    def get(self, numbers: Sequence[int]) -> Array:
        """Return these frames."""
        if len(numbers) == 1:
            return self._archive[numbers[0]].numpy()[None]
        which = slice(numbers.start, numbers.stop) if isinstance(numbers, range) else list(numbers)
        return self._archive[which].numpy()

    def scan(self, count: int, batch: int) -> Iterator[Array]:
        """Yield the first frames, slice by slice."""
        for start in range(0, count, batch):
            yield self._archive[start : min(start + batch, count)].numpy()

    def close(self) -> None:
        """Close the archive and end the server."""
        self._stack.close()


def open_peer(job: Job) -> ArchiveReader:
    """Open the contender."""
    return ArchiveReader(job)
