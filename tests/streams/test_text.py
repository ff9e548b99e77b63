from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import numpy as np
import pytest

import streamloader as sl
from streamloader.streams import text as text_module
from streamloader.streams import text_files
from streamloader.streams.base import stream_rng
from streamloader.testing import describe_streams, read_stream

NAMES = [*"abcdefghijklmnopqrstuvwxyz", "A"]
TEXTS = ["".join(f"{name}_{number};" for number in range(9)) for name in NAMES]


def rows(batch):
    data, valid = batch.numpy()["data"], batch.numpy()["valid"]
    return [bytes(row[kept]).decode() for row, kept in zip(data, valid, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_lanes_carry_on_where_they_stopped(workers):
    dataset = sl.TextStreams.from_texts(TEXTS)
    with sl.MultiStreamer(dataset, batch_size=8, window=12, num_workers=workers, shuffle=False) as loader:
        batches = [(rows(batch), batch.numpy()["reset"].copy()) for batch in loader]
        assert len(loader) == len(batches) == 12
    assert batches[0][0] == [f"{name}_0;{name}_1;{name}_2;" for name in "abcdefgh"]
    assert batches[1][0] == [f"{name}_3;{name}_4;{name}_5;" for name in "abcdefgh"]
    assert batches[2][0] == [f"{name}_6;{name}_7;{name}_8;" for name in "abcdefgh"]
    assert batches[3][0] == [f"{name}_0;{name}_1;{name}_2;" for name in "ijklmnop"]
    for lane in range(8):
        assert "".join(texts[lane] for texts, _ in batches) == "".join(TEXTS[lane::8])
    for number, (texts, reset) in enumerate(batches):
        first = np.zeros((8, 12), bool)
        first[:, 0] = [number % 3 == 0 and bool(row) for row in texts]
        assert np.array_equal(reset, first)


def test_the_example_prints_readable_rows():
    example = Path(__file__).parents[2] / "examples" / "text.py"
    shown = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stderr == ""
    assert ">a_0;a_1;a_2; >b_0;b_1;b_2; >c_0;c_1;c_2;" in shown.stdout
    assert " a_3;a_4;a_5;  b_3;b_4;b_5;  c_3;c_4;c_5;" in shown.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_files_and_texts_make_the_same_batches(tmp_path, workers):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:02}.txt").write_text(text)
    played = []
    for dataset in (sl.TextStreams(tmp_path), sl.TextStreams.from_texts(TEXTS)):
        with sl.MultiStreamer(dataset, batch_size=3, window=7, num_workers=workers, seed=5) as loader:
            played.append([{name: array.copy() for name, array in batch.numpy().items()} for batch in loader])
    assert len(played[0]) == len(played[1])
    for one, other in zip(*played, strict=True):
        assert set(one) == set(other)
        for name, array in one.items():
            assert np.array_equal(array, other[name]), name


# --- which texts -----------------------------------------------------------------------------------------------------


def test_keys_are_the_paths_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "a.csv"):
        Path(name).write_text(name)
    infos = describe_streams(sl.TextStreams("."))
    assert [(info.key, info.length) for info in infos] == [("./a.txt", 5), ("./b.txt", 5)]
    infos = describe_streams(sl.TextStreams(["b.txt", "a.csv", "b.txt"]))
    assert [info.key for info in infos] == ["b.txt", "a.csv", "b.txt#2"]
    assert [info.key for info in describe_streams(sl.TextStreams(".", pattern="*.csv"))] == ["./a.csv"]


def test_nothing_is_looked_at_before_the_index(tmp_path):
    dataset = sl.TextStreams(tmp_path / "*.txt")
    (tmp_path / "late.txt").write_text("x")
    assert [info.length for info in describe_streams(dataset)] == [1]


def test_a_text_taken_for_a_path_gets_a_hint():
    with pytest.raises(sl.StreamNotFound, match="from_texts"):
        describe_streams(sl.TextStreams("Call me Ishmael."))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(sl.UnreadableStream, match="cannot be read"):
        describe_streams(sl.TextStreams(path))


