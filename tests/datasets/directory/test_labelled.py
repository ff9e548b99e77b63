"""The data set of a directory and a table: samples, names, workers, ranks."""

from __future__ import annotations

import asyncio
import io
import itertools
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.directory.directory_data import fill, find_on_disk, open_directory
from torch.utils.data import DataLoader, DistributedSampler, WeightedRandomSampler

import streamloader as sl

FILES = {f"{number:03}.bin": bytes([number]) * number for number in range(1, 31)}
TABLE = {
    "image": list(FILES),
    "label": [number % 7 for number in range(30)],
    "text": [f"text of {name}" for name in FILES],
}


@pytest.fixture
def directory(tmp_path):
    fill(tmp_path / "root", FILES)
    with open_directory(tmp_path / "root") as directory:
        yield directory


def expect(rows=range(30)):
    return [
        {"image": FILES[TABLE["image"][row]], "label": TABLE["label"][row], "text": TABLE["text"][row]} for row in rows
    ]


def to_pair(row):
    return len(row["image"]), row["label"]


def test_samples_are_rows_with_the_objects_of_their_files(directory):
    data = sl.DirectoryDataset(directory, TABLE)
    assert len(data) == 30
    assert [data[row] for row in range(30)] == list(data) == expect()
    assert list(data[3]) == ["image", "label", "text"]
    assert data[-1] == expect([29])[0]
    assert data[np.int64(2)] == data[torch.tensor(2)] == expect([2])[0]
    assert data.__getitems__([5, -30, 5]) == expect([5, 0, 5])
    assert data.get_name(-1) == "030.bin"
    assert data.missing == []
    for row in (30, -31):
        with pytest.raises(IndexError, match=f"sample {row} of a data set with 30 samples"):
            data[row]
    with pytest.raises(TypeError):
        data["image"]


def test_columns_are_selected_and_samples_transformed(directory):
    data = sl.DirectoryDataset(directory, TABLE, columns=["label"])
    assert data[1] == {"image": FILES["002.bin"], "label": 1}
    assert sl.DirectoryDataset(directory, TABLE, columns=[])[1] == {"image": FILES["002.bin"]}
    assert sl.DirectoryDataset(directory, TABLE, transform=to_pair)[4] == (5, 4)
    renamed = {"label": TABLE["label"], "file": TABLE["image"]}
    assert sl.DirectoryDataset(directory, renamed, "file")[4] == {"label": 4, "file": FILES["005.bin"]}


def test_columns_can_be_read_as_a_whole(directory):
    data = sl.DirectoryDataset(directory, TABLE)
    labels = data.get_column("label")
    assert labels.dtype == np.int64
    assert labels.tolist() == TABLE["label"]
    labels += 1
    assert data[3]["label"] == 3
    assert data.get_column("text") == TABLE["text"]
    with pytest.raises(KeyError):
        data.get_column("other")
    weights = 1 / np.bincount(data.get_column("label"))[data.get_column("label")]
    loader = DataLoader(data, 5, sampler=WeightedRandomSampler(weights, 10))
    assert [len(batch["label"]) for batch in loader] == [5, 5]


def test_a_derived_class_is_used_for_batches(directory):
    class Doubled(sl.DirectoryDataset):
        def __getitem__(self, index):
            return super().__getitem__(index)["label"] * 2

    assert Doubled(directory, TABLE).__getitems__([1, 2, 8]) == [2, 4, 2]


# --- names -----------------------------------------------------------------------------------------------------------


def test_missing_files_are_one_error_that_counts_them(directory):
    table = {"image": [*(f"none{n}.bin" for n in range(7)), "003.bin", "gone.bin"]}
    with pytest.raises(sl.NotFound) as caught:
        sl.DirectoryDataset(directory, table)
    assert caught.value.message == (
        f"{directory.root} lacks the files of 8 of 9 rows of the table, counted from 0: 'none0.bin' (row 0), "
        "'none1.bin' (row 1), 'none2.bin' (row 2), 'none3.bin' (row 3), 'none4.bin' (row 4), and 3 more. "
        "Add the files, or pass on_missing='skip' to leave these rows out"
    )
    assert caught.value.details["count"] == 8
    assert isinstance(caught.value, FileNotFoundError)


