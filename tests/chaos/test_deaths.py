"""What a loader does when a worker dies, moment by moment, and when a stream kills every worker that plays it."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chaos.data import (
    CAUSES,
    CLOSING,
    DECODING,
    FORMS,
    HALFWAY,
    MARKING,
    OPENING,
    SEEKING,
    STEP_FIELDS,
    UNPUBLISHED,
    WRITTEN,
    Deadly,
    Fuse,
    make_steps,
)
from chaos.killer import IDLE, IMPORTING, RESTARTING, Kill, Killer
from clocks import count_only_stalls
from engine_data import assert_fails_again, assert_same_batches, copies
from polling import is_running
from resume_data import arrays, plain, take
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.engine.ring import Status

pytestmark = pytest.mark.chaos
LENGTHS = (25, 30, 21, 17, 28, 19, 33, 12)  # of a stream of each form, twice


def streams():
    items = [(form, length) for form, length in zip(FORMS * 2, LENGTHS, strict=True)]
    return sl.IterStreams(items, make_steps, fields=STEP_FIELDS, lengths=list(LENGTHS))


def loader_of(fuses=(), workers=0, *, pause=0.0, **more):
    arguments = {"shuffle": False, "timeout": 60.0, "prefetch_factor": 1, "seed": 5} | more
    return sl.MultiStreamer(
        Deadly(streams(), list(fuses), chunk=3, pause=pause), 4, 4, num_workers=workers, **arguments
    )


def played(loader, epochs=1):
    return [batch for _ in range(epochs) for batch in copies(loader)]


def undisturbed(epochs=1):
    with loader_of() as loader:
        return played(loader, epochs)


# --- every moment, every cause ---------------------------------------------------------------------------------------


MOMENTS = [OPENING, DECODING, HALFWAY, WRITTEN, MARKING, UNPUBLISHED, CLOSING]


def fuse_of(epoch, moment, cause, folder):
    stream, step = {
        OPENING: ("5", 0),
        DECODING: ("1", 9),
        HALFWAY: ("2", 10),
        WRITTEN: ("3", 11),
        MARKING: ("0", 10),
        UNPUBLISHED: ("1", 15),
        CLOSING: ("3", 0),
    }[moment]
    return Fuse(epoch, stream, step, moment, cause, str(folder / f"fuse-{epoch}"))


@pytest.mark.parametrize(
    "deaths",
    [
        pytest.param(list(zip(MOMENTS, itertools.cycle(CAUSES))), id="every moment"),  # with the causes in turn
        *(pytest.param([(moment, cause) for cause in CAUSES], id=moment, marks=pytest.mark.slow) for moment in MOMENTS),
    ],
)
def test_a_stream_that_ends_its_worker_once(deaths, tmp_path):
    """Each of these deaths is in an epoch of its own."""
    fuses = [fuse_of(epoch, moment, cause, tmp_path) for epoch, (moment, cause) in enumerate(deaths)]
    with loader_of(fuses, 2) as loader:
        got = played(loader, len(fuses))
        assert loader.stats().restarts == len(fuses)
        assert loader.quarantined == ()
    assert all(fuse.burnt for fuse in fuses)
    assert_same_batches(got, undisturbed(len(fuses)))


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """These tests want their very moments, however busy the machine is."""
    monkeypatch.setattr("chaos.killer.AIM_TIMEOUT_S", 60.0)
    monkeypatch.setattr("chaos.killer.KILL_TIMEOUT_S", 120.0)


def killed(loader, *kills):
    """Kill workers between two batches, and wait until all were replaced; return (moment, cause) of each."""
    killer = Killer(loader)
    killer.begin([Kill(aim, worker, 0.0, cause, stop=True) for aim, worker, cause in kills])
    killer.join()
    killer.wait_until_noticed([kill.pid for kill in killer.done])
    return [(kill.moment, kill.cause) for kill in killer.done]


@pytest.mark.parametrize("cause", fast_first(["SIGKILL", "SIGSEGV", "SIGABRT"]))
def test_workers_that_are_killed_while_they_import_idle_and_restart(cause, monkeypatch):
    monkeypatch.setattr("chaos.killer.AIM_TIMEOUT_S", 5.0)  # a moment that has passed does not come again
    moments = [IMPORTING, IMPORTING, IDLE, RESTARTING, IDLE]
    for _ in range(8):  # a machine with other work may be past a moment before it can be seen
        with loader_of((), 2) as loader:
            iterator = iter(loader)
            done = killed(loader, (IMPORTING, 0, cause), (IMPORTING, 1, cause))
            got = take(iterator, 3)
            done += killed(loader, (IDLE, 1, cause), (RESTARTING, 1, cause), (IDLE, 0, cause))
            got += take(iterator)
            assert loader.stats().restarts == 5
            assert loader.quarantined == ()
        assert_same_batches(got, undisturbed())
        if done == [(moment, cause) for moment in moments]:
            return
    pytest.fail(f"the moments were never met in this order; at last {done}")


@pytest.mark.parametrize("rounds", fast_first([1, 5]))
def test_restarts_leave_nothing_while_the_loader_lives(rounds):
    def held():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with loader_of((), 2, tail="cycle") as loader:
        iterator = iter(loader)
        take(iterator, 1)
        before = held()
        for _ in range(rounds):
            assert len(killed(loader, (IDLE, 0, "SIGKILL"), (IDLE, 1, "SIGKILL"))) == 2
            take(iterator, 2)
        assert loader.stats().restarts == 2 * rounds
        assert held() == before


def test_a_worker_that_dies_again_where_it_takes_up_a_stream(tmp_path):
    whole = undisturbed()
    rows = [batch["stream"][2:] for batch in whole[:5]]  # of worker 1; no more than these are made ahead
    stream = next(row[0] for row in np.concatenate(rows, axis=1).tolist() if len(set(row)) == 1)
    fuse = Fuse(0, str(stream), 0, SEEKING, "SIGKILL", str(tmp_path / "fuse"))
    with loader_of([fuse], 2) as loader:
        iterator = iter(loader)
        got = take(iterator, 1)
        assert killed(loader, (IDLE, 1, "SIGKILL")) == [(IDLE, "SIGKILL")]
        got += take(iterator)
        assert loader.stats().restarts == 2
        assert loader.quarantined == ()
    assert_same_batches(got, whole)


@pytest.mark.parametrize("cause", fast_first(CAUSES))
def test_a_worker_that_dies_while_the_loader_closes(cause, tmp_path):
    fuses = [Fuse(0, key, 0, CLOSING, cause, str(tmp_path / key)) for key in "0123"]
    loader = loader_of(fuses, 2)
    next(iter(loader))
    pids = loader._supervisor.pids
    loader.close()
    assert any(fuse.burnt for fuse in fuses)
    assert loader.stats().restarts == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("rounds", fast_first([1, 5]))
def test_workers_that_are_killed_just_before_the_loader_closes(rounds):
    for _ in range(rounds):
        with loader_of((), 2) as loader:
            next(iter(loader))
            pids = loader._supervisor.pids
            os.kill(pids[0], signal.SIGKILL)
        assert not any(os.path.exists(f"/proc/{pid}") for pid in {*pids, *loader._supervisor.pids})


def test_a_death_is_one_error_where_nothing_is_to_be_restarted(tmp_path):
    fuse = Fuse(0, "2", 9, DECODING, "SIGABRT", str(tmp_path / "fuse"))
    with loader_of([fuse], 2, on_worker_death="raise") as loader:
        iterator, got = iter(loader), []
        _, second = loader._supervisor.pids
        with pytest.raises(sl.WorkerDied, match="killed by SIGABRT") as caught:
            got.extend(arrays(batch) for batch in iterator)
        assert_fails_again(iterator, caught.value)
    details = caught.value.details
    assert (details["pid"], details["signal"], details["lanes"]) == (second, signal.SIGABRT, [2, 3])


# --- streams that kill every worker ----------------------------------------------------------------------------------

KILLERS = {
    "in its first step": Fuse(0, "1", 0, DECODING, "SIGSEGV"),
    "in the middle": Fuse(0, "2", 13, DECODING, "SIGKILL"),
    "opening": Fuse(0, "6", 0, OPENING, "exit 3"),
    "half way": Fuse(0, "3", 9, HALFWAY, "exit 0"),
    "in its last row": Fuse(0, "0", 24, WRITTEN, "SIGABRT"),
}


def failing(fuses):
    """The same, but streams fail where they would end their worker."""
    return [replace(fuse, cause="fails") for fuse in fuses]


def places(loader):
    return [
        (entry.epoch, entry.lane, entry.position, entry.stream, entry.key, entry.step) for entry in loader.quarantined
    ]


@pytest.mark.parametrize("how", only_fast(KILLERS, fast=["in the middle", "opening"]))
def test_a_stream_that_kills_every_worker_is_left_as_one_that_fails(how, caplog):
    fuses = [KILLERS[how]]
    with loader_of(failing(fuses), on_error="skip") as loader:
        expected, left = played(loader, 2), places(loader)
    assert [entry[4] for entry in left] == [fuses[0].key]
    caplog.clear()
    with loader_of(fuses, 2, on_error="skip") as loader:
        assert_same_batches(played(loader, 2), expected)
        assert places(loader) == left
        assert loader.stats().restarts == 2
    (message,) = [
        record.getMessage() for record in caplog.records if "skipping the rest of stream" in record.getMessage()
    ]
    assert f"stream {fuses[0].key!r} from step {left[0][-1]} on" in message


@pytest.mark.parametrize(
    ("hows", "workers"),
    fast_first([(("half way", "in its last row"), 2), *((tuple(KILLERS), workers) for workers in (2, 1, 4))]),
    ids=lambda value: len(value) if isinstance(value, tuple) else value,
)
def test_several_streams_that_kill_every_worker(hows, workers):
    fuses = [KILLERS[how] for how in hows]
    with loader_of(failing(fuses), on_error="skip") as loader:
        expected, left = played(loader), sorted(places(loader))
    assert len(left) == len(fuses)
    with loader_of(fuses, workers, on_error="skip") as loader:
        assert_same_batches(played(loader), expected)
        assert sorted(places(loader)) == left


def test_streams_that_are_read_beside_one_that_kills_its_worker_are_not_blamed():
    fuse = KILLERS["in the middle"]
    with loader_of(failing([fuse]), on_error="skip") as loader:
        expected, left = played(loader), places(loader)
    with loader_of([fuse], 1, on_error="skip", pause=0.01) as loader:  # so that all lanes read when it dies
        assert_same_batches(played(loader), expected)
        assert places(loader) == left


@pytest.mark.parametrize("how", fast_first(["in its first step", "in the middle", "opening"]))
def test_a_stream_that_kills_every_worker_is_an_error_at_its_batch(how):
    fuse = KILLERS[how]
    got = []
    with loader_of(failing([fuse])) as loader, pytest.raises(sl.StreamFailed) as failed:
        got.extend(arrays(batch) for batch in loader)
    before, got = got, []
    with loader_of([fuse], 2) as loader:
        with pytest.raises(sl.CorruptStream, match=r"crashes its worker at step \d+, every time") as caught:
            got.extend(arrays(batch) for batch in loader)
        assert loader.quarantined == ()
    assert_same_batches(got, before)
    assert caught.value.stream == failed.value.stream == fuse.key
    assert caught.value.details["lane"] == failed.value.details["lane"]
    assert caught.value.offset == caught.value.details["step"] == failed.value.details["step"]


@pytest.mark.parametrize("workers", fast_first([2, 1]))
def test_a_stream_that_kills_its_worker_when_it_is_closed_is_left_too(workers):
    """It is blamed at its end, then left wholly, since it ends there again; the other lanes lose nothing."""
    with loader_of([Fuse(0, "1", 0, CLOSING, "SIGKILL")], workers, on_error="skip") as loader:
        got = played(loader, 2)
        assert {entry.key for entry in loader.quarantined} == {"1"}
    whole = undisturbed(2)
    for one, other in zip(got, whole, strict=False):
        for name, array in one.items():
            np.testing.assert_array_equal(array[[0, 2, 3]], other[name][[0, 2, 3]])


@pytest.mark.parametrize("saved_after", fast_first([[10], [4, 6, 12]]), ids=["both found", "any time"])
def test_a_state_remembers_what_was_left(saved_after):
    fuses = [KILLERS["in the middle"], KILLERS["in its first step"]]
    with loader_of(fuses, 2, on_error="skip") as loader:
        iterator = iter(loader)
        got, states = [], []
        for batch in iterator:
            got.append(arrays(batch))
            states.append((plain(loader.state_dict()), loader.quarantined))
        assert len(loader.quarantined) == len(states[9][1]) == 2
    for batches in saved_after:
        state, left = states[batches - 1]
        for fuses_now, workers in (([], 0), (fuses, 2)):
            if len(left) < 2 and not fuses_now:
                continue  # what was not found out by then is played
            with loader_of(fuses_now, workers, on_error="skip") as loader:
                loader.load_state_dict(state)
                assert loader.quarantined == left
                assert_same_batches(copies(loader), got[batches:])


# --- streams that do not come back -----------------------------------------------------------------------------------


def get_stall(loader, fuse):
    """Return the status of all lanes if a worker hangs at the fuse, and it is the one that all others wait for."""
    log = Path(fuse.log)
    pids = log.read_text().split() if log.exists() else []
    if not pids or int(pids[-1]) not in loader._supervisor.pids or not is_running(int(pids[-1])):
        return None
    worker = loader._supervisor._pool.workers[loader._supervisor.pids.index(int(pids[-1]))]
    status = loader._ring.status.copy()
    others = np.delete(status, list(worker.lanes), axis=0)
    is_awaited = others[:, Status.SEQ].min() > status[list(worker.lanes), Status.SEQ].min()
    # Where the event loop runs on, the worker's other lane fills its rows first.
    is_last = fuse.cause != "spins" or status[list(worker.lanes), Status.BUSY].sum() == 1
    return status.tobytes() if is_awaited and is_last else None


SPINS, BLOCKS = Fuse(0, "1", 7, DECODING, "spins"), Fuse(0, "6", 0, OPENING, "blocks")


@pytest.mark.parametrize("fuse", [pytest.param(SPINS, marks=pytest.mark.slow), BLOCKS], ids=["busy", "blocking"])
def test_a_stream_that_does_not_come_back_is_named_and_not_called_corrupt(fuse, tmp_path, monkeypatch):
    fuse = replace(fuse, log=str(tmp_path / "log"))
    with loader_of([fuse], 2, timeout=0.3) as loader:
        count_only_stalls(monkeypatch, lambda: get_stall(loader, fuse))
        iterator = iter(loader)
        for _ in range(2):  # a worker that is slow may need the time: it is not killed for ever
            with pytest.raises(sl.LoaderTimeout, match="workers killed there before: 2") as caught:
                list(iterator)
            assert caught.value.stream == fuse.key
        assert loader.stats().restarts == 2
        assert (loader.quarantined, loader.timed_out) == ((), ())


@pytest.mark.parametrize("fuse", [pytest.param(SPINS, marks=pytest.mark.slow), BLOCKS], ids=["busy", "blocking"])
def test_a_stream_that_does_not_come_back_is_left_out_as_timed_out(fuse, tmp_path, monkeypatch):
    with loader_of(failing([fuse]), on_error="skip") as loader:
        expected, (left,) = played(loader), loader.quarantined
    fuse = replace(fuse, log=str(tmp_path / "log"))
    with loader_of([fuse], 2, on_error="skip", timeout=0.3) as loader:
        count_only_stalls(monkeypatch, lambda: get_stall(loader, fuse))
        assert_same_batches(played(loader), expected)
        (entry,) = loader.timed_out
        assert replace(entry, reason="", timed_out=False) == replace(left, reason="")
        assert "stands still at step" in entry.reason
        assert (loader.quarantined, loader.stats().timed_out, loader.stats().restarts) == ((), 1, 3)
        state = plain(loader.state_dict())
        loader.load_state_dict(state)
        assert plain(loader.state_dict()) == state


def test_a_worker_that_stands_still_once_is_replaced_at_the_deadline(tmp_path, monkeypatch):
    fuse = Fuse(0, "1", 7, DECODING, "stops", str(tmp_path / "fuse"), str(tmp_path / "log"))
    with loader_of([fuse], 2, timeout=0.5) as loader:
        count_only_stalls(monkeypatch, lambda: get_stall(loader, fuse))
        assert_same_batches(played(loader), undisturbed())
        assert loader.stats().restarts == 1
        assert loader.quarantined == ()


@pytest.mark.parametrize("on_error", [pytest.param("raise", marks=pytest.mark.slow), "skip"])
def test_a_stream_that_does_not_come_back_twice_loses_no_step(on_error, tmp_path, monkeypatch):
    fuse = Fuse(0, "1", 7, DECODING, "blocks twice", log=str(tmp_path / "log"))
    with loader_of([fuse], 2, timeout=0.3, on_error=on_error) as loader:
        count_only_stalls(monkeypatch, lambda: get_stall(loader, fuse))
        assert_same_batches(played(loader), undisturbed())
        assert loader.stats().restarts == 2
        assert (loader.quarantined, loader.timed_out) == ((), ())


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_no_stream_is_to_blame_for_workers_that_are_stopped(on_error, tmp_path, monkeypatch):
    fuse = Fuse(0, "1", 7, DECODING, "stops", log=str(tmp_path / "log"))  # every time, as an impatient user might
    with loader_of([fuse], 2, timeout=0.5, on_error=on_error) as loader:
        count_only_stalls(monkeypatch, lambda: get_stall(loader, fuse))
        with pytest.raises(sl.WorkerDied, match=r"stopped by a signal until the deadline.* died 5 times before"):
            played(loader)
        assert loader.quarantined == ()


# --- datasets that kill every worker --------------------------------------------------------------------------------


class Deathly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize("workers", fast_first([1, 2]))
def test_restarts_are_bounded(workers):
    deathly = Deathly()
    dataset = sl.IterStreams([4, 4], lambda item: [id(deathly)] * item, fields=sl.Field((), "int64"))
    with sl.MultiStreamer(dataset, 2, 2, num_workers=workers, timeout=60.0) as loader:
        for _ in range(2):
            with pytest.raises(
                sl.WorkerDied, match=r"exit status 3.*has died 5 times before, with nothing filled since"
            ) as caught:
                next(iter(loader))
            assert caught.value.details["exit_status"] == 3
        assert loader.stats().restarts <= workers * 5


# --- ordinary errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", fast_first([2, 1]))
def test_streams_that_fail_are_left_alike_with_any_workers_and_after_a_resume(workers):
    fuses = failing(KILLERS.values())
    with loader_of(fuses, on_error="skip") as loader:
        expected, left = played(loader), sorted(places(loader))
    got = []
    with loader_of(fuses, workers, on_error="skip") as loader:
        for batch in loader:
            got.append(arrays(batch))
            if len(got) == 5:
                state = plain(loader.state_dict())
        assert sorted(places(loader)) == left
    assert_same_batches(got, expected)
    with loader_of(fuses, 3 - workers, on_error="skip") as loader:
        loader.load_state_dict(state)
        assert_same_batches(copies(loader), expected[5:])
        assert sorted(places(loader)) == left