@pytest.mark.parametrize("bad", ["one text", b"one text", [1], ["a", None]])
def test_what_is_no_list_of_texts_is_refused(bad):
    with pytest.raises(sl.ConfigError):
        sl.TextStreams.from_texts(bad)


def test_texts_that_cannot_be_written_are_refused():
    with pytest.raises(sl.ConfigError, match="text 1 cannot be encoded as UTF-8") as caught:
        sl.TextStreams.from_texts(["fine", "\ud800"])
    assert caught.value.stream == "1"


def test_bytes_have_no_tokens():
    assert bytes(play_first(sl.TextStreams.from_texts([b"\xff\x00"]))) == b"\xff\x00"
    with pytest.raises(sl.ConfigError, match="text 0 is bytes, not str"):
        sl.TextStreams.from_texts([b"\xff\x00"], list)


def test_arguments_are_checked_at_once(tmp_path):
    for encoding in ("utf-9", "hex"):
        with pytest.raises(sl.ConfigError, match="encoding"):
            sl.TextStreams(tmp_path, encoding=encoding)
    with pytest.raises(sl.ConfigError, match="tokenizer"):
        sl.TextStreams(tmp_path, "gpt2")


# --- bytes of files --------------------------------------------------------------------------------------------------


def play_first(dataset, **how):
    return read_stream(dataset, describe_streams(dataset)[0], **how)["data"]


def test_a_huge_file_costs_no_memory_to_open_and_seek(tmp_path):
    path, size = tmp_path / "huge.txt", 1 << 36  # far more than there is memory: nearly all of it is a hole
    with path.open("wb") as file:
        file.seek(size - 3)
        file.write(b"end")
    assert bytes(play_first(sl.TextStreams(path), seek=size - 5)) == b"\0\0end"


