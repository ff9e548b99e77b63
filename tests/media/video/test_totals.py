"""The packets of a video have a total, and so have the bytes that are fetched for its index."""

from __future__ import annotations

import os

import pytest
from made_clips import make_clip

from streamloader.errors import UnreadableStream
from streamloader.media.video import packets, structure
from streamloader.media.video.indexer import index_video
from streamloader.media.video.remote import RemoteVideo
from streamloader.stores.io_thread import open_shared_store

OPTIONS = {"retry": None}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """40 frames, a key frame every 10."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def remote(path):
    address = "memory://media-totals/clip.mp4"
    store, name = open_shared_store(address, OPTIONS)
    with store:
        store.write(name, path.read_bytes())
        return RemoteVideo(address, store.head(name), OPTIONS)


@pytest.mark.parametrize("place", [str, remote])
def test_a_video_has_no_more_packets_than_an_index_can_hold(clip, place, monkeypatch):
    monkeypatch.setattr(packets, "_MAX_PACKETS", 39)
    with pytest.raises(UnreadableStream, match="more than 39 packets"):
        index_video(place(clip))
    monkeypatch.setattr(packets, "_MAX_PACKETS", 40)
    assert len(index_video(place(clip))) == 40


def test_a_video_has_no_more_packets_than_bytes(clip):
    assert packets.count_max_packets(str(clip)) == os.path.getsize(clip)


def test_a_file_of_boxes_is_not_searched_without_end(tmp_path, monkeypatch):
    path = tmp_path / "boxes.mp4"
    path.write_bytes(((8).to_bytes(4, "big") + b"free") * 2_000)
    assert structure.declared_size(str(path)) == 16_000
    monkeypatch.setattr(structure, "_MAX_LOCAL_BOXES", 1_000)
    assert structure.declared_size(str(path)) is None
