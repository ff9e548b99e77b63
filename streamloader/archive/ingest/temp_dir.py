"""Temporary folders that do not outlive those who use them for long, however they die.

All processes that use a folder hold a lock (flock) and the writing end of a pipe. A shell in a session of its own reads
from the pipe, and removes the folder when they are all gone: at once, also where all were killed. If it was killed as
well (the machine lost its power, a job's control group was killed), the next one who makes such a folder removes those
that nobody has locked.
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

__all__ = ["PREFIX", "Scratch", "sweep"]

PREFIX: Final = "streamloader-ingest-"
_LEAVE_WITHIN: Final = 60.0  # seconds for a shell to remove what is left
_YOUNG: Final = 30.0  # seconds in which a folder that nobody has locked may just be about to be


class Scratch:
    """A temporary folder of this process, and of those that inherit `fds`.

    Attributes:
        folder: its path.
        fds: the descriptors that say that it is in use.
    """

    def __init__(self) -> None:
        sweep()
        self.folder = tempfile.mkdtemp(prefix=PREFIX)
        lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_SH)
        reading, writing = os.pipe()
        self.fds: tuple[int, ...] = (lock, writing)
        try:
            self._remover = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r _; cd / && rm -rf -- "$0"', self.folder],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(writing)
            os.rmdir(self.folder)
            os.close(lock)
            raise
        finally:
            os.close(reading)

    def close(self) -> None:
        """Remove it with all that is in it. Safe to call twice."""
        if self.fds:
            shutil.rmtree(self.folder, ignore_errors=True)
            for fd in self.fds:
                os.close(fd)
            self.fds = ()
            self._remover.wait(_LEAVE_WITHIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sweep() -> None:
    """Remove the folders whose users were all killed."""
    root = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if name.startswith(PREFIX):
                _remove_if_left(os.path.join(root, name))


def _remove_if_left(folder: str) -> None:
    with contextlib.suppress(OSError):  # it is gone, somebody else's, or in use
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if status.st_uid == os.getuid() and time.time() - status.st_ctime > _YOUNG:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)
