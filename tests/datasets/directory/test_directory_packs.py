"""The packs that a directory writes: what is in them, what happens if they are damaged, and full disks."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from datasets.directory.directory_data import (
    DeflateCompressor,
    PickleSerializer,
    TextInHex,
    XorCompressor,
    contents,
    fill,
    find_on_disk,
    open_directory,
    pack_times,
)
from tiers import only_fast

import streamloader as sl
from streamloader.containers.pack.build import write_pack
from streamloader.containers.pack.mapped import MappedPack

FILES = {f"{number}.bin": bytes([number]) * (40 + number) for number in range(12)}
ONE = {"min_subdir_num": 1}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def open_pack(root, name="subdir_0"):
    return MappedPack.open(root / f"{name}.pack")


def test_a_pack_is_a_copy_of_the_files(root):
    fill(root, FILES, **ONE)
    with open_pack(root) as pack:
        assert dict(zip(pack.index.names(), map(bytes, pack.views()), strict=True)) == FILES
        metadata = dict(pack.index.metadata)
        assert (root / "subdir_0").stat().st_ctime_ns < metadata.pop("read_at") <= time.time_ns()
        assert metadata == {"directory_modified": (root / "subdir_0").stat().st_mtime_ns}
        times = {name: find_on_disk(root, name).stat().st_mtime_ns for name in FILES}
        assert dict(zip(pack.index.names(), pack.index.modified.tolist(), strict=True)) == times


@pytest.mark.parametrize("compressor", [sl.ZlibCompressor(), sl.ZstdCompressor()])
def test_packs_of_known_compressors_open_without_them(root, compressor):
    fill(root, FILES, compressor=compressor, **ONE)
    stamp = pack_times(root)
    assert sum(map(len, FILES.values())) > (root / "subdir_0.pack").stat().st_size - 40 * len(FILES) - 300
    for other in (None, compressor, XorCompressor()):
        with open_directory(root, compressor=other) as directory:
            for _ in range(2):
                assert contents(directory) == FILES
                assert {name: data for name, _, data in directory} == FILES
                assert directory.load("5.bin") == FILES["5.bin"]
            directory.save_state()
    assert pack_times(root) == stamp


@pytest.mark.parametrize(
    ("options", "other", "problem"),
    [
        ({"compressor": XorCompressor()}, {}, "the compressor .*XorCompressor. Pass compressor="),
        ({"compressor": XorCompressor()}, {"compressor": DeflateCompressor()}, "the compressor .*XorCompressor"),
        ({"serializer": PickleSerializer()}, {}, "the serializer .*PickleSerializer. Pass serializer="),
        (
            {"serializer": PickleSerializer(), "compressor": DeflateCompressor()},
            {"serializer": PickleSerializer()},
            "the compressor .*DeflateCompressor",
        ),
        (
            {"serializer": PickleSerializer()},
            {"serializer": PickleSerializer(), "compressor": DeflateCompressor()},
            "without a compressor",
        ),
    ],
)
def test_packs_of_the_users_objects_open_with_nothing_else(root, options, other, problem, caplog):
    fill(root, FILES, **options, **ONE)
    times = pack_times(root)
    with open_directory(root, **options) as directory:
        assert contents(directory) == FILES
        assert {name: data for name, _, data in directory} == FILES
        directory.save_state()
    assert caplog.records == []
    assert pack_times(root) == times
    with open_directory(root, **other) as directory:
        assert contents(directory) == FILES
        (record,) = caplog.records
        assert record.message.startswith(f"{root}/subdir_0.pack: the pack is not used, and the files are read instead")
        assert re.search(problem, record.message)
        assert record.message.endswith("save_state() writes a new one")
        caplog.clear()
        directory.save_state()
    with open_directory(root, **other) as directory:
        assert contents(directory) == FILES
    assert caplog.records == []


def test_the_warning_names_the_objects_that_are_needed(root, caplog):
    fill(root, FILES, serializer=PickleSerializer(), compressor=DeflateCompressor(), **ONE)
    with open_pack(root) as pack:
        assert list(pack.index.names()) == ["serialized"]
        assert pack.index.metadata["serializer"].endswith(".PickleSerializer")
        assert pack.index.metadata["compressor"].endswith(".DeflateCompressor")
        data = PickleSerializer().deserialize(DeflateCompressor().decompress(bytes(pack.read(0))))
    assert data == FILES
    open_directory(root).close()
    assert "PickleSerializer. Pass serializer= to open it" in caplog.text


def test_files_in_packs_of_a_serializer_are_compared(root):
    options = {"serializer": PickleSerializer()}
    fill(root, FILES, **options, **ONE)
    path = find_on_disk(root, "5.bin")
    path.write_bytes(b"x" * len(FILES["5.bin"]))
    find_on_disk(root, "6.bin").unlink()
    expected = FILES | {"5.bin": b"x" * len(FILES["5.bin"])}
    del expected["6.bin"]
    for _ in range(2):
        with open_directory(root, **options) as directory:
            assert contents(directory) == expected
            directory.save_state()


def test_packs_of_a_data_manager_open_with_no_other(root, caplog):
    with open_directory(root, TextInHex(), **ONE) as directory:
        directory.save("a", "text")
        directory.save_state()
    with open_pack(root) as pack:
        assert bytes(pack.view(0)) == b"T:text"
    manager = TextInHex()
    with open_directory(root, manager) as directory:
        assert directory.load("a") == "text"
        assert bytes(directory.read("a")) == b"T:text"
        assert manager.loaded == []
    assert caplog.records == []
    with open_directory(root, sl.BytesDataManager()) as directory:
        assert directory.load("a") == b"text".hex().encode()
        directory.save_state()
    assert "objects of the data manager" in caplog.text
    caplog.clear()
    with open_directory(root, manager) as directory:
        assert directory.load("a") == "text"
    assert "it holds copies of files" in caplog.text


@pytest.mark.parametrize("position", only_fast([0, 9, 20, -1, -30, -80, -300], [20, -300]))
def test_damaged_packs_give_way_to_the_files(root, position, caplog):
    fill(root, FILES, **ONE)
    path = root / "subdir_0.pack"
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)
    for options in ({}, {"load_to_memory": False}, {"check": "names"}):
        with open_directory(root, **options) as directory:
            assert contents(directory) == FILES
    assert "The file is read instead" in caplog.text or "the files are read instead" in caplog.text
    with open_directory(root) as directory:
        assert {name: data for name, _, data in directory} == FILES
        directory.save_state()
    caplog.clear()
    with open_directory(root) as directory, open_pack(root) as pack:
        assert contents(directory) == FILES
        assert [bytes(pack.read(row)) for row in range(len(pack))] == [FILES[name] for name in pack.index.names()]
    assert caplog.records == []


def test_cut_and_foreign_packs_give_way_to_the_files(root):
    fill(root, FILES, **ONE)
    path = root / "subdir_0.pack"
    for content in (b"", b"\x89SLPACK\n", b"no pack at all" * 100, path.read_bytes()[:-100]):
        path.write_bytes(content)
        with open_directory(root) as directory:
            assert contents(directory) == FILES


def test_a_damaged_member_without_a_file_is_one_error(root):
    fill(root, FILES, **ONE)
    path = root / "subdir_0.pack"
    data = bytearray(path.read_bytes())
    data[data.index(FILES["5.bin"])] ^= 1
    path.write_bytes(data)
    with open_directory(root, check="names") as directory:
        (root / "subdir_0" / "5.bin").unlink()
        for use in (directory.read, directory.load, lambda name: list(directory)):
            with pytest.raises(sl.IntegrityError, match=r"restore it or the pack from a backup") as caught:
                use("5.bin")
            assert caught.value.address == str(path)
        assert bytes(directory.read("6.bin")) == FILES["6.bin"]


def test_a_damaged_pack_without_files_is_not_overwritten(root):
    fill(root, FILES, **ONE)
    shutil.rmtree(root / "subdir_0")
    (root / "subdir_0").mkdir()
    path = root / "subdir_0.pack"
    path.write_bytes(path.read_bytes()[:-1])
    data = path.read_bytes()
    with open_directory(root) as directory:
        assert len(directory) == 0
        directory.save_state()
    assert path.read_bytes() == data


def test_a_pack_of_another_program_is_served(root):
    """`streamloader pack` and others write packs without a time of the directory."""
    fill(root, FILES, **ONE)
    members = [(name, FILES[name], find_on_disk(root, name).stat().st_mtime_ns) for name in sorted(FILES)]
    write_pack(root / "subdir_0.pack", members)
    with open_directory(root) as directory:
        assert contents(directory) == FILES
    write_pack(root / "subdir_0.pack", [("5.bin", b"lies", 5), ("in/a/folder", b"x", 0)])
    with open_directory(root) as directory:
        assert contents(directory) == FILES
        assert {name: data for name, _, data in directory} == FILES


def test_old_packs_are_never_opened(root, caplog):
    fill(root, FILES, **ONE)
    (root / "subdir_0.vdd").write_bytes(b"code")
    with open_directory(root) as directory:
        assert contents(directory) == FILES
        directory.save_state()
    assert "1 packs *.vdd are ignored" in caplog.text
    assert "streamloader convert-vdd" in caplog.text
    assert (root / "subdir_0.vdd").read_bytes() == b"code"


def test_objects_that_cannot_be_decoded_name_their_file(root):
    with open_directory(root, sl.BytesDataManager(), **ONE) as directory:
        directory.save("a.json", b"{")
        directory.save_state()
    for options in ({}, {"load_to_memory": False}):
        expected = pytest.raises(sl.CorruptSample, match=r"subdir_0/a\.json: it is no valid JSON")
        with open_directory(root, sl.JsonDataManager(), **options) as directory, expected:
            directory.load("a.json")


def test_serializers_that_fail_give_way_to_the_files(root, caplog):
    class PickleSerializer:  # of the same name
        def serialize(self, value):
            return b"".join(value.values())

        def deserialize(self, data):
            return {"../escape": b"", "5.bin": 7}

    fill(root, FILES, serializer=PickleSerializer(), **ONE)
    with open_directory(root, serializer=PickleSerializer()) as directory:
        assert contents(directory) == FILES
    assert "no dictionary from names to bytes" in caplog.text


FILL_DISK = """
import resource, signal, sys
import streamloader as sl
root, limit = sys.argv[1], int(sys.argv[2])
directory = sl.VirtualDirectory(root, sl.BytesDataManager(), load_to_memory=False, min_subdir_num=1)
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
else:
    with open(root + "/.filler", "wb", 0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
try:
    directory.save_state()
except sl.StoreError as error:
    print(type(error).__name__, error.details["errno"], error)
"""


@pytest.fixture(params=["tmpfs", "limit"])
def small_disk(request, tmp_path):
    """A folder on a file system of 1 MiB, and 0; or a folder, and the maximum size of a file."""
    if request.param == "limit":
        return tmp_path, 70_000
    return request.getfixturevalue("disk"), 0


def test_a_full_disk_leaves_the_old_pack(small_disk):
    folder, limit = small_disk
    fill(folder, {"a": b"1" * 60_000}, **ONE)
    with open_directory(folder, **ONE) as directory:
        directory.save("b", b"2" * 60_000)
    before = (folder / "subdir_0.pack").read_bytes()
    program = [sys.executable, "-c", FILL_DISK, folder, str(limit)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    name, number, message = done.stdout.split(maxsplit=2)
    assert (name, int(number)) == (("StoreError", errno.EFBIG) if limit else ("StorageFull", errno.ENOSPC))
    assert "subdir_0.pack cannot be written. The old file is unchanged" in message
    assert (folder / "subdir_0.pack").read_bytes() == before
    assert [path for path in os.listdir(folder) if path.startswith(".streamloader")] == []
    (folder / ".filler").unlink(missing_ok=True)
    with open_directory(folder, **ONE) as directory:
        assert contents(directory) == {"a": b"1" * 60_000, "b": b"2" * 60_000}
        directory.save_state()
        assert contents(directory) == {"a": b"1" * 60_000, "b": b"2" * 60_000}


def test_a_file_system_that_is_read_only_can_be_read(disk):
    fill(disk, FILES)
    find_on_disk(disk, "5.bin").unlink()
    (disk / ".redistribute.json").write_text("{}")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    expected = {name: content for name, content in FILES.items() if name != "5.bin"}
    with open_directory(disk, min_subdir_num=10) as directory:
        assert contents(directory) == expected
        for change in (
            directory.save_state,
            lambda: directory.save("a", b""),
            lambda: directory.remove("6.bin"),
            lambda: directory.redistribute_all_files(are_you_sure=True),
        ):
            with pytest.raises(sl.StoreError, match="Read-only file system"):
                change()
        assert contents(directory) == expected


def test_nothing_is_logged_in_ordinary_use(root, caplog):
    caplog.set_level(logging.INFO, logger="streamloader")
    fill(root, FILES)
    with open_directory(root) as directory:
        contents(directory)
        directory.save("5.bin", b"")
        directory.save_state()
    assert caplog.records == []
