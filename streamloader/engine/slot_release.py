"""Return slots to the supervisor once the user holds no reference to their batch any more.

The last reference may be dropped anywhere: in any thread, inside the garbage collector, while Ctrl-C is being handled.
So no Python code runs there, where an interrupt would be swallowed as in every finalizer. Instead, a weak reference is
put into a queue, all in C.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

__all__ = ["ReleaseQueue", "SlotReclaimer", "SlotRef", "drain_released_slots"]

_STOP_TIMEOUT_S: Final = 1.0

ReleaseQueue = queue.SimpleQueue  # of SlotRef, or None to stop the thread that waits at it


class SlotRef(weakref.ref):  # type: ignore[type-arg]
    """Weak reference to a lease. It is put into the release queue once the lease is gone.

    The reference itself has to be kept: without it, the slot is never released. Its creation runs no Python code.

    Args:
        lease: Lease to be watched.
        callback: The queue's ``put``.

    Attributes:
        slot: Slot of the lease, which the caller sets.
    """

    __slots__ = ("slot",)
    slot: int


class SlotReclaimer:
    """Thread that reports each released slot at once, for consumers that take long between two batches.

    Args:
        released: Queue of released slots.
        on_release: Function that is called in the thread with each released slot.
    """

    def __init__(self, released: queue.SimpleQueue[Any], on_release: Callable[[int], None]) -> None:
        self._released, self._on_release = released, on_release
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="streamloader-slot-release", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping = True
        self._released.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping:
            ref = self._released.get()
            if ref is not None:
                self._on_release(ref.slot)


def drain_released_slots(released: queue.SimpleQueue[Any]) -> list[int]:
    """Take all released slots from the queue, without waiting."""
    slots = []
    with contextlib.suppress(queue.Empty):
        while not released.empty():
            ref = released.get_nowait()
            if ref is None:  # meant for the thread
                released.put(None)
                break
            slots.append(ref.slot)
    return slots
