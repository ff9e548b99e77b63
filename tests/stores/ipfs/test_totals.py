"""A few blocks can describe any number of directories and bytes: listings and reads have a total."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web

from streamloader.config import Limits
from streamloader.errors import LimitExceeded, ProtocolError
from streamloader.stores.ipfs.cid import DAG_PB, RAW
from streamloader.stores.ipfs.store import IpfsStore
from streamloader.stores.ipfs.unixfs import UnixFsKind
from streamloader.testing.faults.ipfs_dags import DagBuilder, DagEntry, encode_car, encode_node, encode_unixfs
from streamloader.testing.faults.ipfs_gateway import FaultyGateway
from streamloader.values import ByteRange


def play(dag, use, **options):
    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url, **options) as store:
            return await use(store)

    return asyncio.run(main())


def test_shared_subtrees_multiply_up_to_a_limit():
    dag = DagBuilder()
    built = dag.directory({"file": dag.file(b"1")})
    for _ in range(40):  # 41 blocks, 2**40 directories
        built = dag.directory({"a": built, "b": built})

    async def list_all(store):
        return [info async for info in store.list(str(built.cid))]

    with pytest.raises(LimitExceeded, match="shared_directories"):
        play(dag, list_all, limits=Limits(shared_directories=1_000))


def test_equal_files_and_folders_are_listed():
    dag = DagBuilder()
    same = dag.directory({"file": dag.file(b"1")})
    root = dag.directory({f"{number}": same for number in range(300)})

    async def list_all(store):
        return len([info async for info in store.list(str(root.cid))])

    assert play(dag, list_all, limits=Limits(shared_directories=299)) == 300
    with pytest.raises(LimitExceeded, match="shared_directories"):
        play(dag, list_all, limits=Limits(shared_directories=298))


@pytest.mark.parametrize("fanout", [8, 256])
def test_shards_without_entries_end_with_the_hash(fanout):
    # Shards that link to shards only: no entry is ever reached, so no name proves a path wrong.
    dag = DagBuilder()
    width = len(f"{fanout - 1:X}")
    message = encode_unixfs(UnixFsKind.SHARD, b"\x03", fanout=fanout)  # slots 0 and 1
    shard = dag.block(
        DAG_PB, encode_node(message, [(dag.file(b"1").cid, f"{number:0{width}X}x", 1) for number in (0, 1)])
    )
    for _ in range(60):
        shard = dag.block(DAG_PB, encode_node(message, [(shard, f"{number:0{width}X}", 1) for number in (0, 1)]))

    async def list_all(store):
        return [info async for info in store.list(str(shard))]

    with pytest.raises((ProtocolError, LimitExceeded), match=r"nested deeper|shared_directories"):
        play(dag, list_all, limits=Limits(shared_directories=1_000))


def test_a_thousand_levels_are_refused_or_listed():
    dag = DagBuilder()
    built = dag.directory({"file": dag.file(b"1")})
    for _ in range(1_100):
        built = dag.directory({"d": built})

    async def list_all(store):
        return [info.path async for info in store.list(str(built.cid))]

    with pytest.raises(LimitExceeded, match="depth"):
        play(dag, list_all)
    assert play(dag, list_all, limits=Limits(depth=2_000)) == [f"{built.cid}/{'d/' * 1_100}file"]


def exponential_file(levels):
    """Return a file of 2**levels megabytes in levels + 1 blocks."""
    dag = DagBuilder()
    entry = dag.file(bytes(1 << 18))
    entry = dag.parent([entry] * 4)
    for _ in range(levels):
        entry = dag.parent([entry, entry])
    return dag, entry


def test_a_file_whose_parts_multiply_is_not_read_into_memory():
    dag, entry = exponential_file(30)
    assert entry.size == 1 << 50

    async def read(store):
        with pytest.raises(LimitExceeded, match="object_bytes"):
            await store.read(str(entry.cid))
        with pytest.raises(LimitExceeded, match="stream_bytes"):
            await anext(store.stream(str(entry.cid)))
        return await store.read(str(entry.cid), ByteRange(1 << 49, (1 << 49) + 5))

    assert play(dag, read) == bytes(5)


def test_a_size_of_more_than_63_bits_is_refused():
    dag = DagBuilder()
    part = dag.file(b"1")
    message = encode_unixfs(UnixFsKind.FILE, sizes=[1 << 62] * 3, size=3 << 62)
    root = dag.block(DAG_PB, encode_node(message, [(part.cid, "", 1)] * 3))
    with pytest.raises(ProtocolError, match="more than a file can have"):
        play(dag, lambda store: store.head(str(root)))


def test_unrequested_blocks_of_a_car_have_a_total():
    # Before each requested block, sixty others: no run of them is too long, but all of them are.
    dag = DagBuilder(chunk_size=1_000, width=400)
    entry = dag.file(b"".join(number.to_bytes(2, "big") * 500 for number in range(300)))
    other = DagBuilder()
    junk = [(other.block(RAW, b"junk %d" % number), b"junk %d" % number) for number in range(60)]
    wanted = [(cid, dag.blocks[cid]) for cid in (entry.cid, *dag.leaves(entry))]
    car = encode_car(entry.cid, [block for each in wanted for block in (*junk, each)])
    sent = []

    async def answer(request):
        if request.query.get("format") == "raw":
            return web.Response(body=dag.blocks[entry.cid])
        sent.append(request.path)
        return web.Response(body=car)

    async def main():
        app = web.Application()
        app.router.add_get("/ipfs/{cid}", answer)
        async with contextlib.AsyncExitStack() as stack:
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with IpfsStore(gateways=url, format="car") as store:
                await store.read(str(entry.cid))

    with pytest.raises(ProtocolError, match="not requested"):
        asyncio.run(main())
    assert sent


def test_blocks_in_another_order_are_no_surplus():
    dag = DagBuilder(chunk_size=1_000, width=40)
    data = bytes(range(250)) * 300
    entry = dag.file(data)
    assert isinstance(entry, DagEntry)

    async def read(store):
        return await store.read(str(entry.cid))

    assert play(dag, read, format="car") == data
