"""AudioStreams: blocks of samples, from local files and stores, and what happens with bad input."""

from __future__ import annotations

import io
import logging
import tarfile
import tracemalloc
import wave
import zipfile

import numpy as np
import pytest
from made_clips import make_clip, with_audio_only
from made_sounds import SOUNDS, ffmpeg_decode, make_flashes, make_sound, pyav_decode, with_zeroed_packet
from range_server import served
from servers.seaweed import FULL
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.errors import ConfigError, CorruptStream, ObjectChanged, StreamNotFound, UnreadableStream
from streamloader.media.audio import index_cache
from streamloader.stores.io_thread import open_shared_store
from streamloader.streams.audio import count_steps
from streamloader.streams.base import parse_in_processes
from streamloader.testing import StreamSuite, describe_streams, read_stream

NAMES = ("pcm.wav", "flac.flac", "aac.m4a", "mp3.mp3", "opus.opus")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some sounds in a folder."""
    folder = tmp_path_factory.mktemp("sounds")
    for name in NAMES:
        SOUNDS[name](folder / name)
    return folder


def blocks_of(samples, block, hop):
    """Return the steps that contain all samples, one by one."""
    steps, start = {"data": [], "length": []}, 0
    while start == 0 or start + block - hop < len(samples):
        if start < len(samples):
            part = samples[start : start + block]
            steps["data"].append(np.concatenate([part, np.zeros((block - len(part), part.shape[1]), part.dtype)]))
            steps["length"].append(np.int32(len(part)))
        start += hop
    return {name: np.stack(values) for name, values in steps.items()}


class TestSounds(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("sounds")
        cls.paths = [
            make_sound(folder / "a.m4a", "aac", samples=6001),
            make_sound(folder / "b.mp3", "libmp3lame", samples=5000),
            make_sound(folder / "c.opus", "libopus", rate=48_000, samples=4000),
            make_sound(folder / "d.wav", "pcm_s16le", samples=1000),
        ]

    def make_dataset(self):
        return sl.AudioStreams(self.paths, sample_rate=16_000, channels=1, block=400)

    def expected(self):
        return [blocks_of(ffmpeg_decode(path, "float32", 16_000, 1), 400, 400) for path in self.paths]


@pytest.mark.slow
class TestOverlappingBlocks(TestSounds):
    def make_dataset(self):
        return sl.AudioStreams(self.paths, 16_000, 2, block=500, hop=320, dtype="int16", verify="samples")

    def expected(self):
        return [blocks_of(ffmpeg_decode(path, "int16", 16_000, 2), 500, 320) for path in self.paths]


@pytest.mark.slow
class TestSoundsBehindHttp(TestSounds):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _addresses(cls, _files):
        with served(cls.paths[0].parent) as url:
            cls.addresses = [f"{url}/{path.name}" for path in cls.paths]
            yield

    def make_dataset(self):
        return sl.AudioStreams(self.addresses, sample_rate=16_000, channels=1, block=400)


@pytest.mark.parametrize(("block", "hop"), [(1, 1), (7, 7), (7, 3), (3, 7), (100, 1), (10, 10), (10, 9)])
def test_the_steps_contain_every_sample(block, hop):
    for count in range(40):
        steps = int(count_steps(np.array([count]), block, hop)[0])
        starts = [step * hop for step in range(steps)]
        assert all(start < count for start in starts)
        covered = {sample for start in starts for sample in range(start, min(count, start + block))}
        wanted = {sample for sample in range(count) if sample % hop < block}
        assert covered >= wanted
        if steps > 1:  # the last step is needed
            assert starts[-2] + block < count


@pytest.mark.parametrize("hop", [320, 700])
def test_blocks_that_overlap_or_leave_out_samples(hop, folder):
    dataset = sl.AudioStreams(folder / "mp3.mp3", 16_000, 2, block=500, hop=hop, dtype="int16")
    (info,) = describe_streams(dataset)
    samples = ffmpeg_decode(folder / "mp3.mp3", "int16", 16_000)
    expected = blocks_of(samples, 500, hop) if hop < 500 else None
    steps = read_stream(dataset, info)
    for name, values in (expected or {}).items():
        assert np.array_equal(steps[name], values)
    for step, (data, length) in enumerate(zip(steps["data"], steps["length"], strict=True)):
        assert np.array_equal(data[:length], samples[step * hop : step * hop + 500])
    assert np.array_equal(read_stream(dataset, info, block=3, seek=5)["data"], steps["data"][5:])


def test_what_lies_between_steps_is_not_in_memory(tmp_path):
    path = make_sound(tmp_path / "long.wav", "pcm_s16le", rate=8000, layout="mono", samples=1_000_000)
    dataset = sl.AudioStreams(path, block=10, hop=50_000)
    (info,) = describe_streams(dataset)
    samples = pyav_decode(path)[:, 0] / np.float32(32768)
    tracemalloc.start()
    try:
        steps = read_stream(dataset, info, block=20)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()
    assert np.array_equal(steps["data"][..., 0], samples.reshape(20, -1)[:, :10])


def test_own_rates_and_channels(folder):
    dataset = sl.AudioStreams([folder / name for name in NAMES[:4]])
    infos = describe_streams(dataset)
    assert [info.length for info in infos] == [59, 59, 59, 59]
    assert dataset.fields["data"] == sl.Field((1024, 2), "float32")
    assert dataset.fields["length"] == sl.Field((), "int32")
    steps = read_stream(dataset, infos[1])
    assert np.array_equal(steps["data"].reshape(-1, 2)[:60_001], pyav_decode(folder / "flac.flac") / np.float32(32768))
    assert steps["length"].tolist() == [1024] * 58 + [609]
    assert not steps["data"][-1, 609:].any()
    with pytest.raises(ConfigError, match=r"pcm.wav has 44100 Hz, .*opus.opus has 48000 Hz. Pass sample_rate="):
        describe_streams(sl.AudioStreams([folder / name for name in NAMES]))
    mono = make_sound(folder / "mono.flac", "flac", layout="mono", samples=5000)
    with pytest.raises(ConfigError, match="Pass channels="):
        describe_streams(sl.AudioStreams([folder / "flac.flac", mono]))


def test_times_are_positions(folder):
    dataset = sl.AudioStreams(folder / "mp3.mp3", sample_rate=8000, block=800, hop=400)
    with sl.MultiStreamer(dataset, 1, 5) as loader:
        times = [time for batch in loader for time in batch.time[batch.valid].tolist()]
    assert times == [step * 400 / 8000 for step in range(len(times))]


def test_layouts(folder):
    surround = SOUNDS["surround.m4a"](folder / "surround.m4a")
    dataset = sl.AudioStreams(surround, channels="5.1", dtype="int16", block=4096)
    (info,) = describe_streams(dataset)
    expected = ffmpeg_decode(surround, "int16", None, 6)
    assert np.array_equal(read_stream(dataset, info)["data"].reshape(-1, 6)[: len(expected)], expected)
    stereo = sl.AudioStreams(surround, channels="stereo", block=4096)
    (info,) = describe_streams(stereo)
    expected = ffmpeg_decode(surround, "float32", None, 2)
    assert np.array_equal(read_stream(stereo, info)["data"].reshape(-1, 2)[: len(expected)], expected)


def test_channels_that_ffmpeg_cannot_mix(tmp_path):
    path = tmp_path / "nine.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((9, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(18 * 5000))
    dataset = sl.AudioStreams(path)
    (info,) = describe_streams(dataset)
    assert read_stream(dataset, info)["data"].shape == (5, 1024, 9)
    mixed = sl.AudioStreams(path, channels=1)
    (info,) = describe_streams(mixed)
    with pytest.raises(
        UnreadableStream, match="cannot convert sound of 8000 Hz with the channels 9 channels"
    ) as caught:
        read_stream(mixed, info)
    assert caught.value.stream == str(path)


def test_a_wav_file_without_sizes(folder, tmp_path):
    """As a program writes it into a pipe."""
    data = bytearray((folder / "pcm.wav").read_bytes())
    for position in (4, data.index(b"data") + 4):
        data[position : position + 4] = b"\xff" * 4
    (tmp_path / "piped.wav").write_bytes(data)
    (info,) = describe_streams(sl.AudioStreams(tmp_path / "piped.wav"))
    assert info.extra["samples"] == 60_001


def test_the_sound_of_videos(tmp_path):
    path = make_flashes(tmp_path / "a.mkv", sound_codecs=("flac",))
    for number, is_loud in ((None, True), (0, True), (1, False)):
        dataset = sl.AudioStreams(path, audio_stream=number)
        (info,) = describe_streams(dataset)
        assert bool(read_stream(dataset, info)["data"].any()) == is_loud
    with pytest.raises(UnreadableStream, match="has 2 audio streams, and audio_stream=2 was requested"):
        describe_streams(sl.AudioStreams(path, audio_stream=2))


def test_directories(folder, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp3", "deep/a.flac", "notes.txt"):
        (tmp_path / name).write_bytes((folder / ("mp3.mp3" if name == "b.mp3" else "flac.flac")).read_bytes())
    keys = [info.key for info in describe_streams(sl.AudioStreams(tmp_path))]
    assert keys == [str(tmp_path / "b.mp3"), str(tmp_path / "deep/a.flac")]
    with pytest.raises(StreamNotFound):
        describe_streams(sl.AudioStreams(tmp_path / "*.wav"))


def test_members_of_tar_and_zip_files(folder, tmp_path):
    expected = sl.AudioStreams([folder / name for name in NAMES], 16_000, 1)
    wanted = [read_stream(expected, info) for info in describe_streams(expected)]
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in NAMES:
            data = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            archive.writestr(name, data)
    for container in ("a.tar", "a.zip"):
        dataset = sl.AudioStreams([f"{tmp_path / container}!/{name}" for name in NAMES], 16_000, 1)
        for info, steps in zip(describe_streams(dataset), wanted, strict=True):
            found = read_stream(dataset, info)
            assert np.array_equal(found["data"], steps["data"])
            middle = read_stream(dataset, info, seek=len(steps["data"]) // 2)
            assert np.array_equal(middle["data"], steps["data"][len(steps["data"]) // 2 :])


def test_sounds_in_s3(folder, seaweed_server):
    bucket, server = seaweed_server.bucket(), seaweed_server
    address, options = f"s3://{bucket}/sounds/", server.options(FULL)
    store, _ = open_shared_store(f"{address}x", options)
    with store:
        for name in ("mp3.mp3", "opus.opus", "pcm.wav"):
            store.write(f"sounds/{name}", (folder / name).read_bytes())
    dataset = sl.AudioStreams(address, 16_000, 1, storage_options=options)
    infos = describe_streams(dataset)
    assert [info.key for info in infos] == [f"{address}{name}" for name in ("mp3.mp3", "opus.opus", "pcm.wav")]
    for info in infos:
        expected = blocks_of(ffmpeg_decode(folder / info.key.rpartition("/")[2], "float32", 16_000, 1), 1024, 1024)
        assert np.array_equal(read_stream(dataset, info)["data"], expected["data"])
        assert np.array_equal(read_stream(dataset, info, seek=15)["data"], expected["data"][15:])


def test_sounds_in_a_store(folder):
    store, path = open_shared_store("memory://sounds/a.mp3", {})
    with store:
        store.write(path, (folder / "mp3.mp3").read_bytes())
        dataset = sl.AudioStreams("memory://sounds/a.mp3")
        (info,) = describe_streams(dataset)
        local = sl.AudioStreams(folder / "mp3.mp3")
        (local_info,) = describe_streams(local)
        assert np.array_equal(read_stream(dataset, info)["data"], read_stream(local, local_info)["data"])
        assert dataset.source_sizes(sl.StreamTable.from_infos([info])).sizes.tolist() == [
            (folder / "mp3.mp3").stat().st_size
        ]
        store.write(path, (folder / "flac.flac").read_bytes())
        with pytest.raises(ObjectChanged):
            read_stream(dataset, info)


def test_a_damaged_last_page_in_a_store(folder):
    """FFmpeg leaves it out without an error."""
    data = bytearray((folder / "opus.opus").read_bytes())
    data[-100] ^= 1
    store, path = open_shared_store("memory://damaged-sounds/a.opus", {})
    with store:
        store.write(path, bytes(data))
        with pytest.raises(CorruptStream, match=r"the page at byte \d+ is damaged") as caught:
            describe_streams(sl.AudioStreams("memory://damaged-sounds/a.opus"))
        assert caught.value.stream == "memory://damaged-sounds/a.opus"


def test_indexes_are_cached(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path))
    parsed = []
    real = index_cache.index_audio
    monkeypatch.setattr(
        index_cache, "index_audio", lambda video, settings: parsed.append(video) or real(video, settings)
    )
    path = str(folder / "opus.opus")
    for verify, expected in (("tables", [path]), ("tables", []), ("samples", [path]), ("tables", []), ("samples", [])):
        dataset = sl.AudioStreams(path, verify=verify)
        (info,) = describe_streams(dataset)
        read_stream(dataset, info, steps=2)
        assert parsed == expected
        parsed.clear()


def test_parsing_in_child_processes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path))
    monkeypatch.setattr(index_cache, "index_audio", lambda *_: pytest.fail("parsed in this process"))
    (tmp_path / "bad.mp3").write_bytes(b"junk" * 100)
    dataset = sl.AudioStreams([folder / "mp3.mp3", tmp_path / "bad.mp3"], unreadable="skip")
    with parse_in_processes():
        (info,) = describe_streams(dataset)
    assert info.length == 59
    assert [skipped.error for skipped in dataset.skipped] == ["UnreadableStream"]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_options_are_checked(folder):
    for wrong in (
        {"sample_rate": 0}, {"sample_rate": 44_100.5}, {"channels": 0}, {"channels": 65}, {"channels": "round"},
        {"block": 0}, {"hop": 0}, {"hop": 1.5}, {"dtype": "int8"}, {"dtype": object()}, {"audio_stream": -1},
        {"damaged": "maybe"}, {"verify": "frames"}, {"unreadable": "maybe"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            sl.AudioStreams(folder, **wrong)
    with pytest.raises(ConfigError, match="unknown before index"):
        _ = sl.AudioStreams(folder).fields


def test_files_without_sound(folder, tmp_path, caplog):
    video = make_clip(tmp_path / "video.mp4", frames=4)
    picture = tmp_path / "picture.mp3"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    empty, junk = tmp_path / "empty.wav", tmp_path / "junk.flac"
    empty.write_bytes(b"")
    junk.write_bytes(b"junk" * 1000)
    header = tmp_path / "header.wav"
    header.write_bytes((folder / "pcm.wav").read_bytes()[:44])
    for path, problem in (
        (video, "contains no sound (only: video)"),
        (picture, "it is a PNG picture, and not a sound"),
        (empty, "is empty (0 bytes)"),
        (junk, "cannot be opened as a sound"),
        (header, "truncated"),
        (tmp_path / "missing.wav", "missing.wav"),
    ):
        with pytest.raises((UnreadableStream, CorruptStream, StreamNotFound)) as caught:
            describe_streams(sl.AudioStreams(path))
        assert problem in str(caught.value)
        assert str(path) in str(caught.value)
    with caplog.at_level(logging.WARNING, "streamloader"):
        dataset = sl.AudioStreams([video, folder / "pcm.wav", junk], unreadable="skip")
        infos = describe_streams(dataset)
    assert [info.key for info in infos] == [str(folder / "pcm.wav")]
    assert [skipped.address for skipped in dataset.skipped] == [str(video), str(junk)]
    assert "left out 2 of 3 sounds that cannot be used" in caplog.text
    with pytest.raises(UnreadableStream, match="2 of 3 sounds cannot be used"):
        describe_streams(sl.AudioStreams([video, folder / "pcm.wav", junk]))


@pytest.mark.parametrize("name", only_fast(["pcm.wav", "aac.m4a", "aac.mkv"], ["aac.m4a"]))
def test_a_sound_that_breaks_off(name, tmp_path):
    whole = SOUNDS[name](tmp_path / f"whole_{name}")
    if name == "aac.m4a":  # with its tables in front, as for the web
        whole = make_sound(tmp_path / "front.m4a", "aac", container_options={"movflags": "faststart"})
    broken = tmp_path / name
    data = whole.read_bytes()
    broken.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(CorruptStream, match=r"it declares \d+ bytes, but ends at byte") as caught:
        describe_streams(sl.AudioStreams(broken))
    assert str(broken) in str(caught.value)
    dataset = sl.AudioStreams(broken, damaged="keep")
    (info,) = describe_streams(dataset)
    count = int(read_stream(dataset, info)["length"].sum())
    assert 0.5 * 60_001 < count < 0.75 * 60_001
    expected = sl.AudioStreams(whole)
    (other,) = describe_streams(expected)
    found = read_stream(dataset, info, steps=20)
    assert np.array_equal(found["data"], read_stream(expected, other, steps=20)["data"])


def play(dataset):
    """Return the samples up to the error of a loader, step by step, and the error."""
    steps = []
    with sl.MultiStreamer(dataset, 1, 1) as loader:
        try:
            steps.extend(batch.numpy()["data"][0, 0].copy() for batch in loader)
        except CorruptStream as error:
            return steps, error
    return steps, None


def test_a_flac_file_that_breaks_off(tmp_path):
    """Its header has the number of samples, so only playing it shows that some are missing."""
    whole = make_sound(tmp_path / "whole.flac", "flac", samples=150_001)
    data = whole.read_bytes()
    broken = tmp_path / "broken.flac"
    broken.write_bytes(data[: len(data) * 2 // 3])
    dataset = sl.AudioStreams(broken, block=512)
    (info,) = describe_streams(dataset)
    assert info.length == -(-150_001 // 512)
    steps, error = play(dataset)
    assert 80_000 < 512 * len(steps) < 110_000
    assert (error.stream, error.offset) == (str(broken), len(steps))
    assert np.array_equal(np.concatenate(steps), ffmpeg_decode(whole)[: 512 * len(steps)])
    with pytest.raises(CorruptStream):
        describe_streams(sl.AudioStreams(broken, verify="samples"))
    kept = sl.AudioStreams(broken, damaged="keep", block=512)
    (info,) = describe_streams(kept)
    assert int(read_stream(kept, info)["length"].sum()) >= 512 * len(steps)


@pytest.mark.parametrize(
    "name", only_fast(["flac.flac", "flac.mkv", "aac.m4a", "opus.webm", "alac.m4a"], ["flac.flac"])
)
def test_zeroed_packets_while_it_plays(name, tmp_path):
    """What comes before the packet is delivered, then one error names the step."""
    whole = make_sound(tmp_path / f"whole_{name}", **(SOUNDS[name].keywords | {"samples": 150_001}))
    number = 9 if name in {"flac.mkv", "flac.flac", "alac.m4a"} else 60
    broken = with_zeroed_packet(whole, tmp_path / name, number)
    expected = sl.AudioStreams(whole, block=512)
    (info,) = describe_streams(expected)
    intact = read_stream(expected, info)["data"]
    dataset = sl.AudioStreams(broken, block=512)
    if name == "flac.mkv":  # decoded when it is indexed
        with pytest.raises(CorruptStream, match=r"at sample \d+ \(\d+\.\d+ s\)"):
            describe_streams(dataset)
    else:
        steps, error = play(dataset)
        assert 20 < len(steps) < len(intact)
        assert all(np.array_equal(*pair) for pair in zip(steps, intact, strict=False))
        assert error is not None
        assert (error.stream, error.offset) == (str(broken), len(steps))
    kept = sl.AudioStreams(broken, block=512, damaged="keep")
    (info,) = describe_streams(kept)
    found = read_stream(kept, info)["data"]
    assert np.array_equal(found[:20], intact[:20])
    assert np.array_equal(read_stream(kept, info, seek=31)["data"], found[31:])
    expected = ffmpeg_decode(broken)
    assert info.extra["samples"] == len(expected)
    assert np.array_equal(found.reshape(-1, 2)[: len(expected)], expected)


@pytest.mark.parametrize("name", fast_first(["flac.ogg", "opus.opus", "mp3.mp3"]))
def test_packets_that_ffmpeg_passes_over(name, tmp_path):
    """FFmpeg plays what follows as if nothing was missing."""
    whole = make_sound(tmp_path / f"whole_{name}", SOUNDS[name].keywords["codec"], rate=48_000, samples=200_000)
    broken = with_zeroed_packet(whole, tmp_path / name, 60 if name == "opus.opus" else 20)
    with pytest.raises(CorruptStream, match="truncated or damaged at sample") as caught:
        describe_streams(sl.AudioStreams(broken))
    assert str(broken) in str(caught.value)
    kept = sl.AudioStreams(broken, damaged="keep")
    (info,) = describe_streams(kept)
    assert np.array_equal(
        read_stream(kept, info)["data"].reshape(-1, 2)[: info.extra["samples"]], ffmpeg_decode(broken)
    )


def test_a_changed_file(folder, tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes((folder / "mp3.mp3").read_bytes())
    dataset = sl.AudioStreams(path)
    (info,) = describe_streams(dataset)
    path.write_bytes((folder / "mp3.mp3").read_bytes()[:-100])
    with pytest.raises(CorruptStream, match="was changed since the loader was built"):
        read_stream(dataset, info)


def test_a_loader_leaves_out_what_cannot_be_played(folder, tmp_path):
    data = make_sound(tmp_path / "whole.flac", "flac", samples=150_001).read_bytes()
    (tmp_path / "broken.flac").write_bytes(data[: len(data) * 2 // 3])
    paths = [folder / "flac.flac", tmp_path / "broken.flac"]
    with sl.MultiStreamer(sl.AudioStreams(paths, block=2048), 1, 3, on_error="skip", shuffle=False) as loader:
        heard = {}
        for batch in loader:
            for stream, length in zip(batch.stream[0].tolist(), batch["length"][0].tolist(), strict=True):
                heard[stream] = heard.get(stream, 0) + length
        assert heard[0] == 60_001
        assert [entry.key for entry in loader.quarantined] == [str(paths[1])]


def test_a_sound_of_audio_only_in_mp4(tmp_path):
    path = with_audio_only(tmp_path / "a.mp4")
    dataset = sl.AudioStreams(path)
    (info,) = describe_streams(dataset)
    assert int(read_stream(dataset, info)["length"].sum()) == len(ffmpeg_decode(path, channels=1))
