"""Addresses that go on into a container: how they are split, and what datasets read from them."""

from __future__ import annotations

import asyncio
import io
import tarfile
import zipfile

import pytest
from made_clips import make_clip
from optional_torch import needs_torch

import streamloader as sl
from streamloader.containers.pack.build import write_pack
from streamloader.containers.pack.container import PackContainer
from streamloader.containers.tar.container import TarContainer
from streamloader.containers.zip.container import ZipContainer
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.container_addresses import CONTAINER_SUFFIXES, is_container_root, split_container_address
from streamloader.stores.registry import is_local_file, split_address

TEXTS = {"a.txt": b"alpha", "b/c.txt": b"beta and more", "b/d.md": b"delta", ".hidden.txt": b"no"}


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_pack_file(path, members):
    write_pack(path, [(name, data, 0) for name, data in sorted(members.items())])
    return path


def write_container(path, members):
    if path.suffix == ".pack":
        write_pack_file(path, members)
    elif path.suffix == ".zip":
        write_zip(path, members)
    else:
        write_tar(path, members, "w:gz" if path.suffix == ".gz" else "w")


def read(address):
    async def read_object():
        root, path = split_address(str(address))
        async with sl.open_store(root) as store:
            return await store.read(path)

    return asyncio.run(read_object())


def test_the_formats_serve_all_endings_of_addresses():
    assert sorted(CONTAINER_SUFFIXES) == sorted(
        (*PackContainer.suffixes, *TarContainer.suffixes, *ZipContainer.suffixes)
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://bucket/set.zip!/a/b.png", ("s3://bucket/set.zip", "a/b.png")),
        ("set.tar!", ("set.tar", "")),
        ("set.TAR.GZ!/", ("set.TAR.GZ", "")),
        ("https://h/x.tgz?sig=a/b!/c", ("https://h/x.tgz?sig=a/b", "c")),
        ("a.tar!/b.zip!/c.png", ("a.tar!/b.zip", "c.png")),
        ("root/subdir_{0..9}.pack!/*.png", ("root/subdir_{0..9}.pack", "*.png")),
        ("a.tar!/b!/c.png", ("a.tar", "b!/c.png")),
        ("shards/{0..3}.tar.zst!/**/*.jpg", ("shards/{0..3}.tar.zst", "**/*.jpg")),
        ("a.tar", None),
        ("a.tar!x", None),
        ("photo!/a.png", None),
        ("a.tar/b!/c", None),
        (".tar!/a", None),
    ],
)
def test_an_address_is_split_at_its_last_container(address, expected):
    assert split_container_address(address) == expected
    assert is_local_file(address) == (expected is None and "://" not in address)
    if expected is not None and not expected[1]:
        assert is_container_root(address.rstrip("/"))


def test_a_local_container_has_an_absolute_address(tmp_path, monkeypatch):
    write_tar(tmp_path / "100% a.tar", TEXTS)
    monkeypatch.chdir(tmp_path)
    root = f"{tmp_path}/100% a.tar!"
    assert split_address("100% a.tar!/b/c.txt") == (root, "b/c.txt")
    assert split_address(f"file://{tmp_path}/100%25%20a.tar!/b/c%20.txt") == (root, "b/c%20.txt")
    assert read("100% a.tar!/b/c.txt") == TEXTS["b/c.txt"]


