"""One pack of all files below a folder."""

from __future__ import annotations

import os
import stat
import time
import tracemalloc
import zlib

import pytest

import streamloader as sl
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory import pack_folder as module
from streamloader.datasets.directory.pack_folder import pack_folder

OLD_NS = 1_700_000_000_123_456_789


def write(path, content, modified=OLD_NS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(modified, modified))


def read_pack(path):
    with MappedPack.open(path) as pack:
        rows = zip(pack.index.names(), pack.index.modified.tolist(), strict=True)
        return [(name, bytes(pack.read(row)), modified) for row, (name, modified) in enumerate(rows)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    for name, content in (("b.txt", b"b"), ("a/c/\u00fc.png", b"\x89PNG"), ("a/b", b""), ("a.txt", b"a" * 5000)):
        write(folder / name, content)
    write(folder / ".hidden", b"no")
    write(folder / ".git" / "config", b"no")
    return folder


EXPECTED = [("a.txt", b"a" * 5000), ("a/b", b""), ("a/c/\u00fc.png", b"\x89PNG"), ("b.txt", b"b")]


def test_files_are_members_in_the_order_of_their_names(folder, tmp_path):
    packed = pack_folder(str(folder), str(tmp_path / "x.pack"))
    assert read_pack(tmp_path / "x.pack") == [(name, content, OLD_NS) for name, content in EXPECTED]
    assert (packed.members, packed.bytes) == (4, 5005)
    assert packed.pack_bytes == (tmp_path / "x.pack").stat().st_size
    again = pack_folder(str(folder) + "/", str(tmp_path / "y.pack"))
    assert again.members == 4
    assert (tmp_path / "y.pack").read_bytes() == (tmp_path / "x.pack").read_bytes()


@pytest.mark.parametrize("compressor", [sl.ZstdCompressor(), sl.ZlibCompressor()], ids=repr)
def test_members_can_be_compressed(compressor, folder, tmp_path):
    packed = pack_folder(str(folder), str(tmp_path / "x.pack"), compressor=compressor)
    assert [member[:2] for member in read_pack(tmp_path / "x.pack")] == EXPECTED
    assert packed.pack_bytes < 1000
    assert packed.bytes == 5005


def test_the_pack_may_lie_in_the_folder(folder):
    target = folder / "all.pack"
    for _ in range(2):
        assert pack_folder(str(folder), str(target)).members == 4
        assert [member[:2] for member in read_pack(target)] == EXPECTED


def test_packs_of_subfolders_are_left_out_and_other_files_with_their_ending_are_not(folder, tmp_path):
    write(folder / "a.pack", b"copy of a/")
    write(folder / "git.pack", b"something else")
    pack_folder(str(folder), str(tmp_path / "x.pack"))
    assert [name for name, _, _ in read_pack(tmp_path / "x.pack")] == [
        "a.txt", "a/b", "a/c/\u00fc.png", "b.txt", "git.pack",
    ]  # fmt: skip


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    write(tmp_path / "elsewhere" / "d", b"d")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "file").symlink_to(tmp_path / "elsewhere" / "d")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "none")
    os.mkfifo(folder / "pipe")
    pack_folder(str(folder), str(tmp_path / "x.pack"))
    assert [member[:2] for member in read_pack(tmp_path / "x.pack")] == [
        *EXPECTED, ("file", b"d"), ("link/d", b"d"),
    ]  # fmt: skip


def test_large_files_are_copied_in_pieces(tmp_path):
    folder = tmp_path / "data"
    write(folder / "small", b"s")
    with open(folder / "large", "wb") as file:
        file.truncate(64 << 20)
    os.utime(folder / "large", ns=(OLD_NS, OLD_NS))
    shown = []
    tracemalloc.start()
    pack_folder(str(folder), str(tmp_path / "x.pack"), show=lambda done, total: shown.append((done, total)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 24 << 20
    total = (64 << 20) + 1
    assert shown == [*(((number + 1) * (4 << 20), total) for number in range(16)), (total, total)]
    (large, content, modified), _ = read_pack(tmp_path / "x.pack")
    assert (large, modified, zlib.crc32(content)) == ("large", OLD_NS, zlib.crc32(bytes(64 << 20)))


def test_large_files_are_not_compressed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_COMPRESSED_BYTES", 4999)
    packed = pack_folder(str(folder), str(tmp_path / "x.pack"), compressor=sl.ZstdCompressor())
    assert packed.pack_bytes > 5000
    assert [member[:2] for member in read_pack(tmp_path / "x.pack")] == EXPECTED


def test_times_that_a_change_could_repeat_are_unknown(folder, tmp_path):
    write(folder / "b.txt", b"b", modified=time.time_ns() + 10**12)
    pack_folder(str(folder), str(tmp_path / "x.pack"))
    assert [modified for _, _, modified in read_pack(tmp_path / "x.pack")] == [OLD_NS, OLD_NS, OLD_NS, 0]


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("changed", ["size", "time"])
def test_a_file_that_changes_leaves_the_old_pack(name, changed, folder, tmp_path):
    write(folder / "small", b"s" * 100)
    with open(folder / "large", "wb") as file:
        file.truncate(9 << 20)
    target = tmp_path / "x.pack"
    target.write_bytes(b"old")

    def change(done, total):
        if changed == "size":
            with open(folder / name, "ab") as file:
                file.write(b"more")
        os.utime(folder / name, ns=(OLD_NS + done, OLD_NS + done))

    with pytest.raises(sl.ObjectChanged, match=r"(small|large) has changed while it was packed"):
        pack_folder(str(folder), str(target), show=change)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "x.pack"]


def test_what_cannot_be_packed(folder, tmp_path):
    target = str(tmp_path / "x.pack")
    with pytest.raises(sl.NotFound, match="no folder"):
        pack_folder(str(tmp_path / "none"), target)
    with pytest.raises(sl.NotFound, match=r"x\.pack cannot be written"):
        pack_folder(str(folder), str(tmp_path / "none" / "x.pack"))
    (tmp_path / "taken.pack").mkdir()
    with pytest.raises(sl.StoreError, match=r"taken\.pack cannot be written"):
        pack_folder(str(folder), str(tmp_path / "taken.pack"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "taken.pack"]
    if os.geteuid():
        (folder / "b.txt").chmod(0)
        with pytest.raises(sl.AccessDenied, match=r"b\.txt cannot be read"):
            pack_folder(str(folder), target)


def test_an_empty_folder_is_an_empty_pack(tmp_path):
    (tmp_path / "data").mkdir()
    assert pack_folder(str(tmp_path / "data"), str(tmp_path / "x.pack")).members == 0
    assert read_pack(tmp_path / "x.pack") == []
    assert not stat.S_IMODE((tmp_path / "x.pack").stat().st_mode) & 0o111
