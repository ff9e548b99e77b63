from __future__ import annotations

import asyncio
import functools
import gc
import threading

import numpy as np
import pytest

import streamloader as sl
from streamloader.engine.messages import MessageDecoder, MessageKind
from streamloader.engine.ring import Ring, SlotLayout, Status
from streamloader.engine.vector_env import EnvWorkload, find_env_arguments, to_json_value
from streamloader.engine.workload import Grant
from streamloader.streams.base import stream_rng
from streamloader.streams.lane_thread import LaneThread, current_lane_thread

# --- how make_env is called ----------------------------------------------------------------------------------


class WithSize:
    def __init__(self, size=84):
        self.size = size


class WithLanes:
    def __init__(self, lanes, size=84):
        self.lanes = lanes


CALLS = {
    "nothing": (lambda: "", ((), ())),
    "lanes": (lambda lanes: "", ((), ("lanes",))),
    "lanes and rng": (lambda lanes, rng: "", ((), ("lanes", "rng"))),
    "in another order": (lambda rng, lanes: "", ((), ("lanes", "rng"))),
    "rng alone": (lambda rng: "", ((), ("rng",))),
    "by name only": (lambda *, rng=None: "", ((), ("rng",))),
    "one under another name": (lambda rows: "", (("lanes",), ())),
    "two under other names": (lambda rows, generator: "", (("lanes", "rng"), ())),
    "one under its name, one not": (lambda lanes, generator: "", (("lanes", "rng"), ())),
    "what it does not need": (lambda size=84: "", ((), ())),
    "a class": (WithSize, ((), ())),
    "a class that takes lanes": (WithLanes, ((), ("lanes",))),
    "a partial": (functools.partial(lambda size, rng: "", 84), ((), ("rng",))),
    "built in, with no signature": (iter, (("lanes", "rng"), ())),
}


@pytest.mark.parametrize("how", CALLS)
def test_make_env_gets_what_it_takes(how):
    make_env, expected = CALLS[how]
    assert find_env_arguments(make_env) == expected


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (lambda a, b, c: "", r"make_env\(lanes, rng\), make_env\(lanes\) or make_env\(\); it is \(a, b, c\)"),
        (lambda *, size: "", r"it is \(\*, size\)"),
        (WithSize(), "make_env must be a function that returns an env, got WithSize"),
        (None, "got NoneType"),
    ],
)
def test_what_cannot_be_called_is_refused(make_env, message):
    with pytest.raises(sl.ConfigError, match=message):
        find_env_arguments(make_env)


def test_an_env_is_made_with_global_lanes_and_a_generator_of_its_first_lane():
    got = []

    def make_env(lanes, rng):
        got.append((lanes, rng.integers(1 << 62)))
        return len

    for lanes in (range(4, 6), range(6, 8), range(4, 8)):
        assert EnvWorkload.create(make_env, [range(2), range(2, 4)], 4, 8, seed=3).open_env(lanes, 0) is len
    (first, one), (second, two), (_, again) = got
    assert (first, second) == (range(4, 6), range(6, 8))
    assert one == again != two
    EnvWorkload.create(make_env, [range(2)], 4, 8, seed=4).open_env(range(4, 6), 0)
    assert got[-1][1] != one
    assert stream_rng(3, 0, 4).integers(1 << 62) != one  # a lane's own generator is another one


# --- infos ---------------------------------------------------------------------------------------------------

JSON_VALUES = [
    (None, None),
    ({"a": [1, 2.5, "x", True, None], "b": {"c": ()}}, {"a": [1, 2.5, "x", True, None], "b": {"c": []}}),
    ((1, (2, 3)), [1, [2, 3]]),
    (np.float32(0.5), 0.5),
    (np.float64(0.1), 0.1),
    (np.int64(1 << 40), 1 << 40),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    ({"score": np.array([[1, 2], [3, 4]], np.uint8)}, {"score": [[1, 2], [3, 4]]}),
    ([np.array(["a", "bc"])], [["a", "bc"]]),
]


