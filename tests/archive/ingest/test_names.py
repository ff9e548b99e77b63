"""Names of videos: defaults, templates and functions, and names of files that are not text."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from archive.ingest.archives import archive, clip, names, rows

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.archive.ingest.naming import fill_name_template, list_default_names
from streamloader.cli.main import main
from streamloader.common.printable import make_printable, make_storable
from streamloader.errors import ConfigError, NameConflict

EVIL = (b"caf\xe9.mp4", b"new\nline\x1b[31mred.mp4", "\u202eevil.mp4".encode(), b"ok.mp4")
STORED = ("caf\\udce9", "new\\nline\\x1b[31mred", "ok", "\u202eevil")


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    """Folders of cameras, whose files have equal names and different frames."""
    folder = tmp_path_factory.mktemp("cameras")
    for number, path in enumerate(("x/camA/0001", "x/camB/0001", "x/camB/0002", "y/camA/0001")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        clip(folder / f"{path}.mp4", number, frames=5)
    return folder


def add(catalog, videos, **options):
    return add_videos(catalog, videos, jobs=0, **options)


def test_folders_with_equal_names_are_added_one_after_the_other(tmp_path, cameras):
    with archive(tmp_path) as catalog:
        for folder in ("x/camA", "x/camB", "y/camA"):
            assert not add(catalog, cameras / folder).failed
        assert names(catalog) == ["0001", "camB/0001", "0002", "camA/0001"]
        for folder in ("y/camA", "x/camB", "x/camA"):  # what is in the archive keeps its name
            assert not add(catalog, cameras / folder).added
        assert names(catalog) == ["0001", "camB/0001", "0002", "camA/0001"]
    with archive(tmp_path / "one call") as catalog:
        add(catalog, cameras)
        assert names(catalog) == ["0001", "camB/0001", "0002", "camA/0001"]


def test_a_source_that_has_changed_does_not_get_another_name(tmp_path, cameras):
    """Its name is that of the old version, which the user has to replace."""
    path = tmp_path / "v.mp4"
    shutil.copy(cameras / "x/camA/0001.mp4", path)
    with archive(tmp_path) as catalog:
        add(catalog, path)
        shutil.copy(cameras / "x/camB/0001.mp4", path)
        with pytest.raises(NameConflict, match=r"another name= .or a template"):
            add(catalog, path)


@pytest.mark.parametrize("order", [("x/camA", "x/camB", "y/camA"), ("y/camA", "x/camB", "x/camA"), (".",)])
def test_a_template_gives_the_same_names_in_any_order(tmp_path, cameras, order):
    template = "{grandparent}/{parent}-{stem}{suffix}"
    with archive(tmp_path) as catalog:
        for folder in order:
            add(catalog, cameras / folder, name=template)
        found = {os.path.relpath(video.source, cameras): video.name for video, _ in rows(catalog)}
    assert found == {
        "x/camA/0001.mp4": "x/camA-0001.mp4",
        "x/camB/0001.mp4": "x/camB-0001.mp4",
        "x/camB/0002.mp4": "x/camB-0002.mp4",
        "y/camA/0001.mp4": "y/camA-0001.mp4",
    }


def test_a_function_names_videos(tmp_path, cameras):
    with archive(tmp_path) as catalog:
        add(catalog, cameras / "x", name=lambda address: "-".join(address.rsplit("/", 2)[1:]))
        assert names(catalog) == ["camA-0001.mp4", "camB-0001.mp4", "camB-0002.mp4"]
        for bad in (lambda address: "", lambda address: 3):
            with pytest.raises(ConfigError, match="must be a non-empty text"):
                add(catalog, cameras, name=bad)


def test_names_that_are_not_unique_are_refused_before_anything_is_done(tmp_path, cameras):
    with archive(tmp_path) as catalog:
        for name in ("{stem}", "{parent}/{stem}", lambda address: "same"):
            with pytest.raises(ConfigError, match="the same name"):
                add(catalog, cameras, name=name)
        with pytest.raises(ConfigError, match=r"no field {folder}. Use {stem}, {suffix}, {name}, {parent}"):
            add(catalog, cameras, name="{folder}/{stem}")
        with pytest.raises(ConfigError, match=r"is for a single video.*use a template"):
            add(catalog, cameras, name="v")
        assert names(catalog) == []


def test_the_command_takes_a_template(tmp_path, cameras):
    command = ["ingest", "--to", str(tmp_path / "archive"), "--jobs", "0", "--quiet", "--name", "{parent}/{stem}"]
    for folder in ("camA", "camB"):
        assert main([*command, str(cameras / "x" / folder)]) == 0
    with archive(tmp_path / "archive", make=False) as catalog:
        assert names(catalog) == ["camA/0001", "camB/0001", "camB/0002"]


@pytest.mark.parametrize(
    ("address", "expected", "filled"),
    [
        ("/a/b/c.tar.mp4", ["c.tar", "b/c.tar", "a/b/c.tar"], "b/c.tar"),
        ("/c.mp4", ["c"], "/c"),
        ("s3://bucket/day/c.mp4", ["c", "day/c", "bucket/day/c"], "day/c"),
        ("https://me:pass-word-1@host/v%20w/c.mp4?sig=abc#x", ["c", "v w/c", "host/v w/c"], "v w/c"),
    ],
)
def test_names_by_address(address, expected, filled):
    assert list(list_default_names(address))[: len(expected)] == expected
    assert fill_name_template("{parent}/{stem}", address) == filled


# --- names of files that are no text ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """Videos, and one file that is none, whose names are not UTF-8 or obeyed by a terminal."""
    folder = tmp_path_factory.mktemp("evil")
    for number, name in enumerate(EVIL):
        clip(folder / "clip.mp4", number, frames=5)
        os.rename(folder / "clip.mp4", os.path.join(os.fsencode(folder), name))
    with open(os.path.join(os.fsencode(folder), b"bad\xff\x1b[1m\n.mp4"), "wb") as file:
        file.write(b"junk" * 50)
    return folder


def is_clean(text):
    text.encode()  # also for a terminal that is strict
    return all(make_printable(line, None) == line for line in text.splitlines())


@pytest.mark.parametrize("jobs", [0, 2])
def test_names_that_are_not_utf_8_are_added(tmp_path, evil, jobs):
    with archive(tmp_path) as catalog:
        report = add_videos(catalog, evil, jobs=jobs, on_error="report", metadata=lambda address: {"from": address})
        assert names(catalog) == sorted(STORED, key=lambda name: name.encode("utf-8", "surrogateescape"))
        assert [type(failed.error).__name__ for failed in report.failed] == ["UnreadableStream"]
        for video, _ in rows(catalog):
            assert make_storable(video.source) == video.source
            assert make_storable(video.metadata["from"]) == video.source
        again = add_videos(catalog, evil, jobs=jobs, on_error="report")
        assert len(again.existing) == len(EVIL)
        json.dumps(again.to_json(), ensure_ascii=False).encode()
    with sl.open_archive(str(tmp_path / "catalog.sqlite")) as reader:
        assert len(reader) == 5 * len(EVIL)


def test_commands_print_clean_text(tmp_path, evil, capsys):
    folder = str(evil)
    paths = [os.fsdecode(os.path.join(os.fsencode(folder), name)) for name in EVIL]
    place, index = str(tmp_path / "archive"), str(tmp_path / "videos.index")
    for status, command in (
        (1, ["ingest", folder, "--to", place, "--jobs", "0"]),
        (1, ["ingest", folder, "--to", place, "--jobs", "0", "--json"]),
        (2, ["ingest", f"{folder}/none\udcff\x1b[31m\n.mp4", "--to", place]),
        (0, ["inspect", f"{place}/catalog.sqlite"]),
        (0, ["inspect", f"{place}/catalog.sqlite", "--json"]),
        (1, ["index", folder, "--to", index, "--unreadable", "skip"]),
        (1, ["index", folder, "--to", index, "--unreadable", "skip", "--json"]),
        (2, ["plan", folder, "--batch-size", "2", "--window", "4"]),
        (0, ["plan", *paths, "--batch-size", "2", "--window", "4"]),
        (0, ["plan", *paths, "--batch-size", "2", "--window", "4", "--json"]),
        (0, ["pack", folder, "--output", str(tmp_path / "\x1b\udcff.pack")]),
        (0, ["inspect", str(tmp_path / "\x1b\udcff.pack")]),
        (0, ["inspect", str(tmp_path / "\x1b\udcff.pack"), "--json"]),
    ):
        assert main(command) == status, command
        printed = capsys.readouterr()
        assert is_clean(printed.out), command
        assert is_clean(printed.err), command
        if "--json" in command:
            json.dumps(json.loads(printed.out), ensure_ascii=False).encode()
    for command in (["pack", "a", "\x1b[31m\udcff"], ["\x1b[31m\udcff"], ["ingest", "v", "--jobs", "\x1b[31m"]):
        with pytest.raises(SystemExit):
            main(command)
        assert is_clean(capsys.readouterr().err), command


def test_letters_that_the_terminal_lacks_are_escaped(tmp_path, monkeypatch):
    import io
    import sys

    clip(tmp_path / "grün.mp4", frames=5)
    shown = io.BytesIO()
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
        assert main(["plan", "grün.mp4", "--batch-size", "1", "--window", "4"]) == 0
        sys.stdout.flush()
        output = shown.getvalue().decode("ascii")
    assert "\\xfc" in output, output
