"""The order of an epoch: every sample exactly once, the same for any start, and well mixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError
from streamloader.datasets.shards.order import EpochOrder, OrderSettings

BYTES_PER_SAMPLE = 10_000


def make_order(counts, epoch=0, **settings):
    return EpochOrder(np.array(counts), sum(counts) * BYTES_PER_SAMPLE, OrderSettings(**settings), epoch)


def play_lane(order, lane, start=0):
    windows = list(order.windows(lane, start))
    return [
        (int(shard), int(sample))
        for window in windows
        for shard, sample in zip(window.shards, window.samples, strict=True)
    ]


def play_rank(counts, epoch=0, **settings):
    """All batches of a rank, by the rule of the module's docstring."""
    order = make_order(counts, epoch, **settings)
    size, lanes = order.settings.batch_size, order.settings.lanes
    played = [play_lane(order, lane) for lane in range(lanes)]
    batches = []
    for turn in itertools.count():
        row = [samples[turn * size : (turn + 1) * size] for samples in played]
        batches += [batch for batch in row if batch]
        if not any(row):
            break
    assert len(batches) == order.batches
    assert sum(map(len, batches)) == order.samples
    return batches


def all_samples(counts):
    return [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]


SETTINGS = {
    "counts": st.lists(st.integers(0, 60), min_size=1, max_size=12),
    "batch_size": st.integers(1, 9),
    "lanes": st.integers(1, 6),
    "world_size": st.integers(1, 3),
    "shuffle": st.booleans(),
    "buffer_size": st.integers(1, 100),
    "open_shards": st.integers(1, 14),
    "block_bytes": st.sampled_from([1, 100_000, 1 << 20]),
    "epoch": st.integers(0, 3),
}


@given(**SETTINGS)
def test_every_sample_is_played_exactly_once_over_all_ranks(counts, world_size, **settings):
    played = [
        sample
        for rank in range(world_size)
        for batch in play_rank(counts, rank=rank, world_size=world_size, **settings)
        for sample in batch
    ]
    assert sorted(played) == all_samples(counts)


