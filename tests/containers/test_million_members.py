"""Containers of a million members, and of members of gigabytes, are read in little memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import struct

import psutil
import pytest
from containers.formats import zstd
from containers.tar_files import END as TAR_END
from containers.tar_files import header
from containers.zip_files import END64, LOCATOR64, Entry, end_record

from streamloader.config import Limits
from streamloader.containers.base import ContainerSource
from streamloader.containers.pack.build import PackBuilder
from streamloader.containers.pack.container import PackContainer
from streamloader.containers.pack.mapped import MappedPack
from streamloader.containers.tar.container import TarContainer
from streamloader.containers.zip.container import ZipContainer
from streamloader.stores.local import LocalStore
from streamloader.testing.containers.binding import read_member
from streamloader.testing.containers.counting import CountingStore
from streamloader.testing.containers.damage import measure_peak_bytes

COUNT = 1_000_000
MAX_MEMORY_BYTES = 64 << 20
GIGABYTES = 9 << 30  # more than 32 bits of a zip file, and more than the octal digits of a tar file hold

pytestmark = pytest.mark.slow


def write_tar(file):
    template = header(b"0000000", 0, b"0")
    checksum = int(template[148:154], 8) - 7 * ord("0")
    end = template[7:148]
    for first in range(0, COUNT, 1_000):
        names = [b"%07d" % number for number in range(first, first + 1_000)]
        file.write(b"".join([name + end + b"%06o\0 " % (checksum + sum(name)) + template[156:] for name in names]))
    file.write(TAR_END)


def write_zip(file):
    local = struct.Struct("<4sHHHHHIIIHH7s")
    directory = struct.Struct("<4sHHHHHHIIIHHHHHII7s")
    for first in range(0, COUNT, 1_000):
        names = [b"%07d" % number for number in range(first, first + 1_000)]
        file.write(b"".join([local.pack(b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, name) for name in names]))
    start = file.tell()
    for number in range(COUNT):
        offset = number * local.size
        file.write(directory.pack(
            b"PK\1\2", 0x314, 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0o100644 << 16, offset, b"%07d" % number
        ))  # fmt: skip
    write_end64(file, COUNT, start)


def write_pack(file):
    builder = PackBuilder(file)
    for number in range(COUNT):
        builder.add(f"{number:07}", b"")
    builder.finish()


def write_end64(file, count, start):
    end = file.tell()
    file.write(END64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, end - start, start))
    file.write(LOCATOR64 + struct.pack("<IQI", 0, end, 1) + end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))


def use(path, container_class, function):
    """Call a coroutine function with a container on disk, and with the store that holds it."""

    async def with_container():
        async with CountingStore(LocalStore("file://", limits=Limits())) as store:
            info = await store.head(str(path).lstrip("/"))
            return await function(container_class(ContainerSource(store, info)), store)

    return asyncio.run(with_container())


async def scan_and_pass(container, store):
    async with contextlib.aclosing(container.scan()) as members:
        peak = await count_members(members)
    requests = store.requests
    async with contextlib.aclosing(container.iterate()) as pairs:
        peak_of_pass = await count_members(member async for member, _ in pairs)
    return peak, peak_of_pass, requests


async def count_members(members):
    """Check the names of a million members, and return the memory in bytes that the process has taken for that."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    number = 0
    async for member in members:
        if number % 10_000 == 0:
            peak = max(peak, process.memory_info().rss)
        assert member.name == f"{number:07}"
        number += 1
    assert number == COUNT
    return peak - before


def open_compressed(path):
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 1)
    return zstd.open(path, "wb", level=1) if path.suffix == ".zst" else open(path, "wb")


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tar.zst", "set.zip", "set.pack"])
def test_a_million_members(tmp_path, name):
    path = tmp_path / name
    with open_compressed(path) as file:
        {".zip": write_zip, ".pack": write_pack}.get(path.suffix, write_tar)(file)
    container_class = {".zip": ZipContainer, ".pack": PackContainer}.get(path.suffix, TarContainer)
    peak, peak_of_pass, requests = use(path, container_class, scan_and_pass)
    path.unlink()  # pytest keeps the folders of several runs
    assert peak < MAX_MEMORY_BYTES, f"{peak} bytes for a scan"
    assert peak_of_pass < MAX_MEMORY_BYTES, f"{peak_of_pass} bytes for a pass"
    assert requests <= 3_000  # blocks of 256 KiB


