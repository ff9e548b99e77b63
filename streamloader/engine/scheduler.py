"""The scheduler of a worker: one task a player (a lane, or an env), which runs ahead as far as slots were granted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import anyio

from streamloader.engine.messages import Kind, Record, Splitter, pack
from streamloader.engine.ring import Ring, Status
from streamloader.engine.workload import Grant, Orders, Player, Script
from streamloader.errors import StreamloaderError, to_wire
from streamloader.streams.lane_thread import LaneThread, current_lane_thread

__all__ = ["Scheduler"]

_RECEIVE = 1 << 16
_CLOSE_WITHIN = 1.0  # seconds that a stream has to give back what it holds


class Scheduler:
    """Fills the rows of `lanes` in the slots that the supervisor at the other end of `sock` grants.

    Args:
        lanes: rows of the ring that this worker hosts.
        first_lane: global number of the ring's row 0.
    """

    def __init__(self, script: Script, ring: Ring, sock: socket.socket, lanes: Sequence[int], first_lane: int) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._lanes = script.players(ring, lanes, first_lane, self._send)
        self._burst = max(1, ring.slots // 4)  # windows that a lane may fill before others of this worker get a turn
        self._grants: dict[int, Grant] = {}
        self._granted = 0
        self._version = 0
        self._watermark = 0  # grants that all lanes have filled
        self._told = -1
        self._suspects: dict[int, int] = {}  # row -> the grant at which it may have killed the worker before this one
        self._unsent = bytearray()
        self._splitter = Splitter()

    async def run(self) -> None:
        """Work until the supervisor closes its end."""
        self._news = asyncio.Event()  # asyncio's own: on this path anyio's cost more than the rest of the lane's turn
        self._gone = asyncio.Event()
        self._turn = asyncio.Lock()
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._receive)
        threads = [LaneThread(f"streamloader-lane-{lane.global_number}") for lane in self._lanes]
        try:
            async with anyio.create_task_group() as group:
                for lane, thread in zip(self._lanes, threads, strict=True):
                    group.start_soon(self._drive, lane, thread)
                await self._gone.wait()
                group.cancel_scope.cancel()
        finally:
            self._loop.remove_reader(self._sock)
            if self._unsent:
                self._loop.remove_writer(self._sock)
            for thread in threads:
                thread.stop()

    async def _drive(self, lane: Player, thread: LaneThread) -> None:
        current_lane_thread.set(thread)
        status, filled, busy = lane.status, Status.SEQ, Status.BUSY  # looked up for every row
        run = 0
        try:
            while True:
                grant = self._grants.get(lane.done)
                if grant is None or (lane.held is not None and grant.play != lane.held):
                    run = 0
                    await self._news.wait()
                    continue
                try:
                    if self._suspects:
                        if not await self._fill_alone(lane, grant):
                            continue
                    else:
                        status[busy] = 1
                        await lane.fill(grant)
                        status[busy] = 0
                except StreamloaderError as error:
                    status[busy] = 0
                    await self._fail(lane, grant, error)
                    continue
                if self._grants.get(grant.seq) is grant:
                    lane.done += 1
                    status[filled] = lane.done
                    if lane.done == self._watermark + 1:
                        self._advance()
                else:  # it was made void meanwhile, and so was what came of it
                    lane.held = None
                run += 1
                if run >= self._burst:
                    run = 0
                    await asyncio.sleep(0)
        finally:
            with anyio.move_on_after(_CLOSE_WITHIN, shield=True):
                await lane.reset()

    async def _fill_alone(self, lane: Player, grant: Grant) -> bool:
        """Fill a row while no other row is being filled: if the worker dies of it, it is known of which.

        Returns False if the grant became void before it was its turn.
        """
        async with self._turn:
            if self._grants.get(grant.seq) is not grant:
                return False
            lane.status[Status.BUSY] = 1
            try:
                await lane.fill(grant)
            finally:
                lane.status[Status.BUSY] = 0
                if grant.seq >= self._suspects.get(lane.number, grant.seq + 1):
                    del self._suspects[lane.number]
            return True

    async def _fail(self, lane: Player, grant: Grant, error: StreamloaderError) -> None:
        """Report the failure, and rest until the supervisor has made the grant void."""
        wire = to_wire(error)
        try:
            await lane.reset()
        except StreamloaderError as second:  # the first one tells more
            wire["worker_traceback"] += f"\nand while closing it: {second.message}"
        version = -1
        while self._grants.get(grant.seq) is grant:
            if version != self._version:
                version = self._version
                self._send(pack(Kind.ERROR, version, grant.seq, lane=lane.number, payload=wire))
            await self._news.wait()

    def _advance(self) -> None:
        before, self._watermark = self._watermark, min(lane.done for lane in self._lanes)
        if self._watermark == before:
            return
        for seq in range(before, self._watermark):
            del self._grants[seq]
        if self._told < 0:  # tell once for all that becomes ready in this turn of the loop
            self._told = before
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._told = -1
        self._send(pack(Kind.DONE, self._version, self._watermark))

    def _receive(self) -> None:
        """Take all there is: after a hang-up uvloop calls this once and then never again."""
        data, ended = bytearray(), False
        while not ended:
            try:
                part = self._sock.recv(_RECEIVE)
            except BlockingIOError:
                break
            except ConnectionError:
                part = b""
            data += part
            ended = not part
        for record in self._splitter.feed(bytes(data)):
            if record.kind == Kind.GRANT:
                self._grants[self._granted] = Grant(self._granted, record.a, record.b, record.c, record.lane)
                self._granted += 1
            elif record.kind == Kind.TRUNCATE:
                self._truncate(record)
            elif record.kind == Kind.START:
                self._start(record)
            elif record.payload is not None:
                self._place(Orders(**record.payload))
        self._news.set()  # wakes every lane that waits
        self._news.clear()
        if ended:
            self._loop.remove_reader(self._sock)
            self._gone.set()

    def _truncate(self, record: Record) -> None:
        seq, self._version = record.a, record.version
        for void in range(seq, self._granted):
            self._grants.pop(void, None)
        self._granted = seq
        self._suspects = {row: at for row, at in self._suspects.items() if at < seq}
        for lane in self._lanes:
            lane.done = min(lane.done, seq)
            lane.held = None
            lane.status[Status.SEQ] = lane.done
        self._watermark = min(self._watermark, seq)
        self._tell()

    def _start(self, record: Record) -> None:
        self._granted = self._watermark = record.a
        self._version = record.version
        for lane in self._lanes:
            lane.done = lane.status[Status.SEQ] = record.a

    def _place(self, orders: Orders) -> None:
        mine = {lane.number for lane in self._lanes}
        self._suspects = {row: seq for row, seq in orders.suspects if row in mine}
        for lane in self._lanes:
            lane.place(orders)

    def post(self, data: bytes) -> None:
        """Send a record that may be lost, from any thread: it is, while the supervisor has much unread."""
        with contextlib.suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(self._post, data)

    def _post(self, data: bytes) -> None:
        if len(self._unsent) < _RECEIVE:
            self._send(data)

    def _send(self, data: bytes) -> None:
        """Send without blocking the loop; what the socket does not take at once follows when it can."""
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except ConnectionError:
                return  # the supervisor is gone; the reader sees it too
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add_writer(self._sock, self._drain)
        self._unsent += data

    def _drain(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except ConnectionError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock)
