"""Shared stores of a process: one for each address, on one thread, while it is used."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import threading
import types
import warnings

import pytest
from polling import wait_until
from store_leaves import Plain

import streamloader as sl
from streamloader.stores import io_thread, registry
from streamloader.stores.io_thread import close_shared_stores, open_shared_store


class Counted(Plain):
    """Records its life cycle."""

    notes = []  # noqa: RUF012 - of the test
    gate = None

    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.notes.append(f"made {url}")

    async def _head(self, path):
        if path == "stuck":
            self.notes.append("stuck")
            try:
                await asyncio.Event().wait()
            finally:
                self.notes.append("ended")
        self.notes.append(threading.current_thread().name)
        return sl.ObjectInfo(path, 1, "v")

    async def _disconnect(self):
        self.notes.append(f"closed {self.url}")


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    monkeypatch.setattr(registry, "_STORE_CLASSES", {**registry._STORE_CLASSES, "counted": f"{__name__}:Counted"})
    monkeypatch.setattr(registry, "_load_store_class", lambda scheme: Counted)
    Counted.notes.clear()
    yield Counted.notes
    close_shared_stores()


def made(notes):
    return [note for note in notes if note.startswith("made")]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "streamloader-io"]


def test_one_store_for_each_address_and_options(notes):
    found = [
        open_shared_store("counted://a/x/y"),
        open_shared_store("counted://a/z", {}),
        open_shared_store("counted://b"),
        open_shared_store("counted://a", {"password": "p", "limits": sl.Limits()}),
        open_shared_store("counted://a", {"limits": sl.Limits(), "password": "p"}),
    ]
    assert [path for _, path in found] == ["x/y", "z", "", "", ""]
    assert len({id(one.store) for one, _ in found}) == 3
    assert made(notes) == ["made counted://a", "made counted://b", "made counted://a"]
    assert len(threads()) == 1


def test_everything_happens_on_one_thread(notes):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:

        def look(number):
            found, path = open_shared_store(f"counted://a/{number}")
            with found:
                return found.head(path).path

        assert list(pool.map(look, range(200))) == [str(number) for number in range(200)]
    assert made(notes) == ["made counted://a"]
    assert set(notes) == {"made counted://a", "streamloader-io"}


def test_options_have_to_be_plain():
    with pytest.raises(sl.ConfigError, match="plain values"):
        open_shared_store("counted://a", {"lock": threading.Lock()})


def test_a_store_stays_for_a_while_after_its_last_user(notes, monkeypatch):
    monkeypatch.setattr(io_thread, "IDLE_TIMEOUT_S", 0.2)
    now = 0.0  # stands still until the store has been idle for long enough
    monkeypatch.setattr(io_thread, "time", types.SimpleNamespace(monotonic=lambda: now))
    first, _ = open_shared_store("counted://a")
    second, _ = open_shared_store("counted://a")
    first.head("x")
    first.close()
    first.close()
    wait_until(lambda: io_thread._process.entries and next(iter(io_thread._process.entries.values())).users == 1)
    second.head("x")
    assert "closed counted://a" not in notes
    second.close()
    third, _ = open_shared_store("counted://a")  # at once: the same
    third.head("x")
    assert made(notes) == ["made counted://a"]
    third.close()
    wait_until(lambda: not next(iter(io_thread._process.entries.values())).users)
    now = 1.0
    wait_until(lambda: "closed counted://a" in notes)
    wait_until(lambda: not threads())  # nothing is shared any more
    fourth, _ = open_shared_store("counted://a")
    fourth.head("x")
    assert len(made(notes)) == 2


def test_one_that_is_forgotten_is_given_back(notes, monkeypatch):
    monkeypatch.setattr(io_thread, "IDLE_TIMEOUT_S", 0.1)
    found, _ = open_shared_store("counted://a")
    found.head("x")
    del found
    gc.collect()
    wait_until(lambda: "closed counted://a" in notes)


def test_closed_ones_say_so():
    found, _ = open_shared_store("counted://a")
    found.close()
    for use in (
        lambda: found.head("x"),
        lambda: found.read("x"),
        lambda: list(found.list()),
        lambda: found.delete("x"),
    ):
        with pytest.raises(sl.ClosedError, match="was closed: open it again"):
            use()


def test_closing_all_of_them_ends_what_is_under_way(notes):
    found, _ = open_shared_store("counted://a")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(found.head, "stuck")
        wait_until(lambda: "stuck" in notes)
        close_shared_stores()
        with pytest.raises(sl.ClosedError):
            waiting.result(10)
    assert notes[-2:] == ["ended", "closed counted://a"]
    with pytest.raises(sl.ClosedError):
        found.head("x")
    again, _ = open_shared_store("counted://a")
    assert again.head("x").path == "x"


def test_closing_all_of_them_while_many_ask(notes):
    # Each call ends: with its answer, or with ClosedError. None waits for a loop that has ended.
    stop = threading.Event()

    def ask():
        answers = 0
        while not stop.is_set():
            found, _ = open_shared_store("counted://a")
            with found, contextlib.suppress(sl.ClosedError):
                assert found.head("x").path == "x"
                answers += 1
        return answers

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for _ in range(30):
            close_shared_stores()
        stop.set()
        assert sum(task.result(20) for task in asking) > 0


def test_from_another_loop(notes):
    async def look():
        found, _ = open_shared_store("counted://a")
        with found:
            one, two = await asyncio.gather(*(found.run(found.store.head(path)) for path in "xy"))
            assert (one.path, two.path) == ("x", "y")
            with pytest.raises(sl.ObjectChanged):
                await found.run(found.store.read("z", sl.ByteRange(1, 1), version="w"))
            task = asyncio.create_task(found.run(found.store.head("stuck")))
            while "stuck" not in notes:  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(look())
    wait_until(lambda: "ended" in notes)  # a cancelled wait cancels the work


def test_closing_all_of_them_while_another_loop_waits(notes):
    async def look():
        found, _ = open_shared_store("counted://a")
        task = asyncio.create_task(found.run(found.store.head("stuck")))
        while "stuck" not in notes:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0)
        await asyncio.to_thread(close_shared_stores)
        with pytest.raises(sl.ClosedError):
            await task

    asyncio.run(look())


def test_the_io_thread_does_not_wait_for_itself():
    found, _ = open_shared_store("counted://a")

    async def call():
        return found.head("x")

    with pytest.raises(sl.ConfigError, match="cannot wait for itself"):
        found.call(call())


def test_an_interrupted_wait_cancels_the_work(notes):
    found, _ = open_shared_store("counted://a")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            found.head("stuck")
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: "ended" in notes)


def test_a_listing_comes_in_pages_and_can_be_left(monkeypatch):
    monkeypatch.setattr(io_thread, "_PAGE_ENTRIES", 3)
    found, _ = open_shared_store("counted://a")
    for number in range(10):
        found.write(f"d/{number}", b"x")
    assert [info.path for info in found.list("d")] == [f"d/{number}" for number in range(10)]
    listing = found.list("d")
    assert next(listing).path == "d/0"
    listing.close()
    half = found.list("d")
    assert next(half).path == "d/0"
    close_shared_stores()
    assert [info.path for info in [next(half), next(half)]] == ["d/1", "d/2"]  # of the page that it has
    with pytest.raises(sl.ClosedError):
        next(half)


def test_a_child_begins_with_none(notes):
    found, _ = open_shared_store("counted://a")
    found.head("x")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there is a thread is what is tested
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        report = "nothing"
        try:
            with contextlib.suppress(sl.ClosedError):
                found.head("x")
                report = "the parent's was used"
            found.close()
            own, _ = open_shared_store("counted://a")
            report = f"{own.head('x').path} {len(made(notes))} {own.store is found.store}"
            close_shared_stores()
        finally:
            os.write(writing, report.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"x 2 False"
    assert os.waitpid(pid, 0)[1] == 0
    assert found.head("x").path == "x"
    assert "closed counted://a" not in notes
