"""Headers of responses: ranges, sizes, versions and delays."""

from __future__ import annotations

import datetime as dt
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from streamloader.stores.http import responses

DATE = "Sat, 21 Nov 2026 10:00:00 GMT"
SECONDS = dt.datetime(2026, 11, 21, 10, tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 0-0/1", (0, 1, 1)),
        ("bytes 5-9/10", (5, 10, 10)),
        ("bytes 5-9/*", (5, 10, None)),
        (" bytes 5-9/10 ", (5, 10, 10)),
        ("bytes 9-5/10", None),
        ("bytes 5-10/10", None),
        ("bytes */10", None),
        ("bytes 5-9", None),
        ("bytes -9/10", None),
        ("bytes +5-9/10", None),
        ("bytes 5-9/10, 12-13/10", None),
        ("items 5-9/10", None),
        ("bytes 5-٩/10", None),
        (f"bytes 0-{'9' * 40}/*", None),
        ("", None),
    ],
)
def test_content_range(text, found):
    assert responses.parse_content_range(text) == found


@given(start=st.integers(0, 2**59), length=st.integers(1, 2**40), more=st.integers(0, 2**40) | st.none())
def test_content_range_of_any_size(start, length, more):
    end = start + length
    size = None if more is None else end + more
    text = f"bytes {start}-{end - 1}/{'*' if size is None else size}"
    assert responses.parse_content_range(text) == (start, end, size)


@given(st.text())
def test_content_range_of_anything(text):
    found = responses.parse_content_range(text)
    assert found is None or 0 <= found[0] < found[1]


@pytest.mark.parametrize(
    ("text", "size"), [("bytes */0", 0), ("bytes */123", 123), ("bytes */*", None), ("bytes 0-1/2", None), ("", None)]
)
def test_size_of_what_has_no_such_range(text, size):
    assert responses.parse_unsatisfied_size(text) == size


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "9" * 400}, 1e9),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT", "Date": DATE}, 1e9),
        ({"Retry-After": "Mon, 01 Jan 0001 00:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Mon, 01 Jan 0001 00:00:00 -0000", "Date": DATE}, 0.0),
        ({"Retry-After": "Mon, 01 Jan 0001 00:00:00 +2359", "Date": DATE}, 0.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "²"}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "\udcff"}, None),
        ({"Retry-After": "Sat, 21 Nov 99999999999999999999 10:00:30 GMT"}, None),
        ({"Retry-After": "30", "Date": "\udcff"}, 30.0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
        ({"Retry-After": "Sat, 21 Nov 2026 10:00:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Saturday, 21-Nov-26 10:00:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Sat, 21 Nov 2026 09:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Sat, 99 Nov 2026 10:00:30 GMT", "Date": DATE}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert responses.parse_retry_after(CIMultiDict(headers)) == seconds


def test_retry_after_by_our_own_clock():
    until = email.utils.formatdate(dt.datetime.now(dt.UTC).timestamp() + 100, usegmt=True)
    assert 90 < responses.parse_retry_after(CIMultiDict({"Retry-After": until})) <= 100


@pytest.mark.parametrize(
    ("headers", "size", "expected_version", "version"),
    [
        ({"ETag": '"abc"'}, 5, None, '"abc"'),
        ({"ETag": '"abc"', "Last-Modified": DATE}, 5, None, '"abc"'),
        ({"ETag": 'W/"abc"'}, None, None, 'W/"abc"'),
        ({"ETag": "abc"}, 5, None, "abc"),
        ({"Last-Modified": DATE}, 5, None, f"{DATE}; 5 bytes"),
        ({"Last-Modified": DATE}, None, None, DATE),
        ({}, 5, None, None),
        # Where an answer tells less than the one before, what it tells has to agree.
        ({"Last-Modified": DATE}, None, f"{DATE}; 5 bytes", f"{DATE}; 5 bytes"),
        ({"Last-Modified": DATE}, 5, DATE, DATE),
        ({"Last-Modified": DATE}, 6, f"{DATE}; 5 bytes", f"{DATE}; 6 bytes"),
        ({"Last-Modified": DATE.replace("10:", "11:")}, None, f"{DATE}; 5 bytes", DATE.replace("10:", "11:")),
        ({"ETag": '"abc"'}, 5, '"abd"', '"abc"'),
        ({}, 5, '"abd"', None),
    ],
)
def test_versions(headers, size, expected_version, version):
    info = responses.parse_object_info("a", CIMultiDict(headers), size, expected_version)
    assert (info.path, info.version) == ("a", version)
    assert info.size == size or (size is None and expected_version == version == f"{DATE}; {info.size} bytes")


def test_times():
    assert responses.parse_object_info("a", CIMultiDict({"Last-Modified": DATE}), 1).modified == SECONDS
    assert responses.parse_object_info("a", CIMultiDict({"Last-Modified": "yesterday"}), 1).modified is None


@pytest.mark.parametrize(
    ("version", "is_strong"),
    [
        ('"abc"', True),
        ('""', True),
        ('W/"abc"', False),
        ("abc", False),
        ('"a"b"', False),
        ('"a\r\n"', False),
        (None, False),
    ],
)
def test_only_strong_etags_are_sent_along(version, is_strong):
    assert responses.is_strong_etag(version) == is_strong


def test_a_size_can_be_part_of_a_version():
    for expected, size in (
        (f"{DATE}; 5 bytes", 5),
        (DATE, None),
        ('"5 bytes"', None),
        (None, None),
        ("", None),
    ):
        assert responses.parse_object_info("a", CIMultiDict({"Last-Modified": DATE}), None, expected).size == size
