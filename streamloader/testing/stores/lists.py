"""The part of the store suite that lists."""

# ruff: noqa: D102 - the name of a test says what it shows

from __future__ import annotations

import contextlib

import pytest

from streamloader.config import Limits
from streamloader.errors import AccessDenied, LimitExceeded, NotFound, NotSupported
from streamloader.stores.base import Store
from streamloader.testing.stores.binding import StoreBinding, has_listings, listed, made_bytes

__all__ = ["ListSuite"]


class ListSuite(StoreBinding):
    """Listings have everything once, and nothing else."""

    files = ("a.txt", "b/1.bin", "b/2.bin", "b/c/3.bin", "bc/4.bin", "b.txt")

    def test_lists_at_any_depth(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir()):
                assert [info.path for info in await listed(store, self._dir())] == self._paths(*self.files)

        self.use(look)

    def test_lists_one_directory(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir()):
                found = [info.path for info in await listed(store, self._dir(), recursive=False)]
                folders = [f"{path}/" for path in self._paths("b", "bc")]
                assert found == sorted([*self._paths("a.txt", "b.txt"), *folders])
                directories = [
                    info.path for info in await listed(store, self._dir(), recursive=False) if info.is_directory
                ]
                assert directories == sorted(folders)

        self.use(look)

    def test_a_prefix_is_a_directory(self) -> None:
        # "b" is neither "bc" nor "b.txt".
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir("b")):
                wanted = self._paths("b/1.bin", "b/2.bin", "b/c/3.bin")
                for prefix in (self._dir("b"), self._dir("b") + "/"):
                    assert [info.path for info in await listed(store, prefix)] == wanted, prefix
                assert [info.path for info in await listed(store, self._dir("b/c"))] == self._paths("b/c/3.bin")

        self.use(look)

    def test_lists_nothing_where_nothing_is(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir("none")):
                for prefix in ("none", "none/deeper", "b/1", "a"):
                    assert await listed(store, self._dir(prefix)) == [], prefix
                    assert await listed(store, self._dir(prefix), recursive=False) == [], prefix

        self.use(look)

    def test_lists_everything(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if not await has_listings(store, ""):
                return
            if not self.root_lists:
                with pytest.raises((NotSupported, NotFound, AccessDenied)):
                    await listed(store, "")
                return
            assert set(self._paths(*self.files)) <= {info.path for info in await listed(store)}
            top = {info.path for info in await listed(store, recursive=False)}
            assert f"{self._dir()}/" in top
            assert not top & set(self._paths(*self.files))

        self.use(look)

    def test_listings_tell_the_same_as_head(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir()):
                for info in await listed(store, self._dir()):
                    alone = await store.head(info.path)
                    assert info.size in (None, alone.size), info
                    assert info.version in (None, alone.version), info
                    assert info.modified is None or alone.modified is None or abs(info.modified - alone.modified) < 2

        self.use(look)

    def test_what_was_listed_can_be_read(self) -> None:
        # Names with anything in them come out as paths that go in again.
        names = [name for name in self.names if name not in self.refused_names]
        files = {self.name(name): name.encode() for name in names}
        self.populate(files)

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir()):
                found = [info.path for info in await listed(store, self._dir())]
                assert found == sorted(self.path(name) for name in files)
                for name, data in files.items():
                    assert await store.read(self.path(name)) == data

        self.use(look)

    def test_many_keys(self) -> None:
        self._many(self.keys[0])

    @pytest.mark.slow
    def test_very_many_keys(self) -> None:
        self._many(self.keys[1])

    def test_too_many_keys_are_an_error(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir()):
                with pytest.raises(LimitExceeded):
                    await listed(store, self._dir())

        self.use(look, limits=Limits(listed=3))

    def test_a_listing_that_is_left_early_disturbs_nothing(self) -> None:
        self._fill()

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir()):
                for _ in range(6):
                    async with contextlib.aclosing(store.list(self._dir())) as found:
                        async for info in found:
                            assert info.path in self._paths(*self.files)
                            break
                assert len(await listed(store, self._dir())) == len(self.files)

        self.use(look, limits=Limits(connections=2, requests=2))

    # --- help --------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        self.populate({self.name(name): made_bytes(len(name) * 10, 1) for name in self.files})

    def _dir(self, name: str = "") -> str:
        return self.path(self.name(name))

    def _paths(self, *names: str) -> list[str]:
        return sorted(self.path(self.name(name)) for name in names)

    def _many(self, count: int) -> None:
        names = [f"many/{number % 7}/{number:05d}" for number in range(count)]
        if self.use(lambda store: has_listings(store, self._dir())):
            self.populate({self.name(name): name.encode() for name in names})

        async def look(store: Store) -> None:
            if await has_listings(store, self._dir("many")):
                found = await listed(store, self._dir("many"))
                assert [info.path for info in found] == self._paths(*names)
                assert {info.size for info in found} <= {None, len(names[0])}
                assert len(await listed(store, self._dir("many"), recursive=False)) == min(7, count)

        self.use(look)
