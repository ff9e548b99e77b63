"""Flattened spaces, and what is refused."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gym_data import NESTED_FIELDS, Nested
from gymnasium import spaces

import streamloader as sl
from streamloader.loader.gym.spaces import FlatSpace
from streamloader.streams.step_writer import StepMismatch


def described(flat):
    return {name: (str(field.dtype), field.shape) for name, field in flat.fields.items()}


def test_names_shapes_and_dtypes():
    env = Nested()
    observation = FlatSpace.flatten(env.observation_space, "observation")
    action = FlatSpace.flatten(env.action_space, "action")
    assert described(observation) | described(action) == NESTED_FIELDS
    assert observation.is_nested
    single = FlatSpace.flatten(spaces.MultiBinary((2, 3)), "observation")
    assert described(single) == {"observation": ("int8", (2, 3))}
    assert not single.is_nested


def test_nesting_is_the_inverse_of_picking():
    env = Nested()
    env.observation_space.seed(3)
    flat, value = FlatSpace.flatten(env.observation_space, "observation"), env.observation_space.sample()
    parts = {leaf.name: leaf.pick(value) for leaf in flat.leaves}
    again = flat.nest(parts.__getitem__)
    assert env.observation_space.contains(again)
    assert {leaf.name: leaf.pick(again) for leaf in flat.leaves} == parts


GRAPH = spaces.Graph(spaces.Box(0, 1, (2,)), None)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(5), r"'observation' is a Text space, .* gymnasium.wrappers.FlattenObservation"),
        (spaces.OneOf((spaces.Discrete(2), spaces.Box(0, 1))), "'observation' is a OneOf space, .*FlattenObservation"),
        (spaces.Sequence(spaces.Discrete(2)), "'observation' is a Sequence space, .* pad its values"),
        (spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2), GRAPH))}), "'observation.a.1' is a Graph space"),
        (spaces.Dict({}), "observation space .* is empty"),
        (
            spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}),
            r"two parts of the observation space are named 'observation\.a\.b': rename a key",
        ),
    ],
)
def test_spaces_without_a_fixed_shape_or_with_equal_names(space, message):
    class Env(gymnasium.Env):
        observation_space, action_space = space, spaces.Discrete(2)

    with pytest.raises(sl.ConfigError, match=message):
        sl.MultiStreamer.from_gym(Env, 2, 4)


@pytest.mark.parametrize(
    ("space", "value", "written"),
    [
        (spaces.Discrete(4), 3, 3),
        (spaces.Discrete(4), np.int32(3), 3),
        (spaces.Discrete(4), True, 1),
        (spaces.Box(0, 1, (2,), np.float32), np.array([0.5, 0.25]), [0.5, 0.25]),
        (spaces.Box(0, 9, (2,), np.float64), np.array([1, 2]), [1, 2]),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255]), [0, 255]),
        (spaces.MultiBinary(2), np.array([1, 0], np.uint8), [1, 0]),
        (spaces.MultiBinary(2), np.array([True, False]), [1, 0]),
        (spaces.Box(0, 1, (2,), np.float32), [0.5, 0.25], [0.5, 0.25]),
    ],
)
def test_values_that_are_kept(space, value, written):
    (leaf,) = FlatSpace.flatten(space, "observation").leaves
    out = np.full((3, *leaf.field.shape), 77, leaf.field.dtype)
    leaf.write(out, 1, value)
    assert out[1].tolist() == written
    assert (out[0] == 77).all()
    assert (out[2] == 77).all()


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(0, 1, (2,)), np.zeros(3, np.float32), r"expected an array of shape \(2,\) and dtype float32, got"),
        (spaces.Box(0, 1, (2,)), np.zeros((1, 2), np.float32), r"got an array of shape \(1, 2\)"),
        (spaces.Box(0, 1, (2,)), np.float32(0), r"expected an array of shape \(2,\)"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 256]), "the value 256, which does not fit"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.0, 1.0]), "that conversion loses values"),
        (spaces.Discrete(3), 1.0, "that conversion loses values"),
        (spaces.Discrete(3), None, "expected a number of dtype int64, got NoneType None"),
        (spaces.Box(0, 1, (2,)), np.array([1e300, 0]), "too large"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"b": 1}, "field 'observation.a' is missing in dict"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1,), "field 'observation.1' is missing in tuple"),
        (spaces.Dict({"a": spaces.Discrete(2)}), 5, "field 'observation.a' is missing in int 5"),
    ],
)
def test_values_that_do_not_match(space, value, message):
    leaf = FlatSpace.flatten(space, "observation").leaves[-1]
    with pytest.raises(StepMismatch, match=message):
        leaf.write(np.zeros((1, *leaf.field.shape), leaf.field.dtype), 0, value)
