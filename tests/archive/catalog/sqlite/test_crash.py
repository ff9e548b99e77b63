"""Writers are killed at any moment. Everything that they committed is there and complete, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from catalog_writer import sizes

from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.testing.catalogs.binding import PLACES, make_sample_video

pytestmark = pytest.mark.chaos

WRITER = Path(__file__).parents[3] / "catalog_writer.py"


class Nursery:
    """Processes that fork writers, which are killed."""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.lines = self.process.stdout
        self.committed: list[int] = []

    def play(self, number, wait):
        """Let a writer commit at least once, wait, kill it, and read what it had committed."""
        self.process.stdin.write(b"%d\n" % number)
        pid, acknowledged, killed = None, 0, False
        while True:
            word, _, rest = self.lines.readline().decode().partition(" ")
            if word == "pid":
                pid = int(rest)
            elif word == "dead":
                return
            else:
                self.committed.append(int(word))
                acknowledged += 1
            if pid and acknowledged and not killed:
                time.sleep(wait)  # the moment of death is what is tried out
                os.kill(pid, signal.SIGKILL)
                killed = True

    def close(self):
        self.process.stdin.close()
        self.lines.close()
        self.process.wait(60)


def kill(path, rounds, writers):
    chance = random.Random(rounds)
    nurseries = [Nursery(path) for _ in range(writers)]
    try:
        for number in range(rounds // writers):
            threads = [
                threading.Thread(target=nursery.play, args=(1 + number * writers + at, chance.uniform(0, 0.03)))
                for at, nursery in enumerate(nurseries)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            if number % 10 == 9:
                check(path, [seed for nursery in nurseries for seed in nursery.committed])
    finally:
        for nursery in nurseries:
            nursery.close()
    committed = [seed for nursery in nurseries for seed in nursery.committed]
    assert len(committed) >= rounds
    return check(path, committed)


def check(path, committed):
    async def look():
        catalog = SqliteCatalog(path)
        try:
            assert await catalog.find_problems() == []
            rows = [row async for row in catalog.find_videos()]
            by_content = {row.content: row for row in rows}
            assert {make_sample_video(seed, [1]).content for seed in committed} <= by_content.keys()
            for row in rows:
                seed = int(row.name.removeprefix("video ").removesuffix(".mp4"))
                video = make_sample_video(seed, sizes(seed))
                assert await catalog.get_chunks(row.content, 0, 99) == video.rows
                assert await catalog.get_indexes(row.content, range(row.chunks)) == [
                    chunk.index for chunk in video.chunks
                ]
            return rows, await catalog.list_jobs()
        finally:
            await catalog.aclose()

    return asyncio.run(look())


def create(path):
    async def make():
        catalog = SqliteCatalog(path)
        await catalog.create(PLACES)
        await catalog.aclose()

    asyncio.run(make())


def test_writers_are_killed(tmp_path):
    path = str(tmp_path / "catalog.sqlite")
    create(path)
    rows, jobs = kill(path, 10, 2)
    for job in jobs:  # the jobs of killed writers can be resumed
        seed = int(job.name.removeprefix("video ").removesuffix(".mp4"))
        video = make_sample_video(seed, sizes(seed))

        async def finish(video=video):
            catalog = SqliteCatalog(path)
            await catalog.begin_job(video.job)
            there = {row.number for row in await catalog.get_staged_chunks(video.content)}
            await catalog.stage_chunks([chunk for chunk in video.chunks if chunk.row.number not in there])
            row = await catalog.commit_video(video.video)
            await catalog.aclose()
            return row

        row = asyncio.run(finish())
        assert row.number == len(rows)
        rows.append(row)
    assert check(path, [])[1] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_200_writers_are_killed(tmp_path):
    path = str(tmp_path / "catalog.sqlite")
    create(path)
    kill(path, 200, 4)
