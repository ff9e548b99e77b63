"""Zip files that attack their reader: right bytes, a member that is never read, or one typed error; never more."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from containers.hostile import AFTER, check_fails, check_reads_or_fails, check_refused, contents, each, read_both
from containers.zip_files import (
    DEFLATED,
    END,
    END64,
    LOCAL,
    LOCATOR64,
    STORED,
    Entry,
    build_zip,
    build_zip64,
    deflate,
    end_record,
    write_zip,
)

from streamloader.config import Limits
from streamloader.containers.zip.container import ZipContainer
from streamloader.errors import CorruptContainer, IntegrityError, LimitExceeded, NotSupported
from streamloader.testing.containers.damage import measure_peak_bytes

LAST = Entry(AFTER[0].encode(), AFTER[1])
MAX_MEMORY_BYTES = 8 << 20
BOMB_BYTES = 24 << 20
UNSAFE_NAMES = [
    b"..", b"../evil", b"a/../../evil", b"/etc/passwd", b"//host/share", b"C:/evil", b"c:\\evil", b"a//b", b"a/./b",
    b"a/..", b"a.png\0.exe", b"", b"n" * 5_000,
]  # fmt: skip
DAMAGE = (CorruptContainer, IntegrityError)


def read(data, **options):
    return read_both(ZipContainer, data, **options)


def check_damaged_member(first, kinds=DAMAGE):
    """Check that the first member is one typed error, and that the one after it is read: or that nothing is."""
    for outcome in read(write_zip([first, LAST])):
        if outcome.error is not None:
            assert isinstance(outcome.error, kinds)
            continue
        assert isinstance(outcome.members[0][1], kinds), outcome.members[0]
        assert contents(outcome) == [AFTER]


# --- names and types --------------------------------------------------------------------------------------------------


@each("name", UNSAFE_NAMES)
@each("flags", [0, 0x800])
def test_an_unsafe_name_is_never_read(name, flags):
    check_refused(read(write_zip([Entry(name, b"evil", flags=flags), LAST])), "name")


@each("name", [name for name in UNSAFE_NAMES if name])
def test_an_unsafe_name_in_a_unicode_field_is_never_read(name):
    check_refused(read(write_zip([Entry(b"safe", b"evil", extra=unicode_field(b"safe", name)), LAST])), "name")


def unicode_field(name, other):
    """Return a field 0x7075, "Info-ZIP Unicode Path Extra Field" (APPNOTE.TXT, section 4.6.9)."""
    data = b"\1" + struct.pack("<I", zlib.crc32(name)) + other
    return struct.pack("<HH", 0x7075, len(data)) + data


@each("name", ["Größe.txt", "日本語.txt", "plain.txt"])
def test_names_with_the_flag_of_utf8(name):
    for outcome in read(write_zip([Entry(name.encode(), b"data", flags=0x800), LAST])):
        assert contents(outcome) == [(name, b"data"), AFTER]


def test_names_of_a_code_page_are_read():
    data = write_zip([Entry("Größe.txt".encode("cp437"), b"data"), LAST])
    for outcome in read(data):
        assert contents(outcome) == [("Größe.txt", b"data"), AFTER]


def test_a_name_with_the_flag_of_utf8_that_is_none_is_refused_or_an_error():
    check_reads_or_fails(read(write_zip([Entry(b"\xff\xfe.txt", b"data", flags=0x800), LAST])), [AFTER])


@each(
    ("mode", "reason"),
    [(0o120777, "symbolic link"), (0o010644, "FIFO"), (0o020644, "character device"), (0o060644, "block device"),
     (0o140644, "socket")],
)  # fmt: skip
def test_what_is_no_ordinary_file_is_never_read(mode, reason):
    check_refused(read(write_zip([Entry(b"special", b"/etc/passwd", attributes=mode << 16), LAST])), reason, "special")


def test_directories_are_no_members():
    for outcome in read(write_zip([Entry(b"folder/"), LAST])):
        assert [member.name for member, _ in outcome.members] == ["after"]


@each("flags", [1, 0x41, 0x2000 | 1])
def test_an_encrypted_member_is_never_read(flags):
    check_refused(read(write_zip([Entry(b"secret", b"x" * 20, flags=flags), LAST])), "encrypted", "secret")


@each("method", [1, 6, 9, 12, 14, 93, 95, 98, 99, 65_535])
def test_a_member_of_another_method_is_never_read(method):
    first = Entry(b"packed", b"data", method=method)
    check_refused(read(write_zip([first, LAST])), str(method), "packed")


def test_names_cannot_write_to_a_terminal():
    outcomes = read(write_zip([Entry(b"\x1b[2J\r\nevil", b"x", attributes=0o120777 << 16), LAST]))
    check_refused(outcomes, "symbolic link")
    assert str(outcomes[0].members[0][1]).isprintable()


# --- headers that differ from the directory ---------------------------------------------------------------------------


@each(
    "values",
    [
        {"local_name": b"b"}, {"local_name": b"ab"}, {"local_name": b"../../etc/passwd"}, {"local_size": 1 << 20},
        {"local_stored_size": 1 << 20}, {"local_size": 0}, {"local_stored_size": 3}, {"local_crc": 1},
        {"local_method": DEFLATED}, {"local_flags": 1}, {"local_method": 99},
    ],
)  # fmt: skip
def test_a_header_that_differs_from_the_directory(values):
    check_damaged_member(Entry(b"a", b"content of a", **values))


@each(
    "values",
    [{"size": 4}, {"size": 1_000}, {"size": 0}, {"size": 0xFFFFFFFF}, {"stored_size": 0xFFFFFFFF}, {"stored_size": 5},
     {"stored_size": 0}, {"crc": 1}, {"size": 0xFFFFFFFE, "stored_size": 0xFFFFFFFE}],
)  # fmt: skip
@each("method", [STORED, DEFLATED])
def test_numbers_that_are_wrong_in_both_places(values, method):
    check_damaged_member(Entry(b"a", b"content of a" * 3, method, **values), (*DAMAGE, NotSupported))


@each("offset", [1, 40, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])
def test_an_offset_that_leads_elsewhere(offset):
    check_damaged_member(Entry(b"a", b"content of a", offset=offset), (*DAMAGE, NotSupported))


@each("disk", [1, 0x7FFF])
def test_a_member_in_another_volume(disk):
    check_damaged_member(Entry(b"a", b"content of a", disk=disk), (*DAMAGE, NotSupported))


@each(
    "extra", [b"\1", b"\1\0", b"\1\0\xff\xff", b"\1\0\4\0abcd", b"\1\0\0\0", b"\1\0\x08\0" + b"\xff" * 8,
              bytes(65_535)],
)  # fmt: skip
def test_malformed_extra_fields(extra):
    for values in ({"extra": extra}, {"extra": extra, "size": 0xFFFFFFFF, "stored_size": 0xFFFFFFFF}):
        outcomes = read(write_zip([Entry(b"a", b"content of a", **values), LAST]))
        check_reads_or_fails(outcomes, [("a", b"content of a"), AFTER], [AFTER])


# --- compressed data --------------------------------------------------------------------------------------------------


def test_a_wrong_checksum_is_an_error_of_the_whole_member():
    check_damaged_member(Entry(b"a", b"content of a", crc=7), IntegrityError)
    check_damaged_member(Entry(b"a", b"content of a", DEFLATED, crc=7), IntegrityError)
    check_damaged_member(Entry(b"a", b"", crc=7), IntegrityError)


@each(
    "stored",
    [
        b"", b"\0", b"\3", b"\xff" * 20, deflate(b"content")[:-1], deflate(b"content") + b"more", deflate(b"short"),
        deflate(b"content and more"), b"\1\7\0\xf8\xffcontent"[:-1], b"\0\7\0\xf8\xffcontent", b"\1\7\0\0\0content",
        zlib.compress(b"content"),
    ],
)  # fmt: skip
def test_damaged_deflate_data(stored):
    check_damaged_member(Entry(b"a", b"content", DEFLATED, stored=stored))


def test_deflate_blocks_of_all_kinds_are_read():
    for stored in (b"\1\7\0\xf8\xffcontent", b"\0\0\0\xff\xff\0\3\0\xfc\xffcon\1\4\0\xfb\xfftent", deflate(b"content")):
        for outcome in read(write_zip([Entry(b"a", b"content", DEFLATED, stored=stored), LAST])):
            assert contents(outcome) == [("a", b"content"), AFTER]


@each("declared", [0, 10, 1 << 20, 0xFFFFFFF0])
def test_a_bomb_that_lies_about_its_size(declared):
    first = Entry(b"bomb", bytes(BOMB_BYTES), DEFLATED, size=declared)
    with measure_peak_bytes() as peak:
        check_damaged_member(first, (*DAMAGE, LimitExceeded, NotSupported))
    assert peak[0] < MAX_MEMORY_BYTES


def test_an_honest_bomb_is_refused():
    data = write_zip([Entry(b"bomb", bytes(BOMB_BYTES), DEFLATED), LAST])
    with measure_peak_bytes() as peak:
        outcomes = read(data, limits=Limits(expansion_bytes=2 << 20, expansion_ratio=100))
    for outcome in outcomes:
        assert contents(outcome) in ([AFTER], [])
        assert isinstance(outcome.error, LimitExceeded) or isinstance(outcome.members[0][1], LimitExceeded)
    assert peak[0] < MAX_MEMORY_BYTES


def test_a_nested_bomb_is_only_bytes():
    data = b"the core"
    for level in range(40):
        inner, data = data, write_zip([Entry(b"%d.zip" % level, data, DEFLATED), LAST])
    for outcome in read(data):
        assert contents(outcome) == [("39.zip", inner), AFTER]


def test_a_stored_zip_file_in_a_zip_file_hides_nothing():
    inner = write_zip([Entry(b"inner", b"of the inner one"), Entry(b"inner 2", b"too")])
    for outcome in read(write_zip([Entry(b"set.zip", inner), LAST, Entry(b"last.zip", inner)])):
        assert contents(outcome) == [("set.zip", inner), AFTER, ("last.zip", inner)]


# --- overlaps ---------------------------------------------------------------------------------------------------------


@each("count", [2, 50])
def test_entries_of_one_member_are_refused(count):
    # "A better zip bomb" (David Fifield, 2019), full overlap: all entries of the directory lead to one file.
    kernel = Entry(b"kernel", bytes(1 << 20), DEFLATED)
    data = kernel.local()
    directory = kernel.central(0) * count
    data += directory + end_record(count, len(directory), len(data))
    outcomes = read(data)
    check_fails(outcomes, CorruptContainer)
    assert all(len(contents(outcome)) <= 1 for outcome in outcomes)


@each("count", [2, 50])
def test_headers_that_are_quoted_by_earlier_members_are_refused(count):
    # The same author's second construction: each file quotes the header of the next one as uncompressed data.
    content = bytes(1 << 16)
    entries = [Entry(b"%d" % (count - 1), content, DEFLATED)]
    tail = entries[0].local()
    for number in reversed(range(count - 1)):
        quoted_header = tail[: 30 + len(entries[0].get("name"))]
        content = quoted_header + content
        size = len(quoted_header)
        block = b"\0" + struct.pack("<HH", size, size ^ 0xFFFF)
        entries.insert(0, Entry(b"%d" % number, content, DEFLATED, stored=block + tail))
        tail = entries[0].local()
    directory, offset = b"", 0
    for item in entries:
        directory += item.central(offset)
        offset += 30 + len(item.get("name")) + 5
    data = tail + directory + end_record(count, len(directory), len(tail))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # it is a valid file for zipfile before Python 3.13
        assert len(archive.namelist()) == count
    outcomes = read(data)
    check_fails(outcomes, CorruptContainer)
    assert all(len(contents(outcome)) <= 1 for outcome in outcomes)


def test_a_member_that_reaches_into_the_directory_is_refused():
    first = Entry(b"a", b"content of a", stored_size=200, size=200)
    check_fails(read(write_zip([first])), CorruptContainer)


def test_members_in_another_order_than_the_directory_are_read():
    entries = [Entry(b"%d" % number, b"content %d" % number) for number in range(4)]
    data, offsets = b"", []
    for item in entries:
        offsets.append(len(data))
        data += item.local()
    order = [2, 0, 3, 1]
    directory = b"".join(entries[number].central(offsets[number]) for number in order)
    for outcome in read(data + directory + end_record(4, len(directory), len(data))):
        assert sorted(contents(outcome)) == [(str(number), b"content %d" % number) for number in range(4)]
        assert outcome.error is None


def test_gaps_between_members_are_skipped():
    entries = [Entry(b"a", b"1", trailer=bytes(1_000)), Entry(b"b", b"2", trailer=LOCAL * 10), LAST]
    check_reads_or_fails(read(write_zip(entries)), [("a", b"1"), ("b", b"2"), AFTER])


# --- the end record ---------------------------------------------------------------------------------------------------

ORIGINAL = [("a", b"content of a"), AFTER]
REAL = write_zip([Entry(b"a", b"content of a"), LAST])


def hide(inner_end):
    """Return a zip file whose comment contains an end record."""
    return write_zip([Entry(b"a", b"content of a"), LAST], comment=inner_end)


@each(
    "comment",
    [
        END, END + bytes(18), END + b"\xff" * 18, END + bytes(17), b"text " + END + b" text" * 10, END * 100,
        END * 16_000, end_record(0, 0, 0), end_record(0, 0, 0, comment_size=1), end_record(1, 46, 0) + b"x",
        LOCATOR64 + bytes(16) + END, LOCATOR64 + b"\xff" * 16, end_record(2, 94, 86), bytes(65_535), b"PK" * 32_000,
    ],
)  # fmt: skip
def test_end_records_in_comments(comment):
    # A record that ends exactly where the file ends is as valid as the real one: to refuse the file is right as well.
    for outcome in read(hide(comment)):
        assert contents(outcome) == ORIGINAL if outcome.error is None else not contents(outcome)
        assert outcome.error is None or isinstance(outcome.error, CorruptContainer)


def test_a_whole_zip_file_in_a_comment_shows_one_of_the_two_or_nothing():
    inner = write_zip([Entry(b"evil", b"evil")])
    for outcome in read(hide(inner)):
        assert contents(outcome) in (ORIGINAL, [("evil", b"evil")], [])
        assert contents(outcome) != [] or isinstance(outcome.error, CorruptContainer)


@each(
    "values",
    [
        {"count": 0}, {"count": 1}, {"count": 3}, {"count": 0xFFFF}, {"count_here": 1}, {"size": 0}, {"size": 10},
        {"size": 0xFFFFFFFF}, {"size": 0xFFFFFFFE}, {"offset": 0}, {"offset": 0xFFFFFFFF}, {"offset": 0xFFFFFFFE},
        {"disk": 1}, {"directory_disk": 1}, {"disk": 0xFFFF}, {"comment_size": 1}, {"comment_size": 0xFFFF},
    ],
)  # fmt: skip
def test_forged_end_records(values):
    data = write_zip([Entry(b"a", b"content of a"), LAST], **values)
    check_reads_or_fails(read(data), ORIGINAL)


def test_an_end_record_of_zeros_hides_nothing():
    data = write_zip([Entry(b"a", b"content of a"), LAST], count=0, count_here=0, size=0)
    check_fails(read(data), CorruptContainer)


@each("field", [(4, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8)])
@each("value", [0, 1, 0xFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1])
def test_forged_zip64_end_records(field, value):
    files = [("a", b"content of a"), AFTER]
    data = bytearray(build_zip64(files))
    start = data.index(END64) + field[0]
    data[start : start + field[1]] = (value & (1 << 8 * field[1]) - 1).to_bytes(field[1], "little")
    with measure_peak_bytes() as peak:
        check_reads_or_fails(read(bytes(data)), files)
    assert peak[0] < MAX_MEMORY_BYTES


@each("offset", [0, 1, 1 << 31, 1 << 62, (1 << 64) - 1])
@each("disks", [(0, 1), (1, 1), (0, 0), (0, 0xFFFFFFFF)])
def test_forged_zip64_locators(offset, disks):
    files = [("a", b"content of a"), AFTER]
    data = bytearray(build_zip64(files))
    start = data.index(LOCATOR64)
    data[start + 4 : start + 20] = struct.pack("<IQI", disks[0], offset, disks[1])
    check_reads_or_fails(read(bytes(data)), files)


@each("prefix", [b"#!/bin/sh\n", bytes(1_000), REAL, b"PK\7\x08"])
def test_bytes_before_the_file(prefix):
    check_reads_or_fails(read(prefix + REAL), ORIGINAL)


@each("suffix", [b"\n", bytes(100), bytes(70_000), b"PK", END])
def test_bytes_after_the_file(suffix):
    check_reads_or_fails(read(REAL + suffix), ORIGINAL)


def test_a_directory_of_a_claimed_gigabyte_takes_no_memory():
    data = REAL[:-22] + END64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 50, 0)
    data += LOCATOR64 + struct.pack("<IQI", 0, len(REAL) - 22, 1)
    data += end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    with measure_peak_bytes() as peak:
        check_fails(read(data), CorruptContainer)
    assert peak[0] < MAX_MEMORY_BYTES


def test_an_entry_that_is_longer_than_the_directory_is_an_error():
    entries = [Entry(b"a", b"content of a"), Entry(b"n" * 60_000, b"", extra=b"\xff\xff\x00\x10" + bytes(4_096))]
    data = write_zip(entries)
    check_reads_or_fails(read(data), [("a", b"content of a")])
    directory = len(data) - 22 - 46 - 60_000 - 4_100
    forged = bytearray(data)
    forged[directory + 28 : directory + 34] = b"\xff" * 6
    check_fails(read(bytes(forged)), CorruptContainer)


# --- descriptors ------------------------------------------------------------------------------------------------------


@each("method", [STORED, DEFLATED])
def test_the_directory_counts_and_not_the_descriptor(method):
    files = [("a", b"content of a" * 10), AFTER]
    data = build_zip(files, method, descriptors=True)
    start = data.index(b"PK\7\x08")
    for forged in (
        data[: start + 4] + b"\xff" * 12 + data[start + 16 :],
        data[:start] + bytes(16) + data[start + 16 :],
    ):
        check_reads_or_fails(read(forged), files)


def test_a_descriptor_within_a_stored_member_does_not_end_it():
    content = b"before" + b"PK\7\x08" + struct.pack("<III", zlib.crc32(b"before"), 6, 6) + LOCAL + b"after"
    for outcome in read(build_zip([("a", content), AFTER], STORED, descriptors=True)):
        assert contents(outcome) == [("a", content), AFTER]
