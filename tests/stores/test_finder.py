"""Every kind of store is searched by the same rules: links, hidden names, and what may not be read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from made_clips import make_clip
from servers.sshd import Missing, permission_wrapper
from servers.sshd_fixture import started

PROGRAM = Path(__file__).with_name("search_program.py")
LOCKED = ("secret", "into", "way")  # a directory without access, and links into it and to it
STORES = ("local", "local store", "fsspec", "ssh")


@pytest.fixture(scope="module")
def wrapper():
    try:
        return permission_wrapper()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def server():
    with started(obeys_permissions=True) as server:
        yield server


@pytest.fixture
def tree(server):
    """A tree with all that a search can meet."""
    root = server.data / "tree"
    for name in ("a.txt", "10.txt", "note.md", "new\nline.txt", os.fsdecode(b"caf\xe9.txt"), "real/f.txt",
                 "deep/er/g.txt", ".hidden/h.txt", "deep/.h.txt", "secret/inner/s.txt"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name.partition("\n")[0].encode("ascii", "replace").decode())
    for name, target in (
        ("loop", "."), ("real/up", ".."), ("alias", "real"), ("deep/er/back", "../../deep"), ("x", "y"), ("y", "x"),
        ("self", "self"), ("lost.bin", "nowhere"), ("null.bin", "/dev/null"), ("into", "secret/inner"),
        ("way", "secret"), ("link.txt", "a.txt"), (".trash", "secret"),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.bin")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)
        listener.bind("socket.bin")
        os.chdir(here)
    (root / ".locked").mkdir(mode=0)
    (root / "secret").chmod(0)
    yield root
    (root / "secret").chmod(0o700)
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.fixture
def search(wrapper, server, tmp_path):
    """Return a function that searches in a process without root's rights."""

    def run(root, *requests):
        options = {"local": None, "local store": None, "fsspec": None, "ssh": server.options()}
        prefixes = {
            "local": "", "local store": "local-store://-", "fsspec": "local://", "ssh": server.url,
        }  # fmt: skip
        documents = [
            [
                finder,
                [f"{prefixes[store]}{root}{end}" for end in ([suffix] if isinstance(suffix, str) else suffix)],
                options[store],
                unreadable,
            ]
            for store, finder, suffix, unreadable in requests
        ]
        command = [*wrapper, sys.executable, str(PROGRAM), json.dumps(documents)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        results = []
        for (store, *_), (files, warnings, error) in zip(requests, json.loads(done.stdout), strict=True):
            start = len(f"{prefixes[store]}{root}/")
            names = [os.fsdecode(bytes.fromhex(file))[start:] for file in files]
            results.append((names, warnings, error))
        return results

    return run


def find(wrapper, root, *expression):
    """Return what `find -L` finds, without hidden names."""
    command = [*wrapper, "find", "-L", str(root), "-mindepth", "1", "-name", ".*", "-prune", "-o", *expression]
    output = subprocess.run([*command, "-print0"], capture_output=True, timeout=60, check=False).stdout
    return sorted(os.fsdecode(path)[len(f"{root}/") :] for path in output.split(b"\0") if path)


def test_all_stores_find_what_find_finds(tree, search, wrapper):
    requests = [(store, "files", suffix, None) for suffix in ("", "/**/*.txt", "/**") for store in STORES]
    requests.append(("local", "images", "", None))
    texts = find(wrapper, tree, "-type", "f", "-name", "*.txt")
    assert texts == [
        "10.txt", "a.txt", "alias/f.txt", os.fsdecode(b"caf\xe9.txt"), "deep/er/g.txt", "link.txt", "new\nline.txt",
        "real/f.txt",
    ]  # fmt: skip
    for request, (names, warnings, error) in zip(requests, search(tree, *requests), strict=True):
        if request[2] == "/**":  # every name is wanted, so the pipes and links that lead nowhere are errors
            assert error is not None, request
            failed = [Path(address).name for address, _, _ in error[2]]
            assert failed == ["lost.bin", "null.bin", "pipe.bin", "self", "socket.bin", "x", "y"], request
            assert "7 files or directories cannot be read" in error[1]
            continue
        assert (error, names) == (None, texts), request
        assert len(warnings) == 1, request
        lines = warnings[0].splitlines()
        assert [line.split(": ")[0].split(" is ")[0].rpartition("/")[2] for line in lines[1:]] == sorted(LOCKED), (
            request
        )


def test_unreadable_raise_and_skip(tree, search, wrapper):
    requests = [(store, "files", suffix, "raise") for suffix in ("", "/**/*.txt") for store in STORES]
    for request, (_, warnings, error) in zip(requests, search(tree, *requests), strict=True):
        assert error is not None, request
        assert [Path(address).name for address, _, _ in error[2]] == sorted(LOCKED), request
        assert error[0] in ("UnreadableStream", "AccessDenied")
        assert not warnings
    everything = find(wrapper, tree, "-type", "f")
    requests = [(store, "files", "/**", "skip") for store in STORES]
    for request, (names, warnings, error) in zip(requests, search(tree, *requests), strict=True):
        assert (error, names) == (None, everything), request
        assert len(warnings) == 1, request
        assert all(f"{name}" in warnings[0] for name in (*LOCKED, "lost.bin", "pipe.bin", "socket.bin")), request
        assert "hidden" not in warnings[0]


def test_a_pattern_that_leads_through_a_directory_without_access_names_it(tree, search):
    suffixes = ("/*/inner/s.txt", "/*/s.txt", "/*/inner/*.txt", "/*/inner/**", "/s*/**/*.txt")
    requests = [(store, "files", suffix, None) for suffix in suffixes for store in STORES]
    for request, (_, _, error) in zip(requests, search(tree, *requests), strict=True):
        assert error is not None, request
        assert error[0] == "StreamNotFound"
        assert "may not be read" in error[1], request
        assert f"{tree}/secret" in error[1], request


def test_a_named_directory_without_access_is_an_error(tree, search):
    requests = [(store, "files", "/secret", None) for store in STORES]
    for request, (_, _, error) in zip(requests, search(tree, *requests), strict=True):
        assert error is not None, request
        assert error[0] in ("UnreadableStream", "AccessDenied"), request
        assert f"{tree}/secret" in error[1]


def test_a_directory_whose_names_alone_may_be_read_is_one_that_may_not_be_read(tree, search):
    half = tree / "half"
    (half / "inner").mkdir(parents=True)
    for name in ("a.txt", "inner/b.txt"):
        (half / name).write_text("x")
    half.chmod(0o444)  # as after chmod -R 644
    try:
        suffixes = ("", "/**/*.txt", "/*/*.txt")
        requests = [(store, "files", suffix, None) for suffix in (*suffixes, "/half") for store in STORES]
        for request, (names, warnings, error) in zip(requests, search(tree, *requests), strict=True):
            if request[2] == "/half":
                assert error is not None, request
                assert error[0] in ("UnreadableStream", "AccessDenied"), request
                continue
            assert error is None, request
            assert "a.txt" in names or request[2] == "/*/*.txt", request
            assert not any(name.startswith("half") for name in names), request
            assert [f"{tree}/half" in warning for warning in warnings] == [True], request
    finally:
        half.chmod(0o700)


def test_links_through_many_links_and_through_files(server, search, wrapper):
    root = server.data / "chain"
    (root / "folder").mkdir(parents=True)
    (root / "folder/f.txt").write_text("f")
    (root / "folder/g.txt").write_text("g")
    target = "folder"
    for number in range(45):  # the system follows 40, and the server's realpath only 32
        (root / f"link{number:02}").symlink_to(target)
        target = f"link{number:02}"
    (root / "through.bin").symlink_to("folder/f.txt/none")
    (root / "long.bin").symlink_to("n" * 4000)
    texts = find(wrapper, root, "-type", "f", "-name", "*.txt")
    assert len(texts) > 2 * 33
    requests = [(store, "files", suffix, None) for suffix in ("", "/**/*.txt", "/*/*.txt", "/*") for store in STORES]
    for request, (names, warnings, error) in zip(requests, search(root, *requests), strict=True):
        if request[2] != "/*":
            assert (error, names, warnings) == (None, texts, []), request
            continue
        assert error is not None, request
        assert [Path(address).name[:4] for address, _, _ in error[2]][-6:] == [*["link"] * 4, "long", "thro"], request
        assert "link44 is a link to link43, which does not exist" not in error[1], request


def test_hidden_names_are_entered_only_if_they_are_named(tree, search):
    requests = [(store, "files", suffix, None) for suffix in ("/.hidden", "/.h*/*.txt", "/deep/.*") for store in STORES]
    expected = [[".hidden/h.txt"]] * 2 * len(STORES) + [["deep/.h.txt"]] * len(STORES)
    assert [names for names, _, _ in search(tree, *requests)] == expected


def test_datasets_follow_the_rules(tree, search):
    make_clip(tree / "real/clip.mp4", codec="mpeg4", frames=3)
    requests = [
        ("local", finder, suffix, unreadable)
        for finder in ("videos", "sounds", "found", "texts")
        for suffix in ("/**/*.mp4", "/**/*.m*4")
        for unreadable in ((None,) if finder == "texts" else (None, "raise", "skip"))
    ]
    for request, (names, warnings, error) in zip(requests, search(tree, *requests), strict=True):
        if request[3] == "raise":
            assert error is not None, request
            assert error[1].startswith("3 files or directories cannot be read"), request
        elif request[1] != "sounds":  # the clips have no sound, which is another error
            assert (names, error) == (["alias/clip.mp4", "real/clip.mp4"], None), request
            assert ["left out 3 directories" in warning for warning in warnings] == [True], request


def test_containers_are_searched_by_the_same_rules(tree, search, tmp_path, wrapper):
    (tree / "secret").chmod(0o700)
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        for name in ("10.txt", "a.txt", "new\nline.txt", "real", "deep", ".hidden", "alias", "link.txt", "pipe.bin"):
            tar.add(tree / name, name)
    ((names, warnings, error),) = search(tmp_path, ("local", "files", "/tree.tar!/", None))
    assert error is None
    assert names == [
        f"tree.tar!/{name}" for name in ("10.txt", "a.txt", "deep/er/g.txt", "new\nline.txt", "real/f.txt")
    ]
    assert len(warnings) == 1  # links in a container are not followed
    assert "are not ordinary files and are left out" in warnings[0]


def test_what_is_named_is_left_out_in_the_same_way(tree, search):
    """A file that is missing, below a directory without access, a pipe, a dead link, and that directory itself."""
    suffixes = ("/gone.txt", "/secret/inner/s.txt", "/pipe.bin", "/lost.bin", "/x", "/secret")
    requests = [(store, "files", [suffix, "/a.txt"], "skip") for suffix in suffixes for store in STORES]
    requests += [(store, "files", [suffix], "skip") for suffix in suffixes for store in STORES]
    for request, (names, warnings, error) in zip(requests, search(tree, *requests), strict=True):
        if len(request[2]) == 1:
            assert error is not None, request
            continue
        assert (error, names) == (None, ["a.txt"]), request
        assert len(warnings) == 1, request
        assert request[2][0].rpartition("/")[2] in warnings[0], request
