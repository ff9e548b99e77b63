"""Read batches of frames: plan the work, use cached frames, decode the others, and request bytes ahead."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from streamloader.archive.reader.chunk_bytes import ChunkReader
from streamloader.archive.reader.decoders import DecoderPool, OpenDecoder, packets_to_send
from streamloader.archive.reader.packets import READ_AHEAD_BYTES, PacketReader
from streamloader.archive.reader.plan import DecodeSpan, plan_spans, split_span
from streamloader.common.lru import RecentKeys
from streamloader.media.video.reader import frame_bytes

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import ChunkRow, VideoRow
    from streamloader.archive.reader.cache import FrameCache
    from streamloader.archive.reader.lookup import Chunk, ChunkLookup
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.media.video.reader import VideoFrame
    from streamloader.values import Array

__all__ = ["FrameBatchReader", "FrameConsumer"]

FrameConsumer: TypeAlias = "Callable[[int, VideoRow, VideoFrame], None]"
_GroupKey: TypeAlias = "tuple[tuple[str, int], int]"  # a chunk, and the key packet from which its frames are decoded

_CHUNKS_PER_LOOKUP: Final = 8  # chunks whose indexes are held at the same time
_FRAMES_PER_LOOKUP: Final = 64  # frames located first; four times as many in each further attempt
_MIN_JOBS_AHEAD: Final = 2  # the job being decoded, and the next one
_BATCH_READ_AHEAD_BYTES: Final = 64 << 20
_ALWAYS_CACHED_PIXELS: Final = 8 << 20  # a span of at most this many pixels is cached on its first read
_MAX_CACHE_LOOKUP_FRAMES: Final = 1024  # a longer span is not expected to be cached as a whole
_BACKWARD_FRAMES: Final = 64  # frames before the requested ones that are cached if access goes backwards
_MIN_PREFETCH_PACKETS: Final = 64
_MAX_LENGTH_RATIO: Final = 3
_MIN_PACKETS_PER_THREAD: Final = 12
_CLAIM_TIMEOUT_S: Final = 120.0  # how long to wait for another thread that decodes the same group


@dataclass(slots=True)
class _SpanJob:
    """One span to decode.

    Attributes:
        chunk: Chunk to decode.
        span: Span of the chunk.
        position: Position of the span's first frame in the request.
        packets: Reader of its packets, once their bytes are requested.
        opened: Decoder that continues to the span, if there is one.
        keep_open: Whether the decoder is kept at its position afterwards.
    """

    chunk: Chunk
    span: DecodeSpan
    position: int
    packets: PacketReader | None = None
    opened: OpenDecoder | None = None
    keep_open: bool = False


class _GroupClaim:
    """Records that a thread decodes a group of pictures, and which frames of it other threads wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.wanted: set[int] = set()


