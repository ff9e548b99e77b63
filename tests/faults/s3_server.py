"""As much of an honest S3 server as the cases need, in this process, by the documents of AWS.

It has objects with any keys and versions, listings in pages, and uploads in parts. It checks nobody's signature.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections.abc import Callable
from html import escape
from typing import Self
from urllib.parse import parse_qsl, quote, unquote

from aiohttp import web

from streamloader.testing.faults.shutdown import stop_web_runner

MODIFIED = "2022-01-01T00:00:00.000Z"


class PlainS3:
    """Serves the objects of one bucket, key -> bytes.

    Attributes:
        region: Region that requests have to be signed for; others get a redirect without a target, as S3 sends it, or
            an error if `redirects` is not set. Defaults to None: any.
        access_keys: Access keys that are valid; others are expired. Defaults to None: any.
        refusal: Status and code of the response to access keys that are not valid.
        redirects: See `region`.
        page_keys: Number of keys in a page of a listing.
        prefix: Path before that of the bucket.
        versions: Bytes of older versions by key and id, None for marks of deletions.
        intercept: Function that may return another response for a request. Defaults to none.
        seen: Methods and paths with queries of all requests.
    """

    region: str | None = None
    access_keys: set[str] | None = None
    refusal = 400, "ExpiredToken"
    redirects = True
    page_keys = 1000
    prefix = ""
    host = "127.0.0.1"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.versions: dict[tuple[str, str], bytes | None] = {}
        self.intercept: Callable[[web.BaseRequest, str], web.Response | None] | None = None
        self.seen: list[str] = []
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)
        self._runner: web.ServerRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._answer))  # a router has no paths with line breaks
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}{self.prefix}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.wait_for(stop_web_runner(self._runner), 10)

    async def _answer(self, request: web.BaseRequest) -> web.Response:  # noqa: PLR0911 - one for each case
        path, _, query = re.sub(r"\Ahttps?://[^/]+", "", request.raw_path).partition("?")  # in the form for proxies
        if not path.startswith(f"{self.prefix}/"):
            return refuse(404, "NoSuchBucket")
        key = unquote(path.removeprefix(self.prefix)[1:].partition("/")[2], errors="surrogateescape")
        values = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
        self.seen.append(f"{request.method} {request.raw_path}")
        if self.intercept is not None and (response := self.intercept(request, key)) is not None:
            return response
        _, _, credential = request.headers.get("Authorization", "").partition("Credential=")
        access_key, _, region = credential.split("/")[:3] if credential else ("", "", "")
        if self.region not in (None, region):
            headers = {"x-amz-bucket-region": self.region}
            status, code = (301, "PermanentRedirect") if self.redirects else (400, "AuthorizationHeaderMalformed")
            return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", headers=headers)
        if self.access_keys is not None and access_key not in self.access_keys:
            return refuse(*self.refusal)
        if "list-type" in values:
            return self._list(values)
        if request.method in ("PUT", "POST", "DELETE"):
            return self._store(request.method, key, values, await request.content.read())
        if (version_id := values.get("versionId")) is not None:
            return self._send_version(request, key, version_id)
        data = self.objects.get(key)
        return refuse(404, "NoSuchKey") if data is None else send(request, data)

    def _send_version(self, request: web.BaseRequest, key: str, version_id: str) -> web.Response:
        if (key, version_id) not in self.versions:
            return refuse(404, "NoSuchVersion")
        data = self.versions[key, version_id]
        if data is None:
            response = refuse(405, "MethodNotAllowed")
            response.headers["x-amz-delete-marker"] = "true"
            return response
        return send(request, data)

    def _store(self, method: str, key: str, values: dict[str, str], body: bytes) -> web.Response:
        upload = values.get("uploadId")
        if method == "POST" and "uploads" in values:
            upload = f"upload+/={next(self._numbers)}"
            self._uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return web.Response(text=text)
        if upload is not None and upload not in self._uploads:
            return refuse(404, "NoSuchUpload")
        if upload is not None and method == "PUT":
            self._uploads[upload][int(values["partNumber"])] = body
            return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if upload is not None and method == "POST":
            parts = self._uploads.pop(upload)
            numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)<", body.decode())]
            self.objects[key] = b"".join(parts[number] for number in numbers)
            etag = f"<ETag>&quot;{hashlib.md5(self.objects[key]).hexdigest()}-{len(numbers)}&quot;</ETag>"
            return web.Response(text=f"<CompleteMultipartUploadResult>{etag}</CompleteMultipartUploadResult>")
        if method == "DELETE":
            self._uploads.pop(upload, None) if upload is not None else self.objects.pop(key, None)
            return web.Response(status=204)
        self.objects[key] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    @property
    def unfinished(self) -> list[str]:
        """Ids of uploads that were neither completed nor aborted."""
        return list(self._uploads)

    def _list(self, values: dict[str, str]) -> web.Response:
        prefix, delimiter = values.get("prefix", ""), values.get("delimiter")
        after = values.get("start-after", "")
        if (token := values.get("continuation-token")) is not None:
            after = token.removeprefix("+/ =&%2F").removesuffix("<é>")
        encode = (lambda text: quote(text, safe="/", errors="surrogateescape")) if "encoding-type" in values else escape
        entries: dict[str, str] = {}
        for key, data in sorted(self.objects.items()):
            if not key.startswith(prefix):
                continue
            group, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            name = f"{prefix}{group}{delimiter}" if found else key
            if name <= after or name in entries:
                continue
            entries[name] = (
                f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>"
                if found
                else f"<Contents><Key>{encode(key)}</Key><LastModified>{MODIFIED}</LastModified>"
                f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag><Size>{len(data)}</Size></Contents>"
            )
        page = dict(itertools.islice(entries.items(), self.page_keys))
        text = "<EncodingType>url</EncodingType>" if "encoding-type" in values else ""
        if is_truncated := len(page) < len(entries):
            token = escape(f"+/ =&%2F{max(page)}<é>")
            text += f"<NextContinuationToken>{token}</NextContinuationToken>"
        text += f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>" + "".join(page.values())
        text = f'<?xml version="1.0"?><ListBucketResult>{text}</ListBucketResult>\n'
        return web.Response(body=text.encode("utf-8", "surrogateescape"), content_type="application/xml")


def refuse(status: int, code: str, message: str = "", **headers: str) -> web.Response:
    """Return an error response as S3 sends it."""
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


def send(request: web.BaseRequest, data: bytes) -> web.Response:
    """Return the bytes of an object that a request asks for."""
    tag = f'"{hashlib.md5(data).hexdigest()}"'
    headers = {"ETag": tag, "Content-Length": str(len(data)), "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
    if request.headers.get("If-Match", tag) != tag:
        return refuse(412, "PreconditionFailed")
    requested_range = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if requested_range is None:
        return web.Response(body=data, headers=headers)
    start = int(requested_range[1]) if requested_range[1] else max(0, len(data) - int(requested_range[2]))
    end = min(len(data), int(requested_range[2]) + 1) if requested_range[1] and requested_range[2] else len(data)
    if start >= len(data):
        return refuse(416, "InvalidRange")
    headers["Content-Length"] = str(end - start)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:end], headers=headers)
