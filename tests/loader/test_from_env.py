"""Batches of vectorized producers: the guarantees of `MultiStreamer.from_env`, with real threads and processes."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import threading

import numpy as np
import pytest
from engine_data import assert_fails_again
from env_data import DIMS, Counter, Walks, expected_batches, numbers, released
from optional_torch import address_of, needs_torch
from polling import wait_until
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.loader.envstreamer import EnvBatch, EnvStreamer

DEADLINE = 60.0
COUNT = ((), "int64")


def counters(at_call=None, batchsize=4, max_q_size=2, num_workers=0, path=None, **more):
    def make_env(lanes):
        return Counter(lanes, at_call, path)

    return sl.MultiStreamer.from_env(
        make_env, COUNT, batchsize, max_q_size, num_workers, **({"timeout": DEADLINE} | more)
    )


def rows(call, lanes=4, first=0):
    return [1000 * lane + call for lane in range(first, first + lanes)]


def play_until_error(loader):
    got, iterator = [], iter(loader)
    try:
        for batch in iterator:
            got.append(numbers(batch))  # noqa: PERF401 - those before the error are wanted
    except sl.StreamloaderError as error:
        assert_fails_again(iterator, error)
        return got, error
    return got, None


# --- what is delivered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", only_fast([0, 1, 2, 3, 7], fast=[0, 3]))
def test_the_same_bytes_for_any_number_of_workers(num_workers):
    expected = expected_batches(range(5), 25)
    with sl.MultiStreamer.from_env(Walks, DIMS, 5, 3, num_workers, timeout=DEADLINE) as loader:
        assert type(loader) is EnvStreamer
        for index, batch in enumerate(itertools.islice(loader, 25)):
            assert type(batch) is EnvBatch
            assert batch.index == index
            arrays = batch.numpy()
            assert list(arrays) == list(DIMS)
            for name, array in expected[index].items():
                assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
                assert arrays[name].tobytes() == array.tobytes(), f"batch {index}, {name}"
            assert len(batch.infos) == min(5, max(1, num_workers))
            if (index + 1) % 4 == 0:
                assert set(batch.infos) == {None}
            else:
                assert [lane for infos in batch.infos for lane in infos["lanes"]] == [0, 1, 2, 3, 4]
                assert [infos["calls"] for infos in batch.infos] == [index + 1] * len(batch.infos)


def test_envs_of_one_program_with_lambdas_and_local_classes():
    scale = 3

    class Local:
        def __init__(self, lanes, rng):
            self.lanes, self.drawn = lanes, int(rng.integers(1 << 40))

        def __call__(self, arrays):
            arrays["data"][:] = scale * np.array(self.lanes)[:, None]
            return self.drawn

    drawn = []
    for seed in (5, 5, 6):
        with sl.MultiStreamer.from_env(
            lambda lanes, rng: Local(lanes, rng),  # noqa: PLW0108 - a lambda is what is tested
            2,
            3,
            num_workers=2,
            seed=seed,
            timeout=DEADLINE,
        ) as loader:
            batch = next(iter(loader))
            assert batch.data.tolist() == [[0.0, 0.0], [3.0, 3.0], [6.0, 6.0]]
            drawn.append(batch.infos)
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 4


@pytest.mark.parametrize("num_workers", fast_first([0, 2]))
def test_ranks_host_the_lanes_of_one_world(num_workers):
    world = expected_batches(range(6), 5)
    for rank in range(2):
        with sl.MultiStreamer.from_env(
            Walks, DIMS, 3, num_workers=num_workers, rank=rank, world_size=2, timeout=DEADLINE
        ) as loader:
            for batch, whole in zip(loader, world, strict=False):
                for name, array in batch.numpy().items():
                    assert array.tobytes() == whole[name][3 * rank : 3 * rank + 3].tobytes()
            assert [lane.lane for lane in loader.stats().lanes] == [3 * rank, 3 * rank + 1, 3 * rank + 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_views_of_the_ring(num_workers):
    with sl.MultiStreamer.from_env(Walks, DIMS, 5, num_workers=num_workers, timeout=DEADLINE) as loader:
        for batch in itertools.islice(loader, 10):
            start, size = loader._ring.span
            for name in DIMS:
                assert start <= address_of(batch[name]) < start + size
                assert batch[name] is batch[name]
                assert batch.numpy()[name].ctypes.data == address_of(batch[name])
        assert loader.stats().copied == 0


def test_an_env_gets_views_that_it_cannot_replace():
    def make_env():
        def env(arrays):
            with pytest.raises(TypeError, match="item assignment"):
                arrays["data"] = np.ones((4, 2))
            array = arrays["data"]
            array[:] = 5
            return [array.flags.owndata, array.flags.writeable, list(array.shape), str(array.dtype)]

        return env

    with sl.MultiStreamer.from_env(make_env, 2, 4, num_workers=0, timeout=DEADLINE) as loader:
        batch = next(iter(loader))
    assert batch.infos == [[False, True, [4, 2], "float32"]]
    assert batch.data.tolist() == [[5.0, 5.0]] * 4


@pytest.mark.parametrize("num_workers", fast_first([0, 2]))
def test_all_batches_can_be_kept(num_workers):
    with counters(num_workers=num_workers) as loader:
        kept = list(itertools.islice(loader, 30))
        assert loader.stats().copied > 0
    assert [numbers(batch) for batch in kept] == [rows(call) for call in range(30)]
    assert [batch.data.tolist() for batch in kept] == [rows(call) for call in range(30)]


def test_the_face_of_a_batch():
    with sl.MultiStreamer.from_env(Walks, DIMS, 5, num_workers=0, timeout=DEADLINE) as loader:
        batch = next(iter(loader))
        copy = batch.clone()
        held = {name: array.copy() for name, array in batch.numpy().items()}
        batch["walk"][:] = 0.0
    assert (len(batch), batch.keys(), "walk" in batch, "reset" in batch) == (5, tuple(DIMS), True, False)
    assert (copy.index, copy.infos) == (batch.index, batch.infos) == (0, [{"lanes": [0, 1, 2, 3, 4], "calls": 1}])
    assert type(copy) is EnvBatch
    assert all(np.array_equal(copy[name], held[name]) for name in DIMS)
    assert batch.to("cpu") is batch
    assert repr(batch) == "EnvBatch(index=0, walk=float32(5, 3), count=int64(5,), picture=uint8(5, 2, 4))"
    with pytest.raises(KeyError, match="no field 'data'; this batch has walk, count, picture"):
        _ = batch.data


def test_collate_fn_gets_tensors_and_infos():
    def collate(arrays, infos):
        return list(arrays), arrays["count"].tolist(), infos

    with sl.MultiStreamer.from_env(Walks, DIMS, 2, 2, 2, collate, timeout=DEADLINE) as loader:
        for call, got in enumerate(itertools.islice(loader, 3)):
            infos = [{"lanes": [lane], "calls": call + 1} for lane in range(2)]
            assert got == (list(DIMS), [call, 1000 + call], infos)


def test_infos_of_many_kilobytes():
    def at_call(lanes, call):
        return {"text": f"{call} " * 50_000, "floats": np.linspace(0, 1, 5_000) + call}

    with counters(at_call, num_workers=2, max_q_size=8) as loader:
        for call, batch in enumerate(itertools.islice(loader, 12)):
            assert (
                batch.infos == [{"text": f"{call} " * 50_000, "floats": (np.linspace(0, 1, 5_000) + call).tolist()}] * 2
            )


# --- arguments -----------------------------------------------------------------------------------------------

DIMS_FORMS = [
    ((3, 4), {"data": ((3, 4), "float32")}),
    (5, {"data": ((5,), "float32")}),
    ((), {"data": ((), "float32")}),
    ((7, "uint8"), {"data": ((7,), "uint8")}),
    (((3, 4), np.int16), {"data": ((3, 4), "int16")}),
    (sl.Field((2,), "bool"), {"data": ((2,), "bool")}),
    (
        {"rgb": ((4, 6, 3), "uint8"), "action": 2, "reset": sl.Field((), "bool"), "x": (np.int64(3),)},
        {"rgb": ((4, 6, 3), "uint8"), "action": ((2,), "float32"), "reset": ((), "bool"), "x": ((3,), "float32")},
    ),
]


@pytest.mark.parametrize(("dims", "expected"), DIMS_FORMS)
def test_dims_are_read(dims, expected):
    def env(arrays):
        for array in arrays.values():
            array[...] = 1

    with sl.MultiStreamer.from_env(lambda: env, dims, 3, num_workers=0, timeout=DEADLINE) as loader:
        arrays = next(iter(loader)).numpy()
    assert {name: (array.shape[1:], str(array.dtype)) for name, array in arrays.items()} == expected
    assert all(array.shape[0] == 3 and array.all() for array in arrays.values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"array_dims": {}}, "at least one array"),
        ({"array_dims": {1: (2,)}}, r"keys of array_dims must be strings, got \[1\]"),
        ({"array_dims": {"x": "uint8"}}, r"array 'x' must be a Field, dims such as \(84, 84\), or .* got 'uint8'"),
        ({"array_dims": {"x": (2, 3.5, 4)}}, "array 'x' must be"),
        ({"array_dims": ((2,), "object")}, "number or bool of fixed size"),
        ({"array_dims": (2, -3)}, "negative sizes"),
        ({"batchsize": 0}, "batchsize must be 1 or more, got 0"),
        ({"max_q_size": 0}, "max_q_size must be 1 or more, got 0"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"timeout": -1}, "timeout must be a number of seconds"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0 \.\. world_size - 1"),
        ({"make_env": lambda a, b, c: None}, "make_env is called as"),
        pytest.param({"device": "meta"}, "device must be a CPU or CUDA device", marks=needs_torch),
    ],
)
def test_invalid_arguments(more, message):
    with pytest.raises(sl.ConfigError, match=message):
        sl.MultiStreamer.from_env(**({"make_env": lambda: None, "array_dims": 3, "batchsize": 2} | more))


def test_it_has_no_length():
    with counters() as loader:
        with pytest.raises(TypeError, match="has no len"):
            len(loader)
        assert repr(loader) == "EnvStreamer({data: int64()}, batchsize=4, num_workers=0)"


def test_a_ring_that_does_not_fit():
    with pytest.raises(sl.RingTooLarge, match="choose a smaller"):
        sl.MultiStreamer.from_env(lambda: None, (1 << 20, 1 << 20), 1 << 10)


@needs_torch
def test_a_warning_points_at_the_line_of_the_user(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.warns(UserWarning, match="no CUDA device") as caught:
        counters(pin_memory=True)
    assert [warning.filename for warning in caught] == [__file__]


# --- how far ahead -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("max_q_size", [1, 3])
def test_max_q_size_is_exact(max_q_size, hold):
    moved = threading.Condition()
    requested = made = 0
    too_early = []

    def at_call(lanes, call):
        nonlocal made
        with moved:
            if call >= requested + max_q_size:
                too_early.append((call, requested))
            made = call + 1
            moved.notify()

    with counters(at_call, max_q_size=max_q_size) as loader:
        iterator, batch = iter(loader), None
        for number in range(20):
            with moved:
                requested += 1
            got = next(iterator)
            assert numbers(got) == rows(number)
            batch = got if hold else None
            del got
            with moved:  # these are made without a request
                assert moved.wait_for(lambda: made == requested + max_q_size, DEADLINE)  # noqa: B023 - called here
        assert too_early == []
        assert loader.stats().slots == max_q_size + 2
        del batch


# --- ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_workers", "ends"),
    only_fast(
        [(0, [4]), (0, [0]), (2, [7, 4]), (2, [3, 9]), (2, [5, 5]), (3, [9, 0, 9])],
        fast=[(0, [4]), (0, [0]), (2, [7, 4]), (3, [9, 0, 9])],
    ),
)
def test_stop_iteration_ends_with_the_last_batch_that_all_have_filled(num_workers, ends, tmp_path):
    firsts = [0, 2] if num_workers == 2 else [0, 1, 2][: max(1, num_workers)]
    end_of = dict(zip(firsts, ends, strict=True))

    def at_call(lanes, call):
        if call == end_of[lanes.start]:
            raise StopIteration

    batchsize = 3 if num_workers == 3 else 4
    with counters(at_call, batchsize, num_workers=num_workers, path=tmp_path) as loader:
        got, error = play_until_error(loader)
        assert error is None
        assert got == [rows(call, batchsize) for call in range(min(ends))]
        assert play_until_error(loader) == ([], None)  # it stays over
        assert list(loader) == []
    closed = set(os.listdir(tmp_path))  # an env that was not made yet when another one ended is never made
    first_to_end = firsts[ends.index(min(ends))]
    assert {f"closed-{first_to_end}"} <= closed <= {f"closed-{first}" for first in firsts}


@pytest.mark.parametrize("num_workers", fast_first([0, 2]))
def test_the_next_iteration_goes_on_with_the_next_batch(num_workers):
    with counters(num_workers=num_workers, max_q_size=3) as loader:
        seen = []
        for stop in (1, 2, 5, 1):
            for batch in loader:
                seen.append((batch.index, numbers(batch)))
                stop -= 1  # noqa: PLW2901
                if not stop:
                    break
        first = iter(loader)
        second = iter(loader)
        with pytest.raises(sl.ClosedError, match="another iteration"):
            next(first)
        seen.append((9, numbers(next(second))))
    assert seen == [(call, rows(call)) for call in range(10)]


@pytest.mark.parametrize("num_workers", fast_first([0, 2]))
def test_async_for(num_workers):
    async def main():
        got = []
        with counters(num_workers=num_workers) as loader:
            async for batch in loader:
                got.append(numbers(batch))
                if len(got) == 12:
                    break
        return got

    assert asyncio.run(main()) == [rows(call) for call in range(12)]


# --- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_env_that_raises_spoils_exactly_its_batch_and_all_after_it(num_workers, tmp_path):
    def at_call(lanes, call):
        if call == 3 and 2 in lanes:
            raise LookupError("the world fell apart")

    lanes, name = ([2, 3], "env of lanes 2-3") if num_workers else ([0, 1, 2, 3], "env of lanes 0-3")
    with counters(at_call, num_workers=num_workers, path=tmp_path) as loader:
        for before in ([0, 1, 2], [], []):
            got, error = play_until_error(loader)
            assert got == [rows(call) for call in before]
            assert type(error) is sl.StreamFailed
            assert error.message == f"{name}, reading at step 3: LookupError: the world fell apart"
            assert (error.stream, error.offset) == (name, 3)
            assert error.details == {
                "lane": lanes[0],
                "lanes": lanes,
                "stage": "reading",
                "step": 3,
                "cause": "LookupError",
            }
            assert 'raise LookupError("the world fell apart")' in error.worker_traceback
        assert f"closed-{lanes[0]}" in os.listdir(tmp_path)  # at once
    assert (tmp_path / f"closed-{lanes[0]}").read_text() == "3 1\n"


class Unmade:
    def __init__(self):
        raise PermissionError("no licence for this simulator")


def replacing(arrays):
    arrays["data"] = np.zeros(4)


def wrong_shape(arrays):
    arrays["data"][:] = np.zeros(7)


WRONG = {
    "not made": (Unmade, sl.StreamFailed, "opening at step 0: PermissionError: no licence for this simulator"),
    "not callable": (lambda: 7, sl.ConfigError, "make_env must return an env that is called as env(arrays) -> infos"),
    "replaces an array": (lambda: replacing, sl.StreamFailed, "does not support item assignment"),
    "fills in another shape": (lambda: wrong_shape, sl.StreamFailed, "could not broadcast"),
    "infos": (lambda: lambda arrays: {"a": {1}}, sl.ConfigError, "infos['a'] is of type set"),
}


@pytest.mark.parametrize(
    ("how", "num_workers"),
    only_fast(itertools.product(WRONG, (0, 1)), fast=[*((how, 0) for how in WRONG), ("not made", 1), ("infos", 1)]),
)
def test_what_an_env_does_wrong_is_told(how, num_workers):
    make_env, kind, message = WRONG[how]
    made = sl.MultiStreamer.from_env(make_env, COUNT, 4, num_workers=num_workers, timeout=DEADLINE)
    with made as loader, pytest.raises(kind) as caught:
        next(iter(loader))
    assert message in caught.value.message
    assert caught.value.stream == "env of lanes 0-3"
    assert caught.value.details["lanes"] == [0, 1, 2, 3]
    assert "--- in the worker ---" in str(caught.value)


def test_an_env_that_fails_to_close_after_its_end_is_told_of():
    class Sticky(Counter):
        def close(self):
            raise OSError("the window stays open")

    def at_call(lanes, call):
        if call == 2:
            raise StopIteration

    make_env = functools.partial(Sticky, at_call=at_call)
    with sl.MultiStreamer.from_env(make_env, COUNT, 4, num_workers=0, timeout=DEADLINE) as loader:
        got, error = play_until_error(loader)
    assert got == [rows(0), rows(1)]
    assert "closing at step 2: OSError: the window stays open" in error.message


def test_an_env_that_cannot_be_sent_to_workers():
    connection = (number for number in range(3))  # like a socket, nothing that can be copied
    message = r"make_env, cannot be sent to worker processes \(TypeError: .*generator"
    loader = sl.MultiStreamer.from_env(lambda: connection, 3, 2, num_workers=1)
    with loader, pytest.raises(sl.ConfigError, match=message):
        iter(loader)


@pytest.mark.parametrize("how", ["for", "async for"])
def test_an_env_that_is_stuck_is_named_and_its_batch_comes_when_it_goes_on(how):
    async def play(loader):
        if how == "async for":
            async for batch in loader:
                got.append(numbers(batch))
        got.extend(numbers(batch) for batch in loader)

    got, stuck = [], threading.Event()
    with released(threading.Event()) as release:

        def at_call(lanes, call):
            if call == 2:
                stuck.set()
                assert release.wait(DEADLINE)

        with counters(at_call, max_q_size=3, rank=1, world_size=2) as loader:
            iter(loader)
            assert stuck.wait(DEADLINE)
            loader._timeout = 0.3
            with pytest.raises(sl.LoaderTimeout) as caught:
                asyncio.run(play(loader))
            release.set()
            loader._timeout = DEADLINE
            got += [numbers(batch) for batch in itertools.islice(loader, 2)]
    error = caught.value
    assert got == [rows(call, first=4) for call in range(4)]
    assert error.message.startswith(
        f"waited {error.details['waited']:.1f} s for lane 4 (env of lanes 4-7, reading at step 2)"
    )
    assert (error.details["lane"], error.details["stage"], error.stream) == (4, "reading", "env of lanes 4-7")


def test_an_env_that_is_stuck_in_being_made_is_named_and_its_process_ended():
    def make_env(lanes):
        if lanes.start == 2:
            threading.Event().wait()
        return Counter(lanes)

    with sl.MultiStreamer.from_env(make_env, COUNT, 4, 2, num_workers=2, timeout=0.2) as loader:
        iterator = iter(loader)
        wait_until(lambda: loader.stats().lanes[0].rows_ready == 2 and loader.stats().lanes[2].stage == "opening")
        with pytest.raises(sl.LoaderTimeout, match=r"lane 2 \(env of lanes 2-3, opening at step 0\)"):
            next(iterator)
        pids = loader._supervisor.pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.chaos
def test_a_worker_that_dies_is_told_of_at_once():
    def at_call(lanes, call):
        if call == 2 and 2 in lanes:
            os.kill(os.getpid(), signal.SIGKILL)

    with counters(at_call, num_workers=2, timeout=None) as loader:
        got, error = play_until_error(loader)
        assert got == [rows(call) for call in range(len(got))]
        assert len(got) <= 2
        assert type(error) is sl.WorkerDied
        assert (error.details["lanes"], error.details["signal"]) == ([2, 3], signal.SIGKILL)
        with pytest.raises(sl.WorkerDied):
            next(iter(loader))


# --- closing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_close_closes_the_envs_in_their_threads_and_leaves_nothing(num_workers, tmp_path):
    with counters(num_workers=num_workers, path=tmp_path) as loader:
        assert os.listdir(tmp_path) == []
        batch = next(iter(loader))
    firsts = [0, 2] if num_workers else [0]
    texts = {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)}
    assert sorted(texts) == [f"closed-{first}" for first in firsts]
    for text in texts.values():
        calls, threads = text.split()
        assert 1 <= int(calls) <= 3
        assert threads == "1"
    assert numbers(batch) == rows(0)  # what is held stays valid
    with pytest.raises(sl.ClosedError):
        iter(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_letting_go_of_the_loader_closes_it(num_workers, tmp_path):
    loader = counters(num_workers=num_workers, path=tmp_path)
    next(iter(loader))
    del loader
    assert len(os.listdir(tmp_path)) == max(1, num_workers)


def test_an_env_is_closed_also_if_it_was_still_being_made(tmp_path):
    entered = threading.Event()
    with released(threading.Event()) as release:

        def make_env(lanes):
            entered.set()
            assert release.wait(DEADLINE)
            return Counter(lanes, path=tmp_path)

        loader = sl.MultiStreamer.from_env(make_env, COUNT, 4, num_workers=0, timeout=DEADLINE)
        iter(loader)
        assert entered.wait(DEADLINE)
        closer = threading.Thread(target=loader.close)
        closer.start()
        wait_until(lambda: loader.stats().lanes[0].stage == "closing")
    closer.join(DEADLINE)
    wait_until(lambda: os.listdir(tmp_path) == ["closed-0"])


def test_an_env_that_does_not_close_is_ended():
    class Stubborn(Counter):
        def close(self):
            threading.Event().wait()

    with sl.MultiStreamer.from_env(Stubborn, COUNT, 4, num_workers=2, timeout=DEADLINE) as loader:
        assert numbers(next(iter(loader))) == rows(0)
        pids = loader._supervisor.pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


# --- stats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stats(num_workers):
    with counters(num_workers=num_workers) as loader:
        assert loader.stats().lanes == ()
        for _ in itertools.islice(loader, 6):
            pass
        stats = loader.stats()
    assert (stats.batches, stats.steps, stats.bytes, stats.slots) == (6, 24, 6 * 4 * 8, 4)
    names = ["env of lanes 0-1"] * 2 + ["env of lanes 2-3"] * 2 if num_workers else ["env of lanes 0-3"] * 4
    assert [(lane.lane, lane.stream, lane.stage) for lane in stats.lanes] == [
        (lane, name, "reading") for lane, name in enumerate(names)
    ]
    assert all(6 <= lane.step <= 8 and lane.rows_ready <= 2 for lane in stats.lanes)
    assert stats.wait_seconds > 0


# --- a GPU ---------------------------------------------------------------------------------------------------


def test_batches_on_a_gpu_are_the_same(request):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    expected = expected_batches(range(5), 40)
    with sl.MultiStreamer.from_env(Walks, DIMS, 5, 3, 2, pin_memory=True, device="cuda", timeout=DEADLINE) as loader:
        got = list(itertools.islice(loader, 15))
        got += itertools.islice(loader, 25)  # the one that was copied ahead comes too
        for index, batch in enumerate(got):
            assert batch.index == index
            assert bool(batch.infos[0]) == bool((index + 1) % 4)
            for name, array in expected[index].items():
                assert batch[name].device.type == "cuda"
                assert batch[name].cpu().numpy().tobytes() == array.tobytes()
