"""How videos come into a catalog of MongoDB: whole or not at all, although many documents are written.

There are no transactions: not every server has them. Instead a job and the video that it becomes are one document, and
whatever can be seen or can be in the way of others is one change of that document, which every server makes as a whole:

- stage: the chunks are written first, under the name of this stage; they count when the job's ``stages`` contain it.
- commit: the chunks that count are marked with the job's ``rev``; then the job becomes a video, if it still has that
  ``rev`` and nobody else has the number. A mark is only ever added, so whoever comes late harms nobody.
- abandon: the job is marked to be dropped, and does not count from then on.

What is left to do afterwards (``todo``) is to delete what does not count any more. Who dies before that leaves it to
the next who begins, commits, abandons or asks for jobs. All of this may be repeated at any point.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pymongo.errors

from streamloader.archive.catalog.base import ChunkRow, Job, StagedChunk, VideoRow
from streamloader.archive.catalog.mongo.connection import Connection, duplicate_in
from streamloader.archive.catalog.mongo.documents import (
    WITHOUT_INDEX,
    chunk_row,
    job_row,
    key_range,
    part_document,
    video_fields,
    video_row,
)
from streamloader.archive.catalog.validation import canonical_json, check_whole
from streamloader.errors import CatalogError, NameTaken

__all__ = [
    "abandon",
    "begin",
    "jobs",
    "last_video",
    "new_token",
    "put_codings",
    "stage",
    "staged",
    "try_to_commit",
]

_ROUND: Final = 0.02  # seconds, at most, between two attempts to be the next video


def new_token() -> str:
    """Return a name that nothing else has."""
    return uuid.uuid4().hex


async def begin(connection: Connection, job: Job) -> VideoRow | None:
    """See :meth:`Catalog.begin`."""
    videos = connection.collection("videos", latest=True)
    work = {"name": job.name, "source": job.source, "beat": job.beat}
    while True:
        found = await videos.find_one({"_id": job.content})
        if found is not None and "number" in found:
            await _finish(connection, found)
            return video_row(found)
        if found is not None and "todo" in found:
            await _finish(connection, found)
            continue
        await _refuse_taken(connection, job.content, job.name)
        if found is not None:
            condition = {"_id": job.content, "open": True, "life": found["life"]}
            changed = {f"work.{name}": value for name, value in work.items()}
            if (await videos.update_one(condition, {"$set": changed})).matched_count:
                return None
            continue  # it has just been committed or abandoned
        fresh = {"_id": job.content, "open": True, "life": new_token(), "rev": new_token(), "stages": []}
        try:
            await videos.insert_one(fresh | {"work": work | {"begun": job.begun}})
            return None
        except pymongo.errors.DuplicateKeyError:
            continue  # somebody else has just begun it


async def stage(connection: Connection, chunks: Sequence[StagedChunk], name: str) -> None:
    """See :meth:`Catalog.stage`.

    Args:
        connection: to the catalog.
        chunks: of one job.
        name: of this stage: the same if it is repeated.
    """
    content = chunks[0].row.content
    videos, parts = connection.collection("videos", latest=True), connection.collection("parts", latest=True)
    found = await videos.find_one({"_id": content})
    if found is not None and await _was_staged(connection, found, name):
        return  # it was done, and the answer was lost
    life = _open(connection, content, found)["life"]
    documents = [part_document(chunk, life, name) for chunk in chunks]
    try:
        await parts.insert_many(documents, ordered=False)
    except pymongo.errors.BulkWriteError as error:
        if not duplicate_in(error):  # an attempt before this one wrote some
            raise
    changed = await videos.update_one(
        {"_id": content, "open": True, "life": life}, {"$push": {"stages": name}, "$set": {"rev": new_token()}}
    )
    if not changed.matched_count:
        found = await videos.find_one({"_id": content})
        if found is not None and await _was_staged(connection, found, name):
            return  # by an attempt before this one
        await parts.delete_many({"_id": {"$in": [document["_id"] for document in documents]}})
        _open(connection, content, found)
        raise CatalogError(
            f"the job of {content} was abandoned and begun anew by somebody else: begin it again",
            address=connection.url,
        )


async def _was_staged(connection: Connection, found: Mapping[str, Any], name: str) -> bool:
    if "number" not in found:
        return name in found.get("stages", ())
    parts = connection.collection("parts", latest=True)
    kept = await parts.find_one(key_range(found["life"]) | {"stage": name, "of": found["rev"]}, {"_id": 1})
    return kept is not None


async def put_codings(connection: Connection, codings: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep codings by their keys, those that are not there."""
    documents = [{"_id": key, "json": canonical_json(coding)} for key, coding in codings.items()]
    try:
        await connection.collection("codings").insert_many(documents, ordered=False)
    except pymongo.errors.BulkWriteError as error:
        if not duplicate_in(error):
            raise


