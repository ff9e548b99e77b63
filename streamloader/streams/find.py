"""Find everything in a directory that can be played as frames: videos, folders of images, and single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import anyio.to_thread
import numpy as np

from streamloader.arguments import check_options
from streamloader.errors import ConfigError, FrameSizeError, StreamloaderError, StreamNotFound
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.selection import Selection
from streamloader.stores.addresses import Addresses, SourceFile, as_addresses, select_regular_files
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.augment import Transform
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset, skips_unreadable
from streamloader.streams.frames import describe_settings, frame_fields, validate_pix_fmt, validate_size
from streamloader.streams.image_files import file_name, find_images, group_by_folder
from streamloader.streams.image_names import is_animation_name, is_image
from streamloader.streams.images import ImageStreams
from streamloader.streams.indexing import validate_unreadable
from streamloader.streams.unreadable import SkippedVideo, ends_indexing, finish_report, join_errors
from streamloader.streams.video import VideoStreams
from streamloader.streams.video_names import is_video, leave_out_text
from streamloader.values import Field, StreamInfo

__all__ = ["FoundStreams", "find_streams"]


def find_streams(paths: Addresses, size: tuple[int, int] | None = None, **options: Any) -> FoundStreams:
    """Return a stream for each video, each folder of images and each single image in a directory, at any depth.

    A directory that contains several images and nothing else to play, also not in directories below it, is one stream:
    its images in natural order. In every other directory, each image is a stream of one step. Animations (GIF, APNG,
    WebP) are streams of their own. All streams have the same fields, and are sorted by their addresses.

    Args:
        paths: A directory, a pattern, an address in a store or container, or a list of these.
        size: (height, width) in pixels to which frames are scaled. Without it, all must have the same size.
        **options: Options that :class:`~streamloader.VideoStreams` and :class:`~streamloader.ImageStreams` have in
            common: `pix_fmt`, `max_frames`, `random_start`, `stride`, `fps`, `transform`, `damaged`, `max_pixels`,
            `unreadable` and `storage_options`. `gaps` is for images alone.

    Raises:
        ConfigError: If an option is invalid. Other errors are those of the two classes, from ``index``.
    """
    return FoundStreams(paths, size, **options)


class FoundStreams(StreamDataset):
    """Videos, folders of images, and single images. The arguments and errors are those of :func:`find_streams`.

    Args:
        paths: A directory, a pattern, an address in a store or container, or a list of these.
        size: (height, width) in pixels to which frames are scaled.
        pix_fmt: Pixel format, as for videos.
        max_frames: Maximum number of steps of a stream. Defaults to no limit.
        random_start: Whether each stream starts at a random frame. Defaults to False.
        stride: Number of frames from one step to the next. Defaults to 1.
        fps: Frames per second, as for images. Defaults to none.
        transform: Function ``transform(frames, rng)``, as for videos.
        gaps: Handling of missing numbers in folders of numbered images.
        damaged: Handling of damaged files.
        max_pixels: Maximum number of pixels of a frame.
        unreadable: Handling of files that cannot be used.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.
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
        gaps: Literal["raise", "keep"] = "raise",
        damaged: Literal["raise", "keep"] = "raise",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        unreadable: Unreadable = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = as_addresses(paths)
        self._size = None if size is None else validate_size(size)
        self._selection = Selection.from_options(max_frames, random_start, stride, fps)
        self._storage_options = check_options("storage_options", storage_options)
        self._unreadable = validate_unreadable(unreadable)
        self._options: dict[str, Any] = {
            "size": size,
            "pix_fmt": validate_pix_fmt(pix_fmt, transform),
            "max_frames": max_frames,
            "random_start": random_start,
            "stride": stride,
            "fps": fps,
            "transform": transform,
            "damaged": damaged,
            "max_pixels": max_pixels,
            "unreadable": unreadable,
            "storage_options": self._storage_options,
        }
        self._gaps = gaps
        self._make_parts([SourceFile(self._paths[0])], [SourceFile(self._paths[0])], [])  # which checks the options
        self._parts: list[VideoStreams | ImageStreams] = []
        self._tables: list[StreamTable] = []
        self._skipped: tuple[SkippedVideo, ...] = ()
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
        """The options of frames and pixels."""
        options = self._options
        settings = describe_settings(options["pix_fmt"], self._size, self._selection, options["transform"])
        return settings | {"damaged": options["damaged"]}

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The files and folders that the last call of :meth:`index` left out because they cannot be used."""
        return self._skipped

    async def index(self) -> Sequence[StreamInfo]:
        """Find all files, index them, and describe the streams in the order of their keys."""
        skip = self._unreadable == "skip" or skips_unreadable()
        found = UnreadableReport("skip" if skip else self._unreadable)
        files = await anyio.to_thread.run_sync(self._find, found, abandon_on_cancel=True)
        parts: list[VideoStreams | ImageStreams] = []
        tables: list[StreamTable] = []
        errors: list[StreamloaderError] = []
        for part in self._make_parts(*_classify(files)):
            try:
                tables.append(StreamTable.from_infos(await part.index()))
                parts.append(part)
            except StreamloaderError as error:
                if ends_indexing(error):
                    raise
                errors.append(error)
        if errors and (not skip or not parts):
            raise join_errors(found, errors)
        self._skipped = (
            *finish_report(found),
            *(record for part in parts for record in part.skipped),
            *(record for error in errors for record in _as_skipped(error)),
        )
        self._fields = _common_fields(parts, tables)
        self._parts, self._tables = parts, tables
        return _merge_tables(tables)

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of the files of each stream."""
        parts, numbers = streams.extra_integers("part"), streams.extra_integers("number")
        sizes, remote = np.empty(len(streams), np.int64), np.empty(len(streams), bool)
        for number, (part, table) in enumerate(zip(self._parts, self._tables, strict=True)):
            each = part.source_sizes(table)
            rows = parts == number
            sizes[rows], remote[rows] = each.sizes[numbers[rows]], each.remote[numbers[rows]]
        return SourceSizes(sizes, remote)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one stream, as the dataset of its kind does."""
        part, own_info = self._find_part(info)
        return await part.open(own_info, rng)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the first bytes of a stream in a store."""
        part, own_info = self._find_part(info)
        return await part.prepare(own_info)

    def _find_part(self, info: StreamInfo) -> tuple[StreamDataset, StreamInfo]:
        """Return the dataset of a stream, and its description there."""
        number: int = info.extra["part"]
        own_info: StreamInfo = self._tables[number][info.extra["number"]]
        return self._parts[number], own_info

    def _find(self, found: UnreadableReport) -> list[SourceFile]:
        files = find_images(self._paths, self._storage_options, lambda path: is_image(path) or is_video(path), found)
        videos = {file.address for file in files if file.info is None and not is_image(file_name(file))}
        found.check(files)
        regular = set(select_regular_files(sorted(videos), found))  # images are looked at when they are indexed
        files = [file for file in files if file.address not in videos or file.address in regular]
        if not files:
            found.raise_errors()
            raise StreamNotFound(f"there is no video and no image that can be read{found.describe()}")
        return leave_out_text(files, self._paths, self._storage_options)

    def _make_parts(
        self, videos: Sequence[SourceFile], folders: Sequence[SourceFile], singles: Sequence[SourceFile]
    ) -> list[VideoStreams | ImageStreams]:
        """Return a dataset for each kind of stream that has files."""
        parts: list[VideoStreams | ImageStreams] = []
        if videos:
            parts.append(VideoStreams([video.address for video in videos], **self._options))
        for files, streams in ((folders, "folders"), (singles, "files")):
            if files:
                parts.append(ImageStreams.from_files(files, streams=streams, gaps=self._gaps, **self._options))
        return parts


