"""webdataset: tar files in order, through a pipe of curl when they are remote, with a buffer that is shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset
from torch.utils.data import DataLoader

from benchmarks.job import Job
from benchmarks.peers.shard_images import (
    BUFFER_SAMPLES,
    decode_jpeg,
    decode_label,
    find_shards,
    get_access,
    group_samples,
    repeat_epochs,
)

_SIGNED_S = 3600


class WebDatasetImages:
    """The tar files that streamloader wrote, read by webdataset."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._addresses = _find_addresses(job)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield the batches."""
        del number
        job = self._job
        if not job.options["decode"]:
            return group_samples(repeat_epochs(lambda epoch: iter(self._open(epoch)), job), job.batch_size)
        return repeat_epochs(
            lambda epoch: iter(
                DataLoader(
                    self._open(epoch)
                    .to_tuple("jpg", "cls")
                    .map_tuple(decode_jpeg, decode_label)
                    .batched(job.batch_size),
                    num_workers=job.workers,
                    batch_size=None,
                )
            ),
            job,
        )

    def _open(self, epoch: int) -> Any:
        return webdataset.WebDataset(self._addresses, shardshuffle=len(self._addresses), seed=epoch).shuffle(
            BUFFER_SAMPLES, seed=epoch
        )

    def close(self) -> None:
        """Close nothing: the iterators own the files."""


def _find_addresses(job: Job) -> list[str]:
    access = get_access(job)
    if access is None:
        return [str(path) for path in sorted(find_shards(job.options["images"]).glob("*.tar"))]
    import boto3
    from botocore.config import Config

    access.export()
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"))
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=access.bucket)["Contents"]]
    sign = client.generate_presigned_url
    return [
        sign("get_object", Params={"Bucket": access.bucket, "Key": name}, ExpiresIn=_SIGNED_S)
        for name in names
        if name.endswith(".tar")
    ]


def find_folder(name: str) -> Path:
    """Return the folder to upload for a measurement with a server."""
    return find_shards(name)


def open_peer(job: Job) -> WebDatasetImages:
    """Open this contender."""
    return WebDatasetImages(job)
