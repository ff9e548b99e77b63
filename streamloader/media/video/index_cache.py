"""Cache of video indexes on disk, valid for one version of each video.

A video is identified by a digest of its path or address, without the parts that are known to be secret
(:func:`streamloader.redaction.identify_address`). Paths and addresses themselves are not stored.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import platformdirs

from streamloader.arguments import expand_path
from streamloader.common.guarded_files import UnsafePath
from streamloader.errors import ConfigError
from streamloader.media.video.files import file_version
from streamloader.media.video.index import VERIFY_LEVELS, IndexSettings, VerifyLevel, VideoIndex
from streamloader.media.video.index_blob import InvalidBlob, decode_index, encode_index
from streamloader.media.video.index_database import CachedIndex, CacheKey, IndexDatabase, get_database
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.remote import Video
from streamloader.media.video.summary import SUMMARY, are_possible, read_summaries, summarize_index
from streamloader.values import Array

__all__ = [
    "IndexedVideo", "VideoVersion", "close_cache", "find_index", "find_indexes", "find_summaries", "index_cache_folder",
    "index_video", "load_index", "make_cache_key", "open_database", "store_indexes",
]  # fmt: skip

_CACHE_VARIABLE: Final = "STREAMLOADER_CACHE"
_LOCAL_VERSION: Final = struct.Struct("<qq")  # size in bytes, modification time in ns
_log = logging.getLogger("streamloader")


class VideoVersion(NamedTuple):
    """One version of a video.

    Attributes:
        video: Path of a local file, or a video in a store.
        version: (size in bytes, modification time in ns) of a local file. None for a video in a store.
    """

    video: Video
    version: tuple[int, int] | None

    @property
    def size(self) -> int | None:
        """Size of the video in bytes, or None if it is unknown."""
        if isinstance(self.video, str):
            return None if self.version is None else self.version[0]
        return self.video.info.size


class IndexedVideo(NamedTuple):
    """The index of one version of a video, in compact form.

    Attributes:
        video: Version of the video.
        summary: Record of the index, in the layout of :data:`streamloader.media.video.summary.SUMMARY`.
        data: Index as :func:`streamloader.media.video.index_blob.encode_index` returns it.
    """

    video: VideoVersion
    summary: bytes
    data: bytes


def index_cache_folder() -> Path:
    """Return the folder of cached indexes, in ``$STREAMLOADER_CACHE`` or else in the user's cache folder."""
    return Path(_folder_path())


def load_index(
    video: Video,
    *,
    damaged: str = "raise",
    version: tuple[int, int] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    verify: VerifyLevel = "tables",
    stream: int | None = None,
    renew: bool = False,
) -> VideoIndex:
    """Return the index of the current version of a video, from the cache if possible. A new index is cached.

    The index of a video in a store is valid for its version; if the store has no versions, for its size and
    modification time. A cached index is used only if all its values are possible for the video: another user or program
    may have written it. An index that is proven by a higher level of `verify` serves lower ones.

    Args:
        video: Path of a local file, or a video in a store.
        damaged: ``"raise"`` or ``"keep"``, as for :func:`streamloader.media.video.indexer.index_video`.
        version: (size in bytes, modification time in ns) of a local file. Defaults to reading them.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        verify: Level of proof, as for :func:`streamloader.media.video.indexer.index_video`. Defaults to ``"tables"``.
        stream: Number of the video stream, as for :func:`streamloader.media.video.indexer.index_video`.
        renew: Whether to index the video again also if its index is in the cache, because it has proved to be wrong.
            Defaults to False.

    Raises:
        StreamloaderError: If :func:`streamloader.media.video.indexer.index_video` fails. A cache that cannot be read or
            written is not an error: the video is indexed again.
        ConfigError: If other users can change what is in the folder that ``STREAMLOADER_CACHE`` names. The usual cache
            folder is only ignored then, with a warning.
    """
    settings = IndexSettings(damaged, verify, max_pixels, stream)
    if version is None and isinstance(video, str):
        version = file_version(video)
    entry = VideoVersion(video, version)
    index = None if renew else find_index(entry, settings)
    if index is None:
        index = index_video(video, damaged=damaged, max_pixels=max_pixels, verify=settings.verify, stream=stream)
        try:
            store_indexes([IndexedVideo(entry, summarize_index(index), encode_index(index))], settings)
        except (InvalidBlob, OverflowError) as error:
            _log.info("the index of %s cannot be cached: %s", video, str(error))
    return index


def index_video(
    video: Video, *, damaged: str, max_pixels: int, verify: VerifyLevel, stream: int | None = None
) -> VideoIndex:
    """Index a video. FFmpeg is only imported now: reading the cache does not need it."""
    from streamloader.media.video import indexer

    return indexer.index_video(video, damaged=damaged, verify=verify, max_pixels=max_pixels, stream=stream)


