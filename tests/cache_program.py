"""Reads through a cache until it is killed: python cache_program.py CACHE_DIR CACHE_BYTES SEED."""

from __future__ import annotations

import asyncio
import random
import sys

import streamloader as sl
from streamloader.values import ByteRange

OBJECTS, SIZE = 12, 5 << 20


def made(number):
    return random.Random(number).randbytes(SIZE)


class Made(sl.Store):
    """Objects that are computed: the same in each process."""

    async def _head(self, path):
        return sl.ObjectInfo(path, SIZE, "always")

    def _get(self, path, span, version):
        return Reading(self, path, span)


class Reading:
    def __init__(self, store, path, span):
        self.path, self.span = path, span or ByteRange()

    async def __aenter__(self):
        from streamloader.stores.base import Body

        start, end = self.span.within(SIZE)
        return Body(sl.ObjectInfo(self.path, SIZE, "always"), start, end, self.pieces(start, end))

    async def __aexit__(self, *exc):
        pass

    async def pieces(self, start, end):
        data = made(int(self.path))
        for at in range(start, end, 1 << 20):
            yield data[at : min(end, at + (1 << 20))]


def cached(folder, limit):
    from streamloader.stores.wrappers.cache import Cache

    return Cache(Made("made://up"), folder, limit)


async def read_on(folder, limit, seed):
    rng = random.Random(seed)
    async with cached(folder, limit) as store:
        print("begun", flush=True)  # noqa: T201 - the parent waits for it
        while True:
            await asyncio.gather(*(one(store, rng.randrange(OBJECTS), rng.randrange(SIZE)) for _ in range(4)))


async def one(store, number, at):
    data = await store.read(str(number), ByteRange(at, min(SIZE, at + 2_000_000)))
    if data != made(number)[at : at + 2_000_000]:
        print("WRONG", number, at, flush=True)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(read_on(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
