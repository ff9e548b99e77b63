"""What a reader over SSH makes of a misbehaving server."""

from __future__ import annotations

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

DATA = hashlib.shake_256(b"ssh").digest(3_000_000)
AT = {"start": 0, "middle": len(DATA) // 2, "end": len(DATA) - 1}
STAGE = {"start": "connect", "middle": "key exchange", "end": "login"}
TIMEOUTS = Timeouts(connect=30.0, response=30.0, window=30.0, min_rate=1000.0, close=1.0)
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
    return found


def _attempt(fault: str, at: int | str, *, digests: bool = False, again: bool = False):
    async def attempt() -> bytes:
        password = canary("ssh-password")
        async with FaultySsh({"object": DATA}, fault, at, password=password, once=again) as server:
            options = {**server.options(), "timeouts": TIMEOUTS}
            if not again:
                options["retry"] = None
            if digests:
                options["digests"] = {"object": "sha256:" + hashlib.sha256(DATA).hexdigest()}
            stalls = deadlines_due(lambda: server.fault_count) if fault in STALLS else contextlib.nullcontext()
            async with open_store(server.url, **options) as store, stalls:
                return await store.read("object")

    return attempt
