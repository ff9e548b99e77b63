"""Statistics of a loader."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LaneStats", "LoaderStats"]


@dataclass(frozen=True, slots=True)
class LaneStats:
    """State of one lane.

    Attributes:
        lane: Global number of the lane.
        stream: Key of the current stream, or None before the first one.
        step: Next step of the stream.
        stage: Current activity: idle, opening, seeking, reading or closing.
        rows_ready: Number of batches whose row of this lane is filled but not consumed.
        waited: Seconds that the consumer has waited for this lane.
    """

    lane: int
    stream: str | None
    step: int
    stage: str
    rows_ready: int
    waited: float


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """Statistics of a loader since its first iteration.

    Attributes:
        batches: Number of delivered batches.
        steps: Number of delivered steps: B x T for each batch, padding included.
        bytes: Number of delivered bytes in fields.
        seconds: Seconds since the first iteration started.
        steps_per_second: `steps` divided by `seconds`. For video, this is frames/s.
        wait_seconds: Seconds that the consumer has waited for batches.
        wait_share: `wait_seconds` divided by `seconds`.
        ring_bytes: Size of the ring in bytes.
        slots: Number of slots of the ring.
        leased: Number of slots whose batch the user still holds.
        copied: Number of batches that were copied out of the ring because the user holds many.
        restarts: Number of workers that died and were replaced.
        timed_out: Number of streams that were left out in this epoch and the previous one, because they made no
            progress until the timeout.
        lanes: State of each lane.
    """

    batches: int
    steps: int
    bytes: int
    seconds: float
    steps_per_second: float
    wait_seconds: float
    wait_share: float
    ring_bytes: int
    slots: int
    leased: int
    copied: int
    restarts: int
    timed_out: int
    lanes: tuple[LaneStats, ...]
