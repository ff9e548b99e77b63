"""HTTP requests to IPFS nodes and gateways, with deadlines, size limits, and errors of this package."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from yarl import URL

from streamloader.common.error_translation import error_translator
from streamloader.common.printable import make_printable
from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ClosedError,
    LimitExceeded,
    NotFound,
    ProtocolError,
    ServerBusy,
    StoreError,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import redact
from streamloader.stores.deadlines import TransferDeadline, WaitTimer
from streamloader.stores.environment import find_ca_path, load_authorities
from streamloader.stores.http.address_scope import AddressScope, ForbiddenAddress, PinnedHosts, ScopedResolver
from streamloader.stores.http.client import describe_forbidden, make_proxy_error
from streamloader.stores.http.redirects import REDIRECT_STATUSES, ScopedSessions, resolve_redirect
from streamloader.stores.http.responses import BUSY_STATUSES, ErrorContext, parse_retry_after, read_beginning

__all__ = ["IpfsHttpClient", "IpfsResponse"]

_READ_BYTES: Final = 256 << 10
_MAX_ERROR_TEXT_BYTES: Final = 400


class IpfsResponse:
    """A successful response: status 200, without a content encoding.

    Args:
        client: Client that made the request.
        response: Response of aiohttp.
        origin: Scheme, host and port of the server, for messages.
        deadline: Deadlines of the transfer.
        trusted: Whether it comes from the server that the user named. Errors do not quote other servers.

    Attributes:
        origin: Scheme, host and port of the server.
        headers: Headers of the response.
    """

    def __init__(
        self,
        client: IpfsHttpClient,
        response: aiohttp.ClientResponse,
        origin: str,
        deadline: TransferDeadline,
        *,
        trusted: bool,
    ) -> None:
        self.origin = origin
        self._trusted = trusted
        self._client = client
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._deadline = deadline

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives.

        Raises:
            TransferInterrupted: If the connection is lost.
            StoreTimeout: If the transfer is too slow.
        """
        while True:
            with (
                self._client.translate_errors(self.origin, in_transfer=True, trusted=self._trusted),
                self._deadline.limit_next_bytes("fetching"),
            ):
                piece = await self._response.content.read(_READ_BYTES)
            if not piece:
                return
            self._deadline.count_received(len(piece))
            yield piece

    async def read_all(self, max_bytes: int, what: str) -> bytes:
        """Return the body.

        Args:
            max_bytes: Maximum size of the body. No more than this is read.
            what: Description of the body for messages.

        Raises:
            LimitExceeded: If the body has more than `max_bytes` bytes.
            StoreError: If the transfer fails; see :meth:`pieces`.
        """
        if (announced := self._response.content_length) is not None and announced > max_bytes:
            raise _make_too_large_error(self.origin, what, max_bytes)
        parts: list[bytes] = []
        size = 0
        async with contextlib.aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                size += len(piece)
                if size > max_bytes:
                    raise _make_too_large_error(self.origin, what, max_bytes)
                parts.append(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class IpfsHttpClient:
    """HTTP connections of one store in one process and event loop. They are closed with the loop at the latest.

    Args:
        limits: Limits of the store. `connections` applies to each server.
        pinned_hosts: Scopes of the first addresses of the servers that the user named. It outlives the client.
        ca_file: PEM file of the trusted certificate authorities. Defaults to those of the environment or the system.

    Attributes:
        pid: Process that the client belongs to.
    """

    def __init__(self, limits: Limits, pinned_hosts: PinnedHosts, ca_file: str | None = None) -> None:
        self.pid = os.getpid()
        self._limits = limits
        ca_path = find_ca_path(ca_file)
        tls = True if ca_path is None else load_authorities(ca_path)
        self._sessions = ScopedSessions(partial(_make_session, tls=tls), pinned_hosts)
        self._session_closer: AsyncGenerator[None, None] | None = None
        self._closed = False
        self._wait_timer = WaitTimer()
        self._connection_slots: dict[str, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        timeouts: Timeouts,
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        body: aiohttp.MultipartWriter | None = None,
    ) -> AsyncIterator[IpfsResponse]:
        """Send a request, wait for the response to start, and release the connection at the end.

        Args:
            method: "GET" or "POST".
            url: Complete URL without user and password.
            timeouts: Time limits of this request.
            headers: Headers of the request.
            secrets: Further headers that are only sent to the origin of `url`.
            body: Body of the request. Defaults to none.

        Raises:
            StoreError: If there is no successful response.
        """
        chain = self._sessions.start(URL(url), AddressScope.SPECIAL)
        origin = str(chain.url.origin())
        slots = self._connection_slots.setdefault(origin, asyncio.Semaphore(self._limits.connections))
        deadline = TransferDeadline(timeouts, origin, self._wait_timer)
        hops = 0
        async with slots, contextlib.AsyncExitStack() as stack:
            with self.translate_errors(origin, in_transfer=False):
                await self._open()
            while True:
                sent_headers = {**(headers or {}), **((secrets or {}) if chain.trusted else {})}
                with self.translate_errors(origin, in_transfer=False, trusted=chain.trusted):
                    self._require_open()
                    with deadline.limit_response("waiting for an answer"):
                        session, proxy = self._sessions.select(chain)
                        response = await session.request(
                            method, chain.url, headers=sent_headers, data=body, allow_redirects=False, **proxy
                        )
                stack.callback(response.close)
                if response.status not in REDIRECT_STATUSES:
                    break
                target = _resolve_redirect(chain.url, response.headers.get("Location", ""), origin)
                if method != "GET" and target.origin() != chain.url.origin():
                    raise ProtocolError(
                        f"{origin} redirects a call to {target.origin()}, which is not followed: if you trust that "
                        "node, pass its address",
                        address=origin,
                    )
                response.release()
                if hops == self._limits.redirects:
                    raise ProtocolError(f"{origin} redirects more than {hops} times", address=origin)
                hops += 1
                chain.move_to(target)
            if response.status != HTTPStatus.OK:
                raise await self._read_error(response, origin, deadline, trusted=chain.trusted)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ProtocolError(f"{origin} sent an encoding that was not requested", address=origin)
            yield IpfsResponse(self, response, origin, deadline, trusted=chain.trusted)
            response.release()  # reuses the connection if the body was read completely

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        closer, self._session_closer = self._session_closer, None
        if closer is not None:
            await closer.aclose()

    @error_translator
    def translate_errors(self, origin: str, *, in_transfer: bool, trusted: bool = True) -> Iterator[None]:
        """Translate errors of aiohttp to errors of this package.

        Args:
            origin: Scheme, host and port of the server.
            in_transfer: Whether the response has started. A lost connection is then an interruption.
            trusted: Whether errors may quote the response. Defaults to True. False after a redirect to another server.
        """
        try:
            yield
        except RuntimeError as error:  # aiohttp raises it when a closed session is used
            if not self._closed:
                raise
            raise ClosedError(f"the store was closed during a request to {origin}", address=origin) from error
        except StoreError:
            raise
        except (aiohttp.ClientConnectorDNSError, ForbiddenAddress) as error:
            cause = getattr(error, "os_error", error)
            if isinstance(cause, ForbiddenAddress):
                raise UntrustedHost(f"{origin}: {describe_forbidden(cause)}", address=origin) from None
            raise Unreachable(f"{origin} cannot be reached: {error}", address=origin) from error
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            raise UntrustedHost(f"{origin}: TLS failed: {make_printable(error)}", address=origin) from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError) as error:
            reason = make_printable((str(error) if trusted else "") or type(error).__name__)
            if in_transfer:
                raise TransferInterrupted(f"{origin} interrupted the transfer: {reason}", address=origin) from error
            raise Unreachable(f"{origin} cannot be reached: {reason}", address=origin) from error
        except aiohttp.ClientHttpProxyError as error:
            raise make_proxy_error(error, origin, None) from None
        except aiohttp.ClientError as error:
            if not trusted:
                raise ProtocolError(f"{origin} redirects to a server that violates HTTP", address=origin) from None
            raise ProtocolError(
                f"{origin} violates the HTTP protocol: {make_printable(error)}", address=origin
            ) from error

    async def _read_error(
        self, response: aiohttp.ClientResponse, origin: str, deadline: TransferDeadline, *, trusted: bool
    ) -> StoreError:
        """Return the error for a response whose status is not 200. It quotes only the server that the user named."""
        text = ""
        if trusted:
            with (
                contextlib.suppress(StoreError),
                self.translate_errors(origin, in_transfer=True),
                deadline.limit_next_bytes("reading an error"),
            ):
                text = await read_beginning(response, _MAX_ERROR_TEXT_BYTES)
        status = response.status
        message = f"{origin} answers {status}: {make_printable(' '.join(redact(text).split()))}"
        if not trusted:
            message = f"{origin} redirects to {response.url.origin()}, which answers {status}"
        if status in (404, 410):
            return NotFound(message, address=origin)
        if status in (401, 403, 407, 451):
            return AccessDenied(message, address=origin)
        if status in BUSY_STATUSES:
            retry_after = parse_retry_after(response.headers)
            details: dict[str, Any] = {} if retry_after is None else {"retry_after": retry_after}
            return ServerBusy(message, address=origin, status=status, text=text, **details)
        return ProtocolError(message, address=origin)

    async def _open(self) -> None:
        """Register the sessions with the event loop, which closes them at its end."""
        self._require_open()
        if self._session_closer is None:
            self._session_closer = _close_with_loop(self._sessions)
            await anext(self._session_closer)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("closed")


