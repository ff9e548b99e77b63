"""What the author of an index file can reach: nothing that the user has not named."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from made_clips import make_clip
from range_server import served

from streamloader.errors import AccessDenied, ConfigError, CorruptStream, StreamloaderError, UntrustedAddress
from streamloader.loader.multistreamer import MultiStreamer
from streamloader.media.video import bulk_indexer
from streamloader.media.video.files import file_version
from streamloader.media.video.index import IndexSettings
from streamloader.media.video.index_blob import encode_index
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.index_file import FileVersion, IndexFileWriter
from streamloader.media.video.summary import SUMMARY, summarize_index
from streamloader.streams.make_index import index_videos
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams, read_stream


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _parse_here(monkeypatch):
    """Parse videos in this process: processes for them are tested elsewhere."""
    monkeypatch.setattr(bulk_indexer.BulkIndexer, "_open_parsers", lambda self: None)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of clips of 7, 8 and 9 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{number}.mp4", frames=7 + number) for number in range(3)]


@pytest.fixture
def folder(tmp_path, clips):
    (tmp_path / "data").mkdir()
    for path in clips:
        shutil.copyfile(path, tmp_path / "data" / path.name)
    return tmp_path / "data"


def write(path, videos, clip, samples=True):
    """Write an index file that names any addresses."""
    index = load_index(str(clip))
    with IndexFileWriter(str(path) + ".new", IndexSettings()) as writer:
        ids = [writer.add_index(FileVersion(*file_version(str(clip))), encode_index(index)) for _ in videos]
        records = np.frombuffer(summarize_index(index) * len(videos), SUMMARY)
        writer.finish(videos, records, np.array(ids), str(path))
    if not samples:
        import sqlite3

        with sqlite3.connect(path) as db:
            db.execute("UPDATE header SET value = '[]' WHERE name = 'samples'")
        db.close()


def play_first(address, **options):
    dataset = VideoStreams.from_index(address, **options)
    return len(read_stream(dataset, describe_streams(dataset)[0])["data"])


def test_a_file_on_a_server_with_its_videos(folder):
    index_videos(folder, folder / "index.sqlite")
    with served(folder) as url:
        dataset = VideoStreams.from_index(f"{url}/index.sqlite")
        infos = describe_streams(dataset)
        assert [info.key for info in infos] == ["0.mp4", "1.mp4", "2.mp4"]
        assert [len(read_stream(dataset, info)["data"]) for info in infos] == [7, 8, 9]
        with MultiStreamer(dataset, 1, 4, num_workers=1, shuffle=False) as loader:
            assert sum(int(batch.valid.sum()) for batch in loader) == 24
        make_clip(folder / "0.mp4", frames=3)
        with pytest.raises(CorruptStream, match="was changed since"):
            read_stream(dataset, infos[0])


def test_names_of_files_that_were_copied_to_a_server(folder):
    os.rename(folder / "0.mp4", folder / "0 %41 é#.mp4")
    index_videos(folder, folder / "index.sqlite")
    with served(folder) as url:
        dataset = VideoStreams.from_index(f"{url}/index.sqlite")
        infos = describe_streams(dataset)
        assert [info.key for info in infos] == ["0 %41 é#.mp4", "1.mp4", "2.mp4"]
        assert len(read_stream(dataset, infos[0])["data"]) == 7


@pytest.mark.parametrize("samples", [True, False])
def test_a_file_of_a_store_may_not_name_local_files(folder, tmp_path, samples):
    secret = make_clip(tmp_path / "secret.mp4", frames=7)
    with served(folder) as url:
        for address in (str(secret), f"file://{secret}", "memory://a/b.mp4"):
            write(folder / "index.sqlite", [address], secret, samples)
            with pytest.raises(UntrustedAddress, match="is named by http") as caught:
                play_first(f"{url}/index.sqlite")
            assert "storage_options=" in caught.value.message or "memory" in caught.value.message
        write(folder / "index.sqlite", [str(secret)], secret, samples)
        assert play_first(f"{url}/index.sqlite", storage_options={f"file://{tmp_path}": {}}) == 7
        with pytest.raises(UntrustedAddress):
            play_first(f"{url}/index.sqlite", storage_options={f"file://{tmp_path}/other": {}})


@pytest.mark.parametrize("address", ["../secret.mp4", "a/../../secret.mp4", "./x.mp4", "a//b.mp4", "..", "a/.."])
def test_addresses_do_not_lead_out_of_the_folder(folder, tmp_path, address):
    secret = make_clip(tmp_path / "secret.mp4", frames=7)
    write(folder / "index.sqlite", [address], secret)
    with pytest.raises(CorruptStream, match="leads out of its folder"):
        play_first(folder / "index.sqlite")


@pytest.mark.parametrize("samples", [True, False])
@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a.mp4", "ssh://me@box/a.mp4", "gs://bucket/a.mp4", "https://10.0.0.1/latest/a.mp4"]
)
def test_other_servers_are_not_contacted(folder, address, samples):
    write(folder / "index.sqlite", [address], folder / "0.mp4", samples)
    with pytest.raises((UntrustedAddress, AccessDenied)) as caught:
        play_first(folder / "index.sqlite")
    assert isinstance(caught.value, StreamloaderError)


def test_options_are_not_sent_to_other_servers(folder):
    with served(folder) as url:
        index_videos([f"{url}/0.mp4"], folder / "index.sqlite")
        with pytest.raises(UntrustedAddress, match="token in storage_options= would be sent there"):
            play_first(folder / "index.sqlite", storage_options={"token": "secret"})
        assert play_first(folder / "index.sqlite", storage_options={url: {}}) == 7


def test_a_copy_in_a_cache_that_others_can_change_is_not_used(folder, tmp_path):
    index_videos(folder, folder / "index.sqlite")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache" / "index").mkdir(parents=True)
    os.chmod(tmp_path / "cache" / "index", 0o777)
    with served(folder) as url, pytest.raises(ConfigError, match="STREAMLOADER_CACHE"):
        play_first(f"{url}/index.sqlite")


def test_a_planted_copy_is_not_used(folder, tmp_path):
    index_videos(folder, folder / "index.sqlite")
    with served(folder) as url:
        assert play_first(f"{url}/index.sqlite") == 7
        (copy,) = (tmp_path / "cache" / "index" / "files").iterdir()
        copy.chmod(0o666)
        with pytest.raises(ConfigError, match="other users can change it"):
            play_first(f"{url}/index.sqlite")
