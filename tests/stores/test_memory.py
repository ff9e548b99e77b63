"""Objects in memory: their visibility and lifetime."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys

import pytest

import streamloader as sl


def play(use):
    return asyncio.run(asyncio.wait_for(use(), 60))


def test_stores_of_one_name_share_their_objects():
    async def share():
        async with sl.open_store("memory://shared") as one, sl.open_store("memory://shared") as two:
            await one.write("a", b"x")
            assert await two.read("a") == b"x"
        async with sl.open_store("memory://other") as other:
            with pytest.raises(sl.NotFound, match="memory://other/a"):
                await other.read("a")
        async with sl.open_store("memory://shared") as later:  # closing frees nothing
            assert await later.read("a") == b"x"

    play(share)


def test_no_version_ever_comes_back():
    # Not even where an object is deleted and written again: what is kept of it by version would be the old one.
    async def versions():
        async with sl.open_store("memory://versions") as store:
            seen = []
            for _ in range(5):
                await store.write("a", b"same size")
                seen.append((await store.head("a")).version)
                await store.delete("a")
            return seen

    assert len(set(play(versions))) == 5


def test_what_is_written_is_a_copy():
    async def write():
        async with sl.open_store("memory://copies") as store:
            data = bytearray(b"before")
            await store.write("a", data)
            data[:] = b"behind"
            assert await store.read("a") == b"before"

    play(write)


def test_a_pickled_store_takes_its_objects_to_a_process_that_has_none():
    async def write():
        async with sl.open_store("memory://travels") as store:
            await store.write("a", b"taken along")
            return pickle.dumps(store)

    program = (
        "import asyncio, pickle, sys\n"
        "async def main():\n"
        "    async with pickle.load(sys.stdin.buffer) as store:\n"
        "        print((await store.read('a')).decode())\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=play(write), stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"taken along\n"


def test_a_twin_in_the_same_process_sees_what_comes_later():
    async def look():
        async with sl.open_store("memory://later") as store:
            await store.write("a", b"1")
            pickled = pickle.dumps(store)
            await store.write("a", b"2")
            async with pickle.loads(pickled) as twin:
                assert await twin.read("a") == b"2"

    play(look)
