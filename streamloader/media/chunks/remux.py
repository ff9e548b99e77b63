"""Writing packets of a source into a chunk of their own, as they are."""

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

from streamloader.errors import CorruptStream
from streamloader.media.chunks.scan import NEVER, Survey, check_cancelled
from streamloader.media.video.orientation import UPRIGHT, Turn
from streamloader.media.video.source import decoding, open_video
from streamloader.values import Array

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = ["MP4_CODECS", "Sound", "Unfit", "keep_turn", "open_chunk", "sound_between", "write_copy", "write_packets"]

# Of MP4 (mp4ra.org) as FFmpeg writes and reads it without touching packets; all others go into Matroska.
MP4_CODECS: Final = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"})
_MP4_SOUND: Final = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
_MOST_TICKS: Final = 1 << 31  # a second, in MP4
_LEAST_TICKS: Final = 10_000  # a second: FFmpeg doubles coarser ones until they are at least that
_ONE: Final = 1 << 16  # of display matrices
_FINER: Final = 16  # ticks for one, where packets that show nothing need times between the frames


class Unfit(Exception):
    """A way to make a chunk that does not work: the message says why, and another is taken."""


class Sound(NamedTuple):
    """The packets of an audio stream that belong to a chunk, with times in seconds after its first frame."""

    container: InputContainer
    stream: Stream
    packets: list[tuple[Fraction, Any]]

    def fits_mp4(self) -> bool:
        """Say whether MP4 can hold it."""
        return str(self.stream.codec_context.codec.canonical_name) in _MP4_SOUND


@contextlib.contextmanager
def open_chunk(file: str, tick: Fraction) -> Iterator[OutputContainer]:
    """Open a new chunk whose times are multiples of `tick` seconds; bytes depend on nothing but what is written."""
    options = {"fflags": "+bitexact"}
    if file.endswith(".mp4"):
        ticks = tick.denominator
        while ticks < _LEAST_TICKS:
            ticks *= 2
        options |= {"movie_timescale": str(ticks), "avoid_negative_ts": "disabled"}
    try:
        with av.open(
            "file:" + file, "w", format="mp4" if file.endswith(".mp4") else "matroska", options=options
        ) as out:
            yield out
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise Unfit(f"its packets do not go into {file[-3:].upper()}: {error}") from error


@contextlib.contextmanager
def sound_between(path: str, first: Fraction | None, stop: Fraction | None, zero: Fraction) -> Iterator[Sound | None]:
    """Collect the packets of the best audio stream that begin in [first, stop); None if there is no audio.

    Args:
        path: of the source.
        first: in seconds; None for the beginning.
        stop: in seconds; None for the end.
        zero: when the chunk begins, in seconds.
    """
    container, video = open_video(path)
    with contextlib.closing(container), decoding(path):
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            yield None
            return
        stream.discard = av.stream.Discard.default
        video.discard = av.stream.Discard.all
        found = []
        if first is not None and container.duration:
            # A second early: what a seek finds need not be the very packet.
            with contextlib.suppress(av.error.FFmpegError):
                container.seek(max(0, int((first - 1) * av.time_base)), backward=True)
        for packet in container.demux(stream):
            if packet.size == 0 or packet.pts is None:
                continue
            at = packet.pts * Fraction(packet.time_base)
            if stop is not None and at >= stop:
                break
            if first is None or at >= first:
                found.append((at - zero, packet))
        yield Sound(container, stream, found)


class _Times(NamedTuple):
    pts: list[int]
    dts: list[int]
    tick: Fraction


