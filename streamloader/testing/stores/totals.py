"""Tests of a store's totals: what a server sends without end is cut off, and deep folders exhaust no stack."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import ClassVar, Final

import pytest

from streamloader.config import Limits
from streamloader.errors import ConfigError, LimitExceeded, StoreError
from streamloader.stores.base import Body, Store
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.testing.stores.binding import StoreBinding, list_objects, require_listing, run
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["TotalsSuite"]

_PIECE_BYTES: Final = 1 << 20
_MAX_PIECES: Final = 64  # a store that goes on after so many has no limit
_MAX_ENTRIES: Final = 20_000
_DECLARED_BYTES: Final = 1 << 60
_LEVELS: Final = 9


class TotalsSuite(StoreBinding):
    """Every input has a highest total: the size that was declared, or one of the limits.

    Attributes:
        deep_levels: Number of folders in the deepest path that the tests write. Raise it as far as the server allows,
            if no other test lists the same folder with the default limits.
    """

    deep_levels: ClassVar[int] = 100

    @pytest.mark.parametrize("declared", [None, _DECLARED_BYTES], ids=["no-size", "huge-size"])
    def test_an_endless_body_is_an_error(self, declared: int | None) -> None:
        if not self.served:
            pytest.skip("no server sends these objects")
        pieces: list[int] = []
        limits = Limits(object_bytes=2 * _PIECE_BYTES, unsized_bytes=4 * _PIECE_BYTES, stream_bytes=1 << 50)

        async def read(store: Store) -> None:
            _make_endless(store, declared, pieces)
            with pytest.raises(LimitExceeded, match="object_bytes"):
                await store.read("endless.bin")
            assert len(pieces) <= (0 if declared else 3), "more was read than the result may hold"
            pieces.clear()
            with pytest.raises(LimitExceeded, match="stream_bytes" if declared else "unsized_bytes"):
                await _exhaust(store.stream("endless.bin"))
            assert len(pieces) <= (0 if declared else 5), "more was read than the limit allows"
            if declared:  # a part of such an object can be read
                assert len(await store.read("endless.bin", ByteRange(0, 1_000))) == 1_000

        self.use(read, limits=limits)

    @pytest.mark.parametrize("limit", ["listed", "listing_bytes"])
    def test_an_endless_listing_is_an_error(self, limit: str) -> None:
        if not self.served:
            pytest.skip("no server lists these objects")

        async def check(store: Store) -> None:
            if await require_listing(store, self.path(self.name())):
                _make_endless(store, None, [])
                with pytest.raises(LimitExceeded, match=limit):
                    await list_objects(store, self.path(self.name()))
                with pytest.raises(LimitExceeded, match=limit):
                    assert [info async for info in store.list_unfinished(self.path(self.name()))] == []

        self.use(check, limits=Limits(listed=2_000) if limit == "listed" else Limits(listing_bytes=200_000))

    def test_too_deep_folders_are_an_error(self) -> None:
        path = self.put("/".join(["d"] * _LEVELS + ["a.bin"]), b"deep")

        async def check(store: Store) -> None:
            if await require_listing(store, self.path(self.name())):
                with pytest.raises(LimitExceeded, match="depth"):
                    await list_objects(store, self.path(self.name()))
                below = path.removesuffix("/d/d/d/a.bin")
                assert [info.path for info in await list_objects(store, below)] == [path]

        self.use(check, limits=Limits(depth=_LEVELS - 2))

    def test_very_deep_folders_are_written_and_listed_or_refused(self) -> None:
        path = self.path(self.name("/".join(["d"] * self.deep_levels + ["a.bin"])))

        async def write() -> bool:
            async with self.make_store() as store:
                with pytest.raises((StoreError, ConfigError)):
                    await store.read(path)
                try:
                    await store.write(path, b"deep")
                except (StoreError, ConfigError):  # read-only, or the server refuses it
                    return False
                assert await store.read(path) == b"deep"
                return await require_listing(store, self.path(self.name()))

        async def refuse(store: Store) -> None:
            with pytest.raises(LimitExceeded, match="depth"):
                await list_objects(store, self.path(self.name()))

        async def check(store: Store) -> None:
            assert [info.path for info in await list_objects(store, self.path(self.name()))] == [path]
            await store.delete(path)

        if run(write):
            self.use(refuse, limits=Limits(depth=self.deep_levels // 2))
            self.use(check, limits=Limits(depth=self.deep_levels + 200))


async def _exhaust(stream: AsyncGenerator[bytes, None]) -> None:
    async with contextlib.aclosing(stream):
        async for _ in stream:
            pass


def _make_endless(store: Store, declared: int | None, pieces: list[int]) -> None:
    """Let the innermost store answer like a server that never stops, and record the pieces that it sends."""
    while isinstance(store, StoreWrapper):
        store = store.inner
    info = ObjectInfo("endless.bin", declared)

    async def head(path: str) -> ObjectInfo:
        return ObjectInfo(path, declared)

    @contextlib.asynccontextmanager
    async def get(_path: str, span: ByteRange | None, _version: str | None) -> AsyncIterator[Body]:
        start, end = (span.start, span.end) if span else (0, declared)
        yield Body(info, start, end, send(end))

    async def send(end: int | None) -> AsyncGenerator[bytes, None]:
        piece = bytes(_PIECE_BYTES if end is None else min(_PIECE_BYTES, end))
        for number in range(_MAX_PIECES):
            pieces.append(number)
            yield piece
            if end is not None and end <= _PIECE_BYTES:
                return
        raise AssertionError(f"{store!r} reads without end")

    async def endless_list(prefix: str, **_options: bool) -> AsyncGenerator[ObjectInfo, None]:
        for number in range(_MAX_ENTRIES):
            yield ObjectInfo(f"{prefix}/{number:0200d}" if prefix else f"{number:0200d}", 1)
        raise AssertionError(f"{store!r} lists without end")

    vars(store).update(_head=head, _get=get, _list=endless_list, _list_unfinished=endless_list)
