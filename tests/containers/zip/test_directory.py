"""The list of members of a zip file: where it is found, what it says, and what is refused."""

from __future__ import annotations

import asyncio
import calendar
import io
import itertools
import stat
import struct
import sys
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zip_data import Entry, RecordingStore, build, iterate, make_end, make_end_64, make_zip, opened, play, scan, truth

import streamloader as sl
from streamloader.errors import CorruptContainer

SENTINEL = 0xFFFFFFFF
PAIR = [("a.txt", b"first"), ("b/c.bin", bytes(range(256)) * 4)]


def names(data, **options):
    return [member.name for member in scan(data, **options)]


def problems(*entries):
    return [(member.name, member.problem) for member in scan(build(entries))]


def refused(data, match, error=CorruptContainer):
    with pytest.raises(error, match=match) as caught:
        scan(data)
    assert caught.value.address == "memory://zip/a.zip"
    assert caught.value.offset is not None


# --- ordinary files --------------------------------------------------------------------------------------------------


def test_members_are_those_of_zipfile():
    members = [*PAIR, ("a.txt", b"again"), ("empty", b""), ("d/", b""), ("ä/日本.txt", b"named"), ("./e", b"e")]
    data = make_zip(members, zipfile.ZIP_DEFLATED)
    infos = [info for info in zipfile.ZipFile(io.BytesIO(data)).infolist() if not info.is_dir()]
    assert [
        (member.name, member.size, member.stored_size, member.method, member.checksum, member.offset, member.problem)
        for member in scan(data)
    ] == [
        (
            info.filename.removeprefix("./"), info.file_size, info.compress_size, info.compress_type, info.CRC,
            info.header_offset, None,
        )
        for info in infos
    ]  # fmt: skip
    assert {member.modified for member in scan(data)} == {calendar.timegm((2025, 6, 7, 8, 9, 10))}


def test_an_empty_file_has_no_members():
    assert scan(make_zip([])) == []
    assert scan(make_zip([], comment=b"nothing")) == []


def spans_of_scan(data):
    async def record():
        async with opened(data) as (container, store):
            found = [member async for member in container.scan()]
            return len(found), store.spans

    return play(record())


def test_a_short_directory_needs_one_request():
    data = build([Entry(b"%d" % number, bytes(1000)) for number in range(500)])
    assert spans_of_scan(data) == (500, [(len(data) - 65_633, len(data))])


def test_a_long_directory_is_read_in_blocks_of_1_mib():
    entry = Entry(b"n" * 4000, b"")
    data = build([entry] * 700)
    count, spans = spans_of_scan(data)
    assert count == 700
    start = len(data) - 22 - 700 * (46 + 4000)
    assert spans[0] == (len(data) - 65_633, len(data))
    assert sorted(spans[1:]) == [(start, start + (1 << 20)), (start + (1 << 20), start + (2 << 20)), (
        start + (2 << 20), len(data) - 65_633)]  # fmt: skip


def scan_many(count):
    """Scan `count` members, and check the memory that it takes."""
    local = b"".join(Entry(b"%08d" % number, b"").make_local() for number in range(count))
    entry = bytearray(Entry(b"%08d" % 0, b"").make_entry(0))
    directory = bytearray()
    for number in range(count):
        entry[42:46] = struct.pack("<L", 38 * number)
        entry[46:54] = b"%08d" % number
        directory += entry
    offset = len(local) + len(directory)
    values = (count, len(directory), len(local))
    data = local + bytes(directory) + make_end_64(values, offset) + make_end(0xFFFF, *values[1:])
    del local, directory

    async def count_pauses(pauses):
        while True:
            await asyncio.sleep(0)
            pauses.append(None)

    async def measure():
        async with opened(data) as (container, _):
            pauses, scanned = [], 0
            counter = asyncio.create_task(count_pauses(pauses))
            blocks = most = sys.getallocatedblocks()
            async for member in container.scan():
                assert member.offset == 38 * scanned
                scanned += 1
                if scanned % 1000 == 0:
                    most = max(most, sys.getallocatedblocks())
            counter.cancel()
            return scanned, len(pauses), most - blocks

    scanned, pauses, blocks = play(measure())
    assert scanned == count
    assert pauses >= count // 2500  # of the parser, in which other tasks run
    assert blocks < 40_000


def test_many_members_take_bounded_memory():
    scan_many(20_000)


@pytest.mark.slow
def test_a_million_members_take_bounded_memory():
    scan_many(1_000_000)


