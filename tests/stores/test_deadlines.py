"""The deadlines of transfers: one timer for all waits of a store."""

from __future__ import annotations

import asyncio

import pytest
from clocks import VirtualLoop, run_in, use_loop_time

from streamloader.config import Timeouts
from streamloader.errors import StoreTimeout
from streamloader.stores import deadlines
from streamloader.stores.deadlines import TransferDeadline, WaitTimer

TIMEOUTS = Timeouts(connect=1.0, response=4.0, window=3.0, min_rate=10.0)


@pytest.fixture(autouse=True)
def _loop_time(monkeypatch):
    use_loop_time(monkeypatch, deadlines)


def make_deadline(timer, address="x://a", timeouts=TIMEOUTS):
    return TransferDeadline(timeouts, address, timer)


def now():
    return asyncio.get_running_loop().time()


async def wait_forever(timer, seconds, ends):
    """Wait for a response that never comes, and note when that was noticed."""
    deadline = make_deadline(timer, f"x://{seconds}", Timeouts(connect=0.0, response=seconds))
    try:
        with deadline.limit_response("waiting"):
            await asyncio.Event().wait()
    except StoreTimeout as error:
        ends.append((now(), error.details["waited"], error.address))


def test_each_wait_expires_at_its_own_time():
    async def run():
        timer, ends = WaitTimer(), []
        tasks = []
        for start, seconds in ((0, 30), (0, 10), (5, 10), (5, 2), (20, 7), (20, 30)):
            await asyncio.sleep(start - now())
            tasks.append(asyncio.create_task(wait_forever(timer, seconds, ends)))
        await asyncio.gather(*tasks)
        return ends

    assert run_in(VirtualLoop, run) == [
        (end, seconds, f"x://{seconds}") for end, seconds in ((7, 2), (10, 10), (15, 10), (27, 7), (30, 30), (50, 30))
    ]


def test_waits_that_end_in_time_never_expire():
    async def run():
        timer = WaitTimer()
        for number in range(100):
            deadline = make_deadline(timer, timeouts=Timeouts(connect=0.0, response=1.0 + number % 7))
            with deadline.limit_response("waiting"):
                await asyncio.sleep(0.9)
            await asyncio.sleep(3.0)  # for longer than the limit, outside of it
        return now()

    assert run_in(VirtualLoop, run) == pytest.approx(390.0)


def test_the_time_between_waits_for_bytes_does_not_count():
    async def run():
        deadline = make_deadline(WaitTimer())
        deadline.offset = 7
        for _ in range(2):
            with deadline.limit_next_bytes("fetching"):
                await asyncio.sleep(1.25)
            deadline.count_received(14)
            await asyncio.sleep(100.0)
        message = r"28 bytes in that time \(9 B/s\)"
        with pytest.raises(StoreTimeout, match=message) as caught, deadline.limit_next_bytes("fetching"):
            await asyncio.Event().wait()
        assert (caught.value.offset, *caught.value.details.values()) == (35, 3.0, "fetching")
        return now()

    assert run_in(VirtualLoop, run) == pytest.approx(203.0)


def test_a_task_that_was_cancelled_stays_cancelled():
    async def run():
        timer, ends = WaitTimer(), []
        task = asyncio.create_task(wait_forever(timer, 10, ends))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends == []

        async def cancel_with_the_timer():
            loop = asyncio.get_running_loop()
            task = asyncio.current_task()
            loop.call_at(now() + 10.0, task.cancel)
            await wait_forever(timer, 10, ends)

        task = asyncio.create_task(cancel_with_the_timer())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ends == []

    run_in(VirtualLoop, run)


def test_an_error_of_the_wait_is_not_replaced():
    async def run():
        deadline = make_deadline(WaitTimer())
        with pytest.raises(TimeoutError) as caught, deadline.limit_response("waiting"):
            raise TimeoutError("of somebody else")
        assert not isinstance(caught.value, StoreTimeout)
        task = asyncio.current_task()
        assert not task.cancelling()

    run_in(VirtualLoop, run)


def test_an_expired_wait_leaves_its_task_usable():
    async def run():
        ends = []
        await wait_forever(WaitTimer(), 2, ends)
        assert not asyncio.current_task().cancelling()
        await asyncio.sleep(1.0)
        return ends

    assert run_in(VirtualLoop, run) == [(2.0, 2, "x://2")]
