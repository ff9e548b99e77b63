"""Arguments of users: every kind of whole number is an int, and what cannot be used is refused at once."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from engine_data import Numbered, assert_same_batches, copies
from optional_torch import needs_torch, torch

import streamloader as sl
from streamloader.arguments import check_integer, check_seconds
from streamloader.media.video.selection import Selection

LENGTHS = [5, 9, 2, 7]
INTEGERS = [np.int64, np.int32, np.uint8, *([torch.tensor] if torch else [])]
SHAPES = [3, np.int64(3), (np.int32(3),), *([torch.Size([3])] if torch else [])]
ARGUMENTS = {"batch_size": 2, "window": 3, "prefetch_factor": 2, "num_workers": 0, "seed": 5}


def loader_of(**arguments):
    return sl.MultiStreamer(Numbered(LENGTHS), **(ARGUMENTS | arguments))


@pytest.mark.parametrize("make", INTEGERS)
def test_integers_of_every_type_are_equal(make):
    with loader_of() as loader, loader_of(**{name: make(value) for name, value in ARGUMENTS.items()}) as other:
        loader.set_epoch(3)
        other.set_epoch(make(3))
        assert_same_batches(copies(other), copies(loader))
        state = json.loads(json.dumps(other.state_dict()))
        assert state == loader.state_dict()
        loader.load_state_dict(state)


@pytest.mark.parametrize("make", INTEGERS)
def test_ranks_of_every_type_are_equal(make):
    with loader_of(rank=1, world_size=2) as loader, loader_of(rank=make(1), world_size=make(2)) as other:
        assert_same_batches(copies(other), copies(loader))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("value", [2.0, "2", [2], np.float32(2)])
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises(sl.ConfigError, match=f"{name} must be a whole number"):
        loader_of(**{name: value})


@pytest.mark.parametrize("value", [1.0, "1", None, -1])
def test_epochs_that_are_none_are_refused(value):
    with loader_of() as loader, pytest.raises(sl.ConfigError, match="epoch must be"):
        loader.set_epoch(value)


def test_settings_of_numpy_types_are_those_of_python():
    def state_of(number):
        dataset = Numbered(LENGTHS)
        type(dataset).settings = property(lambda _: {"stride": number})
        with sl.MultiStreamer(dataset, 2, 3) as loader:
            return loader.state_dict()

    original = Numbered.settings
    try:
        assert state_of(np.int16(2)) == state_of(2) != state_of(3)
    finally:
        Numbered.settings = original


@pytest.mark.parametrize("value", [0.5, 3, np.float32(2), np.int64(4)])
def test_seconds(value):
    assert check_seconds("timeout", value) == float(value)


@pytest.mark.parametrize("value", [-1, float("nan"), "3", b"3", [1], object()])
def test_seconds_that_are_none_are_refused(value):
    with pytest.raises(sl.ConfigError, match="timeout must be a number of seconds"):
        check_seconds("timeout", value)


@pytest.mark.parametrize("value", [None, 0, 0.0])
def test_no_limit(value):
    assert check_seconds("timeout", value) is None


def test_the_minimum_is_named():
    assert check_integer("n", 3, 3) == 3
    with pytest.raises(sl.ConfigError, match="n must be 3 or more, got 2"):
        check_integer("n", 2, 3)


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">u8", "<f4", "=i4"])
def test_fields_have_the_byte_order_of_the_machine(dtype):
    assert sl.Field((), dtype).dtype.isnative


def test_a_stream_of_big_endian_numbers():
    numbers = np.arange(6, dtype=">i4")
    dataset = sl.IterStreams([0, 10], lambda item: iter(numbers + item), fields=sl.Field((), ">i4", fill=-7))
    with sl.MultiStreamer(dataset, 2, 4, shuffle=False, switch="align") as loader:
        first, second = (batch.data.tolist() for batch in loader)
    assert [first[0] + second[0], first[1] + second[1]] == [
        [0, 1, 2, 3, 4, 5, -7, -7],
        [10, 11, 12, 13, 14, 15, -7, -7],
    ]


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("uint8", -1),
        ("uint8", 256),
        ("int8", 128),
        ("int64", 2**63),
        ("uint8", 0.5),
        ("int32", float("nan")),
        ("bool", 2),
        ("float16", 70_000),
        ("float32", 1j),
        ("float32", "0"),
        ("float32", None),
        ("float32", [0.0]),
    ],
)
def test_padding_that_does_not_fit_is_refused(dtype, fill):
    with pytest.raises(sl.ConfigError, match="does not fit into a field of"):
        sl.Field((2,), dtype, fill=fill)


@pytest.mark.parametrize(
    ("dtype", "fill", "expected"),
    [
        ("uint8", np.int64(255), 255),
        ("uint8", 3.0, 3),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("bool", 1, True),
        ("float32", -1, -1.0),
        ("float32", 10**30, float(np.float32(10**30))),
        ("float32", float("-inf"), float("-inf")),
        ("complex64", 2, 2 + 0j),
    ],
)
def test_padding_becomes_a_number_of_python(dtype, fill, expected):
    field = sl.Field((2,), dtype, fill=fill)
    assert field.fill == expected
    assert type(field.fill) is type(expected)


@pytest.mark.parametrize("dtype", ["longdouble", "clongdouble", "O", "S3", "M8[s]", "no such", object()])
def test_dtypes_that_no_tensor_has_are_refused(dtype):
    with pytest.raises(sl.ConfigError, match="dtype"):
        sl.Field((), dtype)


@pytest.mark.parametrize("shape", [(2.0,), "ab", None, ((1, 2),), -1, (3, -1)])
def test_shapes_that_are_none_are_refused(shape):
    with pytest.raises(sl.ConfigError, match="shape must"):
        sl.Field(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_every_type_are_equal(shape):
    assert sl.Field(shape).shape == (3,)


@pytest.mark.parametrize("fields", [3, [], {1: sl.Field()}, {"a": 3}])
def test_fields_that_are_none_are_refused(fields):
    with pytest.raises(sl.ConfigError, match="field"):
        sl.IterStreams([1], range, fields=fields)


# --- flags, names and functions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shuffle", "pin_memory"])
@pytest.mark.parametrize(
    "value", [np.bool_(False), 0, None, np.array(False), *([torch.tensor(False)] if torch else [])]
)
def test_flags_of_every_type_are_equal(name, value):
    with loader_of(**{name: False}) as loader, loader_of(**{name: value}) as other:
        assert_same_batches(copies(other), copies(loader))
        assert json.loads(json.dumps(other.state_dict())) == loader.state_dict()


def show(value):
    """Return what is the same in all processes of the tests, without addresses of memory."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


