"""Real games: every frame is that of a bare loop over the same environments, byte for byte."""

from __future__ import annotations

import functools
import itertools

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from tiers import only_fast

import streamloader as sl

DEADLINE = 60.0


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    # AtariVectorEnv writes its mode into the metadata of all vectors.
    monkeypatch.setattr(VectorEnv, "metadata", dict(VectorEnv.metadata))


def play_single(env_id, options, actions, seed, mode):
    """Return (observations, rewards, ends, final observations) of a bare loop, one for each action."""
    env = gymnasium.make(env_id, **options)
    observation, _ = env.reset(seed=seed)
    rows, ended = [], False
    for action in actions:
        before, reward, terminated, truncated, final = observation, 0.0, False, False, None
        if ended:
            (observation, _), ended = env.reset(), False
        else:
            observation, reward, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
            if ended and mode != "next_step":
                final = observation
                (observation, _), ended = env.reset(), False
        rows.append((before, reward, terminated, truncated, final))
    env.close()
    return rows


@pytest.mark.parametrize(
    ("mode", "num_workers"),
    only_fast(
        itertools.product(("next_step", "same_step", "disabled"), (0, 2)), fast=[("next_step", 2), ("same_step", 0)]
    ),
)
def test_frames_of_single_games(mode, num_workers):
    options = {"max_episode_steps": 30, "frameskip": 2, "repeat_action_probability": 0.25}
    with sl.MultiStreamer.from_gym(
        "ALE/Pong-v5", 2, 16, num_workers, autoreset_mode=mode, env_kwargs=options, seed=4, timeout=DEADLINE
    ) as loader:
        batches = [batch.clone().numpy() for batch in itertools.islice(loader, 5)]
    arrays = {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}
    assert arrays["observation"].shape == (2, 80, 210, 160, 3)
    for row in range(2):
        expected = play_single("ale_py:ALE/Pong-v5", options, arrays["action"][row], loader.lane_seeds[row], mode)
        for t, (observation, reward, terminated, truncated, final) in enumerate(expected):
            assert arrays["observation"][row, t].tobytes() == observation.tobytes(), t
            assert arrays["reward"][row, t] == reward
            assert (arrays["terminated"][row, t], arrays["truncated"][row, t]) == (terminated, truncated)
            if mode != "next_step":
                frame = np.zeros_like(observation) if final is None else final
                assert arrays["final_observation"][row, t].tobytes() == frame.tobytes(), t
        assert arrays["truncated"][row].sum() == 2
        assert len({frame.tobytes() for frame in arrays["observation"][row]}) > 10


def atari(num_envs, mode):
    return AtariVectorEnv(
        "breakout", num_envs, autoreset_mode=mode, max_num_frames_per_episode=100, noop_max=4, num_threads=1
    )


@pytest.mark.parametrize("num_workers", only_fast([0, 2], fast=[0]))
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_frames_of_the_vector_of_ale(mode, num_workers):
    with sl.MultiStreamer.from_gym(functools.partial(atari, mode=mode), 2, 20, num_workers, timeout=DEADLINE) as loader:
        batches = [batch.clone().numpy() for batch in itertools.islice(loader, 3)]
    arrays = {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}
    bare = atari(2, mode)
    observation, _ = bare.reset(seed=loader.lane_seeds[0])
    for t in range(60):
        assert arrays["observation"][:, t].tobytes() == np.ascontiguousarray(observation).tobytes(), t
        observation, reward, terminated, truncated, infos = bare.step(arrays["action"][:, t])
        assert arrays["reward"][:, t].tolist() == reward.tolist()
        assert arrays["terminated"][:, t].tolist() == terminated.tolist()
        assert arrays["truncated"][:, t].tolist() == truncated.tolist()
        for row in np.flatnonzero(terminated | truncated) if mode == AutoresetMode.SAME_STEP else ():
            assert arrays["final_observation"][row, t].tobytes() == infos["final_obs"][row].tobytes()
    bare.close()
    assert (arrays["truncated"] | arrays["terminated"]).sum() >= 4
    assert (~arrays["valid"]).any() == (mode == AutoresetMode.NEXT_STEP)


def test_a_mode_that_the_vector_of_ale_lacks():
    with pytest.raises(sl.StreamFailed, match="ValueError: Invalid autoreset_mode: Disabled"):
        sl.MultiStreamer.from_gym(functools.partial(atari, mode=AutoresetMode.DISABLED), 2, 20)


def test_several_games_in_one_batch():
    ids = ("ALE/Pong-v5", "ale_py:ALE/Breakout-v5")

    def make_env(lane):
        return gymnasium.make(ids[lane % 2], full_action_space=True)

    with sl.MultiStreamer.from_gym(make_env, 2, 3, timeout=DEADLINE) as loader:
        batch = next(iter(loader)).numpy()
    for lane, env_id in enumerate(ids):
        env = gymnasium.make(env_id, full_action_space=True)
        assert batch["observation"][lane, 0].tobytes() == env.reset(seed=loader.lane_seeds[lane])[0].tobytes()
        env.close()
