"""When the samples of a sound are played, by the timestamps of its packets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from streamloader.media.audio.index import AudioIndex
from streamloader.media.audio.timeline import MAX_OFFSET_S, lay_out_sound

RATE, SAMPLES = 48_000, 1024  # per second, and in a packet
NONE = np.zeros(0, np.int64)


def make_index(pts):
    """Return the index of packets of 1024 samples at these times, in samples."""
    pts = np.asarray(pts, np.int64)
    samples = np.full(len(pts) + 1, SAMPLES, np.int64)
    samples[-1] = 0
    kept = np.array([[0, SAMPLES * len(pts)]], np.int64)
    return AudioIndex(RATE, 2, "stereo", "s16", "aac", Fraction(1, RATE), pts, NONE, NONE, samples, kept, NONE)


def pieces_of(pts, origin=0):
    return lay_out_sound(make_index(pts), Fraction(origin, RATE)).tolist()


def test_a_leap_begins_a_piece_at_its_packet():
    regular = np.arange(100) * SAMPLES
    assert pieces_of(regular) == [[0, 0, 100 * SAMPLES]]
    for packet in (1, 2, 3, 50, 97, 98, 99):
        leaping = regular + np.where(np.arange(100) >= packet, 5000, 0)
        first = packet * SAMPLES
        assert pieces_of(leaping) == [[0, 0, first], [first + 5000, first, 100 * SAMPLES - first]], packet
    assert pieces_of(regular, origin=3000) == [[0, 3000, 100 * SAMPLES - 3000]]


def test_a_timestamp_that_differs_from_those_around_it_does_not_count():
    """FFmpeg makes some at the beginnings of pages of Vorbis in Ogg."""
    pts = np.arange(200) * SAMPLES
    pts[5::37] += 448
    assert pieces_of(pts) == [[0, 0, 200 * SAMPLES]]


def test_uneven_timestamps_do_not_cut_the_sound():
    """As those of some phones: each is up to 8 ms off, in both directions."""
    rng = np.random.default_rng(0)
    pts = np.arange(2000) * SAMPLES + rng.integers(-RATE // 125, RATE // 125, 2000)
    pieces = pieces_of(pts)
    assert len(pieces) == 1
    late = np.where(np.arange(2000) < 1000, pts, pts + RATE)  # a second is missing among them
    (_, first), (start, second) = ([piece[0], piece[1]] for piece in pieces_of(late))
    assert (first, second) == (0, 1000 * SAMPLES)
    assert abs(start - second - RATE) < 0.02 * RATE


def test_a_clock_that_drifts_is_followed():
    ticks = np.rint(np.arange(20_000) * SAMPLES * 1.001).astype(np.int64)
    pieces = pieces_of(ticks)
    assert len(pieces) > 50
    for start, sample, count in pieces:
        for position in (start, start + count - 1):
            assert abs((position - start + sample) * 1.001 - position) <= MAX_OFFSET_S * RATE + 2


def test_all_of_many_leaps_are_found():
    packets = np.arange(5000)
    leaps = np.flatnonzero(np.random.default_rng(1).random(5000) < 0.05)
    leaps = leaps[np.diff(leaps, prepend=-9) > 4]
    late = np.searchsorted(leaps, packets, "right") * 3000
    pieces = pieces_of(packets * SAMPLES + late)
    assert [sample // SAMPLES for _, sample, _ in pieces] == [0, *(leaps[leaps > 0]).tolist()]
    assert [start - sample for start, sample, _ in pieces] == [late[sample // SAMPLES] for _, sample, _ in pieces]
