"""Child interpreters have the flags of their parent: what it does not run, they do not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiers import fast_first

from streamloader.child_processes import Surroundings, module_search_path

# Runs a loader with a worker process and an ingest worker, and prints the flags of the former.
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import numpy as np
import streamloader as sl
from streamloader.archive.ingest.executors.processes import ProcessExecutor
from streamloader.archive.ingest.unit import WorkUnit
from streamloader.media.chunks.settings import CutSettings
NAMES = ("isolated", "ignore_environment", "no_user_site", "safe_path", "no_site", "optimize", "dont_write_bytecode")

def look(item):
    import sys
    options = json.dumps(sorted(sys._xoptions.items()))
    text = json.dumps([[getattr(sys.flags, name) for name in NAMES], options, sys.path, "site" in sys.modules])
    yield {"text": np.frombuffer(text.encode().ljust(8192), np.uint8)}

streams = sl.IterStreams([0], look, fields={"text": sl.Field((8192,))}, lengths=[1])
with sl.MultiStreamer(streams, 1, 1, num_workers=1) as loader:
    (batch,) = (batch.numpy()["text"].tobytes().decode().strip() for batch in loader)
executor = ProcessExecutor(1)
try:
    executor.start_unit(WorkUnit(0, "/nowhere/a.mp4", None, {}, CutSettings(), (), 1))
    events = []
    while not events:
        events = executor.wait_for_events(60.0)
    assert events[-1].kind == "failed", events
finally:
    executor.close()
print(json.dumps([[getattr(sys.flags, name) for name in NAMES], json.dumps(sorted(sys._xoptions.items())), sys.path,
    "site" in sys.modules]))
print(batch)
"""


@pytest.fixture
def hostile(tmp_path):
    """A folder with modules that leave a trace when they are imported, and a function that lists the traces."""
    folder, traces = tmp_path / "hostile", tmp_path / "traces"
    folder.mkdir()
    traces.mkdir()
    code = f"import os, sys; open(os.path.join({str(traces)!r}, __name__ + str(os.getpid())), 'w').close()\n"
    for name in ("sitecustomize", "usercustomize", "anyio", "uvloop", "cloudpickle", "runpy"):
        (folder / f"{name}.py").write_text(code + ("" if "custom" in name else "raise SystemExit(3)\n"), "utf-8")
    return folder, lambda: sorted(os.listdir(traces))


@pytest.mark.parametrize(
    "flags",
    fast_first([["-I", "-S"], ["-I"], ["-E", "-s", "-P", "-O", "-B", "-X", "utf8=1", "-X", "frozen_modules=on"]]),
)
def test_workers_run_with_the_flags_and_the_path_of_their_parent(flags, hostile):
    folder, list_traces = hostile
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONUSERBASE": str(folder)}
    output = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM, json.dumps(module_search_path())],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    parent, worker = output.stdout.splitlines()
    assert list_traces() == []
    expected, found = json.loads(parent), json.loads(worker)
    expected[0][3] = True  # workers never have the current folder on their path
    assert found[:3] == expected[:3]
    if "-S" in flags:
        assert found[0][4] == 1


@pytest.mark.slow
def test_the_search_path_of_the_environment_is_used_where_the_parent_uses_it(hostile):
    folder, list_traces = hostile
    for name in ("anyio", "uvloop", "cloudpickle", "runpy"):
        (folder / f"{name}.py").unlink()
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(module_search_path())],
        env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    assert len(list_traces()) == 3  # the program and its two workers


def test_a_command_names_its_module_and_passes_arguments_unchanged(tmp_path, monkeypatch):
    Path(tmp_path / "shown.py").write_text(
        "import json, sys; print(json.dumps([__name__, sys.argv[1:], sys.path]))", "utf-8"
    )
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.chdir("/")
    with Surroundings() as surroundings:
        command = surroundings.command("shown", 5, "a b", "-x")
    assert "shown" in command
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name, arguments, path = json.loads(output)
    assert (name, arguments, path[1]) == ("__main__", ["5", "a b", "-x"], str(tmp_path))
    assert "/" not in path


def test_no_interpreter_is_started_in_another_way():
    import streamloader

    root = Path(streamloader.__file__).parent
    found = {path.name for path in root.rglob("*.py") if "sys.executable" in path.read_text("utf-8")}
    assert found == {"child_processes.py", "machine.py"}  # the latter only shows it, in `streamloader doctor`
