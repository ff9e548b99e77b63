"""A pool of child processes that parse untrusted media, so that the process that asks for it never does.

The processes are plain interpreters (``python -m streamloader.media.parser_process``). Calls are sent to them as
pickles. They answer with JSON of a limited size, which is checked and never unpickled. A process that dies, or that
sends anything else, is replaced, and its calls are repeated one by one in a process of their own: a file that ends this
one too is named in an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from streamloader.child_processes import Surroundings, keep_off_standard_streams, module_search_path
from streamloader.common.printable import make_printable
from streamloader.common.worker_messages import parse_json
from streamloader.errors import (
    ClosedError,
    ConfigError,
    CorruptStream,
    MediaLimitExceeded,
    StreamloaderError,
    check_wire,
    from_wire,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "CALL_HEADER", "MAX_REPLY_BYTES", "PROGRESS_INTERVAL_S", "REPLY_HEADER", "ParserPool", "Parsers", "read_result",
]  # fmt: skip

CALL_HEADER: Final = struct.Struct("<QQ")  # number of the call, size of its pickle in bytes
REPLY_HEADER: Final = struct.Struct("<I")  # size of the JSON document in bytes
PROGRESS_INTERVAL_S: Final = 10.0  # between the reports of a process that makes progress
_STALL_TIMEOUT_S: Final = 600.0
MAX_REPLY_BYTES: Final = 1 << 26  # the largest indexes have some megabytes
_MAX_LOGGED_CHARACTERS: Final = 10_000
_MAX_LOGGED_RECORDS: Final = 10_000  # of one process
_EXIT_TIMEOUT_S: Final = 2.0
_log = logging.getLogger("streamloader")


class Parsers(Protocol):
    """Calls functions that parse untrusted media elsewhere: the interface of :class:`ParserPool`.

    Attributes:
        parallel: Number of calls that are worth making at the same time.
    """

    parallel: int

    def call(self, name: str, function: Callable[..., Any], *args: Any, shared_by: int = 1) -> Any:
        """Call ``function(*args)``, and return its result."""

    def call_many(
        self, names: Sequence[str], function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Call a function several times, and return the result of each call, or its StreamloaderError."""

    def close(self) -> None:
        """End all calls."""


