"""Documents of HTTP servers with their headers: pages, feeds and other texts, which are read as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp

from streamloader.common.inflate import ExpandsTooFar, gunzip
from streamloader.errors import LimitExceeded, ProtocolError
from streamloader.stores.deadlines import TransferDeadline
from streamloader.stores.http.responses import ErrorContext, body_length, require_unencoded

__all__ = ["DocumentRequest", "HttpDocument", "receive_document"]

_GZIP_ENCODINGS: Final = ("gzip", "x-gzip")


def _accept_any(response: aiohttp.ClientResponse) -> None:
    """Accept a response with any headers."""


@dataclass(frozen=True, slots=True)
class DocumentRequest:
    """Headers and limits of the request for a document.

    Attributes:
        headers: Headers of the request, such as User-Agent, Accept and If-None-Match.
        max_bytes: Maximum size of the document in bytes, also after decompression.
        max_seconds: Maximum duration of the transfer of the body.
        statuses: Statuses of responses that are returned. Others raise errors. Defaults to 200.
        truncates: Whether a larger document is cut after `max_bytes` instead of refused. Defaults to False.
        check: Function that raises an error if the headers of the response show that its body is not wanted. The body
            is not read then. Defaults to none.
    """

    headers: Mapping[str, str]
    max_bytes: int
    max_seconds: float
    statuses: tuple[int, ...] = (HTTPStatus.OK,)
    truncates: bool = False
    check: Callable[[aiohttp.ClientResponse], None] = _accept_any


@dataclass(frozen=True, slots=True)
class HttpDocument:
    """A document.

    Attributes:
        status: Status of the response.
        url: Address after all redirects. It may contain secrets.
        headers: Headers of the response. Names are case-insensitive.
        charset: Character encoding that the headers declare, or None.
        body: Bytes of the document, decompressed. Empty for a status without a body.
    """

    status: int
    url: str
    headers: Mapping[str, str]
    charset: str | None
    body: bytes


async def receive_document(
    response: aiohttp.ClientResponse,
    pieces: AsyncIterator[bytes],
    request: DocumentRequest,
    deadline: TransferDeadline,
    context: ErrorContext,
) -> HttpDocument:
    """Read the body of a response.

    Args:
        response: Response with one of the statuses of `request`.
        pieces: Bytes of its body.
        request: Limits.
        deadline: Deadline of the transfer.
        context: Address for error messages.

    Raises:
        LimitExceeded: If the document is too large, or its transfer takes too long. If its size is declared, no byte of
            a large document is read.
        ProtocolError: If its encoding is not supported, or its compressed data are damaged.
        StoreError: If the transfer fails otherwise.
    """
    body = b""
    if response.status == HTTPStatus.OK:
        request.check(response)
        compressed = response.headers.get("Content-Encoding", "").strip().lower() in _GZIP_ENCODINGS
        if not compressed:
            require_unencoded(response, context)
        if not request.truncates and (body_length(response, context) or 0) > request.max_bytes:
            raise _make_size_error(request, context)
        body = await _receive(pieces, request, deadline, context)
        if compressed:
            body = _decompress(body, request, context)
    return HttpDocument(response.status, str(response.url), response.headers, response.charset, body)


async def _receive(
    pieces: AsyncIterator[bytes], request: DocumentRequest, deadline: TransferDeadline, context: ErrorContext
) -> bytes:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + request.max_seconds
    parts: list[bytes] = []
    size = 0
    deadline.offset = 0
    while True:
        with deadline.limit_next_bytes("fetching"):
            piece = await anext(pieces, None)
        if piece is None:
            return b"".join(parts)
        size += len(piece)
        if size > request.max_bytes:
            if request.truncates:
                return b"".join([*parts, piece])[: request.max_bytes]
            raise _make_size_error(request, context)
        if loop.time() > end_s:
            raise LimitExceeded(
                f"{context.address} takes longer than {request.max_seconds:g} s, the limit for a document: after "
                f"{size} bytes, its transfer has not ended",
                address=context.address,
                offset=size,
            )
        parts.append(piece)
        deadline.count_received(len(piece))


def _decompress(body: bytes, request: DocumentRequest, context: ErrorContext) -> bytes:
    try:
        return gunzip(body, request.max_bytes)
    except ValueError as error:
        kind = LimitExceeded if isinstance(error, ExpandsTooFar) else ProtocolError
        raise kind(f"{context.address}: {error}", address=context.address, offset=0) from error


def _make_size_error(request: DocumentRequest, context: ErrorContext) -> LimitExceeded:
    return LimitExceeded(
        f"{context.address} has more than {request.max_bytes} bytes, the limit for a document",
        address=context.address,
        offset=request.max_bytes,
    )
