"""Feeds and sitemaps in all their forms, and hostile ones."""

from __future__ import annotations

import gzip
import json

import pytest

from streamloader.common.inflate import gunzip
from streamloader.errors import LimitExceeded, UnreadableStream
from streamloader.streams.articles.feeds import read_feed, read_sitemap

BASE = "https://example.org/news/feed.xml"


def feed(text, charset=None):
    body = text if isinstance(text, bytes) else text.encode()
    return read_feed(body, charset, BASE, BASE)


def sitemap(text):
    body = text if isinstance(text, bytes) else text.encode()
    return read_sitemap(body, None, BASE, BASE)


RSS = """<?xml version="1.0"?><rss version="2.0" xmlns:atom="http://www.w3.org/2005/Atom"><channel>
<atom:link href="https://example.org/self" rel="self"/><link>https://example.org/</link><ttl>60</ttl>
<item><title>One</title><link> https://example.org/1?a=b&amp;c=d </link><guid>x1</guid></item>
<item><title>Two</title><link>/2#top</link></item>
<item><title>Three</title><guid isPermaLink="true">https://example.org/3</guid></item>
<item><title>Four</title><guid isPermaLink="false">https://example.org/no</guid></item>
<item><title>Again</title><link>https://example.org/2</link></item>
<item><link>javascript:alert(1)</link></item><item><link>file:///etc/passwd</link></item>
<item><link>https://user:secret@example.org/5</link></item><item><link>https://[broken/</link></item>
</channel></rss>"""
RDF = """<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="http://purl.org/rss/1.0/">
<channel rdf:about="x"><link>https://example.org/</link></channel>
<item rdf:about="https://example.org/1"><link>https://example.org/1</link></item></rdf:RDF>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom" xml:base="https://example.org/base/"><link href="https://e.org/"/>
<entry><link rel="enclosure" href="https://example.org/a.mp3"/><link rel="alternate" href="1"/></entry>
<entry xml:base="deep/"><link href="2"/></entry><entry><title>none</title></entry></feed>"""
ITEMS = [{"id": "1", "url": "https://example.org/1"}, {"id": "2", "external_url": "/2"}, {"id": "3"}]
JSON = json.dumps({"version": "https://jsonfeed.org/version/1.1", "items": ITEMS})


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        (RSS, ["https://example.org/1?a=b&c=d", "https://example.org/2", "https://example.org/3"]),
        (RDF, ["https://example.org/1"]),
        (ATOM, ["https://example.org/base/1", "https://example.org/base/deep/2"]),
        (JSON, ["https://example.org/1", "https://example.org/2"]),
        (
            gzip.compress(RSS.encode()),
            ["https://example.org/1?a=b&c=d", "https://example.org/2", "https://example.org/3"],
        ),
    ],
    ids=["rss", "rdf", "atom", "json", "gzip"],
)
def test_feeds(text, pages):
    assert feed(text)["pages"] == pages


def test_the_time_to_live_of_a_feed():
    assert feed(RSS)["ttl"] == 3600
    assert feed(RSS.replace("<ttl>60<", "<ttl>99999999999999999999<"))["ttl"] == 86_400
    assert [feed(RSS.replace("<ttl>60<", f"<ttl>{text}<"))["ttl"] for text in ("-5", "x", "", "1e9")] == [0, 0, 0, 0]


def test_feeds_in_other_encodings():
    text = (
        "<?xml version='1.0' encoding='windows-1251'?><rss><channel><item><link>https://example.org/новости</link>"
        "</item></channel></rss>"
    )
    expected = ["https://example.org/новости"]
    assert feed(text.encode("cp1251"))["pages"] == expected
    assert feed(text.encode("cp1251"), "utf-8")["pages"] == expected  # the header is wrong
    assert feed(text.replace("windows-1251", "koi8-r").encode("cp1251"), "windows-1251")["pages"] == expected
    assert feed(text.replace("windows-1251", "utf-16").encode("utf-16"))["pages"] == expected


