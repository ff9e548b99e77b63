"""``streamloader inspect``, its text for people and its JSON for scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_clips import make_clip

from streamloader.archive.archive import Archive
from streamloader.archive.catalog.base import IngestJob
from streamloader.archive.catalog.registry import get_shared_catalog
from streamloader.cli.main import main


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    one = make_clip(folder / "one.mp4", frames=23, gop=5)
    two = make_clip(folder / "two.mkv", "ffv1", frames=17, height=47)
    with Archive.create({str(folder / "archive"): 1, str(folder / "second"): 0}) as archive:
        archive.add(one, chunk_frames=10, jobs=0, name="{stem}", metadata={"camera": "left"})
        archive.add(two, jobs=0, name="{stem}")
    return str(folder / "archive")


def inspect_archive(capsys, *arguments):
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_json_says_all(address, capsys):
    facts = json.loads(inspect_archive(capsys, address, "--json"))
    assert (facts["videos"], facts["frames"], facts["chunks"]) == (2, 40, 4)
    assert facts["seconds"] == pytest.approx(1.6)
    assert facts["catalog"] == str(Path(address, "catalog.sqlite"))
    assert facts["codecs"] == {"h264": 3, "ffv1": 1}
    assert facts["matching"]["sizes"] == {"48x64": 1, "47x64": 1}
    assert facts["matching"]["modes"] == {"copy": 2}
    assert [place["chunks"] for place in facts["places"]] == [4, 0]
    sizes = [path.stat().st_size for path in Path(address, "chunks").rglob("*.m*")]
    assert facts["places"][0]["bytes"] == sum(sizes) == facts["matching"]["bytes_out"]
    assert (facts["chunk_bytes"]["min"], facts["chunk_bytes"]["max"]) == (min(sizes), max(sizes))
    assert [(video["name"], video["start"], video["frames"]) for video in facts["listed"]] == [
        ("one", 0, 23),
        ("two", 23, 17),
    ]
    assert facts["jobs"] == []


def test_text_is_for_people(address, capsys):
    text = inspect_archive(capsys, address)
    assert re.search(r"^videos +2$", text, re.MULTILINE)
    assert re.search(r"^frames +40$", text, re.MULTILINE)
    assert re.search(r"^  codecs +h264 \(3 chunks\), ffv1 \(1 chunk\)$", text, re.MULTILINE)
    assert re.search(r"^0  one +0 +23  48x64 +0\.92 s +3 ", text, re.MULTILINE)
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_one_video_with_its_chunks(address, capsys):
    facts = json.loads(inspect_archive(capsys, address, "one", "--json"))
    assert (facts["name"], facts["frames"], facts["metadata"]) == ("one", 23, {"camera": "left"})
    assert [(chunk["first"], chunk["frames"], chunk["key_frames"]) for chunk in facts["listed"]] == [
        (0, 10, 2), (10, 10, 2), (20, 3, 1),
    ]  # fmt: skip
    assert all(Path(address, chunk["path"]).stat().st_size == chunk["bytes"] for chunk in facts["listed"])
    text = inspect_archive(capsys, address, "one", "--limit", "1")
    assert '{"camera": "left"}' in text
    assert "and 2 more: raise --limit" in text
    assert re.search(r"^0 +0 +10 +2  h264 ", text, re.MULTILINE)


def test_videos_are_chosen_and_limited(address, capsys):
    facts = json.loads(inspect_archive(capsys, address, "--where", '{"camera": "left"}', "--json"))
    assert (facts["videos"], facts["matching"]["videos"], facts["matching"]["frames"]) == (2, 1, 23)
    assert [video["name"] for video in facts["listed"]] == ["one"]
    text = inspect_archive(capsys, address, "--limit", "1")
    assert "and 1 more" in text
    assert "two" not in text


def test_what_is_being_added(tmp_path, capsys):
    Archive.create(tmp_path / "archive").close()
    now = time.time()
    with get_shared_catalog(tmp_path / "archive" / "catalog.sqlite") as catalog:
        job = IngestJob("ab" * 32, "film", "ssh://box/film.mp4", now - 4000, now - 3)
        catalog.call(catalog.resource.begin_job(job))
    assert json.loads(inspect_archive(capsys, str(tmp_path / "archive"), "--json"))["jobs"][0]["name"] == "film"
    text = inspect_archive(capsys, str(tmp_path / "archive"))
    assert re.search(r"^film +ssh://box/film.mp4 +1:0[67]:\d\d ago +\d+\.\d\d s ago$", text, re.MULTILINE)
    assert re.search(r"^videos +0$", text, re.MULTILINE)


def test_what_cannot_be_shown(address, tmp_path, capsys):
    for arguments, words in (
        ([str(tmp_path / "none")], "none"),
        ([address, "three"], "no video 'three'"),
        ([address, "one", "--where", "{}"], "--where"),
        ([address, "--where", '{"a": {"$no": 1}}'], "$no"),
    ):
        assert main(["inspect", *arguments]) == 2
        out, errors = capsys.readouterr()
        assert out == ""
        assert words in errors
        assert len(errors.strip().splitlines()) == 1
    for arguments in (["--where", "[1]"], ["--where", "{"], ["--limit", "-1"]):
        with pytest.raises(SystemExit) as refused:
            main(["inspect", address, *arguments])
        assert refused.value.code == 2
        assert "must be" in capsys.readouterr().err


def test_a_terminal_gets_colours_and_lines(address):
    parent_end, child_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "streamloader", "inspect", address],
        stdin=subprocess.DEVNULL, stdout=child_end, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        os.close(child_end)
        shown = b""
        while True:
            try:
                part = os.read(parent_end, 1 << 16)
            except OSError:  # the other end was closed: Linux says it so
                break
            if not part:
                break
            shown += part
        os.close(parent_end)
        assert process.wait(60) == 0, process.stderr.read()
    text = shown.decode()
    assert "\x1b[" in text
    assert "─" in text
    assert "one" in text
    assert "catalog.sqlite" in text.replace("\r\n", "")
