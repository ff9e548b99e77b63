"""Videos of one SSH server into places on another, over real connections."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest
from archive.ingest.archives import CHUNK, archive, clip, files, rows

from streamloader.archive.ingest import add_videos, check_archive
from streamloader.media.chunks.settings import CutSettings
from streamloader.stores.registry import open_store

SETTINGS = CutSettings(chunk_frames=CHUNK)


def test_remote_videos_into_remote_places(ssh_server, second_ssh_server, tmp_path):
    box, other = ssh_server, second_ssh_server
    options = {box.url: box.options(), other.url: other.options()}
    sources = box.data / "videos"
    sources.mkdir()
    for seed, name in enumerate("ab"):
        clip(sources / f"{name}.mp4", seed)
    places = [other.address("chunks-here"), str(tmp_path / "and-here")]
    named = {1: places[1]}  # options are bound to the other one
    try:
        with archive(tmp_path / "archive", ["x"], make=False) as catalog:
            from streamloader.archive.ingest import parse_places

            catalog.call(catalog.resource.create(parse_places(places)))
            report = add_videos(
                catalog,
                box.address("videos/*.mp4"),
                SETTINGS,
                jobs=2,
                storage_options=options,
                spread="free",
                addresses=named,
            )
            assert [video.name for video in report.added] == ["videos/a.mp4", "videos/b.mp4"]
            assert [video.source for video in report.added] == [box.address(f"videos/{name}.mp4") for name in "ab"]
            assert {chunk.place for _, chunks in rows(catalog) for chunk in chunks} == {0, 1}
            check = check_archive(catalog, deep=True, storage_options=options)
            assert (check.problems, check.chunks) == ((), 8)
            chunk = next(chunk for _, chunks in rows(catalog) for chunk in chunks if chunk.place == 0)
            stray = (other.data / "chunks-here" / chunk.path).with_name(f"000099-{'0' * 16}.mp4")
            stray.write_bytes(b"stray")
            left = stray.with_name(".streamloader-new-1")
            left.write_bytes(b"half")
            os.utime(left, (0, 0))
            (other.data / "chunks-here" / chunk.path).unlink()
            repaired = check_archive(catalog, repair=True, storage_options=options)
            assert [(problem.kind, problem.repaired) for problem in repaired.problems] == [
                ("orphan", True), ("unfinished", True), ("missing", True),
            ]  # fmt: skip
            assert check_archive(catalog, deep=True, storage_options=options).problems == ()
            again = add_videos(catalog, box.address("videos"), SETTINGS, jobs=0, storage_options=options)
            assert len(again.existing) == 2
        kept = b"".join(path.read_bytes() for path in files(tmp_path / "archive").values())
        assert str(box.key).encode() not in kept
    finally:
        shutil.rmtree(sources)
        shutil.rmtree(other.data / "chunks-here", ignore_errors=True)


def test_free_space_over_ssh(ssh_server):
    async def ask():
        async with open_store(ssh_server.address("not/yet"), **ssh_server.options()) as store:
            return await store.free_bytes()

    status = os.statvfs(ssh_server.data)
    assert asyncio.run(ask()) == pytest.approx(status.f_bavail * status.f_frsize, rel=0.05)
