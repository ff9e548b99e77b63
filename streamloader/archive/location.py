"""Where an archive is: its catalog, and its stores as this machine reaches them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.archive.catalog.registry import open_catalog, shared_catalog
from streamloader.errors import ConfigError
from streamloader.stores.io_thread import shared
from streamloader.stores.local import local_path
from streamloader.stores.registry import scheme_of

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, Place
    from streamloader.stores.io_thread import Shared

__all__ = ["CATALOG_FILE", "catalog_url", "placed", "shared_by"]

CATALOG_FILE: Final = "catalog.sqlite"


def catalog_url(address: str | os.PathLike[str]) -> str:
    """Return the url of the catalog that `address` means: itself, or the file in the folder that it names.

    Raises:
        ConfigError: it is no address.
    """
    text = os.fspath(address) if isinstance(address, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"an archive is opened by the url of its catalog, or by its folder, got {address!r}")
    if scheme_of(text) not in ("", "file"):
        return text
    path = os.path.abspath(os.path.expanduser(local_path(text)))
    return os.path.join(path, CATALOG_FILE) if os.path.isdir(path) else path


def shared_by(url: str, options: Mapping[str, Any]) -> Shared[Catalog]:
    """Return this process's catalog at `url`; one with a ``client=`` of the user's is shared by who gives the same."""
    client = options.get("client")
    if client is None:
        return shared_catalog(url, options)
    return shared(("catalog of a client", url, id(client)), lambda: open_catalog(url, **options))


def placed(places: Sequence[Place], given: Mapping[int | str, str], url: str) -> dict[int, str]:
    """Return the address of each place of an archive for this machine.

    Args:
        places: as the catalog has them.
        given: number or url of a place -> the address to use instead.
        url: of the catalog. Where the only place is a local folder that is gone, and chunks lie beside the catalog, the
            archive was moved as a whole, and that is its place.

    Raises:
        ConfigError: `given` names a place that the archive does not have.
    """
    left = {key if isinstance(key, int) else key.rstrip("/"): address for key, address in given.items()}
    found: dict[int, str] = {}
    for place in places:
        known = left.pop(place.url.rstrip("/"), place.url)
        found[place.number] = os.fspath(left.pop(place.number, known))
    if left:
        have = ", ".join(f"{place.number}: {place.url}" for place in places)
        raise ConfigError(f"places={dict(given)!r} names {', '.join(map(repr, left))}, but the archive has {have}")
    if len(places) == 1 and not given and scheme_of(url) in ("", "file"):
        number, address = next(iter(found.items()))
        beside = os.path.dirname(os.path.abspath(local_path(url)))
        gone = scheme_of(address) in ("", "file") and not os.path.isdir(local_path(address))
        if gone and os.path.isdir(os.path.join(beside, "chunks")):
            found[number] = beside
    return found
