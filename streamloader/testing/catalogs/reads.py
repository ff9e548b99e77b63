"""Tests of a catalog's lookups and queries."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from streamloader.archive.catalog.base import Catalog, ChunkRow, LocatedChunks, Snapshot, VideoRow
from streamloader.errors import CatalogError, ConfigError
from streamloader.testing.catalogs.binding import CatalogBinding, make_sample_video

__all__ = ["ReadCatalogSuite"]

_METADATA: tuple[Mapping[str, Any], ...] = (
    {},
    {"a": 1},
    {"a": 1.0, "b": {"c": "x"}},
    {"a": 2, "b": {"c": "y", "d": None}},
    {"a": "1", "b": None},
    {"a": True, "b": {"c": ["x", "z"]}},
    {"a": [1, 5], "b": [{"c": "x"}, {"d": 1}]},
    {"a": None, "tags": []},
    {"a": -(2**63) + 1, "ü": "ß", "b": {"c": "é"}},
    {"a": {"b": 1}, "tags": ["night", "rain"]},
    {"a": {"b": 1, "c": 2}, "tags": "night"},
    {"a": 1.5, "a b": {"c-d": 3}},
)
_QUERIES: tuple[tuple[Mapping[str, Any] | None, str], ...] = (  # and the matching entries of _METADATA
    (None, "0 1 2 3 4 5 6 7 8 9 10 11"),
    ({}, "0 1 2 3 4 5 6 7 8 9 10 11"),
    ({"a": 1}, "1 2 6"),
    ({"a": True}, "5"),
    ({"a": "1"}, "4"),
    ({"a": None}, "0 7"),
    ({"a": [1, 5]}, "6"),
    ({"a": {"b": 1}}, "9"),
    ({"a.b": 1}, "9 10"),
    ({"b.c": "x"}, "2 5 6"),
    ({"b.c": None}, "0 1 4 7 9 10 11"),
    ({"b.c": ["x", "z"]}, "5"),
    ({"a": {"$gt": 1}}, "3 6 11"),
    ({"a": {"$gte": 1}}, "1 2 3 6 11"),
    ({"a": {"$lt": 1}}, "8"),
    ({"a": {"$lte": 1, "$gt": -5}}, "1 2 6"),
    ({"a": {"$gt": "0"}}, "4"),
    ({"b.c": {"$gte": "y"}}, "3 5 8"),
    ({"a": {"$ne": 1}}, "0 3 4 5 7 8 9 10 11"),
    ({"a": {"$ne": None}}, "1 2 3 4 5 6 8 9 10 11"),
    ({"a": {"$in": [2, "1", None]}}, "0 3 4 7"),
    ({"a": {"$in": []}}, ""),
    ({"a": {"$exists": True}}, "1 2 3 4 5 6 7 8 9 10 11"),
    ({"a": {"$exists": False}}, "0"),
    ({"b.d": {"$exists": True}}, "3 6"),
    ({"tags": "night"}, "9 10"),
    ({"tags": []}, "7"),
    ({"ü": "ß"}, "8"),
    ({"a b.c-d": 3}, "11"),
    ({"a": 1, "b.c": "x"}, "2 6"),
    ({"a": 1, "b.c": {"$exists": False}}, "1"),
)


class ReadCatalogSuite(CatalogBinding):
    """Lookups return exactly what was added."""

    def test_an_empty_catalog_has_nothing(self) -> None:
        async def read(catalog: Catalog) -> None:
            assert await catalog.get_snapshot() == Snapshot(0, 0, 0, 0)
            assert await catalog.get_video(0) is None
            assert await catalog.get_video_at(0) is None
            assert await catalog.get_video_by_name("x") is None
            assert await catalog.find_names("") == []
            assert await catalog.get_video_by_content("0" * 64) is None
            assert await catalog.get_chunks("0" * 64, 0, 10) == []
            assert await catalog.get_staged_chunks("0" * 64) == []
            assert await catalog.list_jobs() == []
            assert [row async for row in catalog.find_videos()] == []
            assert [pair async for pair in catalog.list_chunk_paths(0)] == []
            assert await catalog.count_videos() == await catalog.count_videos({"a": 1}) == Snapshot(0, 0, 0, 0)
            assert await catalog.locate_frames(0, 0) == []
            with pytest.raises(CatalogError):
                await catalog.locate_frames(0, 1)

        self.use(read)

    def test_rows_come_back_as_they_were_put(self) -> None:
        everything = make_sample_video(3, [1, 2, 700], name='Größe "1" \\ %20$.mp4')

        async def read(catalog: Catalog) -> None:
            first = await make_sample_video(0).add(catalog)
            video = await everything.add(catalog)
            wanted = dataclasses.replace(everything.video, number=1, start=first.frames, start_ns=first.duration_ns)
            assert video == wanted
            assert first == dataclasses.replace(make_sample_video(0).video, number=0, start=0, start_ns=0)
            for found in (
                await catalog.get_video(1),
                await catalog.get_video_by_name(wanted.name),
                await catalog.get_video_by_content(wanted.content),
                [row async for row in catalog.find_videos()][1],
                (await catalog.locate_frames(first.frames, first.frames + 1))[0].video,
            ):
                assert found == wanted
                assert found.orientation == (True, True, False)
                assert [type(flag) for flag in found.orientation] == [bool] * 3
            assert await catalog.get_chunks(wanted.content, 0, 3) == everything.rows
            assert await catalog.get_snapshot() == Snapshot(
                2, first.frames + 703, 6, first.duration_ns + wanted.duration_ns
            )

        self.use(read)

    def test_names_are_found_by_a_part(self) -> None:
        names = ["camB/0001.mp4", "camA/0001.mp4", "a.b", "aXb", "50%_\\", "Größe[1]", "GRÖSSE"]

        async def read(catalog: Catalog) -> None:
            for number, name in enumerate(names):
                await make_sample_video(number, name=name).add(catalog)
            assert await catalog.find_names("") == names
            for text in ("/0001", "a.b", "%", "_", "\\", "[1]", "Größe", "größe", ".*", "0001.mp4", "x", "^", "$"):
                assert await catalog.find_names(text) == [name for name in names if text in name], text
            assert await catalog.find_names("/0001", stop=1) == names[:1]
            assert await catalog.find_names("/0001", stop=0) == []

        self.use(read)

    def test_every_range_is_located(self) -> None:
        videos = [make_sample_video(0, [2, 1]), make_sample_video(1, [3]), make_sample_video(2, [1, 1, 4])]

        async def read(catalog: Catalog) -> None:
            rows = [await video.add(catalog) for video in videos]
            owners = [
                (row, chunk)
                for row, video in zip(rows, videos, strict=True)
                for chunk in video.rows
                for _ in range(chunk.frames)
            ]
            for start in range(len(owners)):
                for stop in range(start, len(owners) + 1):
                    assert await catalog.locate_frames(start, stop) == _group_frames(owners[start:stop]), (start, stop)
            for start, stop in ((0, len(owners) + 1), (len(owners), len(owners) + 1), (10**18, 10**18 + 1), (-1, 2)):
                with pytest.raises(CatalogError):
                    await catalog.locate_frames(start, stop)

        self.use(read)

    def test_chunks_and_indexes_by_number(self) -> None:
        video = make_sample_video(5, [1] * 40)

        async def read(catalog: Catalog) -> None:
            await make_sample_video(4).add(catalog)
            await video.add(catalog)
            for start, stop in ((0, 40), (7, 8), (39, 90), (40, 41), (9, 9), (9, 3), (0, 10**12)):
                assert await catalog.get_chunks(video.content, start, stop) == video.rows[start:stop]
            for numbers in ([0], [39, 0, 17], [4, 4], list(range(40)), []):
                wanted = [video.chunks[number].index for number in numbers]
                assert await catalog.get_indexes(video.content, numbers) == wanted
            for content, numbers in ((video.content, [0, 40]), ("1" * 64, [0]), (video.content, [-1])):
                with pytest.raises(CatalogError):
                    await catalog.get_indexes(content, numbers)

        self.use(read)

    def test_many_chunks_of_one_video(self) -> None:
        video = make_sample_video(1, [3, 2] * 600)

        async def read(catalog: Catalog) -> None:
            await video.add(catalog)
            assert [len(located.chunks) for located in await catalog.locate_frames(0, 3_000)] == [1_200]
            (located,) = await catalog.locate_frames(1_499, 1_502)
            assert located.chunks == tuple(video.rows[599:601])
            numbers = list(range(1_199, -1, -1))
            assert await catalog.get_indexes(video.content, numbers) == [video.chunks[one].index for one in numbers]

        self.use(read)

    def test_codings_by_key(self) -> None:
        async def read(catalog: Catalog) -> None:
            for seed in range(6):
                await make_sample_video(seed).add(catalog)
            keys = [chunk.row.coding for seed in (2, 0, 1, 0) for chunk in make_sample_video(seed).chunks[:1]]
            wanted = [make_sample_video(seed).chunks[0].coding for seed in (2, 0, 1, 0)]
            assert await catalog.get_codings(keys) == wanted
            assert await catalog.get_codings([]) == []
            with pytest.raises(CatalogError):
                await catalog.get_codings([keys[0], "f" * 32])

        self.use(read)

    def test_videos_by_time(self) -> None:
        async def read(catalog: Catalog) -> None:
            rows = [await make_sample_video(seed, [seed + 1]).add(catalog) for seed in range(5)]
            assert [row.start_ns for row in rows] == [sum(row.duration_ns for row in rows[:at]) for at in range(5)]
            for row in rows:
                assert await catalog.get_video_at(row.start_ns) == row
                assert await catalog.get_video_at(row.start_ns + row.duration_ns - 1) == row
            assert await catalog.get_video_at(10**18) == rows[-1]
            assert await catalog.get_video_at(-1) is None

        self.use(read)

    def test_queries(self) -> None:
        async def read(catalog: Catalog) -> None:
            rows = []
            for seed, metadata in enumerate(_METADATA):
                video = make_sample_video(seed, [seed + 1])
                video.video = dataclasses.replace(video.video, metadata=metadata)
                rows.append(await video.add(catalog))
            for where, numbers in _QUERIES:
                wanted = [rows[int(number)] for number in numbers.split()]
                assert [row async for row in catalog.find_videos(where)] == wanted, where
                assert await catalog.count_videos(where) == _sum_rows(wanted), where
                part = [row for row in wanted if 2 <= row.number < 7]
                assert [row async for row in catalog.find_videos(where, start=2, stop=7)] == part, where
                below = [row for row in wanted if row.number < 7]
                assert await catalog.count_videos(where, stop=7) == _sum_rows(below), where
            assert [row async for row in catalog.find_videos(start=5, stop=5)] == []
            assert [row async for row in catalog.find_videos(start=11, stop=99)] == rows[11:]

        self.use(read)

    def test_refuses_invalid_queries(self) -> None:
        async def read(catalog: Catalog) -> None:
            await make_sample_video(0).add(catalog)
            for where in (
                {"a": {"$regex": "x"}},
                {"$or": [{"a": 1}]},
                {"a": {"$gt": None}},
                {"a": {"$gt": [1]}},
                {"a": {"$in": 1}},
                {"a": {"$in": "abc"}},
                {"a": {"$exists": 1}},
                {"a": {"$gt": 1, "b": 2}},
                {"a": float("nan")},
                {"a": b"x"},
                {"": 1},
                {"a..b": 1},
                {1: 1},
                ["a"],
            ):
                with pytest.raises(ConfigError):
                    [row async for row in catalog.find_videos(where)]  # type: ignore[arg-type]
                with pytest.raises(ConfigError):
                    await catalog.count_videos(where)  # type: ignore[arg-type]

        self.use(read)

    def test_paths_of_a_place(self) -> None:
        videos = [make_sample_video(seed, [1] * (seed + 1)) for seed in range(5)]

        async def read(catalog: Catalog) -> None:
            for video in videos[:4]:
                await video.add(catalog)
            await catalog.begin_job(videos[4].job)
            await catalog.stage_chunks(videos[4].chunks[1:])
            kept = [row for video in videos for row in video.rows if row != videos[4].rows[0]]
            for place in range(4):
                wanted = {(row.content, row.path) for row in kept if row.place == place}
                found = [pair async for pair in catalog.list_chunk_paths(place)]
                assert len(found) == len(wanted)
                assert set(found) == wanted

        self.use(read)

    def test_numbers_do_not_change_when_videos_are_added(self) -> None:
        async def read(catalog: Catalog) -> None:
            for seed in range(3):
                await make_sample_video(seed).add(catalog)
            before = await catalog.get_snapshot()
            located = await catalog.locate_frames(0, before.frames)
            async with self.catalog() as other:
                for seed in range(3, 6):
                    await make_sample_video(seed).add(other)
            assert (await catalog.get_snapshot()).videos == 6
            assert await catalog.locate_frames(0, before.frames) == located
            assert await catalog.count_videos(stop=before.videos) == before
            assert [row.number async for row in catalog.find_videos(stop=before.videos)] == [0, 1, 2]

        self.use(read)


def _group_frames(owners: list[tuple[VideoRow, ChunkRow]]) -> list[LocatedChunks]:
    """Group frames, each given as its video and chunk, into the expected result of ``locate_frames``."""
    found: list[LocatedChunks] = []
    for video, chunk in owners:
        if not found or found[-1].video != video:
            found.append(LocatedChunks(video, (chunk,)))
        elif found[-1].chunks[-1] != chunk:
            found[-1] = LocatedChunks(video, (*found[-1].chunks, chunk))
    return found


def _sum_rows(rows: list[VideoRow]) -> Snapshot:
    return Snapshot(
        len(rows),
        sum(row.frames for row in rows),
        sum(row.chunks for row in rows),
        sum(row.duration_ns for row in rows),
    )
