"""Slots are released without Python code running where the last reference is dropped."""

from __future__ import annotations

import gc
import queue
import sys
import threading

import pytest

from streamloader.engine.slot_release import ReleaseQueue, SlotReclaimer


class Lease:
    pass


@pytest.fixture
def only_this_thread_runs():
    """While it does not wait, no other thread gets the interpreter from it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(interval)


def test_a_slot_is_released_when_its_lease_is_dropped():
    released = ReleaseQueue()
    leases = [Lease(), Lease(), Lease()]
    for slot, lease in enumerate(leases):
        released.watch(lease, slot)
    del lease
    assert not released
    assert released.drain() == []
    del leases[0]
    assert len(released) == 1
    assert released.drain() == [0]
    leases.clear()
    assert sorted(released.drain()) == [1, 2]
    assert not released


def test_a_slot_is_leased_and_released_again():
    released = ReleaseQueue()
    for _ in range(3):
        lease = Lease()
        released.watch(lease, 7)
        assert not released
        del lease
        assert released.drain() == [7]


def test_no_python_function_runs_where_a_lease_is_dropped():
    released, announced = ReleaseQueue(), queue.SimpleQueue()
    released.announce_to(announced.put)
    lease = Lease()
    released.watch(lease, 5)
    called = []
    sys.setprofile(lambda frame, event, argument: called.append(event))
    del lease
    sys.setprofile(None)
    assert [event for event in called if event == "call"] == []
    assert announced.qsize() == 1
    assert released.drain() == [5]


def test_a_lease_in_a_cycle_is_released_by_the_collector():
    released = ReleaseQueue()
    lease = Lease()
    lease.itself = lease
    released.watch(lease, 1)
    del lease
    gc.collect()
    assert released.drain() == [1]


def test_a_slot_is_in_the_queue_before_it_is_announced():
    released, seen = ReleaseQueue(), []
    released.announce_to(lambda _: seen.append(len(released)))
    lease = Lease()
    released.watch(lease, 3)
    del lease
    assert seen == [1]


def test_the_reclaimer_has_slots_drained_at_once():
    released, taken = ReleaseQueue(), queue.SimpleQueue()
    reclaimer = SlotReclaimer(released, lambda: [taken.put(slot) for slot in released.drain()])
    leases = [Lease() for _ in range(50)]
    for slot, lease in enumerate(leases):
        released.watch(lease, slot)
    del lease
    while leases:
        leases.pop()
    assert [taken.get(timeout=60) for _ in range(50)] == list(range(49, -1, -1))
    reclaimer.stop()
    assert not any(thread.name == "streamloader-slot-release" for thread in threading.enumerate())


def test_no_slot_is_underway_to_the_thread_that_waits(only_this_thread_runs):
    released, drained = ReleaseQueue(), queue.SimpleQueue()
    reclaimer = SlotReclaimer(released, lambda: [drained.put(slot) for slot in released.drain()])
    for slot in range(50):
        lease = Lease()
        released.watch(lease, slot)
        del lease
        assert released.drain() == [slot]  # the thread was woken up, and has not run yet
    reclaimer.stop()
    assert drained.empty()
