"""Reading the packets of an MP4 or MOV in a store without fetching what is in them.

Sizes, times and sync samples are all in ``moov`` (ISO/IEC 14496-12, 8.6 and 8.7). So the demuxer is run over a file in
which ``mdat`` reads as zeros, but for the beginnings of sync samples: these tell what kind of key frame each is.
Whatever is not as it should be ends in None, and the file is read as a whole.

A key frame that only its bytes tell of, and ``moov`` does not, is not found in this way: seeking then begins further
back. The frames that are shown are the same.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.video.packets import (
    PAYLOAD_MATTERS,
    PacketTable,
    codec_of,
    hard_key,
    nal_length_size,
    read_packets,
)
from streamloader.media.video.remote import Spans, Video, VideoFile
from streamloader.media.video.source import open_video
from streamloader.media.video.structure import payload

if TYPE_CHECKING:
    from av.video.stream import VideoStream

__all__ = ["read_hollow"]

_HEADS: Final = (2 << 10, 64 << 10)  # bytes of a sync sample; parameter sets and notes come before the first slice
_NEAR: Final = 16 << 10  # spans with less between them are fetched as one
_WORTH: Final = 4  # not if the spans add up to more than this part of the file


def read_hollow(video: Video, file: VideoFile) -> PacketTable | None:
    """Return what reading all packets of a video tells, if ``moov`` and a few spans of its bytes are enough for it.

    Raises:
        StoreError: bytes of it could not be had.
    """
    holes = payload(file)
    if not holes:
        return None
    table = PacketTable()
    try:
        container, stream = open_video(video, file)
        with contextlib.closing(container):
            codec = codec_of(stream)
            if codec in PAYLOAD_MATTERS or "mov" not in container.format.name.split(","):
                return None
            heads = _heads(file, stream, codec)
            if heads is None:
                return None
            file.pieces = _pieces(holes, heads)
            read_packets(container, stream, video, table, hollow=True)
            declared = stream.frames
    except (CorruptStream, UnreadableStream):
        return None
    finally:
        file.pieces = []
    if not table.exact or table.count != declared or not set(table.key_bytes) <= set(heads):
        return None
    table.key_hard = [heads[key].hard for key in table.key_bytes]
    return table if table.key_hard else None


class _Head(NamedTuple):
    """How a sync sample begins."""

    data: bytes
    hard: bool


def _heads(file: VideoFile, stream: VideoStream, codec: str) -> dict[tuple[int, int], _Head] | None:
    """Fetch the beginnings of all sync samples [start, end); None where that is not worth it, or they do not tell."""
    samples = sorted({(entry.pos, entry.pos + entry.size) for entry in stream.index_entries if entry.is_keyframe})
    length_size = nal_length_size(codec, stream.codec_context.extradata)
    heads: dict[tuple[int, int], _Head] = {}
    for most in _HEADS:
        spans = {sample: (sample[0], min(sample[1], sample[0] + most)) for sample in samples if sample not in heads}
        found = _fetch(file, sorted(set(spans.values())))
        if found is None:
            return None
        for sample, span in spans.items():
            hard = hard_key(codec, memoryview(found[span]), length_size)
            if hard is not None:
                heads[sample] = _Head(found[span], hard)
    return heads if len(heads) == len(samples) else None


def _fetch(file: VideoFile, spans: list[tuple[int, int]]) -> dict[tuple[int, int], bytes] | None:
    """Return the bytes of sorted spans; None where that is not worth it, or they lie outside of the file."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] < _NEAR:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    if not joined:
        return {}
    size = file.remote.size
    if joined[0][0] < 0 or joined[-1][1] > size or sum(end - start for start, end in joined) > size / _WORTH:
        return None
    found: dict[tuple[int, int], bytes] = {}
    whole = iter(zip(joined, file.remote.read_spans(joined), strict=True))
    (begin, behind), data = next(whole)
    for start, end in spans:
        while end > behind:
            (begin, behind), data = next(whole)
        found[start, end] = data[start - begin : end - begin]
    return found


def _pieces(holes: Spans, heads: dict[tuple[int, int], _Head]) -> list[tuple[int, int, bytes | None]]:
    """Return what the file reads as inside of its holes."""
    pieces: list[tuple[int, int, bytes | None]] = []
    known = sorted((start, start + len(head.data), head.data) for (start, _), head in heads.items())
    for start, end in holes:
        at = start
        for begin, behind, data in known:
            if at <= begin and behind <= end:
                pieces += [(at, begin, None)] if begin > at else []
                pieces.append((begin, behind, data))
                at = behind
        pieces += [(at, end, None)] if end > at else []
    return pieces
