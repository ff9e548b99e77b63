"""Group envs as users of `sl.compat.StreamDataset` write them, and their expected batches.

Imports no torch: the workers of the tests import this module.
"""

from __future__ import annotations

import functools
import random

import numpy as np

from streamloader.compat import StreamDataset

TEXTS = ["".join(f"{chr(j)}_{i};" for i in range(1000)) for j in range(97, 97 + 27)]


class TextStream:
    """One text after the other, `tbins` characters at a time."""

    def __init__(self, text, tbins):
        self.tbins = tbins
        self.reload(text)

    def reload(self, text):
        self.text = np.frombuffer(text.encode("latin-1"), np.uint8)
        self.iter = 0

    def __next__(self):
        if self.iter >= len(self.text):
            return None
        frame = self.text[self.iter : self.iter + self.tbins]
        self.iter += self.tbins
        return frame


class TextStreams(StreamDataset):
    """The text example. What it does not need it takes as ``**kwargs``, as its users pass more."""

    def __init__(
        self,
        stream_files=(),
        worker_id=0,
        num_workers=1,
        num_streams=3,
        num_batches=100,
        num_tbins=1,
        epoch=0,
        **kwargs,
    ):
        self.max_frames = kwargs.get("max_frames", 1000)
        self.epoch = epoch
        super().__init__(stream_files, worker_id, num_workers, num_streams, num_batches, num_tbins)

    def reset_streams(self):
        self.streams = []
        for _ in range(self.num_streams):
            self.streams.append(TextStream(self.stream_files[self.stream_iter], self.num_tbins))
            self.stream_iter += 1

    def reload_stream(self, idx):
        self.streams[idx].reload(self.stream_files[self.stream_iter])
        self.stream_iter = (self.stream_iter + 1) % len(self.stream_files)

    def __call__(self, arrays_dic):
        batchsize, _ = arrays_dic["data"].shape[:2]
        assert len(self.streams) == batchsize
        mask = np.zeros(batchsize, dtype="u8")
        self.iter += 1
        for i, stream in enumerate(self.streams):
            frame = next(stream)
            while frame is None:
                self.reload_stream(i)
                frame = next(self.streams[i])
            mask[i] = self.streams[i].iter > self.num_tbins
            arrays_dic["data"][i, : len(frame)] = frame[:, None]
        return {"resets": [mask]}


class VideoStream:
    """One video after the other, in grey."""

    def __init__(self, path, height, width, max_frames):
        self.size, self.max_frames = (width, height), max_frames
        self.reload(path)

    def reload(self, path):
        import cv2

        self.filename, self.iter = path, 0
        self.cap = cv2.VideoCapture(path)

    def __next__(self):
        import cv2

        if self.iter >= self.max_frames:
            return False, None
        ret, frame = self.cap.read()
        if not ret:
            return False, None
        self.iter += 1
        return True, cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), self.size, interpolation=cv2.INTER_AREA)


class VideoStreams(StreamDataset):
    """The video example: files in another order in each epoch, from Python's global generator."""

    def __init__(
        self,
        stream_files=(),
        worker_id=0,
        num_workers=1,
        num_streams=3,
        num_batches=100,
        num_tbins=1,
        epoch=0,
        **kwargs,
    ):
        self.height, self.width = kwargs.get("height", 480), kwargs.get("width", 640)
        self.max_frames = kwargs.get("max_frames", 1000)
        self.epoch = epoch
        super().__init__(stream_files, worker_id, num_workers, num_streams, num_batches, num_tbins)

    def reset_streams(self):
        self.streams = []
        self.stream_iter = 0
        random.shuffle(self.stream_files)
        for _ in range(self.num_streams):
            path = self.stream_files[self.stream_iter]
            self.streams += [VideoStream(path, self.height, self.width, self.max_frames)]
            self.stream_iter = (self.stream_iter + 1) % len(self.stream_files)

    def reload_stream(self, idx):
        self.streams[idx].reload(self.stream_files[self.stream_iter])
        self.stream_iter = (self.stream_iter + 1) % len(self.stream_files)

    def __call__(self, arrays_dic):
        batchsize, tbins = arrays_dic["data"].shape[:2]
        mask = np.zeros((batchsize, tbins), dtype=np.uint8)
        self.iter += 1
        for i, stream in enumerate(self.streams):
            for t in range(tbins):
                ret, frame = next(stream)
                if not ret and t % self.num_tbins != 0:
                    continue
                while not ret:
                    self.reload_stream(i)
                    ret, frame = next(self.streams[i])
                mask[i, t] = self.streams[i].iter > 1
                arrays_dic["data"][i, t] = frame[..., None]
        names = [stream.filename for stream in self.streams]
        return {"resets": [mask], "filenames": names, "iter": [self.iter - 1]}


def simulate(make_env, dims, batchsize, num_workers, epoch, dtype="uint8"):
    """Return the arrays "data" of one epoch, from the envs of all workers in this process, one after the other."""
    workers = max(1, num_workers)
    rows = batchsize // workers
    parts = []
    for worker in range(workers):
        env = make_env(worker_id=worker, num_workers=workers, num_streams=rows, epoch=epoch)
        arrays = [{"data": np.zeros((rows, *dims), dtype)} for _ in range(env.num_batches)]
        for one in arrays:
            env(one)
        parts.append([one["data"] for one in arrays])
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


class Recorder:
    """Row i of batch k is (epoch, worker, its number of workers, i, k). `at_call(self)` is called before each batch."""

    num_batches = 3

    def __init__(self, worker_id, num_workers, num_streams, epoch, at_call=None, num_batches=3, path=None):
        self.values = epoch, worker_id, num_workers
        self.num_streams, self.at_call, self.num_batches, self.path = num_streams, at_call, num_batches, path
        self.calls = 0
        self.note("made")

    def note(self, text):
        if self.path is not None and self.num_streams:
            with open(self.path / f"{text}-{'-'.join(map(str, self.values[:2]))}", "a") as file:
                file.write(".")

    def __call__(self, arrays):
        infos = None if self.at_call is None else self.at_call(self)
        assert not arrays["data"].any()
        for row in range(self.num_streams):
            arrays["data"][row] = *self.values, row, self.calls
        self.calls += 1
        return {"worker": [self.values[1]], "rows": list(range(self.num_streams))} if infos is None else infos

    def close(self):
        self.note("closed")


def recorded(epoch, call, batchsize=4, workers=2):
    """Return the rows of a batch of recorders."""
    rows = batchsize // workers
    return [[epoch, worker, workers, row, call] for worker in range(workers) for row in range(rows)]


def recorders(**options):
    """Return a `make_env` of recorders."""
    return functools.partial(Recorder, **options)
