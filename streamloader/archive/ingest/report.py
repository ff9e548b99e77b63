"""Reports of adding videos and of checking an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamloader.archive.catalog.base import VideoRow
from streamloader.errors import StreamloaderError

__all__ = ["CheckReport", "Failed", "IngestReport", "Note", "Problem", "Recognised"]


@dataclass(frozen=True, slots=True)
class Recognised:
    """A video that was in the archive already.

    Attributes:
        source: that was to be added, without secrets.
        video: what the archive has.
    """

    source: str
    video: VideoRow


@dataclass(frozen=True, slots=True)
class Failed:
    """A video that could not be added.

    Attributes:
        source: of it, without secrets.
        error: why.
        resumable: whether what was done of it is kept for the next attempt.
    """

    source: str
    error: StreamloaderError
    resumable: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A chunk that was encoded anew although it should have been copied.

    Attributes:
        video: name of the video.
        chunk: number within the video.
        first: number of its first frame within the video.
        frames: how many.
        note: why.
    """

    video: str
    chunk: int
    first: int
    frames: int
    note: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What adding videos came to.

    Attributes:
        added: the new videos, in the order in which they were named, which is that of their numbers.
        recognised: those that were there already: same content, cut the same way.
        failed: those that could not be added.
        notes: chunks that were encoded anew although they should have been copied.
        bytes_in: of the sources of the added videos.
        bytes_out: of their chunks.
        frames: of the added videos.
        made: frames of chunks that this run made; others were left from an earlier one.
        seconds: that it took.
    """

    added: tuple[VideoRow, ...] = ()
    recognised: tuple[Recognised, ...] = ()
    failed: tuple[Failed, ...] = ()
    notes: tuple[Note, ...] = field(default=(), repr=False)
    bytes_in: int = 0
    bytes_out: int = 0
    frames: int = 0
    made: int = 0
    seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        """Frames that were made in a second."""
        return self.made / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "added": [_video(video) for video in self.added],
            "recognised": [{"source": one.source, "name": one.video.name} for one in self.recognised],
            "failed": [
                {
                    "source": one.source,
                    "error": type(one.error).__name__,
                    "message": one.error.message,
                    "resumable": one.resumable,
                }
                for one in self.failed
            ],
            "notes": [
                {
                    "video": note.video,
                    "chunk": note.chunk,
                    "first": note.first,
                    "frames": note.frames,
                    "note": note.note,
                }
                for note in self.notes
            ],
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "frames": self.frames,
            "frames_made": self.made,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: ``"catalog"``: the catalog contradicts itself; ``"unreachable"``: a place cannot be looked at;
            ``"missing"``, ``"size"``, ``"digest"``: a chunk is not there, or not what it was; ``"orphan"``: a file that
            no video has; ``"unfinished"``: what a killed writer left; ``"job"``: a video that nobody goes on with.
        text: a line for people, which names it.
        mended: whether it is mended now.
        video: name of the video that lacks frames because of it; None if none does.
        address: of the file, or of the place.
    """

    kind: str
    text: str
    mended: bool = False
    video: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check came to.

    Attributes:
        problems: that were found.
        videos: that were looked at.
        chunks: the same.
        bytes: of these chunks.
        seconds: that it took.
    """

    problems: tuple[Problem, ...]
    videos: int
    chunks: int
    bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, now."""
        return all(problem.mended for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        names = ("kind", "text", "mended", "video", "address")
        return {
            "ok": self.ok,
            "problems": [{name: getattr(problem, name) for name in names} for problem in self.problems],
            "videos": self.videos,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }


def _video(video: VideoRow) -> Mapping[str, Any]:
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
