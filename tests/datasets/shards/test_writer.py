"""Writing data sets: what is written is what is read, and a killed writer goes on where it stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from streamloader import (
    AccessDenied,
    ClosedError,
    ConfigError,
    DatasetExists,
    DatasetIncomplete,
    RemoteDataset,
    ShardWriter,
    make_client,
    upload_cv_dataset,
)

from servers.seaweed import WRONG  # isort: skip


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


def test_a_key_twice_is_refused(tmp_path):
    with ShardWriter(f"{tmp_path}") as writer:
        writer.write({"__key__": "a", "cls": 1})
        with pytest.raises(ConfigError, match="twice"):
            writer.write({"__key__": "a", "cls": 2})


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


PROGRAM = """
    import os, sys
    import streamloader as sl

    class Dataset:
        def __len__(self):
            return 300

        def __getitem__(self, number):
            return b"\\x89PNG\\r\\n\\x1a\\n" + bytes([number % 256]) * (number * 37 % 5000), number

    folder, options = sys.argv[1], eval(sys.argv[2])
    sl.upload_cv_dataset(Dataset(), address=folder, maxcount=30, seed=3, storage_options=options)
    print("done")
"""


def upload(program, folder, options, kill_after_s=None):
    """Whether the program ended by itself."""
    process = subprocess.Popen([sys.executable, program, folder, repr(options)], stdout=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=kill_after_s or 120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert output == b"done\n", output
    return True


def test_killed_uploads_go_on(tmp_path, seaweed_server):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    started = time.monotonic()
    assert upload(str(program), f"{tmp_path}/whole", {})
    duration_s = time.monotonic() - started
    bucket = seaweed_server.bucket()
    random_times = random.Random(5)
    # When it is killed is up to the machine; what is there afterwards is not.
    for _ in range(2):
        upload(
            str(program), f"s3://{bucket}/set", seaweed_server.options(), random_times.uniform(0.3, 1.2) * duration_s
        )
    assert upload(str(program), f"s3://{bucket}/set", seaweed_server.options())
    direct = seaweed_server.direct(bucket)
    for name, content in read_folder(tmp_path / "whole").items():
        assert bytes(direct.get(f"set/{name}").bytes()) == content, name


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    samples = [(Image.fromarray(np.full((3, 3), number, np.uint8)), number) for number in range(50)]
    for workers in (0, 2):
        upload_cv_dataset(samples, address=f"{tmp_path}/{workers}", maxcount=9, workers=workers, seed=4)
    assert read_folder(tmp_path / "0") == read_folder(tmp_path / "2")
    labels = [sample["cls"] for sample in RemoteDataset(f"{tmp_path}/0", shuffle=False).decode()]
    assert sorted(labels) == list(range(50)) != labels


def test_wrong_keys_are_a_clear_error(seaweed_server):
    client = make_client(seaweed_server.endpoint, *WRONG.options().values())
    with pytest.raises(AccessDenied):
        upload_cv_dataset([(b"\xff\xd8\xff", 1)], client, seaweed_server.bucket(), "set")


def test_samples_that_are_no_images_with_labels_are_refused(tmp_path):
    for wrong, message in [
        ([1], "not .image, label"),
        ([(b"text", 1)], "no format"),
        ([(1.5, 1)], "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=message):
            upload_cv_dataset(wrong, address=f"{tmp_path}/{len(message)}")
