"""Open videos with FFmpeg, and translate FFmpeg's errors into errors of this package."""

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

__all__ = ["IO_BUFFER_BYTES", "decode_error", "file_version", "open_video", "translate_errors"]

IO_BUFFER_BYTES: Final = 256 << 10  # size of FFmpeg's reads of a video in a store
# Demuxers that open further files listed in the input, or render text: a dataset lists its files itself.
_EXCLUDED_DEMUXERS: Final = frozenset(
    {"hls", "dash", "concat", "concatf", "imf", "lavfi", "tty", "avisynth", "vapoursynth"}
)
# Demuxers that find further files by the name of the input: a video in a store has no file name.
_NAME_BASED_DEMUXERS: Final = frozenset({"image2"})


@lru_cache(maxsize=2)
def _allowed_demuxers(*, local: bool) -> str:
    excluded = _EXCLUDED_DEMUXERS | (frozenset() if local else _NAME_BASED_DEMUXERS)
    return ",".join(sorted(av.formats_available - excluded))


def file_version(path: str) -> tuple[int, int]:
    """Return (size in bytes, modification time in ns) of a local file.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If the path is not a file, or the file is empty or cannot be read.
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
    """Open a video and its best video stream, for decoding in the calling thread only.

    Args:
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store. They stay open when the container is closed.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If FFmpeg cannot open the file, or it contains no video.
        StoreError: If the store fails to deliver bytes.
    """
    options = {"format_whitelist": _allowed_demuxers(local=isinstance(video, str))}
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
        raise _unreadable_error(video, file, f"cannot be opened as a video: {_ffmpeg_message(error)}") from error
    try:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = sorted({str(s.type) for s in container.streams}) or ["nothing"]
            raise _unreadable_error(video, file, f"contains no video (only: {', '.join(kinds)})")
        if stream.codec_context is None:
            raise _unreadable_error(video, file, "cannot be decoded: this build of FFmpeg has no decoder for its codec")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        stream.codec_context.thread_count = 1  # lanes already run in parallel
    except BaseException:
        container.close()
        raise
    return container, stream  # type: ignore[return-value]


def _open_remote(file: VideoFile | None, options: dict[str, str]) -> InputContainer:
    assert file is not None, "a video in a store is read through a VideoFile"
    if file.remote.size == 0:
        raise ValueError("it is empty (0 bytes)")
    file.restart()
    # No protocol has this name: FFmpeg must not open a file or an address that the bytes refer to.
    options["protocol_whitelist"] = "none"
    container: InputContainer = av.open(
        file, "r", options=options, metadata_errors="replace", buffer_size=IO_BUFFER_BYTES
    )
    return container


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
        f"{name} is truncated or damaged{where}: {_ffmpeg_message(error)}. "
        'Repair or remove the file, or pass damaged="keep" to use the frames that can be decoded',
        stream=name,
        address=name,
        offset=frame,
    )


def _ffmpeg_message(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{text} ({log[2].strip()})" if log else str(text)
