"""Consistency checks of MongoDB catalogs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from streamloader.archive.catalog.base import CatalogHeader
from streamloader.archive.catalog.fields import whole_number
from streamloader.archive.catalog.mongo.connection import MongoConnection
from streamloader.archive.catalog.mongo.documents import (
    INCARNATION,
    INDEXES,
    REVISION,
    REVISIONS,
    WITHOUT_INDEX,
    build_key_range,
    check_video_document,
    parse_chunk,
    parse_video,
)
from streamloader.archive.catalog.rows import MAX_FRAMES, check_field
from streamloader.archive.catalog.validation import check_coverage
from streamloader.errors import CatalogError

__all__ = ["find_problems"]

_PAGE_VIDEOS: Final = 100


async def find_problems(connection: MongoConnection, header: CatalogHeader) -> AsyncGenerator[str, None]:
    """Yield one line for each problem."""
    for line in await connection.call("checking indexes", lambda: _check_database_indexes(connection)):
        yield line
    codings = await connection.call("reading codings", lambda: _read_coding_keys(connection))
    places = {place.number for place in header.places}
    last: Mapping[str, Any] | None = None
    while True:
        after = -1 if last is None else check_field("video", "number", last.get("number"), whole_number(0, MAX_FRAMES))
        page = await connection.call("reading videos", lambda: _read_videos(connection, after))  # noqa: B023
        for document in page:
            for line in _check_video(document, last):
                yield line
            last = document
            lines = await connection.call(
                "reading chunks",
                lambda: _check_chunks(connection, document, codings, places),  # noqa: B023
            )
            for line in lines:
                yield line
        if len(page) < _PAGE_VIDEOS:
            return


async def _check_database_indexes(connection: MongoConnection) -> list[str]:
    lines = []
    for name, indexes in INDEXES.items():
        information = await connection.collection(name).index_information()
        existing = {
            (tuple(key for key, _ in index["key"]), bool(index.get("unique"))) for index in information.values()
        }
        for keys, options in indexes:
            if (keys, bool(options.get("unique"))) not in existing:
                lines.append(f"the collection {name!r} has no index on {', '.join(keys)}: the next ingest creates it")
    return lines


async def _read_coding_keys(connection: MongoConnection) -> set[str]:
    return {document["_id"] async for document in connection.collection("codings").find({}, {"_id": 1})}


async def _read_videos(connection: MongoConnection, after: int) -> list[Any]:
    cursor = connection.collection("videos").find({"number": {"$gt": after}}).sort("number", 1).limit(_PAGE_VIDEOS)
    return list(await cursor.to_list(_PAGE_VIDEOS))


def _check_video(document: Mapping[str, Any], last: Mapping[str, Any] | None) -> list[str]:
    """Check that a video continues the video before it."""
    try:
        video = parse_video(check_video_document(document))
        before = None if last is None else parse_video(check_video_document(last))
    except CatalogError as error:
        return [error.message]
    expected = {
        "number": 0 if before is None else before.number + 1,
        "start": 0 if before is None else before.start + before.frames,
        "nanoseconds": 0 if before is None else before.start_ns + before.duration_ns,
        "chunks_before": 0 if last is None else last["chunks_before"] + last["chunks"],
        "stop": video.start + video.frames,
    }
    return [
        f"video {video.number} ({video.name}): its {name} is {document.get(name)}, and should be {value}"
        for name, value in expected.items()
        if document.get(name) != value
    ]


async def _check_chunks(
    connection: MongoConnection, document: Mapping[str, Any], codings: set[str], places: set[int]
) -> list[str]:
    label = f"video {document.get('number')} ({document.get('name')})"
    try:
        check_video_document(document)
    except CatalogError:
        return []  # reported already
    rows = []
    condition = build_key_range(document[INCARNATION]) | {REVISIONS: document[REVISION]}
    parts = connection.collection("parts")
    without_index = parts.find(condition | {"index": {"$exists": False}}, {"number": 1})
    lines = [f"{label}: chunk {part.get('number')} has no frame index" async for part in without_index]
    async for part in parts.find(condition, WITHOUT_INDEX).sort("_id", 1):
        try:
            row = parse_chunk(part)
        except CatalogError as error:
            lines.append(f"{label}: {error.message}")
            continue
        rows.append(row)
        if row.coding not in codings:
            lines.append(f"{label}: chunk {row.number} has the coding {row.coding}, which does not exist")
        if row.place not in places:
            lines.append(f"{label}: chunk {row.number} is in place {row.place}, which does not exist")
        if part.get("stop") != row.first_frame + row.frames or row.frames > document["longest"]:
            lines.append(f"{label}: chunk {row.number} cannot be found by its frames")
    try:
        check_coverage(parse_video(document), rows, connection.url)
    except CatalogError as error:
        lines.append(error.message)
    return lines
