"""Provide objects on HTTP and HTTPS servers as a read-only store."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from http import HTTPStatus
from types import TracebackType
from typing import ClassVar, Final
from urllib.parse import unquote

import aiohttp
from typing_extensions import override

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ConfigError,
    NotFound,
    NotSupported,
    RangeNotSatisfiable,
    StoreError,
)
from streamloader.redaction import redact_address
from streamloader.stores.access import ServerAddress, StoreAccess
from streamloader.stores.base import NAMING_ADVICE, Body, Store
from streamloader.stores.deadlines import TransferDeadline
from streamloader.stores.environment import find_ca_path, find_proxy
from streamloader.stores.http.address_scope import AddressScope, PinnedHosts
from streamloader.stores.http.auth import (
    Credentials,
    find_netrc_file,
    has_authorization,
    make_credentials,
    parse_server_url,
    read_netrc_login,
)
from streamloader.stores.http.client import HttpClient, HttpServerConfig, RequestGate
from streamloader.stores.http.document import DocumentRequest, HttpDocument, receive_document
from streamloader.stores.http.listing import LISTING_HEADERS, HttpListing
from streamloader.stores.http.listing_pages import PAGE_TYPES, normalize_name_pattern
from streamloader.stores.http.metadata import MetadataRequests
from streamloader.stores.http.response_pieces import ResponsePieces, limit_waits
from streamloader.stores.http.responses import (
    ErrorContext,
    body_length,
    is_strong_etag,
    make_protocol_error,
    make_status_error,
    parse_object_info,
    parse_unsatisfied_size,
    read_content_range,
    require_unencoded,
)
from streamloader.stores.http.whole_copies import WholeCopies, WholeCopy
from streamloader.stores.search import TreeSearch
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["SCOPE_NAMES", "HttpStore"]

_SCOPES: Final = {
    "any": AddressScope.SPECIAL,
    "loopback": AddressScope.LOOPBACK,
    "private": AddressScope.PRIVATE,
    "public": AddressScope.PUBLIC,
}
SCOPE_NAMES: Final = {scope: name for name, scope in _SCOPES.items()}
_PINS: Final = ("etag", "date")
_log: Final = logging.getLogger("streamloader")


class HttpStore(Store):
    """``http://host/...`` and ``https://host/...``: read-only.

    Paths follow the syntax of URLs: ``%20`` is a space, ``?`` begins a query, which is sent to the server. Characters
    that a URL must not contain (spaces, letters beyond ASCII, a lone ``%``) are encoded; write ``%23`` for ``#``.

    Range responses are checked: the server must send exactly the requested bytes. If a server sends the whole
    object instead, the requested part is cut out of it, and a warning is logged once: reading a part then transfers
    all bytes before it. If the object has a version, these bytes are kept in a temporary file without a name, for
    other parts, as long as all such files have at most ``limits.copy_bytes``. Compression is never requested, and a
    compressed response is refused. Versions are ETags, or else Last-Modified together with the size; a strong ETag
    is sent as If-Match.

    Folders are listed from the pages that nginx, Apache, Python's ``http.server``, lighttpd and Caddy make of them
    (:mod:`streamloader.stores.http.listing_pages`); any other page is refused. Listed names are decoded, except for
    characters that a path must not contain. Listings have no sizes, because servers round them: they are requested
    with HEAD.

    At most ``limits.redirects`` redirects are followed, never from https to http. Servers with another scheme, host or
    port than the address receive no headers, cookies or credentials. Only a server in a private network or on this
    machine may redirect to other addresses there (:mod:`streamloader.stores.http.address_scope`). If the server's name
    first had a public address, it is refused when it later has one inside (DNS rebinding).

    Credentials come from the address (``https://user:password@host``), from ``auth``, ``token`` or ``headers``, or
    from the entry of the host in the file named by ``$NETRC``, or in ``~/.netrc`` (entries for a ``machine``; not
    ``default``). Such an entry is sent over https only, or to this machine (``localhost``, ``127.0.0.1``, ``::1``),
    and to the scheme's own port (443, 80) only; an entry ``machine host:port`` is for exactly that port. Cookies of a
    redirect are sent back to the server that set them, during the same request only. The proxies of HTTP_PROXY,
    HTTPS_PROXY and ALL_PROXY are used, except for the hosts in NO_PROXY; such a proxy decides which names it connects
    to.

    Args:
        url: Scheme, host and port.
        timeouts: Deadlines of requests, see :class:`Store`.
        limits: Limits of requests, see :class:`Store`. Each request takes a connection, so at most
            ``limits.connections`` requests run at the same time.
        headers: Headers of every request to this server. Defaults to none.
        auth: User and password for Basic authentication. Defaults to None.
        token: Token for Bearer authentication. Defaults to None.
        ca_file: PEM file of the trusted certificate authorities. Defaults to that of SSL_CERT_FILE, REQUESTS_CA_BUNDLE,
            CURL_CA_BUNDLE or AWS_CA_BUNDLE, or else to those of the system.
        anonymous: Whether requests are sent without the credentials of the netrc file. Defaults to False.
        scope: Scope of addresses that the server may have: "any" (the default), "loopback", "private" or "public". Use
            "public" for addresses that another party wrote, as in a manifest from the network: they then cannot lead
            to machines inside your network.
        pin: Kind of the versions: "etag" (the default), or "date" for dates and sizes, for servers with several
            backends that give one object different ETags. Without a date there is no version then.

    Raises:
        ConfigError: If the URL or an option is malformed, or if options contradict each other.
    """

    schemes: ClassVar[tuple[str, ...]] = ("http", "https")
    supports_writes: ClassVar[bool] = False
    has_directories: ClassVar[bool] = True
    has_url_paths: ClassVar[bool] = True

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
        anonymous: bool = False,
        scope: str = "any",
        pin: str = "etag",
    ) -> None:
        root, user = parse_server_url(url)
        limits = limits or Limits()
        super().__init__(
            root, timeouts=timeouts, limits=replace(limits, requests=min(limits.requests, limits.connections))
        )
        self._credentials: Credentials = make_credentials(headers or {}, user, auth, token)
        given = {"the address": user, "the option auth": auth, "the option token": token}
        self._login_source = next((source for source, value in given.items() if value is not None), None)
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        if scope not in _SCOPES:
            raise ConfigError(f"scope={scope!r}: expected one of {', '.join(map(repr, _SCOPES))}")
        self._scope = _SCOPES[scope]
        if pin not in _PINS:
            raise ConfigError(f"pin={pin!r}: expected one of {', '.join(map(repr, _PINS))}")
        self._ignores_etag = pin == "date"
        self._pinned_hosts: PinnedHosts = {}  # outlives the connections
        self._anonymous = bool(anonymous)
        self._client: HttpClient | None = None
        self._warned_no_ranges = False
        self._metadata = MetadataRequests(self.url, self.timeouts, ignores_etag=self._ignores_etag)
        self._copies = WholeCopies(self.limits.copy_bytes, self.limits.connections)

    @classmethod
    @override
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into scheme, host and port (with user and password, if any), and path with query."""
        scheme, _, rest = address.partition("://")
        end = min((end for end in (rest.find("/"), rest.find("?"), rest.find("#")) if end >= 0), default=len(rest))
        return f"{scheme.lower()}://{rest[:end]}", rest[end:].removeprefix("/")

    @property
    def supports_ranges(self) -> bool:  # type: ignore[override]
        """Whether the server has sent parts of objects so far when parts were requested."""
        return not self._warned_no_ranges

    @override
    def normalize_pattern(self, part: str) -> str:
        return normalize_name_pattern(part)

    @override
    def describe_access(self) -> StoreAccess:
        facts = {"credentials": self._describe_credentials()}
        if self._credentials.headers:
            facts["headers"] = ", ".join(sorted(self._credentials.headers))
        ca_file = find_ca_path(self._ca_file)
        facts["certificates"] = ca_file or "authorities of the system"
        proxy = find_proxy(self.url)
        if proxy is None:
            return StoreAccess((ServerAddress.from_url("server", self.url),), facts, ca_file=ca_file)
        facts["proxy"] = f"{redact_address(proxy)} of the environment"
        return StoreAccess((ServerAddress.from_url("proxy", proxy),), facts, ca_file=ca_file)

    def _describe_credentials(self) -> str:
        if self._login_source is not None:
            return f"login from {self._login_source}"
        if has_authorization(self._credentials.headers):
            return "login from the option headers"
        if not self._anonymous and read_netrc_login(self.url) is not None:
            return f"login from the netrc file {find_netrc_file()}"
        return "none"

    # --- the store interface -----------------------------------------------------------------------------------------

    @override
    async def _head(self, path: str) -> ObjectInfo:
        return await self._request_info(path, ErrorContext(self.address(path)), None)

    @override
    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        return _HttpRead(self, path, span, version)

    async def send_read(
        self, path: str, span: ByteRange | None, version: str | None
    ) -> tuple[Body, Callable[[], None]]:
        """Request bytes. Return the response's body, and the function that releases its connection."""
        context = ErrorContext(self.address(path), max(0, span.start) if span else 0)
        if span is not None and self._copies.has_copy(path):
            # A copy stands for the object as long as that is the same.
            if version is None or not self._metadata.head_refused:
                info = await self._request_info(path, context, version)
                self._check_version(info, version, context.offset or 0)
                version = info.version
            if (kept := self._copies.find(path, version)) is not None:
                return kept.make_body(span), _do_nothing
        headers = {"Range": _format_range(span)} if span else {}
        if version is not None and is_strong_etag(version):
            headers["If-Match"] = version
        client = await self._connect()
        response = await client.send("GET", path, headers, context)
        release: Callable[[], None] = functools.partial(client.release, response)
        try:
            if response.status == HTTPStatus.PARTIAL_CONTENT and span is not None:
                body = await self._make_part_body(path, span, version, response, context)
            elif response.status == HTTPStatus.OK:
                await self._refuse_folder(path, response, context)
                body = await self._make_whole_body(path, span, version, response, context)
                if body.skip or (span is not None and body.end != body.info.size):
                    body, release = self._read_copy(path, span or ByteRange(), response, body, context, release)
            elif response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and span is not None:
                await client.drain(response)
                body = await self._handle_unsatisfied_range(path, span, version, response.headers, context)
            else:
                await client.drain(response)
                raise make_status_error(response, context, pinned="If-Match" in headers)
        except BaseException:
            client.release(response)
            raise
        return body, release

    async def fetch_document(
        self, path: str, request: DocumentRequest, *, gate: RequestGate | None = None
    ) -> HttpDocument:
        """Return a document with its headers: a page, as it is at this moment, and not a version of an object.

        Its size need not be declared. A document that is sent without a length, and ends when the connection is closed,
        is taken as complete.

        Args:
            path: Path of the document, with query. It may be empty.
            request: Headers and limits.
            gate: Coroutine function that is awaited before each request, also before those to the targets of redirects.
                Defaults to none.

        Raises:
            LimitExceeded: If the document is larger than ``request.max_bytes``, or its transfer takes longer than
                ``request.max_seconds``.
            StoreError: If the server does not send the document.
        """
        self._prepare_call(path, allow_empty=True)
        context = ErrorContext(self.address(path) if path else f"{self.url}/")
        deadline = self._make_deadline(path)
        async with (
            self._request_slots,
            self._open_page(path, request.headers, context, gate, deadline) as (response, pieces),
        ):
            if response.status not in request.statuses:
                await (await self._connect()).drain(response)
                raise make_status_error(response, context)
            return await receive_document(response, pieces, request, deadline, context)

    @contextlib.asynccontextmanager
    async def _open_page(
        self,
        path: str,
        headers: Mapping[str, str],
        context: ErrorContext,
        gate: RequestGate | None,
        deadline: TransferDeadline,
    ) -> AsyncGenerator[tuple[aiohttp.ClientResponse, AsyncIterator[bytes]], None]:
        """Request a page, and yield the response with any status, and the pieces of its body."""
        client = await self._connect()
        response = await client.send(
            "GET",
            path,
            headers,
            context,
            gate=gate,
            limit_wait=lambda: deadline.limit_response("waiting for the first bytes"),
        )
        try:
            yield response, ResponsePieces(response, replace(context, offset=0), self.timeouts, 0)
        finally:
            client.release(response)

    @override
    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._list_folder(prefix, None, recursive=recursive)

    @override
    def _search(self, prefix: str, search: TreeSearch, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._list_folder(prefix, search, recursive=recursive)

    def _list_folder(
        self, prefix: str, search: TreeSearch | None, *, recursive: bool
    ) -> AsyncGenerator[ObjectInfo, None]:
        if "?" in prefix:
            address = self.address(prefix)
            raise NotSupported(f"{address}: folders cannot be listed with a query: {NAMING_ADVICE}", address=address)
        listing = HttpListing(self._open_listing_page, self.address, self.limits, search, self._request_slots)
        return listing.list_entries(prefix, recursive=recursive)

    async def _refuse_folder(self, path: str, response: aiohttp.ClientResponse, context: ErrorContext) -> None:
        """Refuse the listing of a folder, which a server sends if the path lacks the "/" at its end.

        Raises:
            NotFound: If the response is one.
        """
        is_redirected = unquote(response.url.raw_path) == f"/{unquote(path)}/"
        if not is_redirected or response.content_type.lower() not in PAGE_TYPES:
            return
        listing = HttpListing(self._open_listing_page, self.address, self.limits, None, asyncio.Semaphore())
        try:
            async with contextlib.aclosing(listing.list_entries(path, recursive=False)) as entries:
                await anext(entries, None)
        except StoreError:
            return
        error = NotFound(
            f'{context.address} is a folder: write a "/" at the end of its address', address=context.address
        )
        error.details["is_folder"] = True
        raise error

    @contextlib.asynccontextmanager
    async def _open_listing_page(
        self, path: str, context: ErrorContext, gate: RequestGate
    ) -> AsyncGenerator[tuple[aiohttp.ClientResponse, AsyncIterator[bytes]], None]:
        """Request the page of a folder, and yield the response with any status, and its body as it arrives."""
        deadline = self._make_deadline(path)
        async with (
            self._open_page(path, LISTING_HEADERS, context, gate, deadline) as (response, pieces),
            contextlib.aclosing(limit_waits(pieces, deadline)) as limited,
        ):
            yield response, limited

    @override
    async def _disconnect(self) -> None:
        await self._copies.aclose()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @override
    def _drop_connections(self) -> None:
        if self._client is not None and self._client.pid != os.getpid():
            _inherited.append(self._client)  # freeing it would close the parent's connections
        self._client = None
        self._copies = WholeCopies(self.limits.copy_bytes, self.limits.connections)

    async def _connect(self) -> HttpClient:
        if self._client is None:
            headers = dict(self._credentials.headers)
            login = self._credentials.login
            if login is None and not self._anonymous and not has_authorization(headers):
                login = read_netrc_login(self.url)
            if login is not None:
                headers["Authorization"] = login
            server = HttpServerConfig(self.url, headers, self._scope, self._ca_file, self._pinned_hosts)
            client = HttpClient(server, self.timeouts, self.limits)
            self._client = client  # before the next await, so that no other task creates another one
            await client.open()
        return self._client

    @override
    def _check_path(self, path: str, *, allow_empty: bool) -> None:
        if isinstance(path, str) and "#" in path:
            raise ConfigError(
                f"{self.address(path)}: text after '#' is never sent to a server; write %23 if it is part of a name"
            )
        name = path.partition("?")[0] or "-" if isinstance(path, str) and path else path
        super()._check_path(name, allow_empty=allow_empty)
        if isinstance(name, str) and "%" in name and any(unquote(part) in (".", "..") for part in name.split("/")):
            raise ConfigError(f"{self.address(path)!r} is not a path in a store: it contains an encoded '.' or '..'")

    def _parse_info(
        self, path: str, headers: Mapping[str, str], size: int | None, expected_version: str | None
    ) -> ObjectInfo:
        return parse_object_info(path, headers, size, expected_version, ignores_etag=self._ignores_etag)

    async def _request_info(self, path: str, context: ErrorContext, expected_version: str | None) -> ObjectInfo:
        client = await self._connect()
        return await self._metadata.request(client, path, context, expected_version, self._refuse_folder)

    async def _handle_unsatisfied_range(
        self, path: str, span: ByteRange, version: str | None, headers: Mapping[str, str], context: ErrorContext
    ) -> Body:
        """Check a server's response that a range does not exist. Return an empty body if the range is empty."""
        info = await self._request_info(path, context, version)
        stated_size = parse_unsatisfied_size(headers.get("Content-Range", ""))
        self._check_size(info, stated_size, context.offset or 0)
        if info.size is None:
            info = replace(info, size=stated_size)
        if info.size is None:
            raise RangeNotSatisfiable(
                f"{context.address} does not have bytes {span}",
                address=context.address,
                offset=context.offset,
                size=None,
            )
        self._check_version(info, version, context.offset or 0)
        start, end = span.within(info.size, context.address)
        if start != end:
            raise make_protocol_error(
                context, f"the object has {info.size} bytes, but the server refused the range {span}"
            )
        return Body(info, start, end, _yield_nothing())

    # --- bodies ------------------------------------------------------------------------------------------------------

    async def _make_part_body(
        self,
        path: str,
        span: ByteRange,
        version: str | None,
        response: aiohttp.ClientResponse,
        context: ErrorContext,
    ) -> Body:
        """Check that a part is complete. The base class compares it with the request."""
        start, end, size = read_content_range(response, context)
        length = body_length(response, context)
        if length not in (None, end - start):
            raise make_protocol_error(context, f"the server announced {length} bytes for the range [{start}:{end}]")
        info = self._parse_info(path, response.headers, size, version)
        if info.size is None and span.end is None:
            current = await self._request_info(path, context, info.version)
            if current.size is None or current.version != info.version:
                raise make_protocol_error(
                    context, f"the server does not report the end of {span}, so the transfer could break off unnoticed"
                )
            info = replace(info, size=current.size)
        # A response with a length ends there: further bytes would belong to another response.
        return Body(
            info, start, end, ResponsePieces(response, context, self.timeouts, start), bounded=length is not None
        )

    async def _make_whole_body(
        self,
        path: str,
        span: ByteRange | None,
        version: str | None,
        response: aiohttp.ClientResponse,
        context: ErrorContext,
    ) -> Body:
        """Cut the requested part out of an object that the server sends as a whole."""
        require_unencoded(response, context)
        info = self._parse_info(path, response.headers, body_length(response, context), version)
        start, end = (0, None) if span is None else (span.start, span.end)
        if info.size is None and (start < 0 or (end is None and "Transfer-Encoding" not in response.headers)):
            info = await self._add_size(info, context)
        self._check_version(info, version, context.offset or 0)
        if info.size is not None:
            start, end = (span or ByteRange()).within(info.size, context.address)
        if span is not None and (start, end) not in ((0, info.size), (0, None)) and not self._warned_no_ranges:
            self._warned_no_ranges = True
            _log.warning(
                "%s does not support ranges (it sent all of %s when a part was requested): reading a part of an object "
                "transfers all bytes before it, once if it has a version: they are then kept in a temporary file",
                self.url,
                context.address,
            )
        min_size = max(start, end or 0) if info.size is None else 0
        last = None if end == info.size else end  # read to the end of the object, to detect surplus bytes
        return Body(info, start, end, ResponsePieces(response, context, self.timeouts, 0, last, min_size), skip=start)

    def _read_copy(
        self,
        path: str,
        span: ByteRange,
        response: aiohttp.ClientResponse,
        body: Body,
        context: ErrorContext,
        release: Callable[[], None],
    ) -> tuple[Body, Callable[[], None]]:
        """Keep a copy of an object that the server sends as a whole, and return the requested part of it."""
        info = body.info
        if not self._copies.accepts(info):
            return body, release
        kept = self._copies.find(path, info.version)
        if kept is not None:
            release()
        else:
            pieces = ResponsePieces(response, replace(context, offset=0), self.timeouts, 0)
            kept = WholeCopy(info, pieces, release, self._make_deadline(path), context.address)
            self._copies.add(path, kept)
        return kept.make_body(span), _do_nothing

    async def _add_size(self, info: ObjectInfo, context: ErrorContext) -> ObjectInfo:
        """Query the size of an object that is sent without a length and ends when the connection is closed."""
        current = await self._request_info(info.path, context, info.version)
        size = current.size if current.version == info.version else None
        if size is None:
            raise make_protocol_error(
                context,
                "the server reports no size, and closes the connection at the end: the transfer could break off "
                "unnoticed",
            )
        return replace(info, size=size)


_inherited: Final[list[HttpClient]] = []


def _do_nothing() -> None:
    """Release nothing: the connection belongs to a copy."""


async def _yield_nothing() -> AsyncGenerator[bytes, None]:
    return
    yield  # makes this function a generator


def _format_range(span: ByteRange) -> str:
    if span.start < 0:
        return f"bytes={span.start}"
    return f"bytes={span.start}-{'' if span.end is None else span.end - 1}"


class _HttpRead(AbstractAsyncContextManager[Body]):
    """A read of a store. It is a class because a generator would take longer, which matters for many short ranges."""

    def __init__(self, store: HttpStore, path: str, span: ByteRange | None, version: str | None) -> None:
        self._open_body = functools.partial(store.send_read, path, span, version)

    @override
    async def __aenter__(self) -> Body:
        body, self._release = await self._open_body()
        return body

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()
