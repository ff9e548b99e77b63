"""Pages that fail, servers that misbehave, and the rules of robots.txt: against a real site."""

from __future__ import annotations

import asyncio
import gzip
import threading

import pytest
from aiohttp import web
from article_site import QUICK, article_site, make_page, make_paragraphs, rss, text_of

import streamloader as sl
from streamloader.errors import LimitExceeded, StreamNotFound, Unreachable, UnreadableStream
from streamloader.testing import describe_streams, read_stream

ENDLESS_PIECE = b"<p>" + b"x" * 65_533
OPTIONS = {"delay_s": 0.0, "storage_options": {"retry": QUICK}}


@pytest.fixture
def site():
    with article_site() as site:
        yield site


@pytest.fixture
def make(tmp_path):
    def make_dataset(pages=None, **options):
        return sl.ArticleStreams(pages, cache_dir=str(tmp_path / "cache"), **{**OPTIONS, **options})

    return make_dataset


def texts_of(dataset):
    infos = describe_streams(dataset)
    return [read_stream(dataset, info)["data"].tobytes().decode() for info in infos]


def endless(counter, headers):
    async def answer(request):
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            while True:
                await response.write(ENDLESS_PIECE)
                counter.append(len(ENDLESS_PIECE))
        except (OSError, asyncio.CancelledError):
            return response

    return answer


def refusing(times, status, **headers):
    """Answer some requests with an error, and then with a page."""
    left = [status] * times
    page = make_page(make_paragraphs(77))
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(request):
        if left:
            return web.Response(status=left.pop(), headers=named)
        return web.Response(text=page, content_type="text/html")

    return answer


def redirect(target, status=302):
    async def answer(request):
        return web.Response(status=status, headers={"Location": target})

    return answer


def test_pages_that_fail_are_left_out_and_named(site, make):
    sent = []
    good = make_page(make_paragraphs(77))
    site.put("/forbidden", status=403)
    site.put("/broken", status=500)
    site.put("/image", b"\x89PNG", "image/png")
    site.put("/pdf", b"%PDF-1.7", "application/pdf")
    site.put("/disguised", b"\x89PNG\r\n\x1a\n" + bytes(1000), "text/html")
    site.contents["/huge"] = endless(sent, {"Content-Type": "text/html", "Content-Length": str(1 << 30)})
    site.contents["/endless"] = endless(sent, {"Content-Type": "text/html"})
    site.put("/bomb", gzip.compress(bytes(64 << 20)), Content_Encoding="gzip")
    site.put("/deflate", b"x", Content_Encoding="br")
    site.put("/damaged", gzip.compress(good.encode())[:-20], Content_Encoding="gzip")
    site.put("/empty", "<html><body></body></html>")
    site.put("/untyped", b"\x00\x01binary", content_type="")
    site.put("/header", good, X_Robots_Tag="noindex, nofollow")
    site.put("/tdm", good, tdm_reservation="1")
    site.contents["/circle"] = redirect("/circle2")
    site.contents["/circle2"] = redirect("/circle")
    site.contents["/inside"] = redirect("http://169.254.169.254/latest/meta-data")
    site.contents["/file"] = redirect("file:///etc/passwd")
    failing = ["missing", "forbidden", "broken", "image", "pdf", "disguised", "huge", "endless", "bomb", "deflate",
               "damaged", "empty", "untyped", "header", "tdm", "circle", "inside", "file"]  # fmt: skip
    site.contents["/limited"] = refusing(2, 429, Retry_After="0")
    site.contents["/unstable"] = refusing(2, 503)
    site.contents["/moved"] = redirect("/page", 301)
    site.put("/page", good)
    site.put("/gzip", gzip.compress(good.encode()), Content_Encoding="gzip")
    site.put("/elsewhere", good, X_Robots_Tag="otherbot: noindex")
    site.put("/sniffed", b"\n" + good.encode(), content_type="")
    working = ["limited", "unstable", "moved", "gzip", "elsewhere", "sniffed"]
    dataset = make(site.urls([*failing, *working]), max_page_bytes=1 << 20)
    assert texts_of(dataset) == [""] * len(failing) + [text_of(make_paragraphs(77))] * len(working)
    assert [(record.address, record.error) for record in dataset.skipped] == [
        (f"{site.url}/{name}", error)
        for name, error in zip(
            failing,
            ["NotFound", "AccessDenied", "ServerBusy", "UnreadableStream", "UnreadableStream", "UnreadableStream",
             "LimitExceeded", "LimitExceeded", "LimitExceeded", "ProtocolError", "ProtocolError", "UnreadableStream",
             "UnreadableStream", "AccessDenied", "AccessDenied", "ProtocolError", "UntrustedHost", "ProtocolError"],
            strict=True,
        )
    ]  # fmt: skip
    assert all(f"{site.url}/{name}" in record.message for name, record in zip(failing, dataset.skipped, strict=True))
    assert sum(sent) < 64 << 20
    assert site.count("/broken") == QUICK.attempts
    assert site.count("/missing") == 1
    requests = len(site.requests)
    assert texts_of(make(site.urls([*failing, *working]), max_page_bytes=1 << 20)).count("") == len(failing)
    assert len(site.requests) == requests, "what is known is not requested again"


