from __future__ import annotations

import collections
import hashlib
import os
import pickle
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamloader as sl
from streamloader.stream_table import BytesColumn, StreamTable, StringColumn, digest_streams, pack_column

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.lists(st.integers(), max_size=2)
    | st.tuples(st.text())
)
LENGTHS = st.none() | st.integers(0, (1 << 63) - 1)


@st.composite
def info_lists(draw):
    keys = draw(st.lists(st.text(st.characters(codec=None), min_size=1), unique=True, max_size=12))
    alike = draw(st.booleans())
    names = st.lists(st.sampled_from("abc"), unique=True)
    common = draw(names)
    kinds = {name: draw(st.sampled_from([VALUES, st.integers(), st.text(), st.just(None)])) for name in "abc"}
    return [
        sl.StreamInfo(key, draw(LENGTHS), {name: draw(kinds[name]) for name in (common if alike else draw(names))})
        for key in keys
    ]


def sent(value):
    """Return the value that another process receives, and the number of its bytes that are not in arrays."""
    buffers = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(pickled, buffers=buffers), len(pickled)


@given(info_lists())
def test_a_table_is_the_list_that_it_was_made_of(infos):
    table = StreamTable.from_infos(infos)
    for it in (table, sent(table)[0], pickle.loads(pickle.dumps(table))):
        assert len(it) == len(infos)
        assert list(it) == infos
        assert [it[number] for number in range(-len(infos), len(infos))] == infos * 2
        assert it[1:7:2] == infos[1:7:2]
        assert it.lengths.tolist() == [-1 if info.length is None else info.length for info in infos]
        assert it.lengths.dtype == np.int64
        assert it == table
        assert digest_streams(it) == it.digest() == digest_streams(infos)
    assert not table.lengths.flags.writeable
    assert not sent(table)[0].lengths.flags.writeable
    for info, original in zip(sent(table)[0], infos, strict=True):
        assert list(info.extra) == list(original.extra)
        assert list(map(type, info.extra.values())) == list(map(type, original.extra.values()))
        assert type(info.length) in (int, type(None))


def test_an_index_beyond_the_end():
    table = StreamTable(3)
    for number in (3, -4, 1 << 70):
        with pytest.raises(IndexError):
            table[number]
    assert table[np.int64(2)].key == "2"
    with pytest.raises(TypeError):
        table["0"]
    assert repr(table) == (
        "StreamTable of 3: [StreamInfo(key='0', length=None, extra={}), StreamInfo(key='1', length=None, extra={}), "
        "StreamInfo(key='2', length=None, extra={})]"
    )
    assert repr(StreamTable(10**7)).endswith("..., ...]") is False
    assert repr(StreamTable(10**7)).endswith(", ...]")


def test_a_table_of_a_table_is_that_table():
    table = StreamTable(["a", "b"], [1, None], {"n": [4, 5]})
    assert StreamTable.from_infos(table) is table
    assert StreamTable.from_infos(list(table)) == table
    assert table != StreamTable(["a", "b"], [1, None], {"n": [4, 6]})
    assert table != StreamTable(["a", "b"], [1, 0], {"n": [4, 5]})
    assert table != StreamTable(["a", "c"], [1, None], {"n": [4, 5]})
    assert table != StreamTable(["a"], [1], {"n": [4]})
    assert table != list(table)
    assert table.with_lengths([7, 8]) == StreamTable(["a", "b"], [7, 8], {"n": [4, 5]})


@dataclass(frozen=True, slots=True)
class Richer(sl.StreamInfo):
    colour: str = "red"


def test_infos_of_a_class_of_their_own_keep_it():
    infos = [Richer("a", 3, {"x": 1}, "blue"), sl.StreamInfo("b")]
    table = StreamTable.from_infos(infos)
    for it in (table, sent(table)[0]):
        assert list(it) == infos
        assert it[0].colour == "blue"
        assert it.lengths.tolist() == [3, -1]


def test_extras_that_are_no_plain_values_stay_what_they_are():
    lazy = range(5, 8)
    mapping = collections.OrderedDict(x=1)
    infos = [sl.StreamInfo(key, 1, {"array": np.arange(3), "lazy": lazy}) for key in "ab"]
    (first, _), _ = sent(StreamTable.from_infos(infos))
    assert first.extra["array"].tolist() == [0, 1, 2]
    assert first.extra["lazy"] == lazy
    assert StreamTable.from_infos(infos)[0].extra["array"] is infos[0].extra["array"]  # here nothing is copied
    assert type(sent(StreamTable.from_infos([sl.StreamInfo("a", 1, mapping)]))[0][0].extra) is collections.OrderedDict


def test_what_streams_have_in_common_is_sent_once():
    common = {"words": ["word"] * 1000}
    table = StreamTable([str(n) for n in range(500)], None, {"common": [common] * 500})
    buffers = []
    pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) < 20_000
    assert sent(table)[0][499].extra["common"] == common


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamTable(["a", "b"], [1]), "1 lengths for 2 streams"),
        (lambda: StreamTable(2, [1, -4]), "stream '1' declares a negative length -4"),
        (lambda: StreamTable(2, np.array([-2, 3])), "stream '0' declares a negative length -2"),
        (lambda: StreamTable(["a"], [1.5]), "stream 'a' declares the length 1.5: it must be a number of steps"),
        (lambda: StreamTable(["a"], np.array([1.0])), "stream 'a' declares the length 1.0"),
        (lambda: StreamTable(["a"], [1 << 63]), "stream 'a' declares the length 9223372036854775808"),
        (lambda: StreamTable(["a", 7]), "the key of stream 1 must be a string, got int 7"),
        (
            lambda: StreamTable.from_infos([sl.StreamInfo(None)]),
            "the key of stream 0 must be a string, got NoneType None",
        ),
        (lambda: StreamTable(2, None, {"x": [1]}), "column 'x' has 1 entries for 2 streams"),
        (lambda: StreamTable(-1), "must be 0 or more, got -1"),
    ],
)
def test_what_makes_no_table(make, message):
    with pytest.raises(sl.ConfigError, match=message):
        make()


