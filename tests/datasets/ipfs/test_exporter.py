"""Exports to a real node are imported exactly, through its API and its gateway."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from datasets.ipfs.test_encoding import is_same
from torch.utils.data import DataLoader

from streamloader.datasets.ipfs.exporter import IPFSDatasetExporter
from streamloader.datasets.ipfs.legacy import decode_legacy_item
from streamloader.errors import ConfigError, DatasetError, StreamloaderError


class Items:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        image = np.full((3, 4, 3), number % 256, np.uint8)
        return image, number, {"text": f"é{number}", "tensor": torch.full((2,), number, dtype=torch.bfloat16)}


def get_api(node):
    return f"/ip4/127.0.0.1/tcp/{node.rpc_port}"


def test_round_trip_through_a_real_node(jsipfs_node):
    exporter = IPFSDatasetExporter(get_api(jsipfs_node), shard_bytes=5000)
    items = Items(150)
    cid = exporter.export_to_ipfs(items)
    assert cid.isalnum()
    assert exporter.export_to_ipfs(items) == cid
    gateway = f"{jsipfs_node.gateway}/ipfs/{cid}"
    for url in (cid, f"ipfs://{cid}", gateway):
        imported = exporter.import_from_ipfs(url)
        assert len(imported) == 150
        assert all(is_same(imported[number], items[number]) for number in (0, 77, 149, -1 % 150))
    assert all(is_same(item, items[number]) for number, item in enumerate(imported))
    copy = pickle.loads(pickle.dumps(imported))
    loader = DataLoader(copy, batch_size=None, num_workers=2, shuffle=True, collate_fn=get_number)
    assert sorted(loader) == list(range(150))
    with pytest.raises(IndexError):
        imported[150]
    imported.close()


def get_number(item):
    return item[1]


def test_an_empty_data_set_and_large_items(jsipfs_node):
    exporter = IPFSDatasetExporter(get_api(jsipfs_node), shard_bytes=100_000)
    assert len(exporter.import_from_ipfs(exporter.export_to_ipfs([]))) == 0
    large = [np.random.default_rng(n).integers(0, 255, 700_000, np.uint8) for n in range(3)]
    imported = exporter.import_from_ipfs(exporter.export_to_ipfs(large))
    assert all(is_same(one, other) for one, other in zip(imported, large, strict=True))


def test_what_cannot_be_exported_is_named(jsipfs_node):
    exporter = IPFSDatasetExporter(get_api(jsipfs_node))
    with pytest.raises(ConfigError, match="2"):
        exporter.export_to_ipfs([1, 2, object()])
    with pytest.raises(ConfigError):
        IPFSDatasetExporter(shard_bytes=0)


def save_legacy(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_version_1_of_the_reference_is_read(jsipfs_node):
    values = [(torch.arange(4), number, "text") for number in range(7)]
    shards = []
    for part in (values[:4], values[4:]):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for number, value in enumerate(part):
                data = save_legacy(value)
                info = tarfile.TarInfo(f"{number}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        shards.append(jsipfs_node.add_one(file.getvalue()))
    metadata = json.dumps({"identifier": "ipfs-dataset", "version": "1.0", "list": shards}).encode()
    imported = IPFSDatasetExporter(get_api(jsipfs_node)).import_from_ipfs(jsipfs_node.add_one(metadata))
    assert len(imported) == 7
    assert all(is_same(list(item), list(value)) for item, value in zip(imported, values, strict=True))


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/streamloader-was-here",)


@pytest.mark.parametrize("value", [Malicious(), [Malicious()], {"x": Malicious()}])
def test_a_malicious_pickle_is_never_run(value):
    with pytest.raises(StreamloaderError):
        decode_legacy_item(save_legacy(value))
    with pytest.raises(StreamloaderError):
        decode_legacy_item(pickle.dumps(value))
    assert not os.path.exists("/tmp/streamloader-was-here")


def test_legacy_tensors_are_read():
    value = (torch.arange(5.0), 3, ["a"])
    assert is_same(list(decode_legacy_item(save_legacy(value))), list(value))


@pytest.mark.parametrize("version", ["3.0", ["2.0"], {"2.0": 1}, None, 2.0])
def test_metadata_of_an_unknown_version_is_refused(jsipfs_node, version):
    metadata = json.dumps({"identifier": "ipfs-dataset", "version": version, "list": []}).encode()
    with pytest.raises(DatasetError, match="of version"):
        IPFSDatasetExporter(get_api(jsipfs_node)).import_from_ipfs(jsipfs_node.add_one(metadata))
