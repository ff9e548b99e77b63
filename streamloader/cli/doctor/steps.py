"""Run the steps of an examination, each with a deadline, and record how long they took and why they failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from streamloader.common.printable import make_printable
from streamloader.errors import StoreTimeout, StreamloaderError
from streamloader.redaction import clean

__all__ = ["StepRecorder"]

T = TypeVar("T")

_MAX_TEXT_CHARACTERS: Final = 2000


class StepRecorder:
    """The steps of an examination.

    Args:
        timeout_s: Deadline of each step in seconds.
        show: Function that is called with the name of each step when it starts.

    Attributes:
        steps: Record of each step: ``step``, ``target``, ``status`` ("ok", "failed" or "skipped"), ``seconds``,
            ``detail`` and ``error`` (its ``type`` and ``message``).
        error: Error of the last step, or None.
    """

    def __init__(self, timeout_s: float, show: Callable[[str], None]) -> None:
        self.timeout_s = timeout_s
        self.steps: list[dict[str, Any]] = []
        self.error: StreamloaderError | None = None
        self._show = show

    async def run(
        self, name: str, target: str, work: Awaitable[T], describe: Callable[[T], str] = lambda _: ""
    ) -> T | None:
        """Await `work`, record it, and return its result. Return None if it has failed or exceeded the deadline.

        Args:
            name: Name of the step.
            target: Address or server that it examines, without secrets.
            work: Work to await. It must not return None.
            describe: Function that returns the detail to record of the result. Defaults to no detail.

        Raises:
            ConfigError: If the step raises one: not the server but the caller has to be corrected.
        """
        self._show(name)
        self.error = None
        started_s = time.perf_counter()
        deadline = asyncio.timeout(self.timeout_s)
        result: T | None = None
        try:
            async with deadline:
                result = await work
        except StreamloaderError as error:
            self.error = error
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self.error = StoreTimeout(
                f"waited {self.timeout_s:g} s for {target} ({name})", waited=self.timeout_s, stage=name
            )
            self.error.__cause__ = error
        seconds = time.perf_counter() - started_s
        self.record(name, target, "ok" if self.error is None else "failed", seconds)
        if self.error is not None:
            text = clean(make_printable(self.error.message, _MAX_TEXT_CHARACTERS))
            self.steps[-1]["error"] = {"type": type(self.error).__name__, "message": text}
        elif result is not None:
            self.steps[-1]["detail"] = clean(make_printable(describe(result), _MAX_TEXT_CHARACTERS))
        return result

    def record(self, name: str, target: str, status: str, seconds: float | None = None, detail: str = "") -> None:
        """Record a step that this object has not run."""
        self.steps.append(
            {
                "step": name,
                "target": clean(make_printable(target, _MAX_TEXT_CHARACTERS)),
                "status": status,
                "seconds": seconds,
                "detail": detail,
                "error": None,
            }
        )
