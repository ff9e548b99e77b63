"""Shards of the `webdataset` package are read here, and those of this package are read there: every sample is equal."""

from __future__ import annotations

import gc
import io
import math
import sys
import warnings

import numpy as np
import pytest
import webdataset
from optional_torch import needs_torch
from PIL import Image

import streamloader as sl

# webdataset leaves the files that it has read to the garbage collector.
pytestmark = [
    needs_torch,
    pytest.mark.filterwarnings(
        "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

COUNT, SAMPLES_PER_SHARD = 45, 12
SHARDS = math.ceil(COUNT / SAMPLES_PER_SHARD)


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


def make_pixels(number):
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)


def encode_image(number, kind):
    file = io.BytesIO()
    Image.fromarray(make_pixels(number)).save(file, kind)
    return file.getvalue()


def make_sample(number):
    """Values as both packages encode them by the names of the fields."""
    return {
        "__key__": f"part{number % 2}/{number:05}",
        "cls": number - 3,
        "txt": f"text {number} é漢\n",
        "json": {"number": number, "list": [1, None, "ü"]},
        "npy": np.arange(number, dtype=np.float32).reshape(-1, 1) / 7,
        "jpg": encode_image(number, "JPEG"),
        "mask.png": Image.fromarray(make_pixels(number + 1000)),
        "bin": bytes([number, 0, 255]),
    }


SAMPLES = {sample["__key__"]: sample for sample in map(make_sample, range(COUNT))}
DECOMPRESS = """
import sys
from pathlib import Path
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
sys.stdout.buffer.write(zstd.decompress(Path(sys.argv[1]).read_bytes()))
"""
FIELDS = set(SAMPLES["part0/00000"]) - {"__key__"}


def check_decoded(samples):
    """Compare samples that were decoded with "pil", by their keys."""
    read = {sample["__key__"]: sample for sample in samples}
    assert sorted(read) == sorted(SAMPLES)
    for key, expected in SAMPLES.items():
        sample = read[key]
        assert {name for name in sample if not name.startswith("__")} == FIELDS
        assert all(sample[name] == expected[name] for name in ("cls", "txt", "json", "bin"))
        assert type(sample["cls"]) is int
        assert sample["npy"].dtype == np.float32
        assert np.array_equal(sample["npy"], expected["npy"])
        assert sample["jpg"].mode == "RGB"
        assert np.array_equal(sample["jpg"], Image.open(io.BytesIO(expected["jpg"])))
        assert np.array_equal(sample["mask.png"], expected["mask.png"])  # PNG is exact


def open_there(folder, pattern="*.tar", **options):
    paths = sorted(str(path) for path in folder.glob(pattern))
    assert len(paths) == SHARDS
    return webdataset.WebDataset(paths, **{"shardshuffle": False, **options})


def write_there(folder, ending):
    with webdataset.ShardWriter(str(folder / f"set-%06d.{ending}"), maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for sample in SAMPLES.values():
            writer.write(sample)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_webdataset_reads_what_shard_writer_wrote(tmp_path, compression):
    with sl.ShardWriter(str(tmp_path), maxcount=SAMPLES_PER_SHARD, compression=compression) as writer:
        for sample in SAMPLES.values():
            writer.write(sample)
    dataset = open_there(tmp_path, "*.tar.gz" if compression else "*.tar")
    check_decoded(dataset.decode("pil"))
    check_decoded(sl.RemoteDataset(str(tmp_path)).decode("pil"))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_that_webdataset_wrote_are_read(tmp_path, ending, shuffle):
    write_there(tmp_path, ending)
    address = f"{tmp_path}/set-{{000000..{SHARDS - 1:06}}}.{ending}"
    dataset = sl.RemoteDataset(address, shuffle=shuffle).decode("pil")
    samples = list(dataset)
    check_decoded(samples)
    keys = [sample["__key__"] for sample in samples]
    assert (keys == list(SAMPLES)) is not shuffle
    assert len(dataset) == COUNT


def test_shards_that_webdataset_wrote_are_read_with_an_index(tmp_path):
    write_there(tmp_path, "tar")
    sl.index_shards(str(tmp_path), progress=False)
    check_decoded(sl.RemoteDataset(str(tmp_path)).decode("pil"))
    check_decoded(open_there(tmp_path).decode("pil"))  # the indexes are no hindrance there


def test_webdataset_reads_zstd_through_a_command(tmp_path):
    """webdataset decompresses gzip itself. For other kinds of compression, its users name a program."""
    with sl.ShardWriter(str(tmp_path), maxcount=SAMPLES_PER_SHARD, compression="zstd") as writer:
        for sample in SAMPLES.values():
            writer.write(sample)
    check_decoded(sl.RemoteDataset(str(tmp_path)).decode("pil"))
    program = tmp_path / "decompress.py"
    program.write_text(DECOMPRESS)
    paths = sorted(tmp_path.glob("*.tar.zst"))
    assert len(paths) == SHARDS
    commands = [f"pipe:{sys.executable} {program} {path}" for path in paths]
    check_decoded(webdataset.WebDataset(commands, shardshuffle=False).decode("pil"))


def test_the_bytes_of_every_field_are_equal_on_both_sides(tmp_path):
    with sl.ShardWriter(str(tmp_path), maxcount=SAMPLES_PER_SHARD) as writer:
        for sample in SAMPLES.values():
            writer.write(sample)
    theirs = {sample["__key__"]: sample for sample in open_there(tmp_path)}
    ours = {sample["__key__"]: sample for sample in sl.RemoteDataset(str(tmp_path))}
    assert sorted(theirs) == sorted(ours) == sorted(SAMPLES)
    for key, sample in ours.items():
        assert {name: sample[name] for name in FIELDS} == {name: theirs[key][name] for name in FIELDS}


def test_what_webdataset_writes_to_a_stream(tmp_path):
    """TarWriter into an open file, with names and metadata that its own reader accepts."""
    with (tmp_path / "one.tar").open("wb") as file, webdataset.TarWriter(file, keep_meta=True) as writer:
        for sample in SAMPLES.values():
            writer.write({**sample, "__note__": "kept"})
    read = [sample["__key__"] for sample in sl.RemoteDataset(str(tmp_path / "one.tar"), shuffle=False)]
    assert read == list(SAMPLES)


class Digits:
    """A map-style data set of (image, label), as upload_cv_dataset takes it."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return Image.fromarray(make_pixels(index)), index


def test_an_uploaded_data_set_is_read_with_the_same_chain(tmp_path):
    sl.upload_cv_dataset(Digits(), address=str(tmp_path), maxcount=SAMPLES_PER_SHARD, progress=False)
    chains = [
        dataset.decode("pil").to_tuple("jpg;png", "cls").map_tuple(np.array, lambda label: label)
        for dataset in (sl.RemoteDataset(str(tmp_path)), open_there(tmp_path))
    ]
    for chain in chains:
        pairs = sorted(chain, key=lambda pair: pair[1])
        assert [label for _, label in pairs] == list(range(COUNT))
        assert all(np.array_equal(pixels, make_pixels(label)) for pixels, label in pairs)


@pytest.mark.parametrize("decoder", ["rgb8", "pil"])
def test_decoders_of_the_same_name_give_the_same_pixels(tmp_path, decoder):
    write_there(tmp_path, "tar")
    theirs = {sample["__key__"]: sample for sample in open_there(tmp_path).decode(decoder)}
    for sample in sl.RemoteDataset(f"{tmp_path}/*.tar").decode(decoder):
        other = theirs[sample["__key__"]]
        assert np.array_equal(sample["jpg"], other["jpg"])
        assert np.array_equal(sample["mask.png"], other["mask.png"])
        assert type(sample["jpg"]) is type(other["jpg"])


def test_batches_are_like_those_of_webdataset(tmp_path):
    write_there(tmp_path, "tar")
    ours = sl.RemoteDataset(f"{tmp_path}/*.tar", shuffle=False, lanes=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = open_there(tmp_path)
    for mine, other in zip(
        *(chain.decode("rgb8").to_tuple("jpg", "cls", "txt").batched(8) for chain in (ours, theirs)), strict=True
    ):
        assert np.array_equal(mine[0], other[0])
        assert mine[1].tolist() == other[1].tolist()
        assert list(mine[2]) == list(other[2])
