"""Failures of streams and workers: one typed error with its location, at the affected batch."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from clocks import count_only_stalls, stall_at
from engine_data import Numbered, assert_fails_again, assert_same_batches, copies, model_epoch
from tiers import only_fast

import streamloader as sl
from streamloader.engine.ring import Status

LENGTHS = [9, 9, 9, 9]
DEADLINE = 60.0


def loader_of(dataset, batch_size=2, window=3, **more):
    return sl.MultiStreamer(dataset, batch_size, window, **({"timeout": DEADLINE, "shuffle": False} | more))


def arrays(batch):
    return {name: array.copy() for name, array in batch.numpy().items()}


def play_until_error(loader):
    """Return the batches of an iteration, and the error that ends it, if any. Check that it is raised again."""
    got, iterator = [], iter(loader)
    try:
        for batch in iterator:
            got.append(arrays(batch))  # noqa: PERF401 - those before the error are wanted
    except sl.StreamloaderError as error:
        assert_fails_again(iterator, error)
        return got, error
    return got, None


class Once:
    """Fails once at one step, after some successful calls. For streams in this process."""

    def __init__(self, stream, step, error, after=0):
        self.where, self.error, self.left = (stream, step), error, after

    def __call__(self, stream, step):
        if (stream, step) == self.where:
            self.left -= 1
            if self.left == -1:
                raise self.error


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_stream_that_raises_spoils_exactly_its_batch(step, epoch):
    failing = Once(3, step, ValueError("out of film"), after=epoch)
    before, expected = (
        model_epoch(LENGTHS, LENGTHS, number, lanes=2, window=3, shuffle=False) for number in (0, epoch)
    )
    with loader_of(Numbered(LENGTHS, at_step=failing)) as loader:
        for _ in range(epoch):  # while this one is consumed, the next one fails already
            assert_same_batches(copies(loader), before)
        got, error = play_until_error(loader)
        spoiled = 3 + step // 3
        assert_same_batches(got, expected[:spoiled])
        assert type(error) is sl.StreamFailed
        assert isinstance(error, RuntimeError)
        first_of_read = 3 * (step // 3)
        assert error.message == f"lane 1, stream 's3', reading at step {first_of_read}: ValueError: out of film"
        assert (error.stream, error.offset) == ("s3", first_of_read)
        assert error.details == {"lane": 1, "stage": "reading", "step": first_of_read, "cause": "ValueError"}
        assert "--- in the worker ---" in str(error)
        assert "raise self.error" in str(error)
        loader.set_epoch(epoch)
        assert_same_batches(copies(loader), expected)  # all is well again


def test_an_error_in_a_worker_process_brings_its_traceback():
    def at_step(stream, step):
        class OwnError(Exception):
            def __reduce__(self):
                raise TypeError("cannot be pickled")

        if (stream, step) == (1, 7):
            raise OwnError(f"stream {stream} broke")

    with loader_of(Numbered(LENGTHS, at_step=at_step), num_workers=2) as loader:
        for _ in range(2):
            got, error = play_until_error(loader)
            assert len(got) == 2
            assert type(error) is sl.StreamFailed
            assert error.details == {"lane": 1, "stage": "reading", "step": 6, "cause": "OwnError"}
            assert "OwnError: stream 1 broke" in error.message
            assert 'raise OwnError(f"stream {stream} broke")' in str(error)
            assert "in read_into" in error.worker_traceback


def test_the_exact_step_is_named_and_those_before_it_come_first():
    def make(item):
        for step in range(9):
            if (item, step) == (1, 5):
                raise LookupError("no frame")
            yield item * 100 + step

    streams = sl.IterStreams(range(2), make, fields=sl.Field((), "int64"), lengths=[9, 9])
    with loader_of(streams) as loader:
        got, error = play_until_error(loader)
    assert len(got) == 1
    assert (type(error), error.stream, error.offset) == (sl.StreamFailed, "1", 5)
    assert error.details["lane"] == 1
    assert "LookupError: no frame" in str(error)


@pytest.mark.parametrize("declared", [[6, 6], [None, None]])
def test_an_error_behind_the_last_step_that_was_declared(declared):
    # The steps before it fill whole batches, and these come.
    failing = Once(0, 6, ValueError("more than was promised"))
    with loader_of(Numbered([7, 6], declared, at_step=failing)) as loader:
        got, error = play_until_error(loader)
        assert len(got) == 2
        assert "more than was promised" in str(error)


class Broken(Numbered):
    """Misbehaves in a given way."""

    def __init__(self, how):
        super().__init__([4, 4])
        self.how = how

    async def open(self, info, rng):
        if self.how == "open" and info.key == "s1":
            raise PermissionError("the door is locked")
        stream = await super().open(info, rng)
        if info.key == "s1" and self.how != "open":
            setattr(stream, *BROKEN[self.how][0])
        return stream


async def too_many(out):
    return len(out["data"]) + 1


async def negative(out):
    return -1


async def known_error(out):
    raise sl.CorruptStream("the file breaks off", address="ssh://me:secret@box/a.mp4", offset=17)


async def closing(*_):
    raise OSError("cannot close")


BROKEN = {
    "open": (None, sl.StreamFailed, "lane 1, stream 's1', opening at step 0: PermissionError: the door is locked"),
    "too many": (("read_into", too_many), sl.StreamFailed, "ValueError: read_into returned 4, with room for 3 steps"),
    "negative": (("read_into", negative), sl.StreamFailed, "ValueError: read_into returned -1, with room for 3 steps"),
    "known": (("read_into", known_error), sl.CorruptStream, "the file breaks off"),
    "close": (("aclose", closing), sl.StreamFailed, "lane 1, stream 's1', closing at step 4: OSError: cannot close"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_each_stage_of_a_stream_is_named(how):
    _, kind, message = BROKEN[how]
    with loader_of(Broken(how)) as loader:
        got, error = play_until_error(loader)
    assert len(got) == (1 if how == "close" else 0)
    assert type(error) is kind
    assert message in error.message
    assert error.stream == "s1"
    assert error.details["lane"] == 1
    if how == "known":
        assert (error.offset, error.address) == (17, "ssh://***@box/a.mp4")
        assert "secret" not in str(error)


def test_two_lanes_that_fail_are_told_of_one_at_a_time_and_in_order():
    def at_step(stream, step):
        if step == 3 * (2 - stream):
            raise ValueError(f"stream {stream}")

    with loader_of(Numbered([9, 9], at_step=at_step)) as loader:
        got, error = play_until_error(loader)
        assert (len(got), error.stream) == (1, "s1")


# --- waiting -------------------------------------------------------------------------------------------------


def stuck_loader(make, **more):
    streams = sl.IterStreams(["a", "b"], make, fields=sl.Field((), "int64"), lengths=[9, 9])
    return loader_of(streams, **more)


@pytest.mark.parametrize("how", ["thread", "await"])
def test_a_stuck_stream_is_named(how, monkeypatch):
    release = threading.Event()

    def in_thread(item):
        for step in range(9):
            if (item, step) == ("b", 3):
                assert release.wait(DEADLINE)
            yield step

    async def awaiting(item):
        for step in range(9):
            if (item, step) == ("b", 3):
                await asyncio.sleep(DEADLINE)
            yield step

    with stuck_loader(in_thread if how == "thread" else awaiting, timeout=0.3) as loader:
        count_only_stalls(monkeypatch, lambda: stall_at(loader, 1, Status.READING, 3))
        got, error = play_until_error(loader)
        release.set()
    assert len(got) == 1
    assert type(error) is sl.LoaderTimeout
    assert isinstance(error, TimeoutError)
    assert (error.stream, error.offset) == ("b", 3)
    waited = error.details.pop("waited")
    assert waited >= 0.3
    assert error.details == {"lane": 1, "stage": "reading"}
    assert error.message == (
        f"waited {waited:.1f} s for lane 1 (b, reading at step 3): raise timeout=, or find out why that stream is slow"
    )


def test_a_stream_stuck_in_opening_is_named_also_in_async_for(monkeypatch):
    async def make(item):
        if item == "b":
            await asyncio.sleep(DEADLINE)
        return range(9)

    async def main():
        with stuck_loader(make, timeout=0.3) as loader:
            count_only_stalls(monkeypatch, lambda: stall_at(loader, 1, Status.OPENING, 0))
            async for _ in loader:
                pass

    with pytest.raises(sl.LoaderTimeout, match=r"lane 1 \(b, opening at step 0\)") as caught:
        asyncio.run(main())
    assert (caught.value.details["lane"], caught.value.details["stage"]) == (1, "opening")


def test_a_stuck_worker_process_is_named_and_ended(monkeypatch):
    def make(item):
        for step in range(9):
            if (item, step) == ("a", 3):
                threading.Event().wait()
            yield step

    with stuck_loader(make, timeout=0.3, num_workers=2, on_worker_death="raise") as loader:
        count_only_stalls(monkeypatch, lambda: stall_at(loader, 0, Status.READING, 3))
        got, error = play_until_error(loader)
        assert len(got) == 1
        assert (type(error), error.stream, error.details["lane"]) == (sl.LoaderTimeout, "a", 0)
        pids = loader._supervisor.pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_the_lane_that_is_stuck_is_named_also_after_another_iteration_ran_ahead(monkeypatch):
    release = threading.Event()
    made = []

    def make(item):
        made.append(item)
        for step in range(9):
            if item == "b" and made.count("b") == 2:
                assert release.wait(DEADLINE)
            yield step

    with stuck_loader(make, timeout=0.3, prefetch_factor=3, window=1) as loader:
        count_only_stalls(monkeypatch, lambda: stall_at(loader, 1, Status.READING, 0))
        held = next(iter(loader))
        while any(lane.rows_ready < loader.stats().slots - 1 for lane in loader.stats().lanes):
            time.sleep(0.001)  # between two looks
        loader.set_epoch(4)  # takes back what was made ahead
        got, error = play_until_error(loader)
        release.set()
    assert (got, held.index) == ([], 0)
    assert (error.stream, error.details["lane"]) == ("b", 1)


@pytest.mark.parametrize("timeout", [0, None])
def test_no_limit(timeout):
    with loader_of(Numbered(LENGTHS), timeout=timeout) as loader:
        assert len(copies(loader)) == len(loader)


# --- workers that die ----------------------------------------------------------------------------------------


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(_):
    import ctypes

    ctypes.string_at(0)


DEATHS = {
    "SIGKILL": (kill, -signal.SIGKILL, signal.SIGKILL, "killed by SIGKILL"),
    "SIGSEGV": (segfault, -signal.SIGSEGV, signal.SIGSEGV, "killed by SIGSEGV"),
    "exit 3": (lambda _: os._exit(3), 3, None, "exit status 3"),
    "exit 0": (lambda _: os._exit(0), 0, None, "exit status 0"),
}


@pytest.mark.chaos
@pytest.mark.parametrize("how", only_fast(DEATHS, fast=["SIGKILL", "exit 3"]))
def test_a_worker_that_dies_is_told_of_at_once(how):
    die, status, number, message = DEATHS[how]

    def at_step(stream, step):
        if (stream, step) == (2, 4):
            die(step)

    streams = Numbered([9] * 4, at_step=at_step)
    # Without a limit of time: what ends the wait is the death.
    with loader_of(streams, 4, num_workers=2, timeout=None, on_worker_death="raise") as loader:
        got, error = play_until_error(loader)
        pids = loader._supervisor.pids
        assert_same_batches(got, model_epoch([9] * 4, [9] * 4, 0, lanes=4, window=3, shuffle=False)[: len(got)])
        assert len(got) <= 1
        assert type(error) is sl.WorkerDied
        assert error.details == {
            "pid": pids[1],
            "worker": 1,
            "exit_status": status,
            "signal": number,
            "lanes": [2, 3],
        }
        assert f"worker 1 (pid {pids[1]}) of lanes [2, 3] died: {message}" in error.message
        with pytest.raises(sl.WorkerDied):
            next(iter(loader))


@pytest.mark.chaos
def test_a_worker_killed_from_outside_while_it_rests():
    arguments = {"num_workers": 1, "prefetch_factor": 2, "timeout": None, "on_worker_death": "raise"}
    with loader_of(Numbered([90]), 1, **arguments) as loader:
        iterator = iter(loader)
        next(iterator)
        os.kill(loader._supervisor.pids[0], signal.SIGKILL)
        with pytest.raises(sl.WorkerDied, match="killed by SIGKILL"):
            list(iterator)


class OnlyHere:
    """Can be pickled but not unpickled."""

    def __reduce__(self):
        return _refuse, (os.getpid(),)


def _refuse(pid):
    raise ImportError("no module named 'that_is_only_here'")


def test_a_data_set_that_a_worker_cannot_load():
    here = OnlyHere()
    streams = sl.IterStreams([1], lambda item: [here] * item, fields=sl.Field())
    with loader_of(streams, num_workers=1) as loader:
        for _ in range(2):
            with pytest.raises(sl.StreamFailed, match="ImportError: no module named 'that_is_only_here'") as caught:
                next(iter(loader))
            assert "read_job" in caught.value.worker_traceback


def test_a_data_set_that_cannot_be_sent_to_workers():
    connection = (number for number in range(3))  # like a socket, nothing that can be copied
    streams = sl.IterStreams([4], lambda item: [connection is None] * item, fields=sl.Field((), "bool"))
    with loader_of(streams, num_workers=1) as loader:
        for _ in range(2):
            with pytest.raises(sl.ConfigError, match=r"cannot be sent to worker processes \(TypeError: .*generator"):
                iter(loader)
    with loader_of(streams) as loader:  # a thread needs no sending
        assert not np.concatenate([batch["data"] for batch in copies(loader)]).any()


def test_a_data_set_that_cannot_be_indexed():
    class Lost(Numbered):
        async def index(self):
            raise sl.StreamNotFound("no such folder", address="/nowhere")

    with pytest.raises(sl.StreamNotFound, match="no such folder"):
        loader_of(Lost([]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_ring_that_cannot_be_allocated_is_an_error_of_iter_and_leaves_nothing(num_workers, monkeypatch):
    def refuse(fd, offset, size):
        raise OSError(errno.ENOSPC, "no space left")

    dataset = Numbered([5, 7, 4])
    children = psutil.Process().children()  # test servers
    with sl.MultiStreamer(dataset, 2, 3, num_workers=num_workers, timeout=60.0) as loader:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(sl.RingTooLarge, match="choose a smaller batch_size"):
            iter(loader)
        assert not [thread.name for thread in threading.enumerate() if thread.name == "streamloader-worker"]
        assert psutil.Process().children() == children
        monkeypatch.undo()
        lengths = dataset.lengths
        assert_same_batches(copies(loader), model_epoch(lengths, lengths, 0, lanes=2, window=3))