def test_lengths_of_an_array_are_not_copied():
    lengths = np.array([3, -1, 0])
    table = StreamTable(3, lengths)
    assert np.shares_memory(table.lengths, lengths)
    assert lengths.flags.writeable
    assert [info.length for info in table] == [3, None, 0]
    assert StreamTable(3, lengths.astype(np.int8)) == table
    assert StreamTable(2, np.array([1, 2], np.uint64)).lengths.tolist() == [1, 2]


# --- the digest -------------------------------------------------------------------------------------------------------


def test_the_digest_is_the_documented_one():
    # Saved states contain it.
    infos = [sl.StreamInfo("clips/ä.mp4", 40), sl.StreamInfo("b")]
    numbers = np.array([2, 40, -1, 12, 1], "<i8").tobytes()
    expected = hashlib.sha256(b"streams-1\0" + numbers + "clips/ä.mp4b".encode()).hexdigest()
    assert digest_streams(infos) == expected
    assert digest_streams([]) == hashlib.sha256(b"streams-1\0" + bytes(8)).hexdigest()


@given(info_lists(), st.data())
def test_any_other_key_length_or_order_gives_another_digest(infos, data):
    digest = digest_streams(infos)
    assert digest_streams([*infos, sl.StreamInfo("")]) != digest
    if infos:
        number = data.draw(st.integers(0, len(infos) - 1))
        info = infos[number]
        longer = 0 if info.length is None else max(0, info.length - 1) if info.length else 1
        for other in (sl.StreamInfo(info.key + "x", info.length), sl.StreamInfo(info.key, longer)):
            assert digest_streams([*infos[:number], other, *infos[number + 1 :]]) != digest
        assert digest_streams([*infos[:number], sl.StreamInfo(info.key, info.length), *infos[number + 1 :]]) == digest
        assert len(infos) == 1 or digest_streams(infos[::-1]) != digest


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 100, 65_536, 70_001])
def test_numbered_keys_have_the_digest_of_their_texts(count):
    lengths = np.arange(count) % 7 - 1
    numbered, written = StreamTable(count, lengths), StreamTable([str(n) for n in range(count)], lengths)
    assert numbered.digest() == written.digest()
    assert numbered == written


def test_keys_do_not_run_into_each_other():
    assert digest_streams([sl.StreamInfo("ab"), sl.StreamInfo("c")]) != digest_streams(
        [sl.StreamInfo("a"), sl.StreamInfo("bc")]
    )


# --- columns and size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2, -3],
        [1 << 40, 5],
        [1 << 80, 5],
        [True, False],
        [1, True],
        [1.5, -0.0],
        ["a", "", "ä"],
        [os.fsdecode(b"\xff.mp4"), "b"],
        [b"x", b""],
        [None, 3],
        [[1, [2]], {"a": (1,)}],
    ],
)
def test_columns_give_back_what_was_put_in(values):
    for column in (pack_column(values), sent(pack_column(values))[0]):
        assert list(column) == values
        assert list(map(type, column)) == list(map(type, values))
        assert column == pack_column(values)
        assert not values or column != pack_column([*values[1:], "another"])


@settings(max_examples=30)
@given(info_lists())
def test_integers_of_a_column(infos):
    expected = [
        min(value, (1 << 63) - 1) if isinstance(value := info.extra.get("a"), int) and value >= 0 else -1
        for info in infos
    ]
    assert StreamTable.from_infos(infos).extra_integers("a").tolist() == expected


def test_other_sequences_are_columns_as_they_are():
    lazy = range(0, 100, 7)
    assert pack_column(lazy) is lazy
    assert list(pack_column(np.array([2, 3], np.uint8))) == [2, 3]
    assert type(pack_column(np.array([2, 3], np.uint8))[0]) is int


def test_pieces_of_bytes_are_views():
    blobs = BytesColumn.from_pieces([b"ab", b"", b"cde"])
    assert [piece.tobytes() for piece in blobs] == [b"ab", b"", b"cde"]
    assert blobs[2].dtype == np.uint8
    assert np.shares_memory(blobs[0], blobs[0])
    assert blobs.sizes.tolist() == [2, 0, 3]
    assert StringColumn.from_strings(["ä", "b"]).sizes.tolist() == [2, 1]
    with pytest.raises(IndexError):
        blobs[3]


def traced(make):
    tracemalloc.start()
    try:
        made = make()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return made, kept, peak


def test_a_million_streams_cost_some_bytes_each():
    lengths = np.arange(1_000_000) % 1000
    table, kept, peak = traced(lambda: StreamTable(len(lengths), lengths, {"item": range(len(lengths))}))
    assert (kept < 10_000, peak < 2_000_000) == (True, True)
    digest, _, peak = traced(table.digest)
    assert peak < 20_000_000
    assert len(digest) == 64
    assert sent(table)[1] < 1000


def test_texts_of_a_million_bytes_cost_little_more():
    words = [f"{n:08}" for n in range(100_000)]
    table, kept, _ = traced(lambda: StreamTable(words, None, {"path": words, "size": list(range(len(words)))}))
    assert kept < 100_000 * (2 * (8 + 8) + 4 + 8) * 1.2  # two texts with their ends, a number and the length
    assert sent(table)[1] < 1000
    assert table[99_999] == sl.StreamInfo("00099999", None, {"path": "00099999", "size": 99_999})
