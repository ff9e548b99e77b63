"""Convert samples to another rate, layout and type, so that every result is the one of a conversion from the start.

FFmpeg's resampler is a filter with finite memory whose phase repeats: ``P = rate / g`` samples in yield
``Q = new rate / g`` samples out, with ``g`` their greatest common divisor. A conversion that starts at a multiple of P
has the phase of one from the start, and equal results once its filter holds samples only.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Protocol

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.filter import Graph

from streamloader.errors import ConfigError, UnreadableStream

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["AudioForm", "ConvertedReader", "PositionedSamples", "count_converted", "default_layout"]

_FORMATS: Final = {"float32": "flt", "int16": "s16", "int32": "s32", "float64": "dbl"}
_INPUT_FORMATS: Final = {
    "uint8": "u8",
    "int16": "s16",
    "int32": "s32",
    "int64": "s64",
    "float32": "flt",
    "float64": "dbl",
}
_FILTER_SAMPLES: Final = 64  # half of what the filter reads around a sample, and more, for equal rates
_TAIL_SAMPLES: Final = 4096  # converted to learn how many samples the end of a sound yields
_INPUT_BLOCK: Final = 1 << 14
_LAYOUTS: Final = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


class PositionedSamples(Protocol):
    """Samples that can be read from any position."""

    @property
    def rate(self) -> int:
        """Number of samples per second."""

    def __len__(self) -> int: ...

    def read(self, start: int, end: int) -> Array:
        """Return the samples [start, end), (samples, channels). The end of the sound, or an error, ends them early.

        At the end there are none. Where the first sample cannot be read, its error is raised.
        """

    def close(self) -> None:
        """Close the file."""


class AudioForm:
    """The form that samples are converted to.

    Args:
        rate: Number of samples per second.
        layout: FFmpeg's name of the channel layout.
        dtype: Type of a sample, one of ``float32``, ``int16``, ``int32`` and ``float64``.

    Raises:
        ConfigError: If a value is invalid.
    """

    def __init__(self, rate: int, layout: str, dtype: str) -> None:
        if dtype not in _FORMATS:
            raise ConfigError(f"dtype must be one of {', '.join(_FORMATS)}, got {dtype!r}")
        try:
            self.channels: int = AudioLayout(layout).nb_channels
        except (ValueError, av.error.FFmpegError) as error:
            raise ConfigError(
                f"channels must be a number of channels or a layout of FFmpeg such as 'mono' or '5.1', got {layout!r}"
            ) from error
        self.rate = rate
        self.layout = layout
        self.dtype = np.dtype(dtype)
        self.format = _FORMATS[dtype]


def default_layout(channels: int) -> str:
    """Return FFmpeg's name of the usual layout of a number of channels."""
    return _LAYOUTS.get(channels, f"{channels}c")


