"""The shipped suite notices what is wrong with a kind of catalog: each fault fails the test that is meant for it."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile

import pytest

import streamloader as sl
from streamloader.archive.catalog.base import Place, Snapshot
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.testing import CatalogSuite
from streamloader.testing.catalogs.binding import make_sample_video


class Plain(SqliteCatalog):
    """A catalog without faults."""


class Suite(CatalogSuite):
    kind = Plain

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="suite-")

    def location(self):
        return f"{self.folder.name}/catalog.sqlite", {}

    def make_catalog(self, **options):
        return self.kind(self.location()[0], **options)


# --- lookups ---------------------------------------------------------------------------------------------------------


class OneFrameShort(Plain):
    async def locate_frames(self, start, stop):
        return await super().locate_frames(start, max(stop - 1, start))


class LocatesWhatIsNotThere(Plain):
    async def locate_frames(self, start, stop):
        frames = (await self.get_snapshot()).frames
        return await super().locate_frames(min(max(start, 0), frames), min(stop, frames))


class SortsIndexes(Plain):
    async def get_indexes(self, content, numbers):
        return await super().get_indexes(content, sorted(numbers))


class MissingIndexIsEmpty(Plain):
    async def get_indexes(self, content, numbers):
        try:
            return await super().get_indexes(content, numbers)
        except sl.errors.CatalogError:
            return [b""] * len(numbers)


class FirstThousand(Plain):
    async def locate_frames(self, start, stop):
        return [
            dataclasses.replace(held, chunks=held.chunks[:1000]) for held in await super().locate_frames(start, stop)
        ]


class CodingsOnce(Plain):
    async def get_codings(self, keys):
        return await super().get_codings(list(dict.fromkeys(keys)))


class NextVideo(Plain):
    async def get_video_at(self, time_ns):
        return await super().get_video_at(time_ns + 1)


class TruthIsOne(Plain):
    def find_videos(self, where=None, **options):
        where = {name: 1 if condition is True else condition for name, condition in (where or {}).items()}
        return super().find_videos(where, **options)


class AnyQuery(Plain):
    def find_videos(self, where=None, **options):
        try:
            return super().find_videos(where, **options)
        except sl.ConfigError:
            return super().find_videos(None, **options)


class PathsTwice(Plain):
    async def list_chunk_paths(self, place):
        async for pair in super().list_chunk_paths(place):
            yield pair
            yield pair


class CountsAll(Plain):
    async def count_videos(self, where=None, *, stop=None):
        return await super().count_videos(where)


class NoMetadata(Plain):
    async def commit_video(self, video):
        return await super().commit_video(dataclasses.replace(video, metadata={}))


class EmptyHasOne(Plain):
    async def get_snapshot(self):
        found = await super().get_snapshot()
        return found if found.videos else Snapshot(1, 0, 0, 0)


# --- writing ---------------------------------------------------------------------------------------------------------


class ShowsJobs(Plain):
    async def get_chunks(self, content, start, stop):
        return await super().get_chunks(content, start, stop) or (await self.get_staged_chunks(content))[start:stop]


class NewJobForgets(Plain):
    async def begin_job(self, job):
        await self.abandon_job(job.content)
        return await super().begin_job(job)


class NeverBeats(Plain):
    async def record_heartbeat(self, content, now):
        pass


class NeverAbandons(Plain):
    async def abandon_job(self, content):
        pass


class KeepsTheFirst(Plain):
    async def stage_chunks(self, chunks):
        there = {row.number for chunk in chunks[:1] for row in await self.get_staged_chunks(chunk.row.content)}
        await super().stage_chunks([chunk for chunk in chunks if chunk.row.number not in there])


class OneByOne(Plain):
    async def stage_chunks(self, chunks):
        for chunk in chunks:
            await super().stage_chunks([chunk])


class BeginsByItself(Plain):
    async def stage_chunks(self, chunks):
        for chunk in chunks[:1]:
            video = make_sample_video(1)
            await self.begin_job(dataclasses.replace(video.job, content=chunk.row.content))
        await super().stage_chunks(chunks)


class CommitsAnything(Plain):
    async def commit_video(self, video):
        held = await self.get_staged_chunks(video.content)
        if held:
            video = dataclasses.replace(video, chunks=len(held), frames=sum(row.frames for row in held))
        return await super().commit_video(video)


class NoChecks(Plain):
    async def commit_video(self, video):
        try:
            return await super().commit_video(video)
        except sl.ConfigError:
            return video


class RenamesTwins(Plain):
    async def commit_video(self, video):
        try:
            return await super().commit_video(video)
        except sl.errors.NameConflict:
            return await super().commit_video(dataclasses.replace(video, name=video.name + "~"))


class AddsAgain(Plain):
    async def begin_job(self, job):
        await super().begin_job(job)


class PlacesShrink(Plain):
    async def set_places(self, places):
        try:
            return await super().set_places(places)
        except sl.ConfigError:
            return await self.get_header()


class NumbersFromItsOwn(Plain):
    """Counts in the process, as if nobody else wrote."""

    async def commit_video(self, video):
        self.count_of = getattr(self, "count_of", -1) + 1
        return dataclasses.replace(await super().commit_video(video), number=self.count_of)


class FirstWins(Plain):
    async def commit_video(self, video):
        found = await super().commit_video(video)
        return dataclasses.replace(found, number=found.number + 1)


class CountsAhead(Plain):
    async def get_snapshot(self):
        found = await super().get_snapshot()
        return dataclasses.replace(found, chunks=found.chunks + len(await self.list_jobs()))


class CommitsEarly(Plain):
    async def list_jobs(self):
        return (await super().list_jobs())[1:]


# --- life ------------------------------------------------------------------------------------------------------------


class CreatesAgain(Plain):
    async def create(self, places):
        try:
            return await super().create(places)
        except sl.errors.CatalogExists:
            return await self.get_header()


class CreatesOnTheWay(Plain):
    async def get_header(self):
        try:
            return await super().get_header()
        except sl.errors.CatalogNotFound:
            return await self.create([Place(0, "/x")])


class HidesItsAddress(Plain):
    def __repr__(self):
        return "a catalog"


class AnyTimeout(Plain):
    def __init__(self, url, *, timeout=30.0):
        super().__init__(url, timeout=timeout if timeout > 0 else 1.0)


class OpensAgain(Plain):
    async def get_header(self):
        if not self._session._closed:
            return await super().get_header()
        again = Plain(self.path)
        try:
            return await again.get_header()
        finally:
            await again.aclose()


class KnowsItsOwnAlone(Plain):
    committed = 0

    async def commit_video(self, video):
        self.committed += 1
        return await super().commit_video(video)

    async def get_video(self, number):
        return await super().get_video(number) if number < self.committed else None


class MixesUp(Plain):
    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.busy = 0

    async def locate_frames(self, start, stop):
        self.busy += 1
        try:
            return await super().locate_frames(0 if self.busy > 1 else start, 1 if self.busy > 1 else stop)
        finally:
            self.busy -= 1


class StagesHalfWhenCancelled(Plain):
    def stage_chunks(self, chunks):
        return asyncio.ensure_future(self.stage_each(chunks))  # started at once, so that no coroutine is left unawaited

    async def stage_each(self, chunks):
        first = asyncio.ensure_future(super().stage_chunks(chunks[:1]))
        try:
            await asyncio.shield(first)
        finally:
            await first  # also when it is cancelled while that is under way, however long it takes
        await super().stage_chunks(chunks[1:])


class BreaksWhenLeft(Plain):
    async def find_videos(self, where=None, **options):
        try:
            async for row in super().find_videos(where, **options):
                yield row
        finally:
            await self.aclose()


class FindsInAnyCase(Plain):
    async def find_names(self, text, *, stop=None):
        names = await super().find_names("")
        return [name for name in names if text.lower() in name.lower()][:stop]


FAULTS = [
    (EmptyHasOne, "test_an_empty_catalog_has_nothing"),
    (NoMetadata, "test_rows_come_back_as_they_were_put"),
    (OneFrameShort, "test_every_range_is_located"),
    (LocatesWhatIsNotThere, "test_every_range_is_located"),
    (SortsIndexes, "test_chunks_and_indexes_by_number"),
    (MissingIndexIsEmpty, "test_chunks_and_indexes_by_number"),
    (FirstThousand, "test_many_chunks_of_one_video"),
    (CodingsOnce, "test_codings_by_key"),
    (NextVideo, "test_videos_by_time"),
    (TruthIsOne, "test_queries"),
    (AnyQuery, "test_refuses_invalid_queries"),
    (PathsTwice, "test_paths_of_a_place"),
    (CountsAll, "test_numbers_do_not_change_when_videos_are_added"),
    (ShowsJobs, "test_readers_do_not_see_jobs"),
    (NewJobForgets, "test_a_job_can_be_resumed"),
    (NeverBeats, "test_a_heartbeat_is_recorded"),
    (NeverAbandons, "test_an_abandoned_job_leaves_nothing"),
    (KeepsTheFirst, "test_chunks_in_any_order_and_again"),
    (OneByOne, "test_chunks_are_kept_all_or_none"),
    (BeginsByItself, "test_no_chunks_without_a_job"),
    (CommitsAnything, "test_a_video_that_is_not_whole_is_refused"),
    (NoChecks, "test_refuses_invalid_values"),
    (RenamesTwins, "test_names_are_unique"),
    (AddsAgain, "test_the_same_content_is_recognised"),
    (PlacesShrink, "test_places_grow_and_change"),
    (NumbersFromItsOwn, "test_many_writers"),
    (FirstWins, "test_many_writers_of_the_same"),
    (CountsAhead, "test_readers_see_whole_videos_while_others_write"),
    (CommitsEarly, "test_any_order_of_steps"),
    (CreatesAgain, "test_a_catalog_is_created_once"),
    (CreatesAgain, "test_only_one_of_many_creates_it"),
    (CreatesOnTheWay, "test_invalid_places_create_nothing"),
    (CreatesOnTheWay, "test_a_missing_catalog_is_not_found"),
    (HidesItsAddress, "test_shows_its_address"),
    (AnyTimeout, "test_refuses_invalid_timeouts"),
    (OpensAgain, "test_closes_twice"),
    (KnowsItsOwnAlone, "test_another_instance_sees_all"),
    (MixesUp, "test_64_lookups_at_once"),
    (StagesHalfWhenCancelled, "test_a_cancelled_call_is_done_or_not"),
    (BreaksWhenLeft, "test_a_listing_can_be_left"),
    (FindsInAnyCase, "test_names_are_found_by_a_part"),
]
# What these go through is tested with what is shared itself, or by bindings.
ELSEWHERE = {"test_the_shared_catalog_gives_the_same", "test_a_forked_child_can_use_it"}
NOTICED = (AssertionError, ExceptionGroup, ValueError, sl.StreamloaderError, pytest.fail.Exception)


def play(kind, test):
    suite = type("Bound", (Suite,), {"kind": kind})()
    with suite.folder:
        getattr(suite, test)()


@pytest.mark.parametrize(("kind", "test"), FAULTS)
def test_a_fault_is_noticed(kind, test):
    with pytest.raises(NOTICED) as caught:
        play(kind, test)
    del caught


def test_every_test_of_the_suite_can_fail():
    tests = {name for name in dir(CatalogSuite) if name.startswith("test_")}
    assert tests - {test for _, test in FAULTS} == ELSEWHERE
    assert len(tests) >= 40
