"""Packs are written in order, completely or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import zlib

import pytest
from containers.pack_files import PackFile, build_pack, describe_blocks, read_pack, zstd

from streamloader.containers.pack.build import PackBuilder, PackMember, create_pack, write_pack
from streamloader.containers.pack.mapped import MappedPack

FILES = [("a/b", b"content"), ("a/c", b""), ("ä", bytes(5_000)), ("日本", b"x" * 99)]


class Zlib:
    method = 1

    def compress(self, data):
        return zlib.compress(data)

    def decompress(self, data):
        return zlib.decompress(data)


class Zstd:
    method = 2

    def compress(self, data):
        return zstd.compress(data)

    def decompress(self, data):
        return zstd.decompress(data)


class Reversing:
    def compress(self, data):
        return b"r" + data[::-1]

    def decompress(self, data):
        return data[:0:-1]


def build(files=FILES, **options):
    file = io.BytesIO()
    builder = PackBuilder(file, **options)
    for name, data in files:
        builder.add(name, data)
    assert builder.finish() == len(file.getvalue())
    assert len(builder) == len(files)
    return file.getvalue()


def members(pack):
    return [(name, bytes(pack.read(row))) for row, name in enumerate(pack.index.names())]


@pytest.mark.parametrize("files", [[], [("a", b"")], FILES])
def test_a_pack_is_what_another_program_writes(files):
    assert build(files) == build_pack(files, metadata=describe_blocks(files))
    assert list(read_pack(build(files))) == files


@pytest.mark.parametrize(("compressor", "method"), [(Zlib(), 1), (Zstd(), 2)])
def test_members_are_compressed_where_that_makes_them_smaller(compressor, method):
    data = build(compressor=compressor)
    pack = MappedPack.from_bytes(data)
    assert members(pack) == FILES
    assert pack.index.methods.tolist() == [0, 0, method, method]
    assert pack.index.sizes.tolist() == [len(content) for _, content in FILES]
    assert pack.index.metadata == {}
    assert list(read_pack(data)) == FILES
    assert build(FILES[:1], compressor=compressor) == build_pack(
        FILES[:1], metadata=describe_blocks(FILES[:1])
    )  # nothing became smaller: no columns


def test_a_compressor_of_the_user_is_named_and_compresses_all():
    pack = MappedPack.from_bytes(build(compressor=Reversing()), compressor=Reversing())
    assert members(pack) == FILES
    assert pack.index.methods.tolist() == [255] * len(FILES)
    assert pack.index.metadata == {"compressor": f"{__name__}.Reversing"}
    assert bytes(pack.view(0)) == b"rtnetnoc"


@pytest.mark.parametrize("method", [0, 3, 254, -1, "deflate", None, True, 1.0])
def test_another_attribute_of_this_name_is_no_method(method):
    compressor = Zlib()
    compressor.method = method
    file = io.BytesIO()
    builder = PackBuilder(file, compressor=compressor)
    builder.add("a", b"content" * 9)
    builder.finish()
    pack = MappedPack.from_bytes(file.getvalue(), compressor=compressor)
    assert pack.index.methods.tolist() == [255]
    assert pack.index.metadata["compressor"].endswith(".Zlib")
    assert bytes(pack.read(0)) == b"content" * 9


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b", "n" * 4_097, "\ud800"])
def test_invalid_names_are_refused(name):
    builder = PackBuilder(io.BytesIO())
    with pytest.raises(ValueError, match="cannot hold the name"):
        builder.add(name, b"")
    assert len(builder) == 0


def test_names_are_added_in_the_order_of_their_bytes():
    builder = PackBuilder(io.BytesIO())
    builder.add("b", b"1")
    for name in ("a", "b", "B"):
        with pytest.raises(ValueError, match="ascending"):
            builder.add(name, b"2")
    builder.add("b\udcff", b"3")  # the byte FF comes after all of UTF-8
    with pytest.raises(ValueError, match="ascending"):
        builder.add("b日", b"4")
    builder.finish()
    assert len(builder) == 2


def test_a_refused_name_changes_nothing():
    file = io.BytesIO()
    builder = PackBuilder(file)
    for name, data in FILES:
        builder.add(name, data)
        for wrong in (name, "", "/"):
            with pytest.raises(ValueError, match="name"):
                builder.add_stream(wrong, [b"never written"])
    builder.finish()
    assert file.getvalue() == build_pack(FILES, metadata=describe_blocks(FILES))


def test_contents_may_be_any_bytes_object():
    file = io.BytesIO()
    builder = PackBuilder(file)
    builder.add("a", bytearray(b"content"))
    builder.add("b", memoryview(b"xcontentx")[1:-1])
    builder.add("c", memoryview(b"contents").cast("Q"))
    builder.finish()
    files = [("a", b"content"), ("b", b"content"), ("c", b"contents")]
    assert file.getvalue() == build_pack(files, metadata=describe_blocks(files))


def test_members_are_added_in_pieces():
    file = io.BytesIO()
    builder = PackBuilder(file, compressor=Zlib())
    builder.add_stream("a", iter([]), size=0)
    builder.add_stream("b", [b"con", b"", bytearray(b"te"), memoryview(b"nt")], size=7, modified=9)
    builder.add_stream("c", [b"no size"])
    builder.finish()
    files = [("a", b""), ("b", b"content"), ("c", b"no size")]
    expected = PackFile(files, metadata=describe_blocks(files))
    expected.modified = [0, 9, 0]
    assert file.getvalue() == expected.build()


def test_a_stream_of_another_size_ends_the_pack():
    builder = PackBuilder(io.BytesIO())
    with pytest.raises(ValueError, match="3 bytes instead of 4"):
        builder.add_stream("a", [b"abc"], size=4)
    for call in (builder.finish, lambda: builder.add("b", b"")):
        with pytest.raises(ValueError, match="make a new one"):
            call()


def test_a_compressor_of_the_user_gets_whole_members():
    with pytest.raises(ValueError, match="whole members"):
        PackBuilder(io.BytesIO(), compressor=Reversing()).add_stream("a", [b""])


def test_a_failing_file_ends_the_pack():
    class Full(io.BytesIO):
        def write(self, data):
            if data == b"second":
                raise OSError(28, "No space left on device")
            return super().write(data)

    builder = PackBuilder(Full())
    builder.add("a", b"first")
    with pytest.raises(OSError, match="No space"):
        builder.add("b", b"second")
    for call in (builder.finish, lambda: builder.add("c", b"")):
        with pytest.raises(ValueError, match="make a new one"):
            call()


def test_nothing_is_added_to_a_finished_pack():
    builder = PackBuilder(io.BytesIO())
    builder.finish()
    for call in (builder.finish, lambda: builder.add("a", b"")):
        with pytest.raises(ValueError, match="finished"):
            call()


def test_a_file_may_take_a_part_of_the_bytes():
    class Slow(io.BytesIO):
        def write(self, data):
            return super().write(data[:3])

    file = Slow()
    builder = PackBuilder(file)
    for name, data in FILES:
        builder.add(name, data)
    builder.finish()
    assert file.getvalue() == build_pack(FILES, metadata=describe_blocks(FILES))


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": float("nan")}, {"a": "x" * (1 << 20)}])
def test_impossible_metadata_are_refused(metadata):
    with pytest.raises((ValueError, TypeError)):
        PackBuilder(io.BytesIO(), metadata=metadata).finish()


def test_metadata_are_kept():
    metadata = {"directory_modified": 1_700_000_000_123_456_789, "text": "日本 \udcff", "list": [1, None, {"a": 0.5}]}
    assert MappedPack.from_bytes(build(metadata=metadata)).index.metadata == metadata


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_a_pack_is_written_to_a_path(tmp_path):
    path = tmp_path / "set.pack"
    assert write_pack(path, [PackMember(name, data, 7) for name, data in FILES], metadata={"a": 1}) == len(FILES)
    assert os.listdir(tmp_path) == ["set.pack"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with MappedPack.open(path) as pack:
        assert members(pack) == FILES
        assert pack.index.modified.tolist() == [7] * len(FILES)
        assert pack.index.metadata == {"a": 1}


def test_metadata_can_be_changed_until_the_end(tmp_path):
    with create_pack(tmp_path / "set.pack", metadata={"directory_modified": 0}) as builder:
        builder.add("a", b"1")
        builder.metadata["directory_modified"] = 5
    with MappedPack.open(tmp_path / "set.pack") as pack:
        assert pack.index.metadata == {"directory_modified": 5}


def interrupt_a_writer(path):
    with create_pack(path) as builder:
        builder.add("new", b"pack")
        raise KeyboardInterrupt


def test_an_error_leaves_the_old_pack(tmp_path):
    path = tmp_path / "set.pack"
    write_pack(path, [("old", b"pack", 0)])
    old = path.read_bytes()
    for wrong in ([("b", b"", 0), ("a", b"", 0)], [("a", 7, 0)], [("a", b"", "never")]):
        with pytest.raises((ValueError, TypeError)):
            write_pack(path, wrong)
    with pytest.raises(KeyboardInterrupt):
        interrupt_a_writer(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["set.pack"]


@contextlib.contextmanager
def limit_file_size(size):
    """Let writing fail as on a full disk when a file gets larger."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [1_000, 3_000_000])  # within the buffer, and after it