def test_errors_of_pages_are_raised_on_request(site, make):
    site.put_articles(1)
    dataset = make(site.urls([0, "missing"]), unreadable="raise")
    infos = describe_streams(dataset)
    assert len(read_stream(dataset, infos[0])["data"])
    for _ in range(2):  # as fetched, and as kept
        with pytest.raises(sl.NotFound, match="404") as caught:
            read_stream(dataset, infos[1])
        assert (caught.value.stream, caught.value.address) == (f"{site.url}/missing",) * 2
    with sl.MultiStreamer(make(site.urls(["missing", 0]), unreadable="raise"), 1, 500, on_error="skip") as loader:
        assert sum(int(batch.valid.sum()) for batch in loader) == len(text_of(make_paragraphs(0)))
    loader = sl.MultiStreamer(make(site.urls(["missing", 0]), unreadable="raise"), 1, 500, shuffle=False)
    with loader, pytest.raises(sl.NotFound, match="404"):
        next(iter(loader))


def test_a_page_that_never_ends_takes_limited_time(site, make):
    async def drip(request):
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"<p>")
                await asyncio.sleep(0.01)
        except (OSError, asyncio.CancelledError):
            return response

    async def stall(request):
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        await response.write(b"<p>")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return response

    site.contents["/drip"], site.contents["/stall"] = drip, stall
    quick = {"retry": QUICK, "timeouts": sl.Timeouts(window=0.2, min_rate=1.0)}
    endless = make(site.urls(["drip"]), max_page_s=0.5, obey_robots=False)
    stalled = make(site.urls(["stall"]), obey_robots=False, storage_options=quick)
    assert [*texts_of(endless), *texts_of(stalled)] == ["", ""]
    records = [*endless.skipped, *stalled.skipped]
    assert [record.error for record in records] == ["LimitExceeded", "StoreTimeout"]
    assert "longer than 0.5 s" in records[0].message
    assert "at byte 3" in records[1].message


def test_at_most_a_few_requests_at_a_time(site, make):
    inside, peak = [], []
    both = threading.Event()

    def slow(number):
        page = make_page(make_paragraphs(number))

        async def answer(request):
            inside.append(number)
            peak.append(len(inside))
            if len(inside) == 2:
                both.set()
            await asyncio.to_thread(both.wait, 60)  # until as many as are allowed have come
            inside.remove(number)
            return web.Response(text=page, content_type="text/html")

        return answer

    for number in range(8):
        site.contents[f"/{number}"] = slow(number)
    with sl.MultiStreamer(make(site.urls(range(8)), connections=2), 4, 4000, num_workers=2) as loader:
        for _ in loader:
            pass
    assert max(peak) == 2


