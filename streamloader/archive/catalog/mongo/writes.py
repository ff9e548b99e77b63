"""Writes to a MongoDB catalog: videos are added atomically, although many documents are written.

No transactions are used, because not every server supports them. Instead, a job and the video that it becomes are one
document. Every step that other processes can see is a single update of that document, which all servers apply
atomically:

- Stage: the chunks are written first, under the name of the stage call. They count once the job's ``stages`` contain
  that name.
- Commit: the job's revision is added to the chunks that count. The job then becomes a video, if its revision has not
  changed and its number is free. Revisions are only ever added to chunks, so a late writer does no harm.
- Abandon: the job is marked for deletion, and does not count from then on.

The remaining cleanup deletes documents that no longer count. If a process dies before it, the next process that begins,
commits, abandons or lists jobs does it. All of these steps can be repeated at any point.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pymongo.errors

from streamloader.archive.catalog.base import ChunkRow, IngestJob, StagedChunk, VideoRow
from streamloader.archive.catalog.fields import text
from streamloader.archive.catalog.mongo.connection import MongoConnection, is_duplicate_key_error
from streamloader.archive.catalog.mongo.documents import (
    CLEANUP,
    INCARNATION,
    REVISION,
    REVISIONS,
    STARTED,
    WITHOUT_INDEX,
    build_key_range,
    build_part_document,
    build_video_fields,
    build_work_fields,
    check_identity_document,
    check_job_document,
    check_part_document,
    check_video_document,
    parse_chunk,
    parse_job,
    parse_video,
)
from streamloader.archive.catalog.rows import check_field
from streamloader.archive.catalog.validation import canonical_json, check_coverage
from streamloader.common.printable import make_printable
from streamloader.errors import CatalogError, NameConflict

__all__ = [
    "abandon_job",
    "begin_job",
    "find_last_video",
    "get_counted_chunks",
    "list_jobs",
    "make_token",
    "stage_chunks",
    "store_codings",
    "try_to_commit",
]

_MAX_SOURCE_CHARACTERS: Final = 1000  # in a message
_MAX_COMMIT_DELAY_S: Final = 0.02  # before the next attempt to get the next video number
_BATCH_DOCUMENTS: Final = 1000
_DELETE_JOB: Final = "drop"  # stored values of CLEANUP
_DELETE_UNCOMMITTED: Final = "sweep"


def make_token() -> str:
    """Return a new unique name."""
    return uuid.uuid4().hex


async def begin_job(connection: MongoConnection, job: IngestJob) -> VideoRow | None:
    """Start or resume a job, see :meth:`Catalog.begin_job`."""
    videos = connection.collection("videos", latest=True)
    work = build_work_fields(job)
    while True:
        document = await videos.find_one({"_id": job.content})
        if document is not None and "number" in document:
            await _clean_up(connection, document)
            return parse_video(document)
        if document is not None and CLEANUP in document:
            await _clean_up(connection, document)
            continue
        await _check_name_is_free(connection, job.content, job.name)
        if document is not None:
            check_identity_document(document)
            condition = {"_id": job.content, "open": True, INCARNATION: document[INCARNATION]}
            changes = {f"work.{name}": value for name, value in work.items()}
            if (await videos.update_one(condition, {"$set": changes})).matched_count:
                return None
            continue  # another process has just committed or abandoned it
        new = {"_id": job.content, "open": True, INCARNATION: make_token(), REVISION: make_token(), "stages": []}
        try:
            await videos.insert_one(new | {"work": work | {STARTED: job.started}})
            return None
        except pymongo.errors.DuplicateKeyError:
            continue  # another process has just started it


async def stage_chunks(connection: MongoConnection, chunks: Sequence[StagedChunk], stage: str) -> None:
    """Store chunks of one job, see :meth:`Catalog.stage_chunks`.

    Args:
        connection: Connection of the catalog.
        chunks: Chunks of one job.
        stage: Name of this stage call. A repeated attempt uses the same name.
    """
    content = chunks[0].row.content
    videos, parts = connection.collection("videos", latest=True), connection.collection("parts", latest=True)
    document = await videos.find_one({"_id": content})
    if document is not None and await _was_staged(connection, document, stage):
        return  # an earlier attempt succeeded, but its reply was lost
    incarnation = _require_open_job(connection, content, document)[INCARNATION]
    new_parts = [build_part_document(chunk, incarnation, stage) for chunk in chunks]
    try:
        await parts.insert_many(new_parts, ordered=False)
    except pymongo.errors.BulkWriteError as error:
        if not is_duplicate_key_error(error):  # duplicates come from an earlier attempt
            raise
    update = {"$push": {"stages": stage}, "$set": {REVISION: make_token()}}
    changed = await videos.update_one({"_id": content, "open": True, INCARNATION: incarnation}, update)
    if not changed.matched_count:
        document = await videos.find_one({"_id": content})
        if document is not None and await _was_staged(connection, document, stage):
            return  # by an earlier attempt
        await parts.delete_many({"_id": {"$in": [part["_id"] for part in new_parts]}})
        _require_open_job(connection, content, document)
        raise CatalogError(
            f"another process has abandoned the job of {content} and started a new one: begin the job again",
            address=connection.url,
        )


async def _was_staged(connection: MongoConnection, document: Mapping[str, Any], stage: str) -> bool:
    if "number" not in document:
        return "stages" in document and stage in check_job_document(document)["stages"]
    check_identity_document(document)
    parts = connection.collection("parts", latest=True)
    condition = build_key_range(document[INCARNATION]) | {"stage": stage, REVISIONS: document[REVISION]}
    return await parts.find_one(condition, {"_id": 1}) is not None


async def store_codings(connection: MongoConnection, codings: Mapping[str, Mapping[str, Any]]) -> None:
    """Store codec parameters by their keys. Keys that exist already are skipped."""
    documents = [{"_id": key, "json": canonical_json(coding)} for key, coding in codings.items()]
    try:
        await connection.collection("codings").insert_many(documents, ordered=False)
    except pymongo.errors.BulkWriteError as error:
        if not is_duplicate_key_error(error):
            raise


async def get_counted_chunks(connection: MongoConnection, job: Mapping[str, Any]) -> list[tuple[str, ChunkRow]]:
    """Return the chunks of a job's document that count, by number, with their keys."""
    stage_order = {name: position for position, name in enumerate(check_job_document(job)["stages"])}
    counted: dict[int, tuple[int, str, ChunkRow]] = {}
    parts = connection.collection("parts", latest=True)
    async for part in parts.find(build_key_range(job[INCARNATION]), WITHOUT_INDEX):
        check_part_document(part, "stage", "number")
        position = stage_order.get(part["stage"], -1)
        if position > counted.get(part["number"], (-1,))[0]:
            counted[part["number"]] = position, part["_id"], parse_chunk(part)
    return [(key, row) for _, (_, key, row) in sorted(counted.items())]


