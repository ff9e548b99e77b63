"""Fill windows of steps: choose actions, step the environments, write each result into its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streamloader.engine.ring import Status
from streamloader.loader.gym.envs import EnvGroup, StepResults
from streamloader.loader.gym.marks import EpisodeMarks
from streamloader.loader.gym.modes import AutoresetName, keeps_final_row
from streamloader.loader.gym.policy import Actor
from streamloader.loader.gym.progress import EnvProgress
from streamloader.loader.gym.spaces import FlatSpace
from streamloader.values import Array, Field

__all__ = ["BatchFields", "Rollout"]


@dataclass(frozen=True)
class BatchFields:
    """Fields of the batches of environments, and what they are made of.

    Attributes:
        observation: Flattened observation space.
        action: Flattened action space.
        reward: Field of the rewards.
        mode: Autoreset mode.
        has_final: Whether the last observation of an episode is a field of its own.
    """

    observation: FlatSpace
    action: FlatSpace
    reward: Field
    mode: AutoresetName
    has_final: bool

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name."""
        fields = {**self.observation.fields, **self.action.fields, "reward": self.reward}
        fields["terminated"] = fields["truncated"] = Field((), "bool")
        if self.has_final:
            fields |= {final_name(leaf.name): leaf.field for leaf in self.observation.leaves}
        return fields


def final_name(name: str) -> str:
    """Return the name of the field of final observations that belongs to a field of observations."""
    return f"final_{name}"


class Rollout:
    """The steps of some lanes, window after window.

    Args:
        envs: Environments of the lanes.
        actor: Source of the actions.
        marks: Marks of the rows.
        fields: Fields of the batches.
        progress: Location of the work.
        lanes: Number of lanes.
    """

    def __init__(
        self, envs: EnvGroup, actor: Actor, marks: EpisodeMarks, fields: BatchFields, progress: EnvProgress, lanes: int
    ) -> None:
        self._envs, self._actor, self._marks, self._progress = envs, actor, marks, progress
        self._fields = fields
        self._leaves = fields.observation.leaves
        self._final_rows = keeps_final_row(fields.mode)
        # The observation of the next window's first row: the environments may change their own arrays until then.
        self._carried = [np.empty((lanes, *leaf.field.shape), leaf.field.dtype) for leaf in self._leaves]
        self._begins, self._is_final = np.ones(lanes, bool), np.zeros(lanes, bool)
        self._started = False

    def fill(self, arrays: Mapping[str, Array]) -> None:
        """Fill the next window.

        Args:
            arrays: Arrays (lanes, T, ...) of all fields and marks, by name.
        """
        if not self._started:
            self._started = True
            self._envs.reset(self._carried)
        observations = [arrays[leaf.name] for leaf in self._leaves]
        for array, carried in zip(observations, self._carried, strict=True):
            array[:, 0] = carried
        finals = [arrays[final_name(leaf.name)] for leaf in self._leaves] if self._fields.has_final else None
        for array in (arrays["terminated"], arrays["truncated"], *(finals or ())):
            array.fill(0)
        window = arrays["reward"].shape[1]
        for t in range(window):
            actions = self._choose(observations, t)
            for name, chosen in actions.items():
                arrays[name][:, t] = chosen
            out = StepResults(
                arrays["reward"][:, t],
                arrays["terminated"][:, t],
                arrays["truncated"][:, t],
                [array[:, t + 1] for array in observations] if t + 1 < window else self._carried,
                None if finals is None else [array[:, t] for array in finals],
            )
            self._envs.step(actions, out)
            if self._actor.needs_observations:
                ended = out.terminated | out.truncated
                self._begins, self._is_final = (self._is_final, ended) if self._final_rows else (ended, self._is_final)
            self._progress.step += 1
        self._marks.write(arrays, arrays["terminated"] | arrays["truncated"])
        self._progress.finish_window()

    def _choose(self, observations: list[Array], t: int) -> Mapping[str, Array]:
        if not self._actor.needs_observations:
            return self._actor.choose({}, self._begins)
        self._progress.enter(0, Status.CHOOSING)
        views = {}
        for leaf, array in zip(self._leaves, observations, strict=True):
            view = array[:, t]
            view.flags.writeable = False  # it is what the user gets
            views[leaf.name] = view
        return self._actor.choose(views, self._begins.copy())

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()
