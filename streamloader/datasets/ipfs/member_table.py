"""Hold the members of an archive by number, compactly and without objects, so that forked workers share them."""

from __future__ import annotations

import contextlib
import logging
from array import array
from typing import Final

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.containers.base import Container, Member
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget
from streamloader.stream_table import StringColumn
from streamloader.values import Array

__all__ = ["MemberTable", "warn_of_problem"]

_COLUMNS: Final = 6  # size, offset, data, stored_size, method, checksum
_NO_CHECKSUM: Final = -1
_log: Final = logging.getLogger("streamloader")


class MemberTable:
    """The readable members of one archive, in its order.

    Args:
        names: Names of the members.
        numbers: Numbers of the members, int64 (members, 6).
    """

    def __init__(self, names: StringColumn, numbers: Array) -> None:
        self.names = names
        self._numbers = numbers

    @classmethod
    async def scan(cls, container: Container) -> MemberTable:
        """Read the list of members. Those that are not ordinary files are left out, which one warning reports.

        Raises:
            CorruptContainer: If the archive is damaged.
            LimitExceeded: If it has too many members.
            StoreError: If the store fails otherwise.
        """
        names: list[str] = []
        numbers = array("q")
        problems: list[Member] = []
        budget = ListingBudget(container.source.limits, container.source.address, entry_bytes=HELD_ENTRY_BYTES)
        async with contextlib.aclosing(container.scan()) as members:
            async for member in members:
                budget.count_entry(member.name)
                if member.problem is not None:
                    problems.append(member)
                    continue
                checksum = _NO_CHECKSUM if member.checksum is None else member.checksum
                numbers.extend((member.size, member.offset, member.data, member.stored_size, member.method, checksum))
                names.append(member.name)
        if problems:
            warn_of_problem(container, problems[0], len(problems))
        rows = np.frombuffer(numbers, np.int64).reshape(-1, _COLUMNS)
        return cls(StringColumn.from_strings(names), rows)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Member:
        size, offset, data, stored_size, method, checksum = self._numbers[number].tolist()
        known = None if checksum == _NO_CHECKSUM else checksum
        return Member(self.names[number], size, offset, data, stored_size, method, known)


def warn_of_problem(container: Container, first: Member, count: int | None = None) -> None:
    """Report that members of an archive are left out.

    Args:
        container: The archive.
        first: First member that is left out.
        count: Number of these members, if it is known.
    """
    _log.warning(
        "%s: %s members are not ordinary files and are left out, such as %s (%s)",
        container.source.address,
        "some" if count is None else count,
        make_printable(first.name),
        first.problem,
    )
