"""What a reader over SSH makes of a misbehaving server."""

from __future__ import annotations

import hashlib

from canaries import canary
from faults.cases import POSITIONS, Case

from streamloader.config import Timeouts
from streamloader.errors import (
    AccessDenied,
    Interrupted,
    ObjectChanged,
    ProtocolFault,
    StoreError,
    StoreTimeout,
    Unreachable,
    UntrustedHost,
    WrongContent,
)
from streamloader.stores.registry import open_store
from streamloader.testing.faults.ssh import FaultySsh

DATA = hashlib.shake_256(b"ssh").digest(3_000_000)
AT = {"start": 0, "middle": len(DATA) // 2, "end": len(DATA) - 1}
STAGE = {"start": "connect", "middle": "key exchange", "end": "login"}
SHORT = Timeouts(connect=1.0, response=1.0, window=1.0, min_rate=1000.0, close=1.0)

# fault -> words for the table, and the errors that may come of it instead of the right bytes
OF_THE_WIRE = {
    "silence": ("silence in a read", (StoreTimeout,)),
    "drip": ("drip of some bytes a second", (StoreTimeout,)),
    "cut": ("connection closed in a read", (Interrupted, Unreachable)),
    "reset": ("connection reset in a read", (Interrupted, Unreachable)),
}
OF_SFTP = {
    "short": ("fewer bytes than asked for", ()),
    "long": ("more bytes than asked for", (ProtocolFault,)),
    "early end": ("end of file too early", (ProtocolFault,)),
    "failure": ("failure status", (StoreError,)),
    "refused": ("permission denied in a read", (AccessDenied,)),
    "garbage": ("no SFTP in the middle of it", (ProtocolFault,)),
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
    "no ssh": ("something else than SSH answers", (ProtocolFault, Unreachable)),
}


def cases() -> list[Case]:
    """Return every fault at every position."""
    found = []
    for position in POSITIONS:
        for fault, (words, errors) in {**OF_THE_WIRE, **OF_SFTP}.items():
            # What goes wrong with the first bytes goes wrong before there is an answer.
            offset = fault not in ("silence", "drip") or position != "start"
            found.append(Case("ssh", words, position, _attempt(fault, AT[position]), DATA, errors, offset=offset))
        for fault, (words, errors) in OF_THE_HANDSHAKE.items():
            found.append(Case("ssh", words, position, _attempt(fault, STAGE[position]), DATA, errors, offset=False))
        for fault, (words, errors) in OF_SSH.items():
            found.append(Case("ssh", words, position, _attempt(fault, 0), DATA, errors, offset=False))
        found.append(
            Case(
                "ssh",
                "bytes of another offset, with a digest",
                position,
                _attempt("other offset", AT[position], digests=True),
                DATA,
                (WrongContent,),
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
            options = {**server.options(), "timeouts": SHORT}
            if not again:
                options["retry"] = None
            if digests:
                options["digests"] = {"object": "sha256:" + hashlib.sha256(DATA).hexdigest()}
            async with open_store(server.url, **options) as store:
                return await store.read("object")

    return attempt
