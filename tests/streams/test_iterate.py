from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import streamloader as sl
from streamloader.streams.base import stream_rng
from streamloader.streams.lane_thread import LaneThread, current_lane_thread
from streamloader.streams.step_writer import StepMismatch, StepWriter
from streamloader.testing import describe_streams, read_stream
from streamloader.testing.streams.playing import read_steps

BYTE = sl.Field((), "uint8")


def only(make, fields=BYTE, item="x", **how):
    """Play the stream of a single item."""
    dataset = sl.IterStreams([item], make, fields=fields)
    return read_stream(dataset, describe_streams(dataset)[0], **how)


def in_a_lane(function):
    """Run an async function as the engine does: with a thread for its blocking calls."""

    async def run():
        thread = LaneThread("the-lane")
        current_lane_thread.set(thread)
        try:
            with anyio.fail_after(20):
                return await function()
        finally:
            assert thread.stop(20)

    return anyio.run(run)


# --- through a loader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_plays_what_make_yields(workers):
    def walk(item, rng):
        place = 0
        for _ in range(item):
            place = place + int(rng.integers(3))
            yield {"place": place, "two": [item, -item]}

    fields = {"place": sl.Field((), "int64", fill=-1), "two": sl.Field((2,), "int16")}
    dataset = sl.IterStreams([5, 3, 4], walk, fields=fields, lengths=lambda item: item)
    with sl.MultiStreamer(dataset, batch_size=2, window=4, num_workers=workers, seed=3) as loader:
        steps = {}
        for batch in loader:
            arrays = batch.numpy()
            for lane, time in np.argwhere(arrays["valid"]):
                stream = int(arrays["stream"][lane, time])
                row = (int(arrays["place"][lane, time]), arrays["two"][lane, time].tolist())
                steps.setdefault(stream, []).append(row)
        assert {info.key for info in loader.streams} == {"0", "1", "2"}
    for ordinal, length in enumerate([5, 3, 4]):
        rng = stream_rng(3, 0, ordinal)
        places = np.cumsum([int(rng.integers(3)) for _ in range(length)]).tolist()
        assert steps[ordinal] == [(place, [length, -length]) for place in places]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_names_the_stream_and_step_that_failed(workers):
    def fail(item):
        yield from (1, 2)
        raise OSError(f"no more of {item}")

    dataset = sl.IterStreams(["abc"], fail, fields=BYTE, lengths=[5])
    with (
        sl.MultiStreamer(dataset, batch_size=1, window=4, num_workers=workers) as loader,
        pytest.raises(sl.StreamFailed, match="OSError: no more of abc") as caught,
    ):
        list(loader)
    assert (caught.value.stream, caught.value.offset) == ("abc", 2)
    assert caught.value.details["cause"] == "OSError"


# --- items, keys and lengths ------------------------------------------------------------------------------------------


def test_keys_are_names_or_numbers():
    def keys(items):
        return [info.key for info in describe_streams(sl.IterStreams(items, iter, fields=BYTE))]

    assert keys(["a.npy", Path("deep/b.npy"), "a.npy", "", 7]) == ["a.npy", "deep/b.npy", "a.npy#2", "3", "4"]
    assert keys(range(3)) == ["0", "1", "2"]
    assert keys(np.zeros((2, 5))) == ["0", "1"]
    assert keys(name for name in ("x", "y")) == ["x", "y"]
    assert keys({"one": 1, "two": 2}) == ["one", "two"]


def test_a_lazy_sequence_is_read_only_for_streams_that_are_opened():
    indices = []

    class Lazy(Sequence):
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            indices.append(index)
            return [index % 256] * 2

    dataset = sl.IterStreams(Lazy(), list, fields=BYTE)
    infos = describe_streams(dataset)
    assert indices == []
    assert read_stream(dataset, infos[300])["data"].tolist() == [44, 44]
    assert indices == [300]


