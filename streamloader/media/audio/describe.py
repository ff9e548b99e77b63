"""Describe the file of a sound for people: its container, its codec, and its length."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from streamloader.media.audio.source import open_sound
from streamloader.media.video.describe import describe_streams
from streamloader.media.video.remote import Video, open_video_file

if TYPE_CHECKING:
    from streamloader.media.audio.index import AudioIndex

__all__ = ["describe_sound"]


def describe_sound(video: Video, index: AudioIndex) -> dict[str, Any]:
    """Return what is known about a sound, as plain JSON values.

    Args:
        video: Path of a local file, or a file in a store.
        index: Index of its sound.

    Returns:
        See docs/streams.md. Times are in seconds.

    Raises:
        UnreadableStream: If the file cannot be opened.
        StoreError: If the store fails to deliver bytes.
    """
    file = open_video_file(video)
    with contextlib.ExitStack() as stack:
        if file is not None:
            stack.callback(file.close)
        container, stream = stack.enter_context(open_sound(video, file))
        described = describe_streams(container)
        number = None if stream is None else stream.index
    return {
        "stream": number,
        "codec": index.codec,
        "samples": len(index),
        "seconds": len(index) / index.rate if index.rate else None,
        "rate": index.rate,
        "channels": index.channels,
        "layout": index.layout,
        "sample_format": index.format,
        "packets": len(index.sizes),
        "damaged": index.damaged,
        "note": index.note,
        **described,
    }
