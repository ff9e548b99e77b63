"""All files of a directory: which subdirectory has each, what their packs hold, and how they change."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from streamloader.common.count_display import open_count_display
from streamloader.datasets.directory.codec import SETTLED_NS, MemberCodec
from streamloader.datasets.directory.duplicates import FileCopies, describe_copies, find_copies, rename_copies
from streamloader.datasets.directory.filenames import check_filename, sort_naturally
from streamloader.datasets.directory.journal import JOURNAL_NAME, FileMove, finish_moves, make_moves, plan_moves
from streamloader.datasets.directory.local_root import FileStatus, LocalRoot
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.name_table import NameTable
from streamloader.datasets.directory.preparation import create_subdirectory, prepare_subdirectories
from streamloader.datasets.directory.served_pack import READY, ServedPack
from streamloader.datasets.directory.subdirectory import Subdirectory
from streamloader.errors import ClosedError, CorruptSample, DuplicateName, StoreError

__all__ = ["DirectoryContents", "OnDuplicate"]

_log = logging.getLogger(__name__)

OnDuplicate = Literal["error", "first", "rename"]


class _MovedMember(NamedTuple):
    """Member that is a copy of a file that was moved.

    Attributes:
        target: Name of the subdirectory to which the file was moved.
        served: Pack.
        row: Row of the member.
        status: Status of the file before it was moved.
        moved_at: Time in nanoseconds at which all files had been moved.
    """

    target: str
    served: ServedPack
    row: int
    status: FileStatus
    moved_at: int

    def is_same(self, subdirectory: str, status: FileStatus) -> bool:
        """Return whether a file is the one that was moved, and has not changed since."""
        has_moved = subdirectory == self.target and self.status[:2] == status[:2]
        return has_moved and status.changed <= self.moved_at


class DirectoryContents:
    """The files of a directory. One instance belongs to one process; a forked child can go on reading.

    Args:
        root: Files of the directory.
        codec: Codec of the members of packs.
        lock: Locks of the directory.
        load_to_memory: Whether files that no pack has are read at once.
        min_subdirectories: Minimum number of subdirectories. Missing ones are created.
        seed: Seed for the subdirectories of new files. None for others each time.
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
        seed: int | None,
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
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - a distribution, no secret
        self._on_duplicate = on_duplicate
        self._check_files = check_files
        self._verbose = verbose
        self._subdirectories: dict[str, Subdirectory] = {}
        self._loose: dict[str, Subdirectory] = {}
        self._moved: dict[str, _MovedMember] = {}
        self._written_at = 0
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
            StoreError: If a subdirectory cannot be read.
        """
        listing = self.root.list_root()
        is_changed = self._must_rebuild or set(listing.subdirectories) != set(self._subdirectories)
        self._must_rebuild = True  # also if an error ends this
        subdirectories = {}
        with self._show("reading subdirectories") as show:
            for name in sort_naturally(listing.subdirectories):
                subdirectory = self._subdirectories.get(name)
                if subdirectory is None:
                    subdirectory = self._make_subdirectory(name)
                is_changed |= subdirectory.refresh(has_pack=name in listing.packs)
                if load and subdirectory.loose:  # one by one, so that few names are in memory at the same time
                    subdirectory.load_to_memory(self._find_copy)
                subdirectories[name] = subdirectory
                show(len(subdirectories), len(listing.subdirectories))
        if is_changed:
            self._subdirectories = subdirectories
            self._rebuild()
        self._must_rebuild = False

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
                files = self._iterate_single(subdirectory)
                yield _make_views(files) if as_views else files
                continue
            for row, names, contents in served.list_blocks(as_views=as_views):
                if not (subdirectory.serves_only(served) and served.are_ready(row, len(names))):
                    files = self._iterate_rest(subdirectory, names[0])
                    yield _make_views(files) if as_views else files
                    break
                paths = () if as_views else (map(make_path, names),)
                yield zip(names, *paths, contents, strict=True)

    def _iterate_single(self, subdirectory: Subdirectory) -> Iterator[tuple[str, str, bytes]]:
        for name in subdirectory.list_names():
            content = self.read(name)
            if content is not None:
                yield name, subdirectory.prefix + name, bytes(content)

    def _iterate_rest(self, subdirectory: Subdirectory, first: str) -> Iterator[tuple[str, str, bytes]]:
        """Yield the files from the name `first` on."""
        encoded = os.fsencode(first)
        with self._lock.mutex:
            names = [name for name in subdirectory.list_names() if os.fsencode(name) >= encoded]
        for name in names:
            content = self.read(name)
            if content is not None:
                yield name, subdirectory.prefix + name, bytes(content)

    def __len__(self) -> int:
        """Return the number of files."""
        self.check_open()
        return sum(map(len, self._subdirectories.values()))

    # --- writing -----------------------------------------------------------------------------------------------------

    def begin_writing(self) -> None:
        """Take the write lock until :meth:`close`, and take over what others have changed before.

        Raises:
            DirectoryLocked: If another instance holds it.
            StoreError: If this user cannot write to the directory.
        """
        self.check_open()
        self._lock.drop_lost()
        if not self._lock.is_writer:
            self._lock.open_writer()
            self._catch_up()

    def _catch_up(self) -> None:
        try:
            self.refresh()
            self.root.delete_unfinished()
        except BaseException:
            self._lock.close_writer()
            raise

    def save(self, filename: str, value: Any) -> None:
        """Write an object to a file, in a random subdirectory if the name is new.

        Raises:
            ConfigError: If the name cannot be that of a file.
            DirectoryLocked: If another instance writes to the directory.
        """
        check_filename(filename)
        with self._lock.mutex:
            self.begin_writing()
            subdirectory = self.find(filename) or self._pick_subdirectory()
            self._written_at = time.time_ns()
            self.root.save_file(subdirectory.name, filename, lambda path: self.codec.data_manager.save(path, value))
            self._written_at = time.time_ns()
            subdirectory.add_loose(filename, self.table.find_all(filename))
            self._loose[filename] = subdirectory

    def _pick_subdirectory(self) -> Subdirectory:
        if not self._subdirectories:
            create_subdirectory(self.root)
            self.refresh()
        return self._rng.choice(list(self._subdirectories.values()))

    def remove(self, filename: str) -> None:
        """Delete a file, and all files of the same name. Nothing happens if there is none."""
        with self._lock.mutex:
            if self.find(filename) is None:
                return
            self.begin_writing()
            for subdirectory in self._subdirectories.values():
                if subdirectory is self.find(filename) or filename in subdirectory.shadowed:
                    self._written_at = time.time_ns()
                    self.root.delete_file(subdirectory.name, filename)
                    self._discard(subdirectory, filename)

    def _discard(self, subdirectory: Subdirectory, filename: str) -> None:
        subdirectory.discard(filename, self.table.find_all(filename))
        if self._loose.get(filename) is subdirectory:
            del self._loose[filename]

    @property
    def is_outdated(self) -> bool:
        """Whether packs are known to be missing or out of date."""
        return any(subdirectory.is_outdated for subdirectory in self._subdirectories.values())

    def write_packs(self) -> None:
        """Write all packs that are missing or out of date. Another writer is waited for.

        Raises:
            DirectoryLocked: If another instance changes files of the directory for longer than the timeout.
            StoreError: If a pack cannot be written. Its old version remains.
        """
        with self._lock.mutex:
            self.check_open()
            self._replace_broken(self._subdirectories.values())
            if not self.is_outdated:
                return
            with self._temporary_writer():
                self._write_outdated()

    def _replace_broken(self, subdirectories: Iterable[Subdirectory]) -> None:
        """Open packs again that another program has overwritten in place, which ends a process that reads them."""
        if any(subdirectory.has_broken_pack() for subdirectory in subdirectories):
            _log.warning("%s: a pack was overwritten while it was open. Rename new packs instead", self.root.address)
            self.refresh()

    def _write_outdated(self) -> None:
        outdated = [subdirectory for subdirectory in self._subdirectories.values() if subdirectory.is_outdated]
        self._wait_until_settled(outdated)
        total, done = sum(map(len, outdated)), 0
        try:
            with self._show("writing packs") as show:
                for subdirectory in outdated:
                    done += len(subdirectory)
                    subdirectory.write_pack(self._find_copy)
                    show(done, total)
        finally:
            self._rebuild()

    def _wait_until_settled(self, subdirectories: Iterable[Subdirectory]) -> None:
        """Wait until a later change would give a subdirectory or file another time than the last one: 50 ms at most."""
        stamps = [time_ns for subdirectory in subdirectories for time_ns in self.root.stamp_folder(subdirectory.name)]
        now = time.time_ns()
        age_ns = now - max((stamp for stamp in (self._written_at, *stamps) if stamp <= now), default=0)
        if age_ns < SETTLED_NS:
            time.sleep((SETTLED_NS - age_ns) / 1e9 + 0.001)

    def _find_copy(self, subdirectory: str, filename: str, status: FileStatus) -> tuple[ServedPack, int] | None:
        """Return a member that has the content of a file, of its subdirectory or of the one from which it was moved."""
        copy = self._find_member(subdirectory, filename, status)
        moved = self._moved.get(filename) if copy is None else None
        if moved is not None and moved.is_same(subdirectory, status):
            return moved.served, moved.row
        return copy

    def _find_member(self, subdirectory: str, filename: str, status: FileStatus) -> tuple[ServedPack, int] | None:
        for served, row in self.table.find_all(filename):
            is_own = served.subdirectory == subdirectory and served.get_modified(row)
            if is_own and served.is_same(row, status):
                return served, row
        return None

    @contextlib.contextmanager
    def _temporary_writer(self) -> Iterator[None]:
        """Hold the write lock for the time of a ``with`` block, and take over what others have changed before."""
        self._lock.drop_lost()
        is_writer = self._lock.is_writer
        self._lock.open_writer(wait=True)
        try:
            self._catch_up()
            yield
        finally:
            if not is_writer:
                self._lock.close_writer()

    def redistribute(self) -> None:
        """Move all files to random subdirectories, so that all of these have the same number of files.

        Raises:
            DirectoryLocked: If another instance has the directory open.
            StoreError: If a file cannot be moved. The next instance goes on with the moves.
        """
        with self._lock.mutex:
            self.begin_writing()
            with self._lock.alone():
                self._move_files()

    def _move_files(self) -> None:
        self.refresh()
        targets = [name for name in self._subdirectories if self.root.is_same_device(name)]
        files = self._list_movable(targets)
        if not files:
            return
        moves = plan_moves(files, targets, self._seed)
        has_packs = any(subdirectory.has_pack for subdirectory in self._subdirectories.values())
        moved = self._find_moved(moves) if has_packs else {}
        try:
            with self._show("moving files") as show:
                make_moves(self.root, moves, show)
        finally:
            self._written_at = time.time_ns()
            self.refresh(load=self._load_to_memory and not has_packs)
        if has_packs:
            self._write_moved({name: member._replace(moved_at=self._written_at) for name, member in moved.items()})

    def _list_movable(self, targets: Iterable[str]) -> list[tuple[str, str]]:
        """Return the files to distribute, with their subdirectories. Names of several files stay: one is the first."""
        shadowed = {name for subdirectory in self._subdirectories.values() for name in subdirectory.shadowed}
        files = []
        for name in targets:
            movable = self.root.list_movable(name) - shadowed
            files += [(filename, name) for filename in self._subdirectories[name].list_names() if filename in movable]
        return files

    def _find_moved(self, moves: Iterable[FileMove]) -> dict[str, _MovedMember]:
        """Return the members that are copies of files which are about to be moved."""
        moved = {}
        for filename, source, target in moves:
            status = self.root.get_status(source, filename)
            copy = None if status is None else self._find_member(source, filename, status)
            if copy is not None and status is not None:
                moved[filename] = _MovedMember(target, *copy, status, 0)
        return moved

    def _write_moved(self, moved: dict[str, _MovedMember]) -> None:
        self._moved = moved
        try:
            self._write_outdated()
        finally:
            self._moved = {}

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
