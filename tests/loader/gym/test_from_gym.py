"""`MultiStreamer.from_gym`: determinism, policies, arguments, errors and ends, with real threads and processes."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import sys
import threading

import gymnasium
import numpy as np
import pytest
from env_data import released
from gym_data import NESTED_FIELDS, Counting, Nested, counting, row_lists, whole_bytes
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from optional_torch import address_of
from polling import wait_until
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.loader.batch import Batch
from streamloader.loader.gym.streamer import GymStreamer

DEADLINE = 60.0


def play(make_env, count, batchsize=3, window=8, num_workers=0, policy=None, **more):
    """Return copies of the first batches."""
    with sl.MultiStreamer.from_gym(
        make_env, batchsize, window, num_workers, policy, **({"timeout": DEADLINE} | more)
    ) as loader:
        return [batch.clone() for batch in itertools.islice(loader, count)]


# --- the same batches ----------------------------------------------------------------------------------------


class ByLane:
    """A policy with a generator for each lane, and a memory that is cleared where an episode begins."""

    def __init__(self, lanes, rngs, action_space):
        assert [rng.bit_generator.__class__.__name__ for rng in rngs] == ["Philox"] * len(lanes)
        self.rngs, self.space, self.memory = rngs, action_space, np.zeros(len(lanes), np.int64)

    def __call__(self, observations, resets):
        self.memory[resets] = 0
        self.memory += 1
        draws = np.array([rng.integers(2) for rng in self.rngs])
        return (draws + self.memory + (observations[:, 0] > 0)) % self.space.n


class Sampling(gymnasium.Env):
    """Draws from its own spaces, as environments for tests of speed do."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(0, 1, (3,)), spaces.Discrete(50)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(self.action_space.sample()), False, False, {}


SETUPS = {
    "CartPole": ("CartPole-v1", None, {}),
    "CartPole, same step": ("CartPole-v1", None, {"autoreset_mode": "same_step"}),
    "policy": ("CartPole-v1", ByLane, {}),
    "nested": (Nested, None, {"autoreset_mode": "disabled"}),
    "samples": (Sampling, None, {}),
    "sync vector": (functools.partial(gymnasium.make_vec, "CartPole-v1", vectorization_mode="sync"), None, {}),
}


@pytest.mark.parametrize(
    ("name", "num_workers"),
    only_fast(
        itertools.product(SETUPS, (1, 2, 3, 7)),
        fast=[("CartPole", 3), ("policy", 2), ("nested", 2), ("samples", 2), ("sync vector", 2)],
    ),
)
def test_the_same_bytes_for_any_number_of_workers(name, num_workers):
    make_env, policy, more = SETUPS[name]
    expected = whole_bytes(play(make_env, 12, 5, 9, 0, policy, seed=3, **more))
    assert whole_bytes(play(make_env, 12, 5, 9, num_workers, policy, seed=3, **more)) == expected
    assert whole_bytes(play(make_env, 1, 5, 9, 0, policy, seed=4, **more)) != expected[:1]


