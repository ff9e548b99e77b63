"""Which packets a selection of frames needs, and where decoding starts again."""

from __future__ import annotations

import itertools
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader.media.video.decode_plan import DecodePlan, PacketFilter
from streamloader.media.video.index import VideoIndex


def make_index(frames, keys, *, seekable=True):
    pts, key_pts = np.arange(frames) * 10, np.array(keys, np.int64) * 10
    return VideoIndex(pts, Fraction(1, 250), frames * 10, key_pts, key_pts, 48, 64, seekable=seekable)


def packet(number, data=b"x", *, new_parameters=False):
    """A packet as the filter sees it. Frame 2.5 stands for a second field, which has a timestamp of its own."""
    return SimpleNamespace(
        pts=None if number is None else int(number * 10),
        size=len(data),
        data=data,
        has_sidedata=lambda kind: new_parameters and kind == "new_extradata",
    )


def run_ends(plan, numbers, keys_back):
    ends, number = [], numbers[0]
    while True:
        ends.append(plan.end_of_run(number, keys_back))
        later = [each for each in numbers if each > ends[-1]]
        if not later:
            return ends
        number = later[0]


@pytest.mark.parametrize(
    ("stride", "keys_back", "ends"),
    [
        (24, 0, [0, 24, 48, 72, 96]),  # each frame is a key frame
        (24, 1, [0, 24, 48, 72, 96]),  # decoding starts a key frame earlier, and that is still nearer
        (12, 0, [0, 12, 24, 36, 48, 60, 72, 84, 96]),
        (12, 1, [96]),
        (8, 0, [16, 40, 64, 88, 96]),  # from 8 to the key frame 12, there are only three frames
        (4, 0, [96]),
    ],
)
def test_decoding_starts_again_where_that_saves_frames(stride, keys_back, ends):
    numbers = list(range(0, 100, stride))
    plan = DecodePlan(make_index(100, range(0, 100, 12)), np.array(numbers))
    assert run_ends(plan, numbers, keys_back) == ends


def test_without_seeking_there_is_one_run():
    numbers = list(range(0, 100, 24))
    for index in (make_index(100, range(0, 100, 12), seekable=False), make_index(100, [])):
        assert run_ends(DecodePlan(index, np.array(numbers)), numbers, 0) == [96]


@given(
    st.lists(st.integers(0, 199), min_size=1, max_size=40),
    st.sets(st.integers(1, 199), max_size=20),
    st.integers(0, 1),
)
def test_every_selected_frame_is_in_one_run_from_its_key_frame(numbers, keys, keys_back):
    numbers = sorted(numbers)
    keys = [0, *sorted(keys)]
    plan = DecodePlan(make_index(200, keys), np.array(numbers))
    ends = run_ends(plan, numbers, keys_back)
    assert ends[-1] == numbers[-1]
    for end, following in itertools.pairwise(ends):
        first = min(number for number in numbers if number > end)
        start = max(0, sum(key <= first for key in keys) - 1 - keys_back)
        assert keys[start] - end > 4, (end, following)
    for number in range(201):
        assert plan.next_selected(number) == min((each for each in numbers if each >= number), default=200)
    assert plan.count_selected(20, 120) == len({number for number in numbers if 20 <= number <= 120})
    assert [plan.find_frame(pts) for pts in (None, -10, 5, 50, 1990, 2000)] == [None, None, None, 5, 199, None]


def sent(packets, numbers, first, last, *, disposable=lambda data: bytes(data) == b"d"):
    """Return the packets that are decoded, and the one that follows the run."""
    plan = DecodePlan(make_index(40, [0]), np.array(numbers))
    tested = PacketFilter(plan, first, last, disposable)
    result = []
    for each in packets:
        if tested.ends_before(each):
            return result, tested.following
        if not tested.leaves_out(each):
            result.append(each)
    return result, None


@pytest.fixture(autouse=True)
def plain_buffers(monkeypatch):
    """A SimpleNamespace has no buffer."""
    monkeypatch.setattr("streamloader.media.video.decode_plan.memoryview", lambda each: each.data, raising=False)


def test_disposable_packets_of_frames_that_are_not_selected_are_left_out():
    order = [(0, b"I"), (4, b"P"), (2, b"B"), (1, b"d"), (3, b"d"), (8, b"P"), (6, b"B"), (5, b"d"), (7, b"d")]
    packets = [packet(number, data) for number, data in order]
    decoded, following = sent(packets, [0, 3, 6], 0, 6)
    assert [each.pts // 10 for each in decoded] == [0, 4, 2, 3, 8, 6]
    assert following is packets[7]


def test_frames_outside_the_run_are_not_needed():
    packets = [packet(number, b"d") for number in range(10)]
    decoded, following = sent(packets, [0, 2, 4, 6, 8], 4, 6)
    assert [each.pts // 10 for each in decoded] == [4, 6]
    assert following is packets[7]


def test_both_fields_of_a_frame_are_decoded_or_left_out():
    fields = [packet(number + half, b"d") for number in range(4) for half in (0, 0.5)]
    decoded, following = sent(fields, [0, 2], 0, 2)
    assert [each.pts for each in decoded] == [0, 5, 20, 25]
    assert following is fields[6]
    without_times = [packet(number if half == 0 else None, b"d") for number in range(4) for half in (0, 0.5)]
    decoded, _ = sent(without_times, [0, 2], 0, 2)
    assert [each.pts for each in decoded] == [0, None, 20, None]


def test_a_packet_with_new_parameters_is_decoded():
    packets = [packet(0), packet(1, b"d"), packet(2, b"d", new_parameters=True), packet(3)]
    decoded, _ = sent(packets, [0, 3], 0, 3)
    assert [each.pts // 10 for each in decoded] == [0, 2, 3]


def test_nothing_is_left_out_of_other_codecs():
    packets = [packet(number, b"d") for number in range(6)]
    decoded, following = sent(packets, [0, 3], 0, 3, disposable=None)
    assert [each.pts // 10 for each in decoded] == [0, 1, 2, 3]
    assert following is packets[4]