def test_the_number_of_members_is_limited():
    data = build([Entry(b"%d" % number) for number in range(20)])
    assert len(names(data, limits=sl.Limits(listed=20))) == 20
    with pytest.raises(sl.LimitExceeded, match=r"Limits\(listed"):
        names(data, limits=sl.Limits(listed=19))


# --- where it is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 0xFFFF])
def test_a_comment_may_have_any_length(size):
    assert names(make_zip(PAIR, comment=b"c" * size)) == ["a.txt", "b/c.bin"]


@pytest.mark.parametrize(
    "fake",
    [
        make_end(0, 0, 0),  # an empty archive
        make_end(7, 1000, 0),
        make_end(0, 0, 0, comment_length=5) + b"12345",
        make_end(3, 46 * 3, 5),
        b"PK\5\6",
        b"PK\5\6" * 1000,
        make_end(0, 0, 0) + b"behind",
        make_end(1, 100, 0, disk=1),
    ],
)
def test_a_comment_may_look_like_an_end_record(fake):
    assert names(make_zip(PAIR, comment=b"see: " + fake)) == ["a.txt", "b/c.bin"]
    assert names(b"#!/bin/sh\n" + make_zip(PAIR, comment=b"see: " + fake)) == ["a.txt", "b/c.bin"]


def test_two_lists_of_members_are_refused():
    inner = build([Entry(b"hidden")])
    body, directory = inner[: inner.index(b"PK\1\2")], inner[inner.index(b"PK\1\2") : -22]
    outer = build([Entry(b"shown")], comment=body + directory + make_end(1, len(directory), 0))
    refused(b"#!/bin/sh\n" + outer, "more than one end record")
    # Offsets that fit the whole file make it an ordinary zip file after something else.
    start = outer.index(directory)
    whole = build([Entry(b"shown")], comment=body + directory + make_end(1, len(directory), start))
    refused(whole, "more than one end record")


def test_a_comment_of_end_records_costs_nothing():
    refused(make_zip(PAIR, comment=b"".join(make_end(1, 46, 0, comment_length=22 * n) for n in range(2000, -1, -1))),
            "end records")  # fmt: skip


def test_bytes_after_the_end_are_ignored_as_by_zipfile():
    data = make_zip(PAIR) + b"\n" * 100
    assert [name for name, _ in truth(data)] == names(data) == ["a.txt", "b/c.bin"]


def test_bytes_before_the_beginning_are_skipped_as_by_zipfile():
    data = b"MZ" + bytes(70_000) + make_zip(PAIR)
    assert iterate(data) == truth(data) == PAIR
    assert scan(data)[0].offset == 70_002


def test_offsets_may_count_what_precedes_the_file():
    buffer = io.BytesIO(b"MZ" + bytes(100))
    with zipfile.ZipFile(buffer, "a") as file:
        for name, content in PAIR:
            file.writestr(name, content)
    assert iterate(buffer.getvalue()) == PAIR


def refused_when_cut(data, sizes):
    async def cut():
        for size in sizes:
            async with opened(data[:size]) as (container, _):
                with pytest.raises(CorruptContainer, match=r"cut|damaged"):
                    await anext(container.scan())

    play(cut())


def test_a_file_that_is_cut_anywhere_is_refused():
    data = make_zip(PAIR, comment=b"comment")
    refused_when_cut(data, range(len(data)))


def test_a_file_that_is_cut_after_a_zip_file_is_not_that_file():
    inner = make_zip([("inner.txt", b"inner")])
    outer = make_zip([("first", b"1"), ("inner.zip", inner), ("last", bytes(3000))])
    assert names(outer) == ["first", "inner.zip", "last"]
    end = outer.index(inner) + len(inner)
    refused(outer[:end], "cut, or two zip files are joined")
    refused_when_cut(outer, range(end, len(outer), 7))


def test_other_files_are_refused():
    for data in (b"", b"PK", bytes(30), b"\x1f\x8b" + bytes(100_000)):
        refused(data, "no zip file")


# --- zip64 -----------------------------------------------------------------------------------------------------------


def end_64(extensible=b"", *, short=None, **changes):
    """Make an end record with one of zip64."""

    def make(count, size, start):
        long = make_end_64((count, size, start), start + size, extensible, **changes)
        return long + (short or make_end(0xFFFF, SENTINEL, SENTINEL))

    return make


def test_zip64_as_zipfile_writes_it():
    data = build([Entry(b"a"), Entry(b"b")], end=end_64())
    assert names(data) == [name for name, _ in truth(data)] == ["a", "b"]
    prefixed = b"MZ" + bytes(10) + data
    assert names(prefixed) == [name for name, _ in truth(prefixed)] == ["a", "b"]


