"""The interface of a directory, used as the reference system is."""

from __future__ import annotations

import gc
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datasets.directory.directory_data import (
    DeflateCompressor,
    PickleSerializer,
    TextInHex,
    contents,
    find_on_disk,
    on_disk,
    open_directory,
    pack_times,
)

import streamloader as sl
from streamloader.containers.pack.mapped import MappedPack

FILES = {f"{number}.txt": f"content of {number}" for number in range(30)}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_the_reference_interface_works_as_it_is(root):
    """All of REFERENCE.md with objects of the user: manager, serializer and compressor."""
    vd = sl.VirtualDirectory(
        str(root),
        TextInHex(),
        verbose=True,
        load_to_memory=True,
        min_subdir_num=5,
        save_on_destruction=False,
        serializer=PickleSerializer(),
        compressor=DeflateCompressor(),
        seed=0,
    )
    assert sorted(os.listdir(root)) == [".lock", *(f"subdir_{number}" for number in range(5))]
    for name, text in FILES.items():
        vd.save(name, text)
    assert len(vd) == 30
    assert vd.load("7.txt") == "content of 7"
    assert vd.load("nothing.txt") is None
    assert vd.exists("7.txt")
    assert not vd.exists("nothing.txt")
    assert vd.get_path("nothing.txt") is None
    path = vd.get_path("7.txt")
    assert bytes.fromhex(Path(path).read_text()) == b"content of 7"
    assert sorted(vd.get_list_of_files()) == sorted(FILES)
    vd.remove("7.txt")
    vd.remove("7.txt")
    assert not os.path.exists(path)
    assert not vd.exists("7.txt")
    vd.save_state()
    assert [f for f in sorted(os.listdir(root)) if not f.startswith(".")] == [
        name for number in range(5) for name in (f"subdir_{number}", f"subdir_{number}.pack")
    ]
    before = on_disk(root)
    vd.redistribute_all_files()
    assert on_disk(root) == before
    vd.redistribute_all_files(are_you_sure=True)
    assert on_disk(root) != before
    triples = list(vd)
    assert len(triples) == len(vd) == 29
    for filename, path, binary_data in triples:
        assert os.path.basename(path) == filename
        assert bytes.fromhex(Path(path).read_text()).decode() == FILES[filename]
        assert binary_data == b"T:" + FILES[filename].encode()
    vd.close()


def test_without_load_to_memory_iteration_yields_none(root):
    with open_directory(root, load_to_memory=False) as directory:
        directory.save("a", b"1")
        directory.save_state()
        assert list(directory) == [("a", directory.get_path("a"), None)]
        assert directory.load("a") == b"1"
    with open_directory(root, load_to_memory=False) as directory:
        assert list(directory) == [("a", directory.get_path("a"), None)]
        assert bytes(directory.read("a")) == b"1"


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_items_are_views_of_packs_and_files(root, load_to_memory):
    with open_directory(root, min_subdir_num=3, seed=0, load_to_memory=load_to_memory) as directory:
        for name, text in FILES.items():
            directory.save(name, text.encode())
        expected = [(name, FILES[name].encode()) for name in directory.get_list_of_files()]
        assert [(name, bytes(view)) for name, view in directory.items()] == expected
        directory.save_state()
    with open_directory(root, load_to_memory=load_to_memory) as directory:
        items = list(directory.items())
        assert items == expected
        assert {type(view) for _, view in items} == {memoryview}
        assert all(view.readonly for _, view in items)
        assert len({id(view.obj) for _, view in items}) == 3  # the packs
        remaining = directory.items()
        assert next(remaining) == expected[0]
        directory.save(expected[-1][0], b"new")
        assert list(remaining) == [*expected[1:-1], (expected[-1][0], b"new")]
    with pytest.raises(sl.ClosedError):
        directory.items()


def test_hidden_names_and_files_in_the_root_are_invisible(root):
    for folder in ("one", ".hidden", "one/nested"):
        (root / folder).mkdir(parents=True)
    for path in ("in_root", ".hidden/a", "one/.b", "one/nested/c", "one/d"):
        (root / path).write_bytes(path.encode())
    with open_directory(root, min_subdir_num=0) as directory:
        assert list(directory) == [("d", str(root / "one" / "d"), b"one/d")]
        assert len(directory) == 1
        directory.save_state()
        directory.redistribute_all_files(are_you_sure=True)
    assert (root / ".hidden" / "a").exists()
    assert (root / "one" / ".b").exists()
    assert (root / "one" / "nested" / "c").exists()


def test_subdirectories_are_created_up_to_a_number(root):
    for name in ("photos", "subdir_1"):
        (root / name).mkdir(parents=True)
    open_directory(root, min_subdir_num=5).close()
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [
        *("photos", "subdir_0", "subdir_1", "subdir_2", "subdir_3")
    ]
    open_directory(root, min_subdir_num=2).close()
    assert len([path for path in root.iterdir() if path.is_dir()]) == 5


