"""Tar files as tarfile and GNU tar write them, and as nobody should."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import io
import os
import random
import shutil
import subprocess
import tarfile

import pytest
from containers.tar_files import BLOCK, END, entry, gnu_long, header, pad, pax, record
from hypothesis import given, settings
from hypothesis import strategies as st

from streamloader.config import Limits
from streamloader.containers.base import ContainerSource
from streamloader.containers.tar.container import TarContainer
from streamloader.errors import ClosedError, CorruptContainer, LimitExceeded, NotSupported
from streamloader.stores import memory
from streamloader.testing.containers.binding import run_with_deadline
from streamloader.testing.containers.counting import CountingStore, StallingStore

GNU_TAR = shutil.which("tar")


def use(data, function, *, name="set.tar", limits=None, wrap=CountingStore):
    """Call a coroutine function with a container of these bytes, and with the store that counts its requests."""

    async def run():
        async with wrap(memory.MemoryStore("memory://tar", limits=limits or Limits())) as store:
            await store.write(name, data)
            result = await function(TarContainer(ContainerSource(store, await store.head(name))), store)
            assert store.open_transfers == 0
            await store.delete(name)
            return result

    return run_with_deadline(run)


async def join(pieces):
    return b"".join([piece async for piece in pieces])


async def read_scanned(container):
    """Return name and content of all members, or the reason why there is none."""
    return [
        (member.name, member.problem or await join(container.stream(member)))
        for member in [member async for member in container.scan()]
    ]


async def read_scanned_only(container, store):
    return await read_scanned(container)


async def read_iterated(container):
    return [(member.name, member.problem or await join(pieces)) async for member, pieces in container.iterate()]


def read_both(data, **options):
    """Return what scanning and iterating find, which has to be the same."""

    async def read(container, store):
        scanned = await read_scanned(container)
        assert await read_iterated(container) == scanned
        return scanned

    return use(data, read, **options)


def refuse_both(data, kind=CorruptContainer, **options):
    """Return the error with which scanning and iterating end, and the names of the members before."""

    async def read(container, store):
        names, iterated = [], []

        async def collect(results, found):
            async for name in found:
                results.append(name)

        with pytest.raises(kind) as of_scan:
            await collect(names, (member.name async for member in container.scan()))
        with pytest.raises(kind) as of_pass:
            await collect(iterated, (member.name async for member, _ in container.iterate()))
        assert container.source.address in str(of_scan.value)
        assert (iterated, of_pass.value.offset) == (names, of_scan.value.offset)
        return of_scan.value, names

    return use(data, read, **options)


# --- other programs --------------------------------------------------------------------------------------------------

_segments = st.text(st.sampled_from("ab é日\udce9.-"), min_size=1, max_size=70).filter(lambda text: text.strip("."))
_names = st.lists(_segments, min_size=1, max_size=6).map("/".join)
_sizes = st.integers(0, 2_000) | st.sampled_from([511, 512, 513, 1_024, 5_000])


@given(
    files=st.lists(st.tuples(_names, _sizes, st.floats(0, 2**33) | st.integers(0, 2**33)), max_size=8),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    piece_bytes=st.sampled_from([7, 100, 511, 512, 513, 1_500, 1 << 20]),
)
@settings(max_examples=40, deadline=None)
def test_tarfile_and_this_package_agree(files, form, piece_bytes):
    buffer = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number, (name, size, modified) in enumerate(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, modified
            content = bytes([number]) * size
            tar.addfile(info, io.BytesIO(content))
            time = float(modified if form == tarfile.PAX_FORMAT else int(modified))
            expected.append((name, size, time, content))

    async def read(container, store):
        scanned = [member async for member in container.scan()]
        assert [(m.name, m.size, m.modified, await join(container.stream(m))) for m in scanned] == expected
        iterated = [(member, await join(pieces)) async for member, pieces in container.iterate()]
        assert iterated == [(member, row[3]) for member, row in zip(scanned, expected, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_PIECE_BYTES", piece_bytes)
        use(buffer.getvalue(), read)


@pytest.mark.skipif(GNU_TAR is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
@pytest.mark.parametrize("compression", ["", "z"])
def test_gnu_tar_and_this_package_agree(tmp_path, form, compression):
    names = ["a", ".hidden/b", "deep/" * 15 + "c"] + ["d" * 150] * (form not in ("v7", "ustar"))
    contents = {name: os.urandom(997 * number) for number, name in enumerate(names)}
    for name, content in contents.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "set" / "empty folder").mkdir()
    (tmp_path / "set" / "symbolic").symlink_to("a")
    file = tmp_path / "set.tar"
    subprocess.run([GNU_TAR, f"-c{compression}f", file, f"--format={form}", "-C", tmp_path / "set", "."], check=True)
    found = dict(read_both(file.read_bytes(), name="set.tgz" if compression else "set.tar"))
    assert found.pop("symbolic") == "a symbolic link"
    assert found == contents


@pytest.mark.skipif(GNU_TAR is None, reason="GNU tar is not installed")
@pytest.mark.parametrize(
    "options", ["--format=oldgnu", "--format=gnu", *(f"--sparse-version={n}" for n in ("0.0", "0.1", "1.0"))]
)
def test_sparse_files_of_gnu_tar_are_members_that_are_never_read(tmp_path, options):
    with (tmp_path / "sparse").open("wb") as file:
        for number in range(40):  # more holes than a header describes
            file.seek(number << 20)
            file.write(b"%04d" % number * 1_000)
    (tmp_path / "z").write_bytes(b"end")
    if options.startswith("--sparse"):
        options = ["--format=pax", options]
    command = [
        GNU_TAR,
        "-cSf",
        tmp_path / "set.tar",
        "-C",
        tmp_path,
        *([options] if isinstance(options, str) else options),
    ]
    subprocess.run([*command, "sparse", "z"], check=True)
    data = (tmp_path / "set.tar").read_bytes()
    if len(data) > 20 << 20:
        pytest.skip("the file system has no sparse files")
    assert read_both(data) == [("sparse", "a sparse file"), ("z", b"end")]


# --- links and other members without content -------------------------------------------------------------------------


def test_hard_links_have_the_content_of_an_earlier_member():
    data = (
        entry(b"./a", b"first") + entry(b"fifo", typeflag=b"6") + entry(b"b", b"other")
        + entry(b"link", typeflag=b"1", linkname=b"a", mtime=5) + entry(b"a", b"second")
        + entry(b"link 2", typeflag=b"1", linkname=b"./a") + entry(b"chain", typeflag=b"1", linkname=b"link")
        + entry(b"to fifo", typeflag=b"1", linkname=b"fifo") + entry(b"self", typeflag=b"1", linkname=b"self")
        + entry(b"../up", typeflag=b"1", linkname=b"b") + entry(b"to up", typeflag=b"1", linkname=b"../up")
        + entry(b"late", typeflag=b"1", linkname=b"z") + entry(b"z", b"end") + END
    )  # fmt: skip
    lost = "a hard link without an earlier member that it names"
    unsafe = "a member whose name contains an empty, '.' or '..' part"
    expected = [
        ("a", b"first"), ("fifo", "a FIFO"), ("b", b"other"), ("link", b"first"), ("a", b"second"),
        ("link 2", b"second"), ("chain", b"first"), ("to fifo", lost), ("self", lost), ("../up", unsafe),
        ("to up", lost), ("late", lost),
        ("z", b"end"),
    ]  # fmt: skip
    for name, packed in (("set.tar", data), ("set.tar.gz", gzip.compress(data))):

        async def read(container, store):
            assert await read_scanned(container) == expected
            members = [member async for member in container.scan()]
            assert members[3].modified == 5.0
            assert len({member.offset for member in members}) == len(members)
            found = dict(await read_iterated(container))
            assert {found[name] for name in ("link", "link 2", "chain", "self", "../up", "late")} == {"a hard link"}

        use(packed, read, name=name)


def test_a_file_without_hard_links_is_scanned_once():
    async def count(container, store):
        store.reset()
        async for _ in container.scan():
            pass
        return store.requests

    plain = b"".join(entry(b"%d" % number, bytes(600_000)) for number in range(10))
    assert use(plain + END, count) == 11
    assert use(plain + entry(b"l", typeflag=b"1", linkname=b"0") + END, count) <= 23


def test_the_memory_for_targets_of_hard_links_is_limited():
    limits = Limits(listing_bytes=100 * 256)
    data = b"".join(entry(b"%d" % number) for number in range(100))
    assert len(use(data + END, read_scanned_only, limits=limits)) == 100
    link = entry(b"l", typeflag=b"1", linkname=b"0")
    for linked in (data + link, link + data):
        with pytest.raises(LimitExceeded, match="listing_bytes"):
            use(linked + END, read_scanned_only, limits=limits)


def test_reading_what_has_no_content_is_one_error():
    data = entry(b"link", typeflag=b"2", linkname=b"/etc/passwd") + entry(b"/abs", b"x") + entry(b"z", b"end") + END

    async def read(container, store):
        members = [member async for member in container.scan()]
        for member in members[:2]:
            with pytest.raises(NotSupported) as caught:
                await join(container.stream(member))
            assert (caught.value.offset, member.problem in str(caught.value)) == (member.offset, True)
        found = []
        async for _, pieces in container.iterate():
            try:
                found.append(await join(pieces))
            except NotSupported as error:
                found.append(error.offset)
                with pytest.raises(NotSupported):
                    await anext(pieces)
        assert found == [0, 512, b"end"]

    use(data, read)


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [END, END + bytes(9_000), bytes(BLOCK), END + b"garbage", END + entry(b"other", b"x")])
def test_what_ends_a_tar_file(end):
    assert read_both(entry(b"a", b"1") + end) == [("a", b"1")]
    assert read_both(gzip.compress(entry(b"a", b"1") + end), name="set.tgz") == [("a", b"1")]


@pytest.mark.parametrize(
    "end", [b"", bytes(1), bytes(BLOCK - 1), pax([(b"mtime", b"1")]), header(b"b", 1), gnu_long(b"b")]
)
def test_a_tar_file_without_an_end_is_cut(end):
    data = entry(b"a", b"1") + end
    for packed, name in ((data, "set.tar"), (gzip.compress(data), "set.tar.gz")):
        error, names = refuse_both(packed, name=name)
        assert ("cut" in str(error), names[0]) == (True, "a")
        assert 2 * BLOCK <= error.offset <= len(data)
    assert "cut" in str(refuse_both(b"")[0])


def test_a_header_of_zeros_is_damage():
    data = entry(b"a", b"1") + bytes(BLOCK) + pad(b"content") + entry(b"c", b"3") + END
    error, names = refuse_both(data)
    assert (error.offset, names) == (1_024, ["a"])
    error, _ = refuse_both(entry(b"a", b"1") + pax([(b"path", b"b")]) + END)
    assert "no header follows" in str(error)


def test_a_wrong_checksum_of_the_compressed_file_is_noticed_at_its_end():
    data = entry(b"a", random.Random(0).randbytes(600_000)) + entry(b"b") + END + bytes(1_000_000)
    packed = bytearray(gzip.compress(data))
    packed[-5] ^= 1
    assert "gzip" in str(refuse_both(bytes(packed), name="set.tar.gz")[0])

    async def read_member(container, store):
        async with contextlib.aclosing(container.scan()) as members:
            member = await anext(members)
        assert await join(container.stream(member)) == data[512:600_512]

    use(bytes(packed), read_member, name="set.tar.gz")


def test_a_pass_receives_all_that_its_request_delivers():
    async def count(container, store):
        store.reset()
        async for _ in container.iterate():
            pass
        return store.requests, store.bytes_received

    data = entry(b"a", b"1") + END + bytes(3_000_000)
    assert use(data, count) == (1, len(data))


def test_a_pass_that_failed_fails_again():
    data = gzip.compress(entry(b"a", random.Random(0).randbytes(600_000)) + entry(b"b") + END)

    async def read(container, store):
        async with contextlib.aclosing(container.iterate()) as members:
            _, pieces = await anext(members)
            with pytest.raises(CorruptContainer) as first:
                await join(pieces)
            with pytest.raises(CorruptContainer) as second:
                await anext(members)
            assert (str(second.value), second.value.offset) == (str(first.value), first.value.offset)

    use(data[:300_000], read, name="set.tar.gz")


@pytest.mark.parametrize("size", [2**63 - 1, 1 << 40, 1_025, 1_536 + 1])
def test_sizes_beyond_the_end_are_noticed_before_anything_is_read(size):
    data = entry(b"a", b"1") + header(b"b", b"\x80" + size.to_bytes(11, "big")) + END
    error, names = refuse_both(data)
    assert (error.offset, names) == (1_024, ["a"])
    error, _ = refuse_both(entry(b"a", b"1") + header(b"b", b"\x80" + size.to_bytes(11, "big"), b"x") + END)
    assert error.offset == 1_024


def test_extended_headers_are_limited():
    error, _ = refuse_both(entry(b"x", bytes((1 << 20) + 1), b"L") + entry(b"a") + END)
    assert "extended header has 1048577 bytes" in str(error)
    name = b"d/" * 2_000 + b"a"
    assert read_both(entry(b"x", name + bytes((1 << 20) - len(name)), b"L") + entry(b"a", b"1") + END) == [
        (name.decode(), b"1")
    ]
    assert refuse_both(pax(b"12 path=a\n") + entry(b"a") + END)[0].offset == 0
    many = pax([(b"path", b"b"), (b"mtime", b"1")]) * 5_000
    assert read_both(many + entry(b"a", b"1") + END) == [("b", b"1")]


def test_pieces_that_end_anywhere_within_headers():
    data = pax([(b"path", b"p" * 300)]) + entry(b"a", b"one") + gnu_long(b"g" * 600) + entry(b"b", bytes(700)) + END
    expected = [("p" * 300, b"one"), ("g" * 600, bytes(700))]
    for piece_bytes in (1, 3, 255, 511, 512, 513, 1_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "_PIECE_BYTES", piece_bytes)
            assert read_both(data) == expected


# --- requests --------------------------------------------------------------------------------------------------------


def count_requests(data, **options):
    async def count(container, store):
        names = [member.name async for member in container.scan()]
        return len(names), store.requests, store.bytes_received

    return use(data, count, **options)


def test_small_members_are_read_in_few_requests():
    data = b"".join(entry(b"%d" % number, bytes(number % 3_000)) for number in range(10_000)) + END
    members, requests, received = count_requests(data)
    assert members == 10_000
    assert len(data) - (8 << 10) <= received <= len(data)
    assert requests <= 12


def test_requests_grow_only_while_members_are_near():
    data = b"".join(entry(b"%d" % number, bytes(100_000)) for number in range(300)) + END
    members, requests, received = count_requests(data)
    assert (members, received <= len(data)) == (300, True)
    assert requests <= 12


def test_large_members_are_left_out():
    data = b"".join(entry(b"%d" % number, bytes(1_000_000)) + entry(b"%d.txt" % number, b"x") for number in range(20))
    members, requests, received = count_requests(data + END)
    assert (members, requests) == (40, 21)
    assert received < 21 * (64 << 10)


def test_small_limits_of_one_read_are_kept():
    data = b"".join(entry(b"%d" % number, bytes(100)) for number in range(100)) + END
    assert count_requests(data, limits=Limits(object_bytes=4_096))[0] == 100
    assert refuse_both(data, LimitExceeded, limits=Limits(object_bytes=100, stream_bytes=1_000))[1] == []


# --- passes ----------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_member_can_be_read_until_the_next_one():
    data = entry(b"a", b"one") + entry(b"empty") + entry(b"b", b"two") + END

    async def read(container, store):
        async with contextlib.aclosing(container.iterate()) as members:
            _, first = await anext(members)
            _, empty = await anext(members)
            with pytest.raises(ClosedError, match="until the next member"):
                await anext(first)
            assert aiter(empty) is empty
            with pytest.raises(StopAsyncIteration):
                await anext(empty)
            _, last = await anext(members)
            assert await last.asend(None) == b"two"
            with pytest.raises(StopAsyncIteration):
                await last.asend(None)
        with pytest.raises(ClosedError):
            await anext(first)

    use(data, read)


def test_closing_the_bytes_of_a_member_skips_the_rest():
    data = b"".join(entry(b"%d" % number, bytes([number]) * 3_000_000) for number in range(3)) + END

    async def read(container, store):
        sizes = []
        async for _, pieces in container.iterate():
            async with contextlib.aclosing(pieces):
                sizes.append(len(await anext(pieces)))
            with pytest.raises(StopAsyncIteration):
                await anext(pieces)
            with pytest.raises(KeyError):
                await pieces.athrow(KeyError("of the caller"))
        assert len(sizes) == 3

    use(data, read)


def test_pieces_are_those_of_the_store():
    data = entry(b"a", bytes(2_500_000)) + END

    async def read(container, store):
        return [[len(piece) async for piece in pieces] async for _, pieces in container.iterate()]

    assert use(data, read) == [[(1 << 20) - BLOCK, 1 << 20, 2_500_000 - (2 << 20) + BLOCK]]


def test_a_cancelled_pass_does_not_pretend_that_the_file_is_cut():
    data = entry(b"a", bytes(3_000_000)) + entry(b"b", b"two") + END

    async def read(container, store):
        async with contextlib.aclosing(container.iterate()) as members:
            _, pieces = await anext(members)
            has_first_piece = asyncio.Event()

            async def read_two_pieces(pieces=pieces):
                await anext(pieces)
                has_first_piece.set()
                await anext(pieces)

            receive = asyncio.ensure_future(read_two_pieces())
            await has_first_piece.wait()
            receive.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receive
            with pytest.raises(ClosedError, match="cancellation"):
                await anext(members)

    use(data, read, wrap=functools.partial(StallingStore, offset=1 << 20))


def test_other_tasks_run_while_a_scan_does_not_wait():
    data = b"".join(entry(b"%d" % number) for number in range(50_000)) + END

    async def read(container, store):
        rounds = 0

        async def count():
            nonlocal rounds
            while True:
                await asyncio.sleep(0)
                rounds += 1

        counter = asyncio.ensure_future(count())
        for members in (container.scan(), container.iterate()):
            rounds = 0
            async for _ in members:
                pass
            assert rounds >= 5
        counter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counter

    use(data, read)


def test_names_of_files_state_the_compression():
    data = entry(b"a", record(b"k", b"v")) + END
    for name in ("x.tar.gz", "x.TGZ", "x.tgz?versionId=1.tar"):
        assert read_both(gzip.compress(data), name=name) == [("a", b"6 k=v\n")]
    for name in ("x.tar", "x.gz.tar", "x.tar?y=.tar.gz"):
        assert read_both(data, name=name) == [("a", b"6 k=v\n")]
