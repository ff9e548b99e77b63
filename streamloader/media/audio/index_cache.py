"""Cache of the indexes of sound, in the database of :mod:`streamloader.media.video.index_cache`."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import av
import numpy as np
from typing_extensions import override

from streamloader.errors import CorruptStream, StreamloaderError
from streamloader.media.audio.blob import InvalidAudioBlob, decode_audio_index, encode_audio_index
from streamloader.media.audio.index import (
    AUDIO_SUMMARY,
    AUDIO_VERIFY_LEVELS,
    MAX_CHANNELS,
    MAX_RATE,
    MAX_SAMPLES,
    AudioIndex,
    AudioIndexSettings,
    summarize_audio,
)
from streamloader.media.audio.indexer import index_audio
from streamloader.media.video.bulk_indexer import BulkIndexer
from streamloader.media.video.files import file_version
from streamloader.media.video.index_cache import IndexedVideo, VideoVersion, make_cache_key, open_database
from streamloader.media.video.index_database import CachedIndex, CacheKey
from streamloader.media.video.remote import Video
from streamloader.values import Array

__all__ = ["BulkAudioIndexer", "load_audio_index"]

_PARSER_MEMORY_BYTES: Final = 2 << 30
_log = logging.getLogger("streamloader")


def load_audio_index(video: Video, settings: AudioIndexSettings, version: tuple[int, int] | None = None) -> AudioIndex:
    """Return the index of the sound of the current version of a file, from the cache if possible. A new one is cached.

    Args:
        video: Path of a local file, or a file in a store.
        settings: Settings with which the sound is indexed.
        version: (size in bytes, modification time in ns) of a local file. Defaults to reading them.

    Raises:
        StreamloaderError: If :func:`streamloader.media.audio.indexer.index_audio` fails.
    """
    if version is None and isinstance(video, str):
        version = file_version(video)
    entry = VideoVersion(video, version)
    found = _find_valid(entry, settings)
    if found is not None:
        return found[0]
    index = index_audio(video, settings)
    try:
        _store([IndexedVideo(entry, summarize_audio(index), encode_audio_index(index))], settings)
    except (InvalidAudioBlob, OverflowError) as error:
        _log.info("the index of the sound of %s cannot be cached: %s", video, str(error))
    return index


def _make_key(entry: VideoVersion, settings: AudioIndexSettings) -> CacheKey:
    # Checksums of samples hold for one version of FFmpeg.
    kind = f"sound\0{settings.damaged}\0{settings.track}\0{settings.optional}\0{av.library_versions['libavcodec']}"
    return make_cache_key(entry, kind)


def _level(settings: AudioIndexSettings) -> int:
    return AUDIO_VERIFY_LEVELS.index(settings.verify)


def _find_valid(entry: VideoVersion, settings: AudioIndexSettings) -> tuple[AudioIndex, bytes] | None:
    found = open_database().find_index(_make_key(entry, settings), _level(settings))
    if found is None:
        return None
    try:
        index = decode_audio_index(found[1], entry.size)
        if summarize_audio(index) != found[0]:
            raise InvalidAudioBlob("its summary is that of another index")
    except InvalidAudioBlob as error:
        _log.info("cannot use the cached index of the sound of %s, indexing it again: %s", entry.video, str(error))
        return None
    return index, found[1]


def _store(indexed: Sequence[IndexedVideo], settings: AudioIndexSettings) -> None:
    level = _level(settings)
    open_database().store(
        CachedIndex(_make_key(item.video, settings), level, item.summary, item.data) for item in indexed
    )


class BulkAudioIndexer(BulkIndexer):
    """Indexes the sound of many files once. Settings are :class:`AudioIndexSettings`."""

    summary = AUDIO_SUMMARY

    @override
    def _find_summaries(self, entries: Sequence[VideoVersion]) -> tuple[Array, Array]:
        keys = [_make_key(entry, self._settings) for entry in entries]
        payloads = open_database().find_payloads(keys, _level(self._settings))
        missing = np.array((-1, 0, 0), AUDIO_SUMMARY).tobytes()
        records = np.frombuffer(
            b"".join(missing if payload is None or len(payload) != len(missing) else payload for payload in payloads),
            AUDIO_SUMMARY,
        )
        return records, _are_possible(records)

    @override
    def _find_indexes(self, entries: Sequence[VideoVersion]) -> list[bytes | None]:
        found = [_find_valid(entry, self._settings) for entry in entries]
        return [None if item is None else item[1] for item in found]

    @override
    def _check_limits(
        self, entries: Sequence[VideoVersion], found: Array, is_found: Array
    ) -> Iterator[tuple[int, StreamloaderError]]:
        return iter(())

    @override
    def _store_indexes(self, indexed: Sequence[IndexedVideo]) -> None:
        _store(indexed, self._settings)

    @override
    def _memory_bytes(self) -> int:
        return _PARSER_MEMORY_BYTES

    @override
    def _parser(self) -> Callable[[VideoVersion, Any], str]:
        return _index_for_parent

    @override
    def _index_here(self, entry: VideoVersion) -> IndexedVideo | BaseException:
        try:
            index = index_audio(entry.video, self._settings)
            return IndexedVideo(entry, summarize_audio(index), encode_audio_index(index))
        except InvalidAudioBlob as error:
            name = str(entry.video)
            return CorruptStream(f"{name} is damaged: its packets are impossible ({error})", stream=name, address=name)
        except StreamloaderError as error:
            return error

    @override
    def _check_index(self, entry: VideoVersion, data: bytes) -> bytes:
        return summarize_audio(decode_audio_index(data, entry.size))


def _index_for_parent(entry: VideoVersion, settings: AudioIndexSettings) -> str:
    """Index the sound of a file in a child process, and return the index as text."""
    return base64.b64encode(encode_audio_index(index_audio(entry.video, settings))).decode()


def _are_possible(records: Array) -> Array:
    possible: Array = np.ones(len(records), bool)
    for name, high in (("samples", MAX_SAMPLES), ("rate", MAX_RATE), ("channels", MAX_CHANNELS)):
        possible &= (records[name] >= 0) & (records[name] <= high)
    return possible
