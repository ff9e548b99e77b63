"""The places of an archive during an ingest: targets for new chunks, registration, and deletion of useless chunks."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog, CatalogHeader, ChunkRow
from streamloader.archive.ingest.owners import PlaceOwners
from streamloader.archive.ingest.placement import PlacementTarget, Spread, resolve_targets
from streamloader.archive.location import PlaceAddress
from streamloader.errors import StreamloaderError
from streamloader.stores.io_thread import SharedResource, open_shared_store

__all__ = ["IngestPlaces"]

_FREE_SPACE_TTL_S: Final = 60.0
_REGISTRATION_INTERVAL_S: Final = 60.0  # so that the markers name the videos that were added during a long run
_log: Final = logging.getLogger("streamloader")


class IngestPlaces:
    """The places of one run.

    Args:
        catalog: Catalog of the archive.
        header: Header of the catalog.
        addresses: Address of each place for this machine, by number of the place.
        storage_options: Options of the stores.
        spread: Distribution of the chunks, see :func:`resolve_targets`.
        only: Numbers of the places that get new chunks. None for all.

    Raises:
        ConfigError: If no place gets new chunks.
        UntrustedAddress: If only the author of the catalog names a place that gets new chunks. A place of this machine
            is used nevertheless if it has the marker of the archive.
        StoreError: If the request for the free bytes of a store fails.
    """

    def __init__(
        self,
        catalog: SharedResource[Catalog],
        header: CatalogHeader,
        addresses: Mapping[int, PlaceAddress],
        storage_options: Mapping[str, Any] | None,
        spread: Spread,
        only: Collection[int] | None,
    ) -> None:
        self._catalog = catalog
        self._archive = header.archive_id
        self._resolve = partial(resolve_targets, header.places, storage_options, spread, only, addresses)
        self._constant = spread == "weight"
        self._targets = self._resolve()
        self._resolved_at = time.monotonic()
        self._registered_at: float | None = None
        for target in self._targets:
            if target.share > 0 and not addresses[target.number].named:  # it is on this machine
                with self._open_owners(target) as owners:
                    if not owners.is_registered():
                        addresses[target.number].require_named()

    def get_targets(self) -> Sequence[PlacementTarget]:
        """Return the targets for new chunks, after this archive is registered in them.

        Free space is read again when it is older than a minute.

        Raises:
            StoreError: If a place cannot be reached.
        """
        now = time.monotonic()
        if not self._constant and now > self._resolved_at + _FREE_SPACE_TTL_S:
            self._targets, self._resolved_at = self._resolve(), now
        if self._registered_at is None or now > self._registered_at + _REGISTRATION_INTERVAL_S:
            self.register()
        return self._targets

    def register(self) -> None:
        """Register this archive in all places that get new chunks, or bring its markers up to date."""
        for target in self._targets:
            if target.share > 0:
                with self._open_owners(target) as owners:
                    owners.register()
        self._registered_at = time.monotonic()

    def finish(self) -> None:
        """Bring the markers up to date at the end of the run, if there was anything to do."""
        if self._registered_at is not None:
            try:
                self.register()
            except StreamloaderError as error:
                _log.warning("the markers in the places are not up to date: %s", error.message)

    def delete_chunks(self, rows: Sequence[ChunkRow]) -> None:
        """Delete the files of chunks that no job and no video of this archive has any more.

        Files that may belong to another archive remain. Errors are logged.
        """
        targets = {target.number: target for target in self._targets}
        for number in sorted({row.place for row in rows} & set(targets)):
            target = targets[number]
            paths = [row.path for row in rows if row.place == number]
            try:
                with self._open_owners(target) as owners:
                    doubt = owners.find_doubt()
                if doubt:
                    _log.warning("%d files remain in %s: %s", len(paths), target.url, doubt)
                    continue
                store, root = open_shared_store(target.url, target.options)
                with store:
                    for path in paths:
                        store.delete(f"{root.rstrip('/')}/{path}" if root else path)
            except StreamloaderError as error:
                _log.warning("%d files remain in %s: %s", len(paths), target.url, str(error))

    def _open_owners(self, target: PlacementTarget) -> PlaceOwners:
        return PlaceOwners(target.url, target.options, target.number, self._archive, self._catalog)
