"""Opening a video, and the one place where FFmpeg's errors become ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import av.error

from streamloader.errors import CorruptStream, StreamloaderError, StreamNotFound, UnreadableStream
from streamloader.media.video.remote import ReadInterrupted, Video, VideoFile
from streamloader.media.video.structure import declared_size

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["BUFFER", "broken", "decoding", "file_version", "open_video"]

BUFFER: Final = 256 << 10  # bytes that FFmpeg asks for at a time, of a video in a store
# Demuxers that read a list of other files or render text; a data set names its files itself.
_NOT_VIDEOS: Final = frozenset({"hls", "dash", "concat", "concatf", "imf", "lavfi", "tty", "avisynth", "vapoursynth"})


# These go by the name of the file and look for others like it; what is in a store has no name here.
_BY_NAME: Final = frozenset({"image2"})


@lru_cache(maxsize=2)
def _formats(*, by_name: bool) -> str:
    return ",".join(sorted(av.formats_available - _NOT_VIDEOS - (frozenset() if by_name else _BY_NAME)))


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


def open_video(video: Video, file: VideoFile | None = None) -> tuple[InputContainer, VideoStream]:
    """Open a video, and its best video stream for decoding in the calling thread alone.

    Args:
        video: the path of a local file, or one in a store.
        file: of a video in a store: its bytes, which stay open when the container is closed.

    Raises:
        StreamNotFound: there is no such file.
        UnreadableStream: FFmpeg cannot open it, or it holds no video.
        StoreError: its bytes could not be had.
    """
    options = {"format_whitelist": _formats(by_name=isinstance(video, str))}
    try:
        if isinstance(video, str):
            file_version(video)
            options["protocol_whitelist"] = "file"
            container = av.open("file:" + os.path.abspath(video), options=options, metadata_errors="replace")
        else:
            container = _open_remote(file, options)
    except StreamloaderError as error:
        error.stream = error.stream or str(video)
        raise
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(video, file, f"cannot be opened as a video: {_reason(error)}") from error
    try:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
            raise _unreadable(video, file, f"holds no video (only: {', '.join(kinds)})")
        if stream.codec_context is None:
            raise _unreadable(video, file, "cannot be decoded: this build of FFmpeg has no decoder for its codec")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        stream.codec_context.thread_count = 1  # lanes are the parallelism
    except BaseException:
        container.close()
        raise
    return container, stream  # type: ignore[return-value]


def _open_remote(file: VideoFile | None, options: dict[str, str]) -> InputContainer:
    assert file is not None, "a video in a store is read through a VideoFile"
    if file.remote.size == 0:
        raise ValueError("it is empty (0 bytes)")
    file.renew()
    # No protocol has this name: whatever the bytes say, FFmpeg opens no file and no address on their behalf.
    options["protocol_whitelist"] = "none"
    container: InputContainer = av.open(file, "r", options=options, metadata_errors="replace", buffer_size=BUFFER)
    return container


def _unreadable(video: Video, file: VideoFile | None, what: str) -> UnreadableStream:
    name = str(video)
    if isinstance(video, str):
        size, declared = os.path.getsize(video), declared_size(video)
    else:
        assert file is not None
        size, declared = file.remote.size, declared_size(file)
    cut = declared is not None and declared > size
    if cut:
        what += f". It breaks off: its structure says {declared} bytes, but it ends at byte {size}"
    return UnreadableStream(f"{name} {what}", stream=name, address=name, offset=size if cut else None)


@contextlib.contextmanager
def decoding(video: Video, frame: int | None = None) -> Iterator[None]:
    """Turn FFmpeg's errors of a running decoder into :class:`CorruptStream`; those of a store stay what they are."""
    try:
        yield
    except StreamloaderError as error:
        error.stream = error.stream or str(video)
        raise
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None
    except (av.error.FFmpegError, EOFError) as error:
        raise broken(video, frame, error) from error


def broken(video: Video, frame: int | None, error: BaseException) -> CorruptStream:
    """Describe FFmpeg's `error` at frame number `frame` of the video."""
    where = "" if frame is None else f" at frame {frame}"
    name = str(video)
    return CorruptStream(
        f"{name} breaks off or is damaged{where}: {_reason(error)}. "
        'Repair or remove the file, or pass damaged="keep" to play what can be decoded',
        stream=name,
        address=name,
        offset=frame,
    )


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{text} ({log[2].strip()})" if log else str(text)
