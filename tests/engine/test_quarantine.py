"""Which stream is blamed for the death of a worker, and what is remembered of it."""

from __future__ import annotations

import numpy as np

from streamloader.engine.quarantine import Quarantine, Quarantined, Strikes
from streamloader.engine.ring import Status
from streamloader.engine.workload import Limit


def status(*rows):
    """Lines of (seq, stream, step, epoch, position, busy)."""
    table = np.zeros((len(rows), Status.COLUMNS), np.int64)
    columns = [Status.SEQ, Status.STREAM, Status.STEP, Status.EPOCH, Status.POSITION, Status.BUSY]
    for row, line in enumerate(rows):
        table[row, columns] = line
    return table


IDLE, BUSY = (7, 3, 20, 0, 1, 0), (7, 5, 40, 0, 2, 1)


def test_a_second_death_at_the_same_row_of_the_same_stream_is_blamed():
    strikes = Strikes()
    assert strikes.count(status(IDLE, BUSY), [0, 1]) == []
    assert strikes.suspects([0, 1], 7) == [(1, 7)]
    (spot,) = strikes.count(status(IDLE, BUSY), [0, 1])
    assert (spot.row, spot.stream, spot.epoch, spot.position, spot.step) == (1, 5, 0, 2, 40)
    assert strikes.suspects([0, 1], 7) == []
    assert strikes.count(status(IDLE, BUSY), [0, 1]) == []  # counted from the beginning again


def test_idle_rows_and_other_workers_are_never_blamed():
    strikes = Strikes()
    for _ in range(5):
        assert strikes.count(status(IDLE, BUSY), [0]) == []
    assert strikes.suspects([0, 1], 0) == []


def test_progress_in_between_begins_the_count_anew():
    strikes = Strikes()
    strikes.count(status(BUSY), [0])
    assert strikes.count(status((8, 5, 48, 0, 2, 1)), [0]) == []  # the next row
    assert strikes.count(status((8, 6, 0, 0, 3, 1)), [0]) == []  # the same row, another stream
    assert strikes.count(status((8, 6, 0, 1, 3, 1)), [0]) == []  # another epoch
    assert len(strikes.count(status((8, 6, 0, 1, 3, 1)), [0])) == 1


def test_how_far_the_stream_came_in_its_row_does_not_matter():
    strikes = Strikes()
    strikes.count(status(BUSY), [0])
    (spot,) = strikes.count(status((7, 5, 41, 0, 2, 1)), [0])
    assert spot.step == 41


def test_rows_that_are_past_their_grant_are_suspected_no_more():
    strikes = Strikes()
    strikes.count(status(BUSY, (9, 1, 0, 0, 0, 1)), [0, 1])
    assert strikes.suspects([0, 1], 8) == [(1, 9)]
    strikes.forget_from(9)
    assert strikes.suspects([0, 1], 0) == [(0, 7)]


ENTRY = Quarantined(stream=5, key="e", epoch=1, lane=12, position=2, step=40, reason="it failed")


def test_entries_become_limits_of_rows():
    quarantine = Quarantine(10)
    assert quarantine.add(ENTRY)
    assert not quarantine.add(ENTRY)
    assert quarantine.entries == (ENTRY,)
    assert quarantine.limits() == [Limit(2, 1, 2, 40)]
    quarantine.condemn(Limit(0, 1, 7, 3, {"type": "CorruptStream"}))
    assert quarantine.entries == (ENTRY,)
    assert quarantine.limits() == [Limit(2, 1, 2, 40), Limit(0, 1, 7, 3, {"type": "CorruptStream"})]
    quarantine.forget_before(1)
    assert len(quarantine.limits()) == 2
    quarantine.forget_before(2)
    assert (quarantine.entries, quarantine.limits()) == ((), [])


def test_a_stream_that_does_harm_although_it_ends_early_is_not_opened_any_more():
    quarantine = Quarantine(10)
    assert quarantine.leave_out(ENTRY)
    assert quarantine.limits() == [Limit(2, 1, 2, 40)]
    assert not quarantine.leave_out(ENTRY)
    assert quarantine.limits() == [Limit(2, 1, 2, 0)]


def test_a_loaded_state_replaces_everything():
    quarantine = Quarantine(0)
    quarantine.add(ENTRY)
    quarantine.condemn(Limit(0, 1, 7, 3, {}))
    quarantine.replace([])
    assert quarantine.limits() == []
