"""Streams are prepared before they are due, each is opened or released once, and nothing changes in what is played."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import streamloader as sl
from streamloader.engine.stream_prefetch import Ahead
from streamloader.streams.base import Expected, Stream, StreamDataset


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


class Prepared(Expected):
    def __init__(self, dataset, info):
        self.dataset, self.info = dataset, info

    @property
    def ready(self):
        return self.dataset.ready

    async def open(self, rng):
        self.dataset.log.append(("open", self.info.key))
        return await self.dataset.open(self.info, rng)

    def release(self):
        self.dataset.log.append(("release", self.info.key))


class Counts(StreamDataset):
    """Streams of numbers; notes what is expected of it."""

    fields = sl.Field((), "int64")
    ready = True

    def __init__(self, lengths, expects=True):
        self.fields = {"data": sl.Field((), "int64")}
        self.lengths, self.expects, self.log = lengths, expects, []

    async def index(self):
        return [sl.StreamInfo(str(number), length) for number, length in enumerate(self.lengths)]

    async def open(self, info, rng):
        return Count(1000 * int(info.key), self.lengths[int(info.key)])

    async def expect(self, info):
        if not self.expects:
            return None
        self.log.append(("expect", info.key))
        return Prepared(self, info)


def played(dataset, **arguments):
    with sl.MultiStreamer(dataset, 2, 4, seed=3, **arguments) as loader:
        return [(batch.data.tolist(), batch.reset.tolist(), batch.stream.tolist()) for batch in loader]


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("tail", ["pad", "drop", "cycle"])
def test_what_is_prepared_is_opened_or_released_once(ready, tail):
    lengths = [5, 0, 9, 3, 1, 7, 12, 2, 6]
    dataset = Counts(lengths)
    dataset.ready = ready
    assert played(dataset, tail=tail) == played(Counts(lengths, expects=False), tail=tail)
    done = [key for what, key in dataset.log if what == "open"]
    assert len(done) >= len(lengths) - 4  # the first stream of each lane comes unexpected, the rest may be cut off
    for key in map(str, range(len(lengths))):
        of_key = [what for what, other in dataset.log if other == key]
        assert of_key.count("expect") == of_key.count("open") + of_key.count("release")
        assert of_key[:1] in ([], ["expect"])


def test_leaving_an_epoch_releases_what_was_prepared():
    dataset = Counts([400_000] * 4)  # more than is made ahead
    with sl.MultiStreamer(dataset, 2, 4, seed=0) as loader:
        for _ in loader:
            break
    whats = [what for what, _ in dataset.log]
    assert whats.count("release") >= 2  # one for each lane
    assert whats.count("expect") == whats.count("open") + whats.count("release")


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
    assert whats.count("expect") == whats.count("open") + whats.count("release")


def test_more_is_prepared_where_it_was_not_ready():
    async def play():
        dataset = Counts([1] * 40)
        dataset.ready = False
        infos = await dataset.index()
        ahead = Ahead(dataset, infos)
        depths = []
        for position in range(10):
            expected = ahead.take(position)
            if expected is not None:
                await expected.open(None)
            depths.append(ahead.depth)
            await ahead.prepare((at, at) for at in range(position + 1, position + 1 + ahead.depth))
        dataset.log.clear()
        ahead.take(12)  # those before it are given up
        ahead.release()
        return depths, dataset.log

    depths, log = asyncio.run(play())
    assert depths == [1, 2, 4, 8, 8, 8, 8, 8, 8, 8]
    assert log == [("release", "10"), ("release", "11"), *(("release", str(at)) for at in range(13, 18))]


def test_kinds_that_prepare_nothing_are_not_asked():
    assert Ahead(sl.TextStreams.from_texts(["a"]), []).depth == 1
    assert Ahead(sl.IterStreams(range(3), iter, fields=sl.Field()), []).depth == 0
