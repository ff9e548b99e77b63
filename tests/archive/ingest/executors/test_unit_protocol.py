"""An ingest worker that was taken over is killed, and its unit is counted like one whose worker died."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import sys
from pathlib import Path

import pytest
from archive.ingest.archives import archive, clip, stems
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import fast_first, only_fast

from streamloader.archive.catalog.chunk_paths import build_chunk_path
from streamloader.archive.ingest import add_videos
from streamloader.archive.ingest.executors import unit_protocol
from streamloader.archive.ingest.executors.messages import JsonMessageDecoder
from streamloader.archive.ingest.executors.processes import ProcessExecutor
from streamloader.archive.ingest.executors.unit_protocol import UnitProtocol
from streamloader.archive.ingest.placement import PlacementTarget
from streamloader.archive.ingest.unit import WorkUnit
from streamloader.child_processes import Surroundings
from streamloader.common.worker_messages import InvalidMessage
from streamloader.errors import StreamFailed, WorkerDied, to_wire
from streamloader.media.chunks.format import Coding
from streamloader.media.chunks.settings import CutSettings

PROGRAM = str(Path(__file__).with_name("hostile_ingest_program.py"))
CONTENT, DIGEST = "c" * 64, "sha256:" + "d" * 64
SOURCE = {"pixel_aspect": [16, 11], "stream": 1, "video_streams": 2, "cropping": [0, 2, 4, 6], "clock_jumps": 1}
CODING = Coding("h264", b"\0\1", 64, 48, "yuv420p", "avc1")
FOUND = {"kind": "found", "digest": DIGEST, "size": 1000, "version": None}
FACTS = {
    "frames": 40, "height": 48, "width": 64, "turn": [False] * 3, "time_base": [1, 25], "first_pts": 0, "end": 40,
    "source": SOURCE,
}  # fmt: skip
PLANNED = {"kind": "planned", "facts": FACTS, "chunks": 4}
KEPT = {"kind": "kept", "numbers": [1]}
ROW = {
    "content": CONTENT, "number": 0, "first_frame": 0, "frames": 10, "first_pts": 0, "place": 0,
    "path": build_chunk_path(CONTENT, 0, DIGEST, "mp4"), "bytes": 500, "digest": DIGEST, "coding": CODING.key,
    "note": "",
}  # fmt: skip
CHUNK = {"kind": "chunk", "row": ROW, "index": base64.b64encode(b"index").decode(), "coding": CODING.to_json()}
TICK = {"kind": "tick", "stage": "cutting", "done": 5}
DONE = {"kind": "done"}
FAILED = {"kind": "failed", "error": to_wire(StreamFailed("bad")), "worthless": False}
ANSWER = {"go": True, "content": CONTENT, "staged": [{"number": 1}]}
LOG = {"kind": "log", "name": "streamloader", "level": 30, "message": "text"}


def unit(number=0):
    targets = (PlacementTarget(0, "/place", 1.0),)
    return WorkUnit(number, "/a.mp4", None, {}, CutSettings(chunk_frames=10), targets, 1)


def protocol(*messages, answer=ANSWER):
    made = UnitProtocol(unit())
    for message in messages:
        made.check(message)
        if message["kind"] == "found":
            made.record_answer(answer)
    return made


SEQUENCE = [FOUND, TICK, PLANNED, TICK, KEPT, CHUNK, TICK]
INVALID = [
    ([], message) for message in (
        None, 5, [], "done", {}, {"kind": None}, {"kind": ["done"]}, {"kind": "died", "why": "x", "details": {}},
        {"kind": "log"}, {"kind": "\x1b[31m"}, {"kind": "done", "more": 1}, PLANNED, KEPT, CHUNK, DONE,
        FOUND | {"digest": "md5:" + "d" * 32}, FOUND | {"digest": DIGEST + "\n"}, FOUND | {"size": -1},
        FOUND | {"size": "5"}, FOUND | {"size": 1 << 60}, FOUND | {"version": 5}, FOUND | {"version": "\ud800"},
        {"kind": "found"}, TICK | {"stage": "\x1b[31m"}, TICK | {"stage": "x" * 1000}, TICK | {"done": -1},
        TICK | {"done": 1.5}, FAILED | {"worthless": 0}, FAILED | {"error": {}}, FAILED | {"error": None},
    )
] + [
    ([FOUND], message) for message in (
        FOUND, CHUNK, DONE, KEPT, PLANNED | {"chunks": 0}, PLANNED | {"chunks": 41}, PLANNED | {"chunks": True},
        PLANNED | {"facts": []}, *(PLANNED | {"facts": FACTS | change} for change in (
            {"frames": 0}, {"frames": 1 << 60}, {"height": -1}, {"turn": [0, 0, 0]}, {"turn": [False]},
            {"source": {}}, {"source": SOURCE | {"stream": -1}}, {"source": SOURCE | {"pixel_aspect": [1, 0]}},
            {"source": SOURCE | {"cropping": [0, 0, 0]}}, {"source": SOURCE | {"clock_jumps": True}},
            {"time_base": [1, 0]}, {"time_base": [1]}, {"end": 0}, {"end": 1 << 61}, {"first_pts": "0"},
        )),
    )
] + [
    ([FOUND, PLANNED], message) for message in (
        PLANNED, CHUNK, DONE, KEPT | {"numbers": [0]}, KEPT | {"numbers": [1, 1]}, KEPT | {"numbers": {}},
    )
] + [
    ([FOUND, PLANNED, KEPT], CHUNK | {"row": ROW | change}) for change in (
        {"content": "e" * 64}, {"number": 1, "path": build_chunk_path(CONTENT, 1, DIGEST, "mp4")},
        {"number": 4, "path": build_chunk_path(CONTENT, 4, DIGEST, "mp4")}, {"number": -1}, {"first_frame": 35},
        {"frames": 0}, {"frames": 1 << 62}, {"place": 1}, {"place": -1}, {"bytes": 0}, {"digest": "x"},
        {"path": "../../.ssh/authorized_keys"}, {"path": "/etc/passwd"}, {"path": ROW["path"] + "/../x.mp4"},
        {"path": ROW["path"][:-3] + "x/y"}, {"coding": "0" * 32}, {"coding": {}}, {"note": 5}, {"more": 1},
        {"first_pts": None},
    )
] + [
    ([FOUND, PLANNED, KEPT], CHUNK | change) for change in (
        {"index": "%%%"}, {"index": None}, {"index": "ä"}, {"coding": None}, {"coding": {}},
        {"coding": CODING.to_json() | {"options": [["hwaccel", "x"]]}}, {"coding": CODING.to_json() | {"width": "64"}},
        {"coding": CODING.to_json() | {"more": 1}}, {"row": None},
    )
] + [(SEQUENCE, CHUNK), (SEQUENCE, KEPT)]  # fmt: skip


def test_the_messages_of_a_unit_are_accepted():
    made = protocol(*SEQUENCE)
    assert made.check(DONE) == DONE
    assert protocol(FOUND, answer={"go": False}).check({"kind": "left"}) == {"kind": "left"}
    assert protocol(FOUND, PLANNED).check(FAILED) == FAILED


@pytest.mark.parametrize("number", range(len(INVALID)))
def test_anything_else_is_refused(number):
    before, message = INVALID[number]
    made = protocol(*before)
    with pytest.raises(InvalidMessage) as caught:
        made.check(message)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_refused_unit_can_only_leave():
    with pytest.raises(InvalidMessage):
        protocol(FOUND, answer={"go": False}).check(PLANNED)


def test_reports_of_progress_are_limited(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(unit_protocol.time, "monotonic", lambda: now[0])
    made = protocol()
    for _ in range(1000):
        now[0] += 1.0
        made.check(TICK)
    allowed = 2 * 1000 + 100 - 1000
    for _ in range(allowed):
        made.check(TICK)
    with pytest.raises(InvalidMessage, match="too many"):
        made.check(TICK)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 6), st.sampled_from([*SEQUENCE, DONE, FAILED]), st.data())
def test_no_message_raises_anything_else(length, message, data):
    made = protocol(*SEQUENCE[:length])
    changed = message | {data.draw(st.sampled_from(sorted(message))): data.draw(VALUES)}
    if message["kind"] == "chunk":
        row = message["row"] | {data.draw(st.sampled_from(sorted(ROW))): data.draw(VALUES)}
        changed = data.draw(st.sampled_from([changed, message | {"row": row}]))
    with contextlib.suppress(InvalidMessage):
        assert made.check(changed) == changed


# --- processes -------------------------------------------------------------------------------------------------------


def encode(*messages):
    bodies = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
    return b"".join(struct.pack("<cI", b"J", len(body)) + body for body in bodies)


ATTACKS = {
    "noise": b"\xff" * 100,
    "a pickle": struct.pack("<cI", b"P", 4) + b"cos\n",
    "a length of 4 GiB": struct.pack("<cI", b"J", 0xFFFFFFFF),
    "JSON that is nested deeply": encode(b"[" * 100_000),
    "JSON that is not UTF-8": encode(b'"\xff"'),
    "no JSON": encode(b"{"),
    "a list": encode([]),
    "its own death": encode({"kind": "died", "why": "x", "details": {}}),
    "a chunk before its source": encode(CHUNK),
    "a record of another logger": encode(LOG | {"name": "root"}),
    "a record of a strange level": encode(LOG | {"level": 99}),
    "a record with arguments": encode(LOG | {"args": []}),
    "two last messages": encode({"kind": "left"}, {"kind": "left"}),
}


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A function that has the next workers send bytes, and a list of the workers that were started."""
    started = []
    folder = tmp_path / "hostile"
    folder.mkdir()

    def prepare(data, workers=1000, flag=None):
        (folder / "attack").write_bytes(data)
        if flag:
            (folder / flag).touch()

        original = Surroundings.command

        def command(self, module, *arguments):
            started.append(module)
            if len(started) > workers:
                return original(self, module, *arguments)
            return [sys.executable, "-S", PROGRAM, str(folder), *map(str, arguments)]

        monkeypatch.setattr(Surroundings, "command", command)

    return prepare, started