UNUSABLE = [2.5, "other", b"2", [1, 2], {}, np.arange(2), np.array("x"), object(), 1j, -7, 10**40]


@pytest.mark.parametrize("value", UNUSABLE, ids=show)
@pytest.mark.parametrize(
    "name", ["shuffle", "pin_memory", "collate_fn", "layout", "switch", "tail", "device", "on_error", "on_worker_death"]
)
def test_what_cannot_be_used_is_refused_at_the_door(name, value):
    if name == "device" and torch is None:
        pytest.skip("needs torch")
    with pytest.raises(sl.ConfigError, match=name):
        loader_of(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 10**30), ("batch_size", 2**31), ("window", 2**63), ("world_size", 2**40)]
)
def test_numbers_that_are_too_large_are_refused_before_memory_is_taken(name, value):
    more = {"rank": 0} if name == "world_size" else {}
    with pytest.raises(sl.ConfigError, match=rf"{name}.* must be .* or less"):
        loader_of(**{name: value}, **more)


def test_a_limit_of_time_that_no_clock_counts_is_none():
    assert check_seconds("timeout", 10**30) is None
    assert check_seconds("timeout", float("inf")) is None


# --- the other doors --------------------------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("make", INTEGERS)
def test_data_sets_take_integers_of_every_type(make, tmp_path):
    with sl.ShardWriter(str(tmp_path / "shards"), maxcount=make(4)) as writer:
        for number in range(12):
            writer.write({"__key__": f"{number:04}", "txt": f"{number}"})

    def play(kind):
        data = sl.RemoteDataset(str(tmp_path / "shards"), seed=kind(3), open_shards=kind(2))
        data = data.to_tuple("__key__").batched(kind(5)).repeat(kind(2))
        data.set_epoch(kind(1))
        return [list(batch) for batch in data], json.loads(json.dumps(data.state_dict()))

    assert play(make) == play(int)


