"""The plan of packets and bytes for requested frames, compared with a model of a decoder."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streamloader.archive.frame_numbers import normalize_index
from streamloader.archive.reader.plan import DecodeSpan, byte_spans, plan_spans, select_packets, split_span
from streamloader.errors import ConfigError, FrameIndexError
from streamloader.media.chunks.format import ChunkIndex


@st.composite
def indexes(draw):
    """Chunks of groups with B frames, closed or open, and packets of any size with gaps between them."""
    groups = draw(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6))
    frame_packet, keys, first, disposable = [], [], [], []
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
            disposable.append(n > 0 and draw(st.booleans()))
            packet += 1
        frame += count
    frame_packet = [number for _, number in sorted(order)]
    sizes = draw(st.lists(st.integers(1, 500), min_size=packet, max_size=packet))
    gaps = draw(st.lists(st.integers(0, 300), min_size=packet, max_size=packet))
    size = np.array(sizes, np.int64)
    offset = np.cumsum(np.array(gaps) + size) - size
    pts = np.arange(frame) * 7
    return ChunkIndex(
        offset, size, np.array(disposable), np.array(keys), np.array(first), np.array(frame_packet), pts, 7 * frame
    )


@st.composite
def wanted(draw):
    index = draw(indexes())
    frames = draw(st.lists(st.integers(0, len(index) - 1), min_size=1, unique=True))
    return index, np.array(sorted(frames), np.int64)


@given(wanted())
def test_spans_decode_every_wanted_frame_from_the_last_correct_key(case):
    index, frames = case
    spans = plan_spans(index, frames)
    assert np.concatenate([span.frames for span in spans]).tolist() == frames.tolist()
    for span in spans:
        position = index.key_packet.tolist().index(span.key_packet)
        assert int(index.key_frame[position]) <= span.frames[0]
        assert (
            position + 1 == len(index.key_packet) or span.frames[0] < index.key_frame[position + 1]
        )  # the last such key
        assert span.end == index.frame_packet[span.frames].max() + 1
        packets = select_packets(index, span)
        assert set(index.frame_packet[span.frames].tolist()) <= set(packets)
        left_out = set(range(span.key_packet, span.end)) - set(packets)
        assert all(index.disposable[packet] for packet in left_out)
        assert packets == sorted(packets)


@given(wanted())
def test_no_packet_is_decoded_twice_except_near_an_open_group(case):
    index, frames = case
    spans = plan_spans(index, frames)
    for before, after in itertools.pairwise(spans):
        assert after.key_packet > before.end + 3


@given(wanted(), st.integers(1, 4))
def test_a_split_span_gives_the_same_frames(case, parts):
    index, frames = case
    for span in plan_spans(index, frames):
        cut = split_span(index, span, parts)
        assert 1 <= len(cut) <= parts
        assert np.concatenate([part.frames for part in cut]).tolist() == span.frames.tolist()
        assert cut[0].key_packet == span.key_packet
        for part in cut:
            assert part.key_packet in index.key_packet
            assert int(index.key_frame[index.key_packet.tolist().index(part.key_packet)]) <= part.frames[0]


@given(wanted(), st.integers(0, 400), st.integers(1, 2000))
def test_byte_spans_cover_all_packets_and_little_else(case, near, largest):
    index, frames = case
    packets = select_packets(index, plan_spans(index, frames)[0])
    spans = byte_spans(index, packets, near, largest)
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


def test_no_frames_need_no_packets():
    index = ChunkIndex(*(np.array([n]) for n in (0, 9)), np.array([False]), *(np.array([0]),) * 4, 1)
    assert plan_spans(index, np.zeros(0, np.int64)) == []
    assert byte_spans(index, [], 0, 1) == []
    assert len(DecodeSpan(3, 7, np.zeros(0, np.int64))) == 4


@given(st.integers(0, 30), st.one_of(st.integers(-40, 40), st.lists(st.integers(-40, 40)), st.slices(30)))
def test_indexing_follows_numpy(length, which):
    frames = np.arange(length)
    try:
        expected = frames[which] if not isinstance(which, list) or which else frames[:0]
    except IndexError:
        with pytest.raises(FrameIndexError):
            normalize_index(which, length, "it")
        return
    numbers, single = normalize_index(which, length, "it")
    assert single == isinstance(which, int)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == np.reshape(expected, -1).tolist()


@pytest.mark.parametrize("which", ["x", 1.0, None, [[1]], [0.5], True, slice("a", None), (1, "b")])
def test_other_types_are_refused(which):
    with pytest.raises(ConfigError):
        normalize_index(which, 5, "it")


def test_boolean_masks_follow_numpy():
    assert normalize_index(np.array([True, False, True]), 3, "it")[0].tolist() == [0, 2]
    with pytest.raises(FrameIndexError, match="no frame number 99999999999999999999999"):
        normalize_index(99999999999999999999999, 3, "it")
