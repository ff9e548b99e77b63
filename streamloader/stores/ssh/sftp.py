"""Pipelined client of SFTP version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions.

An :class:`SftpChannel` is one channel of an SSH connection and can have any number of requests in flight. It parses
replies as they arrive and joins the bytes of a read exactly once. No packet costs an await, a callback or a log record.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Final, cast

import asyncssh

from streamloader.common.printable import make_printable
from streamloader.stores.ssh.packets import (
    ATTRS,
    CLOSE,
    DATA,
    EXTENDED,
    EXTENDED_REPLY,
    FAILURE,
    FOR_READING,
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
    FieldReader,
    encode_path,
    pack_path,
    pack_string,
)

__all__ = ["ChannelLost", "PendingRequest", "SftpChannel", "SftpError"]

_PROTOCOL_VERSION: Final = 3
_MIN_PACKET_BYTES: Final = 5  # packet kind and request number
_MAX_REPLY_BYTES: Final = 4 << 20
_MAX_SHOWN_BYTES: Final = 80  # of text that is no reply
# OpenSSH's limit, for servers that do not report a limit.
_DEFAULT_READ_BYTES: Final = 255 << 10
# Every server has to accept writes of this size.
_DEFAULT_WRITE_BYTES: Final = 32 << 10
# Number of reads whose rate is remembered.
_RATE_SAMPLES: Final = 32
# Number of blocks in flight that no server has trouble with.
_DEFAULT_QUEUE_DEPTH: Final = 8
# Reads queued beyond the round trip, so that the server always has work.
_QUEUE_SLACK_S: Final = 0.005
# Limit of the time that queued reads may take on a slow line.
_MAX_QUEUE_S: Final = 0.25
# The received part of a slow read is passed on after this time.
_PARTIAL_READ_AFTER_S: Final = 0.25
_U32: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(">IBI")  # length, kind, request number
_DATA_HEADER: Final = struct.Struct(">IBII")  # length, kind, request number, number of data bytes


class SftpError(Exception):
    """The server answered a request with an error status.

    Attributes:
        code: Code of the STATUS reply.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(make_printable(message) or f"status {code}")
        self.code = code


