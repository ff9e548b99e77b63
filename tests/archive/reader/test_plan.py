"""Which packets and bytes are read for which frames: against a model that plays the decoder."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streamloader.archive.frame_numbers import picked
from streamloader.archive.reader.plan import Run, cut_run, packets_of, plan_runs, spans_of
from streamloader.errors import ConfigError, FrameOutside
from streamloader.media.chunks.format import ChunkIndex


@st.composite
def indexes(draw):
    """Chunks of groups with B frames, closed or open, and packets of any size with gaps between them."""
    groups = draw(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6))
    shown, keys, first, spare = [], [], [], []
    packet = frame = 0
    order: list[tuple[int, int]] = []  # (time, packet)
    for count, leading in groups:
        keys.append(packet)
        late = 1 if leading and packet and count > 1 else 0  # a B frame behind the key that is shown before it
        first.append(frame + late)
        times = list(range(frame, frame + count))
        stored = [times.pop(late), *times]
        for n, time in enumerate(stored):
            order.append((time, packet))
            spare.append(n > 0 and draw(st.booleans()))
            packet += 1
        frame += count
    shown = [number for _, number in sorted(order)]
    sizes = draw(st.lists(st.integers(1, 500), min_size=packet, max_size=packet))
    gaps = draw(st.lists(st.integers(0, 300), min_size=packet, max_size=packet))
    size = np.array(sizes, np.int64)
    offset = np.cumsum(np.array(gaps) + size) - size
    pts = np.arange(frame) * 7
    return ChunkIndex(offset, size, np.array(spare), np.array(keys), np.array(first), np.array(shown), pts, 7 * frame)


@st.composite
def wanted(draw):
    index = draw(indexes())
    frames = draw(st.lists(st.integers(0, len(index) - 1), min_size=1, unique=True))
    return index, np.array(sorted(frames), np.int64)


@given(wanted())
def test_runs_decode_every_wanted_frame_from_a_key_that_is_right(case):
    index, frames = case
    runs = plan_runs(index, frames)
    assert np.concatenate([run.frames for run in runs]).tolist() == frames.tolist()
    for run in runs:
        at = index.keys.tolist().index(run.key)
        assert int(index.first[at]) <= run.frames[0]
        assert at + 1 == len(index.keys) or run.frames[0] < index.first[at + 1]  # the last such key
        assert run.stop == index.shown[run.frames].max() + 1
        packets = packets_of(index, run)
        assert set(index.shown[run.frames].tolist()) <= set(packets)
        left_out = set(range(run.key, run.stop)) - set(packets)
        assert all(index.spare[packet] for packet in left_out)
        assert packets == sorted(packets)


@given(wanted())
def test_no_packet_is_decoded_twice_but_near_an_open_group(case):
    index, frames = case
    runs = plan_runs(index, frames)
    for before, after in itertools.pairwise(runs):
        assert after.key > before.stop + 3


@given(wanted(), st.integers(1, 4))
def test_a_run_cut_in_parts_gives_the_same_frames(case, parts):
    index, frames = case
    for run in plan_runs(index, frames):
        cut = cut_run(index, run, parts)
        assert 1 <= len(cut) <= parts
        assert np.concatenate([part.frames for part in cut]).tolist() == run.frames.tolist()
        assert cut[0].key == run.key
        for part in cut:
            assert part.key in index.keys
            assert int(index.first[index.keys.tolist().index(part.key)]) <= part.frames[0]


@given(wanted(), st.integers(0, 400), st.integers(1, 2000))
def test_spans_hold_all_packets_and_little_else(case, near, largest):
    index, frames = case
    packets = packets_of(index, plan_runs(index, frames)[0])
    spans = spans_of(index, packets, near, largest)
    for packet in packets:
        start = int(index.offset[packet])
        end = start + int(index.size[packet])
        assert sum(a <= start and end <= b for a, b in spans) == 1
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start
    for start, end in spans:
        inside = [p for p in packets if start <= index.offset[p] < end]
        assert end - start <= largest or len(inside) == 1
        assert int(index.offset[inside[0]]) == start
        assert int(index.offset[inside[-1]] + index.size[inside[-1]]) == end
        ends = index.offset[inside] + index.size[inside]
        assert all(index.offset[inside][1:] - ends[:-1] <= near)


def test_nothing_wanted_is_nothing_to_do():
    index = ChunkIndex(*(np.array([n]) for n in (0, 9)), np.array([False]), *(np.array([0]),) * 4, 1)
    assert plan_runs(index, np.zeros(0, np.int64)) == []
    assert spans_of(index, [], 0, 1) == []
    assert len(Run(3, 7, np.zeros(0, np.int64))) == 4


@given(st.integers(0, 30), st.one_of(st.integers(-40, 40), st.lists(st.integers(-40, 40)), st.slices(30)))
def test_numbers_between_brackets_mean_what_they_mean_in_numpy(length, which):
    frames = np.arange(length)
    try:
        expected = frames[which] if not isinstance(which, list) or which else frames[:0]
    except IndexError:
        with pytest.raises(FrameOutside):
            picked(which, length, "it")
        return
    numbers, single = picked(which, length, "it")
    assert single == isinstance(which, int)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == np.reshape(expected, -1).tolist()


@pytest.mark.parametrize("which", ["x", 1.0, None, [[1]], [0.5], True, slice("a", None), (1, "b")])
def test_what_is_no_number_is_refused(which):
    with pytest.raises(ConfigError):
        picked(which, 5, "it")


def test_booleans_choose_as_in_numpy():
    assert picked(np.array([True, False, True]), 3, "it")[0].tolist() == [0, 2]
    with pytest.raises(FrameOutside, match="none of number 99999999999999999999999"):
        picked(99999999999999999999999, 3, "it")
