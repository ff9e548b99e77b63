"""Take turns at hosts: for all lanes, workers and ranks of this machine that share a folder.

A host has a few slots, one for each concurrent request, and a time before which its next request must not start. Both
are files of the shared folder: a slot is a locked file (flock), and the time is the content of another one. A process
that is killed therefore blocks nobody: the system releases its locks, and a time that it has reserved passes.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from streamloader.common.guarded_files import GuardedFolder, lock_file
from streamloader.errors import StoreTimeout
from streamloader.streams.articles.kept_pages import hash_name, translate_errors
from streamloader.streams.articles.locks import TURN_STAGE, try_lock

__all__ = ["HostTurns"]

_TIME: Final = struct.Struct("<d")  # seconds since 1970: all processes share this clock
_LOCK_TIMEOUT_S: Final = 60.0  # of a lock that is held for microseconds
_SLOT_POLL_INTERVAL_S: Final = 0.05
_MAX_WAIT_S: Final = 3600.0


class HostTurns:
    """Turns at hosts.

    Args:
        folder: Folder that the processes share.
        slots: Maximum number of concurrent requests to one host.
    """

    def __init__(self, folder: str, slots: int) -> None:
        self._folder = folder
        self._slots = slots

    async def take(self, host: str, delay_s: float, address: str) -> Callable[[], None]:
        """Wait for a turn at a host. Return the function that ends it, which may be called twice.

        Args:
            host: Name and port of the host.
            delay_s: Minimum seconds between the starts of two requests.
            address: Address that is waited for, for error messages.

        Raises:
            StoreTimeout: If others have reserved the host for the next hour.
        """
        name = hash_name(host)
        release = await self._take_slot(name, address)
        try:
            wait_s = await asyncio.to_thread(self._move_time, name, delay_s, reserve=True)
            if wait_s > _MAX_WAIT_S:
                raise self._make_timeout(address)
            await asyncio.sleep(wait_s)
        except BaseException:
            release()
            raise
        return release

    async def postpone(self, host: str, seconds: float) -> None:
        """Let no request to a host start for some seconds, because its server demands it."""
        await asyncio.to_thread(self._move_time, hash_name(host), min(seconds, _MAX_WAIT_S), reserve=False)

    async def _take_slot(self, name: str, address: str) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + _MAX_WAIT_S
        while True:
            for slot in range(self._slots):
                lock = try_lock(self._folder, f"{name}.{slot}")
                if lock is not None:
                    return lock.release
            if loop.time() > end_s:
                raise self._make_timeout(address)
            await asyncio.sleep(_SLOT_POLL_INTERVAL_S)

    def _move_time(self, name: str, seconds: float, *, reserve: bool) -> float:
        """Move the time of a host: to `seconds` after the start of a request now reserved, or after the present.

        Returns:
            Seconds until the reserved request may start.
        """
        with (
            translate_errors(self._folder),
            GuardedFolder(self._folder, create=True) as folder,
            lock_file(folder, f"{name}.lock", _LOCK_TIMEOUT_S),
        ):
            fd = folder.open_file(f"{name}.time", os.O_RDWR | os.O_CREAT)
            try:
                data, now = os.pread(fd, _TIME.size, 0), time.time()
                free_at = _TIME.unpack(data)[0] if len(data) == _TIME.size else now
                if not now <= free_at <= now + 2 * _MAX_WAIT_S:  # also if the clock was set back
                    free_at = now
                next_free = free_at + seconds if reserve else max(free_at, now + seconds)
                if not reserve or free_at - now <= _MAX_WAIT_S:
                    os.pwrite(fd, _TIME.pack(next_free), 0)
                return free_at - now
            finally:
                os.close(fd)

    def _make_timeout(self, address: str) -> StoreTimeout:
        return StoreTimeout(
            f"waited for {address} ({TURN_STAGE}): others have reserved the next {_MAX_WAIT_S:.0f} s. Use fewer "
            "lanes, or a shorter delay_s= if the host allows it",
            address=address,
            waited=_MAX_WAIT_S,
            stage=TURN_STAGE,
        )
