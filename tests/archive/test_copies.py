"""A copy of the file of a catalog is an archive, also if others read the original while it was written."""

from __future__ import annotations

import logging
import shutil

from made_clips import make_clip
from sqlite_files import database

import streamloader as sl
from streamloader.stores.io_thread import close_shared_stores


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


def test_a_transaction_that_holds_changes_back_is_told(tmp_path, caplog):
    make_clip(tmp_path / "a.mp4", codec="mpeg4", frames=20)
    catalog = tmp_path / "archive/catalog.sqlite"
    with sl.Archive.create(str(tmp_path / "archive")) as archive, database(str(catalog)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM videos").fetchone() == (0,)  # keeps what it has seen
        with caplog.at_level(logging.WARNING, logger="streamloader"):
            archive.add(str(tmp_path / "a.mp4"), jobs=0)
        reader.execute("COMMIT")
        assert [str(catalog) in record.getMessage() for record in caplog.records] == [True]
        assert "VACUUM INTO" in caplog.text
        close_shared_stores()  # as at the end of the program; the other connection stays open
        shutil.copy(catalog, tmp_path / "copy.sqlite")
    with sl.open_archive(str(tmp_path / "copy.sqlite"), places={0: str(tmp_path / "archive")}) as copied:
        assert len(copied) == 20
