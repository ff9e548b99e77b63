"""Store for the files of an SSH server, accessed over SFTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, ClassVar, Final

from typing_extensions import override

from streamloader.arguments import expand_path
from streamloader.common.error_translation import async_error_translator
from streamloader.config import Limits, Timeouts
from streamloader.errors import ClosedError, ConfigError, NotSupported, StoreTimeout
from streamloader.stores.access import StoreAccess
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.search import TreeSearch
from streamloader.stores.ssh import access
from streamloader.stores.ssh import packets as sftp
from streamloader.stores.ssh.connect import TRUST_ANY, SshLogin, SshTarget
from streamloader.stores.ssh.listing import DirectoryListing
from streamloader.stores.ssh.pool import SshPool
from streamloader.stores.ssh.read import FileTransfer, make_object_info, translate_connection_errors, translate_errors
from streamloader.stores.ssh.sftp import PendingRequest, SftpChannel, SftpError
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["SshStore"]

_UNFINISHED_PREFIX: Final = ".streamloader-new-"  # of files that are being written; a killed writer may leave one
_WRITE_QUEUE_DEPTH: Final = 32  # blocks in flight


class SshStore(Store):
    """Files of an SSH server: ``ssh://user@host:port/path``, or ``sftp://``. ``ssh://host/~/path`` is in the home.

    User, port, keys, certificates, jump hosts (ProxyJump), known hosts and all other settings that are not given are
    taken from ``~/.ssh/config``, the agent and the usual files, as ``ssh`` does. `host` may be an alias of the
    configuration. A server whose host key is unknown or has changed is refused before anything is sent to it.

    Links are followed. The version of a file consists of its size and its modification time, which SFTP reports in
    whole seconds: a file that is overwritten twice within a second with the same number of bytes looks unchanged. A
    read checks the version at the start, every 32 MiB, and at the end. A write goes to a hidden file in the same
    directory, which then replaces the target atomically. Replacing a file needs OpenSSH's ``posix-rename``.

    Args:
        url: Address of the server, as above. It may contain a percent-encoded password (``user:password@``), which is
            never shown.
        password: Password of this user on this host. It is not sent to jump hosts.
        client_keys: Path, or paths, of private keys to log in with instead of those of the configuration. A certificate
            is a file of the same name with ``-cert.pub`` appended.
        passphrase: Passphrase of these keys.
        known_hosts: Path, or paths, of files with the host keys to trust instead of the usual files.
        config: Path, or paths, of SSH configuration files instead of ``~/.ssh/config``. An empty list means none.
        jump: Jump host as ``user@host:port``, or several in the order of connecting, instead of the ProxyJump of the
            configuration. An empty list means none. Each may contain a password.
        connections: Maximum number of connections to the server. A further one is opened when all channels are busy.
            Defaults to 2.
        channels: Maximum number of channels of each connection. Defaults to 4. OpenSSH's MaxSessions defaults to 10. If
            the server accepts fewer, fewer are used.
        trust: ``"any_host_key_even_of_an_impostor"`` accepts any host key and logs a warning for each connection.
            Anyone on the network path can then read and change all data. Defaults to None: host keys are checked.
        timeouts: Time limits; see :class:`streamloader.config.Timeouts`.
        limits: Size limits; see :class:`streamloader.config.Limits`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("ssh", "sftp")
    has_directories: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        client_keys: str | Sequence[str] = (),
        passphrase: str | None = None,
        known_hosts: str | Sequence[str] | None = None,
        config: str | Sequence[str] | None = None,
        jump: str | Sequence[str] | None = None,
        connections: int = 2,
        channels: int = 4,
        trust: str | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        target = SshTarget.parse(url)
        super().__init__(f"{url.partition('://')[0].lower()}://{target}", timeouts=timeouts, limits=limits)
        if password is not None:
            target = SshTarget(target.host, target.port, target.user, password)
        if trust not in (None, TRUST_ANY):
            raise ConfigError(f"trust= must be None or {TRUST_ANY!r}")
        if connections < 1 or channels < 1:
            raise ConfigError("connections= and channels= must be at least 1")
        self._login = SshLogin(
            target=target,
            jumps=None if jump is None else tuple(SshTarget.parse(hop) for hop in _split_hops(jump)),
            client_keys=_as_tuple(client_keys) or (),
            passphrase=passphrase,
            known_hosts=_as_tuple(known_hosts),
            config=_as_tuple(config),
            trust_any=trust is not None,
        )
        self._max_connections = min(connections, self.limits.connections)
        self._max_channels = channels
        self._pool: SshPool | None = None

    @classmethod
    @override
    def split(cls, address: str) -> tuple[str, str]:
        root, path = super().split(address)
        return root, path.lstrip("/")

    @override
    def describe_access(self) -> StoreAccess:
        return access.describe_access(self._login, self.url)

    @override
    async def describe_login(self) -> dict[str, Any]:
        return await access.describe_login(self._login, self.timeouts, self.url)

    def _get_pool(self) -> SshPool:
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        if self._pool is None:
            self._pool = SshPool(self._login, self.timeouts, self.url, self._max_connections, self._max_channels)
        return self._pool

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _head(self, path: str) -> ObjectInfo:
        async with self._get_pool().channel() as channel:
            with translate_errors(self.address(path)):
                attrs = sftp.parse_attrs(await channel.stat(_remote_path(path)).wait_for_reply())
        return make_object_info(path, attrs, self.address(path))

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        pool = self._get_pool()
        async with pool.channel() as channel:
            transfer = await FileTransfer.open(
                channel, _remote_path(path), path, span or ByteRange(), self.address(path), pool.max_queue_depth
            )
            try:
                yield Body(transfer.info, transfer.start, transfer.end, transfer.pieces())
            finally:
                transfer.close()

    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._make_listing(hidden=_UNFINISHED_PREFIX).list_entries(prefix, recursive=recursive)

    def _search(self, prefix: str, search: TreeSearch, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        listing = self._make_listing(hidden=_UNFINISHED_PREFIX)
        return listing.list_entries(prefix, recursive=recursive, search=search)

    async def _list_unfinished(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        listing = self._make_listing(hidden="/")  # no file name contains a slash, so nothing is hidden
        async with contextlib.aclosing(listing.list_entries(prefix, recursive=True)) as entries:
            async for info in entries:
                if posixpath.basename(info.path).startswith(_UNFINISHED_PREFIX):
                    yield info

    def _make_listing(self, hidden: str) -> DirectoryListing:
        return DirectoryListing(self._get_pool().channel, _remote_path, self.address, hidden, self.limits)

    async def _free_bytes(self, path: str) -> int | None:
        remote = _remote_path(path)
        async with self._get_pool().channel() as channel:
            if "statvfs@openssh.com" not in channel.extensions:
                return None
            with translate_errors(self.address(path)):
                while True:
                    request = channel.request_extension(
                        "statvfs@openssh.com", sftp.encode_path(remote), reply_kind=sftp.EXTENDED_REPLY
                    )
                    try:
                        reader = sftp.FieldReader(await request.wait_for_reply())
                    except SftpError as error:
                        if error.code != sftp.NO_SUCH_FILE or remote in ("/", "."):
                            raise
                        remote = posixpath.dirname(remote) or "."  # writing creates missing directories
                    else:
                        _, fragment_bytes, _, _, available = (reader.read_uint64() for _ in range(5))
                        return fragment_bytes * available

    # --- writing -----------------------------------------------------------------------------------------------------

    async def _write(self, path: str, data: Data) -> None:
        remote = _remote_path(path)
        unfinished = posixpath.join(posixpath.dirname(remote), f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}")
        async with self._deadline(path, "connecting", self.timeouts.connect):
            lease = self._get_pool().channel()
            channel = await lease.__aenter__()
        try:
            try:
                handle = await self._create_file(channel, path, unfinished)
                try:
                    await self._write_data(channel, path, handle, data)
                finally:
                    channel.close_handle(handle)
                await self._rename_to_target(channel, path, unfinished, remote)
            except BaseException:
                # The server handles it after all earlier requests. The reply is not awaited.
                channel.request_path(sftp.REMOVE, unfinished)
                raise
        finally:
            await lease.__aexit__(None, None, None)

    async def _create_file(self, channel: SftpChannel, path: str, unfinished: str) -> bytes:
        """Create the file `unfinished`, with its directories if necessary, and return its handle."""
        flags = sftp.FOR_WRITING | sftp.CREATE | sftp.EXCLUSIVE
        try:
            return sftp.parse_handle(await self._wait_for_reply(channel.open_file(unfinished, flags), path, "writing"))
        except SftpError as error:
            with translate_errors(self.address(path)):
                if error.code != sftp.NO_SUCH_FILE:
                    raise
                await self._make_directories(channel, path, posixpath.dirname(unfinished))
                request = channel.open_file(unfinished, flags)
                return sftp.parse_handle(await self._wait_for_reply(request, path, "writing"))

    async def _make_directories(self, channel: SftpChannel, path: str, directory: str) -> None:
        missing = []
        while directory not in ("", "/", "."):
            try:
                await self._wait_for_reply(channel.stat(directory), path, "writing")
                break
            except SftpError as error:
                if error.code != sftp.NO_SUCH_FILE:
                    raise
                missing.append(directory)
                directory = posixpath.dirname(directory)
        for name in reversed(missing):
            try:
                await self._wait_for_reply(channel.request_path(sftp.MKDIR, name), path, "writing")
            except SftpError:  # another writer may have made it at the same time
                await self._wait_for_reply(channel.stat(name), path, "writing")

    async def _write_data(self, channel: SftpChannel, path: str, handle: bytes, data: Data) -> None:
        """Write all bytes, and flush them to the server's disk if it supports that."""
        in_flight: deque[PendingRequest] = deque()
        sent = 0
        with translate_errors(self.address(path)):
            async for piece in _split_data(data, channel.write_block_bytes):
                while len(in_flight) >= _WRITE_QUEUE_DEPTH:
                    await self._wait_for_reply(in_flight.popleft(), path, "writing", sent)
                in_flight.append(channel.write(handle, sent, piece))
                sent += len(piece)
                async with self._deadline(path, "writing", self.timeouts.window, sent):
                    with translate_connection_errors(self.address(path), sent, in_transfer=True):
                        await channel.wait_writable()
            while in_flight:
                await self._wait_for_reply(in_flight.popleft(), path, "writing", sent)
            await self._ensure_new_version(channel, path, handle, sent)
            if "fsync@openssh.com" in channel.extensions:
                await self._wait_for_reply(
                    channel.request_extension("fsync@openssh.com", handle), path, "writing", sent
                )

    async def _ensure_new_version(self, channel: SftpChannel, path: str, handle: bytes, size: int) -> None:
        """Give the new file a later time than an old one of the same size, which may be from the same second."""
        old_stat = channel.stat(_remote_path(path))
        new = sftp.parse_attrs(await self._wait_for_reply(channel.fstat(handle), path, "writing", size))
        try:
            old = sftp.parse_attrs(await self._wait_for_reply(old_stat, path, "writing", size))
        except SftpError:
            return  # there is no old file
        if old.size == size and old.modified is not None and (new.modified or 0) <= old.modified:
            await self._wait_for_reply(channel.set_modified(handle, old.modified + 1), path, "writing", size)

    async def _rename_to_target(self, channel: SftpChannel, path: str, unfinished: str, remote: str) -> None:
        with translate_errors(self.address(path)):
            try:
                await self._wait_for_reply(channel.rename(unfinished, remote), path, "renaming")
            except SftpError as error:
                if error.code == sftp.FAILURE and not channel.can_replace:
                    raise NotSupported(
                        f"{self.address(path)} exists, and the server cannot replace files atomically (it does not "
                        "support posix-rename): delete it first",
                        address=self.address(path),
                    ) from error
                raise

    async def _delete(self, path: str) -> None:
        async with self._get_pool().channel() as channel:
            with translate_errors(self.address(path)):
                try:
                    await channel.request_path(sftp.REMOVE, _remote_path(path)).wait_for_reply()
                except SftpError as error:
                    if error.code != sftp.NO_SUCH_FILE:
                        raise

    async def _wait_for_reply(self, request: PendingRequest, path: str, stage: str, offset: int | None = None) -> bytes:
        """Wait for a reply, limited by ``timeouts.response``."""
        async with self._deadline(path, stage, self.timeouts.response, offset):
            with translate_connection_errors(self.address(path), offset, in_transfer=True):
                return await request.wait_for_reply()

    @async_error_translator
    async def _deadline(self, path: str, stage: str, seconds: float, offset: int | None = None) -> AsyncIterator[None]:
        """Limit the time of the block to `seconds`, and raise StoreTimeout after that."""
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise StoreTimeout(
                f"waited {seconds:.1f} s for {self.address(path)} ({stage}): no answer",
                address=self.address(path),
                offset=offset,
                waited=seconds,
                stage=stage,
            ) from error

    # --- connections -------------------------------------------------------------------------------------------------

    async def _disconnect(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _drop_connections(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.abandon()


def _remote_path(path: str) -> str:
    """Return the server's path: absolute, or relative to the home directory, in which sessions start."""
    if path == "~" or path.startswith("~/"):
        return f".{path[1:]}"
    return f"/{path}"


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(expand_path(str(name)) for name in ((names,) if isinstance(names, (str, os.PathLike)) else names))


def _split_hops(jump: str | Sequence[str]) -> Sequence[str]:
    return [hop for hop in jump.split(",") if hop] if isinstance(jump, str) else jump


async def _split_data(data: Data, max_bytes: int) -> AsyncGenerator[memoryview, None]:
    """Yield the data in pieces of at most `max_bytes` bytes."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        view = memoryview(data).cast("B")
        for offset in range(0, len(view), max_bytes):
            yield view[offset : offset + max_bytes]
        return
    async for piece in data:
        view = memoryview(piece)
        for offset in range(0, len(view), max_bytes):
            yield view[offset : offset + max_bytes]
