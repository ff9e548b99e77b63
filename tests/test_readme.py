"""What the README shows is true: its quickstart runs as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from optional_torch import needs_torch

README = (Path(__file__).parents[1] / "README.md").read_text()


@needs_torch
def test_the_quickstart_runs_in_a_folder_of_videos(clips, tmp_path):
    code = re.search(r"## Quickstart\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(code.splitlines()) <= 20
    (tmp_path / "videos").mkdir()
    for name in ("carphone_pristine", "carphone_distorted"):
        shutil.copy(clips[name], tmp_path / "videos")
    code = code.replace("range(3)", "range(1)") + "\nprint(len(loader), h.shape, bool(h.detach().abs().max() > 0))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "8 torch.Size([8, 256]) True\n"


def test_every_file_that_it_names_is_there():
    root = Path(__file__).parents[1]
    named = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert named
    assert [name for name in named if not (root / name).exists()] == []
