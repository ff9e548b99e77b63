"""Videos read through a store: the same index and frames, fewer bytes, and unchanged errors of the store."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import fields

import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip
from tiers import fast_first

from streamloader.errors import CorruptStream, StoreTimeout, TransferInterrupted, UnreadableStream
from streamloader.media.video import indexer, source
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import FrameReader
from streamloader.media.video.remote import RemoteVideo, VideoFile, open_video_file
from streamloader.media.video.structure import declared_size
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.readahead import UNIT_BYTES, RemoteFile

PLAIN = {"retry": None}
_numbers = itertools.count()

# Videos for which moov and the first frame suffice.
SPARSE = {
    "av1.mp4", "b_frames.mp4", "hevc.mp4", "hevc_10_bit.mp4", "late_start.mp4", "mjpeg.mov",
    "odd_size_444.mp4", "one_frame.mp4", "open_groups.mp4", "rotated.mp4", "variable_rate.mp4",
}  # fmt: skip


def remote(path):
    """Write a file to a store."""
    address = f"memory://media/{next(_numbers)}/{path.name}"
    store, name = open_shared_store(address, PLAIN)
    with store:
        store.write(name, path.read_bytes())
        return RemoteVideo(address, store.head(name), PLAIN)


@pytest.fixture
def recorded(monkeypatch):
    """The results of trust_movie, and the files that were opened for an index."""
    found, files = [], []
    trust_movie, opened = indexer.trust_movie, indexer.open_video_file
    monkeypatch.setattr(indexer, "trust_movie", lambda *a: found.append(trust_movie(*a)) or found[-1])
    monkeypatch.setattr(indexer, "open_video_file", lambda *a: files.append(opened(*a)) or files[-1])
    return found, files


def assert_equal(one, other):
    for field in fields(one):
        if field.name != "initial_spans":
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


@pytest.mark.parametrize("name", VARIANTS)
def test_index_and_frames_are_those_of_the_local_file(name, tmp_path, recorded, monkeypatch):
    # Small buffers, so that most of even these small clips is not fetched.
    monkeypatch.setattr(source, "IO_BUFFER_BYTES", 1024)
    path = VARIANTS[name](tmp_path)
    video = remote(path)
    found = index_video(video)
    assert any(recorded[0]) == (name in SPARSE)
    assert_equal(found, index_video(str(path)))
    reader = FrameReader(video, found)
    try:
        frames = [as_rgb([reader.read_frame(number)])[0] for number in range(len(found))]
        reader.check_end()
        assert np.array_equal(frames, as_rgb(linear_decode(path)))
        for number in (len(found) // 2, 0, len(found) - 1, len(found) // 3):
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], frames[number])
    finally:
        reader.close()


def test_real_clips(clips):
    for path in clips.values():
        assert_equal(index_video(remote(path)), index_video(str(path)))


@pytest.mark.parametrize("moov", fast_first(["behind", "in front"]))
def test_most_of_an_mp4_is_not_fetched_for_its_index(tmp_path, recorded, moov):
    path = make_clip(
        tmp_path / "large.mp4", frames=240, height=360, width=640, gop=24, options={"crf": "1", "preset": "ultrafast"},
        container_options={"movflags": "faststart"} if moov == "in front" else None,
    )  # fmt: skip
    found = index_video(remote(path))
    assert recorded[0][0] is not None
    assert_equal(found, index_video(str(path)))
    file = recorded[1][0]
    assert path.stat().st_size > 80 * UNIT_BYTES
    assert file.remote.stats.fetched < path.stat().st_size / 3
    # The index knows the byte ranges needed to open the video, which are requested at once.
    opening = open_video_file(remote(path), found.initial_spans)
    requests = opening.remote.stats.requests
    container, stream = source.open_video(remote(path), opening)
    next(container.decode(stream))
    container.close()
    assert opening.remote.stats.dropped == 0
    assert opening.remote.stats.requests <= requests + 4
    opening.close()


def test_the_declared_size_is_that_of_the_local_file(tmp_path):
    for name in ("b_frames.mp4", "fragments.mp4", "b_frames.mkv", "no_pts.avi", "b_frames.ts"):
        path = VARIANTS[name](tmp_path)
        file = open_video_file(remote(path))
        assert declared_size(file) == declared_size(str(path))
        file.close()


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv"])
def test_broken_files_give_the_same_errors_as_local_ones(name, tmp_path):
    whole = VARIANTS[name](tmp_path).read_bytes()
    for share in (0.4, 0.9):
        path = tmp_path / f"cut{share}-{name}"
        path.write_bytes(whole[: int(len(whole) * share)])
        video = remote(path)
        for damaged in ("raise", "keep"):
            results = []
            for each in (video, str(path)):
                try:
                    results.append(len(index_video(each, damaged=damaged)))
                except (CorruptStream, UnreadableStream) as error:
                    names_match = error.address == error.stream == str(each)
                    results.append(
                        (type(error), names_match, error.offset, error.details, error.message.replace(str(each), "it"))
                    )
            assert results[0] == results[1]


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "b_frames.ts", "no_pts.avi", "vp9.webm"])
def test_errors_of_the_store_pass_through_ffmpeg_unchanged(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(source, "IO_BUFFER_BYTES", 512)
    path = VARIANTS[name](tmp_path)
    video = remote(path)
    found = index_video(video, verify="ends")
    real = VideoFile.read
    size = path.stat().st_size
    calls = []

    def dead_from(byte):
        def read(self, count):
            if self.remote.tell() + 1 > byte:
                monkeypatch.setattr(type(self.remote), "read", fails)
            else:
                count = min(count, byte - self.remote.tell())
            return real(self, count)

        def fails(self, count):
            calls.append(count)
            raise StoreTimeout("waited 1 s", address=str(video), offset=self.tell())

        return read

    for byte in (0, 40, size // 3, size * 9 // 10):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(VideoFile, "read", dead_from(byte))
            with pytest.raises(StoreTimeout) as caught:
                index_video(video, verify="ends")
            monkeypatch.undo()
        assert caught.value.stream == str(video)
        assert len(calls) == 1, "FFmpeg must not retry"
        monkeypatch.setattr(source, "IO_BUFFER_BYTES", 512)
    assert_equal(index_video(video, verify="ends"), found)
    assert capfd.readouterr().err == ""


def test_errors_of_the_store_while_tables_are_read(tmp_path, monkeypatch):
    path = VARIANTS["b_frames.mp4"](tmp_path)
    video = remote(path)
    real = RemoteFile.read_at

    for allowed in range(5):
        done = itertools.count()

        def read_at(self, start, count, allowed=allowed, done=done):
            if next(done) >= allowed:
                raise StoreTimeout("waited 1 s", address=str(video), offset=start)
            return real(self, start, count)

        with monkeypatch.context() as patch:
            patch.setattr(RemoteFile, "read_at", read_at)
            with pytest.raises(StoreTimeout) as caught:
                index_video(video)
        assert caught.value.stream == str(video)
    assert len(index_video(video)) == 40


def test_a_reader_can_be_used_after_an_error_of_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "IO_BUFFER_BYTES", 512)
    path = VARIANTS["b_frames.mkv"](tmp_path)
    video = remote(path)
    right = as_rgb(linear_decode(path))
    reader = FrameReader(video, index_video(video), "the stream")

    def fails(self, count):
        raise TransferInterrupted("broke off", address=str(video), offset=self.tell())

    def read_from(number):
        for later in range(number, 40):
            reader.read_frame(later)

    try:
        for number, broken in ((3, lambda: read_from(3)), (35, lambda: read_from(2)), (25, lambda: reader.seek(4))):
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], right[number])
            with monkeypatch.context() as patch:
                patch.setattr(type(reader._file.remote), "read", fails)
                with pytest.raises(TransferInterrupted) as caught:
                    broken()
                assert caught.value.stream == "the stream"
                with pytest.raises(TransferInterrupted):
                    reader.read_frame(number - 1)
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], right[number])
    finally:
        reader.close()


def test_ctrl_c_passes_through_ffmpeg(tmp_path, monkeypatch):
    video = remote(VARIANTS["b_frames.mkv"](tmp_path))
    found = index_video(video)

    def interrupted(self, count):
        os.kill(os.getpid(), signal.SIGINT)
        return b""

    with monkeypatch.context() as patch:
        file = open_video_file(video)
        patch.setattr(type(file.remote), "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index_video(video)
        with pytest.raises(KeyboardInterrupt):
            FrameReader(video, found)
        file.close()


def test_untrusted_bytes_open_no_other_file(tmp_path, monkeypatch):
    """Playlists are not videos, and the name of an object is never opened as a local file."""
    monkeypatch.chdir(tmp_path)
    inside = VARIANTS["mjpeg.mov"](tmp_path)
    for name, text in {
        "list.m3u8": f"#EXTM3U\n#EXTINF:1,\n{inside}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{inside}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 26\n",
        "video.jpg": "no picture",
        "%03d.jpg": "no picture",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UnreadableStream):
            index_video(remote(path))
