"""The exit of a process is detected at once, with and without descriptors for processes."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading

import pytest

from streamloader.engine.process_watcher import ProcessWatcher


def child():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


@pytest.fixture(params=["pidfd", "no pidfd"])
def way(request, monkeypatch):
    if request.param == "no pidfd":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.mark.usefixtures("way")
def test_each_exit_is_reported_once_and_the_child_is_not_reaped():
    exited = queue.SimpleQueue()
    watcher = ProcessWatcher(exited.put)
    children = [child() for _ in range(3)]
    try:
        for one in children:
            watcher.add(one.pid)
        children[1].kill()
        assert exited.get(timeout=60) == children[1].pid
        for one in (children[0], children[2]):
            one.stdin.write(b"\n")
            one.stdin.close()
            assert exited.get(timeout=60) == one.pid
            one.stdin = None
            one.wait()
        children[1].communicate()
        assert [one.returncode for one in children] == [0, -9, 0]
        assert exited.empty()
    finally:
        watcher.stop()


@pytest.mark.usefixtures("way")
def test_a_child_that_has_exited_already():
    exited = queue.SimpleQueue()
    watcher = ProcessWatcher(exited.put)
    one = child()
    one.kill()
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    watcher.add(one.pid)
    assert exited.get(timeout=60) == one.pid
    watcher.stop()
    one.communicate()
    assert one.returncode == -9


def test_it_stops_while_children_live():
    watcher = ProcessWatcher(lambda _: None)
    one = child()
    watcher.add(one.pid)
    watcher.stop()
    assert not any(thread.name == "streamloader-process-watch" for thread in threading.enumerate())
    one.kill()
    one.communicate()
