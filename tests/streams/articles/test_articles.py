"""Articles through the loader: what is played, what is kept, and what a resumed run plays."""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
from article_site import QUICK, article_site, make_page, make_paragraphs, rss, text_of

import streamloader as sl
from streamloader.errors import ConfigError, CorruptStream, StateError
from streamloader.stores.http.document import HttpDocument
from streamloader.stores.wrappers.cache_blocks import BlockFiles
from streamloader.streams.articles.extraction import ExtractionSettings, extract_article
from streamloader.streams.articles.kept_pages import KeptFiles, KeptPage, hash_name
from streamloader.streams.articles.parsers import DocumentParsers, ExtractedText
from streamloader.testing import describe_streams, read_stream

PLAIN = ExtractionSettings("balance", comments=False, tables=True, obeys_robots=True)


@pytest.fixture(scope="module")
def site():
    with article_site() as site:
        yield site


@pytest.fixture(autouse=True)
def _empty(site):
    site.contents.clear()
    site.requests.clear()


@pytest.fixture
def make(tmp_path):
    def make_dataset(pages=None, *args, **options):
        defaults = {"cache_dir": str(tmp_path / "cache"), "delay_s": 0.0, "storage_options": {"retry": QUICK}}
        return sl.ArticleStreams(pages, *args, **{**defaults, **options})

    return make_dataset


def play(loader, count=None):
    """Return the arrays of the next batches as bytes."""
    batches = []
    for batch in loader:
        batches.append({name: array.tobytes() for name, array in batch.numpy().items()})
        if len(batches) == count:
            break
    return batches


def texts_in(loader):
    """Return the text of each stream by its key, checking steps and resets."""
    texts = {}
    for batch in loader:
        arrays = batch.numpy()
        for row in range(len(arrays["data"])):
            valid = arrays["valid"][row]
            columns = (arrays[name][row][valid] for name in ("data", "stream", "step", "reset"))
            for byte, stream, step, reset in zip(*columns, strict=True):
                text = texts.setdefault(loader.streams[int(stream)].key, bytearray())
                assert (len(text), bool(reset)) == (step, step == 0)
                text.append(byte)
    return {key: bytes(text).decode() for key, text in texts.items()}


def test_pages_in_many_encodings_become_one_encoding(site, make):
    encodings = [
        ("utf-8", "de"),
        ("cp1252", "fr"),
        ("cp932", "ja"),
        ("gb18030", "zh"),
        ("koi8-r", "ru"),
        ("utf-16", "ru"),
    ]
    expected = {}
    for number, (encoding, language) in enumerate(encodings):
        paragraphs = make_paragraphs(number, language)
        head = f'<meta charset="{encoding}">' if number % 2 else ""
        declared = "" if number % 2 else f"; charset={encoding}"
        site.put(f"/{number}", make_page(paragraphs, head=head).encode(encoding), f"text/html{declared}")
        expected[f"{site.url}/{number}"] = text_of(paragraphs)
    for workers in (0, 2):
        dataset = make(site.urls(range(6)), cache_dir=None if workers else make([site.url])._settings.folder)
        with sl.MultiStreamer(dataset, 3, 100, num_workers=workers) as loader:
            assert texts_in(loader) == expected
            assert list(dataset.skipped) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_on_what_is_kept(site, make, workers, tmp_path):
    site.put_articles(7)
    dataset = make(site.urls([*range(5), "missing", 5, 6]))
    with sl.MultiStreamer(dataset, 3, 50, seed=4) as loader:
        expected = [play(loader), play(loader)]
    requests = len(site.requests)
    site.contents.clear()  # the site is gone
    with sl.MultiStreamer(make(site.urls([*range(5), "missing", 5, 6])), 3, 50, seed=4, num_workers=workers) as loader:
        assert [play(loader), play(loader)] == expected
        with pytest.raises(sl.LengthUnknown):
            len(loader)
    assert len(site.requests) == requests


