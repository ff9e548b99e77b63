"""Changes that leave hardly a trace, and errors in between: what is served is what the files hold."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from datasets.directory.directory_data import (
    SETTLED_NS,
    TextInHex,
    contents,
    fill,
    find_on_disk,
    on_disk,
    open_directory,
    pack_times,
)
from datasets.directory.forged import OLD, forge_pack

import streamloader as sl
from streamloader.containers.pack.mapped import MappedPack

ONE = {"min_subdir_num": 1}


def put(path, content, modified=OLD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(modified, modified))


def settle():
    time.sleep(SETTLED_NS / 1e9)


def save_state(root, **options):
    settle()
    with open_directory(root, **ONE | options) as directory:
        directory.save_state()


@pytest.fixture
def root(tmp_path):
    """Two files of the same size and time, and their pack."""
    for name in ("a", "b"):
        put(tmp_path / "root" / "s0" / name, name.encode() * 9)
    save_state(tmp_path / "root")
    return tmp_path / "root"


def check_served(root, expected, **options):
    """Check what is served, before and after a pack of it is written, and that the pack is then believed."""
    for _ in range(2):
        with open_directory(root, **ONE | options) as directory:
            assert {name: data for name, _, data in directory} in (expected, dict.fromkeys(expected))
            assert contents(directory) == expected
            settle()
            directory.save_state()
    times = pack_times(root)
    with open_directory(root, **ONE | options) as directory:
        assert contents(directory) == expected
        directory.save_state()
    assert pack_times(root) == times


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_files_that_were_exchanged_are_seen(root, load_to_memory):
    folder = root / "s0"
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")
    check_served(root, {"a": b"b" * 9, "b": b"a" * 9}, load_to_memory=load_to_memory)


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_a_file_with_another_content_and_the_same_time_and_size_is_seen(root, load_to_memory):
    put(root / "s0" / "a", b"c" * 9)
    check_served(root, {"a": b"c" * 9, "b": b"b" * 9}, load_to_memory=load_to_memory)


def test_subdirectories_that_were_exchanged_are_seen(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name / name, name.encode())
        os.utime(tmp_path / name, ns=(OLD, OLD))
    save_state(tmp_path)
    with open_directory(tmp_path, **ONE) as directory:
        for source, target in (("a", "c"), ("b", "a"), ("c", "b")):
            (tmp_path / source).rename(tmp_path / target)
        directory.save("d", b"d")  # takes over what has changed
        expected = {"a": str(tmp_path / "b" / "a"), "b": str(tmp_path / "a" / "b")}
        assert {name: directory.get_path(name) for name in expected} == expected
        directory.remove("d")
    check_served(tmp_path, {"a": b"a", "b": b"b"})


def test_a_pack_of_a_clock_that_was_ahead_is_compared_by_content(root):
    future = {"directory_modified": (root / "s0").stat().st_mtime_ns, "read_at": time.time_ns() + 10**15}
    (root / "s0.pack").write_bytes(forge_pack([(b"a", b"x" * 9), (b"b", b"b" * 9)], metadata=future))
    with open_directory(root, **ONE) as directory:
        assert contents(directory) == {"a": b"a" * 9, "b": b"b" * 9}


def test_times_in_whole_seconds_settle_later(tmp_path):
    """As on file systems whose times have steps of a second."""
    path = tmp_path / "s0" / "a"
    second = time.time_ns() // 10**9 * 10**9
    put(path, b"old", second)
    save_state(tmp_path)
    with MappedPack.open(tmp_path / "s0.pack") as pack:
        assert pack.index.modified.tolist() == [0]
    put(path, b"new", second)
    with open_directory(tmp_path) as directory:
        assert contents(directory) == {"a": b"new"}


def test_a_member_of_another_subdirectory_is_not_copied(root):
    put(root / "s1" / "a", b"A" * 9)
    save_state(root, on_duplicate="first")
    (root / "s0" / "a").unlink()
    check_served(root, {"a": b"A" * 9, "b": b"b" * 9})


def test_files_that_change_while_others_are_moved_are_read_again(tmp_path, monkeypatch):
    names = [f"{number}" for number in range(8)]
    for name in names:
        put(tmp_path / "s0" / name, b"old")
    save_state(tmp_path, min_subdir_num=3)
    with open_directory(tmp_path, min_subdir_num=3) as directory:
        write_outdated = directory._contents._write_outdated

        def change_first():
            settle()
            for name in names:
                put(find_on_disk(tmp_path, name), b"new")
            write_outdated()

        monkeypatch.setattr(directory._contents, "_write_outdated", change_first)
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == dict.fromkeys(names, b"new")
    with open_directory(tmp_path) as directory:
        assert contents(directory) == dict.fromkeys(names, b"new")


class WithSidecar(TextInHex):
    """A data manager that needs another file."""

    def __init__(self, sidecar):
        super().__init__()
        self.sidecar = sidecar

    def load(self, path):
        return super().load(path) + self.sidecar.read_text()


def test_a_data_manager_that_misses_another_file_loses_none(tmp_path):
    manager = WithSidecar(tmp_path / ".sidecar")
    put(tmp_path / "s0" / "a", b"a".hex().encode())
    for load_to_memory in (True, False):
        with (
            pytest.raises(sl.StoreError, match="cannot load it") as caught,
            open_directory(tmp_path, manager, load_to_memory=load_to_memory, **ONE) as directory,
        ):
            directory.save_state()
        assert not isinstance(caught.value, sl.NotFound)
    (tmp_path / ".sidecar").write_text("+")
    with open_directory(tmp_path, manager, **ONE) as directory:
        assert directory.load("a") == "a+"


def test_a_pack_that_leaves_a_file_out_is_not_believed(tmp_path, monkeypatch):
    for name in ("a", "b"):
        put(tmp_path / "s0" / name, name.encode())
    settle()
    with open_directory(tmp_path, load_to_memory=False, **ONE) as directory:
        read_file = directory._contents.root.read_file

        def lose(subdirectory, filename):
            if filename == "b":
                raise sl.NotFound("no such file")
            return read_file(subdirectory, filename)

        monkeypatch.setattr(directory._contents.root, "read_file", lose)
        directory.save_state()
    with MappedPack.open(tmp_path / "s0.pack") as pack:
        assert pack.index.metadata["directory_modified"] == 0
    check_served(tmp_path, {"a": b"a", "b": b"b"})


def test_links_that_lead_to_a_file_later_are_seen(tmp_path):
    root, target = tmp_path / "root", tmp_path / "target"
    put(root / "s0" / "a", b"a")
    (root / "s0" / "link").symlink_to(target)
    (root / "s0" / "loop").symlink_to("loop")
    (root / "s0" / "folder").symlink_to(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    check_served(root, {"a": b"a"})
    target.write_bytes(b"t")
    (tmp_path / "folder").rmdir()
    (tmp_path / "folder").write_bytes(b"f")
    check_served(root, {"a": b"a", "link": b"t", "folder": b"f"})


def test_an_entry_that_cannot_be_examined_is_an_error(root, monkeypatch):
    real = os.scandir
    (root / "s0" / "link").symlink_to("a")

    class Broken:
        def __init__(self, entries):
            self.entries = entries

        def __enter__(self):
            return map(self.wrap, self.entries.__enter__())

        def __exit__(self, *exc):
            return self.entries.__exit__(*exc)

        def wrap(self, entry):
            return Entry(entry) if entry.name == "link" else entry

    class Entry:
        def __init__(self, entry):
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink

        def is_file(self):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", lambda path: Broken(real(path)))
    with pytest.raises(sl.StoreError, match="s0 cannot be listed: Input/output error"):
        open_directory(root, **ONE)


def test_a_link_to_another_subdirectory_has_no_files_of_its_own(root):
    (root / "a0").symlink_to("s0")
    (root / "s1").symlink_to("s0")
    (root / "s2").symlink_to(".")
    for on_duplicate in ("rename", "error"):
        with open_directory(root, on_duplicate=on_duplicate, **ONE) as directory:
            assert contents(directory) == {"a": b"a" * 9, "b": b"b" * 9}
            assert directory.get_path("a") == str(root / "s0" / "a")
    assert sorted(os.listdir(root / "s0")) == ["a", "b"]


@pytest.mark.parametrize("seed", [0, 1])
def test_redistribution_leaves_the_first_of_a_name_the_first(tmp_path, seed):
    for number in range(8):
        put(tmp_path / f"s{number}" / f"f{number}", b"f")
    for number in (3, 5):
        put(tmp_path / f"s{number}" / "x", f"x in {number}".encode())
    with open_directory(tmp_path, on_duplicate="first", seed=seed) as directory:
        directory.redistribute_all_files(are_you_sure=True)
        assert directory.load("x") == b"x in 3"
    with open_directory(tmp_path, on_duplicate="first") as directory:
        assert directory.load("x") == b"x in 3"


def test_a_refresh_that_failed_is_made_again(tmp_path, monkeypatch):
    for number in range(4):
        put(tmp_path / f"s{number}" / f"f{number}", b"f")
    save_state(tmp_path)
    with open_directory(tmp_path, **ONE) as directory:
        put(tmp_path / "s2" / "new", b"outside")
        real = os.scandir

        def fail(path):
            if str(path).endswith("s2"):
                raise OSError(errno.EMFILE, "Too many open files")
            return real(path)

        monkeypatch.setattr(os, "scandir", fail)
        for _ in range(2):
            with pytest.raises(sl.StoreError, match="s2 cannot be listed"):
                directory.save("other", b"1")
        monkeypatch.undo()
        directory.save("new", b"mine")
        assert directory.load("new") == b"mine"
    assert [folder for folder, name in on_disk(tmp_path) if name == "new"] == ["s2"]


def test_duplicates_are_an_error_until_they_are_gone(tmp_path):
    for number in range(3):
        put(tmp_path / f"s{number}" / f"f{number}", b"f")
    save_state(tmp_path)
    with open_directory(tmp_path, **ONE) as directory:
        put(tmp_path / "s2" / "f0", b"second")
        for _ in range(3):
            with pytest.raises(sl.DuplicateName):
                directory.save("f0", b"mine")
            with pytest.raises(sl.DuplicateName):
                directory.remove("f1")
        (tmp_path / "s2" / "f0").unlink()
        directory.save("f0", b"mine")
        assert contents(directory) == {"f0": b"mine", "f1": b"f", "f2": b"f"}


@pytest.mark.parametrize("change", ["save", "state"])
def test_iteration_goes_on_with_what_has_changed(tmp_path, change):
    names = [f"f{number:03}" for number in range(600)]
    fill(tmp_path, dict.fromkeys(names, b"old"), **ONE)
    with open_directory(tmp_path, **ONE) as directory:
        files = iter(directory)
        found = dict([next(files)[::2]])
        directory.save(names[-1], b"new")
        directory.remove(names[-2])
        directory.save("g", b"g")
        if change == "state":
            directory.save_state()
        found |= {name: data for name, _, data in files}
        expected = dict.fromkeys(names, b"old") | {names[-1]: b"new", "g": b"g"}
        del expected[names[-2]]
        assert found == expected
        assert list(found) == sorted(expected)


def test_a_pack_that_was_overwritten_in_place_is_opened_again(root, caplog):
    pack = root / "s0.pack"
    with open_directory(root, **ONE) as directory:
        assert bytes(directory.read("a")) == b"a" * 9
        inode = pack.stat().st_ino
        with open(pack, "r+b") as file:
            file.truncate(20)
        assert {name: data for name, _, data in directory} == {"a": b"a" * 9, "b": b"b" * 9}
        settle()
        directory.save_state()
        assert pack.stat().st_ino != inode
        assert contents(directory) == {"a": b"a" * 9, "b": b"b" * 9}
    assert "overwritten while it was open" in caplog.text


FORGED = [
    ([(b"a", b"1"), (b"a", b"2")], None),
    ([(b"b", b"1"), (b"a", b"2")], None),
    ([(b"a", b"1")], [1]),
    ([(b".hidden", b"1"), (b"a", b"1")], None),
    ([(b"a", b"1"), (b"sub/secret", b"1")], None),
    ([(b"a", b"1"), (b"n" * 256, b"1")], None),
]


@pytest.mark.parametrize(("members", "hashes"), FORGED)
def test_packs_with_names_that_no_subdirectory_has_give_way_to_the_files(tmp_path, members, hashes, caplog):
    put(tmp_path / "s0" / "a", b"a")
    put(tmp_path / "s0" / "sub" / "secret", b"secret")
    settle()
    times = {"directory_modified": (tmp_path / "s0").stat().st_mtime_ns, "read_at": time.time_ns()}
    (tmp_path / "s0.pack").write_bytes(forge_pack(members, metadata=times, hashes=hashes))
    for on_duplicate in ("error", "first", "rename"):
        with open_directory(tmp_path, on_duplicate=on_duplicate, **ONE) as directory:
            assert contents(directory) == {"a": b"a"}
            assert directory.load("sub/secret") is None
            directory.remove("sub/secret")
    assert caplog.text.count("the pack is not used, and the files are read instead") == 3
    assert (tmp_path / "s0" / "sub" / "secret").read_bytes() == b"secret"


def test_a_folder_a_pipe_or_an_unreadable_file_is_no_pack(tmp_path, caplog):
    for number in range(3):
        put(tmp_path / f"s{number}" / f"{number}", b"%d" % number)
    (tmp_path / "s0.pack").mkdir()
    os.mkfifo(tmp_path / "s1.pack")
    (tmp_path / "s2.pack").symlink_to("s2.pack")
    with open_directory(tmp_path, **ONE) as directory:
        assert contents(directory) == {"0": b"0", "1": b"1", "2": b"2"}
    assert caplog.text.count("the pack is not used") >= 2
    assert Path(tmp_path / "s0.pack").is_dir()
