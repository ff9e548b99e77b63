"""The environments of one worker: one for each lane, or one vector, in any of the autoreset modes."""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from typing_extensions import override

from streamloader.engine.ring import Status
from streamloader.errors import ConfigError
from streamloader.loader.gym.makers import EnvMaker
from streamloader.loader.gym.modes import AutoresetName, keeps_final_row, resolve_mode
from streamloader.loader.gym.progress import EnvProgress
from streamloader.loader.gym.spaces import FlatSpace
from streamloader.streams.step_writer import StepMismatch, check_value, describe_value
from streamloader.values import Array, Field

if TYPE_CHECKING:
    import gymnasium

__all__ = ["EnvGroup", "SingleEnvs", "StepResults", "VectorOfEnvs", "close_all"]

_END_FIELD: Final = Field((), "bool")
_MAX_FLOAT32: Final = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class StepResults:
    """Arrays into which one step is written, with one row for each lane. `terminated` and `truncated` are False before.

    Attributes:
        reward: Rewards, (lanes,).
        terminated: Whether the episode ended in a terminal state, bool (lanes,).
        truncated: Whether the episode was cut off, bool (lanes,).
        following: Arrays of the next observation, by leaf: that of the next row.
        final: Arrays of the last observation of an episode that ended, by leaf, or None if it is not wanted.
    """

    reward: Array
    terminated: Array
    truncated: Array
    following: Sequence[Array]
    final: Sequence[Array] | None


