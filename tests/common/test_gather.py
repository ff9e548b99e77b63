"""Bounded, ordered concurrency."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from streamloader.common.gather import gather_bounded, map_bounded


class Calls:
    """Counts the calls that run, and those that were cancelled."""

    def __init__(self):
        self.running = self.most = self.cancelled = self.started = 0

    async def double(self, number):
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(number % 3 + 1):  # so that they do not end in their order
                await asyncio.sleep(0)
            if number == 13:
                raise ValueError(number)
            return 2 * number
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def numbers(end):
    for number in range(end):
        yield number


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_results_come_in_order_and_calls_are_limited(limit):
    async def collect():
        calls = Calls()
        assert await gather_bounded((calls.double(n) for n in range(10)), limit=limit) == [2 * n for n in range(10)]
        assert calls.most == min(limit, 10)
        for items in (range(10), numbers(10)):
            assert [result async for result in map_bounded(calls.double, items, limit=limit)] == [
                2 * n for n in range(10)
            ]
        assert calls.running == 0

    asyncio.run(collect())


def test_nothing_to_gather():
    assert asyncio.run(gather_bounded((), limit=4)) == []


def test_the_first_error_is_raised_and_the_rest_is_cancelled():
    async def collect():
        calls = Calls()
        with pytest.raises(ValueError, match="13"):
            await gather_bounded((calls.double(n) for n in range(1000)), limit=4)
        assert calls.running == 0
        assert calls.started < 20

    asyncio.run(collect())


def test_closing_cancels_running_calls_and_closes_the_source():
    async def collect():
        calls = Calls()
        source = numbers(1000)
        async with contextlib.aclosing(map_bounded(calls.double, source, limit=8)) as results:
            async for result in results:
                assert result == 0
                break
        assert calls.running == 0
        assert await anext(source, None) is None

    asyncio.run(collect())
