"""Streams of your own in three lines: a list of items, and a function that turns one of them into steps."""

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
from streamloader.stores.addresses import unique_keys
from streamloader.stream_table import StreamTable, pack_column
from streamloader.streams.base import Stream, StreamDataset
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_sources import CLOSING, AsyncSteps, Indexed, Iterated, Steps, step_error, steps_of
from streamloader.streams.step_writer import StepWriter, describe, qualified_name
from streamloader.values import Array, Field, StreamInfo, as_fields

__all__ = ["IterStreams"]

Lengths: TypeAlias = "Sequence[int | None] | Array | Callable[[Any], int | None] | None"

_NOTHING: Final = object()
_UNKNOWN: Final = -1


class IterStreams(StreamDataset):
    """One stream for each item: whatever ``make(item, rng)`` yields.

    Example::

        def walk(item, rng):
            position = np.zeros(2, np.float32)
            for _ in range(1000):
                position = position + rng.normal(size=2)
                yield position

        IterStreams(range(64), walk, fields=Field((2,), "float32"), lengths=lambda item: 1000)

    Args:
        items: a sequence, or an iterable that is read once. It is sent to the workers, so prefer names to data.
            A list or tuple gives a stream whose item is a string or path that as its key, others their number.
        make: called with (item, rng) if it has a second required parameter or one called ``rng``, else with (item).
            It returns the steps of that stream, in one of these forms:

            * a generator, an iterator, or any iterable. All of it - the call of `make`, every step, closing a
              generator - runs in one thread that belongs to the lane, so it may block;
            * an async generator or async iterable (or a coroutine that returns any of these forms), which is
              awaited on the worker's event loop, so it must not block;
            * a NumPy array, or what converts to one slice by slice (a memory map, an HDF5 data set), with time as its
              first axis; bytes; or a dict of such arrays, one a field. It is read by blocks and sought for free;
            * a list, tuple or range of steps, sought for free.

            A step is an array or scalar (with a single field), or a dict of them with exactly the names of
            `fields`. It is copied at once, so one array may be reused for every step.
        fields: what a step is made of: a :class:`~streamloader.Field`, or a mapping of name -> Field.
        lengths: steps of each stream: a sequence of ints (None where unknown), or a function of the item;
            None if none is known, then ``len(loader)`` is not known either.

    Millions of items should be a range, an array, or strings, and their lengths an array of integers: these are kept
    and sent to the workers as arrays, without an object for each stream. An array of lengths is not copied.

    `rng` is a ``numpy.random.Generator`` that depends on seed, epoch and stream alone: a stream that takes all its
    randomness from it is the same on any number of workers, and can be resumed. Going back, or on from the
    middle, means to call `make` again with the same `rng` and to skip steps; nothing can be promised of a
    generator that does not repeat itself.

    Raises:
        ConfigError: the arguments do not go together, or `make` returned nothing that can be iterated.
        StreamFailed: `make` or its iterable raised, or a step is not what `fields` says. The steps before
            it are delivered first; ``offset`` is the step.
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
        if isinstance(given, (str, bytes)) or not isinstance(given, (Iterable, Sequence)):
            hint = "; did you mean range(...)?" if isinstance(given, int) else ""
            raise ConfigError(f"items must be a sequence, one for each stream, got {describe(given)}{hint}")
        if not callable(make):
            raise ConfigError(f"make must be a function of an item, got {describe(make)}")
        self._items = items if isinstance(items, (Sequence, np.ndarray)) else list(items)
        self._named = isinstance(self._items, (list, tuple))
        self._make = make
        self._takes_rng = _takes_rng(make)
        self._fields = as_fields(fields)
        self._lengths = lengths
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
        """The fields as they were given; a lone one is called ``"data"``."""
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """The qualified name of `make`."""
        return {"make": qualified_name(self._make)}

    async def index(self) -> Sequence[StreamInfo]:
        """Describe one stream for each item, in their order.

        Raises:
            ConfigError: `lengths` raised, or gave something else than a number of steps.
        """
        return await in_lane_thread(self._index)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Call ``make`` for the item of `info`."""
        item = self._items[info.extra["item"]]
        stream = _IterStream(self._maker(item, rng), StepWriter(self._fields), info.key, _runs_on_loop(self._make))
        try:
            await stream.begin()
        except BaseException:  # cancelled, perhaps: the thread goes on and makes the stream
            with anyio.move_on_after(CLOSING, shield=True):
                await stream.aclose()
            raise
        return stream

    def _index(self) -> StreamTable:
        count = len(self._items)
        keys: Sequence[str] | int = count
        if self._named and any(isinstance(item, (str, os.PathLike)) for item in self._items):
            keys = unique_keys(_name(item, number) for number, item in enumerate(self._items))
        return StreamTable(keys, self._known_lengths(keys), {"item": range(count)})

    def _known_lengths(self, keys: Sequence[str] | int) -> Array | None:
        given = self._lengths
        if given is None:
            return None
        if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu" and given.dtype != np.uint64:
            negative = len(given) and int(given.min()) < 0  # to be named
            if not negative:
                return given
        numbers = range(len(self._items))
        return np.fromiter((self._length(number, keys) for number in numbers), np.int64, len(numbers))

    def _length(self, number: int, keys: Sequence[str] | int) -> int:
        try:
            given = self._lengths(self._items[number]) if callable(self._lengths) else self._lengths[number]  # type: ignore[index]
            length = _UNKNOWN if given is None else operator.index(given)
        except Exception as error:
            key = _key(keys, number)
            raise ConfigError(f"no length of stream {key!r}: {type(error).__name__}: {error}", stream=key) from error
        if given is not None and not 0 <= length < 1 << 63:
            key = _key(keys, number)
            wrong = "must not be negative" if length < 0 else "is too large"
            raise ConfigError(f"the length of stream {key!r} is {length}; it {wrong}", stream=key)
        return length

    def _maker(self, item: Any, rng: np.random.Generator) -> Callable[[], Any]:
        if not self._takes_rng:
            return lambda: self._make(item)
        first = copy.deepcopy(rng)  # each call of make begins with the same state
        if self._takes_rng == "keyword":
            return lambda: self._make(item, rng=copy.deepcopy(first))
        return lambda: self._make(item, copy.deepcopy(first))