def test_lengths_in_each_form():
    def lengths(given):
        return [info.length for info in describe_streams(sl.IterStreams(["ab", "c"], list, fields=BYTE, lengths=given))]

    assert lengths(None) == [None, None]
    assert lengths([2, None]) == [2, None]
    assert lengths(len) == [2, 1]
    assert lengths(np.array([4, 5])) == [4, 5]
    assert lengths(lambda item: None) == [None, None]


@pytest.mark.parametrize("bad", [[1, -1], [1, 2.5], [1, "2"], lambda item: {}[item]])
def test_impossible_lengths_name_the_stream(bad):
    with pytest.raises(sl.ConfigError, match="length") as caught:
        describe_streams(sl.IterStreams(["a", "b"], list, fields=BYTE, lengths=bad))
    assert caught.value.stream in ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 8}, r"did you mean range"),
        ({"items": "path"}, "items"),
        ({"make": [1, 2]}, "make must be a function"),
        ({"make": lambda *, item: []}, "make is called as"),
        ({"make": lambda one, two, three: []}, "make is called as"),
        ({"make": lambda item, *, key: []}, "make is called as"),
        ({"lengths": [1]}, "lengths has 1 entries for 2 items"),
        ({"fields": {}}, "at least one field"),
        ({"fields": {"reset": BYTE}}, "reset"),
    ],
)
def test_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(sl.ConfigError, match=message):
        sl.IterStreams(**{"items": ["a", "b"], "make": iter, "fields": BYTE} | arguments)


def rng_byte(rng):
    return [int(rng.integers(256))]


@pytest.mark.parametrize(
    ("make", "gets_rng"),
    [
        (lambda item: [item], False),
        (lambda item, rng: rng_byte(rng), True),
        (lambda item, source: rng_byte(source), True),
        (lambda item, rng=None: rng_byte(rng), True),
        (lambda item, *, rng: rng_byte(rng), True),
        (lambda item, start=9: [start], False),
        (lambda *items: [len(items)], False),
        (lambda item, **options: [len(options)], False),
        (range, False),
    ],
)
def test_make_receives_its_rng_if_it_takes_one(make, gets_rng):
    data = only(make, item=3)["data"].tolist()
    assert (data == rng_byte(stream_rng(0, 0, 0))) == gets_rng


# --- the forms that make may return -----------------------------------------------------------------------------------


class Countdown:
    """An iterator that is not a generator."""

    def __init__(self, start):
        self.left = start

    def __iter__(self):
        return self

    def __next__(self):
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return self.left


class AsyncCountdown(Countdown):
    __iter__ = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        await anyio.lowlevel.checkpoint()
        if self.left == 0:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


async def async_counting():
    for step in (3, 2, 1, 0):
        await anyio.lowlevel.checkpoint()
        yield step


async def coroutine(result):
    await anyio.lowlevel.checkpoint()
    return result


