"""Read the packet table of an MP4 or MOV in a store without fetching most of the file.

Sizes, times and sync samples are stored in ``moov`` (ISO/IEC 14496-12, 8.6 and 8.7). The demuxer therefore runs over a
file in which ``mdat`` reads as zeros, except for the beginnings of the sync samples, which are fetched to learn the
type of each key frame. If anything is unexpected, the result is None and the caller reads the whole file.

Key frames that ``moov`` does not list are not found this way. Seeking then starts at an earlier key frame; the frames
are the same.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.packets import (
    PAYLOAD_DEPENDENT_CODECS,
    PacketTable,
    codec_name,
    count_max_packets,
    is_clean_key,
    nal_length_size,
    read_packets,
)
from streamloader.media.video.remote import ByteSpans, Video, VideoFile
from streamloader.media.video.source import open_video
from streamloader.media.video.structure import payload_spans

if TYPE_CHECKING:
    from av.video.stream import VideoStream

__all__ = ["read_sparse"]

_HEAD_SIZES_BYTES: Final = (2 << 10, 64 << 10)  # tried in turn: parameter sets and SEI may precede the first slice
_MAX_GAP_BYTES: Final = 16 << 10  # spans with a smaller gap between them are fetched together
_MAX_FETCHED_SHARE: Final = 1 / 4  # of the file; beyond that, reading the whole file is preferred
_MAX_FETCHED_BYTES: Final = 512 << 20  # held in memory at once


def read_sparse(video: Video, file: VideoFile, max_pixels: int = DEFAULT_MAX_PIXELS) -> PacketTable | None:
    """Return the packet table of a video if ``moov`` and a few spans of bytes suffice for it, otherwise None.

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
            codec = codec_name(stream)
            is_mov = "mov" in container.format.name.split(",")
            if codec in PAYLOAD_DEPENDENT_CODECS or not is_mov or stream.frames > count_max_packets(video):
                return None
            heads = _fetch_sample_heads(file, stream, codec)
            if heads is None:
                return None
            file.overlays = _build_overlays(payload, heads)
            read_packets(container, stream, video, table, file=file, payload_missing=True)
            declared = stream.frames
    except (CorruptStream, UnreadableStream):
        return None
    finally:
        file.overlays = []
    if not table.exact or table.count != declared or not set(table.key_bytes) <= set(heads):
        return None
    table.key_clean = [heads[key].is_clean for key in table.key_bytes]
    return table if table.key_clean else None


class _SampleHead(NamedTuple):
    """The first bytes of a sync sample, up to its first slice.

    Attributes:
        data: The bytes.
        is_clean: Whether the key frame suffices to decode all later frames.
    """

    data: bytes
    is_clean: bool


def _fetch_sample_heads(file: VideoFile, stream: VideoStream, codec: str) -> dict[tuple[int, int], _SampleHead] | None:
    """Fetch the beginning of each sync sample [start, end). Return None if one has no slice, or all are too large."""
    samples = sorted({(entry.pos, entry.pos + entry.size) for entry in stream.index_entries if entry.is_keyframe})
    length_size = nal_length_size(codec, stream.codec_context.extradata)
    heads: dict[tuple[int, int], _SampleHead] = {}
    for max_bytes in _HEAD_SIZES_BYTES:
        spans = {
            sample: (sample[0], min(sample[1], sample[0] + max_bytes)) for sample in samples if sample not in heads
        }
        fetched = _fetch_spans(file, sorted(set(spans.values())))
        if fetched is None:
            return None
        for sample, span in spans.items():
            is_clean = is_clean_key(codec, memoryview(fetched[span]), length_size)
            if is_clean is not None:
                heads[sample] = _SampleHead(fetched[span], is_clean)
    return heads if len(heads) == len(samples) else None


def _fetch_spans(file: VideoFile, spans: list[tuple[int, int]]) -> dict[tuple[int, int], bytes] | None:
    """Return the bytes of sorted spans, or None if they are too large or lie outside of the file."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] < _MAX_GAP_BYTES:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    if not joined:
        return {}
    size = file.remote.size
    fetched_bytes = sum(end - start for start, end in joined)
    max_bytes = min(size * _MAX_FETCHED_SHARE, _MAX_FETCHED_BYTES)
    if joined[0][0] < 0 or joined[-1][1] > size or fetched_bytes > max_bytes:
        return None
    result: dict[tuple[int, int], bytes] = {}
    blocks = iter(zip(joined, file.remote.read_spans(joined), strict=True))
    (block_start, block_end), data = next(blocks)
    for start, end in spans:
        while end > block_end:
            (block_start, block_end), data = next(blocks)
        result[start, end] = data[start - block_start : end - block_start]
    return result


def _build_overlays(
    payload: ByteSpans, heads: dict[tuple[int, int], _SampleHead]
) -> list[tuple[int, int, bytes | None]]:
    """Return overlays that show the fetched sample heads and zeros for the rest of the payload."""
    overlays: list[tuple[int, int, bytes | None]] = []
    fetched = sorted((start, start + len(head.data), head.data) for (start, _), head in heads.items())
    for start, end in payload:
        position = start
        for head_start, head_end, data in fetched:
            if position <= head_start and head_end <= end:
                overlays += [(position, head_start, None)] if head_start > position else []
                overlays.append((head_start, head_end, data))
                position = head_end
        overlays += [(position, end, None)] if end > position else []
    return overlays
