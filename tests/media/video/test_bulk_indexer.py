"""Indexing many videos: in child processes, interrupted and continued, with hostile files among them."""

from __future__ import annotations

import base64
import dataclasses
import os
import pty
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
from made_clips import make_clip
from tiers import fast_first

from streamloader.errors import ClosedError, CorruptStream, StreamloaderError
from streamloader.media.video import bulk_indexer, index_cache
from streamloader.media.video.bulk_indexer import BulkIndexer
from streamloader.media.video.index import IndexSettings
from streamloader.media.video.index_blob import decode_index, encode_index
from streamloader.media.video.index_cache import VideoVersion, find_summaries, load_index
from streamloader.media.video.summary import SUMMARY


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Paths of 60 files with 7 or 9 frames."""
    folder = tmp_path_factory.mktemp("videos")
    clips = [make_clip(folder / f"clip{frames}.mp4", frames=frames) for frames in (7, 9)]
    for number in range(60):
        os.link(clips[number % 2], folder / f"{number:02}.mp4")
    return [str(folder / f"{number:02}.mp4") for number in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))


def make_indexer(**keywords):
    options = {"in_processes": False, "is_fatal": lambda error: not isinstance(error, StreamloaderError)} | keywords
    return BulkIndexer(IndexSettings(), **options)


def test_many_videos_are_parsed_in_child_processes_and_stored_here(videos, monkeypatch):
    monkeypatch.setattr(index_cache, "index_video", pytest.fail)
    records, versions, errors = make_indexer().run(videos)
    assert records["frames"].tolist() == [7, 9] * 30
    assert versions.tolist() == [[os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in videos]
    assert not errors
    monkeypatch.setattr(bulk_indexer, "ParserPool", pytest.fail)
    again = make_indexer(in_processes=True).run(videos)
    assert np.array_equal(again.records, records)


def test_a_few_videos_are_parsed_here(videos, monkeypatch):
    monkeypatch.setattr(bulk_indexer, "ParserPool", pytest.fail)
    records, _, _ = make_indexer().run(videos[:5])
    assert records["frames"].tolist() == [7, 9, 7, 9, 7]


def test_indexes_arrive_once_for_each_listed_video(videos):
    received = []
    for _ in range(2):  # parsed, and from the cache
        received.clear()
        make_indexer(sink=lambda *item: received.append(item)).run([*videos[:4], videos[0]])
        assert sorted(number for number, _, _ in received) == [0, 1, 2, 3, 4]
        for number, summary, data in received:
            assert (
                np.frombuffer(summary, SUMMARY)["frames"][0] == len(decode_index(data, None)) == [7, 9][number % 4 % 2]
            )


def test_files_that_cannot_be_used_are_collected(videos, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 50)
    listed = [*videos[:2], str(tmp_path / "junk.mp4"), str(tmp_path / "missing.mp4"), *videos[2:]]
    for in_processes in (True, False):
        records, _, errors = make_indexer(in_processes=in_processes).run(listed)
        assert {number: type(error).__name__ for number, error in errors.items()} == {
            2: "UnreadableStream",
            3: "StreamNotFound",
        }
        assert records["frames"].tolist() == [7, 9, 0, 0] + [7, 9] * 29


def crash_at(entry, settings):
    """Index a video in a child process; one name ends the process."""
    if os.path.basename(entry.video) == "33.mp4":
        signal.raise_signal(signal.SIGSEGV)  # in this thread, which goes no further
    return REAL(entry, settings)


REAL = bulk_indexer._index_for_parent


def test_a_file_that_ends_its_process_is_the_only_one_to_fail(videos, monkeypatch):
    monkeypatch.setattr(bulk_indexer, "_index_for_parent", crash_at)
    records, _, errors = make_indexer(in_processes=True).run(videos)
    assert list(errors) == [33]
    assert isinstance(errors[33], CorruptStream)
    assert "33.mp4 ends the process that parses it" in errors[33].message
    assert records["frames"].tolist() == [7, 9] * 16 + [7, 0] + [7, 9] * 13


def lie(entry, settings):
    """Answer as a child process that a file has taken over."""
    honest = REAL(entry, settings)
    blob = base64.b64decode(honest)
    body = bytearray(zlib.decompress(blob[4:]))
    body[37:41] = b"\xff\xff\xff\x7f"  # the number of frames
    lies = {
        "00": 5, "01": None, "02": "@@", "03": "", "04": "A" * 10_000, "05": [honest], "06": honest[:-4],
        "07": base64.b64encode(blob[:4] + zlib.compress(bytes(body))).decode(),
        "08": base64.b64encode(b"\xff\xff\xff\xff" + zlib.compress(bytes(1 << 20))).decode(),
    }  # fmt: skip
    if os.path.basename(entry.video)[:2] == "09":  # more frames than the file has bytes, in a few bytes
        index, many = decode_index(blob, None), np.arange(1 << 20)
        long = dataclasses.replace(index, pts=many, end=1 << 20, key_pts=many[:1], key_seek=many[:1])
        return base64.b64encode(encode_index(long)).decode()
    return lies.get(os.path.basename(entry.video)[:2], honest)


def test_answers_of_child_processes_are_checked(videos, monkeypatch):
    monkeypatch.setattr(bulk_indexer, "_index_for_parent", lie)
    records, _, errors = make_indexer(in_processes=True).run(videos[:12])
    assert sorted(errors) == list(range(10))
    assert all("gave an impossible answer" in error.message for error in errors.values())
    assert records["frames"].tolist()[10:] == [7, 9]
    entries = [VideoVersion(path, (os.stat(path).st_size, os.stat(path).st_mtime_ns)) for path in videos[:12]]
    assert find_summaries(entries, IndexSettings())[1].tolist() == [False] * 10 + [True] * 2


def test_work_that_is_stopped_keeps_what_is_done(videos, monkeypatch):
    """It is stopped after a part; a second run does the rest."""
    indexer, done = make_indexer(), []
    monkeypatch.setattr(bulk_indexer, "_STORE_INTERVAL_S", 0.0)
    monkeypatch.setattr(bulk_indexer, "_MAX_BATCH", 2)

    def stop(number, summary, data):
        done.append(number)
        if len(done) == 5:
            indexer.close()

    indexer._sink = stop
    with pytest.raises(ClosedError):
        indexer.run(videos)
    assert 5 <= len(done) < 60
    rest = []
    real = bulk_indexer.BulkIndexer._check
    monkeypatch.setattr(
        bulk_indexer.BulkIndexer,
        "_check",
        lambda self, n, entry, a: rest.append(entry.video) or real(self, n, entry, a),
    )
    records, _, _ = make_indexer().run(videos)
    assert records["frames"].tolist() == [7, 9] * 30
    assert len(rest) <= 60 - len(done)


def test_a_fatal_error_ends_the_work(videos, monkeypatch):
    def fail(video, **keywords):
        raise ZeroDivisionError

    monkeypatch.setattr(index_cache, "index_video", fail)
    with pytest.raises(ZeroDivisionError):
        make_indexer().run(videos[:3])


PROGRAM = """
import sys
from streamloader.common import count_display
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams
count_display._SHOWN_AFTER_S = count_display._MIN_REMAINING_S = count_display._REFRESH_INTERVAL_S = 0.0
print(len(describe_streams(VideoStreams(sys.argv[1] + "/[0-9]*.mp4", size=(24, 32)))))
"""


@pytest.mark.parametrize("on_terminal", fast_first([True, False]))
def test_progress_is_shown_on_a_terminal(videos, on_terminal):
    folder = os.path.dirname(videos[0])
    if not on_terminal:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, timeout=100, check=True
        )
        assert (done.stdout, done.stderr) == ("60\n", "")
        return
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder], stdout=subprocess.PIPE, stderr=end, env=environment
    )
    os.close(end)
    shown = b""
    try:
        while piece := os.read(terminal, 65536):
            shown += piece
    except OSError:  # the program has closed its end
        pass
    os.close(terminal)
    assert program.communicate(timeout=60)[0] == b"60\n"
    assert program.returncode == 0
    assert b"indexing videos" in shown
    assert b" of 60, " in shown
    assert b"left" in shown


def test_interrupting_a_program_keeps_what_is_done(videos, tmp_path):
    """The program is interrupted as by Ctrl-C when a part is done. Without a terminal, it shows no progress."""
    program = (
        "import sys, os, signal; from streamloader.media.video import bulk_indexer\n"
        "from streamloader.streams.video import VideoStreams\n"
        "from streamloader.loader.multistreamer import MultiStreamer\n"
        "from streamloader.common import count_display\n"
        "count_display._SHOWN_AFTER_S = count_display._MIN_REMAINING_S = count_display._REFRESH_INTERVAL_S = 0.0\n"
        "bulk_indexer._STORE_INTERVAL_S = 0.0; bulk_indexer._MAX_BATCH = 2; real = bulk_indexer.BulkIndexer._take\n"
        "taken = []\n"
        "def take(self, number, *rest):\n"
        "    real(self, number, *rest)\n"
        "    taken.append(number)\n"
        "    if len(taken) == 10: os.kill(os.getpid(), signal.SIGINT)\n"
        "bulk_indexer.BulkIndexer._take = take\n"
        "try: MultiStreamer(VideoStreams(sys.argv[1] + '/[0-9]*.mp4'), 1, 4, num_workers=1)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(videos[0])],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    entries = [VideoVersion(path, (os.stat(path).st_size, os.stat(path).st_mtime_ns)) for path in videos]
    assert find_summaries(entries, IndexSettings())[1].sum() >= 10


def test_blobs_are_exact(tmp_path):
    path = str(make_clip(tmp_path / "a.mp4"))
    index = load_index(path)
    for array in (index.pts, index.pts[:1], np.array([-(1 << 61), 0, 5, 1 << 61]), np.arange(300) ** 2 * 7919):
        changed = index.__class__(**{**index.__dict__, "pts": array, "end": int(array[-1]), "key_pts": array[:1]})
        changed = index.__class__(**{**changed.__dict__, "key_seek": array[:1] - 512})
        blob = encode_index(changed)
        decoded = decode_index(blob, None)
        assert np.array_equal(decoded.pts, array)
        assert np.array_equal(decoded.key_seek, array[:1] - 512)
    assert len(encode_index(index)) < 100
