"""Zip files for tests: written by zipfile, or record by record with any value in any field (APPNOTE.TXT, 4.3)."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
import zlib
from unittest import mock

LOCAL, DIRECTORY, END, END64, LOCATOR64, DESCRIPTOR = (
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08",
)  # fmt: skip
NUMBERS = {  # offset and size of the numbers in each record
    LOCAL: [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    DIRECTORY: [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (38, 4), (42, 4)],
    END: [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
    END64: [(4, 8), (24, 8), (32, 8), (40, 8), (48, 8)],
    LOCATOR64: [(4, 4), (8, 8), (16, 4)],
    DESCRIPTOR: [(4, 4), (8, 4), (12, 4)],
}
SAME_NUMBERS = {(8, 2): (10, 2), (14, 4): (16, 4), (18, 4): (20, 4), (22, 4): (24, 4)}  # of header and directory
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class Unseekable(io.BytesIO):
    """A stream, to which zipfile writes data descriptors."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    def tell(self):
        raise io.UnsupportedOperation


def build_zip(files, method=STORED, *, descriptors=False, comment=b"", zip64=False):
    """Return a zip file of (name, bytes) pairs, as zipfile writes it."""
    buffer = Unseekable() if descriptors else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, data in files:
            info = zipfile.ZipInfo(name, (2023, 11, 14, 22, 13, 20))
            info.compress_type = method
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(data)
        archive.comment = comment
    return buffer.getvalue()


def build_zip64(files, method=DEFLATED):
    """Return a zip file whose sizes, offsets and counts all are in records of zip64, as zipfile writes large files."""
    with mock.patch.multiple(zipfile, ZIP64_LIMIT=0, ZIP_FILECOUNT_LIMIT=0):
        return build_zip(files, method, zip64=True)


def read_zip(data):
    """Yield name and content of the members of a zip file, as zipfile reads it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield _decode_name(info), _extract(archive, info)


def _decode_name(info):
    """Return the name. Programs of Unix and macOS write UTF-8 without its flag, which zipfile takes for CP437."""
    if info.create_system in (3, 19) and not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return info.orig_filename.encode("cp437").decode()
    return info.orig_filename


def _extract(archive, info):
    try:
        return archive.read(info)
    except Exception:  # noqa: BLE001 - of any kind
        return None


def forge_zip_number(data, rng):
    """Return the file with another number in one of its records, or the same one in the header and in the directory."""
    places = find_records(data)
    if not places:
        return data
    altered = bytearray(data)
    signature = rng.choice(sorted(places))
    index = rng.randrange(len(places[signature]))
    field = rng.choice(NUMBERS[signature])
    value = _choose_number(altered, places[signature][index] + field[0], field[1], rng)
    _put(altered, places[signature][index], field, value)
    if signature == LOCAL and field in SAME_NUMBERS and index < len(places.get(DIRECTORY, ())) and rng.random() < 0.6:
        _put(altered, places[DIRECTORY][index], SAME_NUMBERS[field], value)
    return bytes(altered)


def find_records(data):
    """Return the offsets of all that looks like a record, by signature."""
    found = {}
    for signature in NUMBERS:
        offset = data.find(signature)
        while offset >= 0:
            found.setdefault(signature, []).append(offset)
            offset = data.find(signature, offset + 1)
    return found


def _choose_number(data, offset, size, rng):
    old = int.from_bytes(data[offset : offset + size], "little")
    most = (1 << 8 * size) - 1
    return rng.choice([0, 1, most, most - 1, most >> 1, old + 1, old - 1, old * 2, rng.randrange(1 << 12)]) & most


def _put(data, offset, field, value):
    start = offset + field[0]
    if start + field[1] <= len(data):
        data[start : start + field[1]] = value.to_bytes(field[1], "little")


# --- by hand ----------------------------------------------------------------------------------------------------------


class Entry:
    """One member, with any values in its two headers. Values that begin with `local_` are in the local header only."""

    def __init__(self, name=b"a", content=b"", method=STORED, *, stored=None, **values):
        self.stored = stored if stored is not None else deflate(content) if method == DEFLATED else content
        self.values = {
            "version": 20, "flags": 0, "method": method, "crc": zlib.crc32(content), "stored_size": len(self.stored),
            "size": len(content), "name": name, "extra": b"", "comment": b"", "disk": 0, "attributes": 0o100644 << 16,
            "trailer": b"", **values,
        }  # fmt: skip

    def get(self, key, local=False):
        return self.values.get(f"local_{key}", self.values[key]) if local else self.values[key]

    def local(self):
        """Return header and content."""
        values = [self.get(key, local=True) for key in ("version", "flags", "method", "crc", "stored_size", "size")]
        name, extra = self.get("name", local=True), self.get("extra", local=True)
        return self.header(values, name, extra) + self.stored + self.values["trailer"]

    @staticmethod
    def header(values, name, extra):
        version, flags, method, crc, stored_size, size = values
        return LOCAL + struct.pack(
            "<HHHHHIIIHH", version, flags, method, 0xB1A0, 0x576E, crc, stored_size, size, len(name), len(extra)
        ) + name + extra  # fmt: skip

    def central(self, offset):
        """Return the record of the directory."""
        get = self.get
        return DIRECTORY + struct.pack(
            "<HHHHHHIIIHHHHHII", 0x314, get("version"), get("flags"), get("method"), 0xB1A0, 0x576E, get("crc"),
            get("stored_size"), get("size"), len(get("name")), len(get("extra")), len(get("comment")), get("disk"), 0,
            get("attributes"), self.values.get("offset", offset),
        ) + get("name") + get("extra") + get("comment")  # fmt: skip


def deflate(data):
    """Return a raw deflate stream."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def end_record(count, size, offset, comment=b"", **values):
    """Return the end record of the directory."""
    get = {"disk": 0, "directory_disk": 0, "count_here": count, "comment_size": len(comment), **values}.get
    return END + struct.pack(
        "<HHHHIIH", get("disk"), get("directory_disk"), get("count_here"), count, size, offset, get("comment_size")
    ) + comment  # fmt: skip


def write_zip(entries, *, comment=b"", **values):
    """Return a zip file of entries."""
    data, directory = b"", b""
    for item in entries:
        directory += item.central(len(data))
        data += item.local()
    count = values.pop("count", len(entries))
    size, offset = values.pop("size", len(directory)), values.pop("offset", len(data))
    return data + directory + end_record(count, size, offset, comment, **values)
