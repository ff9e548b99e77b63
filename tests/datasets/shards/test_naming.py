"""Names of members: the split of WebDataset, and what may be written."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from streamloader import ConfigError
from streamloader.containers.base import describe_unsafe_name
from streamloader.datasets.shards.naming import (
    MAX_FIELD_BYTES,
    MAX_KEY_BYTES,
    check_field,
    check_key,
    join_member_name,
    split_member_name,
)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("train/0001.Left.JPG", ("train/0001", "left.jpg")),
        ("v1.0/0001.cls", ("v1.0/0001", "cls")),
        ("a b.txt", ("a b", "txt")),
        ("a..b", ("a", ".b")),
        ("line\nbreak.txt", ("line\nbreak", "txt")),
        ("README", None),
        ("dir.d/README", None),
        (".hidden.jpg", None),
        ("dir/._0001.jpg", None),  # macOS adds such members
        ("0001.", ("0001", "")),
        ("__meta.x__", None),
        ("__meta__/a.jpg", None),
        ("0001.__key__", None),  # would replace the key of the sample
        ("", None),
    ],
)
def test_names_are_split(name, parts):
    assert split_member_name(name) == parts


@given(st.text(st.sampled_from("ab./_-é "), max_size=12))
def test_names_are_split_as_webdataset_does(name):
    prefix, suffix = base_plus_ext(name)
    parts = split_member_name(name)
    if parts is not None:
        assert parts == (prefix, suffix.lower())
    elif prefix:  # what is left out here and not there
        is_hidden = prefix.endswith("/")  # webdataset takes the folder of a hidden file for its key
        assert suffix.startswith("__") or name.startswith("__") or is_hidden


@pytest.mark.parametrize("key", ["0001", "train/0001", "v1.0/0001", "a b", "été/日本", "x" * MAX_KEY_BYTES, "__a"])
def test_keys_that_can_be_written(key):
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", "a.b", "/a", "a/", "a//b", "../a", "a/..", "./a", "a\nb", "a\0", "\udcff", "c:/a", "__m__", "__m__/a",
     "x" * (MAX_KEY_BYTES + 1), 7, None, b"a"],
)  # fmt: skip
def test_keys_that_readers_would_misread(key):
    with pytest.raises(ConfigError, match="key"):
        check_key(key)


@pytest.mark.parametrize("field", ["jpg", "left.jpg", "x" * MAX_FIELD_BYTES, "a_b", "a__b"])
def test_fields_that_can_be_written(field):
    assert check_field(field) == field


@pytest.mark.parametrize(
    "field",
    ["", "JPG", "a/b", ".jpg", "a b", "a\n", "__key__", "__x", "x__", "\udcff", "x" * (MAX_FIELD_BYTES + 1), 7, None],
)
def test_fields_that_readers_would_misread(field):
    with pytest.raises(ConfigError, match="field"):
        check_field(field)


@given(st.text(max_size=40), st.text(max_size=10))
def test_what_may_be_written_is_read_back_unchanged(key, field):
    try:
        check_key(key)
        check_field(field)
    except ConfigError:
        return
    name = join_member_name(key, field)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(name))
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        assert tar.getnames() == [name]
    assert describe_unsafe_name(name) is None
    assert split_member_name(name) == (key, field)
