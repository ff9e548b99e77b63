"""Parse a video or a sound for ``streamloader inspect``. A child process imports this, see ``media_reports``.

Everything is imported at the start: threads that import parts of FFmpeg's library at the same time disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from streamloader.errors import CorruptStream, MediaLimitExceeded, StreamloaderError, UnreadableStream
from streamloader.media.audio.describe import describe_sound
from streamloader.media.audio.index import AudioIndexSettings
from streamloader.media.audio.index_cache import load_audio_index
from streamloader.media.video.describe import describe_video
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.remote import Video

__all__ = ["describe_media"]


def describe_media(video: Video, kind: str, size: int | None, stream: int | None) -> list[Any]:
    """Describe a video, or a sound. If it is neither, raise the error of the kind that its name states.

    Args:
        video: File.
        kind: Kind that its name states.
        size: Size of the file in bytes. None if it is unknown.
        stream: Number of the video stream, from 0. None stands for the one that is played.

    Returns:
        A list of the kind and the details, plain JSON values.

    Raises:
        UnreadableStream: If the file is neither. ``details["recognized"]`` is false if it has no name of one.
        CorruptStream: If it is truncated or damaged.
        MediaLimitExceeded: If it exceeds a limit.
        StoreError: If its store fails.
    """
    attempts: dict[str, Callable[[Video], dict[str, Any]]] = {
        "video": partial(_describe_video, stream=stream),
        "sound": _describe_sound,
    }
    order = ("sound", "video") if kind == "sound" else ("video", "sound")
    errors: list[StreamloaderError] = []
    for name in order:
        try:
            details = attempts[name](video)
        except (CorruptStream, MediaLimitExceeded):
            raise
        except UnreadableStream as error:
            errors.append(error)
        else:
            seconds = details["seconds"]
            details["bits_per_second"] = size * 8 / seconds if size and seconds else None
            return [name, details]
    if kind == "other":
        shown = str(video)
        raise UnreadableStream(
            f"{shown} is no video, sound, image or text that can be read ({errors[0].message})",
            address=shown,
            recognized=False,
        )
    raise errors[0]


def _describe_video(video: Video, stream: int | None) -> dict[str, Any]:
    return describe_video(video, load_index(video, stream=stream))


def _describe_sound(video: Video) -> dict[str, Any]:
    return describe_sound(video, load_audio_index(video, AudioIndexSettings()))
