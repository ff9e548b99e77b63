"""Playing the steps of one stream from whatever form user code has them in: arrays, sequences, iterators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.errors import ConfigError, StreamFailed, StreamloaderError
from streamloader.streams.step_writer import Misfit, StepWriter, describe

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["CLOSING", "AsyncSteps", "Indexed", "Iterated", "Steps", "step_error", "steps_of"]

CLOSING: Final = 1.0  # seconds to wait for a stream whose opening was cancelled; its thread closes it in any case

_END: Final = object()


class Steps:
    """A position in the steps of a stream, and the error that ends them, kept until it is its turn."""

    def __init__(self, writer: StepWriter, key: str) -> None:
        self.writer = writer
        self.key = key
        self.position = 0
        self.error: StreamloaderError | None = None
        self.abandoned = False

    def read(self, out: Mapping[str, Array], count: int) -> int:
        """Fill up to `count` rows: fewer before an error or at the end."""
        raise NotImplementedError

    def skip_to(self, step: int) -> None:
        """Make `step`, which lies ahead, the next one; stay at the end if there are fewer."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Keep `error`, which arose at this position, to be raised where its step would be delivered."""
        self.error = step_error(self.key, self.position, error)
        self.error.__cause__ = error

    def delivered(self, rows: int) -> int:
        """Return `rows`, or raise the error that is due when there are none."""
        if self.error is not None and rows == 0:
            raise self.error
        return rows


class Indexed(Steps):
    """Steps that are all there: a sequence of them, or an array for each field."""

    def __init__(self, source: Any, length: int, writer: StepWriter, key: str) -> None:
        super().__init__(writer, key)
        self._source = source
        self._by_column = isinstance(source, Mapping)
        self._length = length

    def read(self, out: Mapping[str, Array], count: int) -> int:
        """Fill rows by blocks; a block that does not fit is looked at step by step."""
        self.error = None
        count = max(0, min(count, self._length - self.position))
        if self._by_column and count and self._read_block(out, count):
            return count
        rows = 0
        try:
            while rows < count and not self.abandoned:
                self.writer.put(out, rows, self._at(self.position))
                rows += 1
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised in its turn
            self.failed(error)
        return self.delivered(rows)

    def _read_block(self, out: Mapping[str, Array], count: int) -> bool:
        begin, end = self.position, self.position + count
        try:
            blocks = {name: np.asarray(column[begin:end]) for name, column in self._source.items()}
            self.writer.put_block(out, blocks, count)
        except Exception:  # noqa: BLE001 - reading step by step finds the very step, and raises there
            return False
        self.position = end
        return True

    def _at(self, step: int) -> object:
        if not self._by_column:
            return self._source[step]
        row = {name: np.asarray(column[step : step + 1]) for name, column in self._source.items()}
        if any(len(block) != 1 for block in row.values()):
            raise Misfit(f"the array ends before step {step}, but its length is {self._length}")
        return {name: block[0] for name, block in row.items()}

    def skip_to(self, step: int) -> None:
        """Go to `step`, which may also lie behind."""
        self.position = min(step, self._length)


class Iterated(Steps):
    """Steps that come one by one from an iterator; it lives in the lane's thread."""

    def __init__(self, iterable: Iterable[Any], writer: StepWriter, key: str) -> None:
        super().__init__(writer, key)
        self._iterator = iter(iterable)

    def read(self, out: Mapping[str, Array], count: int) -> int:
        """Fill rows until there are `count`, or the iterator ends."""
        put, iterator = self.writer.put, self._iterator
        rows = 0
        try:
            while rows < count and self.error is None and not self.abandoned:
                step = next(iterator, _END)
                if step is _END:
                    self._iterator = iter(())
                    break
                if self.abandoned:
                    break
                put(out, rows, step)
                rows += 1
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised in its turn
            self.failed(error)
        return self.delivered(rows)

    def skip_to(self, step: int) -> None:
        """Pull steps and drop them until `step` is next."""
        try:
            while self.position < step and not self.abandoned:
                if next(self._iterator, _END) is _END:
                    self._iterator = iter(())
                    break
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised in its turn
            self.failed(error)
        self.delivered(0)

    def close(self) -> None:
        """Close a generator, so that its ``finally`` runs here and now."""
        iterator, self._iterator = self._iterator, iter(())
        close = getattr(iterator, "close", None)
        if callable(close):
            try:
                close()
            except Exception as error:
                raise step_error(self.key, self.position, error) from error


