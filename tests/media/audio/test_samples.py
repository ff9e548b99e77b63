"""Every sample at every position is the one of ffmpeg's decode of the whole file."""

from __future__ import annotations

import contextlib

import av
import numpy as np
import pytest
from made_sounds import (
    SOUNDS,
    ffmpeg_decode,
    ffmpeg_encode,
    make_sound,
    pyav_decode,
    split_pages,
    with_itunes_tag,
)
from tiers import fast_first, only_fast

from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.audio.blob import InvalidAudioBlob, decode_audio_index, encode_audio_index
from streamloader.media.audio.index import AudioIndexSettings
from streamloader.media.audio.indexer import index_audio
from streamloader.media.audio.missing_packets import read_frame_count
from streamloader.media.audio.packets import count_opus_samples
from streamloader.media.audio.reader import SampleReader
from streamloader.media.audio.resampler import AudioForm, ConvertedReader, count_converted

VERIFY_LEVELS = ("tables", "samples")
BY_DECODING = {
    "adpcm.wav",
    "blocks.ogg",
    "eac3.ts",
    "flac.mkv",
    "flac_48k.mkv",
    "pcm.mkv",
    "vorbis.mkv",
    "vorbis.ogg",
    "wma.wma",
}
FAST = ["flac_48k.mkv", "aac.m4a", "mp3.mp3", "opus.opus", "blocks.ogg"]
BY_NUMBER = {"pcm.wav", "float.wav", "24_bit.wav", "a_law.wav", "pcm.aiff", "flac.flac"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sounds")


def make(folder, name):
    path = folder / name
    return path if path.exists() else SOUNDS[name](path)


def index_of(path, verify="tables", **settings):
    return index_audio(str(path), AudioIndexSettings(verify=verify, **settings))


def reader_of(path, index):
    return SampleReader(str(path), index, str(path))


def converted(path, index, rate, channels, dtype):
    layout = index.layout if channels == index.channels else {1: "mono", 2: "stereo"}[channels]
    return ConvertedReader(reader_of(path, index), index.layout, AudioForm(rate, layout, dtype))


def spans(length, seed=0, count=6):
    """Return spans in an order that goes back and forth, each end included."""
    rng = np.random.default_rng(seed)
    starts = [0, length - 3, length // 2, 1, *rng.integers(0, length, count).tolist(), 1023, 1024, length // 2 + 700]
    return [(start, min(length, start + int(rng.integers(1, 9000)))) for start in starts]


@pytest.mark.parametrize("name", only_fast(SOUNDS, [*FAST, "low_rate.mp3", "aac.ts", "pcm.wav"]))
def test_the_samples_are_those_of_ffmpeg(name, folder):
    path = make(folder, name)
    index = index_of(path)
    assert len(index.checks) > 0 if name in BY_DECODING else not len(index.checks)
    assert index.has_exact_pts == (name in BY_NUMBER)
    forms = [(index.rate, index.channels, "int16"), (16_000, 1, "float32")]
    for rate, channels, dtype in forms:
        expected = ffmpeg_decode(path, dtype, rate, channels)
        with contextlib.closing(converted(path, index, rate, channels, dtype)) as reader:
            assert len(reader) == len(expected)
            assert np.array_equal(reader.read(0, len(expected) + 5), expected)
            for start, end in spans(len(expected)):
                assert np.array_equal(reader.read(start, end), expected[start:end]), (start, end)


@pytest.mark.parametrize("verify", VERIFY_LEVELS)
@pytest.mark.parametrize("name", only_fast(SOUNDS, FAST))
def test_every_position_is_that_of_a_decode_from_the_start(name, verify, folder):
    path = make(folder, name)
    index = index_of(path, verify)
    whole = pyav_decode(path)[: len(index)]
    assert len(whole) == len(index)
    for start, end in spans(len(index), seed=1, count=3):
        with contextlib.closing(reader_of(path, index)) as reader:  # a new decoder, as after a resume
            assert np.array_equal(reader.read(start, end), whole[start:end]), (start, end)


@pytest.mark.parametrize("name", only_fast(SOUNDS, [*FAST, "adts.aac", "mp3.mp4"]))
def test_the_tables_say_what_decoding_shows(name, folder):
    path = make(folder, name)
    by_tables, by_decoding = index_of(path), index_of(path, "samples")
    assert len(by_tables) == len(by_decoding)
    if not by_tables.has_exact_pts:
        for column in ("pts", "offsets", "sizes", "samples", "kept"):
            assert np.array_equal(getattr(by_tables, column), getattr(by_decoding, column)), column
    for index in (by_tables, by_decoding):
        blob = encode_audio_index(index)
        assert encode_audio_index(decode_audio_index(blob, path.stat().st_size)) == blob


@pytest.mark.parametrize(("name", "codec"), fast_first([("long.opus", "libopus"), ("long.mp3", "libmp3lame")]))
def test_seeking_in_a_long_sound_reads_little(name, codec, folder):
    path = make_sound(folder / name, codec, rate=48_000, samples=48_000 * 20, layout="mono")
    index = index_of(path, "samples")
    with contextlib.closing(reader_of(path, index)) as reader:
        whole = reader.read(0, len(index))
    start, read = len(index) - 5000, []
    with contextlib.closing(reader_of(path, index)) as reader:
        take = reader._read_packet
        reader._read_packet = lambda: read.append(1) or take()
        assert np.array_equal(reader.read(start, len(index)), whole[start:])
    assert 0 < len(read) < len(index.pts) // 2


def test_a_decoder_that_differs_from_the_index_is_started_at_the_beginning(folder):
    """Checksums that no decode has: as if the processor, or FFmpeg, computed other samples."""
    path = make(folder, "opus.opus")
    index = index_of(path, "samples")
    index.checks[:] += 1
    whole = pyav_decode(path)
    for start, end in spans(len(index), seed=2, count=2):
        with contextlib.closing(reader_of(path, index)) as reader:
            assert np.array_equal(reader.read(start, end), whole[start:end])


@pytest.mark.parametrize("codec", fast_first(["libvorbis", "libopus", "flac"]))
def test_the_streams_of_a_chained_file_play_in_turn(codec, folder):
    """Their headers differ, and their timestamps begin again."""
    parts = [
        ffmpeg_encode(
            folder / f"{seed}.ogg", "-c:a", codec, "-compression_level", str(seed), rate=48_000, samples=100_000
        )
        for seed in (1, 9)
    ]
    path = folder / f"chained_{codec}.ogg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    expected = ffmpeg_decode(path)
    for verify in VERIFY_LEVELS:
        index = index_of(path, verify)
        for start, end in [(0, len(expected)), (150_000, 152_000), (99_000, 105_000), (199_000, 200_000)]:
            with contextlib.closing(converted(path, index, 48_000, 2, "float32")) as reader:
                assert np.array_equal(reader.read(start, end), expected[start:end]), (start, end)


def test_vorbis_of_all_qualities_is_no_damage(folder):
    """FFmpeg derives wrong timestamps where the sizes of blocks change at the beginning of a page."""
    for rate, quality in ((8000, "3"), (22_050, "0"), (48_000, "9")):
        path = ffmpeg_encode(folder / "any.ogg", "-c:a", "libvorbis", "-q:a", quality, rate=rate, samples=2 * rate)
        assert len(index_of(path)) == 2 * rate


def test_the_first_packet_of_opus_for_voices_is_shorter_than_it_says(folder):
    path = ffmpeg_encode(
        folder / "short.opus", "-c:a", "libopus", "-application", "voip", "-b:a", "8k", rate=8000, layout="mono"
    )
    assert len(index_of(path)) == len(ffmpeg_decode(path, channels=1))


@pytest.mark.parametrize("codec", fast_first(["libopus", "libvorbis", "flac"]))
def test_a_missing_page_is_noticed_anywhere(codec, folder):
    path = ffmpeg_encode(folder / "whole.ogg", "-c:a", codec, rate=48_000, samples=150_000)
    pages = split_pages(path.read_bytes())
    assert len(pages) > 5
    for number in range(3, len(pages) - 1):
        (folder / "missing.ogg").write_bytes(b"".join([*pages[:number], *pages[number + 1 :]]))
        with pytest.raises(CorruptStream, match="truncated or damaged at sample"):
            index_of(folder / "missing.ogg")


@pytest.mark.parametrize("codec", fast_first(["libvorbis", "libopus", "flac"]))
def test_damage_of_any_page_is_noticed(codec, folder):
    """FFmpeg leaves out the page, also if it is the last one."""
    pages = split_pages(ffmpeg_encode(folder / "whole.ogg", "-c:a", codec, rate=48_000, samples=150_000).read_bytes())
    path = folder / "damaged.ogg"
    for number in (2, 3, len(pages) // 2, len(pages) - 1):
        page = bytearray(pages[number])
        page[len(page) // 2] ^= 1
        path.write_bytes(b"".join([*pages[:number], bytes(page), *pages[number + 1 :]]))
        with pytest.raises((CorruptStream, UnreadableStream), match=r"damaged|cannot be opened"):
            index_of(path)
    intact = len(index_of(folder / "whole.ogg"))
    for tag in (b"TAG" + bytes(125), bytes(1000)):
        path.write_bytes(b"".join(pages) + tag)
        assert len(index_of(path)) == intact
    headers = sum(page[6:14] == bytes(8) for page in pages)
    path.write_bytes(b"".join([*pages[:headers], *pages[headers + 1 :]]))  # as a recorded broadcast begins
    if codec == "libvorbis":
        assert 0 < len(index_of(path)) < intact


def test_a_frame_of_flac_that_is_no_frame_is_noticed(folder):
    data = bytearray(ffmpeg_encode(folder / "whole.flac", samples=60_000).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes()
    path = folder / "damaged.flac"
    path.write_bytes(data)
    with pytest.raises(CorruptStream, match="truncated or damaged"):
        index_of(path, "samples")
    index, expected = index_of(path, damaged="keep"), ffmpeg_decode(path)
    with contextlib.closing(converted(path, index, 44_100, 2, "float32")) as reader:
        assert np.array_equal(reader.read(0, len(index)), expected)


@pytest.mark.parametrize(
    "name", fast_first(["a.aiff", "a.au", "a.caf", "a.w64", "a.opus", "a.oga", "a.wma", "a.mka", "a.avi", "a.tta"])
)
def test_a_file_that_breaks_off_is_noticed(name, folder):
    data = ffmpeg_encode(folder / name, rate=48_000).read_bytes()
    for part in (3, 5, 7, 9):
        (folder / f"cut_{name}").write_bytes(data[: len(data) * part // 10 - 1])
        with pytest.raises((CorruptStream, UnreadableStream)):
            index_of(folder / f"cut_{name}")


def test_missing_frames_of_an_mp3(folder):
    """Its header counts them. A file to which another one was appended has more."""
    path = ffmpeg_encode(folder / "whole.mp3", "-q:a", "4", samples=120_000)
    data = path.read_bytes()
    for end in (len(data) // 2, len(data) - 600):
        (folder / "cut.mp3").write_bytes(data[:end])
        with pytest.raises(CorruptStream, match=r"frames, and 106 by its header"):
            index_of(folder / "cut.mp3")
    tagless = ffmpeg_encode(folder / "more.mp3", "-q:a", "4", "-write_xing", "0", "-id3v2_version", "0")
    (folder / "both.mp3").write_bytes(data + tagless.read_bytes())
    expected = ffmpeg_decode(folder / "both.mp3")
    with contextlib.closing(reader_of(folder / "both.mp3", index_of(folder / "both.mp3"))) as reader:
        assert np.array_equal(reader.read(0, 200_000), expected)


def test_the_header_of_an_mp3_counts_its_frames():
    for tag, distance in ((b"Xing", 36), (b"Info", 21), (b"Info", 13)):
        frame = (b"\xff\xfb" + bytes(distance - 2) + tag + bytes([0, 0, 0, 1, 0, 0, 1, 2])).ljust(400, b"\0")
        assert read_frame_count(bytes(50) + frame) == 258
        assert read_frame_count(bytes(50) + frame[2:]) is None
    vbri = (b"\xff\xfb" + bytes(34) + b"VBRI" + bytes(10) + bytes([0, 0, 1, 3])).ljust(400, b"\0")
    assert read_frame_count(vbri) == 259
    assert read_frame_count(b"") is None


def test_samples_that_itunes_counts(folder):
    """As iTunes writes it: whole packets, no edit list, and a tag with priming, padding and the number of samples."""
    whole = 58 * 1024
    plain = make_sound(folder / "plain.m4a", "aac", samples=whole, container_options={"use_editlist": "0"})
    tagged = with_itunes_tag(plain, folder / "tagged.m4a", 1024, 458, whole - 458)
    index, expected = index_of(tagged), ffmpeg_decode(tagged)
    assert len(index) == whole - 458 == len(expected)
    with contextlib.closing(reader_of(tagged, index)) as reader:
        assert np.array_equal(reader.read(0, whole), expected)
        assert np.array_equal(reader.read(whole - 600, whole), expected[-142:])
    assert len(index_of(plain)) == whole + 1024  # without the tag, nothing says that the encoder's delay is one


def test_the_padding_of_opus_in_mp4(folder):
    """ffmpeg 9 plays the padding that the edit list leaves out; all samples before it are equal."""
    path = make_sound(folder / "opus.mp4", "libopus", rate=48_000)
    index = index_of(path)
    expected = ffmpeg_decode(path)
    assert len(index) == 60_000  # 1.25 s, in milliseconds
    with contextlib.closing(reader_of(path, index)) as reader:
        assert np.array_equal(reader.read(0, len(index)), expected[: len(index)])


@pytest.mark.parametrize(
    ("rate", "new_rate"), fast_first([(44_100, 16_000), (16_000, 44_100), (48_000, 44_100), (8000, 8001)])
)
def test_the_length_of_resampled_sounds(rate, new_rate):
    for count in (1, 2, 15, 16, 17, 100, 441, 5000, 20_000, 30_011):
        resampler = av.AudioResampler(format="s16", layout="mono", rate=new_rate)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, count), np.int16), "s16", "mono")
        frame.sample_rate = rate
        results = [*resampler.resample(frame), *resampler.resample(None)]
        assert count_converted(count, rate, new_rate) == sum(result.samples for result in results), count


def test_the_samples_of_opus_packets(folder):
    path = make(folder, "voice.opus")
    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                assert count_opus_samples(bytes(packet)) == 960
    assert count_opus_samples(b"") == 0
    assert count_opus_samples(bytes([3, 5])) == 5 * 480  # SILK, 10 ms, a counted number of frames
    assert count_opus_samples(bytes([16 << 3 | 1])) == 2 * 120  # CELT, 2.5 ms, two frames


def test_a_cached_index_is_checked(folder):
    index = index_of(make(folder, "mp3.mp3"))
    blob = encode_audio_index(index)
    for size in (0, 10, len(blob) - 1):
        with pytest.raises(InvalidAudioBlob):
            decode_audio_index(blob[:size], None)
    with pytest.raises(InvalidAudioBlob):
        decode_audio_index(blob, 20)  # more packets than bytes
    with pytest.raises(InvalidAudioBlob):
        decode_audio_index(b"", None)
    flipped = bytearray(blob)
    flipped[len(blob) // 2] ^= 1
    with pytest.raises(InvalidAudioBlob):
        decode_audio_index(flipped, None)
    index.kept[0, 1] += 1 << 20
    with pytest.raises(InvalidAudioBlob, match="more samples"):
        decode_audio_index(encode_audio_index(index), None)
