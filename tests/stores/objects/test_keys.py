"""Keys of S3 that are no paths: they are listed, found and read exactly as they are."""

from __future__ import annotations

import asyncio
import contextlib
import random

import numpy as np
import pytest
import servers.obstore_threads  # noqa: F401
from faults.s3_server import PlainS3
from object_servers import run_beside
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.config import Limits
from streamloader.errors import ConfigError, NotFound, NotSupported, StreamNotFound
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.registry import open_store
from streamloader.values import ByteRange

KEYS = [
    "/leading.txt", "//two.txt", "/a/b.txt", "a//b.txt", "a/b//", "a///c.txt", "./d.txt", "a/./d.txt", "../e.txt",
    "a/../e.txt", "..", ".", "tab\tin.txt", "line\nbreak.txt", "return\r.txt", "a/\x01\x1f\x7f.txt", "per%20cent.txt",
    "%2F", "plus+ and space.txt", "ünïcode/文字.txt", "back\\slash.txt", "trailing/", "xml <&>\"' ]]>.txt",
    "?query#fragment", "star*[a]?.txt", "{a,b}.txt", "~/x", "a", "a/", "a/b.txt", "\x80\x9f.txt", "!'()*;:@&=$,.txt",
    "z" * 1024, "/" + "y/" * 511 + "x", "\udcff not utf-8.txt",
]  # fmt: skip
OPTIONS = {"access_key_id": "AKKEYS", "secret_access_key": "checked-by-nobody", "retry": None}


def content(key):
    return b"content of " + key.encode("utf-8", "surrogateescape")


def play(use, keys=KEYS, prepare=lambda server: None, address="s3://bucket", **options):
    async def main():
        async with PlainS3({key: content(key) for key in keys}) as server:
            prepare(server)
            options.setdefault("endpoint_url", server.url)
            limits = Limits(depth=1000)
            async with open_store(address, **{"limits": limits, **OPTIONS, **options}) as store, asyncio.timeout(60):
                return await use(store)

    return asyncio.run(main())


@pytest.fixture
def serve():
    """Serve objects beside the program. Return the options for its bucket."""
    with contextlib.ExitStack() as stack:

        def start(objects):
            server = stack.enter_context(run_beside(PlainS3(objects)))
            return {**OPTIONS, "endpoint_url": server.url, "limits": Limits(depth=1000)}

        yield start


async def collect(store, prefix="", **options):
    return [info async for info in store.list(prefix, **options)]


@pytest.mark.parametrize("page_keys", only_fast([1, 3, 1000], [3]))
@pytest.mark.parametrize("style", fast_first(["keys", "anonymous", "provider"]))
def test_all_keys_are_listed_exactly(page_keys, style):
    def prepare(server):
        server.page_keys = page_keys

    options = {} if style == "keys" else {"access_key_id": None, "secret_access_key": None}
    options |= {"anonymous": True} if style == "anonymous" else {}
    if style == "provider":
        keys = {"access_key_id": "AK", "secret_access_key": "s3cret-of-nobody", "expires_at": None}
        options["credential_provider"] = lambda: keys
    infos = play(collect, prepare=prepare, **options)
    assert [info.path for info in infos] == sorted(KEYS)
    assert {info.path: info.size for info in infos} == {key: len(content(key)) for key in KEYS}


def test_all_keys_are_read_exactly():
    async def everything(store):
        for key in KEYS:
            data = content(key)
            info = await store.head(key)
            assert (info.path, info.size) == (key, len(data))
            assert await store.read(key) == data
            assert await store.read(key, ByteRange(2, 7), version=info.version) == data[2:7]

    play(everything)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_exactly(key):
    data = content(key)

    async def everything(store):
        info = await store.head(key)
        assert (info.path, info.size) == (key, len(data))
        assert await store.read(key) == data
        assert await store.read(key, ByteRange(2, 7), version=info.version, size=info.size) == data[2:7]
        assert await store.read(key, ByteRange(-3), version=info.version) == data[-3:]
        assert await store.read(key, ByteRange(len(data))) == b""
        assert [found.version async for found in store.list() if found.path == key] == [info.version]
        if key[-1] != "/":  # a key that others take for this one
            with pytest.raises(NotFound):
                await store.head(f"{key}/")

    play(everything, keys=[key, "other", "".join(reversed(key)) + "x"])


def level(keys, prefix):
    """Return what a directory has, by the definition of CommonPrefixes."""
    rest = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    names = {name.partition("/")[0] + "/" * ("/" in name) for name in rest}
    return sorted(prefix + name for name in names if name)


@pytest.mark.parametrize("page_keys", only_fast([1, 3, 1000], [3]))
def test_directories_are_listed_exactly(page_keys):
    def prepare(server):
        server.page_keys = page_keys

    async def everything(store):
        for prefix in ["", "/", "//", "a", "a/", "a//", ".", "..", "/a", "ünïcode"]:
            start = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
            found = await collect(store, prefix, recursive=False)
            assert sorted(info.path for info in found if info.path != start) == level(KEYS, start)
            found = await collect(store, prefix)
            assert [info.path for info in found] == sorted(key for key in KEYS if key.startswith(start))

    play(everything, prepare=prepare)


