"""Cache of video indexes on disk: one small file per video, valid for one version of it.

The name of a file is a digest of the path or address, without the parts that are known to be secret
(:func:`streamloader.redaction.identify_address`). The header of a file shows the address as messages do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import platformdirs

from streamloader.common.guarded_files import GuardedFolder, UnsafePath
from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError
from streamloader.media.video.files import file_version
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.remote import ByteSpans, Video
from streamloader.stores.readahead import MAX_FILE_BYTES

__all__ = ["find_index", "index_cache_folder", "load_index"]

_FORMAT: Final = 4  # raise it when the files below or the results of index_video change
_ARRAYS: Final = ("pts", "key_pts", "key_seek")
_SCALARS: Final = ("end", "height", "width", "has_pts", "seekable", "damaged", "note")
# A file holds: the size in bytes of a JSON object, a CRC-32 of all that follows, the JSON object, the arrays end to
# end. NumPy's own format is not used because CPython 3.11 cannot run its parser in several threads (SystemError).
_HEADER: Final = struct.Struct("<QI")
_CACHE_VARIABLE: Final = "STREAMLOADER_CACHE"
_MAX_FILE_BYTES: Final = 1 << 30  # an index has 8 bytes for each frame, and 16 for each key frame
# What reading a file raises whose header, JSON values or arrays are not those of this format.
_READ_ERRORS: Final = (
    ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError, struct.error,
)  # fmt: skip
_MAX_TIMESTAMP: Final = 1 << 62  # so that sums and differences of timestamps fit into 64 bits
_MAX_SIDE: Final = 1 << 20  # pixels
_log = logging.getLogger("streamloader")


def index_cache_folder() -> Path:
    """Return the folder of cached indexes, in ``$STREAMLOADER_CACHE`` or else in the user's cache folder."""
    root = os.environ.get(_CACHE_VARIABLE) or platformdirs.user_cache_dir("streamloader")
    return Path(os.path.abspath(root)) / "index"


