"""Expanding addresses on real servers: as in a local folder, and all results can be read."""

from __future__ import annotations

import itertools
import os

import pytest
from canaries import canary
from servers.gateway_thread import run_gateway

from streamloader.errors import StreamNotFound
from streamloader.redaction import redact_address
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.expand import expand_store_addresses
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.search import UnreadableReport
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway

TREE = (
    "10.txt",
    "9.txt",
    "b.TXT",
    "a b.txt",
    "größe.txt",
    ".hidden.txt",
    ".git/d.txt",
    "deep/er/c.txt",
    "deep/er/.h/x.txt",
    "deep/e.txt",
    "deep-er/f.txt",
    "shard-000.tar",
    "shard-001.tar",
    "shard-010.tar",
    "[x].txt",
    "100%.txt",
)
PATTERNS = (
    "9.txt",
    "",
    "deep",
    "deep/",
    "*.txt",
    "**",
    "**/*.txt",
    "**/er/*",
    "deep*/*.txt",
    "*/er/c.txt",
    ".git/*",
    "deep/**/c.*",
    "shard-{000..1}.tar",
    "shard-0{1,0}?.tar",
    "{deep,9.txt}",
    "[x].txt",
    "[0-9]*",
    "a b.txt",
    "100%.txt",
    "gr*e.txt",
    "no.txt",
    "no/*.txt",
    "deep/no/",
    "shard-{000..2}.tar",
)
_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path):
    """The tree as local files."""
    for name in TREE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def on_s3(seaweed_server):
    """The tree in a directory of a bucket."""
    place = f"s3://{seaweed_server.bucket('find')}/tree-{next(_numbers)}"
    store, path = open_shared_store(place, seaweed_server.options())
    with store:
        for name in TREE:
            store.write(f"{path}/{name}", name.encode())
    return place, seaweed_server.options()


@pytest.fixture
def over_ssh(ssh_server):
    """The tree in a directory of another machine."""
    place = ssh_server.data / f"find-{next(_numbers)}"
    for name in TREE:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return ssh_server.address(place), ssh_server.options()


@pytest.fixture
def on_ipfs():
    """The tree behind a trustless gateway."""
    dag = DagBuilder(chunk_size=5)
    root = dag.tree({name: name.encode() for name in TREE})[""].cid
    with run_gateway(FaultyGateway(dag.blocks)) as gateway:
        yield f"ipfs://{root}", {"gateways": gateway.url, "token": canary("ipfs-rpc-token")}


def test_s3_is_searched_like_a_folder(folder, on_s3):
    check(folder, *on_s3)


def test_another_machine_is_searched_like_a_folder(folder, over_ssh):
    check(folder, *over_ssh)


def test_ipfs_is_searched_like_a_folder(folder, on_ipfs):
    check(folder, *on_ipfs)


def check(folder, url, options):
    for pattern in PATTERNS:
        try:
            local = [os.path.relpath(one.address, folder) for one in expand_addresses(f"{folder}/{pattern}")]
        except StreamNotFound:
            with pytest.raises(StreamNotFound):
                expand_store_addresses([f"{url}/{pattern}"], None, options)
            continue
        found = expand_store_addresses([f"{url}/{pattern}"], None, options)
        assert [one.address.removeprefix(f"{url}/") for one in found] == local, pattern
        for one, name in zip(found, local, strict=True):
            store, path = open_shared_store(one.address, options)
            with store:
                assert one.info == store.head(path), "a listing tells what looking at the object does"
                assert store.read(path, version=one.info.version) == name.encode()


def test_one_list_over_several_servers(folder, on_s3, over_ssh, on_ipfs):
    """Each store gets its own options by its own call; a list of them keeps its order."""
    for url, options in (on_s3, over_ssh, on_ipfs):
        mixed = [folder / "9.txt", f"{url}/shard-*.tar", folder / "10.txt", f"{url}/{{10,9}}.txt"]
        assert [one.address for one in expand_addresses(mixed, None, options)] == [
            f"{folder}/9.txt",
            *(f"{url}/shard-{number}.tar" for number in ("000", "001", "010")),
            f"{folder}/10.txt",
            f"{url}/10.txt",
            f"{url}/9.txt",
        ]


@pytest.mark.parametrize("store", ["on_s3", "over_ssh", "on_ipfs"])
def test_named_objects_that_are_missing_are_left_out_or_listed(folder, store, request):
    url, options = request.getfixturevalue(store)
    named = [f"{url}/9.txt", f"{url}/gone.txt", f"{url}/no/", f"{url}/shard-{{000..2}}.tar"]
    missing = [f"{url}/gone.txt", f"{url}/no/", f"{url}/shard-002.tar"]
    report = UnreadableReport("skip")
    found = expand_addresses(named, None, options, unreadable=report)
    assert [one.address for one in found] == [f"{url}/9.txt", f"{url}/shard-000.tar", f"{url}/shard-001.tar"]
    shown = [redact_address(address).rstrip("/") for address in missing]
    assert [name.rstrip("/") for name in sorted(report.files)] == shown
    for unreadable in (None, "raise"):
        with pytest.raises(StreamNotFound, match="3 files or directories cannot be used") as raised:
            expand_addresses(named, None, options, unreadable=unreadable)
        assert [name.rstrip("/") for name, _, _ in raised.value.details["failed"]] == shown
    with pytest.raises(StreamNotFound, match="none of the 3 files or directories can be used"):
        expand_addresses(missing, None, options, unreadable="skip")
    with pytest.raises(StreamNotFound, match="pattern"):
        expand_addresses([*named, f"{url}/no*.txt"], None, options, unreadable="skip")
