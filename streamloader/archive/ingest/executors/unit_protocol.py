"""Check what a worker sends about a work unit: each message on its own, and its place in the sequence.

A worker parses untrusted videos. So nothing that it sends is used unchecked: a unit that breaks the protocol is killed,
and counted like one whose worker died.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

from streamloader.archive.catalog.chunk_paths import build_chunk_path
from streamloader.archive.ingest.unit import WorkUnit
from streamloader.common.printable import make_printable
from streamloader.common.worker_messages import (
    MAX_INT64,
    Check,
    InvalidMessage,
    check_fields,
    check_flag,
    integer,
    list_of,
    one_of,
    optional,
    text,
)
from streamloader.errors import CorruptStream, check_wire
from streamloader.media.chunks.format import Coding

__all__ = ["UnitProtocol"]

_MAX_INTEGER: Final = MAX_INT64 >> 2
_MAX_FRAMES: Final = 1 << 40  # totals of an archive fit into 64 bits
_MAX_FILE_BYTES: Final = 1 << 50
_MAX_DURATION_NS: Final = 1 << 57
_MAX_NAME_CHARS: Final = 4096
_MAX_NOTE_CHARS: Final = 16_384
_MAX_CHUNKS: Final = 1 << 24
_MAX_FRAME_SIZE: Final = 1 << 20
_MAX_STREAMS: Final = 256
_NS_PER_S: Final = 1_000_000_000
_MAX_TICKS_PER_S: Final = 2.0  # a unit sends one a second
_MAX_SPARE_TICKS: Final = 100
_SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SUFFIX: Final = re.compile(r"[a-z0-9]{1,8}")
_MAX_MESSAGE_BYTES: Final = 4 << 20
_MAX_CHUNK_MESSAGE_BYTES: Final = 1 << 29
_MAX_INDEX_BYTES_PER_FRAME: Final = 512  # as text, and with packets that hold no frame
_MAX_CUT_FRAMES: Final = 1 << 12  # a copied chunk ends at a key frame, which may lie beyond its requested length

_SOURCE: Final[Mapping[str, Check]] = {
    "pixel_aspect": list_of(integer(1, _MAX_INTEGER), 2, 2),
    "stream": integer(0, _MAX_STREAMS),
    "video_streams": integer(1, _MAX_STREAMS),
    "cropping": list_of(integer(0, _MAX_FRAME_SIZE), 4, 4),
    "clock_jumps": integer(0, _MAX_FRAMES),
}
_FACTS: Final[Mapping[str, Check]] = {
    "frames": integer(1, _MAX_FRAMES),
    "height": integer(1, _MAX_FRAME_SIZE),
    "width": integer(1, _MAX_FRAME_SIZE),
    "turn": list_of(check_flag, 3, 3),
    "time_base": list_of(integer(1, _MAX_INTEGER), 2, 2),
    "first_pts": integer(-_MAX_INTEGER, _MAX_INTEGER),
    "end": integer(-_MAX_INTEGER, _MAX_INTEGER),
    "source": lambda value, name: check_fields(value, _SOURCE, f"{name}.source"),
}
_ROW: Final[Mapping[str, Check]] = {
    "content": text(64),
    "number": integer(0, _MAX_CHUNKS - 1),
    "first_frame": integer(0, _MAX_FRAMES),
    "frames": integer(1, _MAX_FRAMES),
    "first_pts": integer(-_MAX_INTEGER, _MAX_INTEGER),
    "place": integer(),
    "path": text(_MAX_NAME_CHARS),
    "bytes": integer(1, _MAX_FILE_BYTES),
    "digest": text(71, _SHA256),
    "coding": text(32, re.compile(r"[0-9a-f]{32}")),
    "note": text(_MAX_NOTE_CHARS),
}
_MESSAGES: Final[Mapping[str, Mapping[str, Check]]] = {
    "found": {
        "digest": text(71, _SHA256),
        "size": integer(0, _MAX_FILE_BYTES),
        "version": optional(text(_MAX_NAME_CHARS)),
    },
    "planned": {
        "facts": lambda value, name: check_fields(value, _FACTS, name),
        "chunks": integer(1, _MAX_CHUNKS),
    },
    "kept": {"numbers": list_of(integer(0, _MAX_CHUNKS - 1), _MAX_CHUNKS)},
    "chunk": {
        "row": lambda value, name: check_fields(value, _ROW, name),
        "index": lambda value, _: value,
        "coding": lambda value, _: value,
    },
    "tick": {"stage": text(100, re.compile(r"[A-Za-z0-9 _-]+")), "done": integer(0, _MAX_INTEGER)},
    "done": {},
    "left": {},
    "failed": {"error": lambda value, _: check_wire(value), "worthless": check_flag},
}
_STAGES_BEFORE: Final[Mapping[str, tuple[str, ...]]] = {  # the stages in which a message may come
    "found": ("started",),
    "planned": ("accepted",),
    "kept": ("planned",),
    "chunk": ("cutting",),
    "done": ("cutting",),
}


class UnitProtocol:
    """The messages of one unit.

    Args:
        unit: The unit.

    Attributes:
        max_message_bytes: Maximum size of the unit's messages, as JSON.
    """

    def __init__(self, unit: WorkUnit) -> None:
        self._unit = unit
        self._stage = "started"
        self._started_at = time.monotonic()
        self._ticks = 0
        self._content = ""
        self._staged: set[int] = set()  # chunks of an earlier attempt
        self._published: set[int] = set()  # chunks that are kept or were sent
        self._chunks = 0
        self._frames = 0
        frames = 8 * max(1, unit.settings.chunk_frames) + _MAX_CUT_FRAMES
        self.max_message_bytes = min(_MAX_CHUNK_MESSAGE_BYTES, _MAX_MESSAGE_BYTES + _MAX_INDEX_BYTES_PER_FRAME * frames)

    def record_answer(self, answer: Mapping[str, Any]) -> None:
        """Record the driver's answer to the request of the unit."""
        if self._stage == "asking":
            self._stage = "accepted" if answer["go"] else "refused"
            self._content = str(answer.get("content", ""))
            self._staged = {int(staged["number"]) for staged in answer.get("staged", ())}

    def check(self, message: Any) -> dict[str, Any]:
        """Check the next message of the unit, and return it.

        Raises:
            InvalidMessage: If it is one that no correct unit sends now.
        """
        kind = message.get("kind") if isinstance(message, dict) else None
        fields = _MESSAGES.get(kind) if isinstance(kind, str) else None
        if kind is None or fields is None:
            raise InvalidMessage("its kind is unknown")
        checked = check_fields(message, {"kind": one_of(kind), **fields}, f"a message of kind {kind}")
        if self._stage not in _STAGES_BEFORE.get(kind, (self._stage,)):
            raise InvalidMessage(f"a message of kind {kind} came when the unit was {self._stage}")
        if kind == "tick":
            self._ticks += 1
            if self._ticks > _MAX_SPARE_TICKS + _MAX_TICKS_PER_S * (time.monotonic() - self._started_at):
                raise InvalidMessage(f"it sent {self._ticks} reports of its progress, which are too many")
        elif kind == "found":
            self._stage = "asking"
        elif kind == "planned":
            self._accept_plan(checked)
        elif kind == "kept":
            self._accept_kept(checked["numbers"])
        elif kind == "chunk":
            self._accept_chunk(checked)
        return checked

    def _accept_plan(self, message: Mapping[str, Any]) -> None:
        facts = message["facts"]
        ticks, (numerator, denominator) = facts["end"] - facts["first_pts"], facts["time_base"]
        if ticks <= 0 or ticks * numerator * _NS_PER_S // denominator > _MAX_DURATION_NS:
            raise InvalidMessage(f"a video of {ticks} ticks of {numerator}/{denominator} s is not possible")
        if message["chunks"] > facts["frames"]:
            raise InvalidMessage(f"{message['chunks']} chunks of {facts['frames']} frames are not possible")
        self._chunks, self._frames, self._stage = message["chunks"], facts["frames"], "planned"

    def _accept_kept(self, numbers: list[int]) -> None:
        kept = set(numbers)
        if len(kept) != len(numbers) or not kept <= self._staged:
            raise InvalidMessage("it keeps chunks that are not staged")
        self._published, self._stage = kept, "cutting"

    def _accept_chunk(self, message: Mapping[str, Any]) -> None:
        row, number = message["row"], message["row"]["number"]
        if row["content"] != self._content:
            raise InvalidMessage("it sent a chunk of another video")
        if number >= self._chunks or number in self._published:
            raise InvalidMessage(f"it sent chunk {number} of {self._chunks} twice, or it is not planned")
        if row["first_frame"] + row["frames"] > self._frames:
            raise InvalidMessage(f"chunk {number} ends after the last of {self._frames} frames")
        if row["place"] not in {target.number for target in self._unit.targets}:
            raise InvalidMessage(f"chunk {number} is in place {row['place']}, which takes no chunks")
        suffix = row["path"].rpartition(".")[2]
        if not _SUFFIX.fullmatch(suffix) or row["path"] != build_chunk_path(
            self._content, number, row["digest"], suffix
        ):
            raise InvalidMessage(f"chunk {number} has a path that is not its own")
        text(self.max_message_bytes)(message["index"], "a frame index")
        if not isinstance(message["coding"], dict):
            raise InvalidMessage("a coding is not an object")
        try:
            b64decode(message["index"], validate=True)
            coding = Coding.from_json(message["coding"])
        except (ValueError, TypeError, OverflowError, CorruptStream) as error:
            raise InvalidMessage(f"chunk {number} has an index or coding that is malformed") from error
        if coding.key != row["coding"] or coding.to_json() != message["coding"]:
            raise InvalidMessage(f"chunk {number} has a coding with another key")
        row["note"] = make_printable(row["note"], _MAX_NOTE_CHARS)
        self._published.add(number)
