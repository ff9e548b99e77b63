"""Requests to S3 that obstore does not make: listings, keys that it changes, and parts of uploads.

obstore's paths have no empty names, no "." and "..", no control characters, and no "/" at their ends; it drops some of
these without an error. Its errors have no headers, so that Retry-After is lost. These requests are therefore signed and
sent here, with the credentials of :class:`streamloader.stores.objects.credentials.CredentialSource`.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from streamloader.config import Timeouts
from streamloader.errors import LimitExceeded, ProtocolError, UntrustedHost
from streamloader.stores.http.client import ErrorTranslator, HttpClient
from streamloader.stores.http.responses import (
    ErrorContext,
    body_length,
    make_protocol_error,
    parse_retry_after,
    read_beginning,
    read_content_range,
    require_unencoded,
)
from streamloader.stores.objects.config import ObjectStoreConfig, ObstoreSettings
from streamloader.stores.objects.credentials import CredentialSource
from streamloader.stores.objects.errors import S3ResponseError
from streamloader.stores.objects.listing import KeyPage, parse_page
from streamloader.stores.objects.s3_upload import UploadResponse
from streamloader.stores.objects.signing import EMPTY_SHA256, encode_query, quote_key, sign_headers
from streamloader.values import ByteRange

__all__ = ["BucketClient", "ObjectResponse", "S3Server", "can_upload", "explain_unsupported", "is_anonymous"]

_MAX_BYTES_IN_LOOP: Final = 1 << 18  # whose digest takes a fraction of a millisecond
_MAX_ERROR_BYTES: Final = 64 << 10
_MAX_PAGE_BYTES: Final = 64 << 20  # of 1000 keys
_EXPRESS_ZONE: Final = re.compile(r"--[a-z0-9-]+--x-s3$")
_TRUE: Final = ("1", "true", "t", "yes", "y", "on")
# Parts of the names of settings that change what is stored.
_UPLOAD_WORDS: Final = ("checksum", "encryption", "payload", "sse_", "storage_class", "tag")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,300})</Message>")
_REGION: Final = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
# Settings of obstore's HTTP client that do not change what is sent, and to whom.
_HARMLESS_OPTIONS: Final = frozenset({
    "allow_http", "connect_timeout", "http1_only", "http2_keep_alive_interval", "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle", "http2_only", "http2_max_frame_size", "pool_idle_timeout",
    "pool_max_idle_per_host", "timeout", "user_agent",
})  # fmt: skip


def get_setting(config: Mapping[str, Any], name: str) -> str | None:
    """Return a setting of obstore's S3Config by its name without "aws_", or its variable, or None."""
    for key, value in config.items():
        if str(key).lower().removeprefix("aws_") == name and value is not None:
            return str(value)
    return os.environ.get(f"AWS_{name.upper()}")


def _is_on(config: Mapping[str, Any], name: str) -> bool:
    return (get_setting(config, name) or "").lower() in _TRUE


def is_anonymous(config: ObjectStoreConfig, settings: ObstoreSettings) -> bool:
    """Return whether requests are sent without a signature, as obstore sends its own with the same settings."""
    return config.anonymous or _is_on({**settings.config, **config.config}, "skip_signature")


def explain_unsupported(config: ObjectStoreConfig, settings: ObstoreSettings) -> str | None:
    """Return why only obstore can send requests to a bucket, or None if this module can, too."""
    merged = {**settings.config, **config.config}
    if config.scheme != "s3":
        return f"{config.scheme}:// is not S3"
    if _EXPRESS_ZONE.search(config.bucket) or _is_on(merged, "s3_express"):
        return "it is a directory bucket (S3 Express)"
    if others := sorted(set(config.client_options) - _HARMLESS_OPTIONS):
        return f"client_options= has {others[0]}, which only obstore understands"
    if settings.provider is None and not is_anonymous(config, settings):
        return "config= or the environment leaves the credentials to obstore"
    return None


