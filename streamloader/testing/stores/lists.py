"""Tests of a store's listings."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import contextlib

import pytest

from streamloader.config import Limits
from streamloader.errors import AccessDenied, LimitExceeded, NotFound, NotSupported
from streamloader.stores.base import Store
from streamloader.stores.search import ListingProblem, TreeSearch
from streamloader.testing.stores.binding import StoreBinding, list_objects, make_bytes, require_listing

__all__ = ["ListSuite"]


class ListSuite(StoreBinding):
    """Listings contain every object exactly once, and nothing else."""

    files = ("a.txt", "b/1.bin", "b/2.bin", "b/c/3.bin", "bc/4.bin", "b.txt")

    def test_lists_at_any_depth(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir()):
                assert [info.path for info in await list_objects(store, self._dir())] == self._paths(*self.files)

        self.use(check)

    def test_lists_one_directory(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir()):
                found = [info.path for info in await list_objects(store, self._dir(), recursive=False)]
                folders = [f"{path}/" for path in self._paths("b", "bc")]
                assert found == sorted([*self._paths("a.txt", "b.txt"), *folders])
                directories = [
                    info.path for info in await list_objects(store, self._dir(), recursive=False) if info.is_directory
                ]
                assert directories == sorted(folders)

        self.use(check)

    def test_a_prefix_is_a_directory(self) -> None:
        # "b" is neither "bc" nor "b.txt".
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir("b")):
                wanted = self._paths("b/1.bin", "b/2.bin", "b/c/3.bin")
                for prefix in (self._dir("b"), self._dir("b") + "/"):
                    assert [info.path for info in await list_objects(store, prefix)] == wanted, prefix
                assert [info.path for info in await list_objects(store, self._dir("b/c"))] == self._paths("b/c/3.bin")

        self.use(check)

    def test_a_search_passes_over_hidden_names(self) -> None:
        self.populate({self.name(name): name.encode() for name in ("a", ".b", "c/.d", ".e/f", "c/g")})

        async def check(store: Store) -> None:
            if not await require_listing(store, self._dir()):
                return
            problems: list[ListingProblem] = []
            for show_hidden, names in ((False, ["a", "c/g"]), (True, ["a", ".b", "c/.d", ".e/f", "c/g"])):
                search = TreeSearch(problems.append, show_hidden)
                found = [info.path async for info in store.list(self._dir(), search=search)]
                assert sorted(found) == self._paths(*names)
            search = TreeSearch(problems.append)
            found = [info.path async for info in store.list(self._dir(), recursive=False, search=search)]
            assert sorted(found) == sorted([*self._paths("a"), *(f"{path}/" for path in self._paths("c"))])
            assert problems == []

        self.use(check)

    def test_a_missing_directory_is_empty(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir("none")):
                for prefix in ("none", "none/deeper", "b/1", "a"):
                    assert await list_objects(store, self._dir(prefix)) == [], prefix
                    assert await list_objects(store, self._dir(prefix), recursive=False) == [], prefix

        self.use(check)

    def test_lists_everything(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if not await require_listing(store, ""):
                return
            if not self.root_lists:
                with pytest.raises((NotSupported, NotFound, AccessDenied)):
                    await list_objects(store, "")
                return
            assert set(self._paths(*self.files)) <= {info.path for info in await list_objects(store)}
            top = {info.path for info in await list_objects(store, recursive=False)}
            assert f"{self._dir()}/" in top
            assert not top & set(self._paths(*self.files))

        self.use(check)

    def test_listings_agree_with_head(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir()):
                for info in await list_objects(store, self._dir()):
                    alone = await store.head(info.path)
                    assert info.size in (None, alone.size), info
                    assert info.version in (None, alone.version), info
                    assert info.modified is None or alone.modified is None or abs(info.modified - alone.modified) < 2

        self.use(check)

    def test_listed_paths_can_be_read(self) -> None:
        # Unusual names are listed as paths that can be read.
        names = [name for name in self.names if name not in self.refused_names]
        files = {self.name(name): name.encode() for name in names}
        self.populate(files)

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir()):
                found = [info.path for info in await list_objects(store, self._dir())]
                assert found == sorted(self.path(name) for name in files)
                for name, data in files.items():
                    assert await store.read(self.path(name)) == data

        self.use(check)

    def test_many_keys(self) -> None:
        self._many(self.listing_sizes[0])

    @pytest.mark.slow
    def test_very_many_keys(self) -> None:
        self._many(self.listing_sizes[1])

    def test_too_many_keys_are_an_error(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir()):
                with pytest.raises(LimitExceeded):
                    await list_objects(store, self._dir())

        self.use(check, limits=Limits(listed=3))

    def test_a_listing_that_is_left_early_disturbs_nothing(self) -> None:
        self._fill()

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir()):
                for _ in range(6):
                    async with contextlib.aclosing(store.list(self._dir())) as found:
                        async for info in found:
                            assert info.path in self._paths(*self.files)
                            break
                assert len(await list_objects(store, self._dir())) == len(self.files)

        self.use(check, limits=Limits(connections=2, requests=2))

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        self.populate({self.name(name): make_bytes(len(name) * 10, 1) for name in self.files})

    def _dir(self, name: str = "") -> str:
        return self.path(self.name(name))

    def _paths(self, *names: str) -> list[str]:
        return sorted(self.path(self.name(name)) for name in names)

    def _many(self, count: int) -> None:
        names = [f"many/{number % 7}/{number:05d}" for number in range(count)]
        if self.use(lambda store: require_listing(store, self._dir())):
            self.populate({self.name(name): name.encode() for name in names})

        async def check(store: Store) -> None:
            if await require_listing(store, self._dir("many")):
                found = await list_objects(store, self._dir("many"))
                assert [info.path for info in found] == self._paths(*names)
                assert {info.size for info in found} <= {None, len(names[0])}
                assert len(await list_objects(store, self._dir("many"), recursive=False)) == min(7, count)

        self.use(check)
