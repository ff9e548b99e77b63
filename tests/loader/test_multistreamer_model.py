"""The batches of a loader equal those of the simple model in engine_data.py, bit for bit, for any number of workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from engine_data import Numbered, assert_same_batches, copies, fingerprint, model_epoch
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_data import Seekable
from tiers import only_fast

import streamloader as sl

LENGTH = st.integers(0, 12)


@st.composite
def cases(draw):
    lengths = draw(st.lists(LENGTH, max_size=9))
    declared = [
        draw(
            st.sampled_from([length, length, length, None])
            if kind == "some"
            else LENGTH
            if kind == "wrong"
            else st.just(length)
        )
        for kind in [draw(st.sampled_from(["right", "some", "wrong"]))]
        for length in lengths
    ]
    return lengths, declared


ARGUMENTS = st.fixed_dictionaries(
    {
        "window": st.integers(1, 7),
        "switch": st.sampled_from(["pack", "align"]),
        "tail": st.sampled_from(["pad", "drop", "cycle"]),
        "shuffle": st.booleans(),
        "seed": st.integers(-5, 1 << 65),
    }
)


def check_against_model(lengths, declared, batch_size, arguments, epoch=0, chunk=1 << 30, epochs=2, **more):
    loader = sl.MultiStreamer(Numbered(lengths, declared, chunk=chunk), batch_size, timeout=60.0, **arguments, **more)
    with loader:
        if epoch:
            loader.set_epoch(epoch)
        for played in range(epoch, epoch + epochs):
            expected = model_epoch(lengths, declared, played, lanes=batch_size, **arguments)
            assert_same_batches(copies(loader), expected)
            if None not in declared:
                if declared == lengths:
                    assert len(loader) == len(expected)
                elif arguments["tail"] != "drop" and len(loader):
                    assert len(loader) <= len(expected)
            else:
                with pytest.raises(sl.LengthUnknown):
                    len(loader)


MODELLED = (cases(), st.integers(1, 5), ARGUMENTS, st.sampled_from([1, 2, 5, 1 << 30]), st.integers(0, 5))


@settings(max_examples=50)
@given(*MODELLED)
def test_batches_are_those_of_the_model(case, batch_size, arguments, chunk, epoch):
    check_against_model(*case, batch_size, arguments, epoch, chunk)


@pytest.mark.slow
@settings(max_examples=1000)
@given(*MODELLED)
def test_batches_are_those_of_the_model_in_many_cases(case, batch_size, arguments, chunk, epoch):
    check_against_model(*case, batch_size, arguments, epoch, chunk)


BROKEN_OFF = (
    cases(),
    st.integers(1, 4),
    ARGUMENTS,
    st.lists(st.tuples(st.none() | st.integers(0, 3), st.integers(0, 8)), min_size=2, max_size=6),
    st.sampled_from([None, 1, 3]),
)


@settings(max_examples=20)
@given(*BROKEN_OFF)
def test_iterations_broken_off_anywhere_change_nothing(case, batch_size, arguments, iterations, prefetch_factor):
    check_broken_off(case, batch_size, arguments, iterations, prefetch_factor)


@pytest.mark.slow
@settings(max_examples=400)
@given(*BROKEN_OFF)
def test_iterations_broken_off_in_many_cases_change_nothing(case, batch_size, arguments, iterations, prefetch_factor):
    check_broken_off(case, batch_size, arguments, iterations, prefetch_factor)


def check_broken_off(case, batch_size, arguments, iterations, prefetch_factor):
    epoch = 0
    with sl.MultiStreamer(
        Numbered(*case), batch_size, timeout=60.0, prefetch_factor=prefetch_factor, **arguments
    ) as loader:
        for chosen, taken in iterations:
            if chosen is not None:
                loader.set_epoch(chosen)
                epoch = chosen
            expected = model_epoch(*case, epoch, lanes=batch_size, **arguments)
            got = [
                {name: array.copy() for name, array in batch.numpy().items()}
                for batch in itertools.islice(loader, taken)
            ]
            assert_same_batches(got, expected[:taken])
            epoch += taken > 0  # an iteration without a requested batch does not count


def plain(**arguments):
    return {"window": 3, "switch": "pack", "tail": "pad", "shuffle": False, "seed": 0} | arguments


def test_many_lanes_that_end_earlier_and_earlier_with_drop():
    # Each lane that ends moves the end of the epoch forward while the next one is already being made.
    lengths = [7, 6, 5, 4, 3, 2]
    check_against_model(lengths, [30] * 6, 6, plain(window=1, tail="drop"))


def test_one_stream_turns_out_longer_while_others_start_over():
    # The lanes that go on with the next epoch have to come back and repeat on from where they were.
    check_against_model([4, 30, 5, 2], [4, 6, 5, 2], 4, plain(window=2, tail="cycle"), epochs=3)


def test_every_stream_turns_out_longer():
    check_against_model([9, 14, 30, 2], [1, 2, 3, 1], 3, plain(window=2), epochs=3)


@pytest.mark.parametrize("tail", ["pad", "drop", "cycle"])
def test_a_model_of_a_case_that_can_be_checked_by_eye(tail):
    batches = model_epoch([4, 2, 1], [4, 2, 1], 0, lanes=2, window=3, shuffle=False, tail=tail)
    streams = [batch["stream"].tolist() for batch in batches]
    resets = [batch["reset"].astype(int).tolist() for batch in batches]
    repeats = [batch["repeat"].astype(int).tolist() for batch in batches]
    padded = [[[0, 0, 0], [1, 1, 2]], [[0, -1, -1], [-1, -1, -1]]]
    assert (
        streams
        == {
            "pad": padded,
            "drop": padded[:1],
            "cycle": [[[0, 0, 0], [1, 1, 2]], [[0, 0, 0], [1, 1, 2]]],
        }[tail]
    )
    assert resets[0] == [[1, 0, 0], [1, 0, 1]]
    if tail == "cycle":
        assert resets[1] == [[0, 1, 0], [1, 0, 1]]
        assert repeats == [[[0] * 3] * 2, [[0, 1, 1], [1, 1, 1]]]


# --- topology ------------------------------------------------------------------------------------------------

TOPOLOGIES = {
    "batch size that workers do not divide": ([9, 4, 7, 1, 5, 12, 3, 8, 2], 5, 4, {}),
    "more lanes than streams": ([6, 3], 7, 4, {"tail": "cycle"}),
    "empty streams": ([0, 5, 0, 0, 4, 3, 0], 3, 2, {"switch": "align"}),
    "wrong and unknown lengths": ([7, 3, 9, 2, 4], 4, 3, {"declared": [7, None, 2, 2, 9]}),
}


@pytest.mark.parametrize(
    ("name", "workers"),
    only_fast(
        itertools.product(TOPOLOGIES, (0, 1, 2, 3, 7)),
        fast=[*((next(iter(TOPOLOGIES)), workers) for workers in (0, 7)), *((name, 3) for name in TOPOLOGIES)],
    ),
)
def test_identical_bytes_on_any_number_of_workers(name, workers):
    lengths, batch_size, window, more = TOPOLOGIES[name]
    arguments = {"window": window, "switch": "pack", "tail": "pad", "shuffle": True, "seed": 5} | more
    declared = arguments.pop("declared", lengths)
    expected = [
        batch for epoch in range(2) for batch in model_epoch(lengths, declared, epoch, lanes=batch_size, **arguments)
    ]
    with sl.MultiStreamer(
        Numbered(lengths, declared), batch_size, num_workers=workers, timeout=60.0, **arguments
    ) as loader:
        assert fingerprint(copies(loader) + copies(loader)) == fingerprint(expected)


SHAPES = {
    "one stream": ([11], 3, 4),
    "no streams": ([], 3, 4),
    "all streams empty": ([0, 0, 0], 2, 4),
    "streams of one step": ([1] * 9, 2, 4),
    "windows longer than streams": ([3, 2, 5, 1], 2, 9),
    "windows longer than everything": ([3, 2], 1, 50),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tail", ["pad", "drop", "cycle"])
def test_unusual_data_sets(name, tail):
    lengths, batch_size, window = SHAPES[name]
    for switch, declared in itertools.product(("pack", "align"), (lengths, [None] * len(lengths))):
        check_against_model(lengths, declared, batch_size, plain(window=window, tail=tail, switch=switch))


NO_STEPS = {"no streams": ([], []), "empty": ([0, 0], [0, 0]), "empty, of unknown length": ([0, 0], [None, None])}


@pytest.mark.parametrize(
    ("name", "workers"),
    only_fast(
        itertools.product(NO_STEPS, (0, 2)),
        fast=[*((name, 0) for name in NO_STEPS), ("empty, of unknown length", 2)],
    ),
)
def test_no_steps_at_all_in_workers(name, workers):
    check_against_model(*NO_STEPS[name], 2, plain(), num_workers=workers, epochs=3)


@pytest.mark.parametrize("prefetch_factor", only_fast([1, 2, 5], fast=[1, 5]))
def test_how_far_ahead_workers_are_changes_no_byte(prefetch_factor):
    check_against_model([9, 4, 7, 1, 5], [9, None, 7, 1, 5], 3, plain(), prefetch_factor=prefetch_factor, num_workers=2)


def test_a_ring_of_few_slots_changes_no_byte():
    # Fields this big leave the ring at its smallest, so that slots are used again and again.
    def make(item):
        for step in range(item):
            yield np.full(1 << 19, step, np.uint8)

    lengths = [7, 3, 9, 2, 4]
    streams = sl.IterStreams(lengths, make, fields=sl.Field((1 << 19,), "uint8"), lengths=lambda item: item)
    with sl.MultiStreamer(streams, 2, 2, num_workers=2, prefetch_factor=1, shuffle=False, timeout=60.0) as loader:
        assert loader.stats().slots == 3
        for _ in range(2):
            expected = model_epoch(lengths, lengths, 0, lanes=2, window=2, shuffle=False)
            count = 0
            for batch, wanted in zip(loader, expected, strict=True):
                assert np.array_equal(batch.step, wanted["step"])
                assert np.array_equal(batch.data[:, :, 0], wanted["step"] * wanted["valid"])
                assert bool((batch.data == batch.data[:, :, :1]).all())
                count += 1
            assert count == len(expected)
        assert loader.stats().copied == 0


# --- other kinds of streams, on several topologies -----------------------------------------------------------


async def async_noise(item, rng):
    for _ in range(item):
        yield rng.normal(size=3)


def test_async_generators_on_any_number_of_workers():
    streams = sl.IterStreams([5, 9, 2, 7], async_noise, fields=sl.Field((3,), "float32"))
    sums = set()
    for workers in (0, 2):
        with sl.MultiStreamer(streams, 3, 4, num_workers=workers, seed=1, timeout=60.0) as loader:
            sums.add(fingerprint(copies(loader) + copies(loader)))
    assert len(sums) == 1


def test_text_runs_on_in_its_lane():
    letters = "abcdefghijklmnopqrstuvwxyz0"
    texts = ["".join(f"{letter}_{number};" for number in range(6)) for letter in letters]
    streams = sl.TextStreams.from_texts(texts)
    rows = {}
    for workers in (0, 3):
        with sl.MultiStreamer(streams, 8, 12, num_workers=workers, shuffle=False, timeout=60.0) as loader:
            rows[workers] = [[bytes(row).decode() for row in batch.numpy()["data"]] for batch in loader]
    assert rows[0] == rows[3]
    assert rows[0][0] == [f"{letter}_0;{letter}_1;{letter}_2;" for letter in letters[:8]]
    assert rows[0][1] == [f"{letter}_3;{letter}_4;{letter}_5;" for letter in letters[:8]]
    assert rows[0][2] == [f"{letter}_0;{letter}_1;{letter}_2;" for letter in letters[8:16]]


def test_a_real_video_on_any_number_of_workers(clips):
    streams = sl.VideoStreams(
        [clips["carphone_pristine"], clips["carphone_distorted"]], size=(36, 44), max_frames=20, random_start=True
    )
    sums = set()
    for workers in (0, 2):
        with sl.MultiStreamer(streams, 2, 6, num_workers=workers, seed=2, timeout=60.0) as loader:
            assert len(loader) == 4
            batches = copies(loader) + copies(loader)
            assert batches[0]["data"].shape == (2, 6, 3, 36, 44)
            assert batches[0]["data"].std() > 10
            sums.add(fingerprint(batches))
    assert len(sums) == 1


# --- lanes without a step of their own --------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["pack", "align"])
@pytest.mark.parametrize(
    ("lengths", "declared", "lanes"),
    [
        ([9, 0], None, 2),  # the second lane has an empty stream
        ([9, 4, 0, 0, 0], None, 3),
        ([9, 4, 0], None, 5),  # and others have none
        ([0, 9], [None, None], 2),  # the lengths show only while the streams are read
        ([0, 9, 0, 5], [None] * 4, 2),
        ([9, 0, 5], [9, 7, 5], 3),  # a stream is shorter than declared
    ],
)
def test_a_cycling_lane_whose_streams_are_all_empty_repeats_another_lane(lengths, declared, lanes, switch):
    options = {"shuffle": False, "switch": switch, "tail": "cycle"}
    expected = model_epoch(lengths, declared or lengths, 0, lanes=lanes, window=4, **options)
    assert all(batch["valid"].any(1).all() for batch in expected)  # no lane is padding
    assert any(batch["repeat"][lane].all() for batch in expected[:1] for lane in range(lanes))
    dataset = Seekable(lengths, declared)
    for num_workers in (0, 2):
        with sl.MultiStreamer(dataset, lanes, 4, num_workers=num_workers, timeout=60.0, **options) as loader:
            iterator, states, got = iter(loader), [], []
            for batch in iterator:
                got.append({name: array.copy() for name, array in batch.numpy().items()})
                states.append(loader.state_dict())
            assert_same_batches(got, expected)
            for number, state in enumerate(states[:-1]):
                loader.load_state_dict(state)
                assert_same_batches(copies(loader), expected[number + 1 :])


def test_a_cycling_lane_whose_streams_all_fail_repeats_another_lane():
    def at_step(stream, _):
        if stream == 1:
            raise LookupError("broken")

    options = {"shuffle": False, "tail": "cycle", "on_error": "skip", "timeout": 60.0}
    with sl.MultiStreamer(Numbered([9, 5], at_step=at_step), 2, 3, **options) as loader:
        streams = [batch.stream.tolist() for batch in loader]
        assert {entry.key for entry in loader.quarantined} == {"s1"}
    assert streams == [[[0] * 3, [0] * 3]] * 3
