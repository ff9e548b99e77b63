"""As much of an honest S3 server as the cases need, in this process: objects that are read, and a listing."""

from __future__ import annotations

import asyncio
import hashlib
import re
from html import escape
from typing import Self
from urllib.parse import unquote, urlsplit

from aiohttp import web

from streamloader.testing.faults.shutdown import stop_web_runner


class PlainS3:
    """Serves the objects of one bucket, key -> bytes, and checks nobody's signature.

    Attributes:
        region: Region that requests have to be signed for; others get a redirect without a target, as S3 sends it, or
            an error if `redirects` is not set. Defaults to None: any.
        access_keys: Access keys that are valid; others are expired. Defaults to None: any.
        redirects: See `region`.
    """

    region: str | None = None
    access_keys: set[str] | None = None
    redirects = True

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)  # and HEAD
        app.router.add_put("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.wait_for(stop_web_runner(self._runner), 10)

    async def _answer(self, request: web.Request) -> web.Response:  # noqa: PLR0911 - one for each case
        key = unquote(urlsplit(request.raw_path).path).removeprefix("/").partition("/")[2]
        _, _, credential = request.headers.get("Authorization", "").partition("Credential=")
        access_key, _, region = credential.split("/")[:3] if credential else ("", "", "")
        if self.region not in (None, region):
            headers = {"x-amz-bucket-region": self.region}
            status, code = (301, "PermanentRedirect") if self.redirects else (400, "AuthorizationHeaderMalformed")
            return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", headers=headers)
        if self.access_keys is not None and access_key not in self.access_keys:
            return web.Response(status=400, text="<Error><Code>ExpiredToken</Code></Error>")
        if "list-type" in request.query:
            return self._listing(request.query.get("prefix", ""))
        data = self.objects.get(key)
        if request.method == "PUT":
            self.objects[key] = await request.read()
            return web.Response(headers={"ETag": '"1"'})
        if data is None:
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"ETag": tag, "Content-Length": str(len(data)), "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
        if request.headers.get("If-Match", tag) != tag:
            return web.Response(status=412, text="<Error><Code>PreconditionFailed</Code></Error>", headers=headers)
        requested_range = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        if requested_range is None:
            return web.Response(body=data, headers=headers)
        start = int(requested_range[1]) if requested_range[1] else len(data) - int(requested_range[2])
        end = min(len(data), int(requested_range[2]) + 1) if requested_range[1] and requested_range[2] else len(data)
        headers["Content-Length"] = str(end - start)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:end], headers=headers)

    def _listing(self, prefix: str) -> web.Response:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2022-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag><Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        text = f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>'
        return web.Response(text=text, content_type="application/xml")
