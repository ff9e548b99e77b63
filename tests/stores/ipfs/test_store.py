"""The IPFS store with js-ipfs: block by block through its RPC API, and plain files through its gateway."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random

import pytest
from canaries import canary
from tiers import fast_first, only_fast

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ConfigError,
    IntegrityError,
    LimitExceeded,
    NotFound,
    NotSupported,
    ProtocolError,
    RangeNotSatisfiable,
    ServerBusy,
    StoreTimeout,
)
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.registry import open_store
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.values import ByteRange

CHUNK = 262_144
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5_000_000)


def made(size, seed=0):
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def use(function, url="ipfs://", **options):
    async def with_store():
        async with open_store(url, **{"retry": None, **options}) as store:
            return await function(store)

    return asyncio.run(with_store())


def read(path, span=None, url="ipfs://", **options):
    return use(lambda store: store.read(path, span), url, **options)


async def listed(store, prefix, **options):
    return [info async for info in store.list(prefix, **options)]


FORMS = [(1, True), (1, False), (0, True), (0, False)]  # version of the CID, and whether leaves are raw


@pytest.mark.parametrize(
    ("size", "version", "raw_leaves"),
    only_fast(
        [(size, *form) for size in SIZES for form in FORMS],
        fast=[*((size, *FORMS[0]) for size in SIZES), *((CHUNK + 1, *form) for form in FORMS[1:])],
    ),
)
def test_files_of_js_ipfs(jsipfs_node, size, version, raw_leaves):
    data = made(size)
    cid = jsipfs_node.add_one(data, cid_version=version, raw_leaves=raw_leaves)
    assert DagBuilder(version=version, raw_leaves=raw_leaves).file(data).cid == Cid.parse(cid)

    async def look(store):
        info = await store.head(cid)
        return info.size, info.version, await store.read(cid)

    assert use(look, rpc=jsipfs_node.rpc) == (size, str(Cid.parse(cid)), data)


def test_the_builder_makes_the_same_trees_of_blocks(jsipfs_node):
    data = made(400_000)  # 391 blocks make three levels
    cid = jsipfs_node.add_one(data, cid_version=1, raw_leaves=True, chunker="size-1024")
    assert DagBuilder(chunk_size=1024).file(data).cid == Cid.parse(cid)
    cid = jsipfs_node.add_one(data, cid_version=1, raw_leaves=True, hash="sha2-512")
    assert DagBuilder(hash="sha2-512").file(data).cid == Cid.parse(cid)


SMALL = 300  # as many as to make shards within shards
FILES = {f"d/{number}.bin": b"%d" % number for number in range(SMALL)} | {
    "d/deep/er/größe 日本.bin": made(300_000),
    "d/deep/a+b #?%20.bin": b"",
    "top.bin": b"top",
}


@pytest.fixture(scope="module", params=fast_first([1, 0]))
def directories(request, jsipfs_node):
    """Return the CID version, and the roots of a directory tree in its plain and its sharded form."""
    options = {"cid_version": request.param, "raw_leaves": True, "wrap_with_directory": True}
    plain = jsipfs_node.add(FILES, shard_split_threshold=10_000, **options)[""]
    sharded = jsipfs_node.add(FILES, shard_split_threshold=100, **options)[""]
    assert plain != sharded
    return request.param, plain, sharded


def test_the_builder_makes_the_same_directories(directories):
    version, plain, sharded = directories
    assert DagBuilder(version=version).tree(FILES)[""].cid == Cid.parse(plain)
    assert DagBuilder(version=version).tree(FILES, shard_above=100)[""].cid == Cid.parse(sharded)


def test_directories_of_js_ipfs(jsipfs_node, directories):
    async def look(store, root):
        found = [info async for info in store.list(root)]
        flat = [info.path async for info in store.list(f"{root}/d/deep", recursive=False)]
        some = {name: await store.read(f"{root}/{name}") for name in (*list(FILES)[:20], *list(FILES)[SMALL:])}
        assert await listed(store, f"{root}/nothing") == await listed(store, f"{root}/top.bin") == []
        return found, flat, some

    for root in directories[1:]:
        found, flat, some = use(lambda store, root=root: look(store, root), rpc=jsipfs_node.rpc)
        assert {info.path: info.size for info in found} == {f"{root}/{n}": len(data) for n, data in FILES.items()}
        assert len(found) == len(FILES)
        assert set(flat) == {f"{root}/d/deep/er/", f"{root}/d/deep/a+b #?%20.bin"}
        assert all(data == FILES[name] for name, data in some.items())


def test_directories_and_missing_paths_are_not_found(jsipfs_node, directories):
    for root in directories[1:]:
        for path in (f"{root}/d", f"{root}/nothing", f"{root}/d/0.bin/x", f"{root}/d/{SMALL}.bin", root):
            with pytest.raises(NotFound) as caught:
                read(path, rpc=jsipfs_node.rpc)
            assert caught.value.address == f"ipfs://{path}"


SPANS = [(0, 1), (CHUNK - 1, CHUNK + 1), (CHUNK, 3 * CHUNK), (700_001, 1_999_999), (-10, None)]


@pytest.mark.parametrize(
    ("span", "raw_leaves"),
    only_fast(itertools.product(SPANS, (True, False)), fast=[*((span, True) for span in SPANS), (SPANS[1], False)]),
)
def test_ranges_across_blocks(jsipfs_node, span, raw_leaves):
    data = made(2_000_000)
    cid = jsipfs_node.add_one(data, cid_version=1, raw_leaves=raw_leaves)
    assert read(cid, ByteRange(*span), rpc=jsipfs_node.rpc) == data[slice(*span)]
    with pytest.raises(RangeNotSatisfiable):
        read(cid, ByteRange(1, 2_000_001), rpc=jsipfs_node.rpc)


def test_many_levels_of_nodes(jsipfs_node):
    data = made(200_000)  # 196 blocks: a node has 174 links at most
    cid = jsipfs_node.add_one(data, cid_version=1, raw_leaves=False, chunker="size-1024")
    assert read(cid, rpc=jsipfs_node.rpc) == data
    assert read(cid, ByteRange(199_000), rpc=jsipfs_node.rpc) == data[199_000:]
    trickle = jsipfs_node.add_one(data, cid_version=1, raw_leaves=False, chunker="size-1024", trickle=True)
    assert trickle != cid
    assert read(trickle, rpc=jsipfs_node.rpc) == data


def test_a_multiaddr_and_the_environment(jsipfs_node, monkeypatch, tmp_path):
    cid = jsipfs_node.add_one(b"hello")
    multiaddr = f"/ip4/127.0.0.1/tcp/{jsipfs_node.rpc_port}"
    assert read(cid, rpc=multiaddr) == b"hello"
    monkeypatch.setenv("IPFS_API", multiaddr)
    assert read(cid) == b"hello"
    monkeypatch.delenv("IPFS_API")
    (tmp_path / "api").write_text(multiaddr)
    monkeypatch.setenv("IPFS_PATH", str(tmp_path))
    assert read(cid) == b"hello"
    monkeypatch.setenv("IPFS_PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"rpc='/ip4/127\.0\.0\.1/tcp/5001'"):
        read(cid)


def test_a_file_is_added(jsipfs_node):
    data = made(300_000)
    cid = use(lambda store: store.add(data), rpc=jsipfs_node.rpc, retry=None)
    assert cid == str(DagBuilder().file(data).cid)
    assert read(cid, rpc=jsipfs_node.rpc) == data
    with pytest.raises(NotSupported):
        use(lambda store: store.add(data), gateways=jsipfs_node.gateway)


def test_a_block_that_the_node_does_not_find_times_out(jsipfs_node):
    cid = str(DagBuilder().file(b"nobody has this").cid)
    with pytest.raises(StoreTimeout) as caught:
        read(cid, rpc=jsipfs_node.rpc, timeouts=Timeouts(connect=1.0, response=1.0))
    assert caught.value.address == f"ipfs://{cid}"


def test_names_are_resolved_by_the_node(jsipfs_node):
    root = jsipfs_node.add({"a/b.bin": b"named"}, wrap_with_directory=True, cid_version=1)[""]
    jsipfs_node.call("name/publish", arg=root, allow_offline="true", resolve="false")
    name = jsipfs_node.id
    assert read(f"{name}/a/b.bin", url="ipns://", rpc=jsipfs_node.rpc) == b"named"
    assert [i.path for i in use(lambda store: listed(store, name), "ipns://", rpc=jsipfs_node.rpc)] == [
        f"{name}/a/b.bin"
    ]


def test_plain_files_from_the_gateway_of_js_ipfs_fail_verification(jsipfs_node):
    data = made(600_000)
    cid = jsipfs_node.add_one(data, cid_version=1, raw_leaves=True)
    with pytest.raises(IntegrityError, match="verify='none'") as caught:
        read(cid, gateways=jsipfs_node.gateway)
    assert (caught.value.address, caught.value.offset) == (f"ipfs://{cid}", 0)
    with pytest.raises(IntegrityError, match="verify='none'"):
        read(cid, gateways=jsipfs_node.gateway, format="car")


def test_plain_files_from_the_gateway_of_js_ipfs_without_verification(jsipfs_node, caplog):
    root = jsipfs_node.add({"a b/größe.bin": (data := made(600_000))}, wrap_with_directory=True, cid_version=1)[""]
    path = f"{root}/a b/größe.bin"

    async def look(store):
        info = await store.head(path)
        assert await store.read(path, ByteRange(262_000, 263_000), version=info.version) == data[262_000:263_000]
        assert (info.path, info.size) == (path, len(data))
        assert await store.read(path) == data
        with pytest.raises(ServerBusy):  # js-ipfs answers 500
            await store.read(f"{root}/nothing")
        with pytest.raises(NotSupported):
            await listed(store, root)

    with caplog.at_level(logging.WARNING):
        use(look, gateways=[jsipfs_node.gateway], verify="none")


def test_unsupported_cids_are_refused_before_any_request(jsipfs_node):
    cid = Cid(1, 0x55, 0xB240, bytes(64))  # blake2b-512
    with pytest.raises(NotSupported, match="0xb240"):
        read(str(cid), rpc=jsipfs_node.rpc)
    for text in ("", "Qm", "bafy", "no cid", "Qm/../x", "x" * 10_000):
        with pytest.raises((ProtocolError, ConfigError)):
            read(f"{text}/x" if text else "", rpc=jsipfs_node.rpc)


def test_inline_blocks_need_no_server():
    dag = DagBuilder(inline=100)
    small, empty = dag.file(b"tiny"), dag.file(b"")
    root = dag.directory({"a": small, "b": empty}).cid
    assert dag.blocks == {}
    options = {"gateways": "http://127.0.0.1:9"}  # no server listens there
    assert read(f"{root}/a", **options) == b"tiny"
    assert [(i.path, i.size) for i in use(lambda s: listed(s, str(root)), **options)] == [
        (f"{root}/a", 4),
        (f"{root}/b", 0),
    ]


def test_limits_are_enforced(jsipfs_node):
    cid = jsipfs_node.add_one(made(600_000), cid_version=1, raw_leaves=True)
    with pytest.raises(LimitExceeded, match="100000"):
        read(cid, rpc=jsipfs_node.rpc, limits=Limits(block_bytes=100_000))
    with pytest.raises(LimitExceeded, match="links"):
        read(cid, rpc=jsipfs_node.rpc, max_links=2)


@pytest.mark.parametrize(
    "options",
    [
        {"rpc": "ftp://host"},
        {"rpc": "/ip4/127.0.0.1/udp/4001/quic"},
        {"rpc": "/ip4/127.0.0.1"},
        {"gateways": "nonsense"},
        {"gateways": "http://host", "race": 0},
        {"gateways": "http://host", "verify": "all"},
        {"gateways": "http://host", "format": "tar"},
        {"rpc": "http://host", "format": "car"},
        {"rpc": "http://host", "verify": "none"},
        {"gateways": []},
    ],
)
def test_invalid_options(options):
    with pytest.raises(ConfigError):
        open_store("ipfs://", **options)


def test_secrets_stay_secret(jsipfs_node):
    token = canary("ipfs-rpc-token")
    cid = jsipfs_node.add_one(b"x")
    store = open_store("ipfs://", rpc=jsipfs_node.rpc, token=token, gateways=f"http://user:{token}@127.0.0.1:9")
    assert token not in repr(store)
    assert read(cid, rpc=jsipfs_node.rpc, token=token) == b"x"
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9") as caught:
        read(cid, gateways=f"http://user:{token}@127.0.0.1:9")
    assert token not in str(caught.value)
