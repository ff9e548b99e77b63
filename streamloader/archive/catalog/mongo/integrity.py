"""Whether the documents of a catalog in MongoDB fit together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from streamloader.archive.catalog.base import Header
from streamloader.archive.catalog.mongo.connection import Connection
from streamloader.archive.catalog.mongo.documents import INDEXES, WITHOUT_INDEX, chunk_row, key_range, video_row
from streamloader.archive.catalog.validation import check_whole
from streamloader.errors import CatalogError

__all__ = ["find_problems"]

_PAGE: Final = 100


async def find_problems(connection: Connection, header: Header) -> AsyncGenerator[str, None]:
    """Yield what is wrong, in one line each."""
    for line in await connection.call("looking at indexes", lambda: _indexes(connection)):
        yield line
    codings = await connection.call("reading codings", lambda: _codings(connection))
    places = {place.number for place in header.places}
    last: Mapping[str, Any] | None = None
    while True:
        after = -1 if last is None else last["number"]
        page = await connection.call("reading videos", lambda: _videos(connection, after))  # noqa: B023
        for document in page:
            for line in _chain(document, last):
                yield line
            last = document
            lines = await connection.call("reading chunks", lambda: _chunks(connection, document, codings, places))  # noqa: B023
            for line in lines:
                yield line
        if len(page) < _PAGE:
            return


async def _indexes(connection: Connection) -> list[str]:
    lines = []
    for name, wanted in INDEXES.items():
        found = await connection.collection(name).index_information()
        there = {(tuple(key for key, _ in told["key"]), bool(told.get("unique"))) for told in found.values()}
        for keys, options in wanted:
            if (keys, bool(options.get("unique"))) not in there:
                lines.append(f"the collection {name!r} lacks its index of {', '.join(keys)}: the next ingest makes it")
    return lines


async def _codings(connection: Connection) -> set[str]:
    return {document["_id"] async for document in connection.collection("codings").find({}, {"_id": 1})}


async def _videos(connection: Connection, after: int) -> list[Any]:
    found = connection.collection("videos").find({"number": {"$gt": after}}).sort("number", 1).limit(_PAGE)
    return list(await found.to_list(_PAGE))


def _chain(document: Mapping[str, Any], last: Mapping[str, Any] | None) -> list[str]:
    """Compare a video with the one before it."""
    try:
        video = video_row(document)
        before = None if last is None else video_row(last)
    except CatalogError as error:
        return [error.message]
    expected = {
        "number": 0 if before is None else before.number + 1,
        "start": 0 if before is None else before.start + before.frames,
        "nanoseconds": 0 if before is None else before.nanoseconds + before.duration,
        "chunks_before": 0 if last is None else last["chunks_before"] + last["chunks"],
        "stop": video.start + video.frames,
    }
    return [
        f"video {video.number} ({video.name}): its {name} is {document.get(name)}, and should be {value}"
        for name, value in expected.items()
        if document.get(name) != value
    ]


async def _chunks(
    connection: Connection, document: Mapping[str, Any], codings: set[str], places: set[int]
) -> list[str]:
    named = f"video {document['number']} ({document.get('name')})"
    rows = []
    condition = key_range(document["life"]) | {"of": document["rev"]}
    parts = connection.collection("parts")
    bare = parts.find(condition | {"index": {"$exists": False}}, {"number": 1})
    lines = [f"{named}: chunk {part['number']} has no frame index" async for part in bare]
    async for part in parts.find(condition, WITHOUT_INDEX).sort("_id", 1):
        row = chunk_row(part)
        rows.append(row)
        if row.coding not in codings:
            lines.append(f"{named}: chunk {row.number} has the coding {row.coding}, which is not there")
        if row.place not in places:
            lines.append(f"{named}: chunk {row.number} is in place {row.place}, which is not there")
        if part.get("stop") != row.first + row.frames or row.frames > document["longest"]:
            lines.append(f"{named}: chunk {row.number} is not found by its frames")
    try:
        check_whole(video_row(document), rows, connection.url)
    except CatalogError as error:
        lines.append(error.message)
    return lines
