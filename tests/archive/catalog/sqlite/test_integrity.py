"""The consistency checks of SQLite catalogs find damage."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.testing.catalogs.binding import PLACES, make_sample_video

DAMAGES = [
    ("DELETE FROM chunks WHERE video = 2 AND number = 1", "chunk 1 should start at frame 5"),
    ("DELETE FROM chunks WHERE video = 2 AND number = 2", "its 2 chunks hold 8 frames instead of 12 in 3"),
    ("UPDATE chunks SET frames = 4 WHERE video = 2 AND number = 0", "chunk 1 should start at frame 4"),
    ("UPDATE chunks SET first_pts = -99999 WHERE video = 2 AND number = 2", "chunk 2 starts at tick -99999"),
    ("UPDATE chunks SET place = 7 WHERE video = 3", "3 chunks are in a place that does not exist"),
    ("UPDATE chunks SET coding = 99 WHERE video = 3", "3 chunks have a coding that does not exist"),
    ("DELETE FROM indexes WHERE id >> 24 = 2", "3 chunks have no frame index"),
    ("DELETE FROM videos WHERE number = 1", "video 2 (video 2.mp4) is number 2, not 1"),
    ("DELETE FROM videos WHERE number = 2", "chunks refer to video key 3, which does not exist"),
    ("UPDATE videos SET start = 13 WHERE number = 1", "video 1 (video 1.mp4) starts at frame 13, not 12"),
    ("UPDATE videos SET nanoseconds = 13 WHERE number = 2", "(video 2.mp4) starts at nanosecond 13, not"),
    ("UPDATE videos SET first_chunk = 1 WHERE number = 2", "(video 2.mp4) starts at chunk 1, not 6"),
    ("UPDATE videos SET frames = 13 WHERE number = 2", "hold 12 frames instead of 13"),
    ("DELETE FROM jobs", "chunks refer to video key 4"),
    ("DELETE FROM chunks WHERE video = 4", "frame indexes of video key 4 belong to no chunk"),
    ("INSERT INTO jobs SELECT 99, content, name, source, 0, 0 FROM videos WHERE number = 0", "is a video already"),
    ("DELETE FROM places WHERE number = 1", "2 places are not numbered without gaps"),
    ("DELETE FROM archive", "the archive has 0 identities"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "catalog.sqlite"

    async def fill():
        catalog = SqliteCatalog(path)
        await catalog.create(PLACES)
        for seed in range(3):
            await make_sample_video(seed).add(catalog)
        await catalog.begin_job(make_sample_video(3).job)
        await catalog.stage_chunks(make_sample_video(3).chunks)
        problems = await catalog.find_problems()
        await catalog.aclose()
        return problems

    assert asyncio.run(fill()) == []
    return path.read_bytes()


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_problems_are_reported(whole, tmp_path, damage, message):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(damage)

    async def find():
        catalog = SqliteCatalog(path)
        try:
            return await catalog.find_problems()
        finally:
            await catalog.aclose()

    problems = asyncio.run(find())
    assert any(message in problem for problem in problems), problems
