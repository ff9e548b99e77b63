"""Tests of resuming: a state saved after any batch restores exactly the batches that follow."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import abc
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.loader.multistreamer import MultiStreamer
from streamloader.streams.base import Stream, StreamDataset, stream_rng
from streamloader.testing.streams.playing import DEADLINE_S, assert_same_steps, describe_streams, seek_targets

if TYPE_CHECKING:
    from streamloader.values import Array, Field, StreamInfo

__all__ = ["ResumeSuite"]

COMPARED_BATCHES = 3  # after most states
FULL_TAILS = 3  # states after which the rest of the epoch and the beginning of the next are compared


class ResumeSuite(abc.ABC):
    """Tests that stop and resume a real loader. :class:`StreamSuite` inherits them, so only that needs a binding.

    Attributes:
        seekable: Whether the streams implement ``seek``. If not, the loader reads the consumed steps again.
        replays: Whether the streams declare that ``seek`` reads the skipped steps (:attr:`Stream.replays`).
    """

    seekable: bool = True
    replays: bool = False

    @abc.abstractmethod
    def make_dataset(self) -> StreamDataset:
        """Return a new dataset. Every call returns an equal one."""

    def test_settings_are_plain_and_the_same_every_time(self) -> None:
        # They are part of a state's fingerprint: if they differed between processes, no state would be accepted.
        first, second = self.make_dataset(), self.make_dataset()
        settings = dict(first.settings)
        assert json.loads(json.dumps(settings)) == settings
        assert dict(first.settings) == dict(second.settings) == settings
        describe_streams(first)
        assert dict(first.settings) == settings, "index changed the settings"

    def test_resumes_at_every_step(self) -> None:
        run = _ReferenceRun.of(self.make_dataset(), batch_size=2, window=1)
        ends = [len(run.epochs[0]), len(run.epochs[1])]
        chosen = [saved for saved in run.saved if saved.epoch == 0 and saved.batch in seek_targets(ends[0])]
        chosen += [saved for saved in run.saved if saved.epoch == 1 and saved.batch in (0, 1, ends[1] // 2, ends[1])]
        whole = {len(chosen) * part // FULL_TAILS for part in range(FULL_TAILS)}
        for number, saved in enumerate(chosen):
            count = ends[saved.epoch] - saved.batch + COMPARED_BATCHES if number in whole else COMPARED_BATCHES
            run.check(saved, self.make_dataset(), count)

    def test_resumes_in_longer_windows(self) -> None:
        # Rows then end inside streams and at their ends, and contain several streams.
        for batch_size, window, switch in ((1, 4, "pack"), (3, 2, "align"), (2, 5, "pack")):
            run = _ReferenceRun.of(self.make_dataset(), batch_size=batch_size, window=window, switch=switch)
            some = seek_targets(len(run.saved) - 1)
            for number in sorted({some[len(some) * part // 6] for part in range(6)} | {len(run.saved) - 1}):
                run.check(run.saved[number], self.make_dataset(), COMPARED_BATCHES)

    def test_resumes_in_worker_processes(self) -> None:
        # A state saved without workers is resumed with two, and a state saved with two is resumed without.
        run = _ReferenceRun.of(self.make_dataset(), batch_size=2, window=2)
        saved = next(saved for saved in run.saved if saved.batch == len(run.epochs[0]) // 2)
        remaining = len(run.epochs[0]) - saved.batch
        states = run.check(saved, self.make_dataset(), remaining + 1, num_workers=2)
        for state in (states[0], states[-1]):
            run.check(state, self.make_dataset(), COMPARED_BATCHES)

    def test_restoring_does_not_read_consumed_steps(self) -> None:
        run = _ReferenceRun.of(_RecordingStreams(self.make_dataset()), batch_size=2, window=2)
        length = len(run.epochs[0])
        delivered = [_cells(batch) for batch in run.epochs[0]]
        for saved in (saved for saved in run.saved if saved.epoch == 0 and saved.batch in seek_targets(length)[::3]):
            consumed = {cell for batch in delivered[: saved.batch] for row in batch for cell in row}
            remaining = {stream for batch in delivered[saved.batch :] for row in batch for stream, _ in row}
            last = {row[-1][0] for row in delivered[saved.batch - 1] if row} if saved.batch else set()
            recording = _RecordingStreams(self.make_dataset())
            run.check(saved, recording, 1)
            for opened in (opened for opened in recording.opened if opened.epoch == 0):
                assert opened.replays == self.replays, f"{opened.key} declares replays = {opened.replays}"
                assert opened.can_seek or not self.seekable, f"{opened.key} cannot seek"
                finished = {stream for stream, _ in consumed} - remaining
                assert opened.ordinal not in finished - last, f"{opened.key} was finished, and is opened again"
                if opened.can_seek:
                    again = sorted(step for step in opened.read if (opened.ordinal, step) in consumed)
                    assert again == [], f"{opened.key} reads these consumed steps again, after {saved.batch} batches"


# --- an uninterrupted run, and runs that resume from its states ------------------------------------------------------


@dataclass(frozen=True)
class _SavedState:
    """A state as text, saved after `batch` batches of `epoch`."""

    epoch: int
    batch: int
    text: str

    @classmethod
    def of(cls, loader: MultiStreamer, epoch: int, batch: int) -> _SavedState:
        state = loader.state_dict()
        text = json.dumps(state)
        assert json.loads(text) == state, "a state is plain JSON"
        assert (state["epoch"], state["batch"]) == (epoch, batch)
        return cls(epoch, batch, text)


@dataclass(frozen=True)
class _ReferenceRun:
    """Two whole epochs and the beginning of a third, uninterrupted, with a state after each batch."""

    arguments: Mapping[str, Any]
    epochs: Sequence[Sequence[Mapping[str, Array]]]
    saved: Sequence[_SavedState]

    @classmethod
    def of(cls, dataset: StreamDataset, **arguments: Any) -> _ReferenceRun:
        epochs: list[list[dict[str, Array]]] = [[], [], []]
        with _loader(dataset, arguments) as loader:
            saved = [_SavedState.of(loader, 0, 0)]
            for epoch in (0, 1):
                for batch in loader:
                    epochs[epoch].append(_copy_arrays(batch))
                    saved.append(_SavedState.of(loader, epoch, batch.index + 1))
                saved.append(_SavedState.of(loader, epoch + 1, 0))
            for batch in itertools.islice(loader, COMPARED_BATCHES):
                epochs[2].append(_copy_arrays(batch))
        assert epochs[0], "the suite needs a dataset with steps"
        return cls(arguments, epochs, saved)

    def check(self, saved: _SavedState, dataset: StreamDataset, count: int, **other: Any) -> list[_SavedState]:
        """Compare the next `count` batches after a state, exactly, and return the state after each of them."""
        what = f"resumed after {saved.batch} batches of epoch {saved.epoch}"
        states: list[_SavedState] = []
        with _loader(dataset, {**self.arguments, **other}) as loader:
            loader.load_state_dict(json.loads(saved.text))
            assert json.dumps(loader.state_dict()) == saved.text, f"{what}: its state is not the loaded one"
            epoch, index = saved.epoch, saved.batch
            while len(states) < count and epoch < len(self.epochs):
                iterator = iter(loader)
                for batch in itertools.islice(iterator, count - len(states)):
                    assert (batch.epoch, batch.index) == (epoch, index), what
                    assert index < len(self.epochs[epoch]), f"{what}: epoch {epoch} has more batches than before"
                    assert_same_steps(
                        _copy_arrays(batch), self.epochs[epoch][index], f"{what}: epoch {epoch}, batch {index}"
                    )
                    index += 1
                    states.append(_SavedState.of(loader, epoch, index))
                if len(states) < count:
                    assert index == len(self.epochs[epoch]), f"{what}: epoch {epoch} has fewer batches than before"
                    assert next(iterator, None) is None
                epoch, index = epoch + 1, 0
        return states


def _loader(dataset: StreamDataset, arguments: Mapping[str, Any]) -> MultiStreamer:
    return MultiStreamer(
        dataset, **{"seed": 0, "prefetch_factor": 1, "layout": None, "timeout": DEADLINE_S, **arguments}
    )


def _copy_arrays(batch: Any) -> dict[str, Array]:
    return {name: array.copy() for name, array in batch.numpy().items()}


def _cells(batch: Mapping[str, Array]) -> list[list[tuple[int, int]]]:
    """Return (ordinal of the stream, step) for each position of each row, without padding."""
    return [
        [(int(stream), int(step)) for stream, step, valid in zip(*row, strict=True) if valid]
        for row in zip(batch["stream"], batch["step"], batch["valid"], strict=True)
    ]


# --- streams that record their reads ---------------------------------------------------------------------------------


@dataclass
class _ReadLog:
    """The steps that were read from an open stream."""

    key: str
    ordinal: int
    epoch: int
    replays: bool
    can_seek: bool = True
    read: set[int] = field(default_factory=set)


class _RecordingStreams(StreamDataset):
    """A wrapper of a dataset that records which steps of its streams are read in this process."""

    def __init__(self, dataset: StreamDataset) -> None:
        self.opened: list[_ReadLog] = []
        self._dataset = dataset
        self._ordinals: dict[str, int] = {}

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._dataset.fields

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._dataset.settings

    async def index(self) -> Sequence[StreamInfo]:
        infos = await self._dataset.index()
        self._ordinals = {info.key: ordinal for ordinal, info in enumerate(infos)}
        return infos

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        ordinal, key = self._ordinals[info.key], _generator_key(rng)
        epoch = next(epoch for epoch in range(4) if _generator_key(stream_rng(0, epoch, ordinal)) == key)
        stream = await self._dataset.open(info, rng)
        opened = _ReadLog(info.key, ordinal, epoch, stream.replays)
        self.opened.append(opened)
        return _RecordingStream(stream, opened)


class _RecordingStream(Stream):
    def __init__(self, stream: Stream, log: _ReadLog) -> None:
        self._stream, self._log = stream, log
        self._next = 0
        self.replays = stream.replays

    async def read_into(self, out: Mapping[str, Array]) -> int:
        count = await self._stream.read_into(out)
        self._log.read.update(range(self._next, self._next + count))
        self._next += count
        return count

    async def seek(self, step: int) -> None:
        try:
            await self._stream.seek(step)
        except NotImplementedError:
            self._log.can_seek = False
            raise
        self._next = step

    def times(self, start: int, out: Array) -> None:
        self._stream.times(start, out)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _generator_key(rng: np.random.Generator) -> list[int]:
    """Return the key of a stream's generator, which encodes the seed, the epoch and the stream."""
    state: Any = rng.bit_generator.state
    return [int(word) for word in state["state"]["key"]]
