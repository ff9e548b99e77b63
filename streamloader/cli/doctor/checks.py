"""Examine one address through its store: what is there, what the store can do, and how fast it is."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from streamloader.cli.doctor.advice import describe_failure
from streamloader.cli.doctor.network import examine_server
from streamloader.cli.doctor.steps import StepRecorder
from streamloader.common.gather import gather_bounded
from streamloader.common.printable import make_printable
from streamloader.errors import NotFound, NotSupported
from streamloader.redaction import clean
from streamloader.stores.search import ListingProblem, TreeSearch
from streamloader.values import ByteRange, ObjectInfo

if TYPE_CHECKING:
    from streamloader.stores.base import Store

__all__ = ["Examination", "make_report"]

CONCURRENT_READS: Final = 8
_LATENCY_READS: Final = 5
_MEASUREMENTS: Final = ("range", "latency", "throughput of one", "throughput of eight")
_NO_LISTINGS: Final = "this store has no listings, and the address names no object: name one to measure its speed"
_MAX_LISTED: Final = 100  # entries that are taken from a listing
_MAX_UNREADABLE: Final = 5  # entries that may not be read, each of which is a problem
_SHARE: Final = 2  # of all bytes, one half is for one read, and the other for eight


def make_report(address: str) -> dict[str, Any]:
    """Return the report of an address before anything is known of it. The keys are those of every report.

    Args:
        address: Address without secrets.
    """
    return {
        "address": address,
        "ok": False,
        "store": None,
        "access": {},
        "login": None,
        "steps": [],
        "object": None,
        "capabilities": {"ranges": None, "listings": None, "versions": None, "writes": None},
        "latency": None,
        "throughput": {"one": None, "eight": None},
        "bytes_read": 0,
        "places": [],
        "problems": [],
        "notes": [],
    }


class Examination:
    """Examines one address. Its coroutine runs in the event loop of the store.

    Args:
        store: Store of the address, without retries.
        path: Path in the store. "" for the store itself.
        report: Report of :func:`make_report`, to be filled.
        max_bytes: Maximum number of bytes that are requested of objects.
        timeout_s: Deadline of each step in seconds.
        show: Function that is called with the name of each step when it starts.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        report: dict[str, Any],
        *,
        max_bytes: int,
        timeout_s: float,
        show: Callable[[str], None],
    ) -> None:
        self._store, self._path, self._report = store, path, report
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._steps = StepRecorder(timeout_s, show)
        self._unreadable: list[ListingProblem] = []
        self._address = store.address(path)

    async def run(self) -> None:
        """Examine the address, and fill the report.

        Raises:
            ConfigError: If the address or an option is invalid.
        """
        report = self._report
        report["steps"] = self._steps.steps
        access = await asyncio.to_thread(self._store.describe_access)
        report["store"] = _get_class(self._store)
        report["access"] = {name: clean(make_printable(value, 2000)) for name, value in access.facts.items()}
        report["notes"] += access.notes
        report["capabilities"]["writes"] = self._store.supports_writes
        reached = [await self._examine_server(server, access.ca_file) for server in access.servers]
        if reached and not any(reached):
            self._skip("login", "find", "list", *_MEASUREMENTS)
            return
        if not await self._log_in():
            self._skip("find", "list", *_MEASUREMENTS)
            return
        files = await self._find_files()
        if files:
            await self._measure(files)
        else:
            self._skip(*_MEASUREMENTS)

    async def _examine_server(self, server: Any, ca_file: str | None) -> bool:
        reached = await examine_server(server, ca_file, self._steps)
        self._note_failure()
        return reached

    async def _log_in(self) -> bool:
        """Log in if the store has a login. Return False if that fails."""
        count = len(self._steps.steps)
        login: dict[str, Any] = {}

        async def log_in() -> dict[str, Any]:
            login.update(await self._store.describe_login() or {})
            return login

        await self._steps.run(
            "login", self._store.url, log_in(), describe=lambda facts: facts.get("authentication", "")
        )
        if self._note_failure():
            return False
        if login:
            self._report["login"] = {
                name: value if value is None else clean(make_printable(value)) for name, value in login.items()
            }
        else:
            del self._steps.steps[count:]  # there is none
        return True

    # --- what is there -----------------------------------------------------------------------------------------------

    async def _find_files(self) -> list[ObjectInfo]:
        """Find the object, or the files of the directory, and record it. Return those that are read."""
        info = None
        if self._path and not self._path.endswith("/"):
            info = await self._steps.run("find", self._address, self._store.head(self._path), describe=_describe_object)
            is_missing = isinstance(self._steps.error, (NotFound, NotSupported))
            may_be_folder = self._store.supports_listing and not self._store.has_url_paths
            if info is None and not (is_missing and may_be_folder):
                self._note_failure()
                self._skip("list")
                return []
        if info is not None:
            self._report["object"] = _make_object("file", info)
            self._report["capabilities"]["versions"] = info.version is not None
            await self._list(self._path.rpartition("/")[0])
            self._check_object(info)
            return [info]
        failure = self._steps.error if self._path else None
        if not self._store.supports_listing:
            self._report["capabilities"]["listings"] = False
            self._skip("find", "list")
            self._report["notes"].append(_NO_LISTINGS)
            return []
        entries = await self._list(self._path)
        for problem in self._unreadable[:_MAX_UNREADABLE]:
            self._add_problem(*describe_failure("list", problem.error, self._store.url))
        if len(self._unreadable) > _MAX_UNREADABLE:
            self._report["notes"].append(f"{len(self._unreadable) - _MAX_UNREADABLE} more may not be read")
        if not entries:
            if entries is not None:
                self._add_problem(
                    f"there is nothing at {self._address}: neither a file, nor a directory with files",
                    "check the spelling of the address, and list the directory above it",
                )
            return []
        files = [entry for entry in entries if entry.size is not None and not entry.is_directory]
        if failure is not None:
            self._steps.steps[:] = [step for step in self._steps.steps if step["step"] != "find"]
        self._report["object"] = {
            **_make_object("directory", ObjectInfo(self._path)),
            "files": len(entries),
            "files_complete": len(entries) < _MAX_LISTED,
        }
        self._report["capabilities"]["versions"] = all(entry.version is not None for entry in entries)
        return sorted(files, key=lambda entry: -(entry.size or 0))[:CONCURRENT_READS]

    async def _list(self, folder: str) -> list[ObjectInfo] | None:
        """Take the first entries of a listing. Return None if there are no listings, or if it failed."""
        if not self._store.supports_listing:
            self._report["capabilities"]["listings"] = False
            return None
        target = self._store.address(folder)
        entries = await self._steps.run(
            "list", target, self._take_entries(folder.rstrip("/")), describe=_describe_entries
        )
        # Of this directory, such as the root of ipfs://, or a folder of a web server.
        if isinstance(self._steps.error, NotSupported):
            self._steps.steps.pop()
            self._report["capabilities"]["listings"] = False
            if self._report["object"] is None:
                self._report["notes"].append(_NO_LISTINGS)
            return None
        self._report["capabilities"]["listings"] = entries is not None
        self._note_failure()
        return entries

    async def _take_entries(self, folder: str) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        self._unreadable.clear()
        search = TreeSearch(self._unreadable.append, show_hidden=True)
        async with contextlib.aclosing(self._store.list(folder, recursive=True, search=search)) as entries:
            async for entry in entries:
                found.append(entry)
                if len(found) == _MAX_LISTED:
                    break
        unsized = [number for number, entry in enumerate(found) if entry.size is None and not entry.is_directory]
        for number in unsized[:CONCURRENT_READS]:  # those that will be read
            found[number] = await self._store.head(found[number].path)
        return found

    def _check_object(self, info: ObjectInfo) -> None:
        if info.size is None:
            self._add_problem(
                f"the server does not report the size of {self._address}",
                "videos and containers need it: let the server send a Content-Length",
            )
        elif not info.size:
            self._add_problem(f"{self._address} is empty (0 bytes)", "write it again")
        if info.version is None:
            self._report["notes"].append(
                "the server reports neither ETag nor modification time: a file that is replaced while it is read is "
                "noticed by its size only"
            )

    # --- measurements ------------------------------------------------------------------------------------------------

    async def _measure(self, files: list[ObjectInfo]) -> None:
        files = [info for info in files if info.size != 0]
        if not files:
            self._skip(*_MEASUREMENTS)
            return
        first = files[0]
        target = self._store.address(first.path)
        await self._steps.run("range", target, self._read_part(first), describe=lambda text: text)
        if self._note_failure():
            self._skip(*_MEASUREMENTS[1:])
            return
        self._report["capabilities"]["ranges"] = self._store.supports_ranges
        if not self._store.supports_ranges:
            self._add_problem(
                f"the server of {self._address} sends whole files when a part is requested",
                "enable range requests (Accept-Ranges: bytes) on the server, or in the proxy in front of it: without "
                "them, random access to a video transfers all bytes before the requested ones",
            )
        seconds = await self._steps.run("latency", target, self._measure_latency(first))
        if seconds is not None:
            self._report["latency"] = {
                "reads": len(seconds), "min_seconds": min(seconds), "median_seconds": statistics.median(seconds),
            }  # fmt: skip
        if not self._note_failure():
            for name, count in (("one", 1), ("eight", CONCURRENT_READS)):
                result = await self._steps.run(f"throughput of {name}", target, self._measure_throughput(files, count))
                self._note_failure()
                self._report["throughput"][name] = result
                if result is not None and not result["complete"]:
                    self._add_problem(
                        f"{'one read' if count == 1 else f'{count} reads at once'} of {self._address} did not end "
                        f"within {self._timeout_s:g} s",
                        "check the line to the server, or pass a higher --timeout",
                    )

    async def _read_part(self, info: ObjectInfo) -> str:
        """Read the first byte, and, if ranges work, the last one. Return what was read."""
        await self._read(info, 0, 1)
        if not self._store.supports_ranges:
            return "whole files only"
        if info.size is not None and info.size > 1:
            await self._read(info, info.size - 1, info.size)
            return "first and last byte"
        return "first byte"

    async def _measure_latency(self, info: ObjectInfo) -> list[float]:
        seconds = []
        size = info.size or 1
        for number in range(_LATENCY_READS):
            start = number * size // _LATENCY_READS if self._store.supports_ranges else 0
            started_s = time.perf_counter()
            await self._read(info, start, start + 1)
            seconds.append(time.perf_counter() - started_s)
        return seconds

    async def _measure_throughput(self, files: list[ObjectInfo], count: int) -> dict[str, Any]:
        """Read up to the share of bytes, or until shortly before the deadline."""
        share = max(1, self._max_bytes // _SHARE // count)
        received = [0] * count
        started_s = time.perf_counter()
        limit = asyncio.timeout(self._timeout_s * 0.9)

        async def read(number: int) -> bool:
            info = files[number % len(files)]
            size = share if info.size is None else min(share, info.size)
            start = 0
            if info.size is not None and self._store.supports_ranges and len(files) < count:
                start = (info.size - size) * number // max(1, count - 1)

            span = ByteRange(start, start + size) if info.size is not None else None
            async with contextlib.aclosing(self._store.stream(info.path, span)) as pieces:
                async for piece in pieces:
                    received[number] += len(piece)
                    if received[number] >= size:
                        break
            return True

        complete = True
        try:
            async with limit:
                await gather_bounded((read(number) for number in range(count)), limit=count)
        except TimeoutError:
            if not limit.expired():
                raise
            complete = False
        seconds = time.perf_counter() - started_s
        total = sum(received)
        self._report["bytes_read"] += total
        return {
            "reads": count,
            "bytes": total,
            "seconds": seconds,
            "bytes_per_second": total / seconds,
            "complete": complete,
        }

    async def _read(self, info: ObjectInfo, start: int, end: int) -> None:
        self._report["bytes_read"] += len(await self._store.read(info.path, ByteRange(start, end)))

    # --- results -----------------------------------------------------------------------------------------------------

    def _note_failure(self) -> bool:
        """Add the error of the last step to the problems. Return whether there is one."""
        error = self._steps.error
        if error is not None:
            self._add_problem(*describe_failure(self._steps.steps[-1]["step"], error, self._store.url))
        return error is not None

    def _add_problem(self, problem: str, advice: str) -> None:
        self._report["problems"].append({"problem": clean(make_printable(problem, 2000)), "advice": advice})

    def _skip(self, *names: str) -> None:
        for name in names:
            self._steps.record(name, self._address, "skipped")


def _get_class(store: Store) -> str:
    while (inner := getattr(store, "inner", None)) is not None:
        store = inner
    return type(store).__name__


def _make_object(kind: str, info: ObjectInfo) -> dict[str, Any]:
    version = None if info.version is None else make_printable(info.version)
    return {
        "kind": kind,
        "size": info.size,
        "version": version,
        "modified": info.modified,
        "files": None,
        "files_complete": None,
    }


def _describe_object(info: ObjectInfo) -> str:
    return "size unknown" if info.size is None else f"{info.size:,} bytes"


def _describe_entries(entries: list[ObjectInfo]) -> str:
    if len(entries) == _MAX_LISTED:
        return f"the first {_MAX_LISTED} files"
    return f"{len(entries)} {'file' if len(entries) == 1 else 'files'}"
