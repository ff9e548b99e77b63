"""PacketDecoder: returns the same frames as an ordinary decode, with the numbers of their packets."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_clips import VARIANTS, make_clip

from streamloader.errors import ClosedError, CorruptStream, UnreadableStream
from streamloader.media.chunks.format import Coding
from streamloader.media.chunks.frame_hash import frame_hash
from streamloader.media.chunks.packet_decoder import PacketDecoder, read_coding
from streamloader.media.video.reader import decode_frames
from streamloader.media.video.source import open_video

FAST = ("b_frames.mp4", "open_groups.mkv", "hidden_frames.webm", "packed.avi", "mpeg2.ts", "hevc.mp4", "odd_size.mkv")


def packets_of(path):
    container, stream = open_video(str(path))
    with contextlib.closing(container):
        found = [(bytes(packet), packet.pts) for packet in container.demux(stream) if packet.size]
        return read_coding(stream.codec_context), [data for data, _ in found], [pts for _, pts in found]


def linear(path):
    container, stream = open_video(str(path))
    with contextlib.closing(container):
        return [(frame_hash(frame), frame.pts) for frame in decode_frames(container, stream)]


def decoded(decoder, packets):
    frames = []
    for number, data in enumerate(packets):
        frames += decoder.send(number, data)
    return [(frame_hash(frame), number) for number, frame in frames + decoder.drain()]


def check(path, threads=1):
    coding, packets, times = packets_of(path)
    with contextlib.closing(PacketDecoder(Coding.from_json(coding.to_json()), threads=threads)) as decoder:
        first = decoded(decoder, packets)
        assert decoded(decoder, packets) == first  # drain() resets the decoder
    wanted = linear(path)
    assert [digest for digest, _ in first] == [digest for digest, _ in wanted]
    numbers = [number for _, number in first]
    assert len(set(numbers)) == len(numbers)
    if None not in times:
        assert [times[number] for number in numbers] == [pts for _, pts in wanted]


@pytest.mark.parametrize("name", FAST)
def test_packets_give_the_frames_of_an_ordinary_decode(name, tmp_path):
    check(VARIANTS[name](tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in (*FAST, "edit_list.mp4")])
def test_packets_give_the_frames_of_an_ordinary_decode_of_the_rest(name, tmp_path):
    check(VARIANTS[name](tmp_path))


def test_threads_give_the_same_frames(tmp_path):
    check(VARIANTS["b_frames.mp4"](tmp_path), threads=3)


def test_any_buffer_will_do_and_may_change_afterwards(tmp_path):
    coding, packets, _ = packets_of(VARIANTS["b_frames.mp4"](tmp_path))
    one, other = PacketDecoder(coding), PacketDecoder(coding)
    frames = []
    for number, data in enumerate(packets):
        buffer = np.frombuffer(data, np.uint8).copy()
        frames += one.send(number, memoryview(buffer))
        buffer[:] = 0
    found = [(frame_hash(frame), number) for number, frame in frames + one.drain()]
    assert found == decoded(other, packets)


def test_after_a_reset_decoding_begins_at_any_key_frame(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", frames=30)
    coding, packets, _ = packets_of(path)
    wanted = linear(path)
    with contextlib.closing(PacketDecoder(coding)) as decoder:
        for key in (20, 0, 10):
            decoder.send(0, packets[0])
            decoder.reset()
            found = decoded(decoder, packets[key : key + 10])
            assert [digest for digest, _ in found] == [digest for digest, _ in wanted[key : key + 10]]


def test_garbage_is_a_typed_error_that_names_the_packet(tmp_path):
    coding, packets, _ = packets_of(VARIANTS["vp9.webm"](tmp_path))
    with contextlib.closing(PacketDecoder(coding, name="chunk 7 of film")) as decoder:
        decoder.send(4, packets[0])
        with pytest.raises(CorruptStream, match=r"chunk 7 of film is damaged at packet 5") as caught:
            decoder.send(5, b"\xff" * 100)
        assert (caught.value.stream, caught.value.offset) == ("chunk 7 of film", 5)
        decoder.reset()
        assert decoder.send(0, packets[0]) + decoder.drain()


def test_a_codec_without_a_decoder_is_refused():
    with pytest.raises(UnreadableStream, match="no decoder for 'klingon'"):
        PacketDecoder(Coding("klingon", b"", 64, 48))


def test_an_audio_codec_is_refused():
    with pytest.raises(UnreadableStream, match="no decoder for 'aac'"):
        PacketDecoder(Coding("aac", b"", 64, 48))


def test_a_closed_decoder_raises(tmp_path):
    coding, packets, _ = packets_of(VARIANTS["b_frames.mp4"](tmp_path))
    decoder = PacketDecoder(coding)
    decoder.close()
    decoder.close()
    with pytest.raises(ClosedError):
        decoder.send(0, packets[0])


def test_bytes_after_a_packet_do_not_matter(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", "mpeg4", gop=12)  # its decoder reads past the end of a packet
    coding, packets, _ = packets_of(path)
    wanted = [digest for digest, _ in linear(path)]
    for filling in (b"\0", b"\xff", b"\x5a", b"\0\0\1\xb6"):
        with contextlib.closing(PacketDecoder(coding)) as decoder:
            views = [memoryview(data + filling * 64)[: len(data)] for data in packets]
            assert [digest for digest, _ in decoded(decoder, views)] == wanted


OPENS_AND_CLOSES = """
import sys
from media.chunks.test_packet_decoder import packets_of
from streamloader.media.chunks.packet_decoder import PacketDecoder

coding, packets, _ = packets_of(sys.argv[1])
for count in range(60):
    decoder = PacketDecoder(coding, threads=3)
    for number in range(1 + count % 24):
        decoder.send(number, packets[number])
    decoder.close()
"""


def test_decoders_with_threads_can_be_closed_at_any_time(tmp_path):
    # In a separate process: close() waits for FFmpeg's threads, which must not need the interpreter.
    clip = make_clip(tmp_path / "clip.mp4", height=240, width=320)
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{OPENS_AND_CLOSES}", str(clip)],
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
