"""Read single streams without a loader, and compare their steps, in tests of a kind of stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import numpy as np

from streamloader.streams.base import Stream, StreamDataset, stream_rng

if TYPE_CHECKING:
    from streamloader.values import Array, StreamInfo

__all__ = ["assert_same_steps", "describe_streams", "read_block", "read_stream", "read_stream_async", "seek_targets"]

DEADLINE_S = 120.0  # a stream that hangs fails its test, with the traceback of its wait
MAX_EXHAUSTIVE_STEPS = 64  # streams of at most this length are tested at every position


def describe_streams(dataset: StreamDataset) -> Sequence[StreamInfo]:
    """Return ``await dataset.index()``, from synchronous code."""

    async def describe() -> Sequence[StreamInfo]:
        with anyio.fail_after(DEADLINE_S):
            return await dataset.index()

    return anyio.run(describe)


def read_stream(
    dataset: StreamDataset,
    info: StreamInfo,
    block: int = 7,
    *,
    seek: int | None = None,
    steps: int | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, Array]:
    """Read one stream to its end and return its steps: name -> array (steps, *shape).

    Args:
        dataset: Dataset whose :meth:`~streamloader.StreamDataset.index` was called.
        info: Stream to read, as ``index`` returned it.
        block: Number of steps of each read.
        seek: Step to start at. By default, the stream is read from its beginning without seeking.
        steps: Number of steps to read. By default, all.
        rng: Generator for the stream's augmentation. By default, the same one in every call.

    Raises:
        TimeoutError: If reading takes longer than two minutes.
    """

    async def run() -> dict[str, Array]:
        with anyio.fail_after(DEADLINE_S):
            return await read_stream_async(dataset, info, block, seek=seek, steps=steps, rng=rng)

    return anyio.run(run)


async def read_stream_async(
    dataset: StreamDataset,
    info: StreamInfo,
    block: int = 7,
    *,
    seek: int | None = None,
    steps: int | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, Array]:
    """Read one stream like :func:`read_stream`, in the running event loop."""
    stream = await dataset.open(info, stream_rng(0, 0, 0) if rng is None else rng)
    try:
        if seek is not None:
            await stream.seek(seek)
        return await read_steps(stream, dataset, block, steps)
    finally:
        await stream.aclose()


async def read_steps(stream: Stream, dataset: StreamDataset, block: int, steps: int | None = None) -> dict[str, Array]:
    """Read an open stream to its end, or `steps` steps of it."""
    blocks: list[dict[str, Array]] = []
    total = 0
    while steps is None or total < steps:
        arrays = await read_block(stream, dataset, block if steps is None else min(block, steps - total))
        count = _rows(arrays)
        if count == 0:
            break
        blocks.append(arrays)
        total += count
    return {
        name: np.concatenate([np.empty((0, *field.shape), field.dtype), *(arrays[name] for arrays in blocks)])
        for name, field in dataset.fields.items()
    }


async def read_block(stream: Stream, dataset: StreamDataset, block: int, poison: int = 1) -> dict[str, Array]:
    """Call ``read_into`` once with room for `block` steps, and return the steps that it wrote.

    The buffers are filled with the byte `poison` first. They lie between guard rows, which must not change.

    Raises:
        AssertionError: If the stream returns more than `block` steps, or writes outside of the buffers.
    """
    guarded = {
        name: np.full((block + 2) * int(np.prod(field.shape)) * field.dtype.itemsize, poison, np.uint8)
        .view(field.dtype)
        .reshape(block + 2, *field.shape)
        for name, field in dataset.fields.items()
    }
    await anyio.lowlevel.checkpoint()  # lets the deadline stop a stream that neither waits nor ends
    count = await stream.read_into({name: array[1:-1] for name, array in guarded.items()})
    if not 0 <= count <= block:
        raise AssertionError(f"read_into returned {count} for a buffer of {block} steps")
    for name, array in guarded.items():
        guards = array[0].tobytes() + array[-1].tobytes()
        if guards.strip(bytes([poison])):
            raise AssertionError(f"field {name!r} was written outside of its {block} steps")
    return {name: array[1 : 1 + count] for name, array in guarded.items()}


def assert_same_steps(got: Mapping[str, Array], expected: Mapping[str, Any], what: str = "steps") -> None:
    """Raise AssertionError unless fields, shapes, dtypes and bytes are equal. It names the first different step."""
    if set(got) != set(expected):
        raise AssertionError(f"{what}: fields {sorted(got)} instead of {sorted(expected)}")
    for name, array in got.items():
        wanted = np.asarray(expected[name])
        if array.dtype != wanted.dtype or array.shape[1:] != wanted.shape[1:]:
            raise AssertionError(
                f"{what}: field {name!r} is {array.dtype} {array.shape} instead of {wanted.dtype} {wanted.shape}"
            )
        for step, (one, other) in enumerate(zip(array, wanted, strict=False)):
            if one.tobytes() != other.tobytes():
                raise AssertionError(f"{what}: field {name!r} differs first at step {step}: {one} instead of {other}")
        if len(array) != len(wanted):
            raise AssertionError(f"{what}: field {name!r} has {len(array)} steps instead of {len(wanted)}")


def seek_targets(length: int) -> list[int]:
    """Return positions to seek: all from 0 to `length` for short streams, else the first, the last and some others."""
    if length <= MAX_EXHAUSTIVE_STEPS:
        return list(range(length + 1))
    spread = range(0, length, max(1, length // (MAX_EXHAUSTIVE_STEPS // 2)))
    return sorted({*range(MAX_EXHAUSTIVE_STEPS // 4), *spread, *range(length - MAX_EXHAUSTIVE_STEPS // 4, length + 1)})


def _rows(arrays: Mapping[str, Array]) -> int:
    return len(next(iter(arrays.values())))
