"""The figures of an order: those of known orders, and better ones for better shuffling."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError
from streamloader.datasets.shards.order import EpochOrder, OrderSettings
from streamloader.datasets.shards.quality import format_quality, list_epoch, measure_epoch, measure_shuffle

BATCH_SIZE = 32
SHARDS, SAMPLES_PER_SHARD, BYTES_PER_SAMPLE = 40, 500, 10_000
COUNTS = np.full(SHARDS, SAMPLES_PER_SHARD)


def make_order(counts=COUNTS, **settings):
    settings = {"batch_size": BATCH_SIZE, **settings}
    return EpochOrder(counts, int(counts.sum()) * BYTES_PER_SAMPLE, OrderSettings(**settings), epoch=0)


def play_by_hand(order, firsts):
    """The order of batches as the docstring of order.py has it, one after the other."""
    lanes, size = order.settings.lanes, order.settings.batch_size
    played = [
        [
            int(firsts[shard] + sample)
            for window in order.windows(lane)
            for shard, sample in zip(window.shards, window.samples, strict=True)
        ]
        for lane in range(lanes)
    ]
    numbers = []
    for batch in range(order.batches + lanes):
        turn, lane = divmod(batch, lanes)
        numbers += played[lane][turn * size : (turn + 1) * size]
    return numbers


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    batch_size=st.integers(1, 7),
    lanes=st.integers(1, 5),
    shuffle=st.booleans(),
    world_size=st.integers(1, 3),
)
def test_the_listed_epoch_is_the_played_one(counts, **settings):
    counts = np.array(counts)
    firsts = np.cumsum(counts) - counts
    listed = []
    for rank in range(settings["world_size"]):
        order = make_order(counts, rank=rank, **settings)
        numbers = list_epoch(order, counts)
        assert numbers.tolist() == play_by_hand(order, firsts)
        listed += numbers.tolist()
    assert sorted(listed) == list(range(counts.sum()))


def test_the_stored_order_has_no_displacement_and_one_label_in_a_batch():
    quality = measure_shuffle(np.arange(3200), BATCH_SIZE)
    assert quality.displacement == 0
    assert quality.label_entropy == 0
    assert quality.neighbours == BATCH_SIZE - 1


def test_figures_that_can_be_counted():
    reversed_pairs = measure_shuffle(np.array([1, 0, 3, 2]), 2, labels=np.array([7, 7, 9, 7]))
    assert reversed_pairs.displacement == pytest.approx(3 / 4)  # each is one of four places away, and 1/3 is normal
    assert reversed_pairs.label_entropy == pytest.approx(1 / 2)  # one batch of one label, and one of two
    assert reversed_pairs.neighbours == 1
    apart = measure_shuffle(np.array([0, 2, 1, 3]), 2)
    assert apart.neighbours == 0
    assert apart.label_entropy == 1


def test_a_full_permutation_has_the_figures_of_the_compared_one():
    quality = measure_shuffle(np.random.default_rng(3).permutation(20_000), BATCH_SIZE)
    best = quality.permutation
    assert best is not None
    assert quality.displacement == pytest.approx(1, abs=0.02)
    assert quality.label_entropy == pytest.approx(best.label_entropy, abs=0.02)
    assert quality.neighbours == pytest.approx(best.neighbours, abs=0.02)
    assert 0.06 < best.neighbours < 0.14  # 2 x 31 x 31 / 20,000


def test_shuffling_is_close_to_a_full_permutation():
    """With buffers for 3,072 of 20,000 samples, stored sorted by 100 labels: 92 % of the entropy."""
    settings = OrderSettings(batch_size=BATCH_SIZE, buffer_size=3072)
    total = int(COUNTS.sum()) * BYTES_PER_SAMPLE
    epochs = [measure_epoch(EpochOrder(COUNTS, total, settings, epoch), COUNTS) for epoch in range(8)]
    best = epochs[0].permutation
    assert best is not None
    # Of one epoch, it depends on the order of 40 shards.
    assert np.mean([quality.displacement for quality in epochs]) == pytest.approx(1, abs=0.05)
    assert all(quality.label_entropy > 0.92 * best.label_entropy for quality in epochs)
    unshuffled = measure_epoch(make_order(shuffle=False), COUNTS)
    assert unshuffled.displacement == 0
    assert unshuffled.label_entropy < 0.2


def play_through_a_buffer(counts, buffer_size, seed=0):
    """Shards in random order, read one after the other through a buffer that grows by a sample for each one played."""
    draw = random.Random(seed)
    firsts = np.cumsum(counts) - counts
    shards = draw.sample(range(len(counts)), len(counts))
    source = iter([int(firsts[shard]) + sample for shard in shards for sample in range(counts[shard])])
    held, played = [], []
    for number in source:
        held.append(number)
        if len(held) < buffer_size:
            held += itertools.islice(source, 1)
        if len(held) >= min(100, buffer_size):
            place = draw.randrange(len(held))
            held[place], held[-1] = held[-1], held[place]
            played.append(held.pop())
    draw.shuffle(held)
    return np.array(played + held)


@pytest.mark.parametrize(
    ("total", "entropy", "neighbours", "of_a_buffer"),
    [(6_000, 5.005, 1.787, 4.933), (60_000, 4.515, 0.700, 4.245)],
    ids=["as large as the buffer", "larger"],
)
def test_batches_are_better_mixed_than_by_one_buffer_of_the_same_size(total, entropy, neighbours, of_a_buffer):
    """Photos of 13 KB in shards of 10 MB, sorted by 100 labels, with 64 MiB for all lanes together."""
    image_bytes, per_shard = 13_100, 763
    counts = np.array([per_shard] * (total // per_shard) + [total % per_shard])
    settings = OrderSettings(batch_size=64)
    order = EpochOrder(counts, total * image_bytes, settings, 0)
    ours = measure_epoch(order, counts)
    buffered = measure_shuffle(play_through_a_buffer(counts, settings.buffer_bytes // image_bytes), 64)
    assert ours.label_entropy == pytest.approx(entropy, abs=0.001)
    assert ours.neighbours == pytest.approx(neighbours, abs=0.001)
    assert buffered.label_entropy == pytest.approx(of_a_buffer, abs=0.02)
    assert ours.label_entropy > buffered.label_entropy
    assert ours.neighbours < buffered.neighbours
    assert order._block_samples * image_bytes > 500_000  # with few requests


def test_a_rank_is_measured_on_the_whole_data_set():
    epochs = []
    for epoch in range(8):
        settings = OrderSettings(batch_size=BATCH_SIZE, rank=1, world_size=2)
        order = EpochOrder(COUNTS, int(COUNTS.sum()) * BYTES_PER_SAMPLE, settings, epoch)
        epochs.append(measure_epoch(order, COUNTS).displacement)
    assert np.mean(epochs) == pytest.approx(1, abs=0.05)


def test_a_larger_buffer_and_more_open_shards_mix_better():
    poor = measure_epoch(make_order(buffer_size=256, open_shards=1), COUNTS)
    good = measure_epoch(make_order(buffer_size=4096, open_shards=16), COUNTS)
    assert poor.label_entropy < good.label_entropy
    assert poor.neighbours > good.neighbours


def test_the_table():
    quality = measure_shuffle(np.arange(64), 8)
    lines = str(quality).splitlines()
    assert lines[0].count("|") == 5
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["this order", "full permutation"]
    assert "0.000" in lines[2]
    assert format_quality({"a": quality}).splitlines()[2].startswith("| a |")


@pytest.mark.parametrize(
    ("numbers", "batch_size", "labels"),
    [(np.arange(4), 5, None), (np.arange(4), 0, None), (np.arange(0), 1, None), (np.arange(4), 2, np.zeros(3))],
)
def test_what_cannot_be_measured_is_refused(numbers, batch_size, labels):
    with pytest.raises(ConfigError):
        measure_shuffle(numbers, batch_size, labels=labels)
