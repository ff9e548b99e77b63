"""Data managers: files and objects, and what they refuse."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from optional_torch import needs_torch, torch

import streamloader as sl

ARRAYS = [
    np.arange(12, dtype=np.int16).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.zeros((0, 3), np.float32),
    np.array(7, np.uint8),
    np.array([(1, 2.5)], dtype=[("a", "<i4"), ("ü", ">f8")]),
]


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def round_trip(manager, value, path):
    """Return what load and deserialize give, and check that serialize gives bytes."""
    manager.save(str(path), value)
    data = path.read_bytes()
    assert isinstance(manager.serialize(value), bytes)
    return manager.load(str(path)), manager.deserialize(memoryview(data).toreadonly()), manager.deserialize(data)


@pytest.mark.parametrize(
    ("manager", "name", "value", "content"),
    [
        (sl.BytesDataManager(), "a.bin", b"\0\r\n\xff", b"\0\r\n\xff"),
        (sl.BytesDataManager(), "empty", b"", b""),
        (sl.TextDataManager(), "a.txt", "one\r\ntwo\nd\u00fc \U0001f600", "one\r\ntwo\nd\u00fc \U0001f600".encode()),
        (sl.TextDataManager(encoding="latin-1"), "a.txt", "d\u00fc", b"d\xfc"),
        (sl.JsonDataManager(), "a.json", {"a": [1, 2.5, None, "\u00fc"]}, '{"a": [1, 2.5, null, "ü"]}'.encode()),
        (sl.JsonDataManager(indent=1), "a.json", [1], b"[\n 1\n]"),
    ],
)
def test_plain_values(manager, name, value, content, tmp_path):
    assert round_trip(manager, value, tmp_path / name) == (value, value, value)
    assert (tmp_path / name).read_bytes() == content == manager.serialize(value)
    assert pickle.loads(pickle.dumps(manager)) == manager
    assert manager.packs_files is True


def test_bytes_are_taken_from_any_buffer_and_copied(tmp_path):
    manager = sl.BytesDataManager()
    buffer = bytearray(b"abc")
    assert manager.serialize(memoryview(buffer)) == b"abc"
    loaded = manager.deserialize(memoryview(buffer))
    buffer[0] = 0
    assert loaded == b"abc"


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays(array, tmp_path):
    for loaded in round_trip(sl.NumpyDataManager(), array, tmp_path / "a.npy"):
        assert same(loaded, array)
        assert loaded.flags.writeable
    assert same(np.load(tmp_path / "a.npy", allow_pickle=False), array)


def test_mappings_of_arrays(tmp_path):
    value = {"x": ARRAYS[0], "file": ARRAYS[1], "allow_pickle": ARRAYS[2], "a/b": ARRAYS[3]}
    for loaded in round_trip(sl.NumpyDataManager(), value, tmp_path / "a.NPZ"):
        assert list(loaded) == list(value)
        assert all(same(loaded[name], array) for name, array in value.items())
    with np.load(tmp_path / "a.NPZ", allow_pickle=False) as members:
        assert same(members["a/b"], ARRAYS[3])
    compressed = io.BytesIO()
    np.savez_compressed(compressed, one=ARRAYS[0])
    assert same(sl.NumpyDataManager().deserialize(compressed.getvalue())["one"], ARRAYS[0])
    assert sl.NumpyDataManager().deserialize(sl.NumpyDataManager().serialize({})) == {}


@needs_torch
def test_tensors_and_lists_become_arrays():
    manager = sl.NumpyDataManager()
    tensor = torch.arange(6, dtype=torch.float32, requires_grad=True).reshape(2, 3)
    assert same(manager.deserialize(manager.serialize(tensor)), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert manager.deserialize(manager.serialize([1, 2])).tolist() == [1, 2]


def made_npz(name, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr(name, data)
    return file.getvalue()


def made_npy(header):
    text = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def pickled_array():
    file = io.BytesIO()
    np.save(file, np.array([{1: 2}], dtype=object), allow_pickle=True)
    return file.getvalue()


WHOLE = sl.NumpyDataManager().serialize(ARRAYS[0])
HOSTILE_ARRAYS = {
    "empty": b"",
    "text": b"hello",
    "cut": WHOLE[:-1],
    "cut header": WHOLE[:20],
    "longer": WHOLE + b"\0",
    "pickle": pickled_array(),
    "pickle in npz": made_npz("a.npy", pickled_array()),
    "bare pickle": pickle.dumps(ARRAYS[0]),
    "huge shape": made_npy({"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}),
    "negative shape": made_npy({"descr": "<f8", "fortran_order": False, "shape": (-1,)}),
    "overflowing shape": made_npy({"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 40)}),
    "no descr": made_npy({"fortran_order": False, "shape": (1,)}),
    "bad descr": made_npy({"descr": "no", "fortran_order": False, "shape": (1,)}),
    "long header": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
    "cut npz": sl.NumpyDataManager().serialize({"a": ARRAYS[0]})[:-5],
    "other member": made_npz("a.txt", b"hello"),
    "zip alone": b"PK\x03\x04",
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays(name, tmp_path):
    (tmp_path / "a.npy").write_bytes(HOSTILE_ARRAYS[name])
    with pytest.raises(sl.CorruptSample):
        sl.NumpyDataManager().deserialize(HOSTILE_ARRAYS[name])
    with pytest.raises(sl.CorruptSample, match=r"a\.npy") as error:
        sl.NumpyDataManager().load(str(tmp_path / "a.npy"))
    assert error.value.address == str(tmp_path / "a.npy")


def test_arrays_that_expand_without_end_are_refused_before_they_do(monkeypatch, tmp_path):
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(4 << 20, np.uint8))
    assert sl.NumpyDataManager().deserialize(file.getvalue())["a"].size == 4 << 20
    small = sl.Limits(expansion_bytes=1 << 20, expansion_ratio=10)
    monkeypatch.setattr("streamloader.datasets.directory.managers.Limits", lambda: small)
    (tmp_path / "a.npz").write_bytes(file.getvalue())
    with pytest.raises(sl.LimitExceeded, match=r"a\.npz: .*expand to"):
        sl.NumpyDataManager().load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("manager", "data"),
    [
        (sl.TextDataManager(), b"\xff\xfe"),
        (sl.JsonDataManager(), b"{"),
        (sl.JsonDataManager(), b"\xff"),
        (sl.JsonDataManager(), b"[" * 100_000),
        (sl.JsonDataManager(), b"1" * 10_000),
    ],
)
def test_damaged_texts(manager, data, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(sl.CorruptSample, match="it is no"):
        manager.deserialize(memoryview(data))
    with pytest.raises(sl.CorruptSample, match="damaged: it is no"):
        manager.load(str(path))


@pytest.mark.parametrize(
    ("manager", "name", "value"),
    [
        (sl.BytesDataManager(), "a", "text"),
        (sl.BytesDataManager(), "a", 5),
        (sl.TextDataManager(), "a", b"bytes"),
        (sl.TextDataManager(encoding="ascii"), "a", "\u00fc"),
        (sl.TextDataManager(), "a", "\udcff"),
        (sl.JsonDataManager(), "a", {1, 2}),
        (sl.JsonDataManager(), "a", float("nan")),
        (sl.NumpyDataManager(), "a.npy", np.array([object()])),
        (sl.NumpyDataManager(), "a.npy", [[1], [2, 3]]),
        (sl.NumpyDataManager(), "a.npy", {"a": ARRAYS[0]}),
        (sl.NumpyDataManager(), "a.npz", ARRAYS[0]),
        (sl.NumpyDataManager(), "a.npz", {1: ARRAYS[0]}),
        (sl.NumpyDataManager(), "a.npz", {"a": np.array([None])}),
    ],
)
def test_objects_that_are_refused_leave_no_file(manager, name, value, tmp_path):
    with pytest.raises(sl.ConfigError):
        manager.save(str(tmp_path / name), value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_encodings_are_refused_at_once():
    with pytest.raises(sl.ConfigError, match="unknown encoding"):
        sl.TextDataManager(encoding="none")


def test_a_missing_file_is_one(tmp_path):
    for manager in (sl.BytesDataManager(), sl.NumpyDataManager(), sl.PillowDataManager(), sl.OpenCVDataManager()):
        with pytest.raises(FileNotFoundError):
            manager.load(str(tmp_path / "none.png"))


def test_json_is_strict_and_readable():
    assert json.loads(sl.JsonDataManager().serialize({"ü": (1, 2)})) == {"ü": [1, 2]}
