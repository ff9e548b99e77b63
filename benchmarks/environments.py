"""What does the loader cost on top of stepping environments of Gymnasium by hand?

``python -m benchmarks.environments [--quick] [--rounds N] [--json FILE]``. Needs ale-py.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import psutil

from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_WINDOW = 32
_AHEAD = 2


def _atari_vector(num_envs: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv("pong", num_envs, num_threads=1)


def _windows_by_hand(envs: gymnasium.vector.VectorEnv[Any, Any, Any]) -> Iterator[dict[str, np.ndarray]]:
    """Yield windows of a bare loop, which stores each step in arrays (lanes, T, ...)."""
    observation, _ = envs.reset(seed=1)
    space, lanes = envs.single_observation_space, envs.num_envs
    while True:
        window = {
            "observation": np.empty((lanes, _WINDOW, *space.shape), space.dtype),
            "action": np.empty((lanes, _WINDOW), np.int64),
            "reward": np.empty((lanes, _WINDOW), np.float32),
            "terminated": np.empty((lanes, _WINDOW), bool),
            "truncated": np.empty((lanes, _WINDOW), bool),
        }
        for t in range(_WINDOW):
            window["observation"][:, t] = observation
            action = envs.action_space.sample()
            observation, reward, terminated, truncated, _ = envs.step(action)
            for name, value in (
                ("action", action), ("reward", reward), ("terminated", terminated), ("truncated", truncated)
            ):  # fmt: skip
                window[name][:, t] = value
        yield window


class _Contender:
    """Windows of one contender, of which parts are measured.

    `is_idle` says whether nothing is computed ahead any more. A part begins and ends in that state, so it contains
    the computation of exactly its number of windows, and none of it falls into the other contender's part.
    """

    def __init__(self, windows: Iterator[Any], is_idle: Callable[[], bool], close: Callable[[], None]) -> None:
        self._windows, self._is_idle, self.close = windows, is_idle, close
        self.run(4)

    def run(self, count: int) -> tuple[float, float]:
        """Return wall and processor seconds of `count` windows, all processes together."""
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        cpu, start = _cpu_seconds(family), time.perf_counter()
        for _ in itertools.islice(self._windows, count):
            pass
        while not self._is_idle():
            time.sleep(0.005)  # so seldom that it does not count
        return time.perf_counter() - start, _cpu_seconds(family) - cpu


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def measure(env: str, lanes: int, workers: int, peer: str, windows: int, parts: int) -> dict[str, float]:
    """Measure the loader and a bare loop in turn, part after part.

    Args:
        env: Id of an environment, or ``"vector of ALE"``.
        lanes: Number of lanes.
        workers: Number of the loader's worker processes.
        peer: Vector of the bare loop: ``"sync"``, ``"async"`` or ``"vector"``.
        windows: Number of windows of a part.
        parts: Number of parts of each contender.
    """
    import ale_py

    import streamloader as sl

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    make_bare: Callable[..., Any] = _atari_vector
    if peer != "vector":
        make_bare = functools.partial(gymnasium.make_vec, env, vectorization_mode=peer)
    bare_env = make_bare(num_envs=lanes)
    bare = _Contender(_windows_by_hand(bare_env), lambda: True, bare_env.close)
    loader = sl.MultiStreamer.from_gym(
        _atari_vector if peer == "vector" else env, lanes, _WINDOW, workers, max_q_size=_AHEAD
    )
    ours = _Contender(
        iter(loader), lambda: all(lane.rows_ready == _AHEAD for lane in loader.stats().lanes), loader.close
    )
    walls, cpus, rates, bare_rates = [], [], [], []
    steps = lanes * _WINDOW * windows
    for _ in range(parts):
        bare_wall, bare_cpu = bare.run(windows)
        wall, cpu = ours.run(windows)
        rates.append(steps / wall)
        bare_rates.append(steps / bare_wall)
        walls.append(bare_wall / wall)
        cpus.append(cpu / bare_cpu)
    bare.close()
    ours.close()
    return {
        "steps_per_s": statistics.median(rates),
        "bare_steps_per_s": statistics.median(bare_rates),
        "ratio": statistics.median(walls),
        "cpu_ratio": statistics.median(cpus),
    }


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    parts = 2 if quick else 5

    def row(name: str, env: str, lanes: int, workers: int, peer: str, windows: int) -> Row:
        windows = max(2, windows // 4) if quick else windows
        arguments = {"env": env, "lanes": lanes, "workers": workers, "peer": peer, "windows": windows, "parts": parts}
        return Row(name, arguments)

    pong = "ale_py:ALE/Pong-v5"
    table = OwnTable(
        "environments",
        "Steps of Gymnasium's environments",
        "Windows of 32 steps with random actions. The bare loop steps a vector of Gymnasium, and stores observations, "
        "actions, rewards and ends in arrays (lanes, 32, ...); the loader adds marks and delivers tensors. Both run in "
        "turn in one process, part after part; the ratios are medians over the parts. Rate: that of the loader divided "
        "by that of the bare loop. CPU: processor time of all processes for the same steps, loader by bare loop.",
        (
            row("CartPole, 8 lanes in this process; SyncVectorEnv", "CartPole-v1", 8, 0, "sync", 60),
            row("Pong (210x160x3), 4 lanes in this process; SyncVectorEnv", pong, 4, 0, "sync", 4),
            row("Pong, 2 lanes in 2 workers; AsyncVectorEnv of 2", pong, 2, 2, "async", 8),
            row("ALE's own vector (4x84x84), 4 lanes in this process; the same", "vector of ALE", 4, 0, "vector", 6),
        ),
        (
            Column("steps_per_s", "streamloader, steps/s"),
            Column("bare_steps_per_s", "bare loop, steps/s"),
            Column("ratio", "rate, ratio", 2),
            Column("cpu_ratio", "CPU, ratio", 2),
        ),
    )
    return OwnQuestion("environments", "Environments", "benchmarks.environments", (table,))


if __name__ == "__main__":
    main(question)
