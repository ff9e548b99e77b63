"""Showing how far the adding of videos is: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol, Self, TypeAlias

from streamloader.errors import ConfigError

__all__ = ["Active", "Progress", "Standing", "duration", "shown", "size"]

_FIRST_LINE: Final = 2.0  # seconds after which a first line is written where there is no terminal
_LINES: Final = 10.0  # seconds between two lines
_ROWS: Final = 8  # videos that are shown one by one


@dataclass(frozen=True, slots=True)
class Active:
    """A video that is worked on.

    Attributes:
        name: of it.
        doing: ``"fetching"``, ``"reading"``, ``"cutting"``, ...
        part: how much of it is done, from 0 to 1; None where that is not known.
    """

    name: str
    doing: str
    part: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far all videos are.

    Attributes:
        videos: how many there are to do.
        settled: of them are added, recognised or failed.
        failed: of them.
        recognised: of them.
        bytes_total: of all sources that have to be worked on; None where one does not tell its size.
        bytes_done: of them, as far as the work is done.
        frames: that were made.
        bytes_out: of chunks that are there.
        seconds: since it was begun.
        active: the videos that are worked on.
    """

    videos: int
    settled: int
    failed: int
    recognised: int
    bytes_total: int | None
    bytes_done: float
    frames: int
    bytes_out: int
    seconds: float
    active: tuple[Active, ...]

    @property
    def part(self) -> float | None:
        """How much of all is done, from 0 to 1; None where that is not known."""
        if self.settled == self.videos:
            return 1.0
        if not self.bytes_total:
            return None
        return min(1.0, self.bytes_done / self.bytes_total)

    @property
    def seconds_left(self) -> float | None:
        """How long it will take if it goes on like this; None before that can be told."""
        part = self.part
        if part is None or part < 0.01 or self.seconds < 1.0 or not self.frames:  # noqa: PLR2004
            return None  # reading the sources is quick, and says little of the rest
        return self.seconds * (1 - part) / part


Show: TypeAlias = Callable[[Standing], None]


class Progress(Protocol):
    """Somebody who is told how far it is."""

    def __call__(self, standing: Standing, /) -> None:
        """Called a few times a second, in the thread of the caller of ``add_videos``."""


@contextlib.contextmanager
def shown(progress: Progress | bool | None, stream: IO[str] | None = None) -> Iterator[Show]:
    """Give the function that is to be told.

    Args:
        progress: True for bars, or lines, on `stream`; a function of the user's; None and False for nothing.
        stream: stderr by default.
    """
    if progress is None or progress is False:
        yield lambda standing: None
    elif progress is not True:
        if not callable(progress):
            raise ConfigError(f"progress must be True, False, None or a function, got {progress!r}")
        yield progress
    else:
        stream = stream or sys.stderr
        bars = _bars(stream) if stream.isatty() else None
        if bars is None:
            yield _Lines(stream)
        else:
            with bars:
                yield bars


def size(count: float) -> str:
    """Return a number of bytes as people read it: ``"12.3 MB"``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"  # noqa: PLR2004
        count /= 1000
    return f"{count:.1f} PB"


def duration(seconds: float) -> str:
    """Return a time as people read it: ``"45 s"``, ``"2:05 min"``, ``"3:20 h"``, ``"4.5 days"``."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60}:{whole % 60:02} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{seconds / 86400:.1f} days"


def _rates(standing: Standing) -> str:
    if standing.seconds <= 0 or not standing.bytes_done:
        return ""
    bytes_rate = f"{size(standing.bytes_done / standing.seconds)}/s"
    return f"{standing.frames / standing.seconds:,.0f} frames/s, {bytes_rate}" if standing.frames else bytes_rate


class _Lines:
    """A line now and then."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._next = _FIRST_LINE

    def __call__(self, standing: Standing) -> None:
        ended = standing.settled == standing.videos
        if standing.seconds < self._next and not (ended and self._next > _FIRST_LINE):
            return
        self._next = standing.seconds + _LINES
        parts = [f"{standing.settled} of {standing.videos} videos"]
        if standing.failed:
            parts.append(f"{standing.failed} failed")
        if standing.part is not None:
            parts.append(f"{standing.part:.1%}")
        if rates := _rates(standing):
            parts.append(rates)
        if standing.seconds_left is not None and not ended:
            parts.append(f"{duration(standing.seconds_left)} left")
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            print(f"{duration(standing.seconds):>8}  {', '.join(parts)}", file=self._stream, flush=True)


def _bars(stream: IO[str]) -> _Bars | None:
    try:
        return _Bars(stream)
    except ImportError:
        return None


class _Bars:
    """A bar for all, and one for each of the videos that are worked on."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[part]:>6}", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=stream),
            auto_refresh=False,
            transient=True,
        )
        self._all = self._bars.add_task("videos", total=None, part="", text="")
        self._rows: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def __call__(self, standing: Standing) -> None:
        text = [_rates(standing)]
        if standing.seconds_left is not None:
            text.append(f"{duration(standing.seconds_left)} left")
        if standing.failed:
            text.append(f"{standing.failed} failed")
        self._draw(
            self._all, f"{standing.settled} of {standing.videos} videos", standing.part, ", ".join(filter(None, text))
        )
        active = standing.active[:_ROWS]
        while len(self._rows) < len(active):
            self._rows[len(self._rows)] = self._bars.add_task("", total=None, part="", text="")
        for row, task in self._rows.items():
            self._bars.update(task, visible=row < len(active))
            if row < len(active):
                self._draw(task, *_row(active[row]))
        self._bars.refresh()

    def _draw(self, task: Any, name: str, part: float | None, text: str) -> None:
        self._bars.update(
            task,
            description=name,
            total=None if part is None else 1.0,
            completed=part or 0.0,
            part="" if part is None else f"{part:.1%}",
            text=text,
        )


def _row(active: Active) -> tuple[str, float | None, str]:
    name = active.name if len(active.name) <= 28 else f"{active.name[:13]}…{active.name[-14:]}"  # noqa: PLR2004
    return f"  {name}", active.part, active.doing