@given(tail=st.sampled_from(["drop", "repeat"]), **SETTINGS)
def test_ranks_have_equal_numbers_of_full_batches(counts, world_size, tail, batch_size, **settings):
    ranks = [
        play_rank(counts, rank=rank, world_size=world_size, tail=tail, batch_size=batch_size, **settings)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    played = [sample for batches in ranks for batch in batches for sample in batch]
    step = batch_size * world_size
    if tail == "drop":
        assert len(set(played)) == len(played) == sum(counts) // step * step
    else:
        assert len(played) == -(-sum(counts) // step) * step
        assert set(played) == set(all_samples(counts))


@given(start=st.integers(0, 200), lane=st.integers(0, 5), **SETTINGS)
def test_a_lane_goes_on_from_any_sample(counts, start, lane, lanes, world_size, **settings):
    order = make_order(counts, lanes=lanes, world_size=world_size, **settings)
    lane %= lanes
    assert play_lane(order, lane, start) == play_lane(order, lane)[start:]


@given(batches=st.integers(0, 40), **SETTINGS)
def test_the_samples_of_the_first_batches_are_counted(counts, batches, batch_size, lanes, **settings):
    settings.pop("world_size")
    order = make_order(counts, batch_size=batch_size, lanes=lanes, **settings)
    expected = [0] * lanes
    for number, batch in enumerate(play_rank(counts, batch_size=batch_size, lanes=lanes, **settings)[:batches]):
        expected[number % lanes] += len(batch)
    assert order.count_consumed(batches) == expected


@given(
    starts=st.dictionaries(st.integers(0, 5), st.integers(0, 60)), picks=st.randoms(use_true_random=False), **SETTINGS
)
def test_lanes_play_the_same_whichever_others_the_process_hosts(counts, starts, picks, lanes, **settings):
    """Also if they are far apart. What is read together is what the lanes of the process have still to play."""
    order = make_order(counts, lanes=lanes, rank=settings["world_size"] - 1, **settings)
    starts = {lane: start for lane, start in starts.items() if lane < lanes}
    opened = order.open_lanes(starts)
    played = {lane: [] for lane in starts}
    groups = {}
    while opened:
        lane = picks.choice(sorted(opened))
        window = next(opened[lane], None)
        if window is None:
            del opened[lane]
            continue
        samples = [*zip(window.shards.tolist(), window.samples.tolist(), strict=True)]
        played[lane] += samples
        if window.group is not None:
            group = groups.setdefault(id(window.group), (window.group, []))
            group[1].extend(samples)
            rows = window.group.rows[window.lane]
            assert window.group.shards[rows].tolist() == window.shards.tolist()
    assert played == {lane: play_lane(order, lane, start) for lane, start in starts.items()}
    for group, samples in groups.values():
        assert sorted(samples) == sorted(zip(group.shards.tolist(), group.samples.tolist(), strict=True))


@pytest.mark.parametrize(("workers", "pieces"), [(1, 1), (2, 1), (4, 1), (12, 1), (3, 4), (6, 2)])
def test_what_a_worker_reads_of_a_block_lies_together(workers, pieces):
    order = make_order([600] * 40, batch_size=16)
    lanes = order.open_lanes(dict.fromkeys(range(0, 12, workers), 0))
    group = next(itertools.islice(lanes[0], 4, 5)).group  # after the smaller ones
    blocks = np.stack([group.shards, group.samples // order._block_samples], axis=1)
    breaks = np.flatnonzero((np.diff(group.samples) != 1) | (np.diff(group.shards) != 0))
    assert len(np.unique(blocks, axis=0)) >= 128
    assert len(breaks) + 1 <= pieces * (len(np.unique(blocks, axis=0)) + 2)  # two of them are cut by the window


def test_lanes_share_the_blocks_only_if_a_turn_of_theirs_fits_into_the_buffer():
    """Otherwise what a lane leaves for the others would have to be held for long."""
    sizes = {}
    for batch_size in (16, 64, 256, 1024):
        order = make_order([900] * 60, batch_size=batch_size, buffer_bytes=BYTES_PER_SAMPLE * 1200)
        group = next(order.open_lanes(dict.fromkeys(range(12), 0))[0]).group
        sizes[batch_size] = len(group.rows)
    assert sizes == {16: 12, 64: 12, 256: 4, 1024: 1}


def test_a_lane_has_samples_of_many_blocks_although_the_blocks_are_large():
    order = make_order([800] * 100, batch_size=64)
    window = next(itertools.islice(order.windows(0), 4, 5))
    assert order._block_samples * BYTES_PER_SAMPLE > 1 << 18
    assert len(set(zip(window.shards.tolist(), (window.samples // order._block_samples).tolist(), strict=True))) >= 128


def test_without_shuffling_the_samples_come_in_their_order():
    for lanes in (1, 3):
        batches = play_rank([5, 0, 700], shuffle=False, batch_size=4, lanes=lanes)
        assert [sample for batch in batches for sample in batch] == all_samples([5, 0, 700])


def test_another_seed_or_epoch_gives_another_order():
    orders = [play_rank([50, 50], epoch=epoch, seed=seed, batch_size=10) for epoch, seed in [(0, 0), (1, 0), (0, 1)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_order_never_changes():
    batches = play_rank([4, 3, 5], batch_size=4, lanes=2, seed=7, epoch=3)
    assert batches == FROZEN


def test_only_some_shards_are_open_at_a_time():
    order = make_order([100] * 50, lanes=1, buffer_size=32, open_shards=4)
    shards = [shard for shard, _ in play_lane(order, 0)]
    for first in range(0, len(shards), 100):
        assert len(set(shards[first : first + 100])) <= 4 + 2  # one shard ends and one starts in that time


def test_a_batch_has_samples_of_many_places_though_neighbours_are_alike():
    """A thousand shards of one label each, as of a folder a class that was packed in its order."""
    order = make_order([1000] * 100, batch_size=64)
    first, _, _, fourth = itertools.islice(order.windows(0), 4)  # the first ones are smaller
    assert len(first.shards) < len(fourth.shards)
    assert len(set(first.shards[:64].tolist())) >= 9
    assert len(set(fourth.shards[:64].tolist())) >= 12


def test_a_small_data_set_is_permuted_as_a_whole():
    order = make_order([10] * 10, batch_size=10)
    played = [sample for lane in range(12) for sample in play_lane(order, lane)]
    neighbours = sum(b == (a[0], a[1] + 1) for a, b in itertools.pairwise(played))
    assert neighbours < 10


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"lanes": 0}, {"tail": "pad"}, {"rank": 2, "world_size": 2}, {"buffer_size": 0}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        OrderSettings(**settings)


FROZEN = [[(2, 4), (2, 3), (2, 0), (2, 1)], [(0, 1), (1, 2), (1, 1), (0, 0)], [(1, 0), (0, 2), (2, 2), (0, 3)]]
