"""What SQLite catalogs do without rights, without a lock, without space, and with a file that changes under them."""

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
from sqlite_files import database, files, fill, old_form, use

import streamloader as sl
from streamloader.archive.catalog.sqlite import schema
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError, CatalogNotFound, CatalogTimeout
from streamloader.testing.catalogs.binding import PLACES, made


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "catalog.sqlite")


# --- without rights --------------------------------------------------------------------------------------------------

# As root without root's powers: then rights are those of the owner, which are taken away.
POWERLESS = """
import asyncio, ctypes, json, os, sys
if os.geteuid() == 0:
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError
from streamloader.testing.catalogs.binding import made
async def main():
    catalog = SqliteCatalog(sys.argv[1], timeout=10)
    told = {}
    try:
        for name, call in {CALLS}:
            try:
                told[name] = await call
            except CatalogError as error:
                told[name] = f"{type(error).__name__}: {error.message}"
    finally:
        await catalog.aclose()
    print(json.dumps(told))
asyncio.run(main())
"""


def powerless(path, calls):
    """Return what calls of a catalog give in a process without the right to write where it is."""
    folder = os.path.dirname(path)
    parts = [os.path.join(folder, name) for name in files(path)]
    modes = [os.stat(part).st_mode for part in parts]
    program = POWERLESS.replace("{CALLS}", "(" + "".join(f"({name!r}, {call})," for name, call in calls.items()) + ")")
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


CODINGS = "catalog.codings(['0' * 32])"


def test_it_can_be_read_without_the_right_to_write(path):
    use(path, fill)
    writes = {"begin": "catalog.begin(made(7).job)", "beat": "catalog.beat(made(7).content, 1.0)"}
    told = powerless(path, {"problems": "catalog.problems()", "codings": CODINGS, **writes})
    assert told["problems"] == []
    assert told["codings"] == [made(0).chunks[0].coding]
    for name in writes:
        assert told[name].startswith("CatalogError")
        assert "may not be written" in told[name]
    assert files(path) == ["catalog.sqlite"]


def test_what_cannot_be_shared_with_writers_is_read_anew_when_it_changes(path, monkeypatch):
    """Who has the right to write may do so while others, who have not, read it as if nobody could."""
    use(path, fill)
    connect = schema._connect

    def without_lock_file(path, how):
        if how == "mode=ro":
            raise cannot_open()
        return connect(path, how)

    async def read(catalog):
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda *args: False)
            patch.setattr(schema, "_connect", without_lock_file)
            assert (await catalog.snapshot()).videos == 2
            assert catalog._session._worker.opened.frozen
        await asyncio.to_thread(use, path, lambda writer: fill(writer, [2, 3]))
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda *args: False)
            patch.setattr(schema, "_connect", without_lock_file)
            assert (await catalog.snapshot()).videos == 4
            assert catalog._session._worker.opened.frozen
            assert await catalog.problems() == []

    use(path, read)


def cannot_open():
    try:
        sqlite3.connect("file:/nowhere/at/all?mode=ro", uri=True)
    except sqlite3.OperationalError as error:
        return error


def test_it_can_be_read_while_others_write(path):
    async def share(catalog):
        await fill(catalog)
        told = await asyncio.to_thread(powerless, path, {"problems": "catalog.problems()", "codings": CODINGS})
        assert told == {"problems": [], "codings": [made(0).chunks[0].coding]}
        await made(5).add(catalog)

    use(path, share)


def test_what_a_dead_writer_left_needs_the_right_to_write(path):
    use(path, fill)
    with database(path) as db:
        db.execute("UPDATE places SET weight = 5.0 WHERE number = 0")
        for part in ("", "-wal"):
            shutil.copy(path + part, path + ".copy" + part)
    for part in ("", "-wal"):
        os.replace(path + ".copy" + part, path + part)
    told = powerless(path, {"codings": CODINGS})
    assert "a writer died" in told["codings"]
    assert use(path, lambda catalog: catalog.header()).places[0].weight == 5.0
    assert powerless(path, {"codings": CODINGS}) == {"codings": [made(0).chunks[0].coding]}


def test_an_older_form_is_not_brought_up_without_the_right_to_write(path):
    old_form(path)
    assert "older form 0 and may not be written" in powerless(path, {"codings": CODINGS})["codings"]


# --- others ----------------------------------------------------------------------------------------------------------


def test_a_lock_of_another_is_waited_for_and_then_named(path):
    async def wait(catalog):
        await fill(catalog)
        with database(path) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(CatalogTimeout, match="another process holds its lock") as caught:
                await catalog.begin(made(5).job)
            assert caught.value.details["waited"] >= 0.5
            assert (await catalog.snapshot()).videos == 2  # readers wait for nobody
            waiting = asyncio.create_task(catalog.begin(made(6).job))
            await catalog_waits(catalog)
            db.execute("ROLLBACK")
            assert await waiting is None
        assert [job.name for job in await catalog.jobs()] == [made(6).job.name]

    use(path, wait, timeout=0.5)


