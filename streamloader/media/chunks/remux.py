"""Copy packets of a source into a chunk, without re-encoding."""

from __future__ import annotations

import contextlib
import heapq
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import av
import av.error
import numpy as np

from streamloader.common.error_translation import error_translator
from streamloader.errors import CorruptStream, StreamloaderError
from streamloader.media.chunks.scan import NO_TIMESTAMP, SourceScan, raise_if_cancelled
from streamloader.media.video.clock_jumps import ClockJumps
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.source import open_video, translate_errors
from streamloader.values import Array

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = [
    "MP4_CODECS",
    "AudioPackets",
    "ChunkRejected",
    "collect_audio",
    "copy_packets",
    "create_chunk_file",
    "mux_packets",
    "write_orientation",
]

# Codecs in MP4 (mp4ra.org) whose packets FFmpeg writes and reads unchanged. All others are stored in Matroska.
MP4_CODECS: Final = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"})
_MP4_AUDIO_CODECS: Final = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
_MAX_TICKS_PER_S: Final = 1 << 31  # of MP4
_MIN_TICKS_PER_S: Final = 10_000  # FFmpeg doubles the rate of coarser ticks until it reaches this
_WRITE_BYTES: Final = 256 << 10
_FIXED_POINT_ONE: Final = 1 << 16  # of display matrices
_TICK_SUBDIVISION: Final = 16  # makes room for timestamps of packets that show no frame


class ChunkRejected(Exception):
    """A way to build a chunk that fails. The message gives the reason, and the caller tries another way."""


class AudioPackets(NamedTuple):
    """Packets of an audio stream that belong to a chunk.

    Attributes:
        container: Open source.
        stream: Audio stream of the source.
        packets: (time in seconds after the chunk's first frame, packet).
    """

    container: InputContainer
    stream: Stream
    packets: list[tuple[Fraction, Any]]

    def fits_mp4(self) -> bool:
        """Return whether MP4 can hold the packets."""
        return str(self.stream.codec_context.codec.canonical_name) in _MP4_AUDIO_CODECS


@error_translator
def create_chunk_file(file: str, tick: Fraction) -> Iterator[OutputContainer]:
    """Create a chunk file whose timestamps are multiples of `tick` seconds. Equal packets give equal bytes.

    Raises:
        ChunkRejected: If the container rejects the packets.
    """
    options = {"fflags": "+bitexact"}
    if file.endswith(".mp4"):
        ticks_per_s = tick.denominator
        while ticks_per_s < _MIN_TICKS_PER_S:
            ticks_per_s *= 2
        options |= {"movie_timescale": str(ticks_per_s), "avoid_negative_ts": "disabled"}
    try:
        # PyAV leaves a file open that it opens itself, if the container refuses to write its header.
        with (
            open(file, "w+b", buffering=0) as opened,
            av.open(
                opened,
                "w",
                format="mp4" if file.endswith(".mp4") else "matroska",
                options=options,
                buffer_size=_WRITE_BYTES,
            ) as output,
        ):
            yield output
    except StreamloaderError:  # of the source
        raise
    except (av.error.FFmpegError, OSError, ValueError, OverflowError) as error:
        raise ChunkRejected(f"its packets cannot be stored in {file[-3:].upper()}: {error}") from error


