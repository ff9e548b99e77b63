"""The exact index of a video: which frames its decoder shows, in which order, with which times.

A pass over the packets gives pts, key frames and time base. Where container and codec are known to show one frame for
each packet, and a decode of the first frames and of the last group of pictures agrees, that is the index.
Everything else (hidden frames, edit lists, packets without pts, field pictures, ...) is decoded as a whole and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import av.error
import numpy as np

from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.orientation import UPRIGHT, Turn, turn_of_matrix
from streamloader.media.video.packets import PacketTable, read_packets
from streamloader.media.video.reader import FrameReader, play
from streamloader.media.video.remote import ReadInterrupted, Spans, Video, VideoFile, open_bytes
from streamloader.media.video.source import broken, decoding, open_video
from streamloader.media.video.sparse import read_hollow
from streamloader.media.video.structure import declared_size
from streamloader.stores.readahead import UNIT

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.values import Array

__all__ = ["index_video"]

_HEAD: Final = 16  # frames decoded at the start to see that the decoder shows what the packets promise
_WATCHED: Final = 32  # key frames of a decoded file that are sought again, to see that they are found
_log = logging.getLogger("streamloader")


def index_video(video: Video, *, damaged: str = "raise") -> VideoIndex:
    """Index a video. Takes a pass over the file, and sometimes a full decode of it.

    Of an MP4 or MOV in a store only ``moov``, the first frames, the beginnings of key frames and the last group of
    pictures are fetched where that gives the same index; of all others, everything.

    Args:
        video: the path of a local file, or one in a store.
        damaged: ``"keep"`` counts what can be decoded of a file that breaks off, instead of raising.

    Raises:
        StreamNotFound: there is no such file.
        UnreadableStream: it cannot be opened, holds no video, or no frame of it can be decoded.
        CorruptStream: it breaks off, or packets of it cannot be read or decoded.
        StoreError: bytes of it could not be had.
    """
    file = None if isinstance(video, str) else open_bytes(video, _both_ends(video.info.size or 0))
    try:
        return _index_sound(video, file)
    except CorruptStream as error:
        if damaged != "keep":
            raise
        index = _index_decoded(video, None, file, tolerant=True)
        _log.warning("%s is damaged; keeping the %d frames that decode: %s", video, len(index), error.message)
        return replace(index, damaged=True, seekable=False, note=error.message)
    except ReadInterrupted as interrupted:
        raise interrupted.reason from None
    finally:
        if file is not None:
            file.close()


def _both_ends(size: int) -> Spans:
    """Return where most containers say what is in them."""
    return (0, 2 * UNIT), (max(0, size - UNIT) // UNIT * UNIT, size)


def _index_sound(video: Video, file: VideoFile | None) -> VideoIndex:
    if file is not None:
        hollow = read_hollow(video, file)
        index = None if hollow is None else _index_trusted(video, hollow, file)
        if index is not None:
            return index
    container, stream = open_video(video, file)
    with contextlib.closing(container):
        declared = stream.frames
        table = PacketTable()
        try:
            read_packets(container, stream, video, table)
        except CorruptStream as error:
            raise _cut_short(video, declared, table, str(error.__cause__)) from error
    _check_whole(video, declared, table, file)
    if table.exact:
        index = _index_trusted(video, table, file)
        if index is not None:
            return index
    return _index_decoded(video, table, file, tolerant=False)


def _check_whole(video: Video, declared_frames: int, table: PacketTable, file: VideoFile | None) -> None:
    declared = declared_size(video if isinstance(video, str) else _required(file))
    if declared is None or declared <= _size(video) or (declared_frames and table.count >= declared_frames):
        return
    raise _cut_short(video, declared_frames, table, f"its structure says {declared} bytes")


def _required(file: VideoFile | None) -> VideoFile:
    assert file is not None, "a video in a store is read through a VideoFile"
    return file


def _size(video: Video) -> int:
    return os.path.getsize(video) if isinstance(video, str) else video.info.size or 0


def _cut_short(video: Video, declared: int, table: PacketTable, why: str) -> CorruptStream:
    size, name = _size(video), str(video)
    promised = f" of the {declared} that it declares" if declared else ""
    return CorruptStream(
        f"{name} breaks off: {table.count} frames{promised} can be read, up to byte {table.end_position} of {size} "
        f'({why}). Repair or remove it, or pass damaged="keep" to play what can be decoded',
        stream=name,
        address=name,
        offset=table.count,
        declared_frames=declared,
        found_frames=table.count,
        byte=table.end_position,
        size=size,
    )


def _index_trusted(video: Video, table: PacketTable, file: VideoFile | None) -> VideoIndex | None:
    """Build the index from packets alone, if the decoder agrees at both ends; else None."""
    order = np.argsort(np.array(table.pts, np.int64), kind="stable")
    pts = np.array(table.pts, np.int64)[order]
    try:
        opening = _noting(file)
        container, stream = open_video(video, file)
        with contextlib.closing(container), decoding(video):
            first = next(play(container, stream), None)
            if first is None:
                return None
            ends = np.array(table.ends, np.int64)[order]
            index = _describe(first, stream, pts, _end_of(pts, int(ends[-1] - pts[-1])), table)
        index = replace(index, opening=opening())
        last_group = int(np.searchsorted(pts, index.key_pts[-1]))
        with contextlib.closing(FrameReader(video, index, file=file)) as reader:
            for number in (*range(min(_HEAD, len(pts))), *range(last_group, len(pts))):
                reader.frame(number)
            reader.finish()
    except CorruptStream:
        return None  # decoding everything tells what is really there
    return index


def _noting(file: VideoFile | None) -> Callable[[], Spans]:
    """Note what is read from here on; the function that is returned tells it."""
    if file is None:
        return tuple
    file.watch()
    return file.watched


def _index_decoded(video: Video, table: PacketTable | None, file: VideoFile | None, *, tolerant: bool) -> VideoIndex:
    """Decode the whole file, and take down what comes."""
    table = table or PacketTable()
    watched = _spread(sorted(set(table.key_pts)))
    digests: dict[int, int] = {}
    noted = _noting(file)
    container, stream = open_video(video, file)
    pts: list[int | None] = []
    opening: Spans = ()
    first, duration = None, 0
    with contextlib.closing(container):
        try:
            for frame in play(container, stream, tolerant=tolerant):
                if first is None:
                    first, opening = frame, noted()
                if frame.pts in watched or (pts and pts[-1] in watched):
                    digests[len(pts)] = _digest(frame)
                pts.append(frame.pts)
                duration = frame.duration or 0
        except (av.error.FFmpegError, EOFError) as error:
            raise broken(video, len(pts), error) from error
        if first is None:
            raise UnreadableStream(
                f"{video}: no frame of its video can be decoded", stream=str(video), address=str(video)
            )
        times = np.array([-1 if at is None else at for at in pts], np.int64)
        if None in pts or not (np.diff(times) > 0).all():
            return replace(_counted(first, stream, len(pts)), opening=opening)
        index = _describe(first, stream, times, _end_of(times, duration), table)
    index = replace(index, opening=opening)
    return index if _is_found_again(video, index, digests, file) else replace(index, seekable=False)


def _is_found_again(video: Video, index: VideoIndex, digests: dict[int, int], file: VideoFile | None = None) -> bool:
    """Say whether seeking works, and what is found at the key frames that were watched looks the same again."""
    works = False
    with contextlib.closing(FrameReader(video, index, file=file)) as reader:
        for number, digest in reversed(digests.items()):
            found = reader.seek(number)
            if found and _digest(reader.frame(number)) != digest:
                return False
            works = works or found
    return works


def _spread(values: list[int]) -> set[int]:
    """Return at most _WATCHED of `values`, evenly spread, with the first and the last."""
    if len(values) <= _WATCHED:
        return set(values)
    return {values[at * (len(values) - 1) // (_WATCHED - 1)] for at in range(_WATCHED)}


def _digest(frame: VideoFrame) -> int:
    plane = frame.reformat(format="gray", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
    return zlib.crc32(rows[:, : plane.width].tobytes())


def _counted(first: VideoFrame, stream: VideoStream, count: int) -> VideoIndex:
    """Index frames whose pts are missing or go backwards: they are counted, and timed by the average rate."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    index = _describe(first, stream, np.arange(count, dtype=np.int64), count, PacketTable())
    return replace(index, time_base=1 / Fraction(rate), has_pts=False, seekable=False)


def _describe(first: VideoFrame, stream: VideoStream, pts: Array, end: int, table: PacketTable) -> VideoIndex:
    keys = table.keys()
    time_base = Fraction(stream.time_base or Fraction(1, 25))
    return VideoIndex(pts, time_base, end, *keys, first.height, first.width, _turn_of(first))


def _turn_of(frame: VideoFrame) -> Turn:
    side_data: Any = frame.side_data
    if "DISPLAYMATRIX" not in side_data:
        return UPRIGHT
    matrix = bytes(side_data["DISPLAYMATRIX"])
    turn = turn_of_matrix(matrix)
    if turn is None:
        _log.info("a display matrix that is no multiple of 90 degrees is left to the user: %s", matrix.hex())
    return turn or UPRIGHT


def _end_of(pts: Array, duration: int) -> int:
    """Return when the last frame ends: by its own duration, else as long as the one before, else one tick."""
    if duration <= 0:
        duration = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
    return int(pts[-1]) + max(1, duration)
