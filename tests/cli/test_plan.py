"""``streamloader plan``, its text for people and its JSON for scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest
from made_clips import make_clip

import streamloader as sl
from streamloader.archive.archive import Archive
from streamloader.cli.main import main

SHAPE = ("--batch-size", "2", "--window", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((23, 9, 40, 5)):
        make_clip(folder / f"camera-{number}.mp4", frames=frames)
    return folder


def plan(capsys, *arguments):
    assert main(["plan", *map(str, arguments)]) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    return out


def document_of(dataset, *shape, **arguments):
    with sl.MultiStreamer(dataset, *shape, **arguments) as loader:
        return loader.plan_report().to_dict()


def test_json_is_the_report_of_a_loader(folder, capsys):
    printed = json.loads(plan(capsys, folder, *SHAPE, "--json"))
    assert printed == document_of(sl.VideoStreams(str(folder)), 2, 8)
    options = ("--ranks", 3, "--switch", "align", "--tail", "cycle", "--prefetch-factor", 5, "--seed", 7)
    frames = ("--size", "24x32", "--pix-fmt", "yuv420p", "--stride", 2, "--fps", "50/2", "--max-frames", 9)
    printed = json.loads(plan(capsys, folder / "*-[023].mp4", *SHAPE, *options, *frames, "--json"))
    dataset = sl.VideoStreams(
        str(folder / "*-[023].mp4"), size=(24, 32), pix_fmt="yuv420p", stride=2, fps=25, max_frames=9
    )
    arguments = {"switch": "align", "tail": "cycle", "prefetch_factor": 5, "seed": 7, "rank": 0, "world_size": 3}
    assert printed == document_of(dataset, 2, 8, **arguments)
    assert printed["streams"]["longest"] == 9


def test_other_kinds_of_streams(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("to be or not to be")
    printed = json.loads(plan(capsys, tmp_path / "*.txt", *SHAPE, "--kind", "texts", "--json"))
    assert printed == document_of(sl.TextStreams(str(tmp_path / "*.txt")), 2, 8)
    with Archive.create(tmp_path / "archive") as archive:
        archive.add(str(folder), jobs=0)
    printed = json.loads(plan(capsys, tmp_path / "archive", *SHAPE, "--kind", "archive", "--stride", 3, "--json"))
    assert printed == document_of(sl.ArchiveStreams(tmp_path / "archive", stride=3), 2, 8)
    assert printed["streams"]["steps"] == 8 + 3 + 14 + 2
    sl.index_videos(str(folder), tmp_path / "index.sqlite")
    printed = json.loads(plan(capsys, tmp_path / "index.sqlite", *SHAPE, "--kind", "index", "--json"))
    assert printed == document_of(sl.VideoStreams.from_index(tmp_path / "index.sqlite"), 2, 8)
    expected = document_of(sl.VideoStreams(str(folder)), 2, 8)
    assert [row["local_bytes"] for row in printed["epochs"]] == [row["local_bytes"] for row in expected["epochs"]]


def test_text_is_for_people(folder, capsys):
    text = plan(capsys, folder, *SHAPE)
    assert re.search(r"^streams  4 with 77 steps$", text, re.MULTILINE)
    assert re.search(r"^lengths  5 to 40 steps, median 16; 1 \(25\.0%\) shorter than a window$", text, re.MULTILINE)
    assert re.search(r"^batches  5 per epoch, 2 x 8 steps$", text, re.MULTILINE)
    assert re.search(r"^\*  pack +pad +5 +3 +3\.8% +0 +0 +[\d.]+ kB$", text, re.MULTILINE)
    assert "each rank" not in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    text = plan(capsys, folder, *SHAPE, "--ranks", 2)
    assert re.search(r"^batches  5 per epoch, 2 x 8 steps on each of 2 ranks$", text, re.MULTILINE)
    assert re.search(r"^ +1 +\d+ +\d+ +[\d.]+% +\d+ +\d+ +0 +[\d.]+ kB$", text, re.MULTILINE)


def test_a_ring_that_does_not_fit_is_a_hint(folder, capsys):
    text = plan(capsys, folder, "--batch-size", "1000", "--window", "100000", "--size", "720x1280")
    assert re.search(r"^-  on this machine, the ring of \d+ batches needs .* MiB are free", text, re.MULTILINE)
    assert "there are 1,000 lanes for 4 streams" in text


def test_what_cannot_be_planned(folder, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    for arguments, words in (
        ([tmp_path / "none.mp4"], "none.mp4"),
        ([tmp_path / "broken.mp4"], "broken.mp4"),
        ([folder, folder, "--kind", "archive"], "takes one address"),
        ([folder, "--kind", "texts", "--max-frames", "3"], "--max-frames"),
        ([tmp_path, "--kind", "texts"], "no file"),
    ):
        assert main(["plan", *map(str, arguments), *SHAPE]) == 2
        out, errors = capsys.readouterr()
        assert out == ""
        assert words in errors
        assert len(errors.strip().splitlines()) == 1


def test_bad_arguments_are_refused_with_their_reason(capsys):
    for arguments, reason in (
        (["--window", "8"], "--batch-size"),
        (["--batch-size", "2"], "--window"),
        ([*SHAPE, "--batch-size", "0"], "1 or more"),
        ([*SHAPE, "--ranks", "x"], "1 or more"),
        ([*SHAPE, "--tail", "end"], "invalid choice"),
        ([*SHAPE, "--size", "9"], "HEIGHTxWIDTH"),
    ):
        with pytest.raises(SystemExit) as refused:
            main(["plan", "a.mp4", *arguments])
        assert refused.value.code == 2
        assert reason in capsys.readouterr().err


def test_the_tables_fit_into_80_columns_of_a_terminal(folder):
    parent_end, child_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "streamloader", "plan", str(folder), *SHAPE, "--ranks", "2"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=child_end, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(child_end)
        shown = b""
        while True:
            try:
                part = os.read(parent_end, 1 << 16)
            except OSError:  # the other end was closed: Linux reports it so
                break
            if not part:
                break
            shown += part
        os.close(parent_end)
        assert process.wait(60) == 0, process.stderr.read()
    assert b"\x1b[" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.fullmatch(r" +\* +pack +pad +5 +83 +51\.9% +0 +0 +[\d.]+ kB *", line) for line in lines)
    assert any(line.split()[:4] == ["rank", "lowest", "highest", "imbalance"] for line in lines)
