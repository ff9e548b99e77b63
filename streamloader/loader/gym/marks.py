"""Marks of the rows of a window: where episodes begin, which rows are no transition, positions in the episode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamloader.values import Array

__all__ = ["EpisodeMarks"]


class EpisodeMarks:
    """Writes the marks of consecutive windows of some lanes.

    A row of an episode is a transition, except for a final row: it holds the episode's last observation, and the
    environment ignores its action. With final rows, the row after an end is one, and an episode of n transitions has
    n + 1 rows. Without, the row after an end begins the next episode.

    Args:
        lanes: Global numbers of the lanes.
        world_lanes: Number of lanes over all ranks.
        final_rows: Whether episodes have final rows.
    """

    def __init__(self, lanes: range, world_lanes: int, *, final_rows: bool) -> None:
        count = len(lanes)
        self._lanes, self._world_lanes, self._final_rows = np.array(lanes, np.int64)[:, None], world_lanes, final_rows
        # The state of each lane before the next row.
        self._begins = np.ones(count, bool)
        self._is_final = np.zeros(count, bool)
        self._position = np.zeros((count, 1), np.int64)
        self._episode = np.full((count, 1), -1, np.int64)

    def write(self, arrays: Mapping[str, Array], ended: Array) -> None:
        """Write the marks of the next window.

        Args:
            arrays: Arrays (lanes, T) of the marks, by name.
            ended: Whether the episode ended with the transition of each row, bool (lanes, T).
        """
        begins, is_final = np.empty_like(ended), np.zeros_like(ended)
        begins[:, 0] = self._begins
        if self._final_rows:
            is_final[:, 0] = self._is_final
            is_final[:, 1:] = ended[:, :-1]
            begins[:, 1:] = is_final[:, :-1]
            self._begins, self._is_final = is_final[:, -1].copy(), ended[:, -1].copy()
        else:
            begins[:, 1:] = ended[:, :-1]
            self._begins = ended[:, -1].copy()
        index = np.arange(ended.shape[1])
        begin = np.maximum.accumulate(np.where(begins, index, -1), axis=1)
        step = np.where(begin < 0, self._position + index, index - begin)
        episode = self._episode + np.cumsum(begins, axis=1)
        self._position, self._episode = step[:, -1:] + 1, episode[:, -1:]
        arrays["reset"][:] = begins
        np.logical_not(is_final, out=arrays["valid"])
        arrays["repeat"][:] = False
        arrays["step"][:] = step
        arrays["time"][:] = step
        arrays["stream"][:] = episode * self._world_lanes + self._lanes
