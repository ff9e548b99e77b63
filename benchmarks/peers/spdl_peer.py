"""SPDL: threads that decode and convert without the GIL, in this process or in a subprocess with an arena.

Lanes are generators of spdl.io's streaming decoder, with one decode thread each. A pipeline reads them in turn,
`workers` at a time, and converts the windows of all lanes to one buffer: one copy of each frame.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import spdl.io
import torch
from spdl.pipeline import (
    Pipeline,
    PipelineBuilder,
    SharedMemoryRingBuffer,
    SharedMemorySegmentPool,
    run_pipeline_in_subprocess,
)

from benchmarks.job import Job
from benchmarks.peers.lanes import Lane, open_lane

Batch = tuple[Any, Any]


class Frames:
    """Decoded frames of one lane, in RGB and with the job's size, clip after clip."""

    def __init__(self, job: Job, lane: int) -> None:
        self._job = job
        self._frames = self._decode(lane)

    def window(self) -> list[tuple[Any, bool]] | None:
        """Return the next T (frame, whether it is the first of its clip), or None at the end."""
        frames = list(islice(self._frames, self._job.window))
        return frames if len(frames) == self._job.window else None

    def _decode(self, lane: int) -> Iterator[tuple[Any, bool]]:
        height, width, _ = self._job.shape
        for path in self._job.clips(lane):
            first = True
            with spdl.io.Demuxer(path) as demuxer:
                codec = demuxer.video_codec
                scale = (codec.height, codec.width) != (height, width)
                description = spdl.io.get_video_filter_desc(
                    scale_width=width if scale else None,
                    scale_height=height if scale else None,
                    scale_algo="bilinear",
                    scale_mode=None,
                    pix_fmt="rgb24",
                )
                decoder = spdl.io.Decoder(codec, filter_desc=description)
                for frames in self._stream(demuxer, decoder):
                    for number in range(len(frames)):
                        yield frames[number : number + 1], first
                        first = False

    def _stream(self, demuxer: Any, decoder: Any) -> Iterator[Any]:
        index = demuxer.video_stream_index
        for packets in demuxer.streaming_demux(index, num_packets=self._job.window):
            yield from decoder.streaming_decode_packets(packets)
        yield from decoder.flush()


class VideoSource:
    """The lanes, which the stages of the pipeline share. Iterating yields their numbers in turn until one ends."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lanes: list[Frames] = []
        self.ended = False

    def __iter__(self) -> Iterator[int]:
        """Open the lanes, and yield their numbers in turn."""
        self.lanes, self.ended = [Frames(self.job, lane) for lane in range(self.job.batch_size)], False
        while not self.ended:
            yield from range(self.job.batch_size)

    def window(self, lane: int) -> list[tuple[Any, bool]] | None:
        """Decode one window of one lane, in a thread of the pool. The pipeline drops None."""
        window = self.lanes[lane].window()
        self.ended |= window is None
        return window

    def convert(self, windows: list[Any]) -> Batch:
        """Copy the windows of all lanes into one new buffer, in a thread of the pool."""
        job = self.job
        buffer = spdl.io.convert_frames([frame for window in windows for frame, _ in window])
        data = spdl.io.to_numpy(buffer).reshape(job.batch_size, job.window, *job.shape)
        return data, np.array([[first for _, first in window] for window in windows])


class FillSource:
    """The synthetic streams. Iterating yields (data, reset, rows): `tasks` parts of each new batch, in turn.

    With as many threads as parts, no lane is filled by two threads at once, so its steps stay in order.
    """

    def __init__(self, job: Job, tasks: int) -> None:
        self.job, self.tasks = job, tasks
        self.lanes: list[Lane] = []

    def __iter__(self) -> Iterator[tuple[Any, Any, range]]:
        """Open the lanes, and yield the parts of all batches."""
        job = self.job
        self.lanes = [open_lane(job, lane) for lane in range(job.batch_size)]
        edges = [job.batch_size * number // self.tasks for number in range(self.tasks + 1)]
        parts = [range(start, end) for start, end in pairwise(edges)]
        for _ in range(job.batches):
            data = np.empty((job.batch_size, job.window, *job.shape), np.uint8)
            reset = np.empty((job.batch_size, job.window), np.bool_)
            yield from ((data, reset, rows) for rows in parts)

    def fill(self, part: tuple[Any, Any, range]) -> Batch:
        """Fill one part, in a thread of the pool."""
        data, reset, rows = part
        for row in rows:
            self.lanes[row].fill(data[row], reset[row])
        return data, reset


def build_pipeline(job: Job) -> PipelineBuilder[Any, Any]:
    """Return the builder of the pipeline of threads."""
    if job.kind == "fill":
        tasks = job.options["tasks"]
        source = FillSource(job, tasks)
        stages = PipelineBuilder().add_source(source)
        # "unordered" lets `workers` threads fill batches concurrently, so the steps of a lane lose their order.
        threads = job.workers if job.options.get("unordered") else tasks
        stages = stages.pipe(source.fill, concurrency=threads, output_order="input")
        if tasks > 1:
            stages = stages.aggregate(tasks).pipe(operator.itemgetter(0))
        return stages.add_sink(job.ahead)
    video = VideoSource(job)
    stages = PipelineBuilder().add_source(video)
    stages = stages.pipe(video.window, concurrency=job.workers, output_order="input")
    return stages.aggregate(job.batch_size, drop_last=True).pipe(video.convert).add_sink(job.ahead)


def as_tensors(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield torch tensors over the same memory."""
    for data, reset in batches:
        yield torch.from_numpy(data), torch.from_numpy(reset)


class Threads:
    """The pipeline in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def epoch(self, number: int) -> Iterator[Batch]:
        """Build and run the pipeline of one epoch."""
        del number
        pipeline: Pipeline[Batch] = build_pipeline(self._job).build(num_threads=self._job.workers + 1)
        with pipeline.auto_stop():
            yield from as_tensors(pipeline)

    def close(self) -> None:
        """Do nothing: nothing remains between epochs."""


def open_arena(job: Job, size: int) -> Any:
    """Return SPDL's shared memory for `ahead` batches of `size` bytes."""
    size += 1 << 16
    if job.options["arena"] == "pool":
        return SharedMemorySegmentPool(segment_size=size, count=job.ahead + 2)
    return SharedMemoryRingBuffer(capacity=size * (job.ahead + 2))


class OneSubprocess:
    """The same pipeline of threads in one subprocess, which sends whole batches through the arena."""

    def __init__(self, job: Job) -> None:
        self._batches = run_pipeline_in_subprocess(
            build_pipeline(job).get_config(),
            num_threads=job.workers + 1,
            buffer_size=job.ahead,
            arena=open_arena(job, job.batch_bytes),
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield (data, reset) of each batch."""
        del number
        yield from as_tensors(self._batches)

    def close(self) -> None:
        """Delete the iterable, which stops the subprocess."""
        del self._batches


def open_peer(job: Job) -> Any:
    """Open this contender."""
    return Threads(job) if job.options.get("arena") is None else OneSubprocess(job)