def can_upload(config: ObjectStoreConfig) -> bool:
    """Return whether the settings of obstore have nothing for uploads that only obstore knows: encryption, tags, ..."""
    names = {str(name).lower().removeprefix("aws_") for name in config.config}
    variables = {name.lower().removeprefix("aws_") for name in os.environ if name.upper().startswith("AWS_")}
    return not any(word in name for name in names | variables for word in _UPLOAD_WORDS)


@dataclass(frozen=True, slots=True)
class S3Server:
    """Server of a bucket.

    Attributes:
        root: Scheme, host and port.
        path: Path of the bucket, percent-encoded: "/bucket", or "" if the bucket is a part of the host.
        region: Region of the bucket.
        headers: Headers of every request, in lower case.
        object_headers: Headers of requests for the content of an object: the customer's key.
    """

    root: str
    path: str
    region: str
    headers: Mapping[str, str]
    object_headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_settings(cls, config: ObjectStoreConfig, settings: ObstoreSettings) -> S3Server:
        """Return the server that obstore uses with the same settings."""
        merged = {**settings.config, **config.config}
        parts = urlsplit(settings.endpoint)
        host, path = parts.netloc, parts.path.rstrip("/")
        if not _is_on(merged, "virtual_hosted_style_request"):
            path = f"{path}/{quote_key(config.bucket)}"
        elif not settings.has_own_endpoint:
            host = f"{config.bucket}.{host}"
        headers = {"host": URL(f"{parts.scheme}://{host}").host_port_subcomponent or host}
        if _is_on(merged, "request_payer"):
            headers["x-amz-request-payer"] = "requester"
        return cls(
            f"{parts.scheme}://{host}",
            path,
            get_setting(settings.config | dict(config.config), "region") or "us-east-1",
            headers,
            _make_customer_key_headers(merged),
        )


@dataclass(slots=True)
class ObjectResponse:
    """Response to a request for an object.

    Attributes:
        meta: Metadata of the object, by the names that obstore has for it.
        start: Offset of the first byte.
        end: Offset after the last byte.
        pieces: The bytes.
        release: Function that releases the connection.
    """

    meta: dict[str, Any]
    start: int
    end: int
    pieces: AsyncGenerator[bytes, None]
    release: Callable[[], None]