def events_of(executor, number=0):
    events = []
    while not events or events[-1].kind not in ("died", "failed", "left"):
        events += executor.wait_for_events(60.0)
    assert {event.unit_number for event in events} == {number}
    return events


@pytest.mark.parametrize("attack", only_fast(ATTACKS, ["a chunk before its source", "two last messages"]))
def test_a_worker_that_sends_an_invalid_message_is_killed(attack, hostile, caplog):
    prepare, _ = hostile
    prepare(ATTACKS[attack])
    executor = ProcessExecutor(1)
    try:
        executor.start_unit(unit())
        if attack == "two last messages":  # the second one comes from a worker without a unit
            assert [event.kind for event in events_of(executor)] == ["left"]
            assert executor._idle == []
        else:
            (event,) = events_of(executor)
            assert event.kind == "died"
            assert event.message["why"].startswith("it sent an invalid message (")
            assert event.message["why"].isprintable()
            assert event.message["details"]["signal"] == 9
        assert executor.count_free_slots() == 1
    finally:
        executor.close()
    assert not [record for record in caplog.records if record.name != "streamloader"]


def test_the_end_in_the_middle_of_a_message_is_a_death(hostile):
    prepare, _ = hostile
    prepare(encode(TICK, FOUND)[:-5], flag="exit")
    executor = ProcessExecutor(1)
    try:
        executor.start_unit(unit())
        assert [event.kind for event in events_of(executor)] == ["tick", "died"]
    finally:
        executor.close()


