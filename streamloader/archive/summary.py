"""Summarize the contents of an archive as plain JSON values, from its catalog alone."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.archive.catalog.base import find_video_by_name
from streamloader.media.chunks.format import ChunkIndex
from streamloader.redaction import redact_address

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, ChunkRow, IngestJob, VideoRow

__all__ = ["summarize_archive", "summarize_video"]

_MAX_SCANNED_CHUNKS: Final = 20_000


async def summarize_archive(
    catalog: Catalog, where: Mapping[str, Any] | None = None, limit: int = 20
) -> dict[str, Any]:
    """Return a summary of an archive as plain JSON values.

    Args:
        catalog: Catalog of the archive.
        where: Condition on the metadata of the videos that are counted and listed. Defaults to all videos.
        limit: Maximum number of videos listed. Defaults to 20.

    Raises:
        CatalogError: If the catalog cannot be read.
    """
    header, snapshot = await catalog.get_header(), await catalog.get_snapshot()
    sums, sizes, modes = Counter[str](), Counter[str](), Counter[str]()
    listed: list[VideoRow] = []
    async with contextlib.aclosing(catalog.find_videos(where, stop=snapshot.videos)) as rows:
        async for row in rows:
            sums.update(videos=1, frames=row.frames, chunks=row.chunks, nanoseconds=row.duration_ns)
            sums.update(bytes_in=row.bytes_in, bytes_out=row.bytes_out)
            sizes[f"{row.height}x{row.width}"] += 1
            modes[row.mode] += 1
            if len(listed) < limit:
                listed.append(row)
    share = min(1.0, _MAX_SCANNED_CHUNKS / max(1, snapshot.chunks))
    chunks: list[ChunkRow] = []
    if snapshot.frames:
        located = await catalog.locate_frames(0, max(1, int(snapshot.frames * share)))
        chunks = [chunk for each in located for chunk in each.chunks]
    places = {place.number: place for place in header.places}
    return {
        "catalog": catalog.url,
        "archive": header.archive_id,
        "schema": header.schema_version,
        "created": header.created,
        "videos": snapshot.videos,
        "frames": snapshot.frames,
        "chunks": snapshot.chunks,
        "seconds": snapshot.duration_ns / 1e9,
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
            {"number": number, "url": redact_address(place.url), "weight": place.weight}
            | _count_in_place(chunks, number)
            for number, place in places.items()
        ],
        "chunks_scanned": len(chunks),
        "chunk_bytes": _describe_values(chunk.bytes for chunk in chunks),
        "chunk_frames": _describe_values(chunk.frames for chunk in chunks),
        "reencoded": sum(bool(chunk.note) for chunk in chunks),
        "codecs": await _count_codecs(catalog, chunks),
        "jobs": [_job_to_json(job) for job in await catalog.list_jobs()],
        "listed": [_video_to_json(row) for row in listed],
    }


async def summarize_video(catalog: Catalog, name: str, limit: int = 20) -> dict[str, Any]:
    """Return a summary of one video as plain JSON values.

    Args:
        catalog: Catalog of the archive.
        name: Name of the video, or its end if no other video has that.
        limit: Maximum number of chunks listed. Defaults to 20.

    Raises:
        VideoNotFound: If the archive has no video of this name, or several whose names end so.
        CatalogError: If the catalog cannot be read.
    """
    header = await catalog.get_header()
    row = await find_video_by_name(catalog, name)
    chunks = await catalog.get_chunks(row.content, 0, min(row.chunks, _MAX_SCANNED_CHUNKS))
    listed = chunks[:limit]
    encoded = await catalog.get_indexes(row.content, [chunk.number for chunk in listed])
    indexes = [
        ChunkIndex.decode(data, frames=chunk.frames, chunk_bytes=chunk.bytes)
        for chunk, data in zip(listed, encoded, strict=True)
    ]
    keys = list(dict.fromkeys(chunk.coding for chunk in listed))
    codings = dict(zip(keys, await catalog.get_codings(keys), strict=True))
    places = {place.number: redact_address(place.url) for place in header.places}
    return _video_to_json(row) | {
        "catalog": catalog.url,
        "turn": list(row.orientation),
        "time_base": str(row.time_base),
        "first_pts": row.first_pts,
        **_describe_source(row),
        "source": redact_address(row.source),
        "added": row.added,
        "metadata": dict(row.metadata),
        "content": row.content,
        "chunk_bytes": _describe_values(chunk.bytes for chunk in chunks),
        "codecs": await _count_codecs(catalog, chunks),
        "places": [{"number": number, "url": url} | _count_in_place(chunks, number) for number, url in places.items()],
        "listed": [
            {
                "number": chunk.number,
                "first": chunk.first_frame,
                "frames": chunk.frames,
                "key_frames": len(index.key_packet),
                "bytes": chunk.bytes,
                "codec": str(codings[chunk.coding].get("codec")),
                "place": chunk.place,
                "path": chunk.path,
                "note": chunk.note,
            }
            for chunk, index in zip(listed, indexes, strict=True)
        ],
    }


def _describe_source(row: VideoRow) -> dict[str, Any]:
    """Return the shape of pixels of a video, and what else is unusual about its source."""
    facts = row.origin.get("video")
    facts = facts if isinstance(facts, Mapping) else {}
    counts = {
        name: facts[name] for name in ("stream", "video_streams", "clock_jumps") if isinstance(facts.get(name), int)
    }
    cropping = facts.get("cropping")
    if isinstance(cropping, Sequence) and len(cropping) == 4 and all(isinstance(side, int) for side in cropping):  # noqa: PLR2004
        counts["cropping"] = list(cropping)
    aspect = row.pixel_aspect
    return counts | {"pixel_aspect": f"{aspect.numerator}:{aspect.denominator}"}


async def _count_codecs(catalog: Catalog, chunks: Sequence[ChunkRow]) -> dict[str, int]:
    """Return the number of chunks of each codec, most frequent first."""
    by_key = Counter(chunk.coding for chunk in chunks)
    codings = await catalog.get_codings(list(by_key))
    counts = Counter[str]()
    for count, coding in zip(by_key.values(), codings, strict=True):
        counts[str(coding.get("codec"))] += count
    return dict(counts.most_common())


def _count_in_place(chunks: Sequence[ChunkRow], place: int) -> dict[str, int]:
    sizes = [chunk.bytes for chunk in chunks if chunk.place == place]
    return {"chunks": len(sizes), "bytes": sum(sizes)}


def _describe_values(values: Iterable[int]) -> dict[str, float]:
    numbers = list(values)
    if not numbers:
        return {}
    return {"min": min(numbers), "median": statistics.median(numbers), "max": max(numbers)}


def _video_to_json(row: VideoRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "name": row.name,
        "start": row.start,
        "frames": row.frames,
        "chunks": row.chunks,
        "height": row.height,
        "width": row.width,
        "seconds": row.duration_ns / 1e9,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "mode": row.mode,
    }


def _job_to_json(job: IngestJob) -> dict[str, Any]:
    return {
        "name": job.name,
        "source": redact_address(job.source),
        "started": job.started,
        "heartbeat": job.heartbeat,
        "content": job.content,
    }
