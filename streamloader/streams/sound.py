"""The form of sound in steps: options, common rate and channels, and readers of samples in this form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.errors import ConfigError, StreamFailed, StreamloaderError
from streamloader.media.audio.index import MAX_CHANNELS, MAX_RATE
from streamloader.media.video.selection import as_int
from streamloader.values import Array, Field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamloader.media.audio.reader import SampleReader
    from streamloader.media.audio.resampler import ConvertedReader, PositionedSamples

__all__ = [
    "SOUND_FIELDS", "AudioOptions", "FrameSound", "SoundOptions", "count_samples", "open_reader", "sound_fields",
]  # fmt: skip

SOUND_FIELDS: Final = ("audio", "audio_length")  # of a frame
_DTYPES: Final = ("float32", "int16", "int32", "float64")


@dataclass(frozen=True, slots=True)
class AudioOptions:
    """Options of the sound of videos, for ``VideoStreams(audio=...)``.

    Attributes:
        sample_rate: Samples per second to which sounds are resampled. Defaults to their own rate, which must be the
            same for all videos.
        channels: Number of channels, or FFmpeg's name of a layout such as ``"5.1"``. Defaults to their own number,
            which must be the same for all videos.
        dtype: Type of a sample: ``"float32"`` (default), ``"int16"``, ``"int32"`` or ``"float64"``.
        block: Number of samples for which a step has room. Defaults to what the longest step of all videos needs.
        audio_stream: Number of the audio stream among those of each video. Defaults to the one that is marked as the
            default, else the one with the most channels, else the first.
    """

    sample_rate: int | None = None
    channels: int | str | None = None
    dtype: str = "float32"
    block: int | None = None
    audio_stream: int | None = None

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            ConfigError: If one is invalid.
        """
        SoundOptions(self.sample_rate, self.channels, self.dtype, self.audio_stream)
        if self.block is not None and as_int(self.block) < 1:
            raise ConfigError(f"block must be a whole number of samples of at least 1, got {self.block!r}")


