"""Temporary folders of an ingest, beside what other users have put into the same folder. See also test_parts.py."""

from __future__ import annotations

import os
import re
import tempfile

import pytest
from planted import KINDS, give_away, needs_root, plant

from streamloader.archive.ingest import temp_dir
from streamloader.archive.ingest.sources import open_source
from streamloader.archive.ingest.temp_dir import PREFIX, TempDir, remove_stale_dirs
from streamloader.errors import ConfigError, StreamloaderError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Folder for temporary files, as `/tmp` is."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temp_dir, "_MIN_AGE_S", -1.0)
    tmp_path.chmod(0o1777)
    return tmp_path


def use_temp_dir():
    with TempDir() as made:
        assert os.path.isdir(made.folder)
        assert os.stat(made.folder).st_mode & 0o777 == 0o700
    assert not os.path.exists(made.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_plant_under_the_name_of_a_folder_is_left_alone(root, kind):
    plant(root / f"{PREFIX}x", kind)
    before = sorted(os.listdir(root))
    use_temp_dir()
    assert sorted(os.listdir(root)) == before


def test_a_link_to_a_folder_of_this_user_is_not_followed(root):
    (root / "mine").mkdir()
    (root / "mine" / "data").write_bytes(b"x")
    (root / f"{PREFIX}x").symlink_to(root / "mine")
    use_temp_dir()
    assert (root / "mine" / "data").read_bytes() == b"x"


@needs_root
def test_only_folders_of_this_user_are_removed(root):
    (root / f"{PREFIX}mine").mkdir()
    (root / f"{PREFIX}another").mkdir()
    give_away(root / f"{PREFIX}another")
    remove_stale_dirs()
    assert os.listdir(root) == [f"{PREFIX}another"]


@needs_root
@pytest.mark.parametrize("change", ["0777", "0775", "owner"])
def test_a_root_in_which_others_can_replace_folders_is_refused(root, change):
    (root / f"{PREFIX}mine").mkdir()
    if change == "owner":
        give_away(root)
    else:
        root.chmod(int(change, 8))
    with pytest.raises(ConfigError, match=rf"folder for temporary files.*{re.escape(str(root))}.*Set TMPDIR"):
        TempDir()
    assert os.listdir(root) == [f"{PREFIX}mine"]  # nothing was made, and nothing removed


def test_a_root_that_is_a_link_is_resolved(root, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    use_temp_dir()


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe"])
def test_a_source_that_is_no_regular_file_is_an_error(tmp_path, kind):
    plant(tmp_path / "video.mp4", kind)
    with pytest.raises(StreamloaderError, match=r"video\.mp4"):
        open_source(str(tmp_path / "video.mp4"), None, {}, str(tmp_path), lambda *_: None).__enter__()