class FrameBatchReader:
    """Reads frames of one archive in one process. All methods are thread-safe.

    Args:
        lookup: Lookup of chunks in the catalog.
        chunks: Reader of the bytes of chunks.
        decoders: Pool of decoders.
        cache: Cache of decoded frames.
        counts: Counters to update.
        threads: Maximum number of threads of one call.
        prefetch: Whether to fetch the bytes after a sequential read.
    """

    def __init__(
        self,
        lookup: ChunkLookup,
        chunks: ChunkReader,
        decoders: DecoderPool,
        cache: FrameCache,
        counts: ReadCounts,
        threads: int,
        *,
        prefetch: bool,
    ) -> None:
        self._lookup = lookup
        self._chunks = chunks
        self._decoders = decoders
        self._cache = cache
        self._counts = counts
        self._threads = threads
        self._prefetch = prefetch
        self._next_frames: RecentKeys[int] = RecentKeys(16)  # the frames with which recent reads would continue
        self._recent_spans: RecentKeys[tuple[tuple[str, int], int, int]] = RecentKeys(256)
        self._recent_groups: RecentKeys[_GroupKey] = RecentKeys(64)  # with the first requested frame
        self._claims: dict[_GroupKey, _GroupClaim] = {}
        self._lock = threading.Lock()

    # --- frame by frame ----------------------------------------------------------------------------------------------

    def iter_frames(self, numbers: Array) -> Iterator[VideoFrame]:
        """Yield frames of the archive in the order of `numbers`, lazily."""
        with self._lock:
            self._counts.frames += len(numbers)
        bounds = np.flatnonzero(np.diff(numbers, prepend=np.iinfo(np.int64).max) <= 0)
        for start, end in zip(bounds.tolist(), [*bounds[1:].tolist(), len(numbers)], strict=True):
            yield from self._iter_ascending(numbers[start:end])

    def _iter_ascending(self, numbers: Array) -> Iterator[VideoFrame]:
        waiting: deque[_SpanJob] = deque()
        jobs = self._plan_jobs(numbers, keep_last_open=True)
        while True:
            budget = READ_AHEAD_BYTES
            for job in waiting:
                budget = self._request_bytes(job, budget)
            while len(waiting) < _MIN_JOBS_AHEAD or budget > 0:
                next_job = next(jobs, None)
                if next_job is None:
                    break
                waiting.append(next_job)
                budget = self._request_bytes(next_job, budget)
            if not waiting:
                break
            yield from self._iter_job(waiting.popleft())
        self._record_end(numbers)

    def _iter_job(self, job: _SpanJob) -> Iterator[VideoFrame]:
        wanted = job.span.frames.tolist()
        cached = self._cached_frames(job.chunk, wanted) if len(wanted) <= _MAX_CACHE_LOOKUP_FRAMES else {}
        if len(cached) == len(wanted):
            self._count_hits(len(cached), 0)
            yield from (cached[number] for number in wanted)
            return
        self._count_hits(0, len(wanted))
        cache_frames = self._should_cache(job.chunk, job.span)
        opened = self._take_resumable(job)
        frames = self._decoders.decode(job.chunk, job.span, job.packets, opened, keep_open=job.keep_open)
        with contextlib.closing(frames):
            for number, frame in frames:
                if cache_frames:
                    self._cache_frame(job.chunk, number, frame)
                yield frame

    def _take_resumable(self, job: _SpanJob) -> OpenDecoder | None:
        if job.opened is None and job.packets is None:
            return self._decoders.take_resumable(job.chunk, job.span)
        return job.opened

    # --- in batches --------------------------------------------------------------------------------------------------

    def for_each(self, numbers: Array, consume: FrameConsumer) -> None:
        """Call `consume` for each frame, from up to `threads` threads and in any order.

        Args:
            numbers: Numbers of frames of the archive, int64 (N,), ascending and without duplicates.
            consume: Function called with the position in `numbers`, the video and the frame.
        """
        if not len(numbers):
            return
        with self._lock:
            self._counts.frames += len(numbers)
        sequential = self._is_sequential(numbers)
        jobs = self._request_ahead(self._plan_jobs(numbers, keep_last_open=sequential))
        first = list(itertools.islice(jobs, 3))
        if self._threads > 1 and len(first) == 1 and not sequential:
            first = self._split_job(first[0])
        if self._threads == 1 or len(first) <= 1 or _is_unbalanced(first):
            for job in itertools.chain(first, jobs):
                self._run_job(job, consume, use_threads=True)
        else:
            all_jobs = itertools.chain(first, jobs)
            _run_in_threads(all_jobs, lambda job: self._run_job(job, consume, use_threads=False), self._threads)
        self._record_end(numbers)
        if sequential and self._prefetch:
            self._prefetch_after(int(numbers[-1]), len(numbers))

    def _split_job(self, job: _SpanJob) -> list[_SpanJob]:
        """Split a long span that has several keys into jobs that can run in parallel."""
        spans = split_span(job.chunk.index, job.span, min(self._threads, len(job.span) // _MIN_PACKETS_PER_THREAD))
        parts = []
        position = job.position
        for span in spans:
            parts.append(_SpanJob(job.chunk, span, position))
            position += len(span.frames)
        if len(parts) > 1:
            for part in parts:
                self._request_bytes(part, _BATCH_READ_AHEAD_BYTES)
        return parts if len(parts) > 1 else [job]

    def _request_ahead(self, jobs: Iterator[_SpanJob]) -> Generator[_SpanJob, None, None]:
        """Yield the jobs, and request the bytes of the following jobs before each of them."""
        waiting: deque[_SpanJob] = deque()
        budget = _BATCH_READ_AHEAD_BYTES
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and (budget > 0 or len(waiting) < _MIN_JOBS_AHEAD):
                job = next(jobs, None)
                if job is None:
                    exhausted = True
                else:
                    waiting.append(job)
                    budget = self._request_bytes(job, budget)
            if waiting:
                job = waiting.popleft()
                budget += job.packets.size if job.packets is not None else 0
                yield job

    def _run_job(self, job: _SpanJob, consume: FrameConsumer, *, use_threads: bool) -> None:
        """Decode one span, or use the frames that another thread has just decoded."""
        chunk = job.chunk
        positions = {number: job.position + n for n, number in enumerate(job.span.frames.tolist())}
        group = chunk.key, job.span.key_packet
        while positions:
            claim, is_mine = self._claim_group(group, positions)
            if not is_mine:
                claim.done.wait(_CLAIM_TIMEOUT_S)
                self._release_group(group, claim)  # after a timeout, this thread decodes the group itself
            try:
                cached = self._cached_frames(chunk, positions)
                self._count_hits(len(cached), 0)
                for number, frame in cached.items():
                    consume(positions.pop(number), chunk.video, frame)
                if positions and is_mine:
                    self._decode_job(job, positions, consume, claim, use_threads=use_threads)
                    return
            finally:
                if is_mine:
                    self._release_group(group, claim)
                    claim.done.set()

    def _claim_group(self, group: _GroupKey, frames: Iterable[int]) -> tuple[_GroupClaim, bool]:
        """Return the claim on a group of pictures, and whether it belongs to the calling thread."""
        with self._lock:
            claim = self._claims.get(group)
            if claim is not None:
                claim.wanted.update(frames)
                return claim, False
            claim = self._claims[group] = _GroupClaim()
            return claim, True

    def _release_group(self, group: _GroupKey, claim: _GroupClaim) -> None:
        with self._lock:
            if self._claims.get(group) is claim:
                del self._claims[group]

    def _decode_job(
        self, job: _SpanJob, positions: dict[int, int], consume: FrameConsumer, claim: _GroupClaim, *, use_threads: bool
    ) -> None:
        """Decode the frames of a job that are in `positions`: all, or those that were not cached."""
        chunk = job.chunk
        if len(positions) == len(job.span.frames):
            self._decode_span(job, positions, consume, claim, use_threads=use_threads)
            return
        remaining = np.fromiter(positions, np.int64)
        for span in plan_spans(chunk.index, remaining):
            part = _SpanJob(chunk, span, 0, None, None, job.keep_open)
            self._decode_span(part, positions, consume, claim, use_threads=use_threads)

    def _decode_span(
        self, job: _SpanJob, positions: dict[int, int], consume: FrameConsumer, claim: _GroupClaim, *, use_threads: bool
    ) -> None:
        chunk, span = job.chunk, job.span
        self._count_hits(0, len(span.frames))
        cache_frames = self._should_cache(chunk, span)
        first = int(span.frames[0])
        previous: int | None = None
        if job.opened is None and not job.keep_open:
            previous = self._recent_groups.replace((chunk.key, span.key_packet), first)
        backwards = previous is not None and first < previous <= first + _BACKWARD_FRAMES
        frame_of: dict[int, int] | None = None  # by packet

        def cache_other_frame(packet: int, frame: VideoFrame) -> None:
            nonlocal frame_of
            if not backwards and not claim.wanted:
                return
            if frame_of is None:
                frame_of = {packet: number for number, packet in enumerate(chunk.index.frame_packet.tolist())}
            number = frame_of.get(packet, -1)
            if not _is_complete(chunk, span, number):
                return
            if number in claim.wanted or (backwards and first - _BACKWARD_FRAMES <= number < first):
                self._cache_frame(chunk, number, frame)

        frames = self._decoders.decode(
            chunk,
            span,
            None if backwards else job.packets,
            None if backwards else self._take_resumable(job),
            use_threads=use_threads,
            keep_open=job.keep_open,
            all_packets=backwards,
            on_other_frame=cache_other_frame,
        )
        for number, frame in frames:
            consume(positions[number], chunk.video, frame)
            if cache_frames or number in claim.wanted:
                self._cache_frame(chunk, number, frame)

    def _should_cache(self, chunk: Chunk, span: DecodeSpan) -> bool:
        """Return whether the frames of a span are likely to be requested again.

        Caching a frame costs as much as decoding it, because the decoder has to write the next one to fresh memory.
        """
        repeated = self._recent_spans.add((chunk.key, int(span.frames[0]), int(span.frames[-1])))
        pixels = len(span.frames) * chunk.coding.width * chunk.coding.height
        return repeated or len(span.frames) == 1 or pixels <= _ALWAYS_CACHED_PIXELS

    # --- planning and reading ahead ----------------------------------------------------------------------------------

    def _plan_jobs(self, numbers: Array, *, keep_last_open: bool) -> Iterator[_SpanJob]:
        """Yield the jobs that decode the frames `numbers`. Chunks are looked up when they are needed."""
        position = 0
        wanted = numbers.tolist()
        while position < len(wanted):
            located = self._locate_some(wanted, position)
            chunks = self._lookup.load_chunks([(video, row) for video, row, _ in located])
            for chunk, (_, _, contained) in zip(chunks, located, strict=True):
                frames = np.asarray(contained, np.int64) - (chunk.video.start + chunk.row.first_frame)
                is_last_chunk = position + len(contained) == len(wanted)
                spans = plan_spans(chunk.index, frames)
                for number, span in enumerate(spans):
                    keep_open = keep_last_open and is_last_chunk and number == len(spans) - 1
                    yield _SpanJob(chunk, span, position, keep_open=keep_open)
                    position += len(span.frames)

    def _locate_some(self, wanted: list[int], position: int) -> list[tuple[VideoRow, ChunkRow, list[int]]]:
        """Return the next few chunks that contain frames of `wanted` from `position` on, each with these frames."""
        count = _FRAMES_PER_LOOKUP
        part = wanted[position : position + count]
        rows = self._lookup.locate(part)
        while len(rows) <= _CHUNKS_PER_LOOKUP and position + len(part) < len(wanted):
            count *= 4
            part = wanted[position : position + count]
            rows = self._lookup.locate(part)
        located = list(rows.values())
        if len(located) > 1 and position + len(part) < len(wanted):
            located.pop()  # more frames of the last chunk may follow in `wanted`
        return located[:_CHUNKS_PER_LOOKUP] if len(located) > _CHUNKS_PER_LOOKUP else located

    def _request_bytes(self, job: _SpanJob, budget: int) -> int:
        """Request up to `budget` bytes of a job. Return the unused part of the budget."""
        if self._chunks.is_local(job.chunk.row.place):
            return budget - job.chunk.row.bytes
        if job.packets is None:
            index = job.chunk.index
            job.opened = self._decoders.take_resumable(job.chunk, job.span)
            packets = packets_to_send(job.opened, job.span, keep_open=job.keep_open, all_packets=False, index=index)
            job.packets = PacketReader(self._chunks, job.chunk, packets)
        return job.packets.request(budget)

    def _prefetch_after(self, number: int, count: int) -> None:
        """Request the bytes of about twice `count` frames after frame `number`, if they are in a store."""
        if number + 1 >= self._lookup.snapshot.frames:
            return
        (video, row, contained), *_ = self._lookup.locate([number + 1]).values()
        if self._chunks.is_local(row.place):
            return
        chunk = self._lookup.load_chunks([(video, row)])[0]
        index = chunk.index
        frame = contained[0] - video.start - row.first_frame
        first = int(index.frame_packet[frame])
        packets = range(max(0, first - 2), min(len(index.offset), first + max(_MIN_PREFETCH_PACKETS, 2 * count)))
        reader = PacketReader(self._chunks, chunk, list(packets), prefetch=True)
        reader.request(READ_AHEAD_BYTES)

    def _is_sequential(self, numbers: Array) -> bool:
        """Return whether a read continues where a recent read ended."""
        return bool(len(numbers)) and self._next_frames.discard(int(numbers[0]))

    def _record_end(self, numbers: Array) -> None:
        last = int(numbers[-1])
        step = last - int(numbers[-2]) if len(numbers) > 1 else 1
        self._next_frames.add(last + 1)
        if step > 1:
            self._next_frames.add(last + step)

    # --- caching -----------------------------------------------------------------------------------------------------

    def _cached_frames(self, chunk: Chunk, numbers: Iterable[int]) -> dict[int, VideoFrame]:
        groups: dict[int, list[int]] = {}
        for number in numbers:
            groups.setdefault(chunk.index.key_for(number), []).append(number)
        frames: dict[int, VideoFrame] = {}
        for group, members in groups.items():
            frames |= self._cache.get_frames(("frames", chunk.key, group), members)
        return frames

    def _cache_frame(self, chunk: Chunk, number: int, frame: VideoFrame) -> None:
        self._cache.add_frame(("frames", chunk.key, chunk.index.key_for(number)), number, frame, frame_bytes(frame))

    def _count_hits(self, hits: int, misses: int) -> None:
        with self._lock:
            self._counts.frame_hits += hits
            self._counts.frame_misses += misses


def _is_complete(chunk: Chunk, span: DecodeSpan, number: int) -> bool:
    """Return whether a frame is decoded correctly from the key of a span, which may start an open group."""
    return number >= int(chunk.index.key_frame[np.searchsorted(chunk.index.key_packet, span.key_packet)])


def _is_unbalanced(jobs: list[_SpanJob]) -> bool:
    """Return whether one of two jobs is so long that its decoder should rather use all threads itself."""
    packets = [len(job.span) for job in jobs]
    return len(jobs) == 2 and max(packets) > _MAX_LENGTH_RATIO * min(packets)  # noqa: PLR2004


def _run_in_threads(jobs: Iterator[_SpanJob], run: Callable[[_SpanJob], None], threads: int) -> None:
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