class BucketClient:
    """Sends requests to one bucket.

    Args:
        server: Server of the bucket.
        credentials: Source of credentials. None for requests without a signature.
        connect: Coroutine function that returns the HTTP client for a server.
        timeouts: Deadlines, for error messages.
    """

    def __init__(
        self,
        server: S3Server,
        credentials: CredentialSource | None,
        connect: Callable[[str], Awaitable[HttpClient]],
        timeouts: Timeouts,
    ) -> None:
        self.server = server
        self._credentials = credentials
        self._connect = connect
        self._timeouts = timeouts

    async def send(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str],
        context: ErrorContext,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
    ) -> tuple[HttpClient, aiohttp.ClientResponse]:
        """Send a request, and return a response with status 200, 204 or 206. Release it with the client.

        Args:
            method: Method of the request.
            key: Key of the object. None for the bucket itself.
            query: Parameters.
            context: Address and offset for error messages.
            headers: Headers that are not signed. Defaults to none.
            body: Body of the request. Defaults to none.

        Raises:
            S3ResponseError: If the server responds with another status.
            UntrustedHost: If it redirects.
            StoreError: If there is no response.
        """
        server = self.server
        path = server.path or ("" if key is not None else "/")
        path = path if key is None else f"{path}/{quote_key(key)}"
        text = encode_query(query)
        signed = dict(server.headers)
        if key is not None and method in ("GET", "HEAD", "PUT"):
            signed |= server.object_headers
        if self._credentials is not None:
            digest = await _digest(body)
            credentials = await self._credentials.fetch_current()
            now = dt.datetime.now(dt.UTC)
            signed = sign_headers(method, path, text, signed, digest, server.region, credentials, now)
        client = await self._connect(server.root)
        target = f"{path.removeprefix('/')}?{text}" if text else path.removeprefix("/")
        try:
            response = await client.send(method, target, {**signed, **(headers or {})}, context, body=body)
        except LimitExceeded:  # this client follows none
            raise UntrustedHost(
                f"{context.address}: the server redirects to another address, which is not followed: if you trust that "
                "one, pass it as endpoint_url=, or the bucket's region=",
                address=context.address,
                offset=context.offset,
            ) from None
        if response.status not in (HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.PARTIAL_CONTENT):
            try:
                raise await self._read_error(response, method, context)
            finally:
                client.release(response)
        return client, response

    async def open_object(
        self, key: str, span: ByteRange | None, etag: str | None, version_id: str | None, context: ErrorContext
    ) -> ObjectResponse:
        """Request the bytes of an object.

        Args:
            key: Key of the object.
            span: Bytes to request. None for all.
            etag: ETag that the object must have, with its quotes. None for any.
            version_id: Id of the version. None for the current one.
            context: Address and offset for error messages.

        Raises:
            ProtocolError: If the response is not that of the request.
            S3ResponseError: If the server refuses the request.
            StoreError: If there is no response.
        """
        headers = {} if etag is None else {"If-Match": etag}
        if span is not None and (span.start or span.end is not None):
            last = "" if span.end is None else span.end - 1
            headers["Range"] = f"bytes={span.start}" if span.start < 0 else f"bytes={span.start}-{last}"
        query = {} if version_id is None else {"versionId": version_id}
        client, response = await self.send("GET", key, query, context, headers=headers)
        try:
            require_unencoded(response, context)
            length = body_length(response, context)
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                start, end, size = read_content_range(response, context)
                if size is None or (length is not None and length != end - start):
                    raise make_protocol_error(context, "the server sent a part whose range contradicts its length")
            elif "Range" in headers or length is None:
                problem = "ignored the range" if "Range" in headers else "announces no length"
                raise make_protocol_error(context, f"the server {problem}: it sent the object as a whole")
            else:
                start, end, size = 0, length, length
            meta = _parse_meta(response, size, context)
            pieces = self._receive(response, ErrorContext(context.address, start))
        except BaseException:
            client.release(response)
            raise
        return ObjectResponse(meta, start, end, pieces, lambda: client.release(response))

    async def head_object(self, key: str, version_id: str | None, context: ErrorContext) -> dict[str, Any]:
        """Return the metadata of an object, by the names that obstore has for it.

        HEAD responses give no reason for a refusal, so it is a request for the first byte.

        Raises:
            S3ResponseError: If the server refuses the request.
            StoreError: If there is no response.
        """
        try:
            opened = await self.open_object(key, ByteRange(0, 1), None, version_id, context)
        except S3ResponseError as error:
            if error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            opened = await self.open_object(key, None, None, version_id, context)  # it is empty
        try:
            async for _ in opened.pieces:  # at most one byte; the connection can be used again then
                pass
        finally:
            opened.release()
        return opened.meta

    async def send_part(
        self, method: str, key: str, query: Mapping[str, str], context: ErrorContext, body: bytes | memoryview
    ) -> UploadResponse:
        """Send a request of an upload.

        Raises:
            S3ResponseError: If the server refuses it, also if it says so in a response with status 200.
            StoreError: If there is no response.
        """
        client, response = await self.send(method, key, query, context, body=body)
        try:
            text = (
                ""
                if method == "HEAD"
                else (await self._read_body(response, _MAX_ERROR_BYTES, context)).decode("utf-8", "replace")
            )
        finally:
            client.release(response)
        if "<Error>" in text:  # a server that took long begins its response before it knows
            raise parse_error(HTTPStatus.INTERNAL_SERVER_ERROR, text, response.headers)
        return UploadResponse(response.headers.get("ETag", ""), text)

    async def fetch_page(self, prefix: str, *, recursive: bool, token: str | None, context: ErrorContext) -> KeyPage:
        """Return one page of a listing.

        Args:
            prefix: Beginning of the keys.
            recursive: Whether to list objects at any depth. Otherwise keys that go on after a "/" are grouped.
            token: Token with which the page before says that the listing continues. None for the first page.
            context: Address for error messages.

        Raises:
            S3ResponseError: If the server refuses the request.
            ProtocolError: If the page continues with the same token.
            StoreError: If there is no page.
        """
        query = {"encoding-type": "url", "list-type": "2", "prefix": prefix} | ({} if recursive else {"delimiter": "/"})
        if token is not None:
            query["continuation-token"] = token
        client, response = await self.send("GET", None, query, context)
        try:
            body = await self._read_body(response, _MAX_PAGE_BYTES, context)
        finally:
            client.release(response)
        page = parse_page(body, context.address)
        if page.token is not None and page.token == token:
            raise make_protocol_error(context, "the server repeats a page of the listing without end")
        return page

    async def _receive(self, response: aiohttp.ClientResponse, context: ErrorContext) -> AsyncGenerator[bytes, None]:
        offset = context.offset or 0
        errors = ErrorTranslator(context, response.url, self._timeouts, started=True)
        while True:
            errors.offset = offset
            with errors:
                piece = await response.content.readany()
            if not piece:
                return
            yield piece
            offset += len(piece)

    async def _read_body(self, response: aiohttp.ClientResponse, max_bytes: int, context: ErrorContext) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for piece in self._receive(response, context):
            size += len(piece)
            if size > max_bytes:
                raise make_protocol_error(context, f"a response of the server has more than {max_bytes} bytes")
            parts.append(piece)
        return b"".join(parts)

    async def _read_error(
        self, response: aiohttp.ClientResponse, method: str, context: ErrorContext
    ) -> S3ResponseError:
        text = ""
        if method != "HEAD":
            with ErrorTranslator(context, response.url, self._timeouts, started=True):
                text = await read_beginning(response, _MAX_ERROR_BYTES)
        return parse_error(response.status, text, response.headers)


