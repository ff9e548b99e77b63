"""The videos of an archive as streams of frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import anyio.to_thread
import numpy as np
from typing_extensions import override

from streamloader.archive.reader.reader import ArchiveReader
from streamloader.archive.reader.timestamps import FrameTimes
from streamloader.errors import ConfigError, CorruptStream, StreamloaderError, StreamNotFound
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.selection import Selection, steps_at_rate
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import StreamTransform, Transform
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset
from streamloader.streams.frames import (
    FrameStream,
    describe_settings,
    frame_fields,
    make_pixels_square,
    require_common_size,
    validate_pix_fmt,
    validate_size,
)
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.values import Array, Field, StreamInfo

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import VideoRow
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.reader import VideoFrame

__all__ = ["ArchiveStreams"]

_VIDEOS_PER_PAGE: Final = 10_000
_STEPS_PER_BLOCK: Final = 8192  # steps whose frame numbers are computed at once


class OpenArchive(Protocol):
    """An open archive, such as :class:`streamloader.archive.archive.Archive`."""

    @property
    def reader(self) -> ArchiveReader:
        """The reader of the archive."""


class ArchiveStreams(StreamDataset):
    """One stream for each video of an archive. A step is a frame, exactly as the archive returns it by number.

    Fields, options and steps are those of :class:`~streamloader.VideoStreams` over the sources of the videos: the same
    pixels at the same times. Seeking in a video decodes at most one group of pictures before the step. The keys of the
    streams are the names of the videos.

    The dataset has the videos that existed when :meth:`index` was first called, or when `archive` was opened. Videos
    added later are not included.

    Args:
        archive: URL of the catalog, folder of a local archive, or an open archive. The places and options of an open
            archive are used too. It may be closed afterwards.
        size: Size (height, width) to which frames are scaled (bilinear). None keeps their size. All videos must have
            the same size then.
        pix_fmt: Pixel format: ``"rgb24"``, ``"rgbp"``, ``"gray"`` or ``"yuv420p"``.
        max_frames: Maximum number of steps of a stream. Defaults to all.
        random_start: Whether to start each stream at a random frame, drawn again every epoch, from which `max_frames`
            steps remain. The number of steps is the same as without, so all epochs have the same length.
        stride: Distance between steps, in frames. Defaults to 1.
        fps: Frame rate (int, float, Fraction or "30000/1001") to which videos are resampled first: step k shows the
            last frame that starts at or before k / fps. None takes every frame once.
        transform: Function ``transform(frames, rng)``, see :class:`~streamloader.VideoStreams`.
        square_pixels: Whether to scale the width of frames whose pixels are not square, see
            :class:`~streamloader.VideoStreams`. Defaults to False.
        where: Condition on the metadata of videos, such as ``{"camera": "left", "split": {"$ne": "test"}}``. See
            :mod:`streamloader.archive.catalog.query`. Defaults to all videos.
        places: Addresses by which this machine, and all workers, reach the places, by number or URL of the place.
        storage_options: Options of :func:`streamloader.stores.open_store` for the places, see
            :class:`streamloader.archive.archive.Archive`.
        max_pixels: Maximum number of pixels of a frame, before `size` is applied. Defaults to that of an open archive,
            or to 2^26.

    Raises:
        ConfigError: If the arguments do not go together, or `transform` does not fit.
        StreamNotFound: If the archive is empty, or no video matches `where` (from :meth:`index`).
        CatalogNotFound: If there is no archive (from :meth:`index`). Other errors of the catalog are CatalogErrors.
        FrameSizeError: If videos differ in size and `size` is None.
        MediaLimitExceeded: If a frame exceeds `max_pixels`.
        CorruptStream: If a chunk is damaged. ``offset`` is the frame of the video.
        StoreError: If bytes of a chunk cannot be read.
    """

    def __init__(
        self,
        archive: str | os.PathLike[str] | ArchiveReader | OpenArchive,
        size: tuple[int, int] | None = None,
        pix_fmt: Literal["rgb24", "rgbp", "gray", "yuv420p"] = "rgb24",
        max_frames: int | None = None,
        random_start: bool = False,
        stride: int = 1,
        fps: float | str | Fraction | None = None,
        transform: Transform | None = None,
        *,
        square_pixels: bool = False,
        where: Mapping[str, Any] | None = None,
        places: Mapping[int | str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._pix_fmt = validate_pix_fmt(pix_fmt, transform)
        self._size = None if size is None else validate_size(size)
        self._square_pixels = bool(square_pixels)
        if self._square_pixels and size is not None:
            raise ConfigError("square_pixels=True changes the size of frames, which size= sets: leave one of them out")
        self._transform = transform
        self._selection = Selection.from_options(max_frames, random_start, stride, fps)
        self._where = None if where is None else dict(where)
        self._fields: dict[str, Field] | None = None
        self._has_remote_places = False  # known after index()
        if self._size is not None and transform is None:
            self._fields = frame_fields(pix_fmt, *self._size)
        if isinstance(archive, (str, os.PathLike)):
            limit = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
            reader = ArchiveReader(archive, places=places, storage_options=storage_options, threads=1, max_pixels=limit)
        elif places is not None or storage_options is not None or max_pixels is not None:
            raise ConfigError(
                "an open archive has its places=, storage_options= and max_pixels= already: leave them out here"
            )
        else:
            opened = archive if isinstance(archive, ArchiveReader) else archive.reader
            reader = opened.clone(threads=1)  # one thread per lane is enough: lanes run in parallel
        self._readers = _SharedReader(reader)

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of a step, by name."""
        if self._fields is None:
            raise ConfigError("the frame size is not known before index() has read the catalog: call it, or give size=")
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """The options that determine frames and pixels. A `transform` is represented by its qualified name."""
        settings = describe_settings(self._pix_fmt, self._size, self._selection, self._transform)
        return settings | {"square_pixels": True} if self._square_pixels else settings

    async def index(self) -> Sequence[StreamInfo]:
        """Load the matching videos from the catalog, and return one stream for each, in the order of the archive."""
        return await anyio.to_thread.run_sync(self._index, abandon_on_cancel=True)

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of all chunks of each video. They are remote if any place of the archive is."""
        return SourceSizes(streams.extra_integers("bytes"), np.full(len(streams), self._has_remote_places))

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one video. The start, and the random numbers of `transform`, are drawn from `rng`."""
        start_draw, transform_key = float(rng.random()), rng.integers(0, 1 << 64, 2, np.uint64)
        return await in_lane_thread(self._open, info, start_draw, transform_key)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Keep the connections and the cached lookups until the video is opened."""
        return _PreparedArchiveVideo(self, info, self._readers)

    def _index(self) -> StreamTable:
        names: list[str] = []
        lengths: list[int] = []
        numbers: list[int] = []
        contents: list[str] = []
        chunk_bytes: list[int] = []
        aspects: list[float] = []
        sizes: dict[tuple[int, int], str] = {}
        with self._readers as reader:
            videos = reader.snapshot.videos
            self._has_remote_places = reader.has_remote_places
            for start in range(0, videos, _VIDEOS_PER_PAGE):
                for row in reader.find(self._where, start, min(start + _VIDEOS_PER_PAGE, videos)):
                    names.append(row.name)
                    lengths.append(self._selection.count_steps(self._count_positions(row)))
                    self._selection.check_steps(lengths[-1], row.frames, row.name)
                    numbers.append(row.number)
                    contents.append(row.content)
                    chunk_bytes.append(row.bytes_out)
                    aspects.append(float(row.pixel_aspect))
                    sizes.setdefault(self._shown_size(row), row.name)
            if not names:
                problem = "is empty" if not videos else f"has {videos} videos, and none matches where={self._where!r}"
                raise StreamNotFound(f"the archive {reader.url} {problem}", address=reader.url)
        if self._size is None:
            for (height, width), name in sizes.items():
                PixelLimit(self._readers.max_pixels, name).check(width, height)
        size = self._size or require_common_size((name, size) for size, name in sizes.items())
        self._fields = frame_fields(self._pix_fmt, *size, self._transform)
        columns: dict[str, Sequence[Any]] = {"number": numbers, "content": contents, "bytes": chunk_bytes}
        columns["pixel_aspect"] = aspects
        return StreamTable(names, lengths, columns)

    def _shown_size(self, row: VideoRow) -> tuple[int, int]:
        """Return (height, width) of the frames of a video, without `size`."""
        if not self._square_pixels:
            return row.height, row.width
        aspect = row.pixel_aspect
        height, width = make_pixels_square(row.height, row.width, aspect.numerator, aspect.denominator)
        return int(height), int(width)

    def _count_positions(self, row: VideoRow) -> int:
        """Return the number of frames of a video, or of its steps at the rate `fps`."""
        fps = self._selection.fps
        return row.frames if fps is None else steps_at_rate(row.end - row.first_pts, row.time_base, fps)

    def _open(self, info: StreamInfo, start_draw: float, transform_key: Array) -> _ArchiveStream:
        from streamloader.media.video.convert import Converter

        reader = self._readers.acquire()
        try:
            row = reader.video(info.extra["number"])
            if row.content != info.extra["content"]:
                raise CorruptStream(
                    f"video {info.extra['number']} of the archive {reader.url} is another one than when the loader was "
                    "built: build the loader again",
                    address=reader.url,
                )
            times = FrameTimes(reader.catalog, row)
            positions = self._selection.frame_range(self._count_positions(row), start_draw)
            transform = None
            if self._transform is not None:
                transform = StreamTransform(self._transform, transform_key, self.fields["data"], info.key)
            height, width = self._size or self._shown_size(row)
            converter = Converter(self._pix_fmt, height, width, Orientation(*row.orientation), name=row.name)
            steps = _StepFrames(times, positions, self._selection.fps)
            return _ArchiveStream(self._readers, reader, row, steps, converter, list(self.fields), transform)
        except BaseException as error:
            self._readers.release()
            if isinstance(error, StreamloaderError):
                error.stream = info.key
            raise


class _SharedReader:
    """The reader of all streams of a dataset in one process. It is connected while one of them is open."""

    def __init__(self, reader: ArchiveReader) -> None:
        self._reader = reader  # never connected itself: only its clones are
        self._init_process_state()

    def _init_process_state(self) -> None:
        self._lock = threading.Lock()
        self._opened: ArchiveReader | None = None
        self._users = 0

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of a frame."""
        return self._reader.max_pixels

    def acquire(self) -> ArchiveReader:
        """Return the reader. Each caller has to release it once."""
        with self._lock:
            if self._opened is None:
                self._opened = self._reader.clone()
            self._users += 1
            return self._opened

    def release(self) -> None:
        """Release the reader. It is closed when all callers have released it."""
        with self._lock:
            self._users -= 1
            reader = None
            if not self._users:
                reader, self._opened = self._opened, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> ArchiveReader:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        return {"_reader": self._reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._reader = state["_reader"]
        self._init_process_state()


class _PreparedArchiveVideo(PreparedStream):
    """A video that will be opened soon. The shared reader stays connected until then."""

    def __init__(self, dataset: ArchiveStreams, info: StreamInfo, readers: _SharedReader) -> None:
        self._dataset = dataset
        self._info = info
        self._readers = readers
        readers.acquire()

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        try:
            return await self._dataset.open(self._info, rng)
        finally:
            self._readers.release()

    @override
    def release(self) -> None:
        self._readers.release()


class _StepFrames:
    """Maps the steps of a stream to frames of a video and to their times."""

    def __init__(self, times: FrameTimes, positions: range, fps: Fraction | None) -> None:
        self._times = times
        self._positions = positions
        self._fps = fps

    def __len__(self) -> int:
        return len(self._positions)

    def numbers(self, start: int, end: int) -> Array:
        """Return the numbers of the frames of the steps [start, end), within the video."""
        positions = self._positions_of(start, end)
        return positions if self._fps is None else self._times.frames_at_steps(positions, self._fps)

    def times(self, start: int, end: int) -> Array:
        """Return when the steps [start, end) are shown, in seconds after the first frame of the video."""
        positions = self._positions_of(start, end)
        if self._fps is not None:
            return positions * self._fps.denominator / self._fps.numerator
        return self._times.seconds(positions)

    def _positions_of(self, start: int, end: int) -> Array:
        positions = self._positions[start:end]
        return np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)


