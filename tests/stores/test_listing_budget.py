"""The work and the memory of a listing have a total, however its entries multiply."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import subprocess

import pytest
from store_leaves import Plain

import streamloader as sl
from streamloader.config import Limits, Retry
from streamloader.errors import LimitExceeded, TransferInterrupted
from streamloader.stores import local_search
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.base import Body
from streamloader.stores.io_thread import close_shared_stores, open_shared_store
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.local import LocalStore
from streamloader.stores.search import UnreadableReport
from streamloader.stores.wrappers.prefix import PrefixStore
from streamloader.stores.wrappers.retry import RetryStore
from streamloader.values import ObjectInfo

LEVELS = 1_100


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """A folder with a file below 1,100 levels of folders."""
    root = folder = str(tmp_path_factory.mktemp("deep"))
    for _ in range(LEVELS):
        folder = f"{folder}/d"
        os.mkdir(folder)
    with open(f"{folder}/a.txt", "w") as file:
        file.write("deep")
    yield root
    subprocess.run(["rm", "-rf", root], check=True)  # shutil.rmtree calls itself for each level


@pytest.fixture
def multiplied(tmp_path):
    """Thirty levels of folders, each with two links to the next: 2**30 paths, and not one circle."""
    for level in range(30):
        (tmp_path / f"level-{level}").mkdir()
        (tmp_path / f"level-{level}/a").symlink_to(f"../level-{level + 1}")
        (tmp_path / f"level-{level}/b").symlink_to(f"../level-{level + 1}")
    (tmp_path / "level-30").mkdir()
    (tmp_path / "level-30/x.txt").write_text("x")
    return tmp_path / "level-0"


def paths(store, prefix=""):
    async def collect():
        return sorted([info.path async for info in store.list(prefix)])

    return asyncio.run(collect())


# --- local files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "/**/*.txt", "/d/**", "/d/*/**/a.txt"])
def test_deep_folders_are_an_error_or_found(deep_folder, address):
    with pytest.raises(LimitExceeded, match="depth"):
        expand_addresses(deep_folder + address)
    found = expand_addresses(deep_folder + address, None, {"limits": Limits(depth=2_000)})
    assert [file.address for file in found] == [f"{deep_folder}/{'d/' * LEVELS}a.txt"]


def test_deep_folders_of_a_store_are_an_error_or_listed(deep_folder):
    with pytest.raises(LimitExceeded, match="depth"):
        paths(PrefixStore(LocalStore("file://"), deep_folder))
    store = PrefixStore(LocalStore("file://", limits=Limits(depth=2_000)), deep_folder)
    assert paths(store) == [f"{'d/' * LEVELS}a.txt"]

    async def write():
        path = f"{'d/' * 5}{'e/' * 1_090}b.txt"
        await store.write(path, b"b")
        assert await store.read(path) == b"b"
        await store.delete(path)

    asyncio.run(write())


@pytest.mark.parametrize("address", ["", "/**/*.txt", "/" + "*/" * 30 + "*.txt"])
def test_links_that_multiply_end(multiplied, address):
    options = {"limits": Limits(shared_directories=500)}
    with pytest.raises(LimitExceeded, match="shared_directories"):
        expand_addresses(f"{multiplied}{address}", None, options)


def test_links_that_multiply_end_in_a_store(multiplied):
    store = PrefixStore(LocalStore("file://", limits=Limits(shared_directories=500)), str(multiplied))
    with pytest.raises(LimitExceeded, match="shared_directories"):
        paths(store)
    assert paths(PrefixStore(store.inner, str(multiplied.parent / "level-26"))) == sorted(
        f"{a}/{b}/{c}/{d}/x.txt" for a in "ab" for b in "ab" for c in "ab" for d in "ab"
    )


@pytest.mark.parametrize("address", ["", "/*", "/**"])
def test_the_entries_of_a_local_search_are_limited(tmp_path, address):
    for number in range(40):
        (tmp_path / f"{number}.txt").touch()
    assert len(expand_addresses(f"{tmp_path}{address}")) == 40
    for limits in (Limits(listed=39), Limits(listing_bytes=1_000)):
        with pytest.raises(LimitExceeded, match=r"Limits\(list"):
            expand_addresses(f"{tmp_path}{address}", None, {"limits": limits})


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "*.txt", "**", "**/*", "**/*.txt", "**/a.txt", "*/**/a.txt", "sub/**", "sub/**/*", "s*/*.txt", "*/b/*",
        "*/", "**/", "./*.txt", "sub/../*.txt", "sub//*.txt", "[ab].txt", ".h*/*", "**/.h*", "**/.hidden/*", "none/**",
        "a.txt/**", "**/**/a.txt", "*/*/../*.txt", "*/b",
    ],
)  # fmt: skip
def test_patterns_match_what_glob_matches(pattern, tmp_path, monkeypatch):
    for name in ("a.txt", "b.md", "sub/a.txt", "sub/b/a.txt", "sub/b/c/d.txt", ".hidden/a.txt", "sub/.hid.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("sub/b")
    (tmp_path / "broken.txt").symlink_to("gone")
    (tmp_path / "itself").symlink_to("itself")
    monkeypatch.chdir(tmp_path)
    for prefix in ("", f"{tmp_path}/"):
        found, _ = local_search.match_local_pattern(
            prefix + pattern, ListingBudget(Limits(), pattern), UnreadableReport()
        )
        matches = set(filter(os.path.lexists, glob.glob(prefix + pattern, recursive=True)))
        assert found == sorted(match for match in matches if not os.path.isdir(match))


# --- stores -----------------------------------------------------------------------------------------------------------


def test_a_pattern_cannot_multiply_the_limits(tmp_path):
    # Each of the eleven listings is within the limit.
    store, _ = open_shared_store("memory://budget/x")
    with store:
        for number in range(100):
            store.write(f"{number % 10}/{number}.txt", b"")
        options = {"limits": Limits(listed=50)}
        for pattern in ("*/*.txt", "*/*"):
            with pytest.raises(LimitExceeded, match="listed"):
                expand_addresses(f"memory://budget/{pattern}", None, options)
        assert len(expand_addresses("memory://budget/3/*.txt", None, options)) == 10
    close_shared_stores()


def test_a_transfer_without_a_size_stays_limited_when_it_is_resumed():
    class Breaking(Plain):
        """Sends a megabyte, and breaks off."""

        async def _head(self, path):
            return ObjectInfo(path, None, "v1")

        @contextlib.asynccontextmanager
        async def _get(self, path, span, version):
            start = span.start if span else 0
            yield Body(ObjectInfo(path, None, "v1"), start, None, self.send(start))

        async def send(self, start):
            yield bytes(1 << 20)
            raise TransferInterrupted("broken", offset=start + (1 << 20))

    async def read():
        limits = Limits(unsized_bytes=5 << 20)
        retry = Retry(attempts=3, first_wait=0.0, jitter=0.0)
        async with RetryStore(Breaking("plain://breaking", limits=limits), retry) as store:
            return [len(piece) async for piece in store.stream("a")]

    with pytest.raises(LimitExceeded, match="unsized_bytes"):
        asyncio.run(read())


@pytest.mark.parametrize("name", ["listed", "listing_bytes", "unsized_bytes", "stream_bytes", "header_bytes"])
def test_limits_are_numbers(name):
    with pytest.raises(sl.ConfigError, match=name):
        Limits(**{name: "many"})
