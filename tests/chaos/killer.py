"""Kill workers of a loader from outside at chosen moments, and record the moments."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.data import CLOSING, OPENING

from streamloader.engine.ring import Status
from streamloader.engine.supervisor import Supervisor

DEADLINE_S = 60.0
AIM_TIMEOUT_S, KILL_TIMEOUT_S = 0.4, 2.0  # wait for the chosen moment, then for any allowed one
MAX_KILLS_WITHOUT_PROGRESS = 3  # of one worker
SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGILL", "SIGSEGV", "SIGABRT", "SIGBUS")

IMPORTING, READING, IDLE, RESTARTING, SHUTDOWN = "importing", "decoding", "idle", "restarting", "during shutdown"
WHENEVER = "whenever"
AIMS = (WHENEVER, WHENEVER, WHENEVER, OPENING, READING, READING, IDLE)
_STAGES = {
    Status.SEEKING: RESTARTING,
    Status.OPENING: OPENING,
    Status.CLOSING: CLOSING,
    Status.READING: READING,
    Status.IDLE: "between streams",
}


@dataclass
class Kill:
    """One kill from outside.

    Attributes:
        aim: Moment to wait for, or :data:`WHENEVER`.
        worker: Number of the worker, modulo the number of workers.
        delay: Time in seconds until the killer starts to wait for the moment.
        cause: Name of the signal.
        stop: Whether the worker is stopped (SIGSTOP) while the killer checks what it is doing.
        moment: What the worker was doing when it was killed.
        at: Time of the kill (monotonic seconds).
        pid: Process id of the killed worker.
    """

    aim: str
    worker: int
    delay: float
    cause: str
    stop: bool
    moment: str = ""
    at: float = 0.0
    pid: int = 0


class Killer:
    """Kills workers of a loader one after the other, in a thread.

    It only kills where no stream can be blamed: after a death during which a lane was busy, the same worker is killed
    again only once that lane has completed a row, or while none of its lanes is busy.
    """

    def __init__(self, loader: Any) -> None:
        self.done: list[Kill] = []
        self.given_up = 0  # kills for which there was no allowed moment
        self._loader = loader
        self._first: set[int] = set()  # process ids of the loader's first workers
        self._killed: set[int] = set()
        self._in_a_row: dict[int, tuple[int, int]] = {}  # worker -> rows it had filled, kills since then
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def _supervisor(self) -> Supervisor:
        return self._loader._supervisor  # there is none before the first iteration

    # --- in the consumer's thread -----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a kill is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, kills: Sequence[Kill]) -> None:
        """Carry out these kills in a thread, one after the other."""
        self.join()
        if not self._first:
            self._first = set(self._supervisor.pids) - {pid for pid, *_ in self._supervisor.deaths}
        self._thread = threading.Thread(target=self._run, args=(kills,), name="chaos-killer", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the kills in progress.

        Raises:
            RuntimeError: If one failed, or does not end.
        """
        if self._thread is not None:
            self._thread.join(2 * DEADLINE_S)
            if self._thread.is_alive():
                raise RuntimeError("the killer does not end")
            self._thread = None
        if self._error is not None:
            raise RuntimeError("the killer failed") from self._error

    def wait_until_noticed(self, pids: Iterable[int]) -> None:
        """Wait until the deaths of these processes were detected, and replacements started.

        Raises:
            RuntimeError: If that does not happen in time.
        """
        deadline = time.monotonic() + DEADLINE_S
        while missing := set(pids) - {pid for pid, *_ in list(self._supervisor.deaths)}:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the deaths of {missing} are not noticed")
            time.sleep(0.001)  # between two looks at a condition

    # --- in its own thread --------------------------------------------------------------------------------------

    def _run(self, kills: Sequence[Kill]) -> None:
        try:
            for kill in kills:
                time.sleep(kill.delay)
                self._carry_out(kill)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error

    def _carry_out(self, kill: Kill) -> None:
        started = time.monotonic()
        while time.monotonic() < started + KILL_TIMEOUT_S:
            pids = self._supervisor.pids
            number = kill.worker % len(pids)
            if pids[number] not in self._killed:
                late = time.monotonic() > started + AIM_TIMEOUT_S
                with contextlib.suppress(ProcessLookupError):
                    if self._try(kill, number, pids[number], late=late):
                        self.done.append(kill)
                        return
            time.sleep(0.001)  # between two looks at a condition
        self.given_up += 1

    def _try(self, kill: Kill, number: int, pid: int, *, late: bool) -> bool:
        """Kill the worker if this is the moment.

        Raises:
            ProcessLookupError: If it is gone.
        """

        def is_it() -> bool:
            kill.moment = self._moment(number, pid)
            started = kill.moment not in (IMPORTING, RESTARTING)
            return (kill.aim in (WHENEVER, kill.moment) or (late and started)) and self._is_allowed(number)

        # What is seen of one that is not stopped may have changed when it dies: it must not matter.
        if not is_it() or not (kill.stop or self._is_free(number)):
            return False
        if kill.stop:
            os.kill(pid, signal.SIGSTOP)
            try:
                _wait_until_stopped(pid)
                if not is_it():
                    return False
                if not self._is_free(number):
                    kill.cause = "SIGKILL"  # the only one that gives a stopped process not one more turn
                self._strike(kill, number, pid)
            finally:
                os.kill(pid, signal.SIGCONT)
        else:
            self._strike(kill, number, pid)
        return True

    def _strike(self, kill: Kill, number: int, pid: int) -> None:
        filled = self._supervisor._filled[number]
        before, kills = self._in_a_row.get(number, (-1, 0))
        self._in_a_row[number] = filled, kills + 1 if before == filled else 1
        self._killed.add(pid)
        kill.pid, kill.at = pid, time.monotonic()
        os.kill(pid, getattr(signal, kill.cause))

    def _rows(self, number: int) -> list[tuple[int, list[int]]]:
        workers = self._supervisor._pool.workers
        return [(row, self._loader._ring.status[row].tolist()) for row in workers[number].lanes]

    def _moment(self, number: int, pid: int) -> str:
        try:
            attached = "streamloader-ring" in (Path("/proc") / str(pid) / "maps").read_text()
        except OSError:
            attached = False
        if not attached:
            return IMPORTING if pid in self._first else RESTARTING
        busy = [line[Status.STAGE] for _, line in self._rows(number) if line[Status.BUSY]]
        return next((moment for stage, moment in _STAGES.items() if stage in busy), IDLE)

    def _is_free(self, number: int) -> bool:
        """Whether every lane that was busy when the worker last died has completed a row since."""
        crashes = dict(self._supervisor.failures._crashes._last_crash)
        return all(row not in crashes or line[Status.SEQ] > crashes[row].seq for row, line in self._rows(number))

    def _is_allowed(self, number: int) -> bool:
        filled, kills = self._in_a_row.get(number, (-1, 0))
        if filled == self._supervisor._filled[number] and kills >= MAX_KILLS_WITHOUT_PROGRESS:
            return False
        idle = not any(line[Status.BUSY] for _, line in self._rows(number))
        return idle or self._is_free(number)


def _wait_until_stopped(pid: int) -> None:
    """Wait until every thread of the process is stopped.

    Raises:
        ProcessLookupError: If it is gone.
    """
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            states = [
                (task / "stat").read_text().rpartition(")")[2].split()[0]
                for task in (Path("/proc") / str(pid) / "task").iterdir()
            ]
        except FileNotFoundError:
            raise ProcessLookupError from None
        if all(state in "Tt" for state in states):
            return
        if all(state in "ZX" for state in states):
            raise ProcessLookupError
        time.sleep(0.0001)  # between two looks at a condition
    raise RuntimeError(f"process {pid} does not stop")