class _ArchiveStream(FrameStream):
    """Reads selected frames of one video of an archive."""

    def __init__(
        self,
        readers: _SharedReader,
        reader: ArchiveReader,
        row: VideoRow,
        steps: _StepFrames,
        converter: Converter,
        names: Sequence[str],
        transform: StreamTransform | None,
    ) -> None:
        super().__init__(len(steps), converter, names, transform, waits_for_bytes=reader.has_remote_places)
        self._readers: _SharedReader | None = readers
        self._reader = reader
        self._row = row
        self._steps = steps
        self._decoding: Iterator[VideoFrame] = iter(())
        self._next = 0  # the step whose frame `_decoding` yields next
        self._block_end = 0  # the step after the last one that `_decoding` yields
        self._known_times: tuple[int, Array] = 0, np.empty(0)  # the first step with a known time, and the times

    def times(self, start: int, out: Array) -> None:
        """Write when the steps from `start` on are shown, in seconds after the video's first frame."""
        first, times = self._known_times
        if not first <= start <= start + len(out) <= first + len(times):
            first, times = start, self._steps.times(start, start + len(out))
        out[:] = times[start - first : start - first + len(out)]

    def _read_frames(self, start: int, end: int) -> Iterator[VideoFrame]:
        try:
            self._known_times = start, self._steps.times(start, end)
            if self._next != start:
                self._stop_decoding()
                self._next = self._block_end = start
            while self._next < end:
                if self._next == self._block_end:  # the decoder continues at its position
                    self._stop_decoding()
                    self._block_end = min(self._next + _STEPS_PER_BLOCK, self._length)
                    numbers = self._steps.numbers(self._next, self._block_end)
                    self._decoding = self._reader.decode(self._row, numbers)
                frame = next(self._decoding)
                self._next += 1
                yield frame
        except StreamloaderError as error:
            self._stop_decoding()
            self._next = -1
            error.stream = self._row.name
            raise

    def _stop_decoding(self) -> None:
        decoding, self._decoding = self._decoding, iter(())
        close = getattr(decoding, "close", None)
        if close is not None:
            close()  # a generator: this returns its decoder to the pool

    def _close(self) -> None:
        readers, self._readers = self._readers, None
        self._stop_decoding()
        super()._close()
        if readers is not None:
            readers.release()
