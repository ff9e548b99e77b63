"""The rank of a process. All ranks together deliver the batches of one loader with all lanes."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from engine_data import Numbered, assert_same_batches, copies, model_epoch
from optional_torch import torch
from resume_data import Seekable, arrays, rows_of_ranks
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.distributed import resolve_rank

LANES, WINDOW, DEADLINE = 8, 3, 60.0
UNEVEN = [5, 40, 3, 7, 4, 0, 11, 2, 23, 1, 6, 9]
SPLITS = [(1, 8), (2, 4), (4, 2), (8, 1)]  # (world_size, batch_size)
MODES = [
    (switch, tail, shuffle) for switch in ("pack", "align") for tail in ("pad", "drop", "cycle") for shuffle in (1, 0)
]


@pytest.fixture(autouse=True)
def no_rank_from_outside(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def gloo():
    """Make this process the only one of a group."""
    pytest.importorskip("torch.distributed")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def environ(monkeypatch, rank, world_size):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
        if value is not None:
            monkeypatch.setenv(name, value)


# --- which rank is this? ---------------------------------------------------------------------------------------------


def test_alone_by_default():
    assert resolve_rank(None, None) == (0, 1)


def test_as_the_environment_has_it(monkeypatch):
    environ(monkeypatch, "2", "4")
    assert resolve_rank(None, None) == (2, 4)


@pytest.mark.usefixtures("gloo")
def test_a_process_group_comes_before_the_environment(monkeypatch):
    environ(monkeypatch, "2", "4")
    assert resolve_rank(None, None) == (0, 1)


@pytest.mark.usefixtures("gloo")
def test_arguments_come_first(monkeypatch):
    environ(monkeypatch, "2", "4")
    assert resolve_rank(3, 5) == (3, 5)
    assert resolve_rank(np.int64(1), np.int32(2)) == (1, 2)


def test_arguments_do_not_need_a_sound_environment(monkeypatch):
    environ(monkeypatch, "first", None)
    assert resolve_rank(0, 2) == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, None), "rank= was given without world_size="),
        ((None, 2), "world_size= was given without rank="),
        ((0, 0), "got rank 0 of 0 from rank= and world_size="),
        ((2, 2), r"rank must be in 0 \.\. world_size - 1, got rank 2 of 2"),
        ((-1, 2), "got rank -1 of 2"),
        (("0", 2), "integers, got '0' and 2"),
        ((0, 2.0), "integers, got 0 and 2.0"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(sl.ConfigError, match=message):
        resolve_rank(*arguments)


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [
        ("1", None, "variable RANK is set, but WORLD_SIZE is not"),
        (None, "2", "variable WORLD_SIZE is set, but RANK is not"),
        ("first", "2", "variable RANK is 'first', which is not a number"),
        ("", "2", "variable RANK is ''"),
        ("-1", "2", "variable RANK is '-1'"),
        ("0", "2.0", r"variable WORLD_SIZE is '2\.0'"),
        ("0", "²", "variable WORLD_SIZE is '²'"),
        ("2", "2", "got rank 2 of 2 from the environment variables RANK and WORLD_SIZE"),
        ("0", "0", "got rank 0 of 0 from the environment"),
    ],
)
def test_an_invalid_environment(monkeypatch, rank, world_size, message):
    environ(monkeypatch, rank, world_size)
    with pytest.raises(sl.ConfigError, match=message):
        resolve_rank(None, None)
    with pytest.raises(sl.ConfigError, match=message):
        sl.MultiStreamer(Numbered([3]), 1, 2)


def test_torch_is_not_imported_to_find_out():
    program = "import sys, streamloader.distributed as d; print(d.resolve_rank(None, None), *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"RANK": "1", "WORLD_SIZE": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("(1, 3) "), done.stderr
    assert not {"torch", "numpy"} & set(done.stdout.split())


def test_loaders_find_out_by_themselves(monkeypatch):
    def name_lanes(lanes):
        def env(arrays):
            arrays["data"][:, 0] = lanes

        return env

    environ(monkeypatch, "1", "2")
    with sl.MultiStreamer(Numbered(UNEVEN), 4, WINDOW) as found:
        got = copies(found)
    with sl.MultiStreamer(Numbered(UNEVEN), 4, WINDOW, rank=1, world_size=2) as explicit:
        assert_same_batches(got, copies(explicit))
    assert_same_batches(got, [{k: v[4:] for k, v in b.items()} for b in whole(UNEVEN)])
    with sl.MultiStreamer.from_env(name_lanes, (1,), 3, num_workers=0) as envs:
        assert next(iter(envs)).data.tolist() == [[3.0], [4.0], [5.0]]


# --- what ranks deliver together -------------------------------------------------------------------------------------


def whole(lengths, declared=None, epoch=0, lanes=LANES, **mode):
    """Return the batches of all lanes according to the model."""
    return model_epoch(lengths, declared or lengths, epoch, lanes=lanes, window=WINDOW, **mode)


def loaders(world, lengths, declared=None, *, lanes=LANES, workers=(0,), **mode):
    """Create a loader for each rank; rank r has workers[r] workers, and `workers` is repeated as necessary."""
    return [
        sl.MultiStreamer(
            Seekable(lengths, declared),
            lanes // world,
            WINDOW,
            rank=rank,
            world_size=world,
            num_workers=workers[rank % len(workers)],
            timeout=DEADLINE,
            **mode,
        )
        for rank in range(world)
    ]


def played(world, *arguments, epochs=1, **more):
    """Return the batches of each rank for each epoch, and check len()."""
    parts = []
    for loader in loaders(world, *arguments, **more):
        with loader:
            parts.append([copies(loader) for _ in range(epochs)])
            assert [len(epoch) for epoch in parts[-1]] == [len(loader)] * epochs
    return [list(epoch) for epoch in zip(*parts, strict=True)]


@pytest.mark.parametrize(
    ("switch", "tail", "shuffle"),
    only_fast(MODES, fast=[mode for mode in MODES if mode[2] or mode[:2] in (("pack", "pad"), ("align", "cycle"))]),
)
def test_any_split_delivers_the_same_batches(switch, tail, shuffle):
    mode = {"switch": switch, "tail": tail, "shuffle": bool(shuffle)}
    for world, _ in SPLITS:
        for epoch, parts in enumerate(played(world, UNEVEN, epochs=2, seed=3, **mode)):
            assert_same_batches(rows_of_ranks(parts), whole(UNEVEN, epoch=epoch, seed=3, **mode))


@pytest.mark.parametrize("workers", fast_first([[0, 1, 2, 0], [2], [2, 1], [0, 0, 0, 1, 0, 0, 0, 1]]))
@pytest.mark.parametrize(("switch", "tail"), fast_first([("pack", "pad"), ("align", "cycle")]))
def test_any_split_over_ranks_and_workers_delivers_the_same_batches(switch, tail, workers):
    """Each rank has a number of workers of its own."""
    mode = {"switch": switch, "tail": tail}
    (parts,) = played(len(workers), UNEVEN, workers=workers, **mode)
    assert_same_batches(rows_of_ranks(parts), whole(UNEVEN, **mode))


LITTLE = {
    "fewer streams than lanes": [7, 4, 30],
    "a single stream": [9],
    "empty streams": [0, 5, 0, 0, 4, 3, 0, 0, 0, 0],
    "one each": [1] * 8,
    "one more": [1] * 9,
    "no steps": [0] * 3,
    "no streams": [],
}


@pytest.mark.parametrize(
    ("what", "tail"),
    only_fast(
        itertools.product(LITTLE, ("pad", "drop", "cycle")),
        fast=[*zip(LITTLE, itertools.cycle(("pad", "drop", "cycle"))), ("one more", "cycle")],
    ),
)
def test_ranks_that_have_little_or_nothing_to_play(what, tail):
    lengths = LITTLE[what]
    wanted = whole(lengths, tail=tail)
    for world, _ in SPLITS:
        (parts,) = played(world, lengths, tail=tail)
        assert_same_batches(rows_of_ranks(parts), wanted)


@pytest.mark.parametrize(("switch", "tail"), [(s, t) for s in ("pack", "align") for t in ("pad", "drop", "cycle")])
@pytest.mark.parametrize("seeds", fast_first([2, 25]))
def test_the_length_is_the_same_on_all_ranks_and_for_all_seeds(switch, tail, seeds):
    mode = {"switch": switch, "tail": tail, "lanes": 6}
    lengths = {}
    for seed in range(seeds):
        for world in (1, 2, 3, 6):
            for rank, loader in enumerate(loaders(world, UNEVEN, seed=seed, **mode)):
                lengths[seed, world, rank] = len(loader)
    assert set(lengths.values()) == {len(whole(UNEVEN, **mode))}
    assert lengths[0, 1, 0] > 0
    for seed in (0, 7, -1, 1 << 70):  # and it is true: `played` compares
        (parts,) = played(3, UNEVEN, seed=seed, **mode)
        assert_same_batches(rows_of_ranks(parts), whole(UNEVEN, seed=seed, **mode))


# --- lengths that are unknown, or wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["pad", "cycle"])
def test_with_unknown_lengths_each_rank_ends_with_its_own_lanes(tail):
    """The steps beyond the batches of all lanes are padding or repeats."""
    unknown = [None] * len(UNEVEN)
    wanted = whole(UNEVEN, unknown, tail=tail)
    counts = []
    for rank, loader in enumerate(loaders(4, UNEVEN, unknown, tail=tail)):
        with loader:
            got = copies(loader)
        rows = [{name: array[2 * rank : 2 * rank + 2] for name, array in batch.items()} for batch in wanted]
        assert_same_batches(got, rows[: len(got)])
        assert not any((batch["valid"] & ~batch["repeat"]).any() for batch in rows[len(got) :])
        assert got[-1]["valid"][~got[-1]["repeat"]].any(), "a batch too many"
        counts.append(len(got))
    assert max(counts) == len(wanted)
    assert min(counts) < len(wanted), "this data shows nothing"


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_stream_that_proves_shorter_ends_no_rank_earlier(world):
    shorter = [min(length, 4) for length in UNEVEN]
    (parts,) = played(world, shorter, UNEVEN)
    wanted = whole(shorter, UNEVEN)  # padded to the planned end
    assert len(wanted) == len(whole(UNEVEN))
    assert_same_batches(rows_of_ranks(parts), wanted)


@pytest.mark.parametrize("world", [2, 4])
def test_a_stream_that_proves_longer_fails_where_it_is_played_and_nowhere_else(world):
    longer = [60 if length == 40 else length for length in UNEVEN]
    planned = len(whole(UNEVEN))
    wanted = whole(longer, UNEVEN)
    failed = []
    for rank, loader in enumerate(loaders(world, longer, UNEVEN)):
        size = LANES // world
        rows = [{n: a[rank * size : (rank + 1) * size] for n, a in batch.items()} for batch in wanted[:planned]]
        got = []
        with loader:
            try:
                got.extend(arrays(batch) for batch in loader)  # keeps those before an error
            except sl.CorruptStream as error:
                failed.append(error.stream)
                assert_same_batches(got, rows[: len(got)])
            else:
                assert_same_batches(got, rows)
    assert failed == ["s1"]
