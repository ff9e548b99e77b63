"""Streams of user code: a list of items, and a function that returns the steps of one item."""

from __future__ import annotations

import copy
import inspect
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import anyio
import numpy as np

from streamloader.errors import ClosedError, ConfigError
from streamloader.stores.addresses import make_unique_keys
from streamloader.stream_table import StreamTable, pack_column
from streamloader.streams.base import Stream, StreamDataset
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_sources import (
    CLOSE_TIMEOUT_S,
    AsyncIteratorSource,
    IteratorSource,
    SequenceSource,
    StepSource,
    step_error,
    step_source,
)
from streamloader.streams.step_writer import StepWriter, describe_value, qualified_name
from streamloader.values import Array, Field, StreamInfo, as_fields

__all__ = ["IterStreams"]

Lengths: TypeAlias = "Sequence[int | None] | Array | Callable[[Any], int | None] | None"

_UNSET: Final = object()
_UNKNOWN_LENGTH: Final = -1


class IterStreams(StreamDataset):
    """One stream for each item, with the steps that ``make(item, rng)`` returns.

    Example::

        def walk(item, rng):
            position = np.zeros(2, np.float32)
            for _ in range(1000):
                position = position + rng.normal(size=2)
                yield position

        IterStreams(range(64), walk, fields=Field((2,), "float32"), lengths=lambda item: 1000)

    Args:
        items: Sequence of items, or an iterable that is read once. It is sent to the workers, so prefer names to data.
            In a list or tuple, an item that is a string or path is the key of its stream; otherwise the key is the
            item's number.
        make: Function that returns the steps of a stream. It is called with (item, rng) if it has a second required
            parameter or one named ``rng``, otherwise with (item). It returns one of these forms:

            * a generator, an iterator, or any iterable. The call of `make`, every step, and the closing of a generator
              run in one thread that belongs to the lane, so they may block;
            * an async generator or async iterable (or a coroutine that returns any of these forms), which runs on the
              worker's event loop and must not block;
            * a NumPy array, or an object that converts to one slice by slice (a memory map, an HDF5 dataset), with
              time as its first axis; bytes; or a dict with such an array for each field. It is read in blocks, and
              seeking is free;
            * a list, tuple or range of steps. Seeking is free.

            A step is an array or scalar (for a single field), or a dict with exactly the names of `fields`. Steps are
            copied immediately, so one array may be reused for every step.
        fields: Fields of a step: a :class:`~streamloader.Field`, or a mapping of name -> Field.
        lengths: Number of steps of each stream: a sequence of ints (None if unknown), or a function of the item.
            Defaults to unknown lengths, which make ``len(loader)`` unknown.

    For millions of items, pass a range, an array, or strings, and lengths as an array of integers: they are kept and
    sent to the workers as arrays, without an object for each stream. An array of lengths is not copied.

    `rng` is a ``numpy.random.Generator`` that depends only on seed, epoch and stream. A stream that takes all its
    randomness from it is the same on any number of workers, and can be resumed. To go back, or to start in the middle,
    `make` is called again with the same `rng` and steps are skipped, so a generator must repeat itself to be resumed
    exactly.

    Raises:
        ConfigError: If the arguments contradict each other, or `make` returns something that cannot be iterated.
        StreamFailed: If `make` or its iterable raises an error, or a step does not match `fields`. Earlier steps are
            delivered first. ``offset`` is the number of the step.
    """

    def __init__(
        self,
        items: Iterable[Any],
        make: Callable[..., Any],
        *,
        fields: Mapping[str, Field] | Field,
        lengths: Lengths = None,
    ) -> None:
        given: object = items
        if isinstance(given, (str, bytes)) or not (isinstance(given, (Iterable, Sequence)) and _has_items(given)):
            hint = "; did you mean range(...)?" if isinstance(given, int) else ""
            raise ConfigError(f"items must be a sequence, one for each stream, got {describe_value(given)}{hint}")
        if not callable(make):
            raise ConfigError(f"make must be a function of an item, got {describe_value(make)}")
        self._items = items if isinstance(items, (Sequence, np.ndarray)) else list(items)
        self._named = isinstance(self._items, (list, tuple))
        self._make = make
        self._rng_style = _detect_rng_style(make)
        self._fields = as_fields(fields)
        self._lengths = lengths
        if lengths is not None and not callable(lengths) and not (hasattr(lengths, "__len__") and _has_items(lengths)):
            raise ConfigError(
                f"lengths must be a sequence of numbers, a function of an item, or None, got {describe_value(lengths)}"
            )
        if lengths is not None and not callable(lengths) and len(lengths) != len(self._items):
            raise ConfigError(f"lengths has {len(lengths)} entries for {len(self._items)} items")

    def __getstate__(self) -> dict[str, Any]:
        """Pack lists of strings or numbers into arrays, which workers share."""
        state = self.__dict__.copy()
        for name in ("_items", "_lengths"):
            if type(state[name]) in (list, tuple):
                state[name] = pack_column(state[name])
        return state

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields given by the user. A single one without a name is called ``"data"``."""
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """The qualified name of `make`."""
        return {"make": qualified_name(self._make)}

    async def index(self) -> Sequence[StreamInfo]:
        """Describe one stream for each item, in order.

        Raises:
            ConfigError: If `lengths` raises an error, or does not return a number of steps.
        """
        return await in_lane_thread(self._index)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Call ``make`` for the item of `info`."""
        item = self._items[info.extra["item"]]
        stream = _IterStream(self._bind_make(item, rng), StepWriter(self._fields), info.key, _runs_on_loop(self._make))
        try:
            await stream.start()
        except BaseException:  # after a cancellation, the thread continues and creates the stream
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await stream.aclose()
            raise
        return stream

    def _index(self) -> StreamTable:
        count = len(self._items)
        keys: Sequence[str] | int = count
        if self._named and any(isinstance(item, (str, os.PathLike)) for item in self._items):
            keys = make_unique_keys(_item_name(item, number) for number, item in enumerate(self._items))
        return StreamTable(keys, self._resolve_lengths(keys), {"item": range(count)})

    def _resolve_lengths(self, keys: Sequence[str] | int) -> Array | None:
        given = self._lengths
        if given is None:
            return None
        if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu" and given.dtype != np.uint64:
            negative = len(given) and int(given.min()) < 0  # the loop below raises an error that names the stream
            if not negative:
                return given
        numbers = range(len(self._items))
        return np.fromiter((self._resolve_length(number, keys) for number in numbers), np.int64, len(numbers))

    def _resolve_length(self, number: int, keys: Sequence[str] | int) -> int:
        try:
            given = self._lengths(self._items[number]) if callable(self._lengths) else self._lengths[number]  # type: ignore[index]
            length = _UNKNOWN_LENGTH if given is None else operator.index(given)
        except Exception as error:
            key = _stream_key(keys, number)
            raise ConfigError(f"no length of stream {key!r}: {type(error).__name__}: {error}", stream=key) from error
        if given is not None and not 0 <= length < 1 << 63:
            key = _stream_key(keys, number)
            wrong = "must not be negative" if length < 0 else "is too large"
            raise ConfigError(f"the length of stream {key!r} is {length}; it {wrong}", stream=key)
        return length

    def _bind_make(self, item: Any, rng: np.random.Generator) -> Callable[[], Any]:
        if not self._rng_style:
            return lambda: self._make(item)
        initial = copy.deepcopy(rng)  # each call of make receives the same initial state
        if self._rng_style == "keyword":
            return lambda: self._make(item, rng=copy.deepcopy(initial))
        return lambda: self._make(item, copy.deepcopy(initial))


