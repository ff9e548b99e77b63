"""Upload a map-style data set of images and labels as shards."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from streamloader.arguments import check_integer
from streamloader.common.count_display import open_count_display
from streamloader.datasets.random_order import permute
from streamloader.datasets.shards.client import S3Client
from streamloader.datasets.shards.labelled_samples import EncodedSamples, Members
from streamloader.datasets.shards.unique_keys import make_default_key
from streamloader.datasets.shards.writer import ShardWriter
from streamloader.errors import ConfigError
from streamloader.torch_support import require_torch

__all__ = ["upload_cv_dataset"]

_PURPOSE: Final = 16  # of random words: the order in which a data set is written
_IMAGE_FORMATS: Final = ("png", "jpg", "webp")
_IDENTIFYING_SAMPLES: Final = 4
_PREFETCH_FACTOR: Final = 16  # samples that each process encodes in advance


def upload_cv_dataset(
    ds: Any,
    client: S3Client | None = None,
    bucket: str | None = None,
    base_folder: str | None = None,
    maxsize: float = 1e8,
    maxcount: float = 100_000,
    workers: int = 0,
    *,
    address: str | None = None,
    seed: int = 0,
    shuffle: bool = True,
    image_format: Literal["png", "jpg", "webp"] = "png",
    compression: str | None = None,
    engine: Literal["processes", "ray"] = "processes",
    ray_address: str | None = None,
    overwrite: bool = False,
    dataset_id: str | None = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Upload a data set of (image, label) as shards, which ``sl.RemoteDataset(client, bucket, base_folder)`` reads.

    Samples are written in random order, so that neighbours are not of one class. The same call continues an upload that
    was interrupted, and returns at once if it is complete. The shards are the same bytes for any number of `workers`.

    An image may be an image of Pillow, an array or tensor uint8 (H, W) or (H, W, 3), or the bytes of a file, which are
    written as they are. A data set that reads JPEG files returns decoded images: PNG keeps their pixels, and takes
    several times the space. ``image_format="jpg"`` compresses them once more, with quality 95. To keep the original
    files, have the data set return their bytes. Labels that are integers become the field ``cls``, strings ``txt``,
    arrays ``npy``, and other plain values ``json``.

    Args:
        ds: Map-style data set: it has a length, and returns (image, label) for each number.
        client: Client from :func:`make_client`.
        bucket: Bucket.
        base_folder: Folder in the bucket.
        maxsize: Maximum size of a shard in bytes.
        maxcount: Maximum number of samples of a shard.
        workers: Number of processes that read and encode samples. Defaults to 0: this process does it.
        address: Address of the folder, instead of `client`, `bucket` and `base_folder`.
        seed: Seed of the order.
        shuffle: Whether to write the samples in random order. Defaults to True.
        image_format: Format of images: "png", "jpg" or "webp" (lossless).
        compression: "gzip" or "zstd", see :class:`ShardWriter`. Defaults to None.
        engine: "processes" of this machine, or the tasks of a "ray" cluster.
        ray_address: Address of the Ray cluster. Defaults to that of the environment, or the cluster of this machine.
        overwrite: Whether a data set that is there already, or a part of one, is replaced. Defaults to False.
        dataset_id: Text that identifies the data set, so that an upload is never continued with another one. Defaults
            to a digest of four of its samples, which are loaded at the beginning of each call. Needed if the samples
            differ from call to call, as with random augmentation.
        progress: Whether to show a progress bar on a terminal. Defaults to True.
        storage_options: Options of the store, see :func:`streamloader.stores.open_store`.

    Returns:
        Number of samples of the data set of shards.

    Raises:
        ConfigError: If an argument is invalid, or a sample is not (image, label).
        DatasetExists: If there is another data set in the folder, or one that was written with other settings, or if
            another writer has started there.
        StorageFull: If the disk or the bucket is full. The same call goes on.
        StoreError: If the store denies access or fails otherwise. The same call goes on.
    """
    folder, options = _find_folder(client, bucket, base_folder, address, storage_options)
    if image_format not in _IMAGE_FORMATS or engine not in ("processes", "ray"):
        raise ConfigError(f"image_format must be one of {_IMAGE_FORMATS}, and engine 'processes' or 'ray'")
    seed = check_integer("seed", seed)
    total = len(ds)
    encodable = EncodedSamples(ds, image_format)
    settings = {
        "samples": total,
        "seed": seed if shuffle else None,
        "image_format": image_format,
        "dataset_id": _identify(encodable, workers, engine) if dataset_id is None else dataset_id,
    }
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            ShardWriter(
                folder,
                maxsize=maxsize,
                maxcount=maxcount,
                compression=compression,
                settings=settings,
                overwrite=overwrite,
                storage_options=options,
            )
        )
        if writer.is_complete:
            return writer.samples_written
        order = permute(total, seed=seed, epoch=0, purpose=_PURPOSE) if shuffle else np.arange(total)
        numbers = order[writer.samples_written :].tolist()
        encoded = _encode_with_ray if engine == "ray" else _encode_in_processes
        samples = stack.enter_context(contextlib.closing(encoded(encodable, numbers, workers, ray_address)))
        show = stack.enter_context(open_count_display("uploading samples")) if progress else None
        for members in samples:
            writer.write_encoded(make_default_key(writer.samples_written), members)
            if show is not None:
                show(writer.samples_written, total)
    return total


