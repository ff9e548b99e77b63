"""Read the steps of one stream from the forms that user code returns: arrays, sequences, iterators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from typing_extensions import override

from streamloader.errors import ConfigError, StreamFailed, StreamloaderError
from streamloader.streams.step_writer import StepMismatch, StepWriter, describe_value

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = [
    "CLOSE_TIMEOUT_S",
    "AsyncIteratorSource",
    "IteratorSource",
    "SequenceSource",
    "StepSource",
    "step_error",
    "step_source",
]

CLOSE_TIMEOUT_S: Final = 1.0  # for a stream whose opening was cancelled; its thread closes it in any case

_END: Final = object()


class StepSource:
    """A position in the steps of a stream, and the error that ends them, which is raised after the steps before it.

    Args:
        writer: Writer for the steps.
        key: Key of the stream, for error messages.

    Attributes:
        writer: Writer for the steps.
        key: Key of the stream.
        position: Number of the next step.
        error: Error of the next step, or None.
        abandoned: Whether reading must stop, because the call that started it was cancelled.
    """

    def __init__(self, writer: StepWriter, key: str) -> None:
        self.writer = writer
        self.key = key
        self.position = 0
        self.error: StreamloaderError | None = None
        self.abandoned = False

    def read(self, out: Mapping[str, Array], count: int) -> int:
        """Fill up to `count` rows of `out` and return their number, which is lower before an error or at the end."""
        raise NotImplementedError

    def skip_to(self, step: int) -> None:
        """Make a later step the next one, or stop at the end if there are fewer steps."""
        raise NotImplementedError

    def _keep_error(self, error: Exception) -> None:
        """Keep the error of the step at this position, to be raised when that step is due."""
        self.error = step_error(self.key, self.position, error)
        self.error.__cause__ = error

    def _check_error(self, rows: int) -> int:
        """Return `rows`, or raise the kept error if there are no rows before it."""
        if self.error is not None and rows == 0:
            raise self.error
        return rows


class SequenceSource(StepSource):
    """Steps with random access: a sequence of them, or an array for each field.

    Args:
        source: Sequence of steps, or a mapping of field name -> array.
        length: Number of steps.
        writer: Writer for the steps.
        key: Key of the stream, for error messages.
    """

    def __init__(self, source: Any, length: int, writer: StepWriter, key: str) -> None:
        super().__init__(writer, key)
        self._source = source
        self._by_column = isinstance(source, Mapping)
        self._length = length

    @override
    def read(self, out: Mapping[str, Array], count: int) -> int:
        # Arrays are read block by block; a block with an error is read again step by step.
        self.error = None
        count = max(0, min(count, self._length - self.position))
        if self._by_column and count and self._read_block(out, count):
            return count
        rows = 0
        try:
            while rows < count and not self.abandoned:
                self.writer.write_step(out, rows, self._read_step(self.position))
                rows += 1
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised when its step is due
            self._keep_error(error)
        return self._check_error(rows)

    def _read_block(self, out: Mapping[str, Array], count: int) -> bool:
        start, end = self.position, self.position + count
        try:
            blocks = {name: np.asarray(column[start:end]) for name, column in self._source.items()}
            self.writer.write_block(out, blocks, count)
        except Exception:  # noqa: BLE001 - reading step by step finds the failing step, and raises there
            return False
        self.position = end
        return True

    def _read_step(self, step: int) -> object:
        if not self._by_column:
            return self._source[step]
        row = {name: np.asarray(column[step : step + 1]) for name, column in self._source.items()}
        if any(len(block) != 1 for block in row.values()):
            raise StepMismatch(f"the array ends before step {step}, but its length is {self._length}")
        return {name: block[0] for name, block in row.items()}

    @override
    def skip_to(self, step: int) -> None:
        self.position = min(step, self._length)  # may also go back


class IteratorSource(StepSource):
    """Steps of an iterator, which runs in the lane's thread.

    Args:
        iterable: Iterable of steps.
        writer: Writer for the steps.
        key: Key of the stream, for error messages.
    """

    def __init__(self, iterable: Iterable[Any], writer: StepWriter, key: str) -> None:
        super().__init__(writer, key)
        self._iterator = iter(iterable)

    @override
    def read(self, out: Mapping[str, Array], count: int) -> int:
        write_step, iterator = self.writer.write_step, self._iterator
        rows = 0
        try:
            while rows < count and self.error is None and not self.abandoned:
                step = next(iterator, _END)
                if step is _END:
                    self._iterator = iter(())
                    break
                if self.abandoned:
                    break
                write_step(out, rows, step)
                rows += 1
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised when its step is due
            self._keep_error(error)
        return self._check_error(rows)

    @override
    def skip_to(self, step: int) -> None:
        try:
            while self.position < step and not self.abandoned:
                if next(self._iterator, _END) is _END:
                    self._iterator = iter(())
                    break
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised when its step is due
            self._keep_error(error)
        self._check_error(0)

    def close(self) -> None:
        """Close the iterator if it is a generator, so that its ``finally`` runs in this thread.

        Raises:
            StreamFailed: If closing raises an error.
        """
        iterator, self._iterator = self._iterator, iter(())
        close = getattr(iterator, "close", None)
        if callable(close):
            try:
                close()
            except Exception as error:
                raise step_error(self.key, self.position, error) from error


class AsyncIteratorSource(StepSource):
    """Steps of an async iterator, which runs on the event loop.

    Args:
        iterable: Async iterable of steps.
        writer: Writer for the steps.
        key: Key of the stream, for error messages.
    """

    def __init__(self, iterable: Any, writer: StepWriter, key: str) -> None:
        super().__init__(writer, key)
        self._iterator: Any = None
        try:
            self._iterator = aiter(iterable)
        except Exception as error:
            raise step_error(key, 0, error) from error

    async def read_async(self, out: Mapping[str, Array], count: int) -> int:
        """Fill up to `count` rows of `out` and return their number, as :meth:`read` does."""
        rows = 0
        try:
            while rows < count and self.error is None and self._iterator is not None:
                step = await anext(self._iterator, _END)
                if step is _END:
                    await self.close_async()
                    break
                self.writer.write_step(out, rows, step)
                rows += 1
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised when its step is due
            self._keep_error(error)
        return self._check_error(rows)

    async def skip_async(self, step: int) -> None:
        """Make a later step the next one, as :meth:`skip_to` does."""
        try:
            while self.position < step and self._iterator is not None:
                if await anext(self._iterator, _END) is _END:
                    await self.close_async()
                    break
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised when its step is due
            self._keep_error(error)
        self._check_error(0)

    async def close_async(self) -> None:
        """Close the iterator if it is an async generator.

        Raises:
            StreamFailed: If closing raises an error.
        """
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "aclose", None)
        if callable(close):
            try:
                await close()
            except Exception as error:
                raise step_error(self.key, self.position, error) from error


def step_source(result: Any, writer: StepWriter, key: str) -> StepSource:
    """Create the step source for the result of a user's ``make``.

    Raises:
        ConfigError: If `result` cannot be iterated.
        StreamFailed: If user code raises an error, or arrays differ in length.
    """
    if isinstance(result, (bytes, bytearray, memoryview)):
        result = np.frombuffer(result, np.uint8)
    if isinstance(result, Mapping):
        return _column_source(result, writer, key)
    if writer.only_field is not None and hasattr(result, "__array__") and getattr(result, "shape", ()) != ():
        return _column_source({writer.only_field: result}, writer, key)
    if isinstance(result, (list, tuple, range)):
        return SequenceSource(result, len(result), writer, key)
    if isinstance(result, str):
        raise ConfigError(f"make returned text for stream {key!r}: encode it to bytes, or use TextStreams", stream=key)
    if result is None:
        raise ConfigError(f"make returned None for stream {key!r}: did it forget to return, or to yield?", stream=key)
    try:
        return IteratorSource(result, writer, key)
    except TypeError as error:
        raise ConfigError(
            f"make must return an iterable of the steps of stream {key!r}, got {describe_value(result)}",
            stream=key,
        ) from error
    except Exception as error:
        raise step_error(key, 0, error) from error


def _column_source(columns: Mapping[Any, Any], writer: StepWriter, key: str) -> StepSource:
    try:
        columns = {
            name: column if hasattr(column, "__array__") else np.asarray(column)
            for name, column in writer.check_names(columns).items()
        }
        lengths = {name: len(column) for name, column in columns.items()}
    except Exception as error:
        raise step_error(key, 0, error) from error
    if len(set(lengths.values())) > 1:
        raise StreamFailed(f"the arrays of stream {key!r} differ in length: {lengths}", stream=key, offset=0)
    return SequenceSource(columns, next(iter(lengths.values())), writer, key)


def step_error(key: str, step: int, error: Exception) -> StreamloaderError:
    """Build the error to raise for `error`, which user code raised at `step`."""
    if isinstance(error, StreamloaderError):
        return error
    if isinstance(error, StepMismatch):
        return StreamFailed(f"stream {key!r}, step {step}: {error}", stream=key, offset=step)
    kind = type(error).__name__
    return StreamFailed(f"stream {key!r}, step {step}: {kind}: {error}", stream=key, offset=step, cause=kind)
