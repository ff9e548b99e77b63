"""Object stores whose region or credentials are not the right ones, and marks of empty directories."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest
import servers.obstore_threads  # noqa: F401
from faults.s3_server import PlainS3

from streamloader.errors import AccessDenied, StoreError
from streamloader.stores.registry import open_store

KEYS = {"access_key_id": "AKRECOVERY", "secret_access_key": "checked-by-nobody"}
OBJECTS = {"a/0.txt": b"0", "a/1.txt": b"1"}


async def collect(store, **options):
    return [info.path async for info in store.list("a", **options)]


USES = {
    "head": lambda store: store.head("a/0.txt"),
    "read": lambda store: store.read("a/0.txt"),
    "list": collect,
    "list once": lambda store: collect(store, recursive=False),
    "write": lambda store: store.write("a/0.txt", b"0"),
}


def play(use, objects=OBJECTS, prepare=lambda server: None, **options):
    async def main():
        async with PlainS3(dict(objects)) as server:
            prepare(server)
            options.setdefault("endpoint_url", server.url)
            async with open_store("s3://bucket", **{"retry": None, **KEYS, **options}) as store, asyncio.timeout(60):
                return await use(store)

    return asyncio.run(main())


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("redirects", [True, False])
@pytest.mark.parametrize("region", [None, "us-west-2"])
def test_a_bucket_in_another_region_is_found(use, redirects, region, caplog):
    def prepare(server):
        server.region, server.redirects = "eu-west-3", redirects

    options = {} if region is None else {"region": region}
    assert play(USES[use], prepare=prepare, **options) == play(USES[use])
    assert "eu-west-3" in caplog.text
    assert "region=" in caplog.text


def test_a_region_that_the_server_does_not_state_is_an_error_that_says_so():
    def prepare(server):
        server.region = ""

    for use in ("head", "read", "list"):
        with pytest.raises(StoreError, match=r"region="):
            play(USES[use], prepare=prepare)


class Rotating:
    """A provider whose first keys are expired long before they say."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        return {"access_key_id": f"AK{self.calls}", "secret_access_key": "s3cret-of-nobody", "expires_at": expires_at}


@pytest.mark.parametrize("use", USES)
def test_credentials_that_expire_early_are_requested_once_more(use):
    provider = Rotating()
    options = {"access_key_id": None, "secret_access_key": None, "credential_provider": provider}

    async def rotate(store):
        await store.read("a/1.txt")
        assert provider.calls == 1
        servers[0].access_keys = {"AK2"}
        found = await USES[use](store)
        assert provider.calls == 2
        servers[0].access_keys = {f"AK{number}" for number in range(3, 99)}
        assert await asyncio.gather(*(USES[use](store) for _ in range(8))) == [found] * 8
        return found

    servers = []
    assert play(rotate, prepare=servers.append, **options) == play(USES[use])


@pytest.mark.parametrize("use", ["read", "list"])
def test_credentials_that_stay_expired_are_denied(use):
    provider = Rotating()
    options = {"access_key_id": None, "secret_access_key": None, "credential_provider": provider}

    def prepare(server):
        server.access_keys = set()

    with pytest.raises(AccessDenied, match="ExpiredToken"):
        play(USES[use], prepare=prepare, **options)
    assert provider.calls == 2
    with pytest.raises(AccessDenied, match="ExpiredToken"):
        play(USES[use], prepare=prepare)  # of keys that cannot change


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("marks", [["a/empty/"], ["a/"], ["a/empty/", "a/full/"], ["a/zero"]])
def test_marks_of_directories_are_not_listed(recursive, marks):
    objects = {**OBJECTS, **dict.fromkeys(marks, b"")}
    keys = sorted(key for key in objects if not key.endswith("/"))
    assert play(lambda store: collect(store, recursive=recursive), objects) == keys


def test_an_empty_object_beside_a_directory_of_its_name_is_listed():
    objects = {**OBJECTS, "a/b": b"", "a/b/": b"", "a/b/c.txt": b"1", "a/d/": b"", "a/d/e.txt": b"2"}
    keys = sorted(key for key in objects if not key.endswith("/"))
    assert [path for path in play(collect, objects) if path != "a/b"] == [key for key in keys if key != "a/b"]
    assert "a/b" in play(collect, objects)


BAD_KEYS = ["a//b.txt", "a/x\ty.txt", "a/../b.txt", "a/./b.txt", "a/line\nbreak", "a/x\x7f", "b//"]


@pytest.mark.parametrize("keys", [*([key] for key in BAD_KEYS), [*BAD_KEYS, "/a.txt"]])
@pytest.mark.parametrize("anonymous", [True, False])
def test_keys_without_an_address_are_left_out_of_listings(keys, anonymous, caplog):
    names = ["a/0.txt", "a/1.txt", "a/b & c/<d> ü+%20.txt", "z.txt"]
    objects = {**dict.fromkeys(names, b"1"), **dict.fromkeys(keys, b"2")}
    options = {"access_key_id": None, "secret_access_key": None, "anonymous": True} if anonymous else {}

    async def list_all(store):
        return [info async for info in store.list()]

    infos = play(list_all, objects, **options)
    assert [info.path for info in infos] == sorted(names)
    assert {info.size for info in infos} == {1}
    assert infos[0].version == play(lambda store: store.head("a/0.txt"), objects).version
    assert "left out" in caplog.text
    assert repr(keys[0]) in caplog.text or len(keys) > 1


def test_a_real_server_lists_a_bucket_with_such_keys(seaweed_server):
    bucket = seaweed_server.bucket()

    async def main(prefix, **listing):
        async with open_store(f"s3://{bucket}", **{"retry": None, **seaweed_server.options()}) as store:
            for name in ("a/0.txt", "a/b/1 +&ü.txt", "c.txt"):
                await store.write(name, b"1")
            found = []
            async with contextlib.aclosing(store._list_raw(prefix, **listing)) as pages:
                async for metas, directories in pages:
                    found += [*[meta["path"] for meta in metas], *[f"{path}/" for path in directories]]
            return found, [info.path async for info in store.list(prefix, **listing)]

    for prefix in ("", "a"):
        for recursive in (True, False):
            raw, usual = asyncio.run(main(prefix, recursive=recursive))
            assert sorted(raw) == sorted(usual)
            assert raw
