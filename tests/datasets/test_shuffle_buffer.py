"""The shuffle buffer over any iterable data set."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from streamloader.datasets.shuffle_buffer import ShuffleDataset
from streamloader.errors import ConfigError, StateError


class Numbers(IterableDataset):
    """Numbers that cannot be resumed."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        yield from range(self.count)


class Resumable(IterableDataset):
    """Numbers that differ each epoch, with a state; `reads` counts what was read."""

    def __init__(self, count):
        self.count, self.epoch, self.position, self.reads = count, 0, 0, 0

    def set_epoch(self, epoch):
        self.epoch, self.position = epoch, 0

    def __iter__(self):
        while self.position < self.count:
            self.position += 1
            self.reads += 1
            yield self.epoch * 1_000_000 + self.position - 1
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 3000])
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_every_sample_comes_once(count, size):
    dataset = ShuffleDataset(Numbers(count), size)
    epochs = [list(dataset) for _ in range(2)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert list(ShuffleDataset(Numbers(count), buffer_size=size)) == epochs[0]
    if count >= 9 and size > 1:
        assert epochs[0] != epochs[1]
        assert list(ShuffleDataset(Numbers(count), size, seed=1)) != epochs[0]
        assert list(ShuffleDataset(Numbers(count), size, rank=1, world_size=2)) != epochs[0]


def test_the_order_never_changes():
    """A saved state continues it, in later versions too."""
    assert list(ShuffleDataset(Numbers(20), 6, seed=7)) == [
        3, 0, 1, 6, 5, 2, 7, 4, 10, 9, 11, 13, 8, 12, 16, 14, 15, 17, 19, 18,
    ]  # fmt: skip


def test_samples_move_by_the_size_of_the_buffer():
    order = np.array(list(ShuffleDataset(Numbers(20_000), 500)))
    distance = np.abs(order - np.arange(20_000))[1000:-1000]
    assert 150 < distance.mean() < 700
    assert distance.max() <= 1500
    assert np.corrcoef(order[1000:-1000:2] % 500, order[1001:-999:2] % 500)[0, 1] < 0.1


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 60), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_resumes_exactly(count, size, position, epoch):
    dataset = ShuffleDataset(Resumable(count), size, seed=3)
    dataset.set_epoch(epoch)
    iterator = iter(dataset)
    came = [next(iterator) for _ in range(min(position, count))]
    state = json.loads(json.dumps(dataset.state_dict()))
    rest = list(iterator)
    assert sorted(came + rest) == [epoch * 1_000_000 + number for number in range(count)]
    other = ShuffleDataset(Resumable(count), size, seed=3)
    other.load_state_dict(state)
    assert other.state_dict() == state
    iterator = iter(other)
    assert [next(iterator) for _ in range(len(rest) // 2)] == rest[: len(rest) // 2]
    twice = other.state_dict()
    assert list(iterator) == rest[len(rest) // 2 :]
    third = ShuffleDataset(Resumable(count), size, seed=3)
    third.load_state_dict(twice)
    assert list(third) == rest[len(rest) // 2 :]
    assert list(third) == list(dataset)  # the next epoch


def test_few_samples_are_read_again():
    dataset = ShuffleDataset(Resumable(100_000), 200)
    iterator = iter(dataset)
    for number in range(5000):
        next(iterator)
        if number % 97 == 0:
            state = dataset.state_dict()
            assert state["taken"] - state["first"] <= 3 * 200 + 25
            assert len(json.dumps(state)) < 400
    other = ShuffleDataset(Resumable(100_000), 200)
    other.load_state_dict(dataset.state_dict())
    assert next(iter(other)) == next(iterator)
    assert other.dataset.reads <= 3 * 200 + 25 + 1


def test_a_data_set_without_states_is_a_clear_error():
    dataset = ShuffleDataset(Numbers(5), 2)
    assert len(list(dataset)) == 5
    with pytest.raises(StateError, match="Numbers has no state_dict"):
        dataset.state_dict()
    with pytest.raises(StateError, match="Numbers"):
        dataset.load_state_dict(ShuffleDataset(Resumable(5), 2).state_dict())
    with pytest.raises(TypeError):
        len(dataset)
    with pytest.raises(ConfigError, match="buffer_size"):
        ShuffleDataset(Numbers(5), 0)
    with pytest.raises(ConfigError, match="iterable"):
        ShuffleDataset(5)
    with pytest.raises(ConfigError, match="rank"):
        ShuffleDataset(Numbers(5), rank=2, world_size=2)


@pytest.mark.parametrize(
    "value",
    [
        {"version": 0}, {"seed": 9}, {"buffer_size": 3}, {"epoch": "1"}, {"taken": -1}, {"first": None}, {"held": "é"},
        {"held": "/////w=="}, {"held": 5}, {"worker": [0]}, {"worker": [0, 1, 0, True]},
    ],
)  # fmt: skip
def test_damaged_and_foreign_states_are_refused(value):
    dataset = ShuffleDataset(Resumable(50), 4)
    next(iter(dataset))
    state = dataset.state_dict()
    with pytest.raises(StateError):
        dataset.load_state_dict(state | value)
    for name in state:
        with pytest.raises(StateError):
            dataset.load_state_dict({key: item for key, item in state.items() if key != name})


def test_a_state_of_another_worker_or_a_shorter_data_set_is_refused():
    dataset = ShuffleDataset(Resumable(50), 4)
    iterator = iter(dataset)
    for _ in range(20):
        next(iterator)
    state = dataset.state_dict()
    other = ShuffleDataset(Resumable(50), 4, rank=1, world_size=2)
    other.load_state_dict(state)
    with pytest.raises(StateError, match="ranks and workers"):
        iter(other)
    shorter = ShuffleDataset(Resumable(10), 4)
    shorter.load_state_dict(state)
    with pytest.raises(StateError, match="fewer samples"):
        iter(shorter)


def test_workers_have_orders_of_their_own():
    """The data set does not divide itself, so that both workers have the same samples."""
    loader = DataLoader(ShuffleDataset(Numbers(50), 20), batch_size=None, num_workers=2)
    samples = list(loader)
    assert sorted(samples[::2]) == sorted(samples[1::2]) == list(range(50))
    assert samples[::2] != samples[1::2]
    there = pickle.loads(pickle.dumps(loader.dataset))
    assert list(there) == samples[::2] or list(there) != samples[1::2]
