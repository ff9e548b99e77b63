"""One iteration of a loader: what it answers while it goes on, after an error, at its end, and to other threads."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streamloader.errors import CannotCopy, IteratorBusy

if TYPE_CHECKING:
    from typing import Self

__all__ = ["END", "Iteration"]

END: Final = object()


class Iteration:
    """One iteration: `next_item` returns its next item or END, `wait` waits until the next item is available.

    After an error, the next request is made again: a batch that was late may have arrived, and a stream that has failed
    raises its error again. Only the end of the epoch ends the iteration.
    """

    def __init__(self, next_item: Callable[[], Any], wait: Callable[[], Awaitable[None]]) -> None:
        self._next_item, self._wait_until_ready = next_item, wait
        self._finished = False
        self._lock = threading.RLock()  # an interrupt between its acquisition and `try` must not lock this thread out
        self._is_awaited = False

    def __reduce__(self) -> NoReturn:
        raise CannotCopy("an iteration cannot be copied or pickled: it is the only one that takes the loader's batches")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._lock.acquire(blocking=False):
            raise self._make_busy_error()
        try:
            if self._finished:
                raise StopIteration
            item = _run_to_value(self._next_item)
            if item is END:
                self._finished = True
                raise StopIteration
            return item
        finally:
            self._lock.release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._is_awaited:
            raise self._make_busy_error()
        self._is_awaited = True
        try:
            if not self._finished:
                await self._wait_until_ready()
            return self.__next__()
        except StopIteration:
            raise StopAsyncIteration from None
        finally:
            self._is_awaited = False

    def _make_busy_error(self) -> IteratorBusy:
        return IteratorBusy(
            "another thread or task is waiting for the next batch of this iteration. Take the batches in one thread, "
            "and pass them on through a queue, or protect the iterator with a lock"
        )


def _run_to_value(next_item: Callable[[], Any]) -> Any:
    """Return the next item. A StopIteration that user code raises is an error, as in generators (PEP 479)."""
    try:
        return next_item()
    except (StopIteration, StopAsyncIteration) as error:
        raise RuntimeError(f"collate_fn raised {type(error).__name__}, which would end the iteration") from error
