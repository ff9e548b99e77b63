"""Envs with epochs, one for each worker: the other contract of `MultiStreamer.from_env`."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import threading

import numpy as np
import pytest
import torch
from engine_data import assert_fails_again
from group_data import Recorder, recorded, recorders
from polling import wait_until
from tiers import fast_first

import streamloader as sl
from streamloader.engine.group_env import find_group_arguments
from streamloader.loader.envstreamer import EnvStreamer
from streamloader.loader.groupstreamer import GroupArray, GroupStreamer

DEADLINE = 60.0
ALL = ("worker_id", "num_workers", "num_streams", "epoch")


def load(make_env=None, batchsize=4, num_workers=2, **options):
    make_env = recorders() if make_env is None else make_env
    options = {"timeout": DEADLINE, "dtype": "int64"} | options
    return sl.MultiStreamer.from_env(make_env, 5, batchsize, num_workers=num_workers, **options)


def rows(batch):
    return batch["data"].tolist()


# --- the two forms -------------------------------------------------------------------------------------------


class TakesAll(Recorder):
    def __init__(self, size, **more):
        super().__init__(**more)


class TakesNothingOfIts:
    def __init__(self, **more):
        pass


FORMS = {
    "a class": (Recorder, ALL),
    "a partial of it": (recorders(num_batches=2), ALL),
    "a partial of a partial": (functools.partial(recorders(), path=None), ALL),
    "a class whose base class names them": (functools.partial(TakesAll, 3), ALL),
    "a function without epoch": (lambda worker_id, num_workers, num_streams: None, ALL[:3]),
    "a function that takes any keyword": (lambda num_streams, **more: None, ALL),
    "by keyword only": (lambda *, worker_id: None, ("worker_id",)),
    "epoch alone": (lambda epoch: None, ()),
    "lanes and rng": (lambda lanes, rng: None, ()),
    "nothing": (lambda: None, ()),
    "any keyword": (lambda **more: None, ()),
    "a class that takes any keyword": (TakesNothingOfIts, ()),
    "by position only": (lambda worker_id, /: None, ()),
    "built in, with no signature": (iter, ()),
    "no function": (3, ()),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_parameters_of_make_env_tell_the_forms_apart(form):
    make_env, expected = FORMS[form]
    assert find_group_arguments(make_env) == expected


def test_both_forms_at_once_are_refused():
    with pytest.raises(sl.ConfigError, match=r"has the parameters \['lanes', 'worker_id'\]: it is called either as"):
        load(lambda lanes, worker_id: None)


def test_the_other_form_is_as_it_was():
    def make_env(lanes, rng):
        return lambda arrays: arrays["data"].fill(lanes.start)

    with sl.MultiStreamer.from_env(make_env, 2, 4, timeout=DEADLINE) as loader:
        assert type(loader) is EnvStreamer
        assert next(iter(loader)).data.dtype is torch.float32
    with sl.MultiStreamer.from_env(make_env, 2, 4, dtype=np.int16, main_thread=1, timeout=DEADLINE) as loader:
        assert next(iter(loader)).data.dtype is torch.int16
    with pytest.raises(sl.ConfigError, match="epoch=3 needs a make_env with the parameters worker_id"):
        sl.MultiStreamer.from_env(make_env, 2, 4, epoch=3)


def test_defaults():
    with sl.MultiStreamer.from_env(recorders(), 5) as loader:
        assert (loader.batchsize, loader.batch_size, loader.num_workers, loader.epoch, len(loader)) == (8, 8, 1, 0, 3)
        assert loader.stats().slots == 4 + 2
        assert repr(loader) == "GroupStreamer({data: uint8(5,)}, batchsize=8, num_workers=1, epoch=0)"
        assert type(loader) is sl.GroupStreamer is GroupStreamer


# --- batches and epochs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_workers", "envs"), [(2, 2), (0, 1), pytest.param(4, 4, marks=pytest.mark.slow)])
def test_an_iteration_is_an_epoch_of_new_envs(num_workers, envs, tmp_path):
    with load(recorders(path=tmp_path), num_workers=num_workers, epoch=5) as loader:
        for epoch in (5, 6, 7):
            assert loader.epoch == epoch
            got = list(loader)
            assert [rows(batch) for batch in got] == [recorded(epoch, call, 4, envs) for call in range(3)]
            assert all(batch["worker"] == list(range(envs)) for batch in got)
            assert all(batch["rows"] == [*range(4 // envs)] * envs for batch in got)
            names = {f"made-{epoch}-{worker}" for worker in range(envs)}
            assert {name for name in os.listdir(tmp_path) if name.startswith("made")} >= names
            # The envs of the next epoch are not created before it starts, because they may read what is written now.
            assert not any(name.startswith(f"made-{epoch + 1}-") for name in os.listdir(tmp_path))
    for kind, epoch, worker in itertools.product(("made", "closed"), (5, 6, 7), range(envs)):
        assert (tmp_path / f"{kind}-{epoch}-{worker}").read_text() == "."


@pytest.mark.parametrize("num_workers", fast_first([2, 0]))
def test_an_epoch_that_was_left_early_starts_again(num_workers, tmp_path):
    envs = max(1, num_workers)
    with load(recorders(path=tmp_path, num_batches=20), num_workers=num_workers) as loader:
        for _ in range(2):
            for call, batch in enumerate(loader):
                assert rows(batch) == recorded(0, call, 4, envs)
                if call == 2:
                    break
        assert loader.epoch == 0
        first = iter(loader)
        second = iter(loader)
        with pytest.raises(sl.ClosedError, match="another iteration"):
            next(first)
        got = [rows(batch) for batch in second]
        assert got == [recorded(0, call, 4, envs) for call in range(20)]
        assert rows(next(iter(loader))) == recorded(1, 0, 4, envs)


def test_set_epoch():
    with load() as loader:
        loader.set_epoch(9)
        assert rows(next(iter(loader))) == recorded(9, 0)
        iterator = iter(loader)
        loader.epoch = 4  # counts, because no batch of the iteration was requested
        assert [rows(batch) for batch in iterator] == [recorded(4, call) for call in range(3)]
        assert loader.epoch == 5
        for epoch in (-1, 1.5, None):
            with pytest.raises(sl.ConfigError, match=f"epoch must be .*0 or more, got {epoch}"):
                loader.set_epoch(epoch)


def test_epochs_of_no_batches_and_of_unknown_length():
    with load(recorders(num_batches=0)) as loader:
        assert len(loader) == 0
        assert (list(loader), list(loader), loader.epoch) == ([], [], 2)

    def at_call(env):
        epoch, worker, _ = env.values
        if env.calls == 2 + epoch + worker:
            raise StopIteration

    with load(recorders(num_batches=None, at_call=at_call)) as loader:
        with pytest.raises(sl.LengthUnknown, match="no num_batches"):
            len(loader)
        for epoch in range(3):  # the first worker ends first
            assert [rows(batch) for batch in loader] == [recorded(epoch, call) for call in range(2 + epoch)]


def test_async_for():
    async def main(loader):
        return [rows(batch) async for batch in loader]

    with load() as loader:
        for epoch in range(2):
            assert asyncio.run(main(loader)) == [recorded(epoch, call) for call in range(3)]


@pytest.mark.parametrize("num_workers", fast_first([2, 0]))
def test_arrays_alias_the_ring_and_stay_while_they_are_held(num_workers):
    with load(recorders(num_batches=20), num_workers=num_workers) as loader:
        for batch in loader:
            start, size = loader._ring.span
            assert start <= batch["data"].ctypes.data < start + size
            tensor = torch.from_numpy(batch["data"])
            assert tensor.data_ptr() == batch["data"].ctypes.data
        assert loader.stats().copied == 0
        del batch, tensor
        held = [batch["data"] for batch in loader]
        assert loader.stats().copied > 0
        envs = max(1, num_workers)
        assert [array.tolist() for array in held] == [recorded(1, call, 4, envs) for call in range(20)]


def test_several_arrays_and_what_collate_fn_gets():
    class Env:
        num_batches = 2

        def __init__(self, worker_id, num_streams, **more):
            self.worker_id, self.calls = worker_id, 0

        def __call__(self, arrays_dic):
            arrays_dic["events"][:, 0] = 1
            arrays_dic["label"][:] = self.worker_id
            self.calls += 1
            box = np.array([(1.5, self.worker_id)], [("x", "f4"), ("id", "u2")])
            return {"boxes": [box], "times": [np.float32(self.calls), 7], "more": [{"a": (1, b"x")}, None]}

    got = []

    def collate(data):
        got.append(data)
        return len(got)

    dims = {"events": (2, 3), "label": ((), "int32")}
    with sl.MultiStreamer.from_env(Env, dims, 4, 4, 2, collate, dtype=np.float32, timeout=DEADLINE) as loader:
        assert list(loader) == [1, 2]
    for call, data in enumerate(got, 1):
        assert type(data) is dict
        assert sorted(data) == ["boxes", "events", "label", "more", "times"]
        assert {name: (data[name].dtype.str, data[name].shape) for name in dims} == {
            "events": ("<f4", (4, 2, 3)), "label": ("<i4", (4,)),
        }  # fmt: skip
        assert data["label"].tolist() == [0, 0, 1, 1]
        assert data["events"].tolist() == [[[1.0] * 3, [0.0] * 3]] * 4
        assert [box.dtype.names for box in data["boxes"]] == [("x", "id")] * 2
        assert [box.tolist() for box in data["boxes"]] == [[(1.5, 0)], [(1.5, 1)]]
        assert data["times"] == [call, 7, call, 7]
        assert type(data["times"][0]) is np.float32
        assert data["more"] == [{"a": (1, b"x")}, None] * 2


def test_an_array_of_one_element_counts_as_an_integer_as_in_a_tensor():
    array = np.array([[97], [98]], np.uint8).view(GroupArray)
    assert [chr(item) for item in array] == ["a", "b"]
    with pytest.raises(TypeError, match=r"only an array of one element is an integer, got the shape \(2, 1\)"):
        chr(array)
    with pytest.raises(TypeError):
        range(np.ones(1).view(GroupArray))


@pytest.mark.parametrize("num_workers", fast_first([1, 2]))
def test_ranks_divide_the_workers(num_workers):
    for rank in range(2):
        with load(num_workers=num_workers, rank=rank, world_size=2) as loader:
            first = next(iter(loader))
        world = recorded(0, 0, 8, 2 * num_workers)
        assert rows(first) == world[4 * rank : 4 * rank + 4]


def test_the_global_generators_of_workers_are_seeded():
    def at_call(env):
        drawn = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - users do so
        return {"drawn": [drawn]}

    def draw(**options):
        with load(recorders(at_call=at_call, num_batches=2), **options) as loader:
            return [[batch["drawn"] for batch in loader] for _ in range(2)]

    state = random.getstate()
    one, same, other = draw(), draw(), draw(seed=1)
    assert one == same
    drawn = [
        number
        for epochs in (one, other)
        for epoch in epochs
        for batch in epoch
        for numbers in batch
        for number in numbers
    ]
    assert len(set(drawn)) == len(drawn) == 48
    assert random.getstate() == state
    draw(num_workers=0)  # those of this process are the user's
    assert random.getstate() != state


# --- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batchsize", "num_workers", "fitting"), [(4, 3, "[1, 2, 4]"), (8, 5, "[1, 2, 4, 8]"), (7, 2, "[1, 7]")]
)
def test_workers_have_equally_many_rows(batchsize, num_workers, fitting):
    with pytest.raises(sl.ConfigError) as caught:
        load(batchsize=batchsize, num_workers=num_workers)
    assert f"got {batchsize} / {num_workers}: use one of {fitting} workers" in caught.value.message
    with load(batchsize=2, num_workers=5) as loader:  # no worker without a row
        assert rows(next(iter(loader))) == recorded(0, 0, 2, 2)


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (
            lambda worker_id: 1 / worker_id,
            r"make_env\(worker_id=0\) failed: ZeroDivisionError: division by zero. It is c",
        ),
        (lambda num_workers, epoch: 3, "must return an env that is called as env\\(arrays\\), got int"),
        (recorders(num_batches=-1), "num_batches of an env must be a whole number of 0 or more, got -1"),
        (recorders(num_batches=2.5), "got 2.5"),
    ],
)
def test_a_make_env_that_does_not_fit_is_refused_at_once(make_env, message):
    with pytest.raises(sl.ConfigError, match=message):
        load(make_env)


def at_second_call(function):
    """Return an `at_call` that runs `function` before batch 1 of worker 1 in epoch 0."""

    def at_call(env):
        return function(env) if (env.values[:2], env.calls) == ((0, 1), 1) else None

    return at_call


def fail(env):
    raise LookupError("the road ends here")


INFOS = {
    "no dict": (lambda env: [1, 2], sl.ConfigError, "an env must return a dict of lists, got list"),
    "no list": (lambda env: {"mask": np.ones(2)}, sl.ConfigError, "dict of lists by name, got ndarray for 'mask'"),
    "no name": (lambda env: {3: []}, sl.ConfigError, "dict of lists by name, got list for 3"),
    "the name of an array": (lambda env: {"data": []}, sl.ConfigError, "a list named 'data', which is the name of an"),
    "an object": (lambda env: {"a": [[0, {1}]]}, sl.ConfigError, r"infos['a'][0][1] is of type set: a group env"),
    "an array of objects": (lambda env: {"a": [np.array([{}])]}, sl.ConfigError, "infos['a'][0] is of type ndarray"),
    "a tensor that NumPy has not": (
        lambda env: {"a": [torch.ones(2, dtype=torch.bfloat16)]}, sl.ConfigError, "infos['a'][0] cannot be sent",
    ),
    "too early an end": (
        lambda env: next(iter(())), sl.StreamFailed, "raised StopIteration after 1 of 3 batches (its num_batches)",
    ),
    "an exception": (fail, sl.StreamFailed, "reading at step 1: LookupError: the road ends here"),
    "another shape": (
        lambda env: np.zeros((2, 5))[:] + np.zeros((3, 5)), sl.StreamFailed,
        "reading at step 1: ValueError: operands could not be broadcast together with shapes (2,5) (3,5)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", INFOS)
def test_an_env_that_returns_something_else_is_named_with_its_batch(what):
    function, kind, message = INFOS[what]
    with load(recorders(at_call=at_second_call(function))) as loader:
        iterator = iter(loader)
        assert rows(next(iterator)) == recorded(0, 0)
        with pytest.raises(kind) as caught:
            next(iterator)
    error = caught.value
    assert message in error.message
    assert (error.stream, error.offset, error.details["lanes"]) == ("env of lanes 2-3", 1, [2, 3])
    assert "env of lanes 2-3" in str(error)


def test_infos_that_only_some_workers_return():
    with load(recorders(at_call=at_second_call(lambda env: {"worker": [1]}))) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(sl.StreamFailed) as caught:
            next(iterator)
        assert caught.value.message == (
            "env of lanes 2-3 returned the infos ['worker'] for batch 1 of epoch 0, and env of lanes 0-1 returned "
            "['rows', 'worker']: 'rows' would be of some rows only"
        )
        assert (caught.value.stream, caught.value.offset) == ("env of lanes 2-3", 1)
        assert_fails_again(iterator, caught.value)


@pytest.mark.parametrize("num_workers", fast_first([2, 0]))
def test_after_an_error_the_epoch_starts_again(num_workers, tmp_path):
    """The env fails once, at the first time that it gets there."""

    def at_call(env):
        mark = tmp_path / "failed"
        if env.calls == 2 and env.values[1] == max(0, num_workers - 1) and not mark.exists():
            mark.touch()
            raise OSError("the disk was busy")

    envs = max(1, num_workers)
    with load(recorders(at_call=at_call, path=tmp_path), num_workers=num_workers) as loader:
        iterator, got = iter(loader), []
        with pytest.raises(sl.StreamFailed, match="OSError: the disk was busy"):
            got += map(rows, iterator)
        assert [rows(batch) for batch in loader] == [recorded(0, call, 4, envs) for call in range(3)]
        assert [rows(batch) for batch in loader] == [recorded(1, call, 4, envs) for call in range(3)]
    assert (tmp_path / f"closed-0-{envs - 1}").read_text() == ".."


def test_an_env_of_another_length():
    def make_env(worker_id, num_workers, num_streams, epoch):
        return Recorder(worker_id, num_workers, num_streams, epoch, num_batches=3 + worker_id)

    with load(make_env) as loader, pytest.raises(sl.ConfigError) as caught:
        list(loader)
    assert "the env of worker 1 has num_batches=4, but make_env returned one with num_batches=3" in caught.value.message
    assert (caught.value.stream, caught.value.details["stage"]) == ("env of lanes 2-3", "opening")


def test_arrays_of_other_dims_are_named():
    class Env(Recorder):
        def __call__(self, arrays):
            arrays["data"][:, :4] = np.ones((4, 5))

    with load(Env, num_workers=1) as loader, pytest.raises(sl.StreamFailed) as caught:
        next(iter(loader))
    assert "ValueError: could not broadcast input array from shape (4,5)" in caught.value.message
    assert (caught.value.stream, caught.value.offset) == ("env of lanes 0-3", 0)


def test_an_env_that_never_returns():
    def wait(env):
        threading.Event().wait()

    with load(recorders(at_call=at_second_call(wait)), timeout=2.0) as loader:
        iterator = iter(loader)
        wait_until(
            lambda: [(lane.stage, lane.step) for lane in loader.stats().lanes[1:3]] == [("reading", 3), ("reading", 1)]
        )
        assert rows(next(iterator)) == recorded(0, 0)
        with pytest.raises(sl.LoaderTimeout, match=r"waited .* s for lane 2 \(env of lanes 2-3, reading at step 1\)"):
            next(iterator)


def test_a_make_env_that_never_returns():
    def make_env(worker_id, num_workers, num_streams, epoch):
        if worker_id == 1:
            threading.Event().wait()
        return Recorder(worker_id, num_workers, num_streams, epoch)

    with load(make_env, timeout=0.5) as loader:
        iterator = iter(loader)
        wait_until(lambda: loader.stats().lanes[0].rows_ready == 3 and loader.stats().lanes[2].stage == "opening")
        with pytest.raises(sl.LoaderTimeout, match=r"lane 2 \(env of lanes 2-3, opening at step 0\)"):
            next(iterator)


@pytest.mark.slow
def test_many_short_epochs_and_breaks_keep_batches_and_infos_together():
    order = random.Random(3)
    with load(recorders(num_batches=6), max_q_size=3) as loader:
        epoch = 0
        for _ in range(150):
            stop = order.choice([0, 1, 3, 6, 7])
            for call, batch in enumerate(loader):
                assert rows(batch) == recorded(epoch, call)
                assert batch["rows"] == [0, 1, 0, 1]
                if call + 1 == stop:
                    break
            else:
                epoch += 1
            assert loader.epoch == epoch


# --- a GPU ---------------------------------------------------------------------------------------------------


def test_batches_on_a_gpu_are_tensors():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with load(device="cuda", pin_memory=1) as loader:
        for epoch in range(2):
            got = list(loader)
            assert all(batch["data"].device.type == "cuda" for batch in got)
            assert [rows(batch) for batch in got] == [recorded(epoch, call) for call in range(3)]
