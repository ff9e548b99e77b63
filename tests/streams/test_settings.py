"""What a kind of stream says of itself: its settings, whether seeking replays, and an index that stays small."""

from __future__ import annotations

import asyncio
import functools
import json
import pickle
import tracemalloc

import cloudpickle
import numpy as np
import pytest

import streamloader as sl
from streamloader.stream_table import StreamTable
from streamloader.streams.base import stream_rng
from streamloader.testing import describe_streams, read_stream


class Upper:
    def __call__(self, text):
        return [ord(character) for character in text.upper()]

    def encode(self, text):
        return self(text)


def crop(frames, rng, margin=1):
    return frames[:, margin:-margin]


def count(item):
    yield from range(item)


@pytest.mark.parametrize(
    ("dataset", "settings"),
    [
        (lambda: sl.TextStreams.from_texts(["a"]), {"tokenizer": None}),
        (lambda: sl.TextStreams.from_texts(["a"], Upper()), {"tokenizer": "Upper", "encoding": "utf-8"}),
        (lambda: sl.TextStreams("x", Upper().encode), {"tokenizer": "Upper.encode", "encoding": "utf-8"}),
        (lambda: sl.TextStreams("x", str.split, encoding="latin-1"), {"tokenizer": "str.split", "encoding": "latin-1"}),
        (lambda: sl.TextStreams("x", encoding="latin-1"), {"tokenizer": None}),
        (lambda: sl.IterStreams([1], count, fields=sl.Field()), {"make": "count"}),
        (lambda: sl.IterStreams([1], functools.partial(count), fields=sl.Field()), {"make": "count"}),
        (lambda: sl.IterStreams([1], Upper(), fields=sl.Field()), {"make": "Upper"}),
        (lambda: sl.IterStreams([1], lambda item: [], fields=sl.Field()), {"make": "<lambda>.<locals>.<lambda>"}),
        (
            lambda: sl.VideoStreams("x.mp4"),
            {
                "pix_fmt": "rgb24",
                "size": None,
                "max_frames": None,
                "random_start": False,
                "stride": 1,
                "fps": None,
                "transform": None,
                "damaged": "raise",
            },
        ),
        (
            lambda: sl.VideoStreams(
                "x.mp4",
                (np.int64(4), 6),
                "gray",
                np.int64(9),
                random_start=True,
                stride=2,
                fps=29.97,
                transform=crop,
                damaged="keep",
            ),
            {
                "pix_fmt": "gray",
                "size": [4, 6],
                "max_frames": 9,
                "random_start": True,
                "stride": 2,
                "fps": "2997/100",
                "transform": "crop",
                "damaged": "keep",
            },
        ),
    ],
)
def test_settings_are_plain_and_the_same_in_another_process(dataset, settings):
    made = dataset()
    assert made.settings == settings
    assert json.loads(json.dumps(made.settings)) == settings
    assert cloudpickle.loads(cloudpickle.dumps(made)).settings == settings


def test_a_data_set_has_no_settings_unless_it_says_so():
    class Own(sl.StreamDataset):
        fields = {"data": sl.Field()}  # noqa: RUF012

        async def index(self):
            return []

        async def open(self, info, rng):
            raise NotImplementedError

    assert Own().settings == {}


async def endless(item):
    while True:
        yield item


@pytest.mark.parametrize(
    ("make", "replays"),
    [
        (lambda item: (step for step in range(item)), True),
        (endless, True),
        (lambda item: iter([1, 2]), True),
        (lambda item: [1, 2], False),
        (range, False),
        (bytes, False),
        (lambda item: np.zeros(item, np.uint8), False),
        (lambda item: {"data": np.zeros(item, np.uint8)}, False),
    ],
)
def test_only_iterators_are_replayed(make, replays):
    dataset = sl.IterStreams([5], make, fields=sl.Field())

    async def ask():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        try:
            return stream.replays
        finally:
            await stream.aclose()

    assert asyncio.run(ask()) is replays
    assert sl.Stream.replays is False


# --- size -------------------------------------------------------------------------------------------------------------


def traced_index(dataset):
    tracemalloc.start()
    try:
        table = describe_streams(dataset)
        return table, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_the_index_of_a_million_items_makes_no_object_for_each():
    lengths = np.arange(1_000_000) % 50
    dataset = sl.IterStreams(range(1_000_000), count, fields=sl.Field(), lengths=lengths)
    table, kept, peak = traced_index(dataset)
    assert (kept < 100_000, peak < 1_000_000) == (True, True)
    assert table[777_777] == sl.StreamInfo("777777", 27, {"item": 777_777})
    assert read_stream(dataset, table[200])["data"].tolist() == list(range(200))
    buffers = []
    assert len(pickle.dumps((dataset, table), protocol=5, buffer_callback=buffers.append)) < 2000


def test_unknown_lengths_cost_eight_bytes_each():
    table, kept, _ = traced_index(sl.IterStreams(range(1_000_000), count, fields=sl.Field()))
    assert kept < 8_100_000
    assert table[999_999].length is None


def names(number):
    return [f"item {n}" for n in range(number)]


@pytest.mark.parametrize(
    "items",
    [
        names(5000),
        tuple(names(5000)),
        list(range(5000)),
        [n / 2 for n in range(5000)],
        [(n, str(n)) for n in range(5000)],
    ],
)
def test_plain_items_travel_as_arrays_and_arrive_as_they_were(items):
    dataset = sl.IterStreams(items, lambda item: [item == items[0]], fields=sl.Field((), "bool"), lengths=[1] * 5000)
    buffers = []
    pickled = pickle.dumps({**dataset.__getstate__(), "_make": None}, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 2000
    state = pickle.loads(pickled, buffers=buffers)
    assert list(state["_items"]) == list(items)
    assert type(state["_items"][17]) is type(items[17])
    assert dataset._items is items  # here nothing has changed
    assert describe_streams(cloudpickle.loads(cloudpickle.dumps(dataset))) == describe_streams(dataset)


def test_items_that_are_no_plain_values_travel_as_they_are():
    shared = np.zeros(3)
    dataset = sl.IterStreams([shared, {"x": shared}], lambda item: [1], fields=sl.Field(), lengths=[1, None])
    there = cloudpickle.loads(cloudpickle.dumps(dataset))
    assert there._items[0] is there._items[1]["x"]
    assert describe_streams(there) == describe_streams(dataset)


def test_texts_in_memory_travel_as_one_array():
    dataset = sl.TextStreams.from_texts(f"text {n}" for n in range(5000))
    table = describe_streams(dataset)
    buffers = []
    assert len(pickle.dumps((dataset, table), protocol=5, buffer_callback=buffers.append)) < 2000
    assert read_stream(dataset, table[4999])["data"].tobytes() == b"text 4999"


def test_an_index_is_a_table(tmp_path, clips):
    (tmp_path / "a.txt").write_text("a")
    for dataset in (
        sl.IterStreams([1, 2], count, fields=sl.Field()),
        sl.TextStreams(tmp_path),
        sl.TextStreams.from_texts(["a", b"b"]),
        sl.VideoStreams(clips["carphone_pristine"]),
    ):
        assert type(describe_streams(dataset)) is StreamTable


def test_a_length_beyond_64_bits():
    dataset = sl.IterStreams(["a", "b"], count, fields=sl.Field(), lengths=[1, 1 << 63])
    with pytest.raises(sl.ConfigError, match="length of stream 'b' is 9223372036854775808; it is too large"):
        describe_streams(dataset)
