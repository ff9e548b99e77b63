"""Open files and folders at names that other users of the machine can plant or change.

Caches, lock files and temporary folders have names that others can predict. A folder is used only if it belongs to this
user or to root, and no other user can replace what is in it:

* no other user may write to it, or its sticky bit is set, as it is in ``/tmp``. A group that contains only the owner
  (the private group of each user, which many systems create) does not count as others;
* the folder itself is not a symbolic link.

Everything in it is opened through the descriptor of the folder, so a folder that is renamed or replaced in the meantime
does not matter. A file is used only if it is a regular file of this user or of root that no other user can write to.
Nothing is opened in a way that waits, as opening a pipe would.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import time
from collections.abc import Iterator
from typing import Final, Self

__all__ = ["GuardedFolder", "UnsafePath", "check_socket", "lock_file", "open_regular_file"]

_ROOT_UID: Final = 0
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOCK_POLL_INTERVAL_S: Final = 0.05
_ADVICE: Final = "use a folder of your own, which may be a new one inside it"
_REMOVE: Final = "another user may have put it there, so remove it"


class UnsafePath(PermissionError):
    """A file, folder or socket that is not used, because another user may have planted it or can change it.

    Attributes:
        message: The path and what is wrong with it, and what to do.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(errno.EPERM, problem, path)
        self.message = f"{path} {problem}"

    def __str__(self) -> str:
        return self.message