def test_a_directory_without_subdirectories_gets_one(root):
    with open_directory(root, min_subdir_num=0) as directory:
        assert list(directory) == []
        directory.save_state()
        directory.save("a", b"1")
        assert directory.get_path("a") == str(root / "subdir_0" / "a")


def test_a_seed_decides_where_files_go(tmp_path):
    def save_all(root, seed):
        with open_directory(root, seed=seed) as directory:
            for number in range(20):
                directory.save(str(number), b"")
        return list(on_disk(root))

    first = save_all(tmp_path / "a", 3)
    assert save_all(tmp_path / "b", 3) == first
    assert save_all(tmp_path / "c", 4) != first
    assert len({folder for folder, _ in first}) == 4


def test_files_come_in_natural_order_of_subdirectories(root):
    for folder in ("subdir_10", "subdir_9", "b2", "b1", "subdir_01"):
        (root / folder).mkdir(parents=True)
        (root / folder / f"z_{folder}").write_bytes(b"")
        (root / folder / f"a_{folder}").write_bytes(b"")
    with open_directory(root, min_subdir_num=0) as directory:
        names = [
            f"{letter}_{folder}" for folder in ("b1", "b2", "subdir_01", "subdir_9", "subdir_10") for letter in "az"
        ]
        assert directory.get_list_of_files() == names
        assert [name for name, _, _ in directory] == names


def test_an_existing_file_is_replaced_where_it_is(root):
    with open_directory(root) as directory:
        directory.save("a", b"old")
        path = directory.get_path("a")
        directory.save_state()
        for content in (b"new", b"", b"newer"):
            directory.save("a", content)
            assert directory.get_path("a") == path
            assert bytes(directory.read("a")) == content
            assert len(directory) == 1
            assert Path(path).read_bytes() == content
        directory.save_state()
        assert list(directory) == [("a", path, b"newer")]


def test_a_failed_save_changes_nothing(root):
    class Failing(TextInHex):
        def save(self, path, value):
            Path(path).write_text("half")
            raise RuntimeError("no")

    with open_directory(root, TextInHex()) as directory:
        directory.save("a", "old")
    with open_directory(root, Failing()) as directory:
        for name in ("a", "b"):
            with pytest.raises(RuntimeError, match="no"):
                directory.save(name, "new")
        assert directory.load("a") == "old"
        assert not directory.exists("b")
    assert [name for _, name in on_disk(root)] == ["a"]
    assert [path.name for path in root.glob("*/.*")] == []


def test_a_manager_that_writes_no_file_is_an_error(root):
    class Elsewhere(TextInHex):
        def save(self, path, value):
            pass

    with open_directory(root, Elsewhere()) as directory, pytest.raises(sl.NotFound, match="data manager wrote no file"):
        directory.save("a", "x")


def test_the_temporary_name_has_the_ending_of_the_file(root):
    class Noting(TextInHex):
        def save(self, path, value):
            self.loaded.append(os.path.basename(path))
            super().save(path, value)

    manager = Noting()
    with open_directory(root, manager) as directory:
        for name in ("a.tar.gz", "b", "c." + "x" * 250):
            directory.save(name, "x")
    assert [os.path.splitext(name)[1] for name in manager.loaded] == [".gz", "", ""]
    assert all(name.startswith(".") for name in manager.loaded)


REFUSED_NAMES = ["", "a/b", "/a", "a\0b", ".a", "..", ".", "x" * 256, "é" * 128, "\ud800", "a/", 7, b"a"]


def test_names_that_no_file_can_have_are_refused(root):
    with open_directory(root) as directory:
        for name in REFUSED_NAMES:
            with pytest.raises(ValueError, match="name") as caught:
                directory.save(name, b"")
            assert type(caught.value) is sl.ConfigError
    assert on_disk(root) == {}
    assert not (root / ".write-lock").exists()


def test_names_that_no_file_can_have_are_absent(root):
    with open_directory(root, min_subdir_num=1) as directory:
        directory.save("a", b"1")
        directory.save_state()
        for name in ("", "a/b", "subdir_0/a", "../root/subdir_0/a", "\0", "\ud800", "x" * 10_000, ".lock"):
            assert directory.load(name) is None
            assert directory.read(name) is None
            assert directory.get_path(name) is None
            assert not directory.exists(name)
            assert name not in directory
            directory.remove(name)
        assert contents(directory) == {"a": b"1"}


ODD_NAMES = [
    *("é.png", "e\u0301.png", "日本語 .jpg", "a\nb", "tab\t", "-rf", "*", "%2e", "C:\\x", "con", "\u202egnp.exe"),
    *(
        "x" * 255,
        "é" * 127,
        "\udcff\udc80.bin",
        "a\udcc3",
        "serialized",
        "a.pack",
        "~",
        " ",
        "\U0001f600",
        "a" * 251 + ".npy",
    ),
]


