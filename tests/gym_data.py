"""Environments that count, and the rows that a loader has to make of them.

Imports no torch: the workers of the tests import this module.
"""

from __future__ import annotations

import itertools
import threading

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

LENGTHS = (
    (3, 1, 5, 1, 1, 2),
    (4, 7, 2),
    (1, 6, 1, 3),
    (2, 2, 9),
    (11, 1),
    (5,),
)  # of the episodes of each lane, in turn
ENDS = ("terminated", "truncated", "both")  # in turn, from another one in each lane
MODES = ("next_step", "same_step", "disabled")


def episode_of(lane, episode):
    """Return length and end of an episode."""
    lengths = LENGTHS[lane % len(LENGTHS)]
    return lengths[episode % len(lengths)], ENDS[(episode + lane) % len(ENDS)]


def observe(lane, episode, position, action, seed):
    return np.array([lane, episode, position, action, seed], np.int64)


class Counting(gymnasium.Env):
    """Observations are (lane, episode, position, action that led here, seed of the first reset).

    `at_step(env, number)` is called before each step, with the number of steps and resets of this lane so far, and may
    replace the result of the step by what it returns.
    """

    observation_space = spaces.Box(-(1 << 40), 1 << 40, (5,), np.int64)
    action_space = spaces.Discrete(5)

    def __init__(self, lane=0, at_step=None, path=None):
        self.lane, self.at_step, self.path = lane, at_step, path
        self.observation_space, self.action_space = spaces.Box(-(1 << 40), 1 << 40, (5,), np.int64), spaces.Discrete(5)
        self.episode, self.position, self.seed, self.number = -1, 0, 0, 0
        self.threads = {threading.get_ident()}

    def reset(self, *, seed=None, options=None):
        self.threads.add(threading.get_ident())
        assert (seed is None) == (self.episode >= 0)
        self.seed = self.seed if seed is None else seed
        self.episode, self.position = self.episode + 1, 0
        self.number += self.episode > 0
        return observe(self.lane, self.episode, 0, -1, self.seed), {}

    def step(self, action):
        self.threads.add(threading.get_ident())
        length, end = episode_of(self.lane, self.episode)
        assert self.position < length, "step() after the end of an episode"
        replaced = None if self.at_step is None else self.at_step(self, self.number)
        self.number += 1
        if replaced is not None:
            return replaced
        self.position += 1
        ended = self.position == length
        return (
            observe(self.lane, self.episode, self.position, action, self.seed),
            self.episode + self.position / 16,
            ended and end != "truncated",
            ended and end != "terminated",
            {"position": self.position},
        )

    def close(self):
        self.threads.add(threading.get_ident())
        if self.path is not None:
            (self.path / f"closed-{self.lane}").write_text(f"{len(self.threads)}")


def counting(lane):
    return Counting(lane)


def expected_rows(lane, actions, seed, mode, world=1):
    """Return the rows of a lane, one dict for each action, as written down from the meaning of the modes."""
    rows, actions = [], iter(actions)
    for episode in itertools.count():
        length, end = episode_of(lane, episode)
        led_here = -1
        for position in range(length + (mode == "next_step")):
            action = next(actions, None)
            if action is None:
                return rows
            is_final = position == length
            ends = position == length - 1
            rows.append(
                {
                    "observation": observe(lane, episode, position, led_here, seed).tolist(),
                    "action": action,
                    "reward": 0.0 if is_final else episode + (position + 1) / 16,
                    "terminated": ends and end != "truncated",
                    "truncated": ends and end != "terminated",
                    "reset": position == 0,
                    "valid": not is_final,
                    "repeat": False,
                    "step": position,
                    "time": float(position),
                    "stream": episode * world + lane,
                }
            )
            if mode != "next_step":
                final = observe(lane, episode, length, action, seed) if ends else np.zeros(5, np.int64)
                rows[-1]["final_observation"] = final.tolist()
            led_here = action
    raise AssertionError


def row_lists(batches, lane):
    """Return one row of some batches as a list of dicts, one for each step."""
    arrays = [batch.numpy() for batch in batches]
    columns = {name: [value for array in arrays for value in array[name][lane].tolist()] for name in arrays[0]}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def whole_bytes(batches):
    """Return the bytes of all arrays of some batches."""
    return [{name: (a.dtype.str, a.shape, a.tobytes()) for name, a in batch.numpy().items()} for batch in batches]


