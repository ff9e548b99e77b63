"""Locate an archive: its catalog, and the addresses by which this machine reaches its places."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.archive.catalog.registry import get_shared_catalog, open_catalog
from streamloader.errors import ConfigError
from streamloader.stores.io_thread import get_shared_resource
from streamloader.stores.local import local_path
from streamloader.stores.registry import scheme_of

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, Place
    from streamloader.stores.io_thread import SharedResource

__all__ = ["CATALOG_FILE", "catalog_url", "open_shared_catalog", "resolve_places"]

CATALOG_FILE: Final = "catalog.sqlite"


def catalog_url(address: str | os.PathLike[str]) -> str:
    """Return the URL of the catalog at `address`. For a local folder, this is the file ``catalog.sqlite`` in it.

    Raises:
        ConfigError: If `address` is not an address.
    """
    text = os.fspath(address) if isinstance(address, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"an archive is opened by the URL of its catalog, or by its folder, got {address!r}")
    if scheme_of(text) not in ("", "file"):
        return text
    path = os.path.abspath(os.path.expanduser(local_path(text)))
    return os.path.join(path, CATALOG_FILE) if os.path.isdir(path) else path


def open_shared_catalog(url: str, options: Mapping[str, Any]) -> SharedResource[Catalog]:
    """Return this process's catalog at `url`. With a ``client=`` in the options, it is shared per client."""
    client = options.get("client")
    if client is None:
        return get_shared_catalog(url, options)
    return get_shared_resource(("catalog of a client", url, id(client)), lambda: open_catalog(url, **options))


def resolve_places(places: Sequence[Place], overrides: Mapping[int | str, str], url: str) -> dict[int, str]:
    """Return the address of each place of an archive for this machine, by number of the place.

    An archive whose only place is a local folder can be moved as a whole: if the folder does not exist, and there are
    chunks beside the catalog, the folder of the catalog is used.

    Args:
        places: Places recorded in the catalog.
        overrides: Addresses to use instead of the recorded ones, by number or URL of the place.
        url: URL of the catalog.

    Raises:
        ConfigError: If `overrides` names a place that the archive does not have.
    """
    remaining = {key if isinstance(key, int) else key.rstrip("/"): address for key, address in overrides.items()}
    addresses: dict[int, str] = {}
    for place in places:
        address = remaining.pop(place.url.rstrip("/"), place.url)
        addresses[place.number] = os.fspath(remaining.pop(place.number, address))
    if remaining:
        known = ", ".join(f"{place.number}: {place.url}" for place in places)
        unknown = ", ".join(map(repr, remaining))
        raise ConfigError(f"places={dict(overrides)!r} names {unknown}, but the archive has {known}")
    if len(places) == 1 and not overrides and scheme_of(url) in ("", "file"):
        number, address = next(iter(addresses.items()))
        catalog_folder = os.path.dirname(os.path.abspath(local_path(url)))
        is_missing = scheme_of(address) in ("", "file") and not os.path.isdir(local_path(address))
        if is_missing and os.path.isdir(os.path.join(catalog_folder, "chunks")):
            addresses[number] = catalog_folder
    return addresses
