"""Rows of counting environments in each autoreset mode, against rows that follow from the meaning of the modes."""

from __future__ import annotations

import functools
import itertools

import gymnasium
import numpy as np
import pytest
from gym_data import MODES, Counting, CountingVector, Nested, counting, expected_rows, flatten_nested, row_lists
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from tiers import only_fast

import streamloader as sl

DEADLINE = 60.0
LANES = 6


def sync_vector(num_envs, lanes, mode, copy=True):
    makers = [functools.partial(Counting, lane) for lane in lanes]
    return SyncVectorEnv(makers, copy=copy, autoreset_mode=AutoresetMode[mode.upper()])


def async_vector(num_envs, lanes, mode):
    makers = [functools.partial(Counting, lane) for lane in lanes]
    # Python warns of a fork in a process with threads, and a worker has some.
    return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode[mode.upper()], context="spawn")


KINDS = {
    "single": lambda mode: (counting, {"autoreset_mode": mode}),
    "sync": lambda mode: (functools.partial(sync_vector, mode=mode), {}),
    "sync without copies": lambda mode: (functools.partial(sync_vector, mode=mode, copy=False), {}),
    "own vector": lambda mode: (functools.partial(CountingVector, mode=mode), {}),
    "vector with a mode of the user": lambda mode: (
        functools.partial(CountingVector, mode=mode, states=False),
        {"autoreset_mode": mode},
    ),
}


