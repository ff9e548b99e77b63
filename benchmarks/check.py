"""Do all contenders deliver the same? Plays every clip through each of them and compares what comes out.

For each stream: how many frames, a digest of all bytes, and every 50th frame in 4 x 4 blocks. PyAV decoding one clip
after the other, outside of any loader, says what is right. Contenders with another decoder or scaler may differ by
some levels of 255 a block; lengths and the places of the reset mask must be the same for everybody.

``python -m benchmarks.check [--quick]``
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import av

from benchmarks.clips import HEIGHT, WIDTH, clips
from benchmarks.contenders import Contender
from benchmarks.harness import Table, measure
from benchmarks.job import Job
from benchmarks.measure import Digest
from benchmarks.video import CONTENDERS

_LEVELS = 4.0  # of 255, in the mean of a block: other scalers and matrices' roundings stay below that

Stream = list[Any]


def expected(paths: list[str], height: int, width: int) -> list[Stream]:
    """Decode each clip by itself, in the plainest way."""
    streams = []
    for path in paths:
        digest = Digest()
        with av.open(path) as container:
            for frame in container.decode(video=0):
                digest.add(frame.to_ndarray(format="rgb24", width=width, height=height)[None])
        streams.append(digest.finish())
    return streams


def verdict(streams: list[Stream], right: list[Stream], *, exact: bool) -> tuple[bool, str]:
    """Compare the streams that came with the right ones, each with the one that it resembles most."""
    identical, worst, left = 0, 0.0, [list(stream) for stream in right]
    for length, digest, coarse in streams:
        same = [stream for stream in left if stream[1] == digest]
        near = same or [stream for stream in left if stream[0] == length]
        if not near:
            return False, f"a stream of {length} frames that was not expected"
        match = min(near, key=lambda stream: _difference(stream[2], coarse))
        left.remove(match)
        identical += bool(same)
        worst = max(worst, _difference(match[2], coarse))
    if left:
        return False, f"{len(left)} of {len(right)} streams did not come"
    good = identical == len(right) if exact else worst <= _LEVELS
    return good, f"{len(streams)} streams, {identical} bit-identical, blocks differ by up to {worst:.2f} levels"


def _difference(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def check(job: Job, contender: Contender, right: list[Stream]) -> tuple[bool, str]:
    """Play one contender to the end and judge it."""
    table = Table("check", "", "", job, "content", {}, (), ())
    result, error = measure(table, contender)
    if result is None:
        return False, error
    streams = [stream for lane in result["streams"] for stream in lane]
    exact = contender.options.get("decoder", "pyav") in {"pyav", "direct"} and contender.module != "spdl_peer"
    return verdict(streams, right, exact=exact)


def main() -> int:
    """Check all loaders at both sizes; the exit status says whether all were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="224x224 only")
    quick = parser.parse_args().quick
    good = True
    for height, width in [(224, 224)] if quick else [(HEIGHT, WIDTH), (224, 224)]:
        # 2 x 250 frames a lane are 62.5 windows: twice the clips, so that no frame is left over.
        paths = clips() * 2
        right = expected(clips(), height, width) * 2
        job = Job("video", (height, width, 3), paths=tuple(paths))
        for contender in CONTENDERS:
            if contender.module and not contender.clone:
                fine, text = check(job, dataclasses.replace(contender, measure=""), right)
                good &= fine
                print(f"{width}x{height} {contender.name:24} {'same' if fine else 'WRONG'}: {text}", flush=True)
    print("all deliver the same" if good else "NOT all deliver the same", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
