"""Folders of real web servers are searched like local folders; anything but a listing is a clear error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from aiohttp import web
from servers.listings import APACHE_STYLES, PYTHONS, Missing, list_with
from servers.web import serving

import streamloader as sl
from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    LimitExceeded,
    NotSupported,
    ProtocolError,
    StoreError,
    StreamNotFound,
    TransferInterrupted,
)
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.http.store import HttpStore
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.search import TreeSearch

NAMES = [
    "a.txt", "b.TXT", "10.txt", "9.txt", "café.txt", "cafe\u0301.txt", "日本 語.txt", "a b.txt", "100%.txt", "%41.txt",
    "%2e%2e", "a#b.txt", "a?b.txt", "a&b.txt", "a&amp;b.txt", "a'b\"c<d>.txt", "a:b.txt", "a;b=c.txt", "a+b,@!.txt",
    "[x]{y}.txt", "*.txt", " lead.txt", "trail ", "back\\slash.txt", "~tilde", "-dash", "x" * 200 + ".txt",
    "sub/c.txt", "sub/deep folder/ü.txt", "sub/deep folder/é#?%/d.txt", "empty%/.keep", "http:/e.txt",
    "..a/f.txt", "C=N;O=D", "parent directory/g.txt",
]  # fmt: skip
LATIN = [b"caf\xe9.txt", b"\xff\xfe/h.txt"]
STYLES = [("nginx", ""), ("nginx", "json/"), ("nginx", "xml/"), *(("apache2", f"{style}/") for style in APACHE_STYLES),
          ("lighttpd", ""), ("caddy", ""), *((f"python{version}", "") for version in PYTHONS)]  # fmt: skip


@pytest.fixture(scope="module")
def data():
    """The served folder: /tree, /denied, /page (an ordinary page), /looped, /pages."""
    folder = Path(tempfile.mkdtemp(prefix="served-"))
    folder.chmod(0o755)
    for name in [os.fsencode(name) for name in NAMES] + LATIN:
        path = os.path.join(os.fsencode(folder), b"tree", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"content of " + name)
    more = {
        "page/index.html": '<title>Videos</title><ul><li><a href="a.txt">a</a></ul>',
        "page/a.txt": "1", "mixed/a.txt": "1", "mixed/denied/b.txt": "1", "mixed/page/index.html": "<p>Hello",
        "mixed/page/c.txt": "1", "mixed/d/e.txt": "1", "dangling/a.txt": "1", "looped/a.txt": "1", "denied/a.txt": "1",
        "tree/HEADER.html": '<h1>Welcome</h1><ul><li><a href="phantom">1</a></ul>', "login/a.txt": "1",
        "tree/README.html": '<pre><a href="phantom">2</a></pre><ul><li><a href="phantom">3</a></ul>',
    }  # fmt: skip
    for name, text in more.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "dangling/link.txt").symlink_to("gone.txt")
    (folder / "looped/loop").symlink_to(".")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(data, request):
    """A kind of server, and its address. It serves the folder."""
    kind = request.param
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(list_with(kind, data))
        except Missing as missing:
            if os.environ.get("CI") and kind in ("nginx", "apache2", "lighttpd"):
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        yield kind, url


def on(*kinds):
    return pytest.mark.parametrize("server", kinds, indirect=True)


def truth(folder):
    """Return the bytes of the paths of all files below a folder, without hidden ones."""
    found = set()
    root = os.fsencode(folder)
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        found |= {os.path.relpath(os.path.join(place, name), root) for name in files if not name.startswith(b".")}
    return found


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


def is_utf8(name):
    return not any("\udc80" <= char <= "\udcff" for char in name.decode("utf-8", "surrogateescape"))


async def collect(store, prefix="", **options):
    return [info.path async for info in store.list(prefix, **options)]


@pytest.mark.parametrize(("server", "path"), STYLES, indirect=["server"])
def test_every_name_of_a_folder_is_found_and_read(server, data, path):
    kind, url = server
    expected = truth(data / "tree")
    if kind == "lighttpd":
        expected = {name for name in expected if is_utf8(name)}  # it refuses requests of all others

    async def search():
        async with HttpStore(url) as store:
            problems = []
            found = await collect(store, f"{path}tree", search=TreeSearch(problems.append))
            prefix = len(f"{path}tree/")
            names = [unquote_to_bytes(each[prefix:]) for each in found]
            if kind.startswith("python"):  # it writes bytes that are not UTF-8 in a way of its own
                names = [name.decode("utf-8", "surrogatepass").encode("utf-8", "surrogateescape") for name in names]
            if kind == "lighttpd":
                assert [problem.path for problem in problems] == ["tree/%FF%FE"]
                found, names = (
                    [each for each in found if "caf%E9" not in each],
                    [name for name in names if is_utf8(name)],
                )
            assert sorted(names) == sorted(expected)
            assert kind == "lighttpd" or not problems
            for name, each in zip(names, found, strict=True):
                assert await store.read(each) == read_file(os.path.join(os.fsencode(data / "tree"), name)), name
            shallow = await collect(store, f"{path}tree/sub", recursive=False)
            assert sorted(shallow) == [f"{path}tree/sub/c.txt", f"{path}tree/sub/deep folder/"]

    asyncio.run(search())


PATTERNS = [
    "*.txt", "**/*.txt", "sub/*/*", "s*/**/*.txt", "[0-9]*", "caf*.txt", "*é*", "[[]x*", "a[&b]*", "*%*", "",
    "sub/", "sub/deep folder/", "sub/deep folder/*.txt", "**/deep*/**/d.txt", "[*].txt", "*a b*",
]  # fmt: skip


@on("nginx", "apache2", "python3.11")
def test_a_web_server_is_searched_like_a_folder(server, data):
    kind, url = server
    url += "/table/tree" if kind == "apache2" else "/tree"
    for pattern in PATTERNS:
        local = [os.path.relpath(file.address, data / "tree") for file in expand_addresses(f"{data}/tree/{pattern}")]
        remote = expand_addresses(f"{url}/{pattern.replace('%', '%25').replace('#', '%23')}")
        names = [unquote_to_bytes(file.address.removeprefix(f"{url}/")) for file in remote]
        if kind.startswith("python"):
            names = [name.decode("utf-8", "surrogatepass").encode("utf-8", "surrogateescape") for name in names]
        assert sorted(names) == sorted(map(os.fsencode, local)), pattern
        assert [file.address for file in remote] == sorted(file.address for file in remote)
        for file in remote:
            store, path = open_shared_store(file.address)
            with store:
                assert file.info == store.head(path), "the size of a listing is not used"
    for pattern, name in (("caf%C3%A9*", "café.txt"), ("*%20b.txt", "a b.txt"), ("a%3Fb*", "a%3Fb.txt")):
        assert [file.address for file in expand_addresses(f"{url}/{pattern}")] == [f"{url}/{name}"]


@on("nginx")
def test_a_folder_without_the_slash_at_its_end(server):
    url = server[1]
    assert [file.address for file in expand_addresses(f"{url}/mixed/d")] == [f"{url}/mixed/d/e.txt"]
    assert [file.address for file in expand_addresses(f"{url}/mixed/a.txt")] == [f"{url}/mixed/a.txt"]


@on("nginx", "lighttpd")
def test_what_may_not_be_read_below_is_named_once(server, caplog):
    url = server[1]
    for pattern in ("mixed/", "mixed/**/*.txt", "mixed/*/*.txt"):
        caplog.clear()
        names = [file.address.removeprefix(url) for file in expand_addresses(f"{url}/{pattern}")]
        top = [] if pattern == "mixed/*/*.txt" else ["/mixed/a.txt"]
        assert names == [*top, "/mixed/d/e.txt"]
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "2 directories" in warning
        assert f"{url}/mixed/denied" in warning
        assert f"{url}/mixed/page/ is no directory listing" in warning
        with pytest.raises(NotSupported, match=r"2 files or directories cannot be read(.|\n)*denied"):
            expand_addresses(f"{url}/{pattern}", unreadable="raise")

    async def list_plainly():
        async with HttpStore(url) as store:
            with pytest.raises(NotSupported, match=r"denied|page"):
                await collect(store, "mixed")

    asyncio.run(list_plainly())


@on("nginx")
def test_links_that_lead_nowhere(server, caplog):
    for place in ("", "json/", "xml/"):
        url = f"{server[1]}/{place}dangling"
        with pytest.raises(sl.StreamloaderError, match=r"link\.txt"):
            expand_addresses(f"{url}/*.txt")
        caplog.clear()
        found = expand_addresses(f"{url}/*.txt", unreadable="skip")
        assert [file.address for file in found] == [f"{url}/a.txt"]
        assert "link.txt" in caplog.text
        assert [file.address for file in expand_addresses(f"{url}/a*")] == [f"{url}/a.txt"]


@on("nginx", "python3.11")
def test_a_loop_of_links_is_an_error_that_says_so(server):
    url = server[1]
    with pytest.raises(StoreError, match=r"looped/loop/loop.* a link on the server seems to lead back"):
        expand_addresses(f"{url}/looped/**/*.txt")
    assert len(expand_addresses(f"{url}/looped/*.txt")) == 1
    with pytest.raises(LimitExceeded, match=r"Limits\(depth"):
        expand_addresses(f"{url}/looped/", None, {"limits": Limits(depth=4)})


@on("nginx")
def test_what_is_no_listing(server):
    url = server[1]
    for address, words in (
        ("page/", "names a directory, but .*page/ is no directory listing: it is a page with the title 'Videos'"),
        ("page/*.txt", "patterns need listings, but .*page/ is no directory listing"),
        ("page/**", "is no directory listing"),
        ("denied/*.txt", r"may not be listed: the server responded with status 403"),
        ("login/", r"is no directory listing: its server redirects to /page/"),
        ("page/*.txt?key=1", "an address with a query cannot be listed"),
    ):
        with pytest.raises(NotSupported, match=words):
            expand_addresses(f"{url}/{address}")
    with pytest.raises(StreamNotFound, match="does not exist, or is empty, or its server does not list it"):
        expand_addresses(f"{url}/nothing/")
    with pytest.raises(StreamNotFound, match="matches nothing"):
        expand_addresses(f"{url}/tree/*.mp4")


# --- servers that are none of these ----------------------------------------------------------------------------------


def page(*links, path="/"):
    rows = "".join(f'<a href="{link}">x</a>\r\n' for link in links)
    text = (
        f"<html><head><title>Index of {path}</title></head><body><h1>Index of {path}</h1><hr><pre>{rows}</pre></body>"
    )
    return web.Response(text=text, content_type="text/html")


def with_server(handler, work, **options):
    async def run():
        async with serving(handler) as url, HttpStore(url, **options) as store:
            return await work(store, url)

    return asyncio.run(run())


def test_an_application_that_answers_everything():
    async def answer(request):
        return web.Response(
            text="<!doctype html><title>App</title><script src=/main.js></script>", content_type="text/html"
        )

    async def forever():
        async with serving(answer) as url:
            for address in ("*.txt", "videos/", "a/**/*.txt", ""):
                with pytest.raises(NotSupported, match="is no directory listing: it is a page with the title 'App'"):
                    await asyncio.to_thread(expand_addresses, f"{url}/{address}")

    asyncio.run(forever())


def test_redirects_stay_in_the_folder_and_at_the_origin():
    seen = []

    async def elsewhere(request):
        seen.append(request.path)
        return page("a.txt")

    async def check():
        async with serving(elsewhere) as other:

            async def answer(request):
                place = request.path
                if place == "/moved/":
                    raise web.HTTPFound(f"{other}/moved/")
                if place == "/cookie/" and "seen" not in request.cookies:
                    response = web.HTTPFound("/cookie/")
                    response.set_cookie("seen", "1")
                    raise response
                if place in ("/inside/", "/%2e%2e/"):
                    raise web.HTTPFound("/cookie/")
                return page("a.txt", path=place)

            async with serving(answer) as url, HttpStore(url) as store:
                assert await collect(store, "cookie") == ["cookie/a.txt"]
                for place in ("moved", "inside"):
                    with pytest.raises(NotSupported, match="is no directory listing: its server redirects to"):
                        await collect(store, place)
        assert seen == []

    asyncio.run(check())


def test_pages_that_break_off_are_transient_errors():
    async def answer(request):
        text = page("a.txt", "b.txt").text
        return web.Response(text=text[: text.index("</pre>")], content_type="text/html")

    async def check(store, url):
        with pytest.raises(TransferInterrupted, match="the listing breaks off") as caught:
            await collect(store)
        assert caught.value.transient

    with_server(answer, check)


@pytest.mark.parametrize(("status", "kind"), [(401, AccessDenied), (500, StoreError), (418, ProtocolError)])
def test_errors_of_the_server(status, kind):
    async def answer(request):
        return page("sub/") if request.path == "/" else web.Response(status=status)

    async def check(store, url):
        problems = []
        if status == 401:
            assert await collect(store, search=TreeSearch(problems.append)) == []
            assert [problem.path for problem in problems] == ["sub"]
        else:
            with pytest.raises(kind):
                await collect(store, search=TreeSearch(problems.append))
        with pytest.raises(kind):
            await collect(store, "sub")

    with_server(answer, check)


def test_hidden_names_are_not_entered_unless_the_pattern_has_the_dot():
    requested = []

    async def answer(request):
        requested.append(request.path)
        if request.path.endswith(".txt"):
            return web.Response(body=b"x")
        return page("%2Ehidden/", "open/", ".a.txt") if request.path == "/" else page("b.txt")

    async def check():
        async with serving(answer) as url:
            for pattern, names in (
                ("**/*.txt", ["open/b.txt"]),
                ("", ["open/b.txt"]),
                (".h*/*.txt", [".hidden/b.txt"]),
            ):
                requested.clear()
                found = await asyncio.to_thread(expand_addresses, f"{url}/{pattern}")
                assert [file.address.removeprefix(f"{url}/") for file in found] == names
                assert any("hidden" in path for path in requested) == pattern.startswith(".")

    asyncio.run(check())


def test_folders_are_listed_concurrently_on_the_connections_of_the_store():
    active, most = 0, 0

    async def answer(request):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.01)
        active -= 1
        return page(*(f"{number}/" for number in range(40))) if request.path == "/" else page("a.txt")

    async def check(store, url):
        found = []
        async for info in store.list():
            found.append(info.path)
            if len(found) == 1:  # reading while a listing goes on does not wait for it
                await store.read(info.path)
        assert sorted(found) == sorted(f"{number}/a.txt" for number in range(40))
        assert 2 < most <= 4

    with_server(answer, check, limits=Limits(connections=4))


def test_large_pages_arrive_in_parts_and_are_bounded():
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        await response.write(b"<title>Index of /</title><h1>Index of /</h1><pre>")
        for start in range(0, 10_000, 1_000):
            rows = "".join(f'<a href="{number:06}.txt">x</a>\n' for number in range(start, start + 1_000))
            await response.write(rows.encode())
        await response.write(b"</pre>")
        return response

    async def check(store, url):
        assert len(await collect(store)) == 10_000

    async def refuse(store, url):
        with pytest.raises(LimitExceeded, match="Limits"):
            await collect(store)

    with_server(answer, check)
    with_server(answer, refuse, limits=Limits(listed=5_000))
    with_server(answer, refuse, limits=Limits(listing_bytes=50_000))


def test_a_page_that_stops_to_arrive_has_a_deadline():
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        await response.write(b"<title>Index of /</title><h1>Index of /</h1><pre>")
        await asyncio.sleep(60)
        return response

    async def check(store, url):
        with pytest.raises(sl.StoreTimeout):
            await collect(store)

    with_server(answer, check, timeouts=Timeouts(connect=0.2, response=0.3, window=0.3))


# --- what reads folders ----------------------------------------------------------------------------------------------


@on("nginx")
def test_streams_of_a_folder(server, data):
    url = server[1]
    dataset = sl.TextStreams(f"{url}/tree/sub/")
    assert len(asyncio.run(dataset.index())) == 3
    with sl.MultiStreamer(dataset, batch_size=1, window=8) as loader:
        played = b"".join(bytes(batch.data[batch.valid].tolist()) for batch in loader)
    assert sorted(played) == sorted(b"".join(path.read_bytes() for path in (data / "tree/sub").rglob("*.txt")))
