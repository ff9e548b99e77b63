"""Where a worker's environments are: which lane, stage and step, for the status table and for errors."""

from __future__ import annotations

from typing import Final

from streamloader.engine.ring import Status
from streamloader.engine.workload import locate_error
from streamloader.errors import StreamFailed, StreamloaderError
from streamloader.streams.step_writer import StepMismatch
from streamloader.values import Array

__all__ = ["EnvProgress"]


class EnvProgress:
    """Location of the work of one worker.

    Args:
        status: Lines of the worker's rows in the ring's status table, int64 (rows, columns).
        first_row: First row.
        lanes: Global numbers of the lanes.
        ordinals: Ordinal in the workload's streams for each row.
        names: Name of the environment of each row.

    Attributes:
        step: Number of steps of each lane before the current one, since the loader started.
    """

    def __init__(self, status: Array, first_row: int, lanes: range, ordinals: list[int], names: list[str]) -> None:
        self.step = 0
        self._lines: Final = [memoryview(line) for line in status]
        self._first_row, self._lanes, self._names = first_row, lanes, names
        self._status, self._ordinals = status, ordinals
        self._row = 0
        self._stage = Status.IDLE

    def start(self) -> None:
        """Write the environment of each row."""
        self._status[:, Status.STREAM] = self._ordinals

    def enter(self, row: int, stage: int) -> None:
        """Note the work that follows.

        Args:
            row: Index of the lane on which all lanes of the worker wait.
            stage: Stage, of :class:`~streamloader.engine.ring.Status`.
        """
        self._row, self._stage = row, stage
        line = self._lines[row]
        line[Status.STAGE] = stage
        line[Status.STEP] = self.step
        self._lines[0][Status.WORKS_ON] = self._first_row + row + 1

    def blame(self, row: int) -> None:
        """Name the lane of `row` in the error that follows."""
        self._row = row

    def finish_window(self) -> None:
        """Note that no lane works on anything."""
        self._lines[0][Status.WORKS_ON] = 0
        self._status[:, Status.STEP] = self.step

    def rest(self) -> None:
        """Note that all environments are closed."""
        self.finish_window()
        self._status[:, Status.STAGE] = Status.IDLE

    def locate(self, error: Exception) -> StreamloaderError:
        """Return `error` with lane, stage and step. A foreign exception becomes a :class:`StreamFailed`."""
        name, stage = self._names[self._row], Status.STAGES[self._stage]
        if isinstance(error, StepMismatch):  # its message says all
            error = StreamFailed(f"{name}, {stage} at step {self.step}: {error}", stream=name, offset=self.step)
        lane = self._lanes[self._row]
        located = locate_error(error, name, stream=name, lane=lane, stage=stage, step=self.step)
        located.details["lanes"] = list(self._lanes)
        return located
