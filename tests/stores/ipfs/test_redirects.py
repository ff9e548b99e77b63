"""Redirects of gateways and nodes: what is followed, and what other servers receive."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web
from canaries import canary

from streamloader.errors import ProtocolError, StoreError, UntrustedHost
from streamloader.stores.http.address_scope import AddressScope
from streamloader.stores.ipfs.store import IpfsStore
from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway
from streamloader.testing.faults.redirects import INNER_TEXT, InnerServer, RedirectServer, override_address_scopes
from streamloader.testing.faults.shutdown import stop_web_runner

SECRET = canary("ipfs-rpc-token")
NAMES = {"gateway.test": ["127.0.0.2"], "cid.gateway.test": ["127.0.0.1"], "far.gateway.test": ["127.0.0.2"]}


@pytest.fixture
def dag():
    builder = DagBuilder()
    return builder, builder.file(b"the data")


@contextlib.asynccontextmanager
async def moved_to(url, host="127.0.0.1"):
    """Serve redirects to the same path of another server, as gateways do that have a subdomain for each CID."""
    received = []

    async def answer(request):
        received.append(dict(request.headers))
        return web.Response(status=301, headers={"Location": f"{url}{request.path_qs}"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    try:
        yield runner.addresses[0][1], received
    finally:
        await stop_web_runner(runner)


async def read_all(path, **options):
    async with IpfsStore(**options) as store:
        return await store.read(path)


@pytest.mark.parametrize("inside", [False, True])
def test_a_subdomain_of_the_gateway_is_followed_unless_it_is_inside(dag, inside):
    builder, file = dag

    async def read():
        async with FaultyGateway(builder.blocks) as real:
            name = "cid.gateway.test" if inside else "far.gateway.test"
            async with moved_to(f"http://{name}:{real.url.rpartition(':')[2]}", "127.0.0.2") as (port, received):
                gateway = f"http://me:{SECRET}@gateway.test:{port}"
                try:
                    return await read_all(str(file.cid), gateways=gateway)
                finally:
                    assert "Authorization" in received[0]
                    assert len(real.requests) == (0 if inside else 1)

    # The real gateway listens at 127.0.0.1, which stands for a public address in one case.
    names = {**NAMES, "far.gateway.test": ["127.0.0.1"]}
    scopes = {"127.0.0.2": AddressScope.PUBLIC}
    if not inside:
        scopes["127.0.0.1"] = AddressScope.PUBLIC
    with override_host_names(names), override_address_scopes(scopes):
        if inside:
            with pytest.raises(UntrustedHost, match=r"cid\.gateway\.test is 127\.0\.0\.1, a loopback address"):
                asyncio.run(read())
        else:
            assert asyncio.run(read()) == b"the data"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("work", ["add", "block", "name"])
def test_a_call_to_a_node_is_not_redirected_to_another_server(dag, work, status):
    async def call(url):
        async with IpfsStore("ipns://" if work == "name" else "ipfs://", rpc=url, token=SECRET) as store:
            calls = {
                "add": lambda: store.add(b"private data"),
                "block": lambda: store.read(str(dag[1].cid)),
                "name": lambda: store.read("name.test/a"),
            }
            with pytest.raises(StoreError) as caught:
                await calls[work]()
            return caught.value

    with InnerServer() as inner, RedirectServer(f"{inner.url}/api", status=status) as node:
        error = asyncio.run(call(node.url))
        assert node.requests
        assert inner.requests == []
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 500 no\r\n\r\npage-of-the-inside", b"220 page-of-the-inside ready\r\n", b""]
)
def test_responses_of_another_port_are_not_quoted(dag, answer):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def read():
        inner = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = inner.sockets[0].getsockname()[1]
        try:
            async with moved_to(f"http://127.0.0.1:{port}") as (outer, _):
                with pytest.raises(StoreError) as caught:
                    await read_all(str(dag[1].cid), gateways=f"http://127.0.0.1:{outer}")
                return f"{caught.value} {caught.value!r} {vars(caught.value)} {caught.value.__cause__}"
        finally:
            inner.close()
            await inner.wait_closed()

    assert INNER_TEXT not in asyncio.run(read())