FORMS = {
    "generator": lambda item: (step for step in (3, 2, 1, 0)),
    "iterator": lambda item: Countdown(4),
    "list": lambda item: [3, 2, 1, 0],
    "tuple": lambda item: (3, 2, 1, 0),
    "range": lambda item: range(3, -1, -1),
    "bytes": lambda item: b"\x03\x02\x01\x00",
    "bytearray": lambda item: bytearray(b"\x03\x02\x01\x00"),
    "file": lambda item: io.BytesIO(b"\x03\x02\x01\x00").getbuffer(),
    "array": lambda item: np.array([3, 2, 1, 0]),
    "dict of arrays": lambda item: {"data": np.array([3, 2, 1, 0], np.uint16)},
    "dict of lists": lambda item: {"data": [3, 2, 1, 0]},
    "dicts": lambda item: [{"data": 3}, {"data": 2}, {"data": 1}, {"data": 0}],
    "mixed": lambda item: iter([{"data": 3}, 2, np.uint64(1), np.array(0)]),
    "async generator": lambda item: async_counting(),
    "async iterator": lambda item: AsyncCountdown(4),
    "coroutine of a list": lambda item: coroutine([3, 2, 1, 0]),
    "coroutine of a generator": lambda item: coroutine(step for step in (3, 2, 1, 0)),
    "coroutine of an async generator": lambda item: coroutine(async_counting()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seek", [None, 0, 2, 4, 9])
def test_every_form_yields_the_same_steps(form, seek):
    for block in (1, 3, 9):
        assert only(FORMS[form], block=block, seek=seek)["data"].tolist() == [3, 2, 1, 0][seek or 0 :]


def test_a_memory_map_is_read_from_the_sought_step(tmp_path):
    path = tmp_path / "a.npy"
    frames = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    np.save(path, frames)
    played = only(lambda item: np.load(item, mmap_mode="r"), sl.Field((2, 3), "float32"), item=str(path), seek=7)
    assert np.array_equal(played["data"], frames[7:])


def test_a_tensor_is_played_by_blocks():
    torch = pytest.importorskip("torch")
    played = only(lambda item: torch.arange(6).reshape(3, 2), sl.Field((2,), "int64"), block=2)
    assert played["data"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_no_steps_at_all():
    for make in (lambda item: [], lambda item: iter(()), lambda item: np.zeros(0, np.uint8), lambda item: b""):
        assert only(make)["data"].tolist() == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda item: None, "did it forget to return, or to yield"),
        (lambda item: 5, "an iterable of the steps of stream 'x', got int 5"),
        (lambda item: np.float32(5), "must return an iterable"),
        (lambda item: "abc", "returned text.*encode it"),
        (lambda item: coroutine(None), "did it forget to return"),
    ],
)
def test_a_result_that_cannot_be_iterated_is_refused(make, message):
    with pytest.raises(sl.ConfigError, match=message) as caught:
        only(make)
    assert caught.value.stream == "x"


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(sl.StreamFailed, match=r"differ in length: {'a': 2, 'b': 3}"):
        only(lambda item: {"a": np.zeros(2), "b": np.zeros(3)}, {"a": sl.Field((), "f8"), "b": sl.Field((), "f8")})


# --- steps that do not match ------------------------------------------------------------------------------------------

PAIR = {"a": BYTE, "b": sl.Field((2,), "float32")}


@pytest.mark.parametrize(
    ("fields", "bad", "message"),
    [
        (BYTE, 256, "the value 256, which does not fit"),
        (BYTE, -1, "the value -1, which does not fit"),
        (BYTE, 1 << 70, "expected a number of dtype uint8, got int"),
        (BYTE, 1.0, "got a number of dtype float64: that conversion loses values"),
        (BYTE, None, "got NoneType None"),
        (BYTE, "a", "got str 'a'"),
        (BYTE, b"a", "got bytes b'a'"),
        (BYTE, [1, 2], r"got an array of shape \(2,\) and dtype int64"),
        (BYTE, {"dat": 1}, "'data' missing and 'dat' not declared"),
        (sl.Field((), "bool"), 1, "that conversion loses values"),
        (sl.Field((), "float32"), 1e300, "too large"),
        (sl.Field((), "float16"), 70000, "too large"),
        (sl.Field((), "float32"), 1j, "that conversion loses values"),
        (
            sl.Field((2,), "float32"),
            [1.0],
            r"expected an array of shape \(2,\) and dtype float32, got an array of shape",
        ),
        (sl.Field((2,), "float32"), [[1.0, 2.0], [3.0]], "which cannot be converted to an array"),
        (PAIR, {"a": 1}, "fields 'a', 'b', got one with 'b' missing"),
        (PAIR, {"a": 1, "b": [1, 2], "c": 3}, "'c' not declared in fields="),
        (PAIR, {"a": 1.5, "b": [1, 2]}, "field 'a'"),
        (PAIR, [1, 2], "expected a dict with the fields 'a', 'b', got list"),
    ],
)
def test_a_step_that_does_not_fit_is_named(fields, bad, message):
    good = {"a": 1, "b": [1, 2]} if fields is PAIR else np.zeros(fields.shape, fields.dtype)
    steps = [good, good, good, bad, good]

    async def read(form, block):
        dataset = sl.IterStreams(["x"], lambda item: form(steps), fields=fields)
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        try:
            first = await read_steps(stream, dataset, block, 3)
            for _ in range(2):  # the second read raises it again
                with pytest.raises(sl.StreamFailed, match=message) as caught:
                    await read_steps(stream, dataset, block)
                assert (caught.value.stream, caught.value.offset) == ("x", 3)
                assert "stream 'x', step 3: " in str(caught.value)
            await stream.seek(1)
            again = await read_steps(stream, dataset, block, 2)
        finally:
            await stream.aclose()
        return [len(next(iter(arrays.values()))) for arrays in (first, again)]

    for form in (list, iter):
        for block in (1, 2, 7):
            assert anyio.run(read, form, block) == [3, 2]


