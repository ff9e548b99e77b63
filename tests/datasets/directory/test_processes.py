"""Several processes: locks, readers during a redistribution, forks, workers of a DataLoader, pickling."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading

import pytest
from datasets.directory.directory_data import contents, fill, find_on_disk, on_disk, open_directory, pack_times
from optional_torch import needs_torch

import streamloader as sl
from streamloader.datasets.directory.lock import DirectoryLock

FILES = {f"{number}.bin": bytes([number]) * number for number in range(20)}

HOLDER = """
import sys
import streamloader as sl
directory = sl.VirtualDirectory(sys.argv[1], sl.BytesDataManager(), min_subdir_num=4, seed=0)
if sys.argv[2] == "write":
    directory.save("other", b"other")
print("ready", flush=True)
sys.stdin.readline()
directory.close()
"""


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "root", FILES)
    return tmp_path / "root"


@contextlib.contextmanager
def another_process(root, kind):
    """Run a process that has the directory open, and that has written to it if the kind is "write"."""
    program = [sys.executable, "-c", HOLDER, root, kind]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        with contextlib.suppress(BrokenPipeError):
            process.communicate("\n", timeout=60)


def test_a_second_writer_gets_an_error_that_names_the_first(root):
    with open_directory(root) as directory:
        with another_process(root, "write") as process:
            for change in (
                lambda: directory.save("a", b""),
                lambda: directory.remove("5.bin"),
                lambda: directory.redistribute_all_files(are_you_sure=True),
            ):
                with pytest.raises(sl.DirectoryLocked) as caught:
                    change()
                assert caught.value.message == (
                    f"{root} is being written to by process {process.pid} on {socket.gethostname()}. "
                    "Close it there, or only read it here"
                )
            assert contents(directory) == FILES
            assert issubclass(sl.DirectoryLocked, BlockingIOError)
        directory.save("mine", b"mine")
        expected = FILES | {"other": b"other", "mine": b"mine"}
        assert contents(directory) == expected
    assert {name: content for (_, name), content in on_disk(root).items()} == expected


def test_a_killed_writer_keeps_no_lock_and_leaves_nothing(root):
    with another_process(root, "write") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (root / "subdir_0" / ".streamloader-new-0123.bin").write_bytes(b"half")
    (root / ".streamloader-new-4567").write_bytes(b"half")
    with open_directory(root) as directory:
        assert contents(directory) == FILES | {"other": b"other"}
        assert (root / "subdir_0" / ".streamloader-new-0123.bin").exists()  # another writer may be at work
        directory.save("other", b"mine")
        assert contents(directory) == FILES | {"other": b"mine"}
    assert [path.name for path in root.rglob(".streamloader*")] == []


def test_files_are_moved_only_by_the_only_user(root):
    before = on_disk(root)
    with open_directory(root) as directory:
        with another_process(root, "read"), pytest.raises(sl.DirectoryLocked, match="is open elsewhere"):
            directory.redistribute_all_files(are_you_sure=True)
        assert on_disk(root) == before
        assert contents(directory) == FILES
        with open_directory(root), pytest.raises(sl.DirectoryLocked, match="is open elsewhere"):
            directory.redistribute_all_files(are_you_sure=True)  # the shared lock was taken again
        assert read_all(root) == FILES
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == FILES


def test_a_failed_attempt_to_be_alone_keeps_the_shared_lock(root):
    locks = [DirectoryLock(str(root), 60.0) for _ in range(3)]
    first, second, third = locks
    first.open_shared()
    second.open_shared()
    assert not first.try_alone()
    second.close()
    third.open_shared()
    assert not third.try_alone()
    first.close()
    assert third.try_alone()
    third.share_again()
    second.open_shared()
    for lock in locks:
        lock.close()


def test_readers_wait_until_files_are_moved(root, monkeypatch):
    moving, go_on = threading.Event(), threading.Event()
    real = os.rename

    def wait_once(old, new):
        if not moving.is_set():
            moving.set()
            assert go_on.wait(60)
        real(old, new)

    monkeypatch.setattr(os, "rename", wait_once)
    with open_directory(root) as directory:
        mover = threading.Thread(target=directory.redistribute_all_files, args=(True,))
        mover.start()
        assert moving.wait(60)
        with pytest.raises(sl.DirectoryLocked, match=f"while its files are moved by process {os.getpid()} on"):
            open_directory(root, lock_timeout=0.01)
        found = []
        reader = threading.Thread(target=lambda: found.append(read_all(root)))
        reader.start()
        go_on.set()
        mover.join()
        reader.join()
        assert found == [FILES]
        assert contents(directory) == FILES


def read_all(root, **options):
    with open_directory(root, **options) as directory:
        return contents(directory)


def fail(old, new):
    raise OSError(5, "Input/output error")


def test_one_of_many_openers_finishes_the_moves(root, monkeypatch):
    """As the ranks of one job do, after the job before was killed."""
    with open_directory(root) as directory:
        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(sl.StoreError):
            directory.redistribute_all_files(are_you_sure=True)
        monkeypatch.undo()
        # While somebody has it open, nobody can move files. They are read where they are.
        assert read_all(root, lock_timeout=0.05) == FILES
    assert (root / ".redistribute.json").exists()
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_all(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [FILES] * 4
    assert not (root / ".redistribute.json").exists()


def test_many_processes_can_save_the_state_at_once(root):
    find_on_disk(root, "5.bin").unlink()
    expected = {name: content for name, content in FILES.items() if name != "5.bin"}
    directories = [open_directory(root) for _ in range(3)]
    threads = [threading.Thread(target=directory.save_state) for directory in directories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = pack_times(root)
    for directory in directories:
        assert contents(directory) == expected
        directory.save_state()
        directory.close()
    assert pack_times(root) == times


@contextlib.contextmanager
def forked(work):
    """Run `work` in a forked process, which then lives on until the end of the block. It has to return True."""
    ready, child_ready = os.pipe()
    child_end, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end)
        try:
            ok = work()
            os.write(child_ready, b"1")
            os.read(child_end, 1)
        finally:
            os._exit(0 if ok else 1)
    os.close(child_ready)
    os.close(child_end)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.close(end)
        os.close(ready)
        status = os.waitpid(pid, 0)[1]
    assert status == 0


def test_a_writer_releases_its_lock_on_close_while_forks_live(root):
    directory = open_directory(root)
    directory.save("a", b"1")

    def read_and_fail_to_write():
        with contextlib.suppress(sl.DirectoryLocked):  # the lock is the parent's
            directory.save("b", b"2")
            return False
        return contents(directory) == FILES | {"a": b"1"}

    with forked(read_and_fail_to_write):
        directory.close()
        with open_directory(root) as other:
            other.save("c", b"3")
            with pytest.raises(sl.DirectoryLocked, match="open elsewhere"):  # by the child, which still reads
                other.redistribute_all_files(are_you_sure=True)
    with open_directory(root) as other:
        other.redistribute_all_files(are_you_sure=True)


def test_the_parent_cannot_move_files_under_its_children(root):
    with open_directory(root) as directory:
        with (
            forked(lambda: contents(directory) == FILES),
            pytest.raises(sl.DirectoryLocked, match="open elsewhere"),
        ):
            directory.redistribute_all_files(are_you_sure=True)
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == FILES


def test_a_child_that_closes_keeps_the_parents_lock(root):
    with open_directory(root) as directory:
        directory.save("a", b"1")
        pid = os.fork()
        if not pid:
            directory.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with open_directory(root) as other, pytest.raises(sl.DirectoryLocked, match=f"by process {os.getpid()} on"):
            other.save("b", b"2")


class Samples:
    """A map-style data set around a directory, as users write it."""

    def __init__(self, directory):
        self.directory = directory
        self.names = sorted(directory.get_list_of_files())

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.names[index], self.directory.load(self.names[index])


@needs_torch
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_workers_of_a_dataloader(root, method, is_packed):
    from torch.utils.data import DataLoader

    if not is_packed:
        for path in root.glob("*.pack"):
            path.unlink()
    with open_directory(root) as directory:
        samples = Samples(directory)
        loader = DataLoader(
            samples, batch_size=None, num_workers=2, multiprocessing_context=multiprocessing.get_context(method)
        )
        assert list(map(tuple, loader)) == sorted(FILES.items())
        directory.save("a", b"new")
        assert list(map(tuple, loader)) == sorted(FILES.items())


def test_a_pickled_directory_opens_anew(root):
    with open_directory(root, on_duplicate="first", save_on_destruction=True) as directory:
        copy = pickle.loads(pickle.dumps(directory))
        directory.save("a", b"1")
        again = pickle.loads(pickle.dumps(copy))
        assert contents(copy) == FILES
        assert contents(again) == FILES | {"a": b"1"}
        with pytest.raises(sl.DirectoryLocked):
            again.save("b", b"2")
        assert copy.root == directory.root
        copy.close()
        again.close()
        assert pickle.loads(pickle.dumps(directory))._arguments["save_on_destruction"] is False


def test_threads_read_while_one_writes(root):
    errors = []
    with open_directory(root) as directory:
        stop = threading.Event()

        def read():
            while not stop.is_set():
                found = {name: directory.load(name) for name in FILES}
                if found != FILES:
                    errors.append(found)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(5):
            directory.save(f"new {number}", b"")
            directory.save_state()
            directory.remove(f"new {number}")
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_lock_file_of_another_user_is_no_way_out_of_the_root(root, tmp_path):
    (tmp_path / "victim").write_bytes(b"content")
    (root / ".write-lock").unlink(missing_ok=True)
    (root / ".write-lock").symlink_to(tmp_path / "victim")
    with open_directory(root) as directory, pytest.raises(sl.StoreError, match="cannot be opened for writing"):
        directory.save("a", b"")
    assert (tmp_path / "victim").read_bytes() == b"content"