def test_feeds_with_lone_ampersands_are_repaired():
    damaged = RSS.replace("<title>One</title>", "<title>One &nbsp; & &nothing; more</title>").replace(
        "/2#top", "<![CDATA[/2?x=1&y=&nbsp;]]>"
    )
    first, _, third, *_ = feed(RSS)["pages"]
    assert feed(damaged)["pages"] == [first, "https://example.org/2?x=1&y=&nbsp;", third, "https://example.org/2"]


@pytest.mark.parametrize("cut", range(40, len(RSS) - 10, 97))
def test_a_truncated_feed_is_refused(cut):
    with pytest.raises(UnreadableStream, match="not well-formed"):
        feed(RSS[:cut])


NO_FEEDS = ["", "hello", "<html><body>no feed</body></html>", "{", "[1]", '{"items": 3}', '{"items": [3]}', "<urlset/>"]
HOSTILE = [RSS.replace("</rss>", ""), b"\x1f\x8bnot gzip", "{" * 100_000, "<a>" * 100_000]


@pytest.mark.parametrize("text", NO_FEEDS + HOSTILE)
def test_documents_that_are_no_feeds(text):
    with pytest.raises(UnreadableStream, match=r"example\.org"):
        feed(text)


def test_entities_are_neither_expanded_nor_fetched(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("https://example.org/secret")
    bomb = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    for entity in (
        f'<!ENTITY x SYSTEM "file://{secret}">',
        f'<!ENTITY e0 "https://example.org/b">{bomb}<!ENTITY x "&e12;">',
    ):
        text = (
            f"<?xml version='1.0'?><!DOCTYPE rss [{entity}]><rss><channel><item><link>&x;</link></item></channel></rss>"
        )
        try:
            pages = feed(text)["pages"]
        except UnreadableStream:  # libxml2 refuses the second one
            pages = []
        assert pages == []


def test_sitemaps():
    urls = "".join(
        f"<url><loc> https://example.org/{number} </loc><lastmod>2026-01-01</lastmod></url>" for number in range(3)
    )
    listed = [f"https://example.org/{number}" for number in range(3)]
    text = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><!-- all -->{urls}</urlset>'
    assert sitemap(text) == {"pages": listed, "sitemaps": []}
    assert sitemap(gzip.compress(text.encode()))["pages"] == listed
    index = "<sitemapindex><sitemap><loc>https://example.org/a.xml.gz</loc></sitemap></sitemapindex>"
    assert sitemap(index) == {"pages": [], "sitemaps": ["https://example.org/a.xml.gz"]}
    assert sitemap("\ufeff" + "\r\n".join(listed))["pages"] == listed


@pytest.mark.parametrize("text", ["<rss/>", "no addresses", b"\x1f\x8b\x08broken", "<urlset"])
def test_documents_that_are_no_sitemaps(text):
    with pytest.raises(UnreadableStream, match=r"example\.org"):
        sitemap(text)


def test_compressed_lists_are_limited():
    with pytest.raises(LimitExceeded, match="52428800 bytes"):
        sitemap(gzip.compress(bytes(60 << 20)))
    with pytest.raises(ValueError, match="members"):
        gunzip(gzip.compress(b"") * 1000, 100)
    assert gunzip(gzip.compress(b"one") + gzip.compress(b"two") + bytes(8), 6) == b"onetwo"
    with pytest.raises(ValueError, match="incomplete"):
        gunzip(gzip.compress(b"one")[:-9], 6)


def test_sizes_of_lists_are_limited():
    many = "\n".join(f"https://example.org/{number}" for number in range(60_000))
    assert len(sitemap(many)["pages"]) == 50_000
    assert sitemap("https://example.org/" + "x" * 3000 + "\nhttps://example.org/1")["pages"] == [
        "https://example.org/1"
    ]
