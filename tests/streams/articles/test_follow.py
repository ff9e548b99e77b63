"""Endless streams that follow a feed."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from aiohttp import web
from article_site import QUICK, article_site, rss
from polling import wait_until

import streamloader as sl
from streamloader.errors import StateError
from streamloader.testing import describe_streams


@pytest.fixture
def site():
    with article_site() as site:
        yield site


@pytest.fixture
def make(site, tmp_path):
    def make_dataset(count=2, tokenizer=None, **options):
        return sl.ArticleStreams(
            None, tokenizer, feeds=f"{site.url}/feed", follow=count, cache_dir=str(tmp_path / "cache"), delay_s=0.0,
            storage_options={"retry": QUICK}, **{"poll_interval_s": 0.01, **options},
        )  # fmt: skip

    return make_dataset


def open_loader(dataset, batch_size=2, **options):
    return sl.MultiStreamer(dataset, batch_size, 60, timeout=None, **options)


def publish(site, numbers):
    """Let the feed have these articles, the newest first, as feeds do."""
    site.put("/feed", rss(site.url, [*reversed(numbers)]), "application/rss+xml")


class Reader:
    """Reads batches, and joins the steps of each article."""

    def __init__(self, loader):
        self.batches = iter(loader)
        self.raw = []
        self.texts = {}
        self.streams = {}

    def read(self, count):
        for batch in itertools.islice(self.batches, count):
            arrays = batch.numpy()
            self.raw.append({name: array.tobytes() for name, array in arrays.items()})
            for row in range(len(arrays["data"])):
                assert arrays["valid"][row].all()
                for byte, article, start, stream in zip(
                    *(arrays[name][row] for name in ("data", "article", "start", "stream")), strict=True
                ):
                    assert bool(start) == (int(article) not in self.texts)
                    self.texts.setdefault(int(article), bytearray()).append(byte)
                    self.streams[int(article)] = int(stream)
        return self


def count_batches(texts, lanes, window=60):
    """Return the number of batches that the articles fill in all lanes."""
    return min(sum(map(len, texts[lane::lanes])) for lane in range(lanes)) // window


def check(reader, texts):
    assert sorted(reader.texts) == list(range(max(reader.texts) + 1))
    for article, text in reader.texts.items():
        assert texts[article].encode().startswith(bytes(text))
        assert reader.streams[article] == article % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_new_articles_are_dealt_to_the_streams(site, make, workers):
    texts = site.put_articles(10)
    publish(site, range(4))
    dataset = make()
    with open_loader(dataset, num_workers=workers) as loader:
        reader = Reader(loader).read(count_batches(texts[:4], 2) - 4)  # some are prepared ahead
        check(reader, texts)
        publish(site, range(2, 8))  # the old ones disappear
        reader.read(count_batches(texts[:8], 2) - len(reader.raw) - 4)
        check(reader, texts)
        publish(site, range(6, 10))
        reader.read(count_batches(texts, 2) - len(reader.raw) - 4)
        check(reader, texts)
        assert [info.key for info in loader.streams] == [f"{site.url}/feed#0", f"{site.url}/feed#1"]
        with pytest.raises(sl.LengthUnknown):
            len(loader)
    assert list(dataset.articles) == site.urls(range(10))
    assert all(site.count(f"/{number}") <= 1 for number in range(10))


def test_it_resumes_at_every_batch(site, make):
    texts = site.put_articles(7)
    publish(site, range(7))
    states = []
    with open_loader(make()) as loader:
        states.append(loader.state_dict())
        reader = Reader(loader)
        for _ in range(count_batches(texts, 2) - 4):
            reader.read(1)
            states.append(json.loads(json.dumps(loader.state_dict())))
    site.contents.clear()  # nothing is fetched again, and the feed fails
    for number in range(0, len(states) - 3, 4):
        with open_loader(make(), num_workers=1 if number == 12 else 0) as loader:
            loader.load_state_dict(states[number])
            batches = [
                {name: array.tobytes() for name, array in batch.numpy().items()}
                for batch in itertools.islice(loader, 3)
            ]
        assert batches == reader.raw[number : number + 3], number
    with open_loader(make(count=4)) as loader, pytest.raises(StateError):
        loader.load_state_dict(states[1])


def test_tokens_are_resumed_too(site, make):
    def words(text):
        return [len(word) for word in text.split()]

    texts = site.put_articles(8)
    publish(site, range(8))
    with open_loader(make(tokenizer=words)) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
        expected = next(batches).data.tolist()
    with open_loader(make(tokenizer=words)) as loader:
        loader.load_state_dict(state)
        assert next(iter(loader)).data.tolist() == expected
    lanes = [[token for text in texts[lane::2] for token in words(text)][180:240] for lane in range(2)]
    assert expected in (lanes, lanes[::-1])


def test_articles_that_fail_are_passed_over(site, make):
    texts = site.put_articles(6)
    del site.contents["/0"], site.contents["/3"]
    publish(site, range(6))
    dataset = make()
    with open_loader(dataset, shuffle=False) as loader:
        reader = Reader(loader).read(count_batches([texts[n] for n in (2, 1, 4, 5)], 2) - 4)
        assert sorted(reader.texts) == [1, 2, 4, 5][: len(reader.texts)]
        assert [record.address for record in dataset.skipped] == site.urls([0, 3])


def test_a_feed_that_fails_is_requested_again(site, make):
    texts = site.put_articles(4)
    publish(site, range(2))
    with open_loader(make()) as loader:
        reader = Reader(loader).read(count_batches(texts[:2], 2) - 4)
        site.put("/feed", "broken", status=500)
        wait_until(lambda: site.count("/feed") > 6)
        site.put("/feed", "<not a feed/>", "text/xml")
        failed = site.count("/feed")
        wait_until(lambda: site.count("/feed") > failed + 3)
        publish(site, range(4))
        reader.read(count_batches(texts, 2) - len(reader.raw) - 4)
        check(reader, texts)


def test_unchanged_feeds_are_not_transferred(site, make):
    texts = site.put_articles(4)
    site.put("/feed", rss(site.url, [1, 0]), "text/xml", ETag='"one"')
    with open_loader(make()) as loader:
        reader = Reader(loader).read(count_batches(texts[:2], 2) - 4)
        wait_until(lambda: site.count("/feed") > 4)
        site.put("/feed", rss(site.url, [3, 2]), "text/xml", ETag='"two"')
        reader.read(count_batches(texts, 2) - len(reader.raw) - 4)
        check(reader, texts)
    tags = [request.headers.get("If-None-Match") for request in site.requests if request.path == "/feed"]
    assert tags[:2] == [None, '"one"']
    assert set(tags[2:]) <= {'"one"', '"two"'}


def test_a_feed_that_is_gone_for_good_ends_with_an_error(site, make):
    texts = site.put_articles(2)
    publish(site, range(2))
    with open_loader(make()) as loader:
        reader = Reader(loader).read(count_batches(texts, 2) - 4)
        site.put("/feed", "gone", status=410)
        with pytest.raises(sl.NotFound, match="410"):
            reader.read(100)


def test_an_empty_feed_is_waited_for(site, make):
    texts = site.put_articles(2)
    publish(site, [])
    with open_loader(make()) as loader:

        async def answer(request):
            publish(site, range(2))
            return web.Response(text=rss(site.url, []), content_type="text/xml")

        site.contents["/feed"] = answer
        reader = Reader(loader).read(count_batches(texts, 2) - 4)
        check(reader, texts)


@pytest.mark.parametrize(
    ("channel", "headers", "expected_s"),
    [
        ("", {}, 50.0),
        ("<ttl>2</ttl>", {}, 120.0),
        ("<ttl>2</ttl>", {"Retry_After": "300"}, 300.0),
        ("<ttl>999999</ttl>", {"Retry_After": "9999999"}, 86_400.0),
    ],
)
def test_a_feed_chooses_a_longer_interval(site, make, channel, headers, expected_s):
    site.put_articles(1)
    site.put("/feed", rss(site.url, [0], channel), "text/xml", **headers)
    dataset = make(poll_interval_s=50.0)
    before = time.time()
    describe_streams(dataset)
    note = dataset._open_files()[1].read_note(f"{site.url}/feed")
    assert before + expected_s <= note["due"] <= time.time() + expected_s


def test_closing_does_not_wait_for_news(site, make):
    site.put_articles(2)
    publish(site, range(2))
    for workers in (0, 1):
        with open_loader(make(snapshot=str(workers)), num_workers=workers) as loader:
            next(iter(loader))
