"""Videos as streams of frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio.to_thread
import numpy as np
from typing_extensions import override

from streamloader.arguments import check_options
from streamloader.errors import ConfigError, CorruptStream, StreamloaderError
from streamloader.media.video.index import VerifyLevel
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.selection import Selection
from streamloader.stores.addresses import Address, Addresses, FileKeys, as_addresses
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import StreamTransform, Transform
from streamloader.streams.base import (
    PreparedStream,
    SourceSizes,
    Stream,
    StreamDataset,
    decoder_threads,
    parses_in_processes,
    skips_unreadable,
)
from streamloader.streams.frames import (
    FrameStream,
    describe_settings,
    frame_fields,
    make_pixels_square,
    require_common_size,
    validate_pix_fmt,
    validate_size,
)
from streamloader.streams.indexing import (
    log_unusual_videos,
    make_index_settings,
    make_videos,
    show_indexing,
    validate_unreadable,
)
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.sound import SOUND_FIELDS, AudioOptions, FrameSound
from streamloader.streams.source_files import PreparedFile, build_media_table, measure_sources, resolve_media
from streamloader.streams.unreadable import SkippedVideo, ends_indexing, settle_errors
from streamloader.streams.video_names import find_videos
from streamloader.streams.video_sound import VideoSound, index_sounds
from streamloader.values import Array, Field, StreamInfo

if TYPE_CHECKING:
    from streamloader.media.audio.index_cache import BulkAudioIndexer
    from streamloader.media.video.bulk_indexer import BulkIndexer
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.index import VideoIndex
    from streamloader.media.video.reader import FrameReader, VideoFrame
    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.streams.index_source import IndexSource

__all__ = ["VideoStreams"]

_log = logging.getLogger("streamloader")


class VideoStreams(StreamDataset):
    """One stream for each video file. The steps are exactly the frames that the decoder shows, in their order.

    Fields: ``"data"``, uint8 (H, W, 3) for ``rgb24``, (3, H, W) for ``rgbp`` and (H, W, 1) for ``gray`` (luma stretched
    to 0..255); for ``yuv420p``, ``"y"`` (H, W, 1), ``"u"`` and ``"v"`` (ceil(H/2), ceil(W/2), 1) in the file's matrix
    and range, which ``"matrix"`` and ``"range"`` contain for each step, uint8: MatrixCoefficients (6 if the file does
    not specify one that FFmpeg knows) and VideoFullRangeFlag (0 or 1) of ITU-T H.273, for
    :func:`streamloader.yuv_to_rgb` and ``batch.rgb()``. RGB is converted with the file's own matrix and range. Frames
    are cropped and turned upright if the file specifies that. Times are those in the file, in seconds after its first
    frame.

    Args:
        paths: A path, a glob pattern (``**`` for any depth), a directory (all files in it with a video extension, at
            any depth), or a list of these. Files of a pattern or directory are sorted by code point. Addresses in
            stores (``ssh://host/videos/*.mp4``, ``s3://``, ``https://``, ...) can be used like paths and mixed with
            them; see :func:`streamloader.stores.open_store`. Such videos are decoded while they are fetched.
        size: (height, width) in pixels to which frames are scaled (bilinear). Defaults to their own size, which must be
            the same for all videos.
        pix_fmt: Pixel format: ``"rgb24"``, ``"rgbp"`` (planes R, G and B, which FFmpeg scales faster and more exactly),
            ``"gray"`` or ``"yuv420p"``. Defaults to ``"rgb24"``.
        max_frames: Maximum number of steps of a stream. Defaults to no limit.
        random_start: Whether each stream starts at a random frame that leaves `max_frames` steps, drawn again in every
            epoch. The number of steps does not change, so all epochs have the same length. Defaults to False.
        stride: Number of frames from one step to the next. Defaults to 1.
        fps: Frames per second (int, float, Fraction or "30000/1001") to which videos are resampled first: step k shows
            the last frame that starts at k/fps or earlier. Defaults to using every frame of the file once.
        transform: Function ``transform(frames, rng)`` that receives uint8 (n, H, W, C), with varying n, and returns an
            array (n, ...) whose shape and dtype never change (a call on zeros determines them). `rng` is the same for
            every call of one stream, so values drawn from it are constant for the stream. All frames must be treated
            alike, because n depends on the loader. Only for ``rgb24`` and ``gray``. Defaults to None.
        audio: Whether each step also has the samples of its frame, or :class:`streamloader.AudioOptions`. Fields
            ``"audio"`` (block, channels) and ``"audio_length"``, int32: the number of its samples, with zeros after
            them. A step has the samples from its time up to that of the next step, so that the samples of all steps
            are the sound without gaps and overlaps, also with `stride` and `fps`. Sample j of a step is at its time
            plus j / sample rate, within a sample and the 4 ms by which timestamps of packets may be inexact. Steps
            before the sound begins and after it ends have no samples (``audio_length`` is 0), as have all steps of a
            video without sound. Defaults to False.
        damaged: ``"raise"`` raises an error for truncated or damaged files, and for frames of which FFmpeg conceals
            parts that it cannot decode; ``"keep"`` uses the frames that FFmpeg shows of them. For that, all frames of
            every file are decoded once when it is indexed, whatever `verify` is. Defaults to ``"raise"``.
        stream: Number of the video stream among those of each file, from 0, cover pictures and thumbnails left out.
            Defaults to the one that the container marks as default, else the first one; files with several are named
            in the log.
        square_pixels: Whether to scale the width of frames whose pixels are not square (``pixel_aspect`` in
            :attr:`StreamInfo.extra` is their width divided by their height), so that they become square. Not together
            with `size`. Defaults to False.
        max_pixels: Maximum number of pixels of a frame, before `size` is applied. Files with larger frames are refused
            before memory is allocated for them. Defaults to 2^26, which is 8192 x 8192.
        verify: Proof of each index when it is made. The reader compares every frame with its index in any case, so an
            index that is wrong is an error when the frame is played. ``"tables"`` reads the tables of a file or its
            packets, and decodes only where these are known not to tell which frames the decoder shows; it proves that
            the file opens, its size, and what its packets declare. ``"ends"`` also decodes the first frames and the
            last group of pictures; it proves that the frames there are those of the index, and that the file is
            complete. ``"frames"`` decodes all frames; it proves all of the index. Defaults to ``"tables"``.
        unreadable: ``"raise"`` raises one error that lists all files that cannot be used; ``"skip"`` leaves them out
            and lists them in :attr:`skipped`, as does ``on_error="skip"`` of a loader. Errors of a server that may be
            gone a moment later are raised in both cases. None, the
            default, raises for them too, but leaves out directories that may not be read, with one warning.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    Indexes are cached for each version of a file in the user's cache folder, or in ``$STREAMLOADER_CACHE``. Files that
    are not in the cache are indexed on all cores, with a progress bar on a terminal; an interrupted run continues where
    it stopped. To index a video in a store, all of it is read once; of an MP4 or MOV file, usually only a small part.
    :meth:`from_index` opens many videos from one file without looking at them.
    Keys of streams are their addresses without user names, passwords, and the values of query parameters
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
        pix_fmt: Literal["rgb24", "rgbp", "gray", "yuv420p"] = "rgb24",
        max_frames: int | None = None,
        random_start: bool = False,
        stride: int = 1,
        fps: float | str | Fraction | None = None,
        transform: Transform | None = None,
        *,
        audio: bool | AudioOptions = False,
        damaged: Literal["raise", "keep"] = "raise",
        stream: int | None = None,
        square_pixels: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        verify: VerifyLevel = "tables",
        unreadable: Unreadable = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = as_addresses(paths)
        self._pix_fmt = validate_pix_fmt(pix_fmt, transform)
        self._size = None if size is None else validate_size(size)
        self._square_pixels = bool(square_pixels)
        if self._square_pixels and size is not None:
            raise ConfigError("square_pixels=True changes the size of frames, which size= sets: leave one of them out")
        self._index_settings = make_index_settings(damaged, verify, max_pixels, stream)
        self._unreadable = validate_unreadable(unreadable)
        self._skipped: tuple[SkippedVideo, ...] = ()
        self._source: IndexSource | None = None
        self._storage_options = check_options("storage_options", storage_options)
        self._secret_addresses: dict[str, str] = {}  # by key, where the address contains secrets
        self._transform = transform
        self._selection = Selection.from_options(max_frames, random_start, stride, fps)
        self._sound = VideoSound.from_options(audio, self._selection, damaged, verify)
        self._fields: dict[str, Field] | None = None
        if self._size is not None and transform is None and self._sound is None:
            self._fields = frame_fields(pix_fmt, *self._size)

    @classmethod
    def from_index(cls, address: Address, **options: Any) -> Self:
        """Return the videos of an index file, which :func:`streamloader.index_videos` has made.

        A million videos are described in about a second, because nothing but the file is read. A video that is missing
        or was changed is an error when it is played. Keys of streams are the addresses in the file; those of videos
        below its folder are relative, so that keys and states stay valid when all of them are moved together.

        The author of an index file chooses what is opened. An absolute address in it may name a file of this machine
        only if the index file is on this machine too, or if ``storage_options`` have an entry for it
        (``{"file:///data": {}}``). An address on another server than that of the index file is opened anonymously, or
        needs such an entry (``{"s3://bucket": {}}``).

        Args:
            address: Path of the file, or its address in a store, from which it is fetched once for each version.
            **options: Arguments of :class:`VideoStreams` except `damaged`, `stream`, `verify` and `unreadable`, with
                which the file was made. ``storage_options`` may also be a mapping from address prefixes to options.

        Raises:
            ConfigError: If an option is not allowed here.
        """
        from streamloader.streams.index_source import IndexSource

        if fixed := sorted({"damaged", "stream", "verify", "unreadable"} & options.keys()):
            raise ConfigError(f"{', '.join(fixed)}: the index file was made with these settings, so leave them out")
        dataset = cls(address, **options)
        if dataset._sound is not None:
            dataset._sound = dataset._sound.complete()
        (text,) = dataset._paths
        dataset._source = IndexSource(text, dataset._storage_options, dataset._index_settings.max_pixels)
        return dataset

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
        settings |= {"damaged": self._index_settings.damaged}
        if self._index_settings.stream is not None:
            settings |= {"stream": self._index_settings.stream}
        if self._square_pixels:
            settings |= {"square_pixels": True}
        return settings if self._sound is None else settings | {"audio": self._sound.describe()}

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The files that the last call of :meth:`index` left out because they cannot be used, in their order."""
        return self._skipped

    async def index(self) -> Sequence[StreamInfo]:
        """Index all files (concurrently, with a cache), and describe one stream for each, in order.

        For a loader with worker processes, child processes index the files that are not in the cache. Without one, they
        do so for more than a few files.
        """
        if self._source is not None:
            return await anyio.to_thread.run_sync(self._read_index_file, self._source, abandon_on_cancel=True)
        from streamloader.media.video.bulk_indexer import BulkIndexer

        indexer = BulkIndexer(
            self._index_settings,
            in_processes=parses_in_processes(),
            is_fatal=ends_indexing,
            show_progress=show_indexing,
            sink=None if self._sound is None else self._sound.take_index,
        )
        sound_indexer = None
        if self._sound is not None:
            sound_indexer = self._sound.make_indexer(in_processes=parses_in_processes())
        skip = self._unreadable == "skip" or skips_unreadable()
        try:
            return await anyio.to_thread.run_sync(self._index, indexer, sound_indexer, skip, abandon_on_cancel=True)
        finally:
            indexer.close()  # after a cancellation, only files that are being read in this process are finished
            if sound_indexer is not None:
                sound_indexer.close()

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of the files. Their bytes are those of whole files, also if options select few frames."""
        if self._source is not None:
            remote = np.fromiter((self._source.is_in_store(info.key) for info in streams), bool, len(streams))
            return SourceSizes(self._source.read_sizes(streams.extra_integers("entry")), remote)
        return measure_sources(streams)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one video. `rng` determines its start, and is the source of the random generator of `transform`."""
        return await self._open_with(info, rng, None)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the first bytes of a video in a store."""
        if self._source is not None:
            if not self._source.is_in_store(info.key):
                return None
        elif "path" in info.extra or info.extra["version"] is None:  # local, or its version must be checked first
            return None
        file = await in_lane_thread(self._start_fetch, info)
        return None if file is None else PreparedFile(partial(self._open_with, info), file)

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

    def _index(self, indexer: BulkIndexer, sound_indexer: BulkAudioIndexer | None, skip: bool) -> StreamTable:
        found = UnreadableReport("skip" if skip else self._unreadable)
        files = find_videos(self._paths, self._storage_options, found)
        found.check(files)
        keys = FileKeys.of_files(files)
        videos = make_videos(files, self._storage_options)
        records, versions, errors = indexer.run(videos)
        sounds = None
        if sound_indexer is not None:
            sounds = index_sounds(sound_indexer, videos, errors)
        steps = self._selection.count_all_steps(records)
        for number in self._selection.find_leaps(steps, records).tolist():
            try:
                self._selection.check_steps(int(steps[number]), int(records["frames"][number]), keys.names[number])
            except StreamloaderError as error:
                errors.setdefault(number, error)
        self._skipped = settle_errors(found, errors, keys.names, keys.keys)
        if errors:
            kept = [number for number in range(len(files)) if number not in errors]
            keys, files = keys.select(kept), [files[number] for number in kept]
            records, versions, steps = records[kept], versions[kept], steps[kept]
            sounds = None if sounds is None else sounds[kept]
        if self._sound is not None:
            self._sound.resolve(keys.names, sounds)
        self._prepare_fields(keys.names, records)
        log_unusual_videos(keys.names, records, self._index_settings.stream)
        self._secret_addresses = keys.secret_addresses
        facts = {"pixel_aspect": _pixel_aspects(records)}
        return build_media_table(keys, files, steps, records["frames"], versions, count_name="frames", facts=facts)

    def _read_index_file(self, source: IndexSource) -> StreamTable:
        columns = source.read_columns()
        self._index_settings = replace(source.settings, max_pixels=self._index_settings.max_pixels)
        steps = self._selection.count_all_steps(columns.records)
        for number in self._selection.find_leaps(steps, columns.records)[:1].tolist():
            frames = int(columns.records["frames"][number])
            self._selection.check_steps(int(steps[number]), frames, columns.addresses[number])
        self._prepare_fields(columns.addresses, columns.records)
        extra: dict[str, Any] = {
            "entry": columns.ids,
            "frames": columns.records["frames"].astype(np.int32),
            "pixel_aspect": _pixel_aspects(columns.records),
        }
        return StreamTable(columns.addresses, steps, extra)

    def _prepare_fields(self, names: Sequence[str], records: Array) -> None:
        """Determine the fields of a step, by the common size of all videos if no size is given."""
        size = self._size
        if size is None:
            height, width = (records[name].astype(np.int64) for name in ("height", "width"))
            if self._square_pixels:
                height, width = make_pixels_square(
                    height, width, *(records[name].astype(np.int64) for name in ("aspect_width", "aspect_height"))
                )
            sizes = np.stack([height, width], axis=1)
            differing = np.flatnonzero((sizes != sizes[0]).any(axis=1))[:1].tolist()
            size = require_common_size((names[n], (int(sizes[n, 0]), int(sizes[n, 1]))) for n in [0, *differing])
        self._fields = frame_fields(self._pix_fmt, *size, self._transform)
        if self._sound is not None:
            self._fields |= self._sound.fields

    def _open(
        self, info: StreamInfo, start_draw: float, transform_key: Array, file: VideoFile | None, threads: int
    ) -> _VideoStream:
        from streamloader.media.video.convert import Converter
        from streamloader.media.video.reader import FrameReader
        from streamloader.media.video.remote import open_video_file

        sound = None
        try:
            video, index = self._load_indexed(info)
            if len(index) != info.extra["frames"]:
                raise CorruptStream(
                    f"{video} has {len(index)} frames here, but had {info.extra['frames']} where it was indexed: "
                    "the versions of FFmpeg differ, or the file does",
                    address=str(video),
                )
            steps = self._selection.select_frames(index, start_draw)
            if self._sound is not None:
                file = file or open_video_file(video, index.initial_spans)
                sound = self._sound.open(video, file, index, start_draw, info.key)
            owned_file, file = file, None
            reader = FrameReader(
                video,
                index,
                info.key,
                owned_file=owned_file,
                selected=steps[0],
                threads=threads,
                max_pixels=self._index_settings.max_pixels,
                keeps_concealed=self._index_settings.damaged == "keep",
            )
        except BaseException as error:
            if sound is not None:
                sound.close()
            if isinstance(error, StreamloaderError):
                error.stream = info.key
            raise
        finally:
            if file is not None:
                file.close()
        transform = None
        if self._transform is not None:
            transform = StreamTransform(self._transform, transform_key, self.fields["data"], info.key)
        size = self._size or index.upright_size
        if self._square_pixels:
            aspect = index.upright_pixel_aspect
            height, width = make_pixels_square(*size, aspect.numerator, aspect.denominator)
            size = height, int(width)
        converter = Converter(self._pix_fmt, *size, index.orientation, name=str(video))
        names = [name for name in self.fields if name not in SOUND_FIELDS]
        reopen = None
        if self._index_settings.damaged == "keep" and not index.damaged:
            reopen = partial(self._reopen_damaged, video, info.key, start_draw)
        return _VideoStream(reader, steps, converter, names, transform, reopen=reopen, sound=sound)

    def _reopen_damaged(
        self, video: Video, key: str, start_draw: float
    ) -> tuple[FrameReader, tuple[Array, Array], FrameSound | None]:
        """Open a video whose index does not know that it is damaged, with the frames that can be decoded."""
        from streamloader.media.video.indexer import index_video
        from streamloader.media.video.reader import FrameReader
        from streamloader.media.video.remote import open_video_file

        settings = self._index_settings
        max_pixels = settings.max_pixels
        index = index_video(video, damaged="keep", max_pixels=max_pixels, stream=settings.stream)
        steps = self._selection.select_frames(index, start_draw)
        file = open_video_file(video, index.initial_spans)
        sound = None
        try:
            if self._sound is not None:
                sound = self._sound.open(video, file, index, start_draw, key)
            owned_file, file = file, None
            reader = FrameReader(
                video,
                index,
                key,
                owned_file=owned_file,
                selected=steps[0],
                max_pixels=max_pixels,
                keeps_concealed=True,
            )
        except BaseException:
            if sound is not None:
                sound.close()
            raise
        finally:
            if file is not None:
                file.close()
        return reader, steps, sound

    def _load_indexed(self, info: StreamInfo) -> tuple[Video, VideoIndex]:
        """Return the video of a stream, if it is still the one that was indexed, and its index."""
        from streamloader.media.video.index_cache import load_index

        if self._source is not None:
            return self._source.load(info.key, info.extra["entry"], info.extra["frames"])
        video, version = resolve_media(info, self._secret_addresses, self._storage_options)
        settings = self._index_settings
        return video, load_index(
            video,
            damaged=settings.damaged,
            version=version,
            max_pixels=settings.max_pixels,
            verify=settings.verify,
            stream=settings.stream,
        )


class _VideoStream(FrameStream):
    """Reads the selected frames of one file.

    Args:
        reader: Reader of the file, which the stream closes.
        steps: Frame number (int64) and time in seconds (float64) of each step.
        converter: Converter of the frames, which the stream closes.
        names: Names of the fields.
        transform: The user's transform, or None.
        reopen: Function that returns reader, steps and sound of the frames that can be decoded, in case that the file
            proves to be damaged. None if damage is an error, or if the index knows of it.
        sound: Sound of the steps, which the stream closes. Defaults to none.
    """

    def __init__(
        self,
        reader: FrameReader,
        steps: tuple[Array, Array],
        converter: Converter,
        names: Sequence[str],
        transform: StreamTransform | None,
        *,
        reopen: Callable[[], tuple[FrameReader, tuple[Array, Array], FrameSound | None]] | None,
        sound: FrameSound | None = None,
    ) -> None:
        self._reader = reader
        self._sound = sound
        self._numbers, self._times = steps
        self._reopen = reopen
        super().__init__(len(self._numbers), converter, names, transform, waits_for_bytes=reader.is_remote)

    def times(self, start: int, out: Array) -> None:
        """Write the times of the steps from `start` on, in seconds after the file's first frame."""
        times = self._times[start : start + len(out)]
        out[: len(times)] = times

    @override
    def _read_frames(self, start: int, end: int) -> Iterator[VideoFrame]:
        step = start
        while step < min(end, self._length):
            try:
                for number in self._numbers[step : min(end, self._length)].tolist():
                    frame = self._reader.read_frame(number)
                    step += 1
                    yield frame
            except CorruptStream as error:
                if self._reopen is None:
                    raise
                self._leave_out_damage(self._reopen, step, error)

    def _leave_out_damage(
        self,
        reopen: Callable[[], tuple[FrameReader, tuple[Array, Array], FrameSound | None]],
        step: int,
        error: CorruptStream,
    ) -> None:
        """Go on with the frames that can be decoded, because the file has changed since it was indexed.

        The frames before the damage are the same. Those after it follow without a gap, so that the stream ends earlier.

        Raises:
            StreamloaderError: If no frame can be decoded.
        """
        frames, length = len(self._reader.index), self._length
        self._reopen = None
        reader, (self._numbers, self._times), sound = reopen()
        old_reader, self._reader = self._reader, reader
        old_reader.close()
        if self._sound is not None:
            self._sound.close()
        self._sound = sound
        self._length = min(length, len(self._numbers))
        _log.warning(
            "stream %s (%s) is damaged at frame %d, which its index does not know: %d of its %d frames can be decoded, "
            "and the stream has %d steps instead of %d. Step %d is the next one",
            error.stream, error.address, error.offset or 0, len(reader.index), frames, self._length, length, step,
        )  # fmt: skip

    @override
    def _read(self, out: Mapping[str, Array], count: int) -> int:
        start = self._step
        count = super()._read(out, count)
        if self._sound is None or not count:
            return count
        try:
            self._sound.fill(out, start, count)
        except StreamloaderError:
            count, error = self._sound.fill_up_to_error(out, start, count)
            self._step, self._error = start + count, error or self._error
            if error is not None and not count:
                raise error from None
        return count

    @override
    def _check_end(self) -> None:
        self._reader.check_end()

    @override
    def _close(self) -> None:
        self._reader.close()
        if self._sound is not None:
            self._sound.close()
        super()._close()


def _pixel_aspects(records: Array) -> Array:
    """Return the width of a pixel of each video divided by its height, float64 (n,)."""
    ratios: Array = records["aspect_width"] / records["aspect_height"]
    return ratios
