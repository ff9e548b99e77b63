"""One subdirectory: its files, the packs that hold copies of them, and what has changed since these were made."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

from streamloader.common.printable import make_printable
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.codec import MemberCodec, NewMember, drop_recent, is_settled
from streamloader.datasets.directory.filenames import sort_names
from streamloader.datasets.directory.local_root import PACK_SUFFIX, FileStatus, LocalRoot, PackStamp
from streamloader.datasets.directory.served_pack import CONTENT_CHECKED, FILE_CHECKED, HIDDEN, READY, ServedPack
from streamloader.errors import CorruptContainer, IntegrityError, LimitExceeded, NotFound, StoreError

__all__ = ["DAMAGED_MEMBER", "FindCopy", "Subdirectory"]

_log = logging.getLogger(__name__)

DAMAGED_MEMBER: Final = (CorruptContainer, IntegrityError, LimitExceeded)

FindCopy = Callable[[str, str, FileStatus], tuple[ServedPack, int] | None]


class Subdirectory:
    """The files of one subdirectory. A pack beside it is a copy of them: where the two differ, the files count.

    Args:
        name: Name of the subdirectory.
        root: Files of the directory.
        codec: Codec of the members.
        check_files: Whether to compare a file with its member when it is first needed.

    Attributes:
        name: Name of the subdirectory.
        prefix: Path of the subdirectory, with a slash.
        packs: Packs from which files are served: at most one from disk, and then those in memory.
        loose: Names of the files that no pack serves.
        shadowed: Names of the files that are not served, because another subdirectory has the same name.
        is_outdated: Whether the pack on disk is missing, or not a copy of the files.
    """

    def __init__(self, name: str, root: LocalRoot, codec: MemberCodec, *, check_files: bool) -> None:
        self.name = name
        self.prefix = root.path(name, "")
        self.packs: list[ServedPack] = []
        self.loose: set[str] = set()
        self.shadowed: set[str] = set()
        self.is_outdated = False
        self._root = root
        self._codec = codec
        self._first_state = 0 if check_files else FILE_CHECKED
        self._pack_stamp: PackStamp | None = None
        self._read_at = 0  # time at which the files in the pack on disk were listed; 0 if unknown
        self._listed_at = (0, 0)  # times of the subdirectory when it was listed; 0 if unknown

    def __len__(self) -> int:
        """Return the number of files that are served."""
        return sum(map(len, self.packs)) + len(self.loose)

    # --- changes from outside ----------------------------------------------------------------------------------------

    def refresh(self, *, has_pack: bool = True) -> bool:
        """Compare with the disk. Return whether anything may have changed.

        Args:
            has_pack: Whether there is a pack on disk. Defaults to True: this is looked up.
        """
        stamp = self._root.stamp_pack(self.name) if has_pack else None
        modified, changed = self._root.stamp_folder(self.name)
        is_same_pack = stamp == self._pack_stamp
        if is_same_pack and (modified, changed) == self._listed_at and modified and not self.shadowed:
            return False
        self._listed_at = (0, 0)  # until all is known
        if not is_same_pack:
            packed_at = self._open_pack(stamp)
            if modified == packed_at != 0 and is_settled(changed, self._read_at):
                self._listed_at = modified, changed
                self.is_outdated = False
                self.loose.clear()
                return True
        self._list()
        if not self._root.has_unresolved(self.name):
            self._listed_at = drop_recent(modified), changed
        return True

    def _open_pack(self, stamp: PackStamp | None) -> int:
        """Serve the pack on disk, and return the modification time of the subdirectory of which it is a copy."""
        self.packs.clear()
        self.shadowed.clear()
        self._pack_stamp = stamp
        self._read_at = 0
        if stamp is None:
            return 0
        try:
            pack = self._root.open_pack(self.name, self._codec.compressor)
            problem = self._codec.describe_mismatch(pack)
            if problem is None:
                metadata = pack.index.metadata
                unpacked = self._codec.unpack(pack)
                read_at, packed_at = (_get_time(metadata.get(key)) for key in ("read_at", "directory_modified"))
                self._read_at = read_at if read_at <= time.time_ns() else 0  # the clock was wrong
                self._serve(unpacked, self._first_state, read_at=self._read_at)
                problem = self.packs[0].describe_bad_names()
                if problem is None:
                    return packed_at
                self.packs.clear()
        except NotFound:
            self._pack_stamp = None
            return 0
        except StoreError as error:  # it is damaged, no file, or may not be read
            problem = error.message
        self._warn_of_pack(problem)
        return 0

    def _warn_of_pack(self, problem: str) -> None:
        _log.warning(
            "%s: the pack is not used, and the files are read instead: %s. save_state() writes a new one",
            self.prefix.rstrip("/") + PACK_SUFFIX,
            problem,
        )

    def _serve(self, pack: MappedPack, state: int, *, read_at: int = 0) -> None:
        served = ServedPack(pack, self.name, state, has_file_sizes=self._codec.packs_files, read_at=read_at)
        self.packs.append(served)

    def _list(self) -> None:
        """List the files, and compare them with the packs."""
        self.shadowed.clear()
        self.is_outdated = True
        if self.packs:
            self._compare(self._root.list_statuses(self.name))
            if self._root.has_unresolved(self.name):  # a new pack would be listed again, too
                self.is_outdated = not self._is_copy()
        else:
            self.loose = set(self._root.list_names(self.name))
            self.is_outdated = bool(self.loose)  # a pack that cannot be used stays, if it may be the only copy

    def _is_copy(self) -> bool:
        """Return whether the pack on disk has all files and no others, after a comparison."""
        return self.has_pack and len(self.packs) == 1 and not self.packs[0].hidden and not self.loose

    def _compare(self, statuses: dict[str, FileStatus]) -> None:
        """Serve exactly the files in `statuses`: from the newest pack that has them, else as loose ones."""
        for served in reversed(self.packs):
            for row, name in enumerate(served.pack.index.names()):
                status = statuses.get(name)
                is_same = False if status is None else served.is_same(row, status)
                if is_same is False:
                    served.hide(row)
                    continue
                del statuses[name]
                state = served.states[row] & CONTENT_CHECKED
                served.show(row, state | FILE_CHECKED if is_same else state)
        self.loose = set(statuses)

    # --- single files ------------------------------------------------------------------------------------------------

    def read(self, filename: str, served: ServedPack, row: int) -> bytes | memoryview | None:
        """Return the content of a member, which is checked when it is first read. None if the file is gone.

        If the file has changed, or the member is damaged, the content comes from the file, which is loose afterwards.

        Raises:
            StoreError: If neither can be read.
        """
        states = served.states
        if not states[row] & FILE_CHECKED and not self._check_file(filename, served, row):
            return self.read_loose(filename) if filename in self.loose else None
        is_right = bool(states[row] & CONTENT_CHECKED) or (served.is_stored and served.verify_block(row))
        try:
            data = served.pack.read(row, verify=not is_right)
        except DAMAGED_MEMBER as error:
            return self._replace_damaged(filename, served, row, error)
        states[row] |= CONTENT_CHECKED
        return data

    def _check_file(self, filename: str, served: ServedPack, row: int) -> bool:
        """Compare a file with its member. Return whether it is the same."""
        status = self._root.get_status(self.name, filename)
        is_same = False if status is None else served.is_same(row, status)
        if is_same is None:
            is_same = self._has_same_content(filename, served, row)
            self.is_outdated = True  # with the time in the pack, the content would not have to be read
        if is_same:
            served.states[row] |= FILE_CHECKED
            return True
        served.hide(row)
        self.is_outdated = True
        if status is not None:
            self.loose.add(filename)
        return False

    def _has_same_content(self, filename: str, served: ServedPack, row: int) -> bool:
        try:
            return self._codec.read_file(self._root, self.name, filename)[0] == served.pack.read(row)
        except (NotFound, *DAMAGED_MEMBER):
            return False

    def _replace_damaged(
        self, filename: str, served: ServedPack, row: int, error: CorruptContainer | IntegrityError | LimitExceeded
    ) -> bytes | None:
        if self._root.get_status(self.name, filename) is None:
            raise type(error)(
                f"{error.message}. There is no file {make_printable(self.prefix + filename, 500)} to read instead: "
                "restore it or the pack from a backup, or remove the name",
                address=error.address,
                offset=error.offset,
            ) from error
        _log.warning("%s. The file is read instead. save_state() repairs the pack", error.message)
        served.hide(row)
        self.is_outdated = True
        self.loose.add(filename)
        return self.read_loose(filename)

    def read_loose(self, filename: str) -> bytes | None:
        """Return the content of a file, as a member would have it. None if the file is gone."""
        try:
            return self._codec.read_file(self._root, self.name, filename)[0]
        except NotFound:
            return None

    def add_loose(self, filename: str, members: Iterable[tuple[ServedPack, int]]) -> None:
        """Note that a file was written. `members` are those that have its name in any pack."""
        self.discard(filename, members)
        self.loose.add(filename)

    def discard(self, filename: str, members: Iterable[tuple[ServedPack, int]]) -> None:
        """Note that a file is gone, or has changed. `members` are those that have its name in any pack."""
        self.is_outdated = True
        self.shadowed.discard(filename)
        self._hide(filename, members)

    def shadow(self, filename: str, members: Iterable[tuple[ServedPack, int]]) -> None:
        """Serve a file no longer, because another subdirectory has the same name. The file stays."""
        self._hide(filename, members)
        self.shadowed.add(filename)

    def _hide(self, filename: str, members: Iterable[tuple[ServedPack, int]]) -> None:
        self.loose.discard(filename)
        for served, row in members:
            if served in self.packs:
                served.hide(row)

    # --- all files ---------------------------------------------------------------------------------------------------

    def list_names(self, first: str = "") -> list[str]:
        """Return the names of all files that are served, in ascending order of their bytes.

        Args:
            first: Name from which on they are listed. Defaults to all.
        """
        if len(self.packs) == 1 and not self.loose:
            names = [name for name, _ in self.packs[0].list_visible()]
        else:
            names = sort_names([*(name for served in self.packs for name, _ in served.list_visible()), *self.loose])
        encoded = os.fsencode(first)
        return [name for name in names if os.fsencode(name) >= encoded] if first else names

    def has_broken_pack(self) -> bool:
        """Return whether another program has overwritten the pack in place, so that it is no more what was opened."""
        stamp = self._root.stamp_pack(self.name) if self.packs and self._pack_stamp is not None else None
        return stamp is not None and stamp != self._pack_stamp and stamp[0] == self._pack_stamp[0]  # type: ignore[index]

    def check_all(self) -> None:
        """Check all members that have not been checked."""
        for served in list(self.packs):
            served.verify_all()
            states = served.states
            for name, row in list(served.list_visible()) if states.count(READY) < len(served) else ():
                if states[row] & READY != READY and not states[row] & HIDDEN:
                    self.read(name, served, row)

    def get_only_pack(self) -> ServedPack | None:
        """Return the pack that has all files, if they are checked and not compressed. None if there is no such pack."""
        served = self.packs[0] if self.packs else None
        if served is None or not served.is_stored or not self.serves_only(served):
            return None
        return served if served.are_ready(0, len(served.states)) else None

    def serves_only(self, served: ServedPack) -> bool:
        """Return whether all files are served from this pack, and all members of it are served."""
        return len(self.packs) == 1 and self.packs[0] is served and not self.loose and not served.hidden

    # --- packs -------------------------------------------------------------------------------------------------------

    def load_to_memory(self, find_copy: FindCopy) -> None:
        """Read all loose files into a pack in memory. The other packs in memory are merged with it if they waste some.

        Args:
            find_copy: Function that finds a member that is a copy of a file, from its subdirectory, name and status.
        """
        kept = 0 if self._pack_stamp is None else min(1, len(self.packs))
        wasted = [served for served in self.packs[kept:] if 2 * served.hidden > len(served.states)]
        members: Iterable[NewMember]
        count = len(self.loose)
        if not self.packs:
            members = _take_members(sort_names(self.loose))
            self.loose = set()
        else:
            names = [*self.loose, *(name for served in wasted for name, _ in served.list_visible())]
            statuses = {name: self._root.get_status(self.name, name) for name in names}
            found = {name: status for name, status in statuses.items() if status is not None}
            members = self._list_members(found, find_copy)
        read_at = time.time_ns()
        try:
            pack = self._codec.make_memory_pack(self._root, self.name, members)
        except BaseException:
            self.loose |= set() if self.packs else set(self._root.list_names(self.name))
            raise
        if not self.packs and len(pack) < count:  # a file went since the listing
            self._listed_at = (0, 0)
        self.packs = [served for served in self.packs if served not in wasted]
        self._serve(pack, READY, read_at=read_at)
        self.loose = self.loose.difference(pack.index.names())  # a set does not shrink

    @property
    def has_pack(self) -> bool:
        """Whether there is a pack on disk."""
        return self._pack_stamp is not None

    def write_pack(self, find_copy: FindCopy) -> None:
        """Write the pack, from the packs that serve the files now and from the files themselves.

        Args:
            find_copy: Function that finds a member that is a copy of a file, from its subdirectory, name and status.

        Raises:
            StoreError: If it cannot be written. The old pack remains.
        """
        read_at = time.time_ns()
        modified, changed = self._root.stamp_folder(self.name)  # if it changes from here on, it differs
        statuses = self._root.list_statuses(self.name)
        is_complete = not self._root.has_unresolved(self.name)
        members = self._list_members(statuses, find_copy)
        modified = drop_recent(modified) if is_complete else 0
        build = partial(
            self._codec.write_pack, self._root, self.name, members, modified, more_metadata={"read_at": read_at}
        )
        self._listed_at = (0, 0)
        self._root.write_pack(self.name, build)
        packed_at = self._open_pack(self._root.stamp_pack(self.name))
        self._compare(statuses)
        self._listed_at = packed_at, changed
        self.is_outdated = not packed_at and (is_complete or not self._is_copy())

    def _list_members(self, statuses: Mapping[str, FileStatus], find_copy: FindCopy) -> list[NewMember]:
        members = []
        for name in sort_names(statuses):
            copy = find_copy(self.name, name, statuses[name])
            read = None if copy is None else partial(_read_copy, *copy)
            members.append(NewMember(name, read, statuses[name].size))
        return members


def _take_members(names: list[str]) -> Iterator[NewMember]:
    """Yield members for files, and forget their names, which would take a part of the memory of small files."""
    names.reverse()
    while names:
        yield NewMember(names.pop(), None)


def _read_copy(served: ServedPack, row: int) -> tuple[bytes | memoryview, int] | None:
    """Return content and modification time of a member. None if it is damaged."""
    try:
        return served.pack.read(row), served.get_modified(row)
    except DAMAGED_MEMBER:
        return None


def _get_time(value: object) -> int:
    """Return a time that metadata contain. 0 if it is none."""
    return value if type(value) is int and value > 0 else 0
