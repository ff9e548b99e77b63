"""streamloader's archive of one video, on the local disk or on an OpenSSH server on loopback.

The archive is created once from the clip, with default settings, and stored next to the clips.
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

from benchmarks.clips import cache_folder
from benchmarks.harness import ROOT
from benchmarks.job import Job

Array = np.ndarray[Any, Any]
NO_CACHE = {"cache_limit": 0}  # keeps no decoded frames and no bytes; result buffers are still reused


def ensure_archive(clip: str) -> Path:
    """Return the folder of the archive of `clip`, which is created if it is missing."""
    import streamloader as sl
    from streamloader.archive.archive import Archive
    from streamloader.archive.catalog.base import SCHEMA_VERSION
    from streamloader.archive.ingest.naming import CHUNK_FORMAT_VERSION

    folder = (
        cache_folder()
        / f"archive-{sl.__version__}-{SCHEMA_VERSION}-{CHUNK_FORMAT_VERSION}"
        / Path(clip).parent.name
        / Path(clip).stem
    )
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
        folder = ensure_archive(job.paths[0])
        self._stack = contextlib.ExitStack()
        if options.pop("ssh", False):
            sys.path.insert(0, str(ROOT / "tests"))
            from servers.sshd import sshd

            server = self._stack.enter_context(sshd())
            options |= {"places": {0: f"{server.url}{folder}"}, "storage_options": server.options()}
        start = time.perf_counter()
        self._archive = self._stack.enter_context(open_archive(folder, **options))
        self.opened = time.perf_counter() - start

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._archive)

    def get(self, numbers: Sequence[int]) -> Array:
        """Return the frames with these numbers."""
        if len(numbers) == 1:
            return self._archive[numbers[0]].numpy()[None]
        which = slice(numbers.start, numbers.stop) if isinstance(numbers, range) else list(numbers)
        return self._archive[which].numpy()

    def scan(self, count: int, batch: int) -> Iterator[Array]:
        """Yield the first `count` frames in slices of `batch`."""
        for start in range(0, count, batch):
            yield self._archive[start : min(start + batch, count)].numpy()

    def close(self) -> None:
        """Close the archive and stop the server."""
        self._stack.close()


def open_peer(job: Job) -> ArchiveReader:
    """Open this contender."""
    return ArchiveReader(job)
