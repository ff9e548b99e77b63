"""The client's side of SFTP version 3 (draft-ietf-secsh-filexfer-02, with OpenSSH's extensions), lean and pipelined.

One :class:`Sftp` is one channel of an SSH connection. Any number of requests may be under way on it. It takes replies
apart as they arrive and joins the bytes of a read exactly once; nothing is awaited, scheduled or logged for a packet.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Final, cast

import asyncssh

from streamloader.stores.ssh.packets import (
    ATTRS,
    CLOSE,
    DATA,
    EXTENDED,
    EXTENDED_REPLY,
    FSETSTAT,
    FSTAT,
    HANDLE,
    INIT,
    MKDIR,
    OK,
    OPEN,
    READ,
    RENAME,
    STAT,
    STATUS,
    VERSION,
    WRITE,
    BadReply,
    Reader,
    encoded,
    packed,
    packed_path,
)

__all__ = ["Asked", "Lost", "Sftp", "SftpError"]

_OUR_VERSION: Final = 3
_SHORTEST: Final = 5  # bytes of a packet: its kind and number
_LONGEST_REPLY: Final = 4 << 20  # bytes; a longer one makes no sense
_BLOCK: Final = 255 << 10  # bytes read in one go where the server does not tell its limit: what OpenSSH allows
_SAMPLES: Final = 32  # reads whose rate is remembered
_FEW: Final = 8  # blocks in flight that no server minds
_SLACK: Final = 0.005  # seconds for which there is work besides what is on its way
_PATIENCE: Final = 0.25  # seconds after which what has come of a read is passed on
_PILE: Final = 0.25  # seconds that what is in flight may take where the line is slow
_SAFE_WRITE: Final = 32 << 10  # bytes written in one go: what every server has to take
_U32: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">IBI")  # length, kind, number
_DATA_HEAD: Final = struct.Struct(">IBII")  # the same, and the length of the bytes


class SftpError(Exception):
    """The server said no. `code` is of STATUS."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message or f"status {code}")
        self.code = code


class Lost(Exception):
    """The channel, or its connection, is gone."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request under way. Its future never fails: errors are results, so that nobody has to fetch them."""

    reply: asyncio.Future[bytes | Exception]
    kind: int  # of the reply
    most: int = 0  # bytes that a read may bring
    missing: int = 0  # bytes of this read that were announced and have not come
    parts: list[bytes | memoryview] = field(default_factory=list)
    since: float = 0.0  # when it was asked
    received: int = 0  # what the channel had received by then
    told: float = 0.0  # when whoever waits for parts was told the last time
    more: asyncio.Future[None] | None = None

    async def some(self) -> None:
        """Wait until the read is complete, or slow and a part of it is here."""
        if not self.reply.done():
            self.more = asyncio.get_running_loop().create_future()
            await self.more

    def tell(self) -> None:
        """Wake whoever waits in :meth:`some`."""
        if self.more is not None and not self.more.done():
            self.more.set_result(None)

    def drain(self) -> bytes:
        """Take what has come of a read so far."""
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    async def answer(self) -> bytes:
        """Wait for the reply.

        Raises:
            SftpError: the server said no.
            Lost: the channel was lost before.
            BadReply: the server talks nonsense.
        """
        found = await self.reply
        if isinstance(found, Exception):
            raise found
        return found