@pytest.mark.parametrize("ending", [".tar", ".zip", ".tar.gz", ".pack"])
def test_patterns_and_directories_are_expanded_in_containers(tmp_path, ending):
    for number in range(2):
        path = tmp_path / f"s{number}{ending}"
        write_container(path, TEXTS)

    def expand(address):
        return [file.address.removeprefix(f"{tmp_path}/") for file in expand_addresses(f"{tmp_path}/{address}")]

    s0, s1 = f"s0{ending}!/", f"s1{ending}!/"
    assert expand(f"s0{ending}!/*.txt") == [f"{s0}a.txt"]
    assert expand(f"s0{ending}!") == [f"{s0}a.txt", f"{s0}b/c.txt", f"{s0}b/d.md"]
    assert expand(f"s0{ending}!/b") == [f"{s0}b/c.txt", f"{s0}b/d.md"]
    assert expand(f"s*{ending}!/**/*.txt") == [f"{s}{name}" for s in (s0, s1) for name in ("a.txt", "b/c.txt")]
    assert expand(f"s{{1,0}}{ending}!/{{b/d.md,a.txt}}") == [
        f"{s}{name}" for s in (s1, s0) for name in ("b/d.md", "a.txt")
    ]
    with pytest.raises(sl.StreamNotFound, match="nothing"):
        expand(f"s0{ending}!/*.png")
    with pytest.raises(sl.StreamNotFound, match="not in the container"):
        expand(f"s0{ending}!/nowhere.txt")
    with pytest.raises(sl.StreamNotFound):
        expand(f"missing-*{ending}!/a.txt")


def test_a_container_in_a_container_is_read(tmp_path):
    write_zip(tmp_path / "inner.zip", TEXTS)
    write_tar(tmp_path / "outer.tar", {"deep/inner.zip": (tmp_path / "inner.zip").read_bytes()})
    assert read(tmp_path / "outer.tar!/deep/inner.zip!/b/c.txt") == TEXTS["b/c.txt"]
    assert [file.address for file in expand_addresses(f"{tmp_path}/outer.tar!/**/*.zip!/*.txt")] == [
        f"{tmp_path}/outer.tar!/deep/inner.zip!/a.txt"
    ]
    write_pack_file(tmp_path / "outer.pack", {"a/inner.zip": (tmp_path / "inner.zip").read_bytes()})
    assert read(tmp_path / "outer.pack!/a/inner.zip!/b/c.txt") == TEXTS["b/c.txt"]


def test_texts_of_a_container_are_the_texts(tmp_path):
    texts = {f"{name}.txt": f"{name}_{'x' * number}".encode() for number, name in enumerate("abcdef")}
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, data in texts.items():
        (folder / name).write_bytes(data)
    write_zip(tmp_path / "texts.zip", texts)
    write_tar(tmp_path / "texts.tar", texts)
    write_pack_file(tmp_path / "texts.pack", texts)

    def play(address, num_workers=0):
        with sl.MultiStreamer(sl.TextStreams(address), 2, 4, num_workers=num_workers) as loader:
            return [batch.numpy()["data"].tobytes() for batch in loader]

    expected = play(str(folder))
    assert play(f"{tmp_path}/texts.zip!/*.txt") == expected
    assert play(f"{tmp_path}/texts.tar!", num_workers=1) == expected
    assert play(f"{tmp_path}/texts.pack!/*.txt", num_workers=1) == expected


@pytest.mark.parametrize("ending", [".tar", ".zip", ".tar.gz", ".pack"])
def test_videos_of_a_container_are_the_videos(tmp_path, ending):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        make_clip(folder / f"{number}.mp4", frames=9 + number)
    videos = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    path = tmp_path / f"videos{ending}"
    write_container(path, videos)

    def play(address):
        with sl.MultiStreamer(sl.VideoStreams(address), 2, 4) as loader:
            return [(batch.numpy()["data"].tobytes(), batch.numpy()["reset"].tobytes()) for batch in loader]

    assert play(f"{path}!/*.mp4") == play(str(folder))


@needs_torch
def test_videos_of_a_container_get_into_an_archive(tmp_path):
    make_clip(tmp_path / "plain.mp4", frames=12)
    write_tar(tmp_path / "videos.tar", {"v/packed.mp4": (tmp_path / "plain.mp4").read_bytes()})
    with sl.Archive.create(str(tmp_path / "archive")) as archive:
        report = archive.add([f"{tmp_path}/videos.tar!/**/*.mp4", str(tmp_path / "plain.mp4")], jobs=0)
        assert [video.name for video in report.added] == ["v/packed.mp4"]
        assert len(report.existing) == 1  # equal content
        assert report.added[0].source == f"{tmp_path}/videos.tar!/v/packed.mp4"
        assert len(archive) == 12
        assert archive.add([f"{tmp_path}/videos.tar!/v/packed.mp4"], jobs=0).added == ()
