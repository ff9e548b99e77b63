"""Requests that are sent without obstore: bodies in pieces, other credentials, uploads that are cut, long listings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web
from faults.s3_server import PlainS3, refuse

from streamloader.config import Limits, Retry, Timeouts
from streamloader.errors import AccessDenied, ConfigError, LimitExceeded, ProtocolError, ServerBusy
from streamloader.stores.objects.upload import PART_BYTES
from streamloader.stores.registry import open_store

KEYS = {"access_key_id": "AKOWN", "secret_access_key": "checked-by-nobody"}
OBJECTS = {f"a/{number:02d}": b"%d" % number for number in range(20)}
LARGE = bytes(range(256)) * (PART_BYTES // 100)
EXPIRY = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(autouse=True)
def _no_own_settings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def play(use, objects=OBJECTS, prepare=lambda server: None, keys=KEYS, **options):
    async def main():
        async with PlainS3(dict(objects)) as server:
            prepare(server)
            options.setdefault("endpoint_url", server.url)
            async with open_store("s3://bucket", **{"retry": None, **keys, **options}) as store, asyncio.timeout(60):
                return await use(store)

    return asyncio.run(main())


async def collect(store):
    return [info.path async for info in store.list()]


# --- bodies that arrive in pieces ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve_in_pieces(status, body):
    """A server whose responses arrive in pieces, as over a slow network."""

    async def answer(request):
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/xml"})
        response.content_length = len(body)
        await response.prepare(request)
        for start in range(0, len(body), 40):
            await response.write(body[start : start + 40])
            await asyncio.sleep(0.001)  # so that they are pieces of their own
        return response

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(403, "AccessDenied", AccessDenied), (400, "SlowDown", ServerBusy)]
)
def test_a_reason_in_pieces_is_read_whole(status, code, kind):
    body = f'<?xml version="1.0"?><Error>{" " * 200}<Code>{code}</Code><Message>why it is so</Message></Error>'.encode()

    async def main():
        async with (
            serve_in_pieces(status, body) as url,
            open_store("s3://bucket", endpoint_url=url, retry=None, **KEYS) as store,
        ):
            with pytest.raises(kind, match=f"{code}: why it is so"):
                await collect(store)

    asyncio.run(main())


@pytest.mark.parametrize("source", ["container", "web identity"])
def test_credentials_in_pieces_are_read_whole(source, monkeypatch, tmp_path):
    fields = {"AccessKeyId": "AKPIECES", "SecretAccessKey": "s" * 99, "Token": "t" * 999, "Expiration": EXPIRY}
    elements = {**fields, "SessionToken": fields["Token"]}
    body = json.dumps(fields) if source == "container" else "".join(f"<{k}>{v}</{k}>" for k, v in elements.items())

    async def main():
        async with serve_in_pieces(200, body.encode()) as url, PlainS3(dict(OBJECTS)) as server:
            if source == "container":
                monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/agent")
            else:
                (tmp_path / "token").write_text("identity")
                monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
                monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
                monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
            server.access_keys = {"AKPIECES"}
            async with open_store("s3://bucket", endpoint_url=server.url, retry=None) as store:
                assert await collect(store) == sorted(OBJECTS)

    asyncio.run(main())


# --- credentials -----------------------------------------------------------------------------------------------------

MALFORMED = {
    "nothing": (None, "must return a dict"),
    "no expiry": ({"access_key_id": "a", "secret_access_key": "b"}, "expires_at"),
    "no keys": ({"expires_at": None}, "must return one of"),
    "half": ({"access_key_id": "a", "token": "t", "expires_at": None}, "together"),
    "no zone": (
        {"access_key_id": "a", "secret_access_key": "b", "expires_at": datetime(2090, 1, 1)},  # noqa: DTZ001
        "time zone",
    ),
    "line break": ({"access_key_id": "a\n", "secret_access_key": "b", "expires_at": None}, "access_key_id.*line break"),
    "header": (
        {"access_key_id": "a", "secret_access_key": "b", "token": "t\r\nx-other: 1", "expires_at": None},
        "token.*line break",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_credentials_are_an_error_that_says_so(case):
    credentials, words = MALFORMED[case]
    for use in (collect, lambda store: store.read("a/00"), lambda store: store.read("a//b")):
        with pytest.raises(ConfigError, match=words):
            play(use, keys={}, credential_provider=lambda: credentials)


def test_every_request_shows_why_there_are_no_credentials():
    def fail():
        raise AccessDenied("the vault is locked")

    async def use(store):
        requests = [store.head("a/00") for _ in range(20)] + [collect(store) for _ in range(20)]
        return await asyncio.gather(*requests, return_exceptions=True)

    errors = play(use, keys={}, credential_provider=fail)
    assert {(type(error), error.message) for error in errors} == {(AccessDenied, "the vault is locked")}
    assert len({id(error) for error in errors}) == len(errors)  # none of them changes another one


KEY_BASE64 = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"skip_signature": True},
        {"sse_customer_key_base64": KEY_BASE64},
        {"server_side_encryption": "sse-c", "sse_customer_key_base64": KEY_BASE64},
    ],
)
def test_they_send_the_same_secrets_as_obstore(config):
    seen = {}

    def prepare(server):
        def intercept(request, key):
            names = {name.lower() for name in request.headers}
            seen[key] = {name for name in names if name == "authorization" or "customer" in name}

        server.intercept = intercept

    async def use(store):
        await store.read("a/00")
        await store.read("a//b")

    play(use, {**OBJECTS, "a//b": b"own"}, prepare, config=config)
    assert seen["a//b"] == seen["a/00"]


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "config"),
    [("POST", {}), ("PUT", {}), ("POST", {"checksum_algorithm": "sha256"})],
    ids=["begins", "parts", "begins by obstore"],
)
def test_an_upload_that_is_cancelled_at_any_request_is_aborted(method, config):
    """The server has started the upload, and its response arrives after the cancellation."""

    class Slow(PlainS3):
        async def _answer(self, request):
            response = await super()._answer(request)
            if request.method == method:
                reached.set()
                await asyncio.sleep(0.1)
            return response

    async def main():
        async with Slow({}) as server:
            options = {"endpoint_url": server.url, "config": config, "retry": None}
            async with open_store("s3://bucket", **options, **KEYS) as store, asyncio.timeout(60):
                task = asyncio.create_task(store.write("new", LARGE))
                await reached.wait()
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()
                assert server.unfinished == []
                assert any(line.startswith("DELETE") for line in server.seen)
                assert not server.objects

    reached = asyncio.Event()
    asyncio.run(main())


@pytest.mark.parametrize("config", [{}, {"checksum_algorithm": "sha256"}], ids=["own", "by obstore"])
def test_ids_of_uploads_are_texts_of_xml(config):
    class Odd(PlainS3):
        def _store(self, method, key, values, body):
            response = super()._store(method, key, values, body)
            if method == "POST" and "uploads" in values:
                (upload,) = self._uploads
                self._uploads[f"{upload}&<'"] = self._uploads.pop(upload)
                text = f"<UploadId>{upload}&amp;&#60;&#x27;</UploadId>"
                return web.Response(text=f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>")
            return response

    async def main():
        async with Odd({}) as server:
            options = {"endpoint_url": server.url, "config": config, "retry": None}
            async with open_store("s3://bucket", **options, **KEYS) as store:
                await store.write("new", LARGE)
                assert server.objects["new"] == LARGE
                assert server.unfinished == []

    asyncio.run(main())


# --- listings --------------------------------------------------------------------------------------------------------


def test_each_page_of_a_listing_is_repeated_by_itself():
    """Every second request fails, so that a listing that began again could never end."""
    requests = []

    def prepare(server):
        server.page_keys = 2

        def intercept(request, _):
            requests.append(request.raw_path)
            return refuse(503, "SlowDown") if len(requests) % 2 else None

        server.intercept = intercept

    retry = Retry(attempts=2, first_wait=0.001, jitter=0.001)
    assert play(collect, prepare=prepare, retry=retry) == sorted(OBJECTS)
    assert len(requests) == len(OBJECTS)
    assert requests[::2] == requests[1::2]


def test_a_page_that_fails_for_good_ends_the_listing():
    requests = []

    def prepare(server):
        server.page_keys = 2

        def intercept(request, _):
            requests.append(request.raw_path)
            return refuse(503, "SlowDown") if len(requests) > 3 else None

        server.intercept = intercept

    with pytest.raises(ServerBusy, match="tried 3 times"):
        play(collect, prepare=prepare, retry=Retry(attempts=3, first_wait=0.001, jitter=0.001))
    assert len(requests) == 6


def test_marks_of_directories_without_end_are_an_error():
    pages = []

    def prepare(server):
        def intercept(*_):
            pages.append(1)
            marks = "".join(
                f"<Contents><Key>a/{len(pages)}-{number}/</Key><Size>0</Size>"
                "<LastModified>2022-01-01T00:00:00Z</LastModified></Contents>"
                for number in range(10)
            )
            token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{len(pages)}</NextContinuationToken>"
            return web.Response(text=f"<ListBucketResult>{token}{marks}</ListBucketResult>")

        server.intercept = intercept

    with pytest.raises(LimitExceeded, match="more than 1000 entries"):
        play(collect, prepare=prepare, limits=Limits(listed=1000))


@pytest.mark.slow
def test_a_listing_may_pass_over_entries_for_longer_than_one_request_may_take():
    class Slow(PlainS3):
        async def _answer(self, request):
            await asyncio.sleep(0.1)
            return await super()._answer(request)

    async def main():
        async with Slow({**{f"a/{number}/": b"" for number in range(40)}, "b": b"1"}) as server:
            server.page_keys = 1
            timeouts = Timeouts(connect=1.5, response=1.5)
            options = {"endpoint_url": server.url, "timeouts": timeouts, "retry": None}
            async with open_store("s3://bucket", **options, **KEYS) as store:
                assert await collect(store) == ["b"]

    asyncio.run(main())


ENTRY = {"Key": "a", "Size": "5", "LastModified": "2022-01-01T00:00:00.000Z"}


@pytest.mark.parametrize(
    "change",
    [{"Size": "-5"}, {"Size": "9" * 19}, {"Size": "1_0"}, {"Size": "٣"}, {"LastModified": "never"}],
    ids=["negative", "huge", "underscore", "digits", "date"],
)
def test_impossible_entries_are_errors(change):
    with pytest.raises(ProtocolError, match="malformed entry"):
        play(list_entry(ENTRY | change)[0], prepare=list_entry(ENTRY | change)[1])


@pytest.mark.parametrize("date", ["2022-01-01T00:00:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59"])
def test_a_date_without_a_zone_is_in_utc(date):
    collect_infos, prepare = list_entry(ENTRY | {"LastModified": date})
    (info,) = play(collect_infos, prepare=prepare)
    assert info.modified == (datetime.fromisoformat(date) - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001


def list_entry(entry):
    fields = "".join(f"<{name}>{value}</{name}>" for name, value in entry.items())
    page = f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{fields}</Contents></ListBucketResult>"

    def prepare(server):
        server.intercept = lambda *_: web.Response(text=page)

    async def use(store):
        return [info async for info in store.list()]

    return use, prepare
