"""The files of a directory on this machine. All access to files goes through this class."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

from streamloader.arguments import expand_path
from streamloader.common.error_translation import error_translator
from streamloader.containers.pack.format import PackCompressor
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.pack_prefetch import prefetch_packs
from streamloader.errors import AccessDenied, NotFound, StorageFull, StoreError

__all__ = ["PACK_SUFFIX", "FileStatus", "LocalRoot", "PackStamp", "RootListing"]

PACK_SUFFIX: Final = ".pack"
_LEGACY_SUFFIX: Final = ".vdd"
_UNFINISHED_PREFIX: Final = ".streamloader-new-"  # as those of the local store, which never lists them
_MAX_ENDING_BYTES: Final = 200
_LEADS_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_BUFFER_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 4 << 20
_MAX_JOURNAL_BYTES: Final = 4 << 30

PackStamp = tuple[int, int, int]  # inode, time of the last modification, size


class FileStatus(NamedTuple):
    """Status of a file.

    Attributes:
        size: Size in bytes.
        modified: Time of the last modification in nanoseconds since 1970. A program can set it.
        changed: Time of the last change of the content, the name or the status, in nanoseconds since 1970.
        version: Version of an object in a store. None for files of this machine.
    """

    size: int
    modified: int
    changed: int
    version: str | None = None


class RootListing(NamedTuple):
    """Contents of a root.

    Attributes:
        subdirectories: Names of all subdirectories that are not hidden. Of links to another one, none is listed.
        packs: Names of the subdirectories that have a pack, whether they exist or not.
        legacy: Names of the files ``*.vdd``.
    """

    subdirectories: list[str]
    packs: set[str]
    legacy: list[str]


class LocalRoot:
    """A directory of this machine that contains subdirectories with files, and packs.

    Args:
        path: Path of the directory.

    Attributes:
        address: Absolute path of the directory.
    """

    def __init__(self, path: str) -> None:
        self.address = os.path.abspath(expand_path(path))
        self._unfinished: set[str] = set()  # what listings have found of other writers
        self._is_prefetched = False
        self._unresolved: set[str] = set()  # subdirectories with links that lead to no file

    def path(self, *names: str) -> str:
        """Return the path of a subdirectory, or of a file in it."""
        return os.path.join(self.address, *names)

    # --- the root ----------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Create the root, if it does not exist."""
        with self._translate(self.address, "cannot be created"):
            os.makedirs(self.address, exist_ok=True)

    def list_root(self) -> RootListing:
        """Return the contents of the root."""
        listing = RootListing([], set(), [])
        folders = []
        with self._translate(self.address, "cannot be listed"), os.scandir(self.address) as entries:
            for entry in entries:
                name = entry.name
                if self._is_hidden(entry):
                    continue
                if name.endswith(PACK_SUFFIX):
                    listing.packs.add(name.removesuffix(PACK_SUFFIX))
                if name.endswith(_LEGACY_SUFFIX):
                    listing.legacy.append(name)
                if _resolve(entry.is_dir):
                    folders.append(entry)
            self._prefetch([entry.path for entry in folders], listing.packs)
            listing.subdirectories.extend(_drop_links(folders, os.stat(self.address)))
        return listing

    def _prefetch(self, folders: Sequence[str], packs: Iterable[str]) -> None:
        """Have what opening the directory needs read at the same time. Once: a later listing needs little of it."""
        if not self._is_prefetched:
            self._is_prefetched = True
            prefetch_packs(folders, [self._pack_path(name) for name in packs])

    def can_write(self) -> bool:
        """Return whether this user can create files in the root."""
        return os.access(self.address, os.W_OK | os.X_OK)

    def create_subdirectory(self, name: str) -> None:
        """Create a subdirectory, if it does not exist."""
        with self._translate(self.path(name), "cannot be created"), contextlib.suppress(FileExistsError):
            os.mkdir(self.path(name))

    def read_root_file(self, name: str) -> bytes | None:
        """Return the content of a file in the root. None if there is none."""
        try:
            with self._translate(self.path(name), "cannot be read"):
                return self._read(self.path(name), _MAX_JOURNAL_BYTES)[0]
        except NotFound:
            return None

    def has_root_file(self, name: str) -> bool:
        """Return whether the root has a file of this name."""
        return os.path.lexists(self.path(name))

    def delete_root_file(self, name: str) -> None:
        """Delete a file in the root, if it exists."""
        with self._translate(self.path(name), "cannot be deleted"), contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def write_file(self, name: str, content: bytes | Callable[[BinaryIO], object], *, is_synced: bool = True) -> None:
        """Write a file in the root: as a whole, or not at all. A file of this name is replaced.

        Args:
            name: Name of the file.
            content: Content, or a function that writes it.
            is_synced: Whether the new name of the file has reached the disk when this returns. Defaults to True.

        Raises:
            StoreError: If it cannot be written, for example because the disk is full. The old file remains.
        """
        target = self.path(name)
        unfinished = self.path(f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}")
        with self._translate(target, "cannot be written. The old file is unchanged"):
            try:
                with open(os.open(unfinished, _CREATE_FLAGS, 0o666), "wb", _BUFFER_BYTES) as file:
                    if callable(content):
                        content(file)
                    else:
                        file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)
                raise
            if is_synced:
                self.sync_names()

    def sync_names(self) -> None:
        """Have the names of all files in the root reach the disk."""
        _sync_folder(self.address)

    # --- packs -------------------------------------------------------------------------------------------------------

    def stamp_pack(self, subdirectory: str) -> PackStamp | None:
        """Return what identifies one version of a pack. None if there is none."""
        try:
            status = os.stat(self._pack_path(subdirectory))
        except OSError:  # it is gone, or a link that leads nowhere
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def open_pack(self, subdirectory: str, compressor: PackCompressor | None) -> MappedPack:
        """Open a pack.

        Args:
            subdirectory: Name of the subdirectory.
            compressor: Compressor of the members, if it is one of the user.

        Raises:
            CorruptContainer: If it is damaged.
            StoreError: If it cannot be read.
        """
        path = self._pack_path(subdirectory)
        with self._translate(path, "cannot be read"):
            return MappedPack.open(path, compressor=compressor)

    def write_pack(self, subdirectory: str, build: Callable[[BinaryIO], object]) -> None:
        """Write a pack: as a whole, or not at all. Its new name reaches the disk with :meth:`sync_names`.

        After a crash of the machine before that, the old pack may be there again, which is compared with the files.

        Raises:
            StoreError: If it cannot be written, for example because the disk is full. The old pack remains.
        """
        self.write_file(subdirectory + PACK_SUFFIX, build, is_synced=False)

    def _pack_path(self, subdirectory: str) -> str:
        return self.path(subdirectory + PACK_SUFFIX)

    # --- subdirectories ----------------------------------------------------------------------------------------------

    def stamp_folder(self, subdirectory: str) -> tuple[int, int]:
        """Return the times at which a subdirectory last changed: its names, and anything of it. 0 if unknown.

        Both are in nanoseconds. A program can set the first one. The second one also changes when the subdirectory is
        renamed.
        """
        try:
            status = os.stat(self.path(subdirectory))
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ctime_ns

    def has_unresolved(self, subdirectory: str) -> bool:
        """Return whether the last listing of a subdirectory has found links that may lead to a file later."""
        return subdirectory in self._unresolved

    def is_same_device(self, subdirectory: str) -> bool:
        """Return whether files can be moved between the root and a subdirectory."""
        with self._translate(self.path(subdirectory), "cannot be read"):
            return os.stat(self.path(subdirectory)).st_dev == os.stat(self.address).st_dev

    def list_names(self, subdirectory: str) -> list[str]:
        """Return the names of all files that are not hidden, in no order."""
        with self._list(subdirectory) as entries:
            return [
                entry.name for entry in entries if not self._is_hidden(entry) and self._is_file(subdirectory, entry)
            ]

    def list_movable(self, subdirectory: str) -> set[str]:
        """Return the names of the files that can be moved. A link could lead elsewhere from another subdirectory."""
        with self._list(subdirectory) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}

    def list_statuses(self, subdirectory: str) -> dict[str, FileStatus]:
        """Return the status of all files that are not hidden, by name, in no order."""
        statuses = {}
        with self._list(subdirectory) as entries:
            for entry in entries:
                if not self._is_hidden(entry) and self._is_file(subdirectory, entry):
                    try:
                        statuses[entry.name] = _make_status(entry.stat())
                    except FileNotFoundError:  # deleted since
                        self._unresolved.add(subdirectory)
        return statuses

    def delete_unfinished(self) -> None:
        """Delete what killed writers have left, as far as listings have found it. Only for the only writer."""
        while self._unfinished:
            with contextlib.suppress(OSError):
                os.unlink(self._unfinished.pop())

    def _is_hidden(self, entry: os.DirEntry[str]) -> bool:
        if not entry.name.startswith("."):
            return False
        if entry.name.startswith(_UNFINISHED_PREFIX):
            self._unfinished.add(entry.path)
        return True

    @contextlib.contextmanager
    def _list(self, subdirectory: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        path = self.path(subdirectory)
        self._unresolved.discard(subdirectory)
        with self._translate(path, "cannot be listed"), os.scandir(path) as entries:
            yield entries

    def _is_file(self, subdirectory: str, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry is a file, or a link to one. Note links that may lead to one later."""
        is_file = _resolve(entry.is_file)
        if not is_file and entry.is_symlink():
            self._unresolved.add(subdirectory)
        return is_file

    # --- files -------------------------------------------------------------------------------------------------------

    def get_status(self, subdirectory: str, filename: str) -> FileStatus | None:
        """Return the status of a file. None if there is none."""
        path = f"{self.address}/{subdirectory}/{filename}"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _make_error(error, path, "cannot be read") from error
        return _make_status(status) if stat.S_ISREG(status.st_mode) else None

    def read_file(self, subdirectory: str, filename: str) -> tuple[bytes, FileStatus]:
        """Return the content of a file, and its status before it was read.

        Raises:
            NotFound: If there is no such file.
            StoreError: If it cannot be read.
        """
        path = f"{self.address}/{subdirectory}/{filename}"
        try:
            return self._read(path)
        except StoreError:
            raise
        except OSError as error:
            raise _make_error(error, path, "cannot be read") from error

    def iterate_file(self, subdirectory: str, filename: str) -> Iterator[bytes]:
        """Yield the content of a file in pieces. Errors are those of :meth:`read_file`."""
        path = self.path(subdirectory, filename)
        with self._translate(path, "cannot be read"), open(path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def _read(self, path: str, max_bytes: int | None = None) -> tuple[bytes, FileStatus]:
        fd = os.open(path, _READ_FLAGS)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path} is no regular file", address=path)
            if max_bytes is not None and status.st_size > max_bytes:
                raise StoreError(f"{path} has {status.st_size} bytes, more than {max_bytes}", address=path)
            data = os.read(fd, status.st_size + 1)
            if len(data) != status.st_size:  # a call reads at most 2 GiB, or the file is growing
                pieces = [data]
                while piece := os.read(fd, _PIECE_BYTES):
                    pieces.append(piece)
                data = b"".join(pieces)
        finally:
            os.close(fd)
        return data, _make_status(status)

    def save_file(self, subdirectory: str, filename: str, save: Callable[[str], object]) -> None:
        """Have a file written under a hidden name with the same ending, and then rename it.

        Args:
            subdirectory: Name of the subdirectory.
            filename: Name of the file. An existing one is replaced.
            save: Function that writes the file at the path with which it is called.

        Raises:
            StoreError: If it cannot be written, or if `save` writes no file at that path.
        """
        ending = os.path.splitext(filename)[1]
        ending = ending if len(os.fsencode(ending)) <= _MAX_ENDING_BYTES else ""
        unfinished = self.path(subdirectory, f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}{ending}")
        try:
            with self._translate(self.path(subdirectory, filename), "cannot be written"):
                save(unfinished)
            with self._translate(
                self.path(subdirectory, filename), "cannot be written: the data manager wrote no file"
            ):
                os.replace(unfinished, self.path(subdirectory, filename))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise

    def delete_file(self, subdirectory: str, filename: str) -> None:
        """Delete a file, if it exists."""
        path = self.path(subdirectory, filename)
        with self._translate(path, "cannot be deleted"), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def move_file(self, filename: str, source: str, target: str, new_name: str | None = None) -> bool:
        """Move a file to another subdirectory. Return False if it is gone, or if a file has this name there.

        Args:
            filename: Name of the file.
            source: Name of the subdirectory.
            target: Name of the other subdirectory.
            new_name: Name in the other subdirectory. Defaults to the same name.
        """
        old, new = self.path(source, filename), self.path(target, new_name or filename)
        with self._translate(old, "cannot be moved"):
            if os.path.lexists(new):
                return False
            try:
                os.rename(old, new)
            except FileNotFoundError:
                return False
        return True

    @error_translator
    def _translate(self, path: str, problem: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise _make_error(error, path, problem) from error


def _make_status(status: os.stat_result) -> FileStatus:
    return FileStatus(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _make_error(error: OSError, path: str, problem: str) -> StoreError:
    kind: type[StoreError] = StoreError
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        kind = NotFound
    elif isinstance(error, PermissionError):
        kind = AccessDenied
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = StorageFull
    return kind(f"{path} {problem}: {error.strerror or error}", address=path, errno=error.errno)


def _resolve(check: Callable[[], bool]) -> bool:
    """Return the result of a check of an entry. False if it is a link that leads nowhere, or that nobody may follow."""
    try:
        return check()
    except OSError as error:
        if error.errno not in _LEADS_NOWHERE:
            raise
        return False


def _drop_links(folders: Sequence[os.DirEntry[str]], root: os.stat_result) -> list[str]:
    """Return the names of folders, each of them once, although links may lead to the same one."""
    seen = {(root.st_dev, root.st_ino)}
    names = set()
    for entry in sorted(folders, key=lambda entry: (entry.is_symlink(), entry.name)):
        status = entry.stat()
        if (identity := (status.st_dev, status.st_ino)) not in seen:
            seen.add(identity)
            names.add(entry.name)
    return [entry.name for entry in folders if entry.name in names]


def _sync_folder(path: str) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync folders
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