class TestRobots:
    def rules(self, site, text, **options):
        site.put("/robots.txt", text, **{"content_type": "text/plain", **options})

    def test_rules_are_obeyed(self, site, make):
        self.rules(
            site,
            "User-agent: *\nDisallow: /\n\nUser-agent: streamloader\nDisallow: /private/\nAllow: /private/open$\n"
            "Disallow: /*.pdf$\n",
        )
        names = ["private/a", "private/open", "paper.pdf", "paper.pdf?x", "page"]
        for name in names:
            site.put(f"/{name}", make_page(make_paragraphs(77)))
        dataset = make(site.urls(names))
        assert [bool(text) for text in texts_of(dataset)] == [False, True, False, True, True]
        assert {record.error for record in dataset.skipped} == {"AccessDenied"}
        assert f"{site.url}/robots.txt forbids streamloader to fetch {site.url}/private/a" in dataset.skipped[0].message
        assert site.paths()[0] == "/robots.txt"
        assert site.count("/robots.txt") == 1
        assert site.count("/private/a") == site.count("/paper.pdf") == 0
        assert {request.headers["User-Agent"] for request in site.requests} == {f"streamloader/{sl.__version__}"}

    def test_another_name_has_other_rules(self, site, make):
        self.rules(site, "User-agent: my-bot\nDisallow: /1\n\nUser-agent: *\nDisallow: /0\n")
        site.put_articles(2)
        dataset = make(site.urls(range(2)), user_agent="my-bot/2.0", contact="https://example.org/bot")
        assert [bool(text) for text in texts_of(dataset)] == [True, False]
        agents = {request.headers["User-Agent"] for request in site.requests}
        assert agents == {"my-bot/2.0 (+https://example.org/bot)"}

    @pytest.mark.parametrize(
        ("status", "allowed"),
        [(404, True), (401, True), (403, True), (410, True), (500, False), (503, False), (429, False)],
    )
    def test_statuses(self, site, make, status, allowed):
        self.rules(site, "nothing", status=status)
        site.put_articles(1)
        dataset = make(site.urls([0]))
        assert bool(texts_of(dataset)[0]) == allowed
        if not allowed:
            assert "robots.txt could not be read" in dataset.skipped[0].message
            assert str(status) in dataset.skipped[0].message

    def test_a_long_file_counts_up_to_its_limit(self, site, make):
        self.rules(site, "User-agent: *\nDisallow: /0\n" + "# filler\n" * 70_000 + "Disallow: /1\n")
        site.put_articles(2)
        assert [bool(text) for text in texts_of(make(site.urls(range(2))))] == [False, True]

    def test_redirects_to_another_place_are_checked_there(self, site, make):
        with article_site() as other:
            self.rules(other, "User-agent: *\nDisallow: /secret\n")
            other.put("/open", make_page(make_paragraphs(77)))
            other.put("/secret", make_page(make_paragraphs(78)))
            site.contents["/a"] = redirect(f"{other.url}/open")
            site.contents["/b"] = redirect(f"{other.url}/secret")
            site.contents["/robots.txt"] = redirect("/robots2.txt")
            site.put("/robots2.txt", "User-agent: *\nDisallow: /c\n", "text/plain")
            site.put_articles(1)
            dataset = make(site.urls(["a", "b", "c", 0]), storage_options={"retry": QUICK, "token": "zebra-token"})
            assert [bool(text) for text in texts_of(dataset)] == [True, False, False, True]
            assert f"{other.url}/robots.txt forbids" in dataset.skipped[0].message
            assert other.paths() == ["/robots.txt", "/open"]
            assert [request.headers.get("Authorization") for request in other.requests] == [None, None]
            assert {request.headers.get("Authorization") for request in site.requests} == {"Bearer zebra-token"}

    def test_a_delay_is_respected(self, site, make, monkeypatch):
        from streamloader.streams.articles.fetcher import PageFetcher

        self.rules(site, "User-agent: *\nCrawl-delay: 7\nRequest-rate: 1/3\n")
        site.put_articles(2)
        delays = []
        take_turn = PageFetcher.take_turn

        async def record(fetcher, url, address, delay_s):
            delays.append((url.path, delay_s))
            return await take_turn(fetcher, url, address, 0.0)

        monkeypatch.setattr(PageFetcher, "take_turn", record)
        texts_of(make(site.urls(range(2)), delay_s=0.5))
        assert delays == [("/robots.txt", 0.5), ("/0", 7.0), ("/1", 7.0)]

    def test_an_endless_delay_forbids(self, site, make):
        self.rules(site, "User-agent: *\nCrawl-delay: 100000\n")
        site.put_articles(1)
        dataset = make(site.urls([0]))
        assert texts_of(dataset) == [""]
        assert "requests 100000 s between requests" in dataset.skipped[0].message

    def test_own_sites_need_no_permission(self, site, make):
        self.rules(site, "User-agent: *\nDisallow: /\n")
        site.put(
            "/0", make_page(make_paragraphs(0), head='<meta name="robots" content="noindex">'), X_Robots_Tag="none"
        )
        assert texts_of(make(site.urls([0]), obey_robots=False)) == [text_of(make_paragraphs(0))]
        assert site.paths() == ["/0"]