class ChannelLost(Exception):
    """The channel or its connection was closed."""

    def __init__(self, reason: str) -> None:
        super().__init__(make_printable(reason))


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request in flight, and its reply.

    Attributes:
        reply: Future of the reply's body. Errors are results of it, not exceptions, because asyncio complains about
            exceptions that are never retrieved.
        reply_kind: Packet kind of the expected reply.
        max_bytes: Number of bytes that a read requested.
        missing_bytes: Number of bytes that the reply to a read has announced and that have not arrived yet.
        parts: Received bytes of a read.
        sent_at: Time at which a read was sent, on the loop's clock.
        received_before: Number of bytes that the channel had received when a read was sent.
        notified_at: Time at which the reader was last notified of a part, on the loop's clock.
        progress: Future that resolves when a part has arrived or the read is complete. None if nothing waits for it.
    """

    reply: asyncio.Future[bytes | Exception]
    reply_kind: int
    max_bytes: int = 0
    missing_bytes: int = 0
    parts: list[bytes | memoryview] = field(default_factory=list)
    sent_at: float = 0.0
    received_before: int = 0
    notified_at: float = 0.0
    progress: asyncio.Future[None] | None = None

    async def wait_for_progress(self) -> None:
        """Wait until the read is complete, or until a part of a slow read has arrived."""
        if not self.reply.done():
            self.progress = asyncio.get_running_loop().create_future()
            await self.progress

    def notify(self) -> None:
        """Wake the task in :meth:`wait_for_progress`."""
        if self.progress is not None and not self.progress.done():
            self.progress.set_result(None)

    def take_received(self) -> bytes:
        """Return the bytes of a read that have arrived since the last call."""
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    async def wait_for_reply(self) -> bytes:
        """Wait for the reply and return its body.

        Raises:
            SftpError: If the server answers with an error status.
            ChannelLost: If the channel is closed before the reply arrives.
            BadReply: If the server violates the protocol.
        """
        reply = await self.reply
        if isinstance(reply, Exception):
            raise reply
        return reply


class SftpChannel(asyncssh.SSHClientSession[bytes]):
    """A channel that speaks SFTP. Created with :meth:`open`.

    Attributes:
        error: Reason why the channel can no longer be used, or None.
        last_received_at: Time at which data last arrived, on the loop's clock.
        busy_since: Time at which a request was last sent while no other was in flight, on the loop's clock.
        users: Number of transfers that use the channel. Counted by the pool that shares it.
        read_block_bytes: Maximum size of a read. Learned from the server's limits and its short replies.
        write_block_bytes: Maximum size of a write.
        replies_in_order: Whether the server is known to process requests one after the other.
        extensions: Extensions of the server, as name -> version.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._pending: dict[int, PendingRequest] = {}
        self._last_number = 0
        self._version_reply: asyncio.Future[bytes | Exception] = self._loop.create_future()
        self._incoming_read: PendingRequest | None = None  # the read whose bytes are arriving
        self._unparsed = b""
        self._exit_status: int | None = None
        self._received_bytes = 0  # of reads
        self._rates: deque[float] = deque(maxlen=_RATE_SAMPLES)  # bytes per second
        self._min_latency_s = 1.0  # of reads
        self._writable = asyncio.Event()
        self._writable.set()
        self.error: Exception | None = None
        self.last_received_at = self.busy_since = self._loop.time()
        self.users = 0
        self._handles = _HandleCounter()
        self.read_block_bytes, self.write_block_bytes = _DEFAULT_READ_BYTES, _DEFAULT_WRITE_BYTES
        self.replies_in_order = False
        self.extensions: dict[str, bytes] = {}

    @classmethod
    async def open(cls, connection: asyncssh.SSHClientConnection, window_bytes: int) -> SftpChannel:
        """Open a channel.

        Args:
            connection: SSH connection to open it on.
            window_bytes: Number of bytes that the server may send before they are consumed.

        Raises:
            asyncssh.ChannelOpenError: If the server accepts no further channel, or does not offer SFTP.
            ChannelLost: If the connection was closed.
            BadReply: If the server violates the protocol.
        """
        try:
            channel, created = await connection.create_session(
                cls, subsystem="sftp", command=None, encoding=None, window=window_bytes, request_pty=False
            )
        except asyncssh.ChannelOpenError:
            raise
        except (asyncssh.Error, OSError) as error:
            raise ChannelLost(str(error)) from error
        session = cast("SftpChannel", created)
        try:
            await session._handshake()  # noqa: SLF001 - an instance of this class
            version = str(connection.get_extra_info("server_version", ""))
            session.replies_in_order = version.startswith("SSH-2.0-OpenSSH")
        except BaseException:
            channel.close()
            raise
        return session

    async def _handshake(self) -> None:
        self._send(_HEADER.pack(_MIN_PACKET_BYTES, INIT, _PROTOCOL_VERSION))
        version_reply = await self._version_reply
        if isinstance(version_reply, Exception):
            raise version_reply
        reader = FieldReader(version_reply)
        if reader.read_uint32() < _PROTOCOL_VERSION:
            raise BadReply("a version of SFTP that is older than 3")
        while reader.has_more():
            name = reader.read_string().decode(errors="replace")
            self.extensions[name] = reader.read_string()
        if "limits@openssh.com" in self.extensions:
            request = self.request_extension("limits@openssh.com", reply_kind=EXTENDED_REPLY)
            limits = FieldReader(await request.wait_for_reply())
            _, max_read, max_write, max_handles = (limits.read_uint64() for _ in range(4))
            self.read_block_bytes = max(4096, min(max_read or _DEFAULT_READ_BYTES, 1 << 20))
            self.write_block_bytes = max(4096, min(max_write or _DEFAULT_WRITE_BYTES, 1 << 20))
            self._handles.set_limit(max_handles or None)

    # --- requests ----------------------------------------------------------------------------------------------------

    def request(self, kind: int, body: bytes, reply_kind: int = STATUS, *, max_bytes: int = 0) -> PendingRequest:
        """Send a request. The reply is a packet of the kind `reply_kind`, or a status."""
        pending = PendingRequest(self._loop.create_future(), reply_kind, max_bytes)
        if self.error is not None:
            pending.reply.set_result(self.error)
            return pending
        if not self._pending:
            self.busy_since = self._loop.time()
        self._last_number = number = (self._last_number + 1) & 0xFFFFFFFF
        self._pending[number] = pending
        self._send(_HEADER.pack(5 + len(body), kind, number) + body)
        return pending

    def read(self, handle: bytes, offset: int, count: int) -> PendingRequest:
        """Request bytes of an open file. The server may send fewer, and answers with EOF after the end of the file."""
        pending = self.request(READ, pack_string(handle) + struct.pack(">QI", offset, count), DATA, max_bytes=count)
        pending.sent_at, pending.received_before = self._loop.time(), self._received_bytes
        return pending

    async def open_for_reading(self, path: str) -> bytes:
        """Open a file, and return its handle. Close it with :meth:`close_handle`.

        If the server allows only as many open files as this channel has open, wait until one of them is closed.

        Raises:
            SftpError: If the server answers with an error status.
            ChannelLost: If the channel is closed before the reply arrives.
            BadReply: If the server violates the protocol.
        """
        while True:
            others = await self._handles.acquire()
            try:
                body = await self.open_file(path, FOR_READING).wait_for_reply()
            except BaseException as error:
                self._handles.release()
                if not (isinstance(error, SftpError) and error.code == FAILURE and self._handles.learn_limit(others)):
                    raise
            else:
                self._handles.count_opened()
                return FieldReader(body).read_string()

    def open_file(self, path: str, flags: int) -> PendingRequest:
        """Open a file and request its handle."""
        return self.request(OPEN, pack_path(path) + struct.pack(">II", flags, 0), HANDLE)

    def close_file(self, handle: bytes) -> None:
        """Close a handle of :meth:`open_for_reading`, without waiting for the reply."""
        self.close_handle(handle)
        self._handles.release(opened=True)  # the server handles the request before later ones

    def close_handle(self, handle: bytes) -> None:
        """Close a handle, without waiting for the reply."""
        if self.error is None:
            self.request(CLOSE, pack_string(handle))

    def fstat(self, handle: bytes) -> PendingRequest:
        """Request the attributes of an open file."""
        return self.request(FSTAT, pack_string(handle), ATTRS)

    def stat(self, path: str) -> PendingRequest:
        """Request the attributes of a file. Links are followed."""
        return self.request(STAT, pack_path(path), ATTRS)

    def set_modified(self, handle: bytes, modified: int) -> PendingRequest:
        """Set the time of the last change of an open file."""
        return self.request(FSETSTAT, pack_string(handle) + struct.pack(">III", 8, modified, modified))

    def request_extension(self, name: str, *arguments: bytes, reply_kind: int = STATUS) -> PendingRequest:
        """Send a request of one of the server's extensions."""
        body = pack_string(name.encode()) + b"".join(pack_string(argument) for argument in arguments)
        return self.request(EXTENDED, body, reply_kind)

    def request_path(self, kind: int, path: str, reply_kind: int = STATUS) -> PendingRequest:
        """Send a request whose only argument is a path."""
        no_attributes = _U32.pack(0) if kind == MKDIR else b""
        return self.request(kind, pack_path(path) + no_attributes, reply_kind)

    def rename(self, old: str, new: str) -> PendingRequest:
        """Rename a file. An existing file of the new name is replaced if :attr:`can_replace`."""
        if self.can_replace:
            return self.request_extension("posix-rename@openssh.com", encode_path(old), encode_path(new))
        return self.request(RENAME, pack_path(old) + pack_path(new))

    @property
    def can_replace(self) -> bool:
        """Whether :meth:`rename` replaces an existing file of the new name."""
        return "posix-rename@openssh.com" in self.extensions

    def write(self, handle: bytes, offset: int, data: bytes | memoryview) -> PendingRequest:
        """Write bytes to an open file."""
        return self.request(WRITE, b"".join((pack_string(handle), struct.pack(">QI", offset, len(data)), data)))

    async def wait_writable(self) -> None:
        """Wait until the send buffer has room.

        Raises:
            ChannelLost: If the channel is closed.
        """
        await self._writable.wait()
        if self.error is not None:
            raise self.error

    def target_queue_depth(self, block: int) -> int:
        """Return how many blocks of `block` bytes one transfer should have in flight.

        The queue is long enough that neither end waits for the other, at any latency. A longer one would
        only fill the server's queue, which costs the server time and delays other transfers.
        """
        rate = max(self._rates, default=0.0)
        if not rate:
            return _DEFAULT_QUEUE_DEPTH
        wanted_bytes = max(
            rate * (2 * self._min_latency_s + _QUEUE_SLACK_S), min(_DEFAULT_QUEUE_DEPTH * block, rate * _MAX_QUEUE_S)
        )
        return max(2, int(wanted_bytes / (block * max(1, self.users))))

    def is_stalled(self, max_silence_s: float) -> bool:
        """Return whether requests are in flight and nothing has arrived for more than `max_silence_s` seconds."""
        waiting = bool(self._pending) or self._incoming_read is not None
        return waiting and self._loop.time() - max(self.last_received_at, self.busy_since) > max_silence_s

    def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            self._channel.close()

    def _send(self, packet: bytes) -> None:
        assert self._channel is not None
        try:
            self._channel.write(packet)
        except OSError as error:
            if self._version_reply.done():
                self._fail(ChannelLost(str(error)))
            # Else the server closes the channel right after its start, and connection_lost tells why.

    # --- callbacks of asyncssh ---------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Called when the channel is open."""
        self._channel = chan

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the channel is closed. All requests in flight fail."""
        if exc is None and self._exit_status and not self._version_reply.done():
            self._fail(
                BadReply(
                    f"nothing, and its program for SFTP ended with status {self._exit_status}: its sshd_config needs "
                    "'Subsystem sftp internal-sftp', and no ForceCommand of another program"
                )
            )
            return
        self._fail(ChannelLost(str(exc) if exc else "the server closed the channel"))

    def exit_status_received(self, status: int) -> None:
        """Called when the server's program has ended."""
        self._exit_status = status

    def pause_writing(self) -> None:
        """Called when the send buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called when the send buffer has room again."""
        self._writable.set()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Called when data arrives. Completes the requests whose replies are in it."""
        if datatype is not None:
            return  # stderr of the server's shell
        self.last_received_at = self._loop.time()
        pending = self._incoming_read
        if pending is not None:
            if len(data) < pending.missing_bytes:
                pending.parts.append(data)
                pending.missing_bytes -= len(data)
                if self.last_received_at - max(pending.notified_at, pending.sent_at) > _PARTIAL_READ_AFTER_S:
                    pending.notified_at = self.last_received_at
                    pending.notify()
                return
            data = self._finish_read(pending, data)
        if self._unparsed:
            data, self._unparsed = self._unparsed + data, b""
        if data and self.error is None:
            try:
                self._parse_replies(data)
            except BadReply as error:
                self._fail(error)

    def _finish_read(self, pending: PendingRequest, data: bytes) -> bytes:
        """Complete the incoming read with the beginning of `data`, and return the rest of it."""
        missing = pending.missing_bytes
        if missing:
            pending.parts.append(data if len(data) == missing else memoryview(data)[:missing])
        rest = data[missing:]
        pending.missing_bytes, self._incoming_read = 0, None
        self._record_rate(pending)
        _complete(pending, pending.take_received())
        return rest

    def _record_rate(self, pending: PendingRequest) -> None:
        seconds = max(self._loop.time() - pending.sent_at, 1e-5)
        self._min_latency_s = min(self._min_latency_s, seconds)
        self._rates.append((self._received_bytes - pending.received_before) / seconds)

    def _parse_replies(self, data: bytes) -> None:
        position, size = 0, len(data)
        while size - position >= _MIN_PACKET_BYTES:
            length, kind = _U32.unpack_from(data, position)[0], data[position + 4]
            if not _MIN_PACKET_BYTES <= length <= _MAX_REPLY_BYTES:
                if not self._version_reply.done() and data[:1].isascii():
                    printed = data[:_MAX_SHOWN_BYTES].partition(b"\0")[0]
                    text = make_printable(printed.decode(errors="replace").strip())
                    raise BadReply(
                        f"text before its first reply ({text} ): a login script of the user, or a forced command, "
                        "prints it. Let the script print only in interactive shells (in .bashrc: [[ $- == *i* ]] || "
                        "return)"
                    )
                raise BadReply(f"a reply with an invalid length of {length} bytes")
            if kind == DATA:
                if size - position < _DATA_HEADER.size:
                    break
                _, _, number, count = _DATA_HEADER.unpack_from(data, position)
                pending = self._get_pending(number, kind)
                if count > pending.max_bytes or length != count + 9:
                    raise BadReply(
                        f"a reply of {length} bytes with {count} data bytes, where {pending.max_bytes} were requested"
                    )
                del self._pending[number]
                self._received_bytes += count
                start, position = position + _DATA_HEADER.size, position + 4 + length
                if position > size:
                    pending.parts, pending.missing_bytes, self._incoming_read = [data[start:]], position - size, pending
                    return
                self._record_rate(pending)
                _complete(pending, data[start:position])
            elif size - position < 4 + length:
                break
            else:
                self._handle_reply(kind, data[position + 5 : position + 4 + length])
                position += 4 + length
        self._unparsed = data[position:]

    def _handle_reply(self, kind: int, body: bytes) -> None:
        if kind == VERSION and not self._version_reply.done():
            self._version_reply.set_result(body)
            return
        reader = FieldReader(body)
        number = reader.read_uint32()
        pending = self._get_pending(number, kind)
        result: bytes | Exception = body[4:]
        if kind == STATUS:
            code = reader.read_uint32()
            message = reader.read_string().decode(errors="replace") if reader.has_more() else ""
            if code == OK and pending.reply_kind != STATUS:
                raise BadReply("status OK instead of the requested data")
            result = SftpError(code, message) if code else b""
        del self._pending[number]
        if kind == HANDLE and pending.reply.cancelled():
            self.close_handle(reader.read_string())  # the caller that opened it was cancelled
        _complete(pending, result)

    def _get_pending(self, number: int, kind: int) -> PendingRequest:
        pending = self._pending.get(number)
        if pending is None or kind not in (STATUS, pending.reply_kind):
            raise BadReply(f"a reply of kind {kind} that matches no request")
        return pending

    def _fail(self, error: Exception) -> None:
        """Close the channel because of `error`, which all requests in flight get."""
        if self.error is None:
            self.error = error
            all_pending, self._pending = self._pending, {}
            if not self._version_reply.done():
                self._version_reply.set_result(error)
            for pending in (*all_pending.values(), self._incoming_read):
                if pending is not None:
                    _complete(pending, error)
            self._writable.set()
            self._handles.set_limit(None)  # those that wait for a handle get the error
            self.close()


class _HandleCounter:
    """Counts the open files of a channel, and learns how many the server allows."""

    def __init__(self) -> None:
        self._limit: int | None = None
        self._server_limit: int | None = None
        self._requested = 0  # files that are open or being opened
        self._opened = 0
        self._max_opened = 0  # at the same time
        self._waiting: deque[asyncio.Future[None]] = deque()

    def set_limit(self, limit: int | None) -> None:
        """Set the limit that the server states, or None if it states none."""
        self._limit = self._server_limit = limit
        self._wake_waiting()

    async def acquire(self) -> int:
        """Wait until another file may be opened. Return the number of those that are open or being opened."""
        while self._limit is not None and self._requested >= self._limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except BaseException:
                self._wake_waiting()  # its turn may have come already
                raise
        self._requested += 1
        return self._requested - 1

    def count_opened(self) -> None:
        """Record that a file was opened."""
        self._opened += 1
        self._max_opened = max(self._max_opened, self._opened)

    def release(self, *, opened: bool = False) -> None:
        """Record that a file was closed, or could not be opened."""
        self._requested -= 1
        self._opened -= opened
        self._wake_waiting()

    def learn_limit(self, others: int) -> bool:
        """Return whether a file could not be opened because too many are open, and limit their number then.

        Args:
            others: Number of other files that were open or being opened when it was requested.
        """
        if not others:
            self._limit = self._server_limit  # that was not the reason
        elif others >= self._max_opened:
            self._limit = max(1, self._max_opened)
            return True
        return False

    def _wake_waiting(self) -> None:
        free = len(self._waiting) if self._limit is None else self._limit - self._requested
        while self._waiting and free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


def _complete(pending: PendingRequest, result: bytes | Exception) -> None:
    if not pending.reply.done():
        pending.reply.set_result(result)
    pending.notify()
