"""Shuffle any iterable data set by a buffer, with a state that resumes exactly and holds no samples.

Sample n gets the key n + u, with u random between 0 and twice the size of the buffer. The buffer is filled, and then
the sample with the smallest key leaves it for each one that enters. Keys are a pure function of seed, epoch, rank,
worker and n. The numbers of the samples in the buffer thus describe it; on resuming, these samples are read again.
No sample stays in the buffer for more than three times its size, which bounds what is read again.
"""

from __future__ import annotations

import base64
import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import numpy as np

from streamloader.arguments import check_integer
from streamloader.datasets.random_order import draw_words
from streamloader.datasets.workers import get_dataloader_worker
from streamloader.distributed import resolve_rank
from streamloader.errors import ConfigError, StateError
from streamloader.torch_datasets import IterableDataset

__all__ = ["ShuffleDataset"]

T = TypeVar("T")

_PURPOSE: Final = 17  # of random words: keys of samples
_KEYS_PER_BLOCK: Final = 1024
_MAX_RANKS: Final = 1 << 16
_MAX_COUNT: Final = 1 << 48
_SPREAD: Final = 2  # range of the random part of a key, in sizes of the buffer
_SNAPSHOTS_PER_BUFFER: Final = 8
_STATE_VERSION: Final = 1


