"""Temporary folders that are removed soon after all of their users have exited, even if the users were killed.

All processes that use a folder hold a shared lock (flock) on it and the write end of a pipe. A shell in a session of
its own reads from the pipe, and removes the folder as soon as all users are gone. If the shell was killed as well (by a
power failure, or with a job's control group), the next process that creates such a folder removes the unlocked ones.

Other users may plant anything under such a name in a folder such as ``/tmp``: only folders of this user are touched.
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

from streamloader.common.guarded_files import GuardedFolder, UnsafePath
from streamloader.errors import ConfigError

__all__ = ["PREFIX", "TempDir", "remove_stale_dirs"]

PREFIX: Final = "streamloader-ingest-"
_REMOVER_TIMEOUT_S: Final = 60.0
_MIN_AGE_S: Final = 30.0  # a younger unlocked folder may be about to be locked


class TempDir:
    """A temporary folder of this process, and of child processes that inherit `fds`.

    Attributes:
        folder: Path of the folder.
        fds: File descriptors that mark the folder as in use.

    Raises:
        ConfigError: If other users can replace what is in the folder for temporary files.
    """

    def __init__(self) -> None:
        remove_stale_dirs()
        self.folder, lock_fd = _create_dir()
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
    """Remove the folders of this user whose users are all gone."""
    with contextlib.suppress(OSError), _open_root() as root:
        for name in os.listdir(root.fd):
            if name.startswith(PREFIX):
                _remove_if_unused(root, name)


def _open_root() -> GuardedFolder:
    return GuardedFolder(os.path.realpath(tempfile.gettempdir()))


def _create_dir() -> tuple[str, int]:
    """Create a folder, and return its path and its descriptor."""
    try:
        with _open_root() as root:
            path = tempfile.mkdtemp(prefix=PREFIX, dir=root.path)
            with root.open_folder(os.path.basename(path)) as folder:
                return path, os.dup(folder.fd)
    except UnsafePath as error:
        raise ConfigError(
            f"the folder for temporary files cannot be used: {error.message}. Set TMPDIR to such a folder",
            address=tempfile.gettempdir(),
        ) from error


def _remove_if_unused(root: GuardedFolder, name: str) -> None:
    # Anything that is not a folder of this user is skipped, and so is a folder that is gone or in use.
    with contextlib.suppress(OSError), root.open_folder(name) as folder:
        if folder.is_mine:
            fcntl.flock(folder.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(folder.fd).st_ctime > _MIN_AGE_S:
                shutil.rmtree(name, ignore_errors=True, dir_fd=root.fd)
