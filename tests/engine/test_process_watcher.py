"""The end of a process is noticed without anybody asking, with and without descriptors for processes."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading

import pytest

from streamloader.engine.process_watcher import Watch


def child():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


@pytest.fixture(params=["pidfd", "no pidfd"])
def way(request, monkeypatch):
    if request.param == "no pidfd":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.mark.usefixtures("way")
def test_each_end_is_told_once_and_the_status_is_left_to_others():
    ended = queue.SimpleQueue()
    watch = Watch(ended.put)
    children = [child() for _ in range(3)]
    try:
        for one in children:
            watch.add(one.pid)
        children[1].kill()
        assert ended.get(timeout=20) == children[1].pid
        for one in (children[0], children[2]):
            one.stdin.write(b"\n")
            one.stdin.close()
            assert ended.get(timeout=20) == one.pid
            one.stdin = None
            one.wait()
        children[1].communicate()
        assert [one.returncode for one in children] == [0, -9, 0]
        assert ended.empty()
    finally:
        watch.stop()


@pytest.mark.usefixtures("way")
def test_a_child_that_has_ended_already():
    ended = queue.SimpleQueue()
    watch = Watch(ended.put)
    one = child()
    one.kill()
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    watch.add(one.pid)
    assert ended.get(timeout=20) == one.pid
    watch.stop()
    one.communicate()
    assert one.returncode == -9


def test_it_stops_while_children_live():
    watch = Watch(lambda _: None)
    one = child()
    watch.add(one.pid)
    watch.stop()
    assert not any(thread.name == "streamloader-watch" for thread in threading.enumerate())
    one.kill()
    one.communicate()
