"""Braces and patterns mean the same as in bash and in Python's glob."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamloader.errors import ConfigError, LimitExceeded
from streamloader.stores import patterns
from streamloader.stores.patterns import (
    expand_braces,
    has_magic,
    is_hidden,
    make_path_filter,
    matches_name,
    matches_path,
)

BASH = shutil.which("bash")

numbers = st.one_of(
    st.integers(-12, 12).map(str), st.integers(0, 12).map(lambda n: f"{n:03}"), st.sampled_from(["-01", "00", "1.5"])
)
steps = st.one_of(st.just(""), st.integers(-4, 4).map(lambda n: f"..{n}"))
ranges = st.builds("{{{}..{}{}}}".format, numbers, numbers, steps)
letters = st.builds("{{{}..{}{}}}".format, st.sampled_from("aeh"), st.sampled_from("aeh"), steps)
plain = st.text("abx/-_0,}", max_size=4)  # dots between braces are a matter of bash
pieces = st.recursive(
    st.one_of(plain, ranges, letters),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"{{{','.join(parts)}}}"),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        inner.map(lambda part: f"{{{part}"),  # never closed
    ),
    max_leaves=6,
)


def told_by_bash(words):
    """Return bash's expansion of each of `words`, which need no quotes."""
    script = "\n".join(f"printf '%s\\0' x{word}; printf '\\n\\0'" for word in words)
    shown = subprocess.run([BASH, "-f", "-c", script], capture_output=True, check=True, timeout=60).stdout.decode()
    found, one = [], []
    for word in shown.split("\0")[:-1]:
        if word == "\n":
            found.append(one)
            one = []
        else:
            one.append(word)
    return found


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@settings(max_examples=60)
@given(st.lists(pieces, min_size=1, max_size=20))
def test_braces_mean_what_they_mean_to_bash(words):
    assert [expand_braces(f"x{word}") for word in words] == told_by_bash(words)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://b/shard-{098..101}.tar", [f"s3://b/shard-{n}.tar" for n in ("098", "099", "100", "101")]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("s3://b{a,b}/{x,y}", ["s3://ba/x", "s3://ba/y", "s3://bb/x", "s3://bb/y"]),
        ("{a{1,2},b}{,.gz}", ["a1", "a1.gz", "a2", "a2.gz", "b", "b.gz"]),
        ("a?b=[{1,2}]*", ["a?b=[1]*", "a?b=[2]*"]),
        ("größe {ä,ö}.txt", ["größe ä.txt", "größe ö.txt"]),
        ("{only}", ["{only}"]),
        ("{not,closed", ["{not,closed"]),
        ("", [""]),
        (r"kept\{a,b}", [r"kept\{a,b}"]),
    ],
)
def test_braces(address, expected):
    assert expand_braces(address) == expected


def test_braces_have_a_limit(monkeypatch):
    for bomb in ("{1..100000000000}", "{0..9}" * 30):
        with pytest.raises(LimitExceeded, match="more than 10,000,000 addresses") as caught:
            expand_braces(f"s3://me:hunter2@b/{bomb}.txt")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="too deeply"):
        expand_braces("{a," * 3000 + "}" * 3000)
    monkeypatch.setattr(patterns, "_MAX_BRACE_EXPANSIONS", 16)
    assert len(expand_braces("{1..4}{1..4}")) == 16
    with pytest.raises(LimitExceeded):
        expand_braces("{1..17}")


def test_which_files_of_a_directory_count():
    for name in ("a/b.MP4", "b.mp4"):
        assert make_path_filter("*.mp4")(name)
        assert make_path_filter(None)(name)
        assert not make_path_filter("b")(name)
    assert not make_path_filter("*.mp4")("mp4/a.txt")

    def mine(path):
        return path == "a"

    assert make_path_filter(mine) is mine


def test_magic_and_hidden_names():
    assert [has_magic(name) for name in ("a*", "a?", "[", "a{1,2}", "]", "")] == [True, True, True, False, False, False]
    assert [is_hidden(name) for name in (".a", "a/.b/c", "a.b/c.d", "a/..")] == [True, True, False, True]


names = st.sampled_from(["a", "b", "ab", "a.txt", ".h", ".h.txt", "B", "a-b"])
parts = st.sampled_from(["**", "*", "a*", "?", "*.txt", "[ab]", "[!a]", ".*", "a", ".h", "ab", "**b", "*/*"])


FILES_AND_PATTERN = (
    st.lists(st.lists(names, min_size=1, max_size=4), max_size=8),
    st.lists(parts, min_size=1, max_size=4),
)


@settings(max_examples=80)
@given(*FILES_AND_PATTERN)
def test_patterns_match_what_glob_finds(files, pattern):
    check_against_glob(files, pattern)


@pytest.mark.slow
@settings(max_examples=1000)
@given(*FILES_AND_PATTERN)
def test_patterns_match_what_glob_finds_in_many_cases(files, pattern):
    check_against_glob(files, pattern)


def check_against_glob(files, pattern):
    pattern = "/".join(pattern).split("/")
    with_tree = {"/".join(file) for file in files}
    # A name is a file or a directory, never both.
    assume(not any(f"{one}/" in f"{other}/" and one != other for one in with_tree for other in with_tree))
    assert matched(with_tree, pattern) == globbed(with_tree, "/".join(pattern))


def matched(files, parts):
    if "**" in parts:
        return sorted(file for file in files if matches_path(file.split("/"), parts))
    return sorted(
        file
        for file in files
        if len(names := file.split("/")) == len(parts)
        and all(
            matches_name(name, part) if has_magic(part) else name == part
            for name, part in zip(names, parts, strict=True)
        )
    )


def globbed(files, pattern):
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return sorted(
            {
                os.path.normpath(found)
                for found in glob.glob(pattern, root_dir=folder, recursive=True)
                if os.path.isfile(os.path.join(folder, found))
            }
        )
