"""The settings of a binding of the catalog suite, and helpers for its tests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final, TypeVar

from streamloader.archive.catalog.base import Catalog, ChunkRow, IngestJob, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.chunk_paths import build_chunk_path
from streamloader.archive.catalog.registry import open_catalog

__all__ = ["PLACES", "CatalogBinding", "SampleVideo", "make_sample_video", "run"]

T = TypeVar("T")

DEADLINE_S: Final = 120.0
"""Time limit of one part of a test."""
PLACES: Final = (Place(0, "/somewhere/a"), Place(1, "ssh://me@vault:2222/b", 2.5), Place(2, "s3://bucket/ü c", 0.0))


class CatalogBinding:
    """Settings of a tested catalog. A subclass defines at least :meth:`location`.

    Attributes:
        schemes: Schemes of :func:`streamloader.archive.catalog.registry.catalog_schemes` that this binding tests.
        secrets: Passwords in the options. No repr or error may show them.
        writers: Number of instances that commit at the same time.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    secrets: Sequence[str] = ()
    writers: int = 6

    def location(self) -> tuple[str, Mapping[str, Any]]:
        """Return the address of a new catalog that only this test uses and that does not exist yet, and its options.

        Every call in one test returns the same location.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define location(self), which returns its address")

    def make_catalog(self, **options: Any) -> Catalog:
        """Return a new instance for that location, with `options` on top of its own."""
        url, own = self.location()
        return open_catalog(url, **{**own, **options})

    # --- helpers for the tests ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def catalog(self, **options: Any) -> AsyncIterator[Catalog]:
        """Open an instance, and close it after use."""
        catalog = self.make_catalog(**options)
        try:
            yield catalog
        finally:
            await catalog.aclose()

    def use(self, function: Callable[[Catalog], Coroutine[Any, Any, T]], *, create: bool = True) -> T:
        """Call a coroutine function with an open catalog, in a new event loop, and check the catalog afterwards."""

        async def with_catalog() -> T:
            async with self.catalog() as catalog:
                if create:
                    await catalog.create(PLACES)
                result = await function(catalog)
                if create:
                    assert await catalog.find_problems() == []
                return result

        return run(with_catalog)


class SampleVideo:
    """A synthetic video with its job and its chunks.

    Attributes:
        video: Row to commit, without number, start and start_ns.
        chunks: Chunks to stage.
        job: Job to begin.
        content: Content identifier of the video.
    """

    def __init__(self, video: VideoRow, chunks: list[StagedChunk]) -> None:
        self.video = video
        self.chunks = chunks
        self.job = IngestJob(video.content, video.name, video.source, 1_700_000_000.25, 1_700_000_001.5)
        self.content = video.content

    @property
    def rows(self) -> list[ChunkRow]:
        """The rows of the chunks, as the catalog returns them."""
        return [chunk.row for chunk in self.chunks]

    async def add(self, catalog: Catalog) -> VideoRow:
        """Add the video as ingest does."""
        assert await catalog.begin_job(self.job) is None
        await catalog.stage_chunks(self.chunks)
        return await catalog.commit_video(self.video)


def make_sample_video(
    seed: int, sizes: Sequence[int] = (5, 3, 4), *, name: str | None = None, **values: Any
) -> SampleVideo:
    """Build a video whose chunks have these numbers of frames. It depends only on the arguments."""
    content = hashlib.sha256(f"video {seed}".encode()).hexdigest()
    ticks = 1001
    first_pts = -7 * seed
    chunks = []
    first = 0
    for number, frames in enumerate(sizes):
        digest = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        coding = {"codec": "h264", "extradata": "AAEC", "width": 64 + seed % 3, "options": [["strict", "1"]]}
        path = build_chunk_path(content, number, digest, "mp4" if number % 2 == 0 else "mkv")
        row = ChunkRow(
            content, number, first, frames, first_pts + first * ticks, (seed + number) % len(PLACES),
            path, 1_000 + number, f"sha256:{digest}",
            f"{seed % 3:032x}", "re-encoded: no key frame" if number == 1 else "",
        )  # fmt: skip
        chunks.append(StagedChunk(row, f"index {seed} {number} ".encode() * (1 + number), coding))
        first += frames
    video = VideoRow(
        content=content, name=f"video {seed}.mp4" if name is None else name, frames=first, chunks=len(sizes),
        height=48, width=64, orientation=(bool(seed & 1), bool(seed & 2), bool(seed & 4)),
        time_base=Fraction(1, 30_000), first_pts=first_pts, end=first_pts + first * ticks, mode="copy", chunk_frames=5,
        source=f"/videos/{seed}",
        bytes_in=10_000 + seed, bytes_out=sum(chunk.row.bytes for chunk in chunks),
        metadata={"camera": seed % 4, "weather": {"rain": seed / 8}, "tags": ["night", "ü"]},
        origin={"digest": f"sha256:{content}", "settings": {"mode": "copy", "size": None}}, added=1_700_000_002.125,
        **values,
    )  # fmt: skip
    return SampleVideo(video, chunks)


def run(function: Callable[[], Coroutine[Any, Any, T]], deadline: float = DEADLINE_S) -> T:
    """Run a coroutine function in a new event loop, with a deadline in seconds."""

    async def with_deadline() -> T:
        async with asyncio.timeout(deadline):
            return await function()

    return asyncio.run(with_deadline())
