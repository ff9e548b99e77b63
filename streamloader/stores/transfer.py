"""One read of a store: the response that announces its bytes, and the checks of what arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from typing_extensions import override

from streamloader.errors import LimitExceeded, ProtocolError, TransferInterrupted
from streamloader.stores.deadlines import TransferDeadline
from streamloader.values import ObjectInfo

__all__ = ["Body", "Transfer"]


@dataclass(slots=True)
class Body:
    """A response whose transfer has started: which bytes of which object will follow.

    Attributes:
        info: Metadata of the object, for the version being sent.
        start: Offset of the first byte of the response.
        end: Offset after the last byte. None if the server does not announce it. A store whose transfers can break off
            unnoticed in that case must raise TransferInterrupted itself.
        pieces: Bytes of the response, in pieces of any size.
        skip: Number of bytes sent before `start` by a server that cannot start there. They are discarded.
        bounded: Whether `pieces` yields nothing after `end` in any case. Nobody then waits for its end.
    """

    info: ObjectInfo
    start: int
    end: int | None
    pieces: AsyncIterator[bytes]
    skip: int = 0
    bounded: bool = False


class Transfer(AbstractAsyncContextManager["Transfer"]):
    """A read of a store, from the request to the last byte.

    Args:
        request: Context of the read.
        open_body: Function that enters `request`.
        check_body: Function that checks the response. It returns the offset at which the transfer has to end, or None
            if neither the server nor the request defines it.
        deadline: Deadline of the read.
        address: Address of the object, for error messages.
        unsized_bytes: Maximum offset of a transfer whose end is not defined.
    """

    def __init__(
        self,
        request: AbstractAsyncContextManager[Body],
        open_body: Callable[[], Awaitable[Body]],
        check_body: Callable[[Body], int | None],
        deadline: TransferDeadline,
        address: str,
        unsized_bytes: int,
    ) -> None:
        self._request = request
        self._open_body = open_body
        self._check_body = check_body
        self._deadline = deadline
        self._address = address
        self._unsized_bytes = unsized_bytes
        self._has_ended = False

    @override
    async def __aenter__(self) -> Self:
        with self._deadline.limit_response("waiting for the first bytes"):
            self._body = body = await self._open_body()
        try:
            self._end = self._check_body(body)
        except BaseException as error:
            await self._request.__aexit__(type(error), error, error.__traceback__)
            raise
        self._deadline.offset = self._offset = body.start - body.skip
        self._pieces = aiter(body.pieces)
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(self._pieces, AsyncGenerator):
                await self._pieces.aclose()
        finally:
            await self._request.__aexit__(kind, error, traceback)

    async def fetch_next(self) -> bytes | None:
        """Return the next bytes, or None at the end.

        Raises:
            TransferInterrupted: If the transfer ends before all announced bytes have arrived.
            ProtocolError: If more than the announced bytes arrive.
            LimitExceeded: If the end is not defined, and too many bytes arrive.
            StoreError: If the transfer fails otherwise.
        """
        body = self._body
        while not self._has_ended:
            with self._deadline.limit_next_bytes("fetching"):
                piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._offset = offset = self._offset + len(piece)
            if offset > (self._unsized_bytes if self._end is None else self._end):
                raise self._make_endless_error()
            self._deadline.count_received(len(piece))
            self._has_ended = body.bounded and offset == body.end
            if offset - len(piece) < body.start:
                piece = piece[max(0, len(piece) - offset + body.start) :]
            if piece:
                return piece
        self._has_ended = True
        if body.end is not None and self._offset < body.end:
            raise TransferInterrupted(
                f"{self._address}: the transfer broke off at byte {self._offset}, before the end of the request at "
                f"byte {body.end}",
                address=self._address,
                offset=self._offset,
            )
        return None

    def _make_endless_error(self) -> ProtocolError | LimitExceeded:
        """Build the error for a server that sends more bytes than it announced, or than a limit allows."""
        if self._end is not None:
            message = f"{self._address}: received more than the announced {self._end - self._body.start} bytes"
            return ProtocolError(message, address=self._address, offset=self._end)
        limit = self._unsized_bytes
        return LimitExceeded(
            f"{self._address}: its server does not declare its size, and has sent {limit} bytes without an end: raise "
            "Limits(unsized_bytes=...)",
            address=self._address,
            offset=limit,
        )
