"""Iterations of data sets: several at once, abandoned ones, errors in their midst, and what they keep open."""

from __future__ import annotations

import errno
import gc
import itertools
import mmap
import os
import pickle
import threading
import weakref

import numpy as np
import pytest
from datasets.shards.shard_files import make_samples, write_shards

from streamloader import ConfigError, StoreError
from streamloader.datasets.shards import local_bytes
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.order import ShuffleWindow, WindowGroup
from streamloader.datasets.shards.reader import LaneReader
from streamloader.datasets.shards.remote_dataset import RemoteDataset
from streamloader.datasets.shards.source import SampleSource
from streamloader.datasets.shards.table import ShardTable
from streamloader.datasets.shards.window_plan import WindowPlan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("shards"))
    write_shards(folder, make_samples(300), samples_per_shard=20)
    return folder


def get_key(sample):
    return sample["__key__"]


class Value:
    """A value that can be watched, and not pickled."""

    def __init__(self, sample):
        self.key = sample["__key__"]
        self.lock = threading.Lock()


def test_the_end_of_one_iteration_does_not_end_another(folder):
    base = RemoteDataset(folder)
    whole = list(base.map(get_key))
    first = iter(base.map(get_key))
    taken = [next(first)]
    assert list(base.map(get_key)) == whole
    next(iter(base.map(get_key)))
    assert taken + list(first) == whole


def test_transfers_of_indexes_belong_to_one_reader(folder):
    shards = open_shard_set(folder)
    kept, ended = SampleSource(shards), SampleSource(shards)
    for source in (kept, ended):
        source.prefetch_tables(range(15))
    ended.close()
    assert all(isinstance(kept.find_table(shard), ShardTable) for shard in range(15))
    kept.close()


def test_an_index_whose_transfer_was_cancelled_is_read_again(folder):
    source = SampleSource(open_shard_set(folder))
    source.prefetch_tables([3])
    source._readings[3].cancel()
    assert isinstance(source.find_table(3), ShardTable)
    source.close()


def test_all_data_sets_of_a_process_keep_few_files_open(tmp_path):
    write_shards(f"{tmp_path}", make_samples(150), samples_per_shard=1)
    before = len(os.listdir("/proc/self/fd"))
    datasets = [RemoteDataset(f"{tmp_path}") for _ in range(3)]
    peak = 0
    for dataset in datasets:
        for _ in dataset:
            peak = max(peak, len(os.listdir("/proc/self/fd")))
    assert peak - before < 128 + 64
    for dataset in datasets:
        dataset.close()
    assert len(os.listdir("/proc/self/fd")) - before < 16


def test_files_are_closed_with_the_data_set_that_is_collected(folder):
    before = len(os.listdir("/proc/self/fd"))
    dataset = RemoteDataset(folder)
    list(dataset)
    assert len(os.listdir("/proc/self/fd")) > before + 10
    del dataset
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_a_state_may_be_asked_for_at_any_moment(folder):
    dataset = RemoteDataset(folder).map(get_key)
    whole = list(RemoteDataset(folder).map(get_key))
    bounds, stop = [0, 0], threading.Event()
    wrong = []

    def watch():
        while not stop.is_set():
            least = bounds[0]
            batches = dataset.state_dict()["batches"]
            if not least <= batches <= bounds[1] + 1:
                wrong.append((least, batches, bounds[1]))

    thread = threading.Thread(target=watch)
    iterator = iter(dataset)
    thread.start()
    for number in range(250):
        bounds[1] = number + 1
        assert next(iterator) == whole[number]
        bounds[0] = number + 1
    stop.set()
    thread.join()
    assert wrong == []


def test_a_data_set_in_the_middle_of_an_epoch_can_be_pickled(folder):
    dataset = RemoteDataset(folder).map(Value)
    iterator = iter(dataset)
    for _ in range(40):
        next(iterator)
    state = dataset.state_dict()
    size = len(pickle.dumps(RemoteDataset(folder).map(Value)))
    data = pickle.dumps(dataset)
    assert len(data) < size + 1000
    assert pickle.loads(data).state_dict() == state


def test_what_was_prepared_goes_with_an_abandoned_iterator(folder):
    made = []
    dataset = RemoteDataset(folder).map(lambda sample: made.append(weakref.ref(value := Value(sample))) or value)
    iterator = iter(dataset)
    for _ in range(60):
        next(iterator)
    state = dataset.state_dict()
    del iterator
    gc.collect()
    assert [reference for reference in made if reference() is not None] == []
    assert dataset.state_dict() == state


