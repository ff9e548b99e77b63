"""Other spellings of addresses work, or are refused with one sentence that tells what to write."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import libipld
import pytest
from servers.gateway_thread import run_gateway

import streamloader as sl
from streamloader.errors import CatalogNotFound, ConfigError, NotFound, NotSupported, ProtocolError, StreamNotFound
from streamloader.stores.addresses import as_addresses, expand_addresses
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.ipfs.cid import DAG_PB, Cid
from streamloader.stores.registry import open_store, scheme_of, select_options, split_address
from streamloader.stores.spellings import normalize_address
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway

CID = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKMNNN"
_numbers = itertools.count()


def addresses_of(address, options=None):
    return [file.address for file in expand_addresses(address, None, options)]


@pytest.mark.parametrize(
    ("address", "split"),
    [
        ("gcs://b/a/k", ("gs://b", "a/k")),
        ("GCS://b/k", ("gs://b", "k")),
        ("s3a://b/k", ("s3://b", "k")),
        ("s3n://b", ("s3://b", "")),
        ("abfs://c/k", ("az://c", "k")),
        ("abfss://c/k", ("az://c", "k")),
        ("azure://c/k", ("az://c", "k")),
        ("abfss://c@mine.dfs.core.windows.net/a/k", ("az://c", "a/k")),
        ("wasbs://c@mine.blob.core.windows.net", ("az://c", "")),
        ("s3:/b/k", ("s3://b", "k")),
        ("s3a:/b/k", ("s3://b", "k")),
        ("https:/host/k?x=1", ("https://host", "k?x=1")),
        ("file:/p/a b", ("file://", "p/a b")),
        ("file:/p/a%20b", ("file://", "p/a b")),
        (f"/ipfs/{CID}/a/b", ("ipfs://", f"{CID}/a/b")),
        (f"dweb:/ipfs/{CID}", ("ipfs://", CID)),
        (f"ipfs:/{CID}", ("ipfs://", CID)),
        (f"ipfs://ipfs/{CID}/a", ("ipfs://", f"{CID}/a")),
        (f"ipfs://{CID}?filename=a.mp4", ("ipfs://", CID)),
        (f"ipfs://{CID}/a?filename=a.mp4&download=true", ("ipfs://", f"{CID}/a")),
        (f"ipfs://{CID}/what?.mp4", ("ipfs://", f"{CID}/what?.mp4")),
        ("/ipns/docs.example.org/a", ("ipns://", "docs.example.org/a")),
        (f"ipfs:///{CID}", ("ipfs://", CID)),
        (f"ipfs:////ipfs/{CID}/a", ("ipfs://", f"{CID}/a")),
        (f"ipfs://{CID}#t=3", ("ipfs://", CID)),
        (f"ipfs://{CID}?dag-scope=all&format=car", ("ipfs://", CID)),
        (f"ipfs://{CID}/a#b", ("ipfs://", f"{CID}/a#b")),
        (f"dweb://ipfs/{CID}/a", ("ipfs://", f"{CID}/a")),
        (f"dweb:///ipfs/{CID}/a", ("ipfs://", f"{CID}/a")),
        (f"dweb:ipfs/{CID}", ("ipfs://", CID)),
        (f"web+ipfs://{CID}/a", ("ipfs://", f"{CID}/a")),
        (f"web+dweb:/ipfs/{CID}/a", ("ipfs://", f"{CID}/a")),
        ("abfss://mine.dfs.core.windows.net/c/k", ("az://c", "k")),
        ("az://mine.blob.core.windows.net/c/a/k", ("az://c", "a/k")),
        ("az://c@mine.blob.core.windows.net/k", ("az://c", "k")),
        ("dbfs:/mnt/k", ("dbfs://", "mnt/k")),
        ("memory:/name/k", ("memory://name", "k")),
        ("oss:/b/k", ("oss://b", "k")),
        ("zip://a/*.mp4::s3a://b/x.zip", ("s3://b/x.zip!", "a/*.mp4")),
        ("tar://::https://h/x.tar", ("https://h/x.tar!", "")),
        ("zip://b.txt::/p/x.zip", ("/p/x.zip!", "b.txt")),
        ("zip://b.txt::tar://x.zip::file:///p/x.tar", ("/p/x.tar!/x.zip!", "b.txt")),
    ],
)  # fmt: skip
def test_other_spellings_are_translated(address, split, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    if "::tar" in address:  # a container in a container of this machine
        assert split_address(address)[1] == split[1]
    else:
        assert split_address(address) == split
    assert as_addresses(Path("s3://b/k")) == ["s3://b/k"]  # which pathlib wrote with one slash


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("abfss://c@other.dfs.core.windows.net/k", "write az://c/k, and pass account_name='other'"),
        ("simplecache::s3://b/k", "write s3://b/k, and pass cache_dir="),
        ("filecache::https://h/k.zip", "write https://h/k.zip, and pass cache_dir="),
        ("zip://a.mp4::https://h/get", "names end in .pack, .tar"),
        ("dir://a::s3://b/k", "s3://bucket/set.zip!/a.mp4"),
        ("async_wrapper::s3://b/k", "is a chain of fsspec"),
        ("tar://*::simplecache::s3://b/k.tar", "write s3://b/k.tar!/*, and pass cache_dir="),
        ("simplecache::zip://*::s3://b/k.zip", "write s3://b/k.zip!/*, and pass cache_dir="),
        ("zip://a.zip", "names no file that contains the members"),
        ("s3://b.s3.amazonaws.com/k", "a server where the bucket belongs: write s3://b/k"),
        ("s3://s3.us-west-2.amazonaws.com/b/k", "a server where the bucket belongs: write s3://b/k"),
        ("gs://storage.googleapis.com/b/k", "a server where the bucket belongs: write gs://b/k"),
        ("adl://store.azuredatalakestore.net/k", "no longer exists: write az://container/path"),
        ("abfss://other.dfs.core.windows.net/c/k", "write az://c/k, and pass account_name='other'"),
        ("ssh://::1/k", "an IPv6 address needs brackets: write ssh://[::1]/k"),
        ("http://fe80::1%eth0/k", "an IPv6 address needs brackets: write http://[fe80::1%eth0]/k"),
        ("file://~/k", "write ~/k without file://"),
        ("file://./k", "write ./k without file://"),
        ("file://k", "write k without file://"),
        ("file://C:/k", "which WSL has as /mnt/c/k"),
        ("file://host/k", "or ssh://host/path for one on that machine"),
        ("scp://host/k", "no store serves scp://: write ssh://host/path"),
        ("sshfs://host/k", "no store serves sshfs://: write ssh://host/path"),
        ("r2://b/k", "no store serves r2://: write s3://bucket/key, and pass"),
        ("minio://b/k", "no store serves minio://: write s3://bucket/key, and pass"),
        ("davs://h/k", "no store serves davs://: write https://host/path"),
        ("ftps://h/k", "write ftp://host/path, and pass tls=True"),
        ("huggingface://o/n", "write hf://datasets/owner/name/path"),
        ("rtsp://h/k", "record it to a file first"),
        ("htps://h/k", "no store serves htps://: write https:// if that is meant"),
        pytest.param(
            "dbfs:/mnt/k",
            "it needs 'instance' and 'token' in storage_options",
            marks=pytest.mark.skipif(not find_spec("requests"), reason="fsspec needs requests for it"),
        ),
        ("s3://$NOT_SET/k", "the environment variable NOT_SET is not set"),
        ("ssh://me@${NOT_SET}/k", "the environment variable NOT_SET is not set"),
    ],
)
def test_spellings_without_a_counterpart_tell_what_to_write(address, words, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError) as caught:
        expand_addresses(address)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("C:\\data\\x.mp4", "which WSL has as /mnt/c/data/x.mp4"),
        ("d:/data/*.mp4", "which WSL has as /mnt/d/data/*.mp4"),
        ("\\\\server\\share\\x", "write smb://server/share/x"),
        ("me@host:data/x", "write ssh://host/~/data/x, with me and an @ before the host"),
        ("me@host:~/x/*.mp4", "write ssh://host/~/x/*.mp4, with me and an @ before the host"),
        ("host:/data/x", "write ssh://host/data/x"),
        ("me@[::1]:/x", "write ssh://[::1]/x, with me and an @ before the host"),
        ("$NOT_SET/x", "the environment variable NOT_SET is not set"),
        ("${NOT_SET}/*.mp4", "the environment variable NOT_SET is not set"),
        ("$DATA/none", "that is /nowhere/none"),
        (f"{CID}/x.mp4", f"write ipfs://{CID}/x.mp4"),
        ("file:none", "none or the path alone"),
        ("/nowhere/a%20b", "write '/nowhere/a b' if %XX"),
        ("s3:b/k", "write s3://b/k"),
        ("s3//b/k", "write s3://b/k"),
        ("s3;//b/k", "write s3://b/k"),
        ("s3 ://b/k", "write s3://b/k"),
        ("s3:\\\\b\\k", "write s3://b/k"),
        ("https:host/k", "write https://host/k"),
        ("https:\\\\host\\k", "write https://host/k"),
        (f"ipfs:{CID}", f"write ipfs://{CID}"),
        ("ipns:docs.example.org", "write ipns://docs.example.org"),
        ("memory:k", "write memory://k"),
        ("ssh:host/k", "write ssh://host/k"),
        ("sftp:host:/k", "write ssh://host/k"),
        ("scp:host:/k", "write ssh://host/k"),
        ("u@h:p", "write ssh://h/~/p, with u and an @ before the host"),
        ("me@host:22:/p", "write ssh://host:22/p, with me and an @"),
        ("[::1]:/p", "write ssh://[::1]/p"),
        (" s3://b/k", "write s3://b/k alone"),
        ("'s3://b/k'", "write s3://b/k alone"),
        ("<https://host/k>", "write https://host/k alone"),
        ("\u200bs3://b/k", "write s3://b/k alone"),
        ("url:http://host/k", "write http://host/k alone"),
        ("s3\uff1a//b/k", "write 's3://b/k', without"),
        ("'/nowhere/k'", "write '/nowhere/k', without"),
        ("/nowhere/k\n", "write '/nowhere/k', without"),
        ("/nowhere/\u200bk", "write '/nowhere/k', without"),
        ("%DATA%/k", "write $DATA/k"),
        ("C:k", "relative to the current folder of drive C"),
        ("file:///C:/k", "which WSL has as /mnt/c/k"),
        ("file:\\\\server\\k", "write smb://server/k"),
        ("file:~/k", "write ~/k alone"),
        ("~no_such_user/k", "there is no user 'no_such_user'"),
        ("//server/share/k", "for a share of Windows smb://server/share/k"),
        ("www.example.org/k", "write https://www.example.org/k"),
        ("arn:aws:s3:::b/k", "write s3://b/k"),
        ("some_scheme://k", "no store serves some_scheme://"),
        (f"ipfs/{CID}/k", f"write ipfs://{CID}/k"),
        ("f01701220" + "ab" * 32, "it begins with a CID: write ipfs://f0170"),
        ("k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8", "write ipns://k51"),
        (CID.lower(), "as it was published"),
        ("/nowhere/a+b.mp4", "write '/nowhere/a b.mp4' if + stands for a space"),
        ("memory://spellings/a%20b", "write 'a b' if %XX"),
        ("memory://spellings/a ", "write 'a', without"),
        ("memory://spellings/*/a%20b*", "write '*/a b*' if %XX"),
    ],
)
def test_what_is_not_found_tells_what_it_may_have_been(address, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "/nowhere")
    with pytest.raises(StreamNotFound) as caught:
        expand_addresses(address)
    assert words in caught.value.message


def test_files_of_such_names_are_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere")
    names = ["C:\\x.txt", "me@host:x.txt", "$HOME.txt", "a%20b.txt", "zip:", "a::b.txt", "s3:", "file:", "~x.txt"]
    for name in names:
        (tmp_path / name).write_text(name) if name.endswith(".txt") else (tmp_path / name).mkdir()
    (tmp_path / "s3:/b").write_text("s3")
    (tmp_path / "$HOME").mkdir()
    (tmp_path / "$HOME/k.txt").write_text("k")
    (tmp_path / "zip::s3:").mkdir()
    for name in (*(name for name in names if name.endswith(".txt")), "s3:/b", "$HOME/k.txt"):
        assert addresses_of(name) == [name]
        assert split_address(name) == ("file://", f"{tmp_path}/{name}"[1:])


def test_paths_expand_the_home_directory_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").write_text("a")
    for address in ("~/sub/a.txt", "$DATA/sub/a.txt", "${DATA}/sub", "$DATA/*/a.txt", "$DATA/**/*.txt"):
        assert addresses_of(address) == [f"{tmp_path}/sub/a.txt"]
    assert split_address("$DATA/x") == ("file://", f"{tmp_path}/x"[1:])
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        open_store("$NOT_SET/x")


@pytest.mark.parametrize("folder", ["~/kept", "$KEPT/kept", "${KEPT}/kept"])
def test_options_that_are_paths_expand_them_too(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KEPT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store, path = open_shared_store("memory://kept/a", {"cache_dir": folder})
    with store:
        store.write(path, b"bytes")
        assert store.read(path) == b"bytes"
    assert (tmp_path / "kept").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    sl.Archive.create(f"{folder}-archive").close()
    assert sorted(os.listdir(tmp_path)) == ["kept", "kept-archive"]


def test_a_cache_in_an_unset_variable_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        open_store("memory://kept", cache_dir="$NOT_SET/kept")
    assert os.listdir(tmp_path) == []


def test_aliases_reach_real_servers_with_the_options_of_their_store(seaweed_server, tmp_path):
    bucket = seaweed_server.bucket("find")
    place = f"{bucket}/spelled-{next(_numbers)}"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("in/a.txt", "in the zip")
    store, path = open_shared_store(f"s3://{place}", seaweed_server.options())
    with store:
        store.write(f"{path}/a.txt", b"a")
        store.write(f"{path}/x.zip", (tmp_path / "x.zip").read_bytes())
    for scheme in ("s3a:/", "s3n:/", "s3:", "s3a:"):
        options = {"s3a://": seaweed_server.options()}
        chosen = select_options(f"{scheme}/{place}/a.txt", options)
        assert chosen == seaweed_server.options()
        assert addresses_of(f"{scheme}/{place}/*.txt", chosen) == [f"s3://{place}/a.txt"]
    found = addresses_of(f"zip://**/*.txt::s3a://{place}/x.zip", seaweed_server.options())
    assert found == [f"s3://{place}/x.zip!/in/a.txt"]
    assert scheme_of("s3a://b") == "s3"


def test_ipfs_addresses_of_browsers(tmp_path):
    dag = DagBuilder(chunk_size=5)
    root = dag.tree({"a b.txt": b"text"})[""].cid
    with run_gateway(FaultyGateway(dag.blocks)) as gateway:
        options = {"gateways": gateway.url}
        for address in (f"ipfs://{root}/a b.txt?filename=x.txt", f"/ipfs/{root}/a b.txt", f"ipfs:/{root}/*.txt"):
            assert addresses_of(address, options) == [f"ipfs://{root}/a b.txt"]
        with pytest.raises(StreamNotFound, match=r"write .*a b.txt' if %XX"):
            expand_addresses(f"ipfs://{root}/a%20b.txt", None, options)
        for changed in (CID.lower(), CID.upper()):
            with pytest.raises((ProtocolError, NotFound), match="must keep their case"):
                expand_addresses(f"ipfs://{changed}", None, options)


@pytest.mark.parametrize("address", ["data:text/plain,x", "magnet:?xt=1", "h::module/x", "/nowhere/caf%E9", "c++/x"])
def test_what_means_nothing_gets_no_wrong_advice(address):
    with pytest.raises(StreamNotFound) as caught:
        expand_addresses(address)
    assert "write" not in caught.value.message


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"ipfs://{CID}.", "write it without the '.'"),
        ("ipfs://docs.example.org/a", "write ipns://docs.example.org"),
        ("ipfs://zdj7wbtaiuuicqzymzx9yufmbvf7kuzrc3xjljdcyasqbtkkz", "must keep their case"),
        (f"ipns://{CID.lower()}", "must keep their case"),
        ("ipfs://k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8/a", "write ipns://k51"),
        ("ipfs://Q\uff4d/a", "characters that no CID has"),
    ],
)
def test_what_is_no_cid_tells_what_it_may_be(address, words):
    with pytest.raises((NotSupported, ProtocolError)) as caught:
        expand_addresses(address, None, {"gateways": "http://127.0.0.1:9", "retry": None})
    assert words in caught.value.message


def test_schemes_in_capitals_have_the_options_of_their_store():
    assert select_options("S3://b/k", {"s3://b": {"region": "r"}}) == {"region": "r"}
    assert select_options("s3://b/k", {"S3://b": {"region": "r"}}) == {"region": "r"}
    assert select_options("s3://B/k", {"s3://b": {"region": "r"}}) == {}


@pytest.mark.parametrize("address", ["http://[::1]:8080/a.mp4", "ssh://me@[fe80::1]/a", "https://[2001:db8::1]"])
def test_hosts_of_ipv6_are_no_chains(address):
    assert normalize_address(address) == address
    assert normalize_address(f"zip://a.txt::{address}/a.zip") == f"{address}/a.zip!/a.txt"


@pytest.mark.parametrize("base", [*"bBfFkKzZuvVh", ""])
def test_cids_of_all_bases_are_read(base):
    dag = DagBuilder(chunk_size=5)
    parsed = Cid.parse(str(dag.tree({"a.txt": b"text"})[""].cid))
    cid = Cid(1 if base else 0, DAG_PB, parsed.hash_code, parsed.digest)
    text = libipld.encode_multibase(base, cid.encode()) if base else str(cid)
    with run_gateway(FaultyGateway(dag.blocks)) as gateway:
        assert addresses_of(f"ipfs://{text}/*.txt", {"gateways": gateway.url}) == [f"ipfs://{text}/a.txt"]


def test_containers_are_opened_by_all_spellings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("in/a.txt", "in the zip")

    async def list_members(address):
        async with sl.open_container(address) as container:
            return [info.path async for info in container.list()]

    for address in ("x.zip", "x.zip!", "$DATA/x.zip", f"file:{tmp_path}/x.zip", "file://$DATA/x.zip", "zip://::x.zip"):
        assert asyncio.run(list_members(address)) == ["in/a.txt"]


def test_archives_tell_what_their_address_may_have_been(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address, words in (("s3:b/k", "write s3://b/k"), ("C:\\k", "/mnt/c/k"), ("me@host:k", "write ssh://host/~/k")):
        with pytest.raises(CatalogNotFound, match=re.escape(words)):
            sl.open_archive(address)