def test_the_rows_do_not_depend_on_the_window():
    def rows(window):
        batches = play("CartPole-v1", 60 // window, 2, window)
        return [row_lists(batches, row) for row in range(2)]

    assert rows(1) == rows(4) == rows(60)


def test_ranks_have_the_rows_of_one_world():
    (world,) = whole_bytes(play(Nested, 1, 4))
    halves = [play(Nested, 1, 2, rank=rank, world_size=2)[0].numpy() for rank in range(2)]
    for name, (_, _, expected) in world.items():
        assert b"".join(half[name].tobytes() for half in halves) == expected, name


def test_the_first_reset_has_the_seed_of_the_lane():
    with sl.MultiStreamer.from_gym("CartPole-v1", 3, 2, seed=11, timeout=DEADLINE) as loader:
        batch = next(iter(loader)).numpy()
    assert len(set(loader.lane_seeds)) == 3
    for row, seed in enumerate(loader.lane_seeds):
        assert batch["observation"][row, 0].tobytes() == gymnasium.make("CartPole-v1").reset(seed=seed)[0].tobytes()


# --- actions -------------------------------------------------------------------------------------------------


def test_random_actions_are_of_the_space_and_differ_between_lanes():
    (batch,) = play(Nested, 1, 3, 300)
    arrays, space = batch.numpy(), Nested().action_space
    for row in range(3):
        values = zip(arrays["action.0"][row], arrays["action.1.move"][row], strict=True)
        assert all(space.contains((turn, {"move": move})) for turn, move in values)
        assert set(arrays["action.0"][row].tolist()) == {-1, 0, 1}
    assert len({arrays["action.1.move"][row].tobytes() for row in range(3)}) == 3


class Even(spaces.Discrete):
    """A space of the user, which knows better what to draw."""

    def sample(self, mask=None, probability=None):
        return super().sample() // 2 * 2


def test_a_space_with_its_own_sample_draws_by_it():
    def make_env():
        env = Counting()
        env.action_space = Even(5)
        return env

    (batch,) = play(make_env, 1, 2, 300)
    assert set(np.unique(batch["action"]).tolist()) == {0, 2, 4}


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_policy_gets_the_observations_and_resets_of_the_batch(mode):
    seen = []

    def policy(observations, resets):
        with pytest.raises(ValueError, match="read-only"):
            observations[:] = 0
        seen.append((observations.copy(), resets.copy()))
        return observations[:, 2] % 5

    batches = play(counting, 6, 3, 7, policy=policy, autoreset_mode=mode)
    for number, batch in enumerate(batches):
        arrays = batch.numpy()
        for t in range(7):
            observations, resets = seen[7 * number + t]
            assert np.array_equal(arrays["observation"][:, t], observations)
            assert np.array_equal(arrays["reset"][:, t], resets)
            assert np.array_equal(arrays["action"][:, t], observations[:, 2] % 5)


def test_a_policy_of_nested_spaces_uses_the_names_of_the_fields():
    def policy(observations, resets):
        assert set(observations) == {name for name in NESTED_FIELDS if name.startswith("observation")}
        state = observations["observation.state.1"]
        return {"action.1.move": state[:, ::-1], "action.0": np.full(len(state), -1)}

    (batch,) = play(Nested, 1, policy=policy)
    arrays = batch.numpy()
    assert np.array_equal(arrays["action.1.move"], arrays["observation.state.1"][..., ::-1])
    assert (batch["action.0"] == -1).all()


def test_actions_are_stored_as_they_are_executed():
    class Box(gymnasium.Env):
        observation_space = spaces.Box(-9, 9, (1,), np.float32)
        action_space = spaces.Box(-9, 9, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert action.dtype == np.float32
            result = action.copy()
            action[:] = 7  # does not change the batch
            return result, 0.0, False, False, {}

    (batch,) = play(Box, 1, 2, 5, policy=lambda observations, resets: np.full((2, 1), 0.1))
    assert (batch["action"] == np.float32(0.1)).all()
    assert np.array_equal(batch["observation"][:, 1:], batch["action"][:, :-1])


def test_actions_have_the_dtype_of_the_space():
    def at_step(env, number):
        assert env.last_action.dtype == np.int64

    class Watched(Counting):
        def step(self, action):
            self.last_action = action
            return super().step(action)

    def policy(observations, resets):
        return observations[:, 2].astype(np.int8)

    (batch,) = play(lambda lane: Watched(lane, at_step), 1, 2, 4, policy=policy)
    assert np.array_equal(batch["action"], batch["observation"][..., 2])


@pytest.mark.parametrize(
    ("policy", "kind", "message"),
    [
        (lambda o, r: np.zeros(3, np.int64), sl.StreamFailed, r"'action': expected an array of shape \(2,\)"),
        (lambda o, r: np.zeros(2), sl.StreamFailed, "that conversion loses values"),
        (lambda o, r: None, sl.StreamFailed, "'action': expected .* got NoneType None"),
        (lambda o, r: 1 / 0, sl.StreamFailed, "choosing actions at step 0: ZeroDivisionError"),
        (lambda o, r: next(iter(())), sl.StreamFailed, "raised StopIteration, but its stream is endless"),
        (
            type("Bare", (), {"__init__": lambda self: None}),
            sl.StreamFailed,
            "choosing actions at step 0: an object of the policy class Bare",
        ),
    ],
    ids=["shape", "dtype", "None", "raises", "stops", "not callable"],
)
def test_a_policy_that_fails(policy, kind, message):
    with pytest.raises(kind, match=message) as caught:
        play(counting, 1, 2, policy=policy)
    assert caught.value.details["lanes"] == [0, 1]


# --- arguments -----------------------------------------------------------------------------------------------


def of_two(num_envs):
    return SyncVectorEnv([Counting] * 2)


class Unsettled(gymnasium.Env):
    """An environment that is not fully written yet."""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batchsize": 0}, "batchsize must be 1 or more, got 0"),
        ({"window": 0}, "window must be 1 or more, got 0"),
        ({"max_q_size": 0}, "max_q_size must be 1 or more, got 0"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"timeout": -1}, "timeout must be a number of seconds"),
        ({"autoreset_mode": "sometimes"}, r"autoreset_mode must be one of \('next_step', 'same_step', 'disabled'\)"),
        ({"autoreset_mode": 3}, "autoreset_mode must be one of"),
        ({"reward_dtype": "int64"}, r"reward_dtype must be one of \('float32', 'float64'\), got 'int64'"),
        ({"make_env": Counting()}, "make_env must be the id of an environment, .* got Counting"),
        ({"make_env": lambda lane, world: None}, "also requires world: use functools.partial"),
        ({"make_env": lambda lane, /: None}, "also requires lane: use functools.partial"),
        ({"env_kwargs": {"lane": 1}}, "env_kwargs are for the id"),
        ({"make_env": lambda: 7}, "make_env must return a gymnasium.Env, got int"),
        ({"make_env": lambda: of_two(2)}, "returns a vector of environments, so it must have an argument num_envs"),
        ({"make_env": lambda num_envs: Counting()}, "must return a gymnasium.vector.VectorEnv, got Counting"),
        ({"make_env": of_two}, r"make_env\(num_envs=1\) returned a vector of 2 environments"),
        ({"policy": 5}, "policy must be a function"),
        ({"policy": lambda observations: None}, r"a policy is called as policy\(observations, resets\)"),
        ({"policy": type("Wants", (), {"__init__": lambda self, model: None})}, "those of the arguments lanes, rngs"),
        ({"layout": "TC"}, "layout must name B, T"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0 \.\. world_size - 1"),
    ],
)
def test_invalid_arguments(more, message):
    with pytest.raises(sl.ConfigError, match=message):
        sl.MultiStreamer.from_gym(**({"make_env": counting, "batchsize": 2, "window": 3} | more))


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        ("CartPoll-v1", "env of lane 0, opening to read its spaces: NameNotFound: .*CartPoll"),
        (lambda: 1 / 0, "env of lane 0, opening to read its spaces: ZeroDivisionError"),
        (Unsettled, "AttributeError: .*observation_space"),
    ],
)
def test_an_env_that_cannot_be_created_to_read_its_spaces(make_env, message):
    with pytest.raises(sl.StreamFailed, match=message) as caught:
        sl.MultiStreamer.from_gym(make_env, 2, 3)
    assert isinstance(caught.value.__cause__, Exception)


