"""Track worker crashes and failed streams, and decide which streams are quarantined."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from streamloader.common.printable import make_printable
from streamloader.common.subprocesses import OUTSIDE_SIGNALS
from streamloader.engine.job import WorkerJob
from streamloader.engine.quarantine import CrashTracker, FailurePoint, Quarantine, Quarantined
from streamloader.engine.ring import LaneActivity, Ring, Status
from streamloader.engine.stalls import MAX_STALLS
from streamloader.engine.worker_process import WorkerHandle
from streamloader.engine.workload import StreamCutoff
from streamloader.errors import CorruptStream, LoaderTimeout, WorkerDied, to_wire
from streamloader.values import Array

__all__ = ["FailureTracker", "lane_timeout_error", "worker_died_error"]

_LOGGER = logging.getLogger("streamloader")
_MAX_LISTED_DEATHS: Final = 1000
_MAX_REASON_CHARS: Final = 16_384


class FailureTracker:
    """The supervisor's record of worker deaths and failed streams.

    Args:
        job: Job of the workers.
        quarantine: Quarantine of the loader.

    Attributes:
        restarts: Number of workers that were replaced.
        deaths: The latest deaths: (process id, time of detection, time when the replacement was started). Times are
            monotonic, in seconds.
    """

    def __init__(self, job: WorkerJob, quarantine: Quarantine) -> None:
        self._job, self._quarantine = job, quarantine
        self._crashes = CrashTracker()
        # By worker: the number of grants filled, and the deaths since then.
        self._deaths_without_progress = [(-1, 0)] * len(job.lanes)
        self.restarts = 0
        self.deaths: deque[tuple[int, float, float]] = deque(maxlen=_MAX_LISTED_DEATHS)

    def record_death(self, worker: WorkerHandle, filled: int, status: Array, last_epoch: int, error: WorkerDied) -> int:
        """Record the death of a worker. If its cause is certain by now, cut that stream off.

        No stream is to blame for a signal that a scheduler sends to all processes of a job, nor for a worker that was
        killed at the deadline.

        Args:
            worker: Worker that died.
            filled: Number of grants that it had filled.
            status: Status table of the ring.
            last_epoch: Highest epoch that was started.
            error: Error of the death.

        Returns:
            The number of this worker's deaths in a row, with no grant filled and no stream cut off in between.
        """
        number = worker.number
        points = self.find_busy_rows(worker, filled, status, last_epoch)
        is_blameless = worker.is_blameless or error.details.get("signal") in OUTSIDE_SIGNALS
        for point in () if is_blameless else self._crashes.record_crash(points):
            stream_error = _crashing_stream_error(self._job, point, error)
            if self._job.workload.on_error == "raise":
                wire = to_wire(stream_error)
                self._quarantine.fail_at(StreamCutoff(point.row, point.epoch, point.position, point.step, wire))
            else:
                self._skip_at(point, stream_error.message)
            self._deaths_without_progress[number] = (-1, 0)
        previous_filled, deaths = self._deaths_without_progress[number]
        deaths = deaths + 1 if previous_filled == filled else 1
        self._deaths_without_progress[number] = filled, deaths
        return deaths

    def find_busy_rows(self, worker: WorkerHandle, filled: int, status: Array, last_epoch: int) -> list[FailurePoint]:
        """Return where the rows stand that a worker is filling, as far as that can be true.

        Args:
            worker: Worker.
            filled: Number of grants that it has filled.
            status: Status table of the ring.
            last_epoch: Highest epoch that was started.
        """
        lines = ((row, status[row].tolist()) for row in worker.lanes)
        return [
            FailurePoint.read(row, line)
            for row, line in lines
            if line[Status.BUSY] and self._is_possible(row, line, filled, last_epoch)
        ]

    def count_stalls(self, points: Sequence[FailurePoint]) -> int:
        """Return how often a worker was killed at a deadline while it filled these rows."""
        return self._crashes.count_stalls(points)

    def record_stall(self, worker: WorkerHandle, points: Sequence[FailurePoint], *, leaves_out: bool) -> None:
        """Record that a worker is killed at a deadline.

        Args:
            worker: Worker.
            points: Rows that it is filling.
            leaves_out: Whether the streams of these rows are left out because of their time.
        """
        if not leaves_out:
            self._crashes.record_stall(points)
            return
        for point in points:
            self._crashes.forget(point.row)
            key, lane = self._job.workload.streams[point.stream].key, self._job.first_lane + point.row
            message = (
                f"lane {lane}: stream {key!r} stands still at step {point.step}, in {MAX_STALLS + 1} worker processes, "
                "and was left out because of its time"
            )
            self._skip_at(point, message, timed_out=True)
        self._deaths_without_progress[worker.number] = (-1, 0)

    def _is_possible(self, row: int, line: list[int], filled: int, last_epoch: int) -> bool:
        """Return whether a line of the status table, in which a worker may have written anything, can be true."""
        epoch, position, ordinal = line[Status.EPOCH], line[Status.POSITION], line[Status.STREAM]
        if not (0 <= epoch <= last_epoch and filled <= line[Status.SEQ] <= filled + self._job.slots):
            return False
        ordinals = self._job.workload.plan.lane(epoch, self._job.first_lane + row).order
        return 0 <= position < len(ordinals) and ordinals[position] == ordinal and line[Status.STEP] >= 0

    def record_skip(self, row: int, payload: dict[str, Any]) -> None:
        """Quarantine a stream that its lane has skipped, and log it.

        Args:
            row: Row of the lane.
            payload: Payload of a SKIPPED message.
        """
        lane, reason = self._job.first_lane + row, _make_reason(payload["error"]["message"])
        entry = Quarantined(
            payload["stream"], payload["key"], payload["epoch"], lane, payload["position"], payload["step"], reason
        )
        if self._quarantine.add(entry):
            self._log_skip(entry)

    def _skip_at(self, point: FailurePoint, message: str, *, timed_out: bool = False) -> None:
        """Quarantine a stream that has ended or stopped its worker, and log it."""
        entry = Quarantined(
            point.stream,
            self._job.workload.streams[point.stream].key,
            point.epoch,
            self._job.first_lane + point.row,
            point.position,
            point.step,
            _make_reason(message),
            timed_out,
        )
        if self._quarantine.add_crashed(entry):
            self._log_skip(entry)

    def _log_skip(self, entry: Quarantined) -> None:
        text = "epoch %d, lane %d: skipping the rest of stream %r from step %d on: %s"
        _LOGGER.warning(text, entry.epoch, entry.lane, entry.key, entry.step, entry.reason)

    def suspects(self, worker: WorkerHandle, filled: int) -> list[tuple[int, int]]:
        """Return (row, seq) of the rows that may have crashed the worker and have not filled that grant since."""
        return self._crashes.suspects(worker.lanes, filled)

    def forget_from(self, seq: int) -> None:
        """Forget crashes at the grants from number `seq` on, which are void."""
        self._crashes.forget_from(seq)


def _make_reason(message: str) -> str:
    return make_printable(" ".join(message.splitlines()), _MAX_REASON_CHARS)


def worker_died_error(worker: WorkerHandle, first_lane: int, detail: str = "") -> WorkerDied:
    """Build the error for a worker that died. `detail` is appended to the message."""
    lanes = [first_lane + lane for lane in worker.lanes]
    status = worker.exit_status()
    number = -status if status is not None and status < 0 else None
    name = None if number is None else _signal_name(number)
    how = worker.kill_reason or (f"killed by {name}" if name else f"exit status {status}")
    return WorkerDied(
        f"worker {worker.number} (pid {worker.pid}) of lanes {lanes} died: {how}. Its standard error and the "
        f"kernel's log (out of memory?) may show more{'. ' + detail if detail else ''}",
        pid=worker.pid,
        worker=worker.number,
        exit_status=status,
        signal=number,
        lanes=lanes,
    )


def _crashing_stream_error(job: WorkerJob, point: FailurePoint, death: WorkerDied) -> CorruptStream:
    """Build the error for a stream that has crashed its worker twice."""
    key, lane = job.workload.streams[point.stream].key, job.first_lane + point.row
    return CorruptStream(
        f"lane {lane}: stream {key!r} crashes its worker at step {point.step}, every time: {death.message}",
        stream=key,
        offset=point.step,
        **(death.details | {"lane": lane, "step": point.step}),
    )


def lane_timeout_error(job: WorkerJob, ring: Ring, row: int, waited: float, kills: int = 0) -> LoaderTimeout:
    """Build the error for a wait of `waited` seconds. It names what the lane of `row` is doing.

    Args:
        job: Job of the workers.
        ring: Ring that they fill.
        row: Row that the consumer waits for.
        waited: Seconds that it has waited.
        kills: Number of workers that were killed because they made no progress there.
    """
    streams = job.workload.streams
    activity = LaneActivity.read(ring.status[row].tolist(), len(streams))
    stream = None if activity.stream is None else streams[activity.stream].key
    lane = job.first_lane + row
    history = f"; workers killed there before: {kills}" if kills else ""
    return LoaderTimeout(
        f"waited {waited:.1f} s for lane {lane} ({stream if stream is not None else 'no stream yet'}, "
        f"{activity.stage} at step {activity.step}{history}): raise timeout=, or find out why that stream is slow",
        stream=stream,
        offset=activity.step,
        lane=lane,
        stage=activity.stage,
        waited=waited,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
