"""A catalog in MongoDB, for archives that several machines write and read."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pymongo.errors
from typing_extensions import override

from streamloader.archive.catalog.base import (
    SCHEMA_VERSION,
    Catalog,
    CatalogHeader,
    ChunkRow,
    IngestJob,
    LocatedChunks,
    Place,
    Snapshot,
    StagedChunk,
    VideoRow,
)
from streamloader.archive.catalog.mongo import writes
from streamloader.archive.catalog.mongo.connection import MongoAddress, MongoConnection
from streamloader.archive.catalog.mongo.documents import (
    HEARTBEAT,
    INDEXES,
    build_header_document,
    build_place_document,
    get_changes,
    parse_header,
)
from streamloader.archive.catalog.mongo.integrity import find_problems
from streamloader.archive.catalog.mongo.reads import MongoReader
from streamloader.archive.catalog.query import MetadataQuery
from streamloader.archive.catalog.validation import check_chunk, check_job, check_places, check_video
from streamloader.errors import CatalogError, CatalogExists, CatalogNotFound, CatalogTooNew, ConfigError

__all__ = ["MongoCatalog"]

T = TypeVar("T")


class MongoCatalog(Catalog):
    """A catalog in collections of a MongoDB database, on a single server or a replica set without sharding.

    Acknowledged writes are in the journals of a majority of servers, and reads return only such writes. Transactions
    are not needed. A call waits up to `timeout` for a server that restarts, or for the election of a new primary.

    Args:
        url: ``mongodb://[user:password@]host[:port][,host...]/database?archive=NAME&...`` or ``mongodb+srv://...``.
            Database and archive default to ``streamloader``. The names of all collections start with the archive's
            name. ``driver`` is ``motor`` (default) or ``pymongo``. All other options are passed to the driver.
        timeout: Time limit of one call in seconds.
        client: Motor ``AsyncIOMotorClient`` or PyMongo ``AsyncMongoClient`` of this event loop. It is used unchanged
            and stays open; only database and archive of `url` apply then.
        archive: Name of the archive. Defaults to the option of the url.
        driver: Name of the driver. Defaults to the option of the url.
        **options: Options for the driver's client, such as ``username``, ``password``, ``tlsCAFile``.

    Raises:
        ConfigError: If the url is malformed.
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
            raise ConfigError(f"timeout={timeout} must be more than 0 seconds")
        address = MongoAddress(url, archive, driver)
        self.url = address.url
        self.timeout = timeout
        self._connection = MongoConnection(address, timeout, client, options)
        self._schema_checked = False
        self._indexes_created = False
        self._known_places: set[int] = set()  # places are never removed
        self._known_codings: set[str] = set()
        self._reader = MongoReader(self._connection)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    async def _call(self, description: str, work: Callable[[], Awaitable[T]], *, writes_rows: bool = False) -> T:
        async def call_with_checks() -> T:
            if not self._schema_checked:
                await self._read_header()
            if writes_rows and not self._indexes_created:  # numbers are unique only with the indexes
                await self._create_indexes()
            return await work()

        return await self._connection.call(description, call_with_checks)

    def _build_error(self, message: str) -> CatalogError:
        return CatalogError(f"{self.url}: {message}", address=self.url)

    # --- the whole catalog -------------------------------------------------------------------------------------------

    @override
    async def create(self, places: Sequence[Place]) -> CatalogHeader:
        header = CatalogHeader(uuid.uuid4().hex, SCHEMA_VERSION, time.time(), check_places(places))

        async def create() -> CatalogHeader:
            await self._create_indexes()
            if await self._connection.collection("videos", latest=True).find_one({}, {"_id": 1}) is not None:
                document = await self._connection.collection("archive").find_one({"_id": "header"})
                if document is None or document.get("archive") != header.archive_id:
                    raise CatalogExists(f"{self.url}: there is a catalog already", address=self.url)
            try:
                await self._connection.collection("archive").insert_one(build_header_document(header))
            except pymongo.errors.DuplicateKeyError as error:
                document = await self._connection.collection("archive", latest=True).find_one({"_id": "header"})
                # The same archive: an earlier attempt created it, but the reply was lost.
                if document is None or document.get("archive") != header.archive_id:
                    raise CatalogExists(f"{self.url}: there is a catalog already", address=self.url) from error
            self._schema_checked = True
            return header

        return await self._connection.call("creating the catalog", create)

    @override
    async def get_header(self) -> CatalogHeader:
        return await self._connection.call("reading the header", self._read_header)

    async def _read_header(self) -> CatalogHeader:
        document = await self._connection.collection("archive").find_one({"_id": "header"})
        if document is None:
            raise CatalogNotFound(
                f"{self.url}: there is no catalog: create one with Archive.create(), or correct database and archive=",
                address=self.url,
            )
        version = document.get("schema")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise CatalogTooNew(
                f"{self.url}: the catalog has schema version {version}, but this version of streamloader supports "
                f"{SCHEMA_VERSION}: upgrade streamloader",
                address=self.url,
            )
        if version != SCHEMA_VERSION:
            document = await self._migrate(document)
        self._schema_checked = True
        header = parse_header(document)
        self._known_places = {place.number for place in header.places}
        return header

    async def _migrate(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Migrate an older schema. Several processes can do this at the same time."""
        if document.get("schema") != 0:
            raise self._build_error(f"the catalog has schema version {document.get('schema')!r}, which does not exist")
        # Schema version 0 did not store how videos were made.
        await self._connection.collection("videos").update_many(
            {"number": {"$gte": 0}, "origin": {"$exists": False}}, {"$set": {"origin": "{}"}}
        )
        archive = self._connection.collection("archive")
        await archive.update_one({"_id": "header", "schema": 0}, {"$set": {"schema": 1}})
        return await archive.find_one({"_id": "header"}) or document

    async def _create_indexes(self) -> None:
        for name, indexes in INDEXES.items():
            collection = self._connection.collection(name)
            for keys, options in indexes:
                await collection.create_index([(key, 1) for key in keys], **options)
        self._indexes_created = True

    @override
    async def set_places(self, places: Sequence[Place]) -> CatalogHeader:
        async def change() -> CatalogHeader:
            archive = self._connection.collection("archive", latest=True)
            while True:
                document = await archive.find_one({"_id": "header"})
                if document is None:
                    return await self._read_header()
                checked = check_places(places, parse_header(document).places)
                changes = get_changes(document)
                update = {"places": [build_place_document(place) for place in checked], "changes": changes + 1}
                condition = {"_id": "header", "changes": changes}
                if (await archive.update_one(condition, {"$set": update})).matched_count:
                    return parse_header(document | update)

        return await self._call("changing the places", change)

    @override
    async def get_snapshot(self) -> Snapshot:
        return await self.count_videos()

    @override
    async def find_problems(self) -> list[str]:
        # Reads all rows. Each video is one call with its own deadline.
        header = await self._call("reading the header", self._read_header)
        return [line async for line in find_problems(self._connection, header)]

    @override
    async def aclose(self) -> None:
        # A client of the caller stays open.
        await self._connection.aclose()

    # --- reading -----------------------------------------------------------------------------------------------------

    @override
    async def locate_frames(self, start: int, stop: int) -> list[LocatedChunks]:
        if start >= stop:
            return []
        return await self._call(
            f"looking up the frames [{start}, {stop})", lambda: self._reader.locate_frames(start, stop)
        )

    @override
    async def get_chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        return await self._call("looking up chunks", lambda: self._reader.get_chunks(content, start, stop))

    @override
    async def get_indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        return await self._call("reading frame indexes", lambda: self._reader.get_indexes(content, numbers))

    @override
    async def get_codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        return await self._call("reading codings", lambda: self._reader.get_codings(keys))

    @override
    async def get_video(self, number: int) -> VideoRow | None:
        return await self._find_video({"number": number})

    @override
    async def get_video_by_name(self, name: str) -> VideoRow | None:
        return await self._find_video({"name": name})

    @override
    async def find_names(self, text: str, *, stop: int | None = None) -> list[str]:
        return await self._call("looking up names", lambda: self._reader.find_names(text, stop))

    @override
    async def get_video_by_content(self, content: str) -> VideoRow | None:
        return await self._find_video({"_id": content, "number": {"$gte": 0}})

    @override
    async def get_video_at(self, time_ns: int) -> VideoRow | None:
        return await self._find_video({"nanoseconds": {"$lte": time_ns}}, ("nanoseconds", "number"))

    async def _find_video(self, condition: Mapping[str, Any], last_by: Sequence[str] = ()) -> VideoRow | None:
        return await self._call("looking up a video", lambda: self._reader.find_video(condition, last_by))

    @override
    async def find_videos(
        self, where: Mapping[str, Any] | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[VideoRow, None]:
        # Each page is one call with its own deadline.
        query = MetadataQuery(where)
        reader = self._reader
        last: int | None = max(start, 0) - 1
        while last is not None:
            after = last
            page, last = await self._call("finding videos", lambda: reader.find_page(query, after, stop))  # noqa: B023
            for video in page:
                yield video

    @override
    async def count_videos(self, where: Mapping[str, Any] | None = None, *, stop: int | None = None) -> Snapshot:
        if not MetadataQuery(where):
            return await self._call("counting", lambda: self._reader.get_snapshot(stop))
        videos = frames = chunks = duration_ns = 0
        async for video in self.find_videos(where, stop=stop):
            videos += 1
            frames += video.frames
            chunks += video.chunks
            duration_ns += video.duration_ns
        return Snapshot(videos, frames, chunks, duration_ns)

    @override
    async def list_chunk_paths(self, place: int) -> AsyncGenerator[tuple[str, str], None]:
        # Each page is one call with its own deadline.
        reader = self._reader
        last: str | None = ""
        while last is not None:
            after = last
            page, last = await self._call("listing chunks", lambda: reader.list_paths_page(place, after))  # noqa: B023
            for content_and_path in page:
                yield content_and_path

    # --- adding ------------------------------------------------------------------------------------------------------

    @override
    async def begin_job(self, job: IngestJob) -> VideoRow | None:
        check_job(job)
        return await self._call("starting a job", lambda: writes.begin_job(self._connection, job), writes_rows=True)

    @override
    async def record_heartbeat(self, content: str, now: float) -> None:
        async def update() -> None:
            videos = self._connection.collection("videos", latest=True)
            await videos.update_one({"_id": content, "open": True}, {"$set": {f"work.{HEARTBEAT}": now}})

        await self._call("recording the heartbeat of a job", update)

    @override
    async def stage_chunks(self, chunks: Sequence[StagedChunk]) -> None:
        if not chunks:
            return
        if len({chunk.row.content for chunk in chunks}) > 1:
            raise self._build_error("chunks of several jobs cannot be staged together: all or none are stored")
        for chunk in chunks:
            check_chunk(chunk)
        chunks = list({chunk.row.number: chunk for chunk in chunks}.values())
        stage = writes.make_token()
        new_codings = {
            chunk.row.coding: chunk.coding for chunk in chunks if chunk.row.coding not in self._known_codings
        }

        async def store() -> None:
            for place in {chunk.row.place for chunk in chunks} - self._known_places:
                await self._read_header()  # another process may have added the place
                if place not in self._known_places:
                    raise self._build_error(f"there is no place {place}: add it with set_places() first")
            if new_codings:
                await writes.store_codings(self._connection, new_codings)
            await writes.stage_chunks(self._connection, chunks, stage)

        await self._call("staging chunks", store, writes_rows=True)
        self._known_codings.update(new_codings)

    @override
    async def get_staged_chunks(self, content: str) -> list[ChunkRow]:
        async def read() -> list[ChunkRow]:
            videos = self._connection.collection("videos", latest=True)
            job = await videos.find_one({"_id": content, "open": True})
            if job is None:
                return []
            return [row for _, row in await writes.get_counted_chunks(self._connection, job)]

        return await self._call("looking up chunks of a job", read)

    @override
    async def commit_video(self, video: VideoRow) -> VideoRow:
        check_video(video)

        async def commit() -> VideoRow:
            while (committed := await writes.try_to_commit(self._connection, video)) is None:
                pass  # try_to_commit() sleeps between attempts, and the call has a deadline
            return committed

        return await self._call(f"committing {video.name!r}", commit, writes_rows=True)

    @override
    async def abandon_job(self, content: str) -> None:
        await self._call("abandoning a job", lambda: writes.abandon_job(self._connection, content))

    @override
    async def list_jobs(self) -> list[IngestJob]:
        return await self._call("looking up jobs", lambda: writes.list_jobs(self._connection))
