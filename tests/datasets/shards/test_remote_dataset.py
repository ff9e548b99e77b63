"""The chain: decoding, tuples, batches, ranks, workers, and bad samples."""

from __future__ import annotations

import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from datasets.shards.shard_files import make_samples, write_shards
from PIL import Image
from torch.utils.data import DataLoader

from streamloader import (
    ConfigError,
    CorruptSample,
    CorruptShard,
    LengthUnknown,
    MissingField,
    RemoteDataset,
    ShardLoader,
    ShardWriter,
    make_client,
    upload_cv_dataset,
)

from servers.seaweed import FULL  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with few cores


def encode_png(number, size=(4, 6)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_image_samples(count):
    return [
        {
            "__key__": f"{number:04}",
            "png": encode_png(number),
            "cls": b"%d" % number,
            "json": json.dumps({"n": number}).encode(),
            "txt": f"text {number}".encode(),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("images"))
    write_shards(folder, make_image_samples(50), samples_per_shard=12)
    return folder


def test_raw_samples_have_the_names_of_webdataset(folder):
    sample = next(iter(RemoteDataset(folder, shuffle=False)))
    assert sample == {**make_image_samples(1)[0], "__url__": f"{folder}/00000.tar"}


@pytest.mark.parametrize(
    ("decoder", "check"),
    [
        ("pil", lambda image: (image.mode, image.size) == ("RGB", (6, 4))),
        ("rgb8", lambda image: image.dtype == np.uint8 and image.shape == (4, 6, 3)),
        ("torch", lambda image: image.dtype == torch.float32 and image.shape == (3, 4, 6) and image.max() <= 1),
        ("bytes", lambda image: image.startswith(b"\x89PNG")),
        (lambda field, data: len(data) if field == "png" else None, lambda image: image > 50),
        ({"png": lambda data: "image"}, lambda image: image == "image"),
    ],
)
def test_decoders(folder, decoder, check):
    sample = next(iter(RemoteDataset(folder, shuffle=False).decode(decoder)))
    assert check(sample["png"])
    if decoder != "bytes":
        assert (sample["cls"], sample["json"], sample["txt"]) == (0, {"n": 0}, "text 0")


def test_an_unknown_decoder_is_refused(folder):
    with pytest.raises(ConfigError, match="'jpeg'"):
        RemoteDataset(folder).decode("jpeg")


def test_videos_are_decoded(tmp_path, clips):
    data = clips["bikes"].read_bytes()
    write_shards(f"{tmp_path}", [{"__key__": "a", "mp4": data}], samples_per_shard=1)
    (sample,) = RemoteDataset(f"{tmp_path}").decode("video")
    assert sample["mp4"].shape == (250, 272, 640, 3)
    assert sample["mp4"].dtype == torch.uint8
    write_shards(f"{tmp_path}", [{"__key__": "a", "mp4": data[:1000]}], samples_per_shard=1)
    with pytest.raises(CorruptSample, match=r"a\.mp4"):
        next(iter(RemoteDataset(f"{tmp_path}").decode("video")))


def test_pickled_members_are_never_opened(tmp_path):
    write_shards(f"{tmp_path}", [{"__key__": "a", "pyd": pickle.dumps(1), "cls": b"1"}], samples_per_shard=1)
    (sample,) = RemoteDataset(f"{tmp_path}").decode().to_tuple("pyd", "cls")
    assert sample == (pickle.dumps(1), 1)
    file = io.BytesIO()
    np.save(file, np.array([print]), allow_pickle=True)
    write_shards(f"{tmp_path}", [{"__key__": "a", "npy": file.getvalue()}], samples_per_shard=1)
    with pytest.raises(CorruptSample, match="npy"):
        next(iter(RemoteDataset(f"{tmp_path}").decode()))


def same(value):
    return value


def test_the_chain_of_the_reference_system(seaweed_server):
    client = make_client(seaweed_server.endpoint, FULL.access_key_id, FULL.secret_access_key)
    bucket = seaweed_server.bucket()
    samples = [(Image.fromarray(np.full((4, 4, 3), number, np.uint8)), number) for number in range(200)]
    for _ in range(2):
        upload_cv_dataset(
            samples, client=client, bucket=bucket, base_folder="a/set", maxsize=1e8, maxcount=30, workers=2
        )
    assert FULL.secret_access_key not in repr(client) + repr(RemoteDataset(client, bucket, "a/set"))
    dataset = (
        RemoteDataset(client, bucket, "a/set")
        .decode("pil")
        .to_tuple("jpg;png", "cls")
        .map_tuple(lambda image: torch.from_numpy(np.array(image)), lambda x: x)
        .batched(64)
    )
    first = next(iter(dataset))  # the parent uses S3 before the workers are forked
    assert first[0].shape == (64, 4, 4, 3)
    loader = DataLoader(dataset, num_workers=3, batch_size=None, multiprocessing_context="fork")
    assert len(loader) == 4
    epochs = [list(loader), list(loader)]
    for batches in epochs:
        assert [len(labels) for _, labels in batches] == [64, 64, 64, 8]
        assert all(torch.equal(images[:, 0, 0, 0].long(), labels) for images, labels in batches)
        assert sorted(label for _, labels in batches for label in labels.tolist()) == list(range(200))
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])
    dataset.close()