@needs_torch
@pytest.mark.parametrize("make", INTEGERS)
def test_shuffled_data_sets_take_integers_of_every_type(make):
    class Numbers(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(50))

    def play(kind):
        data = sl.ShuffleDataset(Numbers(), kind(20), seed=kind(7))
        data.set_epoch(kind(2))
        return list(data)

    assert play(make) == play(int)


@needs_torch
@pytest.mark.parametrize("epoch", [-1, 1.0, "1", None])
def test_data_sets_refuse_epochs_that_are_none(epoch, tmp_path):
    with sl.ShardWriter(str(tmp_path)) as writer:
        writer.write({"__key__": "0", "txt": "0"})
    with pytest.raises(sl.ConfigError, match="epoch must be"):
        sl.RemoteDataset(str(tmp_path)).set_epoch(epoch)


def test_settings_of_videos_are_plain_numbers():
    selection = Selection.from_options(np.int64(5), False, np.int32(2), None)
    assert json.loads(json.dumps([selection.max_frames, selection.stride])) == [5, 2]


DOORS = {
    "sl.TextStreams": (sl.TextStreams, {"addresses": "a.txt"}),
    "sl.VideoStreams": (sl.VideoStreams, {"paths": "a.mp4"}),
    "sl.ImageStreams": (sl.ImageStreams, {"paths": "folder"}),
    "sl.AudioStreams": (sl.AudioStreams, {"files": "a.wav"}),
    "sl.IterStreams": (sl.IterStreams, {"items": [1], "make": range, "fields": sl.Field()}),
    "sl.ShardWriter": (sl.ShardWriter, {"address": "memory://arguments"}),
}
WRONG = [
    *((door, "storage_options", value) for door in list(DOORS)[:4] for value in (3, [1], {1: 2}, "ab")),
    *(("sl.VideoStreams", name, 10**30) for name in ("max_frames", "stride", "fps")),
    *((door, "transform", 3) for door in ("sl.VideoStreams", "sl.ImageStreams")),
    *(("sl.AudioStreams", name, 2**63) for name in ("block", "hop")),
    ("sl.AudioStreams", "dtype", np.arange(2)),
    ("sl.TextStreams", "addresses", np.array(3)),
    ("sl.TextStreams", "encoding", 3),
    ("sl.ImageStreams", "time_unit", [1]),
    *(("sl.IterStreams", name, np.array(3)) for name in ("items", "lengths")),
    *(("sl.ShardWriter", name, value) for name in ("maxsize", "maxcount") for value in (float("nan"), [3], None, "a")),
    ("sl.ShardWriter", "compression", ["gzip"]),
    ("sl.ShardWriter", "address", 3),
]


@pytest.mark.parametrize(("door", "name", "value"), WRONG, ids=show)
def test_other_doors_refuse_what_cannot_be_used(door, name, value):
    make, arguments = DOORS[door]
    with pytest.raises(sl.ConfigError):
        make(**(arguments | {name: value}))


@pytest.mark.parametrize("make", [*INTEGERS, np.array])
def test_options_of_videos_take_integers_of_every_type(make):
    size, max_frames, stride = (make(4), make(6)), make(5), make(2)
    dataset = sl.VideoStreams("a.mp4", size=size, max_frames=max_frames, stride=stride)
    plain = sl.VideoStreams("a.mp4", size=(4, 6), max_frames=5, stride=2)
    assert json.dumps(dict(dataset.settings)) == json.dumps(dict(plain.settings))
