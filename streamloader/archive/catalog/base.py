"""The interface of all catalogs, and the rows that they store.

A catalog stores the videos of one archive, the chunks of each video, the locations of the chunks, and their frame
indexes. Videos are numbered in the order in which they were committed, and are only ever appended. Frame numbers
therefore never change: a reader that holds a :class:`Snapshot` sees the same frames, even while other processes add
videos.

A video is added by an ingest job, in steps that are atomic: ``begin_job``, ``stage_chunks`` for each group of chunks,
``commit_video``. Readers never see the chunks of a job before its commit. Several processes can call all methods at the
same time.
"""

from __future__ import annotations

import abc
import posixpath
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Final

from streamloader.common.printable import make_printable, make_storable
from streamloader.errors import VideoNotFound

__all__ = [
    "SCHEMA_VERSION",
    "Catalog",
    "CatalogHeader",
    "ChunkRow",
    "IngestJob",
    "LocatedChunks",
    "Place",
    "Snapshot",
    "StagedChunk",
    "VideoRow",
    "find_video_by_name",
]

_MAX_PIXEL_ASPECT: Final = 1 << 16
_MAX_LISTED_NAMES: Final = 10
SCHEMA_VERSION: Final = 1  # a catalog with a newer version is refused, one with an older version is migrated


@dataclass(frozen=True, slots=True)
class Place:
    """A storage location that holds chunks.

    Attributes:
        number: Number of the place in the catalog, from 0.
        url: Address of the folder that contains the chunks, without passwords, keys and signatures.
        weight: Share of new chunks, relative to the other places. A place with weight 0 gets no new chunks.
    """

    number: int
    url: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class CatalogHeader:
    """Properties of the archive as a whole.

    Attributes:
        archive_id: Identity of the archive, 32 hexadecimal digits.
        schema_version: Version of the catalog's schema.
        created: Creation time in seconds since 1970.
        places: Storage locations of the chunks, by number.
    """

    archive_id: str
    schema_version: int
    created: float
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Extent of an archive at one moment. Videos and frames with lower numbers never change.

    Attributes:
        videos: Number of videos.
        frames: Number of frames of all videos.
        chunks: Number of chunks of all videos.
        duration_ns: Total duration of all videos in nanoseconds.
    """

    videos: int = 0
    frames: int = 0
    chunks: int = 0
    duration_ns: int = 0


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video of an archive.

    Attributes:
        content: Identifier of the source bytes and the cut settings, 64 hexadecimal digits. Equal content has an equal
            identifier.
        name: Unique name of the video.
        frames: Number of frames.
        chunks: Number of chunks.
        height: Height of the displayed frames in pixels, after `orientation` is applied.
        width: Width of the displayed frames in pixels, after `orientation` is applied.
        orientation: Flags (transpose, flip rows, flip columns) that bring decoded frames upright, see
            :mod:`streamloader.media.video.orientation`.
        time_base: Duration of one pts tick in seconds.
        first_pts: Pts of the first frame, in ticks.
        end: End of the last frame, in ticks.
        mode: Cut mode: ``"copy"``, ``"encode"`` or ``"lossless"``.
        chunk_frames: Requested number of frames per chunk.
        source: Address of the source, without secrets.
        bytes_in: Size of the source in bytes.
        bytes_out: Size of all chunks in bytes.
        metadata: Metadata from the user, plain JSON values.
        origin: Data to recognize the source and to rebuild its chunks, plain JSON values; see
            :mod:`streamloader.archive.ingest.naming`.
        added: Commit time in seconds since 1970.
        number: Number of the video in the archive, from 0. The catalog sets it, `start` and `start_ns` on commit.
        start: Number of the first frame in the archive.
        start_ns: Sum of the durations of all earlier videos in nanoseconds.
    """

    content: str
    name: str
    frames: int
    chunks: int
    height: int
    width: int
    orientation: tuple[bool, bool, bool]
    time_base: Fraction
    first_pts: int
    end: int
    mode: str
    chunk_frames: int
    source: str
    bytes_in: int
    bytes_out: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    added: float = 0.0
    number: int = -1
    start: int = -1
    start_ns: int = -1

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel of the displayed frames divided by its height. 1 if the source does not say it."""
        facts = self.origin.get("video")
        try:
            aspect = Fraction(facts["pixel_aspect"]) if isinstance(facts, Mapping) else Fraction(1)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            aspect = Fraction(1)
        return aspect if 0 < aspect < _MAX_PIXEL_ASPECT else Fraction(1)

    @property
    def duration_ns(self) -> int:
        """Duration in whole nanoseconds, rounded up."""
        return -(-(self.end - self.first_pts) * 1_000_000_000 * self.time_base.numerator // self.time_base.denominator)


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One chunk of a video.

    Attributes:
        content: Content identifier of the video.
        number: Number of the chunk in the video, from 0.
        first_frame: Number of its first frame in the video.
        frames: Number of frames.
        first_pts: Pts of its first frame, in ticks of the video.
        place: Number of the place that stores the chunk.
        path: Path of the chunk's file in the place.
        bytes: Size of the file in bytes.
        digest: ``"sha256:"`` and the SHA-256 of the file, 64 hexadecimal digits.
        coding: Key of the codec parameters.
        note: Reason why the chunk was re-encoded although the mode is ``"copy"``. Empty if it was copied.
    """

    content: str
    number: int
    first_frame: int
    frames: int
    first_pts: int
    place: int
    path: str
    bytes: int
    digest: str
    coding: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """A chunk with everything that the catalog stores for it.

    Attributes:
        row: Row of the chunk.
        index: Encoded frame index.
        coding: Codec parameters, plain JSON values.
    """

    row: ChunkRow
    index: bytes
    coding: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LocatedChunks:
    """The chunks of one video that hold the requested frames.

    Attributes:
        video: Row of the video.
        chunks: Rows of the chunks, in ascending order without gaps.
    """

    video: VideoRow
    chunks: tuple[ChunkRow, ...]


