"""Cache of video indexes on disk: one small file per video, valid for one version of it.

The name of a file is a digest of the path or address, without the parts that are known to be secret
(:func:`streamloader.redaction.identify_address`). The header of a file shows the address as messages do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import platformdirs

from streamloader.common.printable import make_printable
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.indexer import index_video
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.remote import ByteSpans, Video
from streamloader.media.video.source import file_version
from streamloader.stores.readahead import MAX_FILE_BYTES

__all__ = ["index_cache_folder", "load_index"]

_FORMAT: Final = 3  # raise it when the files below or the results of index_video change
# The names of the arrays in a file -> the attributes of VideoIndex.
_ARRAYS: Final = {"pts": "pts", "key_pts": "key_pts", "key_seek": "key_seek", "key_hard": "key_clean"}
_DTYPES: Final = frozenset({np.dtype(np.int64).str, np.dtype(np.bool_).str})
_SCALARS: Final = ("end", "height", "width", "has_pts", "seekable", "damaged", "note")
# A file holds: the size in bytes of a JSON object, a CRC-32 of all that follows, the JSON object, the arrays end to
# end. NumPy's own format is not used because CPython 3.11 cannot run its parser in several threads (SystemError).
_HEADER: Final = struct.Struct("<QI")
# What reading a file raises whose header, JSON values or arrays are not those of this format.
_READ_ERRORS: Final = (
    ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError, struct.error,
)  # fmt: skip
_MAX_TIMESTAMP: Final = 1 << 62  # so that sums and differences of timestamps fit into 64 bits
_MAX_SIDE: Final = 1 << 20  # pixels
_log = logging.getLogger("streamloader")


def index_cache_folder() -> Path:
    """Return the folder of cached indexes, in ``$STREAMLOADER_CACHE`` or else in the user's cache folder."""
    root = os.environ.get("STREAMLOADER_CACHE") or platformdirs.user_cache_dir("streamloader")
    return Path(root) / "index"


def load_index(video: Video, *, damaged: str = "raise", version: tuple[int, int] | None = None) -> VideoIndex:
    """Return the index of the current version of a video, from the cache if possible. A new index is cached.

    The index of a video in a store is valid for its version; if the store has no versions, for its size and
    modification time. A cache file is used only if all its values are possible for the video: another user or program
    may have written it.

    Args:
        video: Path of a local file, or a video in a store.
        damaged: ``"raise"`` or ``"keep"``, as for :func:`streamloader.media.video.indexer.index_video`.
        version: (size in bytes, modification time in ns) of a local file. Defaults to reading them.

    Raises:
        StreamloaderError: If :func:`streamloader.media.video.indexer.index_video` fails. A cache file that cannot be
            read or written is not an error: the video is indexed again.
    """
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
    file = _cache_file(name, damaged)
    index = _read(file, header)
    if index is None:
        index = index_video(video, damaged=damaged)
        _write(file, header, index)
    return index


def _cache_file(name: str, damaged: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return index_cache_folder() / digest[:2] / f"{digest[2:40]}-{damaged}.index"


def _read(file: Path, header: dict[str, Any]) -> VideoIndex | None:
    """Return the index in a cache file, or None if the file is missing, damaged, or of another version."""
    try:
        stored = file.read_bytes()
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
        for name, (dtype, count) in document["arrays"].items():
            if dtype not in _DTYPES:
                raise ValueError("an array has the wrong type")
            array = arrays[_ARRAYS[name]] = np.frombuffer(stored, dtype, count, offset)
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
    except FileNotFoundError:
        return None
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
        ("an array has the wrong type", lambda: _has_array_types(index)),
        ("its arrays of key frames differ in length", lambda: _has_equal_keys(index)),
        ("its timestamps are not in order", lambda: _has_ordered_times(index)),
        ("a timestamp or its time base is out of range", lambda: _has_moderate_times(index)),
        ("its frame size is invalid", lambda: all(_is_count(side, _MAX_SIDE) for side in (index.height, index.width))),
        ("a value has the wrong type", lambda: _has_value_types(index)),
        ("its first byte ranges are invalid", lambda: _are_valid_spans(index.initial_spans, size)),
    )
    return next((problem for problem, check in checks if not check()), "")


def _has_array_types(index: VideoIndex) -> bool:
    arrays = {name: getattr(index, name) for name in _ARRAYS.values()}
    return all(
        array.ndim == 1 and array.dtype == (np.bool_ if name == "key_clean" else np.int64)
        for name, array in arrays.items()
    )


def _has_equal_keys(index: VideoIndex) -> bool:
    return len(index.key_pts) == len(index.key_seek) == len(index.key_clean)


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
    arrays = {name: np.ascontiguousarray(getattr(index, attribute)) for name, attribute in _ARRAYS.items()}
    document["arrays"] = {name: [array.dtype.str, len(array)] for name, array in arrays.items()}
    encoded = json.dumps(document).encode()
    body = b"".join([encoded, *(array.tobytes() for array in arrays.values())])
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".new-", suffix=".index", delete=False) as output:
            temporary = output.name
            output.write(_HEADER.pack(len(encoded), zlib.crc32(body)) + body)
        os.replace(temporary, file)
    except OSError as error:
        _log.info("cannot write the cached index %s: %s", file, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
