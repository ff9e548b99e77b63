"""List a directory tree over SFTP, several directories at a time."""

from __future__ import annotations

import asyncio
import posixpath
import stat
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from streamloader.common.printable import make_printable
from streamloader.config import Limits
from streamloader.errors import AccessDenied, NotFound, StoreError
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.search import ListingProblem, TreeSearch
from streamloader.stores.ssh import packets as sftp
from streamloader.stores.ssh.packets import Attrs
from streamloader.stores.ssh.read import make_object_info, translate_errors
from streamloader.stores.ssh.sftp import PendingRequest, SftpChannel, SftpError
from streamloader.values import ObjectInfo

__all__ = ["DirectoryListing"]

_MAX_OPEN_DIRECTORIES: Final = 8
_READDIR_QUEUE_DEPTH: Final = 4  # requests in flight for one directory
_MAX_QUEUED_PAGES: Final = 64
_PAGE_ENTRIES: Final = 1000
_MAX_FOLLOWED_LINKS: Final = 40  # as Linux


@dataclass(frozen=True, slots=True)
class _PendingDirectory:
    """A directory to be scanned.

    Attributes:
        path: Path in the store.
        real_path: Path on the server with all links resolved. Empty if it is not known yet.
        ancestors: Real paths of the directories above it.
    """

    path: str
    real_path: str
    ancestors: tuple[str, ...] = ()


