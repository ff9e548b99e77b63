"""Open videos with FFmpeg, and translate FFmpeg's errors into errors of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import av
from av.stream import Disposition

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
    fence_foreign_errors,
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
    "choose_stream",
    "concealed_error",
    "decode_error",
    "list_streams",
    "missing_error",
    "open_packets",
    "open_video",
    "prefer_stream",
    "refuse_concealed",
    "translate_errors",
]

_FORMATS: Final = f" ({', '.join(ALLOWED_CONTAINERS)})"
# They conceal parts of a frame without marking it, unless they are set to refuse it. Others would refuse intact files.
_UNMARKING_DECODERS: Final = frozenset({"mjpeg"})
IO_BUFFER_BYTES: Final = 256 << 10  # size of FFmpeg's reads of a video in a store


def check_video(video: Video, file: VideoFile | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Check what a video declares before any decoder is opened, with the arguments and errors of :func:`open_video`."""
    with translate_open_errors(video, file, "video", _FORMATS):
        limit = PixelLimit(max_pixels, str(video))
        check_declarations(require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)


def open_video(
    video: Video,
    file: VideoFile | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    number: int | None = None,
) -> tuple[InputContainer, VideoStream]:
    """Open a video and one of its video streams, for decoding in the calling thread only.

    Args:
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store. They stay open when the container is closed.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        number: Number of the stream among :func:`list_streams`. Defaults to what :func:`choose_stream` chooses.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If FFmpeg cannot open the file, or it does not contain the stream.
        MediaLimitExceeded: If the file exceeds `max_pixels` or another limit.
        StoreError: If the store fails to deliver bytes.
    """
    limit = PixelLimit(max_pixels, str(video))
    with translate_open_errors(video, file, "video", _FORMATS):
        container = open_container(require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)
    try:
        with fence_foreign_errors(video):
            stream = choose_stream(container, video, file, number)
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
    video: Video,
    file: VideoFile | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    number: int | None = None,
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video with all decoders disabled, which is fast, and check what it declares.

    The arguments and errors are those of :func:`open_video`. The container is closed at the end of the context.
    """
    limit = PixelLimit(max_pixels, str(video))
    with contextlib.ExitStack() as stack:
        with translate_open_errors(video, file, "video", _FORMATS):
            opening = open_undecoded(require_source(video, file), limit, buffer_bytes=IO_BUFFER_BYTES)
            container = stack.enter_context(opening)
        with fence_foreign_errors(video):
            stream = choose_stream(container, video, file, number)
        for other in container.streams:
            if other.type != "video":
                other.discard = av.stream.Discard.all
        yield container, stream


def list_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams of a file in their order, without cover pictures and thumbnails."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def choose_stream(
    container: InputContainer, video: Video, file: VideoFile | None, number: int | None = None
) -> VideoStream:
    """Return a video stream of a file. The choice depends only on what the container declares.

    Args:
        container: Open file.
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store.
        number: Number of the stream among :func:`list_streams`. By default, the first one that the container marks as
            default, else the first one. Still pictures, streams that depend on others, and streams of codecs that
            cannot be decoded are only chosen where there is nothing else.

    Raises:
        UnreadableStream: If there is no such stream, or no decoder for it.
    """
    streams = list_streams(container)
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        raise unreadable_error(video, file, f"contains no video (only: {', '.join(kinds)})")
    if number is not None and number >= len(streams):
        raise unreadable_error(
            video, file, f"has {len(streams)} video {'stream' if len(streams) == 1 else 'streams'}, numbered from 0, "
            f"so there is no stream {number}",
        )  # fmt: skip
    stream = prefer_stream(streams) if number is None else streams[number]
    if stream.codec_context is None:
        raise unreadable_error(
            video,
            file,
            "cannot be decoded: this build of FFmpeg has no decoder for its codec, or the video is encrypted",
        )
    return stream


def prefer_stream(streams: Sequence[VideoStream]) -> VideoStream:
    """Return the stream that is chosen where the user chooses none, see :func:`choose_stream`."""
    return min(streams, key=_rank_stream)


def _rank_stream(stream: VideoStream) -> tuple[bool, bool, bool]:
    lesser = Disposition.still_image | Disposition.dependent
    return (
        stream.codec_context is None, bool(stream.disposition & lesser), not stream.disposition & Disposition.default,
    )  # fmt: skip


def refuse_concealed(stream: VideoStream, *, tolerant: bool = False) -> None:
    """Have a decoder raise an error where it would conceal parts of a frame without marking it. Others mark it.

    Args:
        stream: Stream whose decoder is not open yet.
        tolerant: Whether the decoder conceals them in any case. Defaults to False.
    """
    context = stream.codec_context
    if not tolerant and context.name in _UNMARKING_DECODERS and not context.is_open:
        context.options = {**context.options, "err_detect": "explode"}


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


def missing_error(video: Video, packet: int, reason: str) -> CorruptStream:
    """Build the error to raise where packets are missing before a packet that was read."""
    name = str(video)
    return CorruptStream(
        f"{name} is damaged: frames are missing before packet {packet}, and FFmpeg passes over them ({reason}). "
        'Repair or remove the file, or pass damaged="keep" to use the frames that can be decoded',
        stream=name,
        address=name,
        offset=packet,
    )


def concealed_error(video: Video, frame: int) -> CorruptStream:
    """Build the error to raise for frame number `frame`, of which FFmpeg could not decode parts."""
    name = str(video)
    return CorruptStream(
        f"{name} is damaged at frame {frame}: parts of it cannot be decoded, and FFmpeg has concealed them. "
        'Repair or remove the file, or pass damaged="keep" to use its frames as FFmpeg shows them',
        stream=name,
        address=name,
        offset=frame,
    )
