"""Packs that attack their reader: right bytes or one typed error, from any store and from memory."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
from containers.hostile import AFTER, check_fails, check_reads_or_fails, contents, each, read_both
from containers.pack_files import (
    CUSTOM,
    FOOTER_FIELDS,
    STORED,
    ZLIB,
    ZSTD,
    PackFile,
    add_up,
    build_pack,
    forge_pack_number,
    seal,
    zstd,
)

from streamloader.config import Limits
from streamloader.containers.pack.build import PackBuilder
from streamloader.containers.pack.container import PackContainer
from streamloader.containers.pack.format import MalformedPack
from streamloader.containers.pack.mapped import MappedPack
from streamloader.errors import CorruptContainer, IntegrityError, LimitExceeded, NotSupported
from streamloader.testing.containers.binding import make_rng
from streamloader.testing.containers.damage import measure_peak_bytes
from streamloader.testing.containers.mutants import mutate

FILES = [("a", b"content of a"), AFTER, ("b/c", b"more"), ("b/empty", b""), ("z", b"the last")]
MAX_MEMORY_BYTES = 8 << 20
BOMB_BYTES = 24 << 20
UNSAFE_NAMES = [
    b"", b".", b"..", b"../evil", b"a/../../evil", b"/etc/passwd", b"//host/share", b"a//b", b"a/./b", b"a/..", b"a/",
    b"/", b"a.png\0.exe", b"\0", b"n" * 4_097, b"./a", b"a/.", b"..//",
]  # fmt: skip


def read(data, **options):
    return read_both(PackContainer, data, **options)


def check_unusable(data, text=""):
    """Check that a pack cannot be opened, neither in a store nor in memory."""
    check_fails(read(data), CorruptContainer, text)
    with pytest.raises(CorruptContainer, match=text or None) as caught:
        MappedPack.from_bytes(data)
    assert caught.value.offset >= 0


def check_unlisted(data, text):
    """Check that a pack has no list of members, and that reading from memory returns right bytes or typed errors."""
    check_fails(read(data), CorruptContainer, text)
    assert read_mapped(data) is not None


def read_mapped(data):
    """Return what is found in memory: name and content of the members that can be read. None if nothing opens."""
    try:
        pack = MappedPack.from_bytes(data)
    except CorruptContainer:
        return None
    found = []
    for row, name in enumerate(pack.index.names()):
        try:
            content = bytes(pack.read(row))
        except (CorruptContainer, IntegrityError, LimitExceeded, NotSupported):
            continue
        assert zlib.crc32(content) == pack.index.checksums[row]
        assert pack.find(name) in {None, *range(len(pack))}
        found.append((name, content))
    return found


def alter(method=None, **columns):
    """Return a pack with other values in its columns. A function gets the right ones."""
    pack = PackFile(FILES, method)
    for column, value in columns.items():
        setattr(pack, column, value(getattr(pack, column)) if callable(value) else value)
    return pack.build()


# --- names ------------------------------------------------------------------------------------------------------------


@each("name", UNSAFE_NAMES)
@each("others", [[], [b"b"]])
def test_an_unsafe_name_is_an_error(name, others):
    check_unusable(PackFile([(name, b"evil"), *((other, b"") for other in others)]).build(), "name")


@each("name", [b"C:/evil", b"c:\\evil"])
def test_a_name_with_a_drive_is_never_read_as_a_member(name):
    for outcome in read(PackFile([(name, b"evil"), AFTER] if name < b"after" else [AFTER, (name, b"evil")]).build()):
        assert outcome.error is None
        refused = [content for _, content in outcome.members if isinstance(content, NotSupported)]
        assert len(refused) == 1
        assert contents(outcome) == [AFTER]


@each("names", [["b", "a"], ["a", "a"], ["b", "a", "c"], ["a", "a/b", "a"], ["\udcff", "a"]])
def test_names_in_another_order_are_an_error(names):
    check_unlisted(build_pack([(name, b"") for name in names]), "ascending")


def test_names_in_another_order_after_thousands_are_an_error():
    names = [f"{number:05}" for number in range(9_000)]
    MappedPack.from_bytes(build_pack([(name, b"") for name in names])).index.check_names()
    names[8_500], names[8_501] = names[8_501], names[8_500]
    index = MappedPack.from_bytes(build_pack([(name, b"") for name in names])).index
    with pytest.raises(MalformedPack, match="ascending"):
        index.check_names()


@each("row", [0, 4])
def test_hashes_that_do_not_fit_are_an_error(row):
    def forge(hashes):
        return [value ^ (number == row) for number, value in enumerate(hashes)]

    check_unlisted(alter(hashes=forge), "hashes")


def test_names_cannot_write_to_a_terminal():
    pack = PackFile([("\x1b[2J\r\nevil", b"x"), ("\x1b[2J\r\nevil.2", b"y")])
    pack.checksums[0] ^= 1
    for outcome in read(pack.build()):
        assert str(outcome.members[0][1]).isprintable()
    with pytest.raises(IntegrityError) as caught:
        MappedPack.from_bytes(pack.build()).read(0)
    assert str(caught.value).isprintable()


# --- offsets ----------------------------------------------------------------------------------------------------------


@each(
    "starts",
    [
        [0, 28, 28, 28, 28, 56], [17, 28, 28, 28, 28, 56], [16, 15, 28, 28, 28, 56], [16, 57, 28, 28, 28, 56],
        [16, 0xFFFFFFFF, 28, 28, 28, 56], [16, 28, 42, 46, 46, 0], [16, 28, 42, 46, 46, 0xFFFFFFFF],
        [16, 16, 16, 16, 16, 16], [16, 28, 30, 29, 46, 54], [0] * 6, [0xFFFFFFFF] * 6,
    ],
)  # fmt: skip
@each("width", [4, 8])
def test_offsets_that_lead_elsewhere_are_errors(starts, width):
    pack = PackFile(FILES, width=width)
    pack.starts = starts
    check_unusable(pack.build(), "its index is damaged: the")


def test_wrong_borders_between_members_are_wrong_checksums():
    data = alter(starts=lambda starts: [starts[0], starts[1] - 1, *starts[2:]])
    for outcome in read(data):
        assert outcome.error is None
        assert [isinstance(content, IntegrityError) for _, content in outcome.members] == [
            True,
            True,
            False,
            False,
            False,
        ]
    assert read_mapped(data) == FILES[2:]


@each(
    "ends",
    [[1, 2, 6, 9, 16, 17], [0, 0, 6, 9, 16, 17], [0, 6, 1, 9, 16, 17], [0, 1, 6, 9, 16, 16], [0, 1, 6, 9, 16, 18],
     [0, 1, 6, 9, 0xFFFFFFFF, 17], [0] * 6, [0xFFFFFFFF] * 6, [0, 17, 17, 17, 17, 17]],
)  # fmt: skip
def test_ends_of_names_that_lead_elsewhere_are_errors(ends):
    check_unusable(alter(name_ends=ends), "names")


@each("size", [0, 11, 13, 0xFFFFFFFF])
def test_stored_members_of_another_size_are_errors(size):
    check_unusable(alter(STORED, sizes=lambda sizes: [size, *sizes[1:]]), "another size")


@each("method", [3, 4, 100, 254])
def test_unknown_methods_are_errors(method):
    check_unusable(alter(STORED, methods=[0, 0, method, 0, 0]), "methods")


# --- the footer -------------------------------------------------------------------------------------------------------


@each("field", [field for field in FOOTER_FIELDS if field != "checksum"])
def test_forged_footers(field):
    bits = 8 * FOOTER_FIELDS[field][1]
    for number in (0, 1, 2, 5, 7, 8, 16, 64, 255, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 64) - 1):
        data = alter(footer={field: number % (1 << bits)})
        with measure_peak_bytes() as peak:
            check_reads_or_fails(read(data), FILES)
            assert read_mapped(data) in (None, FILES)
        assert peak[0] < MAX_MEMORY_BYTES


@each("count", [1 << 28, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, 1 << 40])
def test_a_claimed_number_of_members_takes_no_memory(count):
    size = -(-4 * (count + 1) // 8) * 16 + 16 * count
    with measure_peak_bytes() as peak:
        for footer in ({"count": count}, {"count": count, "index_size": size + 24}):
            check_unusable(alter(footer=footer))
    assert peak[0] < MAX_MEMORY_BYTES


@each("flags", [2, 0x80, 0xFF])
def test_flags_of_later_versions_are_errors(flags):
    check_unusable(alter(footer={"flags": flags}), "later version")


def test_a_later_version_is_an_error():
    check_unusable(alter(header=b"\x89SLPACK\n" + struct.pack("<II", 2, 0)), "later version")


def test_a_header_is_checked_in_long_packs_too():
    files = [("a", bytes(200_000)), ("b", b"end")]
    data = b"PK\3\4" + build_pack(files)[4:]
    with pytest.raises(CorruptContainer):
        MappedPack.from_bytes(data)
    scan, single_pass = read(data)
    assert contents(scan) == files  # members are read by their offsets: another request would only be for the header
    assert isinstance(single_pass.error, CorruptContainer)


def test_a_footer_of_another_pack_is_an_error():
    other = build_pack([("a", b"x")])
    check_unusable(build_pack(FILES)[:-64] + other[-64:])
    check_unusable(other + build_pack(FILES))
    check_unusable(build_pack(FILES) + other)
    check_unusable(seal(bytes(60)))


@each("prefix", [b"#!/bin/sh\n", bytes(8), bytes(1_000), build_pack(FILES)])
def test_bytes_before_or_after_the_pack_are_an_error(prefix):
    check_unusable(prefix + build_pack(FILES))
    check_unusable(build_pack(FILES) + prefix[: -64 if len(prefix) > 1_000 else None] + b"\n")


@each("method", [None, ZLIB])
def test_every_flipped_byte_of_index_and_footer_is_an_error(method):
    data = PackFile(FILES, method).build()
    index_offset = struct.unpack_from("<Q", data, len(data) - 56)[0]
    for offset in range(index_offset, len(data)):
        for mask in (1, 0x80, 0xFF):
            with pytest.raises(CorruptContainer):
                MappedPack.from_bytes(data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :])


# --- metadata ---------------------------------------------------------------------------------------------------------


@each(
    "metadata",
    [b"", b"[]", b"null", b"7", b"{", b'{"a": 1} {}', b"\xff", b'{"a": "\xff"}', "{}".encode("utf-16"), b"[" * 200_000,
     b'{"a":' * 100_000, b"9" * 10_000],
)  # fmt: skip
def test_metadata_that_are_no_object_are_an_error(metadata):
    check_unusable(alter(metadata=metadata), "metadata")


def test_long_metadata_are_an_error():
    check_unusable(alter(metadata=b'{"a": "' + b"x" * (1 << 20) + b'"}'), "metadata")


def test_metadata_name_classes_that_nobody_imports():
    metadata = {"compressor": "os.abort", "serializer": "this.module.does.not.Exist"}
    data = alter(metadata=json.dumps(metadata).encode())
    check_fails(read(data), NotSupported, "this.module.does.not.Exist and the compressor os.abort")
    assert read_mapped(data) == FILES


@each("metadata", [b"{}", b'{"compressor": 5}', b'{"compressor": "my.Compressor\\u001b[2J"}'])
def test_members_of_a_compressor_of_the_user_are_not_supported(metadata):
    data = alter(STORED, methods=[CUSTOM] * 5, metadata=metadata)
    outcomes = read(data)
    check_fails(outcomes, NotSupported, "VirtualDirectory")
    assert str(outcomes[0].error).isprintable()
    assert read_mapped(data) == []


# --- compressed data --------------------------------------------------------------------------------------------------


@each("method", [ZLIB, ZSTD])
@each(
    "stored",
    [
        b"", b"\0", b"\xff" * 20, b"content of a", zlib.compress(b"content of a")[:-1], zlib.compress(b"content"),
        zlib.compress(b"content of a") + b"more", zlib.compress(b"content of a and more"),
        zlib.compress(b"CONTENT OF A"),
        zstd.compress(b"content of a")[:-1], zstd.compress(b"content of a") + b"more", zstd.compress(b"content"),
        zstd.compress(b"content of a and more"), zstd.compress(b"CONTENT OF A"), b"\x50\x2a\x4d\x18\1\0\0\0x",
        zstd.compress(b"content ") + zstd.compress(b"of a"),
    ],
)  # fmt: skip
def test_damaged_compressed_data(method, stored):
    pack = PackFile(FILES, method)
    pack.stored[0] = stored
    pack.starts = add_up([16, *map(len, pack.stored)])
    for outcome in read(pack.build()):
        assert outcome.error is None
        assert isinstance(outcome.members[0][1], CorruptContainer | IntegrityError), outcome.members[0]
        assert contents(outcome) == FILES[1:]
    assert read_mapped(pack.build()) == FILES[1:]


@each("method", [ZLIB, ZSTD])
@each("declared", [0, 10, 1 << 18, (1 << 18) + 1, 1 << 20, 0xFFFFFFF0])
def test_a_bomb_that_lies_about_its_size(method, declared):
    pack = PackFile([("a", bytes(BOMB_BYTES)), AFTER], method)
    pack.sizes[0] = declared
    data = pack.build()
    with measure_peak_bytes() as peak:
        for outcome in read(data):
            assert outcome.error is None
            assert isinstance(outcome.members[0][1], CorruptContainer | IntegrityError | LimitExceeded)
            assert contents(outcome) == [AFTER]
        assert read_mapped(data) == [AFTER]
    assert peak[0] < MAX_MEMORY_BYTES + (BOMB_BYTES if declared > BOMB_BYTES else 0)  # joined by the test


@each("method", [ZLIB, ZSTD])
def test_an_honest_bomb_is_refused(method):
    data = build_pack([("a", bytes(BOMB_BYTES)), AFTER], method)
    limits = Limits(expansion_bytes=2 << 20, expansion_ratio=100)
    with measure_peak_bytes() as peak:
        for outcome in read(data, limits=limits):
            assert isinstance(outcome.members[0][1], LimitExceeded)
            assert contents(outcome) == [AFTER]
        with pytest.raises(LimitExceeded):
            MappedPack.from_bytes(data, limits=limits).read(0)
    assert peak[0] < MAX_MEMORY_BYTES


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_size_of_the_index_is_limited():
    data = build_pack([(f"{number:05}", b"") for number in range(2_000)])
    size = struct.unpack_from("<Q", data, len(data) - 48)[0]
    assert len(contents(read(data, limits=Limits(listing_bytes=size))[0])) == 2_000
    check_fails(read(data, limits=Limits(listing_bytes=size - 1)), LimitExceeded, "listing_bytes")


# --- at random --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutants_in_memory(count):
    for number in range(count):
        rng = make_rng(number)
        method = rng.choice([None, STORED, ZLIB, ZSTD])
        data = build_pack(FILES, method, width=rng.choice([4, 8]))
        for _ in range(rng.choice([1, 1, 2])):
            data = forge_pack_number(data, rng) if rng.random() < 2 / 3 else mutate(data, rng)
        found = read_mapped(data)
        assert found is None or {content for _, content in found} <= {content for _, content in FILES}, number


def test_a_mutant_is_read_if_nothing_is_wrong():
    file = io.BytesIO()
    builder = PackBuilder(file)
    for name, data in FILES:
        builder.add(name, data)
    builder.finish()
    assert read_mapped(file.getvalue()) == FILES
    for outcome in read(file.getvalue()):
        assert contents(outcome) == FILES
