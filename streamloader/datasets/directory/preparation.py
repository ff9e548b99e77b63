"""Create missing subdirectories, and report packs that are not used."""

from __future__ import annotations

import errno
import logging
from typing import Final

from streamloader.common.printable import make_printable
from streamloader.datasets.directory.local_root import LocalRoot, RootListing
from streamloader.errors import StoreError

__all__ = ["create_subdirectory", "prepare_subdirectories"]

_log = logging.getLogger(__name__)

_NEW_PREFIX: Final = "subdir_"
_NOT_NOW: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def prepare_subdirectories(root: LocalRoot, min_count: int) -> None:
    """Create subdirectories until there are `min_count`, and log a warning for packs that cannot be used.

    A new subdirectory never has the name of a pack: that would be taken for out of date, and replaced.

    On a disk that is full or that cannot be written to, none is created: it can still be read.

    Raises:
        StoreError: If the root cannot be listed, or a subdirectory cannot be created for another reason.
    """
    listing = root.list_root()
    orphans = sorted(listing.packs.difference(listing.subdirectories))
    _warn(root, listing, orphans)
    missing = min_count - len(listing.subdirectories)
    if missing > 0 and root.can_write():
        try:
            _create(root, missing, {*listing.subdirectories, *orphans})
        except StoreError as error:
            if error.details.get("errno") not in _NOT_NOW:
                raise
            _log.warning("%s: there are fewer than %d subdirectories: %s", root.address, min_count, error.message)


def create_subdirectory(root: LocalRoot) -> None:
    """Create one subdirectory.

    Raises:
        StoreError: If the root cannot be listed, or no subdirectory can be created.
    """
    listing = root.list_root()
    _create(root, 1, {*listing.subdirectories, *listing.packs})


def _create(root: LocalRoot, missing: int, taken: set[str]) -> None:
    number = 0
    while missing:
        name = f"{_NEW_PREFIX}{number}"
        number += 1
        if name not in taken:
            root.create_subdirectory(name)
            missing -= 1


def _warn(root: LocalRoot, listing: RootListing, orphans: list[str]) -> None:
    if listing.legacy:
        _log.warning(
            "%s: %d packs *.vdd are ignored, because opening one would run what it contains. "
            "`streamloader convert-vdd` converts them, if you trust them",
            root.address,
            len(listing.legacy),
        )
    if orphans:
        _log.warning(
            "%s: %d packs are ignored, because there is no subdirectory of the same name, for example %s",
            root.address,
            len(orphans),
            make_printable(orphans[0]),
        )
