"""The object store with a real S3 server that verifies signatures."""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from canaries import canary
from servers.seaweed import FULL, PROFILE, READER, WRONG, Keys
from tiers import only_fast

from streamloader.config import Limits, Retry, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    LimitExceeded,
    MissingDependency,
    NotFound,
    ObjectChanged,
    ServerBusy,
    StoreTimeout,
    Unreachable,
)
from streamloader.stores.objects.upload import PART_BYTES
from streamloader.stores.registry import open_store
from streamloader.testing.faults.s3 import FaultyS3, S3Fault
from streamloader.testing.stores.binding import make_bytes
from streamloader.values import ByteRange

MEBI = 1 << 20
_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)


@pytest.fixture(autouse=True)
def _no_own_credentials(monkeypatch, tmp_path):
    """Hide the credentials of the user who runs the tests."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def server(seaweed_server):
    return seaweed_server


@pytest.fixture
def bucket(server):
    return server.bucket()


@pytest.fixture
def use(server, bucket):
    """Call a coroutine function with a store of the bucket."""

    def call(function, **options):
        async def with_store():
            address = options.pop("address", f"s3://{bucket}")
            async with open_store(address, **{"retry": None, **server.options(), **options}) as store:
                async with asyncio.timeout(60):
                    return await function(store)

        return asyncio.run(with_store())

    return call


def unfinished_uploads(server, bucket):
    """Return the unfinished uploads that the server has parts of."""
    address = f"{server._filer}/buckets/{bucket}/.uploads/?limit=100"
    request = urllib.request.Request(address, headers={"Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [entry["FullPath"] for entry in json.load(answer)["Entries"] or []]
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 404:
                raise
            return []


# --- listings --------------------------------------------------------------------------------------------------------


def list_many(server, bucket, use, count):
    names = [f"many/{number:06d}.bin" for number in range(count)]
    server.make_objects(bucket, [*names, "many-others/x", "manyx"])

    async def look(store):
        return [info.path async for info in store.list("many")]

    async def look_through(proxy):
        async with open_store(f"s3://{bucket}", **{**server.options(), "endpoint_url": proxy.url}) as store:
            found = []
            async for info in store.list("many"):
                if not found:
                    assert len(pages(proxy)) <= 2, "the listing starts with the first page, not after the last"
                found.append(info.path)
            return found

    def pages(proxy):
        return [line for line in proxy.requests if "list-type" in line]

    async def through():
        async with FaultyS3(server.endpoint) as proxy:
            return await look_through(proxy), pages(proxy)

    assert use(look) == names
    found, requests = asyncio.run(through())
    assert found == names
    assert len(requests) == -(-count // 1000), requests
    with pytest.raises(LimitExceeded):
        use(look, limits=Limits(listed=count - 1))


def test_2001_keys_come_in_pages(server, bucket, use):
    list_many(server, bucket, use, 2_001)


@pytest.mark.slow
def test_12000_keys_come_in_pages(server, bucket, use):
    list_many(server, bucket, use, 12_000)


# --- uploads ---------------------------------------------------------------------------------------------------------


async def in_pieces(data, size):
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize(
    ("size", "piece"),
    only_fast(
        [
            (PART_BYTES, None),
            (PART_BYTES + 1, None),
            (2 * PART_BYTES + 12_345, None),
            (PART_BYTES, 700_001),
            (PART_BYTES + 1, PART_BYTES // 2),
            (3 * PART_BYTES + 12_345, 2 * PART_BYTES),
        ],
        fast=[(PART_BYTES + 1, None), (PART_BYTES, 700_001), (3 * PART_BYTES + 12_345, 2 * PART_BYTES)],
    ),
)
def test_large_objects_are_written_in_parts(server, bucket, use, size, piece):
    data = make_bytes(size)

    async def write(store):
        await store.write("big.bin", data if piece is None else in_pieces(data, piece))
        info = await store.head("big.bin")
        assert ("-" in info.version) == (size > PART_BYTES), "the ETag of an object in parts ends in their number"
        assert await store.read("big.bin", version=info.version) == data

    use(write)
    assert unfinished_uploads(server, bucket) == []


def test_an_upload_whose_source_fails_is_aborted(server, bucket, use):
    async def broken():
        yield make_bytes(3 * PART_BYTES)
        raise RuntimeError("no more")

    async def write(store):
        await store.write("big.bin", b"the old one")
        with pytest.raises(RuntimeError, match="no more"):
            await store.write("big.bin", broken())
        assert await store.read("big.bin") == b"the old one"

    use(write)
    assert unfinished_uploads(server, bucket) == []


def test_an_upload_that_is_cancelled_is_aborted(server, bucket, use):
    async def write(store):
        reached = asyncio.Event()

        async def stuck():
            yield make_bytes(5 * PART_BYTES)
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.write("big.bin", stuck()))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(NotFound):
            await store.head("big.bin")

    use(write)
    assert unfinished_uploads(server, bucket) == []


def test_an_upload_that_the_server_stops_is_an_error_and_no_object(server, bucket):
    async def write():
        async with FaultyS3(server.endpoint) as proxy:
            options = {**server.options(), "endpoint_url": proxy.url, "retry": None}
            async with open_store(f"s3://{bucket}", **options) as store:
                proxy.fault = S3Fault("slow-down", on="uploads", times=1)
                with pytest.raises(ServerBusy):
                    await store.write("small.bin", b"x")
                proxy.fault = S3Fault("slow-down", on="uploads")
                with pytest.raises(ServerBusy):
                    await store.write("big.bin", make_bytes(3 * PART_BYTES))
                proxy.fault = None
                for name in ("small.bin", "big.bin"):
                    with pytest.raises(NotFound):
                        await store.head(name)

    asyncio.run(write())


def test_an_upload_to_a_server_that_hangs_ends_in_time(server, bucket):
    times = Timeouts(connect=0.3, response=0.3, window=0.2, close=0.2)

    async def write():
        async with FaultyS3(server.endpoint) as proxy:
            options = {**server.options(), "endpoint_url": proxy.url, "retry": None, "timeouts": times}
            async with open_store(f"s3://{bucket}", **options) as store:
                proxy.fault = S3Fault("stall-head", on="uploads")
                for data in (b"x", make_bytes(2 * PART_BYTES)):
                    with pytest.raises(StoreTimeout, match="waited"):
                        await store.write("a.bin", data)

    asyncio.run(asyncio.wait_for(write(), 60))


# --- versions --------------------------------------------------------------------------------------------------------


def test_an_object_that_is_replaced_between_ranges_is_no_mixture(use):
    old, new = make_bytes(3 * MEBI, 1), make_bytes(3 * MEBI, 2)

    async def read(store):
        await store.write("a.bin", old)
        info = await store.head("a.bin")
        assert await store.read("a.bin", ByteRange(0, MEBI), version=info.version) == old[:MEBI]
        await store.write("a.bin", new)
        for span in (ByteRange(MEBI, 2 * MEBI), ByteRange(-5), ByteRange(7), None):
            with pytest.raises(ObjectChanged) as caught:
                await store.read("a.bin", span, version=info.version)
            assert caught.value.address == store.address("a.bin")
        assert await store.read("a.bin") == new

    use(read)


def test_an_object_that_is_replaced_in_mid_stream_is_no_mixture(server, bucket):
    # The transfer is interrupted in the middle. When it resumes, the object was replaced.
    old, new = make_bytes(3 * MEBI, 1), make_bytes(3 * MEBI, 2)

    async def read():
        async with FaultyS3(server.endpoint) as proxy:
            options = {**server.options(), "endpoint_url": proxy.url, "retry": Retry(first_wait=0.01, jitter=0.01)}
            async with open_store(f"s3://{bucket}", **options) as store:
                await store.write("a.bin", old)
                proxy.fault = S3Fault("truncate", at=2 * MEBI, times=1)
                came = b""
                with pytest.raises(ObjectChanged):  # noqa: PT012
                    async for chunk in store.stream("a.bin"):
                        if not came:
                            await store.write("a.bin", new)
                        came += chunk
                assert proxy.fault_count == 1
                assert came
                assert came == old[: len(came)]
                assert await store.read("a.bin") == new

    asyncio.run(read())


def test_a_transfer_that_breaks_off_is_taken_up_where_it_stopped(server, bucket):
    data = make_bytes(3 * MEBI)

    async def read():
        async with FaultyS3(server.endpoint) as proxy:
            options = {**server.options(), "endpoint_url": proxy.url, "retry": Retry(first_wait=0.01, jitter=0.01)}
            async with open_store(f"s3://{bucket}", **options) as store:
                await store.write("a.bin", data)
                for kind in ("truncate", "reset"):
                    proxy.fault_count, proxy.fault = 0, S3Fault(kind, at=2 * MEBI, times=1)
                    assert await store.read("a.bin") == data
                    assert proxy.fault_count == 1

    asyncio.run(read())


# --- permissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [WRONG, Keys("AKNOBODY00000000", canary("s3-wrong-secret-key"))], ids=["secret", "id"])
def test_wrong_keys_are_refused(server, bucket, use, keys):
    server.make_objects(bucket, ["a.bin"])

    async def everything(store):
        for work in (store.head("a.bin"), store.read("a.bin"), store.write("b.bin", b"x"), store.delete("a.bin")):
            with pytest.raises(AccessDenied) as caught:
                await work
            assert caught.value.address is not None
            assert not caught.value.transient
        with pytest.raises(AccessDenied):
            [info async for info in store.list()]

    use(everything, **keys.options(), retry=Retry(deadline=1000, first_wait=500, longest_wait=500))


def test_a_read_only_user_cannot_write(server, bucket, use):
    server.make_objects(bucket, ["a.bin"])

    async def everything(store):
        assert await store.read("a.bin") == b"x"
        assert [info.path async for info in store.list()] == ["a.bin"]
        for work in (
            store.write("a.bin", b"y"),
            store.write("b.bin", make_bytes(2 * PART_BYTES)),
            store.delete("a.bin"),
        ):
            with pytest.raises(AccessDenied):
                await work
        assert await store.read("a.bin") == b"x"

    use(everything, **READER.options())


def test_a_bucket_that_is_not_there(use):
    async def everything(store):
        for work in (store.head("a.bin"), store.read("a.bin")):
            with pytest.raises(NotFound):
                await work
        with pytest.raises(NotFound, match="no such bucket"):
            [info async for info in store.list()]

    use(everything, address="s3://there-is-no-such-bucket")


def test_an_unreachable_server(use):
    async def read(store):
        for work in (store.head("a.bin"), store.read("a.bin"), store.write("a.bin", b"x")):
            with pytest.raises(Unreachable, match="refuses connections") as caught:
                await work
            assert caught.value.transient

    use(read, endpoint_url="http://127.0.0.1:1")


async def read_a(store):
    return await store.read("a.bin")


def test_variables(server, bucket, monkeypatch):
    server.make_objects(bucket, ["a.bin"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", FULL.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", FULL.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)

    async def read(**options):
        async with open_store(f"s3://{bucket}", retry=None, **options) as store:
            return await store.read("a.bin")

    assert asyncio.run(read()) == b"x"
    # A session token in the environment is not combined with keys given as options.
    monkeypatch.setenv("AWS_SESSION_TOKEN", canary("s3-session-token"))
    assert asyncio.run(read(**READER.options())) == b"x"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        asyncio.run(read(**READER.options()))
    assert asyncio.run(read(endpoint_url=server.endpoint, **READER.options())) == b"x"


def test_profiles(server, bucket, tmp_path, monkeypatch):
    server.make_objects(bucket, ["a.bin"])
    (tmp_path / "config").write_text(
        f"[default]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n"
        "[profile work]\nservices = here\nregion = us-east-1\n"
        f"[services here]\ns3 =\n  endpoint_url = {server.endpoint}\n"
        f"[profile asks]\nendpoint_url = {server.endpoint}\n"
        f"credential_process = {sys.executable} {tmp_path / 'ask.py'}\n"
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/some\nsource_profile = work\n"
    )
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = {WRONG.access_key_id}\naws_secret_access_key = {WRONG.secret_access_key}\n"
        f"[work]\naws_access_key_id = {PROFILE.access_key_id}\naws_secret_access_key = {PROFILE.secret_access_key}\n"
    )
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    document = {"Version": 1, "AccessKeyId": PROFILE.access_key_id, "SecretAccessKey": PROFILE.secret_access_key}
    (tmp_path / "ask.py").write_text(f"print({json.dumps(json.dumps({**document, 'Expiration': ends}))})\n")

    async def read(**options):
        async with open_store(f"s3://{bucket}", retry=None, **options) as store:
            return await store.read("a.bin")

    assert asyncio.run(read(profile="work")) == b"x"
    assert asyncio.run(read(profile="asks")) == b"x"
    with pytest.raises(AccessDenied):
        asyncio.run(read())  # the default profile has a wrong key
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert asyncio.run(read()) == b"x"
    with pytest.raises(ConfigError, match="nobody"):
        asyncio.run(read(profile="nobody"))
    (tmp_path / "ask.py").write_text("import sys; print('no login'); sys.exit(3)\n")
    with pytest.raises(AccessDenied, match="exit status 3"):
        asyncio.run(read(profile="asks"))
    monkeypatch.setitem(sys.modules, "boto3", None)  # as if it were not installed
    with pytest.raises(MissingDependency, match="boto3"):
        asyncio.run(read(profile="role", endpoint_url=server.endpoint))


class Provider:
    """Provide credentials with the given lifetime, and count the calls."""

    def __init__(self, lifetime):
        self.lifetime, self.calls = lifetime, 0

    async def __call__(self):
        self.calls += 1
        return {
            "access_key_id": FULL.access_key_id,
            "secret_access_key": FULL.secret_access_key,
            "token": None,
            "expires_at": datetime.now(UTC) + self.lifetime,
        }


@pytest.mark.parametrize(("lifetime", "calls"), [(timedelta(hours=1), 1), (timedelta(seconds=-1), 3)])
def test_credentials_are_fetched_again_when_they_expire(server, bucket, lifetime, calls):
    server.make_objects(bucket, ["a.bin"])
    provider = Provider(lifetime)

    async def read():
        options = {"endpoint_url": server.endpoint, "credential_provider": provider, "retry": None}
        async with open_store(f"s3://{bucket}", **options) as store:
            for _ in range(3):
                assert await store.read("a.bin") == b"x"

    asyncio.run(read())
    assert provider.calls == calls


def test_no_credentials_anywhere(server, bucket, monkeypatch):
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # no metadata service

    async def read():
        async with open_store(f"s3://{bucket}", endpoint_url=server.endpoint, retry=None) as store:
            with pytest.raises(AccessDenied, match=r"no credentials .*anonymous=True"):
                await store.read("a.bin")

    asyncio.run(read())


def test_a_failing_credential_provider_denies_access(server, bucket):
    def provider():
        raise RuntimeError(canary("s3-secret-key"))

    async def read():
        options = {"endpoint_url": server.endpoint, "credential_provider": provider, "retry": None}
        async with open_store(f"s3://{bucket}", **options) as store:
            with pytest.raises(AccessDenied, match="RuntimeError"):
                await store.read("a.bin")

    asyncio.run(read())


def test_secrets_are_never_shown(server, bucket):
    options = {**server.options(), "session_token": canary("s3-session-token")}
    store = open_store(f"s3://{bucket}/folder", **options)
    shown = f"{store!r} {store} {store.url} {store.address('a')} {pickle.loads(pickle.dumps(store))!r}"
    shown += repr(store.inner.inner._connection.config)
    assert canary("s3-secret-key") not in shown
    assert canary("s3-session-token") not in shown


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a//b", "a/", "a\tb", "/a", "a/../b", "a?versionId=1"])
def test_nothing_is_written_under_unusual_names(use, path):
    async def everything(store):
        for work in (store.write(path, b"x"), store.delete(path)):
            with pytest.raises(ConfigError):
                await work

    use(everything)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://", {}),
        ("s3://key:secret@bucket", {}),
        ("s3://bucket", {"access_key_id": "AK"}),
        ("s3://bucket", {"session_token": "t"}),
        ("s3://bucket", {"anonymous": True, "profile": "p"}),
        ("s3://bucket", {"account_name": "a"}),
        ("s3://bucket", {"endpoint_url": "127.0.0.1:9000"}),
        ("s3://bucket", {"endpoint_url": "http://u:p@127.0.0.1:9000"}),
        ("gs://bucket", {"region": "r"}),
        ("az://container", {"profile": "p", "account_name": "a"}),
    ],
)
def test_invalid_options(url, options):
    with pytest.raises(ConfigError):
        open_store(url, **options)
