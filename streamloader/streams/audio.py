"""Sounds as streams of blocks of samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio.to_thread
import numpy as np
from typing_extensions import override

from streamloader.arguments import check_options
from streamloader.errors import ClosedError, ConfigError, CorruptStream, StreamloaderError
from streamloader.media.audio.index import AUDIO_VERIFY_LEVELS, AudioIndexSettings, AudioVerifyLevel
from streamloader.media.video.selection import as_int
from streamloader.stores.addresses import Addresses, FileKeys, as_addresses, expand_addresses
from streamloader.stores.readahead import UNIT_BYTES
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.base import (
    PreparedStream,
    SourceSizes,
    Stream,
    StreamDataset,
    parses_in_processes,
    skips_unreadable,
)
from streamloader.streams.corpus import clamp_step
from streamloader.streams.indexing import make_videos, show_indexing, validate_unreadable
from streamloader.streams.lane_thread import decode_in_lane_thread, in_lane_thread
from streamloader.streams.sound import SoundOptions, count_samples, open_reader
from streamloader.streams.source_files import PreparedFile, build_media_table, measure_sources, resolve_media
from streamloader.streams.unreadable import SkippedVideo, ends_indexing, settle_errors
from streamloader.values import Array, Field, StreamInfo

if TYPE_CHECKING:
    from streamloader.media.audio.index_cache import BulkAudioIndexer
    from streamloader.media.audio.resampler import ConvertedReader
    from streamloader.media.video.remote import VideoFile

__all__ = ["AudioStreams", "is_audio"]

_AUDIO_NAME: Final = re.compile(
    r"\.(aac|ac3|aif[fc]?|amr|ape|au|caf|dsf|dts|eac3|flac|m4a|m4b|mka|mp[123]|mpc|oga|ogg|opus|snd|spx|tak|tta|w64|wav"
    r"|weba|wma|wv)$",
    re.IGNORECASE,
)
_NOUN: Final = "sounds"


class AudioStreams(StreamDataset):
    """One stream for each sound file, or for the sound of each video. A step is a block of samples.

    Fields: ``"data"``, (block, channels) in `dtype`, and ``"length"``, int32: the number of samples of the block that
    the sound has. It is `block` except at the end, where the block is filled up with zeros. Step k begins at sample
    ``k * hop``, and ``batch.time`` is that position in seconds. There are as few steps as contain every sample.

    Samples are exactly those of ffmpeg's decode of the whole file, also after a seek or a resume: without the delay of
    encoder and decoder (priming samples) and the padding at the end, where the file states them: edit lists and iTunes
    tags of MP4, Xing and LAME headers of MP3, pre-skip and granule positions of Ogg, codec delay and discard padding of
    Matroska.

    Args:
        files: A path, a glob pattern (``**`` for any depth), a directory (all files in it with an extension of a sound,
            at any depth), or a list of these. Files of a pattern or directory are sorted by code point. Addresses in
            stores (``s3://bucket/speech/*.flac``, ``https://``, members of tar and zip files, ...) can be used like
            paths; see :func:`streamloader.stores.open_store`.
        sample_rate: Samples per second to which sounds are resampled, with FFmpeg's resampler. Defaults to their own
            rate, which must be the same for all.
        channels: Number of channels, or FFmpeg's name of a layout such as ``"5.1"``, to which sounds are mixed down or
            up. Defaults to their own number, which must be the same for all.
        block: Number of samples of a step. Defaults to 1024.
        hop: Number of samples from the start of a step to that of the next one. Defaults to `block`: no overlap.
        dtype: Type of a sample: ``"float32"`` (-1 to 1), ``"int16"``, ``"int32"`` or ``"float64"``. Defaults to
            ``"float32"``.
        audio_stream: Number of the audio stream among those of each file. Defaults to the one that is marked as the
            default, else the one with the most channels, else the first.
        damaged: ``"raise"`` raises an error for truncated or damaged files; ``"keep"`` decodes each file when it is
            indexed, and uses what can be decoded. Defaults to ``"raise"``.
        verify: Proof of each index when it is made. ``"tables"`` decodes a whole file only where its container does not
            say how many samples it has. ``"samples"`` decodes every file once, and keeps checksums: then codecs whose
            decoders forget their past (Opus, most of AAC) are resumed without decoding from the start of the file.
            Defaults to ``"tables"``.
        unreadable: ``"raise"`` raises one error that lists all files that cannot be used; ``"skip"`` leaves them out
            and lists them in :attr:`skipped`, as does ``on_error="skip"`` of a loader. None, the
            default, raises for them too, but leaves out directories that may not be read, with one warning.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    Indexes are cached for each version of a file, with those of videos. Keys of streams are their addresses without
    secrets. Sounds are untrusted: a loader with worker processes has them indexed and decoded in child processes only.

    Raises:
        ConfigError: If the arguments contradict each other, or sounds differ in rate or channels and none is given.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no sound (from :meth:`index`).
        UnreadableStream: If a file contains no sound that can be decoded.
        MediaLimitExceeded: If a file exceeds a limit.
        CorruptStream: If a file is truncated or damaged, or changed since it was indexed. ``offset`` is the step.
        StoreError: If a store fails to deliver bytes; ObjectChanged if a sound in a store was replaced.
    """

    def __init__(
        self,
        files: Addresses,
        sample_rate: int | None = None,
        channels: int | str | None = None,
        block: int = 1024,
        hop: int | None = None,
        dtype: Literal["float32", "int16", "int32", "float64"] = "float32",
        *,
        audio_stream: int | None = None,
        damaged: Literal["raise", "keep"] = "raise",
        verify: AudioVerifyLevel = "tables",
        unreadable: Unreadable = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = as_addresses(files)
        self._options = SoundOptions(sample_rate, channels, dtype, audio_stream)
        self._block = _validate_count("block", block)
        self._hop = self._block if hop is None else _validate_count("hop", hop)
        if damaged not in ("raise", "keep"):
            raise ConfigError(f'damaged must be "raise" or "keep", got {damaged!r}')
        if verify not in AUDIO_VERIFY_LEVELS:
            raise ConfigError(f"verify must be one of {', '.join(AUDIO_VERIFY_LEVELS)}, got {verify!r}")
        self._index_settings = AudioIndexSettings(damaged, verify, audio_stream)
        self._unreadable = validate_unreadable(unreadable)
        self._storage_options = check_options("storage_options", storage_options)
        self._secret_addresses: dict[str, str] = {}  # by key, where the address contains secrets
        self._skipped: tuple[SkippedVideo, ...] = ()

    @property
    @override
    def fields(self) -> Mapping[str, Field]:
        if self._options.channel_count is None:
            raise ConfigError("the number of channels is unknown before index() was called; or pass channels=")
        return {
            "data": Field((self._block, self._options.channel_count), self._options.dtype),
            "length": Field((), "int32"),
        }

    @property
    @override
    def settings(self) -> Mapping[str, Any]:
        described = self._options.describe() | {"block": self._block, "hop": self._hop}
        return described | {"damaged": self._index_settings.damaged}

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The files that the last call of :meth:`index` left out because they cannot be used, in their order."""
        return self._skipped

    @override
    async def index(self) -> Sequence[StreamInfo]:
        from streamloader.media.audio.index_cache import BulkAudioIndexer

        indexer = BulkAudioIndexer(
            self._index_settings,
            in_processes=parses_in_processes(),
            is_fatal=ends_indexing,
            show_progress=partial(show_indexing, noun=_NOUN),
        )
        skip = self._unreadable == "skip" or skips_unreadable()
        try:
            return await anyio.to_thread.run_sync(self._index, indexer, skip, abandon_on_cancel=True)
        finally:
            indexer.close()

    @override
    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        return measure_sources(streams)

    @override
    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        return await self._open_with(info, rng, None)

    @override
    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        if "path" in info.extra or info.extra["version"] is None:  # local, or its version must be checked first
            return None
        file = await in_lane_thread(self._start_fetch, info)
        return None if file is None else PreparedFile(partial(self._open_with, info), file)

    async def _open_with(self, info: StreamInfo, rng: np.random.Generator, file: VideoFile | None) -> Stream:
        return await in_lane_thread(self._open, info, file)

    def _start_fetch(self, info: StreamInfo) -> VideoFile | None:
        from streamloader.media.video.remote import open_video_file

        try:
            video, _ = resolve_media(info, self._secret_addresses, self._storage_options)
            return open_video_file(video, [(0, min(info.extra["size"] or 0, UNIT_BYTES))])
        except StreamloaderError:  # open() raises it again
            return None

    def _index(self, indexer: BulkAudioIndexer, skip: bool) -> StreamTable:
        found = UnreadableReport("skip" if skip else self._unreadable)
        files = expand_addresses(self._paths, is_audio, self._storage_options, unreadable=found)
        found.check(files)
        keys = FileKeys.of_files(files)
        records, versions, errors = indexer.run(make_videos(files, self._storage_options))
        self._skipped = settle_errors(found, errors, keys.names, keys.keys, _NOUN)
        if errors:
            kept = [number for number in range(len(files)) if number not in errors]
            keys, files = keys.select(kept), [files[number] for number in kept]
            records, versions = records[kept], versions[kept]
        self._options = self._options.resolve(keys.names, records)
        self._secret_addresses = keys.secret_addresses
        samples = count_samples(records, self._options.rate)
        steps = count_steps(samples, self._block, self._hop)
        return build_media_table(keys, files, steps, records["samples"], versions, count_name="samples")

    def _open(self, info: StreamInfo, file: VideoFile | None) -> _AudioStream:
        from streamloader.media.audio.index_cache import load_audio_index
        from streamloader.media.audio.reader import SampleReader

        try:
            video, version = resolve_media(info, self._secret_addresses, self._storage_options)
            index = load_audio_index(video, self._index_settings, version)
            if len(index) != info.extra["samples"]:
                raise CorruptStream(
                    f"{video} has {len(index)} samples here, but had {info.extra['samples']} where it was indexed: "
                    "the versions of FFmpeg differ, or the file does",
                    address=str(video),
                )
            owned, file = file, None
            reader = SampleReader(video, index, info.key, track=self._index_settings.track, owned_file=owned)
            return _AudioStream(open_reader(reader, self._options), info, self._block, self._hop, self._options.rate)
        except StreamloaderError as error:
            error.stream = info.key
            raise
        finally:
            if file is not None:
                file.close()


class _AudioStream(Stream):
    """Reads the blocks of one sound.

    Args:
        reader: Reader of the samples, which the stream closes.
        info: Description of the stream.
        block: Number of samples of a step.
        hop: Number of samples from one step to the next.
        rate: Number of samples per second.
    """

    def __init__(self, reader: ConvertedReader, info: StreamInfo, block: int, hop: int, rate: int) -> None:
        self._reader: ConvertedReader | None = reader
        self._key = info.key
        self._waits_for_bytes = "path" not in info.extra
        self._length = info.length or 0
        self._block, self._hop, self._rate = block, hop, rate
        self._step = 0
        self._tail: Array | None = None  # samples up to `_tail_end` that overlap with the next step
        self._tail_end = 0
        self._error: StreamloaderError | None = None

    @override
    async def read_into(self, out: Mapping[str, Array]) -> int:
        if self._reader is None:
            raise ClosedError(f"stream {self._key!r} was closed", stream=self._key)
        if self._error is not None:
            raise self._error
        count = min(len(out["data"]), self._length - self._step)
        if count <= 0:
            return 0
        run = in_lane_thread if self._waits_for_bytes else decode_in_lane_thread
        return await run(self._read, self._reader, out, count)

    @override
    async def seek(self, step: int) -> None:
        self._step = clamp_step(step, self._length, self._key)
        self._error = None

    @override
    def times(self, start: int, out: Array) -> None:
        out[:] = np.arange(start, start + len(out), dtype=np.float64) * self._hop / self._rate

    @override
    async def aclose(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await in_lane_thread(reader.close)

    def _read(self, reader: ConvertedReader, out: Mapping[str, Array], count: int) -> int:
        try:
            self._fill(reader, out, 0, count)
        except StreamloaderError:
            self._tail = None
            count = self._read_up_to_error(reader, out, count)
        self._step += count
        return count

    def _read_up_to_error(self, reader: ConvertedReader, out: Mapping[str, Array], count: int) -> int:
        """Read step by step, and return their number. The error of a later step is raised by the next read."""
        for row in range(count):
            try:
                self._fill(reader, out, row, 1)
            except StreamloaderError as error:
                self._tail = None
                error.stream = self._key
                if isinstance(error, CorruptStream):
                    error.offset = self._step + row
                if row == 0:
                    raise
                self._error = error
                return row
        return count

    def _fill(self, reader: ConvertedReader, out: Mapping[str, Array], row: int, count: int) -> None:
        """Write `count` steps into the rows from `row` on."""
        if count > 1 and self._hop > self._block:  # what lies between the steps is not kept in memory
            for number in range(row, row + count):
                self._fill(reader, out, number, 1)
            return
        first = (self._step + row) * self._hop
        end = first + (count - 1) * self._hop + self._block
        samples = self._read_samples(reader, first, end)
        starts = first + np.arange(count) * self._hop
        out["length"][row : row + count] = np.clip(len(reader) - starts, 0, self._block)
        if len(samples) < end - first:
            samples = np.concatenate([samples, np.zeros((end - first - len(samples), samples.shape[1]), samples.dtype)])
        windows = np.lib.stride_tricks.sliding_window_view(samples, self._block, axis=0)[:: self._hop]
        out["data"][row : row + count] = windows.transpose(0, 2, 1)

    def _read_samples(self, reader: ConvertedReader, start: int, end: int) -> Array:
        overlap = max(0, self._block - self._hop)
        tail = self._tail
        if tail is not None and self._tail_end - len(tail) <= start < self._tail_end:
            kept = tail[len(tail) - (self._tail_end - start) :][: end - start]
            samples = np.concatenate([kept, reader.read(start + len(kept), end)])
        else:
            samples = reader.read(start, end)
        self._tail = samples[-overlap:].copy() if overlap else None
        self._tail_end = start + len(samples)
        return samples


def count_steps(samples: Array, block: int, hop: int) -> Array:
    """Return how many steps contain all samples of each sound, int64 (n,)."""
    steps = 1 + -(-np.maximum(samples - block, 0) // hop)
    result: Array = np.where(samples > 0, np.minimum(steps, -(-samples // hop)), 0).astype(np.int64)
    return result


def _validate_count(name: str, value: Any) -> int:
    if as_int(value) < 1:
        raise ConfigError(f"{name} must be a whole number of samples of at least 1, got {value!r}")
    return int(value)


def is_audio(path: str) -> bool:
    """Return whether a path has the extension of a sound."""
    return _AUDIO_NAME.search(path) is not None
