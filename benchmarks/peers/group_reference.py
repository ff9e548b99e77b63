"""The reference's own design: forked workers that fill arrays in shared memory, a queue each, and a collating consumer.

Each worker has `ahead` (the reference's ``max_q_size``) arrays for its rows, and puts the index of a filled one into a
queue together with the infos, which are pickled. The consumer takes one index from each queue, copies the arrays of all
workers into the array of the batch, and calls the collate function.

A lock, which is acquired before an array is filled, is released when the consumer has copied it. The reference has one
lock for all arrays of a worker (``options["lock"] = "one"``), so a worker fills one batch ahead, for any size of the
queue. With ``"each"``, it can fill as many as there are arrays.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator
from ctypes import c_uint8
from typing import Any

import numpy as np

from benchmarks.job import Job
from benchmarks.peers.group_streams import Group, collate, make_group
from streamloader.values import Array

_CONTEXT = multiprocessing.get_context("fork")


class WorkerSlots:
    """Arrays of one worker in shared memory, its queue, and the lock of the arrays."""

    def __init__(self, job: Job, rows: int) -> None:
        shape = (job.ahead, rows, job.window, *job.shape)
        self.arrays: Array = np.frombuffer(_CONTEXT.RawArray(c_uint8, math.prod(shape)), np.uint8).reshape(shape)
        self.queue: Any = _CONTEXT.Queue(maxsize=job.ahead)
        self.lock = _CONTEXT.Semaphore(1 if job.options["lock"] == "one" else job.ahead)

    def work(self, make_env: Callable[[], Group]) -> None:
        """Fill one array after the other."""
        group = make_env()
        for index in itertools.cycle(range(len(self.arrays))):
            self.lock.acquire()
            self.queue.put((index, group({"data": self.arrays[index]})))


class Loader:
    """Takes the part of each worker, and collates them."""

    def __init__(self, job: Job) -> None:
        rows = job.batch_size // job.workers
        make_env = make_group(job)
        self._batch = np.zeros((job.batch_size, job.window, *job.shape), np.uint8)
        self._slots = [WorkerSlots(job, rows) for _ in range(job.workers)]
        self._parts = np.split(self._batch, job.workers)
        self._processes = []
        for number, slots in enumerate(self._slots):

            def make_group_of_worker(number: int = number) -> Group:
                return make_env(worker_id=number, num_workers=job.workers, num_streams=rows, epoch=0)

            process = _CONTEXT.Process(target=slots.work, args=(make_group_of_worker,), daemon=True)
            process.start()
            self._processes.append(process)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch."""
        del number
        while True:
            data: defaultdict[str, Any] = defaultdict(list)
            for slots, part in zip(self._slots, self._parts, strict=True):
                index, infos = slots.queue.get()
                part[:] = slots.arrays[index]
                for name, values in infos.items():
                    data[name] += values
                slots.lock.release()
            data["data"] = self._batch
            yield collate(data)

    def close(self) -> None:
        """Stop the workers."""
        for process in self._processes:
            process.terminate()
            process.join()


def open_peer(job: Job) -> Loader:
    """Open this contender."""
    return Loader(job)
