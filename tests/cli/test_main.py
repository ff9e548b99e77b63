"""The command, run as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from optional_torch import needs_torch
from PIL import Image

from streamloader.cli.main import main
from streamloader.errors import StreamNotFound


@pytest.fixture(autouse=True)
def _torch_keeps_its_own_files_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def command(*arguments, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "streamloader", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **options,
    )


@pytest.mark.slow  # test_ctrl_c_saves_what_there_is streams, trains and draws, too, but without a known end
def test_the_demo_streams_trains_and_draws(clips, tmp_path):
    videos = [str(clips[name]) for name in ("carphone_pristine", "carphone_distorted")]
    done = command(
        "demo", *videos, "--batches", "60", "--size", "32x40", "--window", "8", "--workers", "1",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    losses = re.search(
        r"frame\): ([\d.]+) at the start, ([\d.]+) at the end; copying the last frame there: ([\d.]+)", done.stdout
    )
    start, end, copying = map(float, losses.groups())
    assert 0 < end < start
    assert end < 1.1 * copying
    assert re.search(
        r"[\d,]+ frames in [\d.]+ s: [\d,]+ frames/s, [\d.]+% of the time spent waiting for data", done.stdout
    )
    with Image.open(tmp_path / "demo" / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 100
    with Image.open(tmp_path / "demo" / "loss.png") as plot:
        assert plot.width > 600


@needs_torch
def test_an_error_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "missing.mp4"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert "missing.mp4" in shown.err
    with pytest.raises(StreamNotFound, match=r"missing\.mp4"):
        main(["demo", "missing.mp4", "--debug", "--out", str(tmp_path / "demo")])


def test_bad_arguments_are_refused_with_their_reason(capsys):
    reasons = {
        ("--size", "36x40"): "multiples of 8",
        ("--size", "big"): "HEIGHTxWIDTH",
        ("--lanes", "0"): "1 or more",
        ("--workers", "-1"): "0 or more",
        ("--window", "x"): "whole number",
        ("--seconds", "nan"): "above 0",
        ("--batches", "0"): "1 or more",
    }
    for arguments, reason in reasons.items():
        with pytest.raises(SystemExit) as refused:
            main(["demo", *arguments])
        assert refused.value.code == 2
        assert reason in capsys.readouterr().err


@needs_torch
def test_what_cannot_work_shows_before_the_training(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["demo", str(clips["bikes"]), "--batches", "1", "--size", "32x40"]
    (tmp_path / "demo").write_text("in the way")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert "demo" in shown.err
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "pip install streamloader[demo]" in shown.err


def test_version(tmp_path):
    assert re.fullmatch(r"streamloader \d+\.\d+\.\d+\n", command("--version", cwd=tmp_path).stdout)


@needs_torch
def test_ctrl_c_saves_what_there_is(clips, tmp_path):
    arguments = ["demo", str(clips["carphone_pristine"]), "--seconds", "600", "--size", "32x40", "--window", "8"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "streamloader", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        first = process.stdout.readline()  # it is training
        for _ in range(3):  # as tox does
            os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=200)
    assert "frames/s" in first
    assert process.returncode == 130
    assert errors == ""
    assert "saved" in out
    with (
        Image.open(tmp_path / "demo" / "contact_sheet.png") as sheet,
        Image.open(tmp_path / "demo" / "loss.png") as plot,
    ):
        assert sheet.width > sheet.height > 100
        assert plot.width > 600
