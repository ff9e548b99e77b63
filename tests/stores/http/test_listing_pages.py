"""Which pages are listings, and which names are in them."""

from __future__ import annotations

import json
import random

import pytest

from streamloader.stores.http.listing_pages import ListingPage, NotAListing, encode_name, normalize_name_pattern
from streamloader.stores.patterns import matches_name

URL = "http://host:8000/data/my%20set/"
PARENT = '<a href="../">../</a>'


def read(page, url=URL, step=None):
    """Return the names on a page, those of folders with a "/", read in pieces of `step` bytes."""
    data = page if isinstance(page, bytes) else page.encode("utf-8", "surrogateescape")
    reader = ListingPage(url)
    entries = []
    for start in range(0, len(data), step or len(data) or 1):
        entries += reader.feed(data[start : start + (step or len(data))])
    entries += reader.finish()
    return [entry.name + "/" * (entry.kind == "folder") for entry in entries if entry.kind != "other"]


def nginx(rows, title="Index of /data/my set/"):
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<h1>{title}</h1><hr><pre>{rows}</pre><hr></body>"
    )


def link(href, text="x"):
    return f'<a href="{href}">{text}</a>   30-Nov-2026 00:22   3\r\n'


APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /data/my set</title></head><body>
<h1>Index of /data/my set</h1>
<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a>  <a href="?C=M;O=A">Last modified</a>  \
<a href="?C=S;O=A">Size</a>  <a href="?C=D;O=A">Description</a><hr>\
<img src="/icons/back.gif" alt="[PARENTDIR]"> <a href="/data/">Parent Directory</a>                -
<img src="/icons/unknown.gif" alt="[   ]"> <a href="a&amp;b.mp4">a&amp;b.mp4</a>  2026-11-30 00:22    3
<img src="/icons/unknown.gif" alt="[   ]"> <a href="./c:d.mp4">c:d.mp4</a>  2026-11-30 00:22    3  see <a href="z">z</a>
<img src="/icons/folder.gif" alt="[DIR]"> <a href="sub/">sub/</a>  2026-11-30 00:22    -
<hr></pre>
<h2>Readme</h2><ul><li><a href="phantom.mp4">not listed</a></ul>
<address>Apache Server at <a href="mailto:me@host">host</a> Port 80</address>
</body></html>
"""
CADDY = json.dumps(
    [
        {"name": "a.mp4", "size": 3, "url": "./a.mp4", "mod_time": "2026-11-30T00:22:31Z", "mode": 420,
         "is_dir": False, "is_symlink": False},
        {"name": "caf\ufffd", "size": 3, "url": "./caf%E9", "mod_time": "2026-11-30T00:22:31Z", "mode": 420,
         "is_dir": False, "is_symlink": False},
        {"name": "sub/", "size": 3, "url": "./sub/", "mod_time": "2026-11-30T00:22:31Z", "mode": 493,
         "is_dir": True, "is_symlink": False},
    ]
)  # fmt: skip
NGINX_JSON = """[\r
{ "name":"sub", "type":"directory", "mtime":"Mon, 30 Nov 2026 00:22:31 GMT" },\r
{ "name":"a\\"#?%.mp4", "type":"file", "mtime":"Mon, 30 Nov 2026 00:22:31 GMT", "size":3 },\r
{ "name":"pipe", "type":"other", "mtime":"Mon, 30 Nov 2026 00:22:31 GMT" },\r
{ "name":"caf\udce9", "type":"file", "mtime":"Mon, 30 Nov 2026 00:22:31 GMT", "size":3 }\r
]"""
NGINX_XML = """<?xml version="1.0"?>\r
<list>\r
<directory mtime="2026-11-30T00:22:31Z">sub</directory>\r
<file mtime="2026-11-30T00:22:31Z" size="3">a&amp;b &lt;c&gt;.mp4</file>\r
<other mtime="2026-11-30T00:22:31Z">pipe</other>\r
</list>\r
"""
PAGES = {
    "nginx": (nginx(PARENT + "\r\n" + link("a%23b.mp4") + link("sub/")), ["a%23b.mp4", "sub/"]),
    "nginx of an empty folder": (nginx(PARENT), []),
    "nginx behind another path": (nginx(PARENT + "\r\n" + link("a"), "Index of /backend/"), ["a"]),
    "Apache": (APACHE, ["a&b.mp4", "c:d.mp4", "sub/"]),
    "Caddy": (CADDY, ["a.mp4", "caf%E9", "sub/"]),
    "nginx JSON": (NGINX_JSON, ["sub/", 'a"%23%3F%25.mp4', "caf%E9"]),
    "nginx JSON of an empty folder": ("[\r\n]", []),
    "nginx XML": (NGINX_XML, ["sub/", "a&b <c>.mp4"]),
    "nginx XML of an empty folder": ('<?xml version="1.0"?>\r\n<list>\r\n</list>\r\n', []),
}


@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize("kind", PAGES)
def test_listings_are_read_however_they_arrive(kind, step):
    page, names = PAGES[kind]
    assert read(page, step=step) == names


@pytest.mark.parametrize("kind", PAGES)
def test_a_listing_that_breaks_off_is_never_a_shorter_one(kind):
    page = PAGES[kind][0].encode("utf-8", "surrogateescape")
    end = max(page.rfind(mark) for mark in (b"</pre>", b"</list>", b"]")) if kind != "Apache" else page.find(b"</pre>")
    for size in range(end):
        with pytest.raises((NotAListing, EOFError)):
            read(page[:size])


FOREIGN = [
    "../", "..", "/", "/data/", "/data/my%20set", "/data/my%20set/", "?C=N;O=D", "#top", "a?b", "a#b", "a/b", "a/b/c/",
    "/data/other/a", "/a.mp4", "//evil/data/my%20set/a", "//host/data/my%20set/a", "http://evil/data/my%20set/a",
    "https://host:8000/data/my%20set/a", "http://host/data/my%20set/a", "ftp://host:8000/data/my%20set/a",
    "javascript:alert(1)", "data:text/html,a", "file:///etc/passwd", "mailto:me@host", "%2e%2e", "%2E%2e/", ".%2e/",
    ".", "./", "././a", "..%2fa", "a%2f..", "%2e%2e%2fetc%2fpasswd", "..%5ca", "a%00b", "%00", "", "./../a", "a//",
    "//", "http://[::1", "http://user@host:8000/data/my%20set/a", "/data/my%20set/../a",
    "/data/my%20set/%2e%2e/",
]  # fmt: skip


@pytest.mark.parametrize("href", FOREIGN)
def test_links_elsewhere_are_no_entries(href):
    assert read(nginx(PARENT + "\n" + link(href) + link("a.mp4"))) == ["a.mp4"]


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("./a", "a"), ("/data/my%20set/a", "a"), ("/data/my set/a/", "a/"), ("/%64ata/my%20set/a", "a"),
        ("http://host:8000/data/my%20set/a", "a"), ("HTTP://HOST:8000/data/my%20set/a", "a"), (" a\n", "a"),
        ("caf%C3%A9", "café"), ("café", "café"), ("caf%e9", "caf%E9"), ("a%2fb", "a%2Fb"), ("a%3fb", "a%3Fb"),
        ("%252e%252e", "%252e%252e"), ("a%20b", "a b"), ("%20a%20", "%20a%20"), ("a&amp;b", "a&b"),
        ("a&#39;b", "a'b"), ("a%26amp%3Bb", "a&amp;b"), ("a%0Ab", "a%0Ab"), ("a%C2%85", "a%C2%85"), ("a;b", "a;b"),
        ("%E2%80%AEa", "%E2%80%AEa"), ("a%ED%B3%A9", "a%ED%B3%A9"), ("x.zip!/", "x.zip%21/"), ("a%5cb", "a%5Cb"),
        (".hidden", ".hidden"), ("%2ehidden", ".hidden"), ("...", "..."), ("a" * 3_000, "a" * 3_000),
    ],
)  # fmt: skip
def test_names_are_those_of_the_links(href, name):
    assert read(nginx(PARENT + "\n" + link(href, "shortened..&gt;"))) == [name]


def test_an_entry_with_two_links_counts_once():
    assert read(nginx(link("a.mp4") + link("%61.mp4") + link("b/") + link("b/"))) == ["a.mp4", "b/"]


LINKS = "".join(f'<li><a href="{name}.mp4">{name}</a></li>' for name in "abc")
ORDINARY = {
    "nothing": "",
    "text": "hello",
    "a page with links": f"<html><head><title>My videos</title></head><body><h1>My videos</h1><ul>{LINKS}</ul></body>",
    "a page without a title": f"<body><h1>Index of /data/my set/</h1><ul>{LINKS}</ul></body>",
    "a title alone": f"<title>Index of /data/my set/</title><h1>Videos</h1><ul>{LINKS}</ul>",
    "a title that goes on": f"<title>Index of /data is forbidden</title><h1>Access</h1><ul>{LINKS}</ul>",
    "an index of something": f"<title>Index of contents</title><h1>Index of contents</h1><ul>{LINKS}</ul>",
    "links outside of a list": f"<title>Index of /</title><h1>Index of /</h1><p>{LINKS.replace('li>', 'b>')}</p>",
    "links elsewhere": nginx('<a href="https://other/">a</a>\n<a href="https://other/b">b</a>\n'),
    "another base": nginx(link("a")).replace("<title>", '<base href="/other/"><title>'),
    "a login": '<title>Login</title><form method="post"><input name="password" type="password"></form>',
    "an application": '<!doctype html><title>App</title><div id="root"></div><script src="/main.js"></script>',
    "a script with a listing": f"<title>App</title><script>{nginx(link('a.mp4'))}</script>",
    "a comment with a listing": f"<title>App</title><!-- {nginx(link('a.mp4'))} -->",
    "a comment without end": f"<!-- {nginx(link('a.mp4'))}",
    "an empty array": "[]",
    "an array of numbers": "[1, 2]",
    "an array of other objects": '[{"name": "a", "id": 1}]',
    "an object": '{"name": "a", "type": "file", "mtime": "x"}',
    "an array of arrays": "[" * 100_000,
    "other XML": "<?xml version='1.0'?><rss><channel><item><link>a.mp4</link></item></channel></rss>",
    "other XML in a list": "<?xml version='1.0'?><list><item>a.mp4</item></list>",
    "entities": '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aa">]><lol>&a;</lol>',
    "malformed markup": "<![foo[ bar",
    "a tag without end": "<a " + "x" * 3_000_000,
    "binary": random.Random(1).randbytes(100_000),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_other_pages_are_refused(kind):
    with pytest.raises(NotAListing):
        read(ORDINARY[kind], step=4096)


def test_names_and_patterns_have_one_spelling():
    rng = random.Random(7)
    for _ in range(2_000):
        raw = bytes(rng.choice(b"ab%?#*[]!{} .\\/\xc3\xa9\xe9\n~") for _ in range(rng.randrange(1, 9)))
        name = encode_name(raw)
        if name is None:
            continue
        quoted = "".join(f"%{byte:02{rng.choice('xX')}}" for byte in raw)
        assert matches_name(name, normalize_name_pattern(quoted))
        assert "/" not in name
        assert "?" not in name
        assert "#" not in name
    assert encode_name(b"caf\xc3\xa9 1%.mp4") == "café 1%25.mp4"
