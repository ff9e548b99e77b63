"""Parts of the ingest: messages, temporary folders, progress, and the free space of stores."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import psutil
import pytest
from polling import wait_until

from streamloader.archive.ingest import temp_dir
from streamloader.archive.ingest.executors.messages import JsonMessageDecoder, WorkerConnection
from streamloader.archive.ingest.progress import (
    ActiveVideo,
    ProgressSnapshot,
    format_duration,
    format_size,
    open_progress_display,
)
from streamloader.archive.ingest.temp_dir import TempDir, remove_stale_dirs
from streamloader.errors import ConfigError
from streamloader.stores.registry import open_store


def test_messages_survive_any_split_of_the_data():
    parent_end, child_end = socket.socketpair()
    messages = [{"kind": "a"}, {"kind": "b", "text": "x" * 70000}, {}]
    with parent_end, child_end:
        sender = threading.Thread(target=lambda: [WorkerConnection(child_end).send(message) for message in messages])
        sender.start()
        data = b""
        while not data.endswith(b"{}"):
            data += parent_end.recv(1 << 16)
        sender.join()
    for step in (1, 7, 4096, len(data)):
        decoder = JsonMessageDecoder()
        found = [m for at in range(0, len(data), step) for m in decoder.feed(data[at : at + step])]
        assert found == messages


def test_a_driver_never_takes_pickles():
    parent_end, child_end = socket.socketpair()
    with parent_end, child_end:
        WorkerConnection(child_end).send(b"cos\nsystem\n(S'true'\ntR.")
        with pytest.raises(ValueError, match="encoding b'P'"):
            list(JsonMessageDecoder().feed(parent_end.recv(1000)))


def test_a_closed_connection_ends_a_receive():
    parent_end, child_end = socket.socketpair()
    with parent_end:
        child_end.close()
        with pytest.raises(EOFError):
            WorkerConnection(parent_end).receive()


def test_a_temporary_folder_is_gone_when_it_is_closed():
    with TempDir() as made:
        (open_file := open(os.path.join(made.folder, "x"), "w")).close()  # noqa: SIM115
        assert open_file.closed
        assert os.path.isdir(made.folder)
    assert not os.path.exists(made.folder)
    made.close()


HOLDER = """
import sys
from streamloader.archive.ingest.temp_dir import TempDir
made = TempDir()
print(made.folder, flush=True)
sys.stdin.read()
"""


def hold():
    return subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_folder_is_gone_once_its_user_was_killed():
    with hold() as holder:
        folder = holder.stdout.readline().strip()
        holder.kill()
        holder.wait()
        wait_until(lambda: not os.path.exists(folder))


def test_a_folder_whose_remover_was_killed_as_well_is_swept_and_never_before(monkeypatch):
    monkeypatch.setattr(temp_dir, "_MIN_AGE_S", -1.0)
    with hold() as holder:
        folder = holder.stdout.readline().strip()
        remove_stale_dirs()
        assert os.path.isdir(folder)
        for process in [*psutil.Process(holder.pid).children(), psutil.Process(holder.pid)]:
            process.kill()
        holder.wait()
        assert os.path.isdir(folder)
        remove_stale_dirs()
    assert not os.path.exists(folder)


def test_a_folder_that_was_just_made_is_left_alone():
    with TempDir() as made:
        fcntl.flock(made.fds[0], fcntl.LOCK_UN)  # as it is for a moment before it is locked
        remove_stale_dirs()
        assert os.path.isdir(made.folder)


def snapshot(seconds, finished=0, **changes):
    plain = ProgressSnapshot(
        videos=3, finished=finished, failed=0, existing=0, bytes_total=3_000_000, bytes_done=finished * 1e6,
        frames=finished * 500, bytes_out=0, seconds=seconds, active=(ActiveVideo("clip", "cutting", 0.5),),
    )  # fmt: skip
    return replace(plain, **changes)


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with open_progress_display(True, stream) as show:
        show(snapshot(0.5))
        show(snapshot(3.0, 1))
        show(snapshot(4.0, 1))
        show(snapshot(20.0, 2, failed=1))
        show(snapshot(30.0, 3, bytes_done=3e6))
    assert stream.getvalue().splitlines() == [
        "     3 s  1 of 3 videos, 33.3%, 167 frames/s, 333 kB/s, 6 s left",
        "    20 s  2 of 3 videos, 1 failed, 66.7%, 50 frames/s, 100 kB/s, 10 s left",
        "    30 s  3 of 3 videos, 100.0%, 50 frames/s, 100 kB/s",
    ]


def test_nothing_is_printed_for_a_short_run():
    stream = io.StringIO()
    with open_progress_display(True, stream) as show:
        show(snapshot(0.4, 3))
    assert stream.getvalue() == ""


def test_progress_of_unknown_size():
    stream = io.StringIO()
    with open_progress_display(True, stream) as show:
        show(snapshot(3.0, 1, bytes_total=None))
    assert stream.getvalue() == "     3 s  1 of 3 videos, 167 frames/s, 333 kB/s\n"


def test_a_function_receives_the_progress():
    snapshots = []
    with open_progress_display(snapshots.append) as show:
        show(snapshot(1.0))
    assert snapshots == [snapshot(1.0)]
    with pytest.raises(ConfigError, match="progress"), open_progress_display("yes"):
        pass
    with open_progress_display(None) as show:
        assert show(snapshot(1.0)) is None


def test_sizes_and_times_for_people():
    assert [format_size(n) for n in (0, 999, 1000, 99_940, 99_960, 999_600, 1e14)] == [
        "0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "1.0 MB", "100 TB",
    ]  # fmt: skip
    assert [format_duration(s) for s in (0.4, 59.6, 3599.6, 7325, 200_000)] == [
        "0 s",
        "1:00 min",
        "1:00 h",
        "2:02 h",
        "2.3 days",
    ]


def ask(address, use):
    async def run():
        async with asyncio.timeout(60), open_store(address) as store:
            return await use(store)

    return asyncio.run(run())


async def names(found):
    return [info.path async for info in found]


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path):
    free = ask(str(tmp_path / "a" / "b"), lambda store: store.free_bytes())
    status = os.statvfs(tmp_path)
    assert abs(free - status.f_bavail * status.f_frsize) < 1 << 30
    assert not (tmp_path / "a").exists()
    assert ask("memory://x", lambda store: store.free_bytes()) is None


def test_partial_files_of_killed_writers_are_listed_apart(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".streamloader-new-0123").write_bytes(b"123")
    (tmp_path / "in" / "whole").write_bytes(b"1")
    assert ask(str(tmp_path), lambda store: names(store.list())) == ["in/whole"]
    assert ask(str(tmp_path), lambda store: names(store.list_unfinished("in"))) == ["in/.streamloader-new-0123"]
    assert ask(str(tmp_path), lambda store: names(store.list_unfinished("out"))) == []


def test_reports_are_json():
    from streamloader.archive.ingest import IngestReport

    assert json.loads(json.dumps(IngestReport().to_json()))["frames_per_second"] == 0.0
