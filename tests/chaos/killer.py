"""Kills workers of a loader from outside, at moments that are chosen, and says at which moment it was."""

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

DEADLINE = 20.0
PATIENCE, GIVES_UP = 0.4, 2.0  # seconds that a kill waits for its own moment, and for any that is allowed
MOST_IN_A_ROW = 3  # kills of a worker that has published nothing in between
SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT", "SIGBUS")

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
        aim: the moment that is waited for, or :data:`WHENEVER`.
        worker: its number, modulo those that there are.
        delay: seconds until the killer begins to look for the moment.
        stop: whether the worker is stopped (SIGSTOP) while the killer looks what it is doing.
        moment: what it was doing, once it was killed; at: when that was (monotonic seconds); pid: which process.
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

    It keeps to what the contract allows: after a death at which a lane was playing, the same worker is killed again
    only once that lane has published a row, or while none of its lanes plays. So no stream can be blamed.
    """

    def __init__(self, loader: Any) -> None:
        self.done: list[Kill] = []
        self.given_up = 0  # for which no allowed moment came
        self._loader = loader
        self._first: set[int] = set()  # the workers that the loader began with
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
        """Whether a kill is under way."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, kills: Sequence[Kill]) -> None:
        """Carry these out in a thread, one after the other."""
        self.join()
        if not self._first:
            self._first = set(self._supervisor.pids) - {pid for pid, *_ in self._supervisor.deaths}
        self._thread = threading.Thread(target=self._run, args=(kills,), name="chaos-killer", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the kills that are under way.

        Raises:
            RuntimeError: one failed, or does not end.
        """
        if self._thread is not None:
            self._thread.join(2 * DEADLINE)
            if self._thread.is_alive():
                raise RuntimeError("the killer does not come to an end")
            self._thread = None
        if self._error is not None:
            raise RuntimeError("the killer failed") from self._error

    def wait_until_noticed(self, pids: Iterable[int]) -> None:
        """Wait until the deaths of these processes were noticed, and others started.

        Raises:
            RuntimeError: that does not come to pass.
        """
        deadline = time.monotonic() + DEADLINE
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
        begun = time.monotonic()
        while time.monotonic() < begun + GIVES_UP:
            pids = self._supervisor.pids
            number = kill.worker % len(pids)
            if pids[number] not in self._killed:
                late = time.monotonic() > begun + PATIENCE
                with contextlib.suppress(ProcessLookupError):
                    if self._try(kill, number, pids[number], late=late):
                        self.done.append(kill)
                        return
            time.sleep(0.001)  # between two looks at a condition
        self.given_up += 1

    def _try(self, kill: Kill, number: int, pid: int, *, late: bool) -> bool:
        """Kill the worker if this is the moment.

        Raises:
            ProcessLookupError: it is gone.
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
        filled = self._supervisor._done[number]
        before, kills = self._in_a_row.get(number, (-1, 0))
        self._in_a_row[number] = filled, kills + 1 if before == filled else 1
        self._killed.add(pid)
        kill.pid, kill.at = pid, time.monotonic()
        os.kill(pid, getattr(signal, kill.cause))

    def _rows(self, number: int) -> list[tuple[int, list[int]]]:
        workers = self._supervisor._crew.workers
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
        """Whether every lane that played when the worker last died has published a row since."""
        strikes = dict(self._supervisor.casualties._strikes._last)
        return all(row not in strikes or line[Status.SEQ] > strikes[row].seq for row, line in self._rows(number))

    def _is_allowed(self, number: int) -> bool:
        filled, kills = self._in_a_row.get(number, (-1, 0))
        if filled == self._supervisor._done[number] and kills >= MOST_IN_A_ROW:
            return False
        idle = not any(line[Status.BUSY] for _, line in self._rows(number))
        return idle or self._is_free(number)


def lives(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def _wait_until_stopped(pid: int) -> None:
    """Until every thread of the process stands still.

    Raises:
        ProcessLookupError: it is gone.
    """
    deadline = time.monotonic() + DEADLINE
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