def test_an_iterator_can_be_closed(folder):
    dataset = RemoteDataset(folder)
    iterator = iter(dataset)
    next(iterator)
    iterator.close()
    assert dataset.state_dict()["batches"] == 1


@pytest.mark.parametrize("batch_size", [None, 4])
def test_an_error_comes_after_all_that_precedes_it(folder, batch_size):
    whole = list(RemoteDataset(folder).map(get_key))

    def fail(sample):
        if sample["__key__"] == whole[200]:
            raise RuntimeError("bad sample")
        return sample["__key__"]

    dataset = RemoteDataset(folder).map(fail)
    if batch_size is not None:
        dataset = dataset.batched(batch_size, list)
        batches = RemoteDataset(folder).map(get_key).batched(batch_size, list)
        expected = list(itertools.takewhile(lambda batch: whole[200] not in batch, batches))
    else:
        expected = whole[:200]
    played = []
    with pytest.raises(RuntimeError, match="bad sample"):
        played.extend(dataset)
    assert played == expected


def test_large_values_are_not_made_in_advance(folder):
    live, peak = set(), [0]

    class Large:
        def __init__(self, sample):
            live.add(id(self))
            weakref.finalize(self, live.discard, id(self))
            peak[0] = max(peak[0], len(live))
            sum(range(100_000))  # takes about a millisecond, as large values do

    for _ in RemoteDataset(folder).map(Large):
        pass
    assert peak[0] <= 12 * 16


def test_too_many_fields_are_refused_before_memory_is_taken(tmp_path):
    samples = [{"__key__": f"{n}", f"f{n}": b"x"} for n in range(300)]
    write_shards(f"{tmp_path}", samples, samples_per_shard=300)
    with pytest.raises(ConfigError, match="different fields"):
        next(iter(RemoteDataset(f"{tmp_path}")))
    dataset = RemoteDataset(f"{tmp_path}", on_error="skip").to_tuple("f0;f7", "__key__")
    assert sorted(dataset) == [(b"x", "0"), (b"x", "7")]


def test_a_mapping_that_fails_later_is_one_error(tmp_path, monkeypatch):
    write_shards(f"{tmp_path}", make_samples(150), samples_per_shard=1)
    source = SampleSource(open_shard_set(f"{tmp_path}"))
    reader = LaneReader(source, iter([ShuffleWindow(np.arange(150), np.zeros(150, int))]))
    reader.prefetch()
    monkeypatch.setattr(mmap, "mmap", _fail_mapping)
    samples = [sample for block in iter(reader.read_block, None) for sample in block.samples]
    assert len(samples) == 150
    assert {type(sample) for sample in samples} == {dict, StoreError}
    source.close()


class _fail_mapping(mmap.mmap):  # noqa: N801 - it stands in for a function
    def __new__(cls, *args, **kwargs):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_links_into_folders_of_servers_are_not_mapped(tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    (tmp_path / "here").mkdir()
    for name in [*write_shards(f"{tmp_path}/server", make_samples(10), samples_per_shard=5)]:
        for suffix in ("", ".index"):
            (tmp_path / "here" / f"{name}{suffix}").symlink_to(tmp_path / "server" / f"{name}{suffix}")
    (tmp_path / "here" / "manifest.json").symlink_to(tmp_path / "server" / "manifest.json")
    monkeypatch.setattr(local_bytes, "is_local_folder", lambda folder: "server" not in folder)
    shards = open_shard_set(f"{tmp_path}/here")
    source = SampleSource(shards)
    assert source.map_shard(0, source.find_table(0)) is None
    assert len(list(RemoteDataset(f"{tmp_path}/here"))) == 10
    source.close()


def test_the_system_reads_no_more_in_advance_than_is_needed(tmp_path):
    samples = [{"__key__": f"{n:03}", "bin": b"x" * 50_000} | ({"cls": b"1"} if n % 2 else {}) for n in range(40)]
    write_shards(f"{tmp_path}", samples, samples_per_shard=40)
    source = SampleSource(open_shard_set(f"{tmp_path}"))
    plan = WindowPlan(source, WindowGroup(np.zeros(2, int), np.array([31, 30]), {0: np.arange(2)}))
    ((start, end),) = itertools.chain(*plan._find_ranges().values())
    assert 28 * 50_000 < start < end < 36 * 52_000
    source.close()
