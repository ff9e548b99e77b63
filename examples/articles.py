"""How do I stream the articles of a web site?

It needs the extras "articles" and "demo" (for the picture). Without an argument, the program serves a small site of its
own: 24 articles in five encodings, between menus and advertisements, with a missing page and a forbidden one. With the
address of a feed, or of a sitemap (``.../sitemap.xml`` or ``.../robots.txt``), it reads up to 24 articles from there,
one each second. The picture shows how the articles lie in the rows of the batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator

import numpy as np
from aiohttp import web

import streamloader as sl

LANES, WINDOW, ARTICLES = 6, 256, 24
SENTENCES = {
    "utf-8": "The river has been high for days, and residents are clearing their cellars. ",
    "iso-8859-1": "Der Fluss führt seit Tagen Hochwasser, und die Anwohner größerer Orte räumen ihre Keller. ",
    "koi8-r": "Река вышла из берегов несколько дней назад, и жители освобождают подвалы. ",
    "shift_jis": "川の水位は数日前から高いままで、下流の村の住民は荷物を運び出している。",
    "gb18030": "河水水位几天来一直居高不下,下游村庄的居民正在清理地下室里的物品。",
}


def write_article(number: int) -> list[str]:
    """Return the paragraphs of an article. Articles differ in length."""
    sentence = list(SENTENCES.values())[number % len(SENTENCES)]
    return [f"{number}.{part} {sentence * 3}" for part in range(2 + number * 7 % 11)]


def make_site() -> web.Application:
    """Return a site whose sitemap lists all articles, a missing page, and one that robots.txt forbids."""

    async def answer(request: web.Request) -> web.Response:
        name = request.path.strip("/")
        if name == "robots.txt":
            return web.Response(text="User-agent: *\nDisallow: /forbidden\n")
        if name == "sitemap.xml":
            names = [*map(str, range(ARTICLES)), "missing", "forbidden"]
            entries = "".join(f"<url><loc>http://{request.host}/{each}</loc></url>" for each in names)
            return web.Response(text=f"<urlset>{entries}</urlset>", content_type="text/xml")
        if not name.isdigit():
            return web.Response(status=404)
        text = "".join(f"<p>{paragraph}</p>" for paragraph in write_article(int(name)))
        page = (
            f"<html><head><title>Article {name}</title></head><body><nav><a href='/'>Home</a></nav>"
            f"<div class='advertisement'>Buy rubber boots, today only!</div><article><h1>Article {name}</h1>{text}"
            "</article><footer>Imprint, privacy, cookies</footer></body></html>"
        )
        encoding = list(SENTENCES)[int(name) % len(SENTENCES)]
        return web.Response(body=page.encode(encoding), content_type="text/html", charset=encoding)

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    return app


@contextlib.contextmanager
def serve_site() -> Iterator[str]:
    """Serve the site in a thread, and yield the address of its sitemap."""
    loop, runner = asyncio.new_event_loop(), web.AppRunner(make_site())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/sitemap.xml"

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def stream_articles(dataset: sl.ArticleStreams) -> tuple[np.ndarray, np.ndarray, dict[str, bytes]]:
    """Play one epoch. Return the number of the article (lanes, steps), -1 for padding, the resets, and all texts."""
    articles, resets = [], []
    texts: dict[str, bytes] = {}
    with sl.MultiStreamer(dataset, LANES, WINDOW, num_workers=2, timeout=600) as loader:
        for batch in loader:
            arrays = batch.numpy()
            articles.append(arrays["stream"])
            resets.append(arrays["reset"])
            for row, streams in zip(arrays["data"], arrays["stream"], strict=True):
                for number in np.unique(streams[streams >= 0]):
                    key = loader.streams[int(number)].key
                    texts[key] = texts.get(key, b"") + row[streams == number].tobytes()
    return np.concatenate(articles, axis=1), np.concatenate(resets, axis=1), texts


def save_picture(articles: np.ndarray, resets: np.ndarray, path: str) -> None:
    """Save a picture of the rows: a colour for each article, and a black line where one begins."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colors = plt.get_cmap("tab20")(np.arange(articles.max() + 1) * 7 % 20)[:, :3]
    pixels = np.where(articles[..., None] >= 0, colors[articles], 0.93)
    figure, axes = plt.subplots(figsize=(11, 4), layout="constrained")
    axes.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, articles.shape[1], LANES - 0.5, -0.5))
    for lane, step in np.argwhere(resets):
        axes.plot([step, step], [lane - 0.5, lane + 0.5], color="black", linewidth=2.5)
        length = int((articles[lane] == articles[lane, step]).sum())
        if length > articles.shape[1] // 40:
            axes.text(step + length / 2, lane, str(articles[lane, step]), ha="center", va="center", fontsize=9)
    for border in range(0, articles.shape[1] + 1, WINDOW):
        axes.axvline(border, color="white", linewidth=1)
    for lane in range(1, LANES):
        axes.axhline(lane - 0.5, color="white", linewidth=3)
    axes.set(
        xlabel=f"bytes of a row (a batch has {WINDOW}, between two white lines)", ylabel="row", yticks=range(LANES),
        title="Articles in the rows of the batches: black lines are resets, gray is padding",
    )  # fmt: skip
    figure.savefig(path, dpi=120)


def main() -> None:
    """Stream the articles, and save the picture."""
    with contextlib.ExitStack() as stack:
        if len(sys.argv) > 1:
            address, options = sys.argv[1], {}
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            address, options = stack.enter_context(serve_site()), {"delay_s": 0.0, "cache_dir": f"{folder}/cache"}
        kind = "sitemaps" if address.endswith(("sitemap.xml", "sitemap.xml.gz", "robots.txt")) else "feeds"
        limit = None if options else ARTICLES
        dataset = sl.ArticleStreams(**{kind: address}, max_articles=limit, **options)
        articles, resets, texts = stream_articles(dataset)
        for record in dataset.skipped:
            print(f"left out: {record.message}")
    target = sys.argv[2] if len(sys.argv) > 2 else "articles.png"
    save_picture(articles, resets, target)
    shortest = min(texts.values(), key=len)
    print(f"{len(texts)} articles, {sum(map(len, texts.values())):,} bytes; saved {target}. The shortest one begins:")
    print("\n".join(shortest.decode().splitlines()[:2])[:200])
    if len(sys.argv) == 1:
        expected = ["\n".join([f"Article {number}", *write_article(number)]) for number in range(ARTICLES)]
        found = [texts[key].decode() for key in sorted(texts, key=lambda key: int(key.rpartition("/")[2]))]
        equal = [line.split() for line in found] == [line.split() for line in expected]
        print(f"every article was delivered once, without menus and advertisements: {equal}")


if __name__ == "__main__":
    main()
