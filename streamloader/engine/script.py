"""What the lanes of a loader play."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from streamloader.engine.lane import Lane
from streamloader.engine.plan import Plan
from streamloader.engine.ring import Ring, Row
from streamloader.streams.base import StreamDataset
from streamloader.values import StreamInfo

__all__ = ["StreamScript"]


@dataclass(frozen=True, slots=True)
class StreamScript:
    """What lanes play.

    Attributes:
        on_error: whether a stream that fails is an error of the loader, or is left for the next one.
        fixed: every play has the batches that are planned, because other ranks count on it.
    """

    dataset: StreamDataset
    streams: Sequence[StreamInfo]
    plan: Plan
    on_error: Literal["raise", "skip"] = "raise"
    fixed: bool = False

    resumes = True

    @property
    def plays_again(self) -> bool:
        """Epochs follow one another, unless there is nothing in them."""
        return self.plan.batches != 0

    def players(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, report: Callable[[bytes], None]
    ) -> Sequence[Lane]:
        """Make a player for each lane."""
        slots = [ring.arrays(slot) for slot in range(ring.slots)]
        fields = ring.layout.fields
        return [
            Lane(
                self,
                lane,
                first_lane + lane,
                [Row(arrays, fields, lane) for arrays in slots],
                memoryview(ring.status[lane]),
                report,
            )
            for lane in lanes
        ]
