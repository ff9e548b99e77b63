"""The shipped suite notices what is wrong with a container: each fault fails the test that is meant for it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import unicodedata
from dataclasses import replace

import pytest
from containers.formats import GzipTar, Tar, Zip
from containers.zip_files import DEFLATED

import streamloader as sl
from streamloader.config import Limits
from streamloader.containers.tar.container import TarContainer
from streamloader.containers.zip.container import ZipContainer
from streamloader.testing import ContainerSuite


class TarSuite(Tar, ContainerSuite):
    deadline_s = 20.0


class ZipSuite(Zip, ContainerSuite):
    method = DEFLATED
    deadline_s = 20.0


class StoredZipSuite(Zip, ContainerSuite):
    deadline_s = 20.0


class GzipSuite(GzipTar, ContainerSuite):
    deadline_s = 20.0


# --- the list of members ----------------------------------------------------------------------------------------------


class LosesTheLast(TarContainer):
    async def _scan(self):
        members = [member async for member in super()._scan()]
        for member in members[:-1]:
            yield member


class Sorts(TarContainer):
    async def _scan(self):
        for member in sorted([member async for member in super()._scan()], key=lambda member: member.name):
            yield member


class Renames(TarContainer):
    async def _scan(self):
        async for member in super()._scan():
            yield member._replace(name=self.rename(member.name))


class NormalizesNames(Renames):
    def rename(self, name):
        return unicodedata.normalize("NFC", name)


class KeepsDots(Renames):
    def rename(self, name):
        return f"./{name}"


class EmptyIsAnError(TarContainer):
    async def _scan(self):
        number = 0
        async for member in super()._scan():
            yield member
            number += 1
        if not number:
            raise self.source.make_error("nothing", 0)


class NamesOnce(TarContainer):
    async def _scan(self):
        names = set()
        async for member in super()._scan():
            if member.name not in names:
                names.add(member.name)
                yield member


class ReadsHeadersOneByOne(TarContainer):
    async def _scan(self):
        async for member in super()._scan():
            await self.source.read(member.offset, member.data)
            yield member


class ReadsEverything(TarContainer):
    async def _scan(self):
        async with contextlib.aclosing(self.source.stream(0, self.source.size)) as pieces:
            async for _ in pieces:
                pass
        async for member in super()._scan():
            yield member


class NoLimits(TarContainer):
    def __init__(self, source):
        super().__init__(source)
        source.limits = Limits()


class LeavesTransfersOpen(TarContainer):
    async def _scan(self):
        self.kept = self.source.stream(0, self.source.size)
        await anext(self.kept)
        await self.source.read(0, 512)
        async for member in super()._scan():
            yield member


class OneScan(TarContainer):
    """All scans have one position."""

    async def _scan(self):
        members = [member async for member in super()._scan()]
        self.position = 0
        while self.position < len(members):
            yield members[self.position]
            self.position += 1
            await asyncio.sleep(0)


class WithoutVersions:
    def __init__(self, source):
        super().__init__(source)
        source.info = replace(source.info, version=None)


class IgnoresVersions(WithoutVersions, TarContainer):
    pass


class NoChecksums(ZipContainer):
    def __init__(self, source):
        super().__init__(source)
        self._reads.check_content = lambda *_: None


class ZipIgnoresVersions(WithoutVersions, NoChecksums):
    pass


class KnowsOnlyItsOwn(TarContainer):
    known = frozenset()

    async def _scan(self):
        self.known = set()
        async for member in super()._scan():
            self.known.add(member.offset)
            yield member

    def _read(self, member, start, end):
        assert member.offset in self.known
        return super()._read(member, start, end)


# --- their bytes ------------------------------------------------------------------------------------------------------


class OffByOne(TarContainer):
    def _read(self, member, start, end):
        return super()._read(member, start + 1, end + 1) if end else super()._read(member, start, end)


class Clips(TarContainer):
    async def stream(self, member, start=0, end=None):
        end = member.size if end is None else min(end, member.size)
        async for piece in super().stream(member, min(start, end), end):
            yield piece


class InOnePiece:
    async def _read(self, member, start, end):
        yield b"".join([piece async for piece in super()._read(member, start, end)])


class TarInOnePiece(InOnePiece, TarContainer):
    pass


class ZipInOnePiece(InOnePiece, ZipContainer):
    pass


class ThreeRequests(TarContainer):
    async def _read(self, member, start, end):
        await self.source.read(member.offset, member.data)
        await self.source.read(member.offset, member.data)
        async for piece in super()._read(member, start, end):
            yield piece


class OnePosition(TarContainer):
    """All readers have one position."""

    async def _read(self, member, start, end):
        self.position = start
        while self.position < end:
            part = super()._read(member, self.position, min(end, self.position + 50_000))
            piece = b"".join([piece async for piece in part])
            self.position += len(piece)
            yield piece


class LeavesReadsOpen(TarContainer):
    async def _read(self, member, start, end):
        self.kept = self.source.stream(member.offset, member.data)
        await anext(self.kept)
        async for piece in self.kept:  # of the second member, this waits for the first one
            yield piece
        await self.source.read(0, 512)


class StaysBusy(TarContainer):
    """A reader that is cancelled blocks all others."""

    is_busy = False

    async def _read(self, member, start, end):
        assert not self.is_busy
        self.is_busy = True
        pieces = [piece async for piece in super()._read(member, start, end)]
        self.is_busy = False
        for piece in pieces:
            yield piece


# --- passes -----------------------------------------------------------------------------------------------------------


class LosesTheLastByte(TarContainer):
    async def _iterate(self):
        async for member, pieces in super()._iterate():
            yield member, self.cut(member, pieces)

    async def cut(self, member, pieces):
        position = 0
        async for piece in pieces:
            position += len(piece)
            yield piece[:-1] if position == member.size else piece


class OtherMembersInAPass(TarContainer):
    async def _iterate(self):
        async for member, pieces in super()._iterate():
            yield member._replace(data=member.data + 1), pieces


class CannotSkip(TarContainer):
    async def _iterate(self):
        async for member, pieces in super()._iterate():
            yield member, pieces
            assert [piece async for piece in pieces] == []


class KeepsBytes(ZipContainer):
    """The bytes of earlier members stay readable, and end without an error when the pass is closed."""

    async def _iterate(self):
        async for member, pieces in super()._iterate():
            yield member, self.repeat([piece async for piece in pieces])

    async def repeat(self, pieces):
        for piece in pieces:
            yield piece


class ScansAndReads(TarContainer):
    async def _iterate(self):
        async for member in self._scan():
            yield member, self.stream(member)


class CollectsFirst(TarContainer):
    async def _iterate(self):
        for member in [member async for member in self._scan()]:
            yield member, self.stream(member)
        async for _ in self.source.stream(0, self.source.size):
            pass

    async def _scan(self):
        data = b"".join([piece async for piece in self.source.stream(0, self.source.size)])
        assert data
        async for member in super()._scan():
            yield member


class LeavesPassesOpen(TarContainer):
    async def _iterate(self):
        self.kept = self.source.stream(0, 512)
        await anext(self.kept)
        async for pair in super()._iterate():
            yield pair


class OnePass(TarContainer):
    """A pass takes over the bytes of the one before it."""

    number = 0

    async def _iterate(self):
        self.number += 1
        number = self.number
        async for pair in super()._iterate():
            assert number == self.number
            yield pair


# --- damage and bombs -------------------------------------------------------------------------------------------------


class EndsSilently(TarContainer):
    async def _scan(self):
        with contextlib.suppress(sl.CorruptContainer):
            async for member in super()._scan():
                yield member


class ForeignErrors(TarContainer):
    async def _scan(self):
        try:
            async for member in super()._scan():
                yield member
        except sl.CorruptContainer:
            raise KeyError("header") from None


class NamelessErrors(TarContainer):
    async def _scan(self):
        try:
            async for member in super()._scan():
                yield member
        except sl.CorruptContainer:
            raise sl.CorruptContainer("a bad file") from None


class AllAtOnce(TarContainer):
    async def _read(self, member, start, end):
        data = gzip.decompress(await self.source.read(0, self.source.size))
        for offset in range(member.data + start, member.data + end, 1 << 20):
            yield data[offset : min(member.data + end, offset + (1 << 20))]


FAULTS = [
    (TarSuite, LosesTheLast, "test_scan_returns_names_and_sizes_in_order"),
    (TarSuite, Sorts, "test_scan_returns_names_and_sizes_in_order"),
    (TarSuite, NormalizesNames, "test_names_of_all_kinds"),
    (TarSuite, KeepsDots, "test_leading_dots_and_slashes_are_removed"),
    (TarSuite, EmptyIsAnError, "test_an_empty_container_has_no_members"),
    (TarSuite, NamesOnce, "test_one_name_twice_is_two_members"),
    (TarSuite, ReadsHeadersOneByOne, "test_many_members_take_few_requests"),
    (TarSuite, ReadsEverything, "test_large_contents_are_skipped"),
    (TarSuite, NoLimits, "test_the_number_of_members_is_limited"),
    (TarSuite, LeavesTransfersOpen, "test_a_scan_that_is_closed_early_frees_its_connection"),
    (TarSuite, OneScan, "test_concurrent_scans_are_equal"),
    (TarSuite, IgnoresVersions, "test_a_replaced_container_has_changed"),
    (TarSuite, KnowsOnlyItsOwn, "test_members_can_be_read_by_another_instance"),
    (TarSuite, OffByOne, "test_reads_members_of_all_sizes"),
    (TarSuite, OffByOne, "test_reads_every_span_of_a_small_member"),
    (TarSuite, OffByOne, "test_reads_random_spans_of_a_large_member"),
    (TarSuite, Clips, "test_spans_past_the_end_are_refused"),
    (TarSuite, TarInOnePiece, "test_pieces_are_small"),
    (TarSuite, ThreeRequests, "test_a_small_read_takes_few_requests"),
    (TarSuite, OnePosition, "test_many_concurrent_readers"),
    (TarSuite, OnePosition, "test_interleaved_streams_are_independent"),
    (TarSuite, LeavesReadsOpen, "test_a_stream_that_is_closed_early_frees_its_connection"),
    (TarSuite, StaysBusy, "test_a_read_that_is_cancelled_disturbs_nothing"),
    (TarSuite, LosesTheLastByte, "test_a_pass_equals_scan_and_stream"),
    (TarSuite, OtherMembersInAPass, "test_members_of_a_pass_can_be_read_later"),
    (TarSuite, CannotSkip, "test_members_can_be_skipped"),
    (TarSuite, CannotSkip, "test_members_can_be_read_in_part"),
    (ZipSuite, KeepsBytes, "test_bytes_of_an_earlier_member_are_gone"),
    (ZipSuite, KeepsBytes, "test_bytes_are_gone_when_the_pass_is_closed"),
    (TarSuite, ScansAndReads, "test_a_pass_takes_few_requests"),
    (TarSuite, CollectsFirst, "test_members_arrive_before_the_rest"),
    (TarSuite, LeavesPassesOpen, "test_a_pass_that_is_closed_early_frees_its_connection"),
    (TarSuite, LeavesPassesOpen, "test_a_failure_of_the_caller_ends_the_pass"),
    (TarSuite, OnePass, "test_concurrent_passes_are_independent"),
    (StoredZipSuite, ZipIgnoresVersions, "test_a_container_that_is_replaced_during_a_pass"),
    (TarSuite, EndsSilently, "test_cut_at_every_byte"),
    (TarSuite, EndsSilently, "test_cut_at_every_block"),
    (TarSuite, ForeignErrors, "test_every_byte_flipped"),
    (ZipSuite, NoChecksums, "test_every_byte_flipped"),
    (TarSuite, ForeignErrors, "test_other_bytes_before_or_after"),
    (TarSuite, EndsSilently, "test_an_empty_file_is_an_error"),
    (TarSuite, NamelessErrors, "test_an_empty_file_is_an_error"),
    (TarSuite, ForeignErrors, "test_a_file_of_one_byte_repeated"),
    (ZipSuite, ZipInOnePiece, "test_large_contents_take_little_memory"),
    (GzipSuite, AllAtOnce, "test_the_event_loop_runs_while_large_contents_are_decompressed"),
    (TarSuite, EndsSilently, "test_mutants"),
    (ZipSuite, NoChecksums, "test_mutants"),
]
ARGUMENTS = {
    "test_many_concurrent_readers": sl.Limits(),
    "test_concurrent_passes_are_independent": sl.Limits(),
    "test_cut_at_every_byte": False,
    "test_every_byte_flipped": False,
    "test_a_file_of_one_byte_repeated": 0xFF,
    "test_mutants": 60,
}
WAITS_FOREVER = {LeavesTransfersOpen, LeavesReadsOpen, LeavesPassesOpen, CollectsFirst}
NOTICED = (AssertionError, KeyError, TimeoutError, sl.StreamloaderError, pytest.fail.Exception)


@pytest.mark.may_leak("some of the faults leave transfers open")
@pytest.mark.parametrize(("suite_class", "container", "test"), FAULTS)
def test_a_fault_is_noticed(suite_class, container, test, monkeypatch):
    monkeypatch.delenv("CI", raising=False)  # there pytest shows all of a difference, which can take it minutes
    suite = suite_class()
    suite.container = container
    if container in WAITS_FOREVER:
        suite.deadline_s = 1.0  # nothing else ends the test
    with pytest.raises(NOTICED) as caught:
        getattr(suite, test)(*((ARGUMENTS[test],) if test in ARGUMENTS else ()))
    del caught  # and with its traceback what the faulty containers hold


def test_every_test_of_the_suite_can_fail():
    tests = {name for name in dir(ContainerSuite) if name.startswith("test_")}
    assert tests == {test for _, _, test in FAULTS}
