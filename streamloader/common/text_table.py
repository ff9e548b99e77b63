"""Tables as plain text, and their contents independent of how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["TextTable", "align_cells"]


class TextTable(NamedTuple):
    """A table, or a list of named values, to be shown as plain text or by a terminal library.

    Attributes:
        title: Heading, or ``""``.
        columns: Titles of the columns. Empty for named values.
        rows: Cells of each row: one for each column, or a name and a value.
        footer: Line after the table, or ``""``.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    footer: str = ""


def align_cells(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Return one line for each row, with the cells of a column below each other.

    Args:
        rows: Cells of each row, the same number for all.
        right: Whether the cells of each column are aligned to the right.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
