"""Locate an archive: its catalog, and the addresses by which this machine reaches its places."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from streamloader.archive.catalog.chunk_paths import CHUNKS_FOLDER
from streamloader.archive.catalog.registry import catalog_schemes, get_shared_catalog, open_catalog
from streamloader.arguments import expand_path
from streamloader.errors import ConfigError
from streamloader.media.video.index_file import is_index_file
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import get_shared_resource
from streamloader.stores.local import local_path
from streamloader.stores.origins import LOCAL_SCHEMES, is_bound, make_untrusted_error, select_access
from streamloader.stores.registry import scheme_of, spell_address

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, Place
    from streamloader.stores.io_thread import SharedResource

__all__ = [
    "CATALOG_FILE", "PlaceAddress", "catalog_url", "is_catalog_address", "open_shared_catalog", "resolve_places",
]  # fmt: skip

CATALOG_FILE: Final = "catalog.sqlite"
_CATALOG_SUFFIXES: Final = (".sqlite", ".db")


def catalog_url(address: str | os.PathLike[str]) -> str:
    """Return the URL of the catalog at `address`. For a local folder, this is the file ``catalog.sqlite`` in it.

    Raises:
        ConfigError: If `address` is not an address.
    """
    text = os.fspath(address) if isinstance(address, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"an archive is opened by the URL of its catalog, or by its folder, got {address!r}")
    text = spell_address(text)
    if scheme_of(text) not in ("", "file"):
        return text
    path = os.path.abspath(expand_path(local_path(text)))
    return os.path.join(path, CATALOG_FILE) if os.path.isdir(path) else path


def is_catalog_address(address: str) -> bool:
    """Return whether an address is that of a catalog, by its scheme, its ending, or the catalog in its folder."""
    scheme = scheme_of(address)
    if scheme not in ("", "file"):
        return scheme in catalog_schemes()
    path = os.path.expanduser(local_path(address))
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, CATALOG_FILE))
    return path.endswith(_CATALOG_SUFFIXES) and not is_index_file(path)


def open_shared_catalog(url: str, options: Mapping[str, Any]) -> SharedResource[Catalog]:
    """Return this process's catalog at `url`. With a ``client=`` in the options, it is shared per client."""
    client = options.get("client")
    if client is None:
        return get_shared_catalog(url, options)
    return get_shared_resource(("catalog of a client", url, id(client)), lambda: open_catalog(url, **options))


@dataclass(frozen=True, slots=True)
class PlaceAddress:
    """The address by which this machine reaches a place of an archive.

    Attributes:
        number: Number of the place.
        url: Address of the folder with the chunks.
        named: Whether the user named the address: in this call, by options that are bound to it, or because it is the
            folder of the catalog. Otherwise only the author of the catalog did.
        catalog: Address of the catalog, without secrets.
    """

    number: int
    url: str
    named: bool
    catalog: str

    @property
    def is_local(self) -> bool:
        """Whether the place is on this machine, or in its memory."""
        return scheme_of(self.url) in LOCAL_SCHEMES

    def select_options(self, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the options with which the place may be opened, see :mod:`streamloader.stores.origins`.

        Raises:
            UntrustedAddress: If the place can only be opened when the user names it.
            ConfigError: If `storage_options` are malformed.
        """
        return select_access(self.url, storage_options, named=self.named, document=self.catalog)

    def require_named(self) -> None:
        """Check that the user named the place, before anything is written or deleted there.

        Raises:
            UntrustedAddress: If only the author of the catalog did.
        """
        if not self.named:
            raise make_untrusted_error(
                self.url, self.catalog, "nothing is written there (on the command line, name it with --to)"
            )


def resolve_places(
    places: Sequence[Place],
    overrides: Mapping[int | str, str | os.PathLike[str]],
    url: str,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[int, PlaceAddress]:
    """Return the address of each place of an archive for this machine, by number of the place.

    An archive whose only place is a local folder can be moved as a whole: if the folder does not exist, and there are
    chunks beside the catalog, the folder of the catalog is used.

    Args:
        places: Places recorded in the catalog.
        overrides: Addresses from the user, by number or URL of the place.
        url: URL of the catalog.
        storage_options: Options from the user. Places that they are bound to count as named by the user.

    Raises:
        ConfigError: If `overrides` names a place that the archive does not have.
    """
    remaining = {key if isinstance(key, int) else key.rstrip("/"): address for key, address in overrides.items()}
    addresses: dict[int, PlaceAddress] = {}
    catalog, folder = redact_address(url), _get_catalog_folder(url)
    for place in places:
        override = remaining.pop(place.url.rstrip("/"), None)
        override = remaining.pop(place.number, override)
        address = place.url if override is None else os.fspath(override)
        named = override is not None or is_bound(address, storage_options) or _is_inside(address, folder)
        addresses[place.number] = PlaceAddress(place.number, address, named, catalog)
    if remaining:
        known = ", ".join(f"{place.number}: {place.url}" for place in places)
        unknown = ", ".join(map(repr, remaining))
        raise ConfigError(f"places={dict(overrides)!r} names {unknown}, but the archive has {known}")
    if len(places) == 1 and not overrides and folder:
        number = places[0].number
        address = addresses[number].url
        is_missing = scheme_of(address) in ("", "file") and not os.path.isdir(local_path(address))
        if is_missing and os.path.isdir(os.path.join(folder, CHUNKS_FOLDER)):
            addresses[number] = PlaceAddress(number, folder, named=True, catalog=catalog)
    return addresses


def _get_catalog_folder(url: str) -> str:
    """Return the folder of a catalog in a local file. Return "" for other catalogs."""
    scheme = scheme_of(url)
    if scheme not in ("", "file", "sqlite"):
        return ""
    path = "/" + url.partition("://")[2].lstrip("/") if scheme == "sqlite" else local_path(url)
    return os.path.dirname(os.path.abspath(expand_path(path)))


def _is_inside(address: str, folder: str) -> bool:
    """Return whether a local address is a folder, or is below it, with all links followed."""
    if not folder or scheme_of(address) not in ("", "file"):
        return False
    path, root = os.path.realpath(local_path(address)), os.path.realpath(folder)
    return os.path.commonpath([path, root]) == root
