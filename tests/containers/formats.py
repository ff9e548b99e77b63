"""The formats of containers: how another program writes and reads them, for the bindings of the suite."""

from __future__ import annotations

import gzip
import sys
import tarfile

from containers.pack_files import build_pack, forge_pack_number, read_pack
from containers.tar_files import build_tar, forge_tar_number, read_tar
from containers.zip_files import DEFLATED, STORED, build_zip, build_zip64, forge_zip_number, read_zip

from streamloader.containers.pack.container import PackContainer
from streamloader.containers.tar.container import TarContainer
from streamloader.containers.zip.container import ZipContainer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Tar:
    """Plain tar files, in the format `form` of tarfile."""

    container = TarContainer
    checksum = "nothing"
    form = tarfile.PAX_FORMAT
    padded = False

    def build(self, files):
        return build_tar(files, self.form, self.padded)

    def read_reference(self, data):
        return read_tar(data)

    def forge_number(self, data, rng):
        return forge_tar_number(data, rng)


class CompressedTar(Tar):
    checksum = "file"
    is_compressed = True

    def build(self, files):
        return self.compress(super().build(files))

    def read_reference(self, data):
        return super().read_reference(self.decompress(data))


class GzipTar(CompressedTar):
    suffix = ".tar.gz"

    def compress(self, data):
        return gzip.compress(data, 6, mtime=0)

    def decompress(self, data):
        return gzip.decompress(data)


class ZstdTar(CompressedTar):
    suffix = ".tar.zst"

    def compress(self, data):
        return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})

    def decompress(self, data):
        return zstd.decompress(data)


class Zip:
    """Zip files, with the method and the options of zipfile."""

    container = ZipContainer
    method = STORED
    descriptors = False

    def build(self, files):
        return build_zip(files, self.method, descriptors=self.descriptors)

    def read_reference(self, data):
        return read_zip(data)

    def forge_number(self, data, rng):
        return forge_zip_number(data, rng)


class Zip64(Zip):
    method = DEFLATED

    def build(self, files):
        return build_zip64(files, self.method)


class Pack:
    """Packs, written field by field, with a method for all members."""

    container = PackContainer
    is_sorted = True
    method = None
    width = 4

    def build(self, files):
        return build_pack(files, self.method, width=self.width)

    def read_reference(self, data):
        return read_pack(data)

    def forge_number(self, data, rng):
        return forge_pack_number(data, rng)
