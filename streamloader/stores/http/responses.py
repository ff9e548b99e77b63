"""What an HTTP answer says: sizes, ranges, versions, times, refusals (RFC 9110)."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
from yarl import URL

from streamloader.errors import AccessDenied, NotFound, ObjectChanged, ProtocolFault, ServerBusy, StoreError
from streamloader.values import ObjectInfo

__all__ = [
    "NO_HEAD",
    "Where",
    "content_range",
    "fault",
    "length_of",
    "object_info",
    "range_of",
    "refusal",
    "require_plain",
    "retry_after",
    "strong",
    "unsatisfied_size",
]

NO_HEAD: Final = (400, 403, 405, 501)  # so HEAD is answered where only GET is known, or an address was signed for it
_BUSY: Final = (408, 425, 429, *(status for status in range(500, 600) if status not in (501, 505)))

_DIGITS: Final = 18  # of a size: below 2**63
_RANGE: Final = re.compile(rf"bytes (\d{{1,{_DIGITS}}})-(\d{{1,{_DIGITS}}})/(\d{{1,{_DIGITS}}}|\*)", re.ASCII)
_UNSATISFIED: Final = re.compile(rf"bytes \*/(\d{{1,{_DIGITS}}})", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)
_STRONG: Final = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_DATED: Final = re.compile(r"(.+ GMT)(?:; (\d+) bytes)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Where:
    """What an error has to name."""

    address: str
    offset: int | None = None


def content_range(text: str) -> tuple[int, int, int | None] | None:
    """Return (start, end, size of the object or None) of a Content-Range, half-open; None if it makes no sense."""
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    start, last, size = int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])
    if last < start or (size is not None and last >= size):
        return None
    return start, last + 1, size


def unsatisfied_size(text: str) -> int | None:
    """Return the size of the object that the Content-Range of a 416 tells."""
    found = _UNSATISFIED.fullmatch(text.strip())
    return None if found is None else int(found[1])


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server wants to be left alone: a number or a date in Retry-After."""
    said = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(said):
        return float(said)
    until = _seconds(said)
    if until is None:
        return None
    now = _seconds(headers.get("Date", ""))  # by the same clock, should ours differ
    return max(0.0, until - (time.time() if now is None else now))


def object_info(path: str, headers: Mapping[str, str], size: int | None, asked: str | None = None) -> ObjectInfo:
    """Return what an answer tells of its object.

    The version is the ETag, or else Last-Modified together with the size.

    Args:
        path: of the object.
        headers: of the answer.
        size: of the whole object, None where the answer does not tell.
        asked: the version that is expected. If nothing in the answer contradicts it, it is the version, and its size
            is the object's.
    """
    etag, date = headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip()
    version: str | None = None
    if etag:
        version = etag
    elif date:
        version = date if size is None else f"{date}; {size} bytes"
        was = _DATED.fullmatch(asked or "")
        if was is not None and was[1] == date and (size is None or was[2] is None):
            version, size = asked, size if was[2] is None else int(was[2])
    return ObjectInfo(path, size, version, _seconds(date))


def strong(version: str | None) -> bool:
    """Whether a version is an ETag that may stand in If-Match: the same only for the same bytes."""
    return version is not None and _STRONG.fullmatch(version) is not None


def range_of(answer: aiohttp.ClientResponse, where: Where) -> tuple[int, int, int | None]:
    """Return (start, end, size of the object or None) of what a 206 brings.

    Raises:
        ProtocolFault: it does not say, or brings several ranges.
    """
    require_plain(answer, where)
    if answer.content_type.lower() == "multipart/byteranges":
        raise fault(where, "it was asked for one range, and sends several")
    said = answer.headers.getall("Content-Range", [])
    found = content_range(said[0]) if len(said) == 1 else None
    if found is None:
        raise fault(where, f"the server sends a part, but not which one (Content-Range: {', '.join(said)[:100]})")
    return found


def require_plain(answer: aiohttp.ClientResponse, where: Where) -> None:
    """Refuse what would have to be unpacked: it was not asked for, and may unpack to anything.

    Raises:
        ProtocolFault: it is encoded.
    """
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    transfer = answer.headers.get("Transfer-Encoding", "").strip().lower()
    if encoding not in ("", "identity") or transfer not in ("", "chunked"):
        raise fault(where, f"the server encodes what it sends ({encoding or transfer}), and was asked not to")


def fault(where: Where, what: str) -> ProtocolFault:
    """Return the error for a server that makes no sense."""
    return ProtocolFault(f"{where.address}: {what}", address=where.address, offset=where.offset)


def refusal(answer: aiohttp.ClientResponse, where: Where, *, pinned: bool = False) -> StoreError:
    """Return the error for an answer that brings nothing.

    Args:
        answer: with a status that is neither a success nor a redirect.
        where: for the error.
        pinned: whether a certain version was asked for.
    """
    status = answer.status
    kind: type[StoreError] = ProtocolFault
    what, wait = "which makes no sense here", None
    if status in (401, 403, 407):
        kind, what = AccessDenied, "check the credentials, and whether they are for this object"
        if answer.url.origin() != URL(where.address.partition("?")[0]).origin():
            what += f"; {answer.url.origin()}, to which it redirects, is given none"
    elif status in (404, 410):
        kind, what = NotFound, "there is no such object"
    elif status in _BUSY:
        kind, what, wait = ServerBusy, "it is busy or failing", retry_after(answer.headers)
        if wait is not None:
            what += f", and wants to be asked again in {wait:.0f} s"
    elif status == HTTPStatus.PRECONDITION_FAILED and pinned:
        kind, what = ObjectChanged, "it is not the version that was asked for. Build the loader anew"
    message = f"{where.address}: the server answers with status {status}: {what}"
    error = kind(message, address=where.address, offset=where.offset, status=status)
    if kind is ServerBusy:
        error.details["retry_after"] = wait
    return error


def length_of(answer: aiohttp.ClientResponse) -> int | None:
    """Return how many bytes an answer says that it has."""
    return None if "Transfer-Encoding" in answer.headers else answer.content_length


def _seconds(date: str) -> float | None:
    """Return the seconds since 1970 of a date in any of HTTP's forms."""
    if not date:
        return None
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
