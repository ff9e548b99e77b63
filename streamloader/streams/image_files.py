"""Find the images of a dataset, group them into streams, and read their bytes from files and stores."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from typing_extensions import override

from streamloader.arguments import expand_path
from streamloader.common.guarded_files import open_regular_file
from streamloader.config import Limits
from streamloader.errors import (
    ClosedError,
    ConfigError,
    MediaLimitExceeded,
    NotFound,
    StreamloaderError,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.media.video.files import make_changed_error
from streamloader.redaction import redact_address
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.container_addresses import split_container_address
from streamloader.stores.expand import SourceFile
from streamloader.stores.io_thread import SharedStore, open_shared_store
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.local import local_path
from streamloader.stores.local_search import SEARCH_ENTRY_BYTES, report_unreadable, walk_files
from streamloader.stores.patterns import has_magic
from streamloader.stores.registry import is_local_file, split_address
from streamloader.stores.search import Unreadable, UnreadableReport, open_report
from streamloader.stream_table import StringColumn
from streamloader.streams.image_names import is_image
from streamloader.values import Array

__all__ = [
    "FileTable", "ImageFiles", "ImageFolder", "StoredImages", "describe_files", "file_name", "find_images",
    "group_by_folder",
]  # fmt: skip

MAX_FILE_BYTES: Final = 1 << 30
_MAX_AHEAD_IMAGES: Final = 16  # fetched from a store before they are needed
_MAX_AHEAD_BYTES: Final = 8 << 20
_NUMBER_FIELD: Final = re.compile(r"%(?:0([1-9][0-9]?))?d(?![0-9a-fA-F])")
_UNKNOWN: Final = -1
_NO_TIME: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images of one folder.

    Attributes:
        prefix: Address of the folder, to which the name of an image is appended.
        files: Files of its images.
    """

    prefix: str
    files: list[SourceFile]

    @property
    def source(self) -> SourceFile:
        """The folder as a source, for its key."""
        return SourceFile(self.prefix.rstrip("/") or self.prefix or ".", self.files[0].info)

    @property
    def names(self) -> list[str]:
        """End of the address of each image, with the query of a URL."""
        start = len(self.prefix)
        return [file.address[start:] for file in self.files]


def find_images(
    addresses: Sequence[str],
    options: Mapping[str, Any] | None,
    accept: Callable[[str], bool] = is_image,
    unreadable: Unreadable | UnreadableReport = None,
) -> list[SourceFile]:
    """Return the images that addresses stand for, as :func:`expand_addresses` does.

    In addition, the name of the last part may contain a number field, ``%05d`` or ``%d``.

    Args:
        addresses: Addresses of a dataset.
        options: Options of the stores.
        accept: Function that selects the files of directories. Defaults to images.
        unreadable: Handling of what may not be read, see :class:`streamloader.stores.search.UnreadableReport`.

    Raises:
        StreamNotFound: If an address does not exist, or stands for no image.
    """
    files: list[SourceFile] = []
    with open_report(unreadable, files) as report:
        for address in addresses:
            head, slash, name = address.rpartition("/")
            field = _NUMBER_FIELD.search(name)
            if field is None or os.path.lexists(address):
                local = _list_local_folder(address, accept, options, report)
                files += local or expand_addresses(address, accept, options, unreadable=report)
            else:
                pattern = f"{head}{slash}{_NUMBER_FIELD.sub('*', name, count=1)}"
                matches = expand_addresses(pattern, accept, options, unreadable=report)
                files += _select_numbered(matches, name, field, address, report) if matches else []
    return files


def _list_local_folder(
    address: str, accept: Callable[[str], bool], options: Mapping[str, Any] | None, report: UnreadableReport
) -> list[SourceFile]:
    """Return the images in a local folder at any depth, sorted by code point, or nothing if it is not a folder.

    Unlike :func:`expand_addresses`, it leaves it to the caller to check that they are files, which takes a call each.
    """
    path = expand_path(local_path(address)) if is_local_file(address) else ""
    if not path or not os.path.isdir(path):
        return []
    budget = ListingBudget((options or {}).get("limits") or Limits(), address, entry_bytes=SEARCH_ENTRY_BYTES)
    found = walk_files(path, budget, on_unreadable=report_unreadable(report))
    return [SourceFile(file) for file in sorted(filter(accept, found))]


