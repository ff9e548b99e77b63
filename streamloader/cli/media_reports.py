"""Describe a video or a sound in a child process, so that a file that ends FFmpeg does not end the command."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from streamloader.common.worker_messages import (
    Check,
    InvalidMessage,
    check_fields,
    check_flag,
    integer,
    list_of,
    optional,
)
from streamloader.errors import ClosedError, CorruptStream

if TYPE_CHECKING:
    from typing import Self

    from streamloader.media.parser_pool import ParserPool
    from streamloader.media.video.remote import Video

__all__ = ["MediaReports"]

_STALL_TIMEOUT_S: Final = 180.0  # without a packet: the deadlines of stores are shorter
_MEMORY_BYTES: Final = 5 << 30  # of private memory, as much as the largest index takes
_REMOTE_FILES_PER_PROCESS: Final = 8  # which mostly wait for their store
_MAX_TEXT_CHARS: Final = 10_000
_MAX_STREAMS: Final = 10_000
_MAX_PIXELS_A_SIDE: Final = 1 << 31


class MediaReports:
    """Describes videos and sounds in child processes, which are started when they are needed. Thread-safe.

    Files in the memory of this process are described in it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._pool: ParserPool | None = None

    def describe(self, video: Video, kind: str, size: int | None, stream: int | None) -> tuple[str, dict[str, Any]]:
        """Return the kind of a file, "video" or "sound", and its details.

        Args:
            video: File.
            kind: Kind that its name states.
            size: Size of the file in bytes. None if it is unknown.
            stream: Number of the video stream, from 0. None stands for the one that is played.

        Raises:
            UnreadableStream: If the file is neither. ``details["recognized"]`` is false if it has no name of one.
            CorruptStream: If it is truncated or damaged, or if it ends the processes that parse it.
            StoreError: If its store fails.
        """
        from streamloader.cli.media_parser import describe_media
        from streamloader.stores.registry import scheme_of

        is_local = isinstance(video, str)
        if not isinstance(video, str) and scheme_of(video.address) == "memory":
            report: Any = describe_media(video, kind, size, stream)
        else:
            shared_by = 1 if is_local else _REMOTE_FILES_PER_PROCESS
            report = self._open_pool().call(str(video), describe_media, video, kind, size, stream, shared_by=shared_by)
        try:
            return _check_report(report)
        except InvalidMessage as error:
            name = str(video)
            raise CorruptStream(
                f"{name}: the process that parses it sent a malformed report ({error}). The file is damaged or "
                "malicious: remove it",
                stream=name,
                address=name,
            ) from None

    def _open_pool(self) -> ParserPool:
        from streamloader.media.parser_pool import ParserPool

        with self._lock:
            if self._closed:
                raise ClosedError("inspecting was cancelled")
            if self._pool is None:
                self._pool = ParserPool(_MEMORY_BYTES, stall_timeout_s=_STALL_TIMEOUT_S)
            return self._pool

    def close(self) -> None:
        """End the processes. Descriptions in other threads fail. Safe to call twice."""
        with self._lock:
            self._closed = True
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# --- checks of its report --------------------------------------------------------------------------------------------


def _check_text(value: Any, name: str) -> Any:
    """Check a text, which may be no valid Unicode: it is escaped when it is printed."""
    if type(value) is not str or len(value) > _MAX_TEXT_CHARS:
        raise InvalidMessage(f"{name} is no text of up to {_MAX_TEXT_CHARS} characters")
    return value


def _check_number(value: Any, name: str) -> Any:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidMessage(f"{name} is no finite number")
    return value


def _check_counts(value: Any, name: str) -> Any:
    if type(value) is not dict or len(value) > _MAX_STREAMS:
        raise InvalidMessage(f"{name} is no object of counts")
    for key, count in value.items():
        integer()(count, f"{name}.{_check_text(key, name)}")
    return value


_text: Final = optional(_check_text)
_number: Final = optional(_check_number)
_count: Final = integer()
_size: Final = list_of(integer(0, _MAX_PIXELS_A_SIDE), 2, 2)
_texts: Final = list_of(_check_text, _MAX_STREAMS)
_PICTURES: Final[Mapping[str, Check]] = {
    "index": _count, "codec": _text, "size": optional(_size), "disposition": _texts, "language": _text,
}  # fmt: skip
_SOUNDS: Final[Mapping[str, Check]] = {
    "index": _count, "codec": _text, "rate": optional(_count), "channels": optional(_count), "layout": _text,
    "seconds": _number, "disposition": _texts, "language": _text,
}  # fmt: skip
_STREAMS: Final[Mapping[str, Check]] = {
    "format": _check_text, "format_name": _check_text,
    "videos": list_of(lambda value, name: check_fields(value, _PICTURES, name), _MAX_STREAMS),
    "sounds": list_of(lambda value, name: check_fields(value, _SOUNDS, name), _MAX_STREAMS),
    "others": _check_counts, "bits_per_second": _number, "damaged": check_flag, "note": _text,
}  # fmt: skip
_COLORS: Final[Mapping[str, Check]] = {
    "pixel_format": _check_text, "bits": _count, "color_range": _text, "color_space": _text, "color_primaries": _text,
    "color_transfer": _text, "interlaced": check_flag,
}  # fmt: skip
_VIDEO: Final[Mapping[str, Check]] = {
    **_STREAMS, "stream": _count, "codec": _check_text, "profile": _text, "frames": _count, "key_frames": _count,
    "longest_gap": _count, "seconds": _check_number, "start": _check_number, "fps": _number, "declared_fps": _text,
    "constant_rate": check_flag, "stored_size": _size, "frame_size": _size, "pixel_aspect": _check_text,
    "cropping": list_of(_count, 4, 4), "rotation": _count, "mirrored": check_flag, "video_stream": _count,
    "video_streams": _count, "clock_jumps": _count, "retimed": check_flag, "seekable": check_flag,
}  # fmt: skip
_SOUND: Final[Mapping[str, Check]] = {
    **_STREAMS, "stream": optional(_count), "codec": _check_text, "samples": _count, "seconds": _number,
    "rate": _count, "channels": _count, "layout": _text, "sample_format": _text, "packets": _count,
}  # fmt: skip


def _check_report(report: Any) -> tuple[str, dict[str, Any]]:
    """Return kind and details, if they are what the function in the child returns."""
    if type(report) is not list or len(report) != len(("kind", "details")) or report[0] not in ("video", "sound"):
        raise InvalidMessage("it is no pair of kind and details")
    kind, details = report
    fields = _SOUND if kind == "sound" else _VIDEO
    if kind == "video" and isinstance(details, dict) and "pixel_format" in details:
        fields = {**_VIDEO, **_COLORS}
    return kind, check_fields(details, fields, "the report")
