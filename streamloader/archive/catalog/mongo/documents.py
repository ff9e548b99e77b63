"""Conversion between catalog rows and MongoDB documents.

The collections of the archive NAME and their documents (docs/archive.md documents them for other readers):

- ``NAME_archive``: one document, ``_id`` ``"header"``.
- ``NAME_videos``: one document per content, whose identifier is the ``_id``. The document is first a job and then a
  video. A job has ``open``, ``work`` (name, source, start time, heartbeat), ``stages`` (names of the stage calls, in
  order) and a revision, which changes with every stage call. A video has ``number``, ``name``, ``start``, ``stop`` and
  the other fields of its row. Every new job gets a new incarnation, also for the same content.
- ``NAME_parts``: the chunks with their frame indexes. The ``_id`` is ``incarnation:number:stage``, with the incarnation
  of the document in ``NAME_videos``. A chunk belongs to a video if the chunk's revisions contain the video's revision.
- ``NAME_codings``: the ``_id`` is the key, ``json`` the codec parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from streamloader.archive.catalog.base import CatalogHeader, ChunkRow, IngestJob, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.fields import RefusedValue, list_of, text, whole_number
from streamloader.archive.catalog.mongo.filters import contains_list
from streamloader.archive.catalog.rows import (
    MAX_CHUNKS_PER_VIDEO,
    MAX_FRAMES,
    build_chunk,
    build_header,
    build_job,
    build_video,
    check_chunk_path,
    check_field,
    check_index,
    raise_malformed,
)
from streamloader.archive.catalog.validation import canonical_json, check_metadata
from streamloader.errors import CatalogError

__all__ = [
    "CLEANUP",
    "HEARTBEAT",
    "INCARNATION",
    "INDEXES",
    "PLACE_KEY",
    "REVISION",
    "REVISIONS",
    "STARTED",
    "WITHOUT_INDEX",
    "build_header_document",
    "build_key_range",
    "build_part_document",
    "build_place_document",
    "build_video_fields",
    "build_work_fields",
    "check_identity_document",
    "check_job_document",
    "check_part_document",
    "check_stop",
    "check_video_document",
    "get_changes",
    "parse_chunk",
    "parse_header",
    "parse_index",
    "parse_job",
    "parse_part_path",
    "parse_video",
]

# Stored names of fields. They never change, so that older catalogs can be opened.
INCARNATION: Final = "life"  # of a job or video: a random token
REVISION: Final = "rev"  # of a job or video: a random token
REVISIONS: Final = "of"  # of a chunk: revisions of the jobs that commit it
CLEANUP: Final = "todo"  # of a job or video: "drop" (delete the job) or "sweep" (delete chunks outside the revision)
PLACE_KEY: Final = "at"  # of a chunk: "place:_id"
STARTED: Final = "begun"  # of a job's work
HEARTBEAT: Final = "beat"  # of a job's work

# Attributes of the rows, and their stored names.
_CHUNK_FIELDS: Final[Mapping[str, str]] = {
    "content": "content",
    "number": "number",
    "first_frame": "first",
    "frames": "frames",
    "first_pts": "first_pts",
    "place": "place",
    "path": "path",
    "bytes": "bytes",
    "digest": "digest",
    "coding": "coding",
    "note": "note",
}
_VIDEO_FIELDS: Final[Mapping[str, str]] = {
    "name": "name",
    "frames": "frames",
    "chunks": "chunks",
    "height": "height",
    "width": "width",
    "orientation": "turn",
    "time_base": "time_base",
    "first_pts": "first_pts",
    "end": "end",
    "mode": "mode",
    "chunk_frames": "chunk_frames",
    "source": "source",
    "bytes_in": "bytes_in",
    "bytes_out": "bytes_out",
    "metadata": "metadata",
    "origin": "origin",
    "added": "added",
    "number": "number",
    "start": "start",
    "start_ns": "nanoseconds",
}

INDEXES: Final[dict[str, tuple[tuple[tuple[str, ...], dict[str, bool]], ...]]] = {
    "videos": (
        (("number",), {"unique": True, "sparse": True}),  # serializes the commits
        (("name",), {"unique": True, "sparse": True}),
        (("stop",), {"sparse": True}),
        (("nanoseconds", "number"), {"sparse": True}),
        (("open",), {"sparse": True}),
        ((CLEANUP,), {"sparse": True}),
    ),
    "parts": (((REVISIONS, "first"), {}), ((PLACE_KEY,), {})),
}
_MAX_INDEX_BYTES: Final = 15 << 20  # a document may have 16 MiB
WITHOUT_INDEX: Final = {"index": 0}  # a projection
_MAX_STAGES: Final = MAX_CHUNKS_PER_VIDEO
_MAX_PLACES: Final = 1 << 16

# Values that the catalog passes on in queries are checked for their form: an object there would be an operator.
_content: Final = text(64, pattern="[0-9a-f]{64}")
_token: Final = text(64, pattern="[0-9a-f]+")
_key: Final = text(200, printable=True)
_count: Final = whole_number(0, MAX_FRAMES)
_IDENTITY_LINKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "_id": _content,
    INCARNATION: _token,
    REVISION: _token,
}
_VIDEO_LINKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **_IDENTITY_LINKS,
    "stop": _count,
    "chunks_before": _count,
    "longest": whole_number(1, MAX_FRAMES),
}
_JOB_LINKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **_IDENTITY_LINKS,
    "stages": list_of(_key, _MAX_STAGES),
}
_PART_LINKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "_id": _key,
    "content": _content,
    "number": whole_number(0, MAX_CHUNKS_PER_VIDEO - 1),
    "stage": _key,
    REVISIONS: list_of(_token, _MAX_STAGES),
    PLACE_KEY: _key,
}


def build_header_document(header: CatalogHeader) -> dict[str, Any]:
    """Return the document of a header."""
    return {
        "_id": "header",
        "archive": header.archive_id,
        "schema": header.schema_version,
        "created": header.created,
        "changes": 0,
        "places": [build_place_document(place) for place in header.places],
    }


def build_place_document(place: Place) -> dict[str, Any]:
    """Return the document of a place."""
    return {"number": place.number, "url": place.url, "weight": float(place.weight)}


def parse_header(document: Mapping[str, Any]) -> CatalogHeader:
    """Return the header in a document.

    Raises:
        CatalogError: If a field is missing or malformed.
    """
    places = check_field("header", "places", document.get("places"), list_of(_check_place, _MAX_PLACES))
    return build_header(document, places)


def get_changes(document: Mapping[str, Any]) -> int:
    """Return how often the places in a header's document were changed.

    Raises:
        CatalogError: If the field is missing or malformed.
    """
    changes: int = check_field("header", "changes", document.get("changes"), _count)
    return changes


def _check_place(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RefusedValue(f"contains a {type(value).__name__} instead of an object")
    return value


def build_video_fields(video: VideoRow) -> dict[str, Any]:
    """Return the fields of a video's row for its document."""
    document: dict[str, Any] = {stored: getattr(video, name) for name, stored in _VIDEO_FIELDS.items()}
    return document | {
        "metadata": json.loads(check_metadata(video.metadata)),
        "lists": contains_list(video.metadata),
        "origin": canonical_json(video.origin),  # as text: its names may contain characters that MongoDB refuses
        "turn": [bool(flag) for flag in video.orientation],
        "time_base": [video.time_base.numerator, video.time_base.denominator],
        "stop": video.start + video.frames,
    }


