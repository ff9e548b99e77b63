"""MosaicML Streaming: MDS files, which are copied to a local folder before they are read.

The package imports torchvision and transformers for data sets of its own, which are not measured. So that they need not
be installed, only its modules for the format and the data set are imported; its memory is smaller for it.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

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


def _import_package() -> None:
    """Register the package `streaming` without running its ``__init__``."""
    spec = importlib.util.find_spec("streaming")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("mosaicml-streaming is not installed: pip install -r requirements/bench.txt")
    folder = spec.submodule_search_locations[0]
    for name, path in (("streaming", folder), ("streaming.base", f"{folder}/base")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        package.__spec__ = importlib.util.spec_from_loader(name, None, is_package=True)
        sys.modules[name] = package


_import_package()

from streaming.base.dataset import StreamingDataset  # noqa: E402 - after the package is registered
from streaming.base.format import MDSWriter  # noqa: E402


class _Decoded(StreamingDataset):  # type: ignore[misc, valid-type]
    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return decode_jpeg(sample["jpg"]), decode_label(sample["cls"])


def _write(folder: Path, images: ImageSet) -> None:
    columns = {"jpg": "bytes", "cls": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=images.shard_bytes) as writer:
        for file, label in make_images(images):
            writer.write({"jpg": file, "cls": label})


class MosaicImages:
    """The MDS files, read by StreamingDataset."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._cache: str | None = None
        access = get_access(job)
        if access is None:
            place = {"local": str(find_folder(job.options["images"]))}
        else:
            access.export()
            self._cache = tempfile.mkdtemp()
            place = {"remote": f"s3://{access.bucket}", "local": self._cache}
        kind = _Decoded if job.options["decode"] else StreamingDataset
        self._dataset = kind(**place, shuffle=True, shuffle_seed=0, batch_size=job.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield the batches."""
        del number
        job = self._job
        if not job.options["decode"]:
            return group_samples(repeat_epochs(lambda _: iter(self._dataset), job), job.batch_size)
        loader = DataLoader(self._dataset, batch_size=job.batch_size, num_workers=job.workers)
        return repeat_epochs(lambda _: iter(loader), job)

    def close(self) -> None:
        """Remove the copies."""
        if self._cache is not None:
            shutil.rmtree(self._cache, ignore_errors=True)


def find_folder(name: str) -> Path:
    """Return the folder to upload for a measurement with a server."""
    return find_images(name, "mosaic", _write)


def open_peer(job: Job) -> MosaicImages:
    """Open this contender."""
    return MosaicImages(job)
