"""The members of a container by name."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from streamloader.containers.base import Member, describe_unsafe_name
from streamloader.containers.index import MemberIndex

NAMES = st.text(st.sampled_from("ab/.0é\U0001f41b"), min_size=1, max_size=5)


def make_index(members):
    index = MemberIndex()
    for member in members:
        index.add(member)
    index.sort()
    return index


@given(st.lists(st.tuples(NAMES, st.integers(0, 2**62), st.none() | st.integers(0, 2**32 - 1)), max_size=30), NAMES)
def test_an_index_is_a_dict_of_its_members(rows, other):
    members = [
        Member(name, size, number, number + 512, size // 2, checksum=checksum, modified=None if size % 2 else size / 7)
        for number, (name, size, checksum) in enumerate(rows)
    ]
    expected = {member.name: member for member in members}
    index = pickle.loads(pickle.dumps(make_index(members)))
    assert len(index) == len(expected)
    for name in {*expected, other}:
        assert index.find(name) == expected.get(name)
        assert index.has_directory(name) == any(member.startswith(f"{name}/") for member in expected)
    assert list(index.list("", recursive=True)) == [expected[name] for name in sorted(expected)]
    for prefix in {*expected, other, ""}:
        start = f"{prefix}/" if prefix else ""
        below = sorted(name for name in expected if name.startswith(start))
        assert list(index.list(prefix, recursive=True)) == [expected[name] for name in below]
        level = {}
        for name in below:
            head, slash, _ = name[len(start) :].partition("/")
            level[f"{start}{head}{slash}"] = f"{start}{head}/" if slash else expected[name]
        listed = list(index.list(prefix, recursive=False))
        assert sorted(listed, key=str) == sorted(level.values(), key=str)


def test_members_that_are_never_read_keep_their_reason():
    plain, link = Member("b", 1, 0, 512, 1), Member("a", 0, 1024, 1536, 0, problem="a symbolic link")
    index = make_index([plain, link, Member("c", 0, 2048, 2560, 0, problem="a device"), Member("c", 3, 3072, 3584, 3)])
    assert index.problems == [link]  # the later member of the name "c" is an ordinary file
    assert index.find("a") == link
    assert index.find("c").size == 3


def test_names_that_could_lead_elsewhere_are_unsafe():
    for name in ("a", "a/b", "...", ".hidden", "-x", "a b", "a:b", "C:", "é", "back\\slash"):
        assert describe_unsafe_name(name) is None, name
    for name in (
        "",
        "/a",
        "..",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        "C:/a",
        "c:\\a",
        "x" * 5000,
        "é" * 2049,
    ):
        assert describe_unsafe_name(name) is not None, name
