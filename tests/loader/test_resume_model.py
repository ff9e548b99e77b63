"""Coherence, resume, crashes and changes of topology combined, compared with a model that only lists steps."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time

import numpy as np
import pytest
from engine_data import FILL, Numbered, draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resume_data import Seekable, plain

import streamloader as sl
from streamloader.engine.plan import make_plan
from streamloader.streams.base import stream_rng

DEADLINE = 60.0

# --- the model -------------------------------------------------------------------------------------------------------


def model(plan, epoch, lengths):
    """List an epoch: for each batch, for each lane, T times (stream, step, whether repeated), or None for padding."""
    lanes, own = [], []
    for lane in range(plan.lanes):
        listed = plan.lane(epoch, lane)
        first, again = [], []
        order = listed.ordinals.tolist()
        repeated = order if any(lengths[stream] for stream in order) else listed.substitute.tolist()
        for cells, repeat, streams in ((first, False, order), (again, True, repeated)):
            for stream in streams:
                cells.extend((stream, step, repeat) for step in range(lengths[stream]))
                if plan.switch == "align":
                    cells.extend([None] * (-len(cells) % plan.window))
        first = [] if listed.borrowed else first
        again = again if plan.tail == "cycle" else []
        lanes.append(itertools.chain(first, itertools.cycle(again), itertools.repeat(None)))
        own.append(len(first))
    started, whole = -(-max(own) // plan.window), min(own) // plan.window
    if plan.tail == "drop":
        count = whole if plan.batches is None else min(whole, plan.batches)
    else:
        count = 0 if plan.batches == 0 else max(started, plan.batches or 0)
    return [[list(itertools.islice(lane, plan.window)) for lane in lanes] for _ in range(count)]


def check_batch(parts, rows, seed, epoch):
    """Compare the batches of all ranks, lane by lane, with a batch of the model."""
    got = {name: np.concatenate([part.numpy()[name] for part in parts]) for name in parts[0].numpy()}
    drawn = {cell[0]: draw(stream_rng(seed, epoch, cell[0])) for row in rows for cell in row if cell is not None}
    for lane, row in enumerate(rows):
        cells = [(-1, -1, False) if cell is None else cell for cell in row]
        marks = zip(*(got[name][lane].tolist() for name in ("stream", "step", "repeat")), strict=True)
        assert list(marks) == cells, f"lane {lane}"
        assert got["valid"][lane].tolist() == [cell is not None for cell in row]
        assert got["reset"][lane].tolist() == [cell is not None and cell[1] == 0 for cell in row]
        assert got["time"][lane].tolist() == [float(step) for _, step, _ in cells]
        data = [[FILL] * 3 if cell is None else [cell[0], cell[1], drawn[cell[0]]] for cell in row]
        assert got["data"][lane].tolist() == data


# --- a training that is moved about ----------------------------------------------------------------------------------


class Training:
    """Runs the batches of a case on some ranks and workers. Each rank is a loader of this process."""

    def __init__(self, case, world, workers):
        self.dataset, self.lengths, self.lanes, self.arguments = case
        self.plan = make_plan(self.dataset.declared, lanes=self.lanes, **self.arguments)
        self.epoch = self.batch = 0
        self.left = False  # the loop, and no batch of the next one was requested yet
        self.loaders = []
        self.restarts = 0
        self._start(world, workers)

    def _start(self, world, workers):
        self.loaders = [
            sl.MultiStreamer(
                self.dataset,
                self.lanes // world,
                rank=rank,
                world_size=world,
                num_workers=workers,
                timeout=DEADLINE,
                prefetch_factor=1 + rank,
                **self.arguments,
            )
            for rank in range(world)
        ]
        self.iterators = None
        self.killed = {}  # (rank, worker) -> batches taken since

    def take(self, count):
        if self.left:
            self.epoch, self.batch, self.left = self.epoch + 1, 0, False
        for _ in range(count):
            if self.iterators is None:
                self.iterators = [iter(loader) for loader in self.loaders]
            parts = [next(iterator, None) for iterator in self.iterators]
            expected = model(self.plan, self.epoch, self.lengths)
            where = f"epoch {self.epoch}, batch {self.batch} of {len(expected)}"
            assert [part is None for part in parts] == [self.batch == len(expected)] * len(parts), where
            if parts[0] is None:
                self.epoch, self.batch, self.iterators = self.epoch + 1, 0, None
            else:
                check_batch(parts, expected[self.batch], self.arguments["seed"], self.epoch)
                self.batch += 1
                self.killed = {worker: since + 1 for worker, since in self.killed.items()}
        for loader in self.loaders:
            state = loader.state_dict()
            assert (state["epoch"], state["batch"]) == (self.epoch, self.batch)

    def leave(self):
        """Leave the loop, if one is in progress, and start the next, which counts once a batch is requested."""
        if self.iterators is not None:
            self.iterators = [iter(loader) for loader in self.loaders]
            self.left = True

    def move(self, world, workers, how):
        """Save, and resume on another topology."""
        states = [plain(loader.state_dict()) for loader in self.loaders]
        self.close()
        self.left = False
        self._start(world, workers)
        if how == "merged":
            states = plain(sl.merge_states(states))
        elif how == "one" and self.dataset.declared == self.lengths:
            states = states[-1]  # where the others are follows from the lengths
        for loader in self.loaders:
            loader.load_state_dict(states)

    def kill(self, rank, worker):
        """Kill a worker, unless it may not have delivered a step since it was last killed."""
        loader = self.loaders[rank % len(self.loaders)]
        pids = [] if loader._supervisor is None else loader._supervisor.pids
        if not pids:
            return
        name = (rank % len(self.loaders), worker % len(pids))
        if self.killed.get(name, 1 << 30) > 2 * loader.stats().slots:
            os.kill(pids[name[1]], signal.SIGKILL)
            self.killed[name] = 0

    def close(self):
        for loader in self.loaders:
            if loader._supervisor is not None:
                self.restarts += loader.stats().restarts
            loader.close()


# --- what may happen -------------------------------------------------------------------------------------------------

LENGTH = st.integers(0, 12)


def slowly(stream, step):
    time.sleep(0.0005)  # so that a kill meets rows that are half filled


@st.composite
def cases(draw_, processes=False):
    lengths = draw_(st.lists(LENGTH, max_size=8))
    kind = draw_(st.sampled_from(["right", "right", "unknown", "shorter", "longer", "wrong"]))
    declared = [
        draw_(
            {
                "right": st.just(length),
                "unknown": st.sampled_from([length, None]),
                "shorter": st.integers(length, 14),
                "longer": st.integers(0, length),
                "wrong": LENGTH,
            }[kind]
        )
        for length in lengths
    ]
    arguments = {
        "window": draw_(st.integers(1, 6)),
        "switch": draw_(st.sampled_from(["pack", "align"])),
        "tail": draw_(st.sampled_from(["pad", "drop", "cycle"])),
        "shuffle": draw_(st.booleans()),
        "seed": draw_(st.integers(-5, 1 << 65)),
    }
    streams = draw_(st.sampled_from([Seekable, Seekable, Numbered]))
    chunk = draw_(st.sampled_from([1, 2, 5, 1 << 30]))
    dataset = streams(lengths, declared, chunk=chunk, at_step=slowly if processes else None)
    lanes = draw_(st.sampled_from([1, 2, 3, 4, 6]))
    # Ranks have to agree on the end of an epoch before it is played: on a length that is known, and not too short.
    agreed = None not in declared and all(map(int.__le__, lengths, declared))
    several = declared == lengths or (agreed and arguments["tail"] != "drop")
    worlds = [world for world in (1, 2, 3, 4, 6) if lanes % world == 0] if several else [1]
    return (dataset, lengths, lanes, arguments), worlds


def actions(workers):
    world, number = st.integers(0, 9), st.integers(0, 3)
    how = st.sampled_from(["list", "merged", "one"])
    some = [
        st.tuples(st.just("take"), st.integers(1, 7)),
        st.tuples(st.just("move"), world, st.sampled_from(workers), how),
        st.tuples(st.just("leave")),
    ]
    if workers != [0]:
        some.append(st.tuples(st.just("kill"), number, number))
    return st.lists(st.one_of(some), min_size=2, max_size=12)


def play(case, worlds, listed, workers=0, most=8):
    training = Training(case, worlds[-1] if workers == 0 else worlds[0], workers)
    with contextlib.closing(training):
        for action, *arguments in listed:
            if action == "move":
                world, number, how = arguments
                world = worlds[world % len(worlds)]
                training.move(world, min(number, most // world), how)
            else:
                getattr(training, action)(*arguments)
        training.take(3)
    return training


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), actions([0]))
def test_moving_about_changes_no_step(case, listed):
    play(*case, listed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), actions([0]))
def test_moving_about_changes_no_step_in_many_cases(case, listed):
    play(*case, listed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases(processes=True), actions([0, 1, 2, 3]))
def test_neither_do_workers_that_are_killed_in_many_cases(case, listed):
    play(*case, listed, workers=2, most=4)


def test_a_history_with_all_of_it():
    """A fixed example, in every run: two ranks become one, then four, then two; workers die; a loop is left."""
    dataset = Seekable([40, 31, 7, 0, 22, 18, 5, 26], at_step=slowly)
    arguments = {"window": 3, "switch": "pack", "tail": "pad", "shuffle": True, "seed": 7}
    kill = [("take", 2), ("kill", 0, 0), ("kill", 1, 0), ("take", 8)]
    listed = [
        *kill,
        ("move", 0, 2, "list"),  # to one rank
        ("take", 2),
        ("kill", 0, 0),
        ("kill", 0, 1),
        ("take", 8),
        ("leave",),
        ("take", 1),
        ("move", 2, 0, "merged"),  # to four
        ("take", 3),
        ("move", 1, 0, "one"),  # to two again
        ("take", 3),
    ]
    training = play((dataset, dataset.lengths, 4, arguments), [1, 2, 4], [("move", 1, 1, "list"), *listed], most=2)
    assert training.epoch >= 2
    assert training.restarts == 4
