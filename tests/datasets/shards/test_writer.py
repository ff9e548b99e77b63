"""Writing data sets: what is written is what is read, and a killed writer goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from streamloader import (
    ClosedError,
    ConfigError,
    DatasetExists,
    DatasetIncomplete,
    RemoteDataset,
    ShardWriter,
    upload_cv_dataset,
)


def read_folder(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def make_sample(number):
    return {"jpg": b"\xff\xd8" + bytes([number % 256]) * number, "cls": number % 7, "json": {"n": [number, None]}}


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_what_is_written_is_read(tmp_path, compression):
    with ShardWriter(f"{tmp_path}", maxcount=16, compression=compression) as writer:
        for number in range(100):
            writer.write(make_sample(number))
    dataset = RemoteDataset(f"{tmp_path}", shuffle=False).decode()
    assert len(dataset) == 100
    read = [{name: value for name, value in sample.items() if name != "__url__"} for sample in dataset]
    assert read == [{"__key__": f"{number:09}", **make_sample(number)} for number in range(100)]


def test_another_program_reads_the_files(tmp_path):
    with ShardWriter(f"{tmp_path}", maxsize=20_000) as writer:
        for number in range(300):
            writer.write({"__key__": f"größe/{'x' * 150}{number}", "txt": "é" * number, "npy": np.arange(number)})
    members = {}
    for name in sorted(os.listdir(tmp_path)):
        if name.endswith(".tar"):
            assert os.path.getsize(tmp_path / name) <= 40_000
            with tarfile.open(tmp_path / name) as tar:
                members |= {member.name: tar.extractfile(member).read() for member in tar}
    assert len(members) == 600
    assert members[f"größe/{'x' * 150}7.txt"] == ("é" * 7).encode()


def test_values_of_all_kinds(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    with ShardWriter(f"{tmp_path}") as writer:
        writer.write(
            {
                "png": image,
                "left.png": np.asarray(image),
                "npy": np.ones((2, 2), ">f4"),
                "txt": "ä",
                "bin": b"\0",
                "id": 3,
            }
        )
    (sample,) = RemoteDataset(f"{tmp_path}").decode("rgb8")
    assert (sample["png"] == np.asarray(image)).all()
    assert (sample["left.png"] == np.asarray(image)).all()
    assert sample["npy"].tolist() == [[1, 1], [1, 1]]
    assert (sample["txt"], sample["bin"], sample["id"]) == ("ä", b"\0", 3)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"__key__": "a.b", "cls": 1}, "without a dot"),
        ({"__key__": "../a", "cls": 1}, r"'\.' or '\.\.'"),
        ({"__key__": "", "cls": 1}, "names joined"),
        ({"__key__": "/a", "cls": 1}, "names joined"),
        ({"__key__": "a\n", "cls": 1}, "cannot be printed"),
        ({"__key__": 3, "cls": 1}, "must be a string"),
        ({"CLS": 1}, "lower case"),
        ({"a/b": b""}, "ending of a file name"),
        ({"cls": 1.5}, "cannot hold a value of type float"),
        ({"json": {1, 2}}, "cannot hold a value of type set"),
        ({"npy": np.array([object()])}, "objects would need pickle"),
        ({"npy": "text"}, "cannot hold a value of type str: it takes an array, a tensor or bytes; 'txt' takes"),
        ({"png": np.zeros((2, 2))}, "uint8"),
        ({"bin": 3}, "bytes or a string"),
        ({}, "no fields"),
    ],
)
def test_what_cannot_be_written_is_refused_and_the_writer_goes_on(tmp_path, sample, message):
    with ShardWriter(f"{tmp_path}") as writer:
        writer.write({"cls": 1})
        with pytest.raises(ConfigError, match=message):
            writer.write(sample)
        writer.write({"cls": 2})
    assert [sample["cls"] for sample in RemoteDataset(f"{tmp_path}", shuffle=False).decode()] == [1, 2]


@pytest.mark.parametrize("maxcount", [1, 2, 100])
def test_a_key_twice_is_refused_in_all_shards(tmp_path, maxcount):
    """Also by the writer that continues an interrupted one, and for keys that are the numbers of other samples."""
    writer = ShardWriter(f"{tmp_path}", maxcount=maxcount)
    keys = ["a", None, "b/c", "000000007", None, "9"]

    def write_again(writer):
        for key in ("a", "000000001", "b/c", "000000007", "000000004", "9"):
            with pytest.raises(ConfigError, match=f"the key '{key}' occurs twice"):
                writer.write({"__key__": key, "cls": 2})

    for number, key in enumerate(keys):
        writer.write({"cls": number} if key is None else {"__key__": key, "cls": number})
    write_again(writer)
    writer.abort()
    with ShardWriter(f"{tmp_path}", maxcount=maxcount) as writer:
        for number, key in enumerate(keys[writer.samples_written :], writer.samples_written):
            writer.write({"cls": number} if key is None else {"__key__": key, "cls": number})
        write_again(writer)
        writer.write({"cls": 6})
        with pytest.raises(ConfigError, match="the key '000000007' occurs twice"):
            writer.write({"cls": 7})
        writer.write({"__key__": "7", "cls": 7})
    assert [sample["cls"] for sample in RemoteDataset(f"{tmp_path}", shuffle=False).decode()] == list(range(8))


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("maxsize", [10_240, 20_000, 30_720, 40_960, 50_000])
def test_no_shard_is_larger_than_its_limit(tmp_path, maxsize, compression):
    """With headers (two more for a long key), padding and the end of the file, unless it has one sample alone."""
    sizes = [0, 1, 511, 512, 513, 5_000, 0, 8_192, 60_000, 3] * 6
    with ShardWriter(f"{tmp_path}", maxsize=maxsize, compression=compression) as writer:
        for number, size in enumerate(sizes):
            key = f"{number}" + "é" * 80 * (number % 3 == 0)
            writer.write({"__key__": key, "bin": bytes(size), "cls": number})
    shards = json.loads((tmp_path / "manifest.json").read_bytes())["shards"]
    by_shard = list(zip(shards["samples"], shards["data_bytes"], strict=True))
    assert all(count == 1 or size <= maxsize for count, size in by_shard)
    first = 0
    for (count, _), (next_count, _) in itertools.pairwise(by_shard):  # and no shard has room for the next sample
        with ShardWriter(f"{tmp_path}/{first}", settings={"again": True}) as writer:
            for number in range(first, first + count + 1):
                key = f"{number}" + "é" * 80 * (number % 3 == 0)
                writer.write({"__key__": key, "bin": bytes(sizes[number]), "cls": number})
        (size,) = json.loads((tmp_path / f"{first}" / "manifest.json").read_bytes())["shards"]["data_bytes"]
        assert size > maxsize
        assert next_count
        first += count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": object()}, "plain JSON: Object of type object"),
        ({"a": float("nan")}, "plain JSON: Out of range"),
        ({("a",): 1}, "plain JSON: keys must be"),
        ({"maxsize": 3}, "'maxsize', which the writer uses"),
        ({"first_sample": 3}, "'first_sample', which the writer uses"),
        ({"writer": "me"}, "'writer', which the writer uses"),
        ("text", "a mapping of plain JSON, got str"),
        ([("a", 1)], "a mapping of plain JSON, got list"),
    ],
)
def test_settings_are_plain_json(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        ShardWriter(f"{tmp_path}", settings=settings)
    assert os.listdir(tmp_path) == []


def test_tensors_with_gradients_are_written_as_their_values(tmp_path):
    import torch

    weights = torch.arange(3.0, requires_grad=True)
    images = [np.full((2, 2), number, np.uint8) for number in range(3)]
    labels = [weights, weights.sum(), torch.tensor([1 + 2j], requires_grad=True).conj()]
    upload_cv_dataset(list(zip(images, labels, strict=True)), address=f"{tmp_path}/set", shuffle=False)
    with ShardWriter(f"{tmp_path}/one") as writer:
        writer.write({"npy": weights * 2, "png": torch.ones(2, 2, dtype=torch.uint8)})
    first, second, third = RemoteDataset(f"{tmp_path}/set", shuffle=False).decode()
    assert first["npy"].tolist() == [0, 1, 2]
    assert second["json"] == 3.0
    assert third["npy"].tolist() == [1 - 2j]
    (sample,) = RemoteDataset(f"{tmp_path}/one").decode()
    assert sample["npy"].tolist() == [0, 2, 4]
    with pytest.raises(ConfigError, match=r"the label of sample 0 cannot be written.*BFloat16"):
        upload_cv_dataset([(images[0], torch.ones(2, dtype=torch.bfloat16))], address=f"{tmp_path}/other")


def test_an_exception_leaves_no_data_set(tmp_path):
    writer = ShardWriter(f"{tmp_path}", maxcount=10)

    def write_until_an_error():
        with writer:
            for number in range(35):
                writer.write({"cls": number // (33 - number)})

    with pytest.raises(ZeroDivisionError):
        write_until_an_error()
    assert not any(name.startswith("00003") for name in os.listdir(tmp_path))
    with pytest.raises(DatasetIncomplete):
        RemoteDataset(f"{tmp_path}")
    assert len(RemoteDataset(f"{tmp_path}/*.tar")) in (20, 30)
    with pytest.raises(ClosedError):
        writer.write({"cls": 1})
    with ShardWriter(f"{tmp_path}", maxcount=10) as writer:
        assert writer.samples_written in (20, 30)
        for number in range(writer.samples_written, 35):
            writer.write({"cls": number})
    assert len(RemoteDataset(f"{tmp_path}")) == 35


def test_other_data_is_not_replaced(tmp_path):
    for _ in range(2):
        with ShardWriter(f"{tmp_path}", settings={"of": "a"}) as writer:
            assert writer.is_complete == (writer.samples_written == 3)
            for number in range(writer.samples_written, 3):
                writer.write({"cls": number})
    with ShardWriter(f"{tmp_path}", settings={"of": "a"}) as writer, pytest.raises(DatasetExists, match="complete"):
        writer.write({"cls": 1})
    with pytest.raises(DatasetExists, match="of='a' there and 'b' here"):
        ShardWriter(f"{tmp_path}", settings={"of": "b"})
    with ShardWriter(f"{tmp_path}", settings={"of": "b"}, overwrite=True) as writer:
        writer.write({"cls": 7})
    assert [sample["cls"] for sample in RemoteDataset(f"{tmp_path}").decode()] == [7]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    tarfile.open(foreign / "00000.tar", "w").close()
    with pytest.raises(DatasetExists, match="another writer"):
        ShardWriter(f"{foreign}")


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    samples = [(Image.fromarray(np.full((3, 3), number, np.uint8)), number) for number in range(50)]
    for workers in (0, 2):
        upload_cv_dataset(samples, address=f"{tmp_path}/{workers}", maxcount=9, workers=workers, seed=4)
    assert read_folder(tmp_path / "0") == read_folder(tmp_path / "2")
    labels = [sample["cls"] for sample in RemoteDataset(f"{tmp_path}/0", shuffle=False).decode()]
    assert sorted(labels) == list(range(50)) != labels


class Random:
    """A data set whose samples differ from call to call."""

    def __len__(self):
        return 30

    def __getitem__(self, number):
        return b"\x89PNG\r\n\x1a\n" + os.urandom(20), number


def make_images(count=30, changed=()):
    return [(b"\x89PNG\r\n\x1a\n" + bytes(number), number + (number in changed)) for number in range(count)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("is_complete", [True, False])
def test_another_data_set_of_the_same_size_is_refused(tmp_path, workers, is_complete):
    def upload(dataset, **arguments):
        return upload_cv_dataset(dataset, address=f"{tmp_path}", maxcount=10, workers=workers, **arguments)

    upload(make_images())
    before = read_folder(tmp_path)
    if not is_complete:
        (tmp_path / "manifest.json").unlink()
        before.pop("manifest.json")
    for changed in (0, 29):
        with pytest.raises(DatasetExists, match=r"dataset_id='samples-.*' there and 'samples-.*' here"):
            upload(make_images(changed=[changed]))
    with pytest.raises(DatasetExists, match="samples=30 there and 29 here"):
        upload(make_images(29))
    assert read_folder(tmp_path) == before
    assert upload(make_images()) == 30


def test_an_id_stands_for_a_data_set_whose_samples_differ(tmp_path):
    def upload(dataset_id):
        return upload_cv_dataset(Random(), address=f"{tmp_path}", maxcount=10, dataset_id=dataset_id)

    assert upload("random images, version 1") == upload("random images, version 1") == 30
    with pytest.raises(DatasetExists, match="version 1' there and 'random images, version 2' here"):
        upload("random images, version 2")
    with pytest.raises(DatasetExists, match="dataset_id"):
        upload(None)


def test_a_data_set_without_samples(tmp_path):
    for _ in range(2):
        assert upload_cv_dataset([], address=f"{tmp_path}") == 0
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_samples_that_are_no_images_with_labels_are_refused(tmp_path):
    for wrong, message in [
        ([1], "not .image, label"),
        ([(b"text", 1)], "no format"),
        ([(1.5, 1)], "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=message):
            upload_cv_dataset(wrong, address=f"{tmp_path}/{len(message)}")