class ConvertedReader:
    """Reads samples of a source in another form.

    Args:
        source: Samples, which the reader closes.
        layout: FFmpeg's name of the source's channel layout.
        form: Form of the results.
    """

    def __init__(self, source: PositionedSamples, layout: str, form: AudioForm) -> None:
        self._source = source
        self._layout = layout
        self._form = form
        common = math.gcd(source.rate, form.rate)
        self._period_in, self._period_out = source.rate // common, form.rate // common
        self._length = count_converted(len(source), source.rate, form.rate)
        self._resampler: _Resampler | None = None
        self._input = 0  # next sample of the source
        self._output = 0  # number of the first sample in `_pending`
        self._pending: Array = np.empty((0, form.channels), form.dtype)
        self._is_flushed = False

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def read(self, start: int, end: int) -> Array:
        """Return the samples [start, end), (samples, channels). The end of the sound ends them early.

        Raises:
            CorruptStream: If the file does not match its index, or cannot be decoded. ``offset`` is the sample.
            StoreError: If the store fails to deliver bytes.
        """
        end = min(end, self._length)
        parts: list[Array] = []
        try:
            if start >= end:
                return self._pending[:0]
            if self._resampler is None or not self._output <= start <= self._reach(start):
                self._restart(start)
            position = start
            while position < end:
                self._convert_up_to(position)
                part = self._pending[position - self._output : end - self._output]
                parts.append(part)
                position += len(part)
        except BaseException:
            self._resampler = None  # the next read starts again
            raise
        self._drop_before(end)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Close the source."""
        self._resampler = None
        self._source.close()

    def _margin(self) -> int:
        """Return the number of samples of the source that the filter may read before a sample."""
        return _FILTER_SAMPLES * (1 + -(-self._source.rate // self._form.rate))

    def _reach(self, start: int) -> int:
        """Return the last sample up to which going on is cheaper than starting again."""
        ahead = 2 * (self._margin() + self._period_in) * self._form.rate // self._source.rate
        return self._output + len(self._pending) + ahead

    def _restart(self, start: int) -> None:
        """Make the resampler ready for a sample, at a phase that it would have there."""
        earliest = start * self._source.rate // self._form.rate - self._margin()
        periods = max(0, earliest // self._period_in) if self._source.rate != self._form.rate else max(0, start)
        self._input, self._output = periods * self._period_in, periods * self._period_out
        self._pending = self._pending[:0]
        self._is_flushed = False
        self._resampler = _Resampler(self._source.rate, self._layout, self._form)

    def _convert_up_to(self, position: int) -> None:
        """Convert samples until one is pending."""
        while position >= self._output + len(self._pending):
            self._drop_before(position)
            block = self._source.read(self._input, self._input + _INPUT_BLOCK)
            if not len(block) and self._is_flushed:
                raise AssertionError("the resampler returned fewer samples than it has for other inputs")
            self._is_flushed = self._is_flushed or not len(block)
            assert self._resampler is not None
            results = self._resampler.convert(block)
            self._input += len(block)
            self._pending = np.concatenate([self._pending, *results])

    def _drop_before(self, position: int) -> None:
        count = min(max(0, position - self._output), len(self._pending))
        self._pending = self._pending[count:]
        self._output += count


class _Resampler:
    """FFmpeg's resampler, in the calling thread. That of :class:`av.AudioResampler` has a thread for each core.

    Args:
        rate: Number of samples per second of the input.
        layout: FFmpeg's name of its channel layout.
        form: Form of the results.
    """

    def __init__(self, rate: int, layout: str, form: AudioForm) -> None:
        self._rate = rate
        self._layout = layout
        self._form = form
        self._graph: Any = None
        self._position = 0

    def convert(self, block: Array) -> list[Array]:
        """Convert samples, or what the filter still holds if there are none. Return arrays (samples, channels).

        Raises:
            UnreadableStream: If FFmpeg cannot convert them.
        """
        if self._graph is None and not len(block):
            return []
        results: list[Array] = []
        try:
            if self._graph is None:
                self._graph = self._make_graph(_INPUT_FORMATS[block.dtype.name])
            self._graph.push(self._make_frame(block) if len(block) else None)
            while True:
                results.append(self._graph.pull().to_ndarray().reshape(-1, self._form.channels))
        except (av.error.BlockingIOError, EOFError):  # it needs more, or this is the end
            return results
        except (av.error.FFmpegError, ValueError) as error:
            raise UnreadableStream(
                f"FFmpeg cannot convert sound of {self._rate} Hz with the channels {self._layout} to {self._form.rate} "
                f"Hz with {self._form.layout}: {error}. Choose other values, or those of the file"
            ) from error

    def _make_graph(self, sample_format: str) -> Any:
        graph, form = Graph(), self._form
        graph.threads = 1
        source = graph.add_abuffer(
            sample_rate=self._rate, format=sample_format, layout=self._layout, time_base=Fraction(1, self._rate)
        )
        formats = graph.add(
            "aformat", sample_rates=str(form.rate), sample_fmts=form.format, channel_layouts=form.layout
        )
        sink = graph.add("abuffersink")
        source.link_to(formats)
        formats.link_to(sink)
        graph.configure()
        return graph

    def _make_frame(self, block: Array) -> AudioFrame:
        packed = np.ascontiguousarray(block).reshape(1, -1)
        frame = AudioFrame.from_ndarray(packed, format=_INPUT_FORMATS[block.dtype.name], layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._position, Fraction(1, self._rate)
        self._position += len(block)
        return frame


def count_converted(count: int, rate: int, new_rate: int) -> int:
    """Return the number of samples that FFmpeg's resampler makes of a number of samples, end included."""
    if rate == new_rate or not count:
        return count
    common = math.gcd(rate, new_rate)
    period_in, period_out = rate // common, new_rate // common
    tail = _TAIL_SAMPLES * (1 + rate // new_rate)
    periods = max(0, count - tail) // period_in
    return periods * period_out + _count_tail(count - periods * period_in, rate, new_rate)


@functools.lru_cache(1 << 14)
def _count_tail(count: int, rate: int, new_rate: int) -> int:
    resampler = _Resampler(rate, "mono", AudioForm(new_rate, "mono", "int16"))
    silence = np.zeros((count, 1), np.int16)
    return sum(len(result) for block in (silence, silence[:0]) for result in resampler.convert(block))
