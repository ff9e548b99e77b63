"""Folders of images, and animations, as streams of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, Final, Literal, Self

import anyio.to_thread
import numpy as np

from streamloader.arguments import check_options
from streamloader.errors import ConfigError, CorruptStream, StreamloaderError
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.media.video.selection import Selection
from streamloader.stores.addresses import Addresses, SourceFile, as_addresses
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import StreamTransform, Transform
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset, skips_unreadable
from streamloader.streams.frames import FrameStream, describe_settings, frame_fields, validate_pix_fmt, validate_size
from streamloader.streams.image_files import ImageFiles, ImageSource, StoredImages
from streamloader.streams.image_index import ImageIndex, ImageIndexer, image_times
from streamloader.streams.image_playing import AnimationStream, ImageFolderStream, PreparedImages
from streamloader.streams.image_probe import parse_image
from streamloader.streams.image_times import ImageTimesOption, TimeUnit, describe_times, validate_times
from streamloader.streams.indexing import validate_unreadable
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array, Field, StreamInfo

__all__ = ["ImageStreams"]

_MAX_PREPARED_IMAGES: Final = 4


class ImageStreams(StreamDataset):
    """One stream for each folder of images, and for each animation. The steps are the images in their natural order.

    Fields are those of :class:`~streamloader.VideoStreams`. Formats are JPEG, PNG, WebP, TIFF and BMP, and GIF, APNG
    and WebP as animations, recognized by their bytes. Images are turned upright if Exif data says so; alpha channels
    are dropped, and of several pages the first one is used. Image k of a folder is at k seconds, or at k / `fps`, or at
    the time that `times` gives it; frames of an animation are at the times of the file. Times are in seconds after the
    first image.

    Numbers in names count as numbers (``2.png`` comes before ``10.png``). If the names of a folder are alike but for
    one number, a missing number is an error.

    Args:
        paths: A directory (each directory at any depth that contains images is a stream), a glob pattern
            (``clips/*/*.png``: the matches in each directory are a stream), a pattern with a number
            (``clips/*/%05d.png``), an image, or a list of these. Addresses in stores and in containers
            (``s3://bucket/*.zip!/**/*.png``) can be used like paths.
        size: (height, width) in pixels to which images are scaled. Defaults to their own size, which must be the same
            for all. JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if that is at least `size`.
        pix_fmt: Pixel format: ``"rgb24"``, ``"rgbp"``, ``"gray"`` or ``"yuv420p"``. Defaults to ``"rgb24"``.
        max_frames: Maximum number of steps of a stream. Defaults to no limit.
        random_start: Whether each stream starts at a random image that leaves `max_frames` steps, drawn again in every
            epoch. Defaults to False.
        stride: Number of images from one step to the next. Defaults to 1. Images between them are not read.
        fps: Frames per second. Images without times are that many a second; animations, and images with `times`, are
            resampled to it, so that step k is always at k / fps seconds.
        transform: Function ``transform(frames, rng)``, as for videos.
        times: Times of the images of each folder: ``"names"`` takes the last number of each name; another string is
            the name of a table in each folder (``"times.txt"`` or ``"../times.csv"``, with a time for each image, or
            with times and names); a mapping has the seconds of each image by its name, or by folder and name; a
            function ``times(folder, names)`` returns the seconds of all images of a folder. Defaults to none.
        time_unit: Unit of the times in names and tables: ``"s"``, ``"ms"``, ``"us"`` or ``"ns"``. Defaults to seconds.
        streams: ``"folders"``: the images of a folder are one stream, and each animation is one. ``"files"``: each file
            is a stream. Defaults to ``"folders"``.
        gaps: ``"raise"`` raises an error if a number is missing in a folder of numbered images; ``"keep"`` plays the
            others. Numbers that are `times` are not checked. Defaults to ``"raise"``.
        damaged: ``"raise"`` raises an error for an image that cannot be decoded, when it is played; ``"keep"`` shows
            the image before it instead, or at the beginning the one after it. A truncated animation then has its whole
            frames, and of a damaged one the last frame before the damage is shown to its end. Defaults to ``"raise"``.
        max_pixels: Maximum number of pixels of an image, before `size` is applied. Larger ones are refused before they
            are decoded. Defaults to 2^26, which is 8192 x 8192.
        unreadable: ``"raise"`` raises one error that lists all streams that cannot be used; ``"skip"`` leaves them out
            and lists them in :attr:`skipped`, as does ``on_error="skip"`` of a loader. None, the
            default, raises for them too, but leaves out directories that may not be read, with one warning.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    To index a folder, its names are listed. The header of its first image is read if `size` is not given, or if only
    the header tells whether the files are animations (PNG and WebP). An animation is read as a whole, but not decoded.

    The key of a stream is the address of its folder or file.

    Raises:
        ConfigError: If the arguments contradict each other, or `transform` is not suitable.
        MissingDependency: If the extra ``images`` is not installed.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no image (from :meth:`index`).
        UnreadableStream: If a file is not an image of an accepted format, or an image has no time.
        CorruptStream: If a number is missing in a folder, an image is truncated or damaged, or a file changed since it
            was indexed. ``offset`` is the number of the image in its stream.
        MediaLimitExceeded: If an image exceeds `max_pixels`.
        FrameSizeError: If images differ in size and `size` is not given.
        StoreError: If a store fails to deliver bytes; ObjectChanged if an image in a store was replaced.
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
        times: ImageTimesOption = None,
        time_unit: TimeUnit = "s",
        streams: Literal["folders", "files"] = "folders",
        gaps: Literal["raise", "keep"] = "raise",
        damaged: Literal["raise", "keep"] = "raise",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        unreadable: Unreadable = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = as_addresses(paths)
        self._pix_fmt = validate_pix_fmt(pix_fmt, transform)
        self._size = None if size is None else validate_size(size)
        self._selection = Selection.from_options(max_frames, random_start, stride, fps)
        self._transform = transform
        validate_times(times, time_unit)
        self._times, self._time_unit = times, time_unit
        self._per_file = _is_second("streams", streams, "folders", "files")
        self._keeps_gaps = _is_second("gaps", gaps, "raise", "keep")
        self._keeps_damaged = _is_second("damaged", damaged, "raise", "keep")
        self._max_pixels = validate_max_pixels(max_pixels)
        self._unreadable = validate_unreadable(unreadable)
        self._storage_options = check_options("storage_options", storage_options)
        self._files: list[SourceFile] | None = None  # instead of the paths
        self._indexed: ImageIndex | None = None
        self._fields: dict[str, Field] | None = None
        if self._size is not None and transform is None:
            self._fields = frame_fields(pix_fmt, *self._size)

    @classmethod
    def from_files(cls, files: Sequence[SourceFile], **options: Any) -> Self:
        """Return the streams of files that were found already, such as by :func:`streamloader.find_streams`.

        Args:
            files: Files, at least one.
            **options: Arguments of :class:`ImageStreams` except `paths`.
        """
        dataset = cls([file.address for file in files[:1]], **options)
        dataset._files = list(files)
        return dataset

    @property
    def fields(self) -> Mapping[str, Field]:
        """Name -> shape and dtype of one step."""
        if self._fields is None:
            raise ConfigError("the size of images is unknown before index() was called; or pass size=")
        return self._fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """The options of frames and pixels. Functions are given by their names or kinds."""
        settings = describe_settings(self._pix_fmt, self._size, self._selection, self._transform)
        return settings | {
            "times": describe_times(self._times),
            "time_unit": self._time_unit,
            "damaged": "keep" if self._keeps_damaged else "raise",
        }

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The streams that the last call of :meth:`index` left out because they cannot be used, in their order."""
        return () if self._indexed is None else self._indexed.skipped

    async def index(self) -> Sequence[StreamInfo]:
        """List all images, and describe one stream for each folder and animation, in order."""
        indexer = ImageIndexer(
            self._selection,
            self._times,
            self._time_unit,
            options=self._storage_options,
            max_pixels=self._max_pixels,
            per_file=self._per_file,
            keeps_gaps=self._keeps_gaps,
            keeps_damaged=self._keeps_damaged,
            needs_size=self._size is None,
        )
        found = UnreadableReport("skip" if skips_unreadable() else self._unreadable)
        indexed = await anyio.to_thread.run_sync(indexer.run, self._files or self._paths, found, abandon_on_cancel=True)
        self._indexed = indexed
        self._fields = frame_fields(self._pix_fmt, *self._step_size(indexed), self._transform)
        return indexed.streams

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of the files of each stream. Those that no step needs are not read."""
        sizes = self._require_index().files.sizes
        first, images = streams.extra_integers("first"), streams.extra_integers("images")
        ends = np.concatenate([[0], np.cumsum(np.maximum(sizes, 0))])
        remote = np.fromiter((not self._find_files(info).is_local for info in streams), bool, len(streams))
        return SourceSizes(ends[first + images] - ends[first], remote, by_step=True)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one stream. `rng` determines its start, and is the source of the random generator of `transform`."""
        return await self._open_with(info, rng, None)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the first images of a stream in a store."""
        files = self._find_files(info)
        if files.is_local or files.version(0) is None or self._selection.random_start:
            return None
        try:
            source = files.open(self._storage_options, info.key)
        except StreamloaderError:  # open() raises it again
            return None
        assert isinstance(source, StoredImages)
        source.start(range(0, len(files), self._selection.stride)[:_MAX_PREPARED_IMAGES])
        return PreparedImages(partial(self._open_with, info), source)

    async def _open_with(self, info: StreamInfo, rng: np.random.Generator, source: ImageSource | None) -> Stream:
        start_draw, transform_key = float(rng.random()), rng.integers(0, 1 << 64, 2, np.uint64)
        return await in_lane_thread(self._open, info, start_draw, transform_key, source)

    def _require_index(self) -> ImageIndex:
        if self._indexed is None:
            raise ConfigError("the images are unknown before index() was called")
        return self._indexed

    def _find_files(self, info: StreamInfo) -> ImageFiles:
        """Return the files of a stream."""
        indexed = self._require_index()
        prefix = indexed.secret_prefixes.get(info.key, info.extra["folder"])
        return indexed.files.select(prefix, info.extra["first"], info.extra["images"])

    def _step_size(self, indexed: ImageIndex) -> tuple[int, int]:
        """Return the (height, width) of all images, scaled if a size was given."""
        size = self._size or indexed.common_size
        assert size is not None, "the index knows the size of all images if none was given"
        return size

    def _open(
        self, info: StreamInfo, start_draw: float, transform_key: Array, source: ImageSource | None
    ) -> FrameStream:
        transform = None
        if self._transform is not None:
            transform = StreamTransform(self._transform, transform_key, self.fields["data"], info.key)
        files = self._find_files(info)
        source = source or files.open(self._storage_options, info.key)
        play = self._play_animation if info.extra["frames"] else self._play_images
        try:
            return play(info, files, source, start_draw, transform)
        except BaseException:
            source.close()
            raise

    def _play_images(
        self,
        info: StreamInfo,
        files: ImageFiles,
        source: ImageSource,
        start_draw: float,
        transform: StreamTransform | None,
    ) -> ImageFolderStream:
        from streamloader.media.image.decoder import ImageDecoder

        indexed, selection = self._require_index(), self._selection
        times = image_times(len(files), indexed.files.select_times(info.extra["first"], len(files)), selection.fps)
        decoder = ImageDecoder(
            self._pix_fmt, *self._step_size(indexed), self._max_pixels, scales=self._size is not None
        )
        return ImageFolderStream(
            source,
            files,
            selection.select_frames(times, start_draw),
            decoder,
            list(self.fields),
            transform,
            key=info.key,
            keeps_damaged=self._keeps_damaged,
        )

    def _play_animation(
        self,
        info: StreamInfo,
        files: ImageFiles,
        source: ImageSource,
        start_draw: float,
        transform: StreamTransform | None,
    ) -> AnimationStream:
        from streamloader.media.image.animation import AnimationReader
        from streamloader.media.image.timing import cut_to_whole_frames
        from streamloader.media.video.convert import Converter

        data, name = source.read(0), files.name(0)
        source.close()
        probe = parse_image(data, name, self._max_pixels, tolerant=self._keeps_damaged)
        if probe.times is None or len(probe.times) != info.extra["frames"]:
            raise CorruptStream(
                f"{name} was changed since the loader was built: build the loader again", stream=info.key, address=name
            )
        if self._keeps_damaged:
            data = cut_to_whole_frames(data, probe.header)
        reader = AnimationReader(
            data, probe.header, len(probe.times), name=name, stream=info.key, max_pixels=self._max_pixels
        )
        return AnimationStream(
            reader,
            self._selection.select_frames(probe.times, start_draw),
            Converter(self._pix_fmt, *self._step_size(self._require_index()), probe.header.orientation, name=name),
            list(self.fields),
            transform,
            waits_for_bytes=source.waits_for_bytes,
            keeps_damaged=self._keeps_damaged,
        )


def _is_second(name: str, value: str, first: str, second: str) -> bool:
    """Return whether an option has the second of its two values.

    Raises:
        ConfigError: If it has neither.
    """
    if value not in (first, second):
        raise ConfigError(f'{name} must be "{first}" or "{second}", got {value!r}')
    return value == second
