"""Playing single streams, without a loader: what tests of a kind of stream are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import numpy as np

from streamloader.streams.base import Stream, StreamDataset, stream_rng

if TYPE_CHECKING:
    from streamloader.values import Array, StreamInfo

__all__ = ["assert_same_steps", "describe_streams", "play", "play_async", "read_block", "targets"]

DEADLINE = 60.0  # seconds: a stream that hangs fails its test, with the traceback of where it waits

_FEW = 64  # what has up to so many positions is tried at every one of them


def describe_streams(dataset: StreamDataset) -> Sequence[StreamInfo]:
    """Return ``await dataset.index()``, from code that is not async."""

    async def describe() -> Sequence[StreamInfo]:
        with anyio.fail_after(DEADLINE):
            return await dataset.index()

    return anyio.run(describe)


def play(
    dataset: StreamDataset,
    info: StreamInfo,
    block: int = 7,
    *,
    seek: int | None = None,
    steps: int | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, Array]:
    """Play one stream to its end, and return its steps: name -> array (steps, *shape).

    Args:
        dataset: a data set whose :meth:`~streamloader.StreamDataset.index` was called.
        info: one of those that it returned.
        block: how many steps are asked for at a time.
        seek: where to begin.
        steps: how many steps to play, if not all.
        rng: what decides the stream's augmentation; without it, always the same.

    Raises:
        TimeoutError: the stream took longer than a minute.
    """

    async def run() -> dict[str, Array]:
        with anyio.fail_after(DEADLINE):
            return await play_async(dataset, info, block, seek=seek, steps=steps, rng=rng)

    return anyio.run(run)


async def play_async(
    dataset: StreamDataset,
    info: StreamInfo,
    block: int = 7,
    *,
    seek: int | None = None,
    steps: int | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, Array]:
    """Do what :func:`play` does, in the event loop that runs."""
    stream = await dataset.open(info, stream_rng(0, 0, 0) if rng is None else rng)
    try:
        if seek is not None:
            await stream.seek(seek)
        return await read_steps(stream, dataset, block, steps)
    finally:
        await stream.aclose()


async def read_steps(stream: Stream, dataset: StreamDataset, block: int, steps: int | None = None) -> dict[str, Array]:
    """Read an open stream, up to its end or for `steps` steps."""
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
    """Read up to `block` steps once; return just those that came.

    The buffers are filled with the byte `poison` before, and lie between guard rows that must stay as they are.

    Raises:
        AssertionError: more steps were returned than asked for, or something else than the buffers was written.
    """
    guarded = {
        name: np.full((block + 2) * int(np.prod(field.shape)) * field.dtype.itemsize, poison, np.uint8)
        .view(field.dtype)
        .reshape(block + 2, *field.shape)
        for name, field in dataset.fields.items()
    }
    await anyio.lowlevel.checkpoint()  # so that the deadline ends a stream that neither waits nor ends
    count = await stream.read_into({name: array[1:-1] for name, array in guarded.items()})
    if not 0 <= count <= block:
        raise AssertionError(f"read_into returned {count} for a buffer of {block} steps")
    for name, array in guarded.items():
        guards = array[0].tobytes() + array[-1].tobytes()
        if guards.strip(bytes([poison])):
            raise AssertionError(f"field {name!r} was written outside of its {block} steps")
    return {name: array[1 : 1 + count] for name, array in guarded.items()}


def assert_same_steps(got: Mapping[str, Array], expected: Mapping[str, Any], what: str = "steps") -> None:
    """Raise unless both hold the same fields, shapes, dtypes and bytes; say which step is the first that differs."""
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


def targets(length: int) -> list[int]:
    """Return all positions from 0 to the end if they are few, else the first and last ones and some between."""
    if length <= _FEW:
        return list(range(length + 1))
    spread = range(0, length, max(1, length // (_FEW // 2)))
    return sorted({*range(_FEW // 4), *spread, *range(length - _FEW // 4, length + 1)})


def _rows(arrays: Mapping[str, Array]) -> int:
    return len(next(iter(arrays.values())))
