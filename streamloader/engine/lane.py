"""A lane: reads its streams one after the other into its row of each batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamloader.common.worker_messages import MAX_LOG_CHARS, InvalidMessage
from streamloader.engine.messages import REPLAY, MessageKind, encode_message
from streamloader.engine.plan import LaneList, Plan
from streamloader.engine.ring import Ring, Row, Status
from streamloader.engine.stream_prefetch import StreamPrefetcher
from streamloader.engine.workload import INITIAL_CURSOR, Cursor, Grant, LaneDirectives, locate_error
from streamloader.errors import CorruptStream, StreamloaderError, from_wire, to_wire
from streamloader.streams.base import Stream, StreamDataset, decoder_threads, stream_rng
from streamloader.streams.lane_thread import LaneInfo, set_lane_info
from streamloader.values import Array, StreamInfo

__all__ = ["Lane", "StreamWorkload"]

_Cutoff = tuple[int, dict[str, Any] | None]  # step and error of a StreamCutoff


@dataclass(frozen=True, slots=True)
class StreamWorkload:
    """Workload of a loader whose lanes read streams.

    Attributes:
        dataset: Dataset of the streams.
        streams: All streams of the dataset, by ordinal.
        plan: Plan of the lanes.
        on_error: Whether a stream that fails raises in the consumer (the default), or is skipped.
        fixed_length: Whether a run always has the planned number of batches, because other ranks count on it. Defaults
            to False.
        decoder_threads: Number of threads that each lane may use to decode. Defaults to 1.
    """

    dataset: StreamDataset
    streams: Sequence[StreamInfo]
    plan: Plan
    on_error: Literal["raise", "skip"] = "raise"
    fixed_length: bool = False
    decoder_threads: int = 1

    can_resume = True
    has_single_filler = False

    @property
    def has_next_epoch(self) -> bool:
        """Whether another epoch follows. No epoch follows an empty one."""
        return self.plan.batches != 0

    def make_fillers(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, send: Callable[[bytes], None]
    ) -> Sequence[Lane]:
        """Create a filler for each lane."""
        slots = [ring.arrays(slot) for slot in range(ring.slots)]
        fields = ring.layout.fields
        return [
            Lane(
                self,
                lane,
                first_lane + lane,
                (first_lane // ring.layout.lanes, self.plan.lanes // ring.layout.lanes),
                [Row(arrays, fields, lane) for arrays in slots],
                memoryview(ring.status[lane]),
                send,
            )
            for lane in lanes
        ]

    def decode_infos(self, data: bytes) -> Any:
        """Refuse infos, which only envs send."""
        raise InvalidMessage("it sends infos, although it has no env")


class Lane:
    """Row filler of one lane.

    Args:
        workload: Workload of the loader.
        row: Row of the lane in this ring.
        global_lane: Number of the lane over all ranks.
        rank: Rank of the loader, and number of ranks.
        rows: Row of the lane in each slot.
        status: Line of the lane in the ring's status table.
        send: Function that sends an encoded message to the supervisor.
    """

    def __init__(
        self,
        workload: StreamWorkload,
        row: int,
        global_lane: int,
        rank: tuple[int, int],
        rows: Sequence[Row],
        status: memoryview,
        send: Callable[[bytes], None],
    ) -> None:
        self.row, self.rows, self.global_lane = row, range(row, row + 1), global_lane
        self._rank, self._world_size = rank
        self.grants_filled = 0
        self.only_run: int | None = None  # set while a run has steps left beyond its planned end
        self.status = status
        self._workload, self._slot_rows, self._send = workload, rows, send
        self._plan = workload.plan
        self._window = workload.plan.window
        self._scratch = {
            name: np.empty((1, *field.shape), field.dtype) for name, field in workload.dataset.fields.items()
        }
        self._scratch_holds_step = False  # the next step was read already
        self._deferred_error: StreamloaderError | None = None  # raised instead of the next step
        self._next_batch: tuple[int, int] | None = None  # (run, batch) that follows the last one
        self._entry_points: dict[int, tuple[int, Cursor]] = {}  # run -> (batch, cursor)
        self._cutoffs: dict[tuple[int, int], _Cutoff] = {}  # by epoch and position
        self._cutoff: _Cutoff | None = None  # of the current stream
        self._ended_runs: dict[int, int] = {}  # run -> number of batches that hold steps of this lane
        self._stream: Stream | None = None
        self._prefetcher = StreamPrefetcher(workload.dataset, workload.streams)
        self._run = self._epoch = 0
        self._list = LaneList(np.empty(0, np.int64))
        self._order: Array = self._list.order
        self._first_repeated = 0  # where in the order a round of repeats begins
        self._position = 0  # of the next stream in the order, counted on over repeats
        self._ordinal = -1
        self._step = 0
        self._round_has_steps = False

    async def fill(self, grant: Grant) -> None:
        """Fill the lane's row of the granted slot completely.

        Raises:
            StreamloaderError: If the stream failed. The error names lane, stream, stage and step.
        """
        row = self._slot_rows[grant.slot]
        batch = grant.batch
        if self._next_batch != (grant.run, batch):
            await self._enter_run(grant)
        filled = await self._fill_row(row, batch)
        if filled < self._window:
            row.pad(filled)
        if batch + 1 == self._plan.batches and self._plan.tail != "drop" and grant.run not in self._ended_runs:
            await self._check_planned_end(batch)
        self._next_batch = (grant.run, batch + 1)
        cursor = row.cursor
        cursor[0], cursor[1], cursor[2] = self._cursor()

    def apply_directives(self, directives: LaneDirectives) -> None:
        """Replace the cutoffs, and add the entry points of runs."""
        for run, batch, cursors in directives.entry_points:
            position, step, ended = cursors[self.row]
            self._entry_points[run] = batch, (position, step, ended)
        self._cutoffs = {
            (epoch, position): (step, error)
            for row, epoch, position, step, error in directives.cutoffs
            if row == self.row
        }

    def _cursor(self) -> Cursor:
        """Return the lane's cursor. A step in the scratch memory is not consumed yet."""
        ended = self._ended_runs.get(self._run, -1)
        return (self._position, 0, ended) if self._stream is None else (self._position - 1, self._step, ended)

    async def reset(self) -> None:
        """Forget the lane's position, and close its stream."""
        self._next_batch = self._deferred_error = None
        self._scratch_holds_step = False
        self._prefetcher.release()
        await self._close_stream()

    async def _enter_run(self, grant: Grant) -> None:
        """Start a run, at its first batch or at an entry point."""
        if self._next_batch is not None:  # a TRUNCATE may take the lane back, if another lane has steps left
            self._entry_points[self._run] = self._next_batch[1], self._cursor()
            oldest = min(self._run, grant.run)
            self._entry_points = {run: entry for run, entry in self._entry_points.items() if run >= oldest}
        await self.reset()
        self._list = self._plan.lane(grant.epoch, self.global_lane)
        self._order = self._list.order
        self._run, self._epoch = grant.run, grant.epoch
        batch, cursor = self._entry_points.get(grant.run, (0, INITIAL_CURSOR))
        if batch != grant.batch:
            raise StreamloaderError(
                f"lane {self.global_lane} cannot start at batch {grant.batch} of epoch {grant.epoch}, because it only "
                f"has the cursor of batch {batch}: this is a bug in streamloader, please report it"
            )
        self._position, step, ended = cursor
        self._step = 0
        self._round_has_steps = batch > 0
        self._ended_runs = {} if ended < 0 else {grant.run: ended}
        self._first_repeated = len(self._list.ordinals) if self._list.repeats_substitute(ended) else 0
        if step:
            await self._open_next_stream(step)

    async def _fill_row(self, row: Row, batch: int) -> int:
        """Fill the row as far as the lane's streams last; return the number of steps filled."""
        window, align = self._window, self._plan.switch == "align"
        filled = 0
        if self._deferred_error is not None:
            raise self._deferred_error
        if self._scratch_holds_step:
            for name, value in self._scratch.items():
                row.fields[name][:1] = value
            self._mark(row, 0, 1)
            self._scratch_holds_step, filled = False, 1
        while filled < window:
            if self._stream is None:
                if not self._has_next_stream():
                    self._report_end(batch, filled)
                    if not self._start_next_round():
                        break
                await self._open_next_stream()
                if self._stream is None:
                    continue
            out = row.fields if not filled else {name: array[filled:] for name, array in row.fields.items()}
            count = await self._read(out, window - filled)
            if count:
                self._mark(row, filled, count)
                filled += count
            else:
                await self._close_stream()
                if align and filled:
                    break
        return filled

    async def _check_planned_end(self, batch: int) -> None:
        """At the planned end of the epoch, try to read one more step, and keep it if there is one."""
        try:
            while not self._scratch_holds_step:
                if self._stream is None:
                    if not self._has_next_stream():
                        self._report_end(batch, self._window)
                        return
                    await self._open_next_stream()
                elif not await self._read(self._scratch, 1):
                    await self._close_stream()
                elif self._workload.fixed_length:
                    length_error = self._too_many_steps_error()
                    if self._workload.on_error == "raise":
                        raise length_error
                    await self._skip_stream(length_error)
                else:
                    self._scratch_holds_step = True
        except StreamloaderError as error:
            if self._workload.fixed_length:
                raise
            self._deferred_error = error  # this batch is complete, so the next one fails
        self.only_run = self._run
        self._send(encode_message(MessageKind.OVERRUN, a=self._run, lane=self.row))

    def _too_many_steps_error(self) -> StreamloaderError:
        info = self._workload.streams[self._ordinal]
        return CorruptStream(
            f"lane {self.global_lane} has more steps than its streams declare: {info.key!r} continues at step "
            f"{self._step} (it declares {info.length}), or an earlier stream was longer. All ranks have to end an "
            f"epoch after {self._plan.batches} batches: correct the lengths, or declare none (None)",
            stream=info.key,
            offset=self._step,
        )

    def _has_next_stream(self) -> bool:
        return self._has_stream_at(self._position)

    def _has_stream_at(self, position: int) -> bool:
        """Return whether the lane reads a stream at this position in its current round."""
        if self._run in self._ended_runs:  # all streams are repeats now, round after round
            return self._repeated_count > 0 and (position - self._first_repeated) % self._repeated_count != 0
        return not self._list.borrowed and position < len(self._list.ordinals)

    @property
    def _repeated_count(self) -> int:
        """Number of streams of one round of repeats."""
        return len(self._list.substitute) if self._first_repeated else len(self._list.ordinals)

    def _index(self, position: int) -> int:
        """Return the index in the order of a position, which counts on over repeats."""
        first, count = self._first_repeated, self._repeated_count
        return position if position < first else first + (position - first) % count

    def _report_end(self, batch: int, filled: int) -> None:
        """Report, once, that the lane has read all streams of the run.

        Args:
            batch: Index of the current batch.
            filled: Number of steps filled in it.
        """
        if self._run in self._ended_runs:
            return
        self.only_run = None
        batches = batch + (filled > 0)
        self._ended_runs[self._run] = batches
        if self._list.repeats_substitute(batches):
            self._first_repeated = len(self._list.ordinals)
        full_batches = batches if self._plan.switch == "align" else batch + (filled == self._window)
        self._send(encode_message(MessageKind.ENDED, a=self._run, b=batches, c=full_batches, lane=self.row))

    def _start_next_round(self) -> bool:
        """With ``tail="cycle"``, start the lane's list again; return False if the lane ends or would yield no steps."""
        if self._plan.tail != "cycle" or not len(self._order):
            return False
        is_first_round_of_others = (self._list.borrowed or self._first_repeated) and (
            self._position == self._first_repeated
        )
        if not (self._round_has_steps or is_first_round_of_others):
            return False
        self._round_has_steps = False
        return True

    async def _open_next_stream(self, first_step: int = 0) -> None:
        """Open the lane's next stream at `first_step`. None is open afterwards if it is cut off or was skipped."""
        position = self._index(self._position)
        self._ordinal = int(self._order[position])
        self._position += 1
        self._step = first_step
        status = self.status
        status[Status.STREAM], status[Status.STEP] = self._ordinal, first_step
        status[Status.EPOCH], status[Status.POSITION] = self._epoch, position
        status[Status.STAGE] = Status.OPENING
        self._cutoff = self._cutoffs.get((self._epoch, position))
        if self._cutoff is not None and self._cutoff[0] <= first_step:
            self._raise_cutoff_error()
            return
        info = self._workload.streams[self._ordinal]
        set_lane_info(
            LaneInfo(
                self._epoch,
                self.global_lane,
                self._rank,
                self._world_size,
                self._ordinal,
                info.key,
                self._plan.seed,
            )
        )
        decoder_threads.set(self._workload.decoder_threads)
        try:
            rng = stream_rng(self._plan.seed, self._epoch, self._ordinal)
            prepared = self._prefetcher.take(self._position - 1)
            self._stream = await (prepared.open(rng) if prepared else self._workload.dataset.open(info, rng))
            if first_step:
                await self._seek(self._stream, first_step)
        except Exception as error:
            located = self._locate(error, "seeking" if self._stream else "opening")
            if self._workload.on_error == "raise":
                raise located from error
            await self._skip_stream(located)
            return
        await self._prefetcher.prepare(self._upcoming_streams())
        status[Status.STAGE] = Status.READING

    def _upcoming_streams(self) -> Iterator[tuple[int, int]]:
        """Yield position and ordinal of the next streams, as many as are to be prepared."""
        for position in range(self._position, self._position + self._prefetcher.depth):
            if not self._has_stream_at(position):
                return
            yield position, int(self._order[self._index(position)])

    async def _seek(self, stream: Stream, step: int) -> None:
        self.status[Status.STAGE] = Status.SEEKING
        try:
            await stream.seek(step)
            replays = stream.replays
        except NotImplementedError:
            replays = True
            await self._discard_steps(stream, step)
        if replays:
            key = self._workload.streams[self._ordinal].key
            text = f"stream {key!r} cannot seek: its first {step} steps are read again (logged once for all streams)"
            self._log_warning(text, once=REPLAY)

    async def _discard_steps(self, stream: Stream, step: int) -> None:
        """Read the steps before `step` and discard them."""
        rows = min(step, self._window)
        buffers = {name: np.empty((rows, *array.shape[1:]), array.dtype) for name, array in self._scratch.items()}
        while step:
            count = await stream.read_into({name: array[:step] for name, array in buffers.items()})
            if not count:
                return
            step -= count

    async def _read(self, out: dict[str, Array], max_steps: int) -> int:
        """Read up to `max_steps` steps; return 0 at the end of the stream or at its cutoff, or if it was skipped."""
        stream = self._stream
        assert stream is not None
        if self._cutoff is not None and self._cutoff[0] - self._step < max_steps:
            max_steps = self._cutoff[0] - self._step
            if max_steps <= 0:
                self._raise_cutoff_error()
                return 0
            out = {name: array[:max_steps] for name, array in out.items()}
        try:
            count = await stream.read_into(out)
            if not 0 <= count <= max_steps:
                raise ValueError(f"read_into returned {count}, with room for {max_steps} steps")
        except Exception as error:
            located = self._locate(error, "reading")
            if self._workload.on_error == "raise":
                raise located from error
            await self._skip_stream(located)
            return 0
        return count

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self.status[Status.STAGE] = Status.CLOSING
        try:
            await stream.aclose()
        except Exception as error:
            located = self._locate(error, "closing")
            if self._workload.on_error == "raise":
                raise located from error
            await self._skip_stream(located)
        self.status[Status.STAGE] = Status.IDLE

    def _raise_cutoff_error(self) -> None:
        """Raise the error of the current cutoff, if it has one."""
        if self._cutoff is not None and self._cutoff[1] is not None:
            error = from_wire(self._cutoff[1])
            raise self._locate(error, "reading")

    async def _skip_stream(self, error: StreamloaderError) -> None:
        """Report the error of the current stream, and skip the rest of it (``on_error="skip"``)."""
        position = self._index(self._position - 1)
        self._cutoffs[self._epoch, position] = self._step, None
        key = self._workload.streams[self._ordinal].key
        payload = {
            "epoch": self._epoch,
            "position": position,
            "step": self._step,
            "stream": self._ordinal,
            "key": key,
            "error": to_wire(error),
        }
        self._send(encode_message(MessageKind.SKIPPED, lane=self.row, payload=payload))
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                await stream.aclose()
            except Exception as second:  # noqa: BLE001 - only logged: the first error was reported and is its cause
                self._log_warning(f"closing stream {key!r}, which had failed: {type(second).__name__}: {second}")

    def _log_warning(self, message: str, **options: str) -> None:
        text = message[:MAX_LOG_CHARS].encode(errors="replace").decode()
        payload = {"name": "streamloader", "level": logging.WARNING, "message": text} | options
        self._send(encode_message(MessageKind.LOG, payload=payload))

    def _mark(self, row: Row, offset: int, count: int) -> None:
        """Write the marks of the `count` steps just read, and advance the lane by them."""
        stream, start = self._stream, self._step
        assert stream is not None
        times = None if type(stream).times is Stream.times else stream.times
        row.mark(offset, count, start, self._ordinal, times, repeat=self._run in self._ended_runs)
        if not start:
            self._round_has_steps = True
        self._step = start + count
        self.status[Status.STEP] = self._step

    def _locate(self, error: Exception, stage: str) -> StreamloaderError:
        """Return the error with lane, stream, stage and step added."""
        key = self._workload.streams[self._ordinal].key
        where = f"lane {self.global_lane}, stream {key!r}"
        return locate_error(error, where, stream=key, lane=self.global_lane, stage=stage, step=self._step)
