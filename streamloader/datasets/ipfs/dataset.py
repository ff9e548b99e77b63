"""Map-style data set of files on IPFS: blobs, folders, and members of archives, each read when it is requested."""

from __future__ import annotations

import bisect
import concurrent.futures
import itertools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeAlias

from streamloader.arguments import check_options
from streamloader.common.count_display import open_count_display
from streamloader.common.printable import make_printable
from streamloader.datasets.ipfs.member_table import MemberTable
from streamloader.datasets.ipfs.object_reader import ObjectReader, describe_errors, read_member
from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType, as_objects
from streamloader.datasets.ipfs.skipped import SkippedObject, check_on_error, is_skippable
from streamloader.errors import StreamloaderError
from streamloader.stream_table import StringColumn
from streamloader.torch_datasets import Dataset

__all__ = ["IPFSDataset", "IPFSFiles"]

_PIECE_BYTES: Final = 256 << 10  # the size of blocks by default, which is the least that is transferred
_MAX_CONCURRENT_LISTINGS: Final = 16
_MAX_REQUESTS: Final = 64
_MAX_ADVANCE_READS: Final = 4096
_ARCHIVES: Final = (RemoteFileType.TAR, RemoteFileType.ZIP)

_Index: TypeAlias = "StringColumn | MemberTable | None"  # of a folder, an archive, a single file


