"""Progress display of an ingest: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol, Self, TypeAlias

from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError

__all__ = [
    "ActiveVideo",
    "ProgressCallback",
    "ProgressSnapshot",
    "format_duration",
    "format_size",
    "open_progress_display",
]

_FIRST_LINE_AFTER_S: Final = 2.0
_LINE_INTERVAL_S: Final = 10.0
_MAX_VIDEO_BARS: Final = 8
_MAX_CLEANED_CHARACTERS: Final = 1000  # of a name, before it is shortened to the width of its column


@dataclass(frozen=True, slots=True)
class ActiveVideo:
    """A video in progress.

    Attributes:
        name: Name of the video.
        activity: Current step: ``"fetching"``, ``"reading"``, ``"cutting"``, ...
        fraction: Finished fraction of the work, from 0 to 1. None if it is unknown.
    """

    name: str
    activity: str
    fraction: float | None


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """Progress of all videos at one moment.

    Attributes:
        videos: Number of requested videos.
        finished: Number of videos that were added, existed already, or failed.
        failed: Number of videos that failed.
        existing: Number of videos that the archive had already.
        bytes_total: Size of all sources to process in bytes. None if a size is unknown.
        bytes_done: Processed part of `bytes_total`, in bytes.
        frames: Number of frames that this run made.
        bytes_out: Size of the finished chunks in bytes.
        seconds: Time since the start in seconds.
        active: Videos in progress.
    """

    videos: int
    finished: int
    failed: int
    existing: int
    bytes_total: int | None
    bytes_done: float
    frames: int
    bytes_out: int
    seconds: float
    active: tuple[ActiveVideo, ...]

    @property
    def fraction(self) -> float | None:
        """Finished fraction of all work, from 0 to 1. None if it is unknown."""
        if self.finished == self.videos:
            return 1.0
        if not self.bytes_total:
            return None
        return min(1.0, self.bytes_done / self.bytes_total)

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time in seconds. None as long as there is no estimate."""
        fraction = self.fraction
        if fraction is None or fraction < 0.01 or self.seconds < 1.0 or not self.frames:  # noqa: PLR2004
            return None  # reading the sources is fast, so its speed does not predict the rest
        return self.seconds * (1 - fraction) / fraction


ShowProgress: TypeAlias = Callable[[ProgressSnapshot], None]


class ProgressCallback(Protocol):
    """A function that receives the progress."""

    def __call__(self, snapshot: ProgressSnapshot, /) -> None:
        """Called a few times per second, in the thread that called ``add_videos``."""


@contextlib.contextmanager
def open_progress_display(
    progress: ProgressCallback | bool | None, stream: IO[str] | None = None
) -> Iterator[ShowProgress]:
    """Yield the function that shows snapshots.

    Args:
        progress: True for bars or lines on `stream`, a function of the user, or None or False to show nothing.
        stream: Text stream for bars or lines. Defaults to stderr.

    Raises:
        ConfigError: If `progress` is none of these.
    """
    if progress is None or progress is False:
        yield lambda snapshot: None
    elif progress is not True:
        if not callable(progress):
            raise ConfigError(f"progress must be True, False, None or a function, got {progress!r}")
        yield progress
    else:
        stream = stream or sys.stderr
        bars = _create_bars(stream) if stream.isatty() else None
        if bars is None:
            yield _ProgressLines(stream)
        else:
            with bars:
                yield bars


def format_size(count: float) -> str:
    """Return a number of bytes as text for users: ``"12.3 MB"``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"  # noqa: PLR2004
        count /= 1000
    return f"{count:.1f} PB"


def format_duration(seconds: float) -> str:
    """Return a duration as text for users: ``"45 s"``, ``"2:05 min"``, ``"3:20 h"``, ``"4.5 days"``."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60}:{whole % 60:02} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02} h"
    return f"{seconds / 86400:.1f} days"


def _format_rates(snapshot: ProgressSnapshot) -> str:
    if snapshot.seconds <= 0 or not snapshot.bytes_done:
        return ""
    byte_rate = f"{format_size(snapshot.bytes_done / snapshot.seconds)}/s"
    return f"{snapshot.frames / snapshot.seconds:,.0f} frames/s, {byte_rate}" if snapshot.frames else byte_rate


class _ProgressLines:
    """Prints a line at intervals."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._next_line_at_s = _FIRST_LINE_AFTER_S

    def __call__(self, snapshot: ProgressSnapshot) -> None:
        ended = snapshot.finished == snapshot.videos
        if snapshot.seconds < self._next_line_at_s and not (ended and self._next_line_at_s > _FIRST_LINE_AFTER_S):
            return
        self._next_line_at_s = snapshot.seconds + _LINE_INTERVAL_S
        parts = [f"{snapshot.finished} of {snapshot.videos} videos"]
        if snapshot.failed:
            parts.append(f"{snapshot.failed} failed")
        if snapshot.fraction is not None:
            parts.append(f"{snapshot.fraction:.1%}")
        if rates := _format_rates(snapshot):
            parts.append(rates)
        if snapshot.seconds_left is not None and not ended:
            parts.append(f"{format_duration(snapshot.seconds_left)} left")
        with contextlib.suppress(OSError, ValueError):  # the reader of the stream is gone
            print(f"{format_duration(snapshot.seconds):>8}  {', '.join(parts)}", file=self._stream, flush=True)


def _create_bars(stream: IO[str]) -> _ProgressBars | None:
    try:
        return _ProgressBars(stream)
    except ImportError:
        return None


class _ProgressBars:
    """Draws one bar for all videos, and one for each video in progress."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[percent]:>6}", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=stream),
            auto_refresh=False,
            transient=True,
        )
        self._total_bar = self._bars.add_task("videos", total=None, percent="", text="")
        self._video_bars: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def __call__(self, snapshot: ProgressSnapshot) -> None:
        texts = [_format_rates(snapshot)]
        if snapshot.seconds_left is not None:
            texts.append(f"{format_duration(snapshot.seconds_left)} left")
        if snapshot.failed:
            texts.append(f"{snapshot.failed} failed")
        label = f"{snapshot.finished} of {snapshot.videos} videos"
        self._update_bar(self._total_bar, label, snapshot.fraction, ", ".join(filter(None, texts)))
        active = snapshot.active[:_MAX_VIDEO_BARS]
        while len(self._video_bars) < len(active):
            self._video_bars[len(self._video_bars)] = self._bars.add_task("", total=None, percent="", text="")
        for row, bar in self._video_bars.items():
            self._bars.update(bar, visible=row < len(active))
            if row < len(active):
                video = active[row]
                self._update_bar(bar, f"  {_shorten_name(video.name)}", video.fraction, make_printable(video.activity))
        self._bars.refresh()

    def _update_bar(self, bar: Any, label: str, fraction: float | None, text: str) -> None:
        self._bars.update(
            bar,
            description=label,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            percent="" if fraction is None else f"{fraction:.1%}",
            text=text,
        )


def _shorten_name(name: str) -> str:
    name = make_printable(name, _MAX_CLEANED_CHARACTERS)
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"  # noqa: PLR2004
