"""The part of the suite that resumes: a state saved after any batch brings back exactly the batches that follow it."""

# ruff: noqa: D102 - the name of a test says what it shows

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
from streamloader.testing.streams.playing import DEADLINE, assert_same_steps, describe_streams, targets

if TYPE_CHECKING:
    from streamloader.values import Array, Field, StreamInfo

__all__ = ["ResumeSuite"]

_BATCHES = 3  # compared after each state
_WHOLE_TAILS = 3  # states after which all the rest of the epoch is compared, and the beginning of the next one


class ResumeSuite(abc.ABC):
    """What :class:`StreamSuite` asks of resuming, by a real loader. It is part of that; there is no need to bind both.

    Attributes:
        seekable: whether the streams implement ``seek``; if not, the loader reads again up to where it goes on.
        replays: whether the streams say so of themselves: that ``seek`` plays again what lies before.
    """

    seekable: bool = True
    replays: bool = False

    @abc.abstractmethod
    def make_dataset(self) -> StreamDataset:
        """Return a new data set; every call returns one that holds the same."""

    def test_settings_are_plain_and_the_same_every_time(self) -> None:
        # They are part of a state's fingerprint: what differs between two processes would refuse every state.
        first, second = self.make_dataset(), self.make_dataset()
        settings = dict(first.settings)
        assert json.loads(json.dumps(settings)) == settings
        assert dict(first.settings) == dict(second.settings) == settings
        describe_streams(first)
        assert dict(first.settings) == settings, "index changed what the settings are"

    def test_resumes_at_every_step(self) -> None:
        run = _Run.of(self.make_dataset(), batch_size=2, window=1)
        ends = [len(run.epochs[0]), len(run.epochs[1])]
        chosen = [saved for saved in run.saved if saved.epoch == 0 and saved.batch in targets(ends[0])]
        chosen += [saved for saved in run.saved if saved.epoch == 1 and saved.batch in (0, 1, ends[1] // 2, ends[1])]
        whole = {len(chosen) * part // _WHOLE_TAILS for part in range(_WHOLE_TAILS)}
        for number, saved in enumerate(chosen):
            count = ends[saved.epoch] - saved.batch + _BATCHES if number in whole else _BATCHES
            run.check(saved, self.make_dataset(), count)

    def test_resumes_in_longer_windows(self) -> None:
        # Rows then end inside of streams and behind them, and hold several streams.
        for batch_size, window, switch in ((1, 4, "pack"), (3, 2, "align"), (2, 5, "pack")):
            run = _Run.of(self.make_dataset(), batch_size=batch_size, window=window, switch=switch)
            some = targets(len(run.saved) - 1)
            for number in sorted({some[len(some) * part // 6] for part in range(6)} | {len(run.saved) - 1}):
                run.check(run.saved[number], self.make_dataset(), _BATCHES)

    def test_resumes_in_worker_processes(self) -> None:
        # A state of this process goes on in two others, and one of theirs goes on here.
        run = _Run.of(self.make_dataset(), batch_size=2, window=2)
        saved = next(saved for saved in run.saved if saved.batch == len(run.epochs[0]) // 2)
        left = len(run.epochs[0]) - saved.batch
        back = run.check(saved, self.make_dataset(), left + 1, num_workers=2)
        for again in (back[0], back[-1]):
            run.check(again, self.make_dataset(), _BATCHES)

    def test_restoring_reads_nothing_that_was_consumed(self) -> None:
        run = _Run.of(_Watched(self.make_dataset()), batch_size=2, window=2)
        length = len(run.epochs[0])
        delivered = [_cells(batch) for batch in run.epochs[0]]
        for saved in (saved for saved in run.saved if saved.epoch == 0 and saved.batch in targets(length)[::3]):
            consumed = {cell for batch in delivered[: saved.batch] for row in batch for cell in row}
            left = {stream for batch in delivered[saved.batch :] for row in batch for stream, _ in row}
            last = {row[-1][0] for row in delivered[saved.batch - 1] if row} if saved.batch else set()
            watched = _Watched(self.make_dataset())
            run.check(saved, watched, 1)
            for opened in (opened for opened in watched.opened if opened.epoch == 0):
                assert opened.replays == self.replays, f"{opened.key} says replays = {opened.replays}"
                assert opened.can_seek or not self.seekable, f"{opened.key} cannot seek"
                finished = {stream for stream, _ in consumed} - left
                assert opened.ordinal not in finished - last, f"{opened.key} was played to its end, and is opened again"
                if opened.can_seek:
                    again = sorted(step for step in opened.read if (opened.ordinal, step) in consumed)
                    assert again == [], f"steps of {opened.key} that are read again, {saved.batch} batches in"


# --- an undisturbed run, and what goes on from its states ------------------------------------------------------------


@dataclass(frozen=True)
class _Saved:
    """A state as text, saved when `batch` batches of `epoch` were delivered."""

    epoch: int
    batch: int
    text: str

    @classmethod
    def of(cls, loader: MultiStreamer, epoch: int, batch: int) -> _Saved:
        state = loader.state_dict()
        text = json.dumps(state)
        assert json.loads(text) == state, "a state is plain JSON"
        assert (state["epoch"], state["batch"]) == (epoch, batch)
        return cls(epoch, batch, text)


@dataclass(frozen=True)
class _Run:
    """Two whole epochs and the beginning of a third, undisturbed, with a state after each batch."""

    arguments: Mapping[str, Any]
    epochs: Sequence[Sequence[Mapping[str, Array]]]
    saved: Sequence[_Saved]

    @classmethod
    def of(cls, dataset: StreamDataset, **arguments: Any) -> _Run:
        epochs: list[list[dict[str, Array]]] = [[], [], []]
        with _loader(dataset, arguments) as loader:
            saved = [_Saved.of(loader, 0, 0)]
            for epoch in (0, 1):
                for batch in loader:
                    epochs[epoch].append(_copied(batch))
                    saved.append(_Saved.of(loader, epoch, batch.index + 1))
                saved.append(_Saved.of(loader, epoch + 1, 0))
            for batch in itertools.islice(loader, _BATCHES):
                epochs[2].append(_copied(batch))
        assert epochs[0], "the suite needs a data set that has steps"
        return cls(arguments, epochs, saved)

    def check(self, saved: _Saved, dataset: StreamDataset, count: int, **other: Any) -> list[_Saved]:
        """Compare the next `count` batches after a state, exactly; return the states after each of them."""
        what = f"resumed after {saved.batch} batches of epoch {saved.epoch}"
        states: list[_Saved] = []
        with _loader(dataset, {**self.arguments, **other}) as loader:
            loader.load_state_dict(json.loads(saved.text))
            assert json.dumps(loader.state_dict()) == saved.text, f"{what}: the state that was loaded is the state"
            epoch, index = saved.epoch, saved.batch
            while len(states) < count and epoch < len(self.epochs):
                iterator = iter(loader)
                for batch in itertools.islice(iterator, count - len(states)):
                    assert (batch.epoch, batch.index) == (epoch, index), what
                    assert index < len(self.epochs[epoch]), f"{what}: epoch {epoch} has more batches than it had"
                    assert_same_steps(
                        _copied(batch), self.epochs[epoch][index], f"{what}: epoch {epoch}, batch {index}"
                    )
                    index += 1
                    states.append(_Saved.of(loader, epoch, index))
                if len(states) < count:
                    assert index == len(self.epochs[epoch]), f"{what}: epoch {epoch} has fewer batches than it had"
                    assert next(iterator, None) is None
                epoch, index = epoch + 1, 0
        return states


def _loader(dataset: StreamDataset, arguments: Mapping[str, Any]) -> MultiStreamer:
    return MultiStreamer(dataset, **{"seed": 0, "prefetch_factor": 1, "layout": None, "timeout": DEADLINE, **arguments})


def _copied(batch: Any) -> dict[str, Array]:
    return {name: array.copy() for name, array in batch.numpy().items()}


def _cells(batch: Mapping[str, Array]) -> list[list[tuple[int, int]]]:
    """Return what each row of a batch holds: (ordinal of the stream, step), without padding."""
    return [
        [(int(stream), int(step)) for stream, step, valid in zip(*row, strict=True) if valid]
        for row in zip(batch["stream"], batch["step"], batch["valid"], strict=True)
    ]


# --- streams that are watched ----------------------------------------------------------------------------------------


@dataclass
class _Opened:
    """What was read of a stream after it was opened."""

    key: str
    ordinal: int
    epoch: int
    replays: bool
    can_seek: bool = True
    read: set[int] = field(default_factory=set)


class _Watched(StreamDataset):
    """Another data set; notes what is read of its streams, in this process."""

    def __init__(self, dataset: StreamDataset) -> None:
        self.opened: list[_Opened] = []
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
        ordinal, key = self._ordinals[info.key], _key(rng)
        epoch = next(epoch for epoch in range(4) if _key(stream_rng(0, epoch, ordinal)) == key)
        stream = await self._dataset.open(info, rng)
        opened = _Opened(info.key, ordinal, epoch, stream.replays)
        self.opened.append(opened)
        return _WatchedStream(stream, opened)


class _WatchedStream(Stream):
    def __init__(self, stream: Stream, opened: _Opened) -> None:
        self._stream, self._opened = stream, opened
        self._next = 0
        self.replays = stream.replays

    async def read_into(self, out: Mapping[str, Array]) -> int:
        count = await self._stream.read_into(out)
        self._opened.read.update(range(self._next, self._next + count))
        self._next += count
        return count

    async def seek(self, step: int) -> None:
        try:
            await self._stream.seek(step)
        except NotImplementedError:
            self._opened.can_seek = False
            raise
        self._next = step

    def times(self, start: int, out: Array) -> None:
        self._stream.times(start, out)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _key(rng: np.random.Generator) -> list[int]:
    """Return the key of a stream's generator: it says the seed, the epoch and the stream."""
    state: Any = rng.bit_generator.state
    return [int(word) for word in state["state"]["key"]]
