"""What follows from a deadline, by what the worker does: real processes, observed with a clock that the test sets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types

import pytest
from polling import wait_until

from streamloader.engine import worker_activity
from streamloader.engine.stalls import StallJudge
from streamloader.engine.worker_activity import Activity, ActivityMeter, read_activity

TIMEOUT_S = 100.0
WAITS, GIVES_UP, KILLS, LEAVES_OUT = "waits", "gives up", "kills", "leaves out"


class Worker:
    """A worker of which the system says, at each observation, what the test says."""

    def __init__(self, monkeypatch, *, raises=False, replaces=True):
        self.kill_reason, self.kills, self.pid, self.now_s = "", 0, 1, 0.0
        self.cpu_s = self.delayed_s = 0.0
        self.state = "sleeps"
        self.judge = StallJudge(TIMEOUT_S, replaces_workers=replaces, leaves_out_streams=not raises)
        monkeypatch.setattr(worker_activity, "time", types.SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(worker_activity, "read_activity", self.read)

    def read(self, _):
        return Activity(self.state == "is halted", self.state in ("runs", "starves"), self.cpu_s, self.delayed_s)

    def pass_timeout(self, state, share=0.0, *, is_stalled=True):
        """Let a timeout pass in this state; `share` of the time it has a processor. Return what follows."""
        self.state = state
        for _ in range(20):
            self.judge.meter.observe(self.pid)
            self.now_s += TIMEOUT_S / 20
            self.cpu_s += share * TIMEOUT_S / 20
            self.delayed_s += (1 - share) * TIMEOUT_S / 20 if state == "starves" else 0.0
        remedy = self.judge.decide(self, is_stalled=is_stalled, kills_here=self.kills)
        if remedy.kill_reason:
            self.kills, self.pid = self.kills + remedy.is_stall, self.pid + 1
            return LEAVES_OUT if remedy.leaves_out else KILLS
        return WAITS if remedy.waits else GIVES_UP


@pytest.mark.parametrize("raises", [True, False])
def test_a_worker_that_does_nothing_is_replaced_twice(raises, monkeypatch):
    worker = Worker(monkeypatch, raises=raises)
    followed = [worker.pass_timeout("sleeps") for _ in range(3)]
    assert followed == [KILLS, KILLS, GIVES_UP if raises else LEAVES_OUT]


def test_one_that_makes_progress_ends_the_wait(monkeypatch):
    assert Worker(monkeypatch).pass_timeout("runs", 1.0, is_stalled=False) == GIVES_UP


def test_one_that_has_just_started_gets_another_timeout(monkeypatch):
    worker = Worker(monkeypatch)
    assert worker.pass_timeout("sleeps") == KILLS
    assert [worker.pass_timeout("runs", 1.0, is_stalled=False) for _ in range(2)] == [WAITS, GIVES_UP]


def test_workers_that_are_not_replaced_end_the_wait(monkeypatch):
    worker = Worker(monkeypatch, replaces=False)
    assert [worker.pass_timeout(state) for state in ("sleeps", "is halted")] == [GIVES_UP, GIVES_UP]


def test_halted_workers_are_replaced_without_a_count(monkeypatch):
    worker = Worker(monkeypatch)
    for is_stalled in (True, False) * 5:  # also where no row is being filled
        assert worker.pass_timeout("is halted", is_stalled=is_stalled) == KILLS
    assert worker.kills == 0


def test_a_worker_that_cannot_be_killed_ends_the_wait(monkeypatch):
    worker = Worker(monkeypatch)
    worker.kill_reason = "it made no progress"
    assert worker.pass_timeout("sleeps") == GIVES_UP


@pytest.mark.parametrize("state", ["is halted", "starves"])
def test_a_worker_that_is_slowed_down_is_left_alone(state, monkeypatch):
    worker = Worker(monkeypatch)
    followed = [worker.pass_timeout(state, 0.05) for _ in range(15)]
    assert followed == [WAITS] * 14 + [WAITS if state == "is halted" else KILLS]  # it had 75 % of a timeout by then
    assert [Worker(monkeypatch).pass_timeout(state, 0.01) for _ in range(1)] == [WAITS]


def test_one_that_never_runs_ends_the_wait(monkeypatch):
    worker = Worker(monkeypatch)
    assert [worker.pass_timeout("starves") for _ in range(20)] == [WAITS] * 19 + [GIVES_UP]


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_stream_that_computes_has_the_time_of_a_slow_machine(share, monkeypatch):
    worker = Worker(monkeypatch)
    worker.kills = 2
    followed = [worker.pass_timeout("runs" if share == 1 else "starves", share) for _ in range(21)]
    assert followed[:14] == [WAITS] * 14
    assert followed.index(LEAVES_OUT) in range(14, 20)


def test_without_proc_a_stalled_worker_is_treated_as_one_that_does_nothing(monkeypatch):
    worker = Worker(monkeypatch)
    worker.read = lambda _: None
    monkeypatch.setattr(worker_activity, "read_activity", worker.read)
    assert [worker.pass_timeout("runs") for _ in range(3)] == [KILLS, KILLS, LEAVES_OUT]


# --- what the system says ---------------------------------------------------------------------------------------------

CODE = {"sleeps": "import time; print(flush=True); time.sleep(600)", "runs": "print(flush=True)\nwhile True: pass"}


@pytest.fixture(params=CODE)
def process(request):
    with subprocess.Popen([sys.executable, "-c", CODE[request.param]], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kind = request.param
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_states_of_a_process(process):
    wait_until(lambda: read_activity(process.pid).is_busy == (process.kind == "runs"))
    first = read_activity(process.pid)
    if process.kind == "runs":
        wait_until(lambda: read_activity(process.pid).cpu_s > first.cpu_s)
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: read_activity(process.pid).is_halted)
    meter = ActivityMeter()
    meter.observe(process.pid)
    time.sleep(0.02)
    meter.observe(process.pid)
    assert meter.halted_s == meter.starved_s >= 0.02
    assert meter.busy_s == 0.0
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: not read_activity(process.pid).is_halted)


def test_a_process_that_is_gone():
    assert read_activity(None) is None
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert read_activity(process.pid) is None
    meter = ActivityMeter()
    meter.observe(process.pid)
    assert (meter.halted_s, meter.starved_s, meter.busy_s) == (0.0, 0.0, 0.0)
