"""What a loader tells about its work."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LaneStats", "LoaderStats"]


@dataclass(frozen=True, slots=True)
class LaneStats:
    """Where a lane stands.

    Attributes:
        lane: global number.
        stream: key of the stream it plays, None before the first; step: the next step of it.
        stage: what it is doing: idle, opening, seeking, reading, closing.
        rows_ready: batches for which its row is made and not consumed.
        waited: seconds that the consumer has waited for this lane.
    """

    lane: int
    stream: str | None
    step: int
    stage: str
    rows_ready: int
    waited: float


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader has done so far.

    Attributes:
        batches, steps, bytes: delivered (steps are B x T a batch, padding counted; bytes of the fields).
        seconds: since the first iteration began.
        steps_per_second: `steps` by `seconds`: frames/s for video.
        wait_seconds: that the consumer waited for a batch; wait_share: by `seconds`.
        ring_bytes, slots: size of the ring; leased: slots in the user's hands.
        copied: batches that were copied out because the user holds many.
        restarts: workers that died and were replaced.
        lanes: where each lane stands.
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
    lanes: tuple[LaneStats, ...]