def test_small_windows_rarely_call_the_thread(tmp_path, monkeypatch):
    calls = []

    async def call(function, *args):
        calls.append(function.__name__)
        return function(*args)

    for module in (text_module, text_files):
        monkeypatch.setattr(module, "in_lane_thread", call)
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(256)) * 512)  # 128 KiB: two blocks of 64 KiB
    assert bytes(play_first(sl.TextStreams(path), block=16)) == bytes(range(256)) * 512
    assert calls == ["_index", "open_file", "_fill_buffer", "_fill_buffer", "_close"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 4),
        lambda path: path.write_text("0123456789+"),
        lambda path: os.utime(path, ns=(1, 1)),
    ],
    ids=["shorter", "longer", "rewritten"],
)
@pytest.mark.parametrize("tokenizer", [None, lambda text: [int(digit) for digit in text]], ids=["bytes", "tokens"])
def test_a_file_that_changed_after_the_index_is_refused(tmp_path, change, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("0123456789")
    dataset = sl.TextStreams(path, tokenizer)
    (info,) = describe_streams(dataset)
    change(path)
    with pytest.raises(sl.CorruptStream, match="changed since it was indexed") as caught:
        read_stream(dataset, info)
    error = caught.value
    assert (error.stream, error.address, error.offset) == (str(path), str(path), 0)


def test_a_file_that_shrinks_while_it_is_read_is_detected(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_READ_AHEAD_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_text("0123456789")
    dataset = sl.TextStreams(path)
    (info,) = describe_streams(dataset)

    async def run():
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        out = np.zeros(4, np.uint8)
        try:
            assert await stream.read_into({"data": out}) == 4
            os.truncate(path, 6)
            await stream.read_into({"data": out})
        finally:
            await stream.aclose()

    with pytest.raises(sl.CorruptStream) as caught:
        anyio.run(run)
    assert caught.value.offset == 6
    assert "detected at byte 6" in str(caught.value)


@pytest.mark.parametrize("tokenizer", [None, list])
def test_a_file_that_vanished_is_not_found(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("")
    dataset = sl.TextStreams(path, tokenizer)
    (info,) = describe_streams(dataset)
    path.unlink()
    with pytest.raises(sl.StreamNotFound, match="was deleted") as caught:
        read_stream(dataset, info)
    assert caught.value.address == str(path)


def test_a_closed_stream_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("abc")

    async def read_closed(dataset):
        infos = await dataset.index()
        stream = await dataset.open(infos[0], stream_rng(0, 0, 0))
        await stream.aclose()
        await stream.read_into({"data": np.zeros(2, np.uint8)})

    for dataset in (sl.TextStreams(tmp_path), sl.TextStreams.from_texts(["abc"])):
        with pytest.raises(sl.ClosedError):
            anyio.run(read_closed, dataset)


@pytest.mark.parametrize("tokenizer", [None, lambda text: [1, 2, 3]])
def test_seeking_before_the_start_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(sl.ConfigError, match="-1"):
        play_first(sl.TextStreams(tmp_path, tokenizer), seek=-1)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_are_int64_and_padding_is_fill():
    def tokenizer(text):
        return np.frombuffer(text.encode(), np.uint8)

    dataset = sl.TextStreams.from_texts(["abc", "d"], tokenizer, fill=-100)
    with sl.MultiStreamer(dataset, batch_size=2, window=4, shuffle=False) as loader:
        (batch,) = [batch.numpy()["data"].copy() for batch in loader]
    assert batch.dtype == np.int64
    assert batch.tolist() == [[97, 98, 99, -100], [100, -100, -100, -100]]


def test_encoding_and_line_ends_are_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ä\r\nb".encode("utf-16"))
    dataset = sl.TextStreams(path, lambda text: [ord(c) for c in text], encoding="utf-16")
    assert play_first(dataset).tolist() == [ord("ä"), 13, 10, ord("b")]


def test_a_file_in_another_encoding_names_the_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("größer".encode("latin-1"))
    with pytest.raises(sl.UnreadableStream, match=r"not utf-8: .* at byte 2; pass its encoding=") as caught:
        describe_streams(sl.TextStreams(path, list))
    assert (caught.value.offset, caught.value.address) == (2, str(path))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda text: text.split(), "must return a sequence of ints, but returned list"),
        (lambda text: [1.5], "must return a sequence of ints.*float64"),
        (lambda text: [[1], [2]], r"shape \(2, 1\)"),
        (lambda text: [True], "dtype bool"),
        (lambda text: None, "returned NoneType"),
        (lambda text: [1 << 63], "must return a sequence of ints.*uint64"),
        (lambda text: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_results_that_are_not_tokens_are_refused(tokenizer, message):
    with pytest.raises(sl.StreamFailed, match=message) as caught:
        describe_streams(sl.TextStreams.from_texts(["some text"], tokenizer))
    assert caught.value.stream == "0"


def test_an_encoding_object_gets_a_hint():
    class Encoding:
        ids = (1, 2)

    with pytest.raises(sl.StreamFailed, match=r"tokenizer\.encode\(text\)\.ids"):
        describe_streams(sl.TextStreams.from_texts(["some text"], lambda text: Encoding()))


def test_a_tokenizer_that_changes_its_mind_is_noticed():
    counts = iter((3, 5))
    dataset = sl.TextStreams.from_texts(["some text"], lambda text: [0] * next(counts))
    with pytest.raises(sl.StreamFailed, match="returned 3 tokens for 0 when the loader was built, and 5 now"):
        play_first(dataset)


@pytest.mark.parametrize("tokenizer", [None, lambda text: list(text.encode())])
def test_a_file_that_becomes_a_pipe_or_a_device_is_no_text(tmp_path, tokenizer):
    paths = [tmp_path / "pipe.txt", tmp_path / "device.txt"]
    for path in paths:
        path.write_bytes(b"a text")
    dataset = sl.TextStreams([str(path) for path in paths], tokenizer)
    infos = describe_streams(dataset)
    for path in paths:
        path.unlink()
    os.mkfifo(paths[0])
    paths[1].symlink_to("/dev/zero")
    for info in infos:
        with pytest.raises(sl.CorruptStream, match="changed since it was indexed"):
            read_stream(dataset, info)


def test_no_more_is_read_than_the_size_of_a_file():
    with open("/dev/zero", "rb", buffering=0) as endless:
        assert text_files._read_up_to(endless, 100_000) == bytes(100_000)
