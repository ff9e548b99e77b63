"""The pool of processes that parse untrusted files: what they do to themselves stays with them, and names the file."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

import hostile_media as hostile
import parser_functions as functions
import pytest
from made_clips import make_clip
from polling import is_running, wait_until

from streamloader.errors import ClosedError, ConfigError, CorruptStream, MediaLimitExceeded, StreamFailed
from streamloader.loader.multistreamer import MultiStreamer
from streamloader.media import parser_pool
from streamloader.media.parser_pool import ParserPool
from streamloader.media.video import index_cache
from streamloader.streams.video import VideoStreams


@pytest.fixture
def pool():
    with ParserPool(max_processes=2) as made:
        yield made


def test_a_call_runs_in_another_process_that_is_used_again(pool):
    pids = {pool.call("a file", functions.pid) for _ in range(5)}
    assert len(pids) == 1
    assert os.getpid() not in pids
    assert pool.call("a file", functions.echo, {"a": [1, 2.5, None, "x"]}) == {"a": [1, 2.5, None, "x"]}


def test_processes_are_started_on_demand_and_shared(pool, tmp_path):
    barrier = [threading.Thread(target=pool.call, args=("f", functions.wait_for, str(tmp_path / "go"))) for _ in "abc"]
    for thread in barrier:
        thread.start()
    wait_until(lambda: len([path for path in tmp_path.iterdir() if path.read_text()]) == 3)
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 2  # there may be no more
    (tmp_path / "go").touch()
    for thread in barrier:
        thread.join()
    shared = [pool.call("a file", functions.pid, shared_by=16) for _ in range(3)]
    assert len(set(shared)) == 1


def test_errors_arrive_as_they_were_raised(pool):
    with pytest.raises(CorruptStream, match=r"^broken \(offset=7\)$") as caught:
        pool.call("a file", functions.fail)
    assert caught.value.details == {"found": 3}
    with pytest.raises(StreamFailed, match="ZeroDivisionError"):
        pool.call("a file", functions.divide)


def test_log_records_arrive_printable_and_under_the_name_of_this_package(pool, caplog):
    with caplog.at_level(logging.INFO, logger="streamloader"):
        pool.call("a file", functions.log, "harm\x1b[31m\u202e", logging.WARNING)
        pool.call("a file", functions.log, "unimportant", logging.DEBUG)
        pool.call("a file", functions.log, "fatal", 10**9)
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("streamloader", logging.WARNING, r"harm\x1b[31m\u202e"),
        ("streamloader", logging.ERROR, "fatal"),
    ]


@pytest.mark.parametrize("end", ["crash", "leave", "babble", "shout", "answer_another", "nest"])
def test_a_file_that_ends_its_process_twice_is_named(pool, tmp_path, end):
    log = tmp_path / "log"
    with pytest.raises(
        CorruptStream, match=r"^evil\.mp4 ends the process that parses it \((signal|exit|it sent)"
    ) as caught:
        pool.call("evil.mp4", getattr(functions, end), str(log))
    assert caught.value.address == "evil.mp4"
    assert len(set(log.read_text().split())) == 2
    assert pool.call("a file", functions.echo, 5) == 5


def test_a_file_on_which_processes_hang_is_named(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(parser_pool, "_STALL_TIMEOUT_S", 0.2)
    with pytest.raises(CorruptStream, match=r"endless\.ts ends the process .* no progress"):
        pool.call("endless.ts", functions.hang, str(tmp_path / "log"))


def test_how_long_a_process_may_hang_is_an_option(tmp_path):
    with ParserPool(stall_timeout_s=0.2) as pool, pytest.raises(CorruptStream, match=r"endless\.ts .* no progress"):
        pool.call("endless.ts", functions.hang, str(tmp_path / "log"))


def test_calls_that_share_a_process_with_a_crash_are_repeated(pool, tmp_path):
    log, results = tmp_path / "log", []
    with ParserPool(max_processes=1) as single:
        call = threading.Thread(
            target=lambda: results.append(single.call("good", functions.wait_first, str(tmp_path), shared_by=9))
        )
        call.start()
        wait_until(lambda: list(tmp_path.glob("*.pid")))
        with pytest.raises(CorruptStream, match="evil"):
            single.call("evil", functions.crash, str(log), shared_by=9)
        call.join()
    assert results == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of processes is limited on Linux")
def test_memory_is_limited(tmp_path):
    with ParserPool(512 << 20) as limited:
        assert limited.call("a file", functions.allocate, 64 << 20) == 64 << 20
        with pytest.raises(MediaLimitExceeded, match=r"^big\.mkv needs more than the 536870912 bytes.*max_pixels"):
            limited.call("big.mkv", functions.allocate, 4 << 30)
        with pytest.raises(MediaLimitExceeded, match=r"^big\.mkv needs"):
            limited.call("big.mkv", functions.allocate, 4 << 30, shared_by=2)


def test_closing_ends_calls_in_progress(tmp_path):
    closing, errors = ParserPool(max_processes=1), []

    def call():
        try:
            closing.call("a file", functions.wait_for, str(tmp_path / "never"))
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: list(tmp_path.glob("*.pid")))
    closing.close()
    thread.join()
    assert len(errors) == 1
    with pytest.raises(ClosedError):
        closing.call("a file", functions.pid)


def test_processes_end_with_their_parent(tmp_path):
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); import parser_functions as f\n"
        "from streamloader.media.parser_pool import ParserPool\n"
        "print(ParserPool().call('f', f.pid), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), os.path.dirname(functions.__file__)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    wait_until(lambda: not is_running(pid))


def test_arguments_that_cannot_be_sent(pool):
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        pool.call("a file", functions.echo, threading.Lock())


# --- indexing for a loader -------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from streamloader import MultiStreamer, VideoStreams
from streamloader.errors import StreamloaderError
for path in sys.argv[1:]:
    try:
        with MultiStreamer(VideoStreams(path), 1, 4, num_workers=1) as loader:
            print(len(loader), sum(int(batch.numpy()["valid"].sum()) for batch in loader))
    except StreamloaderError as error:
        print(type(error).__name__)
print("av" in sys.modules)
"""


def test_a_loader_with_workers_never_parses_in_its_own_process(tmp_path):
    """FFmpeg is not even imported there."""
    paths = [make_clip(tmp_path / "honest.mp4", frames=10), tmp_path / "list.mp4", tmp_path / "large.gif"]
    paths[1].write_text("#EXTM3U\n")
    paths[2].write_bytes(hostile.gif(hostile.HUGE, hostile.HUGE))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.splitlines() == ["3 10", "UnreadableStream", "MediaLimitExceeded", "False"], done.stderr


def test_a_loader_without_workers_indexes_in_its_own_process(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "clip.mp4", frames=10)
    indexed = []
    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", lambda video, **k: indexed.append(video) or real(video, **k))
    with MultiStreamer(VideoStreams(path), 1, 5, num_workers=0) as loader:
        assert len(loader) == 2
    assert indexed == [str(path)]
    with MultiStreamer(VideoStreams(path), 1, 5, num_workers=1) as loader:  # the index is in the cache
        assert len(loader) == 2
    path = make_clip(tmp_path / "other.mp4", frames=10)
    with MultiStreamer(VideoStreams(path), 1, 5, num_workers=1) as loader:
        assert len(loader) == 2
    assert indexed == [str(tmp_path / "clip.mp4")]
