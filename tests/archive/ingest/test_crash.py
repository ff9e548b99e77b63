"""Workers and whole programs are killed while videos are added. The next run completes the archive."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from archive.ingest.archives import CHUNK, archive, assert_whole, clip, files, name_of, stems, tidied

from streamloader.archive.ingest import add_videos, check_archive
from streamloader.errors import IngestFailed, WorkerDied
from streamloader.media.chunks.settings import CutSettings
from streamloader.stores.io_thread import close_shared_stores

SETTINGS = CutSettings(chunk_frames=CHUNK)
PROGRAM = str(Path(__file__).with_name("adding_program.py"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [clip(folder / f"{name}.mp4", seed, frames=60) for seed, name in enumerate(["a", "b", "c"])]


@pytest.fixture
def catalog(tmp_path):
    with archive(tmp_path / "archive", ["one", "two"]) as made:
        yield made


def workers():
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "streamloader.archive.ingest.executors.worker" in child.cmdline():
                found.append(child)
    return found


def kill_workers():
    for worker in workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


def after(catalog, monkeypatch, method, times):
    """Kill all workers right after these calls of a method of the catalog (the first is 1); return the calls."""
    calls = []
    inner = getattr(catalog.resource, method)

    async def called(*arguments):
        result = await inner(*arguments)
        calls.append(arguments)
        if len(calls) in times:
            kill_workers()
        return result

    monkeypatch.setattr(catalog.resource, method, called)
    return calls


def test_a_killed_workers_video_is_taken_up_again_from_its_chunks(catalog, clips, monkeypatch):
    staged = after(catalog, monkeypatch, "stage_chunks", {1, 3})
    report = add_videos(catalog, clips, SETTINGS, jobs=1)
    assert stems(catalog) == ["a", "b", "c"]
    tidied(catalog)
    paths = [chunk.row.path for (chunks,) in staged for chunk in chunks]
    assert len(paths) == len(set(paths)) == 18  # each chunk was made once: what was staged was not made again
    assert report.frames_made == 180


def test_a_video_that_kills_its_worker_twice_is_given_up_and_the_others_go_on(catalog, clips, monkeypatch):
    after(catalog, monkeypatch, "begin_job", {1, 2})
    with pytest.raises(IngestFailed) as raised:
        add_videos(catalog, clips, SETTINGS, jobs=1)
    (failed,) = raised.value.details["report"].failed
    assert isinstance(failed.error, WorkerDied)
    assert failed.error.stream == str(clips[0])
    assert failed.error.details["signal"] == signal.SIGKILL
    assert "SIGKILL" in failed.error.message
    assert stems(catalog) == ["b", "c"]
    assert [video.name for video in add_videos(catalog, clips, SETTINGS, jobs=1).added] == [name_of(clips[0])]
    tidied(catalog)


@pytest.mark.slow
def test_deaths_with_new_chunks_in_between_give_up_nothing(catalog, clips, monkeypatch):
    after(catalog, monkeypatch, "stage_chunks", {1, 2, 3, 4, 5})
    add_videos(catalog, clips[:1], SETTINGS, jobs=1)
    tidied(catalog)


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_its_video_taken_up_again(catalog, clips, monkeypatch):
    from streamloader.archive.ingest import driver

    inner, patient = catalog.resource.begin_job, driver._STALL_TIMEOUT_S
    stopped = []

    async def begin(job):
        result = await inner(job)
        if not stopped:
            stopped.extend(workers())
            for worker in stopped:
                worker.suspend()
            monkeypatch.setattr(driver, "_STALL_TIMEOUT_S", 1.0)
            restorer.start()
        return result

    def wait_and_restore():
        """Give the next worker all the time that it needs."""
        psutil.wait_procs(stopped, timeout=60)
        driver._STALL_TIMEOUT_S = patient

    restorer = threading.Thread(target=wait_and_restore)
    monkeypatch.setattr(catalog.resource, "begin_job", begin)
    add_videos(catalog, clips[:1], SETTINGS, jobs=1)
    restorer.join(60)
    assert len(stopped) == 1
    assert not stopped[0].is_running()
    tidied(catalog)


# --- whole programs ---------------------------------------------------------------------------------------------------


def start(catalog, clips, jobs=2):
    command = [sys.executable, PROGRAM, catalog.resource.url, "local", str(jobs), *map(str, clips)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finish(program):
    output, _ = program.communicate(timeout=120)
    assert program.returncode == 0
    return tuple(map(int, output.split()))


def kill(program, how):
    if how == "group":
        os.killpg(program.pid, signal.SIGKILL)
    else:
        program.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    program.communicate(timeout=120)


def family(pid):
    """Processes of a session, those without a parent too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def killed_again_and_again(tmp_path, clips, kills, seed, at_a_time=3):
    """Run the program until it ends by itself, and kill it `kills` times before that, at random moments."""
    draw = random.Random(seed)
    with archive(tmp_path / "calm", ["one", "two"]) as calm:
        began = time.monotonic()
        assert finish(start(calm, clips)) == (len(clips), 0, 60 * len(clips))
        lasts = time.monotonic() - began
        expected = sorted(path for path in files(tmp_path / "calm") if "/chunks/" in path)
    rounds = 0
    while kills > 0:
        rounds += 1
        close_shared_stores()  # the catalog of the round before would stay open for a while
        shutil.rmtree(tmp_path / "archive", ignore_errors=True)
        with archive(tmp_path / "archive", ["one", "two"]) as catalog:
            for _ in range(at_a_time):
                program = start(catalog, clips)
                how = draw.choice(["parent", "group", "interrupt"])
                try:
                    program.wait(draw.uniform(0.1, 1.0) * lasts)  # no process tells when it is half done
                except subprocess.TimeoutExpired:
                    kill(program, how)
                    kills -= 1
                else:
                    program.communicate()
                _, alive = psutil.wait_procs(family(program.pid), timeout=60)
                assert not alive, f"{alive} outlived their program ({how})"
            added, known, _ = finish(start(catalog, clips))
            assert added + known == len(clips)
            assert sorted(stems(catalog)) == sorted(path.stem for path in clips)
            report = check_archive(catalog, repair=True, deep=True, stale_after=0)
            assert report.ok
            assert {problem.kind for problem in report.problems} <= {"orphan", "unfinished"}
            assert_whole(catalog)
            assert sorted(path for path in files(tmp_path / "archive") if "/chunks/" in path) == expected
            assert check_archive(catalog, deep=True).problems == ()


def test_programs_that_are_killed(tmp_path, clips):
    killed_again_and_again(tmp_path, clips[:1], 1, seed=1, at_a_time=1)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_programs_that_are_killed_often(tmp_path, clips):
    killed_again_and_again(tmp_path, clips, 60, seed=2)


@pytest.mark.slow
def test_an_interrupt_leaves_all_that_was_done(clips, catalog):
    program = start(catalog, clips)
    deadline = time.monotonic() + 60
    while not catalog.call(catalog.resource.list_jobs()):
        assert time.monotonic() < deadline
        assert program.poll() is None
    kill(program, "interrupt")
    assert program.returncode != 0
    added, known, _ = finish(start(catalog, clips))
    assert added + known == 3
    assert sorted(stems(catalog)) == ["a", "b", "c"]
