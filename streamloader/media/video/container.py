"""The opener of media files: the only place of the package where FFmpeg gets a file to read.

Media files are untrusted, so FFmpeg is restricted before it sees their first byte:

- It gets an open descriptor or a Python object, never a file name, so it cannot derive other names from it.
- It may use no protocol, so nothing that a file refers to (other files, addresses, ``data:``) is opened.
- It may use the demuxers of video containers only. Playlists, scripts, picture sequences, subtitles, virtual devices
  and single pictures are none.
- The numbers of streams, the sizes of headers and attachments, and the size of frames are limited.

:func:`check_declarations` checks what a file declares before any decoder is opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, FileIO
from typing import TYPE_CHECKING, Any, Final

import av
import av.error
from av.stream import Disposition

from streamloader.errors import MediaLimitExceeded, UnreadableStream
from streamloader.media.video.files import open_media_file
from streamloader.media.video.frame_probe import FrameProbe
from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.remote import VideoFile

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = [
    "ALLOWED_CONTAINERS",
    "VideoBytes",
    "check_declarations",
    "identify_format",
    "needs_probe",
    "open_container",
    "open_undecoded",
]

# FFmpeg's demuxers of video containers and of bare video streams. None of them opens other files by itself.
ALLOWED_CONTAINERS: Final = tuple(
    "apng asf av1 avi avs2 avs3 cavsvideo cine dhav dirac dnxhd dv evc flic flv gif gxf h261 h263 h264 hevc "  # noqa: SIM905
    "ivf kux live_flv lxf m4v matroska mjpeg mjpeg_2000 mov mp4 mpeg mpegts mpegvideo mpjpeg mxf nsv nut nuv obu "
    "ogg pva rm ser smjpeg vc1 vc1test vvc webm wtv yuv4mpegpipe".split()
)
_MAX_STREAMS: Final = 256  # of all kinds: subtitles and fonts are streams too
_MAX_VIDEO_STREAMS: Final = 16  # FFmpeg decodes the first frames of each
_MAX_HEADER_BYTES: Final = 16 << 20  # of the codec parameters of one video stream
_MAX_OPENING_BYTES: Final = 256 << 20  # hours of video have a few megabytes of tables
_MAX_READ_BYTES: Final = 1 << 20
_QUICK_OPTIONS: Final = {"probesize": "32", "analyzeduration": "1", "fpsprobesize": "0"}
_STREAM_SIGNATURES: Final = (b"\x47", b"\0\0\1\xba", b"FLV")
_FORMATS_WITH_FIXED_STREAMS: Final = frozenset(
    "apng av1 avi gif h264 hevc ivf m4v matroska mjpeg mov mpegvideo mxf nut obu vvc yuv4mpegpipe".split()  # noqa: SIM905
)
_MAX_METADATA_CHARACTERS: Final = 16 << 20
_DEFAULT_BUFFER_BYTES: Final = 256 << 10
_NO_CODEC: Final = "none"  # no codec has this name
# Formats that are not allowed, by their first bytes, for error messages.
_SIGNATURES: Final = (
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"BM", "a BMP picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat version", "a concatenation script"),
    (b"# VobSub index file", "a VobSub index"),
    (b";FFMETADATA", "an FFmpeg metadata file"),
    (b"<?xml", "an XML document"),
    (b"<MPD", "a DASH manifest"),
    (b"v=0", "a session description"),
    (b"<!DOCTYPE html", "an HTML page"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<HTML", "an HTML page"),
    (b"version https://git-lfs.github.com/spec", "a pointer of Git LFS, which `git lfs pull` replaces by the file"),
)
_SIGNATURE_BYTES: Final = 512


class VideoBytes(BytesIO):
    """The content of a video file in memory."""

    def restart(self) -> None:
        """Return to the start."""
        self.seek(0)


class _HeaderFile:
    """A file object through which FFmpeg may read a limited number of bytes: it loads headers and attachments whole.

    Args:
        file: File object to read from.
        limit: Limit whose `name` is used in error messages.
    """

    def __init__(self, file: FileIO | VideoFile | VideoBytes, limit: PixelLimit) -> None:
        self.name = file.name if isinstance(file, VideoFile) else ""
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self._limit = limit
        self._bytes_read = 0
        self._is_open = False

    def finish(self) -> None:
        """Called when the file is open. What is read afterwards is not limited."""
        self._is_open = True

    def read(self, size: int) -> bytes:
        data = self._read(min(size, _MAX_READ_BYTES))
        self._bytes_read += len(data)
        if not self._is_open and self._bytes_read > _MAX_OPENING_BYTES:
            raise _limit_error(
                self._limit, "has large headers or attachments", limit_name="bytes of them", allowed=_MAX_OPENING_BYTES
            )
        return data


@contextlib.contextmanager
def open_undecoded(
    source: str | VideoFile | VideoBytes, limit: PixelLimit, *, buffer_bytes: int = _DEFAULT_BUFFER_BYTES
) -> Iterator[InputContainer]:
    """Open a media file with all decoders disabled, and check what it declares: its format, streams and frame sizes.

    FFmpeg reads no more than that needs, and it is limited. If :func:`needs_probe` is true of the container, streams
    appear while the file is read, and FFmpeg would later open their decoders without a limit: the caller decodes their
    first frames with a :class:`FrameProbe` before that.

    The arguments and errors are those of :func:`open_container`. The container is closed at the end of the context.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(FileIO(open_media_file(source))) if isinstance(source, str) else source
        container = None if _starts_like_stream(file) else _open_checked(file, limit, _QUICK_OPTIONS, buffer_bytes)
        if container is not None and (needs_probe(container) or _lacks_rate(container)):
            container.close()
            container = None
        if container is None:
            container = _open_checked(file, limit, {}, buffer_bytes)
        yield stack.enter_context(container)


