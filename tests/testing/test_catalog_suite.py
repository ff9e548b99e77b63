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
from streamloader.testing.catalogs.binding import made


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
    async def locate(self, start, stop):
        return await super().locate(start, max(stop - 1, start))


class LocatesWhatIsNotThere(Plain):
    async def locate(self, start, stop):
        frames = (await self.snapshot()).frames
        return await super().locate(min(max(start, 0), frames), min(stop, frames))


class SortsIndexes(Plain):
    async def indexes(self, content, numbers):
        return await super().indexes(content, sorted(numbers))


class MissingIndexIsEmpty(Plain):
    async def indexes(self, content, numbers):
        try:
            return await super().indexes(content, numbers)
        except sl.errors.CatalogError:
            return [b""] * len(numbers)


class FirstThousand(Plain):
    async def locate(self, start, stop):
        return [dataclasses.replace(held, chunks=held.chunks[:1000]) for held in await super().locate(start, stop)]


class CodingsOnce(Plain):
    async def codings(self, keys):
        return await super().codings(list(dict.fromkeys(keys)))


class NextVideo(Plain):
    async def video_at(self, nanoseconds):
        return await super().video_at(nanoseconds + 1)


class TruthIsOne(Plain):
    def find(self, where=None, **options):
        where = {name: 1 if asked is True else asked for name, asked in (where or {}).items()}
        return super().find(where, **options)


class AnyQuery(Plain):
    def find(self, where=None, **options):
        try:
            return super().find(where, **options)
        except sl.ConfigError:
            return super().find(None, **options)


class PathsTwice(Plain):
    async def paths(self, place):
        async for pair in super().paths(place):
            yield pair
            yield pair


class CountsAll(Plain):
    async def count(self, where=None, *, stop=None):
        return await super().count(where)


class NoMetadata(Plain):
    async def commit(self, video):
        return await super().commit(dataclasses.replace(video, metadata={}))


class EmptyHasOne(Plain):
    async def snapshot(self):
        found = await super().snapshot()
        return found if found.videos else Snapshot(1, 0, 0, 0)


# --- writing ---------------------------------------------------------------------------------------------------------


class ShowsJobs(Plain):
    async def chunks(self, content, start, stop):
        return await super().chunks(content, start, stop) or (await self.staged(content))[start:stop]


class NewJobForgets(Plain):
    async def begin(self, job):
        await self.abandon(job.content)
        return await super().begin(job)


class NeverBeats(Plain):
    async def beat(self, content, now):
        pass


class NeverAbandons(Plain):
    async def abandon(self, content):
        pass


class KeepsTheFirst(Plain):
    async def stage(self, chunks):
        there = {row.number for chunk in chunks[:1] for row in await self.staged(chunk.row.content)}
        await super().stage([chunk for chunk in chunks if chunk.row.number not in there])


class OneByOne(Plain):
    async def stage(self, chunks):
        for chunk in chunks:
            await super().stage([chunk])


class BeginsByItself(Plain):
    async def stage(self, chunks):
        for chunk in chunks[:1]:
            video = made(1)
            await self.begin(dataclasses.replace(video.job, content=chunk.row.content))
        await super().stage(chunks)


class CommitsAnything(Plain):
    async def commit(self, video):
        held = await self.staged(video.content)
        if held:
            video = dataclasses.replace(video, chunks=len(held), frames=sum(row.frames for row in held))
        return await super().commit(video)


class NoChecks(Plain):
    async def commit(self, video):
        try:
            return await super().commit(video)
        except sl.ConfigError:
            return video


class RenamesTwins(Plain):
    async def commit(self, video):
        try:
            return await super().commit(video)
        except sl.errors.NameTaken:
            return await super().commit(dataclasses.replace(video, name=video.name + "~"))


class AddsAgain(Plain):
    async def begin(self, job):
        await super().begin(job)


class PlacesShrink(Plain):
    async def set_places(self, places):
        try:
            return await super().set_places(places)
        except sl.ConfigError:
            return await self.header()


class NumbersFromItsOwn(Plain):
    """Counts in the process, as if nobody else wrote."""

    async def commit(self, video):
        self.count_of = getattr(self, "count_of", -1) + 1
        return dataclasses.replace(await super().commit(video), number=self.count_of)


