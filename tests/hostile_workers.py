"""Workers that were taken over: what they send to their parent, and what they do to its memory.

Imports no torch: the workers of the tests import this module.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamloader.engine.messages import MessageKind, encode_message
from streamloader.engine.ring import Ring
from streamloader.errors import StreamFailed, to_wire

HEADER = struct.Struct("<IIqqqiI")
WIRE = to_wire(StreamFailed("it failed", stream="s0", offset=3))
LOG = {"name": "streamloader", "level": 30, "message": "text"}
SKIP = {"epoch": 0, "position": 0, "step": 1, "stream": 0, "key": "s0", "error": WIRE}
KIND = MessageKind
HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def raw(kind: int, body: bytes, size: int | None = None) -> bytes:
    """A message with any body, or with another size in its header than it has."""
    return HEADER.pack(kind, 0, 0, 0, 0, -1, len(body) if size is None else size) + body


def log(**fields: Any) -> bytes:
    return encode_message(KIND.LOG, payload=LOG | fields)


def failure(payload: Any, version: int = 1, seq: int = 0, lane: int = 0) -> bytes:
    return encode_message(KIND.ERROR, version, seq, lane=lane, payload=payload)


# What worker 0 of lane 0 sends at the start of its first run (version 1) of planned 6 batches, of which 3 are granted.
ATTACKS: dict[str, bytes] = {
    "noise": b"\xff" * 100,
    "zeros": bytes(100),
    "an unknown kind": raw(99, b""),
    **{f"a message of the parent: {kind.name}": encode_message(kind) for kind in (
        KIND.GRANT, KIND.TRUNCATE, KIND.RESUME, KIND.DIRECTIVES)},
    "more batches than were granted": encode_message(KIND.DONE, 1, 4),
    "very many batches": encode_message(KIND.DONE, 1, (1 << 63) - 1),
    "a negative number of batches": encode_message(KIND.DONE, 1, -5),
    "fewer batches than before": encode_message(KIND.DONE, 1, 0),
    "batches of a later version": encode_message(KIND.DONE, 7, 1),
    "batches of an older version": encode_message(KIND.DONE, 0, 5),
    "batches with JSON": encode_message(KIND.DONE, 1, 1, payload={}),
    "the end of another lane": encode_message(KIND.ENDED, a=0, b=1, c=1, lane=1),
    "the end of a lane that does not exist": encode_message(KIND.ENDED, a=0, b=1, c=1, lane=1 << 20),
    "the end of no lane": encode_message(KIND.ENDED, a=0, b=1, c=1),
    "the end of a run that was never started": encode_message(KIND.ENDED, a=9, b=1, c=1, lane=0),
    "the end of a negative run": encode_message(KIND.ENDED, a=-1, b=1, c=1, lane=0),
    "the end after more batches than were granted": encode_message(KIND.ENDED, a=0, b=1 << 40, c=1, lane=0),
    "more full batches than batches": encode_message(KIND.ENDED, a=0, b=1, c=2, lane=0),
    "a negative number of full batches": encode_message(KIND.ENDED, a=0, b=1, c=-1, lane=0),
    "the same end twice": 2 * encode_message(KIND.ENDED, a=0, b=1, c=1, lane=0),
    "steps after an end that was not reached": encode_message(KIND.OVERRUN, a=0, lane=0),
    "steps of another lane": encode_message(KIND.OVERRUN, a=0, lane=1),
    "the failure of another lane": failure(WIRE, lane=1),
    "the failure of a grant that was not given": failure(WIRE, seq=3),
    "a failure of grant -2": failure(WIRE, seq=-2),
    "a failure of a later version": failure(WIRE, version=9),
    "a failure without a text": failure({}),
    "a failure that is a list": raw(KIND.ERROR, b"[]"),
    "a failure whose text is a number": failure(WIRE | {"message": 5}),
    "a failure with another field": failure(WIRE | {"args": []}),
    "a failure whose details are a list": failure(WIRE | {"details": []}),
    "a failure with objects as details": failure(WIRE | {"details": {"a": {}}}),
    "a failure whose details have strange names": failure(WIRE | {"details": {"a b\x1b[31m": 1}}),
    "a failure whose offset is a text": failure(WIRE | {"offset": "3"}),
    "a failure whose offset has 100 digits": failure(WIRE | {"offset": 10**100}),
    "a failure with an endless text": failure(WIRE | {"message": "x" * 100_000}),
    "a failure that is larger than its limit": raw(KIND.ERROR, b"", 1 << 31),
    "a record of the root logger": log(name="root"),
    "a record of another package": log(name="sshd"),
    "a record of a logger with a line end": log(name="streamloader.a\nb"),
    "a record of a logger that is a number": log(name=5),
    "a record of a strange level": log(level=31),
    "a record of a very high level": log(level=10**6),
    "a record whose level is a text": log(level="50"),
    "a record whose level is true": log(level=True),
    "a record whose text is a list": log(message=["%s"]),
    "a record with arguments": log(args=["x"]),
    "a record with a path": log(pathname="/etc/passwd"),
    "a record once, for a reason of its own": log(once="x"),
    "a record with half a surrogate": log(message="\ud800"),
    "a record with an endless text": log(message="x" * 100_000),
    "a record without fields": encode_message(KIND.LOG, payload={}),
    "a record without JSON": encode_message(KIND.LOG),
    "a skipped stream, although errors are raised": encode_message(KIND.SKIPPED, lane=0, payload=SKIP),
    "infos, although there is no env": encode_message(KIND.INFO, a=0, lane=0, payload=b"{}"),
    "no JSON": raw(KIND.LOG, b"{"),
    "JSON that is not UTF-8": raw(KIND.LOG, b'{"name": "\xff"}'),
    "JSON in UTF-16": raw(KIND.LOG, '{"name": 1}'.encode("utf-16")),
    "JSON that is nested deeply": raw(KIND.LOG, b"[" * 200_000),
    "JSON that is nested a little too deeply": raw(KIND.LOG, b'{"a":' * 100 + b"1" + b"}" * 100),
    "JSON with a number of 5000 digits": raw(KIND.LOG, b"[" + b"9" * 5000 + b"]"),
    "JSON that is null": raw(KIND.LOG, b"null"),
}  # fmt: skip


def parent_socket() -> socket.socket:
    """In a worker process: a copy of its end of the socket to its parent."""
    sock = socket.socket(fileno=os.dup(int(sys.argv[2])))
    sock.setblocking(True)
    return sock


def wait_to_be_killed() -> None:
    threading.Event().wait()


class Once:
    """Calls `action` in a worker at a step of a stream: each time, or only once for all workers.

    Args:
        stream: Number of the stream.
        step: Step of the stream.
        action: Function to call.
        marker: File that is made at the first time. None to call `action` each time.
    """

    def __init__(self, stream: int, step: int, action: Callable[[], None], marker: Path | None) -> None:
        self.stream, self.step, self.action, self.marker = stream, step, action, marker

    def __call__(self, stream: int, step: int) -> None:
        if (stream, step) != (self.stream, self.step) or len(sys.argv) < 6:
            return
        if self.marker is not None:
            if self.marker.exists():
                return
            self.marker.touch()
        self.action()


class Sequence:
    """Several of them."""

    def __init__(self, *actions: Once) -> None:
        self.actions = actions

    def __call__(self, stream: int, step: int) -> None:
        for action in self.actions:
            action(stream, step)


class Send:
    """Sends these bytes to the parent, and waits to be killed."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self) -> None:
        with parent_socket() as sock:
            sock.sendall(self.data)
        wait_to_be_killed()


