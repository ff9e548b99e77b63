"""The deadline of a wait counts the time in which this process runs, and no other."""

from __future__ import annotations

import types

import numpy as np
import pytest

from streamloader.engine import consumer_wait
from streamloader.engine.consumer_wait import MAX_POLL_S, ConsumerWait
from streamloader.engine.ring import Status
from streamloader.errors import LoaderTimeout


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Waiting:
    """A wait that is driven like the supervisor drives it, with a clock that the test sets."""

    def __init__(self, monkeypatch, timeout):
        self.clock = Clock()
        monkeypatch.setattr(consumer_wait, "time", types.SimpleNamespace(perf_counter=self.clock.perf_counter))
        self.kills = 0
        self.stalled = False
        status = np.zeros((2, Status.COLUMNS), np.int64)
        self.observed = []
        observe = lambda: self.observed.append(self.clock.now)  # noqa: E731
        self.wait = ConsumerWait(timeout, status, lambda: 1, observe, self.kill, self.timed_out)

    def kill(self, _):
        self.kills += self.stalled
        return self.stalled

    def timed_out(self, seconds):
        return LoaderTimeout(f"{seconds:.3f}")

    def pass_time(self, seconds):
        """Let time pass in checks that come exactly when they are due."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + max(self.wait.remaining(), 1e-6))
            self.wait.check()

    def suspend(self, seconds):
        """Let time pass in which nothing runs, in the middle of a wait between two checks."""
        self.clock.now += self.wait.remaining() / 2 + seconds
        self.wait.check()


@pytest.mark.parametrize("timeout", [0.05, 0.5, 3.0, 120.0])
def test_the_deadline_expires_on_time(timeout, monkeypatch):
    waiting = Waiting(monkeypatch, timeout)
    with pytest.raises(LoaderTimeout) as caught:
        waiting.pass_time(2 * timeout)
    assert timeout <= waiting.clock.now - 100.0 <= 1.01 * timeout
    assert float(caught.value.message) == pytest.approx(timeout, rel=0.01, abs=0.002)
    assert waiting.wait.finish() == (1, pytest.approx(timeout, rel=0.01, abs=0.002))


@pytest.mark.parametrize("timeout", [0.05, 0.5, 3.0, 120.0])
@pytest.mark.parametrize("suspended", [1.0, 10_000.0])
@pytest.mark.parametrize("stalled", [False, True])
def test_suspended_time_does_not_count(timeout, suspended, stalled, monkeypatch):
    waiting = Waiting(monkeypatch, timeout)
    waiting.stalled = stalled
    waiting.suspend(suspended)
    waiting.pass_time(0.3 * timeout)
    waiting.suspend(suspended)
    assert waiting.kills == 0  # and no LoaderTimeout
    lane, seconds = waiting.wait.finish()
    assert lane == 1
    assert seconds < timeout + 2 * MAX_POLL_S


def test_a_stalled_worker_is_killed_and_the_timeout_starts_again(monkeypatch):
    waiting = Waiting(monkeypatch, 10.0)
    waiting.stalled = True
    waiting.pass_time(10.5)
    assert waiting.kills == 1
    waiting.stalled = False
    with pytest.raises(LoaderTimeout):
        waiting.pass_time(10.5)


def test_without_a_limit_checks_come_in_time_for_signals(monkeypatch):
    waiting = Waiting(monkeypatch, None)
    assert waiting.wait.remaining() == MAX_POLL_S
    waiting.pass_time(1000.0)
    assert waiting.kills == 0


@pytest.mark.parametrize("timeout", [0.5, 120.0])
def test_the_worker_is_observed_at_irregular_intervals(timeout, monkeypatch):
    waiting = Waiting(monkeypatch, timeout)
    waiting.pass_time(0.99 * timeout)
    intervals = np.diff(waiting.observed)
    assert len(intervals) >= 15
    step = min(MAX_POLL_S, timeout / 20)
    assert 0.4 * step <= intervals.min() < 0.7 * step < 1.3 * step < intervals.max() <= 2 * step