def test_zip64_with_values_that_the_short_record_could_hold():
    data = build([Entry(b"a")], end=lambda *values: end_64(short=make_end(*values))(*values))
    assert names(data) == ["a"]


def test_zip64_with_further_data():
    assert names(build([Entry(b"a")], end=end_64(b"more" * 10))) == ["a"]


def end_16(count, size, start):
    """Apple's Archive Utility writes no zip64 records and keeps the lower bits of the count."""
    return make_end(count & 0xFFFF, size, start)


@pytest.mark.parametrize("end", [end_16, pytest.param(end_64(), marks=pytest.mark.slow)])
def test_more_members_than_16_bits_can_count(end):
    entry = Entry(b"name", b"")
    assert len(scan(build([entry] * (0x10000 + 3), end=end))) == 0x10000 + 3


def test_offsets_and_sizes_of_64_bits():
    content = b"x" * 100
    extra = struct.pack("<HHQQQ", 1, 24, 100, 100, 0)
    local = {"size": SENTINEL, "stored_size": SENTINEL, "extra": struct.pack("<HHQQ", 1, 16, 100, 100)}
    entry = Entry(b"a", content, size=SENTINEL, stored_size=SENTINEL, offset=SENTINEL, extra=extra, local=local)
    (member,) = scan(build([entry]))
    assert (member.size, member.stored_size, member.offset) == (100, 100, 0)
    assert iterate(build([entry])) == truth(build([entry])) == [("a", content)]
    one = Entry(b"a", content, offset=SENTINEL, extra=struct.pack("<HHQ", 1, 8, 0))  # only those without space
    assert iterate(build([one])) == truth(build([one])) == [("a", content)]


def test_of_two_zip64_fields_the_first_one_counts():
    extra = struct.pack("<HHQ", 1, 8, 0) + struct.pack("<HHQ", 1, 8, 5)
    data = build([Entry(b"a", b"content", offset=SENTINEL, extra=extra)])
    assert iterate(data) == truth(data) == [("a", b"content")]


def test_a_count_of_64_bits_is_exact():
    entries = [Entry(b"n" * 4000, b"")] * 800  # long enough for the declared number of short entries
    count = len(entries) + 0x10000
    refused(build(entries, end=end_64(count=count, disk_count=count)), "800 entries, and the end record declares 66336")


def test_damaged_zip64_records():
    refused(build([Entry()], end=end_64(signature=b"PK\6\0")), "zip64 end record is missing")
    refused(build([Entry()], end=end_64(size_of_rest=43)), "zip64 end record is missing")
    refused(build([Entry()], end=end_64(start=1 << 63)), "outside of the file")
    refused(build([Entry()], end=end_64(count=1 << 60, disk_count=1 << 60)), "outside of the file")
    refused(build([Entry()], end=end_64(count=0, disk_count=0)), "1 entries, and the end record declares 0")
    refused(build([Entry()], end=end_64(short=make_end(0xFFFF, 46, SENTINEL))), "end records differ")
    short = Entry(size=SENTINEL, extra=struct.pack("<HHL", 1, 4, 0))
    refused(build([short]), "zip64 extra field is too short")
    huge = Entry(size=SENTINEL, stored_size=SENTINEL, method=12, extra=struct.pack("<HHQQ", 1, 16, 1 << 63, 7))
    refused(build([huge]), "outside of the file")


def test_volumes_are_not_supported():
    for changes in ({"disk": 1}, {"start_disk": 1}, {"disk_count": 0}):
        data = build([Entry()], end=lambda *values, changes=changes: make_end(*values, **changes))
        refused(data, "several", sl.NotSupported)
    refused(build([Entry()], end=end_64(disk=1, short=make_end(0xFFFF, SENTINEL, SENTINEL, disk=1))),
            "several", sl.NotSupported)  # fmt: skip


@pytest.mark.parametrize(
    ("disk", "extra", "problem"),
    [
        (3, b"", "a member in another volume"),
        (0xFFFF, b"", "a member in another volume"),
        (0xFFFF, struct.pack("<HHQL", 1, 12, 0, 3), "a member in another volume"),
        (0xFFFF, struct.pack("<HHQL", 1, 12, 0, 0), None),
    ],
)
def test_members_in_other_volumes_are_not_supported(disk, extra, problem):
    assert problems(Entry(disk=disk, offset=SENTINEL if extra else 0, extra=extra)) == [("a", problem)]


# --- names and kinds -------------------------------------------------------------------------------------------------