@contextlib.contextmanager
def collect_audio(
    path: str,
    start: Fraction | None,
    end: Fraction | None,
    origin: Fraction,
    scan: SourceScan,
    clock: ClockJumps,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[AudioPackets | None]:
    """Collect the packets of the best audio stream that start in [start, end). Yields None if there is no audio.

    Times are those of a clock without jumps, as those of the frames.

    Args:
        path: Path of the source.
        start: Start time in seconds, or None for the start of the source.
        end: End time in seconds, or None for the end of the source.
        origin: Time in seconds at which the chunk starts.
        scan: Scan of the source.
        clock: Jumps of the clock of the source.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
    """
    container, video = open_video(path, max_pixels=max_pixels, number=scan.stream)
    with contextlib.closing(container), translate_errors(path):
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            yield None
            return
        stream.discard = av.stream.Discard.default
        video.discard = av.stream.Discard.all
        if len(clock):
            shifts = _read_shifts(path, scan, clock, max_pixels)
        else:
            shifts = None
            if start is not None and container.duration:
                # One second early, because a seek may land after the requested packet.
                with contextlib.suppress(av.error.FFmpegError):
                    container.seek(max(0, int((start - 1) * av.time_base)), backward=True)
        packets: list[tuple[Fraction, Any]] = []
        number, latest = 0, None
        for packet in container.demux(stream):
            if packet.size == 0 or packet.pts is None:
                continue
            pts = packet.pts if shifts is None else packet.pts + int(shifts[number])
            number += 1
            time = pts * Fraction(packet.time_base)
            if end is not None and time >= end:
                if shifts is None:
                    break
                continue
            if (start is None or time >= start) and (latest is None or time > latest):
                packets.append((time - origin, packet))
                latest = time
                if shifts is not None:  # a packet that begins before half of this one repeats what is played already
                    latest += (packet.duration or 0) * Fraction(packet.time_base) / 2
        yield AudioPackets(container, stream, packets)


def _read_shifts(path: str, scan: SourceScan, clock: ClockJumps, max_pixels: int) -> Array:
    """Return what the jumps of the clock add to the timestamp of each packet of the best audio stream that has one."""
    container, video = open_video(path, max_pixels=max_pixels, number=scan.stream)
    with contextlib.closing(container):
        stream = container.streams.best("audio")
        assert stream is not None
        stream.discard = av.stream.Discard.default
        video.discard = av.stream.Discard.all
        rows = [
            (packet.pts, packet.duration or 0, -1 if packet.pos is None else packet.pos)
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None
        ]
        pts, durations, positions = np.array(rows, np.int64).reshape(-1, 3).T
        time_base = stream.time_base or Fraction(1, av.time_base)
        return clock.find_shifts(pts, durations, positions, scan.time_base, time_base)


class _PacketTimes(NamedTuple):
    """Timestamps of the packets of a chunk, in units of `tick` seconds."""

    pts: list[int]
    dts: list[int]
    tick: Fraction


def copy_packets(
    path: str,
    scan: SourceScan,
    span: tuple[int, int],
    frames: tuple[int, int],
    file: str,
    orientation: Orientation,
    audio: AudioPackets | None,
    is_cancelled: Callable[[], bool],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> None:
    """Copy packets of the source into a new file, in which players show some of its frames from time 0 on.

    In MP4, an edit list hides the frames before and after these.

    Args:
        path: Path of the source.
        scan: Scan of the source.
        span: Packets [start, end) to copy.
        frames: Frames [start, end) to show.
        file: Path of the new file.
        orientation: Orientation of the frames, for video players.
        audio: Audio packets, for video players, or None.
        is_cancelled: Function that returns whether to stop. Called before each packet.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        ChunkRejected: If the container rejects the packets.
        CorruptStream: If the source changed since it was scanned.
        ClosedError: If the work was cancelled.
    """
    times = _compute_times(scan, span, frames)
    with contextlib.closing(_read_packets(path, scan, span[0], is_cancelled, max_pixels)) as source:
        template = next(source)
        with create_chunk_file(file, times.tick) as output:
            stream = output.add_stream_from_template(template, opaque=True)
            stream.time_base = times.tick
            write_orientation(stream, orientation)
            numbered = zip(range(span[1] - span[0]), source, strict=False)
            written = mux_packets(output, stream, (_set_times(packet, times, n) for n, packet in numbered), audio)
    if written < span[1] - span[0]:
        raise _source_changed_error(path, span[0] + written)
    if file.endswith(".mp4"):
        first_pts, end_pts = scan.pts[frames[0]], scan.end if frames[1] == len(scan) else scan.pts[frames[1]]
        _limit_edit_duration(file, (int(end_pts) - int(first_pts)) * scan.time_base)


def mux_packets(output: OutputContainer, stream: Stream, packets: Iterable[Any], audio: AudioPackets | None) -> int:
    """Write video and audio packets in the order of their times. Return the number of video packets."""
    written = 0
    audio_stream = output.add_stream_from_template(audio.stream, opaque=True) if audio is not None else None
    sources: list[Iterator[tuple[Fraction, int, Any]]] = [
        (((packet.dts if packet.dts is not None else packet.pts) * packet.time_base, 0, packet) for packet in packets)
    ]
    if audio is not None:
        sources.append(_time_audio_packets(audio))
    for _, is_audio, packet in heapq.merge(*sources, key=lambda entry: entry[:2]):
        packet.stream = audio_stream if is_audio else stream
        output.mux_one(packet)
        written += not is_audio
    return written


def _time_audio_packets(audio: AudioPackets) -> Iterator[tuple[Fraction, int, Any]]:
    for time, packet in audio.packets:
        tick = Fraction(packet.time_base)
        packet.pts = packet.dts = round(time / tick)
        yield time, 1, packet


def _set_times(packet: Any, times: _PacketTimes, number: int) -> Any:
    packet.pts, packet.dts, packet.time_base = times.pts[number], times.dts[number], times.tick
    packet.duration = times.pts[-1] - times.pts[number] if number == len(times.dts) - 1 else 0
    return packet


def _compute_times(scan: SourceScan, span: tuple[int, int], frames: tuple[int, int]) -> _PacketTimes:
    """Return pts and dts of packets so that all pts differ, dts increase, and frame frames[0] is shown at 0.

    Packets that show no frame keep their own pts if no other packet has it, or get one just after the packet before.
    """
    shown = np.where((scan.frame_packet >= span[0]) & (scan.frame_packet < span[1]))[0]
    times: list[int | None] = [None] * (span[1] - span[0])
    for frame in shown.tolist():
        times[int(scan.frame_packet[frame]) - span[0]] = int(scan.pts[frame])
    used = {time for time in times if time is not None}
    for number, time in enumerate(times):
        own = int(scan.packet_pts[span[0] + number])
        if time is None and own != NO_TIMESTAMP and own not in used:
            times[number] = own
            used.add(own)
    tick, subdivision = scan.time_base, _TICK_SUBDIVISION if None in times else 1
    earliest = min(used)
    fine: list[int] = []
    fine_used: set[int] = set()
    first_timed = next(number for number, time in enumerate(times) if time is not None)
    for number, time in enumerate(times):
        if time is not None:
            value = time * subdivision
        elif number > first_timed:
            value = fine[-1] + 1
        else:
            value = (earliest - first_timed + number) * subdivision
        while value in fine_used:
            value += 1
        fine_used.add(value)
        fine.append(value)
    origin = int(scan.pts[frames[0]]) * subdivision
    tick /= subdivision
    scale = Fraction(1, tick.denominator) if tick.denominator < _MAX_TICKS_PER_S else Fraction(1, 1_000_000)
    pts = np.array([round((value - origin) * tick / scale) for value in fine], np.int64)
    ordered = np.sort(pts)
    dts = ordered - max(0, int((ordered - pts).max()))
    return _PacketTimes(pts.tolist(), dts.tolist(), scale)


def _read_packets(
    path: str, scan: SourceScan, start: int, is_cancelled: Callable[[], bool], max_pixels: int
) -> Generator[Any, None, None]:
    """Yield the video stream of the source, then its packets from number `start` on."""
    key = scan.keys[np.flatnonzero(scan.keys[:, 0] == start)]
    is_unique = len(key) and int((scan.keys[:, 1:3] == key[0, 1:3]).all(axis=1).sum()) == 1  # clocks may jump
    if start > 0 and is_unique and NO_TIMESTAMP not in key[0, 1:3]:
        container, stream = open_video(path, max_pixels=max_pixels, number=scan.stream)
        with contextlib.closing(container), translate_errors(path):
            key_packet = _seek_key_packet(container, stream, key[0])
            if key_packet is not None:
                yield stream
                yield key_packet
                yield from _demux(container, stream, path, is_cancelled)
                return
    container, stream = open_video(path, max_pixels=max_pixels, number=scan.stream)
    with contextlib.closing(container), translate_errors(path):
        yield stream
        for number, packet in enumerate(_demux(container, stream, path, is_cancelled)):
            if number == start and len(key) and zlib.crc32(memoryview(packet)) != key[0, 4]:
                raise _source_changed_error(path, start)
            if number >= start:
                yield packet


def _demux(
    container: InputContainer, stream: VideoStream, path: str, is_cancelled: Callable[[], bool]
) -> Iterator[Any]:
    for packet in container.demux(stream):
        raise_if_cancelled(is_cancelled, path)
        if packet.size:
            yield packet


def _seek_key_packet(container: InputContainer, stream: VideoStream, key: Array) -> Any:
    """Seek to a key frame of SourceScan.keys and return its packet, or None if seeking does not find it."""
    pts, dts, size, crc = (int(value) for value in key[1:5])
    with contextlib.suppress(av.error.FFmpegError):
        container.seek(min(pts, dts), stream=stream, backward=True)
        for packet in container.demux(stream):
            if packet.dts is None or packet.dts > dts:
                return None
            if (packet.pts, packet.dts, packet.size) == (pts, dts, size) and zlib.crc32(memoryview(packet)) == crc:
                return packet
    return None


def write_orientation(stream: VideoStream, orientation: Orientation) -> None:
    """Store the display matrix of an orientation in a chunk that is being written."""
    if orientation == UPRIGHT:
        return
    along = -_FIXED_POINT_ONE if orientation.flip_columns else _FIXED_POINT_ONE
    across = -_FIXED_POINT_ONE if orientation.flip_rows else _FIXED_POINT_ONE
    matrix = (0, across, 0, along, 0) if orientation.transpose else (along, 0, 0, 0, across)
    stream.set_display_matrix([*matrix, 0, 0, 0, 1 << 30])


def _source_changed_error(path: str, packet: int) -> CorruptStream:
    return CorruptStream(
        f"{path} was changed while it was cut: packet {packet} differs from the one that was scanned",
        stream=path,
        address=path,
        offset=packet,
    )


def _limit_edit_duration(file: str, seconds: Fraction) -> None:
    """Limit the duration of the video track's last edit, so that players stop there (ISO/IEC 14496-12, 8.6.6)."""
    with open(file, "r+b") as chunk:
        movie = _find_box(chunk, 0, chunk.seek(0, 2), b"moov")
        if movie is None:
            return
        header = _find_box(chunk, *movie, b"mvhd")
        edit_list = movie
        for kind in (b"trak", b"edts", b"elst"):
            inner = _find_box(chunk, *edit_list, kind)
            if inner is None:
                return
            edit_list = inner
        assert header is not None
        chunk.seek(header[0])
        is_64_bit = chunk.read(1)[0]
        chunk.seek(header[0] + (20 if is_64_bit else 12))
        duration = round(seconds * int.from_bytes(chunk.read(4), "big"))
        chunk.seek(edit_list[0])
        is_64_bit, count = chunk.read(1)[0], int.from_bytes(chunk.read(7)[3:], "big")
        entry_bytes, duration_bytes = (20, 8) if is_64_bit else (12, 4)
        last_entry = edit_list[0] + 8 + (count - 1) * entry_bytes
        chunk.seek(last_entry)
        if count and int.from_bytes(chunk.read(duration_bytes), "big") > duration:
            chunk.seek(last_entry)
            chunk.write(duration.to_bytes(duration_bytes, "big"))


def _find_box(chunk: Any, start: int, end: int, kind: bytes) -> tuple[int, int] | None:
    """Return the byte range of the content of the first box of this type, or None."""
    offset = start
    while offset + 8 <= end:
        chunk.seek(offset)
        head = chunk.read(16)
        length, header = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] == kind:
            return offset + header, offset + length
        if length < header:
            return None
        offset += length
    return None
