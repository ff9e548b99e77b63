"""``streamloader ingest``: its output and its exit statuses."""

from __future__ import annotations

import json

import pytest
from archive.ingest.archives import archive, assert_whole, clip, name_of, rows, stems

from streamloader.cli.main import main


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        clip(folder / f"{name}.mp4", seed, frames=20)
    return folder


def ingest(*arguments):
    return main(["ingest", *map(str, arguments), "--jobs", "0", "--chunk-frames", "10"])


def test_an_archive_is_made_and_added_to(tmp_path, videos, capsys):
    place = tmp_path / "archive"
    assert ingest(videos, "--to", place, "--metadata", "set=train", "--metadata", "shot=3") == 0
    printed = capsys.readouterr()
    assert "2 videos added in" in printed.out
    assert "40 frames in 4 chunks (copy):" in printed.out
    assert f"created an archive with its catalog at {place}/catalog.sqlite" in printed.err
    with archive(place, make=False) as catalog:
        assert stems(catalog) == ["a", "b"]
        assert rows(catalog)[0][0].metadata == {"set": "train", "shot": 3}
        assert_whole(catalog)
    assert ingest(videos, "--catalog", place / "catalog.sqlite", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [known["name"] for known in report["existing"]] == [name_of(videos / f"{name}.mp4") for name in "ab"]


def test_a_video_that_fails_is_reported_and_the_status_is_1(tmp_path, videos, capsys):
    (videos / "broken.mp4").write_bytes(b"no video" * 100)
    assert ingest(videos, "--to", tmp_path / "archive") == 1
    out = capsys.readouterr().out
    assert f"failed: {videos / 'broken.mp4'}" in out
    assert "2 videos added, 1 failed" in out
    assert ingest(videos, "--to", tmp_path / "archive", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert [failed["error"] for failed in report["failed"]] == ["UnreadableStream"]


def test_large_frames_are_refused_unless_they_are_allowed(tmp_path, videos, capsys):
    assert ingest(videos, "--to", tmp_path / "archive", "--max-pixels", "3071") == 1
    out = capsys.readouterr().out
    assert "0 videos added, 2 failed" in out
    assert "64x48 (width x height)" in out
    assert "--max-pixels" in out
    assert ingest(videos, "--to", tmp_path / "archive", "--max-pixels", "3072") == 0
    with pytest.raises(SystemExit):
        ingest(videos, "--to", tmp_path / "archive", "--max-pixels", "0")


def test_a_place_of_the_catalog_is_not_written_unless_it_is_named(tmp_path, videos, capsys):
    with archive(tmp_path / "downloads", [f"memory://{tmp_path.name}/victim"]):
        pass
    catalog = tmp_path / "downloads" / "catalog.sqlite"
    assert ingest(videos, "--catalog", catalog) == 2
    assert "--to" in capsys.readouterr().err
    assert ingest(videos, "--catalog", catalog, "--to", f"memory://{tmp_path.name}/victim") == 0


def test_several_places_and_one_more_later(tmp_path, videos, capsys):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert ingest(videos / "a.mp4", "--to", one, "--to", two, "--weight", "0", "--weight", "1") == 0
    assert ingest(videos / "b.mp4", "--catalog", one / "catalog.sqlite", "--to", three) == 0
    assert "added 1 place to the archive" in capsys.readouterr().err
    with archive(one, make=False) as catalog:
        assert [{chunk.place for chunk in chunks} for _, chunks in rows(catalog)] == [{1}, {2}]
        assert [place.url for place in catalog.call(catalog.resource.get_header()).places] == [
            str(one),
            str(two),
            str(three),
        ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the archive is not specified"),
        (["--to", "ssh://box/a"], "--catalog"),
        (["--to", "/x", "--weight", "1", "--weight", "2"], "each --weight belongs to a --to"),
        (["--to", "/x", "--storage-options", "/nowhere.json"], "--storage-options /nowhere.json cannot be read"),
        (["--to", "/x", "--size", "24x32"], "needs mode='encode'"),
        (["--catalog", "/nowhere/catalog.sqlite"], "nowhere"),
    ],
)
def test_an_error_that_the_user_can_fix_ends_with_status_2(videos, capsys, arguments, reason):
    assert ingest(videos, *arguments) == 2
    assert reason in capsys.readouterr().err


def test_invalid_arguments(videos, capsys):
    for wrong in (["--size", "x"], ["--fps", "0/0"], ["--weight", "-1"], ["--metadata", "x"], ["--mode", "fast"]):
        with pytest.raises(SystemExit):
            ingest(videos, "--to", "/x", *wrong)
    assert "must be NAME=VALUE" in capsys.readouterr().err
