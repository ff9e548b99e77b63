"""Packs in memory: members are views of the mapping, which lives as long as they do."""

from __future__ import annotations

import gc
import os
import threading
import weakref
import zlib

import pytest
from containers.pack_files import CUSTOM, STORED, ZLIB, ZSTD, PackFile, add_up, build_pack, zstd

from streamloader.config import Limits
from streamloader.containers.pack.mapped import MappedPack
from streamloader.errors import ClosedError, CorruptContainer, IntegrityError, LimitExceeded, NotSupported

FILES = [("a", b"content"), ("b/c", b""), ("b/d", bytes(70_000)), ("z", b"the last")]


@pytest.fixture(params=["mapped", "bytes", "view"])
def open_pack(request, tmp_path):
    """A function that opens the bytes of a pack in one of three ways."""

    def open_bytes(data, **options):
        if request.param == "mapped":
            (tmp_path / "set.pack").write_bytes(data)
            return MappedPack.open(tmp_path / "set.pack", **options)
        return MappedPack.from_bytes(data if request.param == "bytes" else memoryview(bytearray(data)), **options)

    return open_bytes


@pytest.mark.parametrize("method", [None, STORED, ZLIB, ZSTD])
@pytest.mark.parametrize("width", [4, 8])
def test_members_are_read(open_pack, method, width):
    with open_pack(build_pack(FILES, method, width=width)) as pack:
        assert len(pack) == len(FILES)
        assert [pack.find(name) for name, _ in FILES] == [0, 1, 2, 3]
        assert pack.find("b") is None
        for verify in (True, False):
            assert [bytes(pack.read(row, verify)) for row in range(4)] == [data for _, data in FILES]
        stored = PackFile(FILES, method).stored
        assert [bytes(pack.view(row)) for row in range(4)] == stored
        assert [bytes(view) for view in pack.views()] == stored
        assert [(name, bytes(view)) for name, view in pack.items()] == [
            (name, data) for (name, _), data in zip(FILES, stored, strict=True)
        ]


def test_an_empty_pack(open_pack):
    with open_pack(build_pack([])) as pack:
        assert len(pack) == 0
        assert list(pack.items()) == []
        assert pack.find("a") is None
        with pytest.raises(IndexError):
            pack.view(0)


def test_views_are_no_copies_and_cannot_be_written(open_pack):
    pack = open_pack(build_pack(FILES))
    view = pack.view(2)
    assert isinstance(view, memoryview)
    assert view.readonly
    assert isinstance(pack.read(2), memoryview)
    assert pack.read(0).obj is view.obj
    assert view.obj is not None
    with pytest.raises(TypeError):
        view[0] = 1


def test_rows_that_do_not_exist_are_errors(open_pack):
    with open_pack(build_pack(FILES, ZLIB)) as pack:
        for row in (-1, 4, 1 << 40):
            for call in (pack.view, pack.read):
                with pytest.raises(IndexError):
                    call(row)


def test_views_outlive_the_pack(open_pack):
    pack = open_pack(build_pack(FILES))
    find, view = pack.find, pack.view(0)
    views = pack.views()
    first = next(views)
    pack.close()
    pack.close()
    del pack
    gc.collect()
    assert bytes(view) == bytes(first) == b"content"
    assert [bytes(one) for one in views] == [data for _, data in FILES[1:]]
    assert find("z") == 3


def test_a_closed_pack_says_so(open_pack):
    pack = open_pack(build_pack(FILES))
    pack.close()
    calls = [lambda: pack.view(0), lambda: pack.read(0), lambda: pack.find("a"), lambda: len(pack), lambda: pack.index]
    for call in [*calls, lambda: list(pack.views()), lambda: list(pack.items())]:
        with pytest.raises(ClosedError, match="is closed"):
            call()
    with pytest.raises(AttributeError):
        pack.missing  # noqa: B018


def test_the_mapping_ends_with_the_last_view(tmp_path):
    path = tmp_path / "set.pack"
    path.write_bytes(build_pack(FILES))

    def count_mappings():
        with open("/proc/self/maps") as file:
            return sum(str(path) in line for line in file)

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("the mappings of this process are in /proc only on Linux")
    pack = MappedPack.open(path)
    assert count_mappings() == 1
    view = pack.view(0)
    assert pack.find("a") == 0
    pack.close()
    assert count_mappings() == 1
    del view
    assert count_mappings() == 0  # without the garbage collector
    pack = MappedPack.open(path)
    assert pack.find("a") == 0
    del pack
    assert count_mappings() == 0


def test_a_mapped_pack_keeps_no_descriptor(tmp_path):
    path = tmp_path / "set.pack"
    path.write_bytes(build_pack(FILES))
    first = os.open(path, os.O_RDONLY)
    os.close(first)
    packs = [MappedPack.open(path) for _ in range(20)]
    following = os.open(path, os.O_RDONLY)
    os.close(following)
    assert following == first
    assert all(bytes(pack.view(3)) == b"the last" for pack in packs)


