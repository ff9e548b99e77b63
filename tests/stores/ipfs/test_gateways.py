"""The IPFS store with gateways: requests, order of the gateways, and invalid responses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys

import pytest
from aiohttp import web
from clocks import JumpingLoop, run_in
from planted import KINDS, give_away, plant
from tiers import fast_first

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ClosedError,
    IntegrityError,
    LimitExceeded,
    NotFound,
    NotSupported,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
)
from streamloader.stores.ipfs import store
from streamloader.stores.ipfs.cid import DAG_PB, RAW, Cid
from streamloader.stores.ipfs.sources import get_default_rpc
from streamloader.stores.ipfs.store import IpfsStore
from streamloader.stores.ipfs.unixfs import UnixFsKind
from streamloader.testing.faults.ipfs_dags import DagBuilder, DagEntry, encode_car, encode_node, encode_unixfs
from streamloader.testing.faults.ipfs_gateway import FaultyGateway
from streamloader.testing.faults.shutdown import stop_web_runner
from streamloader.values import ByteRange

DATA = random.Random(3).randbytes(200_000)


def big(**options):
    """Return the blocks and the root of a file of 200 blocks in three levels."""
    dag = DagBuilder(chunk_size=1000, width=10, **options)
    return dag, dag.file(DATA)


def play(main):
    return asyncio.run(main())


@contextlib.asynccontextmanager
async def answering(*answers):
    """Serve one of these responses for each request, repeating the last one."""
    left = list(answers)

    async def answer(request):
        return left.pop(0)() if len(left) > 1 else left[0]()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await stop_web_runner(runner)
        await asyncio.sleep(0)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("raw_leaves", [False, True])
@pytest.mark.parametrize("form", ["raw", "car"])
def test_a_range_fetches_the_blocks_that_it_needs_and_no_others(form, raw_leaves, version):
    dag, file = big(raw_leaves=raw_leaves, version=version)
    leaves = dag.leaves(file)

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url, format=form) as store:
            assert await store.read(str(file.cid), ByteRange(99_500, 101_500)) == DATA[99_500:101_500]
            sent = gateway.sent
            assert [cid for cid in sent if cid in leaves] == leaves[99:102]
            # the root, and two nodes on the way to these leaves in each of two levels; CARs contain the root again
            assert len(sent) == 3 + 1 + 2 + 2 + (form == "car")
            if form == "car":
                assert "entity-bytes=99500:101499" in gateway.requests[-1]
                assert len(gateway.requests) == 2

    play(main)


def test_nodes_of_the_tree_are_fetched_once():
    dag, file = big()

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            for at in range(0, 200_000, 10_000):
                assert await store.read(str(file.cid), ByteRange(at, at + 1)) == DATA[at : at + 1]
            assert len(gateway.sent) == 1 + 2 + 20 + 20

        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url, node_cache_bytes=0) as store:
            for _ in range(3):
                await store.read(str(file.cid), ByteRange(0, 1))
            assert len(gateway.sent) == 3 * 4

    play(main)


@pytest.mark.parametrize("form", ["raw", "car"])
def test_a_tight_limit_of_connections_and_blocks_ahead(form):
    dag, file = big()

    async def main():
        limits = Limits(connections=1, requests=3)
        async with (
            FaultyGateway(dag.blocks) as gateway,
            IpfsStore(gateways=gateway.url, prefetch_blocks=1, limits=limits, format=form) as store,
        ):
            async with asyncio.TaskGroup() as tasks:
                reads = [tasks.create_task(store.read(str(file.cid))) for _ in range(5)]
            assert all(read.result() == DATA for read in reads)

    play(main)


@pytest.mark.parametrize("hash_name", ["sha2-256", "sha2-512", "sha3-256", "sha3-512", "blake2b-256", "blake3"])
@pytest.mark.parametrize("form", ["raw", "car"])
def test_every_hash_is_checked(hash_name, form):
    dag, file = big(hash=hash_name)
    victim = dag.leaves(file)[150]

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url, format=form) as store:
            assert await store.read(str(file.cid)) == DATA
        async with (
            FaultyGateway(dag.blocks, "flipped byte", victim=victim) as gateway,
            IpfsStore(gateways=gateway.url, format=form) as store,
        ):
            with pytest.raises(IntegrityError) as caught:
                await store.read(str(file.cid))
            assert (caught.value.offset, caught.value.address) == (150_000, f"ipfs://{file.cid}")

    play(main)


@pytest.mark.parametrize("form", ["raw", "car"])
def test_the_next_gateway_is_tried_and_the_wrong_one_moves_to_the_end(form):
    dag, file = big()

    async def main():
        async with (
            FaultyGateway(dag.blocks, "flipped byte", victim=dag.leaves(file)[3]) as liar,
            FaultyGateway(dag.blocks) as honest,
            IpfsStore(gateways=[liar.url, honest.url], format=form, prefetch_blocks=1) as store,
        ):
            assert await store.read(str(file.cid)) == DATA
            before = len(liar.requests)
            assert await store.read(str(file.cid)) == DATA
            assert len(liar.requests) == before

    play(main)


def test_a_gateway_without_the_block_keeps_its_rank():
    dag, file = big()

    async def main():
        async with (
            FaultyGateway({}) as empty,
            FaultyGateway(dag.blocks) as full,
            IpfsStore(gateways=[empty.url, full.url]) as store,
        ):
            assert await store.read(str(file.cid), ByteRange(0, 10)) == DATA[:10]
            assert len(empty.requests) == len(full.requests) == 4
            missing = str(DagBuilder().file(b"missing").cid)
            with pytest.raises(NotFound) as caught:
                await store.read(missing)
            assert empty.url in str(caught.value)
            assert full.url in str(caught.value)

    play(main)


def test_a_transient_error_takes_precedence():
    dag, file = big()

    async def main():
        async with (
            FaultyGateway(dag.blocks, "flipped byte") as liar,
            FaultyGateway(dag.blocks, "503") as busy,
            FaultyGateway({}) as empty,
        ):
            async with IpfsStore(gateways=[liar.url, busy.url, empty.url]) as store:
                with pytest.raises(ServerBusy, match="not that block"):
                    await store.read(str(file.cid))
            async with IpfsStore(gateways=[empty.url, liar.url]) as store:
                with pytest.raises(IntegrityError):
                    await store.read(str(file.cid))
            async with IpfsStore(gateways=[liar.url, empty.url, busy.url], race=3) as store:
                with pytest.raises(ServerBusy):
                    await store.read(str(file.cid))

    play(main)


def test_racing_uses_the_first_valid_response_and_cancels_the_others():
    dag, file = big()

    async def main():
        async with (
            FaultyGateway(dag.blocks, "stall at the header") as stalled,
            FaultyGateway(dag.blocks, "flipped byte") as liar,
            FaultyGateway(dag.blocks) as honest,
            # The test would time out if anything waited for this deadline.
            IpfsStore(gateways=[stalled.url, liar.url, honest.url], race=3, timeouts=Timeouts(response=1000)) as store,
        ):
            assert await store.read(str(file.cid)) == DATA
            assert stalled.requests
            assert [task for task in asyncio.all_tasks() if "IpfsBlockFetcher" in repr(task)] == []

    play(main)


def test_racing_two_tries_the_third_when_one_fails():
    dag, file = big()

    async def main():
        async with (
            FaultyGateway(dag.blocks, "503") as busy,
            FaultyGateway(dag.blocks, "flipped byte") as liar,
            FaultyGateway(dag.blocks) as honest,
            IpfsStore(gateways=[busy.url, liar.url, honest.url], race=2) as store,
        ):
            assert await store.read(str(file.cid), ByteRange(5, 10)) == DATA[5:10]

    play(main)


def test_gateways_of_the_environment(monkeypatch, tmp_path):
    dag, file = big()
    monkeypatch.setenv("IPFS_PATH", str(tmp_path))
    monkeypatch.delenv("IPFS_API", raising=False)

    async def main():
        async with FaultyGateway({}) as empty, FaultyGateway(dag.blocks) as full:
            monkeypatch.setenv("IPFS_GATEWAY", f"{empty.url}, {full.url}")
            async with IpfsStore() as store:
                assert await store.read(str(file.cid)) == DATA

    play(main)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [*KINDS, "owner", "owner of the folder", "permissions", "large"])
def test_the_address_of_a_node_that_another_user_may_have_written(monkeypatch, tmp_path, caplog, kind):
    monkeypatch.delenv("IPFS_API", raising=False)
    monkeypatch.setenv("IPFS_PATH", str(tmp_path / "link"))
    (tmp_path / "ipfs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "ipfs")
    (tmp_path / "ipfs" / "api").write_text("/ip4/127.0.0.1/tcp/5001")
    assert get_default_rpc() == "/ip4/127.0.0.1/tcp/5001"
    if kind.startswith("owner"):
        if os.geteuid() != 0:
            pytest.skip("files of another user take root")
        give_away(tmp_path / "ipfs" if kind.endswith("folder") else tmp_path / "ipfs" / "api")
    elif kind == "permissions":
        (tmp_path / "ipfs" / "api").chmod(0o666)
    elif kind == "large":
        (tmp_path / "ipfs" / "api").write_text("/" * (1 << 20))
        assert len(get_default_rpc()) == 4096
        return
    else:
        plant(tmp_path / "ipfs" / "api", kind)
    assert get_default_rpc() is None
    assert "IPFS_API" in caplog.text


def test_a_node_and_gateways_together():
    dag, file = big()

    async def main():
        async with (
            FaultyGateway(dag.blocks) as gateway,
            IpfsStore(rpc="/ip4/127.0.0.1/tcp/9", gateways=gateway.url) as store,
        ):
            assert await store.read(str(file.cid)) == DATA
        async with IpfsStore(rpc="/ip4/127.0.0.1/tcp/9") as store:
            with pytest.raises(Unreachable) as caught:
                await store.read(str(file.cid))
            assert caught.value.transient

    play(main)


def test_a_gateway_may_leave_out_what_it_has_sent_before():
    dag = DagBuilder(chunk_size=1000, width=10)
    file = dag.file(bytes(50_000) + DATA[:5000] + bytes(5_000))
    leaves = dag.leaves(file)
    nodes = [cid for cid in reversed(dag.blocks) if cid not in leaves]
    assert len(set(leaves)) == 6
    once = encode_car(file.cid, [(cid, dag.blocks[cid]) for cid in dict.fromkeys([*nodes, *leaves])])
    root = dag.blocks[file.cid]

    async def main():
        answers = (lambda: web.Response(body=root), lambda: web.Response(body=once))
        async with answering(*answers) as url, IpfsStore(gateways=url, format="car") as store:
            assert await store.read(str(file.cid)) == bytes(50_000) + DATA[:5000] + bytes(5_000)

    play(main)


def test_a_few_extra_blocks_are_ignored_and_many_are_an_error():
    dag = DagBuilder(chunk_size=1000)
    file = dag.file(DATA[:3000])
    junk = DagBuilder()
    for number in range(100):
        junk.block(RAW, b"%d" % number)
    blocks = list(dag.blocks.items())
    blocks = [blocks[-1], *blocks[:-1]]

    async def read(extras):
        body = encode_car(file.cid, [*blocks[:2], *list(junk.blocks.items())[:extras], *blocks[2:]])
        answers = (lambda: web.Response(body=dag.blocks[file.cid]), lambda: web.Response(body=body))
        async with answering(*answers) as url, IpfsStore(gateways=url, format="car") as store:
            return await store.read(str(file.cid))

    assert play(lambda: read(30)) == DATA[:3000]
    with pytest.raises(ProtocolError, match="not requested") as caught:
        play(lambda: read(100))
    assert caught.value.offset == 1000


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 429, 500, 503])
def test_statuses(status):
    async def main():
        async with answering(lambda: web.Response(status=status, text="so it is")) as url, IpfsStore(gateways=url) as s:
            with pytest.raises(StoreError, match="so it is") as caught:
                await s.head(str(DagBuilder().file(b"x").cid))
            return type(caught.value)

    kinds = {401: AccessDenied, 403: AccessDenied, 404: NotFound, 429: ServerBusy, 500: ServerBusy, 503: ServerBusy}
    assert play(main) is kinds.get(status, ProtocolError)


def test_encoded_responses_and_forbidden_redirects_are_refused():
    cid = str(DagBuilder().file(b"x").cid)

    async def look(*answers):
        async with answering(*answers) as url, IpfsStore(gateways=url) as store:
            return await store.read(cid)

    def moved(where):
        return lambda: web.Response(status=302, headers={"Location": where})

    assert play(lambda: look(moved("/elsewhere"), lambda: web.Response(body=b"x"))) == b"x"
    for answer, words in (
        (lambda: web.Response(body=b"x", headers={"Content-Encoding": "gzip"}), "encoding"),
        (moved("http://10.0.0.1/secret"), "redirects to http://10.0.0.1"),
        (moved("file:///etc/passwd"), "redirects to file"),
        (moved(""), "redirects to"),
        (moved("/round"), "more than 5 times"),
    ):
        with pytest.raises(ProtocolError, match=words):
            play(lambda answer=answer: look(answer))


def test_a_closed_store_raises():
    async def main():
        store = IpfsStore(gateways="http://127.0.0.1:9")
        await store.aclose()
        with pytest.raises(ClosedError):
            await store.read(str(DagBuilder().file(b"x").cid))

    play(main)


def test_a_stalled_gateway_ends_at_the_deadline():
    dag, file = big()

    async def main():
        victim = dag.leaves(file)[100]
        async with (
            FaultyGateway(dag.blocks, "stall at the header", victim=victim) as gateway,
            IpfsStore(gateways=gateway.url, timeouts=Timeouts(connect=30, response=30, window=30)) as store,
        ):
            got = bytearray()

            async def read():
                async for chunk in store.stream(str(file.cid)):
                    got.extend(chunk)

            def is_stalled():
                return len(got) == 100_000 and any(str(victim) in request for request in gateway.requests)

            reading = asyncio.create_task(read())
            while not is_stalled():  # noqa: ASYNC110 - the gateway runs in this loop
                await asyncio.sleep(0)
            asyncio.get_running_loop().jump(100)
            with pytest.raises(StoreTimeout) as caught:
                await reading
            assert caught.value.offset == 100_000

    run_in(JumpingLoop, main)


def odd(data, links, **options):
    """Make a malformed node, and return all blocks and its CID."""
    dag = DagBuilder()
    built = [dag.file(piece) for piece in links]
    kind = options.pop("kind", UnixFsKind.FILE)
    message = encode_unixfs(kind, data, **options)
    cid = dag.block(DAG_PB, encode_node(message, [(one.cid, str(n), one.total) for n, one in enumerate(built)]))
    return dag.blocks, cid


@pytest.mark.parametrize("form", ["raw", "car"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": [3, 3], "size": 7}, "its parts have 6"),
        ({"sizes": [3], "size": 3}, "2 links and 1 sizes"),
        ({"sizes": [3, 4], "size": 7}, "should be 4 bytes"),
        ({"sizes": [2, 3], "size": 5}, "should be 2 bytes"),
        ({"kind": UnixFsKind.SYMLINK}, "symbolic link"),
        ({"kind": UnixFsKind.METADATA}, "metadata"),
        ({"kind": 9}, "type 9"),
    ],
)
def test_files_whose_parts_do_not_fit_are_refused(options, words, form):
    blocks, cid = odd(b"", [b"abc", b"def"], **options)

    async def main():
        async with FaultyGateway(blocks) as gateway, IpfsStore(gateways=gateway.url, format=form) as store:
            with pytest.raises(ProtocolError, match=words) as caught:
                await store.read(str(cid))
            assert caught.value.address == f"ipfs://{cid}"
            assert caught.value.offset is not None

    play(main)


def test_a_piece_of_a_file_that_is_a_directory_is_refused():
    dag = DagBuilder()
    inner = dag.directory({})
    root = dag.parent([DagEntry(inner.cid, inner.total, 5)])

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            with pytest.raises(ProtocolError, match="is a directory"):
                await store.read(str(root.cid))

    play(main)


def test_symbolic_links_are_listed_and_not_followed():
    dag = DagBuilder()
    root = dag.directory({"file": dag.file(b"x"), "link": dag.link(b"file")}).cid

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            found = [info async for info in store.list(str(root))]
            assert [(info.path, info.size) for info in found] == [(f"{root}/file", 1), (f"{root}/link", None)]
            for path in (f"{root}/link", f"{root}/link/x"):
                with pytest.raises(NotSupported, match="symbolic link"):
                    await store.read(path)

    play(main)


def test_time_and_bytes_in_the_node_itself():
    dag = DagBuilder()
    tail = dag.file(b"tail")
    message = encode_unixfs(UnixFsKind.FILE, b"head", size=8, sizes=[4], modified=1_700_000_000.5)
    cid = dag.block(DAG_PB, encode_node(message, [(tail.cid, "", 4)]))

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            info = await store.head(str(cid))
            assert (info.size, info.modified, info.version) == (8, 1_700_000_000.5, str(cid))
            whole = b"headtail"
            for start in range(8):
                for end in range(start + 1, 9):
                    assert await store.read(str(cid), ByteRange(start, end)) == whole[start:end]

    play(main)


@pytest.mark.parametrize("form", ["raw", "car"])
def test_random_trees_give_random_ranges(form):
    rng = random.Random(11)

    async def main():
        for _ in range(6):
            size = rng.choice([1, 50, 999, 5000])
            dag = DagBuilder(
                chunk_size=rng.randint(1, 400) + size // 100,
                width=rng.randint(2, 5),
                raw_leaves=rng.random() < 0.5,
                version=rng.randint(0, 1),
                inline=rng.choice([-1, 0, 40]),
            )
            data = rng.randbytes(size)
            cid = str(dag.file(data).cid)
            async with (
                FaultyGateway(dag.blocks) as gateway,
                IpfsStore(gateways=gateway.url, format=form, prefetch_blocks=rng.randint(1, 8)) as store,
            ):
                for _ in range(6):
                    start = rng.randint(0, size)
                    end = rng.randint(start, size)
                    assert await store.read(cid, ByteRange(start, end)) == data[start:end]

    play(main)


@pytest.mark.parametrize("fanout", [8, 16, 256, 1024])
def test_sharded_directories_of_any_fanout(fanout):
    dag = DagBuilder()
    files = {f"name {number}": dag.file(b"%d" % number) for number in range(700)}
    root = dag.sharded(files, fanout).cid

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            found = {info.path: info.size async for info in store.list(str(root))}
            assert found == {f"{root}/{name}": built.size for name, built in files.items()}
            for number in (0, 1, 350, 699):
                assert await store.read(f"{root}/name {number}") == b"%d" % number
            with pytest.raises(NotFound):
                await store.read(f"{root}/name 700")

    play(main)


@pytest.mark.parametrize("count", fast_first([2_000, 10_000]))
def test_many_entries(count):
    dag = DagBuilder()
    files = {f"{number:05d}.bin": dag.file(b"%d" % number) for number in range(count)}
    roots = [dag.directory(files).cid, dag.sharded(files).cid]

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            for root in roots:
                found = {info.path: info.version async for info in store.list(str(root))}
                assert found == {f"{root}/{name}": str(built.cid) for name, built in files.items()}
        with pytest.raises(LimitExceeded):
            async with (
                FaultyGateway(dag.blocks) as gateway,
                IpfsStore(gateways=gateway.url, max_links=count - 1) as store,
            ):
                await anext(store.list(str(roots[0])))

    play(main)


def test_entries_in_the_wrong_shard_are_refused():
    dag = DagBuilder()
    one = dag.file(b"1")
    message = encode_unixfs(UnixFsKind.SHARD, b"\x02", fanout=256)  # slot 1
    root = dag.block(DAG_PB, encode_node(message, [(one.cid, "01wrong", 1)]))
    empty = dag.block(DAG_PB, encode_node(encode_unixfs(UnixFsKind.SHARD, b"", fanout=256), []))
    above = dag.block(DAG_PB, encode_node(message, [(empty, "01", 1)]))

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            with pytest.raises(ProtocolError, match="wrong shard"):
                assert [info async for info in store.list(str(root))] == []
            with pytest.raises(ProtocolError, match="not a shard of the same directory"):
                assert [info async for info in store.list(str(above))] == []

    play(main)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_entries_with_invalid_names_are_refused(name):
    dag = DagBuilder()
    one = dag.file(b"1")
    root = dag.block(DAG_PB, encode_node(encode_unixfs(UnixFsKind.DIRECTORY), [(one.cid, name, 1)]))

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, IpfsStore(gateways=gateway.url) as store:
            with pytest.raises(ProtocolError, match="invalid name"):
                assert [info async for info in store.list(str(root))] == []

    play(main)


def test_directories_that_are_too_deep_are_refused():
    dag = DagBuilder()
    built = dag.directory({"file": dag.file(b"1")})
    for _ in range(20):
        built = dag.directory({"d": built})

    async def main():
        async with FaultyGateway(dag.blocks) as gateway:
            async with IpfsStore(gateways=gateway.url, limits=Limits(depth=21)) as store:
                assert len([info async for info in store.list(str(built.cid))]) == 1
            async with IpfsStore(gateways=gateway.url, limits=Limits(depth=20)) as store:
                with pytest.raises(LimitExceeded, match="depth"):
                    assert [info async for info in store.list(str(built.cid))] == []

    play(main)


def test_plain_gateways_are_tried_one_after_the_other(caplog, monkeypatch):
    monkeypatch.setattr(store, "_warned", set())
    dag, file = big()
    root = dag.directory({"größe #1": file}).cid

    async def main():
        async with (
            FaultyGateway({}, plain="only") as empty,
            FaultyGateway(dag.blocks, plain="only") as full,
            IpfsStore(gateways=[empty.url, f"{full.url}/"], verify="none") as store,
        ):
            path = f"{root}/größe #1"
            assert await store.read(path, ByteRange(1000, 2000)) == DATA[1000:2000]
            info = await store.head(path)
            assert (info.size, info.path) == (len(DATA), path)
            assert await store.read(path, version=info.version) == DATA
            with pytest.raises(NotFound):
                await store.read(f"{root}/nothing")
            with pytest.raises(NotSupported):
                assert [found async for found in store.list(str(root))] == []

    play(main)
    play(main)
    assert [record.getMessage() for record in caplog.records if "not verified" in record.getMessage()] == [
        "ipfs:// with verify='none': the data from its gateways is not verified"
    ]


def test_a_car_that_ends_too_early_goes_on_at_another_gateway():
    dag, file = big()
    victim = dag.leaves(file)[120]

    async def main():
        async with (
            FaultyGateway(dag.blocks, "truncated with 200", victim=victim) as cut,
            FaultyGateway(dag.blocks) as honest,
        ):
            async with IpfsStore(gateways=[cut.url, honest.url], format="car") as store:
                assert await store.read(str(file.cid)) == DATA
            assert "entity-bytes=120000:199999" in honest.requests[-1]
            async with IpfsStore(gateways=cut.url, format="car") as store:
                with pytest.raises(TransferInterrupted) as caught:
                    await store.read(str(file.cid))
                assert caught.value.offset == 120_000

    play(main)


def test_a_block_that_is_a_cid_of_another_kind_is_refused():
    async def main():
        cid = Cid(1, 0x71, 0x12, bytes(32))
        dag = DagBuilder()
        block = b"\xa0"
        cid = Cid(1, 0x71, *_hashed(dag, block))
        async with FaultyGateway({cid: block}) as gateway, IpfsStore(gateways=gateway.url) as store:
            with pytest.raises(NotSupported, match="dag-cbor"):
                await store.read(str(cid))

    play(main)


@pytest.mark.parametrize(("package", "code"), [("libipld", "open_store('ipfs://')"), ("blake3", "check()")])
def test_a_missing_package_is_named(package, code):
    program = f"""
import sys
sys.modules[{package!r}] = None
from streamloader.stores.registry import open_store
from streamloader.errors import MissingDependency
from streamloader.testing.faults.shutdown import stop_web_runner
def check():
    from streamloader.stores.ipfs.cid import Cid
    Cid(1, 0x55, 0x1e, bytes(32)).matches(b"")
try:
    {code}
except MissingDependency as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install streamloader[ipfs]" in done.stdout


def _hashed(dag, block):
    cid = dag.block(RAW, block)
    return cid.hash_code, cid.digest
