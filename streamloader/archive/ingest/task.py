"""Tasks of an ingest: one requested video each, with the state of its work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, VideoRow
from streamloader.archive.ingest.progress import ActiveVideo
from streamloader.archive.ingest.report import ExistingVideo, FailedVideo
from streamloader.archive.ingest.unit import WorkUnit

__all__ = [
    "IngestTask",
    "TaskState",
    "describe_activity",
    "estimate_bytes_done",
    "get_source_size",
    "parse_orientation",
]

_READING_FRACTION: Final = 0.1  # estimated fraction of the work that reading the source takes


@dataclass(frozen=True, slots=True)
class IngestTask:
    """One video that the user wants to add.

    Attributes:
        name: Name of the new video.
        source: Address of the source, without secrets.
        metadata: Metadata from the user.
        size: Size of the source in bytes. None if it is unknown.
        address_tag: Digest of what `source` hides, see
            :func:`streamloader.archive.ingest.naming.compute_address_tag`. Defaults to "".
    """

    name: str
    source: str
    metadata: Mapping[str, Any]
    size: int | None
    address_tag: str = ""


@dataclass(slots=True, eq=False)
class TaskState:
    """A task with its unit of work and its progress.

    Attributes:
        task: Requested video.
        unit: Work unit that processes it.
        order: Position of the task in the request.
        stage: ``"waiting"``, ``"running"``, ``"parked"`` (another task processes the same content), ``"ready"`` (all
            chunks are made) or ``"finished"``.
        activity: Current step of the unit, for users.
        last_message_at: Time of the unit's last message, by the monotonic clock.
        content: Content identifier. Empty until the source was read.
        source_info: Message of kind ``found``. Empty until the source was read.
        video_facts: Properties of the video from the message of kind ``planned``. None before it.
        chunks: Number of planned chunks.
        staged: Rows of the finished chunks, by number.
        source_bytes_done: Number of bytes of the source that were fetched or read.
        frames: Number of frames in the finished chunks.
        frames_made: Number of these frames that this run made.
        crashes: Number of worker crashes since the last finished chunk.
        is_leaving: Whether the unit has to stop, and has not sent its last message so far.
        outcome: Result of the task. None until it is finished.
    """

    task: IngestTask
    unit: WorkUnit
    order: int
    stage: str = "waiting"
    activity: str = ""
    last_message_at: float = 0.0
    content: str = ""
    source_info: Mapping[str, Any] = field(default_factory=dict)
    video_facts: Mapping[str, Any] | None = None
    chunks: int = 0
    staged: dict[int, ChunkRow] = field(default_factory=dict)
    source_bytes_done: int = 0
    frames: int = 0
    frames_made: int = 0
    crashes: int = 0
    is_leaving: bool = False
    outcome: VideoRow | ExistingVideo | FailedVideo | None = None


def get_source_size(state: TaskState) -> int | None:
    """Return the size of a source in bytes. Return None if it is unknown."""
    return int(state.source_info["size"]) if state.source_info else state.task.size


def estimate_bytes_done(state: TaskState) -> float:
    """Return the finished part of a task, in bytes of its source."""
    size = get_source_size(state) or 0
    if state.stage in ("finished", "ready", "parked"):
        return size
    if state.video_facts is None:
        return _READING_FRACTION * min(state.source_bytes_done, size)
    frames_fraction = state.frames / max(1, int(state.video_facts["frames"]))
    return size * (_READING_FRACTION + (1 - _READING_FRACTION) * frames_fraction)


def describe_activity(state: TaskState) -> ActiveVideo:
    """Return the progress of a task for the display."""
    size = get_source_size(state)
    return ActiveVideo(state.task.name, state.activity, estimate_bytes_done(state) / size if size else None)


def parse_orientation(flags: Sequence[bool]) -> tuple[bool, bool, bool]:
    """Return the orientation from a list of three flags in a message."""
    transpose, rows, columns = map(bool, flags)
    return transpose, rows, columns
