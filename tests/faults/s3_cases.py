"""Every way in which an S3 server may misbehave, at the start, in the middle and at the end of an object."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

from faults.cases import POSITIONS, Case, deadlines_due
from faults.s3_server import PlainS3

from streamloader.config import Retry, Timeouts
from streamloader.errors import (
    AccessDenied,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
)
from streamloader.stores.base import Store
from streamloader.stores.registry import open_store
from streamloader.testing.faults.s3 import FaultyS3, S3Fault
from streamloader.values import ByteRange

SIZE = 300_007
DATA = random.Random(4).randbytes(SIZE)
AT = dict(zip(POSITIONS, (0, SIZE // 2, SIZE - 1), strict=True))
PARTS = 5  # in which it is read
TIMEOUTS = Timeouts(connect=10, response=30, window=30, min_rate=500, close=0.5)  # obstore lingers as long
STALLS = ("stall", "drip", "stall-head")  # kinds that only a deadline ends
RETRY = Retry(attempts=4, deadline=50, first_wait=0.01, longest_wait=1.5, jitter=0.01)

KEYS = {"access_key_id": "AKFAULTS", "secret_access_key": "not-checked"}
PATIENT = Retry()

Reader = Callable[[Store], Awaitable[bytes]]


async def in_parts(store: Store) -> bytes:
    """Look, then read range by range, of the version that was seen."""
    info = await store.head("a.bin")
    borders = [SIZE * number // PARTS for number in range(PARTS + 1)]
    return b"".join([await store.read("a.bin", ByteRange(*pair), version=info.version) for pair in pairwise(borders)])


async def in_one(store: Store) -> bytes:
    """Read it as a whole."""
    return await store.read("a.bin")


async def found(store: Store) -> bytes:
    """Read what is listed."""
    return b"".join([await store.read(info.path, version=info.version) async for info in store.list()])


def rotate() -> dict[str, object]:
    """Provide credentials that do not say that they expire."""
    return {**KEYS, "expires_at": None}


@dataclass(frozen=True)
class Way:
    """One way to misbehave; `errors` of a store that tries nothing again, empty if it has to manage."""

    what: str
    kind: str
    errors: tuple[type[StoreError], ...] = ()
    read: Reader = in_parts
    retry: Retry | None = None
    fault: dict[str, object] = field(default_factory=dict)
    offset: bool = True

    waits: bool = False  # whether it has to wait for longer than a test may last
    rotates: bool = False

    @property
    def stalls(self) -> bool:
        return self.kind in STALLS or self.waits

    async def attempt(self, position: str) -> bytes:
        async with PlainS3({"a.bin": DATA}) as server, FaultyS3(server.url) as proxy:
            proxy.fault = S3Fault(self.kind, at=AT[position], **self.fault)
            async with open_store(
                "s3://bucket",
                endpoint_url=proxy.url,
                **({"credential_provider": rotate} if self.rotates else KEYS),
                timeouts=TIMEOUTS,
                retry=self.retry,
            ) as store:
                try:
                    async with deadlines_due(lambda: proxy.fault_count) if self.stalls else contextlib.nullcontext():
                        return await self.read(store)
                finally:
                    assert proxy.fault_count, "the fault has to strike, or this shows nothing"


ONCE = {"times": 1}
LISTINGS = {"on": "listings"}
BROKEN = (TransferInterrupted, Unreachable)  # a reset may overtake the head of the answer
WAYS = [
    Way("truncated, ranges", "truncate", BROKEN),
    Way("truncated, whole", "truncate", BROKEN, in_one),
    Way("truncated once, tried again", "truncate", read=in_one, retry=RETRY, fault=ONCE),
    Way("connection reset in the body", "reset", BROKEN),
    Way("connection reset once, tried again", "reset", read=in_one, retry=RETRY, fault=ONCE),
    Way("stall in the body", "stall", (StoreTimeout,)),
    Way("stall in the body once, tried again", "stall", read=in_one, retry=RETRY, fault=ONCE),
    Way("drip of 1 B/s", "drip", (StoreTimeout, TransferInterrupted), in_one),
    Way("stall at the header", "stall-head", (StoreTimeout,), offset=False),
    Way("hangs up before it answers", "hang-up", (Unreachable,)),
    Way("hangs up once, tried again", "hang-up", retry=RETRY, fault=ONCE),
    Way("503 SlowDown", "slow-down", (ServerBusy,)),
    Way("503 SlowDown once, tried again", "slow-down", retry=RETRY, fault=ONCE),
    Way("429 with Retry-After", "too-many", (ServerBusy,)),
    Way("503, Retry-After: 45, twice", "slow-down", retry=PATIENT, waits=True, fault={"times": 2, "retry_after": 45}),
    Way("503 SlowDown 9 times, tried again", "slow-down", retry=PATIENT, waits=True, fault={"times": 9}),
    Way("hangs up 9 times, tried again", "hang-up", read=in_one, retry=PATIENT, waits=True, fault={"times": 9}),
    Way("credentials expired early, others provided", "expired", rotates=True, fault=ONCE),
    Way("credentials expired early, the same provided", "expired", (AccessDenied,), rotates=True),
    Way("archived object", "archived", (NotSupported,)),
    Way("500 InternalError", "internal-error", (ServerBusy,)),
    Way("500 InternalError once, tried again", "internal-error", retry=RETRY, fault=ONCE),
    Way("range ignored (200)", "ignored-range", (ProtocolError,)),
    Way("another range", "wrong-range", (ProtocolError,)),
    Way("fewer bytes than the range says", "forged-range", (TransferInterrupted, ProtocolError)),
    Way("ETag changes between ranges", "changed-etag", (ObjectChanged,)),
    Way("HTML instead of XML", "html", (ProtocolError,), found, fault=LISTINGS, offset=False),
    Way(
        "listing cut in a complete response",
        "half-listing",
        (TransferInterrupted,),
        found,
        fault=LISTINGS,
        offset=False,
    ),
    Way("listing without the token to go on", "lost-token", (ProtocolError,), found, fault=LISTINGS, offset=False),
    Way("credentials expired in a listing", "expired", read=found, rotates=True, fault={**LISTINGS, **ONCE}),
    Way("listing hangs", "stall-head", (StoreTimeout,), found, fault=LISTINGS, offset=False),
    Way("listing broken off", "hang-up", (Unreachable, TransferInterrupted), found, fault=LISTINGS, offset=False),
    Way("listing 503", "slow-down", (ServerBusy,), found, fault=LISTINGS, offset=False),
    Way("listing 503 once, tried again", "slow-down", read=found, retry=RETRY, fault={**LISTINGS, **ONCE}),
]


def cases() -> list[Case]:
    """Return every fault at every position."""
    return [
        Case(
            "s3",
            way.what,
            position,
            lambda way=way, position=position: way.attempt(position),
            DATA,
            way.errors,
            offset=way.offset,
            stalls=way.stalls,
        )
        for way in WAYS
        for position in POSITIONS
    ]