def test_a_resumed_run_plays_what_the_first_one_played(site, make):
    site.put_articles(6)
    site.put("/feed", rss(site.url, [*range(6), "missing"]), "text/xml")

    def open_loader(**options):
        return sl.MultiStreamer(make(feeds=f"{site.url}/feed"), 2, 40, seed=1, **options)

    with open_loader() as loader:
        batches, states, expected = iter(loader), [], []
        for batch in batches:
            states.append(json.loads(json.dumps(loader.state_dict())))
            expected.append({name: array.tobytes() for name, array in batch.numpy().items()})
        expected += play(loader)
    site.put_articles(6, language="de")  # all pages change, and so does the feed
    site.put("/missing", make_page(make_paragraphs(7)))
    site.put("/feed", rss(site.url, range(3, 9)), "text/xml")
    for number in (0, len(states) // 2, len(states) - 1):
        with open_loader(num_workers=number % 2) as loader:
            loader.load_state_dict(states[number])
            assert [*play(loader), *play(loader)][: len(expected) - number - 1] == expected[number + 1 :]


def test_pages_that_were_played_do_not_change_within_a_snapshot(site, make):
    texts = site.put_articles(2)
    dataset = make(site.urls(range(2)))
    infos = describe_streams(dataset)
    assert read_stream(dataset, infos[0])["data"].tobytes().decode() == texts[0]
    changed = site.put_articles(2, language="ru")
    again = make(site.urls(range(2)))
    read = [read_stream(again, info)["data"].tobytes().decode() for info in describe_streams(again)]
    assert read == [texts[0], changed[1]]
    other = make(site.urls(range(2)), snapshot="other")
    assert [read_stream(other, info)["data"].tobytes().decode() for info in describe_streams(other)] == changed


def test_a_state_needs_the_folder_of_its_snapshot(site, make, tmp_path):
    site.put_articles(3)
    with sl.MultiStreamer(make(site.urls(range(3))), 2, 40) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
        rest = play(batches)
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    with sl.MultiStreamer(make(site.urls(range(3)), cache_dir=str(tmp_path / "copy")), 2, 40) as loader:
        loader.load_state_dict(state)
        assert play(loader) == rest
    shutil.rmtree(tmp_path / "cache")
    loader = sl.MultiStreamer(make(site.urls(range(3))), 2, 40)
    with loader, pytest.raises(StateError, match="keys or lengths"):
        loader.load_state_dict(state)


def test_a_text_that_the_cache_has_lost_is_fetched_again_if_it_is_the_same(site, make, tmp_path):
    texts = site.put_articles(2)
    dataset = make(site.urls(range(2)))
    infos = describe_streams(dataset)
    for info in infos:
        read_stream(dataset, info)
    for path in (tmp_path / "cache" / "records").rglob("*-0"):
        path.write_bytes(path.read_bytes()[:-30] + bytes(30))  # a damaged disk
    assert read_stream(dataset, infos[0])["data"].tobytes().decode() == texts[0]
    site.put_articles(2, language="de")
    with pytest.raises(CorruptStream, match=r"changed since it was first read") as caught:
        read_stream(dataset, infos[1])
    assert caught.value.stream == infos[1].key


def test_unchanged_pages_are_not_transferred_for_another_snapshot(site, make):
    paragraphs = make_paragraphs(1)
    site.put("/1", make_page(paragraphs), ETag='"v1"')
    site.put("/2", make_page(make_paragraphs(2)), Last_Modified="Mon, 01 Jun 2026 10:00:00 GMT")
    for name in ("a", "b"):
        dataset = make(site.urls([1, 2]), snapshot=name)
        read = [read_stream(dataset, info)["data"].tobytes().decode() for info in describe_streams(dataset)]
        assert read == [text_of(paragraphs), text_of(make_paragraphs(2))]
    versions = [request.headers.get("If-None-Match") for request in site.requests if request.path == "/1"]
    assert versions == [None, '"v1"']
    dates = [request.headers.get("If-Modified-Since") for request in site.requests if request.path == "/2"]
    assert dates == [None, "Mon, 01 Jun 2026 10:00:00 GMT"]
    site.put("/1", make_page(make_paragraphs(3)), ETag='"v2"')
    dataset = make(site.urls([1]), snapshot="c")
    assert read_stream(dataset, describe_streams(dataset)[0])["data"].tobytes().decode() == text_of(make_paragraphs(3))


def test_lengths_are_exact_if_pages_are_fetched_ahead(site, make):
    texts = site.put_articles(5)
    names = [0, 1, "missing", 2, 3, 4]
    with sl.MultiStreamer(make(site.urls(names), fetch="ahead"), 2, 64, tail="pad") as loader:
        assert [(info.key, info.length) for info in loader.streams] == [
            (f"{site.url}/{number}", len(texts[number])) for number in range(5)
        ]
        assert len(loader) == len(play(loader))
        assert texts_in(loader) == {f"{site.url}/{number}": texts[number] for number in range(5)}
    assert [record.key for record in loader.dataset.skipped] == [f"{site.url}/missing"]
    with pytest.raises(sl.NotFound, match="404"):
        describe_streams(make(site.urls(names), fetch="ahead", unreadable="raise"))
    with sl.MultiStreamer(make(site.urls(names), fetch="ahead", unreadable="raise"), 1, 8, on_error="skip") as loader:
        assert len(loader.streams) == 5
    with pytest.raises(sl.NotFound, match="2 of 2 pages"):
        describe_streams(make(site.urls(["x", "y"]), fetch="ahead"))


def test_ranks_of_one_machine_fetch_each_page_once(site, make):
    site.put_articles(6)
    results = {}

    def run(rank):
        dataset = make(site.urls(range(6)), fetch="ahead")
        with sl.MultiStreamer(dataset, 1, 64, rank=rank, world_size=2, shuffle=False) as loader:
            results[rank] = len(loader), texts_in(loader)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0][0] == results[1][0]
    expected = {f"{site.url}/{number}": text_of(make_paragraphs(number)) for number in range(6)}
    assert results[0][1] | results[1][1] == expected
    assert sorted(site.paths()) == ["/0", "/1", "/2", "/3", "/4", "/5", "/robots.txt"]


