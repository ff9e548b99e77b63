"""A worker that was taken over is killed and replaced like one that died, and the batches stay the same."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from clocks import count_only_stalls
from engine_data import Numbered, assert_same_batches, copies
from hostile_workers import (
    ATTACKS,
    EXPECTED_DAMAGE,
    KIND,
    SKIP,
    Once,
    Send,
    SendAtStart,
    Sequence,
    damage_memory,
    find_ring,
    log,
    parent_socket,
    punch_hole,
    raw,
    send_endless_records,
    wait_to_be_killed,
)
from polling import is_running
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.engine.messages import encode_message
from streamloader.engine.ring import Status

pytestmark = pytest.mark.chaos
STREAMS = 4


def loader_of(at_step=None, lengths=(9,) * STREAMS, workers=2, **more):
    arguments = {"shuffle": False, "timeout": 60.0, "prefetch_factor": 1} | more
    return sl.MultiStreamer(Numbered(lengths, at_step=at_step), 2, 3, num_workers=workers, **arguments)


def undisturbed(**more):
    with loader_of(workers=0, **more) as loader:
        return copies(loader)


@pytest.mark.parametrize("attack", only_fast(ATTACKS, ["more batches than were granted"]))
def test_a_worker_that_sends_an_invalid_message_is_replaced(attack, tmp_path, caplog):
    with loader_of(Once(0, 0, Send(ATTACKS[attack]), tmp_path / "sent")) as loader:
        got = copies(loader)
        assert loader.stats().restarts == 1
        assert loader.quarantined == ()
    assert_same_batches(got, undisturbed())
    (record,) = [record for record in caplog.records if "died" in record.getMessage()]
    assert record.name == "streamloader"
    text = record.getMessage()
    assert "of lanes [0] died: it sent an invalid message (" in text
    assert text.startswith("worker 0 (pid ")
    assert text.isprintable()


@pytest.mark.slow
def test_a_worker_that_ends_in_the_middle_of_a_message_is_replaced(tmp_path):
    part = log(message="x" * 1000)[:500]
    with loader_of(Once(0, 4, _SendAndExit(part), tmp_path / "sent")) as loader:
        got = copies(loader)
        assert loader.stats().restarts == 1
    assert_same_batches(got, undisturbed())


class _SendAndExit:
    def __init__(self, data):
        self.data = data

    def __call__(self):
        import os

        with parent_socket() as sock:
            sock.sendall(self.data)
        os._exit(0)


def test_an_invalid_message_right_before_the_exit_is_the_reason_of_the_death(tmp_path, caplog):
    with loader_of(Once(0, 4, _SendAndExit(raw(99, b"")), tmp_path / "sent")) as loader:
        got = copies(loader)
    assert_same_batches(got, undisturbed())
    assert "it sent an invalid message (its kind is 99)" in caplog.text


@pytest.mark.slow  # a stream that is skipped is found out in the same way
def test_a_stream_that_has_each_worker_send_nonsense_is_an_error():
    attack = Once(2, 4, Send(raw(99, b"")), None)
    with loader_of(attack) as loader, pytest.raises(sl.CorruptStream, match="crashes its worker at step 3") as caught:
        copies(loader)
    assert caught.value.stream == "s2"
    assert "its kind is 99" in caught.value.message


def test_a_stream_that_has_each_worker_send_nonsense_is_cut_off():
    attack = Once(2, 4, Send(raw(99, b"")), None)
    with loader_of(attack, on_error="skip") as loader:
        got = copies(loader)
        assert [(entry.key, entry.step) for entry in loader.quarantined] == [("s2", 3)]
    data = np.concatenate([batch["data"][0] for batch in got])
    assert data[: 9 + 3, :2].tolist() == [[0, step] for step in range(9)] + [[2, step] for step in range(3)]


def test_workers_that_send_nonsense_as_soon_as_they_start_end_the_loader():
    with loader_of(SendAtStart(raw(99, b"")), workers=1) as loader:
        with pytest.raises(sl.WorkerDied, match="It has died 5 times before") as caught:
            next(iter(loader))
        assert caught.value.details["worker"] == 0
        assert loader.stats().restarts == 5
    expected = pytest.raises(sl.WorkerDied, match=r"died: it sent an invalid message \(its kind is 99\)")
    with loader_of(SendAtStart(raw(99, b"")), workers=1, on_worker_death="raise") as loader, expected:
        next(iter(loader))


def stall_of(loader, pid):
    """Return the status of all lanes if a worker hangs in lane 0, and all other lanes rest."""
    status = loader._ring.status.copy()
    return status.tobytes() if is_running(pid) and np.flatnonzero(status[:, Status.BUSY]).tolist() == [0] else None


@pytest.mark.parametrize("attack", fast_first([send_endless_records, Send(log()[:50])]), ids=["endless", "incomplete"])
def test_records_without_end_have_the_deadline_of_a_stalled_stream(attack, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL, "streamloader")
    marker = tmp_path / "sent"
    with loader_of(Once(0, 4, attack, marker), timeout=0.5) as loader:
        iterator = iter(loader)
        (pid, _) = loader._supervisor.pids
        count_only_stalls(monkeypatch, lambda: stall_of(loader, pid) if marker.exists() else None)
        got = [{name: array.copy() for name, array in batch.numpy().items()} for batch in iterator]
        assert loader.stats().restarts == 1
    assert_same_batches(got, undisturbed())


# --- memory ----------------------------------------------------------------------------------------------------------


class _Damage:
    def __init__(self, path):
        self.path = path

    def __call__(self):
        import json
        from pathlib import Path

        Path(self.path).write_text(json.dumps(damage_memory()), "utf-8")


def test_no_worker_can_change_the_size_or_the_seals_of_the_ring(tmp_path):
    import json

    found = tmp_path / "found"
    with loader_of(Once(0, 4, _Damage(str(found)), tmp_path / "done")) as loader:
        got = copies(loader)
        assert loader.stats().restarts == 0
    assert json.loads(found.read_text("utf-8")) == EXPECTED_DAMAGE
    assert_same_batches(got, undisturbed())


def _punch_ring():
    import os
    import sys

    fd = int(sys.argv[3])
    punch_hole(fd, os.fstat(fd).st_size)


def test_holes_in_the_ring_are_zeros(tmp_path):
    with loader_of(Once(0, 4, _punch_ring, tmp_path / "done"), workers=1) as loader:
        got = copies(loader)
        state = loader.state_dict()
        stats = loader.stats()
    assert len(got) == len(undisturbed())
    assert_same_batches(got[-1:], undisturbed()[-1:])  # what was written later is as it should be
    assert state["batch"] == 0
    assert len(stats.lanes) == 2


def _overwrite(values):
    find_ring().status[:] = values


def _overwrite_status_and_hang():
    _overwrite([99, 77, -5, -1, -1, 1 << 62, 0, -1])
    wait_to_be_killed()


def test_a_status_table_with_nonsense_raises_no_other_error(monkeypatch):
    with loader_of(Once(0, 4, _overwrite_status_and_hang, None), timeout=0.5) as loader:
        iterator = iter(loader)
        status = loader._ring.status
        count_only_stalls(monkeypatch, lambda: b"it" if status[0, 0] == 99 else None)
        with pytest.raises(sl.LoaderTimeout, match=r"no stream yet, unknown at step"):
            list(iterator)
        lane = loader.stats().lanes[0]
        assert (lane.stage, lane.stream, lane.step) == ("unknown", None, -1)


def _overwrite_status_and_exit():
    import os

    _overwrite([0, 2, 3, 7, 0, 5, 1, 0])  # busy with a stream that no lane has at this position
    os._exit(1)


@pytest.mark.slow
def test_a_worker_cannot_have_another_stream_cut_off():
    attack = Once(0, 0, _overwrite_status_and_exit, None)
    with loader_of(attack, workers=1, on_error="skip") as loader:
        with pytest.raises(sl.WorkerDied, match="It has died 5 times before"):
            next(iter(loader))
        assert loader.quarantined == ()


class _WrongCursors:
    """Has the scheduler of this worker overwrite the cursor of its lane before it publishes a batch."""

    def __call__(self):
        from streamloader.engine.scheduler import Scheduler

        ring, send_done = find_ring(), Scheduler._send_done

        def overwrite(scheduler):
            for slot in range(ring.slots):
                ring.arrays(slot)["cursor"][0] = (0, 0, -1)  # what was before the first batch
            send_done(scheduler)

        Scheduler._send_done = overwrite


def test_a_worker_cannot_publish_a_cursor_that_goes_back(tmp_path, caplog):
    with loader_of(Once(0, 4, _WrongCursors(), tmp_path / "done")) as loader:
        got = copies(loader)
        assert loader.stats().restarts == 1
    assert_same_batches(got, undisturbed())
    assert "the cursor of lane 0 is (0, 0, -1)" in caplog.text


# --- log records and errors ------------------------------------------------------------------------------------------


def _log_strange_records():
    logger = logging.getLogger("streamloader.Ä\n")
    logger.warning("one\ntwo\x1b[31m\u202e %s", "\rthree")
    logging.getLogger("streamloader").log(38, "x" * 50_000)
    try:
        raise ValueError("four\nfive")
    except ValueError:
        logging.getLogger("streamloader").exception("six")


def test_records_of_workers_are_printable_lines_that_begin_with_the_worker(tmp_path, caplog):
    caplog.set_level(logging.INFO, "streamloader")
    with loader_of(Once(0, 4, _log_strange_records, tmp_path / "done")) as loader:
        got = copies(loader)
        assert loader.stats().restarts == 0
    assert_same_batches(got, undisturbed())
    records = [record for record in caplog.records if "worker 0: " in record.getMessage()]
    assert {record.name for record in records} == {"streamloader"}
    assert all(record.getMessage().startswith("worker 0: ") for record in records)
    assert all(record.getMessage().isprintable() and len(record.getMessage()) < 20_000 for record in records)
    texts = [record.getMessage().removeprefix("worker 0: ") for record in records]
    assert texts[:4] == ["one", "two\\x1b[31m\\u202e ", "three", "x" * 16_383 + "…"]
    assert texts[4:6] == ["six", "Traceback (most recent call last):"]
    assert texts[-2:] == ["ValueError: four", "five"]
    assert {record.levelno for record in records} == {logging.WARNING, logging.ERROR}


class _Raise:
    def __call__(self):
        raise sl.StreamFailed("bad \x1b]0;title\x07\nnext line", stream="s\x1b[0m" * 3000, details_of="x" * 100_000)


def test_errors_of_workers_are_printable_and_of_limited_size():
    with loader_of(Once(0, 4, _Raise(), None)) as loader, pytest.raises(sl.StreamFailed) as caught:
        copies(loader)
    error = caught.value
    assert error.message.startswith("bad \\x1b]0;title\\x07\nnext line")
    assert "\x1b" not in str(error)
    assert len(error.stream) < 50_000
    assert "details_of" not in error.details


def test_a_skipped_stream_has_a_printable_reason(tmp_path):
    attack = Once(0, 4, _Raise(), None)
    with loader_of(attack, on_error="skip") as loader:
        copies(loader)
        (entry,) = loader.quarantined
    assert entry.reason.isprintable()
    assert "next line" in entry.reason


def test_an_env_whose_infos_are_too_large_is_named():
    class Env:
        def __init__(self, infos):
            self.infos = infos

        def __call__(self, arrays):
            arrays["x"][:] = 1
            return self.infos

    nested = []
    for _ in range(80):
        nested = [nested]
    for infos, message in ((["x" * (5 << 20)], "may have 4,194,304 a batch"), (nested, "nested more than 64 levels")):
        loader = sl.MultiStreamer.from_env(lambda infos=infos: Env(infos), {"x": ()}, 2, num_workers=1)
        with loader, pytest.raises(sl.ConfigError, match=message):
            next(iter(loader))


@pytest.mark.slow
def test_several_attacks_in_a_row_are_each_a_death(tmp_path):
    attacks = [
        Once(stream, step, Send(data), tmp_path / f"{stream}-{step}")
        for stream, step, data in (
            (0, 1, ATTACKS["noise"]),
            (1, 5, encode_message(KIND.SKIPPED, lane=1, payload=SKIP)),
            (2, 7, ATTACKS["JSON that is nested deeply"]),
        )
    ]
    with loader_of(Sequence(*attacks)) as loader:
        got = copies(loader)
        assert loader.stats().restarts == 3
    assert_same_batches(got, undisturbed())
