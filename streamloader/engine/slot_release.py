"""How slots come back that the user has let go of.

It may happen anywhere: in any thread, inside the collector, while Ctrl-C is being handled. So no Python code runs there
- an interrupt in it would be swallowed, as in every finalizer - but a weak reference is put into a queue, all in C.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Returned", "Returner", "Returns", "drained"]

_STOP_WITHIN = 1.0  # seconds

Returns = queue.SimpleQueue  # of Returned; None ends the thread that waits at it


class Returned(weakref.ref):  # type: ignore[type-arg]
    """The weak reference to a lease. It is in the queue once the lease is gone, and says which slot is free."""

    __slots__ = ("slot",)
    slot: int

    def __new__(cls, lease: Any, returns: queue.SimpleQueue[Any], slot: int) -> Self:
        """Watch `lease`, which is that of `slot`. The reference has to be kept: without it nothing comes back."""
        made = super().__new__(cls, lease, returns.put)
        made.slot = slot
        return made

    def __init__(self, lease: Any, returns: queue.SimpleQueue[Any], slot: int) -> None:
        super().__init__(lease, returns.put)  # type: ignore[call-arg]


class Returner:
    """A thread that calls `returned` with each slot at once, for consumers that take long between two batches.

    Args:
        returned: called in the thread.
    """

    def __init__(self, returns: queue.SimpleQueue[Any], returned: Callable[[int], None]) -> None:
        self._returns, self._returned = returns, returned
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="streamloader-returns", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._returns.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_WITHIN)

    def _run(self) -> None:
        while not self._stopping:
            back = self._returns.get()
            if back is not None:
                self._returned(back.slot)


def drained(returns: queue.SimpleQueue[Any]) -> list[int]:
    """Return the slots that have come back."""
    slots = []
    with contextlib.suppress(queue.Empty):
        while not returns.empty():
            back = returns.get_nowait()
            if back is None:  # it is for the thread
                returns.put(None)
                break
            slots.append(back.slot)
    return slots
