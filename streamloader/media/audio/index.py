"""The index of a sound: its packets, the samples that each decodes to, and which samples are played."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction

    from streamloader.values import Array

__all__ = [
    "AUDIO_SUMMARY", "AUDIO_VERIFY_LEVELS", "CHECKED_PACKETS", "MAX_CHANNELS", "MAX_PACKETS", "MAX_RATE", "MAX_SAMPLES",
    "SAMPLE_DTYPES", "AudioIndex", "AudioIndexSettings", "AudioVerifyLevel", "summarize_audio",
]  # fmt: skip

AudioVerifyLevel: TypeAlias = Literal["tables", "samples"]
AUDIO_VERIFY_LEVELS: Final[tuple[AudioVerifyLevel, ...]] = ("tables", "samples")  # each proves more than those before
CHECKED_PACKETS: Final = 16  # to which one checksum belongs
MAX_CHANNELS: Final = 64
MAX_RATE: Final = 1 << 22  # samples per second
MAX_PACKETS: Final = 1 << 26
MAX_SAMPLES: Final = 1 << 48
# FFmpeg's packed sample formats, as NumPy has them.
SAMPLE_DTYPES: Final = {
    "u8": "uint8",
    "s16": "int16",
    "s32": "int32",
    "s64": "int64",
    "flt": "float32",
    "dbl": "float64",
}
# Number of samples, of samples per second, and of channels. All are 0 for a file without sound.
AUDIO_SUMMARY: Final = np.dtype([("samples", "<i8"), ("rate", "<i4"), ("channels", "<i4")])


@dataclass(frozen=True, slots=True)
class AudioIndexSettings:
    """Settings with which the sound of files is indexed.

    Attributes:
        damaged: ``"raise"`` to refuse a truncated or damaged file, ``"keep"`` to index what can be decoded of it.
        verify: Level of proof of an index, one of :data:`AUDIO_VERIFY_LEVELS`.
        track: Number of the audio stream among those of the file. Defaults to None, which chooses one.
        optional: Whether a file may have no sound. Its index is empty then. Defaults to False.
    """

    damaged: str = "raise"
    verify: AudioVerifyLevel = "tables"
    track: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class AudioIndex:
    """The audio stream of one version of a file.

    A *decoded* sample is one that the decoder returns if it leaves out nothing. Those in `kept` are played: all but the
    decoder's delay (priming samples), the padding at the end, and what an edit list leaves out. They are numbered from
    0, and these numbers are the positions of everything else in this package.

    Attributes:
        rate: Number of samples per second.
        channels: Number of channels. 0 for a file without sound.
        layout: FFmpeg's name of the channel layout.
        format: FFmpeg's name of the packed sample format.
        codec: FFmpeg's name of the codec.
        time_base: Duration of one unit of `pts`, in seconds.
        pts: Timestamp of each packet, int64 (packets,). Empty if `has_exact_pts`.
        offsets: Byte offset that FFmpeg reports for each packet, int64 (packets,), -1 where it knows none.
        sizes: Size of each packet in bytes, int64 (packets,).
        samples: Number of samples that each packet decodes to, int64 (packets + 1,). The last number is what the
            decoder returns after the last packet.
        kept: First decoded sample and end of each range that is played, int64 (ranges, 2).
        checks: CRC-32 of the samples of each :data:`CHECKED_PACKETS` packets, int64, or none if it is unknown.
        has_exact_pts: Whether the timestamp of each packet is the number of its first decoded sample, so that the file
            has no table of packets.
        damaged: Whether the file is damaged, so that packets that cannot be decoded are left out.
        note: Description of the damage. Empty for an intact file.
    """

    rate: int
    channels: int
    layout: str
    format: str
    codec: str
    time_base: Fraction
    pts: Array
    offsets: Array
    sizes: Array
    samples: Array
    kept: Array
    checks: Array
    has_exact_pts: bool = False
    damaged: bool = False
    note: str = ""

    def __len__(self) -> int:
        """Return the number of samples that are played."""
        return int(self.kept_starts[-1])

    @functools.cached_property
    def kept_starts(self) -> Array:
        """Number of the first sample of each range of `kept`, and of the end, int64 (ranges + 1,)."""
        return np.concatenate([[0], np.cumsum(self.kept[:, 1] - self.kept[:, 0])]).astype(np.int64)

    @functools.cached_property
    def packet_starts(self) -> Array:
        """First decoded sample of each packet, and the end, int64 (packets + 2,)."""
        return np.concatenate([[0], np.cumsum(self.samples)]).astype(np.int64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a decoded sample."""
        return np.dtype(SAMPLE_DTYPES[self.format])


def summarize_audio(index: AudioIndex) -> bytes:
    """Return the record of a sound, in the layout of :data:`AUDIO_SUMMARY`."""
    values: Any = (len(index), index.rate, index.channels)
    return np.array(values, AUDIO_SUMMARY).tobytes()
