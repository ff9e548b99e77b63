"""Several threads for the jobs of one call: none of them is left when it returns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Crew"]

J = TypeVar("J")


class Crew(Generic[J]):
    """Some threads that do jobs, this one among them; the first job that fails, fails all."""

    def __init__(self, first: list[J], rest: Iterator[J], do: Callable[[J], None]) -> None:
        self._first = deque(first)
        self._rest = rest
        self._do = do
        self._lock = threading.Lock()
        self._taken = 0
        self._stopped = False
        self._errors: list[tuple[int, BaseException]] = []

    def work(self, threads: int) -> None:
        """Do all jobs."""
        helpers = [threading.Thread(target=self._play, name=f"archive-{n}", daemon=True) for n in range(1, threads)]
        for helper in helpers:
            helper.start()
        try:
            self._play()
        finally:
            self._stopped = True
            for helper in helpers:
                helper.join()
        if self._errors:
            raise min(self._errors, key=lambda failed: failed[0])[1]

    def _play(self) -> None:
        while not self._stopped:
            number = -1
            try:
                with self._lock:
                    job = self._first.popleft() if self._first else next(self._rest, None)
                    number, self._taken = self._taken, self._taken + 1
                if job is None:
                    return
                self._do(job)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                self._errors.append((number, error))
                self._stopped = True