def check(loader, batches, mode, lanes=range(LANES), world=LANES):
    for row, lane in enumerate(lanes):
        got = row_lists(batches, row)
        assert got == expected_rows(lane, [step["action"] for step in got], loader.lane_seeds[row], mode, world)
        assert len(got) == len(batches) * loader.window


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", only_fast([1, 2, 3, 7, 64], fast=[1, 7]))
def test_every_row_is_what_the_mode_means(kind, mode, window):
    make_env, more = KINDS[kind](mode)
    with sl.MultiStreamer.from_gym(make_env, LANES, window, timeout=DEADLINE, **more) as loader:
        assert loader.autoreset_mode == mode
        batches = [batch.clone() for batch in itertools.islice(loader, 140 // window + 1)]
        check(loader, batches, mode)
    seen = {(step["terminated"], step["truncated"]) for step in row_lists(batches, 0)}
    assert len(seen) == 4  # terminated, truncated, both, neither


@pytest.mark.parametrize(
    ("kind", "mode"),
    only_fast(
        itertools.product(["single", "own vector", "sync"], MODES),
        fast=[("single", "next_step"), ("single", "same_step"), ("own vector", "disabled")],
    ),
)
def test_the_same_rows_from_worker_processes(kind, mode):
    make_env, more = KINDS[kind](mode)
    with sl.MultiStreamer.from_gym(make_env, LANES, 5, 2, timeout=DEADLINE, **more) as loader:
        check(loader, [batch.clone() for batch in itertools.islice(loader, 12)], mode)


@pytest.mark.slow
@pytest.mark.may_leak("multiprocessing keeps the memory of shared arrays for later ones")
@pytest.mark.parametrize("mode", MODES)
def test_an_async_vector(mode):
    make_env = functools.partial(async_vector, mode=mode)
    with sl.MultiStreamer.from_gym(make_env, 2, 7, 1, timeout=DEADLINE) as loader:
        check(loader, [batch.clone() for batch in itertools.islice(loader, 6)], mode, range(2), 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vector", [False, True])
def test_the_final_observation_is_a_matter_of_choice(mode, vector):
    make_env, more = KINDS["own vector" if vector else "single"](mode)
    with sl.MultiStreamer.from_gym(make_env, 2, 9, final_observation=True, timeout=DEADLINE, **more) as loader:
        batches = [batch.clone() for batch in itertools.islice(loader, 5)]
    for row in range(2):
        steps = row_lists(batches, row)
        for step, following in itertools.pairwise(steps):
            ended = step["terminated"] or step["truncated"]
            assert any(step["final_observation"]) == ended
            if ended and mode == "next_step":
                assert step["final_observation"] == following["observation"]
                assert not following["valid"]
    with sl.MultiStreamer.from_gym(make_env, 2, 9, final_observation=False, timeout=DEADLINE, **more) as loader:
        batch = next(iter(loader))
        assert "final_observation" not in batch
        without = row_lists([batch], 0)
    assert without == [{name: step[name] for name in without[0]} for step in row_lists(batches, 0)[:9]]


@pytest.mark.parametrize("mode", MODES)
def test_ranks_host_the_lanes_of_one_world(mode):
    for rank in range(2):
        with sl.MultiStreamer.from_gym(
            counting, 3, 8, autoreset_mode=mode, rank=rank, world_size=2, timeout=DEADLINE
        ) as loader:
            check(loader, [next(iter(loader)).clone()], mode, range(3 * rank, 3 * rank + 3), 6)


# --- nested spaces -------------------------------------------------------------------------------------------


def nested_vector(num_envs, mode):
    return SyncVectorEnv([Nested] * num_envs, autoreset_mode=AutoresetMode[mode.upper()])


def play_nested(actions, seed, mode):
    """Return the observations of one lane, and the final ones (or None), as the bare environment gives them."""
    env, observations, finals, ended = Nested(), [], [], False
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observations.append(flatten_nested(observation))
        final = None
        if ended:
            (observation, _), ended = env.reset(), False
        else:
            observation, _, ended, _, _ = env.step(action)
            if ended and mode != "next_step":
                final, ended = flatten_nested(observation), False
                observation, _ = env.reset()
        finals.append(final)
    return observations, finals


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vector", [False, True])
def test_nested_spaces_are_flattened(vector, mode):
    make_env, more = (functools.partial(nested_vector, mode=mode), {}) if vector else (Nested, {"autoreset_mode": mode})
    with sl.MultiStreamer.from_gym(make_env, 2, 10, timeout=DEADLINE, **more) as loader:
        arrays = next(iter(loader)).numpy()
    for row in range(2):
        actions = [
            (turn, {"move": move})
            for turn, move in zip(arrays["action.0"][row], arrays["action.1.move"][row], strict=True)
        ]
        observations, finals = play_nested(actions, loader.lane_seeds[row], mode)
        for t, (observation, final) in enumerate(zip(observations, finals, strict=True)):
            for name, value in observation.items():
                assert np.array_equal(arrays[name][row, t], value), (name, t)
                if mode != "next_step":
                    expected = np.zeros_like(value) if final is None else final[name]
                    assert np.array_equal(arrays[f"final_{name}"][row, t], expected), (name, t)


# --- stated modes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "shown", "message"),
    [
        ("same_step", "next_step", "states the autoreset mode same_step, but infos lack final_obs"),
        ("same_step", "disabled", "states the autoreset mode same_step, but infos lack final_obs"),
        ("next_step", "same_step", "states the autoreset mode next_step, but infos have final_obs"),
        ("disabled", "same_step", "states the autoreset mode disabled, but infos have final_obs"),
        ("next_step", "disabled", "an environment was not reset"),
    ],
)
def test_a_vector_that_states_another_mode_than_it_shows(stated, shown, message):
    make_env = functools.partial(CountingVector, mode=stated, lies=shown)
    with (
        sl.MultiStreamer.from_gym(make_env, 2, 8, timeout=DEADLINE) as loader,
        pytest.raises(sl.StreamFailed, match=message) as caught,
    ):
        next(iter(loader))
    assert caught.value.details["lanes"] == [0, 1]


def test_a_vector_that_ends_an_episode_in_a_final_row():
    class Restless(CountingVector):
        def step(self, actions):
            observation, reward, terminated, truncated, infos = super().step(actions)
            return observation, reward, terminated | self.always, truncated, infos

        always = np.array([False, True])

    with (
        sl.MultiStreamer.from_gym(functools.partial(Restless, mode="next_step"), 2, 8, timeout=DEADLINE) as loader,
        pytest.raises(sl.StreamFailed, match="should only start it") as caught,
    ):
        next(iter(loader))
    assert (caught.value.details["lane"], caught.value.offset) == (1, 1)


def test_a_vector_has_to_state_its_mode(monkeypatch):
    make_env = functools.partial(CountingVector, mode="same_step", states=False)
    with pytest.raises(sl.ConfigError, match="does not state its autoreset mode: set metadata"):
        sl.MultiStreamer.from_gym(make_env, 2, 4)
    # Some environments write into the dict of the base class, which is then the metadata of all others.
    monkeypatch.setitem(VectorEnv.metadata, "autoreset_mode", AutoresetMode.NEXT_STEP)
    with pytest.raises(sl.ConfigError, match="does not state its autoreset mode"):
        sl.MultiStreamer.from_gym(make_env, 2, 4)


def test_a_vector_and_the_user_have_to_agree():
    make_env = functools.partial(CountingVector, mode="same_step")
    with pytest.raises(sl.ConfigError, match="metadata says same_step, the argument autoreset_mode says next_step"):
        sl.MultiStreamer.from_gym(make_env, 2, 4, autoreset_mode="next_step")
    sl.MultiStreamer.from_gym(make_env, 2, 4, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize(
    "mode", ["same_step", "SameStep", "SAME_STEP", AutoresetMode.SAME_STEP], ids=["name", "value", "NAME", "member"]
)
def test_names_of_modes(mode):
    loader = sl.MultiStreamer.from_gym(counting, 2, 4, autoreset_mode=mode)
    assert loader.autoreset_mode == "same_step"


def test_wrapped_vectors_keep_their_mode():
    def make(num_envs, lanes):
        vector = sync_vector(num_envs, lanes, "same_step")
        return gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)

    with sl.MultiStreamer.from_gym(make, 4, 6, timeout=DEADLINE) as loader:
        check(loader, [batch.clone() for batch in itertools.islice(loader, 4)], "same_step", range(4), 4)