class FirstWins(Plain):
    async def commit(self, video):
        found = await super().commit(video)
        return dataclasses.replace(found, number=found.number + 1)


class CountsAhead(Plain):
    async def snapshot(self):
        found = await super().snapshot()
        return dataclasses.replace(found, chunks=found.chunks + len(await self.jobs()))


class CommitsEarly(Plain):
    async def jobs(self):
        return (await super().jobs())[1:]


# --- life ------------------------------------------------------------------------------------------------------------


class CreatesAgain(Plain):
    async def create(self, places):
        try:
            return await super().create(places)
        except sl.errors.CatalogExists:
            return await self.header()


class CreatesOnTheWay(Plain):
    async def header(self):
        try:
            return await super().header()
        except sl.errors.CatalogNotFound:
            return await self.create([Place(0, "/x")])


class HidesItsAddress(Plain):
    def __repr__(self):
        return "a catalog"


class AnyTimeout(Plain):
    def __init__(self, url, *, timeout=30.0):
        super().__init__(url, timeout=timeout if timeout > 0 else 1.0)


class OpensAgain(Plain):
    async def header(self):
        if not self._session._closed:
            return await super().header()
        again = Plain(self.path)
        try:
            return await again.header()
        finally:
            await again.aclose()


class KnowsItsOwnAlone(Plain):
    committed = 0

    async def commit(self, video):
        self.committed += 1
        return await super().commit(video)

    async def video(self, number):
        return await super().video(number) if number < self.committed else None


class MixesUp(Plain):
    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.busy = 0

    async def locate(self, start, stop):
        self.busy += 1
        try:
            return await super().locate(0 if self.busy > 1 else start, 1 if self.busy > 1 else stop)
        finally:
            self.busy -= 1


class StagesHalfWhenCancelled(Plain):
    def stage(self, chunks):
        return asyncio.ensure_future(self.stage_each(chunks))  # begun at once, so that nothing is left to complain

    async def stage_each(self, chunks):
        for chunk in chunks:
            await super().stage([chunk])


class BreaksWhenLeft(Plain):
    async def find(self, where=None, **options):
        try:
            async for row in super().find(where, **options):
                yield row
        finally:
            await self.aclose()


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
    (AnyQuery, "test_queries_that_make_no_sense_are_refused"),
    (PathsTwice, "test_paths_of_a_place"),
    (CountsAll, "test_what_was_counted_before_stays"),
    (ShowsJobs, "test_nobody_sees_a_job"),
    (NewJobForgets, "test_a_job_is_gone_on_with"),
    (NeverBeats, "test_a_job_beats"),
    (NeverAbandons, "test_an_abandoned_job_leaves_nothing"),
    (KeepsTheFirst, "test_chunks_in_any_order_and_again"),
    (OneByOne, "test_chunks_are_kept_all_or_none"),
    (BeginsByItself, "test_no_chunks_without_a_job"),
    (CommitsAnything, "test_a_video_that_is_not_whole_is_refused"),
    (NoChecks, "test_what_makes_no_sense_is_refused"),
    (RenamesTwins, "test_names_are_unique"),
    (AddsAgain, "test_the_same_content_is_recognised"),
    (PlacesShrink, "test_places_grow_and_change"),
    (NumbersFromItsOwn, "test_many_writers"),
    (FirstWins, "test_many_writers_of_the_same"),
    (CountsAhead, "test_readers_see_whole_videos_while_others_write"),
    (CommitsEarly, "test_any_order_of_steps"),
    (CreatesAgain, "test_a_catalog_is_created_once"),
    (CreatesAgain, "test_only_one_of_many_creates_it"),
    (CreatesOnTheWay, "test_places_that_make_no_sense_create_nothing"),
    (CreatesOnTheWay, "test_nothing_is_found_where_there_is_no_catalog"),
    (HidesItsAddress, "test_says_where_it_is"),
    (AnyTimeout, "test_a_timeout_has_to_make_sense"),
    (OpensAgain, "test_closes_twice"),
    (KnowsItsOwnAlone, "test_another_instance_sees_all"),
    (MixesUp, "test_64_lookups_at_once"),
    (StagesHalfWhenCancelled, "test_a_cancelled_call_is_done_or_not"),
    (BreaksWhenLeft, "test_a_listing_can_be_left"),
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
