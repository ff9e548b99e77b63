"""Choose the actions of all lanes of a worker: at random, or by the user's policy."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from typing_extensions import override

from streamloader.errors import ConfigError
from streamloader.loader.gym.spaces import FlatSpace, is_standard
from streamloader.streams.step_writer import StepMismatch, StepWriter, check_value
from streamloader.values import Array

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Actor", "PolicyActor", "RandomActor", "check_policy", "make_policy"]

_SAMPLES_PER_BLOCK: Final = 256
_MAX_BLOCK_BYTES: Final = 1 << 20
_OFFERED_ARGUMENTS: Final = ("lanes", "rngs", "observation_space", "action_space")


class Actor(Protocol):
    """Source of the actions of some lanes."""

    needs_observations: bool

    def choose(self, observations: Mapping[str, Array], resets: Array) -> Mapping[str, Array]:
        """Return the actions (lanes, ...) of one step, by field.

        Args:
            observations: Arrays (lanes, ...) of the observation by field, which are read-only.
            resets: Whether the observation is the first of an episode, bool (lanes,).
        """


class RandomActor(Actor):
    """Draws actions from the action space, for each lane by its own generator.

    Args:
        flat: Flattened action space.
        spaces: Action space of each lane.
        seeds: Seed of each lane.
    """

    needs_observations = False

    def __init__(self, flat: FlatSpace, spaces: Sequence[gymnasium.Space[Any]], seeds: Sequence[int]) -> None:
        sample_bytes = sum(int(np.prod(leaf.field.shape)) * leaf.field.dtype.itemsize for leaf in flat.leaves)
        # The size depends on the space alone, so the actions do not depend on the window or the number of workers.
        self._size = max(1, min(_SAMPLES_PER_BLOCK, _MAX_BLOCK_BYTES // max(1, sample_bytes)))
        self._flat = flat
        self._draws = [_make_sampler(space, self._size, seed) for space, seed in zip(spaces, seeds, strict=True)]
        self._block: dict[str, Array] = {}
        self._next = self._size

    @override
    def choose(self, observations: Mapping[str, Array], resets: Array) -> Mapping[str, Array]:
        if self._next == self._size:
            self._block = self._draw_block()
            self._next = 0
        index = self._next
        self._next += 1
        return {name: samples[index] for name, samples in self._block.items()}

    def _draw_block(self) -> dict[str, Array]:
        """Draw the actions of the next steps: arrays (steps, lanes, ...) by field."""
        shape = (self._size, len(self._draws))
        block = {leaf.name: np.empty((*shape, *leaf.field.shape), leaf.field.dtype) for leaf in self._flat.leaves}
        for lane, draw in enumerate(self._draws):
            samples = draw()
            for leaf in self._flat.leaves:
                if isinstance(samples, list):
                    for step, sample in enumerate(samples):
                        leaf.write(block[leaf.name], (step, lane), sample)
                else:
                    block[leaf.name][:, lane] = leaf.pick(samples)
        return block


def _make_sampler(space: gymnasium.Space[Any], size: int, seed: int) -> Callable[[], Any]:
    """Return a function that draws `size` samples: a batch of them, or a list for a class with its own ``sample``."""
    from gymnasium.vector.utils import batch_space

    if is_standard(space):
        batched = batch_space(space, size)
        batched.seed(seed)
        return batched.sample  # 15 times as fast for a Box of three numbers
    own = copy.deepcopy(space)  # the environment's own space may be shared with other lanes
    own.seed(seed)
    return lambda: [own.sample() for _ in range(size)]


class PolicyActor(Actor):
    """Calls the user's policy once a step for all lanes of the worker.

    Args:
        policy: Function ``policy(observations, resets) -> actions``.
        observation: Flattened observation space.
        action: Flattened action space.
        lanes: Number of lanes.
    """

    needs_observations = True

    def __init__(
        self, policy: Callable[[Any, Array], Any], observation: FlatSpace, action: FlatSpace, lanes: int
    ) -> None:
        self._policy, self._lanes = policy, (lanes,)
        self._only_observation = None if observation.is_nested else observation.leaves[0].name
        self._only_action = None if action.is_nested else action.leaves[0].name
        self._fields, self._writer = action.fields, StepWriter(action.fields)

    @override
    def choose(self, observations: Mapping[str, Array], resets: Array) -> Mapping[str, Array]:
        only = self._only_observation
        actions = self._policy(dict(observations) if only is None else observations[only], resets)
        if self._only_action is not None:
            actions = {self._only_action: actions}
        chosen = {}
        for name, value in self._writer.check_names(actions).items():
            field = self._fields[name]
            array = check_value(value, name, field, self._lanes)
            chosen[name] = array if array.dtype == field.dtype else array.astype(field.dtype)
        return chosen


def check_policy(policy: Any) -> None:
    """Check that a policy can be called, or created, as the loader does it.

    Raises:
        ConfigError: If it cannot.
    """
    if policy is None:
        return
    if not callable(policy):
        raise ConfigError(
            "policy must be a function policy(observations, resets) -> actions, or a class of such objects, got "
            f"{type(policy).__name__}"
        )
    try:
        signature = inspect.signature(policy)
    except (TypeError, ValueError):  # a built-in function without a signature
        return
    try:
        if inspect.isclass(policy):
            signature.bind(**dict.fromkeys(_named_arguments(policy)))
        else:
            signature.bind(None, None)
    except TypeError as error:
        form = (
            f"a policy class is called with those of the arguments {', '.join(_OFFERED_ARGUMENTS)} that it names"
            if inspect.isclass(policy)
            else "a policy is called as policy(observations, resets)"
        )
        raise ConfigError(f"{form}; {policy!r} takes {signature}") from error


def make_policy(policy: Any, offer: Callable[[str], Any]) -> Callable[[Any, Array], Any]:
    """Return the policy of one worker. A class is instantiated.

    Args:
        policy: Function, object or class.
        offer: Function that returns the value of an argument for the class by its name.

    Raises:
        StepMismatch: If an object of the class cannot be called.
    """
    if not inspect.isclass(policy):
        return policy  # type: ignore[no-any-return]
    made = policy(**{name: offer(name) for name in _named_arguments(policy)})
    if not callable(made):
        raise StepMismatch(f"an object of the policy class {policy.__qualname__} cannot be called")
    return made


def _named_arguments(policy: Any) -> list[str]:
    """Return the offered arguments that a class names."""
    try:
        parameters = inspect.signature(policy).parameters
    except (TypeError, ValueError):
        return []
    return [
        name
        for name in _OFFERED_ARGUMENTS
        if name in parameters
        and parameters[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
