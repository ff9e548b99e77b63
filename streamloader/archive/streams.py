"""The videos of an archive as streams of frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import anyio.to_thread
import numpy as np

from streamloader.archive.reader.reader import ArchiveReader
from streamloader.archive.reader.timestamps import VideoClock
from streamloader.errors import ConfigError, CorruptStream, StreamloaderError, StreamNotFound
from streamloader.media.video.orientation import Turn
from streamloader.media.video.selection import Selection, steps_at_rate
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import Augment, Transform
from streamloader.streams.base import Expected, Stream, StreamDataset
from streamloader.streams.frames import (
    FrameStream,
    checked_pix_fmt,
    checked_size,
    chosen_settings,
    common_size,
    frame_fields,
)
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.values import Array, Field, StreamInfo

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import VideoRow
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.reader import VideoFrame

__all__ = ["ArchiveStreams"]

_PAGE: Final = 10_000  # videos that are looked up in one go
_BLOCK: Final = 8192  # steps whose frame numbers are worked out in one go


class OpenArchive(Protocol):
    """An archive with a torch face, which is not imported here: :class:`streamloader.archive.archive.Archive`."""

    @property
    def reader(self) -> ArchiveReader:
        """What it reads with."""


class ArchiveStreams(StreamDataset):
    """One stream for each video of an archive; a step is a frame, exactly those that the archive gives by number.

    Fields, options and steps are those of :class:`~streamloader.VideoStreams` over the sources of the videos: the same
    pixels at the same times. To start anywhere in a video, as at a resume, decodes no more than one group of pictures
    before. Keys of streams are the names of the videos.

    What is added to the archive later is not seen: the data set has the videos that were there when :meth:`index` was
    first called, or when `archive` was opened.

    Args:
        archive: url of the catalog, folder of a local archive, or an open archive, with whose places and options it is
            read (it is not kept, and may be closed).
        size: (height, width) to which frames are scaled (bilinear). None keeps them as they are; then all videos
            must have the same size.
        pix_fmt: ``"rgb24"``, ``"gray"`` or ``"yuv420p"``.
        max_frames: steps of a stream at most.
        random_start: begin each stream at a random frame from which `max_frames` steps are still there, drawn anew
            every epoch. The number of steps is what it is without: epochs stay equal.
        stride: every how many frames a step is taken.
        fps: frames per second (int, float, Fraction or "30000/1001") to which videos are resampled first: step k
            shows the last frame that begins not after k/fps. None takes every frame once.
        transform: ``transform(frames, rng)``, see :class:`~streamloader.VideoStreams`.
        where: only videos whose metadata match, such as ``{"camera": "left", "split": {"$ne": "test"}}``; see
            :mod:`streamloader.archive.catalog.query`.
        places: number or url of a place -> the address by which this machine, and all workers, reach it.
        storage_options: keyword arguments of :func:`streamloader.stores.open_store`, for all places.

    Raises:
        ConfigError: the arguments do not go together, or `transform` does not fit.
        StreamNotFound: the archive is empty, or `where` matches no video (from :meth:`index`).
        CatalogNotFound: there is no archive (from :meth:`index`); any CatalogError where it cannot be read.
        FrameSizeError: videos differ in size and `size` was not given.
        CorruptStream: a chunk does not hold what the catalog says; ``offset`` is the frame of the video.
        StoreError: bytes of a chunk could not be had.
    """

    def __init__(
        self,
        archive: str | os.PathLike[str] | ArchiveReader | OpenArchive,
        size: tuple[int, int] | None = None,
        pix_fmt: Literal["rgb24", "gray", "yuv420p"] = "rgb24",
        max_frames: int | None = None,
        random_start: bool = False,
        stride: int = 1,
        fps: float | str | Fraction | None = None,
        transform: Transform | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        places: Mapping[int | str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._pix_fmt = checked_pix_fmt(pix_fmt, transform)
        self._size = None if size is None else checked_size(size)
        self._transform = transform
        self._selection = Selection.checked(max_frames, random_start, stride, fps)
        self._where = None if where is None else dict(where)
        self._fields: dict[str, Field] | None = None
        if self._size is not None and transform is None:
            self._fields = frame_fields(pix_fmt, *self._size)
        if isinstance(archive, (str, os.PathLike)):
            reader = ArchiveReader(archive, places=places, storage_options=storage_options, threads=1)
        elif places is not None or storage_options is not None:
            raise ConfigError("an open archive has its places= and storage_options= already: leave them out here")
        else:
            own = archive if isinstance(archive, ArchiveReader) else archive.reader
            reader = own.another(threads=1)  # lanes are the parallelism
        self._readers = _SharedReader(reader)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Name -> shape and dtype of one step."""
        if self._fields is None:
            raise ConfigError("the frame size is known once index() has looked at the archive; or give size=")
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was chosen of frames and pixels; of `transform` its qualified name."""
        return chosen_settings(self._pix_fmt, self._size, self._selection, self._transform)

    async def index(self) -> Sequence[StreamInfo]:
        """Ask the catalog for all videos, and return one stream for each, in the order of the archive."""
        return await anyio.to_thread.run_sync(self._index, abandon_on_cancel=True)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one video. `rng` draws its start and is what `transform` draws from."""
        start_draw, transform_key = float(rng.random()), rng.integers(0, 1 << 64, 2, np.uint64)
        return await in_lane_thread(self._open, info, start_draw, transform_key)

    async def expect(self, info: StreamInfo) -> Expected | None:
        """Keep the connections and what is known of the archive until then."""
        return _ExpectedVideo(self, info, self._readers)

    def _index(self) -> StreamTable:
        names: list[str] = []
        lengths: list[int] = []
        numbers: list[int] = []
        contents: list[str] = []
        sizes: dict[tuple[int, int], str] = {}
        with self._readers as reader:
            videos = reader.snapshot.videos
            for start in range(0, videos, _PAGE):
                for row in reader.find(self._where, start, min(start + _PAGE, videos)):
                    names.append(row.name)
                    lengths.append(self._selection.steps_of(self._positions(row)))
                    numbers.append(row.number)
                    contents.append(row.content)
                    sizes.setdefault((row.height, row.width), row.name)
            if not names:
                what = "is empty" if not videos else f"has {videos} videos, and none matches where={self._where!r}"
                raise StreamNotFound(f"the archive {reader.url} {what}", address=reader.url)
        size = self._size or common_size((name, size) for size, name in sizes.items())
        self._fields = frame_fields(self._pix_fmt, *size, self._transform)
        return StreamTable(names, lengths, {"number": numbers, "content": contents})

    def _positions(self, row: VideoRow) -> int:
        fps = self._selection.fps
        return row.frames if fps is None else steps_at_rate(row.end - row.first_pts, row.time_base, fps)

    def _open(self, info: StreamInfo, start_draw: float, transform_key: Array) -> _ArchiveStream:
        from streamloader.media.video.convert import Converter

        reader = self._readers.take()
        try:
            row = reader.video(info.extra["number"])
            if row.content != info.extra["content"]:
                raise CorruptStream(
                    f"video {info.extra['number']} of the archive {reader.url} is another one than when the loader was "
                    "built: build the loader again",
                    address=reader.url,
                )
            clock = VideoClock(reader.catalog, row)
            positions = self._selection.taken(self._positions(row), start_draw)
            augment = None
            if self._transform is not None:
                augment = Augment(self._transform, transform_key, self.fields["data"], info.key)
            converter = Converter(self._pix_fmt, *(self._size or (row.height, row.width)), Turn(*row.turn))
            steps = _Steps(clock, positions, self._selection.fps)
            return _ArchiveStream(self._readers, reader, row, steps, converter, list(self.fields), augment)
        except BaseException as error:
            self._readers.leave()
            if isinstance(error, StreamloaderError):
                error.stream = info.key
            raise


