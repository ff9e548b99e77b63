"""A lane: plays its streams one after the other into its row of each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from streamloader.engine.plan import Plan
from streamloader.engine.player import Grant, failed_at
from streamloader.engine.records import Kind, pack
from streamloader.engine.ring import META, Ring, Row, Status
from streamloader.errors import StreamloaderError
from streamloader.streams.base import Stream, StreamDataset, stream_rng
from streamloader.values import Array, StreamInfo

__all__ = ["Lane", "StreamScript"]


@dataclass(frozen=True, slots=True)
class StreamScript:
    """What lanes play: the data set, its streams and the plan."""

    dataset: StreamDataset
    streams: Sequence[StreamInfo]
    plan: Plan

    @property
    def plays_again(self) -> bool:
        """Epochs follow one another, unless there is nothing in them."""
        return self.plan.batches != 0

    def players(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, report: Callable[[bytes], None]
    ) -> Sequence[Lane]:
        """Make a player for each lane."""
        slots = [ring.arrays(slot) for slot in range(ring.slots)]
        fields = ring.layout.fields
        return [
            Lane(
                self,
                lane,
                first_lane + lane,
                [Row(arrays, fields, lane) for arrays in slots],
                memoryview(ring.status[lane]),
                report,
            )
            for lane in lanes
        ]


class Lane:
    """The player of one lane.

    Args:
        number: row of the lane in this ring; `global_number`: over all ranks.
        rows: the lane's row of each slot.
        status: the lane's line of the ring's status table.
        report: sends an encoded record to the supervisor.
    """

    def __init__(
        self,
        script: StreamScript,
        number: int,
        global_number: int,
        rows: Sequence[Row],
        status: memoryview,
        report: Callable[[bytes], None],
    ) -> None:
        self.number, self.global_number = number, global_number
        self.done = 0  # grants filled
        self.held: int | None = None  # the play that has steps left beyond its planned end
        self.status = status
        self._script, self._rows, self._report = script, rows, report
        self._plan = script.plan
        self._window = script.plan.window
        self._count = np.arange(self._window, dtype=np.int64)
        self._fill = {name: field.fill for name, field in script.dataset.fields.items()}
        self._scratch = {
            name: np.empty((1, *field.shape), field.dtype) for name, field in script.dataset.fields.items()
        }
        self._stashed = False  # the scratch holds the next step
        self._late: StreamloaderError | None = None  # what came instead of it
        self._at: tuple[int, int] | None = None  # (play, index) of the next batch in order
        self._ends: dict[int, int] = {}  # play -> batches that hold steps of this lane
        self._stream: Stream | None = None
        self._play = self._epoch = 0
        self._order: list[int] = []
        self._borrowed = False
        self._position = 0  # in the order; counts on over repeats
        self._ordinal = -1
        self._step = 0
        self._played_in_round = False

    async def fill(self, grant: Grant) -> None:
        """Fill the lane's row of the granted slot, whole.

        Raises:
            StreamloaderError: the stream failed; the error names lane, stream, stage and step.
        """
        row = self._rows[grant.slot]
        index = grant.batch
        if self._at != (grant.play, index):
            end = self._ends.get(grant.play)
            if end is not None and index >= end and self._plan.tail != "cycle":
                self._pad(row, 0)  # the supervisor came back to a play that ended here
                return
            await self._enter(grant)
            for before in range(index):  # it came back to where this lane has to be found again
                await self._play_into(row, before)
        filled = await self._play_into(row, index)
        if filled < self._window:
            self._pad(row, filled)
        if index + 1 == self._plan.batches and self._plan.tail != "drop" and grant.play not in self._ends:
            await self._look_past_end(index)
        self._at = (grant.play, index + 1)
        cursor = row.cursor
        cursor[0], cursor[1] = self._position, self._step

    async def reset(self) -> None:
        """Forget where the lane stands, and give back its stream."""
        self._at = self._late = None
        self._stashed = False
        await self._end_stream()

    async def _enter(self, grant: Grant) -> None:
        """Begin a play at its first batch."""
        await self.reset()
        listed = self._plan.lane(grant.epoch, self.global_number)
        self._order, self._borrowed = listed.ordinals.tolist(), listed.borrowed
        self._play, self._epoch = grant.play, grant.epoch
        self._position = self._step = 0
        self._played_in_round = False
        self._ends = {play: end for play, end in self._ends.items() if play == grant.play - 1}

    async def _play_into(self, row: Row, index: int) -> int:
        """Fill the row as far as streams go; return the steps filled."""
        window, align = self._window, self._plan.switch == "align"
        filled = 0
        if self._late is not None:
            raise self._late
        if self._stashed:
            for name, value in self._scratch.items():
                row.fields[name][:1] = value
            self._mark(row, 0, 1)
            self._stashed, filled = False, 1
        while filled < window:
            if self._stream is None:
                if not self._has_next():
                    self._ended(index, filled)
                    if not self._start_over():
                        break
                await self._open_next()
            out = row.fields if not filled else {name: array[filled:] for name, array in row.fields.items()}
            count = await self._read(out, window - filled)
            if count:
                self._mark(row, filled, count)
                filled += count
            else:
                await self._end_stream()
                if align and filled:
                    break
        return filled

    async def _look_past_end(self, index: int) -> None:
        """At the planned end of the epoch: is there truly nothing left? A step that there is, is kept for later."""
        try:
            while not self._stashed:
                if self._stream is None:
                    if not self._has_next():
                        self._ended(index, self._window)
                        return
                    await self._open_next()
                if await self._read(self._scratch, 1):
                    self._stashed = True
                else:
                    await self._end_stream()
        except StreamloaderError as error:
            self._late = error  # this batch is whole; the next one would begin with what failed
        self.held = self._play
        self._report(pack(Kind.OVERRUN, a=self._play, lane=self.number))

    def _has_next(self) -> bool:
        if self._play in self._ends:  # repeating: any stream will do, for ever
            return bool(self._order) and self._position % len(self._order) != 0
        return not self._borrowed and self._position < len(self._order)

    def _ended(self, index: int, filled: int) -> None:
        """Report that every stream of the play was played to its end."""
        if self._play in self._ends:
            return
        self.held = None
        windows = index + (filled > 0)
        self._ends[self._play] = windows
        full = windows if self._plan.switch == "align" else index + (filled == self._window)
        self._report(pack(Kind.ENDED, a=self._play, b=windows, c=full, lane=self.number))

    def _start_over(self) -> bool:
        """With ``tail="cycle"``, begin the list again; False if that is not asked for or would yield nothing."""
        if self._plan.tail != "cycle" or not self._order:
            return False
        first_borrowed_round = self._borrowed and self._position == 0
        if not (self._played_in_round or first_borrowed_round):
            return False
        self._played_in_round = False
        return True

    async def _open_next(self) -> None:
        self._ordinal = self._order[self._position % len(self._order)]
        self._position += 1
        self._step = 0
        self._stage(Status.OPENING)
        info = self._script.streams[self._ordinal]
        try:
            rng = stream_rng(self._plan.seed, self._epoch, self._ordinal)
            self._stream = await self._script.dataset.open(info, rng)
        except Exception as error:
            raise self._named(error, "opening") from error
        self.status[Status.STAGE] = Status.READING

    async def _read(self, out: dict[str, Array], room: int) -> int:
        stream = self._stream
        assert stream is not None
        try:
            count = await stream.read_into(out)
        except Exception as error:
            raise self._named(error, "reading") from error
        if not 0 <= count <= room:
            wrong = ValueError(f"read_into returned {count}, with room for {room} steps")
            raise self._named(wrong, "reading")
        return count

    async def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self.status[Status.STAGE] = Status.CLOSING
        try:
            await stream.aclose()
        except Exception as error:
            raise self._named(error, "closing") from error
        self.status[Status.STAGE] = Status.IDLE

    def _mark(self, row: Row, at: int, count: int) -> None:
        """Write what the steps just read are."""
        start = self._step
        repeat = self._play in self._ends
        stop = at + count
        whole = count == self._window
        step, times, counted = row.step, row.time, self._count
        if not whole:
            step, times, counted = step[at:stop], times[at:stop], counted[:count]
        step.fill(start)  # twice as fast as adding the number, which NumPy would make an array of
        np.add(step, counted, step)
        stream = self._stream
        assert stream is not None
        if type(stream).times is Stream.times:
            times[:] = step  # the default, without a call
        else:
            stream.times(start, times)
        # All marks, each time: the user may have written into the batch that had this slot before.
        if whole:
            row.reset.fill(False)
            row.valid.fill(True)
            row.repeat.fill(repeat)
            row.stream.fill(self._ordinal)
        else:
            row.reset[at:stop] = False
            row.valid[at:stop] = True
            row.repeat[at:stop] = repeat
            row.stream[at:stop] = self._ordinal
        if not start:
            row.reset[at] = True
            self._played_in_round = True
        self._step = start + count
        self.status[Status.STEP] = self._step

    def _pad(self, row: Row, at: int) -> None:
        for name, array in row.fields.items():
            array[at:] = self._fill[name]
        for name, field in META.items():
            getattr(row, name)[at:] = field.fill

    def _stage(self, stage: int) -> None:
        self.status[Status.STREAM] = self._ordinal
        self.status[Status.STEP] = self._step
        self.status[Status.STAGE] = stage

    def _named(self, error: Exception, stage: str) -> StreamloaderError:
        """Return an error that says which lane, stream, stage and step."""
        key = self._script.streams[self._ordinal].key
        where = f"lane {self.global_number}, stream {key!r}"
        return failed_at(error, where, stream=key, lane=self.global_number, stage=stage, step=self._step)
