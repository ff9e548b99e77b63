"""Rounds: batches of a loader whose workers are killed are compared with those of the same loader undisturbed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from chaos.data import SEEKING
from chaos.killer import IDLE, RESTARTING, SHUTDOWN, Kill, Killer
from chaos.plan import ALWAYS, Played, Round
from polling import is_running

import streamloader as sl

MAX_DEATHS = 25  # in one round, approximately
BLAMED = "by a stream that always does it"
_MARKS = ("stream", "step", "valid", "repeat", "reset")


@dataclass
class Result:
    """Results of rounds.

    Attributes:
        rounds: Number of rounds.
        kills: Number of deaths by moment.
        causes: Number of deaths by cause.
        workers: Number of deaths by number of workers.
        restarts: Number of workers that were replaced.
        given_up: Number of planned kills for which there was no moment at which no stream could be blamed.
        batches: Number of batches that were compared.
        latencies: Time in seconds from each death to its detection.
        replaced: Time in seconds from each detection to the start of the replacement.
        mismatches: Descriptions of differences, with the round's numbers.
    """

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    workers: Counter[int] = field(default_factory=Counter)
    restarts: int = 0
    given_up: int = 0
    batches: int = 0
    latencies: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Add the results of another round."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def extend_hash(before: str, arrays: dict[str, np.ndarray]) -> str:
    """Hash the bytes of all arrays of a batch, and all that came before."""
    digest = hashlib.sha256(before.encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def play_rounds(
    seed: int,
    kills: int,
    folder: Path,
    *,
    first: int = 0,
    most: int = MAX_DEATHS,
    workers: Iterable[int] = (),
    on_round: Callable[[Result], object] = lambda _: None,
) -> Result:
    """Play rounds, from number `first` on, until `kills` workers were killed; call `on_round` after each.

    Rounds go on until some died with each of these numbers of workers.
    """
    total, number = Result(), first
    while sum(total.kills.values()) < kills or not set(workers) <= set(total.workers):
        total.add(play_round(seed, number, folder, most=most))
        number += 1
        on_round(total)
    return total


def play_round(seed: int, number: int, folder: Path, *, most: int = MAX_DEATHS) -> Result:
    """Play one round with about `most` deaths, and compare it."""
    folder = folder / f"round-{seed}-{number}"
    folder.mkdir()
    round_ = Round(seed, number, folder)
    with round_.undisturbed() as loader:
        played = []
        expected = _play_and_hash(round_, loader, played)
        round_.lay_fuses(played, loader.streams, loader.stats().slots, most)
    left: list[sl.Quarantined] = []
    if round_.style == ALWAYS:
        with round_.undisturbed() as loader:
            expected = _play_and_hash(round_, loader, [])
            left = _without_reason(loader.quarantined)
    result = Result(rounds=1)
    loader = round_.loader()
    killer = Killer(loader)
    try:
        _play_while_killing(round_, loader, killer, expected, most, result)
        killer.join()
        _count_deaths(round_, loader, killer, result)
        if _without_reason(loader.quarantined) != left:
            result.mismatches.append(f"{round_.name}: quarantined {loader.quarantined} instead of {left}")
    except (sl.StreamloaderError, RuntimeError) as error:
        result.mismatches.append(f"{round_.name}: {type(error).__name__}: {error}")
    finally:
        with contextlib.suppress(RuntimeError):  # it was reported, or is a consequence of an error that was
            killer.join()
        _close(round_, loader, result)
    result.workers[round_.workers] = sum(result.kills.values())
    return result


def _play_and_hash(round_: Round, loader: sl.MultiStreamer, played: Played) -> list[tuple[int, int, str]]:
    """Play all, add the marks to `played`, and return (epoch, batch, hash)."""
    expected, digest = [], ""
    for epoch, index, arrays in round_.played(loader):
        digest = extend_hash(digest, arrays)
        expected.append((epoch, index, digest))
        played.append((epoch, index, {name: arrays[name].copy() for name in _MARKS}))
    return expected


def _without_reason(entries: Iterable[sl.Quarantined]) -> list[sl.Quarantined]:
    return sorted((replace(entry, reason="") for entry in entries), key=lambda entry: (entry.epoch, entry.lane))


def _play_while_killing(
    round_: Round,
    loader: sl.MultiStreamer,
    killer: Killer,
    expected: list[tuple[int, int, str]],
    most: int,
    result: Result,
) -> None:
    """Play while workers die, up to the first batch that differs."""
    digest, wanted, plan = "", iter(expected), round_.kills()
    waiting: list[Kill] = next(plan)

    def strike() -> None:
        nonlocal waiting
        if waiting and not killer.busy and len(killer.done) < most:
            killer.begin(waiting)
            if any(kill.aim == IDLE for kill in waiting):
                killer.join()  # the workers fill all slots and are idle then
            waiting = []

    for epoch, index, arrays in round_.played(loader, strike):
        digest = extend_hash(digest, arrays)
        del arrays
        result.batches += 1
        if (epoch, index, digest) != next(wanted, None):
            result.mismatches.append(f"{round_.name}: epoch {epoch}, batch {index} differs")
            return
        waiting = waiting or next(plan)
        strike()
    if next(wanted, None) is not None:
        result.mismatches.append(f"{round_.name}: batches are missing at the end")


def _count_deaths(round_: Round, loader: sl.MultiStreamer, killer: Killer, result: Result) -> None:
    """Count the deaths, their latencies, and compare them with the loader's own records."""
    at = {kill.pid: kill.at for kill in killer.done}
    for kill in killer.done:
        result.kills[kill.moment] += 1
        result.causes[kill.cause] += 1
    for fuse in round_.fuses:
        if fuse.burnt is not None:
            when, pid = fuse.burnt
            at[pid] = when
            result.kills[RESTARTING if fuse.moment == SEEKING else fuse.moment] += 1
            result.causes[fuse.cause] += 1
    killer.wait_until_noticed(at.keys())
    with loader._supervisor.lock:  # for a consistent snapshot
        deaths = {pid: (noticed, started) for pid, noticed, started in loader._supervisor.deaths}
        restarts = loader._supervisor.failures.restarts
    result.restarts += restarts
    result.given_up += killer.given_up
    if round_.style == ALWAYS:
        result.kills[BLAMED] += len(deaths)
        result.causes["always the same"] += len(deaths)
    elif set(deaths) != set(at):
        result.mismatches.append(f"{round_.name}: of {len(at)} deaths {len(deaths)} were detected")
    if restarts != len(deaths):
        result.mismatches.append(f"{round_.name}: {restarts} restarts after {len(deaths)} deaths")
    for pid in set(deaths) & set(at):
        noticed, started = deaths[pid]
        result.latencies.append(noticed - at[pid])
        result.replaced.append(started - noticed)


def _close(round_: Round, loader: sl.MultiStreamer, result: Result) -> None:
    """Close the loader while one of its workers is killed; nothing may be left of it."""
    rng, pids = round_.rng, [] if loader._supervisor is None else loader._supervisor.pids
    victim, delay = (pids[int(rng.integers(len(pids)))] if pids else 0), float(rng.uniform(0, 0.004))
    killed = []

    def kill() -> None:
        time.sleep(delay)
        if is_running(victim):
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    thread = threading.Thread(target=kill, name="chaos-shutdown")
    if pids:
        thread.start()
    loader.close()
    if pids:
        thread.join()
        result.kills[SHUTDOWN] += len(killed)
        result.causes["SIGKILL"] += len(killed)
    left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    if left:
        result.mismatches.append(f"{round_.name}: processes {left} outlive the loader")
