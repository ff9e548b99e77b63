"""The code blocks and commands of docs/directory.md run, in their order."""

from __future__ import annotations

import gc
import pickle
import re
import shlex
import zlib
from pathlib import Path

from optional_torch import needs_torch

from streamloader.cli.main import main

DOCUMENT = Path(__file__).parents[3] / "docs" / "directory.md"


@needs_torch
def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    Path("old/subdir_0.vdd").write_bytes(zlib.compress(pickle.dumps({"a.txt": b"text"})))
    text = DOCUMENT.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 8
    namespace = {"__name__": "directory_page"}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), namespace)
    assert "is being written to by process" in capsys.readouterr().out
    (console,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = re.findall(r"^\$ streamloader (.*?)(?:\s+#.*)?$", console, re.MULTILINE)
    assert len(commands) == len(console.splitlines())
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert Path("old/subdir_0.pack").exists()
    assert Path("all.pack").exists()
    namespace.clear()
    gc.collect()


def test_what_it_names_is_there():
    text = DOCUMENT.read_text()
    named = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert named
    assert [name for name in named if not (DOCUMENT.parent / name).exists()] == []
