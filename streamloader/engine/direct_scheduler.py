"""The scheduler of a worker process with a single row filler, which it calls in its own thread.

A batch that is passed to another thread and back costs two changes of threads and a turn of an event loop, which take
several times as long as a cheap env does. Here, all that happens between two batches is one call to receive and one to
send.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from typing_extensions import override

from streamloader.engine.messages import Message, MessageDecoder, MessageKind, encode_message
from streamloader.engine.ring import Ring, Status
from streamloader.engine.workload import Grant, LaneDirectives, Workload
from streamloader.errors import StreamloaderError, to_wire
from streamloader.streams.lane_thread import LaneThread, current_lane_thread

__all__ = ["DirectScheduler"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_RECEIVE_BYTES: Final = 1 << 16
_MAX_UNSENT_BYTES: Final = 1 << 16  # beyond it, messages that may be lost are dropped


class DirectScheduler:
    """Fills the rows of a worker in the slots that the supervisor grants, one after the other.

    While the filler is called, nothing is received. So a call that never returns delays the end of the process until
    the thread that watches the parent ends it (:func:`~streamloader.common.subprocesses.exit_with_parent`).

    Args:
        workload: Workload of the loader, with one row filler for each worker, which waits for no event loop.
        ring: Ring whose slots are filled.
        sock: Socket to the supervisor.
        lanes: Rows of the ring that this worker hosts.
        first_lane: Global number of the ring's row 0.
    """

    def __init__(
        self, workload: Workload, ring: Ring, sock: socket.socket, lanes: Sequence[int], first_lane: int
    ) -> None:
        self._ring, self._sock = ring, sock
        (self._filler,) = workload.make_fillers(ring, lanes, first_lane, self._send_for_filler)
        self._grants: dict[int, Grant] = {}  # by number
        self._grants_received = 0
        self._version = 0
        self._disconnected = False
        self._decoder = MessageDecoder()
        self._held = bytearray()  # infos, which are sent with the next message
        self._unsent = bytearray()
        self._send_lock = threading.Lock()  # threads of an env may write log records
        self._poll = select.poll()

    def run(self) -> None:
        """Fill granted slots until the supervisor closes its end of the socket."""
        current_lane_thread.set(_CallingThread("streamloader-lane"))
        filler, grants, mapped_slots = self._filler, self._grants, set[int]()
        busy, filled = filler.status[Status.BUSY], filler.status[Status.SEQ]  # columns of all rows
        has_received = False
        while not self._disconnected:
            grant = grants.get(filler.grants_filled)
            if grant is None or not has_received:
                self._receive(wait=grant is None)
                has_received = True
                continue
            has_received = False  # before the next batch, because its grant may become void
            if grant.slot not in mapped_slots:
                mapped_slots.add(grant.slot)
                self._ring.map_rows(grant.slot, filler.rows)
            busy.fill(1)
            try:
                _run_to_end(filler.fill(grant))
            except StreamloaderError as error:
                busy.fill(0)
                self._report_failure(grant, error)
                continue
            busy.fill(0)
            del grants[grant.seq]
            filler.grants_filled += 1
            filled.fill(filler.grants_filled)
            self._send_done()
        with contextlib.suppress(StreamloaderError):  # the supervisor is gone
            _run_to_end(filler.reset())

    def _report_failure(self, grant: Grant, error: StreamloaderError) -> None:
        """Report a failure, and wait until the supervisor has made the grant void."""
        wire = to_wire(error)
        try:
            _run_to_end(self._filler.reset())
        except StreamloaderError as second:  # only added to the first error, which is the cause
            wire["worker_traceback"] += f"\nand while closing it: {second.message}"
        reported_version = -1
        while self._grants.get(grant.seq) is grant and not self._disconnected:
            if reported_version != self._version:
                reported_version = self._version
                lane = self._filler.row
                self._send(encode_message(MessageKind.ERROR, reported_version, grant.seq, lane=lane, payload=wire))
            self._receive(wait=True)

    # --- messages of the supervisor ---------------------------------------------------------------------------------

    def _receive(self, *, wait: bool) -> None:
        """Handle the messages that have arrived.

        Args:
            wait: Whether to wait for one.
        """
        if self._unsent:
            self._send_unsent(wait=wait)
            wait = False
        try:
            data = self._sock.recv(_RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._disconnected = not data
        for message in self._decoder.decode(data):
            if message.kind == MessageKind.GRANT:
                number = self._grants_received
                self._grants[number] = Grant(number, message.a, message.b, message.c, message.lane)
                self._grants_received += 1
            elif message.kind == MessageKind.TRUNCATE:
                self._truncate(message)
            elif message.kind == MessageKind.DIRECTIVES and message.payload is not None:
                self._filler.apply_directives(LaneDirectives(**message.payload))

    def _truncate(self, message: Message) -> None:
        """Drop the grants that have become void."""
        first_void, self._version = message.a, message.version
        for seq in range(first_void, self._grants_received):
            self._grants.pop(seq, None)
        self._grants_received = first_void
        filler = self._filler
        filler.grants_filled = min(filler.grants_filled, first_void)
        filler.status[Status.SEQ] = filler.grants_filled
        self._send_done()

    # --- messages to the supervisor ---------------------------------------------------------------------------------

    def send_if_possible(self, data: bytes) -> None:
        """Send a message from any thread. It is dropped while much data is still unsent."""
        if len(self._unsent) < _MAX_UNSENT_BYTES:
            self._send(data, with_infos=False)

    def _send_done(self) -> None:
        self._send(encode_message(MessageKind.DONE, self._version, self._filler.grants_filled))

    def _send_for_filler(self, data: bytes) -> None:
        """Send a message of the filler. Infos wait for the DONE of their batch, so that the consumer wakes up once."""
        if data[0] == MessageKind.INFO:  # the kind comes first in a message, little-endian
            self._held += data
        else:
            self._send(data)

    def _send(self, data: bytes, *, with_infos: bool = True) -> None:
        """Send without waiting. Data that the socket does not accept now is sent later, and slots are filled on."""
        with self._send_lock:
            if with_infos and self._held:
                data = bytes(self._held) + data
                self._held.clear()
            if not self._unsent:
                data = data[self._send_some(data) :]
            self._unsent += data

    def _send_unsent(self, *, wait: bool) -> None:
        """Send on.

        Args:
            wait: Whether to wait until something can be sent or received.
        """
        if wait:
            self._poll.register(self._sock, select.POLLIN | select.POLLOUT)
            self._poll.poll()
        with self._send_lock:
            del self._unsent[: self._send_some(self._unsent)]

    def _send_some(self, data: bytes | bytearray) -> int:
        """Return how many bytes need not be sent any more: those that were sent, or all, if the supervisor is gone."""
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except ConnectionError:
            return len(data)  # the receiver notices that too


class _CallingThread(LaneThread):
    """The thread that calls, where a row filler does not need one of its own."""

    @override
    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        return function(*args)


def _run_to_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a row filler waits for an event loop, which its worker does not have")