class ShuffleDataset(IterableDataset[T]):
    """The samples of an iterable data set in a random order: each of them once, mixed within a buffer.

    The order follows from seed, epoch, rank, worker and the order of the data set. A data set with ``set_epoch`` gets
    the number of the epoch at the start of each iteration. An iteration that reaches its end is followed by the next
    epoch.

    :meth:`state_dict` is exact to the sample if the data set has ``state_dict`` and ``load_state_dict``. Samples in the
    buffer are not saved: they are read again on resuming, with up to three times as many others.

    Args:
        dataset: Iterable data set. It divides itself among ranks and workers, if that is needed.
        buffer_size: Number of samples in the buffer. The first sample comes when it is full. Defaults to 1000.
        seed: Seed of the order.
        rank: Rank of this process. Defaults to detecting it, see :func:`streamloader.distributed.resolve_rank`.
        world_size: Number of ranks.

    Attributes:
        dataset: The data set.
        epoch: Number of the epoch of the next iteration, or of the running one.

    Raises:
        ConfigError: If an argument is invalid.
    """

    def __init__(
        self,
        dataset: IterableDataset[T],
        buffer_size: int = 1000,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        buffer_size, seed = check_integer("buffer_size", buffer_size), check_integer("seed", seed)
        if buffer_size < 1:
            raise ConfigError(f"buffer_size={buffer_size}: must be 1 or more")
        if rank is not None or world_size is not None:
            resolve_rank(rank, world_size)
        if not hasattr(dataset, "__iter__"):
            raise ConfigError(f"ShuffleDataset takes an iterable data set, got {type(dataset).__name__}")
        self.dataset = dataset
        self.buffer_size = buffer_size
        self.epoch = 0
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._buffer: _SampleBuffer | None = None  # of the newest iteration
        self._state: dict[str, Any] | None = None  # loaded, and not continued yet

    def __len__(self) -> int:
        """Return the length of the data set, if it has one."""
        return len(self.dataset)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch of the next iteration, which then starts at its beginning."""
        self.epoch = check_integer("epoch", epoch, 0)
        self._state = self._buffer = None

    def __iter__(self) -> Iterator[T]:
        """Yield each sample once."""
        state, self._state = self._state, None
        keys = _SampleKeys(self._seed, self.epoch, self._identify_worker(), _SPREAD * self.buffer_size)
        buffer = self._buffer = _SampleBuffer(self.dataset, keys, self.buffer_size)
        if state is None:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(self.epoch)
            buffer.start()
        else:
            if state["worker"] != self._identify_worker():
                raise StateError(
                    f"the state is that of rank and worker {state['worker']}, and this is {self._identify_worker()}: "
                    "resume with the same numbers of ranks and workers"
                )
            buffer.restore(state)
        return self._iterate(buffer)

    def _iterate(self, buffer: _SampleBuffer) -> Iterator[T]:
        try:
            while buffer.fill():
                yield buffer.pop()
        finally:
            buffer.close()
        if self._buffer is buffer:
            self.epoch, self._buffer = self.epoch + 1, None

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last sample that was yielded, as plain JSON values.

        Raises:
            StateError: If the data set has no ``state_dict`` and ``load_state_dict``.
        """
        if not _has_states(self.dataset):
            raise StateError(
                f"{type(self.dataset).__name__} has no state_dict and load_state_dict, so a shuffled iteration over it "
                "cannot be resumed: shuffle a data set that has them"
            )
        if self._state is not None:
            return dict(self._state)
        buffer = self._buffer
        state: dict[str, Any] = {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "buffer_size": self.buffer_size,
            "epoch": self.epoch,
        }
        state["worker"] = self._identify_worker()
        if buffer is None:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(self.epoch)
            return state | {"first": 0, "taken": 0, "held": "", "dataset": self.dataset.state_dict()}  # type: ignore[attr-defined]
        return state | buffer.describe()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the next iteration after the last sample of a state.

        Raises:
            StateError: If the state is damaged, or was saved with another seed or size of the buffer.
        """
        if not _has_states(self.dataset):
            raise StateError(f"{type(self.dataset).__name__} has no load_state_dict, so it cannot be resumed")
        _check_state(state)
        for name, value in (("seed", self._seed), ("buffer_size", self.buffer_size)):
            if state[name] != value:
                raise StateError(f"the state was saved with {name}={state[name]!r:.40}, and this is {value!r}")
        self.epoch, self._buffer = state["epoch"], None
        self._state = {**state, "worker": list(state["worker"])}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running iteration."""
        return self.__dict__ | {"_buffer": None}

    def _identify_worker(self) -> list[int]:
        worker = get_dataloader_worker()
        return [*resolve_rank(self._rank, self._world_size), worker.number, worker.workers]


class _SampleKeys:
    """Keys of samples, by which they leave the buffer. They are multiples of 2**-32, as integers.

    Args:
        seed: Seed of the order.
        epoch: Number of the epoch.
        worker: Rank, number of ranks, number of the worker, number of workers.
        spread: Range of the random part.
    """

    def __init__(self, seed: int, epoch: int, worker: list[int], spread: int) -> None:
        self._seed, self._epoch = seed, epoch
        self._stream = (worker[0] * worker[3] + worker[2]) << 40
        self._spread = spread
        self._block = -1
        self._words: list[int] = []

    def get(self, number: int) -> int:
        """Return the key of a sample."""
        block, row = divmod(number, _KEYS_PER_BLOCK)
        if block != self._block:
            words = draw_words(
                _KEYS_PER_BLOCK, seed=self._seed, epoch=self._epoch, purpose=_PURPOSE, number=self._stream + block
            )
            self._words, self._block = (words >> np.uint64(32)).tolist(), block
        return (number << 32) + self._words[row] * self._spread


class _SampleBuffer:
    """The buffer of one iteration.

    Args:
        dataset: Data set that is shuffled.
        keys: Keys of its samples.
        size: Number of samples in the buffer.
    """

    def __init__(self, dataset: Any, keys: _SampleKeys, size: int) -> None:
        self._dataset = dataset
        self._keys = keys
        self._size = size
        self._heap: list[tuple[int, int, Any]] = []  # key, number, sample
        self._taken = 0  # number of samples that were taken from the data set
        self._has_states = _has_states(dataset)
        self._snapshot_interval = max(1, size // _SNAPSHOTS_PER_BUFFER)
        self._snapshots: deque[tuple[int, Any]] = deque()  # number of the next sample, state of the data set
        self._iterator: Iterator[Any] | None = None

    def start(self) -> None:
        """Start at the beginning of the data set."""
        self._iterator = iter(self._dataset)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read the samples of a saved buffer again."""
        self._dataset.load_state_dict(state["dataset"])
        self._taken, held = state["first"], _unpack_bits(state["held"])
        self._snapshots.append((self._taken, state["dataset"]))
        self._iterator = iter(self._dataset)
        for offset in range(state["taken"] - state["first"]):
            if not self._take(keep=offset in held):
                raise StateError("the data set has fewer samples than when the state was saved")

    def fill(self) -> bool:
        """Fill the buffer. Return whether it has samples."""
        while len(self._heap) < self._size and self._take():
            pass
        return bool(self._heap)

    def pop(self) -> Any:
        """Remove the sample with the smallest key."""
        return heapq.heappop(self._heap)[2]

    def close(self) -> None:
        """End the iteration over the data set."""
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "close", None)
        if close is not None:
            close()

    def describe(self) -> dict[str, Any]:
        """Return the numbers of the samples in the buffer, and a state of the data set before all of them."""
        numbers = sorted(number for _, number, _ in self._heap)
        oldest = numbers[0] if numbers else self._taken
        # At its end, the data set may describe its next epoch. The last one before it is then the one to return to.
        earlier = [each for each in self._snapshots if each[0] <= oldest]
        first, state = earlier[-1] if earlier else (0, self._dataset.state_dict())
        held = _pack_bits([number - first for number in numbers])
        return {"first": first, "taken": self._taken, "held": held, "dataset": state}

    def _take(self, *, keep: bool = True) -> bool:
        """Take the next sample of the data set. Return False at its end."""
        if self._iterator is None:
            return False
        if self._has_states and self._taken % self._snapshot_interval == 0:
            self._add_snapshot()
        try:
            sample = next(self._iterator)
        except StopIteration:
            self._iterator = None
            return False
        if keep:
            heapq.heappush(self._heap, (self._keys.get(self._taken), self._taken, sample))
        self._taken += 1
        return True

    def _add_snapshot(self) -> None:
        self._snapshots.append((self._taken, self._dataset.state_dict()))
        oldest = min((number for _, number, _ in self._heap), default=self._taken)
        while len(self._snapshots) > 1 and self._snapshots[1][0] <= oldest:
            self._snapshots.popleft()


def _has_states(dataset: object) -> bool:
    return hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")


def _pack_bits(numbers: list[int]) -> str:
    """Return a set of small numbers as base64 of a bit for each number."""
    bits = sum(1 << number for number in numbers)
    return base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


def _unpack_bits(text: str) -> set[int]:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def _check_state(state: Mapping[str, Any]) -> None:
    """Check the types of a state.

    Raises:
        StateError: If :meth:`ShuffleDataset.state_dict` cannot have made it.
    """
    if not isinstance(state, Mapping) or state.get("version") != _STATE_VERSION:
        raise StateError("this is no state of a ShuffleDataset, or one of another version of the package")
    first, taken, worker, held = (state.get(name) for name in ("first", "taken", "worker", "held"))
    numbers = [state.get("epoch"), state.get("buffer_size"), first, taken]
    is_valid = (
        all(name in state for name in ("seed", "dataset"))
        and all(type(each) is int and 0 <= each < _MAX_COUNT for each in numbers)
        and isinstance(worker, (list, tuple))
        and len(worker) == len(("rank", "ranks", "number", "workers"))
        and all(type(each) is int and 0 <= each < _MAX_RANKS for each in worker)
        and isinstance(held, str)
    )
    try:
        is_valid = is_valid and all(number < taken - first for number in _unpack_bits(str(held)))  # type: ignore[operator]
    except ValueError:
        is_valid = False
    if not is_valid:
        raise StateError("the state of the ShuffleDataset is damaged")