async def catalog_waits(catalog):
    """Wait until its thread has begun a call."""
    while catalog._session._worker.now is None:  # noqa: ASYNC110 - a thread sets no event
        await asyncio.sleep(0)


def test_a_wait_for_a_lock_can_be_cancelled_and_closed(path):
    async def wait(catalog):
        await fill(catalog)
        with database(path) as db:
            db.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(catalog.begin(made(5).job))
            await catalog_waits(catalog)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.wait_for(catalog.jobs(), 10) == []
            task = asyncio.create_task(catalog.begin(made(5).job))
            await catalog_waits(catalog)
            await asyncio.wait_for(catalog.aclose(), 10)
            with pytest.raises(sl.errors.ClosedError):
                await task

    use(path, wait, timeout=60)


def test_long_work_ends_by_the_timeout(path):
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"

    async def wait(catalog):
        await fill(catalog)
        with pytest.raises(CatalogTimeout):
            await catalog._session.do(lambda opened: opened.db.execute(slow).fetchall())
        assert (await catalog.snapshot()).videos == 2

    use(path, wait, timeout=0.3)


def test_a_file_that_was_removed_is_noticed(path):
    async def read(catalog):
        await fill(catalog)
        os.unlink(path)
        with pytest.raises(CatalogNotFound):
            await catalog.snapshot()
        for left in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}{left}")
        await catalog.create(PLACES)
        assert (await catalog.snapshot()).videos == 0

    use(path, read)


def test_a_file_that_was_replaced_is_noticed(path, tmp_path):
    other = str(tmp_path / "other.sqlite")
    use(other, lambda catalog: fill(catalog, range(5)))

    async def read(catalog):
        await fill(catalog)
        shutil.move(other, path)
        for call in (catalog.snapshot, lambda: catalog.begin(made(7).job)):
            with pytest.raises(CatalogError, match="another file was put in the place"):
                await call()

    use(path, read)
    for left in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{left}")
    assert use(path, lambda catalog: catalog.problems()) == []
    assert use(path, lambda catalog: catalog.snapshot()).videos == 5


def test_a_catalog_that_was_forgotten_ends_its_thread(path):
    async def forget():
        catalog = SqliteCatalog(path)
        await fill(catalog)
        thread = catalog._session._worker.thread
        del catalog
        gc.collect()
        return thread

    thread = asyncio.run(forget())
    thread.join(10)
    assert not thread.is_alive()


# --- no space, damage ------------------------------------------------------------------------------------------------


def test_no_space_left(path):
    async def write(catalog):
        await fill(catalog)
        await catalog._session.do(lambda opened: opened.db.execute("PRAGMA max_page_count = 1").fetchall())
        big = made(9, [1] * 2_000)
        await catalog.begin(big.job)
        with pytest.raises(CatalogError, match="no space left"):
            await catalog.stage(big.chunks)
        assert await catalog.staged(big.content) == []
        assert await catalog.problems() == []
        await catalog._session.do(lambda opened: opened.db.execute("PRAGMA max_page_count = 100000").fetchall())
        await catalog.stage(big.chunks)
        assert (await catalog.commit(big.video)).number == 2
        assert await catalog.problems() == []

    use(path, write)


FILLING = """
import asyncio, os, resource, sys
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import CatalogError
from streamloader.testing.catalogs.binding import made
async def main():
    catalog = SqliteCatalog(sys.argv[1])
    await catalog.header()
    most = os.path.getsize(sys.argv[1]) + 1_500_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        for seed in range(100, 1000):
            await made(seed, [2] * 30).add(catalog)
            print(seed, flush=True)
    except CatalogError as error:
        print(error.message)
    assert (await catalog.snapshot()).videos
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
        assert await catalog.problems() == []
        names = [row.name async for row in catalog.find()]
        assert names == [made(seed).video.name for seed in [0, 1, *map(int, seeds)]]
        assert seeds
        for job in await catalog.jobs():
            await catalog.abandon(job.content)
        assert (await made(5000).add(catalog)).number == len(names)

    use(path, read)


def test_a_damaged_file_is_named(path):
    use(path, lambda catalog: fill(catalog, range(40)))
    data = bytearray(Path(path).read_bytes())
    for at in range(8192 * 2, len(data) - 8192, 8192):
        data[at : at + 200] = b"\xa5" * 200
    Path(path).write_bytes(data)

    async def read(catalog):
        problems = await catalog.problems()
        assert problems
        assert all(problem.startswith("the file is damaged") for problem in problems)
        with pytest.raises(CatalogError, match="damaged: restore"):
            await catalog.locate(0, 400)

    use(path, read)
