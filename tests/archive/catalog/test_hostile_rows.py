"""Whatever the rows of a catalog contain, readers get rows that can be used, or an error that names row and field."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3

import pytest
from pymongo.errors import BulkWriteError, DuplicateKeyError
from servers.mongo import names

from streamloader.archive.catalog.registry import open_catalog
from streamloader.errors import CatalogError
from streamloader.testing.catalogs.binding import PLACES, make_sample_video

VIDEO, JOB = make_sample_video(1), make_sample_video(2)
# Rows that do not exist any more under this column, instead of being wrong: other rows are missing then.
LINKS = {("chunks", "video"), ("indexes", "id"), ("codings", "number"), ("jobs", "key"), ("archive", "id")}
WRONG = {
    "INTEGER": ["'x'", "x'00ff'", "1.5", "-4611686018427387905", "9223372036854775807", "'1e999'"],
    "TEXT": ["x'ff00'", "CAST(x'ff' AS TEXT)", "'{'", "'[]'", "char(27)", "hex(zeroblob(600000))"],
    "REAL": ["'x'", "x'00'", "9e999", "-1.0", "1e300"],
    "BLOB": ["'x'", "7", "x'00'", "zeroblob(33)"],
}
# Values of texts that anybody may use.
HARMLESS = {("name", "'{'"), ("name", "'[]'"), ("name", "char(27)"), ("source", "'{'"), ("source", "'[]'"),
            ("source", "char(27)"), ("note", "'{'"), ("note", "'[]'"), ("note", "char(27)"), ("url", "'{'"),
            ("url", "'[]'"), ("key", "'{'"), ("key", "'[]'"), ("first_pts", "'1e999'"),
            ("first_pts", "-4611686018427387905"), ("end", "9223372036854775807"), ("place", "1.5"), ("data", "x'00'"),
            ("data", "zeroblob(33)")}  # fmt: skip


async def build(url, **options):
    catalog = open_catalog(url, **options)
    await catalog.create(PLACES)
    await VIDEO.add(catalog)
    await catalog.begin_job(JOB.job)
    await catalog.stage_chunks(JOB.chunks)
    await catalog.aclose()


async def read_everything(url, **options):
    """Call all methods that read. Return the errors' messages; anything but a typed error is raised."""
    catalog = open_catalog(url, **options)
    messages = []

    async def take(method, *args):
        async with contextlib.aclosing(method(*args)) as items:
            return [item async for item in items]

    try:
        snapshot = None
        with contextlib.suppress(CatalogError):
            snapshot = await catalog.get_snapshot()
        frames = VIDEO.video.frames
        for method, *args in (
            (catalog.get_header,), (catalog.get_snapshot,), (catalog.get_video, 0), (catalog.get_video_at, 0),
            (catalog.get_video_by_name, VIDEO.video.name), (catalog.get_video_by_content, VIDEO.content),
            (take, catalog.find_videos, {"camera": 1}), (catalog.count_videos,), (catalog.count_videos, {"camera": 1}),
            (catalog.locate_frames, 0, frames), (catalog.locate_frames, 6, 7),
            (catalog.locate_frames, 0, snapshot.frames if snapshot else 1), (catalog.get_chunks, VIDEO.content, 0, 99),
            (catalog.get_indexes, VIDEO.content, [0, 1, 2]), (catalog.get_codings, [f"{1:032x}"]),
            (take, catalog.list_chunk_paths, 0), (take, catalog.list_chunk_paths, 1),
            (take, catalog.list_chunk_paths, 2), (catalog.list_jobs,), (catalog.get_staged_chunks, JOB.content),
            (catalog.find_problems,), (catalog.begin_job, JOB.job), (catalog.set_places, [*PLACES]),
            (catalog.commit_video, JOB.video), (catalog.abandon_job, JOB.content),
        ):  # fmt: skip
            try:
                result = await method(*args)
            except CatalogError as error:
                messages.append(str(error))
            else:
                messages += [f"{catalog.url} {line}" for line in result] if method == catalog.find_problems else []
        return messages
    finally:
        await catalog.aclose()


