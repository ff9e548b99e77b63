"""Bookkeeping of the supervisor, without any I/O: which slots are granted for which batches of which epoch runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from streamloader.engine.messages import Message, MessageKind, encode_message
from streamloader.engine.plan import Plan
from streamloader.engine.ring import CURSOR_COLUMNS
from streamloader.engine.workload import ConsumedBatch, EpochPosition, Grant
from streamloader.values import Array

__all__ = ["EpochRun", "Grants", "cursor_array", "encode_grant"]


class EpochRun:
    """One run through an epoch.

    Args:
        number: Number of the run.
        start: Position of the run's first batch.
        plan: Plan of the lanes.
        lanes: Number of rows of the ring.

    Attributes:
        end: Number of batches of the epoch, or None while it is unknown.
        end_is_open: Whether the end is only known once all lanes have reached it.
        next_batch: Index of the next batch to be granted.
        batches_by_lane: Number of batches that hold steps of a lane, for lanes that have ended.
    """

    __slots__ = ("_revoked_end", "batches_by_lane", "end", "end_is_open", "epoch", "next_batch", "number", "start")

    def __init__(self, number: int, start: EpochPosition, plan: Plan, lanes: int) -> None:
        self.number, self.start, self.epoch = number, start, start.epoch
        self.end = plan.batches
        self.next_batch = self._revoked_end = start.batch
        self.batches_by_lane: dict[int, int] = {}
        if start.cursors is not None:
            ended = cursor_array(start.cursors)[:, 2].tolist()
            self.batches_by_lane = {lane: batches for lane, batches in enumerate(ended) if batches >= 0}
            if plan.batches is not None and plan.tail != "drop" and start.batch >= plan.batches:
                self.end = None  # the run continues beyond its planned end, unless all lanes have ended
        self.end_is_open = self.end is None
        if self.end_is_open:
            self.find_end(plan, lanes)

    @property
    def granted_end(self) -> int:
        """Number of the first batch that was never granted."""
        return max(self.next_batch, self._revoked_end)

    def revoke_from(self, batch: int) -> None:
        """Grant this batch and those after it again."""
        self._revoked_end = self.granted_end
        self.next_batch = batch

    def find_end(self, plan: Plan, lanes: int) -> None:
        """Set the end if all lanes have reached it."""
        if len(self.batches_by_lane) == lanes:
            self.end = max(*self.batches_by_lane.values(), plan.batches or 0)


def cursor_array(cursors: bytes) -> Array:
    """Return cursors as int64 (lanes, 3)."""
    return np.frombuffer(cursors, np.int64).reshape(-1, CURSOR_COLUMNS)


class Grants:
    """The grants that are not consumed yet, and the epoch runs that they belong to.

    Args:
        plan: Plan of the lanes.
        lanes: Number of rows of the ring.
        slots: Number of slots of the ring.
        max_ahead: Maximum number of batches granted ahead of the consumer.
        has_next_epoch: Whether another run follows at the end of one.
        fixed_length: Whether runs have the planned number of batches, whatever lanes report.

    Attributes:
        consumed: Number of grants consumed. The next batch is the first of `granted`.
        version: Version of the grants' numbering. It changes when grants become void.
        granted: Grants that are not consumed, in order.
        free: Slots that are neither granted nor leased.
        unsent: Encoded messages for all workers.
        runs: The current run and those after it, by number.
        current_run: Run that is being consumed, or None before the first.
        granting_run: Run whose batches are granted next, or None before the first.
        runs_created: Number of runs that were ever created.
        last_epoch: Highest epoch of these runs, or -1.
    """

    def __init__(
        self, plan: Plan, lanes: int, slots: int, max_ahead: int, *, has_next_epoch: bool, fixed_length: bool
    ) -> None:
        self._plan, self._lanes, self._max_ahead = plan, lanes, max_ahead
        self._has_next_epoch, self._fixed_length = has_next_epoch, fixed_length and plan.batches is not None
        self.consumed = self.version = 0
        self.granted: deque[Grant] = deque()
        self.free = list(range(slots - 1, -1, -1))
        self.unsent = bytearray()
        self.runs: dict[int, EpochRun] = {}
        self.current_run: EpochRun | None = None
        self.granting_run: EpochRun | None = None
        self.runs_created = 0
        self.last_epoch = -1
        self._revoked_end = 0

    # --- epoch runs -----------------------------------------------------------------------------------------

    def start_at(self, position: EpochPosition) -> int | None:
        """Make the batch at `position` the next one. A run that was prefetched for it is used.

        Returns:
            The number from which on grants are void, or None if none are. The caller then sends the position's cursors
            to the workers.
        """
        prefetched, current = self.granting_run, self.current_run
        if (
            position.cursors is None
            and position.batch == 0
            and prefetched is not None
            and prefetched is not current
            and prefetched.epoch == position.epoch
            and self.at_end
        ):
            self.current_run = prefetched
            self._forget_runs(lambda run: run.number < prefetched.number)
            return None
        self._truncate(self.consumed)
        self._forget_runs(lambda _: True)
        self.current_run = self.granting_run = self._create_run(position)
        return self.consumed

    def _create_run(self, start: EpochPosition) -> EpochRun:
        run = EpochRun(self.runs_created, start, self._plan, self._lanes)
        self.runs_created += 1
        self.last_epoch = max(self.last_epoch, start.epoch)
        self.runs[run.number] = run
        return run

    def _forget_runs(self, is_over: Callable[[EpochRun], bool]) -> None:
        """Ignore what lanes report about these runs from now on."""
        self.runs = {number: run for number, run in self.runs.items() if not is_over(run)}

    @property
    def at_end(self) -> bool:
        """Whether all batches of the current run were consumed."""
        run = self.current_run
        if run is None:
            return True
        if self.granted and self.granted[0].run == run.number:  # grants always lie before the end
            return False
        return run.end is not None and run.next_batch >= run.end

    # --- grants ---------------------------------------------------------------------------------------------

    def grant_free_slots(self) -> None:
        """Grant free slots in order through this run and, once its end is known, into the next one."""
        while self.free and len(self.granted) < self._max_ahead and (run := self.granting_run) is not None:
            if run.end is not None and run.next_batch >= run.end:
                if run is not self.current_run or not self._has_next_epoch:
                    return  # one run ahead is enough
                run = self.granting_run = self._create_run(EpochPosition(run.epoch + 1, 0))
            seq = self.consumed + len(self.granted)
            grant = Grant(seq, run.number, run.epoch, run.next_batch, self.free.pop())
            self.granted.append(grant)
            self.unsent += encode_grant(grant)
            run.next_batch += 1

    @property
    def granted_end(self) -> int:
        """Number of the first grant that was never given."""
        return max(self._revoked_end, self.consumed + len(self.granted))

    def find(self, seq: int) -> Grant:
        """Return the grant of this number, which is granted and not consumed."""
        return self.granted[seq - self.consumed]

    def pop(self) -> Grant:
        """Consume the next grant, whose batch is complete."""
        self.consumed += 1
        return self.granted.popleft()

    def _truncate(self, seq: int) -> None:
        """Make the grants from number `seq` on void."""
        self._revoked_end = self.granted_end
        while self.consumed + len(self.granted) > seq:
            grant = self.granted.pop()
            self.free.append(grant.slot)
            self.runs[grant.run].revoke_from(grant.batch)
        self.version += 1
        self.unsent += encode_message(MessageKind.TRUNCATE, self.version, seq)

    # --- ends -----------------------------------------------------------------------------------------------

    def handle_lane_end(self, message: Message) -> int | None:
        """Update the end of a run after an ENDED or OVERRUN message.

        Returns:
            The number from which on grants are void, or None if none are.
        """
        run = self.runs.get(message.a)
        if run is None:  # it is over, or was abandoned
            return None
        previous_end = run.end
        if message.kind == MessageKind.OVERRUN:
            if not run.end_is_open:
                run.end_is_open, run.end = True, None
        elif self._plan.tail == "drop":
            if not self._fixed_length:
                run.end = message.c if run.end is None else min(run.end, message.c)
        else:
            run.batches_by_lane[message.lane] = message.b
            if run.end_is_open:
                run.find_end(self._plan, self._lanes)
        return None if run.end == previous_end else self._revoke_grants_after(run)

    def _revoke_grants_after(self, run: EpochRun) -> int | None:
        """Revoke the grants beyond the new end of `run`, and those of later runs that were granted too early."""
        keep = 0
        for grant in self.granted:
            if grant.run > run.number or (run.end is not None and grant.run == run.number and grant.batch >= run.end):
                break
            keep += 1
        first_void = self.consumed + keep if keep < len(self.granted) else None
        if first_void is not None:
            self._truncate(first_void)
        self._forget_runs(lambda other: other.number > run.number)
        self.granting_run = run
        return first_void

    # --- replacement workers --------------------------------------------------------------------------------

    def entry_points(
        self, seq: int, last_consumed: ConsumedBatch | None, slot_cursors: Callable[[int], bytes]
    ) -> list[tuple[int, int, bytes]]:
        """Return the batches at which a replacement worker may enter runs: (run, batch, cursors).

        These are the batch of grant `seq`, and the start of the current run, to which a TRUNCATE may take it back.

        Args:
            seq: Number of the first grant that the worker's lanes have not filled.
            last_consumed: Grant that was consumed last, with its cursors, or None.
            slot_cursors: Function that returns the cursors of a slot.
        """
        batches = [] if last_consumed is None else [last_consumed]
        batches += [(grant, b"") for grant in self.granted]
        entries = []
        for run in self.runs.values():
            if run.start.cursors is not None:
                entries.append((run.number, run.start.batch, run.start.cursors))
            filled = [(grant, cursors) for grant, cursors in batches if grant.run == run.number and grant.seq < seq]
            if filled:
                grant, cursors = filled[-1]
                entries.append((run.number, grant.batch + 1, cursors or slot_cursors(grant.slot)))
        return entries


def encode_grant(grant: Grant) -> bytes:
    """Encode a GRANT message."""
    return encode_message(MessageKind.GRANT, 0, grant.run, grant.epoch, grant.batch, grant.slot)