class TestOutages:
    def test_nothing_answers(self, make):
        dataset = make("http://127.0.0.1:9/a")
        (info,) = describe_streams(dataset)
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            read_stream(dataset, info)
        assert list(dataset.skipped) == []

    def test_a_server_that_never_answered_is_left_out_if_others_do(self, site, make):
        site.put_articles(1)
        dataset = make([*site.urls([0]), "http://127.0.0.1:9/a"])
        assert [bool(text) for text in texts_of(dataset)] == [True, False]
        assert [record.error for record in dataset.skipped] == ["Unreachable"]

    def test_a_server_that_answered_before_is_an_error(self, make):
        with article_site() as site:
            site.put_articles(2)
            dataset = make(site.urls(range(2)))
            infos = describe_streams(dataset)
            assert len(read_stream(dataset, infos[0])["data"])
        with pytest.raises(Unreachable):
            read_stream(dataset, infos[1])
        assert list(dataset.skipped) == []
        assert len(read_stream(dataset, infos[0])["data"]), "what was read can be played without a network"


class TestLists:
    def test_a_feed(self, site, make):
        texts = site.put_articles(3)
        site.put("/feed", rss(site.url, [2, 0, 1]), "application/rss+xml")
        dataset = make(feeds=f"{site.url}/feed")
        assert texts_of(dataset) == [texts[2], texts[0], texts[1]]
        assert [info.key for info in describe_streams(dataset)] == site.urls([2, 0, 1]) == list(dataset.articles)

    def test_sitemaps_and_their_indexes(self, site, make):
        from article_site import sitemap

        site.put_articles(6)
        index = "".join(
            f"<sitemap><loc>{site.url}/{name}</loc></sitemap>" for name in ("a.xml.gz", "index.xml", "b.txt")
        )
        site.put("/index.xml", f"<sitemapindex>{index}</sitemapindex>", "text/xml")  # it lists itself, too
        site.put("/a.xml.gz", gzip.compress(sitemap(site.urls([4, 1])).encode()), "application/gzip")
        site.put("/b.txt", "\n".join(site.urls([1, 0, 5])), "text/plain")
        site.put("/robots.txt", f"User-agent: *\nDisallow: /5\nSitemap: {site.url}/index.xml\n", "text/plain")
        for address in ("index.xml", "robots.txt"):
            dataset = make(sitemaps=f"{site.url}/{address}")
            assert [info.key for info in describe_streams(dataset)] == site.urls([4, 1, 0, 5])
        chosen = make(site.urls([3]), sitemaps=f"{site.url}/index.xml", pattern="*/[01]", max_articles=2)
        assert [info.key for info in describe_streams(chosen)] == site.urls([3, 1])

    def test_lists_that_cannot_be_read(self, site, make):
        site.put("/html", make_page([]))
        site.put("/none", rss(site.url, []), "text/xml")
        with pytest.raises(sl.NotFound):
            describe_streams(make(feeds=f"{site.url}/missing"))
        with pytest.raises(UnreadableStream, match=r"/html"):
            describe_streams(make(feeds=f"{site.url}/html"))
        with pytest.raises(StreamNotFound, match=r"/none"):
            describe_streams(make(feeds=f"{site.url}/none"))
        site.contents["/endless"] = endless([], {"Content-Type": "text/xml"})
        with pytest.raises(LimitExceeded):
            describe_streams(make(sitemaps=f"{site.url}/endless"))

    def test_a_list_cannot_lead_inside_and_receives_no_secrets(self, site, make):
        with article_site() as other:
            other.put_articles(1)
            site.put_articles(1)
            site.put("/feed", rss(site.url, [0, 1]).replace(f"{site.url}/1", f"{other.url}/0"), "text/xml")
            dataset = make(feeds=f"{site.url}/feed")
            assert [bool(text) for text in texts_of(dataset)] == [True, False]
            assert [record.error for record in dataset.skipped] == ["UntrustedHost"]
            assert other.paths() == []
            secret = {"retry": QUICK, "token": "zebra-token"}
            dataset = make(feeds=f"{site.url}/feed", storage_options=secret, snapshot="2")
            infos = describe_streams(dataset)
            with pytest.raises(sl.UntrustedAddress, match=r"storage_options"):
                read_stream(dataset, infos[1])
            bound = {site.url: secret, other.url: {"retry": QUICK}}
            assert all(texts_of(make(feeds=f"{site.url}/feed", storage_options=bound, snapshot="3")))
            assert {request.headers.get("Authorization") for request in other.requests} == {None}