def test_odd_long_and_non_utf8_names(root):
    files = {name: name.encode("utf-8", "surrogateescape") * 3 for name in ODD_NAMES}
    with open_directory(root) as directory:
        for name, content in files.items():
            directory.save(name, content)
        assert contents(directory) == files
        directory.save_state()
        assert contents(directory) == files
    with open_directory(root) as directory:
        assert contents(directory) == files
        assert {name: data for name, _, data in directory} == files
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == files
        for name in files:
            directory.remove(name)
        assert len(directory) == 0
    assert on_disk(root) == {}


def test_empty_files_and_large_ones(root, monkeypatch):
    from streamloader.datasets.directory import codec

    monkeypatch.setattr(codec, "_MAX_WHOLE_BYTES", 1 << 20)
    files = {"empty": b"", "large": random.Random(0).randbytes(9 << 20), "z": b""}
    for compressor in (None, sl.ZlibCompressor()):
        with open_directory(root, compressor=compressor, min_subdir_num=1) as directory:
            for name, content in files.items():
                directory.save(name, content)
            directory.save_state()
            assert contents(directory) == files
        with open_directory(root, compressor=compressor) as directory:
            assert {name: data for name, _, data in directory} == files
            assert directory.load("empty") == b""
        with MappedPack.open(root / "subdir_0.pack") as pack:
            assert {name: bytes(pack.read(pack.find(name))) for name in pack.index.names()} == files


def test_views_are_of_the_pack_and_outlive_everything(root):
    with open_directory(root) as directory:
        directory.save("a", b"first")
        directory.save_state()
        view = directory.read("a")
        assert view.readonly
        directory.save("a", b"second")
        directory.save_state()
        assert bytes(view) == b"first"
        second = directory.read("a")
    (root / "subdir_3.pack").unlink(missing_ok=True)
    gc.collect()
    assert (bytes(view), bytes(second)) == (b"first", b"second")
    assert view.obj is not second.obj


def test_a_closed_directory_says_so(root):
    with open_directory(root) as directory:
        directory.save("a", b"1")
        directory.save_state()
    directory.close()
    for use in (
        *(directory.load, directory.read, directory.exists, directory.get_path, directory.remove),
        *(lambda name: directory.save(name, b""), lambda name: directory.save_state(), lambda name: len(directory)),
        *(lambda name: iter(directory), lambda name: directory.get_list_of_files()),
        lambda name: directory.redistribute_all_files(are_you_sure=True),
    ):
        with pytest.raises(sl.ClosedError, match="is closed"):
            use("a")


def test_without_the_flag_redistribution_is_one_log_line(root, caplog):
    with open_directory(root) as directory:
        directory.save("a", b"")
        caplog.set_level(logging.INFO)
        directory.redistribute_all_files()
    assert [record.message for record in caplog.records] == [
        f"{root}: no file was moved. Pass are_you_sure=True to redistribute all files"
    ]


def test_save_on_destruction(root):
    directory = open_directory(root, save_on_destruction=True)
    directory.save("a", b"1")
    assert pack_times(root) == {}
    del directory
    gc.collect()
    assert len(pack_times(root)) == 1
    with open_directory(root, save_on_destruction=True) as directory:
        directory.save("b", b"2")
    times = pack_times(root)
    with open_directory(root) as directory:
        assert contents(directory) == {"a": b"1", "b": b"2"}
        directory.save("c", b"3")
    assert pack_times(root) == times


def test_save_on_destruction_at_exit(root):
    program = (
        "import os, sys, streamloader as sl\n"
        "options = {'min_subdir_num': 1, 'save_on_destruction': True}\n"
        "directory = sl.VirtualDirectory(sys.argv[1], sl.BytesDataManager(), **options)\n"
        "directory.save('a', b'1')\n"
        "pid = os.fork()\n"  # the child ends first, and must not save
        "if not pid: sys.exit()\n"
        "os.waitpid(pid, 0)\n"
        "print(os.listdir(sys.argv[1]).count('subdir_0.pack'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert list(pack_times(root)) == ["subdir_0.pack"]


WRONG_OPTIONS = [
    ({"manager": object()}, "has no method save"),
    ({"serializer": object()}, "has no method serialize"),
    ({"compressor": PickleSerializer()}, "has no method compress"),
    ({"on_duplicate": "ignore"}, "on_duplicate='ignore'"),
    ({"check": "none"}, "check='none'"),
    ({"min_subdir_num": -1}, "min_subdir_num=-1"),
    ({"lock_timeout": -1}, "lock_timeout=-1"),
    ({"storage_options": {"a": 1}}, "storage_options"),
]


def test_wrong_arguments_are_refused(root):
    for options, message in WRONG_OPTIONS:
        with pytest.raises(sl.ConfigError, match=message):
            open_directory(root, **options)
    assert not root.exists()


def test_a_root_can_be_the_address_of_a_path(root):
    with open_directory(f"file://{root}") as directory:
        assert directory.root == str(root)


def test_the_only_file_of_a_name(root):
    with open_directory(root) as directory:
        directory.save("a", b"1")
        assert str(find_on_disk(root, "a")) == directory.get_path("a")
        assert repr(directory) == f"VirtualDirectory({str(root)!r})"