class _IterStream(Stream):
    """Reads the steps that ``make`` returned for one item.

    Args:
        make: Function that returns the steps.
        writer: Writer for the steps.
        key: Key of the stream, for error messages.
        on_loop: Whether to call `make` on the event loop instead of the lane's thread.
    """

    def __init__(self, make: Callable[[], Any], writer: StepWriter, key: str, on_loop: bool) -> None:
        self._make = make
        self._writer = writer
        self._key = key
        self._on_loop = on_loop
        self._source: StepSource | None = None
        self._pending: Any = _UNSET  # a result of make that must be awaited before it provides steps
        self._in_thread = False
        self._closed = False

    async def start(self) -> None:
        """Call ``make`` and create the source of the steps."""
        if self._on_loop:
            self._call_make()
        else:
            self._in_thread = True  # until the thread is known to be done, even if this task is cancelled
            await in_lane_thread(self._call_make)
            self._in_thread = False
        result, self._pending = self._pending, _UNSET
        if result is _UNSET:
            return
        if inspect.isawaitable(result):
            try:
                result = await result
            except Exception as error:
                raise step_error(self._key, 0, error) from error
        if hasattr(result, "__aiter__"):
            self._source = AsyncIteratorSource(result, self._writer, self._key)
        else:
            self._in_thread = True
            await in_lane_thread(self._create_source, result)
            self._in_thread = False

    def _call_make(self) -> None:
        try:
            result = self._make()
        except Exception as error:
            raise step_error(self._key, 0, error) from error
        if self._on_loop or inspect.isawaitable(result) or hasattr(result, "__aiter__"):
            self._pending = result
        else:
            self._create_source(result)

    def _create_source(self, result: Any) -> None:
        self._source = step_source(result, self._writer, self._key)

    @property
    def replays(self) -> bool:  # type: ignore[override]
        """Whether the steps come from an iterator, which can only start again."""
        return self._source is not None and not isinstance(self._source, SequenceSource)

    async def read_into(self, out: Mapping[str, Array]) -> int:
        source = self._require_source()
        count = len(next(iter(out.values())))
        try:
            if isinstance(source, AsyncIteratorSource):
                return await source.read_async(out, count)
            return await in_lane_thread(source.read, out, count)
        except BaseException as error:
            # A cancelled call continues in its thread. It must not fill an array that is no longer its own.
            source.abandoned = not isinstance(error, Exception)
            raise

    async def seek(self, step: int) -> None:
        if step < 0:
            raise ConfigError(f"cannot seek to step {step} of stream {self._key!r}", stream=self._key)
        source = self._require_source()
        if not isinstance(source, SequenceSource) and (step < source.position or source.error is not None):
            await self._close_source()
            await self.start()
            source = self._require_source()
        if isinstance(source, AsyncIteratorSource):
            await source.skip_async(step)
        else:
            await in_lane_thread(source.skip_to, step)

    async def aclose(self) -> None:
        self._closed = True
        await self._close_source()

    async def _close_source(self) -> None:
        if self._in_thread or isinstance(self._source, IteratorSource):
            await in_lane_thread(self._close_in_thread)
        source, self._source = self._source, None
        if isinstance(source, AsyncIteratorSource):
            await source.close_async()

    def _close_in_thread(self) -> None:
        self._in_thread = False
        source, self._source = self._source, None
        pending, self._pending = self._pending, _UNSET
        if inspect.iscoroutine(pending):
            pending.close()  # it will not be awaited
        if isinstance(source, IteratorSource):
            source.close()

    def _require_source(self) -> StepSource:
        if self._source is None:
            state = "was closed" if self._closed else "did not start"
            raise ClosedError(f"stream {self._key!r} {state}", stream=self._key)
        return self._source


