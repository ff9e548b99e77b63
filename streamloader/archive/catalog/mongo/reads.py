"""Reads of a MongoDB catalog. Each needs few queries, which the database's indexes answer."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, LocatedChunks, Snapshot, VideoRow
from streamloader.archive.catalog.fields import text as text_check
from streamloader.archive.catalog.fields import whole_number
from streamloader.archive.catalog.mongo.connection import MongoConnection
from streamloader.archive.catalog.mongo.documents import (
    INCARNATION,
    PLACE_KEY,
    REVISION,
    REVISIONS,
    WITHOUT_INDEX,
    build_key_range,
    check_identity_document,
    check_part_document,
    check_stop,
    check_video_document,
    parse_chunk,
    parse_index,
    parse_part_path,
    parse_video,
)
from streamloader.archive.catalog.mongo.filters import build_server_filter
from streamloader.archive.catalog.mongo.writes import find_last_video, get_counted_chunks
from streamloader.archive.catalog.query import MetadataQuery
from streamloader.archive.catalog.rows import (
    MAX_FRAMES,
    MAX_UNCOUNTED_VIDEOS,
    check_consecutive,
    check_field,
    check_located,
    check_video_count,
    parse_coding,
    raise_malformed,
)
from streamloader.errors import CatalogError

__all__ = ["MongoReader"]

_PAGE_DOCUMENTS: Final = 500
_FIRST_PAGE_VIDEOS: Final = 2  # a range of frames usually lies in one or two videos
_BATCH_VIDEOS: Final = 32  # videos whose chunks are read by one query
_MAX_CACHED_VIDEOS: Final = 4096
_name: Final = text_check()
_count: Final = whole_number(0, MAX_FRAMES)


class MongoReader:
    """Reads rows. The caller enforces the deadline.

    Args:
        connection: Connection of the catalog.
    """

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        # Incarnation and revision of videos by content. They never change.
        self._chunk_keys: OrderedDict[str, tuple[str, str]] = OrderedDict()

    # --- frames ------------------------------------------------------------------------------------------------------

    async def locate_frames(self, start: int, stop: int) -> list[LocatedChunks]:
        """Return the chunks that hold a range of frames, see :meth:`Catalog.locate_frames`."""
        documents = await self._find_videos_with_frames(start, stop)
        if not documents or documents[-1]["stop"] < stop or start < 0:
            if start >= 0:
                await self._explain_missing_video()
            raise self._build_error(f"there are no frames [{start}, {stop}) in the archive", offset=start)
        located: list[LocatedChunks] = []
        for first in range(0, len(documents), _BATCH_VIDEOS):
            located += await self._locate_in_videos(documents[first : first + _BATCH_VIDEOS], start, stop)
        check_consecutive(located, start, stop)
        return located

    async def _explain_missing_video(self) -> None:
        """Raise an error that names the document because of which frames were not found, if there is one."""
        async for document in self._connection.collection("videos").find({"number": {"$exists": True}}):
            video = parse_video(check_video_document(document))
            check_stop(f"video {video.number} ({video.content!r})", document, video.start + video.frames)

    async def _explain_missing_chunk(self, document: Mapping[str, Any]) -> None:
        """Raise an error that names the document of a chunk because of which it was not found, if there is one."""
        condition = build_key_range(document[INCARNATION])
        async for part in self._connection.collection("parts").find(condition, WITHOUT_INDEX):
            check_part_document(part, REVISIONS)
            if document[REVISION] in part[REVISIONS]:
                row = parse_chunk(part)
                label = f"chunk {row.number} of video {row.content!r}"
                check_stop(label, part, row.first_frame + row.frames)
                if row.frames > document["longest"]:
                    raise_malformed(label, "frames", f"is {row.frames}, more than longest of its video")

    async def _find_videos_with_frames(self, start: int, stop: int) -> list[Any]:
        videos = self._connection.collection("videos")
        documents: list[Any] = []
        after, limit = start, _FIRST_PAGE_VIDEOS
        while not documents or documents[-1]["stop"] < stop:
            page = await videos.find({"stop": {"$gt": after}}).sort("stop", 1).limit(limit).to_list(limit)
            if not page:
                break
            documents += map(check_video_document, page)
            after, limit = page[-1]["stop"], _PAGE_DOCUMENTS
        return [
            document
            for document in documents
            if check_field(f"video {document['_id']}", "start", document.get("start"), _count) < stop
        ]

    async def _locate_in_videos(self, documents: Sequence[Any], start: int, stop: int) -> list[LocatedChunks]:
        """Return these videos with their chunks that hold frames of [start, stop)."""
        parts = self._connection.collection("parts")
        conditions: list[dict[str, Any]] = []
        whole_videos: list[str] = []
        videos = [parse_video(document) for document in documents]
        for document, video in zip(documents, videos, strict=True):
            self._cache_chunk_key(document)
            low, high = start - video.start, stop - video.start
            if low <= 0 and high >= video.frames:
                whole_videos.append(document[REVISION])
            else:  # the length of the longest chunk limits how many chunks the server has to scan
                first = {"$gt": low - document["longest"], "$lt": high}
                conditions.append({REVISIONS: document[REVISION], "first": first, "stop": {"$gt": low}})
        if whole_videos:
            conditions.append({REVISIONS: {"$in": whole_videos}})
        rows: dict[str, list[ChunkRow]] = {video.content: [] for video in videos}
        for condition in conditions:
            async for part in parts.find(condition, WITHOUT_INDEX):
                row = parse_chunk(part)
                if row.content in rows:
                    rows[row.content].append(row)
        located = []
        for document, video in zip(documents, videos, strict=True):
            chunks = sorted(rows[video.content], key=lambda row: row.first_frame)
            try:
                located.append(check_located(video, chunks, start, stop))
            except CatalogError:
                await self._explain_missing_chunk(document)
                raise
        return located

    # --- chunks ------------------------------------------------------------------------------------------------------

    async def get_chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        """Return chunks of a video, see :meth:`Catalog.get_chunks`."""
        condition = await self._get_chunk_condition(content, max(start, 0), stop)
        if condition is None or stop <= start:
            return []
        cursor = self._connection.collection("parts").find(condition, WITHOUT_INDEX).sort("_id", 1)
        return [parse_chunk(part) async for part in cursor]

    async def get_indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        """Return encoded frame indexes, see :meth:`Catalog.get_indexes`."""
        indexes: dict[int, bytes] = {}
        parts = self._connection.collection("parts")
        for start, stop in _group_ranges(numbers):
            condition = await self._get_chunk_condition(content, start, stop)
            if condition is not None:
                async for part in parts.find(condition, {"number": 1, "index": 1}):
                    number, index = parse_index(part)
                    indexes[number] = index
        for number in numbers:
            if number not in indexes:
                raise self._build_error(f"there is no frame index of chunk {number} of {content}", offset=number)
        return [indexes[number] for number in numbers]

    async def get_codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        """Return codec parameters, see :meth:`Catalog.get_codings`."""
        codings: dict[str, Mapping[str, Any]] = {}
        async for document in self._connection.collection("codings").find({"_id": {"$in": list(set(keys))}}):
            codings[document["_id"]] = parse_coding(document["_id"], "json", document.get("json"))
        for key in keys:
            if key not in codings:
                raise self._build_error(f"there is no coding {key!r}")
        return [codings[key] for key in keys]

    async def _get_chunk_condition(self, content: str, start: int, stop: int) -> dict[str, Any] | None:
        """Return the condition for the chunks of a video numbered [start, stop), or None if there is no video."""
        chunk_key = self._chunk_keys.get(content)
        if chunk_key is None:
            condition = {"_id": content, "number": {"$gte": 0}}
            projection = {INCARNATION: 1, REVISION: 1}
            document = await self._connection.collection("videos").find_one(condition, projection)
            if document is None:
                return None
            chunk_key = self._cache_chunk_key(check_identity_document(document))
        incarnation, revision = chunk_key
        return build_key_range(incarnation, start, stop) | {REVISIONS: revision}

    def _cache_chunk_key(self, document: Mapping[str, Any]) -> tuple[str, str]:
        chunk_key = self._chunk_keys[document["_id"]] = str(document[INCARNATION]), str(document[REVISION])
        self._chunk_keys.move_to_end(document["_id"])
        if len(self._chunk_keys) > _MAX_CACHED_VIDEOS:
            self._chunk_keys.popitem(last=False)
        return chunk_key

    # --- videos ------------------------------------------------------------------------------------------------------

    async def find_video(self, condition: Mapping[str, Any], last_by: Sequence[str] = ()) -> VideoRow | None:
        """Return a video that fulfils a condition, or None. `last_by` are fields whose largest values are wanted."""
        cursor = self._connection.collection("videos").find(condition)
        if last_by:
            cursor = cursor.sort([(key, -1) for key in last_by])
        documents = await cursor.limit(1).to_list(1)
        return parse_video(documents[0]) if documents else None

    async def find_names(self, text: str, stop: int | None) -> list[str]:
        """Return the names of the videos numbered below `stop` that contain a text, in order of the videos."""
        number = {"$gte": 0} if stop is None else {"$gte": 0, "$lt": stop}
        condition = {"number": number, "name": {"$regex": re.escape(text)}}
        cursor = self._connection.collection("videos").find(condition, {"name": 1}).sort("number", 1)
        return [check_field("a video", "name", document.get("name"), _name) async for document in cursor]

    async def find_page(self, query: MetadataQuery, after: int, stop: int | None) -> tuple[list[VideoRow], int | None]:
        """Scan one page of videos numbered above `after` and below `stop`.

        Returns:
            The videos that match, and the number to continue after. It is None after the last page.
        """
        number: dict[str, int] = {"$gt": after}
        if stop is not None:
            number["$lt"] = stop
        condition = {"number": number} | build_server_filter(query)
        cursor = self._connection.collection("videos").find(condition).sort("number", 1).limit(_PAGE_DOCUMENTS)
        documents = await cursor.to_list(_PAGE_DOCUMENTS)
        videos = [parse_video(document) for document in documents]
        last = videos[-1].number if len(videos) == _PAGE_DOCUMENTS else None
        return [video for video in videos if query(video.metadata)], last

    async def get_snapshot(self, stop: int | None) -> Snapshot:
        """Return the extent of the videos numbered below `stop`; None stands for all videos."""
        if stop is None:
            last = await find_last_video(self._connection)
        elif stop <= 0:
            last = None
        else:
            cursor = self._connection.collection("videos").find({"number": {"$gte": 0, "$lt": stop}})
            documents = await cursor.sort("number", -1).limit(1).to_list(1)
            last = documents[0] if documents else None
        if last is None:
            return Snapshot()
        video = parse_video(last)
        if video.number >= MAX_UNCOUNTED_VIDEOS:
            condition = {"number": {"$gte": 0, "$lte": video.number}}
            check_video_count(video, await self._connection.collection("videos").count_documents(condition))
        return Snapshot(
            video.number + 1,
            video.start + video.frames,
            check_video_document(last)["chunks_before"] + video.chunks,
            video.start_ns + video.duration_ns,
        )

    async def list_paths_page(self, place: int, after: str) -> tuple[list[tuple[str, str]], str | None]:
        """Scan one page of the chunks in a place, of videos and of jobs.

        Returns:
            The (content, path) of the chunks that count, and the key to continue after. It is None after the last page.
        """
        condition = {PLACE_KEY: {"$gt": max(after, f"{place}:"), "$lt": f"{place};"}}  # ";" sorts right after ":"
        projection = {"content": 1, "number": 1, "digest": 1, "path": 1, REVISIONS: 1, PLACE_KEY: 1}
        cursor = self._connection.collection("parts", latest=True).find(condition, projection)
        parts = await cursor.sort(PLACE_KEY, 1).limit(_PAGE_DOCUMENTS).to_list(_PAGE_DOCUMENTS)
        for part in parts:
            check_part_document(part, "content", REVISIONS, PLACE_KEY)
        videos = self._connection.collection("videos", latest=True)
        revisions: dict[str, str] = {}  # of videos, by content
        job_chunks: set[str] = set()  # keys of the chunks that count for jobs
        async for document in videos.find({"_id": {"$in": sorted({part["content"] for part in parts})}}):
            if "number" in document:
                revisions[document["_id"]] = check_identity_document(document)[REVISION]
            elif "open" in document:
                job_chunks.update(key for key, _ in await get_counted_chunks(self._connection, document))
        page = [
            parse_part_path(part)
            for part in parts
            if part["_id"] in job_chunks or revisions.get(part["content"]) in part[REVISIONS]
        ]
        return page, parts[-1][PLACE_KEY] if len(parts) == _PAGE_DOCUMENTS else None

    def _build_error(self, message: str, **attributes: Any) -> CatalogError:
        return CatalogError(f"{self._connection.url}: {message}", address=self._connection.url, **attributes)


def _group_ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Group numbers into ranges [start, stop) of consecutive numbers. Negative numbers are dropped."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1]:
            ranges[-1][1] += 1
        elif number >= 0:
            ranges.append([number, number + 1])
    return [(start, stop) for start, stop in ranges]
