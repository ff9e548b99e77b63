"""Print named values and tables, as plain text or, in a terminal, with Rich."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from typing_extensions import override

from streamloader.common.printable import make_printable, make_storable
from streamloader.common.text_table import align_cells

__all__ = ["PlainPrinter", "Section", "open_printer", "print_json"]

_MAX_CELL_CHARACTERS: Final = 1000
_RIGHT_ALIGNED: Final = frozenset(
    {
        *("#", "videos", "frames", "chunks", "size", "in", "out", "time", "key frames", "first"),
        *("batches", "delivered", "padded", "share", "repeated", "dropped", "bytes"),
        *("rank", "lowest", "highest", "imbalance"),
        *("members", "stored", "files", "keys", "rate", "channels", "unreadable"),
    }
)


def print_json(document: Any) -> None:
    """Print plain values as one JSON document. Names in it may come from files and servers: see `make_storable`."""
    print(json.dumps(make_storable(document, keep_lines=True), indent=2))


class Section:
    """A table, or a list of named values, with a title. Columns whose cells are all empty are dropped.

    Cells may come from servers and files: they are made printable, and shortened if they are very long.

    Args:
        title: Heading, or ``""``.
        columns: Titles of the columns.
        rows: Cells of each row, one for each column.
        footer: Line printed after the table, or ``""``.
        facts: Values by name, printed in two columns without titles. Takes the place of `columns` and `rows`.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[str] = (),
        rows: Sequence[Sequence[str]] = (),
        footer: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.title, self.footer = make_printable(title, None), make_printable(footer, None)
        self.columns = columns
        given = rows if facts is None else list(facts.items())
        self.rows: Sequence[Sequence[str]] = [
            [make_printable(cell, _MAX_CELL_CHARACTERS) for cell in row] for row in given
        ]
        used = [any(row[index] for row in rows) for index in range(len(columns))]
        if not all(used) and rows:
            self.columns = [name for name, keep in zip(columns, used, strict=True) if keep]
            self.rows = [[cell for cell, keep in zip(row, used, strict=True) if keep] for row in self.rows]


def open_printer(*, terminal: bool) -> PlainPrinter:
    """Return a Rich printer if the output is a terminal and Rich is installed, a plain one otherwise."""
    if not terminal:
        return PlainPrinter()
    try:
        import rich  # noqa: F401 - only checks that it is installed
    except ImportError:
        return PlainPrinter()
    return _RichPrinter()


class PlainPrinter:
    """Prints sections as plain text."""

    def print(self, sections: Iterable[Section]) -> None:
        """Print `sections`, separated by empty lines."""
        for number, section in enumerate(sections):
            if number:
                print()
            if section.title:
                print(section.title)
            self._print_table(section)
            if section.footer:
                print(section.footer)

    def _print_table(self, section: Section) -> None:
        rows = [section.columns, *section.rows] if section.columns else section.rows
        right = [name in _RIGHT_ALIGNED for name in section.columns] or [False] * len(rows[0] if rows else ())
        for line in align_cells(rows, right):
            print(line)


class _RichPrinter(PlainPrinter):
    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    @override
    def _print_table(self, section: Section) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        style = box.SIMPLE_HEAD if section.columns else None
        table = Table(box=style, show_header=bool(section.columns), padding=(0, 1), collapse_padding=bool(style))
        if not section.columns:
            table.add_column(style="bold cyan", no_wrap=True)
            table.add_column(overflow="fold")
        for name in section.columns:
            number = name in _RIGHT_ALIGNED
            table.add_column(
                name, justify="right" if number else "left", no_wrap=number, overflow="fold", header_style="bold cyan"
            )
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)