class _SharedReader:
    """The reader of all streams of a data set in one process: connected while one of them is open."""

    def __init__(self, reader: ArchiveReader) -> None:
        self._reader = reader  # never connected itself: that happens to a copy of it
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._open: ArchiveReader | None = None
        self._users = 0

    def take(self) -> ArchiveReader:
        """Return the reader, for somebody more; each gives it back once."""
        with self._lock:
            if self._open is None:
                self._open = self._reader.another()
            self._users += 1
            return self._open

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            reader = None
            if not self._users:
                reader, self._open = self._open, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> ArchiveReader:
        return self.take()

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def __getstate__(self) -> dict[str, Any]:
        return {"_reader": self._reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reader = state["_reader"]
        self._begin()


class _ExpectedVideo(Expected):
    """A video that is opened soon: until then, the reader stays as it is."""

    def __init__(self, dataset: ArchiveStreams, info: StreamInfo, readers: _SharedReader) -> None:
        self._dataset = dataset
        self._info = info
        self._readers = readers
        readers.take()

    async def open(self, rng: np.random.Generator) -> Stream:
        try:
            return await self._dataset.open(self._info, rng)
        finally:
            self._readers.leave()

    def release(self) -> None:
        self._readers.leave()


class _Steps:
    """Which frames of a video are the steps of a stream, and when they are shown."""

    def __init__(self, clock: VideoClock, positions: range, fps: Fraction | None) -> None:
        self._clock = clock
        self._positions = positions
        self._fps = fps

    def __len__(self) -> int:
        return len(self._positions)

    def numbers(self, start: int, stop: int) -> Array:
        """Return the numbers of the frames of the steps [start, stop), within the video."""
        positions = self._taken(start, stop)
        return positions if self._fps is None else self._clock.shown_at(positions, self._fps)

    def times(self, start: int, stop: int) -> Array:
        """Return when the steps [start, stop) are shown, in seconds after the first frame of the video."""
        positions = self._taken(start, stop)
        if self._fps is not None:
            return positions * self._fps.denominator / self._fps.numerator
        return self._clock.seconds(positions)

    def _taken(self, start: int, stop: int) -> Array:
        taken = self._positions[start:stop]
        return np.arange(taken.start, taken.stop, taken.step, dtype=np.int64)


class _ArchiveStream(FrameStream):
    """Reads chosen frames of one video of an archive."""

    def __init__(
        self,
        readers: _SharedReader,
        reader: ArchiveReader,
        row: VideoRow,
        steps: _Steps,
        converter: Converter,
        names: Sequence[str],
        augment: Augment | None,
    ) -> None:
        super().__init__(len(steps), converter, names, augment)
        self._readers: _SharedReader | None = readers
        self._reader = reader
        self._row = row
        self._steps = steps
        self._playing: Iterator[VideoFrame] = iter(())
        self._next = 0  # the step that `playing` gives next
        self._known = 0  # the step behind the last one that it gives
        self._timed: tuple[int, Array] = 0, np.empty(0)  # steps whose times are known: the first one, and the times

    def times(self, start: int, out: Array) -> None:
        """Write when the frames of the steps from `start` on are shown, in seconds after the video's first frame."""
        begin, times = self._timed
        if not begin <= start <= start + len(out) <= begin + len(times):
            begin, times = start, self._steps.times(start, start + len(out))
        out[:] = times[start - begin : start - begin + len(out)]

    def _frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        try:
            self._timed = start, self._steps.times(start, stop)
            if self._next != start:
                self._stop()
                self._next = self._known = start
            while self._next < stop:
                if self._next == self._known:  # the decoder goes on where it is
                    self._stop()
                    self._known = min(self._next + _BLOCK, self._length)
                    numbers = self._steps.numbers(self._next, self._known)
                    self._playing = self._reader.decode(self._row, numbers)
                frame = next(self._playing)
                self._next += 1
                yield frame
        except StreamloaderError as error:
            self._stop()
            self._next = -1
            error.stream = self._row.name
            raise

    def _stop(self) -> None:
        playing, self._playing = self._playing, iter(())
        close = getattr(playing, "close", None)
        if close is not None:
            close()  # a generator: its decoder is given back

    def _close(self) -> None:
        readers, self._readers = self._readers, None
        self._stop()
        super()._close()
        if readers is not None:
            readers.leave()
