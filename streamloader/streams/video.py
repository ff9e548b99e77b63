"""Videos as streams of frames."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio.to_thread
import numpy as np

from streamloader.errors import (
    ClosedError,
    ConfigError,
    CorruptStream,
    StreamloaderError,
)
from streamloader.media.video.selection import Selection
from streamloader.redaction import redact
from streamloader.stores.addresses import Addresses, as_addresses, expand, unique_keys
from streamloader.stores.io_thread import shared_store
from streamloader.stores.registry import split_address
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
from streamloader.values import Array, Field, ObjectInfo, StreamInfo

if TYPE_CHECKING:
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.index import VideoIndex
    from streamloader.media.video.reader import FrameReader, VideoFrame
    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.stores.addresses import Found

__all__ = ["VideoStreams", "is_video"]

_VIDEO_NAME: Final = re.compile(
    r"\.(3g2|3gp|asf|avi|divx|dv|f4v|flv|gif|h264|h265|hevc|ivf|m1v|m2t|m2ts|m2v|m4v|mjpe?g|mkv|mov|mp4|mpe|mpeg|mpg|mts"
    r"|mxf|nut|ogm|ogv|rm|rmvb|ts|vob|webm|wmv|y4m)$",
    re.IGNORECASE,
)
_AT_ONCE: Final = 32  # videos in stores that are looked at side by side: looking is mostly waiting
_SAY_EVERY: Final = 5.0  # seconds between lines of the log while files are indexed
_log = logging.getLogger("streamloader")


class VideoStreams(StreamDataset):
    """One stream for each video file; a step is a frame, exactly those that the decoder shows, in their order.

    Fields: ``"data"``, uint8 (H, W, 3) for ``rgb24`` and (H, W, 1) for ``gray`` (luma stretched to 0..255); for
    ``yuv420p`` ``"y"`` (H, W, 1), ``"u"`` and ``"v"`` (ceil(H/2), ceil(W/2), 1) in the matrix and range of the file.
    RGB is made with the file's own matrix and range; videos that say how they are to be turned come upright.
    Times are those of the frames in the file: seconds after its first frame.

    Args:
        paths: a path, a glob pattern (``**`` for any depth), a directory (all files in it, at any depth, whose
            ending is one of a video), or a list of these. A pattern or directory is sorted by code point. Addresses
            (``ssh://host/videos/*.mp4``, ``s3://``, ``https://``, ...) work like paths, also beside them: see
            :func:`streamloader.stores.open_store`. Such videos are decoded while they are fetched.
        size: (height, width) to which frames are scaled (bilinear). None keeps them as they are; then all videos
            must have the same size.
        pix_fmt: ``"rgb24"``, ``"gray"`` or ``"yuv420p"``.
        max_frames: steps of a stream at most.
        random_start: begin each stream at a random frame from which `max_frames` steps are still there, drawn anew
            every epoch. The number of steps is what it is without: epochs stay equal.
        stride: every how many frames a step is taken.
        fps: frames per second (int, float, Fraction or "30000/1001") to which videos are resampled first: step k
            shows the last frame that begins not after k/fps. None takes every frame of the file once.
        transform: ``transform(frames, rng)`` gets uint8 (n, H, W, C), n varying, and returns (n, ...) of a shape and
            dtype that never change (they are learned by a call on zeros). `rng` is the same at every call for one
            stream, so what is drawn from it holds for its whole life; treat all frames alike, n depends on the
            loader. Not with ``yuv420p``.
        damaged: ``"raise"`` refuses files that break off or cannot be decoded; ``"keep"`` plays what decodes of them.
        storage_options: keyword arguments of :func:`streamloader.stores.open_store`, for all addresses.

    Index results are kept for each version of a file in the user's cache folder, or in ``$STREAMLOADER_CACHE``. To be
    indexed, videos in stores are read once as a whole, but for MP4 and MOV files, of which a small part will mostly do.
    Keys of streams are their addresses, without user names, passwords and signatures.

    Raises:
        ConfigError: the arguments do not go together, or `transform` does not fit.
        StreamNotFound: a path does not exist, or a directory or pattern holds no video (from :meth:`index`).
        UnreadableStream: a file holds no video that can be decoded.
        CorruptStream: a file breaks off or is damaged, or changed since it was indexed; ``offset`` is the frame.
        StoreError: bytes of a video in a store could not be had; ObjectChanged where it is another one by now.
        FrameSizeError: videos differ in size and `size` was not given.
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
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = as_addresses(paths)
        self._pix_fmt = checked_pix_fmt(pix_fmt, transform)
        if damaged not in ("raise", "keep"):
            raise ConfigError(f'damaged must be "raise" or "keep", got {damaged!r}')
        self._size = None if size is None else checked_size(size)
        self._damaged: str = damaged
        self._storage_options = None if storage_options is None else dict(storage_options)
        self._secret: dict[str, str] = {}  # key -> address, where the address says more than may be shown
        self._transform = transform
        self._selection = Selection.checked(max_frames, random_start, stride, fps)
        self._fields: dict[str, Field] | None = None
        if self._size is not None and transform is None:
            self._fields = frame_fields(pix_fmt, *self._size)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Name -> shape and dtype of one step."""
        if self._fields is None:
            raise ConfigError("the frame size is known once index() has looked at the files; or give size=")
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was chosen of frames and pixels; of `transform` its qualified name."""
        return chosen_settings(self._pix_fmt, self._size, self._selection, self._transform) | {"damaged": self._damaged}

    async def index(self) -> Sequence[StreamInfo]:
        """Look at all files (in threads, through the cache), and return one stream for each, in order."""
        stop = threading.Event()
        try:
            return await anyio.to_thread.run_sync(self._index, stop, abandon_on_cancel=True)
        finally:
            stop.set()  # a cancelled call leaves no work behind but that of the files that are being read

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one video. `rng` draws its start and is what `transform` draws from."""
        return await self._begin(info, rng, None)

    async def expect(self, info: StreamInfo) -> Expected | None:
        """Begin to fetch what opening a video in a store takes."""
        if "path" in info.extra or info.extra["version"] is None:  # local, or one that has to be looked at first
            return None
        file = await in_lane_thread(self._prepare, info)
        return None if file is None else _ExpectedVideo(partial(self._begin, info), file)

    async def _begin(self, info: StreamInfo, rng: np.random.Generator, file: VideoFile | None) -> Stream:
        start_draw, transform_key = float(rng.random()), rng.integers(0, 1 << 64, 2, np.uint64)
        return await in_lane_thread(self._open, info, start_draw, transform_key, file)

    def _prepare(self, info: StreamInfo) -> VideoFile | None:
        from streamloader.media.video.remote import open_bytes

        try:
            video, index = self._found_again(info)
            return open_bytes(video, index.opening)
        except StreamloaderError:  # it is raised again, by open
            return None

    def _index(self, stop: threading.Event) -> StreamTable:
        found = expand(self._paths, is_video, self._storage_options)
        names = [file.address if file.info is None else redact(file.address) for file in found]
        looks = _in_threads(self._look, found, stop)
        size = self._size or common_size([(name, look.size) for name, look in zip(names, looks, strict=True)])
        self._fields = frame_fields(self._pix_fmt, *size, self._transform)
        keys = unique_keys(names)
        self._secret = {
            key: file.address for key, name, file in zip(keys, names, found, strict=True) if name != file.address
        }
        return _table(keys, names, found, looks)

    def _look(self, file: Found) -> _Look:
        from streamloader.media.video.index_cache import cached_index
        from streamloader.media.video.source import file_version

        if file.info is None:
            version = file_version(file.address)
            index = cached_index(file.address, damaged=self._damaged, version=version)
        else:
            version = 0, 0
            index = cached_index(self._remote(file.address, file.info), damaged=self._damaged)
        return _Look(version, len(index), self._selection.steps(index), index.shown_size)

    def _remote(self, address: str, info: ObjectInfo) -> Video:
        from streamloader.media.video.remote import RemoteVideo

        return RemoteVideo(address, info, self._storage_options)

    def _open(self, info: StreamInfo, start_draw: float, transform_key: Array, file: VideoFile | None) -> _VideoStream:
        from streamloader.media.video.convert import Converter
        from streamloader.media.video.reader import FrameReader

        try:
            video, index = self._found_again(info)
            if len(index) != info.extra["frames"]:
                raise CorruptStream(
                    f"{video} has {len(index)} frames here, but had {info.extra['frames']} where it was indexed: "
                    "the versions of FFmpeg differ, or the file does",
                    address=str(video),
                )
            own, file = file, None
            reader = FrameReader(video, index, info.key, own=own)
        except StreamloaderError as error:
            error.stream = info.key
            raise
        finally:
            if file is not None:
                file.close()
        augment = None
        if self._transform is not None:
            augment = Augment(self._transform, transform_key, self.fields["data"], info.key)
        steps = self._selection.choose(index, start_draw)
        size = self._size or index.shown_size
        converter = Converter(self._pix_fmt, *size, index.turn)
        return _VideoStream(reader, steps, converter, list(self.fields), augment)

    def _found_again(self, info: StreamInfo) -> tuple[Video, VideoIndex]:
        """Return the video of a stream, if it is still the one that was indexed, and its index."""
        from streamloader.media.video.index_cache import cached_index
        from streamloader.media.video.source import file_version

        extra = info.extra
        if "path" in extra:
            path = extra["path"]
            version = file_version(path)
            if version != (extra["bytes"], extra["modified"]):
                raise _changed(path, version[0], extra["bytes"])
            return path, cached_index(path, damaged=self._damaged, version=version)
        address = self._secret.get(info.key, extra["address"])
        path = split_address(address)[1]
        known = ObjectInfo(path, extra["size"], extra["version"], extra["modified"])
        if known.version is None:  # then reading does not notice that it is another one
            with shared_store(address, self._storage_options)[0] as store:
                now = store.head(path)
            if (now.size, now.modified) != (known.size, known.modified):
                raise _changed(extra["address"], now.size, known.size)
        video = self._remote(address, known)
        return video, cached_index(video, damaged=self._damaged)


class _ExpectedVideo(Expected):
    """A video in a store whose first bytes are on their way."""

    def __init__(
        self, begin: Callable[[np.random.Generator, VideoFile | None], Awaitable[Stream]], file: VideoFile
    ) -> None:
        self._begin = begin
        self._file = file

    @property
    def ready(self) -> bool:  # type: ignore[override]
        return self._file.remote.idle

    async def open(self, rng: np.random.Generator) -> Stream:
        if self._file.remote.sound:
            return await self._begin(rng, self._file)
        self._file.close()  # what went wrong a while ago may be over
        return await self._begin(rng, None)

    def release(self) -> None:
        self._file.close()


class _VideoStream(FrameStream):
    """Reads chosen frames of one file."""

    def __init__(
        self,
        reader: FrameReader,
        steps: tuple[Array, Array],
        converter: Converter,
        names: Sequence[str],
        augment: Augment | None,
    ) -> None:
        self._reader = reader
        self._numbers, self._times = steps
        super().__init__(len(self._numbers), converter, names, augment)

    def times(self, start: int, out: Array) -> None:
        """Write when the frames of the steps from `start` on are shown, in seconds after the file's first frame."""
        known = self._times[start : start + len(out)]
        out[: len(known)] = known

    def _frames(self, start: int, stop: int) -> Iterator[VideoFrame]:
        return map(self._reader.frame, self._numbers[start:stop].tolist())

    def _finish(self) -> None:
        self._reader.finish()

    def _close(self) -> None:
        self._reader.close()
        super()._close()


@dataclass(frozen=True, slots=True)
class _Look:
    version: tuple[int, int]
    frames: int
    steps: int
    size: tuple[int, int]


def _table(keys: list[str], names: list[str], found: Sequence[Found], looks: Sequence[_Look]) -> StreamTable:
    """Return the streams, with what opening them takes."""
    steps = [look.steps for look in looks]
    local = [file.info is None for file in found]
    extras = [_extra(*each) for each in zip(names, found, looks, strict=True)]
    if any(local) and not all(local):
        return StreamTable.of([StreamInfo(*each) for each in zip(keys, steps, extras, strict=True)])
    return StreamTable(keys, steps, {column: [extra[column] for extra in extras] for column in extras[0]})


def _extra(name: str, file: Found, look: _Look) -> dict[str, Any]:
    if file.info is None:
        return {"path": name, "bytes": look.version[0], "modified": look.version[1], "frames": look.frames}
    info = file.info
    return {
        "address": name,
        "size": info.size,
        "version": info.version,
        "modified": info.modified,
        "frames": look.frames,
    }


def _changed(name: str, now: int | None, then: int | None) -> CorruptStream:
    return CorruptStream(
        f"{name} was changed since the loader was built (it has {now} bytes now, {then} then): build the loader again",
        address=name,
    )


def is_video(path: str) -> bool:
    """Say whether the ending of a path is one of a video."""
    return _VIDEO_NAME.search(path) is not None


def _in_threads(look: Callable[[Found], _Look], files: Sequence[Found], stop: threading.Event) -> list[_Look]:
    """Look at all files on a few threads; then raise the first error in their order, saying how many there are."""

    def look_unless_stopped(file: Found) -> _Look:
        if stop.is_set():
            raise ClosedError("looking at the videos was cancelled")
        return look(file)

    said = time.monotonic()
    most = (os.cpu_count() or 1) if all(file.info is None for file in files) else _AT_ONCE
    begun: dict[Found, Future[_Look]] = {}  # of videos in stores: each is fetched once, however often it is named
    with ThreadPoolExecutor(max_workers=min(len(files), most), thread_name_prefix="index") as pool:
        done: list[Future[_Look]] = []
        for file in files:
            future = begun.get(file) or pool.submit(look_unless_stopped, file)
            if file.info is not None:
                begun[file] = future
            done.append(future)
        for count, _ in enumerate(as_completed(done), 1):
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                _log.info("indexed %d of %d videos", count, len(files))
    errors = [error for future in done if (error := future.exception()) is not None]
    if errors:
        first = errors[0]
        if len(errors) > 1 and isinstance(first, StreamloaderError):
            first.args = (f"{first.message} [{len(errors)} of {len(files)} videos cannot be used; this is the first]",)
        raise first
    return [future.result() for future in done]
