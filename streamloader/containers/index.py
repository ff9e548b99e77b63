"""Hold the members of a container by name, compactly: about 60 bytes for each besides its name."""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np

from streamloader.containers.base import Member

__all__ = ["MemberIndex"]

_NO_CHECKSUM: Final = -1
_AFTER_SLASH: Final = chr(ord("/") + 1)


class MemberIndex:
    """The members of one container. A name that occurs more than once stands for its last member, as tar and unzip do.

    Add all members, then call :meth:`sort`; only then can members be found.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers = array("q")  # a row for each member: see _ROW
        self._modified = array("d")
        self._problems: dict[int, str] = {}

    def add(self, member: Member) -> None:
        """Add a member."""
        if member.problem is not None:
            self._problems[len(self._names)] = member.problem
        checksum = _NO_CHECKSUM if member.checksum is None else member.checksum
        self._numbers.extend((member.size, member.offset, member.data, member.stored_size, member.method, checksum))
        self._modified.append(np.nan if member.modified is None else member.modified)
        self._names.append(member.name)

    def sort(self) -> None:
        """Sort the members by name, and drop those that a later one of the same name replaces."""
        names = self._names
        order = sorted(range(len(names)), key=names.__getitem__)  # stable: the last one of a name comes last
        kept = [
            row
            for row, following in itertools.zip_longest(order, order[1:])
            if following is None or names[row] != names[following]
        ]
        self._names = [names[row] for row in kept]
        rows = np.asarray(kept, np.int64)
        self._numbers = array("q", np.frombuffer(self._numbers, np.int64).reshape(-1, _COLUMNS)[rows].tobytes())
        self._modified = array("d", np.frombuffer(self._modified, np.float64)[rows].tobytes())
        if self._problems:
            self._problems = {new: self._problems[row] for new, row in enumerate(kept) if row in self._problems}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def problems(self) -> list[Member]:
        """Members that are never read, sorted by name."""
        return [self._member(row) for row in sorted(self._problems)]

    def find(self, name: str) -> Member | None:
        """Return the member of a name, or None."""
        row = bisect.bisect_left(self._names, name)
        return self._member(row) if row < len(self._names) and self._names[row] == name else None

    def has_directory(self, name: str) -> bool:
        """Return whether there is a member below the directory `name`."""
        row = bisect.bisect_left(self._names, f"{name}/")
        return row < len(self._names) and self._names[row].startswith(f"{name}/")

    def list(self, prefix: str, *, recursive: bool) -> Iterator[Member | str]:
        """Yield what lies in a directory, sorted by name.

        Args:
            prefix: Name of the directory. "" for the whole container.
            recursive: Whether to yield members at any depth. Otherwise, directories are yielded by their names, which
                end in "/".
        """
        start = f"{prefix}/" if prefix else ""
        row = bisect.bisect_left(self._names, start)
        end = bisect.bisect_left(self._names, prefix + _AFTER_SLASH) if prefix else len(self._names)
        while row < end:
            name, slash, _ = self._names[row][len(start) :].partition("/")
            if recursive or not slash:
                yield self._member(row)
                row += 1
            else:
                yield f"{start}{name}/"
                row = bisect.bisect_left(self._names, f"{start}{name}{_AFTER_SLASH}")

    def _member(self, row: int) -> Member:
        size, offset, data, stored_size, method, checksum = self._numbers[row * _COLUMNS : (row + 1) * _COLUMNS]
        modified = self._modified[row]
        return Member(
            self._names[row],
            size,
            offset,
            data,
            stored_size,
            method,
            None if checksum == _NO_CHECKSUM else checksum,
            None if modified != modified else modified,  # noqa: PLR0124 - NaN
            self._problems.get(row),
        )


_COLUMNS: Final = 6  # size, offset, data, stored_size, method, checksum