class SoundOptions:
    """The form of samples in steps, as the user gives it and the files complete it.

    Args:
        sample_rate: Samples per second, or None for that of the files.
        channels: Number of channels, name of a layout, or None for the number of the files.
        dtype: Type of a sample.
        track: Number of the audio stream among those of a file, or None.

    Attributes:
        channel_count: Number of channels. None as long as it is unknown.
        dtype: Type of a sample.

    Raises:
        ConfigError: If an option is invalid. The message names valid values.
    """

    def __init__(self, sample_rate: int | None, channels: int | str | None, dtype: str, track: int | None) -> None:
        if sample_rate is not None and not 1 <= as_int(sample_rate) <= MAX_RATE:
            raise ConfigError(f"sample_rate must be a whole number of samples per second, got {sample_rate!r}")
        if track is not None and (as_int(track) < 0 or (as_int(track) == 0 and track != 0)):
            raise ConfigError(f"audio_stream must be the number of an audio stream, from 0 on, got {track!r}")
        try:
            name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        except (TypeError, ValueError):
            name = ""
        if name not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        self._sample_rate = None if sample_rate is None else int(sample_rate)
        self._channels = channels
        self._track = track
        self.dtype = name
        self.channel_count = _count_channels(channels)
        self._common_rate: int | None = self._sample_rate

    @property
    def rate(self) -> int:
        """Number of samples per second. Known after :meth:`resolve` at the latest."""
        assert self._common_rate is not None, "the rate is known after the files were indexed"
        return self._common_rate

    @property
    def is_complete(self) -> bool:
        """Whether rate and number of channels are known."""
        return self._common_rate is not None and self.channel_count is not None

    def describe(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return {
            "sample_rate": self._sample_rate,
            "channels": self._channels,
            "dtype": self.dtype,
            "audio_stream": self._track,
        }

    def resolve(self, names: Sequence[str], records: Array) -> SoundOptions:
        """Return the options with the rate and number of channels that all files with sound have.

        Args:
            names: Path of each file, or address without secrets.
            records: Record of each file, in the layout of :data:`streamloader.media.audio.index.AUDIO_SUMMARY`.

        Raises:
            ConfigError: If the files differ, or none has sound.
        """
        resolved = SoundOptions(self._sample_rate, self._channels, self.dtype, self._track)
        has_sound = np.flatnonzero(records["channels"] > 0)
        if not len(has_sound) and not self.is_complete:
            raise ConfigError("none of the files has sound, so sample_rate= and channels= must be given")
        if resolved._common_rate is None:
            resolved._common_rate = _require_common(names, records["rate"], has_sound, "sample_rate", "Hz")
        if resolved.channel_count is None:
            resolved.channel_count = _require_common(names, records["channels"], has_sound, "channels", "channels")
        return resolved

    def layout_for(self, channels: int, layout: str) -> str:
        """Return the layout of the results for a file with these channels and this layout."""
        from streamloader.media.audio.resampler import default_layout

        if isinstance(self._channels, str):
            return self._channels
        assert self.channel_count is not None
        return layout if channels == self.channel_count else default_layout(self.channel_count)


def _count_channels(channels: int | str | None) -> int | None:
    if channels is None:
        return None
    if isinstance(channels, str):
        from streamloader.media.audio.resampler import AudioForm

        return AudioForm(1, channels, "float32").channels
    if not 1 <= as_int(channels) <= MAX_CHANNELS:
        raise ConfigError(
            f"channels must be a number from 1 to {MAX_CHANNELS}, or a layout such as '5.1', got {channels!r}"
        )
    return int(channels)


def _require_common(names: Sequence[str], values: Array, numbers: Array, option: str, unit: str) -> int:
    """Return the value that all files with sound have."""
    first = int(numbers[0])
    differing = numbers[values[numbers] != values[first]]
    if len(differing):
        other = int(differing[0])
        raise ConfigError(
            f"sounds differ: {names[first]} has {values[first]} {unit}, {names[other]} has {values[other]} {unit}. "
            f"Pass {option}= to convert all",
            stream=names[other],
        )
    return int(values[first])


def count_samples(records: Array, rate: int) -> Array:
    """Return the number of samples of each file at a rate, int64 (n,).

    Args:
        records: Record of each file, in the layout of :data:`streamloader.media.audio.index.AUDIO_SUMMARY`.
        rate: Number of samples per second.
    """
    samples = records["samples"].astype(np.int64)
    differing = np.flatnonzero((records["rate"] != rate) & (samples > 0)).tolist()
    if differing:
        from streamloader.media.audio.resampler import count_converted

        for number in differing:
            samples[number] = count_converted(int(samples[number]), int(records["rate"][number]), rate)
    return samples


def open_reader(
    reader: SampleReader, options: SoundOptions, source: PositionedSamples | None = None
) -> ConvertedReader:
    """Return a reader of samples in the form of `options`.

    Args:
        reader: Reader of the sound.
        options: Form of the samples, complete.
        source: Samples to convert. Defaults to those of the sound.
    """
    from streamloader.media.audio.resampler import AudioForm, ConvertedReader

    index = reader.index
    form = AudioForm(options.rate, options.layout_for(index.channels, index.layout), options.dtype)
    return ConvertedReader(source or reader, index.layout, form)


# --- the sound of frames ---------------------------------------------------------------------------------------------


def sound_fields(options: SoundOptions, block: int) -> dict[str, Field]:
    """Return the fields of the sound of a frame."""
    assert options.channel_count is not None
    return {"audio": Field((block, options.channel_count), options.dtype), "audio_length": Field((), "int32")}


class FrameSound:
    """Reads the samples that belong to each step of a video.

    Args:
        reader: Reader of the samples from the first frame on, or None for a video without sound.
        bounds: First sample of each step, and the end, int64 (steps + 1,).
        start: Position of the first sample that is played.
        block: Number of samples for which a step has room.
        key: Key of the stream.

    Raises:
        StreamFailed: If a step has more samples than the room allows.
    """

    def __init__(self, reader: ConvertedReader | None, bounds: Array, start: int, block: int, key: str) -> None:
        self._reader = reader
        self._bounds = bounds
        self._block = block
        end = min(len(reader), int(bounds[-1])) if reader is not None else 0
        counts = np.minimum(bounds[1:], end) - bounds[:-1]
        self._counts = np.where(bounds[1:] > start, np.maximum(counts, 0), 0)
        largest = int(self._counts.max(initial=0))
        if largest > block:
            step = int(np.argmax(self._counts))
            raise StreamFailed(
                f"step {step} of {key} has {largest} samples, but there is room for {block}: pass "
                f"AudioOptions(block={largest}), or fps= so that all steps are equally long",
                stream=key,
                offset=step,
            )

    def fill(self, out: Mapping[str, Array], step: int, count: int) -> None:
        """Write the samples of `count` steps from `step` on.

        Raises:
            CorruptStream: If the sound cannot be decoded.
            StoreError: If the store fails to deliver bytes.
        """
        audio, lengths = out["audio"], out["audio_length"]
        counts = self._counts[step : step + count]
        lengths[:count] = counts
        audio[:count] = 0
        filled = np.flatnonzero(counts)
        if self._reader is None or not len(filled):
            return
        first = int(self._bounds[step + int(filled[0])])
        end = int(self._bounds[step + int(filled[-1])] + counts[filled[-1]])
        samples = self._reader.read(first, end)
        for row in filled.tolist():
            start = int(self._bounds[step + row]) - first
            audio[row, : counts[row]] = samples[start : start + int(counts[row])]

    def fill_up_to_error(self, out: Mapping[str, Array], step: int, count: int) -> tuple[int, StreamloaderError | None]:
        """Write the samples of the steps before an error. Return the number of these steps, and the error."""
        for row in range(count):
            try:
                self.fill({name: out[name][row : row + 1] for name in SOUND_FIELDS}, step + row, 1)
            except StreamloaderError as error:
                error.offset = step + row
                return row, error
        return count, None

    def close(self) -> None:
        """Close the sound."""
        if self._reader is not None:
            self._reader.close()
