"""find_streams: every video, folder of images and single image of a mixed directory is a stream."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from image_data import encode, encode_animation, make_pixels, write_folder
from made_clips import make_clip

import streamloader as sl
from streamloader.errors import ConfigError, FrameSizeError, StreamNotFound
from streamloader.testing import describe_streams, read_stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A mixed directory."""
    folder = tmp_path_factory.mktemp("mixed")
    make_clip(folder / "a.mp4", frames=7)
    (folder / "b.png").write_bytes(encode(make_pixels(1)))
    (folder / "c.jpg").write_bytes(encode(make_pixels(2), "JPEG"))
    write_folder(folder / "frames" / "left", 4)
    write_folder(folder / "frames" / "right", 3)
    write_folder(folder / "one", 1)
    write_folder(folder / "mixed", 2)
    make_clip(folder / "mixed" / "clip.mp4", frames=5)
    (folder / "e.gif").write_bytes(encode_animation([make_pixels(1), make_pixels(2)], "GIF", 40))
    (folder / "f.webp").write_bytes(encode_animation([make_pixels(1), make_pixels(2), make_pixels(5)], "WEBP", 40))
    (folder / "notes.txt").write_text("no stream")
    return folder


EXPECTED = {
    "a.mp4": 7,
    "b.png": 1,
    "c.jpg": 1,
    "e.gif": 2,
    "f.webp": 3,
    "frames/left": 4,
    "frames/right": 3,
    "mixed/00000.png": 1,
    "mixed/00001.png": 1,
    "mixed/clip.mp4": 5,
    "one/00000.png": 1,
}


def test_each_is_a_stream(folder):
    dataset = sl.find_streams(folder, size=(24, 32))
    infos = describe_streams(dataset)
    assert {os.path.relpath(info.key, folder): info.length for info in infos} == EXPECTED
    assert [info.key for info in infos] == sorted(info.key for info in infos)
    for info in infos:
        assert read_stream(dataset, info)["data"].shape == (info.length, 24, 32, 3)
    sizes = dataset.source_sizes(infos)
    assert not sizes.remote.any()
    assert sizes.sizes[0] == (folder / "a.mp4").stat().st_size


def test_frames_are_those_of_the_classes_for_each_kind(folder):
    dataset = sl.find_streams(folder, size=(20, 30), pix_fmt="gray", stride=2)
    infos = {os.path.relpath(info.key, folder): info for info in describe_streams(dataset)}
    options = {"size": (20, 30), "pix_fmt": "gray", "stride": 2}
    for name, other in (
        ("a.mp4", sl.VideoStreams(folder / "a.mp4", **options)),
        ("frames/left", sl.ImageStreams(folder / "frames" / "left", **options)),
        ("f.webp", sl.ImageStreams(folder / "f.webp", **options)),
        ("c.jpg", sl.ImageStreams(folder / "c.jpg", **options)),
    ):
        expected = read_stream(other, describe_streams(other)[0])
        assert np.array_equal(read_stream(dataset, infos[name])["data"], expected["data"]), name


def test_a_directory_of_images_alone_is_one_stream(folder):
    infos = describe_streams(sl.find_streams(folder / "frames" / "left"))
    assert [(info.key, info.length) for info in infos] == [(str(folder / "frames" / "left"), 4)]


def test_a_loader_plays_all_of_them(folder):
    with sl.MultiStreamer(sl.find_streams(folder, size=(24, 32)), 2, 3) as loader:
        assert sum(int(batch.valid.sum()) for batch in loader) == sum(EXPECTED.values())


def test_names_with_the_characters_of_patterns(folder, tmp_path):
    data = (folder / "a.mp4").read_bytes()
    for name in ("a[1].mp4", "a1.mp4", "what?.mp4", "x{1,2}.mp4"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b?.png").write_bytes(encode(make_pixels(1)))
    infos = describe_streams(sl.find_streams(tmp_path, size=(24, 32)))
    assert [(os.path.basename(info.key), info.length) for info in infos] == [
        ("a1.mp4", 7), ("a[1].mp4", 7), ("b?.png", 1), ("what?.mp4", 7), ("x{1,2}.mp4", 7),
    ]  # fmt: skip


def test_sizes_must_not_differ(folder):
    with pytest.raises(FrameSizeError, match="size="):
        describe_streams(sl.find_streams(folder))


def test_one_error_lists_all_files_of_all_kinds_that_cannot_be_used(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.png", "d.png"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(b"junk" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("nothing")
    write_folder(tmp_path / "frames", 3)
    for unreadable in (None, "raise"):
        with pytest.raises(StreamNotFound) as raised:
            describe_streams(sl.find_streams(tmp_path, unreadable=unreadable))
        listed = [os.path.basename(name) for name, _, _ in raised.value.details["failed"]]
        assert listed == ["link.mp4", "pipe.mp4", "a.mp4", "b.mp4", "c.png", "d.png"]
        assert all(name in raised.value.message for name in listed)
    dataset = sl.find_streams(tmp_path, unreadable="skip")
    assert [info.length for info in describe_streams(dataset)] == [3]
    assert sorted(os.path.basename(each.address) for each in dataset.skipped) == sorted(listed)
    with sl.MultiStreamer(sl.find_streams(tmp_path), 1, 3, on_error="skip") as loader:
        assert len(list(loader)) == 1
    for name in ("frames", "x"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(StreamNotFound, match=r"(?s)no video and no image.*pipe.mp4"):
        describe_streams(sl.find_streams(tmp_path, unreadable="skip"))


def test_what_cannot_be_used_is_left_out(folder, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"junk" * 100)
    (tmp_path / "bad.png").write_bytes(b"junk")
    write_folder(tmp_path / "frames", 3)
    dataset = sl.find_streams(tmp_path, unreadable="skip")
    assert [info.length for info in describe_streams(dataset)] == [3]
    assert sorted(os.path.basename(each.address) for each in dataset.skipped) == ["bad.mp4", "bad.png"]
    with pytest.raises(OSError, match="bad"):
        describe_streams(sl.find_streams(tmp_path))
    with pytest.raises(StreamNotFound):
        describe_streams(sl.find_streams(tmp_path / "none"))
    with pytest.raises(ConfigError):
        sl.find_streams(tmp_path, gaps="no")
