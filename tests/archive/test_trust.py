"""A catalog may come from a stranger: which hosts, files and secrets its readers touch."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import sqlite3

import numpy as np
import pytest
from archive_data import make_archive
from canaries import canary

from streamloader.archive.archive import Archive, open_archive
from streamloader.archive.streams import ArchiveStreams
from streamloader.errors import (
    CatalogError,
    CorruptStream,
    StoreError,
    StreamloaderError,
    UntrustedAddress,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    frames = make_archive(folder, ("b_frames.mp4",))["b_frames"]
    return folder / "store", frames


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "store")
    change(tmp_path / "store", "UPDATE places SET url = ?", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def listener():
    """An address at which nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            server.accept()


def change(store, statement, *values):
    with contextlib.closing(sqlite3.connect(store / "catalog.sqlite", isolation_level=None)) as db:
        assert db.execute(statement, values).rowcount != 0


def chunk_files(store):
    return sorted(path for path in (store / "chunks").rglob("*") if path.is_file())


# --- hosts and secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "ssh", "ftp", "s3"])
@pytest.mark.parametrize("options", [None, {"token": canary("http-bearer"), "password": canary("ssh-password")}])
def test_a_place_of_a_stranger_is_not_contacted(store, listener, scheme, options, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{listener}")
    change(store, "UPDATE places SET url = ?", f"{scheme}://{'bucket' if scheme == 's3' else listener}/data")
    with open_archive(store, storage_options=options) as archive:
        for each in (archive, pickle.loads(pickle.dumps(archive))):
            with pytest.raises(UntrustedAddress, match="places="):
                each[0]
            each.close()
    with open_archive(store, storage_options=options) as archive:
        report = archive.check(repair=True)
        assert {problem.kind for problem in report.problems} <= {"unreachable", "missing", "size"}
        assert not any(problem.repaired for problem in report.problems)
        with pytest.raises(StreamloaderError):
            archive.add(__file__, jobs=0)
    streams = ArchiveStreams(store, (24, 32), storage_options=options)
    with pytest.raises(UntrustedAddress, match="places="), streams._readers as reader:
        next(reader.decode(reader.video(0), [0]))


def test_options_follow_the_addresses_that_the_user_names(store, listener):
    """A flat option is for the addresses in places=, and for no other place of the catalog."""
    secret = {"headers": {"X-Key": canary("http-header")}, "retry": None}
    change(store, "INSERT INTO places VALUES (1, ?, 1.0)", f"http://{listener}/b")
    change(store, "UPDATE chunks SET place = 1")
    with open_archive(store, places={0: "https://127.0.0.1:1/a"}, storage_options=secret) as archive:
        with pytest.raises(UntrustedAddress, match="headers") as caught:
            archive[0]
        assert canary("http-header") not in str(caught.value)
        assert "places=" in caught.value.message


def test_a_source_of_a_stranger_is_not_contacted(store, listener):
    change(store, "UPDATE videos SET source = ?", f"ssh://{listener}/video.mp4")
    chunk_files(store)[0].unlink()
    with open_archive(store, storage_options={"password": canary("ssh-password")}) as archive:
        (problem,) = archive.check(repair=True).problems
    assert not problem.repaired
    assert "cannot be rebuilt" in problem.text


def test_places_of_a_new_archive_are_named_by_the_user(tmp_path, made):
    source = made[0].parent / "sources" / "b_frames.mp4"
    with Archive.create("memory://named/chunks", catalog=str(tmp_path / "catalog.sqlite")) as archive:
        archive.add(str(source), jobs=0)
        assert np.array_equal(archive[3].numpy(), made[1][3])
    with open_archive(tmp_path / "catalog.sqlite") as archive:  # its marker is there
        assert archive.check(repair=True).ok


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/../../../{target}", "{target}", "chunks/../../{target}", "//{target}"])
def test_a_path_that_leaves_the_place_is_neither_read_nor_written(store, tmp_path, path):
    target = tmp_path / "authorized_keys"
    change(store, "UPDATE chunks SET path = ? WHERE number = 0", path.format(target=target))
    for options in ({}, {"places": {0: str(store)}}):
        with open_archive(store, **options) as archive:
            with pytest.raises(CatalogError, match=r"catalog\.sqlite.*chunk 0 .*path"):
                archive[0]
            with contextlib.suppress(CatalogError):
                assert not archive.check(repair=True).ok
    assert not target.exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
def test_only_files_are_read(store, tmp_path, kind):
    path = chunk_files(store)[0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        os.chdir(path.parent)  # addresses of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(tmp_path)
    with open_archive(store) as archive:
        with pytest.raises(StoreError, match="not a file"):
            archive[0]
        report = archive.check(deep=True)
        assert {problem.kind for problem in report.problems} <= {"missing", "unreachable", "size"}
        assert not report.ok
    with open_archive(store, places={0: f"file://{store}"}) as archive, pytest.raises(StoreError, match="not a file"):
        archive[0]


def test_a_pipe_as_the_source_of_a_rebuild(store, tmp_path):
    os.mkfifo(tmp_path / "source.mp4")
    change(store, "UPDATE videos SET source = ?", str(tmp_path / "source.mp4"))
    chunk_files(store)[0].unlink()
    with open_archive(store) as archive:
        (problem,) = archive.check(repair=True).problems
    assert "not a file" in problem.text


@pytest.mark.parametrize("option", ["stats", "x264-params", "x264opts", "passlogfile", "flags"])
def test_the_catalog_does_not_choose_files_of_the_encoder(store, made, tmp_path, option):
    from streamloader.archive.ingest.naming import compute_content

    log = tmp_path / "written"
    with open_archive(store) as archive:
        row = archive.reader.video(0)
    settings = dict(row.origin["settings"]) | {
        "mode": "encode", "codec": "libx264", "gop": 12, "options": {option: f"pass=1:stats={log}"},
    }  # fmt: skip
    content = compute_content(row.origin["digest"], settings)
    old = chunk_files(store)[0].parent
    new = old.parent.parent / content[:2] / content
    new.parent.mkdir(exist_ok=True)
    old.rename(new)
    origin = json.dumps(dict(row.origin) | {"settings": settings})
    change(store, "UPDATE videos SET content = ?, origin = ?", bytes.fromhex(content), origin)
    chunk_files(store)[0].unlink()
    with open_archive(store) as archive:
        (problem,) = archive.check(repair=True).problems
    assert option in problem.text
    assert not log.exists()


def test_frames_that_a_chunk_does_not_have(store):
    change(store, "UPDATE videos SET frames = frames + 1000")
    with open_archive(store) as archive, pytest.raises((CatalogError, CorruptStream)):
        archive[-1]
