"""All files of a directory: which subdirectory has each, what their packs hold, and how they change."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from streamloader.common.count_display import open_count_display
from streamloader.common.free_memory import free_memory
from streamloader.datasets.directory.codec import MemberCodec
from streamloader.datasets.directory.duplicates import FileCopies, describe_copies, find_copies, rename_copies
from streamloader.datasets.directory.filenames import sort_naturally
from streamloader.datasets.directory.journal import JOURNAL_NAME, finish_moves
from streamloader.datasets.directory.local_root import FileStatus, LocalRoot
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.name_table import NameTable
from streamloader.datasets.directory.preparation import prepare_subdirectories
from streamloader.datasets.directory.served_pack import READY, ServedPack
from streamloader.datasets.directory.subdirectory import Subdirectory
from streamloader.errors import ClosedError, CorruptSample, DuplicateName, NotEnoughMemory, StoreError

__all__ = ["DirectoryContents", "OnDuplicate"]

_log = logging.getLogger(__name__)

OnDuplicate = Literal["error", "first", "rename"]


class DirectoryContents:
    """The files of a directory. One instance belongs to one process; a forked child can go on reading.

    Args:
        root: Files of the directory.
        codec: Codec of the members of packs.
        lock: Locks of the directory.
        load_to_memory: Whether files that no pack has are read at once.
        min_subdirectories: Minimum number of subdirectories. Missing ones are created.
        on_duplicate: Treatment of names that are in two subdirectories.
        check_files: Whether to compare a file with its member when it is first needed.
        verbose: Whether to show progress.

    Attributes:
        root: Files of the directory.
        codec: Codec of the members of packs.
        table: Table of the names in all packs.
    """

    def __init__(
        self,
        root: LocalRoot,
        codec: MemberCodec,
        lock: DirectoryLock,
        *,
        load_to_memory: bool,
        min_subdirectories: int,
        on_duplicate: OnDuplicate,
        check_files: bool,
        verbose: bool,
    ) -> None:
        self.root = root
        self.codec = codec
        self.table = NameTable([], lock)
        self._lock = lock
        self._load_to_memory = load_to_memory
        self._min_subdirectories = min_subdirectories
        self._on_duplicate = on_duplicate
        self._check_files = check_files
        self._verbose = verbose
        self._subdirectories: dict[str, Subdirectory] = {}
        self._loose: dict[str, Subdirectory] = {}
        self._must_rebuild = False  # since a refresh failed
        self._is_closed = False

    # --- opening and closing -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the shared lock, go on with moves that were interrupted, and find all files.

        Raises:
            DirectoryLocked: If another instance moves files for longer than the timeout.
            DuplicateName: If two subdirectories have the same name.
            StoreError: If the root cannot be created or read.
        """
        try:
            self.root.create()
            self._lock.open_shared()
            self._finish_moves()
            prepare_subdirectories(self.root, self._min_subdirectories)
            self.refresh(load=self._load_to_memory)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the locks and the packs. Views of them remain valid. Safe to call twice."""
        with self._lock.mutex:
            self._is_closed = True
            self._subdirectories, self._loose = {}, {}
            self.table = NameTable([], self._lock)
            self._lock.close()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._is_closed

    def check_open(self) -> None:
        """Check that the directory has not been closed.

        Raises:
            ClosedError: If it has.
        """
        if self._is_closed:
            raise ClosedError(f"{self.root.address} is closed", address=self.root.address)

    def _finish_moves(self) -> None:
        if not self._has_journal():
            return
        if not self.root.can_write() or not self._lock.try_alone(wait=True, is_needed=self._has_journal):
            if self._has_journal():  # otherwise, another instance has finished the moves
                _log.warning(
                    "%s: files were being moved when a process ended. They are read as they are", self.root.address
                )
            return
        try:
            with self._show("moving files") as show:
                count = finish_moves(self.root, show)
        except StoreError as error:
            _log.warning("%s: moves that were interrupted cannot be finished: %s", self.root.address, error.message)
            count = 0
        finally:
            self._lock.share_again()
        if count:
            _log.info("%s: went on with an interrupted redistribution of %d files", self.root.address, count)

    def _has_journal(self) -> bool:
        return self.root.has_root_file(JOURNAL_NAME)

    # --- changes from outside ----------------------------------------------------------------------------------------

    def refresh(self, *, load: bool = False) -> None:
        """Compare with the disk, and take over what has changed.

        Args:
            load: Whether to read the files that no pack has into packs in memory. Defaults to False.

        Raises:
            DuplicateName: If two subdirectories have the same name.
            NotEnoughMemory: If the files do not fit into memory.
            StoreError: If a subdirectory cannot be read.
        """
        listing = self.root.list_root()
        is_changed = self._must_rebuild or set(listing.subdirectories) != set(self._subdirectories)
        self._must_rebuild = True  # also if an error ends this
        subdirectories, max_pack_bytes = {}, 0
        with self._show("reading subdirectories") as show:
            for name in sort_naturally(listing.subdirectories):
                subdirectory = self._subdirectories.get(name)
                if subdirectory is None:
                    subdirectory = self._make_subdirectory(name)
                is_changed |= subdirectory.refresh(has_pack=name in listing.packs)
                if load and subdirectory.loose:  # one by one, so that few names are in memory at the same time
                    self._check_memory(max_pack_bytes)
                    subdirectory.load_to_memory(self._find_copy)
                    max_pack_bytes = max(max_pack_bytes, len(subdirectory.packs[-1].buffer))
                subdirectories[name] = subdirectory
                show(len(subdirectories), len(listing.subdirectories))
        if is_changed:
            self._subdirectories = subdirectories
            self._rebuild()
        self._must_rebuild = False

    def _check_memory(self, needed: int) -> None:
        """Check that there is memory for data that are to be loaded.

        Args:
            needed: Size in bytes.

        Raises:
            NotEnoughMemory: If there is less, as far as the system tells.
        """
        free = free_memory()
        if free is not None and needed > free:
            raise NotEnoughMemory(
                f"{self.root.address}: loading it into memory needs {needed >> 20} MiB, and {free >> 20} MiB are free. "
                "Pass load_to_memory=False, which reads files when they are needed",
                address=self.root.address,
                needed=needed,
                free=free,
            )

    def _make_subdirectory(self, name: str) -> Subdirectory:
        return Subdirectory(name, self.root, self.codec, check_files=self._check_files)

    def _rebuild(self) -> None:
        """Make the tables of all names again, and look for names in two subdirectories."""
        self._must_rebuild = True
        self._treat_duplicates()
        self._must_rebuild = False

    def _treat_duplicates(self) -> None:
        self._rebuild_tables()
        copies = self._find_duplicates()
        if not copies:
            return
        if self._on_duplicate == "first":
            self._serve_first(copies)
        elif self._on_duplicate == "rename":
            self._rename(copies)
            if copies := self._find_duplicates():  # such as those of a subdirectory that is mounted twice
                raise self._make_duplicate_error(copies)
        else:
            raise self._make_duplicate_error(copies)

    def _make_duplicate_error(self, copies: FileCopies) -> DuplicateName:
        return DuplicateName(
            f"{describe_copies(self.root, copies)}. Rename or remove one of them, or pass on_duplicate='first' to "
            "ignore the second, or 'rename' to have it renamed",
            address=self.root.address,
            dataset=self.root.address,
            count=len(copies),
        )

    def _rebuild_tables(self) -> None:
        packs = [served for subdirectory in self._subdirectories.values() for served in subdirectory.packs]
        self.table = NameTable(packs, self._lock)
        loose: dict[str, Subdirectory] = {}
        for subdirectory in self._subdirectories.values():
            loose.update(dict.fromkeys(subdirectory.loose - loose.keys(), subdirectory))
        self._loose = loose

    def _find_duplicates(self) -> FileCopies:
        return find_copies(self.table, {name: part.loose for name, part in self._subdirectories.items()})

    def _serve_first(self, copies: FileCopies) -> None:
        for name, (first, *others) in copies.items():
            for other in others:
                self._subdirectories[other].shadow(name, self.table.find_all(name))
            if name in self._loose and name not in self._subdirectories[first].loose:
                del self._loose[name]
        _log.warning("%s. The first is served, and the others are ignored", describe_copies(self.root, copies))

    def _rename(self, copies: FileCopies) -> None:
        """Rename all copies but the first on disk, under the write lock."""
        is_writer = self._lock.is_writer
        self._lock.open_writer(wait=True)
        try:
            if not is_writer:
                for subdirectory in self._subdirectories.values():  # another process may just have renamed them
                    subdirectory.refresh()
                self._rebuild_tables()
                copies = self._find_duplicates()
            rename_copies(self.root, copies, self._has_name)
            for subdirectory in self._subdirectories.values():
                subdirectory.refresh()
            self._rebuild_tables()
        finally:
            if not is_writer:
                self._lock.close_writer()

    def _has_name(self, filename: str) -> bool:
        return filename in self._loose or bool(self.table.find_all(filename))

    # --- reading -----------------------------------------------------------------------------------------------------

    def find(self, filename: str) -> Subdirectory | None:
        """Return the subdirectory that has a file. None if none has."""
        found = self.table.find(filename)
        if found is not None:
            return self._get_subdirectory(found[0])
        self.check_open()
        return self._loose.get(filename)

    def _get_subdirectory(self, served: ServedPack) -> Subdirectory | None:
        """Return the subdirectory of a pack. None if it is gone, since another thread has made another table.

        Raises:
            ClosedError: If another thread has closed the directory.
        """
        subdirectory = self._subdirectories.get(served.subdirectory)
        if subdirectory is None:
            self.check_open()
        return subdirectory

    def read(self, filename: str) -> bytes | memoryview | None:
        """Return the content of a file, without decoding it. None if there is no such file.

        Raises:
            CorruptContainer: If the pack is damaged, and the file cannot be read instead.
            StoreError: If the file cannot be read.
        """
        found = self.table.find(filename)
        if found is None:
            return self._read_loose(filename)
        served, row = found
        if served.states[row] == READY:
            return served.pack.read(row, verify=False)
        with self._lock.mutex:
            subdirectory = self._get_subdirectory(served)
            if subdirectory is None:
                return None
            data = subdirectory.read(filename, served, row)
            if filename in subdirectory.loose:
                self._loose[filename] = subdirectory
            return data

    def read_many(self, filenames: Sequence[str]) -> list[bytes | memoryview | None]:
        """Return the contents of files, without decoding them. None stands for files that do not exist.

        Errors are those of :meth:`read`.
        """
        return [self.read(filename) for filename in filenames]

    def _read_loose(self, filename: str) -> bytes | None:
        self.check_open()
        subdirectory = self._loose.get(filename)
        if subdirectory is None:
            return None
        data = subdirectory.read_loose(filename)
        if data is None:
            with self._lock.mutex:
                self._discard(subdirectory, filename)
        return data

    def load(self, filename: str) -> Any:
        """Return the object in a file. None if there is no such file. Errors are those of :meth:`read`."""
        data: bytes | memoryview | None = self.table.read(filename)
        if data is None:
            loose = self._find_loose(filename)
            if loose is not None:
                return self._load_file(loose, filename)
            data = self.read(filename)
        return self.decode(filename, data)

    def load_many(self, filenames: Sequence[str]) -> list[Any]:
        """Return the objects in many files, as :meth:`load` does for one."""
        return [self.load(filename) for filename in filenames]

    def decode(self, filename: str, data: bytes | memoryview | None) -> Any:
        """Return the object in the content of a file. None if there is no content.

        Raises:
            CorruptSample: If the content cannot be decoded.
        """
        if data is None:
            return None
        try:
            return self.codec.decode(data)
        except CorruptSample as error:
            path = self.get_path(filename)
            raise type(error)(f"{path}: {error.message}", address=path, dataset=self.root.address) from error

    def get_path(self, filename: str) -> str | None:
        """Return the path of a file. None if there is no such file."""
        subdirectory = self.find(filename)
        return None if subdirectory is None else subdirectory.prefix + filename

    def _find_loose(self, filename: str) -> Subdirectory | None:
        return self._loose.get(filename) if self.table.find(filename) is None else None

    def _load_file(self, subdirectory: Subdirectory, filename: str) -> Any:
        try:
            return self.codec.data_manager.load(subdirectory.prefix + filename)
        except FileNotFoundError:
            if self.root.get_status(subdirectory.name, filename) is not None:
                raise
            with self._lock.mutex:
                self._discard(subdirectory, filename)
            return None

    def list_names(self) -> list[str]:
        """Return the names of all files, in the order of :meth:`iterate`."""
        self.check_open()
        with self._lock.mutex:
            return [name for subdirectory in self._subdirectories.values() for name in subdirectory.list_names()]

    def list_by_subdirectory(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the name of each subdirectory with the names of its files, in the order of :meth:`iterate`."""
        self.check_open()
        for subdirectory in list(self._subdirectories.values()):
            with self._lock.mutex:
                names = subdirectory.list_names()
            yield subdirectory.name, names

    def measure_packs(self) -> tuple[int, int]:
        """Return the number of files in packs, and their size in bytes."""
        self.check_open()
        packs = [served for subdirectory in self._subdirectories.values() for served in subdirectory.packs]
        return sum(map(len, packs)), sum(served.starts[-1] - served.starts[0] for served in packs)

    def iterate(self) -> Iterator[tuple[str, str, bytes | None]]:
        """Yield name, path and content of all files: by subdirectory in natural order, then by name.

        The content is None unless files are loaded to memory. Files that come or go in between may be left out.
        """
        self.check_open()
        blocks = self._iterate_blocks(as_views=False) if self._load_to_memory else self._iterate_names()
        return itertools.chain.from_iterable(blocks)

    def iterate_views(self) -> Iterator[tuple[str, memoryview]]:
        """Yield name and content of all files in the order of :meth:`iterate`: a view of the pack if one has it."""
        self.check_open()
        return itertools.chain.from_iterable(self._iterate_blocks(as_views=True))

    def _iterate_names(self) -> Iterator[Iterable[tuple[str, str, None]]]:
        for subdirectory in list(self._subdirectories.values()):
            names = subdirectory.list_names()
            yield zip(names, map(subdirectory.prefix.__add__, names), itertools.repeat(None))

    def _iterate_blocks(self, *, as_views: bool) -> Iterator[Iterable[Any]]:
        for subdirectory in list(self._subdirectories.values()):
            make_path = subdirectory.prefix.__add__
            with self._lock.mutex:
                self._replace_broken([subdirectory])
                subdirectory.check_all()
                self._loose.update(dict.fromkeys(subdirectory.loose, subdirectory))
                served = subdirectory.get_only_pack()
            if served is None:
                files = self._iterate_files(subdirectory, subdirectory.list_names())
                yield _make_views(files) if as_views else files
                continue
            for row, names, contents in served.list_blocks(as_views=as_views):
                if not (subdirectory.serves_only(served) and served.are_ready(row, len(names))):
                    with self._lock.mutex:
                        rest = subdirectory.list_names(names[0])
                    files = self._iterate_files(subdirectory, rest)
                    yield _make_views(files) if as_views else files
                    break
                paths = () if as_views else (map(make_path, names),)
                yield zip(names, *paths, contents, strict=True)

    def _iterate_files(self, subdirectory: Subdirectory, names: list[str]) -> Iterator[tuple[str, str, bytes]]:
        for name in names:
            content = self.read(name)
            if content is not None:
                yield name, subdirectory.prefix + name, bytes(content)

    def __len__(self) -> int:
        """Return the number of files."""
        self.check_open()
        return sum(map(len, self._subdirectories.values()))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _discard(self, subdirectory: Subdirectory, filename: str) -> None:
        subdirectory.discard(filename, self.table.find_all(filename))
        if self._loose.get(filename) is subdirectory:
            del self._loose[filename]

    def _replace_broken(self, subdirectories: Iterable[Subdirectory]) -> None:
        """Open packs again that another program has overwritten in place, which ends a process that reads them."""
        if any(subdirectory.has_broken_pack() for subdirectory in subdirectories):
            _log.warning("%s: a pack was overwritten while it was open. Rename new packs instead", self.root.address)
            self.refresh()

    def _find_copy(self, subdirectory: str, filename: str, status: FileStatus) -> tuple[ServedPack, int] | None:
        """Return the member of a file's own subdirectory that certainly has its content."""
        for served, row in self.table.find_all(filename):
            is_own = served.subdirectory == subdirectory and served.get_modified(row)
            if is_own and served.is_same(row, status):
                return served, row
        return None

    @contextlib.contextmanager
    def _show(self, label: str) -> Iterator[Callable[[int, int], None]]:
        if not self._verbose:
            yield lambda done, total: None
            return
        with open_count_display(label) as show:
            yield show


def _make_views(files: Iterable[tuple[str, str, bytes]]) -> Iterator[tuple[str, memoryview]]:
    for name, _, content in files:
        yield name, memoryview(content)
