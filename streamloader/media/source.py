"""Opening a video file, and the one place where FFmpeg's errors become ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error

from streamloader.errors import CorruptStream, StreamloaderError, StreamNotFound, UnreadableStream
from streamloader.media.structure import declared_size

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["broken", "decoding", "file_version", "open_video"]

# Demuxers that read a list of other files or render text; a data set names its files itself.
_NOT_VIDEOS = frozenset({"hls", "dash", "concat", "concatf", "imf", "lavfi", "tty", "avisynth", "vapoursynth"})


@lru_cache(maxsize=1)
def _formats() -> str:
    return ",".join(sorted(av.formats_available - _NOT_VIDEOS))


def file_version(path: str) -> tuple[int, int]:
    """Return (size in bytes, modification time in ns) of the file.

    Raises:
        StreamNotFound: there is no such file.
        UnreadableStream: it is no file, is empty, or may not be read.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise StreamNotFound(f"no such video file: {path}", stream=path, address=path) from error
    except OSError as error:
        raise UnreadableStream(f"{path} cannot be read: {error.strerror}", stream=path, address=path) from error
    if not Path(path).is_file():
        raise UnreadableStream(f"{path} is not a file", stream=path, address=path)
    if status.st_size == 0:
        raise UnreadableStream(f"{path} is empty (0 bytes)", stream=path, address=path)
    return status.st_size, status.st_mtime_ns


def open_video(path: str) -> tuple[InputContainer, VideoStream]:
    """Open a local file, and its best video stream for decoding in the calling thread alone.

    Raises:
        StreamNotFound: there is no such file.
        UnreadableStream: FFmpeg cannot open it, or it holds no video.
    """
    file_version(path)
    options = {"protocol_whitelist": "file", "format_whitelist": _formats()}
    try:
        container = av.open("file:" + os.path.abspath(path), options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, f"cannot be opened as a video: {_reason(error)}") from error
    try:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
            raise _unreadable(path, f"holds no video (only: {', '.join(kinds)})")
        if stream.codec_context is None:
            raise _unreadable(path, "cannot be decoded: this build of FFmpeg has no decoder for its codec")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        stream.codec_context.thread_count = 1  # lanes are the parallelism
    except BaseException:
        container.close()
        raise
    return container, stream  # type: ignore[return-value]


def _unreadable(path: str, what: str) -> UnreadableStream:
    size, declared = os.path.getsize(path), declared_size(path)
    cut = declared is not None and declared > size
    if cut:
        what += f". It breaks off: its structure says {declared} bytes, but it ends at byte {size}"
    return UnreadableStream(f"{path} {what}", stream=path, address=path, offset=size if cut else None)


@contextlib.contextmanager
def decoding(path: str, frame: int | None = None) -> Iterator[None]:
    """Turn FFmpeg's errors of a running decoder into :class:`CorruptStream`."""
    try:
        yield
    except StreamloaderError:
        raise
    except (av.error.FFmpegError, EOFError) as error:
        raise broken(path, frame, error) from error


def broken(path: str, frame: int | None, error: BaseException) -> CorruptStream:
    """Describe FFmpeg's `error` at frame number `frame` of the file."""
    where = "" if frame is None else f" at frame {frame}"
    return CorruptStream(
        f"{path} breaks off or is damaged{where}: {_reason(error)}. "
        'Repair or remove the file, or pass damaged="keep" to play what can be decoded',
        stream=path,
        address=path,
        offset=frame,
    )


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{text} ({log[2].strip()})" if log else str(text)
