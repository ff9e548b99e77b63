"""How well the orders of all contenders are shuffled.

The samples are stored sorted by their labels, which is the hardest case. webdataset also gets a buffer of as many bytes
as streamloader's.
"""

from __future__ import annotations

import importlib

import numpy as np
import webdataset

from benchmarks.job import Job
from benchmarks.peers.shard_images import BUFFER_SAMPLES, SETS, find_shards
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.order import EpochOrder, OrderSettings
from streamloader.datasets.shards.quality import format_quality, list_epoch, measure_shuffle

_BATCH_SIZE = 64
_PEERS = {"MosaicML Streaming, shuffle=True": "mosaic_peer", "LitData, shuffle=True": "litdata_peer"}


def print_quality(name: str = "photos") -> None:
    """Print a table for one epoch of a set of images, played by one process."""
    folder = find_shards(name)
    shards = open_shard_set(str(folder))
    total = SETS[name].images
    settings = OrderSettings(batch_size=_BATCH_SIZE)
    orders = {"streamloader": list_epoch(EpochOrder(shards.counts, shards.total_bytes, settings, 0), shards.counts)}
    for buffer in (BUFFER_SAMPLES, settings.buffer_bytes * total // shards.total_bytes):
        orders[f"webdataset, shuffle({buffer:,})"] = _play_webdataset(name, buffer)
    orders |= {title: _play_peer(name, peer) for title, peer in _PEERS.items()}
    rows = {title: measure_shuffle(numbers, _BATCH_SIZE, total=total) for title, numbers in orders.items()}
    permutation = next(iter(rows.values())).permutation
    assert permutation is not None
    rows["full permutation"] = permutation
    print(
        f"{total:,} samples in {len(shards)} shards, sorted by 100 labels, in batches of {_BATCH_SIZE}; "
        f"{settings.buffer_bytes >> 20} MiB of samples are mixed:\n"
    )
    print(format_quality(rows))


def _play_webdataset(name: str, buffer: int) -> np.ndarray:
    """Return the number of each sample, which is its label, in the order of webdataset."""
    addresses = sorted(map(str, find_shards(name).glob("*.tar")))
    samples = webdataset.WebDataset(addresses, shardshuffle=len(addresses), seed=0).shuffle(buffer, seed=0)
    return np.array([int(sample["cls"]) for sample in samples])


def _play_peer(name: str, peer: str) -> np.ndarray:
    """Return the number of each sample, which is its label, in the order of another library."""
    job = Job("images", (SETS[name].side,) * 2 + (3,), _BATCH_SIZE, 1, 0, options={"images": name, "decode": False})
    opened = importlib.import_module(f"benchmarks.peers.{peer}").open_peer(job)
    numbers = np.array([int(sample["cls"]) for samples, _ in opened.epoch(0) for sample in samples])
    opened.close()
    return numbers
