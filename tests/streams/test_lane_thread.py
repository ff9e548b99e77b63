"""Lanes of one process take turns at decoding."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streamloader.streams import lane_thread
from streamloader.streams.lane_thread import LaneThread, current_lane_thread, decode_in_lane_thread, in_lane_thread

DEADLINE_S = 60


def run_lanes(lanes, slots, use, monkeypatch, max_wait_s=DEADLINE_S):
    """Run `use(lane number)` in a task for each lane, and return their results in the order of lanes."""
    monkeypatch.setattr(lane_thread, "_MAX_TURN_WAIT_S", max_wait_s)

    async def lane(number, thread):
        current_lane_thread.set(thread)
        return await use(number)

    async def run():
        limit = None if slots is None else asyncio.Semaphore(slots)
        threads = [LaneThread(f"lane-{number}", limit) for number in range(lanes)]
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await asyncio.gather(*(lane(*pair) for pair in enumerate(threads)), return_exceptions=True)
        finally:
            for thread in threads:
                thread.stop(DEADLINE_S)

    return asyncio.run(run())


class Load:
    """Counts the calls that run at the same time."""

    def __init__(self):
        self.lock, self.running, self.largest = threading.Lock(), 0, 0
        self.order = []

    def work(self, lane, barrier=None):
        with self.lock:
            self.running += 1
            self.largest = max(self.largest, self.running)
            self.order.append(lane)
        if barrier is not None:
            barrier.wait(DEADLINE_S)
        with self.lock:
            self.running -= 1


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_as_many_lanes_decode_as_there_are_slots(monkeypatch, slots):
    load, barrier = Load(), threading.Barrier(slots)  # of which none gets through alone

    async def use(number):
        for _ in range(5):
            await decode_in_lane_thread(load.work, number, barrier)

    run_lanes(2 * slots, slots, use, monkeypatch)
    assert load.largest == slots


def test_lanes_take_turns_in_the_order_in_which_they_wait(monkeypatch):
    load = Load()

    async def use(number):
        for _ in range(4):
            await decode_in_lane_thread(load.work, number)

    run_lanes(3, 1, use, monkeypatch)
    assert load.order == [0, 1, 2] * 4


def test_errors_and_cancellations_free_the_slot(monkeypatch):
    load = Load()

    def fail():
        raise ValueError("broken")

    async def use(number):
        if number == 0:
            await decode_in_lane_thread(fail)
        elif number == 1:  # cancelled while it waits for lane 2, which waits for this cancellation
            task = asyncio.create_task(decode_in_lane_thread(load.work, 1))
            await asyncio.sleep(0)
            task.cancel()
        await decode_in_lane_thread(load.work, number)

    first, *others = run_lanes(3, 1, use, monkeypatch)
    assert isinstance(first, ValueError)
    assert others == [None, None]
    assert sorted(load.order) == [1, 2]


def test_a_lane_that_waits_too_long_decodes_without_a_slot(monkeypatch):
    released = threading.Event()

    async def use(number):
        if number == 0:  # as on a disk that does not respond
            return await decode_in_lane_thread(released.wait, DEADLINE_S)
        await decode_in_lane_thread(released.set)
        return "decoded"

    assert run_lanes(2, 1, use, monkeypatch, max_wait_s=0.01) == [True, "decoded"]


def test_other_blocking_calls_need_no_slot(monkeypatch):
    barrier = threading.Barrier(3)

    async def use(number):
        call = decode_in_lane_thread if number == 0 else in_lane_thread
        return await call(lambda: barrier.wait(DEADLINE_S) >= 0)

    assert run_lanes(3, 1, use, monkeypatch) == [True] * 3


def test_without_a_limit_all_lanes_decode(monkeypatch):
    barrier = threading.Barrier(4)

    async def use(number):
        return await decode_in_lane_thread(lambda: barrier.wait(DEADLINE_S) >= 0)

    assert run_lanes(4, None, use, monkeypatch) == [True] * 4
