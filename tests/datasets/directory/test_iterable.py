"""The files of a directory as an iterable data set: each once, for workers and ranks, resumed exactly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from datasets.directory.directory_data import TextInHex
from optional_torch import needs_torch
from PIL import Image

import streamloader as sl

pytestmark = needs_torch  # RemoteDataset reads what was written

FILES = {f"é {n}.txt": f"text {n}" for n in range(61)}


@pytest.fixture
def directory(tmp_path):
    with sl.VirtualDirectory(tmp_path, sl.TextDataManager(), verbose=False, min_subdir_num=5, seed=1) as directory:
        for name, text in FILES.items():
            directory.save(name, text)
        directory.save_state()
        yield directory


def get_pair(sample):
    return sample["__key__"], sample["object"]


def as_list(values):
    return list(values)


def make(directory, **options):
    return sl.DirectoryIterableDataset(directory, lanes=4, buffer_size=24, **options).map(get_pair)


def test_each_file_is_one_sample(directory):
    samples = list(sl.DirectoryIterableDataset(directory))
    assert len(samples) == len(sl.DirectoryIterableDataset(directory)) == len(FILES)
    assert {sample["__key__"]: sample["object"] for sample in samples} == FILES
    assert all(Path(sample["__url__"]).read_text() == sample["object"] for sample in samples)
    (raw,) = itertools.islice(sl.DirectoryIterableDataset(directory, load=False, shuffle=False), 1)
    assert raw["txt"] == Path(raw["__url__"]).read_bytes()


def test_files_that_are_in_no_pack_are_samples_too(tmp_path):
    directory = sl.VirtualDirectory(tmp_path, sl.BytesDataManager(), False, load_to_memory=False, min_subdir_num=3)
    directory.save("no ending", b"1")
    directory.save("a.b.PNG", b"2")
    directory.save(".".join("xyz"), b"")
    fields = {sample.pop("__key__"): sample for sample in sl.DirectoryIterableDataset(directory, load=False)}
    contents = {name: {key: value for key, value in s.items() if key != "__url__"} for name, s in fields.items()}
    assert contents == {"no ending": {"bin": b"1"}, "a.b.PNG": {"png": b"2"}, "x.y.z": {"z": b""}}
    directory.close()


def test_epochs_have_different_orders_and_a_seed_repeats_them(directory):
    dataset = make(directory)
    first, second = list(dataset), list(dataset)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(FILES.items())
    again = make(directory)
    again.set_epoch(1)
    assert list(again) == second
    assert list(make(directory, shuffle=False)) == list(make(directory, shuffle=False))


def test_it_continues_at_every_sample(directory):
    whole = list(make(directory))
    dataset = make(directory)
    states = [dataset.state_dict(), *(json.loads(json.dumps(dataset.state_dict())) for _ in dataset)]
    for played, state in enumerate(states[:-1]):
        again = make(directory)
        again.load_state_dict(state)
        assert list(again) == whole[played:], played


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_play_the_same_batches_and_states_fit_any_number_of_them(directory):
    def batches():
        return make(directory).batched(5, as_list)

    whole = list(batches())
    loader = sl.ShardLoader(batches(), num_workers=2)
    iterator = iter(loader)
    assert [[tuple(pair) for pair in batch] for batch in itertools.islice(iterator, 6)] == whole[:6]
    state = loader.state_dict()
    del iterator
    again = sl.ShardLoader(batches(), num_workers=1)
    again.load_state_dict(state)
    assert [[tuple(pair) for pair in batch] for batch in again] == whole[6:]


def test_ranks_read_disjoint_files(directory):
    parts = [list(make(directory, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(itertools.chain(*parts)) == sorted(FILES.items())
    equal = [list(make(directory, rank=rank, world_size=3, tail="drop").batched(4, as_list)) for rank in range(3)]
    assert len({len(part) for part in equal}) == 1


def test_a_state_belongs_to_the_files(directory):
    dataset = make(directory)
    next(iter(dataset))
    state = dataset.state_dict()
    directory.save("another.txt", "x")
    with pytest.raises(sl.StateError):
        make(directory).load_state_dict(state)


def test_files_that_are_gone_or_damaged_are_left_out_on_request(tmp_path):
    directory = sl.VirtualDirectory(tmp_path, sl.PillowDataManager(), verbose=False, min_subdir_num=2)
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for n in range(12):
        directory.save(f"{n}.png", image)
    Path(directory.get_path("3.png")).write_bytes(b"\x89PNG\r\n\x1a\n junk")
    directory.close()
    directory = sl.VirtualDirectory(tmp_path, sl.PillowDataManager(), verbose=False)
    dataset = sl.DirectoryIterableDataset(directory, on_error="skip").map(lambda sample: sample["__key__"])
    directory.remove("7.png")
    assert sorted(dataset) == sorted(f"{n}.png" for n in range(12) if n not in (3, 7))
    assert sorted(entry.member for entry in dataset.skipped) == ["3.png", "7.png"]
    with pytest.raises(sl.CorruptSample) as caught:
        list(sl.DirectoryIterableDataset(directory))
    assert caught.value.details["member"] == "3.png"
    assert str(tmp_path) in str(caught.value)
    directory.close()


def test_bytes_pass_the_chain_of_shards(tmp_path):
    directory = sl.VirtualDirectory(tmp_path, sl.PillowDataManager(), verbose=False, min_subdir_num=2)
    for n in range(6):
        directory.save(f"{n}.png", Image.new("RGB", (3, 2), (n, 0, 0)))
    directory.save_state()
    dataset = sl.DirectoryIterableDataset(directory, load=False).decode("rgb8").to_tuple("png;jpg", "__key__")
    assert sorted((key, int(image[0, 0, 0])) for image, key in dataset) == [(f"{n}.png", n) for n in range(6)]
    directory.close()


def test_objects_of_a_users_data_manager(tmp_path):
    directory = sl.VirtualDirectory(tmp_path, TextInHex(), verbose=False, min_subdir_num=2)
    for n in range(5):
        directory.save(f"{n}", f"text {n}")
    directory.save_state()
    assert sorted(map(get_pair, sl.DirectoryIterableDataset(directory))) == [(f"{n}", f"text {n}") for n in range(5)]
    directory.close()
