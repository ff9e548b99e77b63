"""Videos and texts from a slow web server: the same loader and decoder with different readers of the bytes.

Options: ``texts``: folder of the texts to stream instead of videos. ``latency``: seconds per request, or missing for
local files. ``reader``: ``ahead`` for the unmodified
streamloader, ``plain`` for one blocking request per read of FFmpeg, or ``fsspec`` for fsspec's HTTP file with its
default cache. ``buffer``: bytes per read of FFmpeg.
"""

from __future__ import annotations

import http.client
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import streamloader as sl
from benchmarks.job import Job
from benchmarks.peers.slow_server import SlowServer
from streamloader.media.video import remote, source
from streamloader.streams.base import Stream
from streamloader.values import ObjectInfo, StreamInfo


class PlainFile:
    """A file with one request per read, on a persistent connection."""

    def __init__(
        self, address: str, info: ObjectInfo, options: Mapping[str, Any] | None = None, initial_spans: Any = ()
    ) -> None:
        del options, initial_spans
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        self._path, self._position, self.size = parts.path, 0, info.size or 0

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def read(self, size: int) -> bytes:
        """Request the bytes and wait for them."""
        end = min(self._position + size, self.size)
        if end <= self._position:
            return b""
        self._connection.request("GET", self._path, headers={"Range": f"bytes={self._position}-{end - 1}"})
        data = self._connection.getresponse().read()
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _fsspec_file(
    address: str, info: ObjectInfo, options: Mapping[str, Any] | None = None, initial_spans: Any = ()
) -> Any:
    import fsspec

    del options, initial_spans
    return fsspec.filesystem("http").open(address, size=info.size)


_READERS = {"plain": PlainFile, "fsspec": _fsspec_file}


class OtherVideos(sl.VideoStreams):
    """Videos whose bytes come from another reader, in any process that opens them."""

    def __init__(self, *args: Any, reader: str, buffer: int, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._reader, self._buffer = reader, buffer

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open a video with the other reader."""
        remote.RemoteFile = _READERS[self._reader]  # type: ignore[assignment, misc]
        source.IO_BUFFER_BYTES = self._buffer
        return await super().open(info, rng)

    async def prepare(self, info: StreamInfo) -> None:
        """Prepare nothing, because plain readers do not read ahead."""


class Loader:
    """A MultiStreamer over local files or files of the server. No video was indexed before."""

    def __init__(self, job: Job) -> None:
        self._cache = tempfile.TemporaryDirectory()
        os.environ["STREAMLOADER_CACHE"] = self._cache.name
        paths, options = list(job.paths), job.options
        if "texts" in options:
            paths = sorted(map(str, Path(options["texts"]).iterdir()))
        self._server: SlowServer | None = None
        if "latency" in options:
            self._server = SlowServer(Path(paths[0]).parent, options["latency"])
            paths = [f"{self._server.url}/{Path(path).name}" for path in paths]
        size = job.shape[:2]
        dataset: Any
        if "texts" in options:
            dataset = sl.TextStreams(paths)
        elif options.get("reader", "ahead") == "ahead":
            dataset = sl.VideoStreams(paths, size=size)
        else:
            dataset = OtherVideos(paths, size=size, reader=options["reader"], buffer=options["buffer"])
        self._loader = sl.MultiStreamer(
            dataset, job.batch_size, job.window, num_workers=job.workers, shuffle=False, tail="drop"
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch."""
        del number
        for batch in self._loader:
            yield batch.data, batch.reset

    def close(self) -> None:
        """Stop the workers and the server."""
        self._loader.close()
        if self._server is not None:
            self._server.close()
        self._cache.cleanup()


def open_peer(job: Job) -> Loader:
    """Open this contender."""
    return Loader(job)
