"""A lane: plays its streams one after the other into its row of each batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamloader.engine.messages import Kind, pack
from streamloader.engine.plan import Plan
from streamloader.engine.ring import Ring, Row, Status
from streamloader.engine.stream_prefetch import Ahead
from streamloader.engine.workload import START, Cursor, Grant, Orders, failed_at
from streamloader.errors import CorruptStream, StreamloaderError, from_wire, to_wire
from streamloader.streams.base import Stream, StreamDataset, stream_rng
from streamloader.values import Array, StreamInfo

__all__ = ["Lane", "StreamScript"]


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
        self._scratch = {
            name: np.empty((1, *field.shape), field.dtype) for name, field in script.dataset.fields.items()
        }
        self._stashed = False  # the scratch holds the next step
        self._late: StreamloaderError | None = None  # what came instead of it
        self._at: tuple[int, int] | None = None  # (play, index) of the next batch in order
        self._places: dict[int, tuple[int, Cursor]] = {}  # play -> (index, cursor): where it may be entered
        self._limits: dict[tuple[int, int], tuple[int, dict[str, Any] | None]] = {}  # (epoch, position) -> see Limit
        self._limit: tuple[int, dict[str, Any] | None] | None = None  # of this stream
        self._ends: dict[int, int] = {}  # play -> batches that hold steps of this lane
        self._stream: Stream | None = None
        self._ahead = Ahead(script.dataset, script.streams)
        self._play = self._epoch = 0
        self._order: Array = np.empty(0, np.int64)
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
            await self._enter(grant)
        filled = await self._play_into(row, index)
        if filled < self._window:
            row.pad(filled)
        if index + 1 == self._plan.batches and self._plan.tail != "drop" and grant.play not in self._ends:
            await self._look_past_end(index)
        self._at = (grant.play, index + 1)
        cursor = row.cursor
        cursor[0], cursor[1], cursor[2] = self._cursor()

    def place(self, orders: Orders) -> None:
        """Heed where plays may be entered, and where streams end early."""
        for play, batch, cursors in orders.places:
            position, step, ended = cursors[self.number]
            self._places[play] = batch, (position, step, ended)
        self._limits = {(epoch, at): (step, wire) for row, epoch, at, step, wire in orders.limits if row == self.number}

    def _cursor(self) -> Cursor:
        """Where the lane stands: a step that is stashed has not been played yet."""
        ended = self._ends.get(self._play, -1)
        return (self._position, 0, ended) if self._stream is None else (self._position - 1, self._step, ended)

    async def reset(self) -> None:
        """Forget where the lane stands, and give back its stream."""
        self._at = self._late = None
        self._stashed = False
        self._ahead.release()
        await self._end_stream()

    async def _enter(self, grant: Grant) -> None:
        """Begin a play: at its first batch, or where a cursor says."""
        if self._at is not None:  # the supervisor may come back, if another lane proves to have steps left
            self._places[self._play] = self._at[1], self._cursor()
            oldest = min(self._play, grant.play)
            self._places = {play: place for play, place in self._places.items() if play >= oldest}
        await self.reset()
        listed = self._plan.lane(grant.epoch, self.global_number)
        self._order, self._borrowed = listed.ordinals, listed.borrowed
        self._play, self._epoch = grant.play, grant.epoch
        batch, cursor = self._places.get(grant.play, (0, START))
        if batch != grant.batch:
            raise StreamloaderError(
                f"lane {self.global_number} was asked for batch {grant.batch} of epoch {grant.epoch} and knows the way "
                f"to batch {batch} only: this is a fault of streamloader, please report it"
            )
        self._position, step, ended = cursor
        self._step = 0
        self._played_in_round = batch > 0
        self._ends = {} if ended < 0 else {grant.play: ended}
        if step:
            await self._open_next(step)

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
                if self._stream is None:
                    continue
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
                elif not await self._read(self._scratch, 1):
                    await self._end_stream()
                elif self._script.fixed:
                    if self._script.on_error == "raise":
                        raise self._too_long()
                    await self._skip(self._too_long())
                else:
                    self._stashed = True
        except StreamloaderError as error:
            if self._script.fixed:
                raise
            self._late = error  # this batch is whole; the next one would begin with what failed
        self.held = self._play
        self._report(pack(Kind.OVERRUN, a=self._play, lane=self.number))

    def _too_long(self) -> StreamloaderError:
        info = self._script.streams[self._ordinal]
        return CorruptStream(
            f"lane {self.global_number} has more steps than its streams declare: {info.key!r} goes on at step "
            f"{self._step} (it declares {info.length}), or one before it was longer. All ranks have to end an epoch "
            f"after {self._plan.batches} batches: correct the lengths, or declare none (None)",
            stream=info.key,
            offset=self._step,
        )

    def _has_next(self) -> bool:
        return self._has(self._position)

    def _has(self, position: int) -> bool:
        """Whether the lane plays a stream at this position before it ends, or its list begins again."""
        if self._play in self._ends:  # repeating: any stream will do, for ever
            return len(self._order) > 0 and position % len(self._order) != 0
        return not self._borrowed and position < len(self._order)

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
        if self._plan.tail != "cycle" or not len(self._order):
            return False
        first_borrowed_round = self._borrowed and self._position == 0
        if not (self._played_in_round or first_borrowed_round):
            return False
        self._played_in_round = False
        return True

    async def _open_next(self, at: int = 0) -> None:
        """Open the lane's next stream, at step `at`. There is none afterwards if it is not to be played, or failed."""
        position = self._position % len(self._order)
        self._ordinal = int(self._order[position])
        self._position += 1
        self._step = at
        status = self.status
        status[Status.STREAM], status[Status.STEP] = self._ordinal, at
        status[Status.EPOCH], status[Status.POSITION] = self._epoch, position
        status[Status.STAGE] = Status.OPENING
        self._limit = self._limits.get((self._epoch, position))
        if self._limit is not None and self._limit[0] <= at:
            self._raise_limit()
            return
        info = self._script.streams[self._ordinal]
        try:
            rng = stream_rng(self._plan.seed, self._epoch, self._ordinal)
            expected = self._ahead.take(self._position - 1)
            self._stream = await (expected.open(rng) if expected else self._script.dataset.open(info, rng))
            if at:
                await self._seek(self._stream, at)
        except Exception as error:
            named = self._named(error, "seeking" if self._stream else "opening")
            if self._script.on_error == "raise":
                raise named from error
            await self._skip(named)
            return
        await self._ahead.prepare(self._upcoming())
        status[Status.STAGE] = Status.READING

    def _upcoming(self) -> Iterator[tuple[int, int]]:
        """Yield position and ordinal of the streams that are to be prepared."""
        for position in range(self._position, self._position + self._ahead.depth):
            if not self._has(position):
                return
            yield position, int(self._order[position % len(self._order)])

    async def _seek(self, stream: Stream, step: int) -> None:
        self.status[Status.STAGE] = Status.SEEKING
        try:
            await stream.seek(step)
            replays = stream.replays
        except NotImplementedError:
            replays = True
            await self._play_up_to(stream, step)
        if replays:
            key = self._script.streams[self._ordinal].key
            text = f"stream {key!r} cannot seek: its first {step} steps are played again (said once, for all streams)"
            said = {"name": "streamloader", "level": logging.WARNING, "message": text, "once": "replay"}
            self._report(pack(Kind.LOG, payload=said))

    async def _play_up_to(self, stream: Stream, step: int) -> None:
        """Read and drop the steps before `step`."""
        rows = min(step, self._window)
        dropped = {name: np.empty((rows, *array.shape[1:]), array.dtype) for name, array in self._scratch.items()}
        while step:
            count = await stream.read_into({name: array[:step] for name, array in dropped.items()})
            if not count:
                return
            step -= count

    async def _read(self, out: dict[str, Array], room: int) -> int:
        """Read up to `room` steps; 0 at the end of the stream, and where it is left for good."""
        stream = self._stream
        assert stream is not None
        if self._limit is not None and self._limit[0] - self._step < room:
            room = self._limit[0] - self._step
            if room <= 0:
                self._raise_limit()
                return 0
            out = {name: array[:room] for name, array in out.items()}
        try:
            count = await stream.read_into(out)
            if not 0 <= count <= room:
                raise ValueError(f"read_into returned {count}, with room for {room} steps")
        except Exception as error:
            named = self._named(error, "reading")
            if self._script.on_error == "raise":
                raise named from error
            await self._skip(named)
            return 0
        return count

    async def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self.status[Status.STAGE] = Status.CLOSING
        try:
            await stream.aclose()
        except Exception as error:
            named = self._named(error, "closing")
            if self._script.on_error == "raise":
                raise named from error
            await self._skip(named)
        self.status[Status.STAGE] = Status.IDLE

    def _raise_limit(self) -> None:
        """Raise what is to be raised where the stream is left, if anything."""
        if self._limit is not None and self._limit[1] is not None:
            error = from_wire(self._limit[1])
            raise self._named(error, "reading")

    async def _skip(self, error: StreamloaderError) -> None:
        """Tell what a stream failed with, and leave it (``on_error="skip"``)."""
        position = (self._position - 1) % len(self._order)
        self._limits[self._epoch, position] = self._step, None
        key = self._script.streams[self._ordinal].key
        said = {"epoch": self._epoch, "position": position, "step": self._step, "stream": self._ordinal, "key": key}
        self._report(pack(Kind.SKIPPED, lane=self.number, payload=said | {"wire": to_wire(error)}))
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                await stream.aclose()
            except Exception as second:  # noqa: BLE001 - the first one was told, and tells more
                text = f"closing stream {key!r}, which had failed: {type(second).__name__}: {second}"
                said = {"name": "streamloader", "level": logging.WARNING, "message": text}
                self._report(pack(Kind.LOG, payload=said))

    def _mark(self, row: Row, offset: int, count: int) -> None:
        """Write the marks of the `count` steps just read, and advance the lane by them."""
        stream, start = self._stream, self._step
        assert stream is not None
        times = None if type(stream).times is Stream.times else stream.times
        row.mark(offset, count, start, self._ordinal, times, repeat=self._play in self._ends)
        if not start:
            self._played_in_round = True
        self._step = start + count
        self.status[Status.STEP] = self._step

    def _named(self, error: Exception, stage: str) -> StreamloaderError:
        """Return an error that says which lane, stream, stage and step."""
        key = self._script.streams[self._ordinal].key
        where = f"lane {self.global_number}, stream {key!r}"
        return failed_at(error, where, stream=key, lane=self.global_number, stage=stage, step=self._step)


@dataclass(frozen=True, slots=True)
class StreamScript:
    """What lanes play.

    Attributes:
        on_error: whether a stream that fails is an error of the loader, or is left for the next one.
        fixed: every play has the batches that are planned, because other ranks count on it.
    """

    dataset: StreamDataset
    streams: Sequence[StreamInfo]
    plan: Plan
    on_error: Literal["raise", "skip"] = "raise"
    fixed: bool = False

    resumes = True

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
