"""Packs for tests: written column by column with any value in any field, and read by another program than ours."""

from __future__ import annotations

import base64
import struct
import sys
import zlib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEADER = b"\x89SLPACK\n" + struct.pack("<II", 1, 0)
FOOTER_MAGIC = b"SLPKINDX"
FOOTER_FIELDS = {  # offset and size of the numbers in the footer, without its own checksum
    "index_offset": (8, 8), "index_size": (16, 8), "count": (24, 8), "names_size": (32, 8), "metadata_size": (40, 4),
    "width": (44, 1), "flags": (45, 1), "zero": (46, 2), "checksum": (48, 4), "zero1": (52, 4), "zero2": (56, 4),
}  # fmt: skip
STORED, ZLIB, ZSTD, CUSTOM = 0, 1, 2, 255
CODES = {4: "I", 8: "Q"}


def compress(data, method):
    """Return data as a member of this method stores it."""
    return {STORED: bytes, ZLIB: zlib.compress, ZSTD: zstd.compress}[method](data)


def decompress(data, method):
    return {STORED: bytes, ZLIB: zlib.decompress, ZSTD: zstd.decompress}[method](data)


def padded(data):
    return data + bytes(-len(data) % 8)


class PackFile:
    """A pack, whose columns can be altered before it is built.

    Args:
        files: Pairs of name and content, in their order.
        method: Method of all members. None stands for stored members, without the columns for sizes and methods.
        width: Size of offsets.
    """

    def __init__(self, files, method=None, *, width=4, metadata=b"{}"):
        names = [name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape") for name, _ in files]
        self.header, self.width, self.metadata = HEADER, width, metadata
        self.stored = [compress(data, method or STORED) for _, data in files]
        self.names = b"".join(names)
        self.starts = add_up([len(HEADER), *map(len, self.stored)])
        self.modified = [0] * len(files)
        self.hashes = [zlib.crc32(name) for name in names]
        self.checksums = [zlib.crc32(data) for _, data in files]
        self.name_ends = add_up([0, *map(len, names)])
        self.sizes = [len(data) for _, data in files]
        self.methods = None if method is None else [method] * len(files)
        self.footer = {}

    def build(self):
        """Return the bytes of the pack. Fields in `footer` replace the right ones."""
        body = padded(self.header + b"".join(self.stored))
        code = CODES[self.width]
        columns = [(code, self.starts), ("q", self.modified), ("I", self.hashes), ("I", self.checksums)]
        columns.append(("I", self.name_ends))
        if self.methods is not None:
            columns += [(code, self.sizes), ("B", self.methods)]
        parts = [struct.pack(f"<{len(values)}{code}", *values) for code, values in columns]
        return self.finish(body, b"".join(map(padded, [*parts, self.names, self.metadata])))

    def finish(self, body, index):
        values = {
            "index_offset": len(body), "index_size": len(index), "count": len(self.hashes),
            "names_size": len(self.names), "metadata_size": len(self.metadata), "width": self.width,
            "flags": self.methods is not None, "zero": 0, "checksum": zlib.crc32(index), "zero1": 0, "zero2": 0,
            **self.footer,
        }  # fmt: skip
        return body + index + seal(FOOTER_MAGIC + struct.pack("<QQQQIBBHIII", *values.values()))


def add_up(sizes):
    ends = []
    for size in sizes:
        ends.append(size + (ends[-1] if ends else 0))
    return ends


def seal(footer):
    """Return a footer with its checksum."""
    return footer + struct.pack("<I", zlib.crc32(footer))


def normalize(name):
    """Return a name as writers store it."""
    return name.removeprefix("./")


def build_pack(files, method=None, **options):
    """Return a pack of (name, bytes) pairs."""
    return PackFile([(normalize(name), data) for name, data in files], method, **options).build()


def describe_blocks(files):
    """Return the metadata of a pack of (name, bytes) pairs that has checksums of blocks, and nothing else."""
    blocks = [b"".join(data for _, data in files[start : start + 128]) for start in range(0, len(files), 128)]
    checksums = [zlib.crc32(block) if len(block) <= 1 << 16 else 0 for block in blocks]
    if not any(checksums):
        return b"{}"
    return b'{"block_checksums":"%s"}' % base64.b64encode(struct.pack(f"<{len(checksums)}I", *checksums))


def read_pack(data):
    """Yield name and content of the members of a pack. The content is None if it is damaged."""
    footer = data[-64:]
    if footer[:8] != FOOTER_MAGIC or seal(footer[:60]) != footer or data[:16] != HEADER:
        raise ValueError("no pack")
    offset, size, count, names_size, _, width, flags, _, checksum = struct.unpack_from("<QQQQIBBHI", footer, 8)
    if zlib.crc32(data[offset : offset + size]) != checksum or offset + size + 64 != len(data):
        raise ValueError("damaged index")

    def take(code, length):
        nonlocal offset
        values = struct.unpack_from(f"<{length}{code}", data, offset)
        offset += -(-struct.calcsize(f"<{length}{code}") // 8) * 8
        return values

    starts, _, _ = take(CODES[width], count + 1), take("q", count), take("I", count)
    checksums, name_ends = take("I", count), take("I", count + 1)
    sizes, methods = (take(CODES[width], count), take("B", count)) if flags & 1 else (None, (STORED,) * count)
    names = data[offset : offset + names_size]
    for row in range(count):
        name = names[name_ends[row] : name_ends[row + 1]].decode("utf-8", "surrogateescape")
        yield name, extract(data[starts[row] : starts[row + 1]], methods[row], sizes and sizes[row], checksums[row])


def extract(stored, method, size, checksum):
    try:
        content = decompress(stored, method)
    except Exception:  # noqa: BLE001 - of any kind
        return None
    return content if size in (None, len(content)) and zlib.crc32(content) == checksum else None


def forge_pack_number(data, rng):
    """Return the pack with another number in the footer or in the index, and right checksums of both."""
    footer = data[-64:]
    if footer[:8] != FOOTER_MAGIC or len(data) < 80:
        return data
    offset, size = struct.unpack_from("<QQ", footer, 8)
    field = rng.choice(["index"] * 3 + [field for field in FOOTER_FIELDS if field != "checksum"])
    altered = bytearray(data)
    if field == "index" and size >= 4 and offset + size + 64 == len(data):
        width = rng.choice([1, 4, 4, 8])
        put_number(altered, offset + rng.randrange(size // width) * width, width, rng)
    elif field != "index":
        put_number(altered, len(data) - 64 + FOOTER_FIELDS[field][0], FOOTER_FIELDS[field][1], rng)
    offset, size = struct.unpack_from("<QQ", altered, len(data) - 56)
    if offset + size <= len(data):
        altered[-16:-12] = struct.pack("<I", zlib.crc32(altered[offset : offset + size]))
    altered[-4:] = struct.pack("<I", zlib.crc32(altered[-64:-4]))
    return bytes(altered)


def put_number(data, start, width, rng):
    old = int.from_bytes(data[start : start + width], "little")
    most = (1 << 8 * width) - 1
    values = [0, 1, most, most - 1, most >> 1, old + 1, old - 1, old * 2, rng.randrange(1 << 12)]
    data[start : start + width] = (rng.choice(values) & most).to_bytes(width, "little")
