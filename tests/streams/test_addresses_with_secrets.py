"""Streams whose addresses contain secrets: their keys show none, and states still tell the streams apart."""

from __future__ import annotations

import pickle

import pytest
from range_server import served

import streamloader as sl
from streamloader.stream_table import StreamTable, digest_streams
from streamloader.testing import describe_streams, read_stream

TEXT = b"some text of some length"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(TEXT)
    with served(folder) as url:
        yield url


def index_of(*addresses):
    return describe_streams(sl.TextStreams(list(addresses)))


def test_keys_show_no_query_values_but_those_of_the_allow_list(url):
    login = url.replace("://", "://user:Zeb'ra@Yonder@")
    dataset = sl.TextStreams(
        [
            f"{url}/a.txt?id=17",
            f"{url}/a.txt?name=Zebra",
            f"{url}/a.txt?name=Yonder",
            f"{url}/a.txt?Zebra",
            f"{login}/b.txt",
        ]
    )
    infos = list(describe_streams(dataset))
    assert [info.key for info in infos] == [
        f"{url}/a.txt?id=17", f"{url}/a.txt?name=***", f"{url}/a.txt?name=***#2", f"{url}/a.txt?***",
        url.replace("://", "://***@") + "/b.txt",
    ]  # fmt: skip
    assert not any(word in repr(infos) + repr(dataset) for word in ("Zeb", "Yonder"))
    copy = pickle.loads(pickle.dumps(dataset))
    for info in infos:
        assert read_stream(copy, info)["data"].tobytes() == TEXT


def test_states_tell_addresses_apart_that_differ_in_hidden_values(url):
    first, second = f"{url}/a.txt?name=alpha", f"{url}/a.txt?name=beta"
    assert [info.key for info in index_of(first)] == [info.key for info in index_of(second)]
    assert (
        len({digest_streams(index_of(*each)) for each in ((first,), (second,), (first, second), (second, first))}) == 4
    )
    with sl.MultiStreamer(sl.TextStreams([first, second]), 1, 4) as loader:
        next(iter(loader))
        state = loader.state_dict()
        loader.load_state_dict(state)
    with (
        sl.MultiStreamer(sl.TextStreams([second, first]), 1, 4) as loader,
        pytest.raises(sl.StateError, match="keys or lengths"),
    ):
        loader.load_state_dict(state)
    assert "alpha" not in repr(state)


@pytest.mark.parametrize(
    ("query", "earlier_key"),
    [
        ("", "{}/a.txt"),
        ("?id=17&part=2", "{}/a.txt?id=17&part=2"),
        ("?name=alpha", "{}/a.txt?name=alpha"),
        ("?name=alpha&sig=x", "{}/a.txt?name=alpha&sig=***"),
        ("?X-Amz-Signature=y", "{}/a.txt?X-Amz-Signature=***"),
    ],
)
def test_states_of_earlier_versions_still_fit(url, query, earlier_key):
    """Their digests are those of the keys that these versions made."""
    table = index_of(f"{url}/a.txt{query}", f"{url}/a.txt{query}")
    key = earlier_key.format(url)
    assert digest_streams(table) == StreamTable([key, f"{key}#2"], [len(TEXT)] * 2).digest()


def test_addresses_signed_again_fit_their_state(url):
    signed = [f"{url}/a.txt?md5={number}x&expires={number}&X-Amz-Signature={number}" for number in (1, 2)]
    assert digest_streams(index_of(signed[0])) == digest_streams(index_of(signed[1]))


@pytest.mark.parametrize(
    "address",
    [
        "http://user:Zeb/ra@{}/a.txt", "http://user:12/Zebra@{}/a.txt", "http://user:Zeb#ra@{}/a.txt",
        "http://user:Zeb?ra@{}/a.txt", "http://Zeb/ra:word@{}/a.txt", "ssh://user:Zeb/ra@{}/a.txt", "s3://Zeb:r/a@{}/a.txt",
        "//user:Zebra@{}/a.txt", "http://user:Zeb ra@{}:99999999/a.txt",
    ],
)  # fmt: skip
def test_addresses_that_are_malformed_are_not_shown(url, address, caplog):
    host = url.removeprefix("http://")
    with pytest.raises(sl.StreamloaderError) as caught:
        list(describe_streams(sl.TextStreams(address.format(host), storage_options={"retry": None})))
    text = f"{caught.value} {caught.value!r} {caught.value.address} {caplog.text}"
    assert "Zeb" not in text
    assert "ra@" not in text