class EnvGroup(abc.ABC):
    """Environments of some consecutive lanes, which are stepped together.

    Args:
        observation: Expected flattened observation space.
        action: Expected flattened action space.
        mode: Autoreset mode.
        progress: Location of the work.

    Attributes:
        action_spaces: Action space of each lane.
        observation_space: Observation space of one environment.
    """

    action_spaces: list[gymnasium.Space[Any]]
    observation_space: gymnasium.Space[Any]

    def __init__(self, observation: FlatSpace, action: FlatSpace, mode: AutoresetName, progress: EnvProgress) -> None:
        self._observation, self._action, self._mode, self._progress = observation, action, mode, progress

    @abc.abstractmethod
    def reset(self, out: Sequence[Array]) -> None:
        """Start the first episode of each lane, and write its first observation into `out`, by leaf."""

    @abc.abstractmethod
    def step(self, actions: Mapping[str, Array], out: StepResults) -> None:
        """Run one step of all lanes. The next episode of a lane whose episode ended is started as the mode says.

        Args:
            actions: Actions (lanes, ...) by field.
            out: Arrays for the results.

        Raises:
            StepMismatch: If a result does not match the spaces, or contradicts the autoreset mode.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close all environments."""

    def _check_spaces(self, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> None:
        for name, space, expected in (
            ("observation", observation, self._observation),
            ("action", action, self._action),
        ):
            fields = FlatSpace.flatten(space, name).fields
            if fields != expected.fields:
                raise ConfigError(
                    f"this environment has the {name} fields {_describe(fields)}, but the first one had "
                    f"{_describe(expected.fields)}: all lanes must have the same"
                )


class SingleEnvs(EnvGroup):
    """One environment for each lane, stepped one after the other.

    Args:
        maker: Maker of the environments.
        lanes: Global numbers of the lanes.
        seeds: Seed of each lane.
        reward: Field of the rewards.

    The other arguments are those of :class:`EnvGroup`.
    """

    def __init__(
        self,
        maker: EnvMaker,
        lanes: range,
        seeds: Sequence[int],
        reward: Field,
        observation: FlatSpace,
        action: FlatSpace,
        mode: AutoresetName,
        progress: EnvProgress,
    ) -> None:
        super().__init__(observation, action, mode, progress)
        self._seeds: list[int | None] = list(seeds)  # None once a lane was reset with its seed
        self._final_rows = keeps_final_row(mode)
        self._ended = [False] * len(lanes)  # with final rows: whether the row to come is one
        self._reward_field = reward
        self._only_leaf = observation.leaves[0] if len(observation.leaves) == 1 else None
        self._max_reward = _MAX_FLOAT32 if reward.dtype == np.float32 else sys.float_info.max
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self.action_spaces = []
        try:
            for row, lane in enumerate(lanes):
                progress.enter(row, Status.OPENING)
                env = maker.make_single(lane)
                self._envs.append(env)
                self._check_spaces(env.observation_space, env.action_space)
                env.action_space.seed(seeds[row])  # an environment may sample from its own spaces
                env.observation_space.seed(seeds[row])
                self.action_spaces.append(env.action_space)
        except BaseException:
            close_all([env.close for env in self._envs], hide_errors=True)
            raise
        self.observation_space = self._envs[0].observation_space

    @override
    def reset(self, out: Sequence[Array]) -> None:
        for row in range(len(self._envs)):
            self._write(out, row, self._reset(row))

    @override
    def step(self, actions: Mapping[str, Array], out: StepResults) -> None:
        enter, nest, ended, final = self._progress.enter, self._action.nest, self._ended, out.final
        following, max_reward = out.following, self._max_reward
        only = None if self._action.is_nested else actions[self._action.tree]
        for row, env in enumerate(self._envs):
            if ended[row]:
                ended[row] = False
                out.reward[row] = 0
                self._write(following, row, self._reset(row))
                continue
            enter(row, Status.STEPPING)
            result = env.step(nest(_picker(actions, row)) if only is None else only[row])
            if not isinstance(result, tuple) or len(result) != 5:  # noqa: PLR2004 - as the message says
                raise StepMismatch(
                    "step() must return (observation, reward, terminated, truncated, info), got "
                    f"{f'{len(result)} values' if isinstance(result, tuple) else describe_value(result)}"
                )
            observation, reward, terminated, truncated, _ = result
            if isinstance(reward, float) and -max_reward <= reward <= max_reward:
                out.reward[row] = reward
            else:
                out.reward[row] = self._check_reward(reward)
            if terminated is not False or truncated is not False:
                out.terminated[row] = terminated = _as_bool(terminated, "terminated")
                out.truncated[row] = truncated = _as_bool(truncated, "truncated")
            if terminated or truncated:
                if final is not None:
                    self._write(final, row, observation)
                if self._final_rows:
                    ended[row] = True
                else:
                    observation = self._reset(row)
            self._write(following, row, observation)

    def _check_reward(self, reward: Any) -> Array:
        checked = check_value(reward, "reward", self._reward_field, ())
        if np.isnan(checked):
            raise StepMismatch("the reward is NaN")
        return checked

    def _reset(self, row: int) -> Any:
        self._progress.enter(row, Status.RESETTING)
        seed, self._seeds[row] = self._seeds[row], None
        result = self._envs[row].reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:  # noqa: PLR2004 - as the message says
            raise StepMismatch(f"reset() must return (observation, info), got {describe_value(result)}")
        return result[0]

    def _write(self, out: Sequence[Array], row: int, observation: Any) -> None:
        if self._only_leaf is not None:
            self._only_leaf.write(out[0], row, observation)
            return
        for leaf, array in zip(self._observation.leaves, out, strict=True):
            leaf.write(array, row, observation)

    @override
    def close(self) -> None:
        envs, self._envs = self._envs, []
        closers = []
        for row, env in enumerate(envs):

            def close_env(row: int = row, env: gymnasium.Env[Any, Any] = env) -> None:
                self._progress.enter(row, Status.CLOSING)
                env.close()

            closers.append(close_env)
        close_all(closers)


class VectorOfEnvs(EnvGroup):
    """A vector environment, which steps all lanes of the worker itself.

    Args:
        maker: Maker of the vector.
        lanes: Global numbers of the lanes.
        seed: Seed of the vector: that of its first lane. Gymnasium's vectors count it on for the other lanes.
        reward: Field of the rewards.
        mode: Autoreset mode, which the vector has to state too, unless the user stated it.
        requested_mode: Autoreset mode that the user stated, or None.

    The other arguments are those of :class:`EnvGroup`.
    """

    def __init__(
        self,
        maker: EnvMaker,
        lanes: range,
        seed: int,
        reward: Field,
        observation: FlatSpace,
        action: FlatSpace,
        mode: AutoresetName,
        requested_mode: AutoresetName | None,
        progress: EnvProgress,
    ) -> None:
        super().__init__(observation, action, mode, progress)
        self._seed, self._reward_field, self._lead = seed, reward, (len(lanes),)
        self._ended = np.zeros(len(lanes), bool)
        progress.enter(0, Status.OPENING)
        self._env = maker.make_vector(lanes)
        try:
            found = resolve_mode(self._env, requested_mode)
            if found != mode:
                raise ConfigError(f"this vector states the autoreset mode {found}, but the first one stated {mode}")
            self._check_spaces(self._env.single_observation_space, self._env.single_action_space)
            self._env.action_space.seed(seed)
            self._env.observation_space.seed(seed)
        except BaseException:
            close_all([self._env.close], hide_errors=True)
            raise
        self.observation_space = self._env.single_observation_space
        self.action_spaces = [self._env.single_action_space] * len(lanes)

    @override
    def reset(self, out: Sequence[Array]) -> None:
        self._progress.enter(0, Status.RESETTING)
        observation, _ = self._env.reset(seed=self._seed)
        self._write(out, slice(None), observation, self._lead)

    @override
    def step(self, actions: Mapping[str, Array], out: StepResults) -> None:
        self._progress.enter(0, Status.STEPPING)
        observation, reward, terminated, truncated, infos = self._env.step(self._action.nest(actions.__getitem__))
        out.reward[:] = check_value(reward, "reward", self._reward_field, self._lead)
        if (is_nan := np.isnan(out.reward)).any():
            self._progress.blame(int(is_nan.argmax()))
            raise StepMismatch("the reward is NaN")
        out.terminated[:] = check_value(terminated, "terminated", _END_FIELD, self._lead)
        out.truncated[:] = check_value(truncated, "truncated", _END_FIELD, self._lead)
        self._write(out.following, slice(None), observation, self._lead)
        ends = out.terminated | out.truncated
        if self._mode == "next_step":
            self._check_final_rows(ends)
            self._ended = ends
        if not ends.any():
            return
        rows = np.flatnonzero(ends).tolist()
        has_final = "final_obs" in infos
        if has_final != (self._mode == "same_step"):
            self._progress.blame(rows[0])
            raise StepMismatch(
                f"the vector states the autoreset mode {self._mode}, but infos {'have' if has_final else 'lack'} "
                "final_obs at the end of an episode"
            )
        if has_final:
            final = infos["final_obs"]
            if out.final is not None:
                self._write_final(out.final, rows, final)
        else:
            if out.final is not None:
                for array, following in zip(out.final, out.following, strict=True):
                    array[ends] = following[ends]
            if self._mode == "disabled":
                self._reset_ended(ends, out.following)

    def _check_final_rows(self, ends: Array) -> None:
        """Check that no episode ended in a row whose action is ignored."""
        wrong = np.flatnonzero(ends & self._ended)
        if len(wrong):
            self._progress.blame(int(wrong[0]))
            raise StepMismatch(
                "the vector states the autoreset mode next_step, but an episode ended in the step after the end of the "
                "previous one, which should only start it"
            )

    def _write_final(self, out: Sequence[Array], rows: list[int], final: Any) -> None:
        """Write the final observations of some rows: an array of observations, or a batch as other observations."""
        for row in rows:
            self._progress.blame(row)
            for leaf, array in zip(self._observation.leaves, out, strict=True):
                if isinstance(final, np.ndarray):
                    leaf.write(array, row, final[row])
                else:
                    array[row] = check_value(leaf.pick(final)[row], leaf.name, leaf.field, ())

    def _reset_ended(self, ends: Array, following: Sequence[Array]) -> None:
        """Start the next episode of some lanes, and replace their next observation by its first."""
        self._progress.enter(int(np.flatnonzero(ends)[0]), Status.RESETTING)
        observation, _ = self._env.reset(options={"reset_mask": ends.copy()})
        for leaf, array in zip(self._observation.leaves, following, strict=True):
            first = check_value(leaf.pick(observation), leaf.name, leaf.field, self._lead)
            array[ends] = first[ends]

    def _write(self, out: Sequence[Array], index: Any, observation: Any, lead: tuple[int, ...]) -> None:
        for leaf, array in zip(self._observation.leaves, out, strict=True):
            leaf.write(array, index, observation, lead)

    @override
    def close(self) -> None:
        self._progress.enter(0, Status.CLOSING)
        self._env.close()


def close_all(closers: Sequence[Callable[[], None]], *, hide_errors: bool = False) -> None:
    """Call all functions, also if some raise. The first error is raised at the end, unless another one is on its way.

    Args:
        closers: Functions that close something.
        hide_errors: Whether to ignore errors, because another error is the cause.
    """
    first_error: Exception | None = None
    for close in closers:
        try:
            close()
        except Exception as error:  # noqa: BLE001 - raised at the end
            first_error = first_error or error
    if first_error is not None and not hide_errors:
        raise first_error


def _picker(actions: Mapping[str, Array], row: int) -> Callable[[str], Any]:
    return lambda name: actions[name][row]


def _as_bool(value: Any, name: str) -> bool:
    if value is True or value is False:
        return value
    return bool(check_value(value, name, _END_FIELD, ()))


def _describe(fields: Mapping[str, Field]) -> str:
    return ", ".join(f"{name} {field.dtype}{list(field.shape)}" for name, field in fields.items())
