"""Listing a tree over SFTP, several directories at a time."""

from __future__ import annotations

import asyncio
import posixpath
import stat
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from streamloader.config import Limits
from streamloader.errors import LimitExceeded
from streamloader.stores.ssh import packets as sftp
from streamloader.stores.ssh.packets import Attrs
from streamloader.stores.ssh.read import info_of, translated
from streamloader.stores.ssh.sftp import Asked, Sftp, SftpError
from streamloader.values import ObjectInfo

__all__ = ["Listing"]

_AT_ONCE: Final = 8  # directories
_AHEAD: Final = 4  # questions for further names of one directory
_PAGES: Final = 64  # that wait for the caller at most


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str  # in the store
    real: str  # on the server, without links; "" where that is not known yet
    above: tuple[str, ...] = ()


class Listing:
    """What is under a directory. Links are followed, but none that leads back to a directory that it lies in.

    Args:
        channel: gives a channel.
        remote: from a path in the store to the server's.
        address: from a path in the store to an address, for errors.
        hidden: the beginning of names that are not shown.
        limits: of the store.
    """

    def __init__(
        self,
        channel: Callable[[], AbstractAsyncContextManager[Sftp]],
        remote: Callable[[str], str],
        address: Callable[[str], str],
        hidden: str,
        limits: Limits,
    ) -> None:
        self._channel = channel
        self._remote = remote
        self._address = address
        self._hidden = hidden
        self._limits = limits
        self._pages: asyncio.Queue[list[ObjectInfo]] = asyncio.Queue(_PAGES)
        self._waiting: deque[_Folder] = deque()

    async def play(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """Yield files, and directories with a "/" at the end where it is not recursive.

        Raises:
            StoreError: a directory cannot be read.
            LimitExceeded: the tree is too deep.
        """
        self._waiting.append(_Folder(prefix, ""))
        tasks: set[asyncio.Task[None]] = set()
        pages: asyncio.Task[list[ObjectInfo]] | None = None
        try:
            while self._waiting or tasks or not self._pages.empty():
                while self._waiting and len(tasks) < _AT_ONCE:
                    tasks.add(asyncio.create_task(self._look_into(self._waiting.popleft(), recursive=recursive)))
                pages = pages or asyncio.create_task(self._pages.get())
                done, _ = await asyncio.wait({*tasks, pages}, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks & done:
                    tasks.discard(task)
                    task.result()
                if pages in done:
                    page, pages = pages.result(), None
                    for info in page:
                        yield info
        finally:
            left: list[asyncio.Task[None] | asyncio.Task[list[ObjectInfo]]] = [*tasks]
            if pages is not None:
                left.append(pages)
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _look_into(self, folder: _Folder, *, recursive: bool) -> None:
        address = self._address(folder.path)
        if len(folder.above) >= self._limits.depth:
            raise LimitExceeded(
                f"{address} lies deeper than {self._limits.depth} directories: raise Limits(depth=...)", address=address
            )
        async with self._channel() as channel:
            with translated(address):
                remote = self._remote(folder.path)
                try:
                    asking = channel.on_path(sftp.OPENDIR, remote, sftp.HANDLE)
                    real = folder.real or await self._real(channel, remote)
                    if real in folder.above:
                        await _close(channel, asking)
                        return
                    handle = sftp.handle_of(await asking.answer())
                except SftpError as error:
                    if error.code == sftp.NO_SUCH_FILE or await self._is_no_folder(channel, remote):
                        return
                    raise
                try:
                    await self._read_names(channel, handle, folder, real, recursive=recursive)
                finally:
                    channel.close_handle(handle)

    async def _read_names(self, channel: Sftp, handle: bytes, folder: _Folder, real: str, *, recursive: bool) -> None:
        asked: deque[Asked] = deque()
        body = sftp.packed(handle)
        while True:
            while len(asked) < _AHEAD:
                asked.append(channel.ask(sftp.READDIR, body, sftp.NAME))
            try:
                names = sftp.names_of(await asked.popleft().answer())
            except SftpError as error:
                if error.code == sftp.EOF:
                    return
                raise
            await self._take(channel, folder, real, names, recursive=recursive)

    async def _take(self, channel: Sftp, folder: _Folder, real: str, names: sftp.Names, *, recursive: bool) -> None:
        """Sort what was found into files and directories."""
        found = [(name, attrs) for name, attrs in names if name not in (".", "..") and "/" not in name]
        asked = {  # where links, and what the server told nothing of, lead to
            name: channel.stat(self._remote(_join(folder.path, name)))
            for name, attrs in found
            if attrs.mode is None or stat.S_ISLNK(attrs.mode)
        }
        page = []
        for name, told in found:
            path, attrs = _join(folder.path, name), told
            if name in asked:
                try:
                    attrs = sftp.attrs_of(await asked[name].answer())
                except SftpError:
                    continue  # a link to nothing, or to what we may not see
            mode = attrs.mode or 0
            if stat.S_ISDIR(mode):
                if recursive:
                    linked = name in asked
                    child_real = "" if linked else posixpath.join(real, name)
                    self._waiting.append(_Folder(path, child_real, (*folder.above, real)))
                else:
                    page.append(ObjectInfo(f"{path}/"))
            elif stat.S_ISREG(mode) and not name.startswith(self._hidden):
                page.append(info_of(path, attrs, self._address(path)))
        if page:
            await self._pages.put(page)

    async def _real(self, channel: Sftp, remote: str) -> str:
        """Return the path without links."""
        (found, _), *_ = sftp.names_of(await channel.on_path(sftp.REALPATH, remote, sftp.NAME).answer())
        return found

    async def _is_no_folder(self, channel: Sftp, remote: str) -> bool:
        """Whether a directory cannot be opened because it is none."""
        try:
            attrs: Attrs = sftp.attrs_of(await channel.stat(remote).answer())
        except SftpError as error:
            return error.code == sftp.NO_SUCH_FILE
        return attrs.mode is not None and not stat.S_ISDIR(attrs.mode)


async def _close(channel: Sftp, asking: Asked) -> None:
    """Give a handle back that is not needed any more."""
    try:
        channel.close_handle(sftp.handle_of(await asking.answer()))
    except SftpError:
        return


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
