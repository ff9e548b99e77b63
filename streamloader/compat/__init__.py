"""Compatibility layers: the interfaces of other systems over this package.

``streamloader.compat.StreamDataset`` is the base class of group envs (:meth:`MultiStreamer.from_env`).
"""

from streamloader.compat.stream_dataset import StreamDataset

__all__ = ["StreamDataset"]
