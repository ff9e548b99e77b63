"""Videos as streams of frames."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import anyio.to_thread
import numpy as np
from typing_extensions import override

from streamloader.errors import ClosedError, ConfigError, CorruptStream, StreamloaderError
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.media.video.selection import Selection
from streamloader.stores.addresses import Addresses, FileKeys, as_addresses, expand_addresses
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.registry import split_address
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import StreamTransform, Transform
from streamloader.streams.base import PreparedStream, Stream, StreamDataset, decoder_threads, parses_in_processes
from streamloader.streams.frames import (
    FrameStream,
    describe_settings,
    frame_fields,
    require_common_size,
    validate_pix_fmt,
    validate_size,
)
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.values import Array, Field, ObjectInfo, StreamInfo

if TYPE_CHECKING:
    from streamloader.media.parser_pool import ParserPool
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.index import VideoIndex
    from streamloader.media.video.reader import FrameReader, VideoFrame
    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.media.video.summary import VideoSummary
    from streamloader.stores.addresses import SourceFile

__all__ = ["VideoStreams", "is_video"]

_VIDEO_NAME: Final = re.compile(
    r"\.(3g2|3gp|asf|avi|divx|dv|f4v|flv|gif|h264|h265|hevc|ivf|m1v|m2t|m2ts|m2v|m4v|mjpe?g|mkv|mov|mp4|mpe|mpeg|mpg|mts"
    r"|mxf|nut|ogm|ogv|rm|rmvb|ts|vob|webm|wmv|y4m)$",
    re.IGNORECASE,
)
_MAX_REMOTE_INDEXERS: Final = 32  # threads for videos in stores, which mostly wait
_REMOTE_VIDEOS_PER_PROCESS: Final = 8  # indexed concurrently; each process has its own connections
# Private memory of a process that indexes videos. A decoder holds up to 17 frames of 1.5 to 8 bytes per pixel.
_BASE_MEMORY_BYTES: Final = 1 << 30
_MEMORY_BYTES_PER_PIXEL: Final = 48
_LOG_INTERVAL_S: Final = 5.0  # while files are indexed
_log = logging.getLogger("streamloader")


class VideoStreams(StreamDataset):
    """One stream for each video file. The steps are exactly the frames that the decoder shows, in their order.

    Fields: ``"data"``, uint8 (H, W, 3) for ``rgb24`` and (H, W, 1) for ``gray`` (luma stretched to 0..255); for
    ``yuv420p``, ``"y"`` (H, W, 1), ``"u"`` and ``"v"`` (ceil(H/2), ceil(W/2), 1) in the file's matrix and range. RGB is
    converted with the file's own matrix and range. Frames are turned upright if the file specifies a rotation. Times
    are those in the file, in seconds after its first frame.

    Args:
        paths: A path, a glob pattern (``**`` for any depth), a directory (all files in it with a video extension, at
            any depth), or a list of these. Files of a pattern or directory are sorted by code point. Addresses in
            stores (``ssh://host/videos/*.mp4``, ``s3://``, ``https://``, ...) can be used like paths and mixed with
            them; see :func:`streamloader.stores.open_store`. Such videos are decoded while they are fetched.
        size: (height, width) in pixels to which frames are scaled (bilinear). Defaults to their own size, which must be
            the same for all videos.
        pix_fmt: Pixel format: ``"rgb24"``, ``"gray"`` or ``"yuv420p"``. Defaults to ``"rgb24"``.
        max_frames: Maximum number of steps of a stream. Defaults to no limit.
        random_start: Whether each stream starts at a random frame that leaves `max_frames` steps, drawn again in every
            epoch. The number of steps does not change, so all epochs have the same length. Defaults to False.
        stride: Number of frames from one step to the next. Defaults to 1.
        fps: Frames per second (int, float, Fraction or "30000/1001") to which videos are resampled first: step k shows
            the last frame that starts at k/fps or earlier. Defaults to using every frame of the file once.
        transform: Function ``transform(frames, rng)`` that receives uint8 (n, H, W, C), with varying n, and returns an
            array (n, ...) whose shape and dtype never change (a call on zeros determines them). `rng` is the same for
            every call of one stream, so values drawn from it are constant for the stream. All frames must be treated
            alike, because n depends on the loader. Cannot be combined with ``yuv420p``. Defaults to None.
        damaged: ``"raise"`` raises an error for truncated or damaged files; ``"keep"`` uses their decodable frames.
            Defaults to ``"raise"``.
        max_pixels: Maximum number of pixels of a frame, before `size` is applied. Files with larger frames are refused
            before memory is allocated for them. Defaults to 2^26, which is 8192 x 8192.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    Indexes are cached for each version of a file in the user's cache folder, or in ``$STREAMLOADER_CACHE``. To index a
    video in a store, all of it is read once; of an MP4 or MOV file, usually only a small part. Keys of streams are
    their addresses without user names, passwords, and the values of query parameters
    (:func:`streamloader.redaction.redact_address`). Keys that are equal then get ``#2``, ``#3``, ...

    Videos are untrusted: a loader with worker processes has them indexed and decoded in child processes only.

    Raises:
        ConfigError: If the arguments contradict each other, or `transform` is not suitable.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no video (from :meth:`index`).
        UnreadableStream: If a file contains no video that can be decoded.
        MediaLimitExceeded: If a file exceeds `max_pixels` or another limit.
        CorruptStream: If a file is truncated or damaged, or changed since it was indexed. ``offset`` is the frame.
        StoreError: If a store fails to deliver bytes; ObjectChanged if a video in a store was replaced.
        FrameSizeError: If videos differ in size and `size` is not given.
    """

    def __init__(
        self,
        paths: Addresses,
        size: tuple[int, int] | None = None,
        pix_fmt: Literal["rgb24", "gray", "yuv420p"] = "rgb24",
        max_frames: int | None = None,
        random_start: bool = False,
        stride: int = 1,
        fps: float | str | Fraction | None = None,
        transform: Transform | None = None,
        *,
        damaged: Literal["raise", "keep"] = "raise",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = as_addresses(paths)
        self._pix_fmt = validate_pix_fmt(pix_fmt, transform)
        if damaged not in ("raise", "keep"):
            raise ConfigError(f'damaged must be "raise" or "keep", got {damaged!r}')
        self._size = None if size is None else validate_size(size)
        self._damaged: str = damaged
        self._max_pixels = validate_max_pixels(max_pixels)
        self._storage_options = None if storage_options is None else dict(storage_options)
        self._secret_addresses: dict[str, str] = {}  # by key, where the address contains secrets
        self._transform = transform
        self._selection = Selection.from_options(max_frames, random_start, stride, fps)
        self._fields: dict[str, Field] | None = None
        if self._size is not None and transform is None:
            self._fields = frame_fields(pix_fmt, *self._size)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Name -> shape and dtype of one step."""
        if self._fields is None:
            raise ConfigError("the frame size is unknown before index() was called; or pass size=")
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """The options of frames and pixels. The transform is given by its qualified name."""
        settings = describe_settings(self._pix_fmt, self._size, self._selection, self._transform)
        return settings | {"damaged": self._damaged}

    async def index(self) -> Sequence[StreamInfo]:
        """Index all files (concurrently, with a cache), and describe one stream for each, in order.

        For a loader with worker processes, child processes index the files that are not in the cache.
        """
        stop = threading.Event()
        parsers = None
        if parses_in_processes():
            from streamloader.media.parser_pool import ParserPool

            parsers = ParserPool(_BASE_MEMORY_BYTES + _MEMORY_BYTES_PER_PIXEL * self._max_pixels)
        try:
            return await anyio.to_thread.run_sync(self._index, stop, parsers, abandon_on_cancel=True)
        finally:
            stop.set()  # after a cancellation, only files that are being read in this process are finished
            if parsers is not None:
                parsers.close()

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one video. `rng` determines its start, and is the source of the random generator of `transform`."""
        return await self._open_with(info, rng, None)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the first bytes of a video in a store."""
        if "path" in info.extra or info.extra["version"] is None:  # local, or its version must be checked first
            return None
        file = await in_lane_thread(self._start_fetch, info)
        return None if file is None else _PreparedVideo(partial(self._open_with, info), file)

    async def _open_with(self, info: StreamInfo, rng: np.random.Generator, file: VideoFile | None) -> Stream:
        start_draw, transform_key = float(rng.random()), rng.integers(0, 1 << 64, 2, np.uint64)
        return await in_lane_thread(self._open, info, start_draw, transform_key, file, decoder_threads.get())

    def _start_fetch(self, info: StreamInfo) -> VideoFile | None:
        from streamloader.media.video.remote import open_video_file

        try:
            video, index = self._load_indexed(info)
            return open_video_file(video, index.initial_spans)
        except StreamloaderError:  # open() raises it again
            return None

    def _index(self, stop: threading.Event, parsers: ParserPool | None) -> StreamTable:
        files = expand_addresses(self._paths, is_video, self._storage_options)
        keys = FileKeys.of_files(files)
        indexed = _summarize_in_threads(partial(self._summarize, parsers), files, stop)
        size = self._size
        if size is None:
            size = require_common_size(
                (name, each.summary.size) for name, each in zip(keys.names, indexed, strict=True)
            )
        self._fields = frame_fields(self._pix_fmt, *size, self._transform)
        self._secret_addresses = keys.secret_addresses
        return _build_table(keys, files, indexed)

    def _summarize(self, parsers: ParserPool | None, file: SourceFile) -> _IndexedFile:
        from streamloader.media.video.files import file_version
        from streamloader.media.video.summary import summarize_in_child, summarize_video

        version = file_version(file.address) if file.info is None else None
        video = file.address if file.info is None else self._remote_video(file.address, file.info)
        arguments = video, version, self._damaged, self._max_pixels, self._selection
        if parsers is None:
            return _IndexedFile(version or (0, 0), summarize_video(*arguments))
        shared_by = 1 if file.info is None else _REMOTE_VIDEOS_PER_PROCESS
        return _IndexedFile(version or (0, 0), summarize_in_child(parsers, shared_by, *arguments))

    def _remote_video(self, address: str, info: ObjectInfo) -> Video:
        from streamloader.media.video.remote import RemoteVideo

        return RemoteVideo(address, info, self._storage_options)

    def _open(
        self, info: StreamInfo, start_draw: float, transform_key: Array, file: VideoFile | None, threads: int
    ) -> _VideoStream:
        from streamloader.media.video.convert import Converter
        from streamloader.media.video.reader import FrameReader

        try:
            video, index = self._load_indexed(info)
            if len(index) != info.extra["frames"]:
                raise CorruptStream(
                    f"{video} has {len(index)} frames here, but had {info.extra['frames']} where it was indexed: "
                    "the versions of FFmpeg differ, or the file does",
                    address=str(video),
                )
            steps = self._selection.select_frames(index, start_draw)
            owned_file, file = file, None
            reader = FrameReader(
                video,
                index,
                info.key,
                owned_file=owned_file,
                selected=steps[0],
                threads=threads,
                max_pixels=self._max_pixels,
            )
        except StreamloaderError as error:
            error.stream = info.key
            raise
        finally:
            if file is not None:
                file.close()
        transform = None
        if self._transform is not None:
            transform = StreamTransform(self._transform, transform_key, self.fields["data"], info.key)
        size = self._size or index.upright_size
        converter = Converter(self._pix_fmt, *size, index.orientation)
        keeps_damaged = self._damaged == "keep"
        return _VideoStream(reader, steps, converter, list(self.fields), transform, keeps_damaged=keeps_damaged)

    def _load_indexed(self, info: StreamInfo) -> tuple[Video, VideoIndex]:
        """Return the video of a stream, if it is still the one that was indexed, and its index."""
        from streamloader.media.video.files import file_version
        from streamloader.media.video.index_cache import load_index

        extra = info.extra
        if "path" in extra:
            path = extra["path"]
            version = file_version(path)
            if version != (extra["bytes"], extra["modified"]):
                raise _changed_error(path, version[0], extra["bytes"])
            return path, load_index(path, damaged=self._damaged, version=version, max_pixels=self._max_pixels)
        address = self._secret_addresses.get(info.key, extra["address"])
        path = split_address(address)[1]
        indexed = ObjectInfo(path, extra["size"], extra["version"], extra["modified"])
        if indexed.version is None:  # without a version, reading does not detect a changed object
            with open_shared_store(address, self._storage_options)[0] as store:
                current = store.head(path)
            if (current.size, current.modified) != (indexed.size, indexed.modified):
                raise _changed_error(extra["address"], current.size, indexed.size)
        video = self._remote_video(address, indexed)
        return video, load_index(video, damaged=self._damaged, max_pixels=self._max_pixels)


class _PreparedVideo(PreparedStream):
    """A video in a store whose first bytes are being fetched.

    Args:
        open_with: Function that opens the stream with a random generator and an open file, or None.
        file: Open file.
    """

    def __init__(
        self, open_with: Callable[[np.random.Generator, VideoFile | None], Awaitable[Stream]], file: VideoFile
    ) -> None:
        self._open_with = open_with
        self._file = file

    @property
    @override
    def ready(self) -> bool:  # type: ignore[override]
        return self._file.remote.is_idle

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        if self._file.remote.is_healthy:
            return await self._open_with(rng, self._file)
        self._file.close()  # a request failed: try again, the cause may be gone
        return await self._open_with(rng, None)

    @override
    def release(self) -> None:
        self._file.close()


class _VideoStream(FrameStream):
    """Reads the selected frames of one file.

    Args:
        reader: Reader of the file, which the stream closes.
        steps: Frame number (int64) and time in seconds (float64) of each step.
        converter: Converter of the frames, which the stream closes.
        names: Names of the fields.
        transform: The user's transform, or None.
        keeps_damaged: Whether the stream ends early where the file proves to be damaged up to its end.
    """

    def __init__(
        self,
        reader: FrameReader,
        steps: tuple[Array, Array],
        converter: Converter,
        names: Sequence[str],
        transform: StreamTransform | None,
        *,
        keeps_damaged: bool,
    ) -> None:
        self._reader = reader
        self._numbers, self._times = steps
        self._keeps_damaged = keeps_damaged
        super().__init__(len(self._numbers), converter, names, transform)

    def times(self, start: int, out: Array) -> None:
        """Write the times of the steps from `start` on, in seconds after the file's first frame."""
        times = self._times[start : start + len(out)]
        out[: len(times)] = times

    @override
    def _read_frames(self, start: int, end: int) -> Iterator[VideoFrame]:
        for step, number in enumerate(self._numbers[start:end].tolist(), start):
            try:
                frame = self._reader.read_frame(number)
            except CorruptStream as error:
                if not self._keeps_damaged:
                    raise
                self._end_early(step, error)
                return
            yield frame

    def _end_early(self, step: int, error: CorruptStream) -> None:
        """Make `step` the end of the stream, because nothing after the damage can be decoded.

        Raises:
            CorruptStream: If later frames can be decoded, or no frame at all.
        """
        number = error.offset or 0
        if self._reader.finds_key_after(number):
            raise CorruptStream(
                f"{error.address} is damaged at frame {number}, and intact frames follow. Its index lists all of them, "
                'because it was made without decoding: pass verify="frames" too, to use those that can be decoded',
                stream=error.stream,
                address=error.address,
                offset=number,
            ) from error
        if number == 0:
            raise error
        self._length = step
        _log.warning(
            "stream %s (%s) is damaged and ends early, at frame %d of %d: no later frame can be decoded",
            error.stream, error.address, number, len(self._reader.index),
        )  # fmt: skip

    @override
    def _check_end(self) -> None:
        self._reader.check_end()

    @override
    def _close(self) -> None:
        self._reader.close()
        super()._close()


class _IndexedFile(NamedTuple):
    """One indexed video, for the table of streams.

    Attributes:
        version: (size in bytes, modification time in ns) of a local file, (0, 0) for a video in a store.
        summary: Summary of its index.
    """

    version: tuple[int, int]
    summary: VideoSummary


def _build_table(keys: FileKeys, files: Sequence[SourceFile], indexed: Sequence[_IndexedFile]) -> StreamTable:
    """Return the streams, with the data needed to open them."""
    steps = [each.summary.steps for each in indexed]
    local = [file.info is None for file in files]
    extras = [_stream_extra(*each) for each in zip(keys.names, files, indexed, strict=True)]
    if any(local) and not all(local):
        infos = [StreamInfo(*each) for each in zip(keys.keys, steps, extras, strict=True)]
        return StreamTable.from_infos(infos, keys.identities)
    columns = {column: [extra[column] for extra in extras] for column in extras[0]}
    return StreamTable(keys.keys, steps, columns, keys.identities)


def _stream_extra(name: str, file: SourceFile, indexed: _IndexedFile) -> dict[str, Any]:
    frames = indexed.summary.frames
    if file.info is None:
        size, modified = indexed.version
        return {"path": name, "bytes": size, "modified": modified, "frames": frames}
    info = file.info
    return {
        "address": name,
        "size": info.size,
        "version": info.version,
        "modified": info.modified,
        "frames": frames,
    }


def _changed_error(name: str, size: int | None, indexed_size: int | None) -> CorruptStream:
    return CorruptStream(
        f"{name} was changed since the loader was built (it has {size} bytes now, and had {indexed_size} then): "
        "build the loader again",
        address=name,
    )


def is_video(path: str) -> bool:
    """Return whether a path has the extension of a video."""
    return _VIDEO_NAME.search(path) is not None


def _summarize_in_threads(
    summarize: Callable[[SourceFile], _IndexedFile], files: Sequence[SourceFile], stop: threading.Event
) -> list[_IndexedFile]:
    """Summarize all files in a few threads. If some fail, raise the first error in their order, with their number."""

    def summarize_unless_stopped(file: SourceFile) -> _IndexedFile:
        if stop.is_set():
            raise ClosedError("indexing the videos was cancelled")
        return summarize(file)

    last_log = time.monotonic()
    max_threads = (os.cpu_count() or 1) if all(file.info is None for file in files) else _MAX_REMOTE_INDEXERS
    started: dict[SourceFile, Future[_IndexedFile]] = {}  # a video in a store that is listed twice is fetched once
    with ThreadPoolExecutor(max_workers=min(len(files), max_threads), thread_name_prefix="index") as pool:
        futures: list[Future[_IndexedFile]] = []
        for file in files:
            future = started.get(file) or pool.submit(summarize_unless_stopped, file)
            if file.info is not None:
                started[file] = future
            futures.append(future)
        for count, _ in enumerate(as_completed(futures), 1):
            if time.monotonic() - last_log > _LOG_INTERVAL_S:
                last_log = time.monotonic()
                _log.info("indexed %d of %d videos", count, len(files))
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        first = errors[0]
        if len(errors) > 1 and isinstance(first, StreamloaderError):
            first.args = (f"{first.message} [{len(errors)} of {len(files)} videos cannot be used; this is the first]",)
        raise first
    return [future.result() for future in futures]
