"""Map-style data set of the files of a directory, with labels from a table beside it."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np

from streamloader.common.count_display import open_count_display
from streamloader.common.printable import make_printable
from streamloader.datasets.directory.table_columns import get_array, is_missing, take_rows
from streamloader.datasets.directory.table_sources import read_table
from streamloader.datasets.directory.virtual_directory import VirtualDirectory
from streamloader.errors import ConfigError, DuplicateName, NotFound
from streamloader.stream_table import StringColumn
from streamloader.torch_datasets import Dataset
from streamloader.values import Array

__all__ = ["DirectoryDataset"]

OnMissing = Literal["error", "skip"]

_SHOWN_ROWS: Final = 5
_SHOW_EVERY: Final = 4096  # rows


class DirectoryDataset(Dataset[Any]):
    """The files of a :class:`VirtualDirectory` as samples, with labels from a table. Each row of the table is a sample.

    A sample is a dictionary of the row's values, with the loaded object in the place of the name of its file, or what
    `transform` makes of it::

        table = [{"image": "a.png", "label": 3}, {"image": "b.png", "label": 1}]
        data = sl.DirectoryDataset(directory, table, transform=lambda row: (to_tensor(row["image"]), row["label"]))

    All names are looked up when the data set is created. Numbers and texts are kept in arrays, which forked workers
    share. The data set can be pickled, and used by DataLoaders with any sampler, such as ``DistributedSampler``.

    The numbers of a CSV file become ints, floats or bools if the whole column has them; all other columns are texts.
    Numbers with leading zeros are texts. Empty cells between numbers are NaN. In other tables, missing numbers are NaN
    too, and missing texts None.

    Args:
        directory: Directory with the files. The data set does not close it.
        table: Path or address of a CSV (``.csv``, ``.tsv``) or Parquet file, which needs the extra ``parquet``; a
            dataframe of pandas or polars, or a table of Arrow; a list of dictionaries, one for each row; or a
            dictionary of columns.
        name: Name of the column that has the names of the files. Defaults to ``"image"``.
        columns: Names of the other columns that samples have. Defaults to None: all.
        transform: Function of a sample's dictionary, whose result is returned instead. For workers that are spawned, it
            has to be picklable. Defaults to None.
        on_missing: Treatment of rows whose file is not in the directory. ``"error"`` raises an error that counts them,
            and ``"skip"`` leaves them out. Defaults to ``"error"``.
        repeats: Whether several rows may have the same file, such as an image with several captions. Defaults to False.
        verbose: Whether to show the progress of looking up names. Defaults to True.
        storage_options: Options of the store for the address of a table. Defaults to none.

    Attributes:
        directory: The directory.
        missing: Names of the files of rows that were left out.

    Raises:
        ConfigError: If the table is of no kind above, lacks a column, or has rows without a name.
        DatasetError: If the file of the table is damaged.
        DuplicateName: If several rows have the same file.
        MissingDependency: If pyarrow, which reads Parquet files, is not installed.
        NotFound: If files are missing, or if all rows would be left out.
        StoreError: If the file of the table cannot be read.
    """

    def __init__(
        self,
        directory: VirtualDirectory,
        table: Any,
        name: str = "image",
        columns: Collection[str] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        *,
        on_missing: OnMissing = "error",
        repeats: bool = False,
        verbose: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if on_missing not in get_args(OnMissing):
            raise ConfigError(f"on_missing={on_missing!r:.80}: must be one of {', '.join(get_args(OnMissing))}")
        if isinstance(columns, str):
            raise ConfigError(f"columns={columns!r:.80}: must be a list of names")
        self.directory = directory
        self.missing: list[str] = []
        self._name = name
        self._transform = transform
        self._columns = read_table(table, name, columns, storage_options)
        self._shown_table = make_printable(os.fspath(table)) if isinstance(table, (str, os.PathLike)) else "the table"
        self._check_names(repeats=repeats)
        self._keep(self._find_files(verbose=verbose), on_missing)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._columns[self._name])

    def __getitem__(self, index: int) -> Any:
        """Return a sample.

        Raises:
            CorruptSample: If the file cannot be decoded.
            IndexError: If there is no such sample.
            NotFound: If the file has been removed since.
            StoreError: If the file cannot be read.
        """
        row = self._normalize(index)
        return self._make_sample(row, self.directory.load(self._columns[self._name][row]))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several samples, whose files are read together. A DataLoader calls this for a batch."""
        if type(self).__getitem__ is not DirectoryDataset.__getitem__:
            return [self[index] for index in indices]
        rows = [self._normalize(index) for index in indices]
        names = self._columns[self._name]
        return list(map(self._make_sample, rows, self.directory.load_many([names[row] for row in rows])))

    def get_name(self, index: int) -> str:
        """Return the name of a sample's file, without reading the file."""
        name: str = self._columns[self._name][self._normalize(index)]
        return name

    def get_column(self, name: str) -> Array | list[Any]:
        """Return a column of all samples: an array of numbers, or a list of anything else. For samplers and statistics.

        Raises:
            KeyError: If there is no such column.
        """
        column = self._columns[name]
        values = get_array(column)
        if values is None:
            return list(column)
        return values.astype(np.int64) if values.dtype.kind == "i" else values.copy()

    def _normalize(self, index: int) -> int:
        row, count = operator.index(index), len(self)
        if not -count <= row < count:
            raise IndexError(f"sample {row} of a data set with {count} samples")
        return row % count

    def _make_sample(self, row: int, loaded: Any) -> Any:
        values = {each: column[row] for each, column in self._columns.items()}
        name = values[self._name]
        if loaded is None and not self.directory.exists(name):  # a data manager may return None too
            raise NotFound(
                f"{name!r:.300} is no longer in {self.directory.root}: it was removed after the data set was created",
                address=self.directory.root,
            )
        values[self._name] = loaded
        return values if self._transform is None else self._transform(values)

    # --- names -------------------------------------------------------------------------------------------------------

    def _check_names(self, *, repeats: bool) -> None:
        names = self._columns[self._name]
        bad = [row for row, name in enumerate(names) if not isinstance(name, str) or not name]
        if bad:
            shown = [
                f"{None if is_missing(names[row]) else names[row]!r:.100} (row {row})" for row in bad[:_SHOWN_ROWS]
            ]
            raise ConfigError(
                f"the column {self._name!r:.100} must have the names of files, and has none for "
                f"{self._list_rows(shown, len(bad))}"
            )
        if not isinstance(names, StringColumn):
            self._columns[self._name] = names = StringColumn.from_strings(names)
        if not repeats:
            self._check_duplicates(names)

    def _check_duplicates(self, names: StringColumn) -> None:
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        first: dict[str, int] = {}
        again = [
            (name, row, first[name])
            for row in np.flatnonzero(counts[inverse] > 1).tolist()
            if first.setdefault(name := names[row], row) != row
        ]
        if again:
            shown = [f"{name!r:.100} (rows {earlier} and {row})" for name, row, earlier in again[:_SHOWN_ROWS]]
            raise DuplicateName(
                f"the file of an earlier row is repeated in {self._list_rows(shown, len(again))}. Remove them, or "
                "pass repeats=True if a file may be in several rows",
                count=len({name for name, _, _ in again}),
            )

    def _find_files(self, *, verbose: bool) -> Array:
        """Return whether the directory has the file of each row."""
        names = self._columns[self._name]
        found = np.zeros(len(names), bool)
        with open_count_display("looking up files") as show:
            for row, name in enumerate(names):
                found[row] = self.directory.exists(name)
                if verbose and row % _SHOW_EVERY == 0:
                    show(row, len(names))
        return found

    def _keep(self, found: Array, on_missing: OnMissing) -> None:
        """Keep the rows that have a file."""
        if found.all():
            return
        rows = np.flatnonzero(~found).tolist()
        if on_missing == "error" or not found.any():
            raise self._make_missing_error(rows)
        self.missing = [self._columns[self._name][row] for row in rows]
        kept = np.flatnonzero(found)
        self._columns = {each: take_rows(column, kept) for each, column in self._columns.items()}

    def _make_missing_error(self, rows: list[int]) -> NotFound:
        names = self._columns[self._name]
        shown = [f"{names[row]!r:.100} (row {row})" for row in rows[:_SHOWN_ROWS]]
        message = f"{self.directory.root} lacks the files of {self._list_rows(shown, len(rows))}."
        if len(rows) < len(names):
            message += " Add the files, or pass on_missing='skip' to leave these rows out"
        elif existing := self.directory.get_list_of_files()[:1]:
            message += f" The directory has names such as {existing[0]!r:.100}"
        else:
            message += " The directory has no files"
        return NotFound(message, address=self.directory.root, count=len(rows))

    def _list_rows(self, shown: list[str], count: int) -> str:
        rest = f", and {count - len(shown):,} more" if count > len(shown) else ""
        return f"{count:,} of {len(self):,} rows of {self._shown_table}, counted from 0: {', '.join(shown)}{rest}"
