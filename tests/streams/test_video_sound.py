"""Videos with sound: the samples of each frame are those that are heard while it is shown."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from made_clips import make_clip
from made_sounds import ffmpeg_decode, make_flashes, with_zeroed_packet
from range_server import served
from servers.gateway_thread import run_gateway
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.errors import ConfigError, CorruptStream, StreamFailed, UnreadableStream
from streamloader.media.audio.timeline import MAX_OFFSET_S
from streamloader.stores import readahead
from streamloader.stores.io_thread import open_shared_store
from streamloader.testing import StreamSuite, describe_streams, read_stream
from streamloader.testing.faults.http import HttpServer

RATE = 48_000
UNEVEN = (0, 40, 50, 180, 190, 240, 410, 430, 470, 480)  # milliseconds of ten frames


def uneven(number):
    return 500 * (number // 10) + UNEVEN[number % 10]


def steps_of(path, **options):
    seek, steps = options.pop("seek", None), options.pop("steps", None)
    dataset = sl.VideoStreams(path, audio=options.pop("audio", True), pix_fmt="gray", **options)
    (info,) = describe_streams(dataset)
    return read_stream(dataset, info, seek=seek, steps=steps)


def click_offsets(steps):
    """Return by step that shows a flash how many samples after its first sample the closest click begins."""
    loud = np.flatnonzero(np.abs(joined(steps)[:, 0].astype(float)) > 0.3)
    clicks = loud[np.diff(loud, prepend=-1000) > 100]
    firsts = np.cumsum(steps["audio_length"]) - steps["audio_length"]
    shown = np.flatnonzero(steps["data"].mean(axis=(1, 2, 3)) > 128).tolist()
    return {step: int(min(clicks - firsts[step], key=abs)) for step in shown}


def count_requested(byte_range, size):
    """Return the number of bytes of a request with this Range header."""
    if not byte_range:
        return size
    first, _, last = byte_range.removeprefix("bytes=").partition("-")
    return min(size, int(last) + 1 if last else size) - int(first)


def joined(steps):
    """Return the samples of all steps."""
    return np.concatenate([step[:n] for step, n in zip(steps["audio"], steps["audio_length"], strict=True)])


# name -> arguments of the clip, and the greatest offset of a click in samples.
CLIPS = {
    "flac.mkv": ({}, 1),
    "aac.mp4": ({"sound_codec": "aac"}, 2),
    "mp3.mp4": ({"sound_codec": "libmp3lame"}, 2),
    "opus.webm": ({"sound_codec": "libopus", "codec": "libvpx"}, 60),  # its frames of 20 ms blur a click
    "aac.ts": ({"sound_codec": "aac", "codec": "libx264"}, 2 + 1024),  # TS does not state the priming samples
    "uneven.mkv": ({"ticks": uneven}, 1),
    "uneven.mp4": ({"ticks": uneven, "sound_codec": "aac"}, 2),
    "late.mkv": ({"delay": 0.3}, 1),
    "early.mkv": ({"delay": 0.3 - 0.5}, 1),
    "drift.mkv": ({"stretch": 1.02}, MAX_OFFSET_S * RATE + 48),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("flashes")


def make(folder, name):
    path = folder / name
    return path if path.exists() else make_flashes(path, **CLIPS[name][0])


@pytest.mark.parametrize("name", only_fast(CLIPS, ["aac.mp4", "uneven.mkv", "drift.mkv"]))
def test_clicks_are_heard_with_their_flashes(name, folder):
    steps = steps_of(make(folder, name))
    offsets = click_offsets(steps)
    assert list(offsets) == [10, 23, 41]
    for step, offset in offsets.items():
        assert abs(offset) <= CLIPS[name][1], (step, offset)
        assert abs(offset) < steps["audio_length"][step] / 2 or name == "aac.ts"


def test_the_samples_of_all_steps_are_the_sound(folder):
    for name in ("flac.mkv", "aac.mp4", "uneven.mkv"):
        path = make(folder, name)
        whole = ffmpeg_decode(path)
        for options in ({}, {"stride": 3}, {"fps": 30}, {"fps": "30000/1001", "stride": 2}):
            sound = joined(steps_of(path, **options))
            assert len(whole) - 48 <= len(sound) <= len(whole)
            assert np.array_equal(sound, whole[: len(sound)]), (name, options)


def test_a_step_has_the_samples_up_to_the_next_step(folder):
    steps = steps_of(make(folder, "uneven.mkv"))
    times = np.array([uneven(number) for number in range(51)])
    assert steps["audio_length"][:-1].tolist() == (np.diff(times) * RATE // 1000).tolist()[:-1]
    assert steps["audio"].shape[1:] == (170 * RATE // 1000, 2)  # of the longest frame
    for step, count in enumerate(steps["audio_length"]):
        assert not steps["audio"][step, count:].any()
    strided = steps_of(make(folder, "uneven.mkv"), stride=7)
    assert strided["audio_length"][:-1].tolist() == (np.diff(times[:50:7]) * RATE // 1000).tolist()


@pytest.mark.parametrize(
    "options", fast_first([{"fps": 24}, {}, {"stride": 2}, {"fps": 60, "stride": 3, "max_frames": 40}])
)
def test_flashes_and_clicks_stay_together_at_any_rate(options, folder):
    steps = steps_of(make(folder, "uneven.mkv"), **options)
    heard = np.flatnonzero(np.abs(steps["audio"]).max(axis=(1, 2)) > 0.3).tolist()
    shown = set(click_offsets(steps))
    for step in heard:  # a flash that no step shows is heard in the step before
        assert step in shown or steps["audio_length"][step] > 0
    assert shown <= {*heard, *(step + 1 for step in heard)}


def test_where_the_sound_starts_late(folder):
    steps = steps_of(make(folder, "late.mkv"))
    lengths = steps["audio_length"].tolist()
    assert lengths[:7] == [0] * 7  # 280 ms
    assert lengths[7:-1] == [1920] * 42
    assert not steps["audio"][7, : 20 * 48].any()  # silence up to 300 ms


def test_where_the_sound_ends_early(folder):
    steps = steps_of(make_flashes(folder / "short.mkv", seconds=1.01))
    assert steps["audio_length"].tolist() == [1920] * 25 + [480] + [0] * 24


def test_missing_packets_are_silence(folder):
    """A second of sound is missing. What follows is neither earlier nor later."""
    path = make_flashes(folder / "gap.mkv", frames=100, flashes=(10, 90), dropped=range(10, 20))
    steps = steps_of(path)
    offsets = click_offsets(steps)
    assert list(offsets) == [10, 90]
    assert all(abs(offset) <= MAX_OFFSET_S * RATE for offset in offsets.values())
    assert set(steps["audio_length"][:-1].tolist()) == {1920}


def test_an_hour(folder):
    """The clocks of sound and frames differ by 100 ms in an hour, and Matroska rounds all times to milliseconds."""
    flashes = (5, 9000, 17_990)
    path = make_flashes(
        folder / "hour.mkv", frames=18_000, flashes=flashes, ticks=lambda k: 200 * k, sound_codec="pcm_s16le",
        rate=8000, layout="mono", stretch=1 + 0.1 / 3600,
    )  # fmt: skip
    for flash in flashes:
        steps = steps_of(path, seek=flash - 2, steps=5)
        (offset,) = click_offsets(steps).values()
        assert abs(offset) <= MAX_OFFSET_S * 8000 + 8
        assert steps["audio_length"].tolist() == [1600] * 5


def test_videos_without_sound_have_no_samples(folder):
    silent = make_flashes(folder / "silent.mp4", frames=12, sound_codec=None)
    dataset = sl.VideoStreams([silent, make(folder, "flac.mkv")], audio=True)
    infos = describe_streams(dataset)
    steps = read_stream(dataset, infos[0])
    assert steps["audio"].shape == (12, 1920, 2)
    assert not steps["audio"].any()
    assert not steps["audio_length"].any()
    with pytest.raises(ConfigError, match="none of the files has sound"):
        describe_streams(sl.VideoStreams(silent, audio=True))
    form = sl.AudioOptions(sample_rate=8000, channels=1, dtype="int16")
    assert steps_of(silent, audio=form)["audio"].shape == (12, 320, 1)


def test_videos_with_two_sounds(folder):
    two = make_flashes(folder / "two.mkv", sound_codecs=("flac",))
    assert click_offsets(steps_of(two)) == {10: 0, 23: 0, 41: 0}  # the first, of two that are alike
    first, second = (steps_of(two, audio=sl.AudioOptions(audio_stream=number)) for number in (0, 1))
    assert first["audio"].any()
    assert not second["audio"].any()
    assert (second["audio_length"][:-1] == 1920).all()
    with pytest.raises(UnreadableStream, match="has 2 audio streams, and audio_stream=2 was requested"):
        describe_streams(sl.VideoStreams(two, audio=sl.AudioOptions(audio_stream=2)))


def test_options_of_the_sound(folder):
    form = sl.AudioOptions(sample_rate=16_000, channels=1, dtype="int16", block=700)
    steps = steps_of(make(folder, "flac.mkv"), audio=form)
    assert steps["audio"].shape == (50, 700, 1)
    assert steps["audio"].dtype == np.int16
    expected = ffmpeg_decode(folder / "flac.mkv", "int16", 16_000, 1)
    assert np.array_equal(joined(steps), expected[: len(joined(steps))])
    with pytest.raises(StreamFailed, match=r"step 0 of .*flac.mkv has 1920 samples, but there is room for 1919"):
        steps_of(folder / "flac.mkv", audio=sl.AudioOptions(block=1919))
    for wrong in ({"sample_rate": 0}, {"channels": "square"}, {"channels": 0}, {"dtype": "int8"}, {"block": 0}):
        with pytest.raises(ConfigError):
            sl.AudioOptions(**wrong)
    with pytest.raises(ConfigError, match="audio must be"):
        sl.VideoStreams(folder / "flac.mkv", audio="yes")


def test_videos_of_an_index_file(folder):
    path = make(folder, "aac.mp4")
    sl.index_videos(path, folder / "index.sqlite")
    form = sl.AudioOptions(sample_rate=48_000, channels=2, block=1920)
    dataset = sl.VideoStreams.from_index(folder / "index.sqlite", audio=form)
    (info,) = describe_streams(dataset)
    expected = steps_of(path)
    found = read_stream(dataset, info)
    assert np.array_equal(found["audio"], expected["audio"])
    assert np.array_equal(found["audio_length"], expected["audio_length"])
    by_rate = sl.VideoStreams.from_index(
        folder / "index.sqlite", fps=25, audio=sl.AudioOptions(sample_rate=48_000, channels=2)
    )
    (info,) = describe_streams(by_rate)
    assert np.array_equal(read_stream(by_rate, info)["audio"], expected["audio"])
    with pytest.raises(ConfigError, match="does not describe sound"):
        sl.VideoStreams.from_index(folder / "index.sqlite", audio=True)


def test_a_damaged_sound(folder):
    """The steps before the damage are delivered; then one error names the step."""
    intact = make_flashes(folder / "noisy.mkv", noisy=True, frames=100)
    broken = with_zeroed_packet(intact, folder / "zeroed.mkv", 30)  # FLAC has packets of 96 ms
    options = {"audio": True, "pix_fmt": "gray"}
    dataset = sl.VideoStreams(broken, **options)
    with pytest.raises(CorruptStream, match="truncated or damaged at sample"):
        describe_streams(dataset)  # decoded once, as in any Matroska file with FLAC
    described = sl.VideoStreams(intact, **options)
    (info,) = describe_streams(described)
    expected = read_stream(described, info)
    with sl.MultiStreamer(sl.VideoStreams([intact, broken], **options), 1, 4, on_error="skip") as loader:
        assert [stream.key for stream in loader.streams] == [str(intact)]
    kept = sl.VideoStreams(broken, **options, damaged="keep")
    (info,) = describe_streams(kept)
    found = read_stream(kept, info)
    assert np.array_equal(found["data"], expected["data"])
    assert np.array_equal(found["audio"][:60], expected["audio"][:60])
    assert np.array_equal(found["audio"][-10:], expected["audio"][-10:])  # in time, after the silence


def test_a_video_in_a_store_is_fetched_once(folder):
    """Frames and sound are read at about the same position. What one of them has fetched serves the other."""
    path = make_flashes(folder / "large.mkv", frames=250, size=64, sound_codec="pcm_s16le", noisy=True)
    data = path.read_bytes()
    with run_gateway(HttpServer({"large.mkv": data})) as server:
        fetched = {}
        for audio in (False, True):
            dataset = sl.VideoStreams(f"{server.url}/large.mkv", audio=audio, pix_fmt="gray")
            (info,) = describe_streams(dataset)
            server.requests.clear()
            steps = read_stream(dataset, info, block=16)
            fetched[audio] = sum(
                count_requested(request.headers.get("range"), len(data)) for request in server.requests
            )
            if audio:
                assert np.array_equal(joined(steps), joined(steps_of(path)))
                middle = read_stream(dataset, info, seek=100, steps=9)
                assert np.array_equal(middle["audio"], steps["audio"][100:109])
    assert fetched[True] < 1.3 * fetched[False] < 2 * len(data)


def test_a_sound_that_cannot_be_opened_leaves_nothing_open(folder):
    store, _ = open_shared_store("memory://sounds-of-videos/a.mkv")
    with store:
        store.write("a.mkv", make(folder, "flac.mkv").read_bytes())
        dataset = sl.VideoStreams("memory://sounds-of-videos/a.mkv", audio=sl.AudioOptions(block=100))
        (info,) = describe_streams(dataset)
        before = len(readahead._open_files)
        with pytest.raises(StreamFailed, match="there is room for 100"):
            read_stream(dataset, info)
        assert len(readahead._open_files) == before


class TestVideosWithSound(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("clips")
        cls.paths = [
            make_flashes(folder / "a.mkv", frames=9, flashes=(3, 7), ticks=uneven, sound_codec="libopus"),
            make_flashes(folder / "b.mp4", frames=6, flashes=(2,), sound_codec="aac", delay=0.1),
            make_flashes(folder / "c.mp4", frames=2, sound_codec=None),
        ]

    def make_dataset(self):
        return sl.VideoStreams(self.paths, pix_fmt="gray", audio=sl.AudioOptions(sample_rate=8000, channels=1))


@pytest.mark.slow
class TestChosenFramesWithSound(TestVideosWithSound):
    def make_dataset(self):
        form = sl.AudioOptions(sample_rate=16_000, channels=1, dtype="int16")
        return sl.VideoStreams(
            self.paths, pix_fmt="gray", fps=20, stride=2, max_frames=4, random_start=True, audio=form
        )


@pytest.mark.slow
class TestVideosWithSoundBehindHttp(TestVideosWithSound):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _addresses(cls, _files):
        with served(cls.paths[0].parent) as url:
            cls.addresses = [f"{url}/{path.name}" for path in cls.paths]
            yield

    def make_dataset(self):
        return sl.VideoStreams(self.addresses, pix_fmt="gray", audio=sl.AudioOptions(sample_rate=8000, channels=1))


def test_resumes_with_another_number_of_workers(folder):
    paths = [make(folder, name) for name in ("uneven.mkv", "aac.mp4", "late.mkv")]
    make_loader = functools.partial(
        sl.MultiStreamer, sl.VideoStreams(paths, pix_fmt="gray", fps=25, audio=True), batch_size=2, window=5, seed=1
    )
    with make_loader() as loader:
        batches = [{name: array.copy() for name, array in batch.numpy().items()} for batch in loader]
    with make_loader(num_workers=2) as loader:
        for _, _ in zip(range(4), loader, strict=False):
            pass
        state = loader.state_dict()
    with make_loader() as loader:
        loader.load_state_dict(state)
        rest = [batch.numpy() for batch in loader]
        assert len(rest) == len(batches) - 4
        for found, expected in zip(rest, batches[4:], strict=True):
            assert np.array_equal(found["audio"], expected["audio"])
            assert np.array_equal(found["audio_length"], expected["audio_length"])


def test_a_file_that_is_no_video_is_still_one_error(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", frames=4)
    (tmp_path / "b.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(UnreadableStream, match=r"b\.mp4 cannot be opened as a video"):
        describe_streams(sl.VideoStreams([clip, tmp_path / "b.mp4"], audio=True))
