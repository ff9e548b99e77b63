"""From numbers of frames to decoded frames: what is known, what is decoded, and what is fetched ahead."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from streamloader.archive.reader.chunk_bytes import ChunkStores
from streamloader.archive.reader.decoders import Decoders, Playing, left_to_send
from streamloader.archive.reader.packets import AHEAD, RunBytes
from streamloader.archive.reader.plan import Run, cut_run, plan_runs
from streamloader.common.lru import RecentKeys
from streamloader.media.video.reader import frame_bytes

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import ChunkRow, VideoRow
    from streamloader.archive.reader.cache import FrameCache
    from streamloader.archive.reader.lookup import Chunk, Lookup
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.media.video.reader import VideoFrame
    from streamloader.values import Array

__all__ = ["Reading", "Take"]

Take: TypeAlias = "Callable[[int, VideoRow, VideoFrame], None]"
_Group: TypeAlias = "tuple[tuple[str, int], int]"  # a chunk, and the key in it from which frames are decoded

_WINDOW: Final = 8  # chunks whose indexes are held at once
_BATCH_AHEAD: Final = 64 << 20  # bytes that are under way for one batch
_FEW: Final = 8 << 20  # pixels of the frames of a run that are kept in any case; more only if asked for again
_MANY: Final = 1024  # frames of a run that are certainly not kept all
_BACK: Final = 64  # frames before a wanted one that are kept where access goes backwards
_AHEAD_PACKETS: Final = 64  # that are fetched behind a sequential read, at least
_LONGER: Final = 3  # times
_PART: Final = 12  # packets that it is worth to have a thread for
_PATIENCE: Final = 120.0  # seconds to wait for another thread that decodes the same; then it is decoded here


@dataclass(slots=True)
class _Job:
    """One run, where its frames go, and the bytes that it takes."""

    chunk: Chunk
    run: Run
    place: int  # of its first frame in what was asked for
    data: RunBytes | None = None
    playing: Playing | None = None
    stay: bool = False


class _Claim:
    """Says that a thread decodes a group of pictures, and which further frames of it others wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.wanted: set[int] = set()


