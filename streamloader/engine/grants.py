"""Which slots are granted for which batches of which plays: the supervisor's books, without any I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from streamloader.engine.messages import Kind, Record, pack
from streamloader.engine.plan import Plan
from streamloader.engine.ring import CURSOR_COLUMNS
from streamloader.engine.workload import Grant, Place, Taken
from streamloader.values import Array

__all__ = ["Grants", "Play"]


class Play:
    """One run through an epoch, as far as it is known.

    Args:
        place: where it begins; its epoch and first batch.
    """

    __slots__ = ("end", "ended", "epoch", "granted", "number", "open_end", "place")

    def __init__(self, number: int, place: Place, plan: Plan, lanes: int) -> None:
        self.number, self.place, self.epoch = number, place, place.epoch
        self.end = plan.batches  # where known
        self.granted = place.batch  # batches granted, those taken back not counted
        self.ended: dict[int, int] = {}  # lane -> batches that hold steps of it
        if place.cursors is not None:
            ended = cursor_array(place.cursors)[:, 2].tolist()
            self.ended = {lane: batches for lane, batches in enumerate(ended) if batches >= 0}
            if plan.batches is not None and plan.tail != "drop" and place.batch >= plan.batches:
                self.end = None  # it goes on beyond its planned end, unless all lanes have ended
        self.open_end = self.end is None  # to be found by playing
        if self.open_end:
            self.find_end(plan, lanes)

    def find_end(self, plan: Plan, lanes: int) -> None:
        """Set the end, if all lanes have come to it."""
        if len(self.ended) == lanes:
            self.end = max(*self.ended.values(), plan.batches or 0)


def cursor_array(cursors: bytes) -> Array:
    """Return cursors as int64 (lanes, 3)."""
    return np.frombuffer(cursors, np.int64).reshape(-1, CURSOR_COLUMNS)


class Grants:
    """The grants that were given and not taken yet, and the plays that they belong to.

    Args:
        slots: of the ring; `most`: batches that may be ahead of the consumer.
        lanes: rows of the ring.
        plays_again: whether another play follows at the end of one.
        fixed: whether plays have the batches that are planned, whatever lanes say.

    Attributes:
        taken: grants consumed; the next batch is the first of `granted`.
        version: of the numbering; it changes when grants are made void.
        unsent: encoded records for all workers.
        current: the play that is consumed; granting: the one whose batches are granted next.
    """

    def __init__(self, plan: Plan, lanes: int, slots: int, most: int, *, plays_again: bool, fixed: bool) -> None:
        self._plan, self._lanes, self._most = plan, lanes, most
        self._plays_again, self._fixed = plays_again, fixed and plan.batches is not None
        self.taken = self.version = 0
        self.granted: deque[Grant] = deque()
        self.free = list(range(slots - 1, -1, -1))
        self.unsent = bytearray()
        self.plays: dict[int, Play] = {}  # the current one and those after it
        self.current: Play | None = None
        self.granting: Play | None = None
        self._plays_made = 0

    # --- plays ----------------------------------------------------------------------------------------------

    def begin(self, place: Place) -> int | None:
        """Make the batch at `place` the next one; without a break if it is the one that was made ahead.

        Returns the number from which on grants are void now, or None. The caller tells workers of the place.
        """
        ahead, current = self.granting, self.current
        at_start = place.cursors is None and place.batch == 0
        if at_start and ahead is not None and ahead is not current and ahead.epoch == place.epoch and self.at_end:
            self.current = ahead
            self._forget(lambda play: play.number < ahead.number)
            return None
        self._truncate(self.taken)
        self._forget(lambda _: True)
        self.current = self.granting = self._new_play(place)
        return self.taken

    def _new_play(self, place: Place) -> Play:
        play = Play(self._plays_made, place, self._plan, self._lanes)
        self._plays_made += 1
        self.plays[play.number] = play
        return play

    def _forget(self, is_over: Callable[[Play], bool]) -> None:
        """Pay no more attention to what lanes say of these plays."""
        self.plays = {number: play for number, play in self.plays.items() if not is_over(play)}

    @property
    def at_end(self) -> bool:
        """Whether all batches of the current play were taken."""
        play = self.current
        if play is None:
            return True
        if self.granted and self.granted[0].play == play.number:  # what is granted lies before the end
            return False
        return play.end is not None and play.granted >= play.end

    # --- grants ---------------------------------------------------------------------------------------------

    def grant(self) -> None:
        """Grant every free slot, in order, through this play and, once its end is known, into the next one."""
        while self.free and len(self.granted) < self._most and (play := self.granting) is not None:
            if play.end is not None and play.granted >= play.end:
                if play is not self.current or not self._plays_again:
                    return  # one play ahead is enough
                play = self.granting = self._new_play(Place(play.epoch + 1, 0))
            seq = self.taken + len(self.granted)
            grant = Grant(seq, play.number, play.epoch, play.granted, self.free.pop())
            self.granted.append(grant)
            self.unsent += encoded(grant)
            play.granted += 1

    def pop(self) -> Grant:
        """Take the next grant, whose batch is whole."""
        self.taken += 1
        return self.granted.popleft()

    def _truncate(self, seq: int) -> None:
        """Make the grants from number `seq` on void."""
        while self.taken + len(self.granted) > seq:
            grant = self.granted.pop()
            self.free.append(grant.slot)
            self.plays[grant.play].granted = grant.batch
        self.version += 1
        self.unsent += pack(Kind.TRUNCATE, self.version, seq)

    # --- ends -----------------------------------------------------------------------------------------------

    def end(self, record: Record) -> int | None:
        """Heed that a lane has come to the end of a play, or beyond its planned one.

        Returns the number from which on grants are void now, or None.
        """
        play = self.plays.get(record.a)
        if play is None:  # it is over, or was given up
            return None
        before = play.end
        if record.kind == Kind.OVERRUN:
            if not play.open_end:
                play.open_end, play.end = True, None
        elif self._plan.tail == "drop":
            if not self._fixed:
                play.end = record.c if play.end is None else min(play.end, record.c)
        else:
            play.ended[record.lane] = record.b
            if play.open_end:
                play.find_end(self._plan, self._lanes)
        return None if play.end == before else self._mend(play)

    def _mend(self, play: Play) -> int | None:
        """The end of a play has moved: take back the grants beyond it, and those that came after it too early."""
        keep = 0
        for grant in self.granted:
            if grant.play > play.number or (
                play.end is not None and grant.play == play.number and grant.batch >= play.end
            ):
                break
            keep += 1
        void = self.taken + keep if keep < len(self.granted) else None
        if void is not None:
            self._truncate(void)
        self._forget(lambda other: other.number > play.number)
        self.granting = play
        return void

    # --- for a worker that takes the place of another ---------------------------------------------------------

    def places(self, seq: int, last: Taken | None, cursors: Callable[[int], bytes]) -> list[tuple[int, int, bytes]]:
        """Say where a worker that has filled the grants before number `seq` may enter plays: (play, batch, cursors).

        These are the batch of grant `seq`, and the border of the current play, to which it may be sent back.

        Args:
            seq: number of the first grant that it has not filled.
            last: the grant that was taken last, with its cursors.
            cursors: returns those of a slot.
        """
        known = [] if last is None else [last]
        known += [(grant, b"") for grant in self.granted]
        found = []
        for play in self.plays.values():
            if play.place.cursors is not None:
                found.append((play.number, play.place.batch, play.place.cursors))
            before = [(grant, kept) for grant, kept in known if grant.play == play.number and grant.seq < seq]
            if before:
                grant, kept = before[-1]
                found.append((play.number, grant.batch + 1, kept or cursors(grant.slot)))
        return found


def encoded(grant: Grant) -> bytes:
    """Return the record that gives a grant."""
    return pack(Kind.GRANT, 0, grant.play, grant.epoch, grant.batch, grant.slot)
