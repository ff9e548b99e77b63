"""Listings of object stores that have no end are an error, whatever the server sends in its pages."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web

from streamloader.config import Limits
from streamloader.errors import LimitExceeded
from streamloader.stores.objects.store import ObjectStore
from streamloader.testing.faults.shutdown import stop_web_runner

KINDS = {
    "keys": lambda number: f"data/{number:012d}",
    "long keys": lambda number: f"data/{number:0900d}",
    "deep keys": lambda number: f"data/{'d/' * 400}{number:012d}",
}


async def list_endless(make_key, limits):
    numbers = itertools.count()

    async def answer(request):
        keys = [make_key(next(numbers)) for _ in range(1000)]
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2022-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
            for key in keys
        )
        head = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{keys[-1]}</NextContinuationToken>"
        text = f'<?xml version="1.0"?><ListBucketResult>{head}{entries}</ListBucketResult>'
        return web.Response(text=text, content_type="application/xml")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with ObjectStore("s3://bucket", endpoint_url=url, anonymous=True, limits=limits) as store:
            async for _ in store.list("data"):
                pass
    finally:
        await stop_web_runner(runner)


@pytest.mark.parametrize(
    ("kind", "limits", "name"),
    [
        ("keys", Limits(listed=5_500), "listed"),
        ("keys", Limits(listing_bytes=100_000), "listing_bytes"),
        ("long keys", Limits(listing_bytes=1_000_000), "listing_bytes"),
        ("deep keys", Limits(), "depth"),
    ],
)
def test_a_listing_ends(kind, limits, name):
    with pytest.raises(LimitExceeded, match=f"Limits\\({name}="):
        asyncio.run(list_endless(KINDS[kind], limits))