class _IterStream(Stream):
    """Plays what one item's ``make`` returned, whichever form it has."""

    def __init__(self, make: Callable[[], Any], writer: StepWriter, key: str, on_loop: bool) -> None:
        self._make = make
        self._writer = writer
        self._key = key
        self._on_loop = on_loop
        self._steps: Steps | None = None
        self._made: Any = _NOTHING  # what has to be awaited before it is steps
        self._in_thread = False
        self._closed = False

    async def begin(self) -> None:
        if self._on_loop:
            self._call()
        else:
            self._in_thread = True  # until it is known that the thread is done, even if this is cancelled
            await in_lane_thread(self._call)
            self._in_thread = False
        made, self._made = self._made, _NOTHING
        if made is _NOTHING:
            return
        if inspect.isawaitable(made):
            try:
                made = await made
            except Exception as error:
                raise step_error(self._key, 0, error) from error
        if hasattr(made, "__aiter__"):
            self._steps = AsyncSteps(made, self._writer, self._key)
        else:
            self._in_thread = True
            await in_lane_thread(self._settle, made)
            self._in_thread = False

    def _call(self) -> None:
        try:
            made = self._make()
        except Exception as error:
            raise step_error(self._key, 0, error) from error
        if self._on_loop or inspect.isawaitable(made) or hasattr(made, "__aiter__"):
            self._made = made
        else:
            self._settle(made)

    def _settle(self, made: Any) -> None:
        self._steps = steps_of(made, self._writer, self._key)

    @property
    def replays(self) -> bool:  # type: ignore[override]
        """Whether the steps are those of an iterator, which can only begin again."""
        return self._steps is not None and not isinstance(self._steps, Indexed)

    async def read_into(self, out: Mapping[str, Array]) -> int:
        steps = self._playing()
        count = len(next(iter(out.values())))
        try:
            if isinstance(steps, AsyncSteps):
                return await steps.read_async(out, count)
            return await in_lane_thread(steps.read, out, count)
        except BaseException as error:
            # A call that was cancelled goes on in its thread: it must not fill an array that nobody waits for.
            steps.abandoned = not isinstance(error, Exception)
            raise

    async def seek(self, step: int) -> None:
        if step < 0:
            raise ConfigError(f"cannot seek to step {step} of stream {self._key!r}", stream=self._key)
        steps = self._playing()
        if not isinstance(steps, Indexed) and (step < steps.position or steps.error is not None):
            await self._end()
            await self.begin()
            steps = self._playing()
        if isinstance(steps, AsyncSteps):
            await steps.skip_async(step)
        else:
            await in_lane_thread(steps.skip_to, step)

    async def aclose(self) -> None:
        self._closed = True
        await self._end()

    async def _end(self) -> None:
        if self._in_thread or isinstance(self._steps, Iterated):
            await in_lane_thread(self._end_in_thread)
        steps, self._steps = self._steps, None
        if isinstance(steps, AsyncSteps):
            await steps.close_async()

    def _end_in_thread(self) -> None:
        self._in_thread = False
        steps, self._steps = self._steps, None
        made, self._made = self._made, _NOTHING
        if inspect.iscoroutine(made):
            made.close()  # nobody will await it
        if isinstance(steps, Iterated):
            steps.close()

    def _playing(self) -> Steps:
        if self._steps is None:
            state = "was closed" if self._closed else "did not begin"
            raise ClosedError(f"stream {self._key!r} {state}", stream=self._key)
        return self._steps


def _key(keys: Sequence[str] | int, number: int) -> str:
    return str(number) if isinstance(keys, int) else keys[number]


def _name(item: object, number: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        name = os.fspath(item)
        return os.fsdecode(name) or str(number)
    return str(number)


def _runs_on_loop(make: Callable[..., Any]) -> bool:
    """Whether calling `make` is itself the business of the event loop, as its author would expect."""
    call = getattr(make, "__call__", None)  # noqa: B004 - the method of an object that can be called
    return any(test(it) for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction) for it in (make, call))


def _takes_rng(make: Callable[..., Any]) -> str:
    """How `make` wants its rng: ``"positional"``, ``"keyword"``, or ``""`` for not at all."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # many built-in functions tell nothing; they take what they are given
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
        how = "positional" if named.kind is named.POSITIONAL_ONLY else "keyword"
    else:
        how = "positional" if len(required) > 1 else ""
    try:
        signature.bind(*(None,) * (1 + (how == "positional")), **({"rng": None} if how == "keyword" else {}))
    except TypeError as error:
        raise ConfigError(f"make is called as make(item, rng) or make(item), but it takes {signature}") from error
    return how