PATTERNS = [
    ("s3://bucket//*.txt", ["/leading.txt"]),
    ("s3://bucket///*.txt", ["//two.txt"]),
    ("s3://bucket/a//*.txt", ["a//b.txt"]),
    ("s3://bucket//*/*.txt", ["/a/b.txt"]),
    ("s3://bucket/*/b.txt", ["a/b.txt"]),
    ("s3://bucket/a/**/*.txt", ["a/\x01\x1f\x7f.txt", "a///c.txt", "a//b.txt", "a/b.txt"]),
    ("s3://bucket/**/b.txt", ["/a/b.txt", "a//b.txt", "a/b.txt"]),
    ("s3://bucket/a/../e.txt", ["a/../e.txt"]),
    ("s3://bucket//leading.txt", ["/leading.txt"]),
    ("s3://bucket/trailing/", ["trailing/"]),
    ("s3://bucket/star*[a]?.txt", ["star*[a]?.txt"]),
    ("s3://bucket/a//", ["a///c.txt", "a//b.txt"]),
    ("s3://bucket/per%20cent.txt", ["per%20cent.txt"]),
]


def test_patterns_and_addresses_find_them(serve):
    options = serve({key: content(key) for key in KEYS})
    for pattern, keys in PATTERNS:
        files = expand_addresses(pattern, None, options)
        assert [file.info.path for file in files] == keys, pattern
        assert [file.address for file in files] == [f"s3://bucket/{key}" for key in keys]


def test_they_are_sources_of_streams(serve):
    keys = ["/leading.txt", "a//b.txt", "a/../e.txt", "tab\tin.txt", "a b+%20.txt"]
    options = serve({key: content(key) for key in keys})
    dataset = sl.TextStreams([f"s3://bucket/{key}" for key in keys], storage_options=options)
    found = {}
    with sl.MultiStreamer(dataset, batch_size=2, window=16, seed=1) as loader:
        for batch in loader:
            for row, ordinals, valid in zip(batch["data"], batch.stream, batch.valid, strict=True):
                for byte, ordinal in zip(np.asarray(row)[np.asarray(valid)], ordinals[valid], strict=True):
                    name = loader.streams[int(ordinal)].key
                    found[name] = found.get(name, b"") + bytes([int(byte)])
    assert sorted(found.values()) == sorted(content(key) for key in keys)


def test_marks_of_directories_are_no_objects(serve):
    options = serve({"t/empty/": b"", "t/empty_$folder$": b"", "t/full/": b"x", "t/a.txt": b"1", "t/": b""})
    found = [file.info.path for file in expand_addresses("s3://bucket/t", None, options)]
    assert found == ["t/a.txt", "t/empty_$folder$", "t/full/"]
    with pytest.raises(StreamNotFound, match="empty"):
        expand_addresses("s3://bucket/t/empty/", None, options)


def test_keys_that_have_no_address_are_left_out_with_a_warning(caplog):
    found = play(collect, keys=["a", "zero\0byte", "b?versionId=1"])
    assert [info.path for info in found] == ["a"]
    assert "left out 2 keys" in caplog.text


@pytest.mark.parametrize("seed", fast_first(range(6)))
def test_random_keys_in_pages_of_any_size(seed):
    chance = random.Random(seed)
    letters = ["/", ".", "a", "b", "+", "%", " ", "é", "\n", "&", "\\", "\x02"]
    keys = sorted({"".join(chance.choices(letters, k=chance.randint(1, 6))) for _ in range(60)})

    def prepare(server):
        server.page_keys = chance.randint(1, 9)

    async def everything(store):
        infos = await collect(store)
        assert [info.path for info in infos] == keys
        for key in chance.sample(keys, 8):
            assert await store.read(key) == content(key)
            assert (await store.head(key)).size == len(content(key))

    play(everything, keys, prepare)


@pytest.mark.parametrize("root", only_fast(["", "/x", "x//y"], ["x//y"]))
def test_a_directory_is_a_store(root):
    names = ["a.txt", "/b.txt", "c/../d"]
    address = f"s3://bucket/{root}" if root else "s3://bucket"

    async def everything(store):
        assert sorted([info.path for info in await collect(store)]) == sorted(names)
        for name in names:
            assert await store.read(name) == content(f"{root}/{name}" if root else name)

    play(everything, [f"{root}/{name}" if root else name for name in names], address=address)


def test_settings_that_only_obstore_has_say_so():
    async def everything(store):
        assert await store.read("a") == content("a")
        assert [info.path for info in await collect(store)] == ["a", "b/c"]
        with pytest.raises(NotSupported, match="client_options"):
            await store.read("a//b")

    play(everything, ["a", "b/c"], client_options={"default_headers": {"x": "y"}})
    with pytest.raises(NotSupported, match=r"empty parts.*client_options"):
        play(collect, ["a", "a//b"], client_options={"default_headers": {"x": "y"}})


def test_a_real_server_lists_and_reads(seaweed_server):
    # It changes keys with empty names and such, but checks signatures.
    bucket = seaweed_server.bucket()
    names = ["a/0.txt", "a/b/1 +&ü'()*!~.txt", "c%2F.txt", "=$,;:@.txt"]

    async def main():
        async with open_store(f"s3://{bucket}", **{"retry": None, **seaweed_server.options()}) as store:
            for name in names:
                await store.write(name, content(name))
            assert sorted([info.path for info in await collect(store)]) == sorted(names)
            assert sorted([info.path for info in await collect(store, "a", recursive=False)]) == ["a/0.txt", "a/b/"]
            store._connection.was_busy = True  # so that obstore is not used
            for name in names:
                store._connection.was_busy = True
                info = await store.head(name)
                assert not store._connection.was_busy
                store._connection.was_busy = True
                assert await store.read(name, ByteRange(1, 5), version=info.version) == content(name)[1:5]
            with pytest.raises(ConfigError):
                await store.read("")

    asyncio.run(main())
