"""The files of a directory in a store. All requests of the directory go through this class."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import mmap
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar

from streamloader.common.error_translation import error_translator
from streamloader.common.gather import gather_bounded
from streamloader.containers.pack.format import PackCompressor
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.local_root import PACK_SUFFIX, FileStatus, RootListing
from streamloader.datasets.directory.remote_fetch import GONE, Fetched, fetch_span
from streamloader.datasets.directory.remote_listing import (
    PackParts,
    StoreListing,
    find_packs,
    make_file_status,
    make_listing,
    read_pack,
)
from streamloader.datasets.directory.remote_pack import RemotePack
from streamloader.errors import ClosedError, NotFound, NotSupported, StoreError
from streamloader.redaction import redact_address
from streamloader.stores.base import Store
from streamloader.stores.io_thread import SharedStore, open_shared_store
from streamloader.stores.registry import scheme_of, select_options, split_address
from streamloader.values import ObjectInfo

__all__ = ["RemoteRoot", "Show", "temporary_path"]

_NUMBERED_PREFIX: Final = "subdir_"
_MIN_PROBED: Final = 16  # numbers of packs that are looked for at once
_MAX_OPENING: Final = 32  # packs whose indexes are read at the same time
_MAX_LOADING: Final = 8  # packs that are read as a whole at the same time
_PIECE_BYTES: Final = 8 << 20
_ATTEMPTS: Final = 3  # to read a pack that is replaced again and again
_MAX_ENDING_BYTES: Final = 200

R = TypeVar("R")
Show = Callable[[int, int], None]


class RemoteRoot:
    """A root in a store: ``root/subdir_0/name``, and packs ``root/subdir_0.pack``.

    It has the methods of :class:`LocalRoot` that a directory needs, and can be used after a fork. What :meth:`update`
    finds is used until :meth:`release`; outside of that, each question is a request.

    Args:
        address: Address of the root.
        storage_options: Options of the stores, see :func:`streamloader.stores.registry.select_options`.
        load_whole: Whether packs are read as a whole when they are opened.
        expected_packs: Number of packs to look for where there are no listings.

    Attributes:
        address: Address of the root without secrets.
    """

    def __init__(
        self, address: str, storage_options: Mapping[str, Any] | None, *, load_whole: bool, expected_packs: int
    ) -> None:
        self._options = select_options(address, storage_options)
        self._full_address, self._query = _split_query(address)
        self._base = split_address(self._full_address)[1].strip("/")
        self.address = redact_address(self._full_address.rstrip("/"))
        self._load_whole = load_whole
        self._expected_packs = max(expected_packs, _MIN_PROBED)
        self._opened: tuple[int, SharedStore] | None = None
        self._created: list[str] = []
        self._listing: StoreListing | None = None
        self._parts: dict[str, PackParts | StoreError] = {}

    # --- the store ---------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store, for its properties."""
        return self._open().store

    def close(self) -> None:
        """Release the store. The next use opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[1].close()

    def submit(self, work: Callable[[Store], Coroutine[Any, Any, R]], /) -> concurrent.futures.Future[R]:
        """Start a coroutine function with the store on the I/O thread, and return the future of its result."""
        handle = self._open()
        try:
            return handle.submit(work(handle.store))
        except ClosedError:  # all shared stores were closed, as at the end of the process
            self.close()
            handle = self._open()
            return handle.submit(work(handle.store))

    def call(self, work: Callable[[Store], Coroutine[Any, Any, R]], /) -> R:
        """Run a coroutine function with the store on the I/O thread, and wait for its result.

        Raises:
            ClosedError: If the shared stores were closed during the call.
        """
        future = self.submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise ClosedError(f"{self.address} was closed while it was used", address=self.address) from error
        except BaseException:
            future.cancel()
            raise

    def _open(self) -> SharedStore:
        """Return the store of this process. A forked child opens its own."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._opened = os.getpid(), open_shared_store(self._full_address, self._options)[0]
        return opened[1]

    # --- paths -------------------------------------------------------------------------------------------------------

    def path(self, *names: str) -> str:
        """Return the address of a subdirectory, or of a file in it."""
        return "/".join((self.address, *names))

    def describe_pack(self, subdirectory: str) -> str:
        """Return the address of a pack."""
        return self.path(subdirectory + PACK_SUFFIX)

    def _object_path(self, *names: str) -> str:
        """Return a path in the store."""
        return "/".join((self._base, *names) if self._base else names) + self._query

    # --- the root ----------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Do nothing: stores create what is written to."""

    def has_root_file(self, name: str) -> bool:
        """Return False: there are no journals here."""
        return False

    def can_write(self) -> bool:
        """Return whether files can be written."""
        return self.store.supports_writes

    def delete_unfinished(self) -> None:
        """Do nothing: stores hide what is unfinished."""

    def sync_names(self) -> None:
        """Do nothing: what is written to a store is there."""

    def create_subdirectory(self, name: str) -> None:
        """Note that there is a subdirectory for new files. A store has it as soon as there are some."""
        self._created.append(name)

    def update(self, show: Show) -> None:
        """List the root.

        Args:
            show: Function that is called with the number of entries, and 0 for the unknown number of all.

        Raises:
            NotFound: If a store that cannot be written to has nothing there.
            StoreError: If the root cannot be listed.
        """
        self._parts.clear()
        listing = self._read_listing(show)
        self._listing = listing or StoreListing({}, self._probe(), [])
        if not (self._listing.files or self._listing.packs or self.can_write()):
            hint = (
                ""
                if listing is not None
                else (
                    f". The server has no listings, so only packs named {_NUMBERED_PREFIX}0{PACK_SUFFIX}, "
                    f"{_NUMBERED_PREFIX}1{PACK_SUFFIX} and so on can be found"
                )
            )
            raise NotFound(
                f"{self.address}: there are neither files in subdirectories nor packs{hint}", address=self.address
            )

    def _read_listing(self, show: Show) -> StoreListing | None:
        """List the root. Return None if that is not possible."""
        if not self._can_list():
            return None
        try:
            entries = self._open().list(self._base)
            with contextlib.closing(entries):  # type: ignore[type-var]
                listing = make_listing(entries, self._base, show)
        except NotSupported:  # some gateways of IPFS, and many web servers
            return None
        if self.store.has_url_paths and not (listing.files or listing.packs):
            return None  # other web servers have no page for a folder
        unsized = {name: info.path for name, info in listing.packs.items() if info.size is None}
        if unsized:
            sized = self.call(partial(find_packs, paths=unsized))
            for name in unsized:
                del listing.packs[name]
            listing.packs.update(sized)
        return listing

    def _can_list(self) -> bool:
        return self.store.supports_listing and not self._query

    def _probe(self) -> dict[str, ObjectInfo]:
        """Look for packs with numbers, until there are none for many of them. Empty subdirectories have no pack."""
        found: dict[str, ObjectInfo] = {}
        for start in itertools.count(0, self._expected_packs):
            names = [f"{_NUMBERED_PREFIX}{number}" for number in range(start, start + self._expected_packs)]
            paths = {name: self._object_path(name + PACK_SUFFIX) for name in names}
            more = self.call(partial(find_packs, paths=paths))
            if not more:
                break
            found |= more
        return found

    def update_subdirectory(self, name: str) -> None:
        """List one subdirectory, and look at its pack.

        Raises:
            StoreError: If the store fails.
        """
        self._parts.pop(name, None)
        packs = {}
        with contextlib.suppress(NotFound):
            path = self._object_path(name + PACK_SUFFIX)
            packs[name] = self.call(lambda store: store.head(path))
        self._listing = StoreListing({name: self._list_files(name)}, packs, [])

    def release(self) -> None:
        """Forget what was found: it gets out of date, and takes memory."""
        self._listing = None
        self._parts.clear()

    def list_root(self) -> RootListing:
        """Return what :meth:`update` has found."""
        assert self._listing is not None
        names = dict.fromkeys((*self._listing.files, *self._listing.packs, *self._created))
        return RootListing(list(names), set(self._listing.packs), self._listing.legacy)

    # --- packs -------------------------------------------------------------------------------------------------------

    def stamp_pack(self, subdirectory: str) -> Any:
        """Return what identifies one version of a pack. None if there is none."""
        info = self.get_pack_info(subdirectory)
        return None if info is None else (info.version, info.modified, info.size)

    def get_pack_info(self, subdirectory: str) -> ObjectInfo | None:
        """Return the metadata of a pack. None if there is none."""
        if self._listing is not None:
            return self._listing.packs.get(subdirectory)
        path = self._object_path(subdirectory + PACK_SUFFIX)
        try:
            return self.call(lambda store: store.head(path))
        except NotFound:
            return None

    def measure(self, packs: Iterable[str], *, with_files: bool) -> int:
        """Return the size in bytes of packs that :meth:`update` has found, as far as it is known.

        Args:
            packs: Names of their subdirectories.
            with_files: Whether the files of all subdirectories without a pack are counted, too.
        """
        assert self._listing is not None
        sizes = [self._listing.packs[name].size or 0 for name in packs]
        for name, files in self._listing.files.items() if with_files else ():
            if name not in self._listing.packs:
                sizes += [max(0, status.size) for status in files.values()]
        return sum(sizes)

    def fetch_packs(self, subdirectories: Iterable[str], show: Show) -> None:
        """Read packs that :meth:`update` has found, many at a time, for :meth:`open_pack`.

        Args:
            subdirectories: Names of the subdirectories.
            show: Function that is called with the number of packs, or of MiB of whole packs, and that of all.

        Raises:
            StoreError: If the store fails otherwise than for a single pack.
        """
        assert self._listing is not None
        infos = {name: self._listing.packs[name] for name in subdirectories}
        total = sum((info.size or 0) for info in infos.values()) >> 20 if self._load_whole else len(infos)
        done = 0

        def note(size: int) -> None:
            nonlocal done
            done += size if self._load_whole else 1
            show(done >> 20 if self._load_whole else done, total)

        if infos:
            self._parts |= self.call(lambda store: self._read_packs(store, infos, note))

    async def _read_packs(
        self, store: Store, infos: Mapping[str, ObjectInfo], note: Callable[[int], None]
    ) -> dict[str, PackParts | StoreError]:
        limit = _MAX_LOADING if self._load_whole else _MAX_OPENING
        reads = (read_pack(store, info, whole=self._load_whole, on_bytes=note) for info in infos.values())
        return dict(zip(infos, await gather_bounded(reads, limit=limit), strict=True))

    def open_pack(self, subdirectory: str, compressor: PackCompressor | None) -> tuple[MappedPack, ObjectInfo]:
        """Open a pack, and return its metadata with it.

        Args:
            subdirectory: Name of the subdirectory.
            compressor: Compressor of the members, if it is one of the user.

        Raises:
            NotFound: If it is gone.
            CorruptContainer: If it is damaged.
            StoreError: If the store fails.
        """
        parts = self._parts.pop(subdirectory, None)
        for _ in range(_ATTEMPTS):
            if parts is None or (isinstance(parts, GONE) and not isinstance(parts, NotFound)):
                parts = self._read_pack_again(subdirectory)
        if not isinstance(parts, PackParts):
            raise parts or NotFound("no pack")
        address, limits = self.describe_pack(subdirectory), self.store.limits
        if parts.footer is None:
            return MappedPack(parts.data, address=address, compressor=compressor, limits=limits), parts.info
        assert not isinstance(parts.data, mmap.mmap)
        read_span = self.read_span
        pack = RemotePack(
            parts.info, address, parts.footer, parts.data, read_span, compressor=compressor, limits=limits
        )
        return pack, parts.info

    def _read_pack_again(self, subdirectory: str) -> PackParts | StoreError:
        path = self._object_path(subdirectory + PACK_SUFFIX)

        async def read(store: Store) -> PackParts | StoreError:
            try:
                info = await store.head(path)
            except NotFound as error:
                return error
            return await read_pack(store, info, whole=self._load_whole, on_bytes=lambda size: None)

        return self.call(read)

    def read_span(self, info: ObjectInfo, start: int, end: int) -> bytes | memoryview:
        """Return the bytes [start, end) of an object in its version. An empty span takes no request.

        Raises:
            ObjectChanged: If the object has another version.
            StoreError: If the store fails otherwise.
        """
        return b"" if start == end else self.call(lambda store: fetch_span(store, info, start, end)).data

    def write_pack(self, subdirectory: str, build: Callable[[BinaryIO], object]) -> None:
        """Build a pack in a temporary file, and write it: as a whole, or not at all.

        Raises:
            StoreError: If it cannot be written. The old pack remains.
        """
        with tempfile.TemporaryDirectory(prefix="streamloader-") as folder:
            path = os.path.join(folder, "pack")
            with (
                self._translate(self.describe_pack(subdirectory), "could not be built in a temporary file"),
                open(path, "wb") as file,
            ):
                build(file)
            self._upload_pack(subdirectory, path)

    def _upload_pack(self, subdirectory: str, temporary_file: str) -> None:
        path = self._object_path(subdirectory + PACK_SUFFIX)
        with open(temporary_file, "rb") as file:
            size = self._upload(path, file)
            info = self.call(lambda store: store.head(path))
            if self._load_whole and info.size == size:  # else another process has replaced it
                file.seek(0)
                memory = mmap.mmap(-1, size)
                file.readinto(memory)
                self._parts[subdirectory] = PackParts(info, None, memory)

    def delete_pack(self, subdirectory: str) -> None:
        """Delete a pack, if it exists."""
        path = self._object_path(subdirectory + PACK_SUFFIX)
        self.call(lambda store: store.delete(path))

    # --- files -------------------------------------------------------------------------------------------------------

    def list_names(self, subdirectory: str) -> list[str]:
        """Return the names of all files that are not hidden, in no order."""
        return list(self.list_statuses(subdirectory))

    def list_statuses(self, subdirectory: str) -> dict[str, FileStatus]:
        """Return the status of all files that are not hidden, by name, in no order."""
        if self._listing is not None:
            return dict(self._listing.files.get(subdirectory, {}))
        return self._list_files(subdirectory)

    def _list_files(self, subdirectory: str) -> dict[str, FileStatus]:
        if not self._can_list():
            return {}
        statuses = {}
        try:
            with contextlib.closing(self._open().list(self._object_path(subdirectory), recursive=False)) as entries:  # type: ignore[type-var]
                for info in entries:
                    name = info.path.rpartition("/")[2]
                    if name and not name.startswith("."):
                        statuses[name] = make_file_status(info)
        except NotSupported:
            return {}
        return statuses

    def get_status(self, subdirectory: str, filename: str) -> FileStatus | None:
        """Return the status of a file. None if there is none."""
        if self._listing is not None:
            return self._listing.files.get(subdirectory, {}).get(filename)
        path = self._object_path(subdirectory, filename)
        try:
            return make_file_status(self.call(lambda store: store.head(path)))
        except NotFound:
            return None

    def get_info(self, subdirectory: str, filename: str, status: FileStatus | None = None) -> ObjectInfo:
        """Return the metadata with which a file is fetched: in the version of a status, or in any."""
        path = self._object_path(subdirectory, filename)
        if status is None:
            return ObjectInfo(path)
        return ObjectInfo(path, None if status.size < 0 else status.size, status.version)

    def read_file(self, subdirectory: str, filename: str) -> tuple[bytes, FileStatus]:
        """Return the content of a file, and its status.

        Raises:
            NotFound: If there is no such file.
            StoreError: If it cannot be read.
        """
        info = self.get_info(subdirectory, filename)
        fetched: Fetched = self.call(lambda store: fetch_span(store, info, 0, None))
        return bytes(fetched.data), make_file_status(fetched.info)

    def iterate_file(self, info: ObjectInfo) -> Iterator[bytes]:
        """Yield the content of a file in its version, in pieces. Its size is known.

        Raises:
            ObjectChanged: If it has another version.
            StoreError: If it cannot be read.
        """
        size = info.size or 0
        for start in range(0, size, _PIECE_BYTES):
            yield bytes(self.read_span(info, start, min(start + _PIECE_BYTES, size)))

    def save_file(self, subdirectory: str, filename: str, save: Callable[[str], object]) -> None:
        """Have a file written in a private temporary folder, and then write it to the store as a whole.

        Args:
            subdirectory: Name of the subdirectory.
            filename: Name of the file. An existing one is replaced.
            save: Function that writes the file at the path with which it is called.

        Raises:
            StoreError: If it cannot be written, or if `save` writes no file at that path.
        """
        address = self.path(subdirectory, filename)
        with temporary_path(filename) as path:
            save(path)
            with self._translate(address, "cannot be written: the data manager wrote no file"):
                file = open(path, "rb")  # noqa: SIM115 - closed below; errors of the upload are not those of the file
            with file:
                self._upload(self._object_path(subdirectory, filename), file)

    def delete_file(self, subdirectory: str, filename: str) -> None:
        """Delete a file, if it exists."""
        path = self._object_path(subdirectory, filename)
        self.call(lambda store: store.delete(path))

    def _upload(self, path: str, file: Any) -> int:
        """Write a temporary file to the store, and return its size."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= _PIECE_BYTES:
            data = file.read()
            self.call(lambda store: store.write(path, data))
        else:
            self.call(lambda store: store.write(path, _read_pieces(file)))
        return int(size)

    @error_translator
    def _translate(self, address: str, problem: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(
                f"{address} {problem}: {error.strerror or error}", address=address, errno=error.errno
            ) from error


@contextlib.contextmanager
def temporary_path(filename: str, data: bytes | memoryview | None = None) -> Iterator[str]:
    """Yield the path of a file in a private temporary folder, which is removed afterwards. It has the same ending.

    Args:
        filename: Name whose ending it gets.
        data: Content. None if the caller writes the file.
    """
    ending = os.path.splitext(filename)[1]
    ending = ending if len(os.fsencode(ending)) <= _MAX_ENDING_BYTES else ""
    with tempfile.TemporaryDirectory(prefix="streamloader-") as folder:
        path = os.path.join(folder, f"file{ending}")
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
        yield path


async def _read_pieces(file: Any) -> AsyncGenerator[bytes, None]:
    while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
        yield piece


def _split_query(address: str) -> tuple[str, str]:
    """Return an address without its query, and the query with its "?". Only HTTP addresses have one."""
    if scheme_of(address) not in ("http", "https"):
        return address, ""
    base, question, query = address.partition("?")
    return base, question + query