def test_a_value_in_an_array_that_does_not_fit_is_named():
    for block in (1, 4, 100):
        with pytest.raises(sl.StreamFailed, match="the value 256") as caught:
            only(lambda item: np.arange(300), block=block)
        assert caught.value.offset == 256


@pytest.mark.parametrize("block", [1, 2, 7])
def test_steps_before_an_error_are_delivered(block):
    def fail(item):
        yield from (5, 6, 7)
        raise KeyError("gone")

    dataset = sl.IterStreams(["x"], fail, fields=BYTE)
    (info,) = describe_streams(dataset)
    assert read_stream(dataset, info, block, steps=3)["data"].tolist() == [5, 6, 7]
    with pytest.raises(sl.StreamFailed, match="step 3: KeyError: 'gone'") as caught:
        read_stream(dataset, info, block)
    assert (caught.value.offset, type(caught.value.__cause__)) == (3, KeyError)
    with pytest.raises(sl.StreamFailed, match="step 3"):
        read_stream(dataset, info, block, seek=5)


def test_errors_of_the_package_pass_unchanged():
    def fail(item):
        raise sl.CorruptStream("half a file", address="a.bin", offset=77)
        yield

    with pytest.raises(sl.CorruptStream, match="half a file") as caught:
        only(fail)
    assert caught.value.offset == 77


@pytest.mark.parametrize("make", [lambda item: next(iter(())), lambda item: coroutine(1 / 0)])
def test_a_make_that_fails_is_named(make):
    with pytest.raises(sl.StreamFailed, match=r"step 0: (StopIteration|ZeroDivisionError)"):
        only(make)


DTYPES = st.sampled_from(["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"])


