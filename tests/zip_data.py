"""Zip files for tests: ordinary ones by zipfile, and any others field by field (APPNOTE.TXT 4.3)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import struct
import warnings
import zipfile
import zlib

from streamloader.containers.base import ContainerSource
from streamloader.containers.zip.container import ZipContainer
from streamloader.stores.memory import MemoryStore

DATE = 45 << 9 | 6 << 5 | 7  # 2025-06-07


class RecordingStore(MemoryStore):
    """Objects in memory; `spans` are the requests."""

    def __init__(self, url="memory://zip", **options):
        super().__init__(url, **options)
        self.spans = []

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        self.spans.append((span.start, span.end))
        async with super()._get(path, span, version) as body:
            yield body


def play(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


@contextlib.asynccontextmanager
async def opened(data, **options):
    """The container, and the store that records its requests."""
    async with RecordingStore(**options) as store:
        await store.write("a.zip", data)
        yield ZipContainer(ContainerSource(store, await store.head("a.zip"))), store
        await store.delete("a.zip")


def scan(data, **options):
    async def collect():
        async with opened(data, **options) as (container, _):
            return [member async for member in container.scan()]

    return play(collect())


def iterate(data):
    """Name and content of each member."""

    async def collect():
        async with opened(data) as (container, _):
            return [
                (member.name, b"".join([piece async for piece in pieces]))
                async for member, pieces in container.iterate()
            ]

    return play(collect())


async def read(container, member, start=0, end=None):
    async with contextlib.aclosing(container.stream(member, start, end)) as pieces:
        return b"".join([piece async for piece in pieces])


def read_all(data):
    """Name and content of each member, each read by itself."""

    async def collect():
        async with opened(data) as (container, _):
            return [(member.name, await read(container, member)) async for member in container.scan()]

    return play(collect())


def make_zip(members, method=zipfile.ZIP_STORED, comment=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that occur twice
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name, (2025, 6, 7, 8, 9, 10)), content, method)
        file.comment = comment
    return buffer.getvalue()


def truth(data):
    """Name and content of each member, as zipfile has them."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist() if not info.is_dir()]


def deflate(content):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


@dataclasses.dataclass
class Entry:
    """A member, field by field. The fields that are None follow from the content."""

    name: bytes = b"a"
    content: bytes = b"content"
    method: int = 0
    flags: int = 0
    stored: bytes | None = None  # bytes
    size: int | None = None
    stored_size: int | None = None
    checksum: int | None = None
    extra: bytes = b""  # of the directory
    offset: int | None = None
    system: int = 3
    attributes: int = 0
    disk: int = 0
    time: int = 8 << 11
    date: int = DATE
    comment: bytes = b""
    local: dict = dataclasses.field(default_factory=dict)  # what differs in the local header
    after: bytes = b""  # follows the content

    def __post_init__(self):
        if self.stored is None:
            self.stored = deflate(self.content) if self.method == 8 else self.content
        self.size = len(self.content) if self.size is None else self.size
        self.stored_size = len(self.stored) if self.stored_size is None else self.stored_size
        self.checksum = zlib.crc32(self.content) if self.checksum is None else self.checksum

    def make_local(self):
        name, extra = self.local.get("name", self.name), self.local.get("extra", b"")
        values = {
            "signature": b"PK\3\4", "version": 20, "flags": self.flags, "method": self.method, "time": self.time,
            "date": self.date, "checksum": self.checksum, "stored_size": self.stored_size, "size": self.size,
            "name_length": len(name), "extra_length": len(extra),
        }  # fmt: skip
        values.update({key: value for key, value in self.local.items() if key in values})
        return struct.pack("<4s5H3L2H", *values.values()) + name + extra + self.stored + self.after

    def make_entry(self, offset):
        return (
            struct.pack(
                "<4s2B5H3L5H2L", b"PK\1\2", 20, self.system, 20, self.flags, self.method, self.time, self.date,
                self.checksum, self.stored_size, self.size, len(self.name), len(self.extra), len(self.comment),
                self.disk, 0, self.attributes, offset if self.offset is None else self.offset,
            )
            + self.name + self.extra + self.comment
        )  # fmt: skip


def make_end(count, size, start, comment=b"", **changes):
    values = {
        "signature": b"PK\5\6", "disk": 0, "start_disk": 0, "disk_count": count, "count": count, "size": size,
        "start": start, "comment_length": len(comment), **changes,
    }  # fmt: skip
    return struct.pack("<4s4H2LH", *values.values()) + comment


def make_end_64(values, offset, extensible=b"", **changes):
    """The end record of zip64 at `offset`, with its locator, from (count, size, start)."""
    count, size, start = values
    fields = {
        "signature": b"PK\6\6", "size_of_rest": 44 + len(extensible), "made": 45, "needed": 45, "disk": 0,
        "start_disk": 0, "disk_count": count, "count": count, "size": size, "start": start, **changes,
    }  # fmt: skip
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, offset, 1)
    return struct.pack("<4sQ2H2L4Q", *fields.values()) + extensible + locator


def build(entries, *, order=None, comment=b"", end=None):
    """A zip file of entries. `order` is that of the directory; `end` makes the end record from (count, size, start)."""
    body, offsets = bytearray(), []
    for entry in entries:
        offsets.append(len(body))
        body += entry.make_local()
    indices = range(len(entries)) if order is None else order
    directory = b"".join(entries[index].make_entry(offsets[index]) for index in indices)
    make = end or (lambda *values: make_end(*values, comment))
    return bytes(body) + directory + make(len(indices), len(directory), len(body))
