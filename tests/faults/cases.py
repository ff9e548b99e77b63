"""What happens to a reader when a server misbehaves: one case, and how it is settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from streamloader.errors import StoreError

POSITIONS = ("start", "middle", "end")  # of the object, at which a fault strikes


@dataclass(frozen=True)
class Case:
    """One fault at one position.

    Attributes:
        kit: which misbehaving server: "http", "gateway", "ssh", "s3".
        fault: what it does, in words for the table.
        position: where, one of POSITIONS.
        attempt: starts the server, reads through a real store that has short deadlines, and returns what came.
        expected: the right bytes.
        errors: what may be raised instead; empty if the store has to manage.
        deadline: seconds in which it has to be settled.
        offset: whether the error has to name one.
    """

    kit: str
    fault: str
    position: str
    attempt: Callable[[], Awaitable[bytes]]
    expected: bytes
    errors: tuple[type[StoreError], ...]
    deadline: float = 10.0
    offset: bool = True

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


async def settle(case: Case) -> Outcome:
    """Play a case and judge it."""
    began = time.monotonic()
    wrong, result = "", "right bytes"
    try:
        async with asyncio.timeout(case.deadline):
            came = await case.attempt()
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
