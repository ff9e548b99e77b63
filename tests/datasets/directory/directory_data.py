"""Shared by tests of directories: objects as users write them, and directories with known files."""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path

import streamloader as sl

SETTLED_NS = 60_000_000  # a little more than the 50 ms for which a time is not trusted


class PickleSerializer:
    """A serializer of the user, as the reference system has one."""

    def serialize(self, value):
        return pickle.dumps(value)

    def deserialize(self, data):
        return pickle.loads(data)


class XorCompressor:
    """A compressor of the user, which no reader knows."""

    def compress(self, data):
        return bytes(byte ^ 0x5A for byte in data)

    def decompress(self, data):
        return bytes(byte ^ 0x5A for byte in data)


class DeflateCompressor:
    """Another one, that makes data smaller."""

    def compress(self, data):
        return zlib.compress(data)

    def decompress(self, data):
        return zlib.decompress(data)


class TextInHex:
    """A data manager of the user: its files hold text in hex, and what it serializes is something else.

    Attributes:
        loaded: Paths of the files that were loaded.
    """

    def __init__(self):
        self.loaded = []

    def save(self, path, value):
        Path(path).write_text(value.encode().hex())

    def load(self, path):
        self.loaded.append(path)
        return bytes.fromhex(Path(path).read_text()).decode()

    def serialize(self, value):
        return b"T:" + value.encode()

    def deserialize(self, data):
        assert type(data) is bytes
        assert data[:2] == b"T:"
        return data[2:].decode()


def open_directory(root, manager=None, **options):
    """Open a directory of bytes with few subdirectories."""
    options = {"min_subdir_num": 4, "seed": 0, "verbose": False} | options
    return sl.VirtualDirectory(root, manager or sl.BytesDataManager(), **options)


def fill(root, files, **options):
    """Save files (content by name), write the packs, and close the directory."""
    with open_directory(root, **options) as directory:
        for name, content in files.items():
            directory.save(name, content)
        directory.save_state()


def contents(directory):
    """Return the content of each file of a directory, read by name."""
    return {name: bytes(directory.read(name)) for name in directory.get_list_of_files()}


def on_disk(root):
    """Return (subdirectory, name) -> content of all files that are not hidden, as the disk has them."""
    return {
        (path.parent.name, path.name): path.read_bytes()
        for path in Path(root).glob("*/*")
        if path.is_file() and not path.name.startswith(".")
    }


def find_on_disk(root, name):
    """Return the path of the only file of this name."""
    (path,) = Path(root).glob(f"*/{name}")
    return path


def age(*paths, seconds=3600):
    """Make files or folders look as if they had last changed some time ago."""
    for path in paths:
        status = os.stat(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def pack_times(root):
    """Return inode and modification time of each pack, to see which ones were written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(Path(root).glob("*.pack"))}
