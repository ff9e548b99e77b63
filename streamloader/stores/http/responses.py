"""Interpret HTTP responses: sizes, ranges, versions, dates and error statuses (RFC 9110)."""

from __future__ import annotations

import email.utils
import functools
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from http import HTTPStatus
from typing import Final

import aiohttp
from yarl import URL

from streamloader.common.printable import make_printable
from streamloader.errors import AccessDenied, NotFound, ObjectChanged, ProtocolError, ServerBusy, StoreError
from streamloader.values import ObjectInfo

__all__ = [
    "BUSY_STATUSES",
    "PROXY_ADVICE",
    "ErrorContext",
    "body_length",
    "is_strong_etag",
    "make_protocol_error",
    "make_status_error",
    "parse_content_range",
    "parse_object_info",
    "parse_retry_after",
    "parse_unsatisfied_size",
    "read_beginning",
    "read_content_range",
    "require_unencoded",
]

BUSY_STATUSES: Final = (408, 425, 429, *(status for status in range(500, 600) if status not in (501, 505)))

PROXY_ADVICE: Final = "Check HTTP_PROXY and HTTPS_PROXY (with user and password), or exempt the host with NO_PROXY"
_MAX_DIGITS: Final = 18  # of a size, so that it is below 2**63
_CONTENT_RANGE: Final = re.compile(
    rf"(?i:bytes) (\d{{1,{_MAX_DIGITS}}})-(\d{{1,{_MAX_DIGITS}}})/(\d{{1,{_MAX_DIGITS}}}|\*)", re.ASCII
)
_LENGTH: Final = re.compile(rf"\d{{1,{_MAX_DIGITS}}}", re.ASCII)
_MAX_DATE_CHARACTERS: Final = 100
_MAX_SHOWN_CHARACTERS: Final = 100  # of a header
_UNSATISFIED_RANGE: Final = re.compile(rf"(?i:bytes) \*/(\d{{1,{_MAX_DIGITS}}})", re.ASCII)
_SECONDS: Final = re.compile(r"\d+", re.ASCII)
_MAX_RETRY_AFTER_S: Final = 1e9  # a longer delay means the same: not in this program's life
_MAX_VERSION_CHARACTERS: Final = 1024  # of an ETag that is kept as it is
_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_DATE_VERSION: Final = re.compile(r"(.+ GMT)(?:; (\d+) bytes)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """Address and offset for error messages.

    Attributes:
        address: Address of the object, without secrets.
        offset: Offset of the next byte. Defaults to None if no bytes are being read.
    """

    address: str
    offset: int | None = None


def parse_content_range(text: str) -> tuple[int, int, int | None] | None:
    """Parse a Content-Range header.

    Returns:
        A tuple (start, end, size of the object or None), half-open; or None if the header is malformed.
    """
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        return None
    start, last, size = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
    if last < start or (size is not None and last >= size):
        return None
    return start, last + 1, size


def parse_unsatisfied_size(text: str) -> int | None:
    """Return the size of the object from the Content-Range header of a 416 response, or None."""
    match = _UNSATISFIED_RANGE.fullmatch(text.strip())
    return None if match is None else int(match[1])


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the delay of a Retry-After header (a number or a date) in seconds, or None if it is missing or malformed.

    Delays of more than 1e9 s, and dates that far away, become 1e9 s.
    """
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), _MAX_RETRY_AFTER_S)
    until = _parse_date(text)
    if until is None:
        return None
    now = _parse_date(headers.get("Date", ""))  # the server's clock, because the local clock may differ from it
    return min(max(0.0, until - (time.time() if now is None else now)), _MAX_RETRY_AFTER_S)


def parse_object_info(
    path: str,
    headers: Mapping[str, str],
    size: int | None,
    expected_version: str | None = None,
    *,
    ignores_etag: bool = False,
) -> ObjectInfo:
    """Return the metadata of an object from the headers of a response.

    The version is the ETag, or else Last-Modified together with the size. A very long version is replaced by its
    digest, because versions are kept for each object.

    Args:
        path: Path of the object.
        headers: Headers of the response.
        size: Size of the whole object in bytes. None if the response does not report it.
        expected_version: Version that the caller expects. If the headers do not contradict it, it becomes the version,
            and its size becomes the size of the object. Defaults to None.
        ignores_etag: Whether the version is the date and the size in any case. Defaults to False.
    """
    etag, date = _shorten(headers.get("ETag", "").strip()), _shorten(headers.get("Last-Modified", "").strip())
    version: str | None = None
    if etag and not ignores_etag:
        version = etag
    elif date:
        version = date if size is None else f"{date}; {size} bytes"
        expected = _DATE_VERSION.fullmatch(expected_version or "")
        if expected is not None and expected[1] == date and (size is None or expected[2] is None):
            version, size = expected_version, size if expected[2] is None else int(expected[2])
    return ObjectInfo(path, size, version, _parse_date(date))


