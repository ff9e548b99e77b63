"""Slots come back without Python code running where they are let go of."""

from __future__ import annotations

import gc
import queue
import sys
import threading

from streamloader.engine.slot_release import Returned, Returner, drained


class Thing:
    pass


def test_a_slot_comes_back_when_its_lease_goes_and_the_reference_is_kept():
    back = queue.SimpleQueue()
    things = [Thing(), Thing(), Thing()]
    kept = [Returned(thing, back, slot) for slot, thing in enumerate(things[:2])]
    Returned(things[2], back, 2)  # is not kept
    assert drained(back) == []
    del things[0]
    assert drained(back) == [0]
    things.clear()
    assert drained(back) == [1]
    assert [reference.slot for reference in kept] == [0, 1]


def test_no_python_function_runs_where_a_lease_goes():
    back = queue.SimpleQueue()
    thing = Thing()
    kept = Returned(thing, back, 5)
    called = []
    sys.setprofile(lambda frame, event, argument: called.append(event))
    del thing
    sys.setprofile(None)
    assert [event for event in called if event == "call"] == []
    assert drained(back) == [kept.slot]


def test_a_lease_in_a_cycle_comes_back_from_the_collector():
    back = queue.SimpleQueue()
    thing = Thing()
    thing.itself = thing
    kept = Returned(thing, back, 1)
    del thing
    gc.collect()
    assert drained(back) == [kept.slot]


def test_a_thread_takes_slots_back_at_once():
    back, taken = queue.SimpleQueue(), queue.SimpleQueue()
    returner = Returner(back, taken.put)
    things = [Thing() for _ in range(50)]
    kept = [Returned(thing, back, slot) for slot, thing in enumerate(things)]
    while things:
        things.pop()
    assert [taken.get(timeout=20) for _ in kept] == list(range(49, -1, -1))
    returner.stop()
    assert not any(thread.name == "streamloader-returns" for thread in threading.enumerate())


def test_what_ends_the_thread_is_left_to_it():
    back = queue.SimpleQueue()
    back.put(None)
    assert drained(back) == []
    assert back.get_nowait() is None
