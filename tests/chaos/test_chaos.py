"""A small run of the harness in each run of the tests, and full ones (`tox -e chaos` tells more of these)."""

from __future__ import annotations

import re

import pytest
from chaos import data, plan, programs, rounds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
SEED = 24


@pytest.fixture(autouse=True)
def _any_speed(monkeypatch):
    """How quickly programs end says something only where nothing else runs: `tox -e chaos` judges it."""
    monkeypatch.setattr(programs, "GONE_WITHIN_S", programs.DEADLINE_S)
    monkeypatch.setattr(programs, "EXIT_WITHIN_S", programs.DEADLINE_S)


def few_and_many(few, many):
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


@few_and_many(10, 1000)
def test_workers_that_die_change_no_batch(count, tmp_path):
    most = min(count // 3, rounds.MAX_DEATHS)
    result = rounds.play_rounds(SEED, count, tmp_path, most=most, workers=plan.WORKERS)
    assert result.mismatches == []
    assert sum(result.kills.values()) >= count
    assert result.restarts == sum(result.kills.values()) - result.kills["during shutdown"]
    assert set(result.workers) == set(plan.WORKERS)


@few_and_many(2, 100)
def test_programs_that_are_killed_leave_nothing(count, tmp_path):
    programs.prepare(tmp_path)
    ended = [programs.kill_parent(SEED + number, tmp_path) for number in range(count)]
    assert [one.faults for one in ended] == [[]] * count
    assert {one.how for one in ended} == {"SIGKILL of the parent", "SIGKILL of the process group"}


@few_and_many(1, 200)
def test_programs_that_are_interrupted_say_it_once_and_leave_nothing(count, tmp_path):
    programs.prepare(tmp_path)
    ended = [programs.interrupt_program(SEED + number, tmp_path) for number in range(count)]
    assert [one.faults for one in ended] == [[]] * count


# --- the harness itself ----------------------------------------------------------------------------------------------


class Forgetful(data.Deadly):
    """Its streams go on one step too late, which nobody sees who does not compare."""

    async def open(self, info, rng):
        return ForgetfulStream(*vars(await super().open(info, rng)).values())


class ForgetfulStream(data.DeadlyStream):
    def __init__(self, inner, fuse, chunk, pause, *_):
        super().__init__(inner, fuse, chunk, pause)

    async def seek(self, step):
        await super().seek(step + 1)


def test_a_step_that_is_lost_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "Deadly", Forgetful)
    (found,) = rounds.play_round(SEED, 1, tmp_path).mismatches
    assert re.fullmatch(rf"seed {SEED}, round 1: epoch \d, batch \d+ differs", found)


def test_what_a_program_leaves_is_found(tmp_path):
    programs.prepare(tmp_path)
    with programs.running_victim(SEED, 2, tmp_path) as victim:
        assert victim.process.stdout.readline() == "begin\n"
        while len(victim.processes()) < 3:
            assert victim.process.poll() is None
        (victim.temporary / "left").touch()
        memory = victim.memory()
        left = victim.find_leftovers(memory)
        assert f"temporary file {victim.temporary / 'left'}" in left
        assert sum("memfd:streamloader-ring" in line for line in left) >= 3  # held by the program and both workers


def test_a_round_is_the_same_whenever_it_is_played(tmp_path):
    plans = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        made = plan.Round(SEED, 7, folder)
        kills = made.kills()
        arguments = (made.workers, made.style, made.kind, made.arguments, made.leaves, made.chunk, made.pause)
        plans.append((arguments, [next(kills) for _ in range(100)]))
    assert plans[0] == plans[1]
    assert sum(map(len, plans[0][1])) > 5
