"""The check that every test leaves nothing behind has to see what it is there for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
from leak_check import AsyncioComplaints, Holdings, left_behind

WAITS = "import sys; sys.stdin.read()"  # until its parent closes the pipe


@contextlib.contextmanager
def a_child():
    with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as child:
        yield f"processes: {child.pid}"


@contextlib.contextmanager
def an_orphan():
    """A process whose parent is dead."""
    ours, theirs = os.pipe()
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        " stdin=int(sys.argv[2]), stdout=subprocess.DEVNULL); print(p.pid); p.returncode = 0"
    )
    command = [sys.executable, "-c", code, WAITS, str(ours)]
    out = subprocess.run(command, pass_fds=[ours], stdout=subprocess.PIPE, check=True, timeout=60)
    os.close(ours)
    yield f"processes: {int(out.stdout)}"
    os.close(theirs)


@contextlib.contextmanager
def a_zombie():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield f"processes: {child.pid} zombie"
    child.wait()


@contextlib.contextmanager
def a_descriptor():
    with Path("/etc/hosts").open() as file:
        yield f"descriptors: {file.fileno()} -> /etc/hosts"


@contextlib.contextmanager
def a_ring():
    descriptor = os.memfd_create("streamloader-test")
    os.ftruncate(descriptor, 4096)
    memory = mmap.mmap(descriptor, 4096)
    os.close(descriptor)
    yield "memory: 1 x /memfd:streamloader-test"
    memory.close()


@contextlib.contextmanager
def a_shared_name():
    path = Path("/dev/shm") / f"streamloader-test-{uuid.uuid4()}"
    path.touch()
    yield f"shared_names: {path}"
    path.unlink()


@contextlib.contextmanager
def a_temporary_file():
    with tempfile.NamedTemporaryFile() as file:
        yield f"temporary: {Path(file.name).name}"


@contextlib.contextmanager
def a_thread():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-running")
    thread.start()
    yield "threads: <Thread(left-running"
    stop.set()
    thread.join()


@contextlib.contextmanager
def a_task():
    loop = asyncio.new_event_loop()
    task = loop.create_task(asyncio.Event().wait(), name="left-waiting")
    loop.run_until_complete(asyncio.sleep(0))
    yield "tasks: <Task pending name='left-waiting'"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


@pytest.mark.parametrize(
    "make",
    [a_child, an_orphan, a_zombie, a_descriptor, a_ring, a_shared_name, a_temporary_file, a_thread, a_task],
)
def test_what_is_left_is_named_and_what_is_gone_is_not(make):
    before = Holdings.now()
    with make() as expected:
        lines = left_behind(before, patience=0.0)
        assert [line for line in lines if line.startswith(expected)], lines
    assert left_behind(before, patience=30.0) == []


@pytest.fixture
def memory_that_only_its_value_holds():
    descriptor = os.memfd_create("streamloader-test")
    os.ftruncate(descriptor, 4096)
    yield mmap.mmap(descriptor, 4096)
    os.close(descriptor)


def test_what_a_fixture_returned_is_not_held_against_its_test(memory_that_only_its_value_holds):
    assert len(memory_that_only_its_value_holds) == 4096


def test_tasks_that_vanish_while_pending_are_noticed():
    complaints = AsyncioComplaints()
    logger = logging.getLogger("test_leak_check")
    logger.addHandler(complaints)
    logger.error("Task was destroyed but it is pending!")
    logger.warning("slow callback")
    logger.removeHandler(complaints)
    assert complaints.lines == ["asyncio: Task was destroyed but it is pending!"]
