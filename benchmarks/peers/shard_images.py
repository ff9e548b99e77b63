"""The images of the benchmark of shards: the same JPEG files for each library, in its own format, made once.

An image is a random field of colours that was enlarged, with noise, so that its size in bytes is that of a photo. The
label of an image is its number, so that it is easy to check that an epoch has each of them once.

Options of a job: ``images``: name of the set. ``decode``: whether to decode the images. ``latency``: seconds that the
server takes for each request more than it needs, or missing for local files. ``epochs``: whether to repeat the set.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.clips import cache_folder
from benchmarks.job import Job

BUFFER_SAMPLES = 1000  # of webdataset's shuffle, as its documentation has it
_DISTINCT = 500
_FIELD = 8  # colours in a row of the random field


@dataclass(frozen=True)
class ImageSet:
    """One set of images.

    Attributes:
        images: Number of images.
        side: Width and height in pixels.
        shard_bytes: Size in bytes at which a library starts a new file.
    """

    images: int
    side: int
    shard_bytes: int


SETS = {
    "small": ImageSet(100_000, 32, 10_000_000),
    "photos": ImageSet(6_000, 256, 10_000_000),
    "few small": ImageSet(5_000, 32, 1_000_000),
    "few photos": ImageSet(600, 256, 2_000_000),
}


def make_images(images: ImageSet) -> Iterator[tuple[bytes, int]]:
    """Yield the JPEG file and the label of each image."""
    files = [_make_image(images.side, number) for number in range(_DISTINCT)]
    numbers = random.Random(images.side)
    for label in range(images.images):
        yield numbers.choice(files), label


def _make_image(side: int, number: int) -> bytes:
    draw = np.random.default_rng((side, number))
    field = Image.fromarray(draw.integers(0, 256, (_FIELD, _FIELD, 3), np.uint8)).resize((side, side), Image.BICUBIC)
    pixels = np.asarray(field).astype(np.int16) + draw.integers(-8, 9, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def find_images(name: str, library: str, write: Callable[[Path, ImageSet], None]) -> Path:
    """Return the folder of a set in the format of a library. `write` makes it if it is missing."""
    images = SETS[name]
    folder = cache_folder() / f"images-{images.side}-{images.images}-{library}"
    if not folder.exists():
        unfinished = folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished, images)
        unfinished.rename(folder)
    return folder


def find_shards(name: str) -> Path:
    """Return the folder of a set as tar files, which streamloader wrote."""
    return find_images(name, "shards", _write_shards)


def _write_shards(folder: Path, images: ImageSet) -> None:
    from streamloader.datasets.shards.writer import ShardWriter

    with ShardWriter(str(folder), maxsize=images.shard_bytes) as writer:
        for file, label in make_images(images):
            writer.write({"__key__": f"{label:08}", "jpg": file, "cls": label})


def decode_jpeg(file: bytes) -> torch.Tensor:
    """Return the pixels of an image, uint8 (H, W, 3). All libraries decode with this function."""
    with Image.open(io.BytesIO(file)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def decode_label(label: Any) -> int:
    """Return a label as a number."""
    return int(label)


def group_samples(samples: Iterator[Any], batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Yield lists of samples that were not decoded."""
    while group := list(islice(samples, batch_size)):
        yield group, None


def repeat_epochs(epoch: Callable[[int], Iterator[Any]], job: Job) -> Iterator[Any]:
    """Yield what an epoch yields, of one epoch or of one after the other."""
    return chain.from_iterable(epoch(number) for number in (count() if job.options.get("epochs") else range(1)))


@dataclass(frozen=True)
class S3Access:
    """Access to the bucket of a benchmark.

    Attributes:
        endpoint: URL of the server, which may be a proxy with latency.
        bucket: Name of the bucket.
        key_id: Id of the key.
        secret: Secret of the key.
    """

    endpoint: str
    bucket: str
    key_id: str
    secret: str

    def export(self) -> None:
        """Set the variables by which boto3 and the libraries that use it find server and key."""
        os.environ.update(
            AWS_ACCESS_KEY_ID=self.key_id,
            AWS_SECRET_ACCESS_KEY=self.secret,
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
            AWS_ALLOW_HTTP="true",
            S3_ENDPOINT_URL=self.endpoint,
            AWS_ENDPOINT_URL=self.endpoint,
        )


def get_access(job: Job) -> S3Access | None:
    """Return the access that the measurement has added to the job, or None for local files."""
    access = job.options.get("access")
    return None if access is None else S3Access(**access)
