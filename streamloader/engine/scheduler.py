"""The scheduler of a worker: one task for each row filler, which fills as many batches ahead as slots are granted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Final

from streamloader.engine.messages import Message, MessageDecoder, MessageKind, encode_message
from streamloader.engine.ring import Ring, Status
from streamloader.engine.workload import Grant, LaneDirectives, RowFiller, Workload
from streamloader.errors import StreamloaderError, to_wire
from streamloader.streams.lane_thread import LaneThread, current_lane_thread

__all__ = ["Scheduler"]

_RECEIVE_BYTES: Final = 1 << 16
_MAX_UNSENT_BYTES: Final = 1 << 16  # beyond it, messages that may be lost are dropped
_CLOSE_TIMEOUT_S: Final = 1.0


class Scheduler:
    """Fills the rows of a worker in the slots that the supervisor grants.

    Args:
        workload: Workload of the loader.
        ring: Ring whose slots are filled.
        sock: Socket to the supervisor.
        lanes: Rows of the ring that this worker hosts.
        first_lane: Global number of the ring's row 0.
        cores: Number of cores for this worker: so many lanes decode at the same time.
    """

    def __init__(
        self, workload: Workload, ring: Ring, sock: socket.socket, lanes: Sequence[int], first_lane: int, cores: int
    ) -> None:
        self._cores = cores
        self._sock, self._ring = sock, ring
        self._loop = asyncio.get_running_loop()
        self._fillers = workload.make_fillers(ring, lanes, first_lane, self._send_for_filler)
        self._max_burst = max(1, ring.slots // 4)  # batches that a filler may fill before others get a turn
        self._grants: dict[int, Grant] = {}  # by number
        self._grants_received = 0
        self._version = 0
        self._watermark = 0  # number of grants that all fillers have filled
        self._done_scheduled = False
        self._last_done = (0, 0)  # version and watermark of the last DONE message
        self._suspects: dict[int, int] = {}  # row -> grant at which it may have crashed the previous worker
        self._held = bytearray()  # infos, which are sent with the next message
        self._unsent = bytearray()
        self._decoder = MessageDecoder()

    async def run(self) -> None:
        """Fill granted slots until the supervisor closes its end of the socket."""
        # asyncio's own event: on this path, anyio's costs more than the rest of a filler's turn.
        self._grants_changed = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._exclusive_turn = asyncio.Lock()
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._receive)
        decode_slots = asyncio.Semaphore(self._cores)
        threads = [LaneThread(f"streamloader-lane-{filler.global_lane}", decode_slots) for filler in self._fillers]
        try:
            # asyncio's own task group: a worker without anyio's event loop starts sooner.
            async with asyncio.TaskGroup() as group:
                pairs = zip(self._fillers, threads, strict=True)
                tasks = [group.create_task(self._run_filler(filler, thread)) for filler, thread in pairs]
                await self._disconnected.wait()
                for task in tasks:
                    task.cancel()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    # Their errors are ignored: the supervisor is gone, or gets the error that ended this worker.
                    await asyncio.gather(*map(_reset_filler, self._fillers, threads), return_exceptions=True)
            self._loop.remove_reader(self._sock)
            if self._unsent:
                self._loop.remove_writer(self._sock)
            for thread in threads:
                thread.stop()

    async def _run_filler(self, filler: RowFiller, thread: LaneThread) -> None:
        current_lane_thread.set(thread)
        status, seq_column, busy_column = filler.status, Status.SEQ, Status.BUSY  # local, because this loop is hot
        mapped_slots: set[int] = set()
        burst = 0
        while not self._disconnected.is_set():  # in case a stream has suppressed the cancellation
            grant = self._grants.get(filler.grants_filled)
            if grant is None or (filler.only_run is not None and grant.run != filler.only_run):
                burst = 0
                await self._grants_changed.wait()
                continue
            if grant.slot not in mapped_slots:
                mapped_slots.add(grant.slot)
                self._ring.map_rows(grant.slot, filler.rows)
            try:
                if self._suspects:
                    if not await self._fill_exclusively(filler, grant):
                        continue
                else:
                    status[busy_column] = 1
                    await filler.fill(grant)
                    status[busy_column] = 0
            except StreamloaderError as error:
                status[busy_column] = 0
                await self._report_failure(filler, grant, error)
                continue
            if self._grants.get(grant.seq) is grant:
                filler.grants_filled += 1
                status[seq_column] = filler.grants_filled
                if filler.grants_filled == self._watermark + 1:
                    self._advance_watermark()
            else:  # the grant became void while it was filled, and with it the limit to one run
                filler.only_run = None
            burst += 1
            if burst >= self._max_burst:
                burst = 0
                await asyncio.sleep(0)

    async def _fill_exclusively(self, filler: RowFiller, grant: Grant) -> bool:
        """Fill a row while no other row is being filled, so that a crash can only be caused by this one.

        Returns:
            False if the grant became void before its turn.
        """
        async with self._exclusive_turn:
            if self._grants.get(grant.seq) is not grant:
                return False
            filler.status[Status.BUSY] = 1
            try:
                await filler.fill(grant)
            finally:
                filler.status[Status.BUSY] = 0
                if grant.seq >= self._suspects.get(filler.row, grant.seq + 1):
                    del self._suspects[filler.row]
            return True

    async def _report_failure(self, filler: RowFiller, grant: Grant, error: StreamloaderError) -> None:
        """Report a failure, and wait until the supervisor has made the grant void."""
        wire = to_wire(error)
        try:
            await filler.reset()
        except StreamloaderError as second:  # only added to the first error, which is the cause
            wire["worker_traceback"] += f"\nand while closing it: {second.message}"
        reported_version = -1
        while self._grants.get(grant.seq) is grant:
            if reported_version != self._version:
                reported_version = self._version
                message = encode_message(MessageKind.ERROR, reported_version, grant.seq, lane=filler.row, payload=wire)
                self._send(message)
            await self._grants_changed.wait()

    def _advance_watermark(self) -> None:
        previous, self._watermark = self._watermark, min(filler.grants_filled for filler in self._fillers)
        if self._watermark == previous:
            return
        for seq in range(previous, self._watermark):
            del self._grants[seq]
        if not self._done_scheduled:  # one message for all batches that become ready in this turn of the loop
            self._done_scheduled = True
            self._loop.call_soon(self._send_done)

    def _send_done(self) -> None:
        self._done_scheduled = False
        done = (self._version, self._watermark)
        if done != self._last_done:  # otherwise a TRUNCATE has sent it already
            self._last_done = done
            self._send(encode_message(MessageKind.DONE, *done))

    def _receive(self) -> None:
        """Receive all available data: after a hang-up, uvloop calls this function only once."""
        data, ended = bytearray(), False
        while not ended:
            try:
                part = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                part = b""
            data += part
            ended = not part
        for message in self._decoder.decode(bytes(data)):
            if message.kind == MessageKind.GRANT:
                grant = Grant(self._grants_received, message.a, message.b, message.c, message.lane)
                self._grants[self._grants_received] = grant
                self._grants_received += 1
            elif message.kind == MessageKind.TRUNCATE:
                self._truncate(message)
            elif message.kind == MessageKind.RESUME:
                self._resume(message)
            elif message.payload is not None:
                self._apply_directives(LaneDirectives(**message.payload))
        self._grants_changed.set()  # wakes every filler that waits
        self._grants_changed.clear()
        if ended:
            self._loop.remove_reader(self._sock)
            self._disconnected.set()

    def _truncate(self, message: Message) -> None:
        """Drop the grants that have become void."""
        first_void, self._version = message.a, message.version
        for seq in range(first_void, self._grants_received):
            self._grants.pop(seq, None)
        self._grants_received = first_void
        self._suspects = {row: seq for row, seq in self._suspects.items() if seq < first_void}
        for filler in self._fillers:
            filler.grants_filled = min(filler.grants_filled, first_void)
            filler.only_run = None
            filler.status[Status.SEQ] = filler.grants_filled
        self._watermark = min(self._watermark, first_void)
        self._send_done()

    def _resume(self, message: Message) -> None:
        """Continue for a worker that died. The grants before the number in `message` are filled already."""
        self._grants_received = self._watermark = message.a
        self._version = message.version
        self._last_done = (message.version, message.a)
        for filler in self._fillers:
            filler.grants_filled = filler.status[Status.SEQ] = message.a

    def _apply_directives(self, directives: LaneDirectives) -> None:
        own_rows = {filler.row for filler in self._fillers}
        self._suspects = {row: seq for row, seq in directives.suspects if row in own_rows}
        for filler in self._fillers:
            filler.apply_directives(directives)

    def send_if_possible(self, data: bytes) -> None:
        """Send a message from any thread. It is dropped while much data is still unsent, or if the loop has ended."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._send_or_drop, data)

    def _send_or_drop(self, data: bytes) -> None:
        if len(self._unsent) < _MAX_UNSENT_BYTES:
            self._send(data)

    def _send_for_filler(self, data: bytes) -> None:
        """Send a message of a filler. Infos wait for the DONE of their batch, so that the consumer wakes up once."""
        if data[0] == MessageKind.INFO:  # the kind comes first in a message, little-endian
            self._held += data
        else:
            self._send(data)

    def _send(self, data: bytes) -> None:
        """Send without blocking the loop. Data that the socket does not accept now is sent as soon as it does."""
        if self._held:
            data = bytes(self._held) + data
            self._held.clear()
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except ConnectionError:
                return  # the supervisor is gone; the reader notices that too
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add_writer(self._sock, self._send_unsent)
        self._unsent += data

    def _send_unsent(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except ConnectionError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock)


async def _reset_filler(filler: RowFiller, thread: LaneThread) -> None:
    current_lane_thread.set(thread)
    await filler.reset()
