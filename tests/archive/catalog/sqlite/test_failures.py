"""SQLite catalogs without permissions, without a lock, without space, and with a file that changes while it is open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlite_files import create_old_schema, database, files, fill, use

import streamloader as sl
from streamloader.archive.catalog.sqlite import schema
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError, CatalogNotFound, CatalogTimeout
from streamloader.testing.catalogs.binding import PLACES, make_sample_video


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "catalog.sqlite")


# --- without permissions ---------------------------------------------------------------------------------------------

# As root without root's capabilities: then the permissions of the owner apply, and the test removes them.
WITHOUT_PERMISSION = """
import asyncio, ctypes, json, os, sys
if os.geteuid() == 0:
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError
from streamloader.testing.catalogs.binding import make_sample_video
async def main():
    catalog = SqliteCatalog(sys.argv[1], timeout=60)
    results = {}
    try:
        for name, call in {CALLS}:
            try:
                results[name] = await call
            except CatalogError as error:
                results[name] = f"{type(error).__name__}: {error.message}"
    finally:
        await catalog.aclose()
    print(json.dumps(results))
asyncio.run(main())
"""


def run_without_permission(path, calls):
    """Return the results of calls of a catalog in a process without write permission."""
    folder = os.path.dirname(path)
    parts = [os.path.join(folder, name) for name in files(path)]
    modes = [os.stat(part).st_mode for part in parts]
    program = WITHOUT_PERMISSION.replace(
        "{CALLS}", "(" + "".join(f"({name!r}, {call})," for name, call in calls.items()) + ")"
    )
    try:
        for part in parts:
            os.chmod(part, 0o444)
        os.chmod(folder, 0o555)
        found = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.chmod(folder, 0o755)
        for part, mode in zip(parts, modes, strict=True):
            if os.path.exists(part):
                os.chmod(part, mode)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


CODINGS = "catalog.get_codings(['0' * 32])"


def test_it_can_be_read_without_write_permission(path):
    use(path, fill)
    writes = {
        "begin": "catalog.begin_job(make_sample_video(7).job)",
        "beat": "catalog.record_heartbeat(make_sample_video(7).content, 1.0)",
    }
    results = run_without_permission(path, {"problems": "catalog.find_problems()", "codings": CODINGS, **writes})
    assert results["problems"] == []
    assert results["codings"] == [make_sample_video(0).chunks[0].coding]
    for name in writes:
        assert results[name].startswith("CatalogError")
        assert "is read-only" in results[name]
    assert files(path) == ["catalog.sqlite"]


def test_what_cannot_be_shared_with_writers_is_read_again_when_it_changes(path, monkeypatch):
    """A process with write permission may write while others, without it, read the file as immutable."""
    use(path, fill)
    connect = schema._connect

    def without_lock_file(path, uri_options):
        if uri_options == "mode=ro":
            raise cannot_open()
        return connect(path, uri_options)

    async def read(catalog):
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda *args: False)
            patch.setattr(schema, "_connect", without_lock_file)
            assert (await catalog.get_snapshot()).videos == 2
            assert catalog._session._thread.file.immutable
        await asyncio.to_thread(use, path, lambda writer: fill(writer, [2, 3]))
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda *args: False)
            patch.setattr(schema, "_connect", without_lock_file)
            assert (await catalog.get_snapshot()).videos == 4
            assert catalog._session._thread.file.immutable
            assert await catalog.find_problems() == []

    use(path, read)


def cannot_open():
    try:
        sqlite3.connect("file:/nowhere/at/all?mode=ro", uri=True)
    except sqlite3.OperationalError as error:
        return error


def test_it_can_be_read_while_others_write(path):
    async def share(catalog):
        await fill(catalog)
        results = await asyncio.to_thread(
            run_without_permission, path, {"problems": "catalog.find_problems()", "codings": CODINGS}
        )
        assert results == {"problems": [], "codings": [make_sample_video(0).chunks[0].coding]}
        await make_sample_video(5).add(catalog)

    use(path, share)


def test_the_log_of_a_killed_writer_needs_write_permission(path):
    use(path, fill)
    with database(path) as db:
        db.execute("UPDATE places SET weight = 5.0 WHERE number = 0")
        for part in ("", "-wal"):
            shutil.copy(path + part, path + ".copy" + part)
    for part in ("", "-wal"):
        os.replace(path + ".copy" + part, path + part)
    results = run_without_permission(path, {"codings": CODINGS})
    assert "a writer was killed" in results["codings"]
    assert use(path, lambda catalog: catalog.get_header()).places[0].weight == 5.0
    assert run_without_permission(path, {"codings": CODINGS}) == {"codings": [make_sample_video(0).chunks[0].coding]}


def test_an_older_schema_is_not_migrated_without_write_permission(path):
    create_old_schema(path)
    assert "older schema version 0 and is read-only" in run_without_permission(path, {"codings": CODINGS})["codings"]


# --- other processes -------------------------------------------------------------------------------------------------


def test_a_lock_of_another_is_waited_for_and_then_named(path):
    async def wait(catalog):
        await fill(catalog)
        with database(path) as db:
            db.execute("BEGIN IMMEDIATE")
            catalog._session._timeout = 0.5
            with pytest.raises(CatalogTimeout, match="another process holds its lock") as caught:
                await catalog.begin_job(make_sample_video(5).job)
            assert caught.value.details["waited"] >= 0.5
            catalog._session._timeout = 60
            assert (await catalog.get_snapshot()).videos == 2  # readers wait for nobody
            waiting = asyncio.create_task(catalog.begin_job(make_sample_video(6).job))
            await catalog_waits(catalog)
            db.execute("ROLLBACK")
            assert await waiting is None
        assert [job.name for job in await catalog.list_jobs()] == [make_sample_video(6).job.name]

    use(path, wait)


async def catalog_waits(catalog):
    """Wait until its thread has started a call."""
    while catalog._session._thread.current_call is None:  # noqa: ASYNC110 - a thread sets no event
        await asyncio.sleep(0)


def test_a_wait_for_a_lock_can_be_cancelled_and_closed(path):
    async def wait(catalog):
        await fill(catalog)
        with database(path) as db:
            db.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(catalog.begin_job(make_sample_video(5).job))
            await catalog_waits(catalog)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.wait_for(catalog.list_jobs(), 60) == []
            task = asyncio.create_task(catalog.begin_job(make_sample_video(5).job))
            await catalog_waits(catalog)
            await asyncio.wait_for(catalog.aclose(), 60)
            with pytest.raises(sl.errors.ClosedError):
                await task

    use(path, wait, timeout=60)


def test_long_work_ends_by_the_timeout(path):
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    async def wait(catalog):
        await fill(catalog)
        catalog._session._timeout = 0.3
        with pytest.raises(CatalogTimeout):
            await catalog._session.run(lambda file: file.db.execute(slow).fetchall())
        catalog._session._timeout = 60
        assert (await catalog.get_snapshot()).videos == 2

    use(path, wait)


def test_a_file_that_was_removed_is_noticed(path):
    async def read(catalog):
        await fill(catalog)
        os.unlink(path)
        with pytest.raises(CatalogNotFound):
            await catalog.get_snapshot()
        for left in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}{left}")
        await catalog.create(PLACES)
        assert (await catalog.get_snapshot()).videos == 0

    use(path, read)


def test_a_file_that_was_replaced_is_noticed(path, tmp_path):
    other = str(tmp_path / "other.sqlite")
    use(other, lambda catalog: fill(catalog, range(5)))

    async def read(catalog):
        await fill(catalog)
        shutil.move(other, path)
        for call in (catalog.get_snapshot, lambda: catalog.begin_job(make_sample_video(7).job)):
            with pytest.raises(CatalogError, match="was replaced by another file"):
                await call()

    use(path, read)
    for left in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{left}")
    assert use(path, lambda catalog: catalog.find_problems()) == []
    assert use(path, lambda catalog: catalog.get_snapshot()).videos == 5


def test_a_leaked_catalog_ends_its_thread(path):
    async def forget():
        catalog = SqliteCatalog(path)
        await fill(catalog)
        thread = catalog._session._thread.thread
        del catalog
        gc.collect()
        return thread

    thread = asyncio.run(forget())
    thread.join(60)
    assert not thread.is_alive()


# --- no space, damage ------------------------------------------------------------------------------------------------


def test_no_space_left(path):
    async def write(catalog):
        await fill(catalog)
        await catalog._session.run(lambda file: file.db.execute("PRAGMA max_page_count = 1").fetchall())
        big = make_sample_video(9, [1] * 2_000)
        await catalog.begin_job(big.job)
        with pytest.raises(CatalogError, match="no space is left"):
            await catalog.stage_chunks(big.chunks)
        assert await catalog.get_staged_chunks(big.content) == []
        assert await catalog.find_problems() == []
        await catalog._session.run(lambda file: file.db.execute("PRAGMA max_page_count = 100000").fetchall())
        await catalog.stage_chunks(big.chunks)
        assert (await catalog.commit_video(big.video)).number == 2
        assert await catalog.find_problems() == []

    use(path, write)


FILLING = """
import asyncio, os, resource, sys
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError
from streamloader.testing.catalogs.binding import make_sample_video
async def main():
    catalog = SqliteCatalog(sys.argv[1])
    await catalog.get_header()
    limit = os.path.getsize(sys.argv[1]) + 1_500_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        for seed in range(100, 1000):
            await make_sample_video(seed, [2] * 30).add(catalog)
            print(seed, flush=True)
    except CatalogError as error:
        print(error.message)
    assert (await catalog.get_snapshot()).videos
    await catalog.aclose()
asyncio.run(main())
"""


def test_a_file_that_cannot_grow(path):
    use(path, fill)
    found = subprocess.run(
        [sys.executable, "-c", FILLING, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    *seeds, message = found.stdout.splitlines()
    assert "SQLITE_" in message

    async def read(catalog):
        assert await catalog.find_problems() == []
        names = [row.name async for row in catalog.find_videos()]
        assert names == [make_sample_video(seed).video.name for seed in [0, 1, *map(int, seeds)]]
        assert seeds
        for job in await catalog.list_jobs():
            await catalog.abandon_job(job.content)
        assert (await make_sample_video(5000).add(catalog)).number == len(names)

    use(path, read)


def test_a_damaged_file_is_named(path):
    use(path, lambda catalog: fill(catalog, range(40)))
    data = bytearray(Path(path).read_bytes())
    for at in range(8192 * 2, len(data) - 8192, 8192):
        data[at : at + 200] = b"\xa5" * 200
    Path(path).write_bytes(data)

    async def read(catalog):
        problems = await catalog.find_problems()
        assert problems
        assert all(problem.startswith("the file is damaged") for problem in problems)
        with pytest.raises(CatalogError, match="damaged: restore"):
            await catalog.locate_frames(0, 400)

    use(path, read)