def write_copy(
    path: str,
    survey: Survey,
    span: tuple[int, int],
    frames: tuple[int, int],
    file: str,
    turn: Turn,
    sound: Sound | None,
    cancelled: Callable[[], bool],
) -> None:
    """Write the packets [span) of the source into `file`, so that players show the frames [frames) from time 0 on.

    Pictures before these are hidden by an edit list where the container is MP4, as are those behind them.

    Raises:
        Unfit: they do not go into this container.
        CorruptStream: the source is not what was surveyed.
        ClosedError: the work was cancelled.
    """
    times = _times(survey, span, frames)
    with contextlib.closing(_packets(path, survey, span[0], cancelled)) as read:
        source = next(read)
        with open_chunk(file, times.tick) as output:
            stream = output.add_stream_from_template(source, opaque=True)
            stream.time_base = times.tick
            keep_turn(stream, turn)
            packets = (_timed(packet, times, at) for at, packet in zip(range(span[1] - span[0]), read, strict=False))
            written = write_packets(output, stream, packets, sound)
    if written < span[1] - span[0]:
        raise _changed(path, span[0] + written)
    if file.endswith(".mp4"):
        shown = survey.pts[frames[0]], survey.end if frames[1] == len(survey) else survey.pts[frames[1]]
        _show_only(file, (int(shown[1]) - int(shown[0])) * survey.time_base)


def write_packets(output: OutputContainer, stream: Stream, packets: Iterable[Any], sound: Sound | None) -> int:
    """Write video packets, and among them those of the sound; return how many video packets these were."""
    written = 0
    with_sound = output.add_stream_from_template(sound.stream, opaque=True) if sound is not None else None
    voices: list[Iterator[tuple[Fraction, int, Any]]] = [
        (((packet.dts if packet.dts is not None else packet.pts) * packet.time_base, 0, packet) for packet in packets)
    ]
    if sound is not None:
        voices.append(_sounds(sound))
    for _, voice, packet in heapq.merge(*voices, key=lambda entry: entry[:2]):
        packet.stream = with_sound if voice else stream
        output.mux_one(packet)
        written += not voice
    return written


def _sounds(sound: Sound) -> Iterator[tuple[Fraction, int, Any]]:
    for at, packet in sound.packets:
        tick = Fraction(packet.time_base)
        packet.pts = packet.dts = round(at / tick)
        yield at, 1, packet


def _timed(packet: Any, times: _Times, at: int) -> Any:
    packet.pts, packet.dts, packet.time_base = times.pts[at], times.dts[at], times.tick
    packet.duration = times.pts[-1] - times.pts[at] if at == len(times.dts) - 1 else 0
    return packet


def _times(survey: Survey, span: tuple[int, int], frames: tuple[int, int]) -> _Times:
    """Return pts and dts of packets so that all pts differ, dts rise, and frame frames[0] is shown at 0.

    Packets that show nothing keep their own pts, if no other has it, or get one right behind the packet before them.
    """
    known = np.where((survey.packet >= span[0]) & (survey.packet < span[1]))[0]
    at: list[int | None] = [None] * (span[1] - span[0])
    for frame in known.tolist():
        at[int(survey.packet[frame]) - span[0]] = int(survey.pts[frame])
    used = {time for time in at if time is not None}
    for number, time in enumerate(at):
        own = int(survey.times[span[0] + number])
        if time is None and own != NEVER and own not in used:
            at[number] = own
            used.add(own)
    tick, finer = survey.time_base, _FINER if None in at else 1
    earliest = min(used)
    fine: list[int] = []
    taken: set[int] = set()
    lead = next(number for number, time in enumerate(at) if time is not None)
    for number, time in enumerate(at):
        when = (
            time * finer if time is not None else fine[-1] + 1 if number > lead else (earliest - lead + number) * finer
        )
        while when in taken:
            when += 1
        taken.add(when)
        fine.append(when)
    zero = int(survey.pts[frames[0]]) * finer
    tick /= finer
    scale = Fraction(1, tick.denominator) if tick.denominator < _MOST_TICKS else Fraction(1, 1_000_000)
    pts = np.array([round((when - zero) * tick / scale) for when in fine], np.int64)
    ordered = np.sort(pts)
    dts = ordered - max(0, int((ordered - pts).max()))
    return _Times(pts.tolist(), dts.tolist(), scale)


