"""Pages of listings of S3 buckets, as the API ListObjectsV2 has them: every key exactly as it is.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from streamloader.errors import ProtocolError, TransferInterrupted

__all__ = ["KeyPage", "parse_page", "unescape_xml"]

_ENTITIES: Final = {"amp": "&", "apos": "'", "gt": ">", "lt": "<", "quot": '"'}
_FIELD: Final = re.compile(r"<(Key|Size|ETag|LastModified)>([^<]*)</")
_SIZE: Final = re.compile(r"\s*\d{1,18}\s*", re.ASCII)  # below 2**63
_REFERENCE: Final = re.compile(r"&(amp|apos|gt|lt|quot|#x[0-9A-Fa-f]{1,6}|#[0-9]{1,7});")


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One page of a listing.

    Attributes:
        objects: Metadata of each object, by the names that obstore has for it. "path" is the key.
        prefixes: Common prefixes of further keys. They end with the delimiter.
        token: Token with which the listing continues. None at its end.
    """

    objects: list[dict[str, Any]]
    prefixes: list[str]
    token: str | None


def parse_page(body: bytes, address: str) -> KeyPage:
    """Parse a page. It takes time in proportion to its size, whatever the server sends.

    Args:
        body: XML document.
        address: Address of the listing, for error messages.

    Raises:
        TransferInterrupted: If the end of the page is missing.
        ProtocolError: If it is no listing, or is malformed.
    """
    page = body.decode("utf-8", "surrogateescape")
    if "<ListBucketResult" not in page:
        raise ProtocolError(f"{address}: the server sent no listing", address=address)
    if not page.rstrip().endswith("</ListBucketResult>"):
        raise TransferInterrupted(f"{address}: the server sent an incomplete page of a listing", address=address)
    _, *entries = page.split("<Contents>")
    _, *groups = page.split("<CommonPrefixes>")
    is_encoded = _find_text(page, "EncodingType") == "url"
    objects = [_parse_entry(entry.partition("</Contents>")[0], address, is_encoded=is_encoded) for entry in entries]
    prefixes = [_decode(_find_text(group, "Prefix") or "", is_encoded=is_encoded) for group in groups]
    token = None
    if _find_text(page, "IsTruncated") == "true":
        token = _find_text(page, "NextContinuationToken")
        if not token:
            raise ProtocolError(
                f"{address}: the server sent a part of a listing, and does not say how it goes on: it may not support "
                "ListObjectsV2",
                address=address,
            )
    return KeyPage(objects, prefixes, None if token is None else unescape_xml(token))


def unescape_xml(text: str) -> str:
    """Replace the references of XML. Those of HTML differ: they drop control characters."""
    return _REFERENCE.sub(_resolve_reference, text) if "&" in text else text


def _resolve_reference(match: re.Match[str]) -> str:
    name = match[1]
    if not name.startswith("#"):
        return _ENTITIES[name]
    digits, base = (name[2:], 16) if name[1] == "x" else (name[1:], 10)
    number = int(digits, base)
    return chr(number) if number <= sys.maxunicode else match[0]


def _find_text(xml: str, name: str) -> str | None:
    """Return the text of the first element of this name, or None."""
    _, opened, rest = xml.partition(f"<{name}>")
    text, closed, _ = rest.partition(f"</{name}>")
    return text.strip(" \t\r\n") if opened and closed else None


def _decode(text: str, *, is_encoded: bool) -> str:
    text = unescape_xml(text)
    if not is_encoded or ("%" not in text and "+" not in text):
        return text
    return unquote(text.replace("+", " "), errors="surrogateescape")


def _parse_entry(text: str, address: str, *, is_encoded: bool) -> dict[str, Any]:
    fields = dict(_FIELD.findall(text))  # no text of an element contains "<"
    try:
        etag = fields.get("ETag")
        return {
            "path": _decode(fields["Key"], is_encoded=is_encoded),
            "size": _parse_size(fields["Size"]),
            "e_tag": None if etag is None else unescape_xml(etag),
            "last_modified": _parse_date(fields["LastModified"]),
        }
    except (KeyError, ValueError) as error:
        raise ProtocolError(
            f"{address}: the server sent a malformed entry of a listing of a bucket", address=address
        ) from error


def _parse_size(text: str) -> int:
    if _SIZE.fullmatch(text) is None:
        raise ValueError("no size of an object")
    return int(text)


def _parse_date(text: str) -> dt.datetime:
    """Return a date, which is in UTC if it names no zone."""
    date = dt.datetime.fromisoformat(text.strip())
    return date if date.tzinfo is not None else date.replace(tzinfo=dt.UTC)
