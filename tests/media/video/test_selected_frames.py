"""Reading some frames of a video: the same pixels as by decoding everything, from fewer packets and in any threads."""

from __future__ import annotations

import contextlib
from pathlib import Path

import av
import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip
from range_server import served
from tiers import only_fast

from streamloader.errors import CorruptStream
from streamloader.media.video import reader as reader_module
from streamloader.media.video.decode_plan import PacketFilter
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import FrameReader
from streamloader.media.video.remote import RemoteVideo
from streamloader.stores.io_thread import open_shared_store

STRIDES = (2, 3, 8, 24, 100)
FAST = ["b_frames.ts", "open_groups.mkv", "no_key_frames.mkv", "edit_list.mp4", "hevc.mp4", "no_pts.avi", "mpeg2.mpg"]


def read_selected(path, index, numbers, *, resume=0, threads=1):
    """Return the frames as RGB, and whether the reader has gone back to decoding every packet."""
    with contextlib.closing(FrameReader(path, index, selected=np.array(numbers), threads=threads)) as reader:
        planned = reader._plan is not None
        frames = as_rgb([reader.read_frame(number) for number in numbers[resume:]])
        reader.check_end()
        return frames, planned and reader._plan is None


@pytest.mark.parametrize("name", only_fast(VARIANTS, FAST))
def test_selected_frames_are_those_of_a_full_decode(tmp_path, name):
    path = VARIANTS[name](tmp_path)
    pictures = as_rgb(linear_decode(path))
    index = index_video(str(path))
    for stride in STRIDES:
        for start in (0, 13):
            numbers = list(range(start, len(index), stride))
            for resume in {0, len(numbers) // 2} if numbers else ():
                for threads in (1, 2) if start else (1,):
                    frames, gave_up = read_selected(str(path), index, numbers, resume=resume, threads=threads)
                    assert np.array_equal(frames, pictures[numbers[resume:]]), (stride, start, resume, threads)
                    assert not gave_up, (stride, start, resume, threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bikes", "bigbuckbunny", "carphone_pristine"])
def test_real_clips(clips, name):
    index = index_video(str(clips[name]))
    pictures = as_rgb(linear_decode(clips[name]))
    for stride, threads in ((2, 1), (8, 1), (8, 2), (24, 2), (5, 3)):
        numbers = list(range(0, len(index), stride))
        frames, gave_up = read_selected(str(clips[name]), index, numbers, threads=threads)
        assert np.array_equal(frames, pictures[numbers])
        assert not gave_up


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of frames whose packets are decoded."""
    numbers = []
    real = PacketFilter.leaves_out

    def leaves_out(self, packet):
        left_out = real(self, packet)
        if not left_out and packet.size:
            numbers.append(self._plan.find_frame(packet.pts))
        return left_out

    monkeypatch.setattr(PacketFilter, "leaves_out", leaves_out)
    return numbers


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """96 frames with B frames and a key frame every 12."""
    options = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}
    return str(make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=96, gop=12, options=options))


def test_only_key_frames_are_decoded_if_only_they_are_read(clip, decoded):
    read_selected(clip, index_video(clip), list(range(0, 96, 24)))
    assert decoded == [0, 24, 48, 72]


def test_disposable_packets_are_not_decoded(clip, decoded):
    pictures = as_rgb(linear_decode(clip))
    frames, _ = read_selected(clip, index_video(clip), list(range(1, 96, 8)))
    assert np.array_equal(frames, pictures[1::8])
    every_second_b_frame = [number for number in range(96) if number % 4 in (1, 3) and number % 8 != 1]
    assert not set(decoded) & {number for number in every_second_b_frame if number % 12 < 8}
    assert len(decoded) < 60


def test_what_lies_before_a_later_start_is_left_out_too(clip, decoded):
    pictures = as_rgb(linear_decode(clip))
    for numbers in ([31], [31, 32, 33]):
        decoded.clear()
        frames, _ = read_selected(clip, index_video(clip), numbers)
        assert np.array_equal(frames, pictures[numbers])
        assert min(decoded) == 24
        assert not {25, 27, 29} & set(decoded)
    decoded.clear()
    read_selected(clip, index_video(clip), [0, 1, 1, 2])
    assert not decoded, "all frames up to the last one are needed"


def test_key_frames_nearby_are_read_up_to_and_distant_ones_sought(clip, monkeypatch):
    index = index_video(clip)
    skipped = []
    real = FrameReader._can_skip_to
    monkeypatch.setattr(FrameReader, "_can_skip_to", lambda self, pts: skipped.append(real(self, pts)) or skipped[-1])
    read_selected(clip, index, list(range(0, 96, 24)))
    assert skipped == [True] * 4
    skipped.clear()
    monkeypatch.setattr(reader_module, "_MIN_SEEK_FRAMES", 20)
    read_selected(clip, index, list(range(0, 96, 24)))
    assert skipped == [True, False, False, False]


def test_frames_may_be_read_twice_and_again(clip):
    pictures = as_rgb(linear_decode(clip))
    numbers = [0, 0, 0, 31, 31, 90, 90]
    frames, _ = read_selected(clip, index_video(clip), numbers)
    assert np.array_equal(frames, pictures[numbers])
    with contextlib.closing(FrameReader(clip, index_video(clip), selected=np.arange(0, 96, 5))) as reader:
        for number in (90, 5, 60, 65, 0, 95, 20):
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], pictures[number])
        assert reader._plan is not None


def test_a_frame_that_does_not_appear_is_decoded_with_all_packets(clip, monkeypatch):
    """If a packet is needed that seemed disposable, frames are missing, and they are read in the plain way."""
    pictures = as_rgb(linear_decode(clip))
    real = PacketFilter.leaves_out
    monkeypatch.setattr(PacketFilter, "leaves_out", lambda self, packet: real(self, packet) or packet.pts == 512 * 30)
    frames, gave_up = read_selected(clip, index_video(clip), list(range(0, 96, 5)))
    assert np.array_equal(frames, pictures[::5])
    assert gave_up


def test_a_run_that_ends_at_its_next_key_frame_goes_on_there(clip):
    """The packet that ends a run may be the key frame of the next one, and must not be lost."""
    index = index_video(clip)
    pictures = as_rgb(linear_decode(clip))
    for numbers in ([0, 6, 11, 24], [4, 8, 23, 36, 59], [10, 35, 60, 61]):
        frames, gave_up = read_selected(clip, index, numbers)
        assert np.array_equal(frames, pictures[numbers])
        assert not gave_up


@pytest.fixture
def broken(clip, tmp_path):
    """The clip with the packets of the frames from 50 to 52 overwritten."""

    data = bytearray(Path(clip).read_bytes())
    with av.open(clip) as container:
        for packet in container.demux(video=0):
            if packet.pts in (50 * 512, 51 * 512, 52 * 512):
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    return str(path)


def read_until_error(path, index, numbers, **options):
    """Return where the error is, what it says, and the frames that were read before."""
    delivered = []

    def read_all(reader):
        for number in numbers:
            reader.read_frame(number)
            delivered.append(number)

    with contextlib.closing(FrameReader(path, index, "clip", **options)) as reader:
        with pytest.raises(CorruptStream) as caught:
            read_all(reader)
        return caught.value.offset, caught.value.stream, caught.value.message, delivered


@pytest.mark.parametrize(("stride", "threads"), [(1, 2), (1, 3), (2, 1), (2, 2), (5, 3)])
def test_an_error_names_the_same_frame_as_a_plain_reader(clip, broken, stride, threads):
    index = index_video(clip)
    numbers = range(0, 96, stride)
    errors = [
        read_until_error(broken, index, numbers, **options)
        for options in ({}, {"selected": np.array(numbers), "threads": threads})
    ]
    assert errors[0] == errors[1]


def test_damage_in_frames_that_nobody_reads_is_not_met(clip, broken):
    pictures = as_rgb(linear_decode(clip))
    numbers = list(range(0, 96, 24))
    frames, _ = read_selected(broken, index_video(clip), numbers)
    assert np.array_equal(frames, pictures[numbers])


@pytest.mark.parametrize("change", [{"damaged": True, "seekable": False}, {"has_pts": False, "seekable": False}])
def test_frames_that_cannot_be_compared_are_decoded_in_the_plain_way(clip, change):
    index = VideoIndex(**{**vars(index_video(clip)), **change})
    with contextlib.closing(FrameReader(clip, index, selected=np.arange(0, 96, 8), threads=4)) as reader:
        assert reader._plan is None
        assert reader._stream.codec_context.thread_count == 1


def test_threads_are_those_of_the_decoder(clip):
    with contextlib.closing(FrameReader(clip, index_video(clip), threads=3)) as reader:
        reader.read_frame(0)
        assert reader._stream.codec_context.thread_count == 3
        assert reader._stream.codec_context.thread_type.name == "FRAME"
        pictures = as_rgb(linear_decode(clip))
        for number in (0, 1, 50, 51, 90, 3):
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], pictures[number])
        for number in range(4, 96):
            reader.read_frame(number)
        reader.check_end()


def test_a_video_in_a_store_is_not_read_to_and_fro(clip, tmp_path):
    """Its key frames are near each other: the reader reads on instead of requesting each of them."""

    with served(Path(clip).parent) as url:
        address = f"{url}/clip.mp4"
        store, name = open_shared_store(address)
        with store:
            info = store.head(name)
        video = RemoteVideo(address, info)
        index = index_video(video)
        with contextlib.closing(FrameReader(video, index, selected=np.arange(0, 96, 24))) as reader:
            positions = []
            real = reader._file.remote.read
            reader._file.remote.read = lambda size: positions.append(reader._file.remote.tell()) or real(size)
            frames = [reader.read_frame(number) for number in range(0, 96, 24)]
            assert positions == sorted(positions)
    assert np.array_equal(as_rgb(frames), as_rgb(linear_decode(clip))[::24])
