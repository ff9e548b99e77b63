"""States of data sets: the rest of an epoch is what it would have been, whatever the number of workers."""

from __future__ import annotations

import itertools
import json
import pickle

import pytest
from datasets.shards.shard_files import make_samples, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import fast_first, only_fast
from torch.utils.data import DataLoader

from streamloader import StateError
from streamloader.datasets.shards.loader import ShardLoader
from streamloader.datasets.shards.remote_dataset import RemoteDataset

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with few cores

SAMPLES = 101


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("shards"))
    write_shards(folder, make_samples(SAMPLES), samples_per_shard=17)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("other"))
    write_shards(folder, make_samples(40, sizes=(9,)), samples_per_shard=50)
    return folder


def is_odd(sample):
    return int(sample["cls"]) % 2


def get_key(sample):
    return sample["__key__"], sample["jpg"]


def as_list(values):
    return list(values)


CHAINS = {
    "samples": lambda folder, other: RemoteDataset(folder, lanes=4).map(get_key),
    "batches": lambda folder, other: RemoteDataset(folder, lanes=4, buffer_size=20).map(get_key).batched(7, as_list),
    "full batches": lambda folder, other: (
        RemoteDataset(folder, lanes=4).map(get_key).batched(7, as_list, partial=False)
    ),
    "in order": lambda folder, other: RemoteDataset(folder, shuffle=False).map(get_key).batched(7, as_list),
    "selected": lambda folder, other: RemoteDataset(folder, lanes=4).select(is_odd).map(get_key).batched(3, as_list),
    "repeated": lambda folder, other: RemoteDataset(folder, lanes=4).map(get_key).batched(20, as_list).repeat(3),
    "mixed": lambda folder, other: RemoteDataset.mix(
        [RemoteDataset(folder, lanes=4).map(get_key), RemoteDataset(other, seed=5).map(get_key)], (0.7, 0.3)
    ).batched(5, as_list),
}


def take(iterable, count):
    """The first items, with the iteration closed behind them."""
    iterator = iter(iterable)
    items = list(itertools.islice(iterator, count))
    if hasattr(iterator, "close"):
        iterator.close()
    return items


