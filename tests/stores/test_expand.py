"""Expanding addresses into objects: results, their order, and the number of requests."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from range_server import served
from store_leaves import Plain

import streamloader as sl
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    LimitExceeded,
    NotFound,
    NotSupported,
    StreamNotFound,
    TransferInterrupted,
    Unreachable,
)
from streamloader.stores import expand as finding
from streamloader.stores import registry
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.expand import expand_store_address, expand_store_addresses
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.memory import MemoryStore
from streamloader.stores.patterns import has_magic
from streamloader.values import ObjectInfo

PLAIN = {"retry": None}
TREE = (
    "10.txt",
    "9.txt",
    "b.TXT",
    "note.md",
    "[1].txt",
    "a b.txt",
    "größe.txt",
    ".hidden.txt",
    ".git/d.txt",
    "deep/er/c.txt",
    "deep/er/.h/x.txt",
    "deep/e.txt",
    "deep-er/f.txt",
    "part-{a,b}.tar",
)


def fill(space, names):
    store, _ = open_shared_store(space, PLAIN)
    with store:
        for name in names:
            store.write(name, name.encode())


@pytest.fixture
def space():
    """A store in memory with a small tree in it."""
    space = f"memory://find-{secrets.token_hex(4)}"
    fill(space, TREE)
    return space


@pytest.fixture
def requests(monkeypatch):
    """Requests to stores in memory, in order: ("head", path) and ("list", directory, at any depth?)."""
    requests = []
    head, listing = MemoryStore._head, MemoryStore._list

    def counted_list(self, prefix, *, recursive):
        requests.append(("list", prefix, recursive))
        return listing(self, prefix, recursive=recursive)

    async def counted_head(self, path):
        requests.append(("head", path))
        return await head(self, path)

    monkeypatch.setattr(MemoryStore, "_list", counted_list)
    monkeypatch.setattr(MemoryStore, "_head", counted_head)
    return requests


def names(found, space):
    assert all(one.address.startswith(f"{space}/") for one in found)
    assert [one.info.path for one in found] == [one.address.removeprefix(f"{space}/") for one in found]
    return [one.info.path for one in found]


def found(space, address, pattern=None):
    return names(expand_store_address(f"{space}/{address}", pattern, PLAIN), space)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_an_object_stands_for_itself(space):
    (one,) = expand_store_address(f"{space}/deep/er/c.txt", None, PLAIN)
    assert one.address == f"{space}/deep/er/c.txt"
    store, path = open_shared_store(one.address, PLAIN)
    with store:
        assert one.info == store.head(path)
        assert store.read(path, version=one.info.version) == b"deep/er/c.txt"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("*.txt", ["10.txt", "9.txt", "[1].txt", "a b.txt", "größe.txt"]),
        ("?.txt", ["9.txt"]),
        ("[0-9]*.txt", ["10.txt", "9.txt"]),
        ("[!0-9]*.md", ["note.md"]),
        (".*.txt", [".hidden.txt"]),
        (".git/*", [".git/d.txt"]),
        (".*/*", [".git/d.txt"]),
        ("deep*/*.txt", ["deep-er/f.txt", "deep/e.txt"]),
        ("*/er/c.txt", ["deep/er/c.txt"]),
        ("*/e.txt", ["deep/e.txt"]),
        ("deep/**", ["deep/e.txt", "deep/er/c.txt"]),
        ("deep/**/*.txt", ["deep/e.txt", "deep/er/c.txt"]),
        ("**/er/*.txt", ["deep/er/c.txt"]),
        ("**/.h/*.txt", ["deep/er/.h/x.txt"]),
        ("*/**/c.*", ["deep/er/c.txt"]),
        ("**/*.TXT", ["b.TXT"]),
        ("deep//e*", ["deep/e.txt"]),
        ("[[]1].txt", ["[1].txt"]),
    ],
)
def test_patterns(space, address, expected):
    assert found(space, address) == expected


def test_a_directory_holds_what_lies_under_it_and_is_not_hidden(space):
    everything = ["deep/e.txt", "deep/er/c.txt"]
    for address in ("deep", "deep/", "deep//"):
        assert found(space, address) == everything
    assert found(space, "", "*.txt") == [
        "10.txt", "9.txt", "[1].txt", "a b.txt", "b.TXT", "deep-er/f.txt", "deep/e.txt", "deep/er/c.txt", "größe.txt",
    ]  # fmt: skip
    assert [one.info.path for one in expand_store_address(space, lambda path: path.endswith("md"), PLAIN)] == [
        "note.md"
    ]
    assert found(space, ".git/") == [".git/d.txt"]
    assert found(space, "deep/er/.h") == ["deep/er/.h/x.txt"]


def test_the_filter_applies_to_directories_only_and_runs_in_the_caller(space):
    assert found(space, "*.md", "*.txt") == ["note.md"]
    assert found(space, "note.md", "*.txt") == ["note.md"]
    threads = []

    def accept(path):
        threads.append(threading.current_thread())
        store, _ = open_shared_store(space, PLAIN)  # it may use stores itself
        with store:
            return store.head(path).size > 10

    assert found(space, "deep", accept) == ["deep/er/c.txt"]
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("{9,10}.txt", ["9.txt", "10.txt"]),
        ("{10,9,10}.txt", ["10.txt", "9.txt", "10.txt"]),
        ("{9..10}.txt", ["9.txt", "10.txt"]),
        ("{0..10..9}{,0}.t*", None),
        ("{deep/,[0-9]*}", ["deep/e.txt", "deep/er/c.txt", "10.txt", "9.txt"]),
        ("deep{/er,}/c{.txt,}", None),
        ("deep/{e,er/c}.txt", ["deep/e.txt", "deep/er/c.txt"]),
        ("{9..9}.txt", ["9.txt"]),
    ],
)
def test_braces_come_in_their_order(space, address, expected):
    if expected is None:
        with pytest.raises(StreamNotFound):
            found(space, address)
    else:
        assert found(space, address) == expected


def test_braces_may_be_in_the_name_of_the_store():
    fill("memory://find-one", ["a.txt"])
    fill("memory://find-two", ["a.txt", "b.txt"])
    addresses = [one.address for one in expand_store_address("memory://find-{two,one}/{a,a}.txt", None, PLAIN)]
    assert addresses == [f"memory://find-{name}/a.txt" for name in ("two", "two", "one", "one")]


def test_literal_names_take_precedence(space):
    assert found(space, "[1].txt") == ["[1].txt"]
    assert found(space, "part-{a,b}.tar") == ["part-{a,b}.tar"]
    fill(space, ["1.txt", "part-a.tar", "part-b.tar", "what?/a.txt", "why?.txt", "whys.txt"])
    assert found(space, "[1].txt") == ["[1].txt"]
    assert found(space, "part-{a,b}.tar") == ["part-{a,b}.tar"]
    assert found(space, "why?.txt") == ["why?.txt"]
    assert found(space, "what?") == found(space, "what?/") == ["what?/a.txt"]


def test_a_list_keeps_its_order_and_repeats(space):
    other = f"memory://find-{secrets.token_hex(4)}"
    fill(other, ["9.txt"])
    addresses = [f"{space}/9.txt", f"{other}/*", f"{space}/10.txt", f"{space}/deep", f"{space}/9.txt"]
    assert [one.address for one in expand_store_addresses(addresses, None, PLAIN)] == [
        f"{space}/9.txt",
        f"{other}/9.txt",
        f"{space}/10.txt",
        f"{space}/deep/e.txt",
        f"{space}/deep/er/c.txt",
        f"{space}/9.txt",
    ]
    assert expand_store_addresses([], None, PLAIN) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no.txt", r"no such object: .*no\.txt"),
        ("no/where/", r"the directory .*no/where/ does not exist"),
        ("no/*.txt", r"the pattern .*no/\*\.txt matches nothing"),
        ("**/*.mp4", r"matches nothing"),
        ("dee*", r"matches 2 directories and no file; append \*\*/"),
        ("dee*/", r"matches 2 directories and no file"),
        ("9.txt/inside", "no such object"),
        ("{9,8}.txt", r"no such object: .*/8\.txt"),
        ("x" * 3000, "no such object"),
    ],
)
def test_what_does_not_exist_is_not_found(space, address, message):
    with pytest.raises(StreamNotFound, match=message) as caught:
        expand_store_addresses([f"{space}/9.txt", f"{space}/{address}"], None, PLAIN)
    expected = f"{space}/8.txt" if "{" in address else f"{space}/{address}"
    assert caught.value.address == expected


def test_a_directory_without_such_a_file_says_so(space):
    with pytest.raises(
        StreamNotFound, match=r"the directory .*deep contains no file of this kind \(2 other files\)"
    ) as caught:
        expand_store_address(f"{space}/deep", "*.mp4", PLAIN)
    assert caught.value.address == f"{space}/deep"


@pytest.mark.parametrize("address", ["a/../b.txt", "./a.txt", "../*", "a/./**"])
def test_paths_that_lead_elsewhere_are_refused(space, address):
    with pytest.raises(ConfigError, match=r"'\.' or '\.\.'"):
        expand_store_address(f"{space}/{address}", None, PLAIN)


def test_secrets_stay_in_addresses_and_out_of_all_that_is_shown():
    fill("plain-find://me:hunter2@box", ["a.txt"])
    (one,) = expand_store_address("plain-find://me:hunter2@box/*.txt", None, PLAIN)
    assert one.address == "plain-find://me:hunter2@box/a.txt"
    assert "hunter2" not in repr(one.info)
    for missing in ("no.txt", "no/", "*.mp4", "{1,2}.txt"):
        with pytest.raises(StreamNotFound) as caught:
            expand_store_address(f"plain-find://me:hunter2@box/{missing}", None, PLAIN)
        assert "hunter2" not in str(caught.value) + repr(caught.value)
        assert caught.value.address.startswith("plain-find://***@box/")


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setattr(registry, "_STORE_CLASSES", {**registry._STORE_CLASSES, "plain-find": "store_leaves:Plain"})


# --- with how few requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("9.txt", [("head", "9.txt")]),
        ("deep", [("head", "deep"), ("list", "deep", True)]),
        ("deep/", [("list", "deep", True)]),
        ("*.txt", [("head", "*.txt"), ("list", "", False)]),
        ("deep/er/*.txt", [("head", "deep/er/*.txt"), ("list", "deep/er", False)]),
        (
            "deep*/e*.txt",
            [("head", "deep*/e*.txt"), ("list", "", False), ("list", "deep", False), ("list", "deep-er", False)],
        ),
        ("d*p/er/c*", [("head", "d*p/er/c*"), ("list", "", False), ("list", "deep/er", False)]),
        ("d*p/er/c.txt", [("head", "d*p/er/c.txt"), ("list", "", False), ("head", "deep/er/c.txt")]),
        ("deep/**/c.txt", [("head", "deep/**/c.txt"), ("list", "deep", True)]),
        ("d*p/**", [("head", "d*p/**"), ("list", "", False), ("list", "deep", True)]),
        ("{9,10}.txt", [("head", "{9,10}.txt"), ("head", "9.txt"), ("head", "10.txt")]),
    ],
)  # fmt: skip
def test_only_needed_requests_are_sent(space, requests, address, expected):
    assert found(space, address)
    assert requests == expected


def test_ten_thousand_objects_take_one_listing(requests):
    space = f"memory://find-{secrets.token_hex(4)}"
    every = [f"d{number % 10}/{number:05}.{'tar' if number % 2 else 'txt'}" for number in range(10_000)]
    fill(space, every)
    requests.clear()
    assert found(space, "", "*.tar") == sorted(name for name in every if name.endswith("tar"))
    assert found(space, "d3/*33.tar") == sorted(n for n in every if n.startswith("d3/") and n.endswith("33.tar"))
    assert found(space, "**/*00.txt") == sorted(name for name in every if name.endswith("00.txt"))
    assert requests == [
        ("list", "", True), ("head", "d3/*33.tar"), ("list", "d3", False), ("head", "**/*00.txt"), ("list", "", True),
    ]  # fmt: skip
    requests.clear()
    assert found(space, "d3/{00003..00993..10}.tar") == [f"d3/{number:05}.tar" for number in range(3, 1000, 10)]
    assert len(requests) == 101


class Watched(Plain):
    """Counts concurrent requests."""

    schemes = ("watched",)
    now = most = 0

    @contextlib.contextmanager
    def under_way(self):
        Watched.now += 1
        Watched.most = max(Watched.most, Watched.now)
        try:
            yield
        finally:
            Watched.now -= 1

    async def _head(self, path):
        with self.under_way():
            return await super()._head(path)

    async def _list(self, prefix, *, recursive):
        with self.under_way():
            async for info in super()._list(prefix, recursive=recursive):
                yield info


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(registry, "_STORE_CLASSES", {**registry._STORE_CLASSES, "watched": f"{__name__}:Watched"})
    monkeypatch.setattr(Watched, "most", 0)
    monkeypatch.setattr(finding, "_MAX_CONCURRENT_LOOKUPS", 8)
    space = f"watched://find-{secrets.token_hex(4)}"
    fill(space, [f"{a}/{b}/{c}.txt" for a in range(12) for b in range(12) for c in range(2)])
    return space


def test_concurrent_lookups_are_limited(watched):
    wanted = [f"{a}/{b}/{c}.txt" for a in range(12) for b in range(12) for c in range(2)]
    assert found(watched, "{0..11}/{0..11}/{0,1}.txt") == wanted
    assert Watched.most == 8
    assert found(watched, "*/*/*.txt") == sorted(wanted)
    assert Watched.most == 8


def test_the_first_error_in_their_order_is_raised(watched, monkeypatch):
    looked_at = []

    async def failing(self, path):
        looked_at.append(path)
        if path.startswith("3/"):
            raise TransferInterrupted(f"no line to {path}", address=self.address(path))
        if path.startswith("2/"):
            await Plain._head(self, path)
            raise Unreachable(f"not {path}", address=self.address(path))
        return await Plain._head(self, path)

    monkeypatch.setattr(Watched, "_head", failing)
    with pytest.raises(Unreachable, match=r"not 2/0/0\.txt"):
        expand_store_addresses([f"{watched}/{a}/0/0.txt" for a in (0, 1, 2, 3, 4)], None, PLAIN)
    looked_at.clear()
    with pytest.raises(Unreachable, match=r"not 2/0/0\.txt"):
        expand_store_addresses([f"{watched}/{a}/{b}/0.txt" for a in range(2, 12) for b in range(12)], None, PLAIN)
    assert len(looked_at) < 2 * 8  # it does not go on for long


@pytest.mark.parametrize("unreadable", [None, "skip"])
def test_what_a_server_refuses_to_all_is_no_fault_of_an_object(watched, monkeypatch, unreadable):
    """A login that is refused is not tried again for each of many objects. One object that is refused is left out."""
    looked_at = []

    async def refusing(self, path):
        looked_at.append(path)
        raise AccessDenied("the server refuses the login", address=watched)

    async def refusing_one(self, path):
        if path.startswith("2/"):
            raise AccessDenied(f"not {path}", address=self.address(path))
        return await Plain._head(self, path)

    named = [f"{watched}/{a}/{b}/0.txt" for a in range(1, 12) for b in range(12)]
    monkeypatch.setattr(Watched, "_head", refusing)
    with pytest.raises(AccessDenied, match="refuses the login"):
        expand_store_addresses(named, None, PLAIN, unreadable)
    assert len(looked_at) < 2 * 8
    monkeypatch.setattr(Watched, "_head", refusing_one)
    if unreadable == "skip":
        found_files = expand_store_addresses(named, None, PLAIN, unreadable)
        assert [file.address for file in found_files] == [name for name in named if f"{watched}/2/" not in name]
    else:
        with pytest.raises(AccessDenied, match="12 files or directories cannot be used"):
            expand_store_addresses(named, None, PLAIN, unreadable)


# --- what listings and stores do not tell ----------------------------------------------------------------------------


class SizelessListing(Plain):
    """A store whose listings omit sizes."""

    schemes = ("vague",)

    async def _list(self, prefix, *, recursive):
        async for info in super()._list(prefix, recursive=recursive):
            yield ObjectInfo(info.path, None, None)


class Refusing(Plain):
    """Denies access to names with a brace, star or bracket, and has no listings."""

    schemes = ("refusing",)
    supports_listing = False

    async def _head(self, path):
        if set("{*[") & set(path):
            raise AccessDenied(f"{self.address(path)} is not for you", address=self.address(path))
        return await super()._head(path)


@pytest.fixture
def odd_stores(monkeypatch):
    mine = {kind.schemes[0]: f"{__name__}:{kind.__name__}" for kind in (SizelessListing, Refusing)}
    monkeypatch.setattr(registry, "_STORE_CLASSES", {**registry._STORE_CLASSES, **mine})


def test_sizes_missing_from_a_listing_are_requested(odd_stores, monkeypatch):
    space = f"vague://find-{secrets.token_hex(4)}"
    fill(space, ["a/1.txt", "a/2.txt", "a/3.mp4"])
    heads = []

    async def counted(self, path):
        heads.append(path)
        return await Plain._head(self, path)

    monkeypatch.setattr(SizelessListing, "_head", counted)
    infos = [one.info for one in expand_store_address(f"{space}/a/", "*.txt", PLAIN)]
    assert [(info.path, info.size) for info in infos] == [("a/1.txt", 7), ("a/2.txt", 7)]
    assert all(info.version for info in infos)
    assert sorted(heads) == ["a/1.txt", "a/2.txt"]


def test_without_listings_there_are_names_and_braces(odd_stores):
    space = f"refusing://me:hunter2@find-{secrets.token_hex(4)}"
    fill(space, ["1.txt", "2.txt", "sub/3.txt"])
    assert found(space, "{1..2}.txt") == ["1.txt", "2.txt"]
    for address in ("*.txt", "[12].txt", "{1,*}.txt"):
        with pytest.raises(NotSupported, match=r"patterns need listings.*is not for you.*with braces") as caught:
            expand_store_address(f"{space}/{address}", None, PLAIN)
        assert "hunter2" not in str(caught.value)
    for address in ("sub/", ""):
        with pytest.raises(NotSupported, match=r"names a directory, but .* has no listings"):
            expand_store_address(f"{space}/{address}", None, PLAIN)
    with pytest.raises(StreamNotFound):
        expand_store_address(f"{space}/sub", None, PLAIN)


def test_errors_of_a_store_pass_through(space, monkeypatch):
    for kind in (TransferInterrupted, AccessDenied, LimitExceeded):

        async def failing(self, path, kind=kind):
            raise kind("no", address=self.address(path))

        def failing_list(self, prefix, *, recursive, kind=kind):
            raise kind("no list", address=self.address(prefix))

        monkeypatch.setattr(MemoryStore, "_head", failing)
        monkeypatch.setattr(MemoryStore, "_list", failing_list)
        with pytest.raises(kind, match=r"^no") as caught:
            expand_store_address(f"{space}/9.txt", None, PLAIN)
        assert caught.value.address == f"{space}/9.txt"
        with pytest.raises(kind, match=r"^no"):
            expand_store_address(f"{space}/*/9.txt", None, PLAIN)
        monkeypatch.undo()


def test_an_object_that_a_pattern_leads_to_is_not_passed_over(space, monkeypatch):
    """An object without access is an error, and is not omitted."""
    head = MemoryStore._head

    async def failing(self, path):
        if path == "deep/e.txt":
            raise AccessDenied("not for you", address=self.address(path))
        return await head(self, path)

    monkeypatch.setattr(MemoryStore, "_head", failing)
    with pytest.raises(AccessDenied):
        expand_store_address(f"{space}/*/e.txt", None, PLAIN)


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name in ("1.txt", "2.txt", "a b.txt", "100%.txt", "[x].txt", "sub/3.txt", "{y,z}.txt"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    with served(folder) as url:
        yield url


def test_addresses_of_http_stay_as_they_were_written(url):
    addresses = [
        f"{url}/1.txt", f"{url}/a%20b.txt", f"{url}/100%25.txt", f"{url}/1.txt?X-Amz-Signature=abc&v=*",
        f"{url}/[x].txt", f"{url}/%7By,z%7D.txt", f"{url}/{{y,z}}.txt", f"{url}/sub/3.txt?",
    ]  # fmt: skip
    results = expand_store_addresses(addresses)
    assert [one.address for one in results] == addresses
    sizes = [5, 7, 8, 5, 7, 9, 9, 9]
    assert [one.info.size for one in results] == sizes
    assert all(one.info.version for one in results)
    for one, size in zip(results, sizes, strict=True):
        store, path = open_shared_store(one.address)
        with store:
            assert len(store.read(path, version=one.info.version)) == size


def test_braces_work_over_http_and_patterns_tell_what_to_do(url):
    assert [one.address for one in expand_store_address(f"{url}/{{2,1,a%20b}}.txt")] == [
        f"{url}/{n}.txt" for n in ("2", "1", "a%20b")
    ]
    for address in ("*.txt", "sub/**", "[0-9].txt"):
        with pytest.raises(NotSupported, match=r"patterns need listings.*part-\{000\.\.127\}"):
            expand_store_address(f"{url}/{address}")
    for address in (url, f"{url}/", f"{url}/sub/"):
        with pytest.raises(NotSupported, match="names a directory"):
            expand_store_address(address)
    with pytest.raises(StreamNotFound, match="404") as caught:
        expand_store_address(f"{url}/no.txt?token=abcdef")
    assert caught.value.address == f"{url}/no.txt?token=***"
    assert not isinstance(caught.value, NotFound)


def test_hundreds_of_addresses_of_http(url):
    results = expand_store_address(f"{url}/{{1,2}}.txt?{{1..150}}")
    assert [one.address for one in results] == [f"{url}/{name}.txt?{n}" for name in (1, 2) for n in range(1, 151)]
    assert {one.info.size for one in results} == {5}


def test_a_server_that_is_not_there(url):
    with pytest.raises(Unreachable):
        expand_store_address("http://127.0.0.1:1/a.txt", None, PLAIN)


# --- the same as for local files -------------------------------------------------------------------------------------

file_names = st.sampled_from(["a", "b", "ab", "c.txt", "d.TXT", ".h", "a-b", "ä.txt"])
files = st.lists(st.lists(file_names, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12, unique=True)
parts = st.sampled_from(["**", "*", "a*", "?", "*.txt", "[ab]", "[!a]*", ".*", "a", ".h", "{a,b}", "{b,a*}", "a{,b}"])
asked_for = st.tuples(st.lists(parts, min_size=1, max_size=3).map("/".join), st.sampled_from(["", "", "/"])).map(
    "".join
)


def outcome(function, root):
    try:
        addresses = [one.address for one in function()]
    except StreamNotFound:
        return "nothing"
    return [address.removeprefix(root) for address in addresses]


SEARCHES = (files, st.lists(asked_for, min_size=1, max_size=4), st.sampled_from([None, "*.txt", "a*"]))


@settings(max_examples=50)
@given(*SEARCHES)
def test_stores_are_searched_like_folders(tree, patterns, pattern):
    check_search(tree, patterns, pattern)


@pytest.mark.slow
@settings(max_examples=500)
@given(*SEARCHES)
def test_stores_are_searched_like_folders_in_many_cases(tree, patterns, pattern):
    check_search(tree, patterns, pattern)


def check_search(tree, patterns, pattern):
    # A name is a file or a directory, never both.
    assume(not any(one.startswith(f"{other}/") for one in tree for other in tree))
    space = f"memory://find-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        for name in tree:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        fill(space, tree)
        for asked_for in patterns:
            local = outcome(
                lambda asked_for=asked_for: expand_addresses(f"{folder}/{asked_for}", pattern), f"{folder}/"
            )
            of_files = outcome(
                lambda asked_for=asked_for: expand_store_address(f"file://{folder}/{asked_for}", pattern), ""
            )
            in_memory = outcome(
                lambda asked_for=asked_for: expand_store_address(f"{space}/{asked_for}", pattern, PLAIN), f"{space}/"
            )
            if asked_for.endswith("/"):  # of a local path the last slash is not kept
                of_files = in_memory
            if of_files is not in_memory and of_files != "nothing":
                store_paths = [open_shared_store(address)[1] for address in of_files]
                of_files = [os.path.relpath(f"/{path}", folder) for path in store_paths]
            if local != "nothing":
                local = [os.path.normpath(name) for name in local]
            assert of_files == in_memory == local, asked_for


def test_expand_takes_any_mix(space, tmp_path, url):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    mix = [tmp_path / "*.txt", f"{space}/deep", (tmp_path / "a.txt").as_uri(), f"{url}/1.txt", tmp_path / "a.txt"]
    results = expand_addresses(mix, "*.txt")
    assert [one.address for one in results] == [
        f"{tmp_path}/a.txt",
        f"{tmp_path}/b.txt",
        f"{space}/deep/e.txt",
        f"{space}/deep/er/c.txt",
        f"{tmp_path}/a.txt",
        f"{url}/1.txt",
        f"{tmp_path}/a.txt",
    ]
    assert [one.info is None for one in results] == [True, True, False, False, True, False, True]


def test_options_that_no_store_takes_are_refused(space):
    with pytest.raises(ConfigError, match="colour"):
        expand_addresses(f"{space}/9.txt", None, {"colour": "green"})
    with pytest.raises(sl.ConfigError, match="plain values"):
        expand_addresses(f"{space}/9.txt", None, {"retry": lambda: None})
    assert has_magic("*")
