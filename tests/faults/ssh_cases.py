"""What a reader over SSH makes of a misbehaving server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

from canaries import canary
from faults.cases import POSITIONS, Case, deadlines_due

from streamloader.config import Timeouts
from streamloader.errors import (
    AccessDenied,
    IntegrityError,
    ObjectChanged,
    ProtocolError,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.registry import open_store
from streamloader.testing.faults.ssh import FaultySsh
from streamloader.values import ByteRange

DATA = hashlib.shake_256(b"ssh").digest(3_000_000)
AT = {"start": 0, "middle": len(DATA) // 2, "end": len(DATA) - 1}
STAGE = {"start": "connect", "middle": "key exchange", "end": "login"}
TIMEOUTS = Timeouts(connect=30.0, response=30.0, window=30.0, min_rate=1000.0, close=1.0)
AWAY = 9  # connections: some 40 s of waits, and so more than a small number of attempts lasts
READERS = 6
STALLS = ("silence", "drip")  # faults that only a deadline ends

# fault -> words for the table, and the errors that may come of it instead of the right bytes
OF_THE_WIRE = {
    "silence": ("silence in a read", (StoreTimeout,)),
    "drip": ("drip of some bytes a second", (StoreTimeout,)),
    "cut": ("connection closed in a read", (TransferInterrupted, Unreachable)),
    "reset": ("connection reset in a read", (TransferInterrupted, Unreachable)),
}
OF_SFTP = {
    "short": ("fewer bytes than requested", ()),
    "long": ("more bytes than requested", (ProtocolError,)),
    "early end": ("end of file too early", (ProtocolError,)),
    "failure": ("failure status", (StoreError,)),
    "refused": ("permission denied in a read", (AccessDenied,)),
    "garbage": ("no SFTP in the middle of it", (ProtocolError,)),
    "changed size": ("file grows while it is read", (ObjectChanged,)),
    "changed time": ("file is written while it is read", (ObjectChanged,)),
}
OF_THE_HANDSHAKE = {
    "silence": ("silence before a file is open", (StoreTimeout,)),
    "drip": ("drip before a file is open", (StoreTimeout,)),
    "cut": ("closed before a file is open", (Unreachable,)),
    "reset": ("reset before a file is open", (Unreachable,)),
}
OF_SSH = {
    "changed host key": ("changed host key", (UntrustedHost,)),
    "login refused": ("login refused", (AccessDenied,)),
    "no ssh": ("something else than SSH answers", (ProtocolError, Unreachable)),
}


def cases() -> list[Case]:
    """Return every fault at every position."""
    found = []
    for position in POSITIONS:
        for fault, (words, errors) in {**OF_THE_WIRE, **OF_SFTP}.items():
            # What goes wrong with the first bytes goes wrong before there is an answer.
            offset = fault not in ("silence", "drip") or position != "start"
            found.append(
                Case(
                    "ssh",
                    words,
                    position,
                    _attempt(fault, AT[position]),
                    DATA,
                    errors,
                    offset=offset,
                    stalls=fault in STALLS,
                )
            )
        for fault, (words, errors) in OF_THE_HANDSHAKE.items():
            found.append(
                Case(
                    "ssh",
                    words,
                    position,
                    _attempt(fault, STAGE[position]),
                    DATA,
                    errors,
                    offset=False,
                    stalls=fault in STALLS,
                )
            )
        for fault, (words, errors) in OF_SSH.items():
            found.append(Case("ssh", words, position, _attempt(fault, 0), DATA, errors, offset=False))
        found.append(
            Case(
                "ssh",
                "bytes of another offset, with a digest",
                position,
                _attempt("other offset", AT[position], digests=True),
                DATA,
                (IntegrityError,),
                offset=False,
            )
        )
        for fault in ("cut", "reset"):
            words = f"connection {'closed' if fault == 'cut' else 'reset'} once, with retries"
            found.append(Case("ssh", words, position, _attempt(fault, AT[position], again=True), DATA, ()))
        words = f"connection closed, and {AWAY} times more at once, with retries"
        attempt = _attempt("cut", AT[position], again=True, away=AWAY)
        found.append(Case("ssh", words, position, attempt, DATA, (), stalls=True))
        words = "few open files, more readers"
        found.append(Case("ssh", words, position, _read_with_few_files(AT[position]), DATA, ()))
    return found


def _read_with_few_files(at: int):
    """Read up to `at` and from there on, with many readers, from a server that lets a channel have one file open."""

    async def attempt() -> bytes:
        password = canary("ssh-password")
        async with FaultySsh({"object": DATA}, password=password, max_open_files=1) as server:
            async with open_store(server.url, **server.options(), timeouts=TIMEOUTS, connections=1) as store:
                spans = [ByteRange(0, at), ByteRange(at)] * READERS
                parts = await asyncio.gather(*(store.read("object", span) for span in spans))
            assert server.refused_files, "the fault has to strike, or this shows nothing"
        results = [parts[number] + parts[number + 1] for number in range(0, len(parts), 2)]
        return next((data for data in results if data != DATA), DATA)

    return attempt


def _attempt(fault: str, at: int | str, *, digests: bool = False, again: bool = False, away: int = 0):
    async def attempt() -> bytes:
        password = canary("ssh-password")
        async with FaultySsh({"object": DATA}, fault, at, password=password, once=again, away=away) as server:
            options = {**server.options(), "timeouts": TIMEOUTS}
            if not again:
                options["retry"] = None
            if digests:
                options["digests"] = {"object": "sha256:" + hashlib.sha256(DATA).hexdigest()}
            is_slow = fault in STALLS or away
            stalls = deadlines_due(lambda: server.fault_count) if is_slow else contextlib.nullcontext()
            async with open_store(server.url, **options) as store, stalls:
                return await store.read("object")

    return attempt
