"""Full disks, lost locks, interrupted moves, names that collide, and packs larger than the memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from datasets.directory.directory_data import contents, fill, find_on_disk, on_disk, open_directory, pack_times
from datasets.directory.forged import collide, forge_pack

import streamloader as sl
from streamloader.config import Limits
from streamloader.containers.pack import mapping
from streamloader.containers.pack.format import HEADER, PackFooter, pack_footer
from streamloader.containers.pack.mapped import MappedPack
from streamloader.containers.pack.mapping import map_file
from streamloader.datasets.directory.lock import WRITE_LOCK_NAME, DirectoryLock

FILES = {f"{number}.bin": bytes([number]) * number for number in range(20)}
ONE = {"min_subdir_num": 1}


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "root", FILES)
    return tmp_path / "root"


# --- packs that are larger than the memory ---------------------------------------------------------------------------


def make_sparse(path, size):
    try:
        with open(path, "wb") as file:
            file.truncate(size)
    except OSError as error:
        pytest.skip(f"no file of {size} bytes can be made here: {error}")


def test_a_file_larger_than_the_memory_can_be_mapped(tmp_path):
    size = 4 << 40
    make_sparse(tmp_path / "large", size)
    mapped = map_file(str(tmp_path / "large"))
    assert len(mapped) == size
    assert mapped[size - 3 :] == bytes(3)


def test_a_mapping_that_cannot_be_reserved_is_a_plain_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    real = mapping.mmap.mmap

    def refuse(descriptor, *arguments, **options):
        if descriptor == -1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(descriptor, *arguments, **options)

    monkeypatch.setattr(mapping.mmap, "mmap", refuse)
    assert map_file(str(tmp_path / "file"))[:] == b"content"


@pytest.mark.parametrize(("count", "limits"), [(60_000_000, None), (11, Limits(listed=10))])
def test_an_index_beyond_the_limits_takes_no_memory(tmp_path, count, limits):
    path = tmp_path / "x.pack"
    size = PackFooter(16, 0, count, count, 2, 4, False, 0).expected_size
    make_sparse(path, 16 + size)
    with open(path, "r+b") as file:
        file.write(HEADER)
        file.seek(16 + size)
        file.write(pack_footer(PackFooter(16, size, count, count, 2, 4, False, 0)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(sl.LimitExceeded, match=f"it has {count} members, more than .*raise Limits\\(listed="):
        MappedPack.open(path, limits=limits)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_names_that_collide_are_found_by_bisection(tmp_path):
    names = collide(1000)
    (tmp_path / "s0").mkdir()
    for name in names:
        with open(os.fsencode(tmp_path / "s0") + b"/" + name, "wb") as file:
            file.write(name)
    for _ in range(2):
        with open_directory(tmp_path, **ONE) as directory:
            assert directory._contents.table._is_crowded
            assert {os.fsencode(name): bytes(directory.read(name)) for name in directory.get_list_of_files()} == {
                name: name for name in names
            }
            gone = os.fsdecode(names[7])
            assert os.fsencode(directory.get_path(gone)).endswith(names[7])
            directory.remove(gone)
            assert not directory.exists(gone)
            directory.save(gone, names[7])
            assert directory.load(gone) == names[7]
            assert directory.load("absent") is None
            directory.save_state()


def test_reading_files_into_memory_takes_little_more_than_their_size(tmp_path):
    """In a process of its own, whose memory nothing else has used before."""
    payload = 40_000 * 1000
    (tmp_path / "s0").mkdir()
    for number in range(40_000):
        with open(tmp_path / "s0" / f"{number:06}.bin", "wb", 0) as file:
            file.write(bytes(1000))
    program = (
        "import sys, resource, numpy\nimport streamloader as sl\n"
        "from streamloader.datasets.directory import virtual_directory\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "directory = sl.VirtualDirectory(sys.argv[1], sl.BytesDataManager(), False, min_subdir_num=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(directory))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    used, count = map(int, done.stdout.split())
    assert count == 40_000
    assert used * 1024 < 1.45 * payload


# --- copies of instances ---------------------------------------------------------------------------------------------


class Labelled(sl.VirtualDirectory):
    """A subclass with other arguments, and an attribute."""

    def __init__(self, root, labels):
        super().__init__(root, sl.BytesDataManager(), verbose=False)
        self.labels = labels


def test_a_pickled_directory_finds_its_root_from_anywhere(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_directory("root") as directory:
        pickled = pickle.dumps(directory)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pickle.loads(pickled) as copy:
        assert contents(copy) == FILES
        assert copy.root == str(root)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_subclass_with_other_arguments_can_be_pickled(root):
    with Labelled(root, ["label"]) as directory, pickle.loads(pickle.dumps(directory)) as copy:
        assert type(copy) is Labelled
        assert copy.labels == ["label"]
        assert contents(copy) == FILES


def in_child(work):
    """Return the exit status of a forked process that runs `work`."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1]


def test_a_forked_child_that_closes_writes_no_packs(tmp_path):
    directory = open_directory(tmp_path, save_on_destruction=True)
    directory.save("a", b"1")
    assert in_child(directory.close) == 0
    assert pack_times(tmp_path) == {}
    directory.close()
    assert len(pack_times(tmp_path)) == 1


def test_close_beside_reading_threads_is_a_closed_error(root):
    errors = []

    def read(directory):
        try:
            while True:
                for name in FILES:
                    directory.exists(name), directory.get_path(name), directory.load(name)
        except Exception as error:  # noqa: BLE001 - the test is about its type
            errors.append(type(error))

    for _ in range(20):
        directory = open_directory(root, load_to_memory=False)
        threads = [threading.Thread(target=read, args=[directory]) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.001)
        directory.close()
        for thread in threads:
            thread.join()
    assert errors == [sl.ClosedError] * 40


