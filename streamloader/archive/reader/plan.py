"""Plan which packets and bytes of a chunk are read for the requested frames: pure functions of the chunk's index."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from streamloader.media.chunks.format import ChunkIndex
    from streamloader.values import Array

__all__ = ["DecodeSpan", "byte_spans", "plan_spans", "select_packets", "split_span"]

MAX_GAP_PACKETS: Final = 3  # up to this gap, decoding on is cheaper than restarting the decoder at the next key


@dataclass(frozen=True, slots=True)
class DecodeSpan:
    """A range of packets of one chunk that is decoded without a restart, and the requested frames in it.

    Attributes:
        key_packet: Number of the packet at which decoding starts.
        end: Number of the packet after the last one needed.
        frames: Numbers of the requested frames within the chunk, int64 (N,), ascending.
    """

    key_packet: int
    end: int
    frames: Array

    def __len__(self) -> int:
        """Return the number of packets in the range."""
        return self.end - self.key_packet


def plan_spans(index: ChunkIndex, frames: Array) -> list[DecodeSpan]:
    """Return the spans that decode `frames` (int64, ascending, without duplicates), in order.

    Each span starts at the last key from which its first frame is decoded correctly. Frames share a span if a decoder
    would not have to go back to an earlier packet between them, or would only skip a few packets.
    """
    if not len(frames):
        return []
    keys = index.key_packet[np.searchsorted(index.key_frame, frames, side="right") - 1]
    bounds = np.flatnonzero(np.diff(keys, prepend=-1))
    lasts = np.maximum.reduceat(index.frame_packet[frames], bounds) + 1
    merged: list[list[int]] = []  # key, end, and position of the first frame in `frames`
    for start, key, last in zip(bounds.tolist(), keys[bounds].tolist(), lasts.tolist(), strict=True):
        if merged and key <= merged[-1][1] + MAX_GAP_PACKETS:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([key, last, start])
    ends = [*(start for _, _, start in merged[1:]), len(frames)]
    return [DecodeSpan(key, last, frames[start:end]) for (key, last, start), end in zip(merged, ends, strict=True)]


def split_span(index: ChunkIndex, span: DecodeSpan, parts: int) -> list[DecodeSpan]:
    """Split a span at keys into up to `parts` spans of similar length, which can be decoded in parallel."""
    keys = index.key_packet[np.searchsorted(index.key_frame, span.frames, side="right") - 1]
    cuts = [int(np.searchsorted(keys, span.key_packet + len(span) * part // parts)) for part in range(1, parts)]
    bounds = sorted({0, *cuts, len(span.frames)})
    pieces = []
    for start, end in itertools.pairwise(bounds):
        frames = span.frames[start:end]
        key = int(keys[start]) if start else span.key_packet
        pieces.append(DecodeSpan(key, int(index.frame_packet[frames].max()) + 1, frames))
    return pieces


def select_packets(index: ChunkIndex, span: DecodeSpan, *, all_packets: bool = False) -> list[int]:
    """Return the numbers of the packets to decode for a span.

    Args:
        index: Index of the chunk.
        span: Span to decode.
        all_packets: Whether to include disposable packets that show no requested frame. Defaults to False.
    """
    if all_packets:
        return list(range(span.key_packet, span.end))
    needed = ~index.disposable[span.key_packet : span.end]
    frame_packets = index.frame_packet[span.frames] - span.key_packet
    needed[frame_packets[(frame_packets >= 0) & (frame_packets < len(needed))]] = True
    packets: list[int] = (np.flatnonzero(needed) + span.key_packet).tolist()
    return packets


def byte_spans(index: ChunkIndex, packets: Sequence[int], max_gap: int, max_bytes: int) -> list[tuple[int, int]]:
    """Return byte ranges [start, end) that cover `packets` (ascending). Each packet lies within one range.

    Args:
        index: Index of the chunk.
        packets: Numbers of the packets.
        max_gap: Maximum number of unneeded bytes between two packets in the same range.
        max_bytes: Maximum length of a range in bytes. A single packet may exceed it.
    """
    if not len(packets):
        return []
    starts = index.offset[packets]
    ends = starts + index.size[packets]
    order = np.argsort(starts, kind="stable")  # the order in the file may differ from the decoding order
    spans: list[tuple[int, int]] = []
    for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
        if spans and start - spans[-1][1] <= max_gap and end - spans[-1][0] <= max_bytes:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans
