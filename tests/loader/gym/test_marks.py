"""Marks of windows against a model that walks through the rows one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader.loader.gym.marks import EpisodeMarks

NAMES = {"reset": bool, "valid": bool, "repeat": bool, "step": np.int64, "time": np.float64, "stream": np.int64}


def walk(ended, lane, world, final_rows):
    """Return (reset, valid, repeat, step, time, stream) of each row of a lane."""
    rows, episode, step, is_final = [], 0, 0, False
    for end in ended:
        rows.append((step == 0, not is_final, False, step, float(step), episode * world + lane))
        step += 1
        if is_final or (end and not final_rows):
            episode, step, is_final = episode + 1, 0, False
        elif end:
            is_final = True
    return rows


@pytest.mark.parametrize("final_rows", [False, True])
@given(st.data())
def test_marks_are_those_of_the_model(final_rows, data):
    lanes, window, windows = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    first, world = data.draw(st.integers(0, 4)), 9
    shape = (lanes, window * windows)
    ended = np.array(data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])))
    ended = ended.reshape(shape)
    if final_rows:  # no episode ends in a final row
        for t in range(1, shape[1]):
            ended[:, t] &= ~ended[:, t - 1]
    marks = EpisodeMarks(range(first, first + lanes), world, final_rows=final_rows)
    results = {name: np.full(shape, 7, dtype) for name, dtype in NAMES.items()}
    for start in range(0, shape[1], window):
        part = slice(start, start + window)
        marks.write({name: array[:, part] for name, array in results.items()}, ended[:, part])
    for row in range(lanes):
        got = list(zip(*(results[name][row].tolist() for name in NAMES), strict=True))
        assert got == walk(ended[row].tolist(), first + row, world, final_rows)