# --- locks and moves -------------------------------------------------------------------------------------------------


def write_journal(root):
    (source, name), *_ = sorted(on_disk(root))
    target = next(f"subdir_{number}" for number in range(4) if source != f"subdir_{number}")
    (root / ".redistribute.json").write_text(json.dumps({"version": 1, "moves": [[name, source, target]]}))
    return root / target / name


def test_openers_wait_only_until_one_of_them_has_finished_the_moves(root):
    """As the ranks of one job, while the last worker of a killed one lives on. Nobody closes before all are open."""
    path = write_journal(root)
    holder = os.open(root / ".lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_SH)
    opened = []
    threads = [threading.Thread(target=lambda: opened.append(open_directory(root, lock_timeout=60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert opened == []
    os.close(holder)
    for thread in threads:
        thread.join(20)  # before the timeout
    assert len(opened) == 3
    assert path.exists()
    for directory in opened:
        assert contents(directory) == FILES
        directory.close()


def test_moves_that_cannot_be_finished_do_not_keep_from_reading(root, monkeypatch, caplog):
    write_journal(root)

    def fail(old, new):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", fail)
    with open_directory(root) as directory:
        assert contents(directory) == FILES
    assert "moves that were interrupted cannot be finished" in caplog.text
    assert (root / ".redistribute.json").exists()
    monkeypatch.undo()
    with open_directory(root) as directory:
        assert contents(directory) == FILES
    assert not (root / ".redistribute.json").exists()


def test_a_packer_is_waited_for_longer_than_the_timeout(root):
    find_on_disk(root, "5.bin").unlink()
    packer = DirectoryLock(str(root), 0.1)
    packer.open_writer(wait=True)
    with open_directory(root, lock_timeout=0.1) as directory:
        thread = threading.Thread(target=directory.save_state)
        thread.start()
        time.sleep(0.4)
        assert thread.is_alive()
        with open_directory(root) as other, pytest.raises(sl.DirectoryLocked):
            other.save("a", b"")
        packer.close()
        thread.join()
        assert len(directory) == 19
        writer = DirectoryLock(str(root), 0.1)
        writer.open_writer()
        find_on_disk(root, "6.bin").unlink()
        assert directory.read("6.bin") is None
        with pytest.raises(sl.DirectoryLocked, match=f"is being written to by process {os.getpid()} on"):
            directory.save_state()
        writer.close()
        directory.save_state()


def test_a_lock_file_that_was_deleted_is_no_lock_any_more(root, caplog):
    with open_directory(root) as first, open_directory(root) as second:
        first.save("a", b"1")
        (root / WRITE_LOCK_NAME).unlink()
        second.save("b", b"2")
        for change in (
            lambda: first.save("c", b"3"),
            lambda: first.remove("a"),
            lambda: first.redistribute_all_files(True),
        ):
            with pytest.raises(sl.DirectoryLocked):
                change()
        second.close()
        first.save("c", b"3")
        assert contents(first) == FILES | {"a": b"1", "b": b"2", "c": b"3"}
    assert ".write-lock was deleted while it was locked" in caplog.text


def test_a_lock_file_that_was_deleted_while_another_waited_is_opened_again(root):
    first, second, third = (DirectoryLock(str(root), 30.0) for _ in range(3))
    first.open_writer()
    waiting = threading.Thread(target=second.open_writer, kwargs={"wait": True})
    waiting.start()
    time.sleep(0.1)
    (root / WRITE_LOCK_NAME).unlink()
    first.close()
    waiting.join()
    with pytest.raises(sl.DirectoryLocked):
        third.open_writer()
    for lock in (second, third):
        lock.close()


# --- disks that are full ---------------------------------------------------------------------------------------------


def fill_disk(disk, *, inodes=False):
    with contextlib.suppress(OSError), open(disk / ".filler", "wb", 0) as file:
        while True:
            file.write(bytes(4096))
    for number in range(10**6 if inodes else 0):
        try:
            (disk / f".filler {number}").touch()
        except OSError:
            return


def test_a_full_disk_is_a_typed_error_and_can_be_read(disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=40", disk], check=True)
    fill(disk, FILES)
    fill_disk(disk, inodes=True)
    (disk / ".lock").unlink()
    (disk / ".filler last").touch()
    with open_directory(disk, min_subdir_num=50) as directory:
        for change in (lambda: directory.save("5.bin", bytes(90_000)), lambda: directory.save("new", bytes(90_000))):
            with pytest.raises(sl.StorageFull, match="No space left on device"):
                change()
        assert contents(directory) == FILES
    assert {name: content for (_, name), content in on_disk(disk).items()} == FILES


def test_a_root_without_subdirectories_on_a_full_disk_says_so(disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=20", disk], check=True)
    with open_directory(disk, min_subdir_num=0) as directory:
        (disk / ".write-lock").touch()
        fill_disk(disk, inodes=True)
        with pytest.raises(sl.StorageFull, match="subdir_0 cannot be created"):
            directory.save("a", b"")


def test_forged_bytes_are_those_of_the_writer():
    pack = MappedPack.from_bytes(forge_pack([(b"a", b"1"), (b"b", b"22")]))
    pack.index.check_names()
    assert {name: bytes(view) for name, view in pack.items()} == {"a": b"1", "b": b"22"}
    assert np.array_equal(pack.index.starts, [16, 17, 19])
