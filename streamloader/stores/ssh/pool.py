"""Pool of the connections to one SSH server and of their SFTP channels, shared by all transfers of a store."""

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

from streamloader.common.printable import make_error_printable
from streamloader.config import Timeouts
from streamloader.errors import AccessDenied, ClosedError, ProtocolError, StoreTimeout, StreamloaderError, Unreachable
from streamloader.stores.ssh.connect import SshLogin, close_chain, connect
from streamloader.stores.ssh.packets import BadReply
from streamloader.stores.ssh.sftp import ChannelLost, SftpChannel

__all__ = ["SshPool"]

_CHANNEL_WINDOW_BYTES: Final = 4 << 20  # that a server may send ahead on one channel
_MAX_IN_FLIGHT_BYTES: Final = 64 << 20  # requested by all transfers of a store
_MAX_QUEUE_DEPTH: Final = 64  # blocks in flight of one transfer
# With this many transfers on each channel, a transfer waits for a new channel instead of sharing one.
_CROWDED_CHANNEL_USERS: Final = 4
# Pause after the server refused a further channel.
_REFUSED_CHANNEL_PAUSE_S: Final = 5.0
_SUBSYSTEM_REFUSED: Final = 0xFFFFFFFF  # asyncssh's code for a request that the server refused


class SshPool:
    """Pool that opens connections and channels on demand and hands out the least used channel.

    Connections and channels that are lost are dropped and replaced on demand.

    Args:
        login: Login options of the store.
        timeouts: Time limits of the store.
        address: Address of the store for messages.
        max_connections: Maximum number of connections.
        max_channels: Maximum number of channels of each connection. Fewer are used if the server accepts fewer.
    """

    def __init__(
        self, login: SshLogin, timeouts: Timeouts, address: str, max_connections: int, max_channels: int
    ) -> None:
        self._login = login
        self._timeouts = timeouts
        self._address = address
        self._max_connections = max_connections
        self._max_channels = max_channels
        self._connections: list[_SshConnection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._owner = os.getpid(), asyncio.get_running_loop()
        self._closed = False
        self._no_new_channel_before = 0.0  # on the loop's clock

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[SftpChannel]:
        """Lend a channel that appears to work.

        Raises:
            StoreError: If no channel can be opened; see :func:`streamloader.stores.ssh.connect.connect`.
        """
        channel = await self._acquire_channel()
        channel.users += 1
        try:
            yield channel
        finally:
            channel.users -= 1

    def max_queue_depth(self, block: int) -> int:
        """Return how many blocks of `block` bytes one transfer may have in flight, given the number of transfers."""
        users = max(1, sum(channel.users for connection in self._connections for channel in connection.channels))
        return max(2, min(_MAX_QUEUE_DEPTH, _MAX_IN_FLIGHT_BYTES // (users * block)))

    async def close(self) -> None:
        """Close all connections. Tasks that wait for a channel get a ClosedError."""
        self._closed = True
        opening, connections = list(self._opening), self._connections
        self._opening, self._connections = set(), []
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        chains = [connection.chain for connection in connections if connection.chain]
        try:
            await asyncio.gather(*(close_chain(chain) for chain in chains))
        finally:
            for chain in chains:
                for ssh_connection in chain:
                    ssh_connection.abort()

    async def _acquire_channel(self) -> SftpChannel:
        while True:
            if self._closed:
                raise ClosedError(f"{self._address} was closed", address=self._address)
            self._evict_stale()
            channels = [channel for connection in self._connections for channel in connection.channels]
            best = min(channels, key=lambda channel: channel.users, default=None)
            if best is None or best.users:
                self._start_opening()
            if best is not None and (best.users < _CROWDED_CHANNEL_USERS or not self._opening):
                return best
            await self._wait_for_opening(needed=best is None)

    async def _wait_for_opening(self, *, needed: bool) -> None:
        """Wait until an attempt to open a channel has succeeded or failed.

        Args:
            needed: Whether the caller cannot go on without a new channel. It then gets the error of the last attempt.
        """
        done, others = await asyncio.wait(self._opening, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            hopeless = needed and not others and not any(connection.channels for connection in self._connections)
            if isinstance(error, StreamloaderError) and hopeless:
                raise copy.copy(error) from error  # each waiting task raises its own copy
            if error is not None and not isinstance(error, StreamloaderError):
                raise error

    def _start_opening(self) -> None:
        """Start to open another channel if the limits allow it, on a new connection if necessary."""
        required = not self._opening and not any(connection.channels for connection in self._connections)
        if not required and asyncio.get_running_loop().time() < self._no_new_channel_before:
            return
        connection = next((connection for connection in self._connections if connection.has_room()), None)
        if connection is None:
            connecting = any(connection.chain is None for connection in self._connections)
            if len(self._connections) >= self._max_connections or connecting:
                return
            connection = _SshConnection(self._max_channels)
            self._connections.append(connection)
        connection.opening += 1
        task = asyncio.create_task(self._open(connection), name=f"ssh channel to {self._address}")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        task.add_done_callback(_retrieve_exception)

    async def _open(self, connection: _SshConnection) -> None:
        """Open a channel, after connecting if the connection is new."""
        try:
            async with connection.lock:
                if connection.error is not None:
                    raise copy.copy(connection.error)  # one attempt to log in is enough
                if connection.chain is None:
                    try:
                        connection.chain = await connect(self._login, self._timeouts, self._address)
                    except StreamloaderError as error:
                        connection.error = error
                        self._drop(connection)
                        raise
            channel = await self._open_channel(connection, connection.chain[0])
            connection.channels.append(channel)
        except BaseException:
            self._no_new_channel_before = asyncio.get_running_loop().time() + _REFUSED_CHANNEL_PAUSE_S
            if not connection.channels and connection.opening == 1:
                self._drop(connection)
            raise
        finally:
            connection.opening -= 1

    async def _open_channel(
        self, connection: _SshConnection, ssh_connection: asyncssh.SSHClientConnection
    ) -> SftpChannel:
        deadline = asyncio.timeout(self._timeouts.connect)
        try:
            async with deadline:
                return await SftpChannel.open(ssh_connection, _CHANNEL_WINDOW_BYTES)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise StoreTimeout(
                f"waited {self._timeouts.connect:.1f} s for {self._address} (opening SFTP): no answer",
                address=self._address,
                waited=self._timeouts.connect,
                stage="opening SFTP",
            ) from error
        except asyncssh.ChannelOpenError as error:
            if error.code == _SUBSYSTEM_REFUSED:
                raise AccessDenied(
                    f"{self._address} accepts the login but offers no SFTP: its sshd_config needs 'Subsystem sftp "
                    "internal-sftp'",
                    address=self._address,
                ) from error
            make_error_printable(error)
            # The server's MaxSessions is reached.
            connection.max_channels = max(1, len(connection.channels) + connection.opening - 1)
            raise Unreachable(
                f"{self._address} refused to open a channel: {error}. A lower channels= may help",
                address=self._address,
            ) from error
        except ChannelLost as error:
            raise Unreachable(f"{self._address} closed the connection: {error}", address=self._address) from error
        except BadReply as error:
            raise ProtocolError(
                f"{self._address} does not speak SFTP: it sent {error}", address=self._address
            ) from error

    def _evict_stale(self) -> None:
        """Drop connections and channels that are closed, or on which the server has been silent for too long."""
        max_silence_s = 0.9 * min(self._timeouts.response, self._timeouts.window)
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            connection.channels = [channel for channel in connection.channels if channel.error is None]
            if connection.chain is not None and connection.chain[0].is_closed():
                self._drop(connection)
            stalled = [channel for channel in connection.channels if channel.is_stalled(max_silence_s)]
            if stalled and now - max(channel.last_received_at for channel in connection.channels) > max_silence_s:
                _log.info("%s: closing a connection on which the server has stopped responding", self._address)
                self._drop(connection)
            for channel in stalled:
                connection.channels.remove(channel)
                channel.close()

    def _drop(self, connection: _SshConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
        for ssh_connection in connection.chain or ():
            ssh_connection.abort()

    def abandon(self) -> None:
        """Close the sockets if the loop has ended, or if the pool belongs to the parent of this process.

        The transports are kept and never freed: a transport that is freed would remove itself from a loop that it
        shares with the parent, or warn that it was not closed. Closing the socket does not affect the parent's copy.
        """
        pid, loop = self._owner
        if pid == os.getpid() and not loop.is_closed():
            return  # called for a pickled copy of the store, while this pool is in use
        for connection in self._connections:
            for ssh_connection in connection.chain or ():
                socket = ssh_connection.get_extra_info("socket")
                if isinstance(socket, TransportSocket) and socket.fileno() >= 0:  # uvloop has closed its own
                    with contextlib.suppress(OSError):
                        os.close(socket.fileno())
        _abandoned.append((self._connections, self._opening))


class _SshConnection:
    """A connection that is open or being opened, with its channels.

    Args:
        max_channels: Maximum number of channels.

    Attributes:
        max_channels: Maximum number of channels. Lowered when the server refuses one.
        opening: Number of channels that are being opened.
        channels: Open channels.
        chain: SSH connection, followed by those to its jump hosts. None while it is being opened.
        error: Reason why the connection failed, or None.
        lock: Held while the connection is being opened.
    """

    def __init__(self, max_channels: int) -> None:
        self.max_channels = max_channels
        self.opening = 0
        self.channels: list[SftpChannel] = []
        self.chain: list[asyncssh.SSHClientConnection] | None = None
        self.error: StreamloaderError | None = None
        self.lock = asyncio.Lock()

    def has_room(self) -> bool:
        return len(self.channels) + self.opening < self.max_channels


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    """Mark the task's exception as retrieved. The tasks that waited for the channel have raised it."""
    if not task.cancelled():
        task.exception()


_abandoned: Final[list[Any]] = []
_log: Final = logging.getLogger("streamloader")
