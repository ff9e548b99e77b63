"""The shipped suite notices what is wrong with a kind of store: each fault fails the test that is meant for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import secrets
import tempfile
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from types import MappingProxyType
from urllib.parse import unquote

import pytest
from store_leaves import PIECE, Plain, versions

import streamloader as sl
from streamloader.stores.base import Body
from streamloader.stores.registry import register_store
from streamloader.testing import StoreSuite
from streamloader.testing.stores.binding import HttpLocation
from streamloader.values import ByteRange

register_store("plain", Plain)


class Suite(StoreSuite):
    kind = Plain
    secrets = ("open-sesame",)
    deep_levels = 1_100

    @functools.cached_property
    def url(self):
        return f"plain://{secrets.token_hex(4)}"

    def location(self):
        return self.url, {"password": "open-sesame"}

    def make_store(self, **options):
        return self.kind(self.url, password="open-sesame", **options)

    def http_location(self, server_url):
        if not issubclass(self.kind, FollowsRedirects):
            return None
        options = {"password": "open-sesame"}
        return HttpLocation(server_url.replace("http", "follows"), "a.bin", options, ("open-sesame",))


class FollowsRedirects(Plain):
    """Reads from a web server with a client that follows all redirects, sends the password along, and quotes errors."""

    def __init__(self, url, *, password, **options):
        super().__init__(url, password=password, **options)
        self.server, self.sent = url.replace("follows", "http"), password

    def info(self, path):
        request = urllib.request.Request(f"{self.server}/{path}", headers={"Authorization": self.sent})
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=0.1).close()
        except urllib.error.HTTPError as error:
            with error:
                raise sl.AccessDenied(f"{self.address(path)}: {error.read()!r}", address=self.address(path)) from None
        except OSError as error:
            raise sl.Unreachable(f"{self.address(path)}: {error}", address=self.address(path)) from None

    async def _head(self, path):
        return self.info(path)

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        yield self.info(path)


register_store("follows", FollowsRedirects)


class TestItself(Suite):
    """The store without faults passes."""


# --- what is read -----------------------------------------------------------------------------------------------------


class OffByOne(Plain):
    async def pieces(self, path, data, start, end):
        async for piece in super().pieces(path, data[1:] + b"\0" if start else data, start, end):
            yield piece


class SilentlyShort(Plain):
    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        async with super()._get(path, span, version) as body:
            yield replace(body, end=None, chunks=self.pieces(path, self.find(path)[0], body.start, body.end - 1))


class ShortWhenBig(Plain):
    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        async with super()._get(path, span, version) as body:
            end = min(body.end, body.start + (10 << 20))
            yield replace(body, end=None, chunks=self.pieces(path, self.find(path)[0], body.start, end))


class EmptyIsMissing(Plain):
    def find(self, path):
        found = super().find(path)
        if not found[0]:
            raise sl.NotFound("nothing", address=self.address(path))
        return found


class LastByteLost(Plain):
    async def pieces(self, path, data, start, end):
        async for piece in super().pieces(path, data, start, end if start == 0 or end < len(data) else end - 1):
            yield piece


class NoOpenEnds(Plain):
    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        if span is not None and span.end is None and span.start == len(self.find(path)[0]):
            raise sl.RangeNotSatisfiable("416", address=self.address(path), offset=span.start)
        async with super()._get(path, span, version) as body:
            yield body


class SuffixFromTheStart(Plain):
    async def pieces(self, path, data, start, end):
        shift = start if end == len(data) and start > 1 else 0
        async for piece in super().pieces(path, data, start - shift, end - shift):
            yield piece


class LongSuffixOutside(Plain):
    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        if span is not None and -span.start > len(self.find(path)[0]):
            raise sl.RangeNotSatisfiable("416", address=self.address(path), offset=0)
        async with super()._get(path, span, version) as body:
            yield body


class Clips(Plain):
    """Sends what there is of a span, as HTTP does."""

    def _check_span(self, body, span):
        pass

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        size = len(self.find(path)[0])
        if span is not None and span.start >= 0:
            span = ByteRange(min(span.start, size), size if span.end is None else min(span.end, size))
        async with super()._get(path, span, version) as body:
            yield body


class TextMode(Plain):
    async def pieces(self, path, data, start, end):
        data = data.replace(b"\r\n", b"\n") if len(data) < PIECE else data
        async for piece in super().pieces(path, data, start, end):
            yield piece

    def info(self, path):
        return replace(super().info(path), size=None)

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        async with super()._get(path, span, version) as body:
            yield replace(body, end=None)


class EmptySpansUnchecked(Plain):
    async def stream(self, path, span=None, *, version=None, size=None, on_start=None):
        self._prepare_call(path)
        if span is not None and span.start == span.end:
            return
        async with contextlib.aclosing(
            super().stream(path, span, version=version, size=size, on_start=on_start)
        ) as chunks:
            async for chunk in chunks:
                yield chunk


class InOnePiece(Plain):
    async def pieces(self, path, data, start, end):
        yield data[start:end]


class ReusesItsBuffer(Plain):
    async def pieces(self, path, data, start, end):
        buffer = bytearray()
        async for piece in super().pieces(path, data, start, end):
            buffer[:] = piece
            yield buffer


class OnePosition(Plain):
    """Keeps where it reads for all readers together."""

    async def pieces(self, path, data, start, end):
        self.at = start
        while self.at < end:
            await asyncio.sleep(0)
            begin, self.at = self.at, min(end, self.at + PIECE // 8)
            yield data[begin : self.at]


class SmallBlocksOnly(Plain):
    """Starts each 64 KiB block at its border."""

    async def pieces(self, path, data, start, end):
        for at in range(start, end, PIECE):
            await asyncio.sleep(0)
            low = at // 65_536 * 65_536 if at - start >= PIECE or at % 65_536 == 1 else at
            yield data[low : low + min(PIECE, end - at)]


# --- what it is -------------------------------------------------------------------------------------------------------


class MissingIsEmpty(Plain):
    def find(self, path):
        return self.objects.get(path, (b"", "none"))


class ForeignErrors(Plain):
    def find(self, path):
        return self.objects[path]


class Nameless(Plain):
    def find(self, path):
        if path not in self.objects:
            raise sl.NotFound("404")
        return super().find(path)


class WrongSize(Plain):
    async def _head(self, path):
        return replace(await super()._head(path), size=7)


class DirectoriesAreObjects(Plain):
    def find(self, path):
        if any(other.startswith(f"{path}/") for other in self.objects):
            return b"", "directory"
        return super().find(path)


class AnyPath(Plain):
    def _check_path(self, path, *, empty):
        pass


class Unquotes(Plain):
    def find(self, path):
        return self.objects[self.quoted(path)] if self.quoted(path) in self.objects else super().find(path)

    async def _write(self, path, data):
        await super()._write(self.quoted(path), data)

    @staticmethod
    def quoted(path):
        return unquote(path)


class VersionOfTheMoment(Plain):
    def info(self, path):
        return replace(super().info(path), version=f"v{next(versions)}")


class OneVersion(Plain):
    def info(self, path):
        return replace(super().info(path), version="v")


class IgnoresVersions(Plain):
    def _check_version(self, info, version, offset):
        pass


# --- listings ---------------------------------------------------------------------------------------------------------


class ListsByPrefix(Plain):
    async def _list(self, prefix, *, recursive):
        async for info in super()._list("", recursive=True):
            if info.path.startswith(prefix):
                yield info


class AlwaysRecursive(Plain):
    def _list(self, prefix, *, recursive):
        return super()._list(prefix, recursive=True)


class NeverRecursive(Plain):
    def _list(self, prefix, *, recursive):
        return super()._list(prefix, recursive=False)


class FirstPageOnly(Plain):
    async def _list(self, prefix, *, recursive):
        count = itertools.count(1)
        async for info in super()._list(prefix, recursive=recursive):
            yield info
            if next(count) == 1_000:
                return


class PagesOverlap(Plain):
    async def _list(self, prefix, *, recursive):
        count = itertools.count(1)
        async for info in super()._list(prefix, recursive=recursive):
            yield info
            if next(count) % 1_000 == 0:
                yield info


class NothingIsAnError(Plain):
    async def _list(self, prefix, *, recursive):
        found = [info async for info in super()._list(prefix, recursive=recursive)]
        if not found:
            raise sl.NotFound("no such directory", address=self.address(prefix))
        for info in found:
            yield info


class OtherSizesInListings(Plain):
    async def _list(self, prefix, *, recursive):
        async for info in super()._list(prefix, recursive=recursive):
            yield replace(info, size=info.size and info.size + 1)


class QuotedInListings(Plain):
    async def _list(self, prefix, *, recursive):
        async for info in super()._list(prefix, recursive=recursive):
            yield replace(info, path=info.path.replace(" ", "%20"))


class SaysItDoesNotList(Plain):
    lists = False

    async def list(self, prefix="", *, recursive=True):
        for _ in ():
            yield _


class SearchesHiddenNames(Plain):
    async def _search(self, prefix, search, *, recursive):
        async for info in self._list(prefix, recursive=recursive):
            yield info


class NoLimitOfListings(Plain):
    async def list(self, prefix="", *, recursive=True):
        self._prepare_call(prefix.rstrip("/"), allow_empty=True)
        async for info in self._list(prefix.rstrip("/"), recursive=recursive):
            yield info


class ListsOnce(Plain):
    """A listing that was left keeps its connection."""

    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.under_way = 0

    async def _list(self, prefix, *, recursive):
        if self.under_way == 2:
            raise sl.StoreError("no connection left")
        self.under_way += 1
        async for info in super()._list(prefix, recursive=recursive):
            yield info
        self.under_way -= 1


class RootIsEmpty(Plain):
    async def _list(self, prefix, *, recursive):
        async for info in super()._list(prefix, recursive=recursive):
            if prefix:
                yield info


# --- writing ----------------------------------------------------------------------------------------------------------


class WritesInPlace(Plain):
    async def _write(self, path, data):
        if isinstance(data, (bytes, bytearray, memoryview)):
            data = self.pieces(path, bytes(data), 0, len(data))
        self.objects[path] = b"", f"v{next(versions)}"
        async for piece in data:
            await asyncio.sleep(0)
            self.objects[path] = self.objects[path][0] + piece, f"v{next(versions)}"


class LeavesUnfinished(Plain):
    async def _write(self, path, data):
        self.objects[f"{path}.part"] = b"", "v"
        await super()._write(path, data)
        del self.objects[f"{path}.part"]


class SwallowsFailures(Plain):
    async def _write(self, path, data):
        whole = bytearray()
        with contextlib.suppress(Exception):
            if isinstance(data, (bytes, bytearray, memoryview)):
                whole += data
            else:
                async for piece in data:
                    whole += piece
        await super()._write(path, bytes(whole))


class DropsWrites(Plain):
    async def _write(self, path, data):
        if len(data) != 5:
            await super()._write(path, data)


class KeepsThemToItself(Plain):
    @property
    def objects(self):
        return self.__dict__.setdefault("own", {})


class FirstPieceOnly(Plain):
    async def _write(self, path, data):
        if not isinstance(data, (bytes, bytearray, memoryview)):
            async for piece in data:
                if piece:
                    data = piece
                    break
            else:
                data = b""
        await super()._write(path, data)


class CutsBigOnes(Plain):
    async def _write(self, path, data):
        if isinstance(data, bytes):
            data = data[: 5 << 20]
        await super()._write(path, data)


class KeepsTheOld(Plain):
    async def _write(self, path, data):
        if path not in self.objects:
            await super()._write(path, data)


class NoDirectories(Plain):
    async def _write(self, path, data):
        if path.count("/") > 2:
            raise sl.NotFound("no such directory", address=self.address(path))
        await super()._write(path, data)


class DeletesByPrefix(Plain):
    async def _delete(self, path):
        for other in [other for other in self.objects if other.startswith(path)]:
            del self.objects[other]


class DeletingIsReading(Plain):
    async def _delete(self, path):
        self.find(path)
        await super()._delete(path)


class OneUploadAtATime(Plain):
    """Mixes what is uploaded at the same time."""

    async def _write(self, path, data):
        self.buffer = bytes(data)
        for _ in range(3):
            await asyncio.sleep(0)
        await super()._write(path, self.buffer)


class HalfAndHalf(Plain):
    async def _write(self, path, data):
        await asyncio.sleep(0)
        old = self.objects.get(path, (b"", ""))[0]
        self.objects[path] = bytes(data[:100_000]) + old[100_000:] + data[len(old) :], f"v{next(versions)}"


class ReadsWhatIsThereNow(Plain):
    """Looks the object up for each piece, and does not see that it is another one."""

    async def pieces(self, path, data, start, end):
        for at in range(start, end, PIECE):
            await asyncio.sleep(0)
            yield (self.objects[path][0] + bytes(end))[at : min(end, at + PIECE)]


# --- life -------------------------------------------------------------------------------------------------------------


class LosesConnections(Plain):
    """One that is not read to its end is lost."""

    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.free = 10

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        if not self.free:
            raise sl.StoreError("no connection left")
        self.free -= 1
        async with super()._get(path, span, version) as body:
            yield body
        self.free += 1


class LosesFewConnections(LosesConnections):
    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.free = 4


class CancelsAll(Plain):
    """A cancelled read leaves the next one its bytes."""

    left = b""

    async def pieces(self, path, data, start, end):
        try:
            async for piece in super().pieces(path, data, start, end):
                yield self.left + piece[len(self.left) :]
                type(self).left = b""
        except (asyncio.CancelledError, GeneratorExit):
            type(self).left = b"rest"
            raise


class BreaksForAll(Plain):
    broken = False

    def find(self, path):
        if self.broken:
            raise sl.TransferInterrupted("the connection is gone", address=self.address(path), offset=0)
        try:
            return super().find(path)
        except sl.NotFound:
            self.broken = True
            raise


class ClosesOnce(Plain):
    async def aclose(self):
        assert not self._closed
        await super().aclose()


class NeverClosed(Plain):
    def _prepare_call(self, path, *, allow_empty=False):
        self._check_path(path, allow_empty=allow_empty)


class EndsShortWhenClosed(Plain):
    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        async with super()._get(path, span, version) as body:
            yield Body(body.info, body.start, None, body.pieces)

    async def pieces(self, path, data, start, end):
        async for piece in super().pieces(path, data, start, end):
            if self._closed:
                return
            yield piece


class BoundToItsLoop(Plain):
    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.loop = None

    async def _head(self, path):
        raise AssertionError("the other methods are enough")

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        self.loop = self.loop or asyncio.get_running_loop()
        self.loop.call_soon(lambda: None)
        async with super()._get(path, span, version) as body:
            yield body

    def __getstate__(self):
        return {**super().__getstate__(), "loop": None}


class NotPicklable(Plain):
    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.lock = threading.Lock()


class ForgetsItsLimits(Plain):
    def __getstate__(self):
        return {**super().__getstate__(), "limits": sl.Limits(requests=1)}


class IgnoresItsLimits(Plain):
    def __init__(self, url, **options):
        super().__init__(url, **{**options, "limits": sl.Limits()})


class CallsItselfForEachFolder(Plain):
    def find(self, path):
        def descend(names):
            return descend(names[1:]) if names else None

        descend(path.split("/"))
        return super().find(path)


class HomeSick(Plain):
    """Works in the process in which it was made."""

    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.pid = os.getpid()

    async def _get_ready(self):
        assert os.getpid() == self.pid

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        await self._get_ready()
        async with super()._get(path, span, version) as body:
            yield body


class SharesAfterFork(Plain):
    """One open file, with one position, for parent and child."""

    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.file = None

    async def pieces(self, path, data, start, end):
        if self.file is None:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - kept like a connection
            self.file.write(data)
        self.file.seek(start)
        while start < end:
            await asyncio.sleep(0)
            piece = self.file.read(min(PIECE, end - start))
            if not piece:
                return
            start += len(piece)
            yield piece

    async def _disconnect(self):
        if self.file is not None:
            self.file.close()


class ShowsItsPassword(Plain):
    def __repr__(self):
        return f"Plain({self.url!r}, password={self.password!r})"


class PasswordInErrors(Plain):
    def find(self, path):
        try:
            return super().find(path)
        except sl.NotFound as error:
            raise sl.NotFound(str(error), address=error.address) from KeyError(f"as {self.password}")


class Anonymous(Plain):
    def __repr__(self):
        return "a store"


class IgnoresSizes(Plain):
    def stream(self, path, span=None, *, version=None, size=None, on_start=None):
        return super().stream(path, span, version=version, on_start=on_start)

    async def fetch(self, path, span, receive, *, version=None, size=None, **more):
        return await super().fetch(path, span, receive, version=version, **more)


FAULTS = [
    (IgnoresSizes, "test_reads_an_object_of_the_expected_size_only"),
    (SilentlyShort, "test_reads_a_whole_object"),
    (EmptyIsMissing, "test_reads_an_empty_object"),
    (NoOpenEnds, "test_reads_an_empty_object"),
    (SilentlyShort, "test_reads_one_byte"),
    (TextMode, "test_keeps_every_byte_as_it_is"),
    (OffByOne, "test_reads_an_exact_span"),
    (OffByOne, "test_reads_single_bytes"),
    (SilentlyShort, "test_a_span_of_everything_is_everything"),
    (EmptySpansUnchecked, "test_a_span_of_nothing_is_nothing"),
    (EmptySpansUnchecked, "test_an_empty_span_of_a_missing_object_is_not_found"),
    (NoOpenEnds, "test_reads_with_an_open_end"),
    (LastByteLost, "test_reads_with_an_open_end"),
    (SuffixFromTheStart, "test_reads_from_the_end"),
    (LongSuffixOutside, "test_a_suffix_longer_than_the_object_is_everything"),
    (Clips, "test_refuses_spans_past_the_end"),
    (Clips, "test_refuses_an_open_end_past_the_end"),
    (SmallBlocksOnly, "test_adjacent_spans_join"),
    (OffByOne, "test_adjacent_spans_join"),
    (OffByOne, "test_random_spans"),
    (SmallBlocksOnly, "test_random_spans"),
    (ShortWhenBig, "test_reads_a_big_object"),
    (OffByOne, "test_reads_a_big_object"),
    (InOnePiece, "test_the_pieces_of_a_stream_join_to_the_whole"),
    (ReusesItsBuffer, "test_the_pieces_of_a_stream_join_to_the_whole"),
    (ShortWhenBig, "test_the_pieces_of_a_stream_join_to_the_whole"),
    (LosesConnections, "test_a_stream_that_is_left_early_disturbs_nothing"),
    (OnePosition, "test_a_stream_may_be_read_slowly"),
    (MissingIsEmpty, "test_a_missing_object_is_not_found"),
    (ForeignErrors, "test_a_missing_object_is_not_found"),
    (Nameless, "test_a_missing_object_is_not_found"),
    (MissingIsEmpty, "test_a_span_of_a_missing_object_is_not_found"),
    (MissingIsEmpty, "test_the_head_of_a_missing_object_is_not_found"),
    (ForeignErrors, "test_the_head_of_a_missing_object_is_not_found"),
    (WrongSize, "test_head_describes_the_object"),
    (DirectoriesAreObjects, "test_a_directory_is_no_object"),
    (AnyPath, "test_refuses_invalid_paths"),
    (Unquotes, "test_odd_names"),
    (VersionOfTheMoment, "test_the_version_stays_the_same"),
    (OneVersion, "test_another_object_is_another_version"),
    (VersionOfTheMoment, "test_reads_the_requested_version"),
    (IgnoresVersions, "test_refuses_an_old_version"),
    (SearchesHiddenNames, "test_a_search_passes_over_hidden_names"),
    (NeverRecursive, "test_lists_at_any_depth"),
    (AlwaysRecursive, "test_lists_one_directory"),
    (ListsByPrefix, "test_a_prefix_is_a_directory"),
    (NothingIsAnError, "test_a_missing_directory_is_empty"),
    (RootIsEmpty, "test_lists_everything"),
    (OtherSizesInListings, "test_listings_agree_with_head"),
    (QuotedInListings, "test_listed_paths_can_be_read"),
    (FirstPageOnly, "test_many_keys"),
    (PagesOverlap, "test_many_keys"),
    (FirstPageOnly, "test_very_many_keys"),
    (SaysItDoesNotList, "test_many_keys"),
    (SaysItDoesNotList, "test_lists_at_any_depth"),
    (NoLimitOfListings, "test_too_many_keys_are_an_error"),
    (IgnoresItsLimits, "test_an_endless_body_is_an_error"),
    (IgnoresItsLimits, "test_an_endless_listing_is_an_error"),
    (IgnoresItsLimits, "test_too_deep_folders_are_an_error"),
    (CallsItselfForEachFolder, "test_very_deep_folders_are_written_and_listed_or_refused"),
    (ListsOnce, "test_a_listing_that_is_left_early_disturbs_nothing"),
    (DropsWrites, "test_writes_bytes"),
    (KeepsThemToItself, "test_other_instances_read_what_was_written"),
    (CutsBigOnes, "test_writes_a_big_object"),
    (FirstPieceOnly, "test_writes_pieces_as_they_come"),
    (KeepsTheOld, "test_replaces_an_object"),
    (NoDirectories, "test_makes_directories_as_needed"),
    (WritesInPlace, "test_a_write_that_fails_changes_nothing"),
    (LeavesUnfinished, "test_a_write_that_fails_changes_nothing"),
    (SwallowsFailures, "test_a_write_that_fails_changes_nothing"),
    (WritesInPlace, "test_a_write_that_is_cancelled_changes_nothing"),
    (LeavesUnfinished, "test_a_write_that_is_cancelled_changes_nothing"),
    (DeletesByPrefix, "test_deletes"),
    (DeletingIsReading, "test_deleting_a_missing_object_is_no_error"),
    (OneUploadAtATime, "test_many_writes_at_once"),
    (HalfAndHalf, "test_of_writes_to_one_object_one_wins"),
    (WritesInPlace, "test_readers_never_see_a_mixture"),
    (ReadsWhatIsThereNow, "test_readers_never_see_a_mixture"),
    (ReadsWhatIsThereNow, "test_a_reader_in_the_middle_is_not_disturbed"),
    (OnePosition, "test_64_reads_at_once"),
    (OneUploadAtATime, "test_64_objects_at_once"),
    (BreaksForAll, "test_one_that_fails_does_not_disturb_the_others"),
    (LosesConnections, "test_a_read_that_is_cancelled_disturbs_nothing"),
    (LosesFewConnections, "test_a_read_that_is_cancelled_in_the_middle_disturbs_nothing"),
    (CancelsAll, "test_the_others_go_on_when_some_are_cancelled"),
    (ClosesOnce, "test_closing_twice_does_no_harm"),
    (NeverClosed, "test_nothing_works_once_it_is_closed"),
    (EndsShortWhenClosed, "test_closing_ends_the_reads_under_way"),
    (BoundToItsLoop, "test_a_second_event_loop"),
    (NotPicklable, "test_pickled"),
    (ForgetsItsLimits, "test_pickled"),
    (HomeSick, "test_pickled_in_another_process"),
    (HomeSick, "test_used_after_a_fork"),
    (SharesAfterFork, "test_used_after_a_fork"),
    (ShowsItsPassword, "test_shows_no_secrets"),
    (PasswordInErrors, "test_shows_no_secrets"),
    (Anonymous, "test_shows_its_address"),
    (FollowsRedirects, "test_a_public_server_cannot_redirect_to_this_machine"),
    (FollowsRedirects, "test_another_server_receives_no_secrets_and_is_not_quoted"),
    (FollowsRedirects, "test_no_server_can_redirect_to_a_metadata_service"),
    (FollowsRedirects, "test_a_public_name_cannot_move_to_this_machine"),
]
ARGUMENTS = {
    "test_refuses_spans_past_the_end": (-1, 1),
    "test_refuses_invalid_paths": "../a",
    "test_a_write_that_fails_changes_nothing": (3, b"the old one"),
    "test_a_write_that_is_cancelled_changes_nothing": b"the old one",
    "test_64_reads_at_once": sl.Limits(),
    "test_a_public_server_cannot_redirect_to_this_machine": ("localhost", 302),
    "test_another_server_receives_no_secrets_and_is_not_quoted": "127.0.0.1",
    "test_an_endless_body_is_an_error": None,
    "test_an_endless_listing_is_an_error": "listed",
}
# No fault of one class of store: what they go through is tested with the shared stores themselves, or by bindings.
ELSEWHERE = {
    "test_refused_names_are_refused",
    "test_the_shared_store_gives_the_same",
    "test_the_shared_store_serves_many_threads",
}
NOTICED = (
    AssertionError,
    ExceptionGroup,
    KeyError,
    RuntimeError,
    TypeError,
    sl.StreamloaderError,
    pytest.fail.Exception,
)


def play(kind, test):
    suite = Suite()
    suite.kind = kind
    arguments = ARGUMENTS.get(test, ())
    if test == "test_a_public_server_cannot_redirect_to_this_machine":
        suite.test_a_public_server_cannot_redirect_to_this_machine(*arguments)
    elif test == "test_a_write_that_fails_changes_nothing":
        suite.test_a_write_that_fails_changes_nothing(size=arguments[0], before=arguments[1])
    else:
        getattr(suite, test)(*((arguments,) if test in ARGUMENTS else ()))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the faults that leave one open
@pytest.mark.parametrize(("kind", "test"), FAULTS)
def test_a_fault_is_noticed(kind, test, monkeypatch):
    monkeypatch.delenv("CI", raising=False)  # there pytest shows all of a difference, which can take it minutes
    with pytest.raises(NOTICED) as caught:
        play(kind, test)
    del caught  # and with its traceback what the faulty stores hold


def test_every_test_of_the_suite_can_fail():
    tests = {name for name in dir(StoreSuite) if name.startswith("test_")}
    assert tests - {test for _, test in FAULTS} == ELSEWHERE
    assert len(tests) >= 40


def test_refused_names_have_to_be_refused():
    class Refusing(Suite):
        refused_names = MappingProxyType({"a+b": "a plus sign is a space there"})

    Refusing.test_odd_names(Refusing())
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        Refusing.test_refused_names_are_refused(Refusing())
