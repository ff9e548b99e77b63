"""Servers that stop leave no connection open, whatever their clients are doing."""

from __future__ import annotations

import asyncio
import gc
import socket
from urllib.parse import urlsplit

import pytest

from streamloader.testing.faults.http import HttpServer
from streamloader.testing.faults.ipfs_gateway import FaultyGateway
from streamloader.testing.faults.s3 import FaultyS3
from streamloader.testing.faults.ssh import FaultySsh

SERVERS = {
    "gateway": lambda: FaultyGateway({}),
    "http": lambda: HttpServer({}),
    "s3": lambda: FaultyS3("http://127.0.0.1:9"),
    "ssh": lambda: FaultySsh({}),
}


@pytest.mark.parametrize("rounds", range(8))
@pytest.mark.parametrize("name", SERVERS)
def test_connections_that_were_just_accepted_are_closed(name, rounds):
    clients = []

    async def serve():
        async with SERVERS[name]() as server:
            port = server.port if name == "ssh" else urlsplit(server.url).port
            clients.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(8))
            for _ in range(rounds):
                await asyncio.sleep(0)

    try:
        asyncio.run(serve())
        gc.collect()  # a connection that is still open warns now, which fails the test
    finally:
        for client in clients:
            client.close()
