"""Bytes that do not match their digest are never returned as correct."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import pickle
import sys

import pytest
from store_leaves import Scripted

import streamloader as sl
from streamloader.stores.wrappers.verify import VerifyingStore
from streamloader.values import ByteRange

DATA = bytes(range(256)) * 4000
BAD = DATA[:500_000] + b"\0" + DATA[500_001:]
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


def store(data=DATA, version="v1", digest=SHA):
    inner = Scripted()
    inner.objects.update(a=(data, version), other=(b"other", "v"))
    return VerifyingStore(inner, {"a": digest, "none": SHA})


def play(wrapped, use):
    async def run():
        async with asyncio.timeout(60), wrapped:
            return await use(wrapped)

    return asyncio.run(run())


def blake3_of(data):
    return pytest.importorskip("blake3").blake3(data).hexdigest()


@pytest.mark.parametrize(
    "digest",
    [
        *(
            f"{kind}:{hashlib.new(kind, DATA).hexdigest()}"
            for kind in ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b")
        ),
        SHA.upper(),
        *(
            f"{kind}-{base64.b64encode(hashlib.new(kind, DATA).digest()).decode()}"
            for kind in ("sha256", "sha384", "sha512")
        ),
    ],
)
def test_takes_digests_as_they_are_written(digest):
    assert play(store(digest=digest), lambda store: store.read("a")) == DATA
    with pytest.raises(sl.IntegrityError):
        play(store(BAD, digest=digest), lambda store: store.read("a"))


def test_blake3():
    digest = f"blake3:{blake3_of(DATA)}"
    assert play(store(digest=digest), lambda store: store.read("a")) == DATA
    with pytest.raises(sl.IntegrityError):
        play(store(BAD, digest=digest), lambda store: store.read("a"))


def test_says_what_to_install_for_blake3(monkeypatch):
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(sl.MissingDependency, match=r"streamloader\[ipfs\]"):
        store(digest="blake3:" + "0" * 64)


@pytest.mark.parametrize(
    "digest",
    ["", "abc", "sha256", "sha256:", "sha256:12", "sha256:" + "g" * 64, "sha256-AAAA", "sha256-!!", "md5-AAAA",
     "crc:00", "shake_128:00", SHA + "0", f"{SHA} {SHA}", "sha256:" + "0" * 63],
)  # fmt: skip
def test_refuses_what_is_no_digest(digest):
    with pytest.raises(sl.ConfigError, match="given for a"):
        store(digest=digest)


def test_one_flipped_bit_is_noticed_wherever_it_is():
    for at in (0, 1, 262_144, len(DATA) - 1):
        bad = bytearray(DATA)
        bad[at] ^= 1
        with pytest.raises(sl.IntegrityError) as caught:
            play(store(bytes(bad)), lambda store: store.read("a"))
        assert (caught.value.address, caught.value.offset) == ("plain://scripted/a", 0)
        assert "plain://scripted/a" in str(caught.value)
        assert not caught.value.transient


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""])
def test_other_lengths_are_noticed(data):
    with pytest.raises(sl.IntegrityError):
        play(store(data), lambda store: store.read("a"))


def test_an_empty_object_has_a_digest_too():
    digest = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    assert play(store(b"", digest=digest), lambda store: store.read("a")) == b""


def test_a_stream_never_ends_well_if_it_was_wrong():
    async def collect(store):
        got = bytearray()

        async def take():
            async for chunk in store.stream("a"):
                got.extend(chunk)

        with pytest.raises(sl.IntegrityError):
            await take()
        return got

    got = play(store(BAD), collect)
    assert len(got) < len(BAD)  # its last piece was held back
    small = play(store(b"small"), collect)
    assert small == b""  # all of it


def test_spans_are_of_what_was_checked():
    async def read(store):
        spans = [ByteRange(5, 9), ByteRange(499_999, 500_002), ByteRange(-4), ByteRange(1)]
        return [await store.read("a", span) for span in spans]

    assert play(store(), read) == [DATA[5:9], DATA[499_999:500_002], DATA[-4:], DATA[1:]]
    with pytest.raises(sl.IntegrityError):  # also where the span itself is right
        play(store(BAD), read)


def test_an_object_is_checked_once_for_each_version():
    async def read(store):
        for _ in range(3):
            await store.read("a", ByteRange(5, 9))
        before = len([request for request in store.inner.requests if request[0] == "get" and request[2] == "[0:]"])
        store.inner.objects["a"] = DATA, "v2"
        await store.read("a", ByteRange(5, 9))
        after = len([request for request in store.inner.requests if request[0] == "get" and request[2] == "[0:]"])
        store.inner.objects["a"] = BAD, "v3"
        with pytest.raises(sl.IntegrityError):
            await store.read("a", ByteRange(5, 9))
        return before, after

    assert play(store(), read) == (1, 2)


def test_spans_are_pinned_to_the_version_that_was_checked():
    async def read(store):
        await store.read("a", ByteRange(5, 9))
        return store.inner.requests[-1]

    assert play(store(), read) == ("get", "a", "[5:9]", "v1")


def test_many_spans_at_once_check_once():
    async def read(store):
        await asyncio.gather(*(store.read("a", ByteRange(at, at + 9)) for at in range(40)))
        return len([request for request in store.inner.requests if request[0] == "get" and request[2] == "[0:]"])

    assert play(store(), read) == 1


@pytest.mark.parametrize("span", [ByteRange(5, 9), ByteRange(262_140, 600_000), ByteRange(9), ByteRange(-300_001)])
def test_without_versions_each_span_costs_the_whole(span):
    start, end = span.within(len(DATA))
    wrapped = store(version=None)
    assert play(wrapped, lambda store: store.read("a", span)) == DATA[start:end]
    assert [request[0] for request in wrapped.inner.requests] == ["head", "get"]
    with pytest.raises(sl.IntegrityError):
        play(store(BAD, version=None), lambda store: store.read("a", span))


def test_errors_are_those_of_the_store():
    for wrapped in (store(), store(version=None)):
        with pytest.raises(sl.RangeNotSatisfiable):
            play(wrapped, lambda store: store.read("a", ByteRange(5, len(DATA) + 1)))
    with pytest.raises(sl.NotFound):
        play(store(), lambda store: store.read("none"))
    with pytest.raises(sl.NotFound):
        play(store(), lambda store: store.read("none", ByteRange(1, 2)))
    with pytest.raises(sl.ObjectChanged):
        play(store(), lambda store: store.read("a", ByteRange(1, 2), version="v0"))


def test_others_pass():
    wrapped = store()
    assert play(wrapped, lambda store: store.read("other", ByteRange(1, 3))) == b"th"
    assert wrapped.inner.requests == [("get", "other", "[1:3]", None)]


def test_a_twin_checks_for_itself():
    async def read(store):
        await store.read("a", ByteRange(5, 9))
        twin = pickle.loads(pickle.dumps(VerifyingStore(sl.open_store("memory://twin", retry=None), {"a": SHA})))
        await twin.write("a", BAD)
        with pytest.raises(sl.IntegrityError):
            await twin.read("a", ByteRange(5, 9))

    play(store(), read)


def test_paths_of_digests_are_those_below_the_root():
    async def read():
        async with sl.open_store("memory://rooted/sub", digests={"a": SHA}) as below:
            await below.write("a", DATA)
            assert await below.read("a") == DATA
            await below.write("a", BAD)
            with pytest.raises(sl.IntegrityError, match="memory://rooted/sub/a"):
                await below.read("a")

    asyncio.run(read())
