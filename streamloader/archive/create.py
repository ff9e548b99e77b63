"""Create archives, add videos to them, and check them: from the user's arguments to calls of the ingest package."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from streamloader.archive.location import CATALOG_FILE, catalog_url, open_shared_catalog
from streamloader.errors import CatalogNotFound, ConfigError, StoreError
from streamloader.redaction import redact_address
from streamloader.stores.local import local_path
from streamloader.stores.origins import LOCAL_SCHEMES
from streamloader.stores.registry import scheme_of

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, Place
    from streamloader.archive.ingest import CheckReport, IngestReport
    from streamloader.archive.reader.reader import ArchiveReader
    from streamloader.stores.addresses import Addresses
    from streamloader.stores.io_thread import SharedResource

__all__ = ["EnsuredPlaces", "add_to_archive", "check_opened_archive", "create_archive", "ensure_places"]

_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class EnsuredPlaces:
    """The result of :func:`ensure_places`.

    Attributes:
        numbers: Numbers of the requested places, ascending.
        addresses: Addresses of the requested places, by number of the place.
        created: Whether the archive was created.
        added: Places that were added to an existing archive.
    """

    numbers: list[int]
    addresses: Mapping[int | str, str]
    created: bool
    added: tuple[Place, ...]


def create_archive(
    store: str | os.PathLike[str] | Sequence[str] | Mapping[str, float],
    catalog: str | None,
    catalog_options: Mapping[str, Any] | None,
) -> tuple[str, tuple[Place, ...]]:
    """Create the catalog of an empty archive, and return its URL and its places.

    See :meth:`Archive.create` for the arguments.
    """
    from streamloader.archive.ingest import parse_places

    places = parse_places(store)
    if catalog is None:
        first = places[0].url
        if scheme_of(first) not in ("", "file"):
            raise ConfigError(
                f"the archive in {redact_address(first)} needs catalog=: a local file such as 'videos.sqlite', or "
                "mongodb://..."
            )
        catalog = os.path.join(local_path(first), CATALOG_FILE)
    url = catalog_url(catalog)
    if scheme_of(url) in ("", "file"):
        os.makedirs(os.path.dirname(local_path(url)) or ".", exist_ok=True)
    with open_shared_catalog(url, catalog_options or {}) as shared:
        shared.call(shared.resource.create(places))
        _register_local_places(shared, places)
    return url, places


def _register_local_places(catalog: SharedResource[Catalog], places: Sequence[Place]) -> None:
    """Register the archive in places of this machine that the user has just named.

    The archive can then be opened by its catalog alone, and added to. An ingest registers in all other places.
    """
    from streamloader.archive.ingest.owners import PlaceOwners

    archive = catalog.call(catalog.resource.get_header()).archive_id
    for place in places:
        if scheme_of(place.url) in LOCAL_SCHEMES:
            try:
                with PlaceOwners(place.url, {}, place.number, archive, catalog) as owners:
                    owners.register()
            except StoreError as error:  # the first ingest reports it
                _log.info("%s does not record that the archive uses it: %s", place.url, error.message)


def ensure_places(catalog: SharedResource[Catalog], stores: Mapping[str, float]) -> EnsuredPlaces:
    """Create the archive if it does not exist, or add those of `stores` that are not among its places yet.

    Args:
        catalog: Catalog of the archive.
        stores: Weights of the folders for chunks, by address. If empty, the archive must exist.

    Raises:
        CatalogNotFound: If there is no archive and `stores` is empty.
        ConfigError: If an address or a weight is invalid.
    """
    from streamloader.archive.ingest import parse_places

    created = False
    try:
        header = catalog.call(catalog.resource.get_header())
    except CatalogNotFound:
        if not stores:
            raise
        header = catalog.call(catalog.resource.create(parse_places(stores)))
        _register_local_places(catalog, header.places)
        created = True
    if not stores:
        return EnsuredPlaces([], {}, created, ())
    existing = {place.url for place in header.places}
    requested = parse_places(stores)
    added: tuple[Place, ...] = ()
    if new := {place.url: place.weight for place in requested if place.url not in existing}:
        added = parse_places(new, first=len(header.places))
        header = catalog.call(catalog.resource.set_places([*header.places, *added]))
        _register_local_places(catalog, added)
    urls = {place.url for place in requested}
    numbers = [place.number for place in header.places if place.url in urls]
    return EnsuredPlaces(numbers, {number: header.places[number].url for number in numbers}, created, added)


def add_to_archive(reader: ArchiveReader, videos: Addresses, options: Mapping[str, Any]) -> IngestReport:
    """Add videos to the archive of a reader.

    Args:
        reader: Reader of the archive.
        videos: Paths, addresses, patterns or folders of videos.
        options: Options of the ingest and fields of ``CutSettings``.
    """
    from streamloader.archive.ingest import add_videos
    from streamloader.media.chunks.settings import CutSettings

    names = {item.name for item in dataclasses.fields(CutSettings)}
    cut = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    rest.setdefault("storage_options", reader.storage_options)
    rest.setdefault("addresses", reader.places)
    return add_videos(reader.catalog, videos, CutSettings(**cut), **rest)


def check_opened_archive(reader: ArchiveReader, repair: bool, options: Mapping[str, Any]) -> CheckReport:
    """Check the archive of a reader. See :func:`streamloader.archive.ingest.check_archive` for the options."""
    from streamloader.archive.ingest import check_archive

    defaults = {"storage_options": reader.storage_options, "places": reader.places}
    return check_archive(reader.catalog, repair=repair, **(defaults | dict(options)))
