"""Decoders that fill rows in place, each in its fastest form: one thread, and no new objects per frame.

All scale bilinearly. A clip is not read again after its end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class PyAVClip:
    """PyAV with one decode thread and one VideoReformatter. The converted frame is copied into its row."""

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
        """Fill the leading rows of `out`, and return their number. 0 means the end."""
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
    """The decoder and converter of streamloader.media, without the index that streamloader uses for its checks."""

    def __init__(self, path: str, height: int, width: int) -> None:
        from streamloader.media.video.convert import Converter
        from streamloader.media.video.source import open_video

        self._container, stream = open_video(path)
        self._frames = self._container.decode(stream)
        self._converter = Converter("rgb24", height, width)

    def read_into(self, out: Array) -> int:
        """Fill the leading rows of `out`, and return their number. 0 means the end."""
        outputs, convert = self._converter.wrap_outputs([out]), self._converter.convert_into
        for row in range(len(out)):
            frame = next(self._frames, None)
            if frame is None:
                self._converter.close()
                self._container.close()
                return row
            convert(frame, outputs, row)
        return len(out)


class OpenCVClip:
    """OpenCV with one decode thread. Colors are swapped while copying into the row."""

    def __init__(self, path: str, height: int, width: int) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._cv2 = cv2
        self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        self._size = (width, height)
        self._frame: Array | None = None

    def read_into(self, out: Array) -> int:
        """Fill the leading rows of `out`, and return their number. 0 means the end."""
        cv2 = self._cv2
        for row, image in enumerate(out):
            success, self._frame = self._capture.read(self._frame)
            if not success:
                self._capture.release()
                return row
            frame = self._frame
            if frame.shape[1::-1] != self._size:
                frame = cv2.resize(frame, self._size, interpolation=cv2.INTER_LINEAR)
            cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=image)
        return len(out)


class TorchCodecClip:
    """torchcodec with one thread, windows in order, and its own decoder transform for scaling."""

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
        """Fill the leading rows of `out`, and return their number. 0 means the end."""
        count = min(len(out), self._length - self._position)
        if count:
            frames = self._decoder.get_frames_in_range(self._position, self._position + count)
            out[:count] = frames.data.numpy()
            self._position += count
        return count


class DecordClip:
    """decord with one thread. The reader scales."""

    def __init__(self, path: str, height: int, width: int) -> None:
        import decord

        self._reader = decord.VideoReader(path, width=width, height=height, num_threads=1)
        self._remaining = len(self._reader)

    def read_into(self, out: Array) -> int:
        """Fill the leading rows of `out`, and return their number. 0 means the end."""
        count = min(len(out), self._remaining)
        for image in out[:count]:
            image[:] = self._reader.next().asnumpy()
        self._remaining -= count
        return count


DECODERS: dict[str, Any] = {
    "pyav": PyAVClip,
    "direct": DirectClip,
    "opencv": OpenCVClip,
    "torchcodec": TorchCodecClip,
    "decord": DecordClip,
}
