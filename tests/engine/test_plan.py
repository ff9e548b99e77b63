from __future__ import annotations

import heapq
import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError, LengthUnknown
from streamloader.engine.plan import make_plan

LENGTHS = st.lists(st.integers(0, 40), max_size=30)
SEEDS = st.integers(-(1 << 70), 1 << 70)
EPOCHS = st.integers(0, 1 << 40)


def lists(plan, epoch=0):
    return [plan.lane(epoch, lane).ordinals.tolist() for lane in range(plan.lanes)]


def loads(plan, lengths, epoch=0):
    return sorted(sum(lengths[ordinal] for ordinal in listed) for listed in lists(plan, epoch))


def test_longest_streams_are_dealt_first_to_the_least_loaded_lane():
    plan = make_plan([3, 7, 5, 1, 4], lanes=2, window=2, shuffle=False)
    # 7 | 5 -> 7 | 5+4 -> 7+3 | 9 -> 10 | 9+1; inside a lane in the order of the dataset
    assert lists(plan) == [[0, 1], [2, 3, 4]]
    assert plan.batches == 5


def test_ties_go_to_the_earlier_stream_and_the_lower_lane():
    assert lists(make_plan([2] * 7, lanes=3, window=1, shuffle=False)) == [[0, 3, 6], [1, 4], [2, 5]]


def test_unknown_lengths_are_dealt_in_turn():
    plan = make_plan([None, 9, None, 1, 1], lanes=2, window=4, shuffle=False)
    assert lists(plan) == [[0, 2, 4], [1, 3]]
    assert plan.batches is None


@pytest.mark.parametrize(
    ("switch", "tail", "batches"),
    [
        ("pack", "pad", 4),  # loads 10 and 9: ceil(10 / 3)
        ("pack", "cycle", 4),
        ("pack", "drop", 3),  # floor(9 / 3)
        ("align", "pad", 4),  # windows 3 | 2 -> 3 | 2 + 1 -> 3 + 1 | 3 -> 4 | 3 + 1
        ("align", "cycle", 4),
        ("align", "drop", 4),
    ],
)
def test_batches_of_an_epoch(switch, tail, batches):
    assert make_plan([3, 7, 5, 1, 3], lanes=2, window=3, switch=switch, tail=tail).batches == batches


def dealt_one_by_one(lengths, lanes):
    """The rule, as one would write it down."""
    listed = [[] for _ in range(lanes)]
    heap = [(0, lane) for lane in range(lanes)]
    for ordinal in sorted(range(len(lengths)), key=lambda ordinal: -lengths[ordinal]):
        load, lane = heapq.heappop(heap)
        listed[lane].append(ordinal)
        heapq.heappush(heap, (load + lengths[ordinal], lane))
    return [sorted(ordinals) for ordinals in listed]


RUNS = st.lists(
    st.tuples(
        st.integers(0, 9) | st.integers(0, 5000) | st.integers(0, 10**15), st.integers(1, 3) | st.integers(1, 900)
    ),
    max_size=6,
)


@given(RUNS, st.integers(1, 20), st.randoms(use_true_random=False))
def test_runs_of_equal_lengths_are_dealt_as_one_by_one(runs, lanes, random):
    lengths = [length for length, count in runs for _ in range(count)]
    random.shuffle(lengths)
    assert lists(make_plan(lengths, lanes=lanes, window=1, shuffle=False)) == dealt_one_by_one(lengths, lanes)


@given(st.lists(st.integers(0, 1 << 60), max_size=8), st.integers(1, 1000))
def test_lengths_beyond_any_that_can_be_played_are_dealt_alike(lengths, lanes):
    plan = make_plan(lengths, lanes=lanes, window=1, shuffle=False)
    assert lists(plan) == dealt_one_by_one(lengths, lanes)


@given(st.lists(st.integers(0, 40) | st.none(), max_size=30), st.integers(1, 12), SEEDS, st.sampled_from(["i2", "i8"]))
def test_an_array_of_lengths_is_as_good_as_a_list(lengths, lanes, seed, dtype):
    array = np.array([-1 if length is None else length for length in lengths], dtype)
    plan, same = (make_plan(given, lanes=lanes, window=3, seed=seed) for given in (lengths, array))
    assert lists(plan, 5) == lists(same, 5)
    assert plan.batches == same.batches
    assert plan.batches is None or None not in lengths


