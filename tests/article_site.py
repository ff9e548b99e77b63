"""A web site of realistic pages, in a thread of this process, which counts and orders its requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field

from aiohttp import web

from streamloader.config import Retry
from streamloader.testing.faults.shutdown import stop_web_runner

SENTENCES = {
    "en": "The river has been high for days, and residents of the lower villages are clearing their cellars.",
    "de": "Der Fluss führt seit Tagen Hochwasser, und die Anwohner größerer Orte räumen ihre Keller.",
    "fr": "La rivière déborde depuis plusieurs jours, et les habitants évacuent déjà leurs caves à Nîmes.",
    "ru": "Река вышла из берегов несколько дней назад, и жители нижних деревень освобождают подвалы.",
    "ja": "川の水位は数日前から高いままで、下流の村の住民は地下室の荷物を運び出している。",
    "zh": "河水水位几天来一直居高不下，下游村庄的居民正在清理地下室里的物品。",  # noqa: RUF001
    "ko": "강물의 수위가 며칠째 높아서 하류 마을의 주민들이 지하실을 비우고 있다.",
}
QUICK = Retry(attempts=3, deadline=60.0, first_wait=0.001, longest_wait=5.0, jitter=0.0)


def make_paragraphs(number, language="en", count=4):
    """Return the paragraphs of an article, each different from those of all others."""
    return [f"{number}.{part} {SENTENCES[language]} {SENTENCES[language]}" for part in range(count)]


def make_page(paragraphs, *, head="", title="High water", declaration="", language="en"):
    """Return a page as news sites make them, around the paragraphs of an article."""
    links = "".join(f'<li><a href="/section/{name}">{name}</a></li>' for name in ("Politics", "Sport", "Weather"))
    text = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return f"""{declaration}<!DOCTYPE html>
<html lang="{language}"><head>{head}<title>{title} - The Daily</title>
<script>var tracker = "do not read this";</script><style>p {{ color: black }}</style></head>
<body><header><nav class="menu"><ul>{links}</ul></nav></header>
<aside class="advertisement"><p>Buy now! Only today: 50 % off all umbrellas and rubber boots.</p></aside>
<main><article><h1>{title}</h1>{text}</article></main>
<section id="comments" class="comments"><h3>Comments</h3>
<div class="comment"><p>I always said so, nobody listens to me, first comment here.</p></div></section>
<footer><p>Imprint, privacy, cookies. All rights reserved by the publisher.</p></footer></body></html>"""


def text_of(paragraphs, title="High water"):
    """Return the main text of such a page."""
    return "\n".join([title, *paragraphs])


def rss(url, names, extra=""):
    items = "".join(f"<item><title>{name}</title><link>{url}/{name}</link></item>" for name in names)
    return f'<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>{extra}{items}</channel></rss>'


def sitemap(addresses):
    entries = "".join(f"<url><loc>{address}</loc></url>" for address in addresses)
    return f'<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'


@dataclass
class Site:
    """Contents and requests of the site. Contents may be changed at any time, from any thread.

    Attributes:
        url: Address without a slash at its end.
        contents: Path with query -> response (status, headers, body), or a coroutine function of the request.
        requests: All requests so far, in the order of their arrival.
    """

    url: str = ""
    contents: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)

    def put(self, path, body="", content_type="text/html; charset=utf-8", status=200, **headers):
        """Set the response for a path."""
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Content-Type"] = content_type
        self.contents[path] = status, named, data

    def put_articles(self, count, first=0, language="en"):
        """Add articles ``/0``, ``/1``, ..., and return their texts."""
        texts = []
        for number in range(first, first + count):
            paragraphs = make_paragraphs(number, language)
            self.put(f"/{number}", make_page(paragraphs, language=language))
            texts.append(text_of(paragraphs))
        return texts

    def urls(self, names):
        return [f"{self.url}/{name}" for name in names]

    def paths(self):
        """Return the paths of all requests in their order."""
        return [request.path_qs for request in list(self.requests)]

    def count(self, path):
        return self.paths().count(path)

    async def _answer(self, request):
        self.requests.append(request)
        content = self.contents.get(request.path_qs)
        if content is None:
            return web.Response(status=404, text="not here")
        if callable(content):
            return await content(request)
        status, headers, body = content
        etag = headers.get("ETag")
        if etag is not None and request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(status=status, headers=headers, body=body)


@contextlib.contextmanager
def article_site():
    """Serve a site on a free port of the loopback interface."""
    site = Site()
    ready, stop, loops = threading.Event(), asyncio.Event(), []

    async def serve():
        runner = web.ServerRunner(web.Server(site._answer, handler_cancellation=True), shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            loops.append(asyncio.get_running_loop())
            ready.set()
            await stop.wait()
        finally:
            await stop_web_runner(runner)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="article-site")
    thread.start()
    try:
        assert ready.wait(60), "the server does not start"
        yield site
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(60)
