"""Packets of a sound: how many samples each decodes to, and which of these are left out."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from streamloader.media.video.side_data import find_side_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.packet import Packet

    from streamloader.values import Array

__all__ = [
    "PacketRow", "add_frame_skips", "count_opus_samples", "fill_timestamps", "find_kept", "read_row",
    "read_sample_count", "trim_end",
]  # fmt: skip

_SKIP: Final = struct.Struct("<II")  # of FFmpeg's side data: samples to leave out at the start and at the end
_OPUS_RATE: Final = 48_000
# Durations of the frames of an Opus packet in units of 2.5 ms, by mode (RFC 6716, table 2).
_OPUS_SILK: Final = (4, 8, 16, 24)
_OPUS_HYBRID: Final = (4, 8)
_OPUS_CELT: Final = (1, 2, 4, 8)
_OPUS_UNIT: Final = _OPUS_RATE // 400  # samples of 2.5 ms
_GAPLESS_TAG: Final = re.compile(r"\s*[0-9A-Fa-f]+\s+([0-9A-Fa-f]+)\s+([0-9A-Fa-f]+)\s+([0-9A-Fa-f]+)")


class PacketRow(NamedTuple):
    """What the demuxer says of one packet.

    Attributes:
        pts: Timestamp, or None.
        offset: Byte offset in the file, -1 if it is unknown.
        size: Size in bytes.
        duration: Duration in units of the time base, 0 if it is unknown.
        skip_start: Number of samples to leave out from the packet's first on.
        skip_end: Number of samples to leave out at the packet's end.
        is_discarded: Whether all samples of the packet are left out.
    """

    pts: int | None
    offset: int
    size: int
    duration: int
    skip_start: int = 0
    skip_end: int = 0
    is_discarded: bool = False


def read_row(packet: Packet[AudioStream]) -> PacketRow:
    """Return what the demuxer says of a packet."""
    skip_start = skip_end = 0
    if packet.has_sidedata("skip_samples"):
        data = bytes(packet.get_sidedata("skip_samples"))
        if len(data) >= _SKIP.size:
            skip_start, skip_end = _SKIP.unpack_from(data)
    offset = -1 if packet.pos is None else packet.pos
    return PacketRow(packet.pts, offset, packet.size, packet.duration or 0, skip_start, skip_end, packet.is_discard)


def add_frame_skips(row: PacketRow, frames: Sequence[AudioFrame]) -> PacketRow:
    """Return a packet with what the decoder says of its frames: some decoders know their delay themselves."""
    for frame in frames:
        for data in find_side_data(frame, "SKIP_SAMPLES"):
            if len(data) >= _SKIP.size:
                skip_start, skip_end = _SKIP.unpack_from(data)
                row = row._replace(skip_start=max(row.skip_start, skip_start), skip_end=max(row.skip_end, skip_end))
    return row


def count_opus_samples(packet: bytes) -> int:
    """Return the number of samples of an Opus packet, at 48 kHz (RFC 6716, 3.1 and 3.2); 0 if it is invalid."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        unit = _OPUS_SILK[config % 4]
    elif config < 16:
        unit = _OPUS_HYBRID[config % 2]
    else:
        unit = _OPUS_CELT[config % 4]
    frames = 1 if code == 0 else 2 if code < 3 else packet[1] & 0x3F if len(packet) > 1 else 0
    return frames * unit * _OPUS_UNIT


def fill_timestamps(rows: Sequence[PacketRow], samples: Array, ticks_per_sample: Fraction) -> Array:
    """Return the timestamp of each packet. A missing one follows from the packets before it.

    Args:
        rows: Packets.
        samples: Number of samples that each packet decodes to.
        ticks_per_sample: Duration of a sample in units of the time base.
    """
    pts = np.zeros(len(rows), np.int64)
    base, since = 0, 0
    for number, row in enumerate(rows):
        if row.pts is not None:
            base, since = row.pts, 0
        pts[number] = base + round(since * ticks_per_sample)
        since += int(samples[number])
    return pts


def find_kept(rows: Sequence[PacketRow], samples: Array) -> Array:
    """Return the ranges of decoded samples that are played, int64 (ranges, 2), by FFmpeg's rules.

    FFmpeg's decoders leave out the same samples (``discard_samples`` in ``libavcodec/decode.c``), except with
    ``skip_manual``, as here.

    Args:
        rows: Packets.
        samples: Number of samples that each packet decodes to, and what the decoder returns at the end.
    """
    starts = np.concatenate([[0], np.cumsum(samples)]).astype(np.int64)
    dropped: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        if not (row.skip_start or row.skip_end or row.is_discarded):
            continue
        start, end = int(starts[number]), int(starts[number + 1])
        if row.skip_start:
            dropped.append((start, start + row.skip_start))
        if row.is_discarded:
            dropped.append((start, end))
        elif 0 < row.skip_end <= end - start:
            dropped.append((end - row.skip_end, end))
    return _complement(dropped, int(starts[-1]))


def _complement(dropped: list[tuple[int, int]], end: int) -> Array:
    kept: list[tuple[int, int]] = []
    position = 0
    for start, stop in sorted(dropped):
        if start > position:
            kept.append((position, min(start, end)))
        position = max(position, stop)
    if position < end:
        kept.append((position, end))
    return np.array(kept, np.int64).reshape(-1, 2)


def trim_end(kept: Array, count: int) -> Array:
    """Return the ranges of the first `count` samples that are played."""
    sizes = kept[:, 1] - kept[:, 0]
    before = np.cumsum(sizes) - sizes
    left = np.minimum(sizes, count - before)
    trimmed = np.stack([kept[:, 0], kept[:, 0] + left], axis=1)
    result: Array = trimmed[left > 0]
    return result


def read_sample_count(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return priming and number of samples that iTunes has written into a file (``iTunSMPB``), or None.

    The tag has hexadecimal fields: 0, the encoder's delay, the padding at the end, and the number of samples.
    """
    found = _GAPLESS_TAG.match(metadata.get("iTunSMPB", ""))
    if found is None:
        return None
    priming, padding, count = (int(field[:16], 16) for field in found.groups())
    return (priming, count) if count > 0 and padding < 1 << 16 and priming < 1 << 16 else None
