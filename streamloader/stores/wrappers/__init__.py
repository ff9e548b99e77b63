"""What is put around a store: a directory as its root, retries, verification, a cache."""

from __future__ import annotations

import os
from collections.abc import Mapping

from streamloader.config import Retry
from streamloader.stores.base import Store
from streamloader.stores.wrappers.base import Wrapper
from streamloader.stores.wrappers.prefix import Rooted

__all__ = ["Rooted", "Wrapper", "wrapped"]


def wrapped(
    store: Store,
    root: str = "",
    *,
    retry: Retry | None = None,
    digests: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> Store:
    """Put around `store` what is asked for, from the inside out: retries, cache, verification, root.

    Args:
        store: of a whole host or bucket.
        root: the directory that paths are then relative to.
        retry: how transient errors are tried again; None for never.
        digests: path -> expected digest, see :class:`streamloader.stores.wrappers.verify.Verify`.
        cache_dir: see :class:`streamloader.stores.wrappers.cache.Cache`.
        cache_bytes: of it.
    """
    if retry is not None and retry.attempts > 1:
        from streamloader.stores.wrappers.retry import Retrying

        store = Retrying(store, retry)
    if cache_dir is not None:
        from streamloader.stores.wrappers.cache import Cache

        store = Cache(store, cache_dir, cache_bytes)
    if digests is not None:  # of what comes out of the cache as well
        from streamloader.stores.wrappers.verify import Verify

        store = Verify(store, {f"{root}/{path}" if root else path: digest for path, digest in digests.items()})
    return Rooted(store, root) if root else store