@pytest.mark.parametrize(("value", "expected"), JSON_VALUES)
def test_infos_become_json_values(value, expected):
    assert (repr(to_json_value(value)), type(to_json_value(value))) == (repr(expected), type(expected))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"^infos\['a'\]\[1\] is of type set"),
        ({3: 1}, r"^infos has the key 3: keys in the infos"),
        (b"bytes", "^infos is of type bytes"),
        ([1 + 2j], r"^infos\[0\] is of type complex"),
        ({"a": np.array([None])}, r"^infos\['a'\] is of type ndarray"),
        (np.datetime64("2020-01-01"), "^infos is of type datetime64"),
    ],
)
def test_other_infos_are_refused_and_named(value, message):
    with pytest.raises(sl.ConfigError, match=message):
        to_json_value(value)


# --- the filler of an env ------------------------------------------------------------------------------------


class Env:
    def __init__(self, lanes, log):
        self.log = log
        self.note(list(lanes))
        self.calls = 0

    def note(self, what):
        self.log.append((what, threading.current_thread().name))

    def __call__(self, arrays):
        if self.calls == 2:
            raise StopIteration
        self.note({name: (array.shape, array.base is not None) for name, array in arrays.items()})
        arrays["x"][:] = self.calls + 1
        self.calls += 1
        return {"calls": self.calls}

    def close(self):
        self.note("closed")


def test_a_filler_fills_the_rows_of_its_lanes_and_stays_in_one_thread():
    log, sent = [], []
    fields = {"x": sl.Field((2,), "float32"), "none": sl.Field((0,), "uint8")}
    layout = SlotLayout(fields, 5, None)
    workload = EnvWorkload.create(lambda lanes: Env(lanes, log), [range(2), range(2, 4), range(4, 5)], 10, 20, seed=0)

    async def fill_slots():
        ring = Ring.create(layout, 3)
        thread = LaneThread("the one thread")
        current_lane_thread.set(thread)
        try:
            (filler,) = workload.make_fillers(ring, [2, 3], 10, sent.append)
            assert (filler.row, filler.global_lane, filler.grants_filled, filler.only_run) == (2, 12, 0, None)
            for seq, slot in enumerate((2, 0)):
                await filler.fill(Grant(seq, 0, 0, seq, slot))
                filler.status[Status.SEQ] = seq + 1
            filled = [ring.arrays(slot)["x"].tolist() for slot in (2, 0, 1)]
            status = ring.status[:, : Status.STEP + 1].tolist()
            for seq in (2, 3):  # the env finishes, and is left alone from then on
                await filler.fill(Grant(seq, 0, 0, seq, 1))
            assert ring.status[2:4, Status.STAGE].tolist() == [Status.IDLE] * 2
            await filler.reset()
        finally:
            assert thread.stop(10.0)
            ring.close()
        return filled, status

    filled, status = asyncio.run(fill_slots())
    gc.collect()
    zero = [0.0, 0.0]
    assert filled == [[zero, zero, [1.0] * 2, [1.0] * 2, zero], [zero, zero, [2.0] * 2, [2.0] * 2, zero], [zero] * 5]
    filling = [2, Status.READING, 1, 2]
    assert status == [[0] * 4, [0] * 4, filling, filling, [0] * 4]
    shapes = {"x": ((2, 2), True), "none": ((2, 0), True)}
    assert [what for what, _ in log] == [[12, 13], shapes, shapes, "closed"]
    assert {name for _, name in log} == {"the one thread"}
    messages = [
        (message.kind, message.a, message.c, message.lane, message.payload)
        for message in MessageDecoder().decode(b"".join(sent))
    ]
    assert messages == [
        (MessageKind.INFO, 0, 0, 2, b'{"calls": 1}'),
        (MessageKind.INFO, 1, 0, 2, b'{"calls": 2}'),
        (MessageKind.ENDED, 0, 2, 2, None),
    ]


def test_a_slot_of_an_env_has_its_arrays_and_no_marks():
    layout = SlotLayout({"reset": sl.Field((2,), "bool"), "x": sl.Field((), "float64")}, 3, None)
    assert {name: array.shape for name, array in layout.arrays.items()} == {"reset": (3, 2), "x": (3,)}
    assert layout.data_bytes == 3 * 2 + 3 * 8
    assert SlotLayout({"none": sl.Field((0,))}, 3, None).nbytes > 0  # memory of no size cannot be handed out
