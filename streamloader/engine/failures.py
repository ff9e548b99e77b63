"""What was lost, and to what: deaths of workers, and the streams that are left because of them or of errors."""

from __future__ import annotations

import logging
import signal
from collections import deque
from typing import Any

from streamloader.engine.job import Job
from streamloader.engine.quarantine import Quarantine, Quarantined, Spot, Strikes
from streamloader.engine.ring import Ring, Status
from streamloader.engine.worker_process import Worker
from streamloader.engine.workload import Limit
from streamloader.errors import CorruptStream, LoaderTimeout, WorkerDied, to_wire
from streamloader.values import Array

__all__ = ["Casualties", "lane_timed_out", "worker_died"]

_LOGGER = logging.getLogger("streamloader")


class Casualties:
    """The supervisor's book of deaths and failed streams.

    Attributes:
        restarts: workers that were replaced.
        deaths: (process id, when it was noticed, when another had been started) of the latest, in monotonic seconds.
    """

    def __init__(self, job: Job, quarantine: Quarantine) -> None:
        self._job, self._quarantine = job, quarantine
        self._strikes = Strikes()
        self._fruitless = [(-1, 0)] * len(job.lanes)  # of each worker: what it had filled, deaths since then
        self.restarts = 0
        self.deaths: deque[tuple[int, float, float]] = deque(maxlen=1000)

    def book(self, worker: Worker, filled: int, status: Array, error: WorkerDied) -> int:
        """Find the stream that is to blame for a death, if that is clear by now, and have it left.

        Returns how many deaths of this worker there were in a row with nothing filled and no stream left in between.
        """
        number = worker.number
        for spot in self._strikes.count(status, worker.lanes):
            said = killed_its_worker(self._job, spot, error)
            if self._job.script.on_error == "raise":
                self._quarantine.condemn(Limit(spot.row, spot.epoch, spot.position, spot.step, to_wire(said)))
            else:
                key = self._job.script.streams[spot.stream].key
                entry = {"epoch": spot.epoch, "position": spot.position, "stream": spot.stream, "key": key}
                self.skipped(spot.row, entry | {"step": spot.step, "wire": {"message": said.message}}, died=True)
            self._fruitless[number] = (-1, 0)
        before, deaths = self._fruitless[number]
        deaths = deaths + 1 if before == filled else 1
        self._fruitless[number] = filled, deaths
        return deaths

    def skipped(self, row: int, said: dict[str, Any], *, died: bool = False) -> None:
        """Enter a stream that its lane has left, and log it."""
        lane, reason = self._job.first_lane + row, said["wire"]["message"]
        entry = Quarantined(said["stream"], said["key"], said["epoch"], lane, said["position"], said["step"], reason)
        if self._quarantine.leave_out(entry) if died else self._quarantine.add(entry):
            text = "epoch %d, lane %d: stream %r is left at step %d: %s"
            _LOGGER.warning(text, entry.epoch, lane, entry.key, entry.step, reason)

    def suspects(self, worker: Worker, filled: int) -> list[tuple[int, int]]:
        """Return (row, seq) of the rows that may have killed the worker, and were not seen to get past it."""
        return self._strikes.suspects(worker.lanes, filled)

    def forget_from(self, seq: int) -> None:
        """Forget what happened at grants that are void now."""
        self._strikes.forget_from(seq)


def worker_died(worker: Worker, first_lane: int, more: str = "") -> WorkerDied:
    """Return the error for a worker that is gone; `more` is a sentence to be added."""
    lanes = [first_lane + lane for lane in worker.lanes]
    status = worker.exit_status()
    number = -status if status is not None and status < 0 else None
    name = None if number is None else _signal_name(number)
    how = worker.why or (f"killed by {name}" if name else f"exit status {status}")
    return WorkerDied(
        f"worker {worker.number} (pid {worker.pid}) of lanes {lanes} died: {how}. Its standard error and the "
        f"kernel's log (out of memory?) may say more{'. ' + more if more else ''}",
        pid=worker.pid,
        worker=worker.number,
        exit_status=status,
        signal=number,
        lanes=lanes,
    )


def killed_its_worker(job: Job, spot: Spot, death: WorkerDied) -> CorruptStream:
    """Return the error for a stream at which its worker died twice."""
    key, lane = job.script.streams[spot.stream].key, job.first_lane + spot.row
    return CorruptStream(
        f"lane {lane}: stream {key!r} ends its worker at step {spot.step}, every time: {death.message}",
        stream=key,
        offset=spot.step,
        **(death.details | {"lane": lane, "step": spot.step}),
    )


def lane_timed_out(job: Job, ring: Ring, lane: int, waited: float) -> LoaderTimeout:
    """Return the error for a wait of `waited` seconds, which names what row `lane` is doing."""
    line = ring.status[lane].tolist()
    stage, ordinal, step = line[Status.STAGE], line[Status.STREAM], line[Status.STEP]
    streams = job.script.streams
    stream = streams[ordinal].key if 0 <= ordinal < len(streams) else None
    doing = Status.STAGES[stage]
    number = job.first_lane + lane
    return LoaderTimeout(
        f"waited {waited:.1f} s for lane {number} ({stream if stream is not None else 'no stream yet'}, "
        f"{doing} at step {step}): raise timeout=, or look at what that stream is doing",
        stream=stream,
        offset=step,
        lane=number,
        stage=doing,
        waited=waited,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