class GuardedFolder:
    """An open folder whose contents no other user can replace. Close it, or use it as a context manager.

    Args:
        path: Path of the folder. A link in its last part is refused; links before it are followed.
        create: Whether to create the folder, for this user only, if it does not exist. Defaults to False.
        parent: Open folder that contains it. The last part of `path` is its name there. Defaults to none.

    Attributes:
        path: Path of the folder, for messages.
        fd: File descriptor of the folder.
        status: Result of ``os.fstat``.

    Raises:
        UnsafePath: If another user could replace what is in the folder.
        OSError: If the folder cannot be opened or created.
    """

    fd: int

    def __init__(self, path: str, *, create: bool = False, parent: GuardedFolder | None = None) -> None:
        self.path = path = path.rstrip("/") or "/"
        name, dir_fd = (path, None) if parent is None else (path[path.rindex("/") + 1 :], parent.fd)
        try:
            self.fd = _open_folder(name, dir_fd)
        except FileNotFoundError:
            if not create:
                raise
            _make_folder(name, dir_fd)
            self.fd = _open_folder(name, dir_fd)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            kind = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
            if stat.S_ISLNK(kind):
                raise UnsafePath(path, "is a symbolic link: give the path of the folder that it leads to") from error
            raise NotADirectoryError(errno.ENOTDIR, "is not a folder", path) from error
        self.status = os.fstat(self.fd)
        try:
            _check_folder(path, self.status)
        except BaseException:
            self.close()
            raise

    @property
    def is_mine(self) -> bool:
        """Whether the folder belongs to this user, and not to root."""
        return self.status.st_uid == os.geteuid()

    def open_folder(self, name: str, *, create: bool = False) -> GuardedFolder:
        """Open a folder in this one. The arguments and errors are those of the class."""
        return GuardedFolder(f"{self.path}/{name}", create=create, parent=self)

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file in this folder, and return its descriptor. A new file is created for this user only.

        Args:
            name: Name of the file.
            flags: Flags of ``os.open``. Defaults to reading. With ``O_TRUNC``, the file would be empty before it is
                checked, so do not use that.

        Raises:
            UnsafePath: If the file is not a regular file of this user or of root, or if others can write to it.
            OSError: If the file cannot be opened.
        """
        path = f"{self.path}/{name}"
        try:
            fd = os.open(name, flags | _FILE_FLAGS, 0o600, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket, or a pipe without a reader
                raise UnsafePath(path, f"is not a regular file: {_REMOVE}") from error
            raise
        try:
            _check_file(path, os.fstat(fd), allow_links=not self.is_shared)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @property
    def is_shared(self) -> bool:
        """Whether other users can create files in the folder, whose sticky bit protects those of this user."""
        return bool(self.status.st_mode & stat.S_ISVTX and _is_writable_by_others(self.status))

    def check_file(self, name: str) -> os.stat_result:
        """Check a file as :meth:`open_file` does, without opening it, and return its status.

        Raises:
            UnsafePath: If the file is not a regular file of this user or of root, or if others can write to it.
            FileNotFoundError: If there is no such file.
        """
        status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        _check_file(f"{self.path}/{name}", status, allow_links=not self.is_shared)
        return status

    def replace(self, old_name: str, new_name: str) -> None:
        """Rename a file in this folder, replacing a file of the new name."""
        os.replace(old_name, new_name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Delete a file in this folder."""
        os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def lock_file(folder: GuardedFolder, name: str, timeout_s: float) -> Iterator[None]:
    """Hold the exclusive lock (flock) of a file in a folder. The file is created if it does not exist.

    Raises:
        UnsafePath: If the file could have been planted by another user.
        TimeoutError: If another process holds the lock for `timeout_s` seconds.
    """
    fd = folder.open_file(name, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    path = f"{folder.path}/{name}"
                    raise TimeoutError(errno.ETIMEDOUT, f"locked for {timeout_s:.0f} s", path) from None
            time.sleep(_LOCK_POLL_INTERVAL_S)
        yield
    finally:
        os.close(fd)  # releases the lock


def open_regular_file(path: str) -> int:
    """Open a file of any owner that the user named for reading, and return its descriptor. Links are followed.

    A pipe or device is refused before it is opened, because that has effects: it lets a writer go on, or drives a
    device. The opened file is checked again, since it may be another one.

    Raises:
        OSError: If the file cannot be opened, or is a folder, pipe, socket or device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise _not_a_file(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _not_a_file(path) from error
        raise
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise _not_a_file(path)
    return fd


def _not_a_file(path: str) -> OSError:
    return OSError(errno.EINVAL, "is a pipe, socket or device, not a file", path)


def check_socket(path: str) -> None:
    """Check that a socket belongs to this user or to root. The path may be a link.

    Raises:
        UnsafePath: If it does not, or is not a socket.
        OSError: If it does not exist.
    """
    status = os.stat(path)
    if not stat.S_ISSOCK(status.st_mode):
        raise UnsafePath(path, "is not a socket")
    if not _is_trusted(status.st_uid):
        raise UnsafePath(path, f"belongs to {_name_user(status.st_uid)}")


def _open_folder(name: str, dir_fd: int | None) -> int:
    return os.open(name, _FOLDER_FLAGS, dir_fd=dir_fd)


def _make_folder(name: str, dir_fd: int | None) -> None:
    """Create a folder for this user only. Another process may create it at the same time."""
    if dir_fd is None:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=dir_fd)


def _check_folder(path: str, status: os.stat_result) -> None:
    if not _is_trusted(status.st_uid):
        raise UnsafePath(path, f"belongs to {_name_user(status.st_uid)}, who can replace what is in it: {_ADVICE}")
    if not status.st_mode & stat.S_ISVTX and _is_writable_by_others(status):
        raise UnsafePath(
            path,
            f"has the permissions {status.st_mode & 0o7777:04o}, so other users can replace what is in it: {_ADVICE}, "
            "or check its contents and remove that permission (chmod go-w)",
        )


def _check_file(path: str, status: os.stat_result, *, allow_links: bool) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePath(path, f"is not a regular file: {_REMOVE}")
    if not _is_trusted(status.st_uid):
        raise UnsafePath(path, f"belongs to {_name_user(status.st_uid)}: {_REMOVE}")
    if _is_writable_by_others(status):
        raise UnsafePath(path, f"has the permissions {status.st_mode & 0o7777:04o}: other users can change it")
    if not allow_links and status.st_nlink > 1:
        raise UnsafePath(path, f"has a second name in another folder: {_REMOVE}")


def _is_trusted(uid: int) -> bool:
    return uid in (_ROOT_UID, os.geteuid())


def _is_writable_by_others(status: os.stat_result) -> bool:
    """Return whether someone else than the owner and root can write to a file or folder."""
    writers = status.st_mode & _OTHERS_WRITE
    return bool(writers) and not (writers == stat.S_IWGRP and _is_private_group(status.st_uid, status.st_gid))


@functools.lru_cache(maxsize=64)
def _is_private_group(uid: int, gid: int) -> bool:
    """Return whether a group is the private one of a user: it has the user's name, and no other members.

    Where each user has such a group, the usual umask leaves the group write permission. Root's group is none: see
    ``usergroups`` in pam_umask(8).
    """
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return uid != _ROOT_UID and user.pw_name == group.gr_name and set(group.gr_mem) <= {user.pw_name}


def _name_user(uid: int) -> str:
    return f"another user (uid {uid})"
