"""Opening the store of an address."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from store_leaves import Plain

import streamloader as sl
from streamloader.stores import registry
from streamloader.stores.registry import open_store, register_store, scheme_of, schemes, split_address


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(registry, "_STORE_CLASSES", dict(registry._STORE_CLASSES))


@pytest.mark.parametrize(
    ("address", "scheme"),
    [("/a", ""), ("a", ""), ("C:\\a", ""), ("c://a", ""), ("file:///a", "file"), ("S3://b/k", "s3"), ("a b://c", ""),
     ("git+ssh://x", "git+ssh"), ("://a", ""), ("/a/http://b", "")],
)  # fmt: skip
def test_schemes_of_addresses(address, scheme):
    assert scheme_of(address) == scheme


@pytest.mark.parametrize(
    ("address", "split"),
    [
        ("memory://space/a/b", ("memory://space", "a/b")),
        ("memory://space", ("memory://space", "")),
        ("memory://space/", ("memory://space", "")),
        ("memory://space/100%25?x#y", ("memory://space", "100%25?x#y")),
        ("/a/b", ("file://", "a/b")),
        ("file:///a%20b", ("file://", "a b")),
    ],
)
def test_addresses_are_split(address, split):
    assert split_address(address) == split


def test_a_path_in_the_address_is_the_root(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x")

    async def read(address):
        async with open_store(address) as store:
            return [info.path async for info in store.list()], await store.read("a"), store.url

    for address in (tmp_path / "sub", f"{tmp_path}/sub/", f"file://{tmp_path}/sub"):
        assert asyncio.run(read(address)) == (["a"], b"x", f"{tmp_path}/sub")


def test_nothing_outside_of_a_root_can_be_reached(tmp_path):
    async def refuse(path):
        async with open_store(tmp_path) as store:
            await store.read(path)

    for path in ("../a", "/etc/passwd", "a/../../b", ".."):
        with pytest.raises(sl.ConfigError):
            asyncio.run(refuse(path))


def test_own_stores_are_registered():
    register_store("Mine", Plain)
    assert schemes()["mine"] == "store_leaves:Plain"
    store = open_store("mine://host/dir", password="sesame", retry=None)
    assert type(store.inner) is Plain
    assert store.inner.password == "sesame"
    register_store("yours", "store_leaves:Plain")
    assert type(open_store("yours://x", retry=None)) is Plain


@pytest.mark.parametrize("scheme", ["", "a", "1a", "a b", "a/b", "a:"])
def test_what_is_no_scheme_is_refused(scheme):
    with pytest.raises(sl.ConfigError, match="not a valid scheme"):
        register_store(scheme, Plain)


def test_options_that_nobody_knows_are_named():
    with pytest.raises(sl.ConfigError, match="pasword"):
        open_store("memory://x", pasword="sesame")


def test_options_that_nobody_knows_are_not_shown():
    with pytest.raises(sl.ConfigError) as caught:
        open_store("memory://x", pasword="sesame")
    assert "sesame" not in str(caught.value)


def test_a_store_that_cannot_be_imported_is_an_error_of_ours():
    register_store("broken", "no_such_module:Store")
    with pytest.raises(sl.ConfigError, match="cannot be imported"):
        open_store("broken://x")


def test_what_schemes_returns_is_a_copy():
    schemes().clear()
    assert schemes()["memory"] == "streamloader.stores.memory:MemoryStore"


def test_stores_are_imported_when_they_are_needed():
    program = (
        "import sys, streamloader, streamloader.stores\n"
        "streamloader.open_store\n"
        "heavy = {'torch', 'av', 'aiohttp', 'asyncssh', 'motor', 'uvloop', 'obstore', 'fsspec', 'libipld', 'blake3'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "streamloader.open_store('memory://x')\n"
        "streamloader.open_store('/tmp')\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == "[]\n[]\n"
