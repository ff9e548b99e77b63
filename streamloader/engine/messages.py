"""What the supervisor and a worker say to each other: small records of fixed size on one socketpair.

    supervisor -> worker    GRANT     fill batch `index` of `play` (epoch `epoch`) into slot `slot`; grants are numbered
                                      from 0 in the order in which they are sent
                            TRUNCATE  grants from number `seq` on are void; `version` is new
                            START     to a worker that takes the place of one that died: the next grant is number `seq`,
                                      all before it are filled; as of `version`
                            PLACE     where lanes stand, at which steps streams end early, and which lanes are suspected
                                      of having killed the worker; JSON follows (engine/workload.py: Orders)
    worker -> supervisor    DONE      all its lanes have filled the first `seq` grants; as of `version`
                            ENDED     `lane` has played all its streams of `play`: `windows` batches hold steps of it,
                                      `full` of these wholly
                            OVERRUN   `lane` has steps of `play` left although the planned end is reached
                            ERROR     `lane` failed at grant `seq` (-1: the worker as a whole); JSON follows
                            LOG       a log record; JSON follows
                            SKIPPED   `lane` left a stream at an error (``on_error="skip"``); JSON follows
                            INFO      what an env said of its rows of grant `seq`, before the DONE of it; JSON follows

End of file means that the other side is gone. The kernel orders the bytes of the ring before the record that
speaks of them, so nothing else needs a barrier or a lock.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = ["Kind", "Record", "Splitter", "pack"]

_FORMAT = struct.Struct("<IIqqqiI")


class Kind(IntEnum):
    """What a record says; the module describes each."""

    GRANT = 1
    TRUNCATE = 2
    DONE = 3
    ENDED = 4
    OVERRUN = 5
    ERROR = 6
    LOG = 7
    INFO = 8
    START = 9
    PLACE = 10
    SKIPPED = 11


class Record(NamedTuple):
    """One record.

    The three numbers mean: GRANT (play, epoch, index), slot in `lane`; TRUNCATE, START and DONE (seq, 0, 0);
    ENDED (play, windows, full); OVERRUN (play, 0, 0); ERROR and INFO (seq, 0, 0); PLACE, LOG and SKIPPED (0, 0, 0).
    """

    kind: int
    version: int
    a: int
    b: int
    c: int
    lane: int
    payload: dict[str, Any] | None = None


def pack(
    kind: Kind,
    version: int = 0,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    lane: int = -1,
    payload: dict[str, Any] | None = None,
) -> bytes:
    """Encode one record."""
    body = b"" if payload is None else json.dumps(payload, default=str).encode()
    return _FORMAT.pack(kind, version, a, b, c, lane, len(body)) + body


class Splitter:
    """Cuts the bytes of a socket into records."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """Yield the records that `data` completes."""
        if self._rest:
            data = self._rest + data
        at, size = 0, _FORMAT.size
        while len(data) - at >= size:
            kind, version, a, b, c, lane, length = _FORMAT.unpack_from(data, at)
            if len(data) - at - size < length:
                break
            at += size
            payload = json.loads(data[at : at + length]) if length else None
            at += length
            yield Record(kind, version, a, b, c, lane, payload)
        self._rest = data[at:]
