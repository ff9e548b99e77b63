"""What a catalog stores of the addresses of its videos, and how the command line shows names of any kind."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3

import pytest
from archive.ingest.archives import CHUNK, archive, clip
from range_server import served

from streamloader.archive.catalog.base import Place
from streamloader.archive.ingest import add_videos, check_archive
from streamloader.archive.ingest.naming import (
    compute_address_tag,
    get_default_name,
    identify_source,
    remove_secrets,
)
from streamloader.archive.ingest.placement import parse_places
from streamloader.cli.main import main
from streamloader.errors import ConfigError, UnreadableStream
from streamloader.media.chunks.settings import CutSettings

SETTINGS = CutSettings(chunk_frames=CHUNK)
ESCAPES = "a\x1b[31m\u202egpj\nFAKE"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    clip(tmp_path / "clips" / "a.mp4")
    return tmp_path / "clips"


def add(catalog, videos, **options):
    return add_videos(catalog, videos, SETTINGS, **({"jobs": 0} | options))


def test_no_secret_is_stored_and_sources_are_told_apart(tmp_path, folder):
    seen = []
    with served(folder) as url, archive(tmp_path / "archive") as catalog:
        address = f"{url.replace('://', '://user:Zeb@ra@')}/a.mp4?name=Zebra&md5=Zebra&id=17"
        report = add(catalog, address, metadata=lambda source: seen.append(source) or {})
        shown = f"{url}/a.mp4?name=***&md5=***&id=17"
        assert [video.source for video in report.added] == [shown]
        assert seen == [f"{url}/a.mp4?name=Zebra&md5=***&id=17"]
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*.sqlite*"))
        assert b"Zeb" not in stored
        assert "Zeb" not in json.dumps(report.to_json())
        # The source is not read again, even if it cannot be read any more. Another one is.
        spoil(folder / "a.mp4")
        signed_again = address.replace("md5=Zebra", "md5=Yonder")
        assert [each.source for each in add(catalog, signed_again).existing] == [shown]
        with pytest.raises(UnreadableStream):
            add(catalog, address.replace("name=Zebra", "name=Yonder"), name="other")


def spoil(path):
    """Replace the contents of a file by zeros. Its version stays the same."""
    status = os.stat(path)
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_rows_of_earlier_versions_are_recognized(tmp_path, folder):
    with served(folder) as url:
        with archive(tmp_path / "archive") as catalog:
            (added,) = add(catalog, f"{url}/a.mp4?name=alpha").added
            assert added.origin["address"] == compute_address_tag(f"{url}/a.mp4?name=alpha") != ""
            # A chunk is not rebuilt from what may be another source.
            next((tmp_path / "archive").rglob("*.mp4")).unlink()
            problems = check_archive(catalog, repair=True).problems
            assert "does not store the complete address" in " ".join(problem.text for problem in problems)
        origin = json.dumps({name: value for name, value in added.origin.items() if name != "address"})
        with contextlib.closing(sqlite3.connect(tmp_path / "archive" / "catalog.sqlite")) as db, db:
            db.execute("UPDATE videos SET source = ?, origin = ?", (f"{url}/a.mp4?name=alpha", origin))
        spoil(folder / "a.mp4")  # it is not read again
        with archive(tmp_path / "archive", make=False) as catalog:
            assert [each.source for each in add(catalog, f"{url}/a.mp4?name=alpha").existing] == [
                f"{url}/a.mp4?name=***"
            ]


@pytest.mark.parametrize(
    ("address", "source", "identity", "name"),
    [
        ("https://user:p@ss@host/v/a.mp4?x=1", "https://host/v/a.mp4?x=***", "https://host/v/a.mp4?x=1", "v/a.mp4"),
        ("https://user:word@host?x=1", "https://host?x=***", "https://host?x=1", "host"),
        ("ssh://me:word@box/a.mp4", "ssh://me@box/a.mp4", "ssh://me@box/a.mp4", "box/a.mp4"),
        ("ssh://m'e:word@box/a.mp4", "ssh://box/a.mp4", "ssh://box/a.mp4", "box/a.mp4"),
        (
            "webdav://me:word@host/a.mp4?token=x",
            "webdav://me@host/a.mp4?token=***",
            "webdav://me@host/a.mp4?token=***",
            "host/a.mp4?token=***",
        ),
        ("ssh://box:22/v/a@b.mp4", "ssh://***", "ssh://box:22/v/a@b.mp4", "b.mp4"),
        ("https://host/eyJhbGciOiJ.abcdef.ghi", "https://host/***", "https://host/eyJhbGciOiJ.abcdef.ghi", "host/***"),
    ],
)
def test_sources_and_names(address, source, identity, name):
    assert (remove_secrets(address), identify_source(address), get_default_name(address)) == (source, identity, name)
    assert bool(compute_address_tag(address)) == (source != identity)


@pytest.mark.parametrize(
    "address",
    [
        "ssh://me:w/ord@box/x",
        "ssh://me:w?ord@box/x",
        "ssh://m'e@box/x",
        "webdav://host/x?token=word",
        "ssh://me:word@box/x",
    ],
)
def test_places_with_secrets_are_refused(address, tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse_places(address)
    assert "ord" not in str(caught.value).replace("password", "")
    with archive(tmp_path / "archive") as catalog:
        header = catalog.call(catalog.resource.get_header())
        with pytest.raises(ConfigError):
            catalog.call(catalog.resource.set_places([*header.places, Place(len(header.places), address, 1.0)]))


def test_the_command_line_shows_names_on_one_printable_line(tmp_path, folder, capsys):
    hostile = folder / f"{ESCAPES}.mp4"
    os.rename(folder / "a.mp4", hostile)
    damaged = folder / f"b{ESCAPES}.mp4"
    damaged.write_bytes(b"no video")
    target = str(tmp_path / "archive")
    arguments = ["ingest", str(hostile), str(damaged), "--to", target, "--jobs", "0", "--metadata", f"a={ESCAPES}"]
    assert main(arguments) == 1
    assert main(arguments) == 1  # one exists already
    assert main(["inspect", target]) == 0
    assert main(["inspect", target, ESCAPES]) == 0
    assert main(["inspect", target, f"no {ESCAPES}"]) == 2
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).split("\n"):
        assert line.isprintable()
        assert not line.startswith("FAKE")
    assert "\\x1b[31m\\u202egpj\\nFAKE" in captured.out
