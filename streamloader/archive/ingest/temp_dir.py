"""Temporary folders that are removed soon after all of their users have exited, even if the users were killed.

All processes that use a folder hold a shared lock (flock) on it and the write end of a pipe. A shell in a session of
its own reads from the pipe, and removes the folder as soon as all users are gone. If the shell was killed as well (by a
power failure, or with a job's control group), the next process that creates such a folder removes the unlocked ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from typing import Final, Self

__all__ = ["PREFIX", "TempDir", "remove_stale_dirs"]

PREFIX: Final = "streamloader-ingest-"
_REMOVER_TIMEOUT_S: Final = 60.0
_MIN_AGE_S: Final = 30.0  # a younger unlocked folder may be about to be locked


class TempDir:
    """A temporary folder of this process, and of child processes that inherit `fds`.

    Attributes:
        folder: Path of the folder.
        fds: File descriptors that mark the folder as in use.
    """

    def __init__(self) -> None:
        remove_stale_dirs()
        self.folder = tempfile.mkdtemp(prefix=PREFIX)
        lock_fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock_fd, fcntl.LOCK_SH)
        read_fd, write_fd = os.pipe()
        self.fds: tuple[int, ...] = (lock_fd, write_fd)
        try:
            self._remover = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r _; cd / && rm -rf -- "$0"', self.folder],
                stdin=read_fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(write_fd)
            os.rmdir(self.folder)
            os.close(lock_fd)
            raise
        finally:
            os.close(read_fd)

    def close(self) -> None:
        """Remove the folder with its contents. Safe to call twice."""
        if self.fds:
            shutil.rmtree(self.folder, ignore_errors=True)
            for fd in self.fds:
                os.close(fd)
            self.fds = ()
            self._remover.wait(_REMOVER_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def remove_stale_dirs() -> None:
    """Remove the folders whose users are all gone."""
    root = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if name.startswith(PREFIX):
                _remove_if_unused(os.path.join(root, name))


def _remove_if_unused(folder: str) -> None:
    with contextlib.suppress(OSError):  # the folder is gone, in use, or belongs to another user
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if status.st_uid == os.getuid() and time.time() - status.st_ctime > _MIN_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)