def _open_checked(
    file: FileIO | VideoFile | VideoBytes, limit: PixelLimit, options: Mapping[str, str], buffer_bytes: int
) -> InputContainer:
    """Open and check a media file with all decoders disabled."""
    _rewind(file)
    options = {**options, "codec_whitelist": _NO_CODEC}
    header = None
    if isinstance(file, FileIO) and os.fstat(file.fileno()).st_size <= _MAX_OPENING_BYTES:
        container = _open_descriptor(file.fileno(), limit, options)  # no header is larger than its file
    else:
        header = _HeaderFile(file, limit)
        container = _open_file(header, limit, options, buffer_bytes)
    try:
        _check_container(container, limit)
    except BaseException:
        container.close()
        raise
    if header is not None:
        header.finish()
    return container


def _rewind(file: FileIO | VideoFile | VideoBytes) -> None:
    if isinstance(file, (VideoFile, VideoBytes)):
        file.restart()
    else:
        file.seek(0)


def needs_probe(container: InputContainer) -> bool:
    """Return whether streams may appear while the file is read."""
    return set(container.format.name.split(",")).isdisjoint(_FORMATS_WITH_FIXED_STREAMS)


def _lacks_rate(container: InputContainer) -> bool:
    """Return whether FFmpeg reads frames to find the frame rate of a stream, from which it derives durations."""
    return not all(
        stream.average_rate or stream.disposition & Disposition.attached_pic for stream in container.streams.video
    )


def _starts_like_stream(file: FileIO | VideoFile | VideoBytes) -> bool:
    """Return whether a file starts like a format whose streams appear while it is read. This only saves an attempt."""
    _rewind(file)
    return file.read(4).startswith(_STREAM_SIGNATURES)


def check_declarations(
    source: str | VideoFile | VideoBytes, limit: PixelLimit, *, buffer_bytes: int = _DEFAULT_BUFFER_BYTES
) -> None:
    """Check what a media file declares, before any decoder is opened without a limit.

    The arguments and errors are those of :func:`open_container`.
    """
    with open_undecoded(source, limit, buffer_bytes=buffer_bytes) as container:
        if needs_probe(container):
            FrameProbe(container, limit).read(container)


def open_container(
    source: str | VideoFile | VideoBytes,
    limit: PixelLimit,
    *,
    options: Mapping[str, str] | None = None,
    buffer_bytes: int = _DEFAULT_BUFFER_BYTES,
    formats: Sequence[str] = ALLOWED_CONTAINERS,
) -> InputContainer:
    """Open a media file under the restrictions of this module.

    Args:
        source: Path of a local file, the open bytes of a video in a store, or a content in memory.
        limit: Limit on the size of frames. `limit.name` is the name of the file for error messages.
        options: Further options of the demuxer. Defaults to none.
        buffer_bytes: Size of FFmpeg's reads of a video in a store. Defaults to 256 KiB.
        formats: Names of the demuxers that may be used. Defaults to those of video containers.

    Raises:
        UnreadableStream: If the path is not a regular file.
        MediaLimitExceeded: If the file exceeds a limit.
        FFmpegError: If FFmpeg cannot open the file. OSError and ValueError are possible too.
        ReadInterrupted: If the read of a video in a store was interrupted.
    """
    options = options or {}
    if isinstance(source, str):
        fd = open_media_file(source)
        try:
            container = _open_descriptor(fd, limit, options, formats)
        finally:
            os.close(fd)
    else:
        source.restart()
        container = _open_file(source, limit, options, buffer_bytes, formats)
    try:
        _check_container(container, limit, formats)
    except BaseException:
        container.close()
        raise
    return container


