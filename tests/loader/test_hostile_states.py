"""Saved states that anyone may have written: the next batches of an epoch, or StateError; nothing else."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random

import numpy as np
import pytest
from optional_torch import torch
from resume_data import Seekable, arrays

import streamloader as sl

LENGTHS = [5, 9, 3, 7, 4]
JUNK = (
    None, True, False, -1, 0, 1, 7, 2**31, 2**48, 2**48 + 1, 2**63, 2**64, -(2**63), 10**5000, 1.5, math.nan,
    math.inf, "",
    "0", "01", "-1", "٣", "9" * 5000, "\x1b[31m\u202e",
    "x" * 100_000, "raise", "skip", b"", [], {}, (), [[]], [None] * 3, [0, 0, -1],
    [2**62, 2**62, -1], [0, 2**48, -1], [0, 0, 2**48], [1.0, 0, -1], {"0": []}, {"0": 5}, {"0": [5]},
    {"0": [[0, 0, 0, 0, "k", "r"]]}, {"0": [[2**48] * 4 + ["k", "r"]]}, {0: []}, set(), object(), np.array([1, 2]),
    np.int64(1), np.array([], np.int64), *([torch.tensor([1, 2]), torch.tensor(1)] if torch else []),
)  # fmt: skip


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture(params=["pad", "drop", "cycle"])
def loader(request):
    with sl.MultiStreamer(Seekable(LENGTHS), 2, 3, timeout=60.0, tail=request.param) as loader:
        yield loader


@pytest.fixture
def state(loader):
    """A state after two batches, with a quarantined stream."""
    loader.set_epoch(0)
    for _ in itertools.islice(loader, 2):
        pass
    state = loader.state_dict()
    state["quarantined"]["0"].append([0, 0, 2, 1, "s1", "it failed"])
    return state


def find_places(value, path=()):
    """Yield the path of each value in a state."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from find_places(item, (*path, name))


def mutate(state, random_):
    """Return a copy of a state with a value replaced, removed or added."""
    state = copy.deepcopy(state)
    *path, last = random_.choice([path for path in find_places(state) if path])
    parent = state
    for name in path:
        parent = parent[name]
    choice = random_.random()
    if choice < 0.8:
        parent[last] = random_.choice((*JUNK, nest(10_000)))
    elif choice < 0.9:
        del parent[last]
    elif isinstance(parent, dict):
        parent[random_.choice(("x", "00", "5", "-0", 5, "9" * 30, "9" * 5000))] = random_.choice(JUNK)
    else:
        parent.append(random_.choice(JUNK))
    return state


def check_mutations(loader, state, seed, count):
    random_ = random.Random(seed)
    refused, messages = 0, []
    for _ in range(count):
        changed = mutate(state, random_)
        form = random_.choice((lambda state: state, lambda state: [state], lambda state: [state, state]))
        try:
            loader.load_state_dict(form(changed))
        except sl.StateError as error:
            refused += 1
            messages.append(error.message)
        else:
            with contextlib.suppress(sl.StreamFailed):  # a step that its stream does not have
                for batch in itertools.islice(loader, 30):
                    arrays(batch)
    assert 0.5 < refused / count < 1
    assert all(message.isprintable() and len(message) < 3000 for message in messages)
    loader.load_state_dict(state)
    assert sum(1 for _ in itertools.islice(loader, 3)) > 0


def test_changed_states(loader, state):
    check_mutations(loader, state, 1, 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_changed_states(loader, state, seed):
    check_mutations(loader, state, seed, 1000)


def test_anything_else_as_a_state():
    with sl.MultiStreamer(Seekable(LENGTHS), 2, 3, timeout=60.0) as loader:
        for junk in (*JUNK, nest(10_000)):
            with pytest.raises(sl.StateError):
                loader.load_state_dict(junk)
            with pytest.raises(sl.StateError):
                sl.merge_states(junk)


def test_states_whose_lanes_end_later_than_they_can(loader, state):
    for lane in state["lanes"]:
        changed = copy.deepcopy(state)
        changed["lanes"][lane][2] = 2**40
        with pytest.raises(sl.StateError, match=r"saved after 2 batches, and its lane \d ended after"):
            loader.load_state_dict(changed)
