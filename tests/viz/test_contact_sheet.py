"""The contact sheet, checked pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

import streamloader as sl
from streamloader.viz.contact_sheet import contact_sheet

START, PADDING = (255, 159, 28), (58, 61, 68)
LEFT, TOP, ACROSS, DOWN = 64, 30, 84 + 4 + 8, 84 + 16 + 4 + 8  # of square frames at the default height


def batch(resets, valid=None, lanes=2, window=8, channels=3):
    reset = np.zeros((lanes, window), bool)
    for position in resets:
        reset[position] = True
    return {
        "data": np.full((lanes, window, 8, 8, channels), 200, np.uint8),
        "reset": reset,
        "valid": np.ones((lanes, window), bool) if valid is None else valid,
        "step": np.tile(np.arange(window), (lanes, 1)),
        "stream": np.zeros((lanes, window), np.int64),
    }


def corner(sheet, lane, column, across=ACROSS):
    return sheet.getpixel((LEFT + column * across, TOP + lane * DOWN))


def test_a_border_is_drawn_exactly_where_a_stream_begins():
    sheet = contact_sheet([batch([(0, 0), (1, 5)])])
    bordered = {(lane, column) for lane in range(2) for column in range(8) if corner(sheet, lane, column) == START}
    assert bordered == {(0, 0), (1, 5)}
    assert sheet.getpixel((LEFT + 40, TOP + 40)) == (200, 200, 200)


def test_a_beginning_between_two_columns_is_not_missed():
    sheet = contact_sheet([batch([(0, 3)]), batch([(1, 7)])], every=4)
    assert [corner(sheet, 0, column) == START for column in range(4)] == [True, False, False, False]
    assert [corner(sheet, 1, column) == START for column in range(4)] == [False, False, False, True]


def test_padding_is_grey():
    valid = np.ones((2, 8), bool)
    valid[1, 6:] = False
    sheet = contact_sheet([batch([(0, 0), (1, 0)], valid)])
    assert [corner(sheet, 1, column) == PADDING for column in range(8)] == [False] * 6 + [True] * 2


@pytest.mark.parametrize("layout", ["BTCHW", "BTHWC"])
def test_real_batches_in_both_usual_layouts(clips, layout):
    videos = sl.VideoStreams([clips["carphone_pristine"]] * 2, size=(36, 44), max_frames=6)
    with sl.MultiStreamer(videos, 2, 4, layout=layout, shuffle=False) as loader:
        names = [info.key for info in loader.streams]
        sheet = contact_sheet([part.clone() for part in loader], names=names)
    pixels = np.asarray(sheet)
    assert corner(sheet, 0, 0) == START
    assert corner(sheet, 1, 7, across=103 + 4 + 8) == PADDING
    frame = pixels[TOP + 4 : TOP + 88, LEFT + 4 : LEFT + 4 + 103]
    assert frame.std() > 20  # a picture


def test_a_short_sheet_has_room_for_its_legend():
    sheet = contact_sheet([batch([(0, 0)], window=1)])
    line = [sheet.getpixel((x, 15)) for x in range(sheet.width)]
    assert line.index(START) > 300  # right of the text that begins at the left
    assert corner(sheet, 0, 0) == START


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(sl.ConfigError, match="at least one batch"):
        contact_sheet([])
    with pytest.raises(sl.ConfigError, match="no field 'depth'"):
        contact_sheet([batch([])], field="depth")
    with pytest.raises(sl.ConfigError, match="channels"):
        contact_sheet([batch([], channels=5)])
    with pytest.raises(sl.ConfigError, match="every"):
        contact_sheet([batch([])], every=0)
