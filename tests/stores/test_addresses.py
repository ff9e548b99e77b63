from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError, StreamNotFound, UnreadableStream
from streamloader.stores import addresses
from streamloader.stores.addresses import make_unique_keys


def expand_addresses(*args):
    """Return the paths that local addresses stand for."""
    found = addresses.expand_addresses(*args)
    assert all(one.info is None for one in found)
    return [one.address for one in found]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder that is also the current directory."""
    for name in (
        "10.txt",
        "9.txt",
        "b.TXT",
        "note.md",
        "deep/er/c.txt",
        "[1].txt",
        ".hidden.txt",
        ".git/d.txt",
        "a b.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_stands_for_itself(tree):
    assert expand_addresses("9.txt") == ["9.txt"]
    assert expand_addresses(Path("deep/er/c.txt")) == ["deep/er/c.txt"]
    assert expand_addresses(str(tree / "9.txt")) == [str(tree / "9.txt")]


def test_a_directory_is_searched_in_depth_and_sorted(tree):
    txt = ["./10.txt", "./9.txt", "./[1].txt", "./a b.txt", "./b.TXT", "./deep/er/c.txt"]
    assert expand_addresses(".", "*.txt") == txt
    assert expand_addresses(".") == sorted([*txt, "./note.md"])
    assert expand_addresses(".", lambda path: path.endswith(".md")) == ["./note.md"]
    assert expand_addresses("deep/") == ["deep/er/c.txt"]


def test_patterns_are_expanded_and_sorted(tree):
    assert expand_addresses("*.txt") == ["10.txt", "9.txt", "[1].txt", "a b.txt"]
    assert expand_addresses("?.txt") == ["9.txt"]
    assert expand_addresses("**/*.txt") == ["10.txt", "9.txt", "[1].txt", "a b.txt", "deep/er/c.txt"]
    assert expand_addresses("[0-9]*.txt") == ["10.txt", "9.txt"]
    assert expand_addresses("**/**/c.txt") == ["deep/er/c.txt"]


def test_a_pattern_takes_what_it_says_whatever_the_kind(tree):
    assert expand_addresses("*.md", "*.txt") == ["note.md"]
    assert expand_addresses("note.md", "*.txt") == ["note.md"]


def test_a_literal_path_is_no_pattern(tree):
    assert expand_addresses("[1].txt") == ["[1].txt"]


def test_a_pattern_leaves_directories_out(tree):
    assert "deep" not in expand_addresses("*")
    with pytest.raises(StreamNotFound, match=r"matches 1 directories and no file.*\*\*/"):
        expand_addresses("dee*")


def test_a_list_keeps_its_order_and_repeats(tree):
    assert expand_addresses(["9.txt", "10.txt", "9.txt", "deep"]) == ["9.txt", "10.txt", "9.txt", "deep/er/c.txt"]
    assert expand_addresses(path for path in ("9.txt", Path("10.txt"))) == ["9.txt", "10.txt"]


def test_file_addresses(tree):
    assert expand_addresses((tree / "a b.txt").as_uri()) == [str(tree / "a b.txt")]
    assert expand_addresses(f"FILE://localhost{tree}/9.txt") == [f"{tree}/9.txt"]
    assert expand_addresses(f"file://{tree}/1*.txt") == [f"{tree}/10.txt"]
    with pytest.raises(ConfigError, match="another machine"):
        expand_addresses("file://box/9.txt")


def test_a_query_or_fragment_is_part_of_a_files_name(tree):
    (tree / "why?#1.txt").write_text("")
    assert expand_addresses(f"file://{tree}/why?#1.txt") == [f"{tree}/why?#1.txt"]


def test_the_home_directory(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert expand_addresses("~/9.txt") == [f"{tree}/9.txt"]
    (tree / "~").mkdir()
    (tree / "~/9.txt").write_text("a directory of that name")
    assert expand_addresses("~/9.txt") == ["~/9.txt"]


@pytest.mark.parametrize("address", ["nosuch://box/a.txt", "nosuch://bucket/*.txt", "no-such+one:///part-{0..3}"])
def test_schemes_that_nothing_serves_are_refused(address):
    with pytest.raises(ConfigError, match=r"no-?such"):
        expand_addresses(address)


def test_secrets_of_a_refused_address_are_not_told():
    with pytest.raises(ConfigError) as caught:
        expand_addresses("nosuch://me:hunter2@box/a.txt")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("nothing", [[], (), "", [""], None, 3, [3], b"a.txt", ["a\0b"]])
def test_what_is_no_address_is_refused(nothing):
    with pytest.raises(ConfigError):
        expand_addresses(nothing)


@pytest.mark.parametrize("missing", ["no.txt", "no/where/*.txt", "no/**", "9.txt/**", "9.txt/inside", "x" * 5000])
def test_what_does_not_exist_is_not_found(tree, missing):
    with pytest.raises(StreamNotFound) as caught:
        expand_addresses(["9.txt", missing])
    assert caught.value.address == missing
    assert isinstance(caught.value, FileNotFoundError)


def test_a_directory_without_such_a_file_says_so(tree):
    with pytest.raises(StreamNotFound, match=r"no file that matches '\*.mp4' \(7 other files\)"):
        expand_addresses(".", "*.mp4")


def test_links_are_followed_but_not_in_circles(tree):
    (tree / "deep/up").symlink_to(tree, target_is_directory=True)
    (tree / "deep/er/link.txt").symlink_to(tree / "9.txt")
    assert expand_addresses("deep") == [
        "deep/er/c.txt",
        "deep/er/link.txt",
        *(f"deep/up/{name}" for name in ("10.txt", "9.txt", "[1].txt", "a b.txt", "b.TXT", "note.md")),
    ]


@pytest.mark.parametrize("address", ["lost.txt", ".", "*.txt"])
def test_a_broken_link_is_not_passed_over(tree, address):
    (tree / "lost.txt").symlink_to("gone.txt")
    with pytest.raises(StreamNotFound, match=r"lost.txt is a link to gone.txt, which does not exist"):
        expand_addresses(address)


def test_pipes_and_sockets_are_refused(tree):
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name in ("pipe", "socket", "/dev/null"):
            with pytest.raises(UnreadableStream, match="needs a file"):
                expand_addresses(name)
    with pytest.raises(UnreadableStream, match="not a regular file"):
        expand_addresses(".")


@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#2#2", "a#3"])))
def test_keys_are_unique_and_first_ones_keep_their_name(names):
    keys = make_unique_keys(names)
    assert len(set(keys)) == len(keys) == len(names)
    assert all(key == name or key.startswith(f"{name}#") for key, name in zip(keys, names, strict=True))
    assert make_unique_keys(keys) == keys
    if names:
        assert keys[0] == names[0]


@pytest.mark.parametrize(
    ("braces", "expected"),
    [
        ("{9,10}.txt", ["9.txt", "10.txt"]),
        ("{0{9..9},9}.txt", None),
        ("{10,9,10}.txt", ["10.txt", "9.txt", "10.txt"]),
        ("{deep/er/c,[0-9]*}.txt", ["deep/er/c.txt", "10.txt", "9.txt"]),
        ("deep{,/er}", ["deep/er/c.txt", "deep/er/c.txt"]),
        ("{9..9}.txt", ["9.txt"]),
    ],
)
def test_braces_are_expanded_in_their_order(tree, braces, expected):
    if expected is None:
        with pytest.raises(StreamNotFound, match=r"09\.txt"):
            expand_addresses(braces)
    else:
        assert expand_addresses(braces) == expected


def test_a_path_with_braces_that_exists_is_itself(tree):
    (tree / "{9,10}.txt").write_text("")
    assert expand_addresses("{9,10}.txt") == ["{9,10}.txt"]
