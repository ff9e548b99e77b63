"""What is wrong with a catalog is found, and said."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.testing.catalogs.binding import PLACES, made

DAMAGES = [
    ("DELETE FROM chunks WHERE video = 2 AND number = 1", "chunk 1 should begin at frame 5"),
    ("DELETE FROM chunks WHERE video = 2 AND number = 2", "its 2 chunks hold 8 frames, but it should be 12 in 3"),
    ("UPDATE chunks SET frames = 4 WHERE video = 2 AND number = 0", "chunk 1 should begin at frame 4"),
    ("UPDATE chunks SET first_pts = -99999 WHERE video = 2 AND number = 2", "chunk 2 begins at tick -99999"),
    ("UPDATE chunks SET place = 7 WHERE video = 3", "3 chunks are in a place that there is not"),
    ("UPDATE chunks SET coding = 99 WHERE video = 3", "3 chunks have a coding that there is not"),
    ("DELETE FROM indexes WHERE id >> 24 = 2", "3 chunks have no frame index"),
    ("DELETE FROM videos WHERE number = 1", "video 2 (video 2.mp4) is number 2, not 1"),
    ("DELETE FROM videos WHERE number = 2", "chunks belong to video key 3, which there is not"),
    ("UPDATE videos SET start = 13 WHERE number = 1", "video 1 (video 1.mp4) begins at frame 13, not 12"),
    ("UPDATE videos SET nanoseconds = 13 WHERE number = 2", "(video 2.mp4) begins at nanosecond 13, not"),
    ("UPDATE videos SET first_chunk = 1 WHERE number = 2", "(video 2.mp4) begins at chunk 1, not 6"),
    ("UPDATE videos SET frames = 13 WHERE number = 2", "hold 12 frames, but it should be 13"),
    ("DELETE FROM jobs", "chunks belong to video key 4"),
    ("DELETE FROM chunks WHERE video = 4", "frame indexes of video key 4 belong to no chunk"),
    ("INSERT INTO jobs SELECT 99, content, name, source, 0, 0 FROM videos WHERE number = 0", "is a video already"),
    ("DELETE FROM places WHERE number = 1", "2 places are not numbered without a gap"),
    ("DELETE FROM archive", "the archive has 0 identities"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "catalog.sqlite"

    async def fill():
        catalog = SqliteCatalog(path)
        await catalog.create(PLACES)
        for seed in range(3):
            await made(seed).add(catalog)
        await catalog.begin(made(3).job)
        await catalog.stage(made(3).chunks)
        problems = await catalog.problems()
        await catalog.aclose()
        return problems

    assert asyncio.run(fill()) == []
    return path.read_bytes()


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_problems_are_told(whole, tmp_path, damage, told):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(damage)

    async def look():
        catalog = SqliteCatalog(path)
        try:
            return await catalog.problems()
        finally:
            await catalog.aclose()

    problems = asyncio.run(look())
    assert any(told in problem for problem in problems), problems