async def try_to_commit(connection: MongoConnection, video: VideoRow) -> VideoRow | None:
    """Turn a job into a video. Return None if another process interfered, and the commit has to be tried again.

    Raises:
        CatalogError: If the chunks do not cover the video exactly, or there is no such job.
        NameConflict: If a video with other content has this name.
    """
    videos, parts = connection.collection("videos", latest=True), connection.collection("parts", latest=True)
    document = await videos.find_one({"_id": video.content})
    if document is not None and "number" in document:
        await _clean_up(connection, document)
        return parse_video(document)
    revision = _require_open_job(connection, video.content, document)[REVISION]
    assert document is not None
    counted = await get_counted_chunks(connection, document)
    check_coverage(video, [row for _, row in counted], connection.url)
    await _check_name_is_free(connection, video.content, video.name)
    keys = [key for key, _ in counted]
    for first in range(0, len(keys), _BATCH_DOCUMENTS):
        batch = {"_id": {"$in": keys[first : first + _BATCH_DOCUMENTS]}}
        await parts.update_many(batch, {"$addToSet": {REVISIONS: revision}})
    numbered, chunks_before = dataclasses.replace(video, number=0, start=0, start_ns=0), 0
    last_document = await find_last_video(connection, latest=True)
    if last_document is not None:
        last = parse_video(check_video_document(last_document))
        numbered = dataclasses.replace(
            video, number=last.number + 1, start=last.start + last.frames, start_ns=last.start_ns + last.duration_ns
        )
        chunks_before = last_document["chunks_before"] + last.chunks
    fields = build_video_fields(numbered) | {
        "chunks_before": chunks_before,
        "longest": max(row.frames for _, row in counted),
        CLEANUP: _DELETE_UNCOMMITTED,
    }
    try:
        changed = await videos.update_one(
            {"_id": video.content, "open": True, REVISION: revision},
            {"$set": fields, "$unset": {"open": "", "stages": "", "work": ""}},
        )
    except pymongo.errors.DuplicateKeyError:  # of the number or the name: the next attempt finds out which
        await asyncio.sleep(random.uniform(0, _MAX_COMMIT_DELAY_S))  # noqa: S311 - spreads concurrent writers
        return None
    if not changed.matched_count:
        return None
    committed = {"_id": video.content, INCARNATION: document[INCARNATION], REVISION: revision}
    await _clean_up(connection, committed | {CLEANUP: _DELETE_UNCOMMITTED})
    return numbered


