"""Read the packet table of an MP4 or MOV in a store without fetching its payload.

Sizes, times and sync samples are stored in ``moov`` (ISO/IEC 14496-12, 8.6 and 8.7). The demuxer therefore runs over a
file in which ``mdat`` reads as zeros. If anything is unexpected, the result is None and the caller reads the whole
file.

Key frames that ``moov`` does not list are not found this way. Seeking then starts at an earlier key frame; the frames
are the same.
"""

from __future__ import annotations

import contextlib

from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.packets import (
    PAYLOAD_DEPENDENT_CODECS,
    PacketTable,
    codec_name,
    count_max_packets,
    read_packets,
)
from streamloader.media.video.remote import Video, VideoFile
from streamloader.media.video.source import open_video
from streamloader.media.video.structure import payload_spans

__all__ = ["read_sparse"]


def read_sparse(video: Video, file: VideoFile, max_pixels: int = DEFAULT_MAX_PIXELS) -> PacketTable | None:
    """Return the packet table of a video if ``moov`` suffices for it, otherwise None.

    Args:
        video: Video in a store.
        file: Open bytes of the video.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        LimitExceeded: If ``moov`` is larger than ``limits.header_bytes``.
        StoreError: If the store fails to deliver bytes.
    """
    payload = payload_spans(file)
    if not payload:
        return None
    table = PacketTable()
    try:
        container, stream = open_video(video, file, max_pixels=max_pixels)
        with contextlib.closing(container):
            is_mov = "mov" in container.format.name.split(",")
            if codec_name(stream) in PAYLOAD_DEPENDENT_CODECS or not is_mov or stream.frames > count_max_packets(video):
                return None
            file.overlays = [(start, end, None) for start, end in payload]
            read_packets(container, stream, video, table, file=file)
            declared = stream.frames
    except (CorruptStream, UnreadableStream):
        return None
    finally:
        file.overlays = []
    return table if table.exact and table.count == declared else None