class DirectoryListing:
    """Listing of a directory. Links are followed, except those that lead to one of the directories they lie in.

    The rules of a search are those of :mod:`streamloader.stores.search`.

    Args:
        channel: Function that lends a channel.
        remote: Function that returns the server's path for a path in the store.
        address: Function that returns the address of a path in the store, for messages.
        hidden: Prefix of the names of files that are not listed.
        limits: Limits of the store.
    """

    def __init__(
        self,
        channel: Callable[[], AbstractAsyncContextManager[SftpChannel]],
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
        self._pages: asyncio.Queue[list[ObjectInfo]] = asyncio.Queue(_MAX_QUEUED_PAGES)
        self._waiting: deque[_PendingDirectory] = deque()
        self._budget = ListingBudget(limits, "")
        self._search: TreeSearch | None = None

    async def list_entries(
        self, prefix: str, *, recursive: bool, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        """Yield files, and directories as paths that end in "/" unless `recursive`.

        Args:
            prefix: Path of the directory in the store.
            recursive: Whether to list files at any depth.
            search: Rules of a search. By default all names are listed, and a directory without access is an error.

        Raises:
            StoreError: If a directory cannot be read.
            LimitExceeded: If the tree is too deep or has too many entries, or if links lead to the same directories
                again and again.
        """
        self._budget = ListingBudget(self._limits, self._address(prefix))
        self._search = search
        self._waiting.append(_PendingDirectory(prefix, ""))
        tasks: set[asyncio.Task[None]] = set()
        pages: asyncio.Task[list[ObjectInfo]] | None = None
        try:
            while self._waiting or tasks or not self._pages.empty():
                while self._waiting and len(tasks) < _MAX_OPEN_DIRECTORIES:
                    tasks.add(asyncio.create_task(self._scan(self._waiting.popleft(), recursive=recursive)))
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
            unfinished: list[asyncio.Task[None] | asyncio.Task[list[ObjectInfo]]] = [*tasks]
            if pages is not None:
                unfinished.append(pages)
            for each in unfinished:
                each.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _scan(self, directory: _PendingDirectory, *, recursive: bool) -> None:
        """Put the entries of a directory into the queues of pages and directories."""
        try:
            await self._read_directory(directory, recursive=recursive)
        except AccessDenied as error:
            if self._search is None or not directory.ancestors:
                raise
            self._search.report(ListingProblem(directory.path, error, is_directory=True))

    async def _read_directory(self, directory: _PendingDirectory, *, recursive: bool) -> None:
        address = self._address(directory.path)
        self._budget.check_depth(len(directory.ancestors) + 1, address)
        async with self._channel() as channel:
            with translate_errors(address, opening=True):
                remote = self._remote(directory.path)
                try:
                    opening = channel.request_path(sftp.OPENDIR, remote, sftp.HANDLE)
                    real_path = directory.real_path or await self._resolve_links(channel, remote)
                    if real_path in directory.ancestors:
                        await _close_when_open(channel, opening)
                        return
                    self._budget.enter_directory(real_path)
                    handle = sftp.parse_handle(await opening.wait_for_reply())
                except SftpError as error:
                    if error.code == sftp.NO_SUCH_FILE or await self._is_not_directory(channel, remote):
                        return
                    raise
                try:
                    await self._read_names(channel, handle, directory, real_path, recursive=recursive)
                finally:
                    channel.close_handle(handle)

    async def _read_names(
        self, channel: SftpChannel, handle: bytes, directory: _PendingDirectory, real_path: str, *, recursive: bool
    ) -> None:
        requests: deque[PendingRequest] = deque()
        body = sftp.pack_string(handle)
        is_empty = True
        while True:
            while len(requests) < _READDIR_QUEUE_DEPTH:
                requests.append(channel.request(sftp.READDIR, body, sftp.NAME))
            try:
                names = sftp.parse_names(await requests.popleft().wait_for_reply())
            except SftpError as error:
                if error.code != sftp.EOF:
                    raise
                if is_empty:
                    await self._require_access(channel, self._remote(directory.path))
                return
            is_empty = is_empty and not names
            self._budget.count_entry("")  # an empty reply is progress for the server only
            for start in range(0, len(names), _PAGE_ENTRIES):  # a hostile server sends hundreds of thousands at once
                page = names[start : start + _PAGE_ENTRIES]
                await self._sort_names(channel, directory, real_path, page, recursive=recursive)

    async def _require_access(self, channel: SftpChannel, remote: str) -> None:
        """Raise an error if a directory only seems to be empty: OpenSSH omits the entries that it has no access to.

        There, an empty directory has "." and "..".
        """
        try:
            await channel.stat(posixpath.join(remote, ".")).wait_for_reply()
        except SftpError as error:
            if error.code == sftp.PERMISSION_DENIED:
                raise

    async def _sort_names(
        self, channel: SftpChannel, directory: _PendingDirectory, real_path: str, names: sftp.Names, *, recursive: bool
    ) -> None:
        """Sort the names of a directory into files and directories."""
        for name, _ in names:
            self._budget.count_entry(_join(directory.path, name))
        shows_hidden = self._search is None or self._search.show_hidden
        valid = [
            (name, attrs)
            for name, attrs in names
            if name not in (".", "..") and "/" not in name and (shows_hidden or not name.startswith("."))
        ]
        stats = {  # of links, and of files whose type the server did not report
            name: channel.stat(self._remote(_join(directory.path, name)))
            for name, attrs in valid
            if attrs.mode is None or stat.S_ISLNK(attrs.mode)
        }
        page = []
        for name, own_attrs in valid:
            path, attrs = _join(directory.path, name), own_attrs
            if name in stats:
                try:
                    attrs = sftp.parse_attrs(await stats[name].wait_for_reply())
                except SftpError as error:  # a link whose target does not exist or is not accessible
                    await self._report_link(channel, path, error)
                    continue
            mode = attrs.mode or 0
            if stat.S_ISDIR(mode):
                if recursive:
                    is_link = name in stats
                    child_real_path = "" if is_link else posixpath.join(real_path, name)
                    self._budget.hold_directory(path + child_real_path, len(directory.ancestors))
                    self._waiting.append(_PendingDirectory(path, child_real_path, (*directory.ancestors, real_path)))
                else:
                    page.append(ObjectInfo(f"{path}/"))
            elif stat.S_ISREG(mode) and not name.startswith(self._hidden):
                page.append(make_object_info(path, attrs, self._address(path)))
            elif self._search is not None and not stat.S_ISREG(mode):
                problem = StoreError(f"{self._address(path)} is a pipe, socket or device, not a file", address=path)
                self._search.report(ListingProblem(path, problem, is_directory=False))
        if page:
            await self._pages.put(page)

    async def _report_link(self, channel: SftpChannel, path: str, error: SftpError) -> None:
        """Report a link that cannot be followed, unless the entry has been deleted since."""
        if self._search is None:
            return
        address = self._address(path)
        request = channel.request_path(sftp.READLINK, self._remote(path), sftp.NAME)
        try:
            target = sftp.parse_name(await request.wait_for_reply())
        except SftpError as reason:
            if reason.code == sftp.NO_SUCH_FILE:
                return
            target = "another place"
        is_denied = error.code == sftp.PERMISSION_DENIED
        kind, end = (AccessDenied, "may not be accessed") if is_denied else (NotFound, "leads nowhere or in a circle")
        problem = kind(f"{address} is a link to {make_printable(target)}, which {end}", address=address)
        self._search.report(ListingProblem(path, problem, is_directory=is_denied))

    async def _resolve_links(self, channel: SftpChannel, remote: str) -> str:
        """Return the real path on the server. It follows fewer links in a path than a path may contain."""
        link = remote
        for _ in range(_MAX_FOLLOWED_LINKS):
            try:
                return sftp.parse_name(await channel.request_path(sftp.REALPATH, link, sftp.NAME).wait_for_reply())
            except SftpError:
                try:
                    target = await channel.request_path(sftp.READLINK, link, sftp.NAME).wait_for_reply()
                except SftpError:  # no link
                    break
                link = posixpath.join(posixpath.dirname(link), sftp.parse_name(target))
        return remote  # whether it exists is seen when it is opened

    async def _is_not_directory(self, channel: SftpChannel, remote: str) -> bool:
        """Return whether the path does not exist or is something else than a directory."""
        try:
            attrs: Attrs = sftp.parse_attrs(await channel.stat(remote).wait_for_reply())
        except SftpError as error:
            return error.code == sftp.NO_SUCH_FILE
        return attrs.mode is not None and not stat.S_ISDIR(attrs.mode)


async def _close_when_open(channel: SftpChannel, opening: PendingRequest) -> None:
    """Close the handle of a directory that is being opened."""
    try:
        channel.close_handle(sftp.parse_handle(await opening.wait_for_reply()))
    except SftpError:
        return


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
