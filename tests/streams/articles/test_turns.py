"""Turns at hosts: reserved times and slots that tasks and processes share."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import types

import pytest

from streamloader.errors import ConfigError, StoreTimeout
from streamloader.streams.articles import turns
from streamloader.streams.articles.turns import HostTurns

RESERVE = """
import asyncio, sys, time
from streamloader.streams.articles import turns
waits = []
async def sleep(seconds):
    waits.append(time.time() + seconds)
turns.asyncio = type("A", (), {"sleep": staticmethod(sleep), "to_thread": asyncio.to_thread,
                               "get_running_loop": asyncio.get_running_loop})
async def main():
    for _ in range(10):
        (await turns.HostTurns(sys.argv[1], 50).take("a.example:80", 100.0, "a"))()
asyncio.run(main())
print(*waits)
"""


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch):
        self.now, self.starts = 1000.0, []

        async def sleep(seconds):
            self.now += seconds

        names = {"to_thread": asyncio.to_thread, "get_running_loop": asyncio.get_running_loop, "sleep": sleep}
        monkeypatch.setattr(turns, "asyncio", types.SimpleNamespace(**names))
        monkeypatch.setattr(turns, "time", types.SimpleNamespace(time=lambda: self.now))

    async def take(self, host_turns, host="a.example:80", delay_s=5.0):
        release = await host_turns.take(host, delay_s, "https://a.example/")
        self.starts.append(self.now)
        release()


def test_requests_to_a_host_are_spaced(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    async def run():
        one, other = HostTurns(str(tmp_path), 2), HostTurns(str(tmp_path), 2)
        for each in (one, other, one):
            await clock.take(each)
        await clock.take(other, "b.example:80")  # at once
        await clock.take(one, delay_s=0.0)
        await clock.take(one)
        await one.postpone("a.example:80", 60.0)
        await clock.take(other)

    asyncio.run(run())
    assert clock.starts == [1000.0, 1005.0, 1010.0, 1010.0, 1015.0, 1015.0, 1075.0]


def test_processes_reserve_different_times(tmp_path):
    command = [sys.executable, "-c", RESERVE, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    starts = sorted(float(word) for process in processes for word in process.communicate(timeout=120)[0].split())
    assert [process.returncode for process in processes] == [0, 0]
    assert len(starts) == 20
    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(abs(step - 100.0) < 50 for step in steps)


def test_slots_limit_concurrent_requests(tmp_path):
    async def run():
        one, other = HostTurns(str(tmp_path), 2), HostTurns(str(tmp_path), 2)
        releases = [await each.take("a.example:80", 0.0, "a") for each in (one, other)]
        third = asyncio.create_task(one.take("a.example:80", 0.0, "a"))
        done, _ = await asyncio.wait([third], timeout=0.2)
        assert not done
        await one.take("b.example:80", 0.0, "b")
        releases[1]()
        releases[1]()
        (await asyncio.wait_for(third, 60))()
        releases[0]()

    asyncio.run(run())


def test_a_time_far_ahead_is_an_error_or_ignored(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    async def run():
        host_turns = HostTurns(str(tmp_path), 1)
        for _ in range(2):
            await host_turns.take("a.example:80", 0.0, "a")
            await asyncio.to_thread(host_turns._move_time, turns.hash_name("a.example:80"), 5000.0, reserve=True)
            with pytest.raises(StoreTimeout, match="have reserved the next 3600 s"):
                await host_turns.take("a.example:80", 5.0, "https://a.example/")
            clock.now -= 10_000  # the clock was set back: the reserved time is impossible
        await clock.take(host_turns)

    asyncio.run(run())


def test_a_folder_that_others_can_change_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="cache_dir="):
        asyncio.run(HostTurns(str(tmp_path), 1).take("a.example:80", 0.0, "a"))