class SendAtStart:
    """Is read from the job by a worker, which then sends these bytes to the parent and waits to be killed."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self):
        return _send_at_start, (self.data,)

    def __call__(self, stream: int, step: int) -> None:
        """Do nothing at a step."""


def _send_at_start(data: bytes) -> SendAtStart:
    Send(data)()
    raise AssertionError


def send_endless_records() -> None:
    """Send log records without end."""
    record = log(message="again")
    with parent_socket() as sock:
        while True:
            sock.sendall(record * 100)


def damage_memory() -> dict[str, int]:
    """In a worker process: try to change the size, the seals and the contents of ring and job. Return the errors."""
    import fcntl

    ring_fd = int(sys.argv[3])
    # The worker has closed the descriptor of the job, but not its mapping.
    found = {}
    attempts: dict[str, Callable[[], Any]] = {
        "shrink": lambda: os.ftruncate(ring_fd, 0),
        "grow": lambda: os.ftruncate(ring_fd, 1 << 30),
        "write at the end": lambda: os.pwrite(ring_fd, b"x", 1 << 30),
        "seal": lambda: fcntl.fcntl(ring_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        "truncate a new descriptor": lambda: os.close(os.open(f"/proc/self/fd/{ring_fd}", os.O_RDWR | os.O_TRUNC)),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = 0
        except OSError as error:
            found[name] = error.errno or -1
    return found


def punch_hole(fd: int, size: int) -> None:
    """Free all pages of anonymous memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(ctypes.c_int(fd), HOLE, ctypes.c_long(0), ctypes.c_long(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


EXPECTED_DAMAGE = dict.fromkeys(
    ("shrink", "grow", "write at the end", "seal", "truncate a new descriptor"), errno.EPERM
)


def find_ring() -> Ring:
    """Return the ring of this worker."""
    gc.unfreeze()  # what the worker held when it started is out of the collector's sight
    (ring,) = [item for item in gc.get_objects() if isinstance(item, Ring)]
    return ring
