"""Videos in a store: their description, and the file object through which FFmpeg reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from typing_extensions import override

from streamloader.errors import LimitExceeded
from streamloader.redaction import identify_address, redact_address
from streamloader.stores.readahead import MAX_FILE_BYTES, UNIT_BYTES, RemoteFile
from streamloader.values import ObjectInfo

__all__ = [
    "ByteSpans", "ReadInterrupted", "RemoteVideo", "Video", "VideoFile", "join_units", "open_second_file",
    "open_video_file",
]  # fmt: skip

ByteSpans: TypeAlias = "tuple[tuple[int, int], ...]"

_EXTENSION: Final = re.compile(r"\.[A-Za-z0-9]{1,8}$")


@dataclass(frozen=True, slots=True)
class RemoteVideo:
    """One version of a video in a store. ``str()`` returns its address without secrets, for messages.

    Attributes:
        address: Address of the object, including secrets.
        info: Metadata of the object, as reported by its store.
        options: Keyword arguments for opening the store. Defaults to none.
    """

    address: str = field(repr=False)
    info: ObjectInfo = field(repr=False)
    options: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return redact_address(self.address)

    @property
    def identity(self) -> str:
        """Text that distinguishes the object from all others. It may contain secrets; only its digest may be stored."""
        return identify_address(self.address)


Video: TypeAlias = "str | RemoteVideo"  # a str is the path of a local file


class VideoFile:
    """A file object through which FFmpeg reads a video in a store.

    After an error of its input, FFmpeg may report another error, continue, or take it for the end of the file. The
    first error is therefore final until :meth:`restart`: every later read returns no bytes, and PyAV raises that first
    error unchanged when FFmpeg's call returns. An error that is not an Exception, such as KeyboardInterrupt, cannot
    pass through FFmpeg: :class:`ReadInterrupted` carries it.

    Attributes:
        remote: The object in the store.
        name: File name with the extension of the address, which is all that FFmpeg learns about the address. FFmpeg
            never opens this name.
    """

    def __init__(self, remote: RemoteFile, name: str) -> None:
        extension = _EXTENSION.search(name.partition("?")[0])  # without the query of a URL
        self.remote = remote
        self.name = f"video{extension[0]}" if extension else "video"
        self._failed = False
        self._read_units: set[int] | None = None
        self._unproductive_bytes = 0  # read since the last packet

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.remote.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position in bytes and return it."""
        return self.remote.seek(offset, whence)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; no bytes at the end of the file and after an error."""
        if self._failed:
            return b""
        try:
            data = self.remote.read(size)
            self._count_unproductive(len(data))
        except Exception:
            self._failed = True
            raise
        except BaseException as error:
            self._failed = True
            raise ReadInterrupted(error) from error
        if self._read_units is not None and data:
            end = self.remote.tell()
            self._read_units.update(range((end - len(data)) // UNIT_BYTES, (end - 1) // UNIT_BYTES + 1))
        return data

    def restart(self) -> None:
        """Clear an earlier error and return to the start of the file, before a new container is opened."""
        self._failed = False
        self._unproductive_bytes = 0
        self.remote.seek(0)

    def mark_progress(self) -> None:
        """Called when the demuxer has found a packet of the video."""
        self._unproductive_bytes = 0

    def _count_unproductive(self, count: int) -> None:
        """Count bytes in which the demuxer has found no packet. A header, or padding, may otherwise have no end.

        Raises:
            LimitExceeded: If there are too many.
        """
        self._unproductive_bytes += count
        limit = self.remote.limits.header_bytes
        if self._unproductive_bytes > limit:
            raise LimitExceeded(
                f"no packet of a video was found in {limit} bytes of this file, up to byte {self.remote.tell()}: it is "
                "not a video, or its header is too large. If it is correct, raise Limits(header_bytes=...)",
                address=self.remote.address,
                offset=self.remote.tell(),
            )

    def start_recording(self) -> None:
        """Start to record which byte ranges are read."""
        self._read_units = set()

    def stop_recording(self) -> ByteSpans:
        """Return the byte ranges read since :meth:`start_recording`, in whole units; empty if they are too large."""
        units, self._read_units = sorted(self._read_units or ()), None
        if len(units) * UNIT_BYTES > MAX_FILE_BYTES // 2:
            return ()
        return join_units(units, self.remote.size)

    def close(self) -> None:
        """Close the file."""
        self.remote.close()


def join_units(units: Iterable[int], size: int) -> ByteSpans:
    """Return the byte ranges of numbered units of a file of `size` bytes, in order and without gaps between units."""
    spans: list[tuple[int, int]] = []
    for unit in sorted(units):
        start, end = unit * UNIT_BYTES, min((unit + 1) * UNIT_BYTES, size)
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    return tuple(spans)


class ReadInterrupted(Exception):
    """Carries an exception that interrupted a read, such as KeyboardInterrupt, through FFmpeg.

    Attributes:
        reason: The interrupting exception.
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__(repr(reason))
        self.reason = reason


class _BorrowingFile(RemoteFile):
    """A file over an object that another file reads at about the same position: what that one has is not fetched again.

    Args:
        lender: The other file, which is used by the same thread.
        video: The object.
    """

    def __init__(self, lender: RemoteFile, video: RemoteVideo) -> None:
        super().__init__(video.address, video.info, video.options)
        self._lender = lender

    @override
    def _take(self, size: int) -> memoryview:
        view = self._lender.peek(self._position, size)
        if not view:
            return super()._take(size)
        self._position += len(view)
        return view


def open_second_file(video: Video, file: VideoFile | None) -> VideoFile | None:
    """Open the bytes of a video in a store once more, for another reader at about the same position in the same thread.

    Args:
        video: Path of a local file, for which None is returned, or a video in a store.
        file: Open bytes of the video.
    """
    if isinstance(video, str):
        return None
    assert file is not None, "a video in a store is read through a VideoFile"
    return VideoFile(_BorrowingFile(file.remote, video), video.info.path)


def open_video_file(video: Video, initial_spans: Iterable[tuple[int, int]] = ()) -> VideoFile | None:
    """Open the bytes of a video in a store. Return None for a local video, which FFmpeg reads directly.

    Args:
        video: Path of a local file, or a video in a store.
        initial_spans: Byte ranges that will be read first. They are requested at once.
    """
    if isinstance(video, str):
        return None
    remote = RemoteFile(video.address, video.info, video.options, initial_spans=initial_spans)
    return VideoFile(remote, video.info.path)
