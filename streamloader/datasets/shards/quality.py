"""Measure how well an order is shuffled, compared with a full permutation of all samples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from streamloader.datasets.random_order import permute
from streamloader.datasets.shards.order import EpochOrder
from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["ShuffleQuality", "format_quality", "list_epoch", "measure_epoch", "measure_shuffle"]

_DEFAULT_CLASSES: Final = 100
_PERMUTATION: Final = 3  # purpose of the random words
_HEADINGS: Final = ("displacement", "label entropy, bits", "neighbours in a batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleQuality:
    """Figures of an order. A full permutation has about 1 for the first, and the best values of the others.

    ``print`` shows them with those of a full permutation.

    Attributes:
        displacement: Mean distance of a sample from its place in the data set, as a multiple of that of a full
            permutation, which is a third of the data set. 0 without shuffling.
        label_entropy: Mean entropy in bits of the labels in a batch. 0 if each batch has a single label.
        neighbours: Mean number of other samples in the batch of a sample that are stored less than a batch away from
            it.
    """

    displacement: float
    label_entropy: float
    neighbours: float
    permutation: ShuffleQuality | None = None

    def __str__(self) -> str:
        """Return a table of these figures and those of a full permutation."""
        rows = {"this order": self}
        if self.permutation is not None:
            rows["full permutation"] = self.permutation
        return format_quality(rows)


def measure_shuffle(
    numbers: Array, batch_size: int, *, total: int | None = None, labels: Array | None = None, seed: int = 0
) -> ShuffleQuality:
    """Measure an order of samples.

    Args:
        numbers: Number of each sample in the data set, int64 (n,), in the order in which they are played.
        batch_size: Number of samples of a batch. Batches are neighbours in `numbers`; a smaller last one is left out.
        total: Number of samples of the data set. Defaults to n.
        labels: Label of each sample of the data set, integers (total,). Defaults to 100 labels, as if the samples were
            stored sorted by their labels, which is the hardest case.
        seed: Seed of the permutation to compare with.

    Returns:
        The figures of the order, and those of a full permutation.

    Raises:
        ConfigError: If there is less than one full batch, or `labels` has another length than the data set.
    """
    numbers = np.asarray(numbers, np.int64)
    total = len(numbers) if total is None else total
    if not 1 <= batch_size <= len(numbers):
        raise ConfigError(f"batch_size={batch_size}: must be between 1 and the number of samples, {len(numbers)}")
    classes = _number_labels(total, labels)
    best = permute(total, seed=seed, epoch=0, purpose=_PERMUTATION)[: len(numbers)]
    return _measure(numbers, batch_size, classes, _measure(best, batch_size, classes, None))


def measure_epoch(order: EpochOrder, counts: Array, *, labels: Array | None = None) -> ShuffleQuality:
    """Measure the order in which one rank plays an epoch. Nothing is read.

    Args:
        order: The order.
        counts: Number of samples of each shard, int64 (shards,).
        labels: Label of each sample of the data set, as for :func:`measure_shuffle`.

    Raises:
        ConfigError: If the rank plays less than one full batch.
    """
    numbers = list_epoch(order, counts)
    batch_size, seed = order.settings.batch_size, order.settings.seed
    return measure_shuffle(numbers, batch_size, total=int(np.sum(counts)), labels=labels, seed=seed)


def list_epoch(order: EpochOrder, counts: Array) -> Array:
    """Return the number of each sample in the data set, int64 (n,), in the order in which one rank plays an epoch."""
    firsts = np.cumsum(counts) - np.asarray(counts, np.int64)
    lanes, size = order.settings.lanes, order.settings.batch_size
    numbers, batches = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    played: list[int] = [0] * lanes
    windows = order.open_lanes(dict.fromkeys(range(lanes), 0))
    for row in itertools.zip_longest(*windows.values()):  # the lanes side by side, since they share what is computed
        for lane, window in enumerate(row):
            if window is not None:
                own = np.arange(played[lane], played[lane] + len(window.shards), dtype=np.int64)
                played[lane] += len(own)
                numbers.append(firsts[window.shards] + window.samples)
                batches.append(own // size * lanes + lane)
    return np.concatenate(numbers)[np.argsort(np.concatenate(batches), kind="stable")]


def format_quality(rows: Mapping[str, ShuffleQuality]) -> str:
    """Return a table of several orders as Markdown. The last row should be the full permutation."""
    width = max(map(len, rows), default=0)
    cells = [f"| {'':{width}} | {' | '.join(_HEADINGS)} |", f"|{'-' * (width + 2)}|"]
    cells[1] += "".join(f"{'-' * (len(heading) + 1)}:|" for heading in _HEADINGS)
    for name, quality in rows.items():
        figures = (quality.displacement, quality.label_entropy, quality.neighbours)
        columns = [f"{figure:{len(heading)}.3f}" for heading, figure in zip(_HEADINGS, figures, strict=True)]
        cells.append(f"| {name:{width}} | {' | '.join(columns)} |")
    return "\n".join(cells)


def _number_labels(total: int, labels: Array | None) -> Array:
    if labels is None:
        return np.arange(total, dtype=np.int64) * min(_DEFAULT_CLASSES, total) // total
    if len(labels) != total:
        raise ConfigError(f"labels has {len(labels)} entries, but the data set has {total} samples")
    return np.asarray(np.unique(np.asarray(labels), return_inverse=True)[1], np.int64)


def _measure(numbers: Array, batch_size: int, classes: Array, permutation: ShuffleQuality | None) -> ShuffleQuality:
    batches = numbers[: len(numbers) // batch_size * batch_size].reshape(-1, batch_size)
    return ShuffleQuality(
        displacement=_measure_displacement(numbers, len(classes)),
        label_entropy=_measure_entropy(classes[batches]),
        neighbours=_count_neighbours(batches),
        permutation=permutation,
    )


def _measure_displacement(numbers: Array, total: int) -> float:
    """Return the mean distance of relative positions, divided by its expectation of 1/3 for independent positions."""
    positions = (np.arange(len(numbers)) + 0.5) / len(numbers)
    return float(3 * np.abs((numbers + 0.5) / total - positions).mean())


def _measure_entropy(labels: Array) -> float:
    """Return the mean entropy of the rows in bits."""
    rows = np.arange(len(labels), dtype=np.int64)[:, None]
    _, amounts = np.unique(rows * (int(labels.max()) + 1) + labels, return_counts=True)
    shares = amounts / labels.shape[1]
    return float(-(shares * np.log2(shares)).sum() / len(labels)) + 0.0  # not -0.0


def _count_neighbours(batches: Array) -> float:
    """Return the mean number of other samples in the same row less than the length of a row away."""
    size = batches.shape[1]
    ordered = np.sort(batches, axis=1)
    pairs = 0
    for distance in range(1, size):
        near = int((ordered[:, distance:] - ordered[:, :-distance] < size).sum())
        if not near:
            break
        pairs += near
    return 2 * pairs / batches.size
