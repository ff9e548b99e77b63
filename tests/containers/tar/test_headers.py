"""The headers of tar files, block by block."""

from __future__ import annotations

import tarfile

import pytest
from containers.tar_files import FIELDS, header, put, record, sign
from hypothesis import example, given
from hypothesis import strategies as st

from streamloader.containers.tar.headers import (
    BLOCK_BYTES,
    Extensions,
    MalformedHeader,
    TarHeader,
    parse_header,
    parse_ordinary_member,
    parse_pax_records,
    round_up,
)

OFFSET = 1_024
GNU_MAGIC = b"ustar  \0"


def build_entry(block, *extensions):
    """Return what a header describes after these extended ones: (type, content)."""
    context = Extensions()
    for kind, content in extensions:
        context.add(TarHeader(kind, b"", b"", len(content), None, continues=False), content)
    return context.build_entry(parse_header(block), OFFSET, OFFSET + BLOCK_BYTES)


def build_member(block, *extensions):
    return build_entry(block, *extensions).member


def refuse(block, *extensions):
    with pytest.raises(MalformedHeader) as caught:
        build_entry(block, *extensions)
    return str(caught.value)


# --- one header ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ordinary_headers_take_the_short_way(form):
    for name in ("a", "train/000123.jpg", "./train/000123.jpg", "x" * 100, "x" * 97 + ".py"):
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.uid, info.uname = 123_456, 1_700_000_000, 1_000, "someone"
        member = parse_ordinary_member(info.tobuf(form), OFFSET)
        assert member == (name.removeprefix("./"), 123_456, 1_024, 1_536, 123_456, 0, None, 1.7e9, None)
        assert type(member.modified) is float
        assert parse_ordinary_member(info.tobuf(form), OFFSET, 0.25).modified == 0.25


_texts = st.sampled_from([b"a", b"./a", b"././a", b"./", b".", b"", b"/a", b"a/", b"a//b", b"a/../b", b"a/.b", b"C:/a"])
_names = _texts | st.binary(max_size=12) | st.text("a./:\0é", max_size=100).map(lambda text: text.encode()[:100])
_numbers = st.integers(0, 8**11 - 1) | st.sampled_from(
    [b"", b" 17 ", b"17 \0", b"00000000089\0", b"-1", b"+1", b"0o17", b"1_7", b"\x80" + bytes(10) + b"\7", b"\xff" * 12,
     b"7" * 12, b"17\0garbage", b"\x0017", b"1 7", b"  17"]
)  # fmt: skip


@given(
    fields=st.fixed_dictionaries(
        {"name": _names, "size": _numbers, "mtime": _numbers},
        optional={
            "typeflag": st.binary(min_size=1, max_size=1),
            "magic": st.sampled_from([GNU_MAGIC, bytes(8), b"ustar\x0001", b"ustar\0\0\0"]),
            "prefix": st.sampled_from([b"p", b"p/q", b"\0x", b"\xe9"]),
            "uname": st.binary(max_size=32),
        },
    ),
    changed=st.none() | st.tuples(st.integers(0, 511), st.integers(1, 255), st.booleans()),
)
@example(fields={"name": b"a", "size": 0, "mtime": 0, "prefix": b"p"}, changed=None)
@example(fields={"name": b"a", "size": 5, "mtime": 0, "typeflag": b"x"}, changed=None)
def test_the_short_way_returns_what_the_long_way_returns(fields, changed):
    block = bytearray(header(**fields))
    if changed is not None:
        position, difference, is_signed_again = changed
        block[position] ^= difference
        if is_signed_again:
            sign(block)
    member = parse_ordinary_member(bytes(block), OFFSET)
    if member is not None:
        assert build_member(bytes(block)) == member
        assert member.problem is None


def test_a_flipped_bit_anywhere_is_noticed():
    for fields in ({}, {"name": "é".encode(), "prefix": b"\xff"}):
        block = header(**{"name": b"some/name", "size": 1_234, **fields})
        expected = build_member(block)
        for bit in range(8 * BLOCK_BYTES):
            damaged = bytearray(block)
            damaged[bit // 8] ^= 1 << bit % 8
            assert parse_ordinary_member(bytes(damaged), OFFSET) in (None, expected)
            try:
                member = build_member(bytes(damaged))
            except MalformedHeader:
                continue
            assert 148 <= bit // 8 < 156  # zeros, blanks and NULs around the digits of the checksum
            assert member == expected


def test_signed_checksums_are_accepted():
    block = bytearray(header("größe".encode(), 3))
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    put(block, "checksum", b"%06o\0 " % signed)
    assert build_member(bytes(block)).name == "größe"
    put(block, "checksum", b"%06o\0 " % (signed + 256))
    assert "checksum" in refuse(bytes(block))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"00000001234\0", 0o1234), (b"00000001234 ", 0o1234), (b"     001234 ", 0o1234), (b"1234", 0o1234),
        (b"1234\0 garbage", 0o1234), (b"1234 9", 0o1234), (bytes(12), 0), (b" " * 12, 0),
        (b"777777777777", 0o777777777777),
        (b"\x80" + bytes(7) + b"\1\2\3\4", 0x1020304), (b"\x80" + (2**63 - 1).to_bytes(11, "big"), 2**63 - 1),
    ],
)  # fmt: skip
def test_sizes_in_all_notations(field, value):
    assert parse_header(header(size=field[:12])).size == value
    assert parse_header(header(mtime=field[:12])).modified == float(value)


