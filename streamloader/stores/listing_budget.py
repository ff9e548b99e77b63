"""Limit the work and the memory of one listing."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from streamloader.config import Limits
from streamloader.errors import LimitExceeded

__all__ = ["HELD_ENTRY_BYTES", "ListingBudget"]

HELD_ENTRY_BYTES: Final = 256  # approximate memory of an entry besides its name and version


class ListingBudget:
    """Counts the entries of one listing, and ends it at the limits.

    Stores count what they receive, including the entries that they skip, and the directories that they will visit.

    Args:
        limits: Limits of the store.
        address: Address of the listed directory, without secrets, for messages.
        entry_bytes: Memory that each entry needs besides its name and version. Defaults to 0, for listings whose
            entries are not kept.
    """

    __slots__ = ("_address", "_bytes", "_count", "_entered", "_entry_bytes", "_limits", "_repeated")

    def __init__(self, limits: Limits, address: str, *, entry_bytes: int = 0) -> None:
        self._limits = limits
        self._address = address
        self._entry_bytes = entry_bytes
        self._count = 0
        self._bytes = 0
        self._entered: set[Hashable] = set()
        self._repeated = 0

    def count_entry(self, path: str, version: str | None = None) -> None:
        """Count one entry.

        Raises:
            LimitExceeded: If there are too many entries, or their names are too long.
        """
        self._count += 1
        if self._count > self._limits.listed:
            raise self._make_error(f"has more than {self._limits.listed} entries", "listed")
        self._bytes += len(path) + self._entry_bytes + (0 if version is None else len(version))
        if self._bytes > self._limits.listing_bytes:
            raise self._make_size_error()

    def hold_directory(self, path: str, depth: int) -> None:
        """Count a directory that is kept until it is visited.

        Args:
            path: Path of the directory.
            depth: Nesting level of the directory. The paths of as many directories may be kept with it.

        Raises:
            LimitExceeded: If the directories that are kept need too much memory.
        """
        self._bytes += HELD_ENTRY_BYTES + len(path) + 8 * depth
        if self._bytes > self._limits.listing_bytes:
            raise self._make_size_error()

    def check_depth(self, depth: int, address: str) -> None:
        """Check the nesting level of a directory. The listed directory itself has level 1.

        Raises:
            LimitExceeded: If the directory is nested too deeply.
        """
        if depth > self._limits.depth:
            raise LimitExceeded(
                f"{address:.500} is nested deeper than {self._limits.depth} directories: raise Limits(depth=...)",
                address=address,
            )

    def enter_directory(self, identity: Hashable) -> None:
        """Count the visit of a directory.

        Args:
            identity: Identity of the directory, which is the same for every path that leads to it.

        Raises:
            LimitExceeded: If links lead to directories again and again.
        """
        if identity not in self._entered:
            self._entered.add(identity)
            return
        self._repeated += 1
        if self._repeated > self._limits.shared_directories:
            raise self._make_error(
                f"enters directories more than {self._limits.shared_directories} times that it has entered before, "
                "through links",
                "shared_directories",
            )

    def _make_size_error(self) -> LimitExceeded:
        return self._make_error(
            f"needs more than {self._limits.listing_bytes} bytes for its {self._count} entries", "listing_bytes"
        )

    def _make_error(self, problem: str, limit: str) -> LimitExceeded:
        return LimitExceeded(
            f"{self._address}: the listing {problem}: raise Limits({limit}=...)", address=self._address
        )
