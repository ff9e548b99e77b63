"""The sound of recordings that were joined, so that the clock of the file jumps, beside their pictures."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from ffmpeg_program import run
from tiers import only_fast

import streamloader as sl
from streamloader.cli.main import main
from streamloader.media.video.clock_jumps import ClockJumps
from streamloader.media.video.indexer import index_video
from streamloader.testing import describe_streams, read_stream

RATE = 48_000
CODECS = {
    "ts": ("-c:v", "libx264", "-bf", "2", "-g", "25", "-c:a", "aac"),
    "m2ts": ("-c:v", "libx264", "-bf", "2", "-g", "25", "-c:a", "ac3"),
    "mpg": ("-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-c:a", "mp2"),
}
FIRST_S, PERIOD_S, SECONDS = 0.4, 1, 3


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Return a function that returns a recording of flashes and beeps at the same times, which starts at a time."""
    folder = tmp_path_factory.mktemp("recordings")

    def get(suffix, start, seconds=SECONDS, sound_delay=0.0):
        path = folder / f"{start} {seconds} {sound_delay}.{suffix}"
        if not path.exists():
            flash = f"geq=lum='if(lt(mod(T-{FIRST_S}+10,{PERIOD_S}),0.06),235,16)':cb=128:cr=128"
            beep = f"if(lt(mod(t+{sound_delay}-{FIRST_S}+10,{PERIOD_S}),0.05),0.8*sin(2000*PI*t),0)"
            run(
                "-f", "lavfi", "-i", f"color=black:size=64x48:rate=25:duration={seconds},{flash}", "-itsoffset",
                sound_delay, "-f", "lavfi", "-i", f"aevalsrc='{beep}':s={RATE}:d={seconds - sound_delay}", "-map",
                "0:v", "-map", "1:a", *CODECS[suffix], "-output_ts_offset", start, path,
            )  # fmt: skip
        return path

    return get


def join(target, *parts):
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def open_joined(path):
    dataset = sl.VideoStreams(path, pix_fmt="gray", audio=sl.AudioOptions(block=8192))
    (info,) = describe_streams(dataset)
    return dataset, info


def onsets(steps):
    """Return when flashes and beeps begin, in seconds after the first frame. All frames last 1/25 s."""
    flashes = np.flatnonzero(steps["data"].mean(axis=(1, 2, 3)) > 100)
    flashes = flashes[np.diff(flashes, prepend=-99) > 1] / 25
    found = []
    for step, (samples, count) in enumerate(zip(steps["audio"], steps["audio_length"], strict=True)):
        found += (step / 25 + np.flatnonzero(np.abs(samples[:count, 0]) > 0.1) / RATE).tolist()
    beeps = np.array(found)
    return flashes, beeps[np.diff(beeps, prepend=-99) > PERIOD_S / 2]


