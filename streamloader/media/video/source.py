"""Open videos with FFmpeg, and translate FFmpeg's errors into errors of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import av

from streamloader.errors import CorruptStream
from streamloader.media.video.container import (
    ALLOWED_CONTAINERS,
    check_declarations,
    open_container,
    open_undecoded,
)
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.remote import Video, VideoFile
from streamloader.media.video.source_errors import (
    ffmpeg_message,
    require_source,
    translate_decoding_errors,
    translate_open_errors,
    unreadable_error,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = [
    "IO_BUFFER_BYTES",
    "check_video",
    "decode_error",
    "open_packets",
    "open_video",
    "translate_errors",
]

_FORMATS: Final = f" ({', '.join(ALLOWED_CONTAINERS)})"
IO_BUFFER_BYTES: Final = 256 << 10  # size of FFmpeg's reads of a video in a store


def check_video(video: Video, file: VideoFile | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Check what a video declares before any decoder is opened, with the arguments and errors of :func:`open_video`."""
    with translate_open_errors(video, file, "video", _FORMATS):
        limit = PixelLimit(max_pixels, str(video))
        check_declarations(require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)


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
    with translate_open_errors(video, file, "video", _FORMATS):
        container = open_container(require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)
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
        with translate_open_errors(video, file, "video", _FORMATS):
            opening = open_undecoded(require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)
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
        raise unreadable_error(video, file, f"contains no video (only: {', '.join(kinds)})")
    if stream.codec_context is None:
        raise unreadable_error(video, file, "cannot be decoded: this build of FFmpeg has no decoder for its codec")
    return stream  # type: ignore[return-value]


def translate_errors(video: Video, frame: int | None = None) -> AbstractContextManager[None]:
    """Translate errors of FFmpeg into :class:`CorruptStream`. Errors of a store pass unchanged.

    Args:
        video: Path of a local file, or a video in a store.
        frame: Number of the frame being decoded, for the message. Defaults to none.
    """
    return translate_decoding_errors(video, lambda error: decode_error(video, frame, error))


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