async def abandon_job(connection: MongoConnection, content: str) -> None:
    """Delete a job and its chunks, see :meth:`Catalog.abandon_job`."""
    videos = connection.collection("videos", latest=True)
    document = await videos.find_one({"_id": content})
    if document is not None and "open" in document:
        check_identity_document(document)
        await videos.update_one(
            {"_id": content, "open": True, INCARNATION: document[INCARNATION]},
            {"$set": {CLEANUP: _DELETE_JOB}, "$unset": {"open": ""}},
        )
        document = await videos.find_one({"_id": content})
    if document is not None:
        await _clean_up(connection, document)


async def list_jobs(connection: MongoConnection) -> list[IngestJob]:
    """Return the unfinished jobs, see :meth:`Catalog.list_jobs`."""
    videos = connection.collection("videos", latest=True)
    for document in await videos.find({CLEANUP: {"$in": [_DELETE_JOB, _DELETE_UNCOMMITTED]}}).to_list(None):
        await _clean_up(connection, document)
    documents = await videos.find({"open": True}, {"stages": 0}).to_list(None)
    return sorted((parse_job(document) for document in documents), key=lambda job: job.content)


async def find_last_video(connection: MongoConnection, *, latest: bool = False) -> Any:
    """Return the document of the last video, or None if there is no video."""
    videos = connection.collection("videos", latest=latest)
    documents = await videos.find({"number": {"$gte": 0}}).sort("number", -1).limit(1).to_list(1)
    return documents[0] if documents else None


async def _clean_up(connection: MongoConnection, document: Mapping[str, Any]) -> None:
    """Delete an abandoned job, or the uncommitted chunks of a video."""
    videos, parts = connection.collection("videos", latest=True), connection.collection("parts", latest=True)
    if CLEANUP not in document:
        return
    check_identity_document(document)
    check_field(
        f"video {document['_id']}", CLEANUP, document[CLEANUP], text(pattern=f"{_DELETE_JOB}|{_DELETE_UNCOMMITTED}")
    )
    key_range = build_key_range(document[INCARNATION])
    same_state = {name: document[name] for name in ("_id", INCARNATION, CLEANUP)}
    if document[CLEANUP] == _DELETE_JOB:
        await parts.delete_many(key_range)
        await videos.delete_one(same_state)
        return
    uncommitted = [
        part["_id"]
        async for part in parts.find(key_range, {"_id": 1, REVISIONS: 1})
        if document[REVISION] not in check_part_document(part, REVISIONS)[REVISIONS]
    ]
    for first in range(0, len(uncommitted), _BATCH_DOCUMENTS):
        await parts.delete_many({"_id": {"$in": uncommitted[first : first + _BATCH_DOCUMENTS]}})
    await videos.update_one(same_state, {"$unset": {CLEANUP: ""}})


def _require_open_job(
    connection: MongoConnection, content: str, document: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if document is not None and "open" in document:
        return check_job_document(document)
    committed = document is not None and "number" in document
    reason = "was committed already" if committed else "was never started, or was abandoned"
    raise CatalogError(f"the job of {content} {reason}", address=connection.url)


async def _check_name_is_free(connection: MongoConnection, content: str, name: str) -> None:
    other = await connection.collection("videos", latest=True).find_one(
        {"name": name}, {"_id": 1, "number": 1, "source": 1}
    )
    if other is not None and other["_id"] != content:
        raise NameConflict(
            f"the archive has a video {name!r} already, number {other.get('number')}, with other content, from "
            f"{make_printable(other.get('source'), _MAX_SOURCE_CHARACTERS)}: choose another name= (or a template of "
            "names, such as '{grandparent}/{parent}/{name}')",
            stream=name,
            address=connection.url,
        )
