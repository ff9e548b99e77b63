"""Readers of single files by frame number, in any order, each used as its documentation shows.

All return RGB as uint8 (n, H, W, 3). With ``threads`` None, a library uses its default number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.job import Job

Array = np.ndarray[Any, Any]


class Reader(Protocol):
    """One open video."""

    def __len__(self) -> int:
        """Number of frames that the reader reports."""

    def get(self, numbers: Sequence[int]) -> Array | None:
        """Return the frames with these numbers (n, H, W, 3), or None if the reader only decodes."""

    def scan(self, count: int, batch: int) -> Iterator[Array | None]:
        """Yield the first `count` frames, `batch` at a time."""

    def close(self) -> None:
        """Release all resources."""


class _SliceScan:
    """Implements a scan as a sequence of slices."""

    def scan(self: Any, count: int, batch: int) -> Iterator[Array | None]:
        """Yield the first `count` frames, `batch` at a time."""
        for start in range(0, count, batch):
            yield self.get(range(start, min(start + batch, count)))


class TorchCodec(_SliceScan):
    """torchcodec, in either of its seek modes."""

    def __init__(self, path: str, mode: str = "exact", threads: int | None = None) -> None:
        from torchcodec.decoders import VideoDecoder

        options = {} if threads is None else {"num_ffmpeg_threads": threads}
        self._decoder = VideoDecoder(path, dimension_order="NHWC", seek_mode=mode, **options)

    def __len__(self) -> int:
        """Number of frames that the library reports."""
        return len(self._decoder)

    def get(self, numbers: Sequence[int]) -> Array:
        """Return the frames with these numbers."""
        if len(numbers) == 1:
            return self._decoder.get_frame_at(numbers[0]).data.numpy()[None]
        if isinstance(numbers, range):
            return self._decoder.get_frames_in_range(numbers.start, numbers.stop).data.numpy()
        return self._decoder.get_frames_at(list(numbers)).data.numpy()

    def close(self) -> None:
        """Release all resources."""
        del self._decoder


class Decord(_SliceScan):
    """decord."""

    def __init__(self, path: str, threads: int | None = None) -> None:
        import decord

        self._reader = decord.VideoReader(path, **({} if threads is None else {"num_threads": threads}))

    def __len__(self) -> int:
        """Number of frames that the library reports."""
        return len(self._reader)

    def get(self, numbers: Sequence[int]) -> Array:
        """Return the frames with these numbers."""
        if len(numbers) == 1:
            return self._reader[numbers[0]].asnumpy()[None]
        return self._reader.get_batch(list(numbers)).asnumpy()

    def scan(self, count: int, batch: int) -> Iterator[Array]:
        """Yield the first `count` frames, `batch` at a time."""
        self._reader.seek(0)
        for start in range(0, count, batch):
            yield np.stack([self._reader.next().asnumpy() for _ in range(start, min(start + batch, count))])

    def close(self) -> None:
        """Release all resources."""
        del self._reader


class OpenCV:
    """OpenCV, which seeks with `CAP_PROP_POS_FRAMES` unless the next frame is requested."""

    def __init__(self, path: str, threads: int | None = None) -> None:
        import cv2

        self._cv2 = cv2
        options = [] if threads is None else [cv2.CAP_PROP_N_THREADS, threads]
        self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            raise OSError(f"OpenCV cannot open {path}")
        self._next = 0

    def __len__(self) -> int:
        """Number of frames that the library reports."""
        return int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))

    def get(self, numbers: Sequence[int]) -> Array:
        """Return the frames with these numbers."""
        frames: Array | None = None
        for row, number in enumerate(numbers):
            if number != self._next:
                self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, number)
            success, frame = self._capture.read()
            if not success:
                self._next = -1
                raise IndexError(f"OpenCV cannot read frame {number}")
            self._next = number + 1
            if frames is None:
                frames = np.empty((len(numbers), *frame.shape), np.uint8)
            self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB, dst=frames[row])
        assert frames is not None
        return frames

    def scan(self, count: int, batch: int) -> Iterator[Array]:
        """Yield the first `count` frames, `batch` at a time."""
        self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, 0)
        self._next = 0
        for start in range(0, count, batch):
            yield self.get(range(start, min(start + batch, count)))

    def close(self) -> None:
        """Release all resources."""
        self._capture.release()


class IndexedPyAV(_SliceScan):
    """PyAV in the usual form for exact frames: list the pts of all packets, seek, and decode up to the pts.

    With `convert` False it only decodes, from the key frame to the last requested frame, and knows the key frame in
    advance. This is the maximum speed of PyAV.
    """

    def __init__(self, path: str, threads: int | None = None, *, convert: bool = True) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        with av.open(path) as container:
            packets = [p for p in container.demux(video=0) if p.pts is not None and p.size]
        self._pts = sorted(p.pts for p in packets)
        self._keys = sorted(p.pts for p in packets if p.is_keyframe)
        self._container = av.open(path)
        self._stream = self._container.streams.video[0]
        if threads is not None:
            self._stream.thread_type, self._stream.thread_count = "AUTO", threads
        self._reformat = VideoReformatter().reformat
        self._convert = convert
        self._frames: Iterator[Any] = iter(())
        self._last_pts: int | None = None  # pts of the last returned frame

    def __len__(self) -> int:
        """Number of frames that the library reports."""
        return len(self._pts)

    def get(self, numbers: Sequence[int]) -> Array | None:
        """Return the frames with these numbers."""
        frames: Array | None = None
        for row, number in enumerate(numbers):
            frame = self._find(self._pts[number])
            if not self._convert:
                continue
            if frames is None:
                frames = np.empty((len(numbers), frame.height, frame.width, 3), np.uint8)
            plane = self._reformat(frame, format="rgb24").planes[0]
            pixels = np.frombuffer(plane, np.uint8, plane.line_size * frame.height).reshape(frame.height, -1)
            frames[row].reshape(frame.height, -1)[:] = pixels[:, : frame.width * 3]
        return frames

    def _find(self, pts: int) -> Any:
        key = max((k for k in self._keys if k <= pts), default=self._pts[0])
        if self._last_pts is None or not key <= self._last_pts < pts:
            self._container.seek(key if not self._convert else pts, stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if frame.pts is not None and frame.pts >= pts:
                self._last_pts = frame.pts
                return frame
        self._last_pts = None
        raise IndexError(f"no frame at {pts}")

    def scan(self, count: int, batch: int) -> Iterator[Array | None]:
        """Yield the first `count` frames, `batch` at a time."""
        for start in range(0, count, batch):
            yield self.get(range(start, min(start + batch, count)))

    def close(self) -> None:
        """Release all resources."""
        self._frames = iter(())
        self._container.close()


READERS: dict[str, Any] = {"torchcodec": TorchCodec, "decord": Decord, "opencv": OpenCV, "pyav": IndexedPyAV}


def open_peer(job: Job) -> Reader:
    """Open this contender."""
    options = dict(job.options)
    reader: Reader = READERS[options.pop("reader")](job.paths[0], **options)
    return reader
