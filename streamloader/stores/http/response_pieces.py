"""The bytes of HTTP responses as they arrive, with the errors of this package."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp
from typing_extensions import override

from streamloader.config import Timeouts
from streamloader.errors import RangeNotSatisfiable
from streamloader.stores.deadlines import TransferDeadline
from streamloader.stores.http.client import ErrorTranslator
from streamloader.stores.http.responses import ErrorContext

__all__ = ["ResponsePieces", "limit_waits"]


class ResponsePieces(AsyncIterator[bytes]):
    """The bytes of a response. It is a class because a generator would take longer, which matters for short ranges.

    Args:
        response: Response to read.
        context: Address for error messages.
        timeouts: Deadlines, for error messages.
        offset: Offset of the first byte of the response in the object.
        end: Offset to stop at. Defaults to the end of the response.
        min_size: Minimum size of the object, in bytes, if it is not known before the response ends. Defaults to 0.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        context: ErrorContext,
        timeouts: Timeouts,
        offset: int,
        end: int | None = None,
        min_size: int = 0,
    ) -> None:
        self._response = response
        self._context = context
        self._errors = ErrorTranslator(context, response.url, timeouts, started=True)
        self._offset = offset
        self._end = end
        self._min_size = min_size

    @override
    async def __anext__(self) -> bytes:
        """Return the next bytes.

        Raises:
            RangeNotSatisfiable: If the object is smaller than `min_size`.
        """
        piece = b""
        if self._end is None or self._offset < self._end:
            self._errors.offset = self._offset
            with self._errors:
                piece = await self._response.content.readany()
        if not piece:
            self._check_size()
            raise StopAsyncIteration
        if self._end is not None:
            piece = piece[: self._end - self._offset]
        self._offset += len(piece)
        return piece

    def _check_size(self) -> None:
        # With a transfer encoding the end is marked, so the transfer has not merely broken off.
        if self._offset < self._min_size and "Transfer-Encoding" in self._response.headers:
            raise RangeNotSatisfiable(
                f"{self._context.address} has only {self._offset} bytes, fewer than requested",
                address=self._context.address,
                offset=self._context.offset,
                size=self._offset,
            )


async def limit_waits(pieces: AsyncIterator[bytes], deadline: TransferDeadline) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a page. Each wait for them has a deadline."""
    deadline.offset = 0
    while True:
        with deadline.limit_next_bytes("listing"):
            piece = await anext(pieces, None)
        if piece is None:
            return
        deadline.count_received(len(piece))
        yield piece
