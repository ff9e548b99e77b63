"""An SSH server that misbehaves, on loopback, in this process: for tests of what reads through SFTP.

It serves objects from memory, to one user with a password, and does one thing wrong at one point::

    async with FaultySsh({"a.bin": data}, "cut", at=1_000_000) as server:
        store = open_store(server.url, retry=None, **server.options())
        await store.read("a.bin")  # Interrupted, offset=...

Faults of the wire, between a correct server and its client, from a point on:

- ``"silence"``: nothing comes any more, and the connection stays open.
- ``"drip"``: one byte every so often.
- ``"cut"``: the connection is closed; ``"reset"``: with a TCP reset.

Faults of SFTP, when the byte `at` is read:

- ``"short"``: less comes than was asked for, which the protocol allows. ``"long"``: more comes.
- ``"early end"``: end of file, where there should be more.
- ``"other offset"``: as many bytes as asked, from elsewhere. No client can see that without a digest.
- ``"failure"``, ``"refused"``: the server's status instead of bytes.
- ``"garbage"``: bytes that are no SFTP.
- ``"changed size"``, ``"changed time"``: the file is another one from then on.

Faults of SSH: ``"changed host key"``, ``"login refused"``, ``"no ssh"`` (something else answers). ``""`` is none.
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

__all__ = ["FAULTS", "STAGES", "FaultySsh"]

FAULTS: Final = (
    *("silence", "drip", "cut", "reset"),
    *("short", "long", "early end", "other offset", "failure", "refused", "garbage", "changed size", "changed time"),
    *("changed host key", "login refused", "no ssh"),
)
STAGES: Final = ("connect", "key exchange", "login", "open")  # points for the faults of the wire, besides offsets
_WIRE: Final = ("silence", "drip", "cut", "reset")
_GREETING: Final = 300  # bytes that a client gets before a fault of the key exchange
_USER: Final = "reader"


class FaultySsh:
    """The server; an asynchronous context manager. Use one for each test.

    Args:
        objects: path -> bytes.
        fault: what it does wrong, of FAULTS; "" for nothing.
        at: where: an offset in an object or, for faults of the wire, a stage of STAGES.
        password: of the user "reader"; drawn at random if it is left out.
        pause: seconds between two bytes of a drip.
        once: whether it does this only once, and is a good server from then on.

    Attributes:
        url: of the server, with the user's name.
        password: of the user.
        struck: how often the fault happened.
        logins: how often somebody logged in.
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
    ) -> None:
        if fault and fault not in FAULTS:
            raise ValueError(f"no such fault: {fault!r}; there are {', '.join(FAULTS)}")
        if isinstance(at, str) and (at not in STAGES or fault not in _WIRE):
            raise ValueError(f"{fault!r} cannot happen at {at!r}")
        self.objects = dict(objects)
        self.fault = fault
        self.at = at
        self.once = once
        self.password = secrets.token_hex(16) if password is None else password
        self.struck = 0
        self.logins = 0
        self.port = 0
        self._pause = pause
        self._over = False  # what was to happen once
        self._stack = contextlib.AsyncExitStack()
        self._known_hosts = ""
        self._behind = 0  # port of the correct server
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Of the store, with the user's name."""
        return f"ssh://{_USER}@127.0.0.1:{self.port}"

    def options(self) -> dict[str, Any]:
        """Return what ``open_store(url, **options)`` needs."""
        return {"password": self.password, "known_hosts": self._known_hosts, "config": []}

    def strike(self) -> None:
        """Let a fault of the wire happen now; the others count here."""
        self.struck += 1

    @property
    def broken(self) -> bool:
        """Whether the wire is faulty now."""
        return self.fault in _WIRE and self.struck > 0 and not (self.once and self._over)

    async def __aenter__(self) -> Self:
        key, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="faulty-ssh-"))
        try:
            behind = await asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[key],
                server_factory=lambda: _Login(self),
                sftp_factory=lambda channel: _Files(channel, self),
                allow_scp=False,
                gss_host=None,
            )
            self._stack.push_async_callback(behind.wait_closed)
            self._stack.callback(behind.close)
            self._behind = behind.get_port()
            front = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self._stack.push_async_callback(self._stop_pumps)
            self._stack.callback(front.close)
            self.port = front.sockets[0].getsockname()[1]
            told = other if self.fault == "changed host key" else key
            self._known_hosts = f"{folder}/known_hosts"
            line = f"[127.0.0.1]:{self.port} {told.export_public_key('openssh').decode()}"
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

    # --- the wire ----------------------------------------------------------------------------------------------------

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
            await self._pass_on(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return  # it is the client's, or the test's, right to go
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", self._behind)
        up = asyncio.create_task(_pump(reader, to_behind))
        if self.at == "connect":
            self.strike()
        sent = 0
        try:
            while data := await behind.read(1 << 16):
                if self.at == "key exchange" and sent + len(data) > _GREETING:
                    writer.write(data[: _GREETING - sent])
                    data = data[_GREETING - sent :]
                    self.strike()
                if self.broken:
                    self._over = True
                    await self._misbehave(writer, data)
                    return
                writer.write(data)
                sent += len(data)
                await writer.drain()
        finally:
            to_behind.transport.abort()
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


class _Login(asyncssh.SSHServer):
    """Lets one user in."""

    def __init__(self, kit: FaultySsh) -> None:
        self._kit = kit

    def begin_auth(self, username: str) -> bool:
        if self._kit.at == "login":
            self._kit.strike()
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        if self._kit.fault == "login refused":
            self._kit.strike()
            return False
        right = username == _USER and secrets.compare_digest(password.encode(), self._kit.password.encode())
        self._kit.logins += right
        return right

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True  # so that it serves as a jump host as well


class _Files(asyncssh.SFTPServer):
    """Serves the objects."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], kit: FaultySsh) -> None:
        super().__init__(channel)
        self._kit = kit

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        self._find(path)
        if self._kit.at == "open":
            self._kit.strike()
        return path

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        kit = self._kit
        data = self._find(file_obj)
        if (
            not isinstance(kit.at, int)
            or not kit.fault
            or (kit.once and kit.struck)
            or not offset <= kit.at < offset + size
        ):
            return data[offset : offset + size]
        kit.strike()
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
        """Nothing is open."""

    def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        size, time, kit = len(self._find(path)), 1_700_000_000, self._kit
        if kit.struck and kit.fault == "changed size":
            size += 1
        if kit.struck and kit.fault == "changed time":
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