@dataclass(frozen=True, slots=True)
class IngestJob:
    """An unfinished attempt to add one video.

    Attributes:
        content: Content identifier of the future video.
        name: Name of the future video.
        source: Address of the source, without secrets.
        started: Start time in seconds since 1970.
        heartbeat: Time of the last sign of life from the job's process, in seconds since 1970.
    """

    content: str
    name: str
    source: str
    started: float
    heartbeat: float


class Catalog(abc.ABC):
    """Videos and chunks of one archive.

    One instance serves many tasks of one event loop. It connects on first use. The url alone is enough to open the same
    catalog in another process. Waits for locks and servers end after `timeout`.

    Args:
        url: Address of the catalog.
        timeout: Time limit of one call in seconds.

    Attributes:
        url: Address of the catalog, without secrets.
        timeout: Time limit of one call in seconds.

    Raises:
        CatalogError: If the catalog cannot be reached, read or written. All methods raise it.
        CatalogTimeout: If a call took longer than `timeout`. All methods raise it.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    url: str
    timeout: float

    # --- the whole catalog -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def create(self, places: Sequence[Place]) -> CatalogHeader:
        """Create an empty catalog, atomically.

        Raises:
            CatalogExists: If a catalog exists already.
        """

    @abc.abstractmethod
    async def get_header(self) -> CatalogHeader:
        """Return the header. A catalog with an older schema is migrated first.

        Raises:
            CatalogNotFound: If there is no catalog.
            CatalogTooNew: If a newer version of this package made the catalog. Nothing is changed then.
        """

    @abc.abstractmethod
    async def set_places(self, places: Sequence[Place]) -> CatalogHeader:
        """Replace the url and weight of existing places by number, and add new places.

        Raises:
            ConfigError: If an existing place is missing, or the numbers have a gap.
        """

    @abc.abstractmethod
    async def get_snapshot(self) -> Snapshot:
        """Return the current extent of the archive."""

    @abc.abstractmethod
    async def find_problems(self) -> list[str]:
        """Check the catalog itself. Return one line for each gap, overlap, missing row or other inconsistency."""

    async def checkpoint(self) -> None:  # noqa: B027 - most catalogs are no files that users copy
        """Complete the catalog's own file, so that a copy of this file has all changes made so far.

        Changes that another reader or writer holds back are left to the next call, and to :meth:`aclose`.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Disconnect. Safe to call twice."""

    # --- reading -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def locate_frames(self, start: int, stop: int) -> list[LocatedChunks]:
        """Return the chunks that hold the frames [start, stop) of the archive, in order and without gaps.

        Raises:
            CatalogError: If the catalog does not have all of these frames.
        """

    @abc.abstractmethod
    async def get_chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        """Return the existing chunks numbered [start, stop) of one video."""

    @abc.abstractmethod
    async def get_indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded frame indexes of chunks of one video, in the order of `numbers`.

        Raises:
            CatalogError: If an index is missing.
        """

    @abc.abstractmethod
    async def get_codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return codec parameters by their keys, in the order of `keys`.

        Raises:
            CatalogError: If a key is missing.
        """

    @abc.abstractmethod
    async def get_video(self, number: int) -> VideoRow | None:
        """Return the video with this number, or None."""

    @abc.abstractmethod
    async def get_video_by_name(self, name: str) -> VideoRow | None:
        """Return the video with this name, or None."""

    @abc.abstractmethod
    async def find_names(self, text: str, *, stop: int | None = None) -> list[str]:
        """Return the names of the videos numbered below `stop` that contain `text`, in order of the videos.

        Only names are read. There is no index for this: it takes a second for millions of videos.
        """

    @abc.abstractmethod
    async def get_video_at(self, time_ns: int) -> VideoRow | None:
        """Return the last video whose `start_ns` is at most `time_ns`, or None."""

    @abc.abstractmethod
    async def get_video_by_content(self, content: str) -> VideoRow | None:
        """Return the video with this content, or None."""

    @abc.abstractmethod
    def find_videos(
        self, where: Mapping[str, Any] | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[VideoRow, None]:
        """Yield the videos numbered [start, stop) whose metadata match, in order.

        :mod:`streamloader.archive.catalog.query` documents `where`.

        Raises:
            ConfigError: If `where` is not a valid query.
        """

    @abc.abstractmethod
    async def count_videos(self, where: Mapping[str, Any] | None = None, *, stop: int | None = None) -> Snapshot:
        """Count the matching videos numbered below `stop`, and sum up their frames, chunks and durations."""

    @abc.abstractmethod
    def list_chunk_paths(self, place: int) -> AsyncGenerator[tuple[str, str], None]:
        """Yield (content, path) of all chunks in one place, including chunks of unfinished jobs."""

    # --- adding ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def begin_job(self, job: IngestJob) -> VideoRow | None:
        """Start a job, or resume the job with the same content.

        A resumed job takes the name, source and heartbeat of `job`.

        Returns:
            The video with this content if the archive has it already; no job is started then. Otherwise None.

        Raises:
            NameConflict: If a video with other content has this name.
        """

    @abc.abstractmethod
    async def record_heartbeat(self, content: str, now: float) -> None:
        """Record that a process still works on a job. Does nothing if there is no such job."""

    @abc.abstractmethod
    async def stage_chunks(self, chunks: Sequence[StagedChunk]) -> None:
        """Store chunks of a job: durably, all or none. A chunk with the same number is replaced.

        Raises:
            CatalogError: If the job was never started, or was committed or abandoned by another process.
        """

    @abc.abstractmethod
    async def get_staged_chunks(self, content: str) -> list[ChunkRow]:
        """Return the stored chunks of a job, by number."""

    @abc.abstractmethod
    async def commit_video(self, video: VideoRow) -> VideoRow:
        """Turn a job into a video at the end of the archive: durably and atomically.

        The catalog sets `number`, `start` and `start_ns` of `video`. If another process has committed the same content
        first, that video is returned and nothing is changed.

        Raises:
            CatalogError: If the chunks do not cover the video exactly, or there is no such job.
            NameConflict: If a video with other content has this name. The job remains.
        """

    @abc.abstractmethod
    async def abandon_job(self, content: str) -> None:
        """Delete a job and its chunks. A committed video remains. Does nothing if there is no such job."""

    @abc.abstractmethod
    async def list_jobs(self) -> list[IngestJob]:
        """Return the jobs that were neither committed nor abandoned, by content."""


async def find_video_by_name(catalog: Catalog, name: str, *, stop: int | None = None) -> VideoRow:
    """Return the video with a name, or the only one whose name ends so: ``0001`` finds ``camA/0001.mp4``.

    Args:
        catalog: Catalog of the archive.
        name: Name, or the name under which an ingest stores it: see `make_storable`. Or the end of the name, from the
            name of a folder or file on, with or without the suffix.
        stop: Number after the last video to consider. Defaults to the end.

    Raises:
        VideoNotFound: If there is no such video, or if several names end so. The message lists them.
    """
    stored = str(make_storable(name))
    row = await catalog.get_video_by_name(stored)
    if row is None and name != stored and name.encode(errors="replace").decode() == name:
        row = await catalog.get_video_by_name(name)  # older versions stored control characters as they are
    hint = ""
    if row is None:
        names = [each for each in await catalog.find_names(stored, stop=stop) if _ends_with(each, stored)]
        row = await catalog.get_video_by_name(names[0]) if len(names) == 1 else None
        more = f" and {len(names) - _MAX_LISTED_NAMES:,} more" if len(names) > _MAX_LISTED_NAMES else ""
        if names:
            shown = ", ".join(repr(make_printable(each)) for each in names[:_MAX_LISTED_NAMES])
            hint = f", but {len(names):,} whose names end so: {shown}{more}"
    if row is None or (stop is not None and row.number >= stop):
        if row is not None:
            hint = ". It was added after the archive was opened: call refresh()"
        raise VideoNotFound(f"the archive {catalog.url} has no video {name!r}{hint}", stream=name, address=catalog.url)
    return row


def _ends_with(name: str, end: str) -> bool:
    """Return whether a name ends with these folders and file. The suffix of the file may be missing."""
    return end != "" and any(full.endswith(f"/{end}") for full in (name, posixpath.splitext(name)[0]))
