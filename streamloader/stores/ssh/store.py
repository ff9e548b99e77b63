"""Files of another machine, over SSH (SFTP)."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import ClassVar, Final

from streamloader.config import Limits, Timeouts
from streamloader.errors import ClosedError, ConfigError, NotSupported, StoreTimeout
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.ssh import packets as sftp
from streamloader.stores.ssh.connect import TRUST_ANY, Login, Target
from streamloader.stores.ssh.listing import Listing
from streamloader.stores.ssh.pool import Pool
from streamloader.stores.ssh.read import Reading, connected, info_of, translated
from streamloader.stores.ssh.sftp import Asked, Sftp, SftpError
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["SshStore"]

_UNFINISHED: Final = ".streamloader-new-"  # what a killed writer may leave; never listed
_WRITES: Final = 32  # blocks in flight


class SshStore(Store):
    """``ssh://user@host:port/path`` (or ``sftp://``): files of another machine. ``ssh://host/~/path`` is in the home.

    User, port, key, certificate, jump hosts (ProxyJump), known hosts and all else that is not given is taken from
    ``~/.ssh/config``, the agent and the usual files, as ``ssh`` does; `host` may be an alias of the configuration. A
    server whose host key is unknown, or another one than it was, is refused before anything is sent to it.

    Links are followed. The version of a file is its size and its time, which SFTP tells in whole seconds: a file that
    is overwritten twice within a second with as many bytes looks the same. Reading looks before, every 32 MiB, and
    after. Writing goes to a hidden file beside the target, which then takes its place at once; the server has to have
    OpenSSH's ``posix-rename`` for replacing files.

    Args:
        url: see above. A password may stand in it (``user:password@``), percent-encoded; it is never shown.
        password: for this user and host. A jump host does not get it.
        client_keys: file, or files, of private keys to log in with, instead of those of the configuration; a
            certificate lies beside as ``-cert.pub``.
        passphrase: of these keys.
        known_hosts: file, or files, with the host keys to trust, instead of the usual ones.
        config: file, or files, of SSH configuration, instead of ``~/.ssh/config``; an empty list for none.
        jump: ``user@host:port``, or several, one behind the other, to go through, instead of the ProxyJump of the
            configuration; an empty list for none. Passwords may stand in it.
        connections: to the server at most; a further one is made when all channels of the others are busy.
        channels: on each connection at most. OpenSSH's default for MaxSessions is 10; where a server takes fewer, fewer
            are used.
        trust: ``"any_host_key_even_of_an_impostor"`` takes whatever answers for the server, and says so in the log at
            each connection. Whoever can reach the network between can then read and change everything.
        timeouts: see :class:`streamloader.config.Timeouts`.
        limits: see :class:`streamloader.config.Limits`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("ssh", "sftp")

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
        target = Target.parse(url)
        super().__init__(f"{url.partition('://')[0].lower()}://{target}", timeouts=timeouts, limits=limits)
        if password is not None:
            target = Target(target.host, target.port, target.user, password)
        if trust not in (None, TRUST_ANY):
            raise ConfigError(f"trust= takes nothing but {TRUST_ANY!r}, and that only where you mean it")
        if connections < 1 or channels < 1:
            raise ConfigError("connections= and channels= take at least 1")
        self._login = Login(
            target=target,
            jumps=None if jump is None else tuple(Target.parse(hop) for hop in _hops(jump)),
            client_keys=_files(client_keys) or (),
            passphrase=passphrase,
            known_hosts=_files(known_hosts),
            config=_files(config),
            trust_any=trust is not None,
        )
        self._share = min(connections, self.limits.connections), channels
        self._pool: Pool | None = None

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into the url of its store and the path, which is taken literally; ``~/`` is the home."""
        root, path = super().split(address)
        return root, path.lstrip("/")

    @property
    def _connected(self) -> Pool:
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        if self._pool is None:
            self._pool = Pool(self._login, self.timeouts, self.url, *self._share)
        return self._pool

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _head(self, path: str) -> ObjectInfo:
        async with self._connected.channel() as channel:
            with translated(self.address(path)):
                attrs = sftp.attrs_of(await channel.stat(_remote(path)).answer())
        return info_of(path, attrs, self.address(path))

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        pool = self._connected
        async with pool.channel() as channel:
            reading = await Reading.open(
                channel, _remote(path), path, span or ByteRange(), self.address(path), pool.depth
            )
            try:
                yield Body(reading.info, reading.start, reading.end, reading.chunks())
            finally:
                reading.close()

    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        listing = Listing(self._connected.channel, _remote, self.address, _UNFINISHED, self.limits)
        return listing.play(prefix, recursive=recursive)

    async def _leftovers(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        nothing_hidden = Listing(self._connected.channel, _remote, self.address, "/", self.limits)
        async with contextlib.aclosing(nothing_hidden.play(prefix, recursive=True)) as found:
            async for info in found:
                if posixpath.basename(info.path).startswith(_UNFINISHED):
                    yield info

    async def _free(self, path: str) -> int | None:
        remote = _remote(path)
        async with self._connected.channel() as channel:
            if "statvfs@openssh.com" not in channel.extensions:
                return None
            with translated(self.address(path)):
                while True:
                    asked = channel.extended("statvfs@openssh.com", sftp.encoded(remote), reply=sftp.EXTENDED_REPLY)
                    try:
                        told = sftp.Reader(await asked.answer())
                    except SftpError as error:
                        if error.code != sftp.NO_SUCH_FILE or remote in ("/", "."):
                            raise
                        remote = posixpath.dirname(remote) or "."  # it is going to be made
                    else:
                        _, fragment, _, _, available = (told.long() for _ in range(5))
                        return fragment * available

    # --- writing -----------------------------------------------------------------------------------------------------

    async def _write(self, path: str, data: Data) -> None:
        remote = _remote(path)
        unfinished = posixpath.join(posixpath.dirname(remote), f"{_UNFINISHED}{secrets.token_hex(8)}")
        async with self._waiting(path, "connecting", self.timeouts.connect):
            taken = self._connected.channel()
            channel = await taken.__aenter__()
        try:
            try:
                handle = await self._create(channel, path, unfinished)
                try:
                    await self._send(channel, path, handle, data)
                finally:
                    channel.close_handle(handle)
                await self._replace(channel, path, unfinished, remote)
            except BaseException:
                channel.on_path(sftp.REMOVE, unfinished)  # behind all that was asked before; nobody waits
                raise
        finally:
            await taken.__aexit__(None, None, None)

    async def _create(self, channel: Sftp, path: str, unfinished: str) -> bytes:
        flags = sftp.FOR_WRITING | sftp.CREATE | sftp.EXCLUSIVE
        try:
            return sftp.handle_of(await self._answer(channel.open_file(unfinished, flags), path, "writing"))
        except SftpError as error:
            with translated(self.address(path)):
                if error.code != sftp.NO_SUCH_FILE:
                    raise
                await self._make_folders(channel, path, posixpath.dirname(unfinished))
                return sftp.handle_of(await self._answer(channel.open_file(unfinished, flags), path, "writing"))

    async def _make_folders(self, channel: Sftp, path: str, folder: str) -> None:
        missing = []
        while folder not in ("", "/", "."):
            try:
                await self._answer(channel.stat(folder), path, "writing")
                break
            except SftpError as error:
                if error.code != sftp.NO_SUCH_FILE:
                    raise
                missing.append(folder)
                folder = posixpath.dirname(folder)
        for name in reversed(missing):
            try:
                await self._answer(channel.on_path(sftp.MKDIR, name), path, "writing")
            except SftpError:  # somebody else may have made it at the same time
                await self._answer(channel.stat(name), path, "writing")

    async def _send(self, channel: Sftp, path: str, handle: bytes, data: Data) -> None:
        """Send all bytes, and have them put on the server's disk."""
        waiting: deque[Asked] = deque()
        sent = 0
        with translated(self.address(path)):
            async for piece in _pieces(data, channel.write_block):
                while len(waiting) >= _WRITES:
                    await self._answer(waiting.popleft(), path, "writing", sent)
                waiting.append(channel.write(handle, sent, piece))
                sent += len(piece)
                async with self._waiting(path, "writing", self.timeouts.window, sent):
                    with connected(self.address(path), sent, under_way=True):
                        await channel.drained()
            while waiting:
                await self._answer(waiting.popleft(), path, "writing", sent)
            await self._make_it_another_version(channel, path, handle, sent)
            if "fsync@openssh.com" in channel.extensions:
                await self._answer(channel.extended("fsync@openssh.com", handle), path, "writing", sent)

    async def _make_it_another_version(self, channel: Sftp, path: str, handle: bytes, size: int) -> None:
        """Date the new file later than an old one of this size: it may have been written in the same second."""
        asked = channel.stat(_remote(path))
        new = sftp.attrs_of(await self._answer(channel.fstat(handle), path, "writing", size))
        try:
            old = sftp.attrs_of(await self._answer(asked, path, "writing", size))
        except SftpError:
            return  # there is none
        if old.size == size and old.modified is not None and (new.modified or 0) <= old.modified:
            await self._answer(channel.date(handle, old.modified + 1), path, "writing", size)

    async def _replace(self, channel: Sftp, path: str, unfinished: str, remote: str) -> None:
        with translated(self.address(path)):
            try:
                await self._answer(channel.rename(unfinished, remote), path, "renaming")
            except SftpError as error:
                if error.code == sftp.FAILURE and not channel.can_replace:
                    raise NotSupported(
                        f"{self.address(path)} is there already, and the server cannot replace a file at once (it has "
                        "no posix-rename): delete it first",
                        address=self.address(path),
                    ) from error
                raise

    async def _delete(self, path: str) -> None:
        async with self._connected.channel() as channel:
            with translated(self.address(path)):
                try:
                    await channel.on_path(sftp.REMOVE, _remote(path)).answer()
                except SftpError as error:
                    if error.code != sftp.NO_SUCH_FILE:
                        raise

    async def _answer(self, asked: Asked, path: str, stage: str, offset: int | None = None) -> bytes:
        """Wait for an answer, with the deadline of one."""
        async with self._waiting(path, stage, self.timeouts.response, offset):
            with connected(self.address(path), offset, under_way=True):
                return await asked.answer()

    @contextlib.asynccontextmanager
    async def _waiting(self, path: str, stage: str, seconds: float, offset: int | None = None) -> AsyncIterator[None]:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
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

    def _forget(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.forsake()


def _remote(path: str) -> str:
    """Return the server's path: absolute, or relative to the directory that sessions begin in, the home."""
    if path == "~" or path.startswith("~/"):
        return f".{path[1:]}"
    return f"/{path}"


def _files(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return (names,) if isinstance(names, str) else tuple(str(name) for name in names)


def _hops(jump: str | Sequence[str]) -> Sequence[str]:
    return [hop for hop in jump.split(",") if hop] if isinstance(jump, str) else jump


async def _pieces(data: Data, size: int) -> AsyncGenerator[memoryview, None]:
    """Yield the data in pieces of at most so many bytes."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        view = memoryview(data).cast("B")
        for at in range(0, len(view), size):
            yield view[at : at + size]
        return
    async for chunk in data:
        view = memoryview(chunk)
        for at in range(0, len(view), size):
            yield view[at : at + size]
