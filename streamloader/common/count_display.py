"""A bar on a terminal that shows how many of many small items are done, their rate, and the remaining time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

__all__ = ["open_count_display"]

_SHOWN_AFTER_S: Final = 1.5
_MIN_REMAINING_S: Final = 1.0
_REFRESH_INTERVAL_S: Final = 0.2


@contextlib.contextmanager
def open_count_display(label: str, stream: IO[str] | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows the number of done items and the number of all items, or 0 if that is unknown.

    The bar appears on a terminal only, once the work has taken a moment and is not about to end; with several ranks on
    one machine, only the first of them shows it.

    Args:
        label: Name of the work, such as "indexing videos".
        stream: Text stream for the bar. Defaults to stderr.
    """
    stream = stream or sys.stderr
    if not stream.isatty() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield lambda done, total: None
        return
    bar = _Bar(label, stream)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    """A bar that is drawn when it is worth it."""

    def __init__(self, label: str, stream: IO[str]) -> None:
        self._label = label
        self._stream = stream
        self._started_at = time.monotonic()
        self._refreshed_at = self._started_at
        self._bar: Any = None

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._refreshed_at < _REFRESH_INTERVAL_S and (self._bar is None or done < total or not total):
            return
        self._refreshed_at = now
        rate = done / max(now - self._started_at, 1e-9)
        remaining_s = (total - done) / rate if rate and total else float("inf")
        if self._bar is None:
            if now - self._started_at < _SHOWN_AFTER_S or remaining_s < _MIN_REMAINING_S:
                return
            self._bar = _start_bar(self._label, self._stream)
        rate_text = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"  # noqa: PLR2004
        text = f"{done:,}, {rate_text}/s"
        if total:
            text = f"{done:,} of {total:,}, {rate_text}/s, {_format_duration(remaining_s)} left"
        self._bar.update(
            self._bar.task_ids[0],
            completed=done,
            total=total or None,
            text=text,
            refresh=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 1e9)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"  # noqa: PLR2004


def _start_bar(label: str, stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(file=stream),
        auto_refresh=False,
        transient=True,
    )
    bar.add_task(label, total=None, text="")
    bar.start()
    return bar
