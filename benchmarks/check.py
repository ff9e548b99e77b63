"""Do all contenders deliver the same frames? Streams every clip through each of them and compares the output.

For each stream, the comparison uses the number of frames, a digest of all bytes, and every 50th frame in 4 x 4 blocks.
The reference is PyAV, which decodes one clip after the other outside any loader. Contenders with another decoder or
scaler may differ by a few levels of 255 per block. Lengths and positions of the reset mask must be equal.

``python -m benchmarks.check [--quick]``
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import av

from benchmarks.clips import HEIGHT, WIDTH, clips
from benchmarks.contenders import STREAMLOADER_YUV, Contender
from benchmarks.harness import Table, measure
from benchmarks.job import Job
from benchmarks.measure import Digest
from benchmarks.video import CONTENDERS

_MAX_BLOCK_DIFFERENCE = 4.0  # levels of 255 in the mean of a block; other scalers and rounding stay below this

Stream = list[Any]


def decode_expected(paths: list[str], height: int, width: int) -> list[Stream]:
    """Decode each clip separately, in the simplest way."""
    streams = []
    for path in paths:
        digest = Digest()
        with av.open(path) as container:
            for frame in container.decode(video=0):
                digest.add(frame.to_ndarray(format="rgb24", width=width, height=height)[None])
        streams.append(digest.finish())
    return streams


def judge_streams(streams: list[Stream], expected: list[Stream], *, exact: bool) -> tuple[bool, str]:
    """Compare delivered streams with the expected ones, each with the most similar one."""
    identical, worst, remaining = 0, 0.0, [list(stream) for stream in expected]
    for length, digest, coarse in streams:
        exact_matches = [stream for stream in remaining if stream[1] == digest]
        candidates = exact_matches or [stream for stream in remaining if stream[0] == length]
        if not candidates:
            return False, f"an unexpected stream of {length} frames"
        match = min(candidates, key=lambda stream: _difference(stream[2], coarse))
        remaining.remove(match)
        identical += bool(exact_matches)
        worst = max(worst, _difference(match[2], coarse))
    if remaining:
        return False, f"{len(remaining)} of {len(expected)} streams are missing"
    good = identical == len(expected) if exact else worst <= _MAX_BLOCK_DIFFERENCE
    return good, f"{len(streams)} streams, {identical} bit-identical, blocks differ by up to {worst:.2f} levels"


def _difference(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def check(job: Job, contender: Contender, expected: list[Stream]) -> tuple[bool, str]:
    """Run one contender to the end, and compare its streams with the expected ones."""
    table = Table("check", "", "", job, "content", {}, (), ())
    result, error = measure(table, contender)
    if result is None:
        return False, error
    streams = [stream for lane in result["streams"] for stream in lane]
    exact = contender.options.get("decoder", "pyav") in {"pyav", "direct"} and contender.module != "spdl_peer"
    if "pix_fmt" in contender.options:  # the same colours at full size; scaled, they are rounded differently
        exact = job.shape[:2] == (HEIGHT, WIDTH)
    return judge_streams(streams, expected, exact=exact)


def main() -> int:
    """Check all loaders at both sizes. Return 0 if all streams are correct, and 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="224x224 only")
    quick = parser.parse_args().quick
    good = True
    for height, width in [(224, 224)] if quick else [(HEIGHT, WIDTH), (224, 224)]:
        # 2 x 250 frames per lane are 62.5 windows; with each clip twice, no frame is left over.
        paths = clips() * 2
        expected = decode_expected(clips(), height, width) * 2
        job = Job("video", (height, width, 3), paths=tuple(paths))
        for contender in CONTENDERS:
            if contender.module and not contender.clone and contender is not STREAMLOADER_YUV:  # that one has no RGB
                correct, text = check(job, dataclasses.replace(contender, measure=""), expected)
                good &= correct
                print(f"{width}x{height} {contender.name:24} {'same' if correct else 'WRONG'}: {text}", flush=True)
    print(
        "all contenders deliver the same frames" if good else "NOT all contenders deliver the same frames",
        file=sys.stderr,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
