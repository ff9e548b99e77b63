"""Every example runs, and prints what it is there to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWS = {
    "addresses": "all 106,200 bytes are those that were written: True",
    "archive_local": "as streams, every frame came once: True",
    "archive_ssh": "; better: True",
    "ddp": "together 20,788 of 20,788 letters",
    "lightning_loop": "the same 58 batches and losses from there on: True",
    "own_stream": ">3:0  3:1  3:2  3:3",
    "quickstart": "frames/s, waiting for data",
    "resume": "the same losses, to the last bit: True",
    "text": ">a_0;a_1;a_2; >b_0;b_1;b_2;",
    "train_rnn": "epoch 5: 0.",
    "vector_env": "balls caught",
}
NEEDS_VIDEOS = {"archive_local", "archive_ssh", "quickstart"}
SLOW = {"archive_ssh"}


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(SHOWS)
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in table for name in names)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SHOWS]
)
def test_example(name, request, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where torchrun leaves a folder behind
    videos = [str(path) for path in request.getfixturevalue("clips").values()] if name in NEEDS_VIDEOS else []
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *videos],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert SHOWS[name] in done.stdout
