"""What a binding of the catalog suite says, and what its tests use."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Final, TypeVar

from streamloader.archive.catalog.base import Catalog, ChunkRow, Job, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.registry import open_catalog

__all__ = ["PLACES", "CatalogBinding", "Made", "made", "run"]

T = TypeVar("T")

DEADLINE: Final = 60.0  # seconds for one part of a test
PLACES: Final = (Place(0, "/somewhere/a"), Place(1, "ssh://me@vault:2222/b", 2.5), Place(2, "s3://bucket/ü c", 0.0))


class CatalogBinding:
    """What is tested: a subclass gives at least :meth:`location`.

    Attributes:
        schemes: the schemes of
            :func:`streamloader.archive.catalog.registry.catalog_schemes` that this binding stands for.
        secrets: texts that no repr or error may show: the passwords in the options.
        writers: catalogs that commit at once.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    secrets: Sequence[str] = ()
    writers: int = 6

    def location(self) -> tuple[str, Mapping[str, Any]]:
        """Return the address of a catalog that is this test's own and does not exist yet, and options for it.

        Every call in one test returns the same.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say where its catalog is: def location(self)")

    def make_catalog(self, **options: Any) -> Catalog:
        """Return a new instance for that place; `options` come on top."""
        url, own = self.location()
        return open_catalog(url, **{**own, **options})

    # --- help for the tests ------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def catalog(self, **options: Any) -> AsyncIterator[Catalog]:
        """Enter an instance, and close it after use."""
        catalog = self.make_catalog(**options)
        try:
            yield catalog
        finally:
            await catalog.aclose()

    def use(self, function: Callable[[Catalog], Coroutine[Any, Any, T]], *, create: bool = True) -> T:
        """Call a function with an open catalog, in an event loop of its own; in the end it has to be in order."""

        async def with_catalog() -> T:
            async with self.catalog() as catalog:
                if create:
                    await catalog.create(PLACES)
                result = await function(catalog)
                if create:
                    assert await catalog.problems() == []
                return result

        return run(with_catalog)


class Made:
    """A made-up video with its job and its chunks.

    Attributes:
        video: as it is committed, without number, start and nanoseconds.
        chunks: to be staged.
        job: to be begun.
    """

    def __init__(self, video: VideoRow, chunks: list[StagedChunk]) -> None:
        self.video = video
        self.chunks = chunks
        self.job = Job(video.content, video.name, video.source, 1_700_000_000.25, 1_700_000_001.5)
        self.content = video.content

    @property
    def rows(self) -> list[ChunkRow]:
        """The chunks as they come back."""
        return [chunk.row for chunk in self.chunks]

    async def add(self, catalog: Catalog) -> VideoRow:
        """Add it as ingest does."""
        assert await catalog.begin(self.job) is None
        await catalog.stage(self.chunks)
        return await catalog.commit(self.video)


def made(seed: int, sizes: Sequence[int] = (5, 3, 4), *, name: str | None = None, **values: Any) -> Made:
    """Return a video that is the same for the same arguments, with chunks of so many frames."""
    content = hashlib.sha256(f"video {seed}".encode()).hexdigest()
    ticks = 1001
    first_pts = -7 * seed
    chunks = []
    first = 0
    for number, frames in enumerate(sizes):
        digest = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        coding = {"codec": "h264", "extradata": "AAEC", "width": 64 + seed % 3, "options": [["strict", "1"]]}
        path = f"chunks/{content[:2]}/{content}/{number:06d}-{digest[:16]}.mp4"
        row = ChunkRow(
            content, number, first, frames, first_pts + first * ticks, (seed + number) % len(PLACES),
            path if number % 2 == 0 else f"elsewhere/{seed} ü/{number}.mkv", 1_000 + number, f"sha256:{digest}",
            f"{seed % 3:032x}", "re-encoded: no key frame" if number == 1 else "",
        )  # fmt: skip
        chunks.append(StagedChunk(row, f"index {seed} {number} ".encode() * (1 + number), coding))
        first += frames
    video = VideoRow(
        content=content, name=f"video {seed}.mp4" if name is None else name, frames=first, chunks=len(sizes),
        height=48, width=64, turn=(bool(seed & 1), bool(seed & 2), bool(seed & 4)), time_base=Fraction(1, 30_000),
        first_pts=first_pts, end=first_pts + first * ticks, mode="copy", chunk_frames=5, source=f"/videos/{seed}",
        bytes_in=10_000 + seed, bytes_out=sum(chunk.row.bytes for chunk in chunks),
        metadata={"camera": seed % 4, "weather": {"rain": seed / 8}, "tags": ["night", "ü"]},
        origin={"digest": f"sha256:{content}", "settings": {"mode": "copy", "size": None}}, added=1_700_000_002.125,
        **values,
    )  # fmt: skip
    return Made(video, chunks)


def run(function: Callable[[], Coroutine[Any, Any, T]], deadline: float = DEADLINE) -> T:
    """Run a coroutine function in a new event loop, to a deadline."""

    async def with_deadline() -> T:
        async with asyncio.timeout(deadline):
            return await function()

    return asyncio.run(with_deadline())