@given(LENGTHS, st.integers(1, 12), st.integers(1, 9), SEEDS, EPOCHS, st.sampled_from(["pack", "align"]))
def test_every_stream_is_in_exactly_one_lane(lengths, lanes, window, seed, epoch, switch):
    plan = make_plan(lengths, lanes=lanes, window=window, seed=seed, switch=switch)
    played = [ordinal for listed in lists(plan, epoch) for ordinal in listed]
    assert sorted(played) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 12), SEEDS, EPOCHS, st.booleans(), st.sampled_from(["pad", "drop", "cycle"]))
def test_the_table_of_all_lanes_has_the_lists_of_each(lengths, lanes, seed, epoch, shuffle, tail):
    plan = make_plan(lengths, lanes=lanes, window=3, seed=seed, shuffle=shuffle, tail=tail)
    table = plan.tabulate_lanes(epoch)
    read, borrowed = table.assign_lists(tail)
    for lane in range(lanes):
        expected = plan.lane(epoch, lane)
        repeats_substitute = (
            None not in lengths
            and any(lengths)
            and not any(lengths[ordinal] for ordinal in expected.ordinals)
            and expected.substitute.size > 0
        )
        assert table.ordinals[table.bounds[read[lane]] : table.bounds[read[lane] + 1]].tolist() == (
            (expected.substitute if repeats_substitute else expected.ordinals).tolist()
        )
        assert borrowed[lane] == (expected.borrowed or repeats_substitute)


@given(LENGTHS, st.integers(1, 12), st.integers(1, 9), SEEDS, EPOCHS, st.sampled_from(["pad", "drop", "cycle"]))
def test_the_length_of_an_epoch_and_the_loads_do_not_depend_on_seed_and_epoch(
    lengths, lanes, window, seed, epoch, tail
):
    plain = make_plan(lengths, lanes=lanes, window=window, shuffle=False)
    plan = make_plan(lengths, lanes=lanes, window=window, seed=seed)
    assert plan.batches == plain.batches
    assert loads(plan, lengths, epoch) == loads(plain, lengths)
    tailed = make_plan(lengths, lanes=lanes, window=window, tail=tail)
    assert tailed.batches == make_plan(lengths, lanes=lanes, window=window, seed=seed, tail=tail).batches


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 12))
def test_the_longest_lane_is_within_the_bound_of_longest_first(lengths, lanes):
    plan = make_plan(lengths, lanes=lanes, window=1)
    best = max(*lengths, -(-sum(lengths) // lanes))  # no schedule can be shorter
    assert plan.batches == loads(plan, lengths)[-1]
    # Graham's bound of list scheduling, which holds against this lower bound too.
    assert plan.batches * lanes <= sum(lengths) + (lanes - 1) * max(lengths)
    assert plan.batches >= best


@given(LENGTHS, st.integers(1, 6), st.integers(1, 9), SEEDS)
def test_without_shuffle_every_epoch_keeps_the_order_of_the_data_set(lengths, lanes, window, seed):
    plan = make_plan(lengths, lanes=lanes, window=window, seed=seed, shuffle=False)
    assert lists(plan, 0) == lists(plan, 3)
    assert all(listed == sorted(listed) for listed in lists(plan))


def test_a_shuffle_permutes_lanes_and_the_order_inside_them():
    lengths = [1] * 60
    plain = make_plan(lengths, lanes=5, window=4, shuffle=False)
    plan = make_plan(lengths, lanes=5, window=4, seed=3)
    groups = {frozenset(listed) for listed in lists(plain)}
    for epoch in range(3):
        assert {frozenset(listed) for listed in lists(plan, epoch)} == groups
        assert any(listed != sorted(listed) for listed in lists(plan, epoch))
    assert lists(plan, 0) != lists(plan, 1)
    assert lists(plan, 0) != lists(make_plan(lengths, lanes=5, window=4, seed=4), 0)
    first_lane = {frozenset(plan.lane(epoch, 0).ordinals.tolist()) for epoch in range(40)}
    assert first_lane == groups  # each group comes to each lane


@pytest.mark.parametrize("seed", [0, -1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2])
def test_seeds_next_to_each_other_give_other_orders(seed):
    lengths = [1] * 40
    assert lists(make_plan(lengths, lanes=2, window=1, seed=seed)) != lists(
        make_plan(lengths, lanes=2, window=1, seed=seed + 1)
    )


def test_a_plan_asked_twice_says_the_same():
    plan = make_plan([4, 2, None, 8, 1], lanes=2, window=3, seed=11)
    assert lists(plan, 7) == lists(plan, 7)
    assert lists(plan, 7) == lists(make_plan([4, 2, None, 8, 1], lanes=2, window=3, seed=11), 7)


def test_the_order_of_an_epoch_never_changes_between_versions():
    # Resumed trainings and repeated experiments rely on exactly these numbers.
    plan = make_plan([5, 3, 8, 1, 9, 2, 7, 4, 6, 0, 3, 3], lanes=3, window=4, seed=2024)
    assert lists(plan, 0) == GOLDEN[0]
    assert lists(plan, 1) == GOLDEN[1]
    assert lists(plan, 1 << 40) == GOLDEN[2]
    unknown = make_plan([None] * 10, lanes=4, window=4, seed=-1)
    assert lists(unknown, 5) == GOLDEN[3]


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4), SEEDS, EPOCHS)
def test_ranks_share_the_lanes_of_one_plan(lengths, per_rank, ranks, seed, epoch):
    whole = make_plan(lengths, lanes=per_rank * ranks, window=3, seed=seed)
    again = make_plan(lengths, lanes=per_rank * ranks, window=3, seed=seed)  # what another rank computes
    assert lists(whole, epoch) == lists(again, epoch)
    assert whole.batches == again.batches


