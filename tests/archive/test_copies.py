"""A copy of the file of a catalog is an archive, also if others read the original while it was written."""

from __future__ import annotations

import shutil

from made_clips import make_clip
from sqlite_files import database

import streamloader as sl


def test_the_file_is_complete_when_add_returns_while_others_read(tmp_path):
    make_clip(tmp_path / "a.mp4", codec="mpeg4", frames=160)
    catalog, copy = tmp_path / "archive/catalog.sqlite", tmp_path / "copy.sqlite"
    with sl.Archive.create(str(tmp_path / "archive")) as archive, database(str(catalog)) as reader:
        assert reader.execute("SELECT count(*) FROM videos").fetchone() == (0,)  # the connection stays open
        archive.add(str(tmp_path / "a.mp4"), jobs=0)
        shutil.copy(catalog, copy)
        with sl.open_archive(str(copy), places={0: str(tmp_path / "archive")}) as copied:
            assert len(copied) == 160
            assert (copied[100:103] == archive[100:103]).all()