def test_messages_without_end_are_a_death(hostile):
    prepare, _ = hostile
    prepare(encode(TICK) * 100, flag="endless")
    executor = ProcessExecutor(1)
    try:
        executor.start_unit(unit())
        *ticks, last = events_of(executor)
        assert {event.kind for event in ticks} <= {"tick"}
        assert last.kind == "died"
        assert "too many" in last.message["why"]
    finally:
        executor.close()


@pytest.mark.parametrize("workers", fast_first([1, 1000]))
def test_an_ingest_goes_on_with_another_worker(workers, hostile, tmp_path, caplog):
    prepare, started = hostile
    prepare(ATTACKS["a chunk before its source"], workers)
    video = clip(tmp_path / "a.mp4")
    with archive(tmp_path / "archive") as catalog:
        if workers == 1:
            report = add_videos(catalog, [str(video)], CutSettings(chunk_frames=10), jobs=1)
            assert [added.frames for added in report.added] == [40]
            assert stems(catalog) == ["a"]
            assert "it sent an invalid message (" in caplog.text
        else:
            with pytest.raises(WorkerDied, match=r"two of its workers died.*it sent an invalid message"):
                add_videos(catalog, [str(video)], CutSettings(chunk_frames=10), jobs=1)
            assert stems(catalog) == []
    assert len(started) == 2


def test_large_messages_are_refused_before_they_arrive():
    decoder = JsonMessageDecoder()
    with pytest.raises(InvalidMessage):
        list(decoder.feed(struct.pack("<cI", b"J", (4 << 20) + 1)))
    assert UnitProtocol(unit()).max_message_bytes < 16 << 20