def load_index(
    video: Video,
    *,
    damaged: str = "raise",
    version: tuple[int, int] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> VideoIndex:
    """Return the index of the current version of a video, from the cache if possible. A new index is cached.

    The index of a video in a store is valid for its version; if the store has no versions, for its size and
    modification time. A cache file is used only if all its values are possible for the video: another user or program
    may have written it.

    Args:
        video: Path of a local file, or a video in a store.
        damaged: ``"raise"`` or ``"keep"``, as for :func:`streamloader.media.video.indexer.index_video`.
        version: (size in bytes, modification time in ns) of a local file. Defaults to reading them.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        StreamloaderError: If :func:`streamloader.media.video.indexer.index_video` fails. A cache file that cannot be
            read or written is not an error: the video is indexed again.
        ConfigError: If other users can change what is in the folder that ``STREAMLOADER_CACHE`` names. The usual cache
            folder is only ignored then, with a warning.
    """
    file, header = _describe_cache_file(video, damaged, version)
    index = _read_checked(file, header, video, max_pixels)
    if index is None:
        index = index_video(video, damaged=damaged, max_pixels=max_pixels)
        _write(file, header, index)
    return index


def index_video(video: Video, *, damaged: str, max_pixels: int) -> VideoIndex:
    """Index a video. FFmpeg is only imported now: reading the cache does not need it."""
    from streamloader.media.video import indexer

    return indexer.index_video(video, damaged=damaged, max_pixels=max_pixels)


def find_index(video: Video, *, damaged: str, version: tuple[int, int] | None, max_pixels: int) -> VideoIndex | None:
    """Return the index of a video if it is in the cache. The arguments are those of :func:`load_index`.

    Raises:
        MediaLimitExceeded: If the frames of the video exceed `max_pixels`.
    """
    return _read_checked(*_describe_cache_file(video, damaged, version), video, max_pixels)


def _describe_cache_file(video: Video, damaged: str, version: tuple[int, int] | None) -> tuple[Path, dict[str, Any]]:
    """Return the path of a cache file, and the header that it has if it is valid."""
    header: dict[str, Any] = {"format": _FORMAT}
    if isinstance(video, str):
        name = os.path.abspath(video)
        version = version or file_version(video)
        header |= {"path": name, "size": version[0], "mtime_ns": version[1]}
    else:
        name, info = video.identity, video.info
        header |= {"address": str(video), "size": info.size, "version": info.version}
        if info.version is None:
            header["modified"] = info.modified
    return _cache_file(name, damaged), header


def _read_checked(file: Path, header: dict[str, Any], video: Video, max_pixels: int) -> VideoIndex | None:
    index = _read(file, header)
    if index is not None:
        PixelLimit(max_pixels, str(video)).check(index.width, index.height)
    return index


def _cache_file(name: str, damaged: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return index_cache_folder() / digest[:2] / f"{digest[2:40]}-{damaged}.index"


def _read(file: Path, header: dict[str, Any]) -> VideoIndex | None:
    """Return the index in a cache file, or None if the file is missing, damaged, or of another version."""
    stored = _read_file(file)
    if stored is None:
        return None
    try:
        size, checksum = _HEADER.unpack_from(stored)
        if zlib.crc32(memoryview(stored)[_HEADER.size :]) != checksum:
            raise ValueError("its checksum is wrong")
        offset = _HEADER.size + size
        document = json.loads(stored[_HEADER.size : offset])
        if not isinstance(document, dict):
            raise TypeError("its header is not a JSON object")
        if any(document.get(name) != value for name, value in header.items()):
            return None
        arrays: dict[str, Any] = {}
        for name in _ARRAYS:
            array = arrays[name] = np.frombuffer(stored, "<i8", document["arrays"][name], offset)
            offset += array.nbytes
        index = VideoIndex(
            **arrays,
            time_base=Fraction(*document["time_base"]),
            orientation=Orientation(*document["turn"]),
            initial_spans=tuple((start, end) for start, end in document["opening"]),
            **{name: document[name] for name in _SCALARS},
        )
        if problem := _find_problem(index, header["size"]):
            raise ValueError(problem)
    except _READ_ERRORS as error:
        _log.info("cannot use the cached index %s, indexing the video again: %s", file, make_printable(error))
        return None
    return index


def _find_problem(index: VideoIndex, size: int | None) -> str:
    """Return what is impossible in an index, or "".

    Args:
        index: Index from a cache file.
        size: Size of the video in bytes. None if it is unknown.
    """
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (  # each relies on those before it
        ("its arrays of key frames differ in length", lambda: _has_equal_keys(index)),
        ("its timestamps are not in order", lambda: _has_ordered_times(index)),
        ("a timestamp or its time base is out of range", lambda: _has_moderate_times(index)),
        ("its frame size is invalid", lambda: all(_is_count(side, _MAX_SIDE) for side in (index.height, index.width))),
        ("a value has the wrong type", lambda: _has_value_types(index)),
        ("its first byte ranges are invalid", lambda: _are_valid_spans(index.initial_spans, size)),
    )
    return next((problem for problem, check in checks if not check()), "")


def _has_equal_keys(index: VideoIndex) -> bool:
    return len(index.key_pts) == len(index.key_seek)


def _has_ordered_times(index: VideoIndex) -> bool:
    """Return whether times ascend. Compares neighbours, because their differences may exceed 64 bits."""
    pts, keys = index.pts, index.key_pts
    return len(pts) > 0 and bool((pts[1:] > pts[:-1]).all()) and bool((keys[1:] >= keys[:-1]).all())


def _has_moderate_times(index: VideoIndex) -> bool:
    """Return whether sums and differences of times fit into 64 bits."""
    arrays = [array for array in (index.pts, index.key_pts, index.key_seek) if len(array)]
    return (
        all(-_MAX_TIMESTAMP <= int(array.min()) <= int(array.max()) <= _MAX_TIMESTAMP for array in arrays)
        and type(index.end) is int
        and int(index.pts[-1]) <= index.end <= _MAX_TIMESTAMP
        and _is_count(index.time_base.numerator, _MAX_TIMESTAMP)
        and index.time_base.denominator <= _MAX_TIMESTAMP
    )


def _has_value_types(index: VideoIndex) -> bool:
    flags = (*index.orientation, index.has_pts, index.seekable, index.damaged)
    return all(type(flag) is bool for flag in flags) and isinstance(index.note, str)


def _is_count(value: object, limit: int) -> bool:
    return type(value) is int and 0 < value <= limit


def _are_valid_spans(spans: ByteSpans, size: int | None) -> bool:
    """Return whether byte ranges ascend, end within a file of `size` bytes, and are small enough to be kept."""
    end = 0
    for start, stop in spans:
        if type(start) is not int or type(stop) is not int or not end <= start < stop:
            return False
        end = stop
    total = sum(stop - start for start, stop in spans)
    return total <= MAX_FILE_BYTES and (size is None or end <= size)


def _write(file: Path, header: dict[str, Any], index: VideoIndex) -> None:
    document = header | {
        "time_base": [index.time_base.numerator, index.time_base.denominator],
        "turn": list(index.orientation),
        "opening": index.initial_spans,
    }
    document |= {name: getattr(index, name) for name in _SCALARS}
    arrays = {name: np.ascontiguousarray(getattr(index, name), "<i8") for name in _ARRAYS}
    document["arrays"] = {name: len(array) for name, array in arrays.items()}
    encoded = json.dumps(document).encode()
    body = b"".join([encoded, *(array.tobytes() for array in arrays.values())])
    _write_file(file, _HEADER.pack(len(encoded), zlib.crc32(body)) + body)


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(file: Path) -> bytes | None:
    """Return the content of a cache file, or None if there is none that can be used."""
    try:
        with _open_subfolder(file) as subfolder, os.fdopen(subfolder.open_file(file.name), "rb") as stored:
            content = stored.read(_MAX_FILE_BYTES + 1)
        if len(content) <= _MAX_FILE_BYTES:
            return content
        _log.info("cannot use the cached index %s: it has more than %d bytes", file, _MAX_FILE_BYTES)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.info("cannot read the cached index %s: %s", file, error)
    return None


def _write_file(file: Path, content: bytes) -> None:
    """Write a cache file atomically, if that is possible."""
    temporary = f".new-{secrets.token_hex(8)}.index"
    try:
        with _open_subfolder(file, create=True) as subfolder:
            try:
                with os.fdopen(subfolder.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as output:
                    output.write(content)
                subfolder.replace(temporary, file.name)
            except OSError:
                with contextlib.suppress(OSError):
                    subfolder.unlink(temporary)
                raise
    except OSError as error:
        _log.info("cannot write the cached index %s: %s", file, error)


def _open_subfolder(file: Path, *, create: bool = False) -> GuardedFolder:
    """Open the folder of a cache file.

    Raises:
        ConfigError: If others can change what is in it, and the user named the cache folder.
        OSError: If the folder cannot be used otherwise.
    """
    try:
        with GuardedFolder(str(file.parents[1]), create=create) as folder:
            return folder.open_folder(file.parent.name, create=create)
    except UnsafePath as error:
        if os.environ.get(_CACHE_VARIABLE):
            raise ConfigError(
                f"the indexes of videos cannot be cached in {_CACHE_VARIABLE}: {error.message}",
                address=str(file.parent),
            ) from error
        _warn_once(error.message)
        raise


@functools.cache
def _warn_once(problem: str) -> None:
    _log.warning("the indexes of videos are not cached: %s. Or let %s name another folder", problem, _CACHE_VARIABLE)
