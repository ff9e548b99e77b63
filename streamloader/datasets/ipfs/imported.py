"""Read data sets that were exported to IPFS: any item by number, without reading the others."""

from __future__ import annotations

import itertools
import json
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from streamloader.common.count_display import open_count_display
from streamloader.common.lru import LruCache
from streamloader.common.printable import make_printable
from streamloader.datasets.ipfs.dag_writer import LEAF_BYTES
from streamloader.datasets.ipfs.encoding import decode_item
from streamloader.datasets.ipfs.legacy import decode_legacy_item, scan_legacy_shard
from streamloader.errors import CorruptSample, CorruptShard, DatasetError, DatasetNotFound, NotFound, StoreError
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import SharedStore, open_shared_store
from streamloader.stores.ipfs.cid import Cid
from streamloader.torch_datasets import Dataset
from streamloader.values import Array, ByteRange

__all__ = ["ImportedIPFSDataset", "open_export"]

_MAX_METADATA_BYTES: Final = 64 << 20
_MAX_ITEMS: Final = 1 << 40
_MAX_SHARD_BYTES: Final = 1 << 50
_PIECE_BYTES: Final = LEAF_BYTES  # of exports of version 2.0, so that a piece is one block
_DIRECT_PIECES: Final = 32  # an item of more pieces is read at once, and not cached
_MAX_ITEMS_AHEAD: Final = 64
_MAX_BYTES_AHEAD: Final = 16 << 20
_SCANS_AT_A_TIME: Final = 16
_SPAN_CACHE_BYTES: Final = 256 << 20
_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {"1.0": decode_legacy_item, "2.0": decode_item}


@dataclass(frozen=True, eq=False)
class _ExportLayout:
    """What the metadata of an export says.

    Attributes:
        address: Address of the export.
        version: Version of its format.
        shards: CID of each shard.
        counts: Number of items of each shard, int64 (shards,).
        sizes: Size of each shard in bytes up to the end of its last item, and with the table of items, int64 (shards,).
        spans: Offset and size of each item of each shard, int64 (n, 2). Empty for version 2.0, whose shards have them.
        firsts: Number of the first item of each shard, and after the last one the number of items, int64 (shards + 1,).
    """

    address: str
    version: str
    shards: tuple[str, ...]
    counts: Array
    sizes: Array
    spans: tuple[Array, ...] = ()
    firsts: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "firsts", np.concatenate(([0], np.cumsum(self.counts))).astype(np.int64))


def open_export(address: str, options: Mapping[str, Any], *, progress: bool = True) -> ImportedIPFSDataset:
    """Read the metadata of an export.

    The arguments and errors are those of :meth:`IPFSDatasetExporter.import_from_ipfs`.

    Of an export of version 1.0, the headers of all members are read too: nothing else says how many items it has.
    """
    shared, path = open_shared_store(address, options)
    with shared:
        layout = _read_layout(shared, path, progress=progress)
    return ImportedIPFSDataset(layout, options)


class ImportedIPFSDataset(Dataset[Any]):
    """An exported data set, map-style. Items are read by span when they are used, verified by CID, and decoded.

    It can be pickled, and used in forked and spawned workers: each process opens its own connections. A DataLoader
    fetches the items of a batch concurrently (``__getitems__``), and iterating reads ahead.

    Attributes:
        address: Address of the data set.
        version: Version of its format, "1.0" or "2.0".

    Args:
        layout: Layout that the metadata describes.
        options: Options of the store.
        cache_bytes: Maximum size of the cache for pieces of shards, in each process. Defaults to 128 MiB.
    """

    def __init__(self, layout: _ExportLayout, options: Mapping[str, Any], *, cache_bytes: int = 128 << 20) -> None:
        self.address = layout.address
        self.version = layout.version
        self._layout = layout
        self._options = dict(options)
        self._cache_bytes = cache_bytes
        self._open: _ShardReader | None = None

    def __len__(self) -> int:
        """Return the number of items."""
        return int(self._layout.firsts[-1])

    def __getitem__(self, index: int) -> Any:
        """Return one item. Negative numbers count from the end.

        Raises:
            IndexError: If there is no such item.
            CorruptShard: If a shard is not as the metadata says.
            CorruptSample: If the item cannot be decoded.
            StoreError: If it cannot be read.
        """
        return next(self._read([index]))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several items, which are fetched concurrently. Errors are those of single items."""
        return list(self._read(indices))

    def __iter__(self) -> Iterator[Any]:
        """Yield all items in order, and read ahead."""
        return self._read(range(len(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {redact_address(self.address)}: {len(self):,} items>"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without connections and cached bytes."""
        return self.__dict__ | {"_open": None}

    def close(self) -> None:
        """Release connections and cached bytes. A later use opens them again."""
        reader, self._open = self._open, None
        if reader is not None:
            reader.close()

    def _read(self, indices: Iterable[int]) -> Iterator[Any]:
        reader = self._get_reader()
        decode = _DECODERS[self.version]
        for number, data in reader.read_items(self._normalize(index) for index in indices):
            try:
                yield decode(data)
            except CorruptSample as error:
                shard, row = reader.locate(number)
                raise CorruptSample(
                    f"item {number} of {redact_address(self.address)} (shard {shard}, item {row} in it): "
                    f"{error.message}",
                    address=f"ipfs://{self._layout.shards[shard]}",
                    offset=int(reader.get_spans(shard)[row, 0]) + (error.offset or 0),
                    dataset=self.address,
                    shard=shard,
                    member=row,
                ) from None

    def _normalize(self, index: int) -> int:
        number, length = operator.index(index), len(self)
        if not -length <= number < length:
            raise IndexError(f"item {number} of {length:,} items")
        return number % length

    def _get_reader(self) -> _ShardReader:
        """Return the reader of this process. That of a parent process is left alone."""
        reader = self._open
        if reader is None or reader.pid != os.getpid():
            reader = self._open = _ShardReader(self._layout, self._options, self._cache_bytes)
        return reader


