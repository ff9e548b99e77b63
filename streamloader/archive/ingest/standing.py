"""How far the adding of videos is, as it is shown to people."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Active", "Standing"]


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
