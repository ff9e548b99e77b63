"""Loaders over real servers: addresses work wherever paths do, and the batches are those of local files."""

from __future__ import annotations

import asyncio
import hashlib
import itertools

import numpy as np
import pytest
from canaries import canary
from image_data import encode, make_pixels
from made_clips import VARIANTS, make_clip
from servers.nginx_fixture import USER
from tiers import fast_first, only_fast

import streamloader as sl
from streamloader.stores.readahead import MAX_FILE_BYTES

IMAGES = 23
CLIPS = ("a.mp4", "b.mp4", "no_pts.avi", "open_groups.mkv")
TEXTS = {
    f"part-{number:02}.txt": bytes((number * 37 + at * 11) % 251 for at in range(300 + 977 * number))
    for number in range(7)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, texts and images."""
    folder = tmp_path_factory.mktemp("files")
    make_clip(folder / "a.mp4", frames=23, gop=6)
    make_clip(folder / "b.mp4", frames=17, gop=17)
    for name in CLIPS[2:]:
        VARIANTS[name](folder)
    for name, data in TEXTS.items():
        (folder / name).write_bytes(data)
    for number in range(IMAGES):
        (folder / f"frame-{number:02}.jpg").write_bytes(encode(make_pixels(number, 48, 64), "JPEG"))
    return folder


class Place:
    """Addresses of the files, as a pattern or a list, and the options of the store."""

    def __init__(self, base, options, patterns=True):
        self.base, self.options, self.patterns = base, options, patterns

    def texts(self):
        if self.patterns:
            return f"{self.base}/part-*.txt"
        return f"{self.base}/part-{{00..06}}.txt"

    def images(self):
        return f"{self.base}/frame-*.jpg" if self.patterns else f"{self.base}/frame-{{00..{IMAGES - 1}}}.jpg"

    def videos(self):
        return [f"{self.base}/{name}" for name in CLIPS]


KINDS = ("ssh", "s3", "ipfs", "http", "http, cached")


@pytest.fixture(scope="module", params=KINDS)
def place(request, folder, tmp_path_factory):
    """Put the files into a store of each kind."""
    kind = request.param
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    if kind == "ssh":
        server = request.getfixturevalue("ssh_server")
        (server.data / "files").mkdir(exist_ok=True)
        for name, data in files.items():
            (server.data / "files" / name).write_bytes(data)
        return Place(server.address("files"), server.options())
    if kind == "s3":
        server = request.getfixturevalue("seaweed_server")
        bucket = server.bucket("loaders")
        write(f"s3://{bucket}/files", files, server.options())
        return Place(f"s3://{bucket}/files", server.options())
    if kind == "ipfs":
        node = request.getfixturevalue("jsipfs_node")
        cids = node.add({f"files/{name}": data for name, data in files.items()})
        return Place(f"ipfs://{cids['files']}", {"rpc": node.rpc})
    server = request.getfixturevalue("nginx_server")
    server.put({f"files/{name}": data for name, data in files.items()})
    options = {"auth": (USER, canary("http-password"))}
    if "cached" in kind:
        options["cache_dir"] = str(tmp_path_factory.mktemp("cache"))
    return Place(f"{server.url}/private/files", options, patterns=False)


def write(url, files, options):
    async def write_all():
        async with sl.open_store(url, **options) as store:
            for name, data in files.items():
                await store.write(name, data)

    asyncio.run(write_all())


def digests(dataset, workers, *, epochs=2, **arguments):
    """Run whole epochs; return their batches."""
    found = []
    with sl.MultiStreamer(dataset, 3, 8, num_workers=workers, seed=5, **arguments) as loader:
        for _ in range(epochs):
            for batch in loader:
                arrays = sorted(batch.numpy().items())
                found.append(
                    hashlib.sha256(b"".join(name.encode() + array.tobytes() for name, array in arrays)).hexdigest()
                )
    return found


def local(folder):
    return Place(str(folder), None)


def places_and_workers(*fast):
    """Each kind of store has texts or videos, with workers, in the fast tier."""
    return pytest.mark.parametrize(
        ("place", "workers"),
        only_fast(itertools.product(KINDS, (0, 2)), [(kind, 2) for kind in fast]),
        indirect=["place"],
    )


@places_and_workers("s3", "ipfs", "http")
def test_texts_are_those_of_local_files(place, folder, workers):
    expected = digests(sl.TextStreams(local(folder).texts()), 0)
    assert digests(sl.TextStreams(place.texts(), storage_options=place.options), workers) == expected


@places_and_workers("ssh", "http, cached")
def test_videos_are_those_of_local_files(place, folder, workers):
    expected = digests(sl.VideoStreams(local(folder).videos(), size=(24, 32)), 0)
    dataset = sl.VideoStreams(place.videos(), size=(24, 32), storage_options=place.options)
    assert digests(dataset, workers) == expected


@places_and_workers("s3")
def test_images_are_those_of_local_files(place, folder, workers):
    expected = digests(sl.ImageStreams(local(folder).images(), size=(24, 32)), 0)
    dataset = sl.ImageStreams(place.images(), size=(24, 32), storage_options=place.options)
    assert digests(dataset, workers) == expected


@pytest.mark.parametrize("place", fast_first(KINDS), indirect=True)
def test_going_on_from_a_state_needs_no_options_in_it(place, folder):
    options = place.options
    dataset = lambda: sl.TextStreams(place.texts(), storage_options=options)  # noqa: E731
    with sl.MultiStreamer(dataset(), 3, 64, num_workers=1, seed=1) as loader:
        batches = iter(loader)
        for _ in range(9):
            next(batches)
        state = loader.state_dict()
        expected = [batch.clone().data for batch in batches]
    with sl.MultiStreamer(dataset(), 3, 64, num_workers=2, seed=1) as other:
        other.load_state_dict(state)
        came = [batch.clone().data for batch in other]
    assert len(came) == len(expected) > 3
    assert all(np.array_equal(one, two) for one, two in zip(came, expected, strict=True))


def test_one_data_set_may_be_spread_over_servers(folder, ssh_server, second_ssh_server):
    """Two SSH servers, a web address and a local path in one list."""
    names = list(TEXTS)
    for server, mine in ((ssh_server, names[:2]), (second_ssh_server, names[2:4])):
        for name in mine:
            (server.data / name).write_bytes(TEXTS[name])
    known = folder.parent / "known_hosts"
    known.write_text(ssh_server.known_hosts.read_text() + second_ssh_server.known_hosts.read_text())
    options = {
        "known_hosts": str(known),
        "client_keys": [str(ssh_server.key), str(second_ssh_server.key)],
        "config": [],
    }
    addresses = [
        *(ssh_server.address(name) for name in names[:2]),
        *(second_ssh_server.address(name) for name in names[2:4]),
        *(folder / name for name in names[4:]),
    ]
    expected = digests(sl.TextStreams([folder / name for name in names]), 0)
    assert digests(sl.TextStreams(addresses, storage_options=options), 2) == expected


def test_a_server_that_dies_is_one_error_that_names_the_stream(own_ssh_server):
    for number in range(3):
        with (own_ssh_server.data / f"part-{number}.txt").open("wb") as file:
            file.truncate(4 * MAX_FILE_BYTES)  # far more than is fetched ahead
    options = own_ssh_server.options() | {"retry": None}
    dataset = sl.TextStreams(own_ssh_server.address("part-*.txt"), storage_options=options)
    with sl.MultiStreamer(dataset, 3, 65_536, num_workers=1, seed=0) as loader:
        batches = iter(loader)
        next(batches)
        own_ssh_server.stop()
        with pytest.raises((sl.TransferInterrupted, sl.Unreachable)) as caught:
            for _ in batches:
                pass
    assert caught.value.stream.startswith("ssh://")
    assert caught.value.address is not None
    assert "lane" in str(caught.value)


def test_objects_in_memory_are_those_of_one_process(folder):
    write("memory://loaders/files", TEXTS, {})
    dataset = sl.TextStreams("memory://loaders/files/part-*.txt")
    assert digests(dataset, 0) == digests(sl.TextStreams(local(folder).texts()), 0)
    with pytest.raises(sl.NotFound, match="num_workers=0"):
        digests(dataset, 1)
