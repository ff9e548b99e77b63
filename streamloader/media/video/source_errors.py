"""Translate what FFmpeg reports about files, videos and sounds alike, into errors of this package."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import av
import av.error

from streamloader.common.error_translation import error_translator
from streamloader.errors import CorruptStream, StreamloaderError, UnreadableStream
from streamloader.media.video.container import identify_format
from streamloader.media.video.files import file_version
from streamloader.media.video.remote import ReadInterrupted, Video, VideoFile
from streamloader.media.video.structure import declared_size

if TYPE_CHECKING:
    from av.packet import Packet

__all__ = [
    "fence_foreign_errors",
    "ffmpeg_message",
    "find_truncation",
    "name_stream",
    "refuse_encrypted",
    "require_source",
    "translate_decoding_errors",
    "translate_open_errors",
    "unreadable_error",
]


def require_source(video: Video, file: VideoFile | None) -> str | VideoFile:
    """Return what FFmpeg reads a file from: a path, or the open bytes of a file in a store. Neither is empty."""
    if isinstance(video, str):
        file_version(video)
        return os.path.abspath(video)
    assert file is not None, "a file in a store is read through a VideoFile"
    if file.remote.size == 0:
        raise ValueError("it is empty (0 bytes)")
    return file


@error_translator
def translate_open_errors(video: Video, file: VideoFile | None, kind: str, formats: str) -> Iterator[None]:
    """Translate errors of opening a file into :class:`UnreadableStream`. Errors of a store pass unchanged.

    Args:
        video: Path of a local file, or a file in a store.
        file: Open bytes of a file in a store.
        kind: Name of what is opened, for messages: "video" or "sound".
        formats: Description of the accepted formats, for messages.
    """
    with name_stream(video):
        try:
            yield
        except Exception as error:
            if isinstance(error, (StreamloaderError, ReadInterrupted, AssertionError)):
                raise
            reason = ffmpeg_message(error)
            if isinstance(error, av.error.FFmpegError):
                format_ = identify_format(require_source(video, file))
                if format_ is not None:
                    reason = f"it is {format_}, and not a {kind}"
                elif error.errno == errno.EINVAL:  # this is FFmpeg's answer to a format that is not allowed
                    reason = f"it has none of the accepted formats{formats}, or is damaged"
            raise unreadable_error(video, file, f"cannot be opened as a {kind}: {reason}") from error


@error_translator
def translate_decoding_errors(video: Video, make_error: Callable[[BaseException], CorruptStream]) -> Iterator[None]:
    """Translate errors of FFmpeg by a function. Errors of a store pass unchanged."""
    with name_stream(video):
        try:
            yield
        except (av.error.FFmpegError, EOFError) as error:
            raise make_error(error) from error


@error_translator
def fence_foreign_errors(video: Video) -> Iterator[None]:
    """Translate all errors that another package or the system raises about a file, so that none stops other files.

    PyAV, FFmpeg, NumPy and Python have no common class of such errors: an enumeration that lacks a value, a number that
    is out of range, and a missing attribute may all be the fault of the file. Errors of this package pass, as do those
    that :func:`name_stream` translates.

    Args:
        video: Path of a local file, or a file in a store.
    """
    with name_stream(video):
        try:
            yield
        except (StreamloaderError, ReadInterrupted, AssertionError):
            raise
        except Exception as error:
            name = str(video)
            raise UnreadableStream(
                f"{name} cannot be read: {ffmpeg_message(error)} ({type(error).__name__}). Repair, convert or remove "
                "the file",
                stream=name,
                address=name,
            ) from error


@error_translator
def name_stream(video: Video) -> Iterator[None]:
    """Have errors of this package name the stream, and raise those that ended a read of FFmpeg."""
    try:
        yield
    except StreamloaderError as error:
        error.stream = error.stream or str(video)
        raise
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None


def unreadable_error(video: Video, file: VideoFile | None, problem: str) -> UnreadableStream:
    """Build the error for a file that cannot be used. It says whether the file is truncated."""
    name, truncation = str(video), find_truncation(video, file)
    if truncation is not None:
        problem += f". The file is truncated: it declares {truncation[0]} bytes, but ends at byte {truncation[1]}"
    return UnreadableStream(
        f"{name} {problem}", stream=name, address=name, offset=None if truncation is None else truncation[1]
    )


def refuse_encrypted(packet: Packet[Any], video: Video) -> None:
    """Raise an error for a packet that is encrypted, before a decoder takes its bytes for damage.

    Raises:
        UnreadableStream: If it is encrypted.
    """
    if packet.has_sidedata("encryption_info"):
        name = str(video)
        raise UnreadableStream(
            f"{name} is encrypted, so that nothing in it can be decoded. Decrypt it with the program of its provider, "
            "or, if you have the key, with FFmpeg: ffmpeg -decryption_key KEY -i FILE -c copy NEW.mp4",
            stream=name,
            address=name,
        )


def find_truncation(video: Video, file: VideoFile | None) -> tuple[int, int] | None:
    """Return the declared and the actual size of a truncated file in bytes, or None if it is not known to be one."""
    if isinstance(video, str):
        size, declared = os.path.getsize(video), declared_size(video)
    else:
        assert file is not None
        size, declared = file.remote.size, declared_size(file)
    return (declared, size) if declared is not None and declared > size else None


def ffmpeg_message(error: BaseException) -> str:
    """Return the text of an error of FFmpeg or of the system."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    log = getattr(error, "log", None)
    return f"{text} ({log[2].strip()})" if log else str(text)