def test_next_pages_are_fetched_while_one_is_played(site, make):
    site.put_articles(3)
    with sl.MultiStreamer(make(site.urls(range(3))), 1, 8, shuffle=False, prefetch_factor=1) as loader:
        iterator = iter(loader)
        next(iterator)
        for _ in iterator:  # without waiting for the next page at each border, the test would still pass
            pass
    assert site.paths() == ["/robots.txt", "/0", "/1", "/2"]


def test_tokens(site, make):
    def count_words(text):
        return [len(word) for word in text.split()]

    texts = site.put_articles(2)
    dataset = make(site.urls(range(2)), count_words, fill=-1)
    assert (dataset.fields["data"].dtype, dataset.fields["data"].fill) == (np.int64, -1)
    assert [read_stream(dataset, info)["data"].tolist() for info in describe_streams(dataset)] == list(
        map(count_words, texts)
    )
    failing = make(site.urls(range(2)), lambda text: [1 // 0])
    (info, _) = describe_streams(failing)
    with pytest.raises(sl.StreamFailed, match="the tokenizer raised ZeroDivisionError"):
        read_stream(failing, info)


def test_addresses_with_secrets_are_not_shown(site, make):
    texts = site.put_articles(2)
    site.contents["/a?token=zebra1"], site.contents["/a?token=zebra2"] = site.contents["/0"], site.contents["/1"]
    dataset = make(
        [f"{site.url}/a?token=zebra1#top", f"{site.url}/a?token=zebra2", f"{site.url}/a?token=missing-zebra"]
    )
    infos = list(describe_streams(dataset))
    assert [read_stream(dataset, info)["data"].tobytes().decode() for info in infos] == [*texts, ""]
    shown = repr([infos, dataset.skipped, list(dataset.articles), dataset, dataset.settings])
    assert "zebra" not in shown
    assert len({info.key for info in infos}) == 3
    assert len(describe_streams(pickle.loads(pickle.dumps(dataset)))) == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "no addresses"),
        ({"pages": "ftp://example.org/a"}, "must be http"),
        ({"pages": "page.html"}, "must be http"),
        ({"pages": []}, "empty"),
        ({"pages": "http://a.example/", "favor": "x"}, "favor"),
        ({"pages": "http://a.example/", "fetch": "x"}, "fetch"),
        ({"pages": "http://a.example/", "unreadable": "x"}, "unreadable"),
        ({"pages": "http://a.example/", "delay_s": -1}, "delay_s"),
        ({"pages": "http://a.example/", "delay_s": float("nan")}, "delay_s"),
        ({"pages": "http://a.example/", "connections": 0}, "connections"),
        ({"pages": "http://a.example/", "follow": 2}, "follow"),
        ({"feeds": "http://a.example/", "follow": 0}, "follow"),
        ({"feeds": "http://a.example/", "follow": 2, "fetch": "ahead"}, "follow"),
        ({"pages": "http://a.example/", "tokenizer": 3}, "tokenizer"),
        ({"pages": "http://a.example/", "user_agent": "bot\r\nX: y"}, "user_agent"),
        ({"pages": "http://a.example/", "contact": "ü"}, "contact"),
    ],
)
def test_arguments_are_checked(arguments, match):
    with pytest.raises(ConfigError, match=match):
        sl.ArticleStreams(**arguments)


