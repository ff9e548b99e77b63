"""Decoders that fill rows in place, each used in its best way: one thread, nothing built anew for a frame.

All scale bilinearly. A clip that ended is not asked again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class PyAVClip:
    """PyAV: one decode thread and one kept VideoReformatter; the converted frame is copied into its row."""

    def __init__(self, path: str, height: int, width: int) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self._container = av.open(path)
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1
        self._frames = self._container.decode(stream)
        self._reformat = VideoReformatter().reformat
        self._height, self._width = height, width

    def read_into(self, out: Array) -> int:
        """Fill leading rows; 0 is the end."""
        for row, image in enumerate(out):
            frame = next(self._frames, None)
            if frame is None:
                self._container.close()
                return row
            plane = self._reformat(frame, self._width, self._height, "rgb24", threads=1).planes[0]
            pixels = np.frombuffer(plane, np.uint8).reshape(self._height, plane.line_size)
            image.reshape(self._height, -1)[:] = pixels[:, : self._width * 3]
        return len(out)


class DirectClip:
    """The decoder and converter of streamloader.media, without the index that streamloader checks frames against."""

    def __init__(self, path: str, height: int, width: int) -> None:
        from streamloader.media.video.convert import Converter
        from streamloader.media.video.source import open_video

        self._container, stream = open_video(path)
        self._frames = self._container.decode(stream)
        self._converter = Converter("rgb24", height, width)

    def read_into(self, out: Array) -> int:
        """Fill leading rows; 0 is the end."""
        targets, convert = self._converter.targets([out]), self._converter.into
        for row in range(len(out)):
            frame = next(self._frames, None)
            if frame is None:
                self._converter.close()
                self._container.close()
                return row
            convert(frame, targets, row)
        return len(out)


class OpenCVClip:
    """OpenCV: one decode thread; colours are swapped on the way into the row."""

    def __init__(self, path: str, height: int, width: int) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._cv2 = cv2
        self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        self._size = (width, height)
        self._frame: Array | None = None

    def read_into(self, out: Array) -> int:
        """Fill leading rows; 0 is the end."""
        cv2 = self._cv2
        for row, image in enumerate(out):
            found, self._frame = self._capture.read(self._frame)
            if not found:
                self._capture.release()
                return row
            frame = self._frame
            if frame.shape[1::-1] != self._size:
                frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_LINEAR)
            cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=image)
        return len(out)


class TorchCodecClip:
    """torchcodec: windows read in order with one thread, scaled by its own decoder transform."""

    def __init__(self, path: str, height: int, width: int) -> None:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        plain = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
        self._length = plain.metadata.num_frames
        if (plain.metadata.height, plain.metadata.width) != (height, width):
            plain = VideoDecoder(
                path,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="approximate",
                transforms=[Resize((height, width))],
            )
        self._decoder = plain
        self._position = 0

    def read_into(self, out: Array) -> int:
        """Fill leading rows; 0 is the end."""
        count = min(len(out), self._length - self._position)
        if count:
            frames = self._decoder.get_frames_in_range(self._position, self._position + count)
            out[:count] = frames.data.numpy()
            self._position += count
        return count


class DecordClip:
    """decord: one thread, scaled by the reader itself."""

    def __init__(self, path: str, height: int, width: int) -> None:
        import decord

        self._reader = decord.VideoReader(path, width=width, height=height, num_threads=1)
        self._left = len(self._reader)

    def read_into(self, out: Array) -> int:
        """Fill leading rows; 0 is the end."""
        count = min(len(out), self._left)
        for image in out[:count]:
            image[:] = self._reader.next().asnumpy()
        self._left -= count
        return count


DECODERS: dict[str, Any] = {
    "pyav": PyAVClip,
    "direct": DirectClip,
    "opencv": OpenCVClip,
    "torchcodec": TorchCodecClip,
    "decord": DecordClip,
}
