"""Rows of catalogs as documents of MongoDB, and back.

Collections of the archive NAME, with what their documents have (docs/archive.md tells the same to other readers):

- ``NAME_archive``: one document, ``_id`` ``"header"``.
- ``NAME_videos``: a document for each content, which is its ``_id``: a job that becomes a video. As long as it is a job
  it has ``open``, ``work`` (name, source, begun, beat), ``stages`` (what was staged, in order) and ``rev``, which is
  another one after every change. A video has ``number``, ``name``, ``start``, ``stop`` and the rest of its row.
- ``NAME_parts``: the chunks, with their frame indexes. ``_id`` is ``life:number:stage``, where ``life`` is that of
  their document in ``NAME_videos``; a chunk belongs to a video if its ``of`` contains the ``rev`` of the video. ``at``
  is the number of its place, ":" and its ``_id``.
- ``NAME_codings``: ``_id`` is the key, ``json`` the coding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, Header, Job, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.mongo.filters import has_lists
from streamloader.archive.catalog.validation import canonical_json, check_metadata
from streamloader.errors import CatalogError

__all__ = [
    "INDEXES",
    "WITHOUT_INDEX",
    "chunk_row",
    "header_document",
    "header_row",
    "job_row",
    "key_range",
    "part_document",
    "place_document",
    "video_fields",
    "video_row",
]

INDEXES: Final[dict[str, tuple[tuple[tuple[str, ...], dict[str, bool]], ...]]] = {
    "videos": (
        (("number",), {"unique": True, "sparse": True}),  # it makes commits follow one another
        (("name",), {"unique": True, "sparse": True}),
        (("stop",), {"sparse": True}),
        (("nanoseconds", "number"), {"sparse": True}),
        (("open",), {"sparse": True}),
        (("todo",), {"sparse": True}),
    ),
    "parts": ((("of", "first"), {}), (("at",), {})),
}
_MOST_BYTES: Final = 15 << 20  # of one frame index: a document may have 16 MiB
WITHOUT_INDEX: Final = {"index": 0}  # a projection

_CHUNK: Final = tuple(item.name for item in fields(ChunkRow))
_VIDEO: Final = tuple(item.name for item in fields(VideoRow) if item.name != "content")


def header_document(header: Header) -> dict[str, Any]:
    """Return the document of a header."""
    return {
        "_id": "header",
        "archive": header.archive,
        "schema": header.schema,
        "created": header.created,
        "changes": 0,
        "places": [place_document(place) for place in header.places],
    }


def place_document(place: Place) -> dict[str, Any]:
    """Return the document of a place."""
    return {"number": place.number, "url": place.url, "weight": float(place.weight)}


def header_row(document: Mapping[str, Any]) -> Header:
    """Return the header in a document."""
    try:
        places = tuple(Place(int(one["number"]), str(one["url"]), float(one["weight"])) for one in document["places"])
        return Header(str(document["archive"]), int(document["schema"]), float(document["created"]), places)
    except (KeyError, TypeError, ValueError) as error:
        raise CatalogError(f"the catalog's header does not say what it should: {error!r}") from error


def video_fields(video: VideoRow) -> dict[str, Any]:
    """Return what the document of a video has of its row."""
    told: dict[str, Any] = {name: getattr(video, name) for name in _VIDEO}
    return told | {
        "metadata": json.loads(check_metadata(video.metadata)),
        "lists": has_lists(video.metadata),
        "origin": canonical_json(video.origin),  # as text: it may have names that MongoDB does not take
        "turn": [bool(turned) for turned in video.turn],
        "time_base": [video.time_base.numerator, video.time_base.denominator],
        "stop": video.start + video.frames,
    }


def video_row(document: Mapping[str, Any]) -> VideoRow:
    """Return the video in a document."""
    try:
        told = {name: document[name] for name in _VIDEO}
        flip, rows, columns = (bool(turned) for turned in told["turn"])
        told |= {"turn": (flip, rows, columns), "time_base": Fraction(*told["time_base"])}
        told["origin"] = json.loads(told["origin"])
        return VideoRow(content=document["_id"], **told)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CatalogError(
            f"the catalog's document of the video {document.get('_id')!r} does not say what it should: {error!r}"
        ) from error


def part_document(chunk: StagedChunk, life: str, stage: str) -> dict[str, Any]:
    """Return the document of a chunk that is staged."""
    row = chunk.row
    if len(chunk.index) > _MOST_BYTES:
        raise CatalogError(
            f"the frame index of chunk {row.number} of {row.content} has {len(chunk.index):,} bytes, and MongoDB keeps "
            f"{_MOST_BYTES:,}: cut the video into smaller chunks (chunk_frames=)"
        )
    told = {name: getattr(row, name) for name in _CHUNK}
    key = f"{life}:{row.number:08d}:{stage}"
    own = {"_id": key, "at": f"{row.place}:{key}", "stage": stage, "of": [], "stop": row.first + row.frames}
    return told | own | {"index": chunk.index}


def chunk_row(document: Mapping[str, Any]) -> ChunkRow:
    """Return the chunk in a document."""
    try:
        return ChunkRow(**{name: document[name] for name in _CHUNK})
    except KeyError as error:
        raise CatalogError(
            f"the catalog's document of the chunk {document.get('_id')!r} does not say {error}"
        ) from error


def key_range(life: str, start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Return the condition that a part belongs to a job, and is numbered [start, stop)."""
    low = f"{life}:{start:08d}" if start else f"{life}:"
    high = f"{life};" if stop is None else f"{life}:{stop:08d}"  # ";" comes after ":"
    return {"_id": {"$gte": low, "$lt": high}}


def job_row(document: Mapping[str, Any]) -> Job:
    """Return the job in a document."""
    try:
        work = document["work"]
        return Job(document["_id"], work["name"], work["source"], float(work["begun"]), float(work["beat"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CatalogError(
            f"the catalog's document of the job {document.get('_id')!r} does not say what it should: {error!r}"
        ) from error