@given(st.data(), DTYPES, DTYPES)
def test_values_change_only_in_precision(data, source, target):
    value = data.draw(st_numpy.arrays(source, (3,), elements={"allow_nan": False} if source[0] in "fc" else None))
    out = {"data": np.zeros((1, 3), target)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            StepWriter({"data": sl.Field((3,), target)}).write_step(out, 0, value)
        except StepMismatch:
            assert not out["data"].any()
            assert not np.can_cast(source, target, "safe")
            return
    if target[0] in "?iu":
        assert [int(number) for number in out["data"][0]] == [int(number) for number in value]
    else:
        relative = float(np.finfo(target).eps)
        assert np.allclose(out["data"][0], value, rtol=relative, atol=float(np.finfo(target).tiny))


# --- threads, closing and repeating -----------------------------------------------------------------------------------


def test_all_of_a_generator_runs_in_the_thread_of_its_lane():
    threads = []

    def note(item):
        threads.append(threading.current_thread().name)
        try:
            for step in range(4):
                threads.append(threading.current_thread().name)
                yield step
        finally:
            threads.append(threading.current_thread().name)

    class Bound:
        def __call__(self, item):
            threads.append(threading.current_thread().name)
            return note(item)

    dataset = sl.IterStreams([0], Bound(), fields=BYTE)

    async def run():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        await read_steps(stream, dataset, 2, 3)
        await stream.aclose()

    in_a_lane(run)
    assert threads == ["the-lane"] * 6


def test_async_streams_run_on_the_loop():
    threads = []

    async def note(item):
        threads.append(threading.current_thread().name)
        try:
            for step in range(4):
                await anyio.lowlevel.checkpoint()
                yield step
        finally:
            await anyio.lowlevel.checkpoint()
            threads.append(threading.current_thread().name)

    dataset = sl.IterStreams([0], note, fields=BYTE)

    async def run():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        await read_steps(stream, dataset, 2, 3)
        await stream.aclose()

    in_a_lane(run)
    assert threads == ["MainThread"] * 2


def test_a_window_takes_one_call_in_the_thread(monkeypatch):
    calls = []

    async def call(function, *args):
        calls.append(function.__name__)
        return function(*args)

    monkeypatch.setattr("streamloader.streams.iterate.in_lane_thread", call)
    assert only(lambda item: iter(range(20)), block=8)["data"].tolist() == list(range(20))
    assert calls == ["_index", "_call_make", "read", "read", "read", "read", "_close_in_thread"]


def test_an_object_of_the_user_is_not_closed():
    class Steps(list):
        def close(self):
            raise AssertionError("it is the user's")

    steps = Steps([1, 2])
    for _ in range(2):
        assert only(lambda item: steps)["data"].tolist() == [1, 2]


def test_an_error_while_closing_is_raised():
    def stubborn(item):
        try:
            yield from range(5)
        finally:
            raise OSError("cannot be closed")

    with pytest.raises(sl.StreamFailed, match="step 2: OSError: cannot be closed"):
        only(stubborn, steps=2)


def test_a_closed_stream_raises():
    dataset = sl.IterStreams([b"abc"], iter, fields=BYTE)

    async def read_closed():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        await stream.aclose()
        with pytest.raises(sl.ClosedError, match="was closed"):
            await stream.seek(1)
        await stream.read_into({"data": np.zeros(2, np.uint8)})

    with pytest.raises(sl.ClosedError, match="was closed"):
        anyio.run(read_closed)


def test_a_cancelled_read_stops_filling():
    # The step that is being made when the read is cancelled must not be written any more.
    started, resume = threading.Event(), threading.Event()

    def slow(item):
        yield 1
        started.set()
        assert resume.wait(60)
        yield 2
        yield 3

    dataset = sl.IterStreams([0], slow, fields=BYTE)
    out = {"data": np.zeros(5, np.uint8)}

    async def run():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.read_into, out)
            while not started.is_set():
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        resume.set()
        await stream.aclose()  # waits for the call in the thread

    in_a_lane(run)
    assert out["data"].tolist() == [1, 0, 0, 0, 0]


def test_going_back_creates_the_stream_again_with_the_same_randomness():
    made = []

    def noise(item, rng):
        made.append(item)
        while True:
            yield rng.integers(1 << 30)

    dataset = sl.IterStreams(["x"], noise, fields=sl.Field((), "int64"))

    async def run():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(1, 2, 3))
        try:
            first = (await read_steps(stream, dataset, 4, 10))["data"]
            await stream.seek(10)
            ahead = (await read_steps(stream, dataset, 4, 2))["data"]
            assert made == ["x"]
            await stream.seek(3)
            again = (await read_steps(stream, dataset, 4, 9))["data"]
        finally:
            await stream.aclose()
        return np.concatenate([first, ahead])[3:].tolist(), again.tolist()

    before, after = anyio.run(run)
    assert before == after
    assert made == ["x", "x"]


@pytest.mark.parametrize("kind", ["iterator", "coroutine", "async generator"])
def test_the_result_of_a_cancelled_open_is_closed(kind):
    started, resume, closed = threading.Event(), threading.Event(), []

    class Closing(Countdown):
        def close(self):
            closed.append(threading.current_thread().name)

    def make(item):
        started.set()
        assert resume.wait(60)
        return {"iterator": Closing, "coroutine": coroutine, "async generator": lambda _: async_counting()}[kind](3)

    dataset = sl.IterStreams([0], make, fields=BYTE)

    async def run():
        (info,) = await dataset.index()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dataset.open, info, stream_rng(0, 0, 0))
            while not started.is_set():
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
            resume.set()

    in_a_lane(run)
    assert closed == (["the-lane"] if kind == "iterator" else [])
