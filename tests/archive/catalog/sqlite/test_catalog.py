"""SQLite catalogs as files: creating, opening, migrating and refusing them, on file systems with limits."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from planted import KINDS, STRANGER_UID, give_away, needs_root, plant
from sqlite_files import create_old_schema, database, files, fill, use

from streamloader.archive.catalog.base import SCHEMA_VERSION, Place
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError, CatalogExists, CatalogNotFound, CatalogTimeout, CatalogTooNew, ConfigError
from streamloader.testing.catalogs.binding import PLACES, make_sample_video


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "catalog.sqlite")


# --- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_use_it(path, umask, mode):
    before = os.umask(umask)
    try:

        async def look(catalog):
            await fill(catalog)
            return [os.stat(path + part).st_mode & 0o777 for part in ("", "-wal", "-shm")]

        assert use(path, look) == [mode] * 3
    finally:
        os.umask(before)
    assert files(path) == ["catalog.sqlite"]


def test_what_is_there_is_never_written_over(path, tmp_path):
    Path(path).write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to("/nowhere/at/all")
    for there in (path, str(tmp_path), str(tmp_path / "dangling")):
        with pytest.raises(CatalogExists):
            use(there, lambda catalog: catalog.create(PLACES))
    assert Path(path).read_bytes() == b"mine"
    assert files(path) == ["catalog.sqlite", "dangling"]


def test_the_log_of_a_catalog_that_is_gone_is_not_taken_in(path):
    use(path, fill)
    with database(path) as db:  # while it is open there is a log
        db.execute("UPDATE archive SET id = 'old'")
        shutil.copy(path + "-wal", path + "-kept")
    os.unlink(path)
    os.rename(path + "-kept", path + "-wal")
    with pytest.raises(CatalogError, match="-wal belongs to a catalog that is gone"):
        use(path, lambda catalog: catalog.create(PLACES))
    assert files(path) == ["catalog.sqlite-wal"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = str(tmp_path / "file" / "catalog.sqlite")
    with pytest.raises(CatalogError) as caught:
        use(path, lambda catalog: catalog.create(PLACES))
    assert caught.value.address == path
    with pytest.raises(CatalogNotFound):
        use(path, lambda catalog: catalog.get_header())


def test_it_is_made_on_file_systems_without_links(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    use(path, fill)
    with pytest.raises(CatalogExists):
        use(path, lambda catalog: catalog.create(PLACES))
    assert use(path, lambda catalog: catalog.find_problems()) == []
    assert files(path) == ["catalog.sqlite"]


@pytest.mark.parametrize("url", ["", "sqlite://", ":memory:", "sqlite:///:memory:", "sqlite://host/a", "a\0b", "/"])
def test_addresses_that_are_no_file(url):
    with pytest.raises(ConfigError):
        SqliteCatalog(url)


def test_addresses_of_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = str(tmp_path / "a.sqlite")
    for url in ("a.sqlite", "./x/../a.sqlite", "~/a.sqlite", wanted, f"sqlite://{wanted}", f"SQLite:///{wanted}"):
        assert SqliteCatalog(url).path == wanted


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 4000, b"\0" * 8192])
def test_a_file_that_is_no_catalog_is_left_alone(path, data):
    Path(path).write_bytes(data)
    for call in (lambda catalog: catalog.get_header(), lambda catalog: catalog.begin_job(make_sample_video(0).job)):
        with pytest.raises(CatalogError, match=r"is not an SQLite database|another application") as caught:
            use(path, call)
        assert not isinstance(caught.value, (CatalogNotFound, CatalogTimeout))
    assert Path(path).read_bytes() == data
    assert files(path) == ["catalog.sqlite"]


def test_a_database_of_another_application_is_left_alone(path):
    with database(path) as db:
        db.execute("CREATE TABLE videos (a)")
        db.execute("PRAGMA user_version = 1")
    before = Path(path).read_bytes()
    with pytest.raises(CatalogError, match="another application"):
        use(path, fill)
    assert Path(path).read_bytes() == before


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "link" not in kind])
def test_something_else_in_the_place_of_a_catalog_is_refused(path, kind):
    plant(Path(path), kind)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite.* not a"):
        use(path, lambda catalog: catalog.get_header())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_what_is_planted_beside_a_catalog_is_refused(path, suffix):
    use(path, lambda catalog: catalog.create(PLACES))
    for kind in KINDS:
        plant(Path(path + suffix), kind)
        with pytest.raises(CatalogError, match=rf"catalog\.sqlite{suffix} is not a regular file.*Remove it"):
            use(path, lambda catalog: catalog.get_header())


@needs_root
def test_the_log_of_another_user_is_used_only_where_users_share_a_folder(path, tmp_path):
    header = use(path, lambda catalog: catalog.create(PLACES))
    Path(path + "-wal").write_bytes(b"")
    give_away(Path(path + "-wal"))
    for mode in (0o755, 0o1777):
        tmp_path.chmod(mode)
        with pytest.raises(CatalogError, match=rf"belongs to another user \(uid {STRANGER_UID}\)"):
            use(path, lambda catalog: catalog.get_header())
    tmp_path.chmod(0o2770)
    assert use(path, lambda catalog: catalog.get_header()).archive_id == header.archive_id
    tmp_path.chmod(0o1777)
    Path(path + "-wal").write_bytes(b"")
    give_away(Path(path + "-wal"), Path(path))  # of the owner of the catalog
    assert use(path, lambda catalog: catalog.get_header()).archive_id == header.archive_id


def test_a_newer_schema_is_refused_and_not_touched(path):
    use(path, fill)
    with database(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = Path(path).read_bytes()
    for call in (lambda catalog: catalog.get_header(), fill, lambda catalog: catalog.find_problems()):
        with pytest.raises(CatalogTooNew, match="upgrade streamloader"):
            use(path, call)
    assert Path(path).read_bytes() == before
    assert files(path) == ["catalog.sqlite"]


def test_an_older_schema_is_migrated(path, tmp_path):
    create_old_schema(path)

    async def read(catalog):
        header = await catalog.get_header()
        assert (header.archive_id, header.schema_version, header.created) == (
            "0123456789abcdef" * 2,
            SCHEMA_VERSION,
            1700000000.5,
        )
        assert header.places == (Place(0, "/old/place", 1.0),)
        (held,) = await catalog.locate_frames(0, 50)
        assert (held.video.name, held.video.metadata) == ("old.mp4", {"camera": 7})
        assert held.video.orientation == (True, False, True)
        assert held.video.origin == {}
        assert held.chunks[0].path == f"chunks/22/{'22' * 32}/000000-{'4' * 16}.mp4"
        assert await catalog.get_indexes("22" * 32, [0]) == [b"\1\2"]
        assert [job.name for job in await catalog.list_jobs()] == ["waiting.mp4"]
        await catalog.set_places([Place(0, "/old/place"), *PLACES[1:]])
        row = await make_sample_video(1).add(catalog)
        assert (row.number, row.start, row.start_ns) == (1, 50, 2_000_000_000)
        assert row.origin == make_sample_video(1).video.origin
        assert await catalog.find_problems() == []

    use(path, read)
    new = str(tmp_path / "new.sqlite")
    use(new, fill)
    assert columns(path) == columns(new)


def columns(path):
    with database(path) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema ORDER BY name")]
        return {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name in tables}


def test_many_migrate_it_at_once(path):
    create_old_schema(path)

    async def all_at_once():
        catalogs = [SqliteCatalog(path) for _ in range(5)]
        headers = await asyncio.gather(*(catalog.get_header() for catalog in catalogs))
        assert {header.schema_version for header in headers} == {SCHEMA_VERSION}
        for catalog in catalogs:
            assert (await catalog.get_video(0)).name == "old.mp4"
            await catalog.aclose()

    asyncio.run(all_at_once())


def test_a_migration_is_atomic(path, monkeypatch):
    create_old_schema(path)

    def fail(db):
        db.execute("ALTER TABLE videos ADD COLUMN half TEXT")
        raise RuntimeError("power cut")

    before = columns(path)
    monkeypatch.setattr("streamloader.archive.catalog.sqlite.schema.MIGRATIONS", {0: fail})
    with pytest.raises(RuntimeError, match="power cut"):
        use(path, lambda catalog: catalog.get_header())
    assert columns(path) == before


# --- lookups ---------------------------------------------------------------------------------------------------------


def test_lookups_search_and_never_scan(path, monkeypatch):
    """Every lookup uses a key or an index of SQLite, so its cost does not grow with the archive."""
    use(path, fill)
    statements = []

    async def look_up(catalog):
        await catalog._session.run(lambda file: file.db.set_trace_callback(statements.append))
        row = await catalog.get_video(1)
        await catalog.get_snapshot()
        await catalog.locate_frames(3, 17)
        await catalog.get_video_by_name(row.name)
        await catalog.get_video_at(5)
        await catalog.get_video_by_content(row.content)
        await catalog.get_chunks(row.content, 0, 2)
        await catalog.get_indexes(row.content, [0, 1])
        await catalog.get_codings(["0" * 32])
        await catalog.get_staged_chunks(row.content)
        await catalog.begin_job(make_sample_video(5).job)
        await catalog.stage_chunks(make_sample_video(5).chunks)
        await catalog.record_heartbeat(make_sample_video(5).content, 1.0)
        await catalog.commit_video(make_sample_video(5).video)
        await catalog.begin_job(make_sample_video(6).job)
        await catalog.stage_chunks(make_sample_video(6).chunks)
        await catalog.abandon_job(make_sample_video(6).content)
        await anext(catalog.find_videos())
        await anext(catalog.list_chunk_paths(0))
        await catalog._session.run(lambda file: file.db.set_trace_callback(None))

    use(path, look_up)
    small = ("archive", "places")
    with database(path) as db:
        for statement in statements:
            if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                plan = [step[3] for step in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
                scans = [step for step in plan if step.startswith("SCAN") and step.split()[1] not in small]
                assert [step for step in scans if "CONSTANT" not in step] == [], statement
                assert not any("TEMP B-TREE" in step for step in plan), statement
    assert len(statements) > 40


# --- copies ----------------------------------------------------------------------------------------------------------


def copy_alone(path, tmp_path):
    """Return the rows of a copy of the file without its log."""
    copy = str(tmp_path / "copy" / "catalog.sqlite")
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    shutil.copy(path, copy)
    return use(copy, lambda catalog: catalog.get_snapshot())


def test_a_copy_of_the_file_alone_has_all_videos_while_a_reader_is_open(path, tmp_path):
    async def read_and_write(reader):
        writer = SqliteCatalog(path)
        await fill(writer)
        expected = await reader.get_snapshot()
        assert expected.frames > 0
        await writer.checkpoint()
        copies = [await asyncio.to_thread(copy_alone, path, tmp_path)]
        await fill(writer, [2])
        assert (await reader.get_snapshot()).videos == 3
        await writer.aclose()  # the reader is still open, so SQLite itself would keep the log
        copies.append(await asyncio.to_thread(copy_alone, path, tmp_path))
        assert copies == [expected, await reader.get_snapshot()]
        assert os.stat(f"{path}-wal").st_size == 0

    use(path, lambda catalog: catalog.create(PLACES))
    use(path, read_and_write)


def test_a_reader_in_a_transaction_holds_a_checkpoint_back_but_no_longer(path, tmp_path):
    async def hold_back(catalog):
        await catalog.create(PLACES)
        with database(path) as db:
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM videos").fetchone()
            await fill(catalog)
            await catalog.checkpoint()  # no error, and no endless wait
            assert (await catalog.get_snapshot()).videos == 2
            db.execute("ROLLBACK")
            await catalog.checkpoint()
            return await catalog.get_snapshot(), await asyncio.to_thread(copy_alone, path, tmp_path)

    snapshot, copied = use(path, hold_back)
    assert copied == snapshot
    assert snapshot.videos == 2