class AsyncSteps(Steps):
    """Steps that are awaited on the event loop."""

    def __init__(self, iterable: Any, writer: StepWriter, key: str) -> None:
        super().__init__(writer, key)
        self._iterator: Any = None
        try:
            self._iterator = aiter(iterable)
        except Exception as error:
            raise step_error(key, 0, error) from error

    async def read_async(self, out: Mapping[str, Array], count: int) -> int:
        """Do what :meth:`read` does."""
        rows = 0
        try:
            while rows < count and self.error is None and self._iterator is not None:
                step = await anext(self._iterator, _END)
                if step is _END:
                    await self.close_async()
                    break
                self.writer.put(out, rows, step)
                rows += 1
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised in its turn
            self.failed(error)
        return self.delivered(rows)

    async def skip_async(self, step: int) -> None:
        """Do what :meth:`skip_to` does."""
        try:
            while self.position < step and self._iterator is not None:
                if await anext(self._iterator, _END) is _END:
                    await self.close_async()
                    break
                self.position += 1
        except Exception as error:  # noqa: BLE001 - kept, and raised in its turn
            self.failed(error)
        self.delivered(0)

    async def close_async(self) -> None:
        """Close an async generator."""
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "aclose", None)
        if callable(close):
            try:
                await close()
            except Exception as error:
                raise step_error(self.key, self.position, error) from error


def steps_of(made: Any, writer: StepWriter, key: str) -> Steps:
    """Choose how to play what ``make`` returned."""
    if isinstance(made, (bytes, bytearray, memoryview)):
        made = np.frombuffer(made, np.uint8)
    if isinstance(made, Mapping):
        return _columns(made, writer, key)
    if writer.only is not None and hasattr(made, "__array__") and getattr(made, "shape", ()) != ():
        return _columns({writer.only: made}, writer, key)
    if isinstance(made, (list, tuple, range)):
        return Indexed(made, len(made), writer, key)
    if isinstance(made, str):
        raise ConfigError(f"make returned text for stream {key!r}: encode it to bytes, or see TextStreams", stream=key)
    if made is None:
        raise ConfigError(f"make returned None for stream {key!r}: did it forget to return, or to yield?", stream=key)
    try:
        return Iterated(made, writer, key)
    except TypeError as error:
        raise ConfigError(
            f"make must return the steps of stream {key!r} as something that can be iterated, got {describe(made)}",
            stream=key,
        ) from error
    except Exception as error:
        raise step_error(key, 0, error) from error


def _columns(columns: Mapping[Any, Any], writer: StepWriter, key: str) -> Steps:
    try:
        columns = {
            name: column if hasattr(column, "__array__") else np.asarray(column)
            for name, column in writer.by_name(columns).items()
        }
        lengths = {name: len(column) for name, column in columns.items()}
    except Exception as error:
        raise step_error(key, 0, error) from error
    if len(set(lengths.values())) > 1:
        raise StreamFailed(f"the arrays of stream {key!r} differ in length: {lengths}", stream=key, offset=0)
    return Indexed(columns, next(iter(lengths.values())), writer, key)


def step_error(key: str, step: int, error: Exception) -> StreamloaderError:
    """Return what to raise for `error`, which user code raised at `step`."""
    if isinstance(error, StreamloaderError):
        return error
    if isinstance(error, Misfit):
        return StreamFailed(f"stream {key!r}, step {step}: {error}", stream=key, offset=step)
    kind = type(error).__name__
    return StreamFailed(f"stream {key!r}, step {step}: {kind}: {error}", stream=key, offset=step, cause=kind)
