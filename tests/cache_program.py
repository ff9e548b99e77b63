"""Reads through a cache until it is killed: python cache_program.py CACHE_DIR CACHE_BYTES SEED."""

from __future__ import annotations

import asyncio
import random
import sys

import streamloader as sl
from streamloader.values import ByteRange

OBJECTS, SIZE = 12, 5 << 20


def make_object(number):
    return random.Random(number).randbytes(SIZE)


class GeneratedStore(sl.Store):
    """Generated objects: the same in each process."""

    async def _head(self, path):
        return sl.ObjectInfo(path, SIZE, "always")

    def _get(self, path, span, version):
        return GeneratedRead(self, path, span)


class GeneratedRead:
    def __init__(self, store, path, span):
        self.path, self.span = path, span or ByteRange()

    async def __aenter__(self):
        from streamloader.stores.base import Body

        start, end = self.span.within(SIZE)
        return Body(sl.ObjectInfo(self.path, SIZE, "always"), start, end, self.pieces(start, end))

    async def __aexit__(self, *exc):
        pass

    async def pieces(self, start, end):
        data = make_object(int(self.path))
        for at in range(start, end, 1 << 20):
            yield data[at : min(end, at + (1 << 20))]


def make_cache(folder, limit):
    from streamloader.stores.wrappers.cache import CachingStore

    return CachingStore(GeneratedStore("generated://x"), folder, limit)


async def read_until_killed(folder, limit, seed):
    rng = random.Random(seed)
    async with make_cache(folder, limit) as store:
        print("started", flush=True)  # noqa: T201 - the parent waits for it
        while True:
            await asyncio.gather(*(check_read(store, rng.randrange(OBJECTS), rng.randrange(SIZE)) for _ in range(4)))


async def check_read(store, number, at):
    data = await store.read(str(number), ByteRange(at, min(SIZE, at + 2_000_000)))
    if data != make_object(number)[at : at + 2_000_000]:
        print("WRONG", number, at, flush=True)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(read_until_killed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
