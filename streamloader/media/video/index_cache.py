"""Index results on disk, one small file for each video, good for one version of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import tempfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import platformdirs

from streamloader.media.video.index import VideoIndex
from streamloader.media.video.indexer import index_video
from streamloader.media.video.orientation import Turn
from streamloader.media.video.remote import Video
from streamloader.media.video.source import file_version

__all__ = ["cache_folder", "cached_index"]

_FORMAT: Final = 3  # of the files below; and of what index_video finds: raise it when either changes
_ARRAYS: Final = ("pts", "key_pts", "key_seek", "key_hard")
# A file: the size of what is told (JSON), a CRC-32 of all that follows, what is told, the arrays end to end. NumPy's
# own format is read by a parser that CPython 3.11 cannot run in several threads at a time (SystemError).
_HEAD: Final = struct.Struct("<QI")
_log = logging.getLogger("streamloader")


def cache_folder() -> Path:
    """Return the folder of cached indexes: under ``$STREAMLOADER_CACHE``, else under the user's cache folder."""
    root = os.environ.get("STREAMLOADER_CACHE") or platformdirs.user_cache_dir("streamloader")
    return Path(root) / "index"


def cached_index(video: Video, *, damaged: str = "raise", version: tuple[int, int] | None = None) -> VideoIndex:
    """Return the index of the video as it is now, from the cache or freshly made (and then cached).

    That of a video in a store is good for its version there; where the store has none, for its size and time.

    Args:
        video: the path of a local file, or one in a store.
        damaged: see :func:`streamloader.media.video.indexer.index_video`.
        version: (size, mtime_ns) of a local file where the caller has just looked.

    Raises:
        Whatever :func:`streamloader.media.video.indexer.index_video` raises. A cache that is unreadable, broken or not
        writable never raises: the index is made again.
    """
    header: dict[str, Any] = {"format": _FORMAT}
    if isinstance(video, str):
        name = os.path.abspath(video)
        version = version or file_version(video)
        header |= {"path": name, "size": version[0], "mtime_ns": version[1]}
    else:
        name, info = str(video), video.info
        header |= {"address": name, "size": info.size, "version": info.version}
        if info.version is None:
            header["modified"] = info.modified
    file = _cache_file(name, damaged)
    index = _load(file, header)
    if index is None:
        index = index_video(video, damaged=damaged)
        _save(file, header, index)
    return index


def _cache_file(name: str, damaged: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / digest[:2] / f"{digest[2:40]}-{damaged}.index"


def _load(file: Path, header: dict[str, Any]) -> VideoIndex | None:
    try:
        stored = file.read_bytes()
        size, checksum = _HEAD.unpack_from(stored)
        if zlib.crc32(memoryview(stored)[_HEAD.size :]) != checksum:
            raise ValueError("its checksum is wrong")
        at = _HEAD.size + size
        facts = json.loads(stored[_HEAD.size : at])
        if any(facts.get(name) != value for name, value in header.items()):
            return None
        arrays: dict[str, Any] = {}
        for name, (dtype, count) in facts["arrays"].items():
            array = arrays[name] = np.frombuffer(stored, dtype, count, at)
            at += array.nbytes
        index = VideoIndex(
            **arrays,
            time_base=Fraction(*facts["time_base"]),
            turn=Turn(*facts["turn"]),
            opening=tuple((int(start), int(end)) for start, end in facts["opening"]),
            **{name: facts[name] for name in ("end", "height", "width", "has_pts", "seekable", "damaged", "note")},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        _log.info("index cache %s is unusable, making it again: %s", file, error)
        return None
    return index if _is_sane(index) else None


def _is_sane(index: VideoIndex) -> bool:
    if any(getattr(index, name).ndim != 1 for name in _ARRAYS) or index.key_hard.dtype != np.bool_:
        return False
    if any(getattr(index, name).dtype != np.int64 for name in _ARRAYS[:-1]):
        return False
    if not len(index.key_pts) == len(index.key_seek) == len(index.key_hard):
        return False
    return len(index.pts) > 0 and bool((np.diff(index.pts) > 0).all()) and index.height > 0 and index.width > 0


def _save(file: Path, header: dict[str, Any], index: VideoIndex) -> None:
    facts = header | {
        "time_base": [index.time_base.numerator, index.time_base.denominator],
        "turn": list(index.turn),
        "opening": index.opening,
    }
    facts |= {
        name: getattr(index, name) for name in ("end", "height", "width", "has_pts", "seekable", "damaged", "note")
    }
    arrays = {name: np.ascontiguousarray(getattr(index, name)) for name in _ARRAYS}
    told = json.dumps(facts | {"arrays": {name: [array.dtype.str, len(array)] for name, array in arrays.items()}})
    body = b"".join([told.encode(), *(array.tobytes() for array in arrays.values())])
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".new-", suffix=".index", delete=False) as output:
            temporary = output.name
            output.write(_HEAD.pack(len(told.encode()), zlib.crc32(body)) + body)
        os.replace(temporary, file)
    except OSError as error:
        _log.info("cannot write the index cache %s: %s", file, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
