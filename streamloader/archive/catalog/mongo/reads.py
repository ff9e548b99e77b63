"""What is looked up in a catalog of MongoDB, in few questions that its indexes answer."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, Located, Snapshot, VideoRow
from streamloader.archive.catalog.mongo.connection import Connection
from streamloader.archive.catalog.mongo.documents import WITHOUT_INDEX, chunk_row, key_range, video_row
from streamloader.archive.catalog.mongo.filters import server_filter
from streamloader.archive.catalog.mongo.writes import last_video, staged
from streamloader.archive.catalog.query import Where
from streamloader.errors import CatalogError

__all__ = ["Reader"]

_PAGE: Final = 500  # documents of one answer
_FEW: Final = 2  # videos that a range of frames is expected to touch
_AT_ONCE: Final = 32  # videos whose chunks are asked for in one go
_KNOWN: Final = 4096  # videos of which it is remembered where their chunks are


class Reader:
    """Looks things up; whoever calls it sets the deadline.

    Args:
        connection: to the catalog.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()  # content -> life and rev, which stay

    # --- frames ------------------------------------------------------------------------------------------------------

    async def locate(self, start: int, stop: int) -> list[Located]:
        """See :meth:`Catalog.locate`."""
        documents = await self._videos_with(start, stop)
        if not documents or documents[-1]["stop"] < stop or start < 0:
            raise self._error(f"there are no frames [{start}, {stop}) in the archive", offset=start)
        found: list[Located] = []
        for first in range(0, len(documents), _AT_ONCE):
            found += await self._with_chunks(documents[first : first + _AT_ONCE], start, stop)
        return found

    async def _videos_with(self, start: int, stop: int) -> list[Any]:
        videos = self._connection.collection("videos")
        found: list[Any] = []
        after, most = start, _FEW
        while not found or found[-1]["stop"] < stop:
            more = await videos.find({"stop": {"$gt": after}}).sort("stop", 1).limit(most).to_list(most)
            if not more:
                break
            found += more
            after, most = more[-1]["stop"], _PAGE
        return [document for document in found if document["start"] < stop]

    async def _with_chunks(self, documents: Sequence[Any], start: int, stop: int) -> list[Located]:
        """Return these videos with those of their chunks that have frames of [start, stop)."""
        parts = self._connection.collection("parts")
        asked: list[dict[str, Any]] = []
        whole: list[str] = []
        for document in documents:
            self._learn(document)
            begin, end = start - document["start"], stop - document["start"]
            if begin <= 0 and end >= document["frames"]:
                whole.append(document["rev"])
            else:  # no chunk is longer than the longest: so few have to be looked at
                first = {"$gt": begin - document["longest"], "$lt": end}
                asked.append({"of": document["rev"], "first": first, "stop": {"$gt": begin}})
        if whole:
            asked.append({"of": {"$in": whole}})
        rows: dict[str, list[ChunkRow]] = {document["_id"]: [] for document in documents}
        for condition in asked:
            async for part in parts.find(condition, WITHOUT_INDEX):
                rows[part["content"]].append(chunk_row(part))
        return [self._located(video_row(document), rows[document["_id"]], start, stop) for document in documents]

    def _located(self, video: VideoRow, rows: list[ChunkRow], start: int, stop: int) -> Located:
        begin, end = max(start - video.start, 0), min(stop - video.start, video.frames)
        rows.sort(key=lambda row: row.first)
        reached = begin
        for row in rows:
            if row.first > reached or (row.first != reached and row is not rows[0]):
                break
            reached = row.first + row.frames
        if reached < end:
            raise self._error(
                f"the catalog has no chunk for frame {reached} of the video {video.name!r}",
                stream=video.name,
                offset=reached,
            )
        return Located(video, tuple(rows))

    # --- chunks ------------------------------------------------------------------------------------------------------

    async def chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        """See :meth:`Catalog.chunks`."""
        condition = await self._condition(content, max(start, 0), stop)
        if condition is None or stop <= start:
            return []
        found = self._connection.collection("parts").find(condition, WITHOUT_INDEX).sort("_id", 1)
        return [chunk_row(part) async for part in found]

    async def indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        """See :meth:`Catalog.indexes`."""
        found: dict[int, bytes] = {}
        parts = self._connection.collection("parts")
        for start, stop in _runs(numbers):
            condition = await self._condition(content, start, stop)
            if condition is not None:
                async for part in parts.find(condition, {"number": 1, "index": 1}):
                    found[part["number"]] = bytes(part["index"])
        for number in numbers:
            if number not in found:
                raise self._error(f"there is no frame index of chunk {number} of {content}", offset=number)
        return [found[number] for number in numbers]

    async def codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        """See :meth:`Catalog.codings`."""
        found: dict[str, Mapping[str, Any]] = {}
        async for document in self._connection.collection("codings").find({"_id": {"$in": list(set(keys))}}):
            try:
                found[document["_id"]] = json.loads(document["json"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._error(f"the coding {document['_id']!r} does not say what it should: {error!r}") from error
        for key in keys:
            if key not in found:
                raise self._error(f"there is no coding {key!r}")
        return [found[key] for key in keys]

    async def _condition(self, content: str, start: int, stop: int) -> dict[str, Any] | None:
        """Return the condition for chunks of a video that are numbered [start, stop); None if there is no video."""
        known = self._known.get(content)
        if known is None:
            condition = {"_id": content, "number": {"$gte": 0}}
            document = await self._connection.collection("videos").find_one(condition, {"life": 1, "rev": 1})
            if document is None:
                return None
            known = self._learn(document)
        life, rev = known
        return key_range(life, start, stop) | {"of": rev}

    def _learn(self, document: Mapping[str, Any]) -> tuple[str, str]:
        known = self._known[document["_id"]] = str(document["life"]), str(document["rev"])
        self._known.move_to_end(document["_id"])
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return known

    # --- videos ------------------------------------------------------------------------------------------------------

    async def one(self, condition: Mapping[str, Any], last_by: Sequence[str] = ()) -> VideoRow | None:
        """Return the video that fulfils a condition, the last one by these keys; None if there is none."""
        found = self._connection.collection("videos").find(condition)
        if last_by:
            found = found.sort([(key, -1) for key in last_by])
        documents = await found.limit(1).to_list(1)
        return video_row(documents[0]) if documents else None

    async def page(self, where: Where, after: int, stop: int | None) -> tuple[list[VideoRow], int | None]:
        """Return some videos that match and are numbered from after `after` on, and where the next page begins."""
        number: dict[str, int] = {"$gt": after}
        if stop is not None:
            number["$lt"] = stop
        condition = {"number": number} | server_filter(where)
        found = self._connection.collection("videos").find(condition).sort("number", 1).limit(_PAGE)
        documents = await found.to_list(_PAGE)
        videos = [video_row(document) for document in documents]
        last = videos[-1].number if len(videos) == _PAGE else None
        return [video for video in videos if where(video.metadata)], last

    async def snapshot(self, stop: int | None) -> Snapshot:
        """Return what the videos numbered below `stop` are in all."""
        if stop is None:
            last = await last_video(self._connection)
        elif stop <= 0:
            last = None
        else:
            below = self._connection.collection("videos").find({"number": {"$gte": 0, "$lt": stop}})
            documents = await below.sort("number", -1).limit(1).to_list(1)
            last = documents[0] if documents else None
        if last is None:
            return Snapshot()
        video = video_row(last)
        return Snapshot(
            video.number + 1,
            video.start + video.frames,
            last["chunks_before"] + video.chunks,
            video.nanoseconds + video.duration,
        )

    async def paths(self, place: int, after: str) -> tuple[list[tuple[str, str]], str | None]:
        """Return some chunks of a place, and where the next page begins: those of videos, and those that jobs keep."""
        condition = {"at": {"$gt": max(after, f"{place}:"), "$lt": f"{place};"}}  # ";" comes after ":"
        told = {"content": 1, "path": 1, "of": 1, "at": 1}
        found = self._connection.collection("parts", latest=True).find(condition, told).sort("at", 1).limit(_PAGE)
        parts = await found.to_list(_PAGE)
        videos = self._connection.collection("videos", latest=True)
        counting: dict[str, str] = {}  # content -> the rev that chunks of the video have
        kept: set[str] = set()  # chunks that jobs keep
        async for document in videos.find({"_id": {"$in": sorted({part["content"] for part in parts})}}):
            if "number" in document:
                counting[document["_id"]] = document["rev"]
            elif "open" in document:
                kept.update(key for key, _ in await staged(self._connection, document))
        page = [
            (part["content"], part["path"])
            for part in parts
            if part["_id"] in kept or counting.get(part["content"]) in part["of"]
        ]
        return page, parts[-1]["at"] if len(parts) == _PAGE else None

    def _error(self, message: str, **places: Any) -> CatalogError:
        return CatalogError(f"{self._connection.url}: {message}", address=self._connection.url, **places)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges that these numbers form."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1]:
            runs[-1][1] += 1
        elif number >= 0:
            runs.append([number, number + 1])
    return [(start, stop) for start, stop in runs]