class CountingVector(VectorEnv):
    """A vector of :class:`Counting` in any mode, which returns the same arrays from every step.

    `lies` is the mode that it behaves in, if not the one that it states.
    """

    def __init__(self, num_envs, lanes, mode, lies=None, states=True):
        self.num_envs, self.mode = num_envs, lies or mode
        self.envs = [Counting(lane) for lane in lanes]
        self.single_observation_space, self.single_action_space = self.envs[0].observation_space, spaces.Discrete(5)
        self.observation_space = spaces.Box(-(1 << 40), 1 << 40, (num_envs, 5), np.int64)
        self.action_space = spaces.MultiDiscrete([5] * num_envs)
        if states:
            self.metadata = {"autoreset_mode": AutoresetMode["_".join(mode.split()).upper()]}
        self.buffer, self.ended = np.zeros((num_envs, 5), np.int64), np.zeros(num_envs, bool)

    def reset(self, *, seed=None, options=None):
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        for row in np.flatnonzero(mask):
            self.buffer[row] = self.envs[row].reset(seed=None if seed is None else seed + int(row))[0]
        self.buffer[~mask] = -1  # not to be used
        self.ended[mask] = False
        return self.buffer, {}

    def step(self, actions):
        assert self.action_space.contains(actions)
        count, infos = self.num_envs, {}
        rewards, terminated, truncated = np.zeros(count), np.zeros(count, bool), np.zeros(count, bool)
        for row, env in enumerate(self.envs):
            if self.mode == "next_step" and self.ended[row]:
                self.buffer[row] = env.reset()[0]
                continue
            assert not self.ended[row], "an environment was not reset"
            self.buffer[row], rewards[row], terminated[row], truncated[row], _ = env.step(actions[row])
            if self.mode == "same_step" and (terminated[row] or truncated[row]):
                infos.setdefault("final_obs", np.zeros((count, 5), np.int64))[row] = self.buffer[row]
                self.buffer[row] = env.reset()[0]
        if self.mode != "same_step":
            self.ended = terminated | truncated
        return self.buffer, rewards, terminated, truncated, infos


class Nested(gymnasium.Env):
    """Nested spaces of all kinds. Episodes have three steps; observations are drawn from the seeded generator."""

    def __init__(self):
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (4, 6, 3), np.uint8),
                "state": spaces.Tuple((spaces.Discrete(7), spaces.Box(-1, 1, (2,), np.float32))),
                "buttons": spaces.Dict({"down": spaces.MultiBinary(3), "dial": spaces.MultiDiscrete([4, 5])}),
            }
        )
        self.action_space = spaces.Tuple(
            (spaces.Discrete(3, start=-1), spaces.Dict({"move": spaces.Box(-1, 1, (2,), np.float32)}))
        )
        self.position = 0

    def draw(self):
        rng = self.np_random
        return {
            "camera": rng.integers(256, size=(4, 6, 3), dtype=np.uint8),
            "state": (int(rng.integers(7)), rng.uniform(-1, 1, 2).astype(np.float32)),
            "buttons": {"down": rng.integers(2, size=3, dtype=np.int8), "dial": rng.integers(4, size=2)},
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self.draw(), {}

    def step(self, action):
        turn, rest = action
        assert turn in (-1, 0, 1)
        assert rest["move"].shape == (2,)
        self.position += 1
        return self.draw(), float(rest["move"].sum() + turn), self.position == 3, False, {}


NESTED_FIELDS = {
    "observation.camera": ("uint8", (4, 6, 3)),
    "observation.state.0": ("int64", ()),
    "observation.state.1": ("float32", (2,)),
    "observation.buttons.down": ("int8", (3,)),
    "observation.buttons.dial": ("int64", (2,)),
    "action.0": ("int64", ()),
    "action.1.move": ("float32", (2,)),
}


def flatten_nested(observation):
    """Return the leaves of an observation of :class:`Nested`, by field."""
    return {
        "observation.camera": observation["camera"],
        "observation.state.0": observation["state"][0],
        "observation.state.1": observation["state"][1],
        "observation.buttons.down": observation["buttons"]["down"],
        "observation.buttons.dial": observation["buttons"]["dial"],
    }
