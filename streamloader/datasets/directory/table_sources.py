"""Read tables of labels: CSV and Parquet files, dataframes, lists of dictionaries, and dictionaries of columns."""

from __future__ import annotations

import csv
import io
import os
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any, Final

import numpy as np

from streamloader.arguments import expand_path
from streamloader.common.printable import make_printable
from streamloader.datasets.directory.table_columns import make_column, parse_texts
from streamloader.errors import ConfigError, DatasetError, MissingDependency, NotFound, StoreError
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import select_options
from streamloader.stream_table import StringColumn

__all__ = ["Columns", "read_table"]

Columns = dict[str, Sequence[Any]]

_PARQUET_ENDINGS: Final = (".parquet", ".pq")
_DELIMITERS: Final = {".csv": ",", ".txt": ",", ".tsv": "\t", ".tab": "\t"}
_ARRAY_TYPES: Final = frozenset(
    {"bool", "float", "double", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}
)


def read_table(
    table: Any, name: str, columns: Collection[str] | None, storage_options: Mapping[str, Any] | None
) -> Columns:
    """Return the columns of a table, all of one length.

    Args:
        table: Path or address of a CSV or Parquet file; a dataframe of pandas or polars, or a table of Arrow; a list of
            dictionaries, one for each row; or a dictionary of columns.
        name: Name of the column with the names of files. Its texts are never converted.
        columns: Names of the other columns to read. None for all.
        storage_options: Options of the store of an address.

    Raises:
        ConfigError: If the table is of no such kind, lacks a column, or has columns of different lengths.
        DatasetError: If the file is damaged.
        MissingDependency: If pyarrow, which reads Parquet files, is not installed.
        StoreError: If the file cannot be read.
    """
    wanted = None if columns is None else list(dict.fromkeys([name, *columns]))
    if isinstance(table, (str, os.PathLike)):
        result = _read_file(os.fspath(table), name, wanted, storage_options)
    elif isinstance(table, Mapping):
        result = {each: make_column(table[each]) for each in _select(list(table), wanted)}
    elif hasattr(table, "column_names"):
        result = _read_arrow(table, wanted)
    elif hasattr(table, "columns"):
        result = {each: make_column(table[each].to_numpy()) for each in _select(list(table.columns), wanted)}
    elif isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        result = _read_rows(table, wanted) if table else {each: [] for each in wanted or [name]}
    else:
        raise ConfigError(
            f"table is of the type {type(table).__name__}: it must be the path of a CSV or Parquet file, a dataframe, "
            "a list of dictionaries, or a dictionary of columns"
        )
    if name not in result:
        raise ConfigError(f"the table has no column {name!r:.100}, only {', '.join(map(repr, result)):.500}")
    _check_lengths(result)
    return result


def _select(available: list[Any], wanted: list[str] | None) -> list[str]:
    """Return the names of the columns to read, in the order of the table."""
    for each in available:
        if not isinstance(each, str) or available.count(each) > 1:
            raise ConfigError(f"the names of the table's columns must be different texts, got {available!r:.500}")
    if wanted is None:
        return available
    if missing := [each for each in wanted if each not in available]:
        raise ConfigError(f"the table has no column {missing[0]!r:.100}, only {', '.join(map(repr, available)):.500}")
    return [each for each in available if each in wanted]


def _check_lengths(columns: Columns) -> None:
    lengths = {each: len(column) for each, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"the columns of the table have different lengths: {lengths!s:.500}")


def _read_rows(rows: Sequence[Mapping[str, Any]], wanted: list[str] | None) -> Columns:
    first = list(rows[0])
    names = set(first)
    for number, row in enumerate(rows):
        if row.keys() != names:
            different = sorted(map(str, names ^ row.keys()))
            raise ConfigError(f"row {number} and row 0 have different columns, for example {different[0]!r:.100}")
    return {each: make_column([row[each] for row in rows]) for each in _select(first, wanted)}


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(address: str, name: str, wanted: list[str] | None, storage_options: Mapping[str, Any] | None) -> Columns:
    shown = make_printable(redact_address(address), 500)
    ending = os.path.splitext(address)[1].lower()
    if ending not in (*_PARQUET_ENDINGS, *_DELIMITERS):
        endings = ", ".join((*_DELIMITERS, *_PARQUET_ENDINGS))
        raise ConfigError(f"{shown} is no table that can be read: the endings are {endings}", address=address)
    with _open_file(address, storage_options) as file:
        if ending in _PARQUET_ENDINGS:
            return _read_parquet(file, shown, wanted)
        return _read_text(file, shown, _DELIMITERS[ending], name, wanted)


def _open_file(address: str, storage_options: Mapping[str, Any] | None) -> IO[bytes]:
    path = expand_path(local_path(address))
    if "://" in path:
        store, name = open_shared_store(address, select_options(address, storage_options))
        with store:
            return io.BytesIO(store.read(name))
    try:
        return open(path, "rb")
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else StoreError
        raise kind(f"the table {path} cannot be opened: {error.strerror or error}", address=path) from error


def _read_text(file: IO[bytes], shown: str, delimiter: str, name: str, wanted: list[str] | None) -> Columns:
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            texts = _collect_cells(reader, wanted)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"{shown}, line {reader.line_num}: {error}", address=shown) from error
        except ConfigError as error:
            raise ConfigError(f"{shown}: {error.message}", address=shown) from error
    return {each: column if each == name else parse_texts(column) for each, column in texts.items()}


def _collect_cells(reader: Iterator[list[str]], wanted: list[str] | None) -> dict[str, StringColumn]:
    header = next(reader, [])
    columns = {each: _TextBuilder(header.index(each)) for each in _select(header, wanted)}
    for row in reader:
        if len(row) == len(header):
            for column in columns.values():
                column.add(row)
        elif row:  # a line of nothing is none
            raise csv.Error(f"{len(row)} cells, where the first line has {len(header)}")
    return {each: column.finish() for each, column in columns.items()}


class _TextBuilder:
    """Collects the cells of a column without a Python object for each.

    Args:
        place: Number of the column.
    """

    def __init__(self, place: int) -> None:
        self._place = place
        self._data = bytearray()
        self._sizes = array("q")

    def add(self, row: Sequence[str]) -> None:
        cell = row[self._place].encode("utf-8", "surrogatepass")
        self._data += cell
        self._sizes.append(len(cell))

    def finish(self) -> StringColumn:
        data = np.frombuffer(bytes(self._data), np.uint8)
        return StringColumn(data, np.cumsum(np.frombuffer(self._sizes, np.int64)))


# --- Arrow -----------------------------------------------------------------------------------------------------------


def _read_parquet(file: IO[bytes], shown: str, wanted: list[str] | None) -> Columns:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependency("Parquet files need pyarrow: pip install streamloader[parquet]") from error
    try:
        opened = parquet.ParquetFile(file, pre_buffer=False)
        selected = _select(opened.schema_arrow.names, wanted)
        return _read_arrow(opened.read(columns=selected, use_threads=False), wanted)
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{shown} is no Parquet file that can be read: {error}", address=shown) from error
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error.message}", address=shown) from error


def _read_arrow(table: Any, wanted: list[str] | None) -> Columns:
    columns = {}
    for each in _select(table.column_names, wanted):
        column = table.column(each)
        is_array = column.null_count == 0 and str(column.type) in _ARRAY_TYPES
        columns[each] = make_column(column.to_numpy() if is_array else column.to_pylist())
    return columns
