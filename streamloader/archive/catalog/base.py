"""The contract of all catalogs, and the rows that they keep.

A catalog knows the videos of one archive, the chunks of each, where these are stored, and their frame indexes. Videos
are numbered in the order in which they became part of the archive and only ever appended, so frame numbers never
change: who has opened an archive sees what a :class:`Snapshot` of it says, whatever others add.

Ingest goes in steps of which each is whole or not done: ``begin`` a job, ``stage`` its chunks one by one, ``commit`` it
as a video. Nobody sees chunks of a job that is not committed. All methods can be called by several processes at once.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Final

__all__ = [
    "SCHEMA",
    "Catalog",
    "ChunkRow",
    "Header",
    "Job",
    "Located",
    "Place",
    "Snapshot",
    "StagedChunk",
    "VideoRow",
]

SCHEMA: Final = 1  # the version of what catalogs hold; a newer one is refused, an older one is migrated


@dataclass(frozen=True, slots=True)
class Place:
    """A store that holds chunks.

    Attributes:
        number: within the catalog, from 0.
        url: the address of the folder that chunks are in: without passwords, keys and signatures.
        weight: its share of new chunks, relative to that of the others; 0 takes no more.
    """

    number: int
    url: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of the archive as a whole.

    Attributes:
        archive: its identity, 32 hexadecimal digits.
        schema: the version of the catalog's form.
        created: seconds since 1970.
        places: where chunks are.
    """

    archive: str
    schema: int
    created: float
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far an archive went at one moment: videos and frames with lower numbers belong to it for ever.

    Attributes:
        videos: how many.
        frames: of all videos.
        chunks: of all videos.
        nanoseconds: the videos one after the other take this long.
    """

    videos: int = 0
    frames: int = 0
    chunks: int = 0
    nanoseconds: int = 0


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video of an archive.

    Attributes:
        content: names what it holds and how it was cut: 64 hexadecimal digits; the same for the same content.
        name: by which it is looked up; no two have the same.
        frames: how many.
        chunks: how many.
        height: of frames as they are shown, after the turn.
        width: the same.
        turn: how frames have to be turned: transpose, flip rows, flip columns (see media/video/orientation.py).
        time_base: seconds of one tick of pts.
        first_pts: of the first frame, in ticks.
        end: tick at which the last frame ends.
        mode: ``"copy"``, ``"encode"`` or ``"lossless"``.
        chunk_frames: how many frames chunks were meant to have.
        source: where it came from: an address without secrets.
        bytes_in: of the source.
        bytes_out: of all chunks.
        metadata: what the user said of it: plain JSON values.
        origin: what it takes to recognise its source, and to make its chunks again: plain JSON values, see
            :mod:`streamloader.archive.ingest.naming`.
        added: seconds since 1970.
        number: its place in the archive, from 0; set when it is committed, as are the next two.
        start: number of its first frame in the archive.
        nanoseconds: when its first frame is shown if all videos are played one after the other.
    """

    content: str
    name: str
    frames: int
    chunks: int
    height: int
    width: int
    turn: tuple[bool, bool, bool]
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
    nanoseconds: int = -1

    @property
    def duration(self) -> int:
        """How long it takes, in whole nanoseconds, rounded up."""
        return -(-(self.end - self.first_pts) * 1_000_000_000 * self.time_base.numerator // self.time_base.denominator)


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One chunk of a video.

    Attributes:
        content: the video it belongs to.
        number: within the video, from 0.
        first: number of its first frame, within the video.
        frames: how many.
        first_pts: of its first frame, in ticks of the video.
        place: number of the store that it is in.
        path: within that store.
        bytes: of the file.
        digest: ``"sha256:"`` and the SHA-256 of the file, 64 hexadecimal digits.
        coding: key of how its packets are coded.
        note: why it was encoded anew although the mode is ``"copy"``; else nothing.
    """

    content: str
    number: int
    first: int
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
    """A chunk with all that is kept of it.

    Attributes:
        row: see :class:`ChunkRow`.
        index: its frame index, encoded.
        coding: how its packets are coded, as plain JSON values.
    """

    row: ChunkRow
    index: bytes
    coding: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Located:
    """Chunks of one video that hold frames that were asked for.

    Attributes:
        video: the video.
        chunks: those chunks of it, ascending, without a gap.
    """

    video: VideoRow
    chunks: tuple[ChunkRow, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """The work of adding one video, while it is under way.

    Attributes:
        content: what the video is going to have.
        name: the same.
        source: the same.
        begun: seconds since 1970.
        beat: when somebody last worked on it, in seconds since 1970.
    """

    content: str
    name: str
    source: str
    begun: float
    beat: float


class Catalog(abc.ABC):
    """Videos and chunks of one archive. One instance serves many tasks of one event loop; it connects when first used.

    A kind of catalog can be made from its url alone, in any process. Waits for locks and servers end by `timeout`.

    Args:
        url: where it is.
        timeout: seconds that one call may take.

    Attributes:
        url: the same, without secrets.

    Raises:
        CatalogError: of all methods: the catalog cannot be reached, read or written.
        CatalogTimeout: of all methods: it took longer than `timeout`.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    url: str
    timeout: float

    # --- as a whole --------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def create(self, places: Sequence[Place]) -> Header:
        """Make an empty catalog; whole or not at all.

        Raises:
            CatalogExists: there is one.
        """

    @abc.abstractmethod
    async def header(self) -> Header:
        """Return what is known of the archive; an older form of catalog is brought to this one's.

        Raises:
            CatalogNotFound: there is no catalog.
            CatalogTooNew: it was made by a newer version of this package; nothing is changed.
        """

    @abc.abstractmethod
    async def set_places(self, places: Sequence[Place]) -> Header:
        """Replace url and weight of places by number, and add new ones.

        Raises:
            ConfigError: a place that is there is missing, or numbers leave a gap.
        """

    @abc.abstractmethod
    async def snapshot(self) -> Snapshot:
        """Return how far the archive goes now."""

    @abc.abstractmethod
    async def problems(self) -> list[str]:
        """Check the catalog itself, and say what is wrong in one line each: gaps, overlaps, rows that lack others."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Disconnect. Safe to call twice."""

    # --- reading -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def locate(self, start: int, stop: int) -> list[Located]:
        """Return the chunks that hold the frames [start, stop) of the archive, in order, without a gap.

        Raises:
            CatalogError: the catalog does not have all of them.
        """

    @abc.abstractmethod
    async def chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        """Return the chunks numbered [start, stop) of one video, those that are there."""

    @abc.abstractmethod
    async def indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded frame indexes of chunks of one video, in the order of `numbers`.

        Raises:
            CatalogError: one is missing.
        """

    @abc.abstractmethod
    async def codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return codings by their keys, in that order.

        Raises:
            CatalogError: one is missing.
        """

    @abc.abstractmethod
    async def video(self, number: int) -> VideoRow | None:
        """Return a video by its number; None if there is none."""

    @abc.abstractmethod
    async def named(self, name: str) -> VideoRow | None:
        """Return a video by its name; None if there is none."""

    @abc.abstractmethod
    async def video_at(self, nanoseconds: int) -> VideoRow | None:
        """Return the last video that begins at or before this time, all played one after the other; None if empty."""

    @abc.abstractmethod
    async def containing(self, content: str) -> VideoRow | None:
        """Return the video that has this content; None if there is none."""

    @abc.abstractmethod
    def find(
        self, where: Mapping[str, Any] | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[VideoRow, None]:
        """Yield videos numbered [start, stop) whose metadata match, in order.

        :mod:`streamloader.archive.catalog.query` says what `where` may hold.

        Raises:
            ConfigError: `where` makes no sense.
        """

    @abc.abstractmethod
    async def count(self, where: Mapping[str, Any] | None = None, *, stop: int | None = None) -> Snapshot:
        """Return how many videos numbered below `stop` match, with the sums of their frames, chunks and times."""

    @abc.abstractmethod
    def paths(self, place: int) -> AsyncGenerator[tuple[str, str], None]:
        """Yield (content, path) of all chunks in one place, those of unfinished jobs too."""

    # --- adding ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def begin(self, job: Job) -> VideoRow | None:
        """Begin a job, or go on with the one of the same content: its name, source and beat become those of `job`.

        Returns:
            The video that has this content already, and then no job is begun; else None.

        Raises:
            NameTaken: a video with other content has this name.
        """

    @abc.abstractmethod
    async def beat(self, content: str, now: float) -> None:
        """Say that somebody works on a job. Nothing happens if there is none."""

    @abc.abstractmethod
    async def stage(self, chunks: Sequence[StagedChunk]) -> None:
        """Keep chunks of a job: durably, all or none. A chunk with the same number is replaced.

        Raises:
            CatalogError: the job was not begun, or was committed or abandoned meanwhile.
        """

    @abc.abstractmethod
    async def staged(self, content: str) -> list[ChunkRow]:
        """Return the chunks of a job that are kept, by number."""

    @abc.abstractmethod
    async def commit(self, video: VideoRow) -> VideoRow:
        """Make the chunks of a job a video, at the end of the archive: durably, at once, and for all to see.

        `number`, `start` and `nanoseconds` of `video` are set here. If the same content was committed meanwhile, that
        video is returned, and nothing is changed.

        Raises:
            CatalogError: its chunks do not add up to the video, or there is no such job.
            NameTaken: a video with other content has this name; the job stays as it is.
        """

    @abc.abstractmethod
    async def abandon(self, content: str) -> None:
        """Forget a job and its chunks; a video that was committed stays. Nothing happens if there is none."""

    @abc.abstractmethod
    async def jobs(self) -> list[Job]:
        """Return the jobs that were begun and neither committed nor abandoned, by content."""