class Sftp(asyncssh.SSHClientSession[bytes]):
    """One channel that speaks SFTP. Make it with :meth:`open`.

    Attributes:
        lost: why it cannot be used any more, or None.
        heard: when something came the last time, in seconds of the loop's clock.
        since: when it was asked something while nothing was under way.
        users: transfers that use it now; who shares channels counts here.
        block: bytes that a read may ask for; learned from the server's limits and its short answers.
        write_block: bytes that a write may send.
        ordered: whether the server is known to answer requests one after the other.
        extensions: name -> version, of the server.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._under_way: dict[int, Asked] = {}
        self._number = 0
        self._greeting: asyncio.Future[bytes | Exception] = self._loop.create_future()
        self._reading: Asked | None = None  # the read whose bytes are coming
        self._rest = b""
        self._received = 0  # bytes of reads
        self._rates: deque[float] = deque(maxlen=_SAMPLES)  # bytes a second
        self._quickest = 1.0  # seconds of a read
        self._writable = asyncio.Event()
        self._writable.set()
        self.lost: Exception | None = None
        self.heard = self.since = self._loop.time()
        self.users = 0
        self.block, self.write_block = _BLOCK, _SAFE_WRITE
        self.ordered = False
        self.extensions: dict[str, bytes] = {}

    @classmethod
    async def open(cls, connection: asyncssh.SSHClientConnection, window: int) -> Sftp:
        """Open a channel; `window` is how many bytes the server may send ahead of us.

        Raises:
            asyncssh.ChannelOpenError: the server does not want another one, or has no SFTP.
            Lost: the connection is gone.
            BadReply: the server talks nonsense.
        """
        try:
            channel, made = await connection.create_session(
                cls, subsystem="sftp", command=None, encoding=None, window=window, request_pty=False
            )
        except asyncssh.ChannelOpenError:
            raise
        except (asyncssh.Error, OSError) as error:
            raise Lost(str(error)) from error
        session = cast("Sftp", made)
        try:
            await session._start()  # noqa: SLF001 - our own
            version = str(connection.get_extra_info("server_version", ""))
            session.ordered = version.startswith("SSH-2.0-OpenSSH")
        except BaseException:
            channel.close()
            raise
        return session

    async def _start(self) -> None:
        self._send(_HEAD.pack(_SHORTEST, INIT, _OUR_VERSION))
        greeting = await self._greeting
        if isinstance(greeting, Exception):
            raise greeting
        reader = Reader(greeting)
        if reader.number() < _OUR_VERSION:
            raise BadReply("the server speaks an SFTP older than version 3")
        while reader.left():
            name = reader.string().decode(errors="replace")
            self.extensions[name] = reader.string()
        if "limits@openssh.com" in self.extensions:
            limits = Reader(await self.extended("limits@openssh.com", reply=EXTENDED_REPLY).answer())
            _, reads, writes = limits.long(), limits.long(), limits.long()
            self.block = max(4096, min(reads or _BLOCK, 1 << 20))
            self.write_block = max(4096, min(writes or _SAFE_WRITE, 1 << 20))

    # --- requests ----------------------------------------------------------------------------------------------------

    def ask(self, kind: int, body: bytes, reply: int = STATUS, *, most: int = 0) -> Asked:
        """Send a request; the reply is of the kind `reply`, or a status."""
        asked = Asked(self._loop.create_future(), reply, most)
        if self.lost is not None:
            asked.reply.set_result(self.lost)
            return asked
        if not self._under_way:
            self.since = self._loop.time()  # silence counts from here on
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        self._under_way[number] = asked
        self._send(_HEAD.pack(5 + len(body), kind, number) + body)
        return asked

    def read(self, handle: bytes, offset: int, count: int) -> Asked:
        """Ask for bytes of an open file; fewer may come, and status EOF behind its end."""
        asked = self.ask(READ, packed(handle) + struct.pack(">QI", offset, count), DATA, most=count)
        asked.since, asked.received = self._loop.time(), self._received
        return asked

    def open_file(self, path: str, flags: int) -> Asked:
        """Ask for a handle."""
        return self.ask(OPEN, packed_path(path) + struct.pack(">II", flags, 0), HANDLE)

    def close_handle(self, handle: bytes) -> None:
        """Give a handle back; nobody waits for the answer."""
        if self.lost is None:
            self.ask(CLOSE, packed(handle))

    def fstat(self, handle: bytes) -> Asked:
        """Ask for the attributes of an open file."""
        return self.ask(FSTAT, packed(handle), ATTRS)

    def stat(self, path: str) -> Asked:
        """Ask for attributes; links are followed."""
        return self.ask(STAT, packed_path(path), ATTRS)

    def date(self, handle: bytes, modified: int) -> Asked:
        """Set the time of an open file."""
        return self.ask(FSETSTAT, packed(handle) + struct.pack(">III", 8, modified, modified))

    def extended(self, name: str, *arguments: bytes, reply: int = STATUS) -> Asked:
        """Ask for one of the server's extensions."""
        body = packed(name.encode()) + b"".join(packed(argument) for argument in arguments)
        return self.ask(EXTENDED, body, reply)

    def on_path(self, kind: int, path: str, reply: int = STATUS) -> Asked:
        """Send a request that has a path, and nothing else that matters."""
        return self.ask(kind, packed_path(path) + (_U32.pack(0) if kind == MKDIR else b""), reply)

    def rename(self, old: str, new: str) -> Asked:
        """Give a file another name; in its own words where the server can replace what has that name."""
        if self.can_replace:
            return self.extended("posix-rename@openssh.com", encoded(old), encoded(new))
        return self.ask(RENAME, packed_path(old) + packed_path(new))

    @property
    def can_replace(self) -> bool:
        """Whether :meth:`rename` replaces what has the new name already."""
        return "posix-rename@openssh.com" in self.extensions

    def write(self, handle: bytes, offset: int, data: bytes | memoryview) -> Asked:
        """Send bytes of an open file."""
        return self.ask(WRITE, b"".join((packed(handle), struct.pack(">QI", offset, len(data)), data)))

    async def drained(self) -> None:
        """Wait until what was sent has left, more or less.

        Raises:
            Lost: it never will.
        """
        await self._writable.wait()
        if self.lost is not None:
            raise self.lost

    def worthwhile(self, block: int) -> int:
        """Return how many blocks one transfer should have in flight here.

        Enough that neither end ever waits for the other, however far it is away; more would only pile up in the
        server, which costs it time, and keep other transfers waiting.
        """
        rate = max(self._rates, default=0.0)
        if not rate:
            return _FEW
        wanted = max(rate * (2 * self._quickest + _SLACK), min(_FEW * block, rate * _PILE))
        return max(2, int(wanted / (block * max(1, self.users))))

    def stalled(self, patience: float) -> bool:
        """Whether something is under way, and nothing has come for so many seconds."""
        waits = bool(self._under_way) or self._reading is not None
        return waits and self._loop.time() - max(self.heard, self.since) > patience

    def close(self) -> None:
        """End the channel."""
        if self._channel is not None:
            self._channel.close()

    def _send(self, packet: bytes) -> None:
        assert self._channel is not None
        try:
            self._channel.write(packet)
        except OSError as error:
            self._fail(Lost(str(error)))

    # --- what asyncssh calls -----------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Keep the channel."""
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all that is under way."""
        self._fail(Lost(str(exc) if exc else "the server closed the channel"))

    def pause_writing(self) -> None:
        """Hold writers back."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._writable.set()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Take replies apart."""
        if datatype is not None:
            return  # what a server's shell says on stderr
        self.heard = self._loop.time()
        asked = self._reading
        if asked is not None:
            if len(data) < asked.missing:
                asked.parts.append(data)
                asked.missing -= len(data)
                if self.heard - max(asked.told, asked.since) > _PATIENCE:
                    asked.told = self.heard
                    asked.tell()
                return
            data = self._finish(asked, data)
        if self._rest:
            data, self._rest = self._rest + data, b""
        if data and self.lost is None:
            try:
                self._take_apart(data)
            except BadReply as error:
                self._fail(error)

    def _finish(self, asked: Asked, data: bytes) -> bytes:
        """Complete the read whose bytes were coming; return what is behind them."""
        if asked.missing:
            asked.parts.append(data if len(data) == asked.missing else memoryview(data)[: asked.missing])
        rest = data[asked.missing :]
        asked.missing, self._reading = 0, None
        self._measure(asked)
        _settle(asked, asked.drain())
        return rest

    def _measure(self, asked: Asked) -> None:
        seconds = max(self._loop.time() - asked.since, 1e-5)
        self._quickest = min(self._quickest, seconds)
        self._rates.append((self._received - asked.received) / seconds)

    def _take_apart(self, data: bytes) -> None:
        at, size = 0, len(data)
        while size - at >= _SHORTEST:
            length, kind = _U32.unpack_from(data, at)[0], data[at + 4]
            if not _SHORTEST <= length <= _LONGEST_REPLY:
                raise BadReply(f"a reply of {length} bytes")
            if kind == DATA:
                if size - at < _DATA_HEAD.size:
                    break
                _, _, number, count = _DATA_HEAD.unpack_from(data, at)
                asked = self._asked(number, kind)
                if count > asked.most or length != count + 9:
                    raise BadReply(f"{count} bytes in a reply of {length}, where {asked.most} were asked for")
                del self._under_way[number]
                self._received += count
                begin, at = at + _DATA_HEAD.size, at + 4 + length
                if at > size:
                    asked.parts, asked.missing, self._reading = [data[begin:]], at - size, asked
                    return
                self._measure(asked)
                _settle(asked, data[begin:at])
            elif size - at < 4 + length:
                break
            else:
                self._reply(kind, data[at + 5 : at + 4 + length])
                at += 4 + length
        self._rest = data[at:]

    def _reply(self, kind: int, body: bytes) -> None:
        if kind == VERSION and not self._greeting.done():
            self._greeting.set_result(body)
            return
        reader = Reader(body)
        number = reader.number()
        asked = self._asked(number, kind)
        found: bytes | Exception = body[4:]
        if kind == STATUS:
            code = reader.number()
            message = reader.string().decode(errors="replace") if reader.left() else ""
            if code == OK and asked.kind != STATUS:
                raise BadReply("nothing but OK, where something else was asked for")
            found = SftpError(code, message) if code else b""
        del self._under_way[number]
        if kind == HANDLE and asked.reply.cancelled():
            self.close_handle(reader.string())  # nobody waits for it any more
        _settle(asked, found)

    def _asked(self, number: int, kind: int) -> Asked:
        asked = self._under_way.get(number)
        if asked is None or kind not in (STATUS, asked.kind):
            raise BadReply(f"a reply of kind {kind} to nothing that was asked")
        return asked

    def _fail(self, error: Exception) -> None:
        if self.lost is None:
            self.lost = error
            under_way, self._under_way = self._under_way, {}
            if not self._greeting.done():
                self._greeting.set_result(error)
            for asked in (*under_way.values(), self._reading):
                if asked is not None:
                    _settle(asked, error)
            self._writable.set()
            self.close()


def _settle(asked: Asked, found: bytes | Exception) -> None:
    if not asked.reply.done():
        asked.reply.set_result(found)
    asked.tell()
