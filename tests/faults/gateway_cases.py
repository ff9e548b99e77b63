"""What IPFS gateways do wrong: every fault at the first, a middle and the last block of a file, in blocks and CARs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from faults.cases import JUMP_S, POSITIONS, Case, deadlines_due

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    IntegrityError,
    LimitExceeded,
    NotFound,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
)
from streamloader.stores.ipfs.store import IpfsStore
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FAULTS, FaultyGateway, deep_file

DATA = random.Random(5).randbytes(24_000)
DAG = DagBuilder(chunk_size=2_000, width=4)  # 12 blocks under 3 nodes under one
FILE = DAG.file(DATA)
LEAVES = DAG.leaves(FILE)
VICTIM = {"start": LEAVES[0], "middle": LEAVES[len(LEAVES) // 2], "end": LEAVES[-1]}
TIMEOUTS = Timeouts(connect=30, response=30, window=80, min_rate=100.0)
FAILOVER_JUMP_S = 45.0  # beyond the deadlines of one of two gateways (30 and 40), within those of the read (60 and 80)
SLOW = ("stall at the header", "stall in the body", "drip")  # faults that only a deadline ends

# What has to be raised where there is no other gateway, for blocks and for CARs.
ERRORS: dict[str, tuple[type[StoreError], type[StoreError]]] = {
    "flipped byte": (IntegrityError, IntegrityError),
    "another valid block": (IntegrityError, TransferInterrupted),
    "truncated with 200": (IntegrityError, TransferInterrupted),
    "extra blocks": (IntegrityError, ProtocolError),
    "oversized block": (LimitExceeded, LimitExceeded),
    "HTML instead of data": (IntegrityError, ProtocolError),
    "stall at the header": (StoreTimeout, StoreTimeout),
    "stall in the body": (StoreTimeout, StoreTimeout),
    "drip": (StoreTimeout, StoreTimeout),
    "reset": (TransferInterrupted, TransferInterrupted),
    "429": (ServerBusy, ServerBusy),
    "503": (ServerBusy, ServerBusy),
    "404": (NotFound, NotFound),
}


def cases() -> list[Case]:
    """Return all of them."""
    return [*_alone(), *_with_another(), *_deep()]


def _alone() -> Iterator[Case]:
    for fault in FAULTS:
        for number, form in enumerate(("raw", "car")):
            for position in POSITIONS:
                yield Case(
                    "gateway",
                    f"{fault} ({form})",
                    position,
                    lambda fault=fault, form=form, position=position: _read(fault, form, VICTIM[position]),
                    DATA,
                    (ERRORS[fault][number],),
                    stalls=fault in SLOW,
                )


def _with_another() -> Iterator[Case]:
    """Yield the same with an honest gateway besides: nothing may be noticed."""
    for fault in FAULTS:
        for form in ("raw",) if fault in SLOW else ("raw", "car"):
            for position in POSITIONS:
                yield Case(
                    "gateway",
                    f"{fault} ({form}), another gateway is honest",
                    position,
                    lambda fault=fault, form=form, position=position: _read(fault, form, VICTIM[position], honest=True),
                    DATA,
                    (),
                    stalls=fault in SLOW,
                )


def _deep() -> Iterator[Case]:
    for form in ("raw", "car"):
        for position in POSITIONS:
            yield Case(
                "gateway",
                f"deep DAG ({form})",
                position,
                lambda form=form, position=position: _read_deep(form, position),
                DATA,
                (LimitExceeded,),
            )


async def _read(fault: str, form: str, victim: object, *, honest: bool = False) -> bytes:
    async with FaultyGateway(DAG.blocks, fault, victim=victim) as faulty, FaultyGateway(DAG.blocks) as other:
        gateways = [faulty.url, other.url] if honest else [faulty.url]
        jump_s = FAILOVER_JUMP_S if honest else JUMP_S
        stalls = deadlines_due(lambda: faulty.fault_count, jump_s) if fault in SLOW else contextlib.nullcontext()
        async with IpfsStore(gateways=gateways, format=form, timeouts=TIMEOUTS) as store, stalls:
            return await store.read(str(FILE.cid))


async def _read_deep(form: str, position: str) -> bytes:
    """Read a file one piece of which, at the start, in the middle or at the end, lies under too many nodes."""
    dag = DagBuilder(chunk_size=2_000)
    pieces = [DATA[at : at + 2_000] for at in range(0, len(DATA), 2_000)]
    deep = {"start": 0, "middle": len(pieces) // 2, "end": len(pieces) - 1}[position]
    built = [deep_file(dag, piece, 200) if number == deep else dag.file(piece) for number, piece in enumerate(pieces)]
    root = dag.parent(built)
    async with (
        FaultyGateway(dag.blocks) as gateway,
        IpfsStore(gateways=gateway.url, format=form, timeouts=TIMEOUTS, limits=Limits(depth=100)) as store,
    ):
        return await store.read(str(root.cid))