def test_missing_files_can_be_left_out(directory):
    names = ["x.bin", "003.bin", "y.bin", "001.bin"]
    table = {
        "image": names,
        "number": [1, 2, 3, 4],
        "text": ["a", None, "c", "d"],
        "vector": np.arange(8).reshape(4, 2),
        "object": [{1}, {2}, {3}, {4}],
    }
    data = sl.DirectoryDataset(directory, table, on_missing="skip")
    assert data.missing == ["x.bin", "y.bin"]
    assert len(data) == 2
    first, second = data
    assert first.pop("vector").tolist() == [2, 3]
    assert second.pop("vector").tolist() == [6, 7]
    assert first == {"image": FILES["003.bin"], "number": 2, "text": None, "object": {2}}
    assert second == {"image": FILES["001.bin"], "number": 4, "text": "d", "object": {4}}
    assert data.get_name(1) == "001.bin"


def test_a_table_of_another_directory_is_an_error_in_any_case(directory, tmp_path):
    for on_missing in ("error", "skip"):
        with pytest.raises(sl.NotFound, match=r"2 of 2 rows .*\. The directory has names such as '0\d\d\.bin'"):
            sl.DirectoryDataset(directory, {"image": ["1", "2"]}, on_missing=on_missing)
    with open_directory(tmp_path / "empty") as empty, pytest.raises(sl.NotFound, match="The directory has no files"):
        sl.DirectoryDataset(empty, {"image": ["1"]})


def test_a_row_without_a_name_is_an_error(directory):
    table = {"image": ["001.bin", "", None, float("nan"), 4, b"002.bin"], "label": [0] * 6}
    with pytest.raises(sl.ConfigError) as caught:
        sl.DirectoryDataset(directory, table)
    assert caught.value.message == (
        "the column 'image' must have the names of files, and has none for 5 of 6 rows of the table, counted from 0: "
        "'' (row 1), None (row 2), None (row 3), 4 (row 4), b'002.bin' (row 5)"
    )
    with pytest.raises(sl.ConfigError, match=r"for 2 of 2 rows .* 1 \(row 0\), 2 \(row 1\)"):
        sl.DirectoryDataset(directory, {"image": [1, 2]})


def test_a_file_in_two_rows_is_an_error_unless_wanted(directory):
    table = {"image": ["001.bin", "002.bin", "001.bin", "001.bin"], "text": ["a", "b", "c", "d"]}
    with pytest.raises(sl.DuplicateName) as caught:
        sl.DirectoryDataset(directory, table)
    assert caught.value.message == (
        "the file of an earlier row is repeated in 2 of 4 rows of the table, counted from 0: "
        "'001.bin' (rows 0 and 2), '001.bin' (rows 0 and 3). Remove them, or pass repeats=True if a file may be in "
        "several rows"
    )
    assert caught.value.details["count"] == 1
    data = sl.DirectoryDataset(directory, table, repeats=True)
    assert [row["text"] for row in data] == ["a", "b", "c", "d"]
    assert [row["image"] for row in data] == [FILES[name] for name in table["image"]]


def test_a_table_without_rows_is_an_empty_data_set(directory):
    for table in ([], {"image": [], "label": []}):
        data = sl.DirectoryDataset(directory, table)
        assert len(data) == 0
        assert list(DataLoader(data, 4)) == []


def test_a_file_that_goes_later_is_an_error_and_an_object_may_be_none(tmp_path):
    with open_directory(tmp_path / "json", sl.JsonDataManager()) as directory:
        for name in ("a", "b"):
            directory.save(name, None)
        data = sl.DirectoryDataset(directory, {"image": ["a", "b"]})
        assert data[0] == {"image": None}
        directory.remove("b")
        with pytest.raises(sl.NotFound, match=r"'b' is no longer in .*json"):
            data[1]


def test_changes_of_files_are_noticed(directory):
    data = sl.DirectoryDataset(directory, TABLE)
    find_on_disk(directory.root, "004.bin").write_bytes(b"new")
    assert data[3]["image"] == b"new"


def test_wrong_options_are_refused(directory):
    with pytest.raises(sl.ConfigError, match="on_missing='ignore'"):
        sl.DirectoryDataset(directory, TABLE, on_missing="ignore")
    with pytest.raises(sl.ConfigError, match="columns='label': must be a list"):
        sl.DirectoryDataset(directory, TABLE, columns="label")