@pytest.mark.parametrize("name", CHAINS)
def test_it_continues_at_every_batch_in_another_process(name, folder, other):
    whole = list(CHAINS[name](folder, other))
    dataset = CHAINS[name](folder, other)
    if name != "selected":
        assert len(dataset) == len(whole)
    states = [dataset.state_dict(), *(json.loads(json.dumps(dataset.state_dict())) for _ in dataset)]
    assert len(states) == len(whole) + 1
    for played, state in list(enumerate(states[:-1]))[:: max(1, len(states) // 25)]:
        again = CHAINS[name](folder, other)
        again.load_state_dict(state)
        assert list(again) == whole[played:], played


@pytest.mark.parametrize("name", CHAINS)
def test_every_sample_is_played_once(name, folder, other):
    played = list(CHAINS[name](folder, other))
    keys = [item for batch in played for item in batch] if name != "samples" else played
    expected = [get_key(sample) for sample in make_samples(SAMPLES)]
    if name == "selected":
        expected = [get_key(sample) for sample in make_samples(SAMPLES) if is_odd(sample)]
    if name == "mixed":
        expected += [get_key(sample) for sample in make_samples(40, sizes=(9,))]
    if name == "repeated":
        expected *= 3
    if name == "full batches":
        assert len(keys) == len(set(keys)) == SAMPLES // 7 * 7
    else:
        assert sorted(keys) == sorted(expected)


@pytest.mark.parametrize("name", CHAINS)
def test_the_end_of_an_iteration_is_the_start_of_the_next_one(name, folder, other):
    dataset = CHAINS[name](folder, other)
    first, second = list(dataset), list(dataset)
    again = CHAINS[name](folder, other)
    list(again)
    state = again.state_dict()
    fresh = CHAINS[name](folder, other)
    fresh.load_state_dict(state)
    assert list(fresh) == second
    assert (first == second) == (name == "in order")


@pytest.mark.parametrize(
    ("name", "workers"),
    [("samples", 1), ("samples", 2), ("batches", 2), ("batches", 4), ("in order", 3), ("repeated", 2)],
)
def test_the_batches_are_the_same_with_any_number_of_workers(name, workers, folder, other):
    whole = list(CHAINS[name](folder, other))
    loader = ShardLoader(CHAINS[name](folder, other), num_workers=workers)
    assert list(map(as_plain, loader)) == list(map(as_plain, whole))
    plain = DataLoader(CHAINS[name](folder, other), num_workers=workers, batch_size=None, collate_fn=as_given)
    assert list(map(as_plain, plain)) == list(map(as_plain, whole))


def as_given(value):
    return value


def as_plain(value):
    return [as_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@settings(max_examples=10)
@given(
    name=st.sampled_from(sorted(CHAINS)),
    before=st.sampled_from([0, 1, 2]),
    after=st.sampled_from([0, 1, 2]),
    data=st.data(),
)
def test_other_numbers_of_workers_continue(name, before, after, data, folder, other):
    whole = list(map(as_plain, CHAINS[name](folder, other)))
    stop = data.draw(st.integers(0, len(whole)), label="stop")
    loader = ShardLoader(CHAINS[name](folder, other), num_workers=before)
    start = list(map(as_plain, take(loader, stop)))
    state = json.loads(json.dumps(loader.state_dict()))
    rest = ShardLoader(CHAINS[name](folder, other), num_workers=after)
    rest.load_state_dict(state)
    if name in ("selected", "mixed"):  # where lanes end, their order depends on the workers
        assert sorted(start + list(map(as_plain, rest))) == sorted(whole)
    else:
        assert start + list(map(as_plain, rest)) == whole


def test_a_plain_loader_needs_the_number_of_batches(folder, other):
    dataset = CHAINS["batches"](folder, other)
    whole = list(CHAINS["batches"](folder, other))
    loader = DataLoader(dataset, num_workers=2, batch_size=None, collate_fn=as_given)
    assert take(loader, 5) == whole[:5]
    with pytest.raises(StateError, match="ShardLoader"):
        dataset.state_dict()
    again = CHAINS["batches"](folder, other)
    again.load_state_dict(dataset.state_dict(batches=5))
    assert list(again) == whole[5:]
    selected = CHAINS["selected"](folder, other)
    with pytest.raises(StateError, match="ShardLoader"):
        selected.state_dict(batches=3)


@pytest.mark.parametrize(("context", "persistent"), fast_first([("fork", True), ("fork", False), ("spawn", True)]))
def test_each_iteration_plays_another_epoch_in_all_workers(context, persistent, folder, other):
    loader = DataLoader(
        CHAINS["batches"](folder, other),
        num_workers=2,
        batch_size=None,
        collate_fn=as_given,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    epochs = [list(loader), list(loader)]
    loader.dataset.set_epoch(0)
    epochs.append(list(loader))
    direct = CHAINS["batches"](folder, other)
    assert epochs[:2] == [list(direct), list(direct)]
    assert epochs[2] == epochs[0]
    assert epochs[0] != epochs[1]


def test_states_of_other_data_or_settings_are_refused(folder, other):
    dataset = CHAINS["batches"](folder, other)
    take(dataset, 3)
    state = dataset.state_dict()
    for wrong in (
        RemoteDataset(other, lanes=4, buffer_size=20).map(get_key).batched(7),
        RemoteDataset(folder, lanes=4, buffer_size=20, seed=1).map(get_key).batched(7),
        RemoteDataset(folder, lanes=6, buffer_size=20).map(get_key).batched(7),
        RemoteDataset(folder, lanes=4, buffer_size=20).map(get_key).batched(8),
        RemoteDataset(folder, lanes=4, buffer_size=20, rank=0, world_size=2).map(get_key).batched(7),
    ):
        with pytest.raises(StateError, match="other data or settings"):
            wrong.load_state_dict(state)
    for damaged in ({}, None, {**state, "batches": -1}, {**state, "epoch": "1"}, {**state, "version": 99}):
        with pytest.raises(StateError):
            dataset.load_state_dict(damaged)
    with pytest.raises(StateError, match="another order"):  # where lanes did not share blocks
        dataset.load_state_dict({**state, "version": 1})


def test_a_copy_by_pickle_goes_on_alone(folder, other):
    dataset = CHAINS["batches"](folder, other).map(lambda batch: batch)
    assert list(pickle.loads(pickle.dumps(dataset))) == list(dataset)


@pytest.mark.parametrize("before", only_fast([0, 3], [3]))
@pytest.mark.parametrize("stop", only_fast([5, 9, 13], [9]))
def test_numbers_of_workers_that_do_not_divide_the_lanes_lose_nothing(before, stop, folder, other):
    whole = list(map(as_plain, CHAINS["batches"](folder, other)))
    loader = ShardLoader(CHAINS["batches"](folder, other), num_workers=before)
    start = list(map(as_plain, take(loader, stop)))
    state = json.loads(json.dumps(loader.state_dict()))
    for after in (0, 2, 3):
        rest = ShardLoader(CHAINS["batches"](folder, other), num_workers=after)
        rest.load_state_dict(state)
        iterator = iter(rest)
        more = [as_plain(next(iterator)) for _ in range(2)]
        last = ShardLoader(CHAINS["batches"](folder, other), num_workers=before)
        last.load_state_dict(rest.state_dict())
        del iterator
        assert sorted(start + more + list(map(as_plain, last))) == sorted(whole), after
    if before:
        dataset = CHAINS["batches"](folder, other)
        take(DataLoader(dataset, num_workers=before, batch_size=None, collate_fn=as_given), 2)
        with pytest.raises(StateError, match="does not divide the lanes"):
            dataset.state_dict(batches=2)


def test_repeated_selections_of_several_workers_have_no_state(folder, other):
    loader = ShardLoader(CHAINS["selected"](folder, other).repeat(2), num_workers=2)
    with pytest.raises(StateError, match="iterate several times"):
        loader.state_dict()


def test_the_epoch_of_a_state_may_be_set_again(folder, other):
    dataset = CHAINS["batches"](folder, other)
    epochs = [list(dataset), list(dataset)]
    dataset.set_epoch(1)
    start = take(dataset, 4)
    state = dataset.state_dict()
    again = CHAINS["batches"](folder, other)
    again.load_state_dict(state)
    again.set_epoch(1)
    assert start + list(again) == epochs[1]
    again.set_epoch(0)
    assert list(again) == epochs[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_run_already_never_play_an_older_state(context, folder, other):
    whole = list(map(as_plain, CHAINS["batches"](folder, other)))
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": context}
    loader = ShardLoader(CHAINS["batches"](folder, other), **options)
    take(loader, 4)
    state = loader.state_dict()
    loader.load_state_dict(state)
    assert list(map(as_plain, loader)) == whole[4:]
    loader.set_epoch(0)
    assert list(map(as_plain, loader)) == whole
    dataset = CHAINS["batches"](folder, other)
    plain = DataLoader(dataset, batch_size=None, collate_fn=as_given, **options)
    assert len(list(plain)) == len(whole)
    dataset.load_state_dict(state)
    with pytest.raises(StateError, match="had started"):
        list(plain)


def test_batches_that_are_left_out_are_not_counted(folder, other):
    make = lambda: CHAINS["full batches"](folder, other).repeat(3)  # noqa: E731
    whole = list(make())
    dataset = make()
    loader = DataLoader(dataset, num_workers=2, batch_size=None, collate_fn=as_given)
    start = take(loader, 20)
    assert start == whole[:20]
    again = make()
    again.load_state_dict(dataset.state_dict(batches=20))
    assert list(again) == whole[20:]
