"""The ButterflyTorch compatibility layer: programs of its users, local and with all files remote."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from canaries import canary
from made_clips import as_rgb, linear_decode, make_clip

import streamloader as sl
from streamloader.compat.butterfly.dataset import (
    ButterflySettings,
    ButterflyTorch,
    ChunkTracker,
    DistributedVideoDataset,
    RemoteFileHandler,
    VideoProcessor,
)

NAMES = (
    "MONGODB_URI", "MONGODB_DB_NAME", "STORAGE_PATH", "VIDEOS_PATH", "CHUNK_SIZE", "CACHE_LIMIT", "MAX_CACHE_BYTES",
    "REMOTE_MODE", "REMOTE_HOST", "REMOTE_PORT", "REMOTE_USER", "REMOTE_PASSWORD", "REMOTE_KEY_PATH",
    "REMOTE_VIDEOS_PATH", "REMOTE_STORAGE_PATH", "REMOTE_KNOWN_HOSTS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "notes.txt").write_text("no video")
    (folder / "deeper.mp4").mkdir()
    return [make_clip(folder / "one.mp4", frames=23), make_clip(folder / "two.mkv", frames=17, picture=None, gop=4)]


@pytest.fixture(scope="module")
def frames(videos):
    return np.concatenate([as_rgb(linear_decode(path)) for path in videos])


def remote_env(server, videos, storage):
    return (
        f"REMOTE_MODE=True  # all on another machine\nREMOTE_HOST=127.0.0.1\nREMOTE_PORT={server.port}\n"
        f"REMOTE_USER={server.user}\nREMOTE_KEY_PATH={server.key}\nREMOTE_KNOWN_HOSTS={server.known_hosts}\n"
        f"REMOTE_VIDEOS_PATH={videos}\nREMOTE_STORAGE_PATH={storage}\nCHUNK_SIZE=10\n"
    )


# --- its use ---------------------------------------------------------------------------------------------------------


def test_videos_of_this_machine(videos, frames):
    def normalize_frames(frames):
        return frames / 255.0

    Path(".env").write_text(f"CHUNK_SIZE=10\nSTORAGE_PATH=./kept\nVIDEOS_PATH={videos[0].parent}\n")
    my_torch = ButterflyTorch()
    my_torch.save_data([str(path) for path in videos])
    dataset = my_torch.load_data(transform_fn=normalize_frames)
    assert len(dataset) == 40
    taken = dataset[15:30]  # over chunks, and from one video into the next
    assert taken.dtype == torch.float64
    assert torch.equal(taken, torch.from_numpy(frames[15:30] / 255.0))
    assert torch.equal(dataset[23], torch.from_numpy(frames[23] / 255.0))
    assert torch.equal(dataset[-1], torch.from_numpy(frames[-1] / 255.0))
    assert torch.equal(dataset[3:20:5], torch.from_numpy(frames[3:20:5] / 255.0))
    processed = my_torch.nn.functional.normalize(taken, dim=0)
    assert processed.shape == taken.shape
    assert my_torch.tensor([1, 2]).sum().item() == 3
    assert my_torch.get_remote_videos() == [str(path) for path in videos]
    my_torch.setup_remote_storage("./further")
    assert list(Path("further").iterdir()) == []
    assert Path("kept/catalog.sqlite").exists()
    my_torch.close()


def test_videos_and_chunks_of_another_machine(ssh_server, videos, frames, tmp_path):
    Path(".env").write_text(remote_env(ssh_server, videos[0].parent, tmp_path / "there"))
    with ButterflyTorch() as my_torch:
        my_torch.setup_remote_storage()
        assert list((tmp_path / "there").iterdir()) == []
        found = my_torch.get_remote_videos()
        assert found == [str(path) for path in videos]
        names = ("notes.txt", "one.mp4", "two.mkv")
        assert my_torch.list_remote_files() == [str(videos[0].parent / name) for name in names]
        report = my_torch.save_data(found, jobs=0)
        assert [video.frames for video in report.added] == [23, 17]
        dataset = my_torch.load_data()
        assert torch.equal(dataset[0:40], torch.from_numpy(frames))
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again[39], torch.from_numpy(frames[39]))
        again.close()
    assert sorted(path.suffix for path in (tmp_path / "there" / "chunks").rglob("*.m*")) == [".mp4"] * 5
    assert Path("storage/catalog.sqlite").exists()  # of this machine, with no word of how to log in
    assert str(ssh_server.key).encode() not in Path("storage/catalog.sqlite").read_bytes()


def test_a_machine_with_an_unknown_key_is_refused(ssh_server, videos, tmp_path):
    text = remote_env(ssh_server, videos[0].parent, tmp_path / "there")
    Path("nobody").touch()
    Path(".env").write_text(text.replace(str(ssh_server.known_hosts), str(tmp_path / "nobody")))
    with pytest.raises(sl.UntrustedHost):
        ButterflyTorch().get_remote_videos()


def test_saving_twice_adds_nothing_and_later_videos_come_behind(videos, frames):
    my_torch = ButterflyTorch()
    assert len(my_torch.save_data(str(videos[0]), jobs=0, chunk_size=8).added) == 1
    dataset = my_torch.load_data()
    report = my_torch.save_data(videos, jobs=0, chunk_size=8)
    assert ([row.name for row in report.added], len(report.existing)) == ([f"{videos[1].parent.name}/two.mkv"], 1)
    assert len(dataset) == 23  # until it looks again
    assert len(dataset.refresh()) == 40
    assert torch.equal(dataset[20:26], torch.from_numpy(frames[20:26]))
    my_torch.close()


def test_what_is_missing_is_said(videos):
    my_torch = ButterflyTorch()
    with pytest.raises(sl.CatalogNotFound):
        my_torch.load_data()
    with pytest.raises(sl.StreamNotFound, match=r"none\.mp4"):
        my_torch.save_data([videos[0], "none.mp4"], jobs=0)
    with pytest.raises(sl.ConfigError, match="REMOTE_VIDEOS_PATH"):
        my_torch.get_remote_videos()
    assert my_torch.get_remote_videos("no/such/folder") == []
    with pytest.raises(sl.ConfigError, match="shape"):
        my_torch.load_data(shape=(3, 3, 3, 3))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = my_torch.no_such_thing


def test_frames_can_be_scaled(videos):
    my_torch = ButterflyTorch()
    my_torch.save_data(videos, jobs=0)
    dataset = my_torch.load_data(shape=(24, 32, 3))
    assert tuple(dataset[21:25].shape) == (4, 24, 32, 3)
    assert [tuple(frame.shape) for frame in dataset.__getitems__([0, 39])] == [(24, 32, 3)] * 2
    assert len(list(dataset)) == 40
    my_torch.close()


def test_no_name_of_torch_is_hidden():
    own = {name for name in dir(ButterflyTorch) if not name.startswith("_")}
    own |= set(vars(ButterflyTorch())) - {"torch"}
    assert own & set(dir(torch)) == set()
    assert {"nn", "save_data", "float32"} <= set(dir(ButterflyTorch()))


# --- its parts -------------------------------------------------------------------------------------------------------


def test_the_parts_by_themselves(videos, frames, tmp_path):
    tracker = ChunkTracker(str(tmp_path / "here.sqlite"))
    processor = VideoProcessor(tracker, RemoteFileHandler(), chunk_size=10)
    first = processor.process_video(videos[0], tmp_path / "a", "The First")
    second = processor.process_video(videos[1], tmp_path / "b")
    assert processor.process_video(videos[0], tmp_path / "b", "again") == first
    chunks = tracker.get_chunks_for_frame_range(15, 24)
    assert [(chunk["title"], chunk["chunk_index"], chunk["start_frame"]) for chunk in chunks] == [
        ("The First", 1, 10), ("The First", 2, 20), (f"{videos[1].parent.name}/two.mkv", 0, 23),
    ]  # fmt: skip
    assert [chunk["end_frame"] + 1 for chunk in chunks[:2]] == [20, 23]
    assert {chunk["movie_id"] for chunk in chunks} == {first, second}
    assert [Path(chunk["storage_path"]).is_relative_to(tmp_path / "a") for chunk in chunks] == [True, True, False]
    assert all(Path(chunk["storage_path"]).is_file() for chunk in chunks)
    assert tracker.get_chunks_for_frame_range(40, 99) == []
    dataset = DistributedVideoDataset(str(tmp_path / "here.sqlite"), transform=lambda frames: frames[..., ::-1].copy())
    assert torch.equal(dataset[[30, 2]], torch.from_numpy(frames[[30, 2], ..., ::-1].copy()))
    dataset.close()


def check_files(handler, folder):
    name = os.path.join(folder, "deep", "file.bin")
    assert not handler.file_exists(name)
    with pytest.raises(sl.NotFound):
        handler.read_file(name)
    assert handler.write_file(name, b"\0" * 1000 + b"end")
    assert handler.file_exists(name)
    assert handler.read_file(name) == b"\0" * 1000 + b"end"
    assert handler.get_file_info(name)["size"] == 1003
    assert handler.list_directory(os.path.join(folder, "deep")) == ["file.bin"]
    assert handler.list_directory(folder) == []
    assert Path(name).read_bytes()[-3:] == b"end"
    handler.ensure_connection()
    handler.disconnect()


def test_files_of_this_machine(tmp_path):
    handler = RemoteFileHandler()
    assert not handler.is_remote
    check_files(handler, str(tmp_path))


def test_files_of_another_machine(ssh_server, tmp_path):
    settings = ButterflySettings(remote_known_hosts=str(ssh_server.known_hosts))
    handler = RemoteFileHandler("127.0.0.1", ssh_server.port, ssh_server.user, None, ssh_server.key, settings=settings)
    assert handler.is_remote
    check_files(handler, str(tmp_path))
    assert handler.address("videos/a.mp4").endswith(f":{ssh_server.port}/~/videos/a.mp4")
    assert handler.address("s3://bucket/a.mp4") == "s3://bucket/a.mp4"


def test_a_password_goes_to_its_own_machine_alone(tmp_path):
    settings = ButterflySettings.from_variables(
        {"REMOTE_HOST": "box", "REMOTE_USER": "me@home", "REMOTE_PASSWORD": canary("ssh-password")}
    )
    handler = RemoteFileHandler(settings=settings)
    assert handler.storage_options == {"ssh://me%40home@box": {"password": canary("ssh-password")}}
    for shown in (repr(settings), repr(handler), str(settings)):
        assert canary("ssh-password") not in shown
    store, _ = handler._open_store("ssh://me%40home@boxer/file")
    assert canary("ssh-password") not in repr(vars(store.store))
    store.close()


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_of_the_file_the_environment_and_none(tmp_path, monkeypatch):
    assert ButterflySettings.load() == ButterflySettings()
    Path(".env").write_text(
        "CHUNK_SIZE=1000\nCACHE_LIMIT=10\nMAX_CACHE_BYTES=1073741824  # 1GB in bytes\nMONGODB_URI='mongodb://box/?a=b'\n"
        "REMOTE_MODE=False  # Set to True\nREMOTE_HOST=your_server\nREMOTE_PORT=2222\nSTORAGE_PATH=\n"
    )
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("CHUNK_SIZE", "7")
    settings = ButterflySettings.load()
    assert settings == ButterflySettings(
        chunk_size=7,
        cache_limit=10,
        max_cache_bytes=1 << 30,
        mongodb_uri="mongodb://box/?a=b",
        remote_host="your_server",
        remote_port=2222,
    )
    assert "CACHE_LIMIT" not in os.environ
    Path("other.env").write_text("REMOTE_HOST=there\n")
    assert ButterflySettings.load("other.env").remote_mode
    with pytest.raises(sl.ConfigError, match=r"none\.env"):
        ButterflySettings.load("none.env")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REMOTE_MODE", "perhaps"), ("REMOTE_MODE", "True"), ("REMOTE_PORT", "70000"), ("CHUNK_SIZE", "0"),
        ("CACHE_LIMIT", "many"), ("MAX_CACHE_BYTES", "-1"), ("REMOTE_HOST", "me@box"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(sl.ConfigError, match=name):
        ButterflySettings.from_variables({name: value})


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("mongodb://localhost:27017/?directConnection=true", "mongodb://localhost:27017/films?directConnection=true"),
        ("mongodb://localhost:27017", "mongodb://localhost:27017/films"),
        ("mongodb://a:b@host/", "mongodb://a:b@host/films?authSource=admin"),
        ("mongodb://a:b@host/users?w=1", "mongodb://a:b@host/films?w=1&authSource=users"),
        ("mongodb+srv://a:b@host/x?authSource=y", "mongodb+srv://a:b@host/films?authSource=y"),
        ("somewhere/catalog.sqlite", "somewhere/catalog.sqlite"),
    ],
)
def test_where_the_catalog_is(uri, url):
    assert ChunkTracker(settings=ButterflySettings(mongodb_uri=uri, mongodb_db_name="films")).url == url
    assert "a:b" not in repr(ChunkTracker(uri, "films", settings=ButterflySettings()))