def test_the_files_of_a_batch_are_read_together(directory, monkeypatch):
    data = sl.DirectoryDataset(directory, TABLE)
    requests = []
    load_many = directory.load_many
    monkeypatch.setattr(directory, "load_many", lambda names: requests.append(names) or load_many(names))
    assert list(DataLoader(data, 12, collate_fn=list)) == [
        expect(range(12)),
        expect(range(12, 24)),
        expect(range(24, 30)),
    ]
    assert requests == [TABLE["image"][:12], TABLE["image"][12:24], TABLE["image"][24:]]


def test_a_directory_in_a_store(directory):
    store = sl.open_store("memory://labelled")
    for path in Path(directory.root).glob("*.pack"):
        asyncio.run(store.write(f"root/{path.name}", path.read_bytes()))
    for load_to_memory in (True, False):
        with open_directory("memory://labelled/root", load_to_memory=load_to_memory) as remote:
            data = sl.DirectoryDataset(remote, TABLE)
            assert data[3] == expect([3])[0]
            assert data.__getitems__([5, 5, -1, 0]) == expect([5, 5, 29, 0])


# --- processes -------------------------------------------------------------------------------------------------------


def test_it_can_be_pickled(directory):
    data = sl.DirectoryDataset(directory, TABLE | {"vector": np.eye(30)}, transform=to_pair)
    again = pickle.loads(pickle.dumps(data))
    with again.directory:
        assert list(again) == list(data)
    skipped = sl.DirectoryDataset(directory, {"image": ["001.bin", "x"]}, on_missing="skip")
    again = pickle.loads(pickle.dumps(skipped))
    with again.directory:
        assert (list(again), again.missing) == ([{"image": b"\x01"}], ["x"])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_dataloader_read_all_samples(directory, context):
    data = sl.DirectoryDataset(directory, TABLE, transform=to_pair)
    loader = DataLoader(data, 8, num_workers=2, multiprocessing_context=context, generator=torch.Generator())
    batches = [(sizes.tolist(), labels.tolist()) for sizes, labels in loader]
    expected = [(len(FILES[name]), label) for name, label in zip(TABLE["image"], TABLE["label"], strict=True)]
    assert [pair for batch in batches for pair in zip(*batch, strict=True)] == expected
    assert [len(sizes) for sizes, _ in batches] == [8, 8, 8, 6]


def test_dictionaries_are_collated(directory):
    files = {"a.npy": np.arange(6).reshape(2, 3), "b.npy": np.ones((2, 3), np.int64)}
    root = Path(directory.root).parent / "arrays"
    with open_directory(root, sl.NumpyDataManager()) as arrays:
        for name, array in files.items():
            arrays.save(name, array)
        table = {"x": list(files), "y": [0.5, 1.5], "flag": [True, False], "text": ["a", "b"]}
        (batch,) = DataLoader(sl.DirectoryDataset(arrays, table, "x"), 2)
    assert torch.equal(batch["x"], torch.from_numpy(np.stack(list(files.values()))))
    assert torch.equal(batch["y"], torch.tensor([0.5, 1.5], dtype=torch.float64))
    assert batch["flag"].tolist() == [True, False]
    assert batch["text"] == ["a", "b"]


def test_ranks_read_different_samples(directory):
    data = sl.DirectoryDataset(directory, TABLE)
    names = []
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank, shuffle=True, seed=5)
        sampler.set_epoch(2)
        names.append([text for batch in DataLoader(data, 4, sampler=sampler) for text in batch["text"]])
    assert list(map(len, names)) == [10, 10, 10]
    assert sorted(itertools.chain(*names)) == sorted(TABLE["text"])
    assert names[0] != sorted(names[0])


def test_columns_take_little_memory(directory):
    """30 rows are repeated 1,000 times: 30,000 rows in a few arrays."""
    table = {name: column * 1000 for name, column in TABLE.items()}
    data = sl.DirectoryDataset(directory, table, repeats=True)
    size = len(pickle.dumps(data._columns, 5))
    texts = sum(len(text) + 8 for name in ("image", "text") for text in TABLE[name]) * 1000
    assert size < texts + 120_000 + 5000
    assert sys.getsizeof(data._columns) < 1000


def test_a_table_can_be_in_a_store(directory):
    file = io.StringIO()
    file.writelines(f"{name},{label}\n" for name, label in [("image", "label"), *zip(FILES, range(30), strict=True)])
    store = sl.open_store("memory://labels")
    asyncio.run(store.write("table.csv", file.getvalue().encode()))
    data = sl.DirectoryDataset(directory, "memory://labels/table.csv", storage_options={})
    assert data[7] == {"image": FILES["008.bin"], "label": 7}
