"""Tests of adding videos to a catalog: jobs, chunks, commits, places and concurrent writers."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import dataclasses
import random
from fractions import Fraction
from typing import Any

import pytest

from streamloader.archive.catalog.base import Catalog, Place, Snapshot, StagedChunk, VideoRow
from streamloader.errors import CatalogError, ConfigError, NameConflict
from streamloader.testing.catalogs.binding import PLACES, CatalogBinding, SampleVideo, make_sample_video

__all__ = ["WriteCatalogSuite"]


class WriteCatalogSuite(CatalogBinding):
    """Each step is atomic, and the numbers of videos have no gaps."""

    # --- jobs --------------------------------------------------------------------------------------------------------

    def test_readers_do_not_see_jobs(self) -> None:
        done, job = make_sample_video(0), make_sample_video(1)

        async def add(catalog: Catalog) -> None:
            row = await done.add(catalog)
            assert await catalog.begin_job(job.job) is None
            await catalog.stage_chunks(job.chunks)
            assert await catalog.get_snapshot() == Snapshot(1, row.frames, row.chunks, row.duration_ns)
            assert await catalog.get_video(1) is None
            assert await catalog.get_video_by_name(job.video.name) is None
            assert await catalog.get_video_by_content(job.content) is None
            assert await catalog.get_video_at(10**15) == row
            assert [found async for found in catalog.find_videos()] == [row]
            assert await catalog.get_chunks(job.content, 0, 9) == []
            with pytest.raises(CatalogError):
                await catalog.locate_frames(row.frames, row.frames + 1)
            with pytest.raises(CatalogError):
                await catalog.get_indexes(job.content, [0])
            assert await catalog.get_staged_chunks(job.content) == job.rows
            assert await catalog.get_staged_chunks(done.content) == []
            assert await catalog.list_jobs() == [job.job]

        self.use(add)

    def test_a_job_can_be_resumed(self) -> None:
        job = make_sample_video(1)
        later = dataclasses.replace(job.job, name="other.mp4", source="/other", started=5.0, heartbeat=1_700_000_099.0)

        async def add(catalog: Catalog) -> None:
            await catalog.begin_job(job.job)
            await catalog.stage_chunks(job.chunks[:2])
            async with self.catalog() as other:
                assert await other.begin_job(later) is None
                assert await other.list_jobs() == [dataclasses.replace(later, started=job.job.started)]
                assert await other.get_staged_chunks(job.content) == job.rows[:2]
                await other.stage_chunks(job.chunks[2:])
                row = await other.commit_video(dataclasses.replace(job.video, name="other.mp4"))
            assert await catalog.list_jobs() == []
            assert await catalog.get_video_by_name("other.mp4") == row
            assert await catalog.get_chunks(job.content, 0, 9) == job.rows

        self.use(add)

    def test_a_heartbeat_is_recorded(self) -> None:
        async def add(catalog: Catalog) -> None:
            for seed in (2, 0, 1):
                await catalog.begin_job(make_sample_video(seed).job)
            await catalog.record_heartbeat(make_sample_video(0).content, 1_700_000_123.5)
            await catalog.record_heartbeat("0" * 64, 7.0)
            wanted = [make_sample_video(seed).job for seed in range(3)]
            wanted[0] = dataclasses.replace(wanted[0], heartbeat=1_700_000_123.5)
            assert await catalog.list_jobs() == sorted(wanted, key=lambda job: job.content)

        self.use(add)

    def test_an_abandoned_job_leaves_nothing(self) -> None:
        job = make_sample_video(1)

        async def add(catalog: Catalog) -> None:
            row = await make_sample_video(0).add(catalog)
            await catalog.begin_job(job.job)
            await catalog.stage_chunks(job.chunks)
            await catalog.abandon_job(job.content)
            await catalog.abandon_job(job.content)
            await catalog.abandon_job(make_sample_video(0).content)
            assert await catalog.list_jobs() == []
            assert await catalog.get_staged_chunks(job.content) == []
            pairs = [pair for place in range(3) for pair in [pair async for pair in catalog.list_chunk_paths(place)]]
            assert sorted(pairs) == sorted((chunk.content, chunk.path) for chunk in make_sample_video(0).rows)
            assert await catalog.get_video(0) == row
            with pytest.raises(CatalogError):
                await catalog.stage_chunks(job.chunks[:1])
            assert (await job.add(catalog)).number == 1

        self.use(add)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def test_chunks_in_any_order_and_again(self) -> None:
        video = make_sample_video(1, [2, 3, 4, 5])
        old = video.chunks[2]
        path = old.row.path.replace(".mp4", ".mkv")
        other = StagedChunk(dataclasses.replace(old.row, frames=9, path=path, coding="e" * 32), b"old", {"x": 1})

        async def add(catalog: Catalog) -> None:
            await catalog.begin_job(video.job)
            await catalog.stage_chunks([video.chunks[3], other, video.chunks[0]])
            assert await catalog.get_staged_chunks(video.content) == [video.rows[0], other.row, video.rows[3]]
            await catalog.stage_chunks([video.chunks[1], old])
            await catalog.stage_chunks([])
            assert await catalog.get_staged_chunks(video.content) == video.rows
            await catalog.commit_video(video.video)
            assert await catalog.get_indexes(video.content, range(4)) == [chunk.index for chunk in video.chunks]
            assert await catalog.get_codings([old.row.coding]) == [old.coding]

        self.use(add)

    def test_chunks_are_kept_all_or_none(self) -> None:
        video, stranger = make_sample_video(1), make_sample_video(2)
        lost = StagedChunk(dataclasses.replace(video.rows[1], place=9), b"i", video.chunks[1].coding)
        odd = StagedChunk(dataclasses.replace(video.rows[1], digest="md5:0"), b"i", video.chunks[1].coding)

        async def add(catalog: Catalog) -> None:
            await catalog.begin_job(video.job)
            for bad, error in ((stranger.chunks[0], CatalogError), (lost, CatalogError), (odd, ConfigError)):
                with pytest.raises(error):
                    await catalog.stage_chunks([video.chunks[0], bad])
                assert await catalog.get_staged_chunks(video.content) == []
            assert await catalog.get_staged_chunks(stranger.content) == []

        self.use(add)

    def test_no_chunks_without_a_job(self) -> None:
        video = make_sample_video(1)

        async def add(catalog: Catalog) -> None:
            with pytest.raises(CatalogError):
                await catalog.stage_chunks(video.chunks)
            with pytest.raises(CatalogError):
                await catalog.commit_video(video.video)
            await video.add(catalog)
            with pytest.raises(CatalogError):
                await catalog.stage_chunks(video.chunks)
            assert await catalog.get_chunks(video.content, 0, 9) == video.rows

        self.use(add)

    # --- commits -----------------------------------------------------------------------------------------------------

    def test_a_video_that_is_not_whole_is_refused(self) -> None:
        video = make_sample_video(1, [4, 4, 4, 4])

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
            [*video.chunks[:2], changed(2, first_frame=9), video.chunks[3]],
            [*video.chunks[:2], changed(2, first_pts=first_pts), video.chunks[3]],
            [],
        ]

        async def add(catalog: Catalog) -> None:
            for chunks in wrong:
                await catalog.begin_job(video.job)
                await catalog.stage_chunks(chunks)
                with pytest.raises(CatalogError):
                    await catalog.commit_video(video.video)
                assert await catalog.list_jobs() == [video.job]
                assert await catalog.get_staged_chunks(video.content) == [chunk.row for chunk in chunks]
                assert await catalog.get_snapshot() == Snapshot()
                await catalog.abandon_job(video.content)
            await catalog.begin_job(video.job)
            await catalog.stage_chunks(video.chunks[:2])
            with pytest.raises(CatalogError):
                await catalog.commit_video(video.video)
            await catalog.stage_chunks(video.chunks[2:])
            assert (await catalog.commit_video(video.video)).number == 0

        self.use(add)

    def test_refuses_invalid_values(self) -> None:
        video = make_sample_video(1)
        deep: dict[str, object] = {}
        for _ in range(50):
            deep = {"a": deep}

        async def add(catalog: Catalog) -> None:
            await catalog.begin_job(video.job)
            await catalog.stage_chunks(video.chunks)
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
                    await catalog.commit_video(dataclasses.replace(video.video, **values))
            with pytest.raises(ConfigError):
                await catalog.begin_job(dataclasses.replace(video.job, content="../x"))
            with pytest.raises(ConfigError):
                await catalog.begin_job(dataclasses.replace(video.job, name=""))
            assert await catalog.get_snapshot() == Snapshot()
            await catalog.commit_video(video.video)

        self.use(add)

    def test_names_are_unique(self) -> None:
        first, second = make_sample_video(1), make_sample_video(2, name=make_sample_video(1).video.name)

        async def add(catalog: Catalog) -> None:
            await catalog.begin_job(second.job)
            await catalog.stage_chunks(second.chunks)
            row = await first.add(catalog)
            with pytest.raises(NameConflict):
                await catalog.commit_video(second.video)
            assert await catalog.get_staged_chunks(second.content) == second.rows
            with pytest.raises(NameConflict):
                await catalog.begin_job(second.job)
            assert (await catalog.commit_video(dataclasses.replace(second.video, name="another"))).number == 1
            assert await catalog.get_video_by_name(first.video.name) == row

        self.use(add)

    def test_the_same_content_is_recognised(self) -> None:
        video = make_sample_video(1)

        async def add(catalog: Catalog) -> None:
            row = await video.add(catalog)
            again = dataclasses.replace(video.job, name="again")
            assert await catalog.begin_job(again) == row
            assert await catalog.list_jobs() == []
            assert await catalog.commit_video(dataclasses.replace(video.video, name="again")) == row
            assert (await catalog.get_snapshot()).videos == 1

        self.use(add)

    def test_places_grow_and_change(self) -> None:
        moved = [PLACES[2], Place(0, "/moved"), Place(1, PLACES[1].url, 0.0), Place(3, "gs://new", 7)]

        async def add(catalog: Catalog) -> None:
            header = await catalog.get_header()
            assert header.places == PLACES
            changed = await catalog.set_places(moved)
            assert changed == await catalog.get_header()
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
                assert await catalog.get_header() == changed

        self.use(add)

    # --- concurrency -------------------------------------------------------------------------------------------------

    def test_many_writers(self) -> None:
        videos = [[make_sample_video(writer * 10 + at, [1, 2]) for at in range(4)] for writer in range(self.writers)]

        async def write(own: list[SampleVideo]) -> list[VideoRow]:
            async with self.catalog() as catalog:
                return [await video.add(catalog) for video in own]

        async def add(catalog: Catalog) -> None:
            rows = [row for own in await asyncio.gather(*map(write, videos)) for row in own]
            rows.sort(key=lambda row: row.number)
            assert [row.number for row in rows] == list(range(4 * self.writers))
            assert [row.start for row in rows] == [3 * number for number in range(4 * self.writers)]
            assert [row async for row in catalog.find_videos()] == rows

        self.use(add)

    def test_many_writers_of_the_same(self) -> None:
        video = make_sample_video(1, [1] * 12)

        async def write(at: int) -> VideoRow | str:
            async with self.catalog() as catalog:
                try:
                    if (row := await catalog.begin_job(video.job)) is not None:
                        return row
                    for chunk in video.chunks[at:] + video.chunks[:at]:
                        await catalog.stage_chunks([chunk])
                    return await catalog.commit_video(video.video)
                except CatalogError as error:  # another writer was faster
                    return error.message

        async def add(catalog: Catalog) -> None:
            found = await asyncio.gather(*map(write, range(self.writers)))
            rows = [row for row in found if isinstance(row, VideoRow)]
            assert rows
            assert rows == [await catalog.get_video(0)] * len(rows)
            assert await catalog.get_snapshot() == Snapshot(1, 12, 12, rows[0].duration_ns)
            assert await catalog.list_jobs() == []
            assert await catalog.get_chunks(video.content, 0, 99) == video.rows

        self.use(add)

    def test_readers_see_whole_videos_while_others_write(self) -> None:
        videos = [make_sample_video(seed, [2, 3, 1]) for seed in range(12)]

        async def read(done: asyncio.Event) -> int:
            seen = 0
            async with self.catalog() as catalog:
                while not done.is_set():
                    now = await catalog.get_snapshot()
                    assert (now.frames, now.chunks) == (6 * now.videos, 3 * now.videos)
                    assert now.videos >= seen
                    seen = now.videos
                    if seen:
                        (last,) = await catalog.locate_frames(now.frames - 6, now.frames)
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
        videos = [make_sample_video(seed, [1, 2, 1][: 1 + seed % 3]) for seed in range(6)]

        async def add(catalog: Catalog) -> None:
            staged: dict[int, dict[int, StagedChunk]] = {}
            order: list[int] = []
            for _ in range(150):
                seed, step = chance.randrange(6), chance.randrange(10)
                video = videos[seed]
                if step < 2:
                    row = await catalog.begin_job(video.job)
                    assert (row is not None) == (seed in order)
                    if row is None:
                        staged.setdefault(seed, {})
                elif step < 7:
                    chunk = chance.choice(video.chunks)
                    if seed in staged:
                        await catalog.stage_chunks([chunk])
                        staged[seed][chunk.row.number] = chunk
                    else:
                        with pytest.raises(CatalogError):
                            await catalog.stage_chunks([chunk])
                elif step < 9:
                    whole = len(staged.get(seed, ())) == len(video.chunks)
                    if seed in order or whole:
                        row = await catalog.commit_video(video.video)
                        if whole:
                            order.append(seed)
                            del staged[seed]
                        assert row.number == order.index(seed)
                    else:
                        with pytest.raises(CatalogError):
                            await catalog.commit_video(video.video)
                else:
                    await catalog.abandon_job(video.content)
                    staged.pop(seed, None)
                assert [row.content async for row in catalog.find_videos()] == [videos[one].content for one in order]
                assert {job.content for job in await catalog.list_jobs()} == {videos[one].content for one in staged}
                wanted = [staged.get(seed, {})[number].row for number in sorted(staged.get(seed, {}))]
                assert await catalog.get_staged_chunks(video.content) == wanted

        self.use(add)
