"""Index a sound: find its packets, how many samples each decodes to, and which samples are played.

PCM and FLAC files state their number of samples, and each packet its position. MP4 and MOV have tables of packets. Of
other files all packets are read. Where the codec determines how many samples a packet decodes to, nothing but the first
packets is decoded; otherwise everything is decoded once.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from streamloader.errors import ConfigError, CorruptStream, UnreadableStream
from streamloader.media.audio.index import (
    AUDIO_VERIFY_LEVELS,
    CHECKED_PACKETS,
    MAX_PACKETS,
    AudioIndex,
    AudioIndexSettings,
)
from streamloader.media.audio.missing_packets import check_nothing_missing
from streamloader.media.audio.packets import (
    PacketRow,
    add_frame_skips,
    count_opus_samples,
    fill_timestamps,
    find_kept,
    read_row,
    read_sample_count,
    trim_end,
)
from streamloader.media.audio.source import (
    check_frame,
    contains_coded_sound,
    corrupt_error,
    demux_sound,
    frame_samples,
    open_sound,
    starts_like_wav,
    translate_sound_errors,
)
from streamloader.media.video.files import file_version
from streamloader.media.video.remote import Video, VideoFile, open_video_file
from streamloader.media.video.source_errors import fence_foreign_errors, find_truncation, refuse_encrypted

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

    from streamloader.values import Array

__all__ = ["index_audio"]

_EMPTY: Final = np.zeros(0, np.int64)
# Containers that state the number of samples, and in which FFmpeg finds any sample by its number.
_EXACT_CONTAINERS: Final = frozenset({"aiff", "au", "caf", "flac", "w64", "wav"})
# Codecs with as many samples in each packet as in the first.
_CONSTANT_CODECS: Final = frozenset({"aac", "ac3", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"})
# Codecs without a delay, whose packets have their exact durations where the time base allows it.
_TIMED_CODECS: Final = ("alac", "flac", "pcm_", "tta", "wavpack")
_HEAD_PACKETS: Final = 8  # decoded to learn the format
_MAX_TRIMMED_SAMPLES: Final = 1 << 14  # at the end, by an edit list; more is another reason
_DISCARDED: Final = 2  # AVINDEX_DISCARD_FRAME
_log = logging.getLogger("streamloader")


def index_audio(video: Video, settings: AudioIndexSettings) -> AudioIndex:
    """Index the sound of a file.

    Args:
        video: Path of a local file, or a file in a store.
        settings: Settings of the index.

    Raises:
        ConfigError: If a setting is unknown.
        StreamNotFound: If the file does not exist.
        UnreadableStream: If the file cannot be opened, contains no sound, or none of it can be decoded.
        MediaLimitExceeded: If the file exceeds a limit.
        CorruptStream: If the file is truncated, or some packets cannot be read or decoded.
        StoreError: If the store fails to deliver bytes.
    """
    if settings.verify not in AUDIO_VERIFY_LEVELS:
        raise ConfigError(f"verify must be one of {', '.join(AUDIO_VERIFY_LEVELS)}, got {settings.verify!r}")
    file = open_video_file(video)
    try:
        with fence_foreign_errors(video):
            if isinstance(video, str):
                file_version(video)
            return _index_checked(video, file, settings)
    finally:
        if file is not None:
            file.close()


def _index_checked(video: Video, file: VideoFile | None, settings: AudioIndexSettings) -> AudioIndex:
    try:
        return _Indexing(video, file, settings, tolerant=False).run()
    except ArithmeticError as error:
        raise corrupt_error(video, f"its timestamps are impossible ({error})") from error
    except CorruptStream as error:
        if settings.damaged != "keep":
            raise
        index = _Indexing(video, file, settings, tolerant=True, note=error.message).run()
        _log.warning("%s is damaged; using the %d samples that can be decoded: %s", video, len(index), error.message)
        return index


class _Head(NamedTuple):
    """What the first frames show.

    Attributes:
        form: Rate, number of channels, layout and packed sample format.
        samples: Number of samples of each of the first packets.
        rows: Description of these packets by demuxer and decoder.
    """

    form: tuple[int, int, str, str]
    samples: list[int]
    rows: list[PacketRow]


class _Indexing:
    """Indexes one file.

    Args:
        video: Path of a local file, or a file in a store.
        file: Open bytes of a file in a store.
        settings: Settings of the index.
        tolerant: Whether packets that cannot be read or decoded are left out.
        note: Description of the damage. Defaults to "".
    """

    def __init__(
        self, video: Video, file: VideoFile | None, settings: AudioIndexSettings, *, tolerant: bool, note: str = ""
    ) -> None:
        self._video = video
        self._file = file
        self._settings = settings
        self._tolerant = tolerant
        self._note = note
        self._probes = True  # whether FFmpeg does

    def run(self) -> AudioIndex:
        """Return the index."""
        if not self._tolerant and starts_like_wav(self._video, self._file):
            self._probes = False
            with self._open() as (container, stream):
                self._probes = stream is None or self._needs_probe(container, stream)
        if not self._tolerant and self._settings.verify == "tables" and self._settings.damaged == "raise":
            index = self._index_by_tables()
            if index is not None:
                return index
        return self._index_by_decoding()

    def _open(self) -> Any:
        settings = self._settings
        return open_sound(
            self._video,
            self._file,
            track=settings.track,
            optional=settings.optional,
            tolerant=self._tolerant,
            probes=self._probes,
        )

    def _needs_probe(self, container: InputContainer, stream: AudioStream) -> bool:
        """Return whether the packets of WAV are something else than PCM that its header describes."""
        if container.format.name != "wav" or not stream.codec_context.name.startswith("pcm_"):
            return True
        with translate_sound_errors(self._video):
            packets = itertools.islice(demux_sound(container, stream, self._file), _HEAD_PACKETS)
            return any(contains_coded_sound(bytes(packet)) for packet in packets if packet.size)

    # --- without decoding --------------------------------------------------------------------------------------------

    def _index_by_tables(self) -> AudioIndex | None:
        """Return the index if the file's tables or packets determine it."""
        with self._open() as (container, stream):
            if stream is None:
                return _index_nothing()
            self._check_complete()
            head = self._decode_head(container, stream)
            if head is None:
                return None
            exact = self._index_exact(container, stream, head)
            if exact is not None:
                return exact
            rule = _choose_rule(stream, head)
        if rule is None:
            return None
        if rule == "constant":
            with self._open() as (container, stream):
                rows = self._read_movie(container, stream)
                if rows is not None:
                    return self._index_by_rows(container, stream, head, rows, [head.samples[0]] * len(rows))
        with self._open() as (container, stream):
            rows, samples = self._read_packets(container, stream, rule, head)
            return self._index_by_rows(container, stream, head, rows, samples)

    def _index_by_rows(
        self, container: InputContainer, stream: AudioStream, head: _Head, rows: list[PacketRow], samples: list[int]
    ) -> AudioIndex | None:
        """Return the index, if the first packets decode to the samples that were derived for them."""
        if not samples or min(samples) <= 0 or samples[: len(head.samples)] != head.samples:
            return None
        rows[: len(head.rows)] = head.rows
        return self._build(container, stream, head.form, rows, np.array([*samples, 0], np.int64), _EMPTY)

    def _decode_head(self, container: InputContainer, stream: AudioStream) -> _Head | None:
        """Decode the first packets. Return None if nothing can be learnt from them."""
        rows: list[PacketRow] = []
        samples: list[int] = []
        form = None
        with translate_sound_errors(self._video):
            for packet in itertools.islice(demux_sound(container, stream, self._file), _HEAD_PACKETS):
                if not packet.size:
                    break
                refuse_encrypted(packet, self._video)
                frames = self._decode(packet, sum(samples), 0 if form is None else form[0])
                rows.append(add_frame_skips(read_row(packet), frames))
                samples.append(sum(frame.samples for frame in frames))
                for frame in frames:
                    found = check_frame(frame, self._video)
                    if form not in (None, found):
                        return None
                    form = found
        return None if form is None else _Head(form, samples, rows)

    def _index_exact(self, container: InputContainer, stream: AudioStream, head: _Head) -> AudioIndex | None:
        """Return the index of a file that states its number of samples, and has each packet's position."""
        rate, channels, layout, format_ = head.form
        rows = head.rows
        codec, time_base = stream.codec_context.name, Fraction(stream.time_base or 0)
        count = stream.duration or 0
        is_exact = (
            container.format.name in _EXACT_CONTAINERS
            and codec.startswith(("flac", "pcm_"))
            and time_base == Fraction(1, rate)
            and count > 0
            and [row.pts for row in rows] == [sum(head.samples[:number]) for number in range(len(rows))]
            and not any(row.skip_start or row.skip_end or row.is_discarded for row in rows)
        )
        if not is_exact:
            return None
        if codec != "flac" and count * rows[0].size // head.samples[0] > self._file_size():
            return None  # its header has no size, as that of a live recording
        return AudioIndex(
            rate, channels, layout, format_, codec, time_base, _EMPTY, _EMPTY, _EMPTY,
            np.array([count], np.int64), np.array([[0, count]], np.int64), _EMPTY, has_exact_pts=True,
        )  # fmt: skip

    def _read_movie(self, container: InputContainer, stream: AudioStream) -> list[PacketRow] | None:
        """Return the packets of an MP4 or MOV by its tables, or None if these do not have all of them.

        Only the last packet is read, whose duration the tables of FFmpeg lack.
        """
        entries = list(stream.index_entries)
        if "mov" not in container.format.name.split(",") or len(entries) < 2 or len(entries) != stream.frames:
            return None
        times = [entry.timestamp for entry in entries]
        durations = {later - time for time, later in itertools.pairwise(times)}
        if len(durations) != 1 or min(durations) <= 0:  # an edit list with several parts, for example
            return None
        last = None
        with translate_sound_errors(self._video):
            container.seek(times[-1], stream=stream, backward=True)
            for packet in demux_sound(container, stream, self._file):
                if packet.size:
                    last = read_row(packet)
        if last is None or last.pts != times[-1]:
            return None
        (duration,) = durations
        rows = [
            PacketRow(entry.timestamp, entry.pos, entry.size, duration, is_discarded=bool(entry.flags & _DISCARDED))
            for entry in entries
        ]
        return [*rows[:-1], last]

    def _read_packets(
        self, container: InputContainer, stream: AudioStream, rule: str, head: _Head
    ) -> tuple[list[PacketRow], list[int]]:
        """Read all packets, and return them with the number of samples that each decodes to."""
        rows: list[PacketRow] = []
        samples: list[int] = []
        samples_per_tick = Fraction(stream.time_base or 1) * head.form[0]
        with translate_sound_errors(self._video):
            for packet in demux_sound(container, stream, self._file):
                if not packet.size:
                    break
                self._check_packets(len(rows))
                if packet.is_corrupt:
                    raise corrupt_error(self._video, f"packet {len(rows)} is damaged")
                rows.append(read_row(packet))
                if rule == "constant":
                    samples.append(head.samples[0])
                elif rule == "opus":
                    samples.append(count_opus_samples(bytes(packet)))
                else:
                    samples.append(int(rows[-1].duration * samples_per_tick))
        return rows, samples

    # --- by decoding -------------------------------------------------------------------------------------------------

    def _index_by_decoding(self) -> AudioIndex:
        with self._open() as (container, stream):
            if stream is None:
                return _index_nothing()
            if not self._tolerant:
                self._check_complete()
            rows: list[PacketRow] = []
            samples: list[int] = []
            checks: list[int] = []
            form: tuple[int, int, str, str] | None = None
            crc = total = 0
            for packet in self._packets(container, stream):
                if packet.size:
                    self._check_packets(len(rows))
                    refuse_encrypted(packet, self._video)
                    rows.append(read_row(packet))
                frames = self._decode(packet, total, 0 if form is None else form[0])
                if packet.size:
                    rows[-1] = add_frame_skips(rows[-1], frames)
                for frame in frames:
                    found = check_frame(frame, self._video)
                    if form not in (None, found):
                        raise self._change_error(form, found, total)
                    form = found
                    crc = zlib.crc32(frame_samples(frame).data, crc)
                samples.append(sum(frame.samples for frame in frames))
                total += samples[-1]
                if len(samples) % CHECKED_PACKETS == 0 or not packet.size:
                    checks.append(crc)
                    crc = 0
            if form is None or not total:
                name = str(self._video)
                raise UnreadableStream(f"{name}: nothing of its sound can be decoded", stream=name, address=name)
            if len(samples) == len(rows):  # the demuxer failed, so the decoder was not flushed
                samples.append(0)
                checks += [crc] if (len(samples) - 1) % CHECKED_PACKETS else [0]
            return self._build(container, stream, form, rows, np.array(samples, np.int64), np.array(checks, np.int64))

    def _packets(self, container: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
        packets = demux_sound(container, stream, self._file)
        while True:
            try:
                with translate_sound_errors(self._video):
                    packet = next(packets, None)
            except CorruptStream:
                if not self._tolerant:
                    raise
                return
            if packet is None:
                return
            yield packet

    def _decode(self, packet: Packet[AudioStream], sample: int, rate: int) -> list[AudioFrame]:
        try:
            with translate_sound_errors(self._video, sample, rate):
                return packet.decode()
        except CorruptStream as error:
            if isinstance(error.__cause__, EOFError):
                return []
            if not self._tolerant:
                raise
            return []

    def _change_error(
        self, form: tuple[int, int, str, str] | None, found: tuple[int, int, str, str], sample: int
    ) -> UnreadableStream:
        name = str(self._video)
        return UnreadableStream(
            f"{name} changes its format at sample {sample}, from {_describe(form)} to {_describe(found)}: split or "
            "convert it, for example with `ffmpeg -i FILE NEW.flac`",
            stream=name,
            address=name,
            offset=sample,
        )

    # --- common parts ------------------------------------------------------------------------------------------------

    def _build(
        self,
        container: InputContainer,
        stream: AudioStream,
        form: tuple[int, int, str, str],
        rows: list[PacketRow],
        samples: Array,
        checks: Array,
    ) -> AudioIndex:
        rate, channels, layout, format_ = form
        time_base = Fraction(stream.time_base or Fraction(1, rate))
        kept = find_kept(rows, samples)
        if not self._tolerant:
            check_nothing_missing(self._video, self._file, container, stream, rows, samples, kept, rate)
        first = int(kept[0, 0]) if len(kept) else 0
        count = _find_end(container, stream, rate, sum(row.duration for row in rows), first)
        total = int((kept[:, 1] - kept[:, 0]).sum())
        if self._tolerant and count is not None and stream.codec_context.name in _CONSTANT_CODECS:
            count -= int(samples.max()) * int((samples[: len(rows)] == 0).sum())  # of packets that were left out
        if count is not None and 0 < total - count < _MAX_TRIMMED_SAMPLES:
            kept = trim_end(kept, count)
        return AudioIndex(
            rate, channels, layout, format_, stream.codec_context.name, time_base,
            fill_timestamps(rows, samples, 1 / (rate * time_base)),
            np.array([row.offset for row in rows], np.int64),
            np.array([row.size for row in rows], np.int64),
            samples, kept, checks, damaged=self._tolerant, note=self._note,
        )  # fmt: skip

    def _check_packets(self, count: int) -> None:
        if count >= MAX_PACKETS:
            name = str(self._video)
            raise UnreadableStream(f"{name} has more than {MAX_PACKETS:,} packets", stream=name, address=name)

    def _check_complete(self) -> None:
        truncation = find_truncation(self._video, self._file)
        if truncation is not None:
            raise corrupt_error(
                self._video, f"it declares {truncation[0]} bytes, but ends at byte {truncation[1]}",
                details={"size": truncation[1]},
            )  # fmt: skip

    def _file_size(self) -> int:
        video = self._video
        return file_version(video)[0] if isinstance(video, str) else video.info.size or 0


def _choose_rule(stream: AudioStream, head: _Head) -> str | None:
    """Return how the number of samples of a packet follows without decoding it, or None if it does not.

    It is ``"constant"``, ``"timed"`` (the packet's duration) or ``"opus"`` (its first byte).
    """
    codec = stream.codec_context.name
    if codec == "opus":
        return "opus"
    if codec in _CONSTANT_CODECS and len(set(head.samples)) == 1:
        return "constant"
    has_whole_ticks = stream.time_base is not None and (stream.time_base * head.form[0]).numerator == 1
    return "timed" if codec.startswith(_TIMED_CODECS) and has_whole_ticks else None


def _find_end(container: InputContainer, stream: AudioStream, rate: int, ticks: int, first: int) -> int | None:
    """Return the number of samples that a container of the MP4 family states, or None.

    iTunes writes it into a tag. An edit list says how long the sound is played, from which FFmpeg derives the duration;
    without one, that is the duration of all packets.

    Args:
        container: Open file.
        stream: Audio stream of the file.
        rate: Number of samples per second.
        ticks: Duration of all packets in units of the time base. The last one may be shorter than what it decodes to.
        first: First decoded sample that is played.
    """
    if "mov" not in container.format.name.split(","):
        return None
    tag = read_sample_count({**container.metadata, **stream.metadata})
    if tag is not None:
        return tag[1]
    if stream.duration in (None, ticks) or not stream.time_base:
        return None
    samples_per_tick = Fraction(stream.time_base) * rate
    return min(int(stream.duration * samples_per_tick), int(ticks * samples_per_tick) - first)


def _describe(form: tuple[int, int, str, str] | None) -> str:
    return "nothing" if form is None else f"{form[0]} Hz, {form[2]}, {form[3]}"


def _index_nothing() -> AudioIndex:
    """Return the index of a file without sound."""
    return AudioIndex(
        0, 0, "", "", "", Fraction(1), _EMPTY, _EMPTY, _EMPTY, np.zeros(1, np.int64), np.zeros((0, 2), np.int64),
        _EMPTY,
    )  # fmt: skip
