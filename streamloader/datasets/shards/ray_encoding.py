"""Encode samples in the tasks of a Ray cluster, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Final

from streamloader.datasets.shards.labelled_samples import EncodedSamples
from streamloader.streams.ray_cluster import connect_cluster, ray

__all__ = ["encode_with_ray"]

_SAMPLES_PER_TASK: Final = 64
_TASKS_PER_CPU: Final = 2  # that are submitted at a time


def encode_with_ray(
    samples: EncodedSamples, numbers: Sequence[int], ray_address: str | None
) -> Generator[list[tuple[str, bytes]], None, None]:
    """Yield encoded samples in the order of `numbers`.

    The nodes of the cluster need the same version of this package and of what the data set needs, and its files.

    Args:
        samples: Samples.
        numbers: Numbers of those to encode.
        ray_address: Address of the cluster. Defaults to that of the environment, or the cluster of this machine.
    """
    cluster = connect_cluster(ray_address)
    pending: deque[Any] = deque()
    try:
        shared = ray.put(samples)
        task = ray.remote(_encode).options(num_cpus=1, max_retries=3, name="streamloader-encode")
        starts = iter(range(0, len(numbers), _SAMPLES_PER_TASK))
        while True:
            while len(pending) < _TASKS_PER_CPU * cluster.cpus and (start := next(starts, None)) is not None:
                pending.append(task.remote(shared, list(numbers[start : start + _SAMPLES_PER_TASK])))
            if not pending:
                return
            yield from ray.get(pending[0])
            pending.popleft()
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if cluster.owns_connection:
            ray.shutdown()


def _encode(samples: EncodedSamples, numbers: Sequence[int]) -> list[list[tuple[str, bytes]]]:
    return [samples[number] for number in numbers]
