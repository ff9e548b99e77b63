"""A video that is to be added, while it is worked on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamloader.archive.catalog.base import ChunkRow, VideoRow
from streamloader.archive.ingest.progress import Active
from streamloader.archive.ingest.report import Failed, Recognised
from streamloader.archive.ingest.unit import Unit

__all__ = ["Task", "Work", "active_of", "bytes_done", "size_of", "turn_of"]


@dataclass(frozen=True, slots=True)
class Task:
    """One video that a user wants to have added.

    Attributes:
        name: it gets.
        source: address without secrets.
        metadata: what the user says of it.
        size: of the source in bytes; None where that is not known.
    """

    name: str
    source: str
    metadata: Mapping[str, Any]
    size: int | None


@dataclass(slots=True, eq=False)
class Work:
    """A task, the unit that does it, and how far it is."""

    task: Task
    unit: Unit
    order: int
    stage: str = "waiting"  # waiting, working, parked (its content is worked on already), made, settled
    doing: str = ""  # what the unit is doing, for people to see
    heard: float = 0.0
    content: str = ""
    found: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] | None = None
    chunks: int = 0
    staged: dict[int, ChunkRow] = field(default_factory=dict)
    done: int = 0  # bytes of the source that were fetched or read
    frames: int = 0  # in staged chunks
    made: int = 0  # of these, by this run
    deaths: int = 0
    outcome: VideoRow | Recognised | Failed | None = None


def size_of(work: Work) -> int | None:
    """Return the bytes of a source, as far as they are known."""
    return int(work.found["size"]) if work.found else work.task.size


def bytes_done(work: Work) -> float:
    """Return how much of a source is done, in its bytes: reading it is taken for a tenth of the work."""
    size = size_of(work) or 0
    if work.stage in ("settled", "made", "parked"):
        return size
    if work.facts is None:
        return 0.1 * min(work.done, size)
    return size * (0.1 + 0.9 * work.frames / max(1, int(work.facts["frames"])))


def active_of(work: Work) -> Active:
    """Return how far it is, to be shown."""
    size = size_of(work)
    return Active(work.task.name, work.doing, bytes_done(work) / size if size else None)


def turn_of(told: Sequence[bool]) -> tuple[bool, bool, bool]:
    """Return the turn that a plan told as a list."""
    transpose, rows, columns = map(bool, told)
    return transpose, rows, columns