class ParserPool(Parsers):
    """Calls functions in child processes, which are started on demand. All methods are thread-safe.

    Args:
        memory_bytes: Maximum size of the private memory of each process in bytes. None sets no limit.
        max_processes: Maximum number of processes. Defaults to the number of cores.
        stall_timeout_s: Seconds after which a process that makes no progress is ended. Defaults to 600: stores have
            shorter deadlines, so only a parser that hangs reaches it.
    """

    def __init__(
        self,
        memory_bytes: int | None = None,
        max_processes: int | None = None,
        stall_timeout_s: float | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._stall_timeout_s = stall_timeout_s
        self._max_processes = self.parallel = max_processes or os.cpu_count() or 1
        self._lock = threading.Lock()
        self._processes: list[_ParserProcess] = []
        self._alone_lock = threading.Lock()
        self._closed = False

    def call(self, name: str, function: Callable[..., Any], *args: Any, shared_by: int = 1) -> Any:
        """Call ``function(*args)`` in a child process, and return its result, which must be a JSON value.

        The result is untrusted: a file may have taken over the process.

        Args:
            name: Name of the file that is parsed, for error messages.
            function: Function of a module that the child can import.
            *args: Arguments of the function.
            shared_by: Maximum number of concurrent calls of one process before another process is started.

        Raises:
            StreamloaderError: If the function has raised one. Other errors become StreamFailed.
            CorruptStream: If the file has ended two processes.
            MediaLimitExceeded: If the file needs more memory than a process may use.
            ConfigError: If the arguments cannot be sent to another process.
            ClosedError: If the pool was closed.
        """
        request = _pickle_call(function, [args])
        try:
            (result,) = self._call_shared(request, 1, shared_by)
        except _ParserFailed as failure:
            if failure.out_of_memory and shared_by == 1:
                raise self._memory_error(name) from None
            result = self._call_alone(name, request)
        return _unwrap(result)

    def call_many(
        self, names: Sequence[str], function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Call a function several times in one child process, with one message. If that ends, repeat each call alone.

        Args:
            names: Name of the file of each call, for error messages.
            function: Function of a module that the child can import.
            arguments: Arguments of each call.

        Returns:
            Result of each call, as :meth:`call` returns it, or the StreamloaderError that it raises.

        Raises:
            ConfigError: If the arguments cannot be sent to another process.
            ClosedError: If the pool was closed.
        """
        try:
            return self._call_shared(_pickle_call(function, arguments), len(arguments), 1)
        except _ParserFailed:
            pass
        results: list[Any] = []
        for name, args in zip(names, arguments, strict=True):
            try:
                results.append(self.call(name, function, *args))
            except ClosedError:
                raise
            except StreamloaderError as error:
                results.append(error)
        return results

    def _call_shared(self, request: bytes, count: int, shared_by: int) -> list[Any]:
        process = self._acquire(shared_by)
        try:
            return process.call(request, count)
        finally:
            process.release()

    def _call_alone(self, name: str, request: bytes) -> Any:
        """Return the result of a call in a process of its own.

        Raises:
            StreamloaderError: If the file ends this process too, or needs too much memory.
        """
        with self._alone_lock:
            process = self._start()
            try:
                return process.call(request, 1)[0]
            except _ParserFailed as failure:
                if failure.out_of_memory:
                    raise self._memory_error(name) from None
                raise CorruptStream(
                    f"{name} ends the process that parses it ({failure}), as it did before in another process. The "
                    "file is damaged or malicious: remove it",
                    stream=name,
                    address=name,
                ) from None
            finally:
                self._remove(process)

    def close(self) -> None:
        """End all processes. Calls in other threads fail. Safe to call twice."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, []
        for process in processes:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _acquire(self, shared_by: int) -> _ParserProcess:
        """Return the process with the fewest calls, or a new one if all have enough."""
        with self._lock:
            self._processes = [process for process in self._processes if process.alive]
            usable = [process for process in self._processes if not process.reserved]
            best = min(usable, key=lambda process: process.calls, default=None)
            if best is None or (best.calls >= shared_by and len(usable) < self._max_processes):
                best = self._start_locked()
                best.reserved = False
            best.calls += 1
            return best

    def _start(self) -> _ParserProcess:
        with self._lock:
            return self._start_locked()

    def _start_locked(self) -> _ParserProcess:
        if self._closed:
            raise ClosedError("parsing was cancelled")
        process = _ParserProcess(self._memory_bytes, self._stall_timeout_s or _STALL_TIMEOUT_S)
        self._processes.append(process)
        return process

    def _remove(self, process: _ParserProcess) -> None:
        with self._lock:
            if process in self._processes:
                self._processes.remove(process)
        process.close()

    def _memory_error(self, name: str) -> MediaLimitExceeded:
        return MediaLimitExceeded(
            f"{name} needs more than the {self._memory_bytes} bytes of memory that a process may use to index it. "
            "The limit grows with max_pixels: if you trust the file, pass a higher max_pixels=",
            stream=name,
            address=name,
            limit="memory",
            found=None,
            allowed=self._memory_bytes,
        )


class _ParserFailed(Exception):
    """A process ended without a result for a call.

    Attributes:
        out_of_memory: Whether it only lacked memory.
    """

    def __init__(self, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory


class _ParserProcess:
    """A child process, with this side's end of its socket.

    Attributes:
        calls: Number of calls in progress. Kept by the pool.
        reserved: Whether the process is for one call only.
        alive: Whether the process can take calls.
    """

    def __init__(self, memory_bytes: int | None, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self.calls = 0
        self.reserved = True
        self.alive = True
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._pending: dict[int, tuple[Future[list[Any]], int]] = {}  # with the number of calls
        self._next_number = 0
        self._closing = False
        self._kill_reason = ""
        self._logged = 0
        self._last_progress_at = 0.0
        self._sock, inherited = socket.socketpair()
        child_end = socket.socket(fileno=keep_off_standard_streams(inherited.detach()))
        with contextlib.ExitStack() as on_error, child_end, Surroundings() as surroundings:
            on_error.callback(self._sock.close)
            arguments = [
                str(value) for value in (child_end.fileno(), os.getpid(), memory_bytes or 0, _log.getEffectiveLevel())
            ]
            self._process = surroundings.start(
                "streamloader.media.parser_process",
                *arguments,
                pass_fds=(child_end.fileno(),),
                stdout=subprocess.DEVNULL,
            )
            on_error.pop_all()
        self._reader = threading.Thread(target=self._read_replies, name="streamloader-parser", daemon=True)
        self._reader.start()
        self._send(0, json.dumps(module_search_path()).encode())

    def call(self, request: bytes, count: int) -> list[Any]:
        """Send a request of `count` calls, wait for their results, and return them. A StreamloaderError is a result.

        Raises:
            _ParserFailed: If the process ended or lacked memory.
        """
        future: Future[list[Any]] = Future()
        with self._lock:
            if not self.alive:
                raise _ParserFailed("it has ended already")
            self._next_number += 1
            number = self._next_number
            self._pending[number] = future, count
        self._last_progress_at = time.monotonic()
        self._send(number, request)
        while not future.done():
            remaining_s = self._last_progress_at + self._stall_timeout_s - time.monotonic()
            if remaining_s <= 0:
                self._kill_reason = f"it made no progress for {self._stall_timeout_s:.0f} seconds"
                self._process.kill()
                break  # the end of the process sets an error
            wait([future], remaining_s)
        return future.result()

    def release(self) -> None:
        """Count the end of a call."""
        self.calls -= 1

    def close(self) -> None:
        """End the process, and wait until it is gone."""
        self._closing = True
        with self._lock:
            is_idle = not self._pending
        if is_idle:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # the process ends by itself
        else:
            self._process.kill()
        self._reader.join()

    def _send(self, number: int, body: bytes) -> None:
        with self._send_lock, contextlib.suppress(OSError):  # the reader handles the end of the process
            self._sock.sendall(CALL_HEADER.pack(number, len(body)) + body)

    def _read_replies(self) -> None:
        reason = ""
        try:
            while True:
                (size,) = REPLY_HEADER.unpack(self._receive(REPLY_HEADER.size))
                if size > MAX_REPLY_BYTES:
                    raise ValueError(f"it has {size} bytes")
                self._handle_reply(parse_json(self._receive(size)))
        except (EOFError, OSError):
            pass
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"it sent a malformed message: {type(error).__name__}"
        self._finish(reason)

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._sock.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _handle_reply(self, reply: Any) -> None:
        if "progress" in reply:
            self._last_progress_at = time.monotonic()
            return
        if "log" in reply:
            level, text = reply["log"]
            self._logged += 1
            if self._logged > _MAX_LOGGED_RECORDS:
                return
            _log.log(
                min(max(int(level), logging.DEBUG), logging.ERROR),
                "%s",
                make_printable(str(text), _MAX_LOGGED_CHARACTERS),
            )
            return
        results = None if reply.get("out_of_memory") else [read_result(result) for result in reply["results"]]
        with self._lock:
            future, count = self._pending[reply["call"]]
            if results is not None and len(results) != count:
                raise ValueError(f"it has {len(results)} results of {count} calls")
            del self._pending[reply["call"]]
        if results is None:
            future.set_exception(_ParserFailed("it lacks memory", out_of_memory=True))
        else:
            future.set_result(results)

    def _finish(self, reason: str) -> None:
        """Wait for the end of the process, and fail the calls that have no result."""
        try:
            if reason or not self._closing:
                self._process.kill()  # it may only have closed its socket
            status = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._sock.close()
        with self._lock:
            self.alive = False
            pending, self._pending = self._pending, {}
        for future, _ in pending.values():
            closed = ClosedError("parsing was cancelled") if self._closing else None
            future.set_exception(closed or _ParserFailed(reason or self._kill_reason or _describe_exit(status)))


def read_result(result: Any) -> Any:
    """Return the value of one call, or the error that it has raised."""
    if "error" not in result:
        return result["value"]
    check_wire(result["error"])
    error = from_wire(result["error"])
    if result["error"].get("ours"):
        error.worker_traceback = None  # the error describes the file, not the process
    return error


def _unwrap(result: Any) -> Any:
    if isinstance(result, StreamloaderError):
        raise result
    return result


def _pickle_call(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> bytes:
    try:
        return pickle.dumps((function, arguments))
    except Exception:  # noqa: BLE001 - options of a store may contain functions
        import cloudpickle

        try:
            pickled: bytes = cloudpickle.dumps((function, arguments))
        except Exception as error:
            raise ConfigError(
                f"storage_options cannot be sent to another process ({error}): use num_workers=0, or options that can "
                "be pickled"
            ) from error
        return pickled


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
