"""The bytes of zip members: whole, in part, one after the other, damaged."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zip_data import Entry, build, deflate, iterate, make_zip, opened, play, read, read_all, truth

import streamloader as sl
from streamloader.containers.base import ContainerSource
from streamloader.containers.zip.container import ZipContainer
from streamloader.errors import CorruptContainer

NOISE = random.Random(7).randbytes(300_000)
TEXT = b"".join(b"line %d of a long text\n" % number for number in range(40_000))
MEMBERS = [("noise", NOISE), ("text", TEXT), ("empty", b""), ("d/short", b"a few bytes"), ("d/text", TEXT[:70_000])]
METHODS = pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])


def use(data, function, **options):
    """Call a coroutine function with the container, its members and its store."""

    async def call():
        async with opened(data, **options) as (container, store):
            members = [member async for member in container.scan()]
            store.spans.clear()
            return await function(container, members, store)

    return play(call())


# --- right bytes -----------------------------------------------------------------------------------------------------


@METHODS
def test_contents_are_those_of_zipfile(method):
    data = make_zip(MEMBERS, method)
    assert truth(data) == MEMBERS
    assert iterate(data) == MEMBERS
    assert read_all(data) == MEMBERS


class Unseekable(io.RawIOBase):
    """A pipe: what is written to it cannot be changed any more."""

    def __init__(self):
        super().__init__()
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


@METHODS
@pytest.mark.parametrize("force_zip64", [False, True])
def test_sizes_that_follow_the_content(method, force_zip64):
    pipe = Unseekable()
    with zipfile.ZipFile(pipe, "w", method) as file:
        for name, content in MEMBERS:
            with file.open(name, "w", force_zip64=force_zip64) as target:
                target.write(content)
    assert pipe.data[6] & 8  # the flag
    assert truth(pipe.data) == MEMBERS
    assert iterate(pipe.data) == MEMBERS
    assert read_all(pipe.data) == MEMBERS


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP's zip")
def test_files_of_info_zip(tmp_path):
    folder = tmp_path / "files"
    expected = [*MEMBERS, ("ä 日本.txt", b"named")]
    for name, content in expected:
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
    piped = subprocess.run(["zip", "-q", "-r", "-", "."], cwd=folder, check=True, stdout=subprocess.PIPE).stdout
    (folder / "link").symlink_to("text")
    subprocess.run(["zip", "-q", "-r", "-y", "../made.zip", "."], cwd=folder, check=True)
    for data, links in (piped, {}), ((tmp_path / "made.zip").read_bytes(), {"link": "a symbolic link"}):

        async def collect(container, members, _, links=links):
            assert {member.name: member.problem for member in members if member.problem} == links
            ordinary = [member for member in members if member.problem is None]
            for member in ordinary:
                assert member.modified == int((folder / member.name).stat().st_mtime)
            return {member.name: await read(container, member) for member in ordinary}

        assert use(data, collect) == dict(expected)


@METHODS
def test_any_part_of_a_member(method):
    data = make_zip(MEMBERS, method)
    contents = dict(MEMBERS)

    @given(st.lists(st.tuples(st.sampled_from(["noise", "text", "empty", "d/short"]), st.floats(0, 1), st.floats(0, 1)),
                    max_size=6))  # fmt: skip
    @settings(max_examples=60)
    def check(parts):
        async def compare(container, members, _):
            by_name = {member.name: member for member in members}
            for name, one, two in parts:
                content = contents[name]
                start, end = sorted((int(one * len(content)), int(two * len(content))))
                assert await read(container, by_name[name], start, end) == content[start:end]

        use(data, compare)

    check()


@METHODS
def test_many_tasks_read_at_once(method):
    data = make_zip(MEMBERS, method)

    async def compare(container, members, _):
        async def check(number):
            generator = random.Random(number)
            for _ in range(6):
                index = generator.randrange(2)
                content = MEMBERS[index][1]
                start = generator.randrange(len(content))
                end = generator.choice([len(content), generator.randrange(start, len(content))])
                assert await read(container, members[index], start, end) == content[start:end]

        await asyncio.gather(*(check(number) for number in range(20)))

    use(data, compare)


def test_a_part_outside_of_a_member_is_refused():
    async def exceed(container, members, _):
        for start, end in ((0, 12), (12, None), (2, 15)):
            with pytest.raises(sl.RangeNotSatisfiable, match=r"a\.zip!/d/short"):
                await read(container, members[3], start, end)
        assert await read(container, members[3], 11, 11) == b""

    use(make_zip(MEMBERS), exceed)


def test_a_file_on_disk(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(make_zip(MEMBERS, zipfile.ZIP_DEFLATED))

    async def collect():
        async with sl.open_store(str(tmp_path)) as store:
            container = ZipContainer(ContainerSource(store, await store.head("a.zip")))
            return [(member.name, await read(container, member)) async for member in container.scan()]

    assert play(collect()) == MEMBERS


# --- requests --------------------------------------------------------------------------------------------------------


@METHODS
def test_a_member_needs_one_request_with_its_header(method):
    async def count(container, members, store):
        assert await read(container, members[1]) == TEXT
        return members[1], store.spans

    member, spans = use(make_zip(MEMBERS, method), count)
    assert spans == [(member.offset, member.data + 64 + member.stored_size)]


def test_a_large_member_needs_two_requests():
    content = NOISE * 20  # 6 MB

    async def count(container, members, store):
        assert await read(container, members[0]) == content
        return members[0], store.spans

    member, spans = use(make_zip([("a", content)]), count)
    head_end = member.data + 64 + (2 << 20)
    assert spans == [(0, head_end), (head_end, member.data + member.size)]


def test_parts_of_a_stored_member_need_one_request_each():
    async def count(container, members, store):
        for start in range(0, len(NOISE), 50_000):
            assert await read(container, members[0], start, start + 50_000) == NOISE[start : start + 50_000]
        return store.spans

    spans = use(make_zip(MEMBERS), count)
    assert len(spans) == 6
    assert sum(end - start for start, end in spans) < len(NOISE) + 200


def test_successive_parts_of_a_deflated_member_cost_one_pass():
    content = b"".join(b"%d" % number for number in range(700_000))  # 4 MB

    async def count(container, members, store):
        for start in range(0, len(content), 300_000):
            end = min(start + 300_000, len(content))
            assert await read(container, members[0], start, end) == content[start:end]
        return members[0], store.spans

    member, spans = use(make_zip([("a", content)], zipfile.ZIP_DEFLATED), count)
    assert sum(end - start for start, end in spans) < 2 * member.stored_size


def requests_of_iteration(data, *, unread=()):
    async def collect(container, _, store):
        found = []
        async for member, pieces in container.iterate():
            content = b"" if member.name in unread else b"".join([piece async for piece in pieces])
            found.append((member.name, content))
        return found, store.spans

    return use(data, collect)


@METHODS
def test_an_iteration_reads_many_small_members_at_once(method):
    members = [(f"{number:05d}", NOISE[number : number + 1000]) for number in range(6000)]
    data = make_zip(members, method)
    found, spans = requests_of_iteration(data)
    assert found == members
    assert len(spans) < 12
    assert min(end for start, end in spans if start == 0) <= 300_000  # the first member is soon there
    assert sum(end - start for start, end in spans) < 1.02 * len(data) + 70_000
    assert max(end - start for start, end in spans) < 7 << 20


def test_an_iteration_takes_bounded_memory():
    generator = random.Random(3)
    data = make_zip([(f"{number}", generator.randbytes(90_000)) for number in range(300)])  # 27 MB
    del generator

    async def measure(container, _, __):
        tracemalloc.start()
        try:
            async for member, pieces in container.iterate():
                assert sum([len(piece) async for piece in pieces]) == member.size
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert use(data, measure) < 20 << 20


def test_other_tasks_run_during_an_iteration():
    data = make_zip([(f"{number}", b"tiny") for number in range(3000)])

    async def count(container, _, __):
        pauses = []

        async def run():
            while True:
                await asyncio.sleep(0)
                pauses.append(None)

        other = asyncio.create_task(run())
        counts = []
        async for _, pieces in container.iterate():
            assert await anext(pieces) == b"tiny"
            counts.append(len(pauses))
        other.cancel()
        return counts[-1] - counts[0]

    assert use(data, count) >= 8


def test_an_iteration_holds_a_bounded_number_of_members():
    entries = [Entry(b"%05d" % number, b"") for number in range(6000)]
    found, spans = requests_of_iteration(build(entries))
    assert len(found) == 6000
    local_bytes = len(entries[0].make_local())
    assert max(end - start for start, end in spans if end <= 6000 * local_bytes) <= 4096 * local_bytes + 64


def test_what_is_not_read_of_an_iteration_is_not_transferred():
    members = [("small", b"1"), ("large", NOISE * 20), ("after", b"2"), ("last", NOISE * 10)]
    found, spans = requests_of_iteration(make_zip(members), unread=["large"])
    assert [content for _, content in found] == [b"1", b"", b"2", NOISE * 10]
    assert sum(end - start for start, end in spans) < len(NOISE) * 11


def test_an_iteration_leaves_out_gaps():
    entries = [Entry(b"%d" % number, b"%d" % number, after=bytes(1 << 20)) for number in range(8)]
    found, spans = requests_of_iteration(build(entries))
    assert found == [(str(number), b"%d" % number) for number in range(8)]
    assert sum(end - start for start, end in spans) < 100_000


def test_an_iteration_can_be_left_anywhere():
    data = make_zip([(f"{number}", NOISE[:5000]) for number in range(200)] + [("large", NOISE * 10)])

    async def leave(container, _, store):
        for count in (0, 1, 100, 201):
            async with contextlib.aclosing(container.iterate()) as members:
                for _ in range(count):
                    _, pieces = await anext(members)
                    assert await anext(pieces)
        return len(store.spans)

    assert use(data, leave) < 30


def test_a_member_of_an_iteration_ends_with_the_next():
    async def advance(container, _, __):
        async with contextlib.aclosing(container.iterate()) as members:
            _, unread = await anext(members)
            _, cut = await anext(members)
            assert await anext(cut)
            with pytest.raises(sl.ClosedError, match=r"a\.zip!/noise"):
                await anext(unread)
            await anext(members)
            with pytest.raises(sl.ClosedError, match=r"a\.zip!/text"):
                await anext(cut)
            _, last = await anext(members)
        with pytest.raises(sl.ClosedError, match=r"a\.zip!/d/short"):
            await anext(last)

    use(make_zip(MEMBERS), advance)


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(data, content):
    """Flip a bit of the middle of `content`, which `data` contains."""
    index = data.index(content) + len(content) // 2
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


async def collect_pieces(source, pieces):
    async for piece in source:
        pieces.append(piece)


async def fail_and_go_on(container, members, damaged, error, match):
    """Check that one member fails, whole and in an iteration, and all others do not."""
    for member in members:
        if member.name == damaged:
            with pytest.raises(error, match=match) as caught:
                await read(container, member)
            assert caught.value.address == "memory://zip/a.zip"
            assert caught.value.offset is not None
        else:
            assert len(await read(container, member)) == member.size
    found = 0
    async for member, pieces in container.iterate():
        if member.name == damaged:
            with pytest.raises(error, match=match):
                await collect_pieces(pieces, [])
        else:
            found += 1
            assert sum([len(piece) async for piece in pieces]) == member.size
    assert found == len(members) - 1


@METHODS
@pytest.mark.parametrize("name", ["noise", "d/short", "large"])
def test_wrong_bytes_are_found(method, name):
    members = [*MEMBERS, ("large", NOISE * 9), ("last", b"last")]
    data = make_zip(members, method)
    content = dict(members)[name]
    data = flip(data, deflate_as_zipfile(content) if method else content)

    async def fail(container, members, _):
        error = (sl.IntegrityError, CorruptContainer) if method else sl.IntegrityError
        await fail_and_go_on(container, members, name, error, "checksum|damaged|cut|bytes")

    use(data, fail)


def deflate_as_zipfile(content):
    compressor = zlib.compressobj(-1, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def test_wrong_bytes_never_arrive_whole():
    async def count(container, members, _):
        pieces = []
        with pytest.raises(sl.IntegrityError, match="checksum is 0x"):
            await collect_pieces(container.stream(members[0]), pieces)
        assert sum(map(len, pieces)) < members[0].size

    use(flip(make_zip(MEMBERS), NOISE), count)


@METHODS
def test_successive_parts_verify_the_checksum(method):
    content = NOISE * 3 if method else NOISE
    entry = Entry(b"a", content, method=method, checksum=1)

    async def read_parts(container, members, _):
        for start in range(0, len(content) - 100_000, 100_000):
            assert await read(container, members[0], start, start + 100_000) == content[start : start + 100_000]
        with pytest.raises(sl.IntegrityError, match="checksum"):
            await read(container, members[0], len(content) - 100_000)
        # A part that does not follow another one has no checksum.
        assert await read(container, members[0], 5, len(content)) == content[5:]

    use(build([entry]), read_parts)


LONG = deflate(b"x" * 1000)
BIG = b"".join(b"%d" % number for number in range(100_000))  # more than is decoded in one go


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (Entry(b"bad", b"x" * 999, 8, stored=LONG), "declared 999 bytes"),
        (Entry(b"bad", b"x" * 1001, 8, stored=LONG), "declared 1001 bytes"),
        (Entry(b"bad", b"x" * 1000, 8, stored=LONG + b"more"), "followed by something else"),
        (Entry(b"bad", b"x" * 1000, 8, stored=LONG[:-1]), "cut|declared"),
        (Entry(b"bad", b"x" * 1000, 8, stored=b"\xff" * 20), "damaged"),
        (Entry(b"bad", b"", 8, stored=b"\3\0more"), "something else|follow|declared|more"),
        (Entry(b"bad", BIG[:-1], 8, stored=deflate(BIG)), "declared 488889 bytes"),
        (Entry(b"bad", BIG + b"1", 8, stored=deflate(BIG)), "declared 488891 bytes"),
        (Entry(b"bad", BIG, 8, stored=deflate(BIG) + b"more"), "something else|follow|more"),
        (Entry(b"bad", BIG, 8, stored=deflate(BIG)[:-1]), "cut|declared"),
        (Entry(b"bad", BIG, 8, stored=deflate(BIG)[:-5000] + b"\xff" * 5000), "damaged|declared|follows"),
    ],
)
def test_damaged_deflate_data(entry, match):
    async def fail(container, members, _):
        await fail_and_go_on(container, members, "bad", CorruptContainer, match)
        if entry.size:
            with pytest.raises(CorruptContainer):  # the last bytes are not read alone either
                await read(container, members[1], entry.size - 1)

    use(build([Entry(b"first"), entry, Entry(b"last")]), fail)


def test_a_bomb_ends_at_its_declared_size():
    bomb = Entry(b"bad", bytes(1000), 8, stored=deflate(bytes(20 << 20)))

    async def fail(container, members, _):
        pieces = []
        tracemalloc.start()
        with pytest.raises(CorruptContainer, match="declared 1000 bytes"):
            await collect_pieces(container.stream(members[0]), pieces)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        assert pieces == []

    use(build([bomb]), fail)


@pytest.mark.parametrize(
    ("local", "match"),
    [
        ({"signature": b"PK\1\2"}, "no member begins here"),
        ({"flags": 1}, "the encryption"),
        ({"method": 8}, "the compression method"),
        ({"name": b"other"}, "the length of the name"),
        ({"name": b"bat"}, "the name"),
        ({"name": b"bat", "extra": struct.pack("<HH", 0xCAFE, 500) + bytes(500)}, "the name"),
        ({"checksum": 1}, "a size or the checksum"),
        ({"size": 6}, "a size or the checksum"),
        ({"stored_size": 0}, "a size or the checksum"),
        ({"flags": 8, "size": 6}, "a size or the checksum"),
        ({"extra": b"\1\2\3\4\5"}, "extra field 0x0201"),
        ({"size": 0xFFFFFFFF, "extra": struct.pack("<HHL", 1, 4, 7)}, "zip64 extra field is too short"),
        ({"size": 0xFFFFFFFF, "extra": struct.pack("<HHQ", 1, 8, 8)}, "a size or the checksum"),
        ({"extra_length": 20_000}, "overlaps the next one|extra field|cut"),
    ],
)
def test_the_local_header_is_compared(local, match):
    async def fail(container, members, _):
        await fail_and_go_on(container, members, "bad", CorruptContainer, match)
        with pytest.raises(CorruptContainer, match=match):
            await read(container, members[1], 1, 3)

    use(build([Entry(b"first"), Entry(b"bad", local=local), Entry(b"last")]), fail)


def test_a_utf8_name_is_compared():
    flags = 1 << 11
    entry = Entry("bäd".encode(), flags=flags, local={"name": "böd".encode()})

    async def fail(container, members, _):
        await fail_and_go_on(container, members, "bäd", CorruptContainer, "the name")

    use(build([Entry(b"first"), entry]), fail)


def test_the_extra_fields_of_the_local_header_may_be_long():
    extra = struct.pack("<HH", 0xCAFE, 60_000) + bytes(60_000)
    entries = [Entry(b"%d" % number, NOISE[:1000], local={"extra": extra}) for number in range(4)]
    data = build(entries)
    assert iterate(data) == read_all(data) == truth(data)

    async def read_part(container, members, _):
        assert await read(container, members[1], 10, 20) == NOISE[10:20]

    use(data, read_part)


def test_extra_fields_that_move_the_content_into_the_next_member():
    after = Entry(b"next", b"n" * 50)
    extra = struct.pack("<HH", 0xCAFE, 16) + bytes(16)
    # By the directory, the content has the place of the extra field, so that nothing overlaps.
    content = bytes(20) + after.make_local()[:20]
    bad = Entry(b"bad", content, stored=content[:20], stored_size=40, local={"extra": extra})

    async def fail(container, members, _):
        assert [member.name for member in members] == ["bad", "next"]
        async with contextlib.aclosing(container.iterate()) as pairs:
            _, pieces = await anext(pairs)
            with pytest.raises(CorruptContainer, match="overlaps the next one"):
                await anext(pieces)
            _, pieces = await anext(pairs)
            assert await anext(pieces) == b"n" * 50

    use(build([bad, after]), fail)


# --- mutants ---------------------------------------------------------------------------------------------------------

SMALL = [("a", b"first member"), ("b/c", b"b" * 300), ("d", bytes(range(200))), ("e", b"")]


def make_originals():
    pipe = Unseekable()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in SMALL:
            file.writestr(name, content)
    return [make_zip(SMALL), make_zip(SMALL, zipfile.ZIP_DEFLATED, b"comment"), pipe.data]


ORIGINALS = make_originals()


async def check_mutant(data):
    """Check that what is read of `data` is a part of the original, or one typed error."""
    contents = dict(SMALL)

    async def collect(pieces, content, name):
        with contextlib.suppress(sl.StoreError):
            assert b"".join([piece async for piece in pieces]) == content, name

    async with opened(data) as (container, _):
        with contextlib.suppress(sl.StoreError):
            async for member in container.scan():
                if member.problem is None:
                    await collect(container.stream(member), contents.get(member.name), member.name)
        with contextlib.suppress(sl.StoreError):
            async for member, pieces in container.iterate():
                await collect(pieces, contents.get(member.name), member.name)


def mutate(generator, data):
    """Return `data` with flipped bits, other bytes, and pieces that are missing, repeated or swapped."""
    mutant = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        index = generator.randrange(len(mutant))
        match generator.randrange(6):
            case 0 | 1:
                mutant[index] ^= 1 << generator.randrange(8)
            case 2:
                mutant[index] = generator.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                del mutant[index : index + generator.choice([1, 2, 30, 100])]
            case 4:
                mutant[index:index] = mutant[index : index + generator.choice([1, 4, 46])]
            case 5:
                width = generator.choice([2, 4, 8])
                mutant[index : index + width] = generator.choice([b"\xff", b"\0"]) * width
        if not mutant:
            break
    return bytes(mutant)


def check_mutants(seeds):
    for seed in seeds:
        generator = random.Random(seed)
        data = mutate(generator, generator.choice(ORIGINALS))
        try:
            play(check_mutant(data))
        except BaseException as error:
            error.add_note(f"mutant {seed}")
            raise


def test_mutants():
    check_mutants(range(150))


@pytest.mark.slow
def test_many_mutants():
    check_mutants(range(150, 4000))


@pytest.mark.slow
def test_every_bit_of_a_file():
    for index in range(len(ORIGINALS[1]) * 8):
        data = bytearray(ORIGINALS[1])
        data[index // 8] ^= 1 << index % 8
        play(check_mutant(bytes(data)))