def _select_numbered(
    files: list[SourceFile], name: str, field: re.Match[str], address: str, report: UnreadableReport
) -> list[SourceFile]:
    """Return the files whose names have a number in the place of the field, as printf writes it."""
    before, after = name[: field.start()], name[field.end() :]
    if has_magic(before + after):
        raise ConfigError(
            f"the name {name!r} has a number field and a wildcard: use one of them for the last part of an address",
            address=address,
        )
    width = int(field[1] or 1)
    numbers = rf"(?:[0-9]{{{width}}}|[1-9][0-9]{{{width},}})"
    pattern = re.compile(re.escape(before) + numbers + re.escape(after))
    found = [file for file in files if pattern.fullmatch(file.address.rpartition("/")[2])]
    if not found:
        shown = redact_address(address)
        problem = f"no image has a number as in {shown} ({len(files)} others match)"
        report.add_unmatched(shown, StreamNotFound(problem, address=shown))
    return found


def group_by_folder(files: Iterable[SourceFile]) -> list[ImageFolder]:
    """Return the folders of images, in the order of their first images. Repeated images are in a repeated folder."""
    groups: dict[tuple[str, int], list[SourceFile]] = {}
    seen: dict[str, int] = {}
    for file in files:
        number = seen[file.address] = seen.get(file.address, -1) + 1
        groups.setdefault((_folder_prefix(file), number), []).append(file)
    return [ImageFolder(prefix, members) for (prefix, _), members in groups.items()]


def _folder_prefix(file: SourceFile) -> str:
    address = _without_query(file.address)
    return address[: address.rfind("/") + 1]


def file_name(file: SourceFile) -> str:
    """Return the name of a file, which the query of a URL is no part of."""
    return _without_query(file.address).rpartition("/")[2]


def _without_query(address: str) -> str:
    is_url = "?" in address and address.startswith(("http://", "https://")) and split_container_address(address) is None
    return address.partition("?")[0] if is_url else address