async def _digest(body: bytes | memoryview) -> str:
    if len(body) > _MAX_BYTES_IN_LOOP:
        return (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()
    return hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256


def parse_error(status: int, text: str, headers: Mapping[str, str]) -> S3ResponseError:
    """Return the error that a response of S3 describes."""
    code, message, region = _CODE.search(text), _MESSAGE.search(text), _REGION.search(text)
    stated = headers.get("x-amz-bucket-region", "").strip()
    return S3ResponseError(
        status,
        code[1] if code else "",
        message[1] if message else "",
        region=stated or (region[1] if region else None),
        retry_after=parse_retry_after(headers),
        is_delete_marker=headers.get("x-amz-delete-marker", "").lower() == "true",
    )


def _parse_meta(response: aiohttp.ClientResponse, size: int, context: ErrorContext) -> dict[str, Any]:
    try:
        modified = parsedate_to_datetime(response.headers.get("Last-Modified", ""))
    except (ValueError, TypeError, OverflowError):
        raise ProtocolError(
            f"{context.address}: the server states no date of the object, or an impossible one",
            address=context.address,
            offset=context.offset,
        ) from None
    modified = modified if modified.tzinfo is not None else modified.replace(tzinfo=dt.UTC)
    etag = response.headers.get("ETag")
    return {"size": size, "e_tag": etag, "last_modified": modified}


def _make_customer_key_headers(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers with the customer's key, or none if the settings have no encryption with it."""
    key_base64 = get_setting(config, "sse_customer_key_base64")
    if not key_base64 or get_setting(config, "server_side_encryption") != "sse-c":
        return {}
    digest = hashlib.md5(base64.b64decode(key_base64), usedforsecurity=False).digest()
    start = "x-amz-server-side-encryption-customer-"
    values = ("AES256", key_base64, base64.b64encode(digest).decode())
    return dict(zip((f"{start}algorithm", f"{start}key", f"{start}key-md5"), values, strict=True))
