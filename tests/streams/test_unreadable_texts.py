"""Texts that cannot be used: left out, or listed in one error."""

from __future__ import annotations

import os

import pytest

import streamloader as sl
from streamloader.testing import describe_streams


@pytest.fixture
def texts(tmp_path):
    """Texts, a pipe, a link to nothing, and a text in another encoding."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "c"):
        (folder / f"{name}.txt").write_text(name * 5)
    (folder / "b.txt").write_bytes(b"caf\xe9")
    os.mkfifo(folder / "pipe.txt")
    (folder / "link.txt").symlink_to("nothing")
    return folder


def count_letters(text):
    return [len(text)] * len(text)


def test_texts_that_cannot_be_used_are_one_error_that_lists_them(texts):
    for unreadable in (None, "raise"):
        with pytest.raises(sl.StreamloaderError, match="2 files or directories cannot be read") as raised:
            describe_streams(sl.TextStreams(texts, unreadable=unreadable))
        assert all(f"{texts}/{name}.txt" in raised.value.message for name in ("pipe", "link"))
    for name in ("pipe", "link"):
        (texts / f"{name}.txt").unlink()
    (texts / "d.txt").write_bytes(b"\xff")
    with pytest.raises(sl.UnreadableStream, match="2 of 4 texts cannot be used") as raised:
        describe_streams(sl.TextStreams(texts, count_letters))
    assert [os.path.basename(name) for name, _, _ in raised.value.details["failed"]] == ["b.txt", "d.txt"]
    with pytest.raises(sl.ConfigError, match="unreadable"):
        sl.TextStreams(texts, unreadable="ignore")


def test_texts_that_cannot_be_used_are_left_out(texts, caplog):
    whole = sl.TextStreams(texts, unreadable="skip")
    assert [os.path.basename(info.key) for info in describe_streams(whole)] == ["a.txt", "b.txt", "c.txt"]
    tokens = sl.TextStreams(texts, count_letters, unreadable="skip")
    infos = describe_streams(tokens)
    assert [(os.path.basename(info.key), info.length) for info in infos] == [("a.txt", 5), ("c.txt", 5)]
    assert [os.path.basename(file.address) for file in tokens.skipped] == ["link.txt", "pipe.txt", "b.txt"]
    assert "left out 1 of 3 texts that cannot be used" in caplog.text
    with sl.MultiStreamer(sl.TextStreams(texts, count_letters), 2, 5, on_error="skip", shuffle=False) as loader:
        (batch,) = list(loader)
        assert batch.data.tolist() == [[5] * 5] * 2
    for name in "ac":
        (texts / f"{name}.txt").write_bytes(b"\xff")
    with pytest.raises(sl.UnreadableStream, match="3 of 3 texts"):
        describe_streams(tokens)


def test_a_tokenizer_that_refuses_a_text_is_an_error_of_that_text(texts):
    def refuse(text):
        if text.startswith("c"):
            raise ValueError("no such letter")
        return [1]

    dataset = sl.TextStreams(texts, refuse, unreadable="skip")
    assert [os.path.basename(info.key) for info in describe_streams(dataset)] == ["a.txt"]
    assert "no such letter" in dataset.skipped[-1].message
