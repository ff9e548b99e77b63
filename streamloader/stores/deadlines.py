"""Enforce a transfer's deadlines: a time limit for the first byte, then a minimum throughput."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from streamloader.config import Timeouts
from streamloader.errors import StoreTimeout

__all__ = ["TransferDeadline"]


class TransferDeadline:
    """Enforces a transfer's deadlines: a time limit for the first byte, then a minimum throughput.

    Throughput is measured over windows of ``Timeouts.window`` seconds. Only time spent waiting for bytes counts.

    Args:
        timeouts: Deadlines to enforce.
        address: Address of the object, for error messages.

    Attributes:
        offset: Offset of the next byte, for error messages. Defaults to None: messages then name no offset.
    """

    def __init__(self, timeouts: Timeouts, address: str) -> None:
        self._timeouts = timeouts
        self._address = address
        self._min_window_bytes = timeouts.min_rate * timeouts.window
        self._window_bytes = 0
        self._window_waited = 0.0  # seconds
        self.offset: int | None = None

    @contextlib.asynccontextmanager
    async def limit_response(self, stage: str) -> AsyncIterator[None]:
        """Limit the wait for a response, including the time to open a connection.

        Args:
            stage: Name of the operation, for error messages.

        Raises:
            StoreTimeout: If no response arrives in time.
        """
        seconds = self._timeouts.connect + self._timeouts.response
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._make_error(seconds, stage, "no response") from error

    @contextlib.asynccontextmanager
    async def limit_next_bytes(self, stage: str) -> AsyncIterator[None]:
        """Limit the wait for the next bytes.

        Args:
            stage: Name of the operation, for error messages.

        Raises:
            StoreTimeout: If no bytes arrive, or if the throughput over one window is below the minimum.
        """
        started = time.monotonic()
        limit = asyncio.timeout(max(0.0, self._timeouts.window - self._window_waited))
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            rate = self._window_bytes / self._timeouts.window if self._timeouts.window else 0.0
            raise self._make_error(
                self._timeouts.window, stage, f"received {self._window_bytes} bytes in that time ({rate:.0f} B/s)"
            ) from error
        self._window_waited += time.monotonic() - started

    def count_received(self, count: int) -> None:
        """Count received bytes. Start a new window once the current one has reached the minimum.

        Args:
            count: Number of bytes received.
        """
        self._window_bytes += count
        if self.offset is not None:
            self.offset += count
        if self._window_bytes >= self._min_window_bytes:
            self._window_bytes, self._window_waited = 0, 0.0

    def _make_error(self, seconds: float, stage: str, detail: str) -> StoreTimeout:
        offset = "" if self.offset is None else f", at byte {self.offset}"
        return StoreTimeout(
            f"waited {seconds:.1f} s for {self._address} ({stage}{offset}): {detail}",
            address=self._address,
            offset=self.offset,
            waited=seconds,
            stage=stage,
        )
