"""Find the character encoding of a page, and decode it.

Declarations are often wrong, so each is only believed if the bytes can be decoded by it. Their order is that of the
Encoding and HTML standards (https://encoding.spec.whatwg.org, https://html.spec.whatwg.org): a byte order mark, the
headers of the response, the page itself.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Final

from streamloader.errors import UnreadableStream

__all__ = ["decode_page"]

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SCANNED_BYTES: Final = 2048  # of a page, for its declaration; browsers scan 1024
_META: Final = re.compile(rb"<meta\s[^>]{0,500}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
_XML: Final = re.compile(rb"\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
# Names that mean a larger encoding than Python's codec of that name: what browsers use.
_LARGER_ENCODINGS: Final = {
    "ascii": "windows-1252",
    "iso8859-1": "windows-1252",
    "iso8859-9": "windows-1254",
    "iso8859-11": "windows-874",
    "tis-620": "windows-874",
    "shift_jis": "cp932",
    "x-sjis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "utf-16": "utf-16-le",
    "windows-874": "cp874",
}
# Text encodings of Python that no page is in.
_REFUSED_ENCODINGS: Final = (
    "utf-7",
    "unicode-escape",
    "unicode_escape",
    "raw-unicode-escape",
    "raw_unicode_escape",
    "punycode",
    "idna",
)
_ONE_BYTE: Final = re.compile(r"cp(125\d|866|874)|iso8859-\d+|koi8-[ru]|mac-\w+")
_LANGUAGE: Final = re.compile(rb"<html\s[^>]{0,500}?lang\s*=\s*[\"']?([A-Za-z]{2})", re.IGNORECASE)
# What browsers assume for pages without a declaration, by language.
_ENCODINGS_OF_LANGUAGES: Final = {
    **dict.fromkeys(("cs", "hr", "hu", "pl", "ro", "sk", "sl"), ("cp1250",)),
    **dict.fromkeys(("be", "bg", "kk", "mk", "ru", "sr", "uk"), ("cp1251", "koi8-r")),
    **dict.fromkeys(("et", "lt", "lv"), ("cp1257",)),
    "ar": ("cp1256",),
    "el": ("cp1253",),
    "fa": ("cp1256",),
    "he": ("cp1255",),
    "ja": ("cp932", "euc_jp"),
    "ko": ("cp949",),
    "th": ("cp874",),
    "tr": ("cp1254",),
    "vi": ("cp1258",),
    "zh": ("gb18030", "big5hkscs"),
}
_UNDECLARED: Final = "cp1252"
_TAGS: Final = re.compile(rb"<[^>]*>")
_MIN_FOREIGN_SHARE: Final = 0.2  # of the bytes outside of tags; letters with accents are fewer
_DETECTED_BYTES: Final = 1 << 16
_MAX_INVALID_SHARE: Final = 0.01  # of the characters
_CONTROLS: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f]")


def decode_page(body: bytes, declared: str | None, name: str) -> tuple[str, str]:
    """Return the text of a page, and the name of its encoding.

    Bytes that are no characters become U+FFFD, and control characters are left out; at most 1 % of a page may be such.

    Args:
        body: Bytes of the page.
        declared: Encoding that the headers of the response declare, or None.
        name: Address of the page, for error messages.

    Raises:
        UnreadableStream: If the bytes are not text in any of the encodings that are declared or likely.
    """
    for mark, encoding in _MARKS:
        if body.startswith(mark):
            return _decode_leniently(body[len(mark) :], encoding, name)
    declarations = list(_find_declarations(body, declared))
    for encoding in declarations:
        if _ONE_BYTE.fullmatch(encoding) and _is_utf8(body):  # nearly any bytes are text in these encodings
            return _check_text(body.decode(), "utf-8", name)
        try:
            return _check_text(body.decode(encoding), encoding, name)
        except UnicodeError:
            continue
    if not declarations or "utf-8" not in declarations:
        try:
            return _check_text(body.decode(), "utf-8", name)
        except UnicodeDecodeError:
            pass
    return _decode_leniently(body, _guess(body), name)


def _find_declarations(body: bytes, declared: str | None) -> Iterator[str]:
    """Yield the encodings that are declared and known, the most important first."""
    head = body[:_SCANNED_BYTES]
    meta, xml = _META.search(head), _XML.match(head)
    in_page = [match[1].decode("ascii") for match in (meta, xml) if match]
    if declared is not None and (encoding := _find_codec(declared)) is not None:
        yield encoding
    for label in in_page:
        encoding = _find_codec(label)
        if encoding is not None:  # a declaration that can be read is not in UTF-16
            yield "utf-8" if encoding.startswith(("utf-16", "utf-32")) else encoding


def _find_codec(label: str) -> str | None:
    """Return the name of Python's codec for the name of an encoding, or None if there is none for texts."""
    lowered = label.strip().lower()
    try:
        for _ in range(2):
            lowered = _LARGER_ENCODINGS.get(lowered, lowered)
            lowered = codecs.lookup(lowered).name
        b"".decode(lowered)
    except (LookupError, ValueError, UnicodeError):
        return None
    return None if lowered in _REFUSED_ENCODINGS else lowered


def _is_utf8(body: bytes) -> bool:
    """Return whether the bytes are UTF-8 with characters beyond ASCII, which is hardly ever by chance."""
    if body.isascii():
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _guess(body: bytes) -> str:
    """Return the likely encoding of bytes that are in none of the declared encodings, and not in UTF-8."""
    language = _LANGUAGE.search(body[:_SCANNED_BYTES])
    for encoding in _ENCODINGS_OF_LANGUAGES.get(language[1].decode().lower(), ()) if language else ():
        try:
            body.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    text = _TAGS.sub(b"", body[:_DETECTED_BYTES])
    foreign = sum(byte >= 0x80 for byte in text)  # noqa: PLR2004 - beyond ASCII
    if language or foreign < _MIN_FOREIGN_SHARE * len(text):
        return _UNDECLARED
    import charset_normalizer

    best = charset_normalizer.from_bytes(text).best()
    return (None if best is None else _find_codec(best.encoding)) or _UNDECLARED


def _decode_leniently(body: bytes, encoding: str, name: str) -> tuple[str, str]:
    return _check_text(body.decode(encoding, "replace"), encoding, name)


def _check_text(text: str, encoding: str, name: str) -> tuple[str, str]:
    """Return a text without control characters, and its encoding.

    Raises:
        UnreadableStream: If it has too many of them, or too many invalid characters.
    """
    cleaned, controls = _CONTROLS.subn("", text)
    if controls + cleaned.count("\ufffd") > _MAX_INVALID_SHARE * len(text):
        raise UnreadableStream(f"{name} is not text: decoded as {encoding}, it has too many invalid characters")
    return cleaned, encoding
