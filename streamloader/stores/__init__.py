"""Where bytes live: one class for each kind of address, with one contract (:class:`streamloader.stores.base.Store`)."""

from __future__ import annotations

from streamloader.stores.base import Store
from streamloader.stores.registry import open_store, register_store, schemes, split_address

__all__ = ["Store", "open_store", "register_store", "schemes", "split_address"]
