"""Notice packets that FFmpeg passes over, so that samples are missing without an error.

FFmpeg leaves out pages of Ogg whose checksums are wrong, and bytes of FLAC and MP3 that are no frame. But pages are
numbered and have positions, and FLAC and most MP3 files have a header with the number of samples or frames.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.media.audio.source import corrupt_error, read_bytes
from streamloader.media.video.ogg_pages import find_damaged_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.audio.stream import AudioStream
    from av.container import InputContainer

    from streamloader.media.audio.packets import PacketRow
    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.values import Array

__all__ = ["check_nothing_missing", "read_frame_count"]

_MAX_MP3_FRAME_BYTES: Final = 2881  # 640 kbit/s at 32 kHz, padded
_SIDE_INFO_BYTES: Final = (32, 17, 9)  # of MPEG-1 in stereo; MPEG-1 in mono and MPEG-2 in stereo; MPEG-2 in mono
_HAS_FRAME_COUNT: Final = 1  # flag of a Xing header


def check_nothing_missing(
    video: Video,
    file: VideoFile | None,
    container: InputContainer,
    stream: AudioStream,
    rows: Sequence[PacketRow],
    samples: Array,
    kept: Array,
    rate: int,
) -> None:
    """Check that a file of Ogg, FLAC or MP3 has the packets that its pages or its header state.

    Args:
        video: Path of a local file, or a file in a store.
        file: Open bytes of a file in a store.
        container: Open file.
        stream: Audio stream of the file.
        rows: Packets.
        samples: Number of samples that each packet decodes to, and what the decoder returns at the end.
        kept: Ranges of decoded samples that are played, int64 (ranges, 2).
        rate: Number of samples per second.

    Raises:
        CorruptStream: If packets are missing.
        StoreError: If the store fails to deliver bytes.
    """
    if not rows:
        return
    if container.format.name == "ogg":
        _check_pages(video, stream, rows, samples, kept, rate)
        damaged = find_damaged_page(video, file) if len(container.streams) == 1 else None
        if damaged is not None:
            raise corrupt_error(video, f"the page at byte {damaged} is damaged, or one before it is missing")
    elif container.format.name == "flac":
        count = int((kept[:, 1] - kept[:, 0]).sum())
        stated = int((stream.duration or 0) * Fraction(stream.time_base or 0) * rate)
        if stated > count:
            raise corrupt_error(video, f"it has {count} samples, and {stated} by its header", count, rate)
    elif container.format.name == "mp3" and rows[0].offset > 0:
        start = max(0, rows[0].offset - _MAX_MP3_FRAME_BYTES)
        frames = read_frame_count(read_bytes(video, file, start, rows[0].offset - start))
        if frames is not None and len(rows) < frames - (0 if rows[0].skip_start else 1):  # some count the header, too
            sample = int(samples[: len(rows)].sum())
            raise corrupt_error(video, f"it has {len(rows)} frames, and {frames} by its header", sample, rate)


def _check_pages(
    video: Video, stream: AudioStream, rows: Sequence[PacketRow], samples: Array, kept: Array, rate: int
) -> None:
    time_base = Fraction(stream.time_base or Fraction(1, rate))
    sample = _find_missing_packets(rows, samples, 1 / (rate * time_base))
    if sample is not None:
        raise corrupt_error(video, "the packets from this one on are missing", sample, rate)
    stated = int((stream.duration or 0) * time_base * rate)  # by the last page, priming samples included
    count = int((kept[:, 1] - kept[:, 0]).sum()) + (int(kept[0, 0]) if len(kept) else 0)
    starts_late = rows[0].pts is not None and rows[0].pts > 0  # its first packet is not decoded
    tolerance = int(samples.max()) if starts_late else max(1, _shortest_packet(samples[:-1]) - 1)
    if stated > count + tolerance:
        raise corrupt_error(video, f"it has {count} samples, and {stated} by its last page", count, rate)


def _find_missing_packets(rows: Sequence[PacketRow], samples: Array, ticks_per_sample: Fraction) -> int | None:
    """Return the decoded sample before which packets are missing, by the timestamps of an Ogg file, or None.

    FFmpeg derives the timestamp of the first packet of a page from the position at the end of the page, and is wrong
    where Vorbis changes the size of its blocks. So a leap counts only if the packet after it is late, too, or if it is
    longer than a packet.

    Args:
        rows: Packets.
        samples: Number of samples that each packet decodes to.
        ticks_per_sample: Duration of a sample in units of the time base.
    """
    if any(row.pts is None for row in rows):
        return None
    samples = samples[: len(rows)]
    starts = np.cumsum(samples) - samples
    pts = np.array([row.pts for row in rows], np.int64)
    lateness = pts - np.rint(starts * float(ticks_per_sample)).astype(np.int64)
    leaps = np.diff(lateness)
    lasting = np.minimum(leaps, np.append(lateness[2:], 0)[: len(leaps)] - lateness[:-1])
    longest = int(samples.max(initial=0)) * float(ticks_per_sample)
    lasting[-1:] = np.where(leaps[-1:] > longest, leaps[-1:], 0)
    missing = np.flatnonzero(lasting > max(1.0, float(_shortest_packet(samples) * ticks_per_sample) - 1))
    return int(starts[missing[0] + 1]) if len(missing) else None


def _shortest_packet(samples: Array) -> int:
    """Return the smallest number of samples of a packet that has some. A missing page has at least about as many."""
    return int(samples[samples > 0].min()) if (samples > 0).any() else 0


def read_frame_count(data: bytes) -> int | None:
    """Return the number of frames by the header of an MP3 file (Xing, Info or VBRI), or None if it has none.

    Args:
        data: Bytes before the first frame of sound. The frame with the header comes last.
    """
    for tag in (b"Xing", b"Info", b"VBRI"):
        position = data.rfind(tag)
        distances = (32,) if tag == b"VBRI" else _SIDE_INFO_BYTES
        syncs = (position - distance - 4 for distance in distances)
        if position < 0 or not any(sync >= 0 and data[sync] == 0xFF and data[sync + 1] >= 0xE0 for sync in syncs):
            continue
        fields = data[position + 4 : position + 18]
        if len(fields) < 14:
            continue
        if tag == b"VBRI":
            return int.from_bytes(fields[10:14], "big")
        if int.from_bytes(fields[:4], "big") & _HAS_FRAME_COUNT:
            return int.from_bytes(fields[4:8], "big")
    return None
