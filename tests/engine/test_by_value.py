"""Code that a bare interpreter cannot import reaches the workers, whatever way it came into this process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import pytest

import streamloader
from streamloader.child_processes import module_search_path
from streamloader.engine.by_value import pickle_local_modules_by_value

LOADER = """
import numpy as np
import streamloader as sl

SCALE = 10

class Counter:
    def __init__(self, item):
        self.item = item

    def numbers(self):
        return [np.int64(SCALE * self.item + step) for step in range(3)]

def make(item):
    yield from Counter(item).numbers()

def play(function=make):
    streams = sl.IterStreams([1, 2], function, fields=sl.Field((), "int64"), lengths=[3, 3])
    with sl.MultiStreamer(streams, 2, 3, num_workers=1, shuffle=False, timeout=60.0) as loader:
        return [batch.data.tolist() for batch in loader]
"""
EXPECTED = "[[[10, 11, 12], [20, 21, 22]]]"


def run(folder, code, name="program.py", **options):
    path = folder / name
    path.write_text(textwrap.dedent(code))
    result = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=200, **options
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_ranks_that_multiprocessing_starts(method, tmp_path):
    code = (
        LOADER
        + f"""
import multiprocessing

def rank(number, results):
    results.put((number, str(play()), str(play(lambda item: make(item)))))

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    results = context.Queue()
    ranks = [context.Process(target=rank, args=(number, results)) for number in range(2)]
    for process in ranks:
        process.start()
    for line in sorted(results.get(timeout=150) for _ in ranks):
        print(*line, sep=";")
    for process in ranks:
        process.join()
"""
    )
    assert run(tmp_path, code) == [f"{number};{EXPECTED};{EXPECTED}" for number in range(2)]


@pytest.mark.slow
def test_ranks_that_torch_starts(tmp_path):
    code = (
        LOADER
        + """
import torch.multiprocessing

def rank(number):
    print(play(), flush=True)

if __name__ == "__main__":
    torch.multiprocessing.spawn(rank, nprocs=1)
"""
    )
    assert run(tmp_path, code) == [EXPECTED]


def test_a_module_that_was_loaded_by_its_path(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "streams_of_mine.py").write_text(LOADER)
    code = f"""
    import importlib.util, sys
    for name in ("streams_of_mine", "email.of_mine"):
        spec = importlib.util.spec_from_file_location(name, {str(tmp_path / "elsewhere" / "streams_of_mine.py")!r})
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(module.play())
    print(module.play(module.make))
    """
    assert run(tmp_path, code) == [EXPECTED] * 3


def test_a_module_that_was_made_at_run_time(tmp_path):
    code = f"""
    import sys, types
    module = sys.modules["made"] = types.ModuleType("made")
    exec({LOADER!r}, module.__dict__)
    print(module.play())
    """
    assert run(tmp_path, code) == [EXPECTED]


def test_a_folder_that_a_notebook_has_left(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "mine.py").write_text(LOADER)
    (tmp_path / "first" / "package").mkdir()
    (tmp_path / "first" / "package" / "__init__.py").write_text("from package.part import play")
    (tmp_path / "first" / "package" / "part.py").write_text(LOADER)
    (tmp_path / "second" / "mine.py").write_text("raise SystemExit('another module of this name')")
    code = """
    import os, sys
    sys.path.insert(0, "")
    os.chdir("first")
    import mine, package
    os.chdir("../second")
    print(mine.play())
    print(package.play())
    """
    assert run(tmp_path, code, cwd=tmp_path) == [EXPECTED] * 2


def test_this_package_is_never_sent_by_value(tmp_path):
    folder = tmp_path / "left"  # is found by "" alone, and then left
    folder.mkdir()
    (folder / "streamloader").symlink_to(Path(streamloader.__file__).parent)
    code = f"""
    import os, sys
    sys.path.insert(0, "")
    os.chdir({str(folder)!r})
    import streamloader
    assert streamloader.__file__.startswith({str(folder)!r})
    os.chdir({str(tmp_path)!r})
    exec({LOADER!r})
    print(play())
    """
    assert run(tmp_path, code) == [EXPECTED]


def test_what_workers_can_import_is_sent_by_reference():
    before = cloudpickle.list_registry_pickle_by_value()  # by another test
    with pickle_local_modules_by_value(module_search_path()):
        registered = cloudpickle.list_registry_pickle_by_value() - before
    installed = {"numpy", "torch", "streamloader", "pytest", "av", "engine_data", "json", "cloudpickle"}
    assert not {name for name in registered if name.partition(".")[0] in installed}
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_the_register_of_the_user_is_kept():
    module = sys.modules[__name__]
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        cloudpickle.unregister_pickle_by_value(module)
    before = cloudpickle.list_registry_pickle_by_value()
    cloudpickle.register_pickle_by_value(module)
    try:
        with pickle_local_modules_by_value([]):
            assert "engine_data" in cloudpickle.list_registry_pickle_by_value() or "engine_data" not in sys.modules
        assert cloudpickle.list_registry_pickle_by_value() == before | {module.__name__}
    finally:
        cloudpickle.unregister_pickle_by_value(module)


LOCKED = """
import threading
import numpy as np
import streamloader as sl

LOCK, RLOCK, LOCAL = threading.Lock(), threading.RLock(), threading.local()
CONDITION, EVENT, SEMAPHORE = threading.Condition(), threading.Event(), threading.Semaphore(2)

def make(item):
    with LOCK, RLOCK, CONDITION, SEMAPHORE:
        LOCAL.item = item
        EVENT.set()
        assert not LOCK.acquire(blocking=False)
        return [np.int64(LOCAL.item)] * 2

LOCK.acquire()  # those of the workers are free
streams = sl.IterStreams([3, 4], make, fields=sl.Field((), "int64"), lengths=[2, 2])
with sl.MultiStreamer(streams, 2, 2, num_workers=1, shuffle=False, timeout=60.0) as loader:
    print([batch.data.tolist() for batch in loader])
"""


def test_locks_of_a_script_are_its_workers_own():
    output = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, check=False, timeout=100)
    assert output.stdout == "[[[3, 3], [4, 4]]]\n", output.stderr