class IPFSFiles(Dataset[tuple[str, bytes]]):
    """The samples of objects on IPFS by number. See :class:`IPFSDataset`, which users derive their classes from."""

    def __init__(
        self,
        ipfs_objs: IPFSObject | Iterable[IPFSObject],
        ipfs_api_address: str | None = None,
        *,
        on_error: str = "raise",
        cache_bytes: int = 64 << 20,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._objects = as_objects(ipfs_objs)
        self._ipfs_api_address = ipfs_api_address
        self._on_error = check_on_error(on_error)
        self._cache_bytes = cache_bytes
        self._storage_options = check_options("storage_options", storage_options) or {}
        self.skipped: list[SkippedObject] = []
        self._indexes: list[_Index] | None = None
        self._ends: list[int] = []  # number of samples up to the end of each object
        self._reader: ObjectReader | None = None
        self._advance_reads: dict[int, Future[tuple[str, bytes]]] = {}

    def __len__(self) -> int:
        """Return the number of samples. The first call reads the lists of folders and archives."""
        self._load_indexes()
        return self._ends[-1]

    def __getitem__(self, idx: int) -> tuple[str, bytes]:
        """Return the name and the content of a sample.

        Raises:
            IndexError: If there is no such sample.
            StreamloaderError: If the sample cannot be read. ``details``: object and member.
        """
        number = self._normalize(idx)
        future = self._advance_reads.pop(number, None) if self._owns_reader() else None
        if future is None:
            return self._get_reader().call(self._read(number))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several samples, which are read at the same time. A DataLoader calls this for a batch."""
        reader = self._get_reader()
        numbers = {self._normalize(index) for index in indices[:_MAX_ADVANCE_READS]}
        for number in sorted(numbers - self._advance_reads.keys()):
            self._advance_reads[number] = reader.submit(self._read(number))
        try:
            return [self[index] for index in indices]  # which may be the method of a subclass
        finally:
            for number in numbers:
                if (future := self._advance_reads.pop(number, None)) is not None:
                    future.cancel()

    def name(self, idx: int) -> str:
        """Return the name of a sample without reading its content.

        It is the address of the object for a single file, the address of the file for a folder, and the name within
        the archive for a member.
        """
        return self._name(*self._locate(self._normalize(idx)))

    def close(self) -> None:
        """Release connections and cached pieces. They are opened again by the next access."""
        reader, self._reader = self._reader, None
        self._advance_reads.clear()
        if reader is not None:
            reader.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        return self.__dict__ | {"_reader": None, "_advance_reads": {}}

    # --- samples -----------------------------------------------------------------------------------------------------

    def _normalize(self, idx: int) -> int:
        number, count = operator.index(idx), len(self)
        if not -count <= number < count:
            raise IndexError(f"sample {number} of a data set with {count} samples")
        return number % count

    def _locate(self, number: int) -> tuple[int, int]:
        """Return the number of the object, and the number of the sample in it."""
        place = bisect.bisect_right(self._ends, number)
        return place, number - (self._ends[place - 1] if place else 0)

    def _name(self, place: int, row: int) -> str:
        assert self._indexes is not None
        index, each = self._indexes[place], self._objects[place]
        if index is None:
            return each.url
        return index.names[row] if isinstance(index, MemberTable) else each.name_file(index[row])

    async def _read(self, number: int) -> tuple[str, bytes]:
        place, row = self._locate(number)
        reader = self._get_reader()
        assert self._indexes is not None
        index, name = self._indexes[place], self._name(place, row)
        with describe_errors(self._objects[place], None if index is None else _get_names(index)[row]):
            if isinstance(index, MemberTable):
                container, _ = await reader.open_archive(place)
                return name, await read_member(container, index[row])
            return name, await reader.read(place, "" if index is None else index[row])

    # --- what belongs to this process --------------------------------------------------------------------------------

    def _owns_reader(self) -> bool:
        return self._reader is not None and self._reader.pid == os.getpid()

    def _get_reader(self) -> ObjectReader:
        """Return the reader of this process. That of a parent process is left alone."""
        if self._reader is None or self._reader.pid != os.getpid():
            self._advance_reads = {}
            self._reader = ObjectReader(
                self._objects,
                self._ipfs_api_address,
                self._storage_options,
                piece_bytes=_PIECE_BYTES,
                cache_bytes=self._cache_bytes,
                max_requests=_MAX_REQUESTS,
            )
        return self._reader

    # --- lists of folders and archives -------------------------------------------------------------------------------

    def _load_indexes(self) -> None:
        """Read the lists of all folders and archives, many at the same time, unless this has happened."""
        if self._indexes is not None:
            return
        indexes: list[_Index] = [None] * len(self._objects)
        counts = [1] * len(self._objects)
        failures: dict[int, list[StreamloaderError]] = {}
        for place, result in self._read_lists().items():
            if isinstance(result, StreamloaderError):
                failures[place], counts[place] = [result], 0
                continue
            indexes[place], failures[place] = result
            counts[place] = len(result[0])
        self._report_failures(failures)
        self._ends = list(itertools.accumulate(counts))
        self._indexes = indexes

    def _read_lists(self) -> dict[int, tuple[StringColumn | MemberTable, list[StreamloaderError]] | StreamloaderError]:
        """Return the list of each folder and archive with its bad lines, or the error."""
        places = [
            place for place, each in enumerate(self._objects) if each.file_type in (*_ARCHIVES, RemoteFileType.FOLDER)
        ]
        results: dict[int, Any] = {}
        remaining = iter(places)
        running: dict[Future[Any], int] = {}
        with open_count_display("listing objects on IPFS") as show:
            try:
                while len(results) < len(places):
                    for place in itertools.islice(remaining, _MAX_CONCURRENT_LISTINGS - len(running)):
                        running[self._get_reader().submit(self._list_object(place))] = place
                    done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
                    for future in done:
                        results[running.pop(future)] = _get_result(future)
                    show(len(results), len(places))
            finally:
                for future in running:
                    future.cancel()
        return dict(sorted(results.items()))

    async def _list_object(self, place: int) -> tuple[StringColumn | MemberTable, list[StreamloaderError]]:
        reader, each = self._get_reader(), self._objects[place]
        with describe_errors(each):
            if each.file_type is RemoteFileType.FOLDER:
                folder = await reader.list_folder(place)
                return folder.names, list(folder.bad_lines)
            container, _ = await reader.open_archive(place)
            return await MemberTable.scan(container), []

    def _report_failures(self, failures: Mapping[int, list[StreamloaderError]]) -> None:
        """Raise the first error, or list those that may be skipped."""
        skipped: list[SkippedObject] = []
        for place, errors in failures.items():
            for error in errors:
                if self._on_error == "raise" or not is_skippable(error):
                    raise error
                member = error.details.get("member")
                skipped.append(SkippedObject(self._objects[place].shown, member, make_printable(error.message)))
        self.skipped = skipped


class IPFSDataset(IPFSFiles):
    """Samples (name, content) of objects on IPFS, by number: for samplers of DataLoaders, shuffled and distributed.

    Each single file is a sample, and so is each file of a folder and each member of an archive. The name is the
    address of the object for a single file, the address of the file for a folder, and the name within the archive for
    a member. Everything is compared with its CID before it is returned. The lists of folders and archives are read on
    first use, and members are then read by span. Members of a compressed tar file are found by decompressing what
    lies before them: use :class:`IPFSIterableDataset` for these.

    Ranks and workers are split by the DataLoader's sampler, such as ``DistributedSampler``, which also has
    ``set_epoch``. The data set can be pickled, and used in workers that were forked after it was used.

    A derived class decodes the content::

        class Images(IPFSDataset):
            def __getitem__(self, idx):
                name, content = super(IPFSDataset, self).__getitem__(idx)
                return decode(content), label_of(name)

    Args:
        ipfs_objs: Object, or objects, in the order of the samples.
        ipfs_api_address: Address of a node's RPC API, as multiaddr (``/ip4/127.0.0.1/tcp/5001``) or URL. Gateways in
            the addresses of objects are used in addition, if the node fails. Defaults to None: the gateways of the
            addresses, and for others those that :class:`~streamloader.stores.ipfs.store.IpfsStore` finds.
        on_error: "raise", or "skip" to leave out objects that cannot be listed, and bad lines of a ``metadata.txt``.
            A sample that cannot be read is an error in any case, because its number cannot be left out.
        cache_bytes: Maximum size in bytes of the pieces of archives that each process keeps. Defaults to 64 MiB.
        storage_options: Further options of the store, such as `gateways`, `token`, `timeouts`, `limits`, `retry` and
            `cache_dir`; see :func:`streamloader.stores.open_store`.

    Attributes:
        skipped: Objects and lines that were left out.

    Raises:
        ConfigError: If there are no objects, or if an option is invalid.
    """


def _get_names(index: StringColumn | MemberTable) -> StringColumn:
    return index.names if isinstance(index, MemberTable) else index


def _get_result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except StreamloaderError as error:
        return error