def unicode_path(raw, name, *, checksum=None, version=1):
    field = struct.pack("<BL", version, zlib.crc32(raw) if checksum is None else checksum) + name.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (Entry("ä".encode(), flags=1 << 11), "ä"),
        (Entry(b"\x84"), "ä"),  # CP437
        (Entry("ä".encode()), "ä"),  # by Info-ZIP's zip on Debian
        (Entry("ä".encode(), system=19), "ä"),  # by macOS
        (Entry("ä".encode(), system=0), "├ñ"),
        (Entry(b"\x84", extra=unicode_path(b"\x84", "日本")), "日本"),
        (Entry(b"ae", extra=unicode_path(b"ae", "ä"), local={"extra": unicode_path(b"ae", "ä")}), "ä"),
        (Entry(b"\x84", extra=unicode_path(b"earlier name", "日本")), "ä"),
        (Entry(b"\x84", extra=unicode_path(b"\x84", "日本", version=2)), "ä"),
        (Entry(b"\x84", extra=struct.pack("<HH", 0x7075, 2) + b"\1\0"), "ä"),
        (Entry(b"folder\\a", system=0), "folder\\a"),
        (Entry(b"./a/b"), "a/b"),
    ],
)
def test_names(entry, name):
    assert problems(entry) == [(name, None)]
    assert iterate(build([entry])) == [(name, b"content")]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (Entry(b"../a"), "'..'"),
        (Entry(b"a/../../b"), "'..'"),
        (Entry(b"a//b"), "empty"),
        (Entry(b"/etc/passwd"), "absolute"),
        (Entry(b"C:/a"), "absolute"),
        (Entry(b"C:\\a"), "absolute"),
        (Entry(b"a\0b"), "invalid name"),
        (Entry(b""), "invalid name"),
        (Entry(b"n" * 4097), "more than 4096 bytes"),
        (Entry(b"\xff", flags=1 << 11), "not valid UTF-8"),
        (Entry(b"a", extra=unicode_path(b"a", "").replace(b"up\5\0", b"up\6\0") + b"\xff"), "not valid UTF-8"),
        (Entry(attributes=(stat.S_IFLNK | 0o777) << 16), "a symbolic link"),
        (Entry(attributes=stat.S_IFIFO << 16, system=19), "a FIFO"),
        (Entry(attributes=stat.S_IFCHR << 16), "a character device"),
        (Entry(attributes=stat.S_IFBLK << 16), "a block device"),
        (Entry(attributes=stat.S_IFSOCK << 16), "a socket"),
        (Entry(attributes=stat.S_IFDIR << 16), "a directory"),
        (Entry(flags=1), "an encrypted member"),
        (Entry(flags=1 << 6), "an encrypted member"),
        (Entry(flags=1 << 13), "an encrypted member"),
        (Entry(method=9), "Deflate64"),
        (Entry(method=12, size=1 << 31), "bzip2"),
        (Entry(method=77), "compression method 77"),
    ],
)
def test_members_that_are_never_read(entry, problem):
    (bad, _), (good, none) = found = problems(entry, Entry(b"good"))
    assert problem in found[0][1]
    assert (good, none) == ("good", None)

    async def use():
        async with opened(build([entry, Entry(b"good")])) as (container, _):
            members = [member async for member in container.scan()]
            with pytest.raises(sl.NotSupported, match="never read"):
                await anext(container.stream(members[0]))
            contents = []
            async for member, pieces in container.iterate():
                if member.problem is None:
                    contents.append(b"".join([piece async for piece in pieces]))
                else:
                    with pytest.raises(sl.NotSupported, match="never read"):
                        await anext(pieces)
            assert contents == [b"content"]

    play(use())
    assert isinstance(bad, str)


def test_attributes_of_other_systems_are_no_modes():
    assert problems(Entry(attributes=stat.S_IFLNK << 16, system=0)) == [("a", None)]
    assert problems(Entry(attributes=(stat.S_IFREG | 0o644) << 16)) == [("a", None)]


def timestamp(seconds, flags=1):
    return struct.pack("<HHBl", 0x5455, 5, flags, seconds)


