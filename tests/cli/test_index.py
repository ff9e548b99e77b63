"""``streamloader index``: its report for people and for scripts, its exit status, and interrupts."""

from __future__ import annotations

import json

import pytest
from made_clips import make_clip

from streamloader.cli.main import main
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for number in range(3):
        make_clip(tmp_path / "data" / f"{number}.mp4", frames=7 + number)
    return tmp_path / "data"


def test_a_file_is_made_and_brought_up_to_date(folder, capsys):
    file = str(folder / "index.sqlite")
    assert main(["index", str(folder), "--to", file]) == 0
    assert capsys.readouterr().out == f"3 videos in {file} (3 new)\n"
    (folder / "1.mp4").unlink()
    make_clip(folder / "3.mp4", frames=5)
    assert main(["index", str(folder), "--to", file, "--update", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "address": file, "videos": 3, "added": 1, "changed": 0, "removed": 1, "unchanged": 2, "skipped": [],
    }  # fmt: skip
    assert [info.length for info in describe_streams(VideoStreams.from_index(file))] == [7, 9, 5]


def test_videos_that_cannot_be_used(folder, capsys):
    (folder / "bad.mp4").write_bytes(b"junk")
    file = str(folder / "index.sqlite")
    assert main(["index", str(folder), "--to", file, "--verify", "ends"]) == 2
    assert f"streamloader: {folder}/bad.mp4 cannot be opened as a video" in capsys.readouterr().err
    assert main(["index", str(folder), "--to", file, "--unreadable", "skip"]) == 1
    assert f"left out: {folder}/bad.mp4: " in capsys.readouterr().out
    assert main(["index", str(folder), "--to", file, "--unreadable", "skip", "--json", "--update"]) == 1
    (video,) = json.loads(capsys.readouterr().out)["skipped"]
    assert (video["address"], video["error"]) == (f"{folder}/bad.mp4", "UnreadableStream")


def test_options_that_are_wrong(folder, capsys):
    assert main(["index", str(folder), "--to", str(folder)]) == 2
    assert "is a folder: name the index file" in capsys.readouterr().err
    assert main(["index", str(folder / "none"), "--to", str(folder / "x")]) == 2
    with pytest.raises(SystemExit):
        main(["index", str(folder)])