def find_index(entry: VideoVersion, settings: IndexSettings) -> VideoIndex | None:
    """Return the index of a video if it is in the cache.

    Raises:
        MediaLimitExceeded: If the frames of the video exceed the limit on pixels.
    """
    found = _find_valid(open_database(), entry, settings)
    if found is None:
        return None
    PixelLimit(settings.max_pixels, str(entry.video)).check(found[0].width, found[0].height)
    return found[0]


def _find_valid(
    database: IndexDatabase, entry: VideoVersion, settings: IndexSettings
) -> tuple[VideoIndex, bytes] | None:
    """Return the index of a video, and its compact form, if it is in the cache."""
    found = database.find_index(make_cache_key(entry, settings.kind), VERIFY_LEVELS.index(settings.verify))
    if found is None:
        return None
    try:
        index = decode_index(found[1], entry.size)
        if summarize_index(index) != found[0]:
            raise InvalidBlob("its summary is that of another index")
    except InvalidBlob as error:
        _log.info("cannot use the cached index of %s, indexing the video again: %s", entry.video, str(error))
        return None
    return index, found[1]


def find_summaries(entries: Sequence[VideoVersion], settings: IndexSettings) -> tuple[Array, Array]:
    """Look up many videos in the cache.

    Args:
        entries: Videos to look up.
        settings: Settings with which they are indexed.

    Returns:
        Record of each video (:data:`streamloader.media.video.summary.SUMMARY`), and whether it is in the cache.
    """
    keys = [make_cache_key(entry, settings.kind) for entry in entries]
    payloads = open_database().find_payloads(keys, VERIFY_LEVELS.index(settings.verify))
    missing = bytes(SUMMARY.itemsize)
    records = read_summaries(
        [missing if payload is None or len(payload) != len(missing) else payload for payload in payloads]
    )
    return records, are_possible(records)


def find_indexes(entries: Sequence[VideoVersion], settings: IndexSettings) -> list[bytes | None]:
    """Return the encoded index of each video that is in the cache, and None for the others."""
    database = open_database()
    found = [_find_valid(database, entry, settings) for entry in entries]
    return [None if item is None else item[1] for item in found]


def store_indexes(indexed: Iterable[IndexedVideo], settings: IndexSettings) -> None:
    """Store indexes in one transaction. Where there can be no cache, they are not stored."""
    level = VERIFY_LEVELS.index(settings.verify)
    open_database().store(
        CachedIndex(make_cache_key(item.video, settings.kind), level, item.summary, item.data) for item in indexed
    )


def close_cache() -> None:
    """Close the file of the cache in this process. The next call opens it again."""
    open_database().close()


def make_cache_key(entry: VideoVersion, settings: str) -> CacheKey:
    """Return the key of one version of a file.

    Args:
        entry: Version of the file.
        settings: Text that distinguishes indexes of the same file that are made with other settings.
    """
    video = entry.video
    if isinstance(video, str):
        name = os.path.abspath(video)
        version = _LOCAL_VERSION.pack(*(entry.version or (0, 0)))
    else:
        name, info = video.identity, video.info
        described = (info.size, info.version, info.modified if info.version is None else None)
        version = hashlib.sha256(repr(described).encode("utf-8", "surrogateescape")).digest()[: _LOCAL_VERSION.size]
    digest = hashlib.sha256(f"{settings}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return CacheKey(int.from_bytes(digest[:8], "little", signed=True), digest[8:24] + version)


# --- the folder ------------------------------------------------------------------------------------------------------


def _folder_path() -> str:
    root = expand_path(os.environ.get(_CACHE_VARIABLE) or platformdirs.user_cache_dir("streamloader"), create=True)
    return f"{os.path.abspath(root)}/index"


def open_database() -> IndexDatabase:
    """Return the database of the cache, for this process."""
    return get_database(_folder_path(), _handle_unsafe_folder)


def _handle_unsafe_folder(error: UnsafePath) -> None:
    """Handle that other users can change what is in the folder of the cache.

    Raises:
        ConfigError: If the user named the folder.
    """
    if os.environ.get(_CACHE_VARIABLE):
        raise ConfigError(
            f"the indexes of videos cannot be cached in {_CACHE_VARIABLE}: {error.message}", address=error.filename
        ) from error
    _warn_once(error.message)


@functools.cache
def _warn_once(problem: str) -> None:
    _log.warning("the indexes of videos are not cached: %s. Or let %s name another folder", problem, _CACHE_VARIABLE)
