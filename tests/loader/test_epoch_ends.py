"""Ends of epochs that are only known after reading the streams, reported in the most difficult order of lanes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

import streamloader as sl


def test_an_end_that_moves_earlier_again_and_again_is_the_last_one() -> None:
    """Lanes report their ends from the latest to the earliest, while workers already fill later epochs."""
    lengths = [12, 10, 8, 6, 4]
    ended: dict[int, asyncio.Event] = {}

    async def make(length, rng):
        longer = ended.setdefault(length + 2, asyncio.Event())
        for step in range(length):
            if step == length - 1 and length < max(lengths):
                await longer.wait()
            yield step
        ended.setdefault(length, asyncio.Event()).set()

    dataset = sl.IterStreams(lengths, make, fields=sl.Field((), "int64"))
    with sl.MultiStreamer(dataset, 5, 2, tail="drop", shuffle=False, timeout=60) as loader:
        for _ in range(3):
            batches = [batch.numpy()["data"].copy() for batch in loader]
            assert [batch.tolist() for batch in batches] == [[[0, 1]] * 5, [[2, 3]] * 5]


def test_the_next_epoch_is_made_again_when_this_one_proves_longer() -> None:
    """Streams are longer than declared: prepared batches of the next epoch are revoked, and nothing is lost."""
    lengths = [3, 9, 5, 1]

    def make(length, rng):
        return iter(range(100 * length, 100 * length + length))

    dataset = sl.IterStreams(lengths, make, fields=sl.Field((), "int64"), lengths=[2, 2, 2, 1])
    with sl.MultiStreamer(dataset, 4, 2, num_workers=2, seed=3, timeout=60) as loader:
        assert len(loader) == 1
        for _ in range(3):
            seen: dict[int, list[int]] = {}
            count = 0
            for batch in loader:
                count += 1
                arrays = batch.numpy()
                for stream, value in zip(arrays["stream"].ravel(), arrays["data"].ravel(), strict=True):
                    seen.setdefault(int(stream), []).append(int(value))
            assert count == 5
            assert sorted(len(steps) for stream, steps in seen.items() if stream >= 0) == [1, 3, 5, 9]
            for stream, length in enumerate(lengths):
                np.testing.assert_array_equal(seen[stream], np.arange(100 * length, 100 * length + length))


def test_what_a_lane_finds_in_a_batch_that_is_void_by_then_counts_for_nothing() -> None:
    """A lane is busy in the prepared epoch while that is revoked, and finds that its stream is longer."""
    ahead, taken_back = threading.Event(), threading.Event()
    calls = {"long": 0, "late": 0}

    def make(name):
        calls[name] += 1
        first = calls[name] == 1
        if name == "late" and not first:
            ahead.set()
            assert taken_back.wait(60)
        steps = (12 if first else 2) if name == "long" else (3 if calls[name] == 2 else 2)
        for step in range(steps):
            if name == "long" and first and step == 2:
                assert ahead.wait(60)
            if name == "long" and step == 4:
                taken_back.set()
            yield 10 * calls[name] + step

    dataset = sl.IterStreams(["long", "late"], make, fields=sl.Field((), "int64"), lengths=[2, 2])
    with sl.MultiStreamer(dataset, 2, 2, shuffle=False, timeout=60, prefetch_factor=1) as loader:
        assert len(loader) == 1
        first = [batch.numpy()["data"].tolist() for batch in loader]
        second = [batch.numpy()["data"].tolist() for batch in loader]
    assert first == [[[10, 11], [10, 11]], *([[step, step + 1], [0, 0]] for step in range(12, 22, 2))]
    assert second == [[[20, 21], [30, 31]]]
