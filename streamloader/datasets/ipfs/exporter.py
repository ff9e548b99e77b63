"""Export data sets to IPFS, and import them again.

Version "2.0" is a directory::

    metadata.json         {"identifier": "ipfs-dataset", "version": "2.0", "encoding": "SI1",
                           "list": [CID of each shard], "items": [...], "bytes": [...]}
    0000/0000000.items    shards, 1,000 in each directory
    0000/0000001.items
    ...

A shard is the concatenation of its items (see :mod:`streamloader.datasets.ipfs.encoding`), followed by the offset of
the end of each item as uint64, little-endian. "items" and "bytes" are the number of items and the size of each shard.
The directory of the export links to all shards, so that its pin holds all of them.

Version "1.0" is that of the ``ipfs-dataset`` package: one JSON file with "list" alone, and shards that are tar files,
see :mod:`streamloader.datasets.ipfs.legacy`. It is only read.
"""

from __future__ import annotations

import contextlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final, Self

import numpy as np

from streamloader.arguments import check_options
from streamloader.common.count_display import open_count_display
from streamloader.datasets.ipfs.adding import BlockUploader
from streamloader.datasets.ipfs.dag_writer import DagFileWriter, DagRoot, pack_car, write_directory
from streamloader.datasets.ipfs.encoding import encode_item
from streamloader.datasets.ipfs.imported import ImportedIPFSDataset, open_export
from streamloader.datasets.ipfs.objects import choose_options, parse_ipfs_url
from streamloader.errors import ConfigError, StreamloaderError
from streamloader.stores.io_thread import SharedResource, get_shared_resource, options_key
from streamloader.stores.ipfs.cid import Cid

__all__ = ["IPFSDatasetExporter"]

_MAX_SHARDS: Final = 100_000
_SHARDS_PER_DIRECTORY: Final = 1000
_UPLOAD_BYTES: Final = 8 << 20
_UPLOAD_OPTIONS: Final = ("token", "timeouts", "limits", "retry")
_log: Final = logging.getLogger("streamloader")


