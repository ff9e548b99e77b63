"""Tables of labels: every kind is read to the same columns."""

from __future__ import annotations

import datetime as dt
import math
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from optional_torch import needs_torch, torch
from pyarrow import parquet

import streamloader as sl
from streamloader.datasets.directory.table_sources import read_table

NAMES = ["a.png", "b.png", "\u00fc \u4e16.png"]
PLAIN = {
    "image": NAMES,
    "label": [3, -1, 2**40],
    "weight": [0.5, -math.inf, 3.0],
    "good": [True, False, True],
    "text": ["one", 'two, with "quotes"\nand lines', ""],
}
WITH_MISSING = {
    "image": NAMES,
    "count": [1, None, 3],
    "score": [None, 0.5, 1.5],
    "text": ["one", None, ""],
}


def read(table, name="image", columns=None):
    return {each: list(column) for each, column in read_table(table, name, columns, None).items()}


def to_rows(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_csv(path, columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def write_parquet(path, columns):
    parquet.write_table(pa.table(columns), path)
    return path


KINDS = {
    "dictionary of columns": lambda columns, folder: columns,
    "list of dictionaries": lambda columns, folder: to_rows(columns),
    "tuple of dictionaries": lambda columns, folder: tuple(to_rows(columns)),
    "pandas": lambda columns, folder: pd.DataFrame(columns, index=range(7, 7 + len(NAMES))),
    "pandas with its own types": lambda columns, folder: pd.DataFrame(columns).convert_dtypes(),
    "polars": lambda columns, folder: pl.DataFrame(columns, strict=False),
    "arrow": lambda columns, folder: pa.table(columns),
    "parquet": lambda columns, folder: write_parquet(folder / "table.parquet", columns),
    "csv": lambda columns, folder: str(write_csv(folder / "table.csv", columns)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_give_the_same_values(kind, tmp_path):
    table = KINDS[kind](PLAIN, tmp_path)
    columns = read(table)
    assert columns == PLAIN
    assert [[type(value) for value in column] for column in columns.values()] == [
        [type(value) for value in column] for column in PLAIN.values()
    ]
    assert list(read(table, columns=["label"])) == ["image", "label"]
    with pytest.raises(sl.ConfigError, match="the table has no column 'other', only 'image', 'label'"):
        read(table, columns=["other"])
    with pytest.raises(sl.ConfigError, match="the table has no column 'name', only 'image', 'label'"):
        read(table, "name")


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values(kind, tmp_path):
    columns = read(KINDS[kind](WITH_MISSING, tmp_path))
    assert columns["image"] == NAMES
    assert [None if math.isnan(value) else value for value in columns["count"]] == [1.0, None, 3.0]
    assert [None if math.isnan(value) else value for value in columns["score"]] == [None, 0.5, 1.5]
    assert columns["text"] == (["one", "", ""] if kind == "csv" else ["one", None, ""])


def test_other_values_stay_as_they_are():
    day = dt.date(2024, 2, 29)
    columns = {"image": NAMES, "list": [[1], [], [2, 3]], "day": [day, None, day], "bytes": [b"a", b"", b"c"]}
    columns |= {"mixed": [1, "a", None], "large": [2**70, 0, 1], "identifier": [2**60 + 1, None, 5]}
    assert read(columns) == columns
    assert read(to_rows(columns)) == columns


@needs_torch
def test_arrays_and_tensors():
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    days = np.array(["2024-01-01", "NaT", "2024-01-03"], "datetime64[D]")
    table = {"image": np.array(NAMES), "vector": torch.from_numpy(vectors), "day": days, "half": np.float16([1, 2, 3])}
    columns = read_table(table, "image", None, None)
    assert list(columns["image"]) == NAMES
    assert type(columns["image"][0]) is str
    assert columns["vector"][1].dtype == np.float32
    assert columns["vector"][1].tolist() == [2.0, 3.0]
    columns["vector"][1][:] = 0
    vectors[:] = 9
    assert columns["vector"][1].tolist() == [2.0, 3.0]
    assert columns["day"][2] == np.datetime64("2024-01-03")
    assert list(columns["half"]) == [1.0, 2.0, 3.0]


def test_categories_are_texts(tmp_path):
    expected = ["cat", "dog", "cat"]
    categories = pd.DataFrame({"image": NAMES, "kind": pd.Categorical(expected)})
    assert read(categories)["kind"] == expected
    assert read(pl.DataFrame({"image": NAMES, "kind": pl.Series(expected, dtype=pl.Categorical)}))["kind"] == expected
    categories.to_parquet(tmp_path / "table.pq", index=False)
    assert read(tmp_path / "table.pq")["kind"] == expected


# --- text files ------------------------------------------------------------------------------------------------------

CELLS = [
    (["0", "-7", "12"], [0, -7, 12]),
    (["007", "12", "3"], ["007", "12", "3"]),  # an identifier
    (["1", "", "3"], [1.0, None, 3.0]),
    (["1.5", "2", "-3e-2"], [1.5, 2.0, -0.03]),
    (["1.", ".5", "+2"], [1.0, 0.5, 2.0]),
    (["inf", "-Infinity", "1"], [math.inf, -math.inf, 1.0]),
    (["nan", "1", "2"], [None, 1.0, 2.0]),
    (["nan", "", "NaN"], ["nan", "", "NaN"]),
    (["", "", ""], ["", "", ""]),
    (["True", "false", "TRUE"], [True, False, True]),
    (["true", "", "false"], ["true", "", "false"]),
    (["1_000", "2", "3"], ["1_000", "2", "3"]),
    (["\u0661", "2", "3"], ["\u0661", "2", "3"]),  # a digit, but not of ASCII
    ([" 1", "2", "3"], [" 1", "2", "3"]),
    (["0x10", "2", "3"], ["0x10", "2", "3"]),
    (["9223372036854775807", "0", "0"], [2**63 - 1, 0, 0]),
    (["9223372036854775808", "0", "0"], ["9223372036854775808", "0", "0"]),
    (["9007199254740993", "", "0"], ["9007199254740993", "", "0"]),  # a float would round it
    (["1" * 5000, "0", "0"], ["1" * 5000, "0", "0"]),
]


def test_cells_of_text_files(tmp_path):
    for cells, expected in CELLS:
        lines = [f"{name},{cell}\n" for name, cell in zip(NAMES, cells, strict=True)]
        (tmp_path / "table.csv").write_text("".join(["image,x\n", *lines]), "utf-8")
        values = [None if value != value else value for value in read(tmp_path / "table.csv")["x"]]  # noqa: PLR0124
        assert values == expected
        assert list(map(type, values)) == list(map(type, expected))


def test_names_are_never_numbers(tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n001,001\n2,2\n")
    assert read(tmp_path / "table.csv") == {"image": ["001", "2"], "label": ["001", "2"]}


def test_files_of_spreadsheets_are_read(tmp_path):
    (tmp_path / "table.csv").write_bytes("image,label\r\na.png,1\r\n\r\nb.png,2\r\n".encode("utf-8-sig"))
    (tmp_path / "table.TSV").write_text("image\tlabel\na.png\t1\nb.png\t2")
    expected = {"image": ["a.png", "b.png"], "label": [1, 2]}
    assert read(tmp_path / "table.csv") == read(str(tmp_path / "table.TSV")) == expected
    assert read(f"file://{tmp_path}/table.csv") == expected


BAD_TEXTS = [
    (b"image,label\na.png,1\nb.png\n", sl.DatasetError, "table.csv, line 3: 1 cells, where the first line has 2"),
    (b"image,label\na.png,1,2\n", sl.DatasetError, "line 2: 3 cells"),
    (b'image,label\na.png,"1\nb.png,2\n', sl.DatasetError, "line 3: unexpected end of data"),
    (b"image,label\n\xff.png,1\n", sl.DatasetError, "'utf-8' codec can't decode byte 0xff"),
    (b"image,label\na.png," + b"x" * 200_000, sl.DatasetError, "line 2: field larger than field limit"),
    (b"image,image\na.png,1\n", sl.ConfigError, "table.csv: the names of the table's columns must be different"),
    (b"", sl.ConfigError, "the table has no column 'image'"),
]


def test_damaged_text_files_are_errors(tmp_path):
    for content, kind, message in BAD_TEXTS:
        (tmp_path / "table.csv").write_bytes(content)
        with pytest.raises(kind, match=message) as caught:
            read(tmp_path / "table.csv")
        assert type(caught.value) is kind


def test_damaged_parquet_files_are_errors(tmp_path):
    path = write_parquet(tmp_path / "table.parquet", PLAIN)
    data = path.read_bytes()
    for damaged in (b"", data[:100], data[:-20], data[:8] + bytes(300) + data[308:]):
        path.write_bytes(damaged)
        with pytest.raises(sl.DatasetError, match="is no Parquet file that can be read"):
            read(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(sl.NotFound, match=r"table .*none\.csv cannot be opened"):
        read(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(sl.StoreError, match="cannot be opened: Is a directory"):
        read(tmp_path / "folder.csv")
    with pytest.raises(sl.ConfigError, match=r"table\.xlsx is no table that can be read: the endings are \.csv, "):
        read("table.xlsx")


def test_parquet_files_need_an_extra(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "table.parquet", PLAIN)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(sl.MissingDependency, match=r"need pyarrow: pip install streamloader\[parquet\]"):
        read(path)
    assert read(PLAIN) == PLAIN


BAD_TABLES = [
    (5, "table is of the type int"),
    (["a.png"], "table is of the type list"),
    ([{"image": "a"}, {"image": "b", "label": 1}], "row 1 and row 0 have different columns, for example 'label'"),
    ({"image": NAMES, "label": [1, 2]}, r"columns of the table have different lengths: {'image': 3, 'label': 2}"),
    ({"image": NAMES, 5: [1, 2, 3]}, "names of the table's columns must be different texts"),
    (pd.DataFrame([["a", 1]], columns=["image", "image"]), "names of the table's columns must be different texts"),
]


def test_tables_of_other_kinds_are_refused():
    for table, message in BAD_TABLES:
        with pytest.raises(sl.ConfigError, match=message):
            read(table)
