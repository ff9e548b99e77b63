"""Writers that are killed, writers that meet, and servers that go away, on real servers with real processes."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import mongo_program
import pytest
from mongo_program import PLACES, WRITES, add, create
from servers.mongo import names
from servers.mongo_fixture import run_mongo_server

from streamloader.archive.catalog.mongo.catalog import MongoCatalog
from streamloader.errors import CatalogError, CatalogTimeout

PROGRAM = str(Path(mongo_program.__file__))


@pytest.fixture
def url(mongo_server):
    database = mongo_server.database()
    url = mongo_server.url(database)
    asyncio.run(create(url))
    yield url
    mongo_server.direct.drop_database(database)


def run(*arguments):
    done = subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [line.split() for line in done.stdout.splitlines()]


FIRST, LAST = names()[0], names()[-1]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("mongo_server", "kills"),
    [(FIRST, 4), *(pytest.param(name, WRITES, marks=pytest.mark.slow) for name in names())],
    indirect=["mongo_server"],
)
def test_killed_before_its_writes_a_writer_leaves_a_whole_catalog(url, kills):
    assert run("die", url, kills, 0)[-1] == ["killed", str(kills)]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_two_hundred_times_writers_leave_a_whole_catalog(url, seed):
    assert run("die", url, 200, seed)[-1] == ["killed", "200"]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("mongo_server", "writers", "each"),
    [
        (LAST, 2, 3),
        *(pytest.param(name, 6, 20, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for name in names()),
    ],
    indirect=["mongo_server"],
)
def test_writers_that_meet_number_videos_without_gap_and_each_content_once(url, writers, each):
    # Each has videos of its own, and all have the same two, which they add at the same time.
    shared = [1000, 1001]
    processes = []
    for writer in range(writers):
        numbers = [*shared, *range(writer * each, (writer + 1) * each)]
        command = [sys.executable, PROGRAM, "add", url, *map(str, numbers)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    reports: dict[str, set[tuple[str, ...]]] = {}
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        for line in output.splitlines():
            number, *position = line.split()
            reports.setdefault(number, set()).add(tuple(position))
    assert all(len(positions) == 1 for positions in reports.values()), reports  # the same result for all writers
    count = writers * each + len(shared)
    assert sorted(int(video) for (position,) in reports.values() for video, _ in [position]) == list(range(count))

    async def look():
        catalog = MongoCatalog(url, driver="pymongo")
        assert await catalog.find_problems() == []
        assert await catalog.list_jobs() == []
        assert (await catalog.get_snapshot()).videos == count
        await catalog.aclose()

    asyncio.run(look())


# PyMongo leaves a socket to the collector if it is closed while it connects.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.chaos
@pytest.mark.usefixtures("motor_threads")
@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("nx", "motor"),
        pytest.param("nx", "pymongo", marks=pytest.mark.slow),
        pytest.param("secantus", "motor", marks=pytest.mark.slow),
        pytest.param("secantus", "pymongo", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_is_killed_and_comes_back_is_waited_for(name, driver):
    with run_mongo_server(name) as server:  # one of its own, for it is going to be killed
        asyncio.run(_survive(server, driver))
        gc.collect()


async def _survive(server, driver):
    url = server.url(server.database())
    patient = MongoCatalog(url, driver=driver, timeout=60.0)
    hasty = MongoCatalog(url, driver=driver, timeout=30.0)
    try:
        await patient.create(PLACES)
        before = await add(patient, 0)
        assert (await hasty.get_snapshot()).videos == 1
        server.kill()
        hasty._connection.timeout = 0.3
        with pytest.raises(
            CatalogTimeout, match=r"took longer than 0\.3 s: check that the server is running"
        ) as caught:
            await hasty.get_snapshot()
        assert isinstance(caught.value, CatalogError)
        waiting = asyncio.create_task(add(patient, 1))
        await asyncio.sleep(0)  # so that the request starts while there is no server
        server.spawn()
        after = await waiting
        assert (after.number, after.start) == (1, before.frames)
        assert (await patient.get_snapshot()).videos == 2
        hasty_again = MongoCatalog(url, driver=driver, timeout=30.0)
        assert await hasty_again.find_problems() == []
        await hasty_again.aclose()
    finally:
        await patient.aclose()
        await hasty.aclose()
