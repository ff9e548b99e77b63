"""Log records of workers: whose name they have, how many there can be, and what is in them."""

from __future__ import annotations

import logging

import pytest

from streamloader.common import worker_messages
from streamloader.common.worker_messages import InvalidMessage, WorkerLog


def record(message, **fields):
    return {"name": "streamloader", "level": logging.WARNING, "message": message} | fields


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(worker_messages, "_used_names", {"streamloader"})
    monkeypatch.setattr(worker_messages.time, "monotonic", lambda: now[0])
    return now


def test_a_burst_of_records_is_cut_off_and_counted(clock, caplog):
    log = WorkerLog("worker 3")
    for number in range(5000):
        log.write(record(f"number {number}"))
    assert [entry.getMessage() for entry in caplog.records] == [f"worker 3: number {number}" for number in range(1000)]
    caplog.clear()
    clock[0] += 0.5
    log.write(record("later"))
    assert caplog.messages == [
        "worker 3: 4000 log records were dropped, because there were too many",
        "worker 3: later",
    ]


def test_a_record_with_many_lines_is_shortened(clock, caplog):
    WorkerLog("worker 3").write(record("\n".join("abc" * 50)))
    assert len(caplog.messages) == 100
    assert caplog.messages[-1] == "worker 3: (51 more lines)"


def test_a_record_cannot_look_like_another(clock, caplog):
    WorkerLog("worker 3").write(record("a\r\nERROR root: %s %(x)s\x1b[2J\u2028\u202eworker 1: b\0"))
    assert caplog.messages == [
        "worker 3: a",
        "worker 3: ERROR root: %s %(x)s\\x1b[2J",
        "worker 3: \\u202eworker 1: b\\x00",
    ]
    for entry in caplog.records:
        assert (entry.name, entry.pathname.rpartition("/")[2], entry.exc_info) == (
            "streamloader", "worker_messages.py", None,
        )  # fmt: skip


def test_workers_create_a_limited_number_of_loggers(clock, caplog):
    log = WorkerLog("worker 3")
    for number in range(200):
        log.write(record("x", name=f"streamloader.of_a_worker_{number}"))
    assert caplog.records[0].name == "streamloader.of_a_worker_0"
    assert caplog.records[-1].name == "streamloader"
    assert sum(name.startswith("streamloader.of_a_worker_") for name in logging.root.manager.loggerDict) <= 100


@pytest.mark.parametrize(
    "fields",
    [{"name": name} for name in ("", "root", "sshd", "streamloaderx", "streamloader.", "streamloader.a.", None, 3)]
    + [{"level": level} for level in (0, 5, 31, 60, 10**9, -10, True, "50", 30.0, None)]
    + [{"message": message} for message in (None, 5, [], "x" * 20_000, "\udcff")],
)
def test_malformed_records_are_refused(fields, caplog):
    with pytest.raises(InvalidMessage):
        WorkerLog("worker 3").write(record("x") | fields)
    assert caplog.records == []
