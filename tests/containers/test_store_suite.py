"""Members of containers pass the suite of stores."""

from __future__ import annotations

import io
import os
import tarfile
import time
import zipfile

import pytest

from streamloader.containers.pack.build import PackBuilder
from streamloader.testing import StoreSuite


def write_tar(file, members):
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), time.time()
            tar.addfile(info, io.BytesIO(data))


def write_zip(file, members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, time.gmtime()[:6]), data)


class OfContainers(StoreSuite):
    """A local container, which is written again as a whole whenever a member is added or replaced."""

    listing_sizes = (1_200, 5_000)
    served = False
    ending = ".tar"
    write = staticmethod(write_tar)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.container = tmp_path / f"set{self.ending}"
        self.members = {}
        self.populate({})

    def location(self):
        return f"{self.container}!", {}

    def populate(self, files):
        self.members.update(files)
        file = io.BytesIO()  # many small writes to disk would wait for Python's lock, which busy readers hold
        self.write(file, self.members)
        hidden = self.container.with_name("new")
        hidden.write_bytes(file.getbuffer())
        os.replace(hidden, self.container)


class TestTarStore(OfContainers):
    pass


def write_pack(file, members):
    builder = PackBuilder(file)
    for name, data in sorted(members.items(), key=lambda member: member[0].encode()):
        builder.add(name, data, modified=time.time_ns())
    builder.finish()


class TestPackStore(OfContainers):
    ending = ".pack"
    write = staticmethod(write_pack)


class TestZipStore(OfContainers):
    ending = ".zip"
    write = staticmethod(write_zip)
