"""The cache of video indexes, in folders where other users can put something."""

from __future__ import annotations

import logging
import os

import platformdirs
import pytest
from made_clips import make_clip
from planted import KINDS, give_away, needs_root, plant
from tiers import fast_first

from streamloader.errors import ConfigError
from streamloader.media.video import index_cache
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.index_database import close_databases

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


@pytest.fixture
def calls(monkeypatch):
    """The paths that are really indexed, not found in the cache."""
    made = []
    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", lambda path, **k: made.append(path) or real(path, **k))
    return made


def the_file(cache):
    (file,) = cache.rglob("*.sqlite")
    return file


def test_indexes_are_kept_for_this_user_alone(cache, clip, calls):
    for _ in range(2):
        assert len(load_index(clip).pts) == 40
    assert len(calls) == 1
    files = [cache, the_file(cache).parent, *sorted(the_file(cache).parent.iterdir())]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o700, 0o700, *[0o600] * (len(files) - 2)]


@pytest.mark.parametrize("is_open", fast_first([True, False]))
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_database_is_replaced(cache, clip, calls, kind, is_open):
    load_index(clip)
    file = the_file(cache)
    if not is_open:
        close_databases()
    plant(file, kind)
    for _ in range(2):
        assert len(load_index(clip).pts) == 40
    assert len(calls) == 2
    assert file.is_file()
    assert not file.is_symlink()
    if kind == "link":
        assert file.with_name(f"{file.name}.target").read_bytes() == b"of the victim"


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_planted_files_beside_the_database_are_not_opened(cache, clip, calls, suffix):
    load_index(clip)
    close_databases()
    file = the_file(cache)
    plant(file.with_name(file.name + suffix), "link")
    for _ in range(2):
        assert len(load_index(clip).pts) == 40
    assert len(calls) == 2
    assert not file.with_name(file.name + suffix).is_symlink()
    assert file.with_name(f"{file.name}{suffix}.target").read_bytes() == b"of the victim"


@needs_root
def test_an_index_of_another_user_is_not_read(cache, clip, calls):
    load_index(clip)
    give_away(the_file(cache))
    load_index(clip)
    assert len(calls) == 2
    assert the_file(cache).stat().st_uid == 0


@needs_root
@pytest.mark.parametrize("change", ["0777", "0775", "owner", "owner below", "link", "link below"])
def test_a_folder_that_another_user_can_change_is_refused(cache, clip, calls, change):
    load_index(clip)
    folder = the_file(cache).parent if change.endswith("below") else cache
    if change.startswith("owner"):
        give_away(folder)
    elif change.startswith("link"):
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to(folder.with_name("elsewhere"))
    else:
        folder.chmod(int(change, 8))
    with pytest.raises(ConfigError, match=rf"cannot be cached in STREAMLOADER_CACHE: {folder} .*folder") as caught:
        load_index(clip)
    assert caught.value.address is not None
    assert len(calls) == 1


@needs_root
def test_the_usual_folder_is_ignored_with_one_warning(cache, clip, calls, monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("STREAMLOADER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = index_cache.index_cache_folder()
    assert str(folder).startswith(str(tmp_path)), platformdirs.user_cache_dir()
    load_index(clip)
    close_databases()
    forged = the_file(folder)
    forged.write_bytes(b"x")
    give_away(folder)
    with caplog.at_level(logging.WARNING, "streamloader"):
        for _ in range(2):
            assert len(load_index(clip).pts) == 40
    assert len(calls) == 3
    assert caplog.text.count("are not cached") == 1
    assert f"{folder} belongs to another user" in caplog.text
    assert "STREAMLOADER_CACHE" in caplog.text
    assert forged.read_bytes() == b"x"
    assert os.listdir(forged.parent) == [forged.name]


def test_each_machine_has_its_own_database_on_a_network_file_system(cache, clip, calls, monkeypatch):
    load_index(clip)
    close_databases()
    monkeypatch.setattr("streamloader.media.video.index_database.is_network_folder", lambda path: True)
    for host, made in (("one", 2), ("two", 3), ("one", 3)):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        close_databases()
        load_index(clip)
        assert len(calls) == made
    assert sorted(path.name for path in cache.rglob("*.sqlite")) == [
        "videos-one.sqlite", "videos-two.sqlite", "videos.sqlite",
    ]  # fmt: skip
