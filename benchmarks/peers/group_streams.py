"""The streams of the reference's examples, as group classes: text, videos, and a virtual camera in front of an image.

Both contenders run these same classes: the reference design (`group_reference.py`), and `MultiStreamer.from_env`
(`group_peer.py`). A batch is uint8 (B, T, 1) for text, and (B, T, H, W, 1), in grey, for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np

from benchmarks.clips import cache_folder
from benchmarks.job import Job
from streamloader.compat import StreamDataset
from streamloader.values import Array

TEXTS = ["".join(f"{chr(j)}_{i};" for i in range(1000)) for j in range(97, 97 + 27)]
CAMERA_STEPS = 1000
_CAMERA_ROTATION_RAD, _CAMERA_SHIFT = 0.25, 0.3  # amplitudes; the plane is at a distance of 1


class TextStream:
    """A text, a window at a time."""

    def __init__(self, text: str) -> None:
        self.reload(text)

    def reload(self, text: str) -> None:
        """Start another text."""
        self._bytes, self.step = np.frombuffer(text.encode("latin-1"), np.uint8), 0

    def read_into(self, out: Array) -> int:
        """Write the next steps, and return their number."""
        steps = self._bytes[self.step : self.step + len(out)]
        out[: len(steps), 0] = steps
        self.step += len(steps)
        return len(steps)


class FrameStream:
    """A stream that is read frame by frame."""

    step = 0

    def read(self) -> Array | None:
        """Return the next frame, or None at the end."""
        raise NotImplementedError

    def read_into(self, out: Array) -> int:
        """Write the next steps, and return their number."""
        for number in range(len(out)):
            frame = self.read()
            if frame is None:
                return number
            out[number, :, :, 0] = frame
            self.step += 1
        return len(out)


class VideoStream(FrameStream):
    """A video, read by OpenCV."""

    def __init__(self, path: str, size: tuple[int, int]) -> None:
        self._size = size
        self.reload(path)

    def reload(self, path: str) -> None:
        """Start another video."""
        self._capture, self.step = cv2.VideoCapture(path), 0

    def read(self) -> Array | None:
        """Return the next frame in grey."""
        success, frame = self._capture.read()
        if not success:
            return None
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        height, width = self._size
        return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


class CameraStream(FrameStream):
    """A camera that moves in front of an image, for :data:`CAMERA_STEPS` steps."""

    def __init__(self, path: str, size: tuple[int, int]) -> None:
        self._size = size
        self.reload(path)

    def reload(self, path: str) -> None:
        """Start another image, with another motion."""
        height, width = self._size
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        assert image is not None
        self._image, self.step = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 0
        draw = np.random.default_rng(len(path) + sum(path.encode())).uniform
        self._amplitude = np.concatenate([draw(0, _CAMERA_ROTATION_RAD, 3), draw(0, _CAMERA_SHIFT, 3)])
        self._speed, self._phase = draw(1e-3, 1e-2, 6), draw(0, 2 * np.pi, 6)
        self._intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])

    def read(self) -> Array | None:
        """Return the image as the camera sees it now, by the plane-induced homography K (R - t n^T / d) K^-1."""
        if self.step == CAMERA_STEPS:
            return None
        pose = self._amplitude * np.sin(self._speed * self.step + self._phase)
        rotation, _ = cv2.Rodrigues(pose[:3])
        rotation[:, 2] -= pose[3:]
        homography = self._intrinsics @ rotation @ np.linalg.inv(self._intrinsics)
        height, width = self._size
        return cv2.warpPerspective(self._image, homography, (width, height))


class Group(StreamDataset):
    """The streams of one worker."""

    def __init__(self, make_stream: Callable[[Any], Any], epoch: int = 0, **arguments: Any) -> None:
        self._make_stream, self.epoch = make_stream, epoch
        super().__init__(**arguments)

    def reset_streams(self) -> None:
        """Start the first streams."""
        self.streams = [self._make_stream(self._next_item()) for _ in range(self.num_streams)]

    def reload_stream(self, idx: int) -> None:
        """Start the next stream of a row."""
        self.streams[idx].reload(self._next_item())

    def _next_item(self) -> Any:
        item = self.stream_files[self.stream_iter % len(self.stream_files)]
        self.stream_iter += 1
        return item

    def __call__(self, arrays_dic: Mapping[str, Array]) -> dict[str, list[Any]]:
        """Fill a window of each stream."""
        data = arrays_dic["data"]
        mask = np.zeros(data.shape[:2], np.uint8)
        self.iter += 1
        for row, stream in enumerate(self.streams):
            filled = 0
            while filled < data.shape[1]:
                mask[row, filled] = stream.step > 0
                count = stream.read_into(data[row, filled:])
                mask[row, filled + 1 : filled + count] = 1
                filled += count
                if filled < data.shape[1]:
                    self.reload_stream(row)
        return {"resets": [mask]}


def make_group(job: Job) -> Callable[..., Group]:
    """Return the function that creates the group of a worker. Groups of `job` go on for 2^30 batches."""
    size = job.shape[:2]
    streams: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "text": (TEXTS, TextStream),
        "video": (job.paths, partial(VideoStream, size=size)),
        "camera": (job.paths, partial(CameraStream, size=size)),
    }
    items, make_stream = streams[job.kind]
    return partial(Group, make_stream, stream_files=list(items), num_batches=1 << 30, num_tbins=job.window)


def camera_images(paths: list[str]) -> list[str]:
    """Return the paths of images for the camera, the first frame of each video. Missing images are created."""
    folder = cache_folder() / "camera-images"
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, path in enumerate(paths):
        image = folder / f"{number:02}.png"
        if not image.exists():
            success, frame = cv2.VideoCapture(path).read()
            assert success
            cv2.imwrite(str(image), frame)
        images.append(str(image))
    return images


def collate(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (data, reset) of a batch as tensors, like the collate functions of the reference's examples."""
    import torch

    resets = torch.cat([torch.from_numpy(mask) for mask in data["resets"]])
    return torch.from_numpy(data["data"]), resets == 0
