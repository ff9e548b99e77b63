"""Object stores whose region or credentials are not the right ones, and marks of empty directories."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web
from faults.s3_server import PlainS3, refuse
from tiers import fast_first, only_fast

from streamloader.config import Retry
from streamloader.errors import (
    AccessDenied,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    StoreError,
    TransferInterrupted,
)
from streamloader.stores.objects.upload import PART_BYTES
from streamloader.stores.registry import open_store
from streamloader.values import ByteRange

KEYS = {"access_key_id": "AKRECOVERY", "secret_access_key": "checked-by-nobody"}
OBJECTS = {"a/0.txt": b"0", "a/1.txt": b"1"}


async def collect(store, **options):
    return [info.path async for info in store.list("a", **options)]


USES = {
    "head": lambda store: store.head("a/0.txt"),
    "read": lambda store: store.read("a/0.txt"),
    "list": collect,
    "list once": lambda store: collect(store, recursive=False),
    "write": lambda store: store.write("a/0.txt", b"0"),
}


def play(use, objects=OBJECTS, prepare=lambda server: None, **options):
    async def main():
        async with PlainS3(dict(objects)) as server:
            prepare(server)
            options.setdefault("endpoint_url", server.url)
            async with open_store("s3://bucket", **{"retry": None, **KEYS, **options}) as store, asyncio.timeout(60):
                return await use(store)

    return asyncio.run(main())


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("redirects", [True, False])
@pytest.mark.parametrize("region", [None, "us-west-2"])
def test_a_bucket_in_another_region_is_found(use, redirects, region, caplog):
    def prepare(server):
        server.region, server.redirects = "eu-west-3", redirects

    options = {} if region is None else {"region": region}
    assert play(USES[use], prepare=prepare, **options) == play(USES[use])
    assert "eu-west-3" in caplog.text
    assert "region=" in caplog.text


def test_a_region_that_the_server_does_not_state_is_an_error_that_says_so():
    def prepare(server):
        server.region = ""

    for use in ("head", "read", "list"):
        with pytest.raises(StoreError, match=r"region="):
            play(USES[use], prepare=prepare)


class Rotating:
    """A provider whose first keys are expired long before they say."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        return {"access_key_id": f"AK{self.calls}", "secret_access_key": "s3cret-of-nobody", "expires_at": expires_at}


REFUSALS = [(400, "ExpiredToken"), (403, "ExpiredToken"), (400, "InvalidToken"), (403, "RequestTimeTooSkewed"),
            (403, "InvalidAccessKeyId")]  # fmt: skip


@pytest.mark.parametrize("use", [*USES, "write in parts"])
@pytest.mark.parametrize(("status", "code"), fast_first(REFUSALS))
def test_credentials_that_expire_early_are_requested_once_more(use, status, code):
    provider = Rotating()
    options = {"access_key_id": None, "secret_access_key": None, "credential_provider": provider}
    large = bytes(2 * PART_BYTES + 1)
    run = USES.get(use) or (lambda store: store.write("a/0.txt", large))

    async def rotate(store):
        servers[0].refusal = status, code
        await store.read("a/1.txt")
        assert provider.calls == 1
        servers[0].access_keys = {"AK2"}
        found = await run(store)
        assert provider.calls == 2
        if use == "write in parts":
            return found
        servers[0].access_keys = {f"AK{number}" for number in range(3, 99)}
        assert await asyncio.gather(*(run(store) for _ in range(8))) == [found] * 8
        return found

    servers = []
    assert play(rotate, prepare=servers.append, **options) == play(run)


def rotate_at(server, number):
    """Let the keys expire with a request."""
    count = 0

    def intercept(request, _):
        nonlocal count
        count += 1
        if count == number:
            server.access_keys = {"AK2"}

    server.intercept = intercept


