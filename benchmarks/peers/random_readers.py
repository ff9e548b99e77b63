"""Readers of single files by frame number, each used as its own documentation shows, for any numbers in any order.

All deliver RGB as uint8 (n, H, W, 3). ``threads`` None leaves what a library does by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.job import Job

Array = np.ndarray[Any, Any]


class Reader(Protocol):
    """One video, open."""

    def __len__(self) -> int:
        """How many frames it says that there are."""

    def get(self, numbers: Sequence[int]) -> Array | None:
        """Return these frames (n, H, W, 3); None from who only decodes."""

    def scan(self, count: int, batch: int) -> Iterator[Array | None]:
        """Yield the first `count` frames, `batch` at a time."""

    def close(self) -> None:
        """Give everything back."""


class _Windows:
    """Scans as a sequence of slices."""

    def scan(self: Any, count: int, batch: int) -> Iterator[Array | None]:
        """See :class:`Reader`."""
        for start in range(0, count, batch):
            yield self.get(range(start, min(start + batch, count)))


class TorchCodec(_Windows):
    """torchcodec, in either of its seek modes."""

    def __init__(self, path: str, mode: str = "exact", threads: int | None = None) -> None:
        from torchcodec.decoders import VideoDecoder

        options = {} if threads is None else {"num_ffmpeg_threads": threads}
        self._decoder = VideoDecoder(path, dimension_order="NHWC", seek_mode=mode, **options)

    def __len__(self) -> int:
        """See :class:`Reader`."""
        return len(self._decoder)

    def get(self, numbers: Sequence[int]) -> Array:
        """See :class:`Reader`."""
        if len(numbers) == 1:
            return self._decoder.get_frame_at(numbers[0]).data.numpy()[None]
        if isinstance(numbers, range):
            return self._decoder.get_frames_in_range(numbers.start, numbers.stop).data.numpy()
        return self._decoder.get_frames_at(list(numbers)).data.numpy()

    def close(self) -> None:
        """See :class:`Reader`."""
        del self._decoder


class Decord(_Windows):
    """decord."""

    def __init__(self, path: str, threads: int | None = None) -> None:
        import decord

        self._reader = decord.VideoReader(path, **({} if threads is None else {"num_threads": threads}))

    def __len__(self) -> int:
        """See :class:`Reader`."""
        return len(self._reader)

    def get(self, numbers: Sequence[int]) -> Array:
        """See :class:`Reader`."""
        if len(numbers) == 1:
            return self._reader[numbers[0]].asnumpy()[None]
        return self._reader.get_batch(list(numbers)).asnumpy()

    def scan(self, count: int, batch: int) -> Iterator[Array]:
        """See :class:`Reader`."""
        self._reader.seek(0)
        for start in range(0, count, batch):
            yield np.stack([self._reader.next().asnumpy() for _ in range(start, min(start + batch, count))])

    def close(self) -> None:
        """See :class:`Reader`."""
        del self._reader


class OpenCV:
    """OpenCV: `CAP_PROP_POS_FRAMES` where the next frame is not the one that follows."""

    def __init__(self, path: str, threads: int | None = None) -> None:
        import cv2

        self._cv2 = cv2
        options = [] if threads is None else [cv2.CAP_PROP_N_THREADS, threads]
        self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            raise OSError("OpenCV cannot open it")
        self._next = 0

    def __len__(self) -> int:
        """See :class:`Reader`."""
        return int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))

    def get(self, numbers: Sequence[int]) -> Array:
        """See :class:`Reader`."""
        frames: Array | None = None
        for row, number in enumerate(numbers):
            if number != self._next:
                self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, number)
            found, frame = self._capture.read()
            if not found:
                self._next = -1
                raise IndexError(f"OpenCV reads no frame {number}")
            self._next = number + 1
            if frames is None:
                frames = np.empty((len(numbers), *frame.shape), np.uint8)
            self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB, dst=frames[row])
        assert frames is not None
        return frames

    def scan(self, count: int, batch: int) -> Iterator[Array]:
        """See :class:`Reader`."""
        self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, 0)
        self._next = 0
        for start in range(0, count, batch):
            yield self.get(range(start, min(start + batch, count)))

    def close(self) -> None:
        """See :class:`Reader`."""
        self._capture.release()


class IndexedPyAV(_Windows):
    """PyAV as people who need exact frames write it: the pts of all packets, a seek, and decoding up to the pts.

    With `convert` False it only decodes what has to be decoded, from the key frame up to the last frame asked for, and
    knows beforehand where to begin: what PyAV can do at best.
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
        self._at: int | None = None  # pts of the last frame that came

    def __len__(self) -> int:
        """See :class:`Reader`."""
        return len(self._pts)

    def get(self, numbers: Sequence[int]) -> Array | None:
        """See :class:`Reader`."""
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
        if self._at is None or not key <= self._at < pts:
            self._container.seek(key if not self._convert else pts, stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if frame.pts is not None and frame.pts >= pts:
                self._at = frame.pts
                return frame
        self._at = None
        raise IndexError(f"no frame at {pts}")

    def scan(self, count: int, batch: int) -> Iterator[Array | None]:
        """See :class:`Reader`."""
        for start in range(0, count, batch):
            yield self.get(range(start, min(start + batch, count)))

    def close(self) -> None:
        """See :class:`Reader`."""
        self._frames = iter(())
        self._container.close()


READERS: dict[str, Any] = {"torchcodec": TorchCodec, "decord": Decord, "opencv": OpenCV, "pyav": IndexedPyAV}


def open_peer(job: Job) -> Reader:
    """Open the contender."""
    options = dict(job.options)
    reader: Reader = READERS[options.pop("reader")](job.paths[0], **options)
    return reader
