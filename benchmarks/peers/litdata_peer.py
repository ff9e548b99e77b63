"""LitData: chunks of serialized samples, which are copied to a local folder before they are read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import downloader
from litdata.streaming.writer import BinaryWriter

from benchmarks.job import Job
from benchmarks.peers.shard_images import (
    ImageSet,
    decode_jpeg,
    decode_label,
    find_images,
    get_access,
    group_samples,
    make_images,
    repeat_epochs,
)


class _Decoded(StreamingDataset):  # type: ignore[misc]
    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return decode_jpeg(sample["jpg"]), decode_label(sample["cls"])


def _write(folder: Path, images: ImageSet) -> None:
    writer = BinaryWriter(str(folder), chunk_bytes=images.shard_bytes)
    for number, (file, label) in enumerate(make_images(images)):
        writer[number] = {"jpg": file, "cls": label}
    writer.done()
    writer.merge()


class LitDataImages:
    """The chunks, read by StreamingDataset."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._cache: str | None = None
        access = get_access(job)
        kind = _Decoded if job.options["decode"] else StreamingDataset
        if access is None:
            self._dataset = kind(str(find_folder(job.options["images"])), shuffle=True, seed=0)
        else:
            access.export()
            # LitData has no setting for servers without TLS; its own settings stay.
            downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}  # noqa: SLF001
            self._cache = tempfile.mkdtemp()
            options = {
                "endpoint_url": access.endpoint,
                "aws_access_key_id": access.key_id,
                "aws_secret_access_key": access.secret,
                "region_name": "us-east-1",
            }
            self._dataset = kind(
                f"s3://{access.bucket}/", cache_dir=self._cache, shuffle=True, seed=0, storage_options=options
            )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield the batches."""
        del number
        job = self._job
        if not job.options["decode"]:
            return group_samples(repeat_epochs(lambda _: iter(self._dataset), job), job.batch_size)
        loader = StreamingDataLoader(self._dataset, batch_size=job.batch_size, num_workers=job.workers)
        return repeat_epochs(lambda _: iter(loader), job)

    def close(self) -> None:
        """Remove the copies."""
        if self._cache is not None:
            shutil.rmtree(self._cache, ignore_errors=True)


def find_folder(name: str) -> Path:
    """Return the folder to upload for a measurement with a server."""
    return find_images(name, "litdata", _write)


def open_peer(job: Job) -> LitDataImages:
    """Open this contender."""
    return LitDataImages(job)
