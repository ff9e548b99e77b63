"""What the supervisor raises when a worker dies or a lane keeps it waiting."""

from __future__ import annotations

import signal

from streamloader.engine.quarantine import Spot
from streamloader.engine.ring import Ring, Status
from streamloader.engine.worker import Job
from streamloader.engine.worker_process import Worker
from streamloader.errors import CorruptStream, LoaderTimeout, WorkerDied

__all__ = ["lane_timed_out", "worker_died"]


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