def test_a_full_disk_leaves_the_old_pack(tmp_path, size):
    path = tmp_path / "set.pack"
    write_pack(path, [("old", b"pack", 0)])
    old = path.read_bytes()
    with limit_file_size(1 << 20 if size > 1 << 20 else 500), pytest.raises(OSError):  # noqa: PT011 - of any text
        write_pack(path, [("new", bytes(size), 0)])
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["set.pack"]


def test_a_mapped_pack_is_not_disturbed_when_it_is_replaced(tmp_path):
    path = tmp_path / "set.pack"
    write_pack(path, [("a", b"old", 0)])
    with MappedPack.open(path) as pack:
        write_pack(path, [("b", b"new!", 0)])
        assert members(pack) == [("a", b"old")]
    with MappedPack.open(path) as pack:
        assert members(pack) == [("b", b"new!")]


KILLED = """
import itertools, sys
from streamloader.containers.pack.build import write_pack
members = ((f"{number:09}", bytes(1_000), 0) for number in itertools.count())
write_pack(sys.argv[1], members)
"""


def test_a_killed_writer_leaves_the_old_pack(tmp_path):
    path = tmp_path / "set.pack"
    write_pack(path, [("old", b"pack", 0)])
    old = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as writer:
        while not any(entry.stat().st_size for entry in tmp_path.iterdir() if entry != path):
            assert writer.poll() is None
        writer.kill()
    assert path.read_bytes() == old
    assert sorted(name.startswith(".") for name in os.listdir(tmp_path)) == [False, True]  # hidden, and ignored


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_pack(tmp_path / "missing" / "set.pack", [])
