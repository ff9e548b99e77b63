"""Streams are prepared before they are due, each is opened or released once, and nothing changes in what is played."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import streamloader as sl
from streamloader.engine.stream_prefetch import StreamPrefetcher
from streamloader.streams.base import PreparedStream, Stream, StreamDataset


class Count(Stream):
    def __init__(self, first, length):
        self.at, self.end, self.first = 0, length, first

    async def read_into(self, out):
        count = min(len(out["data"]), self.end - self.at)
        out["data"][:count] = self.first + np.arange(self.at, self.at + count)
        self.at += count
        return count

    async def seek(self, step):
        self.at = min(step, self.end)


class Prepared(PreparedStream):
    def __init__(self, dataset, info):
        self.dataset, self.info = dataset, info

    @property
    def ready(self):
        return self.dataset.ready

    @property
    def max_bytes(self):
        return self.dataset.max_bytes

    async def open(self, rng):
        self.dataset.log.append(("open", self.info.key))
        return await self.dataset.open(self.info, rng)

    def release(self):
        self.dataset.log.append(("release", self.info.key))


class Counts(StreamDataset):
    """Streams of numbers; notes which are prepared, opened and released."""

    fields = sl.Field((), "int64")
    ready = True
    max_bytes = None

    def __init__(self, lengths, prepares=True):
        self.fields = {"data": sl.Field((), "int64")}
        self.lengths, self.prepares, self.log = lengths, prepares, []

    async def index(self):
        return [sl.StreamInfo(str(number), length) for number, length in enumerate(self.lengths)]

    async def open(self, info, rng):
        return Count(1000 * int(info.key), self.lengths[int(info.key)])

    async def prepare(self, info):
        if not self.prepares:
            return None
        self.log.append(("prepare", info.key))
        return Prepared(self, info)


def read_epoch(dataset, **arguments):
    with sl.MultiStreamer(dataset, 2, 4, seed=3, **arguments) as loader:
        return [(batch.data.tolist(), batch.reset.tolist(), batch.stream.tolist()) for batch in loader]


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("tail", ["pad", "drop", "cycle"])
def test_what_is_prepared_is_opened_or_released_once(ready, tail):
    lengths = [5, 0, 9, 3, 1, 7, 12, 2, 6]
    dataset = Counts(lengths)
    dataset.ready = ready
    assert read_epoch(dataset, tail=tail) == read_epoch(Counts(lengths, prepares=False), tail=tail)
    done = [key for what, key in dataset.log if what == "open"]
    assert len(done) >= len(lengths) - 4  # the first stream of each lane is not prepared, the rest may be cut off
    for key in map(str, range(len(lengths))):
        of_key = [what for what, other in dataset.log if other == key]
        assert of_key.count("prepare") == of_key.count("open") + of_key.count("release")
        assert of_key[:1] in ([], ["prepare"])


def test_leaving_an_epoch_releases_what_was_prepared():
    dataset = Counts([400_000] * 4)  # more than is filled ahead
    with sl.MultiStreamer(dataset, 2, 4, seed=0) as loader:
        for _ in loader:
            break
    whats = [what for what, _ in dataset.log]
    assert whats.count("release") >= 2  # one for each lane
    assert whats.count("prepare") == whats.count("open") + whats.count("release")


def test_streams_that_are_left_out_are_not_opened():
    dataset = Counts([6, 6, 6, 6, 6, 6])
    wrong = dataset.open

    async def fails_for_one(info, rng):
        if info.key == "3":
            raise OSError("gone")
        return await wrong(info, rng)

    dataset.open = fails_for_one
    with sl.MultiStreamer(dataset, 1, 4, seed=0, on_error="skip", shuffle=False) as loader:
        streams = {int(ordinal) for batch in loader for ordinal in batch.stream.flatten()}
        assert {left.key for left in loader.quarantined} == {"3"}
    assert streams - {-1} == {0, 1, 2, 4, 5}
    whats = [what for what, _ in dataset.log]
    assert whats.count("prepare") == whats.count("open") + whats.count("release")


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (None, [1, 2, 4, 8, 8]),
        (2 << 20, [1, 1, 1, 2, 2]),
        (100 << 10, [6, 11, 21, 41, 41]),
        (64 << 10, [8, 16, 32, 64, 64]),
        (1, [8, 16, 32, 64, 64]),
    ],
)
def test_more_is_prepared_where_it_was_not_ready(max_bytes, expected):
    async def play():
        dataset = Counts([1] * 100)
        dataset.ready, dataset.max_bytes = False, max_bytes
        prefetcher = StreamPrefetcher(dataset, await dataset.index())
        counts = []
        for position in range(5):
            prepared = prefetcher.take(position)
            if prepared is not None:
                await prepared.open(None)
            ahead = range(position + 1, position + 1 + prefetcher.depth)
            await prefetcher.prepare((number, number) for number in ahead)
            done = [int(key) for what, key in dataset.log if what == "prepare"]
            assert done == list(range(1, len(done) + 1)), "in their order, and each of them once"
            counts.append(len(done) - position)
        dataset.ready = True
        for position in range(5, 9):
            prefetcher.take(position)
            ahead = range(position + 1, position + 1 + prefetcher.depth)
            await prefetcher.prepare((number, number) for number in ahead)
        assert [what for what, _ in dataset.log].count("prepare") - 8 == counts[-1], "no more if they are ready in time"
        return counts

    assert asyncio.run(play()) == expected


def test_streams_that_are_passed_over_are_released():
    async def play():
        dataset = Counts([1] * 40)
        dataset.max_bytes = 64 << 10
        prefetcher = StreamPrefetcher(dataset, await dataset.index())
        await prefetcher.prepare((number, number) for number in range(prefetcher.depth))
        dataset.log.clear()
        prefetcher.take(2)  # those before it are released
        prefetcher.release()
        return dataset.log

    assert asyncio.run(play()) == [("release", str(number)) for number in (0, 1, 3, 4, 5, 6, 7)]


def test_data_sets_that_prepare_nothing_are_not_called():
    assert StreamPrefetcher(sl.TextStreams.from_texts(["a"]), []).depth > 0
    assert StreamPrefetcher(sl.IterStreams(range(3), iter, fields=sl.Field()), []).depth == 0
