"""Tar files that attack their reader: right bytes, a member that is never read, or one typed error; never more."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import subprocess
import sys

import pytest
from containers.formats import zstd
from containers.hostile import AFTER, check_fails, check_reads_or_fails, check_refused, contents, each, read_both
from containers.tar_files import (
    BLOCK,
    END,
    FORGED_SIZES,
    entry,
    gnu_long,
    header,
    pad,
    pax,
    put,
    read_tar,
    record,
    sign,
)

from streamloader.config import Limits
from streamloader.containers.tar.container import TarContainer
from streamloader.errors import CorruptContainer, IntegrityError, LimitExceeded, NotSupported
from streamloader.testing.containers.damage import measure_peak_bytes

REST = entry(b"after", AFTER[1]) + END
GNU_TAR = shutil.which("gtar") or (shutil.which("tar") if sys.platform == "linux" else None)
MAX_MEMORY_BYTES = 8 << 20
BOMB_BYTES = 24 << 20
UNSAFE_NAMES = [
    b"..", b"../evil", b"a/../../evil", b"/etc/passwd", b"//host/share", b"C:/evil", b"c:\\evil", b"a//b", b"a/./b",
    b"a/..",
]  # fmt: skip
CORRUPT = (CorruptContainer, LimitExceeded)


def read(data, path="set.tar", **options):
    return read_both(TarContainer, data, path, **options)


# --- names and types --------------------------------------------------------------------------------------------------


@each("name", UNSAFE_NAMES)
@each("form", ["ustar", "pax", "gnu"])
def test_an_unsafe_name_is_never_read(name, form):
    first = {
        "ustar": entry(name, b"evil"),
        "pax": pax([(b"path", name)]) + entry(b"safe", b"evil"),
        "gnu": gnu_long(name) + entry(b"safe", b"evil"),
    }[form]
    check_refused(read(first + REST), "a member", name.decode())


def test_a_name_in_two_parts_is_never_read_if_they_join_to_an_unsafe_one():
    check_refused(read(entry(b"evil", b"evil", prefix=b"..") + REST), "'..'", "../evil")
    check_refused(read(entry(b"evil", b"evil", prefix=b"/etc") + REST), "absolute", "/etc/evil")


def test_a_name_with_nul_is_never_read():
    check_refused(read(pax([(b"path", b"a.png\0.exe")]) + entry(b"safe", b"evil") + REST), "name")


def test_a_name_of_a_megabyte_is_never_read():
    for first in (pax([(b"path", b"n" * 1_000_000)]), gnu_long(b"n" * 1_000_000)):
        check_reads_or_fails(read(first + entry(b"safe", b"evil") + REST), [AFTER])


def test_an_empty_name_is_never_read():
    check_refused(read(entry(b"", b"evil", uid=1) + REST), "name")
    check_refused(read(entry(b"./", b"evil") + REST), "name")


def test_a_name_that_is_not_utf8_is_kept():
    data = entry(b"caf\xe9", b"latin 1") + REST
    for outcome in read(data):
        assert contents(outcome) == [("caf\udce9", b"latin 1"), AFTER]


@each(
    ("typeflag", "reason"),
    [
        (b"2", "symbolic link"),
        (b"3", "character device"),
        (b"4", "block device"),
        (b"6", "FIFO"),
        (b"Q", "unknown type"),
    ],
)
def test_what_is_no_ordinary_file_is_never_read(typeflag, reason):
    fields = {"linkname": b"/etc/passwd", "devmajor": 1, "devminor": 5}
    check_refused(read(entry(b"special", b"", typeflag, **fields) + REST), reason, "special")


@each("typeflag", [b"0", b"\0", b"7"])
def test_ordinary_files_of_all_types_are_read(typeflag):
    for outcome in read(entry(b"a", b"data", typeflag) + REST):
        assert contents(outcome) == [("a", b"data"), AFTER]


@each("typeflag", [b"1", b"2", b"3", b"4", b"5", b"6"])
@each("has_content", [False, True])
def test_a_size_of_what_has_no_content(typeflag, has_content):
    data = header(b"special", 600, typeflag) + (pad(bytes(range(100)) * 6) if has_content else b"") + REST
    wanted = [(name, content) for name, content in list_reference(data) if content is not None]
    check_reads_or_fails(read(data), wanted, [AFTER])


def test_directories_and_labels_are_no_members():
    data = entry(b"folder/", b"", b"5") + entry(b"old/", b"", b"\0") + entry(b"label", b"", b"V") + REST
    for outcome in read(data):
        assert contents(outcome) == [AFTER]
        assert len(outcome.members) == 1


def test_names_cannot_write_to_a_terminal():
    outcomes = read(entry(b"\x1b[2J\r\nevil\xe2\x80\xae", b"", b"2", linkname=b"x") + REST)
    check_refused(outcomes, "symbolic link")
    assert str(outcomes[0].members[0][1]).isprintable()


# --- hard links -------------------------------------------------------------------------------------------------------


def link(name, target):
    return entry(name, b"", b"1", linkname=target)


def test_a_hard_link_to_an_earlier_member_has_its_bytes():
    scan, one_pass = read(entry(b"a", b"data") + link(b"b", b"a") + link(b"c", b"./b") + REST)
    assert contents(scan) == [("a", b"data"), ("b", b"data"), ("c", b"data"), AFTER]
    assert contents(one_pass) == [("a", b"data"), AFTER]
    assert [isinstance(content, NotSupported) for _, content in one_pass.members] == [False, True, True, False]
    assert one_pass.error is None


def test_a_hard_link_has_the_bytes_of_the_last_member_of_that_name_before_it():
    scan, _ = read(entry(b"a", b"old") + entry(b"a", b"new") + link(b"b", b"a") + entry(b"a", b"newest") + REST)
    assert contents(scan) == [("a", b"old"), ("a", b"new"), ("b", b"new"), ("a", b"newest"), AFTER]


@each("target", [b"after", b"/etc/passwd", b"../../etc/passwd", b"self", b"soft", b"device", b"", b"a/.."])
def test_a_hard_link_to_anything_else_is_never_read(target):
    data = (
        entry(b"soft", b"", b"2", linkname=b"/etc/passwd") + entry(b"device", b"", b"3") + link(b"self", target) + REST
    )
    for outcome in read(data):
        assert outcome.error is None
        assert contents(outcome) == [AFTER]
        assert [member.name for member, _ in outcome.members] == ["soft", "device", "self", "after"]


def test_a_hard_link_with_an_unsafe_name_is_never_read():
    scan, _ = read(entry(b"a", b"data") + link(b"../b", b"a") + REST)
    assert contents(scan) == [("a", b"data"), AFTER]


def test_a_hard_link_to_a_refused_member_is_never_read():
    scan, _ = read(entry(b"../a", b"data") + link(b"b", b"../a") + REST)
    assert contents(scan) == [AFTER]


@each("path", ["set.tar", "set.tar.gz"])
def test_many_hard_links_need_no_second_connection(path):
    data = entry(b"a", b"data") + b"".join(link(b"%d" % number, b"a") for number in range(200)) + REST
    data = gzip.compress(data) if path.endswith("gz") else data
    scan, _ = read(data, path, limits=Limits(requests=1))
    assert contents(scan) == [("a", b"data"), *((str(number), b"data") for number in range(200)), AFTER]


# --- sparse files -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(GNU_TAR is None, reason="GNU tar is not installed")
@each("options", ["gnu", "oldgnu", "posix 0.0", "posix 0.1", "posix 1.0"])
@each("holes", [1, 60])
def test_sparse_files_are_never_read(tmp_path, options, holes):
    with open(tmp_path / "sparse", "wb") as file:
        for number in range(holes):
            file.seek(number * (1 << 17))
            file.write(b"data")
        file.truncate(holes << 17)
    (tmp_path / "after").write_bytes(AFTER[1])
    form, _, version = options.partition(" ")
    command = [GNU_TAR, "--sparse", "--hole-detection=raw", f"--format={form}"]
    command += [f"--sparse-version={version}"] if version else []
    subprocess.run([*command, "-cf", "set.tar", "sparse", "after"], cwd=tmp_path, check=True)
    check_refused(read((tmp_path / "set.tar").read_bytes()), "sparse", "sparse")


def test_a_sparse_map_that_never_ends_is_an_error():
    block = bytearray(header(b"sparse", 512, b"S", magic=b"ustar  \0"))
    block[482] = 1  # the map continues
    sign(block)
    check_fails(read(bytes(block) + b"\xff" * BLOCK * 40), CORRUPT)


# --- numbers ----------------------------------------------------------------------------------------------------------


@each("size", FORGED_SIZES)
def test_forged_sizes(size):
    data = header(b"a", size) + pad(b"content") + REST
    wanted = [(name, content) for name, content in list_reference(data) if content is not None]
    check_reads_or_fails(read(data), wanted)


@each(
    "size",
    [b"0", b"7", b"512", b"1024", b"99999999999999999999999", b"-1", b"1e3", b" 7", b"7 ", b"0x7", b"", b"\xd9\xa7"],
)
def test_sizes_in_pax_records(size):
    data = pax([(b"size", size)]) + header(b"a", 7) + pad(b"content") + REST
    wanted = [(name, content) for name, content in list_reference(data) if content is not None]
    check_reads_or_fails(read(data), wanted, [("a", b"content"), AFTER])


def test_a_size_in_a_pax_record_replaces_that_of_the_header():
    data = pax([(b"size", b"600")]) + header(b"a", 0) + pad(b"x" * 600) + REST
    for outcome in read(data):
        assert contents(outcome) == [("a", b"x" * 600), AFTER]


def test_a_size_for_all_members_is_an_error_or_as_in_tarfile():
    data = pax([(b"size", b"3")], b"g") + header(b"a", 7) + pad(b"content") + REST
    check_reads_or_fails(read(data), [("a", b"con"), ("after", b"sti")])


@each("field", ["mode", "uid", "gid", "mtime", "devmajor"])
@each("value", [b"\xff" * 8, b"\x80" + b"\xff" * 7, b"garbage!", b"99999999", b" " * 8, bytes(8)])
def test_other_numbers_do_not_matter(field, value):
    value = value.ljust(12, value[-1:]) if field == "mtime" else value
    for outcome in read(entry(b"a", b"data", **{field: value}) + REST):
        assert contents(outcome) == [("a", b"data"), AFTER]
        assert outcome.error is None


def test_checksums_of_signed_bytes_are_accepted():
    block = bytearray(header(b"caf\xe9", 4))
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    put(block, "checksum", b"%06o\0 " % signed)
    for outcome in read(bytes(block) + pad(b"data") + REST):
        assert contents(outcome) == [("caf\udce9", b"data"), AFTER]


@each("checksum", [0, 1, b"\xff" * 8, b"garbage!", b" " * 8])
def test_wrong_checksums_are_an_error(checksum):
    check_fails(read(entry(b"a", b"data", checksum=checksum) + REST), CORRUPT)
    check_fails(read(entry(b"0", b"data") + entry(b"a", b"data", checksum=checksum) + REST), CORRUPT)


# --- pax records ------------------------------------------------------------------------------------------------------


@each(
    "records",
    [
        b"0 path=x\n", b"1 path=x\n", b"3 path=x\n", b"10 path=x\n", b"99999999999999999999 path=x\n", b"-9 path=x\n",
        b"9 path=x", b"9 path!x\n", b"x path=x\n", b" path=x\n", b"9path=x\n", b"9 path=x\n9 path",
        b"\xd9\xa9 path=x\n", b"09 path=x\n", b"+9 path=x\n", b"1_0 path=xx\n", b"9" * 5_000, b" " * 600,
    ],
)  # fmt: skip
def test_malformed_pax_records(records):
    data = pax(records) + entry(b"a", b"data") + REST
    check_reads_or_fails(read(data), [("a", b"data"), AFTER], [("x", b"data"), AFTER], [("xx", b"data"), AFTER])


def test_the_last_of_several_records_counts():
    data = pax([(b"path", b"one"), (b"path", b"two")]) + entry(b"a", b"data") + REST
    for outcome in read(data):
        assert contents(outcome) == [("two", b"data"), AFTER]


def test_a_record_applies_to_one_member_only():
    data = pax([(b"path", b"one")]) + entry(b"a", b"1") + entry(b"b", b"2") + END
    for outcome in read(data):
        assert contents(outcome) == [("one", b"1"), ("b", b"2")]


def test_many_pax_records_take_little_memory():
    records = b"".join(record(b"comment.%d" % number, b"") for number in range(10_000))
    with measure_peak_bytes() as peak:
        check_reads_or_fails(read(pax(records) + entry(b"a", b"data") + REST), [("a", b"data"), AFTER])
    assert peak[0] < MAX_MEMORY_BYTES


# --- chains and bombs -------------------------------------------------------------------------------------------------


@each("is_complete", [False, True])
@each("kind", ["x", "g", "L", "K", "mixed"])
def test_long_chains_of_extended_headers(kind, is_complete):
    one = {
        "x": pax([(b"path", b"long")]), "g": pax([(b"path", b"long")], b"g"), "L": gnu_long(b"long"),
        "K": gnu_long(b"long", b"K"),
    }  # fmt: skip
    chain = b"".join(one.values()) * 500 if kind == "mixed" else one[kind] * 2_000
    outcomes = read(chain + (entry(b"a", b"data") + END if is_complete else b""))
    if is_complete:
        check_reads_or_fails(outcomes, [("long", b"data")], [("a", b"data")])
    else:
        check_fails(outcomes, CORRUPT)


@each("kind, path", [(b"x", "set.tar"), (b"g", "set.tar.gz"), (b"L", "set.tar.gz"), (b"K", "set.tar.zst")])
def test_extended_headers_of_huge_sizes_take_little_memory(kind, path):
    data = compress(header(b"long", BOMB_BYTES, kind) + bytes(BOMB_BYTES) + REST, path)
    with measure_peak_bytes() as peak:
        outcomes = read(data, path)
    check_fails(outcomes, CORRUPT)
    assert peak[0] < MAX_MEMORY_BYTES


@each("path", ["set.tar.gz", "set.tar.zst"])
@each("claimed", [1 << 20, 8 << 30, 1 << 62])
def test_claimed_sizes_take_no_memory(path, claimed):
    size = claimed if claimed < 8 << 30 else b"\x80" + claimed.to_bytes(11, "big")
    with measure_peak_bytes() as peak:
        outcomes = read(compress(header(b"a", size) + b"short", path), path)
    for outcome in outcomes:
        assert isinstance(outcome.error, CORRUPT)
    assert peak[0] < MAX_MEMORY_BYTES


@each("path", ["set.tar.gz", "set.tar.zst"])
def test_a_bomb_is_refused(path):
    data = compress(entry(b"bomb", bytes(BOMB_BYTES)) + REST, path)
    with measure_peak_bytes() as peak:
        outcomes = read(data, path, limits=Limits(expansion_bytes=2 << 20, expansion_ratio=100))
    for outcome in outcomes:
        assert isinstance(outcome.error, LimitExceeded) or isinstance(outcome.members[0][1], LimitExceeded)
        assert contents(outcome) == []
    assert peak[0] < MAX_MEMORY_BYTES


@each("path", ["set.tar.gz", "set.tar.zst"])
def test_zeros_after_the_end_take_little_memory(path):
    data = compress(entry(b"a", b"data") + REST + bytes(BOMB_BYTES), path)
    with measure_peak_bytes() as peak:
        check_reads_or_fails(read(data, path), [("a", b"data"), AFTER])
    assert peak[0] < MAX_MEMORY_BYTES


def test_a_nested_bomb_is_only_bytes():
    inner = gzip.compress(gzip.compress(bytes(BOMB_BYTES)))
    for outcome in read(compress(entry(b"inner.tar.gz", inner) + REST, "set.tar.gz"), "set.tar.gz"):
        assert contents(outcome) == [("inner.tar.gz", inner), AFTER]


@pytest.mark.parametrize("count", [2_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_many_empty_gzip_members(count):
    data = gzip.compress(b"", mtime=0) * count + gzip.compress(entry(b"a", b"data") + REST)
    check_reads_or_fails(read(data, "set.tar.gz"), [("a", b"data"), AFTER])
    check_fails(read(gzip.compress(b"", mtime=0) * count, "set.tar.gz"), CORRUPT)


@pytest.mark.parametrize("count", [2_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_many_empty_frames_of_zstandard(count):
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    for filler in (skippable, zstd.compress(b"")):
        data = filler * count + zstd.compress(entry(b"a", b"data") + REST)
        check_reads_or_fails(read(data, "set.tar.zst"), [("a", b"data"), AFTER])
    check_fails(read(skippable * count, "set.tar.zst"), CORRUPT)


def test_a_window_of_zstandard_of_terabytes_takes_no_memory():
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xf8" + b"\x01\x00\x00"  # RFC 8878, 3.1.1.1: window of 2**41 bytes
    with measure_peak_bytes() as peak:
        check_fails(read(frame, "set.tar.zst"), CORRUPT)
    assert peak[0] < MAX_MEMORY_BYTES


def test_a_dictionary_of_zstandard_that_is_missing_is_an_error():
    frame = b"\x28\xb5\x2f\xfd" + b"\x21" + b"\x07" + b"\x04" + b"\x21\x00\x00" + b"data"
    check_fails(read(frame, "set.tar.zst"), CORRUPT)


def test_a_frame_of_zstandard_that_lies_about_its_size_is_an_error():
    frame = bytearray(zstd.compress(entry(b"a", b"data") + REST))
    frame[5] ^= 1  # of the declared content size
    for outcome in read(bytes(frame), "set.tar.zst"):
        assert isinstance(outcome.error, (*CORRUPT, IntegrityError))


@each("path", ["set.tar.gz", "set.tar.zst"])
def test_a_plain_tar_file_with_the_name_of_a_compressed_one_is_an_error(path):
    check_fails(read(entry(b"a", b"data") + REST, path), CORRUPT)


def test_a_compressed_tar_file_with_the_name_of_a_plain_one_is_an_error():
    check_fails(read(gzip.compress(entry(b"a", b"data") + REST), "set.tar"), CORRUPT)
    check_fails(read(zstd.compress(entry(b"a", b"data") + REST), "set.tar"), CORRUPT)


# --- the end ----------------------------------------------------------------------------------------------------------


@each("path", ["set.tar", "set.tar.gz", "set.tar.zst"])
def test_a_file_without_its_end_marker_is_cut(path):
    check_fails(read(compress(entry(b"a", b"data"), path), path), CORRUPT, "cut")


@each("path", ["set.tar", "set.tar.gz", "set.tar.zst"])
def test_one_block_of_zeros_ends_the_file(path):
    for outcome in read(compress(entry(b"a", b"data") + bytes(BLOCK), path), path):
        assert contents(outcome) == [("a", b"data")]
        assert outcome.error is None


def test_one_block_of_zeros_in_the_middle_hides_nothing():
    data = entry(b"a", b"data") + bytes(BLOCK) + REST
    check_fails(read(data), CORRUPT)


def test_an_extended_header_at_the_end_is_an_error():
    check_fails(read(entry(b"a", b"data") + pax([(b"path", b"x")]) + END), CORRUPT)


def compress(data, path):
    if path.endswith("gz"):
        return gzip.compress(data, 6, mtime=0)
    return zstd.compress(data) if path.endswith("zst") else data


def list_reference(data):
    """Return what tarfile reads, up to an error."""
    found = []
    with contextlib.suppress(Exception):  # of any kind
        found.extend(read_tar(data))
    return found
