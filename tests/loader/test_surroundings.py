"""Workers get executable, folder, environment and standard streams as they were when the loader started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

import streamloader as sl
from streamloader.child_processes import Surroundings

PRELUDE = """
import os, signal, sys, time
import numpy as np
import streamloader as sl

def make(item):
    for step in range(12):
        yield np.int64(step)

def loader_of(make=make, items=(0, 1), **options):
    streams = sl.IterStreams(list(items), make, fields=sl.Field((), "int64"), lengths=[12] * len(items))
    return sl.MultiStreamer(streams, len(items), 2, timeout=60.0, **({"num_workers": 2, "shuffle": False} | options))

def rows(batches):
    return np.concatenate([batch.numpy()["data"] for batch in batches], 1).tolist()

def kill_workers(loader):
    before = list(loader._supervisor.pids)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    while set(before) & set(loader._supervisor.pids):
        time.sleep(0.001)

COUNTS = [list(range(12))] * 2
"""


def run(code, **options):
    """Run a program to its end, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True, text=True, check=False, timeout=200, stdin=subprocess.DEVNULL,
        **({"start_new_session": True} | options),
    )  # fmt: skip
    assert not result.returncode, result.stderr
    return result.stdout


# --- the interpreter --------------------------------------------------------------------------------------------------


def make_loader(num_workers=1):
    streams = sl.IterStreams([3], range, fields=sl.Field((), "int64"), lengths=[3])
    return sl.MultiStreamer(streams, 1, 3, num_workers=num_workers, timeout=60.0)


@pytest.mark.parametrize("how", ["frozen", "embedded", "renamed"])
def test_a_frozen_application_is_not_started_as_a_worker(how, monkeypatch):
    monkeypatch.delenv("STREAMLOADER_PYTHON", raising=False)
    python = sys.executable
    if how == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", {"frozen": python, "embedded": "", "renamed": "/opt/trainer/train"}[how])
    with make_loader() as loader, pytest.raises(sl.ConfigError, match="Set STREAMLOADER_PYTHON to a Python 3"):
        iter(loader)
    with make_loader(num_workers=0) as loader:
        assert len(list(loader)) == 1
    monkeypatch.setenv("STREAMLOADER_PYTHON", python)
    with make_loader() as loader:
        assert [batch.data.tolist() for batch in loader] == [[[0, 1, 2]]]


# --- what changes after the start -------------------------------------------------------------------------------------


def test_a_worker_that_replaces_another_has_the_same_surroundings(tmp_path):
    for name in ("here", "there", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "numbers.txt").write_bytes(bytes(range(12)))
    output = run(
        f"""
        os.chdir({str(tmp_path / "here")!r})
        os.environ["COLOUR"] = "red"

        def make(item):
            with open("numbers.txt", "rb") as file:
                numbers = file.read()
            for number in numbers:
                yield np.int64(number if os.environ["COLOUR"] == "red" and "LATER" not in os.environ else -1)

        with loader_of(make) as loader:
            iterator = iter(loader)
            batches = [next(iterator)]
            os.chdir({str(tmp_path / "there")!r})
            os.environ |= {{"COLOUR": "green", "LATER": "1"}}
            sys.path.clear()
            sys.executable = "/no/such/python"
            os.dup2(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), 2)
            kill_workers(loader)
            batches += iterator
            print(rows(batches) == COUNTS, loader.stats().restarts)
        """
    )
    assert output == "True 2\n"


def test_a_worker_starts_after_its_folder_was_deleted(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    output = run(
        f"""
        os.chdir({str(folder)!r})
        with loader_of() as loader:
            iterator = iter(loader)
            batches = [next(iterator)]
            os.rmdir({str(folder)!r})
            kill_workers(loader)
            batches += iterator
            print(rows(batches) == COUNTS)
        with loader_of() as loader:
            print(rows(list(loader)) == COUNTS)
        """
    )
    assert output == "True\nTrue\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)])
def test_standard_streams_that_are_closed(closed, tmp_path):
    # What is opened next gets their numbers, and must not become the stdout of a worker.
    run(
        f"""
        def make(item):
            for step in range(12):
                print("shown by a worker", item, step, flush=True)
                yield np.int64(step)

        for fd in {closed}:
            os.close(fd)
        with loader_of(make) as loader:
            result = rows(list(loader)) == COUNTS
        with open({str(tmp_path / "result")!r}, "w") as file:
            file.write(str(result))
        """
    )
    assert (tmp_path / "result").read_text() == "True"


def test_the_copies_of_the_standard_streams_are_closed():
    before = os.listdir("/proc/self/fd")
    with Surroundings() as surroundings:
        assert len(os.listdir("/proc/self/fd")) == len(before) + 2
        surroundings.close()
    assert os.listdir("/proc/self/fd") == before


# --- signals to the whole job -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_signals_of_a_scheduler_end_no_worker(num_workers):
    output = run(
        f"""
        seen = []
        names = "USR1 USR2 TERM HUP QUIT INT ALRM VTALRM PROF IO PWR STKFLT RTMIN RTMAX".split()
        numbers = [getattr(signal, "SIG" + name) for name in names if hasattr(signal, "SIG" + name)]
        for number in numbers:
            signal.signal(number, lambda number, _: seen.append(number))
        with loader_of(num_workers={num_workers}, on_error="skip") as loader:
            for _ in range(2):
                batches = []
                for batch in loader:
                    batches.append(batch.clone())
                    for number in numbers:
                        os.killpg(0, number)
                assert rows(batches) == COUNTS
            print(loader.stats().restarts, loader.quarantined, len(set(seen)) == len(numbers))
        """
    )
    assert output == "0 () True\n"


def test_signals_while_workers_start():
    output = run(
        """
        import threading
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        ended = threading.Event()

        def send():
            while not ended.wait(0.002):
                os.killpg(0, signal.SIGUSR1)
                os.killpg(0, signal.SIGTERM)

        thread = threading.Thread(target=send)
        thread.start()
        with loader_of() as loader:
            print(rows([batch.clone() for batch in loader]) == COUNTS, loader.stats().restarts)
        ended.set()
        thread.join()
        """
    )
    assert output == "True 0\n"


def test_programs_of_a_worker_can_be_terminated():
    output = run(
        """
        import subprocess

        def make(item):
            with subprocess.Popen(["sleep", "600"]) as process:
                process.terminate()
            for step in range(12):
                yield np.int64(process.returncode)

        with loader_of(make, num_workers=1) as loader:
            print(set(sum(rows(list(loader)), [])))
        """
    )
    assert output == f"{{{-signal.SIGTERM}}}\n"