def test_a_pack_is_read_after_a_fork(tmp_path):
    path = tmp_path / "set.pack"
    path.write_bytes(build_pack(FILES, ZLIB))
    with MappedPack.open(path) as pack:
        child = os.fork()
        if child == 0:
            os._exit(0 if bytes(pack.read(pack.find("b/d"))) == FILES[2][1] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bytes(pack.read(0)) == b"content"


def test_threads_find_names_at_once(open_pack):
    files = [(f"{number:05}", b"%d" % number) for number in range(5_000)]
    results = []
    with open_pack(build_pack(files)) as pack:
        barrier = threading.Barrier(8)

        def read_all():
            barrier.wait()
            results.append([bytes(pack.view(pack.find(name))) for name, _ in files])

        threads = [threading.Thread(target=read_all) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [[data for _, data in files]] * 8


def test_a_pack_is_freed_without_the_garbage_collector(open_pack):
    pack = open_pack(build_pack(FILES))
    assert pack.find("a") == 0
    index = weakref.ref(pack.find)
    del pack
    assert index() is None


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, ZLIB, ZSTD])
def test_a_wrong_checksum_is_an_error(open_pack, method):
    damaged = PackFile(FILES, method)
    damaged.checksums[0] ^= 1
    with open_pack(damaged.build()) as pack:
        with pytest.raises(IntegrityError, match="!/a: its checksum"):
            pack.read(0)
        assert bytes(pack.read(0, verify=False)) == b"content"
        assert bytes(pack.read(3)) == b"the last"


@pytest.mark.parametrize("method", [ZLIB, ZSTD])
@pytest.mark.parametrize("damage", ["flip", "cut", "more", "empty"])
def test_damaged_members_are_errors(open_pack, method, damage):
    pack_file = PackFile(FILES, method)
    old = pack_file.stored[0]
    changes = {"flip": b"\xff" + old[1:], "cut": old[:-1], "more": old + b"x", "empty": b""}
    pack_file.stored[0] = changes[damage]
    pack_file.starts = add_up([16, *map(len, pack_file.stored)])
    with open_pack(pack_file.build()) as pack:
        with pytest.raises(CorruptContainer, match="the member a") as caught:
            pack.read(0)
        assert caught.value.offset == 16
        assert bytes(pack.read(3)) == b"the last"


@pytest.mark.parametrize("method", [ZLIB, ZSTD])
@pytest.mark.parametrize("size", [0, 6, 8, 1 << 31])
def test_a_member_of_another_size_is_an_error(open_pack, method, size):
    pack_file = PackFile(FILES, method)
    pack_file.sizes[0] = size
    kind = LimitExceeded if size == 1 << 31 else CorruptContainer
    with open_pack(pack_file.build()) as pack, pytest.raises(kind):
        pack.read(0)


def test_bombs_are_refused(open_pack):
    data = build_pack([("bomb", bytes(1 << 20))], ZLIB)
    with open_pack(data) as pack:
        assert pack.read(0) == bytes(1 << 20)
    limits = Limits(expansion_bytes=1 << 16, expansion_ratio=100)
    with open_pack(data, limits=limits) as pack, pytest.raises(LimitExceeded, match="expansion_ratio"):
        pack.read(0)


class Reversing:
    def compress(self, data):
        return data[::-1]

    def decompress(self, data):
        assert isinstance(data, bytes)
        return data[::-1]


class Failing(Reversing):
    def decompress(self, data):
        raise RuntimeError("no")


def test_a_compressor_of_the_user(open_pack):
    pack_file = PackFile(FILES, STORED, metadata=b'{"compressor": "my.Own"}')
    pack_file.stored = [data[::-1] for data in pack_file.stored]
    pack_file.methods = [CUSTOM] * len(FILES)
    data = pack_file.build()
    with open_pack(data, compressor=Reversing()) as pack:
        assert [bytes(pack.read(row)) for row in range(4)] == [data for _, data in FILES]
    with open_pack(data) as pack:
        with pytest.raises(NotSupported, match=r"my\.Own"):
            pack.read(0)
        assert bytes(pack.view(0)) == b"tnetnoc"
    with open_pack(data, compressor=Failing()) as pack, pytest.raises(CorruptContainer, match="Failing"):
        pack.read(0)
    pack_file.sizes[0] += 1
    with (
        open_pack(pack_file.build(), compressor=Reversing()) as pack,
        pytest.raises(CorruptContainer, match="declared"),
    ):
        pack.read(0)


@pytest.mark.parametrize("data", [b"", b"x", bytes(64), bytes(80), build_pack(FILES)[:-1], build_pack(FILES)[1:]])
def test_what_is_no_pack_is_an_error(open_pack, data):
    with pytest.raises(CorruptContainer) as caught:
        open_pack(data)
    assert caught.value.offset is not None
    assert caught.value.address in str(caught.value)


def test_files_that_cannot_be_mapped_are_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, kind in [("missing", FileNotFoundError), (".", IsADirectoryError), ("pipe", OSError)]:
        with pytest.raises(kind):
            MappedPack.open(tmp_path / name)


def test_zstd_frames_are_whole_members(open_pack):
    pack_file = PackFile([("a", b"onetwo")], ZSTD)
    pack_file.stored = [zstd.compress(b"one") + zstd.compress(b"two")]
    pack_file.starts = [16, 16 + len(pack_file.stored[0])]
    assert pack_file.checksums == [zlib.crc32(b"onetwo")]
    with open_pack(pack_file.build()) as pack, pytest.raises(CorruptContainer):
        pack.read(0)
