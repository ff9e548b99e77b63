"""Files of the index cache: what they show of addresses, which of them are used, and any contents."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import struct
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from made_clips import make_clip
from range_server import served

from streamloader.errors import StreamloaderError
from streamloader.media.video import index_cache
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.reader import FrameReader
from streamloader.media.video.remote import RemoteVideo
from streamloader.stores.io_thread import open_shared_store

HEADER = struct.Struct("<QI")
JUNK = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 1.5, math.nan, math.inf, -math.inf, "", "a", "<i8", "|O",
    "\x1b[31m",
    "x" * 10_000, [], {}, [1, 0], [0, 1], [-1, 25], [1, 2, 3], [2**70, 1], ["1/3"], [[0, 1]], [[0, 2**60]], [[-5,
    3]], [[3, 2]],
    [[0]], [["a", "b"]], [None, None, None], [True, True, True, True], [1, 0, 0], {"pts": 5}, {"pts": ["<i8", 10**30]},
    {"pts": ["<i8", -1]}, {"pts": ["V9999999999", 1]}, {"x": ["<i8", 1]}, {"pts": [[], 1]},
)  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "a.mp4", frames=13, gop=5)


@pytest.fixture(scope="module")
def url(clip):
    """The address of the folder of the clip."""
    with served(clip.parent) as url:
        yield url


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of a cache that is empty at first."""
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


def list_files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


def parse_file(data):
    size, _ = HEADER.unpack_from(data)
    return json.loads(data[HEADER.size : HEADER.size + size]), data[HEADER.size + size :]


def join_file(document, arrays):
    encoded = document if isinstance(document, bytes) else json.dumps(document).encode()
    return HEADER.pack(len(encoded), zlib.crc32(encoded + arrays)) + encoded + arrays


def look_up(address):
    """Return a video in a store with its current information."""
    store, path = open_shared_store(address, {})
    with store:
        return RemoteVideo(address, store.head(path))


def assert_same(index, expected):
    for field in fields(expected):
        assert np.array_equal(getattr(index, field.name), getattr(expected, field.name)), field.name


# --- addresses -------------------------------------------------------------------------------------------------------


def test_no_secret_of_an_address_is_stored(url, cache):
    login = url.replace("://", "://user:Zeb@ra'x@")
    addresses = [
        f"{login}/a.mp4", f"{url}/a.mp4?md5=Zebra&expires=17", f"{url}/a.mp4?h=Zebra", f"{url}/a.mp4?h=Zebraa",
        f"{url}/a.mp4?Zebra", f"{url}/a.mp4?p='Zebra'&X-Amz-Signature=Zebra",
    ]  # fmt: skip
    indexes = [load_index(look_up(address)) for address in addresses]
    stored = b"".join(path.read_bytes() + str(path).encode() for path in list_files(cache))
    assert b"Zeb" not in stored
    assert b"ra'x" not in stored
    # Videos whose addresses differ in more than a login or a signature have files of their own.
    assert len(list_files(cache)) == len(addresses)
    for index in indexes:
        assert_same(index, indexes[0])


def test_addresses_signed_again_find_their_index(url, cache, monkeypatch):
    load_index(look_up(f"{url}/a.mp4?md5=one&Expires=1&X-Amz-Signature=a"))
    load_index(look_up(f"{url.replace('://', '://me:old@')}/a.mp4"))
    monkeypatch.setattr(index_cache, "index_video", pytest.fail)
    load_index(look_up(f"{url}/a.mp4?md5=two&Expires=2&X-Amz-Signature=b"))
    load_index(look_up(f"{url.replace('://', '://me:new@')}/a.mp4"))


def test_files_of_earlier_versions_are_used(url, cache, monkeypatch):
    """Names and headers of ordinary addresses are those that the cache had before it hid query values."""
    for address in (f"{url}/a.mp4", f"{url}/a.mp4?id=17&part=2"):
        expected = load_index(look_up(address))
        digest = hashlib.sha256(address.encode()).hexdigest()
        file = cache / digest[:2] / f"{digest[2:40]}-raise.index"
        assert parse_file(file.read_bytes())[0]["address"] == address
        with monkeypatch.context() as context:
            context.setattr(index_cache, "index_video", pytest.fail)
            assert_same(load_index(look_up(address)), expected)


# --- any contents ----------------------------------------------------------------------------------------------------


def find_places(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from find_places(item, (*path, name))


def mutate(data, random_):
    """Return the contents of a cache file with a change that its checksum does not show."""
    document, arrays = parse_file(data)
    choice = random_.random()
    if choice < 0.7:
        *path, last = random_.choice(list(find_places(document)))
        parent = document
        for name in path:
            parent = parent[name]
        if random_.random() < 0.9:
            parent[last] = random_.choice(JUNK)
        else:
            del parent[last]
        return join_file(document, arrays)
    if choice < 0.9:  # values of the arrays
        words = bytearray(arrays)
        position = random_.randrange(0, len(words) // 8) * 8
        number = random_.choice((0, -1, 2**63 - 1, -(2**63), 2**62, 10**9, random_.randrange(2**40)))
        words[position : position + 8] = struct.pack("<q", number)
        return join_file(document, bytes(words))
    if choice < 0.95:
        return join_file(random_.choice((b"[" * 100_000, b"5", b"[]", b"null", b"\xff", b"", b'{"format": 3}')), arrays)
    return random_.choice((b"", data[:7], data[:-3], HEADER.pack(2**64 - 1, zlib.crc32(b"")), data + b"x"))


def check_contents(video, cache, seed, count):
    random_ = random.Random(seed)
    expected = load_index(video)
    (file,) = list_files(cache)
    intact = file.read_bytes()
    used = 0
    for _ in range(count):
        file.write_bytes(mutate(intact, random_))
        index = load_index(video)  # never an error: what cannot be used is made again
        try:
            assert_same(index, expected)
        except AssertionError:
            used += 1  # possible values: at worst an error, or other frames
            with contextlib.suppress(StreamloaderError), contextlib.closing(FrameReader(video, index)) as reader:
                for number in (0, len(index) - 1, len(index) // 2):
                    reader.read_frame(number)
    assert used < count / 2
    file.write_bytes(intact)
    assert_same(load_index(video), expected)


def test_changed_files(clip, cache):
    check_contents(str(clip), cache, 1, 80)


def test_changed_files_of_videos_in_stores(url, cache):
    check_contents(look_up(f"{url}/a.mp4"), cache, 2, 25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 9))
def test_many_changed_files(clip, cache, seed):
    check_contents(str(clip), cache, seed, 1500)


def test_a_file_that_is_not_used_is_reported_once_in_the_log(clip, cache, caplog):
    load_index(str(clip))
    (file,) = list_files(cache)
    document, arrays = parse_file(file.read_bytes())
    file.write_bytes(join_file(document | {"height": 2**40}, arrays))
    with caplog.at_level("INFO", "streamloader"):
        load_index(str(clip))
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot use the cached index {Path(file)}, indexing the video again: its frame size is invalid"
    ]