def _open_descriptor(
    fd: int, limit: PixelLimit, options: Mapping[str, str], formats: Sequence[str] = ALLOWED_CONTAINERS
) -> InputContainer:
    """Open a local file from the position of a descriptor. FFmpeg duplicates it."""
    restricted = {**options, "fd": str(fd), "protocol_whitelist": "fd"}
    return _open_restricted("fd:", limit, restricted, formats=formats)


def _open_file(
    file: _HeaderFile | VideoFile | VideoBytes,
    limit: PixelLimit,
    options: Mapping[str, str],
    buffer_bytes: int = _DEFAULT_BUFFER_BYTES,
    formats: Sequence[str] = ALLOWED_CONTAINERS,
) -> InputContainer:
    # No protocol has this name.
    return _open_restricted(file, limit, {**options, "protocol_whitelist": "none"}, buffer_bytes, formats)


def _open_restricted(
    file: Any,
    limit: PixelLimit,
    options: Mapping[str, str],
    buffer_bytes: int = _DEFAULT_BUFFER_BYTES,
    formats: Sequence[str] = ALLOWED_CONTAINERS,
) -> InputContainer:
    restrictions = {"format_whitelist": ",".join(formats), "max_streams": str(_MAX_STREAMS)}
    try:
        container: InputContainer = av.open(
            file,
            "r",
            container_options=restrictions | dict(options),
            options=limit.decoder_option,
            metadata_errors="replace",
            buffer_size=buffer_bytes,
        )
    except (av.error.FFmpegError, MemoryError) as error:
        if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
            raise _limit_error(
                limit,
                f"has more than {_MAX_STREAMS} streams, or needs more memory than there is, to be opened",
                limit_name="streams",
                allowed=_MAX_STREAMS,
            ) from error
        raise
    return container


def _check_container(container: InputContainer, limit: PixelLimit, formats: Sequence[str] = ALLOWED_CONTAINERS) -> None:
    if set(container.format.name.split(",")).isdisjoint(formats):
        raise UnreadableStream(
            f"{limit.name} has the format {container.format.name}, which is not accepted",
            stream=limit.name,
            address=limit.name,
        )
    video = container.streams.video
    if len(video) > _MAX_VIDEO_STREAMS:
        raise _limit_error(
            limit, f"has {len(video)} video streams", limit_name="video streams", found=len(video),
            allowed=_MAX_VIDEO_STREAMS,
        )  # fmt: skip
    for stream in video:
        context = stream.codec_context
        if context is None:
            continue
        if not stream.disposition & Disposition.attached_pic:  # cover art is never decoded by this package
            limit.check(context.width, context.height)
        if context.extradata_size > _MAX_HEADER_BYTES:
            raise _limit_error(
                limit, f"has {context.extradata_size} bytes of codec parameters", limit_name="bytes of parameters",
                found=context.extradata_size, allowed=_MAX_HEADER_BYTES,
            )  # fmt: skip
    entries = [container.metadata, *(stream.metadata for stream in container.streams)]
    characters = sum(len(name) + len(value) for entry in entries for name, value in entry.items())
    if characters > _MAX_METADATA_CHARACTERS:
        raise _limit_error(
            limit, f"has {characters} characters of metadata", limit_name="characters of metadata", found=characters,
            allowed=_MAX_METADATA_CHARACTERS,
        )  # fmt: skip


def _limit_error(
    limit: PixelLimit, problem: str, *, limit_name: str, allowed: int, found: int | None = None
) -> MediaLimitExceeded:
    return MediaLimitExceeded(
        f"{limit.name} {problem}, but at most {allowed} {limit_name} are allowed. If you trust the file, copy the "
        "stream that you need into a new file, for example with `ffmpeg -i FILE -map 0:v:0 -c copy NEW.mkv`",
        stream=limit.name,
        address=limit.name,
        limit=limit_name,
        found=found,
        allowed=allowed,
    )


def identify_format(source: str | VideoFile) -> str | None:
    """Return a description of a format that is not accepted, for error messages, or None if it is unknown."""
    if isinstance(source, str):
        fd = open_media_file(source)
        try:
            start = os.pread(fd, _SIGNATURE_BYTES, 0)
        finally:
            os.close(fd)
    else:
        start = source.remote.read_at(0, _SIGNATURE_BYTES)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a WebP picture"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((name for signature, name in _SIGNATURES if start.startswith(signature)), None)