class Reading:
    """Reads frames of one archive in one process. All methods can be called from several threads."""

    def __init__(
        self,
        lookup: Lookup,
        stores: ChunkStores,
        decoders: Decoders,
        cache: FrameCache,
        counts: ReadCounts,
        threads: int,
        *,
        prefetch: bool,
    ) -> None:
        self._lookup = lookup
        self._stores = stores
        self._decoders = decoders
        self._cache = cache
        self._counts = counts
        self._threads = threads
        self._prefetch = prefetch
        self._ends: RecentKeys[int] = RecentKeys(16)  # numbers of the frames that would go on with what was read lately
        self._seen: RecentKeys[tuple[tuple[str, int], int, int]] = RecentKeys(256)  # runs that were decoded lately
        self._begun: RecentKeys[tuple[tuple[str, int], int]] = RecentKeys(
            64
        )  # keys that were, with the first wanted frame
        self._claims: dict[_Group, _Claim] = {}
        self._lock = threading.Lock()

    # --- one after the other -----------------------------------------------------------------------------------------

    def stream(self, numbers: Array) -> Iterator[VideoFrame]:
        """Yield frames of the archive in the order of `numbers`, lazily."""
        with self._lock:
            self._counts.frames += len(numbers)
        bounds = np.flatnonzero(np.diff(numbers, prepend=np.iinfo(np.int64).max) <= 0)
        for start, stop in zip(bounds.tolist(), [*bounds[1:].tolist(), len(numbers)], strict=True):
            yield from self._ascending(numbers[start:stop])

    def _ascending(self, numbers: Array) -> Iterator[VideoFrame]:
        waiting: deque[_Job] = deque()
        jobs = self._jobs(numbers, last_stays=True)
        while True:
            room = AHEAD
            for job in waiting:
                room = self._ask(job, room)
            while len(waiting) < 2 or room > 0:  # noqa: PLR2004 - the one that is played, and the next
                job_or_none = next(jobs, None)
                if job_or_none is None:
                    break
                waiting.append(job_or_none)
                room = self._ask(job_or_none, room)
            if not waiting:
                break
            yield from self._one(waiting.popleft())
        self._ended(numbers)

    def _one(self, job: _Job) -> Iterator[VideoFrame]:
        wanted = job.run.frames.tolist()
        known = self._kept(job.chunk, wanted) if len(wanted) <= _MANY else {}
        if len(known) == len(wanted):
            self._count_hits(len(known), 0)
            yield from (known[number] for number in wanted)
            return
        self._count_hits(0, len(wanted))
        keep = self._worth_keeping(job.chunk, job.run)
        frames = self._decoders.play(job.chunk, job.run, job.data, self._standing(job), stay=job.stay)
        with contextlib.closing(frames):
            for number, frame in frames:
                if keep:
                    self._keep(job.chunk, number, frame)
                yield frame

    def _standing(self, job: _Job) -> Playing | None:
        if job.playing is None and job.data is None:
            return self._decoders.standing(job.chunk, job.run)
        return job.playing

    # --- all at once -------------------------------------------------------------------------------------------------

    def each(self, numbers: Array, take: Take) -> None:
        """Call `take` for each of these frames, ascending and each once, from up to `threads` threads."""
        if not len(numbers):
            return
        with self._lock:
            self._counts.frames += len(numbers)
        sequential = self._goes_on(numbers)
        jobs = self._asked(self._jobs(numbers, last_stays=sequential))
        first = list(_first(jobs, 3))
        if self._threads > 1 and len(first) == 1 and not sequential:
            first = self._cut(first[0])
        if self._threads == 1 or len(first) < 2 or _lopsided(first):  # noqa: PLR2004
            for job in itertools.chain(first, jobs):
                self._do(job, take, alone=True)
        else:
            all_jobs = itertools.chain(first, jobs)
            _run_in_threads(all_jobs, lambda job: self._do(job, take, alone=False), self._threads)
        self._ended(numbers)
        if sequential and self._prefetch:
            self._fetch_next(int(numbers[-1]), len(numbers))

    def _cut(self, job: _Job) -> list[_Job]:
        """Return one long run as several that are decoded side by side, where it has keys within."""
        parts = cut_run(job.chunk.index, job.run, min(self._threads, len(job.run) // _PART))
        cut = []
        place = job.place
        for run in parts:
            cut.append(_Job(job.chunk, run, place))
            place += len(run.frames)
        if len(cut) > 1:
            for part in cut:
                self._ask(part, _BATCH_AHEAD)
        return cut if len(cut) > 1 else [job]

    def _asked(self, jobs: Iterator[_Job]) -> Generator[_Job, None, None]:
        """Pass jobs on, after the bytes of those that follow were asked for."""
        waiting: deque[_Job] = deque()
        room = _BATCH_AHEAD
        more = True
        while more or waiting:
            while more and (room > 0 or len(waiting) < 2):  # noqa: PLR2004
                job = next(jobs, None)
                if job is None:
                    more = False
                else:
                    waiting.append(job)
                    room = self._ask(job, room)
            if waiting:
                job = waiting.popleft()
                room += job.data.size if job.data is not None else 0
                yield job

    def _do(self, job: _Job, take: Take, *, alone: bool) -> None:
        """Decode one run, or take its frames from where another thread has just put them."""
        chunk, place = job.chunk, job.place
        places = {number: place + n for n, number in enumerate(job.run.frames.tolist())}
        group = chunk.key, job.run.key
        while places:
            claim, is_mine = self._claim(group, places)
            if not is_mine:
                claim.done.wait(_PATIENCE)
                self._unclaim(group, claim)  # where it takes too long, nobody waits for it any more
            try:
                known = self._kept(chunk, places)
                self._count_hits(len(known), 0)
                for number, frame in known.items():
                    take(places.pop(number), chunk.video, frame)
                if places and is_mine:
                    self._decode(job, places, take, claim, alone=alone)
                    return
            finally:
                if is_mine:
                    self._unclaim(group, claim)
                    claim.done.set()

    def _claim(self, group: _Group, frames: Iterable[int]) -> tuple[_Claim, bool]:
        """Return the claim to a group of pictures, and whether it is this thread's own."""
        with self._lock:
            claim = self._claims.get(group)
            if claim is not None:
                claim.wanted.update(frames)
                return claim, False
            claim = self._claims[group] = _Claim()
            return claim, True

    def _unclaim(self, group: _Group, claim: _Claim) -> None:
        with self._lock:
            if self._claims.get(group) is claim:
                del self._claims[group]

    def _decode(self, job: _Job, places: dict[int, int], take: Take, claim: _Claim, *, alone: bool) -> None:
        chunk, run = job.chunk, job.run
        if len(places) < len(run.frames):
            left = np.fromiter(places, np.int64)
            for part in plan_runs(chunk.index, left):
                self._decode_run(_Job(chunk, part, 0, None, None, job.stay), places, take, claim, alone=alone)
            return
        self._decode_run(job, places, take, claim, alone=alone)

    def _decode_run(self, job: _Job, places: dict[int, int], take: Take, claim: _Claim, *, alone: bool) -> None:
        chunk, run = job.chunk, job.run
        self._count_hits(0, len(run.frames))
        keep = self._worth_keeping(chunk, run)
        first = int(run.frames[0])
        before = self._begun.replace((chunk.key, run.key), first) if job.playing is None and not job.stay else None
        backwards = before is not None and first < before <= first + _BACK
        frame_of: dict[int, int] | None = None

        def other(packet: int, frame: VideoFrame) -> None:
            nonlocal frame_of
            if not backwards and not claim.wanted:
                return
            if frame_of is None:
                frame_of = {packet: number for number, packet in enumerate(chunk.index.shown.tolist())}
            number = frame_of.get(packet, -1)
            if not self._comes_out_right(chunk, run, number):
                return
            if number in claim.wanted or (backwards and first - _BACK <= number < first):
                self._keep(chunk, number, frame)

        frames = self._decoders.play(
            chunk,
            run,
            None if backwards else job.data,
            None if backwards else self._standing(job),
            alone=alone,
            stay=job.stay,
            complete=backwards,
            other=other,
        )
        for number, frame in frames:
            take(places[number], chunk.video, frame)
            if keep or number in claim.wanted:
                self._keep(chunk, number, frame)

    def _comes_out_right(self, chunk: Chunk, run: Run, number: int) -> bool:
        """Say whether a frame that came out of a run, which may have begun in an open group, is whole."""
        return number >= int(chunk.index.first[np.searchsorted(chunk.index.keys, run.key)])

    def _worth_keeping(self, chunk: Chunk, run: Run) -> bool:
        """Say whether the frames of a run are likely to be asked for again.

        To keep a frame costs as much as to decode it: the decoder has to write the next one to fresh memory.
        """
        again = self._seen.add((chunk.key, int(run.frames[0]), int(run.frames[-1])))
        pixels = len(run.frames) * chunk.coding.width * chunk.coding.height
        return again or len(run.frames) == 1 or pixels <= _FEW

    # --- what there is to do -----------------------------------------------------------------------------------------

    def _jobs(self, numbers: Array, *, last_stays: bool) -> Iterator[_Job]:
        """Yield the runs that give `numbers`, looking chunks up as they are needed."""
        place = 0
        wanted = numbers.tolist()
        while place < len(wanted):
            rows = self._rows(wanted, place)
            chunks = self._lookup.chunks([(video, row) for video, row, _ in rows])
            for chunk, (_, _, held) in zip(chunks, rows, strict=True):
                frames = np.asarray(held, np.int64) - (chunk.video.start + chunk.row.first)
                ends = place + len(held) == len(wanted)
                runs = plan_runs(chunk.index, frames)
                for number, run in enumerate(runs):
                    stay = last_stays and ends and number == len(runs) - 1
                    yield _Job(chunk, run, place, stay=stay)
                    place += len(run.frames)

    def _rows(self, wanted: list[int], place: int) -> list[tuple[VideoRow, ChunkRow, list[int]]]:
        """Return the next few chunks that hold wanted frames, from the one in `place` on, with these."""
        found: list[tuple[VideoRow, ChunkRow, list[int]]] = []
        count = 64
        part = wanted[place : place + count]
        rows = self._lookup.rows(part)
        while len(rows) <= _WINDOW and place + len(part) < len(wanted):
            count *= 4
            part = wanted[place : place + count]
            rows = self._lookup.rows(part)
        found = list(rows.values())
        if len(found) > 1 and place + len(part) < len(wanted):
            found.pop()  # there may be more of the last one
        return found[:_WINDOW] if len(found) > _WINDOW else found

    def _ask(self, job: _Job, room: int) -> int:
        """Begin to fetch what a job takes, up to `room` bytes; return how many are left."""
        if self._stores.is_local(job.chunk.row.place):
            return room - job.chunk.row.bytes
        if job.data is None:
            job.playing = self._decoders.standing(job.chunk, job.run)
            packets = left_to_send(job.playing, job.run, later=job.stay, complete=False, index=job.chunk.index)
            job.data = RunBytes(self._stores, job.chunk, packets)
        return job.data.ask(room)

    def _fetch_next(self, number: int, count: int) -> None:
        """Fetch ahead what comes after frame `number` of the archive, if it is in a store."""
        if number + 1 >= self._lookup.snapshot.frames:
            return
        (video, row, held), *_ = self._lookup.rows([number + 1]).values()
        if self._stores.is_local(row.place):
            return
        chunk = self._lookup.chunks([(video, row)])[0]
        index = chunk.index
        frame = held[0] - video.start - row.first
        first = int(index.shown[frame])
        packets = range(max(0, first - 2), min(len(index.offset), first + max(_AHEAD_PACKETS, 2 * count)))
        data = RunBytes(self._stores, chunk, list(packets), ahead=True)
        data.ask(AHEAD)

    def _goes_on(self, numbers: Array) -> bool:
        """Say whether what is read goes on where another read has ended."""
        return bool(len(numbers)) and self._ends.discard(int(numbers[0]))

    def _ended(self, numbers: Array) -> None:
        last = int(numbers[-1])
        step = last - int(numbers[-2]) if len(numbers) > 1 else 1
        self._ends.add(last + 1)
        if step > 1:
            self._ends.add(last + step)

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _kept(self, chunk: Chunk, numbers: Iterable[int]) -> dict[int, VideoFrame]:
        groups: dict[int, list[int]] = {}
        for number in numbers:
            groups.setdefault(chunk.index.key_for(number), []).append(number)
        found: dict[int, VideoFrame] = {}
        for group, members in groups.items():
            found |= self._cache.get_frames(("frames", chunk.key, group), members)
        return found

    def _keep(self, chunk: Chunk, number: int, frame: VideoFrame) -> None:
        self._cache.add_frame(("frames", chunk.key, chunk.index.key_for(number)), number, frame, frame_bytes(frame))

    def _count_hits(self, hits: int, misses: int) -> None:
        with self._lock:
            self._counts.frame_hits += hits
            self._counts.frame_misses += misses


def _lopsided(jobs: list[_Job]) -> bool:
    """Say whether of two jobs one is so long that its decoder rather has all threads for itself."""
    packets = [len(job.run) for job in jobs]
    return len(jobs) == 2 and max(packets) > _LONGER * min(packets)  # noqa: PLR2004


def _first(jobs: Iterator[_Job], count: int) -> Iterator[_Job]:
    for _ in range(count):
        job = next(jobs, None)
        if job is None:
            return
        yield job


def _run_in_threads(jobs: Iterator[_Job], run: Callable[[_Job], None], threads: int) -> None:
    """Run jobs in `threads` threads, the calling thread included. No thread is left when this returns.

    After the first error no further job is started, and the error of the earliest failed job is raised. The threads are
    daemons: unlike those of ``concurrent.futures``, they do not delay the exit of the interpreter.
    """
    numbered = enumerate(jobs)
    lock = threading.Lock()
    errors: list[tuple[int, BaseException]] = []
    stopped = False

    def work() -> None:
        nonlocal stopped
        while not stopped:
            number = -1
            try:
                with lock:
                    number, job = next(numbered, (-1, None))
                if job is None:
                    return
                run(job)
            except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
                errors.append((number, error))
                stopped = True

    helpers = [threading.Thread(target=work, name=f"archive-{n}", daemon=True) for n in range(1, threads)]
    for helper in helpers:
        helper.start()
    try:
        work()
    finally:
        stopped = True
        for helper in helpers:
            helper.join()
    if errors:
        raise min(errors, key=lambda failed: failed[0])[1]
