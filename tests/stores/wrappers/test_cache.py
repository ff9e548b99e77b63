"""The cache returns the bytes of the store, whatever happens to its directory and its processes."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import inspect
import logging
import os
import pickle
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_program import OBJECTS, make_cache, make_object
from planted import KINDS, give_away, needs_root, plant
from store_leaves import Scripted, busy_error, interrupted

import streamloader as sl
from streamloader.stores.wrappers import cache as cache_module
from streamloader.stores.wrappers import cache_blocks as blocks_module
from streamloader.stores.wrappers.cache import CachingStore
from streamloader.stores.wrappers.cache_blocks import BLOCK_BYTES, BlockFiles
from streamloader.stores.wrappers.verify import VerifyingStore
from streamloader.values import ByteRange

BIG = random.Random(1).randbytes(3 * BLOCK_BYTES + 12_345)
SMALL = random.Random(2).randbytes(70_000)
PROGRAM = Path(__file__).parents[2] / "cache_program.py"


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "cache")


def make(folder, limit=None, *script, version="v1"):
    inner = Scripted(script=list(script))
    inner.objects.update(big=(BIG, version), small=(SMALL, version), empty=(b"", version))
    return CachingStore(inner, folder, limit)


def play(use):
    async def run():
        async with asyncio.timeout(60):
            return await use()

    return asyncio.run(run())


def gets(store):
    return [request[1:3] for request in store.inner.requests if request[0] == "get"]


def heads(store):
    return len([request for request in store.inner.requests if request[0] == "head"])


def kept(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_an_object_is_fetched_once(store):
    async def read():
        assert [await store.read("small") for _ in range(3)] == [SMALL] * 3
        assert await store.read("small", ByteRange(5, 10)) == SMALL[5:10]

    play(read)
    assert gets(store) == [("small", "[0:]")]
    assert heads(store) == 4  # what is read without a version is looked at each time


def test_of_a_big_one_only_the_touched_blocks_are_fetched(store):
    async def read():
        assert (
            await store.read("big", ByteRange(BLOCK_BYTES + 5, BLOCK_BYTES + 9))
            == BIG[BLOCK_BYTES + 5 : BLOCK_BYTES + 9]
        )
        assert (
            await store.read("big", ByteRange(2 * BLOCK_BYTES - 1, 2 * BLOCK_BYTES))
            == BIG[2 * BLOCK_BYTES - 1 : 2 * BLOCK_BYTES]
        )
        assert await store.read("big", ByteRange(-5)) == BIG[-5:]

    play(read)
    assert gets(store) == [("big", f"[{BLOCK_BYTES}:{2 * BLOCK_BYTES}]"), ("big", f"[{3 * BLOCK_BYTES}:{len(BIG)}]")]
    assert len(kept(store._blocks.folder)) == 2


def test_blocks_that_follow_each_other_are_one_request(store):
    async def read():
        assert await store.read("big") == BIG
        assert await store.read("big", ByteRange(7, len(BIG) - 7)) == BIG[7:-7]

    play(read)
    assert gets(store) == [("big", "[0:]")]


def test_a_block_in_the_middle_is_not_fetched_again(store):
    async def read():
        await store.read("big", ByteRange(BLOCK_BYTES + 5, BLOCK_BYTES + 9))
        assert await store.read("big") == BIG

    play(read)
    # The transfer is left where a block is here already, and another one begins behind it.
    assert gets(store) == [
        ("big", f"[{BLOCK_BYTES}:{2 * BLOCK_BYTES}]"),
        ("big", "[0:]"),
        ("big", f"[{2 * BLOCK_BYTES}:{len(BIG)}]"),
    ]


def test_borders_of_blocks_and_pages(store):
    page = 64 << 10
    borders = [
        0,
        1,
        page - 1,
        page,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        3 * BLOCK_BYTES,
        len(BIG) - 1,
        len(BIG),
    ]

    async def read():
        for start in borders:
            for end in borders:
                if start <= end:
                    assert await store.read("big", ByteRange(start, end)) == BIG[start:end], (start, end)

    play(read)
    play(read)  # all from the directory


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_sizes(tmp_path, size):
    async def read():
        store = make(tmp_path / "cache")
        store.inner.objects["a"] = BIG[:size], "v"
        for _ in range(2):
            assert await store.read("a") == BIG[:size]
            assert await store.read("a", ByteRange(-1)) == BIG[:size][-1:]
        with pytest.raises(sl.RangeNotSatisfiable):
            await store.read("a", ByteRange(0, size + 1))

    play(read)


def test_who_comes_at_the_same_time_waits_for_the_first(store):
    async def read():
        spans = [ByteRange(BLOCK_BYTES + number, BLOCK_BYTES + 1000 + number) for number in range(40)]
        found = await asyncio.gather(*(store.read("big", span) for span in spans))
        assert found == [BIG[span.start : span.end] for span in spans]

    play(read)
    assert gets(store) == [("big", f"[{BLOCK_BYTES}:{2 * BLOCK_BYTES}]")]


def test_when_the_first_is_cancelled_the_next_one_fetches(store):
    async def read():
        tasks = [asyncio.create_task(store.read("big", ByteRange(number, 9 + number))) for number in range(6)]
        while not gets(store):  # noqa: ASYNC110 - until the first one fetches
            await asyncio.sleep(0)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [BIG[number : 9 + number] for number in range(1, 6)]

    play(read)


def test_when_the_first_fails_so_do_those_who_waited(tmp_path, monkeypatch):
    store = make(tmp_path, None, *([""] * 5), busy_error())
    get = store.inner._get

    @contextlib.asynccontextmanager
    async def get_once_all_wait(*args):
        while not gets(store) and sum(call.users for call in store._single_flight._calls.values()) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        async with get(*args) as body:
            yield body

    monkeypatch.setattr(store.inner, "_get", get_once_all_wait)

    async def read():
        tasks = [store.read("big", ByteRange(number, 9)) for number in range(5)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in found] == [sl.ServerBusy] * 5
        assert len({id(error) for error in found}) == 5
        assert await store.read("big", ByteRange(0, 9)) == BIG[:9]

    play(read)
    assert len(gets(store)) == 2


def test_a_transfer_that_breaks_off_keeps_whole_blocks_only(tmp_path):
    store = make(tmp_path / "cache", None, "", (BLOCK_BYTES + 500_000, interrupted()))

    async def read():
        with pytest.raises(sl.TransferInterrupted):
            await store.read("big")
        assert len(kept(tmp_path / "cache")) == 1
        assert await store.read("big") == BIG

    play(read)
    assert gets(store) == [("big", "[0:]"), ("big", f"[{BLOCK_BYTES}:{len(BIG)}]")]


# --- versions ---------------------------------------------------------------------------------------------------------


def test_another_version_is_another_object(store):
    async def read():
        assert await store.read("small") == SMALL
        store.inner.objects["small"] = SMALL[::-1], "v2"
        assert await store.read("small") == SMALL[::-1]
        assert await store.read("small", version="v1") == SMALL  # it is still here
        with pytest.raises(sl.ObjectChanged):
            await store.read("small", version="v0")

    play(read)


def test_a_version_that_is_here_is_read_without_asking(tmp_path):
    async def read():
        await make(tmp_path / "cache").read("big")
        again = make(tmp_path / "cache")
        assert await again.read("big", version="v1") == BIG
        assert (
            await again.read("big", ByteRange(BLOCK_BYTES, BLOCK_BYTES + 9), version="v1")
            == BIG[BLOCK_BYTES : BLOCK_BYTES + 9]
        )
        assert again.inner.requests == []
        assert await again.read("big", ByteRange(-9), version="v1") == BIG[-9:]
        assert heads(again) == 0  # its size is known by now

    play(read)


@pytest.mark.parametrize("info", [{"version": None}, {"size": None}])
def test_without_a_version_or_a_size_nothing_is_kept(tmp_path, info):
    class Vague(Scripted):
        def info(self, path):
            return sl.ObjectInfo(**{"path": path, "size": len(SMALL), "version": "v1", **info})

    inner = Vague()
    inner.objects["small"] = SMALL, "v1"
    store = CachingStore(inner, tmp_path / "cache")

    async def read():
        for _ in range(2):
            assert await store.read("small") == SMALL
            assert await store.read("small", ByteRange(5, 9)) == SMALL[5:9]

    play(read)
    assert len(gets(store)) == 4
    assert kept(tmp_path) == []


@pytest.mark.parametrize("urls", [("plain://one", "plain://two"), ("plain://alice@one", "plain://bob:sesame@one")])
def test_other_stores_do_not_meet(tmp_path, urls):
    async def read():
        for number, url in enumerate(urls):
            inner = Scripted(url)
            inner.objects["a"] = bytes([number]) * 9, "v1"
            assert await CachingStore(inner, tmp_path).read("a") == bytes([number]) * 9

    play(read)


def test_what_a_digest_finds_wrong_is_not_kept(tmp_path):
    async def read():
        cache = make(tmp_path / "cache")
        digest = hashlib.sha256(BIG).hexdigest()
        store = VerifyingStore(cache, {"big": f"sha256:{digest}"})
        cache.inner.objects["big"] = BIG[::-1], "v1"
        with pytest.raises(sl.IntegrityError):
            await store.read("big")
        assert kept(tmp_path) == []
        cache.inner.objects["big"] = BIG, "v1"  # it was damaged on the way
        assert await store.read("big") == BIG

    play(read)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["head", "table", "first byte", "middle", "last byte"])
def test_a_flipped_bit_is_fetched_again_and_never_returned(store, where, caplog):
    async def read():
        return await store.read("small")

    play(read)
    (block,) = kept(store._blocks.folder)
    data = bytearray(block.read_bytes())
    data[{"head": 9, "table": 30, "first byte": -len(SMALL), "middle": -len(SMALL) // 2, "last byte": -1}[where]] ^= 4
    block.write_bytes(data)
    with caplog.at_level(logging.WARNING, "streamloader"):
        assert play(read) == SMALL
    assert "damaged" in caplog.text
    assert len(gets(store)) == 2
    assert play(read) == SMALL
    assert len(gets(store)) == 2


@pytest.mark.parametrize("size", [0, 1, 23, 24, 100, 40_000])
def test_a_block_that_is_cut_off_is_fetched_again(store, size):
    async def read():
        return await store.read("small")

    play(read)
    (block,) = kept(store._blocks.folder)
    os.truncate(block, size)
    assert play(read) == SMALL
    assert len(gets(store)) == 2


def test_a_block_in_the_place_of_another_is_no_block(store):
    async def read(name="small"):
        return await store.read(name)

    play(read)
    (block,) = kept(store._blocks.folder)
    data = block.read_bytes()
    store.inner.objects["other"] = SMALL[::-1], "v1"
    play(lambda: read("other"))
    (other,) = [path for path in kept(store._blocks.folder) if path != block]
    other.write_bytes(data)
    assert play(lambda: read("other")) == SMALL[::-1]


def test_a_directory_in_the_place_of_a_block_does_no_harm(store, caplog):
    async def read():
        return await store.read("small")

    play(read)
    (block,) = kept(store._blocks.folder)
    block.unlink()
    block.mkdir()
    assert play(read) == SMALL
    assert play(read) == SMALL
    assert caplog.text.count("cannot be used") == 1


def test_what_lies_there_is_never_code():
    # Nothing is unpickled, evaluated or imported from the directory.
    for module in (blocks_module, cache_module):
        names = {node.id for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Name)}
        assert not names & {"pickle", "marshal", "shelve", "eval", "exec", "compile", "__import__"}


# --- the directory ----------------------------------------------------------------------------------------------------


def test_it_is_for_this_user_alone(store):
    play(lambda: store.read("small"))
    for path in Path(store._blocks.folder).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700)
    assert stat.S_IMODE(os.stat(store._blocks.folder).st_mode) == 0o700


def test_names_tell_nothing(tmp_path):
    inner = Scripted()
    inner.objects["secret/../../name"[:6] + "-plans.txt"] = b"x", "v1"
    store = CachingStore(inner, tmp_path / "cache")
    play(lambda: store.read("secret-plans.txt"))
    assert "plans" not in str(kept(tmp_path / "cache"))


def test_nothing_is_made_before_it_is_needed(tmp_path):
    store = make(tmp_path / "cache")
    play(lambda: store.head("small"))
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_served_from_the_store(tmp_path, caplog):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        store = make(disk / "cache")

        async def read():
            assert await store.read("big") == BIG
            assert (
                await store.read("big", ByteRange(2 * BLOCK_BYTES + 5, 2 * BLOCK_BYTES + 9))
                == BIG[2 * BLOCK_BYTES + 5 : 2 * BLOCK_BYTES + 9]
            )
            assert await store.read("big", ByteRange(5, 9)) == BIG[5:9]

        play(read)
        assert caplog.text.count("cannot be used") == 1
        assert "No space left" in caplog.text
        assert gets(store)[-1] == ("big", f"[{2 * BLOCK_BYTES + 5}:{2 * BLOCK_BYTES + 9}]")  # no more than is wanted
        (only,) = kept(disk)  # and nothing unfinished
        assert only.stat().st_size > BLOCK_BYTES
        store._writes_paused_until = 0.0
        only.unlink()
        play(lambda: store.read("big", ByteRange(BLOCK_BYTES, BLOCK_BYTES + 1)))
        assert len(kept(disk)) == 1  # there was room again
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_that_may_not_grow_is_served_from_the_store(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = make(tmp_path / "cache")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        assert play(lambda: store.read("big")) == BIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caplog.text.count("cannot be used") == 1
    assert kept(tmp_path) == []


def test_a_place_where_nothing_can_be_made(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    store = make(tmp_path / "file" / "cache")

    async def read():
        assert await store.read("big") == BIG
        assert await store.read("small") == SMALL

    play(read)
    assert caplog.text.count("cannot be used") == 1


# --- a directory that others can change -------------------------------------------------------------------------------


def forge(block):
    """Put another content, with the right digests, in the place of a block."""
    block.write_bytes(blocks_module._make_header(block.name, SMALL[::-1], len(SMALL)) + SMALL[::-1])


@needs_root
@pytest.mark.parametrize(
    "change", ["0777", "0775", "owner", "link", "0777 below", "0775 below", "owner below", "link below"]
)
def test_a_directory_that_another_user_can_change_is_refused(tmp_path, change):
    store = make(tmp_path / "cache")
    play(lambda: store.read("small"))
    (block,) = kept(store._blocks.folder)
    forge(block)
    folder = block.parent if change.endswith("below") else tmp_path / "cache"
    if change.startswith("owner"):
        give_away(folder)
    elif change.startswith("link"):
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to(folder.with_name("elsewhere"))
    else:
        folder.chmod(int(change.split()[0], 8))
    for name, span in (("small", None), ("small", ByteRange(3, 5)), ("big", ByteRange(1, 2))):
        if name == "big" and change.endswith("below"):
            continue  # its block has another folder
        with pytest.raises(sl.ConfigError, match=rf"cache_dir='{tmp_path}/cache' is not used: {folder} .* folder"):
            play(lambda name=name, span=span: make(tmp_path / "cache").read(name, span))


@needs_root
def test_a_directory_with_a_sticky_bit_is_used(tmp_path):
    tmp_path.chmod(0o1777)
    store = make(tmp_path)
    for _ in range(2):
        assert play(lambda: store.read("small")) == SMALL
    assert len(gets(store)) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_something_else_in_the_place_of_a_block_is_replaced(store, kind, caplog):
    async def read():
        return await store.read("small")

    play(read)
    (block,) = kept(store._blocks.folder)
    plant(block, kind)
    with caplog.at_level(logging.WARNING, "streamloader"):
        assert play(read) == SMALL
    assert "untrusted (is not a regular file" in caplog.text
    assert play(read) == SMALL
    assert len(gets(store)) == 2
    if kind == "link":
        assert block.with_name(f"{block.name}.target").read_bytes() == b"of the victim"


@needs_root
@pytest.mark.parametrize("change", ["owner", "0666"])
def test_a_block_that_another_user_can_change_is_replaced(store, change):
    play(lambda: store.read("small"))
    (block,) = kept(store._blocks.folder)
    forge(block)
    assert play(lambda: store.read("small")) == SMALL[::-1]  # nothing else protects from it
    if change == "owner":
        give_away(block)
    else:
        block.chmod(0o666)
    for _ in range(2):
        assert play(lambda: store.read("small")) == SMALL
    assert len(gets(store)) == 2
    assert block.stat().st_uid == 0


def test_only_files_of_the_cache_are_evicted(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "go").mkdir()
    (tmp_path / "ab").symlink_to(tmp_path / "target")
    files = [tmp_path / "go" / "notes.txt", tmp_path / "go" / "1-a.txt", tmp_path / "target" / ("ab" * 20 + "-0")]
    for file in files:
        file.write_bytes(bytes(1 << 20))
        os.utime(file, (1000, 1000))
    blocks = BlockFiles(str(tmp_path), 1 << 20)
    blocks.write("cd" * 20 + "-0", b"x", 1)
    blocks.evict()
    assert all(file.exists() for file in files)


# --- how much is kept -------------------------------------------------------------------------------------------------


def total(folder):
    return sum(path.stat().st_size for path in kept(folder))


def test_it_stays_within_its_bounds(tmp_path):
    limit = 10 * BLOCK_BYTES

    async def read():
        async with make_cache(tmp_path, limit) as store:
            for number in range(OBJECTS):
                assert await store.read(str(number)) == make_object(number)
                assert total(tmp_path) <= limit * 1.02 + BLOCK_BYTES

    play(read)
    assert total(tmp_path) > limit // 2


def test_what_was_not_used_for_the_longest_time_goes(tmp_path):
    blocks = BlockFiles(str(tmp_path), 10 * BLOCK_BYTES)
    for number in range(9):
        blocks.write(f"{number:040x}-0", BIG[:BLOCK_BYTES], BLOCK_BYTES)
        os.utime(tmp_path / "00" / f"{number:040x}-0", (1000 + number, 1000 + number))
    assert blocks.read(f"{0:040x}-0", 0, 9).data == BIG[:9]  # used just now
    for number in range(9, 12):
        blocks.write(f"{number:040x}-0", BIG[:BLOCK_BYTES], BLOCK_BYTES)
    names = [int(path.name[:40], 16) for path in kept(tmp_path)]
    assert 0 in names
    assert 1 not in names
    assert names[-3:] == [9, 10, 11]


def test_unfinished_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    blocks = BlockFiles(str(tmp_path), 10 * BLOCK_BYTES)
    blocks.write("ab" * 20 + "-0", b"x", 1)
    old, new = tmp_path / "ab" / ".new-old", tmp_path / "ab" / ".new-new"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (time.time() - 3600,) * 2)
    blocks.evict()
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("limit", [0, -1, 10 * BLOCK_BYTES - 1])
def test_refuses_limits_that_are_too_small(tmp_path, limit):
    with pytest.raises(sl.ConfigError, match="too small"):
        make(tmp_path, limit)


def test_a_twin_shares_the_directory(tmp_path):
    async def read():
        store = sl.open_store("memory://twin", cache_dir=tmp_path / "cache", retry=None)
        await store.write("a", SMALL)
        assert await store.read("a") == SMALL
        files = kept(tmp_path)
        twin = pickle.loads(pickle.dumps(store))
        assert await twin.read("a") == SMALL
        assert kept(tmp_path) == files
        assert [path.stat().st_size for path in files] == [path.stat().st_size for path in kept(tmp_path)]

    play(read)


# --- processes --------------------------------------------------------------------------------------------------------


def start(folder, seed, limit=10 * BLOCK_BYTES):
    program = subprocess.Popen(
        [sys.executable, PROGRAM, folder, str(limit), str(seed)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "started\n"
    return program


def check_all(folder):
    async def read():
        async with make_cache(folder, 10 * BLOCK_BYTES) as store:
            for number in range(OBJECTS):
                assert await store.read(str(number)) == make_object(number)

    play(read)


def kill_at_random(folder, rounds, seed):
    rng = random.Random(seed)
    for number in range(rounds):
        programs = [start(folder, 10 * number + which) for which in range(2)]
        try:
            time.sleep(rng.uniform(0, 0.3))  # the moment of death
        finally:
            for program in programs:
                program.kill()
                output = program.communicate()[0]
                assert output == "", output
                assert program.returncode == -signal.SIGKILL
        check_all(folder)
        unfinished = sum(path.stat().st_size for path in kept(folder) if path.name.startswith(".new-"))
        assert total(folder) - unfinished <= 10 * BLOCK_BYTES * 1.06 + 10 * BLOCK_BYTES


def test_killed_at_any_moment(tmp_path):
    kill_at_random(tmp_path, 1, 7)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_very_many_moments(tmp_path):
    kill_at_random(tmp_path, 25, 8)


def test_processes_share_it(tmp_path):
    programs = [start(tmp_path, seed) for seed in range(2)]
    try:
        check_all(tmp_path)
    finally:
        for program in programs:
            program.kill()
            assert program.communicate()[0] == ""
    assert total(tmp_path) <= 10 * BLOCK_BYTES * 1.06 + 10 * BLOCK_BYTES


def test_without_a_size_a_part_of_the_disk_stays_free(tmp_path, caplog, monkeypatch):
    store = make(tmp_path / "cache")
    play(lambda: store.read("small"))
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(blocks_module, "_RESERVE", 1.0)
    monkeypatch.setattr(blocks_module, "_MAX_RESERVE_BYTES", 1 << 62)
    monkeypatch.setattr(blocks_module, "_FREE_CHECK_BYTES", BLOCK_BYTES)
    full = make(tmp_path / "full")
    assert play(lambda: full.read("big")) == BIG
    assert kept(tmp_path / "full") == []
    assert "give the cache a size" in caplog.text
    limited = make(tmp_path / "limited", 100 * BLOCK_BYTES)
    play(lambda: limited.read("small"))
    assert len(kept(tmp_path / "limited")) == 1


def test_forgetting_an_object_of_any_declared_size_ends(tmp_path):
    store = make(tmp_path / "cache")
    store.limits = sl.Limits(stream_bytes=100 * BLOCK_BYTES)
    store._infos["small", "v1"] = sl.ObjectInfo("small", 1 << 62, "v1")
    play(lambda: store.forget("small", "v1"))