def _find_folder(
    client: S3Client | None,
    bucket: str | None,
    base_folder: str | None,
    address: str | None,
    storage_options: Mapping[str, Any] | None,
) -> tuple[str, Mapping[str, Any]]:
    if address is not None:
        if client is not None or bucket is not None or base_folder is not None:
            raise ConfigError("upload_cv_dataset: give either address= or client, bucket and base_folder")
        return address, storage_options or {}
    if not isinstance(client, S3Client) or bucket is None:
        raise ConfigError("upload_cv_dataset: give client (from sl.make_client), bucket and base_folder; or address=")
    return client.address(bucket, base_folder or ""), {**client.storage_options, **(storage_options or {})}


def _identify(samples: EncodedSamples, workers: int, engine: str) -> str:
    """Return a digest of the first sample, the last one, and two between them.

    With `workers`, another process loads them: a data set that opens its files with the first sample would otherwise
    share them with all processes that are forked later.
    """
    total = len(samples)
    numbers = sorted({part * (total - 1) // (_IDENTIFYING_SAMPLES - 1) for part in range(_IDENTIFYING_SAMPLES)})
    digest = hashlib.blake2b(digest_size=16)
    with contextlib.closing(
        _encode_in_processes(samples, numbers if total else [], int(workers > 0 or engine == "ray"), None)
    ) as encoded:
        for members in encoded:
            for field, content in members:
                digest.update(f"{field}\0{len(content)}\0".encode())
                digest.update(content)
    return f"samples-{digest.hexdigest()}"


def _encode_in_processes(
    samples: EncodedSamples, numbers: Sequence[int], workers: int, _ray_address: str | None
) -> Generator[Members, None, None]:
    """Yield encoded samples in the order of `numbers`."""
    if not workers:
        yield from (samples[number] for number in numbers)
        return
    require_torch(f"encoding in {workers} processes needs")
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]  # a data set needs no base class
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_given,
        prefetch_factor=_PREFETCH_FACTOR,
    )
    yield from loader


def _encode_with_ray(
    samples: EncodedSamples, numbers: Sequence[int], _workers: int, ray_address: str | None
) -> Generator[Members, None, None]:
    from streamloader.datasets.shards.ray_encoding import encode_with_ray

    return encode_with_ray(samples, numbers, ray_address)


def _as_given(value: Iterable[Any]) -> Iterable[Any]:
    return value
