"""Changes that other programs make: the files count, and a pack is only a copy of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from datasets.directory.directory_data import (
    SETTLED_NS,
    TextInHex,
    age,
    contents,
    fill,
    find_on_disk,
    open_directory,
    pack_times,
)
from tiers import fast_first

from streamloader.containers.pack.mapped import MappedPack

FILES = {f"{number}.bin": bytes([number]) * number for number in range(20)}
# How a directory is opened. The second one repeats the proofs of the first, with the parts that it leaves out.
OPTIONS = fast_first([{"check": "files"}, {"check": "names", "load_to_memory": False}])


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "root", FILES)
    return tmp_path / "root"


def write_in_place(path, content):
    """Overwrite a file, whose folder then does not notice, and give it a time of its own."""
    modified = os.stat(path).st_mtime_ns
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(content)
    os.utime(path, ns=(modified + 10**9, modified + 10**9))


@pytest.mark.parametrize("options", OPTIONS)
def test_files_that_came_and_went_are_seen(root, options):
    find_on_disk(root, "3.bin").unlink()
    (root / "subdir_2" / "new.bin").write_bytes(b"new")
    (root / "more").mkdir()
    (root / "more" / "more.bin").write_bytes(b"more")
    expected = {name: content for name, content in FILES.items() if name != "3.bin"}
    expected |= {"new.bin": b"new", "more.bin": b"more"}
    for _ in range(2):
        with open_directory(root, **options) as directory:
            assert contents(directory) == expected
            assert directory.load("3.bin") is None
            assert len(directory) == 21
            assert {name: data for name, _, data in directory} in (expected, dict.fromkeys(expected))
            directory.save_state()


@pytest.mark.parametrize("options", [{"check": "names"}, {"load_to_memory": False}])
def test_replaced_files_are_seen(root, options):
    """As editors and rsync do it: another file of the same name, size and perhaps an old time."""
    for name, content in (("5.bin", b"other"), ("6.bin", b"longer than before")):
        path = find_on_disk(root, name)
        (path.parent / ".new").write_bytes(content)
        age(path.parent / ".new")
        (path.parent / ".new").replace(path)
    expected = FILES | {"5.bin": b"other", "6.bin": b"longer than before"}
    for _ in range(2):
        with open_directory(root, **options) as directory:
            assert contents(directory) == expected
            directory.save_state()


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_files_overwritten_in_place_are_seen(root, load_to_memory):
    write_in_place(find_on_disk(root, "5.bin"), b"other")
    write_in_place(find_on_disk(root, "6.bin"), b"")
    expected = FILES | {"5.bin": b"other", "6.bin": b""}
    with open_directory(root, load_to_memory=load_to_memory) as directory:
        assert contents(directory) == expected
        assert directory.load("5.bin") == b"other"
    with open_directory(root, load_to_memory=load_to_memory) as directory:
        if load_to_memory:
            assert {name: data for name, _, data in directory} == expected
        assert directory.load("5.bin") == b"other"
        before = pack_times(root)
        directory.save_state()
        changed = {name for name, stamp in pack_times(root).items() if stamp != before[name]}
        assert changed == {f"{find_on_disk(root, '5.bin').parent.name}.pack"} | (
            {f"{find_on_disk(root, '6.bin').parent.name}.pack"} if load_to_memory else set()
        )
    with open_directory(root, check="names") as directory:
        assert bytes(directory.read("5.bin")) == b"other"


def test_another_size_is_seen_whatever_the_time(root):
    path = find_on_disk(root, "5.bin")
    status = path.stat()
    with open(path, "ab") as file:
        file.write(b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with open_directory(root) as directory:
        assert directory.load("5.bin") == FILES["5.bin"] + b"more"


def test_check_names_does_not_look_at_each_file(root):
    write_in_place(find_on_disk(root, "5.bin"), b"other")
    with open_directory(root, check="names") as directory:
        assert bytes(directory.read("5.bin")) == FILES["5.bin"]


def test_a_file_is_looked_at_once_in_an_instance(root):
    with open_directory(root) as directory:
        assert bytes(directory.read("5.bin")) == FILES["5.bin"]
        write_in_place(find_on_disk(root, "5.bin"), b"other")
        assert bytes(directory.read("5.bin")) == FILES["5.bin"]


def test_a_file_that_went_since_the_start_is_absent(root):
    with open_directory(root) as directory:
        find_on_disk(root, "5.bin").unlink()
        assert directory.read("5.bin") is None
        assert directory.load("5.bin") is None
        assert not directory.exists("5.bin")
        assert len(directory) == 19


def test_loose_files_that_went_since_the_start_are_absent(tmp_path):
    with open_directory(tmp_path, load_to_memory=False) as directory:
        for name in "abcd":
            directory.save(name, b"1")
        for name in "abc":
            find_on_disk(tmp_path, name).unlink()
        assert directory.read("a") is None
        assert directory.load("b") is None
        directory.remove("c")
        assert contents(directory) == {"d": b"1"}


def test_changes_right_after_packing_are_seen(tmp_path):
    """Two changes in the same tick of the clock give a file the same time twice, and often the same size."""
    for number in range(6):
        with open_directory(tmp_path, min_subdir_num=1) as directory:
            directory.save("a", b"%03d" % number)
            path = Path(directory.get_path("a"))
            path.write_bytes(b"%03d" % (number + 100))
            directory.save_state()
            path.write_bytes(b"%03d" % (number + 200))
        with open_directory(tmp_path) as directory:
            assert bytes(directory.read("a")) == b"%03d" % (number + 200)


def test_times_that_are_too_recent_are_compared_by_content(tmp_path):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "a"
    path.write_bytes(b"1")
    future = time.time_ns() + 10**12  # a clock of a server may be ahead, and then no time can be trusted
    os.utime(path, ns=(future, future))
    with open_directory(tmp_path, min_subdir_num=0) as directory:
        directory.save_state()
    with MappedPack.open(tmp_path / "one.pack") as pack:
        assert pack.index.modified.tolist() == [0]
    for content in (b"1", b"2"):
        path.write_bytes(content)
        os.utime(path, ns=(future, future))
        with open_directory(tmp_path) as directory:
            assert bytes(directory.read("a")) == content


def test_packs_that_are_up_to_date_are_not_written_again(root):
    times = pack_times(root)
    assert len(times) == 4
    with open_directory(root) as directory:
        contents(directory)
        directory.save_state()
    assert not (root / ".write-lock").stat().st_size
    assert pack_times(root) == times
    with open_directory(root) as directory:
        directory.save("5.bin", b"other")
        changed = find_on_disk(root, "5.bin").parent.name + ".pack"
        directory.save_state()
        assert bytes(directory.read("5.bin")) == b"other"
    assert {name for name, stamp in pack_times(root).items() if stamp != times[name]} == {changed}


def test_an_unchanged_directory_is_not_listed(root, monkeypatch):
    scanned = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(os.fspath(path)) or real(path))
    with open_directory(root, min_subdir_num=0) as directory:
        assert contents(directory) == FILES
    assert set(scanned) == {str(root)}
    find_on_disk(root, "5.bin").unlink()
    del scanned[:]
    open_directory(root, min_subdir_num=0).close()
    assert len(set(scanned)) == 2


def test_members_of_unchanged_files_are_copied_from_the_old_pack(root):
    manager = TextInHex()
    texts = root.parent / "texts"
    with open_directory(texts, manager, min_subdir_num=1, load_to_memory=False) as directory:
        for name in "abc":
            directory.save(name, name * 3)
        directory.save_state()
        assert len(manager.loaded) == 3
        time.sleep(SETTLED_NS / 1e9)
        directory.save_state()
        directory.save("d", "ddd")
        directory.save_state()
    assert [os.path.basename(path) for path in manager.loaded[3:]] == ["d"]


def test_a_copied_directory_is_read_again(root):
    """A copy of all files with new times: no pack is trusted, and nothing is wrong."""
    copy = root.parent / "copy"
    for path in sorted(root.rglob("*")):
        target = copy / path.relative_to(root)
        if path.is_dir():
            target.mkdir(parents=True)
    for path in root.rglob("*.*"):
        if path.is_file():
            (copy / path.relative_to(root)).write_bytes(path.read_bytes())
    with open_directory(copy) as directory:
        assert contents(directory) == FILES
        directory.save_state()
        assert contents(directory) == FILES


def test_a_subdirectory_that_went_takes_its_files_along(root, caplog):
    folder = find_on_disk(root, "5.bin").parent
    gone = {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with open_directory(root, min_subdir_num=3) as directory:
        assert contents(directory) == {name: content for name, content in FILES.items() if name not in gone}
        directory.save_state()
    assert "1 packs are ignored, because there is no subdirectory" in caplog.text
    assert (root / f"{folder.name}.pack").exists()
    open_directory(root, min_subdir_num=4).close()
    assert (root / "subdir_4").is_dir()
    assert not folder.exists()  # a new subdirectory has another name, so that the pack is not taken for out of date


def test_changes_of_another_writer_are_taken_over_before_the_first_write(root):
    with open_directory(root) as late:
        with open_directory(root) as early:
            early.save("early", b"1")
            early.remove("5.bin")
            early.save("6.bin", b"other")
            early.save_state()
        late.save("late", b"2")
        expected = {name: content for name, content in FILES.items() if name != "5.bin"}
        expected |= {"early": b"1", "late": b"2", "6.bin": b"other"}
        assert contents(late) == expected
        late.save_state()
    with open_directory(root) as directory:
        assert contents(directory) == expected


def test_links_to_files_and_folders_are_followed(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far").write_bytes(b"far")
    (tmp_path / "target").write_bytes(b"target")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "subdir_0" / "link").symlink_to("../../target")
    (root / "subdir_0" / "dead").symlink_to("nowhere")
    (root / "subdir_0" / "loop").symlink_to("loop")
    (root / "loop").symlink_to("loop")
    with open_directory(root) as directory:
        expected = FILES | {"far": b"far", "link": b"target"}
        assert contents(directory) == expected
        directory.save_state()
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == expected
    assert (root / "subdir_0" / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"target"
