"""Reports of adding videos to an archive, and of checking an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streamloader.archive.catalog.base import VideoRow
from streamloader.common.printable import make_printable
from streamloader.errors import StreamloaderError
from streamloader.redaction import redact
from streamloader.streams.unreadable import SkippedVideo

__all__ = ["CheckReport", "ExistingVideo", "FailedVideo", "IngestReport", "Note", "Problem"]


_MAX_TEXT_CHARACTERS: Final = 4000


@dataclass(frozen=True, slots=True)
class ExistingVideo:
    """A video that the archive has already.

    Attributes:
        source: Address of the requested source, without secrets.
        video: Row of the existing video.
    """

    source: str
    video: VideoRow


@dataclass(frozen=True, slots=True)
class FailedVideo:
    """A video that could not be added.

    Attributes:
        source: Address of the source, without secrets.
        error: Error that stopped the work.
        resumable: Whether finished chunks are kept for the next attempt.
    """

    source: str
    error: StreamloaderError
    resumable: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A chunk that was re-encoded although its packets should have been copied.

    Attributes:
        video: Name of the video.
        chunk: Number of the chunk in the video.
        first_frame: Number of its first frame in the video.
        frames: Number of frames.
        note: Reason for the encoding.
    """

    video: str
    chunk: int
    first_frame: int
    frames: int
    note: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Result of adding videos.

    Attributes:
        added: New videos in the requested order, which is also the order of their numbers.
        existing: Videos that the archive had already: equal content, cut with equal settings.
        failed: Videos that could not be added.
        skipped: Videos that cannot be used, and files and directories that may not be read, with
            ``unreadable="skip"``.
        notes: Chunks that were re-encoded although they should have been copied.
        bytes_in: Size of the sources of the added videos in bytes.
        bytes_out: Size of their chunks in bytes.
        frames: Number of frames of the added videos.
        frames_made: Number of frames in the chunks that this run made. Other chunks come from an earlier run.
        seconds: Duration of the run in seconds.
    """

    added: tuple[VideoRow, ...] = ()
    existing: tuple[ExistingVideo, ...] = ()
    failed: tuple[FailedVideo, ...] = ()
    skipped: tuple[SkippedVideo, ...] = ()
    notes: tuple[Note, ...] = field(default=(), repr=False)
    bytes_in: int = 0
    bytes_out: int = 0
    frames: int = 0
    frames_made: int = 0
    seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """Number of frames made per second."""
        return self.frames_made / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "added": [_video_to_json(video) for video in self.added],
            "existing": [{"source": existing.source, "name": existing.video.name} for existing in self.existing],
            "failed": [
                {
                    "source": failed.source,
                    "error": type(failed.error).__name__,
                    "message": failed.error.message,
                    "resumable": failed.resumable,
                }
                for failed in self.failed
            ],
            "skipped": [
                {"source": skipped.address, "error": skipped.error, "message": skipped.message}
                for skipped in self.skipped
            ],
            "notes": [
                {
                    "video": note.video,
                    "chunk": note.chunk,
                    "first": note.first_frame,
                    "frames": note.frames,
                    "note": note.note,
                }
                for note in self.notes
            ],
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "frames": self.frames,
            "frames_made": self.frames_made,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """An inconsistency of an archive.

    Attributes:
        kind: ``"catalog"`` (the catalog contradicts itself), ``"unreachable"`` (a place cannot be scanned),
            ``"missing"``, ``"size"`` or ``"digest"`` (a chunk is missing or was changed), ``"orphan"`` (a file that
            belongs to no video), ``"unfinished"`` (a partial file of a killed writer) or ``"job"`` (a job without a
            running process).
        text: Message for users, which names the file, place or video. Names in it are made printable.
        repaired: Whether the problem was repaired.
        video: Name of the video that lacks frames because of the problem. None if no video does.
        address: Address of the file or place. None if the problem concerns neither.
    """

    kind: str
    text: str
    repaired: bool = False
    video: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Clean the text: names come from a catalog or from the listing of a store."""
        object.__setattr__(self, "text", make_printable(redact(self.text), _MAX_TEXT_CHARACTERS))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of checking an archive.

    Attributes:
        problems: Problems that were found, repaired ones included.
        videos: Number of checked videos.
        chunks: Number of checked chunks.
        bytes: Size of the checked chunks in bytes.
        seconds: Duration of the check in seconds.
    """

    problems: tuple[Problem, ...]
    videos: int
    chunks: int
    bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no problem remains."""
        return all(problem.repaired for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        names = ("kind", "text", "repaired", "video", "address")
        return {
            "ok": self.ok,
            "problems": [{name: getattr(problem, name) for name in names} for problem in self.problems],
            "videos": self.videos,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }


def _video_to_json(video: VideoRow) -> Mapping[str, Any]:
    return {
        "name": video.name,
        "number": video.number,
        "start": video.start,
        "frames": video.frames,
        "chunks": video.chunks,
        "source": video.source,
        "bytes_in": video.bytes_in,
        "bytes_out": video.bytes_out,
        "content": video.content,
    }
