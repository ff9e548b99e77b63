"""The same work on a real Ray cluster, one of whose workers is killed in the middle."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from archive.ingest.archives import archive, assert_whole, clip, files, rows, stems, tidied

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


TOKEN = secrets.token_hex(16)  # without one Ray would make its own, and keep it in the home directory


def environment(address=""):
    return os.environ | {
        "RAY_HEAD": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Give the address of a cluster with two CPUs, and the process that it is a child of."""
    if importlib.util.find_spec("ray") is None:
        why = "Ray is not installed here: pip install streamloader[ray]"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    command = [sys.executable, str(HERE / "ray_cluster_program.py"), "2", folder]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as head:
        address = head.stdout.readline().strip()
        assert address
        yield address, psutil.Process(head.pid)
        family = psutil.Process(head.pid).children(recursive=True)
        head.stdin.close()
        head.wait(60)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def start(catalog, clips, address):
    command = [
        sys.executable,
        str(HERE.parent / "adding_program.py"),
        catalog.resource.url,
        "ray",
        "2",
        *map(str, clips),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(address))


def finish(program):
    output, _ = program.communicate(timeout=120)
    assert program.returncode == 0
    return tuple(map(int, output.splitlines()[-1].split()))


def tasks(head):
    """The processes of the cluster that do units now."""
    found = []
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "streamloader-ingest" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.chaos
def test_a_killed_ray_workers_video_is_taken_up_again_and_each_chunk_is_there_once(cluster, tmp_path):
    address, head = cluster
    clips = [clip(tmp_path / f"{name}.mp4", seed, frames=200) for seed, name in enumerate("ab")]
    with archive(tmp_path / "calm", make=True) as calm:
        program = start(calm, clips, address)
        assert finish(program) == (2, 0, 400)
        expected = [[chunk.digest for chunk in chunks] for _, chunks in rows(calm)]
    with archive(tmp_path / "archive") as catalog:
        program = start(catalog, clips, address)
        killed = []
        deadline = time.monotonic() + 60
        while len(killed) < 2:  # two workers, each in the middle of a video: some of its chunks are there
            assert time.monotonic() < deadline
            assert program.poll() is None, "it was over before a worker could be killed"
            staged = [
                catalog.call(catalog.resource.get_staged_chunks(job.content))
                for job in catalog.call(catalog.resource.list_jobs())
            ]
            busy = [process for process in tasks(head) if process.pid not in killed]
            if busy and any(0 < len(chunks) < 20 for chunks in staged):
                busy[0].kill()
                killed.append(busy[0].pid)
        assert finish(program)[:2] == (2, 0)
        assert stems(catalog) == ["a", "b"]
        tidied(catalog)
        assert [[chunk.digest for chunk in chunks] for _, chunks in rows(catalog)] == expected
    made = [path for path in files(tmp_path / "archive") if "/chunks/" in path]
    assert len({Path(path).name for path in made}) == len(made) == 40


def test_without_a_cluster_it_is_said_what_to_do(tmp_path):
    clips = [clip(tmp_path / "a.mp4", frames=10)]
    with archive(tmp_path / "archive") as catalog:
        command = [
            sys.executable,
            str(HERE.parent / "adding_program.py"),
            catalog.resource.url,
            "ray",
            "2",
            *map(str, clips),
        ]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment("127.0.0.1:1"),
            timeout=120,
            check=False,
        )
        assert "ConfigError: no Ray cluster can be reached at 127.0.0.1:1" in result.stderr
        assert_whole(catalog)


def test_the_messages_of_tasks_are_checked():
    pytest.importorskip("ray")
    from streamloader.archive.ingest.executors.ray_executor import _SubmittedTask
    from streamloader.archive.ingest.executors.unit_protocol import UnitProtocol
    from streamloader.archive.ingest.unit import WorkUnit
    from streamloader.common.worker_messages import InvalidMessage
    from streamloader.media.chunks.settings import CutSettings

    unit = WorkUnit(0, "/a.mp4", None, {}, CutSettings(), (), 1)
    task = _SubmittedTask(1, None, 0.0, UnitProtocol(unit))
    endless = []
    endless.append(endless)
    for message in (object(), {"kind": object()}, endless, {"kind": "chunk"}, {"kind": "died"}, "x" * (32 << 20)):
        with pytest.raises(InvalidMessage):
            task.check(message)
    tick = {"kind": "tick", "stage": "reading", "done": 5}
    assert task.check(tick) == tick
