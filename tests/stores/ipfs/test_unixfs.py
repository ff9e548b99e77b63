"""Decode untrusted CIDs, dag-pb nodes, UnixFS messages, CARs and IPNS records, to a valid value or an error."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers.ipns_records import Owner

from streamloader.errors import IntegrityError, LimitExceeded, NotSupported, ProtocolError, StoreError
from streamloader.stores.ipfs.car import CarReader
from streamloader.stores.ipfs.cid import DAG_PB, HASHES, IDENTITY, RAW, Cid, compute_digest, encode_varint, read_varint
from streamloader.stores.ipfs.ipns import parse_key, verify_record
from streamloader.stores.ipfs.sources import parse_http_url
from streamloader.stores.ipfs.store import IpfsStore
from streamloader.stores.ipfs.unixfs import UnixFsKind, decode_node, murmur3, shard_path
from streamloader.testing.faults.ipfs_dags import DagBuilder, encode_car, encode_node, encode_unixfs
from streamloader.testing.faults.ipfs_gateway import FaultyGateway

SOME = Cid(0, DAG_PB, 0x12, bytes(32))


def decoded(block, max_links=1000):
    return decode_node(SOME, block, max_links=max_links)


# --- CIDs ---


cids = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda digest: Cid(0, DAG_PB, 0x12, digest)),
    st.builds(Cid, st.just(1), st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.binary(max_size=300)),
)


@given(cids)
def test_cids_survive_a_round_trip(cid):
    assert Cid.decode(cid.encode()) == cid
    assert Cid.parse(str(cid)) == cid
    with pytest.raises(ProtocolError):
        Cid.decode(cid.encode() + b"\0")


@given(st.binary(max_size=200))
@example(b"\x01\x55\x00\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
def test_no_bytes_break_cids(data):
    with contextlib.suppress(ProtocolError):
        assert Cid.decode(data).encode() == data


@given(st.text(max_size=100))
@example("Q" + "1" * 45)
@example("z" * 3000)
@example("b" + "a" * 5000)
def test_no_text_breaks_cids(text):
    with contextlib.suppress(ProtocolError):
        assert Cid.parse(text).version in (0, 1)


def test_known_cids():
    data = b"hello"
    one = Cid(1, RAW, 0x12, hashlib.sha256(data).digest())
    assert str(one) == "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
    assert str(Cid(0, DAG_PB, 0x12, one.digest)) == "QmRN6wdp1S2A5EtjW9A3M1vKSBuQQGcgvuhoMUoEz4iiT5"
    assert Cid.parse(f"f{one.encode().hex()}") == Cid.parse(f"F{one.encode().hex().upper()}") == one
    assert one.matches(data)
    assert not one.matches(b"hellO")


@pytest.mark.parametrize("name", HASHES)
def test_hashes(name):
    code, size = HASHES[name]
    cid = Cid(1, RAW, code, compute_digest(code, size, b"data"))
    assert (len(cid.digest), cid.matches(b"data"), cid.matches(b"Data")) == (size, True, False)
    for short in (cid.digest[:-1], cid.digest[:16], b""):
        with pytest.raises(NotSupported):
            Cid(1, RAW, code, short).matches(b"data")


@given(st.integers(0, (1 << 64) - 1))
def test_varints_survive_a_round_trip(value):
    assert read_varint(encode_varint(value), 0) == (value, len(encode_varint(value)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x02", b"\xff" * 11])
def test_malformed_varints(data):
    with pytest.raises(ProtocolError):
        read_varint(data, 0)


# --- nodes ---


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_no_bytes_break_nodes(data):
    for block in (data, encode_node(data, []), encode_node(data, [(SOME, "x", 1)])):
        try:
            node = decoded(block)
            assert node.size == len(node.data) + sum(node.sizes)
        except (ProtocolError, LimitExceeded):
            pass


@settings(max_examples=300)
@given(st.data())
def test_no_change_of_a_good_node_breaks_anything(data):
    links = [(SOME, f"0{number}", 5) for number in range(3)]
    messages = [
        encode_unixfs(UnixFsKind.FILE, b"head", size=19, sizes=[5, 5, 5], modified=3.5),
        encode_unixfs(UnixFsKind.DIRECTORY),
        encode_unixfs(UnixFsKind.SHARD, b"\x07", fanout=256),
    ]
    block = bytearray(encode_node(data.draw(st.sampled_from(messages)), links))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(block) - 1))
        block[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        block = block or bytearray(b"\0")
    try:
        node = decoded(bytes(block))
        assert len(node.sizes) in (0, len(node.links))
    except (ProtocolError, LimitExceeded):
        pass


@given(st.binary(max_size=50), st.lists(st.integers(0, 1 << 60), max_size=20))
def test_files_survive_a_round_trip(data, sizes):
    total = len(data) + sum(sizes)
    node = decoded(
        encode_node(encode_unixfs(UnixFsKind.FILE, data, size=total, sizes=sizes), [(SOME, "", 1)] * len(sizes))
    )
    assert (node.kind, node.data, node.sizes, node.size) == (UnixFsKind.FILE, data, tuple(sizes), total)
    packed = b"\x22" + encode_varint(len(raw := b"".join(map(encode_varint, sizes)))) + raw
    again = decoded(
        encode_node(encode_unixfs(UnixFsKind.FILE, data, size=total) + packed, [(SOME, "", 1)] * len(sizes))
    )
    assert (again.sizes, again.size) == (node.sizes, node.size)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (b"", "no data"),
        (b"\x0a\x00", "type None"),
        (encode_node(b"\x08\x02", []) + b"\x0a\x00", "data twice"),
        (encode_node(b"", [(SOME, "", 1)]) + encode_node(b"", [(SOME, "", 1)])[:40], "both sides|truncated"),
        (b"\x12\x00" + encode_node(b"\x08\x02", []), "has no CID"),
        (encode_node(encode_unixfs(UnixFsKind.DIRECTORY), [(SOME, "a", 1), (SOME, "a", 1)]), "same name"),
        (encode_node(encode_unixfs(UnixFsKind.SHARD, b"\x02", fanout=100), [(SOME, "01x", 1)]), "fanout"),
        (encode_node(encode_unixfs(UnixFsKind.SHARD, b"\x02", fanout=1 << 40), [(SOME, "01x", 1)]), "fanout"),
        (encode_node(encode_unixfs(UnixFsKind.SHARD, b"\x02"), [(SOME, "01x", 1)]), "hashed by"),
        (encode_node(encode_unixfs(UnixFsKind.SHARD, b"\x02", fanout=256), [(SOME, "0ax", 1)]), "no slot"),
        (encode_node(encode_unixfs(UnixFsKind.SHARD, b"\x02", fanout=256), [(SOME, "02x", 1)]), "bitmap"),
        (
            encode_node(encode_unixfs(UnixFsKind.SHARD, b"\x06", fanout=256), [(SOME, "02", 1), (SOME, "01", 1)]),
            "in order",
        ),
        (b"\x0b\x0c", "wire type"),
        (b"\x1a\x00", "dag-pb does not have"),
    ],
)
def test_malformed_nodes(block, words):
    with pytest.raises(ProtocolError, match=words):
        decoded(block)


def test_a_node_with_too_many_links_is_refused():
    block = encode_node(encode_unixfs(UnixFsKind.DIRECTORY), [(SOME, str(number), 1) for number in range(1001)])
    with pytest.raises(LimitExceeded, match="1000 links"):
        decoded(block)
    assert len(decoded(block, 1001).links) == 1001


def test_murmur3():
    # Values of the reference implementation: the first half of MurmurHash3_x64_128 with seed 0.
    assert murmur3(b"") == 0
    assert murmur3(b"hello") == 0xCBD8A7B341BD9B02
    assert murmur3(b"The quick brown fox jumps over the lazy dog") == 0xE34BBC7BBC071B6C


def test_shards_are_no_deeper_than_a_hash():
    assert len(shard_path("x", 8, 256)) == 16
    with pytest.raises(ProtocolError, match="deeper"):
        shard_path("x", 9, 256)


# --- CARs ---


async def pieces(data, size):
    for at in range(0, len(data), size):
        yield data[at : at + size]


def blocks_of(data, size=7, most=1000):
    async def main():
        reader, found = CarReader(pieces(data, size), most, "a gateway"), []
        while (block := await reader.read_block()) is not None:
            found.append(block)
        return found

    return asyncio.run(main())


def some_blocks():
    dag = DagBuilder(chunk_size=100)
    return dag, dag.file(bytes(range(256)) * 2).cid


@given(st.integers(1, 3000))
@settings(max_examples=30)
def test_cars_come_in_pieces_of_any_size(size):
    dag, root = some_blocks()
    blocks = list(dag.blocks.items())
    assert blocks_of(encode_car(root, blocks), size) == blocks


def test_cars_that_are_cut_off_anywhere():
    dag, root = some_blocks()
    blocks = list(dag.blocks.items())
    whole = encode_car(root, blocks)
    ends = [len(encode_car(root, blocks[:count])) for count in range(len(blocks) + 1)]
    for end in range(len(whole)):
        if end in ends:
            assert blocks_of(whole[:end]) == blocks[: ends.index(end)]
        else:
            with pytest.raises(StoreError):
                blocks_of(whole[:end])


@given(st.binary(max_size=300))
@example(b"\xff" * 100)
@example(b"<!DOCTYPE html><html></html>")
@example(b"\x80\x80\x04" + b"\x81" * 65536)
def test_no_bytes_break_cars(data):
    _dag, root = some_blocks()
    for body in (data, encode_car(root, []) + data):
        with contextlib.suppress(StoreError):
            blocks_of(body)


def test_cars_with_large_blocks_are_refused():
    _, root = some_blocks()
    large = Cid(1, RAW, 0x12, hashlib.sha256(bytes(1001)).digest())
    with pytest.raises(LimitExceeded, match="1000"):
        blocks_of(encode_car(root, [(large, bytes(1001))]))
    with pytest.raises(LimitExceeded, match="1000"):
        blocks_of(encode_car(root, []) + encode_varint(1 << 40) + bytes(100))


# --- names ---


def owners():
    return [Owner(), Owner(rsa.generate_private_key(65537, 2048))]


def test_records_of_names():
    for owner in owners():
        key = parse_key(str(owner.cid))
        assert verify_record(key, owner.record("/ipfs/x")) == "/ipfs/x"
        with pytest.raises(IntegrityError, match="was valid until"):
            verify_record(key, owner.record("/ipfs/x", "2020-01-01T00:00:00Z"))
        with pytest.raises(ProtocolError):
            verify_record(key, owner.record("/ipfs/x", "tomorrow"))
        with pytest.raises(IntegrityError):
            verify_record(key, Owner().record("/ipfs/x"))


# Made by the package ipns 5.0.2 of js-ipfs; valid until 2076.
JS_IPFS_NAME = "12D3KooWBPQQozguqUmKifE4QJ15qb2pXcdxGCGTnUdqtXRj6AtV"
JS_IPFS_RECORD = bytes.fromhex(
    "0a342f697066732f516d524e36776470315332413545746a573941334d31764b53427551514763677675686f4d556f457a34"
    "696954351240b295a0bd6b075f425d8194f0d12dda33a27827f786b319c0e06843fc063493ee31465647657eddc561922967"
    "93496205e44fbaefd104a1d52cc66e8b5a24d1001800221e323037362d31312d30385431303a34313a30302e373833303030"
    "3030305a2801308080bca1fea38c98024240adf8e7e86700e097b5ef2fad616be374ff4a1e09f454adf2c2042068230bfc6e"
    "b590ce603ebf4beff104aebbf9713c529c9ba076e3269a64c0c9e4c229be31004a8b01a56354544c1b0230311fe42f000065"
    "56616c756558342f697066732f516d524e36776470315332413545746a573941334d31764b53427551514763677675686f4d"
    "556f457a34696954356853657175656e6365016856616c6964697479581e323037362d31312d30385431303a34313a30302e"
    "3738333030303030305a6c56616c69646974795479706500"
)


def test_a_record_that_js_ipfs_made():
    target = "/ipfs/QmRN6wdp1S2A5EtjW9A3M1vKSBuQQGcgvuhoMUoEz4iiT5"
    assert verify_record(parse_key(JS_IPFS_NAME), JS_IPFS_RECORD, datetime(2026, 1, 1, tzinfo=UTC)) == target
    with pytest.raises(IntegrityError):
        verify_record(parse_key(JS_IPFS_NAME), JS_IPFS_RECORD, datetime(2080, 1, 1, tzinfo=UTC))


def test_a_changed_record_is_refused():
    for owner in owners():
        record = owner.record("/ipfs/x")
        for at in range(len(record)):
            changed = record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]
            with contextlib.suppress(StoreError):
                assert verify_record(owner.cid, changed) == "/ipfs/x"  # the changed byte is not part of the signed data


def test_the_ways_to_write_a_name():
    owner = Owner()
    assert parse_key(str(owner.cid)) == owner.cid
    assert parse_key("12D3KooWDLhnTWGjy1bWE7EuHdSiw8pLBZqN1DQUo4GRtmkpyrjB").hash_code == IDENTITY
    assert parse_key("QmRN6wdp1S2A5EtjW9A3M1vKSBuQQGcgvuhoMUoEz4iiT5").version == 1
    assert parse_key("docs.ipfs.tech") is None


def test_names_behind_gateways():
    owner, other = Owner(), Owner()
    dag = DagBuilder()
    root = dag.tree({"a/b": b"named"})[""].cid
    records = {
        str(owner.cid): owner.record(f"/ipns/{other.cid}/a"),
        str(other.cid): other.record(f"/ipfs/{root}"),
    }
    forged = {str(owner.cid): other.record(f"/ipfs/{root}")}

    async def read(records, name=str(owner.cid)):
        async with (
            FaultyGateway(dag.blocks, records=records) as gateway,
            IpfsStore("ipns://", gateways=gateway.url) as store,
        ):
            info = await store.head(f"{name}/b")
            return info.version, await store.read(f"{name}/b")

    assert asyncio.run(read(records)) == (str(dag.file(b"named").cid), b"named")
    with pytest.raises(IntegrityError):
        asyncio.run(read(forged))
    with pytest.raises(ProtocolError, match="more than 8"):
        asyncio.run(read({str(owner.cid): owner.record(f"/ipns/{owner.cid}")}))
    with pytest.raises(NotSupported, match="DNS name"):
        asyncio.run(read(records, "docs.ipfs.tech"))


# --- addresses of nodes and gateways ---


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001"),
        ("/ip6/::1/tcp/5001", "http://[::1]:5001"),
        ("/dns4/node.example/tcp/443/https", "https://node.example:443"),
        ("/dns/node.example/https", "https://node.example"),
        ("/dns/node.example/tcp/5001/http", "http://node.example:5001"),
        ("/dns6/node.example/tcp/1/tls/http", "https://node.example:1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://host/prefix", "https://host/prefix"),
    ],
)
def test_addresses_of_servers(address, url):
    assert parse_http_url(address) == url