# --- SQLite ----------------------------------------------------------------------------------------------------------


def columns(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in tables:
            for _, name, kind, _, _, primary in db.execute(f"PRAGMA table_info({table})").fetchall():
                if not table.startswith("sqlite_") and not (primary and kind == "INTEGER"):
                    yield table, name, kind


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("sound") / "catalog.sqlite")
    asyncio.run(build(path))
    return path


def change(sound, path, statement):
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
    shutil.copy(sound, path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute(statement)


def check_columns(sound, path, pick):
    unnamed = []
    assert asyncio.run(read_everything(shutil.copy(sound, path))) == []
    for number, (table, column, kind) in enumerate(columns(sound)):
        for value in pick(WRONG[kind], number):
            where = "" if table != "chunks" else f" WHERE number = {number % 3}"
            with contextlib.suppress(sqlite3.IntegrityError):
                change(sound, path, f'UPDATE {table} SET "{column}" = {value}{where}')
                messages = asyncio.run(read_everything(path))
                assert all(path in message for message in messages), (table, column, value, messages)
                field = column.replace("_numerator", "").replace("_denominator", "")
                is_named = any(field in message.replace(path, "") for message in messages)
                if not is_named and (column, value) not in HARMLESS and (table, column) not in LINKS:
                    unnamed.append(f"{table}.{column} = {value}: {messages}"[:400])
    assert unnamed == []


def test_every_column_of_every_table(sound, tmp_path):
    check_columns(sound, str(tmp_path / "c.sqlite"), lambda values, number: [values[number % len(values)]])


@pytest.mark.slow
def test_every_column_of_every_table_with_every_value(sound, tmp_path):
    check_columns(sound, str(tmp_path / "c.sqlite"), lambda values, number: values)


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("UPDATE chunks SET path = '/../../../.ssh/authorized_keys' WHERE number = 1", "path"),
        ("UPDATE chunks SET path = 'chunks/aa/other' WHERE number = 1", "path"),
        ("UPDATE chunks SET path = replace(path, '000001', '000000') WHERE number = 1", "path"),
        ("UPDATE chunks SET path = path || char(10) WHERE number = 1", "path"),
        ("UPDATE chunks SET digest = zeroblob(32) WHERE number = 1", "path"),
        ("UPDATE chunks SET first = first - 1 WHERE number = 1", "first"),
        ("UPDATE chunks SET frames = frames + 1 WHERE number = 2", "frames"),
        ("UPDATE chunks SET frames = 1 << 40 WHERE number = 2", "frames"),
        ("UPDATE chunks SET coding = 99 WHERE number = 1", "coding"),
        ("UPDATE chunks SET place = 1 << 40 WHERE number = 1", "place"),
        ("UPDATE videos SET start = 7", "start"),
        ("UPDATE videos SET number = 1 << 40", "number"),
        ("UPDATE videos SET end = first_pts", "end"),
        ("UPDATE videos SET time_base_denominator = 0", "time_base"),
        ("UPDATE videos SET frames = 1 << 50", "frames"),
        ("UPDATE videos SET height = 65535, width = 65535", "height"),
        ("UPDATE videos SET metadata = replace(hex(zeroblob(5000)), '0', '[')", "metadata"),
        ("UPDATE videos SET metadata = '{\"a\": NaN}'", "metadata"),
        ("UPDATE videos SET metadata = '{\"a\": \"\\ud800\"}'", "metadata"),
        (f"UPDATE videos SET metadata = '{{\"a\": {'[' * 60}{']' * 60}}}'", "metadata"),
        ("UPDATE videos SET origin = '{\"digest\": 7}'", "origin"),
        ("UPDATE codings SET told = '[1]'", "told"),
        ("UPDATE places SET number = 9 WHERE number = 2", "number"),
        ("DELETE FROM archive", "archive"),
    ],
)  # fmt: skip
def test_rows_that_contradict_themselves_or_others(sound, tmp_path, statement, field):
    path = str(tmp_path / "c.sqlite")
    change(sound, path, statement)
    messages = asyncio.run(read_everything(path))
    assert any(path in message and field in message.replace(path, "") for message in messages), messages


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON jobs BEGIN DELETE FROM videos; END",
        "ALTER TABLE videos RENAME TO v2; CREATE VIEW videos AS SELECT * FROM v2",
        "ALTER TABLE videos ADD COLUMN more TEXT AS (hex(zeroblob(100000000)))",
        "DROP TABLE codings",
        "PRAGMA user_version = -3",
    ],
)
def test_tables_of_a_file_are_plain(sound, tmp_path, statement):
    path = str(tmp_path / "c.sqlite")
    shutil.copy(sound, path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(statement)
    messages = asyncio.run(read_everything(path))
    assert messages
    assert all(path in message for message in messages)


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
def test_a_pipe_in_place_of_the_file_is_refused_without_waiting(sound, tmp_path, suffix):
    path = str(tmp_path / "c.sqlite")
    if suffix:
        shutil.copy(sound, path)
    os.mkfifo(path + suffix)
    messages = asyncio.run(read_everything(path))
    assert messages
    assert all("c.sqlite" in message for message in messages)


# --- MongoDB ---------------------------------------------------------------------------------------------------------

MISSING = object()
VALUES = [MISSING, None, "x", -1, 2**63 - 1, 1.5, True, b"x", [], ["x"], {}, {"$gt": ""}]


@pytest.mark.parametrize("mongo_server", [names()[-1]], indirect=True)
class TestMongo:
    @pytest.fixture(autouse=True)
    def _database(self, mongo_server):
        name = mongo_server.database()
        self.url, self.database = mongo_server.url(name), mongo_server.direct[name]
        asyncio.run(build(self.url, driver="pymongo"))
        self.sound = {name: list(self.database[name].find()) for name in self.database.list_collection_names()}
        yield
        mongo_server.direct.drop_database(name)

    def read_damaged(self, name, position, damaged):
        for each, documents in self.sound.items():
            copies = [dict(document) for document in documents]
            if each == name:
                copies[position] = damaged
            self.database[each].delete_many({})
            self.database[each].insert_many(copies)
        return asyncio.run(read_everything(self.url, driver="pymongo", timeout=5.0))

    def check_fields(self, pick):
        shown = open_catalog(self.url, driver="pymongo").url
        silent = []
        number = 0
        for name, documents in self.sound.items():
            for position in {0, len(documents) - 1}:
                for field in documents[position]:
                    number += 1
                    for value in pick(VALUES, number) if field != "_id" else ():
                        damaged = {key: item for key, item in documents[position].items() if key != field}
                        damaged |= {} if value is MISSING else {field: value}
                        with contextlib.suppress(DuplicateKeyError, BulkWriteError):  # a unique index refuses the value
                            messages = self.read_damaged(name, position, damaged)
                            assert all(shown in message for message in messages), (name, field, value, messages)
                            if not any(field in message.replace(shown, "") for message in messages):
                                silent.append((name, field, value, messages))
        return silent

    def test_some_fields_of_documents(self):
        self.check_fields(lambda values, number: [] if number % 8 else [values[number // 8 % len(values)]])

    @pytest.mark.slow
    @pytest.mark.parametrize("offset", range(4))
    def test_every_field_of_every_document(self, offset):
        self.check_fields(lambda values, number: values[(number + offset) % 4 :: 4])

    def test_an_operator_in_a_link_between_documents_is_no_query(self):
        for name, field in (("streamloader_videos", "rev"), ("streamloader_videos", "life")):
            position = next(n for n, each in enumerate(self.sound[name]) if "number" in each)
            messages = self.read_damaged(name, position, self.sound[name][position] | {field: {"$gt": ""}})
            assert any(f": {field} is a dict" in message for message in messages)
