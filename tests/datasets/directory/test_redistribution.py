"""Redistribution: balanced, seeded, journalled, and safe against being killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from datasets.directory.directory_data import (
    TextInHex,
    contents,
    fill,
    find_on_disk,
    on_disk,
    open_directory,
    pack_times,
)

import streamloader as sl
from streamloader.datasets.directory.journal import JOURNAL_NAME, FileMove, plan_moves

PROGRAM = Path(__file__).parents[2] / "redistribution_program.py"
FILES = {f"{number}.bin": bytes([number]) * number for number in range(30)}
FOLDERS = [f"subdir_{number}" for number in range(4)]


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "root", FILES)
    return tmp_path / "root"


def redistribute(root, **options):
    with open_directory(root, **options) as directory:
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == FILES
        assert {name: data for name, _, data in directory} in (FILES, dict.fromkeys(FILES))


def write_journal(root, moves, **others):
    (root / JOURNAL_NAME).write_text(json.dumps({"version": 1, "moves": moves} | others))


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("seed", "count"), [(1, 8), pytest.param(2, 200, marks=pytest.mark.slow, id="200")], ids=["8", "200"]
)
def test_a_killed_process_loses_nothing(tmp_path, seed, count):
    program = [sys.executable, str(PROGRAM), str(tmp_path), str(seed), str(count)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rounds = [line.split() for line in done.stdout.splitlines()]
    assert len(rounds) == count
    assert Counter(was_killed for was_killed, *_ in rounds) == {"True": count}
    assert (
        sum(has_journal == "True" for _, has_journal, *_ in rounds) >= count * 3 // 4
    )  # the rest dies before or after the moves
    assert any(was_killed_again == "True" for *_, was_killed_again, _ in rounds)


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_files_are_balanced_and_packs_follow(root, load_to_memory):
    before, stamps = on_disk(root), pack_times(root)
    redistribute(root, load_to_memory=load_to_memory)
    after = on_disk(root)
    assert sorted(Counter(folder for folder, _ in after).values()) == [7, 7, 8, 8]
    assert after != before
    assert not (root / JOURNAL_NAME).exists()
    times = pack_times(root)
    assert times.keys() == stamps.keys()
    with open_directory(root) as directory:
        assert contents(directory) == FILES
        directory.save_state()
    assert pack_times(root) == times


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_without_packs_none_are_written(tmp_path, load_to_memory):
    with open_directory(tmp_path, load_to_memory=load_to_memory) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == FILES
    redistribute(tmp_path, load_to_memory=load_to_memory)
    assert pack_times(tmp_path) == {}


def test_a_seed_decides_the_distribution(tmp_path):
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fill(tmp_path / name, FILES, seed=0)
        redistribute(tmp_path / name, seed=seed)
        found.append(on_disk(tmp_path / name))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_members_of_moved_files_are_copied_from_the_old_packs(tmp_path):
    manager = TextInHex()
    with open_directory(tmp_path, manager, load_to_memory=False) as directory:
        for number in range(20):
            directory.save(f"{number}", f"text {number}")
        directory.save_state()
    with open_directory(tmp_path, manager, load_to_memory=False) as directory:
        directory.redistribute_all_files(are_you_sure=True)
        assert len(manager.loaded) == 20  # all from before: without their times, they would have been loaded again
        assert {name: directory.load(name) for name in directory.get_list_of_files()} == {
            f"{number}": f"text {number}" for number in range(20)
        }


def test_plans_are_balanced():
    files = [(f"{number}", FOLDERS[0]) for number in range(10)]
    moves = plan_moves(files, FOLDERS, seed=5)
    assert moves == plan_moves(files, FOLDERS, seed=5)
    assert all(move.source == FOLDERS[0] != move.target for move in moves)
    counts = Counter(move.target for move in moves)
    assert sorted([10 - len(moves), *counts.values()]) == [2, 2, 3, 3]
    assert plan_moves([], FOLDERS, None) == []


@pytest.mark.parametrize("has_packs", [True, False])
def test_the_next_instance_makes_the_missing_moves(tmp_path, has_packs):
    root = tmp_path / "root"
    with open_directory(root) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        if has_packs:
            directory.save_state()
    moves = [
        FileMove(name, find_on_disk(root, name).parent.name, FOLDERS[index % 4]) for index, name in enumerate(FILES)
    ]
    moves = [move for move in moves if move.source != move.target]
    write_journal(root, moves)
    first, *_ = moves
    (root / first.source / first.filename).rename(root / first.target / first.filename)  # the process made one move
    with open_directory(root) as directory:
        assert contents(directory) == FILES
        assert {name: path for name, path, _ in directory} == {
            name: str(root / FOLDERS[index % 4] / name) for index, name in enumerate(FILES)
        }
    assert os.listdir(root).count(JOURNAL_NAME) == 0


def test_moves_never_replace_a_file(root):
    """Another program may have written or deleted files since the journal was written."""
    source = find_on_disk(root, "5.bin").parent.name
    target, missing, _ = (folder for folder in FOLDERS if folder != source)
    (root / target / "5.bin").write_bytes(b"another")
    write_journal(
        root,
        [["5.bin", source, target], ["6.bin", "gone", missing], ["nothing", source, target], ["7.bin", source, "x"]],
    )
    with pytest.raises(sl.DuplicateName):
        open_directory(root)
    assert (root / source / "5.bin").read_bytes() == FILES["5.bin"]
    assert (root / target / "5.bin").read_bytes() == b"another"
    assert not (root / JOURNAL_NAME).exists()
    (root / target / "5.bin").unlink()
    with open_directory(root) as directory:
        assert contents(directory) == FILES


DAMAGED_JOURNALS = [
    b"",
    b"{",
    b"[]",
    b'{"version": 2, "moves": []}',
    b'{"version": 1, "moves": [["5.bin", "subdir_0"]]}',
    b'{"version": 1, "moves": [["5.bin", "..", "subdir_0"]]}',
    b'{"version": 1, "moves": [["secret", "subdir_0", "../../elsewhere"]]}',
    b'{"version": 1, "moves": [["../../secret", "subdir_0", "subdir_1"]]}',
    b'{"version": 1, "moves": [[".lock", "subdir_0", "subdir_1"], [1, 2, 3]]}',
    b"[" * 100_000,
]


def test_a_damaged_journal_moves_nothing(root, caplog):
    (root.parent / "secret").write_bytes(b"secret")
    before = on_disk(root)
    for journal in DAMAGED_JOURNALS:
        (root / JOURNAL_NAME).write_bytes(journal)
        caplog.clear()
        with open_directory(root) as directory:
            assert contents(directory) == FILES
        assert f"{root}: the journal .redistribute.json is damaged. All files stay where they are" in caplog.text
        assert on_disk(root) == before
        assert (root.parent / "secret").read_bytes() == b"secret"
        assert not (root / JOURNAL_NAME).exists()


def test_a_move_that_fails_is_one_error_and_loses_nothing(root, monkeypatch):
    with open_directory(root) as directory:
        calls = []

        def fail(old, new):
            if len(calls) == 5:
                raise OSError(5, "Input/output error")
            calls.append(old)
            return real(old, new)

        real = os.rename
        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(sl.StoreError, match="cannot be moved: Input/output error"):
            directory.redistribute_all_files(are_you_sure=True)
        monkeypatch.setattr(os, "rename", real)
        assert contents(directory) == FILES
        assert (root / JOURNAL_NAME).exists()
        directory.save("5.bin", b"new")
    with open_directory(root) as directory:
        assert contents(directory) == FILES | {"5.bin": b"new"}
    assert sorted(Counter(folder for folder, _ in on_disk(root)).values()) == [7, 7, 8, 8]


def test_subdirectories_on_another_file_system_keep_their_files(root, disk):
    (root / "other").symlink_to(disk)
    (disk / "far").write_bytes(b"far")
    with open_directory(root) as directory:
        directory.redistribute_all_files(are_you_sure=True)
        assert contents(directory) == FILES | {"far": b"far"}
    assert [path.name for path in disk.iterdir()] == ["far"]
