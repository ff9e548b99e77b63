"""Text of foreign origin as a terminal and a log may show it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader.common.printable import make_error_printable, make_printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 東京 עברית 🎥.mp4", "größe 東京 עברית 🎥.mp4"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m\x00", "\\x9b31m\\x00"),
        ("abc\u202egpj.exe\u2066\u200b", "abc\\u202egpj.exe\\u2066\\u200b"),
        ("\udcff\u2028\U000e0041", "\\udcff\\u2028\\U000e0041"),
        ("", ""),
        (b"raw \x1b", "b'raw \\x1b'"),
        (None, "None"),
    ],
)
def test_what_is_shown(text, shown):
    assert make_printable(text) == shown


def test_long_text_is_cut_off():
    assert make_printable("a" * 150 + "b" * 150) == "a" * 150 + "b" * 47 + "..."
    assert make_printable("x" * 30, 10) == "xxxxxxx..."
    assert make_printable("x" * 30, None) == "x" * 30
    assert len(make_printable("\x1b" * 10**7)) == 200


def test_lines_are_kept_on_request():
    assert make_printable("a\nb\x1b\r\n", keep_lines=True) == "a\nb\\x1b\\r\n"


@given(st.text(), st.integers(0, 300))
def test_any_text(text, limit):
    shown = make_printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= max(limit, 3)
    assert make_printable(make_printable(text, None), None) == make_printable(text, None)
    shown.encode("utf-8")


def test_exceptions_of_others():
    error = ValueError("a\x1b[31m", 5)
    make_error_printable(error)
    assert error.args == ("a\\x1b[31m", 5)