@pytest.mark.parametrize(
    ("entry", "modified"),
    [
        (Entry(time=23 << 11 | 59 << 5 | 29), calendar.timegm((2025, 6, 7, 23, 59, 58))),
        (Entry(date=0, time=0), None),
        (Entry(date=13 << 5 | 1), None),
        (Entry(time=24 << 11), None),
        (Entry(time=60 << 5), None),
        (Entry(time=30), None),
        (Entry(extra=timestamp(1_700_000_001)), 1_700_000_001.0),
        (Entry(extra=timestamp(-5)), -5.0),
        (Entry(time=0, extra=timestamp(7, flags=2)), calendar.timegm((2025, 6, 7, 0, 0, 0))),
        (Entry(time=0, extra=struct.pack("<HHB", 0x5455, 1, 1)), calendar.timegm((2025, 6, 7, 0, 0, 0))),
    ],
)
def test_times(entry, modified):
    (member,) = scan(build([entry]))
    assert member.modified == modified


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (Entry(size=8), "declares 8 bytes"),
        (Entry(method=8, stored=b"x" * 10, size=10_321), "declares 10321 bytes"),
        (Entry(method=8, stored=b"", size=1), "declares 1 bytes"),
        (Entry(size=500, stored_size=500), "outside of the file"),
        (Entry(offset=100), "outside of the file"),
        (Entry(extra=b"\1\2\3\4"), "extra field 0x0201"),
    ],
)
def test_forged_entries(entry, match):
    refused(build([Entry(b"good"), entry]), match)


def test_an_entry_that_is_cut_or_missing():
    refused(build([Entry()], end=lambda count, size, start: make_end(count, size + 1, start - 1)), "no entry")
    refused(build([Entry(), Entry()], end=lambda count, size, start: make_end(1, size, start)), "2 entries")
    refused(build([Entry()], end=lambda count, size, start: make_end(2, size, start)), "outside of the file")
    directory = Entry().make_entry(0)
    data = Entry().make_local() + directory + directory[:46]
    refused(data + make_end(2, 2 * 46 + 1, len(data) - 93), "last entry of its directory is cut")


def test_overlapping_members_are_refused():
    refused(build([Entry(b"a"), Entry(b"b", offset=0)]), "overlaps")
    big = Entry(b"a", bytes(100))
    for offset in (1, 60, 130):
        refused(build([big, Entry(b"b", offset=offset)]), "overlaps")
    inner = Entry(b"b").make_local()
    refused(build([Entry(b"a", inner), Entry(b"b", offset=31)]), "overlaps")


def test_overlapping_members_are_found_before_any_is_read():
    async def read_first():
        async with opened(build([Entry(b"a"), Entry(b"b"), Entry(b"c", offset=37)])) as (container, _):
            with pytest.raises(CorruptContainer, match="overlaps"):
                await anext(container.scan())
            with pytest.raises(CorruptContainer, match="overlaps"):
                await anext(container.iterate())

    play(read_first())


def test_a_directory_in_another_order():
    entries = [Entry(b"%d" % number, b"%d" % number * number) for number in range(5)]
    for order in itertools.permutations(range(5)):
        data = build(entries, order=order)
        assert names(data) == [name for name, _ in truth(data)] == [str(index) for index in order]
        assert [name for name, _ in iterate(data)] == list("01234")


def test_overlapping_members_in_another_order_are_refused():
    entries = [Entry(b"%d" % number) for number in range(5)]
    entries[1].offset = 3 * len(entries[0].make_local())  # that of the fourth
    for order in itertools.permutations(range(5)):
        data = build(entries, order=order)
        refused(data, "overlaps")
        with pytest.raises(CorruptContainer, match="overlaps"):
            iterate(data)


def test_a_long_directory_in_another_order():
    count = 4000  # several blocks of the directory
    entries = [Entry(b"%04d" % number, b"%04d" % number) for number in range(count)]
    order = [(number * 7) % count for number in range(count)]
    found = iterate(build(entries, order=order))
    assert sorted(found) == [(entry.name.decode(), entry.content) for entry in entries]
    first = [int(name) for name, _ in found[:1000]]
    assert first == sorted(first)
    entries[count // 2].offset = 0
    refused(build(entries, order=order), "overlaps")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_members_or_one_error(data, is_ended):
    data += make_end(1, 46, max(0, len(data) - 46)) if is_ended else b""
    try:
        scan(data)
    except sl.StoreError as error:
        assert error.offset is not None  # noqa: PT017 - other errors are failures


def test_other_versions_of_the_object_are_refused():
    async def replace():
        data = build([Entry(b"%d" % number, bytes(4000)) for number in range(50)])
        async with opened(data) as (container, store):
            members = [member async for member in container.scan()]
            await store.write("a.zip", data)
            with pytest.raises(sl.ObjectChanged):
                await anext(container.stream(members[0]))
            with pytest.raises(sl.ObjectChanged):
                await anext(container.scan())
            assert isinstance(store, RecordingStore)

    play(replace())
