"""A misbehaving SSH server on loopback, in this process, to test readers over SFTP.

It serves objects from memory to one user with a password, and has one fault at one point::

    async with FaultySsh({"a.bin": data}, "cut", at=1_000_000) as server:
        store = open_store(server.url, retry=None, **server.options())
        await store.read("a.bin")  # TransferInterrupted, offset=...

Network faults, between a correct server and its client, from a point on:

- ``"silence"``: no more bytes arrive, and the connection stays open.
- ``"drip"``: one byte every `pause` seconds.
- ``"cut"``: the connection is closed; ``"reset"``: with a TCP reset.

SFTP faults, when the byte `at` is read:

- ``"short"``: fewer bytes than requested, which the protocol allows. ``"long"``: more bytes.
- ``"early end"``: end of file before the end.
- ``"other offset"``: the requested number of bytes, from another offset. A client needs a digest to notice.
- ``"failure"``, ``"refused"``: an error status instead of bytes.
- ``"garbage"``: bytes that are not SFTP.
- ``"changed size"``, ``"changed time"``: the file changes at that point.

SSH faults: ``"changed host key"``, ``"login refused"``, ``"no ssh"`` (a server of another protocol).
``""`` is no fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
import tempfile
from collections.abc import Mapping
from typing import Any, Final, Self

import asyncssh

from streamloader.testing.faults.shutdown import stop_accepting

__all__ = ["FAULTS", "STAGES", "FaultySsh"]

FAULTS: Final = (
    *("silence", "drip", "cut", "reset"),
    *("short", "long", "early end", "other offset", "failure", "refused", "garbage", "changed size", "changed time"),
    *("changed host key", "login refused", "no ssh"),
)
STAGES: Final = ("connect", "key exchange", "login", "open")  # points of network faults, besides offsets
_NETWORK_FAULTS: Final = ("silence", "drip", "cut", "reset")
GREETING_BYTES: Final = 300  # sent before a fault of the key exchange
_USER: Final = "reader"


class FaultySsh:
    """The server; an asynchronous context manager. Use a new one for each test.

    Args:
        objects: Objects to serve, path -> bytes.
        fault: One of FAULTS; "" for correct responses.
        at: Point of the fault: an offset in an object or, for network faults, one of STAGES.
        password: Password of the user "reader". Random by default.
        pause: Seconds between two bytes of a drip.
        once: Whether the fault occurs only once.
        away: Number of connections that are closed at once after the fault, as those to a server that restarts; without
            a fault, of the first connections.
        max_open_files: Number of files that a channel may have open. More are refused with a failure. None for any.

    Attributes:
        url: URL of the server, with the user's name.
        password: Password of the user.
        fault_count: Number of times that the fault occurred.
        logins: Number of successful logins.
        refused_files: Number of files that were not opened because of `max_open_files`.
    """

    def __init__(
        self,
        objects: Mapping[str, bytes],
        fault: str = "",
        at: int | str = 0,
        *,
        password: str | None = None,
        pause: float = 0.2,
        once: bool = False,
        away: int = 0,
        max_open_files: int | None = None,
    ) -> None:
        if fault and fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}; choose one of {', '.join(FAULTS)}")
        if isinstance(at, str) and (at not in STAGES or fault not in _NETWORK_FAULTS):
            raise ValueError(f"{fault!r} cannot occur at {at!r}")
        self.objects = dict(objects)
        self.fault = fault
        self.at = at
        self.once = once
        self.away = away
        self.password = secrets.token_hex(16) if password is None else password
        self.fault_count = 0
        self.logins = 0
        self.max_open_files = max_open_files
        self.refused_files = 0
        self.port = 0
        self._pause = pause
        self._done = False  # whether a fault with `once` is over
        self._stack = contextlib.AsyncExitStack()
        self._known_hosts = ""
        self._backend_port = 0  # port of the correct server
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The address of the store, with the user's name."""
        return f"ssh://{_USER}@127.0.0.1:{self.port}"

    def options(self) -> dict[str, Any]:
        """Return the options for ``open_store(url, **options)``."""
        return {"password": self.password, "known_hosts": self._known_hosts, "config": []}

    def record_fault(self) -> None:
        """Record an occurrence of the fault. A network fault starts now."""
        self.fault_count += 1

    @property
    def broken(self) -> bool:
        """Whether a network fault is active."""
        return self.fault in _NETWORK_FAULTS and self.fault_count > 0 and not (self.once and self._done)

    async def __aenter__(self) -> Self:
        key, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="faulty-ssh-"))
        try:
            backend = await asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[key],
                server_factory=lambda: _FaultySshServer(self),
                sftp_factory=lambda channel: _FaultySftpServer(channel, self),
                allow_scp=False,
                gss_host=None,
            )
            self._stack.push_async_callback(backend.wait_closed)
            self._stack.callback(backend.close)
            self._backend_port = backend.get_port()
            front = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self._stack.push_async_callback(self._stop_pumps)
            self._stack.callback(front.close)
            self._stack.push_async_callback(stop_accepting, front.sockets)
            self.port = front.sockets[0].getsockname()[1]
            host_key = other if self.fault == "changed host key" else key
            self._known_hosts = f"{folder}/known_hosts"
            line = f"[127.0.0.1]:{self.port} {host_key.export_public_key('openssh').decode()}"
            await asyncio.to_thread(_write, self._known_hosts, line)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _stop_pumps(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    # --- network -----------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        try:
            if self.fault == "no ssh":
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" * 100)
                await writer.drain()
                return
            if self.away and (self.fault_count or not self.fault):
                self.away -= 1
                self.record_fault()
                return
            await self._pass_on(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return  # the client disconnected, or the test ended
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend_reader, backend_writer = await asyncio.open_connection("127.0.0.1", self._backend_port)
        up = asyncio.create_task(_pump(reader, backend_writer))
        if self.at == "connect":
            self.record_fault()
        sent = 0
        try:
            while data := await backend_reader.read(1 << 16):
                if self.at == "key exchange" and sent + len(data) > GREETING_BYTES:
                    writer.write(data[: GREETING_BYTES - sent])
                    data = data[GREETING_BYTES - sent :]
                    self.record_fault()
                if self.broken:
                    self._done = True
                    await self._misbehave(writer, data)
                    return
                writer.write(data)
                sent += len(data)
                await writer.drain()
        finally:
            backend_writer.transport.abort()
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)

    async def _misbehave(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.fault == "reset":
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.fault in ("cut", "reset"):
            return
        at = 0
        while True:
            if self.fault == "drip" and at < len(data):
                writer.write(data[at : at + 1])
                at += 1
            await asyncio.sleep(self._pause)
            if writer.is_closing():
                return


class _FaultySshServer(asyncssh.SSHServer):
    """Accepts one user."""

    def __init__(self, kit: FaultySsh) -> None:
        self._kit = kit

    def begin_auth(self, username: str) -> bool:
        if self._kit.at == "login":
            self._kit.record_fault()
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        if self._kit.fault == "login refused":
            self._kit.record_fault()
            return False
        right = username == _USER and secrets.compare_digest(password.encode(), self._kit.password.encode())
        self._kit.logins += right
        return right

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True  # the server can be a jump host too


class _FaultySftpServer(asyncssh.SFTPServer):
    """Serves the objects."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], kit: FaultySsh) -> None:
        super().__init__(channel)
        self._kit = kit
        self._open_files = 0

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        self._find(path)
        if self._kit.max_open_files is not None and self._open_files >= self._kit.max_open_files:
            self._kit.refused_files += 1
            raise asyncssh.SFTPFailure("Too many open files")
        self._open_files += 1
        if self._kit.at == "open":
            self._kit.record_fault()
        return path

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        kit = self._kit
        data = self._find(file_obj)
        if (
            not isinstance(kit.at, int)
            or not kit.fault
            or (kit.once and kit.fault_count)
            or not offset <= kit.at < offset + size
        ):
            return data[offset : offset + size]
        kit.record_fault()
        right = data[offset : offset + size]
        match kit.fault:
            case "short":
                return right[: max(1, kit.at - offset)]
            case "long":
                return right + b"and more" + bytes(max(0, size - len(right)))
            case "early end":
                return b""
            case "other offset":
                return (data + data)[offset + 1 : offset + 1 + len(right)]
            case "failure":
                raise asyncssh.SFTPFailure("the disk is on fire")
            case "refused":
                raise asyncssh.SFTPPermissionDenied("not for you")
            case "garbage":
                self.channel.write(b"\xff" * 64)
        return right

    def _find(self, path: object) -> bytes:
        assert isinstance(path, bytes)
        try:
            return self._kit.objects[path.decode().strip("/")]
        except KeyError:
            raise asyncssh.SFTPNoSuchFile("no such object") from None

    def close(self, file_obj: object) -> None:
        """Count a file that is no longer open."""
        self._open_files -= 1

    def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        size, time, kit = len(self._find(path)), 1_700_000_000, self._kit
        if kit.fault_count and kit.fault == "changed size":
            size += 1
        if kit.fault_count and kit.fault == "changed time":
            time += 7
        return asyncssh.SFTPAttrs(size=size, permissions=0o100644, uid=0, gid=0, atime=time, mtime=time)

    def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return self.stat(path)

    def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        assert isinstance(file_obj, bytes)
        return self.stat(file_obj)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
