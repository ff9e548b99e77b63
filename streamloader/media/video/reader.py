"""Decode a video frame by frame, and seek to any frame by its timestamp, never by time x rate."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import av.error
import numpy as np
from av.codec.context import ThreadType
from av.packet import Packet
from av.video.frame import VideoFrame

from streamloader.errors import CorruptStream, MediaLimitExceeded, StoreError
from streamloader.media.progress import PROGRESS
from streamloader.media.video.color_tags import ColorTags, keeps_colors
from streamloader.media.video.cropping import FrameCropper
from streamloader.media.video.decode_plan import DecodePlan, PacketFilter
from streamloader.media.video.disposable import disposable_test
from streamloader.media.video.frame_times import is_packet
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.packets import codec_name, is_clean_key, nal_length_size
from streamloader.media.video.remote import ReadInterrupted, Video, VideoFile, open_video_file
from streamloader.media.video.source import (
    concealed_error,
    decode_error,
    open_video,
    refuse_concealed,
    translate_errors,
)
from streamloader.media.video.source_errors import fence_foreign_errors

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamloader.media.video.index import Retiming, VideoIndex
    from streamloader.values import Array

__all__ = ["FrameReader", "VideoFrame", "decode_frames", "demux_packets", "frame_bytes"]

_MAX_SEEK_ATTEMPTS: Final = 8  # each attempt goes twice as many key frames back; then decoding starts at frame 0
_DEFAULT_LIMIT: Final = PixelLimit()
_MIN_SEEK_FRAMES: Final = 32  # shorter distances are read through instead of seeking to a key frame
_log = logging.getLogger("streamloader")


def frame_bytes(frame: VideoFrame) -> int:
    """Return the size in bytes of the pixels of a frame."""
    return sum(plane.buffer_size for plane in frame.planes)


def demux_packets(
    container: InputContainer, stream: VideoStream, file: VideoFile | None = None
) -> Iterator[Packet[Any]]:
    """Yield the packets of a stream from the demuxer's position on. Only the last one is empty: it flushes the decoder.

    Args:
        container: Open file.
        stream: Video stream of the file.
        file: Open bytes of a video in a store. Defaults to none, for a local file.
    """
    last: Packet[Any] | None = None
    for packet in container.demux(stream):
        if file is not None:
            file.mark_progress()
        PROGRESS.packets += 1
        if is_packet(packet):
            yield packet
        else:
            last = packet
    if last is not None:
        yield last


def decode_frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    tolerant: bool = False,
    packets: Iterator[Packet[Any]] | None = None,
    packet_filter: PacketFilter | None = None,
    file: VideoFile | None = None,
    limit: PixelLimit = _DEFAULT_LIMIT,
) -> Iterator[VideoFrame]:
    """Yield the frames that the decoder shows, from the demuxer's position on.

    Args:
        container: Open file.
        stream: Video stream of the file.
        tolerant: Whether to skip packets that cannot be decoded, and to end where the demuxer fails.
        packets: Packets to decode. Defaults to those of the demuxer.
        packet_filter: Filter of the packets to decode. Defaults to none.
        file: Open bytes of a video in a store. Defaults to none, for a local file.
        limit: Limit on the size of the frames.

    Raises:
        MediaLimitExceeded: If a frame exceeds `limit`.
    """
    if packets is None:
        packets = demux_packets(container, stream, file)
    refuse_concealed(stream, tolerant=tolerant)
    while True:
        packet: Packet[Any] | None
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, EOFError):
            if not tolerant:
                raise
            packets, packet = iter(()), _flush_packet(stream)
        if packet is None:
            return
        if packet_filter is not None:
            if packet_filter.ends_before(packet):
                packets, packet_filter, packet = iter(()), None, _flush_packet(stream)
            elif packet_filter.leaves_out(packet):
                continue
        try:
            frames = packet.decode()
        except EOFError:  # the decoder was flushed before
            return
        except av.error.FFmpegError:
            limit.check_refusal(stream.codec_context.width, stream.codec_context.height, tolerant=tolerant)
            if not tolerant:
                raise
            continue
        limit.check_frames(frames)
        yield from frames
        del frames


def _flush_packet(stream: VideoStream) -> Packet[Any]:
    packet: Packet[Any] = Packet()  # an empty packet flushes the decoder
    packet.stream = stream
    return packet


class FrameReader:
    """Reads frames of one video by number, in the order of presentation.

    Reading forwards is cheap; any other frame is decoded from a key frame. Each frame is compared with the index. After
    an error of the store, the same frame can be requested again.

    Leaving out packets, and decoding in several threads, do not change the frames. If the frames are not those of the
    index, every packet is decoded again in one thread, from a key frame before; only what is wrong then is an error.

    Args:
        video: Path of a local file, or a video in a store.
        index: Index of the video, from :func:`streamloader.media.video.indexer.index_video`.
        name: Key of the stream for error messages. Defaults to the name of the video.
        file: Open bytes of a video in a store, which stay open. By default, the reader opens its own.
        owned_file: Open bytes of a video in a store, which the reader closes.
        selected: Numbers of the only frames that will be read, int64, ascending. Defaults to all frames.
        threads: Number of decoder threads. Defaults to 1.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        keeps_concealed: Whether frames of which FFmpeg has concealed parts are frames like any other. Otherwise they
            are damage. Defaults to False, except for an index of a damaged video.

    Attributes:
        index: Index of the video.
    """

    def __init__(
        self,
        video: Video,
        index: VideoIndex,
        name: str | None = None,
        file: VideoFile | None = None,
        owned_file: VideoFile | None = None,
        *,
        selected: Array | None = None,
        threads: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        keeps_concealed: bool = False,
    ) -> None:
        self._video = video
        self._name = name or str(video)
        self._limit = PixelLimit(max_pixels, str(video))
        self.index = index
        self._keeps_concealed = keeps_concealed or index.damaged
        self._cropper = FrameCropper(index.cropping)
        self._pts = index.pts
        self._keys: list[int] = index.key_pts.tolist()
        self._clean_keys: dict[int, bool] = {}  # key frames from which reading was tried
        self._expects_clean = True  # whether key frames of this file suffice to decode all later frames, by the last
        self._plan: DecodePlan | None = None  # None to decode every packet
        self._threads = 1
        if index.has_pts and not index.damaged:  # each frame can be compared
            self._threads = threads
            if selected is not None and len(np.unique(selected)) <= selected.max(initial=-1):
                self._plan = DecodePlan(index, selected)  # a frame before the last one is not needed
        self._owned_file = (
            owned_file if owned_file is not None or file is not None else open_video_file(video, index.initial_spans)
        )
        self._file = file or self._owned_file
        self._frames: Iterator[VideoFrame] = iter(())  # of the run
        self._packets: Iterator[Packet[Any]] = iter(())  # that follow in the demuxer
        self._next = 0  # number of the frame that the decoder returns next
        self._current: VideoFrame | None = None  # frame number self._next - 1
        self._has_warned = False
        try:
            self._open()
        except BaseException as error:
            if self._owned_file is not None:
                self._owned_file.close()
            if isinstance(error, StoreError):
                error.stream = self._name
            raise
        self._position_lost = False  # an error of the store left the demuxer at an unknown position

    @property
    def is_remote(self) -> bool:
        """Whether the video is in a store."""
        return self._file is not None

    def read_frame(self, number: int) -> VideoFrame:
        """Return frame `number`, one of the selected frames, decoding and seeking as needed.

        Raises:
            CorruptStream: If the file does not match its index. ``offset`` is the number of the frame.
            UnreadableStream: If FFmpeg or PyAV refuses the file for another reason.
            StoreError: If the store fails to deliver bytes.
        """
        if number == self._next - 1 and self._current is not None:
            return self._current
        with fence_foreign_errors(self._video):
            try:
                return self._read_frame(number)
            except (CorruptStream, MediaLimitExceeded):
                is_unsure = self.index.seekable and bool(self.index.clock_jumps)
                if self._plan is None and self._threads == 1 and not is_unsure:
                    raise
            due = min(self._next, number)
            self._plan, self._threads = None, 1
            if is_unsure:  # after a seek, some demuxers end where the clock jumps
                self.index = replace(self.index, seekable=False)
            self._restart()
            self.seek(due)
            return self._read_frame(number)

    def check_end(self) -> None:
        """Check that no frame follows the last frame of the index, if that one was just read.

        Raises:
            CorruptStream: If the decoder shows more frames than the index has.
        """
        if not self._position_lost and self._next == len(self._pts) and self._advance() is not None:
            raise self._mismatch_error(f"has more than the {self._next} frames of its index")

    def seek(self, number: int) -> bool:
        """Make frame `number` the next one. If it is not found, return False and make frame 0 the next one."""
        self._current = None
        self._position_lost = True  # until the seek succeeds
        try:
            found = self._seek(number)
        except StoreError as error:
            error.stream = self._name
            raise
        self._position_lost = False
        return found

    def close(self) -> None:
        """Close the file and free the decoder. Safe to call twice."""
        self._current = None
        self._close_frames()
        self._container.close()
        if self._owned_file is not None:
            self._owned_file.close()

    # --- the next frame ----------------------------------------------------------------------------------------------

    def _read_frame(self, number: int) -> VideoFrame:
        if self._position_lost:
            self._restart()
        if number < self._next or number > self._run_end or self._is_far(number):
            self.seek(number)
        while True:
            frame = self._decode_next()
            if self._next > number:
                self._current = self._cropper.crop(frame)
                return self._current

    def _decode_next(self) -> VideoFrame:
        frame = self._advance()
        number = self._next
        if frame is None:
            raise self._mismatch_error(f"ends after {number} frames, but its index has {len(self._pts)}")
        shown = self._identify(frame)
        if shown is None:
            if number >= len(self._pts):
                raise self._mismatch_error(f"has more than the {number} frames of its index")
            problem = f"has pts {frame.pts} at frame {number}, but its index has {self._pts[number]}"
            raise self._mismatch_error(problem)
        self._check_intact(frame, shown)
        self._next = shown + 1
        self._current = None
        return frame

    def _check_intact(self, frame: VideoFrame, number: int) -> None:
        """Check that FFmpeg has decoded a frame completely. It also marks frames that it has not.

        Raises:
            CorruptStream: If it has not.
        """
        if not frame.is_corrupt:
            return
        if not self._keeps_concealed:
            raise self._with_stream(concealed_error(self._video, number))
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s is damaged: parts of frame %d cannot be decoded, and are shown as FFmpeg conceals them",
                self._name, number,
            )  # fmt: skip

    def _identify(self, frame: VideoFrame) -> int | None:
        """Return the number of a frame that was shown after frame `_next` - 1. None if another frame is due."""
        if keeps_colors(self._codec, self._declared_colors, frame):
            self._keeps_colors = True
        due = self._next
        if self._plan is None:
            is_due = due < len(self._pts) and (not self.index.has_pts or frame.pts == self._pts[due])
            return due if is_due else None
        number = self._plan.find_frame(frame.pts)
        if number is None or not due <= number <= self._plan.next_selected(max(due, self._run_start)):
            return None
        return number

    def _advance(self) -> VideoFrame | None:
        self._is_fresh = False
        try:
            return next(self._frames, None)
        except (av.error.FFmpegError, EOFError) as error:
            raise self._with_stream(decode_error(self._video, self._next, error)) from error
        except MediaLimitExceeded as error:
            error.stream, error.offset = self._name, self._next
            raise
        except StoreError as error:
            self._position_lost = True
            error.stream = self._name
            raise
        except ReadInterrupted as interrupted:
            self._position_lost = True
            raise interrupted.reason from None

    def _mismatch_error(self, problem: str) -> CorruptStream:
        return self._with_stream(
            CorruptStream(
                f"{self._video} {problem}: the file is damaged, or changed while it was read. Repair or remove it, "
                'or pass damaged="keep" to use the frames that can be decoded',
                address=str(self._video),
                offset=self._next,
            )
        )

    def _with_stream(self, error: CorruptStream) -> CorruptStream:
        error.stream = self._name
        return error

    # --- seeking -----------------------------------------------------------------------------------------------------

    def _is_far(self, number: int) -> bool:
        """Return whether seeking to a frame is cheaper than decoding up to it."""
        if not self.index.seekable or number - self._next < _MIN_SEEK_FRAMES:
            return False
        key = self._start_key(int(self._pts[number]))
        return key >= 0 and self._keys[key] > int(self._pts[self._next])

    def _start_key(self, pts: int) -> int:
        """Return the number of the key frame from which the frame at `pts` decodes; -1 for the start of the file."""
        key = bisect.bisect_right(self._keys, pts) - 1
        if key >= 0 and not self._clean_keys.get(key, self._expects_clean):
            key -= 1  # frames after a recovery point may depend on the key frame before it
        return key

    def _seek(self, number: int) -> bool:
        if self._keeps_colors:
            self._reopen()
        if self.index.seekable:
            key, back = self._start_key(int(self._pts[number])), 1
            for _ in range(_MAX_SEEK_ATTEMPTS):
                if key < 0:
                    break
                if self._seek_from_key(key, number):
                    return True
                key, back = key - back, back * 2
        if not self._is_fresh:
            self._reopen()
        self._start_run(number, len(self._pts))
        return False

    def _seek_from_key(self, key_number: int, number: int) -> bool:
        """Decode from a key frame up to frame `number`. Return False if the frames do not match the index."""
        pts = int(self._pts[number])
        try:
            with translate_errors(self._video, number):
                packet = self._find_key_packet(key_number)
                if packet is None:
                    return False
                reliable = self._keys[key_number]
                if not self._is_clean(key_number, packet):  # frames before the next key frame may be broken or missing
                    reliable = self._keys[key_number + 1] if key_number + 1 < len(self._keys) else pts + 1
                if reliable > pts:
                    return False
                self._packets = itertools.chain([packet], self._packets)
                self._start_run(number)
                self._next = int(np.searchsorted(self._pts, reliable))
                for frame in self._frames:
                    if frame.pts is None or frame.pts < reliable:
                        continue  # also skips frames of an open group that are shown before its key frame
                    shown = self._identify(frame)
                    if shown is None:
                        return False
                    self._check_intact(frame, shown)
                    if shown == number:
                        self._frames = _prepend(frame, self._frames)
                        self._next = number
                        return True
                    self._next = shown + 1
        except CorruptStream:  # this container cannot seek there: try further back, then from the start
            return False
        return False

    def _find_key_packet(self, key_number: int) -> Packet[Any] | None:
        """Return the packet of a key frame, which `_packets` then follow, or None if it is not found."""
        pts = self._keys[key_number]
        if self._can_skip_to(pts):
            packet = self._skip_to_key(pts)
            if packet is not None:
                return packet
        self._is_fresh = False
        self._close_frames()
        retiming = self.index.retiming
        by_bytes = retiming is not None and retiming.by_bytes
        self._container.seek(
            int(self.index.key_seek[key_number]), stream=self._stream, backward=True, unsupported_byte_offset=by_bytes
        )
        self._packets = demux_packets(self._container, self._stream, self._file)
        return self._next_key_packet(pts) if retiming is None else self._find_numbered_key(retiming, key_number)

    def _find_numbered_key(self, retiming: Retiming, key_number: int) -> Packet[Any] | None:
        """Return the packet of a key frame in a video whose packets get new timestamps, which start to be counted."""
        position, pts = int(retiming.key_position[key_number]), int(self.index.key_seek[key_number])
        for packet in self._packets:
            if not packet.is_keyframe:
                continue
            found = packet.pos if position >= 0 else packet.pts if packet.pts is not None else packet.dts
            wanted = position if position >= 0 else pts
            if found == wanted:
                number = int(retiming.key_packet[key_number])
                packets = retiming.apply(itertools.chain([packet], self._packets), number)
                first: Packet[Any] = next(packets)
                self._packets = packets
                return first
            if found is not None and found > wanted:
                return None
        return None

    def _can_skip_to(self, pts: int) -> bool:
        """Return whether a key frame certainly follows in the demuxer, and so soon that seeking would not be faster."""
        distance = int(np.searchsorted(self._pts, pts)) - self._next
        is_between_runs = self._filter is not None and self._filter.following is not None
        return (self._is_fresh or is_between_runs) and 0 <= distance < _MIN_SEEK_FRAMES

    def _skip_to_key(self, pts: int) -> Packet[Any] | None:
        """Read up to the packet of a key frame without decoding."""
        if self._filter is not None and self._filter.following is not None:
            self._packets = itertools.chain([self._filter.following], self._packets)
        self._close_frames()
        self._is_fresh = False
        self._stream.codec_context.flush_buffers()
        return self._next_key_packet(pts)  # with AVDISCARD_NONKEY, FFmpeg's MP4 demuxer shifts the timestamps

    def _next_key_packet(self, pts: int) -> Packet[Any] | None:
        """Return the packet of a key frame. None if a later key frame comes first, or new parameters for decoding."""
        for packet in self._packets:
            if packet.is_keyframe and (packet.pts is None or packet.pts >= pts):
                return packet if packet.pts == pts else None
            if packet.has_sidedata("new_extradata"):
                return None
        return None

    def _is_clean(self, key_number: int, packet: Packet[Any]) -> bool:
        codec, extradata = codec_name(self._stream), self._stream.codec_context.extradata
        is_clean = bool(is_clean_key(codec, memoryview(packet), nal_length_size(codec, extradata)))
        self._clean_keys[key_number] = self._expects_clean = is_clean
        return is_clean

    def _restart(self) -> None:
        """Return to frame 0 after an error, which leaves FFmpeg at an unknown position."""
        self._current = None
        try:
            self._reopen()
        except StoreError as error:
            error.stream = self._name
            raise
        self._position_lost = False

    # --- runs of decoding --------------------------------------------------------------------------------------------

    def _reopen(self) -> None:
        self._close_frames()
        self._container.close()
        self._open()

    def _open(self) -> None:
        """Open the video at its first packet."""
        self._container, self._stream = open_video(
            self._video, self._file, max_pixels=self._limit.max_pixels, number=self.index.stream
        )
        context = self._stream.codec_context
        if self._threads > 1:
            context.thread_count, context.thread_type = self._threads, ThreadType.FRAME
        self._codec = codec_name(self._stream)
        self._declared_colors: ColorTags = context.color_range, context.colorspace
        self._keeps_colors = False
        self._is_disposable = disposable_test(self._codec, context.extradata or b"")
        self._packets = demux_packets(self._container, self._stream, self._file)
        if self.index.retiming is not None:
            self._packets = self.index.retiming.apply(self._packets)
        self._is_fresh = True  # no packet was read so far
        self._next = 0
        self._filter: PacketFilter | None = None
        self._run_start, self._run_end = 0, -1  # the first frame is sought
        if self._plan is None:
            self._start_run(0)

    def _start_run(self, number: int, end: int | None = None) -> None:
        """Start to decode at the next packet.

        Args:
            number: Number of the first frame that is needed.
            end: Number of the frame up to which decoding goes on without a restart. Defaults to what is cheapest.
        """
        self._run_start, self._run_end, self._filter = 0, len(self._pts), None
        if self._plan is not None:
            if end is None:
                end = self._plan.end_of_run(number, 0 if self._expects_clean else 1)
            self._run_start, self._run_end = number, end
            self._filter = PacketFilter(self._plan, number, end, self._is_disposable)
        self._frames = decode_frames(
            self._container,
            self._stream,
            tolerant=self.index.damaged,
            packets=self._packets,
            packet_filter=self._filter,
            file=self._file,
            limit=self._limit,
        )

    def _close_frames(self) -> None:
        close: Callable[[], Any] | None = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._frames = iter(())
        self._filter = None


def _prepend(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    del first
    yield from rest