def _stream_key(keys: Sequence[str] | int, number: int) -> str:
    return str(number) if isinstance(keys, int) else keys[number]


def _item_name(item: object, number: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        name = os.fspath(item)
        return os.fsdecode(name) or str(number)
    return str(number)


def _runs_on_loop(make: Callable[..., Any]) -> bool:
    """Return whether `make` itself must be called on the event loop: async functions and async generators."""
    call = getattr(make, "__call__", None)  # noqa: B004 - the method of a callable object
    return any(test(it) for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction) for it in (make, call))


def _has_items(values: object) -> bool:
    """Return whether a sequence can have items, as opposed to an array of a single value."""
    return getattr(values, "ndim", 1) != 0


def _detect_rng_style(make: Callable[..., Any]) -> str:
    """Return how `make` takes its rng: ``"positional"``, ``"keyword"``, or ``""`` if it takes none.

    Raises:
        ConfigError: If `make` can be called in neither way.
    """
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # many built-in functions have no signature; they are called with the item
        return ""
    parameters = signature.parameters.values()
    required = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    named = signature.parameters.get("rng")
    if named is not None and named not in required and named.kind is not named.VAR_POSITIONAL:
        style = "positional" if named.kind is named.POSITIONAL_ONLY else "keyword"
    else:
        style = "positional" if len(required) > 1 else ""
    try:
        signature.bind(*(None,) * (1 + (style == "positional")), **({"rng": None} if style == "keyword" else {}))
    except TypeError as error:
        raise ConfigError(f"make is called as make(item, rng) or make(item), but it takes {signature}") from error
    return style
