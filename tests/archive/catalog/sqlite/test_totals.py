"""A catalog of a few kilobytes cannot compute rows or values without end."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from sqlite_files import fill, use

from streamloader.errors import CatalogError

ENDLESS_CHUNKS = """
CREATE VIEW chunks AS WITH RECURSIVE counted(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM counted)
SELECT 1 AS video, n AS first, n AS number, 1 AS frames, n AS first_pts, 0 AS place, 'chunks/x' AS path, 1 AS bytes,
x'00' AS digest, 1 AS coding, '' AS note FROM counted
"""
LONG_CODINGS = """
CREATE TABLE codings (
    number INTEGER PRIMARY KEY, key TEXT, told TEXT GENERATED ALWAYS AS (hex(zeroblob(50000000))) VIRTUAL
)
"""
TRIGGER = "CREATE TRIGGER more AFTER INSERT ON jobs BEGIN INSERT INTO jobs SELECT NULL, x'00', '', '', 0, 0; END"


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "catalog.sqlite")
    use(path, lambda catalog: fill(catalog, range(2)))
    return path


def change(path, *statements):
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("table", "statements"),
    [
        ("chunks", ["ALTER TABLE chunks RENAME TO old", ENDLESS_CHUNKS]),
        ("codings", ["DROP TABLE codings", LONG_CODINGS]),
        ("jobs", [TRIGGER]),
        ("videos", ["ALTER TABLE videos RENAME TO old", "CREATE VIRTUAL TABLE videos USING fts5(number)"]),
    ],
)
def test_only_plain_tables_are_read(path, table, statements):
    change(path, *statements)

    async def read(catalog):
        with pytest.raises(CatalogError, match=f"its {table} is not a plain table") as caught:
            await catalog.get_snapshot()
        assert caught.value.address == path

    use(path, read)


def test_a_users_own_view_does_no_harm(path):
    change(path, "CREATE VIEW long AS SELECT name FROM videos WHERE frames > 1000", "CREATE TABLE notes (text TEXT)")
    assert use(path, lambda catalog: catalog.get_snapshot()).videos == 2


def test_a_value_of_many_megabytes_is_refused(path):
    change(path, "UPDATE indexes SET data = zeroblob(70000000) WHERE id = (SELECT min(id) FROM indexes)")

    async def read(catalog):
        video = await catalog.get_video(0)
        with pytest.raises(CatalogError, match="too large"):
            await catalog.get_indexes(video.content, [0])
        assert (await asyncio.wait_for(catalog.get_snapshot(), 60)).videos == 2

    use(path, read)
