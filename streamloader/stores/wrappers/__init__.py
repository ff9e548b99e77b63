"""Wrap stores: retries, a cache, verification, and a directory as the root."""

from __future__ import annotations

import os
from collections.abc import Mapping

from streamloader.config import Retry
from streamloader.stores.base import Store
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.stores.wrappers.prefix import PrefixStore

__all__ = ["PrefixStore", "StoreWrapper", "wrap_store"]


def wrap_store(
    store: Store,
    root: str = "",
    *,
    retry: Retry | None = None,
    digests: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> Store:
    """Wrap `store` as the options require, from the inside out: retries, cache, verification, root.

    Args:
        store: Store of a whole host or bucket.
        root: Directory that paths are relative to. Defaults to the store's own root.
        retry: Policy for retrying transient errors. Defaults to None: no retries.
        digests: Expected digests by path, see :class:`streamloader.stores.wrappers.verify.VerifyingStore`. Defaults to
            None: no verification.
        cache_dir: Directory of the cache, see :class:`streamloader.stores.wrappers.cache.CachingStore`. Defaults to
            None: no cache.
        cache_bytes: Maximum size of the cache in bytes. Defaults to None: no limit.
    """
    if retry is not None and retry.attempts != 1:
        from streamloader.stores.wrappers.retry import RetryStore

        store = RetryStore(store, retry)
    if cache_dir is not None:
        from streamloader.stores.wrappers.cache import CachingStore

        store = CachingStore(store, cache_dir, cache_bytes)
    if digests is not None:  # around the cache, so that cached bytes are verified, too
        from streamloader.stores.wrappers.verify import VerifyingStore

        store = VerifyingStore(store, {f"{root}/{path}" if root else path: digest for path, digest in digests.items()})
    return PrefixStore(store, root) if root else store
