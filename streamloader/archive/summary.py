"""What is in an archive, as plain JSON values: from its catalog alone."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.errors import VideoNotFound
from streamloader.media.chunks.format import ChunkIndex
from streamloader.redaction import redact

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, ChunkRow, Job, VideoRow

__all__ = ["look_at", "look_at_video"]

_MOST_CHUNKS: Final = 20_000  # that are looked at one by one


async def look_at(catalog: Catalog, where: Mapping[str, Any] | None = None, limit: int = 20) -> dict[str, Any]:
    """Return what is in an archive, as plain JSON values; `limit` of the videos that match `where` are listed.

    Raises:
        CatalogError: the catalog cannot be read.
    """
    header, snapshot = await catalog.header(), await catalog.snapshot()
    sums, sizes, modes = Counter[str](), Counter[str](), Counter[str]()
    listed: list[VideoRow] = []
    async with contextlib.aclosing(catalog.find(where, stop=snapshot.videos)) as found:
        async for row in found:
            sums.update(videos=1, frames=row.frames, chunks=row.chunks, nanoseconds=row.duration)
            sums.update(bytes_in=row.bytes_in, bytes_out=row.bytes_out)
            sizes[f"{row.height}x{row.width}"] += 1
            modes[row.mode] += 1
            if len(listed) < limit:
                listed.append(row)
    share = min(1.0, _MOST_CHUNKS / max(1, snapshot.chunks))
    chunks: list[ChunkRow] = []
    if snapshot.frames:
        located = await catalog.locate(0, max(1, int(snapshot.frames * share)))
        chunks = [chunk for each in located for chunk in each.chunks]
    places = {place.number: place for place in header.places}
    return {
        "catalog": catalog.url,
        "archive": header.archive,
        "schema": header.schema,
        "created": header.created,
        "videos": snapshot.videos,
        "frames": snapshot.frames,
        "chunks": snapshot.chunks,
        "seconds": snapshot.nanoseconds / 1e9,
        "matching": {
            "where": None if where is None else dict(where),
            "videos": sums["videos"],
            "frames": sums["frames"],
            "chunks": sums["chunks"],
            "seconds": sums["nanoseconds"] / 1e9,
            "bytes_in": sums["bytes_in"],
            "bytes_out": sums["bytes_out"],
            "sizes": dict(sizes.most_common()),
            "modes": dict(modes.most_common()),
        },
        "places": [
            {"number": number, "url": redact(place.url), "weight": place.weight} | _of(chunks, number)
            for number, place in places.items()
        ],
        "chunks_looked_at": len(chunks),
        "chunk_bytes": _spread(chunk.bytes for chunk in chunks),
        "chunk_frames": _spread(chunk.frames for chunk in chunks),
        "encoded_anew": sum(bool(chunk.note) for chunk in chunks),
        "codecs": await _codecs(catalog, chunks),
        "jobs": [_job(job) for job in await catalog.jobs()],
        "listed": [_row(row) for row in listed],
    }


async def look_at_video(catalog: Catalog, name: str, limit: int = 20) -> dict[str, Any]:
    """Return what is known of one video, with the first `limit` of its chunks, as plain JSON values.

    Raises:
        VideoNotFound: there is none of this name.
        CatalogError: the catalog cannot be read.
    """
    header = await catalog.header()
    row = await catalog.named(name)
    if row is None:
        raise VideoNotFound(f"the archive {catalog.url} has no video {name!r}", stream=name, address=catalog.url)
    chunks = await catalog.chunks(row.content, 0, min(row.chunks, _MOST_CHUNKS))
    shown = chunks[:limit]
    indexes = [ChunkIndex.decode(data) for data in await catalog.indexes(row.content, [one.number for one in shown])]
    keys = list(dict.fromkeys(chunk.coding for chunk in shown))
    codings = dict(zip(keys, await catalog.codings(keys), strict=True))
    places = {place.number: redact(place.url) for place in header.places}
    return _row(row) | {
        "catalog": catalog.url,
        "turn": list(row.turn),
        "time_base": str(row.time_base),
        "first_pts": row.first_pts,
        "source": redact(row.source),
        "added": row.added,
        "metadata": dict(row.metadata),
        "content": row.content,
        "chunk_bytes": _spread(chunk.bytes for chunk in chunks),
        "codecs": await _codecs(catalog, chunks),
        "places": [{"number": number, "url": url} | _of(chunks, number) for number, url in places.items()],
        "listed": [
            {
                "number": chunk.number,
                "first": chunk.first,
                "frames": chunk.frames,
                "key_frames": len(index.keys),
                "bytes": chunk.bytes,
                "codec": str(codings[chunk.coding].get("codec")),
                "place": chunk.place,
                "path": chunk.path,
                "note": chunk.note,
            }
            for chunk, index in zip(shown, indexes, strict=True)
        ],
    }


async def _codecs(catalog: Catalog, chunks: Sequence[ChunkRow]) -> dict[str, int]:
    """Return how many of the chunks each codec has."""
    by_key = Counter(chunk.coding for chunk in chunks)
    codings = await catalog.codings(list(by_key))
    counted = Counter[str]()
    for count, coding in zip(by_key.values(), codings, strict=True):
        counted[str(coding.get("codec"))] += count
    return dict(counted.most_common())


def _of(chunks: Sequence[ChunkRow], place: int) -> dict[str, int]:
    held = [chunk.bytes for chunk in chunks if chunk.place == place]
    return {"chunks": len(held), "bytes": sum(held)}


def _spread(values: Iterable[int]) -> dict[str, float]:
    known = list(values)
    if not known:
        return {}
    return {"least": min(known), "median": statistics.median(known), "most": max(known)}


def _row(row: VideoRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "name": row.name,
        "start": row.start,
        "frames": row.frames,
        "chunks": row.chunks,
        "height": row.height,
        "width": row.width,
        "seconds": row.duration / 1e9,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "mode": row.mode,
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "source": redact(job.source),
        "begun": job.begun,
        "beat": job.beat,
        "content": job.content,
    }
