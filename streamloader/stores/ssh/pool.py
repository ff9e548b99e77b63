"""The connections to one SSH server, and the channels on them, shared by all transfers of a store."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncssh

from streamloader.config import Timeouts
from streamloader.errors import AccessDenied, ClosedError, ProtocolFault, StoreTimeout, StreamloaderError, Unreachable
from streamloader.stores.ssh.connect import Login, connect, goodbye
from streamloader.stores.ssh.packets import BadReply
from streamloader.stores.ssh.sftp import Lost, Sftp

__all__ = ["Pool"]

_WINDOW: Final = 4 << 20  # bytes that a server may send ahead on one channel
_IN_FLIGHT: Final = 64 << 20  # bytes that all transfers of a store may have asked for
_DEEPEST: Final = 64  # blocks in flight of one transfer
_CROWD: Final = 4  # transfers on each channel, from which on a new channel is worth a wait
_PAUSE: Final = 5.0  # seconds without attempts at a further channel, when one was refused
_NO_SUBSYSTEM: Final = 0xFFFFFFFF  # asyncssh's code for a request that the server refused


class Pool:
    """Opens connections and channels as they are needed, up to so many, and gives out the least used channel.

    A connection, or a channel, that is lost is forgotten: who comes next gets a new one.

    Args:
        login: how to connect.
        timeouts: of the store.
        address: of the store, for messages.
        connections: at most.
        channels: at most, on each; fewer if the server wants no more.
    """

    def __init__(self, login: Login, timeouts: Timeouts, address: str, connections: int, channels: int) -> None:
        self._login = login
        self._timeouts = timeouts
        self._address = address
        self._connections = connections
        self._channels = channels
        self._links: list[_Link] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._home = os.getpid(), asyncio.get_running_loop()
        self._closed = False
        self._not_before = 0.0  # no further channels before this time, when one was refused

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[Sftp]:
        """Give a channel that works, as far as anybody knows.

        Raises:
            StoreError: there is none, see :func:`streamloader.stores.ssh.connect.connect`.
        """
        channel = await self._take()
        channel.users += 1
        try:
            yield channel
        finally:
            channel.users -= 1

    def depth(self, block: int) -> int:
        """Return how many blocks one transfer may have in flight, now that so many share the server."""
        users = max(1, sum(channel.users for link in self._links for channel in link.channels))
        return max(2, min(_DEEPEST, _IN_FLIGHT // (users * block)))

    async def close(self) -> None:
        """Say goodbye. Whoever still waits for a channel gets none."""
        self._closed = True
        opening, links = list(self._opening), self._links
        self._opening, self._links = set(), []
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        chains = [link.chain for link in links if link.chain]
        try:
            await asyncio.gather(*(goodbye(chain) for chain in chains))
        finally:
            for chain in chains:
                for connection in chain:
                    connection.abort()

    async def _take(self) -> Sftp:
        while True:
            if self._closed:
                raise ClosedError(f"{self._address} was closed", address=self._address)
            self._sweep()
            channels = [channel for link in self._links for channel in link.channels]
            best = min(channels, key=lambda channel: channel.users, default=None)
            if best is None or best.users:
                self._open_another()
            if best is not None and (best.users < _CROWD or not self._opening):
                return best
            await self._opened(needed=best is None)

    async def _opened(self, *, needed: bool) -> None:
        """Wait until a channel was opened, or could not be."""
        done, others = await asyncio.wait(self._opening, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            hopeless = needed and not others and not any(link.channels for link in self._links)
            if isinstance(error, StreamloaderError) and hopeless:
                raise copy.copy(error) from error  # each waiter gets its own
            if error is not None and not isinstance(error, StreamloaderError):
                raise error

    def _open_another(self) -> None:
        """Begin to open a channel, where there is room, on a new connection if need be."""
        wanting = not self._opening and not any(link.channels for link in self._links)
        if not wanting and asyncio.get_running_loop().time() < self._not_before:
            return
        link = next((link for link in self._links if link.has_room()), None)
        if link is None:
            if len(self._links) >= self._connections or any(link.chain is None for link in self._links):
                return
            link = _Link(self._channels)
            self._links.append(link)
        link.opening += 1
        task = asyncio.create_task(self._open(link), name=f"ssh channel to {self._address}")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        task.add_done_callback(_seen)

    async def _open(self, link: _Link) -> None:
        try:
            async with link.lock:
                if link.failed is not None:
                    raise copy.copy(link.failed)  # one attempt to log in is enough
                if link.chain is None:
                    try:
                        link.chain = await connect(self._login, self._timeouts, self._address)
                    except StreamloaderError as error:
                        link.failed = error
                        self._drop(link)
                        raise
            channel = await self._open_channel(link, link.chain[0])
            link.channels.append(channel)
        except BaseException:
            self._not_before = asyncio.get_running_loop().time() + _PAUSE
            if not link.channels and link.opening == 1:
                self._drop(link)
            raise
        finally:
            link.opening -= 1

    async def _open_channel(self, link: _Link, connection: asyncssh.SSHClientConnection) -> Sftp:
        limit = asyncio.timeout(self._timeouts.connect)
        try:
            async with limit:
                return await Sftp.open(connection, _WINDOW)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StoreTimeout(
                f"waited {self._timeouts.connect:.1f} s for {self._address} (opening SFTP): no answer",
                address=self._address,
                waited=self._timeouts.connect,
                stage="opening SFTP",
            ) from error
        except asyncssh.ChannelOpenError as error:
            if error.code == _NO_SUBSYSTEM:
                raise AccessDenied(
                    f"{self._address} lets us in, and offers no SFTP: sshd_config there needs 'Subsystem sftp "
                    "internal-sftp'",
                    address=self._address,
                ) from error
            link.most = max(1, len(link.channels) + link.opening - 1)  # MaxSessions of the server
            raise Unreachable(
                f"{self._address} opens no channel: {error.reason}. A lower channels= may help", address=self._address
            ) from error
        except Lost as error:
            raise Unreachable(f"{self._address} hung up: {error}", address=self._address) from error
        except BadReply as error:
            raise ProtocolFault(f"{self._address} speaks no SFTP: {error}", address=self._address) from error

    def _sweep(self) -> None:
        """Forget what is lost, and what has been silent for longer than a server may be."""
        patience = 0.9 * min(self._timeouts.response, self._timeouts.window)
        now = asyncio.get_running_loop().time()
        for link in list(self._links):
            link.channels = [channel for channel in link.channels if channel.lost is None]
            if link.chain is not None and link.chain[0].is_closed():
                self._drop(link)
            stalled = [channel for channel in link.channels if channel.stalled(patience)]
            if stalled and now - max(channel.heard for channel in link.channels) > patience:
                _log.info("%s: the server is silent on a connection, which is given up", self._address)
                self._drop(link)
            for channel in stalled:
                link.channels.remove(channel)
                channel.close()

    def _drop(self, link: _Link) -> None:
        if link in self._links:
            self._links.remove(link)
        for connection in link.chain or ():
            connection.abort()

    def forsake(self) -> None:
        """Give all up if the loop has ended, or all this belongs to the parent of this process.

        It is kept, not freed: a transport that is freed would take itself out of a loop that it shares with the parent,
        or complain that nobody closed it. Its socket is closed here, which does not touch the parent's.
        """
        pid, loop = self._home
        if pid == os.getpid() and not loop.is_closed():
            return  # it is a pickled copy of the store that forgets it
        for link in self._links:
            for connection in link.chain or ():
                socket = connection.get_extra_info("socket")
                if isinstance(socket, TransportSocket) and socket.fileno() >= 0:  # uvloop has closed its own
                    with contextlib.suppress(OSError):
                        os.close(socket.fileno())
        _forsaken.append((self._links, self._opening))


class _Link:
    """One connection, made or about to be."""

    def __init__(self, most: int) -> None:
        self.most = most  # channels
        self.opening = 0
        self.channels: list[Sftp] = []
        self.chain: list[asyncssh.SSHClientConnection] | None = None
        self.failed: StreamloaderError | None = None
        self.lock = asyncio.Lock()

    def has_room(self) -> bool:
        return len(self.channels) + self.opening < self.most


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # those who waited were told


_forsaken: Final[list[Any]] = []
_log: Final = logging.getLogger("streamloader")
