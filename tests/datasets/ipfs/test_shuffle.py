"""A shuffled data set on IPFS: every sample once, and exact resuming through both data sets."""

from __future__ import annotations

import itertools
import json

import pytest
from ipfs_data import build, make_files, make_tar, make_zip, serve
from torch.utils.data import DataLoader

from streamloader.datasets.ipfs.iterable import IPFSIterableDataset
from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType
from streamloader.datasets.shuffle_buffer import ShuffleDataset

FILES = make_files(24)
MORE = make_files(9, prefix="g")


@pytest.fixture(scope="module")
def objects():
    dag, cids = build(tar=make_tar(FILES), zip=make_zip(MORE))
    with serve(dag) as gateway:
        yield [
            IPFSObject(f"{gateway.url}/ipfs/{cids['tar']}", RemoteFileType.TAR),
            IPFSObject(f"{gateway.url}/ipfs/{cids['zip']}", RemoteFileType.ZIP),
        ]


def make(objects, size=10):
    return ShuffleDataset(IPFSIterableDataset(objects, shuffle_urls=True, seed=2), buffer_size=size, seed=4)


def test_every_sample_comes_once_in_another_order_each_epoch(objects):
    dataset = make(objects)
    epochs = [list(dataset) for _ in range(3)]
    expected = sorted([*FILES.items(), *MORE.items()])
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 3
    again = make(objects)
    again.set_epoch(1)
    assert list(again) == epochs[1]


def test_resumes_at_every_sample(objects):
    whole = list(make(objects))
    for count in range(len(whole) + 1):
        dataset = make(objects)
        iterator = iter(dataset)
        for _ in range(count):
            next(iterator)
        state = json.loads(json.dumps(dataset.state_dict()))
        iterator.close()
        other = make(objects)
        other.load_state_dict(state)
        assert list(other) == whole[count:]
        assert len(json.dumps(state)) < 500


def test_workers_have_disjoint_samples(objects):
    dataset = make(objects)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    first, second = ([tuple(sample) for sample in loader] for _ in range(2))
    assert sorted(first) == sorted([*FILES.items(), *MORE.items()])
    assert first == second  # workers start with the epoch of the parent process
    dataset.set_epoch(1)
    assert [tuple(sample) for sample in loader] != first
    assert not any(a == b for a, b in itertools.pairwise(first))
