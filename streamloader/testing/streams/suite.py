"""The conformance suite of streams: a subclass provides a dataset and inherits the tests."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import cloudpickle
import numpy as np
import pytest

from streamloader.media.video.index_database import close_databases
from streamloader.stores.io_thread import close_shared_stores
from streamloader.streams.base import Stream, StreamDataset, stream_rng
from streamloader.streams.lane_thread import LaneThread, current_lane_thread
from streamloader.testing.streams.playing import (
    DEADLINE_S,
    assert_same_steps,
    describe_streams,
    read_block,
    read_steps,
    read_stream,
    read_stream_async,
    seek_targets,
)
from streamloader.testing.streams.resume import ResumeSuite
from streamloader.values import Field

if TYPE_CHECKING:
    from streamloader.values import Array, StreamInfo

__all__ = ["StreamSuite"]

T = TypeVar("T")

BLOCK_STEPS = 1 << 12  # one read of this size fetches most streams whole


class StreamSuite(ResumeSuite):
    """All tests of streams. Inherit from it in a class whose name pytest collects, and define :meth:`make_dataset`.

    The dataset must have at least two streams, one of them with two steps or more, and should be small: each
    stream is read dozens of times. An autouse fixture of the subclass gives it access to other fixtures::

        class TestMyStreams(StreamSuite):
            @pytest.fixture(autouse=True)
            def _files(self, tmp_path):
                self.folder = write_files(tmp_path)

            def make_dataset(self):
                return MyStreams(self.folder)

    Attributes:
        seekable: Whether the streams implement ``seek``. If not, it must raise NotImplementedError.
        replays: Whether the streams declare that ``seek`` reads the skipped steps (:attr:`Stream.replays`).
        lengths_known: Whether ``index`` returns all lengths. If not, some may be None.
    """

    lengths_known: bool = True

    def expected(self) -> Sequence[Mapping[str, Any]] | None:
        """Return the steps of each stream, name -> array (steps, *shape), or None to test consistency only."""
        return None

    # --- descriptions ------------------------------------------------------------------------------------------------

    def test_index_is_the_same_every_time(self) -> None:
        dataset = self.make_dataset()
        infos = list(describe_streams(dataset))
        assert len(infos) >= 2, "the suite needs a dataset with at least two streams"
        assert list(describe_streams(dataset)) == infos
        assert list(describe_streams(self.make_dataset())) == infos

    def test_keys_name_one_stream_each(self) -> None:
        keys = [info.key for info in describe_streams(self.make_dataset())]
        assert all(type(key) is str and key for key in keys)
        assert sorted(set(keys)) == sorted(keys)

    def test_infos_are_plain_values(self) -> None:
        for info in describe_streams(self.make_dataset()):
            assert pickle.loads(pickle.dumps(info)) == info  # noqa: S301 - pickled by this test
            assert info.length is None or type(info.length) is int
            assert info.length is None or info.length >= 0

    def test_fields_are_described(self) -> None:
        dataset = self.make_dataset()
        describe_streams(dataset)
        fields = dict(dataset.fields)
        assert fields
        assert {type(name) for name in fields} == {str}
        assert {type(field) for field in fields.values()} == {Field}
        assert dict(dataset.fields) == fields

    def test_lengths_are_honest(self) -> None:
        dataset, infos = self._index_dataset()
        for info in infos:
            assert not self.lengths_known or info.length is not None, f"the length of {info.key} is unknown"
            if info.length is not None:
                assert _count(read_stream(dataset, info, BLOCK_STEPS)) == info.length, f"steps of {info.key}"

    # --- steps -------------------------------------------------------------------------------------------------------

    def test_steps_are_those_expected(self) -> None:
        expected = self.expected()
        if expected is None:
            pytest.skip("this binding defines no expected steps")
        dataset, infos = self._index_dataset()
        for info, steps in zip(infos, expected, strict=True):
            assert_same_steps(read_stream(dataset, info), steps, info.key)

    @pytest.mark.parametrize("block", [1, 2, 3, 7])
    def test_the_size_of_blocks_changes_nothing(self, block: int) -> None:
        dataset, infos = self._index_dataset()
        for info in infos:
            whole = read_stream(dataset, info, BLOCK_STEPS)
            assert_same_steps(read_stream(dataset, info, block), whole, f"{info.key} by blocks of {block}")

    def test_returned_steps_are_written_completely(self) -> None:
        # Each block is read into buffers with different contents: unwritten bytes would differ.
        dataset, infos = self._index_dataset()

        async def read_with(info: StreamInfo, poison: int) -> list[dict[str, Array]]:
            blocks = []
            async with _open_stream(dataset, info) as stream:
                while _count(block := await read_block(stream, dataset, 3, poison)):
                    blocks.append(block)
            return blocks

        for info in infos:
            ones, zeros = (_run(read_with, info, poison) for poison in (1, 0))
            for number, (one, zero) in enumerate(zip(ones, zeros, strict=True)):
                assert_same_steps(one, zero, f"{info.key}, read {number}")

    def test_the_end_stays_the_end(self) -> None:
        dataset, infos = self._index_dataset()

        async def read_on(info: StreamInfo) -> list[int]:
            async with _open_stream(dataset, info) as stream:
                await read_steps(stream, dataset, 5)
                return [_count(await read_block(stream, dataset, size)) for size in (1, 4, 1)]

        for info in infos:
            assert _run(read_on, info) == [0, 0, 0], info.key

    def test_the_same_rng_gives_the_same_steps(self) -> None:
        first, infos = self._index_dataset()
        second, _ = self._index_dataset()
        for number, info in enumerate(infos):
            rngs = [stream_rng(7, 3, number) for _ in range(3)]
            steps = read_stream(first, info, rng=rngs[0])
            assert_same_steps(read_stream(first, info, rng=rngs[1]), steps, f"{info.key}, read again")
            assert_same_steps(read_stream(second, info, rng=rngs[2]), steps, f"{info.key} of an equal dataset")

    def test_prepared_streams_are_the_same(self) -> None:
        # A lane prepares streams while it reads another one.
        dataset, infos = self._index_dataset()

        async def read_prepared(info: StreamInfo) -> dict[str, Array] | None:
            unused, prepared = await dataset.prepare(info), await dataset.prepare(info)
            if unused is not None:
                unused.release()
            if prepared is None:
                return None
            stream = await prepared.open(stream_rng(0, 0, 0))
            try:
                return await read_steps(stream, dataset, 5)
            finally:
                await stream.aclose()

        for info in infos:
            if (steps := _run(read_prepared, info)) is not None:
                assert_same_steps(steps, read_stream(dataset, info), f"{info.key}, prepared")

    def test_streams_do_not_disturb_each_other(self) -> None:
        # One task reads two open copies of each stream, in turns of 2 steps.
        dataset, infos = self._index_dataset()
        alone = [read_stream(dataset, info) for info in infos]

        async def in_turns() -> list[dict[str, Array]]:
            opened = [await dataset.open(info, stream_rng(0, 0, 0)) for info in (*infos, *infos)]
            blocks: list[list[dict[str, Array]]] = [[] for _ in opened]
            try:
                active = list(range(len(opened)))
                while active:
                    for number in active:
                        blocks[number].append(await read_block(opened[number], dataset, 2))
                    active = [number for number in active if _count(blocks[number][-1])]
            finally:
                for stream in opened:
                    await stream.aclose()
            return [_join(parts) for parts in blocks]

        for info, got, wanted in zip((*infos, *infos), _run(in_turns), (*alone, *alone), strict=True):
            assert_same_steps(got, wanted, info.key)

    def test_streams_are_read_concurrently(self) -> None:
        # As in a worker: a task and a thread for each lane.
        dataset, infos = self._index_dataset()
        alone = [read_stream(dataset, info) for info in infos]
        results: dict[int, dict[str, Array]] = {}

        async def lane(number: int) -> None:
            thread = LaneThread(f"suite-lane-{number}")
            current_lane_thread.set(thread)
            try:
                results[number] = await read_stream_async(dataset, infos[number % len(infos)], 3)
            finally:
                assert thread.stop(DEADLINE_S)

        async def all_lanes() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(2 * len(infos)):
                    tasks.start_soon(lane, number)

        _run(all_lanes)
        for number, steps in sorted(results.items()):
            assert_same_steps(steps, alone[number % len(infos)], infos[number % len(infos)].key)

    # --- positions and times -----------------------------------------------------------------------------------------

    def test_seeking_is_the_same_as_reading_up_to_there(self) -> None:
        dataset, infos = self._index_dataset()
        if not self.seekable:
            with pytest.raises(NotImplementedError):
                read_stream(dataset, infos[0], seek=1)
            return

        async def check(info: StreamInfo) -> None:
            whole = await read_stream_async(dataset, info, BLOCK_STEPS)
            chosen = seek_targets(_count(whole))
            for step in chosen:  # each from a fresh stream
                got = await read_stream_async(dataset, info, 3, seek=step, steps=4)
                assert_same_steps(got, _slice(whole, step, 4), f"{info.key} from step {step}")
            async with _open_stream(dataset, info) as stream:  # backwards and forwards in one stream
                for step in [*reversed(chosen), *chosen]:
                    await stream.seek(step)
                    got = await read_steps(stream, dataset, 2, 3)
                    assert_same_steps(got, _slice(whole, step, 3), f"{info.key} from step {step}, after another seek")
                await stream.seek(0)
                assert_same_steps(await read_steps(stream, dataset, 7), whole, f"{info.key} from the start again")

        for info in infos:
            _run(check, info)

    def test_the_end_can_be_sought(self) -> None:
        # A state can have this position: a window may end with the last step of a stream.
        dataset, infos = self._index_dataset()
        if not self.seekable:
            pytest.skip("these streams cannot seek")

        async def check(info: StreamInfo) -> None:
            whole = await read_stream_async(dataset, info, BLOCK_STEPS)
            for reads in (0, 1):
                async with _open_stream(dataset, info) as stream:
                    for _ in range(reads):
                        await read_block(stream, dataset, 2)
                    await stream.seek(_count(whole))
                    assert [_count(await read_block(stream, dataset, size)) for size in (1, 4)] == [0, 0], info.key
                    await stream.seek(0)
                    assert_same_steps(await read_steps(stream, dataset, 7), whole, f"{info.key}, back from its end")

        for info in infos:
            _run(check, info)

    def test_times_never_run_backwards(self) -> None:
        dataset, infos = self._index_dataset()
        for info in infos:
            whole = _run(_read_times, dataset, info, BLOCK_STEPS)
            assert np.isfinite(whole).all()
            assert (np.diff(whole) >= 0).all(), info.key
            for block in (1, 3):
                assert _run(_read_times, dataset, info, block).tobytes() == whole.tobytes(), info.key
            if self.seekable and len(whole) > 1:
                middle = len(whole) // 2
                assert _run(_read_times, dataset, info, 2, middle).tobytes() == whole[middle:].tobytes(), info.key

    # --- resources ---------------------------------------------------------------------------------------------------

    def test_closing_twice_does_no_harm(self) -> None:
        dataset, infos = self._index_dataset()

        async def close_after(info: StreamInfo, reads: int) -> None:
            stream = await dataset.open(info, stream_rng(0, 0, 0))
            for _ in range(reads):
                await read_block(stream, dataset, 1)
            await stream.aclose()
            await stream.aclose()

        for reads in (0, 1):
            _run(close_after, infos[0], reads)

    def test_closes_after_a_cancelled_read(self) -> None:
        dataset, infos = self._index_dataset()

        async def cancel(info: StreamInfo) -> None:
            stream = await dataset.open(info, stream_rng(0, 0, 0))
            with anyio.move_on_after(0):
                await read_steps(stream, dataset, 3)
            await stream.aclose()

        for info in infos:
            _run(cancel, info)
            read_stream(dataset, info)

    def test_closes_after_a_cancelled_open(self) -> None:
        # The lane's thread finishes the call: a stream that it opens late has to be closed as well.
        dataset, infos = self._index_dataset()
        before = _list_resources()

        async def cancel(info: StreamInfo) -> None:
            thread = LaneThread("suite-lane")
            current_lane_thread.set(thread)
            try:
                with anyio.move_on_after(0):
                    stream = await dataset.open(info, stream_rng(0, 0, 0))
                    await stream.aclose()  # this kind of stream opens without waiting
            finally:
                assert thread.stop(DEADLINE_S)

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for info in infos:
                _run(cancel, info)
            assert _list_resources() == before
        assert [str(warning.message) for warning in warned] == []

    def test_nothing_is_held_before_and_after(self) -> None:
        before = _list_resources()
        dataset = self.make_dataset()
        assert _list_resources() == before, "the constructor of a dataset must not open anything"
        infos = describe_streams(dataset)
        assert _list_resources() == before, "index must close what it opens"
        for info in infos:
            read_stream(dataset, info, steps=1)
            read_stream(dataset, info)
        assert _list_resources() == before, "aclose must release everything"

    def test_travels_to_another_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A worker receives a pickled dataset, indexed or not, and may have another current directory.
        fresh = cloudpickle.dumps(self.make_dataset())
        dataset, infos = self._index_dataset()
        alone = [read_stream(dataset, info) for info in infos]
        indexed = cloudpickle.loads(cloudpickle.dumps(dataset))
        assert list(describe_streams(cloudpickle.loads(fresh))) == list(infos)
        monkeypatch.chdir(tmp_path)
        for info, wanted in zip(infos, alone, strict=True):
            assert_same_steps(read_stream(indexed, pickle.loads(pickle.dumps(info))), wanted, info.key)  # noqa: S301

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _index_dataset(self) -> tuple[StreamDataset, Sequence[StreamInfo]]:
        dataset = self.make_dataset()
        return dataset, describe_streams(dataset)


@contextlib.asynccontextmanager
async def _open_stream(dataset: StreamDataset, info: StreamInfo) -> AsyncIterator[Stream]:
    stream = await dataset.open(info, stream_rng(0, 0, 0))
    try:
        yield stream
    finally:
        await stream.aclose()


def _run(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    async def with_deadline() -> T:
        with anyio.fail_after(DEADLINE_S):
            return await function(*args)

    return anyio.run(with_deadline)


async def _read_times(dataset: StreamDataset, info: StreamInfo, block: int, seek: int = 0) -> Array:
    """Return the times of the steps from `seek` on, requested after each block as the engine does."""
    parts = [np.empty(0)]
    position = seek
    async with _open_stream(dataset, info) as stream:
        if seek:
            await stream.seek(seek)
        while count := _count(await read_block(stream, dataset, block)):
            part = np.full(count, np.nan)
            stream.times(position, part)
            parts.append(part)
            position += count
    return np.concatenate(parts)


def _count(steps: Mapping[str, Array]) -> int:
    counts = {name: len(array) for name, array in steps.items()}
    assert len(set(counts.values())) == 1, counts
    return next(iter(counts.values()))


def _slice(steps: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    return {name: array[start : start + count] for name, array in steps.items()}


def _join(blocks: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _list_resources() -> tuple[list[str], list[str]]:
    """Return the open descriptors and the threads of this process."""
    gc.collect()
    close_shared_stores()  # they keep connections open for a while
    close_databases()
    names = [thread.name for thread in threading.enumerate()]
    # anyio stops the worker threads of a finished event loop, but does not wait for them.
    return sorted(_iterate_descriptors()), sorted(name for name in names if not name.startswith("AnyIO worker"))


def _iterate_descriptors() -> Iterator[str]:
    if not sys.platform.startswith("linux"):
        return
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
