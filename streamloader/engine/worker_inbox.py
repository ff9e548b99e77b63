"""Check what a worker sends to the supervisor, message by message, against what the worker was granted.

A worker has parsed untrusted media. So nothing that it sends is used unchecked: types and sizes, its own lanes only,
grants that exist, numbers that only grow, streams that its lanes read, cursors that follow from the previous ones. A
worker that fails a check is killed, and replaced like one that died.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from streamloader.common.worker_messages import (
    MAX_INT64,
    MAX_LOG_CHARS,
    MAX_LOG_LEVEL,
    InvalidMessage,
    check_fields,
    integer,
    one_of,
    text,
)
from streamloader.engine.grants import Grants, cursor_array
from streamloader.engine.job import WorkerJob
from streamloader.engine.messages import REPLAY, WORKER_PAYLOAD_BYTES, Message, MessageDecoder, MessageKind
from streamloader.engine.ring import CURSOR_COLUMNS, Ring
from streamloader.engine.workload import INITIAL_CURSOR, Grant
from streamloader.errors import check_wire
from streamloader.values import Array

__all__ = ["Checkpoint", "WorkerInbox"]

_MAX_COUNTER: Final = MAX_INT64 >> 1  # sums of two do not overflow
_MAX_STREAM_KEY_CHARS: Final = 1 << 20
_SPARE_SKIPS: Final = 1000

_SKIP_FIELDS: Final = {
    "epoch": integer(),
    "position": integer(),
    "step": integer(0, _MAX_COUNTER),
    "stream": integer(),
    "key": text(_MAX_STREAM_KEY_CHARS),
    "error": lambda value, _: check_wire(value),
}
_LOG_FIELDS: Final = {
    "name": text(MAX_LOG_CHARS),
    "level": integer(0, MAX_LOG_LEVEL),
    "message": text(MAX_LOG_CHARS),
}
_LOG_ONCE_FIELDS: Final = _LOG_FIELDS | {"once": one_of(REPLAY)}

_Cursors = tuple[int, ...]  # position, step and ended of each row, one after the other


class Checkpoint(NamedTuple):
    """The last batch whose cursors were checked.

    Attributes:
        run: Number of the run.
        batch: Index of the batch in the epoch.
        cursors: Cursors of the worker's rows after it, one after the other.
    """

    run: int
    batch: int
    cursors: _Cursors


class WorkerInbox:
    """Decodes and checks the messages of one worker.

    Args:
        number: Number of the worker.
        job: Job of the workers.
        ring: Ring that the workers fill.
        grants: Grants of the supervisor.
        filled: Number of grants that each worker has filled, by worker. The supervisor updates it.
        has_process: Whether the worker is a process. If not, its cursors are not checked.
        predecessor: Inbox of the worker that this one replaces, or None.

    Attributes:
        checkpoint: The last batch whose cursors were checked, or None.
    """

    def __init__(
        self,
        number: int,
        job: WorkerJob,
        ring: Ring,
        grants: Grants,
        filled: list[int],
        *,
        has_process: bool,
        predecessor: WorkerInbox | None = None,
    ) -> None:
        self._number, self._job, self._ring, self._grants, self._filled = number, job, ring, grants, filled
        lanes = job.lanes[number]
        self._lanes = range(lanes[0], lanes[-1] + 1)
        self._checks_cursors = has_process and job.workload.can_resume
        self._window = job.workload.plan.window
        self._row_cursors = struct.Struct(f"={CURSOR_COLUMNS * len(self._lanes)}q")
        self._row_cursors_offset = struct.calcsize(f"={CURSOR_COLUMNS}q") * self._lanes[0]
        self._decoder = MessageDecoder(WORKER_PAYLOAD_BYTES)
        self.checkpoint: Checkpoint | None = None if predecessor is None else predecessor.checkpoint
        self._bounds_of_run = -1  # run to which the next two belong
        self._stream_counts: list[int] = []  # of each lane
        self._first_positions: _Cursors = ()  # of each lane
        self._last_done = (grants.version, filled[number]) if predecessor is not None else (0, 0)
        self._last_info = (-1, -1)  # run, and number of a grant
        self._last_error_version: dict[int, int] = {}  # by row
        self._last_end: dict[tuple[int, int], int] = {}  # run, by kind and row
        self._ended: dict[tuple[int, int], int] = {}  # number of batches, by run and row; lanes end several runs ahead
        self._lane_lists: dict[int, tuple[int, Array]] = {}  # epoch and ordinals, by global lane, for skipped streams
        self._skips = 0  # since the last DONE

    def decode(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes. The caller handles each before it takes the next one.

        Raises:
            InvalidMessage: If a message is one that no correct worker sends.
        """
        for message in self._decoder.decode(data):
            kind = message.kind
            if kind == MessageKind.DONE:
                self._check_done(message)
            elif kind in (MessageKind.ENDED, MessageKind.OVERRUN):
                self._check_end(message)
            elif kind == MessageKind.ERROR:
                self._check_error(message)
            elif kind == MessageKind.SKIPPED:
                self._check_skip(message)
            elif kind == MessageKind.INFO:
                yield Message(*message[:-1], self._decode_info(message))
                continue
            else:
                payload = message.payload
                has_once = isinstance(payload, dict) and "once" in payload
                check_fields(payload, _LOG_ONCE_FIELDS if has_once else _LOG_FIELDS, "a log record")
            yield message

    # --- kinds of messages --------------------------------------------------------------------------------------------

    def _check_done(self, message: Message) -> None:
        version, count, grants = message.version, message.a, self._grants
        done = (version, count)
        if version > grants.version or done <= self._last_done:
            raise InvalidMessage(f"{count} batches of version {version} are done, after {self._last_done}")
        self._last_done = done
        if version != grants.version:
            return
        filled, granted = self._filled[self._number], grants.consumed + len(grants.granted)
        if not filled <= count <= granted:
            raise InvalidMessage(f"{count} batches are done, after {filled} and of {granted} that were granted")
        if count > filled:
            self._skips = 0
            if self._checks_cursors:
                self._check_cursors(grants.find(count - 1))

    def _check_end(self, message: Message) -> None:
        self._check_lane(message)
        kind, number, row = message.kind, message.a, message.lane
        if not 0 <= number < self._grants.runs_created:
            raise InvalidMessage(f"lane {row} ends run {number}, which was never started")
        if number <= self._last_end.get((kind, row), -1):
            raise InvalidMessage(f"lane {row} ends run {number} twice")
        self._last_end[kind, row] = number
        run, plan = self._grants.runs.get(number), self._job.workload.plan
        if run is None:
            return
        if kind == MessageKind.OVERRUN:
            if plan.batches is None or plan.tail == "drop" or run.granted_end < plan.batches:
                raise InvalidMessage(f"lane {row} passes the end of run {number}, which it has not reached")
            return
        checkpoint = self.checkpoint
        low = checkpoint.batch + 1 if checkpoint is not None and checkpoint.run == number else run.start.batch
        if not low <= message.c <= message.b <= run.granted_end:
            raise InvalidMessage(
                f"lane {row} ends run {number} with {message.c} full batches of {message.b}, after {low} batches, of "
                f"{run.granted_end} that were granted"
            )
        self._ended = {key: batches for key, batches in self._ended.items() if key[0] in self._grants.runs}
        self._ended[number, row] = message.b

    def _check_error(self, message: Message) -> None:
        check_wire(message.payload)
        seq, version, row = message.a, message.version, message.lane
        if seq == -1:
            return
        self._check_lane(message)
        grants = self._grants
        if version > grants.version or version <= self._last_error_version.get(row, -1):
            raise InvalidMessage(f"lane {row} fails twice in version {version}")
        self._last_error_version[row] = version
        low, high = self._filled[self._number], grants.consumed + len(grants.granted)
        if version != grants.version:
            low, high = 0, grants.granted_end
        if not low <= seq < high:
            raise InvalidMessage(f"lane {row} fails at grant {seq}, which it is not filling")

    def _decode_info(self, message: Message) -> Any:
        seq, run = message.a, message.b
        infos = self._job.workload.decode_infos(message.payload or b"")
        if not (0 <= run < self._grants.runs_created and self._last_info < (run, seq)):
            raise InvalidMessage(f"it sends infos for grant {seq} of run {run}, after {self._last_info}")
        if run in self._grants.runs and not self._filled[self._number] <= seq < self._grants.granted_end:
            raise InvalidMessage(f"it sends infos for grant {seq}, which it is not filling")
        self._last_info = run, seq
        return infos

    def _check_skip(self, message: Message) -> None:
        self._check_lane(message)
        workload, plan = self._job.workload, self._job.workload.plan
        if workload.on_error != "skip":
            raise InvalidMessage("it skips a stream, although errors are to be raised")
        skip = check_fields(message.payload, _SKIP_FIELDS, "a skipped stream")
        epoch, position, lane = skip["epoch"], skip["position"], self._job.first_lane + message.lane
        if epoch > self._grants.last_epoch:
            raise InvalidMessage(f"it skips a stream of epoch {epoch}, which was never started")
        if self._lane_lists.get(lane, (-1, None))[0] != epoch:
            self._lane_lists[lane] = epoch, plan.lane(epoch, lane).order
        ordinals = self._lane_lists[lane][1]
        if position >= len(ordinals) or ordinals[position] != skip["stream"]:
            raise InvalidMessage(f"it skips stream {skip['stream']}, which lane {lane} does not read there")
        if workload.streams[skip["stream"]].key != skip["key"]:
            raise InvalidMessage(f"it skips stream {skip['stream']} by the key of another stream")
        self._skips += 1
        if self._skips > _SPARE_SKIPS + 2 * sum(self._count_streams(epoch)):
            raise InvalidMessage("it skips more streams than its lanes have, without a batch in between")

    def _check_lane(self, message: Message) -> None:
        if message.lane not in self._lanes:
            raise InvalidMessage(f"it sends a message for lane {message.lane}, which is not its own")

    # --- cursors ------------------------------------------------------------------------------------------------------

    def _check_cursors(self, grant: Grant) -> None:
        """Check the cursors of the worker's rows after a batch that it has just filled, and remember them.

        They are copied first, because the worker can change them at any time.
        """
        cursors = self._row_cursors.unpack_from(self._ring.cursors(grant.slot), self._row_cursors_offset)
        checkpoint, run = self.checkpoint, grant.run
        if checkpoint is not None and checkpoint.run == run and checkpoint.batch < grant.batch:
            # Nearly always, no lane has changed its stream, which is quickly seen.
            previous_batch, previous = checkpoint.batch, checkpoint.cursors
            if cursors[::3] == previous[::3] and cursors[2::3] == previous[2::3]:
                steps = list(map(operator.sub, cursors[1::3], previous[1::3]))
                if min(steps) >= 0 and max(steps) <= self._window * (grant.batch - previous_batch):
                    self.checkpoint = Checkpoint(run, grant.batch, cursors)
                    return
        elif run in self._grants.runs:
            previous_batch, previous = self._grants.runs[run].start.batch - 1, self._first_cursors(run)
        else:
            return
        self._check_moves(grant, cursors, previous_batch, previous)
        self.checkpoint = Checkpoint(run, grant.batch, cursors)

    def _check_moves(self, grant: Grant, cursors: _Cursors, previous_batch: int, previous: _Cursors) -> None:
        """Check that cursors after a batch can follow from those after a previous batch of the run."""
        run = self._grants.runs.get(grant.run)
        if run is None:
            return
        if self._bounds_of_run != grant.run:
            self._bounds_of_run = grant.run
            self._stream_counts = self._count_streams(run.epoch)
            self._first_positions = self._first_cursors(grant.run)[::3]
        cycles, window = self._job.workload.plan.tail == "cycle", self._window
        max_rounds = 2 + window * (grant.batch + 1 - run.start.batch)  # each but two has at least one step
        new_steps = window * (grant.batch - previous_batch)
        for index, count in enumerate(self._stream_counts):
            position, step, ended = cursors[3 * index : 3 * index + 3]
            old_position, old_step, old_ended = previous[3 * index : 3 * index + 3]
            row = self._lanes[index]
            last_position = count if not cycles else self._first_positions[index] + count * max_rounds
            first_step = old_step if position == old_position else 0
            if not (
                old_position <= position <= max(last_position, old_position)
                and first_step <= step <= first_step + new_steps
                and ended in (old_ended, self._ended.get((grant.run, row)))
            ):
                raise InvalidMessage(
                    f"the cursor of lane {row} is {(position, step, ended)} after batch {grant.batch}, and was "
                    f"{(old_position, old_step, old_ended)} after batch {previous_batch}, with {count} streams"
                )

    def confirm_entry_points(self, entry_points: Sequence[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
        """Return entry points with the cursors that were checked, for a worker that replaces this one.

        Args:
            entry_points: Batches at which the worker may enter runs: (run, batch, cursors of all lanes).

        Raises:
            InvalidMessage: If the cursors of an earlier run were overwritten with impossible ones.
        """
        confirmed: list[tuple[int, int, bytes]] = []
        checkpoint, rows = self.checkpoint, slice(self._lanes[0], self._lanes.stop)
        for run, batch, cursors in entry_points:
            lines: Any = cursor_array(cursors).copy()
            if checkpoint is not None and (checkpoint.run, checkpoint.batch + 1) == (run, batch):
                lines[rows] = np.reshape(checkpoint.cursors, (-1, CURSOR_COLUMNS))
            elif not ((lines[rows] >= (0, 0, -1)) & (lines[rows] <= _MAX_COUNTER)).all():
                raise InvalidMessage(f"the cursors after batch {batch - 1} of run {run} were overwritten")
            confirmed.append((run, batch, lines.tobytes()))
        return confirmed

    def _first_cursors(self, number: int) -> _Cursors:
        start = self._grants.runs[number].start
        if start.cursors is None:
            return INITIAL_CURSOR * len(self._lanes)
        return self._row_cursors.unpack_from(start.cursors, self._row_cursors_offset)

    def _count_streams(self, epoch: int) -> list[int]:
        first_lane = self._job.first_lane
        return self._job.workload.plan.count_streams(epoch, [first_lane + lane for lane in self._lanes])
