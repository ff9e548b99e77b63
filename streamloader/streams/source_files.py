"""Media files of a dataset: the table of their streams, and opening the version that was indexed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from streamloader.media.video.files import file_version, make_changed_error
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.registry import split_address
from streamloader.stream_table import StreamTable
from streamloader.streams.base import PreparedStream, SourceSizes, Stream
from streamloader.values import Array, ObjectInfo, StreamInfo

if TYPE_CHECKING:
    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.stores.addresses import FileKeys, SourceFile

__all__ = ["PreparedFile", "build_media_table", "measure_sources", "resolve_media"]


def build_media_table(
    keys: FileKeys,
    files: Sequence[SourceFile],
    steps: Array,
    counts: Array,
    versions: Array,
    *,
    count_name: str,
    facts: Mapping[str, Array] | None = None,
) -> StreamTable:
    """Return the streams of files, with the data needed to open them.

    Args:
        keys: Keys of the files.
        files: Files and objects.
        steps: Number of steps of each stream.
        counts: Number of frames or samples of each file, by which its index is recognized.
        versions: (size in bytes, modification time in ns) of each local file, int64 (n, 2).
        count_name: Name of the column of `counts`.
        facts: Further columns of numbers, by name. Defaults to none.
    """
    is_local = [file.info is None for file in files]
    counts, sizes, times = (np.ascontiguousarray(column) for column in (counts, versions[:, 0], versions[:, 1]))
    if all(is_local):
        columns: dict[str, Any] = {"path": keys.names, "bytes": sizes, "modified": times, count_name: counts}
        columns |= facts or {}
        return StreamTable(keys.keys, steps, columns, keys.identities)
    local_columns = keys.names, sizes.tolist(), times.tolist(), counts.tolist()
    extras = [
        {"path": name, "bytes": size, "modified": time, count_name: count}
        if file.info is None
        else {
            "address": name,
            "size": file.info.size,
            "version": file.info.version,
            "modified": file.info.modified,
            count_name: count,
        }
        for file, name, size, time, count in zip(files, *local_columns, strict=True)
    ]
    for name, column in (facts or {}).items():
        for extra, value in zip(extras, column.tolist(), strict=True):
            extra[name] = value
    if any(is_local):
        infos = [StreamInfo(*each) for each in zip(keys.keys, steps.tolist(), extras, strict=True)]
        return StreamTable.from_infos(infos, keys.identities)
    columns = {column: [extra[column] for extra in extras] for column in extras[0]}
    return StreamTable(keys.keys, steps, columns, keys.identities)


def measure_sources(streams: StreamTable) -> SourceSizes:
    """Return the sizes of the files of :func:`build_media_table`, which are those of whole files."""
    local_sizes = streams.extra_integers("bytes")
    remote = local_sizes < 0
    return SourceSizes(np.where(remote, streams.extra_integers("size"), local_sizes), remote)


def resolve_media(
    info: StreamInfo, secret_addresses: Mapping[str, str], storage_options: Mapping[str, Any] | None
) -> tuple[Video, tuple[int, int] | None]:
    """Return the file of a stream, and its version if it is local, if it is still the one that was indexed.

    Args:
        info: Stream, from :func:`build_media_table`.
        secret_addresses: Addresses by key, where the address contains secrets.
        storage_options: Keyword arguments for opening the stores, or None.

    Raises:
        CorruptStream: If the file was changed.
        StoreError: If its store fails.
    """
    from streamloader.media.video.remote import RemoteVideo

    extra = info.extra
    if "path" in extra:
        path = extra["path"]
        version = file_version(path)
        if version != (extra["bytes"], extra["modified"]):
            raise make_changed_error(path, version[0], extra["bytes"])
        return path, version
    address = secret_addresses.get(info.key, extra["address"])
    path = split_address(address)[1]
    indexed = ObjectInfo(path, extra["size"], extra["version"], extra["modified"])
    if indexed.version is None:  # without a version, reading does not detect a changed object
        with open_shared_store(address, storage_options)[0] as store:
            current = store.head(path)
        if (current.size, current.modified) != (indexed.size, indexed.modified):
            raise make_changed_error(extra["address"], current.size, indexed.size)
    return RemoteVideo(address, indexed, storage_options), None


class PreparedFile(PreparedStream):
    """A stream of a file in a store whose first bytes are being fetched.

    Args:
        open_with: Function that opens the stream with a random generator and an open file, or None.
        file: Open file.
    """

    def __init__(
        self, open_with: Callable[[np.random.Generator, VideoFile | None], Awaitable[Stream]], file: VideoFile
    ) -> None:
        self._open_with = open_with
        self._file = file

    @property
    @override
    def ready(self) -> bool:  # type: ignore[override]
        return self._file.remote.is_idle

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        if self._file.remote.is_healthy:
            return await self._open_with(rng, self._file)
        self._file.close()  # a request failed: try again, the cause may be gone
        return await self._open_with(rng, None)

    @override
    def release(self) -> None:
        self._file.close()
