"""Properties of MongoDB catalogs alone. The shared suite tests the properties of all catalogs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import motor.motor_asyncio
import pymongo
import pytest
from mongo_program import PLACES, add, chunks_of, content_of, job_of, video_of
from servers.mongo import names

from streamloader.archive.catalog.base import SCHEMA_VERSION
from streamloader.archive.catalog.mongo.catalog import MongoCatalog
from streamloader.errors import CatalogError, CatalogNotFound, CatalogTooNew, NameConflict

DRIVERS = ("motor", "pymongo")
on_one = pytest.mark.parametrize("mongo_server", names()[-1:], indirect=True)  # a second server would test nothing more


@pytest.fixture
def database(mongo_server):
    name = mongo_server.database()
    yield name
    mongo_server.direct.drop_database(name)


@contextlib.asynccontextmanager
async def catalog_of(server, database, **options):
    # The threads of motor's clients end half a second after these: so most tests take the other driver.
    catalog = MongoCatalog(server.url(database), **{"driver": "pymongo", **options})
    try:
        yield catalog
    finally:
        await catalog.aclose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_video_goes_in_and_is_found_by_either_driver(mongo_server, database, driver):
    async def play():
        async with catalog_of(mongo_server, database, driver=driver) as catalog:
            await catalog.create(PLACES)
            for number in range(3):
                added = await add(catalog, number)
                assert (added.number, added.start) == (number, 29 * number)
            assert await catalog.find_problems() == []
            assert (
                await catalog.get_video(1)
                == await catalog.get_video_by_name("video-1")
                == await catalog.get_video_by_content(content_of(1))
            )
            found = await catalog.locate_frames(19, 40)
            assert [(one.video.number, [row.number for row in one.chunks]) for one in found] == [
                (0, [2]),
                (1, [0, 1]),
            ]
            assert await catalog.get_indexes(content_of(1), [2, 0]) == [chunks_of(1)[n].index for n in (2, 0)]
            assert [video.number async for video in catalog.find_videos({"n": {"$gte": 1}})] == [1, 2]

    asyncio.run(play())


@pytest.mark.parametrize("kind", [motor.motor_asyncio.AsyncIOMotorClient, pymongo.AsyncMongoClient])
def test_a_client_that_is_given_is_used_as_it_is_and_stays_open(mongo_server, database, kind):
    async def play():
        client = kind(mongo_server.uri, serverSelectionTimeoutMS=10_000)
        catalog = MongoCatalog(f"mongodb://unused/{database}?archive=mine", client=client)
        await catalog.create(PLACES)
        await add(catalog, 0)
        await catalog.aclose()
        assert sorted(await client[database].list_collection_names()) == [
            "mine_archive", "mine_codings", "mine_parts", "mine_videos",
        ]  # fmt: skip
        again = MongoCatalog(f"mongodb://unused/{database}?archive=mine", client=client)
        assert (await again.get_snapshot()).videos == 1
        await again.aclose()
        closing = client.close()
        if closing is not None:
            await closing

    asyncio.run(play())


@on_one
def test_two_archives_live_in_one_database(mongo_server, database):
    async def play():
        async with (
            catalog_of(mongo_server, database, archive="first") as first,
            catalog_of(mongo_server, database, archive="second") as second,
        ):
            await first.create(PLACES)
            with pytest.raises(CatalogNotFound, match="archive=second"):
                await second.begin_job(job_of(0))
            await second.create(PLACES)
            await add(first, 0)
            assert await second.get_snapshot() == await second.count_videos(stop=0)
            assert (await first.get_header()).archive_id != (await second.get_header()).archive_id

    asyncio.run(play())


def test_a_chunk_that_is_staged_late_changes_no_video(mongo_server, database):
    async def play():
        async with catalog_of(mongo_server, database) as catalog, catalog_of(mongo_server, database) as other:
            await catalog.create(PLACES)
            await catalog.begin_job(job_of(0))
            await catalog.stage_chunks(chunks_of(0))
            await other.stage_chunks(chunks_of(0, place=1, tag="b")[1:2])
            assert [row.place for row in await catalog.get_staged_chunks(content_of(0))] == [0, 1, 0]
            await catalog.commit_video(video_of(0))
            with pytest.raises(CatalogError, match="committed already"):
                await other.stage_chunks(chunks_of(0, tag="c")[:1])
            assert [row.place for row in await other.get_chunks(content_of(0), 0, 9)] == [0, 1, 0]
            assert [path async for _, path in catalog.list_chunk_paths(0)] == [chunks_of(0)[n].row.path for n in (0, 2)]
        client = mongo_server.direct
        assert client[database]["streamloader_parts"].count_documents({}) == 3

    asyncio.run(play())


@pytest.mark.parametrize("cleanup", ["drop", "sweep"])
def test_the_cleanup_of_a_killed_writer_is_done_by_the_next(mongo_server, database, cleanup):
    async def play():
        async with catalog_of(mongo_server, database) as catalog:
            await catalog.create(PLACES)
            await catalog.begin_job(job_of(0))
            await catalog.stage_chunks(chunks_of(0))
            await catalog.stage_chunks(chunks_of(0, tag="b")[:1])
            direct = mongo_server.direct[database]
            videos, parts = (direct[f"streamloader_{name}"] for name in ("videos", "parts"))
            if cleanup == "drop":
                videos.update_one({"_id": content_of(0)}, {"$set": {"todo": "drop"}, "$unset": {"open": ""}})
                assert await catalog.list_jobs() == []
                assert (videos.count_documents({}), parts.count_documents({})) == (0, 0)
                assert await catalog.begin_job(job_of(0)) is None
                assert await catalog.get_staged_chunks(content_of(0)) == []
            else:
                await catalog.commit_video(video_of(0))
                old = parts.find_one({})
                parts.insert_one(old | {"_id": old["_id"] + "x", "of": []})
                videos.update_one({"_id": content_of(0)}, {"$set": {"todo": "sweep"}})
                assert await catalog.begin_job(job_of(0)) == await catalog.get_video(0)
                assert parts.count_documents({}) == 3
                assert "todo" not in videos.find_one({"_id": content_of(0)})

    asyncio.run(play())


def test_a_name_is_taken_only_once_even_by_jobs_that_began_together(mongo_server, database):
    async def play():
        async with catalog_of(mongo_server, database) as catalog:
            await catalog.create(PLACES)
            for number in (0, 1):
                await catalog.begin_job(job_of(number, name="same"))
                await catalog.stage_chunks(chunks_of(number))
            first = await catalog.commit_video(video_of(0, name="same"))
            with pytest.raises(NameConflict, match="'same' already, number 0"):
                await catalog.commit_video(video_of(1, name="same"))
            assert [job.content for job in await catalog.list_jobs()] == [content_of(1)]
            assert (await catalog.commit_video(video_of(1, name="other"))).start == first.frames

    asyncio.run(play())


@on_one
def test_a_frame_index_that_no_document_holds_is_refused_with_what_to_do(mongo_server, database):
    async def play():
        async with catalog_of(mongo_server, database) as catalog:
            await catalog.create(PLACES)
            await catalog.begin_job(job_of(0))
            whole = chunks_of(0)
            large = dataclasses.replace(whole[2], index=b"x" * (17 << 20))
            with pytest.raises(CatalogError, match=r"chunk 2 .* 17,825,792 bytes.*chunk_frames="):
                await catalog.stage_chunks([*whole[:2], large])
            assert await catalog.get_staged_chunks(content_of(0)) == []

    asyncio.run(play())


@on_one
def test_a_newer_schema_is_refused_by_every_call(mongo_server, database):
    async def play():
        async with catalog_of(mongo_server, database) as catalog:
            await catalog.create(PLACES)
        client = mongo_server.direct
        client[database]["streamloader_archive"].update_one({}, {"$set": {"schema": SCHEMA_VERSION + 1}})
        async with catalog_of(mongo_server, database) as catalog:
            for call in (
                catalog.get_header,
                catalog.get_snapshot,
                lambda: catalog.begin_job(job_of(0)),
                catalog.list_jobs,
            ):
                with pytest.raises(CatalogTooNew, match="upgrade streamloader"):
                    await call()
        client = mongo_server.direct
        assert client[database]["streamloader_videos"].count_documents({}) == 0

    asyncio.run(play())


@on_one
def test_an_older_schema_is_migrated(mongo_server, database):
    async def play():
        async with catalog_of(mongo_server, database) as catalog:
            await catalog.create(PLACES)
            await add(catalog, 0)
        client = mongo_server.direct
        client[database]["streamloader_archive"].update_one({}, {"$set": {"schema": 0}})
        client[database]["streamloader_videos"].update_one({}, {"$unset": {"origin": ""}})
        async with catalog_of(mongo_server, database) as catalog:
            assert (await catalog.get_video(0)).origin == {}
            assert (await catalog.get_header()).schema_version == SCHEMA_VERSION

    asyncio.run(play())


@on_one
def test_damage_is_named(mongo_server, database):
    async def play():
        async with catalog_of(mongo_server, database) as catalog:
            await catalog.create(PLACES)
            for number in range(3):
                await add(catalog, number)
            direct = mongo_server.direct[database]
            videos, parts = (direct[f"streamloader_{name}"] for name in ("videos", "parts"))
            parts.delete_one({"content": content_of(1), "number": 1})
            parts.update_one({"content": content_of(0), "number": 2}, {"$set": {"place": 7}})
            videos.update_one({"number": 2}, {"$set": {"start": 59}})
            direct["streamloader_codings"].delete_many({})
            with pytest.raises(CatalogError, match=r"no chunk for frame 10 of the video 'video-1'"):
                await catalog.locate_frames(30, 50)
            with pytest.raises(CatalogError, match="no frame index of chunk 1"):
                await catalog.get_indexes(content_of(1), [0, 1])
            problems = "\n".join(await catalog.find_problems())
            for line in (
                "place 7, which does not exist",
                "its start is 59, and should be 58",
                "video-1: chunk 1 should",
            ):
                assert line in problems
            assert problems.count("which does not exist") == 9  # a place, and the coding of each chunk

    asyncio.run(play())
