"""Every format of containers passes the suite, in memory and on disk."""

from __future__ import annotations

import gzip
import io
import os
import tarfile

import pytest
from containers.formats import GzipTar, Pack, Tar, Zip, Zip64, ZstdTar, zstd
from containers.pack_files import ZLIB, ZSTD, normalize
from containers.zip_files import DEFLATED, build_zip

from streamloader.containers.pack.build import PackBuilder
from streamloader.containers.store import _FORMATS
from streamloader.stores.local import LocalStore
from streamloader.testing import ContainerSuite

# The fast tier has of a class with `repeats` only the tests that differ from those of the class that it names.


class OnDisk:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def make_store(self, limits):
        return LocalStore("file://", limits=limits)

    def make_path(self):
        return f"{self.folder}/{super().make_path()}".lstrip("/")

    async def put(self, store, data):
        # Without a sync, which writing through the store costs.
        (self.folder / "unfinished").write_bytes(data)
        os.replace(self.folder / "unfinished", f"/{self.make_path()}")


class TestPaxTar(Tar, ContainerSuite):
    pass


class TestGnuTar(Tar, ContainerSuite):
    repeats = "TestPaxTar"
    form = tarfile.GNU_FORMAT
    padded = True


class TestUstarTar(Tar, ContainerSuite):
    repeats = "TestPaxTar"
    form = tarfile.USTAR_FORMAT
    long_names = ("/".join(["deep"] * 30 + ["r" * 100]), "p" * 155 + "/" + "n" * 100)


class TestTarOnDisk(OnDisk, Tar, ContainerSuite):
    repeats = "TestPaxTar"


class TestGzipTar(GzipTar, ContainerSuite):
    pass


class TestGzipTarOfManyMembers(GzipTar, ContainerSuite):
    """Parallel compressors (pigz, bgzip) write many small gzip members one after the other."""

    repeats = "TestGzipTar"
    suffix = ".tgz"

    def compress(self, data):
        return b"".join(gzip.compress(data[start : start + 70_001]) for start in range(0, len(data), 70_001))


class TestZstdTar(ZstdTar, ContainerSuite):
    repeats = "TestGzipTar"


class TestZstdTarOfManyFrames(ZstdTar, ContainerSuite):
    """Parallel compressors (pzstd) and seekable formats write many small frames, and frames to skip."""

    repeats = "TestGzipTar"
    suffix = ".tzst"

    def compress(self, data):
        frames = [ZstdTar.compress(self, data[start : start + 70_001]) for start in range(0, len(data), 70_001)]
        skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
        return skippable + skippable.join(frames)

    def decompress(self, data):
        return zstd.decompress(data)


class TestZip(Zip, ContainerSuite):
    method = DEFLATED


class TestStoredZip(Zip, ContainerSuite):
    repeats = "TestZip"


class TestZip64(Zip64, ContainerSuite):
    repeats = "TestZip"


class TestZipWithDescriptors(Zip, ContainerSuite):
    repeats = "TestZip"
    method = DEFLATED
    descriptors = True


class TestStoredZipWithDescriptors(Zip, ContainerSuite):
    repeats = "TestZip"
    descriptors = True


class TestZipOnDisk(OnDisk, Zip, ContainerSuite):
    repeats = "TestZip"


class TestZipWithComment(Zip, ContainerSuite):
    repeats = "TestZip"

    def build(self, files):
        return build_zip(files, DEFLATED, comment=b"A comment. " * 100)


class TestPack(Pack, ContainerSuite):
    pass


class TestZlibPack(Pack, ContainerSuite):
    repeats = "TestPack"
    method = ZLIB


class TestZstdPack(Pack, ContainerSuite):
    repeats = "TestPack"
    method = ZSTD


class TestWidePack(Pack, ContainerSuite):
    """With the offsets of packs of more than 4 GiB."""

    repeats = "TestPack"
    width = 8


class TestPackOnDisk(OnDisk, Pack, ContainerSuite):
    repeats = "TestPack"


class TestPackOfBuilder(Pack, ContainerSuite):
    repeats = "TestPack"

    def build(self, files):
        file = io.BytesIO()
        builder = PackBuilder(file)
        for name, data in files:
            builder.add(normalize(name), data)
        builder.finish()
        return file.getvalue()


def test_every_ending_is_bound():
    bindings = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, ContainerSuite)]
    bound = {kind.suffix or kind.container.suffixes[0] for kind in bindings if kind is not ContainerSuite}
    assert bound == {suffix for container in _FORMATS for suffix in container.suffixes}
