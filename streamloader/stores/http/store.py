"""Objects behind HTTP and HTTPS."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import ClassVar, Final
from urllib.parse import unquote

import aiohttp

from streamloader.config import Limits, Timeouts
from streamloader.errors import ConfigError, RangeOutside
from streamloader.stores.base import Body, Store
from streamloader.stores.http.address_scope import Reach
from streamloader.stores.http.auth import Access, access, has_login, login_from_netrc, server_of
from streamloader.stores.http.client import HttpClient, Target, translated
from streamloader.stores.http.responses import (
    NO_HEAD,
    Where,
    fault,
    length_of,
    object_info,
    range_of,
    refusal,
    require_plain,
    strong,
    unsatisfied_size,
)
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["HttpStore"]

_REACH: Final = {
    "any": Reach.SPECIAL,
    "loopback": Reach.LOOPBACK,
    "private": Reach.PRIVATE,
    "public": Reach.PUBLIC,
}
_log: Final = logging.getLogger("streamloader")


class HttpStore(Store):
    """``http://host/...`` and ``https://host/...``: read-only, without listings.

    Paths are in the syntax of URLs: ``%20`` is a space, ``?`` begins a query, which is sent along. What may not stand
    in a URL (spaces, letters beyond ASCII, a lone ``%``) is encoded; ``#`` has to be written ``%23``.

    Ranges are asked for and checked: a server has to send exactly these bytes. One that sends the whole object instead
    is taken at its word, and the log says once that it serves no ranges: reading a part then costs all that is before
    it. Objects are never compressed on the way (an answer that is, is refused). Versions are ETags, or else
    Last-Modified together with the size; a strong ETag is sent along as If-Match.

    At most ``limits.redirects`` redirects are followed, never from https to http. Beyond the scheme, host and port that
    the address names no headers, cookies or credentials are sent. Redirects lead into a private network or to this
    machine only from servers that are there themselves (:mod:`streamloader.stores.http.address_scope`).

    Credentials are those of the address (``https://user:password@host``), ``auth``, ``token`` or ``headers``, or else
    what the file named by ``$NETRC``, or ``~/.netrc``, has for the host (entries for a ``machine``; not ``default``).
    Cookies are neither kept nor sent. Proxies, in the environment or not, are not used.

    Args:
        url: scheme, host and port.
        timeouts: see :class:`Store`.
        limits: see :class:`Store`. Each request takes a connection, so not more of them are under way than
            ``limits.connections``.
        headers: sent with every request to this server.
        auth: user and password, for Basic authentication.
        token: for Bearer authentication.
        ca_file: PEM file of the certificate authorities that are trusted instead of the system's.
        reach: how near the server may be: "any", "loopback", "private" or "public". "public" is for addresses that
            somebody else wrote, as in a manifest from the network: they cannot lead to machines on the inside.

    Raises:
        ConfigError: that is no such address, or options that contradict each other.
    """

    schemes: ClassVar[tuple[str, ...]] = ("http", "https")
    writes: ClassVar[bool] = False
    lists: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        reach: str = "any",
    ) -> None:
        root, user = server_of(url)
        limits = limits or Limits()
        super().__init__(
            root, timeouts=timeouts, limits=replace(limits, requests=min(limits.requests, limits.connections))
        )
        self._access: Access = access(headers or {}, user, auth, token)
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        if reach not in _REACH:
            raise ConfigError(f"reach={reach!r}: it is one of {', '.join(map(repr, _REACH))}")
        self._reach = _REACH[reach]
        self._client: HttpClient | None = None
        self._rangeless = False

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into scheme, host and port (with user and password, if there are), and path with query."""
        scheme, _, rest = address.partition("://")
        end = min((at for at in (rest.find("/"), rest.find("?"), rest.find("#")) if at >= 0), default=len(rest))
        return f"{scheme.lower()}://{rest[:end]}", rest[end:].removeprefix("/")

    # --- what a store does -------------------------------------------------------------------------------------------

    async def _head(self, path: str) -> ObjectInfo:
        return await self._look(path, Where(self.address(path)), None)

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        where = Where(self.address(path), max(0, span.start) if span else 0)
        headers = {"Range": _asked(span)} if span else {}
        if version is not None and strong(version):
            headers["If-Match"] = version
        client = await self._connected()
        async with client.ask("GET", path, headers, where) as answer:
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and span is not None:
                await client.drain(answer)
                yield await self._outside(path, span, version, answer.headers, where)
            elif answer.status == HTTPStatus.PARTIAL_CONTENT and span is not None:
                yield self._part(path, span, version, answer, where)
            elif answer.status == HTTPStatus.OK:
                yield await self._whole(path, span, version, answer, where)
            else:
                await client.drain(answer)
                raise refusal(answer, where, pinned="If-Match" in headers)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _forget(self) -> None:
        if self._client is not None and self._client.pid != os.getpid():
            _inherited.append(self._client)  # to free it would close what the parent uses
        self._client = None

    async def _connected(self) -> HttpClient:
        if self._client is None:
            headers = dict(self._access.headers)
            login = self._access.login or (None if has_login(headers) else login_from_netrc(self.url))
            if login is not None:
                headers["Authorization"] = login
            client = HttpClient(Target(self.url, headers, self._reach, self._ca_file), self.timeouts, self.limits)
            self._client = client  # before the next await: nobody else may make another
            await client.open()
        return self._client

    def _check_path(self, path: str, *, empty: bool) -> None:
        if isinstance(path, str) and "#" in path:
            raise ConfigError(
                f"{path!r}: what follows '#' is never sent to a server; write %23 if it is part of a name"
            )
        name = path.partition("?")[0] or "-" if isinstance(path, str) and path else path
        super()._check_path(name, empty=empty)
        if any(unquote(part) in (".", "..") for part in name.split("/")):
            raise ConfigError(f"{path!r} is no path in a store: it has '.' or '..' in it, encoded")

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _look(self, path: str, where: Where, asked: str | None) -> ObjectInfo:
        client = await self._connected()
        async with client.ask("HEAD", path, {}, where) as answer:
            info = None
            if answer.status == HTTPStatus.OK:
                info = object_info(path, answer.headers, length_of(answer), asked)
                # Some leave out the size here, or say 0 for what they make on the spot.
                if info.size and "Content-Encoding" not in answer.headers:
                    return info
            elif answer.status not in NO_HEAD:
                raise refusal(answer, where)
        async with client.ask("GET", path, {"Range": "bytes=0-0"}, where) as answer:
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                await client.drain(answer)
                size = unsatisfied_size(answer.headers.get("Content-Range", ""))
                if info is not None and info.version is not None:
                    return replace(info, size=size)
            elif answer.status == HTTPStatus.PARTIAL_CONTENT:
                size = range_of(answer, where)[2]
            elif answer.status == HTTPStatus.OK:
                require_plain(answer, where)
                size = length_of(answer)
            else:
                await client.drain(answer)
                raise refusal(answer, where)
            return object_info(path, answer.headers, size, asked)

    async def _outside(
        self, path: str, span: ByteRange, version: str | None, headers: Mapping[str, str], where: Where
    ) -> Body:
        """Judge a server that has no such bytes: it is right, or there are none to have."""
        info = await self._look(path, where, version)
        if info.size is None:
            info = replace(info, size=unsatisfied_size(headers.get("Content-Range", "")))
        if info.size is None:
            raise RangeOutside(
                f"{where.address} does not have bytes {span}", address=where.address, offset=where.offset, size=None
            )
        self._check_version(info, version, where.offset or 0)
        start, end = span.within(info.size, where.address)
        if start != end:
            raise fault(where, f"it has {info.size} bytes, but the server says that there are none in {span}")
        return Body(info, start, end, _none())

    # --- what is sent ------------------------------------------------------------------------------------------------

    def _part(
        self, path: str, span: ByteRange, version: str | None, answer: aiohttp.ClientResponse, where: Where
    ) -> Body:
        """Check that a part is the one that was asked for; base compares it once more, with the size."""
        start, end, size = range_of(answer, where)
        length = length_of(answer)
        if length not in (None, end - start):
            raise fault(where, f"{length} bytes are announced for the range [{start}:{end}]")
        info = object_info(path, answer.headers, size, version)
        if info.size is None and span.end is None:
            raise fault(where, f"the server does not tell where {span} ends, so it could break off unnoticed")
        return Body(info, start, end, self._chunks(answer, where, start))

    async def _whole(
        self, path: str, span: ByteRange | None, version: str | None, answer: aiohttp.ClientResponse, where: Where
    ) -> Body:
        """Take the right part of an object that is sent as a whole."""
        require_plain(answer, where)
        info = object_info(path, answer.headers, length_of(answer), version)
        start, end = (0, None) if span is None else (span.start, span.end)
        if info.size is None and (start < 0 or (end is None and "Transfer-Encoding" not in answer.headers)):
            info = await self._measured(info, where)
        self._check_version(info, version, where.offset or 0)
        if info.size is not None:
            start, end = (span or ByteRange()).within(info.size, where.address)
        if span is not None and (start, end) not in ((0, info.size), (0, None)) and not self._rangeless:
            self._rangeless = True
            _log.warning(
                "%s serves no ranges (it sent all of %s when it was asked for a part): reading a part of an object "
                "costs as much as all that is before it",
                self.url,
                where.address,
            )
        needed = max(start, end or 0) if info.size is None else 0
        stop = None if end == info.size else end  # at the object's own end it is seen whether more comes
        return Body(info, start, end, self._chunks(answer, where, 0, stop, needed), skip=start)

    async def _measured(self, info: ObjectInfo, where: Where) -> ObjectInfo:
        """Find the size of an object that is sent without a length, and ends where the connection does."""
        looked = await self._look(info.path, where, info.version)
        size = looked.size if looked.version == info.version else None
        if size is None:
            raise fault(
                where, "the server tells no size, and ends what it sends by hanging up: it could break off unnoticed"
            )
        return replace(info, size=size)

    async def _chunks(
        self, answer: aiohttp.ClientResponse, where: Where, at: int, stop: int | None = None, needed: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """Yield what comes, from byte `at` of the object: all, or up to `stop`.

        Raises:
            RangeOutside: the object ends before byte `needed`.
        """
        origin = str(answer.url.origin())
        while stop is None or at < stop:
            with translated(replace(where, offset=at), origin, self.timeouts, begun=True):
                chunk = await answer.content.readany()
            if not chunk:
                break
            if stop is not None:
                chunk = chunk[: stop - at]
            at += len(chunk)
            yield chunk
        if at < needed and "Transfer-Encoding" in answer.headers:  # with it, an end is an end and no break
            raise RangeOutside(
                f"asked for more than the {at} bytes of {where.address}",
                address=where.address,
                offset=where.offset,
                size=at,
            )


_inherited: Final[list[HttpClient]] = []


async def _none() -> AsyncGenerator[bytes, None]:
    return
    yield  # which makes it a generator


def _asked(span: ByteRange) -> str:
    if span.start < 0:
        return f"bytes={span.start}"
    return f"bytes={span.start}-{'' if span.end is None else span.end - 1}"
