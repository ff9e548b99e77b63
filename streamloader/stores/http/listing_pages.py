"""Recognize the pages with which web servers list a folder, and read the names in them.

Understood are the pages of nginx (HTML, JSON and XML), Apache, Python's ``http.server`` and lighttpd, and Caddy's JSON.
A page is read as it arrives. What is not surely such a page is refused: an ordinary page with links is no listing.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from typing_extensions import override

from streamloader.stores.container_addresses import is_container_root

__all__ = [
    "ACCEPTED_TYPES",
    "PAGE_TYPES",
    "ListedEntry",
    "ListingPage",
    "NotAListing",
    "encode_name",
    "normalize_name_pattern",
]

PAGE_TYPES: Final = ("text/html", "application/xhtml+xml", "application/json", "application/xml", "text/xml")
ACCEPTED_TYPES: Final = (*PAGE_TYPES, "")

EntryKind: TypeAlias = Literal["file", "folder", "other"]

_MAX_PENDING_CHARACTERS: Final = 1 << 20  # of one tag, or one entry
_TITLES: Final = re.compile(r"(?:index of|directory listing for)\s+/", re.IGNORECASE)
_MAX_TITLE_CHARACTERS: Final = 64 << 10
_CONTAINERS: Final = ("pre", "ul", "table")
_HEADINGS: Final = ("h1", "h2")
_SORT_LINK: Final = re.compile(r"\?C=[NMSD][;&]O=[AD]")
_MIN_SORT_LINKS: Final = 2
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_EMPTY_JSON: Final = re.compile(r"\[\r\n\]\s*")  # as nginx writes it: any service may answer with "[]"
_JSON_SEPARATOR: Final = re.compile(r"[\s,]*")
_HTML_SPACE: Final = " \t\n\f\r"
_ENCODED: Final = frozenset("%?#/\\")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_ESCAPES: Final = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_MAGIC: Final = frozenset("*[")


class NotAListing(ValueError):
    """A page is no listing of a folder. The message says why, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """An entry that lies directly in the listed folder.

    Attributes:
        name: Name, as :func:`encode_name` writes it.
        kind: ``"other"`` for a pipe, a socket, a device, or a link that leads nowhere.
    """

    name: str
    kind: EntryKind


def encode_name(raw: bytes) -> str | None:
    """Return the name of an entry as a segment of a path in the store, or None if it cannot be one.

    Letters of all scripts and spaces are kept. Percent-encoded is what a URL takes for something else (``%``, ``?``,
    ``#``, a "/" or a backslash in a name), what cannot be shown, and bytes that are not UTF-8.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if not text or "\0" in text or any(part in (".", "..") for part in re.split(r"[/\\]", text)):
        return None
    if _PLAIN_NAME.fullmatch(text):
        return text
    name = _encode_edges("".join(map(_encode_character, text)))
    return f"{name[:-1]}%21" if is_container_root(name) else name


def normalize_name_pattern(part: str) -> str:
    """Return a segment of a pattern in the spelling of :func:`encode_name`, so that it can be compared with names."""

    def replace(match: re.Match[str]) -> str:
        text = unquote_to_bytes(match[0]).decode("utf-8", "surrogateescape")
        return "".join(f"[{char}]" if char in _MAGIC else _encode_character(char) for char in text)

    return _encode_edges(_ESCAPES.sub(replace, part))


def _encode_character(character: str) -> str:
    if character.isprintable() and character not in _ENCODED:
        return character
    return quote_from_bytes(character.encode("utf-8", "surrogateescape"), safe="")


def _encode_edges(text: str) -> str:
    """Encode the spaces at both ends, which are easily lost."""
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    return "%20" * start + inner + "%20" * (len(text) - start - len(inner))


class _PageFormat(Protocol):
    """Reads one format."""

    def feed(self, text: str) -> Iterator[ListedEntry]:
        """Yield the entries of the next part of the page."""

    def finish(self) -> Iterator[ListedEntry]:
        """Yield the last entries. Raise NotAListing if this is none, or EOFError if the page is incomplete."""


class ListingPage:
    """The page of one folder, of which parts arrive.

    Args:
        url: Address of the page, percent-encoded, with a "/" at the end of its path.

    Attributes:
        refused: Number of entries that lie directly in the folder, but whose names cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._links = _Links(url)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._start = ""
        self._format: _PageFormat | None = None
        self._names: set[str] = set()

    @property
    def refused(self) -> int:
        """Number of entries whose names cannot be used."""
        return self._links.refused

    @property
    def count(self) -> int:
        """Number of entries so far."""
        return len(self._names)

    @property
    def digest(self) -> bytes:
        """Digest of all entries so far, with everything that the page says of them."""
        return self._links.digest.digest()

    def feed(self, data: bytes) -> list[ListedEntry]:
        """Return the entries of the next part of the page.

        Raises:
            NotAListing: If the page is surely no listing.
        """
        text = self._decoder.decode(data)
        if self._format is None:
            self._start += text
            beginning = self._start.lstrip("\ufeff" + _HTML_SPACE)
            if not beginning:
                _require_short(self._start)
                return []
            text, self._start = beginning, ""
            self._format = _JsonFormat(self._links) if beginning[0] in "[{" else _HtmlFormat(self._links)
        return self._select_new(self._format.feed(text))

    def finish(self) -> list[ListedEntry]:
        """Return the entries that the end of the page shows.

        Raises:
            NotAListing: If the page is no listing.
            EOFError: If the page ends before the end of the listing.
        """
        if self._format is None:
            raise NotAListing("the page is empty")
        return self._select_new(self._format.finish())

    def _select_new(self, entries: Iterator[ListedEntry]) -> list[ListedEntry]:
        new = []
        for entry in entries:
            if entry.name not in self._names:
                self._names.add(entry.name)
                new.append(entry)
        return new