def _packets(path: str, survey: Survey, first: int, cancelled: Callable[[], bool]) -> Generator[Any, None, None]:
    """Yield the video stream of the source, then its packets from number `first` on."""
    key = survey.keys[np.flatnonzero(survey.keys[:, 0] == first)]
    if first > 0 and len(key) and NEVER not in key[0, 1:3]:
        container, stream = open_video(path)
        with contextlib.closing(container), decoding(path):
            found = _seek(container, stream, key[0])
            if found is not None:
                yield stream
                yield found
                yield from _rest(container, stream, path, cancelled)
                return
    container, stream = open_video(path)
    with contextlib.closing(container), decoding(path):
        yield stream
        for number, packet in enumerate(_rest(container, stream, path, cancelled)):
            if number == first and len(key) and zlib.crc32(memoryview(packet)) != key[0, 4]:
                raise _changed(path, first)
            if number >= first:
                yield packet


def _rest(container: InputContainer, stream: VideoStream, path: str, cancelled: Callable[[], bool]) -> Iterator[Any]:
    for packet in container.demux(stream):
        check_cancelled(cancelled, path)
        if packet.size:
            yield packet


def _seek(container: InputContainer, stream: VideoStream, key: Array) -> Any:
    """Return the packet of a key frame, found by its time; None if it is not found in this way."""
    pts, dts, size, crc = (int(value) for value in key[1:5])
    with contextlib.suppress(av.error.FFmpegError):
        container.seek(min(pts, dts), stream=stream, backward=True)
        for packet in container.demux(stream):
            if packet.dts is None or packet.dts > dts:
                return None
            if (packet.pts, packet.dts, packet.size) == (pts, dts, size) and zlib.crc32(memoryview(packet)) == crc:
                return packet
    return None


def keep_turn(stream: VideoStream, turn: Turn) -> None:
    """Tell players how to turn the frames of a chunk that is being written."""
    if turn == UPRIGHT:
        return
    along, across = (-_ONE if turn.flip_columns else _ONE), (-_ONE if turn.flip_rows else _ONE)
    matrix = (0, across, 0, along, 0) if turn.transpose else (along, 0, 0, 0, across)
    stream.set_display_matrix([*matrix, 0, 0, 0, 1 << 30])


def _changed(path: str, packet: int) -> CorruptStream:
    return CorruptStream(
        f"{path} was changed while it was cut: packet {packet} is not the one that was there",
        stream=path,
        address=path,
        offset=packet,
    )


def _show_only(file: str, seconds: Fraction) -> None:
    """Set the length of the video track's edit, so that players end there (ISO/IEC 14496-12, 8.6.6)."""
    with open(file, "r+b") as chunk:
        at = _find(chunk, 0, chunk.seek(0, 2), b"moov")
        if at is None:
            return
        header = _find(chunk, *at, b"mvhd")
        edit = at
        for kind in (b"trak", b"edts", b"elst"):
            inner = _find(chunk, *edit, kind)
            if inner is None:
                return
            edit = inner
        assert header is not None
        chunk.seek(header[0])
        wide = chunk.read(1)[0]
        chunk.seek(header[0] + (20 if wide else 12))
        length = round(seconds * int.from_bytes(chunk.read(4), "big"))
        chunk.seek(edit[0])
        wide, count = chunk.read(1)[0], int.from_bytes(chunk.read(7)[3:], "big")
        entry, field = (20, 8) if wide else (12, 4)
        place = edit[0] + 8 + (count - 1) * entry
        chunk.seek(place)
        if count and int.from_bytes(chunk.read(field), "big") > length:
            chunk.seek(place)
            chunk.write(length.to_bytes(field, "big"))


def _find(chunk: Any, start: int, end: int, kind: bytes) -> tuple[int, int] | None:
    """Return where the content of the first box of this kind is."""
    at = start
    while at + 8 <= end:
        chunk.seek(at)
        head = chunk.read(16)
        length, header = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, header = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] == kind:
            return at + header, at + length
        if length < header:
            return None
        at += length
    return None
