"""How well orders are shuffled, with the same number of samples in memory: streamloader and webdataset.

The samples are stored sorted by their labels, which is the hardest case.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import webdataset

from benchmarks.peers.shard_images import SETS, find_shards
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.order import EpochOrder, OrderSettings
from streamloader.datasets.shards.quality import format_quality, list_epoch, measure_shuffle

_BUFFERS = (1_000, 10_000)
_BATCH_SIZE = 64


def print_quality(name: str = "small") -> None:
    """Print a table for one epoch of a set of images."""
    folder = find_shards(name)
    shards = open_shard_set(str(folder))
    total = SETS[name].images
    rows = {}
    permutation = None
    for buffer in _BUFFERS:
        settings = OrderSettings(batch_size=_BATCH_SIZE, buffer_size=buffer)
        numbers = list_epoch(EpochOrder(shards.counts, shards.total_bytes, settings, 0), shards.counts)
        ours = measure_shuffle(numbers, _BATCH_SIZE, total=total)
        rows[f"streamloader, buffer_size={buffer:,}"] = ours
        rows[f"webdataset, shuffle({buffer:,})"] = measure_shuffle(_play_webdataset(folder, buffer), _BATCH_SIZE)
        permutation = ours.permutation
    assert permutation is not None
    rows["full permutation"] = permutation
    print(f"{total:,} samples in {len(shards)} shards, sorted by 100 labels, in batches of {_BATCH_SIZE}:\n")
    print(format_quality(rows))


def _play_webdataset(folder: Path, buffer: int) -> np.ndarray:
    """Return the number of each sample, which is its label, in the order of webdataset."""
    addresses = sorted(map(str, folder.glob("*.tar")))
    samples = webdataset.WebDataset(addresses, shardshuffle=len(addresses), seed=0).shuffle(buffer, seed=0)
    return np.array([int(sample["cls"]) for sample in samples])
