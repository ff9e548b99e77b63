"""streamloader: `RemoteDataset` over the tar files that it wrote.

Option ``verify``: whether checksums are verified. Defaults to True.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.job import Job
from benchmarks.peers.shard_images import (
    decode_jpeg,
    decode_label,
    find_shards,
    get_access,
    group_samples,
    repeat_epochs,
)
from streamloader.datasets.shards.remote_dataset import RemoteDataset


class ShardImages:
    """The tar files, read by RemoteDataset."""

    def __init__(self, job: Job) -> None:
        self._job = job
        access, verify = get_access(job), job.options.get("verify", True)
        if access is None:
            self._dataset = RemoteDataset(str(find_folder(job.options["images"])), verify=verify)
        else:
            options = {
                "endpoint_url": access.endpoint,
                "region": "us-east-1",
                "access_key_id": access.key_id,
                "secret_access_key": access.secret,
            }
            self._dataset = RemoteDataset(f"s3://{access.bucket}", verify=verify, storage_options=options)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield the batches."""
        del number
        job = self._job
        if not job.options["decode"]:
            return group_samples(repeat_epochs(lambda _: iter(self._dataset), job), job.batch_size)
        dataset = self._dataset.to_tuple("jpg", "cls").map_tuple(decode_jpeg, decode_label).batched(job.batch_size)
        loader = DataLoader(dataset, num_workers=job.workers, batch_size=None)
        return repeat_epochs(lambda _: iter(loader), job)

    def close(self) -> None:
        """Close the data set."""
        self._dataset.close()


def find_folder(name: str) -> Path:
    """Return the folder to upload for a measurement with a server."""
    return find_shards(name)


def open_peer(job: Job) -> ShardImages:
    """Open this contender."""
    return ShardImages(job)
