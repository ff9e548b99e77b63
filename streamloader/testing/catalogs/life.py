"""Tests of a catalog's life cycle: creation, closing, cancellation, threads, forks and pickling."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import os
import traceback
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamloader.archive.catalog.base import SCHEMA_VERSION, Catalog, CatalogHeader, VideoRow
from streamloader.archive.catalog.registry import get_shared_catalog
from streamloader.errors import CatalogExists, CatalogNotFound, ClosedError, ConfigError
from streamloader.stores.io_thread import close_shared_stores
from streamloader.testing.catalogs.binding import PLACES, CatalogBinding, make_sample_video, run

__all__ = ["LifeCatalogSuite"]

CHILD_TIMEOUT_S = 100


class LifeCatalogSuite(CatalogBinding):
    """One instance serves concurrent tasks, and works after cancellation, forks and pickling."""

    # --- creation ----------------------------------------------------------------------------------------------------

    def test_a_catalog_is_created_once(self) -> None:
        async def create() -> None:
            async with self.catalog() as catalog:
                header = await catalog.create(PLACES[::-1])
                assert header == await catalog.get_header()
                assert header.places == PLACES
                assert header.schema_version == SCHEMA_VERSION
                assert len(header.archive_id) == 32
                assert set(header.archive_id) <= set("0123456789abcdef")
                with pytest.raises(CatalogExists):
                    await catalog.create(PLACES)
            async with self.catalog() as other:
                with pytest.raises(CatalogExists):
                    await other.create(PLACES[:1])
                assert await other.get_header() == header

        run(create)

    def test_only_one_of_many_creates_it(self) -> None:
        async def create() -> CatalogHeader | CatalogExists:
            async with self.catalog() as catalog:
                try:
                    return await catalog.create(PLACES)
                except CatalogExists as error:
                    return error

        async def create_all() -> None:
            results = await asyncio.gather(*(create() for _ in range(self.writers)))
            (header,) = (result for result in results if isinstance(result, CatalogHeader))
            async with self.catalog() as catalog:
                assert await catalog.get_header() == header
                assert await catalog.find_problems() == []

        run(create_all)

    def test_invalid_places_create_nothing(self) -> None:
        async def create() -> None:
            async with self.catalog() as catalog:
                for places in ([], PLACES[1:], [PLACES[0], PLACES[0]]):
                    with pytest.raises(ConfigError):
                        await catalog.create(places)
                    with pytest.raises(CatalogNotFound):
                        await catalog.get_header()
                await catalog.create(PLACES)

        run(create)

    def test_a_missing_catalog_is_not_found(self) -> None:
        video = make_sample_video(1)
        uses: list[Callable[[Catalog], Coroutine[Any, Any, Any]]] = [
            lambda catalog: catalog.get_header(),
            lambda catalog: catalog.get_snapshot(),
            lambda catalog: catalog.locate_frames(0, 1),
            lambda catalog: catalog.get_video(0),
            lambda catalog: catalog.begin_job(video.job),
            lambda catalog: catalog.stage_chunks(video.chunks),
            lambda catalog: catalog.commit_video(video.video),
            lambda catalog: catalog.list_jobs(),
            lambda catalog: catalog.set_places(PLACES),
            lambda catalog: catalog.count_videos({"a": 1}),
            lambda catalog: catalog.find_problems(),
            lambda catalog: anext(catalog.find_videos()),
            lambda catalog: anext(catalog.list_chunk_paths(0)),
        ]

        async def check(catalog: Catalog) -> None:
            for use in uses:
                with pytest.raises(CatalogNotFound) as caught:
                    await use(catalog)
                assert caught.value.address == catalog.url
                self.assert_no_secret_in(str(caught.value))
            await catalog.create(PLACES)
            assert len((await catalog.get_header()).places) == 3

        self.use(check, create=False)

    def test_shows_its_address(self) -> None:
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

    def test_refuses_invalid_timeouts(self) -> None:
        for timeout in (0, -1, float("nan")):
            with pytest.raises(ConfigError):
                self.make_catalog(timeout=timeout)

    def assert_no_secret_in(self, text: str) -> None:
        """Check that a text contains none of :attr:`secrets`."""
        assert all(secret not in text for secret in self.secrets)

    # --- closing, cancellation ---------------------------------------------------------------------------------------

    def test_closes_twice(self) -> None:
        async def close() -> None:
            catalog = self.make_catalog()
            await catalog.aclose()
            catalog = self.make_catalog()
            await catalog.create(PLACES)
            await catalog.aclose()
            await catalog.aclose()
            with pytest.raises(ClosedError):
                await catalog.get_header()

        run(close)

    def test_another_instance_sees_all(self) -> None:
        async def see() -> None:
            async with self.catalog() as catalog:
                header = await catalog.create(PLACES)
                row = await make_sample_video(1).add(catalog)
            async with self.catalog() as catalog:
                assert await catalog.get_header() == header
                assert await catalog.get_video(0) == row

        run(see)

    def test_64_lookups_at_once(self) -> None:
        async def read(catalog: Catalog) -> None:
            rows = [await make_sample_video(seed).add(catalog) for seed in range(4)]
            found = await asyncio.gather(*(catalog.locate_frames(12 * (at % 4), 12 * (at % 4) + 1) for at in range(64)))
            # Compare numbers: for different rows, pytest would compute their differences for minutes.
            assert all(located[0].video in rows for located in found)
            assert [rows.index(located[0].video) for located in found] == [at % 4 for at in range(64)]

        self.use(read)

    def test_a_cancelled_call_is_done_or_not(self) -> None:
        videos = [make_sample_video(seed) for seed in range(24)]

        async def add(catalog: Catalog) -> None:
            await catalog.get_header()
            for waits, video in enumerate(videos):
                assert await catalog.begin_job(video.job) is None
                for step in (lambda: catalog.stage_chunks(video.chunks), lambda: catalog.commit_video(video.video)):  # noqa: B023
                    task: asyncio.Future[Any] = asyncio.ensure_future(step())
                    for _ in range(waits // 2):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    rows = await catalog.get_staged_chunks(video.content)
                    assert rows in ([], video.rows)
                    if not rows and await catalog.get_video_by_content(video.content) is None:
                        await catalog.stage_chunks(video.chunks)
                row = await catalog.commit_video(video.video)
                assert row.number == waits
            assert [row.content async for row in catalog.find_videos()] == [video.content for video in videos]

        self.use(add)

    def test_a_listing_can_be_left(self) -> None:
        async def read(catalog: Catalog) -> None:
            for seed in range(3):
                await make_sample_video(seed).add(catalog)
            for listing in (catalog.find_videos(), catalog.list_chunk_paths(0)):
                await anext(listing)
                await listing.aclose()
            assert (await catalog.get_snapshot()).videos == 3

        self.use(read)

    # --- threads, processes ------------------------------------------------------------------------------------------

    def test_the_shared_catalog_gives_the_same(self) -> None:
        async def prepare(catalog: Catalog) -> VideoRow:
            return await make_sample_video(1).add(catalog)

        row = self.use(prepare)
        url, options = self.location()
        with get_shared_catalog(url, options) as one, get_shared_catalog(url, options) as other:
            assert one.resource is other.resource
            assert one.call(one.resource.get_video(0)) == row
        close_shared_stores()

    def test_a_forked_child_can_use_it(self) -> None:
        async def prepare(catalog: Catalog) -> VideoRow:
            return await make_sample_video(1).add(catalog)

        row = self.use(prepare)
        url, options = self.location()
        with get_shared_catalog(url, options) as parents:
            assert parents.call(parents.resource.get_video(0)) == row

            def child() -> None:
                with pytest.raises(ClosedError):
                    parents.call(parents.resource.get_video(0))
                with get_shared_catalog(url, options) as own:
                    assert own.call(own.resource.get_video(0)) == row
                    own.call(make_sample_video(2).add(own.resource))
                close_shared_stores()

            _in_fork(child)
            assert parents.call(parents.resource.get_snapshot()).videos == 2
            assert parents.call(parents.resource.find_problems()) == []
        close_shared_stores()


def _in_fork(function: Callable[[], None]) -> None:
    """Call a function in a forked child. Fail if the function raises an error, or takes too long."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is the point of the test
        pid = os.fork()
    if pid == 0:
        report = b""
        try:
            import signal

            signal.alarm(CHILD_TIMEOUT_S)
            function()
        except BaseException:  # noqa: BLE001 - reported below
            report = traceback.format_exc().encode()
        os.write(writing, report)
        os._exit(0 if not report else 1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        report = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child exited with status {status}: {report.decode()}"