def _shorten(text: str) -> str:
    if len(text) <= _MAX_VERSION_CHARACTERS:
        return text
    return "sha256-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_strong_etag(version: str | None) -> bool:
    """Return whether a version is a strong ETag, which may be sent in If-Match: it is equal only for equal bytes."""
    return version is not None and _STRONG_ETAG.fullmatch(version) is not None


def read_content_range(response: aiohttp.ClientResponse, context: ErrorContext) -> tuple[int, int, int | None]:
    """Return the range that a 206 response contains, as (start, end, size of the object or None).

    Raises:
        ProtocolError: If the range is missing or malformed, or if the response contains several ranges.
    """
    require_unencoded(response, context)
    if response.content_type.lower() == "multipart/byteranges":
        raise make_protocol_error(context, "the server sent several ranges, but one was requested")
    values = response.headers.getall("Content-Range", [])
    content_range = parse_content_range(values[0]) if len(values) == 1 else None
    if content_range is None:
        raise make_protocol_error(
            context,
            "the server sent a part of the object with an invalid Content-Range: "
            + make_printable(", ".join(values), _MAX_SHOWN_CHARACTERS),
        )
    return content_range


async def read_beginning(response: aiohttp.ClientResponse, max_bytes: int) -> str:
    """Return the text of a body, such as that of an error, or the first `max_bytes` of it, in however many pieces."""
    body = bytearray()
    while len(body) < max_bytes and (piece := await response.content.read(max_bytes - len(body))):
        body += piece
    return body.decode("utf-8", "replace")


def require_unencoded(response: aiohttp.ClientResponse, context: ErrorContext) -> None:
    """Refuse an encoded response: no encoding was requested, and decoding could expand it to any size.

    Raises:
        ProtocolError: If the response is encoded.
    """
    if "Content-Encoding" not in response.headers and "Transfer-Encoding" not in response.headers:
        return
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    transfer = response.headers.get("Transfer-Encoding", "").strip().lower()
    if encoding not in ("", "identity") or transfer not in ("", "chunked"):
        raise make_protocol_error(
            context,
            f"the server encoded the response ({make_printable(encoding or transfer, _MAX_SHOWN_CHARACTERS)}), "
            "although none was requested",
        )


def make_protocol_error(context: ErrorContext, detail: str) -> ProtocolError:
    """Build the error for a response that violates the protocol. `detail` is appended to the message."""
    return ProtocolError(f"{context.address}: {detail}", address=context.address, offset=context.offset)


def make_status_error(response: aiohttp.ClientResponse, context: ErrorContext, *, pinned: bool = False) -> StoreError:
    """Build the error for a response with an error status.

    Args:
        response: Response whose status is neither a success nor a redirect.
        context: Address and offset for the message.
        pinned: Whether the request named a version. Defaults to False.
    """
    status = response.status
    kind: type[StoreError] = ProtocolError
    detail, delay = "which is unexpected for this request", None
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        kind, detail = AccessDenied, f"it is that of a proxy, which takes a login. {PROXY_ADVICE}"
    elif status in (401, 403):
        kind, detail = AccessDenied, "check the credentials, and whether they are for this object"
        if response.url.origin() != URL(context.address.partition("?")[0]).origin():
            detail += f"; {response.url.origin()}, the target of a redirect, does not receive them"
    elif status in (404, 410):
        kind, detail = NotFound, "the object does not exist"
    elif status in BUSY_STATUSES:
        kind, detail, delay = ServerBusy, "it is busy or failing", parse_retry_after(response.headers)
        if delay is not None:
            detail += f", and requests a retry after {delay:.0f} s"
    elif status == HTTPStatus.PRECONDITION_FAILED and pinned:
        kind, detail = ObjectChanged, "the object has another version than the requested one. Create the loader again"
    message = f"{context.address}: the server responded with status {status}: {detail}"
    error = kind(message, address=context.address, offset=context.offset, status=status)
    if kind is ServerBusy:
        error.details["retry_after"] = delay
    return error


def body_length(response: aiohttp.ClientResponse, context: ErrorContext) -> int | None:
    """Return the announced number of bytes of a response, or None.

    Raises:
        ProtocolError: If the announced number is malformed, or has more than 64 bits.
    """
    text = response.headers.get("Content-Length")
    if text is None or "Transfer-Encoding" in response.headers:
        return None
    if _LENGTH.fullmatch(text.strip()) is None:
        raise make_protocol_error(context, f"the server announced {make_printable(text, _MAX_SHOWN_CHARACTERS)} bytes")
    return int(text)


@functools.lru_cache(maxsize=256)
def _parse_date(date: str) -> float | None:
    """Return the seconds since 1970 of a date in any of HTTP's formats, or None."""
    if not date or len(date) > _MAX_DATE_CHARACTERS:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(date)
        # A date without a time zone is in UTC (RFC 9110, section 5.6.7), and not in the zone of this machine.
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, LookupError):  # the standard library's parser raises all of these
        return None
