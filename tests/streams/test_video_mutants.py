"""Whatever is wrong with the bytes of a video, it is played as ffmpeg plays it, or an error names it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ffmpeg_program import make, run
from tiers import only_fast

import streamloader as sl
from streamloader.errors import StreamloaderError
from streamloader.testing import describe_streams, read_stream

CLIPS = {
    "mp4": ("-c:v", "libx264", "-g", 6, "-bf", 2),
    "mkv": ("-c:v", "libx265", "-x265-params", "log-level=error:keyint=6"),
    "webm": ("-c:v", "libvpx-vp9", "-g", 6),
    "ts": ("-c:v", "mpeg2video", "-g", 6, "-bf", 2),
    "flv": ("-c:v", "libx264", "-g", 6),
    "ogv": ("-c:v", "libtheora"),
    "avi": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "mov": ("-c:v", "png", "-pix_fmt", "rgb48be"),
    "nut": ("-c:v", "rawvideo", "-pix_fmt", "rgb555be"),
    "wmv": ("-c:v", "wmv2"),
}  # fmt: skip
KINDS = ("flip", "head", "cut", "zero", "repeat", "remove", "swap", "number")
CASES = [(suffix, kind, seed) for suffix in CLIPS for kind in KINDS for seed in range(5)]
SAMPLE = [(suffix, KINDS[number % len(KINDS)], 0) for number, suffix in enumerate(CLIPS)]


def mutate(data, kind, rng):
    data = bytearray(data)
    place = rng.randrange(len(data))
    if kind in ("flip", "head"):
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(min(len(data), 2000) if kind == "head" else len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[max(1, place) :]
    elif kind == "zero":
        data[place : place + 500] = bytes(len(data[place : place + 500]))
    elif kind == "repeat":
        data[place:place] = data[place : place + 188]
    elif kind == "remove":
        del data[place : place + rng.choice([1, 188])]
    elif kind == "swap":
        blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
        one, two = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        blocks[one], blocks[two] = blocks[two], blocks[one]
        data = b"".join(blocks)
    else:
        place %= 3000
        data[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    return bytes(data)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {suffix: make(folder / f"clip.{suffix}", *codec, seconds=0.5) for suffix, codec in CLIPS.items()}


@pytest.mark.parametrize(("suffix", "kind", "seed"), only_fast(CASES, SAMPLE))
def test_a_mutant_is_played_or_named(clips, tmp_path, suffix, kind, seed):
    path = tmp_path / f"mutant.{suffix}"
    path.write_bytes(mutate(clips[suffix].read_bytes(), kind, random.Random(f"{suffix} {kind} {seed}")))
    played = {}
    for damaged in ("raise", "keep"):
        dataset = sl.VideoStreams(path, damaged=damaged, pix_fmt="gray")
        named = None
        try:
            (info,) = describe_streams(dataset)
            played[damaged] = read_stream(dataset, info)["data"]
        except StreamloaderError as error:  # anything else fails the test
            named = error
        assert named is None or (named.stream, named.address) == (str(path),) * 2
        assert named is None or str(path) in str(named)
    if "raise" in played:
        assert np.array_equal(played["raise"], played["keep"])
    if "keep" in played:
        count, height, width, _ = played["keep"].shape
        arguments = (
            "-max_error_rate",
            1,
            "-threads",
            1,
            "-i",
            path,
            "-fps_mode",
            "passthrough",
            "-pix_fmt",
            "gray",
            "-f",
            "rawvideo",
            "-",
        )
        assert len(run(*arguments)) == count * height * width
