"""Convert ``.vdd`` files, which contain a pickle, to packs.

A file is read in a process of its own, in which a pickle can do nothing but build containers and bytes: see
:mod:`streamloader.datasets.directory.vdd_process`. What that process sends is checked here, and written to a pack.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from streamloader.child_processes import Surroundings
from streamloader.common.guarded_files import open_regular_file
from streamloader.common.printable import make_printable
from streamloader.common.worker_messages import check_flag, integer, parse_json, text
from streamloader.config import Limits
from streamloader.containers.pack.build import create_pack
from streamloader.containers.pack.format import MAX_MEMBERS, PackCompressor
from streamloader.datasets.directory.filenames import describe_bad_filename, sort_naturally
from streamloader.datasets.directory.vdd_process import (
    DOCUMENT_HEADER,
    MAX_DOCUMENT_BYTES,
    MEMBER_HEADER,
    NAME_ENCODING,
)
from streamloader.errors import CorruptContainer, LimitExceeded, NotFound, StoreError

__all__ = ["ConvertedVdd", "convert_vdd", "default_memory_bytes", "find_vdd_files"]

_ENDING: Final = ".vdd"
_MAX_MEMORY_BYTES: Final = 8 << 30
_BASE_CPU_S: Final = 60
_BYTES_PER_CPU_SECOND: Final = 4 << 20
_STALL_TIMEOUT_MS: Final = 600_000
_EXIT_TIMEOUT_S: Final = 60.0
_READ_BYTES: Final = 1 << 20
_MAX_PROBLEM_CHARACTERS: Final = 2000
_SHOW_EVERY: Final = 64  # members


@dataclass(frozen=True)
class ConvertedVdd:
    """Result of a conversion.

    Attributes:
        source: Path of the ``.vdd`` file.
        target: Path of the pack.
        members: Number of members.
        bytes: Size of all members together in bytes.
    """

    source: str
    target: str
    members: int
    bytes: int


def find_vdd_files(path: str) -> list[str]:
    """Return the paths of the ``.vdd`` files of a folder in natural order, or the path itself if it is a file.

    Raises:
        NotFound: If there are none.
    """
    if os.path.isfile(path):
        return [path]
    try:
        names = [name for name in os.listdir(path) if name.endswith(_ENDING) and not name.startswith(".")]
    except OSError as error:
        raise NotFound(f"{path} cannot be listed: {error.strerror}", address=path) from error
    if not names:
        raise NotFound(f"{path} contains no {_ENDING} files", address=path)
    return [os.path.join(path, name) for name in sort_naturally(names)]


def default_memory_bytes() -> int:
    """Return the memory that a conversion may use if no other limit is given: half of this machine's, at most 8 GiB."""
    try:
        physical_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return _MAX_MEMORY_BYTES
    return min(_MAX_MEMORY_BYTES, physical_bytes // 2)


def convert_vdd(
    source: str,
    target: str,
    *,
    compressor: PackCompressor | None = None,
    memory_bytes: int | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> ConvertedVdd:
    """Convert one ``.vdd`` file to a pack, which appears as a whole or not at all. The file stays as it is.

    The times of the members are unknown, so a directory compares them with its files before it uses them.

    Args:
        source: Path of the file.
        target: Path of the pack. A file of that name is replaced.
        compressor: Compressor of the members. Defaults to none.
        memory_bytes: Maximum memory of the process that reads the file. Defaults to :func:`default_memory_bytes`.
        show: Function that is called with the numbers of written members and of all.

    Raises:
        CorruptContainer: If the file is damaged, is no pack, or contains anything but names and bytes.
        LimitExceeded: If it needs more memory or time, or expands more, than is allowed.
        NotFound: If there is no such file.
        StoreError: If the file cannot be read, or the pack cannot be written.
    """
    with _VddReader(source, memory_bytes or default_memory_bytes()) as reader:
        try:
            with create_pack(target, compressor=compressor, metadata={}) as builder:
                for number, (name, content) in enumerate(reader.read_members()):
                    builder.add(name, content)
                    if number % _SHOW_EVERY == 0:
                        show(number, reader.members)
        except StoreError:
            raise
        except ValueError as error:
            raise reader.make_error(f"no pack can hold it: {error}") from error
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror or error}", address=target) from error
        show(reader.members, reader.members)
        return ConvertedVdd(source, target, reader.members, reader.bytes)


class _VddReader:
    """The process that reads one file. Use it as a context manager.

    Args:
        path: Path of the file.
        memory_bytes: Maximum memory of the process in bytes.

    Attributes:
        members: Number of members, once the first one has been read.
        bytes: Size of all members together in bytes.
    """

    def __init__(self, path: str, memory_bytes: int) -> None:
        self._path = path
        self._memory_bytes = memory_bytes
        self.members = self.bytes = 0

    def __enter__(self) -> Self:
        try:
            fd = open_regular_file(self._path)
        except OSError as error:
            kind = NotFound if isinstance(error, FileNotFoundError) else StoreError
            raise kind(f"{self._path} cannot be opened: {error.strerror or error}", address=self._path) from error
        try:
            size = os.fstat(fd).st_size
            limits = Limits()
            self._cpu_s = _BASE_CPU_S + size // _BYTES_PER_CPU_SECOND
            expanded = max(limits.expansion_bytes, int(limits.expansion_ratio * size))
            self._max_bytes = min(expanded, self._memory_bytes)
            arguments = (os.getpid(), self._memory_bytes, self._cpu_s, self._max_bytes)
            with Surroundings() as surroundings:
                self._process = surroundings.start(
                    "streamloader.datasets.directory.vdd_process",
                    *arguments,
                    stdin=fd,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
        finally:
            os.close(fd)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.stdout.close()
        self._process.wait()

    def make_error(self, problem: str) -> CorruptContainer:
        """Return the error for a file that is damaged, or is no pack."""
        shown = make_printable(problem, _MAX_PROBLEM_CHARACTERS)
        return CorruptContainer(f"{self._path} was not converted: {shown}", address=self._path)

    def read_members(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each member, in ascending order of the names' bytes.

        Raises:
            CorruptContainer: If the file is damaged, is no pack, or contains anything but names and bytes.
            LimitExceeded: If it needs more memory or time, or expands more, than is allowed.
        """
        self._read_summary()
        remaining = self.bytes
        for _ in range(self.members):
            name_bytes, content_bytes = MEMBER_HEADER.unpack(self._read(MEMBER_HEADER.size))
            name = self._read(name_bytes).decode(*NAME_ENCODING)
            if content_bytes > remaining or describe_bad_filename(name) is not None:
                raise self._make_protocol_error()
            remaining -= content_bytes
            yield name, self._read(content_bytes)
        if remaining or self._read_piece(1) or self._wait() != 0:
            raise self._make_protocol_error()

    def _read_summary(self) -> None:
        (size,) = DOCUMENT_HEADER.unpack(self._read(DOCUMENT_HEADER.size))
        if size > MAX_DOCUMENT_BYTES:
            raise self._make_protocol_error()
        try:
            document = parse_json(self._read(size))
            problem, is_limit = _parse_problem(document)
            if problem is None:
                self.members = integer(high=MAX_MEMBERS)(document["members"], "members")
                self.bytes = integer(high=self._max_bytes)(document["bytes"], "bytes")
        except (ValueError, LookupError, TypeError) as error:
            raise self._make_protocol_error() from error
        if problem is not None:
            raise self._make_limit_error(problem) if is_limit else self.make_error(problem)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._read_piece(min(count - len(data), _READ_BYTES))
            if not piece:
                raise self._make_exit_error()
            data += piece
        return bytes(data)

    def _read_piece(self, max_bytes: int) -> bytes:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(_STALL_TIMEOUT_MS):
            raise self.make_error(f"the process that reads it made no progress for {_STALL_TIMEOUT_MS // 1000} seconds")
        return os.read(self._pipe, max_bytes)

    def _wait(self) -> int:
        """Return the exit status of the process, which has closed its output."""
        try:
            return self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _make_limit_error(self, problem: str) -> LimitExceeded:
        shown = make_printable(problem, _MAX_PROBLEM_CHARACTERS)
        return LimitExceeded(
            f"{self._path} was not converted: {shown}. Allowed are {self._memory_bytes} bytes of memory, "
            f"{self._max_bytes} bytes of content and {self._cpu_s} s of CPU time: if you trust the file, raise the "
            "limit of the memory (--max-memory)",
            address=self._path,
        )

    def _make_exit_error(self) -> StoreError:
        status = self._wait()
        if status in (-signal.SIGXCPU, -signal.SIGKILL):
            return self._make_limit_error("it needs more CPU time or memory than is allowed")
        return self.make_error(f"it ended the process that reads it ({_describe_status(status)})")

    def _make_protocol_error(self) -> CorruptContainer:
        return self.make_error("the process that reads it sent an answer that is not valid")


def _parse_problem(document: Any) -> tuple[str | None, bool]:
    if "problem" not in document:
        return None, False
    return text(MAX_DOCUMENT_BYTES)(document["problem"], "problem"), check_flag(document["is_limit"], "is_limit")


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
