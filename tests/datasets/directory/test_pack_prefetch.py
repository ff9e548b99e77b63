"""Packs that are requested before they are opened."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
from datasets.directory.directory_data import contents, fill, open_directory

from streamloader.datasets.directory.pack_prefetch import prefetch_packs

FILES = {f"{number:04}.bin": os.urandom(600) for number in range(2_000)}
needs_linux = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in memory")


def drop(path):
    """Have the system drop the pages of a file from memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_end_in_memory(path):
    """Return whether the last page of a file is in memory, without having it read: reads that do not wait start one."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        states = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
        view = ctypes.c_char.from_buffer(pages)
        address = ctypes.c_void_p(ctypes.addressof(view))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(pages)), states) == 0
        del view
    return bool(states[-1] & 1)


@needs_linux
def test_packs_that_are_not_in_memory_are_read(tmp_path):
    fill(tmp_path, FILES, min_subdir_num=6)
    packs = sorted(map(str, tmp_path.glob("*.pack")))
    assert len(packs) == 6
    for path in packs:
        drop(path)
    if any(map(is_end_in_memory, packs)):
        pytest.skip("the file system keeps its files in memory")
    prefetch_packs([path.removesuffix(".pack") for path in packs], packs)
    assert all(map(is_end_in_memory, packs))


def test_what_cannot_be_read_is_left_to_those_who_open_it(tmp_path):
    fill(tmp_path, FILES, min_subdir_num=6)
    packs = sorted(tmp_path.glob("*.pack"))
    packs[1].write_bytes(packs[1].read_bytes()[:200_000])
    packs[2].write_bytes(b"")
    packs[3].unlink()
    os.mkfifo(packs[3])
    for path in packs[:1] + packs[4:]:
        if hasattr(os, "posix_fadvise"):
            drop(path)
    missing = str(tmp_path / "missing")
    prefetch_packs([missing], [missing, *map(str, packs)])
    with open_directory(tmp_path, load_to_memory=False, min_subdir_num=6) as directory:
        assert contents(directory) == FILES
