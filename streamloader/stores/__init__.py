"""Stores: named objects in one location, with one class for each kind of address and one contract for all.

The contract is :class:`streamloader.stores.base.Store`.
"""

from __future__ import annotations

from streamloader.stores.base import Store
from streamloader.stores.registry import open_store, register_store, schemes, split_address

__all__ = ["Store", "open_store", "register_store", "schemes", "split_address"]