@given(st.lists(st.integers(0, 6), max_size=8), st.integers(1, 12), SEEDS, EPOCHS)
def test_cycling_lanes_without_streams_borrow_those_of_another(lengths, lanes, seed, epoch):
    plan = make_plan(lengths, lanes=lanes, window=2, seed=seed, tail="cycle")
    listed = [plan.lane(epoch, lane) for lane in range(lanes)]
    owners = [lane.ordinals.tolist() for lane in listed if not lane.borrowed]
    assert sorted(ordinal for owned in owners for ordinal in owned) == list(range(len(lengths)))
    for lane in listed:
        if lane.borrowed:
            assert lane.ordinals.tolist() in owners
            assert lane.ordinals.size
        else:
            assert lane.ordinals.size or not lengths
        if any(lengths):  # then each lane has something to repeat
            has_steps = any(lengths[ordinal] for ordinal in lane.ordinals)
            assert has_steps or any(lengths[ordinal] for ordinal in lane.substitute)


@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_other_tails_borrow_nothing(tail):
    plan = make_plan([4, 4], lanes=5, window=2, tail=tail)
    assert sorted(map(len, lists(plan))) == [0, 0, 0, 1, 1]
    assert not any(plan.lane(0, lane).borrowed for lane in range(5))


@given(st.lists(st.integers(0, 9) | st.none(), max_size=12), st.integers(1, 5), st.integers(1, 5))
def test_lengths_are_not_changed(lengths, lanes, window):
    before = list(lengths)
    lists(make_plan(lengths, lanes=lanes, window=window))
    assert lengths == before


def test_no_streams():
    plan = make_plan([], lanes=3, window=4)
    assert plan.batches == 0
    assert lists(plan) == [[], [], []]