class IPFSDatasetExporter:
    """Write data sets to an IPFS node, and read exported ones from nodes and gateways.

    The same data set gives the same CID on every node. Its items may consist of everything that
    :func:`streamloader.datasets.ipfs.encoding.encode_item` takes. Memory does not depend on the number of items: an
    export holds one item, a few uploads of 8 MiB, and 8 bytes for each item of the current shard.

    An export is complete once its CID is returned: the directory with the metadata is written last, and then pinned. If
    it is interrupted, run it again; blocks that the node has are not stored twice.

    Args:
        ipfs_api_address: RPC API of a node, as URL or multiaddr (``/ip4/127.0.0.1/tcp/5001``). Defaults to $IPFS_API,
            or to the node of this user. Imports by the URL of a gateway need none.
        shard_bytes: Size of a shard in bytes, from which on the next one starts. Defaults to 256 MiB.
        progress: Whether to show a progress bar on a terminal.
        storage_options: Further options of the store, see :class:`streamloader.stores.ipfs.store.IpfsStore`.

    Raises:
        ConfigError: If an argument is invalid.
    """

    def __init__(
        self,
        ipfs_api_address: str | None = None,
        shard_bytes: int = 256 << 20,
        *,
        progress: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if shard_bytes < 1:
            raise ConfigError(f"shard_bytes={shard_bytes!r}: must be 1 or more")
        self.ipfs_api_address = ipfs_api_address
        self.shard_bytes = shard_bytes
        self._progress = progress
        self._options = check_options("storage_options", storage_options) or {}

    def export_to_ipfs(self, dataset: Any) -> str:
        """Write all items of a data set to the node, pin them, and return the CID of the export.

        Args:
            dataset: Map-style data set, or any iterable.

        Raises:
            ConfigError: If an item cannot be encoded, or if there are too many shards.
            StoreError: If the node cannot be reached or does not take the data.
        """
        options = {name: value for name, value in self._options.items() if name in _UPLOAD_OPTIONS}
        rpc = self.ipfs_api_address or self._options.get("rpc")
        key = "ipfs-uploader", rpc, options_key(options)
        with (
            get_shared_resource(key, lambda: BlockUploader(rpc, **options)) as uploader,
            _ExportWriter(uploader, self.shard_bytes) as writer,
            self._open_display() as show,
        ):
            total = len(dataset) if hasattr(dataset, "__len__") else 0
            for number, item in enumerate(_iterate_items(dataset), 1):
                writer.add(_encode(item, number - 1))
                show(number, max(total, number))
            return str(writer.finish())

    def import_from_ipfs(self, url: str) -> ImportedIPFSDataset:
        """Return an exported data set. Its items are read when they are used.

        Args:
            url: CID, ``ipfs://CID``, or the URL that a gateway has for it (``https://host/ipfs/CID``).

        Raises:
            ConfigError: If the address names nothing on IPFS.
            DatasetNotFound: If it is not that of an exported data set.
            DatasetError: If the data set is malformed, or of a newer version.
            StoreError: If the data cannot be read.
        """
        location = parse_ipfs_url(url)
        options = choose_options(location, self.ipfs_api_address, self._options)
        return open_export(f"{location.scheme}://{location.path}", options, progress=self._progress)

    @contextlib.contextmanager
    def _open_display(self) -> Iterator[Callable[[int, int], None]]:
        if not self._progress:
            yield lambda done, total: None
            return
        with open_count_display("exporting to IPFS") as show:
            yield show


def _iterate_items(dataset: Any) -> Iterator[Any]:
    """Yield all items. A map-style data set need not raise IndexError after the last one."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[number] for number in range(len(dataset)))
    return iter(dataset)


def _encode(item: Any, number: int) -> bytes:
    try:
        return encode_item(item)
    except ConfigError as error:
        raise ConfigError(f"item {number} of the data set: {error.message}") from None


class _ExportWriter:
    """Turns encoded items into shards, and stores their blocks on a node while the next ones are made.

    A shard is pinned when it is complete, so that the node does not remove it before the end, and unpinned when the pin
    of the whole export holds it, or when the export fails.
    """

    def __init__(self, uploader: SharedResource[BlockUploader], shard_bytes: int) -> None:
        self._uploader = uploader
        self._shard_bytes = shard_bytes
        self._blocks: list[tuple[Cid, bytes]] = []
        self._block_bytes = 0
        self._upload: Future[None] | None = None
        self._shards: list[DagRoot] = []
        self._counts: list[int] = []
        self._ends = array("Q")
        self._file = DagFileWriter(self._add_block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.cancel()
        for shard in self._shards:
            try:
                self._uploader.call(self._uploader.resource.unpin(shard.cid))
            except StreamloaderError as error:
                _log.warning("a shard of an export stays pinned, ipfs pin rm %s removes it: %s", shard.cid, str(error))
                return

    def add(self, item: bytes) -> None:
        """Append an encoded item."""
        self._file.write(item)
        self._ends.append(self._file.size)
        if self._file.size >= self._shard_bytes:
            self._finish_shard()

    def finish(self) -> Cid:
        """Complete and pin the export, and return its CID."""
        if len(self._ends):
            self._finish_shard()
        entries: dict[str, DagRoot] = {}
        for start in range(0, len(self._shards), _SHARDS_PER_DIRECTORY):
            shards = enumerate(self._shards[start : start + _SHARDS_PER_DIRECTORY], start)
            files = {f"{number:07}.items": shard for number, shard in shards}
            entries[f"{start // _SHARDS_PER_DIRECTORY:04}"] = write_directory(files, self._add_block)
        metadata = {
            "identifier": "ipfs-dataset",
            "version": "2.0",
            "encoding": "SI1",
            "list": [str(shard.cid) for shard in self._shards],
            "items": self._counts,
            "bytes": [shard.size for shard in self._shards],
        }
        file = DagFileWriter(self._add_block)
        file.write(json.dumps(metadata).encode())
        entries["metadata.json"] = file.finish()
        root = write_directory(entries, self._add_block)
        self._start_upload(root)
        self._wait_for_upload()
        return root.cid

    def _finish_shard(self) -> None:
        if len(self._shards) == _MAX_SHARDS:
            raise ConfigError(f"the export has more than {_MAX_SHARDS:,} shards: raise shard_bytes=")
        self._file.write(np.asarray(self._ends, "<u8").tobytes())
        shard = self._file.finish()
        self._counts.append(len(self._ends))
        self._shards.append(shard)
        self._start_upload(shard)
        self._ends, self._file = array("Q"), DagFileWriter(self._add_block)

    def _add_block(self, cid: Cid, block: bytes) -> None:
        self._blocks.append((cid, block))
        self._block_bytes += len(block)
        if self._block_bytes >= _UPLOAD_BYTES:
            self._start_upload()

    def _start_upload(self, pinned: DagRoot | None = None) -> None:
        """Store the collected blocks, once the previous ones are stored.

        Args:
            pinned: Root to pin. Its own block is among the collected ones or already stored.
        """
        self._wait_for_upload()
        blocks, self._blocks, self._block_bytes = self._blocks, [], 0
        root = blocks[0][0] if pinned is None else pinned.cid
        pinned_bytes = None if pinned is None else pinned.total_bytes
        car = pack_car(root, blocks)
        self._upload = self._uploader.submit(self._uploader.resource.store(car, root, pinned_bytes=pinned_bytes))

    def _wait_for_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is None:
            return
        try:
            upload.result()
        except BaseException:
            upload.cancel()
            raise
