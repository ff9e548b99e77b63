"""Addresses of objects on IPFS, and the lines of metadata.txt."""

from __future__ import annotations

import pickle

import pytest
from canaries import canary
from hypothesis import given
from hypothesis import strategies as st

from streamloader.datasets.ipfs.metadata_file import parse_metadata
from streamloader.datasets.ipfs.objects import (
    IpfsLocation,
    IPFSObject,
    RemoteFileType,
    as_objects,
    choose_options,
    digest_objects,
    parse_ipfs_url,
)
from streamloader.errors import ConfigError, CorruptShard

CID = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
OLD_CID = "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n"


@pytest.mark.parametrize(
    ("url", "scheme", "path", "gateway"),
    [
        (CID, "ipfs", CID, None),
        (f"{OLD_CID}/a b/c", "ipfs", f"{OLD_CID}/a b/c", None),
        (f"ipfs://{CID}", "ipfs", CID, None),
        (f"IPFS://{CID}/", "ipfs", CID, None),
        (f"ipfs://{CID}/a?b#c/%20", "ipfs", f"{CID}/a?b#c/%20", None),
        (f"/ipfs/{CID}/x", "ipfs", f"{CID}/x", None),
        ("ipns://example.org/x", "ipns", "example.org/x", None),
        (f"https://dweb.example/ipfs/{CID}/a%20b/c", "ipfs", f"{CID}/a b/c", "https://dweb.example"),
        (f"http://127.0.0.1:8080/ipfs/{CID}?filename=x.zip", "ipfs", CID, "http://127.0.0.1:8080"),
        (f"https://host/proxy/ipfs/{CID}/ipfs/x", "ipfs", f"{CID}/ipfs/x", "https://host/proxy"),
        (f"https://{CID}.ipfs.dweb.example/a%2Fb/", "ipfs", f"{CID}/a/b", "https://dweb.example"),
        (f"https://{CID}.ipfs.localhost:8080", "ipfs", CID, "https://localhost:8080"),
        ("https://host/ipns/k51/x", "ipns", "k51/x", "https://host"),
    ],
)
def test_addresses_name_a_path_and_a_gateway(url, scheme, path, gateway):
    assert parse_ipfs_url(url) == IpfsLocation(scheme, path, gateway)
    again = pickle.loads(pickle.dumps(IPFSObject(url, RemoteFileType.TAR)))
    assert (again, again.location) == (IPFSObject(url, RemoteFileType.TAR), IpfsLocation(scheme, path, gateway))


@pytest.mark.parametrize(
    "url",
    [
        "", "ipfs://", "not-a-cid", f"ipfs://{CID}x", f"ipfs://{CID}/../x", f"s3://bucket/{CID}",
        "https://host/file.zip", f"https://host/ipfs/{CID}/a/%2e%2e/b", f"https://host:x/ipfs/{CID}",
        f"https://host/ipfs/{CID}?token=x", f"ipfs://{CID}/a\0b", f"ipfs:///{CID}", f"ipfs://ipfs://{CID}", b"x", None,
    ],
)  # fmt: skip
def test_other_addresses_are_refused(url):
    with pytest.raises(ConfigError):
        parse_ipfs_url(url)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_error(text):
    for url in (text, f"ipfs://{CID}/{text}", f"https://host/ipfs/{CID}/{text}", f"https://{text}.ipfs.host/"):
        try:
            location = parse_ipfs_url(url)
        except ConfigError:
            continue
        assert ".." not in location.path.split("/")
        assert location.scheme in ("ipfs", "ipns")


def test_passwords_of_gateways_are_kept_and_not_shown():
    password = canary("http-password")
    each = IPFSObject(f"https://me:{password}@host/ipfs/{CID}", RemoteFileType.ZIP)
    assert each.location.gateway == f"https://me:{password}@host"
    assert password not in repr(each)
    below = IPFSObject(f"https://me:{password}@{CID}.ipfs.host:81/a")
    assert below.location.gateway == f"https://me:{password}@host:81"


def test_the_node_comes_before_the_gateway_of_the_address():
    gateway = parse_ipfs_url(f"https://host/ipfs/{CID}")
    assert choose_options(gateway, None, None) == {"gateways": ["https://host"]}
    assert choose_options(gateway, "/ip4/127.0.0.1/tcp/5001", {"race": 2}) == {
        "rpc": "/ip4/127.0.0.1/tcp/5001", "gateways": ["https://host"], "race": 2,
    }  # fmt: skip
    assert choose_options(parse_ipfs_url(CID), None, None) == {}


def test_types_are_those_of_the_enumeration():
    assert [kind.name for kind in RemoteFileType] == ["PLAIN", "PLAIN_STREAM", "FOLDER", "TAR", "ZIP"]
    assert IPFSObject(CID, "zip").file_type is RemoteFileType.ZIP
    with pytest.raises(ConfigError, match="PLAIN_STREAM"):
        IPFSObject(CID, "rar")
    with pytest.raises(ConfigError, match="at least one"):
        as_objects([])
    with pytest.raises(ConfigError, match="IPFSObject"):
        as_objects([CID])


def test_the_digest_of_objects_ignores_gateways_only():
    digest = digest_objects([IPFSObject(CID)])
    assert digest_objects([IPFSObject(f"https://host/ipfs/{CID}")]) == digest
    for other in ([IPFSObject(OLD_CID)], [IPFSObject(CID, RemoteFileType.TAR)], [IPFSObject(CID)] * 2):
        assert digest_objects(other) != digest


def names(data):
    folder = parse_metadata(data, "ipfs://x/metadata.txt")
    return list(folder.names), [(error.details["line"], error.offset) for error in folder.bad_lines]


def test_lines_are_paths():
    data = "\ufeffa/b.png\r\n\r\n./c d.txt\nmetadata.txt\nä/ö.bin\na/b.png\nlast".encode()
    assert names(data) == (["a/b.png", "c d.txt", "ä/ö.bin", "last"], [])
    assert names(b"") == ([], [])


@pytest.mark.parametrize(
    "line",
    [
        b"../x", b"a/../../x", b"/etc/passwd", b"a//b", b".", b"..", b"a/./b", b"a\0b", b"a\x1b[31mb", b"\xff\xfe",
        b"C:/x", b"c:\\x", b"\\\\host\\share", b"..\\x", b"a/\n"[:2], b"x" * 5000, b"a\rb", b"./../x", b"./",
    ],
)  # fmt: skip
def test_hostile_lines_are_errors_that_name_line_and_offset(line):
    if line == b"./":
        assert names(b"good\n./\nbest") == (["good", "best"], [])
        return
    assert names(b"good\n" + line + b"\nbest") == (["good", "best"], [(2, 5)])
    error = parse_metadata(line, "ipfs://x/metadata.txt").bad_lines[0]
    assert isinstance(error, CorruptShard)
    assert error.message.isprintable()
    assert error.message.startswith("ipfs://x/metadata.txt, line 1: ")


@given(st.binary(max_size=200))
def test_any_bytes_name_only_files_below_the_folder(data):
    found = list(parse_metadata(data, "ipfs://x").names)
    assert len(found) == len(set(found))
    for name in found:
        assert not name.startswith("/")
        assert not {"", ".", ".."} & set(name.split("/"))
        assert name.isascii() or name.encode()


@pytest.mark.slow
def test_a_million_lines():
    data = b"\n".join(b"images/%07d.png" % number for number in range(1_000_000))
    folder = parse_metadata(data, "ipfs://x")
    assert len(folder.names) == 1_000_000
    assert folder.names[999_999] == "images/0999999.png"