def _make_session(resolver: ScopedResolver, *, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, resolver=resolver, ssl=tls),  # limited by the connection slots
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "streamloader"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # limited by the TransferDeadline
        auto_decompress=False,
        read_bufsize=_READ_BYTES,
    )


async def _close_with_loop(sessions: ScopedSessions) -> AsyncGenerator[None, None]:
    """Close the sessions when this generator is closed. An event loop closes all open generators before it ends."""
    try:
        yield
    finally:
        await sessions.close()


def _resolve_redirect(current: URL, location: str, origin: str) -> URL:
    """Return the target of a redirect. Only the same host and its subdomains are allowed; gateways use subdomains."""
    if not location:
        raise ProtocolError(f"{origin} redirects to no address", address=origin)
    target = resolve_redirect(current, location, ErrorContext(origin))
    old, new = current.raw_host or "", target.raw_host or ""
    if new != old and not new.endswith(f".{old}"):
        raise ProtocolError(
            f"{origin} redirects to {target.origin()}, but gateways may only redirect to their own subdomains. If you "
            "trust the other gateway, pass its address",
            address=origin,
        )
    return target


def _make_too_large_error(origin: str, what: str, max_bytes: int) -> LimitExceeded:
    return LimitExceeded(f"{origin} sent more than {max_bytes} bytes for {what}", address=origin)
