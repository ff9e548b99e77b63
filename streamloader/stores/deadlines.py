"""Whether a transfer is fast enough."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from streamloader.config import Timeouts
from streamloader.errors import StoreTimeout

__all__ = ["Pace"]


class Pace:
    """Holds one transfer to its deadlines: its first byte in time, and then so many bytes for each window of waiting.

    Args:
        timeouts: the deadlines.
        address: for the error.

    Attributes:
        at: offset of the next byte, for the error.
    """

    def __init__(self, timeouts: Timeouts, address: str) -> None:
        self._timeouts = timeouts
        self._address = address
        self._wanted = timeouts.min_rate * timeouts.window  # bytes
        self._came = 0
        self._waited = 0.0
        self.at: int | None = None

    @contextlib.asynccontextmanager
    async def first(self, stage: str) -> AsyncIterator[None]:
        """Limit the wait for an answer, a new connection included.

        Raises:
            StoreTimeout: it did not come.
        """
        seconds = self._timeouts.connect + self._timeouts.response
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._late(seconds, stage, "no answer") from error

    @contextlib.asynccontextmanager
    async def next(self, stage: str) -> AsyncIterator[None]:
        """Limit the wait for the next bytes.

        Raises:
            StoreTimeout: they did not come, or over a whole window too few did.
        """
        began = time.monotonic()
        limit = asyncio.timeout(max(0.0, self._timeouts.window - self._waited))
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            rate = self._came / self._timeouts.window if self._timeouts.window else 0.0
            raise self._late(
                self._timeouts.window, stage, f"{self._came} bytes came in that time ({rate:.0f} B/s)"
            ) from error
        self._waited += time.monotonic() - began

    def got(self, count: int) -> None:
        """Count bytes that came."""
        self._came += count
        if self.at is not None:
            self.at += count
        if self._came >= self._wanted:
            self._came, self._waited = 0, 0.0

    def _late(self, seconds: float, stage: str, what: str) -> StoreTimeout:
        where = "" if self.at is None else f", at byte {self.at}"
        return StoreTimeout(
            f"waited {seconds:.1f} s for {self._address} ({stage}{where}): {what}",
            address=self._address,
            offset=self.at,
            waited=seconds,
            stage=stage,
        )
