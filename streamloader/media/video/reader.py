"""Playing a video frame by frame, and finding any frame again: by its pts, never by time x rate."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from streamloader.errors import CorruptStream, StoreError
from streamloader.media.video.remote import ReadInterrupted, Video, VideoFile, open_bytes
from streamloader.media.video.source import broken, decoding, open_video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamloader.media.video.index import VideoIndex

__all__ = ["FrameReader", "VideoFrame", "frame_bytes", "play"]

_TRIES: Final = 8  # key frames to step back, twice as far each time, before decoding from the start
_WORTH_A_SEEK: Final = 32  # frames to skip before jumping to a key frame is tried


def frame_bytes(frame: VideoFrame) -> int:
    """Return the size in bytes of the pixels of a frame."""
    return sum(plane.buffer_size for plane in frame.planes)


def play(
    container: InputContainer,
    stream: VideoStream,
    *,
    tolerant: bool = False,
    from_key: int | None = None,
) -> Iterator[VideoFrame]:
    """Yield the frames that the decoder shows, from where the demuxer stands.

    Args:
        container: an open file.
        stream: its video stream.
        tolerant: leave out packets that cannot be decoded, and end where the demuxer fails.
        from_key: skip packets up to the first key frame; if its pts is later than this, yield nothing.
    """
    packets: Iterator[Packet[Any]] = container.demux(stream)
    waiting = from_key is not None
    while True:
        packet: Packet[Any] | None
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, EOFError):
            if not tolerant:
                raise
            packets = iter(())
            packet = Packet()  # an empty one: the decoder gives what it still holds
            packet.stream = stream
        if packet is None:
            return
        if waiting:
            if not packet.is_keyframe:
                continue
            if packet.pts is None or packet.pts > (from_key or 0):
                return
            waiting = False
        try:
            yield from cast("list[VideoFrame]", packet.decode())
        except EOFError:  # the decoder was flushed before
            return
        except av.error.FFmpegError:
            if not tolerant:
                raise


class FrameReader:
    """The frames of one video by number, in the order in which they are shown.

    Forwards is cheap; anything else goes back to a key frame. Every frame is compared with the index. After an error of
    the store the same frame may be asked for again.

    Args:
        video: the path of a local file, or one in a store.
        index: what :func:`streamloader.media.video.indexer.index_video` made of it.
        name: what errors call the stream.
        file: the bytes of a video in a store, open already; they stay open. Without them, the reader opens its own.
        own: the same, but the reader closes them.
    """

    def __init__(
        self,
        video: Video,
        index: VideoIndex,
        name: str | None = None,
        file: VideoFile | None = None,
        own: VideoFile | None = None,
    ) -> None:
        self._video = video
        self._name = name or str(video)
        self._index = index
        self._pts = index.pts
        self._keys: list[int] = index.key_pts.tolist()
        self._own = own if own is not None or file is not None else open_bytes(video, index.opening)
        self._file = file or self._own
        try:
            self._container, self._stream = open_video(video, self._file)
        except BaseException as error:
            if self._own is not None:
                self._own.close()
            if isinstance(error, StoreError):
                error.stream = self._name
            raise
        self._frames: Iterator[VideoFrame] = play(self._container, self._stream, tolerant=index.damaged)
        self._lost = False  # an error of the store left the demuxer somewhere
        self._next = 0  # number of the frame that the decoder gives next
        self._current: VideoFrame | None = None  # frame number self._next - 1

    def frame(self, number: int) -> VideoFrame:
        """Return frame `number`, decoding or seeking as far as it takes.

        Raises:
            CorruptStream: the file does not hold what its index says; ``offset`` is the frame.
            StoreError: bytes of it could not be had.
        """
        if number == self._next - 1 and self._current is not None:
            return self._current
        if self._lost:
            self._anew()
        if number < self._next or (number - self._next >= _WORTH_A_SEEK and self._key_lies_between(number)):
            self.seek(number)
        while True:
            frame = self._decode_next()
            if self._next > number:
                self._current = frame
                return frame

    def finish(self) -> None:
        """Check that there is nothing after the last frame, once that was read.

        Raises:
            CorruptStream: the decoder shows more frames than the index has.
        """
        if self._next == len(self._pts) and self._advance() is not None:
            raise self._differs(f"shows more than the {self._next} frames of its index")

    def close(self) -> None:
        """Close the file and free the decoder. Safe to call twice."""
        self._current = None
        self._close_frames()
        self._container.close()
        if self._own is not None:
            self._own.close()

    def _decode_next(self) -> VideoFrame:
        frame = self._advance()
        number = self._next
        if frame is None:
            raise self._differs(f"ends after {number} frames, but its index has {len(self._pts)}")
        if number >= len(self._pts):
            raise self._differs(f"shows more than the {number} frames of its index")
        if self._index.has_pts and frame.pts != self._pts[number]:
            raise self._differs(f"shows pts {frame.pts} as frame {number}, its index has {self._pts[number]} there")
        self._next = number + 1
        self._current = None
        return frame

    def _advance(self) -> VideoFrame | None:
        try:
            return next(self._frames, None)
        except (av.error.FFmpegError, EOFError) as error:
            raise self._placed(broken(self._video, self._next, error)) from error
        except StoreError as error:
            self._lost = True
            error.stream = self._name
            raise
        except ReadInterrupted as interrupted:
            self._lost = True
            raise interrupted.reason from None

    def _differs(self, what: str) -> CorruptStream:
        return self._placed(
            CorruptStream(
                f"{self._video} {what}: it is damaged, or it was changed while it was read. Repair or remove it, "
                'or pass damaged="keep" to play what can be decoded',
                address=str(self._video),
                offset=self._next,
            )
        )

    def _placed(self, error: CorruptStream) -> CorruptStream:
        error.stream = self._name
        return error

    def _key_lies_between(self, number: int) -> bool:
        if not self._index.seekable:
            return False
        at = self._start_key(int(self._pts[number]))
        return at >= 0 and self._keys[at] > int(self._pts[self._next])

    def _start_key(self, pts: int) -> int:
        """Return the key frame from which the frame with this pts can be decoded; -1 for the start of the file."""
        at = bisect.bisect_right(self._keys, pts) - 1
        if at >= 0 and not self._index.key_hard[at]:
            at -= 1  # a recovery point: whatever it still leans on is over one key frame earlier
        return at

    def seek(self, number: int) -> bool:
        """Make the decoder stand before frame `number`, or at the start of the file where it is not found: False."""
        self._current = None
        self._lost = True  # until it is found
        try:
            found = self._seek(number)
        except StoreError as error:
            error.stream = self._name
            raise
        self._lost = False
        return found

    def _seek(self, number: int) -> bool:
        if self._index.seekable:
            key, back = self._start_key(int(self._pts[number])), 1
            for _ in range(_TRIES):
                if key < 0:
                    break
                if self._try_key(key, number):
                    return True
                key, back = key - back, back * 2
        self._rewind()
        return False

    def _anew(self) -> None:
        """Begin again after an error of the store: nobody knows where FFmpeg stands."""
        self._current = None
        try:
            self._rewind()
        except StoreError as error:
            error.stream = self._name
            raise
        self._lost = False

    def _try_key(self, at: int, number: int) -> bool:
        """Play from key frame `at` up to frame `number`; False if that did not come out as the index has it."""
        self._close_frames()
        key = self._keys[at]
        # Behind a recovery point the decoder shows broken frames or none, up to the next one at the latest.
        safe = key if self._index.key_hard[at] else self._keys[at + 1]
        expected = int(np.searchsorted(self._pts, safe))
        try:
            with decoding(self._video, number):
                self._container.seek(int(self._index.key_seek[at]), stream=self._stream, backward=True)
                frames = play(self._container, self._stream, tolerant=self._index.damaged, from_key=key)
                for frame in frames:
                    if frame.pts is None or frame.pts < safe:
                        continue  # so are the leftovers of an open group, which are shown before its key frame
                    if frame.pts != self._pts[expected]:
                        return False
                    if expected == number:
                        self._frames = _with_first(frame, frames)
                        self._next = number
                        return True
                    expected += 1
        except CorruptStream:  # a container that cannot seek there: try further back, then from the start
            return False
        return False

    def _rewind(self) -> None:
        self._close_frames()
        self._container.close()
        self._container, self._stream = open_video(self._video, self._file)
        self._frames = play(self._container, self._stream, tolerant=self._index.damaged)
        self._next = 0

    def _close_frames(self) -> None:
        close: Callable[[], Any] | None = getattr(self._frames, "close", None)
        if close is not None:
            close()
        self._frames = iter(())


def _with_first(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    del first
    yield from rest
