"""Tar files for tests: written by tarfile, or header by header with any value in any field."""

from __future__ import annotations

import io
import posixpath
import tarfile

BLOCK = 512
END = bytes(2 * BLOCK)
FIELDS = {  # of POSIX pax, "ustar Interchange Format": offset, size
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
    "checksum": (148, 8), "typeflag": (156, 1), "linkname": (157, 100), "magic": (257, 8), "uname": (265, 32),
    "gname": (297, 32), "devmajor": (329, 8), "devminor": (337, 8), "prefix": (345, 155),
}  # fmt: skip
FORGED_SIZES = (
    0, 1, 511, 512, 513, 1_024, 0o7777, 0o77777777777,
    b"\x80" + bytes(11), b"\x80" + bytes(7) + b"\xff" * 4, b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\0",
    b"\xff" * 10 + b"\xfe\0", b"-0000000001\0", b"00000000008\0", b" " * 12, bytes(12), b"0x10", b"1_000", b"abc",
    b"7" * 12,
)  # fmt: skip


def build_tar(files, form=tarfile.PAX_FORMAT, padded=False):
    """Return a tar file of (name, bytes) pairs, as tarfile writes it. Its last record is padded only on request."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue() if padded else buffer.getvalue()[:end] + END


def read_tar(data):
    """Yield name and content of the members of a tar file, as tarfile reads it. It raises if there is no end marker."""
    with tarfile.open(fileobj=io.BytesIO(_clear_padding(data)), mode="r:") as tar:
        next_offset = 0
        contents = {}  # tarfile looks for the target of a hard link without an end, if a size after it is negative
        for info in tar:
            if info.offset < next_offset:  # tarfile reads a file with a negative size without an end
                raise tarfile.ReadError("a member has a negative size")
            next_offset = info.offset + BLOCK
            if info.isdir() or info.type in (b"D", b"V"):  # the last two: a directory of a backup, and a label
                continue
            content = None
            if info.isreg() and not info.issparse():
                with tar.extractfile(info) as file:
                    content = contents[posixpath.normpath(info.name)] = file.read()
            elif info.islnk():
                content = contents.get(posixpath.normpath(info.linkname))
            yield info.name, content
        end = data[tar.offset : tar.offset + BLOCK]
    if end != bytes(BLOCK):
        raise tarfile.ReadError("there is no end marker")


def _clear_padding(data):
    """Return the data with zeros after each long name of GNU tar: tarfile takes all that follows for a part of it."""
    cleared = bytearray(data)
    for offset in find_headers(data):
        size = data[offset + 124 : offset + 135]
        if data[offset + 156 : offset + 157] in (b"L", b"K") and size.isdigit():
            start = offset + BLOCK + int(size, 8)
            end = min(len(data), start + -start % BLOCK)
            cleared[start:end] = bytes(max(0, end - start))
    return bytes(cleared)


def header(name=b"a", size=0, typeflag=b"0", **fields):
    """Return one header. Each field is a number, or the bytes of the field as they are."""
    block = bytearray(BLOCK)
    defaults = {"mode": 0o644, "uid": 0, "gid": 0, "mtime": 1_700_000_000, "magic": b"ustar\x0000"}
    for field, value in {**defaults, "name": name, "size": size, "typeflag": typeflag, **fields}.items():
        put(block, field, value)
    if "checksum" not in fields:
        sign(block)
    return bytes(block)


def put(block, field, value):
    """Write a field into a header."""
    offset, size = FIELDS[field]
    raw = b"%0*o\0" % (size - 1, value) if isinstance(value, int) else value.ljust(size, b"\0")
    assert len(raw) == size, (field, value)
    block[offset : offset + size] = raw


def sign(block):
    """Write the checksum of a header into it."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)


def pad(data):
    """Return the data, filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def entry(name=b"a", data=b"", typeflag=b"0", **fields):
    """Return a member: its header and its content."""
    return header(name, **{"size": len(data), "typeflag": typeflag, **fields}) + pad(data)


def pax(records, typeflag=b"x"):
    """Return a pax header of (keyword, value) pairs, or of the bytes of its records as they are."""
    data = records if isinstance(records, bytes) else b"".join(record(*pair) for pair in records)
    return entry(b"PaxHeaders/a", data, typeflag)


def record(keyword, value):
    """Return one pax record: "length keyword=value\n", where the length counts itself."""
    rest = b" %s=%s\n" % (keyword, value)
    size = len(rest)
    while size != len(rest) + len(str(size)):
        size = len(rest) + len(str(size))
    return str(size).encode() + rest


def gnu_long(name, typeflag=b"L"):
    """Return GNU's header of a long name ("L") or of a long link ("K")."""
    return entry(b"././@LongLink", name + b"\0", typeflag, magic=b"ustar  \0")


def find_headers(data):
    """Return the offsets of the blocks that are headers with a correct checksum."""
    found = []
    for offset in range(0, len(data) - BLOCK + 1, BLOCK):
        block = bytearray(data[offset : offset + BLOCK])
        sign(block)
        if block[148:154] == data[offset + 148 : offset + 154] and any(block[:100]):
            found.append(offset)
    return found


def forge_tar_number(data, rng):
    """Return the file with another size, type or time in one of its headers, and the checksum of that header right."""
    offsets = find_headers(data)
    if not offsets:
        return data
    offset = rng.choice(offsets)
    block = bytearray(data[offset : offset + BLOCK])
    field = rng.choice(["size", "size", "size", "typeflag", "mtime", "mode"])
    if field == "typeflag":
        put(block, field, bytes([rng.choice(b"\x000123456789DKLMNSVXgxAZ")]))
    elif field == "size":
        put(block, field, rng.choice([*FORGED_SIZES, rng.randrange(1 << 20), rng.randrange(8) * BLOCK]))
    else:
        put(block, field, rng.randrange(8**7))
    sign(block)
    return data[:offset] + bytes(block) + data[offset + BLOCK :]
