"""An iteration that is over, busy, failed or of another process: four states with four answers, and no batch lost."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import warnings
import weakref

import pytest
from engine_data import Numbered, assert_fails_again, assert_same_batches, copies, model_epoch

import streamloader as sl
from streamloader.errors import to_wire

LENGTHS = [5, 9, 2, 7, 12, 4]
EXPECTED = model_epoch(LENGTHS, LENGTHS, 0, lanes=2, window=3, shuffle=False)


def loader_of(dataset=None, **options):
    return sl.MultiStreamer(dataset or Numbered(LENGTHS), 2, 3, shuffle=False, **({"timeout": 60.0} | options))


def arrays(batch):
    return {name: array.copy() for name, array in batch.numpy().items()}


def in_event_loop(test):
    def run():
        asyncio.run(test())

    return run


# --- busy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_threads_that_share_an_iterator(num_workers):
    # One of them waits for a batch; the others are refused, and nothing is lost.
    gate, is_waiting = threading.Event(), threading.Event()

    def collate(batch):
        is_waiting.set()
        gate.wait(60)
        return arrays(batch)

    with loader_of(num_workers=num_workers, collate_fn=collate) as loader:
        iterator, got = iter(loader), []
        thread = threading.Thread(target=lambda: got.append(next(iterator)))
        thread.start()
        assert is_waiting.wait(60)
        for _ in range(3):
            with pytest.raises(sl.IteratorBusy, match="another thread or task is waiting"):
                next(iterator)
        gate.set()
        thread.join(60)
        got += iterator
    assert_same_batches(got, EXPECTED)


def test_threads_that_take_turns_get_every_batch_once():
    with loader_of() as loader:
        iterator, lock, got = iter(loader), threading.Lock(), []

        def take():
            while True:
                with lock:
                    batch = next(iterator, None)
                    if batch is None:
                        return
                    got.append(arrays(batch))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert_same_batches(got, EXPECTED)


@in_event_loop
async def test_tasks_that_share_an_iterator():
    gate = threading.Event()
    dataset = Numbered(LENGTHS, at_step=lambda *_: gate.wait(60))
    with loader_of(dataset) as loader:
        iterator = aiter(loader)
        task = asyncio.create_task(anext(iterator))
        await asyncio.sleep(0)
        with pytest.raises(sl.IteratorBusy):
            await anext(iterator)
        gate.set()
        got = [arrays(await task)]
        got += [arrays(batch) async for batch in iterator]
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
    assert_same_batches(got, EXPECTED)


# --- failed -----------------------------------------------------------------------------------------------------------


def test_a_request_after_a_timeout_gets_the_batch():
    gate = threading.Event()
    dataset = Numbered(LENGTHS, at_step=lambda stream, step: gate.wait(60) if (stream, step) == (3, 2) else None)
    with loader_of(dataset, timeout=0.05) as loader:
        got, timeouts = [], 0
        iterator = iter(loader)
        while True:
            try:
                got.append(arrays(next(iterator)))
            except sl.LoaderTimeout:
                timeouts += 1
                if timeouts == 2:
                    gate.set()
            except StopIteration:
                break
    assert timeouts >= 2
    assert_same_batches(got, EXPECTED)


@in_event_loop
async def test_an_asynchronous_request_after_a_timeout_gets_the_batch():
    gate = threading.Event()
    dataset = Numbered(LENGTHS, at_step=lambda stream, step: gate.wait(60) if (stream, step) == (3, 2) else None)
    with loader_of(dataset, timeout=0.05) as loader:
        got, timeouts = [], 0
        iterator = aiter(loader)
        while True:
            try:
                got.append(arrays(await anext(iterator)))
            except sl.LoaderTimeout:
                timeouts += 1
                gate.set()
            except StopAsyncIteration:
                break
    assert timeouts
    assert_same_batches(got, EXPECTED)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_that_failed_fails_again(num_workers):
    def at_step(stream, step):
        if (stream, step) == (1, 4):
            raise LookupError("no such step")

    with loader_of(Numbered(LENGTHS, at_step=at_step), num_workers=num_workers) as loader:
        iterator = iter(loader)
        got = [arrays(next(iterator))]
        with pytest.raises(sl.StreamFailed, match="no such step") as caught:
            next(iterator)
        state = loader.state_dict()
        for _ in range(3):
            assert_fails_again(iterator, caught.value)
        assert loader.state_dict() == state
    assert_same_batches(got, EXPECTED[: len(got)])


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, StopIteration, StopAsyncIteration])
def test_a_batch_that_collate_fn_refused_is_offered_again(error):
    errors = iter([error])

    def collate(batch):
        if batch.index == 1 and (found := next(errors, None)) is not None:
            raise found("once")
        return arrays(batch)

    expected_error = RuntimeError if error in (StopIteration, StopAsyncIteration) else error
    with loader_of(collate_fn=collate) as loader:
        iterator = iter(loader)
        got = [next(iterator)]
        state = loader.state_dict()
        with pytest.raises(expected_error):
            next(iterator)
        assert loader.state_dict() == state
        got += iterator
    assert_same_batches(got, EXPECTED)


def test_a_batch_that_was_refused_is_forgotten_by_another_iteration():
    def collate(batch):
        if (batch.epoch, batch.index) == (0, 1):
            raise LookupError
        return arrays(batch)

    with loader_of(collate_fn=collate) as loader:
        for follow in (lambda: None, lambda: loader.load_state_dict(loader.state_dict() | {"epoch": 1, "batch": 0})):
            loader.set_epoch(0)
            iterator = iter(loader)
            next(iterator)
            with pytest.raises(LookupError):
                next(iterator)
            follow()
            assert_same_batches(list(loader), model_epoch(LENGTHS, LENGTHS, 1, lanes=2, window=3, shuffle=False))


def test_an_env_offers_a_refused_batch_to_the_next_iteration():
    def make_env():
        calls = itertools.count()

        def env(out):
            out["data"][:] = next(calls)

        return env

    refused = iter([1])

    def collate(out, _):
        number = int(out["data"][0])
        if number == 1 and next(refused, None):
            raise LookupError
        return number

    with sl.MultiStreamer.from_env(make_env, (), 2, collate_fn=collate) as loader:
        iterator = iter(loader)
        assert next(iterator) == 0
        with pytest.raises(LookupError):
            next(iterator)
        assert list(itertools.islice(loader, 3)) == [1, 2, 3]


def test_an_interrupt_while_a_batch_is_taken_is_no_silent_loss(monkeypatch):
    with loader_of() as loader:
        iterator = iter(loader)
        got = [arrays(next(iterator)) for _ in range(2)]
        with monkeypatch.context() as patched:
            patched.setattr(loader, "_make_batch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                next(iterator)
        with pytest.raises(sl.ClosedError, match="interrupted while it took a batch"):
            next(iterator)
        loader.load_state_dict(loader.state_dict())
        got += copies(loader)
    assert_same_batches(got, EXPECTED)


# --- over -------------------------------------------------------------------------------------------------------------


def test_an_iteration_that_is_over_stays_so():
    with loader_of() as loader:
        iterator = iter(loader)
        assert len(list(iterator)) == len(EXPECTED)
        for _ in range(3):
            assert next(iterator, None) is None


# --- another process --------------------------------------------------------------------------------------------------


def in_fork(work):
    """Run `work` in a forked child, and return what it returns or raises, as text."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
    if not pid:
        try:
            try:
                text = repr(work())
            except Exception as error:  # noqa: BLE001 - the parent compares it
                text = to_wire(error)["type"] + ": " + str(error)
            os.write(sender, text.encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        text = file.read().decode()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_fork_takes_no_batch_of_its_parent(num_workers):
    with loader_of(num_workers=num_workers) as loader:
        iterator = iter(loader)
        got = [arrays(next(iterator))]
        for work in (lambda: next(iterator), lambda: list(loader), lambda: iter(loader)):
            text = in_fork(work)
            assert text.startswith("WrongProcess: the workers of this loader belong to process"), text
            assert str(os.getpid()) in text
        assert in_fork(loader.close) == "None"
        state = loader.state_dict()
        assert in_fork(lambda: loader.state_dict() == state) == "True"
        got += [arrays(batch) for batch in iterator]
    assert_same_batches(got, EXPECTED)


def test_a_loader_that_did_not_start_before_the_fork_works_on_both_sides():
    def count():
        with loader:
            return len(copies(loader))

    with loader_of() as loader:
        assert in_fork(count) == str(len(EXPECTED))
        assert_same_batches(copies(loader), EXPECTED)


# --- the epoch that was set -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_a_state_after_set_epoch_is_that_of_the_epoch(taken, epoch):
    with loader_of() as loader, loader_of() as other:
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        loader.set_epoch(epoch)
        other.load_state_dict(loader.state_dict())
        expected = model_epoch(LENGTHS, LENGTHS, epoch, lanes=2, window=3, shuffle=False)
        assert_same_batches(copies(other), expected)
        assert_same_batches(copies(loader), expected)


def test_a_batch_after_set_epoch_counts_again():
    with loader_of() as loader, loader_of() as other:
        iterator = iter(loader)
        next(iterator)
        loader.set_epoch(4)
        next(iterator)
        other.load_state_dict(loader.state_dict())
        assert_same_batches(copies(other), EXPECTED[2:])


# --- finalizers -------------------------------------------------------------------------------------------------------


def test_a_loader_that_is_collected_in_its_own_thread_leaves_nothing():
    # The leak check of all tests finds threads and descriptors.
    gate, ended = threading.Event(), threading.Event()

    class Collecting(Numbered):
        async def open(self, info, rng):
            gate.wait(60)
            gc.collect()
            ended.set()
            return await super().open(info, rng)

    gc.collect()
    gc.disable()
    try:
        loader = loader_of(Collecting(LENGTHS))
        loader.itself = loader  # so that only the garbage collector frees it
        supervisor = weakref.ref(iter(loader) and loader._supervisor)
        del loader
        gate.set()
        assert ended.wait(60)
        assert supervisor() is None
    finally:
        gc.enable()
    for thread in threading.enumerate():
        if thread.name == "streamloader-worker":
            thread.join(60)
            assert not thread.is_alive()
