"""What several tasks want at the same time is fetched once."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from streamloader.errors import StreamloaderError

__all__ = ["Flights"]

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.landed: tuple[T] | None = None
        self.failed: StreamloaderError | None = None


class Flights(Generic[T]):
    """Fetches under way, by key. Who comes while one is under way waits for it, and gets the same, or the same error.

    The first one fetches in its own task, so that deadlines and cancellation are its own: when it is cancelled, the
    next one who waits begins anew. Nothing is kept once nobody waits. It can be pickled, and used after a fork
    or in another loop.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None

    def is_busy(self, key: Hashable) -> bool:
        """Return whether :meth:`once` would wait for somebody else."""
        self._settle_in()
        return key in self._flights

    async def once(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """Return what `fetch` gives, or gave to somebody who asked for the same key at the same time."""
        self._settle_in()
        flights = self._flights
        flight = flights.setdefault(key, _Flight())
        flight.users += 1
        try:
            async with flight.lock:
                if flight.failed is not None:
                    raise copy.copy(flight.failed) from flight.failed
                if flight.landed is None:
                    try:
                        flight.landed = (await fetch(),)
                    except StreamloaderError as error:
                        flight.failed = error
                        raise
                return flight.landed[0]
        finally:
            flight.users -= 1
            if not flight.users:
                flights.pop(key, None)

    def _settle_in(self) -> None:
        here = os.getpid(), asyncio.get_running_loop()
        if self._home != here:
            self._flights, self._home = {}, here

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is under way."""
        return {"_flights": {}, "_home": None}
