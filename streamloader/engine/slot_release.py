"""Return slots to the supervisor once the user holds no reference to their batch any more.

The last reference may be dropped anywhere: in any thread, inside the garbage collector, while Ctrl-C is being handled.
So no Python code runs there, where an interrupt would be swallowed as in every finalizer. Instead, weak references are
put into queues, all in C.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

__all__ = ["ReleaseQueue", "SlotReclaimer"]

_STOP_TIMEOUT_S: Final = 1.0


class _SlotRef(weakref.ref):  # type: ignore[type-arg]
    """Weak reference to a lease. It is put into the release queue once the lease is gone.

    Attributes:
        slot: Slot of the lease.
    """

    __slots__ = ("slot",)
    slot: int


class ReleaseQueue:
    """Slots that the user holds no reference to any more, until they are drained.

    A slot is in this queue from the moment at which its lease is gone. A thread that waits for slots only receives an
    announcement, and has to drain the queue like all others: a queue that hands over the slots themselves gives one to
    the waiting thread before that thread runs (``queue.SimpleQueue`` does since Python 3.13), and until it runs, nobody
    else knows that the slot is free.
    """

    def __init__(self) -> None:
        self._released: deque[_SlotRef] = deque()
        self._put = self._released.append
        self._announce: Callable[[Any], None] | None = None
        self._references: dict[int, tuple[Any, _SlotRef]] = {}  # a reference that is not kept calls nothing

    def watch(self, lease: Any, slot: int) -> None:
        """Put `slot` into the queue once `lease` is gone."""
        # The reference that was made last is called first: the slot is in the queue before it is announced.
        announcement = None if self._announce is None else weakref.ref(lease, self._announce)
        reference = _SlotRef(lease, self._put)
        reference.slot = slot
        self._references[slot] = announcement, reference

    def announce_to(self, callback: Callable[[Any], None]) -> None:
        """Call `callback`, a function in C, with a weak reference after each release of slots leased from now on."""
        self._announce = callback

    def __len__(self) -> int:
        """Return the number of slots in the queue."""
        return len(self._released)

    def drain(self) -> list[int]:
        """Take all slots out of the queue, without waiting."""
        slots: list[int] = []
        with contextlib.suppress(IndexError):
            while self._released:
                slots.append(self._released.popleft().slot)
        return slots


class SlotReclaimer:
    """Thread that has released slots drained at once, for consumers that take long between two batches.

    Args:
        released: Queue of released slots.
        on_release: Function that drains the queue. It is called in the thread while slots are in the queue.
    """

    def __init__(self, released: ReleaseQueue, on_release: Callable[[], None]) -> None:
        self._released, self._on_release = released, on_release
        self._announcements: queue.SimpleQueue[Any] = queue.SimpleQueue()  # of weak references, or None to stop
        released.announce_to(self._announcements.put)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="streamloader-slot-release", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping = True
        self._announcements.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping:
            self._announcements.get()
            if self._released and not self._stopping:
                self._on_release()
