"""Envs whose rows identify themselves, and their expected batches.

Imports no torch: the workers of the tests import this module.
"""

from __future__ import annotations

import contextlib
import threading

import numpy as np

from streamloader.streams.base import stream_rng

DIMS = {"walk": (3,), "count": ((), "int64"), "picture": ((2, 4), "uint8")}


class Walks:
    """A random walk in each lane, with one generator per lane, so that the walk does not depend on the env."""

    def __init__(self, lanes):
        self.lanes, self.calls = lanes, 0
        self.generators = [stream_rng(7, 0, lane) for lane in lanes]
        self.at = np.zeros((len(lanes), 3), np.float32)

    def __call__(self, arrays):
        for row, generator in enumerate(self.generators):
            self.at[row] += generator.normal(size=3).astype(np.float32)
            arrays["picture"][row] = generator.integers(256, size=(2, 4))
            arrays["count"][row] = 1000 * self.lanes[row] + self.calls
        arrays["walk"][:] = self.at
        self.calls += 1
        return {"lanes": list(self.lanes), "calls": np.int64(self.calls)} if self.calls % 4 else None


def expected_batches(lanes, count):
    """Return the arrays of all `lanes` for each batch, created by one env in one thread."""
    env, batches = Walks(lanes), []
    for _ in range(count):
        arrays = {
            "walk": np.empty((len(lanes), 3), np.float32),
            "count": np.empty(len(lanes), np.int64),
            "picture": np.empty((len(lanes), 2, 4), np.uint8),
        }
        env(arrays)
        batches.append(arrays)
    return batches


class Counter:
    """Row i of call k is ``1000 * lane + k``; `at_call(lanes, k)` is called before it."""

    def __init__(self, lanes, at_call=None, path=None):
        self.lanes, self.at_call, self.path = lanes, at_call, path
        self.calls = 0
        self.threads = [threading.get_ident()]

    def __call__(self, arrays):
        self.threads.append(threading.get_ident())
        infos = None if self.at_call is None else self.at_call(self.lanes, self.calls)
        arrays["data"][:] = 1000 * np.array(self.lanes) + self.calls
        self.calls += 1
        return infos

    def close(self):
        self.threads.append(threading.get_ident())
        if self.path is not None:
            with open(self.path / f"closed-{self.lanes.start}", "a") as file:
                file.write(f"{self.calls} {len(set(self.threads))}\n")


def numbers(batch):
    """Return the rows of a batch of counters."""
    return batch.numpy()["data"].tolist()


@contextlib.contextmanager
def released(event):
    """Set `event` at the end in any case, so that no env waits forever."""
    try:
        yield event
    finally:
        event.set()