def check_video_document(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document of a video after a check of the fields that :func:`parse_video` does not return.

    Raises:
        CatalogError: If one of them is missing or malformed.
    """
    return _check_links(f"video {document.get('_id')!r:.80}", document, _VIDEO_LINKS)


def check_job_document(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document of a job after a check of the fields that :func:`parse_job` does not return.

    Raises:
        CatalogError: If one of them is missing or malformed.
    """
    return _check_links(f"job {document.get('_id')!r:.80}", document, _JOB_LINKS)


def check_part_document(document: Mapping[str, Any], *fields: str) -> Mapping[str, Any]:
    """Return the document of a chunk after a check of `fields`, which :func:`parse_chunk` does not return.

    Raises:
        CatalogError: If one of them is missing or malformed.
    """
    return _check_links(f"chunk {document.get('_id')!r:.80}", document, {name: _PART_LINKS[name] for name in fields})


def check_identity_document(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document of a job or video after a check of its content, incarnation and revision.

    Raises:
        CatalogError: If one of them is missing or malformed.
    """
    return _check_links(f"video {document.get('_id')!r:.80}", document, _IDENTITY_LINKS)


def _check_links(
    row: str, document: Mapping[str, Any], checks: Mapping[str, Callable[[Any], Any]]
) -> Mapping[str, Any]:
    for field, check in checks.items():
        check_field(row, field, document.get(field), check)
    return document


def parse_video(document: Mapping[str, Any]) -> VideoRow:
    """Return the video in a document.

    Raises:
        CatalogError: If a field is missing or malformed.
    """
    return build_video({**document, "content": document.get("_id")})


def build_part_document(chunk: StagedChunk, incarnation: str, stage: str) -> dict[str, Any]:
    """Return the document of a staged chunk.

    Args:
        chunk: Staged chunk.
        incarnation: Incarnation of its job.
        stage: Name of the stage call.

    Raises:
        CatalogError: If the frame index is larger than MongoDB can store.
    """
    row = chunk.row
    if len(chunk.index) > _MAX_INDEX_BYTES:
        raise CatalogError(
            f"the frame index of chunk {row.number} of {row.content} has {len(chunk.index):,} bytes, but MongoDB can "
            f"store {_MAX_INDEX_BYTES:,}: cut the video into smaller chunks (chunk_frames=)"
        )
    document = {stored: getattr(row, name) for name, stored in _CHUNK_FIELDS.items()}
    key = f"{incarnation}:{row.number:08d}:{stage}"
    return document | {
        "_id": key,
        PLACE_KEY: f"{row.place}:{key}",
        "stage": stage,
        REVISIONS: [],
        "stop": row.first_frame + row.frames,
        "index": chunk.index,
    }


def parse_chunk(document: Mapping[str, Any]) -> ChunkRow:
    """Return the chunk in a document.

    Raises:
        CatalogError: If a field is missing or malformed.
    """
    return build_chunk(*map(document.get, _CHUNK_FIELDS.values()))


def check_stop(row: str, document: Mapping[str, Any], stop: int) -> None:
    """Check the end of the frames of a video or chunk, by which documents are found.

    Raises:
        CatalogError: If it is missing or wrong.
    """
    if document.get("stop") != stop:
        raise_malformed(row, "stop", f"is {document.get('stop')!r:.40}, but should be {stop}")


def parse_part_path(document: Mapping[str, Any]) -> tuple[str, str]:
    """Return content and path of the chunk in a document.

    Raises:
        CatalogError: If a field is missing or malformed.
    """
    content = check_part_document(document, "content")["content"]
    return content, check_chunk_path(content, document.get("number"), document.get("digest"), document.get("path"))


def parse_index(document: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return number and encoded frame index of the chunk in a document.

    Raises:
        CatalogError: If a field is missing or malformed.
    """
    number = check_part_document(document, "number")["number"]
    return number, check_index(str(document.get("_id")), number, document.get("index"))


def build_key_range(incarnation: str, start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Return the condition for the parts of a job or video that are numbered [start, stop)."""
    low = f"{incarnation}:{start:08d}" if start else f"{incarnation}:"
    high = f"{incarnation};" if stop is None else f"{incarnation}:{stop:08d}"  # ";" sorts right after ":"
    return {"_id": {"$gte": low, "$lt": high}}


def build_work_fields(job: IngestJob) -> dict[str, Any]:
    """Return the fields of a job that a resumed job replaces."""
    return {"name": job.name, "source": job.source, HEARTBEAT: job.heartbeat}


def parse_job(document: Mapping[str, Any]) -> IngestJob:
    """Return the job in a document.

    Raises:
        CatalogError: If a field is missing or malformed.
    """
    work = document.get("work")
    if not isinstance(work, Mapping):
        raise_malformed(f"job {document.get('_id')!r:.80}", "work", f"is a {type(work).__name__} instead of an object")
    fields = {name: work.get(name) for name in ("name", "source", STARTED, HEARTBEAT)}
    return build_job({"_id": document.get("_id")} | fields)