def _classify(files: Sequence[SourceFile]) -> tuple[list[SourceFile], list[SourceFile], list[SourceFile]]:
    """Return the videos, the images of folders that are streams, and the images that are streams."""
    images = [file for file in files if is_image(file_name(file))]
    known = {id(file) for file in images}
    others = [file for file in files if id(file) not in known]
    mixed = {prefix for file in others for prefix in _prefixes(file.address)}
    folders: list[SourceFile] = []
    singles: list[SourceFile] = []
    groups = group_by_folder(images)
    for group in groups:
        mixed.update(_prefixes(group.prefix[:-1]))  # folders with folders of images below them
    for group in groups:
        has_animation = any(is_animation_name(file_name(file)) for file in group.files)
        is_folder = len(group.files) > 1 and group.prefix not in mixed and not has_animation
        (folders if is_folder else singles).extend(group.files)
    return others, folders, singles


def _prefixes(address: str) -> list[str]:
    """Return the addresses of all folders above a file or folder, each with a "/" at its end."""
    parts = address.split("/")
    return ["/".join(parts[:end]) + "/" if parts[:end] else "" for end in range(len(parts))]


def _as_skipped(error: StreamloaderError) -> list[SkippedVideo]:
    """Return the records of the files of an error about all files of a kind."""
    listed = error.details.get("failed")
    if listed is None:
        name = error.address or error.stream or ""
        return [SkippedVideo.from_error(error.stream or name, name, error)]
    return [SkippedVideo(name, name, kind, message) for name, kind, message in listed]


def _common_fields(parts: Sequence[StreamDataset], tables: Sequence[StreamTable]) -> dict[str, Field]:
    """Return the fields of all streams.

    Raises:
        FrameSizeError: If they differ.
    """
    first = dict(parts[0].fields)
    for part, table in zip(parts[1:], tables[1:], strict=True):
        if dict(part.fields) != first:
            one, other = (next(iter(fields.values())).shape for fields in (first, part.fields))
            raise FrameSizeError(
                f"streams differ in frame size: the steps of {tables[0][0].key} have the shape {one}, those of "
                f"{table[0].key} {other}. Pass size=(height, width) to scale all to one size",
                stream=table[0].key,
                sizes=[list(one), list(other)],
            )
    return first


def _merge_tables(tables: Sequence[StreamTable]) -> StreamTable:
    """Return the streams of several tables in the order of their keys."""
    rows = sorted((info.key, part, number) for part, table in enumerate(tables) for number, info in enumerate(table))
    keys, parts, numbers = zip(*rows, strict=True)
    lengths = [tables[part].lengths[number] for part, number in zip(parts, numbers, strict=True)]
    columns: dict[str, Any] = {"part": np.array(parts, np.int64), "number": np.array(numbers, np.int64)}
    identities = [tables[part].identities[number] for part, number in zip(parts, numbers, strict=True)]
    return StreamTable(list(keys), np.array(lengths, np.int64), columns, identities)
