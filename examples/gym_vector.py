"""How do I stream games of Gymnasium into a recurrent model, and where do its episodes begin?

It needs the extra "gym", the extra "demo" for the picture, and ale-py, which has Atari's games. Each lane plays another
game, in worker processes, with a policy that holds each action for a while. The picture shows the lanes as they arrive,
with a border where an episode begins: there, and only there, hidden state must be cleared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

import ale_py
import gymnasium
import numpy as np

import streamloader as sl
from streamloader.viz.contact_sheet import contact_sheet

GAMES = ("Breakout", "SpaceInvaders", "MsPacman", "Freeway", "Seaquest")
WINDOW, BATCHES, STEPS_PER_COLUMN = 64, 7, 32


def make_env(lane: int) -> gymnasium.Env:
    """Create the game of a lane. Called in the worker that hosts the lane."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    # The same 18 actions for all games, and episodes of at most 200 steps, so that some are cut off (truncated).
    return gymnasium.make(f"ALE/{GAMES[lane]}-v5", full_action_space=True, max_episode_steps=200)


class HoldActions:
    """Chooses an action at random, and holds it for 4 to 15 steps. Every episode begins with the fire button."""

    def __init__(self, lanes: range, rngs: list[np.random.Generator]) -> None:
        """Create the policy of a worker. A generator for each lane keeps lanes independent of the number of workers."""
        self.rngs = rngs
        self.actions = np.zeros(len(lanes), np.int64)
        self.steps_left = np.zeros(len(lanes), np.int64)

    def __call__(self, observations: np.ndarray, resets: np.ndarray) -> np.ndarray:
        """Return an action for each lane of the worker. A model would look at `observations` (lanes, 210, 160, 3)."""
        for row, rng in enumerate(self.rngs):
            if resets[row]:
                self.actions[row], self.steps_left[row] = 1, 2
            elif self.steps_left[row] == 0:
                self.actions[row], self.steps_left[row] = rng.integers(18), rng.integers(4, 16)
        self.steps_left -= 1
        return self.actions


def replay(lane: int, seed: int, actions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of a bare loop over the game of a lane, which takes the same actions."""
    env = make_env(lane)
    frame, _ = env.reset(seed=seed)
    for action in actions:
        yield frame
        frame, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            frame, _ = env.reset()
    env.close()


if __name__ == "__main__":
    with sl.MultiStreamer.from_gym(
        make_env,
        len(GAMES),
        WINDOW,
        num_workers=2,
        policy=HoldActions,
        autoreset_mode="same_step",  # the next episode follows at once; "next_step" keeps the last frame in between
        final_observation=False,  # which this example does not need
        seed=3,
    ) as loader:
        print(loader)
        batches = [batch.clone().numpy() for batch in islice(loader, BATCHES)]  # endless, so the loop limits it
        seeds = loader.lane_seeds
    frames = [batch["observation"] for batch in batches]
    whole = {
        name: np.concatenate([batch[name] for batch in batches], axis=1)
        for name in ("action", "reward", "terminated", "truncated", "stream")
    }

    for lane, game in enumerate(GAMES):
        episodes = np.unique(whole["stream"][lane])
        returns = [whole["reward"][lane][whole["stream"][lane] == episode].sum() for episode in episodes]
        ends = [f"{int(whole[name][lane].sum())} {name}" for name in ("terminated", "truncated")]
        shown = ", ".join(f"{value:g}" for value in returns)
        print(f"{game:14} {len(episodes)} episodes, {' and '.join(ends)}, with returns of {shown} (the last goes on)")

    streamed = (frame for window in frames for frame in window[0])
    equal = all(map(np.array_equal, streamed, replay(0, seeds[0], whole["action"][0])))
    print(f"the same frames as in a bare loop over Gymnasium: {equal}")

    target = sys.argv[1] if len(sys.argv) > 1 else "gym_vector.png"
    names = [GAMES[number % len(GAMES)] for number in range(int(whole["stream"].max()) + 1)]
    contact_sheet(batches, field="observation", names=names, every=STEPS_PER_COLUMN, height=105).save(target)
    print(f"saved {target}: one row for each lane, a border where an episode begins")
