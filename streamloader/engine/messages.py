"""Messages between the supervisor and a worker, on one socketpair. Each has a fixed header; some are followed by JSON.

    supervisor -> worker    GRANT       fill batch `batch` of run `run` (epoch `epoch`) into slot `slot`; grants are
                                        numbered from 0 in the order in which they are sent
                            TRUNCATE    grants from number `seq` on are void; `version` is new
                            RESUME      to a worker that replaces a dead one: the next grant is number `seq`, and all
                                        grants before it are filled; `version` is the current one
                            DIRECTIVES  entry points, cutoffs and suspects; JSON follows (workload.py: LaneDirectives)
    worker -> supervisor    DONE        all lanes of the worker have filled the first `seq` grants, as of `version`
                            ENDED       `lane` has read all its streams of `run`: `windows` batches hold steps of it,
                                        and `full` of these are filled completely
                            OVERRUN     `lane` has steps of `run` left although the planned end is reached
                            ERROR       `lane` failed at grant `seq` (-1: the worker as a whole); JSON follows
                            LOG         a log record; JSON follows
                            SKIPPED     `lane` skipped a stream after an error (``on_error="skip"``); JSON follows
                            INFO        what an env returned for grant `seq`, before the DONE of it; JSON follows

End of file means that the other side is gone. The kernel orders the bytes of the ring before the message that
refers to them, so nothing else needs a barrier or a lock.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

__all__ = ["Message", "MessageDecoder", "MessageKind", "encode_message"]

_HEADER: Final = struct.Struct("<IIqqqiI")


class MessageKind(IntEnum):
    """Kind of a message. The module's docstring describes each."""

    GRANT = 1
    TRUNCATE = 2
    DONE = 3
    ENDED = 4
    OVERRUN = 5
    ERROR = 6
    LOG = 7
    INFO = 8
    RESUME = 9
    DIRECTIVES = 10
    SKIPPED = 11


class Message(NamedTuple):
    """One message.

    Attributes:
        kind: Kind of the message, a :class:`MessageKind`.
        version: Version of the grants' numbering. 0 where the kind has none.
        a: First number: run of GRANT, ENDED and OVERRUN; seq of TRUNCATE, RESUME, DONE, ERROR and INFO; else 0.
        b: Second number: epoch of GRANT; windows of ENDED; else 0.
        c: Third number: batch of GRANT; full of ENDED; else 0.
        lane: Row of the lane, or the slot of a GRANT. -1 where the kind has neither.
        payload: Decoded JSON, or None where the kind has none.
    """

    kind: int
    version: int
    a: int
    b: int
    c: int
    lane: int
    payload: dict[str, Any] | None = None


def encode_message(
    kind: MessageKind,
    version: int = 0,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    lane: int = -1,
    payload: dict[str, Any] | None = None,
) -> bytes:
    """Encode one message. The arguments are the attributes of :class:`Message`."""
    body = b"" if payload is None else json.dumps(payload, default=str).encode()
    return _HEADER.pack(kind, version, a, b, c, lane, len(body)) + body


class MessageDecoder:
    """Decodes messages from the bytes that arrive on a socket."""

    def __init__(self) -> None:
        self._incomplete = b""

    def decode(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes."""
        if self._incomplete:
            data = self._incomplete + data
        offset, header_size = 0, _HEADER.size
        while len(data) - offset >= header_size:
            kind, version, a, b, c, lane, length = _HEADER.unpack_from(data, offset)
            if len(data) - offset - header_size < length:
                break
            offset += header_size
            payload = json.loads(data[offset : offset + length]) if length else None
            offset += length
            yield Message(kind, version, a, b, c, lane, payload)
        self._incomplete = data[offset:]