def test_without_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(sl.MissingDependency, match=r"pip install streamloader\[gym\]"):
        sl.MultiStreamer.from_gym("CartPole-v1", 2, 3)


def test_functions_get_the_arguments_that_they_name():
    seen = []

    def vector(lanes, *, num_envs, lane=None):
        seen.append((lanes, num_envs, lane))
        return SyncVectorEnv([functools.partial(Counting, lane) for lane in lanes])

    play(vector, 1, 3, rank=1, world_size=2)
    assert seen == [(range(3, 4), 1, 3), (range(3, 6), 3, 3)]


def test_the_face_of_the_loader_and_its_batches():
    with sl.MultiStreamer.from_gym(counting, 2, 3, layout="TB", reward_dtype="float64", timeout=DEADLINE) as loader:
        assert type(loader) is GymStreamer
        with pytest.raises(TypeError, match="has no len"):
            len(loader)
        assert repr(loader) == (
            "GymStreamer({observation: int64(5,), action: int64(), reward: float64(), terminated: bool(), "
            "truncated: bool()}, batchsize=2, window=3, autoreset_mode='next_step', num_workers=0)"
        )
        numbers = []
        for stop in (1, 2, 1):  # the next iteration continues with the next batch
            for batch in loader:
                numbers.append(batch.index)
                stop -= 1  # noqa: PLW2901
                if not stop:
                    break
        stats = loader.stats()
    assert numbers == [0, 1, 2, 3]
    assert type(batch) is Batch
    assert batch["observation"].shape == (3, 2, 5)
    assert batch.reset.shape == batch.keep.shape == (3, 2)
    assert (stats.batches, stats.steps) == (4, 24)
    assert [(lane.lane, lane.stream) for lane in stats.lanes] == [(0, "env of lane 0"), (1, "env of lane 1")]


