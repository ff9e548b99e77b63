"""The part of the catalog suite that creates, connects, closes, cancels, forks and travels."""

# ruff: noqa: D102 - the name of a test says what it shows

from __future__ import annotations

import asyncio
import os
import traceback
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamloader.archive.catalog.base import SCHEMA, Catalog, Header, VideoRow
from streamloader.archive.catalog.registry import shared_catalog
from streamloader.errors import CatalogExists, CatalogNotFound, ClosedError, ConfigError
from streamloader.stores.io_thread import close_shared_stores
from streamloader.testing.catalogs.binding import PLACES, CatalogBinding, made, run

__all__ = ["LifeCatalogSuite"]

_PATIENCE = 40  # seconds that a forked child may take


class LifeCatalogSuite(CatalogBinding):
    """One instance serves many tasks, and survives what happens to them and to its process."""

    # --- there or not ------------------------------------------------------------------------------------------------

    def test_a_catalog_is_created_once(self) -> None:
        async def create() -> None:
            async with self.catalog() as catalog:
                header = await catalog.create(PLACES[::-1])
                assert header == await catalog.header()
                assert header.places == PLACES
                assert header.schema == SCHEMA
                assert len(header.archive) == 32
                assert set(header.archive) <= set("0123456789abcdef")
                with pytest.raises(CatalogExists):
                    await catalog.create(PLACES)
            async with self.catalog() as other:
                with pytest.raises(CatalogExists):
                    await other.create(PLACES[:1])
                assert await other.header() == header

        run(create)

    def test_only_one_of_many_creates_it(self) -> None:
        async def create() -> Header | CatalogExists:
            async with self.catalog() as catalog:
                try:
                    return await catalog.create(PLACES)
                except CatalogExists as error:
                    return error

        async def create_all() -> None:
            found = await asyncio.gather(*(create() for _ in range(self.writers)))
            (header,) = (one for one in found if isinstance(one, Header))
            async with self.catalog() as catalog:
                assert await catalog.header() == header
                assert await catalog.problems() == []

        run(create_all)

    def test_places_that_make_no_sense_create_nothing(self) -> None:
        async def create() -> None:
            async with self.catalog() as catalog:
                for places in ([], PLACES[1:], [PLACES[0], PLACES[0]]):
                    with pytest.raises(ConfigError):
                        await catalog.create(places)
                    with pytest.raises(CatalogNotFound):
                        await catalog.header()
                await catalog.create(PLACES)

        run(create)

    def test_nothing_is_found_where_there_is_no_catalog(self) -> None:
        video = made(1)
        uses: list[Callable[[Catalog], Coroutine[Any, Any, Any]]] = [
            lambda catalog: catalog.header(),
            lambda catalog: catalog.snapshot(),
            lambda catalog: catalog.locate(0, 1),
            lambda catalog: catalog.video(0),
            lambda catalog: catalog.begin(video.job),
            lambda catalog: catalog.stage(video.chunks),
            lambda catalog: catalog.commit(video.video),
            lambda catalog: catalog.jobs(),
            lambda catalog: catalog.set_places(PLACES),
            lambda catalog: catalog.count({"a": 1}),
            lambda catalog: catalog.problems(),
            lambda catalog: anext(catalog.find()),
            lambda catalog: anext(catalog.paths(0)),
        ]

        async def ask(catalog: Catalog) -> None:
            for use in uses:
                with pytest.raises(CatalogNotFound) as caught:
                    await use(catalog)
                assert caught.value.address == catalog.url
                self.assert_tells_no_secret(str(caught.value))
            await catalog.create(PLACES)
            assert len((await catalog.header()).places) == 3

        self.use(ask, create=False)

    def test_says_where_it_is(self) -> None:
        url, _ = self.location()
        catalog = self.make_catalog(timeout=7.5)
        assert catalog.timeout == 7.5
        assert catalog.url
        assert catalog.url in repr(catalog)
        assert all(secret not in catalog.url + repr(catalog) for secret in self.secrets)
        assert type(catalog).schemes
        assert not self.schemes or set(self.schemes) <= set(type(catalog).schemes)
        assert url
        run(catalog.aclose)

    def test_a_timeout_has_to_make_sense(self) -> None:
        for timeout in (0, -1, float("nan")):
            with pytest.raises(ConfigError):
                self.make_catalog(timeout=timeout)

    def assert_tells_no_secret(self, text: str) -> None:
        """See that none of :attr:`secrets` is in a text."""
        assert all(secret not in text for secret in self.secrets)

    # --- closed, cancelled -------------------------------------------------------------------------------------------

    def test_closes_twice(self) -> None:
        async def close() -> None:
            catalog = self.make_catalog()
            await catalog.aclose()
            catalog = self.make_catalog()
            await catalog.create(PLACES)
            await catalog.aclose()
            await catalog.aclose()
            with pytest.raises(ClosedError):
                await catalog.header()

        run(close)

    def test_another_instance_sees_all(self) -> None:
        async def see() -> None:
            async with self.catalog() as catalog:
                header = await catalog.create(PLACES)
                row = await made(1).add(catalog)
            async with self.catalog() as catalog:
                assert await catalog.header() == header
                assert await catalog.video(0) == row

        run(see)

    def test_64_lookups_at_once(self) -> None:
        async def read(catalog: Catalog) -> None:
            rows = [await made(seed).add(catalog) for seed in range(4)]
            found = await asyncio.gather(*(catalog.locate(12 * (at % 4), 12 * (at % 4) + 1) for at in range(64)))
            # By number: where they differ, pytest would work out the differences of whole rows for minutes.
            assert all(held[0].video in rows for held in found)
            assert [rows.index(held[0].video) for held in found] == [at % 4 for at in range(64)]

        self.use(read)

    def test_a_cancelled_call_is_done_or_not(self) -> None:
        videos = [made(seed) for seed in range(24)]

        async def add(catalog: Catalog) -> None:
            await catalog.header()
            for waits, video in enumerate(videos):
                assert await catalog.begin(video.job) is None
                for step in (lambda: catalog.stage(video.chunks), lambda: catalog.commit(video.video)):  # noqa: B023
                    task: asyncio.Future[Any] = asyncio.ensure_future(step())
                    for _ in range(waits // 2):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    rows = await catalog.staged(video.content)
                    assert rows in ([], video.rows)
                    if not rows and await catalog.containing(video.content) is None:
                        await catalog.stage(video.chunks)
                row = await catalog.commit(video.video)
                assert row.number == waits
            assert [row.content async for row in catalog.find()] == [video.content for video in videos]

        self.use(add)

    def test_a_listing_can_be_left(self) -> None:
        async def read(catalog: Catalog) -> None:
            for seed in range(3):
                await made(seed).add(catalog)
            for listing in (catalog.find(), catalog.paths(0)):
                await anext(listing)
                await listing.aclose()
            assert (await catalog.snapshot()).videos == 3

        self.use(read)

    # --- threads, processes ------------------------------------------------------------------------------------------

    def test_the_shared_catalog_gives_the_same(self) -> None:
        async def prepare(catalog: Catalog) -> VideoRow:
            return await made(1).add(catalog)

        row = self.use(prepare)
        url, options = self.location()
        with shared_catalog(url, options) as one, shared_catalog(url, options) as other:
            assert one.it is other.it
            assert one.call(one.it.video(0)) == row
        close_shared_stores()

    def test_a_forked_child_can_use_it(self) -> None:
        async def prepare(catalog: Catalog) -> VideoRow:
            return await made(1).add(catalog)

        row = self.use(prepare)
        url, options = self.location()
        with shared_catalog(url, options) as parents:
            assert parents.call(parents.it.video(0)) == row

            def child() -> None:
                with pytest.raises(ClosedError):
                    parents.call(parents.it.video(0))
                with shared_catalog(url, options) as own:
                    assert own.call(own.it.video(0)) == row
                    own.call(made(2).add(own.it))
                close_shared_stores()

            _in_fork(child)
            assert parents.call(parents.it.snapshot()).videos == 2
            assert parents.call(parents.it.problems()) == []
        close_shared_stores()


def _in_fork(function: Callable[[], None]) -> None:
    """Call a function in a forked child; fail if it does, or takes too long."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are running: that is what is tested
        pid = os.fork()
    if pid == 0:
        told = b""
        try:
            import signal

            signal.alarm(_PATIENCE)
            function()
        except BaseException:  # noqa: BLE001 - it is told below
            told = traceback.format_exc().encode()
        os.write(writing, told)
        os._exit(0 if not told else 1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}: {told.decode()}"