def test_batches_are_collated(folder):
    chain = RemoteDataset(folder, shuffle=False).decode("rgb8")
    batch = next(iter(chain.to_tuple("png", "cls", "txt", "json").batched(3)))
    assert batch[0].shape == (3, 4, 6, 3)
    assert torch.equal(batch[1], torch.tensor([0, 1, 2]))
    assert batch[2:] == (["text 0", "text 1", "text 2"], [{"n": 0}, {"n": 1}, {"n": 2}])
    named = next(iter(chain.batched(2)))
    assert named["__key__"] == ["0000", "0001"]
    assert named["png"].shape == (2, 4, 6, 3)


def test_lengths(folder):
    dataset = RemoteDataset(folder)
    assert len(dataset) == 50
    assert len(dataset.batched(8)) == len(list(dataset.batched(8))) == 7
    assert len(dataset.batched(8, partial=False)) == len(list(dataset.batched(8, partial=False))) == 6
    assert len(dataset.batched(8).repeat(2)) == len(list(dataset.batched(8).repeat(2))) == 14
    for unknown in (dataset.select(same), dataset.repeat()):
        with pytest.raises(LengthUnknown):
            len(unknown)


def test_the_quality_of_shuffling_is_printed(folder):
    shuffled, in_order = RemoteDataset(folder).batched(10), RemoteDataset(folder, shuffle=False).batched(10)
    quality = shuffled.shuffle_quality(np.arange(50) // 10)
    assert "full permutation" in str(quality)
    assert quality.label_entropy > 0.7 * quality.permutation.label_entropy
    assert in_order.shuffle_quality(np.arange(50) // 10).label_entropy == 0
    with pytest.raises(ConfigError, match="mix"):
        RemoteDataset.mix([RemoteDataset(folder)] * 2).shuffle_quality()


@pytest.mark.parametrize("tail", ["once", "drop", "repeat"])
def test_ranks_share_the_samples(folder, tail):
    ranks = [
        list(RemoteDataset(folder, rank=rank, world_size=3, tail=tail).decode().to_tuple("cls").batched(8))
        for rank in range(3)
    ]
    counts = [len(batches) for batches in ranks]
    labels = sorted(int(label) for batches in ranks for (batch,) in batches for label in batch)
    if tail == "once":
        assert labels == list(range(50))
    elif tail == "drop":
        assert counts == [2, 2, 2]
        assert len(set(labels)) == len(labels) == 48
    else:
        assert counts == [3, 3, 3]
        assert set(labels) == set(range(50))


def test_workers_share_the_samples(folder):
    dataset = RemoteDataset(folder).decode().to_tuple("cls")
    loader = DataLoader(dataset, num_workers=2, batch_size=8)
    assert sorted(int(label) for (labels,) in loader for label in labels) == list(range(50))


def test_a_bad_image_is_named(tmp_path):
    samples = make_image_samples(40)
    samples[17]["png"] = samples[17]["png"][:40]
    del samples[23]["cls"]
    names = write_shards(f"{tmp_path}", samples, samples_per_shard=10)
    chain = RemoteDataset(f"{tmp_path}").decode("pil")
    with pytest.raises(CorruptSample, match=r"0017\.png cannot be decoded") as raised:
        list(chain)
    assert raised.value.details == {"dataset": f"{tmp_path}", "shard": names[1], "member": "0017.png"}
    assert raised.value.offset > 0
    with pytest.raises(MissingField, match="'cls' or 'cls2'") as missing:
        list(RemoteDataset(f"{tmp_path}").to_tuple("txt", "cls;cls2"))
    assert missing.value.details["shard"] == names[2]


def test_bad_samples_are_left_out_on_request(tmp_path):
    samples = make_image_samples(40)
    samples[17]["png"] = samples[17]["png"][:40]
    del samples[23]["cls"]
    names = write_shards(f"{tmp_path}", samples, samples_per_shard=10)
    os.truncate(tmp_path / names[3], 5000)
    good = sorted(set(range(30)) - {17, 23})

    def make():
        return (
            RemoteDataset(f"{tmp_path}", on_error="skip", lanes=2)
            .decode("pil")
            .to_tuple("png", "cls")
            .map(get_label)
            .batched(4)
        )

    dataset = make()
    whole = [batch.tolist() for batch in dataset]
    assert sorted(label for batch in whole for label in batch) == good
    assert {skipped.member for skipped in dataset.skipped if skipped.shard != names[3]} == {"0017.png", "0023.png"}
    assert sum(skipped.shard == names[3] for skipped in dataset.skipped) == 10
    loader = ShardLoader(make(), num_workers=2)
    iterator = iter(loader)
    start = [next(iterator).tolist() for _ in range(3)]
    state = loader.state_dict()
    del iterator
    rest = make()
    rest.load_state_dict(state)
    assert start + [batch.tolist() for batch in rest] == whole
    loader = ShardLoader(make(), num_workers=2)
    assert [batch.tolist() for batch in loader] == whole
    assert len(loader.skipped) == 12


def get_label(pair):
    return pair[1]


def fail_at_seven(sample):
    if sample["cls"] == b"7":
        raise KeyError("own")
    return sample


def test_errors_of_own_functions_keep_their_type(folder):
    with pytest.raises(KeyError, match="own") as raised:
        list(RemoteDataset(folder, on_error="skip").map(fail_at_seven))
    assert "'0007'" in raised.value.__notes__[0]


def test_a_store_that_cannot_be_reached_is_no_bad_sample(tmp_path):
    write_shards(f"{tmp_path}", make_samples(20), samples_per_shard=20)
    os.unlink(tmp_path / "00000.tar")
    with pytest.raises(CorruptShard, match="missing"):
        list(RemoteDataset(f"{tmp_path}"))
    assert list(RemoteDataset(f"{tmp_path}", on_error="skip")) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: RemoteDataset(folder, on_error="ignore"),
        lambda folder: RemoteDataset(folder, tail="pad"),
        lambda folder: RemoteDataset(folder, lanes=0),
        lambda folder: RemoteDataset(folder, rank=1),
        lambda folder: RemoteDataset(folder, "bucket", "folder"),
        lambda folder: RemoteDataset(make_client(None), None),
        lambda folder: RemoteDataset(folder).batched(0),
        lambda folder: RemoteDataset(folder).batched(2).batched(2),
        lambda folder: RemoteDataset(folder).batched(2).to_tuple("cls"),
        lambda folder: RemoteDataset(folder).to_tuple(),
        lambda folder: RemoteDataset(folder).repeat(0),
        lambda folder: RemoteDataset(folder).shuffle(10, depth=3),
        lambda folder: RemoteDataset.mix([RemoteDataset(folder).batched(3)]),
        lambda folder: RemoteDataset.mix([RemoteDataset(folder)] * 2, (1, -1)),
        lambda folder: ShardLoader(RemoteDataset(folder), batch_size=3),
        lambda folder: RemoteDataset(folder).set_epoch(-1),
    ],
)
def test_wrong_arguments_are_refused(folder, make):
    with pytest.raises(ConfigError):
        make(folder)


