"""``streamloader pack`` and ``streamloader inspect`` of packs: exit status, output, and what lies on the disk."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

import streamloader as sl
from streamloader.archive.archive import Archive
from streamloader.cli.main import main
from streamloader.containers.pack.mapped import MappedPack

OLD_NS = 1_700_000_000_000_000_000
FILES = {
    "subdir_2/a.txt": b"a" * 1000,
    "subdir_2/\u00fc": b"",
    "subdir_10/b.txt": b"b",
    "subdir_10/c.txt": b"cc",
}


def set_time(path, modified=OLD_NS):
    os.utime(path, ns=(modified, modified))


def write(path, content, modified=OLD_NS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    set_time(path, modified)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for name, content in FILES.items():
        write(root / name, content)
    (root / "empty").mkdir()
    write(root / "loose.txt", b"in the root")
    for name in ("subdir_2", "subdir_10", "empty"):
        set_time(root / name)  # long ago, so that a time tells that nothing has changed since
    return root


def run(capsys, *arguments, status=0):
    """Run a command, and return its output: that of errors if it fails."""
    assert main([str(argument) for argument in arguments]) == status
    out, errors = capsys.readouterr()
    if status:
        assert out == ""
        assert len(errors.splitlines()) == 1
        return errors
    assert errors == ""
    return out


def read_pack(path):
    with MappedPack.open(path) as pack:
        return [(name, bytes(pack.read(row))) for row, name in enumerate(pack.index.names())]


def states(capsys, root):
    report = json.loads(run(capsys, "inspect", root, "--json"))
    return {each["name"]: (each["state"], each["note"]) for each in report["listed"]}


# --- packs of subdirectories -----------------------------------------------------------------------------------------


def test_each_subdirectory_gets_a_pack(root, capsys):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert re.fullmatch(
        r"4 files \(1\.0 kB\) in 2 packs \(1\.5 kB\): 2 written, 0 up to date\n", run(capsys, "pack", root)
    )
    assert read_pack(root / "subdir_2.pack") == [("a.txt", b"a" * 1000), ("\u00fc", b"")]
    assert read_pack(root / "subdir_10.pack") == [("b.txt", b"b"), ("c.txt", b"cc")]
    assert not (root / "empty.pack").exists()
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["empty", "subdir_10", "subdir_2"]
    assert {path: path.read_bytes() for path in before} == before
    assert all(
        state[0] == ("empty" if name == "empty" else "up to date") for name, state in states(capsys, root).items()
    )


def test_the_packs_are_those_of_a_directory(root, capsys):
    run(capsys, "pack", root)
    stamps = {name: (root / name).stat().st_mtime_ns for name in ("subdir_2.pack", "subdir_10.pack")}
    with sl.VirtualDirectory(root, sl.BytesDataManager(), verbose=False, min_subdir_num=0) as directory:
        assert {name: bytes(directory.read(name)) for name in directory.get_list_of_files()} == {
            name.partition("/")[2]: content for name, content in FILES.items()
        }
        directory.save_state()
    assert {name: (root / name).stat().st_mtime_ns for name in stamps} == stamps


def test_only_packs_that_are_out_of_date_are_written(root, capsys):
    run(capsys, "pack", root)
    inodes = {name: (root / name).stat().st_ino for name in ("subdir_2.pack", "subdir_10.pack")}
    assert run(capsys, "pack", root).endswith(": 0 written, 2 up to date\n")
    write(root / "subdir_2" / "new.txt", b"new")
    set_time(root / "subdir_2", OLD_NS + 10**9)
    assert states(capsys, root)["subdir_2"] == ("out of date", "1 new")
    assert run(capsys, "pack", root).endswith(": 1 written, 1 up to date\n")
    assert ("new.txt", b"new") in read_pack(root / "subdir_2.pack")
    (root / "subdir_2" / "a.txt").unlink()
    set_time(root / "subdir_2", OLD_NS + 2 * 10**9)
    assert states(capsys, root)["subdir_2"] == ("out of date", "1 removed")
    assert run(capsys, "pack", root).endswith(": 1 written, 1 up to date\n")
    assert [name for name, _ in read_pack(root / "subdir_2.pack")] == ["new.txt", "\u00fc"]
    assert (root / "subdir_10.pack").stat().st_ino == inodes["subdir_10.pack"]


@pytest.mark.parametrize(("content", "modified"), [(b"longer", OLD_NS), (b"x", OLD_NS + 5)])
def test_files_that_were_overwritten_in_place_are_packed_again(content, modified, root, capsys):
    run(capsys, "pack", root)
    write(root / "subdir_10" / "b.txt", content, modified)  # the time of the subdirectory stays
    assert states(capsys, root) == {
        "empty": ("empty", ""), "subdir_2": ("up to date", ""), "subdir_10": ("out of date", "1 changed"),
    }  # fmt: skip
    assert run(capsys, "pack", root).endswith(": 1 written, 1 up to date\n")
    assert read_pack(root / "subdir_10.pack") == [("b.txt", content), ("c.txt", b"cc")]
    assert states(capsys, root)["subdir_10"] == ("up to date", "")


def test_a_damaged_pack_is_written_again(root, capsys):
    run(capsys, "pack", root)
    (root / "subdir_2.pack").write_bytes(b"damaged")
    state, note = states(capsys, root)["subdir_2"]
    assert (state, "subdir_2.pack" in note) == ("damaged", True)
    assert run(capsys, "pack", root).endswith(": 1 written, 1 up to date\n")
    assert len(read_pack(root / "subdir_2.pack")) == 2


def test_equal_names_are_no_obstacle(root, capsys):
    write(root / "subdir_10" / "a.txt", b"another")
    assert run(capsys, "pack", root).startswith("5 files")
    assert ("a.txt", b"another") in read_pack(root / "subdir_10.pack")
    assert ("a.txt", b"a" * 1000) in read_pack(root / "subdir_2.pack")


@pytest.mark.parametrize("name", ["zstd", "zlib"])
def test_packs_are_compressed(name, root, capsys):
    run(capsys, "pack", root, "--compress", name, "--quiet")
    assert (root / "subdir_2.pack").stat().st_size < 500
    report = json.loads(run(capsys, "inspect", root, "--json"))
    assert report["compression"] == {"stored": 3, name: 1}
    assert (report["members"], report["bytes"]) == (4, 1003)
    assert report["stored_bytes"] < 100
    with sl.VirtualDirectory(root, sl.BytesDataManager(), verbose=False, min_subdir_num=0) as directory:
        assert directory.load("a.txt") == b"a" * 1000


class UpperManager:
    """A data manager whose packs are no copies of files."""

    def save(self, path, value):
        raise NotImplementedError

    def load(self, path):
        with open(path, encoding="utf-8") as file:
            return file.read()

    def serialize(self, value):
        return value.upper().encode()

    def deserialize(self, data):
        return data.decode()


def test_packs_of_a_data_manager_of_the_user_are_left_alone(root, capsys):
    with sl.VirtualDirectory(root, UpperManager(), verbose=False, min_subdir_num=0) as directory:
        directory.save_state()
    before = (root / "subdir_10.pack").read_bytes()
    errors = run(capsys, "pack", root, status=2)
    assert "was made with the data manager" in errors
    assert "UpperManager" in errors
    assert (root / "subdir_10.pack").read_bytes() == before
    assert states(capsys, root)["subdir_10"] == ("up to date", "")


def test_another_writer_is_waited_for_and_named(root, capsys, monkeypatch):
    monkeypatch.setitem(sl.VirtualDirectory.__init__.__kwdefaults__, "lock_timeout", 0.0)
    with sl.VirtualDirectory(root, sl.BytesDataManager(), verbose=False, min_subdir_num=0) as directory:
        directory.save("new.txt", b"new")
        assert f"process {os.getpid()}" in run(capsys, "pack", root, status=2)


def test_what_cannot_be_packed(root, tmp_path, capsys):
    assert "no folder" in run(capsys, "pack", tmp_path / "none", status=2)
    assert "no folder" in run(capsys, "pack", root / "loose.txt", status=2)
    assert "no subdirectories" in run(capsys, "pack", root / "subdir_2", status=2)
    assert "ends with .pack" in run(capsys, "pack", root, "--output", tmp_path / "x.tar", status=2)
    with pytest.raises(SystemExit) as refused:
        main(["pack", str(root), "--compress", "lzma"])
    assert refused.value.code == 2
    capsys.readouterr()
    assert sorted(path.name for path in root.iterdir()) == ["empty", "loose.txt", "subdir_10", "subdir_2"]


# --- one pack --------------------------------------------------------------------------------------------------------


def test_one_pack_of_a_whole_folder(root, tmp_path, capsys):
    target = tmp_path / "all.pack"
    out = run(capsys, "pack", root, "--output", target)
    assert re.fullmatch(rf"5 files \(1\.0 kB\) in {re.escape(str(target))} \(1\.\d kB\)\n", out)
    assert dict(read_pack(target)) == FILES | {"loose.txt": b"in the root"}
    assert run(capsys, "pack", root / "subdir_10", "--output", target, "--compress", "zlib").startswith("2 files (3 B)")
    assert read_pack(target) == [("b.txt", b"b"), ("c.txt", b"cc")]


def test_a_bar_is_shown_on_a_terminal(root, tmp_path):
    with open(root / "large", "wb") as file:
        file.truncate(100_000_000)
    program = (
        "import sys; from streamloader.common import count_display; count_display._SHOWN_AFTER_S = 0\n"
        "count_display._MIN_REMAINING_S = count_display._REFRESH_INTERVAL_S = 0\n"
        "from streamloader.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    for quiet in ([], ["--quiet"]):
        parent, child = pty.openpty()
        command = [sys.executable, "-c", program, "pack", str(root), "--output", str(tmp_path / "x.pack"), *quiet]
        done = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=child, env=os.environ | {"TERM": "xterm"})
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 1 << 16):
                shown += piece
        except OSError:  # the end, on Linux
            pass
        os.close(parent)
        assert done.wait(60) == 0
        assert (b"packing megabytes" in shown) is not bool(quiet)


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_a_directory_is_described_for_people(root, capsys):
    run(capsys, "pack", root)
    (root / "subdir_2.pack").unlink()
    (root / "gone.pack").write_bytes((root / "subdir_10.pack").read_bytes())
    (root / "old.vdd").write_bytes(b"")
    text = run(capsys, "inspect", root)
    assert re.search(rf"^directory +{re.escape(str(root))}$", text, re.MULTILINE)
    assert re.search(r"^subdirectories +3$", text, re.MULTILINE)
    assert re.search(r"^packs +2$", text, re.MULTILINE)
    assert re.search(r"^members +4$", text, re.MULTILINE)
    assert re.search(r"^compression +stored$", text, re.MULTILINE)
    assert re.search(r"^state +1 empty, 1 no subdirectory, 1 no pack, 1 up to date$", text, re.MULTILINE)
    assert re.search(r"^vdd files +1, which are not used: see streamloader convert-vdd$", text, re.MULTILINE)
    assert re.search(r"^subdir_10 +2 +3 B +3 B +stored +up to date$", text, re.MULTILINE)
    assert text.index("subdir_2 ") < text.index("subdir_10 ")
    assert "\x1b" not in text
    assert "and 3 more: raise --limit" in run(capsys, "inspect", root, "--limit", 1)


def test_a_pack_is_described(root, capsys):
    run(capsys, "pack", root, "--compress", "zstd")
    path = root / "subdir_2.pack"
    report = json.loads(run(capsys, "inspect", path, "--json"))
    assert report == {
        "pack": str(path),
        "members": 2,
        "bytes": 1000,
        "stored_bytes": report["listed"][0]["stored_bytes"],
        "pack_bytes": path.stat().st_size,
        "compression": {"stored": 1, "zstd": 1},
        "metadata": {"directory_modified": OLD_NS, "read_at": report["metadata"]["read_at"]},
        "listed": [
            {
                "name": "a.txt",
                "bytes": 1000,
                "stored_bytes": report["listed"][0]["stored_bytes"],
                "compression": "zstd",
                "modified": OLD_NS / 1e9,
            },
            {"name": "\u00fc", "bytes": 0, "stored_bytes": 0, "compression": "stored", "modified": OLD_NS / 1e9},
        ],
    }
    text = run(capsys, "inspect", f"file://{path}", "--limit", 1)
    assert re.search(r"^compression +stored \(1\), zstd \(1\)$", text, re.MULTILINE)
    assert re.search(r"^a\.txt +1\.0 kB +\d\d B +zstd +2023-11-1\d \d\d:\d\d:\d\d$", text, re.MULTILINE)
    assert "and 1 more: raise --limit" in text


def test_names_cannot_forge_lines(tmp_path, capsys):
    write(tmp_path / "data" / "a\n\x1b[31m.txt", b"")
    run(capsys, "pack", tmp_path / "data", "--output", tmp_path / "x.pack")
    text = run(capsys, "inspect", tmp_path / "x.pack")
    assert r"a\n\x1b[31m.txt" in text
    assert "\x1b" not in text


def test_archives_are_not_taken_for_packs(root, tmp_path, capsys):
    with Archive.create(tmp_path / "archive"):
        pass
    (tmp_path / "archive" / "x.pack").write_bytes(b"")
    assert "videos" in json.loads(run(capsys, "inspect", tmp_path / "archive", "--json"))
    run(capsys, "pack", root)
    assert "is no archive" in run(capsys, "inspect", root, "film", status=2)
    assert "is no archive" in run(capsys, "inspect", root / "subdir_2.pack", "--where", "{}", status=2)
    (root / "subdir_2.pack").write_bytes(b"damaged")
    assert "subdir_2.pack" in run(capsys, "inspect", root / "subdir_2.pack", status=2)
