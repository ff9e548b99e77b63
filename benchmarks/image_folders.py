"""The images of the image benchmark: folders of 100 JPEGs of 640x480, named 00000.jpg to 00099.jpg.

The frames are those of the two real videos of :mod:`benchmarks.clips`, scaled and cropped to 640x480, from another
start in each folder, forwards and backwards, and mirrored in every second pair of folders. Pillow encodes them with
quality 85 and chroma 4:2:0, which gives about 44 KB each. Ten folders are encoded. The others are copies of them:
1,000 folders have 100,000 files of their own on the disk (4.4 GB), and not 100,000 contents.

They are stored in the benchmarks' cache folder, and are made again when the recipe changes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.clips import _decode_original, _fetch_originals, cache_folder

WIDTH, HEIGHT = 640, 480
IMAGES = 100  # in a folder
_DISTINCT = 10
_QUALITY = 85


def image_folders(count: int = 1000) -> list[str]:
    """Return the paths of the first `count` folders. Missing ones are made."""
    root = cache_folder() / f"images-{WIDTH}x{HEIGHT}-q{_QUALITY}"
    paths = [root / f"{number:04d}" for number in range(count)]
    distinct = [root / f"{number:04d}" for number in range(_DISTINCT)]
    missing = [number for number, path in enumerate(distinct) if not path.exists()]
    if missing:
        sources = [_decode_original(path) for path in _fetch_originals()]
        for number in missing:
            _write_folder(distinct[number], sources[number % 2], number)
    for number, path in enumerate(paths):
        if not path.exists():
            _copy_folder(distinct[number % _DISTINCT], path)
    return [str(path) for path in paths]


def _write_folder(path: Path, source: list[Any], number: int) -> None:
    from PIL import Image

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    variant = number // 2
    positions = [*range(len(source)), *range(len(source) - 2, 0, -1)]
    for position in range(IMAGES):
        frame = source[positions[(29 * variant + position) % len(positions)]]
        image = Image.fromarray(frame[:, ::-1] if variant % 2 else frame)
        scale = HEIGHT / image.height
        image = image.resize((round(image.width * scale), HEIGHT), Image.Resampling.LANCZOS)
        left = (37 * variant) % (image.width - WIDTH + 1)
        cropped = image.crop((left, 0, left + WIDTH, HEIGHT))
        cropped.save(unfinished / f"{position:05d}.jpg", quality=_QUALITY, subsampling="4:2:0")
    unfinished.rename(path)


def _copy_folder(source: Path, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.copytree(source, unfinished)
    unfinished.rename(path)


if __name__ == "__main__":
    made = image_folders()
    size = sum(file.stat().st_size for file in Path(made[0]).iterdir())
    print(f"{len(made)} folders of {IMAGES} images in {Path(made[0]).parent}, {size / IMAGES / 1000:.0f} KB an image")