class _ShardReader:
    """Reads bytes of shards in pieces, many at the same time, and caches pieces. It belongs to one process.

    All methods are thread-safe: threads that want the same piece at the same time may fetch it twice.
    """

    def __init__(self, layout: _ExportLayout, options: Mapping[str, Any], cache_bytes: int) -> None:
        self.pid = os.getpid()
        self._layout = layout
        self._shared: SharedStore = open_shared_store("ipfs://", options)[0]
        self._pieces: LruCache[tuple[int, int], Future[bytes]] = LruCache(1 << 30, cache_bytes)
        self._spans: LruCache[int, Array] = LruCache(1 << 30, _SPAN_CACHE_BYTES)

    def close(self) -> None:
        self._pieces.clear()
        self._shared.close()

    def locate(self, number: int) -> tuple[int, int]:
        """Return the shard of an item, and its number in it."""
        shard = int(np.searchsorted(self._layout.firsts, number, "right")) - 1
        return shard, number - int(self._layout.firsts[shard])

    def read_items(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of each item. The following ones are requested ahead."""
        remaining = iter(numbers)
        ahead: deque[_PendingItem] = deque()
        bytes_ahead = 0
        try:
            while True:
                while len(ahead) < _MAX_ITEMS_AHEAD and (not ahead or bytes_ahead < _MAX_BYTES_AHEAD):
                    number = next(remaining, None)
                    if number is None:
                        break
                    ahead.append(self._request(number))
                    bytes_ahead += ahead[-1].size
                if not ahead:
                    return
                item = ahead.popleft()
                bytes_ahead -= item.size
                yield item.number, self._join(item)
        finally:
            for item in ahead:
                for key, piece in item.pieces:
                    if key is None:
                        piece.cancel()

    def get_spans(self, shard: int) -> Array:
        """Return offset and size of each item of a shard, int64 (n, 2)."""
        if self._layout.spans:
            return self._layout.spans[shard]
        spans = self._spans.get(shard)
        if spans is None:
            spans = self._read_spans(shard)
            self._spans.put(shard, spans, spans.nbytes)
        return spans

    def _read_spans(self, shard: int) -> Array:
        count, size = int(self._layout.counts[shard]), int(self._layout.sizes[shard])
        end = size - 8 * count
        data = self._shared.read(self._layout.shards[shard], ByteRange(end, size))
        stored = np.frombuffer(data, "<u8")
        ends = np.concatenate((np.zeros(1, "<u8"), stored))
        if stored.size and (int(stored[-1]) != end or (ends[1:] < ends[:-1]).any()):
            raise CorruptShard(
                f"shard {shard} of {redact_address(self._layout.address)}: its table of items is malformed",
                address=f"ipfs://{self._layout.shards[shard]}",
                offset=end,
                dataset=self._layout.address,
                shard=shard,
            )
        offsets = ends.astype(np.int64)
        return np.stack((offsets[:-1], np.diff(offsets)), axis=1)

    def _request(self, number: int) -> _PendingItem:
        shard, row = self.locate(number)
        start, size = map(int, self.get_spans(shard)[row])
        first, last = start // _PIECE_BYTES, (start + size - 1) // _PIECE_BYTES
        if not size:
            return _PendingItem(number, 0, 0, [])
        if last - first >= _DIRECT_PIECES:
            return _PendingItem(number, 0, size, [(None, self._submit(shard, start, start + size))])
        pieces: list[tuple[tuple[int, int] | None, Future[bytes]]] = [
            ((shard, piece), self._request_piece(shard, piece)) for piece in range(first, last + 1)
        ]
        return _PendingItem(number, start - first * _PIECE_BYTES, size, pieces)

    def _request_piece(self, shard: int, piece: int) -> Future[bytes]:
        future = self._pieces.get((shard, piece))
        if future is None or (future.done() and (future.cancelled() or future.exception() is not None)):
            start = piece * _PIECE_BYTES
            end = min(start + _PIECE_BYTES, int(self._layout.sizes[shard]))
            future = self._submit(shard, start, end)
            self._pieces.put((shard, piece), future, end - start)
        return future

    def _submit(self, shard: int, start: int, end: int) -> Future[bytes]:
        return self._shared.submit(self._shared.store.read(self._layout.shards[shard], ByteRange(start, end)))

    def _join(self, item: _PendingItem) -> bytes:
        parts: list[bytes] = []
        for key, piece in item.pieces:
            try:
                parts.append(piece.result())
            except BaseException:
                if key is not None:
                    self._pieces.drop([key])  # it is requested again at the next use
                raise
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data if len(data) == item.size else data[item.start : item.start + item.size]


@dataclass(frozen=True, slots=True)
class _PendingItem:
    """An item whose bytes were requested.

    Attributes:
        number: Number of the item in the data set.
        start: Offset of the item in its first piece.
        size: Size of the item in bytes.
        pieces: The pieces that contain it, in order, with their keys in the cache. None for what is not cached.
    """

    number: int
    start: int
    size: int
    pieces: list[tuple[tuple[int, int] | None, Future[bytes]]]


# --- metadata --------------------------------------------------------------------------------------------------------


def _read_layout(shared: SharedStore, path: str, *, progress: bool) -> _ExportLayout:
    address = shared.store.address(path)
    metadata = _parse_metadata(_read_metadata(shared, path, address), address)
    version = metadata.get("version")
    shards = metadata.get("list")
    if not isinstance(version, str) or version not in _DECODERS:
        raise DatasetError(
            f"{address} is a data set of version {make_printable(repr(version))[:40]}, but this streamloader reads "
            f"{', '.join(_DECODERS)}: update it",
            dataset=address,
        )
    if not isinstance(shards, list) or not all(_is_cid(shard) for shard in shards):
        raise _make_metadata_error(address, "its list of shards is missing, or contains something other than CIDs")
    if version == "1.0":
        spans = _scan_legacy_shards(shared, shards, progress=progress)
        counts = np.asarray([len(each) for each in spans], np.int64)
        sizes = np.asarray([each.sum(axis=1).max(initial=0) for each in spans], np.int64)
        return _ExportLayout(address, version, tuple(shards), counts, sizes, tuple(spans))
    if metadata.get("encoding") != "SI1":
        encoding = make_printable(repr(metadata.get("encoding")))[:40]
        raise DatasetError(
            f"{address} has items in the unknown encoding {encoding}: update streamloader", dataset=address
        )
    counts = _parse_numbers(metadata, "items", len(shards), _MAX_ITEMS, address)
    sizes = _parse_numbers(metadata, "bytes", len(shards), _MAX_SHARD_BYTES, address)
    if (counts * 8 > sizes).any() or int(counts.sum(dtype=object) if len(counts) else 0) > _MAX_ITEMS:
        raise _make_metadata_error(address, "its shards are too small for their items")
    return _ExportLayout(address, version, tuple(shards), counts, sizes)


def _read_metadata(shared: SharedStore, path: str, address: str) -> bytes:
    """Return the metadata: the file in the directory, or, of version 1.0, the file itself."""
    try:
        try:
            return _read_small_file(shared, f"{path}/metadata.json", address)
        except NotFound:
            return _read_small_file(shared, path, address)
    except NotFound as error:
        raise DatasetNotFound(
            f"{address} is not an exported data set, or it is not available: {error.message}", address=address
        ) from error


def _read_small_file(shared: SharedStore, path: str, address: str) -> bytes:
    size = shared.head(path).size
    if size is not None and size > _MAX_METADATA_BYTES:
        raise DatasetNotFound(f"{address} is not an exported data set: it is a file of {size:,} bytes", address=address)
    return shared.read(path)


def _parse_metadata(data: bytes, address: str) -> dict[str, Any]:
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("identifier") != "ipfs-dataset":
        raise DatasetNotFound(f"{address} is not an exported data set: it has no such metadata", address=address)
    return metadata


def _parse_numbers(metadata: Mapping[str, Any], name: str, count: int, maximum: int, address: str) -> Array:
    values = metadata.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise _make_metadata_error(address, f"{name!r} does not have one number for each shard")
    if not all(type(value) is int and 0 < value <= maximum for value in values):
        raise _make_metadata_error(address, f"{name!r} contains something other than the sizes of shards")
    return np.asarray(values, np.int64)


def _is_cid(text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        Cid.parse(text)
    except StoreError:
        return False
    return True


def _make_metadata_error(address: str, detail: str) -> CorruptShard:
    return CorruptShard(f"{address} has malformed metadata: {detail}", address=address, dataset=address)


def _scan_legacy_shards(shared: SharedStore, shards: Sequence[str], *, progress: bool) -> list[Array]:
    """Return the spans of the items of each shard, of which several are read at the same time."""
    spans: list[Array] = []
    pending: deque[Future[Array]] = deque()
    remaining = iter(shards)
    try:
        with open_count_display("reading tar headers") as show:
            while True:
                for shard in itertools.islice(remaining, _SCANS_AT_A_TIME - len(pending)):
                    pending.append(shared.submit(scan_legacy_shard(shared.store, shard)))
                if not pending:
                    return spans
                spans.append(pending.popleft().result())
                if progress:
                    show(len(spans), len(shards))
    finally:
        for future in pending:
            future.cancel()