def test_collate_fn_and_async_for():
    async def main():
        with sl.MultiStreamer.from_gym(
            counting, 2, 3, collate_fn=lambda batch: batch["action"].shape, timeout=DEADLINE
        ) as loader:
            return await anext(aiter(loader))

    assert asyncio.run(main()) == (2, 3)


def test_all_batches_can_be_kept():
    with sl.MultiStreamer.from_gym(counting, 2, 5, timeout=DEADLINE) as loader:
        kept = list(itertools.islice(loader, 20))
        assert loader.stats().copied > 0
    assert whole_bytes(kept) == whole_bytes(play(counting, 20, 2, 5))


def test_batches_are_views_of_the_ring():
    with sl.MultiStreamer.from_gym(counting, 2, 5, timeout=DEADLINE) as loader:
        for batch in itertools.islice(loader, 6):
            start, size = loader._ring.span
            assert all(start <= address_of(batch[name]) < start + size for name in batch)
        assert loader.stats().copied == 0


# --- what goes wrong -----------------------------------------------------------------------------------------

BAD_STEP = 9


def bad_env(lane, change):
    """An environment whose lane 1 returns something else at its step 9."""
    return Counting(lane, lambda env, number: change(env) if (env.lane, number) == (1, BAD_STEP) else None)


def fails(env):
    raise LookupError("the world fell apart")


def result(**changed):
    usual = {"observation": np.zeros(5, np.int64), "reward": 0.0, "terminated": False, "truncated": False, "info": {}}
    return lambda env: tuple((usual | changed).values())


CHANGES = {
    "raises": (fails, "stepping at step 9: LookupError: the world fell apart"),
    "stops": (lambda env: next(iter(())), "raised StopIteration, but its stream is endless"),
    "shape": (result(observation=np.zeros(4, np.int64)), r"step 9: field 'observation': .*shape \(5,\) .*shape \(4,\)"),
    "dtype": (result(observation=np.zeros(5)), "that conversion loses values"),
    "no observation": (result(observation=None), "'observation': expected .* got NoneType None"),
    "NaN": (result(reward=float("nan")), "stepping at step 9: the reward is NaN"),
    "NaN of NumPy": (result(reward=np.float32("nan")), "stepping at step 9: the reward is NaN"),
    "huge reward": (result(reward=1e300), "field 'reward': .* too large"),
    "array as reward": (result(reward=np.zeros(1)), r"field 'reward': .* shape \(1,\)"),
    "text as reward": (result(reward="much"), "field 'reward': .* got str 'much'"),
    "number as end": (result(terminated=1), "field 'terminated'"),
    "None as end": (result(truncated=None), "field 'truncated'"),
    "four values": (lambda env: (np.zeros(5, np.int64), 0.0, False, {}), "step.. must return .* got 4 values"),
    "no tuple": (lambda env: 5, "step.. must return .* got int 5"),
}


@pytest.mark.parametrize(
    ("how", "num_workers"),
    only_fast(itertools.product(CHANGES, (0, 2)), fast=[*((how, 0) for how in CHANGES), ("raises", 2)]),
)
def test_an_env_that_fails_is_named_and_nothing_before_is_lost(how, num_workers):
    change, message = CHANGES[how]
    make_env = functools.partial(bad_env, change=change)
    good = whole_bytes(play(counting, 2, 3, 4))
    with sl.MultiStreamer.from_gym(make_env, 3, 4, num_workers, timeout=DEADLINE) as loader:
        for before in (2, 0, 0):
            got = []
            with pytest.raises(sl.StreamFailed, match=message) as caught:
                got.extend(batch.clone() for batch in loader)
            assert whole_bytes(got) == good[:before]
            error = caught.value
            assert (error.stream, error.offset) == ("env of lane 1", BAD_STEP)
            assert [error.details[name] for name in ("lane", "stage", "step")] == [1, "stepping", BAD_STEP]
            assert error.details["lanes"] == ([1, 2] if num_workers else [0, 1, 2])


class BadReset(Counting):
    """Fails to start its third episode."""

    def reset(self, *, seed=None, options=None):
        if self.episode == 1 and self.lane == 1:
            return 5
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize(("mode", "step"), [("next_step", 12), ("same_step", 10)])
def test_an_env_that_fails_to_reset(mode, step):
    with pytest.raises(sl.StreamFailed, match=r"resetting at step \d+: reset\(\) must return .* got int 5") as caught:
        play(lambda lane: BadReset(lane), 9, autoreset_mode=mode)  # noqa: PLW0108 - a lambda is what is tested
    assert (caught.value.details["lane"], caught.value.offset) == (1, step)


