"""Decode a video frame by frame, and seek to any frame by its timestamp, never by time x rate."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from streamloader.errors import CorruptStream, MediaLimitExceeded, StoreError
from streamloader.media.progress import PROGRESS
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.packets import codec_name, is_clean_key, nal_length_size
from streamloader.media.video.remote import ReadInterrupted, Video, VideoFile, open_video_file
from streamloader.media.video.source import decode_error, open_video, translate_errors

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamloader.media.video.index import VideoIndex

__all__ = ["FrameReader", "VideoFrame", "decode_frames", "frame_bytes"]

_MAX_SEEK_ATTEMPTS: Final = 8  # each attempt goes twice as many key frames back; then decoding starts at frame 0
_DEFAULT_LIMIT: Final = PixelLimit()
_MIN_SEEK_FRAMES: Final = 32  # shorter distances are decoded instead of seeking to a key frame


def frame_bytes(frame: VideoFrame) -> int:
    """Return the size in bytes of the pixels of a frame."""
    return sum(plane.buffer_size for plane in frame.planes)


def decode_frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    tolerant: bool = False,
    from_key: int | None = None,
    accept_key: Callable[[Packet[Any]], bool] | None = None,
    file: VideoFile | None = None,
    limit: PixelLimit = _DEFAULT_LIMIT,
) -> Iterator[VideoFrame]:
    """Yield the frames that the decoder shows, from the demuxer's position on.

    Args:
        container: Open file.
        stream: Video stream of the file.
        tolerant: Whether to skip packets that cannot be decoded, and to end where the demuxer fails.
        from_key: Timestamp of a key frame. Packets before the first key frame are skipped; if that key frame is later
            than this timestamp, no frames are yielded. Defaults to no skipping.
        accept_key: Function that receives the packet of that key frame. If it returns False, no frames are yielded.
        file: Open bytes of a video in a store. Defaults to none, for a local file.
        limit: Limit on the size of the frames.

    Raises:
        MediaLimitExceeded: If a frame exceeds `limit`.
    """
    packets: Iterator[Packet[Any]] = container.demux(stream)
    skipping = from_key is not None
    while True:
        packet: Packet[Any] | None
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, EOFError):
            if not tolerant:
                raise
            packets = iter(())
            packet = Packet()  # an empty packet flushes the decoder
            packet.stream = stream
        if packet is None:
            return
        if file is not None:
            file.mark_progress()
        PROGRESS.packets += 1
        if skipping:
            if not packet.is_keyframe:
                continue
            if packet.pts is None or packet.pts > (from_key or 0) or not (accept_key is None or accept_key(packet)):
                return
            skipping = False
        try:
            frames = cast("list[VideoFrame]", packet.decode())
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


class FrameReader:
    """Reads frames of one video by number, in the order of presentation.

    Reading forwards is cheap; any other frame is decoded from a key frame. Each frame is compared with the index. After
    an error of the store, the same frame can be requested again.

    Args:
        video: Path of a local file, or a video in a store.
        index: Index of the video, from :func:`streamloader.media.video.indexer.index_video`.
        name: Key of the stream for error messages. Defaults to the name of the video.
        file: Open bytes of a video in a store, which stay open. By default, the reader opens its own.
        owned_file: Open bytes of a video in a store, which the reader closes.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

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
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self._video = video
        self._name = name or str(video)
        self._limit = PixelLimit(max_pixels, str(video))
        self.index = index
        self._pts = index.pts
        self._keys: list[int] = index.key_pts.tolist()
        self._clean_keys: dict[int, bool] = {}  # key frames from which reading was tried
        self._expects_clean = True  # whether key frames of this file suffice to decode all later frames, by the last
        self._owned_file = (
            owned_file if owned_file is not None or file is not None else open_video_file(video, index.initial_spans)
        )
        self._file = file or self._owned_file
        try:
            self._container, self._stream = open_video(video, self._file, max_pixels=max_pixels)
        except BaseException as error:
            if self._owned_file is not None:
                self._owned_file.close()
            if isinstance(error, StoreError):
                error.stream = self._name
            raise
        self._frames = self._decode()
        self._position_lost = False  # an error of the store left the demuxer at an unknown position
        self._next = 0  # number of the frame that the decoder returns next
        self._current: VideoFrame | None = None  # frame number self._next - 1

    def read_frame(self, number: int) -> VideoFrame:
        """Return frame `number`, decoding and seeking as needed.

        Raises:
            CorruptStream: If the file does not match its index. ``offset`` is the number of the frame.
            StoreError: If the store fails to deliver bytes.
        """
        if number == self._next - 1 and self._current is not None:
            return self._current
        if self._position_lost:
            self._restart()
        if number < self._next or (number - self._next >= _MIN_SEEK_FRAMES and self._is_key_between(number)):
            self.seek(number)
        while True:
            frame = self._decode_next()
            if self._next > number:
                self._current = frame
                return frame

    def check_end(self) -> None:
        """Check that no frame follows the last frame of the index, if that one was just read.

        Raises:
            CorruptStream: If the decoder shows more frames than the index has.
        """
        if self._next == len(self._pts) and self._advance() is not None:
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

    def _decode_next(self) -> VideoFrame:
        frame = self._advance()
        number = self._next
        if frame is None:
            raise self._mismatch_error(f"ends after {number} frames, but its index has {len(self._pts)}")
        if number >= len(self._pts):
            raise self._mismatch_error(f"has more than the {number} frames of its index")
        if self.index.has_pts and frame.pts != self._pts[number]:
            raise self._mismatch_error(f"has pts {frame.pts} at frame {number}, but its index has {self._pts[number]}")
        self._next = number + 1
        self._current = None
        return frame

    def _advance(self) -> VideoFrame | None:
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

    def _is_key_between(self, number: int) -> bool:
        if not self.index.seekable:
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
        if self.index.seekable:
            key, back = self._start_key(int(self._pts[number])), 1
            for _ in range(_MAX_SEEK_ATTEMPTS):
                if key < 0:
                    break
                if self._seek_from_key(key, number):
                    return True
                key, back = key - back, back * 2
        self._rewind()
        return False

    def _restart(self) -> None:
        """Return to frame 0 after an error of the store, which leaves FFmpeg at an unknown position."""
        self._current = None
        try:
            self._rewind()
        except StoreError as error:
            error.stream = self._name
            raise
        self._position_lost = False

    def _seek_from_key(self, key_number: int, number: int) -> bool:
        """Decode from a key frame up to frame `number`. Return False if the frames do not match the index."""
        self._close_frames()
        key = self._keys[key_number]
        pts = int(self._pts[number])
        reliable, expected = key, -1

        def accept(packet: Packet[Any]) -> bool:
            """Accept a recovery point only for frames from the next key frame on: others may be broken or missing."""
            nonlocal reliable
            if not self._is_clean(key_number, packet):
                reliable = self._keys[key_number + 1] if key_number + 1 < len(self._keys) else pts + 1
            return reliable <= pts

        try:
            with translate_errors(self._video, number):
                self._container.seek(int(self.index.key_seek[key_number]), stream=self._stream, backward=True)
                frames = self._decode(key, accept)
                for frame in frames:
                    if frame.pts is None or frame.pts < reliable:
                        continue  # also skips frames of an open group that are shown before its key frame
                    if expected < 0:
                        expected = int(np.searchsorted(self._pts, reliable))
                    if frame.pts != self._pts[expected]:
                        return False
                    if expected == number:
                        self._frames = _prepend(frame, frames)
                        self._next = number
                        return True
                    expected += 1
        except CorruptStream:  # this container cannot seek there: try further back, then from the start
            return False
        return False

    def _is_clean(self, key_number: int, packet: Packet[Any]) -> bool:
        codec, extradata = codec_name(self._stream), self._stream.codec_context.extradata
        is_clean = bool(is_clean_key(codec, memoryview(packet), nal_length_size(codec, extradata)))
        self._clean_keys[key_number] = self._expects_clean = is_clean
        return is_clean

    def _rewind(self) -> None:
        self._close_frames()
        self._container.close()
        self._container, self._stream = open_video(self._video, self._file, max_pixels=self._limit.max_pixels)
        self._frames = self._decode()
        self._next = 0

    def _decode(
        self, from_key: int | None = None, accept_key: Callable[[Packet[Any]], bool] | None = None
    ) -> Iterator[VideoFrame]:
        return decode_frames(
            self._container,
            self._stream,
            tolerant=self.index.damaged,
            from_key=from_key,
            accept_key=accept_key,
            file=self._file,
            limit=self._limit,
        )

    def _close_frames(self) -> None:
        close: Callable[[], Any] | None = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._frames = iter(())


def _prepend(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    del first
    yield from rest