JOINED = {
    "back.ts": (1000, 10), "forward.ts": (1000, 1990), "overlap.ts": (1000, 1002.4), "same.ts": (1000, 1000),
    "three.ts": (1000, 10, 5000), "wrap.ts": (95442, 20), "back.mpg": (1000, 10), "forward.mpg": (10, 1990),
    "back.m2ts": (1000, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", only_fast(JOINED, ["back.ts", "overlap.ts", "forward.mpg"]))
def test_beeps_are_heard_with_their_flashes(record, tmp_path, name):
    parts = [record(name.partition(".")[2], start) for start in JOINED[name]]
    dataset, info = open_joined(join(tmp_path / name, *parts))
    steps = read_stream(dataset, info)
    flashes, beeps = onsets(steps)
    assert len(steps["data"]) == 25 * SECONDS * len(parts)
    assert flashes.tolist() == [FIRST_S + number for number in range(SECONDS * len(parts))]
    assert np.abs(beeps - flashes).max() < 0.008  # a codec blurs a beep by a few milliseconds
    assert abs(int(steps["audio_length"].sum()) - RATE * SECONDS * len(parts)) < 0.05 * RATE


def test_a_sound_that_begins_late_in_each_recording_keeps_its_distance(record, tmp_path):
    parts = [record("ts", start, sound_delay=0.3) for start in (1000, 10)]
    dataset, info = open_joined(join(tmp_path / "late.ts", *parts))
    flashes, beeps = onsets(read_stream(dataset, info))
    assert np.abs(beeps - flashes).max() < 0.008


def test_the_same_samples_after_a_resume(record, tmp_path):
    dataset, info = open_joined(join(tmp_path / "joined.ts", record("ts", 1000), record("ts", 10)))
    whole = read_stream(dataset, info)
    for start in (0, 1, 70, 74, 75, 76, 80, 149):
        part = read_stream(dataset, info, seek=start)
        assert np.array_equal(part["audio"], whole["audio"][start:]), start
        assert np.array_equal(part["audio_length"], whole["audio_length"][start:]), start


@pytest.mark.parametrize("options", [("--mode", "copy"), ("--mode", "encode", "--fps", "25")])
def test_chunks_of_an_archive_have_the_sound_of_their_frames(record, tmp_path, options, capsys):
    path = join(tmp_path / "joined.ts", record("ts", 1000), record("ts", 10))
    archive = tmp_path / "archive"
    arguments = ("--audio", "--chunk-frames", "50", "--jobs", "0", "--quiet")
    assert main(["ingest", str(path), "--to", str(archive), *arguments, *options]) == 0, capsys.readouterr()
    beeps, flashes, start = [], [], 0.0
    for chunk in sorted(archive.rglob("*.m*[4v]")):
        with av.open(str(chunk)) as container:
            for frame in container.decode(audio=0):
                loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.1)
                beeps += (start + frame.time + loud / RATE).tolist()
        with av.open(str(chunk)) as container:
            shown = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
        flashes += [start + time for time, mean in shown if mean > 100]
        start += len(shown) / 25
    assert start == 2 * SECONDS
    for flash in range(2 * SECONDS):
        assert min(abs(np.array(beeps) - flash - FIRST_S)) < 0.03, flash  # a packet of sound at the edge of a chunk
        assert min(abs(np.array(flashes) - flash - FIRST_S)) < 1e-3


def test_the_index_of_a_file_keeps_the_jumps(record, tmp_path):
    path = join(tmp_path / "joined.ts", record("ts", 1000), record("ts", 10))
    sl.index_videos(str(path), str(tmp_path / "index.sqlite"))
    dataset = sl.VideoStreams.from_index(
        str(tmp_path / "index.sqlite"), pix_fmt="gray", audio=sl.AudioOptions(RATE, 1, block=8192)
    )
    (info,) = describe_streams(dataset)
    flashes, beeps = onsets(read_stream(dataset, info))
    assert np.abs(beeps - flashes).max() < 0.008
    (clock,) = {tuple(column.tolist()) for column in index_video(str(path)).clock.columns()[:1]}
    assert 0 < clock[0] - record("ts", 1000).stat().st_size < 5000  # tables precede the first picture


# Jumps at byte 1000 from 100 to 5000, and at byte 2000 from 5100 to 50.
TWO_JUMPS = ClockJumps(*(np.array(column) for column in ((1000, 2000), (100, 5100), (5000, 50), (-4890, 170))))


@pytest.mark.parametrize(
    ("pts", "positions", "expected"),
    [
        ([80, 90, 100, 5000, 5010], [800, 850, 900, 1100, 1200], [0, 0, 0, -4890, -4890]),
        ([80, 90, 5000, 5010], [800, 850, 900, 1100], [0, 0, -4890, -4890]),  # jumps before the pictures
        ([90, 100, 110, 5010], [900, 1010, 1020, 1100], [0, 0, 0, -4890]),  # and after them
        ([90, 100, 5000, 5090, 60, 70], [900, 950, 1100, 1900, 2100, 2200], [0, 0, -4890, -4890, 170, 170]),
        ([90, 100, 60, 70], [900, 950, 2100, 2200], [0, 0, 170, 170]),  # no sound in the second recording
        ([90, 100, 5000], [-1, -1, -1], [0, 0, -4890]),
        ([90, 100, 2000], [900, 950, 960], [0, 0, 0]),  # a gap
        ([5000, 5010], [1100, 1200], [-4890, -4890]),
        ([90], [900], [0]), ([], [], []),
    ],
)  # fmt: skip
def test_shifts_of_few_packets(pts, positions, expected):
    arrays = (np.array(column, np.int64) for column in (pts, [10] * len(pts), positions))
    unit = Fraction(1, 10)
    assert TWO_JUMPS.find_shifts(*arrays, unit, unit).tolist() == expected
