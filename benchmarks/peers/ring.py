"""A bare shared ring: only the transport, as an upper limit.

It consists of a memfd with `ahead` whole batches, and one socketpair per worker that carries one byte for each filled
or freed slot. It has no leases, errors, deadlines or cursors: a slot is overwritten once the next batch is requested.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.job import Job
from benchmarks.peers.lanes import open_lane

Views = list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def map_slots(job: Job, fd: int) -> Views:
    """Map the ring, with all its pages, and return (data, reset) of every slot."""
    steps = job.batch_size * job.window
    size = -(-(job.batch_bytes + steps) // mmap.PAGESIZE) * mmap.PAGESIZE
    if os.fstat(fd).st_size == 0:
        os.posix_fallocate(fd, 0, size * job.ahead)
    ring = np.frombuffer(mmap.mmap(fd, 0, mmap.MAP_SHARED | mmap.MAP_POPULATE), np.uint8).reshape(job.ahead, size)
    data = ring[:, : job.batch_bytes].reshape(job.ahead, job.batch_size, job.window, *job.shape)
    reset = ring[:, job.batch_bytes : job.batch_bytes + steps].view(np.bool_)
    return list(zip(data, reset.reshape(job.ahead, job.batch_size, job.window), strict=True))


class Ring:
    """The consumer's side of the ring."""

    def __init__(self, job: Job) -> None:
        import torch

        self._job = job
        fd = os.memfd_create("ring")
        self._views = [tuple(map(torch.from_numpy, slot)) for slot in map_slots(job, fd)]
        self._workers = []
        self._sockets = []
        environment = dict(os.environ)
        if threshold := job.options.get("mmap_threshold"):
            environment |= {"MALLOC_MMAP_THRESHOLD_": str(threshold), "MALLOC_TRIM_THRESHOLD_": str(threshold)}
        for worker in range(job.workers):
            parent_end, child_end = socket.socketpair()
            arguments = ["-m", "benchmarks.peers.ring", job.to_json(), str(worker), str(fd), str(child_end.fileno())]
            self._workers.append(
                subprocess.Popen([sys.executable, *arguments], pass_fds=[fd, child_end.fileno()], env=environment)
            )
            child_end.close()
            self._sockets.append(parent_end)
        os.close(fd)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of the only epoch."""
        del number
        hand_over = self._job.options.get("hand_over", 1)
        ready, unreturned, slot = [0] * len(self._sockets), 0, 0
        while True:
            for worker, sock in enumerate(self._sockets):
                while not ready[worker]:
                    tokens = sock.recv(4096)
                    if not tokens:
                        return
                    ready[worker] = len(tokens)
                ready[worker] -= 1
            yield self._views[slot]
            slot = (slot + 1) % self._job.ahead
            unreturned += 1
            if unreturned == hand_over:
                for sock in self._sockets:
                    sock.sendall(b"f" * unreturned)
                unreturned = 0

    def close(self) -> None:
        """Stop the workers."""
        for sock in self._sockets:
            sock.close()
        for worker in self._workers:
            worker.terminate()
            worker.wait()


def work(job: Job, worker: int, fd: int, sock: socket.socket) -> None:
    """Run the worker: fill its rows of one slot after the other until the lanes end."""
    slots, rows = map_slots(job, fd), job.lanes(worker)
    lanes = [open_lane(job, lane) for lane in rows]
    hand_over = job.options.get("hand_over", 1)
    free, filled, number = job.ahead, 0, 0
    while True:
        if not free:
            try:
                free = len(sock.recv(4096))
            except ConnectionResetError:  # the consumer exited with unread tokens
                free = 0
            if not free:
                return
        data, reset = slots[number % job.ahead]
        if not all(lane.fill(data[row], reset[row]) for row, lane in zip(rows, lanes, strict=True)):
            sock.sendall(b"r" * filled)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):  # exiting with unread tokens would reset the connection
                pass
            return
        free, filled, number = free - 1, filled + 1, number + 1
        if filled == hand_over or not free:
            sock.sendall(b"r" * filled)
            filled = 0


def open_peer(job: Job) -> Ring:
    """Open this contender."""
    return Ring(job)


if __name__ == "__main__":
    job_, worker_, fd_, socket_ = sys.argv[1:]
    with contextlib.suppress(BrokenPipeError):  # the consumer has exited
        work(Job.from_json(job_), int(worker_), int(fd_), socket.socket(fileno=int(socket_)))
