"""The part of the catalog suite that adds, fails to add, and adds at once."""

# ruff: noqa: D102 - the name of a test says what it shows

from __future__ import annotations

import asyncio
import dataclasses
import random
from fractions import Fraction
from typing import Any

import pytest

from streamloader.archive.catalog.base import Catalog, Place, Snapshot, StagedChunk, VideoRow
from streamloader.errors import CatalogError, ConfigError, NameTaken
from streamloader.testing.catalogs.binding import PLACES, CatalogBinding, Made, made

__all__ = ["WriteCatalogSuite"]


class WriteCatalogSuite(CatalogBinding):
    """Steps are whole or not done, and numbers have no gaps."""

    # --- jobs --------------------------------------------------------------------------------------------------------

    def test_nobody_sees_a_job(self) -> None:
        done, job = made(0), made(1)

        async def add(catalog: Catalog) -> None:
            row = await done.add(catalog)
            assert await catalog.begin(job.job) is None
            await catalog.stage(job.chunks)
            assert await catalog.snapshot() == Snapshot(1, row.frames, row.chunks, row.duration)
            assert await catalog.video(1) is None
            assert await catalog.named(job.video.name) is None
            assert await catalog.containing(job.content) is None
            assert await catalog.video_at(10**15) == row
            assert [found async for found in catalog.find()] == [row]
            assert await catalog.chunks(job.content, 0, 9) == []
            with pytest.raises(CatalogError):
                await catalog.locate(row.frames, row.frames + 1)
            with pytest.raises(CatalogError):
                await catalog.indexes(job.content, [0])
            assert await catalog.staged(job.content) == job.rows
            assert await catalog.staged(done.content) == []
            assert await catalog.jobs() == [job.job]

        self.use(add)

    def test_a_job_is_gone_on_with(self) -> None:
        job = made(1)
        later = dataclasses.replace(job.job, name="other.mp4", source="/other", begun=5.0, beat=1_700_000_099.0)

        async def add(catalog: Catalog) -> None:
            await catalog.begin(job.job)
            await catalog.stage(job.chunks[:2])
            async with self.catalog() as other:
                assert await other.begin(later) is None
                assert await other.jobs() == [dataclasses.replace(later, begun=job.job.begun)]
                assert await other.staged(job.content) == job.rows[:2]
                await other.stage(job.chunks[2:])
                row = await other.commit(dataclasses.replace(job.video, name="other.mp4"))
            assert await catalog.jobs() == []
            assert await catalog.named("other.mp4") == row
            assert await catalog.chunks(job.content, 0, 9) == job.rows

        self.use(add)

    def test_a_job_beats(self) -> None:
        async def add(catalog: Catalog) -> None:
            for seed in (2, 0, 1):
                await catalog.begin(made(seed).job)
            await catalog.beat(made(0).content, 1_700_000_123.5)
            await catalog.beat("0" * 64, 7.0)
            wanted = [made(seed).job for seed in range(3)]
            wanted[0] = dataclasses.replace(wanted[0], beat=1_700_000_123.5)
            assert await catalog.jobs() == sorted(wanted, key=lambda job: job.content)

        self.use(add)

    def test_an_abandoned_job_leaves_nothing(self) -> None:
        job = made(1)

        async def add(catalog: Catalog) -> None:
            row = await made(0).add(catalog)
            await catalog.begin(job.job)
            await catalog.stage(job.chunks)
            await catalog.abandon(job.content)
            await catalog.abandon(job.content)
            await catalog.abandon(made(0).content)
            assert await catalog.jobs() == []
            assert await catalog.staged(job.content) == []
            pairs = [pair for place in range(3) for pair in [pair async for pair in catalog.paths(place)]]
            assert sorted(pairs) == sorted((chunk.content, chunk.path) for chunk in made(0).rows)
            assert await catalog.video(0) == row
            with pytest.raises(CatalogError):
                await catalog.stage(job.chunks[:1])
            assert (await job.add(catalog)).number == 1

        self.use(add)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def test_chunks_in_any_order_and_again(self) -> None:
        video = made(1, [2, 3, 4, 5])
        old = video.chunks[2]
        other = StagedChunk(dataclasses.replace(old.row, frames=9, path="x/y.mp4", coding="e" * 32), b"old", {"x": 1})

        async def add(catalog: Catalog) -> None:
            await catalog.begin(video.job)
            await catalog.stage([video.chunks[3], other, video.chunks[0]])
            assert await catalog.staged(video.content) == [video.rows[0], other.row, video.rows[3]]
            await catalog.stage([video.chunks[1], old])
            await catalog.stage([])
            assert await catalog.staged(video.content) == video.rows
            await catalog.commit(video.video)
            assert await catalog.indexes(video.content, range(4)) == [chunk.index for chunk in video.chunks]
            assert await catalog.codings([old.row.coding]) == [old.coding]

        self.use(add)

    def test_chunks_are_kept_all_or_none(self) -> None:
        video, stranger = made(1), made(2)
        lost = StagedChunk(dataclasses.replace(video.rows[1], place=9), b"i", video.chunks[1].coding)
        odd = StagedChunk(dataclasses.replace(video.rows[1], digest="md5:0"), b"i", video.chunks[1].coding)

        async def add(catalog: Catalog) -> None:
            await catalog.begin(video.job)
            for bad, error in ((stranger.chunks[0], CatalogError), (lost, CatalogError), (odd, ConfigError)):
                with pytest.raises(error):
                    await catalog.stage([video.chunks[0], bad])
                assert await catalog.staged(video.content) == []
            assert await catalog.staged(stranger.content) == []

        self.use(add)

    def test_no_chunks_without_a_job(self) -> None:
        video = made(1)

        async def add(catalog: Catalog) -> None:
            with pytest.raises(CatalogError):
                await catalog.stage(video.chunks)
            with pytest.raises(CatalogError):
                await catalog.commit(video.video)
            await video.add(catalog)
            with pytest.raises(CatalogError):
                await catalog.stage(video.chunks)
            assert await catalog.chunks(video.content, 0, 9) == video.rows

        self.use(add)

    # --- commits -----------------------------------------------------------------------------------------------------

    def test_a_video_that_is_not_whole_is_refused(self) -> None:
        video = made(1, [4, 4, 4, 4])

        def changed(number: int, **values: Any) -> StagedChunk:
            chunk = video.chunks[number]
            return dataclasses.replace(chunk, row=dataclasses.replace(chunk.row, **values))

        first_pts = video.rows[1].first_pts
        wrong = [
            video.chunks[:3],
            video.chunks[1:],
            [*video.chunks[:2], video.chunks[3]],
            [*video.chunks[:3], changed(3, frames=3)],
            [video.chunks[0], changed(1, frames=5), *video.chunks[2:]],
            [*video.chunks[:2], changed(2, first=9), video.chunks[3]],
            [*video.chunks[:2], changed(2, first_pts=first_pts), video.chunks[3]],
            [],
        ]

        async def add(catalog: Catalog) -> None:
            for chunks in wrong:
                await catalog.begin(video.job)
                await catalog.stage(chunks)
                with pytest.raises(CatalogError):
                    await catalog.commit(video.video)
                assert await catalog.jobs() == [video.job]
                assert await catalog.staged(video.content) == [chunk.row for chunk in chunks]
                assert await catalog.snapshot() == Snapshot()
                await catalog.abandon(video.content)
            await catalog.begin(video.job)
            await catalog.stage(video.chunks[:2])
            with pytest.raises(CatalogError):
                await catalog.commit(video.video)
            await catalog.stage(video.chunks[2:])
            assert (await catalog.commit(video.video)).number == 0

        self.use(add)

    def test_what_makes_no_sense_is_refused(self) -> None:
        video = made(1)
        deep: dict[str, object] = {}
        for _ in range(50):
            deep = {"a": deep}

        async def add(catalog: Catalog) -> None:
            await catalog.begin(video.job)
            await catalog.stage(video.chunks)
            for values in (
                {"metadata": {"a.b": 1}},
                {"metadata": {"$a": 1}},
                {"metadata": {"": 1}},
                {"metadata": {"a": float("inf")}},
                {"metadata": {"a": b"x"}},
                {"metadata": {"a": 2**63}},
                {"metadata": {1: 1}},
                {"metadata": deep},
                {"name": ""},
                {"mode": "other"},
                {"height": 0},
                {"end": video.video.first_pts},
                {"time_base": Fraction(0)},
            ):
                with pytest.raises(ConfigError):
                    await catalog.commit(dataclasses.replace(video.video, **values))
            with pytest.raises(ConfigError):
                await catalog.begin(dataclasses.replace(video.job, content="../x"))
            with pytest.raises(ConfigError):
                await catalog.begin(dataclasses.replace(video.job, name=""))
            assert await catalog.snapshot() == Snapshot()
            await catalog.commit(video.video)

        self.use(add)

    def test_names_are_unique(self) -> None:
        first, second = made(1), made(2, name=made(1).video.name)

        async def add(catalog: Catalog) -> None:
            await catalog.begin(second.job)
            await catalog.stage(second.chunks)
            row = await first.add(catalog)
            with pytest.raises(NameTaken):
                await catalog.commit(second.video)
            assert await catalog.staged(second.content) == second.rows
            with pytest.raises(NameTaken):
                await catalog.begin(second.job)
            assert (await catalog.commit(dataclasses.replace(second.video, name="another"))).number == 1
            assert await catalog.named(first.video.name) == row

        self.use(add)

    def test_the_same_content_is_recognised(self) -> None:
        video = made(1)

        async def add(catalog: Catalog) -> None:
            row = await video.add(catalog)
            again = dataclasses.replace(video.job, name="again")
            assert await catalog.begin(again) == row
            assert await catalog.jobs() == []
            assert await catalog.commit(dataclasses.replace(video.video, name="again")) == row
            assert (await catalog.snapshot()).videos == 1

        self.use(add)

    def test_places_grow_and_change(self) -> None:
        moved = [PLACES[2], Place(0, "/moved"), Place(1, PLACES[1].url, 0.0), Place(3, "gs://new", 7)]

        async def add(catalog: Catalog) -> None:
            header = await catalog.header()
            assert header.places == PLACES
            changed = await catalog.set_places(moved)
            assert changed == await catalog.header()
            assert changed == dataclasses.replace(header, places=(moved[1], moved[2], moved[0], moved[3]))
            for wrong in (
                moved[:3],
                [],
                [*moved, Place(5, "/gap")],
                [*moved, Place(3, "/twice")],
                [*moved[:3], Place(3, "")],
                [*moved[:3], Place(3, "/x", -1.0)],
                [*moved[:3], Place(3, "/x", float("nan"))],
                [*moved[:3], Place(3, "ssh://me:open-sesame@vault/x")],
            ):
                with pytest.raises(ConfigError) as caught:
                    await catalog.set_places(wrong)
                assert "open-sesame" not in str(caught.value)
                assert await catalog.header() == changed

        self.use(add)

    # --- many at once ------------------------------------------------------------------------------------------------

    def test_many_writers(self) -> None:
        videos = [[made(writer * 10 + at, [1, 2]) for at in range(4)] for writer in range(self.writers)]

        async def write(own: list[Made]) -> list[VideoRow]:
            async with self.catalog() as catalog:
                return [await video.add(catalog) for video in own]

        async def add(catalog: Catalog) -> None:
            rows = [row for own in await asyncio.gather(*map(write, videos)) for row in own]
            rows.sort(key=lambda row: row.number)
            assert [row.number for row in rows] == list(range(4 * self.writers))
            assert [row.start for row in rows] == [3 * number for number in range(4 * self.writers)]
            assert [row async for row in catalog.find()] == rows

        self.use(add)

    def test_many_writers_of_the_same(self) -> None:
        video = made(1, [1] * 12)

        async def write(at: int) -> VideoRow | str:
            async with self.catalog() as catalog:
                try:
                    if (row := await catalog.begin(video.job)) is not None:
                        return row
                    for chunk in video.chunks[at:] + video.chunks[:at]:
                        await catalog.stage([chunk])
                    return await catalog.commit(video.video)
                except CatalogError as error:  # another was faster
                    return error.message

        async def add(catalog: Catalog) -> None:
            found = await asyncio.gather(*map(write, range(self.writers)))
            rows = [row for row in found if isinstance(row, VideoRow)]
            assert rows
            assert rows == [await catalog.video(0)] * len(rows)
            assert await catalog.snapshot() == Snapshot(1, 12, 12, rows[0].duration)
            assert await catalog.jobs() == []
            assert await catalog.chunks(video.content, 0, 99) == video.rows

        self.use(add)

    def test_readers_see_whole_videos_while_others_write(self) -> None:
        videos = [made(seed, [2, 3, 1]) for seed in range(12)]

        async def read(done: asyncio.Event) -> int:
            seen = 0
            async with self.catalog() as catalog:
                while not done.is_set():
                    now = await catalog.snapshot()
                    assert (now.frames, now.chunks) == (6 * now.videos, 3 * now.videos)
                    assert now.videos >= seen
                    seen = now.videos
                    if seen:
                        (last,) = await catalog.locate(now.frames - 6, now.frames)
                        assert list(last.chunks) == videos[seen - 1].rows
            return seen

        async def add(catalog: Catalog) -> None:
            done = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(read(done))
                for video in videos:
                    await video.add(catalog)
                done.set()

        self.use(add)

    def test_any_order_of_steps(self) -> None:
        chance = random.Random(5)  # noqa: S311 - not for secrets
        videos = [made(seed, [1, 2, 1][: 1 + seed % 3]) for seed in range(6)]

        async def add(catalog: Catalog) -> None:
            staged: dict[int, dict[int, StagedChunk]] = {}
            order: list[int] = []
            for _ in range(150):
                seed, step = chance.randrange(6), chance.randrange(10)
                video = videos[seed]
                if step < 2:
                    row = await catalog.begin(video.job)
                    assert (row is not None) == (seed in order)
                    if row is None:
                        staged.setdefault(seed, {})
                elif step < 7:
                    chunk = chance.choice(video.chunks)
                    if seed in staged:
                        await catalog.stage([chunk])
                        staged[seed][chunk.row.number] = chunk
                    else:
                        with pytest.raises(CatalogError):
                            await catalog.stage([chunk])
                elif step < 9:
                    whole = len(staged.get(seed, ())) == len(video.chunks)
                    if seed in order or whole:
                        row = await catalog.commit(video.video)
                        if whole:
                            order.append(seed)
                            del staged[seed]
                        assert row.number == order.index(seed)
                    else:
                        with pytest.raises(CatalogError):
                            await catalog.commit(video.video)
                else:
                    await catalog.abandon(video.content)
                    staged.pop(seed, None)
                assert [row.content async for row in catalog.find()] == [videos[one].content for one in order]
                assert {job.content for job in await catalog.jobs()} == {videos[one].content for one in staged}
                wanted = [staged.get(seed, {})[number].row for number in sorted(staged.get(seed, {}))]
                assert await catalog.staged(video.content) == wanted

        self.use(add)