class _Links:
    """Decides what the links of a page are.

    Args:
        url: Address of the page.

    Attributes:
        refused: Number of entries whose names cannot be used.
        digest: Digest of what the page says of its entries.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._origin = (parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower())
        self._folder = [_unquote(part) for part in parts.path.split("/")[:-1]]
        self.refused = 0
        self.digest = hashlib.sha256()

    def count_text(self, text: str) -> None:
        """Add what the page says of its entries to the digest."""
        self.digest.update(text.encode("utf-8", "surrogatepass"))

    def is_parent(self, href: str) -> bool:
        """Return whether a link leads to the folder above."""
        if href in ("..", "../"):
            return True
        path = self._find_path(href)
        if path is None or not path.startswith("/"):
            return False
        return [_unquote(part) for part in path.rstrip("/").split("/")] == self._folder[:-1]

    def find_entry(self, href: str) -> ListedEntry | None:
        """Return the entry that a link leads to, or None if it does not lie directly in the folder."""
        path = self._find_path(href)
        if path is None:
            return None
        segments = path.removeprefix("./").split("/")
        if path.startswith("/"):
            count = len(self._folder)
            if [_unquote(part) for part in segments[:count]] != self._folder:
                return None
            segments = segments[count:]
        is_folder = len(segments) > 1 and not segments[-1]
        if is_folder:
            segments.pop()
        if len(segments) != 1 or not segments[0]:
            return None
        return self.make_entry(_unquote(segments[0]), "folder" if is_folder else "file")

    def make_entry(self, name: bytes, kind: EntryKind) -> ListedEntry | None:
        """Return the entry with a name, or None if it cannot be used."""
        encoded = encode_name(name)
        if encoded is None:
            self.refused += name not in (b".", b"..", b"")
            return None
        return ListedEntry(encoded, kind)

    def _find_path(self, href: str) -> str | None:
        """Return the path of a link to this server, relative or absolute, or None. A link with a query has none."""
        if "?" in href or "#" in href:
            return None
        scheme = _SCHEME.match(href)
        if scheme is None and not href.startswith("//"):
            return href
        try:
            parts = urlsplit(href)
        except ValueError:
            return None
        if (parts.scheme.lower() or self._origin[0], parts.netloc.lower()) != self._origin:
            return None
        return parts.path


class _HtmlFormat(HTMLParser):
    """Pages of HTML, and nginx's XML.

    A listing is a page whose title says so, with the same text as its heading, or with the links of a listing: those
    that sort it, or the one to the folder above. Its entries are the first links of the rows of one table or list.

    Args:
        links: Judge of links.
    """

    def __init__(self, links: _Links) -> None:
        super().__init__(convert_charrefs=True)
        self._links = links
        self._title = _Text()
        self._heading = _Text()
        self._open_text: _Text | None = None
        self._container = ""  # tag of the open list or table
        self._depth = 0
        self._in_link = False
        self._row_has_link = False
        self._sort_links = 0
        self._foreign_links = 0
        self._state: Literal["searching", "listing", "complete"] = "searching"
        self._candidates: list[ListedEntry] = []  # of a list or table that may be the listing
        self._found = 0
        self._xml_tag = ""
        self._xml_name = _Text()

    @override
    def feed(self, data: str) -> Iterator[ListedEntry]:  # type: ignore[override]
        try:
            super().feed(data)
        except AssertionError:  # from the standard library, for markup that no HTML has
            raise NotAListing("its HTML is malformed") from None
        _require_short(self.rawdata)
        return self._take()

    def finish(self) -> Iterator[ListedEntry]:
        if self._state == "listing":
            raise EOFError
        if self._state == "searching":
            raise NotAListing(self._describe())
        if self._foreign_links and not self._found:
            raise NotAListing("none of its links leads to a file directly in this folder")
        return iter(())

    def _take(self) -> Iterator[ListedEntry]:
        if self._state == "searching":
            return iter(())
        entries, self._candidates = self._candidates, []
        self._found += len(entries)
        return iter(entries)

    def _describe(self) -> str:
        title = self._title.text
        return f"it is a page with the title {title!r:.100}" if title else "it is a page without a title"

    # --- the parser's methods ----------------------------------------------------------------------------------------

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "base":
            raise NotAListing("it changes the base of its links")
        if tag == "title" and not self._title.is_complete:
            self._open_text = self._title
        elif tag in _HEADINGS and not self._heading.is_complete:
            self._open_text = self._heading
        elif self._container:
            self._start_inside(tag, attrs)
        elif self._state == "searching":
            self._start_outside(tag)

    def _start_outside(self, tag: str) -> None:
        if tag in _CONTAINERS or (tag == "list" and not self._title.is_complete):
            self._container, self._depth = tag, 1
            self._candidates = []
            self._row_has_link, self._sort_links = False, 0
            is_titled = self._is_titled and self._title.text == self._heading.text
            if tag == "list" or is_titled:
                self._state = "listing"

    def _start_inside(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._container == "list":
            if tag not in ("directory", "file", "other") or self._xml_tag:
                raise NotAListing("its XML is not that of nginx")
            self._xml_tag, self._xml_name = tag, _Text()
            self._open_text = self._xml_name
        elif tag == self._container:
            self._depth += 1
        elif tag in ("tr", "li", "hr"):
            self._row_has_link = False
        elif tag == "a":
            href = next((value for name, value in attrs if name == "href"), None)
            if href is not None:
                self._in_link = True
                self._handle_link(href.strip(_HTML_SPACE))

    @override
    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _CONTAINERS:  # an empty one would never be closed
            self.handle_starttag(tag, attrs)

    @override
    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._in_link = False
        elif tag in ("title", *_HEADINGS):
            if self._open_text is not None:
                self._open_text.is_complete = True
                self._open_text = None
        elif tag and tag == self._xml_tag:
            self._open_text, self._xml_tag = None, ""
            kind: Mapping[str, EntryKind] = {"directory": "folder", "file": "file", "other": "other"}
            name = self._xml_name.raw.encode("utf-8", "surrogateescape")
            self._add(self._links.make_entry(name, kind[tag]))
        elif tag and tag == self._container:
            self._depth -= 1
            if not self._depth:
                self._container = ""
                self._state = "complete" if self._state == "listing" else "searching"

    @override
    def handle_data(self, data: str) -> None:
        if self._container:
            self._links.count_text(data)
        if self._open_text is not None:
            self._open_text.add(data)
        elif self._container == "pre" and not self._in_link and "\n" in data:
            self._row_has_link = False

    def _handle_link(self, href: str) -> None:
        if _SORT_LINK.fullmatch(href):
            self._sort_links += 1
        elif self._links.is_parent(href):
            self._row_has_link = True
            self._accept_if_titled()
            return
        if self._sort_links >= _MIN_SORT_LINKS:
            self._accept_if_titled()
        if self._row_has_link:
            return
        self._row_has_link = True
        entry = self._links.find_entry(href)
        self._foreign_links += entry is None and not href.startswith("?")
        self._add(entry)

    def _accept_if_titled(self) -> None:
        if self._is_titled:
            self._state = "listing"

    def _add(self, entry: ListedEntry | None) -> None:
        if entry is not None:
            self._candidates.append(entry)

    @property
    def _is_titled(self) -> bool:
        return self._title.is_complete and _TITLES.match(self._title.text) is not None


@dataclass(slots=True)
class _Text:
    """The text of an element."""

    raw: str = ""
    is_complete: bool = field(default=False)

    def add(self, data: str) -> None:
        """Add a part of it."""
        if len(self.raw) + len(data) > _MAX_TITLE_CHARACTERS:
            raise NotAListing("it has a title or a name of excessive length")
        self.raw += data

    @property
    def text(self) -> str:
        """The text without white space around it."""
        return self.raw.strip()


class _JsonFormat:
    """JSON of nginx and Caddy: an array of objects, one for each entry.

    Args:
        links: Judge of links.
    """

    def __init__(self, links: _Links) -> None:
        self._links = links
        self._decoder = json.JSONDecoder()
        self._pending = ""
        self._count = 0
        self._is_complete = False

    def feed(self, text: str) -> Iterator[ListedEntry]:
        """Yield the entries of the next part of the page."""
        self._pending += text
        if not self._count and not self._is_complete:
            if _EMPTY_JSON.fullmatch(self._pending):
                self._is_complete, self._pending = True, ""
                return
            if self._pending[0] != "[":
                raise NotAListing("its JSON is not that of a listing")
        position = 0
        while not self._is_complete:
            start = 1 if not self._count and position == 0 else position
            separator = _JSON_SEPARATOR.match(self._pending, start)
            start = start if separator is None else separator.end()
            if self._pending.startswith("]", start) and self._count:
                self._is_complete, position = True, start + 1
                break
            try:
                value, position = self._decoder.raw_decode(self._pending, start)
            except (json.JSONDecodeError, RecursionError):
                break
            yield from self._read_entry(value)
        self._pending = self._pending[position:]
        if self._is_complete and self._pending.strip():
            raise NotAListing("text follows the end of its JSON")
        _require_short(self._pending)

    def finish(self) -> Iterator[ListedEntry]:
        """Check that the page is complete."""
        if self._is_complete:
            return iter(())
        if self._count:
            raise EOFError
        raise NotAListing("its JSON is not that of a listing")

    def _read_entry(self, value: Any) -> Iterator[ListedEntry]:
        self._count += 1
        self._links.count_text(repr(value))
        entry: ListedEntry | None = None
        kinds: Mapping[Any, EntryKind] = {"directory": "folder", "file": "file", "other": "other"}
        match value:
            case {"name": str(name), "type": ("directory" | "file" | "other") as kind, "mtime": str()}:
                try:
                    entry = self._links.make_entry(name.encode("utf-8", "surrogateescape"), kinds[kind])
                except UnicodeEncodeError:  # an escape that stands for no character
                    self._links.refused += 1
            case {"name": str(), "url": str(url), "mod_time": str(), "is_dir": bool(is_folder)}:
                entry = self._links.find_entry(f"{url.rstrip('/')}/" if is_folder else url)
            case _:
                raise NotAListing("its JSON is not that of a listing")
        if entry is not None:
            yield entry


def _require_short(text: str) -> None:
    """Check that what is not read yet is no longer than a tag or an entry."""
    if len(text) > _MAX_PENDING_CHARACTERS:
        raise NotAListing("it is no page of a known kind")


def _unquote(text: str) -> bytes:
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
