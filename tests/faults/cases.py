"""What happens to a reader when a server misbehaves: one case, and how it is settled."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from clocks import JumpingLoop

from streamloader.errors import StoreError

POSITIONS = ("start", "middle", "end")  # of the object, at which a fault strikes
JUMP_S = 100.0  # beyond all deadlines of the stores of the cases


@dataclass(frozen=True)
class Case:
    """One fault at one position.

    Attributes:
        kit: which misbehaving server: "http", "gateway", "ssh", "s3".
        fault: what it does, in words for the table.
        position: where, one of POSITIONS.
        attempt: starts the server, reads through a real store, and returns what came.
        expected: the right bytes.
        errors: what may be raised instead; empty if the store has to manage.
        deadline: seconds in which it has to be settled.
        offset: whether the error has to name one.
        stalls: whether only a deadline of the store can end it. Such a case moves the loop's clock: no other may run.
    """

    kit: str
    fault: str
    position: str
    attempt: Callable[[], Awaitable[bytes]]
    expected: bytes
    errors: tuple[type[StoreError], ...]
    deadline: float = 60.0
    offset: bool = True
    stalls: bool = False

    def __str__(self) -> str:
        return f"{self.kit}: {self.fault}, {self.position}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        case: the case.
        result: "right bytes", or the name of the error.
        seconds: until then.
        wrong: what should not be, "" if all is well.
    """

    case: Case
    result: str
    seconds: float
    wrong: str = ""


@contextlib.asynccontextmanager
async def deadlines_due(count_strikes: Callable[[], int], jump_s: float = JUMP_S) -> AsyncIterator[None]:
    """Set the loop's clock forward each time a fault has struck, so that the wait that it causes has lasted too long.

    So the deadlines of the store can be generous, and no other wait of a case can exceed them.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)

    async def watch() -> None:
        seen = 0
        while True:
            if (strikes := count_strikes()) > seen:
                seen = strikes
                await loop.rest()  # what was sent before the stall has been read then, and the wait for more has begun
                loop.jump(jump_s)
            await asyncio.sleep(0.002)  # between two looks

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def _finish(attempt: Awaitable[bytes], deadline: float) -> bytes:
    """Wait for an attempt until `deadline`, of the real clock.

    Raises:
        TimeoutError: If it has not ended by then.
    """
    task = asyncio.ensure_future(attempt)
    while not (await asyncio.wait([task], timeout=1.0))[0]:
        if time.monotonic() > deadline:
            task.cancel()
            await asyncio.wait([task])
            raise TimeoutError
    return task.result()


async def settle(case: Case) -> Outcome:
    """Play a case and judge it."""
    began = time.monotonic()
    wrong, result = "", "right bytes"
    try:
        came = await _finish(case.attempt(), began + case.deadline)
        if came != case.expected:
            same = next(
                (at for at, pair in enumerate(zip(came, case.expected, strict=False)) if pair[0] != pair[1]), -1
            )
            wrong = f"SILENT WRONG BYTES: {len(came)} of {len(case.expected)}, first difference at {same}"
    except StoreError as error:
        result = type(error).__name__
        if not isinstance(error, case.errors):
            wrong = f"raised {error!r}"
        elif error.address is None or (case.offset and error.offset is None):
            wrong = f"names no address or offset: {error!r}"
    except TimeoutError:
        result, wrong = "hung", f"not settled within {case.deadline} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not one of ours
        result, wrong = type(error).__name__, f"an error that is not ours: {error!r}"
    return Outcome(case, result, time.monotonic() - began, wrong)
