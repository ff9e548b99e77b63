"""VideoStreams of videos in stores: all that holds for local files, and what is new with them."""

from __future__ import annotations

import asyncio
import json
import pickle

import anyio
import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip
from range_server import served

import streamloader as sl
from streamloader.errors import CorruptStream, NotFound, ObjectChanged, TransferInterrupted, UnreadableStream
from streamloader.media.video import index_cache
from streamloader.stores import readahead
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.memory import MemoryStore
from streamloader.streams.base import stream_rng
from streamloader.streams.video import VideoStreams
from streamloader.testing import StreamSuite, describe_streams, read_stream

PLAIN = {"retry": None}
NAMES = ("no_pts.avi", "one_frame.mp4", "open_groups.mkv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some clips in a folder."""
    folder = tmp_path_factory.mktemp("clips")
    make_clip(folder / "a.mp4", frames=13, gop=5)
    for name in NAMES:
        VARIANTS[name](folder)
    return folder


@pytest.fixture(scope="module")
def url(folder):
    """The address of that folder."""
    with served(folder) as url:
        yield url


def stored(path, address):
    """Write a file into a store and return its address."""
    store, name = open_shared_store(address, PLAIN)
    with store:
        store.write(name, path.read_bytes())
    return address


class TestVideosBehindHttp(StreamSuite):
    resumes_like = "TestVideoFiles of test_video_suite.py"  # here a loader does, below

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _addresses(cls, folder, url):
        cls.paths = [folder / name for name in ("a.mp4", *NAMES)]
        cls.addresses = [f"{url}/{path.name}" for path in cls.paths]

    def make_dataset(self):
        return sl.VideoStreams(self.addresses)

    def expected(self):
        return [{"data": as_rgb(linear_decode(path))} for path in self.paths]


@pytest.mark.slow
class TestChosenFramesBehindHttp(TestVideosBehindHttp):
    def make_dataset(self):
        return sl.VideoStreams(self.addresses, pix_fmt="gray", max_frames=9, stride=2, random_start=True, size=(24, 32))

    def expected(self):
        return None


class TestVideosInMemory(TestVideosBehindHttp):
    """Some of them are local files."""

    @pytest.fixture(autouse=True)
    def _stored(self):
        self.mixed = [
            self.paths[0],
            *(stored(path, f"memory://videos/{path.name}") for path in self.paths[1:3]),
            self.paths[3],
        ]

    def make_dataset(self):
        return sl.VideoStreams(self.mixed, storage_options=PLAIN)

    def test_resumes_in_worker_processes(self):
        pytest.skip("these objects are in the memory of one process")


def test_infos_are_plain_and_have_no_secrets(folder, url):
    address = url.replace("://", "://someone:t0psecret@") + "/a.mp4"
    options = {"headers": {"X-Key": "als0secret"}}
    dataset = VideoStreams([address, address, folder / "a.mp4"], storage_options=options)
    infos = list(describe_streams(dataset))
    shown = url.replace("://", "://***@") + "/a.mp4"
    assert [info.key for info in infos] == [shown, f"{shown}#2", str(folder / "a.mp4")]
    size = (folder / "a.mp4").stat().st_size
    assert (infos[0].extra["address"], infos[0].extra["size"]) == (shown, size)
    assert infos[0].extra["version"]
    assert set(infos[0].extra) == {"address", "size", "version", "modified", "frames", "pixel_aspect"}
    assert infos[2].extra["bytes"] == size
    for text_form in (repr(infos), repr(dataset), json.dumps(dict(dataset.settings))):
        assert "secret" not in text_form
    with_secrets = pickle.loads(pickle.dumps(dataset))
    for info in infos:
        assert len(read_stream(with_secrets, info)["data"]) == 13


def test_signatures_of_addresses_are_not_shown(url):
    dataset = VideoStreams(f"{url}/a.mp4?x=1&signature=als0secret")
    (info,) = describe_streams(dataset)
    assert info.key == f"{url}/a.mp4?x=***&signature=***"
    assert "secret" not in repr(info)
    assert len(read_stream(dataset, info)["data"]) == 13


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_delivers_what_it_does_from_local_files(folder, url, workers):
    def batches(paths, workers, state=None, count=None):
        found = []
        with sl.MultiStreamer(VideoStreams(paths, size=(24, 32)), 2, 4, num_workers=workers, seed=3) as loader:
            if state:
                loader.load_state_dict(state)
            for batch in loader:
                found.append({name: array.copy() for name, array in batch.numpy().items()})
                if len(found) == count:
                    return found, loader.state_dict()
        return found, None

    local, _ = batches([folder / name for name in ("a.mp4", *NAMES)], 0)
    addresses = [f"{url}/{name}" for name in ("a.mp4", *NAMES)]
    first, state = batches(addresses, workers, count=3)
    rest, _ = batches(addresses, workers, state)
    remote = first + rest
    assert len(local) == len(remote) > 5
    for one, other in zip(local, remote, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_video_that_is_replaced_is_not_mixed_up(folder, tmp_path):
    address = stored(folder / "a.mp4", "memory://videos/changing.mp4")
    dataset = VideoStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    stored(make_clip(tmp_path / "other.mp4", frames=13, gop=5, height=64), address)
    with pytest.raises((ObjectChanged, CorruptStream)) as caught:
        read_stream(dataset, info)
    assert (caught.value.stream, caught.value.address) == (info.key, address)
    store, name = open_shared_store(address, PLAIN)
    with store:
        store.delete(name)
    with pytest.raises(NotFound) as missing:
        read_stream(dataset, info)
    assert missing.value.stream == info.key


def test_what_is_no_video_is_told_by_its_address(tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "empty.mp4"):
        address = stored(tmp_path / name, f"memory://videos/{name}")
        with pytest.raises(UnreadableStream, match=r"cannot be opened|empty") as caught:
            describe_streams(VideoStreams(address, storage_options=PLAIN))
        assert caught.value.stream == caught.value.address == address


def test_an_error_of_the_store_comes_after_the_good_frames_and_may_pass(folder, tmp_path, monkeypatch):
    path = make_clip(tmp_path / "long.mp4", frames=300, height=144, width=176, options={"crf": "1"})
    assert path.stat().st_size > 9 * readahead.UNIT_BYTES
    address = stored(path, "memory://videos/failing.mp4")
    dataset = VideoStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    right = as_rgb(linear_decode(path))
    stream_of = MemoryStore.stream

    async def failing(self, name, span=None, *, version=None, size=None, on_start=None):
        if span is not None and span.end > 6 * readahead.UNIT_BYTES:
            raise TransferInterrupted("the line went dead", address=address, offset=span.start)
        async for chunk in stream_of(self, name, span, version=version, size=size):
            yield chunk

    async def play_through():
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        out, frames = {"data": np.zeros((16, 144, 176, 3), np.uint8)}, []
        monkeypatch.setattr(MemoryStore, "stream", failing)
        try:
            while count := await stream.read_into(out):
                frames.append(out["data"][:count].copy())
        except TransferInterrupted as error:
            names = error.stream
            monkeypatch.setattr(MemoryStore, "stream", stream_of)
            failed_at = sum(map(len, frames))
            await stream.seek(failed_at)
            while count := await stream.read_into(out):
                frames.append(out["data"][:count].copy())
        else:
            raise AssertionError("nothing failed")
        finally:
            await stream.aclose()
        return names, failed_at, np.concatenate(frames)

    names, failed_at, frames = anyio.run(play_through)
    assert names == info.key
    assert 0 < failed_at < 300
    assert np.array_equal(frames, right)


def test_videos_are_indexed_in_parallel(folder, url, monkeypatch, tmp_path):
    """Twelve videos of a server: no more threads than there may be, each video once."""
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path))
    looked = []
    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", lambda video, **k: looked.append(str(video)) or real(video, **k))
    addresses = [f"{url}/{name}" for name in ("a.mp4", *NAMES)] * 3
    infos = describe_streams(VideoStreams(addresses, size=(24, 32)))
    assert len(infos) == 12
    assert sorted(looked) == sorted(addresses[:4])


def test_many_loops_may_come_and_go(url):
    """A dataset is opened in the event loop of each loader; the stores have a thread of their own."""
    dataset = VideoStreams(f"{url}/a.mp4")
    (info,) = describe_streams(dataset)

    async def first():
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        out = {"data": np.zeros((1, 48, 64, 3), np.uint8)}
        assert await stream.read_into(out) == 1
        await stream.aclose()
        return out["data"].tobytes()

    assert asyncio.run(first()) == asyncio.run(first())
