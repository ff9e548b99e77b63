"""The sound of the videos of a dataset: its indexes, its fields, and readers for single videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError, StreamloaderError
from streamloader.media.audio.index import AudioIndexSettings, AudioVerifyLevel
from streamloader.streams.indexing import show_indexing
from streamloader.streams.sound import AudioOptions, FrameSound, SoundOptions, open_reader, sound_fields
from streamloader.streams.unreadable import ends_indexing
from streamloader.values import Array, Field

if TYPE_CHECKING:
    from streamloader.media.audio.index_cache import BulkAudioIndexer
    from streamloader.media.video.index import VideoIndex
    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.media.video.selection import Selection

__all__ = ["VideoSound", "index_sounds"]

_MAX_BLOCK_SAMPLES = 1 << 24


class VideoSound:
    """The sound of the videos of a dataset.

    Args:
        options: Options of the user.
        selection: Frames that become steps.
        settings: Settings with which the sounds are indexed.
    """

    def __init__(self, options: AudioOptions, selection: Selection, settings: AudioIndexSettings) -> None:
        self._options = options
        self._selection = selection
        self._settings = settings
        self._form = SoundOptions(options.sample_rate, options.channels, options.dtype, options.audio_stream)
        self._block = options.block
        self._longest = Fraction(0)  # time from one step to the next of all videos in seconds

    @classmethod
    def from_options(
        cls, audio: bool | AudioOptions, selection: Selection, damaged: str, verify: str
    ) -> VideoSound | None:
        """Return the sound that a user wants, or None.

        Raises:
            ConfigError: If `audio` is neither a bool nor :class:`AudioOptions`.
        """
        if audio is False:
            return None
        options = AudioOptions() if audio is True else audio
        if not isinstance(options, AudioOptions):
            raise ConfigError(f"audio must be True, False or AudioOptions, got {type(audio).__name__}")
        level: AudioVerifyLevel = "samples" if verify == "frames" else "tables"
        settings = AudioIndexSettings(damaged, level, options.audio_stream, optional=True)
        return cls(options, selection, settings)

    @property
    def fields(self) -> dict[str, Field]:
        """Name -> shape and dtype of the sound of a step. Known after :meth:`resolve` or :meth:`complete`."""
        assert self._block is not None
        return sound_fields(self._form, self._block)

    def describe(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return self._form.describe() | {"block": self._options.block}

    def complete(self) -> VideoSound:
        """Return this if the fields are known before the videos are indexed.

        Raises:
            ConfigError: If they are not.
        """
        has_room = self._block is not None or self._selection.fps is not None
        if not (self._form.is_complete and has_room):
            raise ConfigError(
                "an index file does not describe sound: pass audio=AudioOptions(sample_rate=, channels=, block=), or "
                "fps= instead of block="
            )
        if self._selection.fps is not None:
            self._longest = self._selection.stride / self._selection.fps
        self._choose_block()
        return self

    def make_indexer(self, *, in_processes: bool) -> BulkAudioIndexer:
        """Return an indexer of the sounds."""
        from streamloader.media.audio.index_cache import BulkAudioIndexer

        return BulkAudioIndexer(
            self._settings,
            in_processes=in_processes,
            is_fatal=ends_indexing,
            show_progress=partial(show_indexing, noun="the sound of videos"),
        )

    def take_index(self, number: int, summary: bytes, data: bytes) -> None:
        """Learn from the index of a video how much room a step needs. Called for each video, in any order."""
        from streamloader.media.video.index_blob import decode_index

        if self._block is None:
            self._longest = max(self._longest, self._selection.longest_interval(decode_index(data, None)))

    def resolve(self, names: Sequence[str], records: Array | None) -> None:
        """Take rate and number of channels from the videos, where the user gave none.

        Args:
            names: Path of each video, or address without secrets.
            records: Record of each sound, in the layout of :data:`streamloader.media.audio.index.AUDIO_SUMMARY`.

        Raises:
            ConfigError: If the videos differ, or none has sound.
        """
        assert records is not None
        self._form = self._form.resolve(names, records)
        self._choose_block()

    def _choose_block(self) -> None:
        if self._block is None:
            self._block = max(1, math.ceil(self._longest * self._form.rate))
        if self._block > _MAX_BLOCK_SAMPLES:
            raise ConfigError(
                f"a step of a video lasts {self._block / self._form.rate:.0f} s, which is too long for one block of "
                "samples: pass fps=, so that all steps are short"
            )

    def open(self, video: Video, file: VideoFile | None, index: VideoIndex, start_draw: float, key: str) -> FrameSound:
        """Open the sound of one video.

        Args:
            video: Path of a local file, or a video in a store.
            file: Open bytes of a video in a store, which its frames are read from.
            index: Index of the video.
            start_draw: Random number in [0, 1) that determines the first frame.
            key: Key of the stream.
        """
        from streamloader.media.audio.index_cache import load_audio_index
        from streamloader.media.audio.reader import SampleReader
        from streamloader.media.audio.timeline import TimelineReader, lay_out_sound
        from streamloader.media.video.remote import open_second_file

        assert self._block is not None
        sound = load_audio_index(video, self._settings)
        rate = self._form.rate
        bounds = self._selection.divide_samples(index, rate, start_draw)
        if not sound.channels:
            return FrameSound(None, bounds, 0, self._block, key)
        origin = int(index.pts[0]) * index.time_base if index.has_pts else Fraction(0)
        sound_file = open_second_file(video, file)
        reader = SampleReader(video, sound, key, track=self._settings.track, owned_file=sound_file)
        timeline = TimelineReader(reader, lay_out_sound(sound, origin, index.clock, index.time_base))
        start = timeline.start * rate // sound.rate
        try:
            return FrameSound(open_reader(reader, self._form, timeline), bounds, start, self._block, key)
        except BaseException:
            reader.close()
            raise


def index_sounds(indexer: BulkAudioIndexer, videos: Sequence[Video], errors: dict[int, StreamloaderError]) -> Array:
    """Return the record of the sound of each video, in the layout of :data:`AUDIO_SUMMARY`, and add to `errors`.

    Args:
        indexer: Indexer of the sounds.
        videos: Videos.
        errors: Errors by number of the video. These videos are left out.
    """
    numbers = [number for number in range(len(videos)) if number not in errors]
    found, _, sound_errors = indexer.run([videos[number] for number in numbers])
    records = np.zeros(len(videos), indexer.summary)
    records[numbers] = found
    errors.update((numbers[position], error) for position, error in sound_errors.items())
    return records
