"""Slots are released without Python code running where the last reference is dropped."""

from __future__ import annotations

import gc
import queue
import sys
import threading

from streamloader.engine.slot_release import SlotReclaimer, SlotRef, drain_released_slots


class Lease:
    pass


def watch(lease, released, slot):
    reference = SlotRef(lease, released.put)
    reference.slot = slot
    return reference


def test_a_slot_is_released_when_its_lease_is_dropped_and_the_reference_is_kept():
    released = queue.SimpleQueue()
    leases = [Lease(), Lease(), Lease()]
    kept = [watch(lease, released, slot) for slot, lease in enumerate(leases[:2])]
    watch(leases[2], released, 2)  # is not kept
    assert drain_released_slots(released) == []
    del leases[0]
    assert drain_released_slots(released) == [0]
    leases.clear()
    assert drain_released_slots(released) == [1]
    assert [reference.slot for reference in kept] == [0, 1]


def test_no_python_function_runs_where_a_lease_is_dropped():
    released = queue.SimpleQueue()
    lease = Lease()
    kept = watch(lease, released, 5)
    called = []
    sys.setprofile(lambda frame, event, argument: called.append(event))
    del lease
    sys.setprofile(None)
    assert [event for event in called if event == "call"] == []
    assert drain_released_slots(released) == [kept.slot]


def test_a_lease_in_a_cycle_is_released_by_the_collector():
    released = queue.SimpleQueue()
    lease = Lease()
    lease.itself = lease
    kept = watch(lease, released, 1)
    del lease
    gc.collect()
    assert drain_released_slots(released) == [kept.slot]


def test_the_reclaimer_reports_slots_at_once():
    released, taken = queue.SimpleQueue(), queue.SimpleQueue()
    reclaimer = SlotReclaimer(released, taken.put)
    leases = [Lease() for _ in range(50)]
    kept = [watch(lease, released, slot) for slot, lease in enumerate(leases)]
    while leases:
        leases.pop()
    assert [taken.get(timeout=60) for _ in kept] == list(range(49, -1, -1))
    reclaimer.stop()
    assert not any(thread.name == "streamloader-slot-release" for thread in threading.enumerate())


def test_draining_leaves_the_stop_signal_in_the_queue():
    released = queue.SimpleQueue()
    released.put(None)
    assert drain_released_slots(released) == []
    assert released.get_nowait() is None