def test_a_folder_that_others_can_change_is_refused(site, make, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ConfigError, match="cache_dir="):
        describe_streams(make(site.urls([0])))


def test_the_first_text_of_two_processes_is_kept(tmp_path):
    one, other = KeptFiles(str(tmp_path)), KeptFiles(str(tmp_path))
    name = hash_name("page")
    first = one.keep_page(name, KeptPage(b"first", etag='"1"'), "a")
    assert other.keep_page(name, KeptPage(b"second"), "a") == first == other.read_page(name)
    assert (one.summarize_page(name).length, one.summarize_page(name).error) == (5, "")


def test_a_full_disk_is_an_error_and_no_page_is_left_out(site, make, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    site.put_articles(1)
    dataset = make(site.urls([0]))
    (info,) = describe_streams(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(BlockFiles, "write", write)
        with pytest.raises(sl.StorageFull, match="No space left"):
            read_stream(dataset, info)
    assert list(dataset.skipped) == []
    assert len(read_stream(dataset, info)["data"])


@pytest.mark.parametrize(
    "found",
    [None, [], {}, {"text": 3, "encoding": "utf-8"}, {"pages": "x", "ttl": 0}, {"pages": [3], "sitemaps": []},
     {"allowed": True, "delay": "x", "sitemaps": []}, {"pages": [], "ttl": float("nan")}],
)  # fmt: skip
def test_what_a_parser_returns_is_checked(found):
    """A document may have taken over the process that parses it."""

    class Pool:
        def call(self, name, function, *args):
            return found

    async def call(parse):
        parsers = DocumentParsers()
        parsers._pool = Pool()
        document = HttpDocument(200, "http://a.example/", {}, None, b"")
        arguments = {
            "extract": (document, "evil", tuple(PLAIN)),
            "check_robots": ("rules", "streamloader", "http://a.example/", "evil"),
        }.get(parse, (document, "evil"))
        return await getattr(parsers, parse)(*arguments)

    for parse in ("extract", "read_feed", "read_sitemap", "check_robots"):
        with pytest.raises(CorruptStream, match="evil"):
            asyncio.run(call(parse))


def test_a_page_that_ends_its_parser_is_left_out(site, make, monkeypatch):
    site.put_articles(2)
    crash = functools.partial(os._exit, 3)

    async def extract(parsers, document, name, settings):
        function = crash if name.endswith("/0") else extract_article
        arguments = () if function is crash else (document.body, "text/html", None, name, name, settings)
        return await parsers._call(
            name, function, *arguments, check=lambda it: ExtractedText(it["text"], it["encoding"])
        )

    monkeypatch.setattr(DocumentParsers, "extract", extract)
    dataset = make(site.urls(range(2)))
    assert [len(read_stream(dataset, info)["data"]) > 0 for info in describe_streams(dataset)] == [False, True]
    assert [(record.address, record.error) for record in dataset.skipped] == [(f"{site.url}/0", "CorruptStream")]
    assert "ends the process that parses it" in dataset.skipped[0].message
