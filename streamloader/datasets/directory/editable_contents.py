"""Change the files of a directory: save, remove, write packs, and move all files."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from typing_extensions import override

from streamloader.datasets.directory.codec import SETTLED_NS
from streamloader.datasets.directory.contents import DirectoryContents
from streamloader.datasets.directory.filenames import check_filename
from streamloader.datasets.directory.journal import FileMove, make_moves, plan_moves
from streamloader.datasets.directory.local_root import FileStatus
from streamloader.datasets.directory.preparation import create_subdirectory
from streamloader.datasets.directory.served_pack import ServedPack
from streamloader.datasets.directory.subdirectory import Subdirectory

__all__ = ["EditableContents"]


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


class EditableContents(DirectoryContents):
    """The files of a directory, which can be changed.

    Args:
        *args: Arguments of :class:`DirectoryContents`.
        seed: Seed for the subdirectories of new files. None for others each time.
        **options: Further arguments of :class:`DirectoryContents`.
    """

    def __init__(self, *args: Any, seed: int | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - a distribution, no secret
        self._moved: dict[str, _MovedMember] = {}
        self._written_at = 0

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
            self.root.sync_names()
            self._rebuild()

    def _wait_until_settled(self, subdirectories: Iterable[Subdirectory]) -> None:
        """Wait until a later change would give a subdirectory or file another time than the last one: 50 ms at most."""
        stamps = [time_ns for subdirectory in subdirectories for time_ns in self.root.stamp_folder(subdirectory.name)]
        now = time.time_ns()
        age_ns = now - max((stamp for stamp in (self._written_at, *stamps) if stamp <= now), default=0)
        if age_ns < SETTLED_NS:
            time.sleep((SETTLED_NS - age_ns) / 1e9 + 0.001)

    @override
    def _find_copy(self, subdirectory: str, filename: str, status: FileStatus) -> tuple[ServedPack, int] | None:
        """Return a member that has the content of a file, of its subdirectory or of the one from which it was moved."""
        copy = super()._find_copy(subdirectory, filename, status)
        moved = self._moved.get(filename) if copy is None else None
        if moved is not None and moved.is_same(subdirectory, status):
            return moved.served, moved.row
        return copy

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
            copy = None if status is None else super()._find_copy(source, filename, status)
            if copy is not None and status is not None:
                moved[filename] = _MovedMember(target, *copy, status, 0)
        return moved

    def _write_moved(self, moved: dict[str, _MovedMember]) -> None:
        self._moved = moved
        try:
            self._write_outdated()
        finally:
            self._moved = {}
