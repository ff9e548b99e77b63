"""Locks of a directory: who has it open, who writes to it, and who moves its files.

Two files in the root are locked with ``flock``. The kernel releases such a lock when its process ends, however it ends.

* ``.lock`` is held shared by every open instance, and alone by the one that moves files.
* ``.write-lock`` is held by the one instance that changes files or packs. It contains the process, the host, and which
  of these it does: who only writes packs will be done soon, so that others wait.

The lock of a descriptor is shared with forked processes, so a child takes the shared lock again for itself, and gives
up the other one without releasing it for its parent.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from streamloader.common.printable import make_printable
from streamloader.errors import AccessDenied, DirectoryLocked, StorageFull, StoreError

__all__ = ["LOCK_NAME", "WRITE_LOCK_NAME", "DirectoryLock"]

_log = logging.getLogger(__name__)

LOCK_NAME: Final = ".lock"
WRITE_LOCK_NAME: Final = ".write-lock"
_POLL_INTERVAL_S: Final = 0.02
_MAX_HOLDER_BYTES: Final = 4096
_OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_WRITES_PACKS: Final = "writes packs"
_WRITES_FILES: Final = "writes files"


class DirectoryLock:
    """The locks that one instance holds on a directory.

    A directory on a file system without locks, or in which this user cannot create files, is read without one.

    Args:
        root: Path of the directory.
        timeout_s: Maximum number of seconds to wait for another instance.

    Attributes:
        mutex: Lock for the threads of this process. A forked child has a new one, which no thread holds.
    """

    def __init__(self, root: str, timeout_s: float) -> None:
        self._root = root
        self._timeout_s = timeout_s
        self._fd = -1
        self._write_fd = -1
        self.mutex = threading.RLock()
        _ALL_LOCKS.add(self)

    @property
    def is_writer(self) -> bool:
        """Whether this instance holds the write lock, in this process."""
        return self._write_fd >= 0

    def open_shared(self) -> None:
        """Take the shared lock. Waits while another instance moves files.

        Raises:
            DirectoryLocked: If that takes longer than the timeout.
        """
        self._fd = self._open(LOCK_NAME)
        if not self._wait(fcntl.LOCK_SH):
            self.close()
            raise self._make_error(f"is locked while its files are moved{self._describe_holder()}")

    def try_alone(self, *, wait: bool = False, is_needed: Callable[[], bool] = lambda: True) -> bool:
        """Take the lock alone, instead of the shared one, and return whether that was possible. No other is open then.

        Args:
            wait: Whether to wait for other instances to close, up to the timeout. Defaults to False.
            is_needed: Function that returns whether to go on waiting. Defaults to one that returns True.
        """
        if self._fd < 0:
            return True
        if wait:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # others may wait for this instance in the same way
        if self._wait(fcntl.LOCK_EX, is_needed) if wait else _try_lock(self._fd, fcntl.LOCK_EX):
            return True
        self.share_again()  # an attempt that failed has lost the shared lock
        return False

    def share_again(self) -> None:
        """Take the shared lock instead of the other one."""
        if self._fd >= 0 and not self._wait(fcntl.LOCK_SH):
            raise self._make_error(f"is locked while its files are moved{self._describe_holder()}")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock alone for the time of a ``with`` block.

        Raises:
            DirectoryLocked: If other instances have the directory open.
        """
        if not self.try_alone():
            raise self._make_error(
                "is open elsewhere, and its files can be moved only by its only user. Close it there"
            )
        try:
            yield
        finally:
            self.share_again()

    def open_writer(self, *, wait: bool = False) -> None:
        """Take the write lock, if this instance does not hold it.

        Args:
            wait: Whether to wait for another writer: up to the timeout, and as long as it only writes packs. This
                instance only writes packs itself then. Defaults to False.

        Raises:
            DirectoryLocked: If another instance holds it.
            StoreError: If this user cannot write to the directory.
        """
        if self._write_fd >= 0:
            return
        fd = self._open(WRITE_LOCK_NAME, must_write=True)
        try:
            while not self._wait_as_writer(fd, wait=wait):  # somebody has deleted the file since it was opened
                os.close(fd)
                fd = self._open(WRITE_LOCK_NAME, must_write=True)
        except BaseException:
            os.close(fd)
            raise
        self._write_fd = fd
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "does": _WRITES_PACKS if wait else _WRITES_FILES}
        with contextlib.suppress(OSError):  # on a full disk, the message of another writer names nobody
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)

    def _wait_as_writer(self, fd: int, *, wait: bool) -> bool:
        """Lock a descriptor of the write lock. Return whether it is that of the file that others would open."""
        deadline = time.monotonic() + (self._timeout_s if wait else 0.0)
        while not _try_lock(fd, fcntl.LOCK_EX):
            now = time.monotonic()
            if wait and self._read_holder().get("does") == _WRITES_PACKS:
                deadline = now + self._timeout_s
            elif now >= deadline:
                raise self._make_error(
                    f"is being written to{self._describe_holder()}. Close it there, or only read it here"
                )
            time.sleep(_POLL_INTERVAL_S)
        return self._is_current(fd)

    def drop_lost(self) -> None:
        """Give the write lock up if somebody has deleted its file, since another instance may hold a new one."""
        if self._write_fd >= 0 and not self._is_current(self._write_fd):
            _log.warning("%s was deleted while it was locked", os.path.join(self._root, WRITE_LOCK_NAME))
            self.close_writer()

    def _is_current(self, fd: int) -> bool:
        """Return whether the write lock that others would open is that of a descriptor."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(os.path.join(self._root, WRITE_LOCK_NAME)))
        except FileNotFoundError:
            return False

    def close_writer(self) -> None:
        """Release the write lock, also in forked processes that still have its descriptor."""
        fd, self._write_fd = self._write_fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def close(self) -> None:
        """Release all locks. Safe to call twice."""
        self.close_writer()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def reopen_in_child(self) -> None:
        """Take the shared lock for a forked process, and leave the write lock to its parent."""
        self.mutex = threading.RLock()
        write_fd, self._write_fd = self._write_fd, -1
        if write_fd >= 0:
            os.close(write_fd)
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):  # the descriptor of the parent is as good, until the parent moves files
            fd = self._open(LOCK_NAME)
            if fd >= 0 and _try_lock(fd, fcntl.LOCK_SH):
                self._fd, fd = fd, self._fd
            if fd >= 0:
                os.close(fd)

    def _open(self, name: str, *, must_write: bool = False) -> int:
        """Open a lock file, and return its descriptor. -1 if there is none, and none can be created."""
        path = os.path.join(self._root, name)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | _OPEN_FLAGS, 0o666)
        except OSError as error:
            if error.errno not in (*_NOT_WRITABLE, *_NO_ROOM) or must_write:
                kind = _get_error_kind(error)
                problem = f"{path} cannot be opened for writing: {error.strerror}"
                raise kind(problem, address=self._root, errno=error.errno) from error
        try:
            return os.open(path, os.O_RDONLY | _OPEN_FLAGS)
        except OSError:
            return -1

    def _wait(self, kind: int, is_needed: Callable[[], bool] = lambda: True) -> bool:
        deadline = time.monotonic() + self._timeout_s
        while self._fd >= 0 and not _try_lock(self._fd, kind):
            if time.monotonic() >= deadline or not is_needed():
                return False
            time.sleep(_POLL_INTERVAL_S)
        return True

    def _describe_holder(self) -> str:
        holder = self._read_holder()
        try:
            return f" by process {int(holder['pid'])} on {make_printable(holder['host'], 100)}"
        except (ValueError, TypeError, LookupError):
            return " by another process"

    def _read_holder(self) -> dict[str, Any]:
        """Return what the instance that holds the write lock has noted. Nothing if that is not known."""
        try:
            with open(os.path.join(self._root, WRITE_LOCK_NAME), "rb") as file:
                holder = json.loads(file.read(_MAX_HOLDER_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _make_error(self, problem: str) -> DirectoryLocked:
        return DirectoryLocked(f"{self._root} {problem}", address=self._root)


def _get_error_kind(error: OSError) -> type[StoreError]:
    if error.errno in _NO_ROOM:
        return StorageFull
    return AccessDenied if error.errno in _NOT_WRITABLE else StoreError


_ALL_LOCKS: Final[weakref.WeakSet[DirectoryLock]] = weakref.WeakSet()


def _reopen_all_in_child() -> None:
    for lock in list(_ALL_LOCKS):
        lock.reopen_in_child()


os.register_at_fork(after_in_child=_reopen_all_in_child)


def _try_lock(fd: int, kind: int) -> bool:
    """Lock a descriptor without waiting, and return whether it was possible. True where there are no locks."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("the file system has no locks: make sure that only one process changes the directory")
    return True