def test_a_big_plan_is_dealt_evenly():
    lengths = np.random.default_rng(0).integers(1, 1000, 100_000).tolist()
    plan = make_plan(lengths, lanes=64, window=16)
    load = loads(plan, lengths)
    assert load[-1] - load[0] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lanes": 0}, "at least 1, got 0 and 4"),
        ({"window": 0}, "at least 1, got 2 and 0"),
        ({"switch": "stack"}, "switch must be one of .*'pack', 'align'.*got 'stack'"),
        ({"tail": "wrap"}, "tail must be one of .*'pad', 'drop', 'cycle'.*got 'wrap'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_plan([1, 2], **({"lanes": 2, "window": 4} | arguments))


def test_a_negative_length_is_refused():
    with pytest.raises(ConfigError, match="stream 1 declares a negative length, -3"):
        make_plan([2, -3], lanes=1, window=1)
    with pytest.raises(ConfigError, match="stream 2 declares a negative length, -2"):
        make_plan(np.array([2, -1, -2]), lanes=1, window=1)
    with pytest.raises(ConfigError, match="stream 1 declares a negative length, -1"):
        make_plan([2, -1], lanes=1, window=1)


# --- where a lane stands ----------------------------------------------------------------------------------------------


def cells(plan, lane, lengths, epoch):
    """Every step that a lane plays, in order, as (position, step, repeat); endless for cycles."""
    listed = plan.lane(epoch, lane)
    order = listed.ordinals.tolist()
    first, is_repeat = 0, listed.borrowed
    if listed.substitute.size and not any(lengths[ordinal] for ordinal in order):
        first, order, is_repeat = len(order), listed.substitute.tolist(), True
    rounds = itertools.count() if plan.tail == "cycle" and any(lengths[ordinal] for ordinal in order) else range(1)
    for played in rounds:
        for index, ordinal in enumerate(order):
            for step in range(lengths[ordinal]):
                yield first + played * len(order) + index, step, bool(played) or is_repeat


def windows(plan, lane, lengths, epoch):
    """The same in windows, without padding."""
    window = []
    for cell in cells(plan, lane, lengths, epoch):
        if window and (len(window) == plan.window or (plan.switch == "align" and cell[1] == 0)):
            yield window
            window = []
        window.append(cell)
    if window:
        yield window


@given(
    st.lists(st.integers(0, 12), max_size=9),
    st.integers(1, 6),
    st.integers(1, 7),
    st.sampled_from(["pack", "align"]),
    st.sampled_from(["pad", "drop", "cycle"]),
    st.booleans(),
    SEEDS,
    EPOCHS,
    st.booleans(),
)
def test_a_lane_is_placed_where_its_first_step_of_the_batch_is(
    lengths, lanes, window, switch, tail, shuffle, seed, epoch, as_array
):
    plan = make_plan(lengths, lanes=lanes, window=window, seed=seed, shuffle=shuffle, switch=switch, tail=tail)
    given_lengths = np.array(lengths, np.int64) if as_array else lengths
    count = 30
    for lane in range(lanes):
        played = list(itertools.islice(windows(plan, lane, lengths, epoch), count))
        own = sum(any(not repeat for _, _, repeat in cells) for cells in played)
        for batch in range(count - 12):
            position, step = played[batch][0][:2] if batch < len(played) else (len(plan.lane(epoch, lane).order), 0)
            expected = (position, step, own if batch >= own else -1)
            assert plan.cursor_at(epoch, lane, batch, given_lengths) == expected


def test_places_of_a_lane_that_is_easy_to_follow():
    plan = make_plan([5, 0, 4], lanes=1, window=3, shuffle=False, tail="cycle")
    # 000 002 222 | 000 002 222
    places = [plan.cursor_at(0, 0, batch, [5, 0, 4]) for batch in range(5)]
    assert places == [(0, 0, -1), (0, 3, -1), (2, 1, -1), (3, 0, 3), (3, 3, 3)]
    padded = make_plan([5, 0, 4], lanes=1, window=3, shuffle=False, switch="align")
    # 000 00. 222 2..
    assert [padded.cursor_at(0, 0, batch, [5, 0, 4]) for batch in range(6)] == [
        (0, 0, -1),
        (0, 3, -1),
        (2, 0, -1),
        (2, 3, -1),
        (3, 0, 4),
        (3, 0, 4),
    ]


def test_a_place_far_into_an_endless_epoch():
    plan = make_plan([3, 4], lanes=1, window=5, shuffle=False, tail="cycle")
    steps = 5 * 10**12
    rounds, rest = divmod(steps, 7)
    assert plan.cursor_at(0, 0, 10**12, [3, 4]) == (2 * rounds + (rest >= 3), rest - 3 * (rest >= 3), 2)


def test_only_lanes_whose_lengths_are_known_can_be_placed():
    lengths = [None, 9, None, 1]
    plan = make_plan(lengths, lanes=2, window=4, shuffle=False)
    assert plan.cursor_at(0, 1, 1, lengths) == (0, 4, -1)
    with pytest.raises(LengthUnknown, match=r"the cursor of lane 0 cannot be computed: .* in epoch 2 has no length"):
        plan.cursor_at(2, 0, 1, np.array([-1, 9, -1, 1]))
    with pytest.raises(ConfigError, match="number 0 or more, got -1"):
        plan.cursor_at(0, 1, -1, lengths)


# --- size -------------------------------------------------------------------------------------------------------------


def test_many_streams_cost_some_bytes_each():
    lengths = np.random.default_rng(0).integers(0, 1 << 40, 200_000)
    tracemalloc.start()
    try:
        plan = make_plan(lengths, lanes=64, window=16)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 200_000 * 4 + 50_000  # no Python numbers
    assert peak < 200_000 * 60 + 10_000_000
    buffers = []
    pickled = pickle.dumps(plan, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 2000  # the rest is arrays, which processes share
    assert lists(pickle.loads(pickled, buffers=buffers), 3) == lists(plan, 3)


GOLDEN = [
    [[3, 0, 10, 2], [6, 9, 11, 8], [1, 5, 4, 7]],
    [[3, 2, 0, 10], [7, 5, 1, 4], [8, 6, 11, 9]],
    [[9, 8, 6, 11], [2, 10, 3, 0], [4, 5, 7, 1]],
    [[4, 8, 0], [9, 5, 1], [6, 2], [7, 3]],
]
