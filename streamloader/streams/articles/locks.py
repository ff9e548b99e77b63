"""Locks among the tasks and processes of this machine that share a folder. The system releases those of the dead."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from typing import Final

from streamloader.common.guarded_files import GuardedFolder
from streamloader.errors import StoreTimeout
from streamloader.streams.articles.kept_pages import translate_errors

__all__ = ["TURN_STAGE", "HeldLock", "hold_lock", "try_lock"]

TURN_STAGE: Final = "waiting for other processes of this machine"
"""Stage of timeouts that are not the fault of a server."""

_POLL_INTERVAL_S: Final = 0.05


class HeldLock:
    """A lock that is held until :meth:`release`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Release the lock. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.release()


def try_lock(folder: str, name: str) -> HeldLock | None:
    """Lock a file in a folder, both of which are created if they do not exist.

    Returns:
        The lock. None if another task or process holds it.

    Raises:
        ConfigError: If the folder cannot be used, see :class:`streamloader.common.guarded_files.GuardedFolder`.
        StorageFull: If its disk is full.
    """
    with translate_errors(folder), GuardedFolder(folder, create=True) as guarded:
        fd = guarded.open_file(name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return HeldLock(fd)


@contextlib.asynccontextmanager
async def hold_lock(folder: str, name: str, timeout_s: float) -> AsyncIterator[None]:
    """Hold the lock of a file in a folder.

    Raises:
        StoreTimeout: If others hold it for `timeout_s` seconds.
        ConfigError: If the folder cannot be used.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    while (lock := try_lock(folder, name)) is None:
        if loop.time() > end_s:
            raise StoreTimeout(
                f"waited {timeout_s:.0f} s for {folder}/{name} ({TURN_STAGE}): it stayed locked",
                address=folder,
                waited=timeout_s,
                stage=TURN_STAGE,
            )
        await asyncio.sleep(_POLL_INTERVAL_S)
    try:
        yield
    finally:
        lock.release()