async def staged(connection: Connection, found: Mapping[str, Any]) -> list[tuple[str, ChunkRow]]:
    """Return the chunks of a job that count, by number, with their keys."""
    order = {name: place for place, name in enumerate(found.get("stages", ()))}
    counting: dict[int, tuple[int, str, ChunkRow]] = {}
    parts = connection.collection("parts", latest=True)
    async for document in parts.find(key_range(found["life"]), WITHOUT_INDEX):
        place = order.get(document["stage"], -1)
        if place > counting.get(document["number"], (-1,))[0]:
            counting[document["number"]] = place, document["_id"], chunk_row(document)
    return [(key, row) for _, (_, key, row) in sorted(counting.items())]


async def try_to_commit(connection: Connection, video: VideoRow) -> VideoRow | None:
    """Make a job a video; None if somebody else was faster in something, and it has to be tried again.

    Raises:
        CatalogError: its chunks do not add up to the video, or there is no such job.
        NameTaken: a video with other content has this name.
    """
    videos, parts = connection.collection("videos", latest=True), connection.collection("parts", latest=True)
    found = await videos.find_one({"_id": video.content})
    if found is not None and "number" in found:
        await _finish(connection, found)
        return video_row(found)
    rev = _open(connection, video.content, found)["rev"]
    assert found is not None
    counting = await staged(connection, found)
    check_whole(video, [row for _, row in counting], connection.url)
    await _refuse_taken(connection, video.content, video.name)
    keys = [key for key, _ in counting]
    for start in range(0, len(keys), 1000):
        await parts.update_many({"_id": {"$in": keys[start : start + 1000]}}, {"$addToSet": {"of": rev}})
    last = await last_video(connection, latest=True)
    placed = dataclasses.replace(
        video,
        number=0 if last is None else last["number"] + 1,
        start=0 if last is None else last["stop"],
        nanoseconds=0 if last is None else last["nanoseconds"] + video_row(last).duration,
    )
    told = video_fields(placed) | {
        "chunks_before": 0 if last is None else last["chunks_before"] + last["chunks"],
        "longest": max(row.frames for _, row in counting),
        "todo": "sweep",
    }
    try:
        changed = await videos.update_one(
            {"_id": video.content, "open": True, "rev": rev},
            {"$set": told, "$unset": {"open": "", "stages": "", "work": ""}},
        )
    except pymongo.errors.DuplicateKeyError:  # of the number, or of the name: the next attempt tells
        await asyncio.sleep(random.uniform(0, _ROUND))  # noqa: S311 - so that several do not go on meeting
        return None
    if not changed.matched_count:
        return None
    await _finish(connection, {"_id": video.content, "life": found["life"], "rev": rev, "todo": "sweep"})
    return placed


async def abandon(connection: Connection, content: str) -> None:
    """See :meth:`Catalog.abandon`."""
    videos = connection.collection("videos", latest=True)
    found = await videos.find_one({"_id": content})
    if found is not None and "open" in found:
        await videos.update_one(
            {"_id": content, "open": True, "life": found["life"]}, {"$set": {"todo": "drop"}, "$unset": {"open": ""}}
        )
        found = await videos.find_one({"_id": content})
    if found is not None:
        await _finish(connection, found)


async def jobs(connection: Connection) -> list[Job]:
    """See :meth:`Catalog.jobs`."""
    videos = connection.collection("videos", latest=True)
    for found in await videos.find({"todo": {"$in": ["drop", "sweep"]}}).to_list(None):
        await _finish(connection, found)
    found = await videos.find({"open": True}, {"stages": 0}).to_list(None)
    return sorted((job_row(document) for document in found), key=lambda job: job.content)


async def last_video(connection: Connection, *, latest: bool = False) -> Any:
    """Return the document of the last video; None if there is none."""
    videos = connection.collection("videos", latest=latest)
    found = await videos.find({"number": {"$gte": 0}}).sort("number", -1).limit(1).to_list(1)
    return found[0] if found else None


async def _finish(connection: Connection, found: Mapping[str, Any]) -> None:
    """Delete what does not count any more, of a video or of a job that was abandoned."""
    videos, parts = connection.collection("videos", latest=True), connection.collection("parts", latest=True)
    if "todo" not in found:
        return
    same = {"_id": found["_id"], "life": found["life"], "todo": found["todo"]}
    if found["todo"] == "drop":
        await parts.delete_many(key_range(found["life"]))
        await videos.delete_one(same)
        return
    left = [
        document["_id"]
        async for document in parts.find(key_range(found["life"]), {"_id": 1, "of": 1})
        if found["rev"] not in document["of"]
    ]
    for start in range(0, len(left), 1000):
        await parts.delete_many({"_id": {"$in": left[start : start + 1000]}})
    await videos.update_one(same, {"$unset": {"todo": ""}})


def _open(connection: Connection, content: str, found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if found is not None and "open" in found:
        return found
    why = "was committed already" if found is not None and "number" in found else "was not begun, or was abandoned"
    raise CatalogError(f"the job of {content} {why}", address=connection.url)


async def _refuse_taken(connection: Connection, content: str, name: str) -> None:
    other = await connection.collection("videos", latest=True).find_one({"name": name}, {"_id": 1, "number": 1})
    if other is not None and other["_id"] != content:
        raise NameTaken(
            f"the archive has a video {name!r} already, number {other['number']}, with other content: choose another "
            "name=",
            stream=name,
            address=connection.url,
        )
