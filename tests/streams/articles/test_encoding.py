"""Pages in many encodings, declared in every place, wrongly, or not at all."""

from __future__ import annotations

import codecs

import pytest
from article_site import SENTENCES, make_page, make_paragraphs, text_of

from streamloader.errors import UnreadableStream
from streamloader.streams.articles.encoding import decode_page
from streamloader.streams.articles.extraction import ExtractionSettings, extract_article

PLAIN = ExtractionSettings("balance", comments=False, tables=True, obeys_robots=True)
# Encoding of the bytes, language, and a name by which pages declare it.
ENCODINGS = [
    ("utf-8", "ja", "UTF-8"),
    ("utf-8", "de", "utf8"),
    ("cp1252", "fr", "windows-1252"),
    ("latin-1", "de", "ISO-8859-1"),
    ("cp932", "ja", "Shift_JIS"),
    ("euc_jp", "ja", "EUC-JP"),
    ("iso2022_jp", "ja", "ISO-2022-JP"),
    ("gb18030", "zh", "gb18030"),
    ("gbk", "zh", "GB2312"),
    ("big5", "ja", None),
    ("koi8-r", "ru", "KOI8-R"),
    ("cp1251", "ru", "windows-1251"),
    ("cp949", "ko", "EUC-KR"),
    ("utf-16-le", "ru", "UTF-16"),
]
DECLARED = [(encoding, language, label) for encoding, language, label in ENCODINGS if label]


def extract(body, content_type="text/html", charset=None):
    return extract_article(body, content_type, charset, "https://example.org/a", "https://example.org/a", tuple(PLAIN))


@pytest.mark.parametrize(("encoding", "language", "label"), DECLARED)
@pytest.mark.parametrize("where", ["header", "meta", "http-equiv", "xml"])
def test_declared(encoding, language, label, where):
    if encoding.startswith("utf-16") and where != "header":
        pytest.skip("a declaration that can be read is not in UTF-16")
    paragraphs = make_paragraphs(1, language)
    head = {
        "meta": f'<meta charset="{label}">',
        "http-equiv": f'<meta http-equiv="Content-Type" content="text/html; charset={label}">',
    }.get(where, "")
    declaration = f'<?xml version="1.0" encoding="{label}"?>\n' if where == "xml" else ""
    page = make_page(paragraphs, head=head, declaration=declaration, language=language)
    found = extract(page.encode(encoding), charset=label if where == "header" else None)
    assert found["text"] == text_of(paragraphs)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_is_believed_before_all_declarations(encoding):
    mark = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
            "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}[encoding]  # fmt: skip
    paragraphs = make_paragraphs(2, "ru")
    page = make_page(paragraphs, head='<meta charset="koi8-r">')
    assert decode_page(mark + page.encode(encoding), "windows-1251", "a") == (page, encoding)


@pytest.mark.parametrize(
    ("encoding", "language", "header", "meta"),
    [
        ("utf-8", "de", "ISO-8859-1", None),  # the most common wrong declaration
        ("utf-8", "ru", "windows-1251", "koi8-r"),
        ("cp1252", "fr", "utf-8", None),
        ("cp1252", "fr", None, "utf-8"),
        ("cp932", "ja", "utf-8", "Shift_JIS"),
        ("gb18030", "zh", "no-such-encoding", "gbk"),
        ("koi8-r", "ru", "utf-7", "koi8-r"),
        ("utf-8", "ja", None, None),
        ("cp1251", "ru", None, None),
        ("cp932", "ja", None, None),
        ("gb18030", "zh", None, None),
    ],
)
def test_wrong_and_missing_declarations(encoding, language, header, meta):
    paragraphs = make_paragraphs(3, language, count=8)
    page = make_page(paragraphs, head=f'<meta charset="{meta}">' if meta else "", language=language)
    assert extract(page.encode(encoding), charset=header)["text"] == text_of(paragraphs)


def test_single_invalid_bytes_do_not_spoil_a_page():
    page = make_page(make_paragraphs(4, "de")).encode().replace("Flüsse".encode(), b"Fl\xffsse")
    page = page[:600] + b"\xff\x01" + page[600:]
    text, encoding = decode_page(page, "utf-8", "a")
    assert encoding == "utf-8" or "\ufffd" not in text
    assert "\x01" not in text


@pytest.mark.parametrize(
    "body", [bytes(range(256)) * 40, b"\x89PNG\r\n\x1a\n" + bytes(4000), b"%PDF-1.7\n" + bytes(900)]
)
def test_bytes_that_are_no_text_are_refused(body):
    with pytest.raises(UnreadableStream, match=r"https://example\.org/a"):
        extract(body)


def test_plain_text_is_the_text():
    assert extract("Ein Wort: größer.\r\nUnd noch eins.  \n\n".encode(), "text/plain", "utf-8") == {
        "text": "Ein Wort: größer.\nUnd noch eins.", "encoding": "utf-8"
    }  # fmt: skip


def test_what_belongs_to_the_text_is_an_option():
    page = make_page([*make_paragraphs(5), "</p><table><tr><td>gauge</td><td>7.3 m</td></tr></table><p>"]).encode()

    def text(**options):
        chosen = PLAIN._replace(**options)
        return extract_article(page, "text/html", None, "https://e.org/", "https://e.org/", tuple(chosen))["text"]

    assert "gauge" in text()
    assert "gauge" not in text(tables=False)
    assert "first comment here" not in text()
    assert "first comment here" in text(comments=True)
    for favor in ("balance", "precision", "recall"):
        assert SENTENCES["en"] in text(favor=favor)
        assert "umbrellas" not in text(favor=favor)


@pytest.mark.parametrize(
    "head",
    ['<meta name="robots" content="noindex, nofollow">', '<META NAME="ROBOTS" CONTENT="none">',
     '<meta name="robots" content="index,noai">', '<meta name="tdm-reservation" content="1">'],
)  # fmt: skip
def test_a_page_may_refuse_its_use(head):
    page = make_page(make_paragraphs(6), head=head).encode()
    with pytest.raises(UnreadableStream, match="refuses to be used"):
        extract(page)
    free = PLAIN._replace(obeys_robots=False)
    assert extract_article(page, "text/html", None, "https://e.org/", "https://e.org/", tuple(free))["text"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body></body></html>",
        b"<html><body>" + b"<div>" * 30_000 + b"x" + b"</div>" * 30_000,
        b"<html><body><script>" + b"x" * 10_000 + b"</script></body></html>",
        b"<" * 100_000,
    ],
)
def test_pages_without_a_main_text(body):
    with pytest.raises(UnreadableStream, match=r"https://example\.org/a"):
        extract(body)
