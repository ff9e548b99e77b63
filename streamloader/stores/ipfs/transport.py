"""Requests to IPFS nodes and gateways: in time, bounded, and with errors that are ours."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ClosedError,
    Interrupted,
    LimitExceeded,
    NotFound,
    ProtocolFault,
    ServerBusy,
    StoreError,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import redact
from streamloader.stores.deadlines import Pace

__all__ = ["Answer", "Http"]

_CHUNK: Final = 256 << 10  # bytes
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_REASON: Final = 400  # bytes of an error's text that are read


class Answer:
    """An answer that began well: status 200, no encoding.

    Attributes:
        where: who gave it, for messages.
        headers: of it.
    """

    def __init__(self, http: Http, response: aiohttp.ClientResponse, where: str, pace: Pace) -> None:
        self.where = where
        self._http = http
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._pace = pace

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes.

        Raises:
            Interrupted: it broke off.
            StoreTimeout: it comes too slowly.
        """
        while True:
            with self._http.translated(self.where, begun=True):
                async with self._pace.next("fetching"):
                    chunk = await self._response.content.read(_CHUNK)
            if not chunk:
                return
            self._pace.got(len(chunk))
            yield chunk

    async def whole(self, most: int, what: str) -> bytes:
        """Return the body.

        Raises:
            LimitExceeded: it has more than `most` bytes; no more than that are read.
            StoreError: see :meth:`chunks`.
        """
        if (announced := self._response.content_length) is not None and announced > most:
            raise _too_large(self.where, what, most)
        parts: list[bytes] = []
        size = 0
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > most:
                    raise _too_large(self.where, what, most)
                parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Http:
    """The connections of one store in one process and event loop. They close with that loop at the latest.

    Attributes:
        pid: of the process.
    """

    def __init__(self, limits: Limits) -> None:
        self.pid = os.getpid()
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._keeper: AsyncGenerator[None, None] | None = None
        self._closed = False
        self._turns: dict[str, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        timeouts: Timeouts,
        headers: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        body: aiohttp.MultipartWriter | None = None,
    ) -> AsyncIterator[Answer]:
        """Make a request, wait for its answer to begin, and free its connection in the end.

        Args:
            method: GET or POST.
            url: whole, without user and password.
            timeouts: of this request.
            headers: of it.
            secrets: further headers, which only the origin of `url` gets.
            body: to be sent.

        Raises:
            StoreError: it did not begin well.
        """
        where = _origin(url)
        turn = self._turns.setdefault(where, asyncio.Semaphore(self._limits.connections))
        pace = Pace(timeouts, where)
        async with turn, contextlib.AsyncExitStack() as stack:
            with self.translated(where, begun=False):
                session = await self._connected()
            for _ in range(self._limits.redirects + 1):
                sent = {**(headers or {}), **(secrets or {})} if _origin(url) == where else headers
                with self.translated(where, begun=False):
                    async with pace.first("waiting for an answer"):
                        response = await session.request(method, url, headers=sent, data=body, allow_redirects=False)
                stack.callback(response.close)
                if response.status not in _REDIRECTS:
                    break
                url = _target(url, response.headers.get("Location", ""), where)
                response.release()
            else:
                raise ProtocolFault(f"{where} redirects more than {self._limits.redirects} times", address=where)
            if response.status != HTTPStatus.OK:
                raise await self._refusal(response, where, pace)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ProtocolFault(f"{where} sends an encoding that was not asked for", address=where)
            answer = Answer(self, response, where, pace)
            yield answer
            response.release()  # for the next request, if all of it was read

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        keeper, self._keeper, self._session = self._keeper, None, None
        if keeper is not None:
            await keeper.aclose()

    @contextlib.contextmanager
    def translated(self, where: str, *, begun: bool) -> Iterator[None]:
        """Turn errors of aiohttp into ours.

        Args:
            where: the request goes to.
            begun: whether an answer has begun.
        """
        try:
            yield
        except RuntimeError as error:  # aiohttp's for what is used after it was closed
            if not self._closed:
                raise
            raise ClosedError(f"the store was closed while it waited for {where}", address=where) from error
        except StoreError:
            raise
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            raise UntrustedHost(f"{where}: TLS failed: {error}", address=where) from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError) as error:
            why = str(error) or type(error).__name__
            if begun:
                raise Interrupted(f"{where} broke off: {why}", address=where) from error
            raise Unreachable(f"{where} cannot be reached: {why}", address=where) from error
        except aiohttp.ClientError as error:
            raise ProtocolFault(f"{where} does not speak HTTP as it should: {error}", address=where) from error

    async def _refusal(self, response: aiohttp.ClientResponse, where: str, pace: Pace) -> StoreError:
        """Return the error for a status that is not 200."""
        reason = ""
        with contextlib.suppress(StoreError), self.translated(where, begun=True):
            async with pace.next("reading an error"):
                reason = (await response.content.read(_REASON)).decode("utf-8", "replace")
        status = response.status
        said = f"{where} answers {status}: {' '.join(redact(reason).split())[:200]}"
        if status in (404, 410):
            return NotFound(said, address=where)
        if status in (401, 403, 407, 451):
            return AccessDenied(said, address=where)
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            details: dict[str, Any] = {} if wait is None else {"retry_after": wait}
            return ServerBusy(said, address=where, status=status, text=reason, **details)
        return ProtocolFault(said, address=where)

    async def _connected(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RuntimeError("closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # turns limit them
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "streamloader"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the pace limits each wait
                auto_decompress=False,
                read_bufsize=_CHUNK,
            )
            self._keeper = _kept_open(self._session)
            await anext(self._keeper)
        return self._session


async def _kept_open(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Close the session with this generator: event loops close all that are open before they end."""
    try:
        yield
    finally:
        await session.close()


def _retry_after(text: str) -> float | None:
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _target(url: str, location: str, where: str) -> str:
    """Return where a redirect leads: to the same host, or to one under it, as gateways with subdomains do."""
    target = urljoin(url, location)
    old, new = urlsplit(url), urlsplit(target)
    host = old.hostname or ""
    same = new.hostname == host or (new.hostname or "").endswith(f".{host}")
    if not location or not same or new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
        raise ProtocolFault(
            f"{where} redirects to {_origin(target)}: gateways are followed to hosts under their own only. Give the "
            "other one's address if you trust it",
            address=where,
        )
    return target


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _too_large(where: str, what: str, most: int) -> LimitExceeded:
    return LimitExceeded(f"{where} sends more than {most} bytes for {what}", address=where)