def test_infinite_rewards_are_passed_on():
    (batch,) = play(functools.partial(bad_env, change=result(reward=-np.inf)), 1, 2, 12)
    assert batch["reward"][1, BAD_STEP] == -np.inf


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lane_whose_env_differs_from_the_first(num_workers, tmp_path):
    def make_env(lane):
        env = Counting(lane, path=tmp_path)
        if lane == 2:
            env.observation_space = spaces.Box(0, 1, (5,), np.int32)
        return env

    with (
        sl.MultiStreamer.from_gym(make_env, 3, 4, num_workers, timeout=DEADLINE) as loader,
        pytest.raises(
            sl.ConfigError, match=r"fields observation int32\[5\], but the first one had observation int64"
        ) as caught,
    ):
        next(iter(loader))
    assert (caught.value.details["lane"], caught.value.details["stage"]) == (2, "opening")
    assert {"closed-0", "closed-1", "closed-2"} <= set(os.listdir(tmp_path))


def test_a_vector_whose_result_does_not_match():
    class Wrong(SyncVectorEnv):
        def step(self, actions):
            observation, reward, *rest = super().step(actions)
            return observation, np.where(np.arange(self.num_envs) == 1, np.nan, reward), *rest

    def make_env(lanes, num_envs):
        return Wrong([functools.partial(Counting, lane) for lane in lanes])

    with pytest.raises(sl.StreamFailed, match="env of lanes 0-2, stepping at step 0: the reward is NaN") as caught:
        play(make_env, 1)
    assert (caught.value.details["lane"], caught.value.details["lanes"]) == (1, [0, 1, 2])


def test_what_cannot_be_sent_to_workers():
    connection = (number for number in range(3))  # like a socket, nothing that can be copied

    def make_env():
        assert connection
        return Counting()

    loader = sl.MultiStreamer.from_gym(make_env, 2, 3, 1)
    with loader, pytest.raises(sl.ConfigError, match=r"cannot be sent to worker processes \(TypeError: .*generator"):
        iter(loader)


# --- what never returns --------------------------------------------------------------------------------------


def hang(env):
    threading.Event().wait()