class ImageFiles:
    """The files of one stream, in its order.

    Attributes:
        prefix: Absolute path or address of the folder, to which a name is appended.
        names: Name of each file.
        sizes: Size of each file in bytes, -1 where unknown.
        modified: Modification time of each local file in ns, -1 where unknown.
        versions: Version of each object, "" where unknown. None for local files.
    """

    __slots__ = ("modified", "names", "prefix", "sizes", "versions")

    def __init__(
        self, prefix: str, names: Sequence[str], sizes: Array, modified: Array, versions: Sequence[str] | None
    ) -> None:
        self.prefix = prefix
        self.names = names
        self.sizes = sizes
        self.modified = modified
        self.versions = versions

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine, and in no container."""
        return is_local_file(self.prefix)

    def address(self, number: int) -> str:
        """Return the address of a file, with everything needed to read it."""
        return f"{self.prefix}{self.names[number]}"

    def version(self, number: int) -> str | None:
        """Return the version of a file, or None if it has none."""
        return None if self.versions is None else self.versions[number] or None

    def name(self, number: int) -> str:
        """Return the address of a file without secrets, for messages."""
        return redact_address(self.address(number))

    def select(self, number: int) -> ImageFiles:
        """Return one of the files."""
        end = number + 1
        sizes, modified = self.sizes[number:end], self.modified[number:end]
        versions = None if self.versions is None else [self.versions[number]]
        return ImageFiles(self.prefix, [self.names[number]], sizes, modified, versions)

    def open(self, options: Mapping[str, Any] | None, key: str) -> ImageSource:
        """Return a reader of the files, which its user closes."""
        if self.is_local:
            return _LocalImages(self, key)
        return StoredImages(self, options, key)


class _StringRows(Sequence[str]):
    """Rows [first, end) of a column, which creates its values on access."""

    def __init__(self, column: StringColumn, first: int, end: int) -> None:
        self._column = column
        self._rows = range(first, end)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        return self._column[self._rows[number]]


@dataclass(slots=True)
class FileTable:
    """The files of all streams of a dataset, in columns.

    Attributes:
        names: Name of each file.
        sizes: Size of each file in bytes, int64.
        modified: Modification time of each local file in ns, int64.
        versions: Version of each object, or None if all files are local.
        times: Time of each image in ns, int64, or None if no stream has times.
    """

    names: StringColumn
    sizes: Array
    modified: Array
    versions: StringColumn | None
    times: Array | None

    @classmethod
    def of_streams(cls, streams: Sequence[ImageFiles], times: Sequence[Array | None]) -> FileTable:
        """Return the table of all files of `streams`, with the times of each stream."""
        is_local = all(files.is_local for files in streams)
        has_times = any(each is not None for each in times)
        versions = None
        if not is_local:
            each = (files.versions or [""] * len(files) for files in streams)
            versions = StringColumn.from_strings(itertools.chain.from_iterable(each))
        return cls(
            StringColumn.from_strings(name for files in streams for name in files.names),
            np.concatenate([files.sizes for files in streams]),
            np.concatenate([files.modified for files in streams]),
            versions,
            np.concatenate(
                [
                    np.full(len(files), _NO_TIME) if each is None else each
                    for files, each in zip(streams, times, strict=True)
                ]
            )
            if has_times
            else None,
        )

    def select(self, prefix: str, first: int, count: int) -> ImageFiles:
        """Return the files [first, first + count)."""
        end = first + count
        names = _StringRows(self.names, first, end)
        versions = None if self.versions is None else _StringRows(self.versions, first, end)
        return ImageFiles(prefix, names, self.sizes[first:end], self.modified[first:end], versions)

    def select_times(self, first: int, count: int) -> Array | None:
        """Return the times of the files [first, first + count), or None if they have none."""
        if self.times is None or self.times[first] == _NO_TIME:
            return None
        return self.times[first : first + count]


def describe_files(folder: ImageFolder, order: Sequence[int]) -> tuple[ImageFiles, UnreadableStream | None]:
    """Return files of a folder in an order, with their versions, and the error if one of them cannot be accessed."""
    names, files = folder.names, folder.files
    sorted_names = [names[number] for number in order]
    unknown = np.full(len(order), _UNKNOWN, np.int64)
    if files[0].info is not None:
        infos = [files[number].info for number in order]
        sizes = [_UNKNOWN if info is None or info.size is None else info.size for info in infos]
        versions = ["" if info is None else info.version or "" for info in infos]
        return ImageFiles(folder.prefix, sorted_names, np.array(sizes, np.int64), unknown, versions), None
    path = local_path(folder.prefix)
    prefix = os.path.join(os.path.abspath(expand_path(path)), "")  # a worker may have another current directory
    try:
        status = np.array([_stat_image(prefix + name) for name in sorted_names], np.int64)
    except UnreadableStream as error:
        return ImageFiles(prefix, sorted_names, unknown, unknown, None), error
    return ImageFiles(prefix, sorted_names, status[:, 0].copy(), status[:, 1].copy(), None), None


def _stat_image(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableStream(f"{path} cannot be read: {error.strerror}", stream=path, address=path) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableStream(f"{path} is a pipe, socket, device or folder", stream=path, address=path)
    return status.st_size, status.st_mtime_ns


# --- reading ---------------------------------------------------------------------------------------------------------


class ImageSource(Protocol):
    """Reads the files of one stream. Used by one thread at a time.

    Attributes:
        waits_for_bytes: Whether reading waits for a server.
    """

    waits_for_bytes: bool

    def read(self, number: int, upcoming: Sequence[int] = ()) -> bytes:
        """Return the bytes of a file. Those of `upcoming` numbers are fetched ahead."""

    def close(self) -> None:
        """Cancel all reads. Safe to call twice."""


class _LocalImages(ImageSource):
    """Reads local files, if they are still those that were indexed."""

    waits_for_bytes = False

    def __init__(self, files: ImageFiles, key: str) -> None:
        self._files = files
        self._key = key

    @override
    def read(self, number: int, upcoming: Sequence[int] = ()) -> bytes:
        path = self._files.address(number)
        size, modified = int(self._files.sizes[number]), int(self._files.modified[number])
        check_file_size(path, size, self._key, number)
        try:
            with open(open_regular_file(path), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                data = file.read(size + 1) if (status.st_size, status.st_mtime_ns) == (size, modified) else b""
        except FileNotFoundError as error:
            raise StreamNotFound(
                f"{path} was deleted since the loader was built", stream=self._key, address=path, offset=number
            ) from error
        except OSError as error:
            raise UnreadableStream(
                f"{path} cannot be read: {error.strerror}", stream=self._key, address=path, offset=number
            ) from error
        if len(data) != size or status.st_mtime_ns != modified:
            raise _changed_error(path, status.st_size, size, self._key, number)
        return data

    @override
    def close(self) -> None:
        pass


class StoredImages(ImageSource):
    """Reads objects of a store, several at the same time."""

    waits_for_bytes = True

    def __init__(self, files: ImageFiles, options: Mapping[str, Any] | None, key: str) -> None:
        self._files = files
        self._key = key
        self._store: SharedStore | None = open_shared_store(files.address(0), options)[0]
        self._pending: OrderedDict[int, Future[bytes]] = OrderedDict()

    @override
    def read(self, number: int, upcoming: Sequence[int] = ()) -> bytes:
        self._fetch([number, *upcoming])
        future = self._pending.pop(number)
        name, size = self._files.name(number), int(self._files.sizes[number])
        try:
            data = future.result()
        except CancelledError as error:
            raise ClosedError(
                "the shared stores of this process were closed", stream=self._key, address=name
            ) from error
        except NotFound as error:
            raise StreamNotFound(error.message, stream=self._key, address=name, offset=number) from error
        except StreamloaderError as error:
            error.stream = self._key
            raise
        if size not in (_UNKNOWN, len(data)):
            raise _changed_error(name, len(data), size, self._key, number)
        return data

    @property
    def is_idle(self) -> bool:
        """Whether every read has finished."""
        return all(future.done() for future in self._pending.values())

    def start(self, numbers: Sequence[int]) -> None:
        """Start to fetch files."""
        self._fetch(numbers)

    def drop_failed(self) -> None:
        """Forget the reads that have failed, so that they are tried again when the files are needed."""
        for number, future in list(self._pending.items()):
            if future.done() and (future.cancelled() or future.exception() is not None):
                del self._pending[number]

    def _fetch(self, numbers: Sequence[int]) -> None:
        """Start the reads of `numbers` that are not running, and cancel all others."""
        assert self._store is not None
        wanted: dict[int, int] = {}
        total = 0
        for number in numbers:
            size = max(0, int(self._files.sizes[number]))
            total += size
            if wanted and (len(wanted) >= _MAX_AHEAD_IMAGES or total > _MAX_AHEAD_BYTES):
                break
            wanted[number] = size
        for number in self._pending.keys() - wanted.keys():
            self._pending.pop(number).cancel()
        for number, size in wanted.items():
            if number not in self._pending:
                check_file_size(self._files.name(number), size, self._key, number)
                path = split_address(self._files.address(number))[1]
                work = self._store.store.read(path, version=self._files.version(number), size=size)
                self._pending[number] = self._store.submit(work)

    @override
    def close(self) -> None:
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()
        store, self._store = self._store, None
        if store is not None:
            store.close()


def check_file_size(name: str, size: int, key: str, step: int) -> None:
    """Check the size of a file before it is read into memory.

    Raises:
        MediaLimitExceeded: If it is too large.
    """
    if size > MAX_FILE_BYTES:
        raise MediaLimitExceeded(
            f"{name} has {size} bytes, but an image may have at most {MAX_FILE_BYTES}",
            stream=key, address=name, offset=step, limit="file size", found=size, allowed=MAX_FILE_BYTES,
        )  # fmt: skip


def _changed_error(name: str, size: int, indexed_size: int, key: str, step: int) -> StreamloaderError:
    error = make_changed_error(name, size, indexed_size)
    error.stream, error.offset = key, step
    return error
