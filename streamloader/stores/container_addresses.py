"""Split an address that goes on into a container: ``s3://bucket/set.zip!/a/b.png``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["CONTAINER_SUFFIXES", "is_container_root", "split_container_address"]

CONTAINER_SUFFIXES: Final = (".pack", ".tar", ".tar.gz", ".tar.zst", ".tgz", ".tzst", ".zip")

_SUFFIXES: Final = "|".join(re.escape(suffix) for suffix in CONTAINER_SUFFIXES)
# The last container of an address that names several: a zip file in a tar file. A query may follow the file's name.
_CONTAINER: Final = re.compile(rf"(.+(?:{_SUFFIXES})(?:\?[^!]*)?)!(?:/(.*))?", re.IGNORECASE | re.DOTALL)


def split_container_address(address: str) -> tuple[str, str] | None:
    """Return the address of the container, and the path of the member within it.

    Returns:
        A tuple of two strings. None if the address does not go on into a container: if no name before a "!" has one of
        the endings in :data:`CONTAINER_SUFFIXES`.
    """
    match = _CONTAINER.fullmatch(address)
    return None if match is None else (match[1], match[2] or "")


def is_container_root(url: str) -> bool:
    """Return whether `url` is the root of a container, as :func:`split_address` returns it: it ends in "!"."""
    split = split_container_address(url)
    return split is not None and not split[1] and url.endswith("!")
