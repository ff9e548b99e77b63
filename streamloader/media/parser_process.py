"""A child process that parses untrusted media for another one (``python -m streamloader.media.parser_process``).

It inherits its end of a socketpair, on which it receives calls from its own parent, and sends their results as JSON.
It exits when the parent closes the socket or exits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from streamloader.common.subprocesses import LogForwarder, exit_process, exit_with_parent, shield_from_signals
from streamloader.errors import MediaLimitExceeded, to_wire
from streamloader.media.parser_pool import CALL_HEADER, PROGRESS_INTERVAL_S, REPLY_HEADER
from streamloader.media.progress import PROGRESS

__all__ = ["main"]

_MAX_THREADS: Final = 64


def main(argv: Sequence[str]) -> int:
    """Run calls until the parent closes the socket, and return the exit status.

    Args:
        argv: File descriptor of the socket, process id of the parent, maximum size of the private memory in bytes (0
            for no limit), and the level of log records that are sent.
    """
    shield_from_signals()
    sock = socket.socket(fileno=int(argv[0]))
    exit_with_parent(int(argv[1]), sock)
    replies = _Replies(sock)
    pool = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="parser")
    try:
        sys.path[:] = json.loads(_receive_call(sock)[1])
        _limit_memory(int(argv[2]))
        _forward_logs(replies, int(argv[3]))
        threading.Thread(target=_report_progress, args=(replies,), name="progress", daemon=True).start()
        while True:
            pool.submit(_run_call, replies, *_receive_call(sock))
    except (EOFError, OSError):
        return 0  # the parent has closed the socket: it needs no result any more


class _Replies:
    """Sends JSON documents to the parent, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, reply: dict[str, Any]) -> None:
        body = json.dumps(reply).encode()
        with self._lock, contextlib.suppress(OSError):  # the parent is gone: this process ends too
            self._sock.sendall(REPLY_HEADER.pack(len(body)) + body)


def _receive_call(sock: socket.socket) -> tuple[int, bytes]:
    number, size = CALL_HEADER.unpack(_receive(sock, CALL_HEADER.size))
    return number, _receive(sock, size)


def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(min(count - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _run_call(replies: _Replies, number: int, request: bytes) -> None:
    reply: dict[str, Any] = {"call": number}
    try:
        function: Callable[..., Any]
        function, arguments = pickle.loads(request)  # noqa: S301 - from the parent process
        reply["results"] = [_call_function(function, args) for args in arguments]
    except _OutOfMemory:
        reply["out_of_memory"] = True
    except BaseException as error:  # noqa: BLE001 - sent to the parent, which raises it
        reply["results"] = [{"error": to_wire(error)}]
    replies.send(reply)


class _OutOfMemory(Exception):
    pass


def _call_function(function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return {"value": function(*args)}
    except BaseException as error:
        if _is_out_of_memory(error):
            raise _OutOfMemory from error
        return {"error": to_wire(error)}


def _report_progress(replies: _Replies) -> None:
    """Report at intervals that this process makes progress, as long as it does."""
    reported = 0
    while True:
        time.sleep(PROGRESS_INTERVAL_S)
        packets = PROGRESS.packets
        if packets != reported:
            reported = packets
            replies.send({"progress": packets})


def _is_out_of_memory(error: BaseException) -> bool:
    current: BaseException | None = error
    while current is not None and not isinstance(current, MediaLimitExceeded):
        if isinstance(current, MemoryError):
            return True
        current = current.__cause__
    return False


def _limit_memory(max_bytes: int) -> None:
    """Limit the private memory of this process, where the system can."""
    if not max_bytes:
        return
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _forward_logs(replies: _Replies, level: int) -> None:
    logger = logging.getLogger("streamloader")
    logger.addHandler(LogForwarder(lambda name, level, message: replies.send({"log": [level, message]})))
    logger.setLevel(level)
    logger.propagate = False


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
