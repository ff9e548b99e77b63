"""Videos that lie in a store: what names one, and the file through which FFmpeg reads it."""

from __future__ import annotations

import bisect
import operator
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from streamloader.redaction import redact
from streamloader.stores.readahead import FILE_BYTES, UNIT, RemoteFile
from streamloader.values import ObjectInfo

__all__ = ["RemoteVideo", "Spans", "Video", "VideoFile", "open_bytes"]

Spans: TypeAlias = "tuple[tuple[int, int], ...]"

_ENDING: Final = re.compile(r"\.[A-Za-z0-9]{1,8}$")
_ZEROS: Final = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class RemoteVideo:
    """A video in a store, in one version. ``str()`` of it names it in messages: without secrets.

    Attributes:
        address: of the object, secrets and all.
        info: what its store said of it.
        options: of the store.
    """

    address: str = field(repr=False)
    info: ObjectInfo = field(repr=False)
    options: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return redact(self.address)


Video: TypeAlias = "str | RemoteVideo"  # a str is the path of a local file


class VideoFile:
    """What FFmpeg reads a remote video through.

    FFmpeg makes several errors of its own of one that its input raises, tries to go on, or takes it for the end. So the
    first error is final until :meth:`renew`: PyAV raises it, as it is, when the call of FFmpeg returns.

    Attributes:
        remote: the file.
        name: all that FFmpeg gets to know of the address: its ending. Nothing is ever opened by this name.
        interrupted: what is no Exception (a KeyboardInterrupt) cannot pass through FFmpeg: it is kept here, and a
            :class:`ReadInterrupted` raised in its place.
        pieces: (start, end, bytes), sorted: what these spans read as instead of being fetched; None for zeros.
    """

    def __init__(self, remote: RemoteFile, name: str) -> None:
        ending = _ENDING.search(name.partition("?")[0])  # without the query of an URL
        self.remote = remote
        self.name = f"video{ending[0]}" if ending else "video"
        self.pieces: list[tuple[int, int, bytes | None]] = []
        self._failed = False
        self._touched: set[int] | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.remote.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go there."""
        return self.remote.seek(offset, whence)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; nothing at the end, and after an error."""
        if self._failed:
            return b""
        try:
            if self.pieces:
                return self._read_pieces(size)
            data = self.remote.read(size)
        except Exception:
            self._failed = True
            raise
        except BaseException as error:
            self._failed = True
            raise ReadInterrupted(error) from error
        if self._touched is not None and data:
            end = self.remote.tell()
            self._touched.update(range((end - len(data)) // UNIT, (end - 1) // UNIT + 1))
        return data

    def renew(self) -> None:
        """Begin again, for a container that is opened anew, after whatever happened."""
        self._failed = False
        self.remote.seek(0)

    def watch(self) -> None:
        """Begin to note what is read."""
        self._touched = set()

    def watched(self) -> Spans:
        """Return which spans were read since :meth:`watch`, in whole units; none if that is much."""
        units, self._touched = sorted(self._touched or ()), None
        if len(units) * UNIT > FILE_BYTES // 2:
            return ()
        spans: list[tuple[int, int]] = []
        for unit in units:
            start, end = unit * UNIT, min((unit + 1) * UNIT, self.remote.size)
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, end))
        return tuple(spans)

    def close(self) -> None:
        """Close the file."""
        self.remote.close()

    def _read_pieces(self, size: int) -> bytes:
        at = self.remote.tell()
        number = bisect.bisect_right(self.pieces, at, key=operator.itemgetter(0))
        if number:
            start, end, data = self.pieces[number - 1]
            if at < end:
                count = min(size, end - at, len(_ZEROS))
                self.remote.seek(count, os.SEEK_CUR)
                return _ZEROS[:count] if data is None else data[at - start : at - start + count]
        if number < len(self.pieces):
            size = min(size, self.pieces[number][0] - at)
        return self.remote.read(size)


class ReadInterrupted(Exception):
    """Carries an interruption of a read out of FFmpeg."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(repr(reason))
        self.reason = reason


def open_bytes(video: Video, opening: Iterable[tuple[int, int]] = ()) -> VideoFile | None:
    """Open the bytes of a remote video; None for a local one, which FFmpeg reads by itself.

    Args:
        video: which one.
        opening: spans of it that are going to be read first.
    """
    if isinstance(video, str):
        return None
    remote = RemoteFile(video.address, video.info, video.options, opening=opening)
    return VideoFile(remote, video.info.path)
