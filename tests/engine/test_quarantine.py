"""Which stream is blamed for the crash of a worker, and which cutoffs follow."""

from __future__ import annotations

import numpy as np

from streamloader.engine.quarantine import CrashTracker, FailurePoint, Quarantine, Quarantined
from streamloader.engine.ring import Status
from streamloader.engine.workload import StreamCutoff


def status(*rows):
    """Lines of (seq, stream, step, epoch, position, busy)."""
    table = np.zeros((len(rows), Status.COLUMNS), np.int64)
    columns = [Status.SEQ, Status.STREAM, Status.STEP, Status.EPOCH, Status.POSITION, Status.BUSY]
    for row, line in enumerate(rows):
        table[row, columns] = line
    return table


IDLE, BUSY = (7, 3, 20, 0, 1, 0), (7, 5, 40, 0, 2, 1)


def points(table, rows):
    """Points of the rows that are being filled."""
    return [FailurePoint.read(row, table[row].tolist()) for row in rows if table[row, Status.BUSY]]


def test_a_second_crash_at_the_same_row_of_the_same_stream_is_blamed():
    crashes = CrashTracker()
    assert crashes.record_crash(points(status(IDLE, BUSY), [0, 1])) == []
    assert crashes.suspects([0, 1], 7) == [(1, 7)]
    (point,) = crashes.record_crash(points(status(IDLE, BUSY), [0, 1]))
    assert (point.row, point.stream, point.epoch, point.position, point.step) == (1, 5, 0, 2, 40)
    assert crashes.suspects([0, 1], 7) == []
    assert crashes.record_crash(points(status(IDLE, BUSY), [0, 1])) == []  # counted from the beginning again


def test_idle_rows_and_other_workers_are_never_blamed():
    crashes = CrashTracker()
    for _ in range(5):
        assert crashes.record_crash(points(status(IDLE, BUSY), [0])) == []
    assert crashes.suspects([0, 1], 0) == []


def test_progress_in_between_restarts_the_count():
    crashes = CrashTracker()
    crashes.record_crash(points(status(BUSY), [0]))
    assert crashes.record_crash(points(status((8, 5, 48, 0, 2, 1)), [0])) == []  # the next row
    assert crashes.record_crash(points(status((8, 6, 0, 0, 3, 1)), [0])) == []  # the same row, another stream
    assert crashes.record_crash(points(status((8, 6, 0, 1, 3, 1)), [0])) == []  # another epoch
    assert len(crashes.record_crash(points(status((8, 6, 0, 1, 3, 1)), [0]))) == 1


def test_how_far_the_stream_came_in_its_row_does_not_matter():
    crashes = CrashTracker()
    crashes.record_crash(points(status(BUSY), [0]))
    (point,) = crashes.record_crash(points(status((7, 5, 41, 0, 2, 1)), [0]))
    assert point.step == 41


def test_rows_that_have_filled_their_grant_are_no_suspects():
    crashes = CrashTracker()
    crashes.record_crash(points(status(BUSY, (9, 1, 0, 0, 0, 1)), [0, 1]))
    assert crashes.suspects([0, 1], 8) == [(1, 9)]
    crashes.forget_from(9)
    assert crashes.suspects([0, 1], 0) == [(0, 7)]


def test_stalls_are_counted_apart_from_crashes():
    crashes = CrashTracker()
    at, later = points(status(BUSY), [0]), points(status((7, 5, 41, 0, 2, 1)), [0])
    for count in range(3):
        assert crashes.count_stalls(later) == count
        crashes.record_stall(at)
    assert crashes.suspects([0], 7) == [(0, 7)]
    assert crashes.record_crash(at) == []
    assert crashes.count_stalls(points(status((8, 5, 48, 0, 2, 1)), [0])) == 0
    assert crashes.count_stalls([]) == 0
    crashes.forget_from(7)
    assert crashes.count_stalls(at) == 0
    assert crashes.suspects([0], 0) == []


ENTRY = Quarantined(stream=5, key="e", epoch=1, lane=12, position=2, step=40, reason="it failed")


def test_entries_become_cutoffs_of_rows():
    quarantine = Quarantine(10)
    assert quarantine.add(ENTRY)
    assert not quarantine.add(ENTRY)
    assert quarantine.entries == (ENTRY,)
    assert quarantine.cutoffs() == [StreamCutoff(2, 1, 2, 40)]
    quarantine.fail_at(StreamCutoff(0, 1, 7, 3, {"type": "CorruptStream"}))
    assert quarantine.entries == (ENTRY,)
    assert quarantine.cutoffs() == [StreamCutoff(2, 1, 2, 40), StreamCutoff(0, 1, 7, 3, {"type": "CorruptStream"})]
    quarantine.forget_before(1)
    assert len(quarantine.cutoffs()) == 2
    quarantine.forget_before(2)
    assert (quarantine.entries, quarantine.cutoffs()) == ((), [])


def test_a_stream_that_crashes_workers_despite_its_cutoff_is_not_opened_again():
    quarantine = Quarantine(10)
    assert quarantine.add_crashed(ENTRY)
    assert quarantine.cutoffs() == [StreamCutoff(2, 1, 2, 40)]
    assert not quarantine.add_crashed(ENTRY)
    assert quarantine.cutoffs() == [StreamCutoff(2, 1, 2, 0)]


def test_a_loaded_state_replaces_everything():
    quarantine = Quarantine(0)
    quarantine.add(ENTRY)
    quarantine.fail_at(StreamCutoff(0, 1, 7, 3, {}))
    quarantine.replace([])
    assert quarantine.cutoffs() == []
