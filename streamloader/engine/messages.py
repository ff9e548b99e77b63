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
                            INFO        what an env returned for grant `seq` of `run`, before the DONE of it, as
                                        the workload encodes it (workload.py: Workload.decode_infos)

End of file means that the other side is gone. The kernel orders the bytes of the ring before the message that
refers to them, so nothing else needs a barrier or a lock.

A worker trusts its parent. What a worker sends is limited in size here, and checked by :mod:`worker_inbox`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple

from streamloader.common.worker_messages import InvalidMessage, parse_json

__all__ = [
    "MAX_INFO_BYTES",
    "REPLAY",
    "WORKER_PAYLOAD_BYTES",
    "Message",
    "MessageDecoder",
    "MessageKind",
    "encode_message",
]

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
        b: Second number: epoch of GRANT; windows of ENDED; run of INFO; else 0.
        c: Third number: batch of GRANT; full of ENDED; else 0.
        lane: Row of the lane, or the slot of a GRANT. -1 where the kind has neither.
        payload: Decoded JSON, or None where the kind has none. The bytes that follow an INFO.
    """

    kind: int
    version: int
    a: int
    b: int
    c: int
    lane: int
    payload: Any = None


def encode_message(
    kind: MessageKind,
    version: int = 0,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    lane: int = -1,
    payload: dict[str, Any] | bytes | None = None,
) -> bytes:
    """Encode one message. The arguments are the attributes of :class:`Message`."""
    if payload is None:
        body = b""
    else:
        body = payload if isinstance(payload, bytes) else json.dumps(payload, default=str).encode()
    return _HEADER.pack(kind, version, a, b, c, lane, len(body)) + body


REPLAY: Final = "replay"  # `once` of the LOG about streams that cannot seek
MAX_INFO_BYTES: Final = 4 << 20
_MAX_ERROR_BYTES: Final = 4 << 20  # to_wire() makes less
_MAX_LOG_BYTES: Final = 256 << 10
WORKER_PAYLOAD_BYTES: Final[Mapping[int, int]] = {
    MessageKind.DONE: 0,
    MessageKind.ENDED: 0,
    MessageKind.OVERRUN: 0,
    MessageKind.ERROR: _MAX_ERROR_BYTES,
    MessageKind.LOG: _MAX_LOG_BYTES,
    MessageKind.SKIPPED: _MAX_ERROR_BYTES,
    MessageKind.INFO: MAX_INFO_BYTES,
}


class MessageDecoder:
    """Decodes messages from the bytes that arrive on a socket.

    Args:
        max_payload_bytes: Maximum size of the payload of each kind of message; other kinds are refused. None for no
            limit and any kind.
    """

    def __init__(self, max_payload_bytes: Mapping[int, int] | None = None) -> None:
        self._limits = max_payload_bytes
        self._incomplete = bytearray()
        self._needed = 0  # bytes that complete the message at the start of _incomplete

    def decode(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes.

        Raises:
            InvalidMessage: If a message is malformed, too large, or of a kind that is not expected.
        """
        if self._incomplete:
            self._incomplete += data
            if len(self._incomplete) < self._needed:
                return
            data = bytes(self._incomplete)
        offset, length, header_size, limits = 0, 0, _HEADER.size, self._limits
        while len(data) - offset >= header_size:
            kind, version, a, b, c, lane, length = _HEADER.unpack_from(data, offset)
            if limits is not None and length > limits.get(kind, -1):
                if kind not in limits:
                    raise InvalidMessage(f"its kind is {kind}")
                raise InvalidMessage(f"its payload of {length} bytes is larger than {limits[kind]} bytes")
            if len(data) - offset - header_size < length:
                break
            offset += header_size
            payload: Any = data[offset : offset + length] if length else None
            if length and kind != MessageKind.INFO:
                payload = parse_json(payload)
            offset += length
            yield Message(kind, version, a, b, c, lane, payload)
        self._incomplete[:] = data[offset:]
        self._needed = header_size if len(self._incomplete) < header_size else header_size + length