@pytest.mark.parametrize("stage", ["stepping", "resetting", "opening", "choosing actions"])
def test_a_lane_that_hangs_is_named_and_its_process_ended(stage):
    def make_env(lane):
        if stage == "opening" and lane == 2:
            hang(None)
        env = Counting(lane, lambda env, number: hang(env) if (stage, lane, number) == ("stepping", 2, 5) else None)
        if stage == "resetting" and lane == 2:
            env.reset = lambda **_: hang(env)
        return env

    policy = (lambda observations, resets: hang(None)) if stage == "choosing actions" else None
    lane, step = (0, 0) if policy else (2, 5 if stage == "stepping" else 0)
    with sl.MultiStreamer.from_gym(make_env, 4, 3, 1, policy, timeout=None) as loader:
        iterator = iter(loader)
        wait_until(lambda: loader.stats().lanes[lane].stage == stage and loader.stats().lanes[lane].step == step)
        got = [next(iterator).index for _ in range(step // 3)]
        loader._timeout = 0.2
        with pytest.raises(
            sl.LoaderTimeout, match=rf"lane {lane} \(env of lane {lane}, {stage} at step {step}\)"
        ) as caught:
            next(iterator)
        pids = loader._supervisor.pids
    assert got == list(range(step // 3))
    assert (caught.value.details["lane"], caught.value.offset) == (lane, step)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_lane_that_hangs_in_this_process_is_named_and_its_batch_comes_when_it_goes_on():
    with released(threading.Event()) as release:

        def at_step(env, number):
            if (env.lane, number) == (1, 5):
                assert release.wait(DEADLINE)

        with sl.MultiStreamer.from_gym(lambda lane: Counting(lane, at_step), 2, 4, timeout=DEADLINE) as loader:
            iterator = iter(loader)
            got = [next(iterator).clone()]
            wait_until(lambda: loader.stats().lanes[1].step == 5)
            loader._timeout = 0.2
            with pytest.raises(sl.LoaderTimeout, match=r"lane 1 \(env of lane 1, stepping at step 5\)"):
                next(iterator)
            release.set()
            loader._timeout = DEADLINE
            got += [batch.clone() for batch in itertools.islice(loader, 2)]
    assert whole_bytes(got) == whole_bytes(play(counting, 3, 2, 4))


def test_a_vector_that_hangs_is_named():
    class Slow(SyncVectorEnv):
        def step(self, actions):
            hang(self)

    def make_env(lanes, num_envs):
        return Slow([functools.partial(Counting, lane) for lane in lanes])

    with sl.MultiStreamer.from_gym(make_env, 4, 3, 2, timeout=None) as loader:
        iterator = iter(loader)
        wait_until(lambda: all(loader.stats().lanes[lane].stage == "stepping" for lane in (0, 2)))
        loader._timeout = 0.2
        with pytest.raises(sl.LoaderTimeout, match=r"lane 0 \(env of lanes 0-1, stepping at step 0\)"):
            next(iterator)


def test_an_env_that_hangs_while_its_spaces_are_read():
    with released(threading.Event()) as release:

        def make_env():
            assert release.wait(DEADLINE)
            return Counting()

        with pytest.raises(
            sl.LoaderTimeout, match=r"waited 0\.2 s for env of lane 0 to be created, to read its spaces"
        ):
            sl.MultiStreamer.from_gym(make_env, 2, 3, timeout=0.2)


@pytest.mark.chaos
def test_a_worker_that_dies_is_named_at_once():
    def at_step(env, number):
        if (env.lane, number) == (2, 5):
            os.kill(os.getpid(), signal.SIGKILL)

    with sl.MultiStreamer.from_gym(lambda lane: Counting(lane, at_step), 4, 4, 2, timeout=None) as loader:
        with pytest.raises(sl.WorkerDied) as caught:
            list(loader)
        assert (caught.value.details["lanes"], caught.value.details["signal"]) == ([2, 3], signal.SIGKILL)


def test_workers_import_no_torch():
    def make_env():
        env = Counting()
        env.at_step = lambda env, number: 1 // 0 if "torch" in sys.modules else None
        return env

    play(make_env, 1, num_workers=1)


# --- closing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_close_closes_all_envs_in_their_threads(num_workers, tmp_path):
    with sl.MultiStreamer.from_gym(
        functools.partial(Counting, path=tmp_path), 3, 4, num_workers, timeout=DEADLINE
    ) as loader:
        wait_until(lambda: os.listdir(tmp_path) == ["closed-0"])  # the one whose spaces were read
        (tmp_path / "closed-0").unlink()
        batch = next(iter(loader))
    closed = {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)}
    assert closed == {"closed-0": "1", "closed-1": "1", "closed-2": "1"}  # each used in one thread
    assert batch["observation"].shape == (3, 4, 5)  # what is held stays valid


def test_one_env_that_fails_to_close_does_not_keep_others_open(tmp_path):
    class Sticky(Counting):
        def close(self):
            super().close()
            if self.lane == 0:
                raise OSError("the window stays open")

    def make_env(lane):
        return Sticky(lane, lambda env, number: fails(env) if (env.lane, number) == (2, 3) else None, tmp_path)

    with pytest.raises(sl.StreamFailed, match="the world fell apart") as caught:
        play(make_env, 2)
    assert "closing at step 3: OSError: the window stays open" in caught.value.worker_traceback
    assert sorted(os.listdir(tmp_path)) == ["closed-0", "closed-1", "closed-2"]


def test_an_env_that_does_not_close_is_ended():
    class Stubborn(Counting):
        def close(self):
            if threading.current_thread().name != "streamloader-probe":
                hang(self)

    with sl.MultiStreamer.from_gym(Stubborn, 2, 4, 2, timeout=DEADLINE) as loader:
        next(iter(loader))
        pids = loader._supervisor.pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("num_workers", fast_first([0, 2]))
def test_letting_go_of_the_loader_closes_it(num_workers, tmp_path):
    loader = sl.MultiStreamer.from_gym(lambda lane: Counting(lane, path=tmp_path), 3, 4, num_workers, timeout=DEADLINE)
    next(iter(loader))
    del loader
    assert sorted(os.listdir(tmp_path)) == ["closed-0", "closed-1", "closed-2"]


# --- a GPU ---------------------------------------------------------------------------------------------------


def test_batches_on_a_gpu_are_the_same():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    expected = play(Nested, 12)
    with sl.MultiStreamer.from_gym(Nested, 3, 8, 2, pin_memory=True, device="cuda", timeout=DEADLINE) as loader:
        for batch, other in zip(loader, expected, strict=False):
            assert all(batch[name].device.type == "cuda" and batch[name].cpu().equal(other[name]) for name in other)
