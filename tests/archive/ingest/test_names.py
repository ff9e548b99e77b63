"""Names of videos: defaults, templates and functions, and names of files that are not text."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import pytest
from archive.ingest.archives import archive, clip, names, rows

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.archive.ingest.naming import fill_name_template, find_distinct_template, get_default_name
from streamloader.cli.main import main
from streamloader.common.printable import make_printable, make_storable
from streamloader.errors import ConfigError, IngestFailed, NameConflict, VideoNotFound

EVIL = (b"caf\xe9.mp4", b"new\nline\x1b[31mred.mp4", "\u202eevil.mp4".encode(), b"ok.mp4")
STORED = ("caf\\udce9.mp4", "new\\nline\\x1b[31mred.mp4", "ok.mp4", "\u202eevil.mp4")


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


NAMES = {
    "x/camA/0001.mp4": "camA/0001.mp4",
    "x/camB/0001.mp4": "camB/0001.mp4",
    "x/camB/0002.mp4": "camB/0002.mp4",
}


def name_by_file(catalog, folder):
    return {os.path.relpath(os.path.realpath(video.source), folder): video.name for video, _ in rows(catalog)}


@pytest.mark.parametrize(
    "order",
    [
        ("x/camA", "x/camB"),
        ("x/camB", "x/camA"),
        ("x",),
        ("x/*/*.mp4",),
        ("x/camB/0002.mp4", "x/camA/0001.mp4", "x/camB/0001.mp4"),
        ("linked", "x/camB/../camB"),
        ("x/*/0001.mp4", "x"),
    ],
)
def test_default_names_do_not_depend_on_what_was_added_before(tmp_path, cameras, order, monkeypatch):
    with contextlib.suppress(FileExistsError):
        (cameras / "linked").symlink_to("x/camA")
    with archive(tmp_path / "one by one") as catalog:
        for path in order:
            assert not add(catalog, cameras / path).failed
        assert name_by_file(catalog, cameras) == NAMES
        for path in reversed(order):
            assert not add(catalog, cameras / path).added
        assert name_by_file(catalog, cameras) == NAMES
    monkeypatch.chdir(cameras / "x")
    with archive(tmp_path / "one call") as catalog:
        add(catalog, [os.path.relpath(cameras / path) for path in order])
        assert name_by_file(catalog, cameras) == NAMES


def test_files_that_differ_little_have_different_names(tmp_path):
    little = ("x.mp4", "x.mkv", "X.mp4", "caf\u00e9.mp4", "cafe\u0301.mp4", "x")
    (tmp_path / "cam").mkdir()
    for number, name in enumerate(little):
        path = clip(tmp_path / "cam" / f"made{'.mkv' if name.endswith('mkv') else '.mp4'}", number, frames=5)
        os.rename(path, tmp_path / "cam" / name)
    if len(os.listdir(tmp_path / "cam")) < len(little):
        pytest.skip("this file system does not distinguish such names")
    with archive(tmp_path) as catalog:
        for name in little:
            add(catalog, tmp_path / "cam" / name)
        assert names(catalog) == [f"cam/{name}" for name in little]


@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_a_copy_in_a_store_or_a_container_has_the_same_name(tmp_path, cameras, pack):
    from streamloader.stores.io_thread import open_shared_store

    packed = shutil.make_archive(str(tmp_path / "set"), pack, cameras / "x")
    with archive(tmp_path / "packed") as catalog:
        add(catalog, f"{packed}!/camB")
        add(catalog, f"{packed}!")
        assert sorted(names(catalog)) == sorted(NAMES.values())
    store, _ = open_shared_store("memory://copied-names/any")
    with store, archive(tmp_path / "stored") as catalog:
        for path in NAMES:
            store.write(path, (cameras / path).read_bytes())
        add(catalog, "memory://copied-names/x/camB/0001.mp4")
        add(catalog, "memory://copied-names")
        assert sorted(names(catalog)) == sorted(NAMES.values())


def test_different_videos_with_one_default_name_are_one_error_that_lists_them(tmp_path, cameras):
    with archive(tmp_path) as catalog:
        with pytest.raises(ConfigError, match="2 videos would get the same name") as raised:
            add(catalog, [cameras / "x", cameras / "y"])
        assert names(catalog) == []
        both = [str(cameras / folder / "camA/0001.mp4") for folder in "xy"]
        assert raised.value.details["names"] == {"camA/0001.mp4": both}
        assert all(path in raised.value.message for path in both)
        assert 'name="{grandparent}/{parent}/{name}"' in raised.value.message
        add(catalog, [cameras / "x", cameras / "y"], name="{grandparent}/{parent}/{name}")
        assert names(catalog) == ["x/camA/0001.mp4", "x/camB/0001.mp4", "x/camB/0002.mp4", "y/camA/0001.mp4"]
    with archive(tmp_path / "other") as catalog:
        add(catalog, cameras / "x")
        report = add(catalog, [cameras / "y", cameras / "x"], on_error="report")
        (failed,) = report.failed
        assert isinstance(failed.error, NameConflict)
        assert f"from {both[0]}" in failed.error.message
        assert "{grandparent}/{parent}/{name}" in failed.error.message
        assert len(report.existing) == 3


def test_the_advised_template_gives_each_video_its_own_name():
    for addresses, template in (
        (["/a/b/c.mp4", "/a/d/c.mp4"], "{parent}/{name}"),
        (["/a/b/c.mp4", "/d/b/c.mp4"], "{grandparent}/{parent}/{name}"),
        (["/a/b/c/d.mp4", "/e/b/c/d.mp4"], "{path}"),
        (["https://host/get?id=1", "https://host/get?id=2"], None),
    ):
        assert find_distinct_template(addresses) == template


def test_one_file_by_two_ways_is_one_video(tmp_path, cameras):
    (tmp_path / "camA").mkdir()
    os.link(cameras / "x/camA/0001.mp4", tmp_path / "camA/0001.mp4")
    (tmp_path / "linked").symlink_to(cameras / "x/camA")
    with archive(tmp_path / "archive") as catalog:
        add(catalog, [tmp_path / "camA", tmp_path / "linked", cameras / "x/camA"])
        assert names(catalog) == ["camA/0001.mp4"]


def test_archives_of_former_versions_keep_their_names(tmp_path, cameras):
    """Their default names were shorter, and depended on what was in the archive."""
    former = {"x/camA/0001.mp4": "0001", "x/camB/0001.mp4": "camB/0001", "y/camA/0001.mp4": "y/camA/0001"}
    changed = tmp_path / "camC" / "0001.mp4"
    changed.parent.mkdir()
    shutil.copy(cameras / "x/camB/0002.mp4", changed)
    with archive(tmp_path) as catalog:
        for path, name in former.items():
            add(catalog, cameras / path, name=name)
        add(catalog, changed, name="0001#2")
        again = add(catalog, [cameras / "x", cameras / "y", changed])
        assert not again.added
        assert len(again.existing) == 5
        clip(changed, 9, frames=5)
        with pytest.raises(NameConflict, match="'0001#2'"):
            add(catalog, changed)
        assert names(catalog) == [*former.values(), "0001#2"]


def test_a_source_that_has_changed_does_not_get_another_name(tmp_path, cameras):
    """Its name is that of the old version, which the user has to replace."""
    path = tmp_path / "v.mp4"
    shutil.copy(cameras / "x/camA/0001.mp4", path)
    with archive(tmp_path) as catalog:
        add(catalog, path)
        shutil.copy(cameras / "x/camB/0001.mp4", path)
        with pytest.raises(NameConflict, match=r"another name= .or a template"):
            add(catalog, path)


@pytest.mark.parametrize("order", [("x/camA", "x/camB", "y/camA"), ("y/camA", "x/camB", "x/camA"), ("x", "y")])
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
    ("address", "name", "path"),
    [
        ("/a/b/c.tar.mp4", "b/c.tar.mp4", "a/b/c.tar.mp4"),
        ("/c.mp4", "c.mp4", "c.mp4"),
        ("s3://bucket/day/c.mp4", "day/c.mp4", "bucket/day/c.mp4"),
        ("s3://bucket/c.mp4", "bucket/c.mp4", "bucket/c.mp4"),
        ("s3://bucket/set.zip!/day/c.mp4", "day/c.mp4", "bucket/set.zip/day/c.mp4"),
        ("s3://bucket/set.zip!/c.mp4", "set.zip/c.mp4", "bucket/set.zip/c.mp4"),
        ("/a/set.tar!/c.mp4", "set.tar/c.mp4", "a/set.tar/c.mp4"),
        ("ssh://me@box:22/~/v/c.mp4", "v/c.mp4", "box:22/~/v/c.mp4"),
        ("https://me:pass-word-1@host/v%20w/c.mp4?sig=abc#x", "v w/c.mp4", "host/v w/c.mp4"),
        ("https://host/v/caf%E9.mp4", "v/caf\\udce9.mp4", "host/v/caf\\udce9.mp4"),
    ],
)
def test_names_by_address(address, name, path):
    assert get_default_name(address) == name
    assert fill_name_template("{path}", address) == path
    parent, _, file = name.rpartition("/")
    assert fill_name_template("{parent}/{stem}", address) == f"{parent}/{file[:-4]}"


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
        order = sorted(STORED, key=lambda name: name.encode("utf-8", "surrogateescape"))
        assert names(catalog) == [f"{evil.name}/{name}" for name in order]
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


# --- videos by the end of their names --------------------------------------------------------------------------------


def test_a_video_is_found_by_the_end_of_its_name(tmp_path, cameras):
    (tmp_path / "late").mkdir()
    late = clip(tmp_path / "late/0003.mp4", 7, frames=5)
    with archive(tmp_path) as catalog:
        add(catalog, [cameras / "x", cameras / "y"], name="{path}")
    with sl.open_archive(str(tmp_path / "catalog.sqlite")) as reader:
        for end in ("0002", "0002.mp4", "camB/0002", "x/camB/0002.mp4"):
            assert reader[end].name == fill_name_template("{path}", str(cameras / "x/camB/0002.mp4"))
        assert reader["y/camA/0001"].name.endswith("/y/camA/0001.mp4")
        for end in ("002", "", "/", "amB/0002", "camB", "0002.mp", "%", "_002", "0002.mkv", "CAMB/0002"):
            with pytest.raises(VideoNotFound, match="has no video"):
                _ = reader[end]
        with pytest.raises(VideoNotFound, match=r"but 3 whose names end so: .*camA/0001.mp4"):
            _ = reader["0001"]
        with archive(tmp_path, make=False) as catalog:
            add(catalog, late)
        with pytest.raises(VideoNotFound):
            _ = reader["0003"]
        with pytest.raises(VideoNotFound, match="call refresh"):
            _ = reader["late/0003.mp4"]
        assert reader.refresh()["0003"].name == "late/0003.mp4"


# --- files that cannot be used ---------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Two videos among a pipe, a link to nothing, a page, an empty file and a cut one."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for seed, name in enumerate(("a.mp4", "z.mp4")):
        clip(folder / name, seed, frames=5)
    os.mkfifo(folder / "pipe\x1b.mp4")
    (folder / "link.mp4").symlink_to("nothing")
    (folder / "page.mp4").write_text("<html>404</html>")
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    (folder / "app.ts").write_text("export const x = 1;\n")
    return folder


BAD = ["link.mp4", "pipe\\x1b.mp4", "cut.mp4", "empty.mp4", "page.mp4"]


@pytest.mark.parametrize("unreadable", [None, "raise"])
def test_bad_files_do_not_stop_the_rest_and_are_listed(tmp_path, mixed, unreadable):
    with archive(tmp_path) as catalog:
        with pytest.raises(IngestFailed, match=r"5 of 7 videos could not be added \(2 were added") as raised:
            add(catalog, mixed, unreadable=unreadable)
        report = raised.value.details["report"]
        assert [os.path.basename(each.source) for each in report.failed] == BAD
        assert all(os.path.basename(each.source) in raised.value.message for each in report.failed)
        assert not report.skipped
        assert names(catalog) == ["mixed/a.mp4", "mixed/z.mp4"]


def test_bad_files_are_left_out(tmp_path, mixed, caplog):
    with archive(tmp_path) as catalog:
        report = add(catalog, mixed, unreadable="skip")
        assert not report.failed
        assert [os.path.basename(each.address) for each in report.skipped] == BAD
        assert "left out 3 of 5 videos that cannot be used" in caplog.text
        assert "left out 2 files and directories that may not be read" in caplog.text
        assert [each["source"] for each in report.to_json()["skipped"]] == [each.address for each in report.skipped]
        with pytest.raises(ConfigError, match="unreadable"):
            add(catalog, mixed, unreadable="ignore")


def test_what_is_no_fault_of_a_file_is_not_left_out(tmp_path, mixed, cameras):
    with archive(tmp_path) as catalog:
        add(catalog, cameras / "x/camB/0001.mp4", name="mixed/a.mp4")
        with pytest.raises(IngestFailed, match="1 of 7 videos") as raised:
            add(catalog, mixed, unreadable="skip")
        report = raised.value.details["report"]
        assert [type(each.error) for each in report.failed] == [NameConflict]
        assert len(report.skipped) == 5


def test_the_exit_status_says_that_files_are_missing(tmp_path, mixed, capsys):
    command = ["ingest", str(mixed), "--to", str(tmp_path / "archive"), "--jobs", "0", "--quiet"]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "2 videos added, 5 failed" in out
    assert out.count("failed: ") == 5
    assert main([*command, "--unreadable", "skip"]) == 1
    out = capsys.readouterr().out
    assert "0 videos added, 2 already known, 5 left out" in out
    assert out.count("left out: ") == 5
    assert is_clean(out)
    for name in os.listdir(mixed):
        if name not in ("a.mp4", "z.mp4"):
            os.unlink(mixed / name)
    assert main(command) == 0