@pytest.mark.parametrize(
    "field",
    [b"-1", b"+1", b"0x10", b"0o17", b"1_000", b"12a4", b"00000000008\0", b"\x80" + (2**63).to_bytes(11, "big"),
     b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x81" + bytes(11), "\uff11".encode()],
)  # fmt: skip
def test_malformed_sizes_are_refused(field):
    assert "size" in refuse(header(size=field))
    assert build_member(header(size=1, mtime=field)).modified in (None, 1.0, -1.0, 2.0**63, 2.0**88 - 1)


def test_long_names_of_posix_have_a_prefix():
    assert build_member(header(b"b", prefix=b"a/" * 70)).name == "a/" * 70 + "/b"
    assert build_member(header(b"n" * 100, prefix=b"p" * 155)).name == "p" * 155 + "/" + "n" * 100
    for magic in (GNU_MAGIC, bytes(8)):  # other fields lie there
        assert build_member(header(b"b", prefix=b"a", magic=magic)).name == "b"


def test_names_are_decoded_and_normalized():
    for raw, name in [
        ("é/日本".encode(), "é/日本"), (b"\xe9", "\udce9"), (b"./a", "a"), (b"./././a", "a"), (b".//a", "a"),
        (b"./.a", ".a"), (b"a\0b", "a"), (b"..a", "..a"),
    ]:  # fmt: skip
        member = build_member(header(raw, 1))
        assert (member.name, member.problem) == (name, None)
    for raw in (b"", b"/a", b"..", b"a/..", b"a/../b", b"a//b", b"a/./b", b"a/.", b"./..", b"C:/a", b"a/"):
        assert "name" in build_member(header(raw, 1)).problem, raw


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_regular_files(kind):
    entry = build_entry(header(b"a", 513, kind))
    assert (entry.member.problem, entry.member.size, entry.end, entry.link) == (
        None,
        513,
        OFFSET + 3 * BLOCK_BYTES,
        None,
    )


@pytest.mark.parametrize(
    ("kind", "text"),
    [(b"2", "symbolic link"), (b"3", "character device"), (b"4", "block device"), (b"6", "FIFO")],
)
def test_special_files_have_no_content(kind, text):
    entry = build_entry(header(b"a", 10_000, kind, linkname=b"b"))
    assert text in entry.member.problem
    assert (entry.member.size, entry.end, entry.link) == (0, OFFSET + BLOCK_BYTES, None)


def test_hard_links_name_their_target():
    entry = build_entry(header(b"a", 10_000, b"1", linkname=b"./b/c"))
    assert (entry.member.size, entry.end, entry.link) == (0, OFFSET + BLOCK_BYTES, "b/c")
    assert entry.member.problem == "a hard link"
    assert build_entry(header(b"a", 0, b"1", linkname=b"b"), (b"K", b"k" * 200 + b"\0")).link == "k" * 200
    assert build_entry(header(b"a", 0, b"1"), (b"x", record(b"linkpath", b"./p"))).link == "p"


@pytest.mark.parametrize(("kind", "text"), [(b"S", "sparse"), (b"M", "volume"), (b"A", "'A'"), (b"\xff", r"'\xff'")])
def test_content_of_what_is_never_read_is_skipped(kind, text):
    entry = build_entry(header(b"a", 513, kind))
    assert text in entry.member.problem
    assert entry.end == OFFSET + 3 * BLOCK_BYTES


def test_directories_and_labels_are_no_members():
    assert build_entry(header(b"a/", 999, b"5")) == (None, OFFSET + BLOCK_BYTES, None)
    assert build_entry(header(b"a", 0, b"5")) == (None, OFFSET + BLOCK_BYTES, None)
    assert build_entry(header(b"a/", 0, b"\0")) == (None, OFFSET + BLOCK_BYTES, None)  # before POSIX
    assert build_entry(header(b"label", 0, b"V")) == (None, OFFSET + BLOCK_BYTES, None)
    assert build_entry(header(b"a/", 5, b"D")) == (None, OFFSET + 2 * BLOCK_BYTES, None)


# --- extended headers ------------------------------------------------------------------------------------------------

_keys = st.binary(min_size=1, max_size=20).filter(lambda key: b"=" not in key)


@given(st.dictionaries(_keys, st.binary(max_size=120)), st.integers(0, 3))
def test_pax_records_are_found(records, padding):
    content = b"".join(record(key, value) for key, value in records.items())
    assert parse_pax_records(content + bytes(padding)) == records


@pytest.mark.parametrize(
    "content",
    [b"x", b"9 a=b", b"9 a=bcdef", b"8 a=bc\n", b"-6 a=b\n", b"+6 a=b\n", b" 6 a=b\n", b"6  a=b\n", b"0 a=b\n", b"2 \n",
     b"1 ", b"3 \n", b"6\ta=b\n", b"5 abc\n", b"6 abc\n", b"6 a=b\0", b"999999999999999999999 a=b\n", b"6 a=b\n\0x",
     b"6 a=b\n7", "\uff16 a=b\n".encode(), b"6_0 " + b"a=" + b"b" * 53 + b"\n"],
)  # fmt: skip
def test_malformed_pax_records_are_refused(content):
    with pytest.raises(MalformedHeader):
        parse_pax_records(content)


@given(st.binary(max_size=60))
def test_any_pax_records_end(content):
    try:
        records = parse_pax_records(content)
    except MalformedHeader:
        return
    assert sum(len(key) + len(value) + 4 for key, value in records.items()) <= len(content)


def test_local_records_replace_global_ones_once():
    context = Extensions()

    def add(kind, *records):
        content = b"".join(record(*pair) for pair in records)
        context.add(TarHeader(kind, b"", b"", len(content), None, continues=False), content)

    def build():
        member = context.build_entry(parse_header(header(b"h", 7)), OFFSET, OFFSET + BLOCK_BYTES).member
        context.use_up()
        return member.name, member.size, member.modified

    plain = 1_700_000_000.0
    assert build() == ("h", 7, plain)
    add(b"g", (b"comment", b"of git archive"))
    assert (context.apply, context.are_pending) == (False, False)
    add(b"x", (b"mtime", b"12.5"))
    assert (context.apply, context.are_pending, context.modified) == (False, True, 12.5)
    assert build() == ("h", 7, 12.5)
    assert (context.apply, context.are_pending, context.modified) == (False, False, None)
    add(b"g", (b"mtime", b"3"), (b"path", b"global"))
    assert (context.apply, context.are_pending) == (True, False)
    add(b"x", (b"path", b"local"), (b"size", b"9"))
    assert context.are_pending
    assert build() == ("local", 9, 3.0)
    assert build() == ("global", 7, 3.0)
    add(b"x", (b"path", b""), (b"mtime", b""), (b"size", b""))
    assert build() == ("h", 7, plain)
    assert build() == ("global", 7, 3.0)
    add(b"X", (b"path", b"Solaris"))
    assert build() == ("Solaris", 7, 3.0)


@pytest.mark.parametrize(
    "size", [b"-1", b"1.5", b"0x9", b"1_0", b" 1", b"9223372036854775808", b"9" * 5_000, "\uff19".encode()]
)
def test_malformed_sizes_in_records_are_refused(size):
    assert "size" in refuse(header(b"a", 1), (b"x", record(b"size", size)))


def test_a_global_size_is_refused():
    assert "size of all members" in refuse(header(b"a", 1), (b"g", record(b"size", b"1")))


@pytest.mark.parametrize("time", [b"nan", b"inf", b"1e999", b"1_0", b"x", b"9" * 400, b"1.2.3"])
def test_malformed_times_in_records_are_ignored(time):
    assert build_member(header(b"a", 1), (b"x", record(b"mtime", time))).modified == 1.7e9


def test_times_in_records_have_fractions():
    assert build_member(header(b"a", 1), (b"x", record(b"mtime", b"1700000000.1234567"))).modified == 1700000000.1234567
    assert build_member(header(b"a", 1), (b"x", record(b"mtime", b"-5."))).modified == -5.0


def test_long_names_of_gnu():
    assert build_member(header(b"short"), (b"L", b"long" * 50 + b"\0")).name == "long" * 50
    assert build_member(header(b"short"), (b"L", b"without NUL")).name == "without NUL"
    assert build_member(header(b"short"), (b"L", b"./a\0garbage")).name == "a"
    for pair in (
        ((b"L", b"gnu\0"), (b"x", record(b"path", b"pax"))),
        ((b"x", record(b"path", b"pax")), (b"L", b"gnu\0")),
    ):
        assert build_member(header(b"short"), *pair).name == "pax"


@pytest.mark.parametrize("key", [b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.realsize", b"SCHILY.realsize"])
def test_sparse_files_of_pax_are_never_read(key):
    member = build_member(header(b"GNUSparseFile.1/a", 5), (b"x", record(key, b"1") + record(b"GNU.sparse.name", b"a")))
    assert (member.problem, member.name, member.size) == ("a sparse file", "a", 5)


def test_sizes_are_rounded_up_to_blocks():
    assert [round_up(size) for size in (0, 1, 512, 513, 2**63 - 1)] == [0, 512, 512, 1_024, 2**63]


def test_fields_lie_where_posix_has_them():
    block = header(name=b"n", linkname=b"l", typeflag=b"1", size=5)
    parsed = parse_header(block)
    assert (parsed.name, parsed.link, parsed.kind, parsed.size, parsed.modified) == (b"n", b"l", b"1", 5, 1.7e9)
    assert FIELDS["prefix"] == (345, 155)
