"""The base classes of data sets for torch's DataLoader, and stand-ins where torch is not installed.

A data set inherits them for ``isinstance`` alone. Without torch there is no DataLoader to look at it, and indexing and
iterating work as they do with torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from streamloader.torch_support import has_torch

__all__ = ["Dataset", "IterableDataset"]

if TYPE_CHECKING or has_torch():
    from torch.utils.data import Dataset, IterableDataset
else:
    _SampleT_co = TypeVar("_SampleT_co", covariant=True)

    class Dataset(Generic[_SampleT_co]):
        """Base of the data sets with numbered samples."""

    class IterableDataset(Dataset[_SampleT_co]):
        """Base of the data sets that are iterated over."""