def test_bad_samples_after_mix_are_named_and_left_out(tmp_path):
    samples = make_image_samples(20)
    samples[7]["png"] = b"no image"
    names = write_shards(f"{tmp_path}", samples, samples_per_shard=20)
    sets = [RemoteDataset(f"{tmp_path}"), RemoteDataset(f"{tmp_path}", seed=1)]
    with pytest.raises(CorruptSample, match=r"0007\.png") as raised:
        list(RemoteDataset.mix(sets).decode("pil").to_tuple("png", "cls"))
    assert raised.value.details["shard"] == names[0]
    skipping = RemoteDataset.mix([RemoteDataset(f"{tmp_path}", on_error="skip"), sets[1]])
    chain = skipping.decode("pil").to_tuple("png", "cls")
    assert sorted(label for _, label in chain) == sorted([*range(7), *range(8, 20)] * 2)
    assert [skipped.member for skipped in chain.skipped] == ["0007.png"] * 2
    with pytest.raises(MissingField):
        list(RemoteDataset.mix(sets).to_tuple("none"))


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
        (
            "npy",
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117)
            + b"\n",
        ),
        ("npy", b"PK\x05\x06" + bytes(18)),
        ("json", b"[" * 100_000),
        ("cls", b"9" * 5000),
        ("txt", b"\xff"),
    ],
)
def test_hostile_members_are_bad_samples(tmp_path, field, content):
    write_shards(f"{tmp_path}", [{"__key__": "a", field: content}], samples_per_shard=1)
    with pytest.raises(CorruptSample):
        list(RemoteDataset(f"{tmp_path}").decode("pil"))


class Unhashable:
    __hash__ = None

    def __call__(self, field, data):
        return field


def test_a_decoder_may_be_any_callable(folder):
    assert next(iter(RemoteDataset(folder).decode(Unhashable())))["png"] == "png"


def is_shared(batch):
    return batch[0].is_shared()


def test_workers_stack_batches_in_shared_memory(tmp_path):
    """A copy on the way would cost time, and memory that the C library does not give back."""
    samples = [{"__key__": f"{n}", "npy": np.full((3, 2), n)} for n in range(8)]
    with ShardWriter(f"{tmp_path}") as writer:
        for sample in samples:
            writer.write(sample)
    dataset = RemoteDataset(f"{tmp_path}").decode().to_tuple("npy").batched(4).map(is_shared)
    assert list(dataset) == [False, False]
    assert list(DataLoader(dataset, num_workers=1, batch_size=None)) == [True, True]
