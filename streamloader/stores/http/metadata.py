"""Request the metadata of objects on HTTP servers: with HEAD, or with GET from servers that refuse it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Final, TypeAlias

import aiohttp

from streamloader.config import Timeouts
from streamloader.errors import (
    AccessDenied,
    LimitExceeded,
    NotFound,
    NotSupported,
    ProtocolError,
    ServerBusy,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
)
from streamloader.stores.http.client import HttpClient
from streamloader.stores.http.responses import (
    ErrorContext,
    body_length,
    make_status_error,
    parse_object_info,
    parse_unsatisfied_size,
    read_content_range,
    require_unencoded,
)
from streamloader.values import ObjectInfo

__all__ = ["MetadataRequests", "RefuseFolder"]

RefuseFolder: TypeAlias = Callable[[str, aiohttp.ClientResponse, ErrorContext], Awaitable[None]]
"""Coroutine function that raises NotFound if a response is the listing of a folder. It takes the requested path."""

# What a server may do with HEAD although GET works. Addresses that must not be contacted are no refusal.
_HEAD_REFUSALS: Final = (
    AccessDenied,
    LimitExceeded,
    NotFound,
    NotSupported,
    ProtocolError,
    ServerBusy,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
)
_HEAD_TIME_FRACTION: Final = 1 / 3  # of the time of a response; the rest is for GET
_log: Final = logging.getLogger("streamloader")


class MetadataRequests:
    """Requests the metadata of objects of one server, and learns whether it answers HEAD.

    Args:
        url: Address of the server, for messages.
        timeouts: Deadlines of requests.
        ignores_etag: Whether versions are dates and sizes, and never ETags.

    Attributes:
        head_refused: Whether the server has refused HEAD for an object that it serves with GET.
    """

    def __init__(self, url: str, timeouts: Timeouts, *, ignores_etag: bool) -> None:
        self.head_refused = False
        self._url = url
        self._timeouts = timeouts
        self._ignores_etag = ignores_etag

    async def request(
        self,
        client: HttpClient,
        path: str,
        context: ErrorContext,
        expected_version: str | None,
        refuse_folder: RefuseFolder,
    ) -> ObjectInfo:
        """Return the metadata of an object.

        Args:
            client: Client that sends the requests.
            path: Path of the object.
            context: Address for error messages.
            expected_version: Version that the caller expects, see
                :func:`streamloader.stores.http.responses.parse_object_info`.
            refuse_folder: Function that recognizes folders.

        Raises:
            StoreError: If the server does not answer one of the requests as it should.
        """
        info, head_error = None, None
        if not self.head_refused:
            try:
                info = await self._send_head(client, path, context, expected_version, refuse_folder)
            except _HEAD_REFUSALS as error:
                if error.details.get("retry_after") or error.details.get("is_folder"):
                    raise
                head_error = error
            # Some servers omit the size here, or report 0 for generated content.
            if info is not None and info.size:
                return info
        info = await self._request_first_byte(client, path, context, expected_version, info, refuse_folder)
        if head_error is not None:
            self.head_refused = True
            _log.info("%s serves GET, but not HEAD, which is not used any more: %s", self._url, head_error)
        return info

    async def _send_head(
        self,
        client: HttpClient,
        path: str,
        context: ErrorContext,
        expected_version: str | None,
        refuse_folder: RefuseFolder,
    ) -> ObjectInfo:
        """Return the metadata that a HEAD request yields. Its size may be missing.

        Raises:
            StoreError: If the server does not answer it with 200, or not in a part of the time of a response.
        """
        seconds = (self._timeouts.connect + self._timeouts.response) * _HEAD_TIME_FRACTION
        try:
            async with asyncio.timeout(seconds), client.request("HEAD", path, {}, context) as response:
                if response.status != HTTPStatus.OK:
                    raise make_status_error(response, context)
                await refuse_folder(path, response, context)
                info = self._parse(path, response, body_length(response, context), expected_version)
                return replace(info, size=None) if "Content-Encoding" in response.headers else info
        except TimeoutError as error:
            raise StoreTimeout(
                f"waited {seconds:.1f} s for {context.address} (head): no response",
                address=context.address,
                waited=seconds,
                stage="head",
            ) from error

    async def _request_first_byte(
        self,
        client: HttpClient,
        path: str,
        context: ErrorContext,
        expected_version: str | None,
        info: ObjectInfo | None,
        refuse_folder: RefuseFolder,
    ) -> ObjectInfo:
        """Return the metadata that a GET request yields, or what it adds to `info`, from a HEAD request."""
        async with client.request("GET", path, {"Range": "bytes=0-0"}, context) as response:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                await client.drain(response)
                size = parse_unsatisfied_size(response.headers.get("Content-Range", ""))
                if info is not None and info.version is not None:
                    return replace(info, size=size)
            elif response.status == HTTPStatus.PARTIAL_CONTENT:
                size = read_content_range(response, context)[2]
            elif response.status == HTTPStatus.OK:
                await refuse_folder(path, response, context)
                require_unencoded(response, context)
                size = body_length(response, context)
            else:
                await client.drain(response)
                raise make_status_error(response, context)
            return self._parse(path, response, size, expected_version)

    def _parse(
        self, path: str, response: aiohttp.ClientResponse, size: int | None, expected_version: str | None
    ) -> ObjectInfo:
        return parse_object_info(path, response.headers, size, expected_version, ignores_etag=self._ignores_etag)
