"""Open videos with FFmpeg, and translate FFmpeg's errors into errors of this package."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import av
import av.error

from streamloader.errors import CorruptStream, StreamloaderError, UnreadableStream
from streamloader.media.video.container import (
    ALLOWED_CONTAINERS,
    check_declarations,
    identify_format,
    open_container,
    open_undecoded,
)
from streamloader.media.video.files import file_version
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.remote import ReadInterrupted, Video, VideoFile
from streamloader.media.video.structure import declared_size

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = [
    "IO_BUFFER_BYTES",
    "check_video",
    "decode_error",
    "ffmpeg_message",
    "open_packets",
    "open_video",
    "translate_errors",
]

IO_BUFFER_BYTES: Final = 256 << 10  # size of FFmpeg's reads of a video in a store


def check_video(video: Video, file: VideoFile | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Check what a video declares before any decoder is opened, with the arguments and errors of :func:`open_video`."""
    with _translate_open_errors(video, file):
        limit = PixelLimit(max_pixels, str(video))
        check_declarations(_require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)


def open_video(
    video: Video, file: VideoFile | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[InputContainer, VideoStream]:
    """Open a video and its best video stream, for decoding in the calling thread only.

    Args:
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store. They stay open when the container is closed.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If FFmpeg cannot open the file, or it contains no video.
        MediaLimitExceeded: If the file exceeds `max_pixels` or another limit.
        StoreError: If the store fails to deliver bytes.
    """
    limit = PixelLimit(max_pixels, str(video))
    with _translate_open_errors(video, file):
        container = open_container(_require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)
    try:
        stream = _find_stream(container, video, file)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        stream.codec_context.thread_count = 1  # lanes already run in parallel
        stream.codec_context.options = limit.decoder_option
    except BaseException:
        container.close()
        raise
    return container, stream


@contextlib.contextmanager
def open_packets(
    video: Video, file: VideoFile | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[tuple[InputContainer, VideoStream | None]]:
    """Open a video with all decoders disabled, which is fast, and check what it declares.

    The stream is None if the file has several video streams: FFmpeg chooses one of them after decoding frames of each.

    The arguments and errors are those of :func:`open_video`. The container is closed at the end of the context.
    """
    limit = PixelLimit(max_pixels, str(video))
    with contextlib.ExitStack() as stack:
        with _translate_open_errors(video, file):
            opening = open_undecoded(_require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)
            container = stack.enter_context(opening)
        stream = None if len(container.streams.video) > 1 else _find_stream(container, video, file)
        for other in container.streams:
            if other.type != "video":
                other.discard = av.stream.Discard.all
        yield container, stream


def _find_stream(container: InputContainer, video: Video, file: VideoFile | None) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
        raise _unreadable_error(video, file, f"contains no video (only: {', '.join(kinds)})")
    if stream.codec_context is None:
        raise _unreadable_error(video, file, "cannot be decoded: this build of FFmpeg has no decoder for its codec")
    return stream  # type: ignore[return-value]


def _require_source(video: Video, file: VideoFile | None) -> str | VideoFile:
    """Return what FFmpeg reads a video from: a path, or the open bytes of a video in a store. Neither is empty."""
    if isinstance(video, str):
        file_version(video)
        return os.path.abspath(video)
    assert file is not None, "a video in a store is read through a VideoFile"
    if file.remote.size == 0:
        raise ValueError("it is empty (0 bytes)")
    return file


@contextlib.contextmanager
def _translate_open_errors(video: Video, file: VideoFile | None) -> Iterator[None]:
    try:
        yield
    except StreamloaderError as error:
        error.stream = error.stream or str(video)
        raise
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = ffmpeg_message(error)
        if isinstance(error, av.error.FFmpegError):
            format_ = identify_format(_require_source(video, file))
            if format_ is not None:
                reason = f"it is {format_}, and not a video"
            elif error.errno == errno.EINVAL:  # this is FFmpeg's answer to a format that is not allowed
                reason = f"it has none of the accepted formats ({', '.join(ALLOWED_CONTAINERS)}), or is damaged"
        raise _unreadable_error(video, file, f"cannot be opened as a video: {reason}") from error


def _unreadable_error(video: Video, file: VideoFile | None, problem: str) -> UnreadableStream:
    name = str(video)
    if isinstance(video, str):
        size, declared = os.path.getsize(video), declared_size(video)
    else:
        assert file is not None
        size, declared = file.remote.size, declared_size(file)
    truncated = declared is not None and declared > size
    if truncated:
        problem += f". The file is truncated: it declares {declared} bytes, but ends at byte {size}"
    return UnreadableStream(f"{name} {problem}", stream=name, address=name, offset=size if truncated else None)


@contextlib.contextmanager
def translate_errors(video: Video, frame: int | None = None) -> Iterator[None]:
    """Translate errors of FFmpeg into :class:`CorruptStream`. Errors of a store pass unchanged.

    Args:
        video: Path of a local file, or a video in a store.
        frame: Number of the frame being decoded, for the message. Defaults to none.
    """
    try:
        yield
    except StreamloaderError as error:
        error.stream = error.stream or str(video)
        raise
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None
    except (av.error.FFmpegError, EOFError) as error:
        raise decode_error(video, frame, error) from error


def decode_error(video: Video, frame: int | None, error: BaseException) -> CorruptStream:
    """Build the error to raise for FFmpeg's `error` at frame number `frame` of the video."""
    where = "" if frame is None else f" at frame {frame}"
    name = str(video)
    return CorruptStream(
        f"{name} is truncated or damaged{where}: {ffmpeg_message(error)}. "
        'Repair or remove the file, or pass damaged="keep" to use the frames that can be decoded',
        stream=name,
        address=name,
        offset=frame,
    )


def ffmpeg_message(error: BaseException) -> str:
    """Return the text of an error of FFmpeg or of the system."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{text} ({log[2].strip()})" if log else str(text)
