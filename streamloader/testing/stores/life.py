"""Tests of a store's life cycle: concurrency, cancellation, closing, event loops, forks, pickling and secrets."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import io
import logging
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from streamloader.config import Limits
from streamloader.errors import ClosedError, NotFound, StoreError
from streamloader.stores.base import Store
from streamloader.stores.io_thread import close_shared_stores, open_shared_store
from streamloader.testing.stores.binding import (
    BIG_OBJECT_BYTES,
    StoreBinding,
    describe_difference,
    make_bytes,
    require_listing,
    run,
)
from streamloader.values import ByteRange

__all__ = ["LifeSuite"]

_OBJECT_BYTES = 200_003
CHILD_TIMEOUT_S = 100


class LifeSuite(StoreBinding):
    """One instance serves concurrent requests, works after forks and pickling, and shows no secrets."""

    # --- concurrency -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("limits", [Limits(), Limits(connections=2, requests=3)], ids=["usual", "tight"])
    def test_64_reads_at_once(self, limits: Limits) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)
        spans = [ByteRange(number * 3_000, number * 3_000 + 5_000 + number) for number in range(62)]
        spans += [ByteRange(-70_001), ByteRange()]

        async def read(store: Store) -> None:
            found = await asyncio.gather(*(store.read(path, span) for span in spans))
            for span, got in zip(spans, found, strict=True):
                start, end = span.within(_OBJECT_BYTES)
                assert not describe_difference(got, data[start:end]), span

        self.use(read, limits=limits)

    def test_64_objects_at_once(self) -> None:
        files = {self.name(f"{number}.bin"): make_bytes(1_000 + number) for number in range(64)}
        self.populate(files)

        async def read(store: Store) -> None:
            paths = [self.path(name) for name in files]
            assert not describe_difference(
                await asyncio.gather(*(store.read(path) for path in paths)), list(files.values())
            )
            heads = await asyncio.gather(*(store.head(path) for path in paths))
            assert [info.size for info in heads] == [len(data) for data in files.values()]

        self.use(read)

    def test_one_that_fails_does_not_disturb_the_others(self) -> None:
        path = self.put("a.bin", make_bytes(_OBJECT_BYTES))
        missing = self.path(self.name("none.bin"))

        async def read(store: Store) -> None:
            requested = [missing if number % 3 == 0 else path for number in range(30)]
            found = await asyncio.gather(*(store.read(one) for one in requested), return_exceptions=True)
            for one, got in zip(requested, found, strict=True):
                assert (
                    isinstance(got, NotFound)
                    if one == missing
                    else not describe_difference(got, make_bytes(_OBJECT_BYTES))
                )

        self.use(read)

    # --- cancellation ------------------------------------------------------------------------------------------------

    def test_a_read_that_is_cancelled_disturbs_nothing(self) -> None:
        # Cancel at the first await, the second, and so on: while it connects, sends, waits for the response, and reads.
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def read(store: Store) -> None:
            for waits in (*range(20), *range(20, 100, 8)):
                task = asyncio.create_task(store.read(path, ByteRange(1)))
                for _ in range(waits):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert not describe_difference(await task, data[1:])
            assert not describe_difference(await store.read(path, ByteRange(-70_000)), data[-70_000:])

        self.use(read, limits=Limits(connections=2, requests=2))

    def test_a_read_that_is_cancelled_in_the_middle_disturbs_nothing(self) -> None:
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def read(store: Store) -> None:
            for _ in range(6):
                started = asyncio.Event()
                task = asyncio.create_task(_stall(store.stream(path), started))
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not describe_difference(await store.read(path, ByteRange(5, 70_000)), data[5:70_000])

        self.use(read, limits=Limits(connections=2, requests=2))

    def test_the_others_go_on_when_some_are_cancelled(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            tasks = [asyncio.create_task(store.read(path, ByteRange(number))) for number in range(40)]
            for number in range(0, 40, 2):
                await asyncio.sleep(0)
                tasks[number].cancel()
            for number, got in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                cancelled = number % 2 == 0 and isinstance(got, asyncio.CancelledError)
                assert cancelled or not describe_difference(got, data[number:]), number

        self.use(read)

    # --- closing -----------------------------------------------------------------------------------------------------

    def test_closing_twice_does_no_harm(self) -> None:
        path = self.put("a.bin", b"x")

        async def close() -> None:
            unused = self.make_store()
            await unused.aclose()
            await unused.aclose()
            store = self.make_store()
            assert await store.read(path) == b"x"
            await store.aclose()
            await store.aclose()

        run(close)

    def test_nothing_works_once_it_is_closed(self) -> None:
        path = self.put("a.bin", b"x")

        async def close() -> None:
            store = self.make_store()
            async with store:
                assert await store.read(path) == b"x"
            uses: list[Callable[[], Coroutine[Any, Any, object]]] = [
                lambda: store.head(path),
                lambda: store.read(path),
                lambda: store.read(path, ByteRange(0, 0)),
                lambda: anext(store.stream(path)),
                lambda: anext(store.list(self.path(self.name()))),
                lambda: store.write(path, b"y"),
                lambda: store.delete(path),
            ]
            for use in uses:
                with pytest.raises(ClosedError):
                    await use()

        run(close)
        assert self.use(lambda store: store.read(path)) == b"x"

    def test_closing_ends_the_reads_under_way(self) -> None:
        # Each read returns the right bytes or raises a typed error; none hangs.
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def close() -> None:
            store = self.make_store()
            started = asyncio.Event()
            tasks = [asyncio.create_task(_collect(store.stream(path), started)) for _ in range(4)]
            await started.wait()
            await store.aclose()
            for got in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(got, BaseException):
                    assert isinstance(got, (StoreError, ClosedError)), repr(got)
                else:
                    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()

        run(close)

    # --- other loops and processes -----------------------------------------------------------------------------------

    def test_a_second_event_loop(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)
        store = self.make_store()
        for _ in range(3):
            assert not describe_difference(run(lambda: _read_some(store, path)), [data[7:70_000], data])
        run(store.aclose)

    def test_pickled(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read() -> None:
            async with self.make_store() as store:
                before = pickle.dumps(store)
                assert not describe_difference(await _read_some(store, path), [data[7:70_000], data])
                after = pickle.dumps(store)
                for twin in map(pickle.loads, (before, after)):
                    async with twin:
                        assert type(twin) is type(store)
                        assert (twin.url, twin.limits, twin.timeouts) == (store.url, store.limits, store.timeouts)
                        assert not describe_difference(await _read_some(twin, path), [data[7:70_000], data])
                assert not describe_difference(
                    await store.read(path), data
                )  # closing the copies did not close the original

        run(read)

    def test_pickled_in_another_process(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)
        pickled = pickle.dumps(self.make_store())

        async def read() -> None:
            async with pickle.loads(pickled) as twin:  # noqa: S301 - pickled by this test
                assert not describe_difference(await _read_some(twin, path), [data[7:70_000], data])

        assert _in_child(read) == "fine"

    def test_used_after_a_fork(self) -> None:
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def use(store: Store) -> None:
            async def in_child() -> None:
                assert not describe_difference(await _read_some(store, path), [data[7:70_000], data])
                await store.aclose()

            async with contextlib.aclosing(store.stream(path)) as parts:
                got = await anext(parts)  # a connection in use, which only the parent may use
                assert _in_child(in_child) == "fine"
                async for part in parts:
                    got += part
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
            assert not describe_difference(await _read_some(store, path), [data[7:70_000], data])
            assert _in_child(in_child) == "fine"
            assert not describe_difference(await store.read(path, ByteRange(-9)), data[-9:])

        self.use(use)

    # --- the blocking interface --------------------------------------------------------------------------------------

    def test_the_shared_store_gives_the_same(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("sub/a.bin", data)
        info = self.use(lambda store: store.head(path))
        shared, path = open_shared_store(self.address(self.name("sub/a.bin")), self.location()[1])
        with shared:
            there = shared.head(path)
            assert (there.path, there.size, there.version) == (path, info.size, info.version)
            assert not describe_difference(shared.read(path), data)
            assert not describe_difference(
                shared.read(path, ByteRange(5, 70_000), version=info.version), data[5:70_000]
            )
            assert not describe_difference(shared.read(path, ByteRange(-5)), data[-5:])
            with pytest.raises(NotFound):
                shared.read(f"{path}.none")
            folder = path.rpartition("/")[0]
            if shared.call(require_listing(shared.store, folder)):
                assert [found.path for found in shared.list(folder)] == [path]
            if shared.store.supports_writes:
                shared.write(f"{path}.new", b"new")
                assert shared.read(f"{path}.new") == b"new"
                shared.delete(f"{path}.new")
                shared.delete(f"{path}.new")
        close_shared_stores()

    def test_the_shared_store_serves_many_threads(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        self.put("a.bin", data)

        def read(number: int) -> bool:
            shared, path = open_shared_store(self.address(self.name("a.bin")), self.location()[1])
            with shared:
                return shared.read(path, ByteRange(number, number + 50_000)) == data[number : number + 50_000]

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, range(32)))
        close_shared_stores()

    # --- secrets -----------------------------------------------------------------------------------------------------

    def test_shows_no_secrets(self) -> None:
        path = self.put("a.bin", make_bytes(_OBJECT_BYTES))
        shown = io.StringIO()
        handler = logging.StreamHandler(shown)
        logger = logging.getLogger()
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)

        async def show(store: Store) -> None:
            print(repr(store), str(store), store.url, store.address(path), file=shown)
            print(await store.head(path), file=shown)
            assert not describe_difference(await store.read(path, ByteRange(0, 9)), make_bytes(_OBJECT_BYTES)[:9])
            for fail in (
                lambda: store.head(self.path(self.name("none.bin"))),
                lambda: store.read(path, ByteRange(_OBJECT_BYTES, _OBJECT_BYTES + 1)),
                lambda: store.read(path, version="no such version"),
                lambda: store.read(".."),
            ):
                with pytest.raises(Exception) as caught:  # noqa: PT011 - other tests check the types
                    await fail()
                print(*traceback.format_exception(caught.value), repr(caught.value), vars(caught.value), file=shown)
            await store.aclose()
            with pytest.raises(ClosedError) as closed:
                await store.read(path)
            print(repr(closed.value), str(closed.value), repr(store), file=shown)

        try:
            self.use(show)
            if self.use(lambda store: require_listing(store, self.path(self.name()))):
                self.use(lambda store: _count(store.list(self.path(self.name()))))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        text = shown.getvalue()
        assert "store" in text.lower(), "nothing was logged or printed"
        for secret in self.secrets:
            assert len(secret) >= 6, "the secret is too short to be searched for"
            assert secret not in text, f"shown: ...{text[max(0, text.index(secret) - 200) : text.index(secret)]}..."

    def test_shows_its_address(self) -> None:
        store = self.make_store()
        assert store.url in repr(store)
        assert store.url
        path = self.path("a/b.bin")
        assert store.address(path).endswith("b.bin")
        run(store.aclose)


async def _read_some(store: Store, path: str) -> list[bytes]:
    return list(await asyncio.gather(store.read(path, ByteRange(7, 70_000)), store.read(path)))


async def _collect(stream: AsyncGenerator[bytes, None], started: asyncio.Event) -> bytes:
    parts = []
    try:
        async with contextlib.aclosing(stream):
            async for part in stream:
                parts.append(part)
                started.set()
                await asyncio.sleep(0)
    finally:
        started.set()
    return b"".join(parts)


async def _stall(stream: AsyncGenerator[bytes, None], started: asyncio.Event) -> None:
    try:
        async with contextlib.aclosing(stream):
            async for _ in stream:
                started.set()
                await asyncio.Event().wait()
    finally:
        started.set()  # after a failure too


async def _count(infos: AsyncGenerator[Any, None]) -> int:
    return len([info async for info in infos])


def _in_child(function: Callable[[], Coroutine[Any, Any, None]]) -> str:
    """Run a coroutine function in a forked child. Return "fine", or the child's traceback."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is the point of the test
        pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(CHILD_TIMEOUT_S)
            try:
                run(function, CHILD_TIMEOUT_S - 5)
                report = "fine"
            except BaseException:  # noqa: BLE001 - reported to the parent
                report = traceback.format_exc()
            os.write(writing, report.encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        report = pipe.read().decode()
    status = os.waitpid(pid, 0)[1]
    return report or f"the child exited with status {status} and no report"
