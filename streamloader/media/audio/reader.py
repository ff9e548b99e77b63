"""Decode a sound from any sample on, so that every sample is the one of a decode from the start.

A packet alone does not determine its samples: windows overlap, MP3 takes bits of earlier packets, and some decoders
have a state without an end (Opus filters its output with itself; AAC and AC-3 draw noise from a generator that is never
set back). Three ways lead to exact samples:

- Codecs with a finite memory are decoded from a few packets before.
- Where the index has checksums of the samples, decoding starts some packets before, and goes on while they are right.
- Otherwise, and where the checksums are wrong, decoding starts at the beginning of the file.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.errors import CorruptStream, StoreError, StreamloaderError
from streamloader.media.audio.index import CHECKED_PACKETS
from streamloader.media.audio.source import (
    check_frame,
    corrupt_error,
    demux_sound,
    frame_samples,
    open_sound,
    translate_sound_errors,
)
from streamloader.media.video.remote import Video, VideoFile, open_video_file

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

    from streamloader.media.audio.index import AudioIndex
    from streamloader.values import Array

__all__ = ["SampleReader"]

# Packets before a sample on which it may depend, for codecs with a finite memory. MP3 frames of 24 bytes, the smallest,
# need 24 frames for the 255 bytes that they may take of earlier ones, and two for the filters.
_MEMORY_PACKETS: Final = {
    "adpcm_ima_wav": 0, "adpcm_ms": 0, "alac": 0, "flac": 0, "mp1float": 4, "mp2float": 4, "mp3float": 40, "tta": 0,
    "vorbis": 2, "wavpack": 0,
}  # fmt: skip
_CHECKED_STARTS: Final = (8, 64, 512)  # packets before a group that is checked
_MAX_SEEK_ATTEMPTS: Final = 5  # each goes back eight times as far
_SEEK_MARGIN: Final = 4  # packets
_MAX_BACKWARD_PACKETS: Final = 4  # by which timestamps may run backwards inside a stream
_MAX_SEARCHED_PACKETS: Final = 1 << 10  # after a seek, to learn which packet the demuxer has reached
_MIN_SKIPPED_PACKETS: Final = 64  # fewer are decoded instead of seeking
_EXACT_BLOCK_SAMPLES: Final = 1 << 13
_MIN_SKIPPED_SAMPLES: Final = 1 << 16


class _ChecksumMismatch(Exception):
    """The decoder has not the state of a decode from the start."""


class SampleReader:
    """Reads the samples of one sound by number. Reading forwards is cheap.

    Args:
        video: Path of a local file, or a file in a store.
        index: Index of its sound, from :func:`streamloader.media.audio.indexer.index_audio`.
        name: Key of the stream for error messages.
        track: Number of the audio stream, as in the settings of the index. Defaults to None.
        owned_file: Open bytes of a file in a store, which the reader closes. By default, it opens its own.

    Attributes:
        index: Index of the sound.
    """

    def __init__(
        self,
        video: Video,
        index: AudioIndex,
        name: str,
        *,
        track: int | None = None,
        owned_file: VideoFile | None = None,
    ) -> None:
        self.index = index
        self._video = video
        self._name = name
        self._track = track
        self._file = owned_file
        self._opened: contextlib.ExitStack | None = None
        self._container: InputContainer | None = None
        self._stream: AudioStream | None = None
        self._packets: Iterator[Packet[AudioStream]] = iter(())
        self._next_packet = 0  # number of the packet that the demuxer returns next
        self._group = 0  # number of the group that is decoded next, in a file with a table of packets
        self._is_checked = False  # whether each group has to be compared with its checksum
        self._block: Array = np.empty((0, index.channels), index.dtype)
        self._block_start = 0
        self._is_lost = True  # whether the demuxer's position is unknown
        self._error: CorruptStream | None = None  # of what follows the block

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    @property
    def rate(self) -> int:
        """Number of samples per second."""
        return self.index.rate

    @functools.cached_property
    def _is_chained(self) -> bool:
        """Whether the file has several streams in turn, so that timestamps do not name packets, and headers change."""
        index = self.index
        longest = int(index.samples.max(initial=0)) / (index.rate * index.time_base)
        return bool((np.diff(index.pts) < -_MAX_BACKWARD_PACKETS * longest).any())

    def read(self, start: int, end: int) -> Array:
        """Return the samples [start, end), (samples, channels). The end of the sound, or an error, ends them early.

        Raises:
            CorruptStream: If sample `start` cannot be decoded, or the file does not match its index there. ``offset``
                is the sample.
            StoreError: If the store fails to deliver bytes.
        """
        index = self.index
        end = min(end, len(index))
        out = np.empty((max(0, end - start), index.channels), index.dtype)
        done = 0
        try:
            while start + done < end:
                number = int(np.searchsorted(index.kept_starts, start + done, "right")) - 1
                skipped = start + done - int(index.kept_starts[number])
                first, last = (int(bound) for bound in index.kept[number])
                count = min(end - start - done, last - first - skipped)
                done += self._copy(first + skipped, out[done : done + count])
        except CorruptStream as error:
            self._is_lost = True
            if not done:  # otherwise the next read raises it again
                error.stream = self._name
                raise
        except StreamloaderError as error:
            error.stream = self._name
            self._is_lost = True
            raise
        except BaseException:
            self._is_lost = True
            raise
        return out[:done]

    def close(self) -> None:
        """Close the file and free the decoder. Safe to call twice."""
        self._close_container()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    # --- decoded samples ---------------------------------------------------------------------------------------------

    def _copy(self, start: int, out: Array) -> int:
        """Copy decoded samples from `start` on, at least one, and return their number."""
        self._load_block(start)
        offset = start - self._block_start
        part = self._block[offset : offset + len(out)]
        out[: len(part)] = part
        return len(part)

    def _load_block(self, sample: int) -> None:
        """Make the block that contains a decoded sample the current one."""
        if not self._is_lost and self._block_start <= sample < self._block_start + len(self._block):
            return
        if self._is_lost or sample < self._block_start or self._is_far(sample):
            self._seek(sample)
        while not self._block_start <= sample < self._block_start + len(self._block):
            try:
                self._decode_block()
            except _ChecksumMismatch:
                self._restart()  # every group from here on is decoded again, from the start of the file

    def _is_far(self, sample: int) -> bool:
        """Return whether seeking to a later sample is cheaper than decoding up to it."""
        index = self.index
        if index.has_exact_pts:
            return sample - self._block_start > _MIN_SKIPPED_SAMPLES
        if self._is_chained:
            return False
        if index.codec not in _MEMORY_PACKETS and not index.codec.startswith("pcm_") and not len(index.checks):
            return False
        packet = int(np.searchsorted(index.packet_starts, sample, "right")) - 1
        return packet - self._group * CHECKED_PACKETS > _MIN_SKIPPED_PACKETS

    def _decode_block(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self.index.has_exact_pts:
            self._decode_exact()
        else:
            self._decode_group()

    def _seek(self, sample: int) -> None:
        """Make the decoder ready for the block that contains a decoded sample, or for an earlier one."""
        self._is_lost = True
        self._clear_block()
        if self.index.has_exact_pts:
            self._seek_exact(sample)
        else:
            self._seek_group(sample)
        self._is_lost = False

    def _clear_block(self, start: int = 0) -> None:
        self._error = None
        self._block = self._block[:0]
        self._block_start = start

    # --- files in which each packet has its position -----------------------------------------------------------------

    def _seek_exact(self, sample: int) -> None:
        container, stream = self._require_container()
        back = 0
        for _ in range(_MAX_SEEK_ATTEMPTS):  # FFmpeg finds no packet near the end of some FLAC files
            with contextlib.suppress(CorruptStream), translate_sound_errors(self._video):
                container.seek(max(0, sample - back), stream=stream, backward=True)
                self._packets = demux_sound(container, stream, self._file)
                if self._skip_exact(sample):
                    return
            back = back * 8 or self.rate
            if back > sample:
                break
        self._reopen()
        if not self._skip_exact(sample):
            raise corrupt_error(self._video, "the packet of this sample is missing", sample, self.rate)

    def _skip_exact(self, sample: int) -> bool:
        """Make the packet that contains a sample the next one. Return False if the demuxer is after it."""
        for packet in self._packets:
            if packet.pts is None or packet.pts > sample or not packet.size:
                return False
            if packet.pts + (packet.duration or 0) > sample or not packet.duration:
                self._packets = itertools.chain([packet], self._packets)
                self._block_start = packet.pts
                return True
        return False

    def _decode_exact(self) -> None:
        start = end = self._block_start + len(self._block)
        parts: list[Array] = []
        try:
            while end - start < _EXACT_BLOCK_SAMPLES and end < len(self.index):
                parts += self._decode_exact_packet(end)
                end = start + sum(map(len, parts))
        except CorruptStream as error:
            if not parts:
                raise
            self._error = error
        self._block, self._block_start = np.concatenate(parts), start

    def _decode_exact_packet(self, sample: int) -> list[Array]:
        """Decode the next packet, which begins at a sample."""
        with translate_sound_errors(self._video, sample, self.rate):
            packet = next(self._packets, None)
            if packet is None or not packet.size:
                raise corrupt_error(self._video, f"it has {len(self.index)} samples by its header", sample, self.rate)
            if packet.pts != sample:
                raise corrupt_error(
                    self._video,
                    f"the packet of this sample is missing; the next one has {packet.pts}",
                    sample,
                    self.rate,
                )
            parts = [self._take(frame, sample) for frame in packet.decode()]
        if not parts:
            raise corrupt_error(self._video, "a packet has no samples", sample, self.rate)
        return parts

    # --- files with a table of packets -------------------------------------------------------------------------------

    def _seek_group(self, sample: int) -> None:
        index = self.index
        packet = int(np.searchsorted(index.packet_starts, sample, "right")) - 1
        group = packet // CHECKED_PACKETS
        memory = 0 if index.codec.startswith("pcm_") else _MEMORY_PACKETS.get(index.codec)
        if self._is_chained or index.damaged:
            self._restart()
            return
        if memory is not None:
            self._start_group(group, memory)
            return
        for start in _CHECKED_STARTS if len(index.checks) else ():
            if start >= group * CHECKED_PACKETS:
                break
            self._start_group(group, start)
            self._is_checked = True
            with contextlib.suppress(_ChecksumMismatch, CorruptStream):
                self._decode_group()
                return
        self._restart()

    def _restart(self) -> None:
        """Make the decoder ready for the first group, with the state that it has there."""
        self._reopen()
        self._group = 0
        self._is_checked = False
        self._clear_block()

    def _start_group(self, group: int, memory: int) -> None:
        """Make the decoder ready for a group, after `memory` packets before it."""
        first = group * CHECKED_PACKETS
        self._find_packet(max(0, first - memory))
        while self._next_packet < first:
            packet = self._read_packet()
            with contextlib.suppress(CorruptStream), translate_sound_errors(self._video):
                packet.decode()
        self._group = group
        self._is_checked = False
        self._clear_block(int(self.index.packet_starts[first]))

    def _decode_group(self) -> None:
        index = self.index
        first = self._group * CHECKED_PACKETS
        end = min(first + CHECKED_PACKETS, len(index.samples))
        if first >= end:
            raise self._mismatch_error(len(index.pts), "it has fewer samples than its index")
        parts: list[Array] = []
        try:
            for number in range(first, end):
                parts += self._decode_packet(number)
        except CorruptStream as error:
            if self._is_checked:
                raise _ChecksumMismatch from error
            if not parts:
                raise
            self._error = error
        block = np.concatenate(parts) if parts else self._block[:0]
        if self._is_checked and zlib.crc32(block.data) != int(index.checks[self._group]):
            raise _ChecksumMismatch
        self._block, self._block_start = block, int(index.packet_starts[first])
        self._group += 1

    def _decode_packet(self, number: int) -> list[Array]:
        expected = int(self.index.samples[number])
        start = int(self.index.packet_starts[number])
        packet = self._read_packet()
        frames: list[AudioFrame] = []
        if packet is not None:
            try:
                with translate_sound_errors(self._video, self._played(start), self.rate):
                    frames = packet.decode()
            except CorruptStream as error:
                if not self.index.damaged and not isinstance(error.__cause__, EOFError):
                    raise
        parts = [self._take(frame, start) for frame in frames]
        if sum(map(len, parts)) != expected:
            raise self._mismatch_error(
                number, f"packet {number} decodes to {sum(map(len, parts))} samples, but its index has {expected}"
            )
        return parts

    def _read_packet(self) -> Any:
        """Return the next packet, None at the end of a damaged file, and count it.

        Raises:
            CorruptStream: If it is not the packet of the index.
        """
        index, number = self.index, self._next_packet
        try:
            with translate_sound_errors(self._video, None, self.rate):
                packet = next(self._packets, None)
        except CorruptStream:
            if not index.damaged:
                raise
            packet = None
        is_end = packet is None or not packet.size
        if is_end != (number >= len(index.sizes)) or (
            not is_end and packet is not None and packet.size != index.sizes[number]
        ):
            raise self._mismatch_error(number, f"packet {number} is not the one of its index")
        self._next_packet = number + 1
        return packet

    def _take(self, frame: AudioFrame, sample: int) -> Array:
        """Return the samples of a frame, if it has the format of the index."""
        index = self.index
        rate, channels, _, format_ = check_frame(frame, self._video)
        if (rate, channels, format_) != (index.rate, index.channels, index.format):
            raise corrupt_error(
                self._video,
                f"it changes to {rate} Hz, {channels} channels, {format_}: split or convert it",
                self._played(sample),
                self.rate,
            )
        return frame_samples(frame)

    def _played(self, sample: int) -> int:
        """Return the number of the first played sample from a decoded sample on."""
        kept, starts = self.index.kept, self.index.kept_starts
        number = int(np.searchsorted(kept[:, 1], sample, "right"))
        return int(starts[number]) + (max(0, sample - int(kept[number, 0])) if number < len(kept) else 0)

    def _mismatch_error(self, number: int, problem: str) -> CorruptStream:
        sample = self._played(int(self.index.packet_starts[min(number, len(self.index.samples))]))
        return corrupt_error(self._video, problem, sample, self.rate)

    # --- the demuxer -------------------------------------------------------------------------------------------------

    def _find_packet(self, number: int) -> None:
        """Make a packet the next one of the demuxer."""
        if number > 0 and self._seek_packet(number):
            return
        self._reopen()
        while self._next_packet < number:
            self._read_packet()

    def _seek_packet(self, number: int) -> bool:
        """Seek to a packet, and return whether that was possible."""
        index = self.index
        back = _SEEK_MARGIN
        for _ in range(_MAX_SEEK_ATTEMPTS):
            if back > number:
                return False
            container, stream = self._require_container()
            try:
                with translate_sound_errors(self._video):
                    container.seek(int(index.pts[number - back]), stream=stream, backward=True)
                    self._packets = demux_sound(container, stream, self._file)
                    found = self._identify()
                if found is not None and found <= number:
                    self._next_packet = found
                    while self._next_packet < number:
                        self._read_packet()
                    return True
            except StoreError:
                raise
            except CorruptStream:  # only a decode from the start proves damage
                pass
            back *= 8
        return False

    def _identify(self) -> int | None:
        """Return the number of the demuxer's next packet after a seek, or None if it is not found.

        Several packets may have the same offset: all that begin on one page of Ogg. The first of an offset that differs
        from that of the packet before is identified by it.
        """
        index = self.index
        before: int | None = None
        for packet in itertools.islice(self._packets, _MAX_SEARCHED_PACKETS):
            if not packet.size:
                return None
            offset = -1 if packet.pos is None else packet.pos
            is_known = offset >= 0 and offset != before
            rows = np.flatnonzero(index.offsets == offset).tolist() if is_known else []
            is_first = before is not None or (len(rows) == 1 and packet.pts == index.pts[rows[0]])
            before = offset
            if len(rows) and is_first:
                if packet.size != index.sizes[rows[0]]:
                    return None
                self._packets = itertools.chain([packet], self._packets)
                return rows[0]
        return None

    def _require_container(self) -> tuple[InputContainer, AudioStream]:
        if self._container is None or self._stream is None:
            self._reopen()
        assert self._container is not None
        assert self._stream is not None
        return self._container, self._stream

    def _reopen(self) -> None:
        """Open the file again, with a decoder in its first state."""
        self._close_container()
        if self._file is None:
            self._file = open_video_file(self._video)
        opened = contextlib.ExitStack()
        container, stream = opened.enter_context(
            open_sound(
                self._video,
                self._file,
                track=self._track,
                tolerant=self.index.damaged,
                probes=not (self.index.has_exact_pts and self.index.codec.startswith("pcm_")),
            )
        )
        assert stream is not None, "a file without sound has no samples to read"
        self._opened, self._container, self._stream = opened, container, stream
        self._packets = demux_sound(container, stream, self._file)
        self._next_packet = 0

    def _close_container(self) -> None:
        self._packets = iter(())
        opened, self._opened = self._opened, None
        self._container = self._stream = None
        if opened is not None:
            opened.close()
