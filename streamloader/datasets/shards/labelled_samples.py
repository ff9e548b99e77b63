"""Encode the samples of a map-style data set of images and labels, in any process."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

from streamloader.datasets.shards.encode import encode_image, encode_sample, guess_image_field, to_array
from streamloader.errors import ConfigError

__all__ = ["EncodedSamples", "Members"]

Members: TypeAlias = list[tuple[str, bytes]]


class _MapDataset(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class EncodedSamples:
    """A map-style data set of images and labels, with each sample encoded as the members of a shard.

    Args:
        dataset: Data set of (image, label).
        image_format: Format of images.
    """

    def __init__(self, dataset: _MapDataset, image_format: str) -> None:
        self.dataset = dataset
        self.image_format = image_format

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Members:
        sample = self.dataset[number]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:  # noqa: PLR2004 - image and label
            raise ConfigError(f"sample {number} is not (image, label): write it with sl.ShardWriter")
        image, label = sample
        if isinstance(image, (bytes, bytearray, memoryview)):
            members = [(guess_image_field(bytes(image)), bytes(image))]
        else:
            try:
                members = [(self.image_format, encode_image(image, self.image_format))]
            except (TypeError, ValueError, OSError, RuntimeError) as error:
                raise ConfigError(f"the image of sample {number} cannot be written: {error}") from error
        try:
            label = _to_plain(label)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"the label of sample {number} cannot be written: {error}") from error
        return members + encode_sample(str(number), {_find_label_field(label): label})


def _find_label_field(label: Any) -> str:
    if isinstance(label, int) and not isinstance(label, bool):
        return "cls"
    if isinstance(label, str):
        return "txt"
    return "npy" if isinstance(label, np.ndarray) else "json"


def _to_plain(label: Any) -> Any:
    """Return a label as a plain value: scalars of NumPy and torch as numbers, tensors as arrays."""
    label = to_array(label)
    if isinstance(label, np.generic) or (isinstance(label, np.ndarray) and not label.ndim):
        return label.item()
    return label
