"""A catalog in MongoDB, for archives that many machines fill and read."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pymongo.errors

from streamloader.archive.catalog.base import (
    SCHEMA,
    Catalog,
    ChunkRow,
    Header,
    Job,
    Located,
    Place,
    Snapshot,
    StagedChunk,
    VideoRow,
)
from streamloader.archive.catalog.mongo import writes
from streamloader.archive.catalog.mongo.connection import Connection, MongoAddress
from streamloader.archive.catalog.mongo.documents import INDEXES, header_document, header_row, place_document
from streamloader.archive.catalog.mongo.integrity import find_problems
from streamloader.archive.catalog.mongo.reads import Reader
from streamloader.archive.catalog.query import Where
from streamloader.archive.catalog.validation import check_chunk, check_job, check_places, check_video
from streamloader.errors import CatalogError, CatalogExists, CatalogNotFound, CatalogTooNew, ConfigError

__all__ = ["MongoCatalog"]

T = TypeVar("T")


class MongoCatalog(Catalog):
    """Keeps an archive's catalog in collections of a MongoDB database: of a server or a replica set, not sharded.

    What is acknowledged is in the journals of a majority of servers, and what is read too. No transactions are needed.
    A server that restarts, or another that takes over, is waited for, up to `timeout`.

    Args:
        url: ``mongodb://[user:password@]host[:port][,host...]/database?archive=NAME&...`` or ``mongodb+srv://...``;
            without a database or an archive both are called ``streamloader``. The names of collections begin with the
            archive's. ``driver`` is ``motor`` (default) or ``pymongo``; all other options go to it.
        timeout: seconds that one call may take.
        client: a motor ``AsyncIOMotorClient`` or a PyMongo ``AsyncMongoClient`` of this event loop, which is used as it
            is and stays open; of `url`, then, only database and archive matter.
        archive: as in the url.
        driver: as in the url.
        **options: for the driver's client, such as ``username``, ``password``, ``tlsCAFile``.

    Raises:
        ConfigError: the url makes no sense.
    """

    schemes: ClassVar[tuple[str, ...]] = ("mongodb", "mongodb+srv")

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        client: Any = None,
        archive: str | None = None,
        driver: str | None = None,
        **options: Any,
    ) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout={timeout} has to be more than 0 seconds")
        address = MongoAddress(url, archive, driver)
        self.url = address.url
        self.timeout = timeout
        self._connection = Connection(address, timeout, client, options)
        self._checked = False  # whether the header was read and is of our form
        self._indexed = False
        self._places: set[int] = set()  # that are there: they stay
        self._codings: set[str] = set()  # that are there
        self._reader = Reader(self._connection)

    def __repr__(self) -> str:
        """Tell the address, without secrets."""
        return f"{type(self).__name__}({self.url!r})"

    async def _call(self, what: str, work: Callable[[], Awaitable[T]], *, adds: bool = False) -> T:
        async def checked() -> T:
            if not self._checked:
                await self._read_header()
            if adds and not self._indexed:  # without them, numbers would not be unique
                await self._make_indexes()
            return await work()

        return await self._connection.call(what, checked)

    def _error(self, message: str) -> CatalogError:
        return CatalogError(f"{self.url}: {message}", address=self.url)

    # --- as a whole --------------------------------------------------------------------------------------------------

    async def create(self, places: Sequence[Place]) -> Header:
        """See :meth:`Catalog.create`."""
        header = Header(uuid.uuid4().hex, SCHEMA, time.time(), check_places(places))

        async def create() -> Header:
            await self._make_indexes()
            if await self._connection.collection("videos", latest=True).find_one({}, {"_id": 1}) is not None:
                found = await self._connection.collection("archive").find_one({"_id": "header"})
                if found is None or found.get("archive") != header.archive:
                    raise CatalogExists(f"{self.url}: there is a catalog already", address=self.url)
            try:
                await self._connection.collection("archive").insert_one(header_document(header))
            except pymongo.errors.DuplicateKeyError as error:
                found = await self._connection.collection("archive", latest=True).find_one({"_id": "header"})
                if found is None or found.get("archive") != header.archive:  # else it was made, the answer was lost
                    raise CatalogExists(f"{self.url}: there is a catalog already", address=self.url) from error
            self._checked = True
            return header

        return await self._connection.call("making the catalog", create)

    async def header(self) -> Header:
        """See :meth:`Catalog.header`."""
        return await self._connection.call("reading the header", self._read_header)

    async def _read_header(self) -> Header:
        found = await self._connection.collection("archive").find_one({"_id": "header"})
        if found is None:
            raise CatalogNotFound(
                f"{self.url}: there is no catalog: make one with Archive.create(), or correct database and archive=",
                address=self.url,
            )
        schema = found.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise CatalogTooNew(
                f"{self.url}: the catalog has the form {schema}, and this version of streamloader knows {SCHEMA}: "
                "install a newer one",
                address=self.url,
            )
        if schema != SCHEMA:
            found = await self._bring_up(found)
        self._checked = True
        header = header_row(found)
        self._places = {place.number for place in header.places}
        return header

    async def _bring_up(self, found: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bring an older form to this one's, step by step; several may do so at once."""
        if found.get("schema") != 0:
            raise self._error(f"the catalog has the form {found.get('schema')!r}, which never was")
        # Form 0 did not keep how videos were made.
        await self._connection.collection("videos").update_many(
            {"number": {"$gte": 0}, "origin": {"$exists": False}}, {"$set": {"origin": "{}"}}
        )
        archive = self._connection.collection("archive")
        await archive.update_one({"_id": "header", "schema": 0}, {"$set": {"schema": 1}})
        return await archive.find_one({"_id": "header"}) or found

    async def _make_indexes(self) -> None:
        for name, indexes in INDEXES.items():
            collection = self._connection.collection(name)
            for keys, options in indexes:
                await collection.create_index([(key, 1) for key in keys], **options)
        self._indexed = True

    async def set_places(self, places: Sequence[Place]) -> Header:
        """See :meth:`Catalog.set_places`."""

        async def change() -> Header:
            archive = self._connection.collection("archive", latest=True)
            while True:
                found = await archive.find_one({"_id": "header"})
                if found is None:
                    return await self._read_header()
                wanted = check_places(places, header_row(found).places)
                changed = {"places": [place_document(place) for place in wanted], "changes": found["changes"] + 1}
                condition = {"_id": "header", "changes": found["changes"]}
                if (await archive.update_one(condition, {"$set": changed})).matched_count:
                    return header_row(found | changed)

        return await self._call("changing the places", change)

    async def snapshot(self) -> Snapshot:
        """See :meth:`Catalog.snapshot`."""
        return await self.count()

    async def problems(self) -> list[str]:
        """See :meth:`Catalog.problems`. It reads all rows; each video is one call with its own deadline."""
        header = await self._call("reading the header", self._read_header)
        return [line async for line in find_problems(self._connection, header)]

    async def aclose(self) -> None:
        """See :meth:`Catalog.aclose`. A client that was given stays open."""
        await self._connection.aclose()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def locate(self, start: int, stop: int) -> list[Located]:
        """See :meth:`Catalog.locate`."""
        if start >= stop:
            return []
        return await self._call(f"looking up the frames [{start}, {stop})", lambda: self._reader.locate(start, stop))

    async def chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        """See :meth:`Catalog.chunks`."""
        return await self._call("looking up chunks", lambda: self._reader.chunks(content, start, stop))

    async def indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        """See :meth:`Catalog.indexes`."""
        return await self._call("reading frame indexes", lambda: self._reader.indexes(content, numbers))

    async def codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        """See :meth:`Catalog.codings`."""
        return await self._call("reading codings", lambda: self._reader.codings(keys))

    async def video(self, number: int) -> VideoRow | None:
        """See :meth:`Catalog.video`."""
        return await self._one({"number": number})

    async def named(self, name: str) -> VideoRow | None:
        """See :meth:`Catalog.named`."""
        return await self._one({"name": name})

    async def containing(self, content: str) -> VideoRow | None:
        """See :meth:`Catalog.containing`."""
        return await self._one({"_id": content, "number": {"$gte": 0}})

    async def video_at(self, nanoseconds: int) -> VideoRow | None:
        """See :meth:`Catalog.video_at`."""
        return await self._one({"nanoseconds": {"$lte": nanoseconds}}, ("nanoseconds", "number"))

    async def _one(self, condition: Mapping[str, Any], last_by: Sequence[str] = ()) -> VideoRow | None:
        return await self._call("looking up a video", lambda: self._reader.one(condition, last_by))

    async def find(
        self, where: Mapping[str, Any] | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[VideoRow, None]:
        """See :meth:`Catalog.find`. Each page of videos is one call with its own deadline."""
        asked = Where(where)
        reader = self._reader
        last: int | None = max(start, 0) - 1
        while last is not None:
            after = last
            page, last = await self._call("looking for videos", lambda: reader.page(asked, after, stop))  # noqa: B023
            for video in page:
                yield video

    async def count(self, where: Mapping[str, Any] | None = None, *, stop: int | None = None) -> Snapshot:
        """See :meth:`Catalog.count`."""
        if not Where(where):
            return await self._call("counting", lambda: self._reader.snapshot(stop))
        videos = frames = chunks = nanoseconds = 0
        async for video in self.find(where, stop=stop):
            videos += 1
            frames += video.frames
            chunks += video.chunks
            nanoseconds += video.duration
        return Snapshot(videos, frames, chunks, nanoseconds)

    async def paths(self, place: int) -> AsyncGenerator[tuple[str, str], None]:
        """See :meth:`Catalog.paths`. Each page is one call with its own deadline."""
        reader = self._reader
        last: str | None = ""
        while last is not None:
            after = last
            page, last = await self._call("listing chunks", lambda: reader.paths(place, after))  # noqa: B023
            for found in page:
                yield found

    # --- adding ------------------------------------------------------------------------------------------------------

    async def begin(self, job: Job) -> VideoRow | None:
        """See :meth:`Catalog.begin`."""
        check_job(job)
        return await self._call("beginning a job", lambda: writes.begin(self._connection, job), adds=True)

    async def beat(self, content: str, now: float) -> None:
        """See :meth:`Catalog.beat`."""

        async def beat() -> None:
            videos = self._connection.collection("videos", latest=True)
            await videos.update_one({"_id": content, "open": True}, {"$set": {"work.beat": now}})

        await self._call("working on a job", beat)

    async def stage(self, chunks: Sequence[StagedChunk]) -> None:
        """See :meth:`Catalog.stage`."""
        if not chunks:
            return
        if len({chunk.row.content for chunk in chunks}) > 1:
            raise self._error("chunks of several jobs cannot be staged at once: they are kept all or none")
        for chunk in chunks:
            check_chunk(chunk)
        chunks = list({chunk.row.number: chunk for chunk in chunks}.values())
        name = writes.new_token()
        codings = {chunk.row.coding: chunk.coding for chunk in chunks if chunk.row.coding not in self._codings}

        async def stage() -> None:
            for place in {chunk.row.place for chunk in chunks} - self._places:
                await self._read_header()  # perhaps somebody has just added it
                if place not in self._places:
                    raise self._error(f"there is no place {place}: add it with set_places() first")
            if codings:
                await writes.put_codings(self._connection, codings)
            await writes.stage(self._connection, chunks, name)

        await self._call("keeping chunks", stage, adds=True)
        self._codings.update(codings)

    async def staged(self, content: str) -> list[ChunkRow]:
        """See :meth:`Catalog.staged`."""

        async def staged() -> list[ChunkRow]:
            videos = self._connection.collection("videos", latest=True)
            found = await videos.find_one({"_id": content, "open": True})
            return [] if found is None else [row for _, row in await writes.staged(self._connection, found)]

        return await self._call("looking up chunks of a job", staged)

    async def commit(self, video: VideoRow) -> VideoRow:
        """See :meth:`Catalog.commit`."""
        check_video(video)

        async def commit() -> VideoRow:
            while (added := await writes.try_to_commit(self._connection, video)) is None:
                pass  # it waits a moment itself, and the deadline is the caller's
            return added

        return await self._call(f"committing {video.name!r}", commit, adds=True)

    async def abandon(self, content: str) -> None:
        """See :meth:`Catalog.abandon`."""
        await self._call("abandoning a job", lambda: writes.abandon(self._connection, content))

    async def jobs(self) -> list[Job]:
        """See :meth:`Catalog.jobs`."""
        return await self._call("looking up jobs", lambda: writes.jobs(self._connection))