@pytest.mark.parametrize("number", only_fast(range(1, 8), [3]))
def test_credentials_that_expire_in_the_middle(number):
    keys = [f"a/{index:02d}" for index in range(20)]
    provider = Rotating()
    options = {"access_key_id": None, "secret_access_key": None, "credential_provider": provider}
    large = bytes(range(256)) * (PART_BYTES // 100)

    def prepare(server):
        servers.append(server)
        server.page_keys = 3
        rotate_at(server, number)

    servers = []
    assert play(collect, dict.fromkeys(keys, b"1"), prepare, **options) == keys
    assert provider.calls == 2
    provider.calls = 0

    async def write(store):
        await store.write("a/large", large)
        assert servers[-1].objects["a/large"] == large
        assert servers[-1].unfinished == []

    play(write, prepare=prepare, **options)

    async def read(store):
        info = await store.head("a/large")
        size = len(large) // 7
        spans = [ByteRange(start, min(start + size, len(large))) for start in range(0, len(large), size)]
        parts = [await store.read("a/large", span, version=info.version) for span in spans]
        assert b"".join(parts) == large

    provider.calls = 0
    play(read, {"a/large": large}, prepare, **options)


def test_requests_that_are_refused_together_renew_the_credentials_once():
    provider = Rotating()
    options = {"access_key_id": None, "secret_access_key": None, "credential_provider": provider}
    servers = []

    async def read_later(store, each):
        await asyncio.sleep(each / 5000)
        return await store.read("a/0.txt", ByteRange(0, 1))

    async def rotate(store):
        for number in range(1, 15):  # a new client may get the id of the one that was freed
            servers[0].access_keys = {f"AK{number}"}
            assert await asyncio.gather(*(read_later(store, each) for each in range(40))) == [b"0"] * 40
            assert provider.calls == number

    play(rotate, {"a/0.txt": b"0"}, servers.append, **options)


@pytest.mark.parametrize("use", ["read", "list"])
def test_credentials_that_stay_expired_are_denied(use):
    provider = Rotating()
    options = {"access_key_id": None, "secret_access_key": None, "credential_provider": provider}

    def prepare(server):
        server.access_keys = set()

    with pytest.raises(AccessDenied, match="ExpiredToken"):
        play(USES[use], prepare=prepare, **options)
    assert provider.calls == 2
    with pytest.raises(AccessDenied, match="ExpiredToken"):
        play(USES[use], prepare=prepare)  # of keys that cannot change


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("marks", [["a/empty/"], ["a/"], ["a/empty/", "a/full/"], ["a/zero"]])
def test_marks_of_directories_are_not_listed(recursive, marks):
    objects = {**OBJECTS, **dict.fromkeys(marks, b"")}
    keys = sorted(key for key in objects if not key.endswith("/"))
    found = play(lambda store: collect(store, recursive=recursive), objects)
    assert [path for path in found if not path.endswith("/")] == keys
    directories = sorted({mark for mark in marks if mark.count("/") > 1} if not recursive else [])
    assert [path for path in found if path.endswith("/")] == directories


def test_an_empty_object_beside_a_directory_of_its_name_is_listed():
    objects = {**OBJECTS, "a/b": b"", "a/b/": b"", "a/b/c.txt": b"1", "a/d/": b"", "a/d/e.txt": b"2"}
    keys = sorted(key for key in objects if not key.endswith("/"))
    assert [path for path in play(collect, objects) if path != "a/b"] == [key for key in keys if key != "a/b"]
    assert "a/b" in play(collect, objects)


# --- other ways to refuse --------------------------------------------------------------------------------------------

SSE_C = (
    "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve "
    "the object."
)
REASONS = {
    "archived": ((403, "InvalidObjectState", "The operation is not valid for the object's storage class"),
                 NotSupported, "archived.*restore"),
    "customer key": ((400, "InvalidRequest", SSE_C), AccessDenied, "sse_customer_key_base64"),
    "denied": ((403, "AccessDenied", "no"), AccessDenied, "AccessDenied"),
    "clock": ((403, "RequestTimeTooSkewed", "The difference is too large"), AccessDenied, "RequestTimeTooSkewed"),
    "kms": ((400, "KMS.DisabledException", "is disabled"), StoreError, "KMS.DisabledException"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("use", fast_first(["head", "read"]))
def test_a_refusal_says_why(reason, use):
    response, kind, words = REASONS[reason]

    def prepare(server):
        def intercept(request, _):
            # HEAD responses have no body, as in HTTP.
            return refuse(*response) if request.method != "HEAD" else web.Response(status=response[0])

        server.intercept = intercept

    with pytest.raises(kind, match=words) as caught:
        play(USES[use], prepare=prepare)
    assert caught.value.address == "s3://bucket/a/0.txt"


def test_an_etag_that_changes_between_ranges_is_an_error():
    async def read(store):
        info = await store.head("a/0.txt")
        servers[0].objects["a/0.txt"] = b"2"
        for name in ("obstore", "own"):
            store._connection.was_busy = name == "own"
            with pytest.raises(ObjectChanged):
                await store.read("a/0.txt", ByteRange(0, 1), version=info.version)

    servers = []
    play(read, prepare=servers.append)


ENDLESS = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
ENDLESS += "</ListBucketResult>"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a/x</Key>", TransferInterrupted),
        ("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", ProtocolError),
        ("<ListBucketResult><Contents><Key>a/x</Key></Contents></ListBucketResult>", ProtocolError),
        ("<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>", ProtocolError),
        ("<html></html>", ProtocolError),
        ("", ProtocolError),
        (
            ENDLESS,
            ProtocolError,
        ),
    ],
)
@pytest.mark.parametrize("use", fast_first(["list", "list once"]))
def test_listings_that_are_none_are_errors(text, error, use):
    def prepare(server):
        server.intercept = lambda *_: web.Response(text=text)

    with pytest.raises(error):
        play(USES[use], prepare=prepare)


def test_an_upload_that_fails_with_status_200_is_an_error():
    def prepare(server):
        servers.append(server)

        def intercept(request, _):
            if request.method == "POST" and "uploadId" in request.query_string:
                failures.append(1)
                return web.Response(text="<Error><Code>InternalError</Code></Error>") if len(failures) < 3 else None
            return None

        server.intercept = intercept

    servers, failures = [], []
    data = bytes(PART_BYTES + 5)
    with pytest.raises(StoreError, match="InternalError"):
        play(lambda store: store.write("a/large", data), prepare=prepare)
    assert servers[0].unfinished == []
    assert "a/large" not in servers[0].objects
    failures.clear()
    play(lambda store: store.write("a/large", data), prepare=prepare, retry=Retry(first_wait=0.01, jitter=0.01))
    assert servers[1].objects["a/large"] == data


# --- forms of addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", only_fast(USES, ["list"]))
def test_an_endpoint_may_have_a_path(use):
    assert play(USES[use]) == play_at(USES[use], prefix="/gateway/s3")


def play_at(use, bucket="bucket", objects=OBJECTS, **settings):
    async def main():
        server = PlainS3(dict(objects))
        options = settings.pop("options", {})
        for name, value in settings.items():
            setattr(server, name, value)
        async with server:
            address = f"s3://{bucket}"
            async with open_store(address, **{"retry": None, **KEYS, "endpoint_url": server.url, **options}) as store:
                async with asyncio.timeout(60):
                    return await use(store)

    return asyncio.run(main())


@pytest.mark.parametrize("use", only_fast(USES, ["list"]))
@pytest.mark.parametrize("bucket", ["with.dots.in-it", "UPPER_case"])
def test_names_of_buckets(use, bucket):
    assert play_at(USES[use], bucket) == play(USES[use])


@pytest.mark.parametrize("use", only_fast(USES, ["list"]))
def test_an_endpoint_may_be_an_address_of_ipv6(use):
    assert play_at(USES[use], host="::1") == play(USES[use])


@pytest.mark.parametrize("use", only_fast([*USES, "unusual"], ["unusual"]))
def test_requesters_may_pay(use):
    seen = []

    def intercept(request, _):
        seen.append(request.headers.get("x-amz-request-payer"))
        return None if seen[-1] == "requester" else refuse(403, "AccessDenied")

    run = USES.get(use) or (lambda store: store.read("a//0.txt"))
    objects = {**OBJECTS, "a//0.txt": b"0"}
    options = {"config": {"request_payer": True}}
    play_at(run, objects=objects, intercept=intercept, options=options)
    assert set(seen) == {"requester"}
    with pytest.raises(AccessDenied):
        play_at(run, objects=objects, intercept=intercept)
