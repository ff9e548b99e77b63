"""The supervisor's handle of a worker."""

from __future__ import annotations

import threading

import pytest

from streamloader.engine import worker_process
from streamloader.engine.worker_process import WorkerHandle


def test_sending_has_one_deadline_however_slowly_a_worker_reads(monkeypatch):
    monkeypatch.setattr(worker_process, "_SEND_TIMEOUT_S", 0.3)
    handle = WorkerHandle(0, [0])
    stop = threading.Event()

    def read_slowly():
        while not stop.wait(0.01):
            handle._child_sock.recv(1 << 16)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    try:
        with pytest.raises(TimeoutError):
            handle.send(bytes(64 << 20))
    finally:
        stop.set()
        reader.join()
        handle.close_socket()
