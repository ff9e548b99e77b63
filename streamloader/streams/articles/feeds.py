"""Read the addresses in feeds and sitemaps. The functions run in a process of their own: the documents are untrusted.

Feeds are RSS (0.9x, 1.0, 2.0), Atom (RFC 4287) and JSON Feed 1.1; sitemaps are those of https://www.sitemaps.org:
lists and indexes in XML, and plain lists of addresses. All of them may be compressed by gzip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from html.entities import html5
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from streamloader.common.inflate import ExpandsTooFar, gunzip
from streamloader.errors import LimitExceeded, MissingDependency, UnreadableStream

__all__ = ["MAX_LIST_BYTES", "collect_addresses", "read_feed", "read_sitemap"]

MAX_LIST_BYTES: Final = 50 << 20  # of a sitemap, by its protocol
_MAX_PAGES: Final = 50_000  # likewise
_MAX_URL_CHARACTERS: Final = 2048  # likewise
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_TTL_S: Final = 86_400.0
_CDATA: Final = re.compile(rb"(<!\[CDATA\[.*?\]\]>)", re.DOTALL)
_AMPERSAND: Final = re.compile(
    rb"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)(?:([A-Za-z][A-Za-z0-9]{0,31});)?"
)


def read_feed(body: bytes, charset: str | None, url: str, name: str) -> dict[str, Any]:
    """Return the pages of a feed in their order, as ``{"pages": [...], "ttl": seconds}``.

    Args:
        body: Bytes of the feed.
        charset: Encoding that the headers of the response declare, or None.
        url: Address of the feed, which relative addresses refer to.
        name: Address without secrets, for error messages.

    Raises:
        UnreadableStream: If the document is not a feed.
        LimitExceeded: If it expands to more than 50 MiB.
    """
    body = _decompress(body, name)
    if body.lstrip()[:1] == b"{":
        return {"pages": collect_addresses(_read_json_feed(body, name), url), "ttl": 0.0}
    root = _parse_xml(body, charset, url, name)
    kind = _local_name(root)
    if kind == "feed":
        pages: Iterable[tuple[str, str]] = _read_atom(root)
    elif kind in ("rss", "RDF"):
        pages = _read_rss(root)
    else:
        raise UnreadableStream(f"{name} is not a feed: its root element is {kind}", address=name)
    return {"pages": collect_addresses(pages, url), "ttl": _read_ttl(root)}


def read_sitemap(body: bytes, charset: str | None, url: str, name: str) -> dict[str, Any]:
    """Return what a sitemap lists, as ``{"pages": [...], "sitemaps": [...]}``.

    Args:
        body: Bytes of the sitemap.
        charset: Encoding that the headers of the response declare, or None.
        url: Address of the sitemap.
        name: Address without secrets, for error messages.

    Raises:
        UnreadableStream: If the document is not a sitemap.
        LimitExceeded: If it expands to more than 50 MiB.
    """
    body = _decompress(body, name)
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"\0" not in body:
        lines = body.decode("utf-8-sig", "replace").split()
        pages = collect_addresses(((line, url) for line in lines if "://" in line), url)
        if lines and not pages:
            raise UnreadableStream(f"{name} is not a sitemap: it has lines, but no addresses", address=name)
        return {"pages": pages, "sitemaps": []}
    root = _parse_xml(body, charset, url, name)
    kind = _local_name(root)
    if kind not in ("urlset", "sitemapindex"):
        raise UnreadableStream(f"{name} is not a sitemap: its root element is {kind}", address=name)
    entries = (
        (child.text or "", url)
        for entry in root
        if _local_name(entry) in ("url", "sitemap")
        for child in entry
        if _local_name(child) == "loc"
    )
    found = collect_addresses(entries, url)
    is_list = kind == "urlset"
    return {"pages": found if is_list else [], "sitemaps": [] if is_list else found}


def _decompress(body: bytes, name: str) -> bytes:
    if not body.startswith(_GZIP_MAGIC):
        return body
    try:
        return gunzip(body, MAX_LIST_BYTES)
    except ExpandsTooFar as error:
        raise LimitExceeded(f"{name}: {error}, the limit for feeds and sitemaps", address=name) from error
    except ValueError as error:
        raise UnreadableStream(f"{name}: {error}", address=name) from error


def _parse_xml(body: bytes, charset: str | None, url: str, name: str) -> Any:
    """Return the root element. No entity is expanded, and nothing else is opened.

    A document that is only malformed by ampersands is repaired, because many feeds are. lxml's own recovery is not
    used: it leaves out characters of addresses.
    """
    try:
        from lxml import etree  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependency("feeds and sitemaps need lxml: pip install streamloader[articles]") from error
    document, problem = body.strip(), ""
    attempts = [(document, charset), (document, None)]
    if b"<!ENTITY" not in document:
        attempts.append((_repair_ampersands(document), None))
    for data, encoding in attempts:
        try:
            parser = etree.XMLParser(
                resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, encoding=encoding
            )
            return etree.fromstring(data, parser, base_url=url)
        except (etree.XMLSyntaxError, ValueError, LookupError) as error:
            problem = str(error)
    raise UnreadableStream(f"{name} is not well-formed XML: {problem}", address=name)


def _repair_ampersands(document: bytes) -> bytes:
    """Replace the named characters of HTML by numbers, and other lone ampersands by ``&amp;``, except in CDATA."""

    def replace(match: re.Match[bytes]) -> bytes:
        character = html5.get(f"{match[1].decode()};") if match[1] else None
        if character is None:
            return b"&amp;" + match[0][1:]
        return "".join(f"&#{ord(letter)};" for letter in character).encode()

    parts = _CDATA.split(document)
    return b"".join(part if part.startswith(b"<![CDATA[") else _AMPERSAND.sub(replace, part) for part in parts)


def _local_name(element: Any) -> str:
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""  # a comment has a function as its tag


def _read_rss(root: Any) -> Iterator[tuple[str, str]]:
    for item in root.iter("{*}item"):
        children = {_local_name(child): child for child in reversed(item) if len(child) == 0}
        link, guid = children.get("link"), children.get("guid")
        address = "" if link is None else (link.text or link.get("href") or "")
        if not address.strip() and guid is not None and guid.get("isPermaLink", "true").lower() == "true":
            address = guid.text or ""
        yield address, item.base or ""


def _read_atom(root: Any) -> Iterator[tuple[str, str]]:
    for entry in root.iter("{*}entry"):
        links = [child for child in entry if _local_name(child) == "link"]
        for link in links:
            if link.get("rel", "alternate") == "alternate":
                yield link.get("href", ""), link.base or ""
                break


def _read_json_feed(body: bytes, name: str) -> Iterator[tuple[str, str]]:
    try:
        items = json.loads(body)["items"]
        for item in items:
            yield str(item.get("url") or item.get("external_url") or ""), ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableStream(f"{name} is not a JSON feed: {type(error).__name__}", address=name) from error


def _read_ttl(root: Any) -> float:
    """Return the seconds for which an RSS feed need not be requested again, or 0."""
    for element in root.iter("{*}ttl"):
        text = (element.text or "").strip()
        if text.isascii() and text.isdecimal():
            return min(float(text[:10]) * 60, _MAX_TTL_S)
    return 0.0


def collect_addresses(entries: Iterable[tuple[str, str]], base: str) -> list[str]:
    """Return the absolute addresses of entries, each once, in their order. Others than those of pages are left out.

    Args:
        entries: Address of each entry, and the address that it is relative to.
        base: Address of the document.
    """
    found: dict[str, None] = {}
    for address, own_base in entries:
        if len(found) >= _MAX_PAGES:
            break
        try:
            joined = urljoin(urljoin(base, own_base), address.strip()).partition("#")[0]
            parts = urlsplit(joined)
            is_page = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            continue
        if address.strip() and is_page and len(joined) <= _MAX_URL_CHARACTERS and joined.isprintable():
            found[joined] = None
    return list(found)