async def read_ends(container, store):
    with measure_peak_bytes() as peak:
        members = [member async for member in container.scan()]
        assert [(member.name, member.size) for member in members] == [("large", GIGABYTES), ("after", 5)]
        assert store.bytes_received < 64 << 20
        for start, end in ((0, 3), (1 << 32, (1 << 32) + 5), (GIGABYTES - 7, GIGABYTES)):
            assert await read_member(container, members[0], start, end) == bytes(end - start)
        assert await read_member(container, members[1]) == b"after"
    assert peak[0] < MAX_MEMORY_BYTES


def test_a_tar_file_of_9_gigabytes(tmp_path):
    path = tmp_path / "set.tar"
    with open(path, "wb") as file:
        file.write(header(b"large", b"\x80" + GIGABYTES.to_bytes(11, "big")))
        file.seek(GIGABYTES, 1)  # a hole
        file.write(header(b"after", 5) + b"after".ljust(512, b"\0") + TAR_END)
    use(path, TarContainer, read_ends)
    path.unlink()


def test_a_zip_file_of_9_gigabytes(tmp_path):
    path = tmp_path / "set.zip"
    extra = struct.pack("<HHQQ", 1, 16, GIGABYTES, GIGABYTES)
    large = Entry(b"large", crc=0, size=0xFFFFFFFF, stored_size=0xFFFFFFFF, extra=extra)  # spans are not verified
    with open(path, "wb") as file:
        file.write(large.local())
        file.seek(GIGABYTES, 1)
        offset = file.tell()
        after = Entry(b"after", b"after", extra=struct.pack("<HHQ", 1, 8, offset), local_extra=b"", offset=0xFFFFFFFF)
        file.write(after.local())
        start = file.tell()
        file.write(large.central(0) + after.central(offset))
        write_end64(file, 2, start)
    use(path, ZipContainer, read_ends)
    path.unlink()


class Holes:
    """A file in which zeros take no space."""

    def __init__(self, file):
        self._file = file

    def write(self, data):
        if len(data) > 1 << 20 and not any(data[:: 1 << 18]):
            self._file.seek(len(data), 1)
            return len(data)
        return self._file.write(data)


def test_a_pack_of_9_gigabytes(tmp_path):
    path = tmp_path / "set.pack"
    piece = bytes(64 << 20)
    with open(path, "wb") as file:
        builder = PackBuilder(Holes(file))
        builder.add("after 0", b"before")
        builder.add_stream("large", (piece for _ in range(GIGABYTES // len(piece))), size=GIGABYTES)
        builder.add("zz", b"after")
        builder.finish()
    with MappedPack.open(path) as pack:
        assert pack.index.starts.dtype.itemsize == 8
        assert [pack.find(name) for name in ("after 0", "large", "zz")] == [0, 1, 2]
        assert bytes(pack.read(2)) == b"after"
        assert bytes(pack.view(1)[-5:]) == bytes(5)
    use(path, PackContainer, read_ends_of_pack)
    path.unlink()


async def read_ends_of_pack(container, store):
    with measure_peak_bytes() as peak:
        members = [member async for member in container.scan()]
        assert [(member.name, member.size) for member in members] == [("after 0", 6), ("large", GIGABYTES), ("zz", 5)]
        for start, end in ((0, 3), (1 << 32, (1 << 32) + 5), (GIGABYTES - 7, GIGABYTES)):
            assert await read_member(container, members[1], start, end) == bytes(end - start)
        assert await read_member(container, members[2]) == b"after"
        async with contextlib.aclosing(container.iterate()) as pairs:
            found = [
                (member.name, member.size == GIGABYTES or b"".join([piece async for piece in pieces]))
                async for member, pieces in pairs
            ]
        assert found == [("after 0", b"before"), ("large", True), ("zz", b"after")]
        assert store.bytes_received < 64 << 20  # the large one was not received
    assert peak[0] < MAX_MEMORY_BYTES
